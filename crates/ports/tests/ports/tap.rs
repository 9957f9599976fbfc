//! Guests and the host's own network stack, by a tap in a network namespace of the test's own.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use allocation_counter::measure;
use engine::{App, BURST, DropReason, Mode, Poller};
use ringway_ports::BLOCK;
use ringway_ports::tap::TapPort;
use sys::testing::{Call, refuse};
use sys::tun::{Kind, Offloads, Queue, Request};
use wire::checksum::Sum;
use wire::virtio::{Features, NetHeader};

use crate::crew::Crew;
use crate::guest::{Cut, Guest, RECEIVE, Received};
use crate::network::{self, ip};
use crate::world::{LIMIT, MODERN, RING, World, frame, mac, modern};

const HOST: [u8; 4] = [10, 9, 0, 1];
const GUEST: [u8; 4] = [10, 9, 0, 2];
/// A third one, somewhere behind the guest.
const OTHER: [u8; 4] = [10, 9, 0, 4];

/// The number of the tap's port, behind those of two guests.
const TAP: usize = 2;

const OFFLOADS: Features = MODERN
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4);

/// Two guests and the host on a bridge. The host knows where guest 0 is.
fn host(guest: Guest) -> World {
    old_host(guest, Offloads::ALL)
}

/// The same with a kernel that knows no more than these.
fn old_host(guest: Guest, most: Offloads) -> World {
    host_with(guest, network::open(Request { most, ..request() }))
}

fn request() -> Request<'static> {
    Request::new("rw0", Kind::Tap, NetHeader::SIZE)
}

/// Gives the host an address on the tap. It knows where guest 0 is.
fn configure() {
    ip("link set rw0 address 52:54:00:00:00:99 addrgenmode none up");
    ip("address add 10.9.0.1/24 dev rw0");
    ip("neighbour add 10.9.0.2 lladdr 52:54:00:00:00:00 dev rw0");
}

fn host_with(guest: Guest, queues: Vec<Queue>) -> World {
    let tap = TapPort::parts(queues, 1).remove(0);
    let world = World::bridged_with(vec![guest, modern()], "tap", tap);
    configure();
    world
}

const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x99];

/// What is behind the IPv4 header, when the frame is of this protocol and to the guest.
fn ipv4(frame: &[u8], protocol: u8) -> Option<&[u8]> {
    let is_it = frame[12..14] == [8, 0] && frame[23] == protocol && frame[30..34] == GUEST;
    is_it.then(|| &frame[34..])
}

/// The sum over a datagram and its pseudo header: 0 when its checksum is right.
fn checksum(source: [u8; 4], destination: [u8; 4], protocol: u8, datagram: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(&[source, destination].concat());
    sum.add(&[[0, protocol], (datagram.len() as u16).to_be_bytes()].concat());
    sum.add(datagram);
    sum.finish()
}

/// The sum over the pseudo header alone, as a sender leaves it to be completed.
fn partial(addresses: [[u8; 4]; 2], protocol: u8, len: usize) -> [u8; 2] {
    let mut sum = Sum::new();
    sum.add(&addresses.concat());
    sum.add(&[[0, protocol], (len as u16).to_be_bytes()].concat());
    (!sum.finish()).to_be_bytes()
}

/// A frame from the guest to the host.
fn to_host(protocol: u8, datagram: &[u8]) -> Vec<u8> {
    by_host([GUEST, HOST], protocol, datagram)
}

/// A frame from the guest that the host gets, and forwards if it is not the destination.
fn by_host(addresses: [[u8; 4]; 2], protocol: u8, datagram: &[u8]) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0].to_vec();
    header[2..4].copy_from_slice(&(20 + datagram.len() as u16).to_be_bytes());
    header.extend(addresses.concat());
    let mut sum = Sum::new();
    sum.add(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    [&HOST_MAC[..], &mac(0), &[8, 0], &header, datagram].concat()
}

const UDP: u8 = 17;
const TCP: u8 = 6;

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let words = [from, to, len, 0].map(u16::to_be_bytes).concat();
    [&words, payload].concat()
}

#[test]
fn the_host_answers_a_guest() {
    let mut world = host(modern());
    let mut request = [&[0xff; 6][..], &mac(0), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    request.extend([&mac(0)[..], &GUEST, &[0; 6], &HOST].concat());
    world.guests[0].send(&request);
    let answer = world.until("an answer to an ARP request", |_, received| {
        (received.frame[12..14] == [8, 6]).then_some(received.frame)
    });
    assert_eq!(answer[..12], [mac(0), HOST_MAC].concat());
    assert_eq!(answer[20..28], [&[0, 2][..], &HOST_MAC].concat());
    assert_eq!(answer[28..32], HOST);
}

#[test]
fn checksums_left_undone_pass_both_ways() {
    for features in [MODERN | Features::CSUM, OFFLOADS] {
        let mut world = host(Guest::new(features, Cut::Crumbs, RING));
        let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        // More than one read's worth.
        for number in 0..40u8 {
            socket.send_to(&[number; 333], "10.9.0.2:900").unwrap();
        }
        let mut number = 0;
        world.until("all datagrams", |_, received| {
            let datagram = ipv4(&received.frame, UDP)?;
            assert!(datagram[8..] == [number; 333], "{number}");
            if features.contains(Features::GUEST_CSUM) {
                assert_eq!(received.header.flags, NetHeader::NEEDS_CSUM);
                assert_eq!((received.header.csum_start, received.header.csum_offset), (34, 6));
            } else {
                assert_eq!(received.header.flags, 0);
                assert_eq!(checksum(HOST, GUEST, UDP, datagram), 0);
            }
            number += 1;
            (number == 40).then_some(())
        });

        let mut datagram = udp(900, 700, &[7; 99]);
        datagram[6..8].copy_from_slice(&partial([GUEST, HOST], UDP, 107));
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 6,
            ..NetHeader::default()
        };
        world.guests[0].send_with(header, &to_host(UDP, &datagram));
        world.breathe();
        let mut buffer = [0; 2000];
        let (len, from) = socket.recv_from(&mut buffer).expect("the datagram arrives in time");
        assert_eq!((&buffer[..len], from.to_string()), (&[7; 99][..], "10.9.0.2:900".to_owned()));
    }
}

