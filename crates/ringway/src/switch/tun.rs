//! Tun ports: opens an interface of the host, gives it its addresses, and follows what becomes of it.
//!
//! As with a tap port's (see [`super::tap`]), an interface that was deleted is found by the workers, and the port is
//! down until somebody makes one of that name again; it is set up anew then.

use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use engine::Poller;
use ports::tap::Queues;
use ports::tun::{Station, Subnet, TunPort};
use rustix::io::Errno;
use sys::tun::{Kind, Queue, Request};
use tokio::time::sleep;
use wire::ethernet::MacAddress;
use wire::virtio::NetHeader;

use super::{Graphs, Handle, Opened, random_key};
use crate::config::Tun;
use crate::links::{Heard, Link, Links, LinksError, Setting, Watch};
use crate::session::Trouble;

/// When an interface that is back, and could not be attached to, is tried again.
const RETRY: Duration = Duration::from_millis(250);

pub(super) async fn open(
    graphs: &mut Graphs,
    links: &mut Option<Links>,
    name: &str,
    config: &Tun,
) -> anyhow::Result<Opened> {
    let links = match links {
        Some(links) => links,
        None => links.insert(Links::open().context("cannot open an rtnetlink socket")?),
    };
    // From before the first look.
    let watch = links.watch();
    let interface = &config.interface;
    let what = || format!("port `{name}`: tun interface `{interface}`");
    let (queue, link, is_new) = attach(config, links, None).await.with_context(what)?;
    let mac = match config.mac {
        Some(mac) => mac,
        None => random_mac()?,
    };
    let done = if is_new { "created" } else { "attached" };
    tracing::info!(port = name, interface, %mac, "{done}");
    let station = Station { mac, subnets: config.subnets.clone() };
    let mut parts = TunPort::parts(queue, station, graphs.0.len(), random_key()?)?;
    let is_up = works(&link);
    parts.iter_mut().for_each(|part| part.set_link(is_up));
    let app = graphs.add(name, parts);
    let (links, config) = (links.clone(), config.clone());
    let control = move |handle: Handle| -> super::Running {
        handle.mtus.note(&handle.name, link.mtu);
        let place = Place::Here(link.index);
        let control = Control { handle, config, links, watch, place, is_up, is_new, failures: 0 };
        Box::pin(control.follow())
    };
    Ok(Opened { app, control: Some(Box::new(control)) })
}

/// An address that is administered locally, of one station.
fn random_mac() -> anyhow::Result<MacAddress> {
    let [bytes, _] = random_key()?;
    let [first, b, c, d, e, f, ..] = bytes.to_ne_bytes();
    Ok(MacAddress([first & 0xfc | 0x02, b, c, d, e, f]))
}

/// Attaches to the interface, and sets it up. One that does not exist is created, unless it is `known`. Says whether
/// it was; one that was is put up.
async fn attach(
    config: &Tun,
    links: &Links,
    known: Option<(Link, bool)>,
) -> anyhow::Result<(Queue, Link, bool)> {
    let is_back = known.is_some();
    let (before, puts_up) = match known {
        Some((link, puts_up)) => (Some(link), puts_up),
        None => (links.find(&config.interface).await?, false),
    };
    let queues = Request::new(&config.interface, Kind::Tun, NetHeader::SIZE).open()?;
    let queue = queues.into_iter().next().context("there is no queue")?;
    let link = links.find(queue.name()).await?.context(DELETED)?;
    let is_new = before.is_none_or(|before| before.index != link.index);
    // Then it goes with its queue.
    ensure!(!(is_new && is_back), DELETED);
    set_up(config, links, &link, is_new || puts_up).await?;
    let link = links.at(link.index).await?.context(DELETED)?;
    Ok((queue, link, is_new))
}

const DELETED: &str = "it was deleted again at once";

/// Sets what is wanted and not so already.
async fn set_up(config: &Tun, links: &Links, link: &Link, up: bool) -> anyhow::Result<()> {
    let Link { index, name, .. } = link;
    if let Some(mtu) = config.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) {
        let result = links.set(*index, Setting::Mtu(mtu)).await;
        result.map_err(|error| explain(error, &format!("ip link set dev {name} mtu {mtu}")))?;
    }
    if up && !link.is_up {
        let result = links.set(*index, Setting::Up(true)).await;
        result.map_err(|error| explain(error, &format!("ip link set dev {name} up")))?;
    }
    let there = links.addresses(*index).await?;
    for Subnet { address, prefix_len } in &config.subnets.addresses {
        if !there.contains(&(*address, *prefix_len)) {
            let result = links.add_address(*index, *address, *prefix_len).await;
            let what = format!("ip addr add {address}/{prefix_len} dev {name}");
            result.map_err(|error| explain(error, &what))?;
        }
    }
    Ok(())
}

/// Why an interface could not be set up.
fn explain(error: LinksError, what: &str) -> anyhow::Error {
    match error {
        LinksError::Refused(Errno::PERM) => anyhow!(
            "cannot set it up: that needs CAP_NET_ADMIN. Without, somebody who has it does it before \
             ({what})"
        ),
        error => anyhow!("cannot set it up as by `{what}`: {error}"),
    }
}

/// Whether an interface passes packets.
fn works(link: &Link) -> bool {
    link.is_up && link.has_carrier
}

/// Where the interface is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Here, and this is its number.
    Here(u32),
    /// In another network namespace: nothing is heard of it.
    Elsewhere,
    /// Deleted.
    Gone,
}

