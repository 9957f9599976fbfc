//! Virtqueues.
//!
//! A virtqueue is a ring in guest memory through which a driver hands buffers to a device and gets
//! them back. There are two formats: the split ring ([`split`], virtio 1.3 section 2.7) and the
//! packed ring ([`packed`], section 2.8); and two ends: a device queue is what the switch is made
//! of, a driver queue what embedded guests and tests are made of. [`DeviceQueue`], [`DriverQueue`]
//! and [`Layout`] are of either format, as RING_PACKED says.
//!
//! # IN_ORDER
//!
//! Where it was negotiated, chains are given back in the order in which they were taken: that is
//! promised by whoever uses a [`DeviceQueue`]. Then one used entry can stand for many chains. It has
//! the id of the last of them, and lies where the first one's would have been; the ring moves on by
//! all of them (sections 2.7.9 and 2.8.8). It says nothing of the chains before the last but that
//! they were used, so we write it only for chains that have nothing to be written: for transmitted
//! frames, not for received ones.
//!
//! Nothing here allocates once a queue stands, except that lists of slices grow to their working
//! size; nothing makes a system call: the caller owns kick and call descriptors and is only told
//! when to use them.

mod chain;
mod driver;
mod fields;
mod layout;
pub mod packed;
mod queue;
mod slots;
pub mod split;
#[cfg(test)]
mod tests;
mod violation;

pub use chain::{Chain, Direction, Piece, Single, Singles};
pub use driver::{Buffer, Form, Full, IndirectTables, Used};
pub use layout::{Area, Layout, LayoutError};
pub use queue::{DeviceQueue, DeviceRing, DriverQueue};
pub use slots::{Buffers, SlotQueue};
pub use violation::Violation;
