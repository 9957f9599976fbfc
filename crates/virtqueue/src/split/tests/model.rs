//! One body, every flavour: device against driver, checked at each step against plain queues.
//!
//! A chain wanders through five queues: added, available, held, given back, used. The model knows
//! which one comes next, what its bytes are, how many descriptors are free, and whether a
//! publication has to notify.

use std::collections::VecDeque;

use memory::GuestAddress;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wire::virtio::Features;

use super::ring::{Ring, fill};
use crate::split::{Buffer, Chain, DeviceQueue, DriverQueue, Form, Full, Used};

/// Most buffers in a chain; what an indirect table of the fixture holds.
const MOST_BUFFERS: u32 = 6;
/// Most bytes in a buffer; a whole chain fits a buffer area.
const MOST_BYTES: u32 = 40;
/// What a buffer holds before the device writes to it.
const BLANK: u8 = 0xEE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Transmit,
    Receive,
}

#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    pub form: Form,
    pub event_index: bool,
    pub direction: Direction,
    pub size: u16,
}

impl Flavour {
    fn features(self) -> Features {
        let events = if self.event_index { Features::EVENT_IDX } else { Features::NONE };
        events | Features::INDIRECT_DESC
    }
}

/// A chain as the model remembers it.
struct Offer {
    token: u32,
    area: u16,
    lens: Vec<u32>,
    descriptors: usize,
}

impl Offer {
    fn total(&self) -> u32 {
        self.lens.iter().sum()
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.total())
            .map(|at| (self.token.wrapping_mul(0x9E37_79B1) >> 13).wrapping_add(at * 7) as u8)
            .collect()
    }

    /// How much the device writes of it.
    fn written(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Transmit => 0,
            Direction::Receive => self.total() - self.total() * (self.token % 3) / 2,
        }
    }
}

/// When one side has to notify the other.
struct Notices {
    event_index: bool,
    /// By flag.
    wanted: bool,
    /// By index.
    event: u16,
    /// The index at the last publication; none before the first one of a device.
    old: Option<u16>,
}

impl Notices {
    fn at_publication(&mut self, count: usize, new: u16) -> bool {
        let old = self.old.replace(new);
        match old {
            _ if !self.event_index => self.wanted,
            None => true,
            Some(old) => (0..count as u16).any(|step| old.wrapping_add(step) == self.event),
        }
    }
}

/// A ring, both its ends, and what they should be doing.
pub struct World<'r> {
    ring: &'r Ring,
    flavour: Flavour,
    device: DeviceQueue,
    driver: DriverQueue,
    next_token: u32,
    free_areas: Vec<u16>,
    free: usize,
    added: VecDeque<Offer>,
    available: VecDeque<Offer>,
    held: VecDeque<(Offer, Chain)>,
    /// How many of the last chains taken are all still held.
    untakeable: usize,
    given_back: VecDeque<Offer>,
    used: VecDeque<Offer>,
    /// Chains ever published, taken, given back and reaped, modulo 2^16, from the base on.
    published: u16,
    taken: u16,
    given: u16,
    reaped: u16,
    /// As `published`, when the device last looked. It looks when it knows of no chain to take.
    known: u16,
    kicks: Notices,
    calls: Notices,
}

impl<'r> World<'r> {
    pub fn new(ring: &'r Ring, flavour: Flavour, base: u16) -> Self {
        let features = flavour.features();
        let driver = ring.driver_at(features, base);
        let device = ring.device_at(features, base);
        let event_index = flavour.event_index;
        Self {
            ring,
            flavour,
            device,
            driver,
            next_token: 0,
            free_areas: (0..flavour.size).rev().collect(),
            free: flavour.size.into(),
            added: VecDeque::new(),
            available: VecDeque::new(),
            held: VecDeque::new(),
            untakeable: 0,
            given_back: VecDeque::new(),
            used: VecDeque::new(),
            published: base,
            taken: base,
            given: base,
            reaped: base,
            known: base,
            // A device begins with kicks off; a driver's memory begins as zeros, with calls on.
            kicks: Notices {
                event_index,
                wanted: false,
                event: base.wrapping_sub(1),
                old: Some(base),
            },
            calls: Notices { event_index, wanted: true, event: 0, old: None },
        }
    }

