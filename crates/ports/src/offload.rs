//! What a sender left undone and a receiver cannot do: checksums and segmentation, in software.
//!
//! # How it works
//!
//! [`Delivery::new`] compares what is left to do to a frame with what its receiver takes, and then
//! [`Delivery::next`] gives the frames that have to arrive: the frame as it is, the frame with its
//! checksum completed, or its segments. For each, the port gathers buffers for the virtio-net
//! header and [`Outgoing::len`] bytes, writes the header of [`Outgoing::offload`], and lets
//! [`Outgoing::write`] write the rest behind it.
//!
//! There is one pass over the payload: it is copied from the sender's memory into the receiver's
//! and summed on the way, each byte fetched once. So the checksum is that of the bytes that
//! arrived, whatever the sender does to its memory meanwhile. Headers come from private memory, and
//! are written when the sum is known.

use engine::{DropReason, Frame};
use memory::{ReadCursor, ReadSlice, WriteCursor};
use wire::checksum::{PartialChecksum, Sum, field_value};
use wire::segment::{MAX_HEADERS, Segment, Segments};
use wire::virtio::{Features, Offload};

/// The frames that one frame makes for one receiver.
pub struct Delivery<'f> {
    frame: Frame<'f>,
    work: Work<'f>,
    remaining: usize,
}

#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for one frame, and a box would be allocated on the busy path"
)]
enum Work<'f> {
    /// The frame goes as it is.
    Pass,
    /// Its checksum has to be completed.
    Complete(PartialChecksum),
    /// It has to be segmented; the cursor is at the payload of the next segment.
    Segment(Segments, ReadCursor<'f, 'f>),
}

impl<'f> Delivery<'f> {
    /// Works out what has to arrive at a receiver that acknowledged `features`.
    #[inline]
    pub fn new(frame: Frame<'f>, features: Features) -> Result<Self, DropReason> {
        let Offload { checksum, segmentation } = frame.offload;
        let work = match (segmentation, checksum) {
            _ if features.contains(frame.offload.needs()) => Work::Pass,
            (Some(segmentation), Some(checksum)) => {
                let mut head = [0; MAX_HEADERS];
                let len = read_head(&frame, &mut head);
                let head = head.get(..len).unwrap_or_default();
                let segments = Segments::plan(head, frame.len, segmentation, checksum)?;
                let mut payload = source(&frame);
                payload.skip(segments.header_len());
                Work::Segment(segments, payload)
            }
            (None, Some(checksum)) => Work::Complete(checksum),
            // Only what has a checksum to complete needs anything of its receiver.
            (_, None) => Work::Pass,
        };
        let remaining = match &work {
            Work::Pass | Work::Complete(_) => 1,
            Work::Segment(segments, _) => segments.count(),
        };
        Ok(Self { frame, work, remaining })
    }

    /// Whether the frame goes as it is.
    pub fn passes(&self) -> bool {
        matches!(self.work, Work::Pass)
    }

    /// Bytes of the longest frame that this is on a wire, whoever segments it.
    #[inline]
    pub fn wire_len(&self) -> usize {
        match &self.work {
            Work::Segment(segments, _) => segments.longest(),
            Work::Pass | Work::Complete(_) => {
                self.frame.offload.wire_len_of(self.frame.head, self.frame.len)
            }
        }
    }

    /// Calls `each` with the length of each frame that has to arrive, in order, until it fails. To be
    /// asked before the first of them is taken.
    #[inline]
    pub fn try_each_len<E>(&self, mut each: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        match &self.work {
            Work::Pass | Work::Complete(_) => each(self.frame.len),
            Work::Segment(segments, _) => segments.frame_lens().try_for_each(each),
        }
    }

