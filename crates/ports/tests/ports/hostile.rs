//! Guests that break the rules of their rings lose their own port, and nobody else notices. Each is
//! tried on both formats of ring.

use std::sync::Arc;

use engine::{App, DropReason};
use memory::GuestAddress;
use virtqueue::Layout;
use virtqueue::packed::Position;
use wire::split::{Descriptor, used_ring_size};
use wire::virtio::Features;

use crate::guest::{Cut, Guest, RECEIVE, Ring, TRANSMIT};
use crate::hand::Hand;
use crate::swap::leaks;
use crate::world::{MODERN, RING, World, frame, modern};

/// The port of the guest that breaks the rules; 0 and 2 are bystanders.
pub const HOSTILE: usize = 1;

const PACKED: Features = Features::RING_PACKED;
/// What a ring may be, as far as it says what a rule means.
pub const FLAVOURS: [Features; 4] =
    [Features::NONE, Features::EVENT_IDX, PACKED, Features(PACKED.0 | Features::EVENT_IDX.0)];
pub const NEXT: u16 = Descriptor::NEXT;
pub const INDIRECT: u16 = Descriptor::INDIRECT;
pub const BOTH: [usize; 2] = [RECEIVE, TRANSMIT];
/// What is said of an address.
const OUTSIDE: &str = "outside of the shared memory";

/// Entries in the rings of a guest that breaks the rules: of packed ones, not a power of two.
pub const fn entries(features: Features) -> u16 {
    if features.contains(PACKED) { RING - 6 } else { RING }
}

pub fn hostile(features: Features) -> World {
    let guest = Guest::new(MODERN | features, Cut::Whole, entries(features));
    World::bridged(vec![modern(), guest, modern()])
}

/// Frames between bystanders, and from one of them to the guest that breaks the rules.
pub fn traffic(world: &mut World, seed: usize) {
    world.guests[2].post_many(1);
    world.guests[0].send(&frame(0, HOSTILE, 100, seed));
    world.guests[0].send(&frame(0, 2, 60, seed));
    world.guests[0].send(&frame(0, HOSTILE, 100, seed + 100));
    world.breathe();
    assert_eq!(world.guests[2].frames(), [frame(0, 2, 60, seed)], "a bystander got its frame");
}

/// All that is in the guest's rings. A packed one takes less.
fn rings(world: &World) -> [Vec<u8>; 2] {
    let guest = &world.guests[HOSTILE];
    BOTH.map(|ring| {
        let Ring { places, size, .. } = guest.ring(ring);
        let end = places.used + used_ring_size(*size);
        guest.read(places.descriptors, (end - places.descriptors) as usize)
    })
}

/// What one does in the guest, to one of its rings, and what is said of it.
struct Attack {
    name: &'static str,
    features: Features,
    ring: usize,
    says: &'static str,
    act: fn(&Guest, Hand),
}

