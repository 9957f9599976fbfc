//! From frames to blocks of a pcapng file, in little-endian order.
//!
//! The blocks of a file are a [`Section`], an [`Interface`] or several, then packets, each of one
//! interface, with [`Statistics`] among them as often as one likes. A packet is written in place: its
//! header and what is behind its bytes go around bytes that lie there already ([`Packet`]). Times are in
//! nanoseconds.

use super::*;

/// Bytes of a packet's block in front of the frame.
const PACKET_HEADER_SIZE: usize = 28;

/// Behind the frame and its padding: no options, the length.
const PACKET_TRAILER: usize = 4;

/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;

/// The options of statistics.
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// The options of a section.
const SHB_HARDWARE: u16 = 2;
const SHB_OS: u16 = 3;
const SHB_USERAPPL: u16 = 4;

/// What begins a file: who wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// The machine.
    pub hardware: &'a str,
    /// The operating system.
    pub os: &'a str,
    /// The program and its version.
    pub application: &'a str,
}

impl Section<'_> {
    /// Appends its block.
    pub fn write(&self, to: &mut Vec<u8>) {
        block(to, SECTION_HEADER, |body| {
            body.extend(BYTE_ORDER.to_le_bytes());
            body.extend([1, 0, 0, 0]);
            // How long the section is, is not known while it grows.
            body.extend(u64::MAX.to_le_bytes());
            option(body, SHB_HARDWARE, self.hardware.as_bytes());
            option(body, SHB_OS, self.os.as_bytes());
            option(body, SHB_USERAPPL, self.application.as_bytes());
            option(body, OPTION_END, &[]);
        });
    }
}

/// An interface: the first one written is number 0.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub description: &'a str,
    /// Bytes that are captured of a frame, at most.
    pub snaplen: u32,
}

impl Interface<'_> {
    /// Appends its block.
    pub fn write(&self, to: &mut Vec<u8>) {
        block(to, INTERFACE_DESCRIPTION, |body| {
            body.extend(ETHERNET.to_le_bytes());
            body.extend([0, 0]);
            body.extend(self.snaplen.to_le_bytes());
            option(body, IF_NAME, self.name.as_bytes());
            option(body, IF_DESCRIPTION, self.description.as_bytes());
            option(body, IF_TSRESOL, &[NANOSECONDS]);
            option(body, OPTION_END, &[]);
        });
    }
}

/// What an interface has counted so far.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// Its number.
    pub interface: u32,
    /// Since when it has counted, and until when.
    pub span: Span,
    /// Frames that were to be captured.
    pub received: u64,
    /// Those of them that were not, for want of room.
    pub dropped: u64,
}

/// A span of time, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its start.
    pub start: u64,
    /// Its end.
    pub end: u64,
}

impl Statistics {
    /// Appends its block.
    pub fn write(&self, to: &mut Vec<u8>) {
        let Span { start, end } = self.span;
        block(to, INTERFACE_STATISTICS, |body| {
            body.extend(self.interface.to_le_bytes());
            body.extend(time(end));
            option(body, ISB_STARTTIME, &time(start));
            option(body, ISB_ENDTIME, &time(end));
            option(body, ISB_IFRECV, &self.received.to_le_bytes());
            option(body, ISB_IFDROP, &self.dropped.to_le_bytes());
            option(body, OPTION_END, &[]);
        });
    }
}

fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend(kind.to_le_bytes());
    to.extend([0; 4]);
    body(to);
    let length = (to.len() + 4 - start) as u32;
    to.extend(length.to_le_bytes());
    if let Some(field) = to.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The halves of a time, the upper one first.
fn time(nanoseconds: u64) -> [u8; 8] {
    nanoseconds.rotate_left(32).to_le_bytes()
}

/// What is written in front of a frame.
#[derive(Clone, Copy, Debug)]
pub struct PacketHeader {
    /// The number of its interface.
    pub interface: u32,
    /// In nanoseconds since 1970.
    pub time: u64,
    /// Bytes of it that are captured.
    pub captured: u32,
    /// Bytes that it had.
    pub original: u32,
}

/// Bytes of the block of a packet of which so many bytes are captured. A multiple of 4, and never less for
/// more.
pub const fn packet_size(captured: usize) -> usize {
    PACKET_HEADER_SIZE + captured.next_multiple_of(4) + PACKET_TRAILER
}

/// A packet's block in the making.
pub struct Packet<'a> {
    room: &'a mut [u8],
}

impl<'a> Packet<'a> {
    /// A block at the start of this room.
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { room }
    }

    /// Where the bytes of the frame go.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.room.get_mut(PACKET_HEADER_SIZE..).unwrap_or_default()
    }

    /// Completes the block around the first [`PacketHeader::captured`] bytes. Returns its size, or None if there
    /// is not so much room.
    pub fn finish(self, header: PacketHeader) -> Option<usize> {
        let PacketHeader { interface, time: at, captured, original } = header;
        let size = packet_size(captured as usize);
        let block = self.room.get_mut(..size)?;
        let length = (size as u32).to_le_bytes();
        let (front, rest) = block.split_at_mut(PACKET_HEADER_SIZE);
        let words = [ENHANCED_PACKET.to_le_bytes(), length, interface.to_le_bytes()];
        front.get_mut(..12)?.copy_from_slice(words.as_flattened());
        front.get_mut(12..20)?.copy_from_slice(&time(at));
        let words = [captured.to_le_bytes(), original.to_le_bytes()];
        front.get_mut(20..)?.copy_from_slice(words.as_flattened());
        let behind = rest.get_mut(captured as usize..)?;
        let (padding, behind) = behind.split_at_mut(behind.len() - PACKET_TRAILER);
        padding.fill(0);
        behind.copy_from_slice(&length);
        Some(size)
    }
}

/// The whole blocks at the start of some bytes that this module has written, one after the other.
pub(super) fn blocks(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = bytes.get(4..)?.first_chunk().map(|length| u32::from_le_bytes(*length))?;
        let (block, rest) = bytes.split_at_checked(length as usize)?;
        bytes = rest;
        (!block.is_empty()).then_some(block)
    })
}

/// Adds to the time of each packet in a run of blocks that this module has written. It wraps.
pub fn retime(mut bytes: &mut [u8], nanoseconds: u64) {
    loop {
        let Some(length) = blocks(bytes).next().map(<[u8]>::len) else { return };
        let (block, rest) = bytes.split_at_mut(length);
        bytes = rest;
        if block.first_chunk() == Some(&ENHANCED_PACKET.to_le_bytes())
            && let Some(field) = block.get_mut(12..).and_then(<[u8]>::first_chunk_mut::<8>)
        {
            *field = time(u64::from_le_bytes(*field).rotate_left(32).wrapping_add(nanoseconds));
        }
    }
}
