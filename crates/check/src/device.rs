//! A device that was brought up on a connection, with its driver.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use wire::vhost_user::{
    FrontEndRequest, Payload, ProtocolFeatures, RingDescriptor, Shape, VringAddress, VringState,
};
use wire::virtio::Features;

use crate::memory::Memory;
use crate::peer::Peer;
use crate::ring::{Buffer, Ring, Used, WRITE};
use crate::verdict::{Check, ensure, fail, skip};

/// The receive ring of the first queue pair.
pub const RX: u32 = 0;
/// The transmit ring of the first queue pair.
pub const TX: u32 = 1;

/// Bytes of a receive buffer, unless a case wants others.
pub const BUFFER: u32 = 2048;

/// How long a back end that shows nothing may look at something wrong.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks at a ring.
const MOMENT: Duration = Duration::from_millis(1);

/// How a device is brought up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Virtio features: all of them must be offered, or the case is skipped.
    pub features: Features,
    /// Protocol features: as far as they are offered.
    pub protocol: ProtocolFeatures,
    /// Entries in each ring.
    pub size: u16,
    /// Queue pairs.
    pub pairs: u16,
    /// Whether PROTOCOL_FEATURES is acknowledged.
    pub transport: bool,
    /// Where the memory's regions begin.
    pub regions: Vec<u64>,
    /// Where the memory begins in its file.
    pub offset: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: Features::VERSION_1,
            protocol: ProtocolFeatures::REPLY_ACK | ProtocolFeatures::MQ,
            size: 64,
            pairs: 1,
            transport: true,
            regions: vec![0],
            offset: 0,
        }
    }
}

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// The pair that it came on.
    pub pair: u32,
    /// The virtio-net header; of a legacy one, the last two bytes are zero.
    pub header: [u8; 12],
    /// The frame.
    pub frame: Vec<u8>,
    /// The chains it came in.
    pub used: Vec<Used>,
}

/// A device, and its driver.
pub struct Device {
    /// The connection.
    pub peer: Peer,
    /// Its memory.
    pub memory: Memory,
    /// Its rings, by number.
    pub rings: Vec<Ring>,
    /// What was acknowledged, without PROTOCOL_FEATURES.
    pub features: Features,
    /// PROTOCOL_FEATURES was acknowledged.
    transport: bool,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    limit: Duration,
}

/// An eventfd.
pub fn event(initial: u32) -> Check<OwnedFd> {
    eventfd(initial, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| fail(format!("no eventfd: {error}")))
}

