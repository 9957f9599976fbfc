//! The memory that a case shares with the back end, and what is where in it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory};
use wire::vhost_user::MemoryRegion;

use crate::verdict::{Check, fail};

/// Where the guest sees its memory, and where the front end does: two numbers, so that a back end
/// that mixes them up is found out.
const GUEST_START: u64 = 0x4000_0000;
const FRONT_END_START: u64 = 0x7f00_0000_0000;
/// Between two regions in the front end's address space.
const FRONT_END_GAP: u64 = 0x10_0000_0000;

/// Bytes of all memory together.
pub const SIZE: u64 = 8 << 20;
/// Bytes kept for each ring.
const RING_SPACE: u64 = 0x1_0000;
/// Rings that there is room for.
pub const RINGS: u64 = 16;
/// Where buffers begin.
const BUFFERS: u64 = RINGS * RING_SPACE;

/// The memory, and how it is cut into regions.
pub struct Memory {
    file: SharedMemory,
    table: GuestMemory,
    regions: Vec<MemoryRegion>,
    next: u64,
}

impl Memory {
    /// Memory in regions that begin at these distances from its start, the first at 0, and in the
    /// file at `offset`.
    pub fn new(starts: &[u64], offset: u64) -> Check<Self> {
        let file = SharedMemory::create("ringway-check", SIZE + offset)
            .map_err(|error| fail(format!("no memory to share: {error}")))?;
        let ends = starts.iter().skip(1).copied().chain([SIZE]);
        let regions: Vec<MemoryRegion> = (0..)
            .zip(starts.iter().zip(ends))
            .map(|(number, (&start, end))| MemoryRegion {
                guest_address: GUEST_START + start,
                size: end - start,
                user_address: FRONT_END_START + start + number * FRONT_END_GAP,
                mmap_offset: offset + start,
            })
            .collect();
        let whole = RegionRequest {
            guest: GuestAddress(GUEST_START),
            size: SIZE,
            front_end: FrontEndAddress(FRONT_END_START),
            offset,
            file: file
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| fail(format!("no memory to share: {error}")))?,
        };
        let table = GuestMemory::map([whole])
            .map_err(|error| fail(format!("cannot map the shared memory: {error}")))?;
        Ok(Self { file, table, regions, next: BUFFERS })
    }

    /// As the front end describes it.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// The file behind it, for every region the same.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The guest address at this distance from the start.
    pub fn at(&self, distance: u64) -> u64 {
        GUEST_START + distance
    }

    /// The three areas of a ring: descriptors, driver's, device's.
    pub fn ring(&self, index: u32) -> [u64; 3] {
        let start = GUEST_START + u64::from(index) * RING_SPACE;
        [start, start + 0x8000, start + 0xc000]
    }

    /// Room for a buffer that nobody else has, at a multiple of 64.
    pub fn allocate(&mut self, len: u64) -> u64 {
        if self.next + len > SIZE {
            self.next = BUFFERS;
        }
        let address = GUEST_START + self.next;
        self.next = (self.next + len).next_multiple_of(64);
        address
    }

    /// Where the front end sees what the guest sees at `address`; addresses outside of all regions
    /// are outside there too.
    pub fn front_end(&self, address: u64) -> u64 {
        let inside = |region: &&MemoryRegion| {
            address >= region.guest_address && address - region.guest_address < region.size
        };
        match self.regions.iter().find(inside) {
            Some(region) => region.user_address + (address - region.guest_address),
            None => address,
        }
    }

    /// A 16-bit field.
    pub fn u16(&self, address: u64) -> u16 {
        let words = self.table.words::<AtomicU16>(GuestAddress(address), 1);
        u16::from_le(words.map_or(0, |words| words[0].load(Ordering::SeqCst)))
    }

    /// Writes a 16-bit field, after everything written before.
    pub fn set_u16(&self, address: u64, value: u16) {
        if let Ok(words) = self.table.words::<AtomicU16>(GuestAddress(address), 1) {
            words[0].store(value.to_le(), Ordering::SeqCst);
        }
    }

    /// A 64-bit field.
    pub fn u64(&self, address: u64) -> u64 {
        let words = self.table.words::<AtomicU64>(GuestAddress(address), 1);
        u64::from_le(words.map_or(0, |words| words[0].load(Ordering::SeqCst)))
    }

    /// Writes a 64-bit field, after everything written before.
    pub fn set_u64(&self, address: u64, value: u64) {
        if let Ok(words) = self.table.words::<AtomicU64>(GuestAddress(address), 1) {
            words[0].store(value.to_le(), Ordering::SeqCst);
        }
    }

    /// Bytes of a buffer.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut slices = Vec::new();
        let found =
            self.table.translator().read(GuestAddress(address), len as u32, &mut slices).is_ok();
        if found {
            let mut rest = bytes.as_mut_slice();
            for slice in slices {
                let copied = slice.copy_to(rest);
                rest = rest.split_at_mut(copied).1;
            }
        }
        bytes
    }

    /// Fills a buffer. What is outside of the memory is not written.
    pub fn set_bytes(&self, address: u64, bytes: &[u8]) {
        let mut slices = Vec::new();
        let len = bytes.len() as u32;
        if self.table.translator().write(GuestAddress(address), len, &mut slices).is_ok() {
            let mut rest = bytes;
            for slice in slices {
                rest = rest.split_at(slice.copy_from(rest.into())).1;
            }
        }
    }
}
