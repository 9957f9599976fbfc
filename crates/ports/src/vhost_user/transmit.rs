//! The transmit rings of one worker: frames out of the guest.
//!
//! Chains are taken from the rings in turn, with another one first each time, and noted in `taken`
//! in ring order, whether they made a frame or not. [`Transmit::reclaim`] gives back those that are
//! done. Of a frame whose receiver is full, `taken` remembers where its buffers are: in the next
//! breath it is made anew of what is in them then, and nothing that was decided about it is kept.

use std::ops::Range;

use engine::{
    Arrival, BURST, Burst, Counters, DropReason, ENOUGH_SEGMENTS, Frame, HEAD, HEADER_ROOM, Lease,
    Outcomes, Traffic,
};
use memory::{GuestMemory, ReadSlice, SliceList, Translator};
use vhost_user::Device;
use virtqueue::{Chain, DeviceQueue, DeviceRing, Direction, Singles, Violation};
use wire::virtio::{Features, Offload};

use super::ring::{Ring, Shape, Swapped, numbers, setup, unchanged};
use super::steering::Steering;
use super::taken::{Taken, TakenChain};
use super::{DESCRIPTOR_BUDGET, GuestFault, Share, transmit_ring};
use crate::backlog::Backlog;
use crate::frame::{BYTE_BUDGET, MAX_FRAME};
use crate::lent::Lent;

/// Bytes at the start of a frame's buffers that are fetched ahead: those that may be copied at once.
const AHEAD: usize = HEADER_ROOM + HEAD;

/// The transmit rings of one worker's share of the pairs, and what was taken from them.
pub(super) struct Transmit {
    share: Share,
    /// By their place in the share, as far as there are any.
    rings: Vec<Option<Ring>>,
    /// Chains of one buffer each that are to be made frames of; kept from burst to burst for its allocation.
    singles: SliceList<(Chain, ReadSlice<'static>)>,
    taken: Taken,
    backlog: Backlog,
    /// Whether new frames were to be taken, when some waited last.
    listens: bool,
    /// A held frame made way: something moved.
    moved: bool,
    /// Chains were given back, and are not published, or their drivers not notified.
    gave_back: bool,
    /// The place of the ring that is asked first, if there are so many.
    turn: usize,
}

impl Transmit {
    /// No rings yet.
    pub(super) fn new(share: Share) -> Self {
        Self {
            share,
            rings: Vec::new(),
            singles: SliceList::with_capacity(BURST),
            taken: Taken::new(),
            backlog: Backlog::default(),
            listens: true,
            moved: false,
            gave_back: false,
            turn: 0,
        }
    }

    fn fault(&self, place: usize) -> impl Fn(Violation) -> GuestFault + use<> {
        let pair = self.share.pair(place);
        move |violation| GuestFault::transmit(pair, violation)
    }

    /// The ring of a pair, if it runs and is one of this worker's.
    pub(super) fn ring(&self, pair: usize) -> Option<&Ring> {
        let place = self.share.pairs().position(|other| other == pair)?;
        self.rings.get(place)?.as_ref()
    }

    /// Goes on with the rings of `device`. A ring that stops does so with nothing outstanding: frames
    /// that were held are dropped.
    ///
    /// `is_same`: memory and features are, so rings of which nothing was said are left alone.
    pub(super) fn swap(
        &mut self,
        device: Option<&Device>,
        is_same: bool,
        is_latched: bool,
        swapped: &mut Swapped,
        counters: &mut Counters,
    ) {
        let pairs = numbers(device).div_ceil(2);
        let places = self.share.pairs().take_while(|pair| *pair < pairs).count();
        let places = places.max(self.rings.len());
        self.rings.resize_with(places, || None);
        for (place, pair) in self.share.pairs().take(places).enumerate() {
            let Some(slot) = self.rings.get_mut(place) else { break };
            let number = transmit_ring(pair);
            let next = device.and_then(|device| setup(device, number));
            if is_same && unchanged(slot.as_ref(), next) {
                continue;
            }
            let mut ring = slot.take();
            let goes_on = |ring: &Ring| next.is_some_and(|next| next.start == ring.setup.start);
            if let Some(ring) = ring.as_mut().filter(|ring| !goes_on(ring)) {
                for (chain, is_held) in self.taken.drain(place) {
                    if is_latched {
                        continue;
                    }
                    if is_held {
                        counters.drop(DropReason::ReceiverFull);
                    }
                    ring.queue.give_back(chain, 0);
                }
            }
            *slot = swapped.exchange(number, ring, device, is_latched);
        }
        let used = self.rings.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.rings.truncate(used);
        if device.is_none() {
            self.backlog = Backlog::default();
            (self.moved, self.gave_back) = (false, false);
        }
    }

