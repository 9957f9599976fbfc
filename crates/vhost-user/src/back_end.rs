//! The back end's side of one connection.
//!
//! # How it works
//!
//! A [`Session`] stores what the front end says and gives the data plane a [`Device`]: one complete,
//! immutable value. Messages may come in any order; QEMU, DPDK and Cloud Hypervisor each have their
//! own. So nothing is judged by its place in a sequence. After each message every ring is looked
//! at: one that has been told its size, its addresses, its base and its kick descriptor, and whose
//! addresses lie in shared memory, runs.
//!
//! # The hand-over
//!
//! An answer tells the front end that the data plane acts on what it said, not that we have read
//! it. QEMU lets the guest kick a ring as soon as SET_VRING_ENABLE is acknowledged, reuses memory
//! once REM_MEM_REG is, and saves a guest with the index that GET_VRING_BASE returns. Hence:
//!
//! ```text
//! step = session.handle(message)?
//! if let Some(device) = &step.device:
//!     hand it to the worker; wait until the worker has swapped it in and says at which position
//!     it left each ring that is gone or restarted
//!     session.stopped(ring, position) for each of these
//! if let Some(reply) = session.answer(step): send it
//! ```
//!
//! Until then the [`Step`] keeps the former device alive, so that its memory is unmapped and its
//! descriptors are closed here and not by the worker.
//!
//! # Choices where front ends differ
//!
//! * A ring starts with SET_VRING_KICK and not with the first kick: its driver may have filled it
//!   long before. It stops with GET_VRING_BASE, with a reset, when its memory goes away, and when a
//!   running ring is told another size, base or address; then the next SET_VRING_KICK starts it.
//! * A ring starts behind the last chain that was used, whatever base was offered: a switch completes
//!   in order, so what lies between was not processed. Taking the base would lose these buffers. A
//!   split ring's used index is in memory, a packed ring's is the upper half of its base.
//! * The base of a ring that has stopped is where it stopped, until SET_VRING_BASE gives another one: it
//!   may be started again by SET_VRING_KICK alone, or by its memory coming back.
//! * Sizes and bases are judged when a ring is to run: before, it need not be known whether it will be
//!   a packed one, which may have any size, and whose base has two halves.
//! * DRIVER_OK is not waited for. QEMU starts a ring only once its guest's driver is ready, sends
//!   DRIVER_OK last, and other front ends never do.
//! * SET_VRING_ENABLE counts before SET_FEATURES too: QEMU restores enabled rings first. A ring
//!   that was never told is enabled unless PROTOCOL_FEATURES was acknowledged.
//! * A ring that is kicked and enabled, or enabled and kicked, while no memory is shared at all is an
//!   error and not a wait: this is what QEMU does when share=on is missing.
//! * Regions that are added or removed again are no error: QEMU before version 8 says all of that once
//!   for each queue pair.
//! * RESET_OWNER, which is deprecated, stops the rings and changes nothing else.
//! * Anything that is wrong ends the connection ([`Violation`]); there is no other reliable way to
//!   tell the peer. Requests that are unknown or not served are refused but forgiven ([`Notice`]):
//!   newer front ends try them.

mod device;
mod pair;
mod ring;
mod running;
mod server;
pub mod sharing;
mod violation;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use memory::{FrontEndAddress, GuestAddress, GuestMemory, MAX_REGIONS, MapError, RegionRequest};
use wire::ethernet::MacAddress;
use wire::vhost_user::{
    Answer, FrontEndRequest, Gate, MAX_RINGS, MemoryRegion, Payload, ProtocolFeatures,
    RingDescriptor, VringAddress, VringState,
};
use wire::virtio::Features;

pub use device::{Device, RingSetup};
pub use pair::{Delivery, FrameFault, Pair, Taken};
pub use ring::RingFault;
use ring::{Addresses, Ring};
pub use running::{HeldChain, RunningRing};
pub use server::{BackEnd, End, Rings, Server, ServerError};
pub use violation::{Notice, Violation};

use crate::connection::Message;
use crate::descriptor::{self, Descriptor};

/// The smallest MTU that IPv4 works with (RFC 791).
const MIN_MTU: u64 = 68;
/// The bit of the device status that says that the driver is ready (virtio 1.3, section 2.1).
const DRIVER_OK: u8 = 4;

