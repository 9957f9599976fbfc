//! The switch: a bridge, its ports, the workers that run them, and the connections of its guests.

mod backoff;
mod between;
mod mtus;
mod observer;
mod pcap;
mod tap;
mod tun;
mod vhost_net;
mod vhost_user;
mod watchdog;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use apps::bridge::Bridge;
use apps::bridge::table::{PortNumber, Table};
use engine::{App, AppId, Event, Events, Graph, LinkError, Settings, Worker};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::config::{BRIDGE, Config, PortConfig, PortKind};
use crate::control;
use crate::links::Links;
use crate::report::Report;
use crate::session::Trouble;
use crate::socket::Listener;
use crate::workers::Workers;
use backoff::Backoff;
use between::Added;
pub(crate) use mtus::Mtus;
pub use observer::Observer;

/// A switch that runs. It needs the runtime that it was started on.
pub struct Switch {
    workers: Arc<Workers>,
    observer: Observer,
    tasks: Vec<JoinHandle<()>>,
    /// One for each worker: ends when it does.
    events: JoinSet<()>,
    captures: pcap::Captures,
}

/// Where to tell the control of each port what its workers found.
type Troubles = HashMap<AppId, mpsc::UnboundedSender<Trouble>>;

impl Switch {
    /// Opens everything that `config` names, and starts. When this returns, guests can connect.
    /// When it fails, nothing is left behind.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let epoch = Instant::now();
        let mut graphs = Graphs((0..config.workers).map(|_| Graph::new()).collect());
        let ports = u16::try_from(config.ports.len()).context("too many ports")?;
        let memberships: Arc<[_]> =
            config.ports.iter().flat_map(|port| port.vlan.clone()).collect();
        let bridge = match memberships.is_empty() {
            true => Bridge::new(ports, random_key()?),
            false => Bridge::with_vlans(memberships, random_key()?),
        };
        let table = bridge.table().clone();
        let (bridge, remake) = graphs.add_with_remake(BRIDGE, bridge, Bridge::part);
        let mut remakes = HashMap::from([(bridge, remake)]);
        let mut names = vec![(bridge, BRIDGE.to_owned())];
        let mut types = Vec::new();
        let mut controls = Vec::new();
        let mut links = None;
        let mut captures = pcap::Captures::default();
        for (number, port) in (0..ports).zip(&config.ports) {
            let Opened { app, control } =
                open(&mut graphs, &mut links, &mut captures, epoch, number, port).await?;
            names.push((app, port.name.clone()));
            for Added { app, name, remake } in between::add(&mut graphs, port)? {
                names.push((app, name));
                remakes.insert(app, remake);
            }
            types.push((app, port.kind.type_name()));
            controls.extend(control.map(|control| (port.name.clone(), app, number, control)));
        }
        let network = config.network();
        // The same apps, in the same order.
        debug_assert!(
            network.apps.iter().map(|app| &app.name).eq(names.iter().map(|(_, name)| name))
        );
        for join in network.joins {
            let [one, other] = join.map(|side| (names[side.app].0, side.number));
            graphs.join(one, other)?;
        }