    /// Adds the next chain; false when it has no room.
    pub fn add(&mut self) -> bool {
        let token = self.next_token;
        let random = token.wrapping_mul(0x85EB_CA6B) ^ (token >> 3);
        let count = (1 + (random >> 8) % MOST_BUFFERS).min(self.flavour.size.into());
        let lens: Vec<u32> =
            (0..count).map(|index| (random >> (index + 3)) % (MOST_BYTES + 1)).collect();
        let descriptors = match self.flavour.form {
            Form::Direct => lens.len(),
            Form::Indirect(direct) => lens.len().min(usize::from(direct) + 1),
        };
        let offer =
            Offer { token, area: self.free_areas.last().copied().unwrap_or(0), lens, descriptors };
        let chain = self.chain(&offer);
        let result = self.driver.add(&chain, self.flavour.form, token);
        if descriptors > self.free {
            assert_eq!(result, Err(Full));
            return false;
        }
        assert_eq!(result, Ok(()));
        let area = self.ring.area(offer.area);
        match self.flavour.direction {
            Direction::Transmit => self.ring.write(area, &offer.bytes()),
            Direction::Receive => self.ring.write(area, &vec![BLANK; offer.total() as usize]),
        }
        self.next_token += 1;
        self.free_areas.pop();
        self.free -= descriptors;
        self.added.push_back(offer);
        true
    }

    /// The buffers lie one after the other in their area; an empty one may be anywhere.
    fn chain(&self, offer: &Offer) -> Vec<Buffer> {
        let mut at = self.ring.area(offer.area);
        let place = |len: &u32| {
            let address = if *len == 0 { u64::MAX } else { at };
            at += u64::from(*len);
            Buffer {
                address: GuestAddress(address),
                len: *len,
                writable: self.flavour.direction == Direction::Receive,
            }
        };
        offer.lens.iter().map(place).collect()
    }

    pub fn publish(&mut self) {
        let count = self.added.len();
        self.published = self.published.wrapping_add(count as u16);
        let expected = count > 0 && self.kicks.at_publication(count, self.published);
        assert_eq!(self.driver.publish(), expected, "kick at {}", self.published);
        self.available.append(&mut self.added);
    }

    /// Takes the next chain; false when there is none.
    pub fn take(&mut self) -> bool {
        if self.known == self.taken {
            self.known = self.published;
        }
        let chain = match self.flavour.direction {
            Direction::Transmit => {
                let taken = self.ring.take_readable(&mut self.device, u32::MAX).unwrap();
                taken.map(|(chain, bytes)| {
                    assert_eq!(bytes, self.available[0].bytes());
                    chain
                })
            }
            Direction::Receive => {
                let taken = self.ring.take_writable(&mut self.device, u32::MAX).unwrap();
                taken.map(|(chain, slices)| {
                    let offer = &self.available[0];
                    let room: usize = slices.iter().map(|slice| slice.len()).sum();
                    assert_eq!(room, offer.total() as usize);
                    let written = offer.written(Direction::Receive) as usize;
                    fill(&slices, &offer.bytes()[..written]);
                    chain
                })
            }
        };
        let Some(chain) = chain else {
            assert!(self.available.is_empty(), "a chain was lost");
            return false;
        };
        let offer = self.available.pop_front().expect("a chain from nowhere");
        assert_eq!(chain.bytes, u64::from(offer.total()));
        self.held.push_back((offer, chain));
        self.untakeable += 1;
        self.taken = self.taken.wrapping_add(1);
        true
    }

