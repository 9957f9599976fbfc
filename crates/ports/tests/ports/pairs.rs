//! A guest with several queue pairs.

use engine::{BURST, DropReason, HELD};
use ringway_ports::vhost_user::MAX_PAIRS;
use wire::virtio::Features;

use crate::flow::{Flow, KINDS, which};
use crate::guest::{Cut, Guest, receive, transmit};
use crate::world::{MODERN, World, frame, modern};

/// Entries in the rings of a guest with several pairs.
const ENTRIES: u16 = 64;

const PACKED: Features = Features::RING_PACKED;
const IN_ORDER: Features = Features::IN_ORDER;
const FORMATS: [Features; 4] = [Features::NONE, IN_ORDER, PACKED, Features(PACKED.0 | IN_ORDER.0)];

fn guest(pairs: usize) -> Guest {
    Guest::with_pairs(pairs, MODERN, Cut::Whole, ENTRIES)
}

/// A guest with one pair, one with `pairs`, and a bystander, whose receive rings have buffers.
fn world(pairs: usize) -> World {
    let mut world = World::bridged(vec![modern(), guest(pairs), modern()]);
    for guest in [0, 2] {
        world.guests[guest].post_many(100);
    }
    (0..pairs).for_each(|pair| world.guests[MANY].post_many_on(pair, 32));
    world
}

/// The guest with several pairs.
const MANY: usize = 1;

/// What came, by pair.
fn arrived(guest: &mut Guest) -> Vec<Vec<Vec<u8>>> {
    (0..guest.pairs()).map(|pair| guest.frames_on(pair)).collect()
}

/// The one pair on which something came, and what.
#[track_caller]
fn arrived_on_one(guest: &mut Guest) -> (usize, Vec<Vec<u8>>) {
    let mut came: Vec<_> =
        arrived(guest).into_iter().enumerate().filter(|(_, frames)| !frames.is_empty()).collect();
    assert_eq!(came.len(), 1, "on one pair: {:?}", came.iter().map(|it| it.0).collect::<Vec<_>>());
    came.remove(0)
}

/// After that a flow has been quiet, in nanoseconds.
const QUIET: u64 = 2_000_000;

/// The guest with several pairs sends its side of a flow, which then is quiet for a while.
fn answer(world: &mut World, pair: usize, flow: Flow) {
    world.guests[MANY].send_on(pair, &flow.back().frame(0, 100));
    world.breathe();
    assert_eq!(world.guests[MANY].reap_on(pair), 1);
    assert_eq!(world.guests[flow.from].frames(), [flow.back().frame(0, 100)]);
    world.guests[flow.from].post_many(1);
    world.after(QUIET);
}

#[test]
fn a_conversation_is_delivered_where_the_guest_last_sent_its_own_side() {
    let mut world = world(4);
    for kind in KINDS {
        let flow = Flow::new(kind, 0, MANY, 7);
        for (number, pair) in [2, 0, 3, 1, 1, 2].into_iter().enumerate() {
            answer(&mut world, pair, flow);
            let sent = [flow.frame(number as u32, 100), flow.frame(number as u32, 1500)];
            sent.iter().for_each(|frame| world.guests[0].send(frame));
            world.breathe();
            let came = arrived_on_one(&mut world.guests[MANY]);
            assert_eq!(came, (pair, sent.to_vec()), "{kind:?}");
            world.guests[0].reap();
        }
    }
    (0..3).for_each(|port| world.assert_drops(port, &[]));
}

#[test]
fn conversations_keep_to_their_pairs_side_by_side() {
    let mut world = world(4);
    let flows: Vec<Flow> =
        (0..12).map(|number| Flow::udp(2 * (usize::from(number) % 2), MANY, number)).collect();
    let pair_of = |flow: &Flow| usize::from(flow.number / 2) % 4;
    flows.iter().for_each(|flow| answer(&mut world, pair_of(flow), *flow));
    for round in 0..5 {
        for flow in &flows {
            world.guests[flow.from].send(&flow.frame(round, 90));
        }
        world.breathe();
        for (pair, came) in arrived(&mut world.guests[MANY]).into_iter().enumerate() {
            let mut expected: Vec<_> = flows.iter().filter(|flow| pair_of(flow) == pair).collect();
            for frame in &came {
                let known = expected.iter().position(|flow| flow.frame(round, 90) == *frame);
                expected.remove(known.expect("a frame that belongs here, once"));
            }
            assert!(expected.is_empty(), "pair {pair}: {expected:?} did not come");
            world.guests[MANY].post_many_on(pair, came.len());
        }
        [0, 2].iter().for_each(|guest| _ = world.guests[*guest].reap());
    }
}

