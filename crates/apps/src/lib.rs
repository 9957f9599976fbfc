//! Apps without an outside: the bridge.

pub mod bridge;
pub mod sides;
