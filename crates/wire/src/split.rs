//! The split virtqueue in memory (virtio 1.3, section 2.7).
//!
//! Three areas, all little-endian, placed by the driver:
//!
//! ```text
//! descriptor table   16 bytes each: address u64, length u32, flags u16, next u16
//! available ring     flags u16, index u16, ring u16[n], used_event u16         driver writes
//! used ring          flags u16, index u16, ring {id u32, length u32}[n],
//!                    available_event u16                                       device writes
//! ```

/// The largest ring, in entries (section 2.7).
pub const MAX_SIZE: u16 = 32768;

/// Alignment of the descriptor table, in bytes.
pub const DESCRIPTOR_TABLE_ALIGN: u64 = 16;
/// Alignment of the available ring, in bytes.
pub const AVAILABLE_RING_ALIGN: u64 = 2;
/// Alignment of the used ring, in bytes.
pub const USED_RING_ALIGN: u64 = 4;

/// Offset of the flags word in the available ring and in the used ring.
pub const RING_FLAGS: u64 = 0;
/// Offset of the index in the available ring and in the used ring.
pub const RING_INDEX: u64 = 2;
/// Offset of the first entry in the available ring and in the used ring.
pub const RING_ENTRIES: u64 = 4;

/// Bytes of one entry of the available ring: the head of a chain.
pub const AVAILABLE_ENTRY_SIZE: u64 = 2;
/// Bytes of one entry of the used ring: the head of a chain (u32), bytes written (u32).
pub const USED_ENTRY_SIZE: u64 = 8;

/// `flags` of the available ring: the driver asks for no calls (ignored with EVENT_IDX).
pub const NO_INTERRUPT: u16 = 1;
/// `flags` of the used ring: the device asks for no kicks (ignored with EVENT_IDX).
pub const NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor table of `entries`.
pub const fn descriptor_table_size(entries: u16) -> u64 {
    Descriptor::SIZE * entries as u64
}

/// Bytes of an available ring of `entries`, `used_event` included.
pub const fn available_ring_size(entries: u16) -> u64 {
    used_event_offset(entries) + 2
}

/// Bytes of a used ring of `entries`, `available_event` included.
pub const fn used_ring_size(entries: u16) -> u64 {
    available_event_offset(entries) + 2
}

/// Offset of `used_event` in the available ring: the used index at which the driver wants a call.
pub const fn used_event_offset(entries: u16) -> u64 {
    RING_ENTRIES + AVAILABLE_ENTRY_SIZE * entries as u64
}

/// Offset of `available_event` in the used ring: the available index at which the device wants a
/// kick.
pub const fn available_event_offset(entries: u16) -> u64 {
    RING_ENTRIES + USED_ENTRY_SIZE * entries as u64
}

/// Whether an index that moved from `old` to `new` passed the entry that `event` asks about
/// (section 2.7.10, `vring_need_event`). All three wrap at 2^16.
pub const fn event_crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// One descriptor: a buffer in guest memory, or a table of further descriptors (section 2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub length: u32,
    /// [`Descriptor::NEXT`], [`Descriptor::WRITE`], [`Descriptor::INDIRECT`].
    pub flags: u16,
    /// The following descriptor of the chain, when NEXT is set.
    pub next: u16,
}

impl Descriptor {
    /// Bytes of a descriptor in memory.
    pub const SIZE: u64 = 16;
    /// `flags`: the chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// `flags`: the device writes this buffer; otherwise it reads it.
    pub const WRITE: u16 = 2;
    /// `flags`: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// `flags` that say what kind of descriptor it is.
    pub const KIND: u16 = Self::NEXT | Self::WRITE | Self::INDIRECT;

    /// Decodes the two words of a descriptor, each already converted from little-endian.
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [address, rest] = words;
        Self { address, length: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The two words of this descriptor, each still to be converted to little-endian.
    pub const fn to_words(self) -> [u64; 2] {
        let rest = self.length as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48;
        [self.address, rest]
    }

    /// Whether the chain goes on at `next`.
    pub const fn has_next(&self) -> bool {
        self.flags & Self::NEXT != 0
    }

    /// Whether the device writes this buffer.
    pub const fn is_writable(&self) -> bool {
        self.flags & Self::WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    pub const fn is_indirect(&self) -> bool {
        self.flags & Self::INDIRECT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn descriptor_is_laid_out_as_in_the_specification() {
        let bytes: [u8; 16] = [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // address
            0xdd, 0xcc, 0xbb, 0xaa, // length
            0x03, 0x00, // flags: NEXT, WRITE
            0x07, 0x01, // next
        ];
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty());
        let words = [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])];
        let descriptor = Descriptor::from_words(words);
        assert_eq!(
            descriptor,
            Descriptor {
                address: 0x1122_3344_5566_7788,
                length: 0xaabb_ccdd,
                flags: Descriptor::NEXT | Descriptor::WRITE,
                next: 0x0107,
            }
        );
        assert!(descriptor.has_next() && descriptor.is_writable() && !descriptor.is_indirect());
        assert_eq!(descriptor.to_words(), words);
    }

    #[test]
    fn areas_have_the_sizes_of_the_specification() {
        assert_eq!(descriptor_table_size(256), 4096);
        assert_eq!(available_ring_size(256), 6 + 2 * 256);
        assert_eq!(used_ring_size(256), 6 + 8 * 256);
        assert_eq!(used_ring_size(MAX_SIZE), 6 + 8 * 32768);
        assert_eq!(used_event_offset(1), 6);
        assert_eq!(available_event_offset(1), 12);
    }

    #[test]
    fn event_is_crossed_only_by_the_entries_just_published() {
        assert!(event_crossed(0, 1, 0));
        assert!(!event_crossed(1, 1, 0));
        assert!(!event_crossed(0, 2, 1));
        assert!(!event_crossed(5, 5, 5), "nothing published");
        assert!(event_crossed(0xffff, 0, 0xffff), "the index wrapped onto 0");
        assert!(event_crossed(0, 2, 0xfffe));
        assert!(!event_crossed(2, 2, 0xfffe));
    }

    proptest! {
        #[test]
        fn words_round_trip(words: [u64; 2]) {
            prop_assert_eq!(Descriptor::from_words(words).to_words(), words);
        }

        /// The arithmetic form equals its meaning: walk from old to new and look for the event.
        #[test]
        fn event_rule_equals_a_walk(event: u16, old: u16, count in 0u16..300) {
            let new = old.wrapping_add(count);
            let walked = (0..count).any(|step| old.wrapping_add(step) == event);
            prop_assert_eq!(event_crossed(event, new, old), walked);
        }

        #[test]
        fn event_rule_equals_a_walk_near_the_event(old: u16, ahead in 0u16..40, count in 0u16..40) {
            let (event, new) = (old.wrapping_add(ahead), old.wrapping_add(count));
            prop_assert_eq!(event_crossed(event, new, old), ahead < count);
        }
    }
}
