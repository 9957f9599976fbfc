//! The memory of a ring of either format, over all of which anything may be written.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory, Words, WriteCursor,
};
use virtqueue::{Layout, packed};
use wire::split::Descriptor;
use wire::virtio::Features;

use crate::input::{Input, chosen};

/// Where memory begins, how much there is, and where its two regions meet.
pub const START: u64 = 0x1000;
pub const BYTES: u64 = 4096;
const BORDER: u64 = 2043;

/// The features that change a ring, by their bits in the input.
const CHOICE: [Features; 4] =
    [Features::INDIRECT_DESC, Features::EVENT_IDX, Features::RING_PACKED, Features::IN_ORDER];

/// The flags by which a packed ring's descriptor is available or used.
const MARKS: u16 = packed::Descriptor::AVAIL | packed::Descriptor::USED;

/// A used chain, as a device writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedEntry {
    pub id: u16,
    pub written: u32,
}

/// Where a ring has got to, counted in a way that both formats share: from 0 round to
/// [`RingMemory::round`]. In a split ring it is the index; in a packed ring the slot, in the second
/// half with a wrap counter of 0.
pub type Place = u32;

/// The memory, and the ring that lies in it.
pub struct RingMemory {
    memory: GuestMemory,
    pub layout: Layout,
    pub features: Features,
    pub size: u16,
    /// The input means to keep the rules of rings, if not those of chains.
    pub is_tidy: bool,
    /// The ring's three areas.
    descriptors: Words<AtomicU16>,
    available: Words<AtomicU16>,
    used: Words<AtomicU16>,
}

