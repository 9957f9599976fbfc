//! The receive rings: frames into the guest.
//!
//! Writable chains are gathered from a ring until the header and the frame fit, the frame is copied,
//! and the used entries are noted. All of them become visible together when the ring is published.
//! There are three ways, tried in this order: frames that go as they are into one buffer each, all of a burst at once; into
//! several, where each is a chain of its own; and one by one, whatever has to be done to them and however the guest cuts its buffers up.
//!
//! A header that is in a buffer already, at the end of a cache line, is not written again: DPDK's drivers have it there, in a
//! line of its own, and the line stays in the caches of both processors. A device should not read what it is to write (virtio 1.3,
//! 2.7.5.1 and 2.8.15), so what is there decides nothing but whether the same bytes are stored once more.
//!
//! Any worker may deliver to any ring, since frames come from everywhere. So where there are several, these rings have a lock
//! each, taken once for what a burst delivers and once to publish; whoever holds it sees whole
//! deliveries of the others, and publishes theirs with its own. With one worker there is none: to take a lock, or to let go
//! of it, is to wait until all that was stored before has arrived at the guest.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{BURST, Burst, Counters, DropReason, Frame, Framed, Outline, Selection, Traffic};
use memory::{GuestMemory, SliceList, Translator, WriteCursor, WriteSlice};
use virtqueue::{Chain, DeviceQueue, DeviceRing, Direction, Singles, Violation};
use wire::virtio::{Features, NetHeader, Offload};

use super::ring::{Ring, Shape};
use super::{DESCRIPTOR_BUDGET, GuestFault, Pairs};
use crate::offload::Delivery;

/// All receive rings of a port, by pair, as one of its parts has them.
pub(super) enum Receivers {
    /// Of a port in one part.
    Own(Box<[Place]>),
    /// Of a port in several parts, which have them in common.
    Common(Arc<[Aligned]>),
}

/// The place of a ring, for nobody else meanwhile.
pub(super) enum Access<'r> {
    Own(&'r mut Place),
    Common(MutexGuard<'r, Place>),
}

impl Deref for Access<'_> {
    type Target = Place;

    #[inline]
    fn deref(&self) -> &Place {
        match self {
            Self::Own(place) => place,
            Self::Common(place) => place,
        }
    }
}

impl DerefMut for Access<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Place {
        match self {
            Self::Own(place) => place,
            Self::Common(place) => place,
        }
    }
}

/// A place of its own cache lines. Its lock is one that a waiting worker sleeps on after a short while:
/// the one that has it may have lost its processor, and to wait for that awake helps nobody.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Aligned(Mutex<Place>);

/// Where a receive ring is, or may be.
#[derive(Default)]
pub(super) struct Place {
    receiver: Option<Receiver>,
    /// Counts the times that buffers were used or the ring exchanged, and wraps.
    uses: u32,
    /// A bit for each worker that has frames held for this ring, and asked to be woken.
    awaited: u64,
}

impl Receivers {
    /// Room for the rings of this many pairs, for each of so many parts.
    pub(super) fn new(pairs: usize, parts: usize) -> Vec<Self> {
        if parts == 1 {
            return vec![Self::Own((0..pairs).map(|_| Place::default()).collect())];
        }
        let places: Arc<[Aligned]> = (0..pairs).map(|_| Aligned::default()).collect();
        vec![places; parts].into_iter().map(Self::Common).collect()
    }

    /// The place of a pair's ring. None when a bug of ours left it half changed.
    #[inline]
    pub(super) fn access(&mut self, pair: usize) -> Option<Access<'_>> {
        match self {
            Self::Own(places) => places.get_mut(pair).map(Access::Own),
            Self::Common(places) => places.get(pair)?.0.lock().ok().map(Access::Common),
        }
    }

    /// Publishes these pairs' rings, of a port in several parts: at once, as long as we have the lock, for others expose what they
    /// have in this ring, too.
    ///
    /// Not inline, so that who has the rings alone does not pay for it.
    #[inline(never)]
    pub(super) fn publish(&mut self, pairs: Pairs) {
        pairs.for_each(|pair| {
            let mut place = self.access(pair);
            if let Some(receiver) = place.as_mut().and_then(|place| place.ring()) {
                receiver.ring.publish();
            }
        });
    }

    /// The place of a pair's ring, whatever state it is in.
    pub(super) fn access_anyway(&mut self, pair: usize) -> Option<Access<'_>> {
        match self {
            Self::Own(places) => places.get_mut(pair).map(Access::Own),
            Self::Common(places) => {
                let Aligned(mutex) = places.get(pair)?;
                Some(Access::Common(mutex.lock().unwrap_or_else(PoisonError::into_inner)))
            }
        }
    }
}

