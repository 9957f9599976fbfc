//! Checked pieces of guest memory, to read from and to write to.

use std::marker::PhantomData;

use crate::copy::copy;

/// Bytes that may be read: guest memory, or private memory that stands in for it.
///
/// A frame that a tap delivered lies in a private buffer and a frame of a guest's in guest memory;
/// both are sent on by the same code.
///
/// Laid out as an `iovec`, so that a list of slices can be handed to the kernel as it is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ReadSlice<'m> {
    start: *const u8,
    len: usize,
    memory: PhantomData<&'m [u8]>,
}

const _: () = {
    assert!(size_of::<ReadSlice<'_>>() == size_of::<libc::iovec>());
    assert!(align_of::<ReadSlice<'_>>() == align_of::<libc::iovec>());
    assert!(
        std::mem::offset_of!(ReadSlice<'_>, start) == std::mem::offset_of!(libc::iovec, iov_base)
    );
    assert!(std::mem::offset_of!(ReadSlice<'_>, len) == std::mem::offset_of!(libc::iovec, iov_len));
};

// SAFETY: the slice points into memory that lives for 'm and is only read by opaque copies, which
// any thread may do.
unsafe impl Send for ReadSlice<'_> {}

impl<'m> ReadSlice<'m> {
    /// # Safety
    ///
    /// `[start, start + len)` must be mapped readable for all of `'m`.
    pub(crate) unsafe fn new(start: *const u8, len: usize) -> Self {
        Self { start, len, memory: PhantomData }
    }

    /// Bytes in this slice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slice without its first `count` bytes (without any, when `count` exceeds its length).
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        let count = count.min(self.len);
        // SAFETY: `count <= len`, so the pointer stays inside or one past the slice.
        let start = unsafe { self.start.add(count) };
        Self { start, len: self.len - count, memory: PhantomData }
    }

    /// At most the first `count` bytes.
    #[must_use]
    pub fn take(&self, count: usize) -> Self {
        Self { len: self.len.min(count), ..*self }
    }

    /// Copies as much as fits into private memory, each byte fetched once. Returns the count.
    #[inline]
    pub fn copy_to(&self, private: &mut [u8]) -> usize {
        let count = self.len.min(private.len());
        // SAFETY: both ranges hold at least `count` bytes; ours is mapped for 'm.
        unsafe { copy(self.start, private.as_mut_ptr(), count) };
        count
    }
}

impl<'m> From<&'m [u8]> for ReadSlice<'m> {
    fn from(private: &'m [u8]) -> Self {
        Self { start: private.as_ptr(), len: private.len(), memory: PhantomData }
    }
}

/// Guest memory that may be written.
#[derive(Clone, Copy)]
pub struct WriteSlice<'m> {
    start: *mut u8,
    len: usize,
    memory: PhantomData<&'m [u8]>,
}

// SAFETY: as for ReadSlice; writes race with the guest's, and the copies tolerate that.
unsafe impl Send for WriteSlice<'_> {}

impl<'m> WriteSlice<'m> {
    /// # Safety
    ///
    /// `[start, start + len)` must be mapped writable for all of `'m`, and no Rust reference may
    /// point into it.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len, memory: PhantomData }
    }

    /// Bytes in this slice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slice without its first `count` bytes (without any, when `count` exceeds its length).
    #[must_use]
    pub fn skip(&self, count: usize) -> Self {
        let count = count.min(self.len);
        // SAFETY: `count <= len`, so the pointer stays inside or one past the slice.
        let start = unsafe { self.start.add(count) };
        Self { start, len: self.len - count, memory: PhantomData }
    }

    /// Copies as much as fits from `source`. Returns the count.
    #[inline]
    pub fn copy_from(&self, source: ReadSlice<'_>) -> usize {
        let count = self.len.min(source.len);
        // SAFETY: both ranges hold at least `count` bytes and are mapped while both slices live;
        // no reference points into either (guest memory), or the source is only read (private).
        unsafe { copy(source.start, self.start, count) };
        count
    }
}

/// Empties a list of slices and keeps its allocation for slices of another lifetime.
pub fn recycle(mut slices: Vec<ReadSlice<'_>>) -> Vec<ReadSlice<'static>> {
    slices.clear();
    // An empty iterator of the same layout: collecting it takes over the allocation.
    slices.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// As [`recycle`], for slices to be written.
pub fn recycle_writable(mut slices: Vec<WriteSlice<'_>>) -> Vec<WriteSlice<'static>> {
    slices.clear();
    slices.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// Writes a run of bytes over a list of slices, in order.
pub struct WriteCursor<'a, 'm> {
    slices: &'a [WriteSlice<'m>],
    current: WriteSlice<'m>,
}

impl<'a, 'm> WriteCursor<'a, 'm> {
    /// A cursor at the first byte of `slices`.
    pub fn new(slices: &'a [WriteSlice<'m>]) -> Self {
        // SAFETY: an empty slice covers no byte, so any pointer will do.
        let empty = unsafe { WriteSlice::new(std::ptr::dangling_mut(), 0) };
        Self { slices, current: empty }
    }

    /// Writes all of `source`, as far as there is room. Returns how much was written.
    #[inline]
    pub fn write(&mut self, mut source: ReadSlice<'_>) -> usize {
        let mut written = 0;
        loop {
            let count = self.current.copy_from(source);
            written += count;
            source = source.skip(count);
            self.current = self.current.skip(count);
            if source.is_empty() {
                return written;
            }
            let Some((first, rest)) = self.slices.split_first() else {
                return written;
            };
            self.current = *first;
            self.slices = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recycling_keeps_the_allocation() {
        let bytes = [1, 2, 3];
        let mut slices = Vec::with_capacity(1000);
        slices.push(ReadSlice::from(&bytes[..]));
        let (start, capacity) = (slices.as_ptr().addr(), slices.capacity());
        let recycled = recycle(slices);
        assert_eq!((recycled.as_ptr().addr(), recycled.capacity()), (start, capacity));
        assert!(recycled.is_empty());
    }
}
