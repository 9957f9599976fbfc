//! Memory that we share out ourselves, in the role of a virtual machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;

/// Bytes of a hugepage: the size that x86-64, arm64 and riscv64 have in common.
const HUGEPAGE: u64 = 2 << 20;

/// A memory file of a fixed size, sealed against shrinking and growing so that the other side can
/// trust its length.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    size: u64,
}

impl SharedMemory {
    /// Creates a file of `size` zero bytes; `name` is what /proc shows.
    pub fn create(name: &str, size: u64) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, size)?;
        Self::seal(file, size)
    }

    /// The same in hugepages of 2 MiB, of which there are as many as hold `size` bytes. All of them are
    /// taken at once: without that, the first touch of one too many would be SIGBUS.
    pub fn create_in_hugepages(name: &str, size: u64) -> io::Result<Self> {
        let hugepages = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | hugepages)?;
        let size = size.checked_next_multiple_of(HUGEPAGE).ok_or(Errno::FBIG)?;
        ftruncate(&file, size)?;
        fallocate(&file, FallocateFlags::empty(), 0, size).map_err(|error| {
            let count = size / HUGEPAGE;
            let says = format!("no {count} free hugepages of 2 MiB: {}", io::Error::from(error));
            io::Error::new(io::Error::from(error).kind(), says)
        })?;
        Self::seal(file, size)
    }

    fn seal(file: OwnedFd, size: u64) -> io::Result<Self> {
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, size })
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{fcntl_get_seals, fstat};

    use super::*;

    #[test]
    fn a_file_keeps_its_size() {
        let memory = SharedMemory::create("shared", 12345).unwrap();
        assert_eq!((memory.size(), fstat(&memory).unwrap().st_size), (12345, 12345));
        let seals = fcntl_get_seals(&memory).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        assert!(ftruncate(&memory, 1).is_err() && ftruncate(&memory, 1 << 20).is_err());
    }
}
