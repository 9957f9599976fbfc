//! The back end itself: it sends every frame back.
//!
//! # How it works
//!
//! One thread, one front end at a time, and no waiting but for the socket: messages, then all rings,
//! then again. All that it meets is told to [`Served::meets`] in words, where a fault may strike; what
//! cannot be said as "when this happens, then that" is a [`Slip`], in the place where it is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{FrontEndAddress, GuestAddress, ReadSlice, WriteCursor};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost_user::back_end::{Offer, Session, Step};
use vhost_user::{Connection, ConnectionError, Descriptor, Device, Incoming, Message};
use virtqueue::{Chain, DeviceQueue};
use wire::checksum::{Sum, complete};
use wire::segment::{MAX_HEADERS, Segments};
use wire::vhost_user::{
    Answer, FrontEndRequest as R, Payload, ProtocolFeatures as P, VringAddress,
};
use wire::virtio::{Features as F, NetHeader, Offload};

use super::{Does, Fault, Harm, Slip};

/// The most bytes that are read of a chain.
const LIMIT: u32 = 70_000;
/// VHOST_VRING_F_LOG.
const LOG_RING: u32 = 1;

/// What outlives a connection.
#[derive(Default)]
struct Lasting {
    /// How often what the fault waits for has happened.
    seen: u32,
    descriptors: Vec<OwnedFd>,
    connections: Vec<Connection>,
    devices: Vec<Arc<Device>>,
    /// On so many connections, this one among them, no ring is served.
    stalled: u32,
    asked: u64,
    features: F,
    merged: bool,
}

/// Serves front ends with one fault, one after the other, until told to stop. False when the fault
/// was the end of it.
///
/// # Panics
///
/// The kernel makes no more descriptors: nothing else would be a fault of its own.
pub fn serve(listener: &UnixListener, fault: &'static Fault, stop: &dyn Fn() -> bool) -> bool {
    let mut lasting = Lasting::default();
    while !stop() {
        if !ready(listener.as_fd()) {
            continue;
        }
        // Whoever it was may have gone.
        let Ok((socket, _)) = listener.accept() else { continue };
        let Ok(mut served) = Served::new(socket.into(), fault, &mut lasting) else { continue };
        while !stop() && served.turn().is_some() {}
        let Served { struck, connection, device, .. } = served;
        match struck {
            Some(Harm::Dies) => return false,
            Some(Harm::Hangs) => {
                while !stop() {
                    std::thread::sleep(MOMENT);
                }
            }
            Some(Harm::Leaks) => lasting.connections.push(connection),
            _ => {}
        }
        lasting.stalled = lasting.stalled.saturating_sub(1);
        if fault.is(Slip::KeepsMemory) {
            lasting.devices.push(device);
        }
    }
    true
}

const MOMENT: Duration = Duration::from_micros(500);
/// So many kicks at once are mostly for nothing: this looks at its rings more often than that.
const MANY_KICKS: u64 = 10;
/// How long nothing may be said to a back end that is impatient.
const IDLE: Duration = Duration::from_millis(50);
/// How late a frame is, where that is the fault: after one that listens for a call only so long gives up.
const LATE: Duration = Duration::from_millis(150);

/// Waits a moment until something can be read.
fn ready(descriptor: BorrowedFd<'_>) -> bool {
    readable(descriptor, MOMENT.subsec_nanos().into())
}

fn readable(descriptor: BorrowedFd<'_>, nanoseconds: i64) -> bool {
    let limit = Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&limit)).is_ok_and(|count| count > 0)
}

struct Queue {
    start: u64,
    queue: DeviceQueue,
    used: u64,
    /// Was kicked, or has just started, for those faults that care.
    kicked: bool,
}

/// The first descriptor of a chain: address and length.
type Buffer = (u64, u32);

/// The dirty log.
struct Log {
    file: OwnedFd,
    size: u64,
    offset: u64,
}

struct Served<'l> {
    fault: &'static Fault,
    lasting: &'l mut Lasting,
    connection: Connection,
    session: Session,
    device: Arc<Device>,
    queues: Vec<Option<Queue>>,
    calls: Vec<Option<Arc<OwnedFd>>>,
    kicks: Vec<Option<Arc<OwnedFd>>>,
    addresses: Vec<Option<VringAddress>>,
    log: Option<Log>,
    /// LOG_ALL was acknowledged.
    logs: bool,
    log_agreed: bool,
    /// What is marked only when a ring stops, if that is the fault.
    unmarked: Vec<(u64, u64)>,
    /// Messages that came.
    messages: u32,
    /// What ends this connection, or more than that.
    struck: Option<Harm>,
    greeted: bool,
    owned: bool,
    /// When something came last.
    heard: Instant,
    status: u64,
}

