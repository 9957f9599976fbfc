//! A port whose outside is a guest: the data plane of vhost-user.
//!
//! # How it works
//!
//! A guest has one or more queue pairs: ring 2i is where it receives, ring 2i + 1 is where it
//! transmits. A port has one part on each worker, and each pair has one worker that it belongs to,
//! which exchanges its rings, and alone reads what is transmitted. Any worker delivers to any receive
//! ring: where there are several parts they share those, with a lock each.
//!
//! Control hands a whole [`Device`] over by [`VhostUserPort::swap`], to all parts, each between two
//! breaths of its worker, and gets the old one back to unmap and close. A ring that is the same one
//! as before keeps its position; any other starts at its base.
//!
//! *Out of the guest*: [`transmit`]. *Into the guest*: [`receive`]. Which pair a frame goes to is
//! chosen by its flow: [`steering`].
//!
//! # Backpressure
//!
//! A frame whose receiver is full is *held*: its chain stays with us, so that the sender's own flow
//! control sees it. Frames for others pass it by, and their chains go back as ever. A receiver that
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
//! The device is latched: no part touches its rings any more, whoever sends to it is told that the
//! receiver is down, and the part that noticed reports the violation when it publishes, once.

mod fault;
mod look;
mod receive;
mod ring;
mod steering;
mod taken;
mod transmit;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use engine::{
    App, BURST, Burst, Counters, DropReason, Fault, Lease, Outcomes, Outputs, Poller, Selection,
};
use vhost_user::Device;
use vhost_user::back_end::Offer;
use wire::virtio::{Features, Offload};

pub use fault::GuestFault;
pub use look::{GuestLook, RingLook};
use receive::{Ended, Found, Place, Receiver, Receivers, Scratch};
pub use ring::Swapped;
use ring::{Shape, numbers, setup, unchanged};
use steering::Steering;
use transmit::Transmit;

use crate::frame::{ETHERNET, MAX_FRAME};
use crate::lent::Lent;

/// Queue pairs that a port serves at most: as many as there are ring numbers for in a message
/// (vhost-user, "A vring index for a kick").
pub const MAX_PAIRS: usize = 128;

/// Workers that a switch may have at most.
pub const MAX_WORKERS: usize = 64;

/// How long a receiver may take nothing before it counts as gone, in nanoseconds. A guest whose
/// processor is busy elsewhere for a scheduler's slice or two is not gone.
pub const PATIENCE: u64 = 20_000_000;

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
    .union(Features::MQ)
    .union(Features::GUEST_ANNOUNCE)
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::HOST_USO)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

/// What a guest can be offered: also RING_RESET, for front ends that are known to do their part of it.
///
/// QEMU does not, for vhost-user: 7.2 and 10.0 let the guest have it, and then do not tell the back
/// end of a reset. The back end would go on with the old ring, in memory that the guest uses for
/// something else by then. Without it a guest that wants to change the size of its rings is refused
/// by its own driver, and nothing breaks.
pub const SUPPORTED: Features = FEATURES.union(Features::RING_RESET);
// Or the first guest would find out.
const _: () = assert!(Offer::FEATURES.contains(SUPPORTED));

/// Descriptors that a guest may make a worker read in one breath, to take frames and to deliver them,
/// before its turn ends: so that one which cuts its buffers into crumbs costs the others no time.
/// Guests that post buffers of a sane size never come near.
const DESCRIPTOR_BUDGET: usize = 8 * 1024;

/// The ring of a pair that we write: the guest receives.
fn receive_ring(pair: usize) -> usize {
    2 * pair
}

/// The ring of a pair that we read: the guest transmits.
fn transmit_ring(pair: usize) -> usize {
    2 * pair + 1
}

/// The pairs that belong to one worker: `first`, and every so many further on.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    workers: usize,
}

impl Share {
    fn has(self, pair: usize) -> bool {
        pair >= self.first && (pair - self.first).is_multiple_of(self.workers)
    }

