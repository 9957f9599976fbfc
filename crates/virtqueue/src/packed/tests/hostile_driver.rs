//! Rings that break the rules: each yields exactly its violation, and nothing is taken. Beside
//! them, rings that only look as if they did.

use memory::{GuestAddress, GuestMemory};
use wire::virtio::Features;

use super::ring::{Ring, buffer, places};
use crate::packed::{Descriptor, DeviceQueue, Event, Position};
use crate::tests::bed::{BASE, BORDER, fill, map};
use crate::{DeviceRing, Piece, Violation};

const SIZE: u16 = 7;
const WRITE: u16 = Descriptor::WRITE;
const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;

/// Takes the chain that `build` leaves in slot 0, in every flavour in which it means the same.
/// `build` gets the flag that its buffers are to carry: WRITE on a receive ring.
fn judge(build: impl Fn(&Ring, u16)) -> Result<u64, Violation> {
    let mut verdicts = Vec::new();
    for events in [Features::NONE, Features::EVENT_IDX] {
        for flag in [0, WRITE] {
            let ring = Ring::new(SIZE);
            build(&ring, flag);
            let mut device = ring.device(events | Features::INDIRECT_DESC);
            let verdict = take(&ring, &mut device, flag);
            if verdict.is_err() {
                assert_eq!(take(&ring, &mut device, flag), verdict, "asked again");
                assert_eq!((device.position(), device.outstanding()), (0x8000_8000, 0));
            }
            verdicts.push(verdict);
        }
    }
    assert!(
        verdicts.iter().all(|verdict| *verdict == verdicts[0]),
        "flavours differ: {verdicts:?}"
    );
    verdicts[0]
}

fn take(ring: &Ring, device: &mut DeviceQueue, flag: u16) -> Result<u64, Violation> {
    let (bytes, translated) = if flag == 0 {
        let (chain, bytes) = ring.take_readable(device, u32::MAX)?.unwrap();
        (chain.bytes(), bytes.len() as u64)
    } else {
        let (chain, slices) = ring.take_writable(device, u32::MAX)?.unwrap();
        (chain.bytes(), slices.iter().map(|slice| slice.len() as u64).sum())
    };
    assert_eq!(bytes, translated);
    Ok(bytes)
}

/// A chain of one descriptor that refers to `table`, which is written to the third buffer area.
fn judge_table(table: impl Fn(&Ring, u16) -> Vec<Descriptor>) -> Result<u64, Violation> {
    judge(|ring, flag| {
        let at = ring.area(2);
        let table = table(ring, flag);
        ring.write_table(at, &table);
        ring.offer(0, refer(at, 16 * table.len() as u32));
    })
}

fn refer(address: u64, length: u32) -> Descriptor {
    buffer(address, length, INDIRECT)
}

/// What a buffer outside of the memory is refused with.
fn fault(memory: &GuestMemory, address: u64, len: u32) -> Violation {
    let mut slices = Vec::new();
    memory.translator().read(GuestAddress(address), len, &mut slices).unwrap_err().into()
}

/// Addresses are the same in each ring of one size.
fn outside(address: u64, len: u32) -> Result<u64, Violation> {
    Err(fault(&Ring::new(SIZE).memory, address, len))
}

mod marks {
    use super::*;

    #[test]
    fn that_are_not_those_of_this_round_offer_nothing() {
        for place in places(SIZE) {
            let ring = Ring::new(SIZE);
            let mut device = ring.device_at(Features::NONE, place);
            let other_round = place.advance(SIZE, SIZE);
            for flags in [place.used(), other_round.used(), other_round.available()] {
                ring.describe(place.slot(), buffer(ring.area(1), 10, flags));
                assert_eq!(device.available(), Ok(0));
                assert_eq!(device.enable_kicks(), Ok(false));
                assert_eq!(ring.take_readable(&mut device, 100), Ok(None));
            }
            ring.describe(place.slot(), buffer(ring.area(1), 10, place.available()));
            assert_eq!(device.available(), Ok(1));
            assert!(ring.take_readable(&mut device, 100).unwrap().is_some());
        }
    }

