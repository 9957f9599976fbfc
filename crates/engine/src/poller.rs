//! Where a worker sleeps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// The descriptors that wake a worker: kicks, input of taps, and the wake descriptor by which other
/// threads call it.
///
/// Which descriptor fired does not matter, since a worker that wakes looks at everything it owns.
/// They are watched edge-triggered and never read: each write to an eventfd is an edge, so that a
/// kick costs the worker no system call, and nothing that a peer passes as a kick descriptor is
/// ever read from.
#[derive(Clone)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
    wake: Arc<OwnedFd>,
}

impl Poller {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let poller = Self { epoll, wake };
        poller.watch(&poller.wake)?;
        Ok(poller)
    }

    /// The descriptor that wakes the worker when written to.
    pub(crate) fn wake_descriptor(&self) -> Arc<OwnedFd> {
        self.wake.clone()
    }

    /// Wakes the worker when `descriptor` becomes readable, or is written to again.
    ///
    /// An error means that it cannot be waited for: a regular file, or one that is watched already.
    pub fn watch(&self, descriptor: impl AsFd) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, descriptor, data, flags)?)
    }

    /// Watches it no more. To be called before the descriptor is closed: a peer that shares it
    /// would go on waking us.
    pub fn unwatch(&self, descriptor: impl AsFd) {
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    /// Sleeps until a descriptor fires, or `limit` is over.
    pub(crate) fn sleep(&self, limit: Option<Duration>) {
        let mut fired = [std::mem::MaybeUninit::uninit(); 16];
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        });
        // An interrupted wait is a wake-up like any other: the worker looks and sleeps again.
        let _ = epoll::wait(&self.epoll, &mut fired, limit.as_ref());
    }
}
