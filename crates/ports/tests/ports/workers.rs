//! Several workers serve the same guests: by hand, one step after the other.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use engine::{App, DropReason};
use ringway_ports::vhost_user::PATIENCE;
use rustix::fs::{MemfdFlags, memfd_create};
use wire::virtio::Features;

use crate::crew::Crew;
use crate::flow::Flow;
use crate::guest::{Cut, Guest, RECEIVE, receive, transmit};
use crate::world::{MODERN, STEP, frame, modern};

/// Entries in the rings of guests with several pairs.
const ENTRIES: u16 = 64;

fn guest(pairs: usize, features: Features) -> Guest {
    Guest::with_pairs(pairs, MODERN | features, Cut::Whole, ENTRIES)
}

/// Guests 0 and 1 are served by a worker each, guest 2 by the first: whatever comes from 1 is
/// delivered by a worker that the ring does not belong to.
fn three(features: Features) -> Crew {
    Crew::bridged(2, vec![modern(), modern(), Guest::new(MODERN | features, Cut::Whole, 256)])
}

/// Who receives in [`three`].
const TO: usize = 2;

#[test]
fn each_pair_belongs_to_one_worker() {
    const PAIRS: usize = 5;
    for workers in 1..=4 {
        let mut crew = Crew::bridged(workers, vec![modern(), guest(PAIRS, Features::NONE)]);
        crew.guests[0].post_many(200);
        for worker in 0..workers {
            for pair in 0..PAIRS {
                crew.guests[1].send_on(pair, &Flow::udp(1, 0, pair as u16).frame(0, 60));
            }
            (0..3).for_each(|_| _ = crew.breathe(worker));
            for pair in 0..PAIRS {
                let is_its = crew.worker_of(1, pair) == worker;
                let name = format!("worker {worker} of {workers}, pair {pair}");
                assert_eq!(crew.guests[1].reap_on(pair), usize::from(is_its), "{name}");
            }
            // The others', for the next round.
            while crew.breathe_all() {}
            (0..PAIRS).for_each(|pair| _ = crew.guests[1].reap_on(pair));
        }
        assert_eq!(crew.guests[0].frames().len(), workers * PAIRS);
    }
}

#[test]
fn ports_with_one_pair_each_have_different_workers() {
    let crew = Crew::bridged(3, (0..6).map(|_| modern()).collect());
    let workers: Vec<usize> = (0..6).map(|port| crew.worker_of(port, 0)).collect();
    assert_eq!(workers, [0, 1, 2, 0, 1, 2]);
    // And they are.
    let mut crew = crew;
    for port in 0..6 {
        crew.guests[port].send(&frame(port, (port + 1) % 6, 60, 0));
        let busy: Vec<bool> = (0..3).map(|worker| crew.breathe(worker)).collect();
        assert_eq!(busy.iter().position(|busy| *busy), Some(port % 3));
        while crew.breathe_all() {}
    }
}

#[test]
fn each_worker_is_woken_by_its_own_transmit_rings_and_by_all_receive_rings() {
    let mut crew = Crew::bridged(2, vec![guest(3, Features::NONE)]);
    let is_watched = |crew: &Crew, worker: usize, kick: &Arc<OwnedFd>| {
        let is_watched = crew.poller(worker).watch(kick).is_err();
        if !is_watched {
            crew.poller(worker).unwatch(kick);
        }
        is_watched
    };
    let kicks: Vec<_> = (0..6).map(|ring| crew.guests[0].ring(ring).kick.0.clone()).collect();
    let watched = |crew: &Crew, worker| {
        let rings = (0..6).filter(|ring| is_watched(crew, worker, &kicks[*ring]));
        rings.collect::<Vec<_>>()
    };
    assert_eq!(watched(&crew, 0), [0, 1, 2, 4, 5]);
    assert_eq!(watched(&crew, 1), [0, 2, 3, 4]);
    for ring in [receive(1), transmit(1)] {
        crew.guests[0].ring_mut(ring).runs = false;
    }
    crew.plug(0);
    assert_eq!(watched(&crew, 0), [0, 1, 4, 5]);
    assert_eq!(watched(&crew, 1), [0, 4]);
    crew.swap(0, None);
    assert_eq!(watched(&crew, 0), []);
    assert_eq!(watched(&crew, 1), []);
}

