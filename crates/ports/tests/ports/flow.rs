//! Conversations between guests, whose frames are numbered.

use crate::world::{addressed, mac};

/// Bytes at the end of a frame that say which one it is: sender, flow and number.
const TAIL: usize = 7;

/// What a conversation looks like, by which its frames are told from those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp4,
    Udp4,
    Tcp6,
    Udp6,
    /// UDP with a tag.
    Tagged,
    /// UDP with two.
    TwoTags,
    /// Neither IPv4 nor IPv6: all that the same two stations say is one flow.
    Other,
}

pub const KINDS: [Kind; 7] =
    [Kind::Tcp4, Kind::Udp4, Kind::Tcp6, Kind::Udp6, Kind::Tagged, Kind::TwoTags, Kind::Other];

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub kind: Kind,
    pub from: usize,
    pub to: usize,
    /// Tells conversations of the same two guests apart: the sender's UDP or TCP port.
    pub number: u16,
    /// Whether this is what the other side answers.
    pub is_answer: bool,
}

impl Flow {
    pub fn new(kind: Kind, from: usize, to: usize, number: u16) -> Self {
        Self { kind, from, to, number, is_answer: false }
    }

    /// UDP over IPv4.
    pub fn udp(from: usize, to: usize, number: u16) -> Self {
        Self::new(Kind::Udp4, from, to, number)
    }

    /// The other direction.
    pub fn back(self) -> Self {
        Self { from: self.to, to: self.from, is_answer: !self.is_answer, ..self }
    }

    /// Frame `number` of this flow, of `len` bytes.
    pub fn frame(self, number: u32, len: usize) -> Vec<u8> {
        let Self { kind, from, to, .. } = self;
        let mut frame = addressed(mac(to), mac(from), len, number as usize);
        let tags: &[u16] = match kind {
            Kind::Tagged => &[0x8100],
            Kind::TwoTags => &[0x88a8, 0x8100],
            _ => &[],
        };
        let mut head: Vec<u8> =
            tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 5]]).flatten().collect();
        let station = |guest: usize| [10, 0, 0, guest as u8];
        let long_station = |guest: usize| [&[0xfd; 15][..], &[guest as u8]].concat();
        let mut ports = [40_000 + self.number, 80].map(u16::to_be_bytes);
        if self.is_answer {
            ports.reverse();
        }
        let protocol = if matches!(kind, Kind::Tcp4 | Kind::Tcp6) { 6 } else { 17 };
        match kind {
            Kind::Other => {}
            Kind::Tcp6 | Kind::Udp6 => {
                head.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
                head.extend([long_station(from), long_station(to)].concat());
                head.extend(ports.concat());
            }
            Kind::Tcp4 | Kind::Udp4 | Kind::Tagged | Kind::TwoTags => {
                head.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
                head.extend([station(from), station(to)].concat());
                head.extend(ports.concat());
            }
        }
        frame[12..12 + head.len()].copy_from_slice(&head);
        let tail = [&[from as u8][..], &self.number.to_be_bytes(), &number.to_be_bytes()].concat();
        frame[len - TAIL..].copy_from_slice(&tail);
        frame
    }
}

/// Which frame this is: its sender, its flow's number, and its own.
pub fn which(frame: &[u8]) -> (usize, u16, u32) {
    let [from, a, b, number @ ..]: [u8; TAIL] = *frame.last_chunk().expect("a tail");
    (from.into(), u16::from_be_bytes([a, b]), u32::from_be_bytes(number))
}
