//! The driver side: offers chains, reaps them used. What an embedded guest and the tests run.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use wire::virtio::Features;

use super::format::{Descriptor, Event, Position};
use super::layout::Layout;
use crate::driver::write_words;
use crate::fields::{Fields, Mapped, RingMemory};
use crate::{Buffer, Form, Full, IndirectTables, Used, Violation};

/// A chain that the device holds; the ring's copy is the device's to overwrite.
#[derive(Clone, Copy)]
struct Outstanding {
    token: u32,
    /// Where its first descriptor is.
    start: Position,
    /// Descriptors of the ring that it takes.
    slots: u16,
    /// Bytes that the device may write to it.
    writable: u32,
}

/// The driver side of a packed ring.
pub struct DriverQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    tables: Option<IndirectTables<M>>,
    event_index: bool,
    in_order: bool,
    /// By buffer id.
    chains: Box<[Option<Outstanding>]>,
    /// Buffer ids, the next one to use first. With IN_ORDER they go round, so that it is known which
    /// chain is the oldest.
    free_ids: VecDeque<u16>,
    outstanding: u16,
    /// Where the next descriptor is written.
    next_available: Position,
    /// Up to where the device can see.
    published: Position,
    /// What was written to each slot, as its two words. The descriptor at `published` is stored last,
    /// from here; and the ring's own copy is the device's to overwrite.
    written: Box<[[u64; 2]]>,
    /// Where the next used descriptor is read.
    next_used: Position,
    /// With IN_ORDER, the id of the chain that was added first.
    oldest: u16,
    /// With IN_ORDER, the last chain that a used descriptor stands for, and the bytes written to
    /// it, while chains before that are being reaped.
    batch: Option<(u16, u32)>,
}

impl<M: RingMemory> DriverQueue<M> {
    /// A queue at the start of a ring whose memory is zero. With INDIRECT_DESC negotiated, `tables`
    /// makes [`Form::Indirect`] possible.
    pub fn new(layout: Layout<M>, features: Features, tables: Option<IndirectTables<M>>) -> Self {
        let size = layout.size();
        Self {
            tables: tables.filter(|_| features.contains(Features::INDIRECT_DESC)),
            event_index: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            chains: vec![None; size.into()].into_boxed_slice(),
            free_ids: (0..size).collect(),
            outstanding: 0,
            next_available: Position::FIRST,
            published: Position::FIRST,
            written: vec![[0; 2]; size.into()].into_boxed_slice(),
            next_used: Position::FIRST,
            oldest: 0,
            batch: None,
            layout,
        }
    }

    /// Moves a queue that has not been used to `place`, as if so many chains had come and gone.
    #[cfg(test)]
    pub(crate) fn start_at(&mut self, place: Position) {
        self.next_available = place;
        self.published = place;
        self.next_used = place;
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        let size = self.size();
        (size - self.next_available.since(self.next_used, size)).into()
    }

    /// Chains that were added and not reaped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Writes a chain into the ring; the device sees it after [`Self::publish`]. An empty chain
    /// is refused as one that does not fit.
    pub fn add(&mut self, chain: &[Buffer], form: Form, token: u32) -> Result<(), Full> {
        let room = match (form, &self.tables) {
            (Form::Direct, _) => self.free(),
            // However it is laid out, a chain may not be longer than the ring (2.8.17).
            (Form::Indirect(_), Some(tables)) => tables.entries().min(self.size().into()),
            (Form::Indirect(_), None) => 0,
        };
        if chain.is_empty() || chain.len() > room || self.free() == 0 {
            return Err(Full);
        }
        let start = self.next_available;
        let id = self.free_ids.pop_front().ok_or(Full)?;
        match form {
            Form::Direct => {
                for (count, buffer) in (1..).zip(chain) {
                    let mut descriptor = describe(buffer);
                    if count < chain.len() {
                        descriptor.flags |= Descriptor::NEXT;
                    }
                    self.write(id, descriptor);
                }
            }
            Form::Indirect(_) => {
                let table = self.write_table(id, chain);
                self.write(id, table);
            }
        }
        let slots = self.next_available.since(start, self.size());
        let writable = Buffer::writable_bytes(chain);
        self.chains[usize::from(id)] = Some(Outstanding { token, start, slots, writable });
        self.outstanding += 1;
        Ok(())
    }

    /// Writes the next descriptor of the ring.
    fn write(&mut self, id: u16, descriptor: Descriptor) {
        let place = self.next_available;
        let flags = descriptor.flags | place.available();
        let [address, second] = Descriptor { id, flags, ..descriptor }.to_words();
        let at = 2 * usize::from(place.slot());
        self.written[usize::from(place.slot())] = [address, second];
        self.layout.descriptors.store(at, address, Ordering::Relaxed);
        if place != self.published {
            self.layout.descriptors.store(at + 1, second, Ordering::Relaxed);
        }
        self.next_available = place.advance(1, self.size());
    }

    /// Fills the table that belongs to buffer `id`, and returns the descriptor of it.
    fn write_table(&self, id: u16, chain: &[Buffer]) -> Descriptor {
        let Some(tables) = &self.tables else {
            return Descriptor::default();
        };
        let address = tables.write(id, chain.iter().map(|buffer| describe(buffer).to_words()));
        let length = chain.len() as u32 * Descriptor::SIZE as u32;
        Descriptor { address, length, id: 0, flags: Descriptor::INDIRECT }
    }

