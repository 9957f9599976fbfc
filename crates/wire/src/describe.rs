//! Frames in words, as a packet sniffer has them: what is in the headers, on one line.
//!
//! Total, as all of this crate: a frame that ends too early is described as far as it goes.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ethernet::{EtherType, Ethernet, MacAddress};
use crate::virtio::NetHeader;

/// Flags of a TCP header, lowest bit first.
const TCP_FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

/// A frame: its length, its Ethernet header, and what ARP or IP say.
pub fn frame(frame: &[u8]) -> String {
    let len = frame.len();
    let Some(header) = Ethernet::parse(frame) else {
        return format!("{len} bytes, too short for an Ethernet header");
    };
    let mut words = format!("{len} bytes, {} > {}", header.source, header.destination);
    if let Some(tag) = header.vlan {
        let _ = write!(words, ", VLAN {}", tag.id());
    }
    let payload = frame.get(header.header_len()..).unwrap_or_default();
    let inside = match header.ethertype {
        EtherType::ARP => arp("ARP", payload),
        EtherType::RARP => arp("RARP", payload),
        EtherType::IPV4 => ipv4(payload),
        EtherType::IPV6 => ipv6(payload),
        EtherType::LOCAL_EXPERIMENT => Some("local experiment".to_owned()),
        EtherType(length) if length < 0x600 => Some(format!("802.3, {length} bytes of payload")),
        other => Some(format!("type {other}")),
    };
    words + ", " + &inside.unwrap_or_else(|| format!("type {}, cut short", header.ethertype))
}

/// A virtio-net header: what is to be done to its frame.
pub fn net_header(header: &NetHeader) -> String {
    let mut words = Vec::new();
    if header.flags & NetHeader::NEEDS_CSUM != 0 {
        let (start, offset) = (header.csum_start, header.csum_offset);
        words.push(format!("checksum from byte {start} to be put at byte {start} + {offset}"));
    }
    if header.flags & NetHeader::DATA_VALID != 0 {
        words.push("checksum verified".to_owned());
    }
    let unknown = header.flags & !(NetHeader::NEEDS_CSUM | NetHeader::DATA_VALID);
    if unknown != 0 {
        words.push(format!("flags {unknown:#04x}"));
    }
    if header.gso_type != NetHeader::GSO_NONE {
        let kind = match header.gso_type & !NetHeader::GSO_ECN {
            NetHeader::GSO_TCPV4 => "TCP over IPv4".to_owned(),
            NetHeader::GSO_TCPV6 => "TCP over IPv6".to_owned(),
            NetHeader::GSO_UDP => "UDP fragments".to_owned(),
            NetHeader::GSO_UDP_L4 => "UDP".to_owned(),
            other => format!("unknown kind {other}"),
        };
        let ecn = if header.gso_type & NetHeader::GSO_ECN != 0 { " with ECN" } else { "" };
        let (size, headers) = (header.gso_size, header.hdr_len);
        words.push(format!("{kind}{ecn} in segments of {size} bytes, headers of {headers}"));
    }
    if header.num_buffers > 1 {
        words.push(format!("in {} buffers", header.num_buffers));
    }
    if words.is_empty() { "no offload".to_owned() } else { words.join(", ") }
}

/// `N` bytes at `at`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_be_bytes)
}

fn arp(name: &str, bytes: &[u8]) -> Option<String> {
    // Ethernet addresses of 6 bytes for IPv4 addresses of 4 (RFC 826).
    if field(bytes, 0)? != [0, 1, 8, 0, 6, 4] {
        return Some(format!("{name} of other addresses than IPv4's over Ethernet"));
    }
    let address = |at| field(bytes, at).map(Ipv4Addr::from);
    let station = |at| field(bytes, at).map(MacAddress);
    let (sender, target) = (address(14)?, address(24)?);
    Some(match number(bytes, 6)? {
        1 => format!("{name}: who has {target}? tell {sender}"),
        2 => format!("{name}: {sender} is at {}", station(8)?),
        3 => format!("{name}: who is {}? asks {}", station(18)?, station(8)?),
        4 => format!("{name}: {} is {target}", station(18)?),
        other => format!("{name}: operation {other}"),
    })
}

