//! Whatever guests, control and workers do, in any order: nothing is lost that was not counted,
//! nothing arrives twice, flows stay in order, chains go back to their rings, and no worker sleeps
//! that has something to do.
//!
//! Three guests with small rings send and post when they like. Control disables rings, stops them,
//! and has them start again, one worker after the other. Workers live as those with threads do, but
//! between any two of their steps another may do any of its own. A worker that sleeps is woken by
//! what would wake it, and by nothing else; one that nobody woke is made to breathe all the same, and
//! must find nothing.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use ringway_ports::BLOCK;
use ringway_ports::vhost_user::PATIENCE;
use wire::virtio::Features;

use engine::DropReason;

use crate::crew::Crew;
use crate::flow::{Flow, which};
use crate::guest::{Cut, Guest, receive, transmit};
use crate::world::{MODERN, STEP};

/// Entries in all rings.
const ENTRIES: u16 = 8;
/// Queue pairs of the guests. The last one is who most frames are sent to.
const PAIRS: [usize; 3] = [2, 1, 3];
const MANY: usize = 2;
/// Most workers.
const WORKERS: usize = 3;
/// A frame's number in its flow is in the lower bits, the pair it was sent on in the upper.
const PAIR_SHIFT: u32 = 24;

/// What happens. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Action {
    Send {
        guest: usize,
        pair: usize,
        to: usize,
        flow: u16,
        len: usize,
    },
    Post {
        guest: usize,
        pair: usize,
        len: u32,
    },
    /// A worker takes its next step.
    Work(usize),
    /// All workers do what there is, until they sleep.
    Rest,
    /// A ring is enabled if it is not, and disabled if it is.
    Enable(Exchange),
    /// A ring is stopped if it runs, and restarted if it does not.
    Run(Exchange),
    Wait(u64),
}

/// A device is exchanged for one in which a ring is different.
#[derive(Clone, Debug)]
struct Exchange {
    guest: usize,
    ring: usize,
    /// The worker that is the first.
    first: usize,
    /// Steps of workers after each one's part.
    between: Vec<usize>,
}

fn action() -> impl Strategy<Value = Action> {
    let exchange = || {
        let between = prop::collection::vec(0..WORKERS, 0..8);
        (0..PAIRS.len(), 0..6usize, 0..WORKERS, between)
            .prop_map(|(guest, ring, first, between)| Exchange { guest, ring, first, between })
    };
    let send = (0..PAIRS.len(), 0..3usize, 0..4usize, 0..2u16, 60..400usize);
    let post = (prop_oneof![1 => 0..MANY, 3 => Just(MANY)], 0..3usize, 70..420u32);
    prop_oneof![
        8 => send.prop_map(|(guest, pair, to, flow, len)| Action::Send { guest, pair, to, flow, len }),
        6 => post.prop_map(|(guest, pair, len)| Action::Post { guest, pair, len }),
        16 => (0..WORKERS).prop_map(Action::Work),
        2 => Just(Action::Rest),
        1 => exchange().prop_map(Action::Enable),
        1 => exchange().prop_map(Action::Run),
        1 => prop_oneof![Just(10 * STEP), Just(BLOCK), Just(PATIENCE)].prop_map(Action::Wait),
    ]
}

/// What a worker is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Breathe,
    /// There was nothing to do.
    Arm,
    /// Asleep until something wakes it, or until this time.
    Asleep(Option<u64>),
}

/// Whose frames stay in order: sender, receiver, flow, and the pair that it was sent on.
type Stream = (usize, usize, u16, u32);

struct Model {
    crew: Crew,
    lives: Vec<Life>,
    /// Workers that were told to swap and have not yet.
    called: Vec<bool>,
    /// Frames sent, and of them the last that arrived.
    sent: HashMap<Stream, u32>,
    arrived: HashMap<Stream, u32>,
    arrivals: u64,
    /// Where stopped rings stand.
    positions: HashMap<(usize, usize), u32>,
    /// Receive rings that may get something, as the worker that each belongs to knows it.
    enabled: HashMap<(usize, usize), bool>,
}

