//! A device is exchanged for another one, between two breaths.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use engine::{DropReason, HELD};
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
