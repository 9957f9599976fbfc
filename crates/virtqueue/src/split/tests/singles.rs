//! Chains of one buffer each, taken several at once: what is not one is left where it is, and found by
//! the next that looks closely. In a ring full of them, over its end and that of its index, and with
//! IN_ORDER.

use memory::GuestAddress;
use wire::split::Descriptor;
use wire::virtio::Features;

use super::ring::{Ring, buffer};
use crate::split::DeviceQueue;
use crate::{DeviceRing, Direction, Piece, Single, Singles, Violation};

const SIZE: u16 = 8;
const WRITE: u16 = Descriptor::WRITE;
const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;
/// Where rings begin: the ring, and the index, wrap behind the last ones.
const BASES: [u16; 5] = [0, 5, 1000, 65531, 65535];

fn direction(flag: u16) -> Direction {
    if flag == WRITE { Direction::Write } else { Direction::Read }
}

/// Takes at most `most`.
fn take(
    device: &mut DeviceQueue,
    flag: u16,
    most: usize,
) -> Result<(Vec<Single>, bool), Violation> {
    let mut singles = vec![];
    let take = |single| {
        singles.push(single);
        true
    };
    let Singles { count, is_other_next } = device.take_singles(direction(flag), most, take)?;
    assert_eq!(count, singles.len());
    Ok((singles, is_other_next))
}

/// Takes the next chain in the usual way. Returns its bytes.
fn take_next(ring: &Ring, device: &mut DeviceQueue, flag: u16) -> Result<u64, Violation> {
    let chain = match flag {
        WRITE => ring.take_writable(device, 100)?.unwrap().0,
        _ => ring.take_readable(device, 100)?.unwrap().0,
    };
    Ok(chain.bytes())
}

/// A buffer of each descriptor's own length, in its own area.
fn own(ring: &Ring, at: u16, flag: u16) -> Descriptor {
    buffer(ring.area(at), u32::from(at) + 10, flag, None)
}

/// A ring full of chains of one buffer each, last descriptor first, from `base` on.
fn full(base: u16, flag: u16) -> Ring {
    let ring = Ring::new(SIZE);
    for step in 0..SIZE {
        let head = SIZE - 1 - step;
        ring.describe(head, own(&ring, head, flag));
        ring.offer(head, base.wrapping_add(step + 1));
    }
    ring
}

/// Which descriptor a chain of a full ring is, by its place.
fn head(step: usize) -> u16 {
    SIZE - 1 - step as u16
}

#[test]
fn what_is_not_wanted_stays_in_the_ring() {
    for base in BASES {
        for refused in 0..usize::from(SIZE) {
            let ring = full(base, 0);
            let mut device = ring.device_at(Features::NONE, base);
            let mut singles = vec![];
            let wanted = |single| {
                let is_wanted = singles.len() < refused;
                singles.extend(is_wanted.then_some(single));
                is_wanted
            };
            let taken = device.take_singles(Direction::Read, SIZE.into(), wanted).unwrap();
            assert_eq!(taken, Singles { count: refused, is_other_next: true });
            assert_eq!((singles.len(), device.outstanding()), (refused, refused as u16));
            assert_eq!(device.position(), base.wrapping_add(refused as u16));
            // It and those behind it.
            let (others, is_other_next) = take(&mut device, 0, 64).unwrap();
            assert_eq!((others.len(), is_other_next), (usize::from(SIZE) - refused, false));
            let all = singles.iter().chain(&others).map(|single| single.chain.id());
            assert!(all.eq((0..usize::from(SIZE)).map(head)));
        }
    }
}

