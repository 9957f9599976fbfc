//! One port of the generator: a guest's network device with one queue pair.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memory::{
    Fault, FrontEndAddress, GuestAddress, GuestMemory, MapError, RegionRequest, SharedMemory, Words,
};
use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;
use vhost_user::{FrontEnd, FrontEndError, Region, RingConfig};
use virtqueue::{Buffers, Layout, LayoutError, SlotQueue, Violation};
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::{Features, NetHeader};

use super::frame::Template;

/// Where a port's memory begins, for the driver and for the front end.
const GUEST_START: u64 = 0x4000_0000;
const FRONT_END_START: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;
const CACHE_LINE: usize = 64;
/// Bytes of a receive buffer, where a frame may fill several: what virtual machines have.
const RECEIVE_BUFFER: usize = 2048;

/// Why a load could not go on.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Nobody listens, or we may not connect.
    #[error(transparent)]
    Connect(FrontEndError),
    /// The vhost-user side failed.
    #[error("{}: {cause}", .path.display())]
    FrontEnd {
        /// The back end's socket.
        path: PathBuf,
        /// What happened.
        cause: FrontEndError,
    },
    /// The back end went away.
    #[error("{}: the back end closed the connection, or died", .path.display())]
    Closed {
        /// The back end's socket.
        path: PathBuf,
    },
    /// The back end broke a rule of the ring.
    #[error("{}: the back end broke a rule of the ring: {cause}", .path.display())]
    Ring {
        /// The back end's socket.
        path: PathBuf,
        /// Which one.
        cause: Violation,
    },
    /// The back end delivered what is no frame.
    #[error("{}: the back end delivered {what} (virtio 1.3, 5.1.6.4)", .path.display())]
    Delivery {
        /// The back end's socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The back end does not take what it is sent.
    #[error("{}: the back end does not take frames from its ring: {held} wait there", .path.display())]
    Stalled {
        /// The back end's socket.
        path: PathBuf,
        /// Frames in the ring.
        held: u16,
    },
    /// The back end holds transmit buffers that are needed for the next trial.
    #[error("{}: the back end still holds {held} frames of the last trial", .path.display())]
    Held {
        /// The back end's socket.
        path: PathBuf,
        /// Frames that it was given and did not use.
        held: u16,
    },
    /// More frames under way than the rings hold.
    #[error("a window of {window} frames does not fit: a ring of {ring_size} holds {most} of them")]
    Window {
        /// As asked for.
        window: usize,
        /// Entries of each ring.
        ring_size: u16,
        /// Frames that fit.
        most: usize,
    },
    /// The rings do not fit the memory.
    #[error("cannot lay out the rings: {0}")]
    Layout(LayoutError),
    /// A buffer is not in the memory.
    #[error("cannot reach a buffer: {0}")]
    Memory(Fault),
    /// The memory could not be made.
    #[error("cannot make the port's memory: {0}")]
    Map(MapError),
    /// The kernel refused.
    #[error("cannot set up a port: {0}")]
    Io(io::Error),
}

impl From<LayoutError> for LoadError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<Fault> for LoadError {
    fn from(fault: Fault) -> Self {
        Self::Memory(fault)
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a port is to be.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// Features that the back end must offer; VERSION_1 always is one of them.
    pub required: Features,
    /// Features that are used if the back end offers them.
    pub wanted: Features,
    /// Entries in each ring.
    pub ring_size: u16,
    /// The longest frame that will be sent, in bytes.
    pub longest: usize,
    /// How long the back end may take for an answer.
    pub limit: Duration,
}

/// Buffers of one ring, side by side, as whole words: what is written and read most is one of them.
pub(super) struct Area {
    /// Bytes from one buffer to the next.
    stride: usize,
    words: Words<AtomicU64>,
}

impl Area {
    /// The words of a buffer.
    #[inline]
    pub fn words(&self, slot: u16) -> &[AtomicU64] {
        let len = self.stride / 8;
        self.words.get(usize::from(slot) * len..).and_then(|rest| rest.get(..len)).unwrap_or(&[])
    }

    /// Copies the first bytes of a buffer to the end of `private`: once, for the back end may still
    /// write there.
    pub fn append_to(&self, private: &mut Vec<u8>, slot: u16, len: usize) {
        let end = private.len() + len;
        for word in self.words(slot).iter().take(len.div_ceil(8)) {
            private.extend(word.load(Ordering::Relaxed).to_le_bytes());
        }
        private.truncate(end);
    }