/// What a back end offers. It must not shrink while the switch runs, or a front end that
/// reconnects refuses it. [`Session::new`] judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features for the guest, of [`Offer::FEATURES`]. PROTOCOL_FEATURES is added to them.
    pub features: Features,
    /// Protocol features, of [`Offer::PROTOCOL`].
    pub protocol: ProtocolFeatures,
    /// Queue pairs that a front end may have, 1 to 128, as far as the protocol lets us say so: see
    /// [`Offer::queue_number`].
    pub queue_pairs: u16,
    /// The largest MTU that NET_SET_MTU may ask for, in bytes of payload of a frame.
    pub max_mtu: u16,
}

impl Offer {
    /// What GET_QUEUE_NUM answers. QEMU and DPDK take it for a number of pairs, Cloud Hypervisor and
    /// rust-vmm for one of rings. So it is the number of rings, and there are twice as many rings as
    /// that, up to the 256 that messages can name: whoever counts pairs may have twice as many of them,
    /// whoever counts rings may have 64 pairs at most.
    pub fn queue_number(&self) -> usize {
        (2 * usize::from(self.queue_pairs)).min(MAX_RINGS / 2)
    }

    /// Every virtio feature that a session, the rings and the virtio-net header know how to serve.
    /// Of the others, some change what a session would have to do without its knowing (LOG_ALL,
    /// ACCESS_PLATFORM), some the header (HASH_REPORT, RSC_EXT), and some are the virtual machine
    /// monitor's own affair (MAC, STATUS, CTRL_VQ).
    pub const FEATURES: Features = Features::VERSION_1
        .union(Features::PROTOCOL_FEATURES)
        .union(Features::ANY_LAYOUT)
        .union(Features::INDIRECT_DESC)
        .union(Features::EVENT_IDX)
        .union(Features::RING_PACKED)
        .union(Features::RING_RESET)
        .union(Features::IN_ORDER)
        .union(Features::ORDER_PLATFORM)
        .union(Features::MRG_RXBUF)
        .union(Features::MTU)
        .union(Features::MQ)
        .union(Features::GUEST_ANNOUNCE)
        .union(Features::CSUM)
        .union(Features::HOST_TSO4)
        .union(Features::HOST_TSO6)
        .union(Features::HOST_ECN)
        .union(Features::HOST_USO)
        .union(Features::GUEST_CSUM)
        .union(Features::GUEST_TSO4)
        .union(Features::GUEST_TSO6)
        .union(Features::GUEST_ECN)
        .union(Features::GUEST_USO4)
        .union(Features::GUEST_USO6);

    /// Every protocol feature that a session serves.
    pub const PROTOCOL: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::RARP)
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::NET_MTU)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS);

    /// Panics when a guest would be promised what it cannot have.
    #[track_caller]
    fn check(&self) {
        let features = self.features.without(Self::FEATURES);
        assert!(features.is_empty(), "the offer has features that nobody serves: {features}");
        let protocol = self.protocol.without(Self::PROTOCOL);
        assert!(protocol.is_empty(), "the offer has features that nobody serves: {protocol}");
        let (pairs, most) = (self.queue_pairs, MAX_RINGS as u16 / 2);
        assert!((1..=most).contains(&pairs), "the offer has {pairs} queue pairs, not 1 to {most}");
    }
}

/// What follows from one message. Give it back to [`Session::answer`].
#[must_use = "the peer waits for the answer"]
pub struct Step {
    /// The device has changed: the worker must have this one before the answer is sent.
    pub device: Option<Arc<Device>>,
    /// Something for the switch to do.
    pub event: Option<Event>,
    /// Something for the operator to know.
    pub notices: Vec<Notice>,
    reply: Pending,
    /// Kept so that the last reference to it is dropped here, after the worker let go of it.
    _retired: Option<Arc<Device>>,
}

/// Something for the switch to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest with this address has migrated to this port: send a RARP broadcast from it into the
    /// switch, so that everyone learns.
    Announce(MacAddress),
    /// The guest's MTU, in bytes of payload of a frame.
    Mtu(u16),
}

/// The answer as far as it is known before the worker has acted.
enum Pending {
    Nothing,
    Message(Message),
    /// GET_VRING_BASE: the index is the worker's to say.
    VringBase(usize),
}

/// How a request ended.
enum Outcome {
    Done,
    Refused,
    Reply(u64),
    VringBase(usize),
}

