//! A back end made of `Server` and `Pair` against a front end and a driver, in every flavour of ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory, WriteCursor,
};
use ringway_vhost_user::back_end::{
    BackEnd, Delivery, End, FrameFault, Offer, Pair, Rings, Server, ServerError, Step,
};
use ringway_vhost_user::{Connection, Direction, FrontEnd, Region, RingConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtqueue::{Buffer, DriverQueue, Form, IndirectTables, Layout, Used, Violation};
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::{Features, HeaderFault, NetHeader};

/// Anything here takes milliseconds; this is for a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(10);
const BASE: Features = Features::VERSION_1;
const OFFERED: Features = BASE
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC)
    .union(Features::IN_ORDER)
    .union(Features::RING_PACKED);
const OFFER: Offer =
    Offer { features: OFFERED, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 9000 };

const GUEST: GuestAddress = GuestAddress(0x10_0000);
const FRONT_END: FrontEndAddress = FrontEndAddress(0x7f00_0000_0000);
const SIZE: u64 = 0x10_0000;
const RING_SIZE: u16 = 16;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Where the rings, and behind each its indirect tables, and the buffers are.
const RINGS: [u64; 2] = [0, 0x1_0000];
const TABLES: u64 = 0xc000;
const BUFFERS: [u64; 2] = [0x4_0000, 0x8_0000];
const BUFFER: u64 = 0x1000;
/// The longest frame that the back end takes.
const MAX_FRAME: usize = 3000;

/// Sends every frame back, and says what became of it.
struct Echo {
    frame: Vec<u8>,
    /// The frame at hand was seen before, and there was no room for it.
    is_waiting: bool,
    /// Delivered, or why not. That there is no room is said once.
    ends: Sender<Result<Delivery, FrameFault>>,
    notices: Arc<Mutex<Vec<String>>>,
    /// What a driver does at the worst moment: when there was nothing to do, and no kick was asked for
    /// yet.
    idle: Receiver<Box<dyn FnOnce() + Send>>,
}

impl Echo {
    fn send_back(&mut self, pair: &mut Pair<'_>) -> Result<bool, Violation> {
        let Some(taken) = pair.take(MAX_FRAME, &mut self.frame)? else { return Ok(false) };
        let end = match taken.header {
            Ok(header) if taken.may_pass => Ok(pair.deliver(header, &self.frame)?),
            Ok(_) => Ok(Delivery::Off),
            Err(fault) => Err(fault),
        };
        if end == Ok(Delivery::NoRoom) {
            if !std::mem::replace(&mut self.is_waiting, true) {
                let _ = self.ends.send(end);
            }
            pair.put_back(taken);
            return Ok(false);
        }
        self.is_waiting = false;
        let _ = self.ends.send(end);
        pair.complete(taken);
        Ok(true)
    }
}

impl BackEnd for Echo {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, Violation> {
        let mut is_busy = false;
        for mut pair in rings.pairs() {
            is_busy |= self.send_back(&mut pair)?;
        }
        if !is_busy && let Ok(driver) = self.idle.try_recv() {
            driver();
        }
        Ok(is_busy)
    }

    fn told(&mut self, step: &Step) {
        self.notices.lock().unwrap().extend(step.notices.iter().map(ToString::to_string));
    }
}

/// A ring as its driver has it.
struct Ring {
    queue: DriverQueue,
    kick: Option<OwnedFd>,
    call: OwnedFd,
}