/// Rules of both formats.
fn common() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut attack = |rings: &[usize], features, name, says, act: fn(&Guest, Hand)| {
        for ring in rings {
            attacks.push(Attack { name, features, ring: *ring, says, act });
        }
    };
    let plain = Features::NONE;
    let tables = Features::INDIRECT_DESC;

    attack(&BOTH, plain, "address at the end of all", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "one byte at the end of all", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX, 1, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer that wraps", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX - 99, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer outside", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.end, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer into a hole", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 50, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "huge buffer into a hole", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 50, u32::MAX, 0, 0)]);
    });
    attack(&BOTH, plain, "second buffer outside", OUTSIDE, |guest, mut hand| {
        let good = hand.descriptor(hand.buffer, 30, NEXT, 1);
        hand.offer(guest, &[good, hand.descriptor(hand.end, 1000, 0, 0)]);
    });
    attack(&[TRANSMIT], plain, "writable, then readable", "after a writable", |guest, mut hand| {
        let writable = hand.descriptor(hand.buffer, 100, NEXT | Descriptor::WRITE, 1);
        hand.offer(guest, &[writable, hand.descriptor(hand.buffer, 100, 0, 0)]);
    });
    attack(&[RECEIVE], plain, "readable buffer", "readable descriptor in", |guest, mut hand| {
        hand.flags = 0;
        hand.offer(guest, &[hand.descriptor(hand.buffer, 2000, 0, 0)]);
    });
    attack(
        &[RECEIVE],
        plain,
        "writable, then readable",
        "readable descriptor in",
        |guest, mut hand| {
            let readable = Descriptor { flags: 0, ..hand.descriptor(hand.buffer, 2000, 0, 0) };
            hand.offer(guest, &[hand.descriptor(hand.buffer, 20, NEXT, 1), readable]);
        },
    );
    attack(
        &[RECEIVE],
        tables,
        "readable buffer in a table",
        "readable descriptor in",
        |guest, mut hand| {
            hand.flags = 0;
            hand.offer_table(guest, &[hand.descriptor(hand.buffer, 2000, 0, 0)], 16);
        },
    );
    attack(&[RECEIVE], plain, "buffer of nothing", "of 0 bytes cannot hold", |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 0, 0, 0)]);
    });
    attack(
        &[RECEIVE],
        plain,
        "buffer of nothing, nowhere",
        "of 0 bytes cannot hold",
        |guest, mut hand| {
            hand.offer(guest, &[hand.descriptor(u64::MAX, 0, 0, 0)]);
        },
    );
    attack(
        &[RECEIVE],
        plain,
        "buffer of 11 bytes",
        "of 11 bytes cannot hold",
        |guest, mut hand| {
            hand.offer(guest, &hand.cut(hand.buffer, &[10, 1]));
        },
    );
    attack(
        &[RECEIVE],
        tables,
        "buffer of 11 bytes in a table",
        "of 11 bytes cannot hold",
        |guest, mut hand| {
            hand.offer_table(guest, &hand.cut(hand.buffer, &[10, 1]), 32);
        },
    );
    attack(
        &[RECEIVE],
        plain,
        "buffer of 1 byte behind one to merge",
        "of 1 bytes cannot hold",
        |guest, mut hand| {
            // A split ring's chains all begin at the first descriptor.
            guest.describe(RECEIVE, 1, hand.descriptor(hand.buffer, 1, 0, 0));
            hand.offer(guest, &[hand.descriptor(hand.buffer, 50, 0, 0)]);
            match guest.features.contains(PACKED) {
                false => hand.offer_head(guest, 1),
                true => hand.offer(guest, &[hand.descriptor(hand.buffer, 1, 0, 0)]),
            }
        },
    );

    attack(&BOTH, plain, "table unasked", "was not negotiated", |guest, mut hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], 16);
    });
    attack(&BOTH, tables, "empty table", "indirect table of 0 bytes", |guest, mut hand| {
        hand.offer_table(guest, &[], 0);
    });
    attack(&BOTH, tables, "empty table nowhere", "indirect table of 0 bytes", |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX, 0, INDIRECT, 0)]);
    });
    attack(&BOTH, tables, "table and a half", "indirect table of 24 bytes", |guest, mut hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], 24);
    });
    attack(&BOTH, tables, "table longer than the ring", "indirect table of", |guest, mut hand| {
        let length = 16 * (u32::from(guest.ring(RECEIVE).size) + 1);
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], length);
    });
    attack(&BOTH, tables, "endless table", "indirect table of 4294967280", |guest, mut hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], u32::MAX - 15);
    });
    attack(&BOTH, tables, "table that chains on", "that chains on", |guest, mut hand| {
        let referrer = hand.descriptor(hand.table, 16, INDIRECT | NEXT, 1);
        hand.offer(guest, &[referrer, hand.descriptor(hand.buffer, 1000, 0, 0)]);
    });
    attack(&BOTH, tables, "table outside", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.end, 16, INDIRECT, 0)]);
    });
    attack(&BOTH, tables, "table into a hole", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 8, 16, INDIRECT, 0)]);
    });
    attack(&BOTH, tables, "table at the end of all", OUTSIDE, |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX - 7, 16, INDIRECT, 0)]);
    });
    attack(&BOTH, tables, "second entry of a table outside", OUTSIDE, |guest, mut hand| {
        hand.write_table(guest, hand.end - 16, &[hand.descriptor(hand.buffer, 30, NEXT, 1)]);
        hand.offer(guest, &[hand.descriptor(hand.end - 16, 32, INDIRECT, 0)]);
    });
    attack(&BOTH, tables, "buffer outside in a table", OUTSIDE, |guest, mut hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.end, 1000, 0, 0)], 16);
    });
    attacks
}

