//! One front end's connection, from its first message to its end.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{AppId, Fault, Poller, Stopped};
use ports::vhost_user::{Swapped, VhostUserPort};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use vhost_user::back_end::{Device, Event, Offer, Session, Violation, sharing};
use vhost_user::{Connection, ConnectionError, Incoming, Message};

use crate::switch::Mtus;
use crate::workers::Workers;

/// What is logged of one connection about requests that were refused and forgiven: a front end
/// could send them without end.
const NOTICES: usize = 16;

/// A vhost-user port, as control sees it.
pub struct Port {
    pub name: String,
    pub app: AppId,
    pub offer: Offer,
    pub workers: Arc<Workers>,
    /// Where to say what MTU the guest has.
    pub mtus: Mtus,
    /// What the workers say of this port.
    pub troubles: mpsc::UnboundedReceiver<Trouble>,
    /// Makes its app anew, in a part for each of so many workers.
    pub remake: Box<dyn Fn(usize) -> Vec<VhostUserPort> + Send + Sync>,
}

impl Port {
    /// What the workers say while nobody is served. May be cancelled.
    pub async fn trouble(&mut self) -> Ended {
        match self.troubles.recv().await {
            Some(trouble) => trouble.into(),
            // The port is about to be taken out.
            None => std::future::pending().await,
        }
    }

    /// Starts the port again after a bug of ours took it down: a new app on all workers, whatever the old one left. False when
    /// that cannot be.
    pub async fn restart(&mut self) -> bool {
        // What was said of the old one.
        while self.troubles.try_recv().is_ok() {}
        let parts = (self.remake)(self.workers.len());
        if let Err(error) = self.workers.replace(self.app, parts).await {
            tracing::error!(port = self.name, "not started again: {error:#}");
            return false;
        }
        tracing::warn!(port = self.name, "started again");
        true
    }
}

/// Why a worker took a port down.
pub enum Trouble {
    /// The guest broke the rules.
    Guest(Fault),
    /// We did.
    Failed,
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Guest(fault) => Self::Guest(fault),
            Trouble::Failed => Self::Failed,
        }
    }
}

/// Changes of a device that a front end may ask for at once, and how many more each second: enough for
/// any that starts 128 pairs. Each costs all workers a moment.
const CHANGES: u32 = 4096;
const CHANGES_PER_SECOND: u32 = 1000;

/// Has a front end wait that changes its device all the time.
struct Pace {
    /// Changes that may be made at once.
    left: u32,
    since: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { left: CHANGES, since: now }
    }

    /// Counts a change. Returns how long to wait before the next.
    fn count(&mut self, now: Instant) -> Duration {
        let each = Duration::from_secs(1) / CHANGES_PER_SECOND;
        let passed = now.saturating_duration_since(self.since);
        let earned = u32::try_from(passed.as_nanos() / each.as_nanos()).unwrap_or(CHANGES);
        // Who was quiet for long has earned no more than all.
        self.since = if earned < CHANGES { self.since + each * earned } else { now };
        self.left = self.left.saturating_add(earned).min(CHANGES);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => each,
        }
    }
}

/// How a connection ended.
#[derive(Debug, Error)]
pub enum Ended {
    /// The front end closed it.
    #[error("disconnected")]
    Closed,
    /// The front end broke the protocol, or the socket did.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The front end broke the rules of vhost-user.
    #[error(transparent)]
    FrontEnd(#[from] Violation),
    /// The guest broke the rules of virtio.
    #[error("{0}")]
    Guest(Fault),
    /// A bug of ours took the port down.
    #[error("the port has failed")]
    Failed,
    /// We are stopping.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Ended {
    /// Whether the peer did something that somebody should know of.
    pub fn is_fault(&self) -> bool {
        match self {
            // It was killed, most likely.
            Self::Connection(ConnectionError::Gone) => false,
            Self::Connection(_) | Self::FrontEnd(_) | Self::Guest(_) => true,
            Self::Closed | Self::Failed | Self::Stopped(_) => false,
        }
    }
}

impl Port {
    /// Serves one connection. When this returns, the workers have let go of all that was the guest's. Only then the connection is
    /// closed, by whatever it ended: a front end that finds it so may go on elsewhere with rings that nobody touches any more.
    pub async fn serve(&mut self, connection: Connection) -> Ended {
        let mut socket = match Socket::new(connection) {
            Ok(socket) => socket,
            Err(error) => return error.into(),
        };
        let ended = match self.converse(&mut socket).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        let unsaid = match self.link_down().await {
            Ok(unsaid) => unsaid,
            Err(failed) => return failed,
        };
        // A worker reported whatever the guest did before it let go of it. A front end may well have
        // been quicker to leave than we were to hear of that.
        match self.troubles.try_recv().ok().or(unsaid) {
            Some(trouble) if !ended.is_fault() => trouble.into(),
            _ => ended,
        }
    }

