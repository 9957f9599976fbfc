//! Memory that we share out ourselves, in the role of a virtual machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

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
