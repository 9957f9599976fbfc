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
//! Each queue of the interface is a pair of rings, with a device of its own ([`rings`]). A pair belongs to
//! one worker, which alone receives by it. Frames to the host come from any worker, so transmit rings have
//! a lock each; a worker with pairs of its own uses no others.
//!
//! What the kernel may ask for in a frame, and what it takes, is as for a tap port: the interface is the
//! same. When the transmit ring is full, frames are held as for a guest that is full.
//!
//! The kernel does not say that the interface was deleted: rings of one that is gone just stand still. So
//! control, which hears of it, has the port [look](VhostNetPort::look).
//!
//! # A kernel that breaks the rules
//!
//! would be a bug of the kernel's, but whatever it writes is checked as if a peer had written it. The port
//! is down then, on all workers, and says so once. The kernel for its part says when it finds a ring broken
//! and lets it stand; a thread of the port's waits for that ([`rings`]). Control then takes the rings away, and so
//! from the kernel.

mod receive;
mod rings;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;

use engine::{
    App, Burst, Counters, DropReason, Fault, Lease, Outcomes, Outputs, Poller, Selection,
};
use thiserror::Error;
use virtqueue::Violation;

use crate::tap::{asks, takes};
use crate::vhost_user::PATIENCE;
use receive::Receive;
pub use rings::{OpenError, Rings};
use transmit::Limits;

/// What the kernel did.
#[derive(Debug, Error)]
pub enum VhostNetFault {
    /// The interface was deleted.
    #[error("the interface is gone")]
    Gone,
    /// The kernel could not go on with a ring.
    #[error(
        "the kernel's vhost-net found an error in {kind} ring {pair}, and does not go on with it"
    )]
    Failed {
        /// `receive` or `transmit`.
        kind: &'static str,
        /// Which of the interface's queues.
        pair: usize,
    },
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

/// What one part has of the rings.
struct Share {
    rings: Arc<Rings>,
    receive: Receive,
    outlets: Vec<Outlet>,
    limits: Limits,
    /// Where its rings' calls are watched, if they are.
    poller: Option<Poller>,
}

impl Share {
    /// That of worker `number` of so many. Queue n is received by worker n, counted around. A worker
    /// without one transmits by another one's. None when there is no queue.
    fn new(rings: Arc<Rings>, number: usize, workers: usize) -> Option<Self> {
        let count = rings.count();
        let base = number.checked_rem(count)?;
        let step = workers.max(1);
        let own = number..count;
        let mut receive = Receive::new(rings.memory(), asks(rings.offloads()));
        for pair in own.clone().step_by(step) {
            if let Some(ring) = rings.take_receive(pair) {
                receive.add(pair, ring);
            }
        }
        let outlets = if own.is_empty() { base..base + 1 } else { own };
        let outlet = |pair| Outlet { pair, touched: false, full: None };
        let outlets = outlets.step_by(step).map(outlet).collect();
        let limits = Limits { takes: takes(rings.offloads()), mtu: usize::MAX };
        Some(Self { rings, receive, outlets, limits, poller: None })
    }

    /// Has the worker woken by the kernel, for as long as there is this.
    fn watch(&mut self, poller: &Poller) -> io::Result<()> {
        self.poller = Some(poller.clone());
        self.receive.calls().try_for_each(|call| poller.watch(call))?;
        // Of those who share a ring, each that is called looks whether it was for itself.
        self.outlets.iter().try_for_each(|outlet| {
            let transmit = self.rings.transmit(outlet.pair);
            transmit.map_or(Ok(()), |transmit| poller.watch(transmit.call()))
        })
    }

