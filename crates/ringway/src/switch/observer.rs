//! Looks at a running switch.

use std::collections::HashMap;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use engine::{AppId, Counters, Load, Numbers, Poller, Worker};
use ports::vhost_user::{GuestLook, VhostUserPort};
use tokio::time::timeout;

use super::Mtus;
use crate::config::feature_names;
use crate::report::{self, App, Guest, Link, LinkState, Number, Port, Report, Ring, State};
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
    pub(super) names: Arc<[(AppId, String)]>,
    /// What the inputs of each app are called, and its outputs.
    pub(super) terminals: Arc<HashMap<AppId, Terminals>>,
    /// The apps that are ports, in the order of the configuration, and their types.
    pub(super) ports: Arc<[(AppId, &'static str)]>,
    pub(super) mtus: Mtus,
    pub(super) epoch: Instant,
    /// As many references as there are looks that are not answered, and one for each of this.
    pub(super) pending: Arc<()>,
}

/// What the inputs of an app are called, and its outputs, by their numbers.
pub(super) struct Terminals {
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

/// What one worker says.
struct Part {
    load: Load,
    /// What each app counted, and whether it runs.
    apps: Vec<(Counters, bool)>,
    numbers: Vec<Numbers>,
    links: Vec<engine::Link>,
    guests: Vec<Option<GuestLook>>,
}

impl Observer {
    /// What each app counted so far, how busy the workers were, and what the ports know.
    pub async fn report(&self) -> anyhow::Result<Report> {
        let pending = self.pending.clone();
        if Arc::strong_count(&pending) > PENDING {
            bail!("a worker hangs: it has answered none of the last looks");
        }
        let (names, ports) = (self.names.clone(), self.ports.clone());
        let parts = self.workers.on_each(move |worker: &mut Worker| {
            // Until this is done, or will never be.
            let _pending = &pending;
            let graph = worker.graph();
            let app = |(id, _): &(AppId, String)| (graph.counters(*id), graph.is_running(*id));
            let apps = names.iter().map(app).collect();
            let links = graph.links().collect();
            let numbers = names.iter().map(|(id, _)| worker.numbers(*id)).collect();
            let load = worker.load();
            let look = |port: &mut VhostUserPort, _: &Poller| port.look();
            let guests = ports.iter().map(|(id, _)| worker.with(*id, look).flatten());
            Part { load, apps, numbers, links, guests: guests.collect() }
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
            apps: self.apps(&parts),
            ports: self.ports(&parts),
            links: self.links(&parts),
        })
    }

    fn apps(&self, parts: &[Part]) -> Vec<App> {
        let types: HashMap<_, _> = self.ports.iter().copied().collect();
        let app = |(index, (id, name)): (usize, &(AppId, String))| {
            let mut sum = Counters::default();
            let (mut runs, mut numbers) = (true, Numbers::default());
            for (counters, is_running) in parts.iter().filter_map(|part| part.apps.get(index)) {
                sum += counters;
                runs &= is_running;
            }
            for part in parts.iter().filter_map(|part| part.numbers.get(index)) {
                numbers.add(part.clone());
            }
            // What belongs to a port has the port's name, and behind that its own.
            let own = name.rsplit('.').next().unwrap_or(name);
            App {
                name: name.clone(),
                kind: (*types.get(id).unwrap_or(&own)).to_owned(),
                state: if runs { State::Running } else { State::Failed },
                received: sum.received.into(),
                sent: sum.sent.into(),
                drops: sum.drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
                own: numbers.iter().map(number).collect(),
            }
        };
        self.names.iter().enumerate().map(app).collect()
    }

    /// The links in the order of their first ends, with what went by each on all workers.
    fn links(&self, parts: &[Part]) -> Vec<Link> {
        let mut places = HashMap::new();
        let mut links: Vec<Link> = Vec::new();
        for engine::Link { from, to, traffic, is_up } in parts.iter().flat_map(|part| &part.links) {
            let place = *places.entry((*from, *to)).or_insert_with(|| {
                links.push(Link {
                    from: self.terminal(*from, |app| &app.outputs),
                    to: self.terminal(*to, |app| &app.inputs),
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

    /// An end of a link: `bridge.vm1`.
    fn terminal(&self, (id, number): (AppId, usize), of: fn(&Terminals) -> &[String]) -> String {
        let app = self.names.iter().find(|(app, _)| *app == id).map_or("", |(_, name)| name);
        let names = self.terminals.get(&id).map(of).unwrap_or_default();
        match names.get(number) {
            Some(name) => format!("{app}.{name}"),
            None => format!("{app}.{number}"),
        }
    }

    fn ports(&self, parts: &[Part]) -> Vec<Port> {
        let port = |(index, (id, kind)): (usize, &(AppId, &str))| {
            let name = self.names.iter().find(|(app, _)| app == id);
            let name = name.map_or("", |(_, name)| name);
            let looks = parts.iter().filter_map(|part| part.guests.get(index)?.as_ref());
            let guest = guest(&looks.collect::<Vec<_>>());
            let link = match *kind {
                "vhost-user" => Some(LinkState::new(guest.as_ref().is_some_and(is_up))),
                _ => self.mtus.link(name).map(LinkState::new),
            };
            Port { name: name.to_owned(), link, mtu: self.mtus.mtu(name), guest }
        };
        self.ports.iter().enumerate().map(port).collect()
    }
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
        frames: apps.iter().map(|(counters, _)| counters.received.frames).sum(),
        breath_times: load.times.buckets().collect(),
    }
}

fn number(engine::Number { name, unit, value, .. }: &engine::Number) -> Number {
    Number { value: *value, unit: (*unit).to_owned(), name: name.clone() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
