//! Segments against etherparse as an independent reader, and put together again.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::virtio::{Offload, WireCost};

const MAX_PAYLOAD: usize = 65535 - MAX_HEADERS;

/// A frame that a driver may well send.
#[derive(Clone, Debug)]
struct Shape {
    /// `true` for a service tag.
    tags: Vec<(bool, u16)>,
    ip: Ip,
    transport: Transport,
    payload: usize,
    /// Bytes that Ethernet adds.
    padding: usize,
    /// The IP length is left to the device.
    without_length: bool,
    size: u16,
}

#[derive(Clone, Debug)]
enum Ip {
    V4 {
        /// Of four bytes.
        options: usize,
        identification: u16,
    },
    /// Extension headers: their numbers, and their lengths as they are written.
    V6(Vec<(u8, u8)>),
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp {
        /// Of four bytes.
        options: usize,
        sequence: u32,
        flags: u8,
    },
    Udp,
}

/// A frame, and where its parts are.
struct Built {
    frame: Vec<u8>,
    segmentation: Segmentation,
    checksum: PartialChecksum,
    network_at: usize,
    header_len: usize,
    ip_end: usize,
}

fn noise(len: usize) -> impl Iterator<Item = u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 23) as u8)
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

impl Shape {
    fn build(&self) -> Built {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
        for (service, control) in &self.tags {
            frame.extend(if *service { [0x88, 0xa8] } else { [0x81, 0x00] });
            frame.extend(control.to_be_bytes());
        }
        let (protocol, transport_header) = match &self.transport {
            Transport::Tcp { options, sequence, flags } => {
                let mut header = vec![0x30, 0x39, 0x00, 0x50];
                header.extend(sequence.to_be_bytes());
                header.extend([1, 2, 3, 4, (5 + *options as u8) << 4, *flags, 0x7f, 0xff]);
                header.extend([0, 0, 0, 9]);
                // Options of one byte each that do nothing.
                header.extend(vec![1; 4 * options]);
                (6, header)
            }
            Transport::Udp => {
                let len = (8 + self.payload) as u16;
                let [high, low] = len.to_be_bytes();
                (17, vec![0x30, 0x39, 0x00, 0x50, high, low, 0, 0])
            }
        };
        let transport_len = transport_header.len() + self.payload;
        let network_at = frame.len() + 2;
        let addresses: Vec<u8>;
        match &self.ip {
            Ip::V4 { options, identification } => {
                let len = 20 + 4 * options + transport_len;
                let len = if self.without_length { 0 } else { len as u16 };
                frame.extend([0x08, 0x00, 0x45 + *options as u8, 0x2e]);
                frame.extend(len.to_be_bytes());
                frame.extend(identification.to_be_bytes());
                addresses = vec![10, 0, 0, 1, 10, 0, 0, 2];
                // Do not fragment; and a checksum that nobody reads.
                frame.extend([0x40, 0, 64, protocol, 0xde, 0xad]);
                frame.extend(&addresses);
                frame.extend(vec![1; 4 * options]);
            }
            Ip::V6(extensions) => {
                let len: usize = extensions.iter().map(|(_, len)| 8 + 8 * *len as usize).sum();
                let len = if self.without_length { 0 } else { (len + transport_len) as u16 };
                let numbers = extensions.iter().map(|(number, _)| *number).chain([protocol]);
                let mut numbers = numbers.collect::<Vec<_>>().into_iter();
                frame.extend([0x86, 0xdd, 0x62, 0xe1, 0x23, 0x45]);
                frame.extend(len.to_be_bytes());
                frame.extend([numbers.next().unwrap(), 64]);
                addresses = (1..=32).collect();
                frame.extend(&addresses);
                for (_, len) in extensions {
                    frame.extend([numbers.next().unwrap(), *len]);
                    // A routing header without segments left; padding for the others.
                    frame.extend([0; 6]);
                    frame.extend(vec![0; 8 * usize::from(*len)]);
                }
            }
        }
        let transport_at = frame.len();
        let offset = if protocol == 6 { 16 } else { 6 };
        frame.extend(&transport_header);
        let header_len = frame.len();
        let pseudo = [&addresses[..], &[0, protocol], &(transport_len as u32).to_be_bytes()];
        let pseudo = definition(&pseudo.concat());
        let field = transport_at + offset;
        frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        frame.extend(noise(self.payload));
        let ip_end = frame.len();
        frame.extend(vec![0xEE; self.padding]);
        let kind = match (&self.ip, &self.transport) {
            (_, Transport::Udp) => SegmentationKind::Udp,
            (Ip::V4 { .. }, _) => SegmentationKind::Tcp4,
            (Ip::V6(_), _) => SegmentationKind::Tcp6,
        };
        Built {
            frame,
            segmentation: Segmentation { kind, ecn: false, size: self.size, header_hint: 0 },
            checksum: PartialChecksum { start: transport_at as u16, offset: offset as u16 },
            network_at,
            header_len,
            ip_end,
        }
    }
}