/// What one worker hears of a guest, all deliver by.
#[test]
fn a_conversation_is_delivered_where_it_was_sent_by_whichever_worker() {
    const PAIRS: usize = 5;
    let mut crew = Crew::bridged(3, vec![modern(), modern(), guest(PAIRS, Features::NONE)]);
    (0..2).for_each(|guest| crew.guests[guest].post_many(20));
    (0..PAIRS).for_each(|pair| crew.guests[TO].post_many_on(pair, 20));
    for pair in (0..PAIRS).chain([3, 0]) {
        for from in [0, 1] {
            let flow = Flow::udp(from, TO, 7);
            crew.guests[TO].send_on(pair, &flow.back().frame(0, 60));
            crew.breathe_all();
            // Quiet for a while, so that nothing can be overtaken.
            crew.now += 2_000_000;
            assert_eq!(crew.guests[from].frames(), [flow.back().frame(0, 60)]);
            crew.guests[from].send(&flow.frame(1, 60));
            crew.breathe_all();
            assert_eq!(crew.guests[TO].frames_on(pair), [flow.frame(1, 60)], "pair {pair}");
            crew.guests[from].reap();
            crew.guests[TO].reap_on(pair);
        }
    }
}

/// Both workers have a frame held for guest 2, and sleep.
fn both_wait(crew: &mut Crew, lens: [usize; 2]) {
    for from in [0, 1] {
        crew.guests[from].send(&frame(from, TO, lens[from], 1));
        crew.breathe(from);
    }
    assert!(crew.sleeps(0) && crew.sleeps(1), "with a frame held each");
}

#[test]
fn kicks_are_wanted_until_the_last_worker_that_waits_wants_none() {
    for features in [Features::NONE, Features::RING_PACKED] {
        for first in [0, 1] {
            let mut crew = three(features);
            both_wait(&mut crew, [100, 100]);
            assert!(crew.guests[TO].post(2000), "the driver is to kick");
            // One wakes, and takes it.
            crew.disarm(first);
            assert!(crew.breathe(first) | crew.breathe(first));
            assert_eq!(crew.guests[TO].frames(), [frame(first, TO, 100, 1)]);
            assert!(crew.guests[TO].post(2000), "the other one still sleeps");
            crew.disarm(1 - first);
            crew.breathe(1 - first);
            assert_eq!(crew.guests[TO].frames(), [frame(1 - first, TO, 100, 1)]);
            assert!(!crew.guests[TO].post(2000), "nobody does");
            crew.assert_drops(TO, &[]);
        }
    }
}

#[test]
fn a_ring_with_event_indices_kicks_for_both_workers() {
    for features in [Features::EVENT_IDX, Features::EVENT_IDX | Features::RING_PACKED] {
        let mut crew = three(features);
        both_wait(&mut crew, [100, 100]);
        assert!(crew.guests[TO].post(2000), "one kick wakes both");
        for worker in [0, 1] {
            crew.disarm(worker);
            crew.breathe(worker);
        }
        assert_eq!(crew.guests[TO].frames(), [frame(0, TO, 100, 1)]);
        assert!(crew.sleeps(1));
        assert!(crew.sleeps(0), "with nothing to do");
        assert!(crew.guests[TO].post(2000), "for the one that waits again");
    }
}

#[test]
fn buffers_that_come_before_a_worker_arms_are_not_slept_over() {
    let mut crew = three(Features::NONE);
    for from in [0, 1] {
        crew.guests[from].send(&frame(from, TO, 100, 1));
        assert!(crew.breathe(from));
        assert!(!crew.breathe(from));
    }
    assert!(!crew.arm(0));
    assert!(crew.guests[TO].post(2000));
    assert!(crew.arm(1), "there is a buffer now");
}

/// It polls for a while before it sleeps, and finds more buffers, but still too few.
#[test]
fn what_a_worker_found_last_is_what_it_waits_for_more_than() {
    let mut crew = three(Features::NONE);
    crew.guests[0].send(&frame(0, TO, 6500, 1));
    for _ in 0..3 {
        (0..3).for_each(|_| _ = crew.breathe(0));
        assert!(!crew.arm(0), "there is nothing to do");
        assert!(crew.guests[TO].post(1000));
        crew.disarm(0);
        assert!(!crew.breathe(0));
        assert!(!crew.guests[TO].post(1000), "it polls");
        crew.breathe(0);
        assert!(!crew.arm(0), "it found the other one already");
        crew.disarm(0);
    }
    crew.guests[TO].post(1000);
    crew.breathe(0);
    assert_eq!(crew.guests[TO].frames(), [frame(0, TO, 6500, 1)]);
}

