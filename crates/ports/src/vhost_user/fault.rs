//! What a guest can do wrong.

use thiserror::Error;
use virtqueue::Violation;

/// What a guest did wrong.
#[derive(Debug, Error)]
pub enum GuestFault {
    /// A virtqueue's rules were broken.
    #[error("{kind} ring {ring}: {violation}")]
    Ring {
        /// `receive` or `transmit`.
        kind: &'static str,
        /// Its number.
        ring: usize,
        /// Which rule.
        violation: Violation,
    },
    /// A receive buffer that cannot hold a header.
    #[error(
        "receive ring {ring}: a buffer of {bytes} bytes cannot hold the header (virtio 1.3, \
         5.1.6.3.1)"
    )]
    TinyBuffer {
        /// The ring's number.
        ring: usize,
        /// Writable bytes in the chain.
        bytes: u64,
    },
    /// The memory file shrank.
    #[error("the guest's memory file was truncated while in use")]
    MemoryGone,
    /// A kick descriptor that cannot be waited for.
    #[error("ring {ring}: the kick descriptor cannot be waited for: {error}")]
    Kick {
        /// Its number.
        ring: usize,
        /// What the kernel says.
        error: std::io::Error,
    },
}

impl GuestFault {
    pub(super) fn receive(pair: usize, violation: Violation) -> Self {
        Self::Ring { kind: "receive", ring: super::receive_ring(pair), violation }
    }

    pub(super) fn transmit(pair: usize, violation: Violation) -> Self {
        Self::Ring { kind: "transmit", ring: super::transmit_ring(pair), violation }
    }
}
