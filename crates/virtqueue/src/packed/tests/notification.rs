//! Who is to be notified, exactly.

use memory::GuestAddress;
use wire::virtio::Features;

use super::ring::{Ring, buffer, places};
use crate::packed::{DeviceQueue, DriverQueue, Event, Position};
use crate::{Buffer, DeviceRing, Form};

const SIZES: [u16; 3] = [1, 3, 8];
const EVENTS: Features = Features::EVENT_IDX;
const FLAGS: Features = Features::NONE;
const BOTH: [Features; 2] = [FLAGS, EVENTS];

/// Makes `count` chains available, takes them and gives them back; not published.
fn use_chains(ring: &Ring, device: &mut DeviceQueue, count: u16) {
    for _ in 0..count {
        let place = Position::from_bits(device.position() as u16);
        ring.describe(place.slot(), buffer(ring.area(0), 1, place.available()));
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
        for features in BOTH {
            let ring = Ring::new(8);
            let mut device = ring.device(features);
            assert!(!device.publish(), "nothing to tell");
            for (word, wanted) in [
                (0, true),
                (0x1_0000, false),
                (0x1_1234, false),
                (0x3_0000, true),
                (0xFFFD_0000, false),
                (0xFFFC_8001, true),
            ] {
                ring.set_driver_event_word(word);
                use_chains(&ring, &mut device, 2);
                assert_eq!(device.publish(), wanted, "{word:#x}");
                assert!(!device.publish(), "told once");
            }
        }
    }

    #[test]
    fn by_place_needs_the_feature() {
        let ring = Ring::new(8);
        let mut device = ring.device(FLAGS);
        for place in places(8) {
            ring.set_driver_event(Event::At(place));
            use_chains(&ring, &mut device, 1);
            assert!(device.publish(), "without it, that is taken for always");
        }
    }

    #[test]
    fn by_place_is_made_when_the_descriptor_is_used() {
        for size in SIZES {
            for base in places(size) {
                for count in 1..=size {
                    for asked in places(size) {
                        let ring = Ring::new(size);
                        let (_, mut device) = ring.pair_at(EVENTS, base.retreat(1, size));
                        use_chains(&ring, &mut device, 1);
                        ring.set_driver_event(Event::At(asked));
                        assert!(device.publish(), "the first time");
                        use_chains(&ring, &mut device, count);
                        let is_used = (0..count).any(|step| base.advance(step, size) == asked);
                        assert_eq!(device.publish(), is_used, "{count} from {base:?}: {asked:?}");
                        assert!(!device.publish(), "told once");
                    }
                }
            }
        }
    }

    #[test]
    fn is_made_first_after_a_start_unless_the_driver_polls() {
        for base in places(3) {
            for asked in places(3) {
                let ring = Ring::new(3);
                let (_, mut device) = ring.pair_at(EVENTS, base);
                ring.set_driver_event(Event::At(asked));
                assert!(!device.publish(), "nothing to tell");
                use_chains(&ring, &mut device, 1);
                assert!(device.publish());
            }
            let ring = Ring::new(3);
            let (_, mut device) = ring.pair_at(EVENTS, base);
            ring.set_driver_event(Event::Never);
            use_chains(&ring, &mut device, 1);
            assert!(!device.publish());
        }
    }

    #[test]
    fn asked_for_looks_once_more() {
        for features in BOTH {
            for base in places(5) {
                let ring = Ring::new(5);
                let (mut driver, mut device) = ring.pair_at(features, base);
                driver.disable_calls();
                assert_eq!(ring.driver_event(), Event::Never);
                assert!(!driver.enable_calls(), "nothing used yet");
                let expected = if features == EVENTS { Event::At(base) } else { Event::Always };
                assert_eq!(ring.driver_event(), expected);
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

    #[test]
    fn asked_for_within_a_batch_looks_no_further() {
        let features = EVENTS | Features::IN_ORDER;
        let ring = Ring::new(4);
        let mut driver = ring.driver(features);
        let mut device = ring.device(features);
        add_chains(&ring, &mut driver, 3);
        let _ = driver.publish();
        for _ in 0..3 {
            let (chain, _) = ring.take_readable(&mut device, 1).unwrap().unwrap();
            device.give_back(chain, 0);
        }
        let _ = device.publish();
        for _ in 0..3 {
            // The descriptors behind the first of the batch were never written.
            assert!(driver.enable_calls());
            assert!(driver.reap().unwrap().is_some());
        }
        assert!(!driver.enable_calls());
    }
}

mod kick {
    use super::*;

    #[test]
    fn by_flag_is_made_unless_the_device_says_no() {
        for features in BOTH {
            for (word, wanted) in
                [(0, true), (0x1_0000, false), (0x3_0000, true), (0x5_0001, false)]
            {
                let ring = Ring::new(8);
                let mut driver = ring.driver(features);
                ring.set_device_event_word(word);
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
    fn by_place_is_made_when_the_descriptor_is_available() {
        for size in SIZES {
            for base in places(size) {
                for count in 1..=size {
                    for asked in places(size) {
                        let ring = Ring::new(size);
                        let (mut driver, _) = ring.pair_at(EVENTS, base);
                        ring.set_device_event_word(Event::At(asked).to_word());
                        add_chains(&ring, &mut driver, count);
                        let is_there = (0..count).any(|step| base.advance(step, size) == asked);
                        assert_eq!(driver.publish(), is_there, "{count} from {base:?}: {asked:?}");
                        assert!(!driver.publish(), "told once");
                    }
                }
            }
        }
    }

    #[test]
    fn asked_for_looks_once_more() {
        for features in BOTH {
            for base in places(5) {
                let ring = Ring::new(5);
                let (mut driver, mut device) = ring.pair_at(features, base);
                assert_eq!(ring.device_event(), Event::Never);
                assert_eq!(device.enable_kicks(), Ok(false));
                let expected = if features == EVENTS { Event::At(base) } else { Event::Always };
                assert_eq!(ring.device_event(), expected);
                add_chains(&ring, &mut driver, 2);
                assert_eq!(device.enable_kicks(), Ok(false), "not published yet");
                assert!(driver.publish(), "asked for");
                assert_eq!(device.enable_kicks(), Ok(true), "published meanwhile");
                device.disable_kicks();
                assert_eq!(ring.device_event(), Event::Never);
                add_chains(&ring, &mut driver, 1);
                assert!(!driver.publish(), "not asked for");
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
        for features in BOTH {
            for base in places(5) {
                let ring = Ring::new(5);
                let (mut driver, mut device) = ring.pair_at(features, base);
                add_chains(&ring, &mut driver, 2);
                let _ = driver.publish();
                let take = |device: &mut DeviceQueue| {
                    ring.take_readable(device, 1).unwrap().map(|(chain, _)| chain)
                };
                let chains = [(); 2].map(|()| take(&mut device).unwrap());
                assert_eq!(take(&mut device), None);
                device.untake(&chains);
                assert_eq!(device.available(), Ok(2));
                assert_eq!(device.enable_kicks(), Ok(true));
                assert_eq!(device.available(), Ok(2));
                if features == EVENTS {
                    assert_eq!(ring.device_event(), Event::At(base.advance(2, 5)));
                }
                add_chains(&ring, &mut driver, 1);
                assert!(driver.publish(), "one more");

                // One that comes before kicks are on is seen instead.
                device.disable_kicks();
                assert_eq!(device.available(), Ok(2), "as it was known");
                assert_eq!(device.enable_kicks(), Ok(true));
                assert_eq!(device.available(), Ok(3));
            }
        }
    }

    #[test]
    fn is_asked_for_when_the_whole_ring_is_known_or_held() {
        for features in BOTH {
            let ring = Ring::new(3);
            let mut driver = ring.driver(features);
            let mut device = ring.device(features);
            add_chains(&ring, &mut driver, 3);
            let _ = driver.publish();
            let held = [(); 3].map(|()| ring.take_readable(&mut device, 1).unwrap().unwrap().0);
            assert_eq!(device.enable_kicks(), Ok(false));
            device.untake(&held[1..]);
            assert_eq!(device.enable_kicks(), Ok(true));
            assert_eq!(device.available(), Ok(2));
            device.give_back(held[0], 0);
            let _ = device.publish();
            assert!(driver.reap().unwrap().is_some());
            add_chains(&ring, &mut driver, 1);
            assert!(driver.publish(), "the next round's first");
            assert_eq!(device.enable_kicks(), Ok(true));
            assert_eq!(device.available(), Ok(3));
        }
    }

    #[test]
    fn is_off_after_a_start_and_in_another_place() {
        for features in BOTH {
            let (here, there) = (Ring::new(3), Ring::new(3));
            here.set_device_event_word(0);
            let mut device = here.device(features);
            assert_eq!(here.device_event(), Event::Never);
            assert_eq!(device.enable_kicks(), Ok(false));
            device.relocate(there.layout.clone());
            assert_eq!(there.device_event(), Event::Never);
            let mut driver = there.driver(features);
            add_chains(&there, &mut driver, 1);
            assert!(!driver.publish(), "kicks are off");
            assert_eq!(device.enable_kicks(), Ok(true));
            let (chain, _) = there.take_readable(&mut device, 1).unwrap().unwrap();
            device.give_back(chain, 0);
            assert_eq!(device.enable_kicks(), Ok(false));
            add_chains(&there, &mut driver, 1);
            assert!(driver.publish(), "kicks are on");
        }
    }
}