    /// Takes chains into the burst: those of held frames first, then new ones. Returns whether there
    /// was anything to do.
    pub(super) fn pull<'b>(
        &mut self,
        shape: Shape,
        memory: &mut Lent,
        steering: Option<&Steering>,
        lease: &'b mut Lease,
        burst: &mut Burst<'b>,
        counters: &mut Counters,
    ) -> Result<bool, GuestFault> {
        let moved = std::mem::take(&mut self.moved);
        if self.taken.is_empty() && !self.is_available()? {
            return Ok(moved);
        }
        let mut plan = self.backlog.plan(self.taken.len(), BURST, burst.now());
        // In order, whatever came behind a frame that waits does too: nothing is free for others while one is held.
        if plan.hold < BURST && shape.features.contains(Features::IN_ORDER) {
            plan.hold = 0;
        }
        self.listens = plan.listen;
        burst.limit_held(plan.hold);
        let mut intake = Intake {
            translator: lease.guest(memory.lend()).translator(),
            shape,
            limit: (MAX_FRAME + shape.header_size) as u32,
            descriptors: 0,
            bytes: 0,
        };
        if !self.taken.is_empty() {
            self.pull_held(&mut intake, burst, counters)?;
        } else if self.pull_alone(&mut intake, steering, burst, counters) {
            return Ok(true);
        }
        let before = self.taken.len();
        let places = self.rings.len();
        let first = if self.turn < places { self.turn } else { 0 };
        for place in (first..places).chain(0..first) {
            if !plan.listen || self.taken.len() == BURST || !intake.may_go_on() {
                break;
            }
            let is_first = self.taken.len() == before;
            self.pull_new(place, &mut intake, steering, burst, counters)?;
            // Behind the first one that had something: a ring gets no turns of idle ones before it.
            if is_first && self.taken.len() > before {
                self.turn = place + 1;
            }
        }
        Ok(moved || self.taken.len() > before)
    }

    fn is_available(&mut self) -> Result<bool, GuestFault> {
        for place in 0..self.rings.len() {
            let fault = self.fault(place);
            let Some(Some(ring)) = self.rings.get_mut(place) else { continue };
            if ring.queue.available().map_err(fault)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[inline(never)]
    fn pull_held<'m>(
        &mut self,
        intake: &mut Intake<'m>,
        burst: &mut Burst<'m>,
        counters: &mut Counters,
    ) -> Result<(), GuestFault> {
        for held in self.taken.held() {
            // It was learned from when it was new.
            let maker = Maker { shape: intake.shape, steering: None, pair: 0 };
            let start = burst.segments().len();
            let bytes = held.bytes();
            if bytes <= intake.limit.into() {
                for piece in held.pieces {
                    intake.translator.read(piece.address, piece.len, burst.segments()).map_err(
                        |fault| GuestFault::transmit(self.share.pair(held.place), fault.into()),
                    )?;
                }
            }
            let segments = start..burst.segments().len();
            *held.frame = frame(burst, segments, bytes, maker, counters);
            intake.descriptors += usize::from(held.descriptors);
            intake.bytes += bytes;
        }
        Ok(())
    }

    /// Takes a new chain of one buffer from the only ring, if it is the only one there, and makes a frame of it: without the list in which
    /// others wait until all have come. In a quiet network most come so. False if nothing was taken.
    #[inline(never)]
    fn pull_alone<'m>(
        &mut self,
        intake: &mut Intake<'m>,
        steering: Option<&Steering>,
        burst: &mut Burst<'m>,
        counters: &mut Counters,
    ) -> bool {
        let Self { share, rings, taken, .. } = self;
        let [Some(Ring { queue, setup, .. })] = &mut rings[..] else { return false };
        let single = match queue {
            DeviceQueue::Split(queue) => take_alone(queue, intake),
            DeviceQueue::Packed(queue) => take_alone(queue, intake),
        };
        let Some(single) = single else { return false };
        let shape = intake.shape;
        let maker = setup.enabled.then(|| Maker { shape, steering, pair: share.pair(0) });
        make_singles(std::iter::once(single), 0, taken, maker, burst, counters);
        true
    }

