//! Apps and the links between them.

mod carrier;
mod schedule;

use std::any::Any;
use std::collections::HashSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use thiserror::Error;

use self::schedule::{ROUND, Schedule};
use crate::burst::Storage;
use crate::change::{Change, Outgoing};
use crate::id::{AppId, Ids};
use crate::{App, Burst, Counters, DropReason, Fault, Numbers, Pulse, Selection, Traffic};

/// Why two apps could not be linked.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No app of that id.
    #[error("there is no such app")]
    NoApp,
    /// The output is linked already.
    #[error("output {output} of {app} is linked already")]
    Taken {
        /// The app's name.
        app: String,
        /// Which of its outputs.
        output: usize,
    },
}

/// Where an output leads, and what went there.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) app: AppId,
    pub(crate) input: usize,
    pub(crate) traffic: Traffic,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The app that it begins at, and by which of its outputs.
    pub from: (AppId, usize),
    /// The app that it leads to, and by which of its inputs.
    pub to: (AppId, usize),
    /// What went by it.
    pub traffic: Traffic,
    /// The app that it begins at runs, and has somebody on its outside; or what is behind it has.
    pub is_up: bool,
}

/// The place of an app.
#[derive(Default)]
pub(crate) struct Slot {
    /// Whose it is. None: free.
    pub(crate) id: Option<AppId>,
    name: String,
    /// None while frames run through the app, after it failed, and after it was stopped ahead.
    app: Option<Box<dyn App>>,
    has_failed: bool,
    /// It was stopped ahead of the change that takes it out, which is near. It is only counted any more.
    stopped: Option<Box<dyn App>>,
    has_outside: bool,
    /// What it said last: see [`App::is_up`].
    is_up: bool,
    /// It is another app, or its links are others, since they were looked at.
    is_new: bool,
    /// The inputs that it was told are down: see [`App::link`].
    down: Vec<usize>,
    /// The outputs by which it passes on that something is down.
    dark: Vec<usize>,
    /// How often it was asked since it had something to do.
    idle: u32,
    /// Breaths from one in which it is asked to the next, less one: [`pause`] of the above.
    pause: usize,
    /// The time of the breath in which it was asked last.
    asked: u64,
    /// Something was done, by it or with it, that may have to be published.
    is_touched: bool,
    /// Frames that it pulled since it published last, if that was put off: never more than [`FEW`].
    owes: usize,
    /// When it pulled the first of them.
    owes_since: u64,
    /// The breath in which it published last.
    published: u32,
    /// Not reported yet.
    failure: Option<Failure>,
    pub(crate) outputs: Vec<Option<Target>>,
    /// What apps counted that were here before this one, and the frames that there was none for.
    past: Counters,
}

