//! The front end as the socket's server: the back end connects.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{FrontEnd, FrontEndError};

/// A socket where back ends connect, one after the other.
///
/// It outlives them: a switch that is started again finds the virtual machine where it was. This is why
/// QEMU's `server=on` is the better choice, and this is its counterpart.
#[derive(Debug)]
pub struct FrontEndListener {
    listener: UnixListener,
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
            Ok(listener) => Ok(Self { listener, path }),
            Err(cause) => Err(FrontEndError::Listen { path, cause }),
        }
    }

    /// Waits up to `patience` for a back end to connect. `limit` is how long each of its answers may
    /// take.
    pub fn accept(&self, patience: Duration, limit: Duration) -> Result<FrontEnd, FrontEndError> {
        let failed = |cause| FrontEndError::Listen { path: self.path.clone(), cause };
        let deadline = Instant::now() + patience;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    return FrontEnd::new(OwnedFd::from(socket), limit).map_err(failed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
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
    }
}
