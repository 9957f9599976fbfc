//! The configuration of `ringway run`: from flags and a file to one checked value.
//!
//! A flag and a file say the same things with the same keys. Both are first taken apart into
//! entries that remember where they were written ([`port`] for `--port`, [`mod@file`] for TOML);
//! then one reader gives the entries their meaning, whichever source they came from ([`value`]).
//! Faults are collected on the way and never end the reading, so that all are reported at once.
//!
//! A setting given by a flag replaces the file's. Ports are added together: a name, a socket or
//! an interface given twice is a fault, wherever the two are.

mod app;
pub mod between;
mod fault;
mod features;
mod file;
mod keys;
mod kinds;
mod links;
pub mod network;
mod port;
mod show;
#[cfg(test)]
mod tests;
mod value;
mod vlan;
mod whole;
mod written;

use std::collections::HashMap;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use apps::bridge::vlan::Membership;
use engine::Mode;
use tracing::level_filters::LevelFilter;

use app::WrittenApp;
pub use between::Between;
pub use fault::Faults;
use fault::{Fault, Place, Problem};
pub use features::names as feature_names;
use file::WrittenFile;
pub use keys::help;
use keys::{LINKS, PortType};
pub use kinds::pcap::{PcapRead, PcapWrite};
pub use kinds::tap::{Setup, Tap};
pub use kinds::tun::Tun;
pub use kinds::vhost_net::VhostNet;
pub use kinds::vhost_user::{
    DEFAULT_FEATURES, DEFAULT_MTU, DEFAULT_SOCKET_MODE, SocketRole, VhostUser,
};
use network::{BRIDGE, NamedLink, Spec};
use value::{Scalar, Value};
use whole::Sources;
use written::{Entry, Written};

/// How long an adaptive worker polls without work before it sleeps, if `idle-spin` is not set.
pub const DEFAULT_IDLE_SPIN: Duration = Duration::from_micros(50);
/// What is logged if `log` is not set: quiet unless something needs a person.
pub const DEFAULT_LOG: LevelFilter = LevelFilter::WARN;

/// A complete and valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How a worker waits for work.
    pub mode: Mode,
    /// How long an adaptive worker polls without work before it sleeps. Without meaning in the
    /// other modes.
    pub idle_spin: Duration,
    /// Threads that move frames, 1 to 64.
    pub workers: usize,
    /// The CPUs that the workers may run on, ascending: at least one for each. Empty: wherever they
    /// would run.
    pub cpus: Vec<usize>,
    /// The least severe level that is logged.
    pub log: LevelFilter,
    /// Where it can be asked how it is.
    pub control: ControlSocket,
    /// Names, socket paths and interfaces are unique. The file's come first.
    pub ports: Vec<PortConfig>,
    /// The apps that are said as such, by their names.
    pub apps: Vec<(String, Spec)>,
    /// The links that are said as such.
    pub links: Vec<NamedLink>,
}

/// What is not said: adaptive, one worker, and no ports.
impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Adaptive,
            idle_spin: DEFAULT_IDLE_SPIN,
            workers: 1,
            cpus: Vec::new(),
            log: DEFAULT_LOG,
            control: ControlSocket::Default,
            ports: Vec::new(),
            apps: Vec::new(),
            links: Vec::new(),
        }
    }
}

/// The socket at which a running switch can be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ControlSocket {
    /// Where one is by default, if it can be made there.
    #[default]
    Default,
    /// There is none.
    Off,
    /// At this path.
    At(PathBuf),
}

/// One port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortConfig {
    /// 1 to 32 characters out of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`.
    pub name: String,
    /// What is behind the port.
    pub kind: PortKind,
    /// What its side of the bridge has to do with VLANs.
    pub vlan: Option<Membership>,
    /// What lies between it and the bridge, or whatever else it is linked to.
    pub between: Between,
}

impl PortConfig {
    /// A port that has nothing to do with VLANs, and nothing between it and the bridge.
    pub fn new(name: &str, kind: PortKind) -> Self {
        Self { name: name.to_owned(), kind, vlan: None, between: Between::default() }
    }
}