impl Built {
    fn plan(&self) -> Result<Segments, SegmentFault> {
        Segments::plan(&self.frame, self.frame.len(), self.segmentation, self.checksum)
    }

    fn segments(&self) -> Vec<Vec<u8>> {
        let mut plan = self.plan().unwrap();
        assert_eq!(plan.header_len(), self.header_len);
        let count = plan.count();
        let mut segments = Vec::new();
        while let Some(segment) = plan.next() {
            let payload = &self.frame[segment.payload()];
            assert_eq!(payload.len(), segment.payload_len());
            let mut sum = Sum::new();
            sum.add(payload);
            let mut bytes = segment.header().to_vec();
            bytes[segment.checksum_at()..][..2].copy_from_slice(&segment.checksum(sum));
            bytes.extend(payload);
            segments.push(bytes);
        }
        assert_eq!(segments.len(), count);
        assert!(plan.next().is_none());
        segments
    }
}

/// Checksums compare in either form of zero, but UDP must not send the one that means "none".
fn same_checksum(sent: u16, expected: u16) -> bool {
    sent % 0xffff == expected % 0xffff
}

/// Has etherparse read a segment and check all its lengths and checksums. Returns its payload.
fn check(segment: &[u8], tags: usize) -> &[u8] {
    let packet = SlicedPacket::from_ethernet(segment).expect("a whole frame");
    assert_eq!(packet.link_exts.len(), tags);
    let (source, destination, payload) = match packet.net.as_ref().expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let len = ip.header().slice().len() + ip.payload().payload.len();
            assert_eq!(usize::from(header.total_len), len);
            (header.source.to_vec(), header.destination.to_vec(), ip.payload())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let len = ip.extensions().slice().len() + ip.payload().payload.len();
            assert_eq!(usize::from(header.payload_length), len);
            (header.source.to_vec(), header.destination.to_vec(), ip.payload())
        }
        other => panic!("not IP: {other:?}"),
    };
    let end = payload.payload.as_ptr_range().end;
    assert_eq!(end, segment.as_ptr_range().end, "nothing is left behind the packet");
    let v4 = |address: &[u8]| <[u8; 4]>::try_from(address).ok();
    let v6 = |address: &[u8]| <[u8; 16]>::try_from(address).expect("an address");
    match packet.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let expected = match (v4(&source), v4(&destination)) {
                (Some(source), Some(destination)) => tcp.calc_checksum_ipv4(source, destination),
                _ => tcp.calc_checksum_ipv6(v6(&source), v6(&destination)),
            };
            assert!(same_checksum(tcp.checksum(), expected.unwrap()));
            tcp.payload()
        }
        TransportSlice::Udp(udp) => {
            assert_eq!(usize::from(udp.length()), udp.slice().len());
            let (header, payload) = (udp.to_header(), udp.payload());
            let expected = match (v4(&source), v4(&destination)) {
                (Some(source), Some(destination)) => {
                    header.calc_checksum_ipv4_raw(source, destination, payload)
                }
                _ => header.calc_checksum_ipv6_raw(v6(&source), v6(&destination), payload),
            };
            assert_ne!(udp.checksum(), 0, "which means that there is none");
            assert!(same_checksum(udp.checksum(), expected.unwrap()));
            payload
        }
        other => panic!("not TCP or UDP: {other:?}"),
    }
}

