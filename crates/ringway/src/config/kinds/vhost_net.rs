//! vhost-net ports: a network interface of the host, as of a tap port, by way of the kernel's vhost-net.

use crate::config::fault::Fault;
use crate::config::keys::{Key, PortType};
use crate::config::kinds::tap::{self, Tap};
use crate::config::written::Written;
use crate::config::{PortKind, value};

/// A network interface of the host, whose frames a thread of the kernel's moves.
pub const TYPE: PortType = PortType {
    name: "vhost-net",
    about: "a tap interface of the host, whose frames the kernel's vhost-net moves",
    target: tap::TYPE.target,
    keys: &KEYS,
    notes: super::no_notes,
    read,
};

/// Those of a tap port, and one more.
const KEYS: [Key; 1 + tap::KEYS.len()] = {
    let mut keys = [Key {
        name: "require",
        form: "on|off",
        about: "fail without the kernel's vhost-net, rather than be a tap port [off]",
    }; 1 + tap::KEYS.len()];
    let mut at = 0;
    while at < tap::KEYS.len() {
        keys[1 + at] = tap::KEYS[at];
        at += 1;
    }
    keys
};

/// A tap interface of the host, by way of the kernel's vhost-net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostNet {
    /// The interface.
    pub tap: Tap,
    /// Whether vhost-net is a must: if not, a tap port will do.
    pub require: bool,
}

fn read(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let mut require = Some(false);
    let tap = tap::read_as(&TYPE, written, faults, |entry, faults| {
        if entry.key == "require" {
            require = entry.read(faults, value::switch);
        }
    });
    Some(PortKind::VhostNet(VhostNet { tap: tap?, require: require? }))
}
