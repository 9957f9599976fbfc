//! Sending guest memory to a descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::ReadSlice;

/// Most slices in one write: what the kernel takes.
pub const WRITE_SLICES_MAX: usize = 1024;

/// Writes all slices by one `writev`: the kernel copies them out of guest memory itself, and
/// tolerates that they change meanwhile. More than [`WRITE_SLICES_MAX`] are refused by the kernel.
pub fn write_vectored(descriptor: BorrowedFd<'_>, slices: &[ReadSlice<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(slices.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: a slice is laid out as an iovec (see its definition), and each covers mapped memory
    // while it lives; the kernel only reads.
    let written = unsafe { libc::writev(descriptor.as_raw_fd(), slices.as_ptr().cast(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn slices_arrive_in_order() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let slices = [ReadSlice::from(&b"one "[..]), ReadSlice::from(&b"two"[..])];
        assert_eq!(write_vectored(writer.as_fd(), &slices).unwrap(), 7);
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        let (_, writer) = rustix::pipe::pipe().unwrap();
        assert!(write_vectored(writer.as_fd(), &[slices[0]; WRITE_SLICES_MAX + 1]).is_err());
    }
}
