//! Guests and the host's own IP, by a tun in a network namespace of the test's own.

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use engine::DropReason;
use ringway_ports::tun::{Station, Subnets, TunPort};
use sys::tun::{Kind, Offloads, Request};
use wire::arp::{self, Operation};
use wire::checksum::Sum;
use wire::ethernet::{HEADER_SIZE, MacAddress};
use wire::ndp;
use wire::virtio::{Features, NetHeader};

use crate::guest::{Cut, Guest, Received};
use crate::network::{self, ip};
use crate::world::{LIMIT, MODERN, RING, STEP, World, mac, modern};

const SECOND: u64 = 1_000_000_000;

const HOST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0x99]);
const HOST_V4: [u8; 4] = [10, 9, 0, 1];
/// The address of guest 0.
const GUEST_V4: [u8; 4] = [10, 9, 0, 2];

/// The number of the tun's port, behind those of two guests.
const TUN: usize = 2;

/// A port of a tun in a network of its own, in parts.
fn parts(most: Offloads, workers: usize) -> Vec<TunPort> {
    let request = Request { most, ..Request::new("rw0", Kind::Tun, NetHeader::SIZE) };
    let queue = network::open(request).remove(0);
    let subnets = Subnets {
        addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        gateways: vec![IpAddr::from([10, 9, 0, 9])],
    };
    let station = Station { mac: HOST, subnets };
    TunPort::parts(queue, station, workers, [3, 4]).unwrap()
}

/// Two guests and the host on a bridge, which knows where the guests are.
fn host(guest: Guest, most: Offloads) -> World {
    let part = parts(most, 1).remove(0);
    let world = World::bridged_with(vec![guest, modern()], "tun", part);
    ip("link set rw0 up");
    ip("address add 10.9.0.1/24 dev rw0");
    ip("route add default dev rw0");
    world
}

/// Breathes until the port has counted so many packets of the host's.
#[track_caller]
fn until_read(world: &mut World, packets: u64) {
    let start = Instant::now();
    while world.counters(TUN).received.frames < packets {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {packets} packets of the host's");
        world.breathe();
    }
}

fn read_arp(received: &Received) -> Option<arp::Packet> {
    let is_arp = received.frame[12..14] == [8, 6];
    let packet = is_arp.then(|| arp::Packet::parse(&received.frame[HEADER_SIZE..])).flatten();
    // Announcements have a test of their own.
    packet.filter(|packet| packet.sender != packet.target)
}

fn ask(address: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    ask_as(0, address, target)
}

fn ask_as(guest: usize, address: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = arp::Packet {
        operation: Operation::Request,
        sender_mac: MacAddress(mac(guest)),
        sender: address.into(),
        target_mac: MacAddress::default(),
        target: target.into(),
    };
    packet.frame(MacAddress::BROADCAST).to_vec()
}

/// The guest's answer to a question of the host's.
fn answer(question: arp::Packet) -> Vec<u8> {
    let packet = arp::Packet {
        operation: Operation::Reply,
        sender_mac: MacAddress(mac(0)),
        sender: question.target,
        target_mac: question.sender_mac,
        target: question.sender,
    };
    packet.frame(question.sender_mac).to_vec()
}

/// The datagram in a frame to guest 0, from the host.
fn datagram(frame: &[u8]) -> Option<&[u8]> {
    let is_it =
        frame.starts_with(&[mac(0), HOST.0].concat()) && frame[12..14] == [8, 0] && frame[23] == 17;
    is_it.then(|| &frame[34..])
}

