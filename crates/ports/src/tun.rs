//! A port whose outside is the host's own IP: a TUN interface, which carries packets without Ethernet.
//!
//! The port is the host's Ethernet ([`Station`]): towards the bridge it is a station with the host's addresses, for
//! which it answers ARP and neighbour discovery. A packet of the host's gets an Ethernet header, for which the port
//! finds out where the packet's next hop is ([`from_host`], [`neighbours`]); a frame to the host loses its header
//! ([`arrival`]). Offloads pass in both directions as they are, as in a port of a TAP interface; only the places
//! that they name are elsewhere, since the kernel counts from the IP header.
//!
//! There is one queue, which one part of the port reads: it alone knows the neighbours. The others pass on to it
//! what they hear of them, and write.

pub mod arrival;
mod from_host;
pub mod neighbours;
mod slots;
pub mod station;
mod subnets;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{
    App, Burst, Counters, DropReason, Fault, Frame, Lease, Numbers, Outcomes, Outputs, Poller,
    Selection,
};
use memory::{ReadSlice, SliceList, WRITE_SLICES_MAX, WriteCursor, write_vectored};
use rustix::io::Errno;
use sys::tun::Queue;
use wire::virtio::{Features, NetHeader};

use crate::frame::MAX_FRAME;
use crate::offload::Delivery;
use crate::tap::queues::{Queues, Share};
use crate::tap::{READ_INTERVAL, SEGMENT_BUDGET, TapGone, asks, is_within_limits, refusal, takes};

use arrival::{Arrival, Heard};
use from_host::{ANSWERS_EACH, Ears, FromHost, HEARD_EACH, Stop};
pub use station::Station;
pub use subnets::{Subnet, SubnetError, Subnets};

/// The part of a port that one of several workers has.
pub struct TunPort {
    station: Arc<Station>,
    /// Of which worker, and how many there are.
    number: usize,
    workers: usize,
    /// What it has of the interface's queue, while there is an interface.
    share: Option<Share>,
    /// Whether the interface is up, for all that control knows.
    is_up: bool,
    /// Bytes of the longest packet that fits the interface's MTU.
    packet_limit: usize,
    /// What the kernel may ask of a frame's receiver.
    asks: Features,
    /// What the kernel takes as it is.
    takes: Features,
    /// In the first part: what comes from the host.
    from_host: Option<FromHost>,
    /// In the others: where to pass on what they hear.
    ears: Option<Ears>,
    /// What is left of [`ANSWERS_EACH`], or of [`HEARD_EACH`], in this guest's burst.
    answers: usize,
    heard: usize,
    /// What is left of [`SEGMENT_BUDGET`] in this breath.
    segments: usize,
    /// The breath in which something was pushed last.
    breath: u32,
    /// The time when this part was asked last.
    now: u64,
    fault: Option<TapGone>,
    slices: SliceList<ReadSlice<'static>>,
    /// Where a frame is put together that cannot be written from where it lies.
    assembly: Box<[u8]>,
    counters: Counters,
}

impl TunPort {
    /// A port with this queue, the only one of its interface, in as many parts as there are workers. `key` is
    /// something that no guest can guess.
    pub fn parts(
        queue: Queue,
        station: Station,
        workers: usize,
        key: [u64; 2],
    ) -> io::Result<Vec<Self>> {
        let station = Arc::new(station);
        let queues = Queues::new(vec![queue]);
        let (from_host, ears) = FromHost::new(station.clone(), key, workers.saturating_sub(1))?;
        let mut from_host = Some(from_host);
        let mut ears = ears.into_iter();
        let part = |number| {
            let mut part = Self {
                station: station.clone(),
                number,
                workers,
                share: None,
                is_up: true,
                asks: Features::NONE,
                takes: Features::NONE,
                ears: if number == 0 { None } else { ears.next() },
                from_host: from_host.take(),
                packet_limit: usize::MAX,
                answers: 0,
                heard: 0,
                segments: SEGMENT_BUDGET,
                breath: 0,
                now: 0,
                fault: None,
                slices: SliceList::default(),
                assembly: vec![0; MAX_FRAME].into_boxed_slice(),
                counters: Counters::default(),
            };
            part.take(Share::new(queues.clone(), number, workers));
            part
        };
        Ok((0..workers).map(part).collect())
    }