    /// Frames that are still to come.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// The next frame. It borrows from this, so it has to be written before the one after it.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "an Iterator's items cannot borrow from it")]
    pub fn next(&mut self) -> Option<Outgoing<'_>> {
        self.remaining = self.remaining.checked_sub(1)?;
        let Frame { len, offload, .. } = self.frame;
        match &mut self.work {
            Work::Pass => Some(Outgoing { len, offload, content: Content::Pass(&self.frame) }),
            Work::Complete(partial) => {
                let content = Content::Complete(&self.frame, *partial);
                Some(Outgoing { len, offload: Offload::NONE, content })
            }
            Work::Segment(segments, source) => {
                let segment = segments.next()?;
                let payload = *source;
                source.skip(segment.payload_len());
                let len = segment.header().len() + segment.payload_len();
                let content = Content::Segment(segment, payload);
                Some(Outgoing { len, offload: Offload::NONE, content })
            }
        }
    }
}

/// A frame that has to arrive.
pub struct Outgoing<'a> {
    /// Bytes of the frame, without a virtio-net header.
    pub len: usize,
    /// What the receiver has to do to it.
    pub offload: Offload,
    content: Content<'a>,
}

enum Content<'a> {
    Pass(&'a Frame<'a>),
    Complete(&'a Frame<'a>, PartialChecksum),
    /// The payload starts at the cursor.
    Segment(Segment<'a>, ReadCursor<'a, 'a>),
}

impl Outgoing<'_> {
    /// Writes the frame, for which there have to be [`Self::len`] bytes of room.
    #[inline]
    pub fn write(self, mut cursor: WriteCursor<'_, '_>) {
        match self.content {
            Content::Pass(frame) => {
                cursor.write(frame.head.into());
                for segment in frame.body {
                    cursor.write(*segment);
                }
            }
            Content::Complete(frame, partial) => complete(frame, partial, cursor),
            Content::Segment(segment, payload) => write_segment(segment, payload, cursor),
        }
    }
}

/// Copies a frame, and puts the sum over the bytes that were written from the checksum's start on
/// into its place.
fn complete(frame: &Frame<'_>, partial: PartialChecksum, mut cursor: WriteCursor<'_, '_>) {
    let start = usize::from(partial.start);
    let mut field = cursor;
    field.skip(start + usize::from(partial.offset));
    let mut source = source(frame);
    each(&mut source, start, |piece| cursor.write(piece));
    let mut sum = Sum::new();
    each(&mut source, frame.len, |piece| cursor.write_summed(piece, &mut sum));
    field.write(field_value(&sum).to_be_bytes()[..].into());
}

/// Copies a segment's headers and its payload, and then puts the checksum into its place.
#[inline]
fn write_segment(
    segment: Segment<'_>,
    mut payload: ReadCursor<'_, '_>,
    mut cursor: WriteCursor<'_, '_>,
) {
    let mut headers = cursor;
    let mut field = cursor;
    cursor.skip(segment.header().len());
    field.skip(segment.checksum_at());
    let mut sum = Sum::new();
    let len = segment.payload_len();
    each(&mut payload, len, |piece| cursor.write_summed(piece, &mut sum));
    headers.write(segment.header().into());
    field.write(segment.checksum(sum)[..].into());
}

/// The whole frame.
fn source<'f>(frame: &Frame<'f>) -> ReadCursor<'f, 'f> {
    ReadCursor::new(frame.head.into(), frame.body)
}

/// Passes on the next `count` bytes, as far as there are any, in pieces that lie together.
#[inline]
fn each<'m, R>(
    source: &mut ReadCursor<'_, 'm>,
    mut count: usize,
    mut piece: impl FnMut(ReadSlice<'m>) -> R,
) {
    loop {
        let next = source.take(count);
        if next.is_empty() {
            return;
        }
        count -= next.len();
        piece(next);
    }
}

/// Copies the bytes that segmentation may look at: the frame's own head, and more where headers are
/// very long. Those are not fetched again either. Returns how many.
fn read_head(frame: &Frame<'_>, head: &mut [u8; MAX_HEADERS]) -> usize {
    let mut at = 0;
    each(&mut source(frame), MAX_HEADERS, |piece| {
        at += piece.copy_to(head.get_mut(at..).unwrap_or_default());
    });
    at
}

#[cfg(test)]
mod tests;