impl Slot {
    pub(crate) fn new(id: AppId, name: &str, app: Box<dyn App>) -> Self {
        Self {
            id: Some(id),
            name: name.to_owned(),
            has_outside: app.has_outside(),
            is_up: true,
            is_new: true,
            app: Some(app),
            ..Self::default()
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.past.clone();
        for app in self.app.iter().chain(&self.stopped) {
            counters += app.counters();
        }
        counters
    }

    #[cfg(test)]
    pub(crate) fn app_mut(&mut self) -> Option<&mut dyn App> {
        self.app.as_deref_mut()
    }

    /// Takes note that something was done that may have to be published, and that the app is worth
    /// asking.
    #[inline]
    fn touch(&mut self, id: AppId, due: &mut Due) {
        self.wake(id, due);
        if self.has_outside && !std::mem::replace(&mut self.is_touched, true) {
            let is_late = self.published == due.breath;
            if is_late { &mut due.late } else { &mut due.touched }.push(id);
        }
    }

    /// Takes note that the app is worth asking.
    #[inline]
    fn wake(&mut self, id: AppId, due: &mut Due) {
        self.idle = 0;
        if self.pause != 0 {
            self.rest(id, 0, due);
        }
    }

    /// Has the app be asked in one breath, and then not in so many.
    #[cold]
    fn rest(&mut self, id: AppId, pause: usize, due: &mut Due) {
        self.pause = pause;
        due.schedule.ask(id.place(), pause);
    }

    /// Keeps what an app counted that is not here any more.
    fn retire(&mut self, app: &dyn App) {
        // Its own bug may have to do with this, too.
        if let Ok(counters) = catch_unwind(AssertUnwindSafe(|| app.counters().clone())) {
            self.past += &counters;
        }
    }

    /// Notes the panic of an app that was taken out of this slot.
    #[cold]
    fn fail(&mut self, app: Box<dyn App>, panic: Box<dyn Any + Send>) {
        let message = panic_message(panic);
        self.retire(&*app);
        self.has_failed = true;
        self.failure = Some(Failure { app, message });
    }
}

/// An app that panicked, and what it said.
pub(crate) struct Failure {
    pub(crate) app: Box<dyn App>,
    pub(crate) message: String,
}

/// A network of apps.
#[derive(Default)]
pub struct Graph {
    slots: Vec<Slot>,
    ids: Ids,
    has_failures: bool,
    /// Of bursts. None while they have it, and before there was any. In a box, so that to take it out moves one word.
    pub(crate) storage: Option<Box<Storage>>,
    /// The place of the app whose turn it is to be first; the number of places, if there are no more behind the last.
    pub(crate) first: usize,
    pub(crate) due: Due,
    /// What was done in the last breath: frames by each link that they went by, and what they have KiB; [`UNKNOWN_WORK`] is
    /// something else. 0: there was nothing to do.
    pub(crate) work: u32,
    /// All apps are to be asked in the next breath: there was a sleep.
    pub(crate) ask_all: bool,
    /// Frames that were pulled.
    pub(crate) frames: u64,
    /// When apps are to [`tick`](App::tick) next.
    pub(crate) next_tick: u64,
    /// The apps whose links have to be looked at.
    changed: Vec<AppId>,
    /// The apps that have heard of changes, while there are more to be told.
    told: HashSet<AppId>,
    /// Frames that apps received which are gone.
    received_by_gone: u64,
    pub(crate) pulse: Arc<Pulse>,
}

/// Which apps are to have a turn, and when, and which have something to publish.
#[derive(Default)]
pub(crate) struct Due {
    /// Those with an outside, and when they are asked.
    pub(crate) schedule: Schedule,
    /// Those that may have something to publish, and do so behind this turn.
    pub(crate) touched: Vec<AppId>,
    /// Those that did so in this breath already, and do it at its end: so there are two publications in a
    /// breath at most, however many send to one app.
    pub(crate) late: Vec<AppId>,
    /// The number of this breath, which wraps.
    pub(crate) breath: u32,
}

impl Due {
    pub(crate) fn with_capacity(apps: usize) -> Self {
        Self {
            schedule: Schedule::with_capacity(apps),
            touched: Vec::with_capacity(apps),
            late: Vec::with_capacity(apps),
            breath: 0,
        }
    }

    /// Takes over the room of another, which gets this one's, if that is larger.
    pub(crate) fn make_room(&mut self, other: &mut Self) {
        self.schedule.make_room(&mut other.schedule);
        for (ours, room) in
            [(&mut self.touched, &mut other.touched), (&mut self.late, &mut other.late)]
        {
            if ours.capacity() < room.capacity() {
                room.append(ours);
                std::mem::swap(ours, room);
            }
        }
    }
}

/// What an app did that had something to do, and no frames: as much as many frames, perhaps.
pub(crate) const UNKNOWN_WORK: u32 = 64;

/// Frames that are few: see [`Graph::note`].
pub(crate) const FEW: usize = 8;
/// Bytes of those of a turn, if they are small: a publication is nothing beside the copy of more.
pub(crate) const SMALL: u64 = 4096;
/// Nanoseconds for which a publication is put off at most, as long as the app has frames.
pub(crate) const SOON: u64 = 20_000;

/// How often an app is asked without having anything to do until it is not asked in each breath any more.
pub(crate) const IDLE: u32 = 64;
/// Breaths in which it is asked once then.
const TURN: usize = 4;
/// How often until it is asked less often still: so many ports that are hardly used cost a busy pair little.
pub(crate) const LONG_IDLE: u32 = 512;
/// Breaths in which it is asked once then. With two ports that send all they can, small frames, these are some 100 microseconds, which its
/// first frame waits at most.
const LONG_TURN: usize = ROUND;

/// In how many breaths, less one, an app is asked once that was asked so often in vain. One less than a power of two.
fn pause(idle: u32) -> usize {
    match idle {
        ..IDLE => 0,
        IDLE..LONG_IDLE => TURN - 1,
        _ => LONG_TURN - 1,
    }
}

impl Graph {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an app.
    pub fn add(&mut self, name: &str, app: impl App) -> AppId {
        let id = self.ids.take();
        let mut change = Change::new(&self.ids);
        change.add(id, name, Box::new(app));
        self.change(&mut change);
        self.may_have_changed(id);
        id
    }

