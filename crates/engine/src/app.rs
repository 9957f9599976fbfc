//! The trait of all apps.
//!
//! # The life of an app
//!
//! ```text
//! made, and added to a graph         has_outside
//!   |
//! the worker begins                  register      then link, for what is down already
//!   |
//!   |  +--> breath --------+         see below
//!   |  |      |            |
//!   |  |    about once a second      tick          at the end of a breath
//!   |  |      |            |
//!   |  |    between breaths          link          something that leads here came up, or went down
//!   |  |                             links_told    that was all of it
//!   |  |      |                      is_up         and so may what leads away from here
//!   |  |      |                      reconfigure   control has other settings
//!   |  |      |                      counters, report
//!   |  |      |            |
//!   |  |    nothing to do            arm, deadline; the worker sleeps; disarm
//!   |  +------+------------+
//!   |
//! taken out for good                 stop          then it is dropped, by control
//! or failed                                        dropped at once, by control: nothing else is called
//! ```
//!
//! # A breath
//!
//! ```text
//! for each app with an outside:
//!     pull                           frames come from outside into a burst
//!       push -> push -> push         which runs through the apps that it is sent to
//!     reclaim                        and what became of it is told to who pulled
//!     publish                        by all that had a part in it
//!     notify                         and by the same, behind a fence
//! publish, notify                    by those that had a part once more
//! ```
//!
//! # What an app may do
//!
//! Everything is called on the worker's thread, one call at a time, and a panic in any costs this app alone. In pull, push,
//! reclaim, publish, notify, arm and disarm an app does not allocate, lock, log, read a clock, or make a system call but the notification
//! and its own input and output. The others are seldom called, and may allocate; but all frames of this worker wait
//! for them, so none of them waits for anything.
//!
//! Only push can send frames on, and only pull can have some of its own.

use std::any::{Any, type_name};
use std::error::Error;

use thiserror::Error;

use crate::{Burst, Counters, Lease, Numbers, Outcomes, Outputs, Poller, Selection};

/// What went wrong, in one line for an operator: what a peer did, so that the app has gone down by itself; or what is the matter with
/// settings.
pub type Fault = Box<dyn Error + Send + Sync>;

/// A node that frames pass through: see [the life of an app](self).
///
/// Two methods have no default. The other defaults are those of an app with an outside that has nothing to say; one without says so:
/// [`Self::has_outside`].
pub trait App: Any + Send {
    /// Whether frames come from outside, or go there, or wait in the app. One without an outside is not
    /// asked to pull, nor to publish and notify: what is pushed to it, it passes on at once.
    /// Asked once, when the app is added.
    fn has_outside(&self) -> bool {
        true
    }

    /// Registers the descriptors that wake this app. Called once: when its worker begins; or, before the app is added to one that
    /// runs, by control, on its own thread.
    fn register(&mut self, poller: &Poller) -> std::io::Result<()> {
        let _ = poller;
        Ok(())
    }

    /// Puts frames that came from outside into the burst, until it is full. They go out by output
    /// 0, or another: see [`Burst::leave_by`]. Returns whether there was anything to do, frames or not:
    /// a worker with nothing to do goes to sleep after a while, and an app with nothing to do for long is
    /// asked in one breath of four until then, or of thirty-two.
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let _ = (lease, burst);
        false
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

    /// Learns what became of the burst that [`Self::pull`] filled, and gets its lease back. Called
    /// after each pull of frames, and after one of none that leased something.
    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let _ = (outcomes, lease);
    }

    /// Makes visible what was done. Called behind the turn of the
    /// app that did it, or at the end of the breath if that is not the first time in it; and only when
    /// the app had something to do, pulled frames, or was given some. If all that it did was to take back a few small frames that it had
    /// pulled, and it was busy, that waits for what it is given next, or for its next turn without frames, and some microseconds at most. An error is a peer's fault: the app is down
    /// from then on, and says so once. What it takes to notify peers is better left to [`Self::notify`].
    fn publish(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Notifies those peers that wait for what [`Self::publish`] has just made visible: once a ring at most. Called after each
    /// `publish`, whatever that returned, behind a full fence, one
    /// for all that published: whether a peer waits is to be read after what it waits for was stored, and a fence takes until that has
    /// arrived. An app may notify in `publish`, too, behind a fence of its own; others wait for that.
    fn notify(&mut self) {}

    /// Does what has to be done every now and then: about once a second of [`Burst::now`], at the end of a breath, also when the app
    /// has no outside or had no frames. A worker that sleeps is not woken for it, but by a [`Self::deadline`]: it does it in its next breath.
    fn tick(&mut self, now: u64) {
        let _ = now;
    }

    /// Asks to be woken, then looks once more. True when there is something to do already.
    fn arm(&mut self) -> bool {
        false
    }

    /// When this app has to be called though nothing woke it, if it has to: asked before the worker
    /// sleeps, in the time of [`Burst::now`]. `now` is when it was asked last: whatever was due by then
    /// was done. An app without an outside is not asked, but ticks, when that is due next: for it, `now` is when it ticked last.
    fn deadline(&self, now: u64) -> Option<u64> {
        let _ = now;
        None
    }

    /// The worker is awake and polls: no need to be woken.
    fn disarm(&mut self) {}

    /// Whether there is somebody on the outside: a guest that can receive, an interface that is up. Asked when control has called
    /// the app, as it also does to let go of a peer that had a fault. The apps that its outputs lead to hear of a change ([`Self::link`]).
    fn is_up(&self) -> bool {
        true
    }

    /// Learns that what leads to input `input` came up, or went down: all that is linked to it has failed or has nobody on its
    /// outside. An app believes its inputs up until it hears otherwise. The same may be said more than once.
    ///
    /// Returns the output by which this is passed on: an app between two others is to each as if it were the other.
    ///
    /// Each part of an app hears it on its own worker, one after the other.
    fn link(&mut self, input: usize, is_up: bool) -> Option<usize> {
        let _ = (input, is_up);
        None
    }

    /// Has heard ([`Self::link`]) of all that changed at once: what is better done once for all of it is done now.
    fn links_told(&mut self) {}

    /// Goes by other settings from now on, of the app's own type: see [`settings`]. With an error nothing has changed.
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let _ = settings;
        Err(NoSettings.into())
    }

    /// What this app counted so far.
    fn counters(&self) -> &Counters;

    /// Says numbers of its own, beside its counters, at the time `now`, as [`Burst::now`]. Called when somebody wants to know.
    fn report(&self, now: u64, numbers: &mut Numbers) {
        let _ = (now, numbers);
    }

    /// The app is taken out for good, or its worker stops. Called once, between breaths; nothing else is called afterwards but
    /// [`Self::counters`]. What is still with the app goes no further: it hands it to whoever can have it without a worker, or counts
    /// it as dropped ([`DropReason::Stopped`](crate::DropReason::Stopped)). Not called for an app that has failed.
    fn stop(&mut self) {}
}

/// The settings that an app was given to [go by](App::reconfigure), as what they have to be.
pub fn settings<S: Any>(settings: &dyn Any) -> Result<&S, OtherSettings> {
    settings.downcast_ref().ok_or(OtherSettings { expected: type_name::<S>() })
}

/// Settings are not of the type that the app takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("these are settings of another kind of app: this one takes {expected}")]
pub struct OtherSettings {
    expected: &'static str,
}

/// The app cannot be given other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this kind of app has no settings that can be changed while it runs")]
pub struct NoSettings;
