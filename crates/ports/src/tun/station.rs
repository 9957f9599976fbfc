//! What the port is on its Ethernet: a station with addresses, which asks who has others, and answers for its own.

use std::net::{IpAddr, Ipv6Addr};

use wire::arp::{self, Operation};
use wire::ethernet::MacAddress;
use wire::ndp::{self, ALL_NODES, Kind, solicited_node};

use super::arrival::{Heard, Message};
use super::neighbours::{Occasion, Question};
use super::subnets::Subnets;

/// The port as a station.
#[derive(Clone, Debug)]
pub struct Station {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its IP addresses, which are the host's.
    pub subnets: Subnets,
}

/// What the station says, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saying {
    /// The station or group that hears it.
    pub to: MacAddress,
    /// What it is.
    pub message: Message,
}

/// That somebody has an address, and how we know. An answer may leave out who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What somebody has.
    pub address: IpAddr,
    /// Who has it.
    pub station: Option<MacAddress>,
    /// Why it was said.
    pub occasion: Occasion,
}

/// What there is to do about something that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// For the table of neighbours.
    pub claim: Option<Claim>,
    /// To be said.
    pub answer: Option<Saying>,
}

impl Station {
    /// How to ask who has an address; None if there is no address to ask from.
    pub fn ask(&self, Question { address, station }: Question) -> Option<Saying> {
        match (address, self.subnets.source_for(address)?) {
            (IpAddr::V4(target), IpAddr::V4(sender)) => {
                let message = Message::Arp(arp::Packet {
                    operation: Operation::Request,
                    sender_mac: self.mac,
                    sender,
                    target_mac: MacAddress::default(),
                    target,
                });
                Some(Saying { to: station.unwrap_or(MacAddress::BROADCAST), message })
            }
            (IpAddr::V6(target), IpAddr::V6(source)) => {
                let group = solicited_node(target);
                let (destination, to) =
                    station.map_or((group, MacAddress::of_group(group.into())), |at| (target, at));
                let message = Message::Ndp(ndp::Packet {
                    source,
                    destination,
                    kind: Kind::Solicitation,
                    target,
                    link_layer: Some(self.mac),
                });
                Some(Saying { to, message })
            }
            _ => None,
        }
    }

    /// How to tell all stations, unasked, that an address is ours: a gratuitous request (RFC 5227, section 3) or an
    /// unsolicited advertisement (RFC 4861, section 7.2.6).
    pub fn announce(&self, address: IpAddr) -> Saying {
        match address {
            IpAddr::V4(address) => {
                let message = Message::Arp(arp::Packet {
                    operation: Operation::Request,
                    sender_mac: self.mac,
                    sender: address,
                    target_mac: MacAddress::default(),
                    target: address,
                });
                Saying { to: MacAddress::BROADCAST, message }
            }
            IpAddr::V6(address) => self.advertise(address, None),
        }
    }

    /// Says that an address is ours: to who asked, or to all nodes.
    fn advertise(&self, address: Ipv6Addr, to: Option<(Ipv6Addr, MacAddress)>) -> Saying {
        let all = (ALL_NODES, MacAddress::of_group(ALL_NODES.into()));
        let (destination, station) = to.unwrap_or(all);
        let message = Message::Ndp(ndp::Packet {
            source: address,
            destination,
            // A router, always. If the host is none, that makes nobody use it as one: it takes a router
            // advertisement, and the flag only keeps what that has made. But stations forget the router that they
            // had from the host's when the flag is missing once (RFC 4861, section 7.2.5), and that the host
            // forwards may begin at any time.
            kind: Kind::Advertisement { router: true, solicited: to.is_some(), overrides: true },
            target: address,
            link_layer: Some(self.mac),
        });
        Saying { to: station, message }
    }

    /// What is to be learnt from what was said, and answered. None if it is nothing to us.
    pub fn hear(&self, heard: Heard) -> Option<Learnt> {
        let (claim, answer) = match heard.message {
            Message::Arp(message) => self.hear_arp(message),
            Message::Ndp(message) => self.hear_ndp(message, heard.from),
        };
        let claim = claim.filter(|claim| self.subnets.is_neighbour(claim.address));
        (claim.is_some() || answer.is_some()).then_some(Learnt { claim, answer })
    }

    fn hear_arp(&self, message: arp::Packet) -> (Option<Claim>, Option<Saying>) {
        let arp::Packet { operation, sender_mac, sender, target_mac, target } = message;
        let is_to_us = self.subnets.has(target.into());
        let occasion = match operation {
            Operation::Request if is_to_us => Occasion::Request,
            Operation::Reply if is_to_us && target_mac == self.mac => {
                Occasion::Answer { overrides: true }
            }
            _ => Occasion::Announcement { overrides: true },
        };
        let claim = Claim { address: sender.into(), station: Some(sender_mac), occasion };
        // A group cannot ask.
        let is_answered = occasion == Occasion::Request && !sender_mac.is_multicast();
        let answer = is_answered.then(|| {
            let message = Message::Arp(arp::Packet {
                operation: Operation::Reply,
                sender_mac: self.mac,
                sender: target,
                target_mac: sender_mac,
                target: sender,
            });
            Saying { to: sender_mac, message }
        });
        (Some(claim), answer)
    }

    fn hear_ndp(&self, message: ndp::Packet, from: MacAddress) -> (Option<Claim>, Option<Saying>) {
        let ndp::Packet { source, destination, kind, target, link_layer } = message;
        if let Kind::Advertisement { solicited, overrides, .. } = kind {
            let is_to_us = solicited && self.subnets.has(destination.into());
            let occasion = match is_to_us {
                true => Occasion::Answer { overrides },
                false => Occasion::Announcement { overrides },
            };
            return (Some(Claim { address: target.into(), station: link_layer, occasion }), None);
        }
        if !self.subnets.has(target.into()) {
            return (None, None);
        }
        // Who looks whether an address is free has none yet, and listens to what is for all nodes.
        let is_probe = source.is_unspecified();
        let to = link_layer.unwrap_or(from);
        let answer = self.advertise(target, (!is_probe).then_some((source, to)));
        let occasion = Occasion::Request;
        let claim = Claim { address: source.into(), station: link_layer, occasion };
        let is_answered = is_probe || !to.is_multicast();
        (Some(claim), is_answered.then_some(answer))
    }
}
