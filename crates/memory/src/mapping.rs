//! One mapped piece of a front end's file.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{Stat, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::sigbus;
use crate::table::MapError;

/// `f_type` of hugetlbfs: mappings of its files are aligned to its block size.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A mapping of `[offset, offset + size)` of a file, unmapped on drop.
///
/// The file is mapped from the last block border at or before `offset`, because hugetlbfs takes no
/// other, and up to the block border at or after the end. `start` points at `offset`.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    size: usize,
    base: NonNull<u8>,
    base_size: usize,
    part: FilePart,
    guard: sigbus::Registration,
}

/// Which file, and from where: what tells two mappings of the same memory from any others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilePart {
    device: u64,
    inode: u64,
    offset: u64,
}

impl FilePart {
    /// The part of `file`, which is memory, from `offset` on. None when it cannot be known.
    pub(crate) fn of(file: impl AsFd, offset: u64) -> Option<Self> {
        // As for a mapping: of any other file even this may wait for a peer.
        fcntl_get_seals(&file).ok()?;
        Some(Self::from_stat(&fstat(file).ok()?, offset))
    }

    fn from_stat(stat: &Stat, offset: u64) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino, offset }
    }
}

// SAFETY: the mapping is plain shared memory owned by this value; all access goes through atomics
// or opaque copies (see the crate's invariants), which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing here is mutated after construction.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes at `offset` of `file`; closes the file afterwards.
    pub(crate) fn new(file: OwnedFd, offset: u64, size: u64) -> Result<Self, MapError> {
        let end = offset.checked_add(size).ok_or(MapError::Overflow)?;
        // First of all: only shmem and hugetlbfs know seals, and for every other file the calls below,
        // or a later touch of its pages, may wait for whoever serves its file system.
        if fcntl_get_seals(&file).is_err() {
            return Err(MapError::NotMemory);
        }
        let stat = fstat(&file).map_err(|error| MapError::Io("fstat", error.into()))?;
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        if file_size < end {
            return Err(MapError::FileTooShort { file_size, needed: end });
        }
        let block = block_size(&file)?;
        let base_offset = offset - offset % block;
        let base_size = (end - base_offset)
            .checked_next_multiple_of(block)
            .and_then(|size| usize::try_from(size).ok())
            .ok_or(MapError::Overflow)?;
        let lead = usize::try_from(offset - base_offset).map_err(|_| MapError::Overflow)?;
        let size = usize::try_from(size).map_err(|_| MapError::Overflow)?;

        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        // NORESERVE: sparse regions (virtio-mem) would otherwise reserve everything.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                base_size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                base_offset,
            )
        }
        .map_err(|error| MapError::Io("mmap", error.into()))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(MapError::Overflow)?;
        let Some(guard) = sigbus::register(base.as_ptr().addr(), base_size, block as usize) else {
            // SAFETY: the mapping was made above and nothing else knows of it.
            let _ = unsafe { munmap(base.as_ptr().cast(), base_size) };
            return Err(MapError::TooManyMappings);
        };
        // SAFETY: `lead` is less than a block and `lead + size <= base_size`.
        let start = unsafe { base.add(lead) };
        let part = FilePart::from_stat(&stat, offset);
        Ok(Self { start, size, base, base_size, part, guard })
    }

    /// The first byte of the region.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes from [`Self::start`] that may be touched.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Which file is mapped, and from where.
    pub(crate) fn part(&self) -> FilePart {
        self.part
    }

    /// Whether the file shrank under this mapping and somebody noticed.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.guard.is_poisoned()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard.unregister();
        // SAFETY: the mapping is ours, made with this base and size; slices into it are gone (they
        // borrow) and so are arrays of words (they hold the Arc that is being dropped).
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.base_size) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

fn block_size(file: &OwnedFd) -> Result<u64, MapError> {
    let stat = fstatfs(file).map_err(|error| MapError::Io("fstatfs", error.into()))?;
    let page = rustix::param::page_size() as u64;
    #[allow(clippy::unnecessary_cast, reason = "the type of f_type differs between targets")]
    if stat.f_type as i64 == HUGETLBFS_MAGIC {
        let block = u64::try_from(stat.f_bsize).unwrap_or(0);
        if block.is_power_of_two() && block >= page {
            return Ok(block);
        }
    }
    Ok(page)
}
