//! A receiver that is full holds its senders' frames, a bounded number for a bounded time.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use engine::{App, BURST, DropReason, HELD, Mode, WorkerHandle};
use ringway_ports::BLOCK;
use ringway_ports::vhost_user::PATIENCE;
use wire::split::Descriptor;
use wire::virtio::{Features, NetHeader};

use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, RING, STEP, World, frame, modern};

/// More than anything here takes, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

fn frames(from: usize, to: usize, seeds: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    seeds.map(|seed| frame(from, to, 60 + seed, seed)).collect()
}

fn send(world: &mut World, frames: &[Vec<u8>]) {
    for frame in frames {
        let from = usize::from(frame[11]);
        world.guests[from].send(frame);
    }
}

fn full(world: &World, port: usize) -> u64 {
    world.counters(port)[DropReason::ReceiverFull]
}

#[test]
fn held_frames_arrive_in_order_when_there_are_buffers() {
    let mut world = World::modern();
    let sent = frames(0, 1, 0..HELD);
    send(&mut world, &sent);
    for _ in 0..10 {
        world.breathe();
    }
    assert_eq!(world.guests[0].reap(), 0, "all are held");
    assert_eq!(world.counters(0).received.frames, HELD as u64, "counted once");

    let mut received = Vec::new();
    for buffers in [1, 2, 7, HELD] {
        world.guests[1].post_many(buffers);
        assert!(world.breathe() | world.breathe(), "something moved");
        let came = world.guests[1].frames();
        assert_eq!(came.len(), buffers.min(HELD - received.len()));
        assert_eq!(world.guests[0].reap(), came.len(), "chains go back as frames arrive");
        received.extend(came);
    }
    assert_eq!(received, sent);
    assert_eq!(world.counters(0).received.frames, HELD as u64);
    assert_eq!(world.counters(1).sent, world.counters(0).received);
    world.assert_drops(1, &[]);
}

/// Whoever serves the guest next begins where the used index is: what was taken and is not given back would be lost to it.
#[test]
fn a_port_that_is_taken_out_gives_its_rings_back_whole() {
    let mut world = World::modern();
    send(&mut world, &frames(0, 1, 0..3));
    world.breathe();
    assert_eq!(world.guests[0].reap(), 0, "all are held");
    assert!(world.port(0).is_up());
    world.graph.stop_all();
    assert_eq!(world.guests[0].reap(), 3);
    assert_eq!(world.guests[0].used_index(TRANSMIT), 3);
    assert_eq!(full(&world, 0), 3, "and they are counted");
    assert!(!world.port(0).is_up());
    // Nothing is touched any more.
    send(&mut world, &frames(0, 1, 3..4));
    world.breathe();
    assert_eq!(world.guests[0].used_index(TRANSMIT), 3);
}

#[test]
fn a_frame_that_needs_more_buffers_than_there_are_takes_none() {
    let mut world = World::modern();
    let large = frame(0, 1, 5000, 0);
    world.guests[1].post_many(2);
    world.guests[0].send(&large);
    world.guests[0].send(&frame(0, 1, 60, 1));
    world.breathe();
    assert!(world.guests[1].frames().is_empty());
    assert_eq!(world.guests[0].reap(), 0, "the small one waits behind the large one");
    world.guests[1].post_many(2);
    world.breathe();
    assert_eq!(world.guests[1].frames(), [large, frame(0, 1, 60, 1)]);
}

#[test]
fn a_steady_stream_through_a_slow_receiver_keeps_its_order_and_its_books() {
    let mut world = World::modern();
    let mut sent = 0;
    let mut received = Vec::new();
    for round in 0..400 {
        while sent < 3000 && world.guests[0].transmit.outstanding() < 100 {
            world.guests[0].send(&frame(0, 1, 60, sent));
            sent += 1;
        }
        // Sometimes nothing for a while, then some.
        let room = world.guests[1].receive.room();
        world.guests[1].post_many([0, 0, 3, 50, 0, 11][round % 6].min(room));
        world.breathe();
        world.guests[0].reap();
        received.extend(world.guests[1].frames());
    }
    let mut expected = (0..sent).map(|seed| frame(0, 1, 60, seed));
    for frame in &received {
        assert!(expected.any(|sent| sent == *frame), "out of order, or twice");
    }
    let held = world.guests[0].transmit.outstanding() as u64;
    let taken = world.counters(0).received.frames;
    assert!(taken >= received.len() as u64 + full(&world, 1));
    assert!(taken <= received.len() as u64 + full(&world, 1) + held, "none is lost uncounted");
}