    #[test]
    fn of_descriptors_that_the_device_holds_are_not_looked_at() {
        for base in places(SIZE) {
            let ring = Ring::new(SIZE);
            let mut device = ring.device_at(Features::NONE, base);
            let offer = |place: Position| {
                ring.describe(place.slot(), buffer(ring.area(1), 10, place.available()));
            };
            places(SIZE).take(SIZE.into()).for_each(|step| {
                offer(base.advance(step.slot(), SIZE));
            });
            let held: Vec<_> =
                (0..SIZE).map(|_| ring.take_readable(&mut device, 9).unwrap().unwrap().0).collect();
            // All of them again, as of the next round.
            (0..SIZE).for_each(|step| offer(base.advance(SIZE, SIZE).advance(step, SIZE)));
            assert_eq!(device.available(), Ok(0));
            assert_eq!(device.enable_kicks(), Ok(false));
            assert_eq!(ring.take_readable(&mut device, 100), Ok(None));
            assert_eq!(device.outstanding(), SIZE);
            // One for each that is given back, and no more.
            device.give_back(held[3], 0);
            assert!(ring.take_readable(&mut device, 100).unwrap().is_some());
            assert_eq!(ring.take_readable(&mut device, 100), Ok(None));
            assert_eq!(device.outstanding(), SIZE);
        }
    }

    #[test]
    fn may_not_be_withdrawn() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(Features::NONE);
        ring.offer(0, buffer(ring.area(1), 10, 0));
        assert_eq!(device.available(), Ok(1));
        ring.describe(0, buffer(ring.area(1), 10, 0));
        for _ in 0..2 {
            let expected = Violation::Withdrawn { slot: 0 };
            assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
        }
        assert_eq!(device.outstanding(), 0);
    }

    #[test]
    fn of_a_chain_that_was_put_back_may_not_be_withdrawn_either() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(Features::NONE);
        ring.offer(0, buffer(ring.area(1), 10, NEXT));
        ring.offer(1, buffer(ring.area(1), 10, 0));
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        device.untake(&[chain]);
        assert_eq!(device.available(), Ok(2));
        ring.describe(0, buffer(ring.area(1), 10, Position::FIRST.used()));
        let expected = Violation::Withdrawn { slot: 0 };
        assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
    }
}

mod id {
    use super::*;

    #[test]
    fn is_any_number_and_comes_back_as_it_was() {
        for id in [0, 6, SIZE, 32767, 65535] {
            let ring = Ring::new(SIZE);
            let mut device = ring.device(Features::NONE);
            ring.offer(0, buffer(ring.area(1), 10, NEXT));
            // Only the last descriptor's counts.
            ring.offer(1, Descriptor { id, ..buffer(ring.area(1), 10, 0) });
            let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
            assert_eq!(chain.id(), id);
            device.give_back(chain, 0);
            let _ = device.publish();
            let used = ring.descriptor(0);
            assert_eq!((used.id, used.flags), (id, Position::FIRST.used()));
        }
    }

    #[test]
    fn given_twice_is_the_drivers_own_affair() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(Features::NONE);
        for slot in 0..3 {
            ring.offer(slot, Descriptor { id: 5, ..buffer(ring.area(1), 10, 0) });
        }
        for _ in 0..3 {
            let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
            device.give_back(chain, 0);
        }
        assert!(device.publish());
        assert!((0..3).all(|slot| ring.descriptor(slot).id == 5));
    }
}

mod chain {
    use super::*;

    /// A chain of `count` descriptors of 10 bytes from slot 0 on; all of them have NEXT when that is
    /// more than there are.
    fn of(ring: &Ring, flag: u16, count: u16) {
        for slot in 0..SIZE {
            let next = if slot + 1 < count { NEXT } else { 0 };
            ring.offer(slot, buffer(ring.area(slot), 10, flag | next));
        }
    }

