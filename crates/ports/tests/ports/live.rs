//! Several workers with threads of their own, under load.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use engine::Mode;
use memory::GuestMemory;
use vhost_user::{Device, RingSetup};
use wire::virtio::Features;

use crate::crew::{Crew, LIMIT, Live};
use crate::flow::{Flow, which};
use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT, receive, transmit};
use crate::swap::leaks;
use crate::world::MODERN;

/// Frames of each sender that may be under way.
const UNDER_WAY: usize = 24;

/// What one side knows of the frames that it gets: they are whole, and in order.
#[derive(Default)]
struct Inbox {
    /// Flows are moved from ring to ring while frames wait there: only those of one ring have an order.
    flows_move: bool,
    /// The last number by sender, flow, and, if flows move, the pair that it came on.
    last: HashMap<(usize, u16, Option<usize>), u32>,
    count: u64,
}

impl Inbox {
    fn check(&mut self, own: usize, pair: usize, frame: &[u8]) {
        // Of one that is not there the bridge knows nothing, and what is for it goes to all.
        if destination(frame) != own {
            return;
        }
        let (from, flow, number) = which(frame);
        assert!(frame == conversation(from, own, flow).frame(number, frame.len()), "whole");
        let last = self.last.insert((from, flow, self.flows_move.then_some(pair)), number);
        assert!(
            last.is_none_or(|last| last < number),
            "{number} after {last:?} of flow {flow}, on pair {pair}"
        );
        self.count += 1;
    }
}

/// The flow of this number between two guests, from one of them to the other.
fn conversation(from: usize, to: usize, number: u16) -> Flow {
    if from < to { Flow::udp(from, to, number) } else { Flow::udp(to, from, number).back() }
}

/// The guest that a frame is for.
fn destination(frame: &[u8]) -> usize {
    frame[5].into()
}

/// The guest that a frame says it is from.
fn source(frame: &[u8]) -> usize {
    frame[11].into()
}

/// Has the switch know which pair each conversation of a guest belongs to, before there is any: a flow
/// that is delivered elsewhere first moves when it is quiet, which a test's thread that had no time for
/// its rings would take for frames that overtook others. Returns how many frames that took.
fn introduce(guest: &mut Guest, from: usize, others: &[usize]) -> u64 {
    let mut count = 0;
    for pair in 0..guest.pairs() {
        for other in others {
            let mut frame = conversation(from, *other, pair as u16).frame(0, 60);
            // Reserved: the switch learns from it, and does not forward it.
            frame[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0]);
            guest.send_on(pair, &frame);
            count += 1;
        }
        guest.ring(transmit(pair)).kick.fire();
    }
    wait_for("frames that introduce", || {
        (0..guest.pairs()).all(|pair| {
            guest.reap_on(pair);
            guest.ring(transmit(pair)).outstanding() == 0
        })
    });
    count
}

/// Posts buffers of a usual size until the ring has as many as it takes.
fn fill(guest: &mut Guest, pair: usize) {
    let mut kick = false;
    while guest.ring(receive(pair)).room() > 0 {
        kick |= guest.post_on(pair, 700);
    }
    if kick {
        guest.ring(receive(pair)).kick.fire();
    }
}

/// A guest that sends to others on all of its pairs, and takes what comes.
struct Talker {
    number: usize,
    inbox: Inbox,
    sent: u32,
    /// Whose frames are not looked at.
    ignores: Option<usize>,
}

impl Talker {
    fn new(number: usize) -> Self {
        Self { number, inbox: Inbox::default(), sent: 0, ignores: None }
    }

    /// Sends as much as may be under way, to each of `others` in turn, `most` in all of its life.
    /// What is sent on a pair is a flow of its own.
    fn talk(&mut self, guest: &mut Guest, others: &[usize], most: u32) {
        for pair in 0..guest.pairs() {
            guest.reap_on(pair);
            let mut kick = false;
            let room = usize::from(guest.ring(TRANSMIT).size).min(UNDER_WAY);
            while guest.ring(transmit(pair)).outstanding() < room && self.sent < most {
                let to = others[self.sent as usize % others.len()];
                let flow = conversation(self.number, to, pair as u16);
                kick |= guest.send_on(pair, &flow.frame(self.sent, 60 + self.sent as usize % 500));
                self.sent += 1;
            }
            if kick {
                guest.ring(transmit(pair)).kick.fire();
            }
        }
        self.listen(guest);
    }

    fn listen(&mut self, guest: &mut Guest) {
        for pair in 0..guest.pairs() {
            for frame in guest.frames_on(pair) {
                if Some(source(&frame)) != self.ignores {
                    self.inbox.check(self.number, pair, &frame);
                }
            }
            fill(guest, pair);
        }
    }
}

