//! Lets a port speak only for itself: frames from it that claim another's MAC or IP address are dropped.
//!
//! What is looked at, in frames *from* the port (those to it pass):
//!
//! | what | has to be |
//! | --- | --- |
//! | Ethernet source | one of the MAC addresses |
//! | ARP and RARP sender's hardware address | one of the MAC addresses |
//! | ARP and RARP sender's protocol address | in the IPv4 prefixes |
//! | IPv4 source | in the IPv4 prefixes |
//! | IPv6 source | in the IPv6 prefixes, or link-local: see [`LinkLocal`] |
//! | link-layer address options of neighbour discovery (RFC 4861, section 4.6.1) | one of the MAC addresses |
//! | target of a neighbour advertisement | as an IPv6 source |
//!
//! A list that is empty is not checked: with MAC addresses alone, a station may use any IP address, and with IPv4
//! prefixes alone any of IPv6.
//!
//! # Who has no address yet
//!
//! may ask for one, and ask whether another has it:
//!
//! * 0.0.0.0 may send DHCP, from port 68 to port 67 of 255.255.255.255 (RFC 2131, section 4.1);
//! * an ARP request from 0.0.0.0 is a probe (RFC 5227, section 2.1.1), and has to be for an address in the prefixes;
//! * `::` may send a neighbour solicitation (duplicate address detection, RFC 4862, section 5.4.2), for an address
//!   that the station may use, a router solicitation (RFC 4861, section 4.1) and reports of multicast listeners
//!   (RFC 3590, section 4).
//!
//! # No way around
//!
//! VLAN tags and SNAP headers (RFC 1042) are looked through, up to three of them. What cannot be judged is dropped, if
//! there is a list that it would have to be judged by: more tags than that; IP and ARP of another format, or cut off; a chain
//! of IPv6 extension headers or a message of neighbour discovery that is longer than the private head
//! ([`engine::HEAD`]), or a fragment's first part without the whole chain (RFC 7112, section 5); fragmented
//! neighbour discovery (RFC 6980, section 5). Later fragments are judged by their source: what they go on with was
//! judged in the first. What is inside of something else (a tunnel, PPPoE, MPLS) is that one's payload, and not
//! looked into.
//!
//! A checksum that is left to be completed elsewhere than in its own field, or behind the headers, would change what was judged: such a
//! frame is dropped (`checksum_misplaced`).
//!
//! A router's advertisements are judged by their link-layer address alone: whether the port may be a router is
//! not a question of addresses. Those with more options than the private head has room for are dropped.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::{App, Burst, Counters, DropReason, Fault, Frame, Outputs, Selection};
use wire::ethernet::{Addresses, EtherType, MacAddress};
use wire::prefix::Prefix;

use crate::sides::{PORT, opposite, passed_on};

/// The addresses that a port may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its hardware addresses. Any, when there are none here.
    pub macs: Vec<MacAddress>,
    /// Its IP addresses. Any of IPv4, when there are none of IPv4 here; and of IPv6 likewise.
    pub prefixes: Vec<Prefix>,
    /// Which link-local addresses of IPv6 it may use, if there are prefixes of IPv6.
    pub link_local: LinkLocal,
}

/// Which link-local addresses (RFC 4291, section 2.5.6) a port may use beside its prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLocal {
    /// All of fe80::/10: systems make them up as they like (RFC 7217). So it may use another's, too.
    #[default]
    Any,
    /// Those that are made from its MAC addresses (RFC 4291, appendix A).
    OfMac,
    /// None.
    None,
}

/// The app, or its part on one of several workers.
pub struct AntiSpoof {
    rules: Rules,
    counters: Counters,
}

impl AntiSpoof {
    /// An app for a port that may use these addresses.
    pub fn new(settings: &Settings) -> Self {
        Self { rules: Rules::new(settings), counters: Counters::default() }
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self { rules: self.rules.clone(), counters: Counters::default() }
    }
}

impl App for AntiSpoof {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        if input != PORT {
            return outputs.push(opposite(input), burst, selection);
        }
        let mut honest = Selection::default();
        for index in selection.iter() {
            let Frame { head, offload, .. } = burst.frame(index);
            match self.rules.judge(head) {
                // Or completing it would put what it likes into an address.
                Ok(()) if offload.checksum.is_some_and(|sum| !sum.spares_headers(head)) => {
                    self.counters.drop(DropReason::ChecksumMisplaced);
                }
                Ok(()) => honest.push(index),
                Err(reason) => self.counters.drop(reason),
            }
        }
        outputs.push(opposite(input), burst, &honest);
    }

    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        self.rules = Rules::new(engine::settings(settings)?);
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What a port may use, as it is looked up. An empty list has all.
#[derive(Clone)]
struct Rules {
    macs: Vec<MacAddress>,
    ipv4: Vec<Prefix>,
    ipv6: Vec<Prefix>,
}

