//! What a switch is made of while it runs, and how it becomes another.
//!
//! A [`Network`] says which apps there are to be, and what is linked to what. Whatever the fabric is, nothing at all in the
//! beginning, it becomes that by the smallest change:
//!
//! 1. *Prepare*: what is new is opened and made, and other settings are tried on an app that nobody uses. All that
//!    can fail does so here, when nothing has changed; what was opened goes again then.
//! 2. *Change*: each worker gets all of the change in one command, and makes it between two of its
//!    breaths: apps that go and come, links, and settings ([`engine::Change`]). An app that stays is not touched, and a link
//!    that stays goes on. Of many ports that go, the command stops most before that, a few between two breaths.
//! 3. *Clean up*: what is left of what went is dropped here, by control. Bridges forget the addresses that were learned where a port
//!    went, and only after that its number may be another's.
//!
//! A port that needs what another one has to let go of before, its socket or its interface, has to wait for that. First all
//! others are opened, and looked whether what those ask for is there; then those go that are in their way, and the rest is done. If that
//! fails, they are put back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use apps::bridge::sides::{Side, Sides};
use apps::bridge::table::{Ports, Table};
use engine::{App, AppId, Change, Ids, Worker};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::dispatcher;

use super::Mtus;
use super::difference::{Difference, Fate};
use super::make::{self, Made, Remake};
use super::numbers::Numbers;
use super::pcap::{END_LIMIT, FileCapture};
use super::port::{self, Control, Handle, Need, Opened, Opener, needs};
use super::register::{Again, Entry, Listed, Register, Terminals};
use super::settings::{self, Adjust, Refused};
use crate::config::PortKind;
use crate::config::network::{End, Network, NetworkApp, Spec};
use crate::session::Trouble;
use crate::workers::{Unanswered, Workers};

/// Ports that a worker stops between two breaths: some microseconds each, if they have guests.
const STOPPED_AT_ONCE: usize = 32;

/// Where each output of an app leads.
type Outputs = Vec<Option<(AppId, usize)>>;

/// The apps and links of a switch that runs.
pub(super) struct Fabric {
    workers: Arc<Workers>,
    register: Register,
    mtus: Mtus,
    opener: Opener,
    ids: Ids,
    network: Network,
    /// By their names.
    apps: HashMap<String, Running>,
    /// Those that a change takes out, until they are cleared away: whoever gives the change up while it waits for a worker still
    /// finds them here.
    gone: Vec<(String, Running)>,
}

/// An app that runs.
struct Running {
    id: AppId,
    outputs: Outputs,
    again: Option<Again>,
    /// Of a bridge.
    bridge: Option<RunningBridge>,
    /// Of a port.
    port: Option<RunningPort>,
}

#[derive(Clone)]
struct RunningBridge {
    table: Arc<Table>,
    numbers: Numbers,
}

impl Running {
    /// What its inputs are called, and its outputs, by the numbers that the workers know.
    fn terminals(&self, app: &NetworkApp) -> Terminals {
        let Some(bridge) = &self.bridge else {
            return Terminals { inputs: app.inputs.clone(), outputs: app.outputs.clone() };
        };
        let sides: Vec<String> =
            bridge.numbers.sides().map(|side| side.unwrap_or_default().to_owned()).collect();
        Terminals { inputs: sides.clone(), outputs: sides }
    }
}

struct RunningPort {
    troubles: Option<mpsc::UnboundedSender<Trouble>>,
    control: Option<JoinHandle<()>>,
    capture: Option<FileCapture>,
}

/// An app that is made, and that no worker has yet.
struct New {
    parts: Vec<Box<dyn App>>,
    remake: Option<Remake>,
    bridge: Option<Arc<Table>>,
    control: Option<Control>,
    capture: Option<FileCapture>,
    undo: Option<port::Running>,
}

/// Apps that are made, by their names.
type NewApps = HashMap<String, New>;

