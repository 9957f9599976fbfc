//! The addresses that the port answers for, and where a packet of the host's goes first.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use thiserror::Error;
use wire::ethernet::MacAddress;

/// An address of the host's and the network that is reached without a router: `10.0.0.1/24`, `fd00::1/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The address, which is a single station's.
    pub address: IpAddr,
    /// Bits that all addresses of the network have in common.
    pub prefix_len: u8,
}

/// A text that is not an address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "expected the address of a station and its prefix length, such as 10.0.0.1/24 or fd00::1/64"
)]
pub struct SubnetError;

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, prefix_len) = text.split_once('/').ok_or(SubnetError)?;
        let address: IpAddr = address.parse().map_err(|_| SubnetError)?;
        // An integer's own parser would take "+8".
        if !prefix_len.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(SubnetError);
        }
        let prefix_len = prefix_len.parse().map_err(|_| SubnetError)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let subnet = Self { address, prefix_len };
        let is_right =
            prefix_len <= bits && is_station(address) && subnet.broadcast() != Some(address);
        is_right.then_some(subnet).ok_or(SubnetError)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl Subnet {
    /// Whether `address` is of this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        // A shift by all bits is none.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(128 - u32::from(self.prefix_len.min(128))).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// The address at which all stations of an IPv4 network listen. Networks of two have none (RFC 3021).
    fn broadcast(&self) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(own) if self.prefix_len < 31 => {
                let hosts = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
                Some(Ipv4Addr::from_bits(own.to_bits() | hosts).into())
            }
            _ => None,
        }
    }
}

/// Whether an address is a single station's.
pub(super) fn is_station(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !is_broadcast
}

/// Where a packet goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextHop {
    /// To a group of stations.
    Group(MacAddress),
    /// To the station of this address.
    Station(IpAddr),
    /// Nowhere: not to one of our networks, and there is no gateway.
    None,
}

/// All addresses of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subnets {
    /// What the port answers for.
    pub addresses: Vec<Subnet>,
    /// Where what is for other networks goes: one of each version at most is looked at, the first.
    pub gateways: Vec<IpAddr>,
}

impl Subnets {
    /// Whether an address is one that the port answers for.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|subnet| subnet.address == address)
    }

    /// Whether an address is that of a possible neighbour.
    pub fn is_neighbour(&self, address: IpAddr) -> bool {
        is_station(address)
            && !self.has(address)
            && self.addresses.iter().any(|subnet| subnet.contains(address))
            && !self.is_broadcast(address)
    }

    /// Our address that questions to `neighbour` come from: the one of its network, if there is one, or else
    /// one of its version.
    pub(super) fn source_for(&self, neighbour: IpAddr) -> Option<IpAddr> {
        let same_version = |subnet: &&Subnet| subnet.address.is_ipv4() == neighbour.is_ipv4();
        let of_network = self.addresses.iter().find(|subnet| subnet.contains(neighbour));
        let subnet = of_network.or_else(|| self.addresses.iter().find(same_version))?;
        Some(subnet.address)
    }

    /// Where what is for `destination` goes first.
    pub(super) fn next_hop(&self, destination: IpAddr) -> NextHop {
        if destination.is_multicast() {
            return NextHop::Group(MacAddress::of_group(destination));
        }
        if self.is_broadcast(destination) {
            return NextHop::Group(MacAddress::BROADCAST);
        }
        if self.is_neighbour(destination) {
            return NextHop::Station(destination);
        }
        let same_version = |gateway: &&IpAddr| gateway.is_ipv4() == destination.is_ipv4();
        match self.gateways.iter().find(same_version) {
            Some(gateway) if is_station(destination) && !self.has(destination) => {
                NextHop::Station(*gateway)
            }
            _ => NextHop::None,
        }
    }

    /// Whether all stations of one of our networks listen to an address.
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(Ipv4Addr::BROADCAST)
            || self.addresses.iter().any(|subnet| subnet.broadcast() == Some(address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn subnets() -> Subnets {
        let addresses = ["10.0.0.1/24", "192.168.0.1/31", "fd00::1/64"];
        Subnets {
            addresses: addresses.map(|text| text.parse().unwrap()).to_vec(),
            gateways: vec![address("10.0.0.9")],
        }
    }

    #[test]
    fn texts_are_an_address_and_its_prefix() {
        for text in ["10.0.0.1/24", "10.0.0.1/0", "10.0.0.1/32", "fd00::1/128", "fe80::1/64"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        for text in [
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/+8",
            "10.0.0.1/",
            "10.0.0.1/8/8",
            "10.0.0.255/24",
            "255.255.255.255/32",
            "224.0.0.1/24",
            "127.0.0.1/8",
            "0.0.0.0/0",
            "::/64",
            "ff02::1/64",
            "fd00::1/129",
            "fd00::1/ 64",
            "host/24",
            "",
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError), "{text:?}");
        }
    }

    #[test]
    fn packets_go_to_stations_groups_or_the_gateway() {
        let subnets = subnets();
        let group = |text: &str| NextHop::Group(text.parse().unwrap());
        let station = |text: &str| NextHop::Station(address(text));
        for (destination, expected) in [
            ("10.0.0.7", station("10.0.0.7")),
            ("10.0.0.255", group("ff:ff:ff:ff:ff:ff")),
            ("255.255.255.255", group("ff:ff:ff:ff:ff:ff")),
            ("192.168.0.0", station("192.168.0.0")),
            ("224.0.0.251", group("01:00:5e:00:00:fb")),
            ("ff02::16", group("33:33:00:00:00:16")),
            ("10.0.1.7", station("10.0.0.9")),
            ("8.8.8.8", station("10.0.0.9")),
            ("fd00::7", station("fd00::7")),
            ("fd01::7", NextHop::None),
            ("fe80::7", NextHop::None),
            // Our own, and what is nobody's.
            ("10.0.0.1", NextHop::None),
            ("0.0.0.0", NextHop::None),
            ("127.0.0.1", NextHop::None),
        ] {
            assert_eq!(subnets.next_hop(address(destination)), expected, "{destination}");
        }
    }

    #[test]
    fn questions_come_from_the_address_of_the_neighbours_network() {
        let subnets = subnets();
        assert_eq!(subnets.source_for(address("192.168.0.0")), Some(address("192.168.0.1")));
        assert_eq!(subnets.source_for(address("fd00::7")), Some(address("fd00::1")));
        assert_eq!(subnets.source_for(address("172.16.0.1")), Some(address("10.0.0.1")));
        assert_eq!(Subnets::default().source_for(address("10.0.0.7")), None);
    }

    proptest! {
        #[test]
        fn a_network_is_its_prefix(own: u32, other: u32, prefix_len in 0u8..=32) {
            let subnet = Subnet { address: Ipv4Addr::from_bits(own).into(), prefix_len };
            let same = (0..prefix_len).all(|bit| (own ^ other) >> (31 - bit) & 1 == 0);
            prop_assert_eq!(subnet.contains(Ipv4Addr::from_bits(other).into()), same);
        }

        #[test]
        fn a_network_of_ipv6_is_its_prefix(own: u128, bit in 0u32..128, prefix_len in 0u8..=128) {
            let subnet = Subnet { address: std::net::Ipv6Addr::from_bits(own).into(), prefix_len };
            let other = std::net::Ipv6Addr::from_bits(own ^ 1 << (127 - bit));
            prop_assert_eq!(subnet.contains(other.into()), bit >= prefix_len.into());
        }
    }
}
