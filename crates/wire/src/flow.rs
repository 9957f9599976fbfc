//! Which conversation a frame belongs to.
//!
//! Frames of one flow must stay in order and are best handled by one processor, so queues are
//! chosen by flow. The hash is symmetric: both directions of a conversation have the same, so that
//! an answer finds the queue that the question was sent on.

use crate::ethernet::{EtherType, Ethernet, TAG_SIZE};

/// Fragments have no ports but in the first of them: all are hashed without.
const IPV4_FRAGMENT: u16 = 0x3fff;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A hash of the flow that the frame with this head belongs to: of its IP addresses and, for TCP and
/// UDP, ports; of its Ethernet addresses when it is not IP. The same for both directions.
pub fn hash(head: &[u8]) -> u32 {
    let Some(ethernet) = Ethernet::parse(head) else { return 0 };
    let mut offset = ethernet.header_len();
    let mut kind = ethernet.ethertype;
    // A second tag, which the parser leaves in front of the payload.
    if kind == EtherType::VLAN
        && let Some([_, _, high, low]) = head.get(offset..offset + TAG_SIZE)
    {
        kind = EtherType(u16::from_be_bytes([*high, *low]));
        offset += TAG_SIZE;
    }
    let packet = head.get(offset..).unwrap_or_default();
    let found = match kind {
        EtherType::IPV4 => ipv4(packet),
        EtherType::IPV6 => ipv6(packet),
        _ => None,
    };
    let sum = found.unwrap_or_else(|| {
        let address = |at: usize| words(head.get(at..at + 6).unwrap_or_default());
        address(0).wrapping_add(address(6))
    });
    mix(sum)
}

/// Sums are symmetric: it does not matter which address is the source.
fn ipv4(packet: &[u8]) -> Option<u64> {
    let [version, ..] = packet else { return None };
    let header_len = usize::from(version & 15) * 4;
    let (source, destination) = (packet.get(12..16)?, packet.get(16..20)?);
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
    let addresses = words(source).wrapping_add(words(destination));
    let ports = if fragment & IPV4_FRAGMENT == 0 {
        ports(*packet.get(9)?, packet.get(header_len..).unwrap_or_default())
    } else {
        0
    };
    Some(addresses.wrapping_add(ports))
}

/// Extension headers are not followed: such a packet goes by its addresses.
fn ipv6(packet: &[u8]) -> Option<u64> {
    let (source, destination) = (packet.get(8..24)?, packet.get(24..40)?);
    let ports = ports(*packet.get(6)?, packet.get(40..).unwrap_or_default());
    Some(words(source).wrapping_add(words(destination)).wrapping_add(ports))
}

fn ports(protocol: u8, segment: &[u8]) -> u64 {
    match (protocol, segment) {
        (TCP | UDP, [a, b, c, d, ..]) => {
            let [source, destination] = [[*a, *b], [*c, *d]].map(u16::from_be_bytes);
            // Apart from the addresses, so that a port and the end of an address do not cancel out.
            (u64::from(source) + u64::from(destination)) << 40
        }
        _ => 0,
    }
}

/// A number of bytes, by four.
fn words(bytes: &[u8]) -> u64 {
    bytes.chunks(4).fold(0, |sum, chunk| {
        let word = chunk.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        sum.wrapping_mul(31).wrapping_add(word)
    })
}

/// Spreads the sum over all bits (the finish of MurmurHash3).
fn mix(sum: u64) -> u32 {
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (sum ^ (sum >> 33)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(tags: &[u16], protocol: u8, addresses: [[u8; 4]; 2], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(addresses.concat());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    fn ipv6_frame(addresses: [[u8; 16]; 2], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        frame.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
        frame.extend(addresses.concat());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    #[test]
    fn tags_do_not_hide_the_flow() {
        let (addresses, ports) = ([[10, 0, 0, 1], [10, 0, 0, 2]], [1, 2]);
        let plain = hash(&frame(&[], TCP, addresses, ports));
        assert_eq!(hash(&frame(&[0x8100], TCP, addresses, ports)), plain);
        assert_eq!(hash(&frame(&[0x88a8, 0x8100], TCP, addresses, ports)), plain);
    }

    #[test]
    fn fragments_go_by_their_addresses() {
        let mut first = frame(&[], UDP, [[10, 0, 0, 1], [10, 0, 0, 2]], [1, 2]);
        let mut second = frame(&[], UDP, [[10, 0, 0, 1], [10, 0, 0, 2]], [77, 88]);
        assert_ne!(hash(&first), hash(&second));
        first[20] = 0x20;
        second[21] = 1;
        assert_eq!(hash(&first), hash(&second));
    }

    #[test]
    fn flows_are_spread() {
        let mut counts = [0; 8];
        for port in 0..8000u16 {
            let frame = frame(&[], TCP, [[10, 0, 0, 1], [10, 0, 0, 2]], [40_000 + port, 80]);
            counts[(hash(&frame) % 8) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn both_directions_are_one_flow(
            addresses: [[u8; 4]; 2], long: [[u8; 16]; 2], ports: [u16; 2], protocol: u8,
        ) {
            let back = |[a, b]: [u16; 2]| [b, a];
            let there = frame(&[], protocol, addresses, ports);
            let mut and_back = frame(&[], protocol, [addresses[1], addresses[0]], back(ports));
            and_back[..12].rotate_left(6);
            prop_assert_eq!(hash(&there), hash(&and_back));
            let there = ipv6_frame(long, ports);
            let and_back = ipv6_frame([long[1], long[0]], back(ports));
            prop_assert_eq!(hash(&there), hash(&and_back));
            let mut arp = there;
            arp[12..14].copy_from_slice(&[8, 6]);
            let mut answer = arp.clone();
            answer[..12].rotate_left(6);
            prop_assert_eq!(hash(&arp), hash(&answer));
        }

        #[test]
        fn anything_has_a_hash(head: Vec<u8>) {
            hash(&head);
        }
    }
}
