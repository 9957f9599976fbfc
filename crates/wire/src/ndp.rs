//! The two messages of IPv6 neighbour discovery that resolve addresses: solicitation and advertisement
//! (RFC 4861, sections 4.3 and 4.4).

use std::net::Ipv6Addr;

use thiserror::Error;

use crate::checksum::Sum;
use crate::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};

/// Bytes of a frame with a message and its one option.
pub const FRAME_SIZE: usize = HEADER_SIZE + IPV6_HEADER_SIZE + MESSAGE_SIZE + OPTION_SIZE;

/// Bytes of an IPv6 header.
pub const IPV6_HEADER_SIZE: usize = 40;
/// Bytes of a message without options.
const MESSAGE_SIZE: usize = 24;
/// Bytes of a link-layer address option of Ethernet.
const OPTION_SIZE: usize = 8;

const ICMPV6: u8 = 58;
/// What nobody outside of the link can send: each router on the way would have made it less.
const HOP_LIMIT: u8 = 255;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// The multicast address of all nodes on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The multicast address at which who has `target` listens (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks who has the target's address.
    Solicitation,
    /// Says who has it.
    Advertisement {
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces a link-layer address that is known.
        overrides: bool,
    },
}

/// A message, with the addresses of the IPv6 header before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it; unspecified when it asks whether it may have the target's address (RFC 4862).
    pub source: Ipv6Addr,
    /// Who it is for.
    pub destination: Ipv6Addr,
    /// What it does.
    pub kind: Kind,
    /// The address that it is about.
    pub target: Ipv6Addr,
    /// The link-layer address in its option: the source's in a solicitation, the target's in an
    /// advertisement.
    pub link_layer: Option<MacAddress>,
}

/// Why a message is to be ignored (RFC 4861, sections 7.1.1 and 7.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// The packet is cut off.
    #[error("the message is cut off")]
    CutOff,
    /// It may come from another link.
    #[error("hop limit {0} instead of {HOP_LIMIT}")]
    HopLimit(u8),
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
    /// There is no such code.
    #[error("code {0} instead of 0")]
    Code(u8),
    /// The target is a multicast address.
    #[error("the target is a multicast address")]
    Target,
    /// An option of no length, or one that is cut off.
    #[error("an option is cut off")]
    Option,
    /// An unspecified source, but not to a solicited-node address, or with a link-layer address.
    #[error("from the unspecified address, and not as such may be")]
    Unspecified,
    /// Says it was asked for, but to a group.
    #[error("a solicited advertisement to a group")]
    SolicitedToGroup,
}

