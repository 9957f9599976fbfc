//! A port whose outside is the host: a TAP interface, by way of the kernel's vhost-net.
//!
//! # How it works
//!
//! Elsewhere the guest is on the other side of the rings; here it is us. The kernel's vhost-net is the
//! device, and a thread of the kernel's moves frames between two rings in memory of ours and a queue of the
//! interface. So frames cost this worker no system calls: what a tap port copies in `read` and `writev`, the
//! kernel's thread copies, on another processor if there is one.
//!
//! *From the host*: [`receive`]. Buffers of ours are posted; the used ones are frames of the next burst, and
//! are posted again when nothing of them is held. *To the host*: [`transmit`]. A frame is copied into a free
//! slot, behind its header, and all of a turn are shown to the kernel at once.
//!
//! Each queue of the interface is a pair of rings, with a device of its own ([`pair`]). A pair belongs to
//! one worker, which alone receives by it. Frames to the host come from any worker, so transmit rings have
//! a lock each; a worker with pairs of its own uses no others.
//!
//! What the kernel may ask for in a frame, and what it takes, is as for a tap port: the interface is the
//! same. When the transmit ring is full, frames are held as by a guest that is full.
//!
//! # A kernel that breaks the rules
//!
//! would be a bug of the kernel's, but whatever it writes is checked as if a peer had written it. The port
//! is down then, on all workers, and says so once.

mod pair;
mod receive;
mod transmit;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use engine::{
    App, Burst, Counters, DropReason, Fault, Lease, Outcomes, Outputs, Poller, Selection,
};
use memory::MapError;
use sys::tun::{Offloads, Tap};
use sys::vhost::{Device, VhostError};
use thiserror::Error;
use virtqueue::{LayoutError, Violation};
use wire::virtio::Features;

use crate::lent::Lent;
use crate::tap::{asks, is_within_limits, takes};
use crate::vhost_user::PATIENCE;
use pair::Kept;
use receive::Receive;
use transmit::{NotSent, Transmit};

/// Why a port could not be made.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel's device could not be set up.
    #[error(transparent)]
    Device(#[from] VhostError),
    /// There is no memory for rings and buffers.
    #[error("cannot make memory for the rings: {0}")]
    Memory(MapError),
    /// The rings are not in it.
    #[error("cannot place the rings: {0}")]
    Layout(LayoutError),
    /// The kernel refused something else.
    #[error("cannot set up the rings: {0}")]
    Io(#[from] io::Error),
}

/// What the kernel did wrong.
#[derive(Debug, Error)]
pub enum VhostNetFault {
    /// A virtqueue's rules were broken.
    #[error("the kernel's vhost-net broke a rule of {kind} ring {pair}: {violation}")]
    Ring {
        /// `receive` or `transmit`.
        kind: &'static str,
        /// Which of the interface's queues.
        pair: usize,
        /// Which rule.
        violation: Violation,
    },
    /// A frame that fills no buffer, or more than were used.
    #[error(
        "the kernel's vhost-net delivered a frame by receive ring {pair} in {num_buffers} buffers, of \
         which {found} came"
    )]
    Merge {
        /// Which of the interface's queues.
        pair: usize,
        /// As its header says.
        num_buffers: u16,
        /// Buffers that were used.
        found: u16,
    },
    /// A buffer with more in it than fits, or one at the start of a frame with less than a header.
    #[error(
        "the kernel's vhost-net wrote {written} bytes to a buffer of {size} of receive ring {pair}",
        size = receive::BUFFER
    )]
    Length {
        /// Which of the interface's queues.
        pair: usize,
        /// As the used ring says.
        written: u32,
    },
}

/// What the parts of a port have in common.
struct Shared {
    /// By number.
    pairs: Vec<SharedPair>,
    /// What the kernel takes as it is.
    takes: Features,
    /// A fault happened: nothing is received or transmitted any more.
    latched: AtomicBool,
}

/// What all workers need of a pair.
struct SharedPair {
    transmit: Mutex<Transmit>,
    /// The kernel's side works as long as there is a part.
    _kept: Kept,
}

