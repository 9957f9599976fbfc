//! A device dies, and another one goes on with its ring.

use memory::GuestAddress;
use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT, gather};
use crate::{Buffer, DeviceQueue, DriverQueue, Form, Violation};

const SIZE: u16 = 8;
/// Tokens of the chains, which are also what is in their buffers.
const CHAINS: u8 = 4;

fn add(bed: &Bed, driver: &mut DriverQueue, token: u8) {
    let at = bed.area(token.into());
    bed.write(at, &[token; 2]);
    // Of two descriptors, so that each takes a quarter of the ring.
    let buffer = |at| Buffer { address: GuestAddress(at), len: 1, writable: false };
    driver.add(&[buffer(at), buffer(at + 1)], Form::Direct, token.into()).unwrap();
}

/// Takes the next chain, and says which one it is.
fn take(bed: &Bed, device: &mut DeviceQueue) -> Option<(crate::Chain, u8)> {
    let mut slices = Vec::new();
    let mut translator = bed.memory.translator();
    let chain = device.take_readable(&mut translator, 100, &mut slices).unwrap()?;
    Some((chain, gather(&slices)[0]))
}

#[test]
fn nothing_is_lost_and_nothing_is_done_twice() {
    for format in [SPLIT, PACKED] {
        for features in [format, format | Features::IN_ORDER] {
            // In a packed ring: at the start, and where it wraps, in either round.
            for position in [0x8000, 0x8005, 5, 7] {
                // Chains that were used to be seen, of which so many were reaped; and those that were
                // used and not to be seen yet.
                for (seen, reaped, unseen) in
                    [(0, 0, 0), (0, 0, 3), (1, 0, 2), (2, 0, 1), (2, 1, 2), (3, 3, 1), (4, 2, 0)]
                {
                    let bed = Bed::new(format, SIZE);
                    let (mut driver, mut device) = bed.pair_at(features, position);
                    (0..CHAINS).for_each(|token| add(&bed, &mut driver, token));
                    let _ = driver.publish();
                    let chains: Vec<_> =
                        std::iter::from_fn(|| take(&bed, &mut device).map(|(chain, _)| chain))
                            .collect();
                    assert_eq!(chains.len(), CHAINS.into());
                    chains[..seen].iter().for_each(|chain| device.give_back(*chain, 0));
                    let _ = device.publish();
                    chains[seen..][..unseen].iter().for_each(|chain| device.give_back(*chain, 0));
                    drop(device);
                    let mut tokens = Vec::new();
                    for _ in 0..reaped {
                        tokens.push(driver.reap().unwrap().unwrap().token);
                    }

                    let position = driver.recover().unwrap();
                    assert_eq!(bed.layout().resume(position), Some(position), "a drained one");
                    let mut device = DeviceQueue::new(bed.layout(), features, position);
                    for token in seen as u8..CHAINS {
                        let (chain, found) = take(&bed, &mut device).unwrap();
                        assert_eq!(found, token, "{features} {seen} {reaped} {unseen}");
                        device.give_back(chain, 0);
                    }
                    assert!(take(&bed, &mut device).is_none());
                    let _ = device.publish();
                    while let Some(used) = driver.reap().unwrap() {
                        tokens.push(used.token);
                    }
                    assert_eq!(tokens, [0, 1, 2, 3]);
                    assert_eq!(driver.outstanding(), 0);
                }
            }
        }
    }
}

#[test]
fn a_ring_that_a_device_left_in_a_mess_is_not_recovered() {
    let bed = Bed::new(SPLIT, SIZE);
    let mut driver = bed.driver(SPLIT);
    add(&bed, &mut driver, 0);
    let _ = driver.publish();
    // The used index says two, and there is one.
    bed.write(bed.areas[2].0 + 2, &2u16.to_le_bytes());
    let too_many = Violation::UsedIndex { found: 2, taken: 0, outstanding: 1 };
    assert_eq!(driver.recover(), Err(too_many));

    let bed = Bed::new(PACKED, SIZE);
    let mut driver = bed.driver(PACKED);
    add(&bed, &mut driver, 0);
    let _ = driver.publish();
    // A used descriptor of a chain that there is not.
    bed.write(bed.areas[0].0 + 12, &5u16.to_le_bytes());
    bed.write(bed.areas[0].0 + 14, &0x8080u16.to_le_bytes());
    assert_eq!(driver.recover(), Err(Violation::UsedId { id: 5 }));

    // One that the device was not told of: it is longer than what it was told of.
    let bed = Bed::new(PACKED, SIZE);
    let mut driver = bed.driver(PACKED);
    add(&bed, &mut driver, 0);
    let _ = driver.publish();
    let buffer = Buffer { address: GuestAddress(bed.area(1)), len: 1, writable: false };
    driver.add(&[buffer; 3], Form::Direct, 1).unwrap();
    bed.write(bed.areas[0].0 + 12, &1u16.to_le_bytes());
    bed.write(bed.areas[0].0 + 14, &0x8080u16.to_le_bytes());
    assert_eq!(driver.recover(), Err(Violation::UsedId { id: 1 }));
}
