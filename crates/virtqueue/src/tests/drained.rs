//! When a device may be sure that its driver has taken everything.

use memory::GuestAddress;
use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT};
use crate::{Buffer, DeviceQueue, DriverQueue, Form};

const SIZES: [u16; 4] = [1, 2, 8, 256];

/// The device uses one chain more; not published.
fn use_one(bed: &Bed, driver: &mut DriverQueue, device: &mut DeviceQueue) {
    let buffer = Buffer { address: GuestAddress(bed.area(0)), len: 1, writable: true };
    driver.add(&[buffer], Form::Direct, 0).unwrap();
    let _ = driver.publish();
    let mut translator = bed.memory.translator();
    let chain = device.take_writable(&mut translator, 1, &mut Vec::new()).unwrap().unwrap();
    device.give_back(chain, 1);
}

#[test]
fn a_driver_that_waits_has_taken_everything() {
    for (format, size) in [SPLIT, PACKED].into_iter().flat_map(|f| SIZES.map(|size| (f, size))) {
        let bed = Bed::new(format, size);
        let features = format | Features::EVENT_IDX;
        let (mut driver, mut device) = (bed.driver(features), bed.device(features));
        // Some rounds, and past the end of the ring.
        for round in 0..3 * u32::from(size) + 2 {
            let _ = driver.enable_calls();
            assert!(device.is_drained(), "{size} {round}: it waits for the next");
            use_one(&bed, &mut driver, &mut device);
            assert!(!device.is_drained(), "not even published");
            let _ = device.publish();
            assert!(!device.is_drained(), "published, not taken");
            driver.disable_calls();
            assert!(driver.reap().unwrap().is_some());
            assert!(!device.is_drained(), "taken, and it may be at work with it");
        }
    }
}

#[test]
fn without_event_idx_nothing_is_known() {
    for format in [SPLIT, PACKED] {
        let bed = Bed::new(format, 8);
        let (mut driver, mut device) = (bed.driver(format), bed.device(format));
        let _ = driver.enable_calls();
        assert!(!device.is_drained());
        use_one(&bed, &mut driver, &mut device);
        let _ = device.publish();
        assert!(driver.reap().unwrap().is_some());
        let _ = driver.enable_calls();
        assert!(!device.is_drained());
    }
}
