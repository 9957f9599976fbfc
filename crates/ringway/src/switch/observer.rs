//! Looks at a running switch.

use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use engine::{Counters, Load, Poller, Worker};
use ports::vhost_user::{GuestLook, VhostUserPort};
use tokio::time::timeout;

use super::Mtus;
use super::register::{Listed, Register};
use crate::config::feature_names;
use crate::report::{self, App, Guest, Link, Port, Report, Ring, State};
use crate::workers::Workers;

/// A worker answers within this time, unless it hangs: it does so between two breaths.
const LIMIT: Duration = Duration::from_secs(2);
/// Looks that are not answered, of all workers together: beyond that no more are asked for, because one that hangs takes
/// 1024 commands, and who sends the next waits for it. Eight looks at 64 workers at once are some 520.
const PENDING: usize = 768;

/// Looks at a running switch. While it looks, it holds the workers.
#[derive(Clone)]
pub struct Observer {
    pub(super) workers: Arc<Workers>,
    pub(super) register: Register,
    pub(super) mtus: Mtus,
    pub(super) epoch: Instant,
    /// As many references as there are looks that are not answered, and one for each of this.
    pub(super) pending: Arc<()>,
}

/// What one worker says.
struct Part {
    load: Load,
    /// What each app counted, and whether it runs; and its guest, if it is a port that has one.
    apps: Vec<(Counters, bool, Option<GuestLook>)>,
}

impl Observer {
    /// What each app counted so far, how busy the workers were, and what the ports know.
    pub async fn report(&self) -> anyhow::Result<Report> {
        let pending = self.pending.clone();
        if Arc::strong_count(&pending) > PENDING {
            bail!("a worker hangs: it has answered none of the last looks");
        }
        let listed: Arc<[Listed]> = self.register.list().into();
        let asked = listed.clone();
        let parts = self.workers.on_each(move |worker: &mut Worker| {
            // Until this is done, or will never be.
            let _pending = &pending;
            let look = |port: &mut VhostUserPort, _: &Poller| port.look();
            let app = |app: &Listed| {
                let guest = worker.with(app.id, look).flatten();
                let graph = worker.graph();
                (graph.counters(app.id), graph.is_running(app.id), guest)
            };
            Part { apps: asked.iter().map(app).collect(), load: worker.load() }
        });
        let parts = timeout(LIMIT, parts).await;
        let parts = parts.ok().context("a worker hangs: it does not answer")??;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: process::id(),
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            uptime_ns: nanoseconds(self.epoch.elapsed()),
            workers: parts.iter().map(worker).collect(),
            apps: apps(&listed, &parts),
            ports: self.ports(&listed, &parts),
        })
    }

    fn ports(&self, listed: &[Listed], parts: &[Part]) -> Vec<Port> {
        let ports = listed.iter().enumerate().filter(|(_, app)| app.is_port);
        let port = |(index, app): (usize, &Listed)| {
            let name = &app.name;
            let looks = parts.iter().filter_map(|part| part.apps.get(index)?.2.as_ref());
            let guest = guest(&looks.collect::<Vec<_>>());
            let link = match app.kind {
                "vhost-user" => Some(Link::new(guest.as_ref().is_some_and(is_up))),
                _ => self.mtus.link(name).map(Link::new),
            };
            Port { name: name.clone(), link, mtu: self.mtus.mtu(name), guest }
        };
        ports.map(port).collect()
    }
}

fn apps(listed: &[Listed], parts: &[Part]) -> Vec<App> {
    let app = |(index, app): (usize, &Listed)| {
        let mut sum = Counters::default();
        let mut runs = true;
        for (counters, is_running, _) in parts.iter().filter_map(|part| part.apps.get(index)) {
            sum += counters;
            runs &= is_running;
        }
        App {
            name: app.name.clone(),
            kind: app.kind.to_owned(),
            state: if runs { State::Running } else { State::Failed },
            received: sum.received.into(),
            sent: sum.sent.into(),
            drops: sum.drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
        }
    };
    listed.iter().enumerate().map(app).collect()
}

/// What the parts of a port know of its guest, each of its own rings.
fn guest(looks: &[&GuestLook]) -> Option<Guest> {
    let first = looks.first()?;
    let rings = looks.iter().flat_map(|look| &look.rings);
    let mut rings: Vec<Ring> = rings
        .map(|ring| Ring {
            number: ring.number,
            size: ring.size,
            enabled: ring.enabled,
            waiting: ring.waiting,
            outstanding: ring.outstanding,
        })
        .collect();
    rings.sort_by_key(|ring| ring.number);
    Some(Guest {
        features: feature_names(first.features),
        memory_bytes: first.memory_bytes,
        memory_regions: first.memory_regions,
        rings,
    })
}

/// Whether a guest can receive.
fn is_up(guest: &Guest) -> bool {
    guest.rings.iter().any(|ring| ring.enabled && ring.number.is_multiple_of(2))
}

fn worker(Part { load, apps, .. }: &Part) -> report::Worker {
    report::Worker {
        cpu_ns: nanoseconds(load.cpu),
        breaths: load.breaths,
        busy_breaths: load.busy_breaths,
        sleeps: load.sleeps,
        // What waits for a receiver is had anew in each breath, and counted once.
        frames: apps.iter().map(|(counters, ..)| counters.received.frames).sum(),
        breath_times: load.times.buckets().collect(),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
