//! Apps without an outside: the bridge, and those that lie between a port and the rest: see [`sides`].

pub mod anti_spoof;
pub mod bridge;
pub mod bucket;
mod eviction;
pub mod filter;
mod keyed;
pub mod police;
pub mod sides;
pub mod storm;

#[cfg(test)]
mod testing;