    /// Makes a change, all of it at once, between two breaths. What it has taken out and replaced is in it afterwards, to be
    /// dropped by whoever may wait. Apps that go are stopped, and those that stay hear what came up by it, and what went down.
    pub fn change(&mut self, change: &mut Change) {
        self.stop_those(change);
        self.exchange(change);
    }

    /// Stops an app that a change is about to take out, so that the change has less to do at a stretch. Until then its place stays as
    /// it is, and what comes to it is dropped.
    pub fn stop_ahead(&mut self, id: AppId) {
        self.stop(id);
        if let Some(slot) = self.slot_mut(id)
            && let Some(app) = slot.app.take()
        {
            slot.stopped = Some(app);
        }
    }

    /// Stops the apps that go by a change: before it, so that what fails in that can be reported.
    pub(crate) fn stop_those(&mut self, change: &Change) {
        change.removed.iter().for_each(|(id, _)| self.stop(*id));
    }

    /// Makes a change whose apps have been stopped.
    pub(crate) fn exchange(&mut self, change: &mut Change) {
        change.make_room(&mut self.slots, &mut self.due);
        for (id, removed) in &mut change.removed {
            if let Some(slot) = find_current(&mut self.slots, *id) {
                self.received_by_gone += slot.counters().received.frames;
                self.due.schedule.forget(id.place());
                *removed = Some(std::mem::take(slot));
            }
        }
        for added in &mut change.added {
            let Some(id) = added.id else { continue };
            if let Some(place) = self.slots.get_mut(id.place()) {
                std::mem::swap(place, added);
            }
            self.schedule(id);
            let is_up = self.call(id, |app| app.is_up()).unwrap_or(false);
            if let Some(slot) = self.slot_mut(id) {
                // What leads to it, and where it leads, is looked at below, once for all.
                (slot.is_up, slot.is_new) = (is_up, false);
            }
        }
        for Outgoing { app, outputs } in &mut change.outgoing {
            let Some(slot) = self.slot_mut(*app) else { continue };
            for (output, target) in outputs.iter_mut().enumerate() {
                let Some(target) = target else { continue };
                // A link that stays goes on counting, also if its output has another number.
                let is_same =
                    |before: &&Target| (target.app, target.input) == (before.app, before.input);
                let mut others = slot.outputs.iter().flatten();
                let there = slot.outputs.get(output).and_then(Option::as_ref).filter(is_same);
                if let Some(before) = there.or_else(|| others.find(is_same)) {
                    target.traffic = before.traffic;
                }
            }
            std::mem::swap(outputs, &mut slot.outputs);
        }
        self.unlink_the_gone();
        self.first = self.first.min(self.slots.len());
        self.look_at_all(change);
    }

    /// Has an app that is new be asked in each breath, if it has an outside.
    fn schedule(&mut self, id: AppId) {
        let Some(slot) = find_current(&mut self.slots, id) else { return };
        (slot.idle, slot.pause) = (0, 0);
        let schedule = &mut self.due.schedule;
        match slot.has_outside {
            true => schedule.ask(id.place(), 0),
            false => schedule.forget(id.place()),
        }
    }

    /// Links that led to an app that is gone lead nowhere.
    fn unlink_the_gone(&mut self) {
        for place in 0..self.slots.len() {
            for output in 0..self.slots[place].outputs.len() {
                let target = self.slots[place].outputs[output];
                if target.is_some_and(|target| self.slot(target.app).is_none()) {
                    self.slots[place].outputs[output] = None;
                }
            }
        }
    }