impl Model {
    fn new(workers: usize, formats: [Features; 3]) -> Self {
        let guests = PAIRS.into_iter().zip(formats);
        let guest = |(pairs, format): (usize, Features)| {
            Guest::with_pairs(pairs, MODERN | format, Cut::Whole, ENTRIES)
        };
        let crew = Crew::bridged(workers, guests.map(guest).collect());
        let rings =
            (0..PAIRS.len()).flat_map(|guest| (0..PAIRS[guest]).map(move |pair| (guest, pair)));
        Self {
            crew,
            lives: vec![Life::Breathe; workers],
            called: vec![false; workers],
            sent: HashMap::new(),
            arrived: HashMap::new(),
            arrivals: 0,
            positions: HashMap::new(),
            enabled: rings.map(|ring| (ring, true)).collect(),
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Send { guest, pair, to, flow, len } => {
                self.send(*guest, *pair, *to, *flow, *len)
            }
            Action::Post { guest, pair, len } => self.post(*guest, *pair, *len),
            Action::Work(worker) => self.work(*worker),
            Action::Rest => self.rest(),
            Action::Enable(exchange) => {
                let ring = self.ring(exchange);
                let ring = self.crew.guests[exchange.guest].ring_mut(ring);
                ring.enabled = !ring.enabled;
                self.exchange(exchange);
            }
            Action::Run(exchange) => {
                let ring = self.ring(exchange);
                self.run(exchange.guest, ring);
                self.exchange(exchange);
            }
            Action::Wait(nanoseconds) => self.crew.now += nanoseconds,
        }
    }

    fn send(&mut self, guest: usize, pair: usize, to: usize, flow: u16, len: usize) {
        let pair = pair % PAIRS[guest];
        if self.crew.guests[guest].ring(transmit(pair)).outstanding() == ENTRIES.into() {
            return;
        }
        let flow = if guest == MANY {
            // An answer, on any of its pairs, to what the other one sends on any of its own.
            let to = to % MANY;
            Flow::udp(to, MANY, 10 * flow + (len % PAIRS[to]) as u16).back()
        } else {
            let to = if to == 0 { 1 - guest } else { MANY };
            Flow::udp(guest, to, 10 * flow + pair as u16)
        };
        let next = self.sent.entry((flow.from, flow.to, flow.number, pair as u32)).or_default();
        *next += 1;
        let frame = flow.frame((pair as u32) << PAIR_SHIFT | *next, len);
        if self.crew.guests[guest].send_on(pair, &frame) {
            let worker = self.crew.worker_of(guest, pair);
            self.wake(worker);
        }
    }

    fn post(&mut self, guest: usize, pair: usize, len: u32) {
        let pair = pair % PAIRS[guest];
        let ring = self.crew.guests[guest].ring(receive(pair));
        if ring.room() > 0 && self.crew.guests[guest].post_on(pair, len) {
            self.wake_all();
        }
    }

    fn wake(&mut self, worker: usize) {
        if let Life::Asleep(_) = self.lives[worker] {
            self.crew.disarm(worker);
            self.lives[worker] = Life::Breathe;
        }
    }

    fn wake_all(&mut self) {
        (0..self.lives.len()).for_each(|worker| self.wake(worker));
    }

    fn work(&mut self, worker: usize) {
        let worker = worker % self.lives.len();
        match self.lives[worker] {
            Life::Breathe => {
                let before = self.transmitted();
                let is_busy = self.crew.breathe_once(worker);
                self.lives[worker] = if is_busy { Life::Breathe } else { Life::Arm };
                self.harvest();
                if self.transmitted() != before {
                    // A flow was moved, perhaps to where there is room. Nobody is told: until the
                    // deadline, what is held may wait where there is none.
                    self.wake_all();
                    let idle = self.lives.iter_mut().filter(|life| **life == Life::Arm);
                    idle.for_each(|life| *life = Life::Breathe);
                }
            }
            Life::Arm => {
                if self.crew.arm(worker) || self.called[worker] {
                    self.crew.disarm(worker);
                    self.lives[worker] = Life::Breathe;
                } else {
                    self.lives[worker] = Life::Asleep(self.crew.deadline(worker));
                }
            }
            Life::Asleep(deadline) if deadline.is_some_and(|time| time <= self.crew.now) => {
                self.wake(worker);
            }
            Life::Asleep(_) => {
                assert!(!self.crew.breathe_again(worker), "worker {worker} sleeps and is needed");
                let before = self.arrivals;
                self.harvest();
                assert_eq!(self.arrivals, before, "worker {worker} sleeps and could deliver");
            }
        }
    }

