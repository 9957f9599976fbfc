//! Tun ports: the host's own IP.

use ports::tun::Subnets;
use wire::ethernet::MacAddress;

use crate::config::fault::Fault;
use crate::config::keys::{Key, PortType};
use crate::config::value::{self, Misfit};
use crate::config::written::Written;
use crate::config::{PortKind, set};

/// The key of the host's addresses.
const ADDRESS: &str = "address";
const ADDRESS_ABOUT: &str = "the host's addresses, as 10.0.0.1/24+fd00::1/64";

/// The least MTU with IPv6 (RFC 8200, section 5).
const IPV6_MTU: u16 = 1280;

/// The host's own IP, without Ethernet.
pub const TYPE: PortType = PortType {
    name: "tun",
    about: "a tun interface of the host, which carries IP: attached to, or created if there is none",
    target: Key { name: "interface", form: "INTERFACE", about: "the name of its interface" },
    keys: &[
        Key { name: ADDRESS, form: "IP/LEN+...", about: ADDRESS_ABOUT },
        Key {
            name: "gateway",
            form: "IP+...",
            about: "neighbours for what is not in these networks, one for IPv4 and IPv6 each [none]",
        },
        Key {
            name: "mac",
            form: "ADDRESS",
            about: "the address by which the host's are found on the bridge [a random one]",
        },
        Key { name: "mtu", form: "68..65521", about: "MTU of the interface [as it is]" },
    ],
    notes: super::no_notes,
    read,
};

/// A tun interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tun {
    /// Its name, of at most 15 bytes.
    pub interface: String,
    /// The host's addresses on it, at least one, and its gateways.
    pub subnets: Subnets,
    /// The port's own address; a random one, if `None`.
    pub mac: Option<MacAddress>,
    /// The MTU of the interface, in bytes; as it is, if `None`.
    pub mtu: Option<u16>,
}

fn read(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let before = faults.len();
    let (mut interface, mut subnets) = (None, Subnets::default());
    let (mut mac, mut mtu) = (None, None);
    for entry in written.keys(&TYPE, faults) {
        match entry.key.as_str() {
            "interface" => interface = entry.read(faults, value::interface),
            ADDRESS => set(&mut subnets.addresses, entry.read_list(faults, value::subnets)),
            "gateway" => set(&mut subnets.gateways, entry.read_list(faults, value::gateways)),
            "mac" => mac = entry.read(faults, value::mac),
            "mtu" => mtu = entry.read(faults, value::tap_mtu),
            _ => {}
        }
    }
    if written.entry(ADDRESS).is_none() {
        faults.push(written.missing(ADDRESS, ADDRESS_ABOUT.to_owned()));
    }
    if faults.len() == before
        && let Some(entry) = written.entry("mtu")
        && mtu.is_some_and(|mtu| mtu < IPV6_MTU)
        && subnets.addresses.iter().any(|subnet| subnet.address.is_ipv6())
    {
        let expected = format!("{IPV6_MTU} or more, as IPv6 needs");
        faults.push(entry.wrong(&entry.value, Misfit { expected, nearest: None }));
    }
    if faults.len() == before
        && let Some(entry) = written.entry("gateway")
        && !subnets.gateways.iter().all(|gateway| subnets.is_neighbour(*gateway))
    {
        let expected = "other addresses of the networks of `address`".to_owned();
        faults.push(entry.wrong(&entry.value, Misfit { expected, nearest: None }));
    }
    let port = Tun { interface: interface?, subnets, mac, mtu };
    (faults.len() == before).then_some(PortKind::Tun(port))
}
