//! Apps that are no ports: the bridge; those that lie between a port and the rest, which have two [`sides`]; and
//! those that frames begin or end in, or are copied by.

pub mod anti_spoof;
pub mod bridge;
pub mod bucket;
mod eviction;
pub mod filter;
pub mod impair;
mod keyed;
pub mod mirror;
mod occupancy;
pub mod police;
pub mod sides;
pub mod sink;
pub mod source;
pub mod storm;
pub mod tee;

#[cfg(test)]
mod testing;