impl RingMemory {
    /// A ring whose areas lie anywhere, over each other if need be. None when one of them is not
    /// in the memory.
    pub fn new(input: &mut Input<'_>) -> Option<Self> {
        let file = SharedMemory::create("fuzz ring", BYTES).expect("a memory file");
        let region = |start: u64, end: u64| RegionRequest {
            guest: GuestAddress(START + start),
            size: end - start,
            front_end: FrontEndAddress(START + start),
            offset: start,
            file: file.as_fd().try_clone_to_owned().expect("a descriptor"),
        };
        let regions = [region(0, BORDER), region(BORDER, BYTES)];
        let memory = GuestMemory::map(regions).expect("two regions");

        let size = input.u8();
        let features = chosen(&CHOICE, input.u8().into());
        let is_tidy = (features & (Features::INDIRECT_DESC | Features::EVENT_IDX)).is_empty();
        let size = match features.contains(Features::RING_PACKED) {
            true => 1 + u16::from(size % 33),
            false => 1 << (size % 6),
        };
        // Side by side, as drivers place them, or somewhere.
        let areas = Layout::areas(features, size);
        let starts = if is_tidy || input.bool() {
            let mut end = 0;
            areas.map(|area| {
                let start = u64::next_multiple_of(end, area.alignment);
                end = start + area.size;
                start
            })
        } else {
            [(); 3].map(|()| u64::from(input.u8()) * 16)
        };
        let [descriptors, available, used] = starts.map(|start| GuestAddress(START + start));
        let layout =
            Layout::new(&memory, features, size.into(), descriptors, available, used).ok()?;
        let words = |at, number: usize| memory.words(at, (areas[number].size / 2) as usize).ok();
        let descriptors = words(descriptors, 0)?;
        let (available, used) = (words(available, 1)?, words(used, 2)?);
        Some(Self { memory, layout, features, size, is_tidy, descriptors, available, used })
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub fn is_packed(&self) -> bool {
        self.features.contains(Features::RING_PACKED)
    }

    pub fn is_in_order(&self) -> bool {
        self.features.contains(Features::IN_ORDER)
    }

    /// How many places there are.
    pub fn round(&self) -> u32 {
        if self.is_packed() { 2 * u32::from(self.size) } else { 1 << 16 }
    }

    /// The place so many entries further on.
    pub fn advance(&self, place: Place, count: u16) -> Place {
        (place + u32::from(count)) % self.round()
    }

    /// How many entries further on than `earlier` it is.
    pub fn since(&self, place: Place, earlier: Place) -> u32 {
        (place + self.round() - earlier) % self.round()
    }

    /// How a queue says where it stands.
    pub fn position(&self, available: Place, used: Place) -> u32 {
        match self.is_packed() {
            true => u32::from(self.bits(used)) << 16 | u32::from(self.bits(available)),
            false => available,
        }
    }

    /// A place in a packed ring as its slot, with its wrap counter in the highest bit.
    fn bits(&self, place: Place) -> u16 {
        let (slot, wrap) = self.slot(place);
        slot | u16::from(wrap) << 15
    }

    /// The place that these bits are. None when the ring has no such slot.
    pub fn place(&self, bits: u16) -> Option<Place> {
        let slot = bits & 0x7fff;
        let second = if bits & 0x8000 == 0 { self.size } else { 0 };
        (slot < self.size).then(|| u32::from(slot) + u32::from(second))
    }

    /// The slot, and in a packed ring the wrap counter.
    fn slot(&self, place: Place) -> (u16, bool) {
        let size = u32::from(self.size);
        ((place % size) as u16, place < size)
    }

    // What a driver writes.

    /// The available index of a split ring.
    pub fn set_available_index(&self, index: u16) {
        store(&self.available, 1, index);
    }

    /// Fills an available entry: of a split ring it is the number of a descriptor, which the index
    /// makes available; of a packed one the descriptor itself, which is available at once.
    pub fn fill_available(&self, place: Place, input: &mut Input<'_>) {
        let (slot, wrap) = self.slot(place);
        if self.is_packed() {
            let mark = if wrap { packed::Descriptor::AVAIL } else { packed::Descriptor::USED };
            let [address, rest] = self.nearly_right(input);
            let rest = rest & !(u64::from(MARKS) << 48) | u64::from(mark) << 48;
            for (part, word) in [address, rest].into_iter().enumerate() {
                for (quarter, value) in words_of(word).into_iter().enumerate() {
                    store(&self.descriptors, 8 * usize::from(slot) + 4 * part + quarter, value);
                }
            }
        } else {
            self.set_head(slot, u16::from(input.u8()) % self.size);
        }
    }

    fn set_head(&self, slot: u16, head: u16) {
        store(&self.available, 2 + usize::from(slot & (self.size - 1)), head);
    }

    /// Whether the driver wants to be called after the used entries from `old` to `new`. None when
    /// its event words mean nothing.
    pub fn wants_call(&self, old: Place, new: Place, is_first: bool) -> Option<bool> {
        let event = 2 + usize::from(self.size);
        self.is_wanted(&self.available, event, old, new, is_first)
    }

    // What a device writes.

    /// The used index of a split ring.
    pub fn used_index(&self) -> u16 {
        load(&self.used, 1)
    }

    pub fn set_used_index(&self, index: u16) {
        store(&self.used, 1, index);
    }

    /// The used entry at a place. None when there is none.
    pub fn used_entry(&self, place: Place) -> Option<UsedEntry> {
        let (slot, wrap) = self.slot(place);
        if self.is_packed() {
            let at = 8 * usize::from(slot);
            let [low, high, id, flags] =
                [4, 5, 6, 7].map(|part| load(&self.descriptors, at + part));
            let written = u32::from(low) | u32::from(high) << 16;
            let has_written = flags & packed::Descriptor::WRITE != 0;
            let is_used = flags & MARKS == if wrap { MARKS } else { 0 };
            return (is_used && has_written == (written > 0)).then_some(UsedEntry { id, written });
        }
        let at = 2 + 4 * usize::from(slot);
        let [id, zero, low, high] = [0, 1, 2, 3].map(|part| load(&self.used, at + part));
        let written = u32::from(low) | u32::from(high) << 16;
        (zero == 0).then_some(UsedEntry { id, written })
    }

    /// Writes a used entry. Of a split ring the index stays behind.
    pub fn fill_used(&self, place: Place, UsedEntry { id, written }: UsedEntry) {
        let (slot, wrap) = self.slot(place);
        let [low, high, ..] = words_of(written.into());
        if self.is_packed() {
            let marks = if wrap { MARKS } else { 0 };
            let wrote = if written > 0 { packed::Descriptor::WRITE } else { 0 };
            let at = 8 * usize::from(slot) + 4;
            for (part, value) in [low, high, id, marks | wrote].into_iter().enumerate() {
                store(&self.descriptors, at + part, value);
            }
        } else {
            let at = 2 + 4 * usize::from(slot);
            for (part, value) in [id, 0, low, high].into_iter().enumerate() {
                store(&self.used, at + part, value);
            }
        }
    }

    /// Whether the device wants a kick after the available entries from `old` to `new`. None when
    /// its event words mean nothing.
    pub fn wants_kick(&self, old: Place, new: Place) -> Option<bool> {
        self.is_wanted(&self.used, 2 + 4 * usize::from(self.size), old, new, false)
    }

    /// What the event words of an area ask for (virtio 1.3, 2.7.7.2, 2.7.10 and 2.8.14): whether to
    /// notify, for one thing when the entry that they name is from `old` up to `new`. After a start
    /// they may be from another life.
    fn is_wanted(
        &self,
        words: &[AtomicU16],
        split_event: usize,
        old: Place,
        new: Place,
        is_first: bool,
    ) -> Option<bool> {
        let is_crossed = |event| (1..=self.since(new, old)).contains(&self.since(new, event));
        let has_event_index = self.features.contains(Features::EVENT_IDX);
        if self.is_packed() {
            return match load(words, 1) & 3 {
                1 => Some(false),
                2 if has_event_index && !is_first => self.place(load(words, 0)).map(is_crossed),
                _ => Some(true),
            };
        }
        if has_event_index {
            return Some(is_first || is_crossed(load(words, split_event).into()));
        }
        Some(load(words, 0) & 1 == 0)
    }

    /// Writes something somewhere: descriptors that are nearly right, heads, event words, or any
    /// bytes.
    pub fn scribble(&self, input: &mut Input<'_>) {
        match input.below(8) {
            0..=4 => {
                let index = u64::from(input.u8()) % (BYTES / Descriptor::SIZE);
                let bytes = self.nearly_right(input).map(u64::to_le_bytes);
                self.write(index * Descriptor::SIZE, bytes.as_flattened());
            }
            5 if self.is_packed() => {
                let words = if input.bool() { &self.available } else { &self.used };
                store(words, 0, input.u16());
                store(words, 1, input.below(4) as u16);
            }
            5..=6 if !self.is_packed() => self.set_head(input.u16(), input.u8().into()),
            _ => {
                let at = u64::from(input.u16()) % BYTES;
                let count = input.u8().into();
                self.write(at, input.bytes(count));
            }
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let len = (bytes.len() as u64).min(BYTES - offset) as u32;
        let mut slices = Vec::new();
        let written =
            self.memory.translator().write(GuestAddress(START + offset), len, &mut slices);
        assert_eq!(written, Ok(()));
        WriteCursor::new(&slices).write(bytes.into());
    }

    /// The words of a descriptor that may well pass, in this ring or in a table.
    fn nearly_right(&self, input: &mut Input<'_>) -> [u64; 2] {
        let address = match input.below(8) {
            0..=3 => START + u64::from(input.u16()) % BYTES,
            4..=5 => START + u64::from(input.u8()) * Descriptor::SIZE,
            6 => START + BYTES - u64::from(input.u8()),
            _ => input.u64(),
        };
        let length = match input.below(8) {
            0..=3 => input.u8().into(),
            4..=6 => u32::from(input.u8() % 40) * Descriptor::SIZE as u32,
            _ => input.u32(),
        };
        let flags = match input.u8() {
            flags @ 0..0xf0 => u16::from(flags % 8),
            _ => input.u16(),
        };
        // The next descriptor of a split ring, the buffer id of a packed one.
        let next = match input.u8() {
            next @ 0..0xf0 => u16::from(next % 33),
            _ => input.u16(),
        };
        if self.is_packed() {
            packed::Descriptor { address, length, id: next, flags }.to_words()
        } else {
            Descriptor { address, length, flags, next }.to_words()
        }
    }
}

fn load(words: &[AtomicU16], at: usize) -> u16 {
    u16::from_le(words[at].load(Ordering::Relaxed))
}

fn store(words: &[AtomicU16], at: usize, value: u16) {
    words[at].store(value.to_le(), Ordering::Relaxed);
}

/// The four parts of a word, the lowest first.
fn words_of(word: u64) -> [u16; 4] {
    [0, 16, 32, 48].map(|shift| (word >> shift) as u16)
}
