//! The front end's side: drives a back end, for a guest that lives in this process.
//!
//! # How it works
//!
//! Every call waits for the back end's answer, up to a limit. After one that got none, or none that makes
//! sense, there is no telling which answer belongs to which request, and all later calls fail. Where REPLY_ACK is agreed, every
//! request asks for an acknowledgement; where it is not, GET_FEATURES follows the requests whose
//! effect must be there before the guest goes on, as QEMU does it.
//!
//! A back end may have requests of its own, on a second socket (`channel.rs`). It may wait for their
//! acknowledgement before it answers ours, so they are served while we wait.
//!
//! # The life of a device
//!
//! 1. [`FrontEnd::connect`], or [`FrontEndListener::accept`] where the back end is the one to connect.
//! 2. [`FrontEnd::negotiate`]; after the back end has died and a new one is there,
//!    [`FrontEnd::negotiate_again`].
//! 3. [`FrontEnd::set_memory_table`] or [`FrontEnd::add_memory_region`].
//! 4. For each ring [`FrontEnd::set_up_ring`] and [`FrontEnd::enable_ring`]. From here on the back end
//!    works.
//! 5. [`FrontEnd::stop_ring`]; then the ring may be set up again, or the connection be closed.
//!
//! # Migration
//!
//! While a guest's memory is copied, the back end tells what it writes there in a [`DirtyLog`]. In the
//! order in which QEMU turns it on, under traffic:
//!
//! 1. [`FrontEnd::set_log`].
//! 2. [`FrontEnd::set_features`] with LOG_ALL, for what is written into buffers.
//! 3. [`FrontEnd::set_addresses`] of each ring with [`RingConfig::log`], for what is written into rings.
//!
//! And off again: the features without LOG_ALL, and the addresses without the log.
//!
//! # What is not here
//!
//! The region of descriptors in flight (GET_INFLIGHT_FD) is for devices that complete out of order, such
//! as disks: QEMU has none for network devices. What a back end had taken when it died is found in the
//! rings themselves, as far as a network needs it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memory::{FrontEndAddress, GuestAddress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;
use wire::ethernet::MacAddress;
use wire::vhost_user::{
    Answer, ConfigSpace, FrontEndRequest, Gate, LogArea, MAX_TABLE_REGIONS, MemoryRegion, Payload,
    ProtocolFeatures, RingDescriptor, Shape, VringAddress, VringState,
};
use wire::virtio::Features;

use crate::connection::{Connection, ConnectionError, Incoming, Message, Observer};

mod channel;
mod dirty_log;
mod listener;

pub use channel::BackEndEvent;
use channel::Channel;
pub use dirty_log::DirtyLog;
pub use listener::FrontEndListener;

/// Of SET_VRING_ADDR: writes into the ring are to be logged (VHOST_VRING_F_LOG).
const LOG_RING: u32 = 1;

/// The most bytes of configuration space in one message.
const MAX_CONFIG: usize = 256;

/// What it may be that a back end closes the connection on a request.
fn hint(request: FrontEndRequest) -> &'static str {
    match request {
        FrontEndRequest::GetFeatures => {
            " (is another front end connected there, such as a virtual machine?)"
        }
        _ => "",
    }
}

