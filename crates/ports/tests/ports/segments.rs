//! A sender that leaves everything undone, and receivers that take nothing of it, or all but one
//! thing: what arrives are frames of the usual size with all of their checksums, as etherparse sees
//! it.

use engine::DropReason;
use etherparse::{
    Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    NetHeaders, PacketBuilder, PacketBuilderStep, PacketHeaders, TcpHeader, TransportHeader,
    VlanId,
};
use wire::virtio::{Features, NetHeader};

use crate::guest::{CUTS, Cut, Guest, Received};
use crate::world::{MODERN, World, mac};

pub const SENDS_ALL: Features = Features::VERSION_1
    .union(Features::INDIRECT_DESC)
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::HOST_USO);

pub const TAKES_ALL: Features = Features::GUEST_CSUM
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

/// Bytes of an IP packet on the wire.
const MTU: usize = 1500;

const FORMATS: [Features; 2] = [Features::NONE, Features::RING_PACKED];
const RING: u16 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp4,
    /// With ECN.
    Tcp4Ecn,
    Tcp6,
    /// Behind extension headers.
    Tcp6Extended,
    Udp4,
    Udp6,
}

pub const KINDS: [Kind; 6] =
    [Kind::Tcp4, Kind::Tcp4Ecn, Kind::Tcp6, Kind::Tcp6Extended, Kind::Udp4, Kind::Udp6];

const IDENTIFICATION: u16 = 0xffff;
const SEQUENCE: u32 = u32::MAX - 2000;

impl Kind {
    const fn is_udp(self) -> bool {
        matches!(self, Self::Udp4 | Self::Udp6)
    }

    const fn gso_type(self) -> u8 {
        match self {
            Self::Tcp4 => NetHeader::GSO_TCPV4,
            Self::Tcp4Ecn => NetHeader::GSO_TCPV4 | NetHeader::GSO_ECN,
            Self::Tcp6 | Self::Tcp6Extended => NetHeader::GSO_TCPV6,
            Self::Udp4 | Self::Udp6 => NetHeader::GSO_UDP_L4,
        }
    }

    fn ip(self) -> IpHeaders {
        let [source, destination] = [1, 2];
        match self {
            Self::Tcp4 | Self::Tcp4Ecn | Self::Udp4 => {
                let address = |host| [10, 0, 0, host];
                let (source, destination) = (address(source), address(destination));
                let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, source, destination);
                if let Ok(header) = &mut header {
                    header.identification = IDENTIFICATION;
                }
                IpHeaders::Ipv4(header.unwrap(), Default::default())
            }
            Self::Tcp6 | Self::Tcp6Extended | Self::Udp6 => {
                let address = |host| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
                let (source, destination) = (address(source), address(destination));
                let header =
                    Ipv6Header { source, destination, hop_limit: 64, ..Default::default() };
                // Padding: six bytes of it, and fourteen.
                let options = |len: usize| {
                    let mut padding = vec![0; len];
                    padding[..2].copy_from_slice(&[1, len as u8 - 2]);
                    Some(Ipv6RawExtHeader::new_raw(IpNumber::TCP, &padding).unwrap())
                };
                let extensions = if self == Self::Tcp6Extended {
                    let (hop_by_hop_options, destination_options) = (options(6), options(14));
                    Ipv6Extensions { hop_by_hop_options, destination_options, ..Default::default() }
                } else {
                    Ipv6Extensions::default()
                };
                IpHeaders::Ipv6(header, extensions)
            }
        }
    }
}