/// The first worker found a buffer too small. Another one took that, and there is a larger one.
#[test]
fn a_buffer_that_took_the_place_of_one_that_was_too_small_is_not_slept_over() {
    let sets = [Features::NONE, Features::EVENT_IDX, Features::RING_PACKED];
    // One of another worker's, which comes alone, or two.
    for (features, is_alone) in sets.into_iter().flat_map(|set| [(set, false), (set, true)]) {
        let mut crew = three(features);
        crew.guests[TO].post(100);
        crew.guests[0].send(&frame(0, TO, 1000, 1));
        crew.breathe(0);
        crew.guests[1].send(&frame(1, TO, 60, 1));
        if !is_alone {
            crew.guests[1].send(&frame(1, TO, 3000, 2));
        }
        crew.breathe(1);
        assert_eq!(crew.guests[TO].frames(), [frame(1, TO, 60, 1)]);
        crew.guests[TO].post(2000);
        // Too little for the second, enough for the first.
        assert!(crew.sleeps(1));
        assert!(crew.arm(0), "there is something that it has not seen, {features}");
        crew.disarm(0);
        crew.breathe(0);
        assert_eq!(crew.guests[TO].frames(), [frame(0, TO, 1000, 1)]);
    }
}

/// Control exchanges the device on one worker after the other, and the first sleeps again already.
#[test]
fn a_worker_that_waits_for_a_ring_is_woken_when_another_one_exchanges_it() {
    let mut crew = three(Features::NONE);
    both_wait(&mut crew, [100, 100]);
    let device = crew.guests[TO].device();
    crew.disarm(1);
    drop(crew.swap_part(1, TO, Some(&device)));
    assert!(crew.sleeps(1));
    crew.disarm(0);
    crew.guests[TO].receive.kick.take();
    drop(crew.swap_part(0, TO, Some(&device)));
    // Kicks are off in the ring, so that what the driver posts now it posts in silence.
    assert!(!crew.guests[TO].post(2000));
    assert_eq!(crew.guests[TO].receive.kick.take(), 1);
    // A ring that nobody waits for is left alone.
    crew.disarm(1);
    crew.plug(TO);
    assert_eq!(crew.guests[TO].receive.kick.take(), 0);
}

#[test]
fn a_receiver_that_is_full_keeps_only_those_awake_who_have_something_for_it() {
    let mut crew = three(Features::NONE);
    crew.guests[0].send(&frame(0, TO, 100, 1));
    crew.breathe(0);
    let since = crew.now;
    assert!(crew.sleeps(1), "nothing is held by this one");
    assert_eq!(crew.deadline(1), None);
    assert!(crew.sleeps(0));
    assert_eq!(crew.deadline(0), Some(since + PATIENCE));
    // Woken by chance, it sleeps again.
    crew.disarm(1);
    assert!(!crew.breathe(1) && !crew.arm(1));
    // And the patience of the one ends by itself.
    crew.disarm(0);
    crew.now = since + PATIENCE - STEP;
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 1);
    crew.assert_drops(TO, &[(DropReason::ReceiverFull, 1)]);
    assert!(crew.sleeps(0));
    assert_eq!(crew.deadline(0), None);
}

