//! Which placements of a ring are taken, and which positions in it.

use memory::{GuestAddress, GuestMemory};
use wire::virtio::Features;

use super::ring::{Ring, buffer};
use crate::packed::{DeviceQueue, FIRST_POSITION, Layout};
use crate::tests::bed::{BASE, map};
use crate::{DeviceRing, LayoutError};

const NAMES: [&str; 3] = ["descriptor ring", "driver event structure", "device event structure"];

fn place(memory: &GuestMemory, size: u32, areas: [u64; 3]) -> Result<u16, LayoutError> {
    let [ring, driver, device] = areas.map(GuestAddress);
    Layout::new(memory, size, ring, driver, device).map(|layout| layout.size())
}

fn outside(result: Result<u16, LayoutError>) -> Option<&'static str> {
    match result {
        Err(LayoutError::Memory { area, .. }) => Some(area),
        _ => None,
    }
}

#[test]
fn sizes_are_all_up_to_32768() {
    let memory = map(&[(BASE, BASE + (1 << 19) + 8)]);
    let areas = [BASE, BASE + (1 << 19), BASE + (1 << 19) + 4];
    for size in [1, 2, 3, 7, 255, 256, 257, 32767, 32768] {
        assert_eq!(place(&memory, size, areas), Ok(size as u16));
    }
    for size in [0, 32769, 65535, 65536, 65537, u32::MAX] {
        assert_eq!(place(&memory, size, areas), Err(LayoutError::PackedSize(size)));
    }
}

#[test]
fn areas_are_aligned() {
    let memory = map(&[(BASE, BASE + 0x1000)]);
    let good = [BASE, BASE + 0x100, BASE + 0x104];
    assert_eq!(place(&memory, 7, good), Ok(7));
    for (index, (area, alignment)) in NAMES.into_iter().zip([16, 4, 4]).enumerate() {
        for shift in 1..alignment {
            let mut areas = good;
            areas[index] += shift;
            let address = GuestAddress(areas[index]);
            let expected = LayoutError::Alignment { area, address, alignment };
            assert_eq!(place(&memory, 7, areas), Err(expected));
        }
    }
}

#[test]
fn areas_are_inside_of_one_region_to_the_last_byte() {
    let (middle, end) = (BASE + 0x1000, BASE + 0x2000);
    let memory = map(&[(BASE, middle), (middle, end)]);
    let good = [BASE, BASE + 0x100, BASE + 0x200];
    for (index, (area, bytes)) in NAMES.into_iter().zip([7 * 16, 4, 4]).enumerate() {
        let at = |address: u64| {
            let mut areas = good;
            areas[index] = address;
            place(&memory, 7, areas)
        };
        let step = if index == 0 { 16 } else { 4 };
        for good in [end - bytes, middle - bytes, middle] {
            assert_eq!(at(good), Ok(7));
        }
        // An event structure behind the middle is whole again.
        let across = if index == 0 { middle - bytes + step } else { end };
        for bad in [end - bytes + step, across, BASE - step, end, 0, !(step - 1)] {
            assert_eq!(outside(at(bad)), Some(area), "{area} at {bad:#x}");
        }
    }
}

#[test]
fn positions_are_in_the_ring() {
    let layout = Ring::new(12).layout;
    // Where using has got to, whatever was taken from there on; one half stands for both.
    for (position, resumed) in [
        (FIRST_POSITION, FIRST_POSITION),
        (0x8000, FIRST_POSITION),
        (0, 0),
        (11, 0x000B_000B),
        (0x800B_000B, 0x800B_800B),
        (0x0005_8002, 0x0005_0005),
    ] {
        assert_eq!(layout.resume(position), Some(resumed), "{position:#x}");
    }
    for position in [12, 0x800C, 0x8000_800C, 0x800C_8000, 0x7FFF_0000, u32::MAX] {
        assert_eq!(layout.resume(position), None, "{position:#x}");
    }
}

#[test]
fn areas_over_each_other_crash_nothing() {
    const SIZE: u16 = 7;
    let places = [BASE, BASE + 16, BASE + 24, BASE + 28, BASE + 48];
    for driver in places {
        for device in places {
            let ring = Ring::at(map(&[(BASE, BASE + 0x1000)]), SIZE, BASE);
            let [ring_at, driver, device] = [BASE, driver, device].map(GuestAddress);
            let layout = Layout::new(&ring.memory, SIZE.into(), ring_at, driver, device).unwrap();
            for features in [Features::NONE, Features::EVENT_IDX] {
                let mut queue = DeviceQueue::new(layout.clone(), features, FIRST_POSITION);
                for round in 0..200u16 {
                    ring.offer(round % SIZE, buffer(BASE, 4, 0));
                    let mut translator = ring.memory.translator();
                    if let Ok(Some(chain)) =
                        queue.take_readable(&mut translator, 100, &mut Vec::new())
                    {
                        queue.give_back(chain, u32::MAX);
                    }
                    let _ = queue.publish();
                    let _ = queue.enable_kicks();
                    queue.disable_kicks();
                    assert!(queue.outstanding() <= SIZE);
                }
            }
        }
    }
}