#[test]
fn a_full_ring_is_taken_at_once_or_in_parts() {
    for base in BASES {
        for flag in [0, WRITE] {
            for most in [1, 3, 7, 8, 64] {
                let ring = full(base, flag);
                let mut device = ring.device_at(Features::NONE, base);
                let mut taken = Vec::new();
                loop {
                    let (singles, is_other_next) = take(&mut device, flag, most).unwrap();
                    assert!(!is_other_next);
                    if singles.is_empty() {
                        break;
                    }
                    taken.extend(singles);
                }
                assert_eq!(taken.len(), SIZE.into(), "each once");
                for (step, single) in taken.iter().enumerate() {
                    let own = own(&ring, head(step), flag);
                    let buffer = Piece { address: GuestAddress(own.address), len: own.length };
                    assert_eq!((single.chain.id(), single.buffer()), (head(step), buffer));
                    assert_eq!(single.chain.bytes(), own.length.into());
                    assert_eq!(single.chain.descriptors(), 1);
                }
                assert_eq!(device.outstanding(), SIZE);
                assert_eq!(device.position(), base.wrapping_add(SIZE));

                // All of them back at once, and the ring has come round.
                let written = |single: &Single| flag.min(1) as u32 * single.buffer().len;
                let chains = taken.iter().map(|single| (single.chain, written(single)));
                device.give_all_back(chains);
                assert_eq!(device.outstanding(), 0);
                assert_eq!(ring.layout.used_index(), 0, "not published yet");
                let _ = device.publish();
                assert_eq!(ring.layout.used_index(), base.wrapping_add(SIZE));
                for (step, single) in taken.iter().enumerate() {
                    let slot = base.wrapping_add(step as u16) & (SIZE - 1);
                    assert_eq!(ring.used_entry(slot), (head(step).into(), written(single)));
                }
            }
        }
    }
}

#[test]
fn one_is_taken_at_a_time_and_the_last_is_known_as_such() {
    for base in BASES {
        for flag in [0, WRITE] {
            let ring = full(base, flag);
            let mut device = ring.device_at(Features::NONE, base);
            assert!(!device.has_one(), "nothing is known yet");
            for step in 0..usize::from(SIZE) {
                device.available().unwrap();
                assert_eq!(device.has_one(), step + 1 == SIZE.into());
                assert!(device.take_single(direction(flag ^ WRITE), Some).is_none());
                assert!(device.take_single(direction(flag), |_| None::<()>).is_none());
                assert_eq!(device.outstanding(), step as u16, "it stays there");
                let Single { chain, .. } = device.take_single(direction(flag), Some).unwrap();
                assert_eq!(chain.id(), head(step));
            }
            assert_eq!((device.available(), device.has_one()), (Ok(0), false));
            assert!(device.take_single(direction(flag), Some).is_none());
            // A rule that is broken is found by the others.
            ring.offer(0, base.wrapping_add(2 * SIZE));
            assert!(device.take_single(direction(flag), Some).is_none());
            take(&mut device, flag, 1).unwrap_err();
        }
    }
}

#[test]
fn one_that_is_known_is_not_the_only_one_when_there_are_more() {
    let ring = Ring::new(SIZE);
    let mut device = ring.device(Features::NONE);
    for head in [0, 1] {
        ring.describe(head, own(&ring, head, 0));
        ring.offer(head, head + 1);
        assert_eq!(device.available(), Ok(1), "no look at those behind it");
        assert_eq!(device.has_one(), head == 0);
    }
}

#[test]
fn none_are_taken_where_none_are_asked_for_or_there() {
    let ring = full(0, 0);
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 0).unwrap();
    assert!(singles.is_empty() && !is_other_next);
    assert_eq!(device.outstanding(), 0);
    let empty = Ring::new(SIZE);
    let mut device = empty.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 8).unwrap();
    assert!(singles.is_empty() && !is_other_next);
}