/// One connection's state.
pub struct Session {
    offer: Offer,
    /// Protocol features that the front end acknowledged.
    protocol: ProtocolFeatures,
    /// Virtio features that the front end acknowledged.
    acked: Features,
    /// The device status, as the front end keeps it here.
    status: u8,
    memory: Arc<GuestMemory>,
    rings: Vec<Ring>,
    /// What the worker was given last.
    device: Arc<Device>,
    event: Option<Event>,
    notices: Vec<Notice>,
}

impl Session {
    /// A new connection's session.
    ///
    /// # Panics
    ///
    /// The program offers what nobody serves: features outside of [`Offer::FEATURES`] or
    /// [`Offer::PROTOCOL`], or a number of queue pairs that is not from 1 to 128.
    #[track_caller]
    pub fn new(offer: Offer) -> Self {
        offer.check();
        let rings = 2 * offer.queue_number();
        let features = offer.features | Features::PROTOCOL_FEATURES;
        let offer = Offer { features, ..offer };
        let device = Arc::new(Device::detached(rings));
        Self {
            offer,
            protocol: ProtocolFeatures::NONE,
            acked: Features::NONE,
            status: 0,
            memory: device.memory.clone(),
            rings: (0..rings).map(|_| Ring::default()).collect(),
            device,
            event: None,
            notices: Vec::new(),
        }
    }

    /// The device as it is now.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Protocol features that the front end acknowledged.
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// Takes in one message. An error ends the connection.
    pub fn handle(&mut self, message: Message) -> Result<Step, Violation> {
        let Message { header, payload, descriptors } = message;
        if header.reply {
            return Err(Violation::Reply { number: header.request });
        }
        let outcome = match FrontEndRequest::from_number(header.request) {
            None => self.refuse(Notice::Unknown { number: header.request }),
            Some(request) => self.request(request, &payload, descriptors)?,
        };
        // Asked after the request: SET_PROTOCOL_FEATURES may itself be acknowledged.
        let asked = header.need_reply && self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let reply = |value| {
            let payload = Payload::U64(value).encode();
            Pending::Message(Message::reply_to(header.request, payload))
        };
        let reply = match outcome {
            Outcome::Reply(value) => reply(value),
            Outcome::VringBase(ring) => Pending::VringBase(ring),
            Outcome::Done if asked => reply(0),
            Outcome::Refused if asked => reply(1),
            Outcome::Done | Outcome::Refused => Pending::Nothing,
        };
        let (device, retired) = self.settle();
        Ok(Step {
            device,
            event: self.event.take(),
            notices: std::mem::take(&mut self.notices),
            reply,
            _retired: retired,
        })
    }

    /// The worker let go of this ring at `position`.
    pub fn stopped(&mut self, ring: usize, position: u32) {
        if let Some(ring) = self.rings.get_mut(ring) {
            ring.stopped(position);
        }
    }

    /// The answer to a message, to be sent once the worker has acted on [`Step::device`].
    pub fn answer(&self, step: Step) -> Option<Message> {
        match step.reply {
            Pending::Nothing => None,
            Pending::Message(message) => Some(message),
            Pending::VringBase(index) => {
                let next = self.rings.get(index).map_or(0, |ring| ring.next(self.acked));
                let state = VringState { index: index as u32, num: next };
                let payload = Payload::VringState(state).encode();
                Some(Message::reply_to(FrontEndRequest::GetVringBase.number(), payload))
            }
        }
    }

    /// A request that is known: checks its form, then acts.
    fn request(
        &mut self,
        request: FrontEndRequest,
        payload: &[u8],
        descriptors: Vec<Descriptor>,
    ) -> Result<Outcome, Violation> {
        let message = request.message();
        let open = match message.gate {
            Gate::Open => true,
            Gate::Offered(features) => self.offer.features.contains(features),
            Gate::Protocol(features) => self.protocol.contains(features),
        };
        if !open {
            return match message.answer {
                // Its sender waits for a reply that we do not have.
                Answer::Reply(_) => Err(Violation::NotNegotiated { request }),
                Answer::Acknowledgement => Ok(self.refuse(Notice::NotNegotiated { request })),
            };
        }
        if let Err(fault) = message.check(payload.len(), descriptors.len()) {
            return Err(Violation::Form { request, fault });
        }
        let Some(payload) = Payload::decode(message.payload, payload) else {
            return Err(Violation::Payload { request });
        };
        self.dispatch(request, payload, descriptors)
    }

