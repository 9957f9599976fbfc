//! The whole guest: memory, front end, driver.
//!
//! # How it works
//!
//! A guest outlives its back end. It keeps its memory, its rings and what was agreed on, so that the
//! next back end can go on where the last one has stopped ([`Guest::resume`]): the virtual machine
//! monitor's art, with which a switch can be replaced under running machines. It needs nothing of the
//! one that died but what is in the rings.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use memory::{
    Fault, FrontEndAddress, GuestAddress, GuestMemory, MapError, RegionRequest, SharedMemory,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use vhost_user::{DirtyLog, FrontEnd, FrontEndError, Negotiated, Region, RingConfig};
use virtqueue::Layout;
use wire::vhost_user::{MAX_RINGS, ProtocolFeatures};
use wire::virtio::Features;

use crate::driver::{DriverError, NetDriver};
use crate::layout::{MemoryLayout, RingAddresses};

/// Where the guest's memory begins, for the guest and for the front end: two numbers, so that
/// nobody can mix them up and get away with it.
const GUEST_START: GuestAddress = GuestAddress(0x4000_0000);
const FRONT_END_START: FrontEndAddress = FrontEndAddress(0x7f00_0000_0000);

/// What a guest agrees on if it is offered.
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::REPLY_ACK
    .union(ProtocolFeatures::MQ)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::RARP)
    .union(ProtocolFeatures::NET_MTU)
    .union(ProtocolFeatures::LOG_SHMFD);

/// The driver knows how to drive the device: ACKNOWLEDGE and DRIVER (virtio 1.3, 2.1).
const STATUS_DRIVER: u8 = 1 | 2;
/// Both know the features: FEATURES_OK.
const STATUS_FEATURES_OK: u8 = 8;
/// The driver is ready: DRIVER_OK.
const STATUS_DRIVER_OK: u8 = 4;

/// Why a guest could not go on.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The vhost-user side failed.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// The virtio side failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The back end serves fewer queue pairs.
    #[error("the back end serves {offered} queue pairs (GET_QUEUE_NUM), and {wanted} are wanted")]
    QueuePairs {
        /// What it says.
        offered: u64,
        /// [`Options::queue_pairs`].
        wanted: u16,
    },
    /// The back end offers the features and cannot do with them.
    #[error("the back end refused the features {features}: its status is {status:#x} (GET_STATUS)")]
    FeaturesRefused {
        /// What was agreed on.
        features: Features,
        /// The device status, without FEATURES_OK.
        status: u8,
    },
    /// A queue pair or a ring that the guest does not have.
    #[error("the guest has {pairs} queue pairs: there is no {what} {number}")]
    NoSuch {
        /// A queue pair or a ring.
        what: &'static str,
        /// Its number.
        number: u16,
        /// Queue pairs that there are.
        pairs: usize,
    },
    /// A ring that is to be restarted and was not stopped: the back end may be writing to its buffers.
    #[error("ring {ring} runs: it has to be stopped before it is restarted")]
    Running {
        /// Its number.
        ring: u16,
    },
    /// The guest's own memory could not be made.
    #[error("cannot make the guest's memory: {0}")]
    Memory(MapError),
    /// A ring is not in memory.
    #[error("cannot place the guest's rings: {0}")]
    Ring(Fault),
    /// The kernel refused.
    #[error("cannot set the guest up: {0}")]
    Io(io::Error),
}

impl From<MapError> for GuestError {
    fn from(error: MapError) -> Self {
        Self::Memory(error)
    }
}

impl From<Fault> for GuestError {
    fn from(fault: Fault) -> Self {
        Self::Ring(fault)
    }
}

impl From<io::Error> for GuestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a guest wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// Virtio features to negotiate, as far as they are offered.
    pub features: Features,
    /// Entries in each ring.
    pub ring_size: u16,
    /// Queue pairs, from 1 to 128.
    pub queue_pairs: u16,
    /// How long the back end may take for an answer.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX;
        Self { features, ring_size: 256, queue_pairs: 1, limit: Duration::from_secs(5) }
    }
}

