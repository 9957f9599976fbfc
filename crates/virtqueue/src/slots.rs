//! The driver side for a program that does little else: a buffer for each entry, batches only.

use memory::GuestAddress;
use wire::virtio::Features;

use crate::{Layout, Violation, packed, split};

/// The buffers of a ring, one for each entry, side by side in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Where the first one is.
    pub start: GuestAddress,
    /// Bytes from one to the next.
    pub stride: u32,
    /// Bytes of each, unless [`SlotQueue::set_len`] says otherwise.
    pub len: u32,
    /// Whether the device writes them; otherwise it reads them.
    pub writable: bool,
}

impl Buffers {
    /// Where the buffer of a slot is.
    #[inline]
    pub(crate) const fn address(&self, slot: u16) -> u64 {
        self.start.0 + slot as u64 * self.stride as u64
    }
}

/// What the driver remembers of a slot.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slot {
    /// Bytes of its buffer.
    pub len: u32,
    /// Whether it is posted.
    pub held: bool,
}

/// The driver side of a ring whose entries, or *slots*, each have a buffer of their own.
///
/// It does less than a [`crate::DriverQueue`], and does it faster: a chain is one buffer, which never
/// moves, so that there are no chains to build and no tokens to look up. Slots are reaped by the
/// batch. What a hostile device could do is checked all the same.
pub enum SlotQueue {
    /// Of a split ring.
    Split(split::SlotQueue),
    /// Of a packed ring.
    Packed(packed::SlotQueue),
}

/// Does the same with either queue.
macro_rules! either {
    ($self:ident, $queue:ident => $body:expr) => {
        match $self {
            Self::Split($queue) => $body,
            Self::Packed($queue) => $body,
        }
    };
}

impl SlotQueue {
    /// A queue at the start of a ring whose memory is zero, with nothing posted.
    pub fn new(layout: Layout, features: Features, buffers: Buffers) -> Self {
        match layout {
            Layout::Split(layout) => Self::Split(split::SlotQueue::new(layout, features, buffers)),
            Layout::Packed(layout) => {
                Self::Packed(packed::SlotQueue::new(layout, features, buffers))
            }
        }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// Slots that are posted and not reaped.
    pub fn outstanding(&self) -> u16 {
        either!(self, queue => queue.outstanding())
    }

    /// Sets the bytes of a slot's buffer, which the device must not hold.
    pub fn set_len(&mut self, slot: u16, len: u32) {
        either!(self, queue => queue.set_len(slot, len))
    }

    /// Posts the next free slot and returns its number: its buffer may be filled until
    /// [`Self::publish`]. None when all are posted.
    #[inline]
    pub fn post(&mut self) -> Option<u16> {
        let mut posted = None;
        self.post_each(1, |slot| {
            posted = Some(slot);
            None
        });
        posted
    }

    /// Posts up to `count` slots, each of which `fill` is told, and may fill; if it says how many bytes
    /// there are, these are the slot's from now on. Returns how many were free.
    #[inline]
    pub fn post_each(&mut self, count: u16, fill: impl FnMut(u16) -> Option<u32>) -> u16 {
        either!(self, queue => queue.post_each(count, fill))
    }

    /// Publishes all slots posted since the last time. Returns whether the device wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, queue => queue.publish())
    }

    /// Takes all slots that were used: the number of each, and the bytes that the device says it
    /// wrote to it. Returns how many. On a violation some may have been taken.
    #[inline]
    pub fn reap(&mut self, each: impl FnMut(u16, u32)) -> Result<u16, Violation> {
        either!(self, queue => queue.reap(each))
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        either!(self, queue => queue.disable_calls())
    }
}
