//! The loop that sends and receives.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use wire::ethernet::{EtherType, Ethernet, MacAddress};
use wire::virtio::{Features, NetHeader};

use super::frame::{
    self, Addresses, Digest, Frames, Identity, MIN_SIZE, Stamp, Template, Variable, flow_port, mac,
    stamp_offset,
};
use super::port::{LoadError, Port, Ring};
use super::tally::Tally;

/// Frames that are published together while there are others to be handled, as the bursts of DPDK.
const BATCH: usize = 32;
/// How often the generator looks up from its work: for a back end that has gone, and to be told to stop.
const LOOK_UP: Duration = Duration::from_millis(10);
/// In a closed loop, how long after the last frame those under way are taken for lost.
const QUIET: Duration = Duration::from_millis(100);
/// How long frames that are under way are waited for after the last one was sent (RFC 2544, section 23).
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// What became due before the end may still be sent for this part of the trial's time behind it.
const CATCH_UP: f64 = 0.001;
/// How long a back end may take for the frames by which it learns addresses.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(5);
/// Passes without work after which others may have the processor.
const IDLE_PASSES: u32 = 64;
/// The longest latency that is told from longer ones, in nanoseconds.
const LONGEST_LATENCY: u64 = 60_000_000_000;
/// Significant digits of latencies.
const PRECISION: u8 = 3;

/// The word of a transmit buffer that ends with the source port.
const PORT_WORD: usize = 5;

/// How fast frames are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many frames are under way each way at any time: as fast as the back end can (a closed loop).
    Window(usize),
    /// So many frames per second each way, whatever comes back (an open loop).
    Rate(f64),
}

/// What is sent and checked in each trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The frames.
    pub frames: Frames,
    /// Their addresses.
    pub addresses: Addresses,
    /// Whether each frame has a checksum, and all of it is checked.
    pub verify: bool,
    /// Whether only the first port sends. If it is the only one, nothing is expected to come back.
    pub one_way: bool,
}

/// One trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// What is sent.
    pub setup: Setup,
    /// How fast.
    pub pace: Pace,
    /// For how long.
    pub time: Duration,
}

/// What a trial and whoever watches it tell each other.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set to end the trial early.
    pub stop: AtomicBool,
    /// Frames sent so far in this trial, by all ports.
    pub sent: AtomicU64,
    /// Frames that came.
    pub received: AtomicU64,
}

/// What became of the frames of one direction.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where they were sent and received: numbers of ports.
    pub route: (usize, usize),
    /// Frames sent.
    pub sent: u64,
    /// Frames that were due and could not be sent, because there was no room in the ring.
    pub unsent: u64,
    /// Frames that came, each once; where nothing is expected back, that the back end took.
    pub received: u64,
    /// Of these, frames that came while there still were some being sent: what rates are made of.
    pub in_time: u64,
    /// Bytes of the frames that came in time.
    pub bytes: u64,
    /// Frames that did not come.
    pub lost: u64,
    /// Frames that came after a later one of the same flow.
    pub reordered: u64,
    /// Frames that came again.
    pub duplicates: u64,
    /// Frames that came otherwise than they were sent.
    pub corrupted: u64,
    /// Frames that came and were not ours.
    pub foreign: u64,
    /// Nanoseconds from when a frame should have been sent to when it came.
    pub latency: Histogram<u64>,
}

/// A trial as a whole.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of each direction.
    pub directions: Vec<Outcome>,
    /// How long frames were sent.
    pub time: Duration,
    /// CPU time that the generator's thread used meanwhile.
    pub cpu: Duration,
    /// Part of the time in which it had something to do: below 1, the generator was not the limit.
    pub busy: f64,
    /// Frames that it sent and received in one go, on average. When it is the limit, they pile up.
    pub batch: f64,
    /// Whether it was told to stop.
    pub interrupted: bool,
}

