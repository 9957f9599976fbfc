//! The device's side of a ring, on memory that holds anything.

use memory::WriteCursor;
use virtqueue::{Chain, DeviceQueue, Violation};

use crate::Reached;
use crate::input::Input;
use crate::ring_memory::{BYTES, Place, RingMemory, UsedEntry};

/// Ring memory, and what is done with it.
pub fn device(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let mut input = Input::new(data);
    let Some(ring) = RingMemory::new(&mut input) else { return reached };
    reached.note(if ring.is_packed() { "packed" } else { "split" });
    let start = u32::from(input.u16()) % ring.round();
    let mut device = Device::new(&ring, start);
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 16) {
        let outcome = match step {
            0..=3 => {
                ring.scribble(&mut input);
                Ok(())
            }
            4..=6 => {
                device.offer(&mut input);
                Ok(())
            }
            7..=9 => device.take(&mut input, &mut reached),
            10 => device.pieces(&mut input),
            11..=12 => {
                device.give_back(&mut input, &mut reached);
                Ok(())
            }
            13 => {
                device.publish(&mut reached);
                Ok(())
            }
            14 => {
                device.untake(&mut input);
                Ok(())
            }
            _ => device.notifications(&mut input),
        };
        if let Err(violation) = outcome {
            reached.note_variant(&violation);
            // Only a restart mends it: behind what was wrong.
            let start = ring.advance(device.available, 1);
            if !ring.is_packed() {
                ring.set_available_index(start as u16);
            }
            device = Device::new(&ring, start);
        }
        device.check();
    }
    reached
}

/// A chain that was taken.
struct Held {
    chain: Chain,
    /// Entries of the ring that it takes.
    entries: u16,
}

/// The queue, and what it should know.
struct Device<'r> {
    ring: &'r RingMemory,
    queue: DeviceQueue,
    held: Vec<Held>,
    /// How many of the last taken are all still held.
    untakeable: usize,
    /// The next entry to take, the next one to use, and up to where the driver can see.
    available: Place,
    used: Place,
    published: Place,
    has_published: bool,
    /// What was given back and not published.
    unpublished: Vec<UsedEntry>,
}

impl<'r> Device<'r> {
    fn new(ring: &'r RingMemory, start: Place) -> Self {
        let position = ring.position(start, start);
        if ring.is_packed() {
            assert_eq!(ring.layout.resume(position), Some(position));
        }
        Self {
            ring,
            queue: DeviceQueue::new(ring.layout.clone(), ring.features, position),
            held: Vec::new(),
            untakeable: 0,
            available: start,
            used: start,
            published: start,
            has_published: false,
            unpublished: Vec::new(),
        }
    }