/// What one worker delivers does not lengthen the wait of another's frames, which may be larger.
#[test]
fn each_worker_has_patience_of_its_own() {
    let mut crew = three(Features::NONE);
    crew.guests[0].send(&frame(0, TO, 100, 1));
    crew.breathe(0);
    crew.now += PATIENCE / 2;
    // Too small for the one that waits.
    crew.guests[TO].post(50);
    crew.guests[1].send(&frame(1, TO, 30, 1));
    crew.guests[1].send(&frame(1, TO, 100, 2));
    crew.breathe(1);
    assert_eq!(crew.guests[TO].frames(), [frame(1, TO, 30, 1)]);
    assert_eq!(crew.guests[1].reap(), 1, "the other is held");
    crew.now += PATIENCE / 2;
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 1, "dropped");
    crew.breathe(1);
    assert_eq!(crew.guests[1].reap(), 0, "held for half of its time");
    crew.assert_drops(TO, &[(DropReason::ReceiverFull, 1)]);
    // A receiver that takes nothing drops at once, until it takes a frame again.
    crew.guests[0].send(&frame(0, TO, 100, 3));
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 1);
    crew.guests[TO].post(2000);
    crew.guests[0].send(&frame(0, TO, 100, 4));
    crew.breathe(0);
    assert_eq!(crew.guests[TO].frames(), [frame(0, TO, 100, 4)]);
    crew.guests[0].send(&frame(0, TO, 100, 5));
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 1, "of the one that arrived");
    crew.assert_drops(TO, &[(DropReason::ReceiverFull, 2)]);
}

/// Makes a ring's available index wrong.
fn break_ring(guest: &Guest, ring: usize) {
    guest.set_available_index(ring, guest.used_index(ring).wrapping_sub(1000));
}

const HOSTILE: usize = 2;

/// A guest with two pairs, and bystanders. There is a worker for each bystander, and for each pair.
fn hostile() -> Crew {
    let mut crew = Crew::bridged(2, vec![modern(), modern(), guest(2, Features::NONE)]);
    (0..2).for_each(|pair| crew.guests[HOSTILE].post_many_on(pair, 20));
    (0..2).for_each(|guest| crew.guests[guest].post_many(100));
    crew
}

/// Bystanders talk to each other, and to the guest, on both workers. Returns how many frames the
/// guest got.
fn traffic(crew: &mut Crew, seed: usize) -> u64 {
    let before = crew.counters(HOSTILE).sent.frames;
    assert_eq!(talk(crew, seed), 4, "all chains came back");
    crew.counters(HOSTILE).sent.frames - before
}

/// The same. Returns how many chains came back to the bystanders.
fn talk(crew: &mut Crew, seed: usize) -> usize {
    for (from, to) in [(0, 1), (1, 0)] {
        crew.guests[from].send(&frame(from, HOSTILE, 100, seed));
        crew.guests[from].send(&frame(from, to, 60, seed));
    }
    (0..2).for_each(|_| _ = crew.breathe_all());
    let mut reaped = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        assert_eq!(crew.guests[to].frames(), [frame(from, to, 60, seed)], "bystanders talk");
        reaped += crew.guests[from].reap();
        crew.guests[to].post(2000);
    }
    reaped
}

#[test]
fn a_fault_takes_the_port_down_on_all_workers_and_is_reported_once() {
    for ring in 0..4 {
        let mut crew = hostile();
        assert_eq!(traffic(&mut crew, 1), 2);
        break_ring(&crew.guests[HOSTILE], ring);
        // All frames to it go where it is broken.
        let flow = Flow::udp(0, HOSTILE, 1);
        crew.guests[HOSTILE].ring_mut(receive(1 - ring / 2)).enabled = false;
        crew.plug(HOSTILE);
        (0..30).for_each(|number| crew.guests[0].send(&flow.frame(number, 60)));
        (0..3).for_each(|_| _ = crew.breathe_all());
        let kind = ["receive", "transmit"][ring % 2];
        let fault = crew.fault(HOSTILE);
        assert!(fault.starts_with(&format!("{kind} ring {ring}: available index")), "{fault}");
        crew.guests[0].reap();

        for worker in [0, 1] {
            assert!(!crew.part(worker, HOSTILE).is_up());
        }
        assert_eq!(traffic(&mut crew, 2), 0);
        for pair in 0..2 {
            crew.guests[HOSTILE].reap_on(pair);
            crew.guests[HOSTILE].ring_mut(transmit(pair));
        }
        // A worker that is given no device, and one again, has not seen the guest go.
        drop(crew.swap_part(0, HOSTILE, None));
        crew.plug(HOSTILE);
        assert_eq!(traffic(&mut crew, 3), 0, "ring {ring}");
        drop(crew.swap_part(1, HOSTILE, None));
        assert_eq!(traffic(&mut crew, 4), 0, "ring {ring}");
        drop(crew.swap_part(0, HOSTILE, None));
        crew.guests[HOSTILE].reset();
        crew.plug(HOSTILE);
        (0..2).for_each(|pair| crew.guests[HOSTILE].post_many_on(pair, 20));
        assert_eq!(traffic(&mut crew, 5), 2, "ring {ring}");
        assert!(crew.faults.is_empty(), "{:?}", crew.faults);
    }
}

