//! Chains of one buffer each, taken several at once: what is not one is left where it is, and found by
//! the next that looks closely. In a ring full of them, over its end, and with IN_ORDER.

use memory::GuestAddress;
use wire::virtio::Features;

use super::ring::{Ring, buffer, places};
use crate::packed::{Descriptor, DeviceQueue, Position};
use crate::{DeviceRing, Direction, Piece, Single, Singles, Violation};

const SIZE: u16 = 7;
const WRITE: u16 = Descriptor::WRITE;
const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;

fn direction(flag: u16) -> Direction {
    if flag == WRITE { Direction::Write } else { Direction::Read }
}

/// Takes at most `most`.
fn take(device: &mut DeviceQueue, flag: u16, most: usize) -> (Vec<Single>, bool) {
    let mut singles = vec![];
    let take = |single| {
        singles.push(single);
        true
    };
    let taken = device.take_singles(direction(flag), most, take);
    let Singles { count, is_other_next } = taken.unwrap();
    assert_eq!(count, singles.len());
    (singles, is_other_next)
}

/// Takes all there are, to be read.
fn take_all(device: &mut DeviceQueue) -> (Vec<Single>, bool) {
    take(device, 0, 64)
}

/// Takes the next chain in the usual way. Returns its bytes.
fn take_next(ring: &Ring, device: &mut DeviceQueue, flag: u16) -> Result<u64, Violation> {
    let chain = match flag {
        WRITE => ring.take_writable(device, 100)?.unwrap().0,
        _ => ring.take_readable(device, 100)?.unwrap().0,
    };
    Ok(chain.bytes())
}

fn position(available: Position, used: Position) -> u32 {
    u32::from(used.bits()) << 16 | u32::from(available.bits())
}

/// A chain of one buffer, as the driver makes it available at this place.
fn own(ring: &Ring, place: Position, flag: u16) -> Descriptor {
    let slot = place.slot();
    let flags = place.available() | flag;
    Descriptor { id: 100 + slot, ..buffer(ring.area(slot), u32::from(slot) + 10, flags) }
}

fn offer(ring: &Ring, place: Position, flag: u16) {
    ring.describe(place.slot(), own(ring, place, flag));
}

/// A ring full of them, from `base` on.
fn full(base: Position, flag: u16) -> Ring {
    let ring = Ring::new(SIZE);
    (0..SIZE).for_each(|step| offer(&ring, base.advance(step, SIZE), flag));
    ring
}

#[test]
fn a_full_ring_is_taken_at_once_or_in_parts() {
    for base in places(SIZE) {
        for flag in [0, WRITE] {
            for most in [1, 3, 6, 7, 64] {
                let ring = full(base, flag);
                let mut device = ring.device_at(Features::NONE, base);
                let mut taken = Vec::new();
                loop {
                    let (singles, is_other_next) = take(&mut device, flag, most);
                    assert!(!is_other_next);
                    if singles.is_empty() {
                        break;
                    }
                    taken.extend(singles);
                }
                assert_eq!(taken.len(), SIZE.into(), "each once");
                for (step, single) in (0..).zip(&taken) {
                    let own = own(&ring, base.advance(step, SIZE), flag);
                    let buffer = Piece { address: GuestAddress(own.address), len: own.length };
                    assert_eq!((single.chain.id(), single.buffer()), (own.id, buffer));
                    assert_eq!(single.chain.bytes(), own.length.into());
                    assert_eq!(single.chain.descriptors(), 1);
                }
                let next = base.advance(SIZE, SIZE);
                assert_eq!(device.outstanding(), SIZE);
                assert_eq!(device.position(), position(next, base));

                // All of them back at once, and the ring has come round.
                let written = |single: &Single| flag.min(1) as u32 * single.buffer().len;
                device.give_all_back(taken.iter().map(|single| (single.chain, written(single))));
                assert_eq!((device.outstanding(), device.position()), (0, position(next, next)));
                let first = ring.descriptor(base.slot());
                assert_eq!(first, own(&ring, base, flag), "not published yet");
                let _ = device.publish();
                for (step, single) in (0..).zip(&taken) {
                    let place = base.advance(step, SIZE);
                    let found = ring.descriptor(place.slot());
                    let expected = (single.chain.id(), written(single), place.used() | flag);
                    assert_eq!((found.id, found.length, found.flags), expected);
                }
                // The next round.
                (0..3).for_each(|step| offer(&ring, next.advance(step, SIZE), flag));
                let (singles, is_other_next) = take(&mut device, flag, 64);
                assert_eq!((singles.len(), is_other_next), (3, false));
            }
        }
    }
}

