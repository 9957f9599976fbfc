//! A device is exchanged for another one, between two breaths.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use engine::{App, DropReason, HELD};
use rustix::fs::{MemfdFlags, memfd_create};
use wire::virtio::Features;

use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, RING, World, frame, modern};

/// One frame each way.
#[track_caller]
fn both_ways(world: &mut World, seed: usize) {
    for (from, to) in [(0, 1), (1, 0)] {
        world.guests[to].post_many(1);
        world.guests[from].send(&frame(from, to, 60, seed));
    }
    world.breathe();
    for (from, to) in [(0, 1), (1, 0)] {
        assert_eq!(world.guests[to].frames(), [frame(from, to, 60, seed)]);
        assert_eq!(world.guests[from].reap(), 1);
    }
}

fn calls(guest: &Guest) -> [u64; 2] {
    [guest.receive.call.take(), guest.transmit.call.take()]
}

#[test]
fn a_ring_that_is_the_same_keeps_its_position() {
    let mut world = World::modern();
    for seed in 0..300 {
        both_ways(&mut world, seed);
        calls(&world.guests[0]);
        let swapped = {
            let device = world.guests[0].device();
            world.swap(0, Some(&device))
        };
        assert!(swapped.positions.is_empty(), "no ring was stopped");
        assert_eq!(calls(&world.guests[0]), [0, 0], "its driver need not know");
    }
}