impl Place {
    /// The ring, if there is one.
    #[inline]
    pub(super) fn ring(&mut self) -> Option<&mut Receiver> {
        self.receiver.as_mut()
    }

    /// Exchanges the ring for another, or for none. Workers that wait for it are to look at it anew.
    pub(super) fn exchange(&mut self, exchange: impl FnOnce(Option<Ring>) -> Option<Receiver>) {
        let old = self.receiver.take().map(|receiver| receiver.ring);
        self.receiver = exchange(old);
        self.uses = self.uses.wrapping_add(1);
        if let Some(receiver) = self.receiver.as_ref().filter(|_| self.awaited != 0) {
            receiver.ring.kick();
        }
    }

    /// The ring, if there is one that is enabled.
    #[inline]
    fn enabled(&mut self) -> Option<&mut Receiver> {
        self.receiver.as_mut().filter(|receiver| receiver.ring.setup.enabled)
    }

    /// Delivers the selected frames. Counts those that are neither delivered nor held, which none is
    /// unless it is to be patient.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        frame_limit: usize,
        is_patient: bool,
        scratch: &mut Scratch,
        counters: &mut Counters,
    ) -> Ended {
        let Some(receiver) = self.enabled() else {
            // The worker that it belongs to has been told of a change already, and we are about to be, or
            // the other way round.
            return hold(burst, selection, is_patient, counters);
        };
        let ended = receiver.deliver(burst, selection, frame_limit, is_patient, scratch, counters);
        self.uses = self.uses.wrapping_add(ended.has(Ended::TOOK).into());
        ended
    }

    /// Delivers a frame that comes alone: see [`deliver_alone`].
    #[inline(always)]
    pub(super) fn deliver_alone(
        &mut self,
        burst: &mut Burst<'_>,
        index: usize,
        frame_limit: usize,
        sent: &mut Traffic,
    ) -> bool {
        let Some(receiver) = self.enabled() else { return false };
        let took = receiver.deliver_alone(burst, index, frame_limit, sent);
        self.uses = self.uses.wrapping_add(took.into());
        took
    }

    /// What a worker finds here that has just held frames.
    #[cold]
    pub(super) fn found(&mut self) -> Found {
        let uses = self.uses;
        self.enabled().map_or(Found::NoRing, |receiver| Found::Ring {
            available: receiver.ring.queue.available().unwrap_or(0),
            uses,
        })
    }

    /// Asks to be woken when there are more buffers, in the name of a worker that found too few. True
    /// when there may be more already: others than it has found, or it was another ring, or none.
    pub(super) fn arm(&mut self, worker: u32, found: Found) -> Result<bool, Violation> {
        self.awaited |= 1 << worker;
        let now_uses = self.uses;
        match (self.enabled(), found) {
            (None, Found::NoRing) => Ok(false),
            (Some(receiver), Found::Ring { available, uses }) => {
                receiver.ring.queue.enable_kicks()?;
                let more = receiver.ring.queue.available()? > available;
                Ok(more || now_uses != uses || receiver.ring.setup.kick.is_none())
            }
            _ => Ok(true),
        }
    }

    /// This worker need not be woken. Others may. The ring of a guest that is latched is left as it is; the next one's is not to be
    /// waited for by this.
    pub(super) fn disarm(&mut self, worker: u32, is_latched: bool) {
        self.awaited &= !(1 << worker);
        if self.awaited == 0
            && !is_latched
            && let Some(receiver) = &mut self.receiver
        {
            receiver.ring.queue.disable_kicks();
        }
    }
}

