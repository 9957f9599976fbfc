//! Every format of ring, with chains used in order and not: that frames pass, that they are held, and
//! that rings stop and start again.

use engine::{BURST, DropReason};
use ringway_ports::BLOCK;
use ringway_ports::vhost_user::PATIENCE;
use wire::virtio::Features;

use crate::guest::{CUTS, Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, STEP, World, frame};

const PACKED: Features = Features::RING_PACKED;
const IN_ORDER: Features = Features::IN_ORDER;
const FORMATS: [Features; 4] = [Features::NONE, IN_ORDER, PACKED, Features(PACKED.0 | IN_ORDER.0)];

/// Entries in a guest's rings: of a packed one, not a power of two.
const fn size(format: Features) -> u16 {
    if format.contains(PACKED) { 250 } else { 256 }
}

fn guest(features: Features, cut: Cut) -> Guest {
    let all = features | Features::VERSION_1 | Features::INDIRECT_DESC;
    Guest::new(all, cut, size(features))
}

fn modern(format: Features) -> Guest {
    Guest::new(MODERN | format, Cut::Whole, size(format))
}

fn frames(seeds: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    seeds.map(|seed| frame(0, 1, 60 + seed, seed)).collect()
}

/// Sends several hundred frames of all sizes, so that rings go round a few times.
fn pass(sender: Guest, receiver: Guest) {
    let name =
        format!("{} {:?} to {} {:?}", sender.features, sender.cut, receiver.features, receiver.cut);
    let mergeable = receiver.features.contains(Features::MRG_RXBUF);
    let mut world = World::pair([sender, receiver]);
    let mut total = 0;
    for round in 0..60 {
        let mut sent = Vec::new();
        for size in [60, 1514, 128 + round, 9014, 61].into_iter().cycle().skip(round % 5).take(7) {
            let [sender, receiver] = &mut world.guests[..] else { unreachable!("a pair") };
            let room = receiver.receive.room();
            if !sender.can_send() || room < 100 {
                break;
            }
            let len = (receiver.header_size() + size) as u32;
            let buffers = if mergeable { len.div_ceil(2048) } else { 1 };
            (0..buffers).for_each(|_| _ = receiver.post(if mergeable { 2048 } else { len }));
            let frame = frame(0, 1, size, round);
            sender.send(&frame);
            sent.push(frame);
        }
        assert!(!sent.is_empty(), "{name}");
        world.breathe();
        assert_eq!(world.guests[1].frames(), sent, "{name}, round {round}");
        assert_eq!(world.guests[0].reap(), sent.len(), "{name}");
        total += sent.len();
    }
    assert!(total > 100, "{name}: only {total}");
    assert_eq!(world.guests[1].receive.outstanding(), 0, "{name}");
    world.assert_drops(0, &[]);
    world.assert_drops(1, &[]);
}

#[test]
fn every_format_passes_to_every_format() {
    for (index, sender) in FORMATS.into_iter().enumerate() {
        for receiver in FORMATS {
            for (step, cut) in CUTS.into_iter().enumerate() {
                for merging in [Features::NONE, Features::MRG_RXBUF] {
                    let events = if step % 2 == 0 { Features::EVENT_IDX } else { Features::NONE };
                    let other = CUTS[(index + step) % CUTS.len()];
                    pass(guest(sender | events, cut), guest(receiver | merging | events, other));
                }
            }
        }
    }
}

#[test]
fn held_frames_arrive_as_they_were_sent() {
    for format in FORMATS {
        for cut in CUTS {
            let mut world = World::pair([guest(format, cut), modern(format)]);
            let sent = frames(0..4);
            sent.iter().for_each(|frame| world.guests[0].send(frame));
            for _ in 0..10 {
                world.breathe();
            }
            assert_eq!(world.guests[0].reap(), 0, "all are held");
            for (buffers, expected) in [(1, 0..1), (3, 1..4)] {
                world.guests[1].post_many(buffers);
                world.breathe();
                assert_eq!(world.guests[1].frames(), sent[expected.clone()], "{format} {cut:?}");
                assert_eq!(world.guests[0].reap(), expected.len(), "chains go back as they arrive");
            }
            world.assert_drops(1, &[]);
        }
    }
}

#[test]
fn frames_to_others_pass_held_ones_and_their_chains_only_without_in_order() {
    for format in FORMATS {
        for cut in CUTS {
            let guests = vec![guest(format, cut), modern(format), modern(format)];
            let mut world = World::bridged(guests);
            world.guests[2].post_many(20);
            let held = [frame(0, 1, 100, 1), frame(0, 1, 200, 2)];
            let passing = [frame(0, 2, 300, 3), frame(0, 2, 400, 4), frame(0, 2, 500, 5)];
            for sent in [&passing[0], &held[0], &passing[1], &held[1], &passing[2]] {
                world.guests[0].send(sent);
                world.breathe();
            }
            assert_eq!(world.guests[2].frames(), passing, "{format} {cut:?}");
            // In order, one that is behind a held one waits for it: all that is in front goes back.
            let in_order = format.contains(IN_ORDER);
            assert_eq!(world.guests[0].reap(), if in_order { 1 } else { 3 });

            // What was given back lies over other chains by now, in a packed ring.
            world.guests[0].send(&frame(0, 2, 600, 6));
            world.breathe();
            assert_eq!(world.guests[2].frames(), [frame(0, 2, 600, 6)]);
            assert_eq!(world.guests[0].reap(), usize::from(!in_order));

            world.guests[1].post_many(1);
            world.breathe();
            assert_eq!(world.guests[1].frames(), held[..1]);
            assert_eq!(world.guests[0].reap(), if in_order { 2 } else { 1 });
            world.guests[1].post_many(1);
            world.breathe();
            assert_eq!(world.guests[1].frames(), held[1..]);
            assert_eq!(world.guests[0].reap(), if in_order { 3 } else { 1 });
            assert_eq!(world.guests[0].transmit.outstanding(), 0);
        }
    }
}

