//! A driver against a device that breaks the rules.

use memory::GuestAddress;
use wire::virtio::Features;

use super::ring::{Ring, places};
use crate::packed::{Descriptor, DriverQueue, Position};
use crate::{Buffer, Form, Full, Used, Violation};

const SIZE: u16 = 7;

fn one(ring: &Ring) -> Buffer {
    Buffer { address: GuestAddress(ring.area(1)), len: 10, writable: true }
}

/// A driver with two chains of two descriptors out, and a third that the device was not told of;
/// and what the device may name.
fn offering(ring: &Ring, features: Features, base: Position) -> (DriverQueue, Vec<u16>) {
    let (mut driver, mut device) = ring.pair_at(features, base);
    for token in 0..2 {
        driver.add(&[one(ring); 2], Form::Direct, 100 + token).unwrap();
    }
    let _ = driver.publish();
    let ids = (0..2).map(|_| ring.take_writable(&mut device, 100).unwrap().unwrap().0.id());
    let ids = ids.collect();
    driver.add(&[one(ring)], Form::Direct, 102).unwrap();
    (driver, ids)
}

fn set_used(ring: &Ring, place: Position, id: u16, written: u32, flags: u16) {
    let flags = place.used() | flags;
    ring.describe(place.slot(), Descriptor { address: 0, length: written, id, flags });
}

/// The driver finds it, again and again, and nothing changes hands.
fn refused(driver: &mut DriverQueue, id: u16) {
    let before = (driver.outstanding(), driver.free());
    for _ in 0..3 {
        assert_eq!(driver.reap(), Err(Violation::UsedId { id: id.into() }));
        assert_eq!((driver.outstanding(), driver.free()), before);
    }
}

#[test]
fn used_id_names_an_outstanding_chain() {
    for features in [Features::NONE, Features::IN_ORDER] {
        for base in places(SIZE) {
            let ring = Ring::new(SIZE);
            let (mut driver, ids) = offering(&ring, features, base);
            let third = (0..SIZE).find(|id| !ids.contains(id)).unwrap();
            for id in (0..SIZE).filter(|id| !ids.contains(id) && *id != third) {
                set_used(&ring, base, id, 0, 0);
                refused(&mut driver, id);
            }
            for id in [SIZE, 32767, 65535] {
                set_used(&ring, base, id, 0, 0);
                refused(&mut driver, id);
            }
            set_used(&ring, base, ids[0], 7, Descriptor::WRITE);
            assert_eq!(driver.reap(), Ok(Some(Used { token: 100, written: 7 })));
            assert_eq!(driver.reap(), Ok(None));
        }
    }
}

#[test]
fn used_id_is_named_once() {
    let ring = Ring::new(SIZE);
    let base = Position::FIRST;
    for features in [Features::NONE, Features::IN_ORDER] {
        let (mut driver, ids) = offering(&ring, features, base);
        set_used(&ring, base, ids[0], 0, 0);
        set_used(&ring, base.advance(2, SIZE), ids[0], 0, 0);
        assert!(driver.reap().unwrap().is_some());
        refused(&mut driver, ids[0]);
        assert_eq!(driver.outstanding(), 2);
    }
}

#[test]
fn chains_that_were_not_published_are_not_used() {
    let base = Position::FIRST;
    let ring = Ring::new(SIZE);
    let mut driver = ring.driver(Features::NONE);
    driver.add(&[one(&ring)], Form::Direct, 0).unwrap();
    set_used(&ring, base, 0, 0, 0);
    assert_eq!(driver.reap(), Ok(None), "there is nothing that could be");
    assert!(!driver.enable_calls());
    let _ = driver.publish();
    driver.add(&[one(&ring); 3], Form::Direct, 1).unwrap();
    // The second chain's id, in place of the first's, which has fewer descriptors.
    set_used(&ring, base, 1, 0, 0);
    refused(&mut driver, 1);
}

#[test]
fn a_batch_ends_within_what_was_published() {
    let base = Position::FIRST;
    let ring = Ring::new(SIZE);
    let (mut driver, ids) = offering(&ring, Features::IN_ORDER, base);
    let third = 2;
    assert_eq!(ids, [0, 1]);
    set_used(&ring, base, third, 0, 0);
    refused(&mut driver, third);
    set_used(&ring, base, ids[1], 3, Descriptor::WRITE);
    assert_eq!(driver.reap(), Ok(Some(Used { token: 100, written: 20 })), "completely");
    assert_eq!(driver.reap(), Ok(Some(Used { token: 101, written: 3 })));
    assert_eq!(driver.reap(), Ok(None));
    assert_eq!((driver.outstanding(), driver.free()), (1, 6));
}

#[test]
fn marks_that_are_not_those_of_this_round_mean_nothing() {
    for base in places(SIZE) {
        let ring = Ring::new(SIZE);
        let (mut driver, ids) = offering(&ring, Features::NONE, base);
        let other_round = base.advance(SIZE, SIZE);
        for flags in [base.available(), other_round.available(), other_round.used()] {
            let used = Descriptor { address: 0, length: 0, id: ids[0], flags };
            ring.describe(base.slot(), used);
            assert_eq!(driver.reap(), Ok(None));
        }
    }
}

#[test]
fn used_length_means_something_with_its_flag() {
    let base = Position::FIRST;
    for (flags, written) in [(Descriptor::WRITE, u32::MAX), (0, 0), (Descriptor::NEXT, 0)] {
        let ring = Ring::new(SIZE);
        let (mut driver, ids) = offering(&ring, Features::NONE, base);
        set_used(&ring, base, ids[0], u32::MAX, flags);
        assert_eq!(driver.reap(), Ok(Some(Used { token: 100, written })));
    }
}

#[test]
fn chains_that_have_no_room_change_nothing() {
    let ring = Ring::new(8);
    let mut driver = ring.driver(Features::INDIRECT_DESC);
    let mut plain = ring.driver(Features::NONE);
    let chain = |count| vec![one(&ring); count];
    assert_eq!(driver.add(&[], Form::Direct, 0), Err(Full));
    assert_eq!(driver.add(&[], Form::Indirect(0), 0), Err(Full));
    assert_eq!(driver.add(&chain(9), Form::Direct, 0), Err(Full));
    assert_eq!(driver.add(&chain(9), Form::Indirect(0), 0), Err(Full));
    assert_eq!(plain.add(&chain(2), Form::Indirect(0), 0), Err(Full), "tables were not negotiated");
    assert_eq!((driver.outstanding(), driver.free()), (0, 8));
    assert!(!driver.publish());
    assert_eq!(driver.add(&chain(7), Form::Direct, 0), Ok(()));
    assert_eq!(driver.add(&chain(2), Form::Direct, 0), Err(Full));
    assert_eq!(driver.add(&chain(8), Form::Indirect(4), 0), Ok(()), "all of it in the table");
    assert_eq!(driver.add(&chain(1), Form::Indirect(0), 0), Err(Full));
    assert_eq!((driver.outstanding(), driver.free()), (2, 0));
}

#[test]
fn tables_are_no_longer_than_the_ring() {
    let ring = Ring::new(3);
    let mut driver = ring.driver(Features::INDIRECT_DESC);
    assert_eq!(driver.add(&[one(&ring); 4], Form::Indirect(0), 0), Err(Full));
    assert_eq!(driver.add(&[one(&ring); 3], Form::Indirect(0), 0), Ok(()));
}
