//! What all ports have in common.

/// Bytes of a frame around its payload: Ethernet, and up to two tags.
pub(crate) const ETHERNET: usize = 14 + 2 * 4;

/// Longest frame: 64 KiB of IP and the headers in front of it.
pub(crate) const MAX_FRAME: usize = 65535 + ETHERNET;