    async fn converse(&mut self, socket: &mut Socket) -> Result<Infallible, Ended> {
        let mut session = Session::new(self.offer);
        let mut notices = NOTICES;
        let mut pace = Pace::new(Instant::now());
        loop {
            let message = tokio::select! {
                message = socket.receive() => message?,
                Some(trouble) = self.troubles.recv() => return Err(trouble.into()),
            };
            let Some(message) = message else {
                return Err(Ended::Closed);
            };
            tracing::trace!(port = self.name, ?message, "received");
            if socket.is_private_memory(&message).await {
                return Err(Violation::NotShared.into());
            }
            let step = session.handle(message)?;
            for notice in step.notices.iter().take(notices) {
                tracing::info!(port = self.name, "{notice}");
            }
            notices = notices.saturating_sub(step.notices.len());
            if let Some(device) = &step.device {
                let swapped = self.swap(Some(device.clone())).await?;
                for (ring, index) in swapped.iter().flat_map(|part| &part.positions) {
                    session.stopped(*ring, *index);
                }
                let wait = pace.count(Instant::now());
                if !wait.is_zero() {
                    sleep(wait).await;
                }
            }
            match step.event {
                Some(Event::Announce(station)) => {
                    tracing::info!(port = self.name, %station, "announcing a guest that moved here");
                    let frame = wire::rarp::announcement(station);
                    let app = self.app;
                    let announce =
                        move |port: &mut VhostUserPort, _: &Poller| port.announce(frame.into());
                    let announced = self.workers.on_first(move |worker| worker.with(app, announce));
                    if announced.await?.is_none() {
                        return Err(self.lost().await);
                    }
                }
                Some(Event::Mtu(mtu)) => {
                    tracing::info!(port = self.name, mtu, "guest's MTU");
                    self.mtus.note_guest(&self.name, mtu);
                    self.on_port(move |port, _| port.set_mtu(mtu)).await?;
                }
                None => {}
            }
            if let Some(answer) = session.answer(step) {
                socket.send(answer).await?;
            }
        }
    }

    /// Has the workers let go of the guest, by which the apps behind the port hear that it is gone. Returns what a
    /// worker had found and not said yet.
    async fn link_down(&self) -> Result<Option<Trouble>, Ended> {
        let swapped = self.swap(None).await;
        let mtu = self.offer.max_mtu;
        self.mtus.note_guest(&self.name, mtu);
        let reset = self.on_port(move |port, _| port.set_mtu(mtu)).await;
        let (swapped, _) = (swapped?, reset?);
        let fault = swapped.into_iter().find_map(|part| part.fault);
        Ok(fault.map(|fault| Trouble::Guest(fault.into())))
    }

    /// Has the workers take over `device`, and waits until all did. Parts of the old one are in the
    /// result, to be dropped here.
    async fn swap(&self, device: Option<Arc<Device>>) -> Result<Vec<Swapped>, Ended> {
        self.on_port(move |port, poller| port.swap(device.as_deref(), poller)).await
    }

    /// Runs `command` on all parts of this port, each between two breaths of its worker.
    async fn on_port<R: Send + 'static>(
        &self,
        command: impl Fn(&mut VhostUserPort, &Poller) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Ended> {
        let app = self.app;
        let parts = self.workers.on_each(move |worker| worker.with(app, command.clone())).await?;
        match parts.into_iter().collect() {
            Some(results) => Ok(results),
            None => Err(self.lost().await),
        }
    }

    /// Why a worker has no part of this port: it has failed, or the port was taken out of all of them, and we are about to be
    /// ended for it.
    async fn lost(&self) -> Ended {
        let app = self.app;
        match self.workers.on_each(move |worker| worker.graph().has(app)).await {
            Ok(parts) if parts.contains(&true) => Ended::Failed,
            Ok(_) => Stopped.into(),
            Err(stopped) => stopped.into(),
        }
    }
}

/// A connection and the runtime's eye on its socket.
struct Socket {
    /// The same socket, to wait for it; never read or written. Before the connection, to be closed before
    /// it: who closes a socket last waits for what a peer has sent.
    readiness: UnixStream,
    connection: Connection,
    /// The front end's process, if it can be seen from here.
    peer: Option<i32>,
}

impl Socket {
    fn new(connection: Connection) -> Result<Self, ConnectionError> {
        let readiness = connection.as_fd().try_clone_to_owned()?;
        let readiness = UnixStream::from_std(readiness.into())?;
        let peer = readiness.peer_cred()?.pid();
        Ok(Self { readiness, connection, peer })
    }

    /// Whether `message` hands over memory of which the front end keeps a copy of its own. Asked of
    /// the kernel by a thread that may wait: the answer takes a lock of the front end's.
    async fn is_private_memory(&self, message: &Message) -> bool {
        let (Some(peer), files) = (self.peer, sharing::shared_files(message)) else { return false };
        if files.is_empty() {
            return false;
        }
        let is_private = spawn_blocking(move || sharing::is_private(peer, files));
        // No answer is no reason to refuse anybody.
        timeout(sharing::LIMIT, is_private)
            .await
            .is_ok_and(|is_private| is_private.unwrap_or(false))
    }

    /// The next message; none when the front end is gone. May be cancelled.
    async fn receive(&mut self) -> Result<Option<Message>, ConnectionError> {
        let Self { connection, readiness, .. } = self;
        let receive = || match connection.receive() {
            Ok(Incoming::NotYet) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        };
        match readiness.async_io(Interest::READABLE, receive).await?? {
            Incoming::Message(message) => Ok(Some(message)),
            Incoming::Closed | Incoming::NotYet => Ok(None),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), ConnectionError> {
        let Self { connection, readiness, .. } = self;
        if connection.send(message)? {
            return Ok(());
        }
        let flush = || match connection.flush() {
            Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        };
        readiness.async_io(Interest::WRITABLE, flush).await?.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_end_that_changes_its_device_all_the_time_waits() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..CHANGES {
            assert_eq!(pace.count(start), Duration::ZERO, "enough for any start");
        }
        // From then on, so many each second.
        let mut now = start;
        for _ in 0..100 {
            let wait = pace.count(now);
            assert!(!wait.is_zero());
            now += wait;
            assert_eq!(pace.count(now), Duration::ZERO);
        }
        assert_eq!(now - start, Duration::from_secs(1) / CHANGES_PER_SECOND * 100);
        // One that was quiet for long has no more than any.
        let later = now + Duration::from_secs(3600);
        let free = (0..10 * CHANGES).take_while(|_| pace.count(later).is_zero()).count();
        assert_eq!(free, CHANGES as usize);
    }
}