#[test]
fn all_may_wait_for_a_while_and_some_for_longer() {
    let mut world = World::modern();
    let sent = frames(0, 1, 0..BURST + 10);
    send(&mut world, &sent);
    world.breathe();
    world.breathe();
    world.after(BLOCK - 1);
    assert_eq!(world.guests[0].reap(), 0);
    assert_eq!(world.counters(0).received.frames, BURST as u64, "the others are left in the ring");
    assert_eq!(full(&world, 1), 0);
    world.after(1);
    world.breathe();
    assert_eq!(world.guests[0].reap(), BURST + 10 - HELD);
    assert_eq!(full(&world, 1), (BURST + 10 - HELD) as u64);
    world.guests[1].post_many(RING.into());
    world.breathe();
    assert_eq!(world.guests[1].frames(), sent[..HELD], "the oldest");
}

#[test]
fn a_burst_that_is_too_much_at_once_is_not_lost() {
    let mut world = World::modern();
    let sent = frames(0, 1, 0..BURST);
    send(&mut world, &sent);
    world.guests[1].post_many(5);
    let mut received = Vec::new();
    while received.len() < BURST {
        world.after(BLOCK / 2);
        let came = world.guests[1].frames();
        assert!(!came.is_empty(), "{} came", received.len());
        received.extend(came);
        world.guests[1].post_many(25);
    }
    assert_eq!(received, sent);
    world.assert_drops(1, &[]);
}

#[test]
fn patience_ends_and_costs_one_wait() {
    let mut world = World::modern();
    send(&mut world, &frames(0, 1, 0..4));
    world.breathe();
    world.after(PATIENCE - 1);
    assert_eq!(world.guests[0].reap(), 0);
    world.after(1);
    assert_eq!(world.guests[0].reap(), 4);
    world.assert_drops(1, &[(DropReason::ReceiverFull, 4)]);

    // From now on what comes is dropped at once.
    for _ in 0..3 {
        send(&mut world, &frames(0, 1, 4..6));
        world.breathe();
        assert_eq!(world.guests[0].reap(), 2);
    }
    world.assert_drops(1, &[(DropReason::ReceiverFull, 10)]);

    // Until it takes a frame again: then it is waited for anew.
    world.guests[1].post_many(1);
    send(&mut world, &frames(0, 1, 6..8));
    world.breathe();
    assert_eq!(world.guests[1].frames(), frames(0, 1, 6..7));
    world.after(PATIENCE - STEP);
    assert_eq!(world.guests[0].reap(), 1);
    world.guests[1].post_many(1);
    world.breathe();
    assert_eq!(world.guests[1].frames(), frames(0, 1, 7..8));
    world.assert_drops(1, &[(DropReason::ReceiverFull, 10)]);
}

#[test]
fn frames_to_others_pass_those_that_are_held() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    world.guests[2].post_many(100);
    let (slow, fast) = (frames(0, 1, 0..20), frames(0, 2, 0..100));
    send(&mut world, &slow[..10]);
    send(&mut world, &fast[..10]);
    send(&mut world, &slow[10..]);
    world.breathe();
    assert_eq!(world.guests[2].frames(), fast[..10]);
    assert_eq!(world.guests[0].reap(), 10, "their chains go back at once");
    for ten in fast[10..].chunks(10) {
        send(&mut world, ten);
        world.breathe();
        assert_eq!(world.guests[2].frames(), ten);
    }
    world.guests[1].post_many(20);
    world.breathe();
    assert_eq!(world.guests[1].frames(), slow);
    assert_eq!(world.guests[0].reap(), 110);
    (0..3).for_each(|port| world.assert_drops(port, &[]));
}

