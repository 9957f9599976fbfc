//! A port whose outside is the host: a TAP interface.
//!
//! Frames carry a virtio-net header, little-endian, so that checksums and segmentations left undone
//! pass in both directions as they are: the kernel finishes what has to be finished.
//!
//! A frame from the kernel is read into a private buffer, which the burst borrows; a frame to the
//! kernel is written from where it lies, by one `writev`.

use std::io;
use std::os::fd::AsFd;

use engine::{
    App, Burst, Counters, DropReason, Fault, Frame, Lease, Outcomes, Outputs, Poller, Selection,
};
use memory::{ReadSlice, WRITE_SLICES_MAX, recycle, write_vectored};
use rustix::io::Errno;
use sys::tun::{Tap, TapError};
use thiserror::Error;
use wire::virtio::{Features, NetHeader};

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

/// The port.
pub struct TapPort {
    tap: Tap,
    /// [`FRAMES`] slots; out on lease while a burst borrows from it.
    buffer: Box<[u8]>,
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
            tap: Tap::open(name, NetHeader::SIZE)?,
            buffer: vec![0; FRAMES * SLOT].into_boxed_slice(),
            next_read: 0,
            fault: None,
            gone: false,
            slices: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// Reads frames into the buffer. Returns how many, and their lengths.
    fn read(&mut self, now: u64) -> (usize, [usize; FRAMES]) {
        let mut lengths = [0; FRAMES];
        let mut count = 0;
        for (slot, length) in self.buffer.chunks_exact_mut(SLOT).zip(&mut lengths) {
            match rustix::io::read(&self.tap, slot) {
                Ok(bytes) => {
                    *length = bytes;
                    count += 1;
                }
                Err(Errno::AGAIN) => {
                    self.next_read = now + READ_INTERVAL;
                    break;
                }
                Err(Errno::INTR) => break,
                Err(error) => {
                    self.gone = true;
                    self.fault = Some(TapGone(error.into()));
                    break;
                }
            }
        }
        (count, lengths)
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
            // The interface is not up.
            Err(Some(Errno::IO)) => Err(DropReason::ReceiverDown),
            Err(Some(Errno::AGAIN | Errno::NOBUFS)) => Err(DropReason::ReceiverFull),
            Err(_) => Err(DropReason::Refused),
        }
    }
}

impl App for TapPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        if self.gone || burst.now() < self.next_read {
            return false;
        }
        let (count, lengths) = self.read(burst.now());
        if count == 0 {
            return self.gone;
        }
        let buffer = lease.private(std::mem::take(&mut self.buffer));
        for (slot, length) in buffer.chunks_exact(SLOT).zip(lengths).take(count) {
            let frame_len = length.saturating_sub(NetHeader::SIZE);
            if frame_len < wire::ethernet::HEADER_SIZE {
                self.counters.drop(DropReason::TooShort);
                continue;
            }
            let header = slot.first_chunk().map_or(NetHeader::default(), NetHeader::from_bytes);
            let start = burst.segments().len();
            burst.segments().push(slot.get(..length).unwrap_or_default().into());
            match burst.push(start, NetHeader::SIZE, |len| header.offload(len, KERNEL)) {
                Ok(_) => self.counters.received.count(frame_len),
                Err(_) => self.counters.drop(DropReason::BadHeader),
            }
        }
        true
    }

    fn reclaim(&mut self, _: Outcomes<'_>, lease: Lease) {
        if let Lease::Private(buffer) = lease {
            self.buffer = buffer;
        }
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

    // Nothing to arm: each frame is an edge on the descriptor, and one that comes after the last
    // read ends the next sleep at once.

    fn disarm(&mut self) {
        self.next_read = 0;
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.watch(&self.tap)
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
