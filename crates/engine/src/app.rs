//! The trait of all apps.

use std::any::Any;
use std::error::Error;

use crate::{Burst, Counters, Lease, Outcomes, Outputs, Poller, Selection};

/// What a peer did wrong, in one line for an operator. The app has gone down by itself.
pub type Fault = Box<dyn Error + Send + Sync>;

/// A node that frames pass through.
///
/// Everything is called on the worker's thread. On the busy path an app does not allocate, lock,
/// log, read a clock, or make a system call but the notification and its own input and output.
///
/// The other defaults are those of an app without an outside, which says so: [`Self::has_outside`].
pub trait App: Any + Send {
    /// Whether frames come from outside, or go there, or wait in the app. One without an outside is not
    /// asked to pull, nor to publish or when it has to be called: what is pushed to it, it passes on at once.
    /// Asked once, when the app is added.
    fn has_outside(&self) -> bool {
        true
    }

    /// Puts frames that came from outside into the burst, until it is full. They go out by output
    /// 0, or another: see [`Burst::leave_by`]. Returns whether there was anything to do, frames or not:
    /// a worker with nothing to do goes to sleep after a while, and an app with nothing to do for long is
    /// asked in one breath of four until then, or of sixteen.
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let _ = (lease, burst);
        false
    }

    /// Learns what became of the burst that [`Self::pull`] filled, and gets its lease back. Called
    /// after each pull of frames, and after one of none that leased something.
    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let _ = (outcomes, lease);
    }

    /// Takes the selected frames, which came by input `input`: delivers them outside, or passes
    /// them on. A frame that is neither has to be counted as dropped.
    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    );

    /// Makes visible what was done, with one notification a ring at most. Called behind the turn of the
    /// app that did it, or at the end of the breath if that is not the first time in it; and only when
    /// the app had something to do, pulled frames, or was given some. An error is a peer's fault: the app is down
    /// from then on, and says so once.
    fn publish(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Asks to be woken, then looks once more. True when there is something to do already.
    fn arm(&mut self) -> bool {
        false
    }

    /// When this app has to be called though nothing woke it, if it has to: asked before the worker
    /// sleeps, in the time of [`Burst::now`]. `now` is when it was asked last: whatever was due by then
    /// was done.
    fn deadline(&self, now: u64) -> Option<u64> {
        let _ = now;
        None
    }

    /// The worker is awake and polls: no need to be woken.
    fn disarm(&mut self) {}

    /// Registers the descriptors that wake this app. Called once, when the app is added.
    fn register(&mut self, poller: &Poller) -> std::io::Result<()> {
        let _ = poller;
        Ok(())
    }

    /// What this app counted so far.
    fn counters(&self) -> &Counters;
}