/// A sender's side of a direction.
struct Sender {
    /// From which port to which.
    route: (u8, u8),
    base: u64,
    sent: u64,
    /// The sizes; which of them has each turn; the turn of the next frame, and of the first frame since
    /// all addresses were last used.
    kinds: Box<[Kind]>,
    turns: Box<[u8]>,
    turn: usize,
    first_turn: usize,
    /// Where the addresses have got to.
    mac: u32,
    flow: u16,
    /// The word of the frame that ends with the source port, without the port.
    port_word: u64,
    /// See [`address_word`]; without the numbers at the ends of both addresses.
    address_word: u64,
    /// Frames below this number are not waited for any more.
    given_up: u64,
}

/// Frames of one size.
struct Kind {
    /// Bytes in the transmit buffer, header included.
    len: u32,
    /// The words of the headers in which sizes differ: any other may have been in the buffer before.
    words: Box<[(usize, u64)]>,
    /// The frame in each transmit buffer, as far as its checksum does not change.
    digests: Box<[Digest]>,
}

/// A receiver's side of a direction.
struct Receiver {
    base: u64,
    tally: Tally,
    bytes: u64,
    corrupted: u64,
    foreign: u64,
    latency: Histogram<u64>,
    /// Frames of the same time in a row, which are recorded together.
    run: (u64, u64),
}

/// A port's buffers between being used and being posted again.
#[derive(Default)]
struct Reception {
    /// Used and not looked at: the buffer and the bytes written.
    pending: Vec<(u16, u32)>,
    /// Looked at, and to be posted.
    free: usize,
    /// A frame as it is checked.
    frame: Vec<u8>,
}

/// One or more ports, and the loop over them.
pub struct Generator {
    ports: Vec<Port>,
    receptions: Vec<Reception>,
    /// Counts trials, so that frames of an earlier one are known.
    trial: u8,
}

impl Generator {
    /// A generator with these ports: at least one, at most 255.
    pub fn new(ports: Vec<Port>) -> Self {
        let receptions = ports.iter().map(|port| Reception {
            pending: Vec::with_capacity(2 * usize::from(port.receive.queue.size())),
            ..Reception::default()
        });
        Self { receptions: receptions.collect(), ports, trial: 0 }
    }

    /// The ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Runs one trial on the calling thread.
    ///
    /// # Errors
    ///
    /// A back end goes away, breaks a rule, or keeps frames of the trial before.
    pub fn run(&mut self, load: &Load, progress: &Progress) -> Result<Report, LoadError> {
        let Load { setup, pace, time } = load;
        let count = self.ports.len();
        let directions = if setup.one_way { 1 } else { count };
        if let Pace::Window(window) = *pace {
            let window_of = |port: &Port| port.window(setup.frames.longest());
            let sink = setup.one_way && count == 1;
            let most = self.ports.iter().map(window_of).min().filter(|_| !sink);
            let most = most.unwrap_or(usize::MAX);
            if window > most {
                let ring_size = self.ports.first().map_or(0, |port| port.receive.queue.size());
                return Err(LoadError::Window { window, ring_size, most });
            }
        }
        self.announce(setup.addresses.macs)?;
        self.trial = self.trial.wrapping_add(1);
        let senders = (0..directions).map(|from| self.sender(from, setup));
        let senders = senders.collect::<Result<Vec<_>, _>>()?;
        let flows = setup.addresses.count();
        let receiver = |from| Receiver::new(Identity::base(from as u8, self.trial), flows);
        let receivers = (0..directions).map(receiver).collect();
        let trial = Trial {
            senders,
            receivers,
            setup,
            pace: *pace,
            start: Instant::now(),
            end: 0,
            now: 0,
            moved: 0,
            looked_up: 0,
            worked: false,
            idle: 0,
            busy: 0,
            passes: 0,
        };
        trial.run(self, *time, progress)
    }