    /// What was taken from guests with several pairs.
    fn transmitted(&self) -> [u64; 2] {
        [0, MANY].map(|port| self.crew.counters(port).received.frames)
    }

    fn ring(&self, exchange: &Exchange) -> usize {
        exchange.ring % (2 * PAIRS[exchange.guest])
    }

    fn run(&mut self, guest: usize, ring: usize) {
        if self.crew.guests[guest].ring(ring).runs {
            self.crew.guests[guest].ring_mut(ring).runs = false;
        } else {
            let position = self.positions.remove(&(guest, ring)).expect("a ring that was stopped");
            self.crew.guests[guest].restart_ring(ring, position);
        }
    }

    /// Swaps the device of a guest, one worker after the other.
    fn exchange(&mut self, Exchange { guest, first, between, .. }: &Exchange) {
        let workers = self.lives.len();
        let device = self.crew.guests[*guest].device();
        self.wake_all();
        self.called.fill(true);
        let mut between = between.chunks(between.len().div_ceil(workers).max(1));
        for step in 0..workers {
            let worker = (first + step) % workers;
            if self.lives[worker] == Life::Arm {
                self.lives[worker] = Life::Breathe;
            }
            let swapped = self.crew.swap_part(worker, *guest, Some(&device));
            self.called[worker] = false;
            for (ring, position) in swapped.positions {
                assert_eq!(self.crew.worker_of(*guest, ring / 2), worker, "its own rings alone");
                self.stopped(*guest, ring, position);
            }
            for pair in 0..PAIRS[*guest] {
                if self.crew.worker_of(*guest, pair) == worker {
                    let ring = self.crew.guests[*guest].ring(receive(pair));
                    self.enabled.insert((*guest, pair), ring.enabled && ring.runs);
                }
            }
            // A worker may kick another by a ring's own descriptor.
            for ring in 0..2 * PAIRS[*guest] {
                if self.crew.guests[*guest].ring(ring).kick.take() > 0 {
                    assert_eq!(ring % 2, 0, "all watch the receive rings");
                    self.wake_all();
                }
            }
            for worker in between.next().unwrap_or_default() {
                self.work(*worker);
            }
        }
    }

    fn stopped(&mut self, guest: usize, ring: usize, position: u32) {
        self.positions.insert((guest, ring), position);
        let owner = &mut self.crew.guests[guest];
        if !owner.features.contains(Features::RING_PACKED) {
            let used = owner.used_index(ring);
            assert_eq!(position, used.into(), "all that was taken is given back");
        }
    }

    /// Takes what came, and what went out.
    fn harvest(&mut self) {
        for (guest, pairs) in PAIRS.into_iter().enumerate() {
            for pair in 0..pairs {
                self.crew.guests[guest].reap_on(pair);
                for frame in self.crew.guests[guest].frames_on(pair) {
                    assert!(self.enabled[&(guest, pair)], "guest {guest}, pair {pair} is disabled");
                    self.arrive(guest, &frame);
                }
            }
        }
    }

    fn arrive(&mut self, guest: usize, frame: &[u8]) {
        let (from, number, in_flow) = which(frame);
        let pair = in_flow >> PAIR_SHIFT;
        let mut flow = Flow::udp(from, guest, number);
        flow.is_answer = from == MANY;
        assert!(frame == flow.frame(in_flow, frame.len()), "it arrives as it was sent");
        let stream = (from, guest, number, pair);
        let in_flow = in_flow & ((1 << PAIR_SHIFT) - 1);
        assert!(in_flow <= self.sent[&stream]);
        let last = self.arrived.insert(stream, in_flow).unwrap_or(0);
        assert!(in_flow > last, "{in_flow} after {last} of flow {number} of guest {from}");
        self.arrivals += 1;
    }