/// A receive ring.
pub(super) struct Receiver {
    memory: Arc<GuestMemory>,
    features: Features,
    pub(super) ring: Ring,
    /// See [`Gather::expected`].
    expected: usize,
}

/// What a worker found that could not deliver.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// No ring, or one that is disabled.
    NoRing,
    /// Too few buffers.
    Ring {
        /// Chains that were available, or descriptors.
        available: u16,
        /// How often buffers had been used. If that is another number now, what is available is not
        /// what was.
        uses: u32,
    },
}

/// What a worker needs to gather buffers; kept from burst to burst for its allocations.
pub(super) struct Scratch {
    singles: SliceList<(Chain, WriteSlice<'static>)>,
    chains: Vec<Chain>,
    slices: SliceList<WriteSlice<'static>>,
    gathered: Vec<Gathered>,
    /// Descriptors that may still be read in this breath.
    pub(super) budget: usize,
    /// The rule that was broken in a delivery which [ended](Ended) so.
    pub(super) broken: Option<Broken>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            singles: SliceList::with_capacity(BURST),
            chains: Vec::with_capacity(4 * BURST),
            slices: SliceList::with_capacity(4 * BURST),
            gathered: Vec::with_capacity(BURST),
            budget: DESCRIPTOR_BUDGET,
            broken: None,
        }
    }
}

/// How a delivery ended, a bit for each of what there is to say.
///
/// It is one number, for it is handed on just when a frame is on its way to the guest: a structure that is stored by its fields
/// and loaded as a whole would have to wait until that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended(u8);

impl Ended {
    /// The ring took a frame.
    pub(super) const TOOK: Self = Self(1);
    /// There was no room for the last frame, and possibly others before it; or no ring.
    pub(super) const FULL: Self = Self(1 << 1);
    /// Frames are held, until there is more room.
    pub(super) const HOLDS: Self = Self(1 << 2);
    /// The guest broke a rule: see [`Scratch::broken`].
    pub(super) const BROKEN: Self = Self(1 << 3);
    /// None of them.
    const NOTHING: Self = Self(0);

    /// Whether this is to be said.
    #[inline]
    pub(super) fn has(self, Self(bits): Self) -> bool {
        self.0 & bits != 0
    }

    #[inline]
    fn set(&mut self, Self(bits): Self) {
        self.0 |= bits;
    }
}

/// Holds frames for a ring that is not there.
#[cold]
fn hold(
    burst: &mut Burst<'_>,
    selection: &Selection,
    is_patient: bool,
    counters: &mut Counters,
) -> Ended {
    let mut ended = Ended::FULL;
    for index in selection.iter() {
        if is_patient && burst.hold(index) {
            ended.set(Ended::HOLDS);
        } else {
            counters.drop(DropReason::ReceiverDown);
        }
    }
    ended
}

impl Receiver {
    pub(super) fn new(memory: Arc<GuestMemory>, features: Features, ring: Ring) -> Self {
        Self { memory, features, ring, expected: usize::MAX }
    }

    fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        frame_limit: usize,
        is_patient: bool,
        scratch: &mut Scratch,
        counters: &mut Counters,
    ) -> Ended {
        let to = Destination {
            translator: self.memory.translator(),
            shape: Shape::new(self.features, frame_limit),
            is_patient,
        };
        let expected = &mut self.expected;
        match &mut self.ring.queue {
            DeviceQueue::Split(queue) => {
                deliver(queue, to, expected, burst, selection, scratch, counters)
            }
            DeviceQueue::Packed(queue) => {
                deliver(queue, to, expected, burst, selection, scratch, counters)
            }
        }
    }

    #[inline(always)]
    fn deliver_alone(
        &mut self,
        burst: &mut Burst<'_>,
        index: usize,
        frame_limit: usize,
        sent: &mut Traffic,
    ) -> bool {
        let translator = &mut self.memory.translator();
        let shape = Shape::new(self.features, frame_limit);
        match &mut self.ring.queue {
            DeviceQueue::Split(queue) => {
                deliver_alone(queue, translator, shape, burst, index, sent)
            }
            DeviceQueue::Packed(queue) => {
                deliver_alone(queue, translator, shape, burst, index, sent)
            }
        }
    }
}

