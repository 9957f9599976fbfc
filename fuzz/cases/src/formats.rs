//! Parsers: total, and the inverse of their writers.

use wire::checksum::{PartialChecksum, Sum, complete};
use wire::ethernet::{Ethernet, HEADER_SIZE, MacAddress};
use wire::flow;
use wire::segment::{MAX_HEADERS, Segments};
use wire::split::{Descriptor, event_crossed};
use wire::vhost_user::{BackEndRequest, FrontEndRequest, Header, MAX_PAYLOAD, Payload};
use wire::virtio::{Features, NetHeader, Segmentation, SegmentationKind};

use crate::Reached;
use crate::input::Input;

/// What a guest says about the frames that it takes.
const GUEST_TAKES: Features = Features::GUEST_CSUM
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_UFO)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

/// One parser an input, over all the bytes that follow its number.
pub fn formats(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let mut input = Input::new(data);
    match input.below(8) {
        0 => ethernet(input.bytes(usize::MAX), &mut reached),
        1 => mac_address(input.bytes(usize::MAX), &mut reached),
        2 => message_header(input.array(), &mut reached),
        3 => payload(&mut input, &mut reached),
        4 => net_header(&mut input, &mut reached),
        5 => checksum(&mut input, &mut reached),
        6 => ring_words(&mut input),
        _ => segments(&mut input, &mut reached),
    }
    reached
}

fn ethernet(frame: &[u8], reached: &mut Reached) {
    let Some(header) = Ethernet::parse(frame) else {
        assert!(frame.len() < HEADER_SIZE + 4, "only a short frame has no header");
        return;
    };
    let len = header.header_len();
    let mut copy = frame.to_vec();
    copy[..len].fill(0xee);
    let rest = header.write(&mut copy).map(|rest| rest.len());
    assert_eq!(rest, Some(frame.len() - len));
    assert_eq!(copy, frame, "what was read is what is written");
    assert!(header.write(&mut copy[..len - 1]).is_none());
    let _ = (header.destination.is_multicast(), header.source.is_reserved(), flow::hash(frame));
    reached.note(if header.vlan.is_some() { "tagged" } else { "untagged" });
}

