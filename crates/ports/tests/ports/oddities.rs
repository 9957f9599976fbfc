//! Rings that look as if they broke the rules, and do not, or harm nobody but their own guest:
//! frames pass, or are dropped and counted, and every chain comes back.

use engine::{App, DropReason};
use virtqueue::packed::{Event, Position};
use wire::split::Descriptor;
use wire::virtio::Features;

use crate::guest::{RECEIVE, TRANSMIT};
use crate::hand::Hand;
use crate::hostile::{BOTH, FLAVOURS, HOSTILE, INDIRECT, NEXT, entries, hostile, traffic};
use crate::world::{World, frame};

const PACKED: Features = Features::RING_PACKED;

/// Bytes of a frame, and with its header.
const FRAME: usize = 500;
const WHOLE: u32 = 12 + FRAME as u32;

/// A guest of which one ring is in our hands.
struct Odd {
    world: World,
    hand: Hand,
    ring: usize,
    flavour: Features,
    seed: usize,
}

impl Odd {
    /// Each ring of each flavour.
    fn each() -> impl Iterator<Item = Self> {
        FLAVOURS.into_iter().flat_map(|flavour| BOTH.map(|ring| Self::new(flavour, ring)))
    }

    fn new(flavour: Features, ring: usize) -> Self {
        let world = hostile(flavour | Features::INDIRECT_DESC);
        let hand = Hand::new(&world.guests[HOSTILE], ring);
        Self { world, hand, ring, flavour, seed: 0 }
    }

    fn is_packed(&self) -> bool {
        self.flavour.contains(PACKED)
    }

    fn offer(&mut self, chain: &[Descriptor]) {
        self.hand.offer(&self.world.guests[HOSTILE], chain);
    }

    fn offer_table(&mut self, table: &[Descriptor]) {
        let length = 16 * table.len() as u32;
        self.hand.offer_table(&self.world.guests[HOSTILE], table, length);
    }

    /// A frame passes through one buffer, of `WHOLE` bytes at `at`, that `offer` makes available.
    fn passes_at(&mut self, at: u64, what: &str, offer: impl FnOnce(&mut Self)) {
        self.seed += 1;
        let what = format!("{what}, {}, ring {}", self.flavour, self.ring);
        let written = if self.ring == TRANSMIT {
            let sent = frame(HOSTILE, 0, FRAME, self.seed);
            self.world.guests[HOSTILE].write(at, &[&[0; 12][..], &sent[..]].concat());
            offer(self);
            self.world.guests[0].post_many(1);
            self.world.breathe();
            assert_eq!(self.world.guests[0].frames(), [sent], "{what}");
            0
        } else {
            let sent = frame(0, HOSTILE, FRAME, self.seed);
            offer(self);
            self.world.guests[0].send(&sent);
            self.world.breathe();
            assert_eq!(self.world.guests[HOSTILE].read(at + 12, FRAME), sent, "{what}");
            assert_eq!(self.world.guests[0].reap(), 1, "{what}");
            WHOLE
        };
        let reaped = self.hand.reap(&self.world.guests[HOSTILE]);
        let reaped: Vec<u32> = reaped.iter().map(|(_, written)| *written).collect();
        assert_eq!((reaped, self.hand.outstanding()), (vec![written], 0), "{what}");
        assert!(self.world.faults.is_empty(), "{what}: {:?}", self.world.faults);
    }

    fn passes(&mut self, what: &str, offer: impl FnOnce(&mut Self)) {
        self.passes_at(self.hand.buffer, what, offer);
    }
}

