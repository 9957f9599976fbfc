//! The frames: what is written before, what changes with each, and what is checked.
//!
//! ```text
//!  0  destination, source    02:72:77 PORT NUMBER NUMBER, for `--macs`
//! 12  IPv4, UDP or TCP       the source port is the flow's, for `--flows`
//!     stamp                  identity u64, time u64, checksum u32, all little-endian
//!     pattern                to the end; another one in each transmit buffer
//! ```
//!
//! With the virtio-net header of 12 bytes in front, the stamp lies on a multiple of eight: each of
//! its parts is one store.

use std::net::Ipv4Addr;

use wire::checksum::Sum;
use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};
use wire::virtio::NetHeader;

/// The shortest frame, in bytes without the Ethernet checksum: all headers and a stamp.
pub const MIN_SIZE: usize = 64;
/// The shortest frame that is to be segmented: it has a TCP header.
pub const MIN_SEGMENTED_SIZE: usize = 128;
/// The longest frame: an IPv4 packet of the greatest length.
pub const MAX_SIZE: usize = 65535 + HEADER_SIZE;

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const TRANSPORT: usize = HEADER_SIZE + IPV4_HEADER;
/// Payload of each segment that a frame is to be cut into.
const SEGMENT: u16 = 1448;
const SOURCE_PORT: usize = TRANSPORT;
const TCP_CHECKSUM: usize = TRANSPORT + 16;
/// The first source port of a flow. Flows have those behind it.
const FIRST_FLOW: u16 = 1024;
/// Marks a frame as ours.
const MARK: u64 = 0xb7;

/// Which frames a load consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Sizes in bytes, without the Ethernet checksum: each flow sends them in turns. From [`MIN_SIZE`] to
    /// [`MAX_SIZE`], at most 255 of them.
    pub sizes: Vec<usize>,
    /// Whether they are TCP segments for the device to cut up.
    pub segmented: bool,
}

impl Frames {
    /// The longest one, in bytes.
    pub fn longest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(MIN_SIZE)
    }

    /// Bytes of a frame on average.
    pub fn mean(&self) -> f64 {
        self.sizes.iter().sum::<usize>() as f64 / self.sizes.len().max(1) as f64
    }

    /// Each size once, and the place in this list of the size whose turn it is.
    pub(super) fn turns(&self) -> (Vec<usize>, Vec<u8>) {
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        let place = |size| sizes.binary_search(size).unwrap_or_default() as u8;
        let turns = self.sizes.iter().map(place).collect();
        (sizes, turns)
    }
}

/// Where the stamp begins, in bytes from the start of the frame.
pub(super) const fn stamp_offset(segmented: bool) -> usize {
    let headers = TRANSPORT + if segmented { TCP_HEADER } else { UDP_HEADER };
    (NetHeader::SIZE + headers).next_multiple_of(8) - NetHeader::SIZE
}

/// Who sent a frame, in which trial, and as what number, in one word.
pub(super) enum Identity {}

impl Identity {
    const NUMBER_BITS: u32 = 40;

    /// The identity of a port's first frame in a trial; the numbers of the others can be added. Frames
    /// of an earlier trial may still be on their way.
    pub fn base(port: u8, trial: u8) -> u64 {
        MARK << 56 | u64::from(port) << 48 | u64::from(trial) << Self::NUMBER_BITS
    }

    /// The number, when this is an identity with that base.
    #[inline]
    pub fn number_of(word: u64, base: u64) -> Option<u64> {
        let number = word ^ base;
        (number >> Self::NUMBER_BITS == 0).then_some(number)
    }
}

/// How the addresses of frames change from each to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Ethernet addresses of each port, from 1 to 65536.
    pub macs: u32,
    /// Flows of each address: UDP or TCP source ports, from 1 to 60000.
    pub flows: u16,
}

impl Addresses {
    /// Flows of a port, with all of its addresses.
    pub(super) fn count(self) -> u64 {
        u64::from(self.macs) * u64::from(self.flows)
    }