#[test]
fn two_workers_that_find_faults_at_once_report_one() {
    for first in [0, 1] {
        let mut crew = hostile();
        (0..4).for_each(|ring| break_ring(&crew.guests[HOSTILE], ring));
        crew.breathe(first);
        crew.breathe(1 - first);
        crew.breathe_all();
        let ring = transmit(first);
        assert!(crew.fault(HOSTILE).starts_with(&format!("transmit ring {ring}: ")));
    }
}

/// All workers watch the kicks of receive rings, and all of them fail.
#[test]
fn a_kick_descriptor_that_no_worker_can_wait_for_is_reported_once() {
    let mut crew = hostile();
    let file = memfd_create("no eventfd", MemfdFlags::CLOEXEC).unwrap();
    let mut device = crew.guests[HOSTILE].device();
    device.rings[receive(1)].as_mut().unwrap().kick = Some(Arc::new(file));
    crew.swap(HOSTILE, Some(&device));
    (0..2).for_each(|_| _ = crew.breathe_all());
    let fault = crew.fault(HOSTILE);
    assert!(fault.starts_with("ring 2: the kick descriptor cannot be waited for"), "{fault}");
}

#[test]
fn a_guest_that_is_latched_is_left_alone_by_all_workers() {
    let mut crew = hostile();
    // One worker has chains of it, the other finds the fault.
    crew.guests[0] = modern();
    crew.plug(0);
    crew.guests[HOSTILE].send_on(0, &Flow::udp(HOSTILE, 0, 1).frame(0, 60));
    crew.breathe(0);
    break_ring(&crew.guests[HOSTILE], transmit(1));
    crew.breathe(1);
    crew.fault(HOSTILE);
    crew.guests[0].post_many(10);
    let used: Vec<u16> = (0..4).map(|ring| crew.guests[HOSTILE].used_index(ring)).collect();
    (0..3).for_each(|_| _ = crew.breathe_all());
    assert!(crew.guests[0].frames().is_empty(), "what was held is not sent");
    assert!(crew.sleeps(0) && crew.sleeps(1));
    crew.swap(HOSTILE, None);
    let after: Vec<u16> = (0..4).map(|ring| crew.guests[HOSTILE].used_index(ring)).collect();
    assert_eq!(after, used);
}

/// A worker that waited for a guest's ring when that was latched does not wait for the next guest's.
#[test]
fn nobody_waits_for_a_guest_that_came_behind_a_latched_one() {
    let mut crew = three(Features::NONE);
    both_wait(&mut crew, [100, 100]);
    let (finder, other) = (crew.worker_of(TO, 0), 1 - crew.worker_of(TO, 0));
    crew.disarm(finder);
    break_ring(&crew.guests[TO], transmit(0));
    crew.breathe(finder);
    crew.fault(TO);
    crew.disarm(other);
    crew.swap(TO, None);
    crew.guests[TO] = modern();
    crew.plug(TO);
    assert_eq!(crew.guests[TO].receive.kick.take(), 0, "it is not woken for anybody");
    // Who does wait for it is the only one.
    crew.guests[finder].reap();
    crew.guests[finder].send(&frame(finder, TO, 100, 1));
    crew.breathe(finder);
    assert!(crew.sleeps(finder));
    assert!(crew.guests[TO].post(2000), "the driver is to kick");
    crew.disarm(finder);
    crew.breathe(finder);
    assert!(!crew.guests[TO].post(2000), "and now not any more");
}

/// A worker that has let go of a guest finds nothing more about it that could be said of the next.
#[test]
fn a_fault_is_not_found_after_the_guest_was_let_go_of() {
    let mut crew = three(Features::NONE);
    both_wait(&mut crew, [100, 100]);
    crew.disarm(1);
    crew.guests[1].send(&frame(1, TO, 100, 2));
    crew.breathe(1);
    break_ring(&crew.guests[TO], RECEIVE);
    drop(crew.swap_part(1, TO, None));
    crew.arm(1);
    crew.disarm(0);
    drop(crew.swap_part(0, TO, None));
    crew.guests[TO] = modern();
    crew.plug(TO);
    (0..2).for_each(|_| _ = crew.breathe_all());
    assert!(crew.faults.is_empty(), "{:?}", crew.faults);
}