    /// Reads a held chain once more.
    pub fn retake(&mut self, choice: u8) {
        if self.flavour.direction == Direction::Receive || self.held.is_empty() {
            return;
        }
        let (offer, chain) = &self.held[choose(choice, self.held.len())];
        let mut slices = Vec::new();
        let again = self
            .device
            .retake_readable(chain.head, &mut self.ring.memory.translator(), u32::MAX, &mut slices)
            .unwrap();
        assert_eq!(again, *chain);
        assert_eq!(super::ring::gather(&slices), offer.bytes());
    }

    /// Gives some chain back; false when none is held.
    pub fn give_back(&mut self, choice: u8) -> bool {
        let count = self.held.len();
        if count == 0 {
            return false;
        }
        let at = choose(choice, count);
        self.untakeable = self.untakeable.min(count - 1 - at);
        let (offer, chain) = self.held.remove(at).expect("chosen among them");
        let written = offer.written(self.flavour.direction);
        self.device.give_back(chain, written);
        self.given = self.given.wrapping_add(1);
        self.given_back.push_back(offer);
        true
    }

    pub fn untake(&mut self, count: usize) {
        let count = count.min(self.untakeable);
        self.device.untake(count as u16);
        self.untakeable -= count;
        self.taken = self.taken.wrapping_sub(count as u16);
        for _ in 0..count {
            let (offer, _) = self.held.pop_back().expect("untakeable chains are held");
            self.available.push_front(offer);
        }
    }

    pub fn publish_used(&mut self) {
        let count = self.given_back.len();
        let expected = count > 0 && self.calls.at_publication(count, self.given);
        assert_eq!(self.device.publish(), expected, "call at {}", self.given);
        self.used.append(&mut self.given_back);
    }

    /// Reaps the next used chain; false when there is none.
    pub fn reap(&mut self) -> bool {
        let used = self.driver.reap().unwrap();
        let Some(offer) = self.used.pop_front() else {
            assert_eq!(used, None);
            return false;
        };
        let direction = self.flavour.direction;
        let (token, written) = (offer.token, offer.written(direction));
        assert_eq!(used, Some(Used { token, written }));
        if direction == Direction::Receive {
            let mut expected = offer.bytes();
            expected[written as usize..].fill(BLANK);
            let area = self.ring.area(offer.area);
            assert_eq!(self.ring.read(area, offer.total()), expected);
        }
        self.reaped = self.reaped.wrapping_add(1);
        self.free += offer.descriptors;
        self.free_areas.push(offer.area);
        true
    }

    pub fn enable_kicks(&mut self) {
        let waiting = self.device.enable_kicks().unwrap();
        assert_eq!(waiting, !self.available.is_empty());
        self.kicks.wanted = true;
        self.kicks.event = self.known;
        self.known = self.published;
    }

    pub fn disable_kicks(&mut self) {
        self.device.disable_kicks();
        self.kicks.wanted = false;
    }

    pub fn enable_calls(&mut self) {
        assert_eq!(self.driver.enable_calls(), !self.used.is_empty());
        self.calls.wanted = true;
        self.calls.event = self.reaped;
    }

    pub fn disable_calls(&mut self) {
        self.driver.disable_calls();
        self.calls.wanted = false;
        self.calls.event = self.reaped.wrapping_sub(1);
    }

    pub fn check_counts(&self) {
        let chains = self.added.len()
            + self.available.len()
            + self.held.len()
            + self.given_back.len()
            + self.used.len();
        assert_eq!(usize::from(self.driver.outstanding()), chains);
        assert_eq!(usize::from(self.device.outstanding()), self.held.len());
        assert_eq!(self.driver.free(), self.free);
        assert_eq!(self.device.position(), self.taken);
    }

    /// Brings every chain home.
    pub fn drain(mut self) {
        self.publish();
        while self.take() {}
        while self.give_back(0) {}
        self.publish_used();
        while self.reap() {}
        self.check_counts();
        assert_eq!(self.driver.outstanding(), 0);
        assert_eq!(self.driver.free(), usize::from(self.flavour.size));
    }
}