/// Descriptors and entries that are no chain of one buffer, and what the usual way says of each.
fn others(ring: &Ring, flag: u16) -> Vec<(Option<Descriptor>, u16, Result<u64, Violation>)> {
    let bad_head = |head| (None, head, Err(Violation::Head { head, size: SIZE }));
    let at = ring.area(2);
    let inner = own(ring, 3, flag);
    ring.write_table(at, &[inner]);
    let is = |descriptor, verdict| (Some(descriptor), 0, verdict);
    let turned = match flag {
        WRITE => Err(Violation::ReadableReceiveBuffer),
        // Nothing in it is to be read.
        _ => Ok(0),
    };
    vec![
        bad_head(SIZE),
        bad_head(SIZE + 1),
        bad_head(32768),
        bad_head(65535),
        is(own(ring, 0, WRITE ^ flag), turned),
        // On to one that is a good chain by itself.
        is(buffer(at, 6, flag, Some(1)), Ok(6 + 11)),
        is(buffer(at, 6, flag | NEXT, Some(SIZE)), Err(Violation::Next { next: SIZE, size: 8 })),
        is(buffer(at, 6, flag, Some(0)), Err(Violation::ChainTooLong { size: SIZE })),
        is(buffer(at, 16, INDIRECT, None), Ok(inner.length.into())),
        is(buffer(at, 16, INDIRECT | WRITE, None), Ok(inner.length.into())),
        is(buffer(at, 16, INDIRECT, Some(1)), Err(Violation::IndirectMisplaced)),
    ]
}

#[test]
fn any_other_chain_is_stopped_in_front_of() {
    for base in BASES {
        for flag in [0, WRITE] {
            for before in [0, 1, 4, 7u16] {
                let ring = full(base, flag);
                for (descriptor, entry, verdict) in others(&ring, flag) {
                    if let Some(descriptor) = descriptor {
                        ring.describe(0, descriptor);
                    }
                    // Behind so many good ones, and in front of the rest; 1 stays out of it.
                    (0..SIZE).for_each(|step| {
                        let head = if step == before { entry } else { 2 + step % (SIZE - 2) };
                        ring.set_available_entry(base.wrapping_add(step) & (SIZE - 1), head);
                    });
                    ring.describe(2, own(&ring, 2, flag));
                    let mut device = ring.device_at(Features::INDIRECT_DESC, base);
                    let what = format!("{descriptor:?} {entry} behind {before}");
                    for count in [before, 0] {
                        let (singles, is_other_next) = take(&mut device, flag, 64).unwrap();
                        assert_eq!(singles.len(), count.into(), "{what}");
                        assert!(is_other_next, "{what}");
                        assert_eq!(device.outstanding(), before);
                        assert_eq!(device.position(), base.wrapping_add(before));
                    }
                    // Not asked about what is behind.
                    let (singles, is_other_next) = take(&mut device, flag, 0).unwrap();
                    assert!(singles.is_empty() && !is_other_next, "{what}");
                    assert_eq!(take_next(&ring, &mut device, flag), verdict, "{what}");
                    let taken = before + u16::from(verdict.is_ok());
                    assert_eq!(device.position(), base.wrapping_add(taken));
                    if verdict.is_ok() {
                        let (rest, is_other_next) = take(&mut device, flag, 64).unwrap();
                        assert_eq!(rest.len(), usize::from(SIZE - 1 - before), "{what}");
                        assert!(!is_other_next);
                    }
                }
            }
        }
    }
}

#[test]
fn a_table_that_was_not_negotiated_is_found_by_the_next() {
    let ring = full(0, 0);
    ring.describe(head(2), buffer(ring.area(1), 16, INDIRECT, None));
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 64).unwrap();
    assert_eq!((singles.len(), is_other_next), (2, true));
    assert_eq!(take_next(&ring, &mut device, 0), Err(Violation::IndirectNotNegotiated));
}

/// The address is looked at by who translates it.
#[test]
fn a_buffer_outside_of_the_memory_is_taken_and_can_be_put_back() {
    let ring = full(0, 0);
    ring.describe(head(1), buffer(u64::MAX, u32::MAX, 0, None));
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 64).unwrap();
    assert_eq!((singles.len(), is_other_next), (SIZE.into(), false));
    let buffer = Piece { address: GuestAddress(u64::MAX), len: u32::MAX };
    assert_eq!(singles[1].buffer(), buffer);
    device.untake(singles.iter().skip(1).map(|single| &single.chain));
    assert_eq!((device.position(), device.outstanding()), (1, 1));
    assert!(matches!(take_next(&ring, &mut device, 0), Err(Violation::Memory(_))));
}

