//! Guests that break the rules lose their own port, and nobody else notices.

use engine::DropReason;
use wire::split::Descriptor;
use wire::virtio::Features;

use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, RING, World, frame, modern};

/// The port of the guest that breaks the rules; 0 and 2 are bystanders.
const HOSTILE: usize = 1;

fn hostile(features: Features) -> World {
    let guest = Guest::new(MODERN | features, Cut::Whole, RING);
    World::bridged(vec![modern(), guest, modern()])
}

/// Frames between bystanders, and from one of them to the guest that breaks the rules.
fn traffic(world: &mut World, seed: usize) {
    world.guests[2].post_many(1);
    world.guests[0].send(&frame(0, HOSTILE, 100, seed));
    world.guests[0].send(&frame(0, 2, 60, seed));
    world.guests[0].send(&frame(0, HOSTILE, 100, seed + 100));
    world.breathe();
    assert_eq!(world.guests[2].frames(), [frame(0, 2, 60, seed)], "a bystander got its frame");
}

/// What one does in the guest, to the ring of this number, and what is said of it.
struct Attack {
    name: &'static str,
    features: Features,
    ring: usize,
    says: &'static str,
    act: fn(&Guest, Hand),
}

/// Writes to one ring.
struct Hand {
    ring: usize,
    /// WRITE where the ring is for receiving.
    flags: u16,
    /// The next available entry.
    next: u16,
    /// Addresses of a buffer, of a place for tables, and past the end of memory.
    buffer: u64,
    table: u64,
    end: u64,
}

impl Hand {
    fn new(guest: &Guest, ring: usize) -> Self {
        Self {
            ring,
            flags: if ring == RECEIVE { Descriptor::WRITE } else { 0 },
            next: guest.used_index(ring),
            buffer: guest.ring(ring).places.area(100),
            table: guest.ring(ring).places.area(101),
            end: guest.ring(TRANSMIT).places.area(RING.into()),
        }
    }

    fn descriptor(&self, address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor { address, length, flags: flags | self.flags, next }
    }

    /// Makes the chain at descriptor 0 available.
    fn offer(&self, guest: &Guest, chain: &[Descriptor]) {
        for (index, descriptor) in chain.iter().enumerate() {
            guest.describe(self.ring, index as u16, *descriptor);
        }
        guest.set_available(self.ring, self.next % RING, 0);
        guest.set_available_index(self.ring, self.next.wrapping_add(1));
    }

    /// Makes available a chain of one descriptor, which refers to a table of `length` bytes.
    fn offer_table(&self, guest: &Guest, table: &[Descriptor], length: u32) {
        guest.write_table(self.table, table);
        let referrer = Descriptor {
            address: self.table,
            length,
            flags: Descriptor::INDIRECT,
            ..Descriptor::default()
        };
        self.offer(guest, &[referrer]);
    }
}

const NEXT: u16 = Descriptor::NEXT;
const BOTH: [usize; 2] = [RECEIVE, TRANSMIT];

