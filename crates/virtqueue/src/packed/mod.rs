//! The packed ring (virtio 1.3, section 2.8).
//!
//! # How it works
//!
//! One ring of descriptors in guest memory, which both sides write. The driver writes a chain into
//! consecutive slots, the device reads it from there, and when it is done writes one *used*
//! descriptor over a slot. Both go round the ring on their own: the device writes used descriptors
//! where it has got to with using, not where the chain was, and then moves on by as many slots as the
//! chain had. Used in the same order, a chain's used descriptor lies over its first slot; in another
//! order, over some other chain's.
//!
//! Whose a descriptor is, is told by two of its flags and by how often the ring was gone round. Each
//! side keeps a *wrap counter* of one bit, which turns over as it passes the end of the ring (of any
//! size: it need not be a power of two) and begins as 1. A descriptor is available when AVAIL is
//! equal to the driver's counter and USED is not; it is used when both are equal to the device's. A
//! [`Position`] is a slot and its counter.
//!
//! | written by the driver | written by the device |
//! | --- | --- |
//! | descriptors that are available | descriptors that are used |
//! | driver event structure: when to be called | device event structure: when to be kicked |
//!
//! The driver names each chain by a buffer id of its choice, which is in the chain's last descriptor.
//! To the device it is a number that it gives back.
//!
//! # Memory ordering
//!
//! *Publication*: a descriptor is two 64-bit words, address first; length, id and flags are the
//! second. The second word is stored whole, so that nobody sees flags that belong to another length
//! or id. Of all that is to become visible together, the first descriptor's second word is stored
//! last, with Release: the other side looks at no later slot before it has seen that one, with
//! Acquire, and then loads the address.
//!
//! *Notification*: as in a split ring. The publisher stores its descriptor and then loads the other
//! side's event structure; the sleeper stores its event structure and then loads the descriptor. A
//! full fence between store and load on both sides makes sure that at least one of them sees the
//! other; the device's is in [`DeviceQueue::publish`], or its caller's between [`DeviceQueue::expose`] and
//! [`DeviceQueue::wants_call`]. An event structure is one 32-bit word, stored and loaded whole.
//!
//! # Invariants of the device side
//!
//! * Of a descriptor that is taken the second word is read once into a local, and the first word once;
//!   the locals are checked and used. What was read of one that is not taken is forgotten.
//! * From `next_used` to `next_available` there are no more slots than the ring has. A chain that
//!   would need more is refused, whatever its flags claim.
//! * `published` to `next_used` is what was given back and the driver does not see yet: all of it is
//!   in the ring except for the second word at `published`.
//! * No slot is written that was not taken, and none twice in one round.
//!
//! # IN_ORDER
//!
//! Chains that have nothing to be written share one used descriptor, in the first one's first slot,
//! from the first of them up to a publication.

mod device;
mod driver;
mod format;
mod layout;
mod slots;
#[cfg(test)]
mod tests;

pub use device::DeviceQueue;
pub use driver::DriverQueue;
pub use format::{Descriptor, Event, FIRST_POSITION, Position};
pub use layout::Layout;
pub use slots::SlotQueue;
