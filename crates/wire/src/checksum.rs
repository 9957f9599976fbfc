//! The Internet checksum (RFC 1071), over pieces, and the completion of a partial checksum.

use crate::ethernet::{EtherType, TAG_SIZE};

/// A ones-complement sum that is fed piece by piece, as if the pieces were one run of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of 16-bit words in host order: the sum is the same in either order, up to a final swap
    /// (RFC 1071, section 2 (B)). Each addition adds less than 2^16, so it never overflows.
    words: u64,
    /// Bytes that went in. After an odd number of them, the next piece starts in the middle of a
    /// word.
    len: usize,
}

impl Sum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Self { words: 0, len: 0 }
    }

    /// A sum that was made elsewhere, over `len` bytes: of the bytes as words of 16, 32 or 64 bits
    /// in host order, the last one filled up with zeros.
    pub const fn from_words(words: u64, len: usize) -> Self {
        Self { words: fold(words) as u64, len }
    }

    /// Adds the bytes that follow those already added.
    pub fn add(&mut self, piece: &[u8]) {
        // Four sums that do not wait for each other. Each is an addition and an addition of its
        // carry for eight bytes, and ends far from its own limit.
        let (blocks, rest) = piece.as_chunks::<32>();
        let mut sums = [0u128; 4];
        for block in blocks {
            for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
                *sum += u128::from(u64::from_ne_bytes(*word));
            }
        }
        let total: u128 = sums.iter().sum();
        let mut sum = halves(total as u64) + (total >> 64) as u64;
        let (words, tail) = rest.as_chunks::<8>();
        sum += words.iter().map(|word| halves(u64::from_ne_bytes(*word))).sum::<u64>();
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        sum += halves(u64::from_ne_bytes(last));
        self.append(Self::from_words(sum, piece.len()));
    }

    /// Adds the sum of the bytes that follow those already added.
    #[inline]
    pub const fn append(&mut self, next: Self) {
        self.add_word(fold(next.words));
        self.len = self.len.wrapping_add(next.len);
    }

    /// Adds two bytes: a number as protocols write it.
    #[inline]
    pub const fn add_number(&mut self, number: u16) {
        self.add_word(number.to_be());
        self.len = self.len.wrapping_add(2);
    }

    /// Adds a word of two bytes in memory order.
    #[inline]
    const fn add_word(&mut self, word: u16) {
        // Starting in the middle of a word swaps the bytes of every word that follows.
        let aligned = if self.len % 2 == 1 { word.swap_bytes() } else { word };
        self.words += aligned as u64;
    }

    /// The checksum: the complement of the sum. Store it with `to_be_bytes`.
    #[inline]
    pub const fn finish(&self) -> u16 {
        !u16::from_be(fold(self.words))
    }
}

/// The sum of a word's two halves. It is the same as a sum of 16-bit words.
const fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Adds the carries back in until 16 bits are left.
const fn fold(sum: u64) -> u16 {
    // From 64 bits to 33 and 32, then to 17 and 16.
    let sum = halves(halves(sum));
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum that the sender left for others to complete: its field holds the sum of the pseudo
/// header, and the sum over the frame from `start` to its end belongs into the two bytes at
/// `start + offset` (virtio 1.3, section 5.1.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where summing starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where the result goes, in bytes from `start`.
    pub offset: u16,
}

impl PartialChecksum {
    /// Bytes that a frame must have for the result to lie inside it.
    pub const fn end(&self) -> usize {
        self.start as usize + self.offset as usize + 2
    }

    /// Whether completing this changes nothing in the headers of a frame that begins with `head` but the checksum of its own TCP,
    /// UDP or ICMPv6: what was decided by those headers holds afterwards. A packet inside of another may have its own behind
    /// the outer headers.
    ///
    /// False, too, where that cannot be known: of what is not IP behind two VLAN tags at most, and of headers that are not
    /// all in `head`.
    pub fn spares_headers(&self, head: &[u8]) -> bool {
        let start = usize::from(self.start);
        transport(head).is_some_and(|Transport { at, field, len }| {
            if start == at { field == Some(self.offset) } else { start >= at + len }
        })
    }
}

