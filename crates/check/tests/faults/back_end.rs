//! A back end that sends every frame back, and can be told to do one thing wrong.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use memory::{ReadSlice, WriteCursor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vhost_user::back_end::{Offer, Session};
use vhost_user::{Connection, Device, Incoming, Message};
use virtqueue::{Chain, DeviceQueue};
use wire::vhost_user::{FrontEndRequest as R, ProtocolFeatures};
use wire::virtio::{Features, NetHeader};

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    // Messages.
    ReplyFlags,
    ReplyNumber,
    ReplySize,
    SpeaksFirst,
    LosesMessages,
    AnswersOwner,
    AcknowledgesWithoutFeature,
    AcknowledgesUnasked,
    AnswersTwice,
    NeverAcknowledges,
    AcknowledgesOne,
    FeaturesChange,
    NoVersion1,
    GuestTsoWithoutChecksum,
    HostTsoWithoutChecksum,
    EcnWithoutTso,
    ProtocolFeaturesChange,
    NoQueues,
    NoSlots,
    ForgetsStatus,
    RefusesMtu,
    BaseOfAnotherRing,
    BaseIsZero,
    AcknowledgesUnknown,
    DiesOfUnknown,
    KeepsDescriptors,
    KeepsMemory,
    IgnoresReset,
    RemembersFrontEnd,
    // Rings.
    RunsWhenStopped,
    SendsWhenDisabled,
    StallsWhenDisabled,
    DeliversWhenDisabled,
    NeverCalls,
    AlwaysCalls,
    KeepsFormerCall,
    ShortLength,
    LongLength,
    TransmitLength,
    NoBuffersCounted,
    MergesLoosely,
    ChecksumFlag,
    DeliversTwice,
    LosesLastByte,
    ChangesByte,
    SwapsFrames,
    WritesBehindFrame,
    FirstDescriptorOnly,
    StopsAfterARound,
    CutsLargeFrames,
    FirstPairOnly,
}

/// A running back end. Dropping it ends it.
pub struct BackEnd {
    directory: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BackEnd {
    pub fn start(fault: Fault) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || serve(&listener, fault, &seen));
        Self { directory, stop, thread: Some(thread) }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What outlives a connection.
#[derive(Default)]
struct Lasting {
    kept: Vec<OwnedFd>,
    devices: Vec<Arc<Device>>,
    asked: u64,
    remembered: bool,
}

fn serve(listener: &UnixListener, fault: Fault, stop: &AtomicBool) {
    let mut lasting = Lasting::default();
    while !stop.load(Ordering::Relaxed) {
        if !ready(listener.as_fd()) {
            continue;
        }
        let Ok((socket, _)) = listener.accept() else { return };
        let mut served = Served::new(socket.into(), fault);
        while !stop.load(Ordering::Relaxed) && served.turn(&mut lasting).is_some() {}
        if fault == Fault::DiesOfUnknown && served.dead {
            return;
        }
        if fault == Fault::KeepsMemory {
            lasting.devices.push(served.device.clone());
        }
    }
}

/// Waits a moment until something can be read.
fn ready(descriptor: BorrowedFd<'_>) -> bool {
    let moment = Timespec { tv_sec: 0, tv_nsec: 500_000 };
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&moment)).is_ok_and(|count| count > 0)
}

struct Queue {
    start: u64,
    queue: DeviceQueue,
    used: u64,
}

struct Served {
    fault: Fault,
    connection: Connection,
    session: Session,
    device: Arc<Device>,
    queues: Vec<Option<Queue>>,
    calls: Vec<Option<Arc<OwnedFd>>>,
    /// A frame that is held up to be sent after the next.
    late: Option<Vec<u8>>,
    echoed: u32,
    dead: bool,
    greeted: bool,
    status: u64,
}

