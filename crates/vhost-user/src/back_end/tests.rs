//! A session without a socket: messages go in, a stand-in for the worker takes the devices.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use memory::SharedMemory;
use rustix::event::{EventfdFlags, eventfd};
use wire::vhost_user::{
    FrontEndRequest as R, MAX_TABLE_REGIONS, MemoryRegion, Payload, ProtocolFeatures,
    RingDescriptor, Shape, VringAddress, VringState,
};
use wire::virtio::Features;

use super::*;
use crate::connection::Message;

mod conversations;
mod held;
mod hostile;
mod rings;

pub(crate) const FEATURES: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::CSUM)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4);
/// What a guest acknowledges, and its virtual machine monitor with it.
const ACKED: Features = FEATURES.union(Features::PROTOCOL_FEATURES);

pub(crate) const OFFER: Offer =
    Offer { features: FEATURES, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 9000 };

/// With packed rings.
const PACKED_OFFER: Offer =
    Offer { features: OFFER.features.union(Features::RING_PACKED), ..OFFER };

/// The guest's memory as the front end sees it, and its size.
const USER: u64 = 0x7f00_0000_0000;
const SIZE: u64 = 0x10_0000;
const RING_SIZE: u16 = 256;

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// One front end, its memory, the session that it talks to, and what the worker would have.
struct Harness {
    session: Session,
    memory: SharedMemory,
    device: Arc<Device>,
    /// The index at which the stand-in for the worker leaves every ring.
    position: u32,
    notices: Vec<Notice>,
    event: Option<Event>,
}

/// Memory that a driver has zeroed, as drivers do with their rings.
fn driver_memory(size: u64) -> SharedMemory {
    let memory = SharedMemory::create("session test", size).unwrap();
    rustix::io::pwrite(&memory, &vec![0; size as usize], 0).unwrap();
    memory
}

impl Harness {
    fn new() -> Self {
        Self::with(OFFER)
    }

    fn with(offer: Offer) -> Self {
        let session = Session::new(offer);
        let device = session.device().clone();
        Self {
            session,
            memory: driver_memory(SIZE),
            device,
            position: 0,
            notices: Vec::new(),
            event: None,
        }
    }

    /// A session after the negotiation.
    fn negotiated() -> Self {
        let mut harness = Self::new();
        harness.tell(R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), vec![]);
        harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
        harness
    }

    /// A session with memory and two running, enabled rings.
    fn running() -> Self {
        let mut harness = Self::negotiated();
        harness.share();
        for ring in 0..2 {
            harness.set_up(ring);
            harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
        }
        assert!(harness.runs(0) && harness.runs(1));
        harness
    }

    fn handle(&mut self, message: Message) -> Result<Option<Message>, Violation> {
        let step = self.session.handle(message)?;
        if let Some(device) = &step.device {
            for (index, ring) in self.device.rings.iter().enumerate() {
                let now = device.rings[index].as_ref();
                if ring.as_ref().is_some_and(|ring| now.is_none_or(|now| now.start != ring.start)) {
                    self.session.stopped(index, self.position);
                }
            }
            self.device = device.clone();
        }
        self.notices.extend(&step.notices);
        self.event = step.event.or(self.event);
        Ok(self.session.answer(step))
    }

    /// A request, with the request for an acknowledgement where there can be one.
    fn try_tell(
        &mut self,
        request: R,
        payload: Payload,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<u64>, Violation> {
        let bytes = payload.encode();
        let reply = self.handle(Message::request(request.number(), true, bytes, descriptors))?;
        Ok(reply.map(|reply| {
            assert_eq!(reply.header.request, request.number());
            assert!(reply.header.reply && !reply.header.need_reply);
            assert!(reply.descriptors.is_empty());
            match Payload::decode(Shape::U64, &reply.payload) {
                Some(Payload::U64(value)) => value,
                other => panic!("{request}: {other:?}"),
            }
        }))
    }

    fn tell(&mut self, request: R, payload: Payload, descriptors: Vec<OwnedFd>) {
        let reply = self.try_tell(request, payload, descriptors).unwrap();
        assert!(matches!(reply, None | Some(0)), "{request}: {reply:?}");
    }

    fn refused(&mut self, request: R, payload: Payload, descriptors: Vec<OwnedFd>) -> Violation {
        match self.try_tell(request, payload, descriptors) {
            Ok(reply) => panic!("{request} was taken: {reply:?}"),
            Err(violation) => {
                // One line for the operator.
                assert!(!violation.to_string().contains('\n'), "{violation}");
                violation
            }
        }
    }

    fn file(&self) -> OwnedFd {
        self.memory.as_fd().try_clone_to_owned().unwrap()
    }

    fn share(&mut self) {
        let file = self.file();
        self.tell(R::SetMemTable, Payload::MemoryTable(vec![region()]), vec![file]);
    }

    /// Everything but the enabling, in QEMU's order.
    fn set_up(&mut self, ring: u32) {
        self.tell(R::SetVringNum, state(ring, RING_SIZE.into()), vec![]);
        self.tell(R::SetVringBase, state(ring, 0), vec![]);
        self.tell(R::SetVringAddr, addresses(ring), vec![]);
        self.tell(R::SetVringKick, attached(ring), vec![event()]);
        self.tell(R::SetVringCall, attached(ring), vec![event()]);
    }

    fn base(&mut self, ring: u32) -> u32 {
        let message =
            Message::request(R::GetVringBase.number(), false, state(ring, 0).encode(), vec![]);
        let reply = self.handle(message).unwrap().unwrap();
        match Payload::decode(Shape::VringState, &reply.payload) {
            Some(Payload::VringState(VringState { index, num })) if index == ring => num,
            other => panic!("{other:?}"),
        }
    }

    fn setup(&self, ring: usize) -> &RingSetup {
        self.device.rings[ring].as_ref().expect("the ring does not run")
    }

    fn runs(&self, ring: usize) -> bool {
        self.device.rings[ring].is_some()
    }

    fn enabled(&self, ring: usize) -> bool {
        self.setup(ring).enabled
    }

    /// Writes a ring's used index, as a back end before us would have.
    fn set_used_index(&self, ring: u32, index: u16) {
        let Payload::VringAddress(address) = addresses(ring) else { unreachable!() };
        let offset = address.used - USER + wire::split::RING_INDEX;
        rustix::io::pwrite(&self.memory, &index.to_le_bytes(), offset).unwrap();
    }
}

fn region() -> MemoryRegion {
    MemoryRegion { guest_address: 0, size: SIZE, user_address: USER, mmap_offset: 0 }
}

fn state(index: u32, num: u32) -> Payload {
    Payload::VringState(VringState { index, num })
}

fn addresses(index: u32) -> Payload {
    let at = USER + 0x10000 * u64::from(index);
    Payload::VringAddress(VringAddress {
        index,
        flags: 0,
        descriptors: at,
        used: at + 0x3000,
        available: at + 0x2000,
        log: 0,
    })
}

/// Where a ring of any size has room, and no other ring.
fn large_addresses(index: u32) -> Payload {
    Payload::VringAddress(VringAddress {
        index,
        flags: 0,
        descriptors: USER,
        used: USER + 0xA_0000,
        available: USER + 0x8_0000,
        log: 0,
    })
}

fn attached(ring: u32) -> Payload {
    Payload::RingDescriptor(RingDescriptor { ring: ring as u8, attached: true })
}

fn unattached(ring: u32) -> Payload {
    Payload::RingDescriptor(RingDescriptor { ring: ring as u8, attached: false })
}
