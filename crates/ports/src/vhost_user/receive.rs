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
use super::{DESCRIPTOR_BUDGET, GuestFault};
use crate::offload::{Delivery, Outgoing};

/// All receive rings of a port, by pair.
pub(super) struct Receivers {
    places: Box<[Aligned]>,
}

/// A place of its own cache lines. Its lock is one that a waiting worker sleeps on after a short while:
/// the one that has it may have lost its processor, and to wait for that awake helps nobody.
#[derive(Default)]
#[repr(align(128))]
struct Aligned(Mutex<Place>);

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
    /// Room for the rings of this many pairs.
    pub(super) fn new(pairs: usize) -> Self {
        Self { places: (0..pairs).map(|_| Aligned::default()).collect() }
    }

    /// The place of a pair's ring, for nobody else meanwhile. None when a bug of ours left it half
    /// changed.
    #[inline]
    pub(super) fn lock(&self, pair: usize) -> Option<MutexGuard<'_, Place>> {
        self.places.get(pair)?.0.lock().ok()
    }

    /// The place of a pair's ring, whatever state it is in.
    pub(super) fn lock_anyway(&self, pair: usize) -> Option<MutexGuard<'_, Place>> {
        let Aligned(mutex) = self.places.get(pair)?;
        Some(mutex.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// Delivers the selected frames. Counts those that are neither delivered nor held, which none is
    /// unless it is to be patient. None when there is no ring, or it is disabled.
    pub(super) fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        frame_limit: usize,
        is_patient: bool,
        scratch: &mut Scratch,
        counters: &mut Counters,
    ) -> Option<Result<Delivered, Broken>> {
        let receiver = self.receiver.as_mut().filter(|receiver| receiver.ring.setup.enabled)?;
        let delivered =
            receiver.deliver(burst, selection, frame_limit, is_patient, scratch, counters);
        Some(delivered.map(|Progress { took, is_full, holds }| {
            self.uses = self.uses.wrapping_add(took.into());
            let found = || Found::Ring {
                available: receiver.ring.queue.available().unwrap_or(0),
                uses: self.uses,
            };
            Delivered { took, is_full, held: holds.then(found) }
        }))
    }

    /// Asks to be woken when there are more buffers, in the name of a worker that found too few. True
    /// when there may be more already: others than it has found, or it was another ring, or none.
    pub(super) fn arm(&mut self, worker: u32, found: Found) -> Result<bool, Violation> {
        self.awaited |= 1 << worker;
        let receiver = self.receiver.as_mut().filter(|receiver| receiver.ring.setup.enabled);
        match (receiver, found) {
            (None, Found::NoRing) => Ok(false),
            (Some(receiver), Found::Ring { available, uses }) => {
                receiver.ring.queue.enable_kicks()?;
                let more = receiver.ring.queue.available()? > available;
                Ok(more || self.uses != uses || receiver.ring.setup.kick.is_none())
            }
            _ => Ok(true),
        }
    }

    /// This worker need not be woken. Others may.
    pub(super) fn disarm(&mut self, worker: u32) {
        self.awaited &= !(1 << worker);
        if self.awaited == 0
            && let Some(receiver) = &mut self.receiver
        {
            receiver.ring.queue.disable_kicks();
        }
    }
}

/// A receive ring.
pub(super) struct Receiver {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) features: Features,
    pub(super) ring: Ring,
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
pub(super) struct Delivered {
    /// The ring took a frame.
    pub(super) took: bool,
    /// There was no room for the last frame, and possibly others before it.
    pub(super) is_full: bool,
    /// Frames are held until there is more than this.
    pub(super) held: Option<Found>,
}

/// The same, as far as the ring itself knows.
struct Progress {
    took: bool,
    is_full: bool,
    /// Frames are held.
    holds: bool,
}

impl Receiver {
    fn deliver(
        &mut self,
        burst: &mut Burst<'_>,
        selection: &Selection,
        frame_limit: usize,
        mut is_patient: bool,
        scratch: &mut Scratch,
        counters: &mut Counters,
    ) -> Result<Progress, Broken> {
        let shape = Shape::new(self.features, frame_limit);
        let mut gather = Gather {
            translator: self.memory.translator(),
            chains: &mut scratch.chains,
            slices: std::mem::take(&mut scratch.slices),
            ends: &mut scratch.ends,
            budget: scratch.budget,
        };
        let queue = &mut self.ring.queue;
        let (mut took, mut is_full, mut holds) = (false, false, false);
        let mut broken = None;
        for index in selection.iter() {
            if broken.is_some() {
                counters.drop(DropReason::ReceiverDown);
                continue;
            }
            // Later frames wait behind one that is held: their order is the sender's.
            let delivered = if is_full {
                Err(Undelivered::Full)
            } else {
                gather.deliver(queue, shape, burst.frame(index), &mut counters.sent)
            };
            match delivered {
                Ok(()) => (took, is_patient) = (true, true),
                Err(Undelivered::Full) => {
                    is_full = true;
                    if is_patient && burst.hold(index) {
                        holds = true;
                    } else {
                        counters.drop(DropReason::ReceiverFull);
                    }
                }
                Err(Undelivered::Cut) => {
                    (took, is_patient, is_full) = (true, true, true);
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
        broken.map_or(Ok(Progress { took, is_full, holds }), Err)
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