impl Served {
    fn new(socket: OwnedFd, fault: Fault) -> Self {
        use Features as F;
        let mut features = F::VERSION_1 | F::MRG_RXBUF | F::INDIRECT_DESC | F::EVENT_IDX;
        features |= F::RING_PACKED | F::IN_ORDER | F::MQ;
        match fault {
            Fault::NoVersion1 => features = features.without(F::VERSION_1),
            Fault::GuestTsoWithoutChecksum => features |= F::GUEST_TSO4,
            Fault::HostTsoWithoutChecksum => features |= F::HOST_TSO6,
            Fault::EcnWithoutTso => features |= F::CSUM | F::HOST_ECN,
            _ => {}
        }
        let offer = Offer { features, protocol: Offer::PROTOCOL, queue_pairs: 4, max_mtu: 9000 };
        let session = Session::new(offer);
        let device = session.device().clone();
        let rings = device.rings.len();
        Self {
            fault,
            connection: Connection::new(socket).expect("a socket"),
            session,
            device,
            queues: (0..rings).map(|_| None).collect(),
            calls: vec![None; rings],
            late: None,
            echoed: 0,
            dead: false,
            greeted: false,
            status: 0,
        }
    }

    /// One look at everything. None when the connection has ended.
    fn turn(&mut self, lasting: &mut Lasting) -> Option<()> {
        if self.fault == Fault::SpeaksFirst && !self.greeted {
            let hello = Message::reply_to(R::GetFeatures.number(), vec![0; 8]);
            self.connection.send(hello).ok()?;
        }
        self.greeted = true;
        let mut first = true;
        if ready(self.connection.as_fd()) {
            loop {
                match self.connection.receive().ok()? {
                    Incoming::NotYet => break,
                    Incoming::Closed => return None,
                    Incoming::Message(_) if self.fault == Fault::LosesMessages && !first => {}
                    Incoming::Message(message) => self.message(message, lasting)?,
                }
                first = false;
            }
        }
        for pair in 0..self.queues.len() / 2 {
            self.transmit(pair)?;
        }
        self.connection.flush().ok().map(drop)
    }

    fn message(&mut self, message: Message, lasting: &mut Lasting) -> Option<()> {
        let request = R::from_number(message.header.request);
        let (number, asked) = (message.header.request, message.header.need_reply);
        let negotiated = self.session.protocol_features().contains(ProtocolFeatures::REPLY_ACK);
        if self.fault == Fault::KeepsDescriptors {
            let copies = message.descriptors.iter();
            let copies = copies.map(|one| one.as_fd().try_clone_to_owned().expect("a copy"));
            lasting.kept.extend(copies);
        }
        if self.fault == Fault::DiesOfUnknown && request.is_none() {
            self.dead = true;
            return None;
        }
        if request == Some(R::SetStatus) {
            self.status = 0;
        }
        if self.fault == Fault::IgnoresReset && request == Some(R::ResetDevice) {
            return self.send(Message::reply_to(number, 0u64.to_ne_bytes().to_vec()));
        }
        let index = message.payload.first().copied().unwrap_or(0);
        let step = self.session.handle(message).ok()?;
        if let Some(device) = &step.device {
            self.take(&device.clone());
        }
        let mut answer = self.session.answer(step);
        let value = |value: u64| Message::reply_to(number, value.to_ne_bytes().to_vec());
        let own = request.is_some_and(|request| {
            matches!(request.message().answer, wire::vhost_user::Answer::Reply(_))
        });
        match (self.fault, request) {
            (Fault::AnswersOwner, Some(R::SetOwner)) => answer = Some(value(0)),
            (Fault::AcknowledgesWithoutFeature, _) if asked && !negotiated && answer.is_none() => {
                answer = Some(value(0));
            }
            (Fault::AcknowledgesUnasked, _) if negotiated && !own => answer = Some(value(0)),
            (Fault::AnswersTwice, _) if asked && own => self.send(value(0))?,
            (Fault::NeverAcknowledges, _) if !own => answer = None,
            (Fault::AcknowledgesOne, _) if !own && answer.is_some() => answer = Some(value(1)),
            (Fault::FeaturesChange, Some(R::GetFeatures))
            | (Fault::ProtocolFeaturesChange, Some(R::GetProtocolFeatures)) => {
                lasting.asked += 1;
                let bits = if number == 1 { 1 << 15 } else { 1 << 2 };
                answer = answer.map(|answer| {
                    let mut bytes = [0; 8];
                    bytes.copy_from_slice(&answer.payload);
                    value(
                        u64::from_ne_bytes(bytes)
                            ^ if lasting.asked.is_multiple_of(2) { bits } else { 0 },
                    )
                });
            }
            (Fault::NoQueues, Some(R::GetQueueNum)) | (Fault::NoSlots, Some(R::GetMaxMemSlots)) => {
                answer = Some(value(0));
            }
            (Fault::ForgetsStatus, Some(R::GetStatus)) => answer = Some(value(self.status)),
            (Fault::RefusesMtu, Some(R::NetSetMtu)) => answer = Some(value(1)),
            (Fault::BaseOfAnotherRing, Some(R::GetVringBase)) => {
                let state = [u32::from(index) + 1, 0].map(u32::to_ne_bytes).concat();
                answer = Some(Message::reply_to(number, state));
            }
            (Fault::BaseIsZero, Some(R::GetVringBase)) => {
                let state = [u32::from(index), 0].map(u32::to_ne_bytes).concat();
                answer = Some(Message::reply_to(number, state));
            }
            (Fault::AcknowledgesUnknown, None) if asked && negotiated => answer = Some(value(0)),
            (Fault::RemembersFrontEnd, _) => {
                lasting.remembered |= negotiated;
                if asked && lasting.remembered && answer.is_none() {
                    answer = Some(value(0));
                }
            }
            _ => {}
        }
        match answer {
            Some(answer) => self.send(answer),
            None => Some(()),
        }
    }

