//! The driver side with a buffer for each descriptor: what a load generator runs. See
//! [`crate::SlotQueue`].

use std::sync::atomic::Ordering;

use wire::split::{Descriptor, NO_INTERRUPT, NO_NOTIFY, event_crossed};
use wire::virtio::Features;

use super::layout::{ENTRIES, FLAGS, INDEX, Layout};
use crate::Violation;
use crate::driver::write_words;
use crate::fields::{Fields, Mapped, RingMemory};
use crate::slots::{Buffers, Slot};

/// The driver side of a split ring, each of whose descriptors has a buffer of its own.
///
/// Entry `n` of the available ring names the slot that entry `n` of the used ring gave back one round
/// before. A device that uses in order gives each slot back where it was, so that the available ring
/// need not even be written: to post a slot is to count.
pub struct SlotQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    buffers: Buffers,
    event_index: bool,
    in_order: bool,
    slots: Box<[Slot]>,
    /// What is in the available ring, as we wrote it.
    order: Box<[u16]>,
    /// The next available entry to post.
    next_available: u16,
    /// The available index that the device can see.
    published: u16,
    /// The next used entry to read.
    next_used: u16,
}

impl<M: RingMemory> SlotQueue<M> {
    /// A queue at the start of a ring whose memory is zero, with nothing posted.
    pub fn new(layout: Layout<M>, features: Features, buffers: Buffers) -> Self {
        let size = layout.size();
        let mut queue = Self {
            event_index: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            slots: vec![Slot::default(); size.into()].into_boxed_slice(),
            order: (0..size).collect(),
            next_available: 0,
            published: 0,
            next_used: 0,
            buffers,
            layout,
        };
        for slot in 0..size {
            queue.layout.available.store(ENTRIES + usize::from(slot), slot, Ordering::Relaxed);
            queue.set_len(slot, buffers.len);
        }
        queue
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Slots that are posted and not reaped.
    pub fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// Sets the bytes of a slot's buffer, which the device must not hold.
    pub fn set_len(&mut self, slot: u16, len: u32) {
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return };
        state.len = len;
        let flags = if self.buffers.writable { Descriptor::WRITE } else { 0 };
        let address = self.buffers.address(slot);
        let descriptor = Descriptor { address, length: len, flags, next: 0 };
        write_words(&self.layout.descriptors, slot.into(), descriptor.to_words());
    }

    /// Posts up to `count` slots, each of which `fill` is told, and may fill; if it says how many bytes
    /// there are, these are the slot's from now on. Returns how many were free.
    #[inline]
    pub fn post_each(&mut self, count: u16, mut fill: impl FnMut(u16) -> Option<u32>) -> u16 {
        let count = count.min(self.size() - self.outstanding());
        let mask = self.size() - 1;
        for _ in 0..count {
            let at = usize::from(self.next_available & mask);
            // Neither is ever missing: places are below the size, and so are slots.
            let Some(slot) = self.order.get(at).copied() else { break };
            let Some(state) = self.slots.get_mut(usize::from(slot)) else { break };
            state.held = true;
            self.next_available = self.next_available.wrapping_add(1);
            if let Some(len) = fill(slot) {
                self.set_len(slot, len);
            }
        }
        count
    }

    /// Publishes all slots posted since the last time. Returns whether the device wants a kick
    /// (virtio 1.3, 2.7.13.4).
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.layout.available.store(INDEX, new, Ordering::Release);
        self.published = new;
        // Our index before their event word; see the module's text.
        M::fence();
        if self.event_index {
            event_crossed(self.layout.available_event.load(0, Ordering::Relaxed), new, old)
        } else {
            self.layout.used.load(FLAGS, Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    /// Takes all slots that were used: the number of each, and the bytes written to it. Returns how
    /// many.
    #[inline]
    pub fn reap(&mut self, mut each: impl FnMut(u16, u32)) -> Result<u16, Violation> {
        let found = self.layout.used_index();
        let ready = found.wrapping_sub(self.next_used);
        let outstanding = self.published.wrapping_sub(self.next_used);
        if ready > outstanding {
            let taken = self.next_used;
            return Err(Violation::UsedIndex { found, taken, outstanding });
        }
        let mask = self.size() - 1;
        while self.next_used != found {
            let at = usize::from(self.next_used & mask);
            let id = self.layout.used_entries.load(2 * at, Ordering::Relaxed);
            let written = self.layout.used_entries.load(2 * at + 1, Ordering::Relaxed);
            let slot = u16::try_from(id).map_err(|_| Violation::UsedId { id })?;
            if self.in_order {
                // It may stand for those before it, which were used completely (2.7.9).
                let before = slot.wrapping_sub(self.next_used) & mask;
                if before >= found.wrapping_sub(self.next_used) {
                    return Err(Violation::UsedId { id });
                }
                for _ in 0..before {
                    let slot = self.next_used & mask;
                    let len = self.take_back(slot, mask)?;
                    each(slot, if self.buffers.writable { len } else { 0 });
                }
            }
            self.take_back(slot, mask)?;
            each(slot, written);
        }
        Ok(ready)
    }

    /// Takes a slot back at the next used entry. Returns the bytes of its buffer.
    #[inline]
    fn take_back(&mut self, slot: u16, mask: u16) -> Result<u32, Violation> {
        let state = self.slots.get_mut(usize::from(slot)).filter(|state| state.held);
        let state = state.ok_or(Violation::UsedId { id: slot.into() })?;
        state.held = false;
        let len = state.len;
        let at = usize::from(self.next_used & mask);
        if let Some(entry) = self.order.get_mut(at)
            && *entry != slot
        {
            *entry = slot;
            self.layout.available.store(ENTRIES + at, slot, Ordering::Relaxed);
        }
        self.next_used = self.next_used.wrapping_add(1);
        Ok(len)
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        if self.event_index {
            // As far behind as can be: the device will not cross it for 65535 chains.
            let behind = self.next_used.wrapping_sub(1);
            self.layout.available.store(self.layout.used_event(), behind, Ordering::Relaxed);
        } else {
            self.layout.available.store(FLAGS, NO_INTERRUPT, Ordering::Relaxed);
        }
    }
}