/// The guest's end of a TCP connection.
struct Connection {
    port: u16,
    sequence: u32,
    expected: u32,
}

impl Connection {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const PUSH: u8 = 8;
    const ACK: u8 = 16;

    /// A segment without its checksum. A SYN gets the option for a segment size.
    fn segment(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let options: &[u8] = if flags & Self::SYN != 0 { &[2, 4, 5, 0xb4] } else { &[] };
        let mut segment = [80u16, self.port].map(u16::to_be_bytes).concat();
        segment.extend([self.sequence, self.expected].map(u32::to_be_bytes).concat());
        segment.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(options);
        segment.extend(payload);
        segment
    }

    fn send(&self, guest: &mut Guest, flags: u8) {
        let mut segment = self.segment(flags, &[]);
        let sum = checksum(GUEST, HOST, TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        guest.send(&to_host(TCP, &segment));
    }
}

#[test]
fn segmentations_left_undone_pass_both_ways() {
    let mut world = host(Guest::new(OFFLOADS, Cut::Whole, RING));
    let from_host: Vec<u8> = (0..30_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let from_guest: Vec<u8> = (0..10_000u32).map(|n| ((n * 11) >> 2) as u8).collect();
    let (sent, wanted) = (from_host.clone(), from_guest.len());
    // A thread is in the network namespace of the one that starts it.
    let host = std::thread::spawn(move || {
        let mut stream = TcpStream::connect("10.9.0.2:80").expect("the guest accepts");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(&sent).unwrap();
        let mut received = vec![0; wanted];
        stream.read_exact(&mut received).map(|()| received)
    });

    let mut connection = world.until("a connection", |_, received| {
        let segment = ipv4(&received.frame, TCP)?;
        let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
        let port = u16::from_be_bytes([segment[0], segment[1]]);
        Some(Connection { port, sequence: 1000, expected: sequence + 1 })
    });
    connection.send(&mut world.guests[0], Connection::SYN | Connection::ACK);
    connection.sequence += 1;

    let mut stream = Vec::new();
    let mut largest = 0;
    world.until("the host's stream", |guest, received| {
        let segment = ipv4(&received.frame, TCP)?;
        let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
        let payload = &segment[usize::from(segment[12] >> 4) * 4..];
        if payload.is_empty() || sequence != connection.expected {
            return None;
        }
        let header = received.header;
        assert_eq!(header.flags, NetHeader::NEEDS_CSUM);
        assert_eq!((header.csum_start, header.csum_offset), (34, 16));
        if payload.len() > 1460 {
            assert_eq!(header.gso_type, NetHeader::GSO_TCPV4);
            assert!((500..=1460).contains(&header.gso_size), "{header:?}");
        }
        largest = largest.max(payload.len());
        stream.extend_from_slice(payload);
        connection.expected += payload.len() as u32;
        connection.send(guest, Connection::ACK);
        (stream.len() == from_host.len()).then_some(())
    });
    assert!(stream == from_host);
    assert!(largest > 1460, "no segmentation was left to us: {largest}");

    let mut segment = connection.segment(Connection::ACK | Connection::PUSH, &from_guest);
    let sum = partial([GUEST, HOST], TCP, segment.len());
    segment[16..18].copy_from_slice(&sum);
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    world.guests[0].send_with(header, &to_host(TCP, &segment));
    world.breathe();
    assert!(host.join().unwrap().expect("the guest's stream in time") == from_guest);
    connection.sequence += from_guest.len() as u32;
    connection.send(&mut world.guests[0], Connection::FIN | Connection::ACK);
    world.breathe();
    assert_eq!(world.counters(TAP)[DropReason::Refused], 0);
}

const USO: Features = MODERN
    .union(Features::CSUM)
    .union(Features::HOST_USO)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect()
}

/// Datagrams of this size between these addresses, which the guest leaves in one frame.
fn together(addresses: [[u8; 4]; 2], payload: &[u8], size: u16) -> (NetHeader, Vec<u8>) {
    let mut datagram = udp(900, 700, payload);
    let sum = partial(addresses, UDP, datagram.len());
    datagram[6..8].copy_from_slice(&sum);
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_UDP_L4,
        hdr_len: 42,
        gso_size: size,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    };
    (header, by_host(addresses, UDP, &datagram))
}

