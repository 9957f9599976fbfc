//! A front end and its guest against the switch: everything that a virtual machine can reach.
//!
//! # How it works
//!
//! The input is what a hostile front end does: it sends messages through a real socket, with real
//! descriptors, whole or in pieces, well formed or not; it writes to the memory that it shared, and
//! cuts the files short. On the other side is what the program is made of: a [`Connection`], a
//! [`Session`], and a port in a [`Graph`] that breathes in between, all on this thread. A second
//! port has a guest that keeps the rules, and talks to the first one all the time.
//!
//! # What must hold
//!
//! * Nothing panics, neither here nor in a port.
//! * Each message that the session takes is answered exactly as the table of messages says, and
//!   nothing else is sent.
//! * The second guest gets its chains back, gets whole frames, and its port stays up.
//! * In the end no descriptor and no mapping is left behind. They are counted for the process, so
//!   no other case may run beside this one.

mod message;

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use engine::{App, AppId, Event, Graph, Poller};
use ports::vhost_user::{FEATURES, PATIENCE, VhostUserPort};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, ftruncate, memfd_create};
use rustix::io::{Errno, pwrite, read};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use vhost_user::back_end::{self, Offer, Session};
use vhost_user::{Closer, Connection, Incoming, Message};
use virtqueue::{Form, Layout, packed};
use wire::split::Descriptor;
use wire::vhost_user::{
    Answer, FrontEndRequest as R, Header, MemoryRegion, Payload, ProtocolFeatures, RingDescriptor,
    Shape, VringState,
};
use wire::virtio::{Features, NetHeader};

use self::message::{Kind, Said, address};
use crate::Reached;
use crate::guest::Guest;
use crate::input::Input;

/// The hostile guest's memory, for itself and for its front end. Ring `n` lies `n * RING_SPACE`
/// behind the start; behind the rings there are buffers.
const GUEST: u64 = 0x4000_0000;
const FRONT_END: u64 = 0x7f00_0000_0000;
const SIZE: u64 = 0x10000;
const RING_SPACE: u64 = 0x2000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0x1000;
/// What a ring's size is, unless the input says otherwise.
const RING_SIZE: u16 = 16;
/// Descriptors that are written, some of which are outside of the ring.
const DESCRIBED: usize = 20;

/// How long what was sent may take to be closed: nothing here takes its time.
const CLOSED_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

const OFFER: Offer =
    Offer { features: FEATURES, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 9000 };

/// One virtual machine monitor's whole conversation, several times if need be.
pub fn session(data: &[u8]) -> Reached {
    // What the thread calls guests with stays.
    sys::notify::prepare().expect("a notifier");
    let before = Resources::count();
    let reached = run(data);
    assert_eq!(Resources::count(), before, "something was left behind");
    reached
}

fn run(data: &[u8]) -> Reached {
    let mut input = Input::new(data);
    let mut world = World::new();
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 24) {
        match step {
            0..=8 => world.message(&mut input),
            9 => world.handshake(&mut input),
            10..=12 => world.describe(&mut input),
            13..=15 => world.offer(&mut input),
            16 => world.scribble(&mut input),
            17..=20 => world.breathe(1_000),
            21 => world.breathe(u64::from(input.u32())),
            22 => world.nap(),
            _ => world.mischief(&mut input),
        }
        if world.faulted {
            world.hang_up();
        }
    }
    world.hang_up();
    world.finish();
    world.reached
}

/// What a process has to give back.
#[derive(Debug, PartialEq, Eq)]
struct Resources {
    descriptors: usize,
    mappings: usize,
}

impl Resources {
    fn count() -> Self {
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mappings = maps.lines().filter(|line| line.contains("/memfd:fuzz")).count();
        Self { descriptors, mappings }
    }
}

/// The files that the front end may share.
struct Files {
    /// Written to, as a driver writes to its rings.
    main: OwnedFd,
    /// As large, and not where the guest writes.
    other: OwnedFd,
    /// A page.
    small: OwnedFd,
    empty: OwnedFd,
}

