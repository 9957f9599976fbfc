//! The frames of the reference pair. Each has a number, by which it is known when it comes back.

use std::net::Ipv4Addr;
use std::ops::Range;

use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};

/// Who sends them: locally administered.
pub const SENDER: MacAddress = MacAddress([0x52, 0x54, 0, 0x76, 0x61, 0x01]);
/// Whom they are for.
const RECEIVER: MacAddress = MacAddress([0x52, 0x54, 0, 0x76, 0x61, 0x02]);
/// Bytes of a frame unless it is said otherwise, without the Ethernet checksum.
pub const DEFAULT_SIZE: usize = 64;
/// The shortest frame, without the Ethernet checksum (IEEE 802.3, 3.2.8).
pub const MIN_SIZE: usize = 60;

/// Who asks for an address.
const ARP_SENDER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
/// Where ARP's payload is.
const ARP: Range<usize> = HEADER_SIZE..HEADER_SIZE + 28;

/// Where a frame of our own protocol has its number, and where an ARP request has it: in what fills it
/// up to the shortest frame, which nobody else looks at.
const NUMBER: Range<usize> = HEADER_SIZE..HEADER_SIZE + 8;
const ARP_NUMBER: Range<usize> = ARP.end..ARP.end + 8;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frames of a type that nobody else uses, with so many bytes.
    Numbered { size: usize },
    /// Requests for an address.
    Arp { target: Ipv4Addr },
}

impl Kind {
    /// Bytes of a frame.
    pub fn size(self) -> usize {
        match self {
            Self::Numbered { size } => size,
            Self::Arp { .. } => MIN_SIZE,
        }
    }

    /// Writes frame `number` to `frame`, in place of whatever is there.
    pub fn write(self, frame: &mut Vec<u8>, number: u64) {
        match self {
            Self::Numbered { size } => numbered(frame, number, size),
            Self::Arp { target } => arp_request(frame, number, target),
        }
    }

    /// The number of a frame that came, if it is one of ours that came back.
    pub fn number(self, frame: &[u8]) -> Option<u64> {
        let header = Ethernet::parse(frame).filter(|header| header.source == SENDER)?;
        let (kind, number) = match self {
            Self::Numbered { .. } => (EtherType::LOCAL_EXPERIMENT, NUMBER),
            Self::Arp { .. } => (EtherType::ARP, ARP_NUMBER),
        };
        let number = frame.get(number)?.try_into().ok()?;
        (header.ethertype == kind).then_some(u64::from_be_bytes(number))
    }

    /// Whether a frame that came is somebody's answer to our requests for an address.
    pub fn is_answer(self, frame: &[u8]) -> bool {
        let Self::Arp { target } = self else { return false };
        let is_arp =
            Ethernet::parse(frame).is_some_and(|header| header.ethertype == EtherType::ARP);
        let Some(arp) = frame.get(ARP) else { return false };
        is_arp && arp[..8] == [0, 1, 8, 0, 6, 4, 0, 2] && arp[14..18] == target.octets()
    }
}

/// Writes frame `number` of `size` bytes. No two frames are alike in any byte of their payload that
/// could be taken for that of another's neighbour.
pub fn numbered(frame: &mut Vec<u8>, number: u64, size: usize) {
    start(frame, RECEIVER, EtherType::LOCAL_EXPERIMENT, size);
    frame[NUMBER].copy_from_slice(&number.to_be_bytes());
    let mut value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in frame[NUMBER.end..].chunks_mut(8) {
        value = value.rotate_left(5).wrapping_add(0x0123_4567_89ab_cdef);
        chunk.copy_from_slice(&value.to_be_bytes()[..chunk.len()]);
    }
}

fn arp_request(frame: &mut Vec<u8>, number: u64, target: Ipv4Addr) {
    start(frame, MacAddress::BROADCAST, EtherType::ARP, MIN_SIZE);
    let arp = &mut frame[ARP];
    // Ethernet addresses of 6 bytes for IPv4 addresses of 4; request (RFC 826).
    arp[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    arp[8..14].copy_from_slice(&SENDER.0);
    arp[14..18].copy_from_slice(&ARP_SENDER.octets());
    arp[24..28].copy_from_slice(&target.octets());
    frame[ARP_NUMBER].copy_from_slice(&number.to_be_bytes());
}

/// Zeros behind an Ethernet header.
fn start(frame: &mut Vec<u8>, destination: MacAddress, ethertype: EtherType, size: usize) {
    frame.clear();
    frame.resize(size.max(MIN_SIZE), 0);
    let header = Ethernet { destination, source: SENDER, ethertype, vlan: None };
    header.write(frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARP_KIND: Kind = Kind::Arp { target: Ipv4Addr::new(10, 0, 0, 1) };

    #[test]
    fn frames_are_known_by_their_number() {
        for kind in [Kind::Numbered { size: 64 }, Kind::Numbered { size: 1514 }, ARP_KIND] {
            let (mut frame, mut other) = (Vec::new(), Vec::new());
            kind.write(&mut frame, 7);
            assert_eq!((frame.len(), kind.number(&frame)), (kind.size(), Some(7)));
            kind.write(&mut other, 8);
            assert_ne!(frame, other);
            frame[6] ^= 0x10;
            assert_eq!(kind.number(&frame), None, "somebody else's");
        }
        let mut arp = Vec::new();
        ARP_KIND.write(&mut arp, 7);
        assert_eq!(Kind::Numbered { size: 60 }.number(&arp), None);
        assert!(wire::describe::frame(&arp).ends_with("ARP: who has 10.0.0.1? tell 192.168.0.2"));
    }

    #[test]
    fn every_byte_of_the_payload_depends_on_the_number() {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        numbered(&mut one, 1, 1514);
        numbered(&mut two, 2, 1514);
        let same = one[NUMBER.end..].iter().zip(&two[NUMBER.end..]).filter(|(a, b)| a == b);
        assert!(same.count() < 1514 / 32);
    }

    #[test]
    fn an_answer_is_about_the_address_that_was_asked_for() {
        let mut frame = Vec::new();
        ARP_KIND.write(&mut frame, 0);
        assert!(!ARP_KIND.is_answer(&frame), "the question itself");
        frame[ARP][7] = 2;
        frame[ARP][14..18].copy_from_slice(&[10, 0, 0, 1]);
        assert!(ARP_KIND.is_answer(&frame));
        assert!(!Kind::Numbered { size: 60 }.is_answer(&frame));
        frame[ARP][17] = 2;
        assert!(!ARP_KIND.is_answer(&frame), "of somebody else");
        assert!(!ARP_KIND.is_answer(&frame[..30]));
    }
}