/// The header behind those of IP.
struct Transport {
    /// Where it is in the frame.
    at: usize,
    /// Where its checksum is in it, if it has one that may be left to others.
    field: Option<u16>,
    /// Bytes of it that somebody may decide by.
    len: usize,
}

/// Extension headers of IPv6 that are passed over. No driver that means well leaves a checksum behind more.
const EXTENSIONS: usize = 4;

fn transport(head: &[u8]) -> Option<Transport> {
    let word = |at: usize| head.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let byte = |at: usize| head.get(at).copied();
    let mut at = 12;
    for _ in 0..2 {
        if EtherType(word(at)?).is_tag() {
            at += TAG_SIZE;
        }
    }
    let ethertype = EtherType(word(at)?);
    at += 2;
    let protocol = match (ethertype, byte(at)? >> 4) {
        (EtherType::IPV4, 4) => {
            let protocol = byte(at + 9)?;
            at += usize::from(byte(at)? & 0xf) * 4;
            protocol
        }
        (EtherType::IPV6, 6) => {
            let mut next = byte(at + 6)?;
            at += 40;
            for _ in 0..EXTENSIONS {
                // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
                if matches!(next, 0 | 43 | 60) {
                    next = byte(at)?;
                    at += (usize::from(byte(at + 1)?) + 1) * 8;
                }
            }
            next
        }
        _ => return None,
    };
    Some(match protocol {
        6 => Transport { at, field: Some(16), len: 20 },
        17 => Transport { at, field: Some(6), len: 8 },
        // All of it may say who has which address.
        58 => Transport { at, field: Some(2), len: usize::from(u16::MAX) },
        _ => Transport { at, field: None, len: 40 },
    })
}

/// Completes the checksum of a whole frame in place. False, and nothing changed, when the field
/// lies outside the frame.
pub fn complete(frame: &mut [u8], partial: PartialChecksum) -> bool {
    if partial.end() > frame.len() {
        return false;
    }
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let Some(summed) = frame.get_mut(start..) else {
        return false;
    };
    let mut sum = Sum::new();
    sum.add(summed);
    let Some(field) = summed.get_mut(offset..offset + 2) else {
        return false;
    };
    field.copy_from_slice(&field_value(&sum).to_be_bytes());
    true
}