/// Rules of available rings, heads, and links.
fn of_split_rings() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut attack = |features, name, says, act: fn(&Guest, Hand)| {
        for ring in BOTH {
            attacks.push(Attack { name, features, ring, says, act });
        }
    };
    let plain = Features::NONE;
    let tables = Features::INDIRECT_DESC;

    attack(plain, "index ahead by more than the ring", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next().wrapping_add(RING + 1));
    });
    attack(plain, "index ahead by half its range", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next().wrapping_add(0x8000));
    });
    attack(plain, "index backwards", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next().wrapping_sub(1));
    });
    attack(plain, "index backwards by the ring", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next().wrapping_sub(RING));
    });
    attack(plain, "head outside", "descriptor 256 was made available", |guest, mut hand| {
        hand.offer_head(guest, RING);
    });
    attack(plain, "head far outside", "descriptor 65535 was made available", |guest, mut hand| {
        hand.offer_head(guest, 65535);
    });
    attack(plain, "next outside", "chains to 256 in a table of 256", |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 1, NEXT, RING)]);
    });
    attack(plain, "next far outside", "chains to 65535 in a table of 256", |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 1, NEXT, 65535)]);
    });
    attack(plain, "loop of one", "or loops", |guest, mut hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 1, NEXT, 0)]);
    });
    attack(plain, "loop of two", "or loops", |guest, mut hand| {
        let chain = [1, 0].map(|next| hand.descriptor(hand.buffer, 0, NEXT, next));
        hand.offer(guest, &chain);
    });
    attack(plain, "loop behind the head", "or loops", |guest, mut hand| {
        let chain = [1, 2, 1].map(|next| hand.descriptor(hand.buffer, 0, NEXT, next));
        hand.offer(guest, &chain);
    });
    attack(plain, "all descriptors, and the first again", "or loops", |guest, mut hand| {
        let chain: Vec<_> =
            (1..=RING).map(|next| hand.descriptor(hand.buffer, 1, NEXT, next % RING)).collect();
        hand.offer(guest, &chain);
    });
    attack(tables, "table in a table", "inside of a table", |guest, mut hand| {
        let nested = hand.descriptor(hand.table, 16, INDIRECT, 0);
        hand.offer_table(guest, &[nested], 16);
    });
    attack(tables, "next outside of a table", "chains to 1 in a table of 1", |guest, mut hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1, NEXT, 1)], 16);
    });
    attack(tables, "loop in a table", "or loops", |guest, mut hand| {
        let table = [1, 0].map(|next| hand.descriptor(hand.buffer, 0, NEXT, next));
        hand.offer_table(guest, &table, 32);
    });
    attack(
        tables,
        "as many entries as the ring, and a descriptor",
        "or loops",
        |guest, mut hand| {
            let table = hand.cut(hand.buffer, &[1; RING as usize]);
            hand.write_table(guest, hand.table, &table);
            let direct = hand.descriptor(hand.buffer, 1, NEXT, 1);
            let length = 16 * u32::from(RING);
            hand.offer(
                guest,
                &[direct, Descriptor { flags: INDIRECT, address: hand.table, length, next: 0 }],
            );
        },
    );
    attacks
}

