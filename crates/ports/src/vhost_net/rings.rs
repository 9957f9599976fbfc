//! The rings of an interface: a pair for each queue, in memory of ours, and the kernel's device behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use memory::{FrontEndAddress, GuestAddress, GuestMemory, MapError, RegionRequest, SharedMemory};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use sys::tun::{Offloads, Queue};
use sys::vhost::{self, Device, DeviceMemory, VhostError, VhostNet};
use thiserror::Error;
use virtqueue::{DriverQueue, Layout, LayoutError};
use wire::virtio::Features;

use super::transmit::Transmit;
use super::{receive, transmit};

/// Why there are no rings.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel's device could not be set up.
    #[error(transparent)]
    Device(#[from] VhostError),
    /// There is no memory for rings and buffers.
    #[error("cannot make memory for the rings: {0}")]
    Memory(MapError),
    /// The rings are not in it.
    #[error("cannot place the rings: {0}")]
    Layout(LayoutError),
    /// The kernel refused something else.
    #[error("cannot set up the rings: {0}")]
    Io(io::Error),
}

/// The rings of an interface, which the parts of a port share.
pub struct Rings {
    memory: Arc<GuestMemory>,
    /// By the number of the queue.
    pairs: Vec<Pair>,
    offloads: Offloads,
    /// [`WORKS`], [`LATCHED`], or behind that the number of a ring, when the kernel says that it could not go
    /// on with it and no part has reported that.
    state: AtomicU32,
}

/// Nothing happened yet.
const WORKS: u32 = 0;
/// The port is down: a fault happened.
const LATCHED: u32 = 1;

/// One of the rings: an even number is of one that we receive by, the next one of the same pair's other
/// ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingNumber(u32);

impl RingNumber {
    /// `receive` or `transmit`, and which pair.
    pub(super) fn parts(self) -> (&'static str, usize) {
        (if self.0.is_multiple_of(2) { "receive" } else { "transmit" }, self.0 as usize / 2)
    }
}

/// A pair of rings.
struct Pair {
    /// Until the part that receives by it has taken it.
    receive: Mutex<Option<Ring>>,
    transmit: Mutex<Transmit>,
    /// The eventfds by which the kernel says that it could not go on: receive, transmit.
    errors: [OwnedFd; 2],
    /// The other side of the rings.
    kernel: Option<Kernel>,
}

/// The device that a pair has, and the queue behind it.
struct Kernel {
    /// At work as long as it is here.
    _device: VhostNet,
    queue: Queue,
}

impl Rings {
    /// Starts a device for each of an interface's queues: there have to be as many. Frames have a header of
    /// [`wire::virtio::NetHeader::SIZE`] bytes.
    pub fn start(queues: Vec<Queue>, devices: Vec<Device>) -> Result<Arc<Self>, OpenError> {
        let memory = memory(queues.len())?;
        let offloads = queues.iter().map(Queue::offloads).min().unwrap_or(Offloads::None);
        let pairs = queues.into_iter().zip(devices).enumerate().map(|(number, (queue, device))| {
            let features = device.features();
            let rings = rings(&memory, number, features)?;
            let errors = errors()?;
            let described = describe(number, &rings, &errors);
            let device = device.start(device_memory(&memory, number)?, described, &queue)?;
            Ok(Pair::new(rings, errors, &memory, Some(Kernel { _device: device, queue })))
        });
        let pairs = pairs.collect::<Result<_, OpenError>>()?;
        let rings = Self::of(memory, pairs, offloads);
        rings.listen().map_err(OpenError::Io)?;
        Ok(rings)
    }

    /// So many pairs, and the rings as another side than the kernel's would have them.
    #[cfg(test)]
    pub(super) fn without_kernel(
        features: Features,
        pairs: usize,
    ) -> Result<(Arc<Self>, Vec<[Layout; 2]>), OpenError> {
        let memory = memory(pairs)?;
        let layout = |area: Area| {
            let [descriptors, available, used] = area.ring;
            Layout::new(&memory, features, area.size.into(), descriptors, available, used)
                .map_err(OpenError::Layout)
        };
        let (mut made, mut layouts) = (Vec::new(), Vec::new());
        for number in 0..pairs {
            made.push(Pair::new(rings(&memory, number, features)?, errors()?, &memory, None));
            let [receive, transmit] = Region::of(number).areas.map(layout);
            layouts.push([receive?, transmit?]);
        }
        Ok((Self::of(memory, made, Offloads::ALL), layouts))
    }

    fn of(memory: Arc<GuestMemory>, pairs: Vec<Pair>, offloads: Offloads) -> Arc<Self> {
        Arc::new(Self { memory, pairs, offloads, state: AtomicU32::new(WORKS) })
    }

    /// Has a thread wait for what the kernel could not go on with. Workers never look at descriptors, and what is
    /// only true once in a port's life needs no more than this.
    pub(super) fn listen(self: &Arc<Self>) -> io::Result<()> {
        let errors = self.errors()?;
        let rings = Arc::downgrade(self);
        let listen = move || {
            let mut polled: Vec<_> =
                errors.iter().map(|(_, error)| PollFd::new(error, PollFlags::IN)).collect();
            while let Err(Errno::INTR) = poll(&mut polled, None) {}
            let mut errors = errors.iter().zip(&polled);
            let found = errors.find(|(_, polled)| !polled.revents().is_empty());
            if let Some(((number, _), _)) = found
                && let Some(rings) = rings.upgrade()
            {
                rings.fail(*number);
            }
        };
        thread::Builder::new().name("ring-errors".to_owned()).spawn(listen)?;
        Ok(())
    }

