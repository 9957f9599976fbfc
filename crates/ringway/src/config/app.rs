//! Apps in sections of their own, `[app.NAME]`: the types there are, their keys, and how they are read.

use apps::sides;
use apps::source::{self, MAX_SIZE};
use wire::ethernet::{EtherType, HEADER_SIZE, MacAddress};

use super::between::{self, Reader};
use super::fault::{Fault, Problem};
use super::keys::{self, Key, TYPE};
use super::network::{Spec, Terminals};
use super::port::is_name;
use super::written::{Entry, Written};
use super::{set, value, vlan};

/// The longest name of an app: that of a port, and of what lies between it and the bridge, and more.
const NAME_LIMIT: usize = 64;

/// The key of a bridge that holds the tables of its sides.
pub const SIDE: &str = "side";

/// One type of app.
pub struct AppType {
    /// The value of the key `type`.
    pub name: &'static str,
    /// What an app of this type does, for `--help`.
    pub about: &'static str,
    /// What its inputs are called.
    pub inputs: Terminals,
    /// What its outputs are called.
    pub outputs: Terminals,
    /// The keys that it has besides its type.
    pub keys: &'static [Key],
    /// What an app means that was written as one of this type. None when it would do nothing, or something is wrong with it,
    /// which goes to the faults.
    pub read: fn(&WrittenApp, &mut Vec<Fault>) -> Option<Spec>,
}

/// The sides of an app that lies between a port and the rest, in the order of their numbers.
const SIDES: Terminals = Terminals::These(&["port", "network"]);
const _: () = assert!(sides::PORT == 0 && sides::NETWORK == 1 && apps::mirror::MIRROR == 2);

/// A learning bridge.
pub static BRIDGE: AppType = AppType {
    name: super::BRIDGE,
    about: "learns and floods; a side, which is both, is there when a link names it",
    inputs: Terminals::Any,
    outputs: Terminals::Any,
    keys: &[Key {
        name: SIDE,
        form: "TABLES",
        about: "[app.NAME.side.SIDE] with vlan, trunk and qinq, as of a port",
    }],
    read: |app, faults| {
        let sides =
            app.sides.iter().filter_map(|side| Some((side.name.clone(), read_side(side, faults)?)));
        Some(Spec::Bridge(sides.collect()))
    },
};

/// Lets a port speak only for itself.
pub static ANTI_SPOOF: AppType = AppType {
    name: "anti-spoof",
    about: "drops what a port sends as somebody else",
    inputs: SIDES,
    outputs: SIDES,
    keys: &between::ANTI_SPOOF_KEYS,
    read: |app, faults| between::anti_spoof(&mut app.reader(faults)).map(Spec::AntiSpoof),
};

/// Limits what a port sends to groups.
pub static STORM: AppType = AppType {
    name: "storm",
    about: "limits what a port sends to groups",
    inputs: SIDES,
    outputs: SIDES,
    keys: &between::STORM_KEYS,
    read: |app, faults| between::storm(&mut app.reader(faults)).map(Spec::Storm),
};

/// Limits what a port sends, and gets.
pub static POLICE: AppType = AppType {
    name: "police",
    about: "limits what a port sends, and gets",
    inputs: SIDES,
    outputs: SIDES,
    keys: &between::POLICE_KEYS,
    read: |app, faults| between::police(&mut app.reader(faults)).map(Spec::Police),
};

/// Drops what an expression does not accept.
pub static FILTER: AppType = AppType {
    name: "filter",
    about: "drops what a filter does not accept",
    inputs: SIDES,
    outputs: SIDES,
    keys: &between::FILTER_KEYS,
    read: |app, faults| between::filter(&mut app.reader(faults)).map(Spec::Filter),
};

/// Sends copies of what passes to a third.
pub static MIRROR: AppType = AppType {
    name: "mirror",
    about: "sends copies of what a port sends and gets by its output mirror",
    inputs: Terminals::These(&["port", "network", "mirror"]),
    outputs: Terminals::These(&["port", "network", "mirror"]),
    keys: &between::MIRROR_KEYS,
    read: |app, faults| Some(Spec::Mirror(between::mirror(&mut app.reader(faults)))),
};

/// Sends what comes by all of its outputs.
pub static TEE: AppType = AppType {
    name: "tee",
    about: "sends what comes by all outputs, which are there when a link names them",
    inputs: Terminals::These(&["in"]),
    outputs: Terminals::Any,
    keys: &[],
    read: |_, _| Some(Spec::Tee),
};

/// Makes frames.
pub static SOURCE: AppType = AppType {
    name: "source",
    about: "makes frames, all alike, which carry zeros",
    inputs: Terminals::These(&[]),
    outputs: Terminals::These(&["out"]),
    keys: &[
        Key { name: "to", form: "ADDRESS", about: "where they go [ff:ff:ff:ff:ff:ff]" },
        Key { name: "from", form: "ADDRESS", about: "who they are from [02:00:00:00:00:01]" },
        Key {
            name: "ethertype",
            form: "NUMBER",
            about: "what they say that they carry, from 0x600 on [0x88b5]",
        },
        Key {
            name: "size",
            form: "14..65549",
            about: "bytes of a frame, without its check sequence [60]",
        },
        Key {
            name: "rate",
            form: "RATE",
            about: "frames a second, as 1000frames [as many as are taken]",
        },
        Key { name: "frames", form: "N", about: "frames in all [without an end]" },
    ],
    read: |app, faults| Some(Spec::Source(read_source(&mut app.reader(faults)))),
};

