//! What a port can say of its guest while it runs.

use wire::virtio::Features;

use super::ring::Ring;
use super::{VhostUserPort, receive_ring, transmit_ring};

/// What a part of a port knows of its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLook {
    /// What its driver accepted.
    pub features: Features,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// In how many regions.
    pub memory_regions: usize,
    /// The rings of this part's pairs that run, in ascending order of pairs.
    pub rings: Vec<RingLook>,
}

/// What is to be said of one of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLook {
    /// Its number.
    pub number: usize,
    /// How many entries it has.
    pub size: u16,
    /// Whether frames may pass.
    pub enabled: bool,
    /// Entries that the driver has made available and that were not taken.
    pub waiting: u16,
    /// Entries that were taken and not given back.
    pub outstanding: u16,
}

impl RingLook {
    fn new(number: usize, ring: &Ring) -> Self {
        let queue = &ring.queue;
        Self {
            number,
            size: queue.size(),
            enabled: ring.setup.enabled,
            waiting: queue.waiting(),
            outstanding: queue.outstanding(),
        }
    }
}

impl VhostUserPort {
    /// What this part knows of the guest; none when there is none, or it broke the rules. A guest can only make
    /// its own numbers wrong.
    pub fn look(&mut self) -> Option<GuestLook> {
        let active = self.active.as_ref().filter(|_| !self.shared.is_latched())?;
        let mut rings = Vec::new();
        for pair in self.share.pairs().take_while(|pair| *pair < self.pairs) {
            if let Some(mut place) = self.receivers.access_anyway(pair)
                && let Some(receiver) = place.ring()
            {
                rings.push(RingLook::new(receive_ring(pair), &receiver.ring));
            }
            if let Some(ring) = self.transmit.ring(pair) {
                rings.push(RingLook::new(transmit_ring(pair), ring));
            }
        }
        let memory = &active.lent.memory;
        Some(GuestLook {
            features: active.features,
            memory_bytes: memory.size(),
            memory_regions: memory.region_count(),
            rings,
        })
    }
}
