//! Virtqueues.
//!
//! A virtqueue is a ring in guest memory through which a driver hands buffers to a device and gets
//! them back. This crate holds the split ring ([`split`], virtio 1.3 section 2.7), seen from both
//! ends: [`split::DeviceQueue`] is what the switch is made of, [`split::DriverQueue`] what embedded
//! guests and tests are made of.
//!
//! Nothing here allocates once a queue stands, except that lists of slices grow to their working
//! size; nothing makes a system call: the caller owns kick and call descriptors and is only told
//! when to use them.

pub mod split;
mod violation;

pub use violation::Violation;