#[test]
fn memory_that_is_taken_away_is_noticed_by_whoever_looks_first() {
    for first in [0, 1] {
        let mut crew = hostile();
        (0..2).for_each(|pair| {
            _ = crew.guests[HOSTILE]
                .send_on(pair, &Flow::udp(HOSTILE, 0, pair as u16).frame(0, 60));
        });
        crew.guests[HOSTILE].truncate();
        crew.breathe(first);
        crew.breathe(1 - first);
        traffic(&mut crew, 1);
        let fault = crew.fault(HOSTILE);
        assert_eq!(fault, "the guest's memory file was truncated while in use");
        crew.swap(HOSTILE, None);
        crew.guests[HOSTILE] = guest(2, Features::NONE);
        crew.plug(HOSTILE);
        (0..2).for_each(|pair| crew.guests[HOSTILE].post_many_on(pair, 20));
        assert_eq!(traffic(&mut crew, 2), 2);
    }
}

/// A worker that was not told yet keeps what it has for a pair that was disabled meanwhile, until it
/// knows where else that goes.
#[test]
fn the_worker_that_a_pair_belongs_to_disables_it_for_all() {
    let mut crew = hostile();
    let flow = Flow::udp(1, HOSTILE, 1);
    crew.guests[HOSTILE].send_on(0, &flow.back().frame(0, 60));
    crew.breathe_all();
    crew.guests[HOSTILE].ring_mut(receive(0)).enabled = false;
    let device = crew.guests[HOSTILE].device();
    drop(crew.swap_part(0, HOSTILE, Some(&device)));
    crew.guests[1].send(&flow.frame(1, 60));
    crew.breathe(1);
    assert!(crew.guests[HOSTILE].frames_on(0).is_empty());
    drop(crew.swap_part(1, HOSTILE, Some(&device)));
    crew.guests[1].send(&flow.frame(2, 60));
    crew.breathe(1);
    assert_eq!(crew.guests[HOSTILE].frames_on(1), [1, 2].map(|number| flow.frame(number, 60)));
    crew.assert_drops(HOSTILE, &[]);
}

#[test]
fn workers_swap_one_after_the_other_and_frames_pass_all_the_while() {
    let mut crew = hostile();
    for round in 0..20 {
        // A guest with the same rings, or on a ring that starts anew, or another guest altogether.
        match round % 4 {
            1 => {
                (0..4).for_each(|ring| crew.guests[HOSTILE].ring_mut(ring).runs = false);
                for (ring, position) in crew.plug(HOSTILE) {
                    crew.guests[HOSTILE].restart_ring(ring, position);
                }
            }
            3 => {
                crew.swap(HOSTILE, None);
                crew.guests[HOSTILE] = guest(2, Features::NONE);
                (0..2).for_each(|pair| crew.guests[HOSTILE].post_many_on(pair, 20));
            }
            _ => {}
        }
        let device = crew.guests[HOSTILE].device();
        let mut reaped = 0;
        for worker in [round % 2, 1 - round % 2] {
            drop(crew.swap_part(worker, HOSTILE, Some(&device)));
            // What goes to a pair that only one of them knows waits for the other.
            reaped += talk(&mut crew, round);
        }
        assert_eq!(reaped, 8, "and no longer");
        for pair in 0..2 {
            crew.guests[HOSTILE].frames_on(pair);
            let missing = 20 - crew.guests[HOSTILE].ring(receive(pair)).outstanding();
            crew.guests[HOSTILE].post_many_on(pair, missing);
        }
        assert_eq!(traffic(&mut crew, round), 2, "round {round}");
    }
    assert!(crew.faults.is_empty());
    let (received, to_it) = (20 * 2 * 3, crew.counters(HOSTILE));
    let down = to_it[DropReason::ReceiverDown];
    assert_eq!(to_it.sent.frames + down, received, "each frame to it has one fate");
}