    /// In ascending order: each is at its place.
    fn pairs(self) -> impl Iterator<Item = usize> {
        (self.first..MAX_PAIRS).step_by(self.workers)
    }

    /// The pair at a place.
    fn pair(self, place: usize) -> usize {
        self.first + place * self.workers
    }
}

/// What the parts of a port have in common, beside their [`Receivers`].
struct Shared {
    steering: Steering,
    /// A fault happened: the rings are not to be touched until the guest is gone.
    latched: AtomicBool,
    /// A bit for each part that has a guest.
    present: AtomicU64,
}

impl Shared {
    #[inline]
    fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// Chooses one of the enabled pairs for each of the selected frames, by its place in the burst.
    fn choose(
        &self,
        active: &Active,
        receivers: &mut Receivers,
        burst: &Burst<'_>,
        selection: &Selection,
    ) -> [u8; BURST] {
        let mut pairs = [0; BURST];
        // A driver that tells, and has not taken everything, may just have lost its processor.
        let tells = active.features.contains(Features::EVENT_IDX);
        let quiet = if tells { PATIENCE } else { steering::QUIET };
        let mut chooser = self.steering.burst(&active.enabled, burst.now(), quiet);
        // A bit for each pair, which is looked at once.
        let (mut looked_at, mut drained) = (0u128, 0u128);
        for index in selection.iter() {
            let hash = wire::flow::hash(burst.frame(index).head);
            let is_drained = |pair: u8| {
                let bit = 1 << pair;
                if looked_at & bit == 0 {
                    looked_at |= bit;
                    let mut place = receivers.access(pair.into());
                    let receiver = place.as_mut().and_then(|place| place.ring());
                    if receiver.is_none_or(|receiver| receiver.ring.queue.is_drained()) {
                        drained |= bit;
                    }
                }
                drained & bit != 0
            };
            if let Some(pair) = pairs.get_mut(index) {
                *pair = chooser.choose(hash, is_drained);
            }
        }
        pairs
    }
}

/// What a part knows of the guest.
struct Active {
    lent: Lent,
    features: Features,
    /// The pairs whose receive rings are enabled, ascending.
    enabled: Vec<u8>,
    poison_epoch: u64,
}

impl Active {
    fn new(device: &Device) -> Self {
        let is_enabled =
            |pair: &usize| setup(device, receive_ring(*pair)).is_some_and(|ring| ring.enabled);
        Self {
            lent: Lent::new(device.memory.clone()),
            features: device.features,
            enabled: (0..MAX_PAIRS).filter(is_enabled).map(|pair| pair as u8).collect(),
            poison_epoch: 0,
        }
    }

    /// Whether a file of this guest's was found shrunk. Looks only when one of anybody's was.
    #[inline]
    fn memory_is_gone(&mut self) -> bool {
        let epoch = memory::poison_epoch();
        if epoch == self.poison_epoch {
            return false;
        }
        self.poison_epoch = epoch;
        self.lent.memory.is_poisoned()
    }
}

/// A receive ring that had no room for a frame of this worker's, or was not there, and that has taken
/// none of its frames since.
struct Full {
    pair: usize,
    /// When that was found.
    since: u64,
    /// What was found last, if frames are held for the ring.
    held: Option<Found>,
}

/// The port, or its part on one of several workers.
pub struct VhostUserPort {
    shared: Arc<Shared>,
    receivers: Receivers,
    /// Which of the parts this is.
    part: u32,
    share: Share,
    active: Option<Active>,
    /// Pairs of which the guest used a ring at the last swap, at most.
    pairs: usize,
    transmit: Transmit,
    scratch: Scratch,
    /// The breath in which something was pushed last.
    breath: u32,
    /// The pairs to whose receive rings something was delivered that is not published, or their drivers not notified.
    touched: Pairs,
    full: Vec<Full>,
    /// The kick descriptors that wake this worker, by ring number, and where they are watched.
    kicks: Vec<Option<Arc<OwnedFd>>>,
    poller: Option<Poller>,
    /// What is left of a guest since this was stopped, to be dropped by whoever may wait.
    left: Option<Swapped>,
    /// A fault to be reported.
    fault: Option<GuestFault>,
    counters: Counters,
    announcement: Option<Box<[u8]>>,
    /// Bytes of the largest frame, or segment of a frame.
    frame_limit: usize,
}