/// What goes into the checksum field for a finished sum. In UDP a zero means "no checksum", so a
/// computed zero is sent as its other form, all ones; every protocol accepts both forms.
pub fn field_value(sum: &Sum) -> u16 {
    match sum.finish() {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame with these tags, an IP header and so on.
    fn headers(tags: usize, ethertype: u16, ip: &[u8]) -> Vec<u8> {
        let tag = [0x81, 0, 0, 7].repeat(tags);
        [&[0x52; 12][..], &tag, &ethertype.to_be_bytes(), ip, &[0; 60]].concat()
    }

    fn ipv4(words: u8, protocol: u8) -> Vec<u8> {
        let mut header = vec![0; usize::from(words) * 4];
        (header[0], header[9]) = (0x40 | words, protocol);
        header
    }

    fn ipv6(next: u8, extensions: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 40];
        (header[0], header[6]) = (0x60, next);
        [header, extensions.to_vec()].concat()
    }

    /// Each place in which a checksum would change a header, and each in which it does not.
    #[test]
    fn a_checksum_in_its_own_field_or_behind_the_headers_spares_them() {
        let options = [6, 0, 0, 0, 0, 0, 0, 0];
        for (name, head, at, field, len) in [
            ("TCP", headers(0, 0x0800, &ipv4(5, 6)), 34, Some(16), 20),
            ("UDP in a VLAN", headers(1, 0x0800, &ipv4(5, 17)), 38, Some(6), 8),
            ("TCP behind options, in two VLANs", headers(2, 0x0800, &ipv4(7, 6)), 50, Some(16), 20),
            ("TCP over IPv6", headers(0, 0x86dd, &ipv6(6, &[])), 54, Some(16), 20),
            ("TCP behind an extension", headers(0, 0x86dd, &ipv6(60, &options)), 62, Some(16), 20),
            ("ICMPv6", headers(0, 0x86dd, &ipv6(58, &[])), 54, Some(2), usize::from(u16::MAX)),
            ("another protocol", headers(0, 0x0800, &ipv4(5, 47)), 34, None, 40),
        ] {
            for start in 0..150u16 {
                for offset in 0..40 {
                    let partial = PartialChecksum { start, offset };
                    let is_own = usize::from(start) == at && field == Some(offset);
                    let is_behind = usize::from(start) >= at + len;
                    let spares = partial.spares_headers(&head);
                    assert_eq!(spares, is_own || is_behind, "{name}: {start} and {offset}");
                }
            }
        }
    }

    #[test]
    fn of_what_has_no_known_headers_nothing_is_spared() {
        let partial = PartialChecksum { start: 300, offset: 0 };
        let whole = headers(0, 0x86dd, &ipv6(6, &[]));
        assert!(partial.spares_headers(&whole));
        for len in 0..21 {
            assert!(!partial.spares_headers(&whole[..len]), "{len} bytes");
        }
        for frame in [
            headers(3, 0x0800, &ipv4(5, 6)),
            headers(0, 0x0806, &ipv4(5, 6)),
            headers(0, 0x0800, &ipv6(6, &[])),
            headers(0, 0x86dd, &ipv4(5, 6)),
            headers(0, 0x86dd, &ipv6(60, &[60, 255])),
        ] {
            assert!(!partial.spares_headers(&frame), "{frame:02x?}");
        }
    }

    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum = Sum::new();
        sum.add(bytes);
        sum.finish()
    }

    /// The definition, one word at a time.
    fn by_definition(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn a_real_ipv4_header_sums_to_zero() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0);
    }

    #[test]
    fn completes_in_place() {
        // UDP from 1 to 2, length 9, one byte of data; the field holds the pseudo header's sum.
        let mut frame = [0xaa, 0xaa, 0x00, 0x01, 0x00, 0x02, 0x00, 0x09, 0x12, 0x34, 0x61];
        let partial = PartialChecksum { start: 2, offset: 6 };
        assert!(complete(&mut frame, partial));
        assert_eq!(frame[8..10], (!(0x0001u16 + 0x0002 + 0x0009 + 0x1234 + 0x6100)).to_be_bytes());
        assert_eq!(frame[..2], [0xaa, 0xaa]);
    }

    #[test]
    fn a_computed_zero_is_sent_as_all_ones() {
        let mut frame = [0x00, 0x00, 0xff, 0xff];
        assert!(complete(&mut frame, PartialChecksum { start: 0, offset: 0 }));
        assert_eq!(frame, [0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_field_outside_the_frame_is_refused() {
        let mut frame = [0x11; 20];
        for (start, offset, fits) in [
            (18, 0, true),
            (19, 0, false),
            (10, 8, true),
            (10, 9, false),
            (20, 0, false),
            (u16::MAX, u16::MAX, false),
        ] {
            assert_eq!(complete(&mut frame, PartialChecksum { start, offset }), fits);
        }
        assert!(!complete(&mut [], PartialChecksum { start: 0, offset: 0 }));
    }

    #[test]
    fn carries_come_back_in() {
        for words in [0, 1, 0xffff, 0x1_0000, 0x1_fffe, 0xffff_ffff, u64::MAX - 1, u64::MAX] {
            let expected = if words == 0 { 0 } else { ((words - 1) % 0xffff + 1) as u16 };
            assert_eq!(fold(words), expected, "{words:#x}");
        }
    }

    #[test]
    fn numbers_are_two_bytes() {
        let mut sum = Sum::new();
        sum.add(&[1, 2, 3]);
        sum.add_number(0x0405);
        sum.add(&[6]);
        assert_eq!(sum.finish(), by_definition(&[1, 2, 3, 4, 5, 6]));
    }

    proptest! {
        #[test]
        fn equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(checksum(&bytes), by_definition(&bytes));
        }

        #[test]
        fn pieces_equal_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0usize..300, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Sum::new();
            for pair in cuts.windows(2) {
                sum.add(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(sum.finish(), by_definition(&bytes));
        }

        #[test]
        fn folding_is_the_remainder(words: u64) {
            let expected = if words == 0 { 0 } else { ((words - 1) % 0xffff + 1) as u16 };
            prop_assert_eq!(fold(words), expected);
        }
    }
}
