//! The driver side with a buffer for each descriptor: what a load generator runs. See
//! [`crate::SlotQueue`].

use std::sync::atomic::Ordering;

use wire::virtio::Features;

use super::format::{Descriptor, Event, Position};
use super::layout::Layout;
use crate::Violation;
use crate::fields::{Fields, Mapped, RingMemory};
use crate::slots::{Buffers, Slot};

/// The driver side of a packed ring, each of whose buffer ids has a buffer of its own.
///
/// A place in the ring is posted again with the id that was given back there one round before.
pub struct SlotQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    buffers: Buffers,
    event_index: bool,
    in_order: bool,
    slots: Box<[Slot]>,
    /// Which slot is posted next at each place of the ring.
    order: Box<[u16]>,
    /// Where the next descriptor is written.
    next_available: Position,
    /// Up to where the device can see.
    published: Position,
    /// The second word of the descriptor there, which is stored last.
    first: u64,
    /// Where the next used descriptor is read.
    next_used: Position,
    outstanding: u16,
}

impl<M: RingMemory> SlotQueue<M> {
    /// A queue at the start of a ring whose memory is zero, with nothing posted.
    pub fn new(layout: Layout<M>, features: Features, buffers: Buffers) -> Self {
        let size = layout.size();
        Self {
            event_index: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            slots: vec![Slot { len: buffers.len, held: false }; size.into()].into_boxed_slice(),
            order: (0..size).collect(),
            next_available: Position::FIRST,
            published: Position::FIRST,
            first: 0,
            next_used: Position::FIRST,
            outstanding: 0,
            buffers,
            layout,
        }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Slots that are posted and not reaped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Sets the bytes of a slot's buffer, which the device must not hold.
    pub fn set_len(&mut self, slot: u16, len: u32) {
        if let Some(state) = self.slots.get_mut(usize::from(slot)) {
            state.len = len;
        }
    }

    /// Posts up to `count` slots, each of which `fill` is told, and may fill; if it says how many bytes
    /// there are, these are the slot's from now on. Returns how many were free.
    #[inline]
    pub fn post_each(&mut self, count: u16, mut fill: impl FnMut(u16) -> Option<u32>) -> u16 {
        let size = self.size();
        let count = count.min(size - self.outstanding);
        let writable = if self.buffers.writable { Descriptor::WRITE } else { 0 };
        for _ in 0..count {
            let place = self.next_available;
            let at = usize::from(place.slot());
            // Neither is ever missing: places are below the size, and so are slots.
            let Some(id) = self.order.get(at).copied() else { break };
            let Some(slot) = self.slots.get_mut(usize::from(id)) else { break };
            slot.held = true;
            if let Some(len) = fill(id) {
                slot.len = len;
            }
            let flags = writable | place.available();
            let address = self.buffers.address(id);
            let second = Descriptor { address, length: slot.len, id, flags }.second_word();
            self.layout.descriptors.store(2 * at, address, Ordering::Relaxed);
            if place == self.published {
                self.first = second;
            } else {
                self.layout.descriptors.store(2 * at + 1, second, Ordering::Relaxed);
            }
            self.next_available = place.advance(1, size);
            self.outstanding += 1;
        }
        count
    }

    /// Publishes all slots posted since the last time. Returns whether the device wants a kick
    /// (virtio 1.3, 2.8.21.2).
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish(&mut self) -> bool {
        let size = self.size();
        if self.published == self.next_available {
            return false;
        }
        let at = 2 * usize::from(self.published.slot()) + 1;
        self.layout.descriptors.store(at, self.first, Ordering::Release);
        let count = self.next_available.since(self.published, size);
        self.published = self.next_available;
        // Our descriptor before their event structure; see the module's text.
        M::fence();
        let event = Event::from_word(self.layout.device_event.load(0, Ordering::Relaxed));
        event.is_wanted(self.event_index, self.next_available, count, size)
    }

    /// Takes all slots that were used: the number of each, and the bytes written to it. Returns how
    /// many.
    #[inline]
    pub fn reap(&mut self, mut each: impl FnMut(u16, u32)) -> Result<u16, Violation> {
        let size = self.size();
        // Of what the device knows of, no more than there is.
        let known = self.outstanding - self.next_available.since(self.published, size);
        let mut left = known;
        while left > 0 {
            let place = self.next_used.slot();
            let at = 2 * usize::from(place) + 1;
            let word = self.layout.descriptors.load(at, Ordering::Acquire);
            if !self.next_used.is_used(word) {
                break;
            }
            let Descriptor { length, id, flags, .. } = Descriptor::from_words([0, word]);
            // Otherwise the length means nothing (virtio 1.3, 2.8.4).
            let written = if flags & Descriptor::WRITE == 0 { 0 } else { length };
            if self.in_order {
                // It may stand for those before it, which were used completely (2.8.8).
                let before = if id >= place { id - place } else { id + (size - place) };
                if id >= size || before >= left {
                    return Err(Violation::UsedId { id: id.into() });
                }
                for _ in 0..before {
                    let slot = self.next_used.slot();
                    let len = self.take_back(slot)?;
                    each(slot, if self.buffers.writable { len } else { 0 });
                }
                left -= before;
            }
            self.take_back(id)?;
            each(id, written);
            left -= 1;
        }
        Ok(known - left)
    }

    /// Takes a slot back at the next used place. Returns the bytes of its buffer.
    #[inline]
    fn take_back(&mut self, id: u16) -> Result<u32, Violation> {
        let slot = self.slots.get_mut(usize::from(id)).filter(|slot| slot.held);
        let slot = slot.ok_or(Violation::UsedId { id: id.into() })?;
        slot.held = false;
        if let Some(entry) = self.order.get_mut(usize::from(self.next_used.slot())) {
            *entry = id;
        }
        self.next_used = self.next_used.advance(1, self.layout.size());
        self.outstanding -= 1;
        Ok(slot.len)
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        self.layout.driver_event.store(0, Event::Never.to_word(), Ordering::Relaxed);
    }
}
