//! The thread that breathes.
//!
//! # Going to sleep without losing a wake-up
//!
//! A worker that found nothing to do for a while (up to `idle_spin`, see [`Spin`]) arms every app: each asks its peers to notify,
//! fences, and looks once more. Only if none of them finds anything does the worker block, on
//! descriptors that were watched all along. A kick, a frame on a tap or a command that comes after
//! an app looked is an edge on a watched descriptor, which ends the wait at once. A command is put
//! into the queue, then the flag is set that says so, and then the wake descriptor is written; the worker looks at the flag
//! after the wait, and at the queue if it is set.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::{App, AppId, Change, Event, Fault, Graph, Histogram, Numbers, Poller, Pulse};

/// Commands that control may have under way: whoever [sends](WorkerHandle::run) another waits for room. One a port is usual.
pub const COMMANDS: usize = 1024;

/// Breaths for which one look at the clock is good enough, and what was done in them ([`Graph::work`]), together: it takes as long as
/// a breath in which nobody had anything.
const CLOCK_AGE: u32 = 8;

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Polls for a while, then sleeps until it is notified.
    #[default]
    Adaptive,
    /// Polls for ever: lowest latency, one whole core.
    Poll,
    /// Sleeps at once: least CPU, a wake-up for each burst.
    Interrupt,
}

/// How a worker runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to do when idle.
    pub mode: Mode,
    /// How long to poll before sleeping, in adaptive mode.
    pub idle_spin: Duration,
    /// The processors to run on; any, when empty.
    pub cpus: Vec<usize>,
    /// Since when the time of a breath counts. Workers whose apps share something have to have the
    /// same.
    pub epoch: Instant,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            idle_spin: Duration::from_micros(50),
            cpus: Vec::new(),
            epoch: Instant::now(),
        }
    }
}

/// Where events go. Called on the worker's thread: to pass the event on, not to handle it.
pub type Events = Box<dyn Fn(Event) + Send>;

/// How busy a worker was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Breaths taken.
    pub breaths: u64,
    /// Breaths with something to do.
    pub busy_breaths: u64,
    /// Times gone to sleep.
    pub sleeps: u64,
    /// CPU time of the worker's thread.
    pub cpu: Duration,
    /// Frames that its apps pulled.
    pub frames: u64,
    /// How long breaths took in which there was something to do, with what control asked for before them, and with the idle ones since
    /// the clock was last looked at: eight at most. Of breaths with few frames up to four share a look at it, and count with their mean.
    pub times: Histogram,
}

/// There are commands. To look into their queue whether there are would be a fence in each breath. In cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Asked(AtomicBool);

type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// A worker, as seen from its own thread: by the closures that control sends.
pub struct Worker {
    graph: Graph,
    poller: Poller,
    settings: Settings,
    events: Events,
    commands: Receiver<Command>,
    is_asked: Arc<Asked>,
    load: Load,
    stopping: bool,
    /// Nanoseconds since the epoch, as it was when the clock was read last.
    now: u64,
    /// Breaths since then, and what was done in them.
    age: u32,
    /// Those of them in which there was something to do, or frames; and since when they are to be counted.
    untimed: u64,
    untimed_since: u64,
    /// There was something to do since then.
    was_busy: bool,
    /// When the clock was read first after there was something to do.
    last_work: u64,
}

/// The worker has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the worker has stopped")]
pub struct Stopped;

/// Control's end of a worker. Dropping it leaves the worker running.
pub struct WorkerHandle {
    commands: SyncSender<Command>,
    is_asked: Arc<Asked>,
    wake: Arc<OwnedFd>,
    thread: JoinHandle<Graph>,
    pulse: Arc<Pulse>,
    poller: Poller,
}

impl WorkerHandle {
    /// Has `command` run between two breaths, on the worker's thread, and `answer` called there
    /// with its result. Whatever is to be closed or unmapped belongs into the result: to pass it
    /// back to control costs the worker less than to drop it.
    ///
    /// Waits while [`COMMANDS`] are under way.
    pub fn run<R>(
        &self,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
        answer: impl FnOnce(R) + Send + 'static,
    ) -> Result<(), Stopped> {
        let command = Box::new(|worker: &mut Worker| answer(command(worker)));
        self.commands.send(command).map_err(|_| Stopped)?;
        // Exchanged, and not stored: whoever takes note of this takes note of all others who set it before.
        self.is_asked.0.swap(true, Ordering::AcqRel);
        self.wake();
        Ok(())
    }

    /// Where the worker sleeps: what is to be added by a [`Change`] is registered here before, by control, so that the change
    /// cannot fail.
    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// The worker's sign of life.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Has the worker stop, without waiting for it: [`Self::stop`] does.
    pub fn begin_to_stop(&self) -> Result<(), Stopped> {
        self.run(|worker| worker.stopping = true, |()| ())
    }