impl Shared {
    fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// A transmit ring, for as long as nobody has panicked with it.
    fn lock(&self, pair: usize) -> Option<MutexGuard<'_, Transmit>> {
        self.pairs.get(pair)?.transmit.lock().ok()
    }
}

/// A transmit ring, as one worker uses it.
struct Outlet {
    pair: usize,
    /// There is something to publish.
    touched: bool,
    full: Option<Full>,
}

/// A transmit ring that had no room for a frame of this worker's, and that has taken none since.
#[derive(Clone, Copy)]
struct Full {
    /// When that was found.
    since: u64,
    /// How often slots had been taken back by then, if frames are held for the ring.
    held: Option<u32>,
}

/// The port, or its part on one of several workers.
pub struct VhostNetPort {
    shared: Arc<Shared>,
    /// Which of the parts this is.
    part: u32,
    receive: Receive,
    outlets: Vec<Outlet>,
    /// A fault to be reported.
    fault: Option<VhostNetFault>,
    counters: Counters,
}

impl VhostNetPort {
    /// A port in parts for so many workers. Its interface has these queues, and each of them gets one of
    /// these devices: there have to be as many. Frames have a header of [`wire::virtio::NetHeader::SIZE`]
    /// bytes.
    ///
    /// Queue n belongs to worker n, counted around. A worker without one transmits by another one's.
    pub fn parts(
        taps: Vec<Tap>,
        devices: Vec<Device>,
        workers: usize,
    ) -> Result<Vec<Self>, OpenError> {
        let workers = workers.max(1);
        // They are the same for all queues of an interface.
        let offloads = taps.first().map_or(Offloads::None, Tap::offloads);
        let memory = pair::memory(taps.len())?;
        let (mut pairs, mut receivers) = (Vec::new(), Vec::new());
        for (number, (tap, device)) in taps.into_iter().zip(devices).enumerate() {
            let ([receive, transmit], kept) = pair::start(number, &memory, tap, device)?;
            receivers.push(receive);
            let transmit = Mutex::new(Transmit::new(transmit, memory.clone()));
            pairs.push(SharedPair { transmit, _kept: kept });
        }
        let count = pairs.len();
        let latched = AtomicBool::new(false);
        let shared = Arc::new(Shared { pairs, takes: takes(offloads), latched });
        let mut parts: Vec<Self> = (0..workers)
            .map(|part| Self {
                shared: shared.clone(),
                part: part as u32,
                receive: Receive::new(Lent::new(memory.clone()), asks(offloads)),
                outlets: outlets(part, workers, count),
                fault: None,
                counters: Counters::default(),
            })
            .collect();
        for (number, ring) in receivers.into_iter().enumerate() {
            if let Some(part) = parts.get_mut(number % workers) {
                part.receive.add(number, ring);
            }
        }
        Ok(parts)
    }

    /// Takes the port down, on all workers: only the first fault is reported.
    #[cold]
    fn latch(&mut self, fault: VhostNetFault) {
        if !self.shared.latched.swap(true, Ordering::AcqRel) {
            self.fault = Some(fault);
        }
    }

    /// Hands frames to one transmit ring.
    fn deliver(&mut self, outlet: usize, burst: &mut Burst<'_>, selection: &Selection) {
        let Self { shared, outlets, counters, .. } = self;
        let Some(outlet) = outlets.get_mut(outlet) else { return };
        let Some(mut transmit) = shared.lock(outlet.pair) else {
            // A bug of ours: there is nothing to wait for.
            return counters[DropReason::ReceiverDown] += selection.len() as u64;
        };
        outlet.touched = true;
        if let Err(violation) = transmit.reap() {
            counters[DropReason::ReceiverDown] += selection.len() as u64;
            drop(transmit);
            let pair = outlet.pair;
            return self.latch(VhostNetFault::Ring { kind: "transmit", pair, violation });
        }
        let now = burst.now();
        let since = outlet.full.take().map_or(now, |full| full.since);
        // What another worker found may have been a little later than our breath began.
        let is_patient = now.saturating_sub(since) < PATIENCE;
        let (mut took, mut is_full, mut held) = (false, false, None);
        for index in selection.iter() {
            if !is_full {
                let frame = burst.frame(index);
                let within = is_within_limits(&frame.offload, frame.len);
                let takes = if within { shared.takes } else { Features::NONE };
                match transmit.send(&frame, takes, counters) {
                    Ok(()) => {
                        took = true;
                        continue;
                    }
                    Err(NotSent::Never(reason)) => {
                        counters.drop(reason);
                        continue;
                    }
                    Err(NotSent::Full) => is_full = true,
                }
            }
            // And those behind it, which must not overtake it.
            if is_patient && burst.hold(index) {
                held = Some(transmit.reaps());
            } else {
                counters.drop(DropReason::ReceiverFull);
            }
        }
        if is_full {
            outlet.full = Some(Full { since: if took { now } else { since }, held });
        }
    }
}

