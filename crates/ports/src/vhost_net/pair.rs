//! One pair of rings, in memory of ours, and the kernel's device behind it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory};
use rustix::event::{EventfdFlags, eventfd};
use sys::tun::Tap;
use sys::vhost::{self, Device, DeviceMemory, VhostNet};
use virtqueue::{DriverQueue, Layout};
use wire::virtio::Features;

use super::{OpenError, receive, transmit};

/// Where the memory begins, in the words of descriptors.
const START: u64 = 0x4000_0000;
const PAGE: u64 = 4096;

/// A ring and its buffers.
#[derive(Clone, Copy)]
struct Area {
    size: u16,
    /// Descriptors, available, used.
    ring: [GuestAddress; 3],
    buffers: GuestAddress,
}

/// Where a pair's rings and buffers are, and the bytes of all of them.
struct Region {
    start: GuestAddress,
    size: u64,
    /// Receive, transmit.
    areas: [Area; 2],
}

impl Region {
    /// That of pair `number`: behind those of the pairs before it.
    fn of(number: usize) -> Self {
        let region = Self::at(START);
        Self::at(START + number as u64 * region.size)
    }

    fn at(start: u64) -> Self {
        let mut next = start;
        let mut place = |size: u64| {
            let at = next;
            next = (at + size).next_multiple_of(PAGE);
            GuestAddress(at)
        };
        let rings = [(receive::RING, receive::BUFFER), (transmit::RING, transmit::BUFFER)];
        let areas = rings.map(|(size, buffer)| Area {
            size,
            ring: Layout::areas(Features::NONE, size).map(|area| place(area.size)),
            buffers: place(u64::from(size) * u64::from(buffer)),
        });
        Self { start: GuestAddress(start), size: next - start, areas }
    }
}

/// Memory for so many pairs, all zeros. What is never touched takes no memory.
pub(super) fn memory(pairs: usize) -> Result<Arc<GuestMemory>, OpenError> {
    let region = |number| -> Result<RegionRequest, OpenError> {
        let Region { start, size, .. } = Region::of(number);
        let shared = SharedMemory::create("vhost-net", size)?;
        let file = shared.as_fd().try_clone_to_owned()?;
        let front_end = FrontEndAddress(start.0);
        Ok(RegionRequest { guest: start, size, front_end, offset: 0, file })
    };
    let regions: Vec<_> = (0..pairs).map(region).collect::<Result<_, _>>()?;
    Ok(Arc::new(GuestMemory::map(regions).map_err(OpenError::Memory)?))
}

/// The driver's side of a ring.
pub(super) struct Ring {
    pub(super) queue: DriverQueue,
    /// One for each entry.
    pub(super) buffers: GuestAddress,
    kick: OwnedFd,
    /// By which the kernel calls us.
    pub(super) call: OwnedFd,
}

impl Ring {
    /// Shows the kernel all that was added, and wakes its thread if that asks for it.
    pub(super) fn publish(&mut self) {
        if self.queue.publish() {
            // Nobody reads the counter, and it takes half an eternity to fill it.
            let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
        }
    }

    fn new(memory: &GuestMemory, features: Features, area: Area) -> Result<Self, OpenError> {
        let Area { size, ring: [descriptors, available, used], buffers } = area;
        let layout = Layout::new(memory, features, size.into(), descriptors, available, used)
            .map_err(OpenError::Layout)?;
        let mut queue = DriverQueue::new(layout, features, None);
        queue.disable_calls();
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let [kick, call] = [event(), event()];
        let io = |error: rustix::io::Errno| OpenError::Io(error.into());
        Ok(Self { queue, buffers, kick: kick.map_err(io)?, call: call.map_err(io)? })
    }
}

/// What is to be kept while the kernel is at work.
pub(super) struct Kept {
    _device: VhostNet,
    _tap: Tap,
}

/// Starts the device on the rings of pair `number`: the one to receive by, and the one to transmit by.
pub(super) fn start(
    number: usize,
    memory: &GuestMemory,
    tap: Tap,
    device: Device,
) -> Result<([Ring; 2], Kept), OpenError> {
    let Region { start, size, areas } = Region::of(number);
    let features = device.features();
    let [receive, transmit] = areas;
    let rings = [Ring::new(memory, features, receive)?, Ring::new(memory, features, transmit)?];
    let words = memory.words(start, (size / 8) as usize);
    let outside = |fault| OpenError::Layout(virtqueue::LayoutError::Memory { area: "all", fault });
    let device_memory = DeviceMemory { start, words: words.map_err(outside)? };
    let described = [(&rings[0], receive), (&rings[1], transmit)].map(|(ring, area)| {
        let [descriptors, available, used] = area.ring;
        let (kick, call) = (ring.kick.as_fd(), ring.call.as_fd());
        vhost::Ring { size: area.size, descriptors, available, used, kick, call }
    });
    let device = device.start(device_memory, described, &tap)?;
    Ok((rings, Kept { _device: device, _tap: tap }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_and_buffers_lie_beside_each_other() {
        let mut areas = Vec::new();
        for number in 0..3 {
            let region = Region::of(number);
            let buffer = [receive::BUFFER, transmit::BUFFER];
            for (Area { size, ring, buffers }, buffer) in region.areas.into_iter().zip(buffer) {
                let sizes = Layout::areas(Features::NONE, size).map(|area| area.size);
                areas.extend(ring.map(|at| at.0).into_iter().zip(sizes));
                areas.push((buffers.0, u64::from(size) * u64::from(buffer)));
            }
            areas.push((region.start.0 + region.size, 0));
        }
        areas.sort_unstable();
        assert!(areas.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{areas:x?}");
        let memory = memory(3).unwrap();
        assert_eq!(memory.region_count(), 3);
        for area in (0..3).flat_map(|number| Region::of(number).areas) {
            Ring::new(&memory, Features::VERSION_1, area).unwrap();
        }
    }
}