    fn send(&mut self, mut message: Message) -> Option<()> {
        match self.fault {
            Fault::ReplyFlags => message.header.need_reply = true,
            Fault::ReplyNumber => message.header.request += 1,
            Fault::ReplySize => {
                message.payload.truncate(4);
                message.header.size = message.payload.len() as u32;
            }
            _ => {}
        }
        self.connection.send(message).ok().map(drop)
    }

    /// Takes over another device, between two turns.
    fn take(&mut self, device: &Arc<Device>) {
        for (ring, setup) in device.rings.iter().enumerate() {
            let current = &mut self.queues[ring];
            if let Some(queue) = current
                && setup.as_ref().is_none_or(|setup| setup.start != queue.start)
            {
                self.session.stopped(ring, queue.queue.position());
                if self.fault == Fault::RunsWhenStopped && setup.is_none() {
                    continue;
                }
                *current = None;
            }
            let Some(setup) = setup else { continue };
            let former = self.calls[ring].is_some() && self.fault == Fault::KeepsFormerCall;
            if !former {
                self.calls[ring] = setup.call.clone();
            }
            match current {
                Some(queue) => queue.queue.relocate(setup.layout.clone()),
                None => {
                    let layout = setup.layout.clone();
                    let queue = DeviceQueue::new(layout, device.features, setup.base);
                    *current = Some(Queue { start: setup.start, queue, used: 0 });
                }
            }
        }
        self.device = device.clone();
    }

    fn is_enabled(&self, ring: usize) -> bool {
        match &self.device.rings[ring] {
            Some(setup) => setup.enabled,
            None => self.fault == Fault::RunsWhenStopped,
        }
    }