    /// Whether all frames of a port have the same.
    pub(super) fn are_fixed(self) -> bool {
        self.count() <= 1
    }
}

/// One of the Ethernet addresses of a port.
pub(super) fn mac(port: u8, number: u16) -> MacAddress {
    let [high, low] = number.to_be_bytes();
    MacAddress([0x02, 0x72, 0x77, port, high, low])
}

/// The source port of a flow.
pub(super) fn flow_port(flow: u16) -> u16 {
    FIRST_FLOW.saturating_add(flow)
}

/// The part of a stamp that is checked: all of the frame but the checksum itself. The static part
/// first, so that it has to be summed only once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest(u64);

impl Digest {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Both steps can be undone, so that frames which differ in one word differ in their digest.
    #[must_use]
    fn with(self, word: u64) -> Self {
        Self((self.0.rotate_left(23) ^ word).wrapping_mul(Self::FACTOR))
    }

    fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let digest = Self(bytes.len() as u64);
        let digest =
            words.iter().fold(digest, |digest, word| digest.with(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        digest.with(u64::from_le_bytes(last))
    }

    /// The checksum of a frame whose static part this is.
    pub fn checksum(self, variable: Variable, identity: u64, time: u64) -> u32 {
        let digest = self.with(variable.0).with(identity).with(time);
        (digest.0 >> 32) as u32
    }
}

/// What changes in the headers: both Ethernet addresses, which an echo may exchange, and the source
/// port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variable(u64);

impl Variable {
    pub fn new(destination: MacAddress, source: MacAddress, port: u16) -> Self {
        let mut bytes = [0; 8];
        for (at, byte) in bytes.iter_mut().take(6).enumerate() {
            *byte = destination.0[at] ^ source.0[at];
        }
        Self(u64::from_le_bytes(bytes) | u64::from(port) << 48)
    }
}

/// A stamp as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub identity: u64,
    pub time: u64,
}

/// One frame with the header before it, as it lies in a transmit buffer.
pub struct Template {
    /// Header and frame.
    pub(super) bytes: Vec<u8>,
    /// Of what does not change.
    pub(super) digest: Digest,
}

impl Template {
    /// A frame without a stamp.
    pub(super) fn of(frame: &[u8]) -> Self {
        let bytes = [&NetHeader::default().to_bytes()[..], frame].concat();
        Self { bytes, digest: Digest::default() }
    }

    /// The frame of this transmit buffer, from one port to another. `size` is in bytes without the
    /// Ethernet checksum.
    pub fn new(from: u8, to: u8, size: usize, segmented: bool, slot: u16) -> Self {
        let mut frame = vec![0; size];
        let ethernet = Ethernet {
            destination: mac(to, 0),
            source: mac(from, 0),
            ethertype: EtherType::IPV4,
            vlan: None,
        };
        let mut header = NetHeader::default();
        if let Some(packet) = ethernet.write(&mut frame) {
            write_ipv4(packet, from, to, segmented);
        }
        if segmented {
            header = NetHeader {
                flags: NetHeader::NEEDS_CSUM,
                gso_type: NetHeader::GSO_TCPV4,
                hdr_len: (TRANSPORT + TCP_HEADER) as u16,
                gso_size: SEGMENT,
                csum_start: TRANSPORT as u16,
                csum_offset: (TCP_CHECKSUM - TRANSPORT) as u16,
                num_buffers: 0,
            };
        }
        let pattern = stamp_offset(segmented) + 20;
        let salt = 2 * u32::from(slot) + 1;
        for (byte, at) in frame.iter_mut().zip(0u32..).skip(pattern) {
            *byte = (at.wrapping_mul(salt).wrapping_mul(0x9e37_79b1) >> 24) as u8;
        }
        let mut copy = frame.clone();
        let (_, digest) = take_out(&mut copy, segmented);
        Self { bytes: [&header.to_bytes()[..], &frame].concat(), digest }
    }

