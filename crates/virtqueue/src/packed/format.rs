//! The packed ring in memory: descriptors, event structures, positions.

use wire::split::event_crossed;

/// One descriptor (virtio 1.3, 2.8.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of the buffer. Means nothing in a used descriptor.
    pub address: u64,
    /// Bytes of the buffer; of a used descriptor, bytes written.
    pub length: u32,
    /// By what the driver knows the chain, in its last descriptor and in a used one.
    pub id: u16,
    /// The flags below.
    pub flags: u16,
}

impl Descriptor {
    /// Bytes of a descriptor in memory.
    pub const SIZE: u64 = 16;
    /// `flags`: the chain goes on in the next slot.
    pub const NEXT: u16 = 1;
    /// `flags`: the device writes this buffer; of a used descriptor, it wrote to the chain.
    pub const WRITE: u16 = 2;
    /// `flags`: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// `flags` that say what kind of descriptor it is.
    pub const KIND: u16 = Self::NEXT | Self::WRITE | Self::INDIRECT;
    /// `flags`: the driver's mark.
    pub const AVAIL: u16 = 1 << 7;
    /// `flags`: the device's mark.
    pub const USED: u16 = 1 << 15;
    /// Both marks.
    pub const MARKS: u16 = Self::AVAIL | Self::USED;

    /// Decodes the two words of a descriptor, each already converted from little-endian.
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [address, rest] = words;
        Self { address, length: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    /// The two words of this descriptor, each still to be converted to little-endian.
    pub const fn to_words(self) -> [u64; 2] {
        [self.address, self.second_word()]
    }

    /// All but the address.
    pub(super) const fn second_word(self) -> u64 {
        self.length as u64 | (self.id as u64) << 32 | (self.flags as u64) << 48
    }

    /// Whether the chain goes on in the next slot.
    pub const fn has_next(&self) -> bool {
        self.flags & Self::NEXT != 0
    }

    /// Whether the device writes this buffer, or wrote to it.
    pub const fn is_writable(&self) -> bool {
        self.flags & Self::WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    pub const fn is_indirect(&self) -> bool {
        self.flags & Self::INDIRECT != 0
    }
}

/// A place in a packed ring: a slot, and the wrap counter of whoever has come to it.
///
/// Kept in 32 bits, as a split ring's indices are, for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(u32);

/// Where a ring stands that was never used, in both halves.
pub const FIRST_POSITION: u32 = 0x8000_8000;

impl Position {
    const WRAP: u16 = 1 << 15;
    /// Where both sides begin.
    pub const FIRST: Self = Self::from_bits(Self::WRAP);

    /// From the slot in the lower 15 bits and the counter in the highest, as event structures and
    /// vhost-user have it.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits as u32)
    }

    /// As [`Self::from_bits`] takes it.
    pub const fn bits(self) -> u16 {
        self.0 as u16
    }

    /// The slot.
    pub const fn slot(self) -> u16 {
        self.bits() & !Self::WRAP
    }

    /// The wrap counter.
    pub const fn wrap(self) -> bool {
        self.bits() & Self::WRAP != 0
    }

    /// The place `count` slots further on, at most one round of a ring of `size`.
    #[inline]
    #[must_use]
    pub const fn advance(self, count: u16, size: u16) -> Self {
        // At most 32767 and 32768.
        let slot = self.slot().wrapping_add(count);
        if slot < size {
            Self::from_bits(slot | self.bits() & Self::WRAP)
        } else {
            Self::from_bits((slot - size) | !self.bits() & Self::WRAP)
        }
    }

    /// The place `count` slots back, at most one round of a ring of `size`.
    #[inline]
    #[must_use]
    pub const fn retreat(self, count: u16, size: u16) -> Self {
        // Forward by what is missing to a round, which turns the counter over or does not, whereas
        // it should have stayed or been turned over.
        let place = self.advance(size - count, size);
        Self::from_bits(place.bits() ^ Self::WRAP)
    }

    /// How many slots this place is ahead of `earlier`, from which there is at most one round of a
    /// ring of `size` to here.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Self, size: u16) -> u16 {
        let ahead = self.slot().wrapping_sub(earlier.slot());
        if self.wrap() == earlier.wrap() { ahead } else { ahead.wrapping_add(size) }
    }

    /// The flags by which a descriptor at this place is available.
    pub const fn available(self) -> u16 {
        if self.wrap() { Descriptor::AVAIL } else { Descriptor::USED }
    }

    /// The flags by which a descriptor at this place is used.
    pub const fn used(self) -> u16 {
        if self.wrap() { Descriptor::AVAIL | Descriptor::USED } else { 0 }
    }

    /// The second word of a used descriptor at this place.
    #[inline(always)]
    pub(super) const fn used_word(self, id: u16, written: u32) -> u64 {
        let wrote = if written > 0 { Descriptor::WRITE } else { 0 };
        let flags = self.used() | wrote;
        Descriptor { address: 0, length: written, id, flags }.second_word()
    }

    /// Whether a descriptor whose second word this is, at this place, is available.
    #[inline]
    pub(super) const fn is_available(self, word: u64) -> bool {
        marks(word) == self.available()
    }

    /// Whether a descriptor whose second word this is, at this place, is used.
    #[inline]
    pub(super) const fn is_used(self, word: u64) -> bool {
        marks(word) == self.used()
    }
}

const fn marks(word: u64) -> u16 {
    (word >> 48) as u16 & Descriptor::MARKS
}

/// An event suppression structure: when one side wants to be notified by the other (virtio 1.3,
/// 2.8.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of everything.
    Always,
    /// Of nothing.
    Never,
    /// When the descriptor at this place changes. With EVENT_IDX only.
    At(Position),
}

impl Event {
    /// Bytes in memory, and alignment.
    pub const SIZE: u64 = 4;

    const ALWAYS: u16 = 0;
    const NEVER: u16 = 1;
    const AT: u16 = 2;

    /// Decodes the word, already converted from little-endian. What is reserved counts as always.
    pub const fn from_word(word: u32) -> Self {
        match (word >> 16) as u16 & 3 {
            Self::NEVER => Self::Never,
            Self::AT => Self::At(Position::from_bits(word as u16)),
            _ => Self::Always,
        }
    }

    /// The word, still to be converted to little-endian.
    pub const fn to_word(self) -> u32 {
        let (place, flags) = match self {
            Self::Always => (0, Self::ALWAYS),
            Self::Never => (0, Self::NEVER),
            Self::At(place) => (place.bits(), Self::AT),
        };
        place as u32 | (flags as u32) << 16
    }

    /// Whether to notify after `count` descriptors changed, of a ring of `size`, the last one before
    /// `new`. Without `event_index` no place can be asked for; that is taken for always.
    #[inline]
    pub fn is_wanted(self, event_index: bool, new: Position, count: u16, size: u16) -> bool {
        match self {
            Self::Never => false,
            Self::At(place) if event_index => {
                // Of the round before, seen from `new`.
                let behind = if place.wrap() == new.wrap() { 0 } else { size };
                let event = place.slot().wrapping_sub(behind);
                event_crossed(event, new.slot(), new.slot().wrapping_sub(count))
            }
            _ => true,
        }
    }
}
