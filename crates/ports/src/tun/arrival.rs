//! What a frame from the bridge is to the host, which knows no Ethernet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::{DropReason, Frame};
use wire::arp;
use wire::ethernet::{EtherType, Ethernet, MacAddress, VlanTag};
use wire::ndp::{self, IPV6_HEADER_SIZE};

use super::station::Station;

/// Bytes of an IPv4 header without options.
const IPV4_HEADER_SIZE: usize = 20;

/// A frame that the port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A packet to the host, behind a header of so many bytes.
    Packet(usize),
    /// Something about who has which address, which is the port's own business.
    Heard(Heard),
}

/// Something about who has which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The station that said it.
    pub from: MacAddress,
    /// What it said.
    pub message: Message,
}

/// What is said about addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// For IPv4.
    Arp(arp::Packet),
    /// For IPv6.
    Ndp(ndp::Packet),
}

/// Looks at a frame, or says why it is dropped.
pub fn sort(frame: &Frame<'_>, station: &Station) -> Result<Arrival, DropReason> {
    let ethernet = Ethernet::parse(frame.head).ok_or(DropReason::TooShort)?;
    // A tag that carries only a priority is of no VLAN (IEEE 802.1Q, section 6.9.1).
    let is_tag = |ethertype| matches!(ethertype, EtherType::VLAN | EtherType::SERVICE_VLAN);
    let is_of_vlan = |tag: VlanTag| tag.protocol != EtherType::VLAN || tag.id() != 0;
    if ethernet.vlan.is_some_and(is_of_vlan) || is_tag(ethernet.ethertype) {
        return Err(DropReason::Tagged);
    }
    let to_group = ethernet.destination.is_multicast();
    if !to_group && ethernet.destination != station.mac {
        return Err(DropReason::NotForHost);
    }
    let packet = frame.head.get(ethernet.header_len()..).unwrap_or_default();
    let heard = |message| Arrival::Heard(Heard { from: ethernet.source, message });
    if ethernet.ethertype == EtherType::ARP {
        let message = arp::Packet::parse(packet).ok_or(DropReason::BadNeighbourMessage)?;
        return Ok(heard(Message::Arp(message)));
    }
    let destination = destination(packet)?;
    if ethernet.ethertype != ethertype(destination) {
        return Err(DropReason::NotIp);
    }
    if destination.is_ipv6() {
        // One that is longer than the private head counts as cut off. None of any use is.
        let message = ndp::Packet::parse(packet, frame.offload.is_none());
        if let Some(message) = message.map_err(|_| DropReason::BadNeighbourMessage)? {
            return Ok(heard(Message::Ndp(message)));
        }
    }
    // What is for one station only is not to be taken from a frame to many (RFC 1122, section 3.3.6).
    if to_group && !destination.is_multicast() && !station.subnets.is_broadcast(destination) {
        return Err(DropReason::NotForHost);
    }
    Ok(Arrival::Packet(ethernet.header_len()))
}

/// Where an IP packet goes, by its own version, which is what the kernel goes by.
pub(super) fn destination(packet: &[u8]) -> Result<IpAddr, DropReason> {
    let version = packet.first().ok_or(DropReason::TooShort)? >> 4;
    match version {
        4 => {
            let header = packet.first_chunk::<IPV4_HEADER_SIZE>().ok_or(DropReason::TooShort)?;
            let [.., a, b, c, d] = *header;
            Ok(Ipv4Addr::new(a, b, c, d).into())
        }
        6 => {
            let header = packet.first_chunk::<IPV6_HEADER_SIZE>().ok_or(DropReason::TooShort)?;
            let address = header.last_chunk::<16>().copied().unwrap_or_default();
            Ok(Ipv6Addr::from(address).into())
        }
        _ => Err(DropReason::NotIp),
    }
}

/// What a frame says that carries a packet to this address.
pub(super) fn ethertype(destination: IpAddr) -> EtherType {
    if destination.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 }
}

#[cfg(test)]
mod tests;