/// All that is needed for a change.
struct Prepared {
    ids: Ids,
    new: HashMap<String, (AppId, New)>,
}

impl Fabric {
    /// Nothing runs on these workers yet.
    pub(super) fn new(
        workers: Arc<Workers>,
        register: Register,
        mtus: Mtus,
        epoch: Instant,
    ) -> Self {
        let opener = Opener::new(workers.len(), epoch);
        Self {
            workers,
            register,
            mtus,
            opener,
            ids: Ids::default(),
            network: Network::default(),
            apps: HashMap::new(),
            gone: Vec::new(),
        }
    }

    /// Waits until each worker has answered, but not for longer than `limit`.
    pub(super) async fn ask_workers(&mut self, limit: Duration) -> Result<(), Unanswered> {
        self.workers.on_each_within(limit, |_| ()).await.map(drop)
    }

    /// What it is to be at present.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Becomes this network. With an error it is what it was, but that ports may have let go of their guests for a moment which
    /// were in the way of others.
    pub(super) async fn become_network(&mut self, new: &Network) -> anyhow::Result<()> {
        const NOTHING: &str = "nothing was changed";
        // At the start there is nothing that could be in the way, and nothing to be left as it is.
        if self.network.apps.is_empty() {
            return self.change(new, NewApps::new()).await;
        }
        let blocking = self.blocking(new);
        if blocking.is_empty() {
            return self.change(new, NewApps::new()).await.context(NOTHING);
        }
        let old = self.network.clone();
        let opened = self.open_others(new, &blocking).await.context(NOTHING)?;
        if let Err(error) = self.change(&without(&old, &blocking), NewApps::new()).await {
            undo(opened).await;
            return Err(error.context(NOTHING));
        }
        let Err(error) = self.change(new, opened).await else { return Ok(()) };
        self.opener.puts_back = true;
        let put_back = self.change(&old, NewApps::new()).await;
        self.opener.puts_back = false;
        match put_back {
            Ok(()) => Err(error.context(NOTHING)),
            Err(lost) => {
                let names = blocking.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                Err(error.context(format!("{names}: taken out, and cannot be put back ({lost:#})")))
            }
        }
    }

    /// The ports that have what others need, and let go of it.
    fn blocking(&self, new: &Network) -> HashSet<String> {
        let difference = Difference::new(&self.network, new);
        let coming = ports(new).filter(|(name, _)| difference.comes(name));
        let needed: HashSet<Need<'_>> = coming.flat_map(|(_, kind)| needs(kind)).collect();
        let leaving = ports(&self.network).filter(|(name, _)| difference.goes(name));
        let blocking =
            leaving.filter(|(_, kind)| needs(kind).iter().any(|has| needed.contains(has)));
        blocking.map(|(name, _)| name.to_owned()).collect()
    }

    /// Opens and makes all that can be while these ports are there; of the others it looks what is wanted.
    async fn open_others(
        &mut self,
        new: &Network,
        blocking: &HashSet<String>,
    ) -> anyhow::Result<NewApps> {
        let held = ports(&self.network).filter(|(name, _)| blocking.contains(*name));
        let held: Vec<PortKind> = held.map(|(_, kind)| kind.clone()).collect();
        let held: HashSet<Need<'_>> = held.iter().flat_map(needs).collect();
        let waits = |kind: &PortKind| needs(kind).iter().any(|need| held.contains(need));
        let difference = Difference::new(&self.network, new);
        for (name, kind) in ports(new).filter(|(name, kind)| difference.comes(name) && waits(kind))
        {
            self.opener.check(name, kind).await?;
        }
        let mut opened = NewApps::new();
        let is_free = |app: &NetworkApp| !matches!(&app.spec, Spec::Port(kind) if waits(kind));
        match self.open(new, &difference, is_free, &mut opened).await {
            Ok(()) => Ok(opened),
            Err(error) => {
                undo(opened).await;
                Err(error)
            }
        }
    }

