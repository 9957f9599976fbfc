use proptest::prelude::*;
use wire::ethernet::HEADER_SIZE;
use wire::ndp::{Kind, solicited_node};
use wire::virtio::Offload;

use super::super::subnets::Subnets;
use super::*;

const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const HOST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xfe]);

fn station() -> Station {
    let addresses = vec!["10.0.0.254/24".parse().unwrap(), "fd00::fe/64".parse().unwrap()];
    Station { mac: HOST, subnets: Subnets { addresses, gateways: Vec::new() } }
}

fn sorted(bytes: &[u8]) -> Result<Arrival, DropReason> {
    let head = &bytes[..bytes.len().min(engine::HEAD)];
    sort(&Frame { head, body: &[], len: bytes.len(), offload: Offload::NONE }, &station())
}

fn frame(destination: MacAddress, ethertype: EtherType, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_SIZE];
    Ethernet { destination, source: GUEST, ethertype, vlan: None }.write(&mut frame);
    frame.extend(packet);
    frame
}

fn ipv4(destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1];
    packet.extend(destination);
    packet.extend([0; 8]);
    packet
}

fn ipv6(destination: &str) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend([0xfd; 16]);
    packet.extend(destination.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend([0; 8]);
    packet
}

#[test]
fn packets_to_the_host_are_taken() {
    let group = MacAddress::of_group([224, 0, 0, 251].into());
    for (to, ethertype, packet) in [
        (HOST, EtherType::IPV4, ipv4([10, 0, 0, 254])),
        // The host routes.
        (HOST, EtherType::IPV4, ipv4([192, 0, 2, 1])),
        (HOST, EtherType::IPV6, ipv6("2001:db8::1")),
        (MacAddress::BROADCAST, EtherType::IPV4, ipv4([10, 0, 0, 255])),
        (MacAddress::BROADCAST, EtherType::IPV4, ipv4([255; 4])),
        (group, EtherType::IPV4, ipv4([224, 0, 0, 251])),
        (MacAddress([0x33, 0x33, 0, 0, 0, 1]), EtherType::IPV6, ipv6("ff02::1")),
    ] {
        assert_eq!(sorted(&frame(to, ethertype, &packet)), Ok(Arrival::Packet(14)), "{packet:?}");
    }
}

#[test]
fn each_frame_that_is_dropped_has_its_reason() {
    let other = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
    let host = ipv4([10, 0, 0, 254]);
    let mut tagged = frame(HOST, EtherType::VLAN, &[0, 7, 8, 0]);
    tagged.extend(&host);
    for (bytes, reason) in [
        (vec![0; 13], DropReason::TooShort),
        (tagged, DropReason::Tagged),
        (frame(other, EtherType::IPV4, &host), DropReason::NotForHost),
        (frame(other, EtherType::ARP, &[]), DropReason::NotForHost),
        // To one station, in a frame to many.
        (frame(MacAddress::BROADCAST, EtherType::IPV4, &host), DropReason::NotForHost),
        (frame(MacAddress::BROADCAST, EtherType::IPV6, &ipv6("fd00::fe")), DropReason::NotForHost),
        (frame(HOST, EtherType::LOCAL_EXPERIMENT, &host), DropReason::NotIp),
        // The kernel would take them for what they are not.
        (frame(HOST, EtherType::IPV6, &host), DropReason::NotIp),
        (frame(HOST, EtherType::IPV4, &ipv6("fd00::fe")), DropReason::NotIp),
        (frame(HOST, EtherType::IPV4, &[0x55; 40]), DropReason::NotIp),
        (frame(HOST, EtherType::IPV4, &host[..19]), DropReason::TooShort),
        (frame(HOST, EtherType::IPV6, &ipv6("fd00::fe")[..39]), DropReason::TooShort),
        (frame(HOST, EtherType::IPV4, &[]), DropReason::TooShort),
        (frame(HOST, EtherType::ARP, &[0; 28]), DropReason::BadNeighbourMessage),
    ] {
        assert_eq!(sorted(&bytes), Err(reason), "{bytes:?}");
    }
}

/// IEEE 802.1Q: a tag without a VLAN is a priority, and nothing else.
#[test]
fn a_tag_that_has_only_a_priority_is_passed_over() {
    let host = ipv4([10, 0, 0, 254]);
    let tagged = |control: [u8; 2], ethertype: u16, packet: &[u8]| {
        let tag = [control, ethertype.to_be_bytes()].concat();
        frame(HOST, EtherType::VLAN, &[&tag, packet].concat())
    };
    for control in [[0, 0], [0xe0, 0], [0xf0, 0]] {
        assert_eq!(sorted(&tagged(control, 0x0800, &host)), Ok(Arrival::Packet(18)));
    }
    let asked = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: GUEST,
        sender: [10, 0, 0, 1].into(),
        target_mac: MacAddress::default(),
        target: [10, 0, 0, 254].into(),
    };
    let message = &asked.frame(HOST)[HEADER_SIZE..];
    let heard = Heard { from: GUEST, message: Message::Arp(asked) };
    assert_eq!(sorted(&tagged([0x20, 0], 0x0806, message)), Ok(Arrival::Heard(heard)));
    // Of a VLAN, of a provider's, and of a VLAN behind a priority.
    let mut provider = tagged([0, 0], 0x0800, &host);
    provider[12..14].copy_from_slice(&EtherType::SERVICE_VLAN.0.to_be_bytes());
    let inner = [&[0, 7, 8, 0][..], &host].concat();
    for bytes in [tagged([0, 7], 0x0800, &host), provider, tagged([0, 0], 0x8100, &inner)] {
        assert_eq!(sorted(&bytes), Err(DropReason::Tagged), "{bytes:?}");
    }
}

#[test]
fn what_is_said_about_addresses_does_not_reach_the_kernel() {
    let target = "fd00::fe".parse().unwrap();
    let group = MacAddress::of_group(solicited_node(target).into());
    let message = ndp::Packet {
        source: "fd00::1".parse().unwrap(),
        destination: solicited_node(target),
        kind: Kind::Solicitation,
        target,
        link_layer: Some(GUEST),
    };
    let bytes = message.frame(GUEST, group);
    let heard = Heard { from: GUEST, message: Message::Ndp(message) };
    assert_eq!(sorted(&bytes), Ok(Arrival::Heard(heard)));
    // Nor by a router, nor in disguise.
    for (at, value) in [(21, 64), (56, bytes[56] ^ 1)] {
        let mut wrong = bytes;
        wrong[at] = value;
        assert_eq!(sorted(&wrong), Err(DropReason::BadNeighbourMessage));
    }
    let mut disguised = bytes;
    disguised[12..14].copy_from_slice(&EtherType::IPV4.0.to_be_bytes());
    assert_eq!(sorted(&disguised), Err(DropReason::NotIp));
}

proptest! {
    #[test]
    fn anything_has_its_place(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200), ethertype in 0usize..4,
    ) {
        let kinds = [EtherType::IPV4, EtherType::IPV6, EtherType::ARP, EtherType::VLAN];
        if let Some(header) = bytes.first_chunk_mut::<14>() {
            header[..6].copy_from_slice(&HOST.0);
            header[12..].copy_from_slice(&kinds[ethertype].0.to_be_bytes());
        }
        if let Ok(Arrival::Packet(start)) = sorted(&bytes) {
            // What the kernel gets is whole headers, of the version that was looked at.
            prop_assert!(bytes.len() >= start + 20);
            prop_assert!([4, 6].contains(&(bytes[start] >> 4)));
        }
    }
}
