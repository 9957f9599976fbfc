//! A ring in shared memory, and hands that can write anything into it.
//!
//! ```text
//! guest address   0x1_0000      descriptors, available ring, used ring, indirect tables
//!                 self.buffers  one buffer area for each descriptor
//! ```
//!
//! A border between two adjacent regions lies inside of the first buffer area, at an odd address.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadSlice, RegionRequest, SharedMemory,
    WriteCursor, WriteSlice,
};
use wire::split::{Descriptor, available_ring_size, descriptor_table_size, used_ring_size};
use wire::virtio::Features;

use crate::Violation;
use crate::split::layout::{ENTRIES, FLAGS, INDEX, Layout, load, store};
use crate::split::{Chain, DeviceQueue, DriverQueue, IndirectTables};

pub const BASE: u64 = 0x1_0000;
/// Descriptors in each indirect table of the driver.
pub const TABLE_ENTRIES: u16 = 8;
/// Bytes of each buffer area.
pub const AREA: u64 = 256;
/// Where the region border is in the first buffer area.
pub const BORDER: u64 = 21;

pub struct Ring {
    pub memory: GuestMemory,
    pub layout: Layout,
    pub tables: GuestAddress,
    pub buffers: u64,
}

impl Ring {
    pub fn new(size: u16) -> Self {
        let [.., buffers] = places(size, BASE);
        let border = buffers + BORDER;
        let end = buffers + u64::from(size) * AREA;
        Self::at(map(&[(BASE, border), (border, end)]), size, BASE)
    }

    /// A ring at `start` of a memory that need not hold tables and buffers.
    pub fn at(memory: GuestMemory, size: u16, start: u64) -> Self {
        let [available, used, tables, buffers] = places(size, start);
        let layout = Layout::new(
            &memory,
            size.into(),
            GuestAddress(start),
            GuestAddress(available),
            GuestAddress(used),
        )
        .unwrap();
        Self { memory, layout, tables: GuestAddress(tables), buffers }
    }

    pub fn device(&self, features: Features) -> DeviceQueue {
        self.device_at(features, 0)
    }

    pub fn device_at(&self, features: Features, base: u16) -> DeviceQueue {
        DeviceQueue::new(self.layout.clone(), features, base)
    }

    pub fn driver(&self, features: Features) -> DriverQueue {
        let tables =
            IndirectTables::new(&self.memory, self.tables, self.size(), TABLE_ENTRIES).unwrap();
        DriverQueue::new(self.layout.clone(), features, Some(tables))
    }

    /// A driver that, with the ring, has come to index `base`.
    pub fn driver_at(&self, features: Features, base: u16) -> DriverQueue {
        self.set_available_index(base);
        self.set_used_index(base);
        let mut driver = self.driver(features);
        driver.start_at(base);
        driver
    }

    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// The start of a buffer area.
    pub fn area(&self, number: u16) -> u64 {
        self.buffers + u64::from(number) * AREA
    }

    pub fn end(&self) -> u64 {
        self.area(self.size())
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

    /// Writes a descriptor of the ring.
    pub fn describe(&self, at: u16, descriptor: Descriptor) {
        for (half, word) in descriptor.to_words().into_iter().enumerate() {
            self.layout.descriptors[2 * usize::from(at) + half]
                .store(word.to_le(), Ordering::Relaxed);
        }
    }

    /// Writes a table of descriptors anywhere.
    pub fn write_table(&self, address: u64, table: &[Descriptor]) {
        let words =
            table.iter().flat_map(|descriptor| descriptor.to_words()).flat_map(u64::to_le_bytes);
        self.write(address, &words.collect::<Vec<_>>());
    }

    pub fn set_available_entry(&self, slot: u16, head: u16) {
        let at = ENTRIES + usize::from(slot);
        store(&self.layout.available, at, head, Ordering::Relaxed);
    }

    pub fn set_available_index(&self, index: u16) {
        store(&self.layout.available, INDEX, index, Ordering::Release);
    }

    pub fn set_available_flags(&self, flags: u16) {
        store(&self.layout.available, FLAGS, flags, Ordering::Relaxed);
    }

    pub fn set_used_event(&self, event: u16) {
        let at = self.layout.used_event();
        store(&self.layout.available, at, event, Ordering::Relaxed);
    }

    /// Makes `head` available as the entry before `index`, and publishes `index`.
    pub fn offer(&self, head: u16, index: u16) {
        self.set_available_entry(index.wrapping_sub(1) & (self.size() - 1), head);
        self.set_available_index(index);
    }

    pub fn set_used_entry(&self, slot: u16, id: u32, written: u32) {
        for (half, word) in [id, written].into_iter().enumerate() {
            self.layout.used_entries[2 * usize::from(slot) + half]
                .store(word.to_le(), Ordering::Relaxed);
        }
    }

    pub fn used_entry(&self, slot: u16) -> (u32, u32) {
        let [id, written] = [0, 1].map(|half| {
            let word = &self.layout.used_entries[2 * usize::from(slot) + half];
            u32::from_le(word.load(Ordering::Relaxed))
        });
        (id, written)
    }

    pub fn set_used_index(&self, index: u16) {
        store(&self.layout.used, INDEX, index, Ordering::Release);
    }

    pub fn used_flags(&self) -> u16 {
        load(&self.layout.used, FLAGS, Ordering::Relaxed)
    }

    pub fn set_used_flags(&self, flags: u16) {
        store(&self.layout.used, FLAGS, flags, Ordering::Relaxed);
    }

    pub fn available_event(&self) -> u16 {
        load(&self.layout.available_event, 0, Ordering::Relaxed)
    }

    pub fn set_available_event(&self, event: u16) {
        store(&self.layout.available_event, 0, event, Ordering::Relaxed);
    }

    /// Takes the next chain to read it, with the bytes that were translated.
    pub fn take_readable(
        &self,
        device: &mut DeviceQueue,
        limit: u32,
    ) -> Result<Option<(Chain, Vec<u8>)>, Violation> {
        let mut slices = Vec::new();
        let chain = device.take_readable(&mut self.memory.translator(), limit, &mut slices)?;
        Ok(chain.map(|chain| (chain, gather(&slices))))
    }

    /// Takes the next chain to write it, with the slices that were translated.
    pub fn take_writable(
        &self,
        device: &mut DeviceQueue,
        limit: u32,
    ) -> Result<Option<(Chain, Vec<WriteSlice<'_>>)>, Violation> {
        let mut slices = Vec::new();
        let chain = device.take_writable(&mut self.memory.translator(), limit, &mut slices)?;
        Ok(chain.map(|chain| (chain, slices)))
    }
}

/// Where the available ring, the used ring, the tables and the buffers are, for a descriptor table
/// at `start`.
fn places(size: u16, start: u64) -> [u64; 4] {
    let available = start + descriptor_table_size(size);
    let used = (available + available_ring_size(size)).next_multiple_of(4);
    let tables = (used + used_ring_size(size)).next_multiple_of(16);
    let buffers = tables + IndirectTables::size(size, TABLE_ENTRIES);
    [available, used, tables, buffers]
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

/// A descriptor of a buffer; chained on, when there is a `next`.
pub fn buffer(address: u64, length: u32, flags: u16, next: Option<u16>) -> Descriptor {
    Descriptor {
        address,
        length,
        flags: flags | next.map_or(0, |_| Descriptor::NEXT),
        next: next.unwrap_or(0),
    }
}
