//! The sign of life that a worker gives, for whoever watches over it.
//!
//! The worker writes, with plain stores that nobody waits for; anybody may read. What is read together need not have been
//! so at one moment: a worker that stands still is found by looking twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::AppId;

/// What a worker says of itself while it runs, in cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub struct Pulse {
    breaths: AtomicU64,
    is_asleep: AtomicBool,
    /// The app that is being called, as one word; [`NOBODY`] when none is.
    app: AtomicU64,
}

const NOBODY: u64 = u64::MAX;

impl Default for Pulse {
    fn default() -> Self {
        let (breaths, is_asleep) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { breaths, is_asleep, app: AtomicU64::new(NOBODY) }
    }
}

/// A look at a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Breaths so far.
    pub breaths: u64,
    /// It sleeps, until there is something to do.
    pub is_asleep: bool,
    /// The app that it is in.
    pub app: Option<AppId>,
}

impl Pulse {
    /// Looks at the worker.
    pub fn look(&self) -> Beat {
        let app = self.app.load(Relaxed);
        Beat {
            breaths: self.breaths.load(Relaxed),
            is_asleep: self.is_asleep.load(Relaxed),
            app: (app != NOBODY).then(|| AppId::from_word(app)),
        }
    }

    #[inline]
    pub(crate) fn breathe(&self, breaths: u64) {
        self.breaths.store(breaths, Relaxed);
    }

    pub(crate) fn sleep(&self, is_asleep: bool) {
        self.is_asleep.store(is_asleep, Relaxed);
    }

    #[inline]
    pub(crate) fn enter(&self, app: AppId) {
        self.app.store(app.to_word(), Relaxed);
    }

    #[inline]
    pub(crate) fn leave(&self) {
        self.app.store(NOBODY, Relaxed);
    }
}
