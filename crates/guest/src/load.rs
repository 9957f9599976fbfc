//! A load generator: frames out of one or more ports, by one thread, and what came back of them.
//!
//! # How it works
//!
//! Each [`Port`] is a guest's network device on a back end of its own, with one queue pair. Frames go
//! from each port to the next, and from the last to the first: with two ports, both ways through the
//! switch that both are on; with one, to a back end that echoes.
//!
//! Frames are written before the load begins, one into each transmit buffer, and stay there
//! ([`Template`]). On the busy path a frame costs only what changes: its *stamp*, which says who sent
//! it, as what number, and when; and its addresses, where there are several. A received frame is
//! known by its stamp. With verification it is compared as a whole, by a checksum over all of it.
//!
//! Latency counts from the time that a frame *should* have been sent. When the load is a rate, a
//! back end that stalls makes the frames behind it late too, as it would do to any other sender; a
//! generator that waited with the back end would not notice (*coordinated omission*).
//!
//! What is lost, late or twice is found by sequence numbers ([`Tally`]).

mod frame;
mod generator;
mod port;
mod search;
mod tally;
#[cfg(test)]
mod tests;

pub use hdrhistogram::Histogram;

pub use frame::{Addresses, Frames, MAX_SIZE, MIN_SEGMENTED_SIZE, MIN_SIZE, Template};
pub use generator::{Generator, Load, Outcome, Pace, Progress, Report, Setup};
pub use port::{LoadError, Port, PortOptions};
pub use search::{Search, no_drop_rate};
pub use tally::{Arrival, Tally};
