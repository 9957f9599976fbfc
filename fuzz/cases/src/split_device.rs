//! The device's side of a split ring, on memory that holds anything.

use std::sync::atomic::{AtomicU16, Ordering};

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory, Words, WriteCursor,
};
use std::os::fd::AsFd;
use virtqueue::Violation;
use virtqueue::split::{Chain, DeviceQueue, Layout};
use wire::split::{Descriptor, available_ring_size, descriptor_table_size, used_ring_size};
use wire::virtio::Features;

use crate::Reached;
use crate::input::Input;

/// Where memory begins, how much there is, and where its two regions meet.
pub const START: u64 = 0x1000;
pub const BYTES: u64 = 4096;
const BORDER: u64 = 2043;

/// Ring memory, and what is done with it.
pub fn split_device(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let mut input = Input::new(data);
    let Some(ring) = RingMemory::new(&mut input) else { return reached };
    let mut device = Device::new(&ring, input.u16());
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 16) {
        let taken = match step {
            0..=3 => {
                ring.scribble(&mut input);
                Ok(None)
            }
            4..=6 => {
                device.offer(&mut input);
                Ok(None)
            }
            7..=9 => device.take(&mut input),
            10 => device.retake(&mut input),
            11..=12 => device.give_back(&mut input),
            13 => device.publish(),
            14 => device.untake(&mut input),
            _ => device.notifications(&mut input),
        };
        match taken {
            Ok(Some(chain)) => {
                assert!(chain.head < ring.size && chain.descriptors <= ring.size);
                reached.note(if chain.bytes > u64::from(u32::MAX) { "huge" } else { "chain" });
                device.held.push(chain);
                device.untakeable += 1;
            }
            Ok(None) => {}
            Err(violation) => {
                reached.note_variant(&violation);
                // Only a restart mends it: behind what was wrong.
                let base = device.queue.position().wrapping_add(1);
                ring.set_available_index(base);
                device = Device::new(&ring, base);
            }
        }
        device.check();
    }
    reached
}

/// A ring's memory, over all of which anything may be written.
pub struct RingMemory {
    memory: GuestMemory,
    pub layout: Layout,
    pub features: Features,
    pub size: u16,
    available_words: Words<AtomicU16>,
    used_words: Words<AtomicU16>,
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

        let size = 1u16 << input.below(6);
        let features = input.u8();
        let choose = |bit: u8, feature| match features & bit {
            0 => Features::NONE,
            _ => feature,
        };
        let features = choose(1, Features::INDIRECT_DESC) | choose(2, Features::EVENT_IDX);
        // Side by side, as drivers place them, or somewhere.
        let [table, available, used] = if features.is_empty() || input.bool() {
            let available = descriptor_table_size(size);
            [0, available, (available + available_ring_size(size)).next_multiple_of(4)]
        } else {
            [(); 3].map(|()| u64::from(input.u8()) * 16)
        };
        let at = |offset| GuestAddress(START + offset);
        let layout = Layout::new(&memory, size.into(), at(table), at(available), at(used)).ok()?;
        let words = |offset, bytes: u64| memory.words(at(offset), (bytes / 2) as usize).ok();
        let available_words = words(available, available_ring_size(size))?;
        let used_words = words(used, used_ring_size(size))?;
        Some(Self { memory, layout, features, size, available_words, used_words })
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub fn set_available_index(&self, index: u16) {
        self.available_words[1].store(index.to_le(), Ordering::Relaxed);
    }

    pub fn set_used_index(&self, index: u16) {
        self.used_words[1].store(index.to_le(), Ordering::Relaxed);
    }

    pub fn used_words(&self) -> &[AtomicU16] {
        &self.used_words
    }

    fn set_head(&self, slot: u16, head: u16) {
        let slot = 2 + usize::from(slot & (self.size - 1));
        self.available_words[slot].store(head.to_le(), Ordering::Relaxed);
    }

    /// Writes something somewhere: descriptors that are nearly right, heads, or any bytes.
    pub fn scribble(&self, input: &mut Input<'_>) {
        match input.below(8) {
            0..=4 => {
                let index = u64::from(input.u8()) % (BYTES / Descriptor::SIZE);
                let descriptor = nearly_right(input);
                let bytes = descriptor.to_words().map(u64::to_le_bytes);
                self.write(index * Descriptor::SIZE, bytes.as_flattened());
            }
            5..=6 => self.set_head(input.u16(), input.u8().into()),
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
}

/// A descriptor that may well pass.
fn nearly_right(input: &mut Input<'_>) -> Descriptor {
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
    let next = match input.u8() {
        next @ 0..0xf0 => u16::from(next % 33),
        _ => input.u16(),
    };
    Descriptor { address, length, flags, next }
}

/// The queue, and what was taken from it.
struct Device<'r> {
    ring: &'r RingMemory,
    queue: DeviceQueue,
    held: Vec<Chain>,
    /// How many of the last taken are all still held.
    untakeable: usize,
    given_back: u16,
    base: u16,
    published: u16,
}

impl<'r> Device<'r> {
    fn new(ring: &'r RingMemory, base: u16) -> Self {
        let queue = DeviceQueue::new(ring.layout.clone(), ring.features, base);
        let held = Vec::new();
        Self { ring, queue, held, untakeable: 0, given_back: 0, base, published: 0 }
    }