    /// Fills a buffer.
    fn fill(&self, slot: u16, bytes: &[u8]) {
        for (word, bytes) in self.words(slot).iter().zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            for (to, from) in value.iter_mut().zip(bytes) {
                *to = *from;
            }
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }
}

/// One direction of a port.
pub(super) struct Ring {
    pub queue: SlotQueue,
    pub area: Area,
    kick: OwnedFd,
    /// Open for as long as the back end may call, though nobody listens: calls are off.
    _call: OwnedFd,
}

impl Ring {
    /// Shows the back end what was posted, and kicks it if it wants to be.
    #[inline]
    pub fn publish(&mut self) {
        if self.queue.publish() {
            // The only error is a full counter, and then the device was kicked.
            let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
        }
    }
}

/// A network device on a back end, with one queue pair.
pub struct Port {
    path: PathBuf,
    front_end: FrontEnd,
    features: Features,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    /// Bytes of each receive buffer.
    pub(super) receive_len: usize,
    /// Bytes that each transmit buffer takes, header included.
    transmit_room: usize,
}

impl Port {
    /// Connects to the back end that listens at `path`, and starts the device.
    ///
    /// # Errors
    ///
    /// The back end cannot be reached, lacks a feature, or does not answer in time.
    pub fn connect(path: &Path, options: &PortOptions) -> Result<Self, LoadError> {
        let failed = |cause| match cause {
            FrontEndError::Connect { .. } => LoadError::Connect(cause),
            cause => LoadError::FrontEnd { path: path.to_owned(), cause },
        };
        let mut front_end = FrontEnd::connect(path, options.limit).map_err(failed)?;
        let required = Features::VERSION_1 | options.required;
        let protocol = ProtocolFeatures::REPLY_ACK;
        let agreed = front_end.negotiate(required, options.wanted, protocol).map_err(failed)?;
        let features = agreed.features;

        let size = options.ring_size;
        let longest = NetHeader::SIZE + options.longest;
        let receive_len = if features.contains(Features::MRG_RXBUF) {
            RECEIVE_BUFFER
        } else {
            longest.next_multiple_of(CACHE_LINE).max(RECEIVE_BUFFER)
        };
        // One cache line more than a power of two: or the buffers' beginnings, which are used
        // most, would all compete for the same few places of the cache.
        let receive_stride = receive_len + CACHE_LINE;
        let transmit_stride = (longest + 8).next_multiple_of(CACHE_LINE) | CACHE_LINE;

        let mut next = GUEST_START;
        let mut area = |size: u64| {
            let at = next.next_multiple_of(PAGE);
            next = at + size;
            GuestAddress(at)
        };
        let mut ring = |stride: usize| {
            let areas = Layout::areas(features, size).map(|part| area(part.size));
            (areas, area(u64::from(size) * stride as u64))
        };
        let (receive, transmit) = (ring(receive_stride), ring(transmit_stride));
        let bytes = (next - GUEST_START).next_multiple_of(PAGE);
        let shared = SharedMemory::create("ringway bench", bytes)?;
        let (guest, front_end_start) =
            (GuestAddress(GUEST_START), FrontEndAddress(FRONT_END_START));
        let region = Region {
            guest,
            size: bytes,
            front_end: front_end_start,
            offset: 0,
            file: shared.as_fd(),
        };
        front_end.set_memory_table(&[region]).map_err(failed)?;
        let memory = Arc::new(GuestMemory::map([RegionRequest {
            guest,
            size: bytes,
            front_end: front_end_start,
            offset: 0,
            file: shared.as_fd().try_clone_to_owned()?,
        }])?);

        let mut start = |number: u8,
                         (areas, start): ([GuestAddress; 3], GuestAddress),
                         stride,
                         len| {
            let [descriptors, available, used] = areas;
            let layout = Layout::new(&memory, features, size.into(), descriptors, available, used)?;
            let writable = number == 0;
            let buffers = Buffers { start, stride: stride as u32, len: len as u32, writable };
            let mut queue = SlotQueue::new(layout, features, buffers);
            queue.disable_calls();
            if writable {
                while queue.post().is_some() {}
                // Nobody to kick yet: a ring is scanned when it starts.
                let _ = queue.publish();
            }
            let words = memory.words(start, usize::from(size) * stride / 8)?;
            let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            let (kick, call) =
                (event().map_err(io::Error::from)?, event().map_err(io::Error::from)?);
            let at =
                |address: GuestAddress| FrontEndAddress(address.0 - GUEST_START + FRONT_END_START);
            let config = RingConfig {
                size,
                base: Layout::first_position(features),
                descriptors: at(descriptors),
                available: at(available),
                used: at(used),
                kick: Some(kick.as_fd()),
                call: Some(call.as_fd()),
                log: None,
            };
            front_end.set_up_ring(number, config).map_err(failed)?;
            let area = Area { stride, words };
            Ok::<_, LoadError>(Ring { queue, area, kick, _call: call })
        };
        let receive = start(0, receive, receive_stride, receive_len)?;
        let transmit = start(1, transmit, transmit_stride, longest)?;
        for number in 0..2 {
            front_end.enable_ring(number, true).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            front_end,
            features,
            receive,
            transmit,
            receive_len,
            transmit_room: longest,
        })
    }

    /// The back end's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The features that were agreed on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Receive buffers that a frame of this size fills.
    pub fn receive_buffers(&self, size: usize) -> usize {
        (NetHeader::SIZE + size).div_ceil(self.receive_len)
    }

    /// Frames of this size that may be under way to this port without any being lost.
    pub fn window(&self, size: usize) -> usize {
        usize::from(self.receive.queue.size()) / self.receive_buffers(size)
    }

    /// Whether the back end has gone.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let path = || self.path.clone();
        if self.front_end.is_closed() { Err(LoadError::Closed { path: path() }) } else { Ok(()) }
    }

    pub(super) fn violation(path: &Path) -> impl Fn(Violation) -> LoadError {
        move |cause| LoadError::Ring { path: path.to_owned(), cause }
    }

    /// Takes back the transmit buffers that were sent.
    #[inline]
    pub(super) fn reclaim(&mut self) -> Result<u16, LoadError> {
        self.transmit.queue.reap(|_, _| ()).map_err(Self::violation(&self.path))
    }

    /// Writes a frame into each transmit buffer, all of which must be free.
    pub(super) fn prepare(&mut self, template: impl Fn(u16) -> Template) -> Result<(), LoadError> {
        self.reclaim()?;
        let held = self.transmit.queue.outstanding();
        if held > 0 {
            return Err(LoadError::Held { path: self.path.clone(), held });
        }
        for slot in 0..self.transmit.queue.size() {
            let template = template(slot);
            debug_assert!(template.bytes.len() <= self.transmit_room);
            self.transmit.area.fill(slot, &template.bytes);
            self.transmit.queue.set_len(slot, template.bytes.len() as u32);
        }
        Ok(())
    }
}