impl<'l> Served<'l> {
    fn new(
        socket: OwnedFd,
        fault: &'static Fault,
        lasting: &'l mut Lasting,
    ) -> Result<Self, ConnectionError> {
        let mut features = F::VERSION_1 | F::MRG_RXBUF | F::INDIRECT_DESC | F::EVENT_IDX;
        features |= F::RING_PACKED | F::IN_ORDER | F::MQ | F::MTU | F::ANY_LAYOUT;
        features |= F::CSUM | F::HOST_TSO4 | F::GUEST_CSUM | F::GUEST_TSO4;
        if let Does::Offers(more, fewer) = fault.does {
            features = features.without(fewer) | more;
        }
        let offer = Offer { features, protocol: Offer::PROTOCOL, queue_pairs: 4, max_mtu: 9000 };
        let session = Session::new(offer);
        let device = session.device().clone();
        let rings = device.rings.len();
        Ok(Self {
            fault,
            lasting,
            connection: Connection::new(socket)?,
            session,
            device,
            queues: (0..rings).map(|_| None).collect(),
            calls: vec![None; rings],
            kicks: vec![None; rings],
            addresses: vec![None; rings],
            log: None,
            logs: false,
            log_agreed: false,
            unmarked: Vec::new(),
            messages: 0,
            struck: None,
            greeted: false,
            owned: false,
            heard: Instant::now(),
            status: 0,
        })
    }

    fn is(&self, slip: Slip) -> bool {
        self.fault.is(slip)
    }

    /// Something happened, in words. Returns what the fault does to it, if it is this that it waits for.
    fn meets(&mut self, what: impl FnOnce() -> String) -> Option<Harm> {
        let Does::On(words, times, harm) = self.fault.does else { return None };
        let what = what();
        if !words.iter().all(|word| what.contains(word)) {
            return None;
        }
        self.lasting.seen += 1;
        if self.lasting.seen < times {
            return None;
        }
        match harm {
            Harm::Stalls => self.lasting.stalled = 3,
            Harm::Dies | Harm::Hangs | Harm::Closes => self.struck = Some(harm),
            _ => {}
        }
        Some(harm)
    }

    /// As [`Self::meets`], where the connection has ended anyhow.
    fn ends(&mut self, what: impl FnOnce() -> String) -> Option<()> {
        let harm = self.meets(what);
        self.struck = self.struck.or(harm);
        None
    }

    fn running(&self) -> usize {
        self.queues.iter().flatten().count()
    }

    /// One look at everything. None when the connection has ended.
    fn turn(&mut self) -> Option<()> {
        if self.is(Slip::SpeaksFirst) && !self.greeted {
            let hello = Message::reply_to(R::GetFeatures.number(), vec![0; 8]);
            self.connection.send(hello).ok()?;
        }
        self.greeted = true;
        if self.is(Slip::ClosesWhenIdle) && self.heard.elapsed() > IDLE {
            return None;
        }
        let mut first = true;
        if ready(self.connection.as_fd()) {
            loop {
                match self.connection.receive() {
                    Ok(Incoming::NotYet) => {
                        if first {
                            self.meets(|| "part of a message".into());
                        }
                        break;
                    }
                    Ok(Incoming::Closed) => {
                        let (messages, running) = (self.messages, self.running());
                        let is_ready = self.device.memory.region_count() > 0;
                        return self.ends(|| {
                            format!("gone messages={messages} memory={is_ready} rings={running}.")
                        });
                    }
                    Ok(Incoming::Message(_)) if self.is(Slip::LosesMessages) && !first => {}
                    Ok(Incoming::Message(message)) => self.message(message)?,
                    Err(error) => return self.ends(|| format!("broken {error:?}")),
                }
                if self.struck.is_some() {
                    return None;
                }
                first = false;
            }
        }
        if self.lasting.stalled == 0 {
            for pair in 0..self.queues.len() / 2 {
                self.transmit(pair)?;
            }
        }
        match self.connection.flush() {
            Err(error) => self.ends(|| format!("broken {error:?}")),
            Ok(_) if self.struck.is_some() => None,
            Ok(_) => Some(()),
        }
    }

    /// A message in words, with what there is when it comes.
    fn words(&self, message: &Message) -> String {
        let number = message.header.request;
        let (name, payload) = match R::from_number(number) {
            Some(request) => {
                let payload = Payload::decode(request.message().payload, &message.payload);
                (
                    request.to_string(),
                    payload.map_or("odd".into(), |payload| format!("{payload:?}")),
                )
            }
            None => (format!("UNKNOWN {number}"), String::new()),
        };
        let regions = match message.payload.first_chunk() {
            Some(count) if number == R::SetMemTable.number() => u32::from_ne_bytes(*count),
            _ => 0,
        };
        format!(
            "message {name} size={} files={} regions={regions} shared={}. rings={}. {payload}",
            message.payload.len(),
            message.descriptors.len(),
            self.device.memory.region_count(),
            self.running()
        )
    }