#[test]
fn unknown_conversations_are_spread_and_each_keeps_to_one_pair() {
    const FLOWS: u16 = 32;
    let mut world = world(4);
    let mut pair_of = [None; FLOWS as usize];
    for round in 0..3 {
        (0..FLOWS).for_each(|flow| {
            world.guests[0].send(&Flow::udp(0, MANY, flow).frame(round, 80));
        });
        world.breathe();
        assert_eq!(world.guests[0].reap(), FLOWS.into());
        for (pair, came) in arrived(&mut world.guests[MANY]).into_iter().enumerate() {
            assert!(came.len() >= 2, "pair {pair} has its share");
            for frame in &came {
                let (_, flow, number) = which(frame);
                assert_eq!(number, round);
                let known = *pair_of[usize::from(flow)].get_or_insert(pair);
                assert_eq!(known, pair, "flow {flow}");
            }
            world.guests[MANY].post_many_on(pair, came.len());
        }
    }
    assert!(pair_of.iter().all(Option::is_some));
}

#[test]
fn a_broadcast_arrives_once() {
    let mut world = world(4);
    for number in 0..20 {
        let mut broadcast = Flow::udp(0, MANY, number as u16).frame(number, 80);
        broadcast[..6].fill(0xff);
        world.guests[0].send(&broadcast);
        world.breathe();
        assert_eq!(arrived_on_one(&mut world.guests[MANY]).1, [&broadcast[..]]);
        assert_eq!(world.guests[2].frames(), [&broadcast[..]]);
        assert_eq!(world.guests[0].reap(), 1);
        // And out of any of the pairs, not back into another.
        let pair = number as usize % 4;
        let mut broadcast = Flow::udp(MANY, 0, number as u16).frame(number, 80);
        broadcast[..6].fill(0xff);
        world.guests[MANY].send_on(pair, &broadcast);
        world.breathe();
        for guest in [0, 2] {
            assert_eq!(world.guests[guest].frames(), [&broadcast[..]]);
        }
        assert!(arrived(&mut world.guests[MANY]).concat().is_empty());
        assert_eq!(world.guests[MANY].reap_on(pair), 1);
    }
}

#[test]
fn a_conversation_that_is_moved_while_its_ring_is_full_stays_in_order() {
    let mut world = World::bridged(vec![modern(), guest(2), modern()]);
    world.guests[0].post_many(100);
    let flow = Flow::udp(0, MANY, 3);
    let sent: Vec<_> = (0..30).map(|number| flow.frame(number, 100)).collect();
    answer(&mut world, 0, flow);
    world.guests[MANY].post_many_on(0, 5);
    sent[..20].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert_eq!(world.guests[MANY].frames_on(0), sent[..5]);
    assert_eq!(world.guests[0].reap(), 5, "the others are held");

    // Elsewhere they would overtake what is in the first ring, which nobody knows to be taken.
    world.guests[MANY].post_many_on(1, 20);
    world.guests[MANY].send_on(1, &flow.back().frame(1, 100));
    sent[20..].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    world.breathe();
    assert_eq!(arrived(&mut world.guests[MANY]).concat().len(), 0);
    world.guests[MANY].post_many_on(0, 40);
    world.breathe();
    world.breathe();
    assert_eq!(world.guests[MANY].frames_on(0), sent[5..]);
    assert_eq!(world.guests[0].reap(), 25);
    // There is room in both, and nothing to overtake.
    world.after(QUIET);
    world.guests[0].send(&flow.frame(30, 100));
    world.breathe();
    assert_eq!(world.guests[MANY].frames_on(1), [flow.frame(30, 100)]);
    (0..3).for_each(|port| world.assert_drops(port, &[]));
}

