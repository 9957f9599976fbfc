//! One ring, from the first thing that is said about it until it runs.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{Fault, FrontEndAddress, GuestMemory};
use rustix::fs::{FileType, fstat};
use thiserror::Error;
use virtqueue::split::{Layout, LayoutError};
use wire::split::{available_ring_size, descriptor_table_size, used_ring_size};
use wire::vhost_user::FrontEndRequest;

use super::{RingSetup, Violation};

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
    /// Where the worker left the ring.
    pub position: Option<u16>,
    /// The available entry to process first, as SET_VRING_BASE said.
    base: Option<u16>,
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
    base: u16,
    start: u64,
}

/// One of a ring's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// Why a ring cannot run where the front end placed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingFault {
    /// An area is not in the shared memory.
    #[error("{area}: {fault}; all of the guest's memory must be shared (share=on)")]
    Memory {
        /// Which.
        area: Area,
        /// Where it was said to be.
        fault: Fault,
    },
    /// The driver says that the ring is ready, and nobody has written to its memory.
    #[error(
        "nobody has written to its memory, so the guest must be using other memory than it shares: \
         add share=on to the memory backend (QEMU: -object memory-backend-file,share=on)"
    )]
    Untouched,
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
        self.running = None;
    }

    /// Forgets everything but the call descriptor.
    pub(super) fn reset(&mut self) {
        *self = Self { call: self.call.take(), ..Self::default() };
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
    pub(super) fn set_base(&mut self, base: u16) {
        if self.is_running() {
            self.stop();
        }
        self.base = Some(base);
        self.position = None;
    }

    /// The available entry to process next, for GET_VRING_BASE.
    pub(super) fn next(&self) -> u16 {
        self.position.or(self.base).unwrap_or(0)
    }

    /// Runs the ring if everything is known. An error when everything is, but makes no ring.
    pub(super) fn run(&mut self, memory: &GuestMemory) -> Result<(), RingFault> {
        if self.is_running() || !self.started || self.base.is_none() {
            return Ok(());
        }
        let Some(layout) = self.layout(memory)? else {
            return Ok(());
        };
        if self.is_untouched(memory) {
            return Err(RingFault::Untouched);
        }
        // What lies between the used index and an offered base was never completed.
        let base = layout.used_index();
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        self.running = Some(Running { layout, base, start });
        self.position = None;
        Ok(())
    }

    /// Finds the ring in changed memory. An error when it was running and cannot go on.
    pub(super) fn move_to(&mut self, memory: &GuestMemory) -> Result<(), RingFault> {
        if !self.is_running() {
            return Ok(());
        }
        // Stays started: it runs again should its memory come back.
        let moved = self.layout(memory);
        match (moved, &mut self.running) {
            (Ok(Some(layout)), Some(running)) => running.layout = layout,
            (moved, _) => {
                self.running = None;
                moved?;
            }
        }
        Ok(())
    }

    /// The ring's place in guest memory, when size and addresses are known.
    fn layout(&self, memory: &GuestMemory) -> Result<Option<Layout>, RingFault> {
        let (Some(size), Some(addresses)) = (self.size, self.addresses) else {
            return Ok(None);
        };
        let entries = u16::try_from(size).map_err(|_| LayoutError::Size(size))?;
        let place = |area, address, bytes| {
            let translated = memory.translate(address, bytes);
            translated.map_err(|fault| RingFault::Memory { area, fault })
        };
        let descriptors =
            place(Area::Descriptors, addresses.descriptors, descriptor_table_size(entries))?;
        let available = place(Area::Available, addresses.available, available_ring_size(entries))?;
        let used = place(Area::Used, addresses.used, used_ring_size(entries))?;
        Ok(Some(Layout::new(memory, size, descriptors, available, used)?))
    }

    /// Whether nobody has written to any of the ring's pages. To be asked before we touch them.
    fn is_untouched(&self, memory: &GuestMemory) -> bool {
        let (Some(size), Some(addresses)) = (self.size, self.addresses) else { return false };
        let entries = u16::try_from(size).unwrap_or(0);
        [
            (addresses.descriptors, descriptor_table_size(entries)),
            (addresses.available, available_ring_size(entries)),
            (addresses.used, used_ring_size(entries)),
        ]
        .into_iter()
        .all(|(address, len)| {
            memory.translate(address, len).is_ok_and(|address| memory.is_untouched(address, len))
        })
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

/// Takes over a kick, call or error descriptor. The worker reads and writes it between frames, so
/// it must be of a kind that never blocks: a file on a slow disk, or on a disk that the peer
/// serves, would stop every port.
pub(super) fn event_descriptor(
    request: FrontEndRequest,
    ring: u32,
    descriptor: OwnedFd,
) -> Result<Arc<OwnedFd>, Violation> {
    let failed = |source: rustix::io::Errno| Violation::Descriptor { source: source.into() };
    // Eventfds, like the kernel's other anonymous objects, are of no file type.
    let kind = FileType::from_raw_mode(fstat(&descriptor).map_err(failed)?.st_mode);
    if !matches!(kind, FileType::Unknown) {
        return Err(Violation::NotAnEventDescriptor { request, ring, kind });
    }
    rustix::io::ioctl_fionbio(&descriptor, true).map_err(failed)?;
    Ok(Arc::new(descriptor))
}
