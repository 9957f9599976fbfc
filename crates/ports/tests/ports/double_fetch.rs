//! Guests that rewrite their memory while we read it.
//!
//! Another thread writes to the guest's memory for as long as the switch runs. Nothing here can know
//! when which byte was read; but whatever was decided on has to be what arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::{Counters, DropReason};
use memory::{GuestAddress, GuestMemory, WriteSlice};
use ringway_ports::BLOCK;
use virtqueue::packed;
use wire::split::Descriptor;
use wire::virtio::{Features, NetHeader};

use crate::guest::{Cut, Guest, RECEIVE, TRANSMIT};
use crate::world::{MODERN, RING, STEP, World, frame, mac, modern};

/// How long each test runs, at least and at most.
const RUN: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(20);

/// Numbers without a pattern that matters.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Runs `round` while another thread runs `scribble`, again and again, for a while and until
/// `round` says that it has seen enough.
fn meanwhile(scribble: impl FnMut() + Send, mut round: impl FnMut() -> bool) {
    let done = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut scribble = scribble;
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                scribble();
            }
        });
        // Also when a round panics, or the scope would wait for ever.
        let _stop = Stop(done);
        while !round() || start.elapsed() < RUN {
            assert!(start.elapsed() < LIMIT, "in {LIMIT:?} the race was not run");
        }
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    let mut slices: Vec<WriteSlice<'_>> = Vec::new();
    let len = bytes.len() as u32;
    memory.translator().write(GuestAddress(address), len, &mut slices).unwrap();
    memory::WriteCursor::new(&slices).write(bytes.into());
}

#[test]
fn the_address_that_was_looked_up_is_the_one_that_arrives() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    let memory = world.guests[0].memory.clone();
    let places = world.guests[0].transmit.places;
    let mut guest = 1;
    // The last byte of the destination, in all buffers that are used.
    let scribble = move || {
        guest = 3 - guest;
        (0..8).for_each(|area| write(&memory, places.area(area) + 12 + 5, &[guest]));
    };
    let mut arrived = [0; 3];
    meanwhile(scribble, || {
        for receiver in [1, 2] {
            let missing = 16 - world.guests[receiver].receive.outstanding();
            world.guests[receiver].post_many(missing);
        }
        (0..8).for_each(|seed| world.guests[0].send(&frame(0, 1, 200, seed)));
        world.breathe();
        assert_eq!(world.guests[0].reap(), 8);
        for receiver in [1, 2] {
            for frame in world.guests[receiver].frames() {
                assert_eq!(frame[..6], mac(receiver), "sent to another than it was looked up for");
                arrived[receiver] += 1;
            }
        }
        arrived[1] > 0 && arrived[2] > 0
    });
    assert!(world.faults.is_empty());
}

#[test]
fn an_offload_that_was_checked_is_the_one_that_is_done() {
    let sender = MODERN | Features::CSUM | Features::HOST_TSO4;
    let guest = Guest::new(sender, Cut::Whole, RING);
    let takes = MODERN | Features::GUEST_CSUM | Features::GUEST_TSO4;
    let receivers = [modern(), Guest::new(takes, Cut::Whole, RING)];
    let [plain, able] = receivers;
    let mut world = World::bridged(vec![guest, plain, able]);
    let memory = world.guests[0].memory.clone();
    let places = world.guests[0].transmit.places;
    let good = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let tso = NetHeader { gso_type: NetHeader::GSO_TCPV4, gso_size: 100, hdr_len: 54, ..good };
    let headers = [
        good,
        NetHeader { csum_start: 65535, ..good },
        NetHeader { csum_offset: 65535, ..good },
        NetHeader::default(),
        tso,
        NetHeader { gso_size: 0, ..tso },
        NetHeader { gso_type: 77, ..tso },
    ];
    let mut random = Random(1);
    let scribble = move || {
        let header = headers[(random.next() % 7) as usize].to_bytes();
        write(&memory, places.area((random.next() % 8) as u32), &header);
    };
    let fate = |world: &World| {
        let sender = world.counters(0);
        [
            sender[DropReason::ChecksumBeyondFrame],
            sender[DropReason::SegmentSizeZero],
            sender[DropReason::SegmentationUnknown],
            world.counters(1)[DropReason::SegmentationMismatch],
        ]
    };
    let (mut arrived, mut round, mut fates) = (0, 0, [0; 4]);
    meanwhile(scribble, || {
        for receiver in [1, 2] {
            let missing = 16 - world.guests[receiver].receive.outstanding();
            world.guests[receiver].post_many(missing);
        }
        (0..8).for_each(|seed| world.guests[0].send(&frame(0, 1 + seed % 2, 200, seed)));
        world.breathe();
        round += 8;
        assert_eq!(world.guests[0].reap(), 8);
        for received in world.guests[1].received() {
            let none = NetHeader { num_buffers: 1, ..NetHeader::default() };
            assert_eq!(received.header, none);
            assert_eq!(received.frame.len(), 200);
            arrived += 1;
        }
        for received in world.guests[2].received() {
            let NetHeader { flags, gso_type, gso_size, csum_start, .. } = received.header;
            let whole = match (flags, gso_type) {
                (0, 0) => (csum_start, gso_size) == (0, 0),
                (1, 0) => csum_start == 34,
                (1, 1) => csum_start == 34 && gso_size > 0,
                _ => false,
            };
            assert!(whole, "{:?}", received.header);
            arrived += 1;
        }
        fates = fate(&world);
        arrived > 0 && fates.iter().all(|count| *count > 0)
    });
    // A header that was read while it was written may be wrong in other ways too.
    let counters = [0, 1, 2].map(|port| world.counters(port));
    let dropped: u64 = counters.iter().flat_map(Counters::drops).map(|(_, count)| count).sum();
    assert_eq!(arrived + dropped, round, "each frame has one fate");
    assert!(world.faults.is_empty());
}

