//! What the data plane gets: a device, complete and immutable.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use memory::GuestMemory;
use virtqueue::Layout;
use wire::virtio::Features;

/// A device as the worker must see it from now on. Replaced whole, never edited.
pub struct Device {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The acknowledged features that the guest sees. Offload bits whose prerequisite is missing
    /// are left out.
    pub features: Features,
    /// By ring number; `None` for a ring that does not run. Ring 2i is where the switch writes
    /// frames for the guest, ring 2i + 1 is where it reads frames from the guest.
    pub rings: Vec<Option<RingSetup>>,
}

/// A ring that runs.
#[derive(Clone)]
pub struct RingSetup {
    /// Where it is.
    pub layout: Layout,
    /// Where it goes on, as [`virtqueue::DeviceQueue::position`] says it.
    pub base: u32,
    /// Names this start of the ring; no two starts in this process have the same. While it stays,
    /// the worker keeps its position in the ring and exchanges only the rest.
    pub start: u64,
    /// Whether frames may pass. If not, nothing is delivered, and what the guest sends is consumed
    /// and discarded.
    pub enabled: bool,
    /// The driver's notifications; `None` means that the ring must be polled. Non-blocking.
    pub kick: Option<Arc<OwnedFd>>,
    /// How to notify the driver; `None` means that the driver polls. Non-blocking.
    pub call: Option<Arc<OwnedFd>>,
}

impl Device {
    /// A device without a front end: no memory, and none of its rings runs.
    pub fn detached(rings: usize) -> Self {
        Self {
            memory: Arc::new(GuestMemory::empty()),
            features: Features::NONE,
            rings: (0..rings).map(|_| None).collect(),
        }
    }

    /// Whether a worker that has one of the two need not be given the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
            && self.features == other.features
            && self.rings.len() == other.rings.len()
            && self.rings.iter().zip(&other.rings).all(|pair| match pair {
                (None, None) => true,
                (Some(one), Some(two)) => one.is_same(two),
                _ => false,
            })
    }
}

impl RingSetup {
    /// Whether a worker that has one of the two need not be given the other. The layout follows from
    /// the start and the memory, and is not compared.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<OwnedFd>>, two: &Option<Arc<OwnedFd>>| match (one, two) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        self.start == other.start
            && self.enabled == other.enabled
            && same(&self.kick, &other.kick)
            && same(&self.call, &other.call)
    }
}