    fn dispatch(
        &mut self,
        request: FrontEndRequest,
        payload: Payload,
        descriptors: Vec<Descriptor>,
    ) -> Result<Outcome, Violation> {
        use FrontEndRequest as R;
        match (request, payload) {
            (R::GetFeatures, _) => return Ok(Outcome::Reply(self.offer.features.0)),
            (R::SetFeatures, Payload::U64(bits)) => self.set_features(Features(bits))?,
            (R::SetOwner, _) => {}
            (R::ResetOwner, _) => self.rings.iter_mut().for_each(Ring::stop),
            (R::GetProtocolFeatures, _) => return Ok(Outcome::Reply(self.offer.protocol.0)),
            (R::SetProtocolFeatures, Payload::U64(bits)) => {
                self.set_protocol_features(ProtocolFeatures(bits))?;
            }
            (R::GetQueueNum, _) => return Ok(Outcome::Reply(self.offer.queue_number() as u64)),

            (R::GetMaxMemSlots, _) => return Ok(Outcome::Reply(MAX_REGIONS as u64)),
            (R::SetMemTable, Payload::MemoryTable(regions)) => {
                self.set_memory_table(&regions, descriptors)?;
            }
            (R::AddMemReg, Payload::SingleRegion(region)) => {
                self.add_memory_region(&region, descriptors)?;
            }
            (R::RemMemReg, Payload::SingleRegion(region)) => {
                // Some front ends pass the file once more.
                self.remove_memory_region(&region)?;
            }

            (R::SetVringNum, Payload::VringState(state)) => self.set_vring_num(state)?,
            (R::SetVringAddr, Payload::VringAddress(address)) => self.set_vring_addr(address)?,
            (R::SetVringBase, Payload::VringState(state)) => self.set_vring_base(state)?,
            (R::GetVringBase, Payload::VringState(state)) => {
                self.ring(request, state.index)?.stop();
                return Ok(Outcome::VringBase(state.index as usize));
            }
            (R::SetVringKick, Payload::RingDescriptor(which)) => {
                let kick = self.ring_descriptor(request, which, descriptors)?;
                self.ring(request, which.ring.into())?.start(kick);
                self.explain_if_stuck(which.ring.into())?;
            }
            (R::SetVringCall, Payload::RingDescriptor(which)) => {
                let call = self.ring_descriptor(request, which, descriptors)?;
                self.ring(request, which.ring.into())?.call = call;
            }
            // Nothing is ever signalled on it; checked all the same, and closed.
            (R::SetVringErr, Payload::RingDescriptor(which)) => {
                self.ring_descriptor(request, which, descriptors)?;
            }
            (R::SetVringEnable, Payload::VringState(state)) => self.set_vring_enable(state)?,

            (R::SetStatus, Payload::U64(status)) => self.set_status(status as u8)?,
            (R::GetStatus, _) => return Ok(Outcome::Reply(self.status.into())),
            (R::ResetDevice, _) => self.reset(),
            (R::NetSetMtu, Payload::U64(mtu)) => return Ok(self.set_mtu(mtu)),
            (R::SendRarp, Payload::U64(value)) => return Ok(self.send_rarp(value)),

            _ => return Ok(self.refuse(Notice::NotServed { request })),
        }
        Ok(Outcome::Done)
    }

    fn refuse(&mut self, notice: Notice) -> Outcome {
        self.notices.push(notice);
        Outcome::Refused
    }

    fn set_features(&mut self, features: Features) -> Result<(), Violation> {
        let unoffered = features.without(self.offer.features);
        if !unoffered.is_empty() {
            return Err(Violation::UnofferedFeatures { unoffered });
        }
        // QEMU repeats them for every queue pair, with the same value.
        if features != self.acked && self.rings.iter().any(Ring::is_running) {
            return Err(Violation::FeaturesWhileRunning { from: self.acked, to: features });
        }
        self.acked = features;
        Ok(())
    }

    fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<(), Violation> {
        let unoffered = features.without(self.offer.protocol);
        if !unoffered.is_empty() {
            return Err(Violation::UnofferedProtocolFeatures { unoffered });
        }
        self.protocol = features;
        Ok(())
    }

