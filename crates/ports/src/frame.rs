//! What all ports have in common.

/// Bytes of a frame around its payload: Ethernet, and up to two tags.
pub(crate) const ETHERNET: usize = 14 + 2 * 4;

/// Longest frame: 64 KiB of IP and the headers in front of it.
pub(crate) const MAX_FRAME: usize = 65535 + ETHERNET;

/// Bytes of frames after which a burst takes no more: one sender of large frames does not keep the
/// others waiting for long.
pub(crate) const BYTE_BUDGET: u64 = 512 * 1024;