    /// Publishes all chains added since the last time. Returns whether the device wants a kick
    /// (virtio 1.3, 2.8.21.2).
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish(&mut self) -> bool {
        let size = self.size();
        if self.published == self.next_available {
            return false;
        }
        let slot = usize::from(self.published.slot());
        let [_, second] = self.written[slot];
        self.layout.descriptors.store(2 * slot + 1, second, Ordering::Release);
        let count = self.next_available.since(self.published, size);
        self.published = self.next_available;
        // Our descriptor before their event structure; see the module's text.
        M::fence();
        let event = Event::from_word(self.layout.device_event.load(0, Ordering::Relaxed));
        event.is_wanted(self.event_index, self.next_available, count, size)
    }

    /// Takes the next used chain and frees its descriptors.
    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        let next = if self.in_order { self.next_of_batch()? } else { self.used_descriptor()? };
        let Some((id, written)) = next else {
            return Ok(None);
        };
        let Outstanding { token, slots, .. } = self.outstanding_as(id)?;
        self.next_used = self.next_used.advance(slots, self.size());
        self.chains[usize::from(id)] = None;
        self.outstanding -= 1;
        if self.in_order {
            self.free_ids.push_back(id);
            self.oldest = if id + 1 < self.size() { id + 1 } else { 0 };
        } else {
            self.free_ids.push_front(id);
        }
        Ok(Some(Used { token, written }))
    }

    /// The next used descriptor: a chain that the device holds, and the bytes written to it.
    fn used_descriptor(&self) -> Result<Option<(u16, u32)>, Violation> {
        let Some(word) = self.used_word() else {
            return Ok(None);
        };
        let Descriptor { length, id, flags, .. } = Descriptor::from_words([0, word]);
        // Otherwise the length means nothing (virtio 1.3, 2.8.4).
        let written = if flags & Descriptor::WRITE == 0 { 0 } else { length };
        let size = self.size();
        let Outstanding { start, slots, .. } = self.outstanding_as(id)?;
        // Of what the device knows of, no more than there is; with IN_ORDER, up to this chain.
        let before = if self.in_order { start.since(self.next_used, size) } else { 0 };
        if before.saturating_add(slots) > self.published.since(self.next_used, size) {
            return Err(Violation::UsedId { id: id.into() });
        }
        Ok(Some((id, written)))
    }

    fn outstanding_as(&self, id: u16) -> Result<Outstanding, Violation> {
        let chain = self.chains.get(usize::from(id)).copied().flatten();
        chain.ok_or(Violation::UsedId { id: id.into() })
    }

    /// With IN_ORDER, the chain that is next in order. A descriptor names the last chain that it
    /// stands for; those before were used completely.
    fn next_of_batch(&mut self) -> Result<Option<(u16, u32)>, Violation> {
        if self.batch.is_none() {
            self.batch = self.used_descriptor()?;
        }
        let Some((last, written)) = self.batch else {
            return Ok(None);
        };
        let id = self.oldest;
        if id == last {
            self.batch = None;
            return Ok(Some((id, written)));
        }
        Ok(Some((id, self.outstanding_as(id)?.writable)))
    }

    /// The second word of the next used descriptor, when the device has used something that was
    /// made available to it.
    fn used_word(&self) -> Option<u64> {
        let at = 2 * usize::from(self.next_used.slot()) + 1;
        let word = self.layout.descriptors.load(at, Ordering::Acquire);
        (self.published != self.next_used && self.next_used.is_used(word)).then_some(word)
    }

    /// Makes the ring ready for another device, after this one has died: see
    /// [`crate::DriverQueue::recover`].
    pub fn recover(&mut self) -> Result<u32, Violation> {
        let used = self.used_position()?;
        // A device stores the first descriptor of a batch last. Of a batch that it did not finish, the
        // others are lost.
        let mut place = used;
        while place != self.published {
            let slot = usize::from(place.slot());
            write_words(&self.layout.descriptors, slot, self.written[slot]);
            place = place.advance(1, self.size());
        }
        Ok(u32::from(used.bits()) << 16 | u32::from(used.bits()))
    }

    /// Behind the last chain that was used, reaped or not.
    fn used_position(&self) -> Result<Position, Violation> {
        let size = self.size();
        let mut place = self.next_used;
        if let Some((last, _)) = self.batch {
            let Outstanding { start, slots, .. } = self.outstanding_as(last)?;
            place = start.advance(slots, size);
        }
        while place != self.published {
            let at = 2 * usize::from(place.slot()) + 1;
            let word = self.layout.descriptors.load(at, Ordering::Acquire);
            if !place.is_used(word) {
                break;
            }
            let Descriptor { id, .. } = Descriptor::from_words([0, word]);
            let Outstanding { start, slots, .. } = self.outstanding_as(id)?;
            // With IN_ORDER it stands for all up to this chain.
            let before = if self.in_order { start.since(place, size) } else { 0 };
            let count = before.saturating_add(slots);
            if count > self.published.since(place, size) {
                return Err(Violation::UsedId { id: id.into() });
            }
            place = place.advance(count, size);
        }
        Ok(place)
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        self.layout.driver_event.store(0, Event::Never.to_word(), Ordering::Relaxed);
    }

    /// Asks for a call at the next used chain, then looks once more: true when there already is
    /// one, and the caller must not sleep.
    pub fn enable_calls(&mut self) -> bool {
        let event = if self.event_index { Event::At(self.next_used) } else { Event::Always };
        self.layout.driver_event.store(0, event.to_word(), Ordering::Relaxed);
        // Our event structure before their descriptor; see the module's text.
        M::fence();
        self.batch.is_some() || self.used_word().is_some()
    }
}

fn describe(buffer: &Buffer) -> Descriptor {
    let flags = if buffer.writable { Descriptor::WRITE } else { 0 };
    Descriptor { address: buffer.address.0, length: buffer.len, id: 0, flags }
}