    /// Moves the available index on from what the device knows.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ahead = if input.rarely() { input.u16() } else { u16::from(input.u8() % 5) };
        let known = self.queue.available().unwrap_or(0);
        let index = self.queue.position().wrapping_add(known).wrapping_add(ahead);
        self.ring.set_available_index(index);
        for slot in 0..ahead.min(self.ring.size) {
            if self.ring.features.is_empty() || !input.rarely() {
                let at = self.queue.position().wrapping_add(known).wrapping_add(slot);
                self.ring.set_head(at, u16::from(input.u8()) % self.ring.size);
            }
        }
    }

    fn limit(input: &mut Input<'_>) -> u32 {
        match input.below(4) {
            0..=2 => 65_569,
            _ => input.u16().into(),
        }
    }

    fn take(&mut self, input: &mut Input<'_>) -> Result<Option<Chain>, Violation> {
        let mut translator = self.ring.memory.translator();
        let limit = Self::limit(input);
        if input.bool() {
            let mut slices = Vec::new();
            let taken = self.queue.take_readable(&mut translator, limit, &mut slices);
            let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
            self.check_pieces(limit, &lens, taken.ok().flatten());
            // Every byte can be touched.
            slices.iter().for_each(|slice| _ = slice.copy_to(&mut vec![0; slice.len()]));
            taken
        } else {
            let mut slices = Vec::new();
            let taken = self.queue.take_writable(&mut translator, limit, &mut slices);
            let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
            self.check_pieces(limit, &lens, taken.ok().flatten());
            // Over the ring itself, perhaps.
            let bytes = vec![input.u8(); lens.iter().sum()];
            assert_eq!(WriteCursor::new(&slices).write(bytes[..].into()), bytes.len());
            taken
        }
    }

    /// No more pieces than a chain of this ring can have (each buffer in both regions), no more
    /// bytes than asked for, and all of them when nothing was wrong.
    fn check_pieces(&self, limit: u32, lens: &[usize], chain: Option<Chain>) {
        let size = usize::from(self.ring.size);
        let bytes: u64 = lens.iter().map(|len| *len as u64).sum();
        assert!(lens.len() <= 2 * size, "{} pieces", lens.len());
        assert!(lens.iter().all(|len| (1..=BYTES).contains(&(*len as u64))));
        assert!(bytes <= limit.into());
        if let Some(chain) = chain {
            assert_eq!(bytes, chain.bytes.min(limit.into()));
        }
    }

    fn retake(&mut self, input: &mut Input<'_>) -> Result<Option<Chain>, Violation> {
        let index = usize::from(input.u8()) % self.held.len().max(1);
        let Some(held) = self.held.get_mut(index) else { return Ok(None) };
        let mut translator = self.ring.memory.translator();
        let limit = Self::limit(input);
        let mut slices = Vec::new();
        let chain = self.queue.retake_readable(held.head, &mut translator, limit, &mut slices)?;
        assert_eq!(chain.head, held.head);
        *held = chain;
        let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
        self.check_pieces(limit, &lens, Some(chain));
        Ok(None)
    }

    fn give_back(&mut self, input: &mut Input<'_>) -> Result<Option<Chain>, Violation> {
        let index = usize::from(input.u8()) % self.held.len().max(1);
        if index < self.held.len() {
            self.untakeable = self.untakeable.min(self.held.len() - 1 - index);
            self.queue.give_back(self.held.remove(index), input.u32());
            self.given_back = self.given_back.wrapping_add(1);
        }
        Ok(None)
    }

    fn publish(&mut self) -> Result<Option<Chain>, Violation> {
        let called = self.queue.publish();
        if self.published == self.given_back {
            assert!(!called, "nothing to call for");
        } else {
            let index = self.base.wrapping_add(self.given_back);
            assert_eq!(self.ring.layout.used_index(), index);
            self.published = self.given_back;
        }
        Ok(None)
    }

    fn untake(&mut self, input: &mut Input<'_>) -> Result<Option<Chain>, Violation> {
        let count = self.untakeable.min(input.below(8));
        self.queue.untake(count as u16);
        self.untakeable -= count;
        self.held.truncate(self.held.len() - count);
        Ok(None)
    }

    fn notifications(&mut self, input: &mut Input<'_>) -> Result<Option<Chain>, Violation> {
        match input.below(3) {
            0 => {
                let more = self.queue.enable_kicks()?;
                assert_eq!(Ok(more), self.queue.available().map(|count| count > 0));
            }
            1 => self.queue.disable_kicks(),
            _ => self.queue.relocate(self.ring.layout.clone()),
        }
        Ok(None)
    }

    fn check(&mut self) {
        assert!(self.queue.outstanding() <= self.ring.size);
        assert_eq!(usize::from(self.queue.outstanding()), self.held.len());
        let known = self.queue.available().unwrap_or(0);
        assert!(u32::from(known) + u32::from(self.queue.outstanding()) <= self.ring.size.into());
    }
}
