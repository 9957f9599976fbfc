//! The driver's side of a ring, on memory that a device writes anything into.

use memory::GuestAddress;
use virtqueue::{Buffer, DriverQueue, Form, IndirectTables};

use crate::Reached;
use crate::input::Input;
use crate::ring_memory::{Place, RingMemory, START, UsedEntry};

/// Ring memory, and what is done with it.
pub fn driver(data: &[u8]) -> Reached {
    let mut input = Input::new(data);
    let Some(ring) = RingMemory::new(&mut input) else { return Reached::default() };
    let mut driver = Driver::new(&ring);
    driver.reached.note(if ring.is_packed() { "packed" } else { "split" });
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 8) {
        match step {
            0..=1 => driver.add(&mut input),
            2 => driver.publish(),
            3 => ring.scribble(&mut input),
            4 if ring.is_packed() => driver.misuse(&mut input),
            4 => {
                let index = ring.used_index().wrapping_add(input.below(4) as u16);
                ring.set_used_index(index);
            }
            5 => driver.misuse(&mut input),
            6 => _ = driver.reap(),
            _ => driver.notifications(&mut input),
        }
        driver.check();
    }
    driver.reached
}

/// A chain that the device has.
struct Added {
    token: u32,
    /// Descriptors of the ring that it takes.
    descriptors: u16,
}

/// The queue, and what it should know.
struct Driver<'r> {
    ring: &'r RingMemory,
    queue: DriverQueue,
    with_device: Vec<Added>,
    next_token: u32,
    /// The next available entry to write, up to where the device can see, and the next used entry.
    available: Place,
    published: Place,
    used: Place,
    reached: Reached,
}

impl<'r> Driver<'r> {
    fn new(ring: &'r RingMemory) -> Self {
        let tables = IndirectTables::new(ring.memory(), GuestAddress(START), ring.size, 4).ok();
        Self {
            ring,
            queue: DriverQueue::new(ring.layout.clone(), ring.features, tables),
            with_device: Vec::new(),
            next_token: 0,
            available: 0,
            published: 0,
            used: 0,
            reached: Reached::default(),
        }
    }

    /// Entries of the ring that so many descriptors take.
    fn entries(&self, descriptors: u16) -> u16 {
        if self.ring.is_packed() { descriptors } else { 1 }
    }

    fn add(&mut self, input: &mut Input<'_>) {
        let form = match input.below(4) {
            0 => Form::Direct,
            direct => Form::Indirect(direct as u16 - 1),
        };
        let buffer = Buffer { address: GuestAddress(input.u64()), len: 1, writable: input.bool() };
        let buffers = input.below(8);
        if self.queue.add(&vec![buffer; buffers], form, self.next_token).is_err() {
            return;
        }
        let buffers = buffers as u16;
        let descriptors = match form {
            Form::Direct => buffers,
            Form::Indirect(_) if self.ring.is_packed() => 1,
            Form::Indirect(direct) => buffers.min(direct + 1),
        };
        self.with_device.push(Added { token: self.next_token, descriptors });
        self.next_token += 1;
        self.available = self.ring.advance(self.available, self.entries(descriptors));
    }

    fn publish(&mut self) {
        let kicked = self.queue.publish();
        if self.published == self.available {
            assert!(!kicked, "nothing to kick for");
            return;
        }
        if let Some(wanted) = self.ring.wants_kick(self.published, self.available) {
            assert_eq!(kicked, wanted, "{} to {}", self.published, self.available);
            self.reached.note(if kicked { "kick" } else { "no kick" });
        }
        self.published = self.available;
    }

    /// What a device may write, right or wrong.
    fn misuse(&mut self, input: &mut Input<'_>) {
        let ahead = input.u8();
        // A packed ring's next used descriptor is the one that counts.
        let ahead = if self.ring.is_packed() { u16::from(ahead >> 5) } else { ahead.into() };
        let id = if input.rarely() { input.u16() } else { u16::from(input.u8() % 33) };
        let entry = UsedEntry { id, written: input.rarely().into() };
        let first = if self.ring.is_packed() { self.used } else { 0 };
        self.ring.fill_used(self.ring.advance(first, ahead), entry);
    }

    /// Returns whether there was anything to reap, right or wrong.
    fn reap(&mut self) -> bool {
        match self.queue.reap() {
            Ok(Some(used)) => {
                let known = self.with_device.iter().position(|added| added.token == used.token);
                let index = known.expect("a chain that the device has, once");
                assert!(index == 0 || !self.ring.is_in_order(), "not in order");
                let Added { descriptors, .. } = self.with_device.remove(index);
                self.used = self.ring.advance(self.used, self.entries(descriptors));
                let left = self.ring.since(self.published, self.used);
                assert!(left <= self.ring.size.into(), "used before it was available");
                self.reached.note(if self.ring.is_packed() { "packed used" } else { "used" });
                true
            }
            Ok(None) => false,
            Err(violation) => {
                self.reached.note_variant(&violation);
                true
            }
        }
    }

    fn notifications(&mut self, input: &mut Input<'_>) {
        if input.bool() {
            let more = self.queue.enable_calls();
            assert_eq!(self.reap(), more, "there is something to reap, or there is not");
        } else {
            self.queue.disable_calls();
        }
    }

    fn check(&self) {
        assert_eq!(usize::from(self.queue.outstanding()), self.with_device.len());
        let descriptors: u16 = self.with_device.iter().map(|added| added.descriptors).sum();
        assert_eq!(self.queue.free(), usize::from(self.ring.size - descriptors));
    }
}
