//! Closing what may take its time to close.
//!
//! The last `close` of a descriptor runs code of whatever is behind it: a FUSE file is flushed by its
//! server, a TCP socket with SO_LINGER waits for its peer, a Unix socket first closes all descriptors
//! that wait in it. Whoever sent us such a descriptor decides how long that takes. So a thread does it
//! that has nothing else to do.
//!
//! # What bounds it
//!
//! Each connection has a closer, and each closer has one thread, while there is something to close. So
//! nobody waits for what another peer has sent. What is not closed yet is counted: a
//! [`crate::Connection`] ends when it is too much, and a program that serves one peer after another at
//! the same place gives all of them the same closer, and waits for that before it serves the next.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// Closes descriptors, one after the other, on a thread of its own. Clones are the same closer.
#[derive(Clone, Default)]
pub struct Closer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    idle: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<OwnedFd>,
    has_thread: bool,
    /// The thread is closing one.
    is_closing: bool,
    /// Who wants to know when all are closed.
    wakers: Vec<Waker>,
}

impl Queue {
    fn pending(&self) -> usize {
        self.waiting.len() + usize::from(self.is_closing)
    }
}

impl Closer {
    /// A closer with nothing to do.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many descriptors are not closed yet.
    pub fn pending(&self) -> usize {
        self.queue().pending()
    }

    /// Ready when all descriptors are closed.
    pub fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue();
        if queue.pending() == 0 {
            return Poll::Ready(());
        }
        self.start(&mut queue);
        if !queue.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            queue.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until all descriptors are closed, up to `limit`. Returns whether they are.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut queue = self.queue();
        self.start(&mut queue);
        let waited = self.0.idle.wait_timeout_while(queue, limit, |queue| queue.pending() > 0);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.pending() == 0
    }

    /// Closes a descriptor, and does not wait for that.
    pub(crate) fn close(&self, descriptor: OwnedFd) {
        let mut queue = self.queue();
        queue.waiting.push_back(descriptor);
        self.start(&mut queue);
    }

    /// Sees to it that there is a thread if there is something to do. If none is to be had, descriptors
    /// wait until somebody asks again: better than to have whoever asks wait for them.
    fn start(&self, queue: &mut Queue) {
        if queue.has_thread || queue.waiting.is_empty() {
            return;
        }
        let closer = self.clone();
        let thread = thread::Builder::new().name("closer".to_owned()).spawn(move || closer.run());
        queue.has_thread = thread.is_ok();
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let next = queue.waiting.pop_front();
            queue.is_closing = next.is_some();
            let Some(descriptor) = next else {
                queue.has_thread = false;
                let wakers = std::mem::take(&mut queue.wakers);
                drop(queue);
                self.0.idle.notify_all();
                wakers.into_iter().for_each(Waker::wake);
                return;
            };
            drop(queue);
            // Here it may take as long as it likes.
            drop(descriptor);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is locked.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("pending", &self.pending()).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A thread would keep this alive, so none was to be had. Whoever drops this must not wait.
        let queue = self.queue.get_mut().unwrap_or_else(PoisonError::into_inner);
        for descriptor in queue.waiting.drain(..) {
            let _ = descriptor.into_raw_fd();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::task::Wake;

    use super::*;
    use crate::descriptor::tests::{LIMIT, at_once, slow};

    struct Tell(Mutex<Sender<()>>);

    impl Wake for Tell {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    #[test]
    fn who_waits_is_told_when_all_are_closed() {
        let (told, is_told) = channel();
        let waker = Waker::from(Arc::new(Tell(Mutex::new(told))));
        let mut context = Context::from_waker(&waker);
        let closer = Closer::new();
        assert!(closer.poll_closed(&mut context).is_ready());

        let (one, one_ends) = slow();
        let (two, two_ends) = slow();
        at_once(|| {
            closer.close(one);
            closer.close(two);
        });
        for _ in 0..3 {
            assert!(closer.poll_closed(&mut context).is_pending());
        }
        assert!(!closer.wait(Duration::ZERO));
        assert!(closer.pending() >= 2);

        drop(one_ends);
        assert!(!closer.wait(Duration::ZERO), "the second is still there");
        drop(two_ends);
        assert_eq!(is_told.recv_timeout(LIMIT), Ok(()));
        assert!(closer.poll_closed(&mut context).is_ready());
        assert!(is_told.try_recv().is_err(), "it was told once");

        // And again, with another thread.
        let (one, one_ends) = slow();
        closer.close(one);
        assert!(!closer.wait(Duration::ZERO));
        drop(one_ends);
        assert!(closer.wait(LIMIT));
    }

    #[test]
    fn closers_do_not_wait_for_each_other() {
        let (stuck, other) = (Closer::new(), Closer::new());
        let (one, _one_ends) = slow();
        stuck.close(one);
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        other.close(writer);
        assert!(other.wait(LIMIT));
        assert_eq!(stuck.pending(), 1);
    }

    #[test]
    fn what_waits_is_closed_when_nobody_holds_the_closer_any_more() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (one, one_ends) = slow();
        let closer = Closer::new();
        closer.close(one);
        closer.close(writer);
        at_once(|| drop(closer));
        drop(one_ends);
        // The end of the pipe.
        assert_eq!(rustix::io::read(reader, &mut [0; 1]), Ok(0));
    }
}
