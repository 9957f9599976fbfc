//! Deliveries from and to memory that is cut into odd pieces.

use std::os::fd::AsFd;

use engine::HEAD;
use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadSlice, RegionRequest, SharedMemory, WriteSlice,
};
use wire::virtio::{Segmentation, SegmentationKind};

use super::*;

const SIZE: u64 = 1 << 20;
/// What a receiver's memory holds before it is written to.
const BLANK: u8 = 0xEE;

fn guest_memory() -> GuestMemory {
    let file = SharedMemory::create("offload", SIZE).unwrap();
    let file = file.as_fd().try_clone_to_owned().unwrap();
    let (guest, front_end) = (GuestAddress(0), FrontEndAddress(0));
    let request = RegionRequest { guest, size: SIZE, front_end, offset: 0, file };
    GuestMemory::map([request]).unwrap()
}

/// A receiver, whose buffers are cut in many ways.
struct Receiver {
    memory: GuestMemory,
}

impl Receiver {
    fn new() -> Self {
        Self { memory: guest_memory() }
    }

    /// What is written to `len` bytes of buffers, and nothing beside them.
    fn receive(&self, outgoing: Outgoing<'_>, cut: usize) -> Vec<u8> {
        let len = outgoing.len;
        let mut all = Vec::new();
        self.memory.translator().write(GuestAddress(0), SIZE as u32, &mut all).unwrap();
        let blank = vec![BLANK; len + 64];
        WriteCursor::new(&all).write(blank[..].into());
        let mut slices: Vec<WriteSlice<'_>> = Vec::new();
        let (mut at, mut left) = (0, len);
        while left > 0 {
            let count = left.min(if slices.len().is_multiple_of(3) { cut } else { 2 * cut + 1 });
            let address = GuestAddress(at as u64);
            self.memory.translator().write(address, count as u32, &mut slices).unwrap();
            at += count;
            left -= count;
        }
        outgoing.write(WriteCursor::new(&slices));
        let mut bytes = vec![0; len + 64];
        let mut read: Vec<ReadSlice<'_>> = Vec::new();
        self.memory.translator().read(GuestAddress(0), SIZE as u32, &mut read).unwrap();
        read[0].copy_to(&mut bytes);
        assert!(bytes[len..].iter().all(|byte| *byte == BLANK), "written behind the end");
        bytes.truncate(len);
        bytes
    }
}