fn ipv4(bytes: &[u8]) -> Option<String> {
    let version = bytes.first()?;
    if version >> 4 != 4 {
        return Some(format!("IPv4 with version {}", version >> 4));
    }
    let header_len = usize::from(version & 0xf) * 4;
    let (from, to) = (Ipv4Addr::from(field(bytes, 12)?), Ipv4Addr::from(field(bytes, 16)?));
    let fragment = usize::from(number(bytes, 6)? & 0x1fff) * 8;
    let inside = match fragment {
        0 => transport(bytes[9], bytes.get(header_len..).unwrap_or_default()),
        offset => format!("fragment at {offset}"),
    };
    Some(format!("IPv4 {from} > {to}, {inside}"))
}

fn ipv6(bytes: &[u8]) -> Option<String> {
    let version = bytes.first()? >> 4;
    if version != 6 {
        return Some(format!("IPv6 with version {version}"));
    }
    let (from, to) =
        (Ipv6Addr::from(field::<16>(bytes, 8)?), Ipv6Addr::from(field::<16>(bytes, 24)?));
    let inside = transport(bytes[6], bytes.get(40..).unwrap_or_default());
    Some(format!("IPv6 {from} > {to}, {inside}"))
}

fn transport(protocol: u8, bytes: &[u8]) -> String {
    let known = match protocol {
        1 => icmp(bytes),
        6 => tcp(bytes),
        17 => udp(bytes),
        58 => icmp6(bytes),
        _ => return format!("protocol {protocol}"),
    };
    known.unwrap_or_else(|| format!("protocol {protocol}, cut short"))
}

fn tcp(bytes: &[u8]) -> Option<String> {
    let (from, to) = (number(bytes, 0)?, number(bytes, 2)?);
    let sequence = field(bytes, 4).map(u32::from_be_bytes)?;
    let [offset, flags] = field(bytes, 12)?;
    let set = TCP_FLAGS.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    let len = bytes.len().saturating_sub(usize::from(offset >> 4) * 4);
    Some(format!("TCP {from} > {to} [{}], sequence {sequence}, {len} bytes", set.join(" ")))
}

fn udp(bytes: &[u8]) -> Option<String> {
    let (from, to, len) = (number(bytes, 0)?, number(bytes, 2)?, number(bytes, 4)?);
    Some(format!("UDP {from} > {to}, {} bytes", len.saturating_sub(8)))
}

fn icmp(bytes: &[u8]) -> Option<String> {
    let [kind, code] = field(bytes, 0)?;
    Some(match kind {
        0 => format!("ICMP echo reply {} of {:#06x}", number(bytes, 6)?, number(bytes, 4)?),
        8 => format!("ICMP echo request {} of {:#06x}", number(bytes, 6)?, number(bytes, 4)?),
        _ => format!("ICMP type {kind}, code {code}"),
    })
}

