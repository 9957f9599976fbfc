//! The receive rings of one worker: frames from the host.
//!
//! A frame fills one buffer or several, which the kernel uses at once (virtio 1.3, 5.1.6.4). The list of
//! buffers that frames are in is written anew after each burst, with those of frames that are held.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use engine::{BURST, Burst, Counters, DropReason, Lease, Outcome, Outcomes};
use memory::{GuestAddress, GuestMemory};
use virtqueue::{Buffer, Form, Violation};
use wire::virtio::{Features, NetHeader, Offload};

use super::VhostNetFault;
use super::rings::Ring;
use crate::backlog::Backlog;
use crate::frame::{BYTE_BUDGET, MAX_FRAME};
use crate::lent::Lent;

/// Buffers in a ring: four bursts of small frames, and one of the largest.
pub(super) const RING: u16 = 256;
const _: () = assert!(RING as usize >= 4 * BURST);

/// Bytes of a buffer: what a frame takes is a descriptor for each, for the kernel's thread as well as for us,
/// so that the largest fill four. An odd number of cache lines: with an even one the headers of all frames would
/// share a few places of the cache.
pub(super) const BUFFER: u32 = 257 * 64;
const _: () = assert!(NetHeader::SIZE + MAX_FRAME <= 4 * BUFFER as usize);

/// A frame in the buffers.
struct Filled {
    /// Where its ring is.
    place: usize,
    /// How many buffers it fills.
    buffers: usize,
    /// Which frame of the current burst it became, if any.
    frame: Option<usize>,
}

/// A buffer that is ours for the moment.
#[derive(Clone, Copy)]
struct Used {
    buffer: u16,
    len: u16,
}

/// The receive ring of a pair.
struct Place {
    pair: usize,
    ring: Ring,
}

impl Place {
    fn address(&self, buffer: u16) -> GuestAddress {
        GuestAddress(self.ring.buffers.0 + u64::from(buffer) * u64::from(BUFFER))
    }

    /// Gives a buffer to the kernel.
    fn post(&mut self, buffer: u16) {
        let address = self.address(buffer);
        let chain = [Buffer { address, len: BUFFER, writable: true }];
        // There are as many buffers as descriptors, and this one is free.
        let posted = self.ring.queue.add(&chain, Form::Direct, buffer.into());
        debug_assert!(posted.is_ok());
    }

    /// Takes the next buffer, which has at least so many bytes in it.
    fn take(&mut self, least: usize) -> Result<Option<Used>, VhostNetFault> {
        let pair = self.pair;
        let ring = |violation: Violation| VhostNetFault::Ring { kind: "receive", pair, violation };
        let Some(used) = self.ring.queue.reap().map_err(ring)? else { return Ok(None) };
        let written = used.written;
        if written > BUFFER || (written as usize) < least {
            return Err(VhostNetFault::Length { pair, written });
        }
        // Both fit: a token is the number of a buffer.
        Ok(Some(Used { buffer: used.token as u16, len: written as u16 }))
    }
}

/// The receive rings of one worker's pairs, and what came by them.
pub(super) struct Receive {
    lent: Lent,
    /// What the kernel may ask of a frame's receiver.
    asks: Features,
    places: Vec<Place>,
    /// The place that is asked first, if there are so many.
    turn: usize,
    frames: Vec<Filled>,
    /// Those of the frames, in their order.
    used: Vec<Used>,
    backlog: Backlog,
    /// New frames were looked for in the last pull.
    listened: bool,
    /// A held frame made way.
    moved: bool,
}

impl Receive {
    /// No rings yet.
    pub(super) fn new(memory: Arc<GuestMemory>, asks: Features) -> Self {
        Self {
            lent: Lent::new(memory),
            asks,
            places: Vec::new(),
            turn: 0,
            frames: Vec::with_capacity(BURST),
            used: Vec::new(),
            backlog: Backlog::default(),
            listened: true,
            moved: false,
        }
    }

    /// One more ring, all of whose buffers are posted.
    pub(super) fn add(&mut self, pair: usize, ring: Ring) {
        let mut place = Place { pair, ring };
        (0..RING).for_each(|buffer| place.post(buffer));
        place.ring.publish();
        self.places.push(place);
        // All buffers of all rings may be used at once.
        self.used.reserve(usize::from(RING) * self.places.len());
    }

