//! A port whose outside is the host: a TAP interface.
//!
//! Frames carry a virtio-net header, little-endian, so that checksums and segmentations left undone
//! pass in both directions as they are: the kernel finishes what has to be finished. How much of
//! that a kernel knows depends on its age, so the port speaks of it as of a guest: what it may ask
//! for when it sends ([`asks`]), and what it takes when it receives ([`takes`]).
//!
//! A frame from the kernel is read into a slot of a private buffer, which the burst borrows (`reader`); frames
//! to the kernel are written all that a burst has by one system call (`writer`), large ones from where
//! they lie. One that the kernel does not take as it is is segmented in private memory, and written by
//! itself. A frame that is held, because
//! its receiver is full, stays in its slot; when there are too many of them, nothing more is read,
//! and the kernel's own queue fills up behind them.
//!
//! An interface with several queues has them read by several workers. An interface that is deleted
//! takes its queues with it: the port says so, and goes without until control [attaches](TapPort::attach)
//! others.

pub(crate) mod queues;
mod reader;
mod writer;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{
    App, Burst, Counters, DropReason, Fault, Frame, Lease, Numbers, Outcome, Outcomes, Outputs,
    Poller, Selection,
};
use memory::{WRITE_SLICES_MAX, WriteCursor};
use rustix::io::Errno;
use sys::tun::{Offloads, Queue};
use thiserror::Error;
use wire::virtio::{Features, NetHeader, Offload, SegmentationKind};

use crate::backlog::Backlog;
use crate::frame::{MAX_FRAME, is_over};
use crate::offload::Delivery;

pub use queues::Queues;
use queues::{Share, Together};
use writer::Writer;

/// Frames that are read from the kernel at most in one burst. Fewer than a guest's, since each has
/// to have room for the largest.
const FRAMES: usize = 16;

const _: () = assert!(FRAMES <= u16::BITS as usize);

/// Bytes of buffer for one frame and its header.
const SLOT: usize = NetHeader::SIZE + MAX_FRAME;

/// While the worker polls, an interface that had nothing is asked again after this time, in
/// nanoseconds: asking is a system call.
pub(crate) const READ_INTERVAL: u64 = 5_000;

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
pub(crate) const SEGMENT_BUDGET: usize = 512;

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
pub struct TapGone(pub(crate) io::Error);

/// What a part had of an interface: whoever drops the last of them closes it.
pub struct Detached {
    _together: Together,
    _queues: Arc<Queues>,
}

/// A frame in the buffer.
struct Filled {
    slot: usize,
    /// Bytes of header and frame.
    len: usize,
    /// Which frame of the current burst it became, if any.
    frame: Option<usize>,
}

/// The part of a port that one of several workers has.
pub struct TapPort {
    /// Of which worker, and how many there are.
    number: usize,
    workers: usize,
    /// What it has of the interface's queues, while there is an interface.
    share: Option<Share>,
    /// Whether the interface is up, for all that control knows.
    is_up: bool,
    /// The interface's MTU, in bytes.
    mtu: usize,
    /// What the kernel may ask of a frame's receiver.
    asks: Features,
    /// What the kernel takes as it is.
    takes: Features,
    /// [`FRAMES`] slots, or none in a part that has had nothing to read; out on lease while a burst
    /// borrows from it.
    buffer: Box<[u8]>,
    /// The slots that hold a frame, in the order in which they were read.
    frames: Vec<Filled>,
    /// The slots that hold none, a bit for each.
    free: u16,
    backlog: Backlog,
    /// A held frame made way.
    moved: bool,
    /// What is left of [`SEGMENT_BUDGET`] in this breath.
    segments: usize,
    /// The breath in which something was pushed last.
    breath: u32,
    fault: Option<TapGone>,
    together: Together,
    writer: Writer,
    /// Where a header and a frame are put together that cannot be written from where they lie.
    assembly: Box<[u8]>,
    counters: Counters,
}

impl TapPort {
    /// A port with these queues of one interface, in as many parts as there are workers. Queue n is read
    /// by worker n modulo the number of workers. All workers write: one that reads no queue, to
    /// another's.
    ///
    /// Without queues it waits for [`Self::attach`].
    pub fn parts(queues: Vec<Queue>, workers: usize) -> Vec<Self> {
        let queues = Queues::new(queues);
        let part = |number| {
            let mut part = Self::new(number, workers);
            part.take(Share::new(queues.clone(), number, workers));
            part
        };
        (0..workers).map(part).collect()
    }