    #[test]
    fn may_be_as_long_as_the_ring_and_no_longer() {
        for count in 1..=SIZE {
            assert_eq!(judge(|ring, flag| of(ring, flag, count)), Ok(10 * u64::from(count)));
        }
        let too_long = Err(Violation::ChainTooLong { size: SIZE });
        assert_eq!(judge(|ring, flag| of(ring, flag, SIZE + 1)), too_long);
    }

    #[test]
    fn goes_on_at_the_start_behind_the_end() {
        for base in places(SIZE) {
            let ring = Ring::new(SIZE);
            ring.write(ring.area(1), b"abcd");
            for step in 0..4 {
                let place = base.advance(step, SIZE);
                let next = if step < 3 { NEXT } else { 0 };
                let flags = place.available() | next;
                ring.describe(place.slot(), buffer(ring.area(1) + u64::from(step), 1, flags));
            }
            let mut device = ring.device_at(Features::NONE, base);
            let (chain, bytes) = ring.take_readable(&mut device, 100).unwrap().unwrap();
            assert_eq!((&bytes[..], chain.descriptors()), (&b"abcd"[..], 4));
            assert_eq!(device.position() as u16, base.advance(4, SIZE).bits());
        }
    }

    #[test]
    fn does_not_go_on_in_descriptors_that_the_device_holds() {
        for flag in [0, WRITE] {
            let ring = Ring::new(SIZE);
            let mut device = ring.device(Features::NONE);
            let buffer = |flags| buffer(ring.area(1), 10, flag | flags);
            (0..3).for_each(|slot| ring.offer(slot, buffer(0)));
            (3..SIZE).for_each(|slot| ring.offer(slot, buffer(NEXT)));
            (0..3).for_each(|_| _ = take(&ring, &mut device, flag).unwrap());
            let expected = Violation::ChainOverrun { room: 4, size: SIZE };
            assert_eq!(take(&ring, &mut device, flag), Err(expected));
            assert_eq!(device.outstanding(), 3);
            ring.offer(SIZE - 1, buffer(0));
            assert_eq!(take(&ring, &mut device, flag), Ok(40));
            assert_eq!(device.outstanding(), SIZE);
        }
    }

    #[test]
    fn of_one_slot_cannot_go_on() {
        let ring = Ring::new(1);
        ring.offer(0, buffer(ring.area(0), 10, NEXT));
        let mut device = ring.device(Features::NONE);
        let expected = Violation::ChainTooLong { size: 1 };
        assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
    }