/// A frame as its sender leaves it.
pub struct Packet {
    kind: Kind,
    tags: usize,
    pub header: NetHeader,
    pub frame: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    pub fn new(kind: Kind, tags: usize, payload: usize) -> Self {
        let payload: Vec<u8> =
            (0..payload as u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 23) as u8).collect();
        let link: PacketBuilderStep<Ethernet2Header> = PacketBuilder::ethernet2(mac(0), mac(1));
        let vlan = |id| VlanId::try_new(id).unwrap();
        let ip = match tags {
            0 => link.ip(kind.ip()),
            1 => link.single_vlan(vlan(5)).ip(kind.ip()),
            _ => link.double_vlan(vlan(5), vlan(6)).ip(kind.ip()),
        };
        let mut frame = Vec::new();
        if kind.is_udp() {
            ip.udp(900, 700).write(&mut frame, &payload).unwrap();
        } else {
            let mut tcp = TcpHeader::new(900, 700, SEQUENCE, 0x1000);
            (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, true, kind == Kind::Tcp4Ecn);
            // Two that do nothing, and a timestamp.
            tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).unwrap();
            ip.tcp_header(tcp).write(&mut frame, &payload).unwrap();
        }
        let (len, offset) = if kind.is_udp() { (8, 6) } else { (32, 16) };
        let start = frame.len() - payload.len() - len;
        let network = start - 14 - 4 * tags;
        // The checksum is left undone: what is there is the sum over the pseudo header.
        let transport_len = frame.len() - start;
        let addresses = match kind.ip() {
            IpHeaders::Ipv4(ip, _) => [ip.source, ip.destination].concat(),
            IpHeaders::Ipv6(ip, _) => [ip.source, ip.destination].concat(),
        };
        let protocol = if kind.is_udp() { 17 } else { 6 };
        let pseudo = [&addresses[..], &[0, protocol], &(transport_len as u32).to_be_bytes()];
        let sum = sum(&pseudo.concat());
        frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            gso_type: kind.gso_type(),
            hdr_len: (start + len) as u16,
            gso_size: (MTU - network - len) as u16,
            csum_start: start as u16,
            csum_offset: offset as u16,
            num_buffers: 0,
        };
        Self { kind, tags, header, frame, payload }
    }

    pub fn send(&self, guest: &mut Guest) {
        guest.send_with(self.header, &self.frame);
    }

    /// Segments that this makes.
    pub fn count(&self) -> usize {
        match self.header.gso_type {
            NetHeader::GSO_NONE => 1,
            _ => self.payload.len().div_ceil(self.header.gso_size.into()).max(1),
        }
    }

    /// Checks that these are the segments of this frame.
    #[track_caller]
    pub fn check(&self, received: &[Received]) {
        let Self { kind, tags, payload, .. } = self;
        let what = format!("{kind:?} behind {tags} tags, {} bytes", payload.len());
        assert_eq!(received.len(), self.count(), "{what}");
        let mut together = Vec::new();
        for (number, Received { header, frame, .. }) in received.iter().enumerate() {
            let (is_first, is_last) = (number == 0, number + 1 == received.len());
            assert_eq!((header.flags, header.gso_type, header.gso_size), (0, 0, 0), "{what}");
            assert!(frame.len() <= 14 + 4 * tags + MTU, "{what}: {} bytes", frame.len());
            let packet = PacketHeaders::from_ethernet_slice(frame).expect("a whole packet");
            let vlans: Vec<u16> = packet.vlan_ids().iter().map(|vlan| vlan.value()).collect();
            assert_eq!(vlans, [5, 6][..*tags], "{what}");
            let part = packet.payload.slice();
            match packet.transport.expect("a transport header") {
                TransportHeader::Tcp(tcp) => {
                    let sequence = SEQUENCE.wrapping_add(together.len() as u32);
                    assert_eq!(tcp.sequence_number, sequence, "{what}");
                    assert_eq!((tcp.psh, tcp.fin), (is_last, is_last), "{what}");
                    assert_eq!(tcp.cwr, is_first && *kind == Kind::Tcp4Ecn, "{what}");
                    let expected = match packet.net.as_ref().expect("an IP header") {
                        NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(ip, part),
                        NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(ip, part),
                        other => panic!("{other:?}"),
                    };
                    // Zero has two forms.
                    let expected = expected.unwrap();
                    assert_eq!(tcp.checksum % 0xffff, expected % 0xffff, "{what}");
                }
                TransportHeader::Udp(udp) => {
                    assert_eq!(usize::from(udp.length), 8 + part.len(), "{what}");
                    let expected = match packet.net.as_ref().expect("an IP header") {
                        NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(ip, part),
                        NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(ip, part),
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(udp.checksum, expected.unwrap(), "{what}");
                }
                other => panic!("{other:?}"),
            }
            if let Some(NetHeaders::Ipv4(ip, _)) = packet.net {
                assert_eq!(ip.identification, IDENTIFICATION.wrapping_add(number as u16));
                assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "{what}");
            }
            together.extend_from_slice(part);
        }
        assert!(together == *payload, "{what}: bytes out are bytes in");
    }
}

