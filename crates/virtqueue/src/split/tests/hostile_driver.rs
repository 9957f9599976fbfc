//! Rings that break the rules: each yields exactly its violation, and nothing is taken. Beside
//! them, rings that only look as if they did.

use memory::{GuestAddress, GuestMemory};
use wire::split::Descriptor;
use wire::virtio::Features;

use super::ring::{Ring, buffer};
use crate::split::DeviceQueue;
use crate::tests::bed::{AREA, BASE, BORDER, fill, map};
use crate::{DeviceRing, Piece, Violation};

const SIZE: u16 = 8;
const WRITE: u16 = Descriptor::WRITE;
const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;

/// Takes the chain that `build` leaves at head 0, in every flavour in which it means the same.
/// `build` gets the flag that its buffers are to carry: WRITE on a receive ring.
fn judge(build: impl Fn(&Ring, u16)) -> Result<u64, Violation> {
    let mut verdicts = Vec::new();
    for events in [Features::NONE, Features::EVENT_IDX] {
        for flag in [0, WRITE] {
            let ring = Ring::new(SIZE);
            build(&ring, flag);
            ring.offer(0, 1);
            let mut device = ring.device(events | Features::INDIRECT_DESC);
            let mut take = || match flag {
                0 => {
                    let taken = ring.take_readable(&mut device, u32::MAX)?.unwrap();
                    assert_eq!(taken.0.bytes(), taken.1.len() as u64);
                    Ok(taken.0.bytes())
                }
                _ => {
                    let taken = ring.take_writable(&mut device, u32::MAX)?.unwrap();
                    let room = taken.1.iter().map(|slice| slice.len() as u64).sum();
                    assert_eq!(taken.0.bytes(), room);
                    Ok(room)
                }
            };
            let verdict = take();
            if verdict.is_err() {
                assert_eq!(take(), verdict, "asked again");
                assert_eq!((device.position(), device.outstanding()), (0, 0));
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

/// A chain of one descriptor that refers to `table`, which is written to the third buffer area.
fn judge_table(table: impl Fn(&Ring, u16) -> Vec<Descriptor>) -> Result<u64, Violation> {
    judge(|ring, flag| {
        let at = ring.area(2);
        let table = table(ring, flag);
        ring.write_table(at, &table);
        ring.describe(0, refer(at, 16 * table.len() as u32));
    })
}

fn refer(address: u64, length: u32) -> Descriptor {
    buffer(address, length, INDIRECT, None)
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

mod available_ring {
    use super::*;

    /// A ring with all its buffers posted, up to an index that the driver only claims.
    fn claim(base: u16, index: u16) -> (Ring, DeviceQueue) {
        let ring = Ring::new(SIZE);
        for at in 0..SIZE {
            ring.describe(at, buffer(ring.area(at), 10, 0, None));
            ring.set_available_entry(at, at);
        }
        ring.set_available_index(index);
        let device = ring.device_at(Features::NONE, base);
        (ring, device)
    }

    fn refused(found: u16, taken: u16) -> Violation {
        Violation::AvailableIndex { found, taken, size: SIZE }
    }

    #[test]
    fn index_may_be_ahead_by_the_size_and_no_more() {
        for base in [0u16, 100, 65530, 65535] {
            let index = base.wrapping_add(SIZE);
            let (_ring, mut device) = claim(base, index);
            assert_eq!(device.available(), Ok(SIZE));

            for ahead in [SIZE + 1, 2 * SIZE, 32768, 65535] {
                let index = base.wrapping_add(ahead);
                let (ring, mut device) = claim(base, index);
                let expected = refused(index, base);
                assert_eq!(device.available(), Err(expected));
                assert_eq!(device.enable_kicks(), Err(expected));
                assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
                assert_eq!(device.outstanding(), 0);
            }
        }
    }

    #[test]
    fn chains_that_are_held_count_against_the_size() {
        let (ring, mut device) = claim(65534, 65534u16.wrapping_add(3));
        for _ in 0..3 {
            let _held = ring.take_readable(&mut device, 100).unwrap().unwrap();
        }
        // Six more would be fine for a ring of eight, were three not held.
        ring.set_available_index(65534u16.wrapping_add(9));
        assert_eq!(device.available(), Err(refused(7, 1)));
        ring.set_available_index(65534u16.wrapping_add(8));
        assert_eq!(device.available(), Ok(5));
        assert_eq!(device.outstanding(), 3);
    }

    #[test]
    fn index_may_not_go_backwards() {
        let (ring, mut device) = claim(5, 4);
        assert_eq!(device.available(), Err(refused(4, 5)));

        // Behind what is held.
        let (held, mut holder) = claim(0, 3);
        for _ in 0..3 {
            let _held = held.take_readable(&mut holder, 100).unwrap().unwrap();
        }
        held.set_available_index(2);
        assert_eq!(holder.available(), Err(refused(2, 3)));
        assert_eq!(holder.outstanding(), 3);

        // Behind what was seen, though not behind what was taken.
        ring.set_available_index(5 + 4);
        assert_eq!(device.available(), Ok(4));
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        ring.set_available_index(5 + 3);
        assert_eq!(device.enable_kicks(), Err(refused(8, 6)));
        device.give_back(chain, 0);
        assert_eq!(device.enable_kicks(), Err(refused(8, 6)));
    }

    #[test]
    fn head_is_a_descriptor_of_the_table() {
        for head in [SIZE, SIZE + 1, 32768, 65535] {
            let (ring, mut device) = claim(0, 1);
            ring.set_available_entry(0, head);
            let expected = Violation::Head { head, size: SIZE };
            assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
            let written = ring.take_writable(&mut device, 100);
            assert_eq!(written.err(), Some(expected));
            assert_eq!((device.position(), device.outstanding()), (0, 0));
        }
    }

    #[test]
    fn the_same_buffer_twice_is_the_drivers_own_affair() {
        let (ring, mut device) = claim(0, 2);
        ring.set_available_entry(1, 0);
        for _ in 0..2 {
            let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
            assert_eq!(chain.id(), 0);
            device.give_back(chain, 0);
        }
        assert!(device.publish());
        assert_eq!([0, 1].map(|slot| ring.used_entry(slot)), [(0, 0); 2]);
    }

    #[test]
    fn a_chain_is_fetched_afresh_to_note_where_it_is() {
        let (ring, mut device) = claim(0, 1);
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        let pieces = || {
            let mut pieces = Vec::new();
            let translator = &mut ring.memory.translator();
            device.pieces(chain, translator, &mut pieces).map(|()| pieces)
        };
        let piece = |address, len| Piece { address: GuestAddress(address), len };
        assert_eq!(pieces(), Ok(vec![piece(ring.area(0), 10)]));
        ring.describe(0, buffer(u64::MAX, 7, 0, None));
        assert_eq!(pieces(), Ok(vec![piece(u64::MAX, 7)]), "not checked, for it may be too early");
        ring.describe(0, buffer(1, 2, WRITE, None));
        assert_eq!(pieces(), Ok(vec![]));
    }

    /// A chain that was short when it was paid for costs no more when it is fetched again.
    #[test]
    fn a_chain_that_has_grown_is_not_followed_to_its_end() {
        let ring = Ring::new(SIZE);
        ring.describe(0, buffer(ring.area(0), 10, 0, Some(1)));
        ring.describe(1, buffer(ring.area(1), 20, 0, None));
        ring.offer(0, 1);
        let mut device = ring.device(Features::INDIRECT_DESC);
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        let pieces = || {
            let mut pieces = Vec::new();
            let verdict = device.pieces(chain, &mut ring.memory.translator(), &mut pieces);
            (verdict, pieces.len())
        };
        assert_eq!(pieces(), (Ok(()), 2));
        ring.describe(0, buffer(ring.area(0), 10, WRITE, Some(1)));
        assert_eq!(pieces(), (Err(Violation::ReadableAfterWritable), 0));
        let grown = |pieces| (Err(Violation::Grown { id: 0 }), pieces);
        // Around in a circle; by a third one, with nothing in it; and into a table.
        ring.describe(0, buffer(ring.area(0), 10, 0, Some(0)));
        assert_eq!(pieces(), grown(2));
        ring.describe(0, buffer(ring.area(0), 10, 0, Some(1)));
        ring.describe(1, buffer(0, 0, 0, Some(2)));
        ring.describe(2, buffer(1, 0, WRITE, None));
        assert_eq!(pieces(), grown(1));
        ring.describe(1, refer(ring.area(2), 32));
        ring.write_table(ring.area(2), &[buffer(0, 1, 0, Some(1)), buffer(0, 1, 0, None)]);
        assert_eq!(pieces(), grown(2));
    }
}

mod chain {
    use super::*;

    /// Descriptors of 10 bytes, each chained to what `next` says.
    fn linked(next: &[Option<u16>]) -> Result<u64, Violation> {
        judge(|ring, flag| {
            for (at, next) in (0..).zip(next) {
                ring.describe(at, buffer(ring.area(at), 10, flag, *next));
            }
        })
    }

    #[test]
    fn next_is_in_the_table() {
        for next in [SIZE, SIZE + 1, 65535] {
            let expected = Violation::Next { next, size: SIZE.into() };
            assert_eq!(linked(&[Some(next)]), Err(expected));
            assert_eq!(linked(&[Some(1), Some(next)]), Err(expected));
        }
    }

    #[test]
    fn loops_end() {
        let too_long = Err(Violation::ChainTooLong { size: SIZE });
        assert_eq!(linked(&[Some(0)]), too_long);
        assert_eq!(linked(&[Some(1), Some(0)]), too_long);
        assert_eq!(linked(&[Some(1), Some(1)]), too_long);
        assert_eq!(linked(&[Some(1), Some(2), Some(0)]), too_long);
        let all: Vec<_> = (1..=SIZE).map(|next| Some(next % SIZE)).collect();
        assert_eq!(linked(&all), too_long);
    }

    #[test]
    fn may_be_as_long_as_the_ring() {
        let all: Vec<_> = (1..=SIZE).map(|n| (n < SIZE).then_some(n)).collect();
        assert_eq!(linked(&all), Ok(80));
    }

    #[test]
    fn may_not_be_longer_than_the_ring_where_it_ends_in_a_table() {
        let with_table = |direct: u16, entries: u16| {
            judge(|ring, flag| {
                for at in 0..direct {
                    ring.describe(at, buffer(ring.area(at), 10, flag, Some(at + 1)));
                }
                let table: Vec<_> = (1..=entries)
                    .map(|n| buffer(ring.area(0), 1, flag, (n < entries).then_some(n)))
                    .collect();
                ring.write_table(ring.area(7), &table);
                ring.describe(direct, refer(ring.area(7), 16 * u32::from(entries)));
            })
        };
        let too_long = Err(Violation::ChainTooLong { size: SIZE });
        assert_eq!(with_table(0, 8), Ok(8));
        assert_eq!(with_table(1, 7), Ok(17));
        assert_eq!(with_table(7, 1), Ok(71));
        assert_eq!(with_table(1, 8), too_long);
        assert_eq!(with_table(7, 2), too_long);
    }

    #[test]
    fn readable_buffers_come_first() {
        let transmit = |build: &dyn Fn(&Ring)| {
            let ring = Ring::new(SIZE);
            build(&ring);
            ring.offer(0, 1);
            let mut device = ring.device(Features::INDIRECT_DESC);
            let taken = ring.take_readable(&mut device, 1000);
            let receive = ring.take_writable(&mut ring.device(Features::INDIRECT_DESC), 1000);
            assert_eq!(receive.err(), Some(Violation::ReadableReceiveBuffer));
            taken.map(|taken| taken.unwrap().0.bytes())
        };
        let disordered = Err(Violation::ReadableAfterWritable);

        assert_eq!(
            transmit(&|ring| {
                ring.describe(0, buffer(ring.area(0), 10, 0, Some(1)));
                ring.describe(1, buffer(ring.area(1), 20, WRITE, None));
            }),
            Ok(10),
            "writable after readable is passed over"
        );
        assert_eq!(
            transmit(&|ring| {
                ring.describe(0, buffer(ring.area(0), 10, WRITE, Some(1)));
                ring.describe(1, buffer(ring.area(1), 20, 0, None));
            }),
            disordered
        );
        assert_eq!(
            transmit(&|ring| {
                ring.describe(0, buffer(ring.area(0), 0, WRITE, Some(1)));
                ring.describe(1, buffer(ring.area(1), 0, 0, None));
            }),
            disordered,
            "empty buffers have an order too"
        );
        assert_eq!(
            transmit(&|ring| {
                ring.describe(0, buffer(ring.area(0), 10, WRITE, Some(1)));
                ring.describe(1, refer(ring.area(2), 16));
                ring.write_table(ring.area(2), &[buffer(ring.area(1), 1, 0, None)]);
            }),
            disordered,
            "on either side of a table's border"
        );
    }

    #[test]
    fn of_writable_buffers_only_has_nothing_to_read() {
        let ring = Ring::new(SIZE);
        // Not even the address is looked at.
        ring.describe(0, buffer(u64::MAX, 10, WRITE, None));
        ring.offer(0, 1);
        let mut device = ring.device(Features::NONE);
        let (chain, bytes) = ring.take_readable(&mut device, 1000).unwrap().unwrap();
        assert_eq!((chain.bytes(), bytes.len()), (0, 0));
    }
}

mod table {
    use super::*;

    #[test]
    fn has_a_length_that_makes_sense() {
        let table_of = |len| {
            judge(|ring, flag| {
                // Zeros otherwise: every entry is an empty buffer, the last of its chain.
                ring.write_table(ring.area(2), &[buffer(0, 0, flag, None)]);
                ring.describe(0, refer(ring.area(2), len));
            })
        };
        for len in [0, 1, 8, 15, 17, 31, 16 * 8 + 1, 16 * 9, u32::MAX, 0xFFFF_FFF0] {
            let expected = Violation::IndirectLength { len, size: SIZE };
            assert_eq!(table_of(len), Err(expected), "{len}");
        }
        assert_eq!(table_of(16), Ok(0));
        assert_eq!(table_of(16 * 8), Ok(0));
    }

    #[test]
    fn is_in_the_memory() {
        let end = Ring::new(SIZE).end();
        let table_at = |address, len| judge(|ring, _| ring.describe(0, refer(address, len)));
        assert_eq!(table_at(0, 16), outside(0, 16));
        assert_eq!(table_at(end, 16), outside(end, 16));
        assert_eq!(table_at(end - 15, 16), outside(end - 15, 16));
        assert_eq!(table_at(u64::MAX, 16), outside(u64::MAX, 16));
        assert_eq!(table_at(u64::MAX - 15, 128), outside(u64::MAX - 15, 16));
    }

    #[test]
    fn does_not_wrap_around_the_address_space() {
        let top = u64::MAX - 0xFFF;
        let ring = Ring::at(map(&[(0, 0x1000), (top, u64::MAX)]), SIZE, 0);
        // Its sixth entry would be a descriptor of the ring, at 0x30, were it not outside.
        let at = u64::MAX - 0x1F;
        ring.describe(0, refer(at, 16 * u32::from(SIZE)));
        ring.describe(3, buffer(0, 1, 0, None));
        ring.write_table(at, &[buffer(0, 1, 0, Some(5))]);
        ring.offer(0, 1);
        let mut device = ring.device(Features::INDIRECT_DESC);
        let expected = fault(&ring.memory, u64::MAX, 16);
        assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
    }

    #[test]
    fn may_end_inside_of_the_memory_where_its_chain_does() {
        // A second entry that is outside is not looked at when the first one ends the chain.
        let end = Ring::new(SIZE).end();
        let table = |next| {
            judge(|ring, flag| {
                ring.write_table(end - 16, &[buffer(ring.area(1), 3, flag, next)]);
                ring.describe(0, refer(end - 16, 32));
            })
        };
        assert_eq!(table(None), Ok(3));
        assert_eq!(table(Some(1)), outside(end, 16));
    }

    #[test]
    fn may_cross_into_another_region_at_any_byte() {
        for shift in 0..=16 {
            let verdict = judge(|ring, flag| {
                let at = ring.area(0) + BORDER - shift;
                let table =
                    [buffer(ring.area(1), 5, flag, Some(1)), buffer(ring.area(2), 6, flag, None)];
                ring.write_table(at, &table);
                ring.describe(0, refer(at, 32));
            });
            assert_eq!(verdict, Ok(11), "{shift} bytes before the border");
        }
    }

    #[test]
    fn holds_no_further_table() {
        let misplaced = Err(Violation::IndirectMisplaced);
        assert_eq!(judge_table(|ring, _| vec![refer(ring.area(3), 16)]), misplaced);
        assert_eq!(
            judge_table(|ring, flag| vec![
                buffer(ring.area(3), 1, flag, Some(1)),
                refer(ring.area(2), 32)
            ]),
            misplaced
        );
    }

    #[test]
    fn ends_the_chain_of_the_ring() {
        let verdict = judge(|ring, flag| {
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 1, flag, None)]);
            ring.describe(0, buffer(ring.area(2), 16, INDIRECT, Some(1)));
            ring.describe(1, buffer(ring.area(4), 1, flag, None));
        });
        assert_eq!(verdict, Err(Violation::IndirectMisplaced));
    }

    #[test]
    fn write_on_the_referring_descriptor_means_nothing() {
        let verdict = judge(|ring, flag| {
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 9, flag, None)]);
            ring.describe(0, buffer(ring.area(2), 16, INDIRECT | WRITE, None));
        });
        assert_eq!(verdict, Ok(9));
    }

    #[test]
    fn next_is_in_the_table() {
        for next in [2, 3, SIZE, 65535] {
            let expected = Violation::Next { next, size: 2 };
            let verdict = judge_table(|ring, flag| {
                vec![
                    buffer(ring.area(3), 1, flag, Some(1)),
                    buffer(ring.area(3), 1, flag, Some(next)),
                ]
            });
            assert_eq!(verdict, Err(expected));
        }
    }

    #[test]
    fn loops_end() {
        for next in [0, 1] {
            let verdict = judge_table(|ring, flag| {
                vec![
                    buffer(ring.area(3), 1, flag, Some(1)),
                    buffer(ring.area(3), 1, flag, Some(next)),
                ]
            });
            assert_eq!(verdict, Err(Violation::ChainTooLong { size: SIZE }));
        }
    }

    #[test]
    fn order_of_its_entries_is_by_next() {
        let ring = Ring::new(SIZE);
        ring.write(ring.area(3), b"abc");
        let at = ring.area(2);
        ring.write_table(
            at,
            &[
                buffer(ring.area(3), 1, 0, Some(2)),
                buffer(ring.area(3) + 2, 1, 0, None),
                buffer(ring.area(3) + 1, 1, 0, Some(1)),
            ],
        );
        ring.describe(0, refer(at, 48));
        ring.offer(0, 1);
        let mut device = ring.device(Features::INDIRECT_DESC);
        let (_, bytes) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        assert_eq!(bytes, b"abc");
    }

    #[test]
    fn needs_the_feature() {
        for features in [Features::NONE, Features::EVENT_IDX] {
            let ring = Ring::new(SIZE);
            ring.write_table(ring.area(2), &[buffer(ring.area(3), 1, 0, None)]);
            ring.describe(0, refer(ring.area(2), 16));
            ring.offer(0, 1);
            let mut device = ring.device(features);
            let expected = Violation::IndirectNotNegotiated;
            assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
            let written = ring.take_writable(&mut device, 100);
            assert_eq!(written.err(), Some(expected));
            assert_eq!((device.position(), device.outstanding()), (0, 0));
        }
    }
}