/// A driver with EVENT_IDX that asks to be called has taken everything: no need to wait.
#[test]
fn a_conversation_is_moved_at_once_when_its_driver_waits_for_more() {
    for format in [Features::NONE, PACKED] {
        let features = MODERN | Features::EVENT_IDX | format;
        let many = Guest::with_pairs(2, features, Cut::Whole, ENTRIES);
        let mut world = World::bridged(vec![modern(), many, modern()]);
        world.guests[0].post_many(10);
        (0..2).for_each(|pair| world.guests[MANY].post_many_on(pair, 30));
        let flow = Flow::udp(0, MANY, 3);
        answer(&mut world, 0, flow);
        let delivered_on = |world: &mut World, pair: usize, number: u32| {
            world.guests[0].send(&flow.frame(number, 100));
            world.breathe();
            assert_eq!(world.guests[MANY].frames_on(pair), [flow.frame(number, 100)]);
        };
        delivered_on(&mut world, 0, 0);
        world.guests[MANY].send_on(1, &flow.back().frame(0, 100));
        world.breathe();
        // It was taken, but by a driver that polls: nobody can know.
        world.guests[MANY].poll_on(0);
        delivered_on(&mut world, 0, 1);
        // Which asked to be called when it had taken that.
        delivered_on(&mut world, 1, 2);
        (0..3).for_each(|port| world.assert_drops(port, &[]));
    }
}

/// Enables exactly these receive rings.
fn enable(world: &mut World, pairs: &[usize]) {
    for pair in 0..world.guests[MANY].pairs() {
        world.guests[MANY].ring_mut(receive(pair)).enabled = pairs.contains(&pair);
    }
    world.plug(MANY);
}

#[test]
fn a_pair_that_is_disabled_gets_nothing_and_what_was_held_for_it_goes_elsewhere() {
    let mut world = World::bridged(vec![modern(), guest(4), modern()]);
    world.guests[0].post_many(100);
    let flow = Flow::udp(0, MANY, 3);
    let sent: Vec<_> = (0..16).map(|number| flow.frame(number, 100)).collect();
    answer(&mut world, 2, flow);
    sent[..4].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert!(arrived(&mut world.guests[MANY]).concat().is_empty(), "held for pair 2");

    enable(&mut world, &[1, 3]);
    (0..4).for_each(|pair| world.guests[MANY].post_many_on(pair, 16));
    sent[4..8].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    let (pair, came) = arrived_on_one(&mut world.guests[MANY]);
    assert!([1, 3].contains(&pair), "pair {pair}");
    assert_eq!(came, sent[..8]);

    enable(&mut world, &[0]);
    sent[8..12].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert_eq!(arrived_on_one(&mut world.guests[MANY]), (0, sent[8..12].to_vec()));

    // It is known where it was, when that is enabled again.
    enable(&mut world, &[0, 1, 2]);
    sent[12..].iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert_eq!(arrived_on_one(&mut world.guests[MANY]), (2, sent[12..].to_vec()));
    assert_eq!(world.guests[0].reap(), 16);
    world.assert_drops(MANY, &[]);

    // With none there is no receiver.
    enable(&mut world, &[]);
    world.guests[0].send(&sent[0]);
    world.breathe();
    assert_eq!(world.guests[0].reap(), 1);
    world.assert_drops(MANY, &[(DropReason::ReceiverDown, 1)]);
    assert!(arrived(&mut world.guests[MANY]).concat().is_empty());
}

#[test]
fn a_transmit_ring_that_is_disabled_is_emptied_and_not_listened_to() {
    let mut world = world(3);
    let flow = Flow::udp(0, MANY, 1);
    world.guests[0].send(&flow.frame(0, 90));
    world.breathe();
    let (pair, _) = arrived_on_one(&mut world.guests[MANY]);
    let disabled = (pair + 1) % 3;
    world.guests[MANY].ring_mut(transmit(disabled)).enabled = false;
    world.plug(MANY);
    for pair in 0..3 {
        (0..4).for_each(|number| {
            world.guests[MANY].send_on(pair, &Flow::udp(MANY, 2, pair as u16).frame(number, 90));
        });
    }
    (0..3).for_each(|number| {
        world.guests[MANY].send_on(disabled, &flow.back().frame(number, 90));
    });
    world.breathe();
    let reaped = [0, 1, 2].map(|pair| world.guests[MANY].reap_on(pair));
    assert_eq!(reaped.iter().sum::<usize>(), 15, "all are consumed");
    assert_eq!(reaped[disabled], 7);
    let came = world.guests[2].frames();
    assert_eq!(came.len(), 8);
    assert!(came.iter().all(|frame| usize::from(which(frame).1) != disabled));
    world.assert_drops(MANY, &[(DropReason::SenderDisabled, 7)]);
    // Nor does it say where its flows are to be delivered.
    world.guests[0].send(&flow.frame(1, 90));
    world.breathe();
    assert_eq!(arrived_on_one(&mut world.guests[MANY]), (pair, vec![flow.frame(1, 90)]));
}

