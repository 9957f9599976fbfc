//! Ports between guests that are driven by hand, and between a guest and the host.

mod allocation;
mod announce;
mod backpressure;
mod blocking;
mod delivery;
mod double_fetch;
mod flavours;
mod formats;
mod guest;
mod hand;
mod hostile;
mod oddities;
mod offload;
mod segments;
mod swap;
mod tap;
mod world;
