//! vhost-user ports: the connections of their front ends, one at a time.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use ports::vhost_user::VhostUserPort;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use vhost_user::back_end::Offer;
use vhost_user::{Closer, Connection, ConnectionError};

use super::backoff::Backoff;
use super::port::{Handle, Opened, Running};
use crate::account::group_id;
use crate::config::{SocketRole, VhostUser};
use crate::session::{Ended, Port};
use crate::socket::{Listener, listen_at};

/// How often a front end that does not listen yet is tried: at first, and at the slowest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_SLOWEST: Duration = Duration::from_secs(1);
/// How long a front end waits for the one before it to be gone, before it is turned away.
const GRACE: Duration = Duration::from_millis(100);
/// How often it is looked whether front ends can still find a port's socket: somebody may have removed its file.
const LOOK: Duration = Duration::from_secs(5);
/// How long a front end that broke the rules has to wait before it may try again: at first, and at
/// the most. It bounds what a peer that does nothing else can make us log.
const PENALTY_FIRST: Duration = Duration::from_secs(1);
const PENALTY_MOST: Duration = Duration::from_secs(60);

/// Where a port's connections come from.
enum Source {
    Listen(Place, Socket),
    Connect(PathBuf),
}

/// Where a port listens, and for whom.
#[derive(Clone)]
struct Place {
    path: PathBuf,
    mode: u32,
    group: Option<String>,
}

impl Place {
    fn listen(&self) -> anyhow::Result<Listener> {
        listen_at(&self.path, self.mode, self.group.as_deref())
    }
}

/// A listening socket: as tokio waits at it, and as it was made.
struct Socket(UnixListener, Listener);

impl Socket {
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(Self(UnixListener::from_std(listener.socket.try_clone()?)?, listener))
    }
}

/// Looks whether the group is there that a port's socket is to be for.
pub(super) fn check(name: &str, config: &VhostUser) -> anyhow::Result<()> {
    if let SocketRole::Listen { group: Some(group), .. } = &config.socket {
        group_id(group).with_context(|| format!("port `{name}`"))?;
    }
    Ok(())
}

/// Opens a port. `number` is any that other ports do not have, by which pairs of queues are spread over the workers.
pub(super) fn open(
    workers: usize,
    number: usize,
    name: &str,
    config: &VhostUser,
) -> anyhow::Result<Opened> {
    let VhostUser { path, socket, mtu, queue_pairs, penalty, features } = config.clone();
    let source = match socket {
        SocketRole::Listen { mode, group } => {
            let what = || format!("port `{name}`: cannot listen at {}", path.display());
            let place = Place { path: path.clone(), mode, group };
            let listener = place.listen().with_context(what)?;
            Source::Listen(place, Socket::new(listener).with_context(what)?)
        }
        SocketRole::Connect => Source::Connect(path),
    };
    let offer = Offer { features, protocol: Offer::PROTOCOL, queue_pairs, max_mtu: mtu };
    let remake = move |workers: usize| {
        let mut parts = VhostUserPort::parts(workers, number);
        parts.iter_mut().for_each(|part| part.set_mtu(mtu));
        parts
    };
    let parts = remake(workers);
    let control = move |handle: Handle| -> Running {
        let Handle { name, app, workers, mtus, troubles } = handle;
        mtus.note_guest(&name, mtu);
        let remake = Box::new(remake);
        let port = Port { name, app, offer, workers, mtus, troubles, remake };
        match source {
            Source::Listen(place, socket) => Box::pin(accept(port, penalty, place, socket)),
            Source::Connect(path) => Box::pin(connect(port, penalty, path)),
        }
    };
    Ok(Opened::new(parts).with_control(control))
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

    /// Connects to a front end, as soon as it listens and all is closed.
    async fn connected(&self, path: &Path) -> Connection {
        let mut retry = RETRY_FIRST;
        loop {
            self.closed().await;
            let connected = UnixStream::connect(path).await.map_err(ConnectionError::from);
            match connected.and_then(|socket| self.connection(socket)) {
                Ok(connection) => return connection,
                Err(error) => {
                    if retry == RETRY_FIRST {
                        self.say_waiting(path, &error);
                    }
                    retry = (2 * retry).min(RETRY_SLOWEST);
                }
            }
            tokio::time::sleep(retry).await;
        }
    }

    /// Says why there is no connection. That a front end is not there yet is as it should be.
    fn say_waiting(&self, path: &Path, error: &ConnectionError) {
        let (port, path) = (&self.name, path.display());
        match error {
            ConnectionError::Io(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                tracing::info!(port, %path, "waiting: nobody listens there ({error})");
            }
            error => tracing::warn!(port, %path, "cannot connect, and tries again: {error}"),
        }
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
async fn accept(mut port: Port, penalty: bool, place: Place, socket: Socket) {
    let mut penalty = Penalty::new(penalty);
    let leftovers = Leftovers::new(&port.name);
    let (waiting, socket) = (Mutex::new(None), Mutex::new(Arc::new(socket)));
    let queue = Queue { leftovers, waiting, place, complaint: Mutex::default(), socket };
    loop {
        let ended = tokio::select! {
            biased;
            trouble = port.trouble() => trouble,
            connection = queue.next() => tokio::select! {
                biased;
                ended = serve(&mut port, connection) => ended,
                // Never ends; turns others away while this front end is here.
                never = queue.refuse("one is connected") => match never {},
            },
        };
        let Some(wait) = penalty.after(&port.name, &ended) else { return };
        let why = match ended {
            Ended::Failed => "the port is being started again",
            _ => "the last one broke the rules",
        };
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                never = queue.refuse(why) => match never {},
            }
        }
        if let Ended::Failed = ended {
            penalty.restart(&mut port).await;
        }
    }
}

