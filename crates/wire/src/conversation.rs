//! Which conversation a frame is part of, and which step in it.
//!
//! A conversation is one of TCP, UDP or SCTP between two addresses and ports, or of ICMP echo requests and
//! replies with one identifier, in one VLAN (or one VLAN inside of another).
//!
//! What has no place in one: other protocols; fragments of IPv4 but the first, as only that one has ports;
//! IPv6 with extension headers, and so all of its fragments; and what does not have all of its ports in the
//! bytes that are looked at. Up to two tags are looked through; one of VLAN 0 is none.

use crate::ethernet::EtherType;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// The offset of a fragment, in the word that has it.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What a frame is in its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who it is from.
    pub source: Endpoint,
    /// Who it is for.
    pub destination: Endpoint,
    /// The protocol, of IP, and the version of that.
    pub protocol: Protocol,
    /// The VLAN: the inner one, and 4096 times the outer one.
    pub vlan: u32,
    /// What it does.
    pub step: Step,
}

/// One of the two who converse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// An IPv6 address, or an IPv4 address in the lowest bits.
    pub address: u128,
    /// The port; of an echo, its identifier.
    pub port: u16,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// 4 or 6.
    pub ip_version: u8,
    /// Its number in the header of IP.
    pub number: u8,
}

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of TCP, with these flags.
    Tcp(TcpFlags),
    /// Of UDP or SCTP.
    Datagram,
    /// Of ICMP or ICMPv6.
    EchoRequest,
    /// The answer to one.
    EchoReply,
}

/// The flags of a TCP segment (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// There is nothing more to come.
    pub const fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }

    /// The connection is begun.
    pub const fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// The connection is gone.
    pub const fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }

    /// Something is acknowledged.
    pub const fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }
}

impl Message {
    /// Reads the beginning of a frame.
    #[inline]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let (mut at, mut vlan) = (12, 0);
        let mut kind = EtherType(half(head, at)?);
        for _ in 0..2 {
            if ![EtherType::VLAN, EtherType::SERVICE_VLAN].contains(&kind) {
                break;
            }
            let id = u32::from(half(head, at + 2)?) & 0xfff;
            if id != 0 {
                vlan = vlan << 12 | id;
            }
            at += 4;
            kind = EtherType(half(head, at)?);
        }
        let packet = head.get(at + 2..)?;
        match kind {
            EtherType::IPV4 => Self::ipv4(packet, vlan),
            EtherType::IPV6 => Self::ipv6(packet, vlan),
            _ => None,
        }
    }

    #[inline]
    fn ipv4(packet: &[u8], vlan: u32) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let header_len = usize::from(header[0] & 15) * 4;
        let fragment = half(header, 6)? & FRAGMENT_OFFSET;
        if header[0] >> 4 != 4 || header_len < 20 || fragment != 0 {
            return None;
        }
        let address = |at| word(header, at).map(u128::from);
        let protocol = Protocol { ip_version: 4, number: header[9] };
        let addresses = [address(12)?, address(16)?];
        Self::transport(protocol, addresses, packet.get(header_len..)?, vlan)
    }

    #[inline]
    fn ipv6(packet: &[u8], vlan: u32) -> Option<Self> {
        let (header, payload) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let address = |at| Some(u128::from_be_bytes(*header.get(at..)?.first_chunk()?));
        let protocol = Protocol { ip_version: 6, number: header[6] };
        Self::transport(protocol, [address(8)?, address(24)?], payload, vlan)
    }

    #[inline]
    fn transport(
        protocol: Protocol,
        [source, destination]: [u128; 2],
        payload: &[u8],
        vlan: u32,
    ) -> Option<Self> {
        let (step, ports) = match (protocol.ip_version, protocol.number) {
            (_, TCP) => (Step::Tcp(TcpFlags(*payload.get(13)?)), [0, 2]),
            (_, UDP | SCTP) => (Step::Datagram, [0, 2]),
            (4, ICMP) | (6, ICMPV6) => {
                let step = match (protocol.ip_version, half(payload, 0)?) {
                    (4, 0x0800) | (6, 0x8000) => Step::EchoRequest,
                    (4, 0x0000) | (6, 0x8100) => Step::EchoReply,
                    _ => return None,
                };
                (step, [4, 4])
            }
            _ => return None,
        };
        let endpoint = |address, at| Some(Endpoint { address, port: half(payload, at)? });
        Some(Self {
            source: endpoint(source, ports[0])?,
            destination: endpoint(destination, ports[1])?,
            protocol,
            vlan,
            step,
        })
    }
}