/// Rules of chains in slots.
fn of_packed_rings() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut attack = |features, name, says, act: fn(&Guest, Hand)| {
        for ring in BOTH {
            attacks.push(Attack { name, features, ring, says, act });
        }
    };
    let plain = Features::NONE;
    let tables = Features::INDIRECT_DESC;

    attack(plain, "chain longer than the ring", "longer than the ring's 250", |guest, mut hand| {
        let chain = [hand.descriptor(hand.buffer, 1, NEXT, 0); entries(PACKED) as usize];
        hand.offer(guest, &chain);
    });
    attack(plain, "chain into what the device holds", "goes on behind 249", |guest, mut hand| {
        // Not enough for a frame, so that the next one is looked at while this one is held.
        let first = hand.descriptor(hand.buffer, if hand.flags == 0 { 0 } else { 20 }, 0, 0);
        hand.offer(guest, &[first]);
        hand.offer(
            guest,
            &[hand.descriptor(hand.buffer, 1, NEXT, 0); entries(PACKED) as usize - 1],
        );
    });
    attack(tables, "table behind a descriptor", "part of a packed ring's", |guest, mut hand| {
        hand.write_table(guest, hand.table, &[hand.descriptor(hand.buffer, 1000, 0, 0)]);
        let direct = hand.descriptor(hand.buffer, 1, NEXT, 0);
        hand.offer(guest, &[direct, hand.descriptor(hand.table, 16, INDIRECT, 0)]);
    });
    attacks
}

/// Something passes both ways, and nothing is outstanding.
fn passed_before(features: Features) -> World {
    let mut world = hostile(features);
    world.guests[HOSTILE].post_many(2);
    world.guests[0].post_many(1);
    world.guests[HOSTILE].send(&frame(HOSTILE, 0, 77, 1));
    traffic(&mut world, 1);
    assert_eq!(world.guests[HOSTILE].frames().len(), 2);
    assert_eq!(world.guests[HOSTILE].reap(), 1);
    assert_eq!(world.guests[0].frames().len(), 1);
    world.guests[0].reap();
    world
}

/// Has it go away, and come back as one that behaves. Nothing is left of what it was.
fn comes_back(world: &mut World, name: &str) {
    world.swap(HOSTILE, None);
    assert_eq!(leaks(&world.guests[HOSTILE]), (1, 3), "{name}: its own file, in three regions");
    for ring in BOTH {
        let Ring { kick, call, .. } = world.guests[HOSTILE].ring(ring);
        let holders = [kick, call].map(|event| Arc::strong_count(&event.0));
        assert_eq!(holders, [1, 1], "{name}: the guest's own");
    }
    world.breathe();
    world.guests[0].frames();
    world.guests[0].reap();
    assert_eq!(world.guests[0].transmit.outstanding(), 0, "{name}: nothing is held for it");
    world.guests[HOSTILE].reset();
    world.plug(HOSTILE);
    world.guests[HOSTILE].post_many(2);
    world.guests[0].post_many(1);
    world.guests[HOSTILE].send(&frame(HOSTILE, 0, 99, 7));
    traffic(world, 7);
    let expected = [7, 107].map(|seed| frame(0, HOSTILE, 100, seed));
    assert_eq!(world.guests[HOSTILE].frames(), expected, "{name}");
    assert_eq!(world.guests[HOSTILE].reap(), 1, "{name}");
    let frames = world.guests[0].frames();
    assert_eq!(frames.last(), Some(&frame(HOSTILE, 0, 99, 7)), "{name}");
    assert!(world.faults.is_empty(), "{name}: {:?}", world.faults);
}

#[test]
fn each_violation_takes_its_own_port_down_and_is_reported_once() {
    for flavour in FLAVOURS {
        let of_format = if flavour.contains(PACKED) { of_packed_rings() } else { of_split_rings() };
        for attack in common().into_iter().chain(of_format) {
            violate(flavour, &attack);
            violate(flavour | Features::IN_ORDER, &attack);
        }
    }
}

