//! What is wrong with a capture file, where, in words.

use std::fmt;

use thiserror::Error;

/// The first thing that is wrong with a file. Nothing behind it can be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// A place in a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the frame, or what is there instead, begins: bytes from the start of the file.
    pub offset: u64,
    /// Which frame this is, from 1, or which would be the next.
    pub frame: u64,
    /// Whether it is a frame at all.
    pub is_frame: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, frame, is_frame } = self;
        match is_frame {
            true => write!(f, "frame {frame} at byte {offset}"),
            false => write!(f, "byte {offset}, before frame {frame}"),
        }
    }
}

/// What is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Neither pcap nor pcapng.
    #[error("this is no capture file: it begins with {0:02x?}{hint}", hint = hint(.0))]
    Magic([u8; 4]),
    /// A file of no bytes.
    #[error("the file is empty")]
    Empty,
    /// Cut off.
    #[error("the file ends after {found} of its {needed} bytes")]
    Truncated {
        /// Bytes that it needs, as far as known by now.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Of a version that nobody has described.
    #[error("version {major}.{minor} of {format} is not known, only {known} is")]
    Version {
        /// `pcap` or `pcapng`.
        format: &'static str,
        /// As in the file.
        major: u16,
        /// As in the file.
        minor: u16,
        /// What is known.
        known: &'static str,
    },
    /// Frames of something else than Ethernet.
    #[error("its link type is {}, not Ethernet", LinkType(*.0))]
    LinkType(u16),
    /// Ethernet with its checksum, which a frame of the switch's does not have.
    #[error(
        "its frames end with Ethernet's checksum (FCS): capture without it, or cut it off with editcap -C -4 -L"
    )]
    FrameCheckSequence,
    /// More bytes than a frame can have.
    #[error("its captured length {captured} is larger than {limit}, the most that there can be")]
    TooLong {
        /// As in the file.
        captured: u32,
        /// [`super::MAX_CAPTURED`].
        limit: u32,
    },
    /// More bytes than the frame itself had.
    #[error("its captured length {captured} is larger than its original length {original}")]
    LongerThanOriginal {
        /// As in the file.
        captured: u32,
        /// As in the file.
        original: u32,
    },
    /// More bytes than the block that they are in.
    #[error("its captured length {captured} is larger than its block has room for, {room}")]
    BeyondBlock {
        /// As in the file.
        captured: u32,
        /// What the block has.
        room: usize,
    },
    /// Not a multiple of four, or too small, or too large.
    #[error("a block of type {kind:#x} cannot be {length} bytes long")]
    BlockLength {
        /// Its type.
        kind: u32,
        /// As in the file.
        length: u32,
    },
    /// The length behind a block is not that before it.
    #[error("the block's length is {before} before it and {behind} behind it")]
    Lengths {
        /// As in the file.
        before: u32,
        /// As in the file.
        behind: u32,
    },
    /// The byte order of a section is neither.
    #[error("the section's byte order is {0:02x?}, which is none")]
    ByteOrder([u8; 4]),
    /// An option that goes beyond its block, or has another length than it has to.
    #[error("option {code} cannot be {length} bytes long")]
    OptionLength {
        /// Its code.
        code: u16,
        /// As in the file.
        length: usize,
    },
    /// A frame of an interface that was not described.
    #[error("it is of interface {interface}, and {described} are described before it")]
    Interface {
        /// As in the file.
        interface: u32,
        /// How many there are.
        described: usize,
    },
    /// More than anybody has.
    #[error("the section has more than {0} interfaces")]
    TooManyInterfaces(usize),
}

/// What else a file may be.
fn hint(magic: &[u8; 4]) -> &'static str {
    match magic {
        [0x1f, 0x8b, ..] => " (compressed: gunzip it first)",
        [0x28, 0xb5, 0x2f, 0xfd] => " (compressed: unzstd it first)",
        [0x04, 0x22, 0x4d, 0x18] => " (compressed: unlz4 it first)",
        [0x34, 0xcd, 0xb2, 0xa1] | [0xa1, 0xb2, 0xcd, 0x34] => {
            " (a modified pcap of long ago: editcap makes a pcapng of it)"
        }
        b"snoo" => " (a snoop file: editcap makes a pcapng of it)",
        _ => "",
    }
}

/// The link type of a capture, as tcpdump.org/linktypes.html names it.
struct LinkType(u16);

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "NULL (loopback of BSD)",
            9 => "PPP",
            101 => "RAW (IP without Ethernet)",
            105 => "IEEE802_11 (wireless LAN)",
            108 => "LOOP (loopback of OpenBSD)",
            113 => "LINUX_SLL (of Linux's interface `any`)",
            127 => "IEEE802_11_RADIOTAP (wireless LAN)",
            189 | 220 => "USB_LINUX",
            201 => "BLUETOOTH_HCI_H4_WITH_PHDR",
            228 => "IPV4",
            229 => "IPV6",
            239 => "NFLOG",
            249 => "USBPCAP",
            253 => "NETLINK",
            276 => "LINUX_SLL2 (of Linux's interface `any`)",
            other => return write!(f, "{other}"),
        };
        write!(f, "{name}")
    }
}
