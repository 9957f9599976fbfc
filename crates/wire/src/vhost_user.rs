//! The vhost-user protocol's messages (QEMU, `docs/interop/vhost-user.rst`).
//!
//! One table says everything about the form of each message: its number, its name, the exact
//! payload sizes and descriptor counts that it may have, what must have been negotiated before it,
//! and how it is answered. The decoder obeys the table, its tests run over the table, and the
//! table below is printed from it. A message of any other form is refused; nothing is guessed.
//!
//! Two forms are refused knowingly. The 36-byte single region of QEMU before 5.1 lost the upper
//! half of the file offset on its way. Payloads over [`MAX_PAYLOAD`] have no legal use.
//!
#![doc = include_str!("../MESSAGES.md")]

mod describe;
mod header;
mod payload;
mod protocol_features;
mod table;

pub use describe::describe;
pub use header::{Header, HeaderError, MAX_PAYLOAD};
pub use payload::{
    ConfigSpace, LogArea, MemoryRegion, Payload, RingDescriptor, Shape, VringAddress, VringState,
};
pub use protocol_features::ProtocolFeatures;
pub use table::{Answer, BackEndRequest, FormFault, FrontEndRequest, Gate, Message};

/// The most descriptors that any message may carry: one per region of SET_MEM_TABLE.
pub const MAX_DESCRIPTORS: usize = 8;
/// The most regions in SET_MEM_TABLE.
pub const MAX_TABLE_REGIONS: usize = 8;
/// The most rings: the index has 8 bits wherever it rides with a descriptor.
pub const MAX_RINGS: usize = 256;
