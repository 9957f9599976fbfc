//! Ethernet: addresses, types, the header with its outer VLAN tag (IEEE 802.3, 802.1Q, 802.1ad).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Bytes of an Ethernet header without a tag.
pub const HEADER_SIZE: usize = 14;
/// Bytes that a VLAN tag adds.
pub const TAG_SIZE: usize = 4;
/// The longest header that [`Ethernet::parse`] reads.
pub const MAX_HEADER_SIZE: usize = HEADER_SIZE + TAG_SIZE;

/// A hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The group of stations that listen to an IP multicast address (RFC 1112, section 6.4; RFC 2464, section 7).
    pub const fn of_group(group: IpAddr) -> Self {
        match group {
            IpAddr::V4(group) => {
                let [_, a, b, c] = group.octets();
                Self([0x01, 0x00, 0x5e, a & 0x7f, b, c])
            }
            IpAddr::V6(group) => {
                let [.., a, b, c, d] = group.octets();
                Self([0x33, 0x33, a, b, c, d])
            }
        }
    }

    /// Whether this names a group of stations. The broadcast address is one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this names all stations.
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether a bridge must not forward to this address: 01:80:C2:00:00:00 to 0F
    /// (IEEE 802.1Q, table 8-1).
    pub const fn is_reserved(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is not a hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected six bytes in hexadecimal, such as 52:54:00:12:34:56")]
pub struct MacAddressError;

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().ok_or(MacAddressError)?;
            // from_str_radix alone would take "+5" and "005".
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacAddressError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddressError)?;
        }
        match parts.next() {
            None => Ok(Self(address)),
            Some(_) => Err(MacAddressError),
        }
    }
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// Reverse ARP: how a migrated guest is announced.
    pub const RARP: Self = Self(0x8035);
    /// A customer VLAN tag (802.1Q) follows.
    pub const VLAN: Self = Self(0x8100);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// A service VLAN tag (802.1ad) follows.
    pub const SERVICE_VLAN: Self = Self(0x88a8);
    /// Free for local experiments (IEEE 802, section 9.2.4).
    pub const LOCAL_EXPERIMENT: Self = Self(0x88b5);

    /// Whether a VLAN tag follows, of either kind.
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}

impl fmt::Display for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// [`EtherType::VLAN`] or [`EtherType::SERVICE_VLAN`].
    pub protocol: EtherType,
    /// Priority (3 bits), drop eligible (1 bit), VLAN identifier (12 bits).
    pub control: u16,
}

impl VlanTag {
    /// A customer's tag (802.1Q) of this VLAN, of the lowest priority.
    pub const fn customer(id: u16) -> Self {
        Self { protocol: EtherType::VLAN, control: id & 0xfff }
    }

    /// The outer tag of a frame. `None` when it has none, or ends inside of it or the type behind it.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (_, rest) = frame.split_first_chunk::<12>()?;
        let [p0, p1, c0, c1, _, _] = *rest.first_chunk()?;
        let protocol = EtherType(u16::from_be_bytes([p0, p1]));
        let control = u16::from_be_bytes([c0, c1]);
        protocol.is_tag().then_some(Self { protocol, control })
    }

    /// As it is in a frame, behind the addresses.
    pub const fn to_bytes(self) -> [u8; TAG_SIZE] {
        let ([p0, p1], [c0, c1]) = (self.protocol.0.to_be_bytes(), self.control.to_be_bytes());
        [p0, p1, c0, c1]
    }

    /// The VLAN, 0 to 4095. 0 means that the tag carries only a priority.
    pub const fn id(self) -> u16 {
        self.control & 0xfff
    }

    /// The priority, 0 to 7.
    pub const fn priority(self) -> u8 {
        (self.control >> 13) as u8
    }

    /// Whether this frame goes first when frames must be dropped.
    pub const fn drop_eligible(self) -> bool {
        self.control & 0x1000 != 0
    }
}

/// Who a frame is for and who sent it: all that a bridge looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Who it is for.
    pub destination: MacAddress,
    /// Who sent it.
    pub source: MacAddress,
}

impl Addresses {
    /// Reads the addresses of a frame. `None` when it is shorter than a header.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_SIZE] = frame.first_chunk()?;
        let (destination, rest) = header.split_first_chunk()?;
        let source = rest.first_chunk()?;
        Some(Self { destination: MacAddress(*destination), source: MacAddress(*source) })
    }
}

/// The header of a frame. An inner tag, if there are two, counts as payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Where the frame goes.
    pub destination: MacAddress,
    /// Who sent it.
    pub source: MacAddress,
    /// What follows the header, tag included. Below 0x0600 it is a length (802.3).
    pub ethertype: EtherType,
    /// The outer tag.
    pub vlan: Option<VlanTag>,
}

