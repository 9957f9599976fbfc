//! Many writes, or reads, by one system call: the kernel's io_uring.
//!
//! What a write reads from, and a read writes to, is borrowed for the call that does it, and all that was
//! begun is over when that returns: between two calls nothing is under way. So this is no asynchronous
//! I/O, but `writev` and `read` for several at a time. Nothing waits either: what would have to, fails with
//! EAGAIN.
//!
//! The kernel is told of the files once, so that it looks none up for each write: it holds them for as long as
//! there is the ring.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use memory::ReadSlice;
use rustix::io::Errno;

/// Writes, or reads, that one call takes.
pub const DEPTH: usize = 64;

/// An io_uring of the kernel's, for some files.
pub struct Uring {
    ring: IoUring,
    /// All that was ever put into the ring is over. If not, it is not used again: what is left in it
    /// may point to what is not there any more.
    is_empty: bool,
    /// What the kernel said of each write, or read, of the last call.
    results: Box<[i32; DEPTH]>,
}

impl Uring {
    /// Opens one for these files, of one kind: to the first it writes no byte. It fails where the kernel
    /// has none, does not let us, or cannot write to such a file, or read it, without waiting.
    ///
    /// Until it is dropped they are open, whoever else closes them.
    pub fn open<'f>(files: impl Iterator<Item = BorrowedFd<'f>>) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        let files: Vec<_> = files.map(|file| file.as_raw_fd()).collect();
        ring.submitter().register_files(&files)?;
        let mut uring = Self { ring, is_empty: true, results: Box::new([0; DEPTH]) };
        let nothing: (_, &[ReadSlice<'_>]) = (0, &[ReadSlice::EMPTY]);
        match uring.write([nothing].into_iter()).next() {
            // It cannot be entered.
            None => return Err(Errno::NOSYS.into()),
            Some(Err(error @ Errno::OPNOTSUPP)) => return Err(error.into()),
            // No bytes are no frame, whatever is said of them.
            Some(_) => {}
        }
        Ok(uring)
    }

    /// Writes to each file, by its place among those that it was opened for, what its slices hold, together: the
    /// first [`DEPTH`] of `writes`, in order. Gives of each, in order, how many bytes it took or why it failed.
    ///
    /// If they are less than there were, those behind were not begun, and nothing is written by this
    /// any more.
    pub fn write<'a>(
        &mut self,
        writes: impl Iterator<Item = (usize, &'a [ReadSlice<'a>])>,
    ) -> impl Iterator<Item = Result<usize, Errno>> {
        // SAFETY: slices are borrowed for longer than this call, and the files are the ring's own.
        unsafe { self.submit(writes.map(|(file, slices)| write(file, slices))) }
    }

    /// Reads each file, by its place, once, into the room given with it: the first [`DEPTH`] of `reads`, in order.
    /// Gives of each, in order, how many bytes came or why none did.
    ///
    /// If they are less than there were, those behind were not begun, and nothing is read by this any
    /// more.
    pub fn read<'a>(
        &mut self,
        reads: impl Iterator<Item = (usize, &'a mut [u8])>,
    ) -> impl Iterator<Item = Result<usize, Errno>> {
        // SAFETY: all room is borrowed for longer than this call, by nobody else, and the files are the ring's own.
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

/// Closing a ring leaves what it holds to be let go of some time later, and until then an interface would be in use.
impl Drop for Uring {
    fn drop(&mut self) {
        // They were registered; so there is nothing to be said of it.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// One of the ring's files. The kernel refuses a place where there is none.
fn place(file: usize) -> types::Fixed {
    types::Fixed(u32::try_from(file).unwrap_or(u32::MAX))
}

/// A write that fails where it would wait.
fn write(file: usize, slices: &[ReadSlice<'_>]) -> Entry {
    let file = place(file);
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
fn read(file: usize, room: &mut [u8]) -> Entry {
    let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
    opcode::Read::new(place(file), room.as_mut_ptr(), len).rw_flags(libc::RWF_NOWAIT).build()
}

#[cfg(test)]
mod tests;