#[test]
fn an_index_that_jumps_is_a_violation_once_it_is_read() {
    for base in BASES {
        for jump in [SIZE + 1, 32768, 65535] {
            let ring = full(base, WRITE);
            ring.set_available_index(base.wrapping_add(5));
            let mut device = ring.device_at(Features::NONE, base);
            let (first, _) = take(&mut device, WRITE, 2).unwrap();
            let found = base.wrapping_add(jump);
            ring.set_available_index(found);
            // Three more are known, and good.
            let (more, is_other_next) = take(&mut device, WRITE, 3).unwrap();
            assert_eq!((first.len(), more.len(), is_other_next), (2, 3, false));
            let taken = base.wrapping_add(5);
            let expected = Violation::AvailableIndex { found, taken, size: SIZE };
            for _ in 0..2 {
                assert_eq!(take(&mut device, WRITE, 64).err(), Some(expected));
            }
            assert_eq!(take_next(&ring, &mut device, WRITE), Err(expected));
            assert_eq!((device.position(), device.outstanding()), (taken, 5));
            // What was taken can be given back, and with a good index it goes on.
            let singles = [&first[..], &more].concat();
            device.give_all_back(singles.iter().map(|single| (single.chain, 1)));
            ring.set_available_index(base.wrapping_add(SIZE));
            let (rest, _) = take(&mut device, WRITE, 64).unwrap();
            assert_eq!(rest.len(), 3);
        }
    }
}

#[test]
fn one_used_entry_stands_for_all_that_are_only_read_with_in_order() {
    const NOTHING: (u32, u32) = (0x1234_5678, 0x9ABC_DEF0);
    for base in BASES {
        for flag in [0, WRITE] {
            let ring = full(base, flag);
            (0..SIZE).for_each(|slot| ring.set_used_entry(slot, NOTHING.0, NOTHING.1));
            let mut device = ring.device_at(Features::IN_ORDER, base);
            let (singles, _) = take(&mut device, flag, 64).unwrap();
            let written = u32::from(flag == WRITE);
            let entry = |step: usize| ring.used_entry(base.wrapping_add(step as u16) & (SIZE - 1));
            let is = |step: usize| (head(step).into(), written);
            // By one, three at once, one again, and the rest: in two publications.
            for (from, several, to) in [(0, 1..4, 5), (5, 6..8, 8)] {
                device.give_back(singles[from].chain, written);
                let chains = singles[several.clone()].iter();
                device.give_all_back(chains.map(|single| (single.chain, written)));
                if several.end < to {
                    device.give_back(singles[several.end].chain, written);
                }
                let _ = device.publish();
                assert_eq!(ring.layout.used_index(), base.wrapping_add(to as u16));
                if flag == WRITE {
                    (from..to).for_each(|step| assert_eq!(entry(step), is(step)));
                } else {
                    assert_eq!(entry(from), is(to - 1), "the last one's id");
                    (from + 1..to).for_each(|step| assert_eq!(entry(step), NOTHING));
                }
            }
            assert_eq!(device.outstanding(), 0);
        }
    }
}

/// What is given back in a loop goes behind what was given back alone, and the other way round.
#[test]
fn several_and_single_ones_given_back_make_one_row() {
    for base in BASES {
        let ring = full(base, WRITE);
        let mut device = ring.device_at(Features::NONE, base);
        let (singles, _) = take(&mut device, WRITE, 64).unwrap();
        let order = [3, 0, 7, 6, 1, 2, 5, 4];
        let given = |step: usize| (singles[order[step]].chain, 50 + step as u32);
        let (chain, written) = given(0);
        device.give_back(chain, written);
        device.give_all_back((1..4).map(given));
        device.give_all_back(std::iter::empty());
        let (chain, written) = given(4);
        device.give_back(chain, written);
        let _ = device.publish();
        device.give_all_back((5..8).map(given));
        let _ = device.publish();
        for step in 0..8 {
            let slot = base.wrapping_add(step as u16) & (SIZE - 1);
            let (chain, written) = given(step);
            assert_eq!(ring.used_entry(slot), (chain.id().into(), written), "{step}");
        }
        assert_eq!(ring.layout.used_index(), base.wrapping_add(SIZE));
    }
}
