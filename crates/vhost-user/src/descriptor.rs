//! Descriptors that a peer has passed to us.
//!
//! What is behind a descriptor may be served by the peer: a file on its own FUSE mount, say. Almost
//! any call on such a descriptor waits for an answer that need not come, `fstat` and `close`
//! included. So its kind is found out by calls that ask nobody but the kernel, and what is of no kind
//! that we know is closed by a thread that may wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use rustix::fs::{fcntl_get_seals, readlink};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

/// What /proc calls a descriptor, such as `anon_inode:[eventfd]`.
pub(crate) fn kind(descriptor: BorrowedFd<'_>) -> String {
    let name = readlink(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), Vec::new());
    name.map_or_else(|_| "unknown file".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether it is an eventfd.
pub(crate) fn is_eventfd(descriptor: BorrowedFd<'_>) -> bool {
    kind(descriptor) == "anon_inode:[eventfd]"
}

/// Whether it is shmem or hugetlbfs: the only files that have seals.
pub(crate) fn is_memory(descriptor: BorrowedFd<'_>) -> bool {
    fcntl_get_seals(descriptor).is_ok()
}

/// Whether closing it cannot take time.
fn is_quickly_closed(descriptor: BorrowedFd<'_>) -> bool {
    let kind = kind(descriptor);
    kind.starts_with("anon_inode:")
        || kind.starts_with("pipe:")
        || is_memory(descriptor)
        || (kind.starts_with("socket:") && socket_domain(descriptor) == Ok(AddressFamily::UNIX))
}

/// Closes descriptors without waiting for whoever is behind them.
pub(crate) fn close(descriptors: impl IntoIterator<Item = OwnedFd>) {
    static CLOSER: OnceLock<Sender<OwnedFd>> = OnceLock::new();
    for descriptor in descriptors {
        if is_quickly_closed(descriptor.as_fd()) {
            continue;
        }
        let closer = CLOSER.get_or_init(|| {
            let (sender, receiver) = channel();
            let closer = move || receiver.into_iter().for_each(drop::<OwnedFd>);
            // Without a thread the receiver is gone, and descriptors are closed by whoever sends.
            let _ = std::thread::Builder::new().name("closer".to_owned()).spawn(closer);
            sender
        });
        let _ = closer.send(descriptor);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{Mode, OFlags, open};

    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let memory = memory::SharedMemory::create("kind", 4096).unwrap();
        let file = open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_eventfd(event.as_fd()) && !is_memory(event.as_fd()));
        assert!(is_memory(memory.as_fd()) && !is_eventfd(memory.as_fd()));
        assert!(!is_memory(file.as_fd()) && !is_eventfd(file.as_fd()));
        assert!(is_quickly_closed(event.as_fd()) && is_quickly_closed(memory.as_fd()));
        assert!(is_quickly_closed(socket.as_fd()) && !is_quickly_closed(file.as_fd()));
    }
}
