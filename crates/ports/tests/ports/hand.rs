//! Writes what it likes into one ring, of either format.
//!
//! A chain is given as a split ring has it, in the first descriptors of the table. A packed ring,
//! whose flags are the same, has it in the next slots; there `next` means nothing, and the chain's id
//! is its first slot.

use std::collections::VecDeque;

use virtqueue::packed::{self, Event, Position};
use wire::split::{
    Descriptor, RING_ENTRIES, RING_FLAGS, USED_ENTRY_SIZE, available_event_offset,
    used_event_offset,
};
use wire::virtio::Features;

use crate::guest::{Guest, RECEIVE, TRANSMIT};

pub struct Hand {
    pub ring: usize,
    size: u16,
    is_packed: bool,
    /// WRITE where the ring is for receiving.
    pub flags: u16,
    /// Entries that were ever made available: chains of a split ring, slots of a packed one.
    available: u32,
    /// Entries that are known to have been used.
    used: u32,
    /// The entries of each chain in between.
    chains: VecDeque<u16>,
    /// Addresses of a buffer, of a place for tables, and past the end of memory.
    pub buffer: u64,
    pub table: u64,
    pub end: u64,
}

impl Hand {
    /// Goes on in a ring in which nothing is outstanding.
    pub fn new(guest: &Guest, ring: usize) -> Self {
        let own = guest.ring(ring);
        assert_eq!(own.outstanding(), 0, "the guest's own driver has something in this ring");
        Self {
            ring,
            size: own.size,
            is_packed: guest.features.contains(Features::RING_PACKED),
            flags: if ring == RECEIVE { Descriptor::WRITE } else { 0 },
            available: own.entries,
            used: own.entries,
            chains: VecDeque::new(),
            buffer: own.places.area(100.min(u32::from(own.size) - 2)),
            table: own.places.area(101.min(u32::from(own.size) - 1)),
            end: guest.ring(TRANSMIT).places.area(own.size.into()),
        }
    }

    /// A descriptor as this ring has them.
    pub fn descriptor(&self, address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor { address, length, flags: flags | self.flags, next }
    }

    /// Makes a chain available.
    pub fn offer(&mut self, guest: &Guest, chain: &[Descriptor]) {
        let id = self.place(self.available).slot();
        self.offer_as(guest, id, chain);
    }

    /// Makes a chain available. In a packed ring it has this id.
    pub fn offer_as(&mut self, guest: &Guest, id: u16, chain: &[Descriptor]) {
        if !self.is_packed {
            self.write_table(guest, guest.ring(self.ring).places.descriptors, chain);
            self.offer_head(guest, 0);
            return;
        }
        // The first one last, as drivers do.
        for (step, descriptor) in chain.iter().enumerate().rev() {
            let place = self.place(self.available + step as u32);
            self.describe(guest, place, *descriptor, id, place.available());
        }
        self.advance(chain.len() as u16);
    }

    /// Makes a chain available that consists of one descriptor, which refers to a table of `length`
    /// bytes.
    pub fn offer_table(&mut self, guest: &Guest, table: &[Descriptor], length: u32) {
        self.write_table(guest, self.table, table);
        let flags = Descriptor::INDIRECT;
        self.offer(guest, &[Descriptor { address: self.table, length, flags, next: 0 }]);
    }

    /// Makes available whatever is at `head` in a split ring.
    pub fn offer_head(&mut self, guest: &Guest, head: u16) {
        assert!(!self.is_packed);
        guest.set_available(self.ring, self.available as u16 % self.size, head);
        self.advance(1);
        guest.set_available_index(self.ring, self.available as u16);
    }

    fn advance(&mut self, entries: u16) {
        self.available += u32::from(entries);
        self.chains.push_back(entries);
    }

    /// The next entry of a split ring's available ring.
    pub fn next(&self) -> u16 {
        assert!(!self.is_packed);
        self.available as u16
    }

    /// Where a packed ring stands.
    pub fn here(&self) -> Position {
        self.place(self.available)
    }

    /// Where a packed ring stands after so many slots.
    fn place(&self, slots: u32) -> Position {
        let size = u32::from(self.size);
        let place = slots % (2 * size);
        let wrap = u16::from(place < size) << 15;
        Position::from_bits((place % size) as u16 | wrap)
    }

