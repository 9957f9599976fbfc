//! Frames on their way into the queues of an interface: those of a burst by one system call, where
//! the kernel has io_uring for us, and by one each where it has not.
//!
//! Header and private head lie together in the burst, and a small frame is all in there. One that is
//! not much larger is put together first: to tell the kernel of a second piece costs more than that.
//! Of a large one the rest is taken from its sender's memory. All of them are written before the burst
//! goes on.

use std::ops::Range;
use std::os::fd::AsFd;

use engine::{BURST, Burst, Framed};
use memory::{ReadSlice, SliceList, write_vectored};
use rustix::io::Errno;
use sys::uring::DEPTH;
use wire::virtio::NetHeader;

use super::queues::{Queues, Together};

const _: () = assert!(BURST <= DEPTH);

/// Bytes of header and frame up to which a frame in pieces is put together: what a packet of a usual
/// size has. (Measured: from some 4 KiB on it costs more than it saves.)
const SLOT: usize = 2048;

/// Writes from which on they are submitted together. (Measured: it is as fast with three, and slower
/// with fewer.)
const TOGETHER: usize = 4;

/// A frame that is to be written.
struct Noted {
    /// Which of the burst's frames.
    frame: usize,
    /// Which of the interface's queues.
    queue: usize,
    /// Where its pieces are among all of them.
    slices: Range<usize>,
    /// Bytes of it that are put together in its slot, if it is.
    copied: usize,
}

/// Writes frames.
pub(crate) struct Writer {
    noted: Vec<Noted>,
    /// One for each frame of a burst.
    slots: Box<[[u8; SLOT]]>,
    slices: SliceList<ReadSlice<'static>>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            noted: Vec::with_capacity(BURST),
            slots: vec![[0; SLOT]; BURST].into_boxed_slice(),
            slices: SliceList::default(),
        }
    }

    /// Takes note of a frame of the burst, which is behind its header there, and of the queue that it is
    /// to be written to. The others of the burst may be noted too, and then all have to be
    /// [written](Self::write).
    pub(crate) fn note(&mut self, frame: usize, queue: usize) {
        self.noted.push(Noted { frame, queue, slices: 0..0, copied: 0 });
    }

    /// Writes what was noted, in that order. Says of each what its length is and why it failed, if it
    /// did.
    pub(crate) fn write(
        &mut self,
        together: &mut Together,
        queues: &Queues,
        burst: &Burst<'_>,
        mut done: impl FnMut(usize, Result<(), Errno>),
    ) {
        if self.noted.is_empty() {
            return;
        }
        for (noted, slot) in self.noted.iter_mut().zip(&mut self.slots) {
            let framed = burst.framed(noted.frame, NetHeader::SIZE);
            if !framed.body.is_empty() && NetHeader::SIZE + framed.len <= SLOT {
                noted.copied = put_together(&framed, slot);
            }
        }
        let slices = self.slices.lend();
        for (noted, slot) in self.noted.iter_mut().zip(&self.slots) {
            let start = slices.len();
            if noted.copied > 0 {
                slices.push(slot.get(..noted.copied).unwrap_or_default().into());
            } else {
                let framed = burst.framed(noted.frame, NetHeader::SIZE);
                slices.push(framed.front.into());
                slices.extend_from_slice(framed.body);
            }
            noted.slices = start..slices.len();
        }
        let pieces = |noted: &Noted| slices.get(noted.slices.clone()).unwrap_or_default();
        let len = |noted: &Noted| burst.framed(noted.frame, 0).len;
        let mut written = 0;
        if let Some(Ok(uring)) = together
            && self.noted.len() >= TOGETHER
        {
            let writes = self.noted.iter().map(|noted| (noted.queue, pieces(noted)));
            for result in uring.write(writes) {
                if let Some(noted) = self.noted.get(written) {
                    done(len(noted), result.map(drop));
                }
                written += 1;
            }
            if written < self.noted.len() {
                *together = Some(Err(Errno::NOSYS.into()));
            }
        }
        for noted in self.noted.get(written..).unwrap_or_default() {
            let result = write_vectored(queues.get(noted.queue).as_fd(), pieces(noted));
            let failed = |error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
            done(len(noted), result.map(drop).map_err(failed));
        }
        self.noted.clear();
    }
}

/// Copies a frame and its header, as far as there is room. Returns how many bytes.
fn put_together(framed: &Framed<'_>, slot: &mut [u8]) -> usize {
    let mut copied = ReadSlice::from(framed.front).copy_to(slot);
    for piece in framed.body {
        copied += piece.copy_to(slot.get_mut(copied..).unwrap_or_default());
    }
    copied
}