/// Whether an eventfd was signalled within `limit`; takes the signal.
pub fn signalled(event: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let mut polled = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
    let _ = poll(&mut polled, Some(&limit));
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

impl Device {
    /// Negotiates and shares memory; no ring is set up yet.
    pub fn prepare(peer: Peer, setup: &Setup, limit: Duration) -> Check<Self> {
        let device = Self::negotiate(peer, setup, limit)?;
        device.share_memory()?;
        Ok(device)
    }

    /// As [`Self::prepare`], but shares no memory yet.
    pub fn negotiate(peer: Peer, setup: &Setup, limit: Duration) -> Check<Self> {
        let device = Self::meet(peer, setup, limit)?;
        device.set_features()?;
        Ok(device)
    }

    /// As [`Self::negotiate`], but does not say yet which features it has chosen.
    pub fn meet(mut peer: Peer, setup: &Setup, limit: Duration) -> Check<Self> {
        peer.hello(setup.protocol)?;
        let missing = setup.features.without(peer.offered);
        if !missing.is_empty() {
            return Err(skip(format!("{missing} is not offered")));
        }
        if setup.pairs > 1 {
            peer.needs(ProtocolFeatures::MQ)?;
            let pairs = peer.ask_u64(FrontEndRequest::GetQueueNum)?;
            if pairs < setup.pairs.into() {
                return Err(skip(format!("GET_QUEUE_NUM says {pairs}")));
            }
        }
        let transport = setup.transport && peer.offered.contains(Features::PROTOCOL_FEATURES);
        let memory = Memory::new(&setup.regions, setup.offset)?;
        let count = 2 * u32::from(setup.pairs);
        let rings = (0..count).map(|index| Ring::new(&memory, index, setup.size, setup.features));
        let rings = rings.collect();
        let events = || (0..count).map(|_| event(0)).collect::<Check<Vec<_>>>();
        let (kicks, calls) = (events()?, events()?);
        Ok(Self { peer, memory, rings, features: setup.features, transport, kicks, calls, limit })
    }

    /// SET_FEATURES with what was chosen.
    pub fn set_features(&self) -> Check {
        let transport = if self.transport { Features::PROTOCOL_FEATURES } else { Features::NONE };
        let payload = Payload::U64((self.features | transport).0);
        self.peer.tell(FrontEndRequest::SetFeatures, &payload, &[])
    }

    /// As [`Self::prepare`], and starts and enables every ring.
    pub fn bring_up(peer: Peer, setup: &Setup, limit: Duration) -> Check<Self> {
        let device = Self::prepare(peer, setup, limit)?;
        device.start()?;
        device.open()?;
        Ok(device)
    }

    /// SET_MEM_TABLE with all regions.
    pub fn share_memory(&self) -> Check {
        let table = self.memory.regions().to_vec();
        let files = vec![self.memory.file(); table.len()];
        self.peer.tell(FrontEndRequest::SetMemTable, &Payload::MemoryTable(table), &files)
    }

    /// Sets every ring up and starts it.
    pub fn start(&self) -> Check {
        (0..self.rings.len() as u32).try_for_each(|ring| self.start_ring(ring))
    }

    /// Sets a ring up where its driver is, and starts it.
    pub fn start_ring(&self, index: u32) -> Check {
        self.set_num(index, self.rings[index as usize].size.into())?;
        self.set_base(index, self.rings[index as usize].base())?;
        self.set_addresses(index)?;
        self.set_call(index, Some(self.call(index)))?;
        self.set_kick(index, Some(self.kick_descriptor(index)))
    }

    /// As [`Self::start_ring`], behind the last chain that was used, as QEMU does when a back end has
    /// come back: what is outstanding is still to be used.
    pub fn start_ring_at_used(&self, index: u32) -> Check {
        self.set_num(index, self.rings[index as usize].size.into())?;
        let used = self.rings[index as usize].used_index(&self.memory);
        self.set_base(index, used.into())?;
        self.set_addresses(index)?;
        self.set_call(index, Some(self.call(index)))?;
        self.set_kick(index, Some(self.kick_descriptor(index)))
    }

    /// SET_VRING_NUM.
    pub fn set_num(&self, index: u32, num: u32) -> Check {
        let payload = Payload::VringState(VringState { index, num });
        self.peer.tell(FrontEndRequest::SetVringNum, &payload, &[])
    }

    /// SET_VRING_BASE.
    pub fn set_base(&self, index: u32, num: u32) -> Check {
        let payload = Payload::VringState(VringState { index, num });
        self.peer.tell(FrontEndRequest::SetVringBase, &payload, &[])
    }

    /// Where the front end sees a ring's areas, as SET_VRING_ADDR says it.
    pub fn addresses(&self, index: u32) -> VringAddress {
        let [descriptors, driver, device] = self.rings[index as usize].areas;
        VringAddress {
            index,
            flags: 0,
            descriptors: self.memory.front_end(descriptors),
            used: self.memory.front_end(device),
            available: self.memory.front_end(driver),
            log: 0,
        }
    }

    /// SET_VRING_ADDR.
    pub fn set_addresses(&self, index: u32) -> Check {
        let payload = Payload::VringAddress(self.addresses(index));
        self.peer.tell(FrontEndRequest::SetVringAddr, &payload, &[])
    }

    /// SET_VRING_CALL.
    pub fn set_call(&self, index: u32, call: Option<BorrowedFd<'_>>) -> Check {
        self.set_descriptor(FrontEndRequest::SetVringCall, index, call)
    }

    /// SET_VRING_KICK.
    pub fn set_kick(&self, index: u32, kick: Option<BorrowedFd<'_>>) -> Check {
        self.set_descriptor(FrontEndRequest::SetVringKick, index, kick)
    }

    /// SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR.
    pub fn set_descriptor(
        &self,
        request: FrontEndRequest,
        index: u32,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Check {
        let attached = descriptor.is_some();
        let payload = Payload::RingDescriptor(RingDescriptor { ring: index as u8, attached });
        self.peer.tell(request, &payload, descriptor.as_slice())
    }

    /// Enables every ring, as [`Self::open_ring`] does.
    pub fn open(&self) -> Check {
        (0..self.rings.len() as u32).try_for_each(|ring| self.open_ring(ring))
    }

    /// Enables a ring. Without PROTOCOL_FEATURES it is enabled as soon as it is started.
    pub fn open_ring(&self, index: u32) -> Check {
        if self.transport { self.enable(index, true) } else { Ok(()) }
    }

    /// SET_VRING_ENABLE, which the back end acts on before this returns. Skips the case where
    /// PROTOCOL_FEATURES was not acknowledged: the message is not allowed then.
    pub fn enable(&self, index: u32, enabled: bool) -> Check {
        if !self.transport {
            return Err(skip("PROTOCOL_FEATURES is not offered"));
        }
        let payload = Payload::VringState(VringState { index, num: enabled.into() });
        self.peer.tell(FrontEndRequest::SetVringEnable, &payload, &[])
    }

    /// How long one answer, or one frame, may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// GET_VRING_BASE: stops a ring. Returns where it stands.
    pub fn stop_ring(&self, index: u32) -> Check<u32> {
        let request = FrontEndRequest::GetVringBase;
        let payload = Payload::VringState(VringState { index, num: 0 });
        match self.peer.ask(request, &payload, Shape::VringState)? {
            Payload::VringState(state) if state.index == index => Ok(state.num),
            other => Err(fail(format!("GET_VRING_BASE for ring {index} is answered {other:?}"))),
        }
    }

    /// A ring's call descriptor.
    pub fn call(&self, index: u32) -> BorrowedFd<'_> {
        self.calls[index as usize].as_fd()
    }

    /// A ring's kick descriptor.
    pub fn kick_descriptor(&self, index: u32) -> BorrowedFd<'_> {
        self.kicks[index as usize].as_fd()
    }

    /// Kicks a ring.
    pub fn kick(&self, index: u32) {
        // The only error is a full counter, and then the device was kicked.
        let _ = rustix::io::write(&self.kicks[index as usize], &1u64.to_ne_bytes());
    }

    /// Whether the back end calls within `limit`.
    pub fn called(&self, index: u32, limit: Duration) -> bool {
        signalled(self.call(index), limit)
    }

    /// Offers a chain on a ring and kicks.
    pub fn offer(&mut self, index: u32, buffers: &[Buffer]) -> Check<u16> {
        let id = self.rings[index as usize].offer(&self.memory, buffers)?;
        self.kick(index);
        Ok(id)
    }

    /// The next chain that was used on a ring.
    pub fn reap(&mut self, index: u32) -> Check<Option<Used>> {
        self.rings[index as usize].reap(&self.memory)
    }

    /// Waits for the next chain that is used on a ring.
    pub fn reap_soon(&mut self, index: u32) -> Check<Used> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(used) = self.reap(index)? {
                return Ok(used);
            }
            if Instant::now() > deadline {
                return Err(fail(format!("ring {index}: no buffer was used in {:?}", self.limit)));
            }
            self.pause(index);
        }
    }

    /// Waits until all chains of a ring were used.
    pub fn drain(&mut self, index: u32) -> Check {
        while self.rings[index as usize].outstanding() > 0 {
            self.reap_soon(index)?;
        }
        Ok(())
    }

    /// Waits for a moment, or until the back end calls. It need not have been asked to.
    fn pause(&self, index: u32) {
        signalled(self.call(index), MOMENT);
    }

    /// Lets the back end look at something wrong that was made available and kicked on a ring: until
    /// it has used it, taken the kick, said something or closed the connection, and a message was
    /// answered after that. It need do none of the first, as it may pass over what is wrong without a
    /// word, and may leave kicks uncounted; so this waits no longer than [`LOOK`] for it.
    pub fn look(&self, index: u32) {
        let kick = self.kick_descriptor(index);
        let is_kicked = || {
            let mut polled = [PollFd::from_borrowed_fd(kick, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
        };
        self.look_while(index, is_kicked);
    }

    /// As [`Self::look`], at something wrong that is only seen when a frame is to be delivered: that the
    /// kick was taken says nothing.
    pub fn look_beyond_kick(&self, index: u32) {
        self.look_while(index, || true);
    }

    fn look_while(&self, index: u32, unseen: impl Fn() -> bool) {
        let deadline = Instant::now() + LOOK;
        while Instant::now() < deadline
            && unseen()
            && !self.rings[index as usize].has_used(&self.memory)
            && !self.peer.readable(Duration::ZERO)
        {
            self.pause(index);
        }
        // It is the next case's affair, or the runner's, when there is no answer.
        let _ = self.peer.barrier();
    }

    /// Bytes of the header.
    pub fn header_len(&self) -> usize {
        let modern = Features::VERSION_1 | Features::MRG_RXBUF;
        if self.features.intersects(modern) { 12 } else { 10 }
    }

    /// A writable buffer of `len` bytes, filled with a pattern that no frame has.
    pub fn writable(&mut self, len: u32) -> Buffer {
        let address = self.memory.allocate(len.into());
        self.memory.set_bytes(address, &vec![0xa5; len as usize]);
        Buffer { address, len, flags: WRITE }
    }

    /// A buffer for the back end to read.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let address = self.memory.allocate(bytes.len() as u64);
        self.memory.set_bytes(address, bytes);
        Buffer { address, len: bytes.len() as u32, flags: 0 }
    }

    /// Posts receive buffers of `len` bytes on the receive ring of a pair.
    pub fn post(&mut self, pair: u32, count: u16, len: u32) -> Check {
        for _ in 0..count {
            let buffer = self.writable(len);
            self.rings[2 * pair as usize].offer(&self.memory, &[buffer])?;
        }
        self.kick(2 * pair);
        Ok(())
    }

    /// Sends a frame, with this header, in one buffer, on a pair's transmit ring.
    pub fn transmit(&mut self, pair: u32, header: [u8; 12], frame: &[u8]) -> Check<u16> {
        let header = &header[..self.header_len()];
        let buffer = self.readable(&[header, frame].concat());
        self.offer(2 * pair + 1, &[buffer])
    }

    /// The next frame that came on a pair's receive ring, if there is one.
    pub fn receive(&mut self, pair: u32) -> Check<Option<Received>> {
        let index = 2 * pair;
        let Some(first) = self.reap(index)? else { return Ok(None) };
        let mut bytes = self.written(&first);
        let len = self.header_len();
        ensure(
            bytes.len() >= len,
            format!("a receive buffer was used with {} bytes, less than a header", bytes.len()),
        )?;
        let mut header = [0; 12];
        header[..len].copy_from_slice(&bytes[..len]);
        let count = if self.features.contains(Features::MRG_RXBUF) {
            u16::from_le_bytes([header[10], header[11]])
        } else {
            1
        };
        ensure(count > 0, "num_buffers of a received frame is 0")?;
        let mut used = vec![first];
        for number in 1..count {
            let next = self.reap(index)?.ok_or_else(|| {
                fail(format!("a frame in {count} buffers was visible when {number} were used"))
            })?;
            bytes.extend(self.written(&next));
            used.push(next);
        }
        Ok(Some(Received { pair, header, frame: bytes.split_off(len), used }))
    }

    /// The bytes that the back end says it has written to a chain.
    fn written(&self, used: &Used) -> Vec<u8> {
        let mut left = used.written;
        let mut bytes = Vec::new();
        for buffer in used.buffers.iter().filter(|buffer| buffer.flags & WRITE != 0) {
            let len = left.min(buffer.len);
            bytes.extend(self.memory.bytes(buffer.address, len as usize));
            left -= len;
        }
        bytes
    }

    /// The next frame that came on any pair.
    pub fn receive_any(&mut self) -> Check<Option<Received>> {
        for pair in 0..self.rings.len() as u32 / 2 {
            if let Some(received) = self.receive(pair)? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    /// Waits for a frame for which `wanted` holds, on any pair; others are passed over.
    pub fn expect(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Check<Received> {
        self.expect_within(wanted, self.limit)
    }

    /// As [`Self::expect`], but not longer than `limit`.
    pub fn expect_within(
        &mut self,
        wanted: impl Fn(&[u8]) -> bool,
        limit: Duration,
    ) -> Check<Received> {
        self.expect_with(wanted, limit, |device| device.pause(RX))
    }

    /// As [`Self::expect`], but leaves the calls alone: whether there was one is still to be seen.
    pub fn expect_without_calls(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Check<Received> {
        self.expect_with(wanted, self.limit, |_| thread::sleep(MOMENT))
    }

    fn expect_with(
        &mut self,
        wanted: impl Fn(&[u8]) -> bool,
        limit: Duration,
        pause: impl Fn(&Self),
    ) -> Check<Received> {
        let deadline = Instant::now() + limit;
        loop {
            match self.receive_any()? {
                Some(received) if wanted(&received.frame) => return Ok(received),
                Some(_) => {}
                None if Instant::now() > deadline => {
                    return Err(fail(format!("the frame did not come within {limit:?}")));
                }
                None => pause(self),
            }
        }
    }

    /// Fails when such a frame comes on any pair within `limit`.
    pub fn expect_none(&mut self, unwanted: impl Fn(&[u8]) -> bool, limit: Duration) -> Check {
        let deadline = Instant::now() + limit;
        loop {
            match self.receive_any()? {
                Some(received) if unwanted(&received.frame) => {
                    return Err(fail("a frame came that should not"));
                }
                Some(_) => {}
                None if Instant::now() > deadline => return Ok(()),
                None => self.pause(RX),
            }
        }
    }
}