    fn message(&mut self, mut message: Message) -> Option<()> {
        self.messages += 1;
        self.heard = Instant::now();
        let request = R::from_number(message.header.request);
        let (number, asked) = (message.header.request, message.header.need_reply);
        let negotiated = self.session.protocol_features().contains(P::REPLY_ACK);
        let value = |value: u64| Message::reply_to(number, value.to_ne_bytes().to_vec());
        let acknowledges = asked && negotiated;
        if self.is(Slip::KeepsDescriptors) {
            self.keep(&message);
        }
        let words = self.words(&message);
        match self.meets(|| words.clone()) {
            Some(Harm::Dies | Harm::Hangs | Harm::Closes) => return None,
            Some(Harm::Ignores) if acknowledges => return self.send(value(0)),
            Some(Harm::Refuses) if acknowledges => return self.send(value(1)),
            Some(Harm::Ignores | Harm::Refuses) => return Some(()),
            Some(Harm::Leaks) => self.keep(&message),
            Some(Harm::Stalls | Harm::Accepts) | None => {}
        }
        if request == Some(R::SetOwner)
            && std::mem::replace(&mut self.owned, true)
            && self.is(Slip::OneOwner)
        {
            return None;
        }
        if request == Some(R::SetStatus) {
            self.status = 0;
        }
        if self.is(Slip::IgnoresReset) && request == Some(R::ResetDevice) {
            return self.send(value(0));
        }
        if request == Some(R::SetLogBase) && self.log_agreed {
            let files = message.descriptors.into_iter().map(Descriptor::into_owned).collect();
            self.set_log(&message.payload, files);
            return self.send(value(0));
        }
        self.note(request, &mut message)?;
        let index = message.payload.first().copied().unwrap_or(0);
        let step = match self.session.handle(message) {
            Ok(step) => step,
            Err(violation) => {
                let harm = self.meets(|| format!("refused {violation:?} by {words}"));
                if harm != Some(Harm::Accepts) {
                    self.struck = self.struck.or(harm);
                    return None;
                }
                return if acknowledges { self.send(value(0)) } else { Some(()) };
            }
        };
        let accepts = step.notices.iter().any(|notice| {
            self.meets(|| format!("noticed {notice:?} by {words}")) == Some(Harm::Accepts)
        });
        if self.struck.is_some() {
            return None;
        }
        if let Some(device) = &step.device {
            self.take(&device.clone());
        }
        let answer = self.answer(request, step, (number, asked, index))?;
        match answer {
            Some(_) if accepts => self.send(value(0)),
            Some(answer) => self.send(answer),
            None => Some(()),
        }
    }

    /// Keeps what the session does not, and takes from a message what it would not understand.
    fn note(&mut self, request: Option<R>, message: &mut Message) -> Option<()> {
        let bits = message.payload.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        match (request, bits) {
            (Some(R::SetFeatures), Some(bits)) => {
                let features = F(bits).without(F::LOG_ALL);
                let former = std::mem::replace(&mut self.lasting.features, features);
                for (what, changed) in
                    [("gained", features.without(former)), ("lost", former.without(features))]
                {
                    self.meets(|| format!("{what} {changed}"));
                }
                self.logs = F(bits).contains(F::LOG_ALL)
                    || self.is(Slip::LogsForever) && self.log.is_some()
                    || self.is(Slip::LogsForeverLate) && self.log.is_some();
                message.payload = features.0.to_ne_bytes().to_vec();
            }
            (Some(R::SetProtocolFeatures), Some(bits)) => {
                let features = P(bits);
                self.log_agreed = features.contains(P::LOG_SHMFD);
                let own = P::LOG_SHMFD | P::INBAND_NOTIFICATIONS;
                message.payload = features.without(own).0.to_ne_bytes().to_vec();
            }
            (Some(R::GetVringBase), _) => {
                for (address, len) in std::mem::take(&mut self.unmarked) {
                    self.mark(address, len);
                }
            }
            (Some(R::SetVringAddr), _) => {
                if let Some(Payload::VringAddress(address)) =
                    Payload::decode(R::SetVringAddr.message().payload, &message.payload)
                    && let Some(place) = self.addresses.get_mut(address.index as usize)
                {
                    *place = Some(address);
                }
            }
            _ => {}
        }
        if self.struck.is_some() { None } else { Some(()) }
    }

