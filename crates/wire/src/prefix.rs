//! IP prefixes: the addresses that begin with the same bits (RFC 4632, section 3.1; RFC 4291, section 2.3).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why something is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// Not of that form.
    #[error("expected an IP address, or a prefix such as 10.0.0.0/24 or fd00::/64")]
    Form,
    /// Longer than an address.
    #[error("an address has {bits} bits: expected a prefix length from 0 to {bits}")]
    Length {
        /// How many it has.
        bits: u8,
    },
    /// There is more in it than a prefix.
    #[error(
        "the address goes on behind its prefix: the network is {network}, the station {station}"
    )]
    HostBits {
        /// The prefix alone.
        network: Prefix,
        /// The address alone.
        station: IpAddr,
    },
}

impl Prefix {
    /// The addresses whose first `len` bits are those of `address`, which has no others set.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let bits = bits(address);
        if len > bits {
            return Err(PrefixError::Length { bits });
        }
        let network = match address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(len))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(len))),
        };
        let prefix = Self { address: network, len };
        if network != address {
            return Err(PrefixError::HostBits { network: prefix, station: address });
        }
        Ok(prefix)
    }

    /// Whether an address begins with it. One of another version does not.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()) & mask_v4(self.len) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()) & mask_v6(self.len) == 0
            }
            _ => false,
        }
    }

    /// Whether it is one of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }
}

/// One address alone.
impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, len: bits(address) }
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A shift by all bits leaves none.
fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let Some((address, len)) = text.split_once('/') else {
            let address: IpAddr = text.parse().map_err(|_| PrefixError::Form)?;
            return Ok(address.into());
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Form)?;
        // An integer's own parser would take "+8".
        if len.is_empty() || !len.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(PrefixError::Form);
        }
        let len = len.parse().map_err(|_| PrefixError::Length { bits: bits(address) })?;
        Self::new(address, len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_in_it_or_not() {
        for (text, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.0.0.5", "10.0.0.5", "10.0.0.4"),
            ("10.0.0.4/31", "10.0.0.5", "10.0.0.6"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("fd00::/64", "fd00::1:2:3:4", "fd00:0:0:1::"),
            ("fe80::/10", "febf::1", "fec0::"),
            ("::/0", "ffff::", "0.0.0.0"),
            ("fd00::1/128", "fd00::1", "fd00::2"),
            // Not the IPv4 address that is written in it.
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert!(prefix(text).contains(inside.parse().unwrap()), "{text}");
            assert!(!prefix(text).contains(outside.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in
            ["", "/8", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "x/8", " ::/0"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Form), "{text:?}");
        }
        for (text, bits) in [("10.0.0.0/33", 32), ("10.0.0.0/999", 32), ("::/129", 128)] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Length { bits }));
        }
        let error = "10.0.0.5/24".parse::<Prefix>().unwrap_err();
        let said = "the address goes on behind its prefix: the network is 10.0.0.0/24, the station 10.0.0.5";
        assert_eq!(error.to_string(), said);
    }

    proptest! {
        #[test]
        fn prefixes_round_trip(bytes: [u8; 16], is_ipv4: bool, len in 0u8..=128) {
            let [a, b, c, d, ..] = bytes;
            let address = if is_ipv4 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(bytes) };
            let len = len.min(bits(address));
            let prefix = match Prefix::new(address, len) {
                Ok(prefix) => prefix,
                Err(PrefixError::HostBits { network, station }) => {
                    prop_assert_eq!(station, address);
                    network
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            prop_assert!(prefix.contains(address));
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
