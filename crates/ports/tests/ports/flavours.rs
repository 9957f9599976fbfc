//! One body, every flavour of ring, through two ports: guests that send, post and look when they
//! like, and a plain queue of what has to arrive.
//!
//! Time stands almost still, and buffers are never too few for good: so every frame arrives, once,
//! as it was sent and in order, and every chain goes back.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wire::virtio::Features;

use crate::guest::{Cut, Guest};
use crate::world::{World, frame};

const PACKED: Features = Features::RING_PACKED;

/// Ring sizes, how many interleavings each is worth, and the longest frame: it has to fit into the
/// buffers of a whole ring.
const SIZES: [(u16, u32, usize); 7] = [
    (1, 4, 1514),
    (2, 4, 1514),
    (3, 4, 1514),
    (64, 2, 9014),
    (256, 1, 9014),
    (1024, 1, 65535 + 14),
    (32768, 1, 65535 + 14),
];

#[derive(Clone, Copy, Debug)]
struct Flavour {
    features: Features,
    cut: Cut,
    size: u16,
    longest: usize,
}

/// What happens to the guest of this number, or to all. Lengths are in thousandths of what there is
/// between the shortest and the longest.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send { guest: usize, count: usize, len: usize },
    Post { guest: usize, count: usize, len: usize },
    Look(usize),
    Reap(usize),
    Breathe,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![3 => 0usize..30, 1 => 0usize..=1000, 1 => Just(1000)];
    let several = (0usize..2, 1usize..9, len);
    prop_oneof![
        4 => several.clone().prop_map(|(guest, count, len)| Step::Send { guest, count, len }),
        3 => several.prop_map(|(guest, count, len)| Step::Post { guest, count, len }),
        2 => (0usize..2).prop_map(Step::Look),
        2 => (0usize..2).prop_map(Step::Reap),
        4 => Just(Step::Breathe),
    ]
}

/// Two guests of one flavour, and what is on its way to each.
struct Model {
    world: World,
    flavour: Flavour,
    due: [VecDeque<Vec<u8>>; 2],
    /// Chains that each has in its transmit ring, as far as it knows.
    outstanding: [usize; 2],
    sent: usize,
}

impl Model {
    fn new(flavour: Flavour) -> Self {
        let Flavour { features, cut, size, .. } = flavour;
        let world = World::pair([(); 2].map(|()| Guest::new(features, cut, size)));
        Self { world, flavour, due: Default::default(), outstanding: [0; 2], sent: 0 }
    }

    /// Sends a frame if there is room.
    fn send(&mut self, from: usize, len: usize) -> bool {
        let guest = &mut self.world.guests[from];
        if !guest.can_send() {
            return false;
        }
        let frame = frame(from, 1 - from, len, self.sent);
        guest.send(&frame);
        self.due[1 - from].push_back(frame);
        self.outstanding[from] += 1;
        self.sent += 1;
        true
    }

    /// Posts a buffer if there is room. It has at least so many bytes that a ring full of them holds
    /// the longest frame, and at most those of a buffer that holds it alone.
    fn post(&mut self, guest: usize, thousandths: usize) -> bool {
        let Flavour { features, cut, size, longest } = self.flavour;
        let guest = &mut self.world.guests[guest];
        if !guest.receive.has_room(cut) {
            return false;
        }
        let header = guest.header_size();
        let whole = header + longest;
        let mut len = whole;
        if features.contains(Features::MRG_RXBUF) {
            // Crumbs take the most descriptors.
            let buffers = usize::from(size) / (header + 6).min(size.into());
            let shortest = whole.div_ceil(buffers).max(header);
            len = shortest + (whole - shortest) * thousandths / 1000;
        }
        guest.post(len as u32);
        true
    }

    /// Looks at what came. Returns whether there was anything.
    fn look(&mut self, guest: usize) -> bool {
        let frames = self.world.guests[guest].frames();
        for frame in &frames {
            let due = self.due[guest].pop_front();
            assert!(due.as_ref() == Some(frame), "another frame was due, or none");
        }
        !frames.is_empty()
    }

    fn reap(&mut self, guest: usize) -> bool {
        let reaped = self.world.guests[guest].reap();
        self.outstanding[guest] -= reaped;
        assert_eq!(self.world.guests[guest].transmit.outstanding(), self.outstanding[guest]);
        reaped > 0
    }

    fn run(&mut self, step: Step) {
        let longest = self.flavour.longest;
        match step {
            Step::Send { guest, count, len } => {
                let len = 14 + (longest - 14) * len / 1000;
                (0..count).all(|number| self.send(guest, (len + number).min(longest)));
            }
            Step::Post { guest, count, len } => _ = (0..count).all(|_| self.post(guest, len)),
            Step::Look(guest) => _ = self.look(guest),
            Step::Reap(guest) => _ = self.reap(guest),
            Step::Breathe => _ = self.world.after(1),
        }
    }

