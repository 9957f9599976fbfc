//! The table of regions: from files to checked slices.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::mapping::{FilePart, Mapping};
use crate::{FrontEndAddress, GuestAddress, ReadSlice, Word, Words, WriteSlice};

/// Most regions in a table: what libvhost-user and rust-vmm offer as memory slots, and so what
/// front ends have been tried with.
pub const MAX_REGIONS: usize = 509;

/// Most bytes in a table: a front end that shares sparse files could otherwise use up our address
/// space, and with it everybody else's.
pub const MAX_SIZE: u64 = 1 << 40;

/// A region as a front end describes it (vhost-user, "Memory region description").
#[derive(Debug)]
pub struct RegionRequest {
    /// Where the guest sees it.
    pub guest: GuestAddress,
    /// Bytes; not zero.
    pub size: u64,
    /// Where the front end sees it.
    pub front_end: FrontEndAddress,
    /// Where it begins in `file`, in bytes.
    pub offset: u64,
    /// The memory itself. Closed once mapped.
    pub file: OwnedFd,
}

/// Why a region was refused.
#[derive(Debug, Error)]
pub enum MapError {
    /// A region of zero bytes.
    #[error("a memory region has size 0")]
    Empty,
    /// Address plus size, or offset plus size, does not fit its address space.
    #[error("a memory region's address or offset plus its size overflows")]
    Overflow,
    /// Two regions claim the same guest physical address.
    #[error("memory regions overlap at guest address {0}")]
    GuestOverlap(GuestAddress),
    /// Two regions claim the same address of the front end.
    #[error("memory regions overlap at front-end address {0}")]
    FrontEndOverlap(FrontEndAddress),
    /// More than [`MAX_REGIONS`] regions.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    /// The region to be removed is not in the table.
    #[error(
        "no memory region at guest address {guest}, front-end address {front_end}, size {size:#x}"
    )]
    Unknown {
        /// As the request named it.
        guest: GuestAddress,
        /// As the request named it.
        front_end: FrontEndAddress,
        /// As the request named it.
        size: u64,
    },
    /// The descriptor is a file on a disk or of a FUSE server, a pipe, a socket, a device...
    #[error(
        "a memory region's descriptor is not memory: share it by memfd, in /dev/shm or on hugetlbfs"
    )]
    NotMemory,
    /// More than [`MAX_SIZE`] bytes in all.
    #[error("more than {} GiB of memory", MAX_SIZE >> 30)]
    TooLarge,
    /// The file ends before the region does.
    #[error("a memory region needs {needed:#x} bytes of a file that has {file_size:#x}")]
    FileTooShort {
        /// Bytes in the file.
        file_size: u64,
        /// Offset plus size.
        needed: u64,
    },
    /// The SIGBUS guard's table is full.
    #[error("too many memory regions over all ports")]
    TooManyMappings,
    /// The kernel refused.
    #[error("{0} of a memory region failed: {1}")]
    Io(&'static str, io::Error),
}

/// An address range that is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len:#x} bytes at {kind} address {address:#x} are outside of the shared memory")]
pub struct Fault {
    kind: &'static str,
    address: u64,
    len: u64,
}

#[derive(Clone)]
struct Region {
    guest: u64,
    front_end: u64,
    mapping: Arc<Mapping>,
}

impl Region {
    fn map(request: RegionRequest) -> Result<Self, MapError> {
        let RegionRequest { guest, size, front_end, offset, file } = request;
        if size == 0 {
            return Err(MapError::Empty);
        }
        if size > MAX_SIZE {
            return Err(MapError::TooLarge);
        }
        guest.checked_add(size).ok_or(MapError::Overflow)?;
        front_end.checked_add(size).ok_or(MapError::Overflow)?;
        let mapping = Arc::new(Mapping::new(file, offset, size)?);
        Ok(Self { guest: guest.0, front_end: front_end.0, mapping })
    }

    fn window(&self) -> Window {
        Window { guest: self.guest, size: self.size(), start: self.mapping.start() }
    }

