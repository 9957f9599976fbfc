//! A port whose outside is a guest: the data plane of vhost-user.
//!
//! # How it works
//!
//! Control hands a whole [`Device`] over by [`VhostUserPort::swap`], between two breaths, and gets
//! the old one back to unmap and close. A ring that is the same one as before keeps its position;
//! any other starts at its base.
//!
//! *Out of the guest.* `pull` takes chains from the transmit ring (ring 1) and notes each in
//! `taken`, in ring order, whether it made a frame or not. `reclaim` gives back the ones that are
//! done. Of a frame whose receiver is full, `taken` remembers where its buffers are: in the next
//! breath it is made anew of what is in them then, and nothing that was decided about it is kept.
//!
//! *Into the guest.* `push` gathers writable chains from the receive ring (ring 0) until the header
//! and the frame fit, copies, and notes the used entries. All of them become visible together, in
//! `publish`.
//!
//! # Backpressure
//!
//! A frame whose receiver is full is *held*: its chain stays with us, so that the sender's own flow
//! control sees it. Frames for others pass it by, and their chains go back at once. A receiver that
//! has taken nothing for [`PATIENCE`] drops what is held for it and what comes, until it takes a
//! frame again; so a guest that is gone costs one wait.
//!
//! How much of one sender's traffic may be held, and when it is not listened to, is
//! [`crate::backlog`]'s to say.
//!
//! While frames are held and nothing moves, the worker sleeps as ever: a full receiver's ring is
//! armed too, and [`App::deadline`] bounds the sleep.
//!
//! # A peer that breaks the rules
//!
//! The device is latched: its rings are not touched any more, whoever sends to it is told that the
//! receiver is down, and `publish` reports the violation, once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use engine::{
    App, BURST, Burst, Counters, DropReason, Fault, Frame, Lease, Outcomes, Outputs, Poller,
    Selection, Traffic,
};
use memory::{GuestMemory, ReadSlice, Translator, WriteCursor, WriteSlice, recycle_writable};
use thiserror::Error;
use vhost_user::{Device, RingSetup};
use virtqueue::{Chain, DeviceQueue, Violation};
use wire::virtio::{Features, NetHeader, Offload};

use crate::backlog::Backlog;
use crate::frame::MAX_FRAME;
use crate::offload::{Delivery, Outgoing};
use crate::taken::Taken;

/// How long a receiver may take nothing before it counts as gone, in nanoseconds. A guest whose
/// processor is busy elsewhere for a scheduler's slice or two is not gone.
pub const PATIENCE: u64 = 20_000_000;

/// Bytes of frames after which a burst takes no more: one sender of large frames does not keep the
/// others waiting for long.
const BYTE_BUDGET: u64 = 512 * 1024;

/// What a guest is offered unless its port's configuration says otherwise. It depends on nothing that
/// may change while the switch runs, or guests could neither migrate nor reconnect.
pub const FEATURES: Features = Features::VERSION_1
    .union(Features::ANY_LAYOUT)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
    .union(Features::RING_PACKED)
    .union(Features::IN_ORDER)
    .union(Features::ORDER_PLATFORM)
    .union(Features::MRG_RXBUF)
    .union(Features::MTU)
    .union(Features::GUEST_ANNOUNCE)
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN);

/// What a guest can be offered: also RING_RESET, for front ends that are known to do their part of it.
///
/// QEMU does not, for vhost-user: 7.2 and 10.0 let the guest have it, and then do not tell the back
/// end of a reset. The back end would go on with the old ring, in memory that the guest uses for
/// something else by then. Without it a guest that wants to change the size of its rings is refused
/// by its own driver, and nothing breaks.
pub const SUPPORTED: Features = FEATURES.union(Features::RING_RESET);

/// Descriptors that a guest may make us read in one breath, on each of its rings, before its turn
/// ends: so that one which cuts its buffers into crumbs costs the others no time. Guests that post
/// buffers of a sane size never come near.
const DESCRIPTOR_BUDGET: usize = 8 * 1024;

/// Bytes of a frame around its payload: Ethernet, and up to two tags.
const ETHERNET: usize = 14 + 2 * 4;