        let mut troubles = Troubles::new();
        let controls = controls.into_iter().map(|control| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (_, app, ..) = &control;
            troubles.insert(*app, sender);
            (control, receiver)
        });
        let controls: Vec<_> = controls.collect();
        // Nothing after the workers can fail, and of what was made before each goes by itself.
        let mut handles = Vec::new();
        let mut incomings = Vec::new();
        for (number, graph) in graphs.0.into_iter().enumerate() {
            let (sender, incoming) = mpsc::unbounded_channel();
            let name = format!("worker{number}");
            let started = Worker::start(
                &name,
                graph,
                settings(config, number, epoch),
                pass_on(troubles.clone(), sender),
            );
            match started {
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
        let mut events = JoinSet::new();
        for (worker, incoming) in incomings.into_iter().enumerate() {
            let supervisor = Supervisor {
                worker,
                workers: workers.clone(),
                names: names.iter().cloned().collect(),
                troubles: troubles.clone(),
                remakes: remakes.clone(),
                backoffs: HashMap::new(),
                due: Vec::new(),
            };
            events.spawn(supervisor.supervise(incoming));
        }
        captures.begin();
        let mtus = Mtus::default();
        let observer = Observer {
            workers: workers.clone(),
            names: names.into(),
            ports: types.into(),
            mtus: mtus.clone(),
            epoch,
            pending: Arc::default(),
        };
        let mut switch = Self { workers, observer, tasks: Vec::new(), events, captures };

        let names = switch.observer.names.iter().cloned().collect();
        switch.tasks.push(tokio::spawn(watchdog::watch(switch.workers.pulses(), names)));
        for ((name, app, number, control), troubles) in controls {
            let (workers, bridge) = (switch.workers.clone(), (table.clone(), number));
            let mtus = mtus.clone();
            let handle = Handle { name, app, bridge, workers, mtus, troubles };
            switch.tasks.push(tokio::spawn(control(handle)));
        }
        Ok(switch)
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

    /// Answers those who ask at a control socket, until the switch stops.
    pub fn attend(&mut self, listener: Listener) {
        let observer = self.observer.clone();
        self.tasks.push(tokio::spawn(async move {
            let answer = |request| control::answer(request, &observer);
            if let Err(error) = control::serve(listener, answer).await {
                tracing::error!("the control socket is out of service: {error}");
            }
        }));
    }

    /// Stops: disconnects the guests, removes the sockets, ends the workers.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let answer = async {
            match self.report().await {
                Ok(report) => report.log(),
                // A worker that gets no processor for a while answers late.
                Err(_) => drop(self.workers.on_each(|_| ()).await),
            }
        };
        let stands_still = tokio::select! {
            () = answer => false,
            () = watchdog::stands_still(self.workers.pulses()) => true,
        };
        for task in self.tasks.drain(..) {
            task.abort();
            // An error says that it was aborted, or panicked, which was reported.
            let _ = task.await;
        }
        self.events.shutdown().await;
        if stands_still {
            self.captures.end();
            // To wait for it would be to wait for ever. It ends with the process.
            anyhow::bail!("a worker stands still, and was not waited for: a bug of ours");
        }
        drop(self.observer);
        let workers = Arc::into_inner(self.workers).context("somebody still uses the workers")?;
        let stopped = workers.stop();
        self.captures.end();
        Ok(stopped?)
    }
}

/// One network of apps for each worker, all alike.
struct Graphs(Vec<Graph>);

impl Graphs {
    /// Adds an app, a part to each.
    fn add<A: App>(&mut self, name: &str, parts: Vec<A>) -> AppId {
        let ids = self.0.iter_mut().zip(parts).map(|(graph, part)| graph.add(name, part));
        ids.last().expect("there is a worker")
    }

    /// The same for an app that the supervisors start again when it has failed.
    fn add_with_remake<A: App + Sync>(
        &mut self,
        name: &str,
        app: A,
        part: fn(&A) -> A,
    ) -> (AppId, Remake) {
        let spare = part(&app);
        let remake: Remake = Arc::new(move || Box::new(part(&spare)));
        let workers = self.0.len();
        (self.add(name, parts(app, workers, part)), remake)
    }

    fn link(&mut self, from: (AppId, usize), to: (AppId, usize)) -> Result<(), LinkError> {
        self.0.iter_mut().try_for_each(|graph| graph.link(from, to))
    }

    /// Links two apps both ways: output and input of the same number are one side of an app.
    fn join(&mut self, one: (AppId, usize), other: (AppId, usize)) -> Result<(), LinkError> {
        self.link(one, other)?;
        self.link(other, one)
    }
}

/// An app in as many parts as there are workers.
fn parts<A>(first: A, workers: usize, part: fn(&A) -> A) -> Vec<A> {
    let mut parts: Vec<A> = (1..workers).map(|_| part(&first)).collect();
    parts.insert(0, first);
    parts
}

/// How one of the workers runs: on its share of the CPUs.
fn settings(config: &Config, worker: usize, epoch: Instant) -> Settings {
    let cpus = config.cpus.iter().copied().skip(worker).step_by(config.workers);
    Settings { mode: config.mode, idle_spin: config.idle_spin, cpus: cpus.collect(), epoch }
}

