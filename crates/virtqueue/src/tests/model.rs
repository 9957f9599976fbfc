//! One body, every flavour: device against driver, checked at each step against plain queues.
//!
//! A chain wanders through five queues: added, available, held, given back, used. The model knows
//! which one comes next, what its bytes are, how many descriptors are free, and whether a
//! publication has to notify.
//!
//! A ring's *place* is how many of its entries ever went by, as far as it counts itself: chains
//! modulo 2^16 in a split ring, descriptors modulo two rounds in a packed one.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use memory::GuestAddress;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT, fill, gather};
use crate::{
    Buffer, Chain, DeviceQueue, DeviceRing, DriverQueue, Form, Full, Piece, Single, Singles, Used,
};

/// Most buffers in a chain; what an indirect table of the fixture holds.
const MOST_BUFFERS: u32 = 6;
/// Chains one behind the other that are of one buffer each, and then as many that need not be.
const RUN: u32 = 5;
/// Most bytes in a buffer; a whole chain fits a buffer area.
const MOST_BYTES: u32 = 40;
/// What a buffer holds before the device writes to it.
const BLANK: u8 = 0xEE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Transmit,
    Receive,
}

/// How chains are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Direct,
    Indirect,
    /// Split rings: chains that end in a table. Packed rings, which know none: one in a table, one
    /// not.
    Mixed,
}

pub const CUTS: [Cut; 3] = [Cut::Direct, Cut::Indirect, Cut::Mixed];

#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    pub format: Features,
    /// EVENT_IDX, IN_ORDER.
    pub features: Features,
    pub cut: Cut,
    pub direction: Direction,
    pub size: u16,
}

impl Flavour {
    fn features(self) -> Features {
        self.format | self.features | Features::INDIRECT_DESC
    }

    fn is_packed(self) -> bool {
        self.format.contains(PACKED)
    }

    fn has_events(self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }

    fn is_in_order(self) -> bool {
        self.features.contains(Features::IN_ORDER)
    }

    fn form(self, token: u32) -> Form {
        match self.cut {
            Cut::Direct => Form::Direct,
            Cut::Indirect => Form::Indirect(0),
            Cut::Mixed if !self.is_packed() => Form::Indirect(2),
            Cut::Mixed if token % 3 == 1 => Form::Direct,
            Cut::Mixed => Form::Indirect(0),
        }
    }

    /// Descriptors of the ring that a chain of `count` buffers takes.
    fn descriptors(self, token: u32, count: usize) -> usize {
        match self.form(token) {
            Form::Direct => count,
            Form::Indirect(direct) => count.min(usize::from(direct) + 1),
        }
    }

    /// Whether a chain of `count` buffers is one descriptor that holds its buffer itself.
    fn is_single(self, token: u32, count: usize) -> bool {
        let direct = match self.form(token) {
            Form::Direct => count,
            Form::Indirect(direct) => direct.into(),
        };
        count == 1 && direct >= 1
    }

    /// How far a place moves on by a chain of this many descriptors.
    fn entries(self, descriptors: usize) -> u32 {
        if self.is_packed() { descriptors as u32 } else { 1 }
    }

    /// After how much a place begins anew.
    fn period(self) -> u32 {
        if self.is_packed() { 2 * u32::from(self.size) } else { 1 << 16 }
    }