impl Rules {
    fn new(settings: &Settings) -> Self {
        let Settings { macs, prefixes, link_local } = settings;
        let is_ipv4 = |prefix: &Prefix| prefix.is_ipv4();
        let (ipv4, mut ipv6): (Vec<_>, Vec<_>) = prefixes.iter().copied().partition(is_ipv4);
        if !ipv6.is_empty() {
            match link_local {
                LinkLocal::Any => ipv6.extend(Prefix::new(LINK_LOCAL.into(), 10)),
                LinkLocal::OfMac => {
                    ipv6.extend(macs.iter().map(|mac| Prefix::from(IpAddr::V6(of_mac(*mac)))));
                }
                LinkLocal::None => {}
            }
        }
        Self { macs: macs.clone(), ipv4, ipv6 }
    }

    fn has_mac(&self, mac: MacAddress) -> bool {
        self.macs.is_empty() || self.macs.contains(&mac)
    }

    fn has_ipv4(&self, address: Ipv4Addr) -> bool {
        let has = |prefix: &Prefix| prefix.contains(address.into());
        self.ipv4.is_empty() || self.ipv4.iter().any(has)
    }

    fn has_ipv6(&self, address: Ipv6Addr) -> bool {
        let has = |prefix: &Prefix| prefix.contains(address.into());
        self.ipv6.is_empty() || self.ipv6.iter().any(has)
    }

    /// Decides on the frame with this head.
    #[inline]
    fn judge(&self, head: &[u8]) -> Result<(), DropReason> {
        let Addresses { source, .. } = Addresses::parse(head).ok_or(DropReason::TooShort)?;
        let [no_macs, no_ipv4, no_ipv6] =
            [self.macs.is_empty(), self.ipv4.is_empty(), self.ipv6.is_empty()];
        let is_honest = || match payload(head) {
            None => no_macs && no_ipv4 && no_ipv6,
            Some((EtherType::ARP | EtherType::RARP, packet)) => {
                no_macs && no_ipv4 || self.judge_arp(packet).unwrap_or(false)
            }
            Some((EtherType::IPV4, packet)) => no_ipv4 || self.judge_ipv4(packet).unwrap_or(false),
            Some((EtherType::IPV6, packet)) => {
                no_macs && no_ipv6 || self.judge_ipv6(packet).unwrap_or(false)
            }
            Some(_) => true,
        };
        let is_honest = self.has_mac(source) && is_honest();
        is_honest.then_some(()).ok_or(DropReason::Spoofed)
    }

    /// None of a packet that cannot be judged: as for the others.
    fn judge_arp(&self, packet: &[u8]) -> Option<bool> {
        let format: [u8; 6] = field(packet, 0)?;
        let operation = u16::from_be_bytes(field(packet, 6)?);
        let sender_mac = MacAddress(field(packet, 8)?);
        let sender = Ipv4Addr::from(field::<4>(packet, 14)?);
        let target = Ipv4Addr::from(field::<4>(packet, 24)?);
        let may_be_unspecified = match operation {
            arp::REQUEST => self.has_ipv4(target),
            // It is what they ask for.
            arp::REVERSE_REQUEST => true,
            _ => false,
        };
        let has_sender = self.has_ipv4(sender) || sender.is_unspecified() && may_be_unspecified;
        Some(format == arp::FORMAT && self.has_mac(sender_mac) && has_sender)
    }

    fn judge_ipv4(&self, packet: &[u8]) -> Option<bool> {
        let header: [u8; 20] = field(packet, 0)?;
        let source = Ipv4Addr::from(field::<4>(&header, 12)?);
        let asks_for_one = || {
            let destination = Ipv4Addr::from(field::<4>(&header, 16)?);
            let fragment = u16::from_be_bytes(field(&header, 6)?);
            let ports: [u8; 4] = field(packet, usize::from(header[0] & 15) * 4)?;
            let is_dhcp = header[9] == protocol::UDP && ports == DHCP_PORTS;
            Some(is_dhcp && fragment & IPV4_FRAGMENT == 0 && destination.is_broadcast())
        };
        let is_new = source.is_unspecified() && asks_for_one().unwrap_or(false);
        Some(header[0] >> 4 == 4 && (self.has_ipv4(source) || is_new))
    }

    fn judge_ipv6(&self, packet: &[u8]) -> Option<bool> {
        let header: [u8; 40] = field(packet, 0)?;
        let source = Ipv6Addr::from(field::<16>(&header, 8)?);
        let has_source = self.has_ipv6(source);
        if header[0] >> 4 != 6 || !has_source && !source.is_unspecified() {
            return Some(false);
        }
        let Upper::Icmp { at, is_fragment } = upper(&header, packet)? else {
            return Some(has_source);
        };
        let kind = *packet.get(at)?;
        if !(icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT).contains(&kind) {
            let is_listener = matches!(
                kind,
                icmpv6::LISTENER_REPORT | icmpv6::LISTENER_DONE | icmpv6::LISTENER_REPORT_V2
            );
            return Some(has_source || is_listener && !is_fragment);
        }
        let length = u16::from_be_bytes(field(&header, 4)?);
        let message = packet.get(at..header.len() + usize::from(length))?;
        Some(!is_fragment && self.judge_discovery(source, message)?)
    }