/// The sum of RFC 1071, one word at a time.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A guest that sends all kinds, and one with these features.
fn pair(format: Features, cut: Cut, receiver: Features) -> World {
    let [sender, receiver] = [SENDS_ALL, receiver].map(|features| features | format);
    World::pair([Guest::new(sender, cut, RING), Guest::new(receiver, Cut::Whole, RING)])
}

/// Has so many buffers posted that there is room for these frames of the usual size: two for each,
/// or one where buffers cannot be merged.
fn post(guest: &mut Guest, frames: usize) {
    let mergeable = guest.features.contains(Features::MRG_RXBUF);
    let (each, len) = if mergeable { (2, 1000) } else { (1, 12 + 14 + 8 + 1500) };
    let missing = (frames * each).saturating_sub(guest.receive.outstanding());
    (0..missing).for_each(|_| _ = guest.post(len));
}

#[test]
fn a_receiver_without_offloads_gets_complete_frames_of_the_usual_size() {
    let receivers = [
        MODERN,
        Features::VERSION_1,
        Features::MRG_RXBUF,
        Features::NONE,
        MODERN | Features::GUEST_CSUM,
    ];
    for receiver in receivers {
        for format in FORMATS {
            // Packed rings came with VERSION_1.
            if format != Features::NONE && !receiver.contains(Features::VERSION_1) {
                continue;
            }
            for (index, cut) in CUTS.into_iter().enumerate() {
                let mut world = pair(format, cut, receiver);
                for kind in KINDS {
                    for tags in 0..=2 {
                        // Of nothing, of one segment and a bit, of many.
                        for payload in [0, 1, 1400, 1477, 3000, 20_000 + 997 * index, 64_000] {
                            let mut packet = Packet::new(kind, tags, payload);
                            // A hint, which may be anything.
                            packet.header.hdr_len = [packet.header.hdr_len, 0, u16::MAX][tags];
                            post(&mut world.guests[1], packet.count());
                            packet.send(&mut world.guests[0]);
                            world.breathe();
                            packet.check(&world.guests[1].received());
                            assert_eq!(world.guests[0].reap(), 1);
                        }
                    }
                }
                world.assert_drops(0, &[]);
                world.assert_drops(1, &[]);
            }
        }
    }
}

#[test]
fn a_receiver_that_lacks_one_thing_gets_segments_of_what_needs_it_and_the_rest_as_it_is() {
    for (lacks, segmented) in [
        (Features::GUEST_CSUM, &KINDS[..]),
        (Features::GUEST_TSO4, &[Kind::Tcp4, Kind::Tcp4Ecn]),
        (Features::GUEST_TSO6, &[Kind::Tcp6, Kind::Tcp6Extended]),
        (Features::GUEST_ECN, &[Kind::Tcp4Ecn]),
        // Over which IP a datagram goes its virtio-net header does not say.
        (Features::GUEST_USO4, &[Kind::Udp4, Kind::Udp6]),
        (Features::GUEST_USO6, &[Kind::Udp4, Kind::Udp6]),
    ] {
        for format in FORMATS {
            let mut world = pair(format, Cut::Indirect, MODERN | TAKES_ALL.without(lacks));
            for kind in KINDS {
                let packet = Packet::new(kind, 1, 10_000);
                post(&mut world.guests[1], packet.count());
                packet.send(&mut world.guests[0]);
                world.breathe();
                let received = world.guests[1].received();
                if segmented.contains(&kind) {
                    packet.check(&received);
                } else {
                    let [received] = &received[..] else { panic!("{kind:?} without {lacks}") };
                    let num_buffers = received.header.num_buffers;
                    assert_eq!(received.header, NetHeader { num_buffers, ..packet.header });
                    assert!(received.frame == packet.frame, "{kind:?} without {lacks}");
                }
                world.guests[0].reap();
            }
            world.assert_drops(1, &[]);
        }
    }
}