/// Everything that has to hold for all segments of a frame.
fn check_all(shape: &Shape) {
    let built = shape.build();
    let segments = built.segments();
    let size = usize::from(shape.size);
    assert_eq!(segments.len(), shape.payload.div_ceil(size).max(1));
    let plan = built.plan().unwrap();
    let lens: Vec<usize> = segments.iter().map(Vec::len).collect();
    assert!(plan.frame_lens().eq(lens.iter().copied()));
    assert_eq!(Some(plan.longest()), lens.iter().copied().max());
    if shape.padding == 0 {
        let offload =
            Offload { checksum: Some(built.checksum), segmentation: Some(built.segmentation) };
        let (frames, bytes) = (segments.len() as u64, lens.iter().sum::<usize>() as u64);
        let cost = offload.cost(&built.frame, built.frame.len());
        assert_eq!(cost, WireCost { frames, bytes });
    }
    let mut payload = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let is_last = number + 1 == segments.len();
        let part = check(segment, shape.tags.len());
        assert!(part.len() == size || is_last && part.len() <= size);

        // The headers, with those fields undone that differ.
        let mut header = segment[..built.header_len].to_vec();
        let mut original = built.frame[..built.header_len].to_vec();
        let network_at = built.network_at;
        match shape.ip {
            Ip::V4 { identification, .. } => {
                let found = u16::from_be_bytes([header[network_at + 4], header[network_at + 5]]);
                assert_eq!(found, identification.wrapping_add(number as u16));
                for headers in [&mut header, &mut original] {
                    headers[network_at + 2..network_at + 6].fill(0);
                    headers[network_at + 10..network_at + 12].fill(0);
                }
            }
            Ip::V6(_) => [&mut header, &mut original]
                .into_iter()
                .for_each(|headers| headers[network_at + 4..network_at + 6].fill(0)),
        }
        let transport_at = usize::from(built.checksum.start);
        match shape.transport {
            Transport::Tcp { sequence, flags, .. } => {
                let found = header[transport_at + 4..][..4].try_into().unwrap();
                let expected = sequence.wrapping_add((number * size) as u32);
                assert_eq!(u32::from_be_bytes(found), expected);
                let not_here = if number > 0 { TCP_CWR } else { 0 };
                let not_yet = if is_last { 0 } else { TCP_FIN | TCP_PSH };
                assert_eq!(header[transport_at + 13], flags & !not_here & !not_yet);
                for headers in [&mut header, &mut original] {
                    headers[transport_at + 4..transport_at + 8].fill(0);
                    headers[transport_at + 13] = 0;
                    headers[transport_at + 16..transport_at + 18].fill(0);
                }
            }
            Transport::Udp => [&mut header, &mut original]
                .into_iter()
                .for_each(|headers| headers[transport_at + 4..transport_at + 8].fill(0)),
        }
        assert_eq!(header, original, "segment {number}");
        payload.extend_from_slice(part);
    }
    assert!(payload == built.frame[built.header_len..built.ip_end], "bytes out are bytes in");
}