/// Why a back end could not be driven.
#[derive(Debug, Error)]
pub enum FrontEndError {
    /// Nobody listens, or we may not.
    #[error("cannot connect to {}: {cause}", .path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// The socket cannot be made, or fails.
    #[error("cannot listen at {}: {cause}", .path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// We listen, and no back end came.
    #[error("no back end connected to {} within {limit:?}", .path.display())]
    NobodyConnected {
        /// The socket's path.
        path: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection broke.
    #[error("{request}: {cause}")]
    Connection {
        /// The request that was on its way.
        request: FrontEndRequest,
        /// What happened.
        cause: ConnectionError,
    },
    /// The back end closed the connection: it found something wrong, and its log says what.
    #[error("the back end closed the connection on {request}{}", hint(*request))]
    Closed {
        /// The request that was on its way.
        request: FrontEndRequest,
    },
    /// No answer in time.
    #[error("the back end did not answer {request} within {limit:?}")]
    TimedOut {
        /// The request that was on its way.
        request: FrontEndRequest,
        /// How long we waited.
        limit: Duration,
    },
    /// The back end said no.
    #[error("the back end refused {request} with {code}")]
    Refused {
        /// The request.
        request: FrontEndRequest,
        /// What it answered instead of 0.
        code: u64,
    },
    /// An answer to something else, or of another form.
    #[error("the back end's answer to {request} is malformed: {what}")]
    Malformed {
        /// The request.
        request: FrontEndRequest,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The back end lacks what we cannot do without.
    #[error("the back end does not offer {missing}")]
    NotOffered {
        /// The missing features.
        missing: Features,
    },
    /// The same of protocol features.
    #[error("the back end no longer offers the protocol features {missing}")]
    ProtocolNotOffered {
        /// The missing protocol features.
        missing: ProtocolFeatures,
    },
    /// Features that were asked for do nothing without others, which were not, or are not offered
    /// (virtio 1.3, 5.1.3.1).
    #[error("{features} cannot be agreed on without the features that they need")]
    Dependent {
        /// The features that lack something.
        features: Features,
    },
    /// An earlier request was not answered, or in no way that we understand. Whatever comes now may be its
    /// answer, so the connection is of no more use.
    #[error("{request} was not sent: an earlier request is not answered")]
    Unanswered {
        /// The request, which was not sent.
        request: FrontEndRequest,
    },
    /// A request that may only be sent once more has been agreed on.
    #[error("{request} needs {needs}, which was not agreed on")]
    NotNegotiated {
        /// The request, which was not sent.
        request: FrontEndRequest,
        /// What has to be agreed on before it.
        needs: ProtocolFeatures,
    },
    /// More regions than one message carries.
    #[error("SET_MEM_TABLE shares up to {MAX_TABLE_REGIONS} regions, not {count}")]
    TooManyRegions {
        /// Regions that were to be shared.
        count: usize,
    },
    /// A part of the configuration space that the back end does not have.
    #[error("the back end has no {len} bytes of configuration at offset {offset}")]
    NoConfig {
        /// Where it starts, in bytes.
        offset: u32,
        /// Bytes.
        len: usize,
    },
    /// More of the configuration space than one message carries.
    #[error("a message carries up to {MAX_CONFIG} bytes of configuration, not {len}")]
    TooMuchConfig {
        /// Bytes.
        len: usize,
    },
    /// We ran out of descriptors.
    #[error("cannot make or duplicate a file descriptor for {request}: {cause}")]
    Duplicate {
        /// The request that was to carry it.
        request: FrontEndRequest,
        /// The kernel's reason.
        cause: io::Error,
    },
}

impl FrontEndError {
    /// Whether it looks as if no vhost-user back end had answered at all, but something else.
    pub fn is_foreign(&self) -> bool {
        use ConnectionError::{CutOff, Header};
        matches!(self, Self::Connection { cause: Header(_) | CutOff { .. }, .. })
    }
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio features, without PROTOCOL_FEATURES.
    pub features: Features,
    /// Protocol features.
    pub protocol: ProtocolFeatures,
}

/// A region of memory to share.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Guest physical address.
    pub guest: GuestAddress,
    /// Bytes.
    pub size: u64,
    /// The address by which ring addresses refer to it.
    pub front_end: FrontEndAddress,
    /// Where the region starts in the file, in bytes.
    pub offset: u64,
    /// The file.
    pub file: BorrowedFd<'a>,
}

impl Region<'_> {
    fn wire(&self) -> MemoryRegion {
        MemoryRegion {
            guest_address: self.guest.0,
            size: self.size,
            user_address: self.front_end.0,
            mmap_offset: self.offset,
        }
    }
}

/// A ring to set up.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig<'a> {
    /// Entries, up to 32768; of a split ring, a power of two.
    pub size: u16,
    /// Where the device goes on, as [`virtqueue::DeviceQueue::position`] says it.
    pub base: u32,
    /// The descriptor table, or the packed ring's descriptors.
    pub descriptors: FrontEndAddress,
    /// The available ring, or the packed ring's driver event structure.
    pub available: FrontEndAddress,
    /// The used ring, or the packed ring's device event structure.
    pub used: FrontEndAddress,
    /// Where the driver kicks; `None` asks the back end to poll.
    pub kick: Option<BorrowedFd<'a>>,
    /// Where the driver wants to be called; `None` says that it polls.
    pub call: Option<BorrowedFd<'a>>,
    /// Where the guest has what the back end writes of the ring, if that is to be in the [`DirtyLog`]: the
    /// used ring, or the packed ring's descriptors.
    pub log: Option<GuestAddress>,
}