/// What is behind a port: one variant for each type of port, each read in a module of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A guest, over vhost-user.
    VhostUser(VhostUser),
    /// A tap interface of the host.
    Tap(Tap),
    /// A tun interface of the host.
    Tun(Tun),
    /// A tap interface of the host, by way of the kernel's vhost-net.
    VhostNet(VhostNet),
    /// A capture file whose frames are sent.
    PcapRead(PcapRead),
    /// A capture file that is written.
    PcapWrite(PcapWrite),
}

impl PortKind {
    /// What no other port of this type may have too, and the key that names it.
    fn target(&self) -> (&'static PortType, &Path) {
        match self {
            // Paths compare by their components: /run//vm1.sock is /run/vm1.sock.
            Self::VhostUser(port) => (&kinds::vhost_user::TYPE, &port.path),
            Self::Tap(port) => (&kinds::tap::TYPE, port.interface.as_ref()),
            Self::Tun(port) => (&kinds::tun::TYPE, port.interface.as_ref()),
            Self::VhostNet(port) => (&kinds::vhost_net::TYPE, port.tap.interface.as_ref()),
            Self::PcapRead(port) => (&kinds::pcap::READ, &port.file),
            Self::PcapWrite(port) => (&kinds::pcap::WRITE, &port.file),
        }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        self.target().0.name
    }

    /// Whether frames come from it.
    pub fn sends(&self) -> bool {
        !matches!(self, Self::PcapWrite(_))
    }

    /// Whether it does anything with frames that come to it but drop them.
    pub fn takes(&self) -> bool {
        !matches!(self, Self::PcapRead(_))
    }

    /// What no other port may have too.
    fn possessions(&self) -> Vec<Possession> {
        let mut own = Vec::new();
        let mut has_target = true;
        if let Self::Tap(port) | Self::VhostNet(VhostNet { tap: port, .. }) = self {
            own.extend(port.descriptors.iter().map(|number| Possession::Descriptor(*number)));
            // Else it does not name one thing only.
            has_target = port.is_named();
        }
        if has_target {
            let (of, target) = self.target();
            let (kind, key) = (of.name, of.target.name);
            own.push(Possession::Target { kind, key, target: target.to_owned() });
        }
        own
    }
}

/// What only one port can have.
#[derive(PartialEq, Eq, Hash)]
enum Possession {
    Descriptor(RawFd),
    Target { kind: &'static str, key: &'static str, target: PathBuf },
}

impl Possession {
    /// The key that says it, and its value.
    fn said(&self) -> (&'static str, String) {
        match self {
            Self::Descriptor(number) => ("fd", number.to_string()),
            Self::Target { key, target, .. } => (key, target.display().to_string()),
        }
    }
}

/// A configuration while it is being gathered from its sources.
#[derive(Default)]
pub struct Draft {
    settings: Vec<Entry>,
    ports: Vec<Written>,
    apps: Vec<WrittenApp>,
    faults: Vec<Fault>,
}

impl Draft {
    /// Adds the file at `path`.
    pub fn read_file(&mut self, path: &Path) {
        match fs::read_to_string(path) {
            Ok(text) => self.add_file(path, &text),
            Err(error) => self.faults.push(Fault {
                place: Place::File(path.to_owned()),
                problem: Problem::Unreadable(error.to_string()),
            }),
        }
    }

    /// Adds a file that has been read already; `path` is how faults name it.
    pub fn add_file(&mut self, path: &Path, text: &str) {
        let file = WrittenFile::parse(path, text, &mut self.faults);
        self.settings.extend(file.settings);
        self.ports.extend(file.ports);
        self.apps.extend(file.apps);
    }

    /// Adds a setting as `--key value`, which replaces what was added before it.
    pub fn add_flag(&mut self, key: &str, value: &str) {
        let place = Place::flag(key, value);
        self.settings.push(Entry {
            key: key.to_owned(),
            place: place.clone(),
            value: Value { scalar: Scalar::Text(value.to_owned()), place },
        });
    }

    /// Adds a port as `--port NAME=TYPE:TARGET[,KEY=VALUE...]`.
    pub fn add_port(&mut self, text: &str) {
        self.ports.extend(Written::from_flag(text, &mut self.faults));
    }

