//! What all ports have in common.

use wire::ethernet::{EtherType, HEADER_SIZE, TAG_SIZE};

/// Bytes of a frame around its payload: Ethernet, and up to two tags.
pub(crate) const ETHERNET: usize = 14 + 2 * 4;

/// Whether a frame that has so many bytes on a wire, and begins with this head, is too long for an interface with this MTU. Tags are not
/// part of what that limits, up to two.
pub(crate) fn is_over(mtu: usize, len: usize, head: &[u8]) -> bool {
    let is_tag = |at: usize| {
        let bytes = head.get(at..).and_then(|rest| rest.first_chunk());
        bytes.is_some_and(|bytes| EtherType(u16::from_be_bytes(*bytes)).is_tag())
    };
    let header = || match (is_tag(HEADER_SIZE - 2), is_tag(HEADER_SIZE - 2 + TAG_SIZE)) {
        (true, true) => HEADER_SIZE + 2 * TAG_SIZE,
        (true, false) => HEADER_SIZE + TAG_SIZE,
        (false, _) => HEADER_SIZE,
    };
    len.saturating_sub(HEADER_SIZE) > mtu && len.saturating_sub(header()) > mtu
}

/// Longest frame: 64 KiB of IP and the headers in front of it.
pub(crate) const MAX_FRAME: usize = 65535 + ETHERNET;

/// Bytes of frames after which a burst takes no more: one sender of large frames does not keep the
/// others waiting for long.
pub(crate) const BYTE_BUDGET: u64 = 512 * 1024;