fn violate(flavour: Features, attack: &Attack) {
    let Attack { name, features, ring, says, act } = *attack;
    let name = &format!("{name}, {flavour}, ring {ring}");
    let mut world = passed_before(features | flavour);
    act(&world.guests[HOSTILE], Hand::new(&world.guests[HOSTILE], ring));
    let before = rings(&world);
    traffic(&mut world, 2);
    assert!(!world.faults.is_empty(), "{name}: nobody minds");
    let fault = world.fault(HOSTILE);
    let ring_name = if ring == RECEIVE { "receive ring 0: " } else { "transmit ring 1: " };
    assert!(fault.starts_with(ring_name) && fault.contains(says), "{name}: {fault}");
    assert!(fault.contains("(virtio 1.3, "), "says where in the specification: {fault}");

    // Down: its rings are left alone, and its senders are told.
    traffic(&mut world, 2);
    assert!(rings(&world) == before, "{name}: its rings were written to");
    if ring == RECEIVE {
        world.guests[0].post_many(1);
        world.guests[HOSTILE].send(&frame(HOSTILE, 0, 77, 2));
    }
    let before = rings(&world);
    let listened = world.counters(HOSTILE).received;
    let down = world.counters(HOSTILE)[DropReason::ReceiverDown];
    for seed in 3..6 {
        traffic(&mut world, seed);
    }
    assert!(rings(&world) == before, "{name}: its rings were written to");
    assert_eq!(world.counters(HOSTILE)[DropReason::ReceiverDown], down + 6, "{name}");
    assert_eq!(world.counters(HOSTILE).received, listened, "{name}: nor is it listened to");
    assert!(world.guests[0].frames().is_empty(), "{name}");
    let to_it = world.counters(HOSTILE).sent.frames + down + 6;
    assert_eq!(to_it, 2 * 6, "{name}: each frame to it has one fate");
    world.guests[0].reap();
    assert_eq!(world.guests[0].transmit.outstanding(), 0, "{name}: nothing is held for it");
    assert!(!world.port(HOSTILE).is_up(), "{name}");
    assert!(world.faults.is_empty(), "{name}: said once: {:?}", world.faults);

    // A new device does not help, until there was none.
    world.guests[HOSTILE].reset();
    world.plug(HOSTILE);
    traffic(&mut world, 6);
    assert_eq!(world.counters(HOSTILE)[DropReason::ReceiverDown], down + 8, "{name}");
    comes_back(&mut world, name);
}

/// A descriptor of a packed ring that the port knows to be available, and that is not any more.
#[test]
fn a_descriptor_that_is_withdrawn_takes_its_own_port_down() {
    for flavour in FLAVOURS.into_iter().filter(|flavour| flavour.contains(PACKED)) {
        for ring in BOTH {
            let mut world = passed_before(flavour);
            let guest = &world.guests[HOSTILE];
            let mut hand = Hand::new(guest, ring);
            let place = hand.here();
            // Received frames do not fit, and wait for more.
            let part = hand.descriptor(hand.buffer, 20, 0, 0);
            hand.offer(guest, &[part]);
            if ring == RECEIVE {
                traffic(&mut world, 2);
            } else {
                assert!(world.port(HOSTILE).arm());
                world.port(HOSTILE).disarm();
            }
            assert!(world.faults.is_empty());
            let other_round = Position::from_bits(place.bits() ^ 0x8000).available();
            hand.describe(&world.guests[HOSTILE], place, part, 0, other_round);
            traffic(&mut world, 3);
            let fault = world.fault(HOSTILE);
            assert!(fault.contains("was available and is not any more"), "{fault}");
            assert!(hand.reap(&world.guests[HOSTILE]).is_empty());
            comes_back(&mut world, "withdrawn");
        }
    }
}

/// There is nothing to do, so that the worker looks once more before it sleeps.
#[test]
fn a_violation_that_is_found_on_the_way_to_sleep_is_reported() {
    for flavour in [Features::NONE, Features::EVENT_IDX] {
        for ring in BOTH {
            let mut world = passed_before(flavour);
            if ring == RECEIVE {
                // A frame waits for a buffer.
                world.guests[0].send(&frame(0, HOSTILE, 100, 1));
            }
            while world.breathe() {}
            let guest = &world.guests[HOSTILE];
            let next = Hand::new(guest, ring).next();
            guest.set_available_index(ring, next.wrapping_add(RING + 1));
            assert!(world.port(HOSTILE).arm(), "there is a fault to report");
            let before = rings(&world);
            world.port(HOSTILE).disarm();
            traffic(&mut world, 2);
            let fault = world.fault(HOSTILE);
            assert!(fault.contains("available index is"), "{fault}");
            traffic(&mut world, 3);
            assert!(rings(&world) == before, "{flavour}: its rings were written to");
            comes_back(&mut world, "on the way to sleep");
        }
    }
}

