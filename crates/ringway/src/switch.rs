//! The switch: what it is made of, the workers that run that, and the connections of its guests.
//!
//! [`fabric`] has the apps and links, and changes them; [`register`] says to everybody else what runs.

mod backoff;
mod difference;
mod fabric;
mod make;
mod mtus;
mod numbers;
mod observer;
mod pcap;
mod port;
mod register;
mod reload;
mod settings;
mod supervisor;
mod tap;
mod tun;
mod vhost_net;
mod vhost_user;
mod watchdog;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use engine::{Graph, Settings, Worker};
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::config::Config;
use crate::config::network::Network;
use crate::control;
use crate::panics::WORKER;
use crate::report::Report;
use crate::socket::Listener;
use crate::workers::Workers;
use fabric::Fabric;
pub(crate) use mtus::Mtus;
pub use observer::Observer;
use register::Register;
pub use reload::{Read, Reloader};
use supervisor::{Supervisor, pass_on};

/// How long a reload that is under way may keep the switch from stopping: somebody else may keep it from going on, such as who holds
/// up the kernel's interfaces.
const END_OF_CHANGE: Duration = Duration::from_secs(2);

/// A switch that runs. It needs the runtime that it was started on.
pub struct Switch {
    workers: Arc<Workers>,
    observer: Observer,
    /// What runs, for whoever is the next to change it.
    state: Arc<Mutex<State>>,
    tasks: Vec<JoinHandle<()>>,
    /// One for each worker: ends when it does.
    events: JoinSet<()>,
}

/// What a switch is.
struct State {
    fabric: Fabric,
    /// As it was started, or as it was reloaded last.
    config: Config,
}

impl Switch {
    /// Opens everything that `config` names, and starts. When this returns, guests can connect.
    /// When it fails, nothing is left behind.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let epoch = Instant::now();
        let register = Register::default();
        let mut handles = Vec::new();
        let mut incomings = Vec::new();
        for number in 0..config.workers {
            let (sender, incoming) = mpsc::unbounded_channel();
            let name = format!("{WORKER}{number}");
            let settings = settings(config, number, epoch);
            let events = pass_on(register.clone(), sender);
            match Worker::start(&name, Graph::new(), settings, events) {
                Ok(handle) => handles.push(handle),
                Err(error) => {
                    // Those before it. If one of them has stopped by itself, that is not why.
                    let _ = Workers::new(handles).stop();
                    return Err(error).with_context(|| format!("cannot start {name}"));
                }
            }
            incomings.push(incoming);
        }
        let workers = Arc::new(Workers::new(handles));
        let mtus = Mtus::default();
        let mut fabric = Fabric::new(workers.clone(), register.clone(), mtus.clone(), epoch);
        if let Err(error) = fabric.become_network(&config.network()).await {
            drop(fabric);
            if let Some(workers) = Arc::into_inner(workers) {
                let _ = workers.stop();
            }
            return Err(error);
        }
        let mut events = JoinSet::new();
        for (worker, incoming) in incomings.into_iter().enumerate() {
            let supervisor = Supervisor::new(worker, workers.clone(), register.clone());
            events.spawn(supervisor.supervise(incoming));
        }
        let watch = watchdog::watch(workers.pulses(), register.clone());
        let observer = Observer { workers: workers.clone(), register, mtus, epoch };
        let state = Arc::new(Mutex::new(State { fabric, config: config.clone() }));
        Ok(Self { workers, observer, state, tasks: vec![tokio::spawn(watch)], events })
    }

    /// Waits until a worker ends by itself, which it should not.
    pub async fn failed(&mut self) {
        // It reports for as long as its worker could have something to say.
        self.events.join_next().await;
    }

    /// What each app counted so far, how busy the workers were, and what the ports know.
    pub async fn report(&self) -> anyhow::Result<Report> {
        self.observer.report().await
    }

    /// What changes it into what `read` finds, each time it is asked.
    pub fn reloader(&self, read: Read) -> Reloader {
        Reloader::new(self.state.clone(), read)
    }

    /// Answers those who ask at a control socket, until the switch stops.
    pub fn attend(&mut self, listener: Listener, reloader: Reloader) {
        let observer = self.observer.clone();
        self.tasks.push(tokio::spawn(async move {
            let answer = |request| control::answer(request, &observer, &reloader);
            if let Err(error) = control::serve(listener, answer).await {
                tracing::error!("the control socket is out of service: {error}");
            }
        }));
    }

    /// Reloads whenever this signal comes, until the switch stops.
    pub fn reload_on(&mut self, signal: Signal, reloader: Reloader) {
        self.tasks.push(tokio::spawn(reloader.follow(signal)));
    }

    /// Stops: disconnects the guests, removes the sockets, ends the workers.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let answer = async {
            // Whoever is just changing it comes to an end first, and nobody begins any more.
            let state = timeout(END_OF_CHANGE, self.state.clone().lock_owned()).await;
            match self.report().await {
                Ok(report) => report.log(),
                // A worker that gets no processor for a while answers late.
                Err(_) => drop(self.workers.on_each(|_| ()).await),
            }
            state
        };
        let (state, mut stands_still) = tokio::select! {
            state = answer => (state.ok(), false),
            () = watchdog::stands_still(self.workers.pulses()) => (None, true),
        };
        for task in self.tasks.drain(..) {
            task.abort();
            // An error says that it was aborted, or panicked, which was reported.
            let _ = task.await;
        }
        drop(state);
        let state = Arc::into_inner(self.state).context("somebody still changes the switch")?;
        let mut fabric = state.into_inner().fabric;
        if !stands_still {
            let nothing = Network::default();
            stands_still = tokio::select! {
                // A worker that has died is said below.
                _ = fabric.become_network(&nothing) => false,
                // In an app that is to stop.
                () = watchdog::stands_still(self.workers.pulses()) => true,
            };
        }
        let captures = fabric.stop().await;
        self.events.shutdown().await;
        if stands_still {
            fabric::end(captures).await;
            // To wait for it would be to wait for ever. It ends with the process.
            anyhow::bail!("a worker stands still, and was not waited for: a bug of ours");
        }
        drop(self.observer);
        let workers = Arc::into_inner(self.workers).context("somebody still uses the workers")?;
        let stopped = workers.stop();
        fabric::end(captures).await;
        Ok(stopped?)
    }
}

/// How one of the workers runs: on its share of the CPUs.
fn settings(config: &Config, worker: usize, epoch: Instant) -> Settings {
    let cpus = config.cpus.iter().copied().skip(worker).step_by(config.workers);
    Settings { mode: config.mode, idle_spin: config.idle_spin, cpus: cpus.collect(), epoch }
}

/// A key for a table that nobody can guess.
fn random_key() -> anyhow::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let (words, _) = bytes.as_chunks();
    match words {
        [one, two] if filled == bytes.len() => {
            Ok([u64::from_ne_bytes(*one), u64::from_ne_bytes(*two)])
        }
        _ => Err(anyhow!("the kernel gave too little randomness")),
    }
}

#[cfg(test)]
mod tests;