    /// The configuration, or everything that is wrong with it.
    pub fn finish(&self) -> Result<Config, Faults> {
        let Draft { settings, ports, apps, faults } = self;
        let mut faults = faults.clone();
        let mut config = Config {
            ports: read_ports(ports, &mut faults),
            apps: apps.iter().filter_map(|app| app.read(&mut faults)).collect(),
            ..Config::default()
        };
        let known = self.known_apps(&config);
        let mut places = Vec::new();
        for entry in settings {
            let faults = &mut faults;
            match entry.key.as_str() {
                "mode" => set(&mut config.mode, entry.read(faults, value::mode)),
                "idle-spin" => set(&mut config.idle_spin, entry.read(faults, value::idle_spin)),
                "workers" => set(&mut config.workers, entry.read(faults, value::workers)),
                "cpus" => set(&mut config.cpus, entry.read(faults, value::cpus)),
                "log" => set(&mut config.log, entry.read(faults, value::log)),
                "control" => set(&mut config.control, entry.read(faults, value::control)),
                LINKS => {
                    for (link, place) in links::read(entry, &known, faults) {
                        config.links.push(link);
                        places.push(place);
                    }
                }
                _ => faults.push(entry.unknown("the file", &keys::TOP_LEVEL)),
            }
        }
        let (cpus, workers) = (config.cpus.len(), config.workers);
        if (1..workers).contains(&cpus)
            && let Some(entry) = settings.iter().rfind(|entry| entry.key == "cpus")
        {
            let place = entry.place.clone();
            faults.push(Fault { place, problem: Problem::TooFewCpus { cpus, workers } });
        }
        let sources = Sources { ports, apps, links: &places };
        whole::check_names(&config, &sources, &mut faults);
        // After other faults these may be their consequences.
        if faults.is_empty() {
            whole::check_links(&config, &sources, &mut faults);
        }
        if faults.is_empty() && config.ports.is_empty() && config.apps.is_empty() {
            faults.push(Fault { place: Place::CommandLine, problem: Problem::NoPorts });
        }
        match Faults::new(faults) {
            Some(faults) => Err(faults),
            None => Ok(config),
        }
    }

    /// The apps that links can lead to, also those with faults.
    fn known_apps(&self, config: &Config) -> links::Apps {
        let mut known = links::Apps::default();
        // A name that is given twice is the port's.
        config.apps.iter().for_each(|(name, spec)| known.add(name, spec));
        for port in &config.ports {
            known.add(&port.name, &Spec::Port(port.kind.clone()));
            port.apps().iter().for_each(|(name, spec)| known.add(name, spec));
        }
        let written = self.ports.iter().chain(self.apps.iter().map(|app| &app.table));
        written.for_each(|table| known.add_name(&table.name));
        if !config.apps.iter().any(|(name, _)| name == BRIDGE) {
            known.add(BRIDGE, &Spec::Bridge(Default::default()));
        }
        known
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The ports, checked each for itself and against each other.
fn read_ports(written: &[Written], faults: &mut Vec<Fault>) -> Vec<PortConfig> {
    let mut ports: Vec<(PortConfig, &Place)> = Vec::new();
    // The first of them that has each.
    let (mut names, mut owners) = (HashMap::<&str, &Place>::new(), HashMap::new());
    for port in written {
        let config = port.read(faults);
        let fault = |problem| Fault { place: port.place.clone(), problem };
        if let Some(first) = names.get(port.name.as_str()) {
            faults.push(fault(Problem::Twice {
                what: keys::PORT,
                name: port.name.clone(),
                first: (*first).clone(),
            }));
            // Such a port often has the same target too, which is no second fault.
            continue;
        }
        names.insert(&port.name, &port.place);
        let Some(config) = config else {
            continue;
        };
        let own = config.kind.possessions();
        let taken = own.iter().filter_map(|one| Some((owners.get(one).copied()?, one)));
        if let Some((owner, one)) = taken.min_by_key(|(owner, _)| *owner) {
            let ((other, place), (key, target)): (&(PortConfig, &Place), _) =
                (&ports[owner], one.said());
            faults.push(fault(Problem::TargetTwice {
                port: config.name.clone(),
                key,
                target,
                other: other.name.clone(),
                first: (*place).clone(),
            }));
        }
        for one in own {
            owners.entry(one).or_insert(ports.len());
        }
        ports.push((config, &port.place));
    }
    ports.into_iter().map(|(config, _)| config).collect()
}

/// The name of the app that does this for a port.
pub fn app_name(port: &str, what: &str) -> String {
    format!("{port}.{what}")
}
