//! What a guest or its front end can do with several rings that cannot be done with one: nobody else
//! notices.

use std::os::fd::AsFd;
use std::sync::Arc;

use engine::BURST;
use memory::GuestAddress;
use ringway_ports::BLOCK;
use ringway_ports::vhost_user::MAX_PAIRS;
use vhost_user::Device;
use virtqueue::Layout;

use crate::crew::Crew;
use crate::flow::Flow;
use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT, receive, transmit};
use crate::world::{MODERN, STEP, frame, modern};

/// The port of the guest that means harm; 0 and 1 are bystanders, with a worker each.
const HOSTILE: usize = 2;
/// Entries in its rings.
const ENTRIES: u16 = 16;
/// Buffers that bystanders have posted.
const BUFFERS: usize = 200;

fn hostile(pairs: usize) -> Crew {
    let guest = Guest::with_pairs(pairs, MODERN, Cut::Whole, ENTRIES);
    let mut crew = Crew::bridged(2, vec![modern(), modern(), guest]);
    (0..2).for_each(|guest| crew.guests[guest].post_many(BUFFERS));
    crew
}

/// Breaths of each worker in which bystanders reach each other at the latest: a sender is not listened
/// to for a moment while the guest does not take what it sends.
const BREATHS: u64 = 2 * BLOCK / STEP;

/// Bystanders talk to each other, and on many flows to the guest. Returns in how many breaths they
/// reached each other.
fn traffic(crew: &mut Crew, seed: usize) -> u64 {
    for from in [0, 1] {
        let to_it = |number| Flow::udp(from, HOSTILE, number).frame(seed as u32, 100);
        (0..20).for_each(|number| crew.guests[from].send(&to_it(number)));
        crew.guests[from].send(&frame(from, 1 - from, 60, seed));
    }
    let mut came = [0, 0];
    let breaths = (1..=BREATHS).find(|_| {
        crew.breathe_all();
        for to in [0, 1] {
            crew.guests[to].reap();
            let frames = crew.guests[to].frames();
            // It may have sent something, too.
            let expected = frame(1 - to, to, 60, seed);
            came[to] += frames.iter().filter(|frame| **frame == expected).count();
            let missing = BUFFERS - crew.guests[to].receive.outstanding();
            crew.guests[to].post_many(missing);
        }
        came == [1, 1]
    });
    breaths.unwrap_or_else(|| panic!("bystanders do not reach each other: {came:?} came"))
}

/// Has some traffic, takes the guest away, and has it come back as one that behaves.
fn survive(crew: &mut Crew, name: &str) {
    (0..4).for_each(|seed| _ = traffic(crew, seed));
    let faults = std::mem::take(&mut crew.faults);
    assert!(faults.len() <= 1, "{name}: {faults:?}");
    assert!(faults.iter().all(|(port, _)| *port == HOSTILE), "{name}: {faults:?}");
    crew.swap(HOSTILE, None);
    for from in [0, 1] {
        crew.breathe_all();
        crew.guests[from].reap();
        assert_eq!(crew.guests[from].transmit.outstanding(), 0, "{name}: nothing is held for it");
    }
    crew.guests[HOSTILE].reset();
    crew.plug(HOSTILE);
    let sent = frame(0, HOSTILE, 90, 1);
    for pair in 0..crew.guests[HOSTILE].pairs() {
        crew.guests[HOSTILE].post_on(pair, 2000);
    }
    crew.guests[0].send(&sent);
    crew.breathe_all();
    let pairs = 0..crew.guests[HOSTILE].pairs();
    let came: Vec<_> = pairs.flat_map(|pair| crew.guests[HOSTILE].frames_on(pair)).collect();
    assert_eq!(came, [sent], "{name}");
    crew.guests[HOSTILE].reset();
    crew.swap(HOSTILE, None);
    assert!(crew.faults.is_empty(), "{name}: {:?}", crew.faults);
}

