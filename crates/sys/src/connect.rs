//! Connecting, and saying in plain words why it could not be done.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connects to whoever listens at `path`, who may take up to `limit` to accept that. So long, too, may
/// each send take afterwards, if it is one that waits.
///
/// # Errors
///
/// Nobody listens there, nobody accepts, or we may not. The texts are for people, because it is hard to
/// understand what the kernel calls these.
pub fn connect(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let connect = || -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A listener that does not accept would otherwise hold us for ever.
        set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    connect().map_err(|error| {
        let is_file = || fs::metadata(path).is_ok_and(|file| !file.file_type().is_socket());
        let words = match error {
            Errno::NOENT => {
                "there is no socket: nobody listens there yet, or not any more".to_owned()
            }
            Errno::CONNREFUSED if is_file() => "it is not a socket".to_owned(),
            Errno::CONNREFUSED => "nobody listens there any more".to_owned(),
            Errno::AGAIN => format!("nobody accepts the connection within {limit:?}"),
            Errno::PROTOTYPE => "it is not a stream socket".to_owned(),
            error => return error.into(),
        };
        io::Error::new(io::Error::from(error).kind(), words)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn every_way_to_fail_has_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let limit = Duration::from_millis(20);
        let fails = |name: &str| connect(&path(name), limit).unwrap_err().to_string();
        let no_socket = "there is no socket: nobody listens there yet, or not any more";
        assert_eq!(fails("nothing"), no_socket);
        fs::write(path("file"), "text").unwrap();
        assert_eq!(fails("file"), "it is not a socket");
        drop(UnixListener::bind(path("left")).unwrap());
        assert_eq!(fails("left"), "nobody listens there any more");
        let _datagram = UnixDatagram::bind(path("datagram")).unwrap();
        assert_eq!(fails("datagram"), "it is not a stream socket");
        assert!(fails(&"long".repeat(50)).starts_with("File name too long"));

        let _listener = UnixListener::bind(path("crowded")).unwrap();
        // As many as may wait, and one more.
        let crowd: Vec<_> = std::iter::from_fn(|| connect(&path("crowded"), limit).ok()).collect();
        assert!(!crowd.is_empty());
        assert_eq!(fails("crowded"), "nobody accepts the connection within 20ms");
    }
}
