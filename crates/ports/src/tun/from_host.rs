//! What comes from the host: IP packets, which are given an Ethernet header, and wait until it is known whose
//! address goes into it.
//!
//! A packet is read into a slot of a private buffer, behind room for the Ethernet header, and stays there: while
//! its neighbour is asked for, while it is on its way, and while its receiver is full. What the port itself has to
//! say, about who has which address, goes into slots as well. Packets that go, packets that wait, questions and answers
//! have a share of the slots each, so that none is short because there is too much of another.
//!
//! What guests say costs no more than its share either. One of them has so many answers in a burst that there is room
//! for others'. Answers that a guest does not take are given up when there are newer ones. And each of the other parts
//! has a queue of its own for what it hears, of which one burst fills no more than a part.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use engine::{Burst, Counters, DropReason, Lease, Numbers, Outcomes};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use sys::tun::Queue;
use wire::ethernet::{Ethernet, HEADER_SIZE, MacAddress};
use wire::virtio::{Features, NetHeader};

use super::arrival::{Message, destination, ethertype};
use super::neighbours::{Neighbours, Whereabouts};
use super::slots::{Content, Filled, SLOTS, Slots};
use super::station::{Claim, Learnt, Saying, Station};
use super::subnets::NextHop;
use crate::backlog::{Backlog, Plan};

/// Packets that are read in one burst at most.
const FRAMES: usize = 16;
/// Packets that wait for neighbours, all together.
const WAITING: usize = 24;
/// Packets that wait for one neighbour.
const WAITING_EACH: usize = 3;
/// Questions and announcements of our own that are on their way.
const QUESTIONS: usize = 12;
/// Answers that are.
const ANSWERS: usize = 12;
/// Answers to one guest's burst, or to what one other part of the port has heard, in one breath.
pub(super) const ANSWERS_EACH: usize = 4;

const _: () = assert!(FRAMES + WAITING + QUESTIONS + ANSWERS <= SLOTS);

/// How often the host's addresses are announced when the interface is up, a second apart (RFC 4861,
/// MAX_NEIGHBOR_ADVERTISEMENT): guests may not be connected yet when the switch starts.
const ANNOUNCEMENTS: u8 = 3;
const SECOND: u64 = 1_000_000_000;
/// When to announce what there was no room for.
const AGAIN: u64 = SECOND / 20;

/// Where the Ethernet header is in a slot.
const ETHERNET: usize = NetHeader::SIZE;
/// Where the IP packet is in a slot.
const PACKET: usize = ETHERNET + HEADER_SIZE;

/// What another part of the port heard, and this one has not looked at yet.
const HEARD: usize = 64;
/// What it passes on of one guest's burst.
pub(super) const HEARD_EACH: usize = 16;

/// By which another part of the port passes on what it heard.
pub(super) struct Ears {
    heard: SyncSender<Learnt>,
    wake: Arc<OwnedFd>,
}

impl Ears {
    /// Passes something on. False when there is too much already.
    pub(super) fn hear(&self, learnt: Learnt) -> bool {
        let has_room = self.heard.try_send(learnt).is_ok();
        if has_room {
            // It fails when the counter is full, and then the other part has been woken.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
        has_room
    }
}

/// A packet that waits until it is known where its next hop is.
struct Waiting {
    next_hop: IpAddr,
    packet: Filled,
}

/// Why a read was the last for now.
pub(super) enum Stop {
    /// There is no room, or there was enough.
    Enough,
    /// The host has nothing.
    Drained,
    /// The interface is gone.
    Gone(Errno),
}

/// What comes from the host.
pub(super) struct FromHost {
    station: Arc<Station>,
    neighbours: Neighbours,
    slots: Slots,
    /// Packets that wait for neighbours, in order.
    waiting: Vec<Waiting>,
    backlog: Backlog,
    /// There is something to do that nobody will wake us for.
    moved: bool,
    /// What is left to be announced.
    announcing: Option<Announcing>,
    others: Vec<Receiver<Learnt>>,
    wake: Arc<OwnedFd>,
}

/// Announcements under way.
struct Announcing {
    /// Which of our addresses is next.
    address: usize,
    /// How often they still are, this time included.
    rounds: u8,
    /// When the next is.
    due: u64,
}

impl FromHost {
    /// With neighbours that are keyed by `key`. Also gives what so many other parts of the port need.
    pub(super) fn new(
        station: Arc<Station>,
        key: [u64; 2],
        others: usize,
    ) -> std::io::Result<(Self, Vec<Ears>)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let pair = |_| {
            let (heard, others) = sync_channel(HEARD);
            (Ears { heard, wake: wake.clone() }, others)
        };
        let (ears, others) = (0..others).map(pair).unzip();
        let mut from_host = Self {
            station,
            neighbours: Neighbours::new(key),
            slots: Slots::new(),
            waiting: Vec::with_capacity(WAITING + 1),
            backlog: Backlog::default(),
            moved: false,
            announcing: None,
            others,
            wake,
        };
        from_host.announce(true);
        Ok((from_host, ears))
    }

