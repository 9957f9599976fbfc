//! The receive rings: frames into the guest.
//!
//! Writable chains are gathered from a ring until the header and the frame fit, the frame is copied,
//! and the used entries are noted. All of them become visible together when the ring is published.
//!
//! Any worker may deliver to any ring, since frames come from everywhere. So these rings have a lock
//! each, taken once for what a burst delivers and once to publish; whoever holds it sees whole
//! deliveries of the others, and publishes theirs with its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Burst, Counters, DropReason, Frame, Selection, Traffic};
use memory::{GuestMemory, Translator, WriteCursor, WriteSlice, recycle_writable};
use virtqueue::{Chain, DeviceQueue, Violation};
use wire::virtio::Features;

use super::ring::{Ring, Shape};
use super::{DESCRIPTOR_BUDGET, GuestFault, PATIENCE};
use crate::offload::{Delivery, Outgoing};

/// All receive rings of a port, by pair.
pub(super) struct Receivers {
    slots: Box<[Slot]>,
}

/// A ring of its own cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Slot(Mutex<Option<Receiver>>);

impl Receivers {
    /// Room for the rings of this many pairs.
    pub(super) fn new(pairs: usize) -> Self {
        Self { slots: (0..pairs).map(|_| Slot::default()).collect() }
    }

    /// The ring of a pair. None when there is none, or [`Self::is_broken`].
    #[inline]
    pub(super) fn lock(&self, pair: usize) -> Option<Locked<'_>> {
        let guard = self.slots.get(pair)?.0.lock().ok()?;
        guard.is_some().then_some(Locked(guard))
    }

    /// The same, if frames may be delivered to it.
    #[inline]
    pub(super) fn lock_enabled(&self, pair: usize) -> Option<Locked<'_>> {
        let mut locked = self.lock(pair)?;
        locked.get().ring.setup.enabled.then_some(locked)
    }

    /// Whether a bug of ours left the ring of a pair half changed.
    pub(super) fn is_broken(&self, pair: usize) -> bool {
        self.slots.get(pair).is_none_or(|Slot(mutex)| mutex.is_poisoned())
    }

    /// Exchanges the ring of a pair.
    pub(super) fn exchange(
        &self,
        pair: usize,
        exchange: impl FnOnce(Option<Receiver>) -> Option<Receiver>,
    ) {
        let Some(Slot(mutex)) = self.slots.get(pair) else { return };
        let mut slot = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = exchange(slot.take());
    }
}

/// A ring that nobody else uses meanwhile.
pub(super) struct Locked<'r>(MutexGuard<'r, Option<Receiver>>);

impl Locked<'_> {
    /// The ring.
    #[inline]
    pub(super) fn get(&mut self) -> &mut Receiver {
        let Some(receiver) = self.0.as_mut() else { unreachable!("looked at when it was locked") };
        receiver
    }
}

/// A receive ring.
pub(super) struct Receiver {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) features: Features,
    pub(super) ring: Ring,
    /// When it was found to be full, if it has taken nothing since.
    full_since: Option<u64>,
    /// Counts the times that buffers were used, and wraps.
    uses: u32,
    /// A bit for each worker that sleeps until there are more buffers.
    armed: u64,
}

/// What a worker needs to gather buffers; kept from burst to burst for its allocations.
pub(super) struct Scratch {
    chains: Vec<Chain>,
    slices: Vec<WriteSlice<'static>>,
    ends: Vec<End>,
    /// Descriptors that may still be read in this breath.
    pub(super) budget: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { chains: Vec::new(), slices: Vec::new(), ends: Vec::new(), budget: DESCRIPTOR_BUDGET }
    }
}

/// How a delivery ended.
pub(super) enum Delivered {
    /// Nothing waits.
    All,
    /// Frames are held until there is more than this.
    Held(Seen),
}

/// What was found in a ring.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Chains that were available, or descriptors.
    available: u16,
    /// How often buffers had been used. If that is another number now, what is available is not
    /// what was.
    uses: u32,
}

