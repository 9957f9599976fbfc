//! Frames, borrowed for one breath.
//!
//! A [`Burst`] has three parts: *records*, one a frame, with the private head and what is known of
//! the frame; *segments*, the parts of frames that stay in the sender's memory; and the *lease*,
//! which keeps that memory alive. Records outlast the burst, so that the app which pulled it can
//! read the outcomes; segments cannot, by their lifetime.
//!
//! What was checked is what is sent: decisions are made on the head, and delivery writes the head
//! and then copies the segments. What a decision was based on is never read from the sender's
//! memory again; a frame that is held is a new frame in the next burst, and decided on anew.

use std::sync::Arc;

use memory::{GuestMemory, ReadSlice, recycle};
use wire::virtio::Offload;

/// Most frames in a burst.
pub const BURST: usize = 64;

/// Frames of a burst that can be held, if the app that pulled it does not say otherwise: half of it.
pub const HELD: usize = BURST / 2;

/// Bytes of a frame that are copied into private memory: enough for Ethernet, two tags, IPv6 and
/// TCP with all options.
pub const HEAD: usize = 128;

/// Segments from which on a burst takes no further frame: a bound on memory and time for senders
/// that cut frames into crumbs.
const ENOUGH_SEGMENTS: usize = 4096;

/// What keeps a burst's memory alive while the burst is under way.
#[derive(Default)]
pub enum Lease {
    /// Nothing is borrowed.
    #[default]
    Empty,
    /// Frames lie in a guest's memory.
    Guest(Arc<GuestMemory>),
    /// Frames lie in a private buffer, which goes back to its app afterwards.
    Private(Box<[u8]>),
}

impl Lease {
    /// Leases a guest's memory.
    pub fn guest(&mut self, memory: &Arc<GuestMemory>) -> &GuestMemory {
        *self = Self::Guest(memory.clone());
        let Self::Guest(memory) = self else { unreachable!("just assigned") };
        memory
    }

    /// Leases a private buffer.
    pub fn private(&mut self, buffer: Box<[u8]>) -> &[u8] {
        *self = Self::Private(buffer);
        let Self::Private(buffer) = self else { unreachable!("just assigned") };
        buffer
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered, or dropped and counted by whoever dropped it.
    Done,
    /// Its receiver is full for the moment: to be pulled again.
    Held,
}

struct Record {
    head: [u8; HEAD],
    head_len: u8,
    len: u32,
    /// Into the burst's segments.
    body_start: u32,
    body_end: u32,
    offload: Offload,
    /// Goes to several receivers, none of which may hold it.
    replicated: bool,
    outcome: Outcome,
}

/// The memory of bursts, which is kept from one breath to the next.
pub(crate) struct Storage {
    records: Box<[Record]>,
    segments: Vec<ReadSlice<'static>>,
}

impl Default for Storage {
    fn default() -> Self {
        let record = || Record {
            head: [0; HEAD],
            head_len: 0,
            len: 0,
            body_start: 0,
            body_end: 0,
            offload: Offload::NONE,
            replicated: false,
            outcome: Outcome::Done,
        };
        Self { records: (0..BURST).map(|_| record()).collect(), segments: Vec::new() }
    }
}

impl Storage {
    /// An empty burst, which has this memory until it is kept again.
    pub(crate) fn begin<'b>(&mut self, now: u64) -> Burst<'b> {
        Burst {
            records: std::mem::take(&mut self.records),
            len: 0,
            segments: std::mem::take(&mut self.segments),
            now,
            held: 0,
            hold_limit: HELD,
        }
    }

    /// Takes a burst's memory back.
    pub(crate) fn keep(&mut self, finished: Finished) {
        self.records = finished.records;
        self.segments = finished.segments;
    }
}

/// A burst's memory, with nothing borrowed any more.
pub(crate) struct Finished {
    records: Box<[Record]>,
    len: usize,
    segments: Vec<ReadSlice<'static>>,
}

impl Finished {
    pub(crate) fn outcomes(&self) -> Outcomes<'_> {
        Outcomes { records: self.records.get(..self.len).unwrap_or_default() }
    }
}

/// What became of a burst, by the order in which its frames were pulled.
pub struct Outcomes<'a> {
    records: &'a [Record],
}

impl Outcomes<'_> {
    /// The outcome of frame `index`.
    pub fn get(&self, index: usize) -> Outcome {
        self.records.get(index).map_or(Outcome::Done, |record| record.outcome)
    }
}

/// Up to [`BURST`] frames, borrowed from the app that pulled them.
pub struct Burst<'b> {
    records: Box<[Record]>,
    len: usize,
    segments: Vec<ReadSlice<'b>>,
    now: u64,
    /// Frames that are to be pulled again.
    held: usize,
    /// How many may be.
    hold_limit: usize,
}

impl<'b> Burst<'b> {
    /// Frames in the burst.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was pulled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further frame should be pulled.
    pub fn is_full(&self) -> bool {
        self.len == self.records.len() || self.segments.len() >= ENOUGH_SEGMENTS
    }