    /// All that was sent arrives, and every chain goes back.
    fn finish(mut self) {
        let mut idle = 0;
        while self.due.iter().any(|due| !due.is_empty()) || self.outstanding != [0; 2] {
            let mut moved = false;
            for guest in [0, 1] {
                moved |= !self.due[guest].is_empty() && self.post(guest, 1000);
            }
            moved |= self.world.after(1);
            for guest in [0, 1] {
                moved |= self.look(guest);
                moved |= self.reap(guest);
            }
            idle = if moved { 0 } else { idle + 1 };
            assert!(idle < 3, "nothing moves, and {:?} chains are out", self.outstanding);
        }
        for port in [0, 1] {
            self.world.assert_drops(port, &[]);
            let guest = &self.world.guests[port];
            assert_eq!(guest.transmit.room(), usize::from(self.flavour.size));
        }
        self.check_positions();
        let counted = [0, 1].map(|port| self.world.counters(port));
        let frames = counted.each_ref().map(|counters| counters.received.frames);
        assert_eq!(frames.iter().sum::<u64>(), self.sent as u64);
        assert_eq!(counted[0].sent, counted[1].received);
        assert_eq!(counted[1].sent, counted[0].received);
        assert!(self.world.faults.is_empty(), "{:?}", self.world.faults);
    }

    /// Nothing was taken from any ring that was not used, or left where it was.
    fn check_positions(&mut self) {
        for port in [0, 1] {
            let positions = self.world.swap(port, None).positions;
            assert_eq!(positions.len(), 2);
            for (ring, position) in positions {
                let used = match self.flavour.features.contains(PACKED) {
                    true => position >> 16,
                    false => self.world.guests[port].used_index(ring).into(),
                };
                assert_eq!(position & 0xFFFF, used, "ring {ring}");
            }
        }
    }
}

/// With EVENT_IDX or not, IN_ORDER or not, mergeable or not.
fn flavours(format: Features, cut: Cut, size: u16, longest: usize) -> [Flavour; 8] {
    let choices = [Features::EVENT_IDX, Features::IN_ORDER, Features::MRG_RXBUF];
    let base = format | Features::VERSION_1 | Features::INDIRECT_DESC;
    std::array::from_fn(|bits| {
        let chosen = (0..3).filter(|bit| bits >> bit & 1 == 1);
        let features = chosen.fold(base, |features, bit| features | choices[bit]);
        Flavour { features, cut, size, longest }
    })
}

fn interleave(format: Features, cut: Cut) {
    for (size, cases, longest) in SIZES {
        if format != PACKED && !size.is_power_of_two() {
            continue;
        }
        for flavour in flavours(format, cut, size, longest) {
            let config = Config {
                cases,
                rng_seed: RngSeed::Fixed(size.into()),
                failure_persistence: None,
                ..Config::default()
            };
            TestRunner::new(config)
                .run(&proptest::collection::vec(step(), 30..70), |steps| {
                    let mut model = Model::new(flavour);
                    steps.into_iter().for_each(|step| model.run(step));
                    model.finish();
                    Ok(())
                })
                .unwrap_or_else(|failure| panic!("{flavour:?}: {failure}"));
        }
    }
}

#[test]
fn direct_chains_in_split_rings() {
    interleave(Features::NONE, Cut::Crumbs);
}

#[test]
fn indirect_chains_in_split_rings() {
    interleave(Features::NONE, Cut::Indirect);
}

#[test]
fn chains_that_end_in_a_table_in_split_rings() {
    interleave(Features::NONE, Cut::Mixed);
}

#[test]
fn direct_chains_in_packed_rings() {
    interleave(PACKED, Cut::Crumbs);
}

#[test]
fn indirect_chains_in_packed_rings() {
    interleave(PACKED, Cut::Indirect);
}

#[test]
fn both_kinds_of_chain_in_packed_rings() {
    interleave(PACKED, Cut::Mixed);
}

/// Bursts until each ring has gone round past 2^16.
#[test]
fn rings_go_round_past_2_to_the_16() {
    const FRAMES: usize = 66_000;
    for (format, size) in [(Features::NONE, 64), (PACKED, 61)] {
        let features = Features::EVENT_IDX | Features::IN_ORDER | Features::MRG_RXBUF;
        let features = format | Features::VERSION_1 | features;
        let mut model = Model::new(Flavour { features, cut: Cut::Whole, size, longest: 100 });
        while model.sent < FRAMES {
            while model.post(1, 1000) {}
            while model.send(0, 60 + model.sent % 40) {}
            assert!(model.world.after(1));
            assert!(model.look(1) && model.reap(0));
        }
        model.finish();
    }
}