#[test]
fn the_port_answers_for_the_host_and_for_nobody_else() {
    let mut world = host(modern(), Offloads::ALL);
    for sender in [GUEST_V4, [0; 4]] {
        world.guests[0].send(&ask(sender, [10, 9, 0, 7]));
        world.guests[0].send(&ask(sender, HOST_V4));
        let reply = world.until("an answer", |_, received| read_arp(&received));
        assert_eq!((reply.operation, reply.sender_mac), (Operation::Reply, HOST));
        assert_eq!((reply.sender.octets(), reply.target.octets()), (HOST_V4, sender));
        assert_eq!(reply.target_mac.0, mac(0));
    }
    let solicit = |source: &str, target: &str, link_layer| {
        let target = target.parse().unwrap();
        let destination = ndp::solicited_node(target);
        let kind = ndp::Kind::Solicitation;
        let source = source.parse().unwrap();
        let packet = ndp::Packet { source, destination, kind, target, link_layer };
        packet.frame(MacAddress(mac(0)), MacAddress::of_group(destination.into()))
    };
    for (source, link_layer) in
        [("fd00::2", Some(MacAddress(mac(0)))), ("fd00::3", None), ("::", None)]
    {
        world.guests[0].send(&solicit(source, "fd00::7", link_layer));
        world.guests[0].send(&solicit(source, "fd00::1", link_layer));
        let (to, packet) = world.until("an advertisement", |_, received| {
            let packet = ndp::Packet::parse(received.frame.get(14..)?, true).ok().flatten()?;
            Some((received.frame[..6].to_vec(), packet))
        });
        let is_probe = source == "::";
        let solicited = !is_probe;
        let expected = ndp::Packet {
            source: "fd00::1".parse().unwrap(),
            destination: if is_probe { ndp::ALL_NODES } else { source.parse().unwrap() },
            kind: ndp::Kind::Advertisement { router: true, solicited, overrides: true },
            target: "fd00::1".parse().unwrap(),
            link_layer: Some(HOST),
        };
        assert_eq!(packet, expected);
        let group = MacAddress::of_group(ndp::ALL_NODES.into());
        assert_eq!(to, if is_probe { group.0 } else { mac(0) });
    }
    world.assert_drops(TUN, &[]);
}

#[test]
fn packets_wait_for_their_neighbour_and_then_go_in_order() {
    let mut world = host(modern(), Offloads::ALL);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    for number in 0..5u8 {
        socket.send_to(&[number; 50], "10.9.0.2:900").unwrap();
    }
    let question = world.until("a question", |_, received| read_arp(&received));
    assert_eq!((question.operation, question.target.octets()), (Operation::Request, GUEST_V4));
    until_read(&mut world, 5);
    // Who is known, and what waits for those who are not.
    let said = |world: &mut World| {
        let numbers = world.graph.numbers(world.ports[TUN], world.now);
        numbers.iter().map(|number| number.value).collect::<Vec<_>>()
    };
    assert_eq!(said(&mut world), [0, 3]);
    world.guests[0].send(&answer(question));
    socket.send_to(&[5; 50], "10.9.0.2:900").unwrap();
    // The newest three of those that waited, and then what came later.
    let mut next = 2;
    world.until("all datagrams", |_, received| {
        assert_eq!(datagram(&received.frame)?[8..], [next; 50]);
        next += 1;
        (next == 6).then_some(())
    });
    assert_eq!(said(&mut world), [1, 0]);
    world.assert_drops(TUN, &[(DropReason::NoNeighbour, 2)]);
}

#[test]
fn who_does_not_answer_costs_what_waits_and_who_is_far_is_behind_the_gateway() {
    let mut world = host(modern(), Offloads::ALL);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.send_to(&[1; 50], "192.0.2.1:900").unwrap();
    for _ in 0..3 {
        let question = world.until("a question", |_, received| read_arp(&received));
        assert_eq!(question.target.octets(), [10, 9, 0, 9]);
        world.assert_drops(TUN, &[]);
        world.after(SECOND - STEP);
    }
    world.after(SECOND);
    world.assert_drops(TUN, &[(DropReason::NoNeighbour, 1)]);
    // Nothing is left to be done: the worker may sleep.
    world.breathe();
    assert!(!world.breathe());
}

#[test]
fn a_flood_of_addresses_keeps_little_and_takes_no_slot_for_good() {
    let mut world = host(modern(), Offloads::ALL);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    for last in 10..=250u8 {
        socket.send_to(&[last; 50], format!("10.9.0.{last}:900")).unwrap();
    }
    until_read(&mut world, 241);
    let waiting = 241 - world.counters(TUN)[DropReason::NoNeighbour];
    assert!((1..=32).contains(&waiting), "{waiting} wait");
    // Questions are asked again as there is room for them.
    for _ in 0..200 {
        world.post();
        world.after(SECOND / 20);
        world.guests[0].reap();
        world.guests[0].received();
    }
    assert_eq!(world.counters(TUN)[DropReason::NoNeighbour], 241);
    // And somebody else is found as ever.
    world.guests[0].send(&ask(GUEST_V4, HOST_V4));
    socket.send_to(&[7; 50], "10.9.0.2:900").unwrap();
    let payload =
        world.until("a datagram", |_, received| Some(datagram(&received.frame)?.to_vec()));
    assert_eq!(payload[8..], [7; 50]);
}

/// The sum over a datagram and its pseudo header: 0 when its checksum is right.
fn checksum(source: [u8; 4], destination: [u8; 4], datagram: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(&[source, destination].concat());
    sum.add(&[[0, 17], (datagram.len() as u16).to_be_bytes()].concat());
    sum.add(datagram);
    sum.finish()
}

