//! A driver is called for all that was exposed since it was last decided, however often that was.

use std::sync::atomic::{Ordering, fence};

use memory::GuestAddress;
use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT};
use crate::{Buffer, Form};

#[test]
fn what_was_exposed_twice_is_decided_on_once() {
    for format in [SPLIT, PACKED].map(|format| format | Features::EVENT_IDX) {
        let bed = Bed::new(format, 8);
        let (mut driver, mut device) = (bed.driver(format), bed.device(format));
        let buffer = Buffer { address: GuestAddress(bed.area(0)), len: 1, writable: true };
        // From many places of the ring, and past its end. The first call after a start is no decision.
        for round in 0..20 {
            for token in 0..3 {
                driver.add(&[buffer], Form::Direct, token).unwrap();
            }
            let _ = driver.publish();
            // For the next one that is used.
            assert!(!driver.enable_calls(), "{round}");
            for left in [2, 1, 0] {
                let mut translator = bed.memory.translator();
                let taken = device.take_writable(&mut translator, 1, &mut Vec::new()).unwrap();
                device.give_back(taken.expect("a chain"), 1);
                // The last one is not exposed by itself.
                assert!(left == 0 || device.expose(), "{round}");
            }
            assert!(device.expose(), "{round}");
            fence(Ordering::SeqCst);
            assert!(device.wants_call(), "{round}: it is the first of three that it waits for");
            assert!(!device.expose(), "{round}: nothing is left");
            assert!(!device.publish(), "{round}");
            driver.disable_calls();
            while driver.reap().unwrap().is_some() {}
        }
    }
}
