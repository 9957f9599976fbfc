//! The driver side: offers chains, reaps them used. What an embedded guest and the tests run.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use wire::split::{Descriptor, NO_INTERRUPT, NO_NOTIFY, event_crossed};
use wire::virtio::Features;

use super::layout::{ENTRIES, FLAGS, INDEX, Layout};
use crate::driver::write_words;
use crate::fields::{Fields, Mapped, RingMemory};
use crate::{Buffer, Form, Full, IndirectTables, Used, Violation};

/// What the driver remembers of a descriptor; the ring's copy is the device's to read and, if it is
/// hostile, to ignore.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// The next descriptor of the same chain.
    next: Option<u16>,
    /// The chain that starts here, while the device holds it.
    chain: Option<Outstanding>,
}

/// A chain that the device holds.
#[derive(Clone, Copy)]
struct Outstanding {
    token: u32,
    /// The available index that it was added at.
    index: u16,
    /// Bytes that the device may write to it.
    writable: u32,
}

/// The driver side of a split ring.
pub struct DriverQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    tables: Option<IndirectTables<M>>,
    event_index: bool,
    in_order: bool,
    slots: Box<[Slot]>,
    /// Descriptors, the next one to use first. With IN_ORDER they are used in the order of the ring.
    free: VecDeque<u16>,
    /// The next available entry to write.
    next_available: u16,
    /// The available index that the device can see.
    published: u16,
    /// The next used entry to read.
    next_used: u16,
    /// With IN_ORDER, the first descriptor of the chain that was added first.
    oldest: u16,
    /// With IN_ORDER, the last chain that a used entry stands for, and the bytes written to it,
    /// while chains before that are being reaped.
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
            slots: vec![Slot::default(); size.into()].into_boxed_slice(),
            free: (0..size).collect(),
            next_available: 0,
            published: 0,
            next_used: 0,
            oldest: 0,
            batch: None,
            layout,
        }
    }

    /// Moves a queue that has not been used to index `base`, as if so many chains had come and gone.
    #[cfg(test)]
    pub(crate) fn start_at(&mut self, base: u16) {
        self.next_available = base;
        self.published = base;
        self.next_used = base;
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that were added and not reaped.
    pub fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// Writes a chain into the ring; the device sees it after [`Self::publish`]. An empty chain
    /// is refused as one that does not fit.
    pub fn add(&mut self, chain: &[Buffer], form: Form, token: u32) -> Result<(), Full> {
        let direct = match form {
            Form::Direct => chain.len(),
            Form::Indirect(direct) => chain.len().min(direct.into()),
        };
        let (direct, indirect) = chain.split_at(direct);
        let descriptors = direct.len() + usize::from(!indirect.is_empty());
        let room = self.tables.as_ref().map_or(0, IndirectTables::entries);
        // However it is laid out, a chain may not be longer than the ring (virtio 1.3, 2.7.5.3.1).
        let longest = self.size().into();
        if chain.is_empty()
            || chain.len() > longest
            || descriptors > self.free.len()
            || indirect.len() > room
        {
            return Err(Full);
        }

        let head = self.free.front().copied().ok_or(Full)?;
        for (position, buffer) in direct.iter().enumerate() {
            self.link(position, descriptors, describe(buffer));
        }
        if !indirect.is_empty() {
            let table = self.write_table(self.free[descriptors - 1], indirect);
            self.link(descriptors - 1, descriptors, table);
        }
        self.free.drain(..descriptors);
        let writable = Buffer::writable_bytes(chain);
        let index = self.next_available;
        self.slots[usize::from(head)].chain = Some(Outstanding { token, index, writable });

        let entry = ENTRIES + usize::from(index & (self.size() - 1));
        self.layout.available.store(entry, head, Ordering::Relaxed);
        self.next_available = index.wrapping_add(1);
        Ok(())
    }

    /// Writes the descriptor at `position` of a chain that takes the first `count` free ones.
    fn link(&mut self, position: usize, count: usize, mut descriptor: Descriptor) {
        let at = self.free[position];
        let next = (position + 1 < count).then(|| self.free[position + 1]);
        if let Some(next) = next {
            descriptor.flags |= Descriptor::NEXT;
            descriptor.next = next;
        }
        write_words(&self.layout.descriptors, at.into(), descriptor.to_words());
        self.slots[usize::from(at)] = Slot { next, chain: None };
    }

    /// Fills the table that belongs to descriptor `at`, and returns the descriptor of it.
    fn write_table(&self, at: u16, chain: &[Buffer]) -> Descriptor {
        let Some(tables) = &self.tables else {
            return Descriptor::default();
        };
        let entries = chain.iter().zip(1u16..).map(|(buffer, next)| {
            let mut descriptor = describe(buffer);
            if usize::from(next) < chain.len() {
                descriptor.flags |= Descriptor::NEXT;
                descriptor.next = next;
            }
            descriptor.to_words()
        });
        let address = tables.write(at, entries);
        let length = chain.len() as u32 * Descriptor::SIZE as u32;
        Descriptor { address, length, flags: Descriptor::INDIRECT, next: 0 }
    }

    /// Publishes all chains added since the last time. Returns whether the device wants a kick
    /// (virtio 1.3, 2.7.13.4).
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        let new = self.next_available;
        if old == new {
            return false;
        }
        self.layout.available.store(INDEX, new, Ordering::Release);
        self.published = new;
        // Our index before their event word; see the module's text.
        M::fence();
        if self.event_index {
            let event = self.layout.available_event.load(0, Ordering::Relaxed);
            event_crossed(event, new, old)
        } else {
            self.layout.used.load(FLAGS, Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    /// Takes the next used chain and frees its descriptors.
    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        let found = self.layout.used_index();
        let ready = found.wrapping_sub(self.next_used);
        if ready == 0 {
            return Ok(None);
        }
        // Chains that the device has been told of; it cannot have used more.
        let outstanding = self.published.wrapping_sub(self.next_used);
        if ready > outstanding {
            let taken = self.next_used;
            return Err(Violation::UsedIndex { found, taken, outstanding });
        }
        let (head, written) =
            if self.in_order { self.next_of_batch(ready)? } else { self.used_entry(ready)? };
        let Outstanding { token, .. } = self.free_chain(head)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { token, written }))
    }

    /// The next used entry: a chain that the device holds, and the bytes written to it. `ready` of
    /// them are used.
    fn used_entry(&self, ready: u16) -> Result<(u16, u32), Violation> {
        let at = 2 * usize::from(self.next_used & (self.size() - 1));
        let [id, written] =
            [at, at + 1].map(|at| self.layout.used_entries.load(at, Ordering::Relaxed));
        let head = u16::try_from(id).map_err(|_| Violation::UsedId { id })?;
        let chain = self.outstanding_at(head)?;
        // With IN_ORDER it stands for all up to this chain, and all of these have to be used.
        if self.in_order && chain.index.wrapping_sub(self.next_used) >= ready {
            return Err(Violation::UsedId { id });
        }
        Ok((head, written))
    }

    fn outstanding_at(&self, head: u16) -> Result<Outstanding, Violation> {
        let slot = self.slots.get(usize::from(head));
        slot.and_then(|slot| slot.chain).ok_or(Violation::UsedId { id: head.into() })
    }

    /// With IN_ORDER, the chain that is next in order, `ready` of which are used. An entry names the
    /// last chain that it stands for; those before were used completely.
    fn next_of_batch(&mut self, ready: u16) -> Result<(u16, u32), Violation> {
        let (last, written) = match self.batch.take() {
            Some(batch) => batch,
            None => self.used_entry(ready)?,
        };
        let head = self.oldest;
        if head == last {
            return Ok((head, written));
        }
        self.batch = Some((last, written));
        Ok((head, self.outstanding_at(head)?.writable))
    }

    /// Frees a chain's descriptors.
    fn free_chain(&mut self, head: u16) -> Result<Outstanding, Violation> {
        let unknown = Violation::UsedId { id: head.into() };
        let slot = self.slots.get_mut(usize::from(head)).ok_or(unknown)?;
        let chain = slot.chain.take().ok_or(unknown)?;
        let mut at = Some(head);
        while let Some(index) = at {
            if self.in_order {
                self.free.push_back(index);
                self.oldest = (index + 1) & (self.size() - 1);
            } else {
                // The one that was used last is the one most likely still in a cache.
                self.free.push_front(index);
            }
            at = self.slots[usize::from(index)].next.take();
        }
        Ok(chain)
    }

    /// Where another device goes on after this one has died: see [`crate::DriverQueue::recover`].
    pub fn recover(&mut self) -> Result<u16, Violation> {
        let found = self.layout.used_index();
        let taken = self.next_used;
        let outstanding = self.published.wrapping_sub(taken);
        if found.wrapping_sub(taken) > outstanding {
            return Err(Violation::UsedIndex { found, taken, outstanding });
        }
        Ok(found)
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        if self.event_index {
            // As far behind as can be: the device will not cross it for 65535 chains.
            let event = self.layout.used_event();
            let behind = self.next_used.wrapping_sub(1);
            self.layout.available.store(event, behind, Ordering::Relaxed);
        } else {
            self.layout.available.store(FLAGS, NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    /// Asks for a call at the next used chain, then looks once more: true when there already is
    /// one, and the caller must not sleep.
    pub fn enable_calls(&mut self) -> bool {
        if self.event_index {
            let event = self.layout.used_event();
            self.layout.available.store(event, self.next_used, Ordering::Relaxed);
        } else {
            self.layout.available.store(FLAGS, 0, Ordering::Relaxed);
        }
        // Our event word before their index; see the module's text.
        M::fence();
        self.layout.used_index() != self.next_used
    }
}

fn describe(buffer: &Buffer) -> Descriptor {
    let flags = if buffer.writable { Descriptor::WRITE } else { 0 };
    Descriptor { address: buffer.address.0, length: buffer.len, flags, next: 0 }
}