/// The front ends that want to be served by one port.
struct Queue {
    leftovers: Leftovers,
    /// One that came while another was served, and is not turned away yet.
    waiting: Mutex<Option<Connection>>,
    place: Place,
    /// Why they cannot find it, if that was said.
    complaint: Mutex<String>,
    /// Another one, when its file was removed.
    socket: Mutex<Arc<Socket>>,
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

    fn socket(&self) -> MutexGuard<'_, Arc<Socket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens anew if nobody can find the socket any more.
    async fn look(&self) {
        if self.socket().1.is_there() {
            return;
        }
        let (port, path) = (&self.leftovers.name, self.place.path.display());
        let place = self.place.clone();
        // It may wait for whoever else makes a socket there.
        let listener = spawn_blocking(move || place.listen()).await.map_err(anyhow::Error::from);
        let socket = listener.and_then(|listener| Ok(Socket::new(listener?)?));
        let complaint = match &socket {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        let mut said = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        match socket {
            Ok(socket) => {
                tracing::warn!(port, "somebody has removed {path}: listening there anew");
                *self.socket() = Arc::new(socket);
            }
            Err(_) if *said == complaint => {}
            Err(_) => tracing::error!(
                port,
                "no front end can connect any more: somebody has removed {path}, and it cannot be made anew: \
                 {complaint}; it is tried again every {LOOK:?}"
            ),
        }
        *said = complaint;
    }

    async fn accept(&self) -> Connection {
        loop {
            self.leftovers.closed().await;
            let socket = self.socket().clone();
            let accepted = tokio::select! {
                accepted = socket.0.accept() => accepted.map_err(ConnectionError::from),
                () = tokio::time::sleep(LOOK) => {
                    self.look().await;
                    continue;
                }
            };
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
    let leftovers = Leftovers::new(&port.name);
    loop {
        let ended = tokio::select! {
            biased;
            trouble = port.trouble() => trouble,
            connection = leftovers.connected(&path) => serve(&mut port, connection).await,
        };
        let Some(wait) = penalty.after(&port.name, &ended) else { return };
        tokio::time::sleep(wait).await;
        if let Ended::Failed = ended {
            penalty.restart(&mut port).await;
        }
        tokio::time::sleep(RETRY_FIRST).await;
    }
}

async fn serve(port: &mut Port, connection: Connection) -> Ended {
    tracing::info!(port = port.name, "front end connected");
    port.serve(connection).await
}

/// How long nobody is served after a peer broke the rules, or we did.
struct Penalty {
    /// If a peer has to wait at all.
    wanted: bool,
    of_peer: Backoff,
    of_app: Backoff,
}

impl Penalty {
    fn new(wanted: bool) -> Self {
        let now = Instant::now();
        let of_peer = Backoff::new(PENALTY_FIRST, PENALTY_MOST, now);
        Self { wanted, of_peer, of_app: Backoff::of_app(now) }
    }

    /// Starts the port again that a bug of ours took down, however often that has to be tried.
    async fn restart(&mut self, port: &mut Port) {
        while !port.restart().await {
            tokio::time::sleep(self.of_app.wait(Instant::now())).await;
        }
    }

    /// Says how a connection ended, and how long the next one has to wait now. None: nobody will be
    /// served any more.
    fn after(&mut self, port: &str, ended: &Ended) -> Option<Duration> {
        let now = Instant::now();
        match ended {
            Ended::Stopped(_) => None,
            Ended::Failed => {
                let wait = self.of_app.wait(now);
                tracing::error!(port, "the port is out of service for {wait:?}");
                Some(wait)
            }
            ended if ended.is_fault() => {
                tracing::error!(port, "disconnected the front end: {ended}");
                Some(if self.wanted { self.of_peer.wait(now) } else { Duration::ZERO })
            }
            ended => {
                tracing::info!(port, "front end {ended}");
                Some(Duration::ZERO)
            }
        }
    }
}