/// The ring that we write: the guest receives.
const RECEIVE: usize = 0;
/// The ring that we read: the guest transmits.
const TRANSMIT: usize = 1;

/// What a guest did wrong.
#[derive(Debug, Error)]
pub enum GuestFault {
    /// A virtqueue's rules were broken.
    #[error("{ring} ring: {violation}")]
    Ring {
        /// `receive` or `transmit`.
        ring: &'static str,
        /// Which rule.
        violation: Violation,
    },
    /// A receive buffer that cannot hold a header.
    #[error(
        "receive ring: a buffer of {bytes} bytes cannot hold the header (virtio 1.3, 5.1.6.3.1)"
    )]
    TinyBuffer {
        /// Writable bytes in the chain.
        bytes: u64,
    },
    /// The memory file shrank.
    #[error("the guest's memory file was truncated while in use")]
    MemoryGone,
    /// A kick descriptor that cannot be waited for.
    #[error("ring {ring}: the kick descriptor cannot be waited for: {error}")]
    Kick {
        /// Its number.
        ring: usize,
        /// What the kernel says.
        error: std::io::Error,
    },
}

impl GuestFault {
    fn receive(violation: Violation) -> Self {
        Self::Ring { ring: "receive", violation }
    }

    fn transmit(violation: Violation) -> Self {
        Self::Ring { ring: "transmit", violation }
    }
}

/// A started ring.
struct Ring {
    queue: DeviceQueue,
    setup: RingSetup,
}

impl Ring {
    /// Goes on from `previous`, when it is the same ring.
    fn new(setup: &RingSetup, features: Features, previous: Option<Self>) -> Self {
        let queue = match previous {
            Some(mut ring) if ring.setup.start == setup.start => {
                ring.queue.relocate(setup.layout.clone());
                ring.queue
            }
            _ => DeviceQueue::new(setup.layout.clone(), features, setup.base),
        };
        Self { queue, setup: setup.clone() }
    }

    fn call(&self) {
        if let Some(descriptor) = &self.setup.call {
            // Whatever goes wrong with the descriptor is the guest's loss.
            let _ = sys::notify::signal(descriptor.as_fd());
        }
    }
}

/// A receiver that had no room.
struct Full {
    /// When that was found, if it has taken nothing since.
    since: u64,
    /// Chains that were available, too few for the frame at hand.
    available: u16,
}

struct Active {
    memory: Arc<GuestMemory>,
    features: Features,
    header_size: usize,
    receive: Option<Ring>,
    transmit: Option<Ring>,
    poison_epoch: u64,
}

/// What a swap gives back to control.
pub struct Swapped {
    /// The device that was, to be dropped by control: its memory unmapped, its descriptors closed.
    pub old: Option<Retired>,
    /// Where each ring stands that was stopped by this swap, by its number.
    pub positions: Vec<(usize, u32)>,
}

/// A device that the worker does not use any more.
pub struct Retired {
    _active: Active,
}

/// The port.
pub struct VhostUserPort {
    active: Option<Active>,
    taken: Taken,
    /// A held frame made way: something moved.
    moved: bool,
    backlog: Backlog,
    /// Set while this receiver is full.
    full: Option<Full>,
    /// A fault to be reported.
    fault: Option<GuestFault>,
    /// A fault happened: the rings are not to be touched until the guest is gone.
    latched: bool,
    counters: Counters,
    announcement: Option<Box<[u8]>>,
    /// Descriptors of the receive ring that may still be read in this breath.
    receive_budget: usize,
    /// Bytes of the largest frame that need not be segmented.
    frame_limit: usize,
    chains: Vec<Chain>,
    slices: Vec<WriteSlice<'static>>,
    ends: Vec<End>,
}

impl Default for VhostUserPort {
    fn default() -> Self {
        Self::new()
    }
}