    /// Hands frames to one transmit ring.
    fn deliver(
        &mut self,
        at: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        counters: &mut Counters,
    ) -> Result<(), VhostNetFault> {
        let Self { rings, outlets, limits, .. } = self;
        let Some(outlet) = outlets.get_mut(at) else { return Ok(()) };
        let pair = outlet.pair;
        let Some(mut transmit) = rings.transmit(pair) else {
            // A bug of ours: there is nothing to wait for.
            counters[DropReason::ReceiverDown] += selection.len() as u64;
            return Ok(());
        };
        if let Err(violation) = transmit.reap() {
            counters[DropReason::ReceiverDown] += selection.len() as u64;
            return Err(VhostNetFault::Ring { kind: "transmit", pair, violation });
        }
        outlet.touched = true;
        let now = burst.now();
        let since = outlet.full.take().map_or(now, |full| full.since);
        let is_patient = now.saturating_sub(since) < PATIENCE;
        let (mut took, mut is_full, mut held) = (false, false, None);
        for index in selection.iter() {
            if !is_full {
                match transmit.send(&burst.frame(index), *limits, counters) {
                    Ok(true) => {
                        took = true;
                        continue;
                    }
                    Ok(false) => is_full = true,
                    Err(reason) => {
                        counters.drop(reason);
                        continue;
                    }
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
        Ok(())
    }
}

/// Transmit rings are other parts' as well, and stay.
impl Drop for Share {
    fn drop(&mut self) {
        let Some(poller) = &self.poller else { return };
        self.receive.calls().for_each(|call| poller.unwatch(call));
        for outlet in &self.outlets {
            if let Some(transmit) = self.rings.transmit(outlet.pair) {
                poller.unwatch(transmit.call());
            }
        }
    }
}

/// The rings that a part has let go of: to be dropped by control.
pub struct Detached(#[expect(dead_code, reason = "only to be dropped")] Share);

/// The part of a port that one of several workers has.
pub struct VhostNetPort {
    /// Of which worker, and how many there are.
    number: usize,
    workers: usize,
    /// What it has of the rings, while there is an interface.
    share: Option<Share>,
    /// Whether the interface is up, for all that control knows.
    is_up: bool,
    /// The interface's MTU, in bytes.
    mtu: usize,
    /// A fault to be reported.
    fault: Option<VhostNetFault>,
    counters: Counters,
}

impl VhostNetPort {
    /// A port with these rings, in as many parts as there are workers, at most
    /// [`crate::vhost_user::MAX_WORKERS`].
    pub fn parts(rings: &Arc<Rings>, workers: usize) -> Vec<Self> {
        let part = |number| Self {
            number,
            workers,
            share: Share::new(rings.clone(), number, workers),
            is_up: true,
            mtu: usize::MAX,
            fault: None,
            counters: Counters::default(),
        };
        (0..workers).map(part).collect()
    }

    /// Gives this part its share of these rings, which are those of an interface that came back; each part
    /// has to be given the same. Returns what it had before.
    ///
    /// When it fails, the part has what it had before.
    pub fn attach(&mut self, rings: Arc<Rings>, poller: &Poller) -> io::Result<Option<Detached>> {
        let mut share = Share::new(rings, self.number, self.workers);
        share.as_mut().map_or(Ok(()), |share| share.watch(poller))?;
        // Not before that has gone well: who drops them here would close them on the worker.
        let before = self.detach();
        self.share = share;
        Ok(before)
    }

    /// Takes this part's rings away: frames to it are then counted as [`DropReason::ReceiverDown`]. When all
    /// parts have let go of them, the kernel's devices are stopped by whoever drops the last.
    pub fn detach(&mut self) -> Option<Detached> {
        let share = self.share.take()?;
        self.fault = None;
        self.counters[DropReason::ReceiverFull] += share.receive.held();
        Some(Detached(share))
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
        self.share.as_ref().is_some_and(|share| share.rings.is_attached())
    }

    /// Goes on counting where another port has stopped, whose place it takes.
    pub fn count_on(&mut self, from: &Counters) {
        self.counters = from.clone();
    }

    /// Looks whether the interface is still there. If not, that is this port's fault, once.
    pub fn look(&mut self) {
        if self.share.as_ref().is_some_and(|share| !share.rings.is_attached()) {
            self.latch(VhostNetFault::Gone);
        }
    }

    /// Takes the port down, on all workers: only the first fault is reported.
    #[cold]
    fn latch(&mut self, fault: VhostNetFault) {
        if self.share.as_ref().is_some_and(|share| share.rings.latch()) {
            self.fault = Some(fault);
        }
    }

    /// Of a port that is down: whether there is a fault to be reported, which may be the kernel's word.
    #[cold]
    fn has_fault(&mut self) -> bool {
        if let Some(number) = self.share.as_ref().and_then(|share| share.rings.take_failed()) {
            let (kind, pair) = number.parts();
            self.fault = Some(VhostNetFault::Failed { kind, pair });
        }
        self.fault.is_some()
    }

    /// Its share, unless the port is down.
    fn working(&mut self) -> Option<(&mut Share, &mut Counters)> {
        let share = self.share.as_mut().filter(|share| !share.rings.is_latched())?;
        Some((share, &mut self.counters))
    }
}

/// What fails by a bug of ours takes all parts down. Dropped by control.
impl Drop for VhostNetPort {
    fn drop(&mut self) {
        if let Some(share) = &self.share {
            share.rings.latch();
        }
    }
}

impl App for VhostNetPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let Some((share, counters)) = self.working() else { return self.has_fault() };
        match share.receive.pull(lease, burst, counters) {
            Ok(busy) => busy,
            Err(fault) => {
                self.latch(fault);
                true
            }
        }
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        if let Lease::Guest(memory) = lease
            && let Some(share) = &mut self.share
        {
            share.receive.reclaim(&outcomes, memory);
        }
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        let (is_up, mtu) = (self.is_up, self.mtu);
        let Some((share, counters)) = self.working().filter(|_| is_up) else {
            self.counters[DropReason::ReceiverDown] += selection.len() as u64;
            return;
        };
        share.limits.mtu = mtu;
        let count = share.outlets.len();
        let mut result = Ok(());
        // A flow keeps to one ring, by which the kernel then answers.
        for outlet in 0..count {
            let mut chosen = *selection;
            if count > 1 {
                chosen.clear();
                let is_chosen =
                    |index: &usize| wire::flow::hash(burst.head(*index)) as usize % count == outlet;
                selection.iter().filter(is_chosen).for_each(|index| chosen.push(index));
            }
            if !chosen.is_empty() {
                result = result.and(share.deliver(outlet, burst, &chosen, counters));
            }
        }
        if let Err(fault) = result {
            self.latch(fault);
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        let Some((share, _)) = self.working() else {
            return self.fault.take().map_or(Ok(()), |fault| Err(fault.into()));
        };
        share.receive.publish();
        for outlet in &mut share.outlets {
            if std::mem::take(&mut outlet.touched)
                && let Some(mut transmit) = share.rings.transmit(outlet.pair)
            {
                transmit.publish();
            }
        }
        Ok(())
    }

    fn arm(&mut self) -> bool {
        let number = self.number;
        let Some((share, _)) = self.working() else { return self.has_fault() };
        let mut busy = share.receive.arm();
        for outlet in &share.outlets {
            if let Some(Full { held: Some(reaps), .. }) = outlet.full
                && let Some(mut transmit) = share.rings.transmit(outlet.pair)
            {
                busy |= transmit.arm(number, reaps);
            }
        }
        busy
    }

    fn disarm(&mut self) {
        let number = self.number;
        let Some((share, _)) = self.working() else { return };
        share.receive.disarm();
        for outlet in &mut share.outlets {
            // A frame that is still held in the next breath waits anew.
            if let Some(full) = &mut outlet.full
                && full.held.take().is_some()
                && let Some(mut transmit) = share.rings.transmit(outlet.pair)
            {
                transmit.disarm(number);
            }
        }
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        let share = self.share.as_ref()?;
        // After that what is held for the kernel is to be dropped.
        let full = share.outlets.iter().filter_map(|outlet| outlet.full);
        let dropped = full.filter(|full| full.held.is_some()).map(|full| full.since + PATIENCE);
        dropped.chain(share.receive.deadline()).filter(|deadline| *deadline > now).min()
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        self.share.as_mut().map_or(Ok(()), |share| share.watch(poller))
    }

    fn is_up(&self) -> bool {
        self.is_up && self.share.as_ref().is_some_and(|share| !share.rings.is_latched())
    }

    /// What is held goes nowhere.
    fn stop(&mut self) {
        if let Some(share) = &self.share {
            self.counters[DropReason::Stopped] += share.receive.held();
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
