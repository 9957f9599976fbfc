//! From bytes to frames.
//!
//! The reader is given windows: what the file has from where the last step has stopped, as far as
//! it was read. It answers with one [`Step`]: a frame, so many bytes to pass over, or so many that
//! have to be in the window first. It keeps no bytes of its own, so that nothing that a file says
//! can make it allocate, but for a few bytes an interface.

use super::*;

/// Interfaces that one section may describe: each is remembered.
const MAX_INTERFACES: usize = 65_536;

/// Reads a capture file.
#[derive(Debug, Default)]
pub struct Reader {
    format: Format,
    is_big_endian: bool,
    /// Of the bytes behind the last step.
    offset: u64,
    /// Frames so far.
    frames: u64,
    interfaces: Vec<Described>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    /// Nothing was read yet.
    #[default]
    Unknown,
    Pcap {
        /// Nanoseconds in the smaller unit of a time.
        unit: u32,
    },
    Pcapng,
    /// In a pcapng block of no interest, with so many bytes to come before the length behind it.
    PassingOver {
        start: u64,
        length: u32,
        left: u32,
    },
}

/// What is to be known of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described {
    pub(super) snaplen: u32,
    /// `if_tsresol`.
    pub(super) resolution: u8,
    /// `if_tsoffset`, in seconds.
    pub(super) offset: i64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The window has to have so many bytes, or to be the rest of the file.
    More(usize),
    /// So many bytes of the window are done with.
    Skip(u64),
    /// So many bytes are done with, and held this frame.
    Frame(u64, Captured<'a>),
}

/// A frame of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When it was captured, in nanoseconds since 1970, or the nearest that fits; None if the file does not
    /// say.
    pub time: Option<i64>,
    /// Its bytes, as far as captured.
    pub bytes: &'a [u8],
    /// How many it had.
    pub original: u32,
}

impl Captured<'_> {
    /// Whether the file has it only in part.
    pub fn is_truncated(&self) -> bool {
        self.bytes.len() < self.original as usize
    }
}