fn mac_address(bytes: &[u8], reached: &mut Reached) {
    if let Some(bytes) = bytes.first_chunk() {
        let address = MacAddress(*bytes);
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(address) = text.parse::<MacAddress>() {
        assert_eq!(address.to_string(), text.to_ascii_lowercase());
        reached.note("address");
    }
}

fn message_header(bytes: [u8; Header::SIZE], reached: &mut Reached) {
    match Header::decode(&bytes) {
        Ok(header) => {
            assert_eq!(header.encode(), bytes);
            assert!(header.size as usize <= MAX_PAYLOAD);
            reached.note("header");
        }
        Err(error) => reached.note_variant(&error),
    }
}

fn payload(input: &mut Input<'_>, reached: &mut Reached) {
    let number = input.u8().into();
    let message = if input.bool() {
        BackEndRequest::from_number(number).map(BackEndRequest::message)
    } else {
        FrontEndRequest::from_number(number).map(FrontEndRequest::message)
    };
    let Some(message) = message else { return };
    let descriptors = input.below(10);
    let bytes = input.bytes(usize::MAX);
    let checked = message.check(bytes.len(), descriptors);
    let decoded = Payload::decode(message.payload, bytes);
    let Some(payload) = decoded else { return };
    assert!(
        checked.is_ok() || !(message.descriptors.0..=message.descriptors.1).contains(&descriptors)
    );
    reached.note_variant(&payload);
    if payload != Payload::Opaque {
        // Not the bytes: padding is not kept.
        let encoded = payload.encode();
        assert_eq!(encoded.len(), bytes.len());
        assert_eq!(Payload::decode(message.payload, &encoded), Some(payload));
    }
}

fn net_header(input: &mut Input<'_>, reached: &mut Reached) {
    let bytes = input.array();
    let header = NetHeader::from_bytes(&bytes);
    assert_eq!(header.to_bytes(), bytes);
    let len = usize::from(input.u16()) + HEADER_SIZE;
    let acked = Features(input.u64());
    match header.offload(len, acked) {
        Ok(offload) => {
            if let Some(partial) = offload.checksum {
                assert!(acked.contains(Features::CSUM));
                assert!(partial.end() <= len && usize::from(partial.start) >= HEADER_SIZE);
                reached.note("checksum");
            }
            if let Some(segmentation) = offload.segmentation {
                assert!(offload.checksum.is_some() && segmentation.size > 0);
                assert!(usize::from(segmentation.header_hint) <= len);
                reached.note("segmentation");
            }
            // What is passed on would be taken in the same way by the next switch.
            let passed_on = offload.header(1);
            assert_eq!(passed_on.offload(len, acked), Ok(offload));
            assert!(GUEST_TAKES.contains(offload.needs()), "what a receiver negotiates, alone");
        }
        Err(fault) => reached.note_variant(&fault),
    }
}

fn checksum(input: &mut Input<'_>, reached: &mut Reached) {
    let partial = PartialChecksum { start: input.u16() % 512, offset: input.u16() % 512 };
    let cut = input.below(256);
    let bytes = input.bytes(usize::MAX);
    let (one, two) = bytes.split_at(cut.min(bytes.len()));
    let mut sum = Sum::new();
    sum.add(one);
    sum.add(two);
    assert_eq!(sum.finish(), !definition(bytes));
    let mut frame = bytes.to_vec();
    let completed = complete(&mut frame, partial);
    assert_eq!(completed, partial.end() <= bytes.len());
    if completed {
        assert_eq!(frame, completed_by_definition(bytes, partial));
        reached.note("completed");
    } else {
        assert_eq!(frame, bytes);
    }
}

/// The sum of RFC 1071, one word at a time.
fn definition(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame whose checksum lies inside of it, with the checksum in its place.
pub fn completed_by_definition(frame: &[u8], partial: PartialChecksum) -> Vec<u8> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let value = match !definition(&frame[start..]) {
        0 => 0xffff,
        value => value,
    };
    let mut completed = frame.to_vec();
    completed[start + offset..start + offset + 2].copy_from_slice(&value.to_be_bytes());
    completed
}

fn ring_words(input: &mut Input<'_>) {
    let words = [input.u64(), input.u64()];
    assert_eq!(Descriptor::from_words(words).to_words(), words);
    let (event, old, count) = (input.u16(), input.u16(), input.u8());
    let walked = (0..count.into()).any(|step| old.wrapping_add(step) == event);
    assert_eq!(event_crossed(event, old.wrapping_add(count.into()), old), walked);
}

fn segments(input: &mut Input<'_>, reached: &mut Reached) {
    let kind = input.pick(&[SegmentationKind::Tcp4, SegmentationKind::Tcp6, SegmentationKind::Udp]);
    let size = input.u16().max(1);
    let segmentation = Segmentation { kind, ecn: false, size, header_hint: 0 };
    let checksum = PartialChecksum { start: input.u16(), offset: input.u16() };
    let frame = input.bytes(usize::MAX);
    let head = &frame[..frame.len().min(MAX_HEADERS)];
    let mut segments = match Segments::plan(head, frame.len(), segmentation, checksum) {
        Ok(segments) => segments,
        Err(fault) => return reached.note_variant(&fault),
    };
    let header_len = segments.header_len();
    let mut lens = segments.frame_lens();
    let (count, start) = (segments.count(), usize::from(checksum.start));
    let payload: usize = lens.by_ref().map(|len| len - header_len).sum();
    let end = header_len + payload;
    assert!(end <= frame.len());
    let field = start + usize::from(checksum.offset);
    let pseudo = u16::from_be_bytes([frame[field], frame[field + 1]]);

    let mut lens = segments.frame_lens();
    let mut at = header_len;
    for number in 1..=count {
        let segment = segments.next().expect("as many segments as there are said to be");
        let range = segment.payload();
        assert_eq!((range.start, Some(header_len + range.len())), (at, lens.next()));
        assert!(range.len() == usize::from(size) || number == count && range.len() < size.into());
        at = range.end;
        let mut sum = Sum::new();
        sum.add(&frame[range.clone()]);
        let mut bytes = [segment.header(), &frame[range]].concat();
        bytes[segment.checksum_at()..][..2].copy_from_slice(&segment.checksum(sum));
        // As the frame's pseudo header says, but for the length.
        let lens = [bytes.len() - start, end - start];
        let pseudo = i64::from(pseudo) + lens[0] as i64 - lens[1] as i64;
        let sum = i64::from(definition(&bytes[start..])) + pseudo;
        assert_eq!(sum.rem_euclid(0xffff), 0, "a wrong checksum in segment {number}");
        assert_eq!(flow::hash(&bytes), flow::hash(frame), "segments of one flow");
    }
    assert!(at == end && segments.next().is_none());
    reached.note(match kind {
        SegmentationKind::Tcp4 => "tcp4 segments",
        SegmentationKind::Tcp6 => "tcp6 segments",
        SegmentationKind::Udp => "udp segments",
    });
}