    /// Takes new chains from the ring at `place`, and makes frames of them.
    fn pull_new<'m>(
        &mut self,
        place: usize,
        intake: &mut Intake<'m>,
        steering: Option<&Steering>,
        burst: &mut Burst<'m>,
        counters: &mut Counters,
    ) -> Result<(), GuestFault> {
        let fault = self.fault(place);
        let pair = self.share.pair(place);
        let Self { rings, taken, singles, .. } = self;
        let Some(Some(Ring { queue, setup, .. })) = rings.get_mut(place) else { return Ok(()) };
        let (room, singles) = (BURST - taken.len(), singles.lend());
        let taking = match queue {
            DeviceQueue::Split(queue) => take_singles(queue, room, intake, singles),
            DeviceQueue::Packed(queue) => take_singles(queue, room, intake, singles),
        };
        let Singles { is_other_next, .. } = taking.map_err(&fault)?;
        let maker = setup.enabled.then_some(Maker { shape: intake.shape, steering, pair });
        make_singles(singles.iter().copied(), place, taken, maker, burst, counters);

        if is_other_next {
            // What is in several buffers, or not near the one before.
            pull_any(queue, place, taken, intake, maker, burst, counters).map_err(fault)?;
        }
        Ok(())
    }

    /// Gives back what is done of the burst that ended.
    pub(super) fn reclaim(
        &mut self,
        features: Features,
        memory: &GuestMemory,
        outcomes: &Outcomes<'_>,
        counters: &mut Counters,
    ) -> Result<(), GuestFault> {
        if self.taken.is_empty() {
            return Ok(());
        }
        let in_order = features.contains(Features::IN_ORDER);
        let settled = self.taken.settle(&mut self.rings, in_order, memory, outcomes);
        let settled = settled.map_err(|(place, violation)| self.fault(place)(violation))?;
        self.moved = settled.moved;
        self.gave_back |= settled.moved;
        counters[DropReason::ReceiverFull] += settled.lost;
        Ok(())
    }

    /// Makes visible what was given back. Then, behind a fence, see [`Self::notify`].
    #[inline]
    pub(super) fn expose(&mut self) {
        if self.gave_back {
            self.rings.iter_mut().flatten().for_each(Ring::expose);
        }
    }

    /// Calls the drivers that want to know what was exposed.
    #[inline]
    pub(super) fn notify(&mut self) {
        if std::mem::take(&mut self.gave_back) {
            self.rings.iter_mut().flatten().for_each(Ring::notify);
        }
    }

    /// Asks for kicks. True when there is something to do already.
    pub(super) fn arm(&mut self) -> Result<bool, GuestFault> {
        let mut busy = self.moved;
        // What is not listened to is no reason to stay awake: there is a deadline.
        let listens = self.taken.is_empty() || self.listens;
        for place in 0..self.rings.len() {
            let fault = self.fault(place);
            let Some(Some(ring)) = self.rings.get_mut(place) else { continue };
            let more = ring.queue.enable_kicks().map_err(fault)?;
            // Without a kick descriptor the ring has to be polled.
            busy |= more && listens || ring.setup.kick.is_none();
        }
        Ok(busy)
    }

    /// No kicks are wanted.
    pub(super) fn disarm(&mut self) {
        self.rings.iter_mut().flatten().for_each(|ring| ring.queue.disable_kicks());
    }

    /// When what waits is to be looked at again.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.backlog.deadline()
    }
}

