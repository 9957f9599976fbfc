//! What stations say of who has which address, and the table of a tun port behind it.
//!
//! Whatever is said: the table knows of an address only what somebody said of it, trusts nobody before it has asked,
//! asks to the end, and the port answers only for addresses of its own.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use engine::{Frame, HEAD};
use ports::tun::arrival::{Arrival, Message, sort};
use ports::tun::neighbours::{Neighbours, Whereabouts};
use ports::tun::station::{Claim, Learnt, Saying};
use ports::tun::{Station, Subnets};
use wire::arp::{self, Operation};
use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress, VlanTag};
use wire::ndp::{self, ALL_NODES, Kind, solicited_node};
use wire::virtio::Offload;

use crate::Reached;
use crate::input::Input;

const HOST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xfe]);
const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xfe);

const SECOND: u64 = 1_000_000_000;

/// Addresses in all crowds of a program: enough to fill the table, and a bound on the time that one input takes.
const CROWDS: u32 = 3000;

/// A port's business with its neighbours, and what has to be true of it.
struct Port {
    station: Station,
    neighbours: Neighbours,
    now: u64,
    /// Who was said to have which address.
    said: HashSet<(IpAddr, MacAddress)>,
    /// Addresses that the host sent to.
    wanted: HashSet<IpAddr>,
    reached: Reached,
}

/// Frames of stations, packets of the host's, and time.
pub fn neighbours(data: &[u8]) -> Reached {
    let mut input = Input::new(data);
    let addresses = ["10.0.0.254/16", "fd00::fe/64"].map(|text| text.parse().unwrap());
    let subnets = Subnets { addresses: addresses.into(), gateways: Vec::new() };
    let mut port = Port {
        station: Station { mac: HOST, subnets },
        neighbours: Neighbours::new([input.u64(), 0x0fed_cba9_8765_4321]),
        now: 0,
        said: HashSet::new(),
        wanted: HashSet::new(),
        reached: Reached::default(),
    };
    let (mut steps, mut left) = (0, CROWDS);
    while let Some(step) = input.step(&mut steps, 7) {
        match step {
            0 => {
                let frame = frame(&mut input);
                port.hear(&frame);
            }
            1 => {
                let frame = arp(&mut input);
                port.hear(&frame);
            }
            2 => {
                let mut frame = ndp(&mut input);
                if input.rarely() {
                    let at = input.below(frame.len());
                    frame[at] ^= input.u8();
                }
                port.hear(&frame);
            }
            3 => port.resolve(address(&mut input)),
            4 => port.pass(u64::from(input.u8()) * SECOND / 4),
            5 => {
                // Claims of one station, more than there are places for.
                for number in crowd(&mut input, &mut left) {
                    let sender = Ipv4Addr::from_bits(0x0a00_0000 + number % 0xff00);
                    port.hear(&request(station(1), sender).frame(MacAddress::BROADCAST));
                }
            }
            _ => {
                for number in crowd(&mut input, &mut left) {
                    port.resolve(Ipv4Addr::from_bits(0x0a00_0000 + number % 0xff00).into());
                }
            }
        }
    }
    port.rest()
}

impl Port {
    /// A frame comes.
    fn hear(&mut self, bytes: &[u8]) {
        let head = &bytes[..bytes.len().min(HEAD)];
        let frame = Frame { head, body: &[], len: bytes.len(), offload: Offload::NONE };
        let heard = match sort(&frame, &self.station) {
            Ok(Arrival::Heard(heard)) => heard,
            Ok(Arrival::Packet(start)) => {
                assert!(bytes.len() >= start + 20);
                self.reached.note("packet");
                return;
            }
            Err(reason) => {
                self.reached.note_variant(&reason);
                return;
            }
        };
        self.reached.note(if matches!(heard.message, Message::Arp(_)) { "arp" } else { "ndp" });
        let Some(Learnt { claim, answer }) = self.station.hear(heard) else { return };
        if let Some(Claim { address, station, occasion }) = claim {
            self.reached.note_variant(&occasion);
            self.said.extend(station.map(|station| (address, station)));
            self.neighbours.hear(address, station, occasion, self.now);
            self.check(address);
        }
        if let Some(answer) = answer {
            self.check_answer(answer);
        }
    }

    /// What the port says of its own accord is about itself.
    fn check_answer(&mut self, Saying { to, message }: Saying) {
        match message {
            Message::Arp(packet) => {
                assert_eq!((packet.sender_mac, packet.sender), (HOST, HOST_V4));
                assert!(!to.is_multicast(), "an answer to {to}");
                let frame = packet.frame(to);
                assert_eq!(arp::Packet::parse(&frame[HEADER_SIZE..]), Some(packet));
                self.reached.note("reply");
            }
            Message::Ndp(packet) => {
                assert_eq!((packet.source, packet.target), (HOST_V6, HOST_V6));
                let is_to_all = packet.destination == ALL_NODES;
                assert!(to == MacAddress::of_group(ALL_NODES.into()) || !is_to_all);
                assert!(is_to_all || !to.is_multicast(), "an answer to {to}");
                let parsed = ndp::Packet::parse(&packet.frame(HOST, to)[HEADER_SIZE..], true);
                // Who asked may have said to be nobody that an answer could go to.
                assert!(parsed == Ok(Some(packet)) || packet.destination.is_multicast());
                self.reached.note("advertisement");
            }
        }
    }