    /// Starts and enables everything, posts buffers, and lets the workers do what is left.
    fn settle(&mut self) {
        for (guest, pairs) in PAIRS.into_iter().enumerate() {
            for ring in 0..2 * pairs {
                if !self.crew.guests[guest].ring(ring).runs {
                    self.run(guest, ring);
                }
                self.crew.guests[guest].ring_mut(ring).enabled = true;
            }
            self.exchange(&Exchange { guest, ring: 0, first: 0, between: Vec::new() });
        }
        let is_settled = (0..40).any(|_| {
            for (guest, pairs) in PAIRS.into_iter().enumerate() {
                (0..pairs * usize::from(ENTRIES)).for_each(|at| self.post(guest, at, 500));
            }
            self.rest();
            self.chains_out() == 0
        });
        assert!(is_settled, "{} chains did not come back", self.chains_out());
    }

    /// Has all workers do what there is, until they sleep.
    fn rest(&mut self) {
        let all_sleep = (0..100).any(|_| {
            (0..self.lives.len()).for_each(|worker| self.work(worker));
            self.lives.iter().all(|life| matches!(life, Life::Asleep(_)))
        });
        assert!(all_sleep, "busy with nothing: {:?}", self.lives);
    }

    /// Chains of transmit rings that did not come back.
    fn chains_out(&self) -> usize {
        let guests = self.crew.guests.iter();
        let rings =
            guests.flat_map(|guest| (0..guest.pairs()).map(|pair| guest.ring(transmit(pair))));
        rings.map(|ring| ring.outstanding()).sum()
    }

    /// Everything has one fate, and nobody has anything that is not theirs.
    fn audit(&mut self) {
        let counters: Vec<_> = (0..PAIRS.len()).map(|port| self.crew.counters(port)).collect();
        let drops: u64 =
            counters.iter().flat_map(|port| port.drops()).map(|(_, count)| count).sum();
        let of = |reason| counters.iter().map(|port| port[reason]).sum::<u64>();
        let disabled = of(DropReason::SenderDisabled);
        assert_eq!(drops, disabled + of(DropReason::ReceiverFull) + of(DropReason::ReceiverDown));
        let sent: u64 = self.sent.values().map(|count| u64::from(*count)).sum();
        assert_eq!(sent, self.arrivals + drops, "each frame arrived, or was counted");
        // Each guest said hello.
        let hellos = PAIRS.len() as u64;
        let received: u64 = counters.iter().map(|port| port.received.frames).sum();
        assert_eq!(received, sent + hellos - disabled, "each was counted once");
        let delivered: u64 = counters.iter().map(|port| port.sent.frames).sum();
        assert_eq!(delivered, self.arrivals);
        assert!(self.crew.faults.is_empty(), "{:?}", self.crew.faults);
    }
}

fn formats() -> impl Strategy<Value = [Features; 3]> {
    let format = || {
        let packed = prop_oneof![Just(Features::NONE), Just(Features::RING_PACKED)];
        let events = prop_oneof![Just(Features::NONE), Just(Features::EVENT_IDX)];
        let order = prop_oneof![2 => Just(Features::NONE), 1 => Just(Features::IN_ORDER)];
        (packed, events, order).prop_map(|(packed, events, order)| packed | events | order)
    };
    [format(), format(), format()]
}

#[test]
fn nothing_is_lost_twice_there_out_of_order_or_slept_over() {
    const CASES: u32 = 200;
    let config = Config {
        cases: CASES,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Config::default()
    };
    let case = (1..=WORKERS, formats(), prop::collection::vec(action(), 1..200));
    TestRunner::new(config)
        .run(&case, |(workers, formats, actions)| {
            let mut model = Model::new(workers, formats);
            actions.iter().for_each(|action| model.act(action));
            model.settle();
            model.audit();
            Ok(())
        })
        .unwrap();
}