    #[inline]
    fn slot(&self, id: AppId) -> Option<&Slot> {
        self.slots.get(id.place()).filter(|slot| slot.id == Some(id))
    }

    #[inline]
    fn slot_mut(&mut self, id: AppId) -> Option<&mut Slot> {
        find_current(&mut self.slots, id)
    }

    /// The places of apps, free ones included.
    #[inline]
    pub(crate) fn places(&self) -> Range<usize> {
        0..self.slots.len()
    }

    /// The app at a place.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<AppId> {
        self.slots.get(place)?.id
    }

    /// Leads output `output` of `from` to input `input` of `to`.
    pub fn link(
        &mut self,
        (from, output): (AppId, usize),
        (to, input): (AppId, usize),
    ) -> Result<(), LinkError> {
        self.slot(to).ok_or(LinkError::NoApp)?;
        let slot = self.slot_mut(from).ok_or(LinkError::NoApp)?;
        if slot.outputs.len() <= output {
            slot.outputs.resize(output + 1, None);
        }
        if slot.outputs[output].is_some() {
            return Err(LinkError::Taken { app: slot.name.clone(), output });
        }
        slot.outputs[output] = Some(Target { app: to, input, traffic: Traffic::default() });
        slot.is_new = true;
        self.may_have_changed(from);
        Ok(())
    }

    /// Puts another app in the place of one, under its name and with its links. Returns the one that was there, if it had
    /// not failed, and is stopped; what it counted stays. None is added when there is no such place, or a change is about to take it
    /// out: the new one is returned then.
    pub(crate) fn replace(&mut self, id: AppId, app: Box<dyn App>) -> Option<Box<dyn App>> {
        self.stop(id);
        let slot = self.slot_mut(id).filter(|slot| slot.stopped.is_none());
        let Some(slot) = slot else { return Some(app) };
        slot.has_outside = app.has_outside();
        slot.has_failed = false;
        slot.failure = None;
        slot.owes = 0;
        // It is told anew.
        (slot.down, slot.dark, slot.is_new) = (Vec::new(), Vec::new(), true);
        let old = slot.app.replace(app);
        if let Some(old) = &old {
            slot.retire(&**old);
        }
        self.schedule(id);
        self.may_have_changed(id);
        old
    }

    /// Takes an app out, as one that failed is.
    pub(crate) fn take(&mut self, id: AppId) -> Option<Box<dyn App>> {
        let slot = self.slot_mut(id)?;
        slot.has_failed = true;
        let app = slot.app.take()?;
        slot.retire(&*app);
        self.may_have_changed(id);
        Some(app)
    }

    /// The name of an app.
    pub fn name(&self, id: AppId) -> &str {
        self.slot(id).map_or("", |slot| &slot.name)
    }