fn shapes() -> impl Strategy<Value = Shape> {
    let tags = prop::collection::vec(any::<(bool, u16)>(), 0..=2);
    let extensions = (
        prop::option::of(0u8..4),
        prop::collection::vec((prop::sample::select(vec![43u8, 60]), 0u8..3), 0..=3),
    );
    let extensions = extensions.prop_map(|(hop_by_hop, others)| {
        // It may only come first.
        let first = hop_by_hop.map(|len| (protocol::HOP_BY_HOP, len));
        Ip::V6(first.into_iter().chain(others).collect())
    });
    let ip = prop_oneof![
        (0usize..=10, any::<u16>())
            .prop_map(|(options, identification)| Ip::V4 { options, identification }),
        extensions,
    ];
    let transport = prop_oneof![
        2 => (0usize..=10, any::<u32>(), any::<u8>())
            .prop_map(|(options, sequence, flags)| Transport::Tcp { options, sequence, flags }),
        1 => Just(Transport::Udp),
    ];
    let sizes = prop_oneof![
        // So many segments only of small frames: each is looked at.
        (0usize..200, 1u16..40),
        (0usize..20_000, 500u16..=u16::MAX),
        (60_000..=MAX_PAYLOAD, 1400u16..=9000),
        (0..=MAX_PAYLOAD, 8000..=u16::MAX),
    ];
    (tags, ip, transport, sizes, 0usize..20, any::<bool>()).prop_map(
        |(tags, ip, transport, (payload, size), padding, without_length)| Shape {
            tags,
            ip,
            transport,
            payload,
            // Without a length, nobody can tell padding from payload.
            padding: if without_length { 0 } else { padding },
            without_length,
            size,
        },
    )
}

fn tcp4() -> Shape {
    Shape {
        tags: vec![],
        ip: Ip::V4 { options: 0, identification: 0xfffe },
        transport: Transport::Tcp { options: 3, sequence: u32::MAX - 100, flags: 0xff },
        payload: 65_000,
        padding: 0,
        without_length: false,
        size: 1448,
    }
}

#[test]
fn every_size_of_segment() {
    let mut shape = tcp4();
    shape.payload = 1000;
    for size in (1..=1001).chain([u16::MAX - 1, u16::MAX]) {
        check_all(&Shape { size, ..shape.clone() });
    }
    check_all(&Shape { size: 1, ..tcp4() });
}

#[test]
fn the_longest_headers_of_ipv4() {
    let shape = Shape {
        tags: vec![(true, 100), (false, 200)],
        ip: Ip::V4 { options: 10, identification: 7 },
        transport: Transport::Tcp { options: 10, sequence: 0, flags: 0x18 },
        ..tcp4()
    };
    assert_eq!(shape.build().header_len, 142);
    check_all(&shape);
}

#[test]
fn a_frame_without_payload_is_one_segment() {
    for payload in [0, 1] {
        check_all(&Shape { payload, size: 1, ..tcp4() });
        check_all(&Shape { payload, size: 1, transport: Transport::Udp, ..tcp4() });
    }
}

/// Flags of the first, the middle and the last of three segments.
#[test]
fn flags_go_where_they_belong() {
    let built = Shape { payload: 250, size: 100, ..tcp4() }.build();
    let flags: Vec<u8> = built.segments().iter().map(|segment| segment[34 + 13]).collect();
    assert_eq!(flags, [!0x09, !0x89, !0x80]);
}

/// In UDP a checksum of zero says that there is none (RFC 768), and over IPv6 it is not even allowed
/// (RFC 8200, section 8.1).
#[test]
fn a_datagram_whose_sum_is_zero_says_so_by_all_ones() {
    for ip in [Ip::V4 { options: 0, identification: 1 }, Ip::V6(vec![])] {
        let shape = Shape { ip, transport: Transport::Udp, payload: 300, size: 100, ..tcp4() };
        let mut built = shape.build();
        let field = usize::from(built.checksum.start) + 6;
        for number in 0..3 {
            let last = built.header_len + 100 * number + 98;
            let segment = &built.segments()[number];
            let checksum = [segment[field], segment[field + 1]];
            assert_ne!(checksum, [0xff, 0xff]);
            // Adding the checksum to what it is over makes the sum all ones, and its complement 0.
            let word = [built.frame[last], built.frame[last + 1]];
            let adjusted = definition(&[word, checksum].concat());
            built.frame[last..last + 2].copy_from_slice(&adjusted.to_be_bytes());
        }
        for segment in built.segments() {
            assert_eq!(segment[field..field + 2], [0xff, 0xff]);
            check(&segment, 0);
        }
    }
}

