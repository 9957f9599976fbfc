//! Who is to be notified, exactly.

use memory::GuestAddress;
use wire::split::{NO_INTERRUPT, NO_NOTIFY};
use wire::virtio::Features;

use super::ring::{Ring, buffer};
use crate::split::{DeviceQueue, DriverQueue};
use crate::{Buffer, DeviceRing, Form};

const SIZE: u16 = 8;
const EVENTS: Features = Features::EVENT_IDX;
const FLAGS: Features = Features::NONE;
/// Where rings begin: index arithmetic wraps behind the last two.
const BASES: [u16; 4] = [0, 1000, 65533, 65535];

/// Makes `count` chains available, takes them and gives them back; not published.
fn use_chains(ring: &Ring, device: &mut DeviceQueue, count: u16) {
    for _ in 0..count {
        let index = device.position().wrapping_add(1);
        ring.describe(0, buffer(ring.area(0), 1, 0, None));
        ring.offer(0, index);
        let (chain, _) = ring.take_readable(device, 100).unwrap().unwrap();
        device.give_back(chain, 0);
    }
}

fn add_chains(ring: &Ring, driver: &mut DriverQueue, count: u16) {
    let chain = [Buffer { address: GuestAddress(ring.area(0)), len: 1, writable: false }];
    for _ in 0..count {
        driver.add(&chain, Form::Direct, 0).unwrap();
    }
}

mod call {
    use super::*;

    #[test]
    fn by_flag_is_made_unless_the_driver_says_no() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(FLAGS);
        assert!(!device.publish(), "nothing to tell");
        for (flags, wanted) in [(0, true), (NO_INTERRUPT, false), (0, true), (0xFFFE, true)] {
            ring.set_available_flags(flags);
            // With flags, the event word means nothing.
            for event in [0, 0x8000, 0xFFFF] {
                ring.set_used_event(event);
                use_chains(&ring, &mut device, 2);
                assert_eq!(device.publish(), wanted);
                assert!(!device.publish(), "told once");
            }
        }
    }

    #[test]
    fn by_index_is_made_when_the_event_is_crossed() {
        for base in BASES {
            for count in 1..=SIZE {
                for ahead in [65534, 65535, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 32768] {
                    let ring = Ring::new(SIZE);
                    let mut device = ring.device_at(EVENTS, base.wrapping_sub(1));
                    use_chains(&ring, &mut device, 1);
                    assert!(device.publish(), "the first time");
                    // With event words, the flag means nothing.
                    ring.set_available_flags(NO_INTERRUPT * (count & 1));
                    ring.set_used_event(base.wrapping_add(ahead));
                    use_chains(&ring, &mut device, count);
                    assert_eq!(
                        device.publish(),
                        ahead < count,
                        "{count} from {base}, event {ahead} ahead"
                    );
                    assert!(!device.publish(), "told once");
                }
            }
        }
    }

    #[test]
    fn is_decided_from_one_publication_to_the_next() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(EVENTS);
        use_chains(&ring, &mut device, 1);
        assert!(device.publish());
        ring.set_used_event(4);
        use_chains(&ring, &mut device, 2);
        assert!(!device.publish());
        // Where the driver asks for an entry that is past, it has seen it when it looked again.
        ring.set_used_event(2);
        use_chains(&ring, &mut device, 2);
        assert!(!device.publish());
    }

    #[test]
    fn is_always_made_first_after_a_start() {
        for base in BASES {
            for event in [0, base, base.wrapping_sub(1), base.wrapping_add(1), 0x4321] {
                let ring = Ring::new(SIZE);
                ring.set_used_event(event);
                let mut device = ring.device_at(EVENTS, base);
                assert!(!device.publish(), "nothing to tell");
                use_chains(&ring, &mut device, 1);
                assert!(device.publish());
                ring.set_used_event(base);
                use_chains(&ring, &mut device, 1);
                assert!(!device.publish());

                let mut restarted = ring.device_at(EVENTS, device.position());
                use_chains(&ring, &mut restarted, 1);
                assert!(restarted.publish());
            }
        }
    }

    #[test]
    fn is_not_wanted_while_the_driver_polls() {
        let ring = Ring::new(SIZE);
        let mut driver = ring.driver(EVENTS);
        let mut device = ring.device(EVENTS);
        driver.disable_calls();
        for round in 0..40_000 {
            add_chains(&ring, &mut driver, 2);
            let _ = driver.publish();
            while let Some((chain, _)) = ring.take_readable(&mut device, 1).unwrap() {
                device.give_back(chain, 0);
            }
            // Once unconditionally, and once when the index comes round to the word left behind.
            let expected = round == 0 || round == 32767;
            assert_eq!(device.publish(), expected, "{round}");
            while driver.reap().unwrap().is_some() {}
        }
    }

    #[test]
    fn asked_for_looks_once_more() {
        for features in [FLAGS, EVENTS] {
            let ring = Ring::new(SIZE);
            let mut driver = ring.driver(features);
            let mut device = ring.device(features);
            driver.disable_calls();
            assert!(!driver.enable_calls(), "nothing used yet");
            driver.disable_calls();
            add_chains(&ring, &mut driver, 3);
            let _ = driver.publish();
            for _ in 0..3 {
                let (chain, _) = ring.take_readable(&mut device, 1).unwrap().unwrap();
                device.give_back(chain, 0);
            }
            assert!(!driver.enable_calls(), "not published yet");
            assert!(device.publish(), "asked for");
            assert!(driver.enable_calls(), "used meanwhile");
            while driver.reap().unwrap().is_some() {}
            assert!(!driver.enable_calls());
        }
    }
}

