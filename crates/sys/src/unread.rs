//! How much of what was sent has not been read.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether the peer has read everything that was sent on a Unix socket.
///
/// # Errors
///
/// It is no socket.
pub fn is_read(socket: impl AsFd) -> io::Result<bool> {
    let mut unread: libc::c_int = 0;
    // SAFETY: this request (SIOCOUTQ) stores one int, for which there is room.
    let result = unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, std::ptr::from_mut(&mut unread))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(unread == 0) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_read_is_read() {
        let (mut one, mut other) = UnixStream::pair().expect("two sockets");
        assert!(is_read(&one).expect("a socket"));
        one.write_all(b"something").expect("there is room");
        assert!(!is_read(&one).expect("a socket"));
        other.read_exact(&mut [0; 9]).expect("it is there");
        assert!(is_read(&one).expect("a socket"));
        assert!(is_read(std::fs::File::open("/dev/null").expect("it is there")).is_err());
    }
}