/// Where frames are delivered to.
struct Destination<'m> {
    translator: Translator<'m>,
    shape: Shape,
    is_patient: bool,
}

/// Delivers the selected frames: first those that go as they are into one buffer each, up to one that does
/// not; then those that do so into several; and then all others.
#[inline(always)]
fn deliver(
    queue: &mut impl DeviceRing,
    to: Destination<'_>,
    expected: &mut usize,
    burst: &mut Burst<'_>,
    selection: &Selection,
    scratch: &mut Scratch,
    counters: &mut Counters,
) -> Ended {
    debug_assert!(!selection.is_empty(), "who sends nothing does not call");
    let Destination { translator, shape, is_patient } = to;
    let mut gather = Gather {
        queue,
        translator,
        shape,
        singles: scratch.singles.lend(),
        chains: &mut scratch.chains,
        slices: scratch.slices.lend(),
        gathered: &mut scratch.gathered,
        expected,
        budget: scratch.budget,
        broken: &mut scratch.broken,
    };
    let (delivered, is_empty) = gather.deliver_singles(burst, selection, &mut counters.sent);
    // As good as always there are no others.
    let ended = if delivered == selection.len() {
        Ended::TOOK
    } else {
        gather.deliver_others(burst, selection, delivered, is_empty, is_patient, counters)
    };
    scratch.budget = gather.budget;
    ended
}

/// Delivers a frame that comes alone, if it goes as it is into one buffer: without a list, which others have their buffers in until all of
/// them have. In a quiet network most come so. False if nothing was done.
#[inline(always)]
fn deliver_alone(
    queue: &mut impl DeviceRing,
    translator: &mut Translator<'_>,
    shape: Shape,
    burst: &mut Burst<'_>,
    index: usize,
    sent: &mut Traffic,
) -> bool {
    let Shape { header_size, .. } = shape;
    let Outline { header, len, offload, has_body } = burst.outline(index, header_size);
    if !shape.takes(offload, len) {
        return false;
    }
    write_header(header, offload, 1);
    if has_body {
        burst.prefetch_body::<AHEAD>(index);
    }
    let total = header_size + len;
    let taken = queue.take_single(Direction::Write, |single| {
        let buffer = single.buffer();
        let is_enough = total <= buffer.len as usize;
        let slice = is_enough.then(|| translator.write_whole(buffer.address, total as u32))?;
        Some((single.chain, slice?))
    });
    let Some((chain, slice)) = taken else { return false };
    let Framed { front, body, .. } = burst.framed(index, header_size);
    let mut copied = slice.copy_behind_header(header_size, front.into());
    for segment in body {
        copied += slice.skip(copied).copy_from(*segment);
    }
    sent.count(len);
    queue.give_back(chain, total as u32);
    true
}

/// A rule that the guest broke.
pub(super) enum Broken {
    Ring(Violation),
    TinyBuffer(u64),
}

impl Broken {
    pub(super) fn of(self, pair: usize) -> GuestFault {
        match self {
            Self::Ring(violation) => GuestFault::receive(pair, violation),
            Self::TinyBuffer(bytes) => {
                GuestFault::TinyBuffer { ring: super::receive_ring(pair), bytes }
            }
        }
    }
}

/// Why a frame was not delivered.
enum Undelivered {
    /// There are not enough buffers for now.
    Full,
    /// Not even an empty ring has buffers for all of its segments; some were delivered.
    Cut,
    Dropped(DropReason),
    Broken(Broken),
}

impl From<Violation> for Broken {
    fn from(violation: Violation) -> Self {
        Self::Ring(violation)
    }
}

impl From<Violation> for Undelivered {
    fn from(violation: Violation) -> Self {
        Self::Broken(violation.into())
    }
}

