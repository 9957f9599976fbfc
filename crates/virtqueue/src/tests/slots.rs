//! The driver with a buffer for each entry, against our device and against one that breaks the rules.

use memory::GuestAddress;
use wire::split::{RING_ENTRIES, RING_INDEX};
use wire::virtio::Features;

use super::bed::{AREA, Bed, PACKED, SPLIT, fill, gather};
use crate::packed::{Descriptor, Position};
use crate::{Buffers, Chain, DeviceQueue, SlotQueue, Violation};

/// More than 2^16.
const CHAINS: u32 = 66_000;
const LEN: u32 = 40;

fn queue(bed: &Bed, features: Features, writable: bool) -> SlotQueue {
    let start = GuestAddress(bed.buffers);
    let buffers = Buffers { start, stride: AREA as u32, len: LEN, writable };
    SlotQueue::new(bed.layout(), features, buffers)
}

/// Numbers that look random.
fn next(state: &mut u32) -> usize {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 16) as usize
}

/// A chain that the device took.
fn take(bed: &Bed, device: &mut DeviceQueue, writable: bool, number: u32) -> Option<(Chain, u32)> {
    let mut translator = bed.memory.translator();
    if writable {
        let mut slices = Vec::new();
        let chain = device.take_writable(&mut translator, 1000, &mut slices).unwrap()?;
        fill(&slices, &number.to_le_bytes());
        Some((chain, number))
    } else {
        let mut slices = Vec::new();
        let chain = device.take_readable(&mut translator, 1000, &mut slices).unwrap()?;
        let bytes = gather(&slices);
        assert_eq!(bytes.len() as u32, LEN);
        Some((chain, u32::from_le_bytes(*bytes.first_chunk().unwrap())))
    }
}

/// Slots go round; what is written to them arrives, once, whatever the order that they are used in.
fn go_round(format: Features, extra: Features, size: u16, writable: bool) {
    let bed = Bed::new(format, size);
    let features = format | extra;
    let mut driver = queue(&bed, features, writable);
    let mut device = bed.device(features);
    let in_order = extra.contains(Features::IN_ORDER);
    let (mut random, mut taken) = (size.into(), Vec::new());
    let (mut posted, mut reaped) = (0u32, 0);
    // Of each slot, the number of the chain that it is; of each chain, whether it was reaped.
    let (mut numbers, mut seen) = (vec![0; size.into()], Vec::new());
    while reaped < CHAINS {
        for _ in 0..=next(&mut random) % usize::from(size) {
            let Some(slot) = driver.post() else { break };
            if !writable {
                bed.write(bed.buffers + u64::from(slot) * AREA, &posted.to_le_bytes());
                numbers[usize::from(slot)] = posted;
            }
            posted += 1;
            seen.push(false);
        }
        let _ = driver.publish();
        while let Some(chain) = take(&bed, &mut device, writable, seen.len() as u32) {
            taken.push(chain);
        }
        for _ in 0..=next(&mut random) % usize::from(size) {
            if taken.is_empty() {
                break;
            }
            let which = if in_order { 0 } else { next(&mut random) % taken.len() };
            let (chain, _) = taken.remove(which);
            device.give_back(chain, if writable { 4 } else { 0 });
        }
        let _ = device.publish();
        let before = driver.outstanding();
        let mut count = 0;
        let found = driver.reap(|slot, written| {
            count += 1;
            assert_eq!(written, if writable { 4 } else { 0 });
            if !writable {
                let seen = &mut seen[numbers[usize::from(slot)] as usize];
                assert!(!std::mem::replace(seen, true), "a slot is reaped once");
            }
        });
        assert_eq!(found, Ok(count));
        assert_eq!(driver.outstanding(), before - count);
        reaped += u32::from(count);
    }
    assert_eq!(posted - reaped, driver.outstanding().into());
    if !writable {
        assert_eq!(seen.iter().filter(|seen| **seen).count() as u32, reaped);
    }
}

#[test]
fn slots_go_round_a_split_ring() {
    go_round(SPLIT, Features::NONE, 1, false);
    go_round(SPLIT, Features::EVENT_IDX, 64, false);
    go_round(SPLIT, Features::NONE, 64, true);
    go_round(SPLIT, Features::IN_ORDER, 64, false);
    go_round(SPLIT, Features::IN_ORDER, 16, true);
}

#[test]
fn slots_go_round_a_packed_ring() {
    go_round(PACKED, Features::NONE, 1, false);
    go_round(PACKED, Features::EVENT_IDX, 51, false);
    go_round(PACKED, Features::NONE, 64, true);
    go_round(PACKED, Features::IN_ORDER, 51, false);
    go_round(PACKED, Features::IN_ORDER, 16, true);
}

#[test]
fn a_slot_may_be_shorter() {
    for format in [SPLIT, PACKED] {
        let bed = Bed::new(format, 4);
        let mut driver = queue(&bed, format, false);
        driver.set_len(0, 7);
        assert_eq!([driver.post(), driver.post()], [Some(0), Some(1)]);
        let _ = driver.publish();
        let mut device = bed.device(format);
        let mut lens = Vec::new();
        for _ in 0..2 {
            let mut slices = Vec::new();
            let taken = device.take_readable(&mut bed.memory.translator(), 1000, &mut slices);
            let _ = taken.unwrap().unwrap();
            lens.push(gather(&slices).len() as u32);
        }
        assert_eq!(lens, [7, LEN]);
    }
}