/// Where a worker's events go. A port's fault goes straight to its control, so that it is there
/// before the worker's answer to anything that the session asks later.
fn pass_on(troubles: Troubles, others: mpsc::UnboundedSender<Event>) -> Events {
    Box::new(move |event| match event {
        Event::Fault { app, fault } if troubles.contains_key(&app) => {
            let _ = troubles[&app].send(Trouble::Guest(fault));
        }
        event => drop(others.send(event)),
    })
}

/// A port that was opened.
struct Opened {
    app: AppId,
    /// What goes on behind it while the switch runs.
    control: Option<Control>,
}

/// What control does for a port, from the start of the workers on, until it is dropped.
type Control = Box<dyn FnOnce(Handle) -> Running>;
type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A port of a running switch, as control sees it.
struct Handle {
    name: String,
    app: AppId,
    /// What the bridge knows, and which of its ports this is.
    bridge: (Arc<Table>, PortNumber),
    workers: Arc<Workers>,
    /// Where to say what MTU it has, if it has one.
    mtus: Mtus,
    /// What the workers say of this port.
    troubles: mpsc::UnboundedReceiver<Trouble>,
}

/// Makes the app of one port, and what control does for it. The first port that has to do with the host's
/// interfaces opens `links`.
async fn open(
    graphs: &mut Graphs,
    links: &mut Option<Links>,
    captures: &mut pcap::Captures,
    epoch: Instant,
    number: PortNumber,
    port: &PortConfig,
) -> anyhow::Result<Opened> {
    let name = &port.name;
    match &port.kind {
        PortKind::VhostUser(port) => vhost_user::open(graphs, number, name, port),
        PortKind::Tap(port) => tap::open(graphs, links, name, port, tap::parts).await,
        PortKind::Tun(port) => tun::open(graphs, links, name, port).await,
        PortKind::VhostNet(port) => vhost_net::open(graphs, links, name, port).await,
        PortKind::PcapRead(port) => pcap::open_source(graphs, name, port),
        PortKind::PcapWrite(port) => pcap::open_sink(graphs, captures, name, port, epoch),
    }
}

/// Makes another part of an app, as good as the first.
type Remake = Arc<dyn Fn() -> Box<dyn App> + Send + Sync>;

/// Who hears what one worker has to say that is no port's control's business, and starts apps again there that failed. A
/// port is started again by its own control.
struct Supervisor {
    worker: usize,
    workers: Arc<Workers>,
    names: HashMap<AppId, String>,
    troubles: Troubles,
    remakes: HashMap<AppId, Remake>,
    backoffs: HashMap<AppId, Backoff>,
    /// Which apps are to be started again, and when.
    due: Vec<(Instant, AppId)>,
}

impl Supervisor {
    /// Ends when the worker has nothing more to say.
    async fn supervise(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        loop {
            let next = self.due.iter().min_by_key(|(due, _)| *due).copied();
            let due = async {
                match next {
                    Some((due, _)) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                () = due => {
                    if let Some((due, app)) = next {
                        self.due.retain(|other| *other != (due, app));
                        self.restart(app).await;
                    }
                }
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Fault { app, fault } => {
                tracing::error!(port = self.name(app), "the port is down: {fault}");
            }
            Event::Failed { app, message, remains } => {
                tracing::error!(app = self.name(app), "a bug of ours took this down: {message}");
                drop(remains);
                if let Some(control) = self.troubles.get(&app) {
                    // Its guest is to be let go of on the other workers too.
                    let _ = control.send(Trouble::Failed);
                } else if self.remakes.contains_key(&app) {
                    let now = Instant::now();
                    let backoff = self.backoffs.entry(app).or_insert_with(|| Backoff::of_app(now));
                    self.due.push((now + backoff.wait(now), app));
                }
            }
        }
    }

    /// Starts an app again on this worker.
    async fn restart(&self, app: AppId) {
        let Some(remake) = self.remakes.get(&app) else { return };
        let (name, worker) = (self.name(app), self.worker);
        match self.workers.replace_part(worker, app, remake()).await {
            Ok(()) => tracing::warn!(app = name, worker, "started again"),
            Err(error) => tracing::error!(app = name, worker, "not started again: {error:#}"),
        }
    }

    fn name(&self, app: AppId) -> &str {
        self.names.get(&app).map_or("", String::as_str)
    }
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
