//! Where an embedded guest keeps its rings and buffers.

use memory::GuestAddress;
use virtqueue::Layout;
use wire::virtio::Features;

/// Bytes of a receive buffer: a frame of the usual MTU fits one, larger ones take several.
pub(crate) const RECEIVE_BUFFER: u64 = 2048;
/// Bytes of a transmit buffer: room for a jumbo frame.
pub(crate) const TRANSMIT_BUFFER: u64 = 16 * 1024;

const PAGE: u64 = 4096;

/// The areas of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table, or the packed ring's descriptors.
    pub descriptors: GuestAddress,
    /// The available ring, or the packed ring's driver event structure.
    pub available: GuestAddress,
    /// The used ring, or the packed ring's device event structure.
    pub used: GuestAddress,
}

/// What one ring takes of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Where the ring may be. It starts in the first place, and moves to the other one whenever it
    /// is reset: whoever still looks where it was is found out.
    pub places: [RingAddresses; 2],
    /// One buffer for each entry.
    pub(crate) buffers: GuestAddress,
}

/// The rings of one queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairLayout {
    /// Entries in each ring, at the most: a ring that is reset may have fewer.
    pub ring_size: u16,
    /// The ring that the guest receives on.
    pub receive: RingLayout,
    /// The ring that the guest transmits on.
    pub transmit: RingLayout,
}

/// One region of guest memory: the rings of each queue pair and their buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    /// At least one.
    pub pairs: Vec<PairLayout>,
    /// Bytes in all.
    pub size: u64,
}

impl MemoryLayout {
    /// Lays everything out from guest address `start` on, for at least one queue pair.
    pub fn new(start: GuestAddress, features: Features, ring_size: u16, pairs: u16) -> Self {
        let mut next = start.0;
        let mut area = |size: u64| {
            let at = next.next_multiple_of(PAGE);
            next = at + size;
            GuestAddress(at)
        };
        let mut ring = |buffer: u64| {
            let places = [(); 2].map(|()| {
                let areas = Layout::areas(features, ring_size);
                let [descriptors, available, used] = areas.map(|part| area(part.size));
                RingAddresses { descriptors, available, used }
            });
            RingLayout { places, buffers: area(u64::from(ring_size) * buffer) }
        };
        let mut pair = || {
            let (receive, transmit) = (ring(RECEIVE_BUFFER), ring(TRANSMIT_BUFFER));
            PairLayout { ring_size, receive, transmit }
        };
        let pairs = (0..pairs.max(1)).map(|_| pair()).collect();
        let size = (next - start.0).next_multiple_of(PAGE);
        Self { pairs, size }
    }
}

#[cfg(test)]
mod tests {
    use memory::{FrontEndAddress, GuestMemory, RegionRequest, SharedMemory};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn rings_and_buffers_of_every_size_lie_in_memory_and_beside_each_other() {
        let formats = [Features::NONE, Features::RING_PACKED];
        let sizes = (0..16).map(|power| 1u16 << power);
        for (features, size) in
            sizes.flat_map(|size| formats.map(|format| (format, size))).chain([(formats[1], 3)])
        {
            let start = GuestAddress(0x4000_0000);
            let layout = MemoryLayout::new(start, features, size, 3);
            let shared = SharedMemory::create("layout", layout.size).unwrap();
            let memory = GuestMemory::map([RegionRequest {
                guest: start,
                size: layout.size,
                front_end: FrontEndAddress(0),
                offset: 0,
                file: shared.as_fd().try_clone_to_owned().unwrap(),
            }])
            .unwrap();
            let mut areas = Vec::new();
            let rings = layout.pairs.iter().flat_map(|pair| {
                [(pair.receive, RECEIVE_BUFFER), (pair.transmit, TRANSMIT_BUFFER)]
            });
            for (RingLayout { places, buffers }, buffer) in rings {
                for RingAddresses { descriptors, available, used } in places {
                    let size = size.into();
                    Layout::new(&memory, features, size, descriptors, available, used).unwrap();
                    let parts = Layout::areas(features, size as u16).map(|area| area.size);
                    areas.extend([descriptors.0, available.0, used.0].into_iter().zip(parts));
                }
                areas.push((buffers.0, u64::from(size) * buffer));
            }
            assert_eq!(areas.len(), 3 * 2 * (2 * 3 + 1));
            areas.sort_unstable();
            areas.push((start.0 + layout.size, 0));
            assert!(areas.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{size}");
        }
    }
}