#[test]
fn each_chain_goes_back_to_its_own_ring_and_none_waits_for_another_ring() {
    for format in FORMATS {
        let many = Guest::with_pairs(3, MODERN | format, Cut::Whole, ENTRIES);
        let mut world = World::bridged(vec![modern(), many, modern()]);
        world.guests[2].post_many(100);
        let in_order = format.contains(IN_ORDER);
        let (held, passing) = (Flow::udp(MANY, 0, 1), Flow::udp(MANY, 2, 2));
        for round in 0..30 {
            // Of pair 0, all pass; of pair 1, one is held in between; of pair 2, all are held.
            (0..3).for_each(|n| _ = world.guests[MANY].send_on(0, &passing.frame(n, 90)));
            for (number, flow) in [passing, held, passing, passing].into_iter().enumerate() {
                world.guests[MANY].send_on(1, &flow.frame(10 + number as u32, 90));
            }
            (0..2).for_each(|n| _ = world.guests[MANY].send_on(2, &held.frame(20 + n, 90)));
            world.breathe();
            let reaped = [0, 1, 2].map(|pair| world.guests[MANY].reap_on(pair));
            assert_eq!(reaped, [3, if in_order { 1 } else { 3 }, 0], "{format}, round {round}");
            assert_eq!(world.guests[2].frames().len(), 6);

            world.guests[0].post_many(3);
            world.breathe();
            let reaped = [0, 1, 2].map(|pair| world.guests[MANY].reap_on(pair));
            assert_eq!(reaped, [0, if in_order { 3 } else { 1 }, 2], "{format}, round {round}");
            let mut came: Vec<_> = world.guests[0].frames();
            came.sort_by_key(|frame| which(frame));
            let expected = [11, 20, 21].map(|number| held.frame(number, 90));
            assert_eq!(came, expected, "{format}, round {round}");
            world.guests[2].post_many(6);
        }
        (0..3).for_each(|port| world.assert_drops(port, &[]));
    }
}

/// Gives the port its guest, as it is now. Returns where the rings stand that were stopped.
fn plug(world: &mut World) -> Vec<(usize, u32)> {
    let device = world.guests[MANY].device();
    world.swap(MANY, Some(&device)).positions
}

/// Stops one ring. Returns where it stands.
fn stop(world: &mut World, number: usize) -> u32 {
    world.guests[MANY].ring_mut(number).runs = false;
    let positions = plug(world);
    let [(stopped, position)] = positions[..] else { panic!("not one ring: {positions:?}") };
    assert_eq!(stopped, number);
    position
}

#[test]
fn rings_stop_and_start_one_by_one_with_frames_held() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        for format in FORMATS {
            let many = Guest::with_pairs(3, MODERN | format, Cut::Whole, ENTRIES);
            let mut world = World::bridged(vec![modern(), many, modern()]);
            let flows = [0, 1, 2].map(|pair| Flow::udp(MANY, 0, pair));
            for (pair, flow) in flows.iter().enumerate() {
                (0..=pair as u32)
                    .for_each(|n| _ = world.guests[MANY].send_on(pair, &flow.frame(n, 90)));
            }
            world.breathe();
            assert_eq!([0, 1, 2].map(|pair| world.guests[MANY].reap_on(pair)), [0; 3], "all held");
            let mut dropped = 0;
            for (at, pair) in order.into_iter().enumerate() {
                // What the ring held is given back, and nothing of another.
                let position = stop(&mut world, transmit(pair));
                dropped += pair as u64 + 1;
                assert_eq!(world.guests[MANY].reap_on(pair), pair + 1, "{order:?}, {format}");
                for other in &order[at + 1..] {
                    assert_eq!(world.guests[MANY].reap_on(*other), 0, "{order:?}, {format}");
                }
                assert_eq!(world.counters(MANY)[DropReason::ReceiverFull], dropped);
                // What is sent meanwhile waits in the ring.
                world.guests[MANY].send_on(pair, &flows[pair].frame(7, 90));
                world.breathe();
                assert_eq!(world.guests[MANY].reap_on(pair), 0);
                world.guests[MANY].restart_ring(transmit(pair), position);
                assert_eq!(plug(&mut world), []);
            }
            world.guests[0].post_many(10);
            world.breathe();
            let mut came = world.guests[0].frames();
            came.sort_by_key(|frame| which(frame));
            assert_eq!(came, flows.map(|flow| flow.frame(7, 90)), "{order:?}, {format}");
            assert_eq!([0, 1, 2].map(|pair| world.guests[MANY].reap_on(pair)), [1; 3]);

            // The receive rings, each with a frame delivered and buffers left.
            for pair in order {
                let flow = Flow::udp(0, MANY, pair as u16);
                answer(&mut world, pair, flow);
                world.guests[MANY].post_many_on(pair, 3);
                let sent = [0, 1].map(|number| flow.frame(number, 90));
                world.guests[0].send(&sent[0]);
                world.breathe();
                let position = stop(&mut world, receive(pair));
                assert_eq!(world.guests[MANY].frames_on(pair), sent[..1], "{order:?}, {format}");
                world.guests[MANY].restart_ring(receive(pair), position);
                assert_eq!(plug(&mut world), []);
                world.guests[0].send(&sent[1]);
                world.breathe();
                assert_eq!(world.guests[MANY].frames_on(pair), sent[1..], "{order:?}, {format}");
                assert_eq!(world.guests[MANY].ring(receive(pair)).outstanding(), 1);
            }
        }
    }
}

