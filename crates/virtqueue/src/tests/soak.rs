//! Rings that go round more often than their indices count.

use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT};
use super::model::{CUTS, Direction, Flavour, World};

/// More than 2^16.
const CHAINS: u32 = 66_000;

fn go_round(format: Features, size: u16, direction: Direction) {
    let bed = Bed::new(format, size);
    for (cut, features) in CUTS.into_iter().zip([
        Features::EVENT_IDX,
        Features::EVENT_IDX | Features::IN_ORDER,
        Features::NONE,
    ]) {
        let flavour = Flavour { format, features, cut, direction, size };
        let mut world = World::new(&bed, flavour, 0);
        let mut chains = 0;
        while chains < CHAINS {
            while world.add() {}
            world.publish();
            while world.take() {}
            while world.give_back(2) {}
            world.publish_used();
            while world.reap() {
                chains += 1;
            }
            world.check_counts();
        }
        world.drain();
    }
}

#[test]
fn the_smallest_split_ring_goes_round_past_2_to_the_16() {
    go_round(SPLIT, 1, Direction::Transmit);
}

#[test]
fn a_usual_split_ring_goes_round_past_2_to_the_16() {
    go_round(SPLIT, 256, Direction::Receive);
}

#[test]
fn the_smallest_packed_ring_goes_round_past_2_to_the_16() {
    go_round(PACKED, 1, Direction::Transmit);
}

#[test]
fn an_odd_packed_ring_goes_round_past_2_to_the_16() {
    go_round(PACKED, 251, Direction::Receive);
}