#[test]
fn datagrams_left_together_pass_both_ways_and_an_old_kernel_gets_and_sends_each() {
    const SIZE: u16 = 1000;
    let payload = noise(3500);
    for knows in [true, false] {
        for features in [USO, MODERN | Features::CSUM | Features::HOST_USO] {
            let guest = Guest::new(features, Cut::Whole, RING);
            let mut world = if knows { host(guest) } else { old_host(guest, Offloads::TcpEcn) };
            // The host forwards, and tells nobody that there is a shorter way.
            for (name, value) in [
                ("ip_forward", "1"),
                ("conf/all/send_redirects", "0"),
                ("conf/rw0/send_redirects", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
            }
            let name = format!("{features}, and a kernel that knows of UDP: {knows}");
            let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();

            let before = world.counters(TAP).sent.frames;
            let (header, frame) = together([GUEST, HOST], &payload, SIZE);
            world.guests[0].send_with(header, &frame);
            world.breathe();
            let frames = world.counters(TAP).sent.frames - before;
            assert_eq!(frames, if knows { 1 } else { 4 }, "{name}");
            for part in payload.chunks(SIZE.into()) {
                let mut buffer = [0; 2000];
                let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
                assert!(buffer[..len] == *part, "{name}");
            }

            // The host forwards what the guest sends to itself, and makes of it what its interface
            // may leave together.
            let before = world.counters(TAP).received.bytes;
            let (header, frame) = together([OTHER, GUEST], &payload, SIZE);
            world.guests[0].send_with(header, &frame);
            let mut parts = Vec::new();
            world.until("all datagrams", |guest, Received { header, frame, .. }| {
                let datagram = ipv4(&frame, UDP)?;
                if header.gso_type == NetHeader::GSO_UDP_L4 {
                    assert!(guest.features.contains(Features::GUEST_USO4), "{name}");
                    assert_eq!((header.gso_size, header.csum_offset), (SIZE, 6), "{name}");
                }
                if header.flags == 0 {
                    assert_eq!(checksum(OTHER, GUEST, UDP, datagram), 0, "{name}");
                }
                parts.push(datagram[8..].to_vec());
                (parts.concat().len() == payload.len()).then_some(())
            });
            assert!(parts.concat() == payload, "{name}");
            assert_eq!(parts.len(), if knows && features == USO { 1 } else { 4 }, "{name}");
            // Headers once, or for each.
            let headers = world.counters(TAP).received.bytes - before - payload.len() as u64;
            assert_eq!(headers, 42 * if knows { 1 } else { 4 }, "{name}");
            world.assert_drops(TAP, &[]);
        }
    }
}

#[test]
fn a_kernel_that_takes_nothing_gets_all_frames_complete() {
    let mut world = old_host(Guest::new(USO, Cut::Crumbs, RING), Offloads::None);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let payload = noise(2500);
    let (header, frame) = together([GUEST, HOST], &payload, 1400);
    world.guests[0].send_with(header, &frame);
    let (header, frame) = together([GUEST, HOST], &payload[..99], 1400);
    world.guests[0].send_with(NetHeader { gso_type: NetHeader::GSO_NONE, ..header }, &frame);
    world.breathe();
    for part in [&payload[..1400], &payload[1400..], &payload[..99]] {
        let mut buffer = [0; 2000];
        let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
        assert!(buffer[..len] == *part);
    }
    socket.send_to(&payload[..99], "10.9.0.2:900").unwrap();
    let header = world.until("a datagram", |_, received| {
        ipv4(&received.frame, UDP).map(|datagram| {
            assert_eq!(checksum(HOST, GUEST, UDP, datagram), 0);
            received.header
        })
    });
    assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
    world.assert_drops(TAP, &[]);
}

/// What this kernel refuses though it has USO: more segments than it wants in one frame, and a size
/// that means something else to it.
#[test]
fn sizes_that_the_kernel_refuses_are_segmented_for_it() {
    let mut world = host(Guest::new(OFFLOADS | USO, Cut::Whole, RING));
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let payload = noise(150 * 20);
    for (size, segments, frames) in
        [(100, 30, 1), (47, 64, 1), (46, 66, 66), (20, 150, 150), (u16::MAX, 1, 1)]
    {
        let (header, frame) = together([GUEST, HOST], &payload, size);
        // Only a hint, of which the kernel wants that it lies inside the frame.
        let header = NetHeader { hdr_len: u16::MAX, ..header };
        let before = world.counters(TAP).sent.frames;
        world.guests[0].send_with(header, &frame);
        world.breathe();
        assert_eq!(world.counters(TAP).sent.frames - before, frames, "{size}");
        let mut parts = payload.chunks(size.into());
        assert_eq!(parts.len(), segments);
        let mut buffer = [0; 4000];
        assert!(parts.all(|part| {
            let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
            buffer[..len] == *part
        }));
        world.assert_drops(TAP, &[]);
    }
}

/// Datagrams of one byte to the host, from either of two guests: so many in one frame.
fn bytes_together(from: usize, count: usize) -> (NetHeader, Vec<u8>) {
    let (header, mut frame) = together([GUEST, HOST], &noise(count), 1);
    frame[6..12].copy_from_slice(&mac(from));
    (header, frame)
}

#[test]
fn segments_of_one_byte_cost_a_bounded_time() {
    let mut world = host(Guest::new(USO, Cut::Whole, RING));
    world.guests[1] = Guest::new(USO, Cut::Whole, RING);
    world.plug(1);
    // In one breath: frames of each guest, and how many segments pass. The first one of a frame is free.
    let breaths: [([&[usize]; 2], u64); 8] = [
        ([&[60_000], &[]], 0),
        ([&[513], &[]], 513),
        ([&[513], &[]], 513),
        ([&[514], &[]], 0),
        // What is too large leaves room for others.
        ([&[400, 400, 115, 114, 65], &[]], 400 + 114),
        // The kernel takes so many itself.
        ([&[513, 64, 1], &[]], 513 + 2),
        ([&[300], &[300]], 300),
        ([&[300, 1], &[1]], 302),
    ];
    for (frames, passes) in breaths {
        let before = world.counters(TAP).sent.frames;
        let mut sent = 0;
        for (from, counts) in frames.into_iter().enumerate() {
            for count in counts {
                let (header, frame) = bytes_together(from, *count);
                world.guests[from].send_with(header, &frame);
                sent += 1;
            }
        }
        world.breathe();
        assert_eq!(world.counters(TAP).sent.frames - before, passes, "{frames:?}");
        assert_eq!(world.guests[0].reap() + world.guests[1].reap(), sent, "{frames:?}");
    }
    world.assert_drops(TAP, &[(DropReason::TooManySegments, 6)]);
}

#[test]
fn a_frame_that_is_completed_for_the_kernel_passes_when_no_segments_are_left() {
    let mut world = old_host(Guest::new(USO, Cut::Whole, RING), Offloads::None);
    let before = world.counters(TAP).sent.frames;
    let (header, frame) = bytes_together(0, 513);
    world.guests[0].send_with(header, &frame);
    let (header, frame) = bytes_together(0, 2);
    world.guests[0].send_with(header, &frame);
    world.guests[0].send_with(NetHeader { gso_type: NetHeader::GSO_NONE, ..header }, &frame);
    world.breathe();
    assert_eq!(world.counters(TAP).sent.frames - before, 513 + 1);
    world.assert_drops(TAP, &[(DropReason::TooManySegments, 1)]);
}

#[test]
fn a_frame_in_more_pieces_than_one_write_takes_arrives() {
    let mut world = host(Guest::new(MODERN, Cut::Whole, 4096));
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let payload = noise(1400);
    let mut datagram = udp(900, 700, &payload);
    let sum = checksum(GUEST, HOST, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    world.guests[0].send_bytewise(&to_host(UDP, &datagram));
    world.breathe();
    let mut buffer = [0; 2000];
    let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
    assert!(buffer[..len] == payload);
    world.assert_drops(TAP, &[]);
}

/// The numbers of the datagrams that came.
fn numbers(guest: &mut Guest) -> Vec<u8> {
    let frames = guest.frames();
    frames.iter().filter_map(|frame| ipv4(frame, UDP)).map(|datagram| datagram[8]).collect()
}

#[test]
fn frames_from_the_host_wait_for_a_receiver_that_is_full() {
    let mut world = host(modern());
    world.run_until_asleep();
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    (0..50u8).for_each(|number| _ = socket.send_to(&[number; 99], "10.9.0.2:900").unwrap());
    // For a moment all of them wait, here or in the kernel.
    for _ in 0..20 {
        world.breathe();
    }
    world.guests[0].post_many(200);
    // Nothing but the buffers wakes the worker: the kernel has told of its frames before.
    world.run_until_asleep();
    assert_eq!(numbers(&mut world.guests[0]), (0..50).collect::<Vec<_>>());
    world.assert_drops(0, &[]);
    world.assert_drops(TAP, &[]);
}

#[test]
fn what_is_held_when_it_stops_is_counted() {
    let mut world = host(modern());
    world.run_until_asleep();
    let counts = |world: &World| [0, TAP].map(|port| world.graph.counters(world.ports[port]));
    let [guest, tap] = counts(&world);
    let before = (guest.sent.frames, tap.received.frames);
    world.guests[0].post_many(5);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    (0..9u8).for_each(|number| _ = socket.send_to(&[number; 99], "10.9.0.2:900").unwrap());
    (0..2).for_each(|_| _ = world.breathe());
    world.graph.stop_all();
    let [guest, tap] = counts(&world);
    assert_eq!((guest.sent.frames - before.0, tap.received.frames - before.1), (5, 9));
    assert_eq!(tap[DropReason::Stopped], 4);
    world.assert_drops(0, &[]);
}

#[test]
fn frames_from_the_host_pass_by_those_that_wait() {
    let mut world = host(modern());
    ip("neighbour add 10.9.0.3 lladdr 52:54:00:00:00:01 dev rw0");
    world.run_until_asleep();
    world.guests[1].post_many(100);
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    (0..40u8).for_each(|number| _ = socket.send_to(&[number; 99], "10.9.0.2:900").unwrap());
    socket.send_to(&[77; 99], "10.9.0.3:900").unwrap();
    let start = world.now;
    while world.guests[1].frames().is_empty() {
        assert!(world.live_on(), "the worker sleeps, and leaves a frame in the kernel");
        assert!(world.now - start < 4 * BLOCK, "the frame is stuck behind the others");
    }
    world.guests[0].post_many(100);
    world.breathe();
    let waited = numbers(&mut world.guests[0]);
    assert!(!waited.is_empty() && waited.is_sorted(), "{waited:?}");
}

/// Bursts of frames of many sizes, some of which the kernel does not take as they are: the host has to
/// receive each, and in order, however they are written.
fn all_kinds_arrive_in_order(world: &mut World) {
    let socket = socket();
    let mut sent = Vec::new();
    for round in 0..3 {
        let before = world.counters(TAP).sent.frames;
        let mut pieces = 0;
        for number in 0..BURST {
            let payload = noise(20 + 23 * number + round);
            if number % 9 == 7 {
                // Segmented for it.
                let (header, frame) = together([GUEST, HOST], &payload, u16::MAX);
                world.guests[0].send_with(header, &frame);
            } else if number % 9 == 4 {
                let (header, frame) = together([GUEST, HOST], &payload, 100);
                world.guests[0].send_with(header, &frame);
                pieces += payload.len().div_ceil(100);
                sent.extend(payload.chunks(100).map(<[u8]>::to_vec));
                continue;
            } else {
                let mut datagram = udp(900, 700, &payload);
                let sum = checksum(GUEST, HOST, UDP, &datagram);
                datagram[6..8].copy_from_slice(&sum.to_be_bytes());
                world.guests[0].send(&to_host(UDP, &datagram));
            }
            pieces += 1;
            sent.push(payload);
        }
        world.breathe();
        assert_eq!(world.guests[0].reap(), BURST);
        assert!(world.counters(TAP).sent.frames - before <= pieces as u64);
        let mut buffer = [0; 4000];
        for payload in sent.drain(..) {
            let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
            assert!(buffer[..len] == payload, "{round}: {len} of {}", payload.len());
        }
    }
    world.assert_drops(TAP, &[]);
}

/// A guest with all of them, beside the host.
fn guest_of_all_kinds() -> Guest {
    Guest::new(OFFLOADS | USO, Cut::Crumbs, 4096)
}

#[test]
fn a_burst_to_the_host_arrives_in_order() {
    let mut world = host(guest_of_all_kinds());
    assert!(is_by_bursts(&mut world));
    all_kinds_arrive_in_order(&mut world);
}

/// As in a container whose seccomp profile leaves io_uring out: from the start, or from some moment on.
#[test]
fn a_burst_to_the_host_arrives_in_order_without_io_uring() {
    refuse(Call::Setup).unwrap();
    let mut world = host(guest_of_all_kinds());
    assert!(!is_by_bursts(&mut world));
    all_kinds_arrive_in_order(&mut world);
}

#[test]
fn a_burst_to_the_host_arrives_in_order_when_io_uring_fails() {
    let mut world = host(guest_of_all_kinds());
    assert!(is_by_bursts(&mut world));
    refuse(Call::Enter).unwrap();
    all_kinds_arrive_in_order(&mut world);
    assert!(!is_by_bursts(&mut world));
}

#[test]
fn a_breath_to_the_host_does_not_allocate() {
    let mut world = host(guest_of_all_kinds());
    let mut counts = Vec::new();
    for round in 0..5 {
        for number in 0..BURST {
            let payload = noise(20 + 15 * number);
            world.guests[0].send(&to_host(UDP, &udp(900, 700, &payload)));
        }
        counts.push(measure(|| assert!(world.breathe())).count_total);
        assert_eq!(world.guests[0].reap(), BURST);
        assert_eq!(world.counters(TAP).sent.frames, (round + 1) * BURST as u64);
    }
    assert!(counts[0] > 0, "nothing is counted at all");
    assert_eq!(counts[1..], [0; 4]);
    world.assert_drops(TAP, &[]);
}

fn is_by_bursts(world: &mut World) -> bool {
    let tap: &mut TapPort = world.graph.get(world.ports[TAP]).expect("the port is alive");
    tap.one_by_one().is_none()
}

/// A frame that goes to everybody goes to each as it came.
#[test]
fn a_burst_to_everybody_arrives_at_the_host_and_at_guests() {
    let mut world = host(modern());
    let socket = UdpSocket::bind("0.0.0.0:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    world.guests[1].post_many(BURST);
    let frames: Vec<Vec<u8>> = (0..BURST)
        .map(|number| {
            let mut datagram = udp(900, 700, &noise(8 + number));
            let sum = checksum(GUEST, HOST, UDP, &datagram);
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
            let mut frame = to_host(UDP, &datagram);
            frame[..6].copy_from_slice(&[0xff; 6]);
            frame
        })
        .collect();
    frames.iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert_eq!(world.guests[1].frames(), frames);
    for number in 0..BURST {
        let mut buffer = [0; 2000];
        let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
        assert!(buffer[..len] == noise(8 + number));
    }
    world.assert_drops(TAP, &[]);
}

#[test]
fn an_interface_that_is_down_takes_nothing_until_it_is_up() {
    let mut world = host(modern());
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut datagram = udp(900, 700, b"hello");
    let sum = checksum(GUEST, HOST, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip("link set rw0 down");
    // Each by itself, and all together.
    for (count, dropped) in [(3, 3), (BURST, 3 + BURST)] {
        (0..count).for_each(|_| world.guests[0].send(&to_host(UDP, &datagram)));
        world.breathe();
        assert_eq!(world.guests[0].reap(), count);
        world.assert_drops(TAP, &[(DropReason::ReceiverDown, dropped as u64)]);
    }
    ip("link set rw0 up");
    world.guests[0].send(&to_host(UDP, &datagram));
    world.breathe();
    let mut buffer = [0; 100];
    assert_eq!(socket.recv(&mut buffer).expect("the datagram arrives in time"), 5);
    assert!(world.faults.is_empty());
}

#[test]
fn an_interface_that_is_deleted_is_reported_once_and_the_others_go_on() {
    let mut world = host(modern());
    world.breathe();
    ip("link delete rw0");
    for seed in 0..4 {
        world.guests[1].post_many(1);
        world.guests[0].send(&frame(0, 1, 60, seed));
        // The first of them are how it is found out, if they are sooner than a read.
        let to_host = [&HOST_MAC[..], &mac(0), &[8, 0, 1, 2, 3]].concat();
        (0..8).for_each(|_| world.guests[0].send(&to_host));
        world.breathe();
        assert_eq!(world.guests[1].frames()[0], frame(0, 1, 60, seed));
        world.guests[1].send(&frame(1, 0, 60, seed));
        world.breathe();
    }
    let fault = world.fault(TAP);
    assert!(fault.starts_with("the interface is gone: "), "{fault}");
    world.assert_drops(TAP, &[(DropReason::ReceiverDown, 32)]);
}

#[test]
fn all_workers_write_to_the_host_and_one_reads() {
    let mut crew = Crew::with_tap(2, vec![modern(), modern()], Some(network::open(request())));
    configure();
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    // Each guest is read by a worker of its own, which writes what it read.
    for number in 0..20u8 {
        for guest in [0, 1] {
            let mut frame = to_host(UDP, &udp(900, 700, &[number, guest as u8]));
            frame[6..12].copy_from_slice(&mac(guest));
            crew.guests[guest].send(&frame);
            crew.breathe(guest);
            let mut buffer = [0; 100];
            let len = socket.recv(&mut buffer).expect("the datagram arrives in time");
            assert_eq!(buffer[..len], [number, guest as u8]);
        }
    }
    let counters = crew.counters_of_parts(TAP);
    assert_eq!([0, 1].map(|part: usize| counters[part].sent.frames), [20, 20]);

    while crew.breathe_all() {}
    crew.guests[0].post_many(10);
    for number in 0..10u8 {
        socket.send_to(&[number; 333], "10.9.0.2:900").unwrap();
    }
    for _ in 0..20 {
        assert!(!crew.breathe(1), "there is nothing to read for this one");
        crew.now += 10_000;
    }
    assert!(crew.guests[0].frames().is_empty());
    let start = Instant::now();
    let mut came = Vec::new();
    while came.len() < 10 {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for ten datagrams: {} came", came.len());
        crew.breathe(0);
        came.extend(crew.guests[0].frames());
    }
    for (number, frame) in (0..).zip(&came) {
        assert_eq!(ipv4(frame, UDP).expect("a datagram")[8..], [number; 333]);
    }
    let counters = crew.counters_of_parts(TAP);
    assert_eq!([0, 1].map(|part: usize| counters[part].received.frames), [10, 0]);
    crew.assert_drops(TAP, &[]);
}

/// A tap with so many queues, in a network of its own, which knows where both guests are.
fn crew_with_queues(workers: usize, queues: u16) -> Crew {
    let queues = network::open(Request { queues, ..request() });
    let crew = Crew::with_tap(workers, vec![modern(), modern()], Some(queues));
    configure();
    ip("neighbour add 10.9.0.3 lladdr 52:54:00:00:00:01 dev rw0");
    crew
}

/// A datagram to the host from a guest, by its own address.
fn from_guest(guest: usize, port: u16, payload: &[u8]) -> Vec<u8> {
    let source = [10, 9, 0, 2 + guest as u8];
    let mut frame = by_host([source, HOST], UDP, &udp(port, 700, payload));
    frame[6..12].copy_from_slice(&mac(guest));
    frame
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// Flows: enough that all are where they should be by chance once in a million times.
const FLOWS: u16 = 20;

/// Each worker reads a queue, and writes to it; and the kernel answers by the queue that a flow was
/// written to.
#[test]
fn what_a_worker_writes_is_answered_to_the_same_worker() {
    let mut crew = crew_with_queues(2, 2);
    let socket = socket();
    for port in 0..FLOWS {
        for guest in [0, 1] {
            crew.guests[guest].send(&from_guest(guest, 900 + port, b"question"));
            let worker = crew.worker_of(guest, 0);
            crew.breathe(worker);
            let (_, address) = socket.recv_from(&mut [0; 100]).expect("a datagram in time");
            socket.send_to(b"answer", address).unwrap();
        }
    }
    let count = u64::from(FLOWS);
    for guest in [0, 1] {
        crew.guests[guest].post_many(FLOWS.into());
    }
    // Only one of them, so that it is this one's own queue that it reads.
    for worker in [0, 1] {
        let start = Instant::now();
        while crew.counters_of_parts(TAP)[worker].received.frames < count {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for answers to worker {worker}");
            crew.breathe(worker);
        }
    }
    for guest in [0, 1] {
        let answers = crew.guests[guest].frames();
        assert_eq!(answers.len(), usize::from(FLOWS));
        assert!(answers.iter().all(|frame| frame[..6] == mac(guest)));
    }
    let parts = crew.counters_of_parts(TAP);
    assert_eq!([0, 1].map(|part: usize| parts[part].received.frames), [count; 2]);
    assert_eq!([0, 1].map(|part: usize| parts[part].sent.frames), [count; 2]);
    crew.assert_drops(TAP, &[]);
}

#[test]
fn one_worker_reads_several_queues_and_keeps_each_flow_in_order() {
    let mut crew = crew_with_queues(1, 3);
    let socket = socket();
    crew.guests[0].post_many(200);
    // The kernel has not heard of any of them, and spreads them over the queues.
    for number in 0..5u8 {
        for port in 0..FLOWS {
            let address = format!("10.9.0.2:{}", 900 + port);
            socket.send_to(&[number; 99], address).unwrap();
        }
    }
    let start = Instant::now();
    let mut next = [0; FLOWS as usize];
    while next != [5; FLOWS as usize] {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for datagrams: {next:?} came");
        crew.breathe(0);
        for frame in crew.guests[0].frames() {
            let datagram = ipv4(&frame, UDP).expect("a datagram");
            let port = u16::from_be_bytes([datagram[2], datagram[3]]);
            let next = &mut next[usize::from(port - 900)];
            assert_eq!(datagram[8], *next, "of flow {port}");
            *next += 1;
        }
    }
    for number in 0..5u8 {
        for port in 0..FLOWS {
            crew.guests[0].send(&from_guest(0, 900 + port, &[number]));
        }
    }
    while crew.breathe(0) {}
    let mut next = [0; FLOWS as usize];
    for _ in 0..5 * FLOWS {
        let mut payload = [0; 100];
        let (_, from) = socket.recv_from(&mut payload).expect("a datagram in time");
        let next = &mut next[usize::from(from.port() - 900)];
        assert_eq!(payload[0], *next, "of flow {from}");
        *next += 1;
    }
    crew.assert_drops(TAP, &[]);
}

/// As the host of a network behind it, whose routers take no more: 1492 bytes, and tags beside them.
#[test]
fn frames_over_the_mtu_are_counted_and_tags_are_not_part_of_it() {
    for offloads in [Offloads::ALL, Offloads::None] {
        let mut world = old_host(Guest::new(OFFLOADS, Cut::Whole, RING), offloads);
        ip("link set rw0 mtu 9000");
        let port: &mut TapPort = world.graph.get(world.ports[TAP]).unwrap();
        port.set_mtu(1492);
        let plain = |len: usize, tags: usize| {
            let mut bytes = frame(0, TAP, len - 4 * tags, 0);
            (0..tags).for_each(|_| _ = bytes.splice(12..12, [0x81, 0, 0, 5]));
            (NetHeader::default(), bytes)
        };
        // With 12 bytes of options in each segment.
        let segmented = |size: u16| {
            let mut tcp = [0; 32];
            tcp[12..14].copy_from_slice(&[0x80, 0x10]);
            let datagram = [&tcp[..], &[7; 5000]].concat();
            let mut bytes = to_host(TCP, &datagram);
            bytes[50..52].copy_from_slice(&partial([GUEST, HOST], TCP, datagram.len()));
            let (flags, gso_type) = (NetHeader::NEEDS_CSUM, NetHeader::GSO_TCPV4);
            let [csum_start, csum_offset] = [34, 16];
            let header = NetHeader {
                flags,
                gso_type,
                hdr_len: 66,
                gso_size: size,
                csum_start,
                csum_offset,
                ..NetHeader::default()
            };
            (header, bytes)
        };
        for ((header, bytes), passes) in [
            (plain(1506, 0), true),
            (plain(1507, 0), false),
            (plain(1510, 1), true),
            (plain(1511, 1), false),
            (plain(1514, 2), true),
            (plain(1515, 2), false),
            (segmented(1440), true),
            (segmented(1441), false),
        ] {
            let counters = world.counters(TAP);
            let before = (counters.sent.frames, counters[DropReason::OverMtu]);
            world.guests[0].send_with(header, &bytes);
            world.breathe();
            let counters = world.counters(TAP);
            let after = (counters.sent.frames, counters[DropReason::OverMtu]);
            let what = format!("{} bytes, segments of {}", bytes.len(), header.gso_size);
            assert_eq!(
                (after.0 > before.0, after.1 - before.1),
                (passes, u64::from(!passes)),
                "{what}"
            );
            world.guests[0].reap();
        }
    }
}

#[test]
fn an_interface_that_control_says_is_down_is_not_written_to() {
    let mut crew = crew_with_queues(1, 1);
    let socket = socket();
    crew.tap(0).0.set_link(false);
    crew.guests[0].send(&from_guest(0, 900, b"lost"));
    crew.breathe(0);
    crew.assert_drops(TAP, &[(DropReason::ReceiverDown, 1)]);
    crew.tap(0).0.set_link(true);
    crew.guests[0].send(&from_guest(0, 900, b"found"));
    crew.breathe(0);
    let mut payload = [0; 100];
    let len = socket.recv(&mut payload).expect("a datagram in time");
    assert_eq!(&payload[..len], b"found");
}

/// What was read before stays when the queues go.
#[test]
fn a_part_without_queues_drops_what_it_is_given_and_delivers_what_it_has() {
    let mut crew = crew_with_queues(1, 1);
    socket().send_to(b"early", "10.9.0.2:900").unwrap();
    let start = Instant::now();
    while crew.counters(TAP).received.frames == 0 {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for a datagram");
        crew.breathe(0);
    }
    assert!(crew.guests[0].frames().is_empty(), "there is no room for it yet");
    let (tap, _) = crew.tap(0);
    assert!(tap.detach().is_some());
    assert!(tap.detach().is_none());
    crew.guests[0].send(&from_guest(0, 900, b"lost"));
    crew.guests[0].post_many(1);
    crew.breathe_all();
    crew.breathe_all();
    assert_eq!(ipv4(&crew.guests[0].frames()[0], UDP).expect("a datagram")[8..], *b"early");
    crew.assert_drops(TAP, &[(DropReason::ReceiverDown, 1)]);
}

/// More than are read one by one before they are read together, and then there are no more.
#[test]
fn what_has_waited_in_the_tap_arrives_in_order() {
    let mut world = host(Guest::new(OFFLOADS, Cut::Whole, RING));
    all_that_waits_arrives_in_order(&mut world);
    assert!(is_by_bursts(&mut world));
}

#[test]
fn what_has_waited_in_the_tap_arrives_in_order_when_io_uring_fails() {
    let mut world = host(Guest::new(OFFLOADS, Cut::Whole, RING));
    refuse(Call::Enter).unwrap();
    all_that_waits_arrives_in_order(&mut world);
}

fn all_that_waits_arrives_in_order(world: &mut World) {
    const WAITING: u16 = 400;
    let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
    for number in 0..WAITING {
        socket.send_to(&number.to_be_bytes(), "10.9.0.2:900").unwrap();
    }
    let mut next = 0u16;
    world.until("all datagrams", |_, received| {
        let datagram = ipv4(&received.frame, UDP)?;
        assert_eq!(datagram[8..10], next.to_be_bytes());
        next += 1;
        (next == WAITING).then_some(())
    });
    world.assert_drops(TAP, &[]);
}

/// Whether some epoll instance of this process watches what this descriptor was when it was added.
fn is_watched(descriptor: RawFd) -> bool {
    let all = fs::read_dir("/proc/self/fdinfo").unwrap();
    // That of the directory itself is gone.
    let infos = all.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
    let watched: Vec<String> = infos.collect();
    let mut watched = watched.iter().flat_map(|info| info.lines());
    watched.any(|line| {
        line.strip_prefix("tfd:")
            .and_then(|rest| rest.split_whitespace().next())
            .is_some_and(|number| number == descriptor.to_string())
    })
}

/// As when it was inherited.
#[test]
fn a_queue_that_somebody_else_has_open_is_watched_no_more_when_its_port_has_gone() {
    let queues = network::open(Request { queues: 2, ..request() });
    let elsewhere: Vec<_> =
        queues.iter().map(|queue| queue.as_fd().try_clone_to_owned().unwrap()).collect();
    let descriptors: Vec<_> = queues.iter().map(|queue| queue.as_fd().as_raw_fd()).collect();
    let poller = Poller::new().unwrap();
    let mut parts = TapPort::parts(queues, 2);
    parts.iter_mut().for_each(|part| part.register(&poller).unwrap());
    assert!(descriptors.iter().all(|descriptor| is_watched(*descriptor)));
    parts.pop();
    assert_eq!(descriptors.iter().map(|it| is_watched(*it)).collect::<Vec<_>>(), [true, false]);
    parts.pop();
    assert!(!descriptors.iter().any(|descriptor| is_watched(*descriptor)));
    drop(elsewhere);
}

/// Of threads that sleep, which nobody wakes but the kernel.
#[test]
fn an_interface_that_is_deleted_is_reported_once_and_one_that_comes_back_is_used() {
    let mut live = crew_with_queues(2, 1).live(Mode::Interrupt);
    for round in 0..3u8 {
        ip("link delete rw0");
        let (port, fault) = live.faults.recv_timeout(LIMIT).expect("the fault in time");
        assert_eq!(port, TAP);
        assert!(fault.starts_with("the interface is gone: "), "{fault}");
        live.end_of_breath();
        assert!(live.faults.try_recv().is_err(), "it is said once");

        // With more queues than before: the second worker begins to read.
        live.attach(Request { queues: 2, ..request() }.open().unwrap());
        configure();
        let socket = socket();
        live.guests[0].post_many(FLOWS.into());
        live.guests[0].ring(RECEIVE).kick.fire();
        for port in 0..FLOWS {
            socket.send_to(&[round; 99], format!("10.9.0.2:{}", 900 + port)).unwrap();
        }
        let start = Instant::now();
        let mut came = 0;
        while came < usize::from(FLOWS) {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for datagrams: {came} came");
            let frames = live.guests[0].frames();
            let is_right = |frame: &&Vec<u8>| ipv4(frame, UDP).is_some_and(|it| it[8] == round);
            came += frames.iter().filter(is_right).count();
            std::thread::yield_now();
        }
    }
    live.stop();
}