    /// The host sends to an address.
    fn resolve(&mut self, address: IpAddr) {
        if !self.station.subnets.is_neighbour(address) {
            return;
        }
        let (whereabouts, question) = self.neighbours.resolve(address, self.now);
        assert_ne!(whereabouts, Whereabouts::Unknown, "there is always a place");
        if self.wanted.insert(address) {
            assert!(question.is_some(), "{address} was trusted, and nobody had asked");
        }
        if let Some(question) = question {
            assert_eq!(question.address, address);
            let saying = self.station.ask(question).expect("there is an address to ask from");
            assert_eq!(saying.to.is_multicast(), question.station.is_none());
            let probes = question.station.is_some();
            self.reached.note(if probes { "probe" } else { "question" });
        }
        self.check(address);
    }

    /// Time passes, and what is due is asked.
    fn pass(&mut self, time: u64) {
        self.now += time;
        let Self { neighbours, now, reached, .. } = self;
        neighbours.sweep(*now, |_| {
            reached.note("asked again");
            true
        });
        if neighbours.take_changed() {
            reached.note("changed");
        }
        assert!(neighbours.due().is_none_or(|due| due > *now));
    }

    fn check(&mut self, address: IpAddr) {
        match self.neighbours.look(address) {
            Whereabouts::At(station) => {
                assert!(self.said.contains(&(address, station)), "{address} at {station}");
                assert!(!station.is_multicast());
                self.reached.note("known");
            }
            Whereabouts::Asked => assert!(self.wanted.contains(&address)),
            Whereabouts::Unknown => self.reached.note("unknown"),
        }
    }

    /// Left alone, it comes to rest.
    fn rest(mut self) -> Reached {
        for _ in 0..4 {
            self.pass(SECOND + SECOND / 10);
        }
        assert_eq!(self.neighbours.due(), None);
        for address in &self.wanted {
            assert_ne!(self.neighbours.look(*address), Whereabouts::Asked, "{address}");
        }
        self.reached
    }
}

/// Numbers of addresses that are next to each other.
fn crowd(input: &mut Input<'_>, left: &mut u32) -> Range<u32> {
    let (first, count) = (u32::from(input.u16()), (u32::from(input.u8()) * 8).min(*left));
    *left -= count;
    first..first + count
}

fn station(number: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, number])
}

/// Few stations, so that they meet; and some that are none.
fn mac(input: &mut Input<'_>) -> MacAddress {
    let others = [HOST, MacAddress::BROADCAST, MacAddress::default(), MacAddress([1; 6])];
    match input.below(16) {
        number @ 0..12 => station(number as u8),
        number => others[number - 12],
    }
}

fn v4(input: &mut Input<'_>) -> Ipv4Addr {
    match input.u8() {
        0xff => Ipv4Addr::from(input.array::<4>()),
        number => Ipv4Addr::new(10, 0, 0, number),
    }
}

fn v6(input: &mut Input<'_>) -> Ipv6Addr {
    match input.u8() {
        0xff => Ipv6Addr::from(input.array::<16>()),
        0 => Ipv6Addr::UNSPECIFIED,
        number => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
    }
}

fn address(input: &mut Input<'_>) -> IpAddr {
    if input.bool() { v4(input).into() } else { v6(input).into() }
}

fn request(sender_mac: MacAddress, sender: Ipv4Addr) -> arp::Packet {
    let (target_mac, operation) = (MacAddress::default(), Operation::Request);
    arp::Packet { operation, sender_mac, sender, target_mac, target: HOST_V4 }
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let operation = if input.bool() { Operation::Request } else { Operation::Reply };
    let (sender_mac, sender) = (mac(input), v4(input));
    let (target_mac, target) =
        if input.rarely() { (mac(input), v4(input)) } else { (HOST, HOST_V4) };
    let packet = arp::Packet { operation, sender_mac, sender, target_mac, target };
    packet.frame(if input.bool() { HOST } else { MacAddress::BROADCAST }).to_vec()
}

fn ndp(input: &mut Input<'_>) -> Vec<u8> {
    let flags = input.u8();
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let (source, from, target) = (v6(input), mac(input), v6(input));
    let link_layer = flag(3).then(|| mac(input));
    let packet = if flag(4) {
        let kind = Kind::Advertisement { router: flag(0), solicited: flag(1), overrides: flag(2) };
        let destination = if flag(5) { HOST_V6 } else { ALL_NODES };
        ndp::Packet { source, destination, kind, target, link_layer }
    } else {
        let target = if flag(6) { target } else { HOST_V6 };
        let destination = if flag(5) { target } else { solicited_node(target) };
        ndp::Packet { source, destination, kind: Kind::Solicitation, target, link_layer }
    };
    let to = MacAddress::of_group(packet.destination.into());
    packet.frame(from, if flag(7) { HOST } else { to }).to_vec()
}

/// Any bytes, behind an Ethernet header that the port looks behind.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let ethertypes = [EtherType::ARP, EtherType::IPV6, EtherType::IPV4, EtherType(input.u16())];
    let vlan = VlanTag { protocol: EtherType::VLAN, control: input.u16() };
    let header = Ethernet {
        destination: input.pick(&[
            HOST,
            MacAddress::BROADCAST,
            MacAddress([0x33, 0x33, 0, 0, 0, 1]),
        ]),
        source: mac(input),
        ethertype: input.pick(&ethertypes),
        vlan: input.rarely().then_some(vlan),
    };
    let count = usize::from(input.u8());
    let mut frame = vec![0; header.header_len()];
    header.write(&mut frame);
    frame.extend(input.bytes(count));
    frame
}
