//! What can be wrong with a configuration as a whole, though each part of it is right: names, and how apps are linked.

use std::collections::{HashMap, HashSet};

use super::app::WrittenApp;
use super::fault::{Fault, Place, Problem};
use super::network::{BRIDGE, NamedLink, Network, Origin, Spec, Terminal, Terminals};
use super::value::{Misfit, nearest, one_of};
use super::written::Written;
use super::{Config, PortConfig, PortKind, between, vlan};

/// What was written, each with its place.
pub struct Sources<'a> {
    pub ports: &'a [Written],
    pub apps: &'a [WrittenApp],
    /// Where each link of the configuration is.
    pub links: &'a [Place],
}

impl Sources<'_> {
    fn port(&self, name: &str) -> Option<&Written> {
        self.ports.iter().find(|port| port.name == name)
    }

    fn app(&self, name: &str) -> Option<&WrittenApp> {
        self.apps.iter().find(|app| app.table.name == name)
    }

    /// Where a link comes from.
    fn place(&self, origin: Origin) -> Place {
        let place = match origin {
            Origin::Port(number) => self.ports.get(number).map(|port| &port.place),
            Origin::Link(number) => self.links.get(number),
        };
        place.cloned().unwrap_or(Place::CommandLine)
    }
}

/// Checks the names of ports and apps, and those that ports have of each other.
pub fn check_names(config: &Config, sources: &Sources<'_>, faults: &mut Vec<Fault>) {
    for port in sources.ports.iter().filter(|port| port.name == BRIDGE) {
        faults.push(port.fault(Problem::NameOfBridge(BRIDGE.to_owned())));
    }
    for WrittenApp { table, .. } in sources.apps {
        let spec = config.apps.iter().find(|(name, _)| *name == table.name).map(|(_, spec)| spec);
        if table.name == BRIDGE && spec.is_some_and(|spec| !matches!(spec, Spec::Bridge(_))) {
            faults.push(table.fault(Problem::NameOfBridge(BRIDGE.to_owned())));
        }
        if let Some(port) = sources.port(&table.name) {
            let (name, first) = (table.name.clone(), port.place.clone());
            faults.push(table.fault(Problem::NameOfPort { name, first }));
        }
    }
    let tables = || sources.ports.iter().chain(sources.apps.iter().map(|app| &app.table));
    for port in &config.ports {
        for (name, _) in port.apps() {
            if let Some(table) = tables().find(|table| table.name == name) {
                let port = port.name.clone();
                faults.push(table.fault(Problem::NameOfApp { name, port }));
            }
        }
    }
    // What links lead to has one meaning.
    for (app, spec) in &config.apps {
        let what = match (spec, spec.outputs()) {
            (_, Terminals::These(_)) => continue,
            (Spec::Bridge(_), _) => "a side",
            _ => "an output",
        };
        let Some(first) = sources.app(app).map(|app| app.table.place.clone()) else { continue };
        for table in tables().filter(|table| is_below(&table.name, app)) {
            let (name, app, first) = (table.name.clone(), app.clone(), first.clone());
            faults.push(table.fault(Problem::NameOfTerminal { name, what, app, first }));
        }
    }
    if sources.app(BRIDGE).is_none() {
        for table in tables().filter(|table| is_below(&table.name, BRIDGE)) {
            faults.push(table.fault(Problem::NameOfSide(table.name.clone())));
        }
    }
    let deaf = config.ports.iter().filter(|port| !port.kind.takes());
    let deaf = deaf.map(|port| (port.name.as_str(), port.kind.type_name())).collect();
    for port in &config.ports {
        check_mirror(port, &deaf, sources, faults);
    }
}

/// Whether a name is one of another and something behind a dot.
fn is_below(name: &str, other: &str) -> bool {
    name.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'))
}

/// Copies go to another port that takes them. `deaf` has the types of those that do not, by their names.
fn check_mirror(
    port: &PortConfig,
    deaf: &HashMap<&str, &'static str>,
    sources: &Sources<'_>,
    faults: &mut Vec<Fault>,
) {
    let Some(mirror) = &port.between.mirror else { return };
    let others = sources.ports.iter().map(|port| port.name.as_str());
    let others = others.filter(|other| *other != port.name && !deaf.contains_key(other));
    let others: Vec<&str> = others.collect();
    let entry = sources.port(&port.name).and_then(|port| port.entry(between::MIRROR_TO));
    if let Some(entry) = entry
        && !others.contains(&mirror.to.as_str())
    {
        let mut expected = "another port".to_owned();
        if let Some(kind) = deaf.get(mirror.to.as_str()).filter(|_| mirror.to != port.name) {
            expected += &format!(", as one of type {kind} takes no frames");
        }
        if !others.is_empty() {
            expected += &format!(": {}", one_of(&others));
        }
        let nearest = nearest(&mirror.to, others);
        faults.push(entry.wrong(&entry.value, Misfit { expected, nearest }));
    }
}