    /// As a queue has a place.
    fn position(self, place: u32) -> u16 {
        if !self.is_packed() {
            return place as u16;
        }
        let size = u32::from(self.size);
        let wrap = u16::from(place < size) << 15;
        (place % size) as u16 | wrap
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

/// When one side wants to be notified.
#[derive(Clone, Copy)]
enum Wanted {
    Always,
    Never,
    /// Of the entry at this place.
    At(u32),
}

/// When one side has to notify the other.
struct Notices {
    wanted: Wanted,
    /// The place at the last publication; none before the first one of a device.
    old: Option<u32>,
    period: u32,
}

impl Notices {
    fn at_publication(&mut self, entries: u32, new: u32) -> bool {
        let old = self.old.replace(new);
        match (self.wanted, old) {
            (Wanted::Always, _) | (Wanted::At(_), None) => true,
            (Wanted::Never, _) => false,
            (Wanted::At(event), Some(old)) => {
                (0..entries).any(|step| (old + step) % self.period == event)
            }
        }
    }
}

/// A ring, both its ends, and what they should be doing.
pub struct World<'r> {
    bed: &'r Bed,
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
    /// How many of them were taken since the last time that any was given back.
    fresh: usize,
    given_back: VecDeque<Offer>,
    used: VecDeque<Offer>,
    /// Where publishing, taking, giving back and reaping have got to.
    published: u32,
    taken: u32,
    given: u32,
    reaped: u32,
    /// Entries behind `taken` that the device has seen to be available.
    known: u32,
    kicks: Notices,
    calls: Notices,
}

impl<'r> World<'r> {
    pub fn new(bed: &'r Bed, flavour: Flavour, base: u16) -> Self {
        let period = flavour.period();
        let base = u32::from(base) % period;
        let (driver, device) = bed.pair_at(flavour.features(), flavour.position(base));
        // A device begins with kicks off; a driver's memory begins as zeros, with calls on.
        let (kicks, calls) = match (flavour.is_packed(), flavour.has_events()) {
            (false, true) => (Wanted::At((base + period - 1) % period), Wanted::At(0)),
            _ => (Wanted::Never, Wanted::Always),
        };
        Self {
            bed,
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
            fresh: 0,
            given_back: VecDeque::new(),
            used: VecDeque::new(),
            published: base,
            taken: base,
            given: base,
            reaped: base,
            known: 0,
            kicks: Notices { wanted: kicks, old: Some(base), period },
            calls: Notices { wanted: calls, old: None, period },
        }
    }

    fn entries(&self, offers: &VecDeque<Offer>) -> u32 {
        offers.iter().map(|offer| self.flavour.entries(offer.descriptors)).sum()
    }

    fn advance(&self, place: u32, entries: u32) -> u32 {
        (place + entries) % self.flavour.period()
    }

    /// Entries from one place to a later one.
    fn between(&self, earlier: u32, later: u32) -> u32 {
        (later + self.flavour.period() - earlier) % self.flavour.period()
    }

    /// Adds the next chain; false when it has no room.
    pub fn add(&mut self) -> bool {
        let token = self.next_token;
        let random = token.wrapping_mul(0x85EB_CA6B) ^ (token >> 3);
        // Chains of one buffer come in runs.
        let most = if (token / RUN).is_multiple_of(2) { 1 } else { MOST_BUFFERS };
        let count = (1 + (random >> 8) % most).min(self.flavour.size.into());
        let lens: Vec<u32> =
            (0..count).map(|index| (random >> (index + 3)) % (MOST_BYTES + 1)).collect();
        let descriptors = self.flavour.descriptors(token, lens.len());
        let offer =
            Offer { token, area: self.free_areas.last().copied().unwrap_or(0), lens, descriptors };
        let chain = self.chain(&offer);
        let result = self.driver.add(&chain, self.flavour.form(token), token);
        if descriptors > self.free {
            assert_eq!(result, Err(Full));
            return false;
        }
        assert_eq!(result, Ok(()));
        let area = self.bed.area(offer.area);
        match self.flavour.direction {
            Direction::Transmit => self.bed.write(area, &offer.bytes()),
            Direction::Receive => self.bed.write(area, &vec![BLANK; offer.total() as usize]),
        }
        self.next_token += 1;
        self.free_areas.pop();
        self.free -= descriptors;
        self.added.push_back(offer);
        true
    }

