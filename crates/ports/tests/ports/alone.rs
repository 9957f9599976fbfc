//! A frame that comes alone has a way of its own, and whoever sends few frames has their buffers back a little later. But for that nobody
//! can tell: see also [`crate::bursts`].

use engine::{App, DropReason};
use wire::virtio::Features;

use crate::delivery::feature_sets;
use crate::guest::{Cut, Event, Guest, Regions, TRANSMIT};
use crate::world::{MODERN, RING, World, addressed, frame, mac};

/// Frames whose buffers a sender may have to wait for, at most.
const FEW: usize = 8;

/// Of both formats, with IN_ORDER or EVENT_IDX or neither.
fn flavours() -> impl Iterator<Item = Features> {
    [Features::NONE, Features::RING_PACKED].into_iter().flat_map(|format| {
        [Features::NONE, Features::IN_ORDER, Features::EVENT_IDX].map(|other| format | other)
    })
}

/// Two guests alike, who merge buffers.
fn pair(flavour: Features, entries: u16) -> World {
    World::pair([(); 2].map(|()| Guest::new(MODERN | flavour, Cut::Whole, entries)))
}

/// A lone frame has a way of its own: it arrives in its breath, as among others. Its sender has the buffer back in the next breath,
/// or with an answer, if that is sooner.
#[test]
fn a_lone_frame_arrives_at_once_and_its_buffer_comes_back_with_an_answer_or_a_breath_later() {
    let sets = feature_sets();
    for (features, other) in sets.iter().zip(sets.iter().rev()) {
        let rings = [Features::NONE, Features::RING_PACKED, Features::IN_ORDER];
        let memories = [Regions::One, Regions::Borders, Regions::Fronts];
        for (ring, memory) in
            rings.into_iter().flat_map(|ring| memories.map(|memory| (ring, memory)))
        {
            let guest = |set| Guest::with_regions(memory, 1, set, Cut::Whole, RING);
            let [one, two] = [*features | ring, *other].map(guest);
            let mut world = World::pair([one, two]);
            let breathe = |world: &mut World| {
                world.after(1);
                [0, 1].map(|guest| (world.guests[guest].frames(), world.guests[guest].reap()))
            };
            for size in [14, 60, 64, 68, 69, 116, 117, 128, 129, 1514] {
                let name = format!("{features} {ring} to {other}, {memory:?}: {size}");
                world.guests.iter_mut().for_each(|guest| _ = guest.post(2048));
                let (question, answer) = (frame(0, 1, size, 0), frame(1, 0, size, 1));
                world.guests[0].send(&question);
                let [nothing, came] = breathe(&mut world);
                assert_eq!(nothing, (vec![], 0), "{name}");
                assert_eq!(came, (vec![question.clone()], 0), "{name}");
                world.guests[1].send(&answer);
                let [came, nothing] = breathe(&mut world);
                assert_eq!(came, (vec![answer], 1), "{name}: with the answer, or in its turn");
                assert_eq!(nothing, (vec![], 0), "{name}");
                assert_eq!(breathe(&mut world), [(vec![], 0), (vec![], 1)], "{name}");
            }
            world.assert_drops(0, &[]);
            world.assert_drops(1, &[]);
            assert_eq!(world.counters(0).received, world.counters(1).sent);
            assert_eq!(world.counters(1).received, world.counters(0).sent);
        }
    }
}

/// A buffer with room for a byte more than there is, for no more, and for a byte less.
#[test]
fn a_lone_frame_fills_a_buffer_to_its_end_and_not_beyond() {
    for flavour in flavours() {
        for merges in [Features::MRG_RXBUF, Features::NONE] {
            for (size, missing) in [60, 64, 128, 129, 1514]
                .into_iter()
                .flat_map(|size| [-1, 0, 1].map(|miss| (size, miss)))
            {
                let features = Features::VERSION_1 | flavour | merges;
                let guest = || Guest::new(features, Cut::Whole, 8);
                let mut world = World::pair([guest(), guest()]);
                world.guests[1].post((12 + size as i32 - missing) as u32);
                world.guests[1].post(2048);
                let sent = frame(0, 1, size, 0);
                world.guests[0].send(&sent);
                world.after(1);
                let came: Vec<_> = world.guests[1].received();
                let came = came.iter().map(|received| (&received.frame, received.buffers));
                let (fits, merges) = (missing <= 0, merges == Features::MRG_RXBUF);
                let (expected, drops) = match (fits, merges) {
                    (true, _) => (Some((&sent, 1)), &[][..]),
                    (false, true) => (Some((&sent, 2)), &[][..]),
                    // The buffer is kept for a frame that fits.
                    (false, false) => (None, &[(DropReason::BufferTooSmall, 1)][..]),
                };
                let name = format!("{features}: {size} bytes, {missing} too many");
                assert!(came.eq(expected), "{name}");
                world.assert_drops(1, drops);
            }
        }
    }
}

