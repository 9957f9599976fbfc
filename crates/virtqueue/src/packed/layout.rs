//! The checked view of a ring's three areas.

use memory::{GuestAddress, GuestMemory};
use wire::split::{DESCRIPTOR_TABLE_ALIGN, MAX_SIZE};

use super::format::{Descriptor, Event, Position};
use crate::fields::{Mapped, RingMemory};
use crate::layout::check_alignment;
use crate::{Area, LayoutError};

/// A ring's areas and its size, checked together and immutable: when one of them changes, a new
/// layout is made.
pub struct Layout<M: RingMemory = Mapped> {
    pub(crate) size: u16,
    /// Two words a descriptor.
    pub(crate) descriptors: M::U64,
    /// One word: when the driver is to be called.
    pub(crate) driver_event: M::U32,
    /// One word: when the device is to be kicked.
    pub(crate) device_event: M::U32,
}

impl Layout {
    /// The areas of a ring of `size` entries.
    pub fn areas(size: u16) -> [Area; 3] {
        let event = |name| Area { name, size: Event::SIZE, alignment: Event::SIZE };
        [
            Area {
                name: "descriptor ring",
                size: u64::from(size) * Descriptor::SIZE,
                alignment: DESCRIPTOR_TABLE_ALIGN,
            },
            event("driver event structure"),
            event("device event structure"),
        ]
    }

    /// Checks a ring of `size` entries with its areas at these addresses.
    pub fn new(
        memory: &GuestMemory,
        size: u32,
        descriptors: GuestAddress,
        driver_event: GuestAddress,
        device_event: GuestAddress,
    ) -> Result<Self, LayoutError> {
        if size == 0 || size > u32::from(MAX_SIZE) {
            return Err(LayoutError::PackedSize(size));
        }
        let size = size as u16;
        let areas = Self::areas(size);
        for (area, address) in areas.into_iter().zip([descriptors, driver_event, device_event]) {
            check_alignment(area, address)?;
        }
        let [ring, driver, device] =
            areas.map(|area| move |fault| LayoutError::Memory { area: area.name, fault });
        Ok(Self {
            size,
            descriptors: memory.words(descriptors, 2 * usize::from(size)).map_err(ring)?,
            driver_event: memory.words(driver_event, 1).map_err(driver)?,
            device_event: memory.words(device_event, 1).map_err(device)?,
        })
    }
}

impl<M: RingMemory> Layout<M> {
    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where a device goes on in a ring that is said to stand at `position`, in both halves; see
    /// [`crate::Layout::resume`].
    pub fn resume(&self, position: u32) -> Option<u32> {
        let available = position as u16;
        let used = match (position >> 16) as u16 {
            0 => available,
            used => used,
        };
        let is_place = |bits| Position::from_bits(bits).slot() < self.size;
        (is_place(available) && is_place(used)).then(|| u32::from(used) << 16 | u32::from(used))
    }
}

// By hand, for `derive` would ask the memory itself to be cloned.
impl<M: RingMemory> Clone for Layout<M> {
    fn clone(&self) -> Self {
        Self {
            size: self.size,
            descriptors: self.descriptors.clone(),
            driver_event: self.driver_event.clone(),
            device_event: self.device_event.clone(),
        }
    }
}
