//! Descriptors that a peer has passed to us.
//!
//! What is behind a descriptor may be served by the peer: a file on its own FUSE mount, say. Almost
//! any call on such a descriptor waits for an answer that need not come, `fstat` and `close`
//! included. So its kind is found out by calls that ask nobody but the kernel, and what is of no kind
//! that we know is closed by a thread that may wait.
//!
//! A Unix socket of our own is such a thing, too: with it goes what a peer has sent there. When it is ended first, by
//! [`Descriptor::end_connection`] or [`Descriptor::end_listening`], it can be seen that there is nothing, which is nearly always so. A
//! switch that lets go of hundreds of ports then starts no thread for each of their sockets. (Kernels before 6.9 may look for garbage among all
//! Unix sockets of the machine then, and so close what others have left.)

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{fcntl_get_seals, readlink};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

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
    /// It was seen that closing it takes no time.
    is_quick: bool,
}

impl Descriptor {
    /// A descriptor that `closer` closes, unless it is of a kind that is quickly closed.
    pub fn new(file: OwnedFd, closer: &Closer) -> Self {
        Self { file: Some(file), closer: Some(closer.clone()), is_quick: false }
    }

    /// Has `closer` close it, if it has no closer yet.
    pub(crate) fn leave_to(&mut self, closer: &Closer) {
        self.closer.get_or_insert_with(|| closer.clone());
    }

    /// Ends a Unix stream socket that is connected, and our own: the peer sees at once that it is at its end, whoever else has the
    /// socket. What was sent and not read is closed with it.
    pub(crate) fn end_connection(&mut self) {
        let ended = shutdown(&*self, Shutdown::Both);
        // From here on nobody can send anything.
        self.is_quick = ended.is_ok() && ioctl_fionread(&*self) == Ok(0);
    }

    /// Ends a Unix stream socket that listens, and is our own: whoever connects is refused. Those that nobody has accepted are closed
    /// with it, and what they have sent.
    pub fn end_listening(&mut self) {
        if shutdown(&*self, Shutdown::Both).is_err() {
            return;
        }
        // From here on nobody can join those that wait.
        match accept_with(&*self, SocketFlags::CLOEXEC) {
            Ok(waiting) => self.closer.get_or_insert_default().close(waiting),
            Err(error) => self.is_quick = matches!(error, Errno::AGAIN | Errno::INVAL),
        }
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
        Self { file: Some(file), closer: None, is_quick: false }
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
            && !self.is_quick
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
    use std::io::{ErrorKind, IoSlice, Write};
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{Mode, OFlags, open};
    use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

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
        let (socket, _peer) = UnixStream::pair().unwrap();
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

    /// A socket that listens, and where.
    fn listener() -> (Descriptor, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("listener")).unwrap();
        listener.set_nonblocking(true).unwrap();
        (OwnedFd::from(listener).into(), directory)
    }

    #[test]
    fn sockets_with_nothing_in_them_need_no_thread() {
        let closer = Closer::new();
        let (mut listener, directory) = listener();
        listener.leave_to(&closer);
        let peer = UnixStream::connect(directory.path().join("listener")).unwrap();
        let accepted = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        let mut connection = Descriptor::new(accepted, &closer);
        connection.end_connection();
        drop(connection);
        assert_eq!(closer.pending(), 0);
        assert_eq!((&peer).write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
        listener.end_listening();
        let refused = UnixStream::connect(directory.path().join("listener")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(listener);
        assert_eq!(closer.pending(), 0);
    }

    #[test]
    fn sockets_with_something_in_them_are_not_waited_for() {
        let send = |socket: &UnixStream, descriptor: OwnedFd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
        };
        // The first one is connected, and the others wait for that.
        let (mut listener, directory) = listener();
        let connect = || UnixStream::connect(directory.path().join("listener")).unwrap();
        let peers = [connect(), connect(), connect()];
        let (slows, others): (Vec<_>, Vec<_>) = peers.iter().map(|_| slow()).unzip();
        peers.iter().zip(slows).for_each(|(peer, slow)| send(peer, slow));
        let closers = [Closer::new(), Closer::new()];
        listener.leave_to(&closers[1]);
        let accepted = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        let mut connection = Descriptor::new(accepted, &closers[0]);
        at_once(|| {
            connection.end_connection();
            drop(connection);
            listener.end_listening();
            drop(listener);
        });
        assert_eq!(closers.each_ref().map(Closer::pending), [1, 2]);
        drop(others);
        assert!(closers.iter().all(|closer| closer.wait(LIMIT)));
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