/// Counts frames.
pub static SINK: AppType = AppType {
    name: "sink",
    about: "counts what comes, and that is the end of it",
    inputs: Terminals::These(&["in"]),
    outputs: Terminals::These(&[]),
    keys: &[],
    read: |_, _| Some(Spec::Sink),
};

/// Does to frames what bad networks do.
pub static IMPAIR: AppType = AppType {
    name: "impair",
    about: "delays, loses, corrupts, duplicates and reorders frames",
    inputs: SIDES,
    outputs: SIDES,
    keys: &between::IMPAIR_KEYS,
    read: |app, faults| between::impair(&mut app.reader(faults)).map(Spec::Impair),
};

/// Every type of app that is no port.
pub static TYPES: [&AppType; 10] =
    [&BRIDGE, &ANTI_SPOOF, &STORM, &POLICE, &FILTER, &MIRROR, &TEE, &SOURCE, &SINK, &IMPAIR];

/// An app as it was written, and the tables of its sides.
pub struct WrittenApp {
    pub table: Written,
    pub sides: Vec<Written>,
}

impl WrittenApp {
    /// What the app means. Everything that is wrong with it goes to `faults`.
    pub fn read(&self, faults: &mut Vec<Fault>) -> Option<(String, Spec)> {
        let Written { name, .. } = &self.table;
        let before = faults.len();
        if !is_name(name, NAME_LIMIT) {
            faults.push(self.table.fault(Problem::AppName(name.clone())));
        }
        let Some(type_entry) = self.table.entry(TYPE) else {
            faults.push(self.table.missing(TYPE, value::one_of(&TYPES.map(|known| known.name))));
            return None;
        };
        let known = type_entry.read(faults, value::app_type)?;
        let valid: Vec<_> =
            [TYPE].into_iter().chain(known.keys.iter().map(|key| key.name)).collect();
        check_keys(&self.table.entries, &format!("an app of type {}", known.name), &valid, faults);
        let spec = (known.read)(self, faults);
        if spec.is_none() && faults.len() == before {
            let (owner, expected) = (self.table.owner(), value::one_of(&valid[1..]));
            faults.push(self.table.fault(Problem::Idle { owner, expected }));
        }
        Some((name.clone(), spec?))
    }

    fn reader<'a>(&'a self, faults: &'a mut Vec<Fault>) -> Reader<'a> {
        Reader { written: &self.table, faults }
    }
}

/// Keys that are none are faults.
fn check_keys(entries: &[Entry], owner: &str, valid: &[&str], faults: &mut Vec<Fault>) {
    let unknown = entries.iter().filter(|entry| !valid.contains(&entry.key.as_str()));
    faults.extend(unknown.map(|entry| entry.unknown(owner, valid)));
}

/// What a side of a bridge has to do with VLANs.
fn read_side(side: &Written, faults: &mut Vec<Fault>) -> Option<apps::bridge::vlan::Membership> {
    let before = faults.len();
    if !is_name(&side.name, NAME_LIMIT) {
        faults.push(side.fault(Problem::SideName(side.name.clone())));
    }
    let valid = vlan::KEYS.map(|key| key.name);
    check_keys(&side.entries, "a side of a bridge", &valid, faults);
    let membership = vlan::read(side, faults);
    if membership.is_none() && faults.len() == before {
        let expected = "`vlan`, `trunk` or both".to_owned();
        faults.push(side.fault(Problem::Idle { owner: side.owner(), expected }));
    }
    membership
}

fn read_source(reader: &mut Reader<'_>) -> source::Settings {
    let mut settings = source::Settings {
        destination: MacAddress([0xff; 6]),
        source: MacAddress([2, 0, 0, 0, 0, 1]),
        ethertype: EtherType(0x88b5),
        size: 60,
        rate: reader.read_list("rate", value::frame_rate),
        frames: reader.read("frames", value::frames),
    };
    set(&mut settings.destination, reader.read("to", value::destination));
    set(&mut settings.source, reader.read("from", value::mac));
    set(&mut settings.ethertype, reader.read("ethertype", value::ethertype));
    set(&mut settings.size, reader.read("size", value::frame_size));
    settings
}

// As the help says.
const _: () = assert!(HEADER_SIZE == 14 && MAX_SIZE == 65549);

/// What inputs or outputs are called, in words.
fn names(terminals: &Terminals) -> String {
    match terminals {
        Terminals::Any => "any name".to_owned(),
        Terminals::These([]) => "none".to_owned(),
        Terminals::These(names) => names.join(", "),
    }
}

/// The types of app and their keys, as a section of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "Apps, for sections [app.NAME] of a file with a type and these keys, linked by links:\n",
    );
    for AppType { name, about, inputs, outputs, keys, .. } in TYPES {
        text += &format!("  {name}\n      {about}\n");
        text += &format!("      inputs: {}; outputs: {}\n", names(inputs), names(outputs));
        let is_a_ports = |key: &Key| between::keys().any(|other| other.name == key.name);
        let (as_a_port, own): (Vec<_>, Vec<_>) = keys.iter().partition(|key| is_a_ports(key));
        for key in own {
            text += &keys::line(key);
        }
        if let (Some(first), Some(last)) = (as_a_port.first(), as_a_port.last()) {
            let range = if first.name == last.name {
                first.name.to_owned()
            } else {
                format!("{} to {}", first.name, last.name)
            };
            text += &format!("      {range}, as above\n");
        }
    }
    text
}
