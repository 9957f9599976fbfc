//! A ring in shared memory, of either format, with tables and buffers beside it.
//!
//! ```text
//! guest address  BASE          the ring's three areas, indirect tables
//!                self.buffers  one buffer area for each descriptor
//! ```
//!
//! A border between two adjacent regions lies inside of the first buffer area, at an odd address.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadSlice, RegionRequest, SharedMemory,
    WriteCursor, WriteSlice,
};
use wire::split::RING_INDEX;
use wire::virtio::Features;

use crate::fields::Fields;
use crate::packed::{Descriptor, Position};
use crate::{DeviceQueue, DriverQueue, IndirectTables, Layout};

pub const BASE: u64 = 0x1_0000;
/// Descriptors in each indirect table of the driver.
pub const TABLE_ENTRIES: u16 = 8;
/// Bytes of each buffer area.
pub const AREA: u64 = 256;
/// Where the region border is in the first buffer area.
pub const BORDER: u64 = 21;

pub const SPLIT: Features = Features::NONE;
pub const PACKED: Features = Features::RING_PACKED;

pub struct Bed {
    pub memory: GuestMemory,
    /// The ring's, as far as they say its format.
    pub format: Features,
    pub size: u16,
    pub areas: [GuestAddress; 3],
    pub tables: GuestAddress,
    pub buffers: u64,
}

impl Bed {
    pub fn new(format: Features, size: u16) -> Self {
        let (_, _, buffers) = places(format, size, BASE);
        let border = buffers + BORDER;
        let end = buffers + u64::from(size) * AREA;
        Self::at(map(&[(BASE, border), (border, end)]), format, size, BASE)
    }

    /// A ring at `start` of a memory that need not hold tables and buffers.
    pub fn at(memory: GuestMemory, format: Features, size: u16, start: u64) -> Self {
        let (areas, tables, buffers) = places(format, size, start);
        let (areas, tables) = (areas.map(GuestAddress), GuestAddress(tables));
        Self { memory, format, size, areas, tables, buffers }
    }

    pub fn layout(&self) -> Layout {
        let [one, two, three] = self.areas;
        Layout::new(&self.memory, self.format, self.size.into(), one, two, three).unwrap()
    }

    pub fn tables(&self) -> IndirectTables {
        IndirectTables::new(&self.memory, self.tables, self.size, TABLE_ENTRIES).unwrap()
    }

    pub fn driver(&self, features: Features) -> DriverQueue {
        DriverQueue::new(self.layout(), features, Some(self.tables()))
    }

    pub fn device(&self, features: Features) -> DeviceQueue {
        DeviceQueue::new(self.layout(), features, Layout::first_position(self.format))
    }

    /// Both sides, having come with the ring to `position`, as an available position has it.
    pub fn pair_at(&self, features: Features, position: u16) -> (DriverQueue, DeviceQueue) {
        let mut driver = self.driver(features);
        match (&mut driver, self.layout()) {
            (DriverQueue::Split(driver), _) => {
                for area in &self.areas[1..] {
                    self.write(area.0 + RING_INDEX, &position.to_le_bytes());
                }
                driver.start_at(position);
            }
            (DriverQueue::Packed(driver), Layout::Packed(layout)) => {
                let place = Position::from_bits(position);
                // Everything was used: before this place in this round, from it on in the last one.
                for slot in 0..self.size {
                    let wrap = place.wrap() == (slot < place.slot());
                    let flags = if wrap { Descriptor::AVAIL | Descriptor::USED } else { 0 };
                    let [_, second] = Descriptor { flags, ..Descriptor::default() }.to_words();
                    let at = 2 * usize::from(slot) + 1;
                    layout.descriptors.store(at, second, Ordering::Relaxed);
                }
                driver.start_at(place);
            }
            _ => unreachable!(),
        }
        (driver, DeviceQueue::new(self.layout(), features, position.into()))
    }

    /// The start of a buffer area.
    pub fn area(&self, number: u16) -> u64 {
        self.buffers + u64::from(number) * AREA
    }

    pub fn end(&self) -> u64 {
        self.area(self.size)
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let mut slices = Vec::new();
        let address = GuestAddress(address);
        let len = bytes.len() as u32;
        self.memory.translator().write(address, len, &mut slices).unwrap();
        fill(&slices, bytes);
    }

    pub fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let mut slices = Vec::new();
        self.memory.translator().read(GuestAddress(address), len, &mut slices).unwrap();
        gather(&slices)
    }

    /// Writes a table of descriptors anywhere, by their words.
    pub fn write_table(&self, address: u64, table: impl IntoIterator<Item = [u64; 2]>) {
        let words = table.into_iter().flatten().flat_map(u64::to_le_bytes);
        self.write(address, &words.collect::<Vec<_>>());
    }
}

/// Where the ring's areas, the tables and the buffers are, for a ring at `start`.
fn places(format: Features, size: u16, start: u64) -> ([u64; 3], u64, u64) {
    let mut next = start;
    let areas = Layout::areas(format, size).map(|area| {
        let at = next.next_multiple_of(area.alignment);
        next = at + area.size;
        at
    });
    let tables = next.next_multiple_of(16);
    (areas, tables, tables + IndirectTables::size(size, TABLE_ENTRIES))
}

/// Guest memory with one region for each range of addresses, one after the other in one file.
pub fn map(ranges: &[(u64, u64)]) -> GuestMemory {
    let size = ranges.iter().map(|(start, end)| end - start).sum();
    let shared = SharedMemory::create("ring", size).unwrap();
    let mut offset = 0;
    GuestMemory::map(ranges.iter().map(|(start, end)| {
        let request = RegionRequest {
            guest: GuestAddress(*start),
            size: end - start,
            front_end: FrontEndAddress(*start),
            offset,
            file: shared.as_fd().try_clone_to_owned().unwrap(),
        };
        offset += request.size;
        request
    }))
    .unwrap()
}

pub fn gather(slices: &[ReadSlice<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; slices.iter().map(ReadSlice::len).sum()];
    let mut at = 0;
    for slice in slices {
        at += slice.copy_to(&mut bytes[at..]);
    }
    bytes
}

pub fn fill(slices: &[WriteSlice<'_>], bytes: &[u8]) {
    assert_eq!(WriteCursor::new(slices).write(bytes.into()), bytes.len());
}
