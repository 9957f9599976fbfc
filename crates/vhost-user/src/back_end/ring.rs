//! One ring, from the first thing that is said about it until it runs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{Fault, FrontEndAddress, GuestAddress, GuestMemory};
use thiserror::Error;
use virtqueue::{Area, Layout, LayoutError};
use wire::vhost_user::FrontEndRequest;
use wire::virtio::Features;

use super::{RingSetup, Violation};
use crate::descriptor::{self, Descriptor};

/// Gives every start of a ring its own name, over all sessions.
static STARTS: AtomicU64 = AtomicU64::new(1);

/// Where a ring lies, as the front end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub descriptors: FrontEndAddress,
    pub available: FrontEndAddress,
    pub used: FrontEndAddress,
}

/// What was said about a ring, and how it runs.
#[derive(Default)]
pub(super) struct Ring {
    /// The call descriptor; without one, the driver polls.
    pub call: Option<Arc<OwnedFd>>,
    /// What SET_VRING_ENABLE said last.
    pub enabled: Option<bool>,
    /// Where the ring stands, as SET_VRING_BASE said last.
    base: Option<u32>,
    /// Where the worker left the ring. Newer than the base, if there is one.
    position: Option<u32>,
    /// The ring has stopped, and nobody has said yet where it stands.
    is_left: bool,
    size: Option<u32>,
    addresses: Option<Addresses>,
    /// SET_VRING_KICK came, and nothing since has stopped the ring.
    started: bool,
    /// The kick descriptor; without one, a started ring is polled.
    kick: Option<Arc<OwnedFd>>,
    running: Option<Running>,
}

struct Running {
    layout: Layout,
    base: u32,
    start: u64,
}

