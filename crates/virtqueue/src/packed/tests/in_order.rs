//! What is in a packed ring after chains were given back, with IN_ORDER and without.

use memory::GuestAddress;
use wire::virtio::Features;

use super::ring::{Ring, places};
use crate::packed::{Descriptor, DeviceQueue, Position};
use crate::{Buffer, DeviceRing, Form, Used};

const SIZE: u16 = 7;
const IN_ORDER: Features = Features::IN_ORDER;

/// A descriptor that is used at this place.
fn used(place: Position, id: u16, written: u32) -> (u16, u16, u32) {
    let write = if written > 0 { Descriptor::WRITE } else { 0 };
    (place.used() | write, id, written)
}

fn found(ring: &Ring, place: Position) -> (u16, u16, u32) {
    let Descriptor { length, id, flags, .. } = ring.descriptor(place.slot());
    (flags, id, length)
}

/// A ring at `base` with chains of these many descriptors out, all taken.
fn taken(
    ring: &Ring,
    features: Features,
    base: Position,
    lens: &[usize],
    writable: bool,
) -> (crate::packed::DriverQueue, DeviceQueue, Vec<crate::Chain>) {
    let (mut driver, mut device) = ring.pair_at(features, base);
    for (token, len) in (0..).zip(lens) {
        let buffer = Buffer { address: GuestAddress(ring.area(1)), len: 10, writable };
        driver.add(&vec![buffer; *len], Form::Direct, token).unwrap();
    }
    let _ = driver.publish();
    let take = |device: &mut DeviceQueue| match writable {
        true => ring.take_writable(device, 100).unwrap().unwrap().0,
        false => ring.take_readable(device, 100).unwrap().unwrap().0,
    };
    let chains = lens.iter().map(|_| take(&mut device)).collect();
    (driver, device, chains)
}

#[test]
fn chains_take_their_slots_wherever_they_are_given_back() {
    for base in places(SIZE) {
        let ring = Ring::new(SIZE);
        let (mut driver, mut device, chains) = taken(&ring, Features::NONE, base, &[1, 3, 2], true);
        let at = |slots| base.advance(slots, SIZE);
        let before = found(&ring, base);
        for (chain, written) in [(chains[1], 30), (chains[2], 0), (chains[0], 5)] {
            device.give_back(chain, written);
        }
        assert_eq!(found(&ring, base), before, "the first one is stored last");
        assert_eq!(driver.reap(), Ok(None));
        let _ = device.publish();
        assert_eq!(found(&ring, at(0)), used(at(0), chains[1].id(), 30));
        assert_eq!(found(&ring, at(3)), used(at(3), chains[2].id(), 0));
        assert_eq!(found(&ring, at(5)), used(at(5), chains[0].id(), 5));
        for (token, written) in [(1, 30), (2, 0), (0, 5)] {
            assert_eq!(driver.reap(), Ok(Some(Used { token, written })));
        }
        assert_eq!(driver.reap(), Ok(None));
        let half = u32::from(at(6).bits());
        assert_eq!(device.position(), half << 16 | half);
    }
}

#[test]
fn one_descriptor_stands_for_all_chains_that_are_only_read() {
    for base in places(SIZE) {
        let ring = Ring::new(SIZE);
        let (mut driver, mut device, chains) = taken(&ring, IN_ORDER, base, &[1, 3, 2, 1], false);
        let at = |slots| base.advance(slots, SIZE);
        let untouched = [1, 4, 6].map(|slots| found(&ring, at(slots)));
        chains[..3].iter().for_each(|chain| device.give_back(*chain, 0));
        let _ = device.publish();
        assert_eq!(found(&ring, at(0)), used(at(0), chains[2].id(), 0), "the last one's id");
        assert_eq!([1, 4, 6].map(|slots| found(&ring, at(slots))), untouched);
        // The next batch lies where the first one ended.
        device.give_back(chains[3], 0);
        let _ = device.publish();
        assert_eq!(found(&ring, at(6)), used(at(6), chains[3].id(), 0));
        for token in 0..4 {
            assert_eq!(driver.reap(), Ok(Some(Used { token, written: 0 })));
        }
        assert_eq!(driver.reap(), Ok(None));
        assert_eq!((driver.free(), driver.outstanding()), (SIZE.into(), 0));
    }
}

#[test]
fn each_chain_that_is_written_has_its_own_descriptor() {
    // Drivers ask each for its length.
    let base = Position::FIRST;
    let ring = Ring::new(SIZE);
    let (mut driver, mut device, chains) = taken(&ring, IN_ORDER, base, &[1, 3, 2], true);
    let at = |slots| base.advance(slots, SIZE);
    for (chain, written) in chains.iter().zip([10, 7, 0]) {
        device.give_back(*chain, written);
    }
    let _ = device.publish();
    assert_eq!(found(&ring, at(0)), used(at(0), chains[0].id(), 10));
    assert_eq!(found(&ring, at(1)), used(at(1), chains[1].id(), 7));
    assert_eq!(found(&ring, at(4)), used(at(4), chains[2].id(), 0));
    for (token, written) in [(0, 10), (1, 7), (2, 0)] {
        assert_eq!(driver.reap(), Ok(Some(Used { token, written })));
    }
}

#[test]
fn a_device_may_leave_out_chains_that_it_wrote_completely() {
    let base = Position::FIRST;
    let ring = Ring::new(SIZE);
    let (mut driver, _, chains) = taken(&ring, IN_ORDER, base, &[1, 3, 2], true);
    let flags = base.used() | Descriptor::WRITE;
    ring.describe(0, Descriptor { address: 0, length: 4, id: chains[2].id(), flags });
    for (token, written) in [(0, 10), (1, 30), (2, 4)] {
        assert_eq!(driver.reap(), Ok(Some(Used { token, written })));
    }
    assert_eq!(driver.reap(), Ok(None));
}

#[test]
fn what_is_in_the_ring_is_not_written_over() {
    // A chain to be written, then two that are not: no descriptor changes once it says used.
    let base = Position::FIRST;
    let ring = Ring::new(SIZE);
    let (_, mut device, written) = taken(&ring, IN_ORDER, base, &[1], true);
    for slot in 1..3 {
        ring.offer(slot, Descriptor { address: ring.area(1), length: 1, id: slot, flags: 0 });
    }
    let read = [(); 2].map(|()| ring.take_readable(&mut device, 100).unwrap().unwrap().0);
    device.give_back(written[0], 3);
    device.give_back(read[0], 0);
    let first = found(&ring, base.advance(1, SIZE));
    device.give_back(read[1], 0);
    let _ = device.publish();
    assert_eq!(found(&ring, base.advance(1, SIZE)), first);
    assert_eq!(first, used(base, read[0].id(), 0));
    assert_eq!(found(&ring, base.advance(2, SIZE)), used(base, read[1].id(), 0));
}