impl Receiver {
    pub(super) fn new(memory: Arc<GuestMemory>, features: Features, ring: Ring) -> Self {
        Self { memory, features, ring, full_since: None, uses: 0, armed: 0 }
    }

    /// Delivers the selected frames. Counts those that are neither delivered nor held.
    pub(super) fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        frame_limit: usize,
        scratch: &mut Scratch,
        counters: &mut Counters,
    ) -> Result<Delivered, Broken> {
        let shape = Shape::new(self.features, frame_limit);
        let mut gather = Gather {
            translator: self.memory.translator(),
            chains: &mut scratch.chains,
            slices: std::mem::take(&mut scratch.slices),
            ends: &mut scratch.ends,
            budget: scratch.budget,
        };
        let queue = &mut self.ring.queue;
        let mut full = false;
        let mut holds = false;
        let mut broken = None;
        for index in selection.iter() {
            if broken.is_some() {
                counters.drop(DropReason::ReceiverDown);
                continue;
            }
            // Later frames wait behind one that is held: their order is the sender's.
            let delivered = if full {
                Err(Undelivered::Full)
            } else {
                gather.deliver(queue, shape, burst.frame(index), &mut counters.sent)
            };
            match delivered {
                Ok(()) => {
                    self.full_since = None;
                    self.uses = self.uses.wrapping_add(1);
                }
                Err(Undelivered::Full) => {
                    full = true;
                    let now = burst.now();
                    let since = *self.full_since.get_or_insert(now);
                    // Another worker's breath may have begun a little later than ours.
                    let is_patient = now.saturating_sub(since) < PATIENCE;
                    if is_patient && burst.hold(index) {
                        holds = true;
                    } else {
                        counters.drop(DropReason::ReceiverFull);
                    }
                }
                Err(Undelivered::Cut) => {
                    full = true;
                    self.uses = self.uses.wrapping_add(1);
                    counters.drop(DropReason::ReceiverFull);
                }
                Err(Undelivered::Dropped(reason)) => counters.drop(reason),
                Err(Undelivered::Broken(what)) => {
                    counters.drop(DropReason::ReceiverDown);
                    broken = Some(what);
                }
            }
        }
        scratch.budget = gather.budget;
        scratch.slices = recycle_writable(gather.slices);
        match broken {
            Some(broken) => Err(broken),
            None if holds => {
                let available = queue.available().unwrap_or(0);
                Ok(Delivered::Held(Seen { available, uses: self.uses }))
            }
            None => Ok(Delivered::All),
        }
    }

    /// When frames that are held for this ring are to be dropped.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.full_since.map(|since| since + PATIENCE)
    }

    /// Asks for a kick when there are more buffers, in the name of a worker that found too few. True
    /// when there may be more already: others than it has seen, or the ring was exchanged since.
    pub(super) fn arm(&mut self, worker: u32, seen: Seen) -> Result<bool, Violation> {
        self.armed |= 1 << worker;
        self.ring.queue.enable_kicks()?;
        let more = self.ring.queue.available()? > seen.available || self.uses != seen.uses;
        Ok(more || self.full_since.is_none() || self.ring.setup.kick.is_none())
    }

    /// Whether a worker sleeps until there are more buffers.
    pub(super) fn is_awaited(&self) -> bool {
        self.armed != 0
    }

    /// This worker wants no kick. Others may.
    pub(super) fn disarm(&mut self, worker: u32) {
        self.armed &= !(1 << worker);
        if self.armed == 0 {
            self.ring.queue.disable_kicks();
        }
    }
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

impl From<Violation> for Undelivered {
    fn from(violation: Violation) -> Self {
        Self::Broken(Broken::Ring(violation))
    }
}

/// Where a receiver's buffers are gathered.
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
        let mut delivery = Delivery::new(frame, shape.features).map_err(Undelivered::Dropped)?;
        if delivery.wire_len() > shape.frame_limit {
            return Err(Undelivered::Dropped(DropReason::OverMtu));
        }
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
                let bytes = chain.bytes();
                return Err(Undelivered::Broken(Broken::TinyBuffer(bytes)));
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
