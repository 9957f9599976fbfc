//! Apps and the links between them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use thiserror::Error;

use crate::burst::Storage;
use crate::{App, Burst, Counters, DropReason, Pulse, Selection, Traffic};

/// Which app of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppId(pub(crate) usize);

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
struct Target {
    app: AppId,
    input: usize,
    traffic: Traffic,
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
}

struct Slot {
    name: String,
    /// None while frames run through the app, and after it failed.
    app: Option<Box<dyn App>>,
    has_failed: bool,
    has_outside: bool,
    /// Breaths since it had something to do.
    idle: u32,
    /// The time of the breath in which it was asked last.
    asked: u64,
    /// Something was done, by it or with it, that may have to be published.
    is_touched: bool,
    /// The breath in which it published last.
    published: u32,
    /// Not reported yet.
    failure: Option<Failure>,
    outputs: Vec<Option<Target>>,
    /// What apps counted that were here before this one, and the frames that there was none for.
    past: Counters,
}

impl Slot {
    /// Takes note that something was done that may have to be published, and that the app is worth
    /// asking.
    #[inline]
    fn touch(&mut self, id: AppId, due: &mut Due) {
        self.idle = 0;
        if self.has_outside && !std::mem::replace(&mut self.is_touched, true) {
            let is_late = self.published == due.breath;
            if is_late { &mut due.late } else { &mut due.touched }.push(id);
        }
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
    has_failures: bool,
    pub(crate) storage: Storage,
    /// The app whose turn it is to be first; the number of apps, if there are no more behind the last.
    pub(crate) first: usize,
    pub(crate) due: Due,
    /// An app had something to do in the last breath, or frames.
    pub(crate) worked: bool,
    /// All apps are to be asked in the next breath: there was a sleep.
    pub(crate) ask_all: bool,
    /// Frames that were pulled.
    pub(crate) frames: u64,
    pub(crate) pulse: Arc<Pulse>,
}

/// The apps that may have something to publish.
#[derive(Default)]
pub(crate) struct Due {
    /// Those that do so behind this turn.
    pub(crate) touched: Vec<AppId>,
    /// Those that did so in this breath already, and do it at its end: so there are two publications in a
    /// breath at most, however many send to one app.
    pub(crate) late: Vec<AppId>,
    /// The number of this breath, which wraps.
    pub(crate) breath: u32,
}

/// Breaths without anything to do after which an app is not asked each time.
pub(crate) const IDLE: u32 = 64;
/// Breaths in which it is asked once then.
const TURN: usize = 4;

impl Graph {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an app.
    pub fn add(&mut self, name: &str, app: impl App) -> AppId {
        self.slots.push(Slot {
            name: name.to_owned(),
            has_outside: app.has_outside(),
            app: Some(Box::new(app)),
            has_failed: false,
            idle: 0,
            asked: 0,
            is_touched: false,
            published: 0,
            failure: None,
            outputs: Vec::new(),
            past: Counters::default(),
        });
        // Not on the busy path.
        self.due.touched.reserve(self.slots.len());
        self.due.late.reserve(self.slots.len());
        AppId(self.slots.len() - 1)
    }

    /// Leads output `output` of `from` to input `input` of `to`.
    pub fn link(
        &mut self,
        (from, output): (AppId, usize),
        (to, input): (AppId, usize),
    ) -> Result<(), LinkError> {
        if to.0 >= self.slots.len() {
            return Err(LinkError::NoApp);
        }
        let slot = self.slots.get_mut(from.0).ok_or(LinkError::NoApp)?;
        if slot.outputs.len() <= output {
            slot.outputs.resize(output + 1, None);
        }
        if slot.outputs[output].is_some() {
            return Err(LinkError::Taken { app: slot.name.clone(), output });
        }
        slot.outputs[output] = Some(Target { app: to, input, traffic: Traffic::default() });
        Ok(())
    }

    /// Puts another app in the place of one, under its name and with its links. Returns the one that was there, if it had
    /// not failed; what it counted stays. None is added when there is no such place: it is returned.
    pub(crate) fn replace(&mut self, id: AppId, app: Box<dyn App>) -> Option<Box<dyn App>> {
        let Some(slot) = self.slots.get_mut(id.0) else { return Some(app) };
        slot.has_outside = app.has_outside();
        slot.has_failed = false;
        slot.failure = None;
        slot.idle = 0;
        let old = slot.app.replace(app);
        if let Some(old) = &old {
            slot.retire(&**old);
        }
        old
    }

    /// Takes an app out, as one that failed is.
    pub(crate) fn take(&mut self, id: AppId) -> Option<Box<dyn App>> {
        let slot = self.slots.get_mut(id.0)?;
        slot.has_failed = true;
        let app = slot.app.take()?;
        slot.retire(&*app);
        Some(app)
    }

    /// The name of an app.
    pub fn name(&self, id: AppId) -> &str {
        self.slots.get(id.0).map_or("", |slot| &slot.name)
    }

