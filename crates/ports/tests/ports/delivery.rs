//! Frames pass byte for byte, whatever the rings look like.

use engine::{App, DropReason};
use wire::virtio::{Features, NetHeader};

use crate::guest::{CUTS, Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, RING, World, frame, modern};

/// 64 KiB of IP behind an Ethernet header with two tags.
const LONGEST: usize = 65535 + 14 + 8;

/// Feature sets that change how frames and rings look.
pub fn feature_sets() -> Vec<Features> {
    let mut sets = Vec::new();
    for header in [
        Features::NONE,
        Features::VERSION_1,
        Features::MRG_RXBUF,
        Features::VERSION_1 | Features::MRG_RXBUF,
    ] {
        for events in [Features::NONE, Features::EVENT_IDX] {
            sets.push(header | events);
        }
    }
    sets
}

fn guest(features: Features, cut: Cut) -> Guest {
    let indirect = if cut == Cut::Indirect { Features::INDIRECT_DESC } else { Features::NONE };
    Guest::new(features | indirect, cut, RING)
}

/// Sends frames of these sizes, some in each breath, to a receiver that posts what they need: one
/// buffer a frame, or, where it merges them, buffers of all sizes.
fn pass(sender: Guest, receiver: Guest, sizes: impl IntoIterator<Item = usize>) {
    const BUFFERS: [u32; 7] = [1526, 12, 333, 4096, 13, 100, 65];
    /// Descriptors that the buffers of a frame take at most.
    const DESCRIPTORS: usize = 240;
    let name = format!("{:?} to {:?}, {}", sender.cut, receiver.cut, receiver.features);
    let mergeable = receiver.features.contains(Features::MRG_RXBUF);
    let has_count = receiver.header_size() == NetHeader::SIZE;
    let mut world = World::pair([sender, receiver]);
    let mut lens = BUFFERS.into_iter().cycle();
    let mut sizes = sizes.into_iter().peekable();
    let mut total = 0;
    while sizes.peek().is_some() {
        let [sender, receiver] = &mut world.guests[..] else { unreachable!("a pair") };
        let mut expected = Vec::new();
        while expected.is_empty()
            || (sender.can_send() && receiver.receive.room() >= DESCRIPTORS && expected.len() < 5)
        {
            let Some(size) = sizes.next() else { break };
            let mut missing = (receiver.header_size() + size) as u32;
            let mut buffers = 0;
            while missing > 0 {
                let len = match mergeable {
                    true if size < 10_000 => lens.next().expect("a cycle"),
                    true => 20_000,
                    false => missing,
                };
                receiver.post(len);
                missing = missing.saturating_sub(len);
                buffers += 1;
            }
            let frame = frame(0, 1, size, expected.len());
            sender.send(&frame);
            expected.push((frame, buffers));
        }
        world.breathe();
        let received = world.guests[1].received();
        assert_eq!(received.len(), expected.len(), "{name}");
        for (received, (frame, buffers)) in received.iter().zip(&expected) {
            assert!(received.frame == *frame, "{name}: frame of {} bytes", frame.len());
            let num_buffers = if has_count { *buffers } else { 0 };
            let header = NetHeader { num_buffers, ..NetHeader::default() };
            assert_eq!(received.header, header, "{name}: frame of {} bytes", frame.len());
        }
        assert_eq!(world.guests[0].reap(), expected.len(), "{name}");
        assert_eq!(world.guests[1].receive.outstanding(), 0, "{name}");
        total += expected.len() as u64;
    }
    assert_eq!(world.counters(0).received, world.counters(1).sent);
    assert_eq!(world.counters(1).sent.frames, total);
    world.assert_drops(0, &[]);
    world.assert_drops(1, &[]);
}

/// Every size with every set of features: those of the receiver rotate against those of the
/// sender, so that each meets one of another kind.
fn every_size(cut: Cut) {
    let sets = feature_sets();
    for (index, features) in sets.iter().enumerate() {
        let other = CUTS[index % CUTS.len()];
        let sizes = (14..=9014).chain([20_000, 65534, 65535, 65536, 65549, LONGEST]);
        pass(guest(*features, cut), guest(sets[(index + 3) % sets.len()], other), sizes);
    }
}

#[test]
fn every_size_passes_from_single_descriptors() {
    every_size(Cut::Whole);
}

#[test]
fn every_size_passes_from_indirect_tables() {
    every_size(Cut::Indirect);
}

#[test]
fn every_size_passes_from_headers_cut_into_bytes() {
    every_size(Cut::Crumbs);
}

