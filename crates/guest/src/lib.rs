//! An embedded guest: what a virtual machine looks like to a switch, without the virtual machine.
//!
//! It is made of the same parts as its counterpart: the front end of `vhost-user`, the driver side
//! of `virtqueue`, and `memory` that it shares out itself. `ringway demo` and the tests drive the
//! switch with it, and [`load`] is what `ringway bench` runs.

mod driver;
mod guest;
mod layout;
pub mod load;

pub use driver::{DriverError, NetDriver, Received};
pub use guest::{Guest, GuestError, Options};
pub use layout::{MemoryLayout, PairLayout, RingAddresses, RingLayout};
