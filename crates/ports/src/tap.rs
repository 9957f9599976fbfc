//! A port whose outside is the host: a TAP interface.
//!
//! Frames carry a virtio-net header, little-endian, so that checksums and segmentations left undone
//! pass in both directions as they are: the kernel finishes what has to be finished. How much of
//! that a kernel knows depends on its age, so the port speaks of it as of a guest: what it may ask
//! for when it sends ([`asks`]), and what it takes when it receives ([`takes`]).
//!
//! A frame from the kernel is read into a slot of a private buffer, which the burst borrows; a frame
//! to the kernel is written from where it lies, by one `writev`. Only one that the kernel does not
//! take as it is goes through private memory, where it is segmented. A frame that is held, because
//! its receiver is full, stays in its slot; when there are too many of them, nothing more is read,
//! and the kernel's own queue fills up behind them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{
    App, Burst, Counters, DropReason, Fault, Frame, Lease, Outcome, Outcomes, Outputs, Poller,
    Selection,
};
use memory::{ReadSlice, WRITE_SLICES_MAX, WriteCursor, recycle, write_vectored};
use rustix::io::Errno;
use sys::tun::{Offloads, Tap, TapError};
use thiserror::Error;
use wire::virtio::{Features, NetHeader, Offload, SegmentationKind};

use crate::backlog::Backlog;
use crate::frame::MAX_FRAME;
use crate::offload::Delivery;

/// Frames that are read from the kernel at most in one burst. Fewer than a guest's, since each has
/// to have room for the largest.
const FRAMES: usize = 16;

/// Bytes of buffer for one frame and its header.
const SLOT: usize = NetHeader::SIZE + MAX_FRAME;

/// While the worker polls, an interface that had nothing is asked again after this time, in
/// nanoseconds: asking is a system call.
const READ_INTERVAL: u64 = 5_000;

/// The one `gso_size` that the kernel refuses, as it has a use of its own for it (its
/// `GSO_BY_FRAGS`).
const REFUSED_SIZE: u16 = u16::MAX;

/// Segments of UDP that every kernel takes in one frame (its `UDP_MAX_SEGMENTS`; newer ones take
/// 128).
const UDP_SEGMENTS: usize = 64;

/// Segments that the port makes for the kernel in one breath, beyond the first of each frame: each
/// costs a system call, which any frame does. They are enough for a guest's largest burst in segments
/// of a usual size. Guests that ask for segments of one byte keep the others waiting for no more than
/// this, however many they are.
const SEGMENT_BUDGET: usize = 512;

/// What each step of offloads is called by guests: that transmit, and that receive.
const WORDS: [(Offloads, Features, Features); 4] = [
    (Offloads::Checksum, Features::CSUM, Features::GUEST_CSUM),
    (
        Offloads::Tcp,
        Features::HOST_TSO4.union(Features::HOST_TSO6),
        Features::GUEST_TSO4.union(Features::GUEST_TSO6),
    ),
    (Offloads::TcpEcn, Features::HOST_ECN, Features::GUEST_ECN),
    (Offloads::Udp, Features::HOST_USO, Features::GUEST_USO4.union(Features::GUEST_USO6)),
];

/// What the kernel may ask of a frame's receiver, in the words of a guest that transmits.
pub(crate) fn asks(offloads: Offloads) -> Features {
    let steps = WORDS.iter().filter(|(step, ..)| *step <= offloads);
    steps.fold(Features::NONE, |all, (_, asks, _)| all | *asks)
}

/// What the kernel takes as it is, in the words of a guest that receives.
pub(crate) fn takes(offloads: Offloads) -> Features {
    let steps = WORDS.iter().filter(|(step, ..)| *step <= offloads);
    steps.fold(Features::NONE, |all, (.., takes)| all | *takes)
}

/// Whether the kernel takes a segmentation that it knows also at this size.
pub(crate) fn is_within_limits(offload: &Offload, frame_len: usize) -> bool {
    offload.segmentation.is_none_or(|segmentation| {
        segmentation.size != REFUSED_SIZE
            && (segmentation.kind != SegmentationKind::Udp
                || offload.wire_frames(frame_len) <= UDP_SEGMENTS)
    })
}

/// Why the interface is not there any more.
#[derive(Debug, Error)]
#[error("the interface is gone: {0}")]
pub struct TapGone(io::Error);

/// A frame in the buffer.
struct Filled {
    slot: usize,
    /// Bytes of header and frame.
    len: usize,
    /// Which frame of the current burst it became, if any.
    frame: Option<usize>,
}

