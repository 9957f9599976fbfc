//! The network of apps and links that a configuration stands for: the one thing that a switch is made of.
//!
//! Ports and their keys are a shorthand for apps that lie between each of them and the bridge, and for the links that join
//! all of these. It is written out here, where the apps and links that a file says by itself are put beside it. So
//! there is nothing that only the shorthand can say.
//!
//! What stays the same from one network to another are the names of apps, and those of their inputs and outputs. Numbers do
//! not.

mod ways;

use std::collections::{BTreeMap, HashMap, HashSet};

use apps::bridge::vlan::Membership;
use apps::{anti_spoof, filter, impair, mirror, police, source, storm};

use super::app::{self, AppType};
use super::{Config, PortConfig, PortKind, app_name};

/// The name of the bridge that ports are joined to of which nothing else is said, and the type of all bridges.
pub const BRIDGE: &str = "bridge";

/// Apps, and the links between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Network {
    /// The bridges; then each port, and behind it the apps that are called after it; then all others.
    pub apps: Vec<NetworkApp>,
    /// No two of them begin at one output.
    pub links: Vec<NetworkLink>,
}

/// An app of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkApp {
    /// No other has it.
    pub name: String,
    /// What it is.
    pub spec: Spec,
    /// What its inputs are called, by their numbers.
    pub inputs: Vec<String>,
    /// What its outputs are called, by their numbers.
    pub outputs: Vec<String>,
}

/// What an app is, with all its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// A bridge, and what its sides have to do with VLANs, by their names: all of them have something, or none has.
    Bridge(BTreeMap<String, Membership>),
    /// A port.
    Port(PortKind),
    /// Lets a port speak only for itself.
    AntiSpoof(anti_spoof::Settings),
    /// Limits what a port sends to groups.
    Storm(storm::Settings),
    /// Limits what a port sends, and gets.
    Police(police::Settings),
    /// Drops what an expression does not accept.
    Filter(filter::Settings),
    /// Sends copies of what passes to a third.
    Mirror(mirror::Settings),
    /// Sends what comes by all of its outputs, which are as many as are linked.
    Tee,
    /// Makes frames.
    Source(source::Settings),
    /// Counts frames.
    Sink,
    /// Does to frames what bad networks do.
    Impair(impair::Settings),
}

/// A link: what goes out there comes in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkLink {
    /// The output.
    pub from: End,
    /// The input.
    pub to: End,
}

/// An output or an input of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// Which of the apps.
    pub app: usize,
    /// Which of its outputs, or inputs.
    pub number: usize,
}

/// A link by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedLink {
    /// The output.
    pub from: Terminal,
    /// The input.
    pub to: Terminal,
}

/// An output or an input of an app, by names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Terminal {
    /// The app.
    pub app: String,
    /// What the app calls it.
    pub name: String,
}

/// What the inputs or the outputs of an app are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminals {
    /// These, by their numbers.
    These(&'static [&'static str]),
    /// Whatever links call them.
    Any,
}

/// What a link comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A port of this number, and its keys.
    Port(usize),
    /// The link of this number that is said as such.
    Link(usize),
}

/// One side of an app: where frames come out of it, and where they go in.
struct Side {
    output: Terminal,
    input: Terminal,
}

impl Terminal {
    /// A terminal of an app.
    pub fn new(app: &str, name: &str) -> Self {
        Self { app: app.to_owned(), name: name.to_owned() }
    }
}

impl Side {
    /// A side whose output and input are called alike.
    fn new(app: &str, name: &str) -> Self {
        Self { output: Terminal::new(app, name), input: Terminal::new(app, name) }
    }

    /// The links that join this side and another, both ways.
    fn join(&self, other: &Self) -> [NamedLink; 2] {
        [(self, other), (other, self)]
            .map(|(from, to)| NamedLink { from: from.output.clone(), to: to.input.clone() })
    }
}

