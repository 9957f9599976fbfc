//! The queues of an interface, and which part of a port has which.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use engine::Poller;
use sys::tun::{Offloads, Queue};
use sys::uring::Uring;
use wire::flow;

/// What a part of a port has to read or write several frames at a time, in the queues' order, or why it has nothing; `None`
/// without queues.
pub(crate) type Together = Option<io::Result<Uring>>;

/// All queues of an interface, which the parts of a port share.
#[derive(Debug)]
pub struct Queues {
    queues: Box<[Queue]>,
    /// One of the parts has said that the interface is gone.
    is_reported: AtomicBool,
}

impl Queues {
    /// Of one interface, opened together.
    pub fn new(queues: Vec<Queue>) -> Arc<Self> {
        Arc::new(Self { queues: queues.into(), is_reported: AtomicBool::new(false) })
    }

    /// What reads and writes several frames at a time. It has them open, too.
    pub(crate) fn together(&self) -> io::Result<Uring> {
        Uring::open(self.queues.iter().map(Queue::as_fd))
    }

    pub(crate) fn first(&self) -> Option<&Queue> {
        self.queues.first()
    }

    /// The one at a place that a [`Share`] gave.
    pub(crate) fn get(&self, place: usize) -> &Queue {
        &self.queues[place]
    }
}

/// What one part of a port has of the queues.
pub(crate) struct Share {
    pub(crate) all: Arc<Queues>,
    /// Those that this part reads. The first is another each time.
    pub(crate) own: Vec<Own>,
    /// The first of its own; when it has none, the one to write to.
    base: usize,
    /// From one of its own to the next.
    step: usize,
    pub(crate) is_gone: bool,
    /// Where its own are watched, if they are.
    poller: Option<Poller>,
}

/// A queue that a part of a port reads.
pub(crate) struct Own {
    index: usize,
    /// When to read next, while the worker polls.
    pub(crate) next_read: u64,
    /// How often in a row there was more to read than there was room for.
    pub(crate) full: u32,
}

impl Own {
    pub(crate) fn place(&self) -> usize {
        self.index
    }

    pub(crate) fn queue<'q>(&self, queues: &'q Queues) -> &'q Queue {
        &queues.queues[self.index]
    }
}

impl Share {
    /// The share of worker `number` of so many, if there is a queue at all. They are dealt out in
    /// turn.
    pub(crate) fn new(all: Arc<Queues>, number: usize, workers: usize) -> Option<Self> {
        let (count, step) = (all.queues.len(), workers.max(1));
        let own = (number..count)
            .step_by(step)
            .map(|index| Own { index, next_read: 0, full: 0 })
            .collect();
        let base = number.checked_rem(count)?;
        Some(Self { all, own, base, step, is_gone: false, poller: None })
    }

    /// What the kernel may leave undone: the least of what it may in any of the queues.
    pub(crate) fn offloads(&self) -> Offloads {
        self.all.queues.iter().map(Queue::offloads).min().unwrap_or(Offloads::None)
    }

    /// Has the worker woken when there is something to read, for as long as there is this.
    pub(crate) fn watch(&mut self, poller: &Poller) -> io::Result<()> {
        self.poller = Some(poller.clone());
        self.own.iter().try_for_each(|own| poller.watch(own.queue(&self.all)))
    }

    /// Which queue a frame with this head is written to: for all frames of a flow the same. The
    /// kernel takes note of it, and sends by the same queue what belongs to the flow; so what
    /// this worker's guests send, they are answered by this worker.
    pub(crate) fn target(&self, head: &[u8]) -> &Queue {
        self.all.get(self.place(head))
    }

    /// The same, as its place among [all](Self::all).
    pub(crate) fn place(&self, head: &[u8]) -> usize {
        // Not by the places of its own, which change.
        let which = match self.own.len() {
            0 | 1 => 0,
            several => flow::hash(head) as usize % several,
        };
        self.base + which * self.step
    }

    /// Takes note that the interface is gone. Whether it is to be said: the first time that any of the
    /// parts finds out.
    pub(crate) fn is_first_to_go(&mut self) -> bool {
        self.is_gone = true;
        !self.all.is_reported.swap(true, Relaxed)
    }
}

/// Closing a queue does not end that it is watched: one that was inherited, somebody else may have open as well.
impl Drop for Share {
    fn drop(&mut self) {
        if let Some(poller) = &self.poller {
            self.own.iter().for_each(|own| poller.unwatch(own.queue(&self.all)));
        }
    }
}
