//! The driver side: offers chains, reaps them used. What an embedded guest and the tests run.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use memory::{Fault, GuestAddress, GuestMemory, Words};
use thiserror::Error;
use wire::split::{Descriptor, NO_INTERRUPT, NO_NOTIFY, event_crossed};
use wire::virtio::Features;

use super::layout::{ENTRIES, FLAGS, INDEX, Layout, load, store};
use crate::Violation;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it; otherwise it reads it.
    pub writable: bool,
}

/// How a chain is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One descriptor of the ring a buffer.
    Direct,
    /// This many direct descriptors, then one that refers to a table with the rest. With 0, the
    /// whole chain is in the table.
    Indirect(u16),
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// As given to [`DriverQueue::add`].
    pub token: u32,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// There are not enough free descriptors, or the chain is too long for the ring or for an indirect
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the virtqueue has no room for the chain")]
pub struct Full;

/// Memory for indirect tables: one for each descriptor of the ring, `entries` long.
pub struct IndirectTables {
    address: GuestAddress,
    entries: u16,
    words: Words<AtomicU64>,
}

impl IndirectTables {
    /// Bytes that tables for a ring of `size` take.
    pub fn size(size: u16, entries: u16) -> u64 {
        u64::from(size) * u64::from(entries) * Descriptor::SIZE
    }

    /// Tables at `address`, [`Self::size`] bytes long.
    pub fn new(
        memory: &GuestMemory,
        address: GuestAddress,
        size: u16,
        entries: u16,
    ) -> Result<Self, Fault> {
        let words = memory.words(address, (Self::size(size, entries) / 8) as usize)?;
        Ok(Self { address, entries, words })
    }
}

/// What the driver remembers of a descriptor; the ring's copy is the device's to read and, if it is
/// hostile, to ignore.
#[derive(Clone, Copy)]
struct Slot {
    /// The next descriptor of the same chain.
    next: Option<u16>,
    /// The token of the chain that starts here, while the device holds it.
    token: Option<u32>,
}

/// The driver side of a split ring.
pub struct DriverQueue {
    layout: Layout,
    tables: Option<IndirectTables>,
    event_index: bool,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// The next available entry to write.
    next_available: u16,
    /// The available index that the device can see.
    published: u16,
    /// The next used entry to read.
    next_used: u16,
}

impl DriverQueue {
    /// A queue at the start of a ring whose memory is zero. With INDIRECT_DESC negotiated, `tables`
    /// makes [`Form::Indirect`] possible.
    pub fn new(layout: Layout, features: Features, tables: Option<IndirectTables>) -> Self {
        let size = layout.size();
        Self {
            tables: tables.filter(|_| features.contains(Features::INDIRECT_DESC)),
            event_index: features.contains(Features::EVENT_IDX),
            slots: vec![Slot { next: None, token: None }; size.into()].into_boxed_slice(),
            free: (0..size).rev().collect(),
            next_available: 0,
            published: 0,
            next_used: 0,
            layout,
        }
    }