/// A connection, seen from both of its ends.
struct Call {
    /// The front end's end.
    socket: OwnedFd,
    connection: Connection,
    session: Session,
    /// The answers that are due: the request's number, and the payload's size.
    due: VecDeque<(u32, usize)>,
    /// Bytes that came and are no whole answer yet.
    answers: Vec<u8>,
    /// Event descriptors with a full counter: whoever writes to them blocks.
    full: Vec<OwnedFd>,
}

struct World {
    graph: Graph,
    poller: Poller,
    hostile: AppId,
    honest: AppId,
    now: u64,
    files: Files,
    call: Option<Call>,
    /// What the front ends have sent and is yet to be closed.
    closer: Closer,
    /// The hostile guest's port reported a fault.
    faulted: bool,
    /// The front end does not read its answers.
    is_silent: bool,
    /// The hostile guest thinks that its rings are packed.
    is_packed: bool,
    /// Descriptors that it puts into a packed ring, where a split one would refer to them.
    described: [[packed::Descriptor; DESCRIBED]; 2],
    /// How many entries it has made available.
    offered: [u16; 2],
    guest: Guest,
    sent: usize,
    reaped: usize,
    sent_to_hostile: u64,
    reached: Reached,
}

impl World {
    fn new() -> Self {
        let file = |name, size, flags| {
            let file = memfd_create(name, flags).expect("a memory file");
            ftruncate(&file, size).expect("a size");
            file
        };
        let files = Files {
            main: file("fuzz main", SIZE, MemfdFlags::CLOEXEC),
            other: file("fuzz other", SIZE, MemfdFlags::CLOEXEC),
            small: file("fuzz small", 4096, MemfdFlags::CLOEXEC),
            empty: file("fuzz empty", 0, MemfdFlags::CLOEXEC),
        };
        for page in (0..SIZE).step_by(4096) {
            pwrite(&files.main, &[0], page).expect("a page");
        }
        let guest = Guest::new(Features::VERSION_1 | Features::MRG_RXBUF, 16);
        let poller = Poller::new().expect("a poller");
        let mut graph = Graph::new();
        let mut port = VhostUserPort::new();
        port.swap(Some(&guest.device()), &poller);
        let honest = graph.add("honest", port);
        let hostile = graph.add("hostile", VhostUserPort::new());
        graph.link((honest, 0), (hostile, 0)).expect("a link");
        graph.link((hostile, 0), (honest, 0)).expect("a link");
        Self {
            graph,
            poller,
            hostile,
            honest,
            now: 0,
            files,
            call: None,
            closer: Closer::new(),
            faulted: false,
            is_silent: false,
            is_packed: false,
            described: Default::default(),
            offered: [0; 2],
            guest,
            sent: 0,
            reaped: 0,
            sent_to_hostile: 0,
            reached: Reached::default(),
        }
    }

    fn port(&mut self) -> &mut VhostUserPort {
        self.graph.get(self.hostile).expect("the port is alive")
    }

    fn swap(&mut self, device: Option<&back_end::Device>) -> Vec<(usize, u32)> {
        let Self { graph, poller, .. } = self;
        let port: &mut VhostUserPort = graph.get(self.hostile).expect("the port is alive");
        port.swap(device, poller).positions
    }

    // The front end.

