//! What the drivers of both formats have in common.

use std::sync::atomic::Ordering;

use memory::{Fault, GuestAddress, GuestMemory};
use thiserror::Error;
use wire::split::Descriptor;

use crate::fields::{Fields, Mapped, RingMemory};

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

impl Buffer {
    /// Bytes that the device may write to all of a chain's buffers.
    pub(crate) fn writable_bytes(chain: &[Self]) -> u32 {
        let lens = chain.iter().map(|buffer| if buffer.writable { buffer.len } else { 0 });
        lens.fold(0, u32::saturating_add)
    }
}

/// How a chain is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One descriptor of the ring a buffer.
    Direct,
    /// This many direct descriptors, then one that refers to a table with the rest. With 0, the
    /// whole chain is in the table. A packed ring knows no such mixture: there it always is.
    Indirect(u16),
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// As given when the chain was added.
    pub token: u32,
    /// Bytes that the device says it wrote. With IN_ORDER a device may not say it of every chain:
    /// then it wrote all there was to write (virtio 1.3, 2.7.9 and 2.8.8).
    pub written: u32,
}

/// There are not enough free descriptors, or the chain is too long for the ring or for an indirect
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the virtqueue has no room for the chain")]
pub struct Full;

/// Memory for indirect tables: one for each descriptor of the ring, `entries` long.
pub struct IndirectTables<M: RingMemory = Mapped> {
    address: GuestAddress,
    entries: u16,
    words: M::U64,
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

impl<M: RingMemory> IndirectTables<M> {
    /// Descriptors in each table.
    pub(crate) fn entries(&self) -> usize {
        self.entries.into()
    }

    /// Fills table `number`. Returns where it is.
    pub(crate) fn write(&self, number: u16, descriptors: impl Iterator<Item = [u64; 2]>) -> u64 {
        let first = usize::from(number) * self.entries();
        for (index, words) in descriptors.enumerate() {
            write_words(&self.words, first + index, words);
        }
        self.address.0 + first as u64 * Descriptor::SIZE
    }
}

/// Writes descriptor `index` of a table, which the other side must not see yet.
pub(crate) fn write_words(table: &impl Fields<u64>, index: usize, [first, second]: [u64; 2]) {
    table.store(2 * index, first, Ordering::Relaxed);
    table.store(2 * index + 1, second, Ordering::Relaxed);
}