#[test]
fn a_sender_with_much_held_waits_a_moment_and_then_reaches_others() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    world.guests[2].post_many(10);
    send(&mut world, &frames(0, 1, 0..HELD));
    world.breathe();
    send(&mut world, &frames(0, 2, 0..3));
    let start = world.now;
    while world.guests[2].receive.outstanding() == 10 {
        world.breathe();
        let frames = world.guests[2].frames();
        assert!(frames.is_empty() || world.now - start >= BLOCK, "not listened to for a while");
        assert!(world.now - start <= BLOCK + 2 * STEP, "and not longer");
    }
    assert_eq!(world.guests[2].receive.outstanding(), 7);
    // Now that it has waited, it does not wait again.
    send(&mut world, &frames(0, 2, 3..6));
    send(&mut world, &frames(0, 1, HELD..HELD + 5));
    world.breathe();
    assert_eq!(world.guests[2].frames(), frames(0, 2, 3..6));
    world.assert_drops(1, &[(DropReason::ReceiverFull, 5)]);
    world.guests[1].post_many(HELD);
    world.breathe();
    assert_eq!(world.guests[1].frames(), frames(0, 1, 0..HELD));
}

#[test]
fn senders_are_held_each_by_itself() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    let (one, two) = (frames(0, 2, 0..HELD), frames(1, 2, 0..HELD));
    send(&mut world, &one);
    send(&mut world, &two);
    world.breathe();
    let mut received = Vec::new();
    for _ in 0..2 * HELD {
        world.guests[2].post_many(1);
        world.breathe();
        received.extend(world.guests[2].frames());
    }
    let (from_one, from_two): (Vec<_>, Vec<_>) =
        received.into_iter().partition(|frame| frame[11] == 0);
    assert_eq!(from_one, one);
    assert_eq!(from_two, two);
    world.assert_drops(2, &[]);
}

#[test]
fn frames_to_several_receivers_are_never_held() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    world.guests[2].post_many(5);
    for seed in 0..5 {
        let mut broadcast = frame(0, 1, 60, seed);
        broadcast[..6].fill(0xff);
        world.guests[0].send(&broadcast);
    }
    world.breathe();
    assert_eq!(world.guests[0].reap(), 5);
    assert_eq!(world.guests[2].frames().len(), 5, "once each");
    world.assert_drops(1, &[(DropReason::ReceiverFull, 5)]);
    world.assert_drops(2, &[]);
}

#[test]
fn a_held_frame_is_read_again_and_trusted_no_more_than_before() {
    let mut world = World::modern();
    world.guests[0].send(&frame(0, 1, 60, 1));
    world.guests[0].send(&frame(0, 1, 70, 2));
    world.guests[0].send(&frame(0, 1, 80, 3));
    world.breathe();
    // The first has a bad header now, the third is another one. Where they are was noted: what the
    // descriptors say now does not matter.
    let at = |index| world.guests[0].transmit.places.area(index);
    let (first, third) = (at(0), at(2));
    let bad = NetHeader { flags: NetHeader::NEEDS_CSUM, ..NetHeader::default() };
    world.guests[0].write(first, &bad.to_bytes());
    world.guests[0].write(third + 12, &frame(0, 1, 80, 4));
    let outside = Descriptor { address: u64::MAX, length: 100, ..Descriptor::default() };
    (0..RING).for_each(|index| world.guests[0].describe(TRANSMIT, index, outside));
    world.guests[1].post_many(2);
    world.breathe();
    assert_eq!(world.guests[1].frames(), [frame(0, 1, 70, 2), frame(0, 1, 80, 4)]);
    assert_eq!(world.guests[0].reap(), 3);
    world.assert_drops(0, &[(DropReason::ChecksumNotNegotiated, 1)]);
}

