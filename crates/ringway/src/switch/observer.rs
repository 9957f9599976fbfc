//! Looks at a running switch.

use std::collections::HashMap;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::{AppId, Counters, Load, Numbers, Poller, Worker};
use ports::vhost_user::{GuestLook, VhostUserPort};

use super::Mtus;
use super::register::{Listed, Register, Terminals};
use crate::config::feature_names;
use crate::report::{self, App, Guest, Link, LinkState, Number, Port, Report, Ring, State};
use crate::workers::Workers;

/// A worker answers within this time, unless it hangs: it does so between two breaths.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// Looks at a running switch. While it looks, it holds the workers.
#[derive(Clone)]
pub struct Observer {
    pub(super) workers: Arc<Workers>,
    pub(super) register: Register,
    pub(super) mtus: Mtus,
    pub(super) epoch: Instant,
}

/// What one worker says.
struct Part {
    load: Load,
    /// Frames that came in from outside, also by apps that are gone.
    received: u64,
    apps: Vec<AppPart>,
    links: Vec<engine::Link>,
}

/// What one worker says of an app.
struct AppPart {
    counters: Counters,
    has_failed: bool,
    numbers: Numbers,
    /// Of a port that has one.
    guest: Option<GuestLook>,
}

impl Observer {
    /// What each app counted so far, how busy the workers were, and what the ports know.
    pub async fn report(&self) -> anyhow::Result<Report> {
        let listed: Arc<[Listed]> = self.register.list().into();
        let asked = listed.clone();
        let parts = self.workers.on_each_within(LIMIT, move |worker: &mut Worker| {
            let look = |port: &mut VhostUserPort, _: &Poller| port.look();
            let app = |app: &Listed| {
                let guest = worker.with(app.id, look).flatten();
                let numbers = worker.numbers(app.id);
                let graph = worker.graph();
                let (counters, has_failed) = (graph.counters(app.id), graph.has_failed(app.id));
                AppPart { counters, has_failed, numbers, guest }
            };
            let apps = asked.iter().map(app).collect();
            let graph = worker.graph();
            let (received, links) = (graph.received(), graph.links().collect());
            Part { apps, received, links, load: worker.load() }
        });
        let parts = parts.await?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: process::id(),
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            uptime_ns: nanoseconds(self.epoch.elapsed()),
            workers: parts.iter().map(worker).collect(),
            apps: apps(&listed, &parts),
            ports: self.ports(&listed, &parts),
            links: links(&listed, &parts),
        })
    }

    fn ports(&self, listed: &[Listed], parts: &[Part]) -> Vec<Port> {
        let ports = listed.iter().enumerate().filter(|(_, app)| app.is_port);
        let port = |(index, app): (usize, &Listed)| {
            let name = &app.name;
            let looks = parts.iter().filter_map(|part| part.apps.get(index)?.guest.as_ref());
            let guest = guest(&looks.collect::<Vec<_>>());
            let link = match app.kind {
                "vhost-user" => Some(LinkState::new(guest.as_ref().is_some_and(is_up))),
                _ => self.mtus.link(name).map(LinkState::new),
            };
            Port { name: name.clone(), link, mtu: self.mtus.mtu(name), guest }
        };
        ports.map(port).collect()
    }
}

fn apps(listed: &[Listed], parts: &[Part]) -> Vec<App> {
    let app = |(index, app): (usize, &Listed)| {
        let mut sum = Counters::default();
        let (mut has_failed, mut numbers) = (false, Numbers::default());
        for part in parts.iter().filter_map(|part| part.apps.get(index)) {
            sum += &part.counters;
            has_failed |= part.has_failed;
            numbers.add(part.numbers.clone());
        }
        App {
            name: app.name.clone(),
            kind: app.kind.to_owned(),
            state: if has_failed { State::Failed } else { State::Running },
            received: sum.received.into(),
            sent: sum.sent.into(),
            drops: sum.drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            own: numbers.iter().map(number).collect(),
        }
    };
    listed.iter().enumerate().map(app).collect()
}

/// The links in the order of their first ends, with what went by each on all workers.
fn links(listed: &[Listed], parts: &[Part]) -> Vec<Link> {
    let apps: HashMap<AppId, &Listed> = listed.iter().map(|app| (app.id, app)).collect();
    // An end of a link: `bridge.vm1`.
    let terminal = |(id, number): (AppId, usize), of: fn(&Terminals) -> &[String]| {
        let app = apps.get(&id);
        let name = app.map_or("", |app| &app.name);
        match app.and_then(|app| of(&app.terminals).get(number)) {
            Some(terminal) => format!("{name}.{terminal}"),
            None => format!("{name}.{number}"),
        }
    };
    let mut places = HashMap::new();
    let mut links: Vec<Link> = Vec::new();
    for engine::Link { from, to, traffic, is_up } in parts.iter().flat_map(|part| &part.links) {
        let place = *places.entry((*from, *to)).or_insert_with(|| {
            links.push(Link {
                from: terminal(*from, |app| &app.outputs),
                to: terminal(*to, |app| &app.inputs),
                state: LinkState::Up,
                traffic: report::Traffic::default(),
            });
            links.len() - 1
        });
        let link = &mut links[place];
        link.traffic.frames += traffic.frames;
        link.traffic.bytes += traffic.bytes;
        if !is_up {
            link.state = LinkState::Down;
        }
    }
    links
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

fn worker(Part { load, received, .. }: &Part) -> report::Worker {
    report::Worker {
        cpu_ns: nanoseconds(load.cpu),
        breaths: load.breaths,
        busy_breaths: load.busy_breaths,
        sleeps: load.sleeps,
        // What waits for a receiver is had anew in each breath, and counted once.
        frames: *received,
        breath_times: load.times.buckets().collect(),
    }
}

fn number(engine::Number { name, unit, value, .. }: &engine::Number) -> Number {
    Number { value: *value, unit: (*unit).to_owned(), name: name.clone() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
