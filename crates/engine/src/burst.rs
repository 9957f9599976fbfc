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

use std::ops::Range;
use std::sync::Arc;

use memory::{GuestMemory, ReadSlice, SliceList};
use wire::checksum::PartialChecksum;
use wire::ethernet::{TAG_SIZE, VlanTag};
use wire::virtio::Offload;

use crate::{DropReason, Traffic};

/// Most frames in a burst.
pub const BURST: usize = 64;

/// Frames of a burst that can be held, if the app that pulled it does not say otherwise: half of it.
pub const HELD: usize = BURST / 2;

/// Bytes of a frame that are copied into private memory: enough for Ethernet, two tags, IPv6 and
/// TCP with all options.
pub const HEAD: usize = 128;

/// Bytes of a frame that can be made private on request, the head among them: see
/// [`Burst::make_private`].
pub const PRIVATE: usize = 1024;

/// Bytes behind heads that can be made private in one burst: those of each frame, for two apps.
const PRIVATE_ROOM: usize = 2 * BURST * PRIVATE;

/// Tags that can be put into a frame beyond those that it came with: a service's around a customer's.
pub const TAGS: usize = 2;

/// Where a head ends at most, with all tags put into it.
const HEAD_END: usize = HEADER_ROOM + HEAD + TAGS * TAG_SIZE;

/// Where the tag of a frame is, from the start of the frame: behind its addresses.
const TAG_AT: usize = 12;

/// Bytes in front of a head, for a header: as long as one of virtio-net can be, and a whole number of
/// words.
pub const HEADER_ROOM: usize = 16;

/// Segments from which on a burst takes no further frame of several: a bound on memory and time for
/// senders that cut frames into crumbs.
pub const ENOUGH_SEGMENTS: usize = 4096;

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
    pub fn guest(&mut self, memory: Arc<GuestMemory>) -> &GuestMemory {
        *self = Self::Guest(memory);
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

/// Whole cache lines, each of them one frame's.
#[repr(align(64))]
struct Record {
    /// The head, behind room for the header with which it came or goes on: so that both are copied as
    /// one.
    bytes: [u8; HEAD_END],
    head_len: u8,
    /// Goes to several receivers, none of which may hold it.
    replicated: bool,
    outcome: Outcome,
    len: u32,
    /// Into the burst's segments.
    body_start: u32,
    body_end: u32,
    offload: Offload,
}

impl Record {
    #[inline]
    fn head(&self) -> &[u8] {
        let end = HEADER_ROOM + usize::from(self.head_len);
        self.bytes.get(HEADER_ROOM..end).unwrap_or_default()
    }
}

/// The memory of bursts, which they have one after the other.
pub(crate) struct Storage {
    records: Box<[Record]>,
    segments: SliceList<ReadSlice<'static>>,
    /// For what is behind heads.
    private: Box<[u8]>,
}

impl Default for Storage {
    fn default() -> Self {
        let record = || Record {
            bytes: [0; HEAD_END],
            head_len: 0,
            replicated: false,
            outcome: Outcome::Done,
            len: 0,
            body_start: 0,
            body_end: 0,
            offload: Offload::NONE,
        };
        Self {
            records: (0..BURST).map(|_| record()).collect(),
            segments: SliceList::default(),
            private: vec![0; PRIVATE_ROOM].into(),
        }
    }
}

impl Storage {
    /// An empty burst, which has this memory until it is finished.
    #[inline]
    pub(crate) fn begin(&mut self, now: u64, breath: u32) -> Burst<'_> {
        Burst {
            records: &mut self.records,
            len: 0,
            segments: self.segments.lend(),
            private: &mut self.private,
            now,
            breath,
            held: 0,
            hold_limit: HELD,
            output: 0,
            depth: 0,
            total: None,
        }
    }

    /// What became of the burst that had this memory last.
    #[inline]
    pub(crate) fn outcomes(&self, Finished { len, held }: Finished) -> Outcomes<'_> {
        Outcomes { records: self.records.get(..len).unwrap_or_default(), held }
    }
}

/// What is left of a burst, with nothing borrowed any more.
#[derive(Clone, Copy)]
pub(crate) struct Finished {
    len: usize,
    held: usize,
}