    /// The answer to a message, right or wrong.
    fn answer(
        &mut self,
        request: Option<R>,
        step: Step,
        (number, asked, index): (u32, bool, u8),
    ) -> Option<Option<Message>> {
        let negotiated = self.session.protocol_features().contains(P::REPLY_ACK);
        let value = |value: u64| Message::reply_to(number, value.to_ne_bytes().to_vec());
        let state = |ring: u32, num: u32| {
            Message::reply_to(number, [ring, num].map(u32::to_ne_bytes).concat())
        };
        let mut answer = self.session.answer(step);
        let own =
            request.is_some_and(|request| matches!(request.message().answer, Answer::Reply(_)));
        let more = match request {
            Some(R::GetFeatures) => F::LOG_ALL.0,
            Some(R::GetProtocolFeatures) if self.is(Slip::TakesInbandAlone) => {
                (P::LOG_SHMFD | P::INBAND_NOTIFICATIONS).0
            }
            Some(R::GetProtocolFeatures) => P::LOG_SHMFD.0,
            _ => 0,
        };
        if let Some(found) = &answer
            && more != 0
            && let Some(bytes) = found.payload.first_chunk()
        {
            answer = Some(value(u64::from_ne_bytes(*bytes) | more));
        }
        let Does::Slip(slip) = self.fault.does else { return Some(answer) };
        match (slip, request) {
            (Slip::AnswersOwner, Some(R::SetOwner)) => answer = Some(value(0)),
            (Slip::AnswersAll, _) if !negotiated && !own => answer = Some(value(0)),
            (Slip::AcknowledgesUnasked, _) if negotiated && !own => answer = Some(value(0)),
            (Slip::AnswersTwice, _) if asked && own => self.send(value(0))?,
            (Slip::NeverAcknowledges, _) if !own => answer = None,
            (Slip::AcknowledgesOne, _) if !own && answer.is_some() => answer = Some(value(1)),
            (Slip::FeaturesChange, Some(R::GetFeatures))
            | (Slip::ProtocolFeaturesChange, Some(R::GetProtocolFeatures)) => {
                self.lasting.asked += 1;
                let bit = if number == 1 { 1 << 15 } else { 1 << 2 };
                let changes = self.lasting.asked.is_multiple_of(2);
                let bits = answer.as_ref().and_then(|answer| answer.payload.first_chunk());
                let bits = bits.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                answer = Some(value(if changes { bits ^ bit } else { bits }));
            }
            (Slip::NoQueues, Some(R::GetQueueNum)) | (Slip::NoSlots, Some(R::GetMaxMemSlots)) => {
                answer = Some(value(0));
            }
            (Slip::ForgetsStatus, Some(R::GetStatus)) => answer = Some(value(self.status)),
            (Slip::KeepsStatus, Some(R::GetStatus)) => {
                self.lasting.asked += 1;
                let bits = answer.as_ref().and_then(|answer| answer.payload.first().copied());
                answer = Some(value(bits.filter(|bits| *bits != 0).unwrap_or(3).into()));
            }
            (Slip::RefusesMtu, Some(R::NetSetMtu)) => answer = Some(value(1)),
            (Slip::BaseOfAnotherRing, Some(R::GetVringBase)) => {
                answer = Some(state(u32::from(index) + 1, 0));
            }
            (Slip::BaseIsZero, Some(R::GetVringBase)) => answer = Some(state(index.into(), 0)),
            (Slip::HalfABase, Some(R::GetVringBase)) => {
                let num = answer.as_ref().and_then(|answer| answer.payload.get(4..6));
                let num = num.map_or(0, |half| u32::from(half[0]) | u32::from(half[1]) << 8);
                answer = Some(state(index.into(), num));
            }
            (Slip::BaseOnce, Some(R::GetVringBase)) => {
                self.lasting.asked += 1;
                if self.lasting.asked.is_multiple_of(2) {
                    answer = Some(state(index.into(), 7));
                }
            }
            (Slip::AcknowledgesUnknown, None) if asked && negotiated => answer = Some(value(0)),
            _ => {}
        }
        Some(answer)
    }

    /// Keeps copies of a message's descriptors for ever.
    fn keep(&mut self, message: &Message) {
        let copies =
            message.descriptors.iter().filter_map(|one| one.as_fd().try_clone_to_owned().ok());
        self.lasting.descriptors.extend(copies);
    }

    fn send(&mut self, mut message: Message) -> Option<()> {
        match self.fault.does {
            Does::Slip(Slip::ReplyFlags) => message.header.need_reply = true,
            Does::Slip(Slip::ReplyNumber) => message.header.request += 1,
            Does::Slip(Slip::ReplySize) => {
                message.payload.truncate(4);
                message.header.size = message.payload.len() as u32;
            }
            Does::Slip(Slip::ReplyDescriptors) => {
                // Of a kind that is quickly closed: the connection ends when too many others are pending.
                message.descriptors = vec![eventfd(0, EventfdFlags::CLOEXEC).ok()?.into()];
            }
            _ => {}
        }
        match self.connection.send(message) {
            Ok(_) => Some(()),
            Err(error) => self.ends(|| format!("broken {error:?}")),
        }
    }