    #[test]
    fn is_fetched_afresh_to_note_where_it_is() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(Features::NONE);
        ring.offer(0, buffer(ring.area(0), 10, NEXT));
        ring.offer(1, buffer(ring.area(1), 20, 0));
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        let pieces = || {
            let mut pieces = Vec::new();
            let translator = &mut ring.memory.translator();
            device.pieces(chain, translator, &mut pieces).map(|()| pieces)
        };
        let piece = |address, len| Piece { address: GuestAddress(address), len };
        assert_eq!(pieces(), Ok(vec![piece(ring.area(0), 10), piece(ring.area(1), 20)]));
        ring.describe(0, buffer(u64::MAX, 7, 0));
        assert_eq!(pieces(), Ok(vec![piece(u64::MAX, 7)]), "not checked, for it may be too early");
        ring.describe(0, buffer(0, 5, WRITE | NEXT));
        assert_eq!(pieces(), Err(Violation::ReadableAfterWritable));
        ring.describe(0, buffer(0, 5, NEXT));
        ring.describe(1, buffer(0, 5, NEXT));
        let longer = Violation::ChainOverrun { room: 2, size: SIZE };
        assert_eq!(pieces(), Err(longer), "longer than what was taken");
    }

    /// A chain that was short when it was paid for costs no more when it is fetched again.
    #[test]
    fn that_has_grown_is_not_followed_to_its_end() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(Features::INDIRECT_DESC);
        ring.offer(0, buffer(ring.area(0), 10, 0));
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        let pieces = || {
            let mut pieces = Vec::new();
            let verdict = device.pieces(chain, &mut ring.memory.translator(), &mut pieces);
            (verdict, pieces.len())
        };
        ring.write_table(ring.area(2), &[buffer(0, 1, 0), buffer(0, 0, WRITE)]);
        ring.describe(0, refer(ring.area(2), 16));
        assert_eq!(pieces(), (Ok(()), 1));
        ring.describe(0, refer(ring.area(2), 32));
        assert_eq!(pieces(), (Err(Violation::Grown { id: chain.id() }), 1));
    }

    #[test]
    fn readable_buffers_come_first() {
        let transmit = |build: &dyn Fn(&Ring)| {
            let ring = Ring::new(SIZE);
            build(&ring);
            let mut device = ring.device(Features::INDIRECT_DESC);
            let receive = ring.take_writable(&mut device, 1000);
            assert_eq!(receive.err(), Some(Violation::ReadableReceiveBuffer));
            ring.take_readable(&mut device, 1000).map(|taken| taken.unwrap().0.bytes())
        };
        let disordered = Err(Violation::ReadableAfterWritable);

        let verdict = transmit(&|ring| {
            ring.offer(0, buffer(ring.area(0), 10, NEXT));
            ring.offer(1, buffer(ring.area(1), 20, WRITE));
        });
        assert_eq!(verdict, Ok(10), "writable after readable is passed over");
        let verdict = transmit(&|ring| {
            ring.offer(0, buffer(ring.area(0), 0, NEXT | WRITE));
            ring.offer(1, buffer(ring.area(1), 0, 0));
        });
        assert_eq!(verdict, disordered, "empty buffers have an order too");
    }

    #[test]
    fn of_writable_buffers_only_has_nothing_to_read() {
        let ring = Ring::new(SIZE);
        // Not even the address is looked at.
        ring.offer(0, buffer(u64::MAX, 10, WRITE));
        let mut device = ring.device(Features::NONE);
        let (chain, bytes) = ring.take_readable(&mut device, 1000).unwrap().unwrap();
        assert_eq!((chain.bytes(), bytes.len()), (0, 0));
    }
}

mod table {
    use super::*;

    #[test]
    fn has_a_length_that_makes_sense() {
        // Zeros otherwise: empty buffers.
        let table_of = |len| {
            judge(|ring, flag| {
                ring.write_table(ring.area(2), &[buffer(0, 0, flag); SIZE as usize]);
                ring.offer(0, refer(ring.area(2), len));
            })
        };
        for len in [0, 1, 8, 15, 17, 31, 16 * 7 + 1, 16 * 8, u32::MAX, 0xFFFF_FFF0] {
            let expected = Violation::IndirectLength { len, size: SIZE };
            assert_eq!(table_of(len), Err(expected), "{len}");
        }
        assert_eq!(table_of(16), Ok(0));
        assert_eq!(table_of(16 * 7), Ok(0));
    }

    #[test]
    fn is_in_the_memory_to_its_last_entry() {
        let end = Ring::new(SIZE).end();
        let table_at = |address, len| judge(|ring, _| ring.offer(0, refer(address, len)));
        assert_eq!(table_at(0, 16), outside(0, 16));
        assert_eq!(table_at(end, 16), outside(end, 16));
        assert_eq!(table_at(end - 15, 16), outside(end - 15, 16));
        assert_eq!(table_at(u64::MAX, 16), outside(u64::MAX, 16));
        let second = judge(|ring, flag| {
            ring.write_table(end - 16, &[buffer(ring.area(1), 3, flag)]);
            ring.offer(0, refer(end - 16, 32));
        });
        assert_eq!(second, outside(end, 16));
    }