impl Default for VhostUserPort {
    fn default() -> Self {
        Self::new()
    }
}

impl VhostUserPort {
    /// A port without a guest, for a switch with one worker.
    pub fn new() -> Self {
        Self::parts(1, 0).remove(0)
    }

    /// A port without a guest, in parts for so many workers, at most [`MAX_WORKERS`]. The part at
    /// `first`, counted from 0 and around, has the first pair of queues: so that ports with one pair
    /// each do not all have the same worker.
    pub fn parts(workers: usize, first: usize) -> Vec<Self> {
        let workers = workers.clamp(1, MAX_WORKERS);
        let shared = Arc::new(Shared {
            steering: Steering::new(),
            latched: AtomicBool::new(false),
            present: AtomicU64::new(0),
        });
        let receivers = Receivers::new(MAX_PAIRS, workers);
        let share = |part| Share { first: (part + workers - first % workers) % workers, workers };
        let parts = receivers.into_iter().enumerate();
        parts.map(|(part, receivers)| Self::part(&shared, receivers, part, share(part))).collect()
    }

    fn part(shared: &Arc<Shared>, receivers: Receivers, part: usize, share: Share) -> Self {
        Self {
            shared: shared.clone(),
            receivers,
            part: part as u32,
            share,
            active: None,
            pairs: 0,
            transmit: Transmit::new(share),
            scratch: Scratch::new(),
            breath: 0,
            touched: Pairs::default(),
            full: Vec::with_capacity(MAX_PAIRS),
            kicks: Vec::new(),
            poller: None,
            left: None,
            fault: None,
            counters: Counters::default(),
            announcement: None,
            frame_limit: MAX_FRAME,
        }
    }

    /// Replaces the device. When this returned in all parts of the port, nothing of the old one will
    /// be touched again.
    ///
    /// A new ring is scanned without waiting for a kick, and its driver called once: it may have
    /// been told of neither by whoever served it before.
    ///
    /// After a fault the port stays down until all parts were given no device.
    pub fn swap(&mut self, device: Option<&Device>, poller: &Poller) -> Swapped {
        let mut swapped = Swapped::default();
        if device.is_some() {
            self.shared.present.fetch_or(1 << self.part, Ordering::AcqRel);
        }
        self.watch_kicks(device, poller, &mut swapped);
        let is_latched = self.shared.is_latched();
        let is_same = match (&self.active, device) {
            (Some(old), Some(new)) => {
                Arc::ptr_eq(&old.lent.memory, &new.memory) && old.features == new.features
            }
            _ => false,
        };
        let pairs = numbers(device).div_ceil(2).max(self.pairs);
        for pair in self.share.pairs().take_while(|pair| *pair < pairs) {
            self.swap_receiver(pair, device, is_same, is_latched, &mut swapped);
        }
        self.pairs = numbers(device).div_ceil(2);
        let counters = &mut self.counters;
        self.transmit.swap(device, is_same, is_latched, &mut swapped, counters);
        let old = std::mem::replace(&mut self.active, device.map(Active::new));
        swapped.retire(old);
        if device.is_none() {
            // There is nothing more to find out, nor to do, for a guest that is gone.
            self.full.clear();
            self.announcement = None;
            swapped.fault = self.fault.take();
            self.leave();
        }
        swapped
    }

    /// Exchanges a receive ring of this worker's share.
    fn swap_receiver(
        &mut self,
        pair: usize,
        device: Option<&Device>,
        is_same: bool,
        is_latched: bool,
        swapped: &mut Swapped,
    ) {
        let number = receive_ring(pair);
        let next = device.and_then(|device| setup(device, number));
        let Some(mut place) = self.receivers.access_anyway(pair) else { return };
        if is_same && unchanged(place.ring().map(|receiver| &receiver.ring), next) {
            return;
        }
        place.exchange(|previous| {
            let ring = swapped.exchange(number, previous, device, is_latched)?;
            let Device { memory, features, .. } = device?;
            Some(Receiver::new(memory.clone(), *features, ring))
        });
    }