/// What one burst takes in.
#[derive(Clone)]
struct Intake<'m> {
    translator: Translator<'m>,
    shape: Shape,
    /// Bytes of a chain that are translated at most.
    limit: u32,
    descriptors: usize,
    bytes: u64,
}

impl Intake<'_> {
    fn may_go_on(&self) -> bool {
        self.descriptors < DESCRIPTOR_BUDGET && self.bytes < BYTE_BUDGET
    }
}

/// Takes chains of one buffer each from a ring, as many as there is room for, with their bytes. Their first bytes are on the way to
/// the processor then, of all frames at once. Returns how many: as good as always all there are, and else those before the
/// first one that has to be looked at more closely.
#[inline(always)]
fn take_singles<'m>(
    queue: &mut impl DeviceRing,
    room: usize,
    intake: &mut Intake<'m>,
    singles: &mut Vec<(Chain, ReadSlice<'m>)>,
) -> Result<Singles, Violation> {
    // In registers, as far as there are any: the loop is short.
    let Intake { mut translator, limit, mut bytes, .. } = intake.clone();
    let taken = queue.take_singles(Direction::Read, room, |single| {
        let buffer = single.buffer();
        if buffer.len > limit || bytes >= BYTE_BUDGET {
            return false;
        }
        let Some(slice) = translator.read_whole(buffer.address, buffer.len) else { return false };
        slice.prefetch::<AHEAD>();
        singles.push((single.chain, slice));
        bytes += u64::from(buffer.len);
        true
    })?;
    intake.bytes = bytes;
    intake.descriptors += taken.count;
    Ok(taken)
}

/// Takes a chain of one buffer from a ring that has no other, with its bytes.
#[inline(always)]
fn take_alone<'m>(
    queue: &mut impl DeviceRing,
    intake: &mut Intake<'m>,
) -> Option<(Chain, ReadSlice<'m>)> {
    if !queue.has_one() {
        return None;
    }
    let Intake { translator, limit, .. } = intake;
    queue.take_single(Direction::Read, |single| {
        let buffer = single.buffer();
        let is_short = buffer.len <= *limit;
        let slice = is_short.then(|| translator.read_whole(buffer.address, buffer.len))?;
        Some((single.chain, slice?))
    })
}

/// Takes chains of any kind from a ring, as many as the burst has room for, and makes frames of them.
#[inline]
fn pull_any<'m>(
    queue: &mut DeviceQueue,
    place: usize,
    taken: &mut Taken,
    intake: &mut Intake<'m>,
    maker: Option<Maker<'_>>,
    burst: &mut Burst<'m>,
    counters: &mut Counters,
) -> Result<(), Violation> {
    let before = taken.len();
    let mut ends = [0; BURST];
    let start = burst.segments().len();
    // What was taken before a rule was broken is good.
    let result = take_any(queue, place, taken, intake, burst.segments(), &mut ends);
    if taken.len() > before {
        let starts = std::iter::once(start).chain(ends);
        let segments = starts.zip(ends).map(|(start, end)| start..end);
        make_frames(taken.from(before), segments, maker, burst, counters);
    }
    result
}

/// Takes chains of any kind from a ring, as many as the burst has room for, and appends their bytes to the
/// segments: those of each up to the place in `ends`.
fn take_any<'m>(
    queue: &mut DeviceQueue,
    place: usize,
    taken: &mut Taken,
    intake: &mut Intake<'m>,
    segments: &mut Vec<ReadSlice<'m>>,
    ends: &mut [usize; BURST],
) -> Result<(), Violation> {
    let room = BURST - taken.len();
    for slot in ends.iter_mut().take(room) {
        let end = segments.len();
        if !intake.may_go_on() || end >= ENOUGH_SEGMENTS {
            break;
        }
        let chain = queue.take_readable(&mut intake.translator, intake.limit, segments)?;
        let Some(chain) = chain else { break };
        if let Some(first) = segments.get(end) {
            first.prefetch::<AHEAD>();
        }
        *slot = segments.len();
        intake.descriptors += usize::from(chain.descriptors());
        intake.bytes += chain.bytes();
        taken.add(place, chain, None);
    }
    Ok(())
}