impl Spec {
    /// Its type. A port has another.
    pub fn app_type(&self) -> Option<&'static AppType> {
        Some(match self {
            Self::Port(_) => return None,
            Self::Bridge(_) => &app::BRIDGE,
            Self::AntiSpoof(_) => &app::ANTI_SPOOF,
            Self::Storm(_) => &app::STORM,
            Self::Police(_) => &app::POLICE,
            Self::Filter(_) => &app::FILTER,
            Self::Mirror(_) => &app::MIRROR,
            Self::Tee => &app::TEE,
            Self::Source(_) => &app::SOURCE,
            Self::Sink => &app::SINK,
            Self::Impair(_) => &app::IMPAIR,
        })
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Port(kind) => kind.type_name(),
            _ => self.app_type().map_or("", |known| known.name),
        }
    }

    /// What its inputs are called.
    pub fn inputs(&self) -> Terminals {
        self.app_type().map_or(Terminals::These(&["rx"]), |known| known.inputs)
    }

    /// What its outputs are called.
    pub fn outputs(&self) -> Terminals {
        self.app_type().map_or(Terminals::These(&["tx"]), |known| known.outputs)
    }
}

impl PortConfig {
    /// The apps that lie between it and the network, the port's end first.
    pub fn apps(&self) -> Vec<(String, Spec)> {
        let named = |spec: Spec| (app_name(&self.name, spec.type_name()), spec);
        self.between.specs().into_iter().map(named).collect()
    }

    /// The links between it and what lies between it and the network; and the side of all that towards the network.
    fn links(&self) -> (Vec<NamedLink>, Side) {
        let (tx, rx) = (Terminal::new(&self.name, "tx"), Terminal::new(&self.name, "rx"));
        let (mut links, mut end) = (Vec::new(), Side { output: tx, input: rx });
        for (app, _) in self.apps() {
            links.extend(end.join(&Side::new(&app, "port")));
            end = Side::new(&app, "network");
        }
        (links, end)
    }
}

impl Config {
    /// The network of the apps and links of this configuration.
    pub fn network(&self) -> Network {
        self.network_of(&self.all_links())
    }

    /// The same, for who has [all links](Self::all_links).
    pub(super) fn network_of(&self, all_links: &[(NamedLink, Origin)]) -> Network {
        let apps = self.all_apps().into_iter().map(|(name, spec)| NetworkApp::new(name, spec));
        let mut apps: Vec<_> = apps.collect();
        let places = apps.iter().enumerate().map(|(place, app)| (app.name.clone(), place));
        let places: HashMap<_, _> = places.collect();
        let place = |terminal: &Terminal| {
            *places.get(&terminal.app).expect("links lead to apps that there are")
        };
        let mut links = Vec::new();
        for (NamedLink { from, to }, _) in all_links {
            let [from_app, to_app] = [place(from), place(to)];
            links.push(NetworkLink {
                from: End { app: from_app, number: apps[from_app].output(&from.name) },
                to: End { app: to_app, number: apps[to_app].input(&to.name) },
            });
        }
        Network { apps, links }
    }

    /// The names of the ports that are joined to the bridge: all are, unless links say something else of their side towards
    /// the network, or they are there for the copies of a mirror.
    pub fn joined(&self) -> HashSet<&str> {
        let ends = self.links.iter().flat_map(|link| [(true, &link.from), (false, &link.to)]);
        let linked: HashSet<_> = ends.collect();
        let mirrors = self.ports.iter().filter_map(|port| port.between.mirror.as_ref());
        let with_copies: HashSet<_> = mirrors.map(|mirror| mirror.to.as_str()).collect();
        let is_linked = |port: &PortConfig| {
            let (_, Side { output, input }) = port.links();
            linked.contains(&(true, &output)) || linked.contains(&(false, &input))
        };
        let is_joined = |port: &&PortConfig| {
            // Most have no links of their own to be looked for.
            (linked.is_empty() || !is_linked(port)) && !with_copies.contains(port.name.as_str())
        };
        self.ports.iter().filter(is_joined).map(|port| port.name.as_str()).collect()
    }