#[test]
fn one_is_taken_at_a_time_and_the_last_is_known_as_such() {
    for base in places(SIZE) {
        for flag in [0, WRITE] {
            let ring = full(base, flag);
            let mut device = ring.device_at(Features::NONE, base);
            assert!(!device.has_one(), "nothing is known yet");
            for step in 0..SIZE {
                assert_eq!(device.available(), Ok(1));
                assert_eq!(device.has_one(), step + 1 == SIZE, "{base:?}, {step}");
                assert!(device.take_single(direction(flag ^ WRITE), Some).is_none());
                assert!(device.take_single(direction(flag), |_| None::<()>).is_none());
                assert_eq!(device.outstanding(), step, "it stays there");
                let Single { chain, .. } = device.take_single(direction(flag), Some).unwrap();
                assert_eq!(chain.id(), 100 + base.advance(step, SIZE).slot());
            }
            assert_eq!((device.available(), device.has_one()), (Ok(0), false));
            assert!(device.take_single(direction(flag), Some).is_none());
        }
    }
}

#[test]
fn one_that_is_known_is_not_the_only_one_when_there_are_more() {
    for base in places(SIZE) {
        let ring = Ring::new(SIZE);
        let mut device = ring.device_at(Features::NONE, base);
        for step in [0, 1] {
            offer(&ring, base.advance(step, SIZE), 0);
            assert_eq!(device.available(), Ok(1), "no look at those behind it");
            assert_eq!(device.has_one(), step == 0);
        }
    }
}

#[test]
fn what_is_not_wanted_stays_in_the_ring() {
    for base in places(SIZE) {
        for refused in 0..usize::from(SIZE) {
            let ring = full(base, 0);
            let mut device = ring.device_at(Features::NONE, base);
            let mut singles = vec![];
            let take = |single| {
                let is_wanted = singles.len() < refused;
                singles.extend(is_wanted.then_some(single));
                is_wanted
            };
            let taken = device.take_singles(Direction::Read, SIZE.into(), take).unwrap();
            assert_eq!(taken, Singles { count: refused, is_other_next: true });
            assert_eq!((singles.len(), device.outstanding()), (refused, refused as u16));
            let next = base.advance(refused as u16, SIZE);
            assert_eq!(device.position(), position(next, base));
            // It and those behind it.
            let (others, is_other_next) = take_all(&mut device);
            assert_eq!((others.len(), is_other_next), (usize::from(SIZE) - refused, false));
            let all: Vec<u16> = singles.iter().chain(&others).map(|one| one.chain.id()).collect();
            let expected = (0..SIZE).map(|step| 100 + base.advance(step, SIZE).slot());
            assert_eq!(all, expected.collect::<Vec<_>>());
        }
    }
}

/// The largest ring, with IN_ORDER, where places have all bits.
#[test]
fn the_largest_ring_in_order() {
    const LARGEST: u16 = 1 << 15;
    for slot in [0, 0x3fff, 0x4000, 0x7ffd, 0x7fff] {
        for first in
            [Position::FIRST, Position::FIRST.advance(LARGEST - 1, LARGEST).advance(1, LARGEST)]
        {
            let base = first.advance(slot, LARGEST);
            let ring = Ring::new(LARGEST);
            for step in 0..4 {
                let place = base.advance(step, LARGEST);
                let at = ring.area(step);
                let flags = place.available() | WRITE;
                ring.describe(place.slot(), Descriptor { id: step, ..buffer(at, 64, flags) });
            }
            let mut device = ring.device_at(Features::IN_ORDER, base);
            let (singles, _) = take(&mut device, WRITE, 4);
            assert_eq!(singles.len(), 4);
            device.give_all_back(singles.iter().map(|single| (single.chain, 64)));
            let next = base.advance(4, LARGEST);
            assert_eq!((device.outstanding(), device.position()), (0, position(next, next)));
        }
    }
}

#[test]
fn none_are_taken_where_none_are_asked_for_or_there() {
    let ring = full(Position::FIRST, 0);
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 0);
    assert!(singles.is_empty() && !is_other_next);
    assert_eq!(device.outstanding(), 0);
    let empty = Ring::new(SIZE);
    let (singles, is_other_next) = take(&mut empty.device(Features::NONE), 0, 8);
    assert!(singles.is_empty() && !is_other_next);
}