/// In order, each chain goes back behind those before it. So a frame that waits would keep its sender from all others.
#[test]
fn a_held_frame_keeps_a_sender_from_others_for_a_moment_only() {
    const FRAMES: usize = 3 * BURST;
    for format in FORMATS {
        let mut world = World::bridged(vec![modern(format), modern(format), modern(format)]);
        world.guests[2].post_many(FRAMES);
        world.guests[0].send(&frame(0, 1, 60, 0));
        (0..FRAMES).for_each(|seed| world.guests[0].send(&frame(0, 2, 60, seed)));
        let (start, mut received) = (world.now, 0);
        while received < FRAMES {
            world.breathe();
            received += world.guests[2].frames().len();
            world.guests[0].reap();
            let limit = BLOCK + 10 * STEP;
            assert!(world.now - start < limit, "{format}: {received} in {limit} ns");
        }
        let is_dropped = format.contains(IN_ORDER);
        assert_eq!(world.guests[0].transmit.outstanding(), usize::from(!is_dropped), "{format}");
        let drops = [(DropReason::ReceiverFull, 1)];
        world.assert_drops(1, if is_dropped { &drops } else { &[] });
        // It begins anew: another one waits.
        world.guests[0].send(&frame(0, 1, 70, 0));
        world.breathe();
        world.guests[1].post_many(2);
        world.breathe();
        assert_eq!(world.guests[1].frames().len(), if is_dropped { 1 } else { 2 });
    }
}

#[test]
fn what_waits_for_its_turn_goes_back_when_the_held_frame_is_dropped() {
    for format in FORMATS {
        let mut world = World::bridged(vec![modern(format), modern(format), modern(format)]);
        world.guests[2].post_many(20);
        world.guests[0].send(&frame(0, 1, 60, 0));
        (0..10).for_each(|seed| world.guests[0].send(&frame(0, 2, 60, seed)));
        world.breathe();
        assert_eq!(world.guests[2].frames().len(), 10);
        world.guests[0].reap();
        world.after(PATIENCE);
        world.breathe();
        world.guests[0].reap();
        assert_eq!(world.guests[0].transmit.outstanding(), 0, "{format}");
        world.assert_drops(1, &[(DropReason::ReceiverFull, 1)]);
    }
}

#[test]
fn descriptors_rewritten_while_a_frame_is_held_mean_nothing() {
    for format in [Features::NONE, PACKED] {
        let mut world = World::pair([modern(format), modern(format)]);
        let sent = frames(0..3);
        sent.iter().for_each(|frame| world.guests[0].send(frame));
        world.breathe();
        let places = world.guests[0].transmit.places;
        let size = places.areas - places.descriptors;
        // All of the ring, up to what the device writes.
        let descriptors = 16 * u64::from(world.guests[0].transmit.size);
        assert!(descriptors <= size);
        world.guests[0].write(places.descriptors, &vec![0xFF; descriptors as usize]);
        world.guests[1].post_many(3);
        world.breathe();
        assert_eq!(world.guests[1].frames(), sent);
    }
}

#[test]
fn a_ring_that_stops_gives_back_what_was_held_and_starts_again_behind_it() {
    for format in FORMATS {
        let mut world = World::pair([modern(format), modern(format)]);
        let ring = size(format);
        // Several rounds, to have positions of both kinds.
        let mut sent = 0;
        for round in 0..80 {
            let count = 5 + round % 7;
            world.guests[1].post_many(2);
            frames(0..count).iter().for_each(|frame| world.guests[0].send(frame));
            world.breathe();
            assert_eq!(world.guests[1].frames().len(), 2, "the others are held");
            sent += count as u32;

            world.guests[0].transmit.runs = false;
            let device = world.guests[0].device();
            let positions = world.swap(0, Some(&device)).positions;
            let place = sent % (2 * u32::from(ring));
            let expected = if format.contains(PACKED) {
                let wrap = u32::from(place < u32::from(ring)) << 15;
                ((place % u32::from(ring)) | wrap) * 0x1_0001
            } else {
                sent
            };
            assert_eq!(positions, [(TRANSMIT, expected)], "{format}");
            assert_eq!(world.guests[0].reap(), count, "all chains were given back");
            assert_eq!(world.guests[0].transmit.outstanding(), 0);

            let receive = world.swap(0, None).positions;
            assert!(matches!(receive[..], [(RECEIVE, _)]), "{receive:?}");
            world.guests[0].restart([receive[0].1, expected]);
            world.plug(0);
        }
        assert!(sent > 2 * u32::from(ring), "the ring went round, and round again");
    }
}