    #[test]
    fn does_not_wrap_around_the_address_space() {
        let top = u64::MAX - 0xFFF;
        let ring = Ring::at(map(&[(0, 0x1000), (top, u64::MAX)]), SIZE, 0);
        let at = u64::MAX - 0x1F;
        ring.write_table(at, &[buffer(0, 1, 0)]);
        ring.offer(0, refer(at, 16 * u32::from(SIZE)));
        let mut device = ring.device(Features::INDIRECT_DESC);
        let expected = fault(&ring.memory, u64::MAX - 0xF, 16);
        assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
    }

    #[test]
    fn may_cross_into_another_region_at_any_byte() {
        for shift in 0..=16 {
            let verdict = judge(|ring, flag| {
                let at = ring.area(0) + BORDER - shift;
                let table = [buffer(ring.area(1), 5, flag), buffer(ring.area(2), 6, flag)];
                ring.write_table(at, &table);
                ring.offer(0, refer(at, 32));
            });
            assert_eq!(verdict, Ok(11), "{shift} bytes before the border");
        }
    }

    #[test]
    fn is_read_to_its_end_whatever_else_its_flags_say() {
        let all = NEXT | INDIRECT | Descriptor::AVAIL | Descriptor::USED | 0x7F78;
        let verdict = judge_table(|ring, flag| {
            vec![
                Descriptor { id: 9, ..buffer(ring.area(1), 1, flag) },
                buffer(ring.area(1), 2, flag | all),
                buffer(ring.area(1), 4, flag),
            ]
        });
        assert_eq!(verdict, Ok(7));
    }

    /// As DPDK's driver makes it: the header is marked as writable, and one of the others may be.
    #[test]
    fn is_read_whatever_it_says_about_writing() {
        for odd in 1..4 {
            let ring = Ring::new(SIZE);
            let piece = |n| {
                let flag = if n == 0 || n == odd { WRITE } else { 0 };
                buffer(ring.area(n), 10 + u32::from(n), flag)
            };
            ring.write_table(ring.area(5), &[piece(0), piece(1), piece(2), piece(3)]);
            ring.offer(0, refer(ring.area(5), 64));
            let mut device = ring.device(Features::INDIRECT_DESC);
            // What is to be written has to be writable all the same.
            let receive = ring.take_writable(&mut device, 1000);
            assert_eq!(receive.err(), Some(Violation::ReadableReceiveBuffer));
            let (chain, bytes) = ring.take_readable(&mut device, 1000).unwrap().unwrap();
            assert_eq!((chain.bytes(), bytes.len()), (46, 46));
            let mut pieces = Vec::new();
            let noted = device.pieces(chain, &mut ring.memory.translator(), &mut pieces);
            assert_eq!((noted, pieces.len()), (Ok(()), 4));
        }
    }