/// The transmit rings of a part: those of its own pairs, or one of another's.
fn outlets(part: usize, workers: usize, pairs: usize) -> Vec<Outlet> {
    let own = (part..pairs).step_by(workers);
    let other = if own.len() == 0 && pairs > 0 { Some(part % pairs) } else { None };
    own.chain(other).map(|pair| Outlet { pair, touched: false, full: None }).collect()
}

/// What fails by a bug of ours takes all parts down. Dropped by control.
impl Drop for VhostNetPort {
    fn drop(&mut self) {
        self.shared.latched.store(true, Ordering::Release);
    }
}

impl App for VhostNetPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        if self.shared.is_latched() {
            return self.fault.is_some();
        }
        match self.receive.pull(lease, burst, &mut self.counters) {
            Ok(busy) => busy,
            Err(fault) => {
                self.latch(fault);
                true
            }
        }
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let Lease::Guest(memory) = lease else { return };
        self.receive.reclaim(&outcomes, memory);
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        let count = self.outlets.len();
        if self.shared.is_latched() || count == 0 {
            self.counters[DropReason::ReceiverDown] += selection.len() as u64;
            return;
        }
        if count == 1 {
            return self.deliver(0, burst, selection);
        }
        // A flow keeps to one ring, by which the kernel then answers.
        for outlet in 0..count {
            let mut chosen = Selection::default();
            for index in selection.iter() {
                if wire::flow::hash(burst.head(index)) as usize % count == outlet {
                    chosen.push(index);
                }
            }
            if !chosen.is_empty() {
                self.deliver(outlet, burst, &chosen);
            }
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        if self.shared.is_latched() {
            return self.fault.take().map_or(Ok(()), |fault| Err(fault.into()));
        }
        self.receive.publish();
        for outlet in &mut self.outlets {
            if std::mem::take(&mut outlet.touched)
                && let Some(mut transmit) = self.shared.lock(outlet.pair)
            {
                transmit.publish();
            }
        }
        Ok(())
    }

    fn arm(&mut self) -> bool {
        if self.shared.is_latched() {
            return self.fault.is_some();
        }
        let mut busy = self.receive.arm();
        for outlet in &self.outlets {
            if let Some(Full { held: Some(reaps), .. }) = outlet.full
                && let Some(mut transmit) = self.shared.lock(outlet.pair)
            {
                busy |= transmit.arm(self.part, reaps);
            }
        }
        busy
    }

    fn disarm(&mut self) {
        if self.shared.is_latched() {
            return;
        }
        self.receive.disarm();
        for outlet in &mut self.outlets {
            // A frame that is still held in the next breath waits anew.
            if let Some(full) = &mut outlet.full
                && full.held.take().is_some()
                && let Some(mut transmit) = self.shared.lock(outlet.pair)
            {
                transmit.disarm(self.part);
            }
        }
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        // After that what is held for the kernel is to be dropped.
        let held =
            self.outlets.iter().filter_map(|outlet| outlet.full.filter(|full| full.held.is_some()));
        let deadlines = held.map(|full| full.since + PATIENCE).chain(self.receive.deadline());
        deadlines.filter(|deadline| *deadline > now).min()
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        self.receive.register(poller)?;
        // With several parts to a ring, whoever is called looks whether it was for itself.
        for outlet in &self.outlets {
            if let Some(transmit) = self.shared.lock(outlet.pair) {
                transmit.register(poller)?;
            }
        }
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
