//! Checksums and segmentations that the sender left undone.

use engine::DropReason;
use ringway_ports::vhost_user::FEATURES;
use wire::virtio::{Features, NetHeader};

use crate::guest::{CUTS, Cut, Guest};
use crate::world::{MODERN, RING, World, frame, modern};

const SENDS_ALL: Features = MODERN
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::HOST_USO);

const TAKES_ALL: Features = MODERN
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

fn pair(sender: Features, receiver: Features) -> World {
    let guest = |features| Guest::new(features, Cut::Whole, RING);
    let mut world = World::pair([guest(sender), guest(receiver)]);
    world.guests[1].post_many(5);
    world
}

const CHECKSUM: NetHeader = NetHeader {
    flags: NetHeader::NEEDS_CSUM,
    gso_type: NetHeader::GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

const TSO4: NetHeader =
    NetHeader { gso_type: NetHeader::GSO_TCPV4, hdr_len: 54, gso_size: 1448, ..CHECKSUM };
const TSO6: NetHeader = NetHeader {
    gso_type: NetHeader::GSO_TCPV6,
    hdr_len: 74,
    gso_size: 1,
    csum_start: 54,
    ..CHECKSUM
};
const ECN: NetHeader =
    NetHeader { gso_type: NetHeader::GSO_TCPV4 | NetHeader::GSO_ECN, gso_size: 65535, ..TSO4 };

const USO: NetHeader =
    NetHeader { gso_type: NetHeader::GSO_UDP_L4, hdr_len: 42, csum_offset: 6, ..TSO4 };

#[test]
fn what_these_guests_negotiate_is_offered() {
    assert!(FEATURES.contains(SENDS_ALL | TAKES_ALL));
    assert_eq!(FEATURES.missing_dependencies(), Features::NONE);
}

#[test]
fn offloads_pass_as_they_are_to_a_receiver_that_takes_them() {
    let mut world = pair(SENDS_ALL, TAKES_ALL);
    let headers = [CHECKSUM, TSO4, TSO6, ECN, USO];
    for header in headers {
        world.guests[0].send_with(header, &frame(0, 1, 1500, 7));
    }
    world.breathe();
    let received = world.guests[1].received();
    assert_eq!(received.len(), headers.len());
    for (received, header) in received.iter().zip(headers) {
        assert_eq!(received.header, NetHeader { num_buffers: 1, ..header });
        assert_eq!(received.frame, frame(0, 1, 1500, 7), "the checksum is left to the receiver");
    }
}

#[test]
fn what_only_a_device_may_say_and_what_nobody_knows_is_not_passed_on() {
    let mut world = pair(SENDS_ALL, TAKES_ALL);
    let said = NetHeader { flags: 0xfe, csum_start: 3, csum_offset: 65535, ..CHECKSUM };
    let said = NetHeader { hdr_len: 77, gso_size: 88, num_buffers: 99, ..said };
    world.guests[0].send_with(said, &frame(0, 1, 100, 0));
    // A hint beyond the frame.
    world.guests[0].send_with(NetHeader { hdr_len: 65535, ..TSO4 }, &frame(0, 1, 100, 0));
    world.breathe();
    let received = world.guests[1].received();
    assert_eq!(received[0].header, NetHeader { num_buffers: 1, ..NetHeader::default() });
    assert_eq!(received[1].header, NetHeader { num_buffers: 1, hdr_len: 100, ..TSO4 });
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

#[test]
fn a_checksum_is_completed_for_a_receiver_that_lacks_it() {
    for cut in CUTS {
        let indirect = SENDS_ALL | Features::INDIRECT_DESC;
        for len in (56..300).chain([1513, 1514, 9014, 65535, 65536, 65557]) {
            let receiver = Guest::new(MODERN, Cut::Whole, RING);
            let mut world = World::pair([Guest::new(indirect, cut, RING), receiver]);
            world.guests[1].post(70_000);
            let sent = frame(0, 1, len, len);
            // TCP behind IPv4; behind a tag; at the very end of a frame.
            for (start, offset) in [(34, 16), (38, 16), (len.min(60_000) - 2, 0)] {
                let (csum_start, csum_offset) = (start as u16, offset as u16);
                let header = NetHeader { csum_start, csum_offset, ..CHECKSUM };
                let mut expected = sent.clone();
                let value = match !sum(&sent[start..]) {
                    0 => 0xffff,
                    value => value,
                };
                expected[start + offset..start + offset + 2].copy_from_slice(&value.to_be_bytes());
                world.guests[0].send_with(header, &sent);
                world.breathe();
                let received = world.guests[1].received();
                assert_eq!(received.len(), 1, "{cut:?} {len}");
                assert!(received[0].frame == expected, "{cut:?}: {len} bytes from {start}");
                assert_eq!(
                    received[0].header,
                    NetHeader { num_buffers: 1, ..NetHeader::default() }
                );
                world.guests[0].reap();
                world.guests[1].post(70_000);
            }
            assert_eq!(world.counters(1).sent.bytes, 3 * len as u64);
        }
    }
}

#[test]
fn a_sum_of_zero_is_sent_as_all_ones() {
    let mut world = pair(SENDS_ALL, MODERN);
    let mut sent = frame(0, 1, 60, 0);
    let header = NetHeader { csum_offset: 6, ..CHECKSUM };
    // Makes the words from the start on sum up to all ones, whose complement is zero.
    sent[40..42].fill(0);
    let rest = sum(&sent[34..]);
    sent[40..42].copy_from_slice(&(!rest).to_be_bytes());
    assert_eq!(!sum(&sent[34..]), 0);
    world.guests[0].send_with(header, &sent);
    world.breathe();
    assert_eq!(world.guests[1].frames()[0][40..42], [0xff, 0xff]);
}

#[test]
fn a_segmentation_that_does_not_fit_its_frame_is_counted() {
    let lacks = |feature| TAKES_ALL.without(feature);
    for (header, receiver) in [
        (TSO4, lacks(Features::GUEST_TSO4)),
        (TSO6, lacks(Features::GUEST_TSO6)),
        (ECN, lacks(Features::GUEST_ECN)),
        (ECN, lacks(Features::GUEST_TSO4)),
        (TSO4, lacks(Features::GUEST_CSUM)),
        (TSO4, MODERN),
        (USO, lacks(Features::GUEST_USO4)),
        (USO, lacks(Features::GUEST_USO6)),
        (USO, lacks(Features::GUEST_CSUM)),
    ] {
        let mut world = pair(SENDS_ALL, receiver);
        world.guests[0].send_with(header, &frame(0, 1, 1500, 0));
        world.guests[0].send(&frame(0, 1, 1500, 1));
        world.breathe();
        assert_eq!(world.guests[1].frames(), [frame(0, 1, 1500, 1)]);
        world.assert_drops(1, &[(DropReason::SegmentationMismatch, 1)]);
        assert_eq!(world.guests[0].reap(), 2);
    }
}

/// A TCP segment over IPv4 of this much payload, as a guest with all offloads leaves it.
fn large_segment(payload: usize) -> Vec<u8> {
    let mut bytes = frame(0, 1, 54 + payload, 0);
    bytes[12..14].copy_from_slice(&[8, 0]);
    let mut ip = [0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    bytes[14..34].copy_from_slice(&ip);
    bytes[34..54]
        .copy_from_slice(&[0, 1, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    let pseudo = [&ip[12..20], &[0, 6], &(20 + payload as u16).to_be_bytes()].concat();
    bytes[50..52].copy_from_slice(&sum(&pseudo).to_be_bytes());
    bytes
}

#[test]
fn what_the_receiver_cannot_segment_arrives_in_segments() {
    let header = NetHeader { gso_size: 1000, ..TSO4 };
    let sent = large_segment(2500);
    for receiver in [MODERN, TAKES_ALL.without(Features::GUEST_TSO4)] {
        let mut world = pair(SENDS_ALL, receiver);
        world.guests[0].send_with(header, &sent);
        world.breathe();
        let frames = world.guests[1].frames();
        assert_eq!(world.guests[0].reap(), 1);
        let mut payload = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            assert_eq!(sum(&frame[14..34]), 0xffff, "the header's checksum");
            let len = (frame.len() - 34) as u16;
            let pseudo = [&frame[26..34], &[0, 6], &len.to_be_bytes(), &frame[34..]].concat();
            assert_eq!(sum(&pseudo), 0xffff, "the segment's checksum");
            let sequence = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
            assert_eq!(sequence as usize, 256 + 1000 * number);
            assert_eq!(frame[47] & 8 != 0, number == 2, "PSH comes last");
            payload.extend_from_slice(&frame[54..]);
        }
        assert_eq!(frames.len(), 3);
        assert_eq!(payload, sent[54..]);
    }
}

#[test]
fn segments_wait_until_there_is_room_for_all() {
    let mut world = World::pair([
        Guest::new(SENDS_ALL, Cut::Whole, RING),
        Guest::new(MODERN, Cut::Whole, RING),
    ]);
    let header = NetHeader { gso_size: 1000, ..TSO4 };
    world.guests[0].send_with(header, &large_segment(2500));
    world.guests[1].post_many(2);
    world.breathe();
    assert!(world.guests[1].frames().is_empty());
    assert_eq!(world.guests[0].reap(), 0, "it is held");
    world.guests[1].post_many(1);
    world.breathe();
    assert_eq!(world.guests[1].frames().len(), 3);
    assert_eq!(world.guests[0].reap(), 1);
    world.assert_drops(1, &[]);
}

/// Sends a frame of 100 bytes with each of these headers. Says why each was dropped, if it was.
fn fates(features: Features, headers: &[NetHeader]) -> Vec<Option<DropReason>> {
    let mut world = pair(MODERN | features, TAKES_ALL | features & Features::RING_PACKED);
    let mut drops = Vec::new();
    let mut fate = |header: &NetHeader| {
        world.guests[0].send_with(*header, &frame(0, 1, 100, 0));
        world.guests[0].send(&frame(0, 1, 60, 1));
        world.breathe();
        assert!(world.faults.is_empty(), "the port stays up");
        assert_eq!(world.guests[0].reap(), 2, "both chains are given back");
        let mut frames = world.guests[1].frames();
        world.guests[1].post_many(frames.len());
        assert_eq!(frames.pop(), Some(frame(0, 1, 60, 1)));

        let before = std::mem::replace(&mut drops, world.counters(0).drops().collect());
        let new = drops.iter().filter(|drop| !before.contains(drop));
        let new: Vec<DropReason> = new.map(|(reason, _)| *reason).collect();
        assert_eq!(new.len() + frames.len(), 1, "one fate: {new:?}");
        new.first().copied()
    };
    headers.iter().map(&mut fate).collect()
}

/// Each header, and why it is dropped, if it is.
#[track_caller]
fn judge(features: Features, expected: &[(NetHeader, Option<DropReason>)]) {
    let headers: Vec<NetHeader> = expected.iter().map(|(header, _)| *header).collect();
    for format in [Features::NONE, Features::RING_PACKED] {
        for (fate, (header, expected)) in fates(features | format, &headers).iter().zip(expected) {
            assert_eq!(fate, expected, "{header:?} of {}", features | format);
        }
    }
}

#[test]
fn headers_that_ask_for_the_impossible_are_counted_by_reason() {
    use DropReason::{
        ChecksumBeyondFrame, ChecksumInEthernetHeader, SegmentSizeZero, SegmentationUnknown,
        SegmentationWithoutChecksum,
    };
    let checksum = |csum_start, csum_offset| NetHeader { csum_start, csum_offset, ..CHECKSUM };
    let mut expected = vec![
        // The checksum's place: the last one in the frame, and one further.
        (checksum(34, 64), None),
        (checksum(34, 65), Some(ChecksumBeyondFrame)),
        (checksum(98, 0), None),
        (checksum(99, 0), Some(ChecksumBeyondFrame)),
        (checksum(100, 0), Some(ChecksumBeyondFrame)),
        (checksum(65535, 65535), Some(ChecksumBeyondFrame)),
        (checksum(65535, 0), Some(ChecksumBeyondFrame)),
        (checksum(34, 65535), Some(ChecksumBeyondFrame)),
        // Among the addresses and the tag, and behind them.
        (checksum(0, 20), Some(ChecksumInEthernetHeader)),
        (checksum(6, 20), Some(ChecksumInEthernetHeader)),
        (checksum(13, 20), Some(ChecksumInEthernetHeader)),
        (checksum(17, 20), Some(ChecksumInEthernetHeader)),
        (checksum(18, 20), None),
        // Without the flag nobody reads the fields. Flags that nobody knows mean nothing.
        (NetHeader { flags: 0, ..checksum(65535, 65535) }, None),
        (NetHeader { flags: !NetHeader::NEEDS_CSUM, ..checksum(65535, 65535) }, None),
        (NetHeader { flags: 0xff, ..CHECKSUM }, None),
        // Segmentation.
        (NetHeader { flags: 0, ..TSO4 }, Some(SegmentationWithoutChecksum)),
        (NetHeader { flags: NetHeader::DATA_VALID, ..USO }, Some(SegmentationWithoutChecksum)),
        (NetHeader { gso_size: 0, ..TSO4 }, Some(SegmentSizeZero)),
        (NetHeader { gso_size: 0, ..USO }, Some(SegmentSizeZero)),
        (NetHeader { gso_size: 1, hdr_len: 0, ..TSO4 }, None),
        (NetHeader { gso_size: 65535, hdr_len: 65535, ..TSO4 }, None),
        (NetHeader { csum_start: 0, ..TSO4 }, Some(ChecksumInEthernetHeader)),
        (NetHeader { csum_offset: 65, ..TSO4 }, Some(ChecksumBeyondFrame)),
    ];
    // Of every type there is and is not: with the legacy one of UDP, tunnels, and ECN alone.
    for gso_type in 1..=255 {
        let known = [1, 4, 5, 0x81, 0x84].contains(&gso_type);
        let fate = if known { None } else { Some(SegmentationUnknown) };
        expected.push((NetHeader { gso_type, ..TSO4 }, fate));
    }
    judge(SENDS_ALL, &expected);
}

#[test]
fn headers_that_ask_for_what_was_not_negotiated_are_counted_by_reason() {
    use DropReason::{ChecksumNotNegotiated, SegmentationNotNegotiated};
    let all = [CHECKSUM, TSO4, TSO6, ECN, USO];
    for (missing, dropped) in [
        (Features::HOST_TSO4, &[TSO4, ECN][..]),
        (Features::HOST_TSO6, &[TSO6]),
        (Features::HOST_ECN, &[ECN]),
        (Features::HOST_USO, &[USO]),
    ] {
        let fate = |header| dropped.contains(&header).then_some(SegmentationNotNegotiated);
        judge(SENDS_ALL.without(missing), &all.map(|header| (header, fate(header))));
    }
    // Without checksums there is nothing.
    let none = all.map(|header| (header, Some(ChecksumNotNegotiated)));
    judge(SENDS_ALL.without(Features::CSUM), &none);
}

#[test]
fn a_legacy_header_carries_offloads_too() {
    let legacy = |features: Features| features.without(MODERN);
    let mut world = pair(legacy(SENDS_ALL), legacy(TAKES_ALL));
    world.guests[0].send_with(TSO4, &frame(0, 1, 1500, 0));
    world.breathe();
    assert_eq!(world.guests[1].received()[0].header, TSO4);
}

#[test]
fn a_checksum_is_completed_for_each_receiver_by_itself() {
    let guest = |features| Guest::new(features, Cut::Whole, RING);
    let guests = vec![guest(SENDS_ALL), modern(), guest(TAKES_ALL), modern()];
    let mut world = World::bridged(guests);
    let mut sent = frame(0, 1, 80, 0);
    sent[..6].fill(0xff);
    (1..4).for_each(|receiver| world.guests[receiver].post_many(1));
    world.guests[0].send_with(CHECKSUM, &sent);
    world.breathe();
    let mut completed = sent.clone();
    completed[50..52].copy_from_slice(&(!sum(&sent[34..])).to_be_bytes());
    assert_eq!(world.guests[1].frames(), [&completed[..]]);
    assert_eq!(world.guests[3].frames(), [completed]);
    let received = world.guests[2].received();
    assert_eq!(received[0].header, NetHeader { num_buffers: 1, ..CHECKSUM });
    assert_eq!(received[0].frame, sent);
}