    /// Takes over another device, between two turns.
    fn take(&mut self, device: &Arc<Device>) {
        for (ring, setup) in device.rings.iter().enumerate() {
            let is_kept = self.is(Slip::RunsWhenStopped) && setup.is_none();
            let current = &mut self.queues[ring];
            if let Some(queue) = current
                && setup.as_ref().is_none_or(|setup| setup.start != queue.start)
            {
                self.session.stopped(ring, queue.queue.position());
                if is_kept {
                    continue;
                }
                *current = None;
            }
            let Some(setup) = setup else { continue };
            if !(self.calls[ring].is_some() && self.fault.is(Slip::KeepsFormerCall)) {
                self.calls[ring] = setup.call.clone();
            }
            if !(self.kicks[ring].is_some() && self.fault.is(Slip::KeepsFormerKick)) {
                self.kicks[ring] = setup.kick.clone();
            }
            match current {
                Some(queue) => queue.queue.relocate(setup.layout.clone()),
                None => {
                    let layout = setup.layout.clone();
                    let features = match self.fault.does {
                        Does::Forgets(forgotten) => device.features.without(forgotten),
                        Does::Slip(Slip::UsesOutOfOrder) => device.features.without(F::IN_ORDER),
                        _ => device.features,
                    };
                    let base = match self.fault.does {
                        Does::Slip(Slip::StartsAtZero)
                            if !device.features.contains(F::RING_PACKED) =>
                        {
                            0
                        }
                        _ => setup.base,
                    };
                    let queue = DeviceQueue::new(layout, features, base);
                    let kicked = !self.fault.is(Slip::ForgetsEarlyKicks);
                    if let Some(kick) = self.kicks[ring].as_ref().filter(|_| !kicked)
                        && readable(kick.as_fd(), 0)
                    {
                        let _ = rustix::io::read(kick, &mut [0; 8]);
                    }
                    *current = Some(Queue { start: setup.start, queue, used: 0, kicked });
                }
            }
        }
        self.lasting.merged |= device.features.contains(F::MRG_RXBUF);
        self.device = device.clone();
    }

    fn is_enabled(&self, ring: usize) -> bool {
        match &self.device.rings[ring] {
            Some(setup) => setup.enabled,
            None => self.is(Slip::RunsWhenStopped),
        }
    }

    fn call(&self, ring: usize, wanted: bool) {
        let wanted = match self.fault.does {
            Does::Slip(Slip::NeverCalls) => false,
            Does::Slip(Slip::NeverCallsSenders) if ring % 2 == 1 => false,
            Does::Slip(Slip::AlwaysCalls) => true,
            _ => wanted,
        };
        if wanted && let Some(call) = &self.calls[ring] {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Whether a ring may be looked at, where kicks are waited for; takes the kick.
    fn was_kicked(&mut self, ring: usize) -> bool {
        let Some(kick) = self.kicks[ring].clone() else { return true };
        let is_kicked = readable(kick.as_fd(), 0);
        let mut kicks = [0; 8];
        if is_kicked {
            let _ = rustix::io::read(&kick, &mut kicks);
        }
        let waits = [
            Slip::AsksForNoKicks,
            Slip::ForgetsEarlyKicks,
            Slip::KeepsFormerKick,
            Slip::UsesOutOfOrder,
        ];
        let waits = waits.into_iter().any(|slip| self.is(slip));
        if u64::from_ne_bytes(kicks) >= MANY_KICKS {
            self.meets(|| format!("kicked ring={ring} many times"));
        }
        let start =
            self.queues[ring].as_mut().is_some_and(|queue| std::mem::take(&mut queue.kicked));
        !waits || is_kicked || start
    }

    /// A ring was broken by its driver.
    fn wrong(&mut self, ring: usize, violation: &virtqueue::Violation) -> Option<()> {
        let format = self.format();
        self.ends(|| format!("wrong {format} ring={ring} {violation:?}"))
    }

    fn format(&self) -> &'static str {
        if self.device.features.contains(F::RING_PACKED) { "packed" } else { "split" }
    }

    /// Takes all frames of a pair and sends them back. None when the guest broke the rules.
    fn transmit(&mut self, pair: usize) -> Option<()> {
        let ring = 2 * pair + 1;
        let enabled = self.is_enabled(ring);
        if self.queues[ring].is_none()
            || !self.was_kicked(ring)
            || !enabled && self.is(Slip::StallsWhenDisabled)
            || self.addresses[2 * pair].is_none() && self.is(Slip::NeedsReceiveRing)
            || !self.device.features.contains(F::VERSION_1) && self.is(Slip::ServesNoLegacy)
        {
            return if self.struck.is_some() { None } else { Some(()) };
        }
        let Some(mut served) = self.queues[ring].take() else { return Some(()) };
        let memory = self.device.memory.clone();
        let mut translator = memory.translator();
        let mut frames = Vec::new();
        let mut taken = Vec::new();
        let is_over = self.is(Slip::StopsAfterARound) && served.used >= served.queue.size().into();
        loop {
            if is_over {
                break;
            }
            let mut slices: Vec<ReadSlice<'_>> = Vec::new();
            let chain = match served.queue.take_readable(&mut translator, LIMIT, &mut slices) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(violation) => return self.wrong(ring, &violation),
            };
            taken.push(chain);
            served.used += 1;
            frames.extend(self.frame(ring, slices, chain));
            if self.struck.is_some() {
                return None;
            }
        }
        if self.is(Slip::UsesOutOfOrder) {
            // A driver that knows of IN_ORDER reads the entry behind the last one of each batch, so most
            // other orders look like batches.
            for five in taken.chunks_exact_mut(5) {
                let former = [five[0], five[3], five[1], five[4], five[2]];
                five.copy_from_slice(&former);
            }
        }
        let used = !taken.is_empty();
        for chain in taken {
            served.queue.give_back(chain, u32::from(self.is(Slip::TransmitLength)));
        }
        if used {
            let wanted = served.queue.publish();
            self.log_used(ring);
            self.scribble(ring);
            self.call(ring, wanted);
        }
        let more = if self.is(Slip::AsksForNoKicks) {
            served.queue.disable_kicks();
            false
        } else {
            match served.queue.enable_kicks() {
                Ok(more) => more,
                Err(violation) => return self.wrong(ring, &violation),
            }
        };
        self.queues[ring] = Some(served);
        let passes = enabled || self.is(Slip::SendsWhenDisabled);
        if passes && (pair == 0 || !self.is(Slip::FirstPairOnly)) {
            for (header, offload, frame) in frames {
                self.echo(pair, header, offload, frame)?;
            }
        }
        if more && used && !self.is(Slip::KeepsFormerKick) { self.transmit(pair) } else { Some(()) }
    }