mod kick {
    use super::*;

    #[test]
    fn by_flag_is_made_unless_the_device_says_no() {
        for (flags, wanted) in [(0, true), (NO_NOTIFY, false), (0xFFFE, true)] {
            for event in [0, 0x8000, 0xFFFF] {
                let ring = Ring::new(SIZE);
                let mut driver = ring.driver(FLAGS);
                ring.set_used_flags(flags);
                ring.set_available_event(event);
                assert!(!driver.publish(), "nothing to tell");
                for _ in 0..2 {
                    add_chains(&ring, &mut driver, 2);
                    assert_eq!(driver.publish(), wanted);
                    assert!(!driver.publish(), "told once");
                }
            }
        }
    }

    #[test]
    fn by_index_is_made_when_the_event_is_crossed() {
        for base in BASES {
            for count in 1..=SIZE {
                for ahead in [65534, 65535, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 32768] {
                    let ring = Ring::new(SIZE);
                    let mut driver = ring.driver_at(EVENTS, base);
                    ring.set_used_flags(NO_NOTIFY * (count & 1));
                    ring.set_available_event(base.wrapping_add(ahead));
                    add_chains(&ring, &mut driver, count);
                    assert_eq!(
                        driver.publish(),
                        ahead < count,
                        "{count} from {base}, event {ahead} ahead"
                    );
                    assert!(!driver.publish(), "told once");
                }
            }
        }
    }

    #[test]
    fn asked_for_looks_once_more() {
        for features in [FLAGS, EVENTS] {
            for base in BASES {
                let ring = Ring::new(SIZE);
                let mut driver = ring.driver_at(features, base);
                let mut device = ring.device_at(features, base);
                assert_eq!(device.enable_kicks(), Ok(false));
                add_chains(&ring, &mut driver, 2);
                assert_eq!(device.enable_kicks(), Ok(false), "not published yet");
                assert!(driver.publish(), "asked for");
                assert_eq!(device.enable_kicks(), Ok(true), "published meanwhile");
                device.disable_kicks();
                add_chains(&ring, &mut driver, 1);
                let again = driver.publish();
                assert!(!again || features == EVENTS, "not asked for");
                // One that is taken leaves others waiting.
                let _taken = ring.take_readable(&mut device, 1).unwrap().unwrap();
                assert_eq!(device.enable_kicks(), Ok(true));
                let _taken = ring.take_readable(&mut device, 1).unwrap().unwrap();
                let _taken = ring.take_readable(&mut device, 1).unwrap().unwrap();
                assert_eq!(device.enable_kicks(), Ok(false));
            }
        }
    }

    #[test]
    fn is_asked_for_beyond_the_chains_that_are_known() {
        // A receive ring with too few buffers for a frame: more of them is what to wait for.
        for features in [FLAGS, EVENTS] {
            for base in BASES {
                let ring = Ring::new(SIZE);
                let mut driver = ring.driver_at(features, base);
                let mut device = ring.device_at(features, base);
                add_chains(&ring, &mut driver, 2);
                let _ = driver.publish();
                assert_eq!(device.available(), Ok(2));
                assert_eq!(device.enable_kicks(), Ok(true));
                assert_eq!(device.available(), Ok(2));
                add_chains(&ring, &mut driver, 1);
                assert!(driver.publish(), "one more");

                // One that comes before kicks are on is seen instead.
                device.disable_kicks();
                add_chains(&ring, &mut driver, 1);
                let _ = driver.publish();
                assert_eq!(device.available(), Ok(2), "as it was known");
                assert_eq!(device.enable_kicks(), Ok(true));
                assert_eq!(device.available(), Ok(4));
            }
        }
    }

    #[test]
    fn is_off_after_a_start_whatever_was_left_there() {
        for base in BASES {
            let ring = Ring::new(SIZE);
            ring.set_available_index(base);
            ring.set_available_event(base);
            let mut device = ring.device_at(EVENTS, base);
            assert_eq!(ring.available_event(), base.wrapping_sub(1));
            assert_eq!(device.enable_kicks(), Ok(false));
            assert_eq!(ring.available_event(), base);

            let mut device = ring.device_at(FLAGS, base);
            assert_eq!(ring.used_flags(), NO_NOTIFY);
            assert_eq!(device.enable_kicks(), Ok(false));
            assert_eq!(ring.used_flags(), 0);
        }
    }

    #[test]
    fn is_asked_for_in_another_place_after_the_ring_moved() {
        for features in [FLAGS, EVENTS] {
            let (here, there) = (Ring::new(SIZE), Ring::new(SIZE));
            let mut device = here.device(features);
            assert_eq!(device.enable_kicks(), Ok(false));
            there.set_used_flags(NO_NOTIFY);
            there.set_available_event(77);
            device.relocate(there.layout.clone());
            let mut driver = there.driver(features);
            add_chains(&there, &mut driver, 1);
            assert!(!driver.publish(), "kicks are off");
            let (chain, _) = there.take_readable(&mut device, 1).unwrap().unwrap();
            device.give_back(chain, 0);
            assert_eq!(device.enable_kicks(), Ok(false));
            add_chains(&there, &mut driver, 1);
            assert!(driver.publish(), "kicks are on");
        }
    }

    #[test]
    fn flag_is_stored_as_kicks_go_on_and_off() {
        let ring = Ring::new(SIZE);
        let mut device = ring.device(FLAGS);
        for _ in 0..2 {
            assert_eq!(ring.used_flags(), NO_NOTIFY);
            assert_eq!(device.enable_kicks(), Ok(false));
            assert_eq!(ring.used_flags(), 0);
            device.disable_kicks();
        }
    }
}