#[test]
fn the_senders_pseudo_header_counts() {
    // With a routing header that has segments left, the pseudo header names the last of them.
    let shape = Shape { ip: Ip::V6(vec![(43, 2)]), payload: 3000, ..tcp4() };
    let mut built = shape.build();
    let routing = built.network_at + 40;
    built.frame[routing + 2..routing + 4].copy_from_slice(&[2, 1]);
    built.frame[routing + 8..routing + 24].fill(0x77);
    let addresses = [&built.frame[built.network_at + 8..][..16], &[0x77; 16]].concat();
    let transport_at = usize::from(built.checksum.start);
    let pseudo = |len: usize| {
        let pseudo = [&addresses[..], &[0, 6], &(len as u32).to_be_bytes()];
        definition(&pseudo.concat()).to_be_bytes()
    };
    let whole = pseudo(built.frame.len() - transport_at);
    built.frame[transport_at + 16..transport_at + 18].copy_from_slice(&whole);
    let segments = built.segments();
    assert_eq!(segments.len(), 3);
    for segment in segments {
        let transport = &segment[transport_at..];
        let verified = [&pseudo(transport.len())[..], transport].concat();
        assert_eq!(definition(&verified), 0xffff);
    }
}

/// A change to a good frame, and the fault that it makes.
fn fault(shape: &Shape, change: impl FnOnce(&mut Built)) -> SegmentFault {
    let mut built = shape.build();
    assert!(built.plan().is_ok());
    change(&mut built);
    built.plan().expect_err("a fault")
}