/// All that a frame makes of itself for a receiver, with the offloads that are left.
fn deliver(
    bytes: &[u8],
    offload: Offload,
    features: Features,
    cut: usize,
) -> Result<Vec<(Vec<u8>, Offload)>, DropReason> {
    let (head, rest) = bytes.split_at(bytes.len().min(HEAD));
    let body: Vec<ReadSlice<'_>> = rest.chunks(cut).map(ReadSlice::from).collect();
    let frame = Frame { head, body: &body, len: bytes.len(), offload };
    let receiver = Receiver::new();
    let mut delivery = Delivery::new(frame, features)?;
    let mut received = Vec::new();
    let mut remaining = delivery.remaining();
    while let Some(outgoing) = delivery.next() {
        let offload = outgoing.offload;
        received.push((receiver.receive(outgoing, cut), offload));
        remaining -= 1;
        assert_eq!(delivery.remaining(), remaining);
    }
    assert_eq!(remaining, 0);
    assert!(delivery.next().is_none());
    Ok(received)
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect()
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

const CHECKSUM: PartialChecksum = PartialChecksum { start: 34, offset: 16 };
const TSO: Offload = Offload {
    checksum: Some(CHECKSUM),
    segmentation: Some(Segmentation {
        kind: SegmentationKind::Tcp4,
        ecn: false,
        size: 1448,
        header_hint: 54,
    }),
};
const ECN: Offload =
    Offload { segmentation: Some(Segmentation { ecn: true, ..TSO.segmentation.unwrap() }), ..TSO };
const TAKES_ALL: Features = Features::GUEST_CSUM
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

/// TCP over IPv4 with so much payload, behind so many tags, with all options or none. The addresses
/// sum up to nothing, and so does the pseudo header without protocol and length.
fn tcp4(payload: usize, tags: usize, options: usize) -> Vec<u8> {
    let mut frame = vec![0x52; 12];
    (0..tags).for_each(|tag| frame.extend([0x81, 0, 0, tag as u8]));
    let transport_len = 20 + 4 * options + payload;
    frame.extend([8, 0, 0x45 + options as u8, 0]);
    frame.extend(((20 + 4 * options + transport_len) as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(vec![1; 4 * options]);
    frame.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, (5 + options as u8) << 4, 0x10, 1, 0]);
    frame.extend(((transport_len + 6) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(vec![1; 4 * options]);
    frame.extend(noise(payload));
    frame
}

/// Whether TCP's checksum over this IPv4 segment is right.
fn is_summed(segment: &[u8], transport_at: usize) -> bool {
    let transport = &segment[transport_at..];
    let pseudo = (transport.len() as u32 + 6).to_be_bytes();
    sum(&[&pseudo[..], transport].concat()) == 0xffff
}

#[test]
fn what_the_receiver_takes_goes_as_it_is() {
    let frame = tcp4(5000, 0, 0);
    let checksum = Offload { segmentation: None, ..TSO };
    for offload in [Offload::NONE, checksum, TSO, ECN] {
        for cut in [1, 3, 1000, 65536] {
            let received = deliver(&frame, offload, TAKES_ALL, cut).unwrap();
            assert!(received == [(frame.clone(), offload)], "cut at {cut}");
        }
    }
    let received = deliver(&frame[..14], Offload::NONE, Features::NONE, 5).unwrap();
    assert_eq!(received, [(frame[..14].to_vec(), Offload::NONE)]);
}

#[test]
fn a_checksum_is_completed_wherever_it_is() {
    let frame = noise(700);
    for start in (18..140).chain([255, 256, 600, 697, 698]) {
        for offset in [0, 1, 2, 16, 100, 101] {
            let partial = PartialChecksum { start, offset };
            if partial.end() > frame.len() {
                continue;
            }
            let mut expected = frame.clone();
            assert!(wire::checksum::complete(&mut expected, partial));
            let offload = Offload { checksum: Some(partial), segmentation: None };
            for cut in [1, 2, 7, 129, 65536] {
                let received = deliver(&frame, offload, Features::NONE, cut).unwrap();
                assert!(received == [(expected.clone(), Offload::NONE)], "{partial:?}, {cut}");
            }
        }
    }
}

#[test]
fn segments_are_made_for_a_receiver_that_lacks_anything_of_it() {
    let frame = tcp4(64_000, 0, 0);
    for (offload, features) in [
        (TSO, Features::NONE),
        (TSO, TAKES_ALL.without(Features::GUEST_CSUM)),
        (TSO, TAKES_ALL.without(Features::GUEST_TSO4)),
        (ECN, TAKES_ALL.without(Features::GUEST_ECN)),
    ] {
        for cut in [1, 33, 1000, 4096, 65536] {
            let received = deliver(&frame, offload, features, cut).unwrap();
            assert_eq!(received.len(), 64_000usize.div_ceil(1448));
            let mut payload = Vec::new();
            for (segment, offload) in received {
                assert_eq!(offload, Offload::NONE);
                assert!(is_summed(&segment, 34), "cut at {cut}");
                assert_eq!(sum(&segment[14..34]), 0xffff);
                payload.extend_from_slice(&segment[54..]);
            }
            assert!(payload == frame[54..], "cut at {cut}");
        }
    }
}

#[test]
fn datagrams_are_made_for_a_receiver_of_one_ip_version() {
    let mut frame = tcp4(0, 0, 0);
    frame.truncate(34);
    frame[16..18].copy_from_slice(&(28u16 + 3000).to_be_bytes());
    frame[23] = 17;
    frame.extend([0, 1, 0, 2]);
    frame.extend(3008u16.to_be_bytes());
    frame.extend((3008u16 + 17).to_be_bytes());
    frame.extend(noise(3000));
    let kind = SegmentationKind::Udp;
    let segmentation = Segmentation { kind, size: 1400, ..TSO.segmentation.unwrap() };
    let checksum = PartialChecksum { start: 34, offset: 6 };
    let offload = Offload { checksum: Some(checksum), segmentation: Some(segmentation) };
    assert_eq!(deliver(&frame, offload, TAKES_ALL, 999).unwrap(), [(frame.clone(), offload)]);
    let one = TAKES_ALL.without(Features::GUEST_USO6);
    let received = deliver(&frame, offload, one, 999).unwrap();
    let lens: Vec<_> = received.iter().map(|(segment, _)| segment.len()).collect();
    assert_eq!(lens, [1442, 1442, 242]);
    for (segment, _) in received {
        let len = (segment.len() - 34) as u16;
        assert_eq!(segment[38..40], len.to_be_bytes());
        let pseudo = [0, 17, len.to_be_bytes()[0], len.to_be_bytes()[1]];
        assert_eq!(sum(&[&pseudo[..], &segment[34..]].concat()), 0xffff);
    }
}

#[test]
fn headers_may_be_longer_than_the_private_head() {
    let frame = tcp4(4000, 2, 10);
    let checksum = Some(PartialChecksum { start: 82, offset: 16 });
    for cut in [1, 5, 14, 15, 200, 65536] {
        let received = deliver(&frame, Offload { checksum, ..TSO }, Features::NONE, cut).unwrap();
        assert_eq!(received.len(), 3);
        let mut payload = Vec::new();
        for (segment, _) in received {
            assert!(is_summed(&segment, 82), "cut at {cut}");
            payload.extend_from_slice(&segment[142..]);
        }
        assert!(payload == frame[142..], "cut at {cut}");
    }
}

#[test]
fn a_frame_that_is_not_what_its_header_says_is_dropped_by_reason() {
    let good = tcp4(3000, 0, 0);
    let drop = |offload, change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        let segmented = deliver(&frame, offload, Features::NONE, 500);
        // One that takes it as it is checks it by itself.
        assert!(deliver(&frame, offload, TAKES_ALL, 500).is_ok());
        segmented.unwrap_err()
    };
    let bad = |change: &dyn Fn(&mut Vec<u8>)| drop(TSO, change);
    // ARP, and IPv6; IP of version 6; UDP.
    for mismatch in [
        bad(&|frame| frame[12..14].copy_from_slice(&[8, 6])),
        bad(&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd])),
        bad(&|frame| frame[14] = 0x65),
        bad(&|frame| frame[23] = 17),
    ] {
        assert_eq!(mismatch, DropReason::SegmentationMismatch);
    }
    // The first of several, and a later one.
    for fragment in [
        bad(&|frame| frame[20..22].copy_from_slice(&[0x20, 0])),
        bad(&|frame| frame[20..22].copy_from_slice(&[0, 1])),
    ] {
        assert_eq!(fragment, DropReason::SegmentationOfFragment);
    }
    // An IP packet longer than the frame; headers shorter than they can be; cut off.
    for malformed in [
        bad(&|frame| frame[16..18].copy_from_slice(&[0xff, 0xff])),
        bad(&|frame| frame[14] = 0x44),
        bad(&|frame| frame[46] = 0x40),
        bad(&|frame| frame.truncate(50)),
    ] {
        assert_eq!(malformed, DropReason::MalformedHeaders);
    }
    for (start, offset) in [(33, 16), (34, 6), (38, 16)] {
        let checksum = Some(PartialChecksum { start, offset });
        let misplaced = drop(Offload { checksum, ..TSO }, &|_| ());
        assert_eq!(misplaced, DropReason::ChecksumMisplaced);
    }
    // Possible only where the length is left to the device.
    let size = u16::MAX;
    let segmentation = Some(Segmentation { size, ..TSO.segmentation.unwrap() });
    let too_long = drop(Offload { segmentation, ..TSO }, &|frame| {
        frame[16..18].fill(0);
        frame.resize(14 + 65_536, 0);
    });
    assert_eq!(too_long, DropReason::SegmentTooLong);
}

