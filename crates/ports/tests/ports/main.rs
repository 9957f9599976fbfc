//! Ports between guests that are driven by hand, and between a guest and the host.

mod allocation;
mod announce;
mod backpressure;
mod blocking;
mod bursts;
mod crew;
mod delivery;
mod double_fetch;
mod flavours;
mod flow;
mod formats;
mod guest;
mod hand;
mod hostile;
mod hostile_pairs;
mod live;
mod model;
mod oddities;
mod offload;
mod pairs;
mod regressions;
mod segments;
mod swap;
mod tap;
mod workers;
mod world;
