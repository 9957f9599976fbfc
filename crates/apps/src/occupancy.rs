//! How many entries of a table are in use, without a look at all of them; and the sweep that finds those that have aged.
//!
//! A table has as many buckets as make a hundred thousands of bytes: to look at all of them takes as long as to move a thousand
//! frames, which would have to wait. So it is divided into [`SLICES`]. Each knows how many of its entries are in use: one more
//! where an entry was empty, one less where one is forgotten. With each tick of an app one slice is swept: its entries that are too old
//! are emptied, and the others counted, so that what workers at once have counted wrong is mended.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

/// As many ticks as it takes until all of a table was swept, with one worker.
pub(crate) const SLICES: usize = 16;

/// How many entries are in use in each slice of a table of so many buckets.
pub(crate) struct Occupancy<const BUCKETS: usize> {
    /// For a moment, what is emptied may be seen before what was filled.
    used: [AtomicI64; SLICES],
    /// The slice to be swept next.
    next: AtomicUsize,
}

impl<const BUCKETS: usize> Default for Occupancy<BUCKETS> {
    fn default() -> Self {
        Self { used: Default::default(), next: AtomicUsize::default() }
    }
}

impl<const BUCKETS: usize> Occupancy<BUCKETS> {
    /// Buckets of a slice.
    const SLICE: usize = {
        assert!(BUCKETS.is_multiple_of(SLICES));
        BUCKETS / SLICES
    };

    /// An empty entry of this bucket was filled.
    pub(crate) fn filled(&self, bucket: usize) {
        self.used[bucket / Self::SLICE % SLICES].fetch_add(1, Relaxed);
    }

    /// One that was in use was emptied.
    pub(crate) fn emptied(&self, bucket: usize) {
        self.used[bucket / Self::SLICE % SLICES].fetch_sub(1, Relaxed);
    }

    /// Entries that are in use; some of them may have aged since their slice was swept.
    pub(crate) fn used(&self) -> u64 {
        let used: i64 = self.used.iter().map(|used| used.load(Relaxed)).sum();
        used.try_into().unwrap_or(0)
    }

    /// Has the next slice swept by `sweep`, which is told which buckets that are, and says how many entries of theirs are in use.
    pub(crate) fn sweep(&self, sweep: impl FnOnce(Range<usize>) -> u64) {
        let slice = self.next.fetch_add(1, Relaxed) % SLICES;
        let used = sweep(slice * Self::SLICE..(slice + 1) * Self::SLICE);
        self.used[slice].store(used.cast_signed(), Relaxed);
    }
}
