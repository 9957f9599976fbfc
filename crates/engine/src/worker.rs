//! The thread that breathes.
//!
//! # Going to sleep without losing a wake-up
//!
//! A worker that found nothing to do for `idle_spin` arms every app: each asks its peers to notify,
//! fences, and looks once more. Only if none of them finds anything does the worker block, on
//! descriptors that were watched all along. A kick, a frame on a tap or a command that comes after
//! an app looked is an edge on a watched descriptor, which ends the wait at once. A command is put
//! into the queue before the wake descriptor is written, and the queue is read after the wait.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::burst::Storage;
use crate::graph::Graph;
use crate::{App, AppId, Fault, Lease, Poller};

/// Commands that control may have under way. One a port is usual.
const COMMANDS: usize = 1024;

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
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What to do when idle.
    pub mode: Mode,
    /// How long to poll before sleeping, in adaptive mode.
    pub idle_spin: Duration,
    /// The processors to run on; any, when empty.
    pub cpus: Vec<usize>,
}

/// What a worker tells control unasked.
pub enum Event {
    /// A peer broke a rule; its app went down by itself.
    Fault {
        /// Whose peer.
        app: AppId,
        /// What it did.
        fault: Fault,
    },
    /// An app panicked and is out of service. That is our bug.
    Failed {
        /// Which.
        app: AppId,
        /// What the panic said.
        message: String,
        /// What is left of it, to be dropped by control.
        remains: Box<dyn App>,
    },
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
}

type Command = Box<dyn FnOnce(&mut Worker) + Send>;

/// A worker, as seen from its own thread: by the closures that control sends.
pub struct Worker {
    graph: Graph,
    poller: Poller,
    settings: Settings,
    events: Events,
    commands: Receiver<Command>,
    storage: Storage,
    started: Instant,
    load: Load,
    stopping: bool,
}

/// The worker has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the worker has stopped")]
pub struct Stopped;

/// Control's end of a worker.
pub struct WorkerHandle {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    thread: JoinHandle<Graph>,
}

impl WorkerHandle {
    /// Has `command` run between two breaths, on the worker's thread, and `answer` called there
    /// with its result. Whatever is to be closed or unmapped belongs into the result: to pass it
    /// back to control costs the worker less than to drop it.
    pub fn run<R>(
        &self,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
        answer: impl FnOnce(R) + Send + 'static,
    ) -> Result<(), Stopped> {
        let command = Box::new(|worker: &mut Worker| answer(command(worker)));
        self.commands.send(command).map_err(|_| Stopped)?;
        self.wake();
        Ok(())
    }

    /// Stops the worker, and returns its apps.
    pub fn stop(self) -> Result<Graph, Stopped> {
        self.run(|worker| worker.stopping = true, |()| ())?;
        self.thread.join().map_err(|_| Stopped)
    }

    fn wake(&self) {
        // The only error is a full counter, and then the worker is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Worker {
    /// Starts a worker that owns the apps of `graph`.
    pub fn start(
        name: &str,
        mut graph: Graph,
        settings: Settings,
        events: Events,
    ) -> io::Result<WorkerHandle> {
        let poller = Poller::new()?;
        let wake = poller.wake_descriptor();
        for id in graph.ids() {
            graph
                .call(id, |app| app.register(&poller))
                .unwrap_or(Ok(()))?;
        }
        let (sender, commands) = sync_channel(COMMANDS);
        let worker = Self {
            graph,
            poller,
            settings,
            events,
            commands,
            storage: Storage::new(),
            started: Instant::now(),
            load: Load::default(),
            stopping: false,
        };
        let cpus = worker.settings.cpus.clone();
        let (ready, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let pinned = pin(&cpus);
                let failed = pinned.is_err();
                let _ = ready.send(pinned);
                if failed { worker.graph } else { worker.live() }
            })?;
        is_ready
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the worker did not start")))?;
        Ok(WorkerHandle {
            commands: sender,
            wake,
            thread,
        })
    }

    /// An app of this worker, by its type, and where its descriptors are watched. None when there
    /// is none, or it failed.
    pub fn app<A: App>(&mut self, id: AppId) -> Option<(&mut A, &Poller)> {
        Some((self.graph.get(id)?, &self.poller))
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
        Load { cpu, ..self.load }
    }

    fn live(mut self) -> Graph {
        let idle_spin = match self.settings.mode {
            Mode::Adaptive => self.settings.idle_spin.as_nanos() as u64,
            Mode::Poll => u64::MAX,
            Mode::Interrupt => 0,
        };
        let mut last_work = self.now();
        loop {
            while let Ok(command) = self.commands.try_recv() {
                command(&mut self);
            }
            if self.stopping {
                return self.graph;
            }
            let now = self.now();
            if self.breathe(now) {
                last_work = now;
            } else if now - last_work < idle_spin {
                std::hint::spin_loop();
            } else {
                if !self.arm() {
                    self.load.sleeps += 1;
                    self.poller.sleep(None);
                }
                self.disarm();
                last_work = self.now();
            }
        }
    }

    /// Nanoseconds since the start.
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// One breath. Returns whether there was anything to do.
    fn breathe(&mut self, now: u64) -> bool {
        self.load.breaths += 1;
        let mut busy = false;
        for id in self.graph.ids() {
            let mut lease = Lease::Empty;
            let mut burst = self.storage.begin(now);
            let pulled = self.graph.call(id, |app| app.pull(&mut lease, &mut burst));
            busy |= pulled.unwrap_or(false);
            if !burst.is_empty() {
                let all = burst.all();
                self.graph.send(id, 0, &mut burst, &all);
            }
            let finished = burst.finish();
            let outcomes = self.storage.end(finished);
            self.graph.call(id, |app| app.reclaim(outcomes, lease));
        }
        for id in self.graph.ids() {
            if let Some(Err(fault)) = self.graph.call(id, |app| app.publish()) {
                (self.events)(Event::Fault { app: id, fault });
            }
        }
        if self.graph.has_failures() {
            self.report_failures();
        }
        self.load.busy_breaths += u64::from(busy);
        busy
    }

    #[cold]
    fn report_failures(&mut self) {
        for id in self.graph.ids() {
            if let Some(failure) = self.graph.take_failure(id) {
                let (message, remains) = (failure.message, failure.app);
                (self.events)(Event::Failed {
                    app: id,
                    message,
                    remains,
                });
            }
        }
    }

    /// Arms every app. True when one of them has something to do.
    fn arm(&mut self) -> bool {
        let mut busy = false;
        for id in self.graph.ids() {
            busy |= self.graph.call(id, |app| app.arm()).unwrap_or(false);
        }
        busy
    }

    fn disarm(&mut self) {
        for id in self.graph.ids() {
            self.graph.call(id, |app| app.disarm());
        }
    }
}

fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot run on processors {cpus:?}: {error}"),
        )
    })
}
