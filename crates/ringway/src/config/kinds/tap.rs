//! Tap ports: a network interface of the host.

use std::os::fd::RawFd;

use ports::tun::Subnet;
use wire::ethernet::MacAddress;

use crate::config::fault::{Fault, Problem};
use crate::config::keys::{Key, PortType};
use crate::config::written::{Entry, Written};
use crate::config::{PortKind, set, value};

/// The keys that say how an interface is opened, which one that was inherited is already.
const OF_OPENING: [&str; 4] = ["queue-pairs", "persistent", "owner", "group"];

/// A network interface of the host.
pub const TYPE: PortType = PortType {
    name: "tap",
    about: "a tap interface of the host, attached to, or created if there is none",
    target: Key {
        name: "interface",
        form: "INTERFACE",
        about: "the name of its interface, or a pattern, as tap%d",
    },
    keys: &KEYS,
    notes: super::no_notes,
    read,
};

/// All its keys but the target.
pub const KEYS: [Key; 9] = [
    Key {
        name: "fd",
        form: "N+...",
        about: "inherited descriptors, a queue each; INTERFACE may be empty then [none]",
    },
    Key {
        name: "queue-pairs",
        form: "1..128",
        about: "queues, which the workers share; more than one need multi_queue [1]",
    },
    Key {
        name: "persistent",
        form: "on|off",
        about: "whether the interface stays when nobody has it open [as it is; off]",
    },
    Key {
        name: "owner",
        form: "USER",
        about: "who may open it without privilege, a name or a number [as it is]",
    },
    Key { name: "group", form: "GROUP", about: "which group may, a name or a number [as it is]" },
    Key { name: "mtu", form: "68..65521", about: "MTU of the interface [as it is]" },
    Key { name: "mac", form: "ADDRESS", about: "the host's address on it [as it is]" },
    Key {
        name: "up",
        form: "on|off",
        about: "put it up, or down [as it is; up if it was created]",
    },
    Key {
        name: "bridge",
        form: "INTERFACE",
        about: "a bridge of the host to put it into [as it is]",
    },
];

/// A tap interface of the host. What is `None` is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name, of at most 15 bytes, or a pattern for one. May be empty if there are descriptors.
    pub interface: String,
    /// Descriptors of its queues that this process was started with.
    pub descriptors: Vec<RawFd>,
    /// Queues, 1 to 128.
    pub queue_pairs: u16,
    /// Whether it stays when nobody has it open.
    pub persistent: Option<bool>,
    /// Who may open it without privilege, by name or number.
    pub owner: Option<String>,
    /// Which group may, by name or number.
    pub group: Option<String>,
    /// How the interface is set up.
    pub setup: Setup,
}

/// How an interface is set up. What is `None` is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setup {
    /// Its MTU, in bytes.
    pub mtu: Option<u16>,
    /// The host's address on it.
    pub mac: Option<MacAddress>,
    /// Whether it is up. One that was created is put up if this is `None`.
    pub up: Option<bool>,
    /// The bridge of the host that it belongs to.
    pub bridge: Option<String>,
    /// IP addresses of the host's that it has, besides others: those of a tun port.
    pub addresses: Vec<Subnet>,
}

impl Tap {
    /// A port whose only key is its interface.
    pub fn new(interface: String) -> Self {
        Self {
            interface,
            descriptors: Vec::new(),
            queue_pairs: 1,
            persistent: None,
            owner: None,
            group: None,
            setup: Setup::default(),
        }
    }

    /// Whether the interface says which one it is: a pattern is for a new one each time, and with
    /// descriptors it may be missing.
    pub fn is_named(&self) -> bool {
        !self.interface.is_empty() && !self.interface.contains('%')
    }
}

fn read(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    read_as(&TYPE, written, faults, |_, _| {}).map(PortKind::Tap)
}

/// The interface of a port of some type that has these keys. `others` is given those that it has besides.
pub fn read_as(
    port_type: &PortType,
    written: &Written,
    faults: &mut Vec<Fault>,
    mut others: impl FnMut(&Entry, &mut Vec<Fault>),
) -> Option<Tap> {
    let before = faults.len();
    let mut port = Tap::new(String::new());
    let mut interface = None;
    let has_descriptors = written.entry("fd").is_some();
    for entry in written.keys(port_type, faults) {
        match entry.key.as_str() {
            "interface" if has_descriptors => {
                interface = entry.read(faults, value::interface_or_nothing);
            }
            "interface" => interface = entry.read(faults, value::interface_or_pattern),
            "fd" => set(&mut port.descriptors, entry.read_list(faults, value::descriptors)),
            "queue-pairs" => set(&mut port.queue_pairs, entry.read(faults, value::queue_pairs)),
            "persistent" => port.persistent = entry.read(faults, value::switch),
            "owner" => port.owner = entry.read(faults, value::owner),
            "group" => port.group = entry.read(faults, value::socket_group),
            "mtu" => port.setup.mtu = entry.read(faults, value::tap_mtu),
            "mac" => port.setup.mac = entry.read(faults, value::mac),
            "up" => port.setup.up = entry.read(faults, value::switch),
            "bridge" => port.setup.bridge = entry.read(faults, value::interface),
            _ => others(entry, faults),
        }
    }
    if has_descriptors {
        for entry in OF_OPENING.iter().filter_map(|key| written.entry(key)) {
            let problem = Problem::NotWithFd(entry.key.clone());
            faults.push(Fault { place: entry.place.clone(), problem });
        }
    }
    port.interface = interface?;
    if port.persistent == Some(true)
        && port.interface.contains('%')
        && let Some(entry) = written.entry("persistent")
    {
        let problem = Problem::PersistentPattern(port.interface.clone());
        faults.push(Fault { place: entry.place.clone(), problem });
    }
    (faults.len() == before).then_some(port)
}