/// Where a receiver's buffers are gathered, and written.
struct Gather<'s, 'm, Q> {
    queue: &'s mut Q,
    translator: Translator<'m>,
    shape: Shape,
    /// Where each frame has one buffer.
    singles: &'s mut Vec<(Chain, WriteSlice<'m>)>,
    /// Where not.
    chains: &'s mut Vec<Chain>,
    slices: &'s mut Vec<WriteSlice<'m>>,
    gathered: &'s mut Vec<Gathered>,
    /// Bytes that the next buffer is expected to have, as the one that [`Self::deliver_merged`] looked at last: so many buffers are
    /// asked for at a time. Never 0, as a header has to fit.
    expected: &'s mut usize,
    budget: usize,
    broken: &'s mut Option<Broken>,
}

/// The buffers of one frame, or segment of a frame: they end here, in the lists of chains and of slices,
/// and begin where those of the one before end.
struct Gathered {
    /// Of the burst.
    frame: u8,
    chains: u32,
    slices: u32,
}

/// Bytes at the start of a frame's buffers, and of what its private head does not have, that are fetched
/// ahead. What is behind comes by itself: the processor sees where we are going.
const AHEAD: usize = 256;

/// Buffers that are gathered at a time, before frames are written to them, where a frame may need several: some hundred KiB are on
/// their way then, and what is taken in vain is a small part of a breath's budget.
const TOGETHER: usize = 4 * BURST;

impl<Q: DeviceRing> Gather<'_, '_, Q> {
    /// Delivers frames that go as they are, into one buffer each: as many of the selected ones as there are
    /// before the first that needs more than that, or for which there is no buffer. Returns how many, and whether there are no
    /// buffers left. As good as always these are all.
    ///
    /// All get their buffers first, and are written then: so the buffers are on their way to the processor
    /// meanwhile.
    #[inline(always)]
    fn deliver_singles(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        sent: &mut Traffic,
    ) -> (usize, bool) {
        let Self { translator, singles: list, shape, .. } = self;
        debug_assert!(list.is_empty(), "left by somebody");
        let shape @ Shape { header_size, .. } = *shape;
        let mut frames = selection.iter();
        let most = selection.len().min(self.budget);
        let singles = self.queue.take_singles(Direction::Write, most, |single| {
            let buffer = single.buffer();
            let Some(index) = frames.next() else { return false };
            let Outline { header, len, offload, has_body } = burst.outline(index, header_size);
            let total = header_size + len;
            if !shape.takes(offload, len) || total > buffer.len as usize {
                return false;
            }
            let slice = translator.write_whole(buffer.address, total as u32);
            let Some(slice) = slice else { return false };
            write_header(header, offload, 1);
            if has_body {
                burst.prefetch_body::<AHEAD>(index);
            }
            slice.prefetch_behind_header::<AHEAD>(header_size);
            list.push((single.chain, slice));
            true
        });
        let Singles { count, is_other_next } = match singles {
            Ok(singles) => singles,
            Err(violation) => {
                *self.broken = Some(violation.into());
                return (0, false);
            }
        };
        for (index, (_, slice)) in selection.iter().zip(list.iter()) {
            let Framed { front, body, .. } = burst.framed(index, header_size);
            let mut copied = slice.copy_behind_header(header_size, front.into());
            for segment in body {
                copied += slice.skip(copied).copy_from(*segment);
            }
        }
        *sent += burst.traffic_of_first(selection, count);
        self.queue.give_all_back(list.iter().map(|(chain, slice)| (*chain, slice.len() as u32)));
        self.budget -= count;
        (count, count < most && !is_other_next)
    }

