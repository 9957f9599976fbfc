//! What all ports have in common.

/// Longest frame: 64 KiB of IP and the headers in front of it.
pub(crate) const MAX_FRAME: usize = 65535 + 14 + 4 + 4;