/// Checks how apps are linked. Everything else is right.
pub fn check_links(config: &Config, sources: &Sources<'_>, faults: &mut Vec<Fault>) {
    let before = faults.len();
    let (links, joined) = (config.all_links(), config.joined());
    let mut first = HashMap::new();
    for (NamedLink { from, .. }, origin) in &links {
        match first.get(from) {
            None => _ = first.insert(from, *origin),
            Some(first) => {
                let output = format!("{}.{}", from.app, from.name);
                let first = sources.place(*first);
                let problem = Problem::LinkedTwice { output, first };
                faults.push(Fault { place: sources.place(*origin), problem });
            }
        }
    }
    if faults.len() > before {
        return;
    }
    check_flow(config, sources, faults);
    check_use(&links, &joined, sources, faults);
    let network = config.network_of(&links);
    check_vlans(config, &network, &links, &joined, sources, faults);
    for cycle in network.cycles() {
        let [first, ..] = &cycle[..] else { continue };
        let mut names = vec![network.apps[network.links[*first].from.app].name.as_str()];
        names.extend(
            cycle.iter().map(|link| network.apps[network.links[*link].to.app].name.as_str()),
        );
        // Whoever wrote the last of these links has closed it.
        let last = cycle.iter().max().map(|link| sources.place(links[*link].1));
        let place = last.unwrap_or(Place::CommandLine);
        faults.push(Fault { place, problem: Problem::Cycle(names.join(" -> ")) });
    }
}

/// Nothing goes into ports that only send, and nothing comes out of those that only take. A link there does no harm beside one
/// back, as ports are joined to the bridge both ways; alone it is a mistake.
fn check_flow(config: &Config, sources: &Sources<'_>, faults: &mut Vec<Fault>) {
    let links = config.links.iter().map(|link| (link.from.app.as_str(), link.to.app.as_str()));
    let links: HashSet<(&str, &str)> = links.collect();
    let ports = config.ports.iter().map(|port| (port.name.as_str(), &port.kind));
    let ports: HashMap<&str, &PortKind> = ports.collect();
    for (number, NamedLink { from, to }) in config.links.iter().enumerate() {
        if links.contains(&(&to.app, &from.app)) {
            continue;
        }
        let port = |end: &Terminal| ports.get(end.app.as_str()).copied();
        let sender = port(from).filter(|kind| !kind.sends()).map(|kind| (from, kind, "sends"));
        let receiver = port(to).filter(|kind| !kind.takes()).map(|kind| (to, kind, "takes"));
        for (end, kind, does) in sender.into_iter().chain(receiver) {
            let end = format!("{}.{}", end.app, end.name);
            let link = format!("{}.{} -> {}.{}", from.app, from.name, to.app, to.name);
            let problem = Problem::NoFlow { end, link, kind: kind.type_name(), does };
            faults.push(Fault { place: sources.place(Origin::Link(number)), problem });
        }
    }
}

/// Whether all that is there is used.
fn check_use(
    links: &[(NamedLink, Origin)],
    joined: &HashSet<&str>,
    sources: &Sources<'_>,
    faults: &mut Vec<Fault>,
) {
    let ends: HashSet<&Terminal> =
        links.iter().flat_map(|(link, _)| [&link.from, &link.to]).collect();
    let linked: HashSet<&str> = ends.iter().map(|end| end.app.as_str()).collect();
    for WrittenApp { table, sides } in sources.apps {
        if !linked.contains(table.name.as_str()) {
            faults.push(table.fault(Problem::Unlinked(table.owner())));
            continue;
        }
        for side in sides {
            let end = Terminal { app: table.name.clone(), name: side.name.clone() };
            if !ends.contains(&end) {
                let owner = format!("{} of `{}`", side.owner(), table.name);
                faults.push(side.fault(Problem::Unlinked(owner)));
            }
        }
    }
    for port in sources.ports.iter().filter(|port| !joined.contains(port.name.as_str())) {
        for entry in vlan::KEYS.iter().filter_map(|key| port.entry(key.name)) {
            let (key, port) = (entry.key.clone(), port.name.clone());
            let place = entry.place.clone();
            faults.push(Fault { place, problem: Problem::NotJoined { key, port } });
        }
    }
}

/// Either all sides of a bridge have to do with VLANs, or none.
fn check_vlans(
    config: &Config,
    network: &Network,
    links: &[(NamedLink, Origin)],
    joined: &HashSet<&str>,
    sources: &Sources<'_>,
    faults: &mut Vec<Fault>,
) {
    for app in &network.apps {
        let Spec::Bridge(memberships) = &app.spec else { continue };
        let table = sources.app(&app.name);
        let side =
            |name: &str| table.and_then(|table| table.sides.iter().find(|side| side.name == name));
        let port = |name: &str| {
            let is_joined = app.name == BRIDGE && joined.contains(name);
            sources.port(name).filter(|_| is_joined)
        };
        for side in table.iter().flat_map(|table| &table.sides) {
            if let Some(port) = port(&side.name)
                && config.ports.iter().any(|read| read.name == port.name && read.vlan.is_some())
            {
                let (name, first) = (side.name.clone(), port.place.clone());
                faults.push(side.fault(Problem::SideTwice { side: name, first }));
            }
        }
        // How a side is called in a fault, and where it is from.
        let said = |name: &str| match (port(name), side(name)) {
            (Some(port), None) => (port.owner(), port.place.clone(), true),
            (_, Some(side)) => {
                (format!("{} of `{}`", side.owner(), app.name), side.place.clone(), false)
            }
            (None, None) => {
                let is_it = |end: &Terminal| end.app == app.name && end.name == name;
                let link = links.iter().find(|(link, _)| is_it(&link.from) || is_it(&link.to));
                let place = link.map_or(Place::CommandLine, |(_, origin)| sources.place(*origin));
                (format!("side `{name}` of `{}`", app.name), place, false)
            }
        };
        let Some(first) = app.inputs.iter().find(|name| memberships.contains_key(*name)) else {
            continue;
        };
        for name in app.inputs.iter().filter(|name| !memberships.contains_key(*name)) {
            let ((other, first, is_port), (side, place, is_ports)) = (said(first), said(name));
            let what = if is_port && is_ports { "port" } else { "side" };
            faults.push(Fault { place, problem: Problem::NoVlan { side, other, first, what } });
        }
    }
}
