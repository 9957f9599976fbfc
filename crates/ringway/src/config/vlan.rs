//! The keys of VLANs, which ports of all types have.

use std::sync::Arc;

use apps::bridge::vlan::Membership;

use super::fault::{Fault, Problem};
use super::keys::Key;
use super::value;
use super::written::Written;

/// The keys.
pub static KEYS: [Key; 3] = [
    Key {
        name: "vlan",
        form: "1..4094",
        about: "the VLAN of its frames that have no tag; without trunk, of all [none]",
    },
    Key {
        name: "trunk",
        form: "all|N+...",
        about: "the VLANs of its frames that have a tag, as 10+20-29 [none]",
    },
    Key {
        name: "qinq",
        form: "on|off",
        about: "802.1ad: take any tags into its VLAN; of a trunk, its tags are a service's [off]",
    },
];

/// What a port has to do with VLANs, if anything. What is wrong with it goes to the faults.
pub fn read(written: &Written, faults: &mut Vec<Fault>) -> Option<Membership> {
    let vlan = written.entry("vlan").and_then(|entry| entry.read(faults, value::vlan));
    let allowed = written.entry("trunk").and_then(|entry| entry.read_list(faults, value::vlans));
    let qinq = written.entry("qinq");
    let is_qinq = qinq.and_then(|entry| entry.read(faults, value::switch)).unwrap_or(false);
    if let Some(entry) = qinq.filter(|_| is_qinq)
        && written.entry("vlan").is_none()
        && written.entry("trunk").is_none()
    {
        faults.push(Fault { place: entry.place.clone(), problem: Problem::QinqAlone });
    }
    match (vlan, allowed) {
        (native, Some(allowed)) => {
            Some(Membership::Trunk { native, allowed: Arc::new(allowed), is_service: is_qinq })
        }
        (Some(vlan), None) if is_qinq => Some(Membership::Tunnel(vlan)),
        (Some(vlan), None) => Some(Membership::Access(vlan)),
        (None, None) => None,
    }
}
