//! Descriptors that this process was started with.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd};

/// A duplicate, closed on exec, of the descriptor with this number: the way to get hold of one that
/// was inherited, and is known by its number only. The original stays open.
///
/// What is closed on exec was not inherited: this process has opened it itself, for another purpose,
/// and the number is a mistake.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is not -1, and the borrow is used for two calls only, which report a
    // descriptor that is not open as an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    borrowed.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_is_open_is_duplicated_and_what_is_not_is_an_error() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let number = writer.as_raw_fd();
        let duplicate = inherited(number).unwrap();
        assert_ne!(duplicate.as_raw_fd(), number);
        rustix::io::write(&duplicate, b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]), Ok(1));
        // The duplicate is our own.
        for number in [-1, RawFd::MAX, duplicate.as_raw_fd()] {
            assert_eq!(inherited(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
