//! Which placements of a ring are taken.

use memory::{GuestAddress, GuestMemory};
use wire::virtio::Features;

use crate::split::{DeviceQueue, Layout};
use crate::tests::bed::{BASE, map};
use crate::{DeviceRing, LayoutError};

const TABLE: &str = "descriptor table";
const AVAILABLE: &str = "available ring";
const USED: &str = "used ring";

fn place(memory: &GuestMemory, size: u32, areas: [u64; 3]) -> Result<u16, LayoutError> {
    let [table, available, used] = areas.map(GuestAddress);
    Layout::new(memory, size, table, available, used).map(|layout| layout.size())
}

fn outside(result: Result<u16, LayoutError>) -> Option<&'static str> {
    match result {
        Err(LayoutError::Memory { area, .. }) => Some(area),
        _ => None,
    }
}

#[test]
fn sizes_are_powers_of_two_up_to_32768() {
    let memory = map(&[(BASE, BASE + (2 << 20))]);
    let areas = [BASE, BASE + (1 << 20), BASE + (1 << 20) + (1 << 17)];
    for size in (0..=15).map(|power| 1 << power) {
        assert_eq!(place(&memory, size, areas), Ok(size as u16));
    }
    for size in [0, 3, 255, 32767, 32769, 65535, 65536, 65537, 1 << 31, u32::MAX] {
        assert_eq!(place(&memory, size, areas), Err(LayoutError::Size(size)));
    }
}

#[test]
fn areas_are_aligned() {
    let memory = map(&[(BASE, BASE + 0x1000)]);
    let good = [BASE, BASE + 0x100, BASE + 0x200];
    assert_eq!(place(&memory, 8, good), Ok(8));
    let alignments = [(TABLE, 16), (AVAILABLE, 2), (USED, 4)];
    for (index, (area, alignment)) in alignments.into_iter().enumerate() {
        for shift in 1..alignment {
            let mut areas = good;
            areas[index] += shift;
            let address = GuestAddress(areas[index]);
            let expected = LayoutError::Alignment { area, address, alignment };
            assert_eq!(place(&memory, 8, areas), Err(expected));
        }
        let mut areas = good;
        areas[index] += alignment;
        assert_eq!(place(&memory, 8, areas), Ok(8));
    }
}

#[test]
fn alignment_is_checked_where_the_memory_really_is_too() {
    // The guest sees an aligned address; the file offset makes it an odd one.
    let memory = map(&[(BASE + 15, BASE + 16), (BASE + 16, BASE + 0x1000)]);
    let areas = [BASE + 0x10, BASE + 0x100, BASE + 0x200];
    assert!(outside(place(&memory, 8, areas)).is_some());
}

#[test]
fn areas_are_inside_of_one_region_to_the_last_byte() {
    let (middle, end) = (BASE + 0x1000, BASE + 0x2000);
    let memory = map(&[(BASE, middle), (middle, end)]);
    let good = [BASE, BASE + 0x100, BASE + 0x200];
    // Bytes of each area of a ring of 8, event words included.
    let areas = [(TABLE, 128), (AVAILABLE, 22), (USED, 70)];
    for (index, (area, bytes)) in areas.into_iter().enumerate() {
        let alignment = [16, 2, 4][index];
        let at = |address: u64| {
            let mut areas = good;
            areas[index] = address;
            place(&memory, 8, areas)
        };
        let last = |end: u64| (end - bytes) & !(alignment - 1);
        assert_eq!(at(last(end)), Ok(8));
        assert_eq!(at(last(middle)), Ok(8));
        assert_eq!(at(middle), Ok(8));
        for address in [
            last(end) + alignment,
            last(middle) + alignment,
            BASE - alignment,
            end,
            0,
            !(alignment - 1),
        ] {
            assert_eq!(outside(at(address)), Some(area), "{area} at {address:#x}");
        }
    }
}

#[test]
fn areas_over_each_other_crash_nothing() {
    const SIZE: u16 = 8;
    let places = [BASE, BASE + 16, BASE + 48, BASE + 128];
    for table in places {
        for available in places {
            for used in places {
                let memory = map(&[(BASE, BASE + 0x1000)]);
                let [table, available, used] = [table, available, used].map(GuestAddress);
                let layout = Layout::new(&memory, SIZE.into(), table, available, used).unwrap();
                for features in [Features::NONE, Features::EVENT_IDX] {
                    let mut device =
                        DeviceQueue::new(layout.clone(), features | Features::INDIRECT_DESC, 0);
                    for index in 0..200u16 {
                        layout.available[1].store(index, std::sync::atomic::Ordering::Relaxed);
                        let mut slices = Vec::new();
                        let mut translator = memory.translator();
                        if let Ok(Some(chain)) =
                            device.take_readable(&mut translator, 100, &mut slices)
                        {
                            device.give_back(chain, 0xFFFF_FFFF);
                        }
                        let _ = device.publish();
                        let _ = device.enable_kicks();
                        device.disable_kicks();
                        assert!(device.outstanding() <= SIZE);
                    }
                }
            }
        }
    }
}