fn attacks() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut attack = |rings: &[usize], features, name, says, act: fn(&Guest, Hand)| {
        for ring in rings {
            attacks.push(Attack { name, features, ring: *ring, says, act });
        }
    };
    let plain = Features::NONE;
    let tables = Features::INDIRECT_DESC;

    attack(
        &BOTH,
        plain,
        "index ahead by more than the ring",
        "available index is",
        |guest, hand| {
            guest.set_available_index(hand.ring, hand.next.wrapping_add(RING + 1));
        },
    );
    attack(&BOTH, plain, "index ahead by half its range", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next.wrapping_add(0x8000));
    });
    attack(&BOTH, plain, "index backwards", "available index is", |guest, hand| {
        guest.set_available_index(hand.ring, hand.next.wrapping_sub(1));
    });
    attack(&BOTH, plain, "head outside", "was made available", |guest, hand| {
        hand.offer(guest, &[]);
        guest.set_available(hand.ring, hand.next % RING, RING);
    });
    attack(&BOTH, plain, "head far outside", "was made available", |guest, hand| {
        hand.offer(guest, &[]);
        guest.set_available(hand.ring, hand.next % RING, 65535);
    });
    attack(&BOTH, plain, "next outside", "chains to 256 in a table of 256", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 1, NEXT, RING)]);
    });
    attack(&BOTH, plain, "loop of one", "or loops", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 1, NEXT, 0)]);
    });
    attack(&BOTH, plain, "loop of two", "or loops", |guest, hand| {
        let chain = [1, 0].map(|next| hand.descriptor(hand.buffer, 0, NEXT, next));
        hand.offer(guest, &chain);
    });
    attack(&BOTH, plain, "loop behind the head", "or loops", |guest, hand| {
        let chain = [1, 2, 1].map(|next| hand.descriptor(hand.buffer, 0, NEXT, next));
        hand.offer(guest, &chain);
    });
    attack(&BOTH, plain, "address at the end of all", "outside of the shared", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer that wraps", "outside of the shared", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(u64::MAX - 99, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer outside", "outside of the shared", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.end, 1000, 0, 0)]);
    });
    attack(&BOTH, plain, "buffer into a hole", "outside of the shared", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 50, 1000, 0, 0)]);
    });
    attack(&[TRANSMIT], plain, "huge buffer into a hole", "outside of the", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 50, u32::MAX, 0, 0)]);
    });
    attack(&[TRANSMIT], plain, "writable, then readable", "after a writable", |guest, hand| {
        let writable = hand.descriptor(hand.buffer, 100, NEXT | Descriptor::WRITE, 1);
        hand.offer(guest, &[writable, hand.descriptor(hand.buffer, 100, 0, 0)]);
    });
    attack(&[RECEIVE], plain, "readable buffer", "readable descriptor in", |guest, hand| {
        let readable = Descriptor { flags: 0, ..hand.descriptor(hand.buffer, 2000, 0, 0) };
        hand.offer(guest, &[readable]);
    });
    attack(&[RECEIVE], plain, "buffer of nothing", "of 0 bytes cannot hold", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.buffer, 0, 0, 0)]);
    });
    attack(&[RECEIVE], plain, "buffer of 11 bytes", "of 11 bytes cannot hold", |guest, hand| {
        let part = |length, flags| hand.descriptor(hand.buffer, length, flags, 1);
        hand.offer(guest, &[part(10, NEXT), part(1, 0)]);
    });

    attack(&BOTH, plain, "table unasked", "was not negotiated", |guest, hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], 16);
    });
    attack(&BOTH, tables, "empty table", "indirect table of 0 bytes", |guest, hand| {
        hand.offer_table(guest, &[], 0);
    });
    attack(&BOTH, tables, "table and a half", "indirect table of 24 bytes", |guest, hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], 24);
    });
    attack(&BOTH, tables, "table too long", "indirect table of 4112 bytes", |guest, hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1000, 0, 0)], 4112);
    });
    attack(&BOTH, tables, "table that chains on", "that chains on", |guest, hand| {
        let referrer = hand.descriptor(hand.table, 16, Descriptor::INDIRECT | NEXT, 1);
        hand.offer(guest, &[referrer, hand.descriptor(hand.buffer, 1000, 0, 0)]);
    });
    attack(&BOTH, tables, "table in a table", "inside of a table", |guest, hand| {
        let nested = hand.descriptor(hand.table, 16, Descriptor::INDIRECT, 0);
        hand.offer_table(guest, &[nested], 16);
    });
    attack(&BOTH, tables, "table outside", "outside of the shared", |guest, hand| {
        hand.offer(guest, &[hand.descriptor(hand.end - 8, 16, Descriptor::INDIRECT, 0)]);
    });
    attack(
        &BOTH,
        tables,
        "next outside of a table",
        "chains to 1 in a table of 1",
        |guest, hand| {
            hand.offer_table(guest, &[hand.descriptor(hand.buffer, 1, NEXT, 1)], 16);
        },
    );
    attack(&BOTH, tables, "loop in a table", "or loops", |guest, hand| {
        hand.offer_table(guest, &[hand.descriptor(hand.buffer, 0, NEXT, 0)], 16);
    });
    attacks
}

