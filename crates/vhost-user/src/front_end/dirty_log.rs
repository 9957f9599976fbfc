//! The dirty log: which pages of the guest's memory the back end has written.
//!
//! A virtual machine monitor that migrates a guest copies its memory while it runs, and copies once more
//! what was written meanwhile. Writes of the guest it sees itself; those of the back end are told in this
//! bitmap, which both have mapped (vhost-user, "Migration").

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, MapError, RegionRequest, SharedMemory, Words,
};

/// Pages that a word of the bitmap tells of.
const PAGES: u64 = u64::BITS as u64;

/// A bitmap of the guest's memory, from address 0 on: one bit for each page. A file of its own, which is
/// sealed.
pub struct DirtyLog {
    file: SharedMemory,
    words: Words<AtomicU64>,
}

impl DirtyLog {
    /// Bytes of a page. This is a constant of the protocol, whatever the host's pages are.
    pub const PAGE: u64 = 4096;

    /// A clean log of all guest addresses below `end`.
    ///
    /// # Errors
    ///
    /// The file cannot be made or mapped.
    pub fn new(end: GuestAddress) -> Result<Self, MapError> {
        let words = end.0.div_ceil(Self::PAGE * PAGES).max(1);
        let size = (words * u64::from(u64::BITS / 8)).next_multiple_of(Self::PAGE);
        let file = SharedMemory::create("dirty log", size)
            .map_err(|error| MapError::Io("creation", error))?;
        let shared = file.as_fd().try_clone_to_owned();
        let mapped = GuestMemory::map([RegionRequest {
            guest: GuestAddress(0),
            size,
            front_end: FrontEndAddress(0),
            offset: 0,
            file: shared.map_err(|error| MapError::Io("duplication", error))?,
        }])?;
        let words = mapped.words(GuestAddress(0), words as usize);
        let words = words.expect("as many words as were made room for");
        Ok(Self { file, words })
    }

    /// Takes note of every page that was written since the last time, in order, by its first address. They
    /// count as clean from here on: what is written to one while `dirty` copies it is found next time.
    pub fn take(&self, mut dirty: impl FnMut(GuestAddress)) {
        for (index, word) in (0..).zip(self.words.iter()) {
            // A plain read first: there are many words, and few that anybody has written.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // The page is read after its bit is cleared, and its bit is set after it was written.
            let mut bits = u64::from_le(word.swap(0, Ordering::SeqCst));
            while bits != 0 {
                let page = index * PAGES + u64::from(bits.trailing_zeros());
                dirty(GuestAddress(page * Self::PAGE));
                bits &= bits - 1;
            }
        }
    }

    /// Bytes in the file.
    pub(super) fn size(&self) -> u64 {
        self.file.size()
    }
}

impl AsFd for DirtyLog {
    /// The file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(log: &DirtyLog) -> Vec<u64> {
        let mut pages = Vec::new();
        log.take(|address| pages.push(address.0));
        pages
    }

    #[test]
    fn a_page_is_taken_once_for_each_time_it_was_written() {
        let log = DirtyLog::new(GuestAddress(200 * DirtyLog::PAGE)).unwrap();
        assert_eq!(taken(&log), []);
        // As the specification has it: the byte is the page's number by 8, the bit is what is left.
        for (byte, bits) in [(0, 0x81u8), (8, 1), (24, 0x80)] {
            rustix::io::pwrite(&log, &[bits], byte).unwrap();
        }
        let pages = [0, 7, 64, 199].map(|page| page * DirtyLog::PAGE);
        assert_eq!(taken(&log), pages);
        assert_eq!(taken(&log), [], "they are clean now");
        rustix::io::pwrite(&log, &[1], 8).unwrap();
        assert_eq!(taken(&log), [64 * DirtyLog::PAGE]);
    }

    #[test]
    fn a_log_of_any_memory_has_a_bit_for_its_last_page() {
        for (end, words) in [(0, 1), (1, 1), (64 << 12, 1), ((64 << 12) + 1, 2), (1 << 40, 4 << 20)]
        {
            let log = DirtyLog::new(GuestAddress(end)).unwrap();
            assert_eq!(log.words.len(), words, "{end:#x}");
            assert!(log.size() >= words as u64 * 8 && log.size().is_multiple_of(DirtyLog::PAGE));
        }
    }
}