    /// Gives this part its share of the queue of an interface that came back; each part has to be given the same.
    /// Returns what it had before, to be dropped by control. When it fails, the part has what it had.
    pub fn attach(
        &mut self,
        queues: Arc<Queues>,
        poller: &Poller,
    ) -> io::Result<Option<Arc<Queues>>> {
        let mut share = Share::new(queues, self.number, self.workers);
        share.as_mut().map_or(Ok(()), |share| share.watch(poller))?;
        // Not before that has gone well: who drops them here would close them on the worker.
        let before = self.detach();
        self.take(share);
        self.announce(self.is_up);
        Ok(before)
    }

    /// Takes this part's queue away: frames to it are then counted as [`DropReason::ReceiverDown`]. Returns what is
    /// to be dropped by control.
    pub fn detach(&mut self) -> Option<Arc<Queues>> {
        let share = self.share.take()?;
        self.announce(false);
        self.fault = None;
        Some(share.all.clone())
    }

    /// Says whether the interface is up. While it is down, frames to it are not even offered to the kernel, and
    /// counted as [`DropReason::ReceiverDown`]. When it is up again, the host's addresses are announced.
    pub fn set_link(&mut self, is_up: bool) {
        if std::mem::replace(&mut self.is_up, is_up) != is_up {
            self.announce(is_up);
        }
    }

    /// Whether the interface is still there, in whichever network namespace.
    pub fn is_attached(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.all.first().is_some_and(Queue::is_attached))
    }

    /// Sets the interface's MTU, in bytes of an IP packet. Longer packets to it are dropped and counted as
    /// [`DropReason::OverMtu`]. Of one that is yet to be segmented its segments count.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.packet_limit = usize::try_from(mtu).unwrap_or(usize::MAX);
    }

    fn announce(&mut self, begins: bool) {
        if let Some(from_host) = &mut self.from_host {
            from_host.announce(begins);
        }
    }

    /// Takes what it has of the queue from now on.
    fn take(&mut self, share: Option<Share>) {
        if let Some(share) = &share {
            let offloads = share.offloads();
            (self.asks, self.takes) = (asks(offloads), takes(offloads));
        }
        self.share = share;
    }

    /// The interface is gone.
    #[cold]
    fn go(&mut self, error: Errno) {
        if let Some(share) = &mut self.share
            && share.is_first_to_go()
        {
            self.fault = Some(TapGone(error.into()));
        }
    }

    /// Takes one frame.
    fn receive(&mut self, frame: &Frame<'_>, now: u64) -> Result<(), DropReason> {
        // A host that is not there is not answered for either.
        if !self.is_up || self.share.as_ref().is_none_or(|share| share.is_gone) {
            return Err(DropReason::ReceiverDown);
        }
        match arrival::sort(frame, &self.station)? {
            Arrival::Packet(start) => self.send(frame, start),
            Arrival::Heard(heard) => self.hear(heard, now),
        }
    }

    fn hear(&mut self, heard: Heard, now: u64) -> Result<(), DropReason> {
        let Some(learnt) = self.station.hear(heard) else { return Ok(()) };
        if let Some(from_host) = &mut self.from_host {
            from_host.hear(learnt, now, &mut self.answers, &mut self.counters);
            return Ok(());
        }
        self.heard = self.heard.checked_sub(1).ok_or(DropReason::ReceiverFull)?;
        let is_passed_on = self.ears.as_ref().is_some_and(|ears| ears.hear(learnt));
        is_passed_on.then_some(()).ok_or(DropReason::ReceiverFull)
    }

    /// Hands the packet in a frame to the kernel, in whatever form it takes it. It starts at `start`.
    fn send(&mut self, frame: &Frame<'_>, start: usize) -> Result<(), DropReason> {
        let share = self.share.as_ref().ok_or(DropReason::ReceiverDown)?;
        let within = is_within_limits(&frame.offload, frame.len);
        let takes = if within { self.takes } else { Features::NONE };
        let mut delivery = Delivery::new(*frame, takes)?;
        if delivery.wire_len().saturating_sub(start) > self.packet_limit {
            return Err(DropReason::OverMtu);
        }
        let queue = share.target(frame.head);
        let error = if delivery.passes() && frame.body.len() + 2 <= WRITE_SLICES_MAX {
            match write_in_place(queue, frame, start, &mut self.slices) {
                Ok(()) => {
                    self.counters.sent.count(frame.len);
                    return Ok(());
                }
                Err(error) => error,
            }
        } else {
            let left = self.segments.checked_sub(delivery.remaining().saturating_sub(1));
            self.segments = left.ok_or(DropReason::TooManySegments)?;
            loop {
                let Some(outgoing) = delivery.next() else { return Ok(()) };
                let (len, header) = (outgoing.len, outgoing.offload.header(0));
                outgoing.write(WriteCursor::new(&[(&mut *self.assembly).into()]));
                // It replaces the last bytes of the Ethernet header.
                let header_at = start - NetHeader::SIZE;
                let assembled = self.assembly.get_mut(header_at..len).unwrap_or_default();
                if let Some(room) = assembled.first_chunk_mut() {
                    *room = before_ethernet(header, start).to_bytes();
                }
                match rustix::io::write(queue, assembled) {
                    Ok(_) => self.counters.sent.count(len),
                    Err(error) => break error,
                }
            }
        };
        if error == Errno::BADFD {
            self.go(error);
        }
        Err(refusal(error))
    }
}

