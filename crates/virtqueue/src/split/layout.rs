//! The checked view of a ring's three areas.

use std::sync::atomic::{AtomicU16, Ordering};

use memory::{GuestAddress, GuestMemory};
use wire::split::{
    AVAILABLE_RING_ALIGN, DESCRIPTOR_TABLE_ALIGN, MAX_SIZE, RING_ENTRIES, USED_RING_ALIGN,
    available_event_offset, available_ring_size, descriptor_table_size, used_ring_size,
};

use crate::fields::{Fields, Mapped, RingMemory};
use crate::layout::check_alignment;
use crate::{Area, LayoutError};

/// A ring's areas and its size, checked together and immutable: when one of them changes, a new
/// layout is made.
pub struct Layout<M: RingMemory = Mapped> {
    pub(crate) size: u16,
    /// Two words a descriptor.
    pub(crate) descriptors: M::U64,
    /// flags, index, `size` heads, used_event.
    pub(crate) available: M::U16,
    /// flags, index.
    pub(crate) used: M::U16,
    /// id and length, `size` times.
    pub(crate) used_entries: M::U32,
    /// avail_event: at the end of the used ring.
    pub(crate) available_event: M::U16,
}

/// Where things are in the available and the used ring, in 16-bit words.
pub(crate) const FLAGS: usize = 0;
pub(crate) const INDEX: usize = 1;
pub(crate) const ENTRIES: usize = 2;

impl Layout {
    /// The areas of a ring of `size` entries.
    pub fn areas(size: u16) -> [Area; 3] {
        [
            Area {
                name: "descriptor table",
                size: descriptor_table_size(size),
                alignment: DESCRIPTOR_TABLE_ALIGN,
            },
            Area {
                name: "available ring",
                size: available_ring_size(size),
                alignment: AVAILABLE_RING_ALIGN,
            },
            Area { name: "used ring", size: used_ring_size(size), alignment: USED_RING_ALIGN },
        ]
    }

    /// Checks a ring of `size` entries with its areas at these addresses.
    pub fn new(
        memory: &GuestMemory,
        size: u32,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > u32::from(MAX_SIZE) {
            return Err(LayoutError::Size(size));
        }
        let entries = size as usize;
        for (area, address) in
            Self::areas(size as u16).into_iter().zip([descriptors, available, used])
        {
            check_alignment(area, address)?;
        }
        let fault = |area| move |fault| LayoutError::Memory { area, fault };
        let used_size = used_ring_size(size as u16);
        // The used ring first as a whole: its parts may not be in different regions.
        memory.words::<AtomicU16>(used, used_size as usize / 2).map_err(fault("used ring"))?;
        // Cannot overflow: the whole was found in a region.
        let used_at = |offset| GuestAddress(used.0 + offset);
        let available_size = available_ring_size(size as u16) as usize;
        let event_offset = available_event_offset(size as u16);
        Ok(Self {
            size: size as u16,
            descriptors: memory
                .words(descriptors, 2 * entries)
                .map_err(fault("descriptor table"))?,
            available: memory
                .words(available, available_size / 2)
                .map_err(fault("available ring"))?,
            used: memory.words(used, ENTRIES).map_err(fault("used ring"))?,
            used_entries: memory
                .words(used_at(RING_ENTRIES), 2 * entries)
                .map_err(fault("used ring"))?,
            available_event: memory.words(used_at(event_offset), 1).map_err(fault("used ring"))?,
        })
    }
}

impl<M: RingMemory> Layout<M> {
    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available index, as the driver published it.
    pub fn available_index(&self) -> u16 {
        self.available.load(INDEX, Ordering::Acquire)
    }

    /// The used index, as the device published it.
    pub fn used_index(&self) -> u16 {
        self.used.load(INDEX, Ordering::Acquire)
    }

    /// The word in the available ring by which the driver says when to be called (EVENT_IDX).
    pub(crate) fn used_event(&self) -> usize {
        ENTRIES + usize::from(self.size)
    }
}

// By hand, for `derive` would ask the memory itself to be cloned.
impl<M: RingMemory> Clone for Layout<M> {
    fn clone(&self) -> Self {
        Self {
            size: self.size,
            descriptors: self.descriptors.clone(),
            available: self.available.clone(),
            used: self.used.clone(),
            used_entries: self.used_entries.clone(),
            available_event: self.available_event.clone(),
        }
    }
}