    /// Writes a descriptor of a packed ring, with whatever marks.
    pub fn describe(&self, guest: &Guest, at: Position, what: Descriptor, id: u16, marks: u16) {
        assert!(self.is_packed);
        let Descriptor { address, length, flags, .. } = what;
        let what = packed::Descriptor { address, length, id, flags: flags | marks };
        let places = guest.ring(self.ring).places;
        let at = places.descriptors + u64::from(at.slot()) * Descriptor::SIZE;
        guest.write(at, &bytes(what.to_words()));
    }

    /// Writes a table, in this ring's format, anywhere.
    pub fn write_table(&self, guest: &Guest, address: u64, table: &[Descriptor]) {
        let words = |descriptor: &Descriptor| {
            let Descriptor { address, length, flags, .. } = *descriptor;
            let packed = packed::Descriptor { address, length, id: 0, flags };
            if self.is_packed { packed.to_words() } else { descriptor.to_words() }
        };
        let table: Vec<u8> = table.iter().map(words).flat_map(bytes).collect();
        guest.write(address, &table);
    }

    /// A chain of descriptors of these lengths, one buffer after the other from `address` on.
    pub fn cut(&self, address: u64, lens: &[u32]) -> Vec<Descriptor> {
        let mut at = address;
        let descriptors = (1..).zip(lens).map(|(next, len)| {
            let flags = if usize::from(next) < lens.len() { Descriptor::NEXT } else { 0 };
            let descriptor = self.descriptor(at, *len, flags, next);
            at += u64::from(*len);
            descriptor
        });
        descriptors.collect()
    }

    /// Chains that were made available, and not seen to be used.
    pub fn outstanding(&self) -> usize {
        self.chains.len()
    }

    /// What was used since the last time: ids, and bytes written. That of a split ring's chains is
    /// where they begin.
    pub fn reap(&mut self, guest: &Guest) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while let Some(entries) = self.chains.front().copied() {
            let Some(found) = self.next_used(guest) else { break };
            used.push(found);
            self.used += u32::from(entries);
            self.chains.pop_front();
        }
        used
    }

    fn next_used(&self, guest: &Guest) -> Option<(u32, u32)> {
        let places = guest.ring(self.ring).places;
        let read = |address, len| guest.read(address, len);
        let word = |address| {
            let bytes = read(address, 8);
            u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
        };
        if self.is_packed {
            let place = self.place(self.used);
            let second = places.descriptors + u64::from(place.slot()) * Descriptor::SIZE + 8;
            let used = packed::Descriptor::from_words([0, word(second)]);
            let marks = used.flags & (packed::Descriptor::AVAIL | packed::Descriptor::USED);
            let written = if used.is_writable() { used.length } else { 0 };
            (marks == place.used()).then_some((used.id.into(), written))
        } else {
            let slot = u64::from(self.used as u16 % self.size);
            let entry = word(places.used + RING_ENTRIES + slot * USED_ENTRY_SIZE);
            let is_used = guest.used_index(self.ring) != self.used as u16;
            is_used.then_some((entry as u32, (entry >> 32) as u32))
        }
    }

    /// Writes when the driver wants to be called: flags and used_event, or its event structure.
    pub fn set_driver_event(&self, guest: &Guest, word: u32) {
        let available = guest.ring(self.ring).places.available;
        if self.is_packed {
            guest.write(available, &word.to_le_bytes());
        } else {
            let event = available + used_event_offset(self.size);
            guest.write(available + RING_FLAGS, &((word >> 16) as u16).to_le_bytes());
            guest.write(event, &(word as u16).to_le_bytes());
        }
    }

    /// Overwrites what only the device writes, when it wants to be kicked: the used ring's flags and
    /// available_event, or its event structure.
    pub fn set_device_event(&self, guest: &Guest, word: u32) {
        let used = guest.ring(self.ring).places.used;
        if self.is_packed {
            guest.write(used, &word.to_le_bytes());
        } else {
            let event = used + available_event_offset(self.size);
            guest.write(used + RING_FLAGS, &((word >> 16) as u16).to_le_bytes());
            guest.write(event, &(word as u16).to_le_bytes());
        }
    }

    /// What the device says in a packed ring of when it wants to be kicked.
    pub fn device_event(&self, guest: &Guest) -> Event {
        assert!(self.is_packed);
        let word = guest.read(guest.ring(self.ring).places.used, 4);
        Event::from_word(u32::from_le_bytes(word.try_into().expect("4 bytes")))
    }
}

fn bytes(words: [u64; 2]) -> Vec<u8> {
    words.map(u64::to_le_bytes).concat()
}