    #[test]
    fn is_a_chain_by_itself() {
        let misplaced = Err(Violation::IndirectMisplaced);
        let table = |ring: &Ring, flag| {
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 1, flag)]);
        };
        let before = judge(|ring, flag| {
            table(ring, flag);
            ring.offer(0, buffer(ring.area(2), 16, INDIRECT | NEXT));
            ring.offer(1, buffer(ring.area(4), 1, flag));
        });
        assert_eq!(before, misplaced);
        let behind = judge(|ring, flag| {
            table(ring, flag);
            ring.offer(0, buffer(ring.area(4), 1, flag | NEXT));
            ring.offer(1, refer(ring.area(2), 16));
        });
        assert_eq!(behind, misplaced);
    }

    #[test]
    fn write_on_the_referring_descriptor_means_nothing() {
        let verdict = judge(|ring, flag| {
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 9, flag)]);
            ring.offer(0, buffer(ring.area(2), 16, INDIRECT | WRITE));
        });
        assert_eq!(verdict, Ok(9));
    }

    #[test]
    fn takes_one_slot_and_the_id_of_the_descriptor_that_refers_to_it() {
        let ring = Ring::new(SIZE);
        let table = [Descriptor { id: 3, ..buffer(ring.area(1), 5, 0) }; 4];
        ring.write_table(ring.area(2), &table);
        ring.offer(0, Descriptor { id: 8, ..refer(ring.area(2), 64) });
        let mut device = ring.device(Features::INDIRECT_DESC);
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        assert_eq!((chain.id(), chain.descriptors(), chain.bytes()), (8, 4, 20));
        assert_eq!(device.outstanding(), 1);
    }

    #[test]
    fn needs_the_feature() {
        for features in [Features::NONE, Features::EVENT_IDX] {
            let ring = Ring::new(SIZE);
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 1, 0)]);
            ring.offer(0, refer(ring.area(2), 16));
            let mut device = ring.device(features);
            let expected = Violation::IndirectNotNegotiated;
            assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
            let written = ring.take_writable(&mut device, 100);
            assert_eq!(written.err(), Some(expected));
            assert_eq!(device.outstanding(), 0);
        }
    }
}

mod address {
    use super::*;

    /// The same buffer as the chain's only one, as its second one, and in a table.
    fn buffer_at(address: u64, len: u32) -> Result<u64, Violation> {
        let verdicts = [
            judge(|ring, flag| ring.offer(0, buffer(address, len, flag))),
            judge(|ring, flag| {
                ring.offer(0, buffer(ring.area(1), 0, flag | NEXT));
                ring.offer(1, buffer(address, len, flag));
            }),
            judge_table(|_, flag| vec![buffer(address, len, flag)]),
        ];
        assert!(
            verdicts.iter().all(|verdict| *verdict == verdicts[0]),
            "places differ: {verdicts:?}"
        );
        verdicts[0]
    }

    #[test]
    fn and_length_are_checked_start_and_end() {
        let ring = Ring::new(SIZE);
        let (start, end) = (BASE, ring.end());
        for (address, len) in [
            (0, 1),
            (start - 1, 2),
            (end, 1),
            (end - 1, 2),
            (end - 1, u32::MAX),
            (start, u32::MAX),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (u64::MAX - 9, 10),
            (u64::MAX - 9, 11),
        ] {
            assert_eq!(buffer_at(address, len), outside(address, len));
        }
        assert_eq!(buffer_at(end - 1, 1), Ok(1));
        let all = (end - start) as u32;
        assert_eq!(buffer_at(start, all), Ok(all.into()));
    }

    #[test]
    fn of_an_empty_buffer_may_be_anywhere() {
        for address in [0, u64::MAX, Ring::new(SIZE).end()] {
            assert_eq!(buffer_at(address, 0), Ok(0));
        }
    }

    #[test]
    fn may_cross_into_the_adjacent_region_but_not_a_hole() {
        let border = Ring::new(SIZE).area(0) + BORDER;
        assert_eq!(buffer_at(border - 1, 2), Ok(2));
        assert_eq!(buffer_at(border - 10, 100), Ok(100));

        let memory = map(&[(0x1000, 0x2000), (0x3000, 0x4000)]);
        let ring = Ring::at(memory, SIZE, 0x1000);
        ring.offer(0, buffer(0x1FFF, 0x1002, 0));
        let mut device = ring.device(Features::NONE);
        let expected = fault(&ring.memory, 0x1FFF, 0x1002);
        assert_eq!(ring.take_readable(&mut device, u32::MAX), Err(expected));
        assert_eq!(device.outstanding(), 0);
    }

