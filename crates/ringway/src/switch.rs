//! The switch: a bridge, its ports, the workers that run them, and the connections of its guests.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use apps::bridge::Bridge;
use apps::bridge::table::PortNumber;
use engine::{App, AppId, Counters, Event, Events, Graph, LinkError, Load, Settings, Worker};
use ports::tap::TapPort;
use ports::vhost_user::VhostUserPort;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use vhost_user::back_end::Offer;
use vhost_user::{Closer, Connection, ConnectionError};

use crate::config::{Config, PortConfig, PortKind, SocketRole};
use crate::session::{Ended, Port, Trouble};
use crate::socket::{Listener, listen_at};
use crate::workers::Workers;

/// How often a front end that does not listen yet is tried: at first, and at the slowest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_SLOWEST: Duration = Duration::from_secs(1);
/// How long a front end waits for the one before it to be gone, before it is turned away.
const GRACE: Duration = Duration::from_millis(100);
/// How long a front end that broke the rules has to wait before it may try again: at first, and at
/// the most. It bounds what a peer that does nothing else can make us log.
const PENALTY_FIRST: Duration = Duration::from_secs(1);
const PENALTY_MOST: Duration = Duration::from_secs(60);

/// A switch that runs. It needs the runtime that it was started on.
pub struct Switch {
    workers: Arc<Workers>,
    names: Vec<(AppId, String)>,
    tasks: Vec<JoinHandle<()>>,
    /// One for each worker: ends when it does.
    events: JoinSet<()>,
}

/// Where to tell the session of each guest's port what its workers found.
type Troubles = HashMap<AppId, mpsc::UnboundedSender<Trouble>>;

/// Where a vhost-user port's connections come from.
enum Source {
    /// As tokio waits at it, and as it was made.
    Listen(UnixListener, Listener),
    Connect(PathBuf),
}

impl Switch {
    /// Opens everything that `config` names, and starts. When this returns, guests can connect.
    /// When it fails, nothing is left behind.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let epoch = Instant::now();
        let mut graphs = Graphs((0..config.workers).map(|_| Graph::new()).collect());
        let ports = u16::try_from(config.ports.len()).context("too many ports")?;
        let bridge = Bridge::new(ports, random_key()?);
        let table = bridge.table().clone();
        let bridge = graphs.add("bridge", parts(bridge, config.workers, Bridge::part));
        let mut names = vec![(bridge, "bridge".to_owned())];
        let mut guests = Vec::new();
        for (number, port) in (0..ports).zip(&config.ports) {
            let (app, guest) = open(&mut graphs, number, port)?;
            graphs.link((app, 0), (bridge, number.into()))?;
            graphs.link((bridge, number.into()), (app, 0))?;
            names.push((app, port.name.clone()));
            guests.extend(guest);
        }