    /// Delivers frames that go as they are, into as many buffers as each of them needs, if every buffer is a chain of its
    /// own: as many of the selected ones behind so many that were delivered as there are before the first for which that is not so, or
    /// for which there are too few, whose buffers are put back; and no more than [`TOGETHER`] buffers hold. Returns how many, and
    /// whether there are no buffers left. Large frames go this way.
    #[inline(always)]
    fn deliver_merged(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        delivered: usize,
        sent: &mut Traffic,
    ) -> (usize, bool) {
        debug_assert!(self.chains.is_empty() && self.gathered.is_empty(), "left by somebody");
        let Self { translator, chains, slices, gathered, expected, shape, .. } = self;
        let shape @ Shape { header_size, .. } = *shape;
        let mut frames = selection.iter().skip(delivered).peekable();
        let Some(first) = frames.peek() else { return (0, false) };
        let Outline { len, offload, .. } = burst.outline(*first, header_size);
        // As if all frames were as long as the first.
        let most = (selection.len() - delivered) * (header_size + len).div_ceil(**expected);
        if !shape.features.contains(Features::MRG_RXBUF) || !shape.takes(offload, len) {
            return (0, false);
        }
        let most = most.min(TOGETHER).min(self.budget);
        // Of which frame buffers are gathered, and for how many of its bytes they are missing: none, between two frames.
        let (mut frame, mut missing) = (0, 0);
        let singles = self.queue.take_singles(Direction::Write, most, |single| {
            let buffer = single.buffer();
            let room = buffer.len as usize;
            let is_first = missing == 0;
            if is_first {
                let Some(index) = frames.next() else { return false };
                let Outline { len, offload, has_body, .. } = burst.outline(index, header_size);
                if !shape.takes(offload, len) {
                    return false;
                }
                if has_body {
                    burst.prefetch_body::<AHEAD>(index);
                }
                (frame, missing) = (index, header_size + len);
            }
            let part = missing.min(room);
            let slice = translator.write_whole(buffer.address, part as u32);
            let Some(slice) = slice.filter(|_| room >= header_size) else { return false };
            // As it is written then.
            if is_first && part == missing {
                slice.prefetch_behind_header::<AHEAD>(header_size);
            } else if is_first {
                slice.prefetch::<AHEAD>();
            }
            slices.push(slice);
            chains.push(single.chain);
            missing -= part;
            **expected = room;
            if missing == 0 {
                let before = gathered.last().map_or(0, |gathered: &Gathered| gathered.chains);
                let (chains, slices) = (chains.len() as u32, slices.len() as u32);
                gathered.push(Gathered { frame: frame as u8, chains, slices });
                let Outline { header, offload, .. } = burst.outline(frame, header_size);
                write_header(header, offload, (chains - before) as usize);
            }
            true
        });
        let Singles { count, is_other_next } = match singles {
            Ok(singles) => singles,
            Err(violation) => {
                debug_assert!(self.chains.is_empty(), "what was taken is lost");
                *self.broken = Some(violation.into());
                return (0, false);
            }
        };
        self.budget -= count;
        let whole = self.gathered.last().map_or(0, |gathered| gathered.chains as usize);
        if whole < self.chains.len() {
            self.untake(whole);
        }
        let frames = self.gathered.len();
        self.write(burst, sent);
        (frames, count < most && !is_other_next)
    }

    /// Delivers the selected frames behind so many that were delivered, or else holds or drops them: at once, if there are no
    /// buffers left. Behind the first that [`Self::deliver_merged`] leaves, they go one by one.
    #[inline(never)]
    fn deliver_others(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        delivered: usize,
        is_empty: bool,
        mut is_patient: bool,
        counters: &mut Counters,
    ) -> Ended {
        let (mut delivered, mut is_empty) = (delivered, is_empty);
        while !is_empty && self.broken.is_none() {
            let frames;
            (frames, is_empty) =
                self.deliver_merged(burst, selection, delivered, &mut counters.sent);
            delivered += frames;
            if frames == 0 {
                break;
            }
        }
        let mut ended = if delivered > 0 { Ended::TOOK } else { Ended::NOTHING };
        if is_empty {
            ended.set(Ended::FULL);
        }
        is_patient |= delivered > 0;
        for index in selection.iter().skip(delivered) {
            if self.broken.is_some() {
                counters.drop(DropReason::ReceiverDown);
                continue;
            }
            // Later frames wait behind one that is held: their order is the sender's.
            let delivered = if ended.has(Ended::FULL) {
                Err(Undelivered::Full)
            } else {
                self.deliver(burst, index, &mut counters.sent)
            };
            match delivered {
                Ok(()) => {
                    ended.set(Ended::TOOK);
                    is_patient = true;
                }
                Err(Undelivered::Full) => {
                    ended.set(Ended::FULL);
                    if is_patient && burst.hold(index) {
                        ended.set(Ended::HOLDS);
                    } else {
                        counters.drop(DropReason::ReceiverFull);
                    }
                }
                Err(Undelivered::Cut) => {
                    ended.set(Ended::TOOK);
                    ended.set(Ended::FULL);
                    is_patient = true;
                    counters.drop(DropReason::ReceiverFull);
                }
                Err(Undelivered::Dropped(reason)) => counters.drop(reason),
                Err(Undelivered::Broken(what)) => {
                    counters.drop(DropReason::ReceiverDown);
                    *self.broken = Some(what);
                }
            }
        }
        if !self.gathered.is_empty() {
            self.write(burst, &mut counters.sent);
        }
        if self.broken.is_some() {
            ended.set(Ended::BROKEN);
        }
        ended
    }

