//! The front end as the socket's server: the back end connects.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::{FrontEnd, FrontEndError, deadline};
use crate::descriptor::Descriptor;

/// A socket where back ends connect, one after the other.
///
/// It outlives them: a switch that is started again finds the virtual machine where it was. This is why
/// QEMU's `server=on` is the better choice, and this is its counterpart.
#[derive(Debug)]
pub struct FrontEndListener {
    /// Closes with it whoever was not accepted, and what he has sent.
    listener: Descriptor,
    path: PathBuf,
}

impl FrontEndListener {
    /// Listens at `path`, where nothing may be yet. The socket's file is removed on drop.
    pub fn bind(path: &Path) -> Result<Self, FrontEndError> {
        let path = path.to_owned();
        let bind = || {
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener: OwnedFd::from(listener).into(), path }),
            Err(cause) => Err(FrontEndError::Listen { path, cause }),
        }
    }

    /// Waits up to `patience` for a back end to connect. `limit` is how long each of its answers may
    /// take.
    pub fn accept(&self, patience: Duration, limit: Duration) -> Result<FrontEnd, FrontEndError> {
        let failed = |cause| FrontEndError::Listen { path: self.path.clone(), cause };
        let deadline = deadline(patience);
        loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => return FrontEnd::new(socket, limit).map_err(failed),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let path = self.path.clone();
                return Err(FrontEndError::NobodyConnected { path, limit: patience });
            }
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

impl AsFd for FrontEndListener {
    /// Readable when a back end connects.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for FrontEndListener {
    fn drop(&mut self) {
        // Whoever has taken it away already has done it for us.
        let _ = std::fs::remove_file(&self.path);
        self.listener.end_listening();
    }
}