#[test]
fn every_flavour_passes_to_every_flavour() {
    let sizes = [14, 15, 63, 127, 128, 129, 1514, 4096, 9014, LONGEST];
    for sender in feature_sets() {
        for receiver in feature_sets() {
            for [one, two] in CUTS.iter().flat_map(|one| CUTS.map(|two| [*one, two])) {
                pass(guest(sender, one), guest(receiver, two), sizes);
            }
        }
    }
}

#[test]
fn frames_too_short_and_too_long_are_counted_and_their_chains_given_back() {
    for cut in CUTS {
        let packed = Features::VERSION_1 | Features::RING_PACKED;
        for features in [Features::NONE, Features::VERSION_1, packed] {
            let mut world = World::pair([guest(features, cut), modern()]);
            world.guests[1].post(AREA_ENOUGH);
            let header = world.guests[0].header_size();
            // An empty chain, parts of a header, a header alone, almost an Ethernet header.
            let short = [0, 1, header - 1, header, header + 1, header + 13];
            short.iter().for_each(|bytes| world.guests[0].send_bytes(&vec![0; *bytes]));
            world.breathe();
            assert_eq!(world.guests[0].reap(), short.len());
            world.guests[0].send(&frame(0, 1, LONGEST + 1, 0));
            world.guests[0].send_bytes(&vec![0; 80 * 1024]);
            world.guests[0].send(&frame(0, 1, LONGEST, 0));
            world.breathe();
            assert_eq!(world.guests[0].reap(), 3);
            assert_eq!(world.guests[1].frames(), [frame(0, 1, LONGEST, 0)]);
            let short = short.len() as u64;
            world.assert_drops(0, &[(DropReason::TooShort, short), (DropReason::TooLong, 2)]);
            assert_eq!(world.counters(0).received.frames, 1);
            assert!(world.faults.is_empty());
        }
    }
}

/// Bytes of a buffer that holds any frame.
const AREA_ENOUGH: u32 = 70_000;

#[test]
fn a_buffer_too_small_is_kept_for_a_frame_that_fits() {
    for cut in CUTS {
        for version in [Features::NONE, Features::VERSION_1] {
            let receiver = guest(version, cut);
            let len = 100 + receiver.header_size();
            let mut world = World::pair([modern(), receiver]);
            world.guests[1].post(len as u32);
            world.guests[1].post(len as u32);
            for size in [101, 100, 1000, 14] {
                world.guests[0].send(&frame(0, 1, size, 0));
            }
            world.breathe();
            assert_eq!(world.guests[1].frames(), [frame(0, 1, 100, 0), frame(0, 1, 14, 0)]);
            world.assert_drops(1, &[(DropReason::BufferTooSmall, 2)]);
            assert_eq!(world.guests[0].reap(), 4, "not held");
        }
    }
}

/// Each buffer a chain of its own, and in one region: as those are that are gathered for a whole burst.
#[test]
fn who_does_not_merge_gets_no_frame_in_several_buffers() {
    for packed in [Features::NONE, Features::RING_PACKED] {
        let receiver = guest(Features::VERSION_1 | packed, Cut::Whole);
        let mut world = World::pair([modern(), receiver]);
        (0..8).for_each(|_| _ = world.guests[1].post(112));
        for sizes in [&[100][..], &[101, 100, 1000, 14]] {
            sizes.iter().for_each(|size| world.guests[0].send(&frame(0, 1, *size, 0)));
            world.breathe();
        }
        let fit = [100, 100, 14].map(|size| frame(0, 1, size, 0));
        assert_eq!(world.guests[1].frames(), fit);
        world.assert_drops(1, &[(DropReason::BufferTooSmall, 2)]);
    }
}

#[test]
fn a_burst_costs_one_call_on_each_ring() {
    for events in [Features::NONE, Features::EVENT_IDX] {
        let features = Features::VERSION_1 | events;
        let guests = [guest(features, Cut::Whole), guest(features, Cut::Whole)];
        let mut world = World::pair(guests);
        let calls = |world: &World| {
            let [sender, receiver] = &world.guests[..] else { unreachable!("a pair") };
            let rings = [&sender.receive, &sender.transmit, &receiver.receive, &receiver.transmit];
            rings.map(|ring| ring.call.take())
        };
        assert_eq!(calls(&world), [1; 4], "each ring is called once when it starts");
        for round in 0..5 {
            world.guests[1].post_many(64);
            (0..64).for_each(|seed| world.guests[0].send(&frame(0, 1, 60, seed)));
            world.breathe();
            assert_eq!(calls(&world), [0, 1, 1, 0], "round {round}, {features}");
            assert_eq!(world.guests[1].frames().len(), 64);
            assert_eq!(world.guests[0].reap(), 64);
        }
        world.breathe();
        assert_eq!(calls(&world), [0; 4], "nothing happened");
    }
}

