//! A transmit ring: frames to the host.
//!
//! Each entry has a slot, which holds any frame and its header. Slots that the kernel is through with are
//! taken back when there is something to send; the one that was used last is used first, so that a quiet
//! port touches few of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use engine::{Counters, DropReason, Frame};
use memory::{GuestAddress, GuestMemory, WriteCursor};
use virtqueue::{Buffer, Form, Violation};
use wire::virtio::{Features, NetHeader};

use super::rings::Ring;
use crate::frame::{MAX_FRAME, is_over};
use crate::offload::Delivery;
use crate::tap::is_within_limits;

/// Slots in a ring: four bursts.
pub(super) const RING: u16 = 256;

/// Bytes of a slot: an odd number of cache lines, as of a receive buffer.
pub(super) const BUFFER: u32 = (NetHeader::SIZE + MAX_FRAME).next_multiple_of(64) as u32;
const _: () = assert!(BUFFER % 128 == 64);

/// What frames to the kernel may be like.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// What the kernel takes as it is.
    pub(super) takes: Features,
    /// The interface's MTU, in bytes.
    pub(super) mtu: usize,
}

/// The transmit ring of a pair.
pub(super) struct Transmit {
    memory: Arc<GuestMemory>,
    ring: Ring,
    /// The slots that the kernel does not hold; the next one is the last.
    free: Vec<u16>,
    /// How often slots were taken back; wraps.
    reaps: u32,
    /// A bit for each part that waits to be called.
    awaited: u64,
}

impl Transmit {
    pub(super) fn new(ring: Ring, memory: Arc<GuestMemory>) -> Self {
        let free = (0..RING).rev().collect();
        Self { memory, ring, free, reaps: 0, awaited: 0 }
    }

    /// Takes back the slots of frames that the kernel has sent.
    pub(super) fn reap(&mut self) -> Result<(), Violation> {
        let before = self.free.len();
        while let Some(used) = self.ring.queue.reap()? {
            // A token is the number of a slot.
            self.free.push(used.token as u16);
        }
        if self.free.len() > before {
            self.reaps = self.reaps.wrapping_add(1);
        }
        Ok(())
    }

    /// How often slots were taken back.
    pub(super) fn reaps(&self) -> u32 {
        self.reaps
    }

    /// Puts a frame into the ring, in whatever form the kernel takes it: all of it, or nothing. False when
    /// there is no room for the moment.
    pub(super) fn send(
        &mut self,
        frame: &Frame<'_>,
        limits: Limits,
        counters: &mut Counters,
    ) -> Result<bool, DropReason> {
        let within = is_within_limits(&frame.offload, frame.len);
        let takes = if within { limits.takes } else { Features::NONE };
        let mut delivery = Delivery::new(*frame, takes)?;
        if is_over(limits.mtu, delivery.wire_len(), frame.head) {
            return Err(DropReason::OverMtu);
        }
        let count = delivery.remaining();
        if count > usize::from(RING) {
            return Err(DropReason::TooManySegments);
        }
        if count > self.free.len() {
            return Ok(false);
        }
        let mut translator = self.memory.translator();
        while let Some(outgoing) = delivery.next() {
            let Some(slot) = self.free.pop() else { break };
            let address = GuestAddress(self.ring.buffers.0 + u64::from(slot) * u64::from(BUFFER));
            let len = outgoing.len;
            let bytes = (NetHeader::SIZE + len) as u32;
            // No frame is longer than a slot is.
            let room = translator.write_whole(address, bytes.min(BUFFER));
            let mut cursor = WriteCursor::new(room.as_slice());
            cursor.write(outgoing.offload.header(0).to_bytes()[..].into());
            outgoing.write(cursor);
            let chain = [Buffer { address, len: bytes.min(BUFFER), writable: false }];
            // There are as many slots as descriptors, and this one was free.
            let added = self.ring.queue.add(&chain, Form::Direct, slot.into());
            debug_assert!(added.is_ok());
            counters.sent.count(len);
        }
        Ok(true)
    }

    /// Shows the kernel what was sent.
    pub(super) fn publish(&mut self) {
        self.ring.publish();
    }

    /// Asks for a call, for a part that holds frames since slots had been taken back `reaps` times. True
    /// when there is room already, or may be.
    pub(super) fn arm(&mut self, part: usize, reaps: u32) -> bool {
        self.awaited |= 1 << part;
        self.ring.queue.enable_calls() || self.reaps != reaps
    }

    /// This part need not be called. Others may.
    pub(super) fn disarm(&mut self, part: usize) {
        self.awaited &= !(1 << part);
        if self.awaited == 0 {
            self.ring.queue.disable_calls();
        }
    }

    /// The eventfd by which the kernel calls.
    pub(super) fn call(&self) -> &OwnedFd {
        &self.ring.call
    }
}