/// What became of a burst, by the order in which its frames were pulled.
pub struct Outcomes<'a> {
    records: &'a [Record],
    held: usize,
}

impl Outcomes<'_> {
    /// Frames that were held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The outcome of frame `index`.
    pub fn get(&self, index: usize) -> Outcome {
        self.records.get(index).map_or(Outcome::Done, |record| record.outcome)
    }
}

/// Up to [`BURST`] frames, borrowed from the app that pulled them.
pub struct Burst<'b> {
    records: &'b mut [Record],
    len: usize,
    segments: &'b mut Vec<ReadSlice<'b>>,
    /// What is left of the room for what is behind heads.
    private: &'b mut [u8],
    now: u64,
    breath: u32,
    /// Frames that are to be pulled again.
    held: usize,
    /// How many may be.
    hold_limit: usize,
    /// The output by which they leave the app that pulled them.
    output: usize,
    /// How many apps have passed frames on and wait for that to be done, without the one that pulled them.
    depth: usize,
    /// Bytes of all frames; known once all were pulled.
    total: Option<u64>,
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

    /// The time of this breath, in nanoseconds since the workers' epoch: as of the last look at the clock, which may have been a few breaths
    /// ago.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The number of this breath, which wraps: for budgets that begin anew with the next one.
    pub fn breath(&self) -> u32 {
        self.breath
    }

    /// All frames, in order.
    pub fn all(&self) -> Selection {
        Selection { len: self.len.min(BURST) as u8, ..Selection::ALL }
    }

    /// Takes note of frames that were just put in, by whoever has counted them anyway: so that nobody has to add up their bytes
    /// again.
    #[inline]
    pub fn counted(&mut self, new: Traffic) {
        if new.frames == self.len as u64 {
            self.total = Some(new.bytes);
        }
    }

    /// Counts what nobody has counted, and returns the bytes of all frames. To be called when all frames were pulled, before the
    /// first goes on.
    #[inline]
    pub(crate) fn count(&mut self) -> u64 {
        let total = self.total.unwrap_or_else(|| self.add_up());
        debug_assert_eq!(total, self.add_up(), "somebody counted wrong");
        self.total = Some(total);
        total
    }

    /// The selected frames and their bytes.
    #[inline]
    pub fn traffic(&self, selection: &Selection) -> Traffic {
        self.traffic_of_first(selection, selection.len())
    }

    /// The same of the first `count` of them.
    #[inline]
    pub fn traffic_of_first(&self, selection: &Selection, count: usize) -> Traffic {
        // As good as always these are all frames, which go by several links, and then out.
        let bytes = match self.total {
            Some(total) if count == self.len => total,
            _ => {
                let records = selection.iter().take(count);
                let records = records.filter_map(|index| self.records.get(index));
                records.map(|record| u64::from(record.len)).sum()
            }
        };
        Traffic { frames: count as u64, bytes }
    }

    /// Bytes of all frames.
    fn add_up(&self) -> u64 {
        self.records.iter().take(self.len).map(|record| u64::from(record.len)).sum()
    }

    /// Where an app that pulls puts the segments of its next frame, behind those of the others. Take
    /// note of the length before, for [`Self::push`].
    pub fn segments(&mut self) -> &mut Vec<ReadSlice<'b>> {
        self.segments
    }

    /// Adds a frame whose bytes are these segments, behind a header of `header_len` of them, at most
    /// [`HEADER_ROOM`]. Copies header and head. Returns its index; `None` when the burst is full.
    ///
    /// `offload` is worked out from the header and the frame's length. When it fails, there is no
    /// frame.
    #[inline(always)]
    pub fn push<E>(
        &mut self,
        segments: Range<usize>,
        header_len: usize,
        offload: impl FnOnce(&[u8], usize) -> Result<Offload, E>,
    ) -> Result<Option<usize>, E> {
        let index = self.len;
        let Some(record) = self.records.get_mut(index) else { return Ok(None) };
        let header_at = HEADER_ROOM.saturating_sub(header_len);
        debug_assert!(header_len <= HEADER_ROOM);
        let mut body = segments.start as u32;
        record.body_end = segments.end as u32;
        let (total, copied) = match self.segments.get_mut(segments).unwrap_or_default() {
            [only] => {
                let room = record.bytes.get_mut(header_at..HEADER_ROOM + HEAD);
                let copied = only.copy_to(room.unwrap_or_default());
                let total = only.len();
                if copied == total {
                    body += 1;
                } else {
                    *only = only.skip(copied);
                }
                (total, copied)
            }
            several => {
                let (mut total, mut copied) = (0, 0);
                let mut is_in_head = true;
                for segment in several {
                    total += segment.len();
                    let room = record.bytes.get_mut(header_at + copied..HEADER_ROOM + HEAD);
                    let count = segment.copy_to(room.unwrap_or_default());
                    copied += count;
                    *segment = segment.skip(count);
                    // Only up to the first byte that the head does not hold: behind it, an empty
                    // segment is one among others.
                    is_in_head &= segment.is_empty();
                    body += u32::from(is_in_head);
                }
                (total, copied)
            }
        };
        let len = total.saturating_sub(header_len);
        // Nothing of an earlier frame's, should there be less than a header.
        let header_end = header_at + copied.min(header_len);
        let header = record.bytes.get(header_at..header_end).unwrap_or_default();
        record.offload = offload(header, len)?;
        record.head_len = copied.saturating_sub(header_len) as u8;
        record.len = len as u32;
        record.body_start = body;
        record.replicated = false;
        record.outcome = Outcome::Done;
        self.len += 1;
        self.total = None;
        Ok(Some(index))
    }

    /// Adds frames of one segment each, behind a header as above: what [`Self::push`] does for one, done for
    /// many, in order. Something of the caller's is beside each segment.
    ///
    /// `judge` is told of each what it would be, sets what is left to do to it, and says whether it is to be one.
    #[inline(always)]
    pub fn push_singles<T>(
        &mut self,
        singles: impl Iterator<Item = (T, ReadSlice<'b>)>,
        header_len: usize,
        mut judge: impl FnMut(T, Arrival<'_>) -> bool,
    ) {
        debug_assert!(header_len <= HEADER_ROOM);
        let header_at = HEADER_ROOM.saturating_sub(header_len);
        let mut index = self.len;
        let records = &mut *self.records;
        for (beside, segment) in singles {
            let Some(record) = records.get_mut(index) else { break };
            let Some(room) = record.bytes.get_mut(header_at..HEADER_ROOM + HEAD) else { break };
            let copied = segment.copy_to(room);
            let total = segment.len();
            let (header, head) =
                room.get(..copied).unwrap_or_default().split_at(header_len.min(copied));
            let len = total.saturating_sub(header_len);
            record.offload = Offload::NONE;
            let offload = &mut record.offload;
            if !judge(beside, Arrival { index, header, head, len, offload }) {
                continue;
            }
            record.head_len = head.len() as u8;
            record.len = len as u32;
            // As good as always the head is all of a small frame, and then nothing is left.
            (record.body_start, record.body_end) = (0, 0);
            if copied < total {
                record.body_start = self.segments.len() as u32;
                record.body_end = record.body_start + 1;
                self.segments.push(segment.skip(copied));
            }
            record.replicated = false;
            record.outcome = Outcome::Done;
            index += 1;
        }
        self.len = index;
        self.total = None;
    }

    /// The first bytes of frame `index`: see [`Frame::head`]. Empty when there is no such frame.
    #[inline(always)]
    pub fn head(&self, index: usize) -> &[u8] {
        self.records.get(index).map(Record::head).unwrap_or_default()
    }

    /// The head of frame `index`, and the bytes that the frame has in all; nothing when there is no such frame.
    #[inline(always)]
    pub fn head_and_len(&self, index: usize) -> (&[u8], usize) {
        let Some(record) = self.records.get(index) else { return (&[], 0) };
        (record.head(), record.len as usize)
    }

    /// The checksum that is left to be completed in frame `index`.
    #[inline(always)]
    pub fn checksum(&self, index: usize) -> Option<PartialChecksum> {
        self.records.get(index)?.offload.checksum
    }

    /// A look at frame `index`, which must be one of this burst's.
    #[inline(always)]
    pub fn frame(&self, index: usize) -> Frame<'_> {
        let record = &self.records[index];
        Frame {
            head: record.head(),
            body: &self.segments[record.body_start as usize..record.body_end as usize],
            len: record.len as usize,
            offload: record.offload,
        }
    }

    /// Makes the first [`PRIVATE`] bytes of frame `index` private, for decisions that the head is not enough
    /// for. From then on the frame is its head, these bytes, and what the sender's memory has behind
    /// them. Returns those behind the head: all of them, of a shorter frame. `None` when there is no room
    /// for that any more in this burst, or no such frame: then nothing has changed.
    #[cold]
    pub fn make_private(&mut self, index: usize) -> Option<&'b [u8]> {
        let Self { records, segments, private, .. } = self;
        let record = records.get_mut(index)?;
        let body = record.body_start as usize..record.body_end as usize;
        let body_len = segments.get(body.clone())?.iter().map(ReadSlice::len).sum::<usize>();
        let count = body_len.min(PRIVATE - usize::from(record.head_len));
        if count == 0 {
            return Some(&[]);
        }
        if count > private.len() {
            return None;
        }
        let (copy, rest) = std::mem::take(private).split_at_mut(count);
        *private = rest;
        // A new list of segments, behind those of all frames: the copy, and what it does not have.
        let start = segments.len();
        segments.push(ReadSlice::EMPTY);
        let mut copied = 0;
        for at in body {
            let segment = segments[at];
            let room = copy.get_mut(copied..).unwrap_or_default();
            let count = segment.copy_to(room);
            copied += count;
            if count < segment.len() {
                segments.push(segment.skip(count));
            }
        }
        let copy: &'b [u8] = copy;
        segments[start] = copy.into();
        record.body_start = start as u32;
        record.body_end = segments.len() as u32;
        Some(copy)
    }

    /// What is known of frame `index`, which must be one of this burst's, and the room for a header of
    /// `header_len` bytes, at most [`HEADER_ROOM`], in front of it.
    ///
    /// The header is to be written well before [`Self::framed`] is copied: what was just stored in small
    /// pieces cannot be loaded as a large one until all that was stored before has reached the cache, and
    /// that may be another frame on its way to its receiver.
    #[inline(always)]
    pub fn outline(&mut self, index: usize, header_len: usize) -> Outline<'_> {
        let record = &mut self.records[index];
        let start = HEADER_ROOM.saturating_sub(header_len);
        Outline {
            header: record.bytes.get_mut(start..HEADER_ROOM).unwrap_or_default(),
            len: record.len as usize,
            offload: &record.offload,
            has_body: record.body_start < record.body_end,
        }
    }

    /// Puts a VLAN tag into frame `index`, in front of those that it has (IEEE 802.1Q-2018, 9.3). If the frame
    /// [is shared](Self::is_shared), take it out again before you return. A frame has room for [`TAGS`] at a time. When there is none, or no whole header to put it into, the frame is as it was, and to be
    /// dropped for the reason given.
    #[inline]
    pub fn push_tag(&mut self, index: usize, tag: VlanTag) -> Result<(), DropReason> {
        let record = self.records.get_mut(index).ok_or(DropReason::TooShort)?;
        let head_len = usize::from(record.head_len);
        if head_len < TAG_AT + 2 {
            return Err(DropReason::TooShort);
        }
        if head_len + TAG_SIZE > HEAD_END - HEADER_ROOM {
            return Err(DropReason::TooLong);
        }
        if !record.offload.is_none() {
            let moved = record.offload.moved(TAG_SIZE as i16);
            record.offload = moved.ok_or(DropReason::TooLong)?;
        }
        // As much for each frame, whatever its length: a few moves of vectors, without a call.
        let (at, behind) = (HEADER_ROOM + TAG_AT, HEADER_ROOM + TAG_AT + TAG_SIZE);
        record.bytes.copy_within(at..HEAD_END - TAG_SIZE, behind);
        record.bytes[at..behind].copy_from_slice(&tag.to_bytes());
        record.head_len += TAG_SIZE as u8;
        record.len += TAG_SIZE as u32;
        self.total = self.total.map(|total| total + TAG_SIZE as u64);
        Ok(())
    }

    /// Takes the outer VLAN tag out of frame `index`. If the frame [is shared](Self::is_shared), put it in again. When
    /// there is no whole tag, or a checksum is to be summed from inside of it, the frame is as it was, and to be
    /// dropped for the reason given.
    #[inline]
    pub fn pop_tag(&mut self, index: usize) -> Result<VlanTag, DropReason> {
        let record = self.records.get_mut(index).ok_or(DropReason::TooShort)?;
        let tag = VlanTag::parse(record.head()).ok_or(DropReason::TooShort)?;
        if !record.offload.is_none() {
            let moved = record.offload.moved(-(TAG_SIZE as i16));
            record.offload = moved.ok_or(DropReason::ChecksumInEthernetHeader)?;
        }
        let at = HEADER_ROOM + TAG_AT;
        record.bytes.copy_within(at + TAG_SIZE..HEAD_END, at);
        record.head_len -= TAG_SIZE as u8;
        record.len -= TAG_SIZE as u32;
        self.total = self.total.map(|total| total - TAG_SIZE as u64);
        Ok(tag)
    }

    /// Puts another tag in the place of the outer one of frame `index`. If the frame [is shared](Self::is_shared), undo it.
    /// When there is no whole tag, the frame is as it was, and to be dropped for the reason given.
    #[inline]
    pub fn set_tag(&mut self, index: usize, tag: VlanTag) -> Result<(), DropReason> {
        let record = self.records.get_mut(index).ok_or(DropReason::TooShort)?;
        VlanTag::parse(record.head()).ok_or(DropReason::TooShort)?;
        let at = HEADER_ROOM + TAG_AT;
        record.bytes[at..at + TAG_SIZE].copy_from_slice(&tag.to_bytes());
        Ok(())
    }

    /// Has the processor fetch the first `COUNT` bytes of the body of frame `index`, if it has one, while
    /// other things are done.
    #[inline(always)]
    pub fn prefetch_body<const COUNT: usize>(&self, index: usize) {
        let Some(record) = self.records.get(index) else { return };
        if record.body_start < record.body_end
            && let Some(first) = self.segments.get(record.body_start as usize)
        {
            first.prefetch::<COUNT>();
        }
    }

    /// Frame `index`, which must be one of this burst's, behind the header that was written there.
    #[inline(always)]
    pub fn framed(&self, index: usize, header_len: usize) -> Framed<'_> {
        let record = &self.records[index];
        let start = HEADER_ROOM.saturating_sub(header_len);
        let end = HEADER_ROOM + usize::from(record.head_len);
        let front = record.bytes.get(start..end).unwrap_or_default();
        let body = record.body_start as usize..record.body_end as usize;
        Framed { front, body: &self.segments[body], len: record.len as usize }
    }

    /// Says that a frame goes to several receivers. None of them can hold it from now on, or the others would
    /// get it twice. One that has it already may have held it: see [`Self::is_held`].
    pub fn replicate(&mut self, index: usize) {
        self.records[index].replicated = true;
    }

    /// Whether somebody else has frame `index` as well, or will: an app that has passed it on, and may look at it
    /// again, or another receiver. Who changes a frame that is shared changes it back before it returns.
    #[inline]
    pub fn is_shared(&self, index: usize) -> bool {
        self.depth > 0 || self.records.get(index).is_some_and(|record| record.replicated)
    }

    /// Has an app pass frames on, which others are at work on then, and it is not.
    #[inline]
    pub(crate) fn pass_on<R>(&mut self, pass_on: impl FnOnce(&mut Self) -> R) -> R {
        self.depth += 1;
        let result = pass_on(self);
        self.depth -= 1;
        result
    }

    /// Says how many frames of this burst its app is ready to pull again: [`HELD`] if it does not
    /// say.
    pub fn limit_held(&mut self, frames: usize) {
        self.hold_limit = frames;
    }

    /// Says by which output the frames of this burst leave the app that pulled them: 0 if it does not
    /// say.
    pub fn leave_by(&mut self, output: usize) {
        self.output = output;
    }

    #[inline]
    pub(crate) fn output(&self) -> usize {
        self.output
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

    /// Frames that are to be pulled again, so far.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether frame `index` is to be pulled again: what was counted of it will be counted once more then.
    #[inline]
    pub fn is_held(&self, index: usize) -> bool {
        let records = self.records.get(..self.len).unwrap_or_default();
        records.get(index).is_some_and(|record| record.outcome == Outcome::Held)
    }

    #[inline]
    pub(crate) fn finish(self) -> Finished {
        let Self { len, held, .. } = self;
        Finished { len, held }
    }
}