#[test]
fn each_violation_takes_its_own_port_down_and_is_reported_once() {
    for Attack { name, features, ring, says, act } in attacks() {
        let mut world = hostile(features);
        // Something has passed before, in both directions.
        world.guests[HOSTILE].post_many(2);
        traffic(&mut world, 1);
        world.guests[HOSTILE].frames();
        world.guests[0].reap();

        act(&world.guests[HOSTILE], Hand::new(&world.guests[HOSTILE], ring));
        let used = BOTH.map(|ring| world.guests[HOSTILE].used_index(ring));
        traffic(&mut world, 2);
        let fault = world.fault(HOSTILE);
        let ring_name = if ring == RECEIVE { "receive ring 0: " } else { "transmit ring 1: " };
        assert!(fault.starts_with(ring_name) && fault.contains(says), "{name}: {fault}");
        assert!(fault.contains("(virtio 1.3, "), "says where in the specification: {fault}");

        // Down: its rings are left alone, and its senders are told.
        traffic(&mut world, 2);
        if ring == RECEIVE {
            world.guests[0].post_many(1);
            world.guests[HOSTILE].send(&frame(HOSTILE, 0, 77, 2));
        }
        let down = world.counters(HOSTILE)[DropReason::ReceiverDown];
        for seed in 3..6 {
            traffic(&mut world, seed);
        }
        assert_eq!(BOTH.map(|ring| world.guests[HOSTILE].used_index(ring)), used, "{name}");
        assert_eq!(world.counters(HOSTILE)[DropReason::ReceiverDown], down + 6, "{name}");
        assert!(world.guests[0].frames().is_empty(), "{name}: nor is it listened to");
        let to_it = world.counters(HOSTILE).sent.frames + down + 6;
        assert_eq!(to_it, 2 * 6, "{name}: each frame to it has one fate");
        world.guests[0].reap();
        assert_eq!(world.guests[0].transmit.outstanding(), 0, "{name}: nothing is held for it");
        assert!(!world.port(HOSTILE).is_up(), "{name}");

        // A new device does not help, until there was none.
        world.guests[HOSTILE].reset();
        world.plug(HOSTILE);
        traffic(&mut world, 6);
        assert_eq!(world.counters(HOSTILE)[DropReason::ReceiverDown], down + 8, "{name}");
        world.swap(HOSTILE, None);
        world.plug(HOSTILE);
        world.guests[HOSTILE].post_many(2);
        world.guests[0].post_many(1);
        world.guests[HOSTILE].send(&frame(HOSTILE, 0, 99, 7));
        traffic(&mut world, 7);
        let expected = [7, 107].map(|seed| frame(0, HOSTILE, 100, seed));
        assert_eq!(world.guests[HOSTILE].frames(), expected, "{name}");
        assert_eq!(world.guests[0].frames(), [frame(HOSTILE, 0, 99, 7)], "{name}");
        assert!(world.faults.is_empty(), "{name}: {:?}", world.faults);
    }
}