/// A connection to a back end.
pub struct FrontEnd {
    connection: Connection,
    /// How long to wait for one answer.
    limit: Duration,
    protocol: ProtocolFeatures,
    /// PROTOCOL_FEATURES, if the back end offers it: to be acknowledged with the guest's features.
    transport: Features,
    /// Where the back end's own requests come, once it was given its end.
    channel: Option<Channel>,
    /// A request was sent, at least in part, and its answer has not come.
    is_unanswered: bool,
}

impl FrontEnd {
    /// Connects to a back end that listens. `limit` is how long that and each answer may take.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, FrontEndError> {
        let failed = |cause| FrontEndError::Connect { path: path.to_owned(), cause };
        let socket = sys::connect(path, limit).map_err(failed)?;
        Self::new(socket, limit).map_err(failed)
    }

    /// Takes over a connected socket. `limit` is how long each answer may take.
    pub fn new(socket: OwnedFd, limit: Duration) -> io::Result<Self> {
        let connection = Connection::new(socket).map_err(|error| match error {
            ConnectionError::Io(error) => error,
            error => io::Error::other(error),
        })?;
        let (protocol, transport) = (ProtocolFeatures::NONE, Features::NONE);
        Ok(Self { connection, limit, protocol, transport, channel: None, is_unanswered: false })
    }

    /// From now on, shows every message that passes to `observer`.
    pub fn observe(&mut self, observer: Observer) {
        self.connection.observe(observer);
    }

    /// Agrees on features: of the `wanted` and `protocol` ones, those that the back end offers.
    /// Without `required` ones there is an error. LOG_ALL may be among these, but is only acknowledged by
    /// [`Self::set_features`], when logging is to start.
    pub fn negotiate(
        &mut self,
        required: Features,
        wanted: Features,
        protocol: ProtocolFeatures,
    ) -> Result<Negotiated, FrontEndError> {
        let offered = self.features()?;
        let missing = required.without(offered);
        if !missing.is_empty() {
            return Err(FrontEndError::NotOffered { missing });
        }
        let mut features = (required | wanted) & offered;
        features = features.without(features.missing_dependencies());
        let dependent = required.without(features);
        if !dependent.is_empty() {
            return Err(FrontEndError::Dependent { features: dependent });
        }
        features = features.without(Features::PROTOCOL_FEATURES | Features::LOG_ALL);
        self.transport = offered & Features::PROTOCOL_FEATURES;
        if !self.transport.is_empty() {
            let offered = self.ask_u64(FrontEndRequest::GetProtocolFeatures, Payload::Empty)?;
            let agreed = protocol & ProtocolFeatures(offered);
            self.tell(FrontEndRequest::SetProtocolFeatures, Payload::U64(agreed.0), &[])?;
            self.protocol = agreed;
        }
        self.tell(FrontEndRequest::SetOwner, Payload::Empty, &[])?;
        self.set_features(features)?;
        Ok(Negotiated { features, protocol: self.protocol })
    }

    /// Agrees once more on what was agreed `before`, neither more nor less: with a new back end, after
    /// the old one has died. The guest goes on as if nothing had happened, so it must find the features
    /// that its driver was promised. QEMU refuses a back end that offers less, too.
    pub fn negotiate_again(&mut self, before: Negotiated) -> Result<(), FrontEndError> {
        let now = self.negotiate(before.features, Features::NONE, before.protocol)?;
        let missing = ProtocolFeatures(before.protocol.0 & !now.protocol.0);
        if missing != ProtocolFeatures::NONE {
            return Err(FrontEndError::ProtocolNotOffered { missing });
        }
        Ok(())
    }

    /// Whether the back end has closed the connection, or died. Does not wait.
    pub fn is_closed(&self) -> bool {
        // What it may have to say does not matter here: only whether it has hung up.
        let mut polled = [PollFd::new(&self.connection, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok_and(|found| found > 0)
    }

    /// The virtio features that the back end offers (GET_FEATURES).
    pub fn features(&mut self) -> Result<Features, FrontEndError> {
        self.ask_u64(FrontEndRequest::GetFeatures, Payload::Empty).map(Features)
    }

    /// Acknowledges the guest's features again: after a reset, or with LOG_ALL or without it, which is the
    /// one that may change while rings run (SET_FEATURES).
    pub fn set_features(&mut self, features: Features) -> Result<(), FrontEndError> {
        let features = features | self.transport;
        self.tell(FrontEndRequest::SetFeatures, Payload::U64(features.0), &[])
    }

    /// The most queue pairs that the back end serves (GET_QUEUE_NUM; 1 without MQ). Some back ends
    /// count rings: then it is twice as many.
    pub fn queue_pairs(&mut self) -> Result<u64, FrontEndError> {
        if !self.protocol.contains(ProtocolFeatures::MQ) {
            return Ok(1);
        }
        self.ask_u64(FrontEndRequest::GetQueueNum, Payload::Empty)
    }

    /// The most memory regions that the back end takes (GET_MAX_MEM_SLOTS; 8 without
    /// CONFIGURE_MEM_SLOTS).
    pub fn max_memory_slots(&mut self) -> Result<u64, FrontEndError> {
        if !self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return Ok(MAX_TABLE_REGIONS as u64);
        }
        self.ask_u64(FrontEndRequest::GetMaxMemSlots, Payload::Empty)
    }

    /// Shares these regions and no others (SET_MEM_TABLE). At most 8.
    pub fn set_memory_table(&mut self, regions: &[Region<'_>]) -> Result<(), FrontEndError> {
        if regions.len() > MAX_TABLE_REGIONS {
            return Err(FrontEndError::TooManyRegions { count: regions.len() });
        }
        let table = regions.iter().map(Region::wire).collect();
        let files: Vec<BorrowedFd<'_>> = regions.iter().map(|region| region.file).collect();
        self.tell(FrontEndRequest::SetMemTable, Payload::MemoryTable(table), &files)?;
        self.barrier()
    }

    /// Shares one region more (ADD_MEM_REG).
    pub fn add_memory_region(&mut self, region: Region<'_>) -> Result<(), FrontEndError> {
        let payload = Payload::SingleRegion(region.wire());
        self.tell(FrontEndRequest::AddMemReg, payload, &[region.file])?;
        self.barrier()
    }

    /// Takes one region back (REM_MEM_REG).
    pub fn remove_memory_region(&mut self, region: Region<'_>) -> Result<(), FrontEndError> {
        let payload = Payload::SingleRegion(region.wire());
        self.tell(FrontEndRequest::RemMemReg, payload, &[])?;
        self.barrier()
    }

    /// Sets up a ring and starts it; enable it afterwards. Both descriptors are sent every time,
    /// because DPDK forgets them when a ring stops.
    pub fn set_up_ring(&mut self, ring: u8, config: RingConfig<'_>) -> Result<(), FrontEndError> {
        use FrontEndRequest as R;
        let index = u32::from(ring);
        let state = |num| Payload::VringState(VringState { index, num });
        self.tell(R::SetVringNum, state(config.size.into()), &[])?;
        self.tell(R::SetVringBase, state(config.base), &[])?;
        self.set_addresses(ring, &config)?;
        self.set_call(ring, config.call)?;
        self.set_kick(ring, config.kick)
    }

    /// Says where a ring is, and whether writes into it are logged (SET_VRING_ADDR): its addresses in
    /// [`RingConfig`]. QEMU says it again of a ring that runs, at the same place, when logging starts or
    /// stops. What becomes of a ring that runs and is told another place is left open by the
    /// specification: stop it first.
    pub fn set_addresses(
        &mut self,
        ring: u8,
        config: &RingConfig<'_>,
    ) -> Result<(), FrontEndError> {
        let address = VringAddress {
            index: ring.into(),
            flags: if config.log.is_some() { LOG_RING } else { 0 },
            descriptors: config.descriptors.0,
            used: config.used.0,
            available: config.available.0,
            log: config.log.map_or(0, |log| log.0),
        };
        self.tell(FrontEndRequest::SetVringAddr, Payload::VringAddress(address), &[])
    }

    /// Says where the back end may report that a ring is broken (SET_VRING_ERR).
    pub fn set_error(
        &mut self,
        ring: u8,
        error: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontEndError> {
        self.ring_descriptor(FrontEndRequest::SetVringErr, ring, error)
    }

    /// Exchanges a ring's call descriptor (SET_VRING_CALL).
    pub fn set_call(
        &mut self,
        ring: u8,
        call: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontEndError> {
        self.ring_descriptor(FrontEndRequest::SetVringCall, ring, call)
    }

    /// Exchanges a ring's kick descriptor, which starts the ring (SET_VRING_KICK).
    pub fn set_kick(
        &mut self,
        ring: u8,
        kick: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontEndError> {
        self.ring_descriptor(FrontEndRequest::SetVringKick, ring, kick)
    }

    /// Lets frames pass, or not (SET_VRING_ENABLE). On return the back end acts on it. Where the back end
    /// does not offer PROTOCOL_FEATURES there is no such message: a ring is enabled when it starts, and
    /// cannot be disabled.
    pub fn enable_ring(&mut self, ring: u8, enabled: bool) -> Result<(), FrontEndError> {
        if self.transport.is_empty() {
            let missing = Features::PROTOCOL_FEATURES;
            return if enabled { Ok(()) } else { Err(FrontEndError::NotOffered { missing }) };
        }
        let state = VringState { index: ring.into(), num: enabled.into() };
        self.tell(FrontEndRequest::SetVringEnable, Payload::VringState(state), &[])?;
        self.barrier()
    }

    /// Stops a ring (GET_VRING_BASE). On return the back end no longer touches it. Returns where the
    /// ring stands, as [`virtqueue::DeviceQueue::position`] says it: a packed ring needs all 32 bits.
    pub fn stop_ring(&mut self, ring: u8) -> Result<u32, FrontEndError> {
        let request = FrontEndRequest::GetVringBase;
        let state = VringState { index: ring.into(), num: 0 };
        match self.ask(request, Payload::VringState(state), Shape::VringState)? {
            Payload::VringState(state) if state.index == u32::from(ring) => Ok(state.num),
            _ => Err(FrontEndError::Malformed { request, what: "another ring" }),
        }
    }

    /// Sets the device status (SET_STATUS); 0 resets the device.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontEndError> {
        self.tell(FrontEndRequest::SetStatus, Payload::U64(status.into()), &[])
    }

    /// The device status (GET_STATUS).
    pub fn status(&mut self) -> Result<u8, FrontEndError> {
        self.ask_u64(FrontEndRequest::GetStatus, Payload::Empty).map(|status| status as u8)
    }

    /// Tells the guest's MTU, in bytes (NET_SET_MTU).
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), FrontEndError> {
        self.tell(FrontEndRequest::NetSetMtu, Payload::U64(mtu.into()), &[])
    }

    /// Has the network told that a guest is here now (SEND_RARP).
    pub fn announce(&mut self, address: MacAddress) -> Result<(), FrontEndError> {
        let [a, b, c, d, e, f] = address.0;
        let value = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
        self.tell(FrontEndRequest::SendRarp, Payload::U64(value), &[])
    }

    /// Shares a dirty log, in place of the last one (SET_LOG_BASE, with LOG_SHMFD). Nothing is logged
    /// before [`Self::set_features`] and [`Self::set_addresses`] say so. On return the back end has it.
    pub fn set_log(&mut self, log: &DirtyLog) -> Result<(), FrontEndError> {
        let request = FrontEndRequest::SetLogBase;
        let deadline = deadline(self.limit);
        let area = LogArea { size: log.size(), offset: 0 };
        self.send(request, false, Payload::Log(area), &[log.as_fd()], deadline)?;
        // DPDK answers with nothing, libvhost-user with a number and rust-vmm with the area once more.
        match Payload::decode(Shape::U64, &self.reply_bytes(request, deadline)?) {
            Some(Payload::U64(code)) if code != 0 => Err(FrontEndError::Refused { request, code }),
            _ => Ok(()),
        }
    }

    /// Says where the back end may report that it has logged something (SET_LOG_FD). QEMU does without,
    /// and has a look at the log whenever it likes.
    pub fn set_log_event(&mut self, event: BorrowedFd<'_>) -> Result<(), FrontEndError> {
        self.tell(FrontEndRequest::SetLogFd, Payload::Empty, &[event])
    }

    /// Reads `len` bytes of the device's configuration space, from `offset` on (GET_CONFIG, with CONFIG;
    /// virtio 1.3, 5.1.4). Up to 256.
    pub fn config(&mut self, offset: u32, len: usize) -> Result<Vec<u8>, FrontEndError> {
        let request = FrontEndRequest::GetConfig;
        let deadline = deadline(self.limit);
        let space = ConfigSpace { offset, flags: 0, bytes: vec![0; checked_config(len)?] };
        self.send(request, false, Payload::Config(space), &[], deadline)?;
        let reply = self.reply_bytes(request, deadline)?;
        if reply.is_empty() {
            return Err(FrontEndError::NoConfig { offset, len });
        }
        match Payload::decode(Shape::Config, &reply) {
            Some(Payload::Config(space)) if space.bytes.is_empty() && len > 0 => {
                Err(FrontEndError::NoConfig { offset, len })
            }
            Some(Payload::Config(space)) if space.offset == offset && space.bytes.len() == len => {
                Ok(space.bytes)
            }
            _ => Err(FrontEndError::Malformed { request, what: "another part" }),
        }
    }

    /// Writes into the device's configuration space, as its driver does (SET_CONFIG, with CONFIG). Up to
    /// 256 bytes.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FrontEndError> {
        checked_config(bytes.len())?;
        let space = ConfigSpace { offset, flags: 0, bytes: bytes.to_vec() };
        self.tell(FrontEndRequest::SetConfig, Payload::Config(space), &[])
    }

    /// Resets the device (RESET_DEVICE).
    pub fn reset_device(&mut self) -> Result<(), FrontEndError> {
        self.tell(FrontEndRequest::ResetDevice, Payload::Empty, &[])
    }

    /// Gives the back end a socket for requests of its own (SET_BACKEND_REQ_FD, with BACKEND_REQ). What
    /// comes there is served while a call waits for an answer, and by [`Self::back_end_event`].
    pub fn open_channel(&mut self) -> Result<(), FrontEndError> {
        let request = FrontEndRequest::SetBackendReqFd;
        let failed = |cause| FrontEndError::Duplicate { request, cause };
        let (channel, theirs) = Channel::new().map_err(failed)?;
        // It may have something to say at once, and wait for our answer to that before it gives its own.
        self.channel = Some(channel);
        let told = self.tell(request, Payload::Empty, &[theirs.as_fd()]);
        if told.is_err() {
            self.channel = None;
        }
        told
    }

    /// The socket of [`Self::open_channel`]: when it is readable, [`Self::back_end_event`] has something
    /// to do. `None` when it is not open, or no longer.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().and_then(Channel::socket)
    }

    /// Serves what the back end has asked for, and returns what it was, one after the other; `None` when
    /// there is nothing more. Several changes of the configuration may be told as one. Never blocks.
    ///
    /// A change of the configuration is acknowledged, if CONFIG is agreed; what else a back end can ask
    /// for is no part of a network device, or needs features that are never agreed here, and is refused.
    pub fn back_end_event(&mut self) -> Option<BackEndEvent> {
        let protocol = self.protocol;
        self.channel.as_mut()?.take(protocol)
    }

    fn ring_descriptor(
        &mut self,
        request: FrontEndRequest,
        ring: u8,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontEndError> {
        let payload = RingDescriptor { ring, attached: descriptor.is_some() };
        self.tell(request, Payload::RingDescriptor(payload), descriptor.as_slice())
    }

    /// Without REPLY_ACK: a request with a reply, which comes only after those before it.
    fn barrier(&mut self) -> Result<(), FrontEndError> {
        if self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            return Ok(());
        }
        self.features().map(|_| ())
    }

    /// Sends a request that has no reply of its own, and waits for its acknowledgement if there is
    /// one to be had.
    fn tell(
        &mut self,
        request: FrontEndRequest,
        payload: Payload,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrontEndError> {
        debug_assert_eq!(request.message().answer, Answer::Acknowledgement);
        let need_reply = self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let deadline = deadline(self.limit);
        self.send(request, need_reply, payload, descriptors, deadline)?;
        if !need_reply {
            self.is_unanswered = false;
            return Ok(());
        }
        match self.reply(request, Shape::U64, deadline)? {
            Payload::U64(0) => Ok(()),
            Payload::U64(code) => Err(FrontEndError::Refused { request, code }),
            _ => Err(FrontEndError::Malformed { request, what: "not a number" }),
        }
    }

    /// Sends a request and waits for its reply.
    fn ask(
        &mut self,
        request: FrontEndRequest,
        payload: Payload,
        shape: Shape,
    ) -> Result<Payload, FrontEndError> {
        let deadline = deadline(self.limit);
        self.send(request, false, payload, &[], deadline)?;
        self.reply(request, shape, deadline)
    }

    fn ask_u64(
        &mut self,
        request: FrontEndRequest,
        payload: Payload,
    ) -> Result<u64, FrontEndError> {
        match self.ask(request, payload, Shape::U64)? {
            Payload::U64(value) => Ok(value),
            _ => Err(FrontEndError::Malformed { request, what: "not a number" }),
        }
    }

    fn send(
        &mut self,
        request: FrontEndRequest,
        need_reply: bool,
        payload: Payload,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), FrontEndError> {
        if let Gate::Protocol(needs) = request.message().gate
            && !self.protocol.contains(needs)
        {
            return Err(FrontEndError::NotNegotiated { request, needs });
        }
        if self.is_unanswered {
            return Err(match self.is_closed() {
                true => FrontEndError::Closed { request },
                false => FrontEndError::Unanswered { request },
            });
        }
        let failed = |cause| failure(request, cause);
        let descriptors = descriptors
            .iter()
            .map(|descriptor| descriptor.try_clone_to_owned())
            .collect::<io::Result<Vec<OwnedFd>>>()
            .map_err(|cause| FrontEndError::Duplicate { request, cause })?;
        let number = request.number();
        let message = Message::request(number, need_reply, payload.encode(), descriptors);
        self.is_unanswered = true;
        let mut gone = self.connection.send(message).map_err(failed)?;
        while !gone {
            self.wait(request, PollFlags::OUT, deadline)?;
            gone = self.connection.flush().map_err(failed)?;
        }
        Ok(())
    }

    fn reply(
        &mut self,
        request: FrontEndRequest,
        shape: Shape,
        deadline: Instant,
    ) -> Result<Payload, FrontEndError> {
        let what = "a payload of another size";
        let payload = self.reply_bytes(request, deadline)?;
        Payload::decode(shape, &payload).ok_or(FrontEndError::Malformed { request, what })
    }

    /// The payload of the reply to `request`.
    fn reply_bytes(
        &mut self,
        request: FrontEndRequest,
        deadline: Instant,
    ) -> Result<Vec<u8>, FrontEndError> {
        let failed = |cause| failure(request, cause);
        let malformed = |what| FrontEndError::Malformed { request, what };
        let message = loop {
            match self.connection.receive().map_err(failed)? {
                Incoming::Message(message) => break message,
                Incoming::Closed => return Err(FrontEndError::Closed { request }),
                Incoming::NotYet => self.wait(request, PollFlags::IN, deadline)?,
            }
        };
        if !message.header.reply {
            return Err(malformed("not a reply"));
        }
        if message.header.request != request.number() {
            return Err(malformed("a reply to another request"));
        }
        if !message.descriptors.is_empty() {
            return Err(malformed("it carries descriptors"));
        }
        self.is_unanswered = false;
        Ok(message.payload)
    }

    /// Waits for the connection, and serves the channel meanwhile: the back end may wait for us there
    /// before it answers.
    fn wait(
        &mut self,
        request: FrontEndRequest,
        flags: PollFlags,
        deadline: Instant,
    ) -> Result<(), FrontEndError> {
        let limit = self.limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontEndError::TimedOut { request, limit });
            }
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut polled = vec![PollFd::from_borrowed_fd(self.connection.as_fd(), flags)];
            polled.extend(self.channel.as_ref().and_then(Channel::wanted));
            match poll(&mut polled, Some(&left)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(failure(request, error.into())),
            }
            let ready = polled.iter().map(|polled| !polled.revents().is_empty());
            let ready: Vec<bool> = ready.collect();
            if let (Some(true), Some(channel)) = (ready.get(1), &mut self.channel) {
                channel.serve(self.protocol);
            }
            if ready[0] {
                return Ok(());
            }
        }
    }
}

/// When `limit` is over. One that never is ends in a century.
fn deadline(limit: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + limit.min(CENTURY)
}

/// Bytes of configuration space, if one message carries so many.
fn checked_config(len: usize) -> Result<usize, FrontEndError> {
    if len > MAX_CONFIG { Err(FrontEndError::TooMuchConfig { len }) } else { Ok(len) }
}

/// A back end that finds a message wrong closes the connection, with what follows unread.
fn failure(request: FrontEndRequest, cause: ConnectionError) -> FrontEndError {
    match cause {
        ConnectionError::Gone => FrontEndError::Closed { request },
        cause => FrontEndError::Connection { request, cause },
    }
}

impl AsFd for FrontEnd {
    /// Readable when the back end has closed the connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests;
