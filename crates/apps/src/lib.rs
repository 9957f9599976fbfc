//! Apps without an outside: the bridge, and those that lie between a port and the rest: see [`sides`].

pub mod anti_spoof;
pub mod bridge;
pub mod bucket;
pub mod impair;
pub mod mirror;
pub mod police;
pub mod sides;
pub mod sink;
pub mod source;
pub mod storm;
pub mod tee;

#[cfg(test)]
mod testing;