    /// The buffers lie one after the other in their area; an empty one may be anywhere.
    fn chain(&self, offer: &Offer) -> Vec<Buffer> {
        let mut at = self.bed.area(offer.area);
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

    fn is_single(&self, offer: &Offer) -> bool {
        self.flavour.is_single(offer.token, offer.lens.len())
    }

    pub fn publish(&mut self) {
        let entries = self.entries(&self.added);
        self.published = self.advance(self.published, entries);
        let expected = entries > 0 && self.kicks.at_publication(entries, self.published);
        assert_eq!(self.driver.publish(), expected, "kick at {}", self.published);
        self.available.append(&mut self.added);
    }

    /// Takes the next chain; false when there is none.
    pub fn take(&mut self) -> bool {
        let mut translator = self.bed.memory.translator();
        let chain = match self.flavour.direction {
            Direction::Transmit => {
                let mut slices = Vec::new();
                let taken = self.device.take_readable(&mut translator, u32::MAX, &mut slices);
                taken.unwrap().inspect(|_| {
                    assert_eq!(gather(&slices), self.available[0].bytes());
                })
            }
            Direction::Receive => {
                let mut slices = Vec::new();
                let taken = self.device.take_writable(&mut translator, u32::MAX, &mut slices);
                taken.unwrap().inspect(|_| {
                    let offer = &self.available[0];
                    let room: usize = slices.iter().map(|slice| slice.len()).sum();
                    assert_eq!(room, offer.total() as usize);
                    let written = offer.written(Direction::Receive) as usize;
                    fill(&slices, &offer.bytes()[..written]);
                })
            }
        };
        let Some(chain) = chain else {
            assert!(self.available.is_empty(), "a chain was lost");
            return false;
        };
        if !self.flavour.is_packed() && self.known == 0 {
            // A split ring says how many there are; a packed one has to be walked.
            self.known = self.between(self.taken, self.published);
        }
        let offer = self.available.pop_front().expect("a chain from nowhere");
        assert_eq!(chain.bytes(), u64::from(offer.total()));
        assert_eq!(usize::from(chain.descriptors()), offer.lens.len());
        let entries = self.flavour.entries(offer.descriptors);
        self.held.push_back((offer, chain));
        self.untakeable += 1;
        self.fresh += 1;
        self.taken = self.advance(self.taken, entries);
        self.known = self.known.saturating_sub(entries);
        true
    }

    /// Takes chains of one buffer each, at most `most`, and what was taken is what would have been taken
    /// one by one.
    pub fn take_singles(&mut self, most: usize) {
        let available = self.between(self.taken, self.published);
        match self.flavour.is_packed() {
            // A packed ring is looked at in one place.
            true if self.known == 0 => self.known = available.min(1),
            true => {}
            // What a split ring said last is enough, or it is asked again.
            false if (self.known as usize) < most => self.known = available,
            false => {}
        }
        let expected = self.available.iter().take_while(|offer| self.is_single(offer)).count();
        let seen = match self.flavour.is_packed() {
            true => self.available.len(),
            false => self.known as usize,
        };
        let count = expected.min(most).min(seen);
        let is_other_next = count < most.min(seen);

        let (direction, others) = match self.flavour.direction {
            Direction::Transmit => (crate::Direction::Read, crate::Direction::Write),
            Direction::Receive => (crate::Direction::Write, crate::Direction::Read),
        };
        let none = self.singles(others, most, |_| panic!("of the other kind"));
        assert_eq!(none, Singles { count: 0, is_other_next: most.min(seen) > 0 });
        let none = self.singles(direction, most, |_| false);
        assert_eq!(none, Singles { count: 0, is_other_next: most.min(seen) > 0 }, "not wanted");
        let mut singles = vec![];
        let take = |single| {
            singles.push(single);
            true
        };
        let taken = self.singles(direction, most, take);
        assert_eq!(taken, Singles { count, is_other_next });
        assert_eq!(singles.len(), count);
        let chains: Vec<Chain> = singles.iter().map(|single| single.chain).collect();
        for (single, offer) in singles.iter().zip(&self.available) {
            let Buffer { address, len, .. } = self.chain(offer)[0];
            assert_eq!(single.buffer(), Piece { address, len });
        }
        // The same once more, in the usual way.
        self.device.untake(&chains);
        let before = self.held.len();
        assert!((0..count).all(|_| self.take()));
        assert!(self.held.iter().skip(before).map(|(_, chain)| chain).eq(&chains));
    }

    fn singles(
        &mut self,
        direction: crate::Direction,
        most: usize,
        take: impl FnMut(Single) -> bool,
    ) -> Singles {
        match &mut self.device {
            DeviceQueue::Split(queue) => DeviceRing::take_singles(queue, direction, most, take),
            DeviceQueue::Packed(queue) => DeviceRing::take_singles(queue, direction, most, take),
        }
        .unwrap()
    }

    /// Reads a held chain once more.
    pub fn read_again(&mut self, choice: u8) {
        if self.flavour.direction == Direction::Receive || self.fresh == 0 {
            return;
        }
        let (offer, chain) = &self.held[self.held.len() - 1 - choose(choice, self.fresh)];
        let mut translator = self.bed.memory.translator();
        let (mut pieces, mut slices) = (Vec::new(), Vec::new());
        self.device.pieces(*chain, &mut translator, &mut pieces).unwrap();
        for piece in pieces {
            translator.read(piece.address, piece.len, &mut slices).unwrap();
        }
        assert_eq!(gather(&slices), offer.bytes());
    }

    /// Gives some chain back; false when none is held.
    pub fn give_back(&mut self, choice: u8) -> bool {
        let chain = self.let_go(choice);
        if let Some((chain, written)) = chain {
            self.device.give_back(chain, written);
        }
        chain.is_some()
    }

    /// Gives several chains back at once.
    pub fn give_all_back(&mut self, count: usize, choice: u8) {
        let chains: Vec<_> = (0..count).map_while(|_| self.let_go(choice)).collect();
        self.device.give_all_back(chains.into_iter());
    }

    /// Some chain that is to be given back, and what was written to it; none when none is held.
    fn let_go(&mut self, choice: u8) -> Option<(Chain, u32)> {
        let count = self.held.len();
        if count == 0 {
            return None;
        }
        let at = if self.flavour.is_in_order() { 0 } else { choose(choice, count) };
        self.untakeable = self.untakeable.min(count - 1 - at);
        self.fresh = 0;
        let (offer, chain) = self.held.remove(at).expect("chosen among them");
        let written = offer.written(self.flavour.direction);
        self.given = self.advance(self.given, self.flavour.entries(offer.descriptors));
        self.given_back.push_back(offer);
        Some((chain, written))
    }

    pub fn untake(&mut self, count: usize) {
        let count = count.min(self.untakeable);
        let chains: Vec<Chain> =
            self.held.iter().skip(self.held.len() - count).map(|(_, chain)| *chain).collect();
        self.device.untake(&chains);
        self.untakeable -= count;
        self.fresh = self.fresh.saturating_sub(count);
        for _ in 0..count {
            let (offer, _) = self.held.pop_back().expect("untakeable chains are held");
            let entries = self.flavour.entries(offer.descriptors);
            self.taken = self.advance(self.taken, self.flavour.period() - entries);
            self.known += entries;
            self.available.push_front(offer);
        }
    }

    pub fn publish_used(&mut self) {
        let entries = self.entries(&self.given_back);
        let expected = entries > 0 && self.calls.at_publication(entries, self.given);
        // By turns at once, and in its parts.
        let called = if self.given.is_multiple_of(2) {
            self.device.publish()
        } else {
            self.device.expose() && {
                fence(Ordering::SeqCst);
                self.device.wants_call()
            }
        };
        assert_eq!(called, expected, "call at {}", self.given);
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
            let area = self.bed.area(offer.area);
            assert_eq!(self.bed.read(area, offer.total()), expected);
        }
        self.reaped = self.advance(self.reaped, self.flavour.entries(offer.descriptors));
        self.free += offer.descriptors;
        self.free_areas.push(offer.area);
        true
    }