#[test]
fn odd_chains_that_are_legal_cost_nothing() {
    let mut world = hostile(Features::INDIRECT_DESC);
    let hand = |world: &World, ring| Hand::new(&world.guests[HOSTILE], ring);
    let (sent, header) = (frame(HOSTILE, 0, 60, 1), [0; 12]);
    world.guests[0].post_many(3);

    // An empty descriptor may point anywhere; a direct one may end in a table.
    let transmit = hand(&world, TRANSMIT);
    let guest = &world.guests[HOSTILE];
    guest.write(transmit.buffer, &[&header[..], &sent[..]].concat());
    let table = transmit.table;
    guest.write_table(table, &[transmit.descriptor(transmit.buffer + 20, 52, 0, 0)]);
    transmit.offer(
        guest,
        &[
            transmit.descriptor(transmit.buffer, 20, NEXT, 1),
            transmit.descriptor(u64::MAX, 0, NEXT, 2),
            transmit.descriptor(table, 16, Descriptor::INDIRECT, 0),
        ],
    );
    world.breathe();
    assert_eq!(world.guests[0].frames(), [&sent[..]]);

    // A table across the border of two regions; writable descriptors where we read.
    let transmit = hand(&world, TRANSMIT);
    let guest = &world.guests[HOSTILE];
    let across = guest.transmit.places.area(0) + 10;
    let whole = transmit.descriptor(transmit.buffer, 72, NEXT, 1);
    let writable = transmit.descriptor(transmit.buffer, 1000, Descriptor::WRITE, 0);
    guest.write_table(across, &[whole, writable]);
    transmit.offer(guest, &[transmit.descriptor(across, 32, Descriptor::INDIRECT, 0)]);
    world.breathe();
    assert_eq!(world.guests[0].frames(), [sent]);

    // Only writable: nothing to send. Longer than memory: too long to send.
    let transmit = hand(&world, TRANSMIT);
    transmit.offer(&world.guests[HOSTILE], &[writable]);
    world.breathe();
    let transmit = hand(&world, TRANSMIT);
    let huge = transmit.descriptor(transmit.buffer, u32::MAX, 0, 0);
    transmit.offer(&world.guests[HOSTILE], &[huge]);
    world.breathe();
    world.assert_drops(HOSTILE, &[(DropReason::TooShort, 1), (DropReason::TooLong, 1)]);

    // The same buffer twice, and a huge one: the guest's own loss.
    let receive = hand(&world, RECEIVE);
    let huge = receive.descriptor(receive.buffer, u32::MAX, 0, 0);
    receive.offer(&world.guests[HOSTILE], &[huge]);
    world.guests[HOSTILE].set_available(RECEIVE, 1, 0);
    world.guests[HOSTILE].set_available_index(RECEIVE, 2);
    traffic(&mut world, 1);
    assert_eq!(world.guests[HOSTILE].used(RECEIVE, 2), [(0, 112), (0, 112)]);
    let arrived = world.guests[HOSTILE].read(receive.buffer + 12, 100);
    assert_eq!(arrived, frame(0, HOSTILE, 100, 101));
    assert!(world.faults.is_empty());
}

#[test]
fn buffers_over_the_rings_themselves_harm_their_guest_alone() {
    for ring in BOTH {
        let mut world = hostile(Features::NONE);
        let places = world.guests[HOSTILE].ring(ring).places;
        for target in [places.descriptors, places.available, places.used] {
            let receive = Hand::new(&world.guests[HOSTILE], RECEIVE);
            let over = receive.descriptor(target, 4096, 0, 0);
            receive.offer(&world.guests[HOSTILE], &[over]);
            for seed in 0..4 {
                traffic(&mut world, seed);
            }
            // Whatever it made of that, it is all its own.
            assert!(world.faults.iter().all(|(port, _)| *port == HOSTILE), "{:?}", world.faults);
            world.swap(HOSTILE, None);
            world.guests[HOSTILE].reset();
            world.plug(HOSTILE);
        }
    }
}

#[test]
fn memory_that_is_taken_away_takes_its_own_port_down() {
    // While the guest sends, receives, and does nothing at all.
    let prepare: [fn(&mut Guest); 3] =
        [|guest| guest.send(&frame(HOSTILE, 0, 3000, 1)), |guest| guest.post_many(3), |_| ()];
    for prepare in prepare {
        let mut world = hostile(Features::EVENT_IDX);
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
        world.guests[HOSTILE] = modern();
        world.plug(HOSTILE);
        world.guests[HOSTILE].post_many(1);
        traffic(&mut world, 6);
        assert_eq!(world.guests[HOSTILE].frames(), [frame(0, HOSTILE, 100, 6)], "the first");
    }
}