    /// Decides on a whole message of neighbour discovery.
    fn judge_discovery(&self, source: Ipv6Addr, message: &[u8]) -> Option<bool> {
        let target = || Some(Ipv6Addr::from(field::<16>(message, 8)?));
        let is_new = source.is_unspecified();
        let (fixed_len, is_right) = match *message.first()? {
            icmpv6::ROUTER_SOLICITATION => (8, true),
            icmpv6::ROUTER_ADVERTISEMENT => (16, self.has_ipv6(source)),
            icmpv6::NEIGHBOUR_SOLICITATION => (24, !is_new || self.has_ipv6(target()?)),
            icmpv6::NEIGHBOUR_ADVERTISEMENT => {
                (24, self.has_ipv6(source) && self.has_ipv6(target()?))
            }
            _ => (40, self.has_ipv6(source)),
        };
        let mut options = message.get(fixed_len..)?;
        let mut are_right = true;
        while let [kind, length, rest @ ..] = options {
            let (value, behind) =
                rest.split_at_checked((usize::from(*length) * 8).checked_sub(2)?)?;
            if LINK_LAYER_OPTIONS.contains(kind) && !self.macs.is_empty() {
                are_right &= value.try_into().is_ok_and(|mac| self.has_mac(MacAddress(mac)));
            }
            options = behind;
        }
        Some(is_right && are_right && options.is_empty())
    }
}

/// Formats and operations of ARP (IANA).
mod arp {
    /// An address of Ethernet for one of IPv4, 6 bytes and 4 (RFC 826).
    pub(super) const FORMAT: [u8; 6] = [0, 1, 8, 0, 6, 4];
    pub(super) const REQUEST: u16 = 1;
    pub(super) const REVERSE_REQUEST: u16 = 3;
}

/// Numbers of protocols (IANA).
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION: u8 = 60;
}

/// Types of ICMPv6 messages (IANA). Those of neighbour discovery are in a row.
mod icmpv6 {
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const LISTENER_REPORT_V2: u8 = 143;
}

/// From a client's port to a server's.
const DHCP_PORTS: [u8; 4] = [0, 68, 0, 67];
/// More fragments follow, or it is not the first.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// It is not the first.
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;
/// The source's, and the target's.
const LINK_LAYER_OPTIONS: [u8; 2] = [1, 2];
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// An LLC header for a type of Ethernet's (RFC 1042), which follows.
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
/// From here on it is a type, and below a length (IEEE 802.3, 3.2.6).
const FIRST_TYPE: u16 = 0x0600;
/// Tags and SNAP headers that are looked through: two and one are what is in use.
const MOST_LAYERS: usize = 3;
const TYPE_AT: usize = 12;

/// The bytes at a place, as far as there are so many.
#[inline]
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// What a frame carries, behind tags and SNAP. None when that is behind too many of them, or cut off.
#[inline]
fn payload(head: &[u8]) -> Option<(EtherType, &[u8])> {
    let mut at = TYPE_AT;
    for _ in 0..=MOST_LAYERS {
        let ethertype = EtherType(u16::from_be_bytes(field(head, at)?));
        at += 2;
        at += match ethertype {
            // The rest of the tag.
            EtherType::VLAN | EtherType::SERVICE_VLAN => 2,
            EtherType(..FIRST_TYPE) if field(head, at) == Some(SNAP) => SNAP.len(),
            ethertype => return Some((ethertype, head.get(at..).unwrap_or_default())),
        }
    }
    None
}

/// What an IPv6 packet carries.
enum Upper {
    /// A message of ICMPv6.
    Icmp {
        /// Where it is in the packet.
        at: usize,
        /// It is the first part of one.
        is_fragment: bool,
    },
    /// Something that says nothing of addresses, or not for the first time.
    Other,
}

/// Follows the extension headers (RFC 8200, section 4). None when they go on behind the head.
fn upper(header: &[u8; 40], packet: &[u8]) -> Option<Upper> {
    let (mut next, mut at, mut is_fragment) = (header[6], header.len(), false);
    loop {
        let units = match next {
            protocol::ICMPV6 => return Some(Upper::Icmp { at, is_fragment }),
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => 8,
            // In words, and without the first two (RFC 4302, section 2.2).
            protocol::AUTHENTICATION => 4,
            protocol::FRAGMENT => 0,
            _ => return Some(Upper::Other),
        };
        let [following, length]: [u8; 2] = field(packet, at)?;
        if next == protocol::FRAGMENT {
            let offset = u16::from_be_bytes(field(packet, at + 2)?);
            if offset & IPV6_FRAGMENT_OFFSET != 0 {
                return Some(Upper::Other);
            }
            is_fragment = true;
        }
        next = following;
        at += 8 + usize::from(length) * units;
    }
}

/// The link-local address that is made from a hardware address.
fn of_mac(MacAddress([a, b, c, d, e, f]): MacAddress) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests;