/// What it takes to make frames of chains.
#[derive(Clone, Copy)]
struct Maker<'s> {
    shape: Shape,
    steering: Option<&'s Steering>,
    pair: usize,
}

impl Maker<'_> {
    /// Whether these may be a frame, of `len` bytes, with this header. What is left to do to it is put into `offload`, which says that
    /// there is nothing.
    #[inline(always)]
    fn judge(&self, header: &[u8], len: usize, offload: &mut Offload) -> Result<(), DropReason> {
        let Shape { features, frame_limit, .. } = self.shape;
        if len < wire::ethernet::HEADER_SIZE {
            return Err(DropReason::TooShort);
        }
        // As good as always.
        if Offload::is_none_in(header) && len <= frame_limit {
            return Ok(());
        }
        *offload = Offload::read(header, len, features)?;
        if offload.wire_len(len) <= frame_limit { Ok(()) } else { Err(DropReason::OverMtu) }
    }

    /// Remembers where answers to a frame belong.
    #[inline]
    fn learn(&self, head: &[u8]) {
        if let Some(steering) = self.steering {
            steering.learn(wire::flow::hash(head), self.pair);
        }
    }
}

/// Makes frames of chains of one buffer each, which were taken from the ring at `place`. Without a maker they are dropped: the ring is
/// disabled.
#[inline(always)]
fn make_singles<'m>(
    singles: impl ExactSizeIterator<Item = (Chain, ReadSlice<'m>)>,
    place: usize,
    taken: &mut Taken,
    maker: Option<Maker<'_>>,
    burst: &mut Burst<'m>,
    counters: &mut Counters,
) {
    let count = singles.len();
    let Some(maker) = maker else {
        singles.for_each(|(chain, _)| taken.add(place, chain, None));
        return counters[DropReason::SenderDisabled] += count as u64;
    };
    let (before, mut bytes) = (burst.len(), 0);
    let taken_before = taken.len();
    let header_size = maker.shape.header_size;
    burst.push_singles(singles, header_size, |chain, arrival| {
        let Arrival { index, header, head, len, offload } = arrival;
        if let Err(reason) = maker.judge(header, len, offload) {
            counters.drop(reason);
            taken.add(place, chain, None);
            return false;
        }
        taken.add(place, chain, Some(index as u8));
        bytes += len as u64;
        maker.learn(head);
        true
    });
    debug_assert_eq!(taken.len(), taken_before + count, "a chain is lost");
    let received = Traffic { frames: (burst.len() - before) as u64, bytes };
    counters.received += received;
    burst.counted(received);
}

/// As [`make_singles`], of any chains.
fn make_frames(
    chains: &mut [TakenChain],
    segments: impl Iterator<Item = Range<usize>>,
    maker: Option<Maker<'_>>,
    burst: &mut Burst<'_>,
    counters: &mut Counters,
) {
    let Some(maker) = maker else {
        return counters[DropReason::SenderDisabled] += chains.len() as u64;
    };
    for (taken, segments) in chains.iter_mut().zip(segments) {
        taken.frame = frame(burst, segments, taken.chain.bytes(), maker, counters);
        let Some(frame) = taken.frame else { continue };
        let Frame { head, len, .. } = burst.frame(frame.into());
        counters.received.count(len);
        maker.learn(head);
    }
}

/// Makes a frame of a chain of `bytes`, which are these segments of the burst. Counts it as dropped when
/// that cannot be.
fn frame(
    burst: &mut Burst<'_>,
    segments: Range<usize>,
    bytes: u64,
    maker: Maker<'_>,
    counters: &mut Counters,
) -> Option<u8> {
    // Then not all of them are here.
    if bytes > (MAX_FRAME + maker.shape.header_size) as u64 {
        counters.drop(DropReason::TooLong);
        return None;
    }
    let judge = |header: &[u8], len| {
        let mut offload = Offload::NONE;
        maker.judge(header, len, &mut offload).map(|()| offload)
    };
    match burst.push(segments, maker.shape.header_size, judge) {
        Ok(index) => index.map(|index| index as u8),
        Err(reason) => {
            counters.drop(reason);
            None
        }
    }
}
