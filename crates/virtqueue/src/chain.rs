//! Chains: what a device takes from a ring, whatever the ring's format.
//!
//! As good as always a chain is one buffer. Those are taken in runs, by loops that do nothing else
//! ([`Single`]); all others one by one, by a [`Visitor`] that is shown their buffers.

use std::fmt;

use memory::{GuestAddress, ReadSlice, Translator, WriteSlice};
use wire::split::Descriptor;

use crate::Violation;

/// A chain that the device holds. It has to be given back, once, to the queue that it was taken
/// from.
///
/// Two whole words, because it is moved about a lot: processors do not forward a store of one field
/// to a load of several, and waiting for that costs as much as all else in taking a chain. What
/// differs between chains of one buffer each that are taken together is the first word, and the
/// highest field of the second.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use = "a chain that is not given back is lost to the driver"]
pub struct Chain {
    /// Bytes in the lower 32 bits and the id in the 16 above, as in a packed ring's descriptor.
    what: u64,
    /// Slots, descriptors, 1 for a chain that is only to be read, and the start, of 16 bits each.
    place: u64,
}

/// How a chain is told from others by its ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// By what the driver knows it: its first descriptor in a split ring, the buffer id in a packed
    /// one.
    pub(crate) id: u16,
    /// Where the ring stood when it was taken.
    pub(crate) start: u16,
    /// The ring's descriptors that it has, of which an indirect table is behind one: by so many a packed ring moves on, and a split
    /// one by an entry for all of them.
    pub(crate) slots: u16,
    /// Nothing in it is to be written, so that there is nothing to say of it but that it was used.
    pub(crate) is_read_only: bool,
}

impl Chain {
    #[inline(always)]
    pub(crate) fn new(place: Place, descriptors: u16, bytes: u64) -> Self {
        let Place { id, start, slots, is_read_only } = place;
        let bytes = bytes.min(u32::MAX.into());
        let [start, slots, descriptors] = [start, slots, descriptors].map(u64::from);
        Self {
            what: bytes | u64::from(id) << 32,
            place: slots | descriptors << 16 | u64::from(is_read_only) << 32 | start << 48,
        }
    }

    /// A chain of one buffer, given bytes and id as one word, `ahead` slots behind this one.
    #[inline(always)]
    pub(crate) fn neighbour(self, what: u64, ahead: usize) -> Self {
        Self { what, place: self.place.wrapping_add((ahead as u64) << 48) }
    }

    #[inline(always)]
    pub(crate) fn place(self) -> Place {
        let at = |shift: u32| (self.place >> shift) as u16;
        Place { id: self.id(), start: at(48), slots: self.slots(), is_read_only: at(32) != 0 }
    }

    /// Descriptors of the ring that the chain has, of which there are as many as the ring has entries. A table of indirect ones is
    /// behind one of them.
    #[inline(always)]
    pub fn slots(self) -> u16 {
        self.place as u16
    }

    /// Bytes in the chain's descriptors of the direction that was asked for. May exceed what was
    /// translated, where a limit was given. More than a 32-bit number can say count as so many.
    #[inline]
    pub fn bytes(self) -> u64 {
        u64::from(self.what as u32)
    }

    /// Descriptors in the chain, those of no bytes included: what it cost to read.
    #[inline]
    pub fn descriptors(self) -> u16 {
        (self.place >> 16) as u16
    }

    /// By what the driver knows it: its first descriptor in a split ring, the buffer id in a packed
    /// one.
    #[inline]
    pub fn id(self) -> u16 {
        (self.what >> 32) as u16
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("bytes", &self.bytes())
            .field("descriptors", &self.descriptors())
            .field("place", &self.place())
            .finish()
    }
}

/// A buffer of a chain that is held, to be read later. The address was not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
}

/// A chain of one buffer, and where that is.
#[derive(Clone, Copy, Debug)]
pub struct Single {
    /// The chain, which has to be given back like any other.
    pub chain: Chain,
    /// The address of its buffer. It was not checked.
    pub address: GuestAddress,
}

impl Single {
    /// Its buffer.
    #[inline(always)]
    pub fn buffer(&self) -> Piece {
        Piece { address: self.address, len: self.chain.what as u32 }
    }
}

/// How taking chains of one buffer each ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Singles {
    /// How many were taken.
    pub count: usize,
    /// Behind them is a chain that is another one, good or bad, or that was not to be taken.
    pub is_other_next: bool,
}

/// Which way the bytes of a chain go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads them.
    Read,
    /// The device writes them.
    Write,
}

/// A buffer, as its descriptor has it.
#[derive(Clone, Copy)]
pub(crate) struct Element {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) is_writable: bool,
}

impl From<Descriptor> for Element {
    #[inline]
    fn from(descriptor: Descriptor) -> Self {
        Self {
            address: descriptor.address,
            len: descriptor.length,
            is_writable: descriptor.is_writable(),
        }
    }
}