#[test]
fn descriptors_that_the_device_holds_are_not_looked_at() {
    for base in places(SIZE) {
        let ring = full(base, 0);
        let mut device = ring.device_at(Features::NONE, base);
        let (singles, _) = take(&mut device, 0, 64);
        // All of them again, as of the next round.
        let next = base.advance(SIZE, SIZE);
        let offer_all = || (0..SIZE).for_each(|step| offer(&ring, next.advance(step, SIZE), 0));
        offer_all();
        let (more, is_other_next) = take(&mut device, 0, 64);
        assert!(more.is_empty() && !is_other_next);
        // As many as are given back, and no more.
        device.give_all_back([4, 2, 0].into_iter().map(|at| (singles[at].chain, 0)));
        let _ = device.publish();
        offer_all();
        let (more, is_other_next) = take(&mut device, 0, 64);
        assert_eq!((more.len(), is_other_next), (3, false));
        assert_eq!(device.outstanding(), SIZE);
    }
}

/// Descriptors that are no chain of one buffer, and what the usual way says of each, by the room that is
/// left. Behind each is one that is a good chain by itself.
fn others(
    ring: &Ring,
    place: Position,
    flag: u16,
    room: u16,
) -> Vec<(Descriptor, Result<u64, Violation>)> {
    let at = ring.area(2);
    let length = u32::from(place.advance(1, SIZE).slot()) + 10;
    ring.write_table(at, &[buffer(ring.area(3), 9, flag)]);
    let turned = match flag {
        WRITE => Err(Violation::ReadableReceiveBuffer),
        // Nothing in it is to be read.
        _ => Ok(0),
    };
    let chained = match room {
        1 => Err(Violation::ChainOverrun { room, size: SIZE }),
        _ => Ok(6 + u64::from(length)),
    };
    vec![
        (own(ring, place, WRITE ^ flag), turned),
        (buffer(at, 6, flag | NEXT), chained),
        (buffer(at, 16, INDIRECT), Ok(9)),
        (buffer(at, 16, INDIRECT | WRITE), Ok(9)),
        (buffer(at, 16, INDIRECT | NEXT), Err(Violation::IndirectMisplaced)),
    ]
}

#[test]
fn any_other_chain_is_stopped_in_front_of() {
    for base in places(SIZE) {
        for flag in [0, WRITE] {
            for before in [0, 1, 3, SIZE - 1] {
                let ring = full(base, flag);
                let place = base.advance(before, SIZE);
                for (other, verdict) in others(&ring, place, flag, SIZE - before) {
                    let flags = other.flags | place.available();
                    ring.describe(place.slot(), Descriptor { flags, ..other });
                    let mut device = ring.device_at(Features::INDIRECT_DESC, base);
                    let what = format!("{other:?} behind {before}");
                    for count in [before, 0] {
                        let (singles, is_other_next) = take(&mut device, flag, 64);
                        assert_eq!(singles.len(), count.into(), "{what}");
                        assert!(is_other_next, "{what}");
                        assert_eq!(device.position(), position(place, base));
                    }
                    assert_eq!(take_next(&ring, &mut device, flag), verdict, "{what}");
                    if verdict.is_err() {
                        assert_eq!(device.position(), position(place, base));
                        continue;
                    }
                    let chained = u16::from(other.flags & NEXT != 0);
                    let (rest, is_other_next) = take(&mut device, flag, 64);
                    assert_eq!(rest.len(), usize::from(SIZE - 1 - before - chained), "{what}");
                    assert!(!is_other_next);
                    assert_eq!(device.outstanding(), SIZE);
                }
            }
        }
    }
}

#[test]
fn a_table_that_was_not_negotiated_is_found_by_the_next() {
    let ring = full(Position::FIRST, 0);
    ring.offer(2, buffer(ring.area(1), 16, INDIRECT));
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 64);
    assert_eq!((singles.len(), is_other_next), (2, true));
    assert_eq!(take_next(&ring, &mut device, 0), Err(Violation::IndirectNotNegotiated));
}

/// Only marks of this round at this place make a descriptor available.
#[test]
fn the_first_one_that_is_not_available_ends_it() {
    for base in places(SIZE) {
        for before in [0, 2, SIZE - 1] {
            let place = base.advance(before, SIZE);
            let other_round = place.advance(SIZE, SIZE);
            for marks in [place.used(), other_round.used(), other_round.available()] {
                let ring = full(base, 0);
                let own = own(&ring, place, 0);
                ring.describe(place.slot(), Descriptor { flags: marks, ..own });
                let mut device = ring.device_at(Features::NONE, base);
                for count in [before, 0] {
                    let (singles, is_other_next) = take(&mut device, 0, 64);
                    assert_eq!((singles.len(), is_other_next), (count.into(), false));
                }
                offer(&ring, place, 0);
                let (rest, is_other_next) = take(&mut device, 0, 64);
                assert_eq!(rest.len(), usize::from(SIZE - before));
                assert!(!is_other_next);
            }
        }
    }
}