/// The header of such a frame without a segmentation.
const UNDONE: NetHeader = NetHeader {
    flags: NetHeader::NEEDS_CSUM,
    gso_type: NetHeader::GSO_NONE,
    hdr_len: 42,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 6,
    num_buffers: 0,
};

/// A frame of guest 0's with datagrams to the host, whose checksum is left undone.
fn undone(payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let mut frame = [&HOST.0[..], &mac(0), &[8, 0]].concat();
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0].to_vec();
    header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    header.extend([GUEST_V4, HOST_V4].concat());
    let mut sum = Sum::new();
    sum.add(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    let mut sum = Sum::new();
    sum.add(&[GUEST_V4, HOST_V4].concat());
    sum.add(&[[0, 17], len.to_be_bytes()].concat());
    frame.extend(header);
    frame.extend([900, 700, len].map(u16::to_be_bytes).concat());
    frame.extend((!sum.finish()).to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn what_is_left_undone_passes_both_ways_or_is_done() {
    const USO: Features = MODERN
        .union(Features::CSUM)
        .union(Features::HOST_USO)
        .union(Features::GUEST_CSUM)
        .union(Features::GUEST_USO4)
        .union(Features::GUEST_USO6);
    let payload: Vec<u8> =
        (0..3500u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect();
    for (most, frames) in [(Offloads::ALL, 1), (Offloads::None, 4)] {
        for cut in [Cut::Whole, Cut::Crumbs] {
            let mut world = host(Guest::new(USO, cut, RING), most);
            let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let header = NetHeader { gso_type: NetHeader::GSO_UDP_L4, gso_size: 1000, ..UNDONE };
            world.guests[0].send_with(header, &undone(&payload));
            world.breathe();
            assert_eq!(world.counters(TUN).sent.frames, frames);
            for part in payload.chunks(1000) {
                let mut buffer = [0; 2000];
                let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
                assert!(buffer[..len] == *part);
            }
            let header = NetHeader { gso_type: NetHeader::GSO_NONE, gso_size: 0, ..header };
            world.guests[0].send_with(header, &undone(&payload[..99]));
            world.breathe();
            let mut buffer = [0; 2000];
            let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
            assert!(buffer[..len] == payload[..99]);

            world.guests[0].send(&ask(GUEST_V4, HOST_V4));
            socket.send_to(&payload[..333], "10.9.0.2:900").unwrap();
            let Received { header, frame, .. } = world.until("a datagram", |_, received| {
                datagram(&received.frame).is_some().then_some(received)
            });
            let datagram = datagram(&frame).unwrap();
            assert!(datagram[8..] == payload[..333]);
            if most == Offloads::ALL {
                assert_eq!(header.flags, NetHeader::NEEDS_CSUM);
                assert_eq!((header.csum_start, header.csum_offset), (34, 6));
            } else {
                assert_eq!(header.flags, 0);
                assert_eq!(checksum(HOST_V4, GUEST_V4, datagram), 0);
            }
            world.assert_drops(TUN, &[]);
        }
    }
}

/// The port itself.
fn port(world: &mut World) -> &mut TunPort {
    let id = world.ports[TUN];
    world.graph.get(id).expect("the port is alive")
}

/// What a guest has received by now.
fn received(world: &mut World, guest: usize) -> Vec<Received> {
    world.guests[guest].reap();
    world.guests[guest].received()
}

#[test]
fn the_host_s_addresses_are_announced_three_times_when_the_port_comes_up() {
    let mut world = host(modern(), Offloads::ALL);
    world.guests[0].post_many(100);
    // Those of the start were for guests that had no room.
    for _ in 0..50 {
        world.after(SECOND / 10);
    }
    received(&mut world, 0);
    port(&mut world).set_link(true);
    assert!(!world.breathe(), "it was up");
    for _ in 0..2 {
        port(&mut world).set_link(false);
        world.after(SECOND);
        assert_eq!(received(&mut world, 0).len(), 0);
        port(&mut world).set_link(true);
        let mut times = Vec::new();
        for tenth in 0..50 {
            let frames = received(&mut world, 0);
            let group = MacAddress::of_group(ndp::ALL_NODES.into()).0;
            for Received { frame, .. } in &frames {
                assert_eq!(frame[6..12], HOST.0);
                if frame[12..14] == [8, 6] {
                    let expected = arp::Packet {
                        operation: Operation::Request,
                        sender_mac: HOST,
                        sender: HOST_V4.into(),
                        target_mac: MacAddress::default(),
                        target: HOST_V4.into(),
                    };
                    assert_eq!(frame[..6], [0xff; 6]);
                    assert_eq!(arp::Packet::parse(&frame[HEADER_SIZE..]), Some(expected));
                } else {
                    let source = "fd00::1".parse().unwrap();
                    let expected = ndp::Packet {
                        source,
                        destination: ndp::ALL_NODES,
                        kind: ndp::Kind::Advertisement {
                            router: true,
                            solicited: false,
                            overrides: true,
                        },
                        target: source,
                        link_layer: Some(HOST),
                    };
                    assert_eq!(frame[..6], group);
                    assert_eq!(ndp::Packet::parse(&frame[HEADER_SIZE..], true), Ok(Some(expected)));
                }
            }
            times.extend(frames.iter().map(|_| tenth / 10));
            world.after(SECOND / 10);
        }
        assert_eq!(times, [0, 0, 1, 1, 2, 2]);
    }
    world.assert_drops(TUN, &[]);
}

#[test]
fn what_is_here_when_it_stops_is_counted() {
    let mut world = host(modern(), Offloads::ALL);
    // Room for what the port itself has to say, and for some of the datagrams.
    world.guests[0].post_many(10);
    for _ in 0..50 {
        world.after(SECOND / 10);
    }
    world.guests[0].send(&ask(GUEST_V4, HOST_V4));
    (0..3).for_each(|_| _ = world.breathe());
    received(&mut world, 0);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    (0..9u8).for_each(|number| _ = socket.send_to(&[number; 50], "10.9.0.2:900").unwrap());
    until_read(&mut world, 9);
    // And three wait for a neighbour that is not there.
    (0..3u8).for_each(|number| _ = socket.send_to(&[number; 50], "10.9.0.7:900").unwrap());
    until_read(&mut world, 12);
    let came = received(&mut world, 0);
    let datagrams = came.iter().filter(|received| datagram(&received.frame).is_some()).count();
    world.graph.stop_all();
    assert!((1..9).contains(&datagrams), "{datagrams} of nine");
    assert_eq!(world.counters(TUN).received.frames, 12);
    world.assert_drops(TUN, &[(DropReason::Stopped, 12 - datagrams as u64)]);
}

#[test]
fn packets_beyond_the_mtu_are_counted() {
    const USO: Features = MODERN.union(Features::CSUM).union(Features::HOST_USO);
    let mut world = host(Guest::new(USO, Cut::Whole, RING), Offloads::ALL);
    port(&mut world).set_mtu(1000);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    // Without segmentation by the packet, with it by the segments: 28 bytes of them are headers.
    for (payload, gso_size, passes) in
        [(972, 0, true), (973, 0, false), (3000, 972, true), (3000, 973, false)]
    {
        let (before, drops) =
            (world.counters(TUN).sent.frames, world.counters(TUN)[DropReason::OverMtu]);
        let gso_type = if gso_size == 0 { NetHeader::GSO_NONE } else { NetHeader::GSO_UDP_L4 };
        let header = NetHeader { gso_type, gso_size, ..UNDONE };
        world.guests[0].send_with(header, &undone(&vec![1; payload]));
        world.breathe();
        let counters = world.counters(TUN);
        let what = format!("{payload} bytes, segments of {gso_size}");
        assert_eq!(counters.sent.frames - before, u64::from(passes), "{what}");
        assert_eq!(counters[DropReason::OverMtu] - drops, u64::from(!passes), "{what}");
    }
}

/// IEEE 802.1Q: a frame whose tag has only a priority is of no VLAN.
#[test]
fn a_tag_with_a_priority_is_stripped() {
    const USO: Features = MODERN.union(Features::CSUM).union(Features::HOST_USO);
    let payload: Vec<u8> =
        (0..2500u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect();
    for most in [Offloads::ALL, Offloads::None] {
        let mut world = host(Guest::new(USO, Cut::Whole, RING), most);
        let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        for (payload, gso_size) in [(&payload[..500], 0), (&payload[..], 1000)] {
            let mut frame = undone(payload);
            frame.splice(12..12, [0x81, 0, 0xa0, 0]);
            let gso_type = if gso_size == 0 { NetHeader::GSO_NONE } else { NetHeader::GSO_UDP_L4 };
            let header = NetHeader { gso_type, gso_size, hdr_len: 46, csum_start: 38, ..UNDONE };
            world.guests[0].send_with(header, &frame);
            world.breathe();
            world.assert_drops(TUN, &[]);
            for part in payload.chunks(1000) {
                let mut buffer = [0; 2000];
                let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
                assert!(buffer[..len] == *part);
            }
        }
    }
}

/// Whether a guest has an answer of the host's.
fn has_answer(world: &mut World, guest: usize) -> bool {
    let frames = received(world, guest);
    frames.iter().filter_map(read_arp).any(|packet| packet.operation == Operation::Reply)
}

#[test]
fn one_guest_s_questions_leave_answers_for_others() {
    let mut world = host(modern(), Offloads::ALL);
    // The one asks in each breath before the other does.
    world.guests.iter_mut().for_each(|guest| guest.post_many(100));
    for _ in 0..60 {
        world.guests[0].send(&ask(GUEST_V4, HOST_V4));
    }
    world.guests[1].send(&ask_as(1, [10, 9, 0, 3], HOST_V4));
    for _ in 0..3 {
        world.breathe();
    }
    assert!(has_answer(&mut world, 1));
    assert!(has_answer(&mut world, 0));
    let unanswered = world.counters(TUN)[DropReason::ReceiverFull];
    assert!((40..60).contains(&unanswered), "{unanswered}");
}

#[test]
fn a_guest_that_takes_no_answers_leaves_answers_for_others() {
    let mut world = host(modern(), Offloads::ALL);
    for _ in 0..20 {
        world.guests[0].send(&ask(GUEST_V4, HOST_V4));
        world.breathe();
        world.guests[0].reap();
    }
    world.guests[1].post_many(100);
    world.guests[1].send(&ask_as(1, [10, 9, 0, 3], HOST_V4));
    for _ in 0..3 {
        world.breathe();
    }
    assert!(has_answer(&mut world, 1));
    // All but those that there are slots for were given up, and counted; the other's took one more place.
    assert_eq!(world.counters(TUN)[DropReason::ReceiverFull], 20 + 1 - 12);
    // It has the newest when it takes some.
    world.guests[0].post_many(100);
    world.breathe();
    assert!(has_answer(&mut world, 0));
}

/// What one part hears, another has to know: the one that reads, and asks.
#[test]
fn parts_pass_on_what_they_hear() {
    let mut parts = parts(Offloads::ALL, 2);
    let mut world = World::unlinked(vec![modern()]);
    let (writes, reads) = (parts.remove(1), parts.remove(0));
    let [reads, writes] = [reads, writes].map(|part| world.graph.add("tun", part));
    world.graph.link((world.ports[0], 0), (writes, 0)).unwrap();
    world.graph.link((reads, 0), (world.ports[0], 0)).unwrap();
    ip("link set rw0 up");
    ip("address add 10.9.0.1/24 dev rw0");
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.send_to(&[1; 50], "10.9.0.2:900").unwrap();
    let question = world.until("a question", |_, received| read_arp(&received));
    assert_eq!(question.target.octets(), GUEST_V4);
    world.guests[0].send(&answer(question));
    world.until("a datagram", |_, received| datagram(&received.frame).map(|_| ()));
    world.guests[0].send(&ask(GUEST_V4, HOST_V4));
    let reply = world.until("an answer", |_, received| read_arp(&received));
    assert_eq!((reply.operation, reply.sender_mac), (Operation::Reply, HOST));
    // More at once than is passed on is counted where it was heard.
    for _ in 0..100 {
        world.guests[0].send(&ask(GUEST_V4, HOST_V4));
    }
    for _ in 0..4 {
        world.post();
        world.breathe();
        world.guests[0].reap();
    }
    let dropped: u64 =
        [reads, writes].iter().map(|id| world.graph.counters(*id)[DropReason::ReceiverFull]).sum();
    let answered = world.guests[0].received().len() as u64;
    assert_eq!(dropped + answered, 100);
    assert!(dropped > 0 && answered > 0, "{dropped} dropped, {answered} answered");
}

#[test]
fn a_port_whose_interface_is_gone_says_so_once_and_counts() {
    let mut world = host(modern(), Offloads::ALL);
    ip("link delete rw0");
    let start = Instant::now();
    while world.faults.is_empty() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for a fault");
        world.breathe();
    }
    assert!(world.fault(TUN).starts_with("the interface is gone: "));
    for _ in 0..10 {
        world.guests[0].send(&ask(GUEST_V4, HOST_V4));
        world.breathe();
    }
    assert!(world.faults.is_empty());
    world.assert_drops(TUN, &[(DropReason::ReceiverDown, 10)]);
}