    pub fn enable_kicks(&mut self) {
        let waiting = self.device.enable_kicks().unwrap();
        assert_eq!(waiting, !self.available.is_empty());
        self.kicks.wanted = if self.flavour.has_events() {
            Wanted::At(self.advance(self.taken, self.known))
        } else {
            Wanted::Always
        };
        let available = self.entries(&self.available);
        // A packed ring is looked at in one place, which is enough to know that there is more.
        let seen = if self.flavour.is_packed() { self.known + 1 } else { available };
        self.known = seen.min(available);
    }

    pub fn disable_kicks(&mut self) {
        self.device.disable_kicks();
        // In a split ring the event is left where it is.
        if self.flavour.is_packed() || !self.flavour.has_events() {
            self.kicks.wanted = Wanted::Never;
        }
    }

    pub fn enable_calls(&mut self) {
        assert_eq!(self.driver.enable_calls(), !self.used.is_empty());
        self.calls.wanted =
            if self.flavour.has_events() { Wanted::At(self.reaped) } else { Wanted::Always };
    }

    pub fn disable_calls(&mut self) {
        self.driver.disable_calls();
        self.calls.wanted = if self.flavour.is_packed() || !self.flavour.has_events() {
            Wanted::Never
        } else {
            Wanted::At(self.advance(self.reaped, self.flavour.period() - 1))
        };
    }