    /// One of the words that all of it consists of, header included.
    pub(super) fn word(&self, at: usize) -> u64 {
        let word = self.bytes.get(8 * at..).and_then(|bytes| bytes.first_chunk());
        word.map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// A packet of UDP, or of TCP with a partial checksum, to the end of `packet`.
fn write_ipv4(packet: &mut [u8], from: u8, to: u8, segmented: bool) {
    let len = packet.len() as u16;
    let address = |port| Ipv4Addr::new(198, 18, port, 1).octets();
    let (protocol, transport_len) = (if segmented { 6 } else { 17 }, len - IPV4_HEADER as u16);
    let mut header = [0; IPV4_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[6] = 0x40; // do not fragment
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&address(from));
    header[16..20].copy_from_slice(&address(to));
    let mut sum = Sum::new();
    sum.add(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    let Some((ip, transport)) = packet.split_first_chunk_mut() else { return };
    *ip = header;
    let ports = [flow_port(0).to_be_bytes(), 9u16.to_be_bytes()].concat();
    if segmented {
        let mut pseudo = Sum::new();
        pseudo.add(&header[12..20]);
        pseudo.add_number(protocol.into());
        pseudo.add_number(transport_len);
        let mut tcp = [0; TCP_HEADER];
        tcp[..4].copy_from_slice(&ports);
        tcp[12] = 0x50;
        tcp[13] = 0x10; // ACK
        tcp[14..16].copy_from_slice(&0xffffu16.to_be_bytes());
        // The device completes it.
        tcp[16..18].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
        transport[..TCP_HEADER].copy_from_slice(&tcp);
    } else {
        // Without a checksum, which IPv4 allows.
        transport[..4].copy_from_slice(&ports);
        transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
    }
}

/// The stamp of a received frame. None when it is too short for one.
pub(super) fn stamp(frame: &[u8], segmented: bool) -> Option<Stamp> {
    let (identity, rest) = frame.get(stamp_offset(segmented)..)?.split_first_chunk()?;
    let time = rest.first_chunk()?;
    Some(Stamp { identity: u64::from_le_bytes(*identity), time: u64::from_le_bytes(*time) })
}

/// Whether a received frame, whose stamp this is, is what was sent. Overwrites what varies.
pub(super) fn is_intact(frame: &mut [u8], segmented: bool, stamp: Stamp) -> bool {
    let at = stamp_offset(segmented) + 16;
    let Some(checksum) = frame.get(at..).and_then(|rest| rest.first_chunk()) else { return false };
    let checksum = u32::from_le_bytes(*checksum);
    let (variable, digest) = take_out(frame, segmented);
    digest.checksum(variable, stamp.identity, stamp.time) == checksum
}

/// Replaces what varies by zeros, and returns what it was, and the digest of the rest.
fn take_out(frame: &mut [u8], segmented: bool) -> (Variable, Digest) {
    let mut variable = Variable(0);
    if let Some((head, _)) = frame.split_first_chunk_mut::<{ SOURCE_PORT + 2 }>() {
        let mut address = |at: usize| {
            let mut bytes = [0; 6];
            bytes.copy_from_slice(&head[at..at + 6]);
            head[at..at + 6].fill(0);
            MacAddress(bytes)
        };
        let (destination, source) = (address(0), address(6));
        let port = u16::from_be_bytes([head[SOURCE_PORT], head[SOURCE_PORT + 1]]);
        head[SOURCE_PORT..].fill(0);
        variable = Variable::new(destination, source, port);
    }
    // Whoever checked or completed the TCP checksum may have changed it.
    if segmented && let Some(field) = frame.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2) {
        field.fill(0);
    }
    let stamp = stamp_offset(segmented);
    if let Some(field) = frame.get_mut(stamp..stamp + 20) {
        field.fill(0);
    }
    (variable, Digest::of(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as the generator would send it.
    fn frame(size: usize, segmented: bool, slot: u16) -> Vec<u8> {
        let template = Template::new(3, 4, size, segmented, slot);
        let mut frame = template.bytes[NetHeader::SIZE..].to_vec();
        let identity = Identity::base(3, 200) + 0x12_3456_789a;
        let variable = Variable::new(mac(4, 0), mac(3, 0), flow_port(0));
        let checksum = template.digest.checksum(variable, identity, 77);
        let at = stamp_offset(segmented);
        frame[at..at + 8].copy_from_slice(&identity.to_le_bytes());
        frame[at + 8..at + 16].copy_from_slice(&77u64.to_le_bytes());
        frame[at + 16..at + 20].copy_from_slice(&checksum.to_le_bytes());
        frame
    }

    fn check(frame: &[u8], segmented: bool) -> bool {
        let stamp = stamp(frame, segmented).unwrap();
        is_intact(&mut frame.to_vec(), segmented, stamp)
    }

    #[test]
    fn identities_are_told_apart() {
        let base = Identity::base(3, 200);
        let word = base + 5;
        assert_eq!(Identity::number_of(word, base), Some(5));
        for other in [Identity::base(4, 200), Identity::base(3, 201), 0] {
            assert_eq!(Identity::number_of(word, other), None);
        }
        assert_eq!(Identity::number_of(0x4500_0123_4567_89ab, base), None);
    }

    #[test]
    fn stamps_lie_on_whole_words_behind_all_headers() {
        for (segmented, headers) in [(false, 42), (true, 54)] {
            let at = stamp_offset(segmented);
            assert!(at >= headers && (at + NetHeader::SIZE).is_multiple_of(8), "{at}");
        }
        assert_eq!(stamp_offset(false) + 20, MIN_SIZE);
        assert!(stamp_offset(true) + 20 <= MIN_SEGMENTED_SIZE);
    }

    #[test]
    fn a_frame_is_intact_until_a_bit_of_it_changes() {
        for (size, segmented) in [(64, false), (65, false), (594, false), (1518, true)] {
            let good = frame(size, segmented, 7);
            assert!(check(&good, segmented));
            let checksum = TCP_CHECKSUM..TCP_CHECKSUM + 2;
            for at in (0..size).filter(|at| !(segmented && checksum.contains(at))) {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << bit;
                    assert!(!check(&bad, segmented), "byte {at}, bit {bit} of {size}");
                }
            }
            assert!(!check(&good[..size - 1], segmented) || size == MIN_SIZE);
            assert!(!check(&[&good[..], &[0]].concat(), segmented));
        }
    }

    #[test]
    fn the_end_of_another_frame_is_found() {
        let (one, two) = (frame(200, false, 1), frame(200, false, 2));
        let mixed = [&one[..150], &two[150..]].concat();
        assert!(!check(&mixed, false));
    }

    #[test]
    fn an_echo_may_exchange_the_addresses() {
        let mut frame = frame(64, false, 0);
        frame[..12].rotate_left(6);
        assert!(check(&frame, false));
    }

    #[test]
    fn frames_are_what_their_headers_say() {
        for (size, segmented) in [(64, false), (1518, false), (9000, true), (MAX_SIZE, true)] {
            let template = Template::new(0, 1, size, segmented, 0);
            let frame = etherparse::SlicedPacket::from_ethernet(&template.bytes[12..]).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = frame.net else { panic!("no IPv4") };
            assert_eq!(usize::from(ip.header().total_len()), size - HEADER_SIZE);
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match frame.transport {
                Some(etherparse::TransportSlice::Tcp(tcp)) => {
                    assert!(segmented);
                    assert_eq!(tcp.source_port(), flow_port(0));
                    let first = template.bytes.first_chunk().unwrap();
                    let offload = NetHeader::from_bytes(first).offload(
                        size,
                        wire::virtio::Features::CSUM | wire::virtio::Features::HOST_TSO4,
                    );
                    assert!(offload.unwrap().segmentation.is_some());
                }
                Some(etherparse::TransportSlice::Udp(udp)) => {
                    assert!(!segmented);
                    assert_eq!(usize::from(udp.length()), size - TRANSPORT);
                }
                _ => panic!("no transport"),
            }
        }
    }
}
