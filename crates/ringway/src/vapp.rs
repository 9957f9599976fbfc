//! `ringway vapp`: the reference pair, a back end and a front end that need no virtual machine.

pub mod cli;
mod client;
mod dump;
mod frame;
mod server;
mod socket;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use vhost_user::back_end::End;
use vhost_user::{Closer, Connection};

use crate::config::DEFAULT_SOCKET_MODE;
use crate::socket::listen_at;
use crate::tell;
use cli::{Role, Server, Vapp};
use dump::Dump;
use server::Net;

/// How long either end may take to stop once it was told to.
const STOP_LIMIT: Duration = Duration::from_millis(500);
/// How often to see whether that is so, where it cannot be waited for.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// Tells the thread that works, which waits for other things, that it is time to stop.
#[derive(Clone)]
pub struct Stopping(Arc<OwnedFd>);

impl Stopping {
    fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    fn set(&self) {
        // The only error is a full counter.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn is_set(&self) -> io::Result<bool> {
        Ok(self.wait_for(&self.0, Some(Duration::ZERO))?[1])
    }

    /// Waits until `descriptor` is readable, or it is time to stop: then false.
    fn wait_for(&self, descriptor: impl AsFd, limit: Option<Duration>) -> io::Result<[bool; 2]> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut polled =
            [PollFd::new(&descriptor, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut polled, limit.as_ref()) {
                Err(Errno::INTR) => {}
                result => {
                    result?;
                    return Ok(polled.map(|polled| !polled.revents().is_empty()));
                }
            }
        }
    }
}

impl AsFd for Stopping {
    /// Readable when it is time to stop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs one end until it is done, or told to stop.
pub async fn vapp(flags: Vapp, stop: &mut crate::Stop) -> anyhow::Result<()> {
    let role = flags.role().context("say `server` or `client`")?;
    let stopping = Stopping::new().context("cannot make an event descriptor")?;
    let told = stopping.clone();
    let mut work = spawn_blocking(move || match role {
        Role::Server(flags) => serve(&flags, &told),
        Role::Client(flags) => client::run(&flags, &told),
    });
    tokio::select! {
        result = &mut work => return result?,
        () = stop.asked() => stopping.set(),
    }
    match timeout(STOP_LIMIT, work).await {
        Ok(result) => result?,
        // It waits for a back end's answer, and has nothing to say.
        Err(_) => Ok(()),
    }
}

/// Serves front ends where the flags say that they are.
fn serve(flags: &Server, stopping: &Stopping) -> anyhow::Result<()> {
    #[cfg(feature = "faults")]
    if let (Some(fault), Some(path)) = (flags.fault, &flags.place.socket_path) {
        return serve_wrong(path, fault, stopping);
    }
    let mut net = Net::new(flags.work(), flags.dump.then(|| Dump::new(stopping)));
    if let Some(path) = &flags.place.socket_path {
        return serve_all(path, &mut net, stopping);
    }
    let socket = match (&flags.place.connect, flags.place.fd) {
        (Some(path), _) => sys::connect(path, socket::LIMIT)
            .with_context(|| format!("cannot connect to {}", path.display()))?,
        (None, Some(number)) => socket::inherited(number)?,
        (None, None) => bail!("say where the front end is: --socket-path, --connect or --fd"),
    };
    serve_one(Connection::new(socket)?, &mut net, stopping).map(|_| ())
}

/// Serves one front end after the other.
fn serve_all(path: &Path, net: &mut Net, stopping: &Stopping) -> anyhow::Result<()> {
    let place = path.display();
    let listener = listen_at(path, DEFAULT_SOCKET_MODE, None)
        .with_context(|| format!("cannot listen at {place}"))?;
    tell(&format!("listening at {place}"));
    let closer = Closer::new();
    loop {
        // What front ends leave behind must not pile up.
        while !closer.wait(STOP_CHECK) {
            if stopping.is_set()? {
                return Ok(());
            }
        }
        let [_, stopped] = stopping.wait_for(&listener.socket, None)?;
        if stopped {
            return Ok(());
        }
        let socket = match listener.socket.accept() {
            Ok((socket, _)) => socket,
            // It has gone already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot accept at {place}")),
        };
        let connection = Connection::with_closer(socket.into(), &closer)?;
        match serve_one(connection, net, stopping) {
            Ok(End::Stopped) => return Ok(()),
            Ok(End::Closed) => {}
            Err(error) => tell(&format!("ringway: {error:#}")),
        }
    }
}

/// Serves front ends with one thing wrong, until that is the end of it.
#[cfg(feature = "faults")]
fn serve_wrong(
    path: &Path,
    fault: &'static check::faults::Fault,
    stopping: &Stopping,
) -> anyhow::Result<()> {
    let place = path.display();
    let listener = listen_at(path, DEFAULT_SOCKET_MODE, None)
        .with_context(|| format!("cannot listen at {place}"))?;
    eprintln!("listening at {place} with the fault {}", fault.name);
    let now = Some(Duration::ZERO);
    let stop = || stopping.wait_for(&listener.socket, now).is_ok_and(|[_, stopped]| stopped);
    if !check::faults::serve(&listener.socket, fault, &stop) {
        bail!("the fault {} is the end of it", fault.name);
    }
    Ok(())
}

/// Serves one front end, and says what came of it.
fn serve_one(
    mut connection: Connection,
    net: &mut Net,
    stopping: &Stopping,
) -> anyhow::Result<End> {
    if let Some(dump) = &net.dump {
        connection.observe(dump.messages());
    }
    net.tally = server::Tally::default();
    let end = net.serve(connection, stopping);
    let server::Tally { from_guest, bytes_from_guest, to_guest, dropped } = net.tally;
    tell(&format!(
        "{from_guest} frames ({bytes_from_guest} bytes) from the guest, {to_guest} to it, \
         {dropped} dropped"
    ));
    end.context("the front end was disconnected")
}