    /// Shows the back end all source addresses, so that frames to them need not go to everybody. It may
    /// have forgotten those that it was shown before the last trial (RFC 2544, section 23).
    fn announce(&mut self, macs: u32) -> Result<(), LoadError> {
        if self.ports.len() < 2 {
            return Ok(());
        }
        let deadline = Instant::now() + ANNOUNCE_LIMIT;
        for number in 0..self.ports.len() {
            let from = number as u8;
            let frame = announcement(from);
            self.ports[number].prepare(|_| Template::of(&frame))?;
            let mut next = 0;
            while next < macs || self.ports[number].transmit.queue.outstanding() > 0 {
                let port = &mut self.ports[number];
                let mut worked = false;
                while next < macs
                    && let Some(slot) = port.transmit.queue.post()
                {
                    let word = address_word(MacAddress::BROADCAST, mac(from, next as u16));
                    store(port.transmit.area.words(slot), 2, word);
                    next += 1;
                    worked = true;
                }
                port.transmit.publish();
                worked |= port.reclaim()? > 0;
                self.ignore_received()?;
                if !worked {
                    let port = &self.ports[number];
                    port.check()?;
                    if Instant::now() > deadline {
                        let held = port.transmit.queue.outstanding();
                        return Err(LoadError::Stalled { path: port.path().to_owned(), held });
                    }
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    }

    /// Makes room for what comes now.
    fn ignore_received(&mut self) -> Result<(), LoadError> {
        for (port, reception) in self.ports.iter_mut().zip(&mut self.receptions) {
            reception.reap(port)?;
            reception.free += reception.pending.len();
            reception.pending.clear();
            reception.post(port);
        }
        Ok(())
    }

    fn sender(&mut self, from: usize, setup: &Setup) -> Result<Sender, LoadError> {
        let to = (from + 1) % self.ports.len();
        let (from_port, to_port) = (from as u8, to as u8);
        let Frames { segmented, .. } = setup.frames;
        let template = |size, slot| Template::new(from_port, to_port, size, segmented, slot);
        let longest = setup.frames.longest();
        let port = &mut self.ports[from];
        port.prepare(|slot| template(longest, slot))?;
        let (longest, slots) = (template(longest, 0), port.transmit.queue.size());
        let stamp = (NetHeader::SIZE + stamp_offset(segmented)) / 8;
        let (sizes, turns) = setup.frames.turns();
        let frames: Vec<Template> = sizes.iter().map(|size| template(*size, 0)).collect();
        let differ = |at: &usize| frames.iter().any(|frame| frame.word(*at) != longest.word(*at));
        let places: Vec<usize> = (0..stamp).filter(differ).collect();
        let kind = |(size, frame): (&usize, &Template)| Kind {
            len: frame.bytes.len() as u32,
            words: places.iter().map(|at| (*at, frame.word(*at))).collect(),
            digests: (0..slots).map(|slot| template(*size, slot).digest).collect(),
        };
        Ok(Sender {
            route: (from_port, to_port),
            base: Identity::base(from_port, self.trial),
            sent: 0,
            kinds: sizes.iter().zip(&frames).map(kind).collect(),
            turns: turns.into(),
            turn: 0,
            first_turn: 0,
            mac: 0,
            flow: 0,
            address_word: address_word(mac(to_port, 0), mac(from_port, 0)),
            port_word: longest.word(PORT_WORD) & (u64::MAX >> 16),
            given_up: 0,
        })
    }
}

impl Reception {
    /// Takes what the back end has used.
    #[inline]
    fn reap(&mut self, port: &mut Port) -> Result<usize, LoadError> {
        /// Words of a cache line. The stamp ends within two of those.
        const LINE: usize = 8;
        let Ring { queue, area, .. } = &mut port.receive;
        let reaped = queue.reap(|slot, written| {
            self.pending.push((slot, written));
            // On their way before the first one is waited for.
            let words = area.words(slot);
            words.iter().step_by(LINE).take(2).for_each(memory::prefetch);
        });
        Ok(reaped.map_err(Port::violation(port.path()))?.into())
    }

    /// Gives the back end all buffers that are free.
    #[inline]
    fn post(&mut self, port: &mut Port) {
        // There are as many buffers as entries.
        let free = std::mem::take(&mut self.free);
        let posted = port.receive.queue.post_each(free as u16, |_| None);
        debug_assert_eq!(usize::from(posted), free);
        port.receive.publish();
    }
}

impl Receiver {
    fn new(base: u64, flows: u64) -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_LATENCY, PRECISION);
        Self {
            base,
            tally: Tally::new(flows),
            bytes: 0,
            corrupted: 0,
            foreign: 0,
            // The bounds are constants that it takes.
            latency: latency.unwrap_or_else(|_| unreachable!("constant bounds")),
            run: (0, 0),
        }
    }

    /// Counts a frame that came at `now`. Of its sender, `sent` frames exist.
    #[inline]
    fn add(&mut self, identity: u64, time: u64, len: usize, sent: u64, now: u64) {
        let Some(number) = Identity::number_of(identity, self.base) else {
            self.foreign += 1;
            return;
        };
        if number >= sent {
            return self.add_corrupted(number, sent);
        }
        self.tally.add(number);
        self.bytes += len as u64;
        if self.run.0 != time {
            self.end_run(now);
            self.run.0 = time;
        }
        self.run.1 += 1;
    }

    /// Counts a frame that came changed. It came, if its number can be believed; if not, the frame that it was
    /// is lost.
    #[cold]
    fn add_corrupted(&mut self, number: u64, sent: u64) {
        self.corrupted += 1;
        if number < sent {
            self.tally.add(number);
        }
    }

    /// Records the latency of the frames that came at `now`.
    #[inline]
    fn end_run(&mut self, now: u64) {
        let (time, count) = self.run;
        if count > 0 {
            let latency = now.saturating_sub(time).clamp(1, LONGEST_LATENCY);
            // Within its bounds.
            let _ = self.latency.record_n(latency, count);
            self.run.1 = 0;
        }
    }
}

/// A trial under way. Times are nanoseconds from its start.
struct Trial<'a> {
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    setup: &'a Setup,
    pace: Pace,
    start: Instant,
    /// When to stop sending.
    end: u64,
    /// Of the pass under way.
    now: u64,
    /// When anything was last sent or received.
    moved: u64,
    /// When the generator last looked up.
    looked_up: u64,
    /// Whether there was work in the last pass; passes without, one after the other; time in passes
    /// with, and how many of them there were.
    worked: bool,
    idle: u32,
    busy: u64,
    passes: u64,
}