    fn size(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// The distance of `address` from the region's start, when it is inside.
    fn offset(&self, address: u64) -> Option<usize> {
        let offset = address.checked_sub(self.guest)?;
        (offset < self.size()).then_some(offset as usize)
    }

    /// A pointer to byte `offset` and the bytes from there to the region's end.
    fn tail(&self, offset: usize) -> (NonNull<u8>, usize) {
        debug_assert!(offset < self.mapping.size());
        // SAFETY: callers got `offset` from `Self::offset`, which keeps it below the size.
        let start = unsafe { self.mapping.start().add(offset) };
        (start, self.mapping.size() - offset)
    }
}

/// All memory that a front end shares: an immutable table of mapped regions, sorted by guest
/// address. A change of memory makes a new table that shares the unchanged mappings.
pub struct GuestMemory {
    regions: Box<[Region]>,
    /// The largest region, where most buffers are: translators begin there.
    largest: Window,
}

impl GuestMemory {
    /// No memory at all.
    pub fn empty() -> Self {
        Self::of(Vec::new())
    }

    /// A table of these regions, which were checked.
    fn of(regions: Vec<Region>) -> Self {
        let nowhere = Window { guest: 0, size: 0, start: NonNull::dangling() };
        let largest = regions.iter().max_by_key(|region| region.size());
        let largest = largest.map_or(nowhere, Region::window);
        Self { regions: regions.into_boxed_slice(), largest }
    }

    /// Maps a whole table, as SET_MEM_TABLE gives it.
    pub fn map(requests: impl IntoIterator<Item = RegionRequest>) -> Result<Self, MapError> {
        let mut regions = Vec::new();
        for request in requests {
            if regions.len() == MAX_REGIONS {
                return Err(MapError::TooManyRegions);
            }
            regions.push(Region::map(request)?);
        }
        Self::checked(regions)
    }

    /// Whether exactly this region is there: the same place, and the same part of the same file.
    pub fn has(&self, request: &RegionRequest) -> bool {
        let Some(part) = FilePart::of(&request.file, request.offset) else { return false };
        self.position(request.guest, request.front_end, request.size)
            .and_then(|index| self.regions.get(index))
            .is_some_and(|region| region.mapping.part() == part)
    }

    /// Whether no region has any of these guest addresses.
    pub fn is_free(&self, guest: GuestAddress, size: u64) -> bool {
        let end = guest.0.saturating_add(size);
        self.regions.iter().all(|region| {
            region.guest >= end || region.guest.saturating_add(region.size()) <= guest.0
        })
    }

    /// The region of exactly this place and size.
    fn position(
        &self,
        guest: GuestAddress,
        front_end: FrontEndAddress,
        size: u64,
    ) -> Option<usize> {
        self.regions.iter().position(|region| {
            region.guest == guest.0 && region.front_end == front_end.0 && region.size() == size
        })
    }