/// Has buffers and frames in all rings.
fn fill(guest: &mut Guest) {
    for pair in 0..guest.pairs() {
        guest.post_many_on(pair, ENTRIES.into());
        for number in 0..ENTRIES.into() {
            guest.send_on(pair, &Flow::udp(HOSTILE, 0, pair as u16).frame(number, 60));
        }
    }
}

#[test]
fn rings_in_the_place_of_others() {
    let mut crew = hostile(3);
    let rings = crew.guests[HOSTILE].rings();
    for one in 0..rings {
        for other in (0..rings).filter(|other| *other != one) {
            crew.guests[HOSTILE].reset();
            fill(&mut crew.guests[HOSTILE]);
            let mut device = crew.guests[HOSTILE].device();
            let layout = device.rings[other].as_ref().expect("it runs").layout.clone();
            device.rings[one].as_mut().expect("it runs").layout = layout;
            crew.swap(HOSTILE, Some(&device));
            survive(&mut crew, &format!("ring {one} where ring {other} is"));
        }
    }
}

#[test]
fn all_rings_in_the_same_place() {
    for place in [RECEIVE, TRANSMIT] {
        let mut crew = hostile(MAX_PAIRS);
        fill(&mut crew.guests[HOSTILE]);
        let mut device = crew.guests[HOSTILE].device();
        let layout = device.rings[place].as_ref().expect("it runs").layout.clone();
        device.rings.iter_mut().flatten().for_each(|ring| ring.layout = layout.clone());
        crew.swap(HOSTILE, Some(&device));
        survive(&mut crew, &format!("all where ring {place} is"));
    }
}

/// Has one area of one ring lie over one of another.
fn lay_over(crew: &Crew, device: &mut Device, [ring, area]: [usize; 2], [other, over]: [usize; 2]) {
    let areas = |ring| {
        let places = crew.guests[HOSTILE].ring(ring).places;
        [places.descriptors, places.available, places.used].map(GuestAddress)
    };
    let mut places = areas(ring);
    places[area] = areas(other)[over];
    let [descriptors, available, used] = places;
    let size = ENTRIES.into();
    let layout = Layout::new(&device.memory, device.features, size, descriptors, available, used);
    device.rings[ring].as_mut().expect("it runs").layout = layout.expect("aligned for all of them");
}

#[test]
fn areas_of_rings_over_those_of_others() {
    let mut crew = hostile(2);
    // The available ring is not aligned as a table of descriptors has to be; all others fit.
    for (area, over) in [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)] {
        for (one, other) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 3), (3, 1), (0, 3), (3, 0)] {
            crew.guests[HOSTILE].reset();
            fill(&mut crew.guests[HOSTILE]);
            let mut device = crew.guests[HOSTILE].device();
            lay_over(&crew, &mut device, [one, area], [other, over]);
            crew.swap(HOSTILE, Some(&device));
            survive(&mut crew, &format!("area {area} of ring {one} over {over} of ring {other}"));
        }
    }
}

#[test]
fn as_many_rings_as_there_can_be_full_of_garbage() {
    let mut crew = hostile(MAX_PAIRS);
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for round in 0..4 {
        // All of it, or only the descriptors: those that are known to be there.
        fill(&mut crew.guests[HOSTILE]);
        for ring in 0..2 * MAX_PAIRS {
            let places = crew.guests[HOSTILE].ring(ring).places;
            let end = if round % 2 == 0 { places.areas } else { places.available };
            let garbage: Vec<u8> = (places.descriptors..end).map(|_| random()).collect();
            crew.guests[HOSTILE].write(places.descriptors, &garbage);
        }
        crew.plug(HOSTILE);
        survive(&mut crew, &format!("round {round}"));
    }
}

