//! What all ports have in common, as control sees them: how they are opened, and what goes on behind them while the
//! switch runs.

use std::os::fd::RawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use engine::{App, AppId};
use tokio::sync::mpsc;

use super::Mtus;
use super::pcap::{self, FileCapture};
use super::{tap, tun, vhost_net, vhost_user};
use crate::config::{PortKind, Tap, VhostNet};
use crate::links::Links;
use crate::session::Trouble;
use crate::workers::Workers;

/// A port that was opened. When it is dropped, whatever was made for it goes.
pub(super) struct Opened {
    /// A part for each worker.
    pub(super) parts: Vec<Box<dyn App>>,
    /// What goes on behind it while it runs.
    pub(super) control: Option<Control>,
    /// The file that it writes.
    pub(super) capture: Option<FileCapture>,
    /// Sets back what was there before, and was changed for it; for when it never runs.
    pub(super) undo: Option<Running>,
}

impl Opened {
    pub(super) fn new(parts: Vec<impl App>) -> Self {
        Self { parts: boxed(parts), control: None, capture: None, undo: None }
    }

    pub(super) fn with_control(
        mut self,
        control: impl FnOnce(Handle) -> Running + Send + 'static,
    ) -> Self {
        self.control = Some(Box::new(control));
        self
    }

    pub(super) fn with_undo(mut self, undo: impl Future<Output = ()> + Send + 'static) -> Self {
        self.undo = Some(Box::pin(undo));
        self
    }

    pub(super) fn with_capture(mut self, capture: FileCapture) -> Self {
        self.capture = Some(capture);
        self
    }
}

/// What control does for a port, from when the workers have it on, until it is dropped.
pub(super) type Control = Box<dyn FnOnce(Handle) -> Running + Send>;
pub(super) type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A port of a running switch, as its control sees it.
pub(super) struct Handle {
    pub(super) name: String,
    pub(super) app: AppId,
    pub(super) workers: Arc<Workers>,
    /// Where to say what MTU it has, if it has one.
    pub(super) mtus: Mtus,
    /// What the workers say of this port.
    pub(super) troubles: mpsc::UnboundedReceiver<Trouble>,
}

/// What ports are opened with.
pub(super) struct Opener {
    workers: usize,
    epoch: Instant,
    /// Opened for the first port that has to do with the host's interfaces.
    links: Option<Links>,
    /// How many ports were opened so far.
    opened: usize,
    /// Those that are opened were there before, and go on: a capture does not empty its file.
    pub(super) puts_back: bool,
}

impl Opener {
    pub(super) fn new(workers: usize, epoch: Instant) -> Self {
        Self { workers, epoch, links: None, opened: 0, puts_back: false }
    }

    /// Looks whether there is what a port asks for, beside its socket, interface or file, which another one has. Descriptors that it
    /// was given can be looked at meanwhile.
    pub(super) async fn check(&mut self, name: &str, kind: &PortKind) -> anyhow::Result<()> {
        match kind {
            PortKind::VhostUser(port) => vhost_user::check(name, port),
            kind => match tap_of(kind) {
                Some(tap) => tap::check(&mut self.links, name, tap).await,
                None => Ok(()),
            },
        }
    }

    /// Opens a port: its socket, interface or file. It is nobody's yet.
    pub(super) async fn open(&mut self, name: &str, kind: &PortKind) -> anyhow::Result<Opened> {
        let Self { workers, epoch, links, opened, puts_back } = self;
        let workers = *workers;
        let number = *opened;
        *opened += 1;
        match kind {
            PortKind::VhostUser(port) => vhost_user::open(workers, number, name, port),
            PortKind::Tap(port) => tap::open(workers, links, name, port, tap::parts).await,
            PortKind::Tun(port) => tun::open(workers, links, name, port).await,
            PortKind::VhostNet(port) => vhost_net::open(workers, links, name, port).await,
            PortKind::PcapRead(port) => pcap::open_source(workers, name, port),
            PortKind::PcapWrite(port) => pcap::open_sink(workers, name, port, *epoch, *puts_back),
        }
    }
}

/// An app in as many parts as there are workers.
pub(super) fn parts<A>(first: A, workers: usize, part: fn(&A) -> A) -> Vec<A> {
    let mut parts: Vec<A> = (1..workers).map(|_| part(&first)).collect();
    parts.insert(0, first);
    parts
}

pub(super) fn boxed<A: App>(parts: Vec<A>) -> Vec<Box<dyn App>> {
    parts.into_iter().map(|part| Box::new(part) as _).collect()
}

/// What only one port can have at a time, whatever its type: another one that needs it cannot be opened before that is gone.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Need<'a> {
    // Paths compare by their components.
    Socket(&'a Path),
    Capture(&'a Path),
    Interface(&'a str),
    Descriptor(RawFd),
}

/// All of that which a port has, or needs.
pub(super) fn needs(kind: &PortKind) -> Vec<Need<'_>> {
    let descriptors = tap_of(kind).into_iter().flat_map(|tap| &tap.descriptors);
    let mut needs: Vec<_> = descriptors.map(|number| Need::Descriptor(*number)).collect();
    needs.extend(match kind {
        PortKind::VhostUser(port) => Some(Need::Socket(&port.path)),
        PortKind::PcapWrite(port) => Some(Need::Capture(&port.file)),
        kind => interface(kind).map(Need::Interface),
    });
    needs
}

fn tap_of(kind: &PortKind) -> Option<&Tap> {
    match kind {
        PortKind::Tap(tap) | PortKind::VhostNet(VhostNet { tap, .. }) => Some(tap),
        _ => None,
    }
}

/// The host's interface that a port asks for by name.
fn interface(kind: &PortKind) -> Option<&str> {
    let name = match kind {
        PortKind::Tun(tun) => tun.interface.as_str(),
        kind => tap_of(kind)?.interface.as_str(),
    };
    Some(name).filter(|name| !name.is_empty())
}
