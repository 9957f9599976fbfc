//! Reverse ARP (RFC 903), for the one use that is left of it: to announce a station.

use crate::ethernet::{EtherType, MacAddress};

/// Bytes of an announcement: the smallest Ethernet frame, without its checksum.
pub const FRAME_SIZE: usize = 60;

/// A broadcast frame by which a station that moved says where it is now: a request reverse from
/// `station`, about itself. Bridges learn from its source; nobody answers.
pub fn announcement(station: MacAddress) -> [u8; FRAME_SIZE] {
    let mut frame = [0; FRAME_SIZE];
    frame[0..6].copy_from_slice(&MacAddress::BROADCAST.0);
    frame[6..12].copy_from_slice(&station.0);
    frame[12..14].copy_from_slice(&EtherType::RARP.0.to_be_bytes());
    // Ethernet addresses of 6 bytes for IPv4 addresses of 4; request reverse.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&station.0);
    frame[32..38].copy_from_slice(&station.0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet::Ethernet;

    #[test]
    fn the_station_is_source_sender_and_target() {
        let station = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
        let frame = announcement(station);
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!(ethernet.destination, MacAddress::BROADCAST);
        assert_eq!(ethernet.source, station);
        assert_eq!(ethernet.ethertype, EtherType::RARP);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], station.0);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], station.0);
        assert_eq!(frame[38..], [0; 22]);
    }
}
