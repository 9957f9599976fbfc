//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use crate::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};

/// Bytes of a frame with a packet: the smallest Ethernet frame, without its checksum.
pub const FRAME_SIZE: usize = 60;

/// Bytes of a packet.
pub const PACKET_SIZE: usize = 28;

/// Ethernet addresses of 6 bytes for IPv4 addresses of 4.
const FORMAT: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What a packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks who has the target's address.
    Request,
    /// Says that the sender has its address.
    Reply,
}

/// A packet, without the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it does.
    pub operation: Operation,
    /// The hardware address of who sent it, as it says.
    pub sender_mac: MacAddress,
    /// The IP address of who sent it; unspecified when it probes whether it may have one (RFC 5227).
    pub sender: Ipv4Addr,
    /// The hardware address of who is meant. Without meaning in a request.
    pub target_mac: MacAddress,
    /// The IP address of who is meant.
    pub target: Ipv4Addr,
}

impl Packet {
    /// Reads the packet behind an Ethernet header; what follows it is padding. None when it is cut off, of
    /// another format, or another operation.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let packet: &[u8; PACKET_SIZE] = payload.first_chunk()?;
        let (format, rest) = packet.split_first_chunk()?;
        let (operation, rest) = rest.split_first_chunk()?;
        let (sender_mac, rest) = rest.split_first_chunk()?;
        let (sender, rest) = rest.split_first_chunk::<4>()?;
        let (target_mac, rest) = rest.split_first_chunk()?;
        let target = rest.first_chunk::<4>()?;
        let operation = match (format, u16::from_be_bytes(*operation)) {
            (&FORMAT, 1) => Operation::Request,
            (&FORMAT, 2) => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: MacAddress(*sender_mac),
            sender: Ipv4Addr::from(*sender),
            target_mac: MacAddress(*target_mac),
            target: Ipv4Addr::from(*target),
        })
    }

    /// The frame that carries it to `destination`.
    pub fn frame(&self, destination: MacAddress) -> [u8; FRAME_SIZE] {
        let mut frame = [0; FRAME_SIZE];
        let source = self.sender_mac;
        let header = Ethernet { destination, source, ethertype: EtherType::ARP, vlan: None };
        header.write(&mut frame);
        let operation: u16 = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        let packet = &mut frame[HEADER_SIZE..HEADER_SIZE + PACKET_SIZE];
        packet[..6].copy_from_slice(&FORMAT);
        packet[6..8].copy_from_slice(&operation.to_be_bytes());
        packet[8..14].copy_from_slice(&self.sender_mac.0);
        packet[14..18].copy_from_slice(&self.sender.octets());
        packet[18..24].copy_from_slice(&self.target_mac.0);
        packet[24..28].copy_from_slice(&self.target.octets());
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request as Linux sends it.
    const REQUEST: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
        0x52, 0x54, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 254,
    ];

    #[test]
    fn a_request_of_linux() {
        let packet = Packet::parse(&REQUEST[14..]).unwrap();
        let station = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(packet.operation, Operation::Request);
        assert_eq!((packet.sender_mac, packet.sender), (station, Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(packet.target, Ipv4Addr::new(10, 0, 0, 254));
        let frame = packet.frame(MacAddress::BROADCAST);
        assert_eq!(frame[..42], REQUEST);
        assert_eq!(frame[42..], [0; 18]);
    }

    #[test]
    fn other_formats_and_operations_are_none() {
        for at in (0..6).chain([7]) {
            let mut packet = REQUEST[14..].to_vec();
            packet[at] ^= 0x10;
            assert_eq!(Packet::parse(&packet), None, "byte {at}");
        }
        for len in 0..PACKET_SIZE {
            assert_eq!(Packet::parse(&REQUEST[14..14 + len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn packets_round_trip(
            is_request: bool, macs: [[u8; 6]; 3], sender: [u8; 4], target: [u8; 4],
        ) {
            let [sender_mac, target_mac, destination] = macs.map(MacAddress);
            let packet = Packet {
                operation: if is_request { Operation::Request } else { Operation::Reply },
                sender_mac,
                sender: sender.into(),
                target_mac,
                target: target.into(),
            };
            let frame = packet.frame(destination);
            let ethernet = Ethernet::parse(&frame).unwrap();
            prop_assert_eq!((ethernet.destination, ethernet.source), (destination, sender_mac));
            prop_assert_eq!(ethernet.ethertype, EtherType::ARP);
            prop_assert_eq!(Packet::parse(&frame[HEADER_SIZE..]), Some(packet));
        }

        #[test]
        fn parse_is_total(packet in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Packet::parse(&packet);
        }
    }
}
