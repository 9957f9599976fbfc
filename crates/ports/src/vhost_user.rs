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
//! done. A frame whose receiver is full stays in `taken` and is read again, from its descriptors on,
//! in the next breath: nothing that was decided about it is remembered.
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
    App, BURST, Burst, Counters, DropReason, Fault, Lease, Outcome, Outcomes, Outputs, Poller,
    Selection,
};
use memory::{GuestMemory, ReadSlice, Translator, WriteCursor, WriteSlice, recycle_writable};
use sys::notify::Notifier;
use thiserror::Error;
use vhost_user::{Device, RingSetup};
use virtqueue::Violation;
use virtqueue::split::{Chain, DeviceQueue};
use wire::virtio::{Features, NetHeader, Offload};

use crate::backlog::Backlog;
use crate::frame::{MAX_FRAME, Preparation, complete_checksum, prepare};

/// How long a receiver may take nothing before it counts as gone, in nanoseconds. A guest whose
/// processor is busy elsewhere for a scheduler's slice or two is not gone.
pub const PATIENCE: u64 = 20_000_000;

/// Bytes of frames after which a burst takes no more: one sender of large frames does not keep the
/// others waiting for long.
const BYTE_BUDGET: u64 = 512 * 1024;

/// What a guest is offered. It depends on nothing that may change while the switch runs, or guests
/// could neither migrate nor reconnect.
pub const FEATURES: Features = Features::VERSION_1
    .union(Features::ANY_LAYOUT)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
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

/// Descriptors that a guest may make us read in one breath, on each of its rings, before its turn
/// ends: so that one which cuts its buffers into crumbs costs the others no time. Guests that post
/// buffers of a sane size never come near.
const DESCRIPTOR_BUDGET: usize = 8 * 1024;

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

    fn call(&self, notifier: &mut Option<Notifier>) {
        let Some(descriptor) = &self.setup.call else { return };
        // Whatever goes wrong with the descriptor is the guest's loss.
        match notifier {
            Some(notifier) => drop(notifier.signal(descriptor.as_fd())),
            None => drop(rustix::io::write(descriptor, &1u64.to_ne_bytes())),
        }
    }
}

/// A chain of the transmit ring that was not given back yet.
struct Taken {
    chain: Chain,
    /// The frame of the current burst that was made of it, if it made one.
    frame: Option<u8>,
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
    pub positions: Vec<(usize, u16)>,
}

/// A device that the worker does not use any more.
pub struct Retired {
    _active: Active,
}

