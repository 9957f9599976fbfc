//! On the busy path nothing is allocated: every allocation of this thread is counted.

use allocation_counter::measure;
use engine::BURST;
use wire::virtio::Features;

use crate::guest::{Cut, Guest};
use crate::world::{RING, World, frame};

#[test]
fn a_breath_between_two_guests_does_not_allocate() {
    let guest = || {
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX;
        Guest::new(features, Cut::Whole, RING)
    };
    let mut world = World::bridged(vec![guest(), guest()]);
    let mut counts = Vec::new();
    for round in 0..10 {
        for number in 0..BURST {
            // Buffers of their own, and buffers that are merged.
            world.guests[0].send(&frame(0, 1, 60 + 60 * number, round));
            world.guests[1].post(1000);
            (0..number / 16).for_each(|_| _ = world.guests[1].post(1000));
        }
        counts.push(measure(|| assert!(world.breathe())).count_total);
        assert_eq!(world.guests[0].reap(), BURST);
        let frames = world.guests[1].frames();
        assert_eq!(frames.len(), BURST);
        assert_eq!(frames[40], frame(0, 1, 60 + 60 * 40, round));
    }
    assert!(counts[0] > 0, "nothing is counted at all");
    assert!(counts[1..].iter().all(|count| *count == 0), "{counts:?}");
}
