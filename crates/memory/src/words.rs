//! Ring fields: checked arrays of atomics in guest memory.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use crate::mapping::Mapping;
use crate::prefetch::{prefetch, prefetch_all};

mod sealed {
    pub trait Sealed {}
}

/// An atomic integer that rings are made of. Values are as in memory: little-endian fields want
/// `from_le` and `to_le`.
pub trait Word: sealed::Sealed + Sync + 'static {}

macro_rules! words {
    ($($type:ty),*) => { $(impl sealed::Sealed for $type {} impl Word for $type {})* };
}
words!(AtomicU16, AtomicU32, AtomicU64);

/// An array of atomics in guest memory, checked once when it was made (see
/// [`GuestMemory::words`](crate::GuestMemory::words)), which keeps its mapping alive.
pub struct Words<T: Word> {
    start: NonNull<T>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: this is a shared reference to atomics in a mapping that the Arc keeps alive.
unsafe impl<T: Word> Send for Words<T> {}
// SAFETY: as above.
unsafe impl<T: Word> Sync for Words<T> {}

impl<T: Word> Words<T> {
    /// `None` when the address is not aligned for `T`.
    ///
    /// # Safety
    ///
    /// `[start, start + len * size_of::<T>())` must lie inside `mapping`.
    pub(crate) unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        mapping: Arc<Mapping>,
    ) -> Option<Self> {
        let start = start.cast::<T>();
        start.is_aligned().then_some(Self { start, len, _mapping: mapping })
    }

    /// Has the processor fetch field `at`, if there is one, while other things are done.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        if let Some(field) = self.get(at) {
            prefetch(field);
        }
    }

    /// As [`Self::prefetch`], for `count` fields from `at` on, as far as there are any.
    #[inline(always)]
    pub fn prefetch_run(&self, at: usize, count: usize) {
        let fields = self.get(at..).unwrap_or_default();
        prefetch_all(fields.as_ptr().cast(), count.min(fields.len()) * size_of::<T>());
    }
}

impl<T: Word> Clone for Words<T> {
    fn clone(&self) -> Self {
        Self { start: self.start, len: self.len, _mapping: self._mapping.clone() }
    }
}

impl<T: Word> Deref for Words<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` aligned atomics inside a mapping that `self` keeps alive; any bit pattern
        // is a valid integer, and shared references to atomics allow others to write.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}
