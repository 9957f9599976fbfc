//! Capture files: pcap and pcapng, read; pcapng, written.
//!
//! [`Reader`] takes either, in either byte order, from windows of bytes, and gives frames with their
//! times. [`Section`], [`Interface`], [`Packet`] and [`Statistics`] are the blocks of a file that is written.
//! Both follow draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.

mod fault;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use fault::{Fault, Place, Problem};
pub use reader::{Captured, Reader, Step};
pub use writer::{Interface, Packet, PacketHeader, Section, Span, Statistics, packet_size, retime};

/// The most bytes of one frame that a file may hold: what Wireshark and libpcap take for Ethernet.
pub const MAX_CAPTURED: u32 = 262_144;

/// The longest block that may hold something of use: what Wireshark takes.
pub const MAX_BLOCK: u32 = 16 * 1024 * 1024;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

/// The types of blocks.
const SECTION_HEADER: u32 = 0x0A0D_0D0A;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// What tells the byte order of a section.
const BYTE_ORDER: u32 = 0x1A2B_3C4D;

/// Type and length of a block, and its length once more behind it.
const BLOCK_FRAMING: u32 = 12;

/// What ends a list of options.
const OPTION_END: u16 = 0;
/// The options of an interface.
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const IF_FCSLEN: u16 = 13;
const IF_TSOFFSET: u16 = 14;
/// The option of a packet, enhanced or obsolete, that says what it is.
const EPB_FLAGS: u16 = 2;