    /// This table and one region more, as ADD_MEM_REG asks.
    pub fn with(&self, request: RegionRequest) -> Result<Self, MapError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MapError::TooManyRegions);
        }
        let mut regions = self.regions.to_vec();
        regions.push(Region::map(request)?);
        Self::checked(regions)
    }

    /// This table without the region of exactly this place and size, as REM_MEM_REG asks.
    pub fn without(
        &self,
        guest: GuestAddress,
        front_end: FrontEndAddress,
        size: u64,
    ) -> Result<Self, MapError> {
        let at = self.position(guest, front_end, size).ok_or(MapError::Unknown {
            guest,
            front_end,
            size,
        })?;
        let mut regions = self.regions.to_vec();
        regions.remove(at);
        Ok(Self::of(regions))
    }

    fn checked(mut regions: Vec<Region>) -> Result<Self, MapError> {
        let size = regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.size()));
        if size.is_none_or(|size| size > MAX_SIZE) {
            return Err(MapError::TooLarge);
        }
        // Ends cannot overflow: each region was checked when it was mapped.
        regions.sort_by_key(|region| region.front_end);
        for pair in regions.windows(2) {
            if pair[0].front_end + pair[0].size() > pair[1].front_end {
                return Err(MapError::FrontEndOverlap(FrontEndAddress(pair[1].front_end)));
            }
        }
        regions.sort_by_key(|region| region.guest);
        for pair in regions.windows(2) {
            if pair[0].guest + pair[0].size() > pair[1].guest {
                return Err(MapError::GuestOverlap(GuestAddress(pair[1].guest)));
            }
        }
        Ok(Self::of(regions))
    }

    /// Regions in the table.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Bytes in all regions together.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(Region::size).sum()
    }

    /// Whether a file was found shorter than its mapping. Its bytes read as zeros from then on; the
    /// port should die.
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_poisoned())
    }

    /// The guest address of `len` bytes that the front end sees at `address`. The whole range must
    /// be inside one region: rings may not be scattered.
    pub fn translate(&self, address: FrontEndAddress, len: u64) -> Result<GuestAddress, Fault> {
        let fault = Fault { kind: "front-end", address: address.0, len };
        let region = self
            .regions
            .iter()
            .find(|region| {
                address.0.checked_sub(region.front_end).is_some_and(|offset| {
                    len <= region.size() && offset <= region.size() - len && offset < region.size()
                })
            })
            .ok_or(fault)?;
        Ok(GuestAddress(region.guest + (address.0 - region.front_end)))
    }

    /// `len` atomics at `address`, for the fields of a ring: inside one region, and aligned.
    pub fn words<T: Word>(&self, address: GuestAddress, len: usize) -> Result<Words<T>, Fault> {
        let bytes = len.saturating_mul(size_of::<T>());
        let fault = Fault { kind: "guest", address: address.0, len: bytes as u64 };
        let region = self.regions.get(self.search(address.0).ok_or(fault)?).ok_or(fault)?;
        let (start, room) = region.tail(region.offset(address.0).ok_or(fault)?);
        if bytes > room {
            return Err(fault);
        }
        // SAFETY: `bytes` from `start` are inside the mapping, as just checked.
        unsafe { Words::new(start, len, region.mapping.clone()) }.ok_or(fault)
    }

    /// A translator, to resolve many buffers.
    pub fn translator(&self) -> Translator<'_> {
        Translator { memory: self, last: self.largest }
    }

    /// The index of the region that holds `address`.
    fn search(&self, address: u64) -> Option<usize> {
        let after = self.regions.partition_point(|region| region.guest <= address);
        let index = after.checked_sub(1)?;
        self.regions.get(index)?.offset(address).map(|_| index)
    }
}

/// Resolves buffers of one guest, remembering the last region: most buffers are in the same one.
#[derive(Clone)]
pub struct Translator<'m> {
    memory: &'m GuestMemory,
    last: Window,
}

/// What of a region is looked at for each buffer, side by side. Points into a mapping that whoever keeps
/// it keeps alive.
#[derive(Clone, Copy)]
struct Window {
    guest: u64,
    size: u64,
    start: NonNull<u8>,
}

// SAFETY: the pointer is into a mapping, which any thread may use: see `Mapping`.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A pointer to `address`, when `len` bytes from there are inside, and not none.
    #[inline(always)]
    fn whole(&self, address: GuestAddress, len: u32) -> Option<NonNull<u8>> {
        let (start, room) = self.tail(address.0)?;
        (u64::from(len) <= room && len > 0).then_some(start)
    }

    /// A pointer to `address` and the bytes from there to the region's end, when it is inside.
    #[inline(always)]
    fn tail(&self, address: u64) -> Option<(NonNull<u8>, u64)> {
        // An address in front of the region wraps around to one far behind it, because the region's end
        // fits the address space.
        let offset = address.wrapping_sub(self.guest);
        if offset >= self.size {
            return None;
        }
        // SAFETY: `offset` is inside of the mapping that starts at `start` and has `size` bytes: only
        // `Region::window` makes one, and it lives no longer than its translator's borrow of the memory.
        let start = unsafe { self.start.add(offset as usize) };
        Some((start, self.size - offset))
    }
}

