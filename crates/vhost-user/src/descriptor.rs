//! Descriptors that a peer has passed to us.
//!
//! What is behind a descriptor may be served by the peer: a file on its own FUSE mount, say. Almost
//! any call on such a descriptor waits for an answer that need not come, `fstat` and `close`
//! included. So its kind is found out by calls that ask nobody but the kernel, and what is of no kind
//! that we know is closed by a thread that may wait.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{fcntl_get_seals, readlink};

use crate::closer::Closer;

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

/// Whether closing it cannot take time. Of everything else nobody knows: even closing one of our own
/// Unix sockets closes what a peer has sent there.
fn is_quickly_closed(descriptor: BorrowedFd<'_>) -> bool {
    is_eventfd(descriptor) || is_memory(descriptor)
}

/// A descriptor that a peer may have had a hand in. However it is dropped, nobody waits for it to be
/// closed.
pub struct Descriptor {
    /// Taken only by what ends it.
    file: Option<OwnedFd>,
    /// Without one, it gets its own.
    closer: Option<Closer>,
}

impl Descriptor {
    /// A descriptor that `closer` closes, unless it is of a kind that is quickly closed.
    pub fn new(file: OwnedFd, closer: &Closer) -> Self {
        Self { file: Some(file), closer: Some(closer.clone()) }
    }

    /// Has `closer` close it, if it has no closer yet.
    pub(crate) fn leave_to(&mut self, closer: &Closer) {
        self.closer.get_or_insert_with(|| closer.clone());
    }

    /// The descriptor itself, for whoever has found out what it is, or may wait.
    pub fn into_owned(mut self) -> OwnedFd {
        self.file.take().expect(TAKEN)
    }
}

/// Why there is always a file.
const TAKEN: &str = "only what ends a descriptor takes its file";

impl From<OwnedFd> for Descriptor {
    fn from(file: OwnedFd) -> Self {
        Self { file: Some(file), closer: None }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect(TAKEN).as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(file) = self.file.take()
            && !is_quickly_closed(file.as_fd())
        {
            self.closer.take().unwrap_or_default().close(file);
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{Mode, OFlags, open};
    use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

    use super::*;

    /// More than anything takes that does not wait, and less than [`slow`] descriptors do.
    pub(crate) const LIMIT: Duration = Duration::from_secs(10);

    /// Sees to it that `call` does not wait for whoever is behind a descriptor.
    pub(crate) fn at_once<R>(call: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = call();
        assert!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
        result
    }

    /// A descriptor whose last close takes two limits, which needs no privilege; or until the other
    /// one is dropped.
    pub(crate) fn slow() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Far less than is sent, so that something is left that the other one has no room for.
        set_socket_recv_buffer_size(&listener, 4096).unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        slow.set_nonblocking(true).unwrap();
        while slow.write(&[0; 65536]).is_ok() {}
        slow.set_nonblocking(false).unwrap();
        set_socket_linger(&slow, Some(2 * LIMIT)).unwrap();
        (slow.into(), other)
    }

    #[test]
    fn kinds_are_told_apart() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let memory = memory::SharedMemory::create("kind", 4096).unwrap();
        let file = open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(is_eventfd(event.as_fd()) && !is_memory(event.as_fd()));
        assert!(is_memory(memory.as_fd()) && !is_eventfd(memory.as_fd()));
        assert!(!is_memory(file.as_fd()) && !is_eventfd(file.as_fd()));
        assert!(is_quickly_closed(event.as_fd()) && is_quickly_closed(memory.as_fd()));
        // How long these take, a peer decides: of a Unix socket, by what it has queued there.
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let (epoll, (pipe, _writer)) = (epoll.unwrap(), rustix::pipe::pipe().unwrap());
        for slow in [file.as_fd(), socket.as_fd(), epoll.as_fd(), pipe.as_fd()] {
            assert!(!is_quickly_closed(slow), "{}", kind(slow));
        }
    }

    #[test]
    fn nobody_waits_for_a_descriptor_to_be_closed() {
        let closer = Closer::new();
        let (one, other) = slow();
        at_once(|| drop(Descriptor::new(one, &closer)));
        assert_eq!(closer.pending(), 1);
        drop(other);
        assert!(closer.wait(LIMIT));
        // What has no closer gets one.
        let (one, _other) = slow();
        at_once(|| drop(Descriptor::from(one)));
        // Whoever takes it waits, if he wants to.
        let (one, other) = slow();
        let one = Descriptor::new(one, &closer).into_owned();
        drop(other);
        at_once(|| drop(one));
        assert_eq!(closer.pending(), 0);
    }

    #[test]
    fn eventfds_and_memory_need_no_thread() {
        let closer = Closer::new();
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let memory = memory::SharedMemory::create("kind", 4096).unwrap();
        for file in [event, memory.as_fd().try_clone_to_owned().unwrap()] {
            drop(Descriptor::new(file, &closer));
            assert_eq!(closer.pending(), 0);
        }
    }
}