/// A front end with its driver, and the back end in a thread of its own.
struct Bed {
    front_end: FrontEnd,
    features: Features,
    memory: Arc<GuestMemory>,
    rings: [Ring; 2],
    /// The next transmit buffer.
    next: u64,
    ends: Receiver<Result<Delivery, FrameFault>>,
    notices: Arc<Mutex<Vec<String>>>,
    idle: Sender<Box<dyn FnOnce() + Send>>,
    stop: Arc<OwnedFd>,
    ended: Receiver<Result<End, ServerError>>,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Bed {
    fn new(features: Features) -> Self {
        let shared = SharedMemory::create("server test", SIZE).unwrap();
        Self::with(features, shared.as_fd().try_clone_to_owned().unwrap(), true)
    }

    fn with(features: Features, file: OwnedFd, kicks: bool) -> Self {
        Self::serving(features, file, kicks, |echo| echo)
    }

    /// With a back end that is made of an echo.
    fn serving<B: BackEnd>(
        features: Features,
        file: OwnedFd,
        kicks: bool,
        make: impl FnOnce(Echo) -> B + Send + 'static,
    ) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stop = Arc::new(event());
        let (sender, ends) = channel();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let (idle, receiver) = channel();
        let echo = Echo {
            frame: Vec::new(),
            is_waiting: false,
            ends: sender,
            notices: notices.clone(),
            idle: receiver,
        };
        let (end, ended) = channel();
        let told = stop.clone();
        thread::spawn(move || {
            let connection = Connection::new(theirs.into()).unwrap();
            let server = Server::new(connection, OFFER);
            let mut back_end = make(echo);
            let served = server.and_then(|mut server| server.serve(&mut back_end, told.as_fd()));
            let _ = end.send(served);
        });
        let mut front_end = FrontEnd::new(ours.into(), LIMIT).unwrap();
        let protocol = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::NET_MTU;
        front_end.negotiate(features, Features::NONE, protocol).unwrap();
        front_end
            .set_memory_table(&[Region {
                guest: GUEST,
                size: SIZE,
                front_end: FRONT_END,
                offset: 0,
                file: file.as_fd(),
            }])
            .unwrap();
        let request =
            RegionRequest { guest: GUEST, size: SIZE, front_end: FRONT_END, offset: 0, file };
        let memory = Arc::new(GuestMemory::map([request]).unwrap());
        let rings = RINGS.map(|start| Ring {
            queue: queue(&memory, features, start),
            kick: kicks.then(event),
            call: event(),
        });
        let mut bed =
            Self { front_end, features, memory, rings, next: 0, ends, notices, idle, stop, ended };
        for ring in [RECEIVE, TRANSMIT] {
            bed.start(ring, Layout::first_position(features));
            bed.front_end.enable_ring(ring as u8, true).unwrap();
        }
        bed
    }

    fn start(&mut self, ring: usize, base: u32) {
        let [descriptors, available, used] =
            places(RINGS[ring]).map(|place| FrontEndAddress(FRONT_END.0 + place));
        let Ring { kick, call, .. } = &self.rings[ring];
        let (kick, call) = (kick.as_ref().map(AsFd::as_fd), Some(call.as_fd()));
        let config = RingConfig {
            size: RING_SIZE,
            base,
            descriptors,
            available,
            used,
            kick,
            call,
            log: None,
        };
        self.front_end.set_up_ring(ring as u8, config).unwrap();
    }

    fn form(&self) -> Form {
        let is_indirect = self.features.contains(Features::INDIRECT_DESC);
        if is_indirect { Form::Indirect(0) } else { Form::Direct }
    }