/// The port, or its part on one of several workers. One part reads; all write.
pub struct TapPort {
    tap: Arc<Tap>,
    /// What the kernel may ask of a frame's receiver.
    asks: Features,
    /// What the kernel takes as it is.
    takes: Features,
    /// [`FRAMES`] slots, or none in a part that does not read; out on lease while a burst borrows
    /// from it.
    buffer: Box<[u8]>,
    /// The slots that hold a frame, in the order in which they were read.
    frames: Vec<Filled>,
    /// The slots that hold none.
    free: Vec<usize>,
    backlog: Backlog,
    /// A held frame made way.
    moved: bool,
    /// When to read next, while the worker polls.
    next_read: u64,
    /// What is left of [`SEGMENT_BUDGET`] in this breath.
    segments: usize,
    /// The breath in which something was pushed last.
    breath: u32,
    fault: Option<TapGone>,
    gone: bool,
    slices: Vec<ReadSlice<'static>>,
    /// Where a header and a frame are put together that cannot be written from where they lie.
    assembly: Box<[u8]>,
    counters: Counters,
}

impl TapPort {
    /// Attaches to the TAP interface `name`, or creates it.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_with(name, Offloads::ALL)
    }

    /// As [`Self::open`], with no more than these offloads, even if the kernel knows more: as with
    /// an older one.
    pub fn open_with(name: &str, most: Offloads) -> Result<Self, TapError> {
        Ok(Self {
            buffer: vec![0; FRAMES * SLOT].into_boxed_slice(),
            frames: Vec::with_capacity(FRAMES),
            free: (0..FRAMES).rev().collect(),
            ..Self::writer(Arc::new(Tap::open(name, NetHeader::SIZE, most)?))
        })
    }

    /// A part for another worker, which only writes: the kernel's frames come by one queue.
    pub fn part(&self) -> Self {
        Self::writer(self.tap.clone())
    }

    /// Without slots there is nothing to read into.
    fn writer(tap: Arc<Tap>) -> Self {
        let offloads = tap.offloads();
        Self {
            tap,
            asks: asks(offloads),
            takes: takes(offloads),
            buffer: Box::default(),
            frames: Vec::new(),
            free: Vec::new(),
            backlog: Backlog::default(),
            moved: false,
            next_read: 0,
            segments: SEGMENT_BUDGET,
            breath: 0,
            fault: None,
            gone: false,
            slices: Vec::new(),
            assembly: vec![0; SLOT].into_boxed_slice(),
            counters: Counters::default(),
        }
    }

    fn reads(&self) -> bool {
        !self.free.is_empty() || !self.frames.is_empty()
    }

    /// Reads frames into free slots, until there is none of either. Returns how many.
    fn read(&mut self, now: u64) -> usize {
        let before = self.frames.len();
        while let Some(slot) = self.free.pop() {
            let room = self.buffer.get_mut(slot * SLOT..(slot + 1) * SLOT).unwrap_or_default();
            match rustix::io::read(&*self.tap, room) {
                Ok(len) if len < NetHeader::SIZE + wire::ethernet::HEADER_SIZE => {
                    self.counters.drop(DropReason::TooShort);
                    self.free.push(slot);
                }
                Ok(len) => {
                    self.counters.received.count(len - NetHeader::SIZE);
                    self.frames.push(Filled { slot, len, frame: None });
                }
                Err(error) => {
                    self.free.push(slot);
                    self.next_read = now + READ_INTERVAL;
                    if !matches!(error, Errno::AGAIN | Errno::INTR) {
                        self.gone = true;
                        self.fault = Some(TapGone(error.into()));
                    }
                    break;
                }
            }
        }
        self.frames.len() - before
    }
}

impl TapPort {
    /// Hands one frame to the kernel, in whatever form it takes it.
    fn send(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let within = is_within_limits(&frame.offload, frame.len);
        let takes = if within { self.takes } else { Features::NONE };
        let mut delivery = Delivery::new(*frame, takes)?;
        if delivery.passes() && frame.body.len() + 2 <= WRITE_SLICES_MAX {
            self.write_in_place(frame)?;
            self.counters.sent.count(frame.len);
            return Ok(());
        }
        let left = self.segments.checked_sub(delivery.remaining().saturating_sub(1));
        self.segments = left.ok_or(DropReason::TooManySegments)?;
        while let Some(outgoing) = delivery.next() {
            let len = outgoing.len;
            let (header, room) = self.assembly.split_at_mut(NetHeader::SIZE);
            header.copy_from_slice(&outgoing.offload.header(0).to_bytes());
            outgoing.write(WriteCursor::new(&[room.into()]));
            let assembled = self.assembly.get(..NetHeader::SIZE + len).unwrap_or_default();
            rustix::io::write(&self.tap, assembled).map_err(refusal)?;
            self.counters.sent.count(len);
        }
        Ok(())
    }