    /// Stops the worker and its apps, and returns them.
    pub fn stop(self) -> Result<Graph, Stopped> {
        // It may have begun to before, and be done.
        let _ = self.begin_to_stop();
        self.thread.join().map_err(|_| Stopped)
    }

    fn wake(&self) {
        // The only error is a full counter, and then the worker is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Worker {
    /// Starts a worker that owns the apps of `graph`. When it fails, there is no thread, and the apps
    /// are gone.
    pub fn start(
        name: &str,
        mut graph: Graph,
        settings: Settings,
        events: Events,
    ) -> io::Result<WorkerHandle> {
        let poller = Poller::new()?;
        graph.storage.get_or_insert_default();
        let wake = poller.wake_descriptor();
        for place in graph.places() {
            let Some(id) = graph.at(place) else { continue };
            graph.call(id, |app| app.register(&poller)).unwrap_or(Ok(()))?;
        }
        let (sender, commands) = sync_channel(COMMANDS);
        let worker = Self {
            graph,
            poller,
            settings,
            events,
            commands,
            is_asked: Arc::default(),
            load: Load::default(),
            stopping: false,
            now: 0,
            age: 0,
            untimed: 0,
            untimed_since: 0,
            was_busy: false,
            last_work: 0,
        };
        let cpus = worker.settings.cpus.clone();
        let pulse = worker.graph.pulse.clone();
        let poller = worker.poller.clone();
        let is_asked = worker.is_asked.clone();
        let (ready, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Before there are guests, who could leave us without a way to call them.
            let prepared = pin(&cpus).and_then(|()| sys::notify::prepare());
            let failed = prepared.is_err();
            let _ = ready.send(prepared);
            if failed { worker.graph } else { worker.live() }
        })?;
        let started = is_ready.recv();
        let started = started.unwrap_or_else(|_| Err(io::Error::other("the worker did not start")));
        if let Err(error) = started {
            // It ends at once, and gives back the apps. A panic was reported.
            let _ = thread.join();
            return Err(error);
        }
        Ok(WorkerHandle { commands: sender, is_asked, wake, thread, pulse, poller })
    }

    /// Calls an app of this worker, by its type, with where its descriptors are watched. None when
    /// there is no such app, or it failed: before this, or by a panic in this call, which costs no
    /// other app anything.
    pub fn with<A: App, R>(
        &mut self,
        id: AppId,
        call: impl FnOnce(&mut A, &Poller) -> R,
    ) -> Option<R> {
        self.call(id, |app, poller| {
            let app: &mut dyn Any = app;
            Some(call(app.downcast_mut()?, poller))
        })
        .flatten()
    }

    /// The same for an app of any type.
    pub fn call<R>(
        &mut self,
        id: AppId,
        call: impl FnOnce(&mut dyn App, &Poller) -> R,
    ) -> Option<R> {
        if !self.graph.is_running(id) {
            return None;
        }
        let poller = &self.poller;
        let result = self.graph.call(id, |app| call(app, poller));
        self.graph.may_have_changed(id);
        self.graph.settle();
        result
    }

    /// Has an app go by other settings, of its own type. With an error nothing has changed.
    pub fn reconfigure(&mut self, id: AppId, settings: &dyn Any) -> Result<(), Fault> {
        let done = self.graph.reconfigure(id, settings);
        self.graph.may_have_changed(id);
        self.graph.settle();
        done
    }

    /// What an app says of itself beside its counters.
    pub fn numbers(&mut self, id: AppId) -> Numbers {
        let now = self.time();
        self.graph.numbers(id, now)
    }

    /// Puts another app in the place of one that failed, or of one that runs: its name and its links stay. Returns the one
    /// that was there, if it had not failed, or else the new one, if there is no such place, or a change is about to take it out.
    ///
    /// When the new one's descriptors cannot be watched, there is none: as if it had failed.
    pub fn replace(&mut self, id: AppId, app: Box<dyn App>) -> io::Result<Option<Box<dyn App>>> {
        let old = self.graph.replace(id, app);
        if !self.graph.is_running(id) {
            return Ok(old);
        }
        let poller = &self.poller;
        // A panic is reported with those of the next breath.
        let registered = self.graph.call(id, |app| app.register(poller)).unwrap_or(Ok(()));
        if registered.is_err() {
            self.graph.take(id);
        }
        self.graph.settle();
        registered.map(|()| old)
    }

    /// Stops apps that a change is about to take out (see [`Graph::stop_ahead`]), and takes a breath: all others have their turn before
    /// this command goes on.
    pub fn stop_ahead(&mut self, apps: &[AppId]) {
        apps.iter().for_each(|id| self.graph.stop_ahead(*id));
        self.graph.report_failures(&self.events);
        self.breathe();
    }