/// Why a ring cannot run where the front end placed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingFault {
    /// An area is not in the shared memory.
    #[error("{area}: {fault}; all of the guest's memory must be shared (share=on)")]
    Memory {
        /// Which of the three.
        area: &'static str,
        /// Where it was said to be.
        fault: Fault,
    },
    /// A base that is no place in this ring.
    #[error(
        "its base is {base:#x}, no place in a {format} ring of {size} \
         (vhost-user, \"VHOST_USER_SET_VRING_BASE\")"
    )]
    Base {
        /// As given, or where the ring has stopped.
        base: u32,
        /// Split or packed.
        format: &'static str,
        /// Entries in the ring.
        size: u16,
    },
    /// The areas are there but cannot be a ring.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Ring {
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// SET_VRING_KICK. A ring that runs keeps running, with the new descriptor.
    pub(super) fn start(&mut self, kick: Option<Arc<OwnedFd>>) {
        self.started = true;
        self.kick = kick;
    }

    /// Until the next SET_VRING_KICK.
    pub(super) fn stop(&mut self) {
        self.started = false;
        self.kick = None;
        self.leave();
    }

    /// Runs no more, and the worker will say where it has left the ring.
    fn leave(&mut self) {
        self.is_left |= self.running.take().is_some();
    }

    /// The worker has left the ring at `position`, which counts unless a base was given since.
    pub(super) fn stopped(&mut self, position: u32) {
        if std::mem::take(&mut self.is_left) {
            self.position = Some(position);
        }
    }

    /// Forgets everything but the call descriptor, and where the ring has stopped: QEMU asks for that
    /// after a reset. A ring that starts then is told a base again.
    pub(super) fn reset(&mut self) {
        self.leave();
        let Self { position, is_left, .. } = *self;
        *self = Self { call: self.call.take(), position, is_left, ..Self::default() };
    }

    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, size: u32) {
        if self.is_running() && self.size != Some(size) {
            self.stop();
        }
        self.size = Some(size);
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_addresses(&mut self, addresses: Addresses) {
        if self.is_running() && self.addresses != Some(addresses) {
            self.stop();
        }
        self.addresses = Some(addresses);
    }

    /// SET_VRING_BASE. A running ring has moved on from whatever base it was told, so any base is
    /// another one.
    pub(super) fn set_base(&mut self, base: u32) {
        if self.is_running() {
            self.stop();
        }
        self.base = Some(base);
        self.position = None;
        self.is_left = false;
    }

    /// Where the ring stands, for GET_VRING_BASE.
    pub(super) fn next(&self, features: Features) -> u32 {
        self.position.or(self.base).unwrap_or(Layout::first_position(features))
    }

    /// Runs the ring if everything is known. An error when everything is, but makes no ring.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemory,
        features: Features,
    ) -> Result<(), RingFault> {
        let Some(base) = self.base.filter(|_| self.started && !self.is_running()) else {
            return Ok(());
        };
        let base = self.position.unwrap_or(base);
        let Some(layout) = self.layout(memory, features)? else {
            return Ok(());
        };
        let is_packed = matches!(layout, Layout::Packed(_));
        // What lies between the last chain that was used and that place was never completed.
        let base = layout.resume(base).ok_or(RingFault::Base {
            base,
            format: if is_packed { "packed" } else { "split" },
            size: layout.size(),
        })?;
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        self.running = Some(Running { layout, base, start });
        // Also should the worker never say where it left the ring.
        self.base = Some(base);
        self.position = None;
        self.is_left = false;
        Ok(())
    }

    /// Finds the ring in changed memory. An error when it was running and cannot go on.
    pub(super) fn move_to(
        &mut self,
        memory: &GuestMemory,
        features: Features,
    ) -> Result<(), RingFault> {
        if !self.is_running() {
            return Ok(());
        }
        // Stays started: it runs again should its memory come back.
        let moved = self.layout(memory, features);
        match (moved, &mut self.running) {
            (Ok(Some(layout)), Some(running)) => running.layout = layout,
            (moved, _) => {
                self.leave();
                moved?;
            }
        }
        Ok(())
    }

    /// The ring's place in guest memory, when size and addresses are known.
    fn layout(
        &self,
        memory: &GuestMemory,
        features: Features,
    ) -> Result<Option<Layout>, RingFault> {
        let Some(areas) = self.areas(features) else {
            return Ok(None);
        };
        let mut places = [GuestAddress(0); 3];
        for (place, (area, address)) in places.iter_mut().zip(areas) {
            *place = memory
                .translate(address, area.size)
                .map_err(|fault| RingFault::Memory { area: area.name, fault })?;
        }
        let [descriptors, available, used] = places;
        let size = self.size.unwrap_or(0);
        Ok(Some(Layout::new(memory, features, size, descriptors, available, used)?))
    }

    /// The ring's areas and where they are to be, when size and addresses are known.
    fn areas(&self, features: Features) -> Option<[(Area, FrontEndAddress); 3]> {
        let Addresses { descriptors, available, used } = self.addresses?;
        // Whatever is more is refused by SET_VRING_NUM.
        let size = u16::try_from(self.size?).ok()?;
        let [one, two, three] = Layout::areas(features, size);
        Some([(one, descriptors), (two, available), (three, used)])
    }

    /// What the worker is told, when the ring runs. `automatic`: enabled unless told otherwise.
    pub(super) fn setup(&self, automatic: bool) -> Option<RingSetup> {
        let Running { layout, base, start } = self.running.as_ref()?;
        Some(RingSetup {
            layout: layout.clone(),
            base: *base,
            start: *start,
            enabled: self.enabled.unwrap_or(automatic),
            kick: self.kick.clone(),
            call: self.call.clone(),
        })
    }
}

/// Takes over a kick, call or error descriptor. The worker waits for it and signals it between
/// frames, so it must be an eventfd: of anything else nobody knows how it behaves.
pub(super) fn event_descriptor(
    request: FrontEndRequest,
    ring: u32,
    descriptor: Descriptor,
) -> Result<Arc<OwnedFd>, Violation> {
    if !descriptor::is_eventfd(descriptor.as_fd()) {
        let kind = descriptor::kind(descriptor.as_fd());
        return Err(Violation::NotAnEventDescriptor { request, ring, kind });
    }
    let descriptor = descriptor.into_owned();
    // For data planes that call by plain writes, so that an honest front end's full counter does not block them.
    rustix::io::ioctl_fionbio(&descriptor, true)
        .map_err(|cause| Violation::Descriptor { cause: cause.into() })?;
    Ok(Arc::new(descriptor))
}
