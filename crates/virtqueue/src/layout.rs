//! Where a ring is, of either format.

use memory::{Fault, GuestAddress, GuestMemory};
use thiserror::Error;
use wire::split::MAX_SIZE;
use wire::virtio::Features;

use crate::{packed, split};

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// A split ring of zero entries, of a number that is not a power of two, or of too many.
    #[error("ring size {0} is not a power of two from 1 to {MAX_SIZE} (virtio 1.3, 2.7)")]
    Size(u32),
    /// A packed ring of zero entries, or of too many.
    #[error("ring size {0} is not from 1 to {MAX_SIZE} (virtio 1.3, 2.8)")]
    PackedSize(u32),
    /// An area that is not aligned.
    #[error(
        "{area} at guest address {address} is not aligned to {alignment} bytes \
         (virtio 1.3, 2.7 and 2.8.10.1)"
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

/// Fails when an area is not aligned.
pub(crate) fn check_alignment(area: Area, address: GuestAddress) -> Result<(), LayoutError> {
    let Area { name: area, alignment, .. } = area;
    if address.0.is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(LayoutError::Alignment { area, address, alignment })
    }
}

/// One of a ring's three areas, which vhost-user calls the same in both formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// What it is in this format.
    pub name: &'static str,
    /// Bytes.
    pub size: u64,
    /// Bytes that its address is a multiple of.
    pub alignment: u64,
}

/// A ring's areas and its size, checked together and immutable: when one of them changes, a new
/// layout is made.
#[derive(Clone)]
pub enum Layout {
    /// A split ring's.
    Split(split::Layout),
    /// A packed ring's.
    Packed(packed::Layout),
}

impl Layout {
    /// Checks a ring of `size` entries with its areas at these addresses. `features` say its format:
    /// of a packed ring, `available` is the driver's event suppression structure, and `used` the
    /// device's.
    pub fn new(
        memory: &GuestMemory,
        features: Features,
        size: u32,
        descriptors: GuestAddress,
        available: GuestAddress,
        used: GuestAddress,
    ) -> Result<Self, LayoutError> {
        if features.contains(Features::RING_PACKED) {
            packed::Layout::new(memory, size, descriptors, available, used).map(Self::Packed)
        } else {
            split::Layout::new(memory, size, descriptors, available, used).map(Self::Split)
        }
    }

    /// The areas of a ring of `size` entries: descriptors, available, used.
    pub fn areas(features: Features, size: u16) -> [Area; 3] {
        if features.contains(Features::RING_PACKED) {
            packed::Layout::areas(size)
        } else {
            split::Layout::areas(size)
        }
    }

    /// Where a ring stands that was never used, as [`crate::DeviceQueue::position`] says it.
    pub fn first_position(features: Features) -> u32 {
        if features.contains(Features::RING_PACKED) { packed::FIRST_POSITION } else { 0 }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        match self {
            Self::Split(layout) => layout.size(),
            Self::Packed(layout) => layout.size(),
        }
    }

    /// Where a device goes on in a ring that is said to stand at `position`: behind the last chain
    /// that was used, whatever was taken from there on, for it was not processed. None when the ring
    /// has no such place.
    ///
    /// A split ring says by itself where that is. A packed one does not, but its position does; one
    /// without an upper half means the same place for both.
    pub fn resume(&self, position: u32) -> Option<u32> {
        match self {
            Self::Split(layout) => {
                u16::try_from(position).ok().map(|_| u32::from(layout.used_index()))
            }
            Self::Packed(layout) => layout.resume(position),
        }
    }
}