/// The workers have stopped, or a bug of ours took the port down: there is nothing left to be done.
struct Over;

/// What goes on behind a port.
struct Control {
    handle: Handle,
    config: Tun,
    links: Links,
    watch: Watch,
    place: Place,
    /// What the workers know.
    is_up: bool,
    /// It was created, and is put up when it is back.
    is_new: bool,
    /// How often it could not be attached to since it is back.
    failures: u32,
}

impl Control {
    async fn follow(mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Over> {
        let index = if let Place::Here(index) = self.place { Some(index) } else { None };
        // What is tried again changes the interface each time, which is no news.
        let listens = self.place != Place::Elsewhere && self.failures == 0;
        tokio::select! {
            trouble = self.handle.troubles.recv() => match trouble {
                Some(Trouble::Guest(_)) => self.leave().await,
                Some(Trouble::Failed) | None => Err(Over),
            },
            heard = self.watch.of(index, &self.config.interface), if listens => {
                match (heard, index) {
                    (Heard::Look, Some(index)) => self.look(index).await,
                    (Heard::Look, None) => self.come_back().await,
                    (Heard::Moved, _) => {
                        self.place = Place::Elsewhere;
                        let (port, interface) = (&self.handle.name, &self.config.interface);
                        tracing::info!(
                            port,
                            interface,
                            "in another network namespace: its state is not followed"
                        );
                        self.learn(true).await
                    }
                }
            }
            () = sleep(RETRY), if self.failures > 0 => self.come_back().await,
        }
    }

    /// Looks what an interface is now.
    async fn look(&mut self, index: u32) -> Result<(), Over> {
        // If it is not there, the workers say so, or it was moved and we are told.
        let Ok(Some(link)) = self.links.at(index).await else { return Ok(()) };
        let (port, interface) = (&self.handle.name, &self.config.interface);
        self.handle.mtus.note(port, link.mtu);
        // An interface loses its IPv6 addresses when it is put down.
        if works(&link)
            && !self.is_up
            && let Err(error) = set_up(&self.config, &self.links, &link, false).await
        {
            tracing::error!(port, interface, "{error:#}");
        }
        self.learn(works(&link)).await
    }

    /// Has the workers know whether the interface is up.
    async fn learn(&mut self, is_up: bool) -> Result<(), Over> {
        if std::mem::replace(&mut self.is_up, is_up) == is_up {
            return Ok(());
        }
        self.on_port(move |port, _| port.set_link(is_up)).await?;
        let (port, interface) = (&self.handle.name, &self.config.interface);
        tracing::info!(port, interface, "{}", if is_up { "up" } else { "down" });
        if !is_up {
            self.forget();
        }
        Ok(())
    }

    /// Has the bridge forget the station behind this port.
    fn forget(&self) {
        let (table, number) = &self.handle.bridge;
        table.forget_port(*number);
    }

    /// Lets go of an interface that was deleted.
    async fn leave(&mut self) -> Result<(), Over> {
        // The last part's is the one that closes the queue: here.
        drop(self.on_port(|port, poller| port.detach(poller)).await?);
        self.forget();
        let (port, interface) = (&self.handle.name, &self.config.interface);
        if self.place == Place::Elsewhere {
            // One of its name that is here is somebody else's.
            tracing::error!(
                port,
                interface,
                "the interface was deleted in another network namespace: the port is out of service until \
                 the switch is started anew"
            );
            return Err(Over);
        }
        self.place = Place::Gone;
        tracing::error!(
            port,
            interface,
            "the interface was deleted: the port is down until there is one of this name again"
        );
        // It may be there again already, which was heard before.
        self.come_back().await
    }

    /// Attaches to the interface of this name, if there is one again.
    async fn come_back(&mut self) -> Result<(), Over> {
        let (port, interface) = (&self.handle.name, &self.config.interface);
        let link = match self.links.find(interface).await {
            Ok(Some(link)) => link,
            Ok(None) => {
                self.failures = 0;
                return Ok(());
            }
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                return Ok(());
            }
        };
        match attach(&self.config, &self.links, Some((link, self.is_new))).await {
            Ok((queue, link, _)) => {
                let (queues, is_up) = (Queues::new(vec![queue]), works(&link));
                let attached = self.on_port(move |port, poller| {
                    port.set_link(is_up);
                    port.attach(queues.clone(), poller)
                });
                for part in attached.await? {
                    if let Err(error) = part {
                        tracing::error!(port, interface, "the port is out of service: {error}");
                        return Err(Over);
                    }
                }
                tracing::info!(port, interface, "attached again");
                self.handle.mtus.note(port, link.mtu);
                (self.place, self.is_up, self.failures) = (Place::Here(link.index), is_up, 0);
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Whoever has made it has it open for a moment.
                if self.failures == 2 {
                    tracing::error!(port, interface, "cannot attach to the interface: {error:#}");
                }
            }
        }
        Ok(())
    }

    /// Runs `command` on all parts of this port, each between two breaths of its worker.
    async fn on_port<R: Send + 'static>(
        &self,
        command: impl Fn(&mut TunPort, &Poller) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Over> {
        let Handle { app, workers, .. } = &self.handle;
        let app = *app;
        let parts = workers.on_each(move |worker| worker.with(app, command.clone())).await;
        parts.ok().and_then(|parts| parts.into_iter().collect()).ok_or(Over)
    }
}
