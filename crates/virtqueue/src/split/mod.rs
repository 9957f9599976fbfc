//! The split ring (virtio 1.3, section 2.7).
//!
//! # How it works
//!
//! Three areas in guest memory. The driver describes buffers in the *descriptor table* and lists
//! the heads of its chains in the *available ring*; the device lists them in the *used ring* when
//! it is done. Each ring has a free-running 16-bit index, the count of entries ever listed.
//!
//! | written by the driver | written by the device |
//! | --- | --- |
//! | descriptors, available entries, available index | used entries, used index |
//! | used_event or NO_INTERRUPT: when to be called | avail_event or NO_NOTIFY: when to be kicked |
//!
//! # Memory ordering
//!
//! *Publication*: entries are written first, then the index, with Release; the other side reads the
//! index with Acquire, then the entries.
//!
//! *Notification*: each side writes its own word and then reads the other's. The publisher stores
//! its index and then loads the event word; the sleeper stores the event word and then loads the
//! index. A full fence between store and load on both sides makes sure that at least one of them
//! sees the other: without it both could miss, and a sleeper would sleep on a full ring. The device's is in
//! [`DeviceQueue::publish`], or its caller's between [`DeviceQueue::expose`] and [`DeviceQueue::wants_call`].
//!
//! # Invariants of the device side
//!
//! * Each descriptor is read once, as two words, into a local; the local is checked and used.
//! * `next_available - next_used <= size`: no more chains are taken than the used ring can hold,
//!   whatever the driver claims.
//! * A chain has at most as many descriptors as the ring has entries, its indirect table included.
//! * Used entries are written as chains complete, and published together by
//!   [`DeviceQueue::publish`] or [`DeviceQueue::expose`].
//!
//! # IN_ORDER
//!
//! Chains that have nothing to be written share one used entry, from the first of them up to a
//! publication: it is written over again with each further chain. The used index moves on by all of
//! them, and the entries that were passed over hold what they held.
//!
//! The driver uses its descriptors in the order of the ring, so that it knows which chain is next
//! without being told.

mod device;
mod driver;
mod index;
mod layout;
mod slots;
#[cfg(test)]
mod tests;

pub use device::DeviceQueue;
pub use driver::DriverQueue;
pub use layout::Layout;
pub use slots::SlotQueue;
