//! Tap ports: a network interface of the host.

use crate::config::fault::Fault;
use crate::config::keys::{Key, PortType};
use crate::config::port::WrittenPort;
use crate::config::{PortKind, value};

/// A network interface of the host.
pub const TYPE: PortType = PortType {
    name: "tap",
    about: "a tap interface of the host, attached to, or created if there is none",
    target: Key { name: "interface", form: "INTERFACE", about: "the name of its interface" },
    keys: &[],
    notes: super::no_notes,
    read,
};

/// A tap interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name, of at most 15 bytes.
    pub interface: String,
}

fn read(written: &WrittenPort, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let mut interface = None;
    for entry in written.keys(&TYPE, faults) {
        if entry.key == "interface" {
            interface = entry.read(faults, value::interface);
        }
    }
    Some(PortKind::Tap(Tap { interface: interface? }))
}