#[test]
fn buffers_may_be_cut_up_in_any_way() {
    for mut odd in Odd::each() {
        let size = u32::from(entries(odd.flavour));
        let rest = |front: &[u32]| [front, &[WHOLE - front.iter().sum::<u32>()]].concat();
        // The header in bytes, one to all of them; as many descriptors as there can be.
        let mut cuts: Vec<Vec<u32>> = (1..=12).map(|bytes| rest(&vec![1; bytes])).collect();
        cuts.extend([rest(&[11]), rest(&[12]), rest(&[13]), rest(&[0, 6, 0, 6, 0])]);
        cuts.push(rest(&vec![1; size as usize - 1]));
        cuts.push([vec![0; size as usize - 1], vec![WHOLE]].concat());
        for lens in cuts {
            let chain = odd.hand.cut(odd.hand.buffer, &lens);
            odd.passes(&format!("{lens:?}"), |odd| odd.offer(&chain));
            odd.passes(&format!("{lens:?} in a table"), |odd| odd.offer_table(&chain));
        }
    }
}

#[test]
fn buffers_and_tables_may_lie_across_regions() {
    for mut odd in Odd::each() {
        // The border is at an odd address a little further on.
        let across = odd.world.guests[HOSTILE].ring(odd.ring).places.area(0) + 10;
        let chain = [odd.hand.descriptor(across, WHOLE, 0, 0)];
        odd.passes_at(across, "across regions", |odd| odd.offer(&chain));
        odd.passes_at(across, "across regions, in a table", |odd| odd.offer_table(&chain));
        let table = odd.hand.cut(odd.hand.buffer, &[10, WHOLE - 10]);
        odd.passes("table across regions", |odd| {
            odd.hand.write_table(&odd.world.guests[HOSTILE], across, &table);
            odd.offer(&[odd.hand.descriptor(across, 32, INDIRECT, 0)]);
        });
    }
}

#[test]
fn empty_descriptors_may_point_anywhere() {
    for mut odd in Odd::each() {
        for nowhere in [0, odd.hand.end, u64::MAX] {
            let parts = [(nowhere, 0), (odd.hand.buffer, WHOLE), (nowhere, 0)];
            let chain: Vec<_> = (1..)
                .zip(parts)
                .map(|(next, (address, len))| {
                    odd.hand.descriptor(address, len, if next < 3 { NEXT } else { 0 }, next)
                })
                .collect();
            odd.passes("empty ones around it", |odd| odd.offer(&chain));
            odd.passes("empty ones around it in a table", |odd| odd.offer_table(&chain));
        }
    }
}

#[test]
fn the_descriptor_that_refers_to_a_table_may_say_that_it_is_writable() {
    for mut odd in Odd::each() {
        for flag in [0, Descriptor::WRITE] {
            let table = [odd.hand.descriptor(odd.hand.buffer, WHOLE, 0, 0)];
            odd.passes("a writable table", |odd| {
                let address = odd.hand.table;
                odd.hand.write_table(&odd.world.guests[HOSTILE], address, &table);
                odd.offer(&[Descriptor { address, length: 16, flags: INDIRECT | flag, next: 0 }]);
            });
        }
    }
}

/// Of a split ring; in a packed one that is a violation.
#[test]
fn direct_descriptors_may_come_before_a_table() {
    for mut odd in Odd::each().filter(|odd| !odd.is_packed()) {
        for before in [1u32, 2, 100, 254] {
            let mut chain = odd.hand.cut(odd.hand.buffer, &vec![1; before as usize]);
            chain[before as usize - 1].flags |= NEXT;
            let at = odd.hand.buffer + u64::from(before);
            let table = odd.hand.cut(at, &[30, WHOLE - before - 30]);
            let (address, flags) = (odd.hand.table, INDIRECT);
            chain.push(Descriptor { address, length: 32, flags, next: 0 });
            odd.passes(&format!("{before} before a table"), |odd| {
                odd.hand.write_table(&odd.world.guests[HOSTILE], address, &table);
                odd.offer(&chain);
            });
        }
    }
}

/// Of a packed ring; in a split one they mean something.
#[test]
fn flags_in_a_table_other_than_write_mean_nothing() {
    for mut odd in Odd::each().filter(Odd::is_packed) {
        let mut table = odd.hand.cut(odd.hand.buffer, &[5, 7, WHOLE - 12]);
        for entry in &mut table {
            entry.flags |= !Descriptor::WRITE;
        }
        odd.passes("all flags", |odd| odd.offer_table(&table));
        table.iter_mut().for_each(|entry| entry.flags = odd.hand.flags);
        odd.passes("none at all", |odd| odd.offer_table(&table));
    }
}