#[test]
fn a_full_receiver_bounds_the_sleep_and_nothing_keeps_the_worker_awake() {
    let mut world = World::modern();
    let deadlines = |world: &mut World| {
        let now = world.now;
        [0, 1].map(|port| world.port(port).deadline(now))
    };
    assert_eq!(deadlines(&mut world), [None, None]);
    send(&mut world, &frames(0, 1, 0..2));
    world.breathe();
    let since = world.now;
    assert!(!world.breathe(), "nothing moves");
    assert!(!world.port(0).arm() && !world.port(1).arm());
    assert_eq!(deadlines(&mut world), [None, Some(since + PATIENCE)]);
    // It is met by a breath at that time.
    world.after(PATIENCE - STEP);
    assert_eq!(world.guests[0].reap(), 2);
    assert_eq!(deadlines(&mut world), [None, None]);

    // A sender that is not listened to is listened to again, though nobody wakes us.
    world.guests[1].post_many(1);
    send(&mut world, &frames(0, 1, 0..1 + HELD));
    world.breathe();
    world.breathe();
    let since = world.now;
    assert_eq!(deadlines(&mut world)[0], Some(since + BLOCK));
    // What it sends until then is no reason to stay awake.
    send(&mut world, &frames(0, 1, 0..1));
    assert!(!world.breathe() && !world.port(0).arm());
    world.after(BLOCK - STEP);
    world.after(PATIENCE);
    world.breathe();
    assert_eq!(world.guests[0].reap(), 2 + HELD, "it was listened to");

    // When all that waited could go, what comes is a reason at once.
    world.guests[1].post_many(1);
    send(&mut world, &frames(0, 1, 0..1 + HELD));
    world.breathe();
    world.breathe();
    assert!(!world.breathe() && !world.port(0).arm());
    world.guests[1].post_many(HELD);
    world.breathe();
    assert_eq!(world.guests[0].reap(), 1 + HELD);
    assert!(world.breathe() && !world.breathe() && !world.port(0).arm());
    send(&mut world, &frames(0, 1, 0..1));
    assert!(world.port(0).arm());
}

/// Waits until all ports have published what they did.
fn end_of_breath(handle: &WorkerHandle) {
    let (done, is_done) = sync_channel(1);
    handle.run(|_| (), move |()| done.send(()).unwrap()).unwrap();
    is_done.recv_timeout(LIMIT).expect("the worker answers in time");
}

/// A worker that sleeps with a frame held, while too few buffers are there, is woken by more.
#[test]
fn buffers_wake_a_worker_that_sleeps_with_frames_held() {
    const ROUNDS: usize = 20;
    for events in [Features::NONE, Features::EVENT_IDX] {
        let guest = || Guest::new(MODERN | events, Cut::Whole, RING);
        let (mut guests, handle) = World::pair([guest(), guest()]).live(Mode::Interrupt);
        let [sender, receiver] = &mut guests[..] else { unreachable!("a pair") };
        let mut received = 0;
        for round in 0..ROUNDS {
            receiver.post(100);
            let large = frame(0, 1, 1000, round);
            sender.send(&large);
            sender.transmit.kick.fire();
            let asleep = Instant::now();
            while !receiver.wants_kick(RECEIVE) && sender.transmit.call.is_quiet() {
                assert!(asleep.elapsed() < LIMIT, "waited {LIMIT:?} for the worker to sleep");
                std::thread::yield_now();
            }
            if receiver.post(2000) {
                receiver.receive.kick.fire();
            }
            sender.transmit.call.wait(LIMIT, "the chain to come back");
            end_of_breath(&handle);
            assert_eq!(sender.reap(), 1);
            // On a machine that is busy elsewhere its time may be over first.
            match &receiver.frames()[..] {
                [] => {}
                [frame] => {
                    assert_eq!(*frame, large);
                    received += 1;
                }
                frames => panic!("{} frames", frames.len()),
            }
            // Empties the ring for the next round.
            while receiver.receive.outstanding() > 0 {
                let len = if receiver.receive.outstanding() == 1 { 60 } else { 70 };
                sender.send(&frame(0, 1, len, round));
                sender.transmit.kick.fire();
                sender.transmit.call.wait(LIMIT, "the chain to come back");
                end_of_breath(&handle);
                sender.reap();
                receiver.frames();
            }
        }
        assert!(received >= ROUNDS / 2, "{received} of {ROUNDS} frames, {events}");
        handle.stop().unwrap();
    }
}

/// Nobody kicks, and the frames' time runs out.
#[test]
fn the_deadline_wakes_a_worker_that_sleeps_with_frames_held() {
    let (mut guests, handle) = World::modern().live(Mode::Interrupt);
    let sender = &mut guests[0];
    let start = Instant::now();
    sender.send(&frame(0, 1, 60, 0));
    sender.transmit.kick.fire();
    sender.transmit.call.wait(LIMIT, "the chain to come back");
    assert!(start.elapsed() >= Duration::from_nanos(PATIENCE));
    assert_eq!(sender.reap(), 1);
    handle.stop().unwrap();
}
