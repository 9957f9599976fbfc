//! Checked pieces of guest memory, to read from and to write to.

use std::marker::PhantomData;

use wire::checksum::Sum;

use crate::copy::{copy, is_same};
use crate::prefetch::{LINE, prefetch_line, prefetch_to_read, prefetch_to_write};
use crate::sum::copy_summed;

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
    /// No bytes.
    // Any pointer will do, as it covers none.
    pub const EMPTY: Self = Self { start: std::ptr::dangling(), len: 0, memory: PhantomData };

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

    /// Has the processor fetch the first `COUNT` bytes, as far as there are so many, while other
    /// things are done. Reads nothing.
    #[inline(always)]
    pub fn prefetch<const COUNT: usize>(&self) {
        prefetch_to_read::<COUNT>(self.start, self.len);
    }

    /// Copies as much as fits into private memory. Returns the count.
    #[inline(always)]
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

/// Bytes that may be written, and read: guest memory, or private memory that stands in for it.
#[derive(Clone, Copy)]
pub struct WriteSlice<'m> {
    start: *mut u8,
    len: usize,
    memory: PhantomData<&'m [u8]>,
}

// SAFETY: as for ReadSlice; writes race with the guest's, and the copies tolerate that.
unsafe impl Send for WriteSlice<'_> {}

impl<'m> WriteSlice<'m> {
    /// No bytes.
    // Any pointer will do, as it covers none.
    pub const EMPTY: Self = Self { start: std::ptr::dangling_mut(), len: 0, memory: PhantomData };

    /// # Safety
    ///
    /// `[start, start + len)` must be mapped readable and writable for all of `'m`, and no Rust reference
    /// may point into it.
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

    /// Has the processor fetch what the first `COUNT` bytes are in, as far as there are so many, to be
    /// written soon. Writes nothing.
    #[inline(always)]
    pub fn prefetch<const COUNT: usize>(&self) {
        prefetch_to_write::<COUNT>(self.start, self.len);
    }

    /// Copies as much as fits from `source`. Returns the count.
    #[inline(always)]
    pub fn copy_from(&self, source: ReadSlice<'_>) -> usize {
        let count = self.len.min(source.len);
        // SAFETY: both ranges hold at least `count` bytes and are mapped while both slices live;
        // no reference points into guest memory, and private memory is borrowed: to be read for the
        // source, and by nobody else for ours.
        unsafe { copy(source.start, self.start, count) };
        count
    }

    /// As [`Self::copy_from`], of what begins with a header, which may be there already from an earlier use of these bytes. If a cache
    /// line ends with it, and so holds nothing else that is to be written, it is left alone then: its reader keeps the line in its own
    /// cache, and need not get it from ours.
    #[inline(always)]
    pub fn copy_behind_header(&self, header_size: usize, source: ReadSlice<'_>) -> usize {
        if self.has_header_line(header_size) {
            self.copy_behind_header_line(header_size, source)
        } else {
            self.copy_from(source)
        }
    }

    /// As [`Self::prefetch`], of the bytes behind a header, for [`Self::copy_behind_header`]. A header's own line is fetched to be
    /// read, and stays in its reader's cache as well; one that begins in a line before, and does not end it, is not fetched at all.
    #[inline(always)]
    pub fn prefetch_behind_header<const COUNT: usize>(&self, header_size: usize) {
        if self.has_header_line(header_size) {
            prefetch_line(self.start);
        }
        self.skip(header_size).prefetch::<COUNT>();
    }

    /// Whether a cache line ends with a header at the start.
    #[inline(always)]
    fn has_header_line(&self, header_size: usize) -> bool {
        (self.start.addr() + header_size).is_multiple_of(LINE)
    }

    /// Not inline, so that who has other buffers does not pay for it.
    #[inline(never)]
    fn copy_behind_header_line(&self, header_size: usize, source: ReadSlice<'_>) -> usize {
        let header_size = header_size.min(self.len).min(source.len);
        // SAFETY: both ranges hold as many bytes, and are mapped readable while both slices live.
        let is_there = unsafe { is_same(source.start, self.start, header_size) };
        let there = if is_there { header_size } else { 0 };
        there + self.skip(there).copy_from(source.skip(there))
    }

    /// As [`Self::copy_from`], and adds exactly the bytes that were written to `sum`: each is fetched
    /// once, however the guest may change it meanwhile.
    #[inline]
    pub fn copy_from_summed(&self, source: ReadSlice<'_>, sum: &mut Sum) -> usize {
        let count = self.len.min(source.len);
        // SAFETY: as in `copy_from`.
        sum.append(unsafe { copy_summed(source.start, self.start, count) });
        count
    }
}

