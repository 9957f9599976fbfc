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

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use engine::{App, AppId, Event, Graph, Poller};
use ports::vhost_user::{FEATURES, PATIENCE, VhostUserPort};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pwrite, read};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use vhost_user::back_end::{self, Offer, Session};
use vhost_user::{Connection, Incoming, Message};
use virtqueue::split::Form;
use wire::split::Descriptor;
use wire::vhost_user::{
    Answer, FrontEndRequest as R, Header, MemoryRegion, Payload, ProtocolFeatures, RingDescriptor,
    Shape, VringAddress, VringState,
};
use wire::virtio::{Features, NetHeader};

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

const OFFER: Offer =
    Offer { features: FEATURES, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 9000 };

/// One virtual machine monitor's whole conversation, several times if need be.
pub fn session(data: &[u8]) -> Reached {
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
    /// As large, and never written to.
    untouched: OwnedFd,
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
}

struct World {
    graph: Graph,
    poller: Poller,
    hostile: AppId,
    honest: AppId,
    now: u64,
    files: Files,
    call: Option<Call>,
    /// The hostile guest's port reported a fault.
    faulted: bool,
    /// The front end does not read its answers.
    is_silent: bool,
    /// The available indices that the hostile guest has shown.
    offered: [u16; 2],
    guest: Guest,
    sent: usize,
    reaped: usize,
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
            untouched: file("fuzz untouched", SIZE, MemfdFlags::CLOEXEC),
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
            faulted: false,
            is_silent: false,
            offered: [0; 2],
            guest,
            sent: 0,
            reaped: 0,
            reached: Reached::default(),
        }
    }

    fn port(&mut self) -> &mut VhostUserPort {
        self.graph.get(self.hostile).expect("the port is alive")
    }

    fn swap(&mut self, device: Option<&back_end::Device>) -> Vec<(usize, u16)> {
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
                connection: Connection::new(end).expect("a connection"),
                session: Session::new(OFFER),
                due: VecDeque::new(),
                answers: Vec::new(),
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
        let features = FEATURES.0 & !u64::from(input.u16()) | Features::PROTOCOL_FEATURES.0;
        let file = if input.rarely() { Kind::Untouched } else { Kind::Main };
        let region = MemoryRegion {
            guest_address: GUEST,
            size: SIZE,
            user_address: FRONT_END,
            mmap_offset: 0,
        };
        let mut script = vec![
            (R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), None),
            (R::SetFeatures, Payload::U64(features), None),
            (R::SetMemTable, Payload::MemoryTable(vec![region]), Some(file)),
        ];
        for ring in 0..2 {
            let state = |num| Payload::VringState(VringState { index: ring, num });
            let event =
                Payload::RingDescriptor(RingDescriptor { ring: ring as u8, attached: true });
            script.extend([
                (R::SetVringNum, state(RING_SIZE.into()), None),
                (R::SetVringBase, state(0), None),
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

    /// One message, more or less right.
    fn message(&mut self, input: &mut Input<'_>) {
        let number = match input.u8() {
            number @ 0..0xf0 => u32::from(number % 46),
            _ => input.u32(),
        };
        let table = R::from_number(number).map(R::message);
        let shape = table.map_or(Shape::U64, |message| message.payload);
        let mut payload = payload(shape, input);
        match input.u8() {
            0..0xe8 => {}
            0xe8..0xf0 => _ = payload.pop(),
            0xf0..0xf8 => payload.push(0),
            _ => payload.resize(usize::from(input.u16()), 0xff),
        }
        let mut header = Header::request(number, input.bool(), payload.len() as u32);
        header.reply = input.u8() == 0xff;
        let mut bytes = header.encode().to_vec();
        if input.u8() == 0xff {
            // Any flags.
            bytes[4..8].copy_from_slice(&input.array::<4>());
        }
        bytes.extend(payload);

        let (least, most) = table.map_or((0, 2), |message| message.descriptors);
        let usual = match number {
            5 => bytes.get(12).map_or(0, |regions| usize::from(*regions).min(most)),
            _ => (least..=most).last().unwrap_or(0),
        };
        let count = match input.u8() {
            0..0xd0 => usual,
            count => usize::from(count % 10),
        };
        let is_memory = [5, 37, 38].contains(&number);
        let kinds: Vec<Kind> = (0..count)
            .map(|_| match input.u8() {
                0..0xb0 if is_memory => Kind::Main,
                0..0xb0 => Kind::Event,
                kind => Kind::ALL[usize::from(kind) % Kind::ALL.len()],
            })
            .collect();
        let cut = input.rarely().then(|| input.u8().into());
        self.say(&bytes, &kinds, cut);
    }

    fn descriptor(&mut self, kind: Kind) -> OwnedFd {
        let clone = |file: &OwnedFd| file.try_clone().expect("a descriptor");
        let event = |flags| eventfd(0, flags | EventfdFlags::CLOEXEC).expect("an event");
        match kind {
            Kind::Main => clone(&self.files.main),
            Kind::Untouched => clone(&self.files.untouched),
            Kind::Small => clone(&self.files.small),
            Kind::Empty => clone(&self.files.empty),
            Kind::Event => event(EventfdFlags::empty()),
            Kind::FullEvent => {
                let event = event(EventfdFlags::NONBLOCK);
                let full = (u64::MAX - 1).to_ne_bytes();
                rustix::io::write(&event, &full).expect("an empty counter");
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
                self.reached.note("two rings run");
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
        let ring = u64::from(input.bool());
        let index = u64::from(input.u8() % 20);
        let table = if input.rarely() { 2 * RING_SPACE } else { ring * RING_SPACE };
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
        let descriptor = Descriptor { address, length, flags, next };
        let bytes = descriptor.to_words().map(u64::to_le_bytes);
        self.write(table + index * Descriptor::SIZE, bytes.as_flattened());
    }

    /// Makes chains available.
    fn offer(&mut self, input: &mut Input<'_>) {
        let ring = input.below(2);
        let start = ring as u64 * RING_SPACE + AVAILABLE;
        let count = if input.rarely() { input.u16() } else { 1 + input.below(6) as u16 };
        for _ in 0..count.min(RING_SIZE) {
            let slot = self.offered[ring] % RING_SIZE;
            let head = u16::from(input.u8() % 17);
            self.write(start + 4 + 2 * u64::from(slot), &head.to_le_bytes());
            self.offered[ring] = self.offered[ring].wrapping_add(1);
        }
        self.offered[ring] = self.offered[ring].wrapping_add(count.saturating_sub(RING_SIZE));
        let flags = u16::from(input.rarely());
        self.write(start, &[flags.to_le_bytes(), self.offered[ring].to_le_bytes()].concat());
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16());
        let count = input.u8().into();
        let bytes = input.bytes(count);
        self.write(at, bytes);
    }

    // The switch, and the guest at its other port.

    fn breathe(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        while self.guest.post(&[2048], Form::Direct) {}
        let frame = [[0; NetHeader::SIZE + 60], [0x55; NetHeader::SIZE + 60]].concat();
        let len = frame.len() - 60;
        for _ in 0..2 {
            self.sent += usize::from(self.guest.send(&frame[..len], &[len as u32], Form::Direct));
        }
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
            self.reached.note("frame from the guest");
        }
        if self.graph.counters(self.hostile).sent.frames > 0 {
            self.reached.note("frame to the guest");
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
        let [_, outstanding] = self.guest.outstanding();
        assert_eq!(outstanding, 0, "the other guest's chains do not come back");
        assert_eq!(self.sent, self.reaped);
    }
}

/// What a front end may pass.
#[derive(Clone, Copy)]
enum Kind {
    Main,
    Untouched,
    Small,
    Empty,
    Event,
    /// An event whose counter is full: to write to it would block.
    FullEvent,
    Pipe,
    PipeEnd,
    /// The front end's own end of the connection.
    Socket,
    Timer,
    Epoll,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Main,
        Self::Untouched,
        Self::Small,
        Self::Empty,
        Self::Event,
        Self::FullEvent,
        Self::Pipe,
        Self::PipeEnd,
        Self::Socket,
        Self::Timer,
        Self::Epoll,
    ];
}

/// Where a ring lies, when the input does not say otherwise.
fn address(index: u32) -> VringAddress {
    let at = FRONT_END + u64::from(index) * RING_SPACE;
    VringAddress {
        index,
        flags: 0,
        descriptors: at,
        used: at + USED,
        available: at + AVAILABLE,
        log: 0,
    }
}

/// A payload that may well be right.
fn payload(shape: Shape, input: &mut Input<'_>) -> Vec<u8> {
    let index = match input.u8() {
        index @ 0..0xf0 => u32::from(index % 2),
        index => u32::from(index % 4) << 7,
    };
    let payload = match shape {
        Shape::U64 => Payload::U64(match input.below(8) {
            0 => FEATURES.0,
            1 => FEATURES.0 | Features::PROTOCOL_FEATURES.0,
            2 => FEATURES.0 & input.u64(),
            3 => Offer::PROTOCOL.0 & u64::from(input.u32()),
            4 => Offer::PROTOCOL.0,
            5..=6 => input.u16().into(),
            _ => input.u64(),
        }),
        Shape::VringState => {
            let num = match input.below(8) {
                0..=2 => input.below(2) as u32,
                3..=4 => 1 << (input.u8() % 17),
                5 => RING_SIZE.into(),
                6 => input.u16().into(),
                _ => input.u32(),
            };
            Payload::VringState(VringState { index, num })
        }
        Shape::VringAddress => {
            let mut address = address(index);
            for field in [&mut address.descriptors, &mut address.available, &mut address.used] {
                *field = match input.u8() {
                    0..0xd0 => *field,
                    0xd0..0xf0 => FRONT_END + u64::from(input.u16()),
                    _ => input.u64(),
                };
            }
            Payload::VringAddress(address)
        }
        Shape::RingDescriptor => {
            let attached = input.u8() < 0xe0;
            Payload::RingDescriptor(RingDescriptor { ring: index as u8, attached })
        }
        Shape::MemoryTable => {
            let count = match input.u8() {
                0..0xa0 => 1,
                count => usize::from(count % 9),
            };
            let region = |number| region(number, input);
            Payload::MemoryTable((0..count as u64).map(region).collect())
        }
        Shape::SingleRegion => Payload::SingleRegion(region(input.u8() as u64 % 3, input)),
        shape => return vec![0; shape.sizes().0],
    };
    payload.encode()
}

fn region(number: u64, input: &mut Input<'_>) -> MemoryRegion {
    let offset = number * SIZE;
    let mut region = MemoryRegion {
        guest_address: GUEST + offset,
        size: SIZE,
        user_address: FRONT_END + offset,
        mmap_offset: 0,
    };
    if input.u8() < 0xa0 {
        return region;
    }
    let field = match input.below(4) {
        0 => &mut region.guest_address,
        1 => &mut region.size,
        2 => &mut region.user_address,
        _ => &mut region.mmap_offset,
    };
    *field = match input.below(4) {
        0 => field.wrapping_add(input.u16().into()),
        1 => field.wrapping_sub(input.u16().into()),
        2 => input.u16().into(),
        _ => input.u64(),
    };
    region
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
