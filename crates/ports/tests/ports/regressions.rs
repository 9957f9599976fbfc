//! What a review found, so that it stays away.

use std::sync::Arc;

use engine::{App, Poller};
use ringway_ports::vhost_user::{PATIENCE, VhostUserPort};
use wire::ethernet::MacAddress;
use wire::virtio::Features;

use crate::crew::Crew;
use crate::flow::Flow;
use crate::guest::{Cut, Guest, receive};
use crate::world::{MODERN, frame, modern};

/// A guest with two pairs, at port 2.
const TO: usize = 2;

fn two_pairs(features: Features) -> Guest {
    Guest::with_pairs(2, MODERN | features, Cut::Whole, 64)
}

/// A worker that is told of a pair before the one that it belongs to has frames for a ring that is not
/// there yet, and may be asleep when it comes.
#[test]
fn a_worker_that_waits_for_a_ring_is_woken_when_it_is_there() {
    let mut crew = Crew::bridged(2, vec![modern(), modern(), two_pairs(Features::NONE)]);
    for pair in [0, 1] {
        crew.guests[TO].ring_mut(receive(pair)).enabled = false;
    }
    crew.plug(TO);
    crew.guests[TO].post_many_on(1, 20);
    crew.guests[TO].ring_mut(receive(1)).enabled = true;
    let device = crew.guests[TO].device();
    drop(crew.swap_part(0, TO, Some(&device)));
    let sent: Vec<_> = (0..4).map(|number| Flow::udp(0, TO, 1).frame(number, 60)).collect();
    sent.iter().for_each(|frame| crew.guests[0].send(frame));
    crew.breathe(0);
    assert!(crew.sleeps(0));
    let deadline = crew.deadline(0).expect("not for ever");
    assert!(deadline <= crew.now + PATIENCE);
    let kicks = |crew: &Crew| crew.guests[TO].ring(receive(1)).kick.take();
    kicks(&crew);
    drop(crew.swap_part(1, TO, Some(&device)));
    assert_eq!(kicks(&crew), 1, "woken as by the driver");
    crew.disarm(0);
    crew.breathe(0);
    assert_eq!(crew.guests[TO].frames_on(1), sent);
}

/// And if it never comes, the frames do not wait for ever.
#[test]
fn a_ring_that_does_not_come_is_not_waited_for_without_end() {
    let mut crew = Crew::bridged(2, vec![modern(), modern(), two_pairs(Features::NONE)]);
    for pair in [0, 1] {
        crew.guests[TO].ring_mut(receive(pair)).enabled = false;
    }
    crew.plug(TO);
    crew.guests[TO].ring_mut(receive(1)).enabled = true;
    let device = crew.guests[TO].device();
    drop(crew.swap_part(0, TO, Some(&device)));
    crew.guests[0].send(&Flow::udp(0, TO, 1).frame(0, 60));
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 0, "held");
    crew.now += PATIENCE;
    crew.breathe(0);
    assert_eq!(crew.guests[0].reap(), 1, "dropped");
}

/// Its chains went back in the breath before, and nobody is there to hear of it.
#[test]
fn a_guest_that_left_keeps_no_worker_awake() {
    let mut crew = Crew::bridged(1, vec![modern(), modern()]);
    crew.guests[1].post_many(20);
    crew.guests[0].send(&frame(0, 1, 60, 1));
    crew.breathe(0);
    crew.swap(0, None);
    let mut is_busy = || {
        let worked = crew.breathe(0);
        let armed = crew.arm(0);
        crew.disarm(0);
        worked || armed
    };
    is_busy();
    assert!(!is_busy());
}

/// A driver that tells what it has taken, and has not, lost its processor for a while.
#[test]
fn a_driver_that_tells_is_waited_for() {
    let guests = vec![modern(), modern(), two_pairs(Features::EVENT_IDX)];
    let mut crew = Crew::bridged(1, guests);
    crew.guests[0].post_many(30);
    (0..2).for_each(|pair| crew.guests[TO].post_many_on(pair, 30));
    let flow = Flow::udp(0, TO, 7);
    for (number, pair, wait) in [(0, 1, 0), (1, 0, 2_000_000), (2, 0, PATIENCE + 1_000_000)] {
        crew.guests[TO].send_on(pair, &flow.back().frame(number, 60));
        crew.breathe(0);
        crew.now += wait;
        crew.guests[0].send(&flow.frame(number, 60));
        crew.breathe(0);
    }
    let came = [0, 1].map(|pair| crew.guests[TO].frames_on(pair).len());
    assert_eq!(came, [1, 2], "the last one did not wait for ever");
}

/// A worker's deadline is its own, whatever another delivers between its last look and its sleep.
#[test]
fn a_deadline_stays_when_another_worker_delivers() {
    let mut crew = Crew::bridged(2, vec![modern(), modern(), modern()]);
    crew.guests[TO].post(1000);
    crew.guests[0].send(&frame(0, TO, 3000, 1));
    crew.breathe(0);
    crew.breathe(0);
    assert!(!crew.arm(0));
    crew.guests[1].send(&frame(1, TO, 60, 1));
    crew.breathe(1);
    assert_eq!(crew.guests[TO].frames().len(), 1);
    assert!(crew.deadline(0).is_some());
}

/// A part that fails is dropped by control. What was the guest's goes with it, though the other part
/// is told only later.
#[test]
fn a_part_that_fails_leaves_nothing_behind() {
    let guest = two_pairs(Features::NONE);
    let device = guest.device();
    let memory = Arc::downgrade(&device.memory);
    let pollers = [(); 2].map(|()| Poller::new().unwrap());
    let mut parts = VhostUserPort::parts(2, 0);
    for (part, poller) in parts.iter_mut().zip(&pollers) {
        drop(part.swap(Some(&device), poller));
    }
    drop(device);
    drop(parts.remove(0));
    assert!(!parts[0].is_up(), "the port is down on all workers");
    let kick = &guest.ring(receive(0)).kick.0;
    assert!(pollers[0].watch(kick).is_ok(), "its kicks wake nobody");
    drop(parts[0].swap(None, &pollers[1]));
    assert_eq!(memory.strong_count(), 0, "its memory is unmapped");
}

/// An announcement that was not made is none of the next guest's.
#[test]
fn an_announcement_goes_with_its_guest() {
    let mut crew = Crew::bridged(1, vec![modern(), modern()]);
    crew.guests[1].post_many(20);
    let announcement = wire::rarp::announcement(MacAddress([2, 0, 0, 0, 0, 9]));
    crew.part(0, 0).announce(announcement.into());
    crew.swap(0, None);
    (0..3).for_each(|_| _ = crew.breathe(0));
    assert!(crew.guests[1].frames().is_empty());
}
