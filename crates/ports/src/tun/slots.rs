//! Where frames to the bridge lie: slots of a private buffer, each with room for the largest.

use engine::{BURST, Burst, Counters, Lease, Outcome, Outcomes};
use wire::virtio::{Features, NetHeader, Offload};

use crate::frame::MAX_FRAME;

/// Slots of a buffer: all of them go into one burst.
pub(super) const SLOTS: usize = BURST;

/// Bytes of a slot: a header of virtio-net, and the frame.
const SLOT: usize = NetHeader::SIZE + MAX_FRAME;

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A packet of the host's.
    Packet,
    /// A question of ours, or an announcement.
    Question,
    /// An answer of ours.
    Answer,
}

/// A frame in a slot.
pub(super) struct Filled {
    pub(super) slot: usize,
    /// Bytes of header and frame.
    pub(super) len: usize,
    pub(super) content: Content,
    /// Which frame of the current burst it became, if any.
    frame: Option<usize>,
}

impl Filled {
    pub(super) fn new(slot: usize, len: usize, content: Content) -> Self {
        Self { slot, len, content, frame: None }
    }
}

/// The slots.
pub(super) struct Slots {
    /// Out on lease while a burst borrows from it.
    buffer: Box<[u8]>,
    /// Those that hold nothing.
    free: Vec<usize>,
    /// What goes into the next burst, in order.
    ready: Vec<Filled>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            // Untouched until a slot is used, and then as far as it is.
            buffer: vec![0; SLOTS * SLOT].into_boxed_slice(),
            free: (0..SLOTS).rev().collect(),
            ready: Vec::with_capacity(SLOTS),
        }
    }

    /// A slot that holds nothing; to be filled and sent, or freed.
    pub(super) fn take(&mut self) -> Option<usize> {
        self.free.pop()
    }

    /// Takes a slot back.
    pub(super) fn free(&mut self, slot: usize) {
        self.free.push(slot);
    }

    /// The bytes of a slot; none while the buffer is out on lease.
    pub(super) fn bytes(&mut self, slot: usize) -> &mut [u8] {
        self.buffer.get_mut(slot * SLOT..(slot + 1) * SLOT).unwrap_or_default()
    }

    /// Puts a frame with what goes into the next burst.
    pub(super) fn send(&mut self, filled: Filled) {
        self.ready.push(filled);
    }

    /// Frames of this content that go into the next burst.
    pub(super) fn count(&self, content: Content) -> usize {
        self.ready.iter().filter(|filled| filled.content == content).count()
    }

    /// Frees the slot of the oldest frame of this content that was sent already, and held by its receiver. Says
    /// whether there was one.
    pub(super) fn give_up_held(&mut self, content: Content) -> bool {
        let is_it = |filled: &Filled| filled.content == content && filled.frame.is_some();
        let Some(oldest) = self.ready.iter().position(is_it) else { return false };
        self.free.push(self.ready.remove(oldest).slot);
        true
    }

    /// Fills a burst with what is ready.
    pub(super) fn fill<'b>(
        &mut self,
        lease: &'b mut Lease,
        burst: &mut Burst<'b>,
        asks: Features,
        counters: &mut Counters,
    ) {
        if self.ready.is_empty() {
            return;
        }
        let buffer = lease.private(std::mem::take(&mut self.buffer));
        for filled in &mut self.ready {
            let start = filled.slot * SLOT;
            let bytes = buffer.get(start..start + filled.len).unwrap_or_default();
            let first = burst.segments().len();
            burst.segments().push(bytes.into());
            let pushed = burst.push(first..first + 1, NetHeader::SIZE, |header, len| {
                Offload::read(header, len, asks)
            });
            filled.frame = pushed.unwrap_or_else(|fault| {
                counters.drop(fault.into());
                None
            });
        }
    }

    /// Takes back what a burst borrowed. Says whether slots became free.
    pub(super) fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) -> bool {
        let Lease::Private(buffer) = lease else { return false };
        self.buffer = buffer;
        let before = self.ready.len();
        self.ready.retain(|filled| {
            let outcome = filled.frame.map_or(Outcome::Done, |frame| outcomes.get(frame));
            if outcome == Outcome::Done {
                self.free.push(filled.slot);
            }
            outcome == Outcome::Held
        });
        self.ready.len() < before
    }
}
