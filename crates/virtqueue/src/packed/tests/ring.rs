//! A packed ring, and hands that can write anything into it.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use memory::{GuestMemory, WriteSlice};
use wire::virtio::Features;

use crate::driver::write_words;
use crate::fields::Fields;
use crate::packed::{Descriptor, DeviceQueue, DriverQueue, Event, Layout, Position};
use crate::tests::bed::{Bed, PACKED, gather};
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
        Self::on(Bed::new(PACKED, size))
    }

    /// A ring at `start` of a memory that need not hold tables and buffers.
    pub fn at(memory: GuestMemory, size: u16, start: u64) -> Self {
        Self::on(Bed::at(memory, PACKED, size, start))
    }

    fn on(bed: Bed) -> Self {
        let crate::Layout::Packed(layout) = bed.layout() else { unreachable!() };
        Self { bed, layout }
    }

    pub fn device(&self, features: Features) -> DeviceQueue {
        self.device_at(features, Position::FIRST)
    }

    pub fn device_at(&self, features: Features, place: Position) -> DeviceQueue {
        let half = u32::from(place.bits());
        DeviceQueue::new(self.layout.clone(), features, half << 16 | half)
    }

    pub fn driver(&self, features: Features) -> DriverQueue {
        DriverQueue::new(self.layout.clone(), features, Some(self.tables()))
    }

    /// Both sides, having come with the ring to this place.
    pub fn pair_at(&self, features: Features, place: Position) -> (DriverQueue, DeviceQueue) {
        match self.bed.pair_at(features, place.bits()) {
            (crate::DriverQueue::Packed(driver), crate::DeviceQueue::Packed(device)) => {
                (driver, device)
            }
            _ => unreachable!(),
        }
    }

    /// Writes a descriptor as it is.
    pub fn describe(&self, slot: u16, descriptor: Descriptor) {
        write_words(&self.layout.descriptors, slot.into(), descriptor.to_words());
    }

    /// Writes a descriptor that is available in the first round, but for its flags as given.
    pub fn offer(&self, slot: u16, descriptor: Descriptor) {
        let flags = descriptor.flags | Position::FIRST.available();
        self.describe(slot, Descriptor { flags, ..descriptor });
    }

    pub fn descriptor(&self, slot: u16) -> Descriptor {
        let at = 2 * usize::from(slot);
        let words = [at, at + 1].map(|at| self.layout.descriptors.load(at, Ordering::Acquire));
        Descriptor::from_words(words)
    }

    /// Writes a table of descriptors anywhere.
    pub fn write_table(&self, address: u64, table: &[Descriptor]) {
        self.bed.write_table(address, table.iter().map(|descriptor| descriptor.to_words()));
    }

    pub fn set_driver_event(&self, event: Event) {
        self.set_driver_event_word(event.to_word());
    }

    pub fn set_driver_event_word(&self, word: u32) {
        self.layout.driver_event.store(0, word, Ordering::Relaxed);
    }

    pub fn set_device_event_word(&self, word: u32) {
        self.layout.device_event.store(0, word, Ordering::Relaxed);
    }

    pub fn device_event(&self) -> Event {
        Event::from_word(self.layout.device_event.load(0, Ordering::Relaxed))
    }

    pub fn driver_event(&self) -> Event {
        Event::from_word(self.layout.driver_event.load(0, Ordering::Relaxed))
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

/// A descriptor of a buffer, without the flags that say whose it is.
pub fn buffer(address: u64, length: u32, flags: u16) -> Descriptor {
    Descriptor { address, length, id: 0, flags }
}

/// All places of a ring, beginning with the first.
pub fn places(size: u16) -> impl Iterator<Item = Position> + Clone {
    (0..2 * u32::from(size)).scan(Position::FIRST, move |next, _| {
        let place = *next;
        *next = place.advance(1, size);
        Some(place)
    })
}