#[test]
fn a_partial_checksum_alone_is_completed_behind_all_headers() {
    for receiver in [MODERN, Features::VERSION_1, Features::NONE] {
        let mut world = pair(Features::NONE, Cut::Crumbs, receiver);
        for kind in KINDS {
            for tags in 0..=2 {
                for payload in [1, 2, 100, 1392] {
                    let mut packet = Packet::new(kind, tags, payload);
                    packet.header.gso_type = NetHeader::GSO_NONE;
                    post(&mut world.guests[1], 1);
                    packet.send(&mut world.guests[0]);
                    world.breathe();
                    packet.check(&world.guests[1].received());
                    world.guests[0].reap();
                }
            }
        }
    }
}

/// A frame of many segments, for a receiver with buffers of several descriptors each, in tables or not.
fn pair_with(format: Features, cut: Cut) -> (World, Packet) {
    let receiver = Features::VERSION_1 | Features::INDIRECT_DESC | format;
    let sender = Guest::new(SENDS_ALL | format, Cut::Whole, RING);
    let mut packet = Packet::new(Kind::Tcp4, 0, 20_000);
    packet.header.gso_size = 100;
    (World::pair([sender, Guest::new(receiver, cut, RING)]), packet)
}

#[test]
fn segments_wait_for_all_buffers_that_the_ring_has_room_for() {
    for format in FORMATS {
        let (mut world, packet) = pair_with(format, Cut::Indirect);
        // Of two descriptors each, which are more together than the ring's, but not in the ring.
        world.guests[1].post_many(130);
        packet.send(&mut world.guests[0]);
        world.breathe();
        assert!(world.guests[1].received().is_empty(), "all of them wait");
        assert_eq!((packet.count(), world.guests[0].reap()), (200, 0));
        world.guests[1].post_many(70);
        world.breathe();
        packet.check(&world.guests[1].received());
        world.assert_drops(1, &[]);
    }
}

#[test]
fn segments_that_no_ring_has_room_for_go_as_far_as_there_is() {
    for format in FORMATS {
        let (mut world, packet) = pair_with(format, Cut::Crumbs);
        let mut buffers = 0;
        while world.guests[1].receive.has_room(Cut::Crumbs) {
            world.guests[1].post(2048);
            buffers += 1;
        }
        let free = world.guests[1].receive.room();
        assert!(free > 0 && buffers < packet.count(), "{buffers} and {free} descriptors");
        packet.send(&mut world.guests[0]);
        world.breathe();
        assert_eq!(world.guests[1].received().len(), buffers, "at once");
        assert_eq!(world.guests[0].reap(), 1);
        world.assert_drops(1, &[(DropReason::ReceiverFull, 1)]);
    }
}

/// The wire decides, not who segments: a receiver of large frames gets no larger segments than one
/// of small ones. As a switch does that has nothing but wires.
#[test]
fn segments_over_the_mtu_are_dropped_in_both_directions_whoever_makes_them() {
    for kind in KINDS {
        for receiver in [MODERN, MODERN | TAKES_ALL] {
            for limited in [0, 1] {
                let mut world = pair(Features::NONE, Cut::Whole, receiver);
                // Of a frame's length there is room for two tags; of its segments, too.
                world.port(limited).set_mtu(MTU as u16);
                let mut packet = Packet::new(kind, 2, 8000);
                post(&mut world.guests[1], 20);
                packet.send(&mut world.guests[0]);
                world.breathe();
                let name = format!("{kind:?} to {receiver}, limit at {limited}");
                let frames = if receiver == MODERN { packet.count() } else { 1 };
                assert_eq!(world.guests[1].received().len(), frames, "{name}");
                world.assert_drops(limited, &[]);

                // The twelve bytes of TCP's options are seen only where the headers are read.
                let is_read = limited == 1 && receiver == MODERN;
                packet.header.gso_size += if kind.is_udp() || is_read { 1 } else { 13 };
                packet.send(&mut world.guests[0]);
                world.breathe();
                assert!(world.guests[1].received().is_empty(), "{name}");
                world.assert_drops(limited, &[(DropReason::OverMtu, 1)]);

                // A size beyond the frame is no way around the limit.
                packet.header.gso_size = u16::MAX;
                packet.send(&mut world.guests[0]);
                world.breathe();
                assert!(world.guests[1].received().is_empty(), "{name}");
                world.assert_drops(limited, &[(DropReason::OverMtu, 2)]);
                assert_eq!(world.guests[0].reap(), 3);
            }
        }
    }
}