#[test]
fn one_event_for_all_kicks_and_calls() {
    let mut crew = hostile(4);
    let mut device = crew.guests[HOSTILE].device();
    let event = crew.guests[0].receive.kick.0.clone();
    // As they come by messages: each is a descriptor of its own, of the same file.
    let again = || Some(Arc::new(event.as_fd().try_clone_to_owned().unwrap()));
    for ring in device.rings.iter_mut().flatten() {
        (ring.kick, ring.call) = (again(), again());
    }
    crew.swap(HOSTILE, None);
    crew.swap(HOSTILE, Some(&device));
    for round in 0..5 {
        fill_some(&mut crew, round);
        crew.breathe_all();
        for pair in 0..4 {
            assert_eq!(crew.guests[HOSTILE].reap_on(pair), 1);
        }
        traffic(&mut crew, round as usize);
    }
    // And they are let go of one by one.
    for ring in 0..8 {
        device.rings[ring] = None;
        crew.swap(HOSTILE, Some(&device));
        traffic(&mut crew, ring);
    }
    assert!(crew.faults.is_empty(), "{:?}", crew.faults);
}

/// One frame of each pair.
fn fill_some(crew: &mut Crew, number: u32) {
    for pair in 0..crew.guests[HOSTILE].pairs() {
        let flow = Flow::udp(HOSTILE, 0, pair as u16);
        crew.guests[HOSTILE].send_on(pair, &flow.frame(number, 60));
    }
}

/// Only some of the rings run: pairs that only send, pairs that only receive, and rings that there
/// should not be at all.
#[test]
fn pairs_of_which_one_ring_runs() {
    let mut crew = hostile(4);
    crew.swap(HOSTILE, None);
    crew.guests[HOSTILE].reset();
    let mut device = crew.guests[HOSTILE].device();
    for ring in [receive(1), receive(3), transmit(0), transmit(2)] {
        device.rings[ring] = None;
    }
    let beyond = device.rings[transmit(3)].clone();
    device.rings.resize(2 * MAX_PAIRS, None);
    device.rings.extend([beyond.clone(), beyond]);
    crew.swap(HOSTILE, Some(&device));
    for pair in [0, 2] {
        crew.guests[HOSTILE].post_many_on(pair, ENTRIES.into());
    }
    fill_some(&mut crew, 0);
    crew.breathe_all();
    let reaped = [0, 1, 2, 3].map(|pair| crew.guests[HOSTILE].reap_on(pair));
    assert_eq!(reaped, [0, 1, 0, 1]);
    // What is answered goes to pairs that receive.
    crew.guests[0].frames();
    for number in 0..10 {
        crew.guests[0].send(&Flow::udp(HOSTILE, 0, number % 4).back().frame(number.into(), 60));
    }
    crew.breathe_all();
    let came = [0, 1, 2, 3].map(|pair| crew.guests[HOSTILE].frames_on(pair).len());
    assert_eq!(came.iter().sum::<usize>(), 10);
    assert_eq!([came[1], came[3]], [0, 0]);
    assert!(crew.faults.is_empty(), "{:?}", crew.faults);
}

/// A guest that fills all of its rings again as soon as they are empty takes no more of the workers
/// than one burst each.
#[test]
fn rings_that_are_always_full_keep_nobody_waiting() {
    let mut crew = hostile(MAX_PAIRS);
    for _ in 0..5 {
        for pair in 0..MAX_PAIRS {
            crew.guests[HOSTILE].reap_on(pair);
            while crew.guests[HOSTILE].ring(transmit(pair)).room() > 0 {
                crew.guests[HOSTILE].send_on(pair, &Flow::udp(HOSTILE, 0, 1).frame(0, 60));
            }
        }
        let before = crew.counters(HOSTILE).received.frames;
        let breaths = traffic(&mut crew, 1);
        let taken = crew.counters(HOSTILE).received.frames - before;
        assert!(taken <= 2 * BURST as u64 * breaths, "{taken} frames in {breaths} breaths");
    }
}