/// Fills the ring with chains of this many empty descriptors before one of `length` bytes. All of
/// them are the same chain.
fn empty_chains(guest: &Guest, ring: usize, descriptors: u16, length: u32) {
    let hand = Hand::new(guest, ring);
    for index in 0..descriptors {
        guest.describe(ring, index, hand.descriptor(hand.buffer, 0, NEXT, index + 1));
    }
    guest.describe(ring, descriptors, hand.descriptor(hand.buffer, length, 0, 0));
    let entries = guest.ring(ring).size;
    (0..entries).for_each(|slot| guest.set_available(ring, slot, 0));
    guest.set_available_index(ring, hand.next.wrapping_add(entries));
}

#[test]
fn chains_of_empty_descriptors_cost_a_bounded_time() {
    const LARGEST: u16 = 32768;
    // Chains that a breath takes: as many as 8192 descriptors make, and one at least.
    for (descriptors, chains) in [(LARGEST - 1, 1), (4095, 2), (1000, 9)] {
        let guest = Guest::new(MODERN, Cut::Whole, LARGEST);
        let mut world = World::pair([guest, modern()]);
        world.guests[1].post_many(200);
        empty_chains(&world.guests[0], TRANSMIT, descriptors, 112);
        for breath in 1..=5 {
            world.breathe();
            assert_eq!(world.guests[0].used_index(TRANSMIT), breath * chains);
            assert_eq!(world.guests[1].frames().len(), usize::from(chains));
        }

        let guest = Guest::new(MODERN, Cut::Whole, LARGEST);
        let mut world = World::pair([modern(), guest]);
        empty_chains(&world.guests[1], RECEIVE, descriptors, 2000);
        (0..60).for_each(|seed| world.guests[0].send(&frame(0, 1, 100, seed)));
        for breath in 1..=3 {
            world.breathe();
            assert_eq!(world.guests[1].used_index(RECEIVE), breath * chains);
        }
        assert!(world.faults.is_empty());
    }
}

#[test]
fn frames_cut_into_single_bytes_cost_a_bounded_time_and_arrive() {
    const FRAME: usize = 1500;
    let mut world = World::pair([Guest::new(MODERN, Cut::Whole, 4096), modern()]);
    world.guests[1].post_many(64);
    let sent = frame(0, 1, FRAME, 3);
    let guest = &world.guests[0];
    let hand = Hand::new(guest, TRANSMIT);
    guest.write(hand.buffer, &[&[0; 12][..], &sent[..]].concat());
    for index in 0..FRAME as u16 + 12 {
        let flags = if usize::from(index) < FRAME + 11 { NEXT } else { 0 };
        let byte = hand.descriptor(hand.buffer + u64::from(index), 1, flags, index + 1);
        guest.describe(TRANSMIT, index, byte);
    }
    (0..30).for_each(|slot| guest.set_available(TRANSMIT, slot, 0));
    guest.set_available_index(TRANSMIT, 30);
    let mut breaths = 0;
    let mut arrived = 0;
    while arrived < 30 {
        world.breathe();
        breaths += 1;
        let frames = world.guests[1].frames();
        assert!(frames.len() <= 4, "{} in one breath", frames.len());
        assert!(frames.iter().all(|frame| *frame == sent));
        arrived += frames.len();
        assert!(breaths <= 30, "{arrived} arrived");
    }
    assert!(world.faults.is_empty());
}

#[test]
fn buffers_just_large_enough_for_the_header_are_merged() {
    let mut world = World::modern();
    (0..100).for_each(|_| _ = world.guests[1].post(12));
    world.guests[0].send(&frame(0, 1, 1188, 0));
    world.breathe();
    let received = world.guests[1].received();
    assert_eq!(received[0].frame, frame(0, 1, 1188, 0));
    assert_eq!(received[0].buffers, 100);
}