/// What would be a frame: see [`Burst::push_singles`].
pub struct Arrival<'a> {
    /// Which of the burst's frames.
    pub index: usize,
    /// The header that came with it; not all of one, when there are not so many bytes.
    pub header: &'a [u8],
    /// See [`Frame::head`].
    pub head: &'a [u8],
    /// Bytes, without the header.
    pub len: usize,
    /// What is left to do to it: to be set, if it is anything.
    pub offload: &'a mut Offload,
}

/// A frame, as an app sees it.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// The first bytes, private: decide on these. Up to [`HEAD`], and the tags that were put in since; the whole of
    /// a shorter frame.
    pub head: &'a [u8],
    /// The rest, in the sender's memory, which may change at any time.
    pub body: &'a [ReadSlice<'a>],
    /// Bytes in all.
    pub len: usize,
    /// What is left to do to it: a checksum to complete, a segmentation.
    pub offload: Offload,
}

/// What is known of a frame that is about to be sent on.
pub struct Outline<'a> {
    /// Room for the header that it is to have.
    pub header: &'a mut [u8],
    /// Bytes of the frame, without a header.
    pub len: usize,
    /// What is left to do to it.
    pub offload: &'a Offload,
    /// Not all of it is in the private head.
    pub has_body: bool,
}

/// A frame behind a header.
#[derive(Clone, Copy)]
pub struct Framed<'a> {
    /// The header and, behind it, the private head.
    pub front: &'a [u8],
    /// The rest of the frame: see [`Frame::body`].
    pub body: &'a [ReadSlice<'a>],
    /// Bytes of the frame, without the header.
    pub len: usize,
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
    /// All frames of a full burst.
    const ALL: Self = {
        let mut indices = [0; BURST];
        let mut index = 0;
        while index < BURST {
            indices[index] = index as u8;
            index += 1;
        }
        Self { len: BURST as u8, indices }
    };

    /// Adds a frame. Each may be in a selection once, so that there is always room.
    #[inline]
    pub fn push(&mut self, index: usize) {
        debug_assert!(index < BURST && usize::from(self.len) < BURST);
        if let Some(slot) = self.indices.get_mut(usize::from(self.len)) {
            *slot = index as u8;
            self.len += 1;
        }
    }

    /// The frame that is selected, if it is the only one.
    #[inline]
    pub fn only(&self) -> Option<usize> {
        (self.len == 1).then(|| self.indices[0].into())
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

    /// The indices, in order, in pieces of neighbours for which `key` is the same, with that.
    #[inline]
    pub fn chunk_by_key<K: PartialEq>(
        &self,
        key: impl Fn(usize) -> K,
    ) -> impl Iterator<Item = (K, impl Iterator<Item = usize>)> {
        let indices = self.indices.get(..self.len()).unwrap_or_default();
        let mut rest = indices;
        std::iter::from_fn(move || {
            let key_of = |index: &u8| key(usize::from(*index));
            let first = key_of(rest.first()?);
            let count = rest.iter().take_while(|index| key_of(index) == first).count();
            let (chunk, others) = rest.split_at(count);
            rest = others;
            Some((first, chunk.iter().map(|index| usize::from(*index))))
        })
    }

    /// The indices, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + use<'_> {
        let indices = self.indices.get(..self.len()).unwrap_or_default();
        indices.iter().map(|index| usize::from(*index))
    }
}

#[cfg(test)]
mod tests;