    /// All apps, in the order of the network's.
    fn all_apps(&self) -> Vec<(String, Spec)> {
        let joined = self.joined();
        let is_named =
            self.links.iter().any(|link| link.from.app == BRIDGE || link.to.app == BRIDGE);
        let has_own = self.apps.iter().any(|(name, _)| name == BRIDGE);
        let mut apps = Vec::new();
        if !has_own && (is_named || !joined.is_empty()) {
            apps.push((BRIDGE.to_owned(), Spec::Bridge(BTreeMap::new())));
        }
        let (bridges, others): (Vec<_>, Vec<_>) = (self.apps.iter().cloned())
            .partition(|(_, spec): &(String, Spec)| matches!(spec, Spec::Bridge(_)));
        apps.extend(bridges);
        if let Some((_, Spec::Bridge(memberships))) =
            apps.iter_mut().find(|(name, _)| name == BRIDGE)
        {
            let of_port = |port: &PortConfig| Some((port.name.clone(), port.vlan.clone()?));
            let joined = self.ports.iter().filter(|port| joined.contains(port.name.as_str()));
            memberships.extend(joined.filter_map(of_port));
        }
        let mut called_after: HashMap<Option<&str>, Vec<(String, Spec)>> = HashMap::new();
        for app in others {
            called_after.entry(self.called_after(&app.0)).or_default().push(app);
        }
        for port in &self.ports {
            apps.push((port.name.clone(), Spec::Port(port.kind.clone())));
            apps.extend(port.apps());
            apps.extend(called_after.remove(&Some(port.name.as_str())).into_iter().flatten());
        }
        apps.extend(called_after.remove(&None).into_iter().flatten());
        apps
    }

    /// The port that an app is called after.
    fn called_after(&self, app: &str) -> Option<&str> {
        let is_begin =
            |port: &&str| app.strip_prefix(*port).is_some_and(|rest| rest.starts_with('.'));
        let names = self.ports.iter().map(|port| port.name.as_str());
        names.filter(is_begin).max_by_key(|name| name.len())
    }

    /// All links, and what each comes from: those that are said as such last.
    pub(super) fn all_links(&self) -> Vec<(NamedLink, Origin)> {
        let (joined, mut links) = (self.joined(), Vec::new());
        for (number, port) in self.ports.iter().enumerate() {
            let (inner, end) = port.links();
            let mut add = |link| links.push((link, Origin::Port(number)));
            inner.into_iter().for_each(&mut add);
            if let Some(mirror) = &port.between.mirror
                && let Some(to) = self.ports.iter().find(|port| port.name == mirror.to)
            {
                let from = Terminal::new(&app_name(&port.name, app::MIRROR.name), MIRROR);
                add(NamedLink { from, to: to.links().1.input });
            }
            if joined.contains(port.name.as_str()) {
                end.join(&Side::new(BRIDGE, &port.name)).into_iter().for_each(&mut add);
            }
        }
        let own = self.links.iter().cloned().enumerate();
        links.extend(own.map(|(number, link)| (link, Origin::Link(number))));
        links
    }
}

/// What a mirror calls the output by which copies leave.
const MIRROR: &str = "mirror";

impl NetworkApp {
    fn new(name: String, spec: Spec) -> Self {
        let names = |terminals| match terminals {
            Terminals::These(names) => names.iter().map(|name| (*name).to_owned()).collect(),
            Terminals::Any => Vec::new(),
        };
        let (inputs, outputs) = (names(spec.inputs()), names(spec.outputs()));
        Self { name, spec, inputs, outputs }
    }

    /// The number of an input. One that there is not yet is added.
    fn input(&mut self, name: &str) -> usize {
        if let Some(number) = self.inputs.iter().position(|input| input == name) {
            return number;
        }
        // A bridge's sides are both.
        if let Spec::Bridge(_) = self.spec {
            self.outputs.push(name.to_owned());
        }
        self.inputs.push(name.to_owned());
        self.inputs.len() - 1
    }

    /// The number of an output. One that there is not yet is added.
    fn output(&mut self, name: &str) -> usize {
        if let Spec::Bridge(_) = self.spec {
            return self.input(name);
        }
        if let Some(number) = self.outputs.iter().position(|output| output == name) {
            return number;
        }
        self.outputs.push(name.to_owned());
        self.outputs.len() - 1
    }
}

impl Network {
    /// A link as it is written.
    pub fn text(&self, link: &NetworkLink) -> String {
        let [from, to] = [&self.apps[link.from.app], &self.apps[link.to.app]];
        let output = &from.outputs[link.from.number];
        let input = &to.inputs[link.to.number];
        format!("{}.{output} -> {}.{input}", from.name, to.name)
    }
}