/// The index jumps by exactly the ring; or all slots become available at once.
#[test]
fn all_entries_may_be_made_available_at_once() {
    for mut odd in Odd::each() {
        let count = usize::from(entries(odd.flavour));
        let chain = [odd.hand.descriptor(odd.hand.buffer, WHOLE, 0, 0)];
        // Twice, so that the ring goes round from wherever it stands.
        for round in 0..2 {
            let (mut arrived, mut reaped) = (0, 0);
            let sent = if odd.ring == TRANSMIT {
                let sent = frame(HOSTILE, 0, FRAME, round);
                let bytes = [&[0; 12][..], &sent[..]].concat();
                odd.world.guests[HOSTILE].write(odd.hand.buffer, &bytes);
                odd.world.guests[0].post_many(count);
                sent
            } else {
                let sent = frame(0, HOSTILE, FRAME, round);
                (0..count).for_each(|_| odd.world.guests[0].send(&sent));
                sent
            };
            (0..count).for_each(|_| odd.offer(&chain));
            while odd.world.breathe() {
                for frame in odd.world.guests[0].frames() {
                    assert!(frame == sent);
                    arrived += 1;
                }
                odd.world.guests[0].reap();
                reaped += odd.hand.reap(&odd.world.guests[HOSTILE]).len();
            }
            assert_eq!((reaped, odd.hand.outstanding()), (count, 0), "{}", odd.flavour);
            assert_eq!(arrived, if odd.ring == TRANSMIT { count } else { 0 }, "{}", odd.flavour);
            assert_eq!(odd.world.guests[0].transmit.outstanding(), 0);
        }
        assert!(odd.world.faults.is_empty(), "{:?}", odd.world.faults);
        for port in [0, HOSTILE] {
            odd.world.assert_drops(port, &[]);
        }
    }
}

#[test]
fn ids_of_a_packed_ring_are_any_numbers_and_come_back_as_they_were() {
    for mut odd in Odd::each().filter(Odd::is_packed) {
        let size = entries(PACKED);
        let ids = [0, 5, 5, size - 1, size, 5, 32767, 32768, 65535];
        odd.world.guests[0].post_many(ids.len());
        if odd.ring == TRANSMIT {
            let sent = frame(HOSTILE, 0, FRAME, 1);
            let bytes = [&[0; 12][..], &sent[..]].concat();
            odd.world.guests[HOSTILE].write(odd.hand.buffer, &bytes);
        } else {
            ids.iter().for_each(|_| odd.world.guests[0].send(&frame(0, HOSTILE, FRAME, 1)));
        }
        // Chains of two descriptors, of which the last one's counts.
        let chain = odd.hand.cut(odd.hand.buffer, &[100, WHOLE - 100]);
        ids.iter().for_each(|id| odd.hand.offer_as(&odd.world.guests[HOSTILE], *id, &chain));
        odd.world.breathe();
        let reaped = odd.hand.reap(&odd.world.guests[HOSTILE]);
        let written = if odd.ring == TRANSMIT { 0 } else { WHOLE };
        assert_eq!(reaped, ids.map(|id| (u32::from(id), written)));
        assert!(odd.world.faults.is_empty(), "{:?}", odd.world.faults);
    }
}

#[test]
fn marks_of_another_round_offer_nothing() {
    for mut odd in Odd::each().filter(Odd::is_packed) {
        let chain = [odd.hand.descriptor(odd.hand.buffer, WHOLE, 0, 0)];
        // Some rounds, so that both counters are met.
        for _ in 0..3 * u32::from(entries(PACKED)) {
            let place = odd.hand.here();
            let other = Position::from_bits(place.bits() ^ 0x8000);
            for marks in [place.used(), other.used(), other.available()] {
                let guest = &odd.world.guests[HOSTILE];
                odd.hand.describe(guest, place, chain[0], 0, marks);
                odd.world.breathe();
                assert!(!odd.world.port(HOSTILE).arm());
                odd.world.port(HOSTILE).disarm();
                assert_eq!(odd.world.counters(HOSTILE)[DropReason::TooShort], 0);
            }
            odd.passes("the right marks", |odd| odd.offer(&chain));
        }
    }
}