/// All of a guest's rings are rewritten at random, its indices included, while two others talk.
#[test]
fn split_rings_in_motion_harm_their_guest_alone() {
    in_motion(Features::NONE);
}

#[test]
fn packed_rings_in_motion_harm_their_guest_alone() {
    in_motion(Features::RING_PACKED);
}

fn in_motion(format: Features) {
    const WILD: usize = 0;
    let is_packed = format.contains(Features::RING_PACKED);
    let features = MODERN | Features::INDIRECT_DESC | Features::EVENT_IDX | Features::CSUM | format;
    let wild = Guest::new(features, Cut::Whole, RING);
    let mut world = World::bridged(vec![wild, modern(), modern()]);
    let memory: Arc<GuestMemory> = world.guests[WILD].memory.clone();
    let rings = [RECEIVE, TRANSMIT].map(|ring| world.guests[WILD].ring(ring).places);
    let mut random = Random(7);
    let mut counts = [0u16; 2];
    let mut turn = 0;
    let scribble = move || {
        turn ^= 1;
        let places = rings[turn];
        for _ in 0..8 {
            let index = random.next() % u64::from(RING);
            let odd = random.next().is_multiple_of(50);
            let descriptor = Descriptor {
                address: if odd { random.next() } else { places.area((index % 64) as u32) },
                length: if odd { random.next() as u32 } else { random.next() as u32 % 4096 },
                flags: if odd { random.next() as u16 } else { 2 * (1 - turn as u16) },
                next: random.next() as u16 % (RING + u16::from(odd)),
            };
            let at = places.descriptors + index * Descriptor::SIZE;
            if is_packed {
                // All marks there are: available and used, in this round and in the next one.
                let marks = [0, 1 << 7, 1 << 15, 1 << 7 | 1 << 15][random.next() as usize % 4];
                let Descriptor { address, length, flags, next: id } = descriptor;
                let flags = flags & 0x7f7f | marks;
                let descriptor = packed::Descriptor { address, length, id, flags };
                write(&memory, at, &descriptor.to_words().map(u64::to_le_bytes).concat());
                continue;
            }
            write(&memory, at, &descriptor.to_words().map(u64::to_le_bytes).concat());
            let head = (random.next() as u16 % (RING + u16::from(odd))).to_le_bytes();
            write(&memory, places.available + 4 + 2 * index, &head);
        }
        if is_packed {
            // When it wants to be called.
            write(&memory, places.available, &(random.next() as u32).to_le_bytes());
            return;
        }
        counts[turn] = counts[turn].wrapping_add(random.next() as u16 % 4);
        if random.next().is_multiple_of(500) {
            counts[turn] = random.next() as u16;
        }
        write(&memory, places.available + 2, &counts[turn].to_le_bytes());
    };
    let (mut passed, mut faults) = (0, 0);
    let mut bases = Random(3);
    meanwhile(scribble, || {
        let sent: Vec<_> = (0..8).map(|seed| frame(1, 2, 100 + seed, passed + seed)).collect();
        sent.iter().for_each(|frame| world.guests[1].send(frame));
        // And one for the wild guest, which may be held, and others before it: then a sender is not
        // listened to for a moment.
        world.guests[1].send(&frame(1, WILD, 100, passed));
        let mut received = Vec::new();
        for _ in 0..2 * BLOCK / STEP {
            // One buffer for each frame, however large: those of the wild guest are flooded.
            let missing = 128 - world.guests[2].receive.outstanding();
            (0..missing).for_each(|_| _ = world.guests[2].post(70_000));
            world.breathe();
            world.guests[1].reap();
            let frames = world.guests[2].frames();
            received.extend(frames.into_iter().filter(|frame| frame[..12] == sent[0][..12]));
            if received.len() >= sent.len() {
                break;
            }
        }
        assert!(received == sent, "{} of {} frames came", received.len(), sent.len());
        passed += 8;
        for (port, fault) in std::mem::take(&mut world.faults) {
            assert_eq!(port, WILD, "{fault}");
            faults += 1;
            world.swap(WILD, None);
            let bases = [(); 2].map(|()| match bases.next() as u16 {
                // The same place for both halves, with either wrap counter.
                base if is_packed => u32::from((base & 0x8000) | (base % RING)) * 0x1_0001,
                base => base.into(),
            });
            world.guests[WILD].restart(bases);
            world.plug(WILD);
        }
        faults > 0 && world.counters(WILD).received.frames > 0
    });
}