    /// Does without a guest. After the last part the port may have another one.
    fn leave(&self) {
        let bit = 1 << self.part;
        let others = self.shared.present.fetch_and(!bit, Ordering::AcqRel) & !bit;
        if others == 0 {
            self.shared.steering.forget();
            self.shared.latched.store(false, Ordering::Release);
        }
    }

    /// Has this worker woken by the kicks of the rings that it reads, and of all those that it may
    /// have to wait for with a frame.
    fn watch_kicks(&mut self, device: Option<&Device>, poller: &Poller, swapped: &mut Swapped) {
        let is_ours = |number: usize| number.is_multiple_of(2) || self.share.has(number / 2);
        let kick = |number| setup(device?, number)?.kick.clone().filter(|_| is_ours(number));
        let rings = numbers(device).max(self.kicks.len());
        let next: Vec<_> = (0..rings).map(kick).collect();
        let old = std::mem::take(&mut self.kicks);
        let is_same = |one: &Option<Arc<OwnedFd>>, two: &Option<Arc<OwnedFd>>| match (one, two) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (one, two) => one.is_none() && two.is_none(),
        };
        // All of the old ones go first: one may have become another ring's.
        for (number, watched) in old.iter().enumerate() {
            if let Some(descriptor) = watched
                && !next.get(number).is_some_and(|next| is_same(next, watched))
            {
                poller.unwatch(descriptor);
                swapped.retire(descriptor.clone());
            }
        }
        for (number, kick) in next.iter().enumerate() {
            if let Some(descriptor) = kick
                && !old.get(number).is_some_and(|watched| is_same(watched, kick))
                && let Err(error) = poller.watch(descriptor)
            {
                self.latch(GuestFault::Kick { ring: number, error });
            }
        }
        self.kicks = next;
        self.poller = Some(poller.clone());
    }

    /// Sets the guest's MTU, in bytes of a frame's payload. Larger frames are dropped in both
    /// directions (virtio 1.3, 5.1.4.1): with room for two tags, whether a frame has any or not. Of one that is yet to be segmented its
    /// segments count; where somebody else makes them, without options of TCP, as the frame is not read.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.frame_limit = usize::from(mtu) + ETHERNET;
    }

    /// Has a frame sent into the switch as if the guest had sent it: an announcement after a
    /// migration. For one of the parts to do.
    pub fn announce(&mut self, frame: Box<[u8]>) {
        self.announcement = Some(frame);
    }

    /// Takes the port down, on all workers: only the first fault is reported.
    #[cold]
    fn latch(&mut self, fault: GuestFault) {
        if !self.shared.latched.swap(true, Ordering::AcqRel) {
            // Rings in memory that was taken away read as zeros; what they seem to say is not it.
            let gone = self.active.as_mut().is_some_and(Active::memory_is_gone);
            self.fault = Some(if gone { GuestFault::MemoryGone } else { fault });
        }
    }

    /// What took the port down, if that was not said yet.
    #[cold]
    fn take_fault(&mut self) -> Result<(), Fault> {
        self.fault.take().map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Delivers each frame to the pair that was chosen for it, all of one pair's together.
    fn deliver_to(&mut self, pairs: &[u8; BURST], burst: &mut Burst<'_>, selection: &Selection) {
        let pair_of = |index: usize| pairs.get(index).copied().unwrap_or_default();
        let mut rest = *selection;
        loop {
            let Some(pair) = rest.iter().next().map(pair_of) else { return };
            let (mut chosen, mut others) = (Selection::default(), Selection::default());
            for index in rest.iter() {
                let is_chosen = pair_of(index) == pair;
                if is_chosen { &mut chosen } else { &mut others }.push(index);
            }
            self.deliver(pair.into(), burst, &chosen);
            rest = others;
        }
    }

    /// Delivers a frame that comes alone to the receive ring of a pair, if that is as simple as it is most often. False if nothing was
    /// done.
    #[inline(always)]
    fn deliver_alone(&mut self, pair: usize, burst: &mut Burst<'_>, index: usize) -> bool {
        if self.scratch.budget == 0 || self.full.iter().any(|full| full.pair == pair) {
            return false;
        }
        let Some(mut place) = self.receivers.access(pair) else { return false };
        let took = place.deliver_alone(burst, index, self.frame_limit, &mut self.counters.sent);
        if took {
            self.scratch.budget -= 1;
            self.touched.insert(pair);
        }
        took
    }

    /// Delivers frames to the receive ring of a pair.
    #[inline(never)]
    fn deliver(&mut self, pair: usize, burst: &mut Burst<'_>, selection: &Selection) {
        let now = burst.now();
        let known = self.full.iter().position(|full| full.pair == pair);
        let since = known.map_or(now, |known| self.full.swap_remove(known).since);
        // Another worker's breath may have begun a little later than ours.
        let is_patient = now.saturating_sub(since) < PATIENCE;
        let Some(mut place) = self.receivers.access(pair) else {
            // A bug of ours: there is nothing to wait for.
            return self.counters[DropReason::ReceiverDown] += selection.len() as u64;
        };
        let (scratch, counters) = (&mut self.scratch, &mut self.counters);
        let limit = self.frame_limit;
        let ended = place.deliver(burst, selection, limit, is_patient, scratch, counters);
        self.touched.insert(pair);
        if ended.has(Ended::BROKEN) {
            drop(place);
            if let Some(broken) = self.scratch.broken.take() {
                self.latch(broken.of(pair));
            }
        } else if ended.has(Ended::FULL) {
            let since = if ended.has(Ended::TOOK) { now } else { since };
            let held = ended.has(Ended::HOLDS).then(|| place.found());
            self.full.push(Full { pair, since, held });
        }
    }
}