#[test]
fn what_cannot_be_sent_is_counted_and_its_chain_comes_back() {
    for mut odd in Odd::each().filter(|odd| odd.ring == TRANSMIT) {
        let buffer = odd.hand.buffer;
        let chain = |len, flags| [odd.hand.descriptor(buffer, len, flags, 0)];
        // Only writable: nothing to send. A header and almost an Ethernet header. Longer than any
        // frame, and than memory.
        let bad = [chain(WHOLE, Descriptor::WRITE), chain(0, 0), chain(12, 0), chain(25, 0)];
        let long = [chain(65_535 + 22 + 13, 0), chain(u32::MAX, 0)];
        let after = odd.hand.cut(buffer, &[WHOLE, 1000]);
        for chain in bad.iter().chain(&long) {
            odd.offer(chain);
            odd.world.breathe();
            assert_eq!(odd.hand.reap(&odd.world.guests[HOSTILE]).len(), 1);
        }
        let expected = [(DropReason::TooShort, 4), (DropReason::TooLong, 2)];
        odd.world.assert_drops(HOSTILE, &expected);
        // Writable behind readable: only the latter is sent.
        odd.passes("writable behind it", |odd| {
            let writable = Descriptor { flags: Descriptor::WRITE, ..after[1] };
            odd.offer(&[after[0], writable]);
        });
        odd.world.assert_drops(HOSTILE, &expected);
    }
}

#[test]
fn receive_buffers_that_are_posted_twice_overlap_or_have_no_end() {
    for mut odd in Odd::each().filter(|odd| odd.ring == RECEIVE) {
        let buffer = odd.hand.buffer;
        let posted = [(buffer, 2000), (buffer, u32::MAX), (buffer + 50, 2000)];
        // A split ring's chains all begin at the first descriptor: one after the other.
        for (address, len) in posted {
            odd.offer(&[odd.hand.descriptor(address, len, 0, 0)]);
            let sent = frame(0, HOSTILE, 100, len as usize);
            odd.world.guests[0].send(&sent);
            odd.world.breathe();
            let reaped = odd.hand.reap(&odd.world.guests[HOSTILE]);
            assert_eq!(reaped.iter().map(|used| used.1).collect::<Vec<_>>(), [112]);
            assert_eq!(odd.world.guests[HOSTILE].read(address + 12, 100), sent);
        }
        // All at once: each frame is written, and the last one is what stays.
        let chain = [odd.hand.descriptor(buffer, 2000, 0, 0)];
        (0..3).for_each(|_| odd.offer(&chain));
        traffic(&mut odd.world, 1);
        assert_eq!(odd.hand.reap(&odd.world.guests[HOSTILE]).len(), 2);
        let last = frame(0, HOSTILE, 100, 101);
        assert_eq!(odd.world.guests[HOSTILE].read(buffer + 12, 100), last);
        assert!(odd.world.faults.is_empty(), "{:?}", odd.world.faults);
    }
}

#[test]
fn buffers_over_the_rings_themselves_harm_their_guest_alone() {
    for flavour in FLAVOURS {
        for ring in BOTH {
            let mut world = hostile(flavour);
            let places = world.guests[HOSTILE].ring(ring).places;
            for target in [places.descriptors, places.available, places.used] {
                let mut receive = Hand::new(&world.guests[HOSTILE], RECEIVE);
                let over = receive.descriptor(target, 4096, 0, 0);
                (0..4).for_each(|_| receive.offer(&world.guests[HOSTILE], &[over]));
                for seed in 0..4 {
                    traffic(&mut world, seed);
                }
                // Whatever it made of that, it is all its own.
                let faults = std::mem::take(&mut world.faults);
                let own = faults.iter().filter(|(port, _)| *port == HOSTILE).count();
                assert!(own == faults.len() && own <= 1, "{faults:?}");
                world.swap(HOSTILE, None);
                world.guests[HOSTILE].reset();
                world.plug(HOSTILE);
            }
        }
    }
}