/// One of `count`, near either end.
fn choose(choice: u8, count: usize) -> usize {
    let near = usize::from(choice / 2) % count;
    if choice.is_multiple_of(2) { near } else { count - 1 - near }
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    Few(usize),
    Half,
    All,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(Amount),
    Publish,
    Take(Amount),
    Retake(u8),
    GiveBack(Amount, u8),
    Untake(Amount),
    PublishUsed,
    Reap(Amount),
    EnableKicks,
    DisableKicks,
    EnableCalls,
    DisableCalls,
}

fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![
        8 => (1usize..=4).prop_map(Amount::Few),
        1 => Just(Amount::Half),
        1 => Just(Amount::All),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => amount().prop_map(Step::Add),
        3 => Just(Step::Publish),
        4 => amount().prop_map(Step::Take),
        1 => any::<u8>().prop_map(Step::Retake),
        4 => (amount(), any::<u8>()).prop_map(|(amount, choice)| Step::GiveBack(amount, choice)),
        1 => amount().prop_map(Step::Untake),
        3 => Just(Step::PublishUsed),
        4 => amount().prop_map(Step::Reap),
        1 => Just(Step::EnableKicks),
        1 => Just(Step::DisableKicks),
        1 => Just(Step::EnableCalls),
        1 => Just(Step::DisableCalls),
    ]
}

fn base() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), 65500u16.., any::<u16>()]
}

fn run(world: &mut World<'_>, step: Step) {
    let size = usize::from(world.flavour.size);
    let times = |amount| match amount {
        Amount::Few(count) => 0..count,
        Amount::Half => 0..size.div_ceil(2),
        Amount::All => 0..size,
    };
    match step {
        Step::Add(amount) => _ = times(amount).all(|_| world.add()),
        Step::Publish => world.publish(),
        Step::Take(amount) => _ = times(amount).all(|_| world.take()),
        Step::Retake(choice) => world.retake(choice),
        Step::GiveBack(amount, choice) => _ = times(amount).all(|_| world.give_back(choice)),
        Step::Untake(amount) => world.untake(times(amount).len()),
        Step::PublishUsed => world.publish_used(),
        Step::Reap(amount) => _ = times(amount).all(|_| world.reap()),
        Step::EnableKicks => world.enable_kicks(),
        Step::DisableKicks => world.disable_kicks(),
        Step::EnableCalls => world.enable_calls(),
        Step::DisableCalls => world.disable_calls(),
    }
    world.check_counts();
}

/// Sizes, how many interleavings each is worth, and how long they are.
const SIZES: [(u16, u32, usize); 6] =
    [(1, 30, 150), (2, 50, 150), (64, 30, 150), (256, 10, 150), (1024, 5, 100), (32768, 1, 60)];

fn interleave(form: Form, event_index: bool) {
    for direction in [Direction::Transmit, Direction::Receive] {
        for (size, cases, longest) in SIZES {
            let flavour = Flavour { form, event_index, direction, size };
            let config = Config {
                cases,
                rng_seed: RngSeed::Fixed(size.into()),
                failure_persistence: None,
                ..Config::default()
            };
            let steps = proptest::collection::vec(step(), longest / 2..longest);
            TestRunner::new(config)
                .run(&(base(), steps), |(base, steps)| {
                    let ring = Ring::new(size);
                    let mut world = World::new(&ring, flavour, base);
                    for step in steps {
                        run(&mut world, step);
                    }
                    world.drain();
                    Ok(())
                })
                .unwrap_or_else(|failure| panic!("{flavour:?}: {failure}"));
        }
    }
}

#[test]
fn direct_chains_with_flags() {
    interleave(Form::Direct, false);
}

#[test]
fn direct_chains_with_event_index() {
    interleave(Form::Direct, true);
}

#[test]
fn indirect_chains_with_flags() {
    interleave(Form::Indirect(0), false);
}

#[test]
fn indirect_chains_with_event_index() {
    interleave(Form::Indirect(0), true);
}

#[test]
fn chains_that_end_in_a_table_with_flags() {
    interleave(Form::Indirect(2), false);
}

#[test]
fn chains_that_end_in_a_table_with_event_index() {
    interleave(Form::Indirect(2), true);
}
