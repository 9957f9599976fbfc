//! A started ring, and how it is exchanged for another.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vhost_user::{Device, RingSetup};
use virtqueue::DeviceQueue;
use wire::virtio::{Features, NetHeader, Offload};

use super::{GuestFault, MAX_PAIRS};

/// A started ring.
pub(super) struct Ring {
    pub(super) queue: DeviceQueue,
    pub(super) setup: RingSetup,
    /// The driver was not notified of what was exposed.
    is_exposed: bool,
}

impl Ring {
    /// Goes on from `previous`, if there is one: the same ring.
    fn new(setup: &RingSetup, features: Features, previous: Option<Self>) -> Self {
        let queue = match previous {
            Some(mut ring) => {
                ring.queue.relocate(setup.layout.clone());
                ring.queue
            }
            None => DeviceQueue::new(setup.layout.clone(), features, setup.base),
        };
        Self { queue, setup: setup.clone(), is_exposed: false }
    }

    /// Makes visible what was given back, and calls the driver if it wants to know.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.expose();
        fence(Ordering::SeqCst);
        self.notify();
    }

    /// Makes visible what was given back. Then, behind a fence, see [`Self::notify`].
    #[inline]
    pub(super) fn expose(&mut self) {
        self.is_exposed |= self.queue.expose();
    }

    /// Calls the driver if it wants to know what was exposed.
    #[inline]
    pub(super) fn notify(&mut self) {
        if std::mem::take(&mut self.is_exposed) && self.queue.wants_call() {
            self.call();
        }
    }

    /// Wakes the workers that wait for buffers, as the driver would: kicks are off in a ring that
    /// was exchanged, and a worker that was done with its part of that may sleep again already.
    pub(super) fn kick(&self) {
        if let Some(descriptor) = &self.setup.kick {
            let _ = sys::notify::signal(descriptor.as_fd());
        }
    }

    /// Not inline, so that who is to call nobody does not pay for it: it takes as long as a system call.
    #[inline(never)]
    fn call(&self) {
        if let Some(descriptor) = &self.setup.call {
            // Whatever goes wrong with the descriptor is the guest's loss.
            let _ = sys::notify::signal(descriptor.as_fd());
        }
    }
}

/// How a guest's frames look.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) features: Features,
    /// Bytes of the virtio-net header.
    pub(super) header_size: usize,
    /// Bytes of the largest frame, or segment of a frame.
    pub(super) frame_limit: usize,
}

impl Shape {
    pub(super) fn new(features: Features, frame_limit: usize) -> Self {
        Self { features, header_size: NetHeader::size(features), frame_limit }
    }

    /// Whether a frame of `len` bytes goes as it is, with this left to do to it.
    #[inline(always)]
    pub(super) fn takes(&self, offload: &Offload, len: usize) -> bool {
        if offload.is_none() {
            len <= self.frame_limit
        } else {
            self.features.contains(offload.needs()) && offload.wire_len(len) <= self.frame_limit
        }
    }
}

/// What a swap gives back to control.
#[derive(Default)]
pub struct Swapped {
    /// Where each ring stands that was stopped by this swap, by its number.
    pub positions: Vec<(usize, u32)>,
    /// What a guest that is gone now did wrong, if nobody was told yet.
    pub fault: Option<GuestFault>,
    /// Parts of the device that was: its memory is to be unmapped and its descriptors are to be
    /// closed by control, and not by the worker.
    retired: Vec<Box<dyn Send>>,
}

impl Swapped {
    /// Keeps what is used no more, and closes or unmaps something when it is dropped.
    pub(super) fn retire(&mut self, what: impl Send + 'static) {
        self.retired.push(Box::new(what));
    }

    /// The ring of this number as `device` has it, going on from `previous` if it is the same one.
    /// A new ring's driver is called: it may have been told of nothing by whoever served the ring
    /// before.
    ///
    /// Nothing of `previous` is outstanding. It is left alone when the guest broke a rule.
    pub(super) fn exchange(
        &mut self,
        number: usize,
        mut previous: Option<Ring>,
        device: Option<&Device>,
        is_latched: bool,
    ) -> Option<Ring> {
        let next = device.and_then(|device| Some((device, setup(device, number)?)));
        let mut was_called = false;
        if let Some(ring) = &mut previous {
            if !is_latched {
                ring.publish();
            }
            let goes_on = next.is_some_and(|(_, next)| next.start == ring.setup.start);
            // What an exchanged descriptor was called for may have been lost.
            was_called =
                goes_on && next.is_some_and(|(_, next)| same(&next.call, &ring.setup.call));
            if !goes_on {
                self.positions.push((number, ring.queue.position()));
                self.retire(previous.take());
            }
        }
        let (device, setup) = next?;
        let ring = Ring::new(setup, device.features, previous);
        if !was_called && !is_latched {
            ring.call();
        }
        Some(ring)
    }
}

/// How many ring numbers `device` uses, of those that there can be.
pub(super) fn numbers(device: Option<&Device>) -> usize {
    let last = device.and_then(|device| device.rings.iter().rposition(Option::is_some));
    last.map_or(0, |last| last + 1).min(2 * MAX_PAIRS)
}

/// What `device` says of the ring of this number, if that runs.
pub(super) fn setup(device: &Device, number: usize) -> Option<&RingSetup> {
    device.rings.get(number)?.as_ref()
}

/// Whether a ring, in the same memory, is what it was.
pub(super) fn unchanged(ring: Option<&Ring>, next: Option<&RingSetup>) -> bool {
    match (ring, next) {
        (None, None) => true,
        (Some(ring), Some(next)) => ring.setup.is_same(next),
        _ => false,
    }
}

fn same(one: &Option<Arc<OwnedFd>>, other: &Option<Arc<OwnedFd>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}