    /// Announces the host's addresses, or stops that.
    pub(super) fn announce(&mut self, begins: bool) {
        let all = Announcing { address: 0, rounds: ANNOUNCEMENTS, due: 0 };
        self.announcing = begins.then_some(all);
        self.moved |= begins;
    }

    /// What wakes this part when another has heard something.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Does what is due before anything is read. Says whether to read at all.
    pub(super) fn begin(&mut self, burst: &mut Burst<'_>, counters: &mut Counters) -> bool {
        let now = burst.now();
        self.listen(now, counters);
        self.ask_again(now, counters);
        self.announce_due(now, counters);
        if self.neighbours.take_changed() {
            self.release(counters);
        }
        let held = self.slots.count(Content::Packet);
        let Plan { listen, hold } = self.backlog.plan(held, FRAMES, now);
        burst.limit_held(hold);
        listen
    }

    /// Reads packets, until there are none or enough. Returns how many.
    pub(super) fn read(
        &mut self,
        queue: &Queue,
        now: u64,
        counters: &mut Counters,
    ) -> (usize, Stop) {
        let most = FRAMES.saturating_sub(self.slots.count(Content::Packet));
        for count in 0..most {
            let Some(slot) = self.slots.take() else { return (count, Stop::Enough) };
            // So far behind the slot's start that the IP packet is where it stays.
            let room = self.slots.bytes(slot).get_mut(PACKET - NetHeader::SIZE..);
            let taken = match rustix::io::read(queue, room.unwrap_or_default()) {
                Ok(len) if len < NetHeader::SIZE => Err(DropReason::TooShort),
                Ok(len) => self.take(slot, len - NetHeader::SIZE, now, counters),
                Err(error) => {
                    self.slots.free(slot);
                    let stop = match error {
                        // There is nothing more; or the interface is on its way out.
                        Errno::AGAIN | Errno::IO => Stop::Drained,
                        Errno::BADFD => Stop::Gone(error),
                        // There may be more, of which we would not be told again.
                        Errno::INTR => Stop::Enough,
                        // It is about one packet, for which the kernel has no header.
                        _ => {
                            counters.drop(DropReason::Refused);
                            Stop::Enough
                        }
                    };
                    self.moved |= matches!(stop, Stop::Enough);
                    return (count, stop);
                }
            };
            if let Err(reason) = taken {
                counters.drop(reason);
                self.slots.free(slot);
            }
        }
        (most, Stop::Enough)
    }

    /// Takes a packet that was read into a slot: sends it on its way, or lets it wait.
    fn take(
        &mut self,
        slot: usize,
        packet_len: usize,
        now: u64,
        counters: &mut Counters,
    ) -> Result<(), DropReason> {
        let len = PACKET + packet_len;
        counters.received.count(len - NetHeader::SIZE);
        let bytes = self.slots.bytes(slot);
        let destination = destination(bytes.get(PACKET..len).unwrap_or_default())?;
        let header = bytes.get(PACKET - NetHeader::SIZE..).and_then(<[u8]>::first_chunk);
        let header = header.map(|header| behind_ethernet(NetHeader::from_bytes(header)));
        if let Some(room) = bytes.first_chunk_mut() {
            *room = header.unwrap_or_default().to_bytes();
        }
        let packet = Filled::new(slot, len, Content::Packet);
        let next_hop = match self.station.subnets.next_hop(destination) {
            NextHop::Group(group) => {
                self.send(packet, group);
                return Ok(());
            }
            NextHop::Station(next_hop) => next_hop,
            NextHop::None => return Err(DropReason::NoNeighbour),
        };
        let (whereabouts, question) = self.neighbours.resolve(next_hop, now);
        if let Some(saying) = question.and_then(|question| self.station.ask(question)) {
            // If there is no room for it, it is asked again.
            self.say(saying, Content::Question, counters);
        }
        match whereabouts {
            Whereabouts::At(station) => self.send(packet, station),
            Whereabouts::Asked => self.wait(Waiting { next_hop, packet }, counters),
            Whereabouts::Unknown => return Err(DropReason::NoNeighbour),
        }
        Ok(())
    }