    /// The time of this breath, in nanoseconds since the workers' epoch.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// All frames, in order.
    pub fn all(&self) -> Selection {
        let mut all = Selection::default();
        (0..self.len).for_each(|index| all.push(index));
        all
    }

    /// Where an app that pulls puts the segments of its next frame, behind those of the others. Take
    /// note of the length before, for [`Self::push`].
    pub fn segments(&mut self) -> &mut Vec<ReadSlice<'b>> {
        &mut self.segments
    }

    /// Adds a frame whose bytes are the segments from `start` on, less their first `skip` bytes.
    /// Copies its head. Returns its index; `None` when the burst is full.
    ///
    /// `offload` is worked out from the frame's length, once that is known. When it fails, there is
    /// no frame.
    #[inline]
    pub fn push<E>(
        &mut self,
        start: usize,
        mut skip: usize,
        offload: impl FnOnce(usize) -> Result<Offload, E>,
    ) -> Result<Option<usize>, E> {
        let index = self.len;
        let Some(record) = self.records.get_mut(index) else {
            self.segments.truncate(start);
            return Ok(None);
        };
        let mut len = 0;
        let mut head_len = 0;
        let mut body = start;
        for (at, segment) in self.segments.iter_mut().enumerate().skip(start) {
            let frame_part = segment.skip(skip);
            skip -= segment.len() - frame_part.len();
            len += frame_part.len();
            let copied = frame_part.copy_to(record.head.get_mut(head_len..).unwrap_or_default());
            head_len += copied;
            *segment = frame_part.skip(copied);
            // Only up to the first byte that the head does not hold: behind it, an empty segment
            // is one among others.
            if segment.is_empty() && body == at {
                body += 1;
            }
        }
        match offload(len) {
            Ok(offload) => record.offload = offload,
            Err(error) => {
                self.segments.truncate(start);
                return Err(error);
            }
        }
        record.head_len = head_len as u8;
        record.len = len as u32;
        record.body_start = body as u32;
        record.body_end = self.segments.len() as u32;
        record.replicated = false;
        record.outcome = Outcome::Done;
        self.len += 1;
        Ok(Some(index))
    }

    /// A look at frame `index`, which must be one of this burst's.
    #[inline]
    pub fn frame(&self, index: usize) -> Frame<'_> {
        let record = &self.records[index];
        Frame {
            head: &record.head[..usize::from(record.head_len)],
            body: &self.segments[record.body_start as usize..record.body_end as usize],
            len: record.len as usize,
            offload: record.offload,
        }
    }

    /// Says that a frame goes to several receivers. None of them can hold it, or the others would
    /// get it twice.
    pub fn replicate(&mut self, index: usize) {
        self.records[index].replicated = true;
    }

    /// Says how many frames of this burst its app is ready to pull again: [`HELD`] if it does not
    /// say.
    pub fn limit_held(&mut self, frames: usize) {
        self.hold_limit = frames;
    }

    /// Asks for a frame to be pulled again, because its receiver is full. No more than some of a
    /// burst can be, so that the next one has room for others. False when that cannot
    /// be: the receiver drops its copy.
    #[must_use = "a frame that is not held is to be counted as dropped"]
    pub fn hold(&mut self, index: usize) -> bool {
        let record = &mut self.records[index];
        let may_hold = !record.replicated && self.held < self.hold_limit;
        if may_hold {
            record.outcome = Outcome::Held;
            self.held += 1;
        }
        may_hold
    }

    pub(crate) fn finish(self) -> Finished {
        Finished { records: self.records, len: self.len, segments: recycle(self.segments) }
    }
}

/// A frame, as an app sees it.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// The first bytes, private: decide on these. Up to [`HEAD`], and the whole of a shorter frame.
    pub head: &'a [u8],
    /// The rest, in the sender's memory, which may change at any time.
    pub body: &'a [ReadSlice<'a>],
    /// Bytes in all.
    pub len: usize,
    /// What is left to do to it: a checksum to complete, a segmentation.
    pub offload: Offload,
}

/// Some of a burst's frames, in order.
#[derive(Clone, Copy)]
pub struct Selection {
    len: u8,
    indices: [u8; BURST],
}

impl Default for Selection {
    fn default() -> Self {
        Self { len: 0, indices: [0; BURST] }
    }
}

impl Selection {
    /// Adds a frame. Each may be in a selection once, so that there is always room.
    #[inline]
    pub fn push(&mut self, index: usize) {
        debug_assert!(index < BURST && usize::from(self.len) < BURST);
        if let Some(slot) = self.indices.get_mut(usize::from(self.len)) {
            *slot = index as u8;
            self.len += 1;
        }
    }

    /// Selects nothing.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Frames selected.
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// Whether nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The indices, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.indices.iter().take(self.len()).map(|index| usize::from(*index))
    }
}

#[cfg(test)]
mod tests;