/// Writes the packet in a frame as it is, from where it lies.
fn write_in_place(
    queue: &Queue,
    frame: &Frame<'_>,
    start: usize,
    scratch: &mut SliceList<ReadSlice<'static>>,
) -> Result<(), Errno> {
    let header = before_ethernet(frame.offload.header(0), start).to_bytes();
    let slices = scratch.lend();
    slices.push(header[..].into());
    slices.push(frame.head.get(start..).unwrap_or_default().into());
    slices.extend_from_slice(frame.body);
    let written = write_vectored(queue.as_fd(), slices);
    let error = |error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    written.map(|_| ()).map_err(error)
}

/// The header of a frame, for the packet that starts at `start`: the places that it names count from there.
fn before_ethernet(header: NetHeader, start: usize) -> NetHeader {
    // All of them were checked to be behind the Ethernet header, if they mean anything; the length is a hint. One in
    // a tag becomes the packet's start.
    let shifted = |place: u16| place.saturating_sub(start as u16);
    let (csum_start, hdr_len) = (shifted(header.csum_start), shifted(header.hdr_len));
    NetHeader { csum_start, hdr_len, ..header }
}

impl App for TunPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.now = burst.now();
        let Self { from_host, share, counters, .. } = self;
        let Some(from_host) = from_host else { return self.fault.is_some() };
        let is_listening = from_host.begin(burst, counters);
        let (mut new, mut gone) = (0, None);
        if let Some(Share { all, own, is_gone: false, .. }) = share
            && let Some(own) =
                own.first_mut().filter(|own| is_listening && self.now >= own.next_read)
        {
            let (count, stop) = from_host.read(own.queue(all), self.now, counters);
            new = count;
            match stop {
                Stop::Enough => {}
                Stop::Drained => own.next_read = self.now + READ_INTERVAL,
                Stop::Gone(error) => gone = Some(error),
            }
        }
        let had_moved = from_host.fill(lease, burst, self.asks, counters);
        if let Some(error) = gone {
            self.go(error);
        }
        had_moved || new > 0 || self.fault.is_some()
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        if let Some(from_host) = &mut self.from_host {
            from_host.reclaim(outcomes, lease);
        }
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        if self.breath != burst.breath() {
            self.breath = burst.breath();
            self.segments = SEGMENT_BUDGET;
        }
        (self.answers, self.heard) = (ANSWERS_EACH, HEARD_EACH);
        for index in selection.iter() {
            let frame = burst.frame(index);
            if let Err(reason) = self.receive(&frame, burst.now()) {
                self.counters.drop(reason);
            }
        }
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.fault.take().map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn arm(&mut self) -> bool {
        // Each packet is an edge on the descriptor, and one that comes after the last read ends the next sleep at
        // once. But slots that became free are for packets that came before.
        let Self { from_host, counters, now, .. } = self;
        from_host.as_mut().is_some_and(|from_host| from_host.arm(*now, counters))
    }

    fn disarm(&mut self) {
        let own = self.share.iter_mut().flat_map(|share| &mut share.own);
        own.for_each(|own| own.next_read = 0);
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.from_host.as_ref().and_then(|from_host| from_host.deadline(now))
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        if let Some(from_host) = &self.from_host {
            poller.watch(from_host.wake())?;
        }
        self.share.as_mut().map_or(Ok(()), |share| share.watch(poller))
    }

    fn is_up(&self) -> bool {
        self.is_up && self.share.as_ref().is_some_and(|share| !share.is_gone)
    }

    fn report(&self, now: u64, numbers: &mut Numbers) {
        if let Some(from_host) = &self.from_host {
            from_host.report(now, numbers);
        }
    }

    /// What is held, and what waits for neighbours, goes nowhere.
    fn stop(&mut self) {
        if let Some(from_host) = &self.from_host {
            self.counters[DropReason::Stopped] += from_host.packets() as u64;
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
