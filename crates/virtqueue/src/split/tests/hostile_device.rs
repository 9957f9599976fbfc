//! A driver against a device that breaks the rules.

use memory::GuestAddress;
use wire::virtio::Features;

use super::ring::Ring;
use crate::split::DriverQueue;
use crate::{Buffer, Form, Full, Used, Violation};

const SIZE: u16 = 8;

fn one(ring: &Ring) -> Buffer {
    Buffer { address: GuestAddress(ring.area(1)), len: 10, writable: true }
}

/// A driver with `count` chains of two descriptors out: their heads are what the device may name.
fn offering(ring: &Ring, base: u16, count: u32) -> (DriverQueue, Vec<u32>) {
    let mut driver = ring.driver_at(Features::NONE, base);
    for token in 0..count {
        driver.add(&[one(ring); 2], Form::Direct, 100 + token).unwrap();
    }
    assert!(driver.publish());
    let mut device = ring.device_at(Features::NONE, base);
    let heads = (0..count)
        .map(|_| {
            let taken = ring.take_writable(&mut device, 100).unwrap().unwrap();
            taken.0.id().into()
        })
        .collect();
    (driver, heads)
}

/// The driver finds `expected`, again and again, and nothing changes hands.
fn refused(driver: &mut DriverQueue, expected: Violation) {
    let before = (driver.outstanding(), driver.free());
    for _ in 0..3 {
        assert_eq!(driver.reap(), Err(expected));
        assert_eq!((driver.outstanding(), driver.free()), before);
    }
}

#[test]
fn used_id_names_an_outstanding_chain() {
    let ring = Ring::new(SIZE);
    let (mut driver, heads) = offering(&ring, 0, 2);
    let second = (0..u32::from(SIZE)).filter(|id| !heads.contains(id));
    let beyond = [SIZE.into(), 65535, 65536 + heads[0], u32::MAX];
    ring.set_used_index(1);
    for id in second.chain(beyond) {
        ring.set_used_entry(0, id, 0);
        refused(&mut driver, Violation::UsedId { id });
    }
    ring.set_used_entry(0, heads[1], 7);
    let used = Used { token: 101, written: 7 };
    assert_eq!(driver.reap(), Ok(Some(used)));
}

#[test]
fn used_id_is_named_once() {
    let ring = Ring::new(SIZE);
    let (mut driver, heads) = offering(&ring, 0, 2);
    for slot in [0, 1] {
        ring.set_used_entry(slot, heads[0], 0);
    }
    ring.set_used_index(2);
    assert!(driver.reap().unwrap().is_some());
    refused(&mut driver, Violation::UsedId { id: heads[0] });
    assert_eq!(driver.outstanding(), 1);
}

#[test]
fn used_index_counts_no_more_than_was_made_available() {
    for base in [0, 65534] {
        for ahead in [3, SIZE, SIZE + 1, 32768, 65535] {
            let ring = Ring::new(SIZE);
            let (mut driver, _) = offering(&ring, base, 2);
            // Added, but the device was not told yet.
            driver.add(&[one(&ring)], Form::Direct, 0).unwrap();
            let found = base.wrapping_add(ahead);
            ring.set_used_index(found);
            let expected = Violation::UsedIndex { found, taken: base, outstanding: 2 };
            refused(&mut driver, expected);
        }
    }
}

#[test]
fn used_length_is_passed_on_as_it_is() {
    let ring = Ring::new(SIZE);
    let (mut driver, heads) = offering(&ring, 0, 1);
    ring.set_used_entry(0, heads[0], u32::MAX);
    ring.set_used_index(1);
    let used = Used { token: 100, written: u32::MAX };
    assert_eq!(driver.reap(), Ok(Some(used)));
    assert_eq!(driver.reap(), Ok(None));
}

#[test]
fn descriptors_rewritten_by_the_device_are_not_believed() {
    let ring = Ring::new(SIZE);
    let (mut driver, heads) = offering(&ring, 0, 2);
    for at in 0..SIZE {
        ring.describe(at, super::ring::buffer(u64::MAX, u32::MAX, 0xFFFF, Some(at)));
    }
    for (slot, head) in (0..).zip(&heads) {
        ring.set_used_entry(slot, *head, 0);
    }
    ring.set_used_index(2);
    while driver.reap().unwrap().is_some() {}
    assert_eq!((driver.outstanding(), driver.free()), (0, SIZE.into()));
}

#[test]
fn chains_that_have_no_room_change_nothing() {
    let ring = Ring::new(SIZE);
    let mut driver = ring.driver(Features::INDIRECT_DESC);
    let mut plain = ring.driver(Features::NONE);
    let chain = |count| vec![one(&ring); count];
    assert_eq!(driver.add(&[], Form::Direct, 0), Err(Full));
    assert_eq!(driver.add(&chain(9), Form::Direct, 0), Err(Full));
    assert_eq!(driver.add(&chain(9), Form::Indirect(0), 0), Err(Full));
    assert_eq!(
        driver.add(&chain(9), Form::Indirect(4), 0),
        Err(Full),
        "longer than the ring, though the table would hold its part"
    );
    assert_eq!(plain.add(&chain(2), Form::Indirect(0), 0), Err(Full), "tables were not negotiated");
    assert_eq!((driver.outstanding(), driver.free()), (0, 8));
    assert!(!driver.publish());
    assert_eq!(driver.add(&chain(8), Form::Indirect(7), 0), Ok(()));
    assert_eq!(driver.add(&chain(1), Form::Direct, 0), Err(Full));
    assert_eq!((driver.outstanding(), driver.free()), (1, 0));
}
