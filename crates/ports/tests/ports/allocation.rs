//! On the busy path nothing is allocated: every allocation of this thread is counted.

use allocation_counter::measure;
use engine::BURST;
use wire::virtio::Features;

use crate::crew::Crew;
use crate::flow::{Flow, which};
use crate::guest::{Cut, Guest};
use crate::world::{RING, World, frame};

const FEATURES: Features =
    Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);

#[track_caller]
fn assert_none_but_the_first(counts: &[u64]) {
    assert!(counts[0] > 0, "nothing is counted at all");
    assert!(counts[1..].iter().all(|count| *count == 0), "{counts:?}");
}

#[test]
fn a_breath_between_two_guests_does_not_allocate() {
    let guest = || Guest::new(FEATURES, Cut::Whole, RING);
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
    assert_none_but_the_first(&counts);
}

/// Each of two workers delivers to all pairs of a guest, some of which have no room at first, polls for
/// a while, goes to sleep, and wakes again.
#[test]
fn workers_with_many_pairs_do_not_allocate() {
    const PAIRS: usize = 8;
    /// Frames for each of them in a round, from each worker.
    const EACH: usize = BURST / PAIRS;
    let guest = |pairs| Guest::with_pairs(pairs, FEATURES, Cut::Whole, RING);
    let mut crew = Crew::bridged(2, vec![guest(2), guest(PAIRS)]);
    // A flow for each pair of the one and of the other, which says where it wants to have it.
    let flow = |from: usize, to: usize| Flow::udp(0, 1, (from * PAIRS + to) as u16);
    (0..2).for_each(|pair| crew.guests[0].post_many_on(pair, 2 * PAIRS));
    for to in 0..PAIRS {
        (0..2).for_each(|from| _ = crew.guests[1].send_on(to, &flow(from, to).back().frame(0, 60)));
    }
    while crew.breathe_all() {}
    (0..2).for_each(|pair| _ = crew.guests[0].frames_on(pair));

    let mut counts = [Vec::new(), Vec::new()];
    for round in 0..10 {
        for from in 0..2 {
            for number in 0..BURST {
                let frame = flow(from, number % PAIRS).frame((round * BURST + number) as u32, 200);
                crew.guests[0].send_on(from, &frame);
            }
        }
        for has_room in [2..PAIRS, 0..2] {
            has_room.for_each(|pair| crew.guests[1].post_many_on(pair, 2 * EACH));
            for (worker, counts) in counts.iter_mut().enumerate() {
                let breathe = || {
                    (0..100).for_each(|_| _ = crew.breathe(worker));
                    crew.arm(worker);
                    crew.disarm(worker);
                };
                counts.push(measure(breathe).count_total);
            }
        }
        for to in 0..PAIRS {
            let came = crew.guests[1].frames_on(to);
            assert_eq!(came.len(), 2 * EACH);
            assert!(came.iter().all(|frame| usize::from(which(frame).1) % PAIRS == to));
        }
        assert_eq!([0, 1].map(|pair| crew.guests[0].reap_on(pair)), [BURST; 2]);
    }
    counts.iter().for_each(|counts| assert_none_but_the_first(counts));
    crew.assert_drops(1, &[]);
}
