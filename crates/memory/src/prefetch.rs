//! Hints to fetch memory before it is needed.
//!
//! A line that the guest's processor wrote last has to come from that processor's cache, which takes as
//! long as a hundred instructions or two. Asked for a burst ahead, many come at once.
//!
//! A hint never faults, whatever is behind the address, and changes nothing that can be seen.

/// Bytes that a processor fetches together.
const LINE: usize = 64;

/// Has the processor fetch where `value` begins, which is of our own memory, while other things are done.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_to_read::<1>(std::ptr::from_ref(value).cast(), 1);
}

/// Fetches all of `[start, start + len)` to be read.
#[inline(always)]
pub(crate) fn prefetch_all(start: *const u8, len: usize) {
    for at in (0..len).step_by(LINE) {
        prefetch_to_read::<1>(start.wrapping_add(at), 1);
    }
}

/// Fetches the first `COUNT` bytes of `[start, start + len)` to be read.
#[inline(always)]
pub(crate) fn prefetch_to_read<const COUNT: usize>(start: *const u8, len: usize) {
    each_line::<COUNT>(start, len, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint does not access memory as the language sees it, so any address will do.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    });
}

/// Fetches the first `COUNT` bytes of `[start, start + len)` to be written: nobody else keeps them.
#[inline(always)]
pub(crate) fn prefetch_to_write<const COUNT: usize>(start: *const u8, len: usize) {
    each_line::<COUNT>(start, len, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, as above. By hand, because the compiler takes another one, to read, where it is
        // not told that the processor has this; one that has not takes it for nothing.
        unsafe {
            std::arch::asm!(
                "prefetchw [{line}]",
                line = in(reg) line,
                options(nostack, preserves_flags, readonly)
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    });
}

/// Calls `each` with an address in each of the lines that the first `COUNT` bytes are in, as far as there
/// are so many; with one of the last line, perhaps twice. The number is a constant so that there is no
/// loop left.
#[inline(always)]
fn each_line<const COUNT: usize>(start: *const u8, len: usize, mut each: impl FnMut(*const u8)) {
    let mut at = 0;
    while at < COUNT {
        if at >= len {
            break;
        }
        each(start.wrapping_add(at));
        at += LINE;
    }
    if len > 0 {
        each(start.wrapping_add(len.min(COUNT) - 1));
    }
}