/// In one breath a frame goes out of the guest, and then another guest's finds a rule broken.
#[test]
fn what_a_turn_did_before_a_violation_is_not_published() {
    for flavour in FLAVOURS {
        let mut world = passed_before(flavour);
        let mut hand = Hand::new(&world.guests[HOSTILE], TRANSMIT);
        let good = hand.descriptor(hand.buffer, 12 + 60, 0, 0);
        hand.offer(&world.guests[HOSTILE], &[good]);
        // By hand there is one table in a split ring, and the good one is in it.
        if flavour.contains(Features::RING_PACKED) {
            let beyond = hand.descriptor(hand.end, 100, 0, 0);
            hand.offer(&world.guests[HOSTILE], &[beyond]);
        } else {
            let size = world.guests[HOSTILE].ring(TRANSMIT).size;
            hand.offer_head(&world.guests[HOSTILE], size);
        }
        let before = rings(&world);
        let received = world.counters(HOSTILE).received.frames;
        (0..3).for_each(|_| _ = world.breathe());
        assert_eq!(world.counters(HOSTILE).received.frames, received + 1, "the good one was taken");
        assert!(rings(&world) == before, "{flavour}: its rings were written to");
        let fault = world.fault(HOSTILE);
        assert!(fault.contains("shared memory") || fault.contains("made available"), "{fault}");
        comes_back(&mut world, "not published");
    }
}

#[test]
fn memory_that_is_taken_away_takes_its_own_port_down() {
    // While the guest sends, receives, and does nothing at all.
    let prepare: [fn(&mut Guest); 3] =
        [|guest| guest.send(&frame(HOSTILE, 0, 3000, 1)), |guest| guest.post_many(3), |_| ()];
    let each = FLAVOURS.iter().flat_map(|flavour| prepare.map(|prepare| (*flavour, prepare)));
    for (flavour, prepare) in each {
        let mut world = hostile(flavour);
        world.guests[HOSTILE].post_many(2);
        traffic(&mut world, 1);
        world.guests[HOSTILE].frames();
        prepare(&mut world.guests[HOSTILE]);
        world.guests[HOSTILE].truncate();
        traffic(&mut world, 2);
        traffic(&mut world, 3);
        let fault = world.fault(HOSTILE);
        assert_eq!(fault, "the guest's memory file was truncated while in use");
        for seed in 4..6 {
            traffic(&mut world, seed);
        }
        assert!(world.faults.is_empty());

        // Another guest takes its place.
        world.swap(HOSTILE, None);
        assert_eq!(leaks(&world.guests[HOSTILE]), (1, 3), "its own file, in three regions");
        world.guests[HOSTILE] = modern();
        world.plug(HOSTILE);
        world.guests[HOSTILE].post_many(1);
        traffic(&mut world, 6);
        assert_eq!(world.guests[HOSTILE].frames(), [frame(0, HOSTILE, 100, 6)], "the first");
    }
}

/// Each area of a ring over each other one of its own, and of the other ring.
#[test]
fn areas_over_each_other_harm_their_guest_alone() {
    for flavour in FLAVOURS {
        let mut world = hostile(flavour);
        let areas = |world: &World, ring| {
            let places = world.guests[HOSTILE].ring(ring).places;
            [places.descriptors, places.available, places.used].map(GuestAddress)
        };
        let mut tried = 0;
        for (ring, other) in BOTH.into_iter().flat_map(|ring| BOTH.map(|other| (ring, other))) {
            for (area, over) in (0..3).flat_map(|area| (0..3).map(move |over| (area, over))) {
                let name = &format!("{flavour}: area {area} of {ring} over {over} of {other}");
                let mut places = areas(&world, ring);
                places[area] = areas(&world, other)[over];
                world.guests[HOSTILE].post_many(3);
                world.guests[HOSTILE].send(&frame(HOSTILE, 0, 99, 7));
                let mut device = world.guests[HOSTILE].device();
                let [descriptors, available, used] = places;
                let size = u32::from(entries(flavour));
                let memory = &device.memory;
                // Some are not aligned for each other: those never get here.
                if let Ok(layout) =
                    Layout::new(memory, device.features, size, descriptors, available, used)
                {
                    device.rings[ring].as_mut().expect("it runs").layout = layout;
                    world.swap(HOSTILE, None);
                    world.swap(HOSTILE, Some(&device));
                    (0..6).for_each(|seed| traffic(&mut world, seed));
                    let faults = std::mem::take(&mut world.faults);
                    let own = faults.iter().filter(|(port, _)| *port == HOSTILE).count();
                    assert!(own == faults.len() && own <= 1, "{name}: {faults:?}");
                    tried += 1;
                }
                drop(device);
                comes_back(&mut world, name);
            }
        }
        assert!(tried >= 28, "{flavour}: only {tried} of 36 were tried");
    }
}