#[test]
fn each_rule_has_its_fault() {
    let v4 = tcp4();
    let v6 = Shape { ip: Ip::V6(vec![]), ..tcp4() };
    let udp = Shape { transport: Transport::Udp, payload: 1000, ..tcp4() };

    let not_ip = |ethertype| SegmentFault::NotIp { ethertype };
    let arp = fault(&v4, |built| built.frame[13] = 6);
    assert_eq!(arp, not_ip(EtherType::ARP));
    let third_tag = Shape { tags: vec![(true, 1), (false, 2)], ..tcp4() };
    let third_tag = fault(&third_tag, |built| built.frame[20..22].copy_from_slice(&[0x81, 0]));
    assert_eq!(third_tag, not_ip(EtherType::VLAN));

    let version = |found, expected| SegmentFault::IpVersion { found, expected };
    assert_eq!(fault(&v4, |built| built.frame[14] = 0x65), version(6, 4));
    assert_eq!(fault(&v4, |built| built.frame[12..14].copy_from_slice(&[0x86, 0xdd])), {
        version(6, 4)
    });
    let other = |kind| move |built: &mut Built| built.segmentation.kind = kind;
    assert_eq!(fault(&v4, other(SegmentationKind::Tcp6)), version(4, 6));
    assert_eq!(fault(&v6, other(SegmentationKind::Tcp4)), version(6, 4));

    let protocol = |found, expected| SegmentFault::Protocol { found, expected };
    assert_eq!(fault(&v4, other(SegmentationKind::Udp)), protocol(6, 17));
    assert_eq!(fault(&udp, other(SegmentationKind::Tcp4)), protocol(17, 6));
    assert_eq!(fault(&v4, |built| built.frame[14 + 9] = 1), protocol(1, 6));
    // Encrypted, authenticated, and nothing at all.
    for number in [50, 51, 59] {
        assert_eq!(fault(&v6, |built| built.frame[14 + 6] = number), protocol(number, 6));
    }

    let short = |header, bytes| SegmentFault::HeaderTooShort { header, bytes };
    assert_eq!(fault(&v4, |built| built.frame[14] = 0x44), short("IPv4", 16));
    assert_eq!(fault(&v4, |built| built.frame[34 + 12] = 0x4f), short("TCP", 16));

    for fragment in [[0x20, 0], [0x00, 1], [0x1f, 0xff]] {
        let change = |built: &mut Built| built.frame[20..22].copy_from_slice(&fragment);
        assert_eq!(fault(&v4, change), SegmentFault::Fragment);
    }
    assert_eq!(fault(&v6, |built| built.frame[14 + 6] = 44), SegmentFault::Fragment);

    let length = |header, said, actual| SegmentFault::Length { header, said, actual };
    let v4_len = v4.build().frame.len() - 14;
    let say = |said: usize| {
        move |built: &mut Built| built.frame[16..18].copy_from_slice(&(said as u16).to_be_bytes())
    };
    assert_eq!(fault(&v4, say(v4_len + 1)), length("IP", v4_len + 1, v4_len));
    assert_eq!(fault(&v4, say(51)), length("IP", 51, 52), "less than the headers");
    assert_eq!(fault(&v4, say(1)), length("IP", 1, 52));
    let v6_len = v6.build().frame.len() - 54;
    let say = |said: usize| {
        move |built: &mut Built| built.frame[18..20].copy_from_slice(&(said as u16).to_be_bytes())
    };
    assert_eq!(fault(&v6, say(v6_len + 1)), length("IP", v6_len + 1, v6_len));
    assert_eq!(fault(&v6, say(31)), length("IP", 71, 72));
    for (said, low) in [(1007, 0xef), (1009, 0xf1)] {
        let change = |built: &mut Built| built.frame[34 + 5] = low;
        assert_eq!(fault(&udp, change), length("UDP", said, 1008));
    }

    for (start, offset) in [(33, 16), (35, 16), (34, 6), (34, 15), (34, 17), (54, 16)] {
        let change = |built: &mut Built| built.checksum = PartialChecksum { start, offset };
        let expected = SegmentFault::ChecksumPlace { start, offset, transport: 34, checksum: 16 };
        assert_eq!(fault(&v4, change), expected);
    }
}

#[test]
fn headers_that_do_not_end_are_refused() {
    // Cut at each byte: of the frame, and of what is looked at.
    for shape in [
        Shape { tags: vec![(true, 1), (false, 2)], payload: 0, without_length: true, ..tcp4() },
        Shape { ip: Ip::V6(vec![(0, 0), (60, 1)]), payload: 0, without_length: true, ..tcp4() },
        Shape { transport: Transport::Udp, payload: 0, ..tcp4() },
    ] {
        let built = shape.build();
        let Built { frame, segmentation, checksum, .. } = &built;
        for len in 0..frame.len() {
            for (head, frame_len) in [(&frame[..len], len), (&frame[..len], 500), (frame, len)] {
                let planned = Segments::plan(head, frame_len, *segmentation, *checksum);
                let fault = planned.expect_err("headers that were cut");
                let is_expected = match fault {
                    SegmentFault::HeadersTooLong { looked_at } => looked_at == len,
                    // Cut frames contradict their own length.
                    SegmentFault::Length { header: "IP", .. } => frame_len == len,
                    _ => false,
                };
                assert!(is_expected, "{len} bytes of {frame_len}: {fault}");
            }
        }
    }
    // Extension headers up to the limit, and one byte further than that.
    let long = |len| Shape { ip: Ip::V6(vec![(60, len)]), payload: 100, ..tcp4() };
    check_all(&long(19));
    assert_eq!(long(19).build().header_len, 54 + 160 + 32);
    for len in [21, 255] {
        let fault = long(len).build().plan().unwrap_err();
        assert_eq!(fault, SegmentFault::HeadersTooLong { looked_at: MAX_HEADERS });
    }
    // Headers that go on in a circle would be as bad, but there is no way to say that: each is
    // further on than the last. The shortest ones there are, to the end of what is looked at:
    let endless = Shape { ip: Ip::V6(vec![(60, 0); 100]), ..tcp4() };
    let fault = endless.build().plan().unwrap_err();
    assert_eq!(fault, SegmentFault::HeadersTooLong { looked_at: MAX_HEADERS });
}