    /// Puts the Ethernet header before a packet, which is ready then.
    fn send(&mut self, packet: Filled, station: MacAddress) {
        let frame = self.slots.bytes(packet.slot).get_mut(ETHERNET..packet.len);
        let frame = frame.unwrap_or_default();
        if let Ok(destination) = destination(frame.get(HEADER_SIZE..).unwrap_or_default()) {
            let (source, ethertype) = (self.station.mac, ethertype(destination));
            Ethernet { destination: station, source, ethertype, vlan: None }.write(frame);
        }
        self.slots.send(packet);
    }

    /// Lets a packet wait; if there are too many, the oldest goes.
    fn wait(&mut self, waiting: Waiting, counters: &mut Counters) {
        let next_hop = waiting.next_hop;
        self.waiting.push(waiting);
        let for_same = |other: &Waiting| other.next_hop == next_hop;
        let oldest = if self.waiting.iter().filter(|other| for_same(other)).count() > WAITING_EACH {
            self.waiting.iter().position(for_same)
        } else {
            (self.waiting.len() > WAITING).then_some(0)
        };
        if let Some(oldest) = oldest {
            self.slots.free(self.waiting.remove(oldest).packet.slot);
            counters.drop(DropReason::NoNeighbour);
        }
    }

    /// Sends on what waited for a neighbour that is known now, and drops what waits in vain.
    fn release(&mut self, counters: &mut Counters) {
        let mut index = 0;
        while let Some(Waiting { next_hop, .. }) = self.waiting.get(index) {
            match self.neighbours.look(*next_hop) {
                Whereabouts::Asked => index += 1,
                Whereabouts::At(station) => {
                    let packet = self.waiting.remove(index).packet;
                    self.send(packet, station);
                    self.moved = true;
                }
                Whereabouts::Unknown => {
                    self.slots.free(self.waiting.remove(index).packet.slot);
                    counters.drop(DropReason::NoNeighbour);
                }
            }
        }
    }

    /// Takes in what other parts heard.
    fn listen(&mut self, now: u64, counters: &mut Counters) {
        for part in 0..self.others.len() {
            let mut answers = ANSWERS_EACH;
            while let Some(Ok(learnt)) = self.others.get(part).map(Receiver::try_recv) {
                self.hear(learnt, now, &mut answers, counters);
            }
        }
    }

    /// Learns from what was said, and answers if that is wanted, `answers` times at most.
    pub(super) fn hear(
        &mut self,
        learnt: Learnt,
        now: u64,
        answers: &mut usize,
        counters: &mut Counters,
    ) {
        if let Some(Claim { address, station, occasion }) = learnt.claim {
            self.neighbours.hear(address, station, occasion, now);
        }
        let Some(answer) = learnt.answer else { return };
        if *answers > 0 && self.say(answer, Content::Answer, counters) {
            *answers -= 1;
            self.moved = true;
        } else {
            counters.drop(DropReason::ReceiverFull);
        }
    }

    /// Puts a message of our own with what is ready. False when there is no room.
    fn say(&mut self, saying: Saying, content: Content, counters: &mut Counters) -> bool {
        say(&mut self.slots, self.station.mac, saying, content, counters)
    }

    /// Asks what has to be asked again.
    fn ask_again(&mut self, now: u64, counters: &mut Counters) {
        let Self { neighbours, slots, station, moved, .. } = self;
        neighbours.sweep(now, |question| {
            // Without an address to ask from there is nothing to wait for either.
            let is_said = station
                .ask(question)
                .is_none_or(|saying| say(slots, station.mac, saying, Content::Question, counters));
            *moved |= is_said;
            is_said
        });
    }