    /// Writes a frame as it is, from where it lies.
    fn write_in_place(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let header = frame.offload.header(0).to_bytes();
        let mut slices = std::mem::take(&mut self.slices);
        slices.push(header[..].into());
        slices.push(frame.head.into());
        slices.extend_from_slice(frame.body);
        let written = write_vectored(self.tap.as_fd(), &slices);
        self.slices = recycle(slices);
        let error = |error| Errno::from_io_error(&error).map_or(DropReason::Refused, refusal);
        written.map(|_| ()).map_err(error)
    }
}

/// Why the kernel did not take a frame.
fn refusal(error: Errno) -> DropReason {
    match error {
        // The interface is not up, or not there any more: `read` will find that out.
        Errno::IO | Errno::BADFD => DropReason::ReceiverDown,
        Errno::AGAIN | Errno::NOBUFS => DropReason::ReceiverFull,
        _ => DropReason::Refused,
    }
}

impl App for TapPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let plan = self.backlog.plan(self.frames.len(), FRAMES, burst.now());
        burst.limit_held(plan.hold);
        let listen = plan.listen && !self.gone && burst.now() >= self.next_read;
        let new = if listen { self.read(burst.now()) } else { 0 };
        let busy = std::mem::take(&mut self.moved) || new > 0 || self.fault.is_some();
        if self.frames.is_empty() {
            return busy;
        }
        let buffer = lease.private(std::mem::take(&mut self.buffer));
        for filled in &mut self.frames {
            let start = filled.slot * SLOT;
            let bytes = buffer.get(start..start + filled.len).unwrap_or_default();
            let first = burst.segments().len();
            burst.segments().push(bytes.into());
            let pushed = burst.push(first..first + 1, NetHeader::SIZE, |header, len| {
                Offload::read(header, len, self.asks)
            });
            filled.frame = pushed.unwrap_or_else(|fault| {
                self.counters.drop(fault.into());
                None
            });
        }
        busy
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let Lease::Private(buffer) = lease else { return };
        self.buffer = buffer;
        let before = self.frames.len();
        self.frames.retain(|filled| {
            let outcome = filled.frame.map_or(Outcome::Done, |frame| outcomes.get(frame));
            if outcome == Outcome::Done {
                self.free.push(filled.slot);
            }
            outcome == Outcome::Held
        });
        self.moved = self.frames.len() < before;
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        if self.breath != burst.breath() {
            self.breath = burst.breath();
            self.segments = SEGMENT_BUDGET;
        }
        for index in selection.iter() {
            let frame = burst.frame(index);
            if let Err(reason) = self.send(&frame) {
                self.counters.drop(reason);
            }
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.fault.take().map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn arm(&mut self) -> bool {
        // Each frame is an edge on the descriptor, and one that comes after the last read ends the
        // next sleep at once. But slots that became free are for frames that came before.
        self.moved
    }

    fn disarm(&mut self) {
        self.next_read = 0;
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.backlog.deadline().filter(|deadline| *deadline > now)
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        if self.reads() { poller.watch(&*self.tap) } else { Ok(()) }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_takes_what_it_may_ask_for() {
        assert_eq!((asks(Offloads::None), takes(Offloads::None)), (Features::NONE, Features::NONE));
        assert_eq!(asks(Offloads::Checksum), Features::CSUM);
        assert_eq!(takes(Offloads::Checksum), Features::GUEST_CSUM);
        assert!(asks(Offloads::TcpEcn).contains(asks(Offloads::Tcp) | Features::HOST_ECN));
        assert!(!takes(Offloads::Tcp).contains(Features::GUEST_ECN));
        assert!(!asks(Offloads::TcpEcn).contains(Features::HOST_USO));
        // All that a guest is offered.
        let offered = crate::vhost_user::FEATURES;
        assert!(offered.contains(asks(Offloads::ALL) | takes(Offloads::ALL)));
        for step in [Offloads::Checksum, Offloads::Tcp, Offloads::TcpEcn, Offloads::Udp] {
            assert_eq!(asks(step).missing_dependencies(), Features::NONE);
            assert_eq!(takes(step).missing_dependencies(), Features::NONE);
        }
    }
}