impl VhostUserPort {
    /// A port without a guest.
    pub fn new() -> Self {
        Self {
            active: None,
            taken: Taken::new(),
            moved: false,
            backlog: Backlog::default(),
            full: None,
            fault: None,
            latched: false,
            counters: Counters::default(),
            announcement: None,
            receive_budget: DESCRIPTOR_BUDGET,
            frame_limit: MAX_FRAME,
            chains: Vec::new(),
            slices: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Replaces the device. When this returns, nothing of the old one will be touched again.
    ///
    /// A new ring is scanned without waiting for a kick, and its driver called once: it may have
    /// been told of neither by whoever served it before.
    ///
    /// After a fault the port stays down until it is given no device.
    pub fn swap(&mut self, device: Option<&Device>, poller: &Poller) -> Swapped {
        let mut old = self.active.take();
        let setup = |number: usize| device?.rings.get(number)?.as_ref();
        let transmit = old.as_ref().and_then(|old| old.transmit.as_ref());
        if transmit
            .is_none_or(|ring| setup(TRANSMIT).is_none_or(|next| next.start != ring.setup.start))
        {
            self.drain(old.as_mut());
        }
        let mut positions = Vec::new();
        for (number, ring) in old.iter_mut().flat_map(Active::rings) {
            if !self.latched && ring.queue.publish() {
                ring.call();
            }
            let next = setup(number);
            if next.is_none_or(|next| next.start != ring.setup.start) {
                positions.push((number, ring.queue.position()));
            }
            if let Some(kick) = &ring.setup.kick
                && next.is_none_or(|next| !same(&next.kick, &ring.setup.kick))
            {
                poller.unwatch(kick);
            }
        }
        match device {
            Some(device) => self.active = Some(self.adopt(device, old.as_mut(), poller)),
            None => {
                self.latched = false;
                self.fault = None;
            }
        }
        self.full = None;
        Swapped { old: old.map(|active| Retired { _active: active }), positions }
    }

    /// Gives back all chains that were taken: a ring stops with nothing outstanding.
    /// Frames that were held are dropped.
    fn drain(&mut self, active: Option<&mut Active>) {
        let ring = active.and_then(|active| active.transmit.as_mut()).filter(|_| !self.latched);
        let taken = self.taken.drain();
        let Some(ring) = ring else { return };
        for (chain, is_held) in taken {
            if is_held {
                self.counters.drop(DropReason::ReceiverFull);
            }
            ring.queue.give_back(chain, 0);
        }
    }

    /// Starts on a device, going on with those rings of the old one that are still the same.
    fn adopt(&mut self, device: &Device, mut old: Option<&mut Active>, poller: &Poller) -> Active {
        let mut next = Active {
            memory: device.memory.clone(),
            features: device.features,
            header_size: NetHeader::size(device.features),
            receive: None,
            transmit: None,
            poison_epoch: 0,
        };
        for (number, slot) in [(RECEIVE, &mut next.receive), (TRANSMIT, &mut next.transmit)] {
            let previous = old.as_deref_mut().and_then(|old| old.slot(number)?.take());
            let Some(setup) = device.rings.get(number).and_then(Option::as_ref) else {
                continue;
            };
            let is_same = |of: fn(&RingSetup) -> &Option<Arc<OwnedFd>>| {
                previous.as_ref().is_some_and(|ring| same(of(&ring.setup), of(setup)))
            };
            let was_watched = is_same(|setup| &setup.kick);
            let was_called = is_same(|setup| &setup.call)
                && previous.as_ref().is_some_and(|ring| ring.setup.start == setup.start);
            if let Some(kick) = &setup.kick
                && !was_watched
                && let Err(error) = poller.watch(kick)
            {
                self.latch(GuestFault::Kick { ring: number, error });
            }
            let ring = Ring::new(setup, device.features, previous);
            if !was_called && !self.latched {
                // A ring that starts, or a call that went to a descriptor that the guest had let
                // go of already.
                ring.call();
            }
            *slot = Some(ring);
        }
        next
    }

    /// Sets the guest's MTU, in bytes of a frame's payload. Larger frames are dropped in both
    /// directions, but for those that are yet to be segmented (virtio 1.3, 5.1.4.1).
    pub fn set_mtu(&mut self, mtu: u16) {
        self.frame_limit = usize::from(mtu) + ETHERNET;
    }

    /// Has a frame sent into the switch as if the guest had sent it: an announcement after a
    /// migration.
    pub fn announce(&mut self, frame: Box<[u8]>) {
        self.announcement = Some(frame);
    }

    /// Whether a guest is there that can receive.
    pub fn is_up(&self) -> bool {
        let receive = self.active.as_ref().and_then(|active| active.receive.as_ref());
        !self.latched && receive.is_some_and(|ring| ring.setup.enabled)
    }

    /// Takes the port down: only the first fault is reported.
    #[cold]
    fn latch(&mut self, fault: GuestFault) {
        if !self.latched {
            self.latched = true;
            // Rings in memory that was taken away read as zeros; what they seem to say is not it.
            let gone = self.active.as_mut().is_some_and(Active::memory_is_gone);
            self.fault = Some(if gone { GuestFault::MemoryGone } else { fault });
        }
    }
}

fn same(one: &Option<Arc<OwnedFd>>, other: &Option<Arc<OwnedFd>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

impl Active {
    fn slot(&mut self, number: usize) -> Option<&mut Option<Ring>> {
        match number {
            RECEIVE => Some(&mut self.receive),
            TRANSMIT => Some(&mut self.transmit),
            _ => None,
        }
    }

    fn rings(&mut self) -> impl Iterator<Item = (usize, &mut Ring)> {
        let receive = self.receive.as_mut().map(|ring| (RECEIVE, ring));
        receive.into_iter().chain(self.transmit.as_mut().map(|ring| (TRANSMIT, ring)))
    }

    /// Whether a file of this guest's was found shrunk. Looks only when one of anybody's was.
    #[inline]
    fn memory_is_gone(&mut self) -> bool {
        let epoch = memory::poison_epoch();
        if epoch == self.poison_epoch {
            return false;
        }
        self.poison_epoch = epoch;
        self.memory.is_poisoned()
    }
}

/// How a guest's frames look.
#[derive(Clone, Copy)]
struct Shape {
    features: Features,
    header_size: usize,
    frame_limit: usize,
}

impl Shape {
    /// Whether a frame of `len` bytes is larger than the guest's MTU, and will not be segmented.
    #[inline]
    fn is_over_mtu(&self, len: usize, offload: &Offload) -> bool {
        len > self.frame_limit && offload.segmentation.is_none()
    }
}

/// Takes chains from the transmit ring into the burst: those of held frames first, then new ones.
/// Returns how many new ones.
fn pull<'m>(
    ring: &mut Ring,
    shape: Shape,
    memory: &'m GuestMemory,
    burst: &mut Burst<'m>,
    taken: &mut Taken,
    counters: &mut Counters,
    listen: bool,
) -> Result<usize, Violation> {
    let limit = (MAX_FRAME + shape.header_size) as u32;
    let mut translator = memory.translator();
    let mut descriptors = 0;
    let mut bytes = 0;
    for held in taken.held() {
        let start = burst.segments().len();
        let held_bytes = held.bytes();
        if held_bytes <= limit.into() {
            for piece in held.pieces {
                translator
                    .read(piece.address, piece.len, burst.segments())
                    .map_err(Violation::from)?;
            }
        }
        *held.frame = frame(burst, start, held_bytes, shape, counters);
        descriptors += usize::from(held.descriptors);
        bytes += held_bytes;
    }
    let before = taken.len();
    while listen
        && taken.len() < BURST
        && !burst.is_full()
        && descriptors < DESCRIPTOR_BUDGET
        && bytes < BYTE_BUDGET
    {
        let start = burst.segments().len();
        let chain = ring.queue.take_readable(&mut translator, limit, burst.segments())?;
        let Some(chain) = chain else { break };
        descriptors += usize::from(chain.descriptors());
        bytes += chain.bytes();
        let frame = if ring.setup.enabled {
            frame(burst, start, chain.bytes(), shape, counters)
        } else {
            burst.segments().truncate(start);
            counters.drop(DropReason::SenderDisabled);
            None
        };
        if frame.is_some() {
            counters.received.count(chain.bytes() as usize - shape.header_size);
        }
        taken.push(chain, frame);
    }
    Ok(taken.len() - before)
}

/// Makes a frame of a chain of `bytes`, whose segments were appended to the burst from `start` on.
/// Counts it as dropped when that cannot be.
#[inline]
fn frame(
    burst: &mut Burst<'_>,
    start: usize,
    bytes: u64,
    shape: Shape,
    counters: &mut Counters,
) -> Option<u8> {
    let Shape { features, header_size, .. } = shape;
    let len = bytes.saturating_sub(header_size as u64);
    if len < wire::ethernet::HEADER_SIZE as u64 || len > MAX_FRAME as u64 {
        burst.segments().truncate(start);
        let short = len < wire::ethernet::HEADER_SIZE as u64;
        counters.drop(if short { DropReason::TooShort } else { DropReason::TooLong });
        return None;
    }
    let header = read_header(&burst.segments()[start..], header_size);
    let check = |len| {
        let offload = header.offload(len, features).map_err(|_| DropReason::BadHeader)?;
        if shape.is_over_mtu(len, &offload) { Err(DropReason::OverMtu) } else { Ok(offload) }
    };
    match burst.push(start, header_size, check) {
        Ok(index) => index.map(|index| index as u8),
        Err(reason) => {
            counters.drop(reason);
            None
        }
    }
}

/// Reads the virtio-net header once, however it is cut up.
#[inline]
fn read_header(segments: &[ReadSlice<'_>], size: usize) -> NetHeader {
    let mut bytes = [0; NetHeader::SIZE];
    let mut at = 0;
    for segment in segments {
        let room = bytes.get_mut(at..size).unwrap_or_default();
        at += segment.copy_to(room);
        if at >= size {
            break;
        }
    }
    NetHeader::from_bytes(&bytes)
}

/// Why a frame was not delivered.
enum Undelivered {
    /// There are not enough buffers for now.
    Full,
    /// Not even an empty ring has buffers for all of its segments; some were delivered.
    Cut,
    Dropped(DropReason),
    Fault(GuestFault),
}

impl From<Violation> for Undelivered {
    fn from(violation: Violation) -> Self {
        Self::Fault(GuestFault::receive(violation))
    }
}

/// Where a receiver's buffers are gathered; kept from frame to frame for its allocations.
struct Gather<'s, 'm> {
    translator: Translator<'m>,
    chains: &'s mut Vec<Chain>,
    slices: Vec<WriteSlice<'m>>,
    ends: &'s mut Vec<End>,
    budget: usize,
}

/// Where the buffers of one frame end, in the lists of chains and of slices.
struct End {
    chains: usize,
    slices: usize,
}

impl Gather<'_, '_> {
    /// Delivers a frame, in whatever form the receiver takes it: first buffers are gathered for all
    /// that has to arrive, then it is written. So a frame that is cut into segments arrives whole or
    /// waits whole, unless not even an empty ring has room for all of it.
    #[inline]
    fn deliver(
        &mut self,
        queue: &mut DeviceQueue,
        shape: Shape,
        frame: Frame<'_>,
        sent: &mut Traffic,
    ) -> Result<(), Undelivered> {
        if shape.is_over_mtu(frame.len, &frame.offload) {
            return Err(Undelivered::Dropped(DropReason::OverMtu));
        }
        let mut delivery = Delivery::new(frame, shape.features).map_err(Undelivered::Dropped)?;
        self.chains.clear();
        self.slices.clear();
        self.ends.clear();
        let gathered = delivery.try_each_len(|len| self.gather(queue, shape, len));
        let cut = match gathered {
            Ok(()) => false,
            // The whole ring is in our hands: there is nothing to wait for.
            Err(Undelivered::Full) if self.descriptors() >= queue.size().into() => true,
            Err(undelivered) => {
                queue.untake(self.chains);
                return Err(undelivered);
            }
        };

        let (mut chains, mut slices) = (0, 0);
        for end in self.ends.drain(..) {
            let Some(outgoing) = delivery.next() else { break };
            let chains_of = self.chains.get(chains..end.chains).unwrap_or_default();
            let slices_of = self.slices.get(slices..end.slices).unwrap_or_default();
            (chains, slices) = (end.chains, end.slices);
            sent.count(outgoing.len);
            write(queue, shape.header_size, chains_of, slices_of, outgoing);
        }
        queue.untake(self.chains.get(chains..).unwrap_or_default());
        if cut { Err(Undelivered::Cut) } else { Ok(()) }
    }

    /// Descriptors of the gathered buffers.
    fn descriptors(&self) -> usize {
        self.chains.iter().map(|chain| usize::from(chain.descriptors())).sum()
    }

    /// Gathers buffers for a header and `len` bytes.
    #[inline]
    fn gather(
        &mut self,
        queue: &mut DeviceQueue,
        Shape { features, header_size, .. }: Shape,
        len: usize,
    ) -> Result<(), Undelivered> {
        let total = (header_size + len) as u64;
        let mergeable = features.contains(Features::MRG_RXBUF);
        let mut room = 0;
        while room < total {
            let missing = (total - room) as u32;
            if self.budget == 0 {
                return Err(Undelivered::Full);
            }
            let taken = queue.take_writable(&mut self.translator, missing, &mut self.slices)?;
            let Some(chain) = taken else { return Err(Undelivered::Full) };
            self.chains.push(chain);
            self.budget = self.budget.saturating_sub(chain.descriptors().into());
            if chain.bytes() < header_size as u64 {
                return Err(Undelivered::Fault(GuestFault::TinyBuffer { bytes: chain.bytes() }));
            }
            room += chain.bytes();
            if !mergeable && room < total {
                return Err(Undelivered::Dropped(DropReason::BufferTooSmall));
            }
        }
        self.ends.push(End { chains: self.chains.len(), slices: self.slices.len() });
        Ok(())
    }
}

/// Writes a frame into the buffers that were gathered for it, and gives them back.
#[inline]
fn write(
    queue: &mut DeviceQueue,
    header_size: usize,
    chains: &[Chain],
    slices: &[WriteSlice<'_>],
    frame: Outgoing<'_>,
) {
    let mut left = (header_size + frame.len) as u64;
    let header = frame.offload.header(chains.len() as u16).to_bytes();
    let mut cursor = WriteCursor::new(slices);
    cursor.write(header.get(..header_size).unwrap_or(&header).into());
    frame.write(cursor);
    for chain in chains {
        let written = chain.bytes().min(left);
        left -= written;
        queue.give_back(*chain, written as u32);
    }
}

impl App for VhostUserPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        if self.latched {
            return false;
        }
        // In a burst of its own, which `reclaim` knows by its lease.
        if let Some(announcement) = self.announcement.take() {
            burst.segments().push(lease.private(announcement).into());
            if let Ok(Some(index)) = burst.push::<()>(0, 0, |_| Ok(Offload::NONE)) {
                // There is no chain by which it could be held.
                burst.replicate(index);
            }
            return true;
        }
        let Some(active) = &mut self.active else { return false };
        if active.memory_is_gone() {
            self.latch(GuestFault::MemoryGone);
            return true;
        }
        let Active { features, header_size, .. } = *active;
        let shape = Shape { features, header_size, frame_limit: self.frame_limit };
        let Some(ring) = &mut active.transmit else { return false };
        let moved = std::mem::take(&mut self.moved);
        if self.taken.is_empty() {
            match ring.queue.available() {
                Ok(0) => return moved,
                Ok(_) => {}
                Err(violation) => {
                    self.latch(GuestFault::transmit(violation));
                    return true;
                }
            }
        }
        let plan = self.backlog.plan(self.taken.len(), BURST, burst.now());
        burst.limit_held(plan.hold);
        let memory = lease.guest(&active.memory);
        let (taken, counters) = (&mut self.taken, &mut self.counters);
        match pull(ring, shape, memory, burst, taken, counters, plan.listen) {
            Ok(new) => new > 0 || moved,
            Err(violation) => {
                self.latch(GuestFault::transmit(violation));
                true
            }
        }
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let is_announcement = matches!(lease, Lease::Private(_));
        if self.taken.is_empty() || self.latched || is_announcement {
            return;
        }
        let Some(Active { memory, features, transmit: Some(ring), .. }) = &mut self.active else {
            return;
        };
        let in_order = features.contains(Features::IN_ORDER);
        let translator = &mut memory.translator();
        match self.taken.settle(&mut ring.queue, in_order, translator, &outcomes) {
            Ok(settled) => {
                self.moved = settled.moved;
                self.counters[DropReason::ReceiverFull] += settled.lost;
            }
            Err(violation) => self.latch(GuestFault::transmit(violation)),
        }
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        let active = self.active.as_mut().filter(|_| !self.latched);
        let Some(Active { memory, features, header_size, receive: Some(ring), .. }) = active else {
            self.counters[DropReason::ReceiverDown] += selection.len() as u64;
            return;
        };
        if !ring.setup.enabled {
            self.counters[DropReason::ReceiverDown] += selection.len() as u64;
            return;
        }
        let mut gather = Gather {
            translator: memory.translator(),
            chains: &mut self.chains,
            slices: std::mem::take(&mut self.slices),
            ends: &mut self.ends,
            budget: self.receive_budget,
        };
        let (features, header_size) = (*features, *header_size);
        let shape = Shape { features, header_size, frame_limit: self.frame_limit };
        let mut full = false;
        let mut fault = None;
        for index in selection.iter() {
            if fault.is_some() {
                self.counters.drop(DropReason::ReceiverDown);
                continue;
            }
            // Later frames wait behind one that is held: their order is the sender's.
            let delivered = if full {
                Err(Undelivered::Full)
            } else {
                let sent = &mut self.counters.sent;
                gather.deliver(&mut ring.queue, shape, burst.frame(index), sent)
            };
            match delivered {
                Ok(()) => self.full = None,
                Err(Undelivered::Full) => {
                    full = true;
                    let available = ring.queue.available().unwrap_or(0);
                    let full = self.full.get_or_insert(Full { since: burst.now(), available });
                    full.available = available;
                    let patient = burst.now() - full.since < PATIENCE;
                    if !(patient && burst.hold(index)) {
                        self.counters.drop(DropReason::ReceiverFull);
                    }
                }
                Err(Undelivered::Cut) => {
                    full = true;
                    self.counters.drop(DropReason::ReceiverFull);
                }
                Err(Undelivered::Dropped(reason)) => self.counters.drop(reason),
                Err(Undelivered::Fault(what)) => {
                    self.counters.drop(DropReason::ReceiverDown);
                    fault = Some(what);
                }
            }
        }
        self.receive_budget = gather.budget;
        self.slices = recycle_writable(gather.slices);
        if let Some(fault) = fault {
            self.latch(fault);
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.receive_budget = DESCRIPTOR_BUDGET;
        if let Some(fault) = self.fault.take() {
            return Err(fault.into());
        }
        if self.latched {
            return Ok(());
        }
        for (_, ring) in self.active.iter_mut().flat_map(Active::rings) {
            if ring.queue.publish() {
                ring.call();
            }
        }
        Ok(())
    }

    fn arm(&mut self) -> bool {
        let Some(active) = self.active.as_mut().filter(|_| !self.latched) else { return false };
        let mut busy = self.moved || self.announcement.is_some();
        if let Some(ring) = &mut active.transmit {
            match ring.queue.enable_kicks() {
                // Without a kick descriptor the ring has to be polled.
                Ok(more) => busy |= more || ring.setup.kick.is_none(),
                Err(violation) => {
                    self.latch(GuestFault::transmit(violation));
                    return true;
                }
            }
        }
        let (Some(full), Some(ring)) = (&self.full, &mut active.receive) else { return busy };
        let armed = ring.queue.enable_kicks().and_then(|_| ring.queue.available());
        match armed {
            Ok(available) => busy || available > full.available || ring.setup.kick.is_none(),
            Err(violation) => {
                self.latch(GuestFault::receive(violation));
                true
            }
        }
    }

    fn disarm(&mut self) {
        let active = self.active.as_mut().filter(|_| !self.latched);
        for (_, ring) in active.into_iter().flat_map(Active::rings) {
            ring.queue.disable_kicks();
        }
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        // After that what is held for this receiver is to be dropped.
        let patience = self.full.as_ref().map(|full| full.since + PATIENCE);
        let deadlines = patience.into_iter().chain(self.backlog.deadline());
        deadlines.filter(|deadline| *deadline > now).min()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