#[inline]
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    fn v4(last: u8) -> u128 {
        u32::from_be_bytes([10, 0, 0, last]).into()
    }

    fn ipv4() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    }

    fn ipv6() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(MACS[0], MACS[1]).ipv6([1; 16], [2; 16], 64)
    }

    macro_rules! frame {
        ($builder:expr) => {{
            let mut frame = Vec::new();
            $builder.write(&mut frame, b"abcd").unwrap();
            frame
        }};
    }

    fn message(
        protocol: (u8, u8),
        addresses: [u128; 2],
        ports: [u16; 2],
        step: Step,
    ) -> Option<Message> {
        let endpoint = |which: usize| Endpoint { address: addresses[which], port: ports[which] };
        let protocol = Protocol { ip_version: protocol.0, number: protocol.1 };
        let (source, destination) = (endpoint(0), endpoint(1));
        Some(Message { source, destination, protocol, vlan: 0, step })
    }

    #[test]
    fn protocols_with_ports() {
        let (four, six) = ([v4(1), v4(2)], [[1; 16], [2; 16]].map(u128::from_be_bytes));
        let syn = Step::Tcp(TcpFlags(0x02));
        let tcp = frame!(ipv4().tcp(1000, 80, 7, 100).syn());
        assert_eq!(Message::parse(&tcp), message((4, 6), four, [1000, 80], syn));
        let tcp = frame!(ipv6().tcp(1000, 80, 7, 100).syn());
        assert_eq!(Message::parse(&tcp), message((6, 6), six, [1000, 80], syn));
        let udp = frame!(ipv4().udp(53, 54));
        assert_eq!(Message::parse(&udp), message((4, 17), four, [53, 54], Step::Datagram));
        let mut sctp = frame!(ipv6().udp(53, 54));
        sctp[20] = 132;
        assert_eq!(Message::parse(&sctp), message((6, 132), six, [53, 54], Step::Datagram));
        let mut other = udp;
        other[23] = 47;
        assert_eq!(Message::parse(&other), None);
    }

    #[test]
    fn tcp_has_flags() {
        let frame = frame!(ipv4().tcp(1, 2, 7, 100).fin().ack(1));
        let Some(Message { step: Step::Tcp(flags), .. }) = Message::parse(&frame) else { panic!() };
        assert_eq!(
            (flags.fin(), flags.ack(), flags.syn(), flags.rst()),
            (true, true, false, false)
        );
        let frame = frame!(ipv4().tcp(1, 2, 7, 100).rst().syn());
        let Some(Message { step: Step::Tcp(flags), .. }) = Message::parse(&frame) else { panic!() };
        assert_eq!(
            (flags.fin(), flags.ack(), flags.syn(), flags.rst()),
            (false, false, true, true)
        );
    }

    #[test]
    fn echoes_go_by_their_identifier() {
        let (four, six) = ([v4(1), v4(2)], [[1; 16], [2; 16]].map(u128::from_be_bytes));
        let ids = [77, 77];
        let request = frame!(ipv4().icmpv4_echo_request(77, 1));
        assert_eq!(Message::parse(&request), message((4, 1), four, ids, Step::EchoRequest));
        let reply = frame!(ipv4().icmpv4_echo_reply(77, 1));
        assert_eq!(Message::parse(&reply), message((4, 1), four, ids, Step::EchoReply));
        let request = frame!(ipv6().icmpv6_echo_request(77, 1));
        assert_eq!(Message::parse(&request), message((6, 58), six, ids, Step::EchoRequest));
        let reply = frame!(ipv6().icmpv6_echo_reply(77, 1));
        assert_eq!(Message::parse(&reply), message((6, 58), six, ids, Step::EchoReply));
        // Nor is what has the type of the other version, or another code.
        for (at, value) in [(34, 3), (34, 128), (35, 1)] {
            let mut other = frame!(ipv4().icmpv4_echo_request(77, 1));
            other[at] = value;
            assert_eq!(Message::parse(&other), None);
        }
    }

    #[test]
    fn up_to_two_tags_are_looked_through() {
        let plain = frame!(ipv4().udp(53, 54));
        let tagged = |tags: &[(u16, u16)]| {
            let tags = tags.iter().flat_map(|(kind, control)| [*kind, *control]);
            let tags: Vec<u8> = tags.flat_map(u16::to_be_bytes).collect();
            [&plain[..12], &tags, &plain[12..]].concat()
        };
        let untagged = Message::parse(&plain).unwrap();
        let with = |vlan| Some(Message { vlan, ..untagged });
        assert_eq!(Message::parse(&tagged(&[(0x8100, 0xe007)])), with(7));
        assert_eq!(Message::parse(&tagged(&[(0x8100, 0xf000)])), with(0));
        assert_eq!(Message::parse(&tagged(&[(0x88a8, 9), (0x8100, 7)])), with(9 << 12 | 7));
        assert_eq!(Message::parse(&tagged(&[(0x8100, 0), (0x8100, 7)])), with(7));
        assert_eq!(Message::parse(&tagged(&[(0x8100, 1), (0x8100, 2), (0x8100, 3)])), None);
    }

    #[test]
    fn only_the_first_fragment_has_a_conversation() {
        let mut frame = frame!(ipv4().udp(53, 54));
        frame[20] = 0x20;
        assert!(Message::parse(&frame).is_some());
        for (high, low) in [(0x20, 1), (0, 1), (0x1f, 0xff), (1, 0)] {
            (frame[20], frame[21]) = (high, low);
            assert_eq!(Message::parse(&frame), None);
        }
        let mut frame = frame!(ipv6().udp(53, 54));
        frame[20] = 44;
        assert_eq!(Message::parse(&frame), None);
    }

    #[test]
    fn options_of_ipv4_are_skipped_and_wrong_headers_are_none() {
        let plain = frame!(ipv4().udp(53, 54));
        let expected = Message::parse(&plain);
        let mut options = [&plain[..34], &[1; 40], &plain[34..]].concat();
        options[14] = 0x4f;
        assert_eq!(Message::parse(&options), expected);
        for wrong in [0x44, 0x40, 0x55, 0x65] {
            options[14] = wrong;
            assert_eq!(Message::parse(&options), None, "{wrong:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_is_cut_off_is_none(at in 0usize..100) {
            let whole = frame!(ipv6().tcp(1, 2, 3, 4).ack(7));
            let cut = &whole[..at.min(whole.len())];
            prop_assert_eq!(Message::parse(cut).is_some(), cut.len() >= 14 + 40 + 14);
        }

        #[test]
        fn anything_is_read_or_none(head: Vec<u8>, kind in 0usize..4) {
            let kinds = [[8, 0, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0], [8, 6, 0]];
            let head = [&[0; 12][..], &kinds[kind], &head].concat();
            let _ = Message::parse(&head);
        }
    }
}