    fn new(number: usize, workers: usize) -> Self {
        Self {
            number,
            workers,
            share: None,
            is_up: true,
            mtu: usize::MAX,
            asks: Features::NONE,
            takes: Features::NONE,
            buffer: Box::default(),
            frames: Vec::new(),
            free: 0,
            backlog: Backlog::default(),
            moved: false,
            segments: SEGMENT_BUDGET,
            breath: 0,
            fault: None,
            together: None,
            writer: Writer::new(),
            assembly: vec![0; SLOT].into_boxed_slice(),
            counters: Counters::default(),
        }
    }

    /// Gives this part its share of these queues, which are those of an interface that came back; each
    /// part has to be given the same. Returns those it had before, to be dropped by control.
    ///
    /// When it fails, the part has those that it had before.
    pub fn attach(&mut self, queues: Arc<Queues>, poller: &Poller) -> io::Result<Option<Detached>> {
        let mut share = Share::new(queues, self.number, self.workers);
        share.as_mut().map_or(Ok(()), |share| share.watch(poller))?;
        // Not before that has gone well: who drops them here would close them on the worker.
        let before = self.detach();
        self.take(share);
        Ok(before)
    }

    /// Takes this part's queues away: frames to it are then counted as [`DropReason::ReceiverDown`].
    /// Returns what is to be dropped by control.
    pub fn detach(&mut self) -> Option<Detached> {
        let share = self.share.take()?;
        self.fault = None;
        Some(Detached { _together: self.together.take(), _queues: share.all.clone() })
    }

    /// Says whether the interface is up. While it is down, frames to it are not even offered to the
    /// kernel, and counted as [`DropReason::ReceiverDown`].
    pub fn set_link(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    /// Sets the interface's MTU, in bytes of a frame's payload. Longer frames to it are dropped and counted
    /// as [`DropReason::OverMtu`]; tags do not count. Of one that is yet to be segmented its segments do: a frame's fate does not
    /// depend on who segments it.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = usize::try_from(mtu).unwrap_or(usize::MAX);
    }

    /// Whether the interface is still there, in whichever network namespace.
    pub fn is_attached(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.all.first().is_some_and(Queue::is_attached))
    }

    /// Why each frame to the interface takes a system call, if it does.
    pub fn one_by_one(&self) -> Option<&io::Error> {
        self.together.as_ref()?.as_ref().err()
    }

    /// Goes on counting where another port has stopped, whose place it takes.
    pub fn count_on(&mut self, from: &Counters) {
        self.counters = from.clone();
    }

    /// Takes what it has of the queues from now on.
    fn take(&mut self, share: Option<Share>) {
        if let Some(share) = &share {
            let offloads = share.offloads();
            (self.asks, self.takes) = (asks(offloads), takes(offloads));
            self.together = Some(share.all.together());
            if !share.own.is_empty() && self.buffer.is_empty() {
                self.buffer = vec![0; FRAMES * SLOT].into_boxed_slice();
                self.frames.reserve(FRAMES);
                self.free = u16::MAX >> (u16::BITS as usize - FRAMES);
            }
        }
        self.share = share;
    }

    /// Reads frames into free slots, until there is none of either. Returns how many.
    fn read(&mut self, now: u64) -> usize {
        let Self { share, buffer, frames, free, together, counters, .. } = self;
        let (before, mut gone) = (frames.len(), None);
        let Some(Share { all, own, is_gone: false, .. }) = share else { return 0 };
        if own.len() > 1 {
            own.rotate_left(1);
        }
        for own in own.iter_mut().filter(|own| now >= own.next_read) {
            let now_free = *free;
            if now_free == 0 {
                break;
            }
            let is_free = |slot: &usize| now_free & (1 << slot) != 0;
            let rooms = buffer.chunks_exact_mut(SLOT).enumerate();
            let rooms = rooms.filter(|(slot, _)| is_free(slot)).map(|(_, room)| room);
            let mut slots = (0..FRAMES).filter(is_free);
            let queue = (own.place(), own.queue(all).as_fd());
            let count = now_free.count_ones() as usize;
            let is_empty = reader::read(together, queue, &mut own.full, count, rooms, |result| {
                let slot = slots.next().unwrap_or_default();
                match result {
                    Ok(len) if len < NetHeader::SIZE + wire::ethernet::HEADER_SIZE => {
                        counters.drop(DropReason::TooShort);
                    }
                    Ok(len) => {
                        counters.received.count(len - NetHeader::SIZE);
                        frames.push(Filled { slot, len, frame: None });
                        *free &= !(1 << slot);
                    }
                    // There is nothing more; or the interface is on its way out.
                    Err(Errno::AGAIN | Errno::IO | Errno::INTR) => {}
                    Err(error @ Errno::BADFD) => gone = Some(error),
                    // It is about one frame, for which the kernel has no header.
                    Err(_) => counters.drop(DropReason::Refused),
                }
            });
            if is_empty {
                own.next_read = now + READ_INTERVAL;
            } else if *free != 0 {
                // There may be more, of which we would not be told again.
                self.moved = true;
            }
        }
        if let Some(error) = gone {
            self.go(error);
        }
        self.frames.len() - before
    }

    /// The interface is gone.
    #[cold]
    fn go(&mut self, error: Errno) {
        if let Some(share) = &mut self.share
            && share.is_first_to_go()
        {
            self.fault = Some(TapGone(error.into()));
        }
    }
}