#[test]
fn buffers_just_large_enough_for_the_header_are_merged() {
    for flavour in FLAVOURS {
        let mut world = hostile(flavour);
        (0..100).for_each(|_| _ = world.guests[HOSTILE].post(12));
        world.guests[0].send(&frame(0, HOSTILE, 1188, 0));
        world.breathe();
        let received = world.guests[HOSTILE].received();
        assert_eq!(received[0].frame, frame(0, HOSTILE, 1188, 0));
        assert_eq!(received[0].buffers, 100);
    }
}

/// One that does not hold the header, between others that do, and that frames of a burst fill.
#[test]
fn a_buffer_too_small_for_a_header_is_found_among_those_of_a_burst() {
    for flavour in FLAVOURS {
        for tiny in [1, 11] {
            let mut world = hostile(flavour);
            let post = |world: &mut World, lens: &[u32]| {
                lens.iter().for_each(|len| _ = world.guests[HOSTILE].post(*len));
            };
            // Two buffers for each frame. The first ones are looked at more closely; then it is known how large they are.
            for seed in 0..2 {
                post(&mut world, &[600, 600]);
                world.guests[0].send(&frame(0, HOSTILE, 1000, seed));
                world.breathe();
            }
            post(&mut world, &[600, 600, 600, tiny, 600]);
            (2..4).for_each(|seed| world.guests[0].send(&frame(0, HOSTILE, 1000, seed)));
            world.breathe();
            let fault = world.fault(HOSTILE);
            assert!(fault.contains("cannot hold the header"), "{flavour}: {fault}");
            let received = world.guests[HOSTILE].received();
            let received: Vec<_> = received.iter().map(|one| (&one.frame, one.buffers)).collect();
            // What came with the fault is not published any more.
            let frames = [0, 1].map(|seed| frame(0, HOSTILE, 1000, seed));
            assert!(received == frames.each_ref().map(|frame| (frame, 2)), "{flavour}");
            world.assert_drops(HOSTILE, &[(DropReason::ReceiverDown, 1)]);
            traffic(&mut world, 9);
        }
    }
}

/// Whatever is written where either side says when it wants to be notified: frames pass, and a port
/// that goes to sleep asks anew.
#[test]
fn events_may_be_anything() {
    for mut odd in Odd::each() {
        let chain = [odd.hand.descriptor(odd.hand.buffer, WHOLE, 0, 0)];
        for step in 0u32..400 {
            // All flags there are, reserved ones too; places inside of the ring and far outside.
            let place = step.wrapping_mul(0x9E37_79B1) >> 16;
            let word = (step % 4) << 16 | if step % 3 == 0 { place % 300 } else { place };
            odd.hand.set_driver_event(&odd.world.guests[HOSTILE], word);
            odd.hand.set_device_event(&odd.world.guests[HOSTILE], !word);
            odd.passes(&format!("event {word:#x}"), |odd| odd.offer(&chain));
            if odd.ring == TRANSMIT {
                while odd.world.breathe() {}
                assert!(!odd.world.port(HOSTILE).arm());
                let guest = &odd.world.guests[HOSTILE];
                let is_asked = if odd.is_packed() {
                    let place = odd.hand.here();
                    let event = odd.hand.device_event(guest);
                    let by_place = odd.flavour.contains(Features::EVENT_IDX);
                    event == if by_place { Event::At(place) } else { Event::Always }
                } else {
                    guest.wants_kick(TRANSMIT)
                };
                assert!(is_asked, "{} after event {word:#x}", odd.flavour);
                odd.world.port(HOSTILE).disarm();
            }
        }
    }
}