/// A receiver that is offered segments as large as its buffers gets them; one byte more, and it is
/// its own loss.
#[test]
fn segments_larger_than_buffers_that_cannot_be_merged_are_dropped() {
    let mut world = pair(Features::NONE, Cut::Whole, Features::VERSION_1);
    let packet = Packet::new(Kind::Udp4, 0, 2000);
    (0..2).for_each(|_| _ = world.guests[1].post(12 + 14 + 1500));
    packet.send(&mut world.guests[0]);
    world.breathe();
    packet.check(&world.guests[1].received());
    (0..2).for_each(|_| _ = world.guests[1].post(12 + 14 + 1499));
    packet.send(&mut world.guests[0]);
    world.breathe();
    assert!(world.guests[1].received().is_empty());
    world.assert_drops(1, &[(DropReason::BufferTooSmall, 1)]);
    assert_eq!(world.guests[0].reap(), 2);
}

/// Reasons that are found only where a frame has to be segmented are counted there.
#[test]
fn headers_that_contradict_their_segmentation_are_counted_by_reason() {
    type Change = fn(&mut Packet);
    let attacks: [(Kind, DropReason, Change); 13] = [
        (Kind::Tcp4, DropReason::SegmentationMismatch, |packet| packet.frame[23] = 17),
        (Kind::Tcp6, DropReason::SegmentationMismatch, |packet| packet.frame[20] = 59),
        (Kind::Udp4, DropReason::SegmentationMismatch, |packet| packet.frame[23] = 6),
        (Kind::Tcp4, DropReason::SegmentationMismatch, |packet| packet.frame[12] = 9),
        (Kind::Tcp4, DropReason::SegmentationMismatch, |packet| packet.header.gso_type = 4),
        (Kind::Tcp4, DropReason::SegmentationOfFragment, |packet| packet.frame[20] |= 0x20),
        (Kind::Udp4, DropReason::SegmentationOfFragment, |packet| packet.frame[21] = 1),
        (Kind::Tcp6, DropReason::SegmentationOfFragment, |packet| packet.frame[20] = 44),
        (Kind::Tcp4, DropReason::ChecksumMisplaced, |packet| packet.header.csum_start += 1),
        (Kind::Udp4, DropReason::ChecksumMisplaced, |packet| packet.header.csum_offset = 16),
        // The length of the hop-by-hop options: more than there is, and than is looked at.
        (Kind::Tcp6Extended, DropReason::MalformedHeaders, |packet| packet.frame[55] = 255),
        (Kind::Udp6, DropReason::MalformedHeaders, |packet| packet.frame[58] ^= 1),
        (Kind::Tcp4, DropReason::MalformedHeaders, |packet| packet.frame.truncate(1000)),
    ];
    for (kind, reason, change) in attacks {
        for format in FORMATS {
            for receiver in [MODERN, Features::VERSION_1] {
                let mut world = pair(format, Cut::Indirect, receiver);
                let good = Packet::new(kind, 0, 4000);
                let mut bad = Packet::new(kind, 0, 4000);
                change(&mut bad);
                bad.send(&mut world.guests[0]);
                good.send(&mut world.guests[0]);
                post(&mut world.guests[1], good.count());
                world.breathe();
                good.check(&world.guests[1].received());
                assert_eq!(world.guests[0].reap(), 2, "both chains are given back");
                assert!(world.faults.is_empty(), "the port stays up");
                world.assert_drops(0, &[]);
                world.assert_drops(1, &[(reason, 1)]);
            }
        }
    }
}