    #[test]
    fn may_be_that_of_the_ring_itself() {
        let ring = Ring::new(SIZE);
        let ring_bytes = (ring.tables.0 - BASE) as u32;
        ring.offer(0, buffer(BASE, ring_bytes, WRITE));
        let mut device = ring.device(Features::EVENT_IDX);
        let (chain, slices) = ring.take_writable(&mut device, u32::MAX).unwrap().unwrap();
        fill(&slices, &vec![0xFF; ring_bytes as usize]);
        device.give_back(chain, ring_bytes);
        // Its event structure says what is reserved.
        assert!(device.publish());
        assert_eq!(ring.descriptor(0).length, ring_bytes);
        // What it did to itself is found like any other nonsense.
        assert_eq!(ring.take_readable(&mut device, 100), Ok(None));
    }
}

mod event {
    use super::*;

    #[test]
    fn may_be_anything() {
        let ring = Ring::new(SIZE);
        for features in [Features::NONE, Features::EVENT_IDX] {
            let mut device = ring.device(features);
            let mut place = Position::FIRST;
            for (step, flags) in (0u32..4000).zip((0..4).cycle()) {
                // Offsets beyond the ring, reserved flags and reserved bits among them.
                ring.set_driver_event_word(
                    step.wrapping_mul(0x9E37_79B1) << 2 & 0xFFFC_FFFF | flags << 16,
                );
                ring.describe(place.slot(), buffer(ring.area(0), 1, place.available()));
                let (chain, _) = ring.take_readable(&mut device, 1).unwrap().unwrap();
                device.give_back(chain, 0);
                let called = device.publish();
                match flags {
                    1 => assert!(!called),
                    0 | 3 => assert!(called),
                    _ => assert!(called || features == Features::EVENT_IDX),
                }
                place = place.advance(1, SIZE);
            }
        }
    }

    #[test]
    fn of_the_devices_that_is_overwritten_is_written_anew() {
        let ring = Ring::new(SIZE);
        for features in [Features::NONE, Features::EVENT_IDX] {
            let mut device = ring.device(features);
            assert_eq!(device.enable_kicks(), Ok(false));
            ring.set_device_event_word(u32::MAX);
            device.disable_kicks();
            assert_eq!(ring.device_event(), Event::Never);
        }
    }
}

mod limit {
    use super::*;

    #[test]
    fn bytes_beyond_are_not_translated_and_counted_up_to_32_bits() {
        for (limit, translated) in [(0, 0), (1, 1), (6, 6), (10, 10), (14, 14)] {
            for flag in [0, WRITE] {
                let ring = Ring::new(SIZE);
                ring.offer(0, buffer(ring.area(0), 6, flag | NEXT));
                ring.offer(1, buffer(ring.area(1), 8, flag | NEXT));
                // Far outside, and beyond the limit.
                ring.offer(2, buffer(u64::MAX, u32::MAX, flag));
                let mut device = ring.device(Features::NONE);
                let (chain, room) = match flag {
                    0 => {
                        let taken = ring.take_readable(&mut device, limit);
                        taken.unwrap().map(|(chain, bytes)| (chain, bytes.len())).unwrap()
                    }
                    _ => {
                        let taken = ring.take_writable(&mut device, limit);
                        let (chain, slices) = taken.unwrap().unwrap();
                        (chain, slices.iter().map(|slice| slice.len()).sum())
                    }
                };
                assert_eq!(chain.bytes(), u32::MAX.into());
                assert_eq!(room, translated);
            }
        }
    }

    #[test]
    fn lengths_that_add_up_to_more_than_32_bits_count_as_the_most() {
        let ring = Ring::new(32768);
        for slot in 0..32768 {
            let next = if slot < 32767 { NEXT } else { 0 };
            ring.offer(slot, buffer(ring.area(0), u32::MAX, next));
        }
        let mut device = ring.device(Features::NONE);
        let (chain, _) = ring.take_readable(&mut device, 16).unwrap().unwrap();
        assert_eq!(chain.bytes(), u32::MAX.into());
        assert_eq!(chain.descriptors(), 32768);
        assert_eq!(device.outstanding(), 32768);
    }
}