impl<'m> Translator<'m> {
    /// Appends the slices that make up `len` bytes at `address`: one, or several where the buffer
    /// crosses into adjacent regions. Zero bytes make no slice and need no valid address.
    ///
    /// On a fault, slices found before it stay appended.
    #[inline(always)]
    pub fn read(
        &mut self,
        address: GuestAddress,
        len: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<(), Fault> {
        self.resolve(address, len, |start, len| {
            // SAFETY: `resolve` yields ranges inside mappings that `'m` keeps alive.
            slices.push(unsafe { ReadSlice::new(start.as_ptr(), len) });
        })
    }

    /// The slice of `len` bytes at `address`, if that is one, and not empty: what a buffer is as good as
    /// always. If not, [`Self::read`] knows more.
    #[inline(always)]
    pub fn read_whole(&mut self, address: GuestAddress, len: u32) -> Option<ReadSlice<'m>> {
        let start = self.whole(address, len)?;
        // SAFETY: `whole` yields ranges inside a mapping that `'m` keeps alive.
        Some(unsafe { ReadSlice::new(start.as_ptr(), len as usize) })
    }

    /// As [`Self::read_whole`], for a buffer to be written.
    #[inline(always)]
    pub fn write_whole(&mut self, address: GuestAddress, len: u32) -> Option<WriteSlice<'m>> {
        let start = self.whole(address, len)?;
        // SAFETY: `whole` yields ranges inside a mapping that `'m` keeps alive, and no reference into
        // guest memory ever exists.
        Some(unsafe { WriteSlice::new(start.as_ptr(), len as usize) })
    }

    #[inline(always)]
    fn whole(&mut self, address: GuestAddress, len: u32) -> Option<NonNull<u8>> {
        self.last.whole(address, len).or_else(|| self.whole_elsewhere(address, len))
    }

    #[cold]
    fn whole_elsewhere(&mut self, address: GuestAddress, len: u32) -> Option<NonNull<u8>> {
        let region = self.memory.regions.get(self.memory.search(address.0)?)?;
        self.last = region.window();
        self.last.whole(address, len)
    }

    /// As [`Self::read`], for buffers to be written.
    #[inline(always)]
    pub fn write(
        &mut self,
        address: GuestAddress,
        len: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<(), Fault> {
        self.resolve(address, len, |start, len| {
            // SAFETY: `resolve` yields ranges inside mappings that `'m` keeps alive, and no
            // reference into guest memory ever exists.
            slices.push(unsafe { WriteSlice::new(start.as_ptr(), len) });
        })
    }

    /// Copies `private.len()` bytes from `address`.
    #[inline]
    pub fn copy_to(&mut self, address: GuestAddress, private: &mut [u8]) -> Result<(), Fault> {
        let mut at = 0;
        self.resolve(address, private.len() as u32, |start, len| {
            // SAFETY: `resolve` yields ranges inside mappings that `'m` keeps alive.
            let slice = unsafe { ReadSlice::new(start.as_ptr(), len) };
            at += slice.copy_to(private.get_mut(at..).unwrap_or_default());
        })
    }

    #[inline(always)]
    fn resolve(
        &mut self,
        address: GuestAddress,
        len: u32,
        mut piece: impl FnMut(NonNull<u8>, usize),
    ) -> Result<(), Fault> {
        if let Some(start) = self.last.whole(address, len) {
            piece(start, len as usize);
            return Ok(());
        }
        self.resolve_elsewhere(address, len, &mut piece)
    }

    /// As [`Self::resolve`], for what is not all in the region that was used last.
    #[cold]
    fn resolve_elsewhere(
        &mut self,
        address: GuestAddress,
        len: u32,
        piece: &mut dyn FnMut(NonNull<u8>, usize),
    ) -> Result<(), Fault> {
        let mut at = address.0;
        let mut left = u64::from(len);
        while left > 0 {
            let fault = Fault { kind: "guest", address: address.0, len: u64::from(len) };
            let region = self.memory.search(at).and_then(|index| self.memory.regions.get(index));
            self.last = region.ok_or(fault)?.window();
            let (start, room) = self.last.tail(at).ok_or(fault)?;
            let count = room.min(left);
            piece(start, count as usize);
            left -= count;
            // Cannot overflow: the region's end fits, and `count` bytes were inside of it.
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