/// What fails by a bug of ours lets go of the guest, and takes all parts down. Dropped by control.
impl Drop for VhostUserPort {
    fn drop(&mut self) {
        self.shared.latched.store(true, Ordering::Release);
        for pair in self.share.pairs().take_while(|pair| *pair < self.pairs) {
            if let Some(mut place) = self.receivers.access_anyway(pair) {
                place.exchange(|_| None);
            }
        }
        if let Some(poller) = &self.poller {
            self.kicks.iter().flatten().for_each(|kick| poller.unwatch(kick));
        }
    }
}

/// Some of the pairs of a port, a bit for each: in words that are stored as they are loaded, so that no load has to wait for all stores
/// before it.
#[derive(Clone, Copy, Default)]
struct Pairs([u64; MAX_PAIRS.div_ceil(64)]);

impl Pairs {
    #[inline]
    fn insert(&mut self, pair: usize) {
        if let Some(word) = self.0.get_mut(pair / 64) {
            *word |= 1 << (pair % 64);
        }
    }

    /// Takes all of them out.
    #[inline]
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// In ascending order.
    #[inline]
    fn for_each(self, mut call: impl FnMut(usize)) {
        for (mut word, first) in self.0.into_iter().zip((0..).step_by(64)) {
            while word != 0 {
                call(first + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }
}

impl App for VhostUserPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        if self.shared.is_latched() {
            return self.fault.is_some();
        }
        // In a burst of its own, which `reclaim` knows by its lease.
        if let Some(announcement) = self.announcement.take() {
            burst.segments().push(lease.private(announcement).into());
            if let Ok(Some(index)) = burst.push::<()>(0..1, 0, |_, _| Ok(Offload::NONE)) {
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
        let shape = Shape::new(active.features, self.frame_limit);
        // With one pair there is nothing to choose.
        let steering = (active.enabled.len() > 1).then_some(&self.shared.steering);
        let counters = &mut self.counters;
        match self.transmit.pull(shape, &mut active.lent, steering, lease, burst, counters) {
            Ok(busy) => busy,
            Err(fault) => {
                self.latch(fault);
                true
            }
        }
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        // An announcement's bytes were private.
        let Lease::Guest(memory) = lease else { return };
        if self.shared.is_latched() {
            return;
        }
        let Some(Active { lent, features, .. }) = &mut self.active else { return };
        let reclaimed = self.transmit.reclaim(*features, &memory, &outcomes, &mut self.counters);
        lent.spare = Some(memory);
        if let Err(fault) = reclaimed {
            self.latch(fault);
        }
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
            self.scratch.budget = DESCRIPTOR_BUDGET;
        }
        let active = self.active.as_ref().filter(|_| !self.shared.is_latched());
        match active.map(|active| (&active.enabled[..], active)) {
            None | Some(([], _)) => {
                self.counters[DropReason::ReceiverDown] += selection.len() as u64;
            }
            Some(([pair], _)) => {
                let pair = (*pair).into();
                let only = selection.only();
                if !only.is_some_and(|index| self.deliver_alone(pair, burst, index)) {
                    self.deliver(pair, burst, selection);
                }
            }
            Some((_, active)) => {
                let pairs = self.shared.choose(active, &mut self.receivers, burst, selection);
                self.deliver_to(&pairs, burst, selection);
            }
        }
    }

    /// Gives the guest its rings back as they are, as if it had left: it finds its connection closed only after that, and may
    /// go on with whoever serves it next.
    fn stop(&mut self) {
        if let Some(poller) = self.poller.clone() {
            self.left = Some(self.swap(None, &poller));
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        if self.shared.is_latched() {
            self.touched.take();
            return self.take_fault();
        }
        self.transmit.expose();
        match &mut self.receivers {
            Receivers::Own(places) => {
                self.touched.for_each(|pair| {
                    if let Some(receiver) = places.get_mut(pair).and_then(Place::ring) {
                        receiver.ring.expose();
                    }
                });
            }
            receivers @ Receivers::Common(_) => receivers.publish(self.touched.take()),
        }
        Ok(())
    }

    fn notify(&mut self) {
        let exposed = self.touched.take();
        if self.shared.is_latched() {
            return;
        }
        self.transmit.notify();
        if let Receivers::Own(places) = &mut self.receivers {
            exposed.for_each(|pair| {
                if let Some(receiver) = places.get_mut(pair).and_then(Place::ring) {
                    receiver.ring.notify();
                }
            });
        }
    }

    fn arm(&mut self) -> bool {
        if self.shared.is_latched() {
            return self.fault.is_some();
        }
        let mut busy = self.announcement.is_some();
        let mut fault = None;
        match self.transmit.arm() {
            Ok(more) => busy |= more,
            Err(found) => fault = Some(found),
        }
        for Full { pair, held, .. } in &self.full {
            let Some(found) = held else { continue };
            let Some(mut place) = self.receivers.access(*pair) else { continue };
            match place.arm(self.part, *found) {
                Ok(more) => busy |= more,
                Err(violation) => fault = Some(GuestFault::receive(*pair, violation)),
            }
        }
        if let Some(fault) = fault {
            self.latch(fault);
            return true;
        }
        busy
    }

    fn disarm(&mut self) {
        let is_latched = self.shared.is_latched();
        for Full { pair, held, .. } in &mut self.full {
            // A frame that is still held in the next breath waits anew.
            if held.take().is_some()
                && let Some(mut place) = self.receivers.access(*pair)
            {
                place.disarm(self.part, is_latched);
            }
        }
        if !is_latched {
            self.transmit.disarm();
        }
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        // After that what is held for a receiver is to be dropped.
        let held = self.full.iter().filter(|full| full.held.is_some());
        let deadlines = held.map(|full| full.since + PATIENCE).chain(self.transmit.deadline());
        deadlines.filter(|deadline| *deadline > now).min()
    }

    /// Whether a guest is there. One whose driver begins anew is: its stations are where they were.
    fn is_up(&self) -> bool {
        !self.shared.is_latched() && self.active.is_some()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