    /// The frame in a chain, if it is one.
    fn frame(
        &mut self,
        ring: usize,
        mut slices: Vec<ReadSlice<'_>>,
        chain: Chain,
    ) -> Option<(NetHeader, Offload, Vec<u8>)> {
        if self.is(Slip::FirstDescriptorOnly) {
            slices.truncate(1);
        }
        let pieces = slices.len();
        let mut bytes = Vec::new();
        for slice in slices {
            let start = bytes.len();
            bytes.resize(start + slice.len(), 0);
            slice.copy_to(&mut bytes[start..]);
        }
        let mut header_len = NetHeader::size(self.device.features);
        if self.is(Slip::LongHeaderOnly) || self.is(Slip::LongHeaderBothWays) {
            header_len = NetHeader::SIZE;
        }
        let format = self.format();
        if bytes.len() < header_len + 14 || bytes.len() >= 65536 {
            let len = bytes.len();
            let how = if len < 100 { "short" } else { "long" };
            self.meets(|| format!("odd {format} frame ring={ring} {how} len={len} {chain:?}"));
            return None;
        }
        let frame = bytes.split_off(header_len);
        let mut whole = [0; NetHeader::SIZE];
        whole[..header_len].copy_from_slice(&bytes);
        let mut header = NetHeader::from_bytes(&whole);
        if self.is(Slip::ChecksumWithoutFlag) && header.csum_start > 0 {
            header.flags |= NetHeader::NEEDS_CSUM;
        }
        let offload = header.offload(frame.len(), self.device.features);
        let len = frame.len();
        let harm = self.meets(|| {
            format!("{format} frame ring={ring} pieces={pieces}. len={len} {header:?} {offload:?} {chain:?}")
        });
        if harm == Some(Harm::Ignores) {
            return None;
        }
        Some((header, offload.ok()?, frame))
    }

    /// Sends a frame back, finished where the guest does not take it as it is.
    fn echo(
        &mut self,
        pair: usize,
        header: NetHeader,
        offload: Offload,
        mut frame: Vec<u8>,
    ) -> Option<()> {
        match self.fault.does {
            Does::Slip(Slip::LosesLastByte) => frame.truncate(frame.len() - 1),
            Does::Slip(Slip::ChangesByte) => *frame.last_mut()? ^= 1,
            Does::Slip(Slip::DeliversTwice) => {
                self.deliver(pair, NetHeader::default(), &frame)?;
            }
            Does::Slip(Slip::DropsUnknownFlags) if header.flags & !3 != 0 => return Some(()),
            Does::Slip(Slip::TrustsHeaderLength)
                if offload.checksum.is_some() && usize::from(header.hdr_len) < 34 =>
            {
                return Some(());
            }
            _ => {}
        }
        // To the pair that it came from, if that takes any, or else to the first.
        let takes = self.queues[2 * pair].is_some() && self.is_enabled(2 * pair);
        let pair = if takes && !self.is(Slip::LastPairOnly) { pair } else { 0 };
        let pair = if self.is(Slip::LastPairOnly) && self.queues[2].is_some() { 1 } else { pair };
        let passes = self.device.features.contains(offload.needs());
        match offload {
            _ if passes || self.is(Slip::PassesOffloads) => {
                let mut header = offload.header(1);
                if self.is(Slip::WrongChecksumStart) && header.csum_start > 0 {
                    header.csum_start += 2;
                }
                if self.is(Slip::ForgetsNeedsChecksum) {
                    header.flags = 0;
                }
                self.deliver(pair, header, &frame)
            }
            Offload { segmentation: Some(segmentation), checksum: Some(checksum) } => {
                let head = &frame[..frame.len().min(MAX_HEADERS)];
                let mut segments = match Segments::plan(head, frame.len(), segmentation, checksum) {
                    Ok(segments) => segments,
                    Err(fault) => {
                        self.meets(|| format!("unsegmentable {fault:?}"));
                        return if self.struck.is_some() { None } else { Some(()) };
                    }
                };
                let mut number = 0;
                while let Some(segment) = segments.next() {
                    let payload = frame.get(segment.payload())?;
                    let mut sum = Sum::new();
                    sum.add(payload);
                    let mut whole = segment.header().to_vec();
                    if !self.is(Slip::SegmentsWithoutChecksum) {
                        let at = segment.checksum_at();
                        whole[at..at + 2].copy_from_slice(&segment.checksum(sum));
                    }
                    whole.extend(payload);
                    number += 1;
                    if number == 2 && self.is(Slip::LosesASegment) {
                        continue;
                    }
                    self.deliver(pair, NetHeader::default(), &whole)?;
                }
                Some(())
            }
            Offload { checksum: Some(partial), .. } => {
                let is_left = match self.fault.does {
                    Does::Slip(Slip::LeavesChecksums) => true,
                    Does::Slip(Slip::LeavesUdpChecksums) => partial.offset == 6,
                    _ => false,
                };
                if !is_left {
                    complete(&mut frame, partial);
                }
                self.deliver(pair, NetHeader::default(), &frame)
            }
            _ => self.deliver(pair, NetHeader::default(), &frame),
        }
    }