impl<'m> From<&'m mut [u8]> for WriteSlice<'m> {
    fn from(private: &'m mut [u8]) -> Self {
        Self { start: private.as_mut_ptr(), len: private.len(), memory: PhantomData }
    }
}

/// A list of slices that keeps its allocation, while the memory that they are of comes and goes.
///
/// Who is in a hurry has it lent where it is, and does not take it out and put it back: to move a list is to load as a whole what was
/// just stored in pieces, which takes until all that was stored before has left the processor, and in a switch this is on its way to a guest.
pub struct SliceList<S>(Vec<S>);

impl<S> Default for SliceList<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> SliceList<S> {
    /// With room for so many.
    pub fn with_capacity(slices: usize) -> Self {
        Self(Vec::with_capacity(slices))
    }
}

/// What a [`SliceList`] has for entries: a slice, or one beside something else.
///
/// # Safety
///
/// [`Self::Of`] is this type, but for the lifetime of the slice, and neither has to be dropped. Nobody outside can say that of another
/// type: the trait is sealed.
pub unsafe trait SliceEntry: sealed::Sealed {
    /// The same, of a certain memory.
    type Of<'m>;
}

// SAFETY: it is the same but for the lifetime, and is not dropped, as is checked below.
unsafe impl SliceEntry for ReadSlice<'static> {
    type Of<'m> = ReadSlice<'m>;
}

// SAFETY: as above.
unsafe impl SliceEntry for WriteSlice<'static> {
    type Of<'m> = WriteSlice<'m>;
}

// SAFETY: it is the same but for the lifetime of the slice, and what can be copied is not dropped.
unsafe impl<T: Copy, S: SliceEntry> SliceEntry for (T, S) {
    type Of<'m> = (T, S::Of<'m>);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ReadSlice<'static> {}
    impl Sealed for super::WriteSlice<'static> {}
    impl<T: Copy, S: super::SliceEntry> Sealed for (T, S) {}
}