impl TapPort {
    /// Sends one frame: notes it to be written with others, or has it segmented.
    fn send(&mut self, burst: &mut Burst<'_>, index: usize) -> Result<(), DropReason> {
        let Some(share) = self.share.as_ref().filter(|share| self.is_up && !share.is_gone) else {
            return Err(DropReason::ReceiverDown);
        };
        let Frame { head, body, len, offload } = burst.frame(index);
        let within = is_within_limits(&offload, len);
        let takes = if within { self.takes } else { Features::NONE };
        let passes = offload.is_none() || takes.contains(offload.needs());
        if !passes || body.len() >= WRITE_SLICES_MAX {
            // Those before it go before it.
            self.write(burst);
            return self.assemble(&burst.frame(index), takes);
        }
        if is_over(self.mtu, offload.wire_len_of(head, len), head) {
            return Err(DropReason::OverMtu);
        }
        let queue = share.place(head);
        let header = offload.header(0).to_bytes();
        burst.outline(index, header.len()).header.copy_from_slice(&header);
        self.writer.note(index, queue);
        Ok(())
    }

    /// Hands the kernel what was noted.
    fn write(&mut self, burst: &Burst<'_>) {
        let Some(share) = &self.share else { return };
        let (counters, mut gone) = (&mut self.counters, None);
        self.writer.write(&mut self.together, &share.all, burst, |len, result| match result {
            Ok(()) => counters.sent.count(len),
            Err(error) => {
                counters.drop(refusal(error));
                gone = gone.or(Some(error).filter(|error| *error == Errno::BADFD));
            }
        });
        if let Some(error) = gone {
            self.go(error);
        }
    }

    /// Hands the kernel a frame that it does not take as it is, in whatever form it takes it.
    fn assemble(&mut self, frame: &Frame<'_>, takes: Features) -> Result<(), DropReason> {
        let share = self.share.as_ref().ok_or(DropReason::ReceiverDown)?;
        let mut delivery = Delivery::new(*frame, takes)?;
        if is_over(self.mtu, delivery.wire_len(), frame.head) {
            return Err(DropReason::OverMtu);
        }
        let left = self.segments.checked_sub(delivery.remaining().saturating_sub(1));
        self.segments = left.ok_or(DropReason::TooManySegments)?;
        let queue = share.target(frame.head);
        while let Some(outgoing) = delivery.next() {
            let len = outgoing.len;
            let (header, room) = self.assembly.split_at_mut(NetHeader::SIZE);
            header.copy_from_slice(&outgoing.offload.header(0).to_bytes());
            outgoing.write(WriteCursor::new(&[room.into()]));
            let assembled = self.assembly.get(..NetHeader::SIZE + len).unwrap_or_default();
            if let Err(error) = rustix::io::write(queue, assembled) {
                if error == Errno::BADFD {
                    self.go(error);
                }
                return Err(refusal(error));
            }
            self.counters.sent.count(len);
        }
        Ok(())
    }
}

/// Why the kernel did not take a frame.
pub(crate) fn refusal(error: Errno) -> DropReason {
    match error {
        // The interface is not up, or not there any more.
        Errno::IO | Errno::BADFD => DropReason::ReceiverDown,
        Errno::AGAIN | Errno::NOBUFS => DropReason::ReceiverFull,
        _ => DropReason::Refused,
    }
}

impl App for TapPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let plan = self.backlog.plan(self.frames.len(), FRAMES, burst.now());
        burst.limit_held(plan.hold);
        let new = if plan.listen { self.read(burst.now()) } else { 0 };
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
                self.free |= 1 << filled.slot;
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
            if let Err(reason) = self.send(burst, index) {
                self.counters.drop(reason);
            }
        }
        self.write(burst);
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
        let own = self.share.iter_mut().flat_map(|share| &mut share.own);
        own.for_each(|own| own.next_read = 0);
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.backlog.deadline().filter(|deadline| *deadline > now)
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        self.share.as_mut().map_or(Ok(()), |share| share.watch(poller))
    }

    fn is_up(&self) -> bool {
        self.is_up && self.share.as_ref().is_some_and(|share| !share.is_gone)
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        numbers.own("held", "frames", self.frames.len() as u64);
    }

    /// What is held goes nowhere.
    fn stop(&mut self) {
        self.counters[DropReason::Stopped] += self.frames.len() as u64;
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
