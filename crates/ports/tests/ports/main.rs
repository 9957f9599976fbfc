//! Ports between guests that are driven by hand, and between a guest and the host.

mod allocation;
mod announce;
mod backpressure;
mod delivery;
mod guest;
mod offload;
mod world;