#[test]
fn a_slot_may_be_filled_to_another_length_each_time() {
    for format in [SPLIT, PACKED] {
        let bed = Bed::new(format, 4);
        let mut driver = queue(&bed, format, false);
        let mut device = bed.device(format);
        let mut lens = Vec::new();
        for round in 0..3 {
            let mut slots = Vec::new();
            let posted = driver.post_each(9, |slot| {
                slots.push(slot);
                // The last one stays as it was.
                (slots.len() < 4).then_some(1 + 4 * round + u32::from(slot))
            });
            assert_eq!((posted, slots), (4, vec![0, 1, 2, 3]));
            assert_eq!(driver.post_each(1, |_| panic!("all are posted")), 0);
            let _ = driver.publish();
            for _ in 0..4 {
                let mut slices = Vec::new();
                let taken = device.take_readable(&mut bed.memory.translator(), 1000, &mut slices);
                lens.push(gather(&slices).len() as u32);
                device.give_back(taken.unwrap().unwrap(), 0);
            }
            let _ = device.publish();
            assert_eq!(driver.reap(|_, _| ()).unwrap(), 4);
        }
        assert_eq!(lens, [1, 2, 3, LEN, 5, 6, 7, LEN, 9, 10, 11, LEN]);
    }
}

#[test]
fn the_device_is_kicked_only_if_it_wants_to_be() {
    for format in [SPLIT, PACKED] {
        for extra in [Features::NONE, Features::EVENT_IDX] {
            let bed = Bed::new(format, 4);
            let mut driver = queue(&bed, format | extra, false);
            let mut device = bed.device(format | extra);
            assert!(!driver.publish(), "nothing was posted");
            device.enable_kicks().unwrap();
            driver.post().unwrap();
            assert!(driver.publish());
            device.disable_kicks();
            driver.post().unwrap();
            assert!(!driver.publish());
        }
    }
}

#[test]
fn a_device_that_uses_what_it_does_not_hold() {
    for extra in [Features::NONE, Features::IN_ORDER] {
        // Slots 0 and 1 are the device's; 2 was never published, 3 never posted.
        let post = |driver: &mut SlotQueue| {
            let _ = (driver.post(), driver.post());
            let _ = driver.publish();
            let _ = driver.post();
        };
        for id in [2, 3, 4, 0xffff] {
            let bed = Bed::new(SPLIT, 4);
            let mut driver = queue(&bed, SPLIT | extra, false);
            post(&mut driver);
            let [_, _, used] = bed.areas;
            bed.write(used.0 + RING_INDEX, &1u16.to_le_bytes());
            bed.write(used.0 + RING_ENTRIES, &u32::from(id).to_le_bytes());
            let found = driver.reap(|_, _| ());
            // A slot that was posted and is not yet published is harmless, except in order.
            if id == 2 && extra == Features::NONE {
                assert_eq!(found, Ok(1));
            } else {
                assert_eq!(found, Err(Violation::UsedId { id: id.into() }), "{id}, {extra}");
            }

            let bed = Bed::new(PACKED, 4);
            let mut driver = queue(&bed, PACKED | extra, false);
            post(&mut driver);
            let used = Position::FIRST.used();
            let [_, second] = Descriptor { address: 0, length: 0, id, flags: used }.to_words();
            bed.write(bed.areas[0].0 + 8, &second.to_le_bytes());
            let found = driver.reap(|_, _| ());
            if id == 2 && extra == Features::NONE {
                assert_eq!(found, Ok(1));
            } else {
                assert_eq!(found, Err(Violation::UsedId { id: id.into() }), "{id}, {extra}");
            }
        }
    }
}

#[test]
fn a_device_that_uses_more_than_there_is() {
    let bed = Bed::new(SPLIT, 4);
    let mut driver = queue(&bed, SPLIT, false);
    let _ = driver.post();
    let _ = driver.publish();
    let _ = driver.post();
    bed.write(bed.areas[2].0 + RING_INDEX, &2u16.to_le_bytes());
    let violation = Violation::UsedIndex { found: 2, taken: 0, outstanding: 1 };
    assert_eq!(driver.reap(|_, _| ()), Err(violation));
}

#[test]
fn a_device_that_uses_twice() {
    let bed = Bed::new(SPLIT, 4);
    let mut driver = queue(&bed, SPLIT, false);
    let _ = (driver.post(), driver.post());
    let _ = driver.publish();
    bed.write(bed.areas[2].0 + RING_INDEX, &2u16.to_le_bytes());
    // Both entries name slot 0.
    let mut reaped = 0;
    assert_eq!(driver.reap(|_, _| reaped += 1), Err(Violation::UsedId { id: 0 }));
    assert_eq!(reaped, 1);
}

#[test]
fn a_device_that_stands_for_more_than_it_used() {
    let bed = Bed::new(SPLIT, 4);
    let mut driver = queue(&bed, SPLIT | Features::IN_ORDER, false);
    let _ = (driver.post(), driver.post());
    let _ = driver.publish();
    bed.write(bed.areas[2].0 + RING_INDEX, &1u16.to_le_bytes());
    bed.write(bed.areas[2].0 + RING_ENTRIES, &1u32.to_le_bytes());
    assert_eq!(driver.reap(|_, _| ()), Err(Violation::UsedId { id: 1 }));
}