#[test]
fn a_segment_beyond_the_length_field_is_refused() {
    // Possible only without a length: the frame may be a bit longer than 64 KiB.
    let shape = Shape { payload: 65_540 - 52, without_length: true, size: u16::MAX, ..tcp4() };
    let fault = shape.build().plan().unwrap_err();
    assert_eq!(fault, SegmentFault::SegmentTooLong { bytes: 65_540 });
    check_all(&Shape { size: 65_483, ..shape });
}

#[test]
fn faults_speak_to_people() {
    let fault = SegmentFault::ChecksumPlace { start: 1, offset: 2, transport: 34, checksum: 16 };
    assert_eq!(
        fault.to_string(),
        "csum_start 1 and csum_offset 2, where the headers have their checksum at 34 and 16"
    );
}

proptest! {
    #[test]
    fn segments_are_right_and_make_up_the_frame(shape in shapes()) {
        check_all(&shape);
    }

    /// Where there is nothing to cut: the checksum alone, behind the same headers.
    #[test]
    fn a_checksum_alone_is_right_behind_any_headers(shape in shapes()) {
        let shape = Shape { padding: 0, without_length: false, ..shape };
        let mut built = shape.build();
        if let Ip::V4 { options, .. } = shape.ip {
            let header = built.network_at..built.network_at + 20 + 4 * options;
            let field = built.network_at + 10..built.network_at + 12;
            built.frame[field.clone()].fill(0);
            let sum = !definition(&built.frame[header]);
            built.frame[field].copy_from_slice(&sum.to_be_bytes());
        }
        prop_assert!(crate::checksum::complete(&mut built.frame, built.checksum));
        let payload = check(&built.frame, shape.tags.len());
        prop_assert!(payload == &built.frame[built.header_len..]);
    }

    /// Whatever a guest writes: no panic, and every payload is a part of the frame.
    #[test]
    fn planning_is_total(
        shape in shapes(),
        changes in prop::collection::vec((0usize..160, any::<u8>()), 0..4),
        frame_len in prop::option::of(0usize..70_000),
        kind in prop::sample::select(vec![
            SegmentationKind::Tcp4, SegmentationKind::Tcp6, SegmentationKind::Udp,
        ]),
        keep in any::<bool>(),
    ) {
        let mut built = shape.build();
        for (at, byte) in changes {
            if let Some(place) = built.frame.get_mut(at) {
                *place = byte;
            }
        }
        let mut segmentation = built.segmentation;
        if !keep {
            segmentation.kind = kind;
        }
        let frame_len = frame_len.unwrap_or(built.frame.len());
        let planned = Segments::plan(&built.frame, frame_len, segmentation, built.checksum);
        if let Ok(mut segments) = planned {
            let mut next = segments.header_len();
            while let Some(segment) = segments.next() {
                prop_assert_eq!(segment.payload().start, next);
                next = segment.payload().end;
                prop_assert!(next <= frame_len);
                prop_assert!(segment.checksum_at() + 2 <= segment.header().len());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_danger(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        start: u16,
        size in 1u16..,
    ) {
        let kind = SegmentationKind::Udp;
        let segmentation = Segmentation { kind, ecn: true, size, header_hint: 0 };
        let checksum = PartialChecksum { start, offset: 6 };
        let _ = Segments::plan(&bytes, 65_000, segmentation, checksum);
    }
}
