//! A port whose outside is the host: a TAP interface.
//!
//! Frames carry a virtio-net header, little-endian, so that checksums and segmentations left undone
//! pass in both directions as they are: the kernel finishes what has to be finished.
//!
//! A frame from the kernel is read into a slot of a private buffer, which the burst borrows; a frame
//! to the kernel is written from where it lies, by one `writev`. A frame that is held, because its
//! receiver is full, stays in its slot; when there are too many of them, nothing more is read, and
//! the kernel's own queue fills up behind them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{
    App, Burst, Counters, DropReason, Fault, Frame, Lease, Outcome, Outcomes, Outputs, Poller,
    Selection,
};
use memory::{ReadSlice, WRITE_SLICES_MAX, recycle, write_vectored};
use rustix::io::Errno;
use sys::tun::{Tap, TapError};
use thiserror::Error;
use wire::virtio::{Features, NetHeader};

use crate::backlog::Backlog;
use crate::frame::MAX_FRAME;

/// Frames that are read from the kernel at most in one burst. Fewer than a guest's, since each has
/// to have room for the largest.
const FRAMES: usize = 16;

/// Bytes of buffer for one frame and its header.
const SLOT: usize = NetHeader::SIZE + MAX_FRAME;

/// While the worker polls, an interface that had nothing is asked again after this time, in
/// nanoseconds: asking is a system call.
const READ_INTERVAL: u64 = 5_000;

/// What the kernel may ask of a frame's receiver, in the words of a guest that transmits.
const KERNEL: Features =
    Features::CSUM.union(Features::HOST_TSO4).union(Features::HOST_TSO6).union(Features::HOST_ECN);

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
    fault: Option<TapGone>,
    gone: bool,
    slices: Vec<ReadSlice<'static>>,
    counters: Counters,
}

impl TapPort {
    /// Attaches to the TAP interface `name`, or creates it.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Ok(Self {
            buffer: vec![0; FRAMES * SLOT].into_boxed_slice(),
            frames: Vec::with_capacity(FRAMES),
            free: (0..FRAMES).rev().collect(),
            ..Self::writer(Arc::new(Tap::open(name, NetHeader::SIZE)?))
        })
    }

    /// A part for another worker, which only writes: the kernel's frames come by one queue.
    pub fn part(&self) -> Self {
        Self::writer(self.tap.clone())
    }

    /// Without slots there is nothing to read into.
    fn writer(tap: Arc<Tap>) -> Self {
        Self {
            tap,
            buffer: Box::default(),
            frames: Vec::new(),
            free: Vec::new(),
            backlog: Backlog::default(),
            moved: false,
            next_read: 0,
            fault: None,
            gone: false,
            slices: Vec::new(),
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
    /// Hands one frame to the kernel.
    fn write(&mut self, frame: &Frame<'_>) -> Result<(), DropReason> {
        if frame.body.len() + 2 > WRITE_SLICES_MAX {
            return Err(DropReason::Refused);
        }
        // The kernel takes any offload that a guest may have asked for.
        let header = frame.offload.header(0).to_bytes();
        let mut slices = std::mem::take(&mut self.slices);
        slices.push(header[..].into());
        slices.push(frame.head.into());
        slices.extend_from_slice(frame.body);
        let written = write_vectored(self.tap.as_fd(), &slices);
        self.slices = recycle(slices);
        match written.map_err(|error| Errno::from_io_error(&error)) {
            Ok(_) => Ok(()),
            // The interface is not up, or not there any more: `read` will find that out.
            Err(Some(Errno::IO | Errno::BADFD)) => Err(DropReason::ReceiverDown),
            Err(Some(Errno::AGAIN | Errno::NOBUFS)) => Err(DropReason::ReceiverFull),
            Err(_) => Err(DropReason::Refused),
        }
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
            let header = bytes.first_chunk().map_or(NetHeader::default(), NetHeader::from_bytes);
            let first = burst.segments().len();
            burst.segments().push(bytes.into());
            let pushed = burst.push(first, NetHeader::SIZE, |len| header.offload(len, KERNEL));
            if pushed.is_err() {
                self.counters.drop(DropReason::BadHeader);
            }
            filled.frame = pushed.unwrap_or(None);
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
        for index in selection.iter() {
            let frame = burst.frame(index);
            match self.write(&frame) {
                Ok(()) => self.counters.sent.count(frame.len),
                Err(reason) => self.counters.drop(reason),
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