    /// Shows the device what was added, and kicks it where it wants to be.
    fn publish(&mut self, ring: usize) {
        let Ring { queue, kick, .. } = &mut self.rings[ring];
        if queue.publish()
            && let Some(kick) = kick
        {
            rustix::io::write(kick, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Posts receive buffers `numbers`, each of `len` bytes.
    fn post(&mut self, numbers: std::ops::Range<u32>, len: u32) {
        for number in numbers {
            let address = GuestAddress(GUEST.0 + BUFFERS[RECEIVE] + u64::from(number) * BUFFER);
            let buffer = Buffer { address, len, writable: true };
            let form = self.form();
            self.rings[RECEIVE].queue.add(&[buffer], form, number).unwrap();
        }
        self.publish(RECEIVE);
    }

    /// Sends these bytes, cut after each of `cuts`.
    fn send_bytes(&mut self, bytes: &[u8], cuts: &[usize]) {
        let start = GUEST.0 + BUFFERS[TRANSMIT] + self.next * BUFFER;
        self.next = (self.next + 1) % u64::from(RING_SIZE);
        let mut slices = Vec::new();
        let mut translator = self.memory.translator();
        translator.write(GuestAddress(start), bytes.len() as u32, &mut slices).unwrap();
        WriteCursor::new(&slices).write(bytes.into());
        let mut from = 0;
        let ends = cuts.iter().copied().filter(|cut| *cut < bytes.len()).chain([bytes.len()]);
        let chain: Vec<Buffer> = ends
            .map(|to| {
                let address = GuestAddress(start + from as u64);
                let len = (to - from) as u32;
                from = to;
                Buffer { address, len, writable: false }
            })
            .collect();
        let form = self.form();
        self.rings[TRANSMIT].queue.add(&chain, form, 0).unwrap();
        self.publish(TRANSMIT);
    }

    fn send(&mut self, header: NetHeader, frame: &[u8], cuts: &[usize]) {
        let header_size = NetHeader::size(self.features);
        let bytes = [&header.to_bytes()[..header_size], frame].concat();
        self.send_bytes(&bytes, cuts);
    }

    /// Waits until a chain of the ring is used.
    fn used(&mut self, ring: usize) -> Used {
        let Ring { queue, call, .. } = &mut self.rings[ring];
        loop {
            if let Some(used) = queue.reap().unwrap() {
                return used;
            }
            if !queue.enable_calls() {
                assert!(is_signalled(call), "nobody calls ring {ring}");
                rustix::io::read(&*call, &mut [0; 8]).unwrap();
            }
        }
    }

    /// Waits for a frame, and puts it together. Also the numbers of its buffers.
    fn receive(&mut self) -> (Vec<u8>, Vec<u32>) {
        let (mut packet, mut buffers) = (Vec::new(), Vec::new());
        let header_size = NetHeader::size(self.features);
        let mut expected = 1;
        while buffers.len() < expected {
            let Used { token, written } = self.used(RECEIVE);
            let address = GuestAddress(GUEST.0 + BUFFERS[RECEIVE] + u64::from(token) * BUFFER);
            let start = packet.len();
            packet.resize(start + written as usize, 0);
            self.memory.translator().copy_to(address, &mut packet[start..]).unwrap();
            if buffers.is_empty() {
                let header = NetHeader::from_bytes(packet.first_chunk().unwrap());
                expected = header.num_buffers.into();
                assert!(expected == 1 || self.features.contains(Features::MRG_RXBUF));
            }
            buffers.push(token);
        }
        (packet.split_off(header_size), buffers)
    }

    fn end(&self) -> Result<Delivery, FrameFault> {
        self.ends.recv_timeout(LIMIT).expect("a frame is taken")
    }

    /// Closes the connection, and returns how the server took it.
    fn close(self) -> Result<End, ServerError> {
        drop(self.front_end);
        ended(&self.ended)
    }
}

fn ended(server: &Receiver<Result<End, ServerError>>) -> Result<End, ServerError> {
    server.recv_timeout(LIMIT).expect("the server ends")
}

/// Whether an event comes, or has come already.
fn is_signalled(event: &OwnedFd) -> bool {
    let limit = Timespec::try_from(LIMIT).unwrap();
    poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

fn places(start: u64) -> [u64; 3] {
    [start, start + 0x4000, start + 0x8000]
}

fn queue(memory: &GuestMemory, features: Features, start: u64) -> DriverQueue {
    let [one, two, three] = places(start).map(|place| GuestAddress(GUEST.0 + place));
    let layout = Layout::new(memory, features, RING_SIZE.into(), one, two, three).unwrap();
    let tables = GuestAddress(GUEST.0 + start + TABLES);
    let tables = IndirectTables::new(memory, tables, RING_SIZE, 8).unwrap();
    DriverQueue::new(layout, features, Some(tables))
}

fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at * 7) as u8).collect()
}

/// Every set of these features.
fn flavours() -> impl Iterator<Item = Features> {
    let bits = [
        Features::MRG_RXBUF,
        Features::EVENT_IDX,
        Features::INDIRECT_DESC,
        Features::IN_ORDER,
        Features::RING_PACKED,
    ];
    (0u32..1 << bits.len()).map(move |set| {
        let chosen = bits.iter().enumerate().filter(|(bit, _)| set & 1 << bit != 0);
        chosen.fold(BASE, |features, (_, feature)| features | *feature)
    })
}

#[test]
fn frames_come_back_in_every_flavour_of_ring() {
    for features in flavours() {
        let mut bed = Bed::new(features);
        let can_merge = features.contains(Features::MRG_RXBUF);
        // With small buffers, where they can be merged.
        let len = if can_merge { 300 } else { 2048 };
        bed.post(0..u32::from(RING_SIZE), len);
        // More than a ring's worth, whose headers are cut in all kinds of ways.
        for number in 0..3 * usize::from(RING_SIZE) {
            let sent = frame(number, 60 + number * 23);
            bed.send(NetHeader::default(), &sent, &[number % 13 + 1, number % 13 + 20]);
            let (came, buffers) = bed.receive();
            assert!(came == sent, "frame {number} with {features}");
            let filled = (sent.len() + NetHeader::SIZE).div_ceil(len as usize);
            assert_eq!(buffers.len(), if can_merge { filled } else { 1 }, "with {features}");
            bed.used(TRANSMIT);
            for buffer in buffers {
                bed.post(buffer..buffer + 1, len);
            }
        }
        assert_eq!(bed.close().unwrap(), End::Closed);
    }
}

#[test]
fn a_frame_waits_for_buffers() {
    for features in [BASE, OFFERED] {
        let mut bed = Bed::new(features);
        let sent = frame(1, 500);
        bed.send(NetHeader::default(), &sent, &[]);
        assert_eq!(bed.end(), Ok(Delivery::NoRoom));
        if features.contains(Features::MRG_RXBUF) {
            // Not enough of them, one after the other.
            bed.post(0..1, 300);
            bed.post(1..2, 300);
        } else {
            bed.post(0..1, 600);
        }
        assert_eq!(bed.receive().0, sent);
        assert_eq!(bed.end(), Ok(Delivery::Done));
        bed.used(TRANSMIT);
    }
}

#[test]
fn a_frame_that_no_buffer_can_hold_is_given_up() {
    let mut bed = Bed::new(BASE);
    bed.post(0..2, 100);
    bed.send(NetHeader::default(), &frame(1, 89), &[]);
    assert_eq!(bed.end(), Ok(Delivery::TooLong));
    bed.send(NetHeader::default(), &frame(2, 88), &[]);
    // The very buffer that was too small for the one before.
    assert_eq!(bed.receive(), (frame(2, 88), vec![0]));
    let mut bed = Bed::new(BASE | Features::MRG_RXBUF);
    bed.post(0..RING_SIZE.into(), 100);
    bed.send(NetHeader::default(), &frame(1, 100 * usize::from(RING_SIZE) - 11), &[]);
    assert_eq!(bed.end(), Ok(Delivery::TooLong));
    bed.send(NetHeader::default(), &frame(2, 100 * usize::from(RING_SIZE) - 12), &[]);
    assert_eq!(bed.receive().1.len(), usize::from(RING_SIZE));
}

#[test]
fn what_is_no_frame_is_dropped_and_its_buffers_come_back() {
    let mut bed = Bed::new(BASE);
    bed.post(0..1, 2048);
    bed.send_bytes(&[0; 11], &[3]);
    assert_eq!(bed.end(), Err(FrameFault::Short { len: 11 }));
    bed.send(NetHeader::default(), &frame(1, 13), &[]);
    assert_eq!(bed.end(), Err(FrameFault::Short { len: 12 + 13 }));
    bed.send(NetHeader::default(), &frame(1, MAX_FRAME + 1), &[]);
    let (len, limit) = (MAX_FRAME as u64 + 1, MAX_FRAME);
    assert_eq!(bed.end(), Err(FrameFault::Long { len, limit }));
    let header = NetHeader { flags: NetHeader::NEEDS_CSUM, ..NetHeader::default() };
    bed.send(header, &frame(1, 100), &[]);
    assert_eq!(bed.end(), Err(FrameFault::Header(HeaderFault::ChecksumNotNegotiated)));
    bed.send(NetHeader::default(), &frame(2, 100), &[]);
    assert_eq!(bed.receive().0, frame(2, 100));
    for _ in 0..5 {
        bed.used(TRANSMIT);
    }
}

#[test]
fn a_disabled_ring_is_emptied_and_nothing_passes() {
    let mut bed = Bed::new(BASE);
    bed.post(0..2, 2048);
    for ring in [RECEIVE, TRANSMIT] {
        bed.front_end.enable_ring(ring as u8, false).unwrap();
        bed.send(NetHeader::default(), &frame(ring, 100), &[]);
        assert_eq!(bed.end(), Ok(Delivery::Off));
        bed.used(TRANSMIT);
        bed.front_end.enable_ring(ring as u8, true).unwrap();
    }
    bed.send(NetHeader::default(), &frame(7, 100), &[]);
    assert_eq!(bed.receive().0, frame(7, 100), "none of those before");
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    for features in [BASE, BASE | Features::RING_PACKED] {
        let mut bed = Bed::new(features);
        bed.post(0..4, 2048);
        for number in 0..3 {
            bed.send(NetHeader::default(), &frame(number, 100), &[]);
            assert_eq!(bed.receive().0, frame(number, 100));
            let base = bed.front_end.stop_ring(TRANSMIT as u8).unwrap();
            let moved = (base ^ Layout::first_position(features)) & 0x7fff;
            assert_eq!(moved, number as u32 + 1, "{features}");
            // The transmit ring is stopped: nobody takes this.
            bed.used(TRANSMIT);
            bed.start(TRANSMIT, base);
            bed.front_end.enable_ring(TRANSMIT as u8, true).unwrap();
        }
    }
}

#[test]
fn rings_without_kicks_are_polled() {
    let shared = SharedMemory::create("server test", SIZE).unwrap();
    let mut bed = Bed::with(BASE, shared.as_fd().try_clone_to_owned().unwrap(), false);
    bed.post(0..1, 2048);
    bed.send(NetHeader::default(), &frame(1, 100), &[]);
    assert_eq!(bed.receive().0, frame(1, 100));
}

/// A frame that comes after the last look, and before kicks are asked for, is seen without a kick.
#[test]
fn it_looks_once_more_before_it_sleeps() {
    for features in [BASE, BASE | Features::RING_PACKED, OFFERED] {
        let bed = Bed::new(features);
        let Bed { front_end: _alive, rings: [_, mut transmit], idle, ends, .. } = bed;
        let kick = transmit.kick.as_ref().unwrap().try_clone().unwrap();
        let (keep, kept) = channel();
        let send = move || {
            let address = GuestAddress(GUEST.0 + BUFFERS[TRANSMIT]);
            let buffer = Buffer { address, len: 100, writable: false };
            transmit.queue.add(&[buffer], Form::Direct, 0).unwrap();
            assert!(!transmit.queue.publish(), "kicks are off, with {features}");
            keep.send(transmit.call).unwrap();
        };
        idle.send(Box::new(send)).unwrap();
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        let _call = kept.recv_timeout(LIMIT).expect("the server wakes, and finds nothing");
        // It cannot be delivered, as there are no receive buffers.
        let end = ends.recv_timeout(LIMIT).expect("the frame is seen");
        assert_eq!(end, Ok(Delivery::NoRoom), "with {features}");
    }
}

/// Nothing was given back, and yet: whoever served the ring before may not have called.
#[test]
fn a_driver_is_called_once_when_its_ring_starts() {
    let mut bed = Bed::new(BASE);
    for ring in [RECEIVE, TRANSMIT] {
        assert!(is_signalled(&bed.rings[ring].call), "ring {ring} is not called");
        rustix::io::read(&bed.rings[ring].call, &mut [0; 8]).unwrap();
        let base = bed.front_end.stop_ring(ring as u8).unwrap();
        bed.rings[ring].call = event();
        bed.start(ring, base);
        assert!(is_signalled(&bed.rings[ring].call), "ring {ring} is not called again");
    }
}

#[test]
fn it_stops_when_told_to() {
    let bed = Bed::new(BASE);
    rustix::io::write(&bed.stop, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(ended(&bed.ended).unwrap(), End::Stopped);
}

#[test]
fn a_driver_that_breaks_a_rule_is_disconnected() {
    let mut bed = Bed::new(BASE);
    let outside = Buffer { address: GuestAddress(0), len: 100, writable: false };
    bed.rings[TRANSMIT].queue.add(&[outside], Form::Direct, 0).unwrap();
    bed.publish(TRANSMIT);
    let end = ended(&bed.ended);
    assert!(matches!(end, Err(ServerError::Guest(Violation::Memory(_)))), "{end:?}");
}

#[test]
fn a_front_end_that_breaks_a_rule_is_disconnected() {
    let mut bed = Bed::new(BASE);
    assert!(bed.front_end.stop_ring(200).is_err());
    let end = ended(&bed.ended);
    assert!(matches!(end, Err(ServerError::FrontEnd(_))), "{end:?}");
}

#[test]
fn memory_that_is_cut_off_ends_it() {
    let file = memfd_create("server test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, SIZE).unwrap();
    let mut bed = Bed::with(BASE, file.try_clone().unwrap(), true);
    bed.send(NetHeader::default(), &frame(1, 100), &[]);
    ftruncate(&file, 0).unwrap();
    // Whatever wakes it.
    rustix::io::write(bed.rings[TRANSMIT].kick.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    let end = ended(&bed.ended);
    assert!(matches!(end, Err(ServerError::MemoryCutOff)), "{end:?}");
    // The frame may have been seen before, or in the middle of it.
    let harmless = [Ok(Delivery::NoRoom), Err(FrameFault::CutOff)];
    assert!(bed.ends.try_iter().all(|end| harmless.contains(&end)));
}

/// Its index seems to go back to zero, which a guest must not do; but it was not the guest.
#[test]
fn a_ring_that_is_cut_off_is_not_held_against_the_guest() {
    let file = memfd_create("server test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, SIZE).unwrap();
    let mut bed = Bed::with(BASE, file.try_clone().unwrap(), true);
    bed.post(0..1, 2048);
    bed.send(NetHeader::default(), &frame(1, 100), &[]);
    bed.receive();
    bed.used(TRANSMIT);
    ftruncate(&file, 0).unwrap();
    rustix::io::write(bed.rings[TRANSMIT].kick.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    let end = ended(&bed.ended);
    assert!(matches!(end, Err(ServerError::MemoryCutOff)), "{end:?}");
}

/// What is read then is zeros, which is no frame of the guest's.
#[test]
fn a_frame_that_is_cut_off_does_not_pass() {
    for features in [BASE, BASE | Features::RING_PACKED] {
        let file = memfd_create("server test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, SIZE).unwrap();
        let mut bed = Bed::with(features, file.try_clone().unwrap(), true);
        bed.post(0..1, 2048);
        // The rings stay.
        ftruncate(&file, BUFFERS[TRANSMIT]).unwrap();
        let address = GuestAddress(GUEST.0 + BUFFERS[TRANSMIT]);
        for token in 0..2 {
            let buffer = Buffer { address, len: 100, writable: false };
            bed.rings[TRANSMIT].queue.add(&[buffer], Form::Direct, token).unwrap();
        }
        bed.publish(TRANSMIT);
        assert_eq!(bed.end(), Err(FrameFault::CutOff), "with {features}");
        let end = ended(&bed.ended);
        assert!(matches!(end, Err(ServerError::MemoryCutOff)), "{end:?} with {features}");
        assert!(bed.ends.try_iter().all(|end| end == Err(FrameFault::CutOff)));
        assert!(bed.rings[RECEIVE].queue.reap().unwrap().is_none(), "something was delivered");
    }
}

/// What has another source of frames, and gives up a frame only when it is delivered.
struct Source {
    echo: Echo,
    source: Arc<OwnedFd>,
    /// Frames that came and were not delivered.
    waiting: u64,
}

impl BackEnd for Source {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, Violation> {
        let mut count = [0; 8];
        if self.waiting == 0 && rustix::io::read(&self.source, &mut count).is_ok() {
            self.waiting = u64::from_ne_bytes(count);
        }
        let mut is_busy = false;
        for mut pair in rings.pairs() {
            while self.waiting > 0 {
                let end = pair.deliver(NetHeader::default(), &frame(7, 100))?;
                let _ = self.echo.ends.send(Ok(end));
                if end != Delivery::Done {
                    break;
                }
                self.waiting -= 1;
                is_busy = true;
            }
        }
        Ok(self.echo.process(rings)? || is_busy)
    }

    fn wakes(&self) -> Option<BorrowedFd<'_>> {
        (self.waiting == 0).then(|| self.source.as_fd())
    }
}

#[test]
fn a_source_of_its_own_wakes_the_back_end() {
    for features in [BASE, OFFERED] {
        let shared = SharedMemory::create("server test", SIZE).unwrap();
        let file = shared.as_fd().try_clone_to_owned().unwrap();
        let source = Arc::new(event());
        let theirs = source.clone();
        let make = move |echo| Source { echo, source: theirs, waiting: 0 };
        let mut bed = Bed::serving(features, file, true, make);
        let come = |count: u64| {
            rustix::io::write(&source, &count.to_ne_bytes()).unwrap();
        };
        bed.post(0..2, 2048);
        for _ in 0..2 {
            come(1);
            assert_eq!(bed.receive().0, frame(7, 100));
            assert_eq!(bed.end(), Ok(Delivery::Done));
        }
        // There is no room now: the guest's buffers are waited for, and what else comes.
        come(1);
        assert_eq!(bed.end(), Ok(Delivery::NoRoom));
        come(1);
        for buffer in 2..4 {
            bed.post(buffer..buffer + 1, 2048);
            assert_eq!(bed.receive().0, frame(7, 100), "with {features}");
        }
        // And it still does all else.
        bed.post(4..5, 2048);
        bed.send(NetHeader::default(), &frame(1, 100), &[]);
        assert_eq!(bed.receive().0, frame(1, 100), "with {features}");
    }
}

/// Publishes what it has before it goes on, and goes on when it was told to.
struct Hasty {
    echo: Echo,
    go_on: Receiver<()>,
}

impl BackEnd for Hasty {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, Violation> {
        let is_busy = self.echo.process(rings)?;
        if is_busy {
            rings.publish();
            self.go_on.recv_timeout(LIMIT).expect("the frame has come back");
        }
        Ok(is_busy)
    }
}

#[test]
fn what_is_published_early_is_seen_early() {
    for features in [BASE, OFFERED] {
        let shared = SharedMemory::create("server test", SIZE).unwrap();
        let file = shared.as_fd().try_clone_to_owned().unwrap();
        let (go_on, receiver) = channel();
        let make = move |echo| Hasty { echo, go_on: receiver };
        let mut bed = Bed::serving(features, file, true, make);
        bed.post(0..2, 2048);
        for number in 0..2 {
            bed.send(NetHeader::default(), &frame(number, 100), &[]);
            assert_eq!(bed.receive().0, frame(number, 100), "with {features}");
            bed.used(TRANSMIT);
            go_on.send(()).unwrap();
        }
    }
}

/// Forgets the frames that it takes.
struct Forgetful(Echo);

impl BackEnd for Forgetful {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, Violation> {
        for mut pair in rings.pairs() {
            let _ = pair.take(MAX_FRAME, &mut self.0.frame)?;
        }
        Ok(false)
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.notices.lock().unwrap().push("a panic".to_owned());
        }
    }
}

/// It is the program's own mistake, and better found than a guest that runs dry.
#[test]
fn a_frame_that_is_not_given_back_is_found_out() {
    let shared = SharedMemory::create("server test", SIZE).unwrap();
    let file = shared.as_fd().try_clone_to_owned().unwrap();
    let mut bed = Bed::serving(BASE, file, true, Forgetful);
    bed.send(NetHeader::default(), &frame(1, 100), &[]);
    assert_eq!(bed.ended.recv_timeout(LIMIT).err(), Some(RecvTimeoutError::Disconnected));
    assert_eq!(*bed.notices.lock().unwrap(), ["a panic"]);
}

#[test]
fn the_back_end_hears_of_what_was_refused() {
    let mut bed = Bed::new(BASE);
    assert!(bed.front_end.set_mtu(9001).is_err(), "more than is offered");
    assert_eq!(bed.notices.lock().unwrap().len(), 1);
}

#[test]
fn an_observer_sees_both_directions() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = seen.clone();
    let mut connection = Connection::new(theirs.into()).unwrap();
    connection.observe(Box::new(move |direction, message| {
        watched.lock().unwrap().push((direction, message.describe()));
    }));
    let (end, server) = channel();
    thread::spawn(move || {
        let (ends, (_, idle)) = (channel().0, channel());
        let mut echo =
            Echo { frame: Vec::new(), is_waiting: false, ends, notices: Arc::default(), idle };
        let mut server = Server::new(connection, OFFER).unwrap();
        end.send(server.serve(&mut echo, event().as_fd())).unwrap();
    });
    let mut front_end = FrontEnd::new(ours.into(), LIMIT).unwrap();
    front_end.features().unwrap();
    let call = event();
    front_end.set_call(1, Some(call.as_fd())).unwrap();
    drop(front_end);
    assert_eq!(ended(&server).unwrap(), End::Closed);
    let seen = seen.lock().unwrap();
    let words = "SET_VRING_CALL: ring 1, with anon_inode:[eventfd]";
    assert_eq!(seen[0], (Direction::Received, "GET_FEATURES".to_owned()));
    assert_eq!(seen[1].0, Direction::Sent);
    assert!(seen[1].1.starts_with("reply to GET_FEATURES: MRG_RXBUF"), "{}", seen[1].1);
    assert_eq!(seen[2], (Direction::Received, words.to_owned()));
}