    /// Makes more available than the device knows of.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ahead = if input.rarely() { input.u16() } else { u16::from(input.u8() % 5) };
        let known = self.queue.available().unwrap_or(0);
        let next = self.ring.advance(self.available, known);
        if !self.ring.is_packed() {
            self.ring.set_available_index(self.ring.advance(next, ahead) as u16);
        }
        for entry in 0..ahead.min(self.ring.size) {
            if self.ring.is_tidy || !input.rarely() {
                self.ring.fill_available(self.ring.advance(next, entry), input);
            }
        }
    }

    fn limit(input: &mut Input<'_>) -> u32 {
        match input.below(4) {
            0..=2 => 65_569,
            _ => input.u16().into(),
        }
    }

    fn take(&mut self, input: &mut Input<'_>, reached: &mut Reached) -> Result<(), Violation> {
        let mut translator = self.ring.memory().translator();
        let limit = Self::limit(input);
        let before = self.queue.outstanding();
        let taken = if input.bool() {
            let mut slices = Vec::new();
            let taken = self.queue.take_readable(&mut translator, limit, &mut slices);
            let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
            self.check_slices(limit, &lens, taken.ok().flatten());
            // Every byte can be touched.
            slices.iter().for_each(|slice| _ = slice.copy_to(&mut vec![0; slice.len()]));
            if let Ok(Some(chain)) = taken {
                self.check_pieces(chain);
            }
            taken
        } else {
            let mut slices = Vec::new();
            let taken = self.queue.take_writable(&mut translator, limit, &mut slices);
            let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
            self.check_slices(limit, &lens, taken.ok().flatten());
            // Over the ring itself, perhaps.
            let bytes = vec![input.u8(); lens.iter().sum()];
            assert_eq!(WriteCursor::new(&slices).write(bytes[..].into()), bytes.len());
            taken
        };
        let entries = self.queue.outstanding() - before;
        let Some(chain) = taken? else {
            assert_eq!(entries, 0, "nothing was taken");
            return Ok(());
        };
        let size = self.ring.size;
        assert!((1..=size).contains(&chain.descriptors()), "{} descriptors", chain.descriptors());
        if self.ring.is_packed() {
            assert!((1..=chain.descriptors()).contains(&entries), "{entries} entries");
        } else {
            assert!(entries == 1 && chain.id() < size);
        }
        reached.note(if chain.bytes() == u64::from(u32::MAX) { "huge" } else { "chain" });
        if self.ring.is_packed() && chain.descriptors() > entries {
            reached.note("packed table");
        }
        self.available = self.ring.advance(self.available, entries);
        self.held.push(Held { chain, entries });
        self.untakeable += 1;
        Ok(())
    }

    /// No more slices than a chain of this ring can have (each buffer in both regions), no more
    /// bytes than asked for, and all of them when nothing was wrong.
    fn check_slices(&self, limit: u32, lens: &[usize], chain: Option<Chain>) {
        let size = usize::from(self.ring.size);
        let bytes: u64 = lens.iter().map(|len| *len as u64).sum();
        assert!(lens.len() <= 2 * size, "{} slices", lens.len());
        assert!(lens.iter().all(|len| (1..=BYTES).contains(&(*len as u64))));
        assert!(bytes <= limit.into());
        if let Some(chain) = chain {
            assert_eq!(bytes, chain.bytes().min(limit.into()));
        }
    }

    /// A chain that was just taken to be read consists of pieces with as many bytes, as far as it counts
    /// them.
    fn check_pieces(&self, chain: Chain) {
        let mut pieces = Vec::new();
        let mut translator = self.ring.memory().translator();
        assert_eq!(self.queue.pieces(chain, &mut translator, &mut pieces), Ok(()));
        let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        assert_eq!(bytes.min(u32::MAX.into()), chain.bytes());
    }

    /// Reads a chain's descriptors again, whatever they say by now.
    fn pieces(&mut self, input: &mut Input<'_>) -> Result<(), Violation> {
        let index = usize::from(input.u8()) % self.held.len().max(1);
        let Some(held) = self.held.get(index) else { return Ok(()) };
        let mut pieces = Vec::new();
        let mut translator = self.ring.memory().translator();
        let outcome = self.queue.pieces(held.chain, &mut translator, &mut pieces);
        assert!(pieces.len() <= self.ring.size.into(), "{} pieces", pieces.len());
        assert!(pieces.iter().all(|piece| piece.len > 0));
        outcome
    }

    fn give_back(&mut self, input: &mut Input<'_>, reached: &mut Reached) {
        let index = usize::from(input.u8()) % self.held.len().max(1);
        // With IN_ORDER that is what whoever uses the queue promises.
        let index = if self.ring.is_in_order() { 0 } else { index };
        if index >= self.held.len() {
            return;
        }
        if index > 0 {
            reached.note(if self.ring.is_packed() {
                "packed out of order"
            } else {
                "out of order"
            });
        }
        self.untakeable = self.untakeable.min(self.held.len() - 1 - index);
        let Held { chain, entries } = self.held.remove(index);
        let entry = UsedEntry { id: chain.id(), written: input.u32() };
        self.queue.give_back(chain, entry.written);
        // A packed ring's first one is not written before it is published.
        let is_written = !self.ring.is_packed() || !self.unpublished.is_empty();
        if is_written && !self.ring.is_in_order() {
            assert_eq!(self.ring.used_entry(self.used), Some(entry));
        }
        self.used = self.ring.advance(self.used, entries);
        self.unpublished.push(entry);
    }

    fn publish(&mut self, reached: &mut Reached) {
        let called = self.queue.publish();
        if self.published == self.used {
            assert!(!called, "nothing to call for");
            return;
        }
        if self.ring.is_packed() {
            let entry = self.ring.used_entry(self.published).expect("a used descriptor");
            if self.ring.is_in_order() {
                // It may stand for those before it.
                assert!(self.unpublished.contains(&entry), "{entry:?}");
                if entry != self.unpublished[0] {
                    reached.note("packed batch");
                }
            } else {
                assert_eq!(entry, self.unpublished[0]);
            }
        } else {
            assert_eq!(u32::from(self.ring.used_index()), self.used);
        }
        let wanted = self.ring.wants_call(self.published, self.used, !self.has_published);
        if let Some(wanted) = wanted {
            assert_eq!(called, wanted, "{} to {}", self.published, self.used);
            reached.note(if called { "call" } else { "no call" });
        }
        self.published = self.used;
        self.has_published = true;
        self.unpublished.clear();
    }

    fn untake(&mut self, input: &mut Input<'_>) {
        let count = self.untakeable.min(input.below(8));
        let untaken = self.held.split_off(self.held.len() - count);
        let chains: Vec<Chain> = untaken.iter().map(|held| held.chain).collect();
        self.queue.untake(&chains);
        self.untakeable -= count;
        let entries: u16 = untaken.iter().map(|held| held.entries).sum();
        self.available =
            (self.available + self.ring.round() - u32::from(entries)) % self.ring.round();
    }

    fn notifications(&mut self, input: &mut Input<'_>) -> Result<(), Violation> {
        match input.below(3) {
            0 => {
                let more = self.queue.enable_kicks()?;
                assert_eq!(Ok(more), self.queue.available().map(|count| count > 0));
            }
            1 => self.queue.disable_kicks(),
            _ => self.queue.relocate(self.ring.layout.clone()),
        }
        Ok(())
    }

    fn check(&mut self) {
        let size = self.ring.size;
        let outstanding: u16 = self.held.iter().map(|held| held.entries).sum();
        assert!(outstanding <= size);
        assert_eq!(self.queue.outstanding(), outstanding);
        let position = self.ring.position(self.available, self.used);
        assert_eq!(self.queue.position(), position);
        let known = self.queue.available().unwrap_or(0);
        assert!(known + outstanding <= size, "{known} known, {outstanding} outstanding");
    }
}