impl Ethernet {
    /// Reads the header at the start of a frame. `None` when the frame ends inside it.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (ethertype, rest) = rest.split_first_chunk()?;
        let outer = EtherType(u16::from_be_bytes(*ethertype));
        let (vlan, ethertype) = match outer {
            protocol @ (EtherType::VLAN | EtherType::SERVICE_VLAN) => {
                let (control, rest) = rest.split_first_chunk()?;
                let (ethertype, _) = rest.split_first_chunk()?;
                let control = u16::from_be_bytes(*control);
                (Some(VlanTag { protocol, control }), EtherType(u16::from_be_bytes(*ethertype)))
            }
            ethertype => (None, ethertype),
        };
        Some(Self {
            destination: MacAddress(*destination),
            source: MacAddress(*source),
            ethertype,
            vlan,
        })
    }

    /// Bytes of this header: 14, or 18 with a tag.
    pub const fn header_len(&self) -> usize {
        if self.vlan.is_some() { MAX_HEADER_SIZE } else { HEADER_SIZE }
    }

    /// Writes the header to the start of `frame` and returns the rest, where the payload goes.
    /// `None`, and nothing written, when it does not fit.
    pub fn write<'a>(&self, frame: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (header, payload) = frame.split_at_mut_checked(self.header_len())?;
        let mut bytes = [0; MAX_HEADER_SIZE];
        bytes[..6].copy_from_slice(&self.destination.0);
        bytes[6..12].copy_from_slice(&self.source.0);
        match self.vlan {
            None => bytes[12..14].copy_from_slice(&self.ethertype.0.to_be_bytes()),
            Some(tag) => {
                bytes[12..14].copy_from_slice(&tag.protocol.0.to_be_bytes());
                bytes[14..16].copy_from_slice(&tag.control.to_be_bytes());
                bytes[16..18].copy_from_slice(&self.ethertype.0.to_be_bytes());
            }
        }
        header.copy_from_slice(&bytes[..self.header_len()]);
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: [u8; 15] =
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x06, 0x99];

    #[test]
    fn parses_a_plain_header() {
        let header = Ethernet::parse(&PLAIN).unwrap();
        assert_eq!(header.destination, MacAddress::BROADCAST);
        assert_eq!(header.source.to_string(), "52:54:00:12:34:56");
        assert_eq!(header.ethertype, EtherType::ARP);
        assert_eq!((header.vlan, header.header_len()), (None, 14));
    }

    #[test]
    fn parses_the_outer_tag_only() {
        let mut frame = PLAIN[..12].to_vec();
        frame.extend([0x88, 0xa8, 0xb0, 0x64, 0x81, 0x00, 0x00]);
        let header = Ethernet::parse(&frame).unwrap();
        let tag = header.vlan.unwrap();
        assert_eq!(tag.protocol, EtherType::SERVICE_VLAN);
        assert_eq!((tag.id(), tag.priority(), tag.drop_eligible()), (100, 5, true));
        assert_eq!((header.ethertype, header.header_len()), (EtherType::VLAN, 18));
    }

    #[test]
    fn a_frame_that_ends_in_its_header_is_none() {
        for len in 0..14 {
            assert_eq!(Ethernet::parse(&PLAIN[..len]), None, "{len} bytes");
        }
        let mut tagged = PLAIN[..12].to_vec();
        tagged.extend([0x81, 0x00, 0x00, 0x05, 0x08, 0x00]);
        for len in 14..18 {
            assert_eq!(Ethernet::parse(&tagged[..len]), None, "{len} bytes");
        }
        assert!(Ethernet::parse(&tagged).is_some());
    }

    #[test]
    fn addresses_know_their_kind() {
        let address = |text: &str| text.parse::<MacAddress>().unwrap();
        assert!(address("ff:ff:ff:ff:ff:ff").is_broadcast());
        assert!(address("ff:ff:ff:ff:ff:ff").is_multicast());
        assert!(address("33:33:00:00:00:01").is_multicast());
        assert!(!address("33:33:00:00:00:01").is_broadcast());
        assert!(!address("52:54:00:12:34:56").is_multicast());
        assert!(address("01:80:C2:00:00:00").is_reserved());
        assert!(address("01:80:c2:00:00:0f").is_reserved());
        assert!(!address("01:80:c2:00:00:10").is_reserved());
    }

    #[test]
    fn groups_have_the_last_bits_of_their_ip_address() {
        for (group, expected) in [
            ("224.0.0.251", "01:00:5e:00:00:fb"),
            ("239.255.1.2", "01:00:5e:7f:01:02"),
            ("ff02::1:ff0e:8c6c", "33:33:ff:0e:8c:6c"),
        ] {
            assert_eq!(MacAddress::of_group(group.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn refuses_texts_that_are_no_address() {
        for text in [
            "",
            ":",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5254:00:12:34:56",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:056",
            " 52:54:00:12:34:56",
            "52:54:00:12:34:é",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacAddressError), "{text:?}");
        }
    }

    #[test]
    fn write_refuses_a_short_buffer() {
        let header = Ethernet::parse(&PLAIN).unwrap();
        let mut buffer = [7; 13];
        assert_eq!(header.write(&mut buffer), None);
        assert_eq!(buffer, [7; 13]);
        assert_eq!(header.write(&mut [0; 14]).unwrap().len(), 0);
    }

    proptest! {
        #[test]
        fn headers_round_trip(destination: [u8; 6], source: [u8; 6], ethertype: u16, vlan in
            proptest::option::of((any::<bool>(), any::<u16>())))
        {
            let vlan = vlan.map(|(service, control)| VlanTag {
                protocol: if service { EtherType::SERVICE_VLAN } else { EtherType::VLAN },
                control,
            });
            let mut ethertype = EtherType(ethertype);
            if vlan.is_none() && [EtherType::VLAN, EtherType::SERVICE_VLAN].contains(&ethertype) {
                ethertype = EtherType::IPV4;
            }
            let header = Ethernet {
                destination: MacAddress(destination), source: MacAddress(source), ethertype, vlan,
            };
            let mut frame = [0; 20];
            prop_assert_eq!(header.write(&mut frame).unwrap().len(), 20 - header.header_len());
            prop_assert_eq!(Ethernet::parse(&frame), Some(header));
        }

        #[test]
        fn parse_is_total(frame in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(header) = Ethernet::parse(&frame) {
                prop_assert!(header.header_len() <= frame.len());
            }
        }

        #[test]
        fn addresses_round_trip(bytes: [u8; 6]) {
            let address = MacAddress(bytes);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