/// A guest with one network device, connected to a back end.
///
/// Queue pair `n` receives on ring `2n` and transmits on ring `2n + 1`.
pub struct Guest {
    /// Of each queue pair.
    drivers: Vec<NetDriver>,
    /// Whether the back end was told to let frames pass, for each queue pair.
    enabled: Vec<bool>,
    /// By the number of the ring.
    events: Vec<RingEvents>,
    /// By the number of the ring: false from [`Guest::stop_ring`] to [`Guest::restart_ring`].
    running: Vec<bool>,
    agreed: Negotiated,
    /// While the back end logs what it writes.
    log: Option<DirtyLog>,
    shared: SharedMemory,
    front_end: FrontEnd,
}

/// How a ring's two sides wake each other.
struct RingEvents {
    kick: OwnedFd,
    call: OwnedFd,
}

impl RingEvents {
    fn new() -> io::Result<Self> {
        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self { kick: descriptor()?, call: descriptor()? })
    }

    fn kick(&self) {
        // The only error is a full counter, and then the device was kicked.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}

impl Guest {
    /// Connects to the back end that listens at `path`, and brings the device up, with every queue
    /// pair enabled.
    pub fn connect(path: &Path, options: &Options) -> Result<Self, GuestError> {
        Self::start(FrontEnd::connect(path, options.limit)?, options)
    }

    /// Brings a device up on this connection, with every queue pair enabled.
    pub fn start(front_end: FrontEnd, options: &Options) -> Result<Self, GuestError> {
        Self::start_in(front_end, options, |size| SharedMemory::create("guest", size))
    }

    /// The same with memory of another kind, such as hugepages: `create` is given the bytes that are
    /// needed, and makes a file of zeros of at least that size.
    pub fn start_in(
        mut front_end: FrontEnd,
        options: &Options,
        create: impl FnOnce(u64) -> io::Result<SharedMemory>,
    ) -> Result<Self, GuestError> {
        let wanted = options.queue_pairs.max(1);
        // The control queue, by which a driver says how many pairs it uses, is the virtual machine
        // monitor's own affair: all that a back end sees of it is which rings are enabled.
        let several = if wanted > 1 { Features::MQ } else { Features::NONE };
        let required = Features::VERSION_1 | several;
        let features = options.features.without(Features::MQ);
        let agreed = front_end.negotiate(required, features, PROTOCOL)?;

        let layout = MemoryLayout::new(GUEST_START, agreed.features, options.ring_size, wanted);
        let shared = create(layout.size)?;
        let memory = Arc::new(GuestMemory::map([RegionRequest {
            guest: GUEST_START,
            size: shared.size(),
            front_end: FRONT_END_START,
            offset: 0,
            file: shared.as_fd().try_clone_to_owned()?,
        }])?);
        let drivers = layout.pairs.iter();
        let drivers = drivers.map(|pair| NetDriver::new(memory.clone(), *pair, agreed.features));
        let events = (0..2 * wanted).map(|_| RingEvents::new());
        let mut guest = Self {
            drivers: drivers.collect::<Result<_, _>>()?,
            enabled: vec![true; wanted.into()],
            events: events.collect::<Result<_, _>>()?,
            running: vec![true; 2 * usize::from(wanted)],
            agreed,
            log: None,
            shared,
            front_end,
        };
        let base = Layout::first_position(agreed.features);
        guest.bring_up(&vec![base; guest.events.len()])?;
        Ok(guest)
    }

    /// Goes on with another back end after the last one has died: with the same features, memory and
    /// rings, each from behind the last chain that was used. Frames that were on their way out and not
    /// used are sent by the new one; those that came and were not received yet are still there. To be
    /// tried again, with another connection, if it fails.
    pub fn resume(&mut self, mut front_end: FrontEnd) -> Result<(), GuestError> {
        front_end.negotiate_again(self.agreed)?;
        // From here on the old connection is of no use, whatever happens.
        self.front_end = front_end;
        let mut positions = Vec::with_capacity(self.events.len());
        for driver in &mut self.drivers {
            positions.extend(driver.recover()?);
        }
        self.bring_up(&positions)
    }

    /// Resets the device, as a guest does that is started anew: rings are stopped, whatever was in them
    /// is gone, and the device comes up again with all that was agreed on and every queue pair enabled.
    ///
    /// If it fails, [`Self::resume`] brings the device up with another back end, with all rings but those
    /// that [`Self::stop_ring`] had stopped.
    pub fn reset(&mut self) -> Result<(), GuestError> {
        for ring in 0..self.events.len() as u16 {
            if self.running[usize::from(ring)] {
                // It is still to run, should there be another back end before we are done.
                self.front_end.stop_ring(self.number(ring)?)?;
            }
        }
        if self.has(ProtocolFeatures::RESET_DEVICE) {
            self.front_end.reset_device()?;
        }
        if self.has(ProtocolFeatures::STATUS) {
            self.front_end.set_status(0)?;
        }
        self.front_end.set_features(self.features())?;
        for driver in &mut self.drivers {
            driver.reset_receive(driver.receive_ring().1)?;
            driver.reset_transmit(driver.transmit_ring().1)?;
        }
        self.running.fill(true);
        self.enabled.fill(true);
        let base = Layout::first_position(self.agreed.features);
        // Memory is not the device's, and outlives it (vhost-user, RESET_DEVICE).
        self.start_rings(&vec![base; self.events.len()])
    }

    /// Shares memory and starts the rings, each at its position, once features are agreed on.
    fn bring_up(&mut self, positions: &[u32]) -> Result<(), GuestError> {
        let offered = self.front_end.queue_pairs()?.min(MAX_RINGS as u64 / 2);
        if offered < self.drivers.len() as u64 {
            let wanted = self.drivers.len() as u16;
            return Err(GuestError::QueuePairs { offered, wanted });
        }
        let region = Region {
            guest: GUEST_START,
            size: self.shared.size(),
            front_end: FRONT_END_START,
            offset: 0,
            file: self.shared.as_fd(),
        };
        if self.has(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.front_end.add_memory_region(region)?;
        } else {
            self.front_end.set_memory_table(&[region])?;
        }
        if let Some(log) = &self.log {
            self.front_end.set_log(log)?;
            self.front_end.set_features(self.features())?;
        }
        self.start_rings(positions)
    }

    fn start_rings(&mut self, positions: &[u32]) -> Result<(), GuestError> {
        if self.has(ProtocolFeatures::STATUS) {
            self.front_end.set_status(STATUS_DRIVER | STATUS_FEATURES_OK)?;
            let status = self.front_end.status()?;
            if status & STATUS_FEATURES_OK == 0 {
                let features = self.agreed.features;
                return Err(GuestError::FeaturesRefused { features, status });
            }
        }
        let rings = || (0..self.running.len()).filter(|ring| self.running[*ring]);
        let rings: Vec<usize> = rings().collect();
        // First of all, as QEMU restores a guest: what is in a transmit ring that starts before it is
        // enabled, is to be discarded.
        for ring in &rings {
            self.enable_ring(*ring as u16)?;
        }
        for ring in &rings {
            self.set_up_ring(*ring as u16, positions[*ring])?;
        }
        if self.has(ProtocolFeatures::STATUS) {
            let status = STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
            self.front_end.set_status(status)?;
        }
        // Not every back end looks into a ring that starts, and the driver may have kicked the last one.
        rings.iter().for_each(|ring| self.events[*ring].kick());
        Ok(())
    }

    fn has(&self, protocol: ProtocolFeatures) -> bool {
        self.agreed.protocol.contains(protocol)
    }

    /// The driver of the first queue pair, the only one unless [`Options::queue_pairs`] says
    /// otherwise: frames in and out.
    pub fn driver(&mut self) -> &mut NetDriver {
        &mut self.drivers[0]
    }

    /// The drivers of all queue pairs, in order.
    pub fn drivers(&mut self) -> &mut [NetDriver] {
        &mut self.drivers
    }

    /// The front end: to do with the device what a virtual machine monitor may do.
    pub fn front_end(&mut self) -> &mut FrontEnd {
        &mut self.front_end
    }

    /// Shows the device all that was queued and posted, and kicks it where it wants to be.
    pub fn flush(&mut self) {
        for (driver, events) in self.drivers.iter_mut().zip(self.events.chunks(2)) {
            let wanted = [driver.publish_receive(), driver.publish_transmit()];
            for (events, wanted) in events.iter().zip(wanted) {
                if wanted {
                    events.kick();
                }
            }
        }
    }

    /// Waits until a frame comes, on any queue pair. False when none did in time; true may be a
    /// false alarm.
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        self.wait_for_frame(limit, None)
    }

    /// The same, and true also when `other` is readable.
    pub fn wait_beside(&mut self, other: impl AsFd, limit: Duration) -> io::Result<bool> {
        self.wait_for_frame(limit, Some(other.as_fd()))
    }

    fn wait_for_frame(
        &mut self,
        limit: Duration,
        other: Option<BorrowedFd<'_>>,
    ) -> io::Result<bool> {
        // All of them are asked for a call, also when the first one has a frame already: what is
        // enabled here is disabled below.
        let mut ready = false;
        for driver in &mut self.drivers {
            ready |= driver.enable_calls();
        }
        let came = ready || self.wait_for_call(limit, is_receive, other)?;
        self.drivers.iter_mut().for_each(NetDriver::disable_calls);
        Ok(came)
    }

    /// Waits until the device has sent a frame, on any queue pair, so that [`NetDriver::reclaim`] makes
    /// room for another one, or until a frame comes: a back end may have to deliver that before it can
    /// send more. False when neither happened in time; true may be a false alarm.
    pub fn wait_to_send(&mut self, limit: Duration) -> io::Result<bool> {
        let mut ready = false;
        for driver in &mut self.drivers {
            ready |= driver.enable_calls();
            ready |= driver.enable_transmit_calls();
        }
        let came = ready || self.wait_for_call(limit, |_| true, None)?;
        for driver in &mut self.drivers {
            driver.disable_calls();
            driver.disable_transmit_calls();
        }
        Ok(came)
    }

    /// Waits for a call of one of these rings, or for something else.
    fn wait_for_call(
        &self,
        limit: Duration,
        rings: fn(u16) -> bool,
        other: Option<BorrowedFd<'_>>,
    ) -> io::Result<bool> {
        let calls = || {
            let rings = (0..).zip(&self.events).filter(|(ring, _)| rings(*ring));
            rings.map(|(_, events)| &events.call)
        };
        let mut polled: Vec<_> = calls()
            .map(AsFd::as_fd)
            .chain(other)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        // More than the kernel can count is for ever.
        let limit = Timespec::try_from(limit).ok();
        let woken = match poll(&mut polled, limit.as_ref()) {
            // A signal.
            Err(Errno::INTR) => false,
            result => result? > 0,
        };
        if woken {
            for call in calls() {
                // An error says that this one was not called.
                let _ = rustix::io::read(call, &mut [0; 8]);
            }
        }
        Ok(woken)
    }

    /// Has the back end log which pages of the guest's memory it writes, as for a migration, from now on and
    /// until [`Self::stop_logging`], over resets and other back ends.
    pub fn start_logging(&mut self) -> Result<(), GuestError> {
        if !self.front_end.features()?.contains(Features::LOG_ALL) {
            return Err(FrontEndError::NotOffered { missing: Features::LOG_ALL }.into());
        }
        let log = DirtyLog::new(GuestAddress(GUEST_START.0 + self.shared.size()))?;
        self.front_end.set_log(&log)?;
        self.log = Some(log);
        self.switch_logging()
    }

    /// Has the back end log no more. Returns the log, which has what was written and not taken yet.
    pub fn stop_logging(&mut self) -> Result<Option<DirtyLog>, GuestError> {
        let log = self.log.take();
        self.switch_logging()?;
        Ok(log)
    }

    /// What the back end writes, if it is logged.
    pub fn dirty_log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    /// Tells the back end whether there is a log, while its rings run.
    fn switch_logging(&mut self) -> Result<(), GuestError> {
        self.front_end.set_features(self.features())?;
        let is_logged = self.log.is_some();
        for ring in 0..self.events.len() as u16 {
            if !self.running[usize::from(ring)] {
                continue;
            }
            let number = self.number(ring)?;
            let driver = &self.drivers[usize::from(ring / 2)];
            // Where it goes on is no part of what it is told now.
            let config = ring_config(driver, &self.events[usize::from(ring)], ring, 0, is_logged);
            self.front_end.set_addresses(number, &config)?;
        }
        // Whatever was not acknowledged has been acted on when this comes back.
        self.front_end.features()?;
        Ok(())
    }

    /// What is acknowledged.
    fn features(&self) -> Features {
        let logging = if self.log.is_some() { Features::LOG_ALL } else { Features::NONE };
        self.agreed.features | logging
    }

    /// Lets frames pass on a queue pair, or not: what a virtual machine monitor does when its guest
    /// uses more pairs, or fewer (SET_VRING_ENABLE, for both rings).
    pub fn enable_pair(&mut self, pair: u16, enabled: bool) -> Result<(), GuestError> {
        let pairs = self.drivers.len();
        let none = GuestError::NoSuch { what: "queue pair", number: pair, pairs };
        *self.enabled.get_mut(usize::from(pair)).ok_or(none)? = enabled;
        self.enable_ring(2 * pair)?;
        self.enable_ring(2 * pair + 1)
    }

    /// Stops one ring, and returns where it stands (GET_VRING_BASE). The back end touches neither it
    /// nor its buffers any more; the others go on. What it has used can still be reaped.
    pub fn stop_ring(&mut self, ring: u16) -> Result<u32, GuestError> {
        let number = self.number(ring)?;
        let position = self.front_end.stop_ring(number)?;
        self.running[usize::from(ring)] = false;
        Ok(position)
    }

    /// Starts a ring that was stopped as a new one of `size` entries, up to [`Options::ring_size`]:
    /// what a virtual machine monitor does after its guest has reset the ring (virtio 1.3, 2.6.1).
    /// The driver has all of its buffers back, and what was in the ring is gone.
    ///
    /// # Errors
    ///
    /// Among others, [`GuestError::Running`] when the ring was not stopped.
    pub fn restart_ring(&mut self, ring: u16, size: u16) -> Result<(), GuestError> {
        self.number(ring)?;
        if self.running[usize::from(ring)] {
            return Err(GuestError::Running { ring });
        }
        let driver = &mut self.drivers[usize::from(ring / 2)];
        if is_receive(ring) {
            driver.reset_receive(size)?;
        } else {
            driver.reset_transmit(size)?;
        }
        self.enable_ring(ring)?;
        self.set_up_ring(ring, Layout::first_position(self.agreed.features))?;
        self.running[usize::from(ring)] = true;
        self.events[usize::from(ring)].kick();
        Ok(())
    }

    /// The ring's number as the protocol has it.
    fn number(&self, ring: u16) -> Result<u8, GuestError> {
        let number = u8::try_from(ring).ok().filter(|_| usize::from(ring) < self.events.len());
        number.ok_or(GuestError::NoSuch { what: "ring", number: ring, pairs: self.drivers.len() })
    }

    /// Starts a ring at this position.
    fn set_up_ring(&mut self, ring: u16, base: u32) -> Result<(), GuestError> {
        let number = self.number(ring)?;
        let driver = &mut self.drivers[usize::from(ring / 2)];
        // Nobody to kick yet: a ring is scanned when it starts.
        let _ = if is_receive(ring) { driver.publish_receive() } else { driver.publish_transmit() };
        let is_logged = self.log.is_some();
        let config = ring_config(driver, &self.events[usize::from(ring)], ring, base, is_logged);
        Ok(self.front_end.set_up_ring(number, config)?)
    }

    /// Enables a ring, or disables it, as its pair is.
    fn enable_ring(&mut self, ring: u16) -> Result<(), GuestError> {
        let number = self.number(ring)?;
        Ok(self.front_end.enable_ring(number, self.enabled[usize::from(ring / 2)])?)
    }
}

/// A ring as its driver has it, to be started at `base`.
fn ring_config<'a>(
    driver: &NetDriver,
    events: &'a RingEvents,
    ring: u16,
    base: u32,
    is_logged: bool,
) -> RingConfig<'a> {
    let (addresses, size) =
        if is_receive(ring) { driver.receive_ring() } else { driver.transmit_ring() };
    let RingAddresses { descriptors, available, used } = addresses;
    let is_packed = driver.features().contains(Features::RING_PACKED);
    RingConfig {
        size,
        base,
        descriptors: front_end_address(descriptors),
        available: front_end_address(available),
        used: front_end_address(used),
        kick: Some(events.kick.as_fd()),
        call: Some(events.call.as_fd()),
        log: is_logged.then_some(if is_packed { descriptors } else { used }),
    }
}

fn is_receive(ring: u16) -> bool {
    ring.is_multiple_of(2)
}

fn front_end_address(address: GuestAddress) -> FrontEndAddress {
    FrontEndAddress(address.0 - GUEST_START.0 + FRONT_END_START.0)
}

#[cfg(test)]
mod tests;