/// Keeps these transmit rings full. Returns how many chains of each came back since the last time.
fn refill(guest: &mut Guest, pairs: &[usize], to: usize) -> Vec<usize> {
    let refill = |pair: &usize| {
        let came_back = guest.reap_on(*pair);
        while guest.ring(transmit(*pair)).outstanding() < ENTRIES.into() {
            guest.send_on(*pair, &Flow::udp(MANY, to, *pair as u16).frame(0, 60));
        }
        came_back
    };
    pairs.iter().map(refill).collect()
}

#[test]
fn the_rings_of_a_guest_take_turns() {
    // All of them, neighbours among many, and two that are far apart.
    let cases: [(usize, &[usize]); 4] =
        [(4, &[0, 1, 2, 3]), (16, &[0, 1]), (16, &[14, 15]), (16, &[2, 9, 11])];
    for (pairs, busy) in cases {
        let mut world = world(pairs);
        refill(&mut world.guests[MANY], busy, 2);
        let mut taken = vec![0; busy.len()];
        let rounds = 8 * busy.len();
        for _ in 0..rounds {
            let room = world.guests[2].receive.room();
            world.guests[2].post_many(room);
            world.breathe();
            let came_back = refill(&mut world.guests[MANY], busy, 2);
            taken.iter_mut().zip(came_back).for_each(|(sum, count)| *sum += count);
            assert!(world.guests[2].frames().len() <= BURST);
        }
        assert_eq!(taken, vec![8 * BURST; busy.len()], "{busy:?} of {pairs}");
    }
}

#[test]
fn many_pairs_get_no_more_of_a_breath_than_one() {
    let many = Guest::with_pairs(MAX_PAIRS, MODERN, Cut::Whole, ENTRIES);
    let mut world = World::bridged(vec![modern(), many, modern()]);
    let all: Vec<usize> = (0..MAX_PAIRS).collect();
    for _ in 0..10 {
        refill(&mut world.guests[MANY], &all, 2);
        while world.guests[0].transmit.outstanding() < 200 {
            world.guests[0].send(&frame(0, 2, 60, 0));
        }
        let room = world.guests[2].receive.room();
        world.guests[2].post_many(room);
        let before = [0, MANY].map(|port| world.counters(port).received.frames);
        world.breathe();
        let after = [0, MANY].map(|port| world.counters(port).received.frames);
        assert_eq!([after[0] - before[0], after[1] - before[1]], [BURST as u64; 2]);
        world.guests[0].reap();
        assert_eq!(world.guests[2].frames().len(), 2 * BURST);
    }
}

#[test]
fn what_a_guest_may_have_held_is_no_more_with_many_pairs() {
    let many = Guest::with_pairs(MAX_PAIRS, MODERN, Cut::Whole, 16);
    let mut world = World::bridged(vec![modern(), many, modern()]);
    let before = world.counters(MANY).received.frames;
    for pair in 0..MAX_PAIRS {
        (0..4).for_each(|n| {
            world.guests[MANY].send_on(pair, &Flow::udp(MANY, 0, pair as u16).frame(n, 60));
        });
    }
    for _ in 0..200 {
        world.breathe();
    }
    let taken = world.counters(MANY).received.frames - before;
    let dropped = world.counters(0)[DropReason::ReceiverFull];
    assert!(taken - dropped <= HELD as u64, "{taken} taken, {dropped} dropped");
    // And others are reached meanwhile.
    world.guests[2].post_many(10);
    world.guests[MANY].send_on(77, &frame(MANY, 2, 60, 0));
    world.breathe();
    world.breathe();
    assert_eq!(world.guests[2].frames(), [frame(MANY, 2, 60, 0)]);
}
