//! Frames that wait, copied into memory of our own.
//!
//! The memory is cut into blocks of [`BLOCK`] bytes. A frame has as many of them as it needs, anywhere, each of
//! which knows the next. All of it is allocated once.
//!
//! While frames are on their way the memory is lent to their burst ([`engine::Lease`]), and nothing can be
//! kept meanwhile.

use std::ops::Range;

use engine::Frame;
use memory::ReadSlice;
use wire::checksum::{PartialChecksum, Sum, field_value};
use wire::virtio::Offload;

/// Bytes of a block: room for an ordinary frame.
pub(super) const BLOCK: usize = 2048;

/// The memory.
pub(super) struct Store {
    /// Empty while it is lent.
    memory: Box<[u8]>,
    /// Which block comes behind each, in a frame or among those that are free.
    next: Box<[u32]>,
    /// The first of those that are free.
    free: u32,
    free_count: usize,
}

/// A frame in it, which is to be given back by [`Store::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    first: u32,
    len: u32,
    /// What is left to do to it.
    pub(super) offload: Offload,
}

impl Stored {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Where its bytes are, piece by piece.
    pub(super) fn pieces(self, store: &Store) -> impl Iterator<Item = Range<usize>> + use<'_> {
        pieces(&store.next, self)
    }
}

/// As [`Stored::pieces`], of a store whose memory is in use.
fn pieces(next: &[u32], stored: Stored) -> impl Iterator<Item = Range<usize>> + use<'_> {
    let (mut block, mut left) = (stored.first as usize, stored.len());
    std::iter::from_fn(move || {
        let len = left.min(BLOCK);
        let start = block * BLOCK;
        left -= len;
        block = next.get(block).copied().unwrap_or_default() as usize;
        (len > 0).then_some(start..start + len)
    })
}

impl Store {
    /// Memory of so many bytes, less what is not a whole block.
    pub(super) fn new(bytes: usize) -> Self {
        let blocks = u32::try_from(bytes / BLOCK).unwrap_or(u32::MAX);
        Self {
            memory: vec![0; blocks as usize * BLOCK].into(),
            next: (1..=blocks).collect(),
            free: 0,
            free_count: blocks as usize,
        }
    }

    /// Copies a frame. None when there is no room for it, or the memory is lent.
    pub(super) fn keep(&mut self, frame: &Frame<'_>) -> Option<Stored> {
        let stored = Stored { first: self.free, len: frame.len as u32, offload: frame.offload };
        let blocks = frame.len.div_ceil(BLOCK);
        if self.memory.is_empty() || blocks > self.free_count {
            return None;
        }
        // Those that come first among the free ones are one behind the other already.
        let mut pieces = pieces(&self.next, stored);
        let mut room = 0..0;
        for source in std::iter::once(ReadSlice::from(frame.head)).chain(frame.body.iter().copied())
        {
            let mut source = source;
            while !source.is_empty() {
                if room.is_empty() {
                    room = pieces.next()?;
                }
                let copied = source.copy_to(self.memory.get_mut(room.clone())?);
                source = source.skip(copied);
                room.start += copied;
            }
        }
        drop(pieces);
        self.free = self.behind(stored.first, blocks);
        self.free_count -= blocks;
        Some(stored)
    }

    /// Gives a frame's room back.
    pub(super) fn release(&mut self, stored: Stored) {
        let blocks = stored.len().div_ceil(BLOCK);
        let Some(others) = blocks.checked_sub(1) else { return };
        let last = self.behind(stored.first, others);
        if let Some(next) = self.next.get_mut(last as usize) {
            *next = std::mem::replace(&mut self.free, stored.first);
            self.free_count += blocks;
        }
    }

    /// The block that comes so many behind another.
    fn behind(&self, block: u32, count: usize) -> u32 {
        let next = |block, _| self.next.get(block as usize).copied().unwrap_or_default();
        (0..count).fold(block, next)
    }

    /// The byte of a frame at a place.
    fn byte(&mut self, stored: Stored, at: usize) -> Option<&mut u8> {
        let block = self.behind(stored.first, at / BLOCK) as usize;
        self.memory.get_mut(block * BLOCK + at % BLOCK)
    }

    /// Turns one bit of a frame around.
    pub(super) fn flip(&mut self, stored: Stored, bit: usize) {
        if let Some(byte) = self.byte(stored, bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Completes a frame's checksum, which is then nobody else's to do.
    pub(super) fn complete(&mut self, stored: &mut Stored, partial: PartialChecksum) {
        let mut sum = Sum::new();
        let mut skip = usize::from(partial.start);
        for piece in pieces(&self.next, *stored) {
            let piece = self.memory.get(piece).unwrap_or_default();
            let skipped = skip.min(piece.len());
            skip -= skipped;
            sum.add(piece.get(skipped..).unwrap_or_default());
        }
        let field = usize::from(partial.start) + usize::from(partial.offset);
        for (at, value) in (field..).zip(field_value(&sum).to_be_bytes()) {
            if let Some(byte) = self.byte(*stored, at) {
                *byte = value;
            }
        }
        stored.offload = Offload::NONE;
    }

    /// Lends the memory to a burst.
    pub(super) fn lend(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.memory)
    }

    /// Takes it back.
    pub(super) fn take_back(&mut self, memory: Box<[u8]>) {
        self.memory = memory;
    }
}