    pub fn check_counts(&self) {
        let chains = self.added.len()
            + self.available.len()
            + self.held.len()
            + self.given_back.len()
            + self.used.len();
        assert_eq!(usize::from(self.driver.outstanding()), chains);
        let held = self.held.iter().map(|(offer, _)| self.flavour.entries(offer.descriptors));
        assert_eq!(u32::from(self.device.outstanding()), held.sum::<u32>());
        assert_eq!(self.driver.free(), self.free);
        let position = |place| u32::from(self.flavour.position(place));
        let used = if self.flavour.is_packed() { position(self.given) } else { 0 };
        assert_eq!(self.device.position(), position(self.taken) | used << 16);
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
    TakeSingles(Amount),
    ReadAgain(u8),
    GiveBack(Amount, u8),
    GiveAllBack(Amount, u8),
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
        3 => amount().prop_map(Step::Take),
        3 => amount().prop_map(Step::TakeSingles),
        1 => any::<u8>().prop_map(Step::ReadAgain),
        3 => (amount(), any::<u8>()).prop_map(|(amount, choice)| Step::GiveBack(amount, choice)),
        3 => (amount(), any::<u8>()).prop_map(|(amount, choice)| Step::GiveAllBack(amount, choice)),
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
        Step::TakeSingles(amount) => world.take_singles(times(amount).len()),
        Step::ReadAgain(choice) => world.read_again(choice),
        Step::GiveBack(amount, choice) => _ = times(amount).all(|_| world.give_back(choice)),
        Step::GiveAllBack(amount, choice) => world.give_all_back(times(amount).len(), choice),
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
const SIZES: [(u16, u32, usize); 7] = [
    (1, 10, 120),
    (2, 15, 120),
    (3, 15, 120),
    (64, 8, 120),
    (256, 3, 120),
    (1024, 2, 80),
    (32768, 1, 30),
];

fn interleave(format: Features, cut: Cut) {
    let events = [Features::NONE, Features::EVENT_IDX];
    let orders = [Features::NONE, Features::IN_ORDER];
    let directions = [Direction::Transmit, Direction::Receive];
    for (size, cases, longest) in SIZES {
        if format == SPLIT && !size.is_power_of_two() {
            continue;
        }
        for features in events.into_iter().flat_map(|event| orders.map(|order| event | order)) {
            for direction in directions {
                let flavour = Flavour { format, features, cut, direction, size };
                let config = Config {
                    cases,
                    rng_seed: RngSeed::Fixed(size.into()),
                    failure_persistence: None,
                    ..Config::default()
                };
                let steps = proptest::collection::vec(step(), longest / 2..longest);
                TestRunner::new(config)
                    .run(&(base(), steps), |(base, steps)| {
                        let bed = Bed::new(format, size);
                        let mut world = World::new(&bed, flavour, base);
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
}

#[test]
fn direct_chains_in_a_split_ring() {
    interleave(SPLIT, Cut::Direct);
}

#[test]
fn indirect_chains_in_a_split_ring() {
    interleave(SPLIT, Cut::Indirect);
}

#[test]
fn chains_that_end_in_a_table_in_a_split_ring() {
    interleave(SPLIT, Cut::Mixed);
}

#[test]
fn direct_chains_in_a_packed_ring() {
    interleave(PACKED, Cut::Direct);
}

#[test]
fn indirect_chains_in_a_packed_ring() {
    interleave(PACKED, Cut::Indirect);
}

#[test]
fn both_kinds_of_chain_in_a_packed_ring() {
    interleave(PACKED, Cut::Mixed);
}