        let mut troubles = Troubles::new();
        let mut sessions = Vec::new();
        for guest in guests {
            let (sender, receiver) = mpsc::unbounded_channel();
            troubles.insert(guest.app, sender);
            sessions.push((guest, receiver));
        }
        // Nothing after the workers can fail, and of what was made before each goes by itself.
        let mut handles = Vec::new();
        let mut events = JoinSet::new();
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
            let names = names.iter().cloned().collect();
            events.spawn(report_events(incoming, names, troubles.clone()));
        }
        let workers = Arc::new(Workers::new(handles));
        let mut switch = Self { workers, names, tasks: Vec::new(), events };

        for (Guest { name, app, number, source, penalty, offer }, troubles) in sessions {
            let (workers, bridge) = (switch.workers.clone(), (table.clone(), number));
            let port = Port { name, app, bridge, offer, workers, troubles };
            switch.tasks.push(match source {
                Source::Listen(socket, listener) => {
                    tokio::spawn(accept(port, penalty, socket, listener))
                }
                Source::Connect(path) => tokio::spawn(connect(port, penalty, path)),
            });
        }
        Ok(switch)
    }

    /// Waits until a worker ends by itself, which it should not.
    pub async fn failed(&mut self) {
        // It reports for as long as its worker could have something to say.
        self.events.join_next().await;
    }

    /// What each app counted so far, and how busy the workers were.
    pub async fn report(&self) -> anyhow::Result<Report> {
        let names = self.names.clone();
        let parts = self.workers.on_each(move |worker| {
            let counters = names.iter().map(|(id, _)| worker.graph().counters(*id));
            (counters.collect::<Vec<_>>(), worker.load())
        });
        let parts = parts.await?;
        let counters = self.names.iter().enumerate().map(|(index, (_, name))| {
            let mut sum = Counters::default();
            for part in parts.iter().filter_map(|(counters, _)| counters.get(index)) {
                sum += part;
            }
            (name.clone(), sum)
        });
        Ok(Report {
            counters: counters.collect(),
            workers: parts.iter().map(|(_, load)| *load).collect(),
        })
    }

    /// Stops: disconnects the guests, removes the sockets, ends the workers.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Ok(report) = self.report().await {
            report.log();
        }
        for task in self.tasks.drain(..) {
            task.abort();
            // An error says that it was aborted, or panicked, which was reported.
            let _ = task.await;
        }
        self.events.shutdown().await;
        let workers = Arc::into_inner(self.workers).context("somebody still uses the workers")?;
        workers.stop()?;
        Ok(())
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

    fn link(&mut self, from: (AppId, usize), to: (AppId, usize)) -> Result<(), LinkError> {
        self.0.iter_mut().try_for_each(|graph| graph.link(from, to))
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

/// Where a worker's events go. A guest's fault goes straight to its session, so that it is there
/// before the worker's answer to anything that the session asks later.
fn pass_on(troubles: Troubles, others: mpsc::UnboundedSender<Event>) -> Events {
    Box::new(move |event| match event {
        Event::Fault { app, fault } if troubles.contains_key(&app) => {
            let _ = troubles[&app].send(Trouble::Guest(fault));
        }
        event => drop(others.send(event)),
    })
}

/// A look at a running switch.
pub struct Report {
    /// By the names of the ports, and `bridge`.
    pub counters: Vec<(String, Counters)>,
    /// How busy each was.
    pub workers: Vec<Load>,
}

impl Report {
    fn log(&self) {
        for (name, counters) in &self.counters {
            let drops: Vec<String> = counters
                .drops()
                .map(|(reason, count)| format!("{} {count}", reason.name()))
                .collect();
            let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
            match (counters.received.frames, counters.sent.frames) {
                // An app without an outside counts only what it drops.
                (0, 0) => tracing::info!("{name}: dropped: {drops}"),
                (received, sent) => tracing::info!(
                    "{name}: {received} frames received, {sent} sent, dropped: {drops}"
                ),
            }
        }
    }
}

/// A port for a guest that is yet to come.
struct Guest {
    name: String,
    app: AppId,
    /// Which port of the bridge.
    number: PortNumber,
    source: Source,
    /// Whether a front end that broke the rules has to wait.
    penalty: bool,
    offer: Offer,
}

/// Makes the app of one port; for a guest's, also what its sessions need.
fn open(
    graphs: &mut Graphs,
    number: PortNumber,
    port: &PortConfig,
) -> anyhow::Result<(AppId, Option<Guest>)> {
    let workers = graphs.0.len();
    let PortConfig { name, kind } = port;
    match kind {
        PortKind::VhostUser { path, socket, mtu, queue_pairs, penalty, features } => {
            let source = match socket {
                SocketRole::Listen { mode, group } => {
                    let what = || format!("port `{name}`: cannot listen at {}", path.display());
                    let listener = listen_at(path, *mode, group.as_deref()).with_context(what)?;
                    let socket = listener.socket.try_clone().and_then(UnixListener::from_std);
                    Source::Listen(socket.with_context(what)?, listener)
                }
                SocketRole::Connect => Source::Connect(path.clone()),
            };
            let offer = Offer {
                features: *features,
                protocol: Offer::PROTOCOL,
                queue_pairs: *queue_pairs,
                max_mtu: *mtu,
            };
            let mut parts = VhostUserPort::parts(workers, number.into());
            parts.iter_mut().for_each(|part| part.set_mtu(*mtu));
            let app = graphs.add(name, parts);
            Ok((
                app,
                Some(Guest { name: name.clone(), app, number, source, penalty: *penalty, offer }),
            ))
        }
        PortKind::Tap { interface } => {
            let tap = TapPort::open(interface)
                .with_context(|| format!("port `{name}`: tap interface `{interface}`"))?;
            Ok((graphs.add(name, parts(tap, workers, TapPort::part)), None))
        }
    }
}

/// What the front ends of a port have sent and is yet to be closed. They decide how long that takes, so
/// nobody is accepted before it is done: what a port leaves open is bounded by what one of them may.
struct Leftovers {
    name: String,
    closer: Closer,
}

impl Leftovers {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), closer: Closer::new() }
    }

    /// Takes over a socket.
    fn connection(&self, socket: UnixStream) -> Result<Connection, ConnectionError> {
        Connection::with_closer(socket.into_std()?.into(), &self.closer)
    }

    /// Waits until all is closed.
    async fn closed(&self) {
        let mut said = false;
        // Asked again and again, should it be for a thread that could not be had.
        let closed = || poll_fn(|context| self.closer.poll_closed(context));
        while timeout(RETRY_SLOWEST, closed()).await.is_err() {
            if !said {
                tracing::warn!(
                    port = self.name,
                    "no front end is accepted until what others have sent is closed, which whoever is \
                     behind it holds up ({} file descriptors)",
                    self.closer.pending()
                );
                said = true;
            }
        }
        if said {
            tracing::info!(port = self.name, "front ends are accepted again");
        }
    }
}