/// Is shown the buffers of a chain, in order.
pub(crate) trait Visitor<'m> {
    /// Whether it takes what is to be read.
    const READS: bool;

    fn visit(&mut self, translator: &mut Translator<'m>, element: Element)
    -> Result<(), Violation>;
}

/// Takes what is to be read, and passes over what is to be written.
pub(crate) struct Readable<'s, 'm> {
    slices: &'s mut Vec<ReadSlice<'m>>,
    limit: u32,
    pub(crate) bytes: u64,
    pub(crate) is_read_only: bool,
}

impl<'s, 'm> Readable<'s, 'm> {
    #[inline]
    pub(crate) fn new(slices: &'s mut Vec<ReadSlice<'m>>, limit: u32) -> Self {
        Self { slices, limit, bytes: 0, is_read_only: true }
    }
}

impl<'m> Visitor<'m> for Readable<'_, 'm> {
    const READS: bool = true;

    #[inline(always)]
    fn visit(
        &mut self,
        translator: &mut Translator<'m>,
        element: Element,
    ) -> Result<(), Violation> {
        self.is_read_only &= !element.is_writable;
        if element.is_writable {
            return Ok(());
        }
        if !self.is_read_only {
            return Err(Violation::ReadableAfterWritable);
        }
        let len = within(self.limit, self.bytes, element.len);
        translator.read(GuestAddress(element.address), len, self.slices)?;
        self.bytes += u64::from(element.len);
        Ok(())
    }
}

/// Takes what is to be written, and refuses all else.
pub(crate) struct Writable<'s, 'm> {
    slices: &'s mut Vec<WriteSlice<'m>>,
    limit: u32,
    pub(crate) bytes: u64,
}

impl<'s, 'm> Writable<'s, 'm> {
    #[inline]
    pub(crate) fn new(slices: &'s mut Vec<WriteSlice<'m>>, limit: u32) -> Self {
        Self { slices, limit, bytes: 0 }
    }
}

impl<'m> Visitor<'m> for Writable<'_, 'm> {
    const READS: bool = false;

    #[inline(always)]
    fn visit(
        &mut self,
        translator: &mut Translator<'m>,
        element: Element,
    ) -> Result<(), Violation> {
        if !element.is_writable {
            return Err(Violation::ReadableReceiveBuffer);
        }
        let len = within(self.limit, self.bytes, element.len);
        translator.write(GuestAddress(element.address), len, self.slices)?;
        self.bytes += u64::from(element.len);
        Ok(())
    }
}

/// How much of a buffer is within the limit, with `before` bytes ahead of it.
#[inline]
fn within(limit: u32, before: u64, len: u32) -> u32 {
    u64::from(limit).saturating_sub(before).min(u64::from(len)) as u32
}

/// Notes what is to be read, to read it later.
pub(crate) struct Pieces<'s> {
    pieces: &'s mut Vec<Piece>,
    is_read_only: bool,
    chain: Chain,
    /// Descriptors that it had when it was taken, and that have not been visited: what was paid for.
    left: u16,
}

impl<'s> Pieces<'s> {
    pub(crate) fn new(chain: Chain, pieces: &'s mut Vec<Piece>) -> Self {
        Self { pieces, is_read_only: true, chain, left: chain.descriptors() }
    }
}

impl<'m> Visitor<'m> for Pieces<'_> {
    const READS: bool = true;

    fn visit(&mut self, _: &mut Translator<'m>, element: Element) -> Result<(), Violation> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(Violation::Grown { id: self.chain.id() });
        };
        self.left = left;
        self.is_read_only &= !element.is_writable;
        if element.is_writable {
            return Ok(());
        }
        if !self.is_read_only {
            return Err(Violation::ReadableAfterWritable);
        }
        if element.len > 0 {
            let address = GuestAddress(element.address);
            self.pieces.push(Piece { address, len: element.len });
        }
        Ok(())
    }
}

/// How many descriptors an indirect table of `len` bytes has, in a ring of `size`.
pub(crate) fn table_entries(len: u32, size: u16) -> Result<u16, Violation> {
    let entries = len / Descriptor::SIZE as u32;
    if entries == 0 || !len.is_multiple_of(Descriptor::SIZE as u32) || entries > size.into() {
        return Err(Violation::IndirectLength { len, size });
    }
    Ok(entries as u16)
}

/// Reads the words of a descriptor in an indirect table, once. A table has no alignment and may lie
/// across regions.
pub(crate) fn table_words(
    translator: &mut Translator<'_>,
    table: u64,
    index: u16,
) -> Result<[u64; 2], Violation> {
    // A table at the very end of the address space is outside of any region, wrapped or not.
    let address = table.saturating_add(u64::from(index) * Descriptor::SIZE);
    let mut bytes = [0; Descriptor::SIZE as usize];
    translator.copy_to(GuestAddress(address), &mut bytes)?;
    let (words, _) = bytes.as_chunks();
    Ok([words[0], words[1]].map(u64::from_le_bytes))
}