impl<S: SliceEntry> SliceList<S> {
    /// The list, empty, for slices of any memory.
    #[inline]
    pub fn lend<'m>(&mut self) -> &mut Vec<S::Of<'m>> {
        const {
            assert!(size_of::<S>() == size_of::<S::Of<'static>>());
            assert!(align_of::<S>() == align_of::<S::Of<'static>>());
        }
        self.0.clear();
        let list: *mut Vec<S> = &mut self.0;
        // SAFETY: a lifetime is all that is different, so the layout is the same; for as long as the list is lent nobody else
        // has it. What is left in it afterwards, of memory that may be gone, is never looked at: it can be reached only by
        // this function, which clears it first, and to drop or clear slices does not touch them.
        unsafe { &mut *list.cast() }
    }
}

const _: () = assert!(!std::mem::needs_drop::<ReadSlice<'_>>());
const _: () = assert!(!std::mem::needs_drop::<WriteSlice<'_>>());

/// Reads a run of bytes from a list of slices, in order.
#[derive(Clone, Copy)]
pub struct ReadCursor<'a, 'm> {
    current: ReadSlice<'m>,
    slices: &'a [ReadSlice<'m>],
}

impl<'a, 'm> ReadCursor<'a, 'm> {
    /// A cursor at the first byte of `first`, which `rest` follows.
    pub fn new(first: ReadSlice<'m>, rest: &'a [ReadSlice<'m>]) -> Self {
        Self { current: first, slices: rest }
    }

    /// Takes the next bytes that lie together, at most `count`. Empty when there are none left, or
    /// `count` is 0.
    #[inline]
    pub fn take(&mut self, count: usize) -> ReadSlice<'m> {
        while self.current.is_empty()
            && let Some((first, rest)) = self.slices.split_first()
        {
            self.current = *first;
            self.slices = rest;
        }
        let piece = self.current.take(count);
        self.current = self.current.skip(count);
        piece
    }

    /// Goes on by `count` bytes, or to the end.
    pub fn skip(&mut self, mut count: usize) {
        while count > 0 {
            let skipped = self.take(count).len();
            if skipped == 0 {
                return;
            }
            count -= skipped;
        }
    }
}

/// Writes a run of bytes over a list of slices, in order.
#[derive(Clone, Copy)]
pub struct WriteCursor<'a, 'm> {
    slices: &'a [WriteSlice<'m>],
    current: WriteSlice<'m>,
}

impl<'a, 'm> WriteCursor<'a, 'm> {
    /// A cursor at the first byte of `slices`.
    #[inline]
    pub fn new(slices: &'a [WriteSlice<'m>]) -> Self {
        match slices {
            [first, rest @ ..] => Self { slices: rest, current: *first },
            [] => Self { slices, current: WriteSlice::EMPTY },
        }
    }

    /// Writes all of `source`, as far as there is room. Returns how much was written.
    #[inline]
    pub fn write(&mut self, source: ReadSlice<'_>) -> usize {
        self.write_by(source, |to, from| to.copy_from(from))
    }

    /// As [`Self::write`], and adds exactly the bytes that were written to `sum`.
    #[inline]
    pub fn write_summed(&mut self, source: ReadSlice<'_>, sum: &mut Sum) -> usize {
        self.write_by(source, |to, from| to.copy_from_summed(from, sum))
    }

    #[inline]
    fn write_by(
        &mut self,
        mut source: ReadSlice<'_>,
        mut copy: impl FnMut(WriteSlice<'m>, ReadSlice<'_>) -> usize,
    ) -> usize {
        let mut written = 0;
        loop {
            let count = copy(self.current, source);
            written += count;
            source = source.skip(count);
            self.current = self.current.skip(count);
            if source.is_empty() || !self.next_slice() {
                return written;
            }
        }
    }

    /// Leaves `count` bytes as they are, or all that are left.
    pub fn skip(&mut self, mut count: usize) {
        loop {
            let skipped = self.current.len().min(count);
            self.current = self.current.skip(skipped);
            count -= skipped;
            if count == 0 || !self.next_slice() {
                return;
            }
        }
    }

    /// Goes to the next slice. False when there is none.
    #[inline]
    fn next_slice(&mut self) -> bool {
        let Some((first, rest)) = self.slices.split_first() else { return false };
        self.current = *first;
        self.slices = rest;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_lent_empty_and_keeps_its_allocation() {
        let mut list = SliceList::<ReadSlice<'static>>::with_capacity(1000);
        let place = {
            let bytes = [1, 2, 3];
            let slices = list.lend();
            slices.push(ReadSlice::from(&bytes[..]));
            (slices.as_ptr().addr(), slices.capacity())
        };
        let slices = list.lend();
        assert_eq!((slices.as_ptr().addr(), slices.capacity()), place);
        assert!(slices.is_empty());

        let mut list = SliceList::<WriteSlice<'static>>::default();
        list.lend().push(WriteSlice::from(&mut [1, 2, 3][..]));
        assert!(list.lend().is_empty());

        let mut list = SliceList::<(u8, ReadSlice<'static>)>::default();
        let bytes = [1, 2, 3];
        list.lend().push((7, ReadSlice::from(&bytes[..])));
        assert!(list.lend().is_empty());
    }

    /// Private memory that begins where a cache line does.
    #[repr(align(64))]
    struct Lines([u8; 256]);

    #[test]
    fn a_header_is_written_wherever_it_lies_and_whatever_was_there() {
        const HEADER: [u8; 12] = [7; 12];
        let frame: Vec<u8> = (0..100).collect();
        let source = [&HEADER[..], &frame].concat();
        for before in 0..2 * LINE {
            for old in [[7; 12], [8; 12], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6]] {
                let mut lines = Lines([0xEE; 256]);
                lines.0[before..before + 12].copy_from_slice(&old);
                let room = WriteSlice::from(&mut lines.0[before..before + 120]);
                assert_eq!(room.copy_behind_header(12, (&*source).into()), 112);
                let (start, rest) = lines.0.split_at(before);
                assert!(start.iter().all(|byte| *byte == 0xEE), "at {before}, over {old:?}");
                assert_eq!(rest[..112], source, "at {before}, over {old:?}");
                assert!(rest[112..].iter().all(|byte| *byte == 0xEE), "at {before}, over {old:?}");
            }
        }
    }

    #[test]
    fn a_header_without_room_is_written_as_far_as_there_is() {
        let source = [7; 112];
        for room in [0, 1, 8, 11, 12, 13] {
            let mut lines = Lines([7; 256]);
            lines.0[64] = 9;
            let slice = WriteSlice::from(&mut lines.0[52..52 + room]);
            assert_eq!(slice.copy_behind_header(12, (&source[..]).into()), room);
            assert_eq!(lines.0[64], if room == 13 { 7 } else { 9 }, "room for {room}");
            assert_eq!(lines.0[65], 7);
        }
        let mut lines = Lines([0; 256]);
        let slice = WriteSlice::from(&mut lines.0[52..]);
        assert_eq!(slice.copy_behind_header(12, (&source[..5]).into()), 5);
        assert_eq!(lines.0[52..60], [7, 7, 7, 7, 7, 0, 0, 0]);
    }

    /// The header is in a page of its own, which cannot be written: who writes it ends the process.
    #[test]
    fn a_header_that_is_there_is_not_touched() {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

        const PAGE: usize = 4096;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let none = std::ptr::null_mut();
        // SAFETY: the kernel chooses where.
        let pages = unsafe { mmap_anonymous(none, 2 * PAGE, access, flags) }.unwrap();
        // SAFETY: the first of the two pages that were just mapped, of which there is no reference.
        unsafe { mprotect(pages, PAGE, MprotectFlags::READ) }.unwrap();
        // SAFETY: inside the two pages.
        let start = unsafe { pages.cast::<u8>().add(PAGE - 12) };
        // SAFETY: mapped until the end of this test; of the first bytes it is tested that they are not written.
        let room = unsafe { WriteSlice::new(start, 100) };
        let source: Vec<u8> = [0; 12].into_iter().chain(1..=60).collect();
        assert_eq!(room.copy_behind_header(12, (&*source).into()), 72);
        let mut found = [0; 72];
        // SAFETY: mapped as above.
        unsafe { ReadSlice::new(start, 100) }.copy_to(&mut found);
        assert_eq!(found, *source);
        // SAFETY: nothing points there any more.
        unsafe { munmap(pages, 2 * PAGE) }.unwrap();
    }

    /// Private memory in pieces, to write to.
    fn pieces<'m>(bytes: &'m mut [u8], lens: &[usize]) -> Vec<WriteSlice<'m>> {
        let mut rest = bytes;
        let mut slices = Vec::new();
        for len in lens {
            let (piece, behind) = rest.split_at_mut(*len);
            rest = behind;
            slices.push(WriteSlice::from(piece));
        }
        slices
    }