/// Serves the front ends that connect, one at a time.
async fn accept(mut port: Port, penalty: bool, listener: UnixListener, _file: Listener) {
    let mut penalty = Penalty::new(penalty);
    let leftovers = Leftovers::new(&port.name);
    let queue = Queue { leftovers, listener, waiting: Mutex::new(None) };
    loop {
        let connection = queue.next().await;
        let ended = tokio::select! {
            biased;
            ended = serve(&mut port, connection) => ended,
            // Never ends; turns others away while this front end is here.
            never = queue.refuse("one is connected") => match never {},
        };
        let Some(wait) = penalty.after(&port.name, &ended) else { return };
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                never = queue.refuse("the last one broke the rules") => match never {},
            }
        }
    }
}

/// The front ends that want to be served by one port.
struct Queue {
    leftovers: Leftovers,
    listener: UnixListener,
    /// One that came while another was served, and is not turned away yet.
    waiting: Mutex<Option<Connection>>,
}

impl Queue {
    /// The next front end to be served.
    async fn next(&self) -> Connection {
        self.leftovers.closed().await;
        let waiting = self.waiting().take();
        match waiting {
            Some(waiting) => waiting,
            None => self.accept().await,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Connection>> {
        // A socket is as good after a panic as before.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(&self) -> Connection {
        loop {
            self.leftovers.closed().await;
            let accepted = self.listener.accept().await.map_err(ConnectionError::from);
            match accepted.and_then(|(socket, _)| self.leftovers.connection(socket)) {
                Ok(connection) => return connection,
                Err(error) => {
                    tracing::error!(
                        port = self.leftovers.name,
                        "cannot accept a front end: {error}"
                    );
                    tokio::time::sleep(RETRY_SLOWEST).await;
                }
            }
        }
    }

    /// Turns front ends away, so that they know, rather than to let them wait for long. A front end
    /// that was restarted may be here before we know that it was gone: that one gets its turn.
    async fn refuse(&self, why: &str) -> Infallible {
        let mut said = false;
        loop {
            let connection = self.accept().await;
            self.waiting().replace(connection);
            tokio::time::sleep(GRACE).await;
            self.waiting().take();
            if !said {
                tracing::warn!(port = self.leftovers.name, "refused a front end: {why}");
                said = true;
            }
        }
    }
}

/// Connects to a front end that listens, again and again.
async fn connect(mut port: Port, penalty: bool, path: PathBuf) {
    let mut penalty = Penalty::new(penalty);
    let mut retry = RETRY_FIRST;
    let leftovers = Leftovers::new(&port.name);
    loop {
        leftovers.closed().await;
        let connected = UnixStream::connect(&path).await.map_err(ConnectionError::from);
        match connected.and_then(|socket| leftovers.connection(socket)) {
            Ok(connection) => {
                retry = RETRY_FIRST;
                let ended = serve(&mut port, connection).await;
                let Some(wait) = penalty.after(&port.name, &ended) else { return };
                tokio::time::sleep(wait).await;
            }
            Err(error) => {
                if retry == RETRY_FIRST {
                    tracing::info!(port = port.name, path = %path.display(), "waiting: {error}");
                }
                retry = (2 * retry).min(RETRY_SLOWEST);
            }
        }
        tokio::time::sleep(retry).await;
    }
}

async fn serve(port: &mut Port, connection: Connection) -> Ended {
    tracing::info!(port = port.name, "front end connected");
    port.serve(connection).await
}

/// The wait of a peer that broke the rules: longer each time, until it has behaved for a while.
struct Penalty {
    wanted: bool,
    next: Duration,
    since: Instant,
}

impl Penalty {
    /// If there is one at all.
    fn new(wanted: bool) -> Self {
        Self { wanted, next: PENALTY_FIRST, since: Instant::now() }
    }

    /// Says how a connection ended, and how long its peer has to wait now. None: nobody will be
    /// served any more.
    fn after(&mut self, port: &str, ended: &Ended) -> Option<Duration> {
        if self.since.elapsed() > PENALTY_MOST {
            self.next = PENALTY_FIRST;
        }
        self.since = Instant::now();
        match ended {
            Ended::Stopped(_) => None,
            Ended::Failed => {
                tracing::error!(port, "the port is out of service");
                None
            }
            ended if ended.is_fault() => {
                tracing::error!(port, "disconnected the front end: {ended}");
                if !self.wanted {
                    return Some(Duration::ZERO);
                }
                let wait = self.next;
                self.next = (2 * self.next).min(PENALTY_MOST);
                Some(wait)
            }
            ended => {
                tracing::info!(port, "front end {ended}");
                Some(Duration::ZERO)
            }
        }
    }
}

/// Says what a worker has to say that is no guest's session's business.
async fn report_events(
    mut events: mpsc::UnboundedReceiver<Event>,
    names: HashMap<AppId, String>,
    troubles: Troubles,
) {
    let name = |app| names.get(&app).map_or("", String::as_str);
    while let Some(event) = events.recv().await {
        match event {
            Event::Fault { app, fault } => {
                tracing::error!(port = name(app), "the port is down: {fault}");
            }
            Event::Failed { app, message, remains } => {
                tracing::error!(app = name(app), "a bug of ours took this down: {message}");
                drop(remains);
                // Its guest is to be let go of on the other workers too.
                if let Some(session) = troubles.get(&app) {
                    let _ = session.send(Trouble::Failed);
                }
            }
        }
    }
}

/// A key for the bridge's table that nobody can guess.
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
mod tests {
    use std::fs;
    use std::io::{IoSlice, Write};
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as Raw;
    use std::path::Path;

    use engine::Mode;
    use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use rustix::thread::{CpuSet, sched_getaffinity};
    use tokio::task::spawn_blocking;
    use vhost_user::FrontEnd;

    use super::*;
    use crate::config::{
        DEFAULT_FEATURES, DEFAULT_IDLE_SPIN, DEFAULT_LOG, DEFAULT_MTU, DEFAULT_QUEUE_PAIRS,
        DEFAULT_SOCKET_MODE,
    };

    /// More than a thread takes to end, on the slowest machine.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Two workers, and a port that listens.
    fn config(path: &Path, cpus: Vec<usize>) -> Config {
        let socket = SocketRole::Listen { mode: DEFAULT_SOCKET_MODE, group: None };
        let kind = PortKind::VhostUser {
            path: path.to_owned(),
            socket,
            mtu: DEFAULT_MTU,
            queue_pairs: DEFAULT_QUEUE_PAIRS,
            features: DEFAULT_FEATURES,
            penalty: true,
        };
        Config {
            mode: Mode::Interrupt,
            idle_spin: DEFAULT_IDLE_SPIN,
            workers: 2,
            cpus,
            log: DEFAULT_LOG,
            ports: vec![PortConfig { name: "vm".to_owned(), kind }],
        }
    }

    /// The threads of this process that are workers'.
    fn workers() -> Vec<String> {
        let threads = fs::read_dir("/proc/self/task").unwrap();
        // A thread may end while we look.
        let names =
            threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("worker")).collect()
    }

    #[tokio::test]
    async fn a_start_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let allowed = sched_getaffinity(None).unwrap();
        let good = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
        let bad = CpuSet::MAX_CPU;

        let Err(error) = Switch::start(&config(&path, vec![good, bad])) else {
            panic!("there is no processor {bad}");
        };
        assert_eq!(
            format!("{error:#}"),
            format!(
                "cannot start worker1: cannot run on processor {bad}: there is none, or we may not \
                 use it"
            )
        );
        assert!(!path.exists(), "the socket is gone");
        // A thread that was waited for is listed for another moment.
        let start = Instant::now();
        while !workers().is_empty() {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the end of {:?}", workers());
            std::thread::yield_now();
        }

        let switch = Switch::start(&config(&path, Vec::new())).unwrap();
        assert!(path.exists());
        assert_eq!(workers().len(), 2);
        switch.stop().await.unwrap();
        assert!(!path.exists());
    }

