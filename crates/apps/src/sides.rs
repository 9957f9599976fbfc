//! The two sides of an app that lies between a port and the rest of the network.
//!
//! Input `n` and output `n` are side `n`. So frames *from* the port come in by input [`PORT`] and leave by
//! output [`NETWORK`], and frames *to* the port come in by input [`NETWORK`] and leave by output [`PORT`].

/// The side that the port is on.
pub const PORT: usize = 0;

/// The side that everything else is on.
pub const NETWORK: usize = 1;

/// The side opposite to `side`: where frames leave that came in by it.
#[inline]
pub const fn opposite(side: usize) -> usize {
    if side == PORT { NETWORK } else { PORT }
}