    /// All apps, those that failed included.
    pub fn ids(&self) -> impl Iterator<Item = AppId> {
        self.slots.iter().filter_map(|slot| slot.id)
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = Link> {
        self.targets().map(|(from, output, Target { app, input, traffic })| Link {
            from: (from, output),
            to: (*app, *input),
            traffic: *traffic,
            is_up: self.is_link_up(from, output),
        })
    }

    /// An app, by its type. None when it is of another type, or failed.
    pub fn get<A: App>(&mut self, id: AppId) -> Option<&mut A> {
        let app: &mut dyn Any = self.slot_mut(id)?.app.as_deref_mut()?;
        app.downcast_mut()
    }

    /// Whether an app is there, or what a failed one has left: it was not taken out, and is not about to be.
    pub fn has(&self, id: AppId) -> bool {
        self.slot(id).is_some_and(|slot| slot.stopped.is_none())
    }

    /// Whether an app is there, has not failed, and was not stopped ahead of the change that takes it out.
    pub fn is_running(&self, id: AppId) -> bool {
        self.slot(id).is_some_and(|slot| slot.app.is_some())
    }

    /// Whether an app has failed, and no other is in its place yet.
    pub fn has_failed(&self, id: AppId) -> bool {
        self.slot(id).is_some_and(|slot| slot.has_failed)
    }

    /// What an app says of itself beside its counters, at a time as that of [`Burst::now`].
    pub fn numbers(&mut self, id: AppId, now: u64) -> Numbers {
        let mut numbers = Numbers::default();
        if !self.is_running(id) {
            return numbers;
        }
        self.call(id, |app| app.report(now, &mut numbers));
        numbers
    }

    /// Has an app go by other settings, of its own type. With an error nothing has changed.
    pub fn reconfigure(&mut self, id: AppId, settings: &dyn Any) -> Result<(), Fault> {
        if !self.is_running(id) {
            return Err("there is no such app, or it has failed".into());
        }
        let done = self.call(id, |app| app.reconfigure(settings));
        done.unwrap_or_else(|| Err("the app has failed".into()))
    }

    /// Stops all apps, and is of no further use but to look at them.
    pub fn stop_all(&mut self) {
        for place in self.places() {
            let Some(id) = self.at(place) else { continue };
            self.stop(id);
        }
    }

    /// Tells an app that it is taken out for good.
    fn stop(&mut self, id: AppId) {
        if self.is_running(id) {
            self.pulse.enter(id);
            self.call(id, |app| app.stop());
            self.pulse.leave();
        }
    }

    /// Frames that apps received, those that are gone included.
    pub fn received(&self) -> u64 {
        let received = |slot: &Slot| slot.counters().received.frames;
        self.received_by_gone + self.slots.iter().map(received).sum::<u64>()
    }

    /// What an app counted, and those that were in its place before, with what was dropped for its absence.
    pub fn counters(&self, id: AppId) -> Counters {
        self.slot(id).map(Slot::counters).unwrap_or_default()
    }

    /// The first of these places that is to be asked in this breath, in which `all` are or not.
    #[inline]
    pub(crate) fn next_asked(&self, places: Range<usize>, all: bool) -> Option<usize> {
        self.due.schedule.next(places, (!all).then_some(self.due.breath))
    }

    /// See [`App::has_outside`].
    pub(crate) fn has_outside(&self, id: AppId) -> bool {
        self.slot(id).is_some_and(|slot| slot.has_outside)
    }

    /// Takes note of whether an app, which was asked at `now`, had something to do, and which frames.
    ///
    /// That a sender may have a few small buffers back is not worth a publication of its own: who sends is likely to be sent an answer,
    /// and is shown both at once then. It waits for its next turn without frames, for more than [`FEW`], or for [`SOON`], whichever comes
    /// first. As it was busy, there is a next turn before the worker sleeps. An app that goes down meanwhile never shows them: to its peer
    /// they are as those that it had in hand.
    #[inline]
    pub(crate) fn note(&mut self, id: AppId, now: u64, was_busy: bool, frames: Traffic) {
        let Some(slot) = find(&mut self.slots, id) else { return };
        slot.asked = now;
        let Traffic { frames, bytes } = frames;
        let owes = slot.owes + frames as usize;
        let since = if slot.owes == 0 { now } else { slot.owes_since };
        let is_soon = now.saturating_sub(since) < SOON;
        if was_busy && frames > 0 && owes <= FEW && bytes <= SMALL && is_soon {
            (slot.owes, slot.owes_since) = (owes, since);
            slot.wake(id, &mut self.due);
        } else if was_busy || frames > 0 || slot.owes > 0 {
            slot.touch(id, &mut self.due);
        } else {
            slot.idle = slot.idle.saturating_add(1);
            let pause = pause(slot.idle);
            if pause != slot.pause {
                slot.rest(id, pause, &mut self.due);
            }
        }
    }

    /// Takes note that an app may have something to publish, and be worth asking.
    #[inline]
    pub(crate) fn touch(&mut self, id: AppId) {
        if let Some(slot) = find(&mut self.slots, id) {
            slot.touch(id, &mut self.due);
        }
    }

    /// Takes note that an app publishes.
    #[inline]
    pub(crate) fn untouch(&mut self, id: AppId) {
        let breath = self.due.breath;
        if let Some(slot) = find(&mut self.slots, id) {
            (slot.is_touched, slot.owes, slot.published) = (false, 0, breath);
        }
    }

    /// When an app was asked last.
    pub(crate) fn asked(&self, id: AppId) -> u64 {
        self.slot(id).map_or(0, |slot| slot.asked)
    }

    /// Calls an app that is there, and catches its panic: the app is then taken out, and its links are dark.
    #[inline]
    pub(crate) fn call<R>(&mut self, id: AppId, call: impl FnOnce(&mut dyn App) -> R) -> Option<R> {
        let slot = find(&mut self.slots, id)?;
        let app = slot.app.as_deref_mut()?;
        // What the app leaves half changed goes with it; nothing else is touched by the closure
        // that is not reset by its owner.
        match catch_unwind(AssertUnwindSafe(|| call(app))) {
            Ok(result) => Some(result),
            Err(panic) => {
                let app = slot.app.take()?;
                slot.fail(app, panic);
                self.has_failures = true;
                self.may_have_changed(id);
                None
            }
        }
    }

    /// Sends the selected frames on by an output of an app.
    #[inline]
    pub(crate) fn send(
        &mut self,
        from: AppId,
        output: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
    ) {
        if selection.is_empty() {
            return;
        }
        self.work += selection.len() as u32;
        let Some(slot) = find(&mut self.slots, from) else {
            return;
        };
        let Some(Some(target)) = slot.outputs.get_mut(output) else {
            slot.past[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        target.traffic += burst.traffic(selection);
        let target = *target;
        let Some(slot) = find(&mut self.slots, target.app) else {
            return;
        };
        slot.touch(target.app, &mut self.due);
        // The app is out of its slot while it runs: a link that leads back to it is dark.
        let Some(mut app) = slot.app.take() else {
            let reason = match slot {
                Slot { has_failed: true, .. } => DropReason::AppFailed,
                Slot { stopped: Some(_), .. } => DropReason::Stopped,
                _ => DropReason::Loop,
            };
            slot.past[reason] += selection.len() as u64;
            return;
        };
        self.pulse.enter(target.app);
        let pushed = catch_unwind(AssertUnwindSafe(|| {
            let mut outputs = Outputs { graph: self, from: target.app };
            app.push(target.input, burst, selection, &mut outputs);
        }));
        self.pulse.enter(from);
        let Some(slot) = find(&mut self.slots, target.app) else {
            return;
        };
        match pushed {
            Ok(()) => slot.app = Some(app),
            Err(panic) => {
                slot.fail(app, panic);
                self.has_failures = true;
                self.may_have_changed(target.app);
            }
        }
    }

    /// Whether an app panicked, and that was not reported yet.
    #[inline]
    pub(crate) fn has_failures(&self) -> bool {
        self.has_failures
    }

    /// The panics that were not reported yet.
    pub(crate) fn take_failures(&mut self) -> impl Iterator<Item = (AppId, Failure)> {
        self.has_failures = false;
        self.slots.iter_mut().filter_map(|slot| Some((slot.id?, slot.failure.take()?)))
    }
}

/// The place of an app, if it is still there.
#[inline]
fn find_current(slots: &mut [Slot], id: AppId) -> Option<&mut Slot> {
    slots.get_mut(id.place()).filter(|slot| slot.id == Some(id))
}

/// The place of an app that is known to be there: one whose turn it is, or that a link leads to.
#[inline]
fn find(slots: &mut [Slot], id: AppId) -> Option<&mut Slot> {
    debug_assert!(slots.get(id.place()).is_some_and(|slot| slot.id == Some(id)), "it is gone");
    slots.get_mut(id.place())
}

/// The outputs of the app that is being called.
pub struct Outputs<'g> {
    graph: &'g mut Graph,
    from: AppId,
}

impl Outputs<'_> {
    /// Passes the selected frames on by output `output`. Frames sent by an output that leads
    /// nowhere are counted as dropped.
    #[inline]
    pub fn push(&mut self, output: usize, burst: &mut Burst<'_>, selection: &Selection) {
        burst.pass_on(|burst| self.graph.send(self.from, output, burst, selection));
    }
}

fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