    /// A descriptor whose last close takes two limits; or until the other one is dropped.
    fn slow() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Far less than is sent, so that something is left that the other one has no room for.
        set_socket_recv_buffer_size(&listener, 4096).unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        slow.set_nonblocking(true).unwrap();
        while slow.write(&[0; 65536]).is_ok() {}
        slow.set_nonblocking(false).unwrap();
        set_socket_linger(&slow, Some(2 * LIMIT)).unwrap();
        (slow, other)
    }

    /// Sends a byte, and a descriptor with it.
    fn send(socket: &Raw, descriptor: impl AsFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Whether the port is served within this time: the front end asks for features, and gets them.
    async fn is_served(path: &Path, limit: Duration) -> bool {
        let path = path.to_owned();
        let served =
            spawn_blocking(move || FrontEnd::connect(&path, limit).unwrap().features().is_ok());
        served.await.unwrap()
    }

    #[tokio::test]
    async fn a_port_whose_last_front_end_holds_us_up_waits_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one.sock", "two.sock"].map(|name| directory.path().join(name));
        let mut config = config(&one, Vec::new());
        config.ports.extend(super::tests::config(&two, Vec::new()).ports);
        config.ports[1].name = "other".to_owned();
        let PortKind::VhostUser { penalty, .. } = &mut config.ports[0].kind else { panic!() };
        *penalty = false;
        let switch = Switch::start(&config).unwrap();
        let start = Instant::now();

        // The first two bytes are read, with their descriptors, of which the second has no place there; the
        // third waits in the socket. The next front end is to be turned away with one in its socket, and
        // another is never accepted.
        let (slows, others): (Vec<_>, Vec<_>) = (0..5).map(|_| slow()).unzip();
        let [hostile, refused, late] = [(); 3].map(|()| Raw::connect(&one).unwrap());
        slows[..3].iter().for_each(|slow| send(&hostile, slow));
        send(&refused, &slows[3]);
        send(&late, &slows[4]);
        drop(slows);
        assert!(is_served(&two, LIMIT).await, "the other port");
        drop((hostile, refused, late));
        assert!(is_served(&two, LIMIT).await, "the other port, afterwards");
        assert!(!is_served(&one, Duration::from_secs(1)).await, "nothing is closed yet");
        assert!(start.elapsed() < LIMIT, "nobody waited for the peer: {:?}", start.elapsed());

        drop(others);
        // What connected meanwhile gets its turn, and has gone.
        let mut served = false;
        while !served {
            assert!(start.elapsed() < 2 * LIMIT, "waited {LIMIT:?} for the port to be served");
            served = is_served(&one, Duration::from_secs(1)).await;
        }
        let stop = Instant::now();
        let (last, _other) = slow();
        let socket = Raw::connect(&one).unwrap();
        send(&socket, &last);
        drop(last);
        switch.stop().await.unwrap();
        assert!(stop.elapsed() < LIMIT, "the end waited for the peer: {:?}", stop.elapsed());
    }
}