#[test]
fn chains_of_empty_descriptors_cost_a_bounded_time() {
    const LARGEST: u16 = 32768;
    // Chains that a breath takes: as many as 8192 descriptors make, and one at least.
    for (format, (descriptors, chains)) in [Features::NONE, PACKED]
        .into_iter()
        .flat_map(|format| [(LARGEST - 1, 1), (4095, 2), (1000, 9)].map(|chain| (format, chain)))
    {
        // As many empty ones, and one of `len` bytes; two more than a breath takes.
        let top_up = |guest: &Guest, hand: &mut Hand, len| {
            let mut lens = vec![0; descriptors.into()];
            lens.push(len);
            let chain = hand.cut(hand.buffer, &lens);
            let fit = usize::from(LARGEST / (descriptors + 1)).min(chains + 2);
            while hand.outstanding() < fit {
                hand.offer(guest, &chain);
            }
        };
        let guest = Guest::new(MODERN | format, Cut::Whole, LARGEST);
        let mut world = World::pair([guest, modern()]);
        world.guests[1].post_many(200);
        let mut hand = Hand::new(&world.guests[0], TRANSMIT);
        for _ in 0..5 {
            top_up(&world.guests[0], &mut hand, 112);
            world.breathe();
            assert_eq!(hand.reap(&world.guests[0]).len(), chains);
            assert_eq!(world.guests[1].frames().len(), chains);
        }

        let guest = Guest::new(MODERN | format, Cut::Whole, LARGEST);
        let mut world = World::pair([modern(), guest]);
        let mut hand = Hand::new(&world.guests[1], RECEIVE);
        (0..60).for_each(|seed| world.guests[0].send(&frame(0, 1, 100, seed)));
        for _ in 0..3 {
            top_up(&world.guests[1], &mut hand, 2000);
            world.breathe();
            assert_eq!(hand.reap(&world.guests[1]).len(), chains);
        }
        assert!(world.faults.is_empty());
    }
}

#[test]
fn frames_cut_into_single_bytes_cost_a_bounded_time_and_arrive() {
    const FRAME: usize = 1500;
    const FRAMES: usize = 30;
    for format in [Features::NONE, PACKED] {
        let mut world = World::pair([Guest::new(MODERN | format, Cut::Whole, 32768), modern()]);
        world.guests[1].post_many(64);
        let sent = frame(0, 1, FRAME, 3);
        let guest = &world.guests[0];
        let mut hand = Hand::new(guest, TRANSMIT);
        guest.write(hand.buffer, &[&[0; 12][..], &sent[..]].concat());
        let chain = hand.cut(hand.buffer, &[1; FRAME + 12]);
        let (mut offered, mut arrived) = (0, 0);
        for _ in 0..FRAMES {
            while offered < FRAMES && hand.outstanding() < 20 {
                hand.offer(&world.guests[0], &chain);
                offered += 1;
            }
            world.breathe();
            let frames = world.guests[1].frames();
            assert!(frames.len() <= 4, "{} in one breath", frames.len());
            assert!(frames.iter().all(|frame| *frame == sent));
            arrived += frames.len();
            hand.reap(&world.guests[0]);
        }
        assert_eq!((arrived, hand.outstanding()), (FRAMES, 0));
        assert!(world.faults.is_empty());
    }
}