#[test]
fn a_lone_broadcast_arrives_behind_each_receivers_header() {
    for flavour in flavours() {
        let sets = [Features::NONE, Features::MRG_RXBUF, Features::VERSION_1, MODERN];
        let guests = sets.map(|set| Guest::new(set | flavour, Cut::Whole, RING));
        let mut world = World::bridged(guests.into());
        for (from, size) in (0..sets.len()).cycle().zip([14, 60, 128, 129, 1514]) {
            let sent = addressed([0xFF; 6], mac(from), size, from);
            world.guests.iter_mut().for_each(|guest| _ = guest.post(2048));
            world.guests[from].send(&sent);
            world.after(1);
            for (to, guest) in world.guests.iter_mut().enumerate() {
                let came = guest.frames();
                assert!(came.iter().eq((to != from).then_some(&sent)), "{flavour}: {size} to {to}");
            }
        }
        (0..sets.len()).for_each(|port| world.assert_drops(port, &[]));
    }
}

/// Nobody answers, the rings wrap, and the sender has not more than a few buffers less than it might have.
#[test]
fn the_buffers_of_frames_that_come_one_by_one_come_back_a_few_at_a_time() {
    for flavour in flavours() {
        for entries in [2, 4, 8, 16, 64] {
            let mut world = pair(flavour, entries);
            let name = format!("{flavour}, {entries} entries");
            world.guests[0].transmit.call.take();
            let (mut sent, mut back, mut calls) = (0, 0, 0);
            while sent < 200 {
                assert!(
                    sent - back <= FEW.min(entries.into()),
                    "{name}: {} are missing",
                    sent - back
                );
                let can_send = world.guests[0].can_send();
                if can_send {
                    world.guests[1].post(2048);
                    world.guests[0].send(&frame(0, 1, 60, sent));
                    sent += 1;
                }
                world.after(1);
                let came = world.guests[1].frames();
                let expected = can_send.then(|| frame(0, 1, 60, sent - 1));
                assert!(came.iter().eq(&expected), "{name}: at once");
                let reaped = world.guests[0].reap();
                assert!(
                    reaped > 0 || can_send,
                    "{name}: all of them are back in a breath without frames"
                );
                let called = world.guests[0].transmit.call.take();
                assert_eq!(called, u64::from(reaped > 0), "{name}: it is called when they are");
                (back, calls) = (back + reaped, calls + called);
            }
            world.after(1);
            back += world.guests[0].reap();
            assert_eq!(back, sent, "{name}");
            assert!(calls <= (sent / FEW.min(entries.into())) as u64 + 1, "{name}: {calls} calls");
            (0..2).for_each(|port| world.assert_drops(port, &[]));
        }
    }
}

/// What is not shown yet when a ring stops, or its guest goes, is given back with that.
#[test]
fn what_is_left_to_publish_is_given_back_when_the_ring_stops() {
    for flavour in flavours() {
        let stops: [fn(&mut World) -> usize; 3] = [
            |world| {
                let swapped = world.swap(0, None);
                swapped.positions.len()
            },
            |world| {
                world.guests[0].stop(TRANSMIT);
                let device = world.guests[0].device();
                1 + world.swap(0, Some(&device)).positions.len()
            },
            |world| {
                world.graph.stop_all();
                2
            },
        ];
        for stop in stops {
            let mut world = pair(flavour, RING);
            world.guests[1].post_many(FEW);
            for seed in 0..FEW {
                world.guests[0].send(&frame(0, 1, 60, seed));
                world.after(1);
                assert_eq!(world.guests[0].reap(), 0, "{flavour}: later");
            }
            assert_eq!(stop(&mut world), 2, "{flavour}");
            assert_eq!(world.guests[0].reap(), FEW, "{flavour}");
            assert_eq!(world.guests[1].frames().len(), FEW, "{flavour}");
        }
    }
}

/// The descriptor that its driver would have been called by may not be listened to any more.
#[test]
fn what_is_left_to_publish_is_shown_when_the_ring_gets_another_call_descriptor() {
    for flavour in flavours() {
        let mut world = pair(flavour, RING);
        world.guests[1].post(2048);
        world.guests[0].send(&frame(0, 1, 60, 0));
        world.after(1);
        assert_eq!(world.guests[0].reap(), 0, "{flavour}: later");
        world.guests[0].transmit.call = Event::new();
        world.plug(0);
        assert_eq!(world.guests[0].reap(), 1, "{flavour}");
        assert_eq!(world.guests[0].transmit.call.take(), 1, "{flavour}");
        world.after(1);
        assert_eq!(world.guests[0].transmit.call.take(), 0, "{flavour}: nothing new");
    }
}

/// Frames that came one by one before their sender broke a rule arrived. It is said once.
#[test]
fn a_rule_that_is_broken_behind_lone_frames_is_reported() {
    let mut world = World::modern();
    world.guests[1].post_many(4);
    for seed in 0..3 {
        world.guests[0].send(&frame(0, 1, 60, seed));
        world.after(1);
        assert_eq!(world.guests[1].frames(), [frame(0, 1, 60, seed)]);
    }
    world.guests[0].set_available_index(TRANSMIT, 3 + RING + 1);
    world.after(1);
    world.after(1);
    assert!(world.fault(0).contains("available"), "what it did");
    assert!(!world.port(0).is_up());
    world.after(1);
    assert!(world.faults.is_empty());
    assert_eq!(
        world.guests[0].used_index(TRANSMIT),
        0,
        "nothing is shown to a guest that is not served any more"
    );
}
