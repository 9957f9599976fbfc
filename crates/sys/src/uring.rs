//! Many writes, or reads, by one system call: the kernel's io_uring.
//!
//! What a write reads from, and a read writes to, is borrowed for the call that does it, and all that was
//! begun is over when that returns: between two calls nothing is under way. So this is no asynchronous
//! I/O, but `writev` and `read` for several at a time. Nothing waits either: what would have to, fails with
//! EAGAIN.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use memory::ReadSlice;
use rustix::io::Errno;

/// Writes, or reads, that one call takes.
pub const DEPTH: usize = 64;

/// An io_uring of the kernel's.
pub struct Uring {
    ring: IoUring,
    /// All that was ever put into the ring is over. If not, it is not used again: what is left in it
    /// may point to what is not there any more.
    is_empty: bool,
    /// What the kernel said of each write, or read, of the last call.
    results: Box<[i32; DEPTH]>,
}

impl Uring {
    /// Opens one, for files such as this one, to which it writes no byte. It fails where the kernel
    /// has none, does not let us, or cannot write to such a file, or read it, without waiting.
    pub fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let mut uring = Self { ring, is_empty: true, results: Box::new([0; DEPTH]) };
        let nothing: (_, &[ReadSlice<'_>]) = (file, &[ReadSlice::EMPTY]);
        match uring.write([nothing].into_iter()).next() {
            // It cannot be entered.
            None => return Err(Errno::NOSYS.into()),
            Some(Err(error @ Errno::OPNOTSUPP)) => return Err(error.into()),
            // No bytes are no frame, whatever is said of them.
            Some(_) => {}
        }
        Ok(uring)
    }

    /// Writes to each file what its slices hold, together: the first [`DEPTH`] of `writes`, in
    /// order. Gives of each, in order, how many bytes it took or why it failed.
    ///
    /// If they are less than there were, those behind were not begun, and nothing is written by this
    /// any more.
    pub fn write<'a>(
        &mut self,
        writes: impl Iterator<Item = (BorrowedFd<'a>, &'a [ReadSlice<'a>])>,
    ) -> impl Iterator<Item = Result<usize, Errno>> {
        // SAFETY: files and slices are borrowed for longer than this call.
        unsafe { self.submit(writes.map(|(file, slices)| write(file, slices))) }
    }

    /// Reads each file once, into the room given with it: the first [`DEPTH`] of `reads`, in order.
    /// Gives of each, in order, how many bytes came or why none did.
    ///
    /// If they are less than there were, those behind were not begun, and nothing is read by this any
    /// more.
    pub fn read<'a>(
        &mut self,
        reads: impl Iterator<Item = (BorrowedFd<'a>, &'a mut [u8])>,
    ) -> impl Iterator<Item = Result<usize, Errno>> {
        // SAFETY: files are borrowed for longer than this call, and so is all room, by nobody else.
        unsafe { self.submit(reads.map(|(file, room)| read(file, room))) }
    }

    /// Has the first [`DEPTH`] of these done, in order. Gives of each what the kernel says.
    ///
    /// # Safety
    ///
    /// What they name may be used by the kernel until this returns.
    unsafe fn submit(
        &mut self,
        entries: impl Iterator<Item = Entry>,
    ) -> impl Iterator<Item = Result<usize, Errno>> {
        // SAFETY: as the caller says.
        let count = unsafe { self.submit_all(entries) };
        let results = self.results.get(..count).unwrap_or_default();
        results.iter().map(|result| {
            let failed = |_| Errno::from_raw_os_error(result.saturating_neg());
            usize::try_from(*result).map_err(failed)
        })
    }

    /// The same. Returns how many were done.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn submit_all(&mut self, entries: impl Iterator<Item = Entry>) -> usize {
        // Also if the iterator panics.
        if !std::mem::replace(&mut self.is_empty, false) {
            return 0;
        }
        let mut count = 0;
        let mut submissions = self.ring.submission();
        for entry in entries.take(DEPTH) {
            let entry = entry.user_data(count as u64);
            // SAFETY: what it names may be used for as long as this call takes, as the caller says; and it
            // does not return, nor panic from here on, before the entry is over; or else the kernel has
            // not taken it, and is not asked again to.
            if unsafe { submissions.push(&entry) }.is_err() {
                break;
            }
            count += 1;
        }
        drop(submissions);
        let (mut taken, mut over) = (count, 0);
        while over < taken {
            // Once it has failed, what is left in the ring stays there. What the kernel has taken of
            // it is still its own.
            if taken < count {
                std::thread::yield_now();
            } else if let Err(error) = self.ring.submit_and_wait(taken - over)
                && error.kind() != io::ErrorKind::Interrupted
            {
                taken = count - self.ring.submission().len();
            }
            for completion in self.ring.completion() {
                let number = completion.user_data() as usize;
                if let Some(result) = self.results.get_mut(number) {
                    *result = completion.result();
                }
                over += 1;
            }
        }
        self.is_empty = taken == count;
        taken
    }
}

/// A write that fails where it would wait.
fn write(file: BorrowedFd<'_>, slices: &[ReadSlice<'_>]) -> Entry {
    let file = types::Fd(file.as_raw_fd());
    // A slice is laid out as an iovec (see its definition).
    let vectors: *const libc::iovec = slices.as_ptr().cast();
    // Of a single one the kernel need not read where it lies, which takes it a while.
    if let [only] = slices
        && let Ok(len) = u32::try_from(only.len())
    {
        // SAFETY: there is one.
        let start = unsafe { (*vectors).iov_base };
        return opcode::Write::new(file, start.cast(), len).rw_flags(libc::RWF_NOWAIT).build();
    }
    // The kernel takes far less, and says so.
    let count = u32::try_from(slices.len()).unwrap_or(u32::MAX);
    opcode::Writev::new(file, vectors, count).rw_flags(libc::RWF_NOWAIT).build()
}

/// A read that fails where it would wait.
fn read(file: BorrowedFd<'_>, room: &mut [u8]) -> Entry {
    let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
    let file = types::Fd(file.as_raw_fd());
    opcode::Read::new(file, room.as_mut_ptr(), len).rw_flags(libc::RWF_NOWAIT).build()
}

#[cfg(test)]
mod tests;
