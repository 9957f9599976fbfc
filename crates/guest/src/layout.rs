//! Where an embedded guest keeps its rings and buffers.

use memory::GuestAddress;
use wire::split::{available_ring_size, descriptor_table_size, used_ring_size};

/// Bytes of a receive buffer: a frame of the usual MTU fits one, larger ones take several.
pub(crate) const RECEIVE_BUFFER: u64 = 2048;
/// Bytes of a transmit buffer: room for a jumbo frame.
pub(crate) const TRANSMIT_BUFFER: u64 = 16 * 1024;

const PAGE: u64 = 4096;

/// The areas of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring.
    pub available: GuestAddress,
    /// The used ring.
    pub used: GuestAddress,
}

/// One region of guest memory: the rings of one queue pair, then their buffers, one for each
/// descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    /// Entries in each ring.
    pub ring_size: u16,
    /// The ring that the guest receives on.
    pub receive: RingAddresses,
    /// The ring that the guest transmits on.
    pub transmit: RingAddresses,
    pub(crate) receive_buffers: GuestAddress,
    pub(crate) transmit_buffers: GuestAddress,
    /// Bytes in all.
    pub size: u64,
}

impl MemoryLayout {
    /// Lays everything out from guest address `start` on.
    pub fn new(start: GuestAddress, ring_size: u16) -> Self {
        let mut next = start.0;
        let mut area = |size: u64| {
            let at = next.next_multiple_of(PAGE);
            next = at + size;
            GuestAddress(at)
        };
        let mut ring = || RingAddresses {
            descriptors: area(descriptor_table_size(ring_size)),
            available: area(available_ring_size(ring_size)),
            used: area(used_ring_size(ring_size)),
        };
        let (receive, transmit) = (ring(), ring());
        let receive_buffers = area(u64::from(ring_size) * RECEIVE_BUFFER);
        let transmit_buffers = area(u64::from(ring_size) * TRANSMIT_BUFFER);
        let size = (next - start.0).next_multiple_of(PAGE);
        Self { ring_size, receive, transmit, receive_buffers, transmit_buffers, size }
    }
}

#[cfg(test)]
mod tests {
    use memory::{FrontEndAddress, GuestMemory, RegionRequest, SharedMemory};
    use std::os::fd::AsFd;
    use virtqueue::split::Layout;

    use super::*;

    #[test]
    fn rings_and_buffers_of_every_size_lie_in_memory_and_beside_each_other() {
        for size in (0..16).map(|power| 1u16 << power) {
            let start = GuestAddress(0x4000_0000);
            let layout = MemoryLayout::new(start, size);
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
            for RingAddresses { descriptors, available, used } in [layout.receive, layout.transmit]
            {
                Layout::new(&memory, size.into(), descriptors, available, used).unwrap();
                areas.push((descriptors.0, descriptor_table_size(size)));
                areas.push((available.0, available_ring_size(size)));
                areas.push((used.0, used_ring_size(size)));
            }
            areas.push((layout.receive_buffers.0, u64::from(size) * RECEIVE_BUFFER));
            areas.push((layout.transmit_buffers.0, u64::from(size) * TRANSMIT_BUFFER));
            areas.sort_unstable();
            areas.push((start.0 + layout.size, 0));
            assert!(areas.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{size}");
        }
    }
}