    fn set_memory_table(
        &mut self,
        regions: &[MemoryRegion],
        descriptors: Vec<Descriptor>,
    ) -> Result<(), Violation> {
        let descriptors = memory_files(FrontEndRequest::SetMemTable, descriptors)?;
        if regions.is_empty() {
            return Err(Violation::NotShared);
        }
        if regions.len() != descriptors.len() {
            let (regions, descriptors) = (regions.len(), descriptors.len());
            return Err(Violation::RegionDescriptors { regions, descriptors });
        }
        let requests = regions.iter().zip(descriptors).map(|(region, file)| request(region, file));
        let memory = GuestMemory::map(requests)
            .map_err(|cause| Violation::Memory { request: FrontEndRequest::SetMemTable, cause })?;
        self.replace_memory(memory);
        Ok(())
    }

    fn add_memory_region(
        &mut self,
        region: &MemoryRegion,
        descriptors: Vec<Descriptor>,
    ) -> Result<(), Violation> {
        for file in memory_files(FrontEndRequest::AddMemReg, descriptors)? {
            let request = request(region, file);
            // QEMU before version 8 says it once for each queue pair.
            if self.memory.has(&request) {
                continue;
            }
            let memory = self.memory.with(request).map_err(|cause| Violation::Memory {
                request: FrontEndRequest::AddMemReg,
                cause,
            })?;
            self.replace_memory(memory);
        }
        Ok(())
    }

    fn remove_memory_region(&mut self, region: &MemoryRegion) -> Result<(), Violation> {
        let (guest, front_end) =
            (GuestAddress(region.guest_address), FrontEndAddress(region.user_address));
        // For each queue pair, too.
        if self.memory.is_free(guest, region.size) {
            self.notices.push(Notice::NoRegion { guest });
            return Ok(());
        }
        let memory = self
            .memory
            .without(guest, front_end, region.size)
            .map_err(|cause| Violation::Memory { request: FrontEndRequest::RemMemReg, cause })?;
        self.replace_memory(memory);
        Ok(())
    }

