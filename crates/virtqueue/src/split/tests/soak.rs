//! Rings that go round more often than their indices count.

use super::model::{Direction, Flavour, World};
use super::ring::Ring;
use crate::split::Form;

/// More than 2^16.
const CHAINS: u32 = 70_000;

fn go_round(size: u16, direction: Direction) {
    let ring = Ring::new(size);
    for form in [Form::Direct, Form::Indirect(0), Form::Indirect(1)] {
        for event_index in [false, true] {
            let flavour = Flavour { form, event_index, direction, size };
            let mut world = World::new(&ring, flavour, 0);
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
}

#[test]
fn the_smallest_ring_goes_round_past_2_to_the_16() {
    go_round(1, Direction::Transmit);
}

#[test]
fn a_usual_ring_goes_round_past_2_to_the_16() {
    go_round(256, Direction::Receive);
}