#[test]
fn a_disabled_transmit_ring_is_consumed_and_discarded() {
    let mut world = World::modern();
    world.guests[1].post_many(2);
    world.guests[0].transmit.enabled = false;
    world.plug(0);
    (0..100).for_each(|seed| world.guests[0].send(&frame(0, 1, 60, seed)));
    world.breathe();
    world.breathe();
    assert_eq!(world.guests[0].reap(), 100);
    // One that comes alone.
    world.guests[0].send(&frame(0, 1, 60, 100));
    world.breathe();
    assert_eq!(world.guests[0].reap(), 1);
    assert!(world.guests[1].frames().is_empty());
    world.assert_drops(0, &[(DropReason::SenderDisabled, 101)]);
    assert_eq!(world.counters(0).received.frames, 0);

    world.guests[0].transmit.enabled = true;
    world.plug(0);
    world.guests[0].send(&frame(0, 1, 60, 0));
    world.breathe();
    assert_eq!(world.guests[1].frames(), [frame(0, 1, 60, 0)]);
}

#[test]
fn a_receiver_that_is_not_there_costs_nothing_but_the_frame() {
    let mut world = World::modern();
    world.guests[1].post_many(2);
    assert!(world.port(1).is_up());
    let send = |world: &mut World, seed| {
        world.guests[0].send(&frame(0, 1, 60, seed));
        world.breathe();
        assert_eq!(world.guests[0].reap(), 1, "not held");
    };
    // Its ring is disabled, stopped; it is gone altogether.
    world.guests[1].receive.enabled = false;
    world.plug(1);
    assert!(world.port(1).is_up(), "its driver may begin anew");
    send(&mut world, 1);
    world.guests[1].receive.runs = false;
    world.plug(1);
    assert!(world.port(1).is_up(), "likewise");
    send(&mut world, 2);
    world.swap(1, None);
    assert!(!world.port(1).is_up());
    send(&mut world, 3);
    world.assert_drops(1, &[(DropReason::ReceiverDown, 3)]);
    assert_eq!(world.guests[1].used_index(RECEIVE), 0);
    assert!(world.faults.is_empty());
}

#[test]
fn a_port_that_is_linked_nowhere_gives_its_chains_back() {
    let mut world = World::modern();
    let lonely = world.graph.add("lonely", ringway_ports::vhost_user::VhostUserPort::new());
    world.ports.push(lonely);
    world.guests.push(modern());
    world.plug(2);
    (0..70).for_each(|seed| world.guests[2].send(&frame(2, 1, 60, seed)));
    world.breathe();
    world.breathe();
    assert_eq!(world.guests[2].reap(), 70);
    assert_eq!(world.guests[2].used_index(TRANSMIT), 70);
    world.assert_drops(2, &[(DropReason::NoDestination, 70)]);
}

#[test]
fn a_ring_that_is_armed_is_looked_at_once_more() {
    for events in [Features::NONE, Features::EVENT_IDX] {
        let mut world = World::pair([guest(MODERN | events, Cut::Whole), modern()]);
        world.guests[1].post_many(2);
        world.run_until_asleep();
        // Between the last look and the sleep.
        world.guests[0].send(&frame(0, 1, 60, 0));
        assert!(world.port(0).arm());
        world.port(0).disarm();
        world.breathe();
        assert_eq!(world.guests[1].frames().len(), 1);
        while world.breathe() {}
        assert!(!world.port(0).arm());
        assert!(world.guests[0].wants_kick(TRANSMIT), "while the switch sleeps");
        world.port(0).disarm();
        assert!(!world.guests[0].wants_kick(RECEIVE), "it is not full");
    }
}

#[test]
fn frames_over_the_mtu_are_dropped_in_both_directions() {
    for limited in [0, 1] {
        let mut world = World::modern();
        world.port(limited).set_mtu(1000);
        // The header may be longer by two tags.
        world.guests[0].send(&frame(0, 1, 1022, 1));
        world.guests[0].send(&frame(0, 1, 1023, 2));
        world.guests[1].post_many(10);
        world.breathe();
        assert_eq!(world.guests[1].frames(), [frame(0, 1, 1022, 1)]);
        world.assert_drops(limited, &[(DropReason::OverMtu, 1)]);
        assert_eq!(world.guests[0].reap(), 2);
    }
}