/// Guests with two pairs each, all of which talk to each other. Each ring is delivered to by both
/// workers.
fn all_talk(features: Features, entries: u16, mode: Mode, frames: u32) {
    let guest = || Guest::with_pairs(2, MODERN | features, Cut::Whole, entries);
    let mut live = Crew::bridged(2, (0..3).map(|_| guest()).collect()).live(mode);
    let mut talkers = [0, 1, 2].map(Talker::new);
    let others = [[1, 2], [0, 2], [0, 1]];
    let guests = live.guests.iter_mut().zip(&others).enumerate();
    let introductions: Vec<u64> =
        guests.map(|(number, (guest, others))| introduce(guest, number, others)).collect();
    let start = Instant::now();
    loop {
        for (talker, guest) in talkers.iter_mut().zip(&mut live.guests) {
            talker.talk(guest, &others[talker.number], frames);
        }
        let chains = live
            .guests
            .iter()
            .flat_map(|guest| [TRANSMIT, transmit(1)].map(|ring| guest.ring(ring).outstanding()));
        if talkers.iter().all(|talker| talker.sent == frames) && chains.sum::<usize>() == 0 {
            break;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {frames} frames of each");
        std::thread::yield_now();
    }
    live.end_of_breath();
    for (talker, guest) in talkers.iter_mut().zip(&mut live.guests) {
        talker.listen(guest);
    }
    let counters = [0, 1, 2].map(|port| live.counters(port));
    let dropped: u64 = counters.iter().flat_map(|port| port.drops()).map(|(_, count)| count).sum();
    let arrived: u64 = talkers.iter().map(|talker| talker.inbox.count).sum();
    for (talker, (port, introductions)) in talkers.iter().zip(counters.iter().zip(introductions)) {
        // And one from before.
        assert_eq!(port.received.frames, u64::from(frames) + introductions + 1);
        assert_eq!(port.sent.frames, talker.inbox.count);
    }
    assert_eq!(arrived + dropped, 3 * u64::from(frames), "each frame has one fate");
    assert!(arrived > dropped, "{dropped} of {} dropped", 3 * frames);
    live.stop();
}

#[test]
fn frames_pass_whole_and_in_order_under_load() {
    for features in [Features::EVENT_IDX, Features::RING_PACKED | Features::IN_ORDER] {
        all_talk(features, 64, Mode::Adaptive, 5000);
    }
}

#[test]
fn workers_that_sleep_at_once_are_woken() {
    for features in [Features::NONE, Features::EVENT_IDX] {
        all_talk(features, 4, Mode::Interrupt, 1000);
    }
}

/// The guest whose device is exchanged while guests 0 and 1 talk to each other and to it.
const CHANGING: usize = 2;

/// Runs `act` on guest [`CHANGING`], which has two pairs, while the others are served at full load
/// by a worker each. `act` is given how many frames they got from each other so far.
fn meanwhile(act: impl FnOnce(&Live, Guest, &AtomicU64)) {
    let one = || Guest::new(MODERN | Features::EVENT_IDX, Cut::Whole, 64);
    let mut live = Crew::bridged(2, vec![one(), one(), changing()]).live(Mode::Adaptive);
    let guest = live.guests.pop().expect("the last one");
    let mut talking = std::mem::take(&mut live.guests);
    let (done, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (done, passed) = (&done, &passed);
        scope.spawn(move || {
            let mut talkers = [0, 1].map(Talker::new);
            // It is many guests, good and bad.
            talkers.iter_mut().for_each(|talker| talker.ignores = Some(CHANGING));
            while !done.load(Ordering::Relaxed) {
                for (talker, guest) in talkers.iter_mut().zip(&mut talking) {
                    talker.talk(guest, &[1 - talker.number, CHANGING], u32::MAX);
                }
                let count = talkers.iter().map(|talker| talker.inbox.count).sum();
                passed.store(count, Ordering::Relaxed);
            }
        });
        // Also when `act` panics, or the scope would wait for ever.
        let _stop = Stop(done);
        wait_for("guests to talk", || passed.load(Ordering::Relaxed) > 100);
        act(&live, guest, passed);
        let before = passed.load(Ordering::Relaxed);
        wait_for("others to go on", || passed.load(Ordering::Relaxed) > before + 100);
    });
    live.stop();
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn changing() -> Guest {
    let mut guest = Guest::with_pairs(2, MODERN, Cut::Whole, 16);
    (0..2).for_each(|pair| fill(&mut guest, pair));
    guest
}

#[track_caller]
fn wait_for(what: &str, mut is_done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn memory_that_was_swapped_away_is_not_touched_again() {
    const GUESTS: usize = 100;
    meanwhile(|live, _, _| {
        let mut former: Option<Arc<GuestMemory>> = None;
        for round in 0..GUESTS {
            let mut guest = changing();
            let device = guest.device();
            let memory = device.memory.clone();
            drop(live.swap(CHANGING, Some(device)));
            let mut talker = Talker::new(CHANGING);
            wait_for("frames to the guest", || {
                // Of another guest with the same addresses the others have had the numbers.
                talker.listen(&mut guest);
                talker.inbox.count > 10
            });
            // By now the workers have served the new device for a while, after the old one's memory
            // was taken away.
            assert!(former.is_none_or(|memory| !memory.is_poisoned()), "round {round}");
            if round % 2 == 0 {
                drop(live.swap(CHANGING, None));
            } else {
                let next = changing();
                drop(live.swap(CHANGING, Some(next.device())));
            }
            guest.truncate();
            former = Some(memory);
        }
    });
}

/// The same device, but for one ring.
fn altered(device: &Device, ring: usize, alter: impl FnOnce(&mut RingSetup)) -> Device {
    let Device { memory, features, rings } = device;
    let mut rings = rings.clone();
    alter(rings[ring].as_mut().expect("a ring that runs"));
    Device { memory: memory.clone(), features: *features, rings }
}

#[test]
fn ten_thousand_swaps_under_load_leak_neither_descriptors_nor_mappings() {
    meanwhile(|live, mut guest, _| {
        drop(live.swap(CHANGING, None));
        let before = leaks(&guest);
        assert_eq!(before, (1, 3), "the guest's own: a file in three regions");
        let mut device = guest.device();
        let mut talker = Talker::new(CHANGING);
        talker.inbox.flows_move = true;
        for round in 0..10_000 {
            match round % 8 {
                0 => {
                    drop(live.swap(CHANGING, None));
                    guest.reset();
                    device = guest.device();
                }
                // The memory is mapped anew.
                4 => device = guest.device(),
                // A ring is disabled, or enabled.
                _ => device = altered(&device, receive(1), |ring| ring.enabled = round % 2 == 0),
            }
            talker.listen(&mut guest);
            drop(live.swap(CHANGING, Some(altered(&device, receive(1), |_| ()))));
            if round % 1000 == 4 {
                assert_eq!(leaks(&guest), (1, 3 + 3), "the guest's own, and the device's last");
            }
        }
        drop(device);
        assert!(talker.inbox.count > 1000, "frames passed meanwhile");
        drop(live.swap(CHANGING, None));
        assert_eq!(leaks(&guest), before);
        for ring in 0..4 {
            let ring = guest.ring(ring);
            assert_eq!(Arc::strong_count(&ring.kick.0), 1, "the guest's own");
            assert_eq!(Arc::strong_count(&ring.call.0), 1);
        }
    });
}

#[test]
fn memory_that_is_taken_away_under_two_workers_takes_its_own_port_down() {
    meanwhile(|live, _, passed| {
        for _ in 0..5 {
            let mut guest = changing();
            drop(live.swap(CHANGING, Some(guest.device())));
            let mut talker = Talker::new(CHANGING);
            wait_for("frames to the guest", || {
                talker.listen(&mut guest);
                talker.inbox.count > 20
            });
            guest.truncate();
            let (port, fault) = live.faults.recv_timeout(LIMIT).expect("a fault in time");
            assert_eq!(port, CHANGING);
            assert_eq!(fault, "the guest's memory file was truncated while in use");
            let before = passed.load(Ordering::Relaxed);
            wait_for("others to go on", || passed.load(Ordering::Relaxed) > before + 100);
            drop(live.swap(CHANGING, None));
            assert!(live.faults.try_recv().is_err(), "reported once");
        }
    });
}

/// What a front end can do with several rings, whose guest then sends and receives on all of them.
fn mix_up(mix: impl Fn(&mut Device)) {
    meanwhile(|live, mut guest, passed| {
        let mut faults = 0;
        for _ in 0..20 {
            guest.reset();
            for pair in 0..2 {
                fill(&mut guest, pair);
                for number in 0..10 {
                    let flow = conversation(CHANGING, number % 2, pair as u16);
                    guest.send_on(pair, &flow.frame(number as u32, 60));
                }
            }
            let mut device = guest.device();
            mix(&mut device);
            drop(live.swap(CHANGING, Some(device)));
            let before = passed.load(Ordering::Relaxed);
            wait_for("others to go on", || passed.load(Ordering::Relaxed) > before + 100);
            drop(live.swap(CHANGING, None));
            for (port, fault) in live.faults.try_iter() {
                assert_eq!(port, CHANGING, "{fault}");
                faults += 1;
            }
        }
        assert!(faults <= 20, "one for each guest at most");
    });
}

/// Has one ring lie where another one is.
fn lay_over(device: &mut Device, one: usize, other: usize) {
    let layout = device.rings[other].as_ref().expect("a ring").layout.clone();
    device.rings[one].as_mut().expect("a ring").layout = layout;
}

#[test]
fn receive_rings_at_the_same_place_harm_their_guest_alone() {
    mix_up(|device| lay_over(device, receive(1), RECEIVE));
}

#[test]
fn transmit_rings_at_the_same_place_harm_their_guest_alone() {
    mix_up(|device| lay_over(device, transmit(1), TRANSMIT));
}

#[test]
fn a_transmit_ring_over_a_receive_ring_harms_its_guest_alone() {
    mix_up(|device| lay_over(device, transmit(1), RECEIVE));
    mix_up(|device| lay_over(device, RECEIVE, transmit(1)));
}