    /// Moves a queue that has not been used to index `base`, as if so many chains had come and gone.
    #[cfg(test)]
    pub(super) fn start_at(&mut self, base: u16) {
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
        let room = self.tables.as_ref().map_or(0, |tables| tables.entries.into());
        // However it is laid out, a chain may not be longer than the ring (virtio 1.3, 2.7.5.3.1).
        let longest = self.size().into();
        if chain.is_empty()
            || chain.len() > longest
            || descriptors > self.free.len()
            || indirect.len() > room
        {
            return Err(Full);
        }

        // From the last descriptor to the first, so that each knows its successor.
        let mut next = None;
        if !indirect.is_empty() {
            let at = self.free.pop().ok_or(Full)?;
            let table = self.write_table(at, indirect);
            self.link(at, table, next);
            next = Some(at);
        }
        for buffer in direct.iter().rev() {
            let at = self.free.pop().ok_or(Full)?;
            self.link(at, describe(buffer), next);
            next = Some(at);
        }
        let head = next.ok_or(Full)?;
        self.slots[usize::from(head)].token = Some(token);

        let entry = ENTRIES + usize::from(self.next_available & (self.size() - 1));
        store(&self.layout.available, entry, head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    /// Writes a descriptor of the ring, chained to `next`.
    fn link(&mut self, at: u16, mut descriptor: Descriptor, next: Option<u16>) {
        if let Some(next) = next {
            descriptor.flags |= Descriptor::NEXT;
            descriptor.next = next;
        }
        write(&self.layout.descriptors, at.into(), descriptor);
        self.slots[usize::from(at)] = Slot { next, token: None };
    }

    /// Fills the table that belongs to descriptor `at`, and returns the descriptor of it.
    fn write_table(&self, at: u16, chain: &[Buffer]) -> Descriptor {
        let Some(tables) = &self.tables else {
            return Descriptor::default();
        };
        let first = usize::from(at) * usize::from(tables.entries);
        for (index, buffer) in chain.iter().enumerate() {
            let mut descriptor = describe(buffer);
            if index + 1 < chain.len() {
                descriptor.flags |= Descriptor::NEXT;
                descriptor.next = index as u16 + 1;
            }
            write(&tables.words, first + index, descriptor);
        }
        Descriptor {
            address: tables.address.0 + first as u64 * Descriptor::SIZE,
            length: chain.len() as u32 * Descriptor::SIZE as u32,
            flags: Descriptor::INDIRECT,
            next: 0,
        }
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
        store(&self.layout.available, INDEX, new, Ordering::Release);
        self.published = new;
        // Our index before their event word; see the module's text.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = load(&self.layout.available_event, 0, Ordering::Relaxed);
            event_crossed(event, new, old)
        } else {
            load(&self.layout.used, FLAGS, Ordering::Relaxed) & NO_NOTIFY == 0
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
        let slot = 2 * usize::from(self.next_used & (self.size() - 1));
        let [id, written] = [slot, slot + 1].map(|at| {
            self.layout
                .used_entries
                .get(at)
                .map_or(0, |word| u32::from_le(word.load(Ordering::Relaxed)))
        });
        let unknown = Violation::UsedId { id };
        let head = u16::try_from(id).map_err(|_| unknown)?;
        let first = self.slots.get_mut(usize::from(head)).ok_or(unknown)?;
        let token = first.token.take().ok_or(unknown)?;
        let mut at = Some(head);
        while let Some(index) = at {
            self.free.push(index);
            at = self.slots[usize::from(index)].next.take();
        }
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { token, written }))
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        if self.event_index {
            // As far behind as can be: the device will not cross it for 65535 chains.
            let event = self.layout.used_event();
            let behind = self.next_used.wrapping_sub(1);
            store(&self.layout.available, event, behind, Ordering::Relaxed);
        } else {
            store(&self.layout.available, FLAGS, NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    /// Asks for a call at the next used chain, then looks once more: true when there already is
    /// one, and the caller must not sleep.
    pub fn enable_calls(&mut self) -> bool {
        if self.event_index {
            let event = self.layout.used_event();
            store(&self.layout.available, event, self.next_used, Ordering::Relaxed);
        } else {
            store(&self.layout.available, FLAGS, 0, Ordering::Relaxed);
        }
        // Our event word before their index; see the module's text.
        fence(Ordering::SeqCst);
        self.layout.used_index() != self.next_used
    }
}

fn describe(buffer: &Buffer) -> Descriptor {
    let flags = if buffer.writable { Descriptor::WRITE } else { 0 };
    Descriptor { address: buffer.address.0, length: buffer.len, flags, next: 0 }
}

fn write(table: &[AtomicU64], index: usize, descriptor: Descriptor) {
    let words = descriptor.to_words();
    for (word, value) in table.iter().skip(2 * index).zip(words) {
        word.store(value.to_le(), Ordering::Relaxed);
    }
}