    /// Rings that lie in the new memory go on where they are; the others stop.
    fn replace_memory(&mut self, memory: GuestMemory) {
        self.memory = Arc::new(memory);
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if let Err(fault) = ring.move_to(&self.memory, self.acked) {
                self.notices.push(Notice::RingLost { ring: index, fault });
            }
        }
    }

    fn ring(&mut self, request: FrontEndRequest, index: u32) -> Result<&mut Ring, Violation> {
        let rings = self.rings.len();
        // The whole u32 is compared: cut to fewer bits, 256 would be ring 0.
        self.rings.get_mut(index as usize).ok_or(Violation::RingIndex { request, index, rings })
    }

    fn set_vring_num(&mut self, state: VringState) -> Result<(), Violation> {
        let VringState { index, num: size } = state;
        let ring = self.ring(FrontEndRequest::SetVringNum, index)?;
        if size == 0 || size > u32::from(wire::split::MAX_SIZE) {
            return Err(Violation::RingSize { ring: index, size });
        }
        ring.set_size(size);
        Ok(())
    }

    fn set_vring_addr(&mut self, address: VringAddress) -> Result<(), Violation> {
        // Flags and log address concern the dirty log, which is not offered.
        self.ring(FrontEndRequest::SetVringAddr, address.index)?.set_addresses(Addresses {
            descriptors: FrontEndAddress(address.descriptors),
            available: FrontEndAddress(address.available),
            used: FrontEndAddress(address.used),
        });
        Ok(())
    }

    fn set_vring_base(&mut self, state: VringState) -> Result<(), Violation> {
        let VringState { index, num: base } = state;
        self.ring(FrontEndRequest::SetVringBase, index)?.set_base(base);
        Ok(())
    }

    fn set_vring_enable(&mut self, state: VringState) -> Result<(), Violation> {
        let VringState { index, num: value } = state;
        let ring = self.ring(FrontEndRequest::SetVringEnable, index)?;
        ring.enabled = match value {
            0 => Some(false),
            1 => Some(true),
            _ => return Err(Violation::RingEnable { ring: index, value }),
        };
        self.explain_if_stuck(index as usize)
    }

    /// The one descriptor of a kick, call or error message, if there is one.
    fn ring_descriptor(
        &mut self,
        request: FrontEndRequest,
        which: RingDescriptor,
        descriptors: Vec<Descriptor>,
    ) -> Result<Option<Arc<OwnedFd>>, Violation> {
        let ring = u32::from(which.ring);
        self.ring(request, ring)?;
        let descriptor = descriptors.into_iter().next();
        if descriptor.is_some() != which.attached {
            return Err(Violation::RingDescriptor { request, ring, attached: which.attached });
        }
        descriptor.map(|descriptor| ring::event_descriptor(request, ring, descriptor)).transpose()
    }

    fn set_status(&mut self, status: u8) -> Result<(), Violation> {
        self.status = status;
        if status == 0 {
            self.reset();
        }
        if status & DRIVER_OK != 0 {
            for ring in 0..self.rings.len() {
                self.explain_if_stuck(ring)?;
            }
        }
        Ok(())
    }

    /// Back to the state before the driver: what belongs to the connection (memory, call
    /// descriptors, protocol features) stays, because front ends do not send it again.
    fn reset(&mut self) {
        self.status = 0;
        self.acked = Features::NONE;
        self.rings.iter_mut().for_each(Ring::reset);
    }

    fn set_mtu(&mut self, mtu: u64) -> Outcome {
        match u16::try_from(mtu) {
            Ok(value) if mtu >= MIN_MTU && value <= self.offer.max_mtu => {
                self.event = Some(Event::Mtu(value));
                Outcome::Done
            }
            _ => self.refuse(Notice::Mtu { mtu, max: self.offer.max_mtu }),
        }
    }

    fn send_rarp(&mut self, value: u64) -> Outcome {
        // The address is in the first six bytes of the payload, as they lie in memory.
        let [a, b, c, d, e, f, ..] = value.to_ne_bytes();
        let address = MacAddress([a, b, c, d, e, f]);
        if address.is_multicast() {
            return self.refuse(Notice::Announcement { address });
        }
        self.event = Some(Event::Announce(address));
        Outcome::Done
    }

    /// A ring that was told everything, was told to go, and cannot: now is the time to say why.
    /// Earlier, the missing part might still have come.
    fn explain_if_stuck(&mut self, index: usize) -> Result<(), Violation> {
        let automatic = !self.acked.contains(Features::PROTOCOL_FEATURES);
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        if !ring.enabled.unwrap_or(automatic) {
            return Ok(());
        }
        match ring.run(&self.memory, self.acked) {
            Ok(()) => Ok(()),
            Err(_) if self.memory.region_count() == 0 => Err(Violation::NotShared),
            Err(fault) => Err(Violation::Ring { ring: index, fault }),
        }
    }

    /// Starts every ring that can run, and compares the outcome with what the worker has: the new
    /// device and the former one, if they differ.
    fn settle(&mut self) -> (Option<Arc<Device>>, Option<Arc<Device>>) {
        let automatic = !self.acked.contains(Features::PROTOCOL_FEATURES);
        for ring in &mut self.rings {
            // A ring that cannot run yet is not a fault: the rest may follow.
            let _ = ring.run(&self.memory, self.acked);
        }
        let features = self.acked.without(Features::PROTOCOL_FEATURES);
        let device = Device {
            memory: self.memory.clone(),
            // Offloads without their prerequisite have no effect.
            features: features.without(features.missing_dependencies()),
            rings: self.rings.iter().map(|ring| ring.setup(automatic)).collect(),
        };
        if device.is_same(&self.device) {
            return (None, None);
        }
        let device = Arc::new(device);
        let retired = std::mem::replace(&mut self.device, device.clone());
        (Some(device), Some(retired))
    }
}

/// These descriptors, if all of them are memory. Others are not even mapped.
fn memory_files(
    request: FrontEndRequest,
    descriptors: Vec<Descriptor>,
) -> Result<Vec<OwnedFd>, Violation> {
    if descriptors.iter().all(|file| descriptor::is_memory(file.as_fd())) {
        return Ok(descriptors.into_iter().map(Descriptor::into_owned).collect());
    }
    Err(Violation::Memory { request, cause: MapError::NotMemory })
}

fn request(region: &MemoryRegion, file: OwnedFd) -> RegionRequest {
    RegionRequest {
        guest: GuestAddress(region.guest_address),
        size: region.size,
        front_end: FrontEndAddress(region.user_address),
        offset: region.mmap_offset,
        file,
    }
}

#[cfg(test)]
mod tests;