impl Packet {
    /// Reads the IPv6 packet in these bytes; what is behind its length is padding. None when it is something
    /// else than these messages.
    ///
    /// A checksum that is not `complete` is not looked at: the packet never was on a wire.
    pub fn parse(packet: &[u8], complete: bool) -> Result<Option<Self>, Invalid> {
        let Some((header, rest)) = packet.split_first_chunk::<IPV6_HEADER_SIZE>() else {
            return Ok(None);
        };
        let [_, _, _, _, length_high, length_low, next_header, hop_limit, ..] = *header;
        let (ICMPV6, Some(&kind @ (SOLICITATION | ADVERTISEMENT))) = (next_header, rest.first())
        else {
            return Ok(None);
        };
        let address = |at: usize| {
            let bytes = header.get(at..).and_then(<[u8]>::first_chunk::<16>);
            bytes.map_or(Ipv6Addr::UNSPECIFIED, |bytes| Ipv6Addr::from(*bytes))
        };
        let (source, destination) = (address(8), address(24));
        let length = u16::from_be_bytes([length_high, length_low]);
        let message = rest.get(..length.into()).ok_or(Invalid::CutOff)?;
        let (fixed, mut options) =
            message.split_first_chunk::<MESSAGE_SIZE>().ok_or(Invalid::CutOff)?;
        if hop_limit != HOP_LIMIT {
            return Err(Invalid::HopLimit(hop_limit));
        }
        if complete && checksum(source, destination, message) != 0 {
            return Err(Invalid::Checksum);
        }
        let [_, code, _, _, flags, _, _, _, target @ ..] = *fixed;
        if code != 0 {
            return Err(Invalid::Code(code));
        }
        let target = Ipv6Addr::from(target);
        if target.is_multicast() {
            return Err(Invalid::Target);
        }
        let wanted = if kind == SOLICITATION { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
        let mut link_layer = None;
        while !options.is_empty() {
            let length = usize::from(*options.get(1).ok_or(Invalid::Option)?) * 8;
            let (option, rest) = options.split_at_checked(length).ok_or(Invalid::Option)?;
            match *option {
                [] => return Err(Invalid::Option),
                // The first counts. One of another length is that of another medium.
                [kind, _, a, b, c, d, e, f] if kind == wanted && link_layer.is_none() => {
                    link_layer = Some(MacAddress([a, b, c, d, e, f]));
                }
                _ => {}
            }
            options = rest;
        }
        let kind = match kind {
            SOLICITATION => {
                let is_right = || destination == solicited_node(target) && link_layer.is_none();
                if source.is_unspecified() && !is_right() {
                    return Err(Invalid::Unspecified);
                }
                Kind::Solicitation
            }
            _ => {
                let solicited = flags & SOLICITED != 0;
                if solicited && destination.is_multicast() {
                    return Err(Invalid::SolicitedToGroup);
                }
                let (router, overrides) = (flags & ROUTER != 0, flags & OVERRIDE != 0);
                Kind::Advertisement { router, solicited, overrides }
            }
        };
        Ok(Some(Self { source, destination, kind, target, link_layer }))
    }

    /// The frame that carries it from the station `source` to `destination`. Without an option it ends in
    /// padding.
    pub fn frame(&self, source: MacAddress, destination: MacAddress) -> [u8; FRAME_SIZE] {
        let mut frame = [0; FRAME_SIZE];
        let header = Ethernet { destination, source, ethertype: EtherType::IPV6, vlan: None };
        header.write(&mut frame);
        let (kind, option, flags) = match self.kind {
            Kind::Solicitation => (SOLICITATION, SOURCE_LINK_LAYER, 0),
            Kind::Advertisement { router, solicited, overrides } => {
                let flag = |is_set, flag| if is_set { flag } else { 0 };
                let flags =
                    flag(router, ROUTER) | flag(solicited, SOLICITED) | flag(overrides, OVERRIDE);
                (ADVERTISEMENT, TARGET_LINK_LAYER, flags)
            }
        };
        let packet = &mut frame[HEADER_SIZE..];
        packet[0] = 6 << 4;
        let options = if self.link_layer.is_some() { OPTION_SIZE } else { 0 };
        packet[5] = (MESSAGE_SIZE + options) as u8;
        packet[6] = ICMPV6;
        packet[7] = HOP_LIMIT;
        packet[8..24].copy_from_slice(&self.source.octets());
        packet[24..40].copy_from_slice(&self.destination.octets());
        let message = &mut packet[IPV6_HEADER_SIZE..][..MESSAGE_SIZE + options];
        message[0] = kind;
        message[4] = flags;
        message[8..24].copy_from_slice(&self.target.octets());
        if let Some(MacAddress(link_layer)) = self.link_layer {
            message[24] = option;
            message[25] = (OPTION_SIZE / 8) as u8;
            message[26..32].copy_from_slice(&link_layer);
        }
        let sum = checksum(self.source, self.destination, message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// The checksum over the pseudo header and a message (RFC 4443, section 2.3): 0 over one that has it.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(&source.octets());
    sum.add(&destination.octets());
    // An IPv6 payload is no longer than this.
    sum.add_number(message.len() as u16);
    sum.add_number(ICMPV6.into());
    sum.add(message);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATION: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

    fn address(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
    }

    fn solicitation() -> Packet {
        let target = address(0xfe);
        Packet {
            source: address(1),
            destination: solicited_node(target),
            kind: Kind::Solicitation,
            target,
            link_layer: Some(STATION),
        }
    }

    fn advertisement() -> Packet {
        let kind = Kind::Advertisement { router: false, solicited: true, overrides: true };
        Packet { source: address(0xfe), destination: address(1), kind, ..solicitation() }
    }

    /// The IPv6 packet that carries it.
    fn bytes(packet: Packet) -> Vec<u8> {
        packet.frame(STATION, OTHER)[HEADER_SIZE..].to_vec()
    }

    /// The same, with something changed behind the IPv6 header, and the right length and checksum.
    fn changed(
        packet: Packet,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Option<Packet>, Invalid> {
        let mut bytes = bytes(packet);
        change(&mut bytes);
        let message = &mut bytes[IPV6_HEADER_SIZE..];
        message[2..4].fill(0);
        let sum = checksum(packet.source, packet.destination, message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        bytes[5] = (bytes.len() - IPV6_HEADER_SIZE) as u8;
        Packet::parse(&bytes, true)
    }

    #[test]
    fn an_independent_reader_agrees() {
        use etherparse::{Icmpv6Type, PacketHeaders, PayloadSlice, TransportHeader};
        for packet in
            [solicitation(), advertisement(), Packet { link_layer: None, ..solicitation() }]
        {
            let frame = packet.frame(STATION, OTHER);
            let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let Some(TransportHeader::Icmpv6(header)) = headers.transport else {
                panic!("no ICMPv6")
            };
            let PayloadSlice::Icmpv6(payload) = headers.payload else { panic!("no payload") };
            let (source, destination) = (packet.source.octets(), packet.destination.octets());
            let expected = header.icmp_type.calc_checksum(source, destination, payload).unwrap();
            assert_eq!(header.checksum, expected);
            match packet.kind {
                Kind::Solicitation => {
                    assert_eq!(header.icmp_type, Icmpv6Type::NeighborSolicitation);
                }
                Kind::Advertisement { .. } => {
                    let Icmpv6Type::NeighborAdvertisement(flags) = header.icmp_type else {
                        panic!()
                    };
                    assert!(!flags.router && flags.solicited && flags.r#override);
                }
            }
            assert_eq!(payload[..16], packet.target.octets());
        }
    }

    #[test]
    fn solicited_node_addresses_have_the_last_three_bytes() {
        let target = "4037::1:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(target), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn each_rule_is_checked() {
        let unchanged = |_: &mut Vec<u8>| {};
        assert_eq!(changed(solicitation(), unchanged), Ok(Some(solicitation())));
        assert_eq!(changed(solicitation(), |bytes| bytes[7] = 254), Err(Invalid::HopLimit(254)));
        assert_eq!(changed(solicitation(), |bytes| bytes[41] = 1), Err(Invalid::Code(1)));
        assert_eq!(changed(solicitation(), |bytes| bytes[48] = 0xff), Err(Invalid::Target));
        assert_eq!(changed(solicitation(), |bytes| bytes[65] = 0), Err(Invalid::Option));
        assert_eq!(changed(solicitation(), |bytes| bytes[65] = 2), Err(Invalid::Option));
        assert_eq!(changed(solicitation(), |bytes| bytes.push(1)), Err(Invalid::Option));
        let to_group = Packet { destination: ALL_NODES, ..advertisement() };
        assert_eq!(changed(to_group, unchanged), Err(Invalid::SolicitedToGroup));

        let mut wrong = bytes(solicitation());
        wrong[60] ^= 1;
        assert_eq!(Packet::parse(&wrong, true), Err(Invalid::Checksum));
        assert!(matches!(Packet::parse(&wrong, false), Ok(Some(_))), "not complete yet");
        for len in IPV6_HEADER_SIZE + 1..wrong.len() {
            assert_eq!(Packet::parse(&wrong[..len], false), Err(Invalid::CutOff), "{len} bytes");
        }
        for len in 0..=IPV6_HEADER_SIZE {
            assert_eq!(Packet::parse(&wrong[..len], false), Ok(None), "{len} bytes");
        }
    }

    #[test]
    fn a_probe_is_to_the_solicited_nodes_and_says_no_address() {
        let source = Ipv6Addr::UNSPECIFIED;
        let probe = Packet { source, link_layer: None, ..solicitation() };
        assert_eq!(Packet::parse(&bytes(probe), true), Ok(Some(probe)));
        for wrong in [
            Packet { destination: ALL_NODES, ..probe },
            Packet { link_layer: Some(STATION), ..probe },
        ] {
            assert_eq!(Packet::parse(&bytes(wrong), true), Err(Invalid::Unspecified));
        }
    }

    #[test]
    fn options_of_others_are_skipped_and_the_first_of_two_counts() {
        // A nonce (RFC 3971) before it, as enhanced detection of duplicates has it.
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let with_nonce = changed(solicitation(), |bytes| {
            bytes.splice(64..64, nonce);
        });
        assert_eq!(with_nonce, Ok(Some(solicitation())));
        let twice = changed(solicitation(), |bytes| bytes.extend([1, 1, 9, 9, 9, 9, 9, 9]));
        assert_eq!(twice, Ok(Some(solicitation())));
        let other_kind = changed(solicitation(), |bytes| bytes[64] = TARGET_LINK_LAYER);
        assert_eq!(other_kind, Ok(Some(Packet { link_layer: None, ..solicitation() })));
    }

    proptest! {
        #[test]
        fn packets_round_trip(
            source: [u8; 16], destination: [u8; 16], target: [u8; 16], link_layer: Option<[u8; 6]>,
            advertisement: Option<[bool; 3]>,
        ) {
            let kind = advertisement.map_or(Kind::Solicitation, |[router, solicited, overrides]| {
                Kind::Advertisement { router, solicited, overrides }
            });
            let packet = Packet {
                source: source.into(),
                destination: destination.into(),
                kind,
                target: target.into(),
                link_layer: link_layer.map(MacAddress),
            };
            let is_solicited = matches!(kind, Kind::Advertisement { solicited: true, .. });
            let is_wrong = packet.target.is_multicast()
                || packet.source.is_unspecified()
                || is_solicited && packet.destination.is_multicast();
            match Packet::parse(&bytes(packet), true) {
                Ok(parsed) => prop_assert_eq!(parsed, Some(packet)),
                Err(_) => prop_assert!(is_wrong),
            }
        }

        /// Whatever is behind an IPv6 header that says that it is one of these messages.
        #[test]
        fn parse_is_total(
            mut packet in proptest::collection::vec(any::<u8>(), 0..120), kind in 134u8..138, complete: bool,
        ) {
            for (at, value) in [(4, 0), (5, 60), (6, ICMPV6), (7, HOP_LIMIT), (40, kind), (41, 0)] {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = Packet::parse(&packet, complete);
        }
    }
}