    /// Changes which apps there are, and what is linked to what: see [`Graph::change`]. Apps that are added have been registered
    /// with [`WorkerHandle::poller`], and those that are removed forget their descriptors when they are dropped.
    pub fn change(&mut self, change: &mut Change) {
        self.graph.stop_those(change);
        self.graph.report_failures(&self.events);
        self.graph.exchange(change);
    }

    /// The apps.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How busy this worker was so far.
    pub fn load(&self) -> Load {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        let cpu = Duration::new(seconds, u32::try_from(cpu.tv_nsec).unwrap_or(0));
        Load { cpu, frames: self.graph.frames, ..self.load }
    }

    fn live(mut self) -> Graph {
        let mut spin = Spin::new(match self.settings.mode {
            Mode::Adaptive => self.settings.idle_spin.as_nanos() as u64,
            Mode::Poll => u64::MAX,
            Mode::Interrupt => 0,
        });
        self.graph.settle();
        self.now = self.time();
        (self.untimed_since, self.last_work) = (self.now, self.now);
        loop {
            if self.is_asked.0.load(Ordering::Relaxed) {
                // Before the look: of what comes behind it, we are told anew.
                self.is_asked.0.swap(false, Ordering::AcqRel);
                self.read_clock();
                while let Ok(command) = self.commands.try_recv() {
                    command(&mut self);
                }
                // That may have taken long. It counts as part of the next breath, if there is something to do in that.
                self.now = self.time();
                self.age = CLOCK_AGE - 1;
            }
            if self.stopping {
                self.graph.stop_all();
                self.graph.report_failures(&self.events);
                return self.graph;
            }
            self.breathe();
            // Not before the clock was read behind the work.
            if !self.was_busy && self.now - self.last_work >= spin.now {
                if !self.graph.arm() {
                    self.load.sleeps += 1;
                    self.read_clock();
                    let deadline = self.graph.deadline(self.now);
                    let limit = deadline.map(|deadline| deadline.saturating_sub(self.now));
                    self.graph.pulse.sleep(true);
                    self.poller.sleep(limit.map(Duration::from_nanos));
                    self.graph.pulse.sleep(false);
                }
                self.graph.disarm();
                self.read_clock();
                spin.learn(self.now - self.last_work);
                self.last_work = self.now;
            }
        }
    }

    /// Takes a breath.
    fn breathe(&mut self) {
        if self.age >= CLOCK_AGE {
            self.read_clock();
        }
        let busy = self.graph.breathe(self.now, &self.events);
        self.load.breaths += 1;
        self.graph.pulse.breathe(self.load.breaths);
        self.load.busy_breaths += u64::from(busy);
        self.was_busy |= busy;
        let work = self.graph.work;
        self.untimed += u64::from(work > 0);
        self.age += 1 + work;
        if self.age == 1 {
            // Whoever shares the core with us may be a guest.
            std::hint::spin_loop();
        }
    }

    /// Looks at the clock, and counts the breaths with something to do that were since it was looked at last.
    fn read_clock(&mut self) {
        self.now = self.time();
        let since = std::mem::replace(&mut self.untimed_since, self.now);
        let several = std::mem::take(&mut self.untimed);
        if let Some(each) = (self.now - since).checked_div(several) {
            self.load.times.count_several(several, each);
        }
        if std::mem::take(&mut self.was_busy) {
            self.last_work = self.now;
        }
        self.age = 0;
    }

    /// Nanoseconds since the epoch.
    fn time(&self) -> u64 {
        self.settings.epoch.elapsed().as_nanos() as u64
    }
}

/// How long to poll before sleeping: as long as it pays.
///
/// Polling pays when the next work comes within `most`. When it came later, the time was burnt, on a
/// processor that a guest may have wanted; so half as much is tried the next time. When a sleep
/// was shorter than `most`, polling would have been better, and all of it is tried again.
struct Spin {
    most: u64,
    now: u64,
}

impl Spin {
    fn new(most: u64) -> Self {
        Self { most, now: most }
    }

    /// There was no work for `idle` nanoseconds, and the worker slept in the end.
    fn learn(&mut self, idle: u64) {
        self.now = if idle < self.most { self.most } else { self.now / 2 };
    }
}

fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let unusable = |cpu: usize| {
        let problem = format!("cannot run on processor {cpu}: there is none, or we may not use it");
        io::Error::new(io::ErrorKind::InvalidInput, problem)
    };
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            return Err(unusable(*cpu));
        }
        set.set(*cpu);
    }
    let result = sched_setaffinity(None, &set);
    // The kernel leaves out those that it lacks, and minds only when none is left.
    let granted = sched_getaffinity(None)?;
    match cpus.iter().find(|cpu| !granted.is_set(**cpu)) {
        Some(cpu) => Err(unusable(*cpu)),
        None => Ok(result?),
    }
}

#[cfg(test)]
mod tests;
