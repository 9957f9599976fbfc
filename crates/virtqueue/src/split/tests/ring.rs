//! A split ring, and hands that can write anything into it.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use memory::{GuestMemory, WriteSlice};
use wire::split::Descriptor;
use wire::virtio::Features;

use crate::fields::Fields;
use crate::split::layout::{ENTRIES, FLAGS, INDEX, Layout};
use crate::split::{DeviceQueue, DriverQueue};
use crate::tests::bed::{Bed, SPLIT, gather};
use crate::{Chain, DeviceRing, Violation};

pub struct Ring {
    bed: Bed,
    pub layout: Layout,
}

impl Deref for Ring {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

impl Ring {
    pub fn new(size: u16) -> Self {
        Self::on(Bed::new(SPLIT, size))
    }

    /// A ring at `start` of a memory that need not hold tables and buffers.
    pub fn at(memory: GuestMemory, size: u16, start: u64) -> Self {
        Self::on(Bed::at(memory, SPLIT, size, start))
    }

    fn on(bed: Bed) -> Self {
        let crate::Layout::Split(layout) = bed.layout() else { unreachable!() };
        Self { bed, layout }
    }

    pub fn device(&self, features: Features) -> DeviceQueue {
        self.device_at(features, 0)
    }

    pub fn device_at(&self, features: Features, base: u16) -> DeviceQueue {
        DeviceQueue::new(self.layout.clone(), features, base)
    }

    pub fn driver(&self, features: Features) -> DriverQueue {
        DriverQueue::new(self.layout.clone(), features, Some(self.tables()))
    }

    /// A driver that, with the ring, has come to index `base`.
    pub fn driver_at(&self, features: Features, base: u16) -> DriverQueue {
        self.set_available_index(base);
        self.set_used_index(base);
        let mut driver = self.driver(features);
        driver.start_at(base);
        driver
    }

    /// Writes a descriptor of the ring.
    pub fn describe(&self, at: u16, descriptor: Descriptor) {
        crate::driver::write_words(&self.layout.descriptors, at.into(), descriptor.to_words());
    }

    /// Writes a table of descriptors anywhere.
    pub fn write_table(&self, address: u64, table: &[Descriptor]) {
        self.bed.write_table(address, table.iter().map(|descriptor| descriptor.to_words()));
    }

    pub fn set_available_entry(&self, slot: u16, head: u16) {
        let at = ENTRIES + usize::from(slot);
        self.layout.available.store(at, head, Ordering::Relaxed);
    }

    pub fn set_available_index(&self, index: u16) {
        self.layout.available.store(INDEX, index, Ordering::Release);
    }

    pub fn set_available_flags(&self, flags: u16) {
        self.layout.available.store(FLAGS, flags, Ordering::Relaxed);
    }

    pub fn set_used_event(&self, event: u16) {
        let at = self.layout.used_event();
        self.layout.available.store(at, event, Ordering::Relaxed);
    }

    /// Makes `head` available as the entry before `index`, and publishes `index`.
    pub fn offer(&self, head: u16, index: u16) {
        self.set_available_entry(index.wrapping_sub(1) & (self.size - 1), head);
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
        self.layout.used.store(INDEX, index, Ordering::Release);
    }

    pub fn used_flags(&self) -> u16 {
        self.layout.used.load(FLAGS, Ordering::Relaxed)
    }

    pub fn set_used_flags(&self, flags: u16) {
        self.layout.used.store(FLAGS, flags, Ordering::Relaxed);
    }

    pub fn available_event(&self) -> u16 {
        self.layout.available_event.load(0, Ordering::Relaxed)
    }

    pub fn set_available_event(&self, event: u16) {
        self.layout.available_event.store(0, event, Ordering::Relaxed);
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

/// A descriptor of a buffer; chained on, when there is a `next`.
pub fn buffer(address: u64, length: u32, flags: u16, next: Option<u16>) -> Descriptor {
    Descriptor {
        address,
        length,
        flags: flags | next.map_or(0, |_| Descriptor::NEXT),
        next: next.unwrap_or(0),
    }
}