impl Trial<'_> {
    fn run(
        mut self,
        generator: &mut Generator,
        time: Duration,
        progress: &Progress,
    ) -> Result<Report, LoadError> {
        let cpu = thread_time();
        self.end = nanoseconds(time);
        let mut interrupted = false;
        while self.now < self.end && !interrupted {
            self.pass(generator, true)?;
            if self.looks_up(generator, progress)? {
                interrupted = progress.stop.load(Ordering::Relaxed);
            }
        }
        // What became due while we were not looking.
        let limit = self.end + (self.end as f64 * CATCH_UP) as u64;
        let mut is_late = !interrupted;
        while is_late {
            self.pass(generator, true)?;
            let waits = |sender: &Sender| self.due().is_some_and(|due| sender.sent < due);
            is_late = self.now < limit && self.senders.iter().any(waits);
        }
        let (sending, cpu, busy) = (self.now, thread_time() - cpu, self.busy);
        let counts = |receiver: &Receiver| (receiver.tally.received, receiver.bytes);
        let in_time: Vec<(u64, u64)> = self.receivers.iter().map(counts).collect();
        let (passes, due) = (self.passes, self.due());
        let deadline = sending + nanoseconds(DRAIN_LIMIT);
        while self.now < deadline && !self.is_complete(generator) {
            self.pass(generator, false)?;
            self.looks_up(generator, progress)?;
        }
        let count = generator.ports.len();
        let is_sink = self.is_sink(generator);
        let mean = self.setup.frames.mean();
        let outcomes = self.senders.iter().zip(self.receivers).zip(in_time).enumerate().map(
            |(from, ((sender, receiver), (in_time, bytes)))| {
                let Receiver { tally, corrupted, foreign, latency, .. } = receiver;
                Outcome {
                    route: (from, (from + 1) % count),
                    sent: sender.sent,
                    unsent: due.map_or(0, |due| due.saturating_sub(sender.sent)),
                    received: tally.received,
                    in_time,
                    bytes: if is_sink { (in_time as f64 * mean) as u64 } else { bytes },
                    lost: sender.sent.saturating_sub(tally.received),
                    reordered: tally.reordered,
                    duplicates: tally.duplicates,
                    corrupted,
                    foreign,
                    latency,
                }
            },
        );
        let directions: Vec<Outcome> = outcomes.collect();
        let frames: u64 = directions.iter().map(|way| way.sent + way.in_time).sum();
        Ok(Report {
            directions,
            time: Duration::from_nanos(sending),
            cpu,
            busy: busy as f64 / sending.max(1) as f64,
            batch: frames as f64 / passes.max(1) as f64,
            interrupted,
        })
    }

    /// Whether frames are only sent, and all that is known of them is whether the back end took them.
    fn is_sink(&self, generator: &Generator) -> bool {
        self.setup.one_way && generator.ports.len() == 1
    }

    /// Receives what is there, and sends what is due.
    fn pass(&mut self, generator: &mut Generator, sending: bool) -> Result<(), LoadError> {
        let mut received = 0;
        for (port, reception) in generator.ports.iter_mut().zip(&mut generator.receptions) {
            received += reception.reap(port)?;
        }
        let before = self.now;
        self.now = nanoseconds(self.start.elapsed());
        if self.worked {
            self.busy += self.now - before;
        }
        if received > 0 {
            for number in 0..generator.ports.len() {
                self.receive(generator, number)?;
            }
        }
        // Before anything is sent: what is under way has to find a buffer.
        for (port, reception) in generator.ports.iter_mut().zip(&mut generator.receptions) {
            if reception.free >= BATCH || (received == 0 && reception.free > 0) {
                reception.post(port);
            }
        }
        let is_sink = self.is_sink(generator);
        let mut sent = 0;
        for from in 0..self.senders.len() {
            let Some(port) = generator.ports.get_mut(from) else { continue };
            sent += usize::from(port.reclaim()?);
            if is_sink {
                let outstanding = u64::from(port.transmit.queue.outstanding());
                self.receivers[from].tally.set_taken(self.senders[from].sent - outstanding);
            }
            if sending {
                // Small batches cost the back end more than they are worth, while there is
                // something else to do.
                sent += self.send(port, from, if received > 0 { BATCH } else { 1 });
            }
        }
        self.worked = received + sent > 0;
        if self.worked {
            self.passes += 1;
            (self.idle, self.moved) = (0, self.now);
        } else {
            self.idle += 1;
            if self.idle.is_multiple_of(IDLE_PASSES) {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Now and then, looks for what is not on the busy path. Returns whether it was time to.
    fn looks_up(&mut self, generator: &Generator, progress: &Progress) -> Result<bool, LoadError> {
        if self.now < self.looked_up + nanoseconds(LOOK_UP) {
            return Ok(false);
        }
        self.looked_up = self.now;
        for port in &generator.ports {
            port.check()?;
        }
        let sent = self.senders.iter().map(|sender| sender.sent).sum();
        let came = self.receivers.iter().map(|receiver| receiver.tally.received).sum();
        progress.sent.store(sent, Ordering::Relaxed);
        progress.received.store(came, Ordering::Relaxed);
        if self.now > self.moved + nanoseconds(QUIET) {
            // What is under way was lost. If it still counted, the window would stay shut.
            self.senders.iter_mut().for_each(|sender| sender.given_up = sender.sent);
        }
        Ok(true)
    }

    /// In an open loop, frames that each port should have sent by now.
    #[inline]
    fn due(&self) -> Option<u64> {
        let Pace::Rate(rate) = self.pace else { return None };
        Some((self.now.min(self.end) as f64 * rate / 1e9) as u64 + 1)
    }

    /// Whether all frames are where they should be.
    fn is_complete(&self, generator: &Generator) -> bool {
        let came = self
            .senders
            .iter()
            .zip(&self.receivers)
            .all(|(sender, receiver)| receiver.tally.received >= sender.sent);
        came && generator.ports.iter().all(|port| port.transmit.queue.outstanding() == 0)
    }

    /// Sends what is due from this port, unless that is fewer than `least`. Returns how many.
    #[inline]
    fn send(&mut self, port: &mut Port, from: usize, least: usize) -> usize {
        let due = self.due().unwrap_or_default();
        let (Some(sender), Some(receiver)) = (self.senders.get_mut(from), self.receivers.get(from))
        else {
            return 0;
        };
        let free = usize::from(port.transmit.queue.size() - port.transmit.queue.outstanding());
        let (due, least, interval) = match self.pace {
            Pace::Window(window) => {
                let under_way =
                    sender.sent.saturating_sub(receiver.tally.next().max(sender.given_up));
                // A short window is a batch of its own.
                (window.saturating_sub(under_way as usize), least.min(window.div_ceil(2)), None)
            }
            Pace::Rate(rate) => (due.saturating_sub(sender.sent) as usize, 1, Some(1e9 / rate)),
        };
        let count = due.min(free);
        if count < least {
            return 0;
        }
        let setup = self.setup;
        match interval {
            None => {
                let now = self.now;
                sender.send(port, setup, count, |_| now);
            }
            // When it should have been sent.
            Some(interval) => {
                sender.send(port, setup, count, |number| (number as f64 * interval) as u64);
            }
        }
        port.transmit.publish();
        count
    }

    /// Looks at all frames that have come to this port.
    #[inline]
    fn receive(&mut self, generator: &mut Generator, number: usize) -> Result<(), LoadError> {
        let count = generator.ports.len();
        let (Some(port), Some(reception)) =
            (generator.ports.get(number), generator.receptions.get_mut(number))
        else {
            return Ok(());
        };
        let from = (number + count - 1) % count;
        let sent = self.senders.get(from).map_or(0, |sender| sender.sent);
        let mut receiver = self.receivers.get_mut(from);
        let delivery = |what| LoadError::Delivery { path: port.path().to_owned(), what };
        let may_merge = port.features().contains(Features::MRG_RXBUF);
        let segmented = self.setup.frames.segmented;
        let stamp = (NetHeader::SIZE + stamp_offset(segmented)) / 8;
        let least = 8 * (stamp + 2) + 4;

        let mut at = 0;
        while let Some((slot, written)) = reception.pending.get(at).copied() {
            let words = port.receive.area.words(slot);
            let buffers = if may_merge { usize::from((load(words, 1) >> 16) as u16) } else { 1 };
            if buffers == 0 || buffers > usize::from(port.receive.queue.size()) {
                return Err(delivery(format!("a frame in {buffers} buffers")));
            }
            // The rest of the frame is on its way.
            let Some(frame) = reception.pending.get(at..at + buffers) else { break };
            let (mut len, mut most) = (written as usize, written);
            for (_, written) in frame.iter().skip(1) {
                len += *written as usize;
                most = most.max(*written);
            }
            if most as usize > port.receive_len {
                let room = port.receive_len;
                return Err(delivery(format!("{most} bytes in a buffer of {room}")));
            }
            at += buffers;
            let Some(receiver) = receiver.as_deref_mut() else { continue };
            if (written as usize) < least {
                receiver.foreign += 1;
                continue;
            }
            let len = len - NetHeader::SIZE;
            if self.setup.verify {
                let copy = &mut reception.frame;
                copy.clear();
                for (slot, written) in frame {
                    port.receive.area.append_to(copy, *slot, *written as usize);
                }
                let copy = copy.get_mut(NetHeader::SIZE..).unwrap_or_default();
                let Some(stamp) = frame::stamp(copy, segmented) else { continue };
                if let Some(number) = Identity::number_of(stamp.identity, receiver.base)
                    && !frame::is_intact(copy, segmented, stamp)
                {
                    receiver.add_corrupted(number, sent);
                    continue;
                }
                receiver.add(stamp.identity, stamp.time, len, sent, self.now);
            } else {
                receiver.add(load(words, stamp), load(words, stamp + 1), len, sent, self.now);
            }
        }
        if let Some(receiver) = receiver {
            receiver.end_run(self.now);
        }
        reception.pending.drain(..at);
        reception.free += at;
        Ok(())
    }
}

impl Sender {
    /// Puts `count` frames into the ring, for which there is room. `time_of` says of each number when the
    /// frame is sent.
    #[inline]
    fn send(&mut self, port: &mut Port, setup: &Setup, count: usize, time_of: impl Fn(u64) -> u64) {
        let at = (NetHeader::SIZE + stamp_offset(setup.frames.segmented)) / 8;
        let is_plain = setup.addresses.are_fixed() && !setup.verify && self.kinds.len() == 1;
        let Ring { queue, area, .. } = &mut port.transmit;
        queue.post_each(count as u16, |slot| {
            let words = area.words(slot);
            let stamp = Stamp { identity: self.base + self.sent, time: time_of(self.sent) };
            self.sent += 1;
            store(words, at, stamp.identity);
            store(words, at + 1, stamp.time);
            if is_plain { None } else { self.dress(words, setup, slot, stamp) }
        });
    }

    /// Gives the frame in this buffer, which has its stamp, all else that changes. Returns the bytes that
    /// it has with its header, if they change.
    fn dress(
        &mut self,
        words: &[AtomicU64],
        setup: &Setup,
        slot: u16,
        stamp: Stamp,
    ) -> Option<u32> {
        let is_mixed = self.kinds.len() > 1;
        let kind = self.turns.get(self.turn).copied().unwrap_or_default();
        let kind = self.kinds.get(usize::from(kind))?;
        if is_mixed {
            kind.words.iter().for_each(|(at, word)| store(words, *at, *word));
            self.turn = following(self.turn, self.turns.len());
        }
        let len = kind.len;
        if setup.verify {
            let digest = kind.digests.get(usize::from(slot)).copied().unwrap_or_default();
            let Stamp { identity, time } = stamp;
            let checksum = digest.checksum(self.variable(), identity, time);
            let at = (NetHeader::SIZE + stamp_offset(setup.frames.segmented)) / 8 + 2;
            // The pattern that shares the word stays.
            let pattern = load(words, at) & !u64::from(u32::MAX);
            store(words, at, pattern | u64::from(checksum));
        }
        if !setup.addresses.are_fixed() {
            self.vary(words, setup.addresses);
        }
        is_mixed.then_some(len)
    }

    /// What the checksum of the next frame is over, beside its digest and its stamp.
    fn variable(&self) -> Variable {
        let (from, to) = self.route;
        let number = self.mac as u16;
        Variable::new(mac(to, number), mac(from, number), flow_port(self.flow))
    }

    /// Gives a frame the next addresses.
    fn vary(&mut self, words: &[AtomicU64], Addresses { macs, flows }: Addresses) {
        // Both addresses end with their number.
        let number = u64::from((self.mac as u16).to_be());
        store(words, 2, self.address_word | number | number << 48);
        if flows > 1 {
            let port = flow_port(self.flow);
            store(words, PORT_WORD, self.port_word | u64::from(port.to_be()) << 48);
        }
        // All addresses in turns, then all of them with the next flow.
        self.mac += 1;
        if self.mac >= macs {
            self.mac = 0;
            self.flow = if self.flow + 1 < flows { self.flow + 1 } else { 0 };
            if self.flow == 0 {
                // So that each flow gets all sizes.
                self.first_turn = following(self.first_turn, self.turns.len());
                self.turn = self.first_turn;
            }
        }
    }
}

/// What comes behind `turn` of so many.
fn following(turn: usize, count: usize) -> usize {
    if turn + 1 < count { turn + 1 } else { 0 }
}

/// The word of a frame in a transmit buffer with the end of the destination and the whole source.
fn address_word(destination: MacAddress, source: MacAddress) -> u64 {
    let [_, _, _, _, e, f] = destination.0;
    let [a, b, c, d, g, h] = source.0;
    u64::from_le_bytes([e, f, a, b, c, d, g, h])
}

#[inline]
fn store(words: &[AtomicU64], at: usize, value: u64) {
    if let Some(word) = words.get(at) {
        word.store(value, Ordering::Relaxed);
    }
}

#[inline]
fn load(words: &[AtomicU64], at: usize) -> u64 {
    words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// A frame that only shows where it comes from.
fn announcement(from: u8) -> Vec<u8> {
    let mut frame = vec![0; MIN_SIZE];
    let ethernet = Ethernet {
        destination: MacAddress::BROADCAST,
        source: mac(from, 0),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        vlan: None,
    };
    ethernet.write(&mut frame);
    frame
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// CPU time that this thread has used.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