    fn call(&mut self) -> &mut Call {
        self.call.get_or_insert_with(|| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (socket, end) = pair.expect("a socket pair");
            // So that a front end that does not read is noticed soon.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&end, 0);
            Call {
                socket,
                connection: Connection::with_closer(end, &self.closer).expect("a connection"),
                session: Session::new(OFFER),
                due: VecDeque::new(),
                answers: Vec::new(),
                full: Vec::new(),
            }
        })
    }

    /// Hangs up, and the program cleans up behind it.
    fn hang_up(&mut self) {
        self.call = None;
        self.swap(None);
        self.faulted = false;
        self.offered = [0; 2];
    }

    /// All that a front end says to bring a device up.
    fn handshake(&mut self, input: &mut Input<'_>) {
        let features = OFFER.features.0 & !u64::from(input.u16()) | Features::PROTOCOL_FEATURES.0;
        let choice = input.u8();
        let file = if choice >= 0xf0 { Kind::Other } else { Kind::Main };
        let mut features = Features(features);
        for (bit, feature) in [(1, Features::RING_PACKED), (2, Features::IN_ORDER)] {
            if choice & bit == 0 {
                features = features.without(feature);
            }
        }
        self.is_packed = features.contains(Features::RING_PACKED);
        let region = MemoryRegion {
            guest_address: GUEST,
            size: SIZE,
            user_address: FRONT_END,
            mmap_offset: 0,
        };
        let mut script = vec![
            (R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), None),
            (R::SetFeatures, Payload::U64(features.0), None),
            (R::SetMemTable, Payload::MemoryTable(vec![region]), Some(file)),
        ];
        for ring in 0..2 {
            let state = |num| Payload::VringState(VringState { index: ring, num });
            let event =
                Payload::RingDescriptor(RingDescriptor { ring: ring as u8, attached: true });
            script.extend([
                (R::SetVringNum, state(RING_SIZE.into()), None),
                (R::SetVringBase, state(Layout::first_position(features)), None),
                (R::SetVringAddr, Payload::VringAddress(address(ring)), None),
                (R::SetVringKick, event.clone(), Some(Kind::Event)),
                (R::SetVringCall, event, Some(Kind::Event)),
                (R::SetVringEnable, state(1), None),
            ]);
        }
        for (request, payload, kind) in script {
            let bytes = payload.encode();
            let header = Header::request(request.number(), false, bytes.len() as u32);
            let kinds: Vec<Kind> = kind.into_iter().collect();
            if !self.say(&[&header.encode()[..], &bytes].concat(), &kinds, None) {
                return;
            }
        }
        self.reached.note("handshake");
    }

    fn message(&mut self, input: &mut Input<'_>) {
        let Said { bytes, kinds, cut } = Said::read(input);
        self.say(&bytes, &kinds, cut);
    }

    fn descriptor(&mut self, kind: Kind) -> OwnedFd {
        let clone = |file: &OwnedFd| file.try_clone().expect("a descriptor");
        let event = |flags| eventfd(0, flags | EventfdFlags::CLOEXEC).expect("an event");
        match kind {
            Kind::Main => clone(&self.files.main),
            Kind::Other => clone(&self.files.other),
            Kind::Small => clone(&self.files.small),
            Kind::Empty => clone(&self.files.empty),
            Kind::Event => event(EventfdFlags::empty()),
            Kind::FullEvent => {
                let event = event(EventfdFlags::empty());
                let full = (u64::MAX - 1).to_ne_bytes();
                rustix::io::write(&event, &full).expect("an empty counter");
                self.call().full.push(event.try_clone().expect("a descriptor"));
                event
            }
            Kind::Pipe => rustix::pipe::pipe().expect("a pipe").0,
            Kind::PipeEnd => rustix::pipe::pipe().expect("a pipe").1,
            Kind::Socket => clone(&self.call().socket),
            Kind::Timer => {
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer")
            }
            Kind::Epoll => epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll"),
        }
    }

    /// Sends bytes and descriptors, the bytes behind `cut` later; and has the program deal with
    /// them. False when the connection is at its end.
    fn say(&mut self, bytes: &[u8], kinds: &[Kind], cut: Option<usize>) -> bool {
        let (one, two) = bytes.split_at(cut.unwrap_or(bytes.len()).min(bytes.len()));
        let descriptors: Vec<OwnedFd> = kinds.iter().map(|kind| self.descriptor(*kind)).collect();
        for (part, descriptors) in [(one, &descriptors[..]), (two, &[])] {
            let mut at = 0;
            // Once at least, or the descriptors would be lost; but not with nothing to carry them.
            while at < part.len() {
                let descriptors = if at == 0 { descriptors } else { &[] };
                at += send(&self.call().socket, &part[at..], descriptors);
                if !self.serve() {
                    self.hang_up();
                    return false;
                }
            }
        }
        // Whatever the program made of them, the front end has them block again.
        for event in &self.call().full {
            fcntl_setfl(event, OFlags::empty()).expect("flags of an event");
        }
        if !self.is_silent {
            self.listen();
        }
        true
    }

    /// What the program does when its end is readable. False when it hangs up.
    fn serve(&mut self) -> bool {
        loop {
            let call = self.call();
            let message = match call.connection.receive() {
                Ok(Incoming::Message(message)) => message,
                Ok(Incoming::NotYet) => return true,
                Ok(Incoming::Closed) => return false,
                Err(error) => {
                    self.reached.note_variant(&error);
                    return false;
                }
            };
            if !self.handle(message) {
                return false;
            }
        }
    }

    fn handle(&mut self, message: Message) -> bool {
        let header = message.header;
        let mut call = self.call.take().expect("a call is under way");
        let mut step = match call.session.handle(message) {
            Ok(step) => step,
            Err(violation) => {
                assert!(!violation.to_string().contains('\n'), "{violation}");
                self.reached.note_variant(&violation);
                return false;
            }
        };
        for notice in &step.notices {
            assert!(!notice.to_string().contains('\n'), "{notice}");
            self.reached.note_variant(notice);
        }
        if let Some(device) = &step.device {
            for (ring, index) in self.swap(Some(device)) {
                call.session.stopped(ring, index);
            }
            if device.rings.iter().flatten().count() == 2 {
                let packed = device.features.contains(Features::RING_PACKED);
                self.reached.note(if packed { "two packed rings run" } else { "two rings run" });
            }
        }
        if let Some(event) = step.event.take() {
            self.reached.note_variant(&event);
            if let back_end::Event::Announce(station) = event {
                self.port().announce(wire::rarp::announcement(station).into());
            }
        }
        let answer = call.session.answer(step);
        let asked = header.need_reply
            && call.session.protocol_features().contains(ProtocolFeatures::REPLY_ACK);
        let due = match R::from_number(header.request).map(|request| request.message().answer) {
            Some(Answer::Reply(Shape::VringState | Shape::U64)) => Some(8),
            Some(Answer::Reply(shape)) => unreachable!("{shape:?} is not served"),
            Some(Answer::Acknowledgement) | None => asked.then_some(8),
        };
        assert_eq!(answer.is_some(), due.is_some(), "request {}", header.request);
        let mut goes_on = true;
        if let (Some(answer), Some(size)) = (answer, due) {
            assert!(answer.descriptors.is_empty());
            match call.connection.send(answer) {
                Ok(_) => call.due.push_back((header.request, size)),
                Err(error) => {
                    assert!(self.is_silent, "{error}");
                    self.reached.note_variant(&error);
                    goes_on = false;
                }
            }
        }
        self.call = Some(call);
        goes_on
    }

    /// The front end reads the answers: those that are due, and no others.
    fn listen(&mut self) {
        let Some(call) = &mut self.call else { return };
        loop {
            let mut bytes = [0; 256];
            let mut control = RecvAncillaryBuffer::default();
            let mut buffer = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&call.socket, &mut buffer, &mut control, RecvFlags::empty()) {
                Ok(received) => call.answers.extend(&bytes[..received.bytes]),
                Err(Errno::AGAIN) if call.connection.flush().expect("a peer that reads") => break,
                Err(Errno::AGAIN) => {}
                Err(error) => panic!("the socket failed: {error}"),
            }
        }
        // What the last flush has sent.
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = read(&call.socket, &mut bytes) {
            call.answers.extend(&bytes[..count]);
        }
        let mut answers = call.answers.as_slice();
        while let Some((header, rest)) = answers.split_first_chunk() {
            let header = Header::decode(header).expect("an answer with a header");
            let (request, size) = call.due.pop_front().expect("an answer that is due");
            assert!(header.reply && !header.need_reply);
            assert_eq!((header.request, header.size as usize), (request, size));
            answers = &rest[size..];
        }
        assert!(call.due.is_empty(), "answers that do not come: {:?}", call.due);
        call.answers.clear();
    }

    /// What a front end should not do, apart from messages.
    fn mischief(&mut self, input: &mut Input<'_>) {
        match input.below(6) {
            0 => self.leave(),
            1 => self.is_silent = !self.is_silent,
            2 => {
                // Any bytes at all.
                let count = input.u8().into();
                let bytes = input.bytes(count);
                self.say(bytes, &[Kind::Event], None);
            }
            3 => {
                let file = if input.bool() { &self.files.main } else { &self.files.small };
                let size = u64::from(input.u16()).min(SIZE);
                ftruncate(file, size).expect("another size");
            }
            4 => {
                // More questions than there is room for answers.
                let header = Header::request(R::GetFeatures.number(), false, 0);
                let count = input.u8() % 64;
                let _ = (0..count).all(|_| self.say(&header.encode(), &[], None));
            }
            _ => {
                // In the middle of a message.
                let call = self.call();
                send(&call.socket, &input.array::<7>(), &[]);
                self.leave();
            }
        }
    }

    /// The front end goes away, and the program notices.
    fn leave(&mut self) {
        let shut = rustix::net::shutdown(&self.call().socket, rustix::net::Shutdown::Write);
        assert!(shut.is_ok());
        assert!(!self.serve(), "a connection that is closed is at its end");
        self.hang_up();
    }

    // The guest behind it.

    fn write(&self, offset: u64, bytes: &[u8]) {
        let room = SIZE.saturating_sub(offset).min(bytes.len() as u64) as usize;
        pwrite(&self.files.main, &bytes[..room], offset).expect("a write to a memory file");
    }

    /// Writes a descriptor of a ring, or of a table among the buffers.
    fn describe(&mut self, input: &mut Input<'_>) {
        let ring = usize::from(input.bool());
        let index = usize::from(input.u8()) % DESCRIBED;
        let is_table = input.rarely();
        let address = match input.below(16) {
            0..=9 => GUEST + 2 * RING_SPACE + u64::from(input.u16()) % (SIZE - 2 * RING_SPACE),
            10..=12 => GUEST + 2 * RING_SPACE,
            13 => GUEST + SIZE - u64::from(input.u8()),
            14 => GUEST + u64::from(input.u16()),
            _ => input.u64(),
        };
        let length = match input.below(8) {
            0..=3 => 12 + u32::from(input.u8()),
            4..=5 => u32::from(input.u16() % 4096),
            6 => u32::from(input.u8() % 20) * Descriptor::SIZE as u32,
            _ => input.u32(),
        };
        let usual = if ring == 0 { Descriptor::WRITE } else { 0 };
        let flags = match input.u8() {
            0..0x90 => usual,
            0x90..0xc0 => usual | Descriptor::NEXT,
            0xc0..0xd8 => Descriptor::INDIRECT,
            flags => flags.into(),
        };
        let next = u16::from(input.u8() % 17);
        let descriptor = packed::Descriptor { address, length, id: next, flags };
        let words = match self.is_packed {
            true => descriptor.to_words(),
            false => Descriptor { address, length, flags, next }.to_words(),
        };
        let table = if is_table { 2 } else { ring as u64 };
        if self.is_packed && !is_table {
            self.described[ring][index] = descriptor;
        } else {
            let at = table * RING_SPACE + index as u64 * Descriptor::SIZE;
            self.write(at, words.map(u64::to_le_bytes).as_flattened());
        }
    }

    /// Makes chains available, and says when to be called.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ring = input.below(2);
        let count = if input.rarely() { input.u16() } else { 1 + input.below(6) as u16 };
        for _ in 0..count.min(RING_SIZE) {
            let head = input.u8() % 17;
            let slot = self.offered[ring] % RING_SIZE;
            if self.is_packed {
                self.offer_packed(ring, slot, self.described[ring][usize::from(head)]);
            } else {
                let at = ring as u64 * RING_SPACE + AVAILABLE + 4 + 2 * u64::from(slot);
                self.write(at, &u16::from(head).to_le_bytes());
            }
            self.offered[ring] = self.offered[ring].wrapping_add(1);
        }
        self.offered[ring] = self.offered[ring].wrapping_add(count.saturating_sub(RING_SIZE));
        let event = if input.rarely() { 1 + u16::from(input.u8() & 1) } else { 0 };
        let offered = self.offered[ring];
        // Of a packed ring, the entry at whose use to be called, and whether that counts.
        let words = if self.is_packed {
            [(offered % RING_SIZE) | (u16::from(Self::wrap(offered)) << 15), event]
        } else {
            [event, offered]
        };
        let start = ring as u64 * RING_SPACE + AVAILABLE;
        self.write(start, words.map(u16::to_le_bytes).as_flattened());
    }

    /// A packed ring's wrap counter, after so many entries.
    fn wrap(entries: u16) -> bool {
        (entries / RING_SIZE).is_multiple_of(2)
    }

    fn offer_packed(&self, ring: usize, slot: u16, mut descriptor: packed::Descriptor) {
        use packed::Descriptor;
        let mark = match Self::wrap(self.offered[ring]) {
            true => Descriptor::AVAIL,
            false => Descriptor::USED,
        };
        descriptor.flags = descriptor.flags & !(Descriptor::AVAIL | Descriptor::USED) | mark;
        let bytes = descriptor.to_words().map(u64::to_le_bytes);
        let at = ring as u64 * RING_SPACE + u64::from(slot) * Descriptor::SIZE;
        self.write(at, bytes.as_flattened());
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16());
        let count = input.u8().into();
        let bytes = input.bytes(count);
        self.write(at, bytes);
    }

    // The switch, and the guest at its other port.

    fn breathe(&mut self, nanoseconds: u64) {
        while self.guest.post(&[2048], Form::Direct) {}
        let frame = [[0; NetHeader::SIZE + 60], [0x55; NetHeader::SIZE + 60]].concat();
        let len = frame.len() - 60;
        for _ in 0..2 {
            self.sent += usize::from(self.guest.send(&frame[..len], &[len as u32], Form::Direct));
        }
        self.breathe_alone(nanoseconds);
    }

    /// Breathes, and the other guest sends nothing.
    fn breathe_alone(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        let Self { graph, hostile, faulted, reached, .. } = self;
        graph.breathe(self.now, |event| match event {
            Event::Fault { app, fault } => {
                assert_eq!(app, *hostile, "the other guest keeps all rules: {fault}");
                assert!(!*faulted, "a fault is reported once");
                let fault = fault.to_string();
                assert!(!fault.contains('\n'), "{fault}");
                *faulted = true;
                reached.note("guest fault");
            }
            Event::Failed { message, .. } => panic!("a port panicked: {message}"),
        });
        self.reaped += self.guest.reap();
        while let Some(received) = self.guest.receive() {
            assert!(received.frame.len() >= wire::ethernet::HEADER_SIZE);
            assert_eq!(received.header.flags, 0, "offloads that the guest did not ask for");
            let what = if self.is_packed { "frame from packed" } else { "frame from split" };
            self.reached.note(what);
        }
        let sent = self.graph.counters(self.hostile).sent.frames;
        if sent > self.sent_to_hostile {
            self.sent_to_hostile = sent;
            self.reached.note(if self.is_packed { "frame to packed" } else { "frame to split" });
        }
    }

    /// The worker goes to sleep and wakes.
    fn nap(&mut self) {
        let now = self.now;
        let port = self.port();
        let is_busy = port.arm();
        if let (false, Some(deadline)) = (is_busy, port.deadline(now)) {
            assert!(deadline <= now + PATIENCE, "a deadline in the far future");
        }
        port.disarm();
    }

    /// The other guest is as well as before.
    fn finish(&mut self) {
        let port: &mut VhostUserPort = self.graph.get(self.honest).expect("the port is alive");
        assert!(port.is_up());
        for _ in 0..4 {
            self.breathe(PATIENCE + 1);
        }
        // What the last few frames leave to publish waits for a turn without any.
        self.breathe_alone(1);
        let [_, outstanding] = self.guest.outstanding();
        assert_eq!(outstanding, 0, "the other guest's chains do not come back");
        assert_eq!(self.sent, self.reaped);
        assert!(self.closer.wait(CLOSED_LIMIT), "not closed within {CLOSED_LIMIT:?}");
    }
}

/// Sends as much as goes, with the descriptors. Returns how much that is.
fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> usize {
    const MOST: usize = 9;
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .expect("room in a socket whose other end is read")
}