mod address {
    use super::*;

    /// The same buffer as the chain's only one, as its second one, and in a table.
    fn buffer_at(address: u64, len: u32) -> Result<u64, Violation> {
        let verdicts = [
            judge(|ring, flag| ring.describe(0, buffer(address, len, flag, None))),
            judge(|ring, flag| {
                ring.describe(0, buffer(ring.area(1), 0, flag | NEXT, Some(5)));
                ring.describe(5, buffer(address, len, flag, None));
            }),
            judge_table(|_, flag| vec![buffer(address, len, flag, None)]),
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
            (start - 1, 1),
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
        assert_eq!(buffer_at(start, 1), Ok(1));
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
    fn may_cross_into_the_adjacent_region() {
        let border = Ring::new(SIZE).area(0) + BORDER;
        assert_eq!(buffer_at(border - 1, 2), Ok(2));
        assert_eq!(buffer_at(border - 10, 100), Ok(100));
    }

    #[test]
    fn may_not_cross_a_hole() {
        let memory = map(&[(0x1000, 0x2000), (0x3000, 0x4000)]);
        let ring = Ring::at(memory, SIZE, 0x1000);
        ring.describe(0, buffer(0x1FFF, 0x1002, 0, None));
        ring.offer(0, 1);
        let mut device = ring.device(Features::NONE);
        let expected = fault(&ring.memory, 0x1FFF, 0x1002);
        assert_eq!(ring.take_readable(&mut device, u32::MAX), Err(expected));
        assert_eq!(device.outstanding(), 0);
    }

    #[test]
    fn may_be_that_of_the_ring_itself() {
        let ring = Ring::new(SIZE);
        let start = BASE;
        let ring_bytes = (ring.tables.0 - start) as u32;
        ring.describe(0, buffer(start, ring_bytes, WRITE, None));
        ring.offer(0, 1);
        let mut device = ring.device(Features::NONE);
        let (chain, slices) = ring.take_writable(&mut device, u32::MAX).unwrap().unwrap();
        fill(&slices, &vec![0xFF; ring_bytes as usize]);
        device.give_back(chain, ring_bytes);
        let _ = device.publish();
        assert_eq!(ring.used_entry(0), (0, ring_bytes));
        // What it did to itself is found like any other nonsense.
        let expected = Violation::AvailableIndex { found: 0xFFFF, taken: 1, size: SIZE };
        assert_eq!(ring.take_readable(&mut device, 100), Err(expected));
    }
}

mod limit {
    use super::*;

    #[test]
    fn descriptors_are_counted_as_what_they_cost() {
        // Two direct ones, and three in a table: the one that refers to it is not counted, as it
        // is not for the longest chain.
        let ring = Ring::new(SIZE);
        ring.describe(0, buffer(0, 0, 0, Some(1)));
        ring.describe(1, buffer(ring.area(0), 5, 0, Some(2)));
        ring.describe(2, refer(ring.area(2), 48));
        let table = [
            buffer(0, 0, 0, Some(1)),
            buffer(ring.area(0), 5, WRITE, Some(2)),
            buffer(0, 0, WRITE, None),
        ];
        ring.write_table(ring.area(2), &table);
        ring.offer(0, 1);
        let mut device = ring.device(Features::INDIRECT_DESC);
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        assert_eq!((chain.descriptors(), chain.slots(), chain.bytes()), (5, 3, 5));
    }

    #[test]
    fn bytes_beyond_are_not_translated_and_counted_up_to_32_bits() {
        for (limit, translated) in [(0, 0), (1, 1), (6, 6), (10, 10), (14, 14)] {
            for flag in [0, WRITE] {
                let ring = Ring::new(SIZE);
                ring.describe(0, buffer(ring.area(0), 6, flag, Some(1)));
                ring.describe(1, buffer(ring.area(1), 8, flag, Some(2)));
                // Far outside, and beyond the limit.
                ring.describe(2, buffer(u64::MAX, u32::MAX, flag, None));
                ring.offer(0, 1);
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
    fn bytes_within_are_checked() {
        let ring = Ring::new(SIZE);
        ring.describe(0, buffer(ring.area(0), 6, 0, Some(1)));
        ring.describe(1, buffer(u64::MAX, u32::MAX, 0, None));
        ring.offer(0, 1);
        let mut device = ring.device(Features::NONE);
        let expected = fault(&ring.memory, u64::MAX, 1);
        assert_eq!(ring.take_readable(&mut device, 7), Err(expected));
        assert_eq!(device.outstanding(), 0);
    }

    #[test]
    fn lengths_that_add_up_to_more_than_32_bits_count_as_the_most() {
        let ring = Ring::new(SIZE);
        for at in 0..SIZE {
            let next = (at + 1 < SIZE).then_some(at + 1);
            ring.describe(at, buffer(ring.area(0), u32::MAX, 0, next));
        }
        ring.offer(0, 1);
        let mut device = ring.device(Features::NONE);
        let (chain, bytes) = ring.take_readable(&mut device, AREA as u32).unwrap().unwrap();
        assert_eq!(chain.bytes(), u32::MAX.into());
        assert_eq!(bytes.len(), AREA as usize);
    }
}
