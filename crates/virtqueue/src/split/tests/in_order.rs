//! What is in a split ring after chains were given back with IN_ORDER.

use memory::GuestAddress;
use wire::split::Descriptor;
use wire::virtio::Features;

use super::ring::Ring;
use crate::split::{DeviceQueue, DriverQueue};
use crate::{Buffer, Chain, DeviceRing, Form, Used, Violation};

const SIZE: u16 = 8;
/// Where rings begin: the ring, and the index, wrap behind the last two.
const BASES: [u16; 4] = [0, 1000, 65533, 65535];
const IN_ORDER: Features = Features::IN_ORDER;

/// A driver with chains of two descriptors out, three of them to be seen by the device, and all of
/// these taken.
fn taken(ring: &Ring, base: u16, writable: bool) -> (DriverQueue, DeviceQueue, Vec<Chain>) {
    let mut driver = ring.driver_at(IN_ORDER, base);
    let buffer = Buffer { address: GuestAddress(ring.area(1)), len: 10, writable };
    for token in 0..3 {
        driver.add(&[buffer; 2], Form::Direct, token).unwrap();
    }
    let _ = driver.publish();
    driver.add(&[buffer; 2], Form::Direct, 3).unwrap();
    let mut device = ring.device_at(IN_ORDER, base);
    let take = |device: &mut DeviceQueue| match writable {
        true => ring.take_writable(device, 100).unwrap().unwrap().0,
        false => ring.take_readable(device, 100).unwrap().unwrap().0,
    };
    let chains = (0..3).map(|_| take(&mut device)).collect();
    (driver, device, chains)
}

fn entry(ring: &Ring, index: u16) -> (u32, u32) {
    ring.used_entry(index & (SIZE - 1))
}

const NOTHING: (u32, u32) = (0x1234_5678, 0x9ABC_DEF0);

fn ring() -> Ring {
    let ring = Ring::new(SIZE);
    (0..SIZE).for_each(|slot| ring.set_used_entry(slot, NOTHING.0, NOTHING.1));
    ring
}

#[test]
fn descriptors_are_used_in_the_order_of_the_ring() {
    let ring = ring();
    let (mut driver, mut device, chains) = taken(&ring, 0, false);
    assert_eq!([0, 1, 2].map(|at| chains[at].id()), [0, 2, 4]);
    chains.iter().for_each(|chain| device.give_back(*chain, 0));
    let _ = device.publish();
    while driver.reap().unwrap().is_some() {}
    let _ = driver.publish();
    // Chains of three, over the end and on.
    let buffer = Buffer { address: GuestAddress(ring.area(1)), len: 10, writable: false };
    let mut next = 6;
    for token in 4..10 {
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        assert_eq!(chain.id(), next);
        next = (next + if token == 4 { 2 } else { 3 }) % SIZE;
        driver.add(&[buffer; 3], Form::Direct, token).unwrap();
        let _ = driver.publish();
        device.give_back(chain, 0);
        let _ = device.publish();
        assert!(driver.reap().unwrap().is_some());
    }
}

#[test]
fn one_entry_stands_for_all_chains_that_are_only_read() {
    for base in BASES {
        let ring = ring();
        let (mut driver, mut device, chains) = taken(&ring, base, false);
        chains[..2].iter().for_each(|chain| device.give_back(*chain, 0));
        let _ = device.publish();
        assert_eq!(ring.layout.used_index(), base.wrapping_add(2));
        assert_eq!(entry(&ring, base), (chains[1].id().into(), 0), "the last one's id");
        assert_eq!(entry(&ring, base.wrapping_add(1)), NOTHING, "passed over");
        // The next batch lies where the first one ended.
        device.give_back(chains[2], 0);
        let _ = device.publish();
        assert_eq!(ring.layout.used_index(), base.wrapping_add(3));
        assert_eq!(entry(&ring, base.wrapping_add(2)), (chains[2].id().into(), 0));
        for token in 0..3 {
            assert_eq!(driver.reap(), Ok(Some(Used { token, written: 0 })));
        }
        assert_eq!(driver.reap(), Ok(None));
        assert_eq!((driver.free(), driver.outstanding()), (6, 1));
    }
}

#[test]
fn each_chain_that_is_written_has_its_own_entry() {
    // Drivers ask each for its length.
    for base in BASES {
        let ring = ring();
        let (mut driver, mut device, chains) = taken(&ring, base, true);
        for (chain, written) in chains.iter().zip([20, 7, 0]) {
            device.give_back(*chain, written);
        }
        let _ = device.publish();
        for (step, written) in (0..3).zip([20, 7, 0]) {
            let expected = (chains[usize::from(step)].id().into(), written);
            assert_eq!(entry(&ring, base.wrapping_add(step)), expected);
            let token = step.into();
            assert_eq!(driver.reap(), Ok(Some(Used { token, written })));
        }
    }
}

#[test]
fn a_device_may_leave_out_chains_that_it_wrote_completely() {
    for base in BASES {
        let ring = ring();
        let (mut driver, _, chains) = taken(&ring, base, true);
        ring.set_used_entry(base & (SIZE - 1), chains[2].id().into(), 4);
        ring.set_used_index(base.wrapping_add(3));
        for (token, written) in [(0, 20), (1, 20), (2, 4)] {
            assert_eq!(driver.reap(), Ok(Some(Used { token, written })));
        }
        assert_eq!(driver.reap(), Ok(None));
    }
}

#[test]
fn a_batch_ends_within_what_was_used() {
    for base in BASES {
        for (used, last) in [(1, 1), (1, 2), (2, 2), (3, 3)] {
            let ring = ring();
            let (mut driver, _, chains) = taken(&ring, base, true);
            // The fourth, which the device was not told of, is behind the others.
            let id = chains.get(last).map_or(6, |chain| chain.id()).into();
            ring.set_used_entry(base & (SIZE - 1), id, 0);
            ring.set_used_index(base.wrapping_add(used));
            for _ in 0..2 {
                assert_eq!(driver.reap(), Err(Violation::UsedId { id }));
                assert_eq!((driver.outstanding(), driver.free()), (4, 0));
            }
        }
    }
}

#[test]
fn chains_with_anything_to_write_end_a_batch() {
    let ring = ring();
    let mut device = ring.device(IN_ORDER);
    // Two to be read; one that has something to write behind it; one to be read.
    for head in 0..4 {
        let next = (head == 2).then_some(4);
        ring.describe(head, super::ring::buffer(ring.area(1), 10, 0, next));
        ring.offer(head, head + 1);
    }
    ring.describe(4, super::ring::buffer(ring.area(2), 10, Descriptor::WRITE, None));
    for _ in 0..4 {
        let (chain, _) = ring.take_readable(&mut device, 100).unwrap().unwrap();
        device.give_back(chain, 0);
    }
    let _ = device.publish();
    assert_eq!([0, 1, 2, 3].map(|index| entry(&ring, index)), [(2, 0), NOTHING, NOTHING, (3, 0)]);
}
