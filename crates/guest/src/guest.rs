//! The whole guest: memory, front end, driver.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use memory::{
    Fault, FrontEndAddress, GuestAddress, GuestMemory, MapError, RegionRequest, SharedMemory,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use vhost_user::{FrontEnd, FrontEndError, Region, RingConfig};
use virtqueue::Layout;
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::Features;

use crate::driver::{DriverError, NetDriver};
use crate::layout::{MemoryLayout, RingAddresses};

/// Where the guest's memory begins, for the guest and for the front end: two numbers, so that
/// nobody can mix them up and get away with it.
const GUEST_START: GuestAddress = GuestAddress(0x4000_0000);
const FRONT_END_START: FrontEndAddress = FrontEndAddress(0x7f00_0000_0000);

/// The number of the ring that the guest receives on, and of the one that it transmits on.
const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;

/// Why a guest could not go on.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The vhost-user side failed.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// The virtio side failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The guest's own memory could not be made.
    #[error("cannot make the guest's memory: {0}")]
    Memory(#[from] MapError),
    /// A ring is not in memory.
    #[error("cannot place the guest's rings: {0}")]
    Ring(#[from] Fault),
    /// The kernel refused.
    #[error("cannot set the guest up: {0}")]
    Io(#[from] io::Error),
}

/// What a guest wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// Virtio features to negotiate, as far as they are offered.
    pub features: Features,
    /// Entries in each ring.
    pub ring_size: u16,
    /// How long the back end may take for an answer.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX;
        Self { features, ring_size: 256, limit: Duration::from_secs(5) }
    }
}

/// A guest with one network device, connected to a back end.
pub struct Guest {
    driver: NetDriver,
    front_end: FrontEnd,
    /// For the receive and the transmit ring.
    kicks: [OwnedFd; 2],
    calls: [OwnedFd; 2],
}

impl Guest {
    /// Connects to the back end that listens at `path`, and brings the device up.
    pub fn connect(path: &Path, options: &Options) -> Result<Self, GuestError> {
        let mut front_end = FrontEnd::connect(path, options.limit)?;
        let protocol = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::MQ;
        let agreed = front_end.negotiate(Features::VERSION_1, options.features, protocol)?;

        let layout = MemoryLayout::new(GUEST_START, agreed.features, options.ring_size);
        let shared = SharedMemory::create("guest", layout.size)?;
        front_end.set_memory_table(&[Region {
            guest: GUEST_START,
            size: layout.size,
            front_end: FRONT_END_START,
            offset: 0,
            file: shared.as_fd(),
        }])?;
        let memory = Arc::new(GuestMemory::map([RegionRequest {
            guest: GUEST_START,
            size: layout.size,
            front_end: FRONT_END_START,
            offset: 0,
            file: shared.as_fd().try_clone_to_owned()?,
        }])?);
        let mut driver = NetDriver::new(memory, layout, agreed.features)?;
        // Nobody to kick yet: a ring is scanned when it starts.
        let _ = driver.publish_receive();

        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let kicks =
            [descriptor().map_err(io::Error::from)?, descriptor().map_err(io::Error::from)?];
        let calls =
            [descriptor().map_err(io::Error::from)?, descriptor().map_err(io::Error::from)?];
        let rings = [(RECEIVE, layout.receive), (TRANSMIT, layout.transmit)];
        for ((ring, addresses), (kick, call)) in rings.into_iter().zip(kicks.iter().zip(&calls)) {
            let RingAddresses { descriptors, available, used } = addresses;
            let config = RingConfig {
                size: layout.ring_size,
                base: Layout::first_position(agreed.features),
                descriptors: front_end_address(descriptors),
                available: front_end_address(available),
                used: front_end_address(used),
                kick: Some(kick.as_fd()),
                call: Some(call.as_fd()),
            };
            front_end.set_up_ring(ring, config)?;
        }
        for ring in [RECEIVE, TRANSMIT] {
            front_end.enable_ring(ring, true)?;
        }
        Ok(Self { driver, front_end, kicks, calls })
    }

    /// The driver: frames in and out.
    pub fn driver(&mut self) -> &mut NetDriver {
        &mut self.driver
    }

    /// The front end: to do with the device what a virtual machine monitor may do.
    pub fn front_end(&mut self) -> &mut FrontEnd {
        &mut self.front_end
    }

    /// Shows the device all that was queued and posted, and kicks it where it wants to be.
    pub fn flush(&mut self) {
        let wanted = [self.driver.publish_receive(), self.driver.publish_transmit()];
        for (kick, wanted) in self.kicks.iter().zip(wanted) {
            if wanted {
                // The only error is a full counter, and then the device was kicked.
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
        }
    }

    /// Waits until a frame comes. False when none did in time; true may be a false alarm.
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let came = if self.driver.enable_calls() {
            true
        } else {
            let [call, _] = &self.calls;
            let limit =
                Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
            let woken = match poll(&mut [PollFd::new(call, PollFlags::IN)], Some(&limit)) {
                // A signal.
                Err(Errno::INTR) => false,
                result => result? > 0,
            };
            if woken {
                let _ = rustix::io::read(call, &mut [0; 8]);
            }
            woken
        };
        self.driver.disable_calls();
        Ok(came)
    }
}

fn front_end_address(address: GuestAddress) -> FrontEndAddress {
    FrontEndAddress(address.0 - GUEST_START.0 + FRONT_END_START.0)
}