#[test]
fn a_ring_that_starts_anew_keeps_nothing() {
    let mut world = World::modern();
    for seed in 0..5 {
        both_ways(&mut world, seed);
        both_ways(&mut world, seed);
        world.guests[0].reset();
        let device = world.guests[0].device();
        let swapped = world.swap(0, Some(&device));
        assert_eq!(swapped.positions, [(RECEIVE, 2), (TRANSMIT, 2)]);
        assert_eq!(calls(&world.guests[0]), [1, 1], "each ring is called once when it starts");
    }
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_stood() {
    let mut world = World::modern();
    for seed in 0..4 {
        both_ways(&mut world, seed);
        both_ways(&mut world, seed);
        // As GET_VRING_BASE and SET_VRING_BASE, one ring after the other; frames wait meanwhile.
        let base = 2 * (seed as u32 + 1);
        world.guests[1].post_many(1);
        world.guests[0].transmit.runs = false;
        let device = world.guests[0].device();
        assert_eq!(world.swap(0, Some(&device)).positions, [(TRANSMIT, base + seed as u32)]);
        world.guests[0].send(&frame(0, 1, 90, seed));
        world.breathe();
        assert!(world.guests[1].frames().is_empty());
        world.guests[0].receive.runs = false;
        let device = world.guests[0].device();
        assert_eq!(world.swap(0, Some(&device)).positions, [(RECEIVE, base)]);

        world.guests[0].restart([base, base + seed as u32]);
        world.plug(0);
        world.breathe();
        assert_eq!(world.guests[1].frames(), [frame(0, 1, 90, seed)]);
        assert_eq!(world.guests[0].reap(), 1);
    }
}

/// Numbered frames from one guest to the other, and what became of them.
struct Stream {
    from: usize,
    to: usize,
    next: usize,
    with_device: VecDeque<usize>,
    /// Frames whose chains came back.
    given_back: Vec<usize>,
    received: Vec<usize>,
    /// How many of these there were when the ring in question started: the sender's transmit ring,
    /// and the receiver's receive ring.
    starts: [usize; 2],
}

impl Stream {
    fn new(from: usize, to: usize) -> Self {
        let (with_device, given_back, received) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { from, to, next: 0, with_device, given_back, received, starts: [0; 2] }
    }

    fn send(&mut self, world: &mut World, count: usize) {
        for _ in 0..count {
            world.guests[self.from].send(&frame(self.from, self.to, 60, self.next));
            self.with_device.push_back(self.next);
            self.next += 1;
        }
    }

    /// Looks at what came, and at what came back: each frame once at the most, in order, and its
    /// chain with it.
    #[track_caller]
    fn look(&mut self, world: &mut World) {
        let back = world.guests[self.from].reap();
        self.given_back.extend(self.with_device.drain(..back));
        for came in world.guests[self.to].frames() {
            let due = self.received.last().map_or(0, |last| last + 1);
            let number = (due..self.next).find(|n| came == frame(self.from, self.to, 60, *n));
            let number = number.expect("a frame that was sent, after the last one that came");
            assert!(self.given_back.contains(&number), "delivered, and its chain is not back");
            self.received.push(number);
        }
    }
}

#[test]
fn one_ring_is_reset_under_traffic_and_the_others_go_on() {
    let packed = Features::RING_PACKED;
    for (format, size) in [
        (Features::NONE, 16),
        (Features::IN_ORDER | Features::EVENT_IDX, 16),
        (packed, 20),
        (packed | Features::IN_ORDER | Features::EVENT_IDX, 20),
    ] {
        let guest = || Guest::new(MODERN | format, Cut::Whole, size);
        let mut world = World::pair([guest(), guest()]);
        let mut streams = [Stream::new(0, 1), Stream::new(1, 0)];
        for (victim, number) in [(0, TRANSMIT), (1, RECEIVE), (1, TRANSMIT), (0, RECEIVE)].repeat(3)
        {
            let name = format!("{format}, ring {number} of guest {victim}");
            let sender = if number == TRANSMIT { victim } else { 1 - victim };
            let [hit, other] = match &mut streams {
                [one, two] if sender == 0 => [one, two],
                [one, two] => [two, one],
            };
            // Three of ten frames find a buffer, seven are held.
            world.guests[hit.to].post_many(3);
            hit.send(&mut world, 10);
            world.breathe();
            hit.look(&mut world);
            assert_eq!(hit.with_device.len(), 7, "{name}");

            // The ring stops: what was taken is back with the driver, what was not stays.
            let with_driver = world.guests[victim].ring(number).outstanding();
            world.guests[victim].stop(number);
            let device = world.guests[victim].device();
            let swapped = world.swap(victim, Some(&device));
            let [(stopped, position)] = swapped.positions[..] else { panic!("{name}") };
            assert_eq!(stopped, number, "{name}");
            hit.look(&mut world);
            let used = if number == TRANSMIT {
                assert_eq!((with_driver, hit.with_device.len()), (7, 0), "{name}");
                hit.given_back.len() - hit.starts[0]
            } else {
                hit.received.len() - hit.starts[1]
            };
            assert_eq!(position, position_after(format, size, used as u32), "{name}");

            // Nobody looks at it any more, while the others go on.
            world.guests[victim].scribble(number);
            let before = world.guests[victim].snapshot(number);
            for _ in 0..3 {
                world.guests[other.to].post_many(4);
                other.send(&mut world, 4);
                world.breathe();
                let came = other.received.len();
                other.look(&mut world);
                assert_eq!(other.received.len(), came + 4, "{name}");
            }
            assert!(world.guests[victim].snapshot(number) == before, "{name}: touched");
            if number == RECEIVE {
                let back = world.guests[hit.from].reap();
                assert_eq!(back, 7, "{name}: nobody was there");
                hit.given_back.extend(hit.with_device.drain(..));
            }

            // It starts anew, and nothing of what was before comes out of it.
            world.guests[victim].reset_ring(number);
            world.plug(victim);
            let started = &mut hit.starts[usize::from(number == RECEIVE)];
            *started = if number == TRANSMIT { hit.given_back.len() } else { hit.received.len() };
            world.guests[hit.to].post_many(5);
            hit.send(&mut world, 5);
            world.breathe();
            let came = hit.received.len();
            hit.look(&mut world);
            assert_eq!(hit.received.len(), came + 5, "{name}");
        }
        let given_back: usize = streams.iter().map(|stream| stream.given_back.len()).sum();
        let received: usize = streams.iter().map(|stream| stream.received.len()).sum();
        let drops = (0..2).map(|port| world.counters(port).drops().map(|drop| drop.1).sum::<u64>());
        let dropped: u64 = drops.sum();
        assert_eq!(given_back, received + dropped as usize, "{format}");
        assert_eq!(dropped, 12 * 7, "{format}");
        assert!(world.faults.is_empty(), "{:?}", world.faults);
    }
}

/// Where a ring stands that `used` chains of one descriptor went through.
fn position_after(format: Features, size: u16, used: u32) -> u32 {
    if !format.contains(Features::RING_PACKED) {
        return used;
    }
    let (rounds, slot) = (used / u32::from(size), used % u32::from(size));
    let half = slot | (1 - rounds % 2) << 15;
    half << 16 | half
}

#[test]
fn positions_are_the_used_indices_also_while_frames_are_held() {
    let mut world = World::modern();
    world.guests[1].post_many(3);
    (0..10).for_each(|seed| world.guests[0].send(&frame(0, 1, 60, seed)));
    world.breathe();
    assert_eq!(world.guests[0].used_index(TRANSMIT), 3, "the others are held");
    let swapped = world.swap(0, None);
    assert_eq!(swapped.positions, [(RECEIVE, 0), (TRANSMIT, 10)]);
    assert_eq!(world.guests[0].used_index(TRANSMIT), 10, "all chains were given back");
    assert_eq!(world.guests[0].reap(), 10);
    assert_eq!(world.counters(0)[DropReason::ReceiverFull], 7, "and counted");
    world.guests[1].post_many(20);
    world.breathe();
    assert_eq!(world.guests[1].frames().len(), 3, "and are gone");
    let swapped = world.swap(1, None);
    assert_eq!(swapped.positions, [(RECEIVE, 3), (TRANSMIT, 0)]);
    assert_eq!(world.guests[1].used_index(RECEIVE), 3);
}

#[test]
fn a_swap_while_frames_are_held_gives_each_chain_back_once() {
    let mut world = World::modern();
    for round in 0..20 {
        (0..HELD).for_each(|seed| world.guests[0].send(&frame(0, 1, 60, seed)));
        world.breathe();
        assert_eq!(world.guests[0].reap(), 0);
        // The rings go on, and so does what is held: for the receiver's swap and for the sender's.
        world.plug(round % 2);
        world.breathe();
        assert_eq!(world.guests[0].reap(), 0);
        world.guests[1].post_many(HELD);
        world.breathe();
        assert_eq!(world.guests[1].frames().len(), HELD);
        world.breathe();
        assert_eq!(world.guests[0].reap(), HELD);
    }
    assert_eq!(world.guests[0].used_index(TRANSMIT), 20 * HELD as u16);
    assert_eq!(world.counters(1).sent.frames, 20 * HELD as u64);
    assert_eq!(world.counters(0)[DropReason::ReceiverFull], 0);
}

#[test]
fn a_call_descriptor_that_is_exchanged_is_called_once() {
    let mut world = World::modern();
    calls(&world.guests[0]);
    let first = world.guests[0].device();
    let mut second = world.guests[0].device();
    let new = Guest::new(MODERN, Cut::Whole, 1);
    second.rings[RECEIVE].as_mut().unwrap().call = Some(new.receive.call.0.clone());
    world.swap(0, Some(&first));
    assert_eq!(calls(&world.guests[0]), [0, 0]);
    world.swap(0, Some(&second));
    assert_eq!(calls(&world.guests[0]), [0, 0]);
    assert_eq!(new.receive.call.take(), 1, "what it was called for before may have been lost");
    // None, and one again.
    second.rings[RECEIVE].as_mut().unwrap().call = None;
    world.swap(0, Some(&second));
    assert_eq!(new.receive.call.take(), 0);
    both_ways(&mut world, 0);
    assert_eq!(calls(&world.guests[0]), [0, 1]);
    world.swap(0, Some(&first));
    assert_eq!(calls(&world.guests[0]), [1, 0]);
}

#[test]
fn a_kick_descriptor_that_cannot_be_waited_for_is_a_fault() {
    for number in [RECEIVE, TRANSMIT] {
        let mut world = World::modern();
        world.swap(0, None);
        calls(&world.guests[0]);
        let mut device = world.guests[0].device();
        let file = memfd_create("no eventfd", MemfdFlags::CLOEXEC).unwrap();
        device.rings[number].as_mut().unwrap().kick = Some(Arc::new(file));
        world.swap(0, Some(&device));
        world.breathe();
        let fault = world.fault(0);
        let says = format!("ring {number}: the kick descriptor cannot be waited for");
        assert!(fault.starts_with(&says), "{fault}");
        assert!(!world.port(0).is_up());

        // Known before the first breath, and gone with its guest.
        world.swap(0, None);
        world.swap(0, Some(&device));
        world.swap(0, None);
        world.guests[0].reset();
        world.plug(0);
        both_ways(&mut world, 0);
        assert!(world.faults.is_empty(), "a former guest's: {:?}", world.faults);
    }
}

#[test]
fn kick_descriptors_are_watched_while_their_ring_runs_and_not_longer() {
    let mut world = World::modern();
    let kicks = [&world.guests[0].receive.kick, &world.guests[0].transmit.kick];
    let kicks = kicks.map(|kick| kick.0.clone());
    let is_watched = |world: &World, kick: &Arc<OwnedFd>| {
        let watched = world.poller.watch(kick).is_err();
        if !watched {
            world.poller.unwatch(kick);
        }
        watched
    };
    assert_eq!(kicks.each_ref().map(|kick| is_watched(&world, kick)), [true, true]);
    world.plug(0);
    assert_eq!(kicks.each_ref().map(|kick| is_watched(&world, kick)), [true, true]);
    world.guests[0].transmit.runs = false;
    world.plug(0);
    assert_eq!(kicks.each_ref().map(|kick| is_watched(&world, kick)), [true, false]);
    world.guests[0].reset();
    world.plug(0);
    assert_eq!(kicks.each_ref().map(|kick| is_watched(&world, kick)), [false, false]);
    let kick = world.guests[0].receive.kick.0.clone();
    assert!(is_watched(&world, &kick));
    world.swap(0, None);
    assert!(!is_watched(&world, &kick));
}

#[test]
fn rings_without_descriptors_are_polled() {
    let mut world = World::modern();
    let mut device = world.guests[0].device();
    for ring in device.rings.iter_mut().flatten() {
        ring.kick = None;
        ring.call = None;
    }
    world.swap(0, Some(&device));
    both_ways(&mut world, 0);
    while world.breathe() {}
    let arm = |world: &mut World| engine::App::arm(world.port(0));
    assert!(arm(&mut world), "nobody would wake us");
    world.plug(0);
    assert!(!arm(&mut world));
}

/// Descriptors of this process that are the guest's memory file, and mappings of it.
pub fn leaks(guest: &Guest) -> (usize, usize) {
    let name = guest.memory_name();
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let files = links.filter(|link| link.to_string_lossy().contains(&name)).count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (files, maps.lines().filter(|line| line.contains(&name)).count())
}

#[test]
fn ten_thousand_swaps_leak_neither_descriptors_nor_mappings() {
    let mut world = World::pair([Guest::new(MODERN, Cut::Whole, 4), modern()]);
    world.swap(0, None);
    let before = leaks(&world.guests[0]);
    assert_eq!(before, (1, 3), "the guest's own: a file in three regions");
    for round in 0..10_000 {
        match round % 4 {
            0 => drop(world.swap(0, None)),
            1 => world.guests[0].reset(),
            _ => {}
        }
        world.plug(0);
        if round % 64 == 0 {
            world.guests[0].send(&frame(0, 1, 60, 0));
            world.breathe();
            world.guests[0].reset();
        }
    }
    assert_eq!(leaks(&world.guests[0]).0, 1);
    let kick = world.guests[0].receive.kick.0.clone();
    let call = world.guests[0].receive.call.0.clone();
    world.plug(0);
    world.swap(0, None);
    assert_eq!(leaks(&world.guests[0]), before);
    assert_eq!((Arc::strong_count(&kick), Arc::strong_count(&call)), (2, 2), "ours, the guest's");
    assert!(kick.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn a_legacy_guest_and_a_modern_one_may_follow_each_other() {
    let mut world = World::modern();
    for features in [Features::NONE, MODERN, Features::EVENT_IDX, MODERN | Features::EVENT_IDX] {
        world.swap(0, None);
        world.guests[0] = Guest::new(features, Cut::Whole, RING);
        world.plug(0);
        both_ways(&mut world, 0);
        both_ways(&mut world, 1);
    }
}