    #[test]
    fn a_summed_write_is_one_sum_over_odd_pieces() {
        let source: Vec<u8> = (0..200u8).map(|n| n.wrapping_mul(77)).collect();
        for cut in 0..200 {
            let mut bytes = [0; 203];
            let slices = pieces(&mut bytes, &[0, 1, 66, 0, 3, 133]);
            let mut cursor = WriteCursor::new(&slices);
            cursor.skip(3);
            let mut sum = Sum::new();
            let (one, two) = source.split_at(cut);
            assert_eq!(cursor.write_summed(one.into(), &mut sum), cut);
            assert_eq!(cursor.write_summed(two.into(), &mut sum), 200 - cut);
            assert_eq!(cursor.write_summed(two.into(), &mut sum), 0, "no room");
            drop(slices);
            assert_eq!((&bytes[..3], &bytes[3..]), (&[0; 3][..], &source[..]));
            let mut whole = Sum::new();
            whole.add(&source);
            assert_eq!(sum.finish(), whole.finish(), "cut at {cut}");
        }
    }

    #[test]
    fn a_copied_cursor_stays_where_it_was() {
        let mut bytes = [0; 10];
        let slices = pieces(&mut bytes, &[4, 6]);
        let mut later = WriteCursor::new(&slices);
        later.skip(3);
        let mut first = later;
        assert_eq!(first.write((&[1; 7][..]).into()), 7);
        assert_eq!(later.write((&[2; 2][..]).into()), 2);
        later.skip(100);
        assert_eq!(later.write((&[3][..]).into()), 0);
        drop(slices);
        assert_eq!(bytes, [0, 0, 0, 2, 2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_read_cursor_takes_what_lies_together() {
        let bytes: Vec<u8> = (0..10).collect();
        let rest = [ReadSlice::from(&bytes[4..4]), ReadSlice::from(&bytes[4..9])];
        let mut cursor = ReadCursor::new(ReadSlice::from(&bytes[..4]), &rest);
        let mut taken = Vec::new();
        for count in [1, 5, 0, 2, 99, 99] {
            let piece = cursor.take(count);
            let mut private = vec![0; piece.len()];
            piece.copy_to(&mut private);
            taken.push(private);
        }
        let expected: [&[u8]; 6] = [&[0], &[1, 2, 3], &[], &[4, 5], &[6, 7, 8], &[]];
        assert_eq!(taken, expected);
        let mut cursor = ReadCursor::new(ReadSlice::from(&bytes[..4]), &rest);
        cursor.skip(6);
        assert_eq!(cursor.take(99).len(), 3);
        cursor.skip(1);
        assert!(cursor.take(1).is_empty());
    }
}