    /// Announces what is due.
    fn announce_due(&mut self, now: u64, counters: &mut Counters) {
        let Some(mut announcing) = self.announcing.take_if(|announcing| announcing.due <= now)
        else {
            return;
        };
        while let Some(subnet) = self.station.subnets.addresses.get(announcing.address) {
            let saying = self.station.announce(subnet.address);
            if !self.say(saying, Content::Question, counters) {
                announcing.due = now + AGAIN;
                self.announcing = Some(announcing);
                return;
            }
            self.moved = true;
            announcing.address += 1;
        }
        let rounds = announcing.rounds - 1;
        let next = Announcing { address: 0, rounds, due: now + SECOND };
        self.announcing = (rounds > 0).then_some(next);
    }

    /// Fills the burst with what is ready. Says whether there was anything to do.
    pub(super) fn fill<'b>(
        &mut self,
        lease: &'b mut Lease,
        burst: &mut Burst<'b>,
        asks: Features,
        counters: &mut Counters,
    ) -> bool {
        self.slots.fill(lease, burst, asks, counters);
        std::mem::take(&mut self.moved)
    }

    /// Takes back what the burst borrowed.
    pub(super) fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        self.moved |= self.slots.reclaim(outcomes, lease);
    }

    /// Whether there is something to do that nobody will wake us for. Other parts may have heard something after
    /// the last look.
    pub(super) fn arm(&mut self, now: u64, counters: &mut Counters) -> bool {
        self.listen(now, counters);
        self.moved || self.neighbours.has_changed()
    }

    /// Says who is known, and what waits for those who are not.
    pub(super) fn report(&self, now: u64, numbers: &mut Numbers) {
        numbers.own("neighbours", "", self.neighbours.known(now) as u64);
        numbers.own("waiting for neighbours", "packets", self.waiting.len() as u64);
    }

    /// The host's packets that are here: those that go into the next burst, and those that wait.
    pub(super) fn packets(&self) -> usize {
        self.slots.count(Content::Packet) + self.waiting.len()
    }

    /// When there is something to do though nobody wakes us.
    pub(super) fn deadline(&self, now: u64) -> Option<u64> {
        let announcement = self.announcing.as_ref().map(|announcing| announcing.due);
        let deadlines = [self.backlog.deadline(), self.neighbours.due(), announcement];
        deadlines.into_iter().flatten().filter(|deadline| *deadline > now).min()
    }
}

/// Puts a message of our own with what is ready. False when there is no room.
fn say(
    slots: &mut Slots,
    mac: MacAddress,
    Saying { to, message }: Saying,
    content: Content,
    counters: &mut Counters,
) -> bool {
    let share = if content == Content::Answer { ANSWERS } else { QUESTIONS };
    if slots.count(content) >= share {
        // For the newest there is room, if some receiver is full.
        if !slots.give_up_held(content) {
            return false;
        }
        counters.drop(DropReason::ReceiverFull);
    }
    let Some(slot) = slots.take() else { return false };
    let bytes = slots.bytes(slot);
    let len = match message {
        Message::Arp(packet) => put(bytes, &packet.frame(to)),
        Message::Ndp(packet) => put(bytes, &packet.frame(mac, to)),
    };
    match len {
        Some(len) => slots.send(Filled::new(slot, len, content)),
        // The buffer is out on lease.
        None => slots.free(slot),
    }
    len.is_some()
}

/// Writes a whole frame into a slot, behind a header that asks for nothing. Returns the bytes of both.
fn put(slot: &mut [u8], frame: &[u8]) -> Option<usize> {
    let (header, room) = slot.split_at_mut_checked(ETHERNET)?;
    header.fill(0);
    room.get_mut(..frame.len())?.copy_from_slice(frame);
    Some(ETHERNET + frame.len())
}

/// The header of an IP packet, for the same behind an Ethernet header: its places count from the frame's start.
fn behind_ethernet(header: NetHeader) -> NetHeader {
    // What is out of the frame then is found out when the header is checked.
    let shifted = |place: u16| place.saturating_add(HEADER_SIZE as u16);
    let (csum_start, hdr_len) = (shifted(header.csum_start), shifted(header.hdr_len));
    NetHeader { csum_start, hdr_len, ..header }
}