    /// Takes frames into the burst: held ones first, then new ones. Returns whether there was anything to
    /// do.
    pub(super) fn pull<'b>(
        &mut self,
        lease: &'b mut Lease,
        burst: &mut Burst<'b>,
        counters: &mut Counters,
    ) -> Result<bool, VhostNetFault> {
        let plan = self.backlog.plan(self.frames.len(), BURST, burst.now());
        burst.limit_held(plan.hold);
        self.listened = plan.listen;
        let before = self.frames.len();
        if plan.listen {
            self.take_new(counters)?;
        }
        let busy = std::mem::take(&mut self.moved) || self.frames.len() > before;
        if self.frames.is_empty() {
            return Ok(busy);
        }
        let mut translator = lease.guest(self.lent.lend()).translator();
        let Self { places, frames, used, asks, .. } = self;
        let mut rest = used.as_slice();
        for filled in frames {
            let buffers;
            (buffers, rest) = rest.split_at(filled.buffers.min(rest.len()));
            let Some(place) = places.get(filled.place) else { continue };
            let first = burst.segments().len();
            for used in buffers {
                let address = place.address(used.buffer);
                // An empty one is none.
                burst.segments().extend(translator.read_whole(address, used.len.into()));
            }
            let segments = first..burst.segments().len();
            let pushed = burst.push(segments, NetHeader::SIZE, |header, len| {
                if len > MAX_FRAME {
                    return Err(DropReason::TooLong);
                }
                if len < wire::ethernet::HEADER_SIZE {
                    return Err(DropReason::TooShort);
                }
                Ok(Offload::read(header, len, *asks)?)
            });
            filled.frame = pushed.unwrap_or_else(|reason| {
                counters.drop(reason);
                None
            });
        }
        Ok(busy)
    }

    /// Takes used buffers, by the frame, as many as the burst has room for.
    fn take_new(&mut self, counters: &mut Counters) -> Result<(), VhostNetFault> {
        let count = self.places.len();
        let before = self.frames.len();
        let mut bytes = 0;
        let first = self.turn % count.max(1);
        for place in (first..count).chain(0..first) {
            let is_first = self.frames.len() == before;
            while self.frames.len() < BURST && bytes < BYTE_BUDGET {
                let Some(len) = self.take_frame(place)? else { break };
                counters.received.count(len.saturating_sub(NetHeader::SIZE));
                bytes += len as u64;
            }
            // Behind the first one that had something: a ring gets no turns of idle ones before it.
            if is_first && self.frames.len() > before {
                self.turn = place + 1;
            }
        }
        Ok(())
    }

    /// Takes one frame, and returns its bytes with its header.
    fn take_frame(&mut self, at: usize) -> Result<Option<usize>, VhostNetFault> {
        let Some(place) = self.places.get_mut(at) else { return Ok(None) };
        let Some(first) = place.take(NetHeader::SIZE)? else { return Ok(None) };
        // The header, once: what the frame is judged by is copied later, and has no number of buffers.
        let mut header = [0; NetHeader::SIZE];
        let slice =
            self.lent.memory.translator().read_whole(place.address(first.buffer), first.len.into());
        slice.map(|slice| slice.copy_to(&mut header));
        let num_buffers = NetHeader::from_bytes(&header).num_buffers;
        let pair = place.pair;
        let merge = |found| VhostNetFault::Merge { pair, num_buffers, found };
        if num_buffers == 0 {
            return Err(merge(1));
        }
        self.used.push(first);
        let mut len = usize::from(first.len);
        for found in 1..num_buffers {
            let Some(next) = place.take(0)? else { return Err(merge(found)) };
            len += usize::from(next.len);
            self.used.push(next);
        }
        let buffers = num_buffers.into();
        self.frames.push(Filled { place: at, buffers, frame: None });
        Ok(Some(len))
    }

    /// Posts the buffers of frames that were not held.
    pub(super) fn reclaim(&mut self, outcomes: &Outcomes<'_>, memory: Arc<GuestMemory>) {
        self.lent.spare = Some(memory);
        let Self { places, frames, used, .. } = self;
        let before = frames.len();
        let (mut start, mut kept) = (0, 0);
        frames.retain_mut(|filled| {
            let end = (start + filled.buffers).min(used.len());
            let outcome = filled.frame.take().map_or(Outcome::Done, |frame| outcomes.get(frame));
            let is_held = outcome == Outcome::Held;
            if is_held {
                used.copy_within(start..end, kept);
                kept += end - start;
            } else if let Some(place) = places.get_mut(filled.place) {
                let buffers = used.get(start..end).unwrap_or_default();
                buffers.iter().for_each(|used| place.post(used.buffer));
            }
            start = end;
            is_held
        });
        used.truncate(kept);
        self.moved = frames.len() < before;
    }

    /// Shows the kernel the buffers that were posted.
    pub(super) fn publish(&mut self) {
        self.places.iter_mut().for_each(|place| place.ring.publish());
    }

    /// Asks for calls. True when there is something to do already.
    pub(super) fn arm(&mut self) -> bool {
        let mut is_used = false;
        for place in &mut self.places {
            is_used |= place.ring.queue.enable_calls();
        }
        // What came while nobody listens waits for the deadline, or for room at a receiver.
        self.moved || is_used && self.listened
    }

    /// No calls are wanted.
    pub(super) fn disarm(&mut self) {
        self.places.iter_mut().for_each(|place| place.ring.queue.disable_calls());
    }

    /// When what waits is to be looked at again.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.backlog.deadline()
    }

    /// Frames that are held.
    pub(super) fn held(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Buffers that there is room for in the list of used ones.
    #[cfg(test)]
    pub(super) fn used_capacity(&self) -> usize {
        self.used.capacity()
    }

    /// The eventfds by which the kernel calls.
    pub(super) fn calls(&self) -> impl Iterator<Item = &OwnedFd> {
        self.places.iter().map(|place| &place.ring.call)
    }
}
