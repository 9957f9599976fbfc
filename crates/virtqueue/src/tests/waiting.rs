//! How much a driver has made available, for reports.

use memory::GuestAddress;

use super::bed::{Bed, PACKED, SPLIT};
use crate::{Buffer, Form};

#[test]
fn what_is_available_and_not_taken_is_counted() {
    for (format, size) in [SPLIT, PACKED].into_iter().flat_map(|f| [1, 2, 8, 256].map(|s| (f, s))) {
        let bed = Bed::new(format, size);
        let (mut driver, mut device) = (bed.driver(format), bed.device(format));
        let buffer = Buffer { address: GuestAddress(bed.area(0)), len: 1, writable: true };
        assert_eq!(device.waiting(), 0);
        // From many places of the ring, and past its end.
        for round in 0..2 * size {
            let posted = 1 + round % size;
            for token in 0..posted {
                driver.add(&[buffer], Form::Direct, token.into()).unwrap();
            }
            let _ = driver.publish();
            assert_eq!(device.waiting(), posted, "{size} {round}");
            let mut chains = Vec::new();
            for left in (0..posted).rev() {
                let mut translator = bed.memory.translator();
                let taken = device.take_writable(&mut translator, 1, &mut Vec::new()).unwrap();
                chains.extend(taken);
                assert_eq!(device.waiting(), left, "{size} {round}");
            }
            for chain in chains {
                device.give_back(chain, 1);
            }
            let _ = device.publish();
            assert_eq!(device.waiting(), 0, "{size} {round}");
            while driver.reap().unwrap().is_some() {}
        }
    }
}

/// Whatever a driver writes, there is never more than fits the ring.
#[test]
fn nobody_makes_more_available_than_there_is() {
    for format in [SPLIT, PACKED] {
        let bed = Bed::new(format, 8);
        let device = bed.device(format);
        for byte in 0..=255u8 {
            bed.write(bed.areas[0].0, &[byte; 128]);
            bed.write(bed.areas[1].0, &[byte; 4]);
            assert!(device.waiting() <= 8, "{byte}");
        }
    }
}