    /// All apps, those that failed included.
    pub fn ids(&self) -> impl Iterator<Item = AppId> + use<> {
        (0..self.slots.len()).map(AppId)
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = Link> {
        self.slots.iter().enumerate().flat_map(|(from, slot)| {
            slot.outputs.iter().enumerate().filter_map(move |(output, target)| {
                let Target { app, input, traffic } = (*target)?;
                Some(Link { from: (AppId(from), output), to: (app, input), traffic })
            })
        })
    }

    /// An app, by its type. None when it is of another type, or failed.
    pub fn get<A: App>(&mut self, id: AppId) -> Option<&mut A> {
        let app: &mut dyn Any = self.slots.get_mut(id.0)?.app.as_deref_mut()?;
        app.downcast_mut()
    }

    /// Whether an app is there, and has not failed.
    pub fn is_running(&self, id: AppId) -> bool {
        self.slots.get(id.0).is_some_and(|slot| slot.app.is_some())
    }

    /// What an app counted, and those that were in its place before, with what was dropped for its absence.
    pub fn counters(&self, id: AppId) -> Counters {
        let Some(slot) = self.slots.get(id.0) else {
            return Counters::default();
        };
        let mut counters = slot.past.clone();
        if let Some(app) = &slot.app {
            counters += app.counters();
        }
        counters
    }

    /// Whether an app is to be asked in this breath, in which `all` are or not: many idle ports do not slow
    /// a few busy ones down.
    #[inline]
    pub(crate) fn is_asked(&self, id: AppId, all: bool) -> bool {
        let is_its_turn = || (self.due.breath as usize).wrapping_add(id.0).is_multiple_of(TURN);
        let is_asked = |slot: &Slot| slot.has_outside && (all || is_its_turn() || slot.idle < IDLE);
        self.slots.get(id.0).is_some_and(is_asked)
    }

    /// See [`App::has_outside`].
    pub(crate) fn has_outside(&self, id: AppId) -> bool {
        self.slots.get(id.0).is_some_and(|slot| slot.has_outside)
    }

    /// Takes note of whether an app, which was asked at `now`, had something to do, or frames.
    #[inline]
    pub(crate) fn note(&mut self, id: AppId, now: u64, had_something: bool) {
        let Some(slot) = self.slots.get_mut(id.0) else { return };
        slot.asked = now;
        if had_something {
            slot.touch(id, &mut self.due);
        } else {
            slot.idle = slot.idle.saturating_add(1);
        }
    }

    /// Takes note that an app may have something to publish, and be worth asking.
    #[inline]
    pub(crate) fn touch(&mut self, id: AppId) {
        if let Some(slot) = self.slots.get_mut(id.0) {
            slot.touch(id, &mut self.due);
        }
    }

    /// Takes note that an app publishes.
    #[inline]
    pub(crate) fn untouch(&mut self, id: AppId) {
        let breath = self.due.breath;
        if let Some(slot) = self.slots.get_mut(id.0) {
            (slot.is_touched, slot.published) = (false, breath);
        }
    }

    /// When an app was asked last.
    pub(crate) fn asked(&self, id: AppId) -> u64 {
        self.slots.get(id.0).map_or(0, |slot| slot.asked)
    }

    /// Calls an app, and catches its panic: the app is then taken out, and its links are dark.
    #[inline]
    pub(crate) fn call<R>(&mut self, id: AppId, call: impl FnOnce(&mut dyn App) -> R) -> Option<R> {
        let slot = self.slots.get_mut(id.0)?;
        let app = slot.app.as_deref_mut()?;
        // What the app leaves half changed goes with it; nothing else is touched by the closure
        // that is not reset by its owner.
        match catch_unwind(AssertUnwindSafe(|| call(app))) {
            Ok(result) => Some(result),
            Err(panic) => {
                let app = slot.app.take()?;
                slot.fail(app, panic);
                self.has_failures = true;
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
        let Some(slot) = self.slots.get_mut(from.0) else {
            return;
        };
        let Some(Some(target)) = slot.outputs.get_mut(output) else {
            slot.past[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        target.traffic.frames += selection.len() as u64;
        target.traffic.bytes += burst.bytes(selection);
        let target = *target;
        let Some(slot) = self.slots.get_mut(target.app.0) else {
            return;
        };
        slot.touch(target.app, &mut self.due);
        // The app is out of its slot while it runs: a link that leads back to it is dark.
        let Some(mut app) = slot.app.take() else {
            let reason = if slot.has_failed { DropReason::AppFailed } else { DropReason::Loop };
            slot.past[reason] += selection.len() as u64;
            return;
        };
        self.pulse.enter(target.app);
        let pushed = catch_unwind(AssertUnwindSafe(|| {
            let mut outputs = Outputs { graph: self, from: target.app };
            app.push(target.input, burst, selection, &mut outputs);
        }));
        self.pulse.enter(from);
        let Some(slot) = self.slots.get_mut(target.app.0) else {
            return;
        };
        match pushed {
            Ok(()) => slot.app = Some(app),
            Err(panic) => {
                slot.fail(app, panic);
                self.has_failures = true;
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
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(index, slot)| Some((AppId(index), slot.failure.take()?)))
    }
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