    /// For each ring the descriptor that becomes readable when the kernel could not go on with it, and when the
    /// rings are gone.
    pub(super) fn errors(&self) -> io::Result<Vec<(RingNumber, OwnedFd)>> {
        let errors = (0..).map(RingNumber).zip(self.pairs.iter().flat_map(|pair| &pair.errors));
        errors.map(|(number, error)| Ok((number, error.try_clone()?))).collect()
    }

    /// The kernel could not go on with this ring: that is the port's fault, unless it had one.
    pub(super) fn fail(&self, number: RingNumber) {
        if self.exchange(WORKS, LATCHED + 1 + number.0)
            && let Some(transmit) = self.transmit(0)
        {
            // The part that this wakes has the first pair. Only a full counter is refused, which wakes too.
            let _ = notify(transmit.call());
        }
    }

    /// What [`Self::fail`] was told of, for the first part that asks. The port is down already.
    pub(super) fn take_failed(&self) -> Option<RingNumber> {
        let state = self.state.load(Ordering::Acquire);
        let number = RingNumber(state.checked_sub(LATCHED + 1)?);
        self.exchange(state, LATCHED).then_some(number)
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// How many pairs there are.
    pub(super) fn count(&self) -> usize {
        self.pairs.len()
    }

    /// What the kernel may leave undone.
    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Where all rings and buffers are.
    pub(super) fn memory(&self) -> Arc<GuestMemory> {
        self.memory.clone()
    }

    /// The receive ring of a pair, once.
    pub(super) fn take_receive(&self, pair: usize) -> Option<Ring> {
        self.pairs.get(pair)?.receive.lock().ok()?.take()
    }

    /// The transmit ring of a pair, for as long as nobody has panicked with it.
    pub(super) fn transmit(&self, pair: usize) -> Option<MutexGuard<'_, Transmit>> {
        self.pairs.get(pair)?.transmit.lock().ok()
    }

    /// Whether the interface is still there.
    pub(super) fn is_attached(&self) -> bool {
        let mut kernels = self.pairs.iter().filter_map(|pair| pair.kernel.as_ref());
        kernels.all(|kernel| kernel.queue.is_attached())
    }

    /// Whether nothing is to be received or transmitted any more.
    pub(super) fn is_latched(&self) -> bool {
        self.state.load(Ordering::Acquire) != WORKS
    }

    /// Has it be so. True the first time.
    pub(super) fn latch(&self) -> bool {
        self.exchange(WORKS, LATCHED)
    }
}

/// Whoever waits for errors has nothing to wait for any more.
impl Drop for Rings {
    fn drop(&mut self) {
        for error in self.pairs.iter().flat_map(|pair| &pair.errors) {
            let _ = notify(error);
        }
    }
}

impl Pair {
    fn new(
        [receive, transmit]: [Ring; 2],
        errors: [OwnedFd; 2],
        memory: &Arc<GuestMemory>,
        kernel: Option<Kernel>,
    ) -> Self {
        let transmit = Mutex::new(Transmit::new(transmit, memory.clone()));
        Self { receive: Mutex::new(Some(receive)), transmit, errors, kernel }
    }
}

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
fn memory(pairs: usize) -> Result<Arc<GuestMemory>, OpenError> {
    let region = |number| -> Result<RegionRequest, OpenError> {
        let Region { start, size, .. } = Region::of(number);
        let shared = SharedMemory::create("vhost-net", size).map_err(OpenError::Io)?;
        let file = shared.as_fd().try_clone_to_owned().map_err(OpenError::Io)?;
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
            let _ = notify(&self.kick);
        }
    }

    fn new(memory: &GuestMemory, features: Features, area: Area) -> Result<Self, OpenError> {
        let Area { size, ring: [descriptors, available, used], buffers } = area;
        let layout = Layout::new(memory, features, size.into(), descriptors, available, used)
            .map_err(OpenError::Layout)?;
        let mut queue = DriverQueue::new(layout, features, None);
        queue.disable_calls();
        Ok(Self { queue, buffers, kick: event()?, call: event()? })
    }
}

fn event() -> Result<OwnedFd, OpenError> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    event.map_err(|error| OpenError::Io(error.into()))
}

fn notify(event: &OwnedFd) -> rustix::io::Result<usize> {
    rustix::io::write(event, &1u64.to_ne_bytes())
}

/// For the errors of a pair.
fn errors() -> Result<[OwnedFd; 2], OpenError> {
    Ok([event()?, event()?])
}

/// The rings of pair `number`: to receive by, and to transmit by.
fn rings(memory: &GuestMemory, number: usize, features: Features) -> Result<[Ring; 2], OpenError> {
    let [receive, transmit] = Region::of(number).areas;
    Ok([Ring::new(memory, features, receive)?, Ring::new(memory, features, transmit)?])
}

/// What the kernel has to know of them.
fn describe<'d>(
    number: usize,
    [receive, transmit]: &'d [Ring; 2],
    [of_receive, of_transmit]: &'d [OwnedFd; 2],
) -> [vhost::Ring<'d>; 2] {
    let [to_receive, to_transmit] = Region::of(number).areas;
    let all = [(receive, of_receive, to_receive), (transmit, of_transmit, to_transmit)];
    all.map(|(ring, error, area)| {
        let [descriptors, available, used] = area.ring;
        let (kick, call, error) = (ring.kick.as_fd(), ring.call.as_fd(), error.as_fd());
        vhost::Ring { size: area.size, descriptors, available, used, kick, call, error }
    })
}

/// The memory of pair `number`, for its device.
fn device_memory(memory: &GuestMemory, number: usize) -> Result<DeviceMemory, OpenError> {
    let Region { start, size, .. } = Region::of(number);
    let outside = |fault| OpenError::Layout(LayoutError::Memory { area: "memory", fault });
    Ok(DeviceMemory { start, words: memory.words(start, (size / 8) as usize).map_err(outside)? })
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