fn icmp6(bytes: &[u8]) -> Option<String> {
    let [kind, code] = field(bytes, 0)?;
    let target = || field::<16>(bytes, 8).map(Ipv6Addr::from);
    Some(match kind {
        128 => format!("ICMPv6 echo request {} of {:#06x}", number(bytes, 6)?, number(bytes, 4)?),
        129 => format!("ICMPv6 echo reply {} of {:#06x}", number(bytes, 6)?, number(bytes, 4)?),
        133 => "ICMPv6 router solicitation".to_owned(),
        134 => "ICMPv6 router advertisement".to_owned(),
        135 => format!("ICMPv6 who has {}?", target()?),
        136 => format!("ICMPv6 {} is here", target()?),
        _ => format!("ICMPv6 type {kind}, code {code}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const HOSTS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];
    const STATIONS: &str = "52:54:00:00:00:01 > 52:54:00:00:00:02";

    /// A frame made by etherparse, which knows nothing of us.
    macro_rules! built {
        ($payload:expr, $($step:ident($($argument:expr),*)).+) => {{
            let builder = PacketBuilder::ethernet2(HOSTS[0], HOSTS[1])$(.$step($($argument),*))+;
            let mut bytes = Vec::new();
            builder.write(&mut bytes, $payload).unwrap();
            bytes
        }};
    }

    #[test]
    fn transport_protocols_in_ip() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let udp = built!(b"abc", ipv4(a, b, 64).udp(68, 67));
        assert_eq!(
            frame(&udp),
            format!("45 bytes, {STATIONS}, IPv4 10.0.0.1 > 10.0.0.2, UDP 68 > 67, 3 bytes")
        );
        let tcp = built!(b"abcd", ipv4(a, b, 64).tcp(80, 4000, 7, 9).syn().ack(1));
        assert_eq!(
            frame(&tcp),
            format!(
                "58 bytes, {STATIONS}, IPv4 10.0.0.1 > 10.0.0.2, TCP 80 > 4000 [SYN ACK], \
                 sequence 7, 4 bytes"
            )
        );
        let echo = built!(b"", ipv4(a, b, 64).icmpv4_echo_request(0x12, 3));
        assert!(frame(&echo).ends_with("ICMP echo request 3 of 0x0012"), "{}", frame(&echo));
        let echo = built!(b"", ipv4(a, b, 64).icmpv4_echo_reply(0x12, 3));
        assert!(frame(&echo).ends_with("ICMP echo reply 3 of 0x0012"), "{}", frame(&echo));
        let (mut a, mut b) = ([0; 16], [0; 16]);
        (a[0], a[15], b[0], b[15]) = (0xfd, 1, 0xfd, 2);
        let echo = built!(b"", ipv6(a, b, 64).icmpv6_echo_request(1, 2));
        assert!(
            frame(&echo).ends_with("IPv6 fd00::1 > fd00::2, ICMPv6 echo request 2 of 0x0001"),
            "{}",
            frame(&echo)
        );
    }

    #[test]
    fn arp_and_its_reverse() {
        let mut bytes = crate::rarp::announcement(MacAddress(HOSTS[0]));
        assert!(frame(&bytes).ends_with(
            "52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff, RARP: who is 52:54:00:00:00:01? asks \
             52:54:00:00:00:01"
        ));
        bytes[12..14].copy_from_slice(&EtherType::ARP.0.to_be_bytes());
        bytes[21] = 1;
        bytes[28..32].copy_from_slice(&[192, 168, 0, 2]);
        bytes[38..42].copy_from_slice(&[192, 168, 0, 1]);
        assert!(frame(&bytes).ends_with("ARP: who has 192.168.0.1? tell 192.168.0.2"));
        bytes[21] = 2;
        assert!(frame(&bytes).ends_with("ARP: 192.168.0.2 is at 52:54:00:00:00:01"));
        assert!(frame(&bytes[..40]).ends_with("type 0x0806, cut short"));
    }

    #[test]
    fn a_tag_is_told_and_what_is_unknown_is_numbered() {
        let tagged =
            built!(b"", single_vlan(5.try_into().unwrap()).ipv4([1; 4], [2; 4], 1).udp(1, 2));
        assert!(frame(&tagged).contains(", VLAN 5, IPv4 1.1.1.1 > 2.2.2.2, UDP 1 > 2, 0 bytes"));
        let mut other = tagged;
        other[12..14].copy_from_slice(&[0x12, 0x34]);
        assert!(frame(&other).ends_with(", type 0x1234"));
        assert_eq!(frame(&[0; 3]), "3 bytes, too short for an Ethernet header");
    }

    #[test]
    fn offloads_are_told_in_full() {
        assert_eq!(net_header(&NetHeader::default()), "no offload");
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            gso_type: NetHeader::GSO_TCPV4 | NetHeader::GSO_ECN,
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 2,
        };
        assert_eq!(
            net_header(&header),
            "checksum from byte 34 to be put at byte 34 + 16, TCP over IPv4 with ECN in segments \
             of 1448 bytes, headers of 66, in 2 buffers"
        );
    }

    proptest! {
        /// Whatever is behind an Ethernet header, and wherever it ends.
        #[test]
        fn every_frame_has_words(
            kind in prop_oneof![
                Just(0x0800u16), Just(0x0806), Just(0x86dd), Just(0x8100), Just(0x8035), any::<u16>()
            ],
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), any::<u8>()],
            mut rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            for (at, value) in [(0, version), (6, protocol), (9, protocol)] {
                if let Some(byte) = rest.get_mut(at) {
                    *byte = value;
                }
            }
            let bytes = [&[2; 12][..], &kind.to_be_bytes(), &rest].concat();
            for len in 0..=bytes.len() {
                let words = frame(&bytes[..len]);
                prop_assert!(words.starts_with(&format!("{} bytes", len)), "{}", words);
            }
        }
    }
}