#[test]
fn the_longest_frame_on_the_wire_is_known_before() {
    let wire_len = |frame: &[u8], offload, features| {
        let (head, rest) = frame.split_at(frame.len().min(HEAD));
        let body = [ReadSlice::from(rest)];
        let frame = Frame { head, body: &body, len: frame.len(), offload };
        Delivery::new(frame, features).unwrap().wire_len()
    };
    let checksum = Offload { segmentation: None, ..TSO };
    let frame = tcp4(5000, 0, 0);
    for features in [Features::NONE, TAKES_ALL] {
        assert_eq!(wire_len(&frame, TSO, features), 54 + 1448);
        assert_eq!(wire_len(&frame, checksum, features), 5054);
        assert_eq!(wire_len(&frame, Offload::NONE, features), 5054);
        assert_eq!(wire_len(&tcp4(70, 0, 0), TSO, features), 124);
    }
    // With options, whoever segments.
    let partial = PartialChecksum { start: 34 + 40, offset: 16 };
    let offload = Offload { checksum: Some(partial), ..TSO };
    assert_eq!(wire_len(&tcp4(5000, 0, 10), offload, Features::NONE), 14 + 60 + 60 + 1448);
    assert_eq!(wire_len(&tcp4(5000, 0, 10), offload, TAKES_ALL), 14 + 60 + 60 + 1448);
}

#[test]
fn a_delivery_does_not_allocate() {
    let frame = tcp4(60_000, 0, 0);
    let (head, rest) = frame.split_at(HEAD);
    let body: Vec<ReadSlice<'_>> = rest.chunks(4096).map(ReadSlice::from).collect();
    let receiver = Receiver::new();
    let mut buffers = Vec::new();
    receiver.memory.translator().write(GuestAddress(0), SIZE as u32, &mut buffers).unwrap();
    let complete = Offload { segmentation: None, ..TSO };
    for (offload, count) in [(Offload::NONE, 1), (complete, 1), (TSO, 42)] {
        let frame = Frame { head, body: &body, len: frame.len(), offload };
        let mut delivered = 0;
        let allocations = allocation_counter::measure(|| {
            let mut delivery = Delivery::new(frame, Features::NONE).unwrap();
            while let Some(outgoing) = delivery.next() {
                outgoing.write(WriteCursor::new(&buffers));
                delivered += 1;
            }
        });
        assert_eq!((delivered, allocations.count_total), (count, 0));
    }
}