impl Reader {
    /// At the start of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames read so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Takes the next step. `window` begins where the last step has stopped.
    pub fn step<'a>(&mut self, window: &'a [u8]) -> Result<Step<'a>, Fault> {
        let step = match self.format {
            Format::Unknown => self.magic(window),
            Format::Pcap { unit } => self.record(window, unit),
            Format::Pcapng => self.block(window),
            Format::PassingOver { start, length, left: 0 } => self.trailer(window, start, length),
            Format::PassingOver { start, length, left } => {
                Ok(self.pass_over(window, start, length, left))
            }
        }?;
        if let Step::Skip(bytes) | Step::Frame(bytes, _) = step {
            self.offset = self.offset.saturating_add(bytes);
        }
        self.frames += u64::from(matches!(step, Step::Frame(..)));
        Ok(step)
    }

    /// Says whether the file may end here, where the window has all that is left of it and the last step wanted
    /// `needed` bytes.
    pub fn end(&self, window: &[u8], needed: usize) -> Result<(), Fault> {
        let found = window.len() as u64;
        match self.format {
            Format::Unknown if window.is_empty() => Err(self.fault(false, Problem::Empty)),
            Format::PassingOver { start, length, .. } => {
                let found = self.offset.saturating_sub(start).saturating_add(found);
                let place = Place { offset: start, ..self.place(false) };
                Err(Fault { place, problem: Problem::Truncated { needed: length.into(), found } })
            }
            Format::Pcap { .. } | Format::Pcapng if window.is_empty() => Ok(()),
            format => {
                let is_packet =
                    |kind| matches!(kind, ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET);
                let is_frame = match format {
                    Format::Pcap { .. } => true,
                    Format::Pcapng => self.u32(window, 0).is_some_and(is_packet),
                    Format::Unknown | Format::PassingOver { .. } => false,
                };
                Err(self.fault(is_frame, Problem::Truncated { needed: needed as u64, found }))
            }
        }
    }

    fn place(&self, is_frame: bool) -> Place {
        Place { offset: self.offset, frame: self.frames + 1, is_frame }
    }

    fn fault(&self, is_frame: bool, problem: Problem) -> Fault {
        Fault { place: self.place(is_frame), problem }
    }

    fn u16(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// Finds out what the file is.
    fn magic<'a>(&mut self, window: &'a [u8]) -> Result<Step<'a>, Fault> {
        let Some(magic) = window.first_chunk() else { return Ok(Step::More(4)) };
        let (is_big_endian, unit) = match u32::from_be_bytes(*magic) {
            SECTION_HEADER => {
                self.format = Format::Pcapng;
                return Ok(Step::Skip(0));
            }
            0xA1B2_C3D4 => (true, 1_000),
            0xD4C3_B2A1 => (false, 1_000),
            0xA1B2_3C4D => (true, 1),
            0x4D3C_B2A1 => (false, 1),
            _ => return Err(self.fault(false, Problem::Magic(*magic))),
        };
        self.is_big_endian = is_big_endian;
        const HEADER: usize = 24;
        let (Some(major), Some(minor), Some(network)) =
            (self.u16(window, 4), self.u16(window, 6), self.u32(window, 20))
        else {
            return Ok(Step::More(HEADER));
        };
        if (major, minor) != (2, 4) {
            let problem = Problem::Version { format: "pcap", major, minor, known: "2.4" };
            return Err(self.fault(false, problem));
        }
        // Above the type is how many bytes of a checksum there are, if that is known.
        self.link_type(network as u16)?;
        if network & 0x0400_0000 != 0 && network >> 28 != 0 {
            return Err(self.fault(false, Problem::FrameCheckSequence));
        }
        self.format = Format::Pcap { unit };
        Ok(Step::Skip(HEADER as u64))
    }

    fn link_type(&self, link_type: u16) -> Result<(), Fault> {
        match link_type {
            ETHERNET => Ok(()),
            other => Err(self.fault(false, Problem::LinkType(other))),
        }
    }

    /// A frame of a pcap file.
    fn record<'a>(&self, window: &'a [u8], unit: u32) -> Result<Step<'a>, Fault> {
        const HEADER: usize = 16;
        let word = |at| self.u32(window, at);
        let (Some(seconds), Some(fraction), Some(captured), Some(original)) =
            (word(0), word(4), word(8), word(12))
        else {
            return Ok(Step::More(HEADER));
        };
        self.lengths(captured, original)?;
        let end = HEADER + captured as usize;
        let Some(bytes) = window.get(HEADER..end) else { return Ok(Step::More(end)) };
        let time = i64::from(seconds) * 1_000_000_000 + i64::from(fraction) * i64::from(unit);
        Ok(Step::Frame(end as u64, Captured { time: Some(time), bytes, original }))
    }

    fn lengths(&self, captured: u32, original: u32) -> Result<(), Fault> {
        if captured > MAX_CAPTURED {
            return Err(self.fault(true, Problem::TooLong { captured, limit: MAX_CAPTURED }));
        }
        if captured > original {
            return Err(self.fault(true, Problem::LongerThanOriginal { captured, original }));
        }
        Ok(())
    }

    /// A block of a pcapng file.
    fn block<'a>(&mut self, window: &'a [u8]) -> Result<Step<'a>, Fault> {
        const HEADER: usize = 12;
        // Whatever is long enough for the byte order of a section, as the shortest block is.
        let Some(header) = window.first_chunk::<HEADER>() else { return Ok(Step::More(HEADER)) };
        let kind = self.u32(header, 0).unwrap_or_default();
        if kind == SECTION_HEADER {
            let order = [header[8], header[9], header[10], header[11]];
            self.is_big_endian = match u32::from_be_bytes(order) {
                BYTE_ORDER => true,
                order if order.swap_bytes() == BYTE_ORDER => false,
                _ => return Err(self.fault(false, Problem::ByteOrder(order))),
            };
        }
        let length = self.u32(header, 4).unwrap_or_default();
        let is_packet = matches!(kind, ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET);
        let is_read = is_packet || matches!(kind, SECTION_HEADER | INTERFACE_DESCRIPTION);
        let is_too_long = is_read && length > MAX_BLOCK;
        if length < BLOCK_FRAMING || !length.is_multiple_of(4) || is_too_long {
            return Err(self.fault(is_packet, Problem::BlockLength { kind, length }));
        }
        if !is_read {
            return Ok(self.pass_over(window, self.offset, length, length - 4));
        }
        let end = length as usize;
        let Some(block) = window.get(..end) else { return Ok(Step::More(end)) };
        let behind = self.u32(block, end - 4).unwrap_or_default();
        if behind != length {
            let problem = Problem::Lengths { before: length, behind };
            return Err(self.fault(is_packet, problem));
        }
        let body = block.get(8..end - 4).unwrap_or_default();
        let too_short =
            |reader: &Self| reader.fault(is_packet, Problem::BlockLength { kind, length });
        let captured = match kind {
            SECTION_HEADER => {
                self.section(body).ok_or_else(|| too_short(self))??;
                return Ok(Step::Skip(length.into()));
            }
            INTERFACE_DESCRIPTION => {
                self.describe(body).ok_or_else(|| too_short(self))??;
                return Ok(Step::Skip(length.into()));
            }
            SIMPLE_PACKET => self.simple_packet(body),
            _ => self.packet(kind, body),
        };
        Ok(Step::Frame(length.into(), captured.ok_or_else(|| too_short(self))??))
    }

    /// Goes on in a block of no interest, as far as the window has it: so that what is missed of it in
    /// the end is known to the byte.
    fn pass_over<'a>(&mut self, window: &'a [u8], start: u64, length: u32, left: u32) -> Step<'a> {
        let here = left.min(u32::try_from(window.len()).unwrap_or(u32::MAX));
        self.format = Format::PassingOver { start, length, left: left - here };
        if here == 0 { Step::More(1) } else { Step::Skip(here.into()) }
    }

    /// The length behind a block that was passed over.
    fn trailer<'a>(
        &mut self,
        window: &'a [u8],
        start: u64,
        length: u32,
    ) -> Result<Step<'a>, Fault> {
        let Some(behind) = self.u32(window, 0) else { return Ok(Step::More(4)) };
        if behind != length {
            let place = Place { offset: start, ..self.place(false) };
            return Err(Fault { place, problem: Problem::Lengths { before: length, behind } });
        }
        self.format = Format::Pcapng;
        Ok(Step::Skip(4))
    }

    /// A section: everything begins anew. None: it is too short.
    fn section(&mut self, body: &[u8]) -> Option<Result<(), Fault>> {
        let (major, minor) = (self.u16(body, 4)?, self.u16(body, 6)?);
        body.get(8..16)?;
        if !matches!((major, minor), (1, 0 | 2)) {
            let problem = Problem::Version { format: "pcapng", major, minor, known: "1.0" };
            return Some(Err(self.fault(false, problem)));
        }
        self.interfaces.clear();
        Some(Ok(()))
    }

    /// An interface.
    fn describe(&mut self, body: &[u8]) -> Option<Result<(), Fault>> {
        let link_type = self.u16(body, 0)?;
        let snaplen = self.u32(body, 4)?;
        Some(self.link_type(link_type).and_then(|()| {
            let described = self.options(snaplen, body.get(8..).unwrap_or_default())?;
            if self.interfaces.len() == MAX_INTERFACES {
                return Err(self.fault(false, Problem::TooManyInterfaces(MAX_INTERFACES)));
            }
            self.interfaces.push(described);
            Ok(())
        }))
    }

    /// What an interface's options say of its frames and their times.
    fn options(&self, snaplen: u32, mut options: &[u8]) -> Result<Described, Fault> {
        let mut described = Described { snaplen, resolution: 6, offset: 0 };
        while let Some((code, value)) = self.option(&mut options, false)? {
            match (code, value) {
                (IF_TSRESOL, [resolution]) => described.resolution = *resolution,
                (IF_TSOFFSET, value) => {
                    let bytes = <[u8; 8]>::try_from(value)
                        .map_err(|_| self.option_length(false, code, value.len()))?;
                    described.offset = match self.is_big_endian {
                        true => i64::from_be_bytes(bytes),
                        false => i64::from_le_bytes(bytes),
                    };
                }
                (IF_FCSLEN, [0]) => {}
                (IF_FCSLEN, [_]) => return Err(self.fault(false, Problem::FrameCheckSequence)),
                (IF_TSRESOL | IF_FCSLEN, _) => {
                    return Err(self.option_length(false, code, value.len()));
                }
                _ => {}
            }
        }
        Ok(described)
    }

    /// Takes the next of a list of options, which may end without saying so.
    fn option<'a>(
        &self,
        options: &mut &'a [u8],
        is_frame: bool,
    ) -> Result<Option<(u16, &'a [u8])>, Fault> {
        let (Some(code), Some(length)) = (self.u16(options, 0), self.u16(options, 2)) else {
            return Ok(None);
        };
        if code == OPTION_END {
            return Ok(None);
        }
        let length = usize::from(length);
        let option = options.split_at_checked(4 + length.next_multiple_of(4));
        let (option, rest) = option.ok_or_else(|| self.option_length(is_frame, code, length))?;
        *options = rest;
        Ok(Some((code, option.get(4..4 + length).unwrap_or_default())))
    }

    fn option_length(&self, is_frame: bool, code: u16, length: usize) -> Fault {
        self.fault(is_frame, Problem::OptionLength { code, length })
    }

    /// An enhanced packet, or an obsolete one.
    fn packet<'a>(&self, kind: u32, body: &'a [u8]) -> Option<Result<Captured<'a>, Fault>> {
        let word = |at| self.u32(body, at);
        // An obsolete one has a number of drops in the other half.
        let interface = match kind {
            ENHANCED_PACKET => word(0)?,
            _ => self.u16(body, 0)?.into(),
        };
        let (high, low, captured, original) = (word(4)?, word(8)?, word(12)?, word(16)?);
        let described = self.interface(interface);
        Some(described.and_then(|described| {
            let data = body.get(20..).unwrap_or_default();
            let bytes = self.bytes(data, captured, original)?;
            let options = data.get(bytes.len().next_multiple_of(4)..).unwrap_or_default();
            self.packet_options(options)?;
            let time = described.time(u64::from(high) << 32 | u64::from(low));
            Ok(Captured { time: Some(time), bytes, original })
        }))
    }

    /// What a packet's options say of its bytes: that there is a checksum among them, which may be said of
    /// each frame instead of the interface.
    fn packet_options(&self, mut options: &[u8]) -> Result<(), Fault> {
        const FCS_LENGTH: u32 = 0xF << 5;
        while let Some((code, value)) = self.option(&mut options, true)? {
            if code == EPB_FLAGS {
                let flags = self.u32(value, 0).filter(|_| value.len() == 4);
                let flags = flags.ok_or_else(|| self.option_length(true, code, value.len()))?;
                if flags & FCS_LENGTH != 0 {
                    return Err(self.fault(true, Problem::FrameCheckSequence));
                }
            }
        }
        Ok(())
    }

    fn simple_packet<'a>(&self, body: &'a [u8]) -> Option<Result<Captured<'a>, Fault>> {
        let original = self.u32(body, 0)?;
        Some(self.interface(0).and_then(|described| {
            let captured = match described.snaplen {
                0 => original,
                limit => original.min(limit),
            };
            let bytes = self.bytes(body.get(4..).unwrap_or_default(), captured, original)?;
            Ok(Captured { time: None, bytes, original })
        }))
    }

    fn interface(&self, interface: u32) -> Result<Described, Fault> {
        let described = self.interfaces.get(interface as usize).copied();
        let described =
            described.ok_or(Problem::Interface { interface, described: self.interfaces.len() });
        described.map_err(|problem| self.fault(true, problem))
    }

    /// The bytes of a frame, in front of padding and options.
    fn bytes<'a>(&self, data: &'a [u8], captured: u32, original: u32) -> Result<&'a [u8], Fault> {
        self.lengths(captured, original)?;
        data.get(..captured as usize)
            .ok_or_else(|| self.fault(true, Problem::BeyondBlock { captured, room: data.len() }))
    }
}

impl Described {
    /// Nanoseconds since 1970, of a time in this interface's units; the nearest that there is.
    pub(super) fn time(&self, units: u64) -> i64 {
        let units = i128::from(units);
        let power = u32::from(self.resolution & 0x7F);
        let nanoseconds = match self.resolution & 0x80 {
            0 if power <= 9 => units * 10i128.pow(9 - power),
            0 => 10i128.checked_pow(power - 9).map_or(0, |divisor| units / divisor),
            _ => (units * 1_000_000_000) >> power,
        };
        let since_1970 = nanoseconds + i128::from(self.offset) * 1_000_000_000;
        since_1970.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}