    fn call(&self, ring: usize, wanted: bool) {
        let wanted = match self.fault {
            Fault::NeverCalls => false,
            Fault::AlwaysCalls => true,
            _ => wanted,
        };
        if wanted && let Some(call) = &self.calls[ring] {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Takes all frames of a pair and sends them back. None when the guest broke the rules.
    fn transmit(&mut self, pair: usize) -> Option<()> {
        let ring = 2 * pair + 1;
        let enabled = self.is_enabled(ring);
        if !enabled && self.fault == Fault::StallsWhenDisabled {
            return Some(());
        }
        let Some(mut served) = self.queues[ring].take() else { return Some(()) };
        let mut frames = Vec::new();
        let mut used = false;
        let memory = self.device.memory.clone();
        let mut translator = memory.translator();
        if self.fault != Fault::StopsAfterARound || served.used < served.queue.size().into() {
            loop {
                let mut slices: Vec<ReadSlice<'_>> = Vec::new();
                let Some(chain) =
                    served.queue.take_readable(&mut translator, 70_000, &mut slices).ok()?
                else {
                    break;
                };
                if self.fault == Fault::FirstDescriptorOnly {
                    slices.truncate(1);
                }
                let mut bytes = Vec::new();
                for slice in slices {
                    let start = bytes.len();
                    bytes.resize(start + slice.len(), 0);
                    slice.copy_to(&mut bytes[start..]);
                }
                let header = NetHeader::size(self.device.features);
                if bytes.len() >= header + 14 && bytes.len() < 65536 {
                    frames.push(bytes.split_off(header));
                }
                let written = if self.fault == Fault::TransmitLength { 1 } else { 0 };
                served.queue.give_back(chain, written);
                served.used += 1;
                used = true;
            }
        }
        if used {
            let wanted = served.queue.publish();
            self.call(ring, wanted);
        }
        let more = served.queue.enable_kicks().ok()?;
        self.queues[ring] = Some(served);
        let passes = enabled || self.fault == Fault::SendsWhenDisabled;
        if passes && (pair == 0 || self.fault != Fault::FirstPairOnly) {
            for frame in frames {
                self.echo(pair, frame)?;
            }
        }
        if more && used { self.transmit(pair) } else { Some(()) }
    }

    fn echo(&mut self, pair: usize, mut frame: Vec<u8>) -> Option<()> {
        match self.fault {
            Fault::LosesLastByte => frame.truncate(frame.len() - 1),
            Fault::ChangesByte => *frame.last_mut()? ^= 1,
            Fault::DeliversTwice => self.deliver(pair, &frame)?,
            Fault::SwapsFrames => {
                self.echoed += 1;
                if self.echoed % 3 == 2 {
                    self.late = Some(frame);
                    return Some(());
                }
                if let Some(late) = self.late.take() {
                    self.deliver(pair, &frame)?;
                    frame = late;
                }
            }
            _ => {}
        }
        // To the pair that it came from, if that takes any, or else to the first.
        let pair =
            if self.queues[2 * pair].is_some() && self.is_enabled(2 * pair) { pair } else { 0 };
        self.deliver(pair, &frame)
    }

    fn deliver(&mut self, pair: usize, frame: &[u8]) -> Option<()> {
        let ring = 2 * pair;
        if !self.is_enabled(ring) && self.fault != Fault::DeliversWhenDisabled {
            return Some(());
        }
        let Some(mut served) = self.queues[ring].take() else { return Some(()) };
        let header_len = NetHeader::size(self.device.features);
        let merges = self.device.features.contains(Features::MRG_RXBUF);
        let memory = self.device.memory.clone();
        let mut translator = memory.translator();
        let mut chains: Vec<(Chain, usize)> = Vec::new();
        let mut slices = Vec::new();
        let mut room = 0;
        let total = header_len + frame.len();
        while room < total && (merges || chains.is_empty()) {
            let before = slices.len();
            let Some(chain) =
                served.queue.take_writable(&mut translator, 70_000, &mut slices).ok()?
            else {
                break;
            };
            let len = slices[before..].iter().map(memory::WriteSlice::len).sum();
            if len < header_len {
                return None;
            }
            room += len;
            chains.push((chain, len));
        }
        let cuts = self.fault == Fault::CutsLargeFrames && !chains.is_empty();
        if room < total && !cuts {
            let taken: Vec<Chain> = chains.into_iter().map(|(chain, _)| chain).collect();
            served.queue.untake(&taken);
        } else {
            let mut header = NetHeader { num_buffers: chains.len() as u16, ..NetHeader::default() };
            match self.fault {
                Fault::NoBuffersCounted => header.num_buffers = 0,
                Fault::ChecksumFlag => header.flags = NetHeader::DATA_VALID,
                _ => {}
            }
            let mut bytes = [&header.to_bytes()[..header_len], frame].concat();
            if self.fault == Fault::WritesBehindFrame {
                bytes.push(0);
            }
            WriteCursor::new(&slices).write(bytes.as_slice().into());
            let mut left = total.min(room);
            for (chain, len) in chains {
                let mut written = left.min(len);
                left -= written;
                match self.fault {
                    Fault::ShortLength => written -= 1,
                    Fault::LongLength => written += 1,
                    Fault::MergesLoosely if left > 0 => written -= 1,
                    _ => {}
                }
                served.queue.give_back(chain, written as u32);
            }
            let wanted = served.queue.publish();
            self.call(ring, wanted);
        }
        served.queue.enable_kicks().ok()?;
        self.queues[ring] = Some(served);
        Some(())
    }
}
