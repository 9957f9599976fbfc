//! The checked view of a ring's three areas.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use memory::{Fault, GuestAddress, GuestMemory, Words};
use thiserror::Error;
use wire::split::{
    AVAILABLE_RING_ALIGN, DESCRIPTOR_TABLE_ALIGN, MAX_SIZE, RING_ENTRIES, USED_RING_ALIGN,
    available_event_offset, available_ring_size, used_ring_size,
};

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Zero, not a power of two, or too large.
    #[error("ring size {0} is not a power of two from 1 to {MAX_SIZE} (virtio 1.3, 2.7)")]
    Size(u32),
    /// An area that is not aligned.
    #[error(
        "{area} at guest address {address} is not aligned to {alignment} bytes (virtio 1.3, 2.7)"
    )]
    Alignment {
        /// Which of the three.
        area: &'static str,
        /// Where it was said to be.
        address: GuestAddress,
        /// Bytes.
        alignment: u64,
    },
    /// An area that is not inside one shared region.
    #[error("{area}: {fault}")]
    Memory {
        /// Which of the three.
        area: &'static str,
        /// What is outside.
        fault: Fault,
    },
}

/// A ring's areas and its size, checked together and immutable: when one of them changes, a new
/// layout is made.
#[derive(Clone)]
pub struct Layout {
    size: u16,
    /// Two words a descriptor.
    pub(super) descriptors: Words<AtomicU64>,
    /// flags, index, `size` heads, used_event.
    pub(super) available: Words<AtomicU16>,
    /// flags, index.
    pub(super) used: Words<AtomicU16>,
    /// id and length, `size` times.
    pub(super) used_entries: Words<AtomicU32>,
    /// avail_event: at the end of the used ring.
    pub(super) available_event: Words<AtomicU16>,
}

/// Where things are in the available and the used ring, in 16-bit words.
pub(super) const FLAGS: usize = 0;
pub(super) const INDEX: usize = 1;
pub(super) const ENTRIES: usize = 2;

impl Layout {
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
        for (area, address, alignment) in [
            ("descriptor table", descriptors, DESCRIPTOR_TABLE_ALIGN),
            ("available ring", available, AVAILABLE_RING_ALIGN),
            ("used ring", used, USED_RING_ALIGN),
        ] {
            if !address.0.is_multiple_of(alignment) {
                return Err(LayoutError::Alignment { area, address, alignment });
            }
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

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available index, as the driver published it.
    pub fn available_index(&self) -> u16 {
        load(&self.available, INDEX, Ordering::Acquire)
    }

    /// The used index, as the device published it.
    pub fn used_index(&self) -> u16 {
        load(&self.used, INDEX, Ordering::Acquire)
    }

    /// The word in the available ring by which the driver says when to be called (EVENT_IDX).
    pub(super) fn used_event(&self) -> usize {
        ENTRIES + usize::from(self.size)
    }
}

/// Loads a little-endian field. Indices are computed from the checked size, so a miss is our bug;
/// it reads as 0 rather than costing a panic path in the hot loop.
#[inline]
pub(super) fn load(words: &[AtomicU16], at: usize, order: Ordering) -> u16 {
    debug_assert!(at < words.len());
    words.get(at).map_or(0, |word| u16::from_le(word.load(order)))
}

/// Stores a little-endian field; see [`load`].
#[inline]
pub(super) fn store(words: &[AtomicU16], at: usize, value: u16, order: Ordering) {
    debug_assert!(at < words.len());
    if let Some(word) = words.get(at) {
        word.store(value.to_le(), order);
    }
}