    /// Changes everything at once. Some of it may be opened already.
    async fn change(&mut self, new: &Network, opened: NewApps) -> anyhow::Result<()> {
        let difference = Difference::new(&self.network, new);
        let prepared = self.prepare(new, &difference, opened).await?;
        self.make_change(new, &difference, prepared).await
    }

    /// Does all that can fail.
    async fn prepare(
        &mut self,
        network: &Network,
        difference: &Difference,
        mut opened: NewApps,
    ) -> anyhow::Result<Prepared> {
        if let Err(error) = self.open(network, difference, |_| true, &mut opened).await {
            undo(opened).await;
            return Err(error);
        }
        let mut ids = self.ids.clone();
        for name in self.apps.keys().filter(|name| difference.goes(name)) {
            ids.give_back(self.apps[name].id);
        }
        let new = network.apps.iter().filter_map(|app| {
            let new = opened.remove(&app.name)?;
            Some((app.name.clone(), (ids.take(), new)))
        });
        Ok(Prepared { new: new.collect(), ids })
    }

    /// Opens and makes what comes, of those that are `wanted`, beside what is opened already; and tries other settings.
    async fn open(
        &mut self,
        network: &Network,
        difference: &Difference,
        wanted: impl Fn(&NetworkApp) -> bool,
        opened: &mut NewApps,
    ) -> anyhow::Result<()> {
        for app in network.apps.iter().filter(|app| wanted(app)) {
            match difference.fate(&app.name) {
                Some(Fate::Comes | Fate::IsMadeAnew) if !opened.contains_key(&app.name) => {
                    let made = self.make(app).await?;
                    let made = opened.entry(app.name.clone()).or_insert(made);
                    let what = || format!("{}: cannot have it wake its worker", app.name);
                    self.workers.register(&mut made.parts).with_context(what)?;
                }
                // Whether its settings can be had shows in an app that nobody uses.
                Some(Fate::Changes) => drop(make::make(app, 1)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes an app, or opens a port.
    async fn make(&mut self, app: &NetworkApp) -> anyhow::Result<New> {
        if let Some(Made { parts, remake, table }) = make::make(app, self.workers.len())? {
            let (remake, bridge) = (Some(remake), table);
            return Ok(New { parts, remake, bridge, control: None, capture: None, undo: None });
        }
        let Spec::Port(kind) = &app.spec else { bail!("app `{}` is of no known type", app.name) };
        let Opened { parts, control, capture, undo } = self.opener.open(&app.name, kind).await?;
        Ok(New { parts, remake: None, bridge: None, control, capture, undo })
    }

    /// Makes a change for which everything is there.
    async fn make_change(
        &mut self,
        network: &Network,
        difference: &Difference,
        prepared: Prepared,
    ) -> anyhow::Result<()> {
        let Prepared { ids, mut new } = prepared;
        let gone: Vec<(String, Running)> =
            self.apps.extract_if(|name, _| difference.goes(name)).collect();
        let removed: Vec<(AppId, bool)> = {
            let is_end = |app: &&NetworkApp| matches!(app.spec, Spec::Port(_) | Spec::Source(_));
            let ends = self.network.apps.iter().filter(is_end).map(|app| &app.name);
            let ends: HashSet<&String> = ends.collect();
            gone.iter().map(|(name, running)| (running.id, ends.contains(name))).collect()
        };
        self.gone.extend(gone);

        let mut controls = Vec::new();
        let mut added = Vec::new();
        for app in &network.apps {
            let Some((id, made)) = new.remove(&app.name) else { continue };
            let New { parts, remake, bridge, control, capture, undo: _ } = made;
            added.push((id, app.name.clone(), parts));
            let adjust = settings::adjust(id, app);
            let port = matches!(app.spec, Spec::Port(_)).then(|| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let troubles = control.is_some().then_some(sender);
                controls.extend(control.map(|control| (app.name.clone(), control, receiver)));
                RunningPort { troubles, control: None, capture }
            });
            let running = Running {
                id,
                outputs: Vec::new(),
                again: remake.map(|remake| Again { remake, adjust }),
                bridge: bridge.map(|table| RunningBridge { table, numbers: Numbers::default() }),
                port,
            };
            self.apps.insert(app.name.clone(), running);
        }
        let (mut adjustments, mut later): (Vec<Adjust>, Vec<Adjust>) = Default::default();
        let changed = |app: &&NetworkApp| difference.fate(&app.name) == Some(Fate::Changes);
        for app in network.apps.iter().filter(changed) {
            let Some(running) = self.apps.get_mut(&app.name) else { continue };
            if let Some(again) = &mut running.again {
                again.adjust = settings::adjust(running.id, app);
                // What parts share and other settings take, a table for a filter, is allocated by this one here.
                let _ = settings::set(&mut *(again.remake)(0), app);
                adjustments.push(again.adjust.clone());
            }
        }
        let moved = self.number_sides(network, &mut adjustments, &mut later);
        let led = self.lead(network);
        // Before the workers have something to say of them.
        self.register.set(self.entries(network));

        let mut changes: Vec<Change> = (0..self.workers.len()).map(|_| Change::new(&ids)).collect();
        for change in &mut changes {
            for (id, is_end) in &removed {
                if *is_end { change.remove_end(*id) } else { change.remove(*id) }
            }
            led.iter().for_each(|(id, outputs)| change.lead(*id, outputs));
        }
        for (id, name, parts) in added {
            for (change, part) in changes.iter_mut().zip(parts) {
                change.add(id, &name, part);
            }
        }
        // What a worker has to do for the guests of many ports would keep the others waiting. The change itself stops the last of them.
        let ends = removed.iter().filter(|(_, is_end)| *is_end).map(|(id, _)| *id);
        let ends: Arc<[AppId]> = ends.collect();
        let commands = changes.into_iter().map(|mut change| {
            let ends = ends.clone();
            let [before, after] = [&adjustments, &later]
                .map(|some| some.iter().map(|adjust| adjust()).collect::<Vec<_>>());
            let mut remains = Vec::with_capacity(before.len() + after.len());
            move |worker: &mut Worker| {
                let (ahead, _) = ends.split_at(ends.len().saturating_sub(STOPPED_AT_ONCE));
                ahead.chunks(STOPPED_AT_ONCE).for_each(|some| worker.stop_ahead(some));
                // A bridge that knows which of its sides go does not look for what it has learned there: control does.
                remains.extend(before.into_iter().map(|adjust| adjust(worker)));
                worker.change(&mut change);
                remains.extend(after.into_iter().map(|adjust| adjust(worker)));
                (change, remains)
            }
        });
        // All of them have it before any is waited for: also if one hangs, and this is given up, the others let go of what goes.
        let remains = self.workers.on_all(commands.collect()).await;
        // Also when a worker has died.
        self.let_go().await;
        let remains = match remains {
            Ok(remains) => remains,
            Err(error) => {
                end(self.take_gone()).await;
                return Err(error.into());
            }
        };
        for (worker, (_change, adjusted)) in remains.into_iter().enumerate() {
            adjusted.into_iter().filter_map(|adjusted| adjusted.refused).for_each(|refused| {
                let Refused { app, fault } = refused;
                tracing::error!(
                    app = self.register.name(app),
                    worker,
                    "a bug of ours: it goes by its old settings on this worker, and refuses the new ones: {fault}"
                );
            });
        }

        moved.iter().for_each(|(table, numbers)| table.forget(numbers));
        (self.ids, self.network) = (ids, network.clone());
        for running in self.apps.values_mut() {
            if let Some(capture) = running.port.as_mut().and_then(|port| port.capture.as_mut()) {
                capture.begin();
            }
        }
        for (name, control, troubles) in controls {
            self.start(&name, control, troubles);
        }
        end(self.take_gone()).await;
        Ok(())
    }

    /// Gives the sides of bridges their numbers. Returns those that are no more, or in another VLAN: what was learned there is
    /// to be forgotten once all workers know.
    fn number_sides(
        &mut self,
        network: &Network,
        adjustments: &mut Vec<Adjust>,
        of_new: &mut Vec<Adjust>,
    ) -> Vec<(Arc<Table>, Ports)> {
        let mut moved = Vec::new();
        let empty = Default::default();
        for app in &network.apps {
            let Spec::Bridge(vlans) = &app.spec else { continue };
            let before = self.network.apps.iter().find_map(|other| match &other.spec {
                Spec::Bridge(vlans) if other.name == app.name => Some(vlans),
                _ => None,
            });
            let adjustments = if before.is_some() { &mut *adjustments } else { &mut *of_new };
            let before = before.unwrap_or(&empty);
            let Some(running) = self.apps.get_mut(&app.name) else { continue };
            let Some(bridge) = &mut running.bridge else { continue };
            let names: Vec<String> = app.inputs.iter().chain(&app.outputs).cloned().collect();
            let next = bridge.numbers.next(&names);
            if next == bridge.numbers && before == vlans {
                continue;
            }
            let mut numbers = Ports::default();
            for (number, name) in (0..).zip(bridge.numbers.sides()) {
                let Some(name) = name else { continue };
                if next.of(name).is_none() || before.get(name) != vlans.get(name) {
                    numbers.insert(number);
                }
            }
            moved.push((bridge.table.clone(), numbers));
            let sides = next.sides().map(|name| match name {
                None => Side::Free,
                Some(name) => vlans.get(name).cloned().map_or(Side::Plain, Side::Vlan),
            });
            let adjust = settings::sides(running.id, Arc::new(Sides::new(sides)));
            bridge.numbers = next;
            adjustments.push(adjust.clone());
            if let Some(again) = &mut running.again {
                again.adjust = adjust;
            }
        }
        moved
    }

    /// Where outputs lead that do not lead where they did.
    fn lead(&mut self, network: &Network) -> Vec<(AppId, Outputs)> {
        let mut outputs: Vec<Outputs> = vec![Vec::new(); network.apps.len()];
        for link in &network.links {
            let from = self.number(network, link.from, |app| &app.outputs);
            let to = self.number(network, link.to, |app| &app.inputs);
            if let (Some((_, output)), Some(target)) = (from, to) {
                let outputs = &mut outputs[link.from.app];
                if outputs.len() <= output {
                    outputs.resize(output + 1, None);
                }
                outputs[output] = Some(target);
            }
        }
        let mut led = Vec::new();
        for (app, outputs) in network.apps.iter().zip(outputs) {
            let Some(running) = self.apps.get_mut(&app.name) else { continue };
            if running.outputs != outputs {
                running.outputs.clone_from(&outputs);
                led.push((running.id, outputs));
            }
        }
        led
    }

    /// An end of a link as the workers know it.
    fn number(
        &self,
        network: &Network,
        end: End,
        terminals: fn(&NetworkApp) -> &Vec<String>,
    ) -> Option<(AppId, usize)> {
        let app = network.apps.get(end.app)?;
        let running = self.apps.get(&app.name)?;
        let number = match &running.bridge {
            Some(bridge) => bridge.numbers.of(terminals(app).get(end.number)?)?.into(),
            None => end.number,
        };
        Some((running.id, number))
    }

    /// What everybody may know.
    fn entries(&self, network: &Network) -> Vec<Entry> {
        let entry = |app: &NetworkApp| {
            let running = self.apps.get(&app.name)?;
            Some(Entry {
                app: Listed {
                    id: running.id,
                    name: app.name.clone(),
                    kind: app.spec.type_name(),
                    is_port: matches!(app.spec, Spec::Port(_)),
                    terminals: Arc::new(running.terminals(app)),
                },
                again: running.again.clone(),
                troubles: running.port.as_ref().and_then(|port| port.troubles.clone()),
            })
        };
        network.apps.iter().filter_map(entry).collect()
    }

    /// Starts what goes on behind a port.
    fn start(&mut self, name: &str, control: Control, troubles: mpsc::UnboundedReceiver<Trouble>) {
        let Some(running) = self.apps.get_mut(name) else { return };
        let Some(port) = &mut running.port else { return };
        let handle = Handle {
            name: name.to_owned(),
            app: running.id,
            workers: self.workers.clone(),
            mtus: self.mtus.clone(),
            troubles,
        };
        port.control = Some(tokio::spawn(control(handle)));
    }

    /// Ends what goes on behind ports that no worker has any more: a guest finds its connection closed when nobody touches its
    /// rings any more, and not before.
    async fn let_go(&mut self) {
        let controls =
            self.gone.iter().filter_map(|(_, running)| running.port.as_ref()?.control.as_ref());
        controls.for_each(JoinHandle::abort);
        for (name, running) in &mut self.gone {
            let Some(port) = &mut running.port else { continue };
            if let Some(control) = &mut port.control {
                // An error says that it was aborted, or panicked, which was reported.
                let _ = control.await;
                port.control = None;
            }
            self.mtus.forget(name);
        }
    }

    /// Drops what is left of apps that have gone. Returns the captures, which are to be ended.
    fn take_gone(&mut self) -> Vec<FileCapture> {
        self.gone.drain(..).filter_map(|(_, running)| running.port?.capture).collect()
    }

    /// Ends all that goes on behind ports: disconnects guests, removes sockets. Returns the captures, which end when their
    /// workers have.
    pub(super) async fn stop(self) -> Vec<FileCapture> {
        let mut captures = Vec::new();
        let gone = self.gone.into_iter().map(|(_, running)| running);
        let mut ports: Vec<_> =
            self.apps.into_values().chain(gone).filter_map(|running| running.port).collect();
        ports.iter().filter_map(|port| port.control.as_ref()).for_each(JoinHandle::abort);
        for port in &mut ports {
            captures.extend(port.capture.take());
            if let Some(control) = port.control.take() {
                let _ = control.await;
            }
        }
        captures
    }
}

/// Closes what was opened, and sets back what was changed for that.
async fn undo(opened: NewApps) {
    let mut steps = Vec::new();
    for (_, New { undo, .. }) in opened {
        steps.extend(undo);
    }
    for step in steps {
        step.await;
    }
}

/// Waits for captures to be complete, which no worker has any more.
pub(super) async fn end(captures: Vec<FileCapture>) {
    if captures.is_empty() {
        return;
    }
    let limit = Instant::now() + END_LIMIT;
    // They wait for disks.
    let log = dispatcher::get_default(Clone::clone);
    let ended = spawn_blocking(move || {
        dispatcher::with_default(&log, || {
            captures.into_iter().for_each(|capture| capture.end(limit))
        });
    });
    let _ = ended.await;
}

fn ports(network: &Network) -> impl Iterator<Item = (&str, &PortKind)> {
    network.apps.iter().filter_map(|app| match &app.spec {
        Spec::Port(kind) => Some((app.name.as_str(), kind)),
        _ => None,
    })
}

/// A network without some of its apps, and what is linked to them.
fn without(network: &Network, names: &HashSet<String>) -> Network {
    let stays = |app: usize| !names.contains(&network.apps[app].name);
    let mut places = vec![0; network.apps.len()];
    let mut apps = Vec::new();
    for (number, app) in network.apps.iter().enumerate().filter(|(number, _)| stays(*number)) {
        places[number] = apps.len();
        apps.push(app.clone());
    }
    let mut links = network.links.clone();
    links.retain(|link| stays(link.from.app) && stays(link.to.app));
    for end in links.iter_mut().flat_map(|link| [&mut link.from, &mut link.to]) {
        end.app = places[end.app];
    }
    Network { apps, links }
}