#[test]
fn what_was_seen_to_be_available_may_not_be_withdrawn() {
    for base in places(SIZE) {
        for before in [0, 2, 4] {
            let ring = full(base, 0);
            let mut device = ring.device_at(Features::NONE, base);
            let (singles, _) = take(&mut device, 0, 5);
            device.untake(singles.iter().map(|single| &single.chain));
            assert_eq!(device.position(), position(base, base));
            let place = base.advance(before, SIZE);
            let own = own(&ring, place, 0);
            ring.describe(place.slot(), Descriptor { flags: place.used(), ..own });
            for count in [before, 0] {
                let (singles, is_other_next) = take(&mut device, 0, 64);
                assert_eq!((singles.len(), is_other_next), (count.into(), true));
            }
            let expected = Violation::Withdrawn { slot: place.slot() };
            assert_eq!(take_next(&ring, &mut device, 0), Err(expected));
            assert_eq!(device.position(), position(place, base), "nothing is lost");
            offer(&ring, place, 0);
            let (rest, is_other_next) = take(&mut device, 0, 64);
            assert_eq!((rest.len(), is_other_next), (usize::from(SIZE - before), false));
        }
    }
}

/// What a device has not seen, it does not miss.
#[test]
fn what_was_not_seen_may_come_and_go() {
    let base = Position::FIRST;
    let ring = full(base, 0);
    let mut device = ring.device(Features::NONE);
    let (singles, _) = take(&mut device, 0, 3);
    ring.describe(3, Descriptor { flags: base.used(), ..own(&ring, base, 0) });
    let (more, is_other_next) = take(&mut device, 0, 64);
    assert_eq!((singles.len(), more.len(), is_other_next), (3, 0, false));
    assert!(ring.take_readable(&mut device, 100).unwrap().is_none());
}

/// The address is looked at by who translates it.
#[test]
fn a_buffer_outside_of_the_memory_is_taken_and_can_be_put_back() {
    let ring = full(Position::FIRST, 0);
    ring.offer(1, buffer(u64::MAX, u32::MAX, 0));
    let mut device = ring.device(Features::NONE);
    let (singles, is_other_next) = take(&mut device, 0, 64);
    assert_eq!((singles.len(), is_other_next), (SIZE.into(), false));
    let buffer = Piece { address: GuestAddress(u64::MAX), len: u32::MAX };
    assert_eq!(singles[1].buffer(), buffer);
    device.untake(singles.iter().skip(1).map(|single| &single.chain));
    assert_eq!(device.outstanding(), 1);
    assert!(matches!(take_next(&ring, &mut device, 0), Err(Violation::Memory(_))));
}

#[test]
fn one_used_descriptor_stands_for_all_that_are_only_read_with_in_order() {
    for base in places(SIZE) {
        for flag in [0, WRITE] {
            let ring = full(base, flag);
            let mut device = ring.device_at(Features::IN_ORDER, base);
            let (singles, _) = take(&mut device, flag, 64);
            let written = u32::from(flag == WRITE);
            let found = |step: usize| {
                let place = base.advance(step as u16, SIZE);
                let Descriptor { length, id, flags, .. } = ring.descriptor(place.slot());
                (flags, id, length)
            };
            let is = |at: usize, whose: usize| {
                let place = base.advance(at as u16, SIZE);
                (place.used() | flag, singles[whose].chain.id(), written)
            };
            let untouched: Vec<_> = (0..SIZE.into()).map(found).collect();
            // By one, three at once, one again, and the rest: in two publications.
            for (from, several, to) in [(0, 1..4, 5), (5, 6..7, 7)] {
                device.give_back(singles[from].chain, written);
                let chains = singles[several.clone()].iter();
                device.give_all_back(chains.map(|single| (single.chain, written)));
                if several.end < to {
                    device.give_back(singles[several.end].chain, written);
                }
                let _ = device.publish();
                if flag == WRITE {
                    (from..to).for_each(|step| assert_eq!(found(step), is(step, step)));
                } else {
                    assert_eq!(found(from), is(from, to - 1), "the last one's id");
                    (from + 1..to).for_each(|step| assert_eq!(found(step), untouched[step]));
                }
            }
            assert_eq!(device.outstanding(), 0);
        }
    }
}
