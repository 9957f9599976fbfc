//! What is tested of both formats alike.

pub mod bed;
mod calls;
mod drained;
mod interleavings;
mod model;
mod recover;
mod sleepers;
mod slots;
mod soak;
mod waiting;