    /// Delivers a frame, in whatever form the receiver takes it, or has it delivered by [`Self::write`].
    #[inline(always)]
    fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        index: usize,
        sent: &mut Traffic,
    ) -> Result<(), Undelivered> {
        let frame = burst.frame(index);
        if !self.shape.features.contains(frame.offload.needs()) {
            // Those before it first.
            self.write(burst, sent);
            return self.rework(burst.frame(index), sent);
        }
        if frame.offload.wire_len(frame.len) > self.shape.frame_limit {
            return Err(Undelivered::Dropped(DropReason::OverMtu));
        }
        if let [first, ..] = frame.body {
            first.prefetch::<AHEAD>();
        }
        let before = self.chains.len();
        let slices = self.slices.len();
        if let Err(undelivered) = self.gather(index, frame.len) {
            self.untake(before);
            self.slices.truncate(slices);
            return Err(undelivered);
        }
        // As they are written then.
        match self.slices.get(slices..).unwrap_or_default() {
            [only] => only.prefetch_behind_header::<AHEAD>(self.shape.header_size),
            [first, ..] => first.prefetch::<AHEAD>(),
            [] => {}
        }
        let Outline { header, offload, .. } = burst.outline(index, self.shape.header_size);
        write_header(header, offload, self.chains.len() - before);
        Ok(())
    }

    /// Puts back the chains from `first` on.
    #[cold]
    fn untake(&mut self, first: usize) {
        self.queue.untake(self.chains.get(first..).unwrap_or_default());
        self.chains.truncate(first);
    }

    /// Writes all frames for which buffers were gathered, and gives those back.
    #[inline]
    fn write(&mut self, burst: &Burst<'_>, sent: &mut Traffic) {
        let header_size = self.shape.header_size;
        let (mut chains, mut slices) = (0, 0);
        for gathered in self.gathered.drain(..) {
            let index = usize::from(gathered.frame);
            let (next_chains, next_slices) = (gathered.chains as usize, gathered.slices as usize);
            let chains_of = self.chains.get(chains..next_chains).unwrap_or_default();
            let slices_of = self.slices.get(slices..next_slices).unwrap_or_default();
            (chains, slices) = (next_chains, next_slices);
            let Framed { front, body, len } = burst.framed(index, header_size);
            match slices_of {
                [only] => {
                    let mut rest = only.skip(only.copy_behind_header(header_size, front.into()));
                    for segment in body {
                        rest = rest.skip(rest.copy_from(*segment));
                    }
                }
                several => {
                    let mut cursor = WriteCursor::new(several);
                    cursor.write(front.into());
                    for segment in body {
                        cursor.write(*segment);
                    }
                }
            }
            sent.count(len);
            give_back(self.queue, chains_of, header_size + len);
        }
        self.chains.clear();
        self.slices.clear();
    }

    /// Delivers a frame that the receiver does not take as it is: with its checksum completed, or cut
    /// into segments. First buffers are gathered for all that has to arrive, then it is written. So a frame
    /// that is cut into segments arrives whole or waits whole, unless not even an empty ring has room for
    /// all of it.
    #[inline(never)]
    fn rework(&mut self, frame: Frame<'_>, sent: &mut Traffic) -> Result<(), Undelivered> {
        let features = self.shape.features;
        let mut delivery = Delivery::new(frame, features).map_err(Undelivered::Dropped)?;
        if delivery.wire_len() > self.shape.frame_limit {
            return Err(Undelivered::Dropped(DropReason::OverMtu));
        }
        let gathered = delivery.try_each_len(|len| {
            // Which frame it is does not matter: there is one.
            self.gather(0, len)
        });
        let is_cut = match gathered {
            Ok(()) => false,
            // The whole ring is in our hands: there is nothing to wait for.
            Err(Undelivered::Full) if self.has_the_whole_ring() => true,
            Err(undelivered) => {
                self.gathered.clear();
                self.untake(0);
                self.slices.clear();
                return Err(undelivered);
            }
        };

        let (mut chains, mut slices) = (0, 0);
        for gathered in self.gathered.drain(..) {
            let Some(outgoing) = delivery.next() else { break };
            let (next_chains, next_slices) = (gathered.chains as usize, gathered.slices as usize);
            let chains_of = self.chains.get(chains..next_chains).unwrap_or_default();
            let slices_of = self.slices.get(slices..next_slices).unwrap_or_default();
            (chains, slices) = (next_chains, next_slices);
            sent.count(outgoing.len);
            let mut header = [0; NetHeader::SIZE];
            let header = header.get_mut(..self.shape.header_size).unwrap_or_default();
            write_header(header, &outgoing.offload, chains_of.len());
            let len = header.len() + outgoing.len;
            let mut cursor = WriteCursor::new(slices_of);
            cursor.write((&*header).into());
            outgoing.write(cursor);
            give_back(self.queue, chains_of, len);
        }
        self.untake(chains);
        self.chains.clear();
        self.slices.clear();
        if is_cut { Err(Undelivered::Cut) } else { Ok(()) }
    }

    /// Whether the driver has no room in the ring for another buffer like the last one, beside those that are gathered.
    fn has_the_whole_ring(&self) -> bool {
        let slots = |chain: &Chain| usize::from(chain.slots());
        let next = self.chains.last().map_or(1, slots);
        self.chains.iter().map(slots).sum::<usize>() + next > self.queue.size().into()
    }

    /// Gathers buffers for a header and `len` bytes.
    #[inline(always)]
    fn gather(&mut self, index: usize, len: usize) -> Result<(), Undelivered> {
        let Shape { features, header_size, .. } = self.shape;
        let total = (header_size + len) as u64;
        let mut room = 0;
        while room < total {
            let missing = (total - room) as u32;
            if self.budget == 0 {
                return Err(Undelivered::Full);
            }
            let taken = self.queue.take_writable(&mut self.translator, missing, self.slices)?;
            let Some(chain) = taken else { return Err(Undelivered::Full) };
            self.chains.push(chain);
            self.budget = self.budget.saturating_sub(chain.descriptors().into());
            if chain.bytes() < header_size as u64 {
                let bytes = chain.bytes();
                return Err(Undelivered::Broken(Broken::TinyBuffer(bytes)));
            }
            room += chain.bytes();
            if room < total && !features.contains(Features::MRG_RXBUF) {
                return Err(Undelivered::Dropped(DropReason::BufferTooSmall));
            }
        }
        let (chains, slices) = (self.chains.len() as u32, self.slices.len() as u32);
        self.gathered.push(Gathered { frame: index as u8, chains, slices });
        Ok(())
    }
}

/// Writes a virtio-net header, as long as the receiver's are, of a frame in so many chains.
#[inline(always)]
fn write_header(header: &mut [u8], offload: &Offload, chains: usize) {
    if offload.is_none()
        && let Some(header) = header.first_chunk_mut::<{ NetHeader::SIZE }>()
    {
        // As good as always, and known but for its end.
        *header = NetHeader { num_buffers: chains as u16, ..NetHeader::default() }.to_bytes();
        return;
    }
    let bytes = offload.header(chains as u16).to_bytes();
    header.copy_from_slice(bytes.get(..header.len()).unwrap_or_default());
}

/// Gives chains back to which `len` bytes were written, one after the other.
#[inline(always)]
fn give_back(queue: &mut impl DeviceRing, chains: &[Chain], len: usize) {
    let mut left = len as u64;
    queue.give_all_back(chains.iter().map(|chain| {
        let written = chain.bytes().min(left);
        left -= written;
        (*chain, written as u32)
    }));
}
