//! The frames that are sent to and fro. The kernel drops them as soon as it has looked at them: they are to an address
//! that nobody has.

use wire::checksum::Sum;
use wire::virtio::NetHeader;

/// The guest, and the host's end.
pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const HOST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
/// Bytes of each segment of a frame that is to be segmented.
const SEGMENT: usize = 1460;
/// As many segments as a transmit buffer of an embedded guest holds.
const SEGMENTS: usize = 11;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Bytes of a frame.
    Bytes(usize),
    /// About 16 KiB of TCP, to be segmented by whoever is last.
    Segmented,
}

impl Size {
    pub const ALL: [Self; 3] = [Self::Bytes(64), Self::Bytes(1518), Self::Segmented];

    pub fn name(self) -> String {
        match self {
            Self::Bytes(bytes) => format!("{bytes} bytes"),
            Self::Segmented => "16 KiB, TSO".to_owned(),
        }
    }

    /// Bytes of a frame.
    fn len(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Segmented => ETHERNET + IP + TCP + SEGMENTS * SEGMENT,
        }
    }

    /// Frames that wait in the tap before they are read.
    pub fn waiting(self) -> usize {
        match self {
            Self::Bytes(_) => 16_384,
            Self::Segmented => 1024,
        }
    }

    /// A frame from one to the other, and its header.
    pub fn frame(self, from: [u8; 6], to: [u8; 6]) -> (NetHeader, Vec<u8>) {
        let len = self.len();
        let mut frame = [&to[..], &from].concat();
        // IPv4 with TCP, no options in either.
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((len - ETHERNET) as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from[5], 10, 0, 0, to[5]]);
        // A bridge may look at it.
        let mut sum = Sum::new();
        sum.add(&frame[ETHERNET..]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.finish().to_be_bytes());
        frame.extend([0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10]);
        frame.resize(len, 0);
        let header = match self {
            Self::Bytes(_) => NetHeader::default(),
            Self::Segmented => NetHeader {
                flags: NetHeader::NEEDS_CSUM,
                gso_type: NetHeader::GSO_TCPV4,
                hdr_len: (ETHERNET + IP + TCP) as u16,
                gso_size: SEGMENT as u16,
                csum_start: (ETHERNET + IP) as u16,
                csum_offset: 16,
                num_buffers: 0,
            },
        };
        (header, frame)
    }
}