    fn deliver(&mut self, pair: usize, header: NetHeader, frame: &[u8]) -> Option<()> {
        let ring = 2 * pair;
        if !self.is_enabled(ring) && !self.is(Slip::DeliversWhenDisabled) {
            return Some(());
        }
        let Some(mut served) = self.queues[ring].take() else { return Some(()) };
        let header_len = match self.fault.does {
            Does::Slip(Slip::LongHeaderBothWays) => NetHeader::SIZE,
            _ => NetHeader::size(self.device.features),
        };
        let merges = self.device.features.contains(F::MRG_RXBUF) && !self.forgets(F::MRG_RXBUF)
            || self.is(Slip::RemembersMerging) && self.lasting.merged;
        let memory = self.device.memory.clone();
        let mut translator = memory.translator();
        let mut chains: Vec<(Chain, usize, Option<Buffer>)> = Vec::new();
        let mut slices = Vec::new();
        let mut room = 0;
        let total = header_len + frame.len();
        while room < total && (merges || chains.is_empty()) {
            let before = slices.len();
            let buffer = self.buffer(ring, &served.queue);
            let chain = match served.queue.take_writable(&mut translator, LIMIT, &mut slices) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(violation) => return self.wrong(ring, &violation),
            };
            let len = slices[before..].iter().map(memory::WriteSlice::len).sum();
            if len < header_len {
                return self.ends(|| format!("odd buffer of {len}"));
            }
            room += len;
            chains.push((chain, len, buffer));
        }
        let (format, pieces, count) = (self.format(), slices.len(), chains.len());
        let harm = self.meets(|| {
            let fits = if room < total { "too small" } else { "fits" };
            format!("{format} delivery pieces={pieces}. chains={count}. len={} {fits}", frame.len())
        });
        if self.struck.is_some() {
            return None;
        }
        let cuts = self.is(Slip::CutsLargeFrames) && !chains.is_empty();
        if room < total && !cuts || harm == Some(Harm::Ignores) {
            let taken: Vec<Chain> = chains.into_iter().map(|(chain, ..)| chain).collect();
            served.queue.untake(&taken);
            self.queues[ring] = Some(served);
            return Some(());
        }
        let mut header = NetHeader { num_buffers: chains.len() as u16, ..header };
        match self.fault.does {
            Does::Slip(Slip::NoBuffersCounted) => header.num_buffers = 0,
            Does::Slip(Slip::OneBufferCounted) => header.num_buffers = 1,
            Does::Slip(Slip::ChecksumFlag) => header.flags |= NetHeader::DATA_VALID,
            Does::Slip(Slip::GsoType) => header.gso_type = NetHeader::GSO_TCPV4,
            _ => {}
        }
        let is_late = self.is(Slip::CallsLate) && self.has_calls_off(ring);
        let bytes = [&header.to_bytes()[..header_len], frame].concat();
        WriteCursor::new(&slices).write(bytes.as_slice().into());
        let mut left = total.min(room);
        for (chain, len, buffer) in chains {
            let mut written = left.min(len);
            left -= written;
            self.log_buffer(buffer, written as u64);
            match self.fault.does {
                Does::Slip(Slip::ShortLength) => written -= 1,
                Does::Slip(Slip::LongLength) => written += 1,
                Does::Slip(Slip::LengthWithoutHeader) => written -= written.min(header_len),
                Does::Slip(Slip::MergesLoosely) if left > 0 => written -= 1,
                Does::Slip(Slip::WritesBehindBuffer) => {
                    if let Some((address, len)) = buffer {
                        self.write(address + u64::from(len), &[0]);
                    }
                }
                _ => {}
            }
            served.queue.give_back(chain, written as u32);
        }
        if is_late {
            std::thread::sleep(LATE);
        }
        let wanted = served.queue.publish() || is_late;
        self.log_used(ring);
        self.call(ring, wanted);
        if let Err(violation) = served.queue.enable_kicks() {
            return self.wrong(ring, &violation);
        }
        self.queues[ring] = Some(served);
        Some(())
    }

    fn forgets(&self, features: F) -> bool {
        matches!(self.fault.does, Does::Forgets(forgotten) if forgotten.contains(features))
    }

    /// Bytes of the guest's memory.
    fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut translator = self.device.memory.translator();
        translator.copy_to(GuestAddress(address), &mut bytes).ok()?;
        Some(bytes)
    }

    /// Writes where nobody checks whether that may be.
    fn write(&self, address: u64, bytes: &[u8]) {
        let mut slices = Vec::new();
        let memory = self.device.memory.clone();
        let found =
            memory.translator().write(GuestAddress(address), bytes.len() as u32, &mut slices);
        if found.is_ok() {
            WriteCursor::new(&slices).write(bytes.into());
        }
    }

    /// Where the guest sees what a ring's addresses name.
    fn guest(&self, front_end: u64) -> Option<u64> {
        let address = self.device.memory.translate(FrontEndAddress(front_end), 1).ok()?;
        Some(address.0)
    }

    /// Whether the driver of a split ring has switched calls off.
    fn has_calls_off(&self, ring: usize) -> bool {
        let available = self.addresses[ring].and_then(|found| self.guest(found.available));
        available.and_then(|at| self.read(at)) == Some([1, 0])
    }

    /// The first descriptor of the next chain: address and length.
    fn buffer(&self, ring: usize, queue: &DeviceQueue) -> Option<Buffer> {
        let addresses = self.addresses[ring]?;
        let table = self.guest(addresses.descriptors)?;
        let position = queue.position() as u16;
        let slot = if self.device.features.contains(F::RING_PACKED) {
            position & 0x7fff
        } else {
            let available = self.guest(addresses.available)?;
            let entry = position % queue.size();
            u16::from_le_bytes(self.read(available + 4 + 2 * u64::from(entry))?)
        };
        let descriptor: [u8; 16] = self.read(table + 16 * u64::from(slot))?;
        let (address, rest) = descriptor.split_first_chunk()?;
        let len = rest.first_chunk()?;
        Some((u64::from_le_bytes(*address), u32::from_le_bytes(*len)))
    }

    /// Writes where only the driver may.
    fn scribble(&mut self, ring: usize) {
        let Some(addresses) = self.addresses[ring] else { return };
        let at = match self.fault.does {
            // The last descriptor, and the last head: no one looks at them soon.
            Does::Slip(Slip::WritesTable) => {
                self.guest(addresses.descriptors).map(|at| at + 16 * 63)
            }
            Does::Slip(Slip::WritesAvailable) => {
                self.guest(addresses.available).map(|at| at + 4 + 2 * 63)
            }
            _ => None,
        };
        if let Some(at) = at {
            self.lasting.asked += 1;
            self.write(at, &[self.lasting.asked as u8]);
        }
    }

    fn set_log(&mut self, payload: &[u8], files: Vec<OwnedFd>) {
        let word =
            |at: usize| payload.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        let file = files.into_iter().next();
        if let (Some(size), Some(offset), Some(file)) = (word(0), word(8), file) {
            self.meets(|| format!("log size={size:#x} offset={offset:#x}"));
            let offset = if self.is(Slip::LogsAtStart) { 0 } else { offset };
            self.log = Some(Log { file, size, offset });
        }
    }

    /// Marks the pages of some bytes.
    fn mark(&self, address: u64, len: u64) {
        let Some(log) = self.log.as_ref().filter(|_| self.logs && len > 0) else { return };
        let last = match self.fault.does {
            Does::Slip(Slip::LogsFirstPage) => address / 4096,
            _ => (address + len - 1) / 4096,
        };
        for page in address / 4096..=last {
            let Some(at) = log.offset.checked_add(page / 8).filter(|_| page / 8 < log.size) else {
                return;
            };
            let mut byte = [0];
            // What is not there cannot be marked.
            if rustix::io::pread(&log.file, &mut byte, at).is_ok_and(|count| count == 1) {
                byte[0] |= 1 << (page % 8);
                let _ = rustix::io::pwrite(&log.file, &byte, at);
            }
        }
    }

    /// Marks them now, unless the fault is to do so later.
    fn log_bytes(&mut self, address: u64, len: u64) {
        if self.is(Slip::LogsForeverLate) {
            self.unmarked.push((address, len));
        } else {
            self.mark(address, len);
        }
    }

    fn log_buffer(&mut self, buffer: Option<Buffer>, written: u64) {
        let packed = self.device.features.contains(F::RING_PACKED);
        let is_left = match self.fault.does {
            Does::Slip(Slip::LogsNoBuffers) => true,
            Does::Slip(Slip::LogsSplitOnly) => packed,
            _ => false,
        };
        if let Some((address, _)) = buffer.filter(|_| !is_left) {
            self.log_bytes(address, written);
        }
    }

    fn log_used(&mut self, ring: usize) {
        let size = self.queues.len() as u64 * 4096;
        if let Some(address) = self.addresses[ring]
            && address.flags & LOG_RING != 0
            && !self.is(Slip::LogsNoRings)
        {
            self.log_bytes(address.log, size.min(6 + 8 * 64));
        }
    }
}