/// The port.
pub struct VhostUserPort {
    active: Option<Active>,
    taken: Vec<Taken>,
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
    /// Calls drivers in a way that cannot block. None where the kernel lacks that: then a front end
    /// that means harm can stop us by a call descriptor that blocks.
    notifier: Option<Notifier>,
    announcement: Option<Box<[u8]>>,
    /// Descriptors of the receive ring that may still be read in this breath.
    receive_budget: usize,
    chains: Vec<Chain>,
    slices: Vec<WriteSlice<'static>>,
    private: Vec<u8>,
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
            taken: Vec::with_capacity(BURST),
            moved: false,
            backlog: Backlog::default(),
            full: None,
            fault: None,
            latched: false,
            counters: Counters::default(),
            notifier: Notifier::new().ok(),
            announcement: None,
            receive_budget: DESCRIPTOR_BUDGET,
            chains: Vec::new(),
            slices: Vec::new(),
            private: Vec::new(),
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
        self.drain(old.as_mut());
        let setup = |number: usize| device?.rings.get(number)?.as_ref();
        let mut positions = Vec::new();
        for (number, ring) in old.iter_mut().flat_map(Active::rings) {
            if !self.latched && ring.queue.publish() {
                ring.call(&mut self.notifier);
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

    /// Gives back all chains that were taken: a ring stops, or moves, with nothing outstanding.
    /// Frames that were held are dropped.
    fn drain(&mut self, active: Option<&mut Active>) {
        let ring = active.and_then(|active| active.transmit.as_mut()).filter(|_| !self.latched);
        let Some(ring) = ring else {
            self.taken.clear();
            return;
        };
        for taken in self.taken.drain(..) {
            self.counters.drop(DropReason::ReceiverFull);
            ring.queue.give_back(taken.chain, 0);
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
                ring.call(&mut self.notifier);
            }
            *slot = Some(ring);
        }
        next
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

    fn shape(&self) -> Shape {
        Shape { features: self.features, header_size: self.header_size }
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
}

/// Takes chains from the transmit ring into the burst: those of held frames first, then new ones.
/// Returns how many new ones.
fn pull<'m>(
    ring: &mut Ring,
    shape: Shape,
    memory: &'m GuestMemory,
    burst: &mut Burst<'m>,
    taken: &mut Vec<Taken>,
    counters: &mut Counters,
    listen: bool,
) -> Result<usize, Violation> {
    let limit = (MAX_FRAME + shape.header_size) as u32;
    let mut translator = memory.translator();
    let mut descriptors = 0;
    let mut bytes = 0;
    for held in taken.iter_mut() {
        let start = burst.segments().len();
        let head = held.chain.head;
        held.chain = ring.queue.retake_readable(head, &mut translator, limit, burst.segments())?;
        held.frame = frame(burst, start, held.chain, shape, counters);
        descriptors += usize::from(held.chain.descriptors);
        bytes += held.chain.bytes;
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
        descriptors += usize::from(chain.descriptors);
        bytes += chain.bytes;
        let frame = if ring.setup.enabled {
            frame(burst, start, chain, shape, counters)
        } else {
            burst.segments().truncate(start);
            counters.drop(DropReason::SenderDisabled);
            None
        };
        if frame.is_some() {
            counters.received.count(chain.bytes as usize - shape.header_size);
        }
        taken.push(Taken { chain, frame });
    }
    Ok(taken.len() - before)
}

/// Makes a frame of a chain whose segments were appended to the burst from `start` on. Counts it as
/// dropped when that cannot be.
#[inline]
fn frame(
    burst: &mut Burst<'_>,
    start: usize,
    chain: Chain,
    Shape { features, header_size }: Shape,
    counters: &mut Counters,
) -> Option<u8> {
    let len = chain.bytes.saturating_sub(header_size as u64);
    if len < wire::ethernet::HEADER_SIZE as u64 || len > MAX_FRAME as u64 {
        burst.segments().truncate(start);
        let short = len < wire::ethernet::HEADER_SIZE as u64;
        counters.drop(if short { DropReason::TooShort } else { DropReason::TooLong });
        return None;
    }
    let header = read_header(&burst.segments()[start..], header_size);
    match burst.push(start, header_size, |len| header.offload(len, features)) {
        Ok(index) => index.map(|index| index as u8),
        Err(_) => {
            counters.drop(DropReason::BadHeader);
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
    Full,
    TooSmall,
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
    budget: usize,
}

impl Gather<'_, '_> {
    /// Copies one frame into the receiver's next buffers.
    #[inline]
    fn deliver(
        &mut self,
        queue: &mut DeviceQueue,
        Shape { features, header_size }: Shape,
        offload: &Offload,
        parts: (&[u8], &[ReadSlice<'_>]),
        len: usize,
    ) -> Result<(), Undelivered> {
        let (head, body) = parts;
        let total = (header_size + len) as u64;
        let mergeable = features.contains(Features::MRG_RXBUF);
        self.chains.clear();
        self.slices.clear();
        let mut room = 0;
        while room < total {
            let missing = (total - room) as u32;
            let chain = if self.budget == 0 {
                None
            } else {
                queue.take_writable(&mut self.translator, missing, &mut self.slices)?
            };
            let Some(chain) = chain else {
                queue.untake(self.chains.len() as u16);
                return Err(Undelivered::Full);
            };
            self.chains.push(chain);
            self.budget = self.budget.saturating_sub(chain.descriptors.into());
            if chain.bytes < header_size as u64 {
                return Err(Undelivered::Fault(GuestFault::TinyBuffer { bytes: chain.bytes }));
            }
            room += chain.bytes;
            if !mergeable && room < total {
                queue.untake(1);
                return Err(Undelivered::TooSmall);
            }
        }

        let header = offload.header(self.chains.len() as u16).to_bytes();
        let mut cursor = WriteCursor::new(&self.slices);
        cursor.write(header.get(..header_size).unwrap_or(&header).into());
        cursor.write(head.into());
        for segment in body {
            cursor.write(*segment);
        }
        let mut left = total;
        for chain in self.chains.drain(..) {
            let written = chain.bytes.min(left);
            left -= written;
            queue.give_back(chain, written as u32);
        }
        Ok(())
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
        let shape = active.shape();
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
        let Some(ring) = self.active.as_mut().and_then(|active| active.transmit.as_mut()) else {
            return;
        };
        let held_before = self.taken.len();
        self.taken.retain(|taken| {
            let outcome = taken.frame.map_or(Outcome::Done, |frame| outcomes.get(frame.into()));
            if outcome == Outcome::Done {
                ring.queue.give_back(taken.chain, 0);
            }
            outcome == Outcome::Held
        });
        self.moved = self.taken.len() < held_before;
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
            budget: self.receive_budget,
        };
        let shape = Shape { features: *features, header_size: *header_size };
        let mut full = false;
        let mut fault = None;
        for index in selection.iter() {
            if fault.is_some() {
                self.counters.drop(DropReason::ReceiverDown);
                continue;
            }
            let frame = burst.frame(index);
            let len = frame.len;
            // Later frames wait behind one that is held: their order is the sender's.
            let delivered = if full {
                Err(Undelivered::Full)
            } else {
                match prepare(&frame.offload, *features) {
                    Err(reason) => {
                        self.counters.drop(reason);
                        continue;
                    }
                    Ok(Preparation::None) => {
                        let parts = (frame.head, frame.body);
                        gather.deliver(&mut ring.queue, shape, &frame.offload, parts, len)
                    }
                    Ok(Preparation::CompleteChecksum) => {
                        if !complete_checksum(&frame, &mut self.private) {
                            self.counters.drop(DropReason::BadHeader);
                            continue;
                        }
                        let parts = (&self.private[..], &[][..]);
                        gather.deliver(&mut ring.queue, shape, &Offload::NONE, parts, len)
                    }
                }
            };
            match delivered {
                Ok(()) => {
                    self.counters.sent.count(len);
                    self.full = None;
                }
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
                Err(Undelivered::TooSmall) => self.counters.drop(DropReason::BufferTooSmall),
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
                ring.call(&mut self.notifier);
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
