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
    prefetch_to_read(std::ptr::from_ref(value).cast(), 1);
}

/// Fetches `[start, start + len)` to be read.
#[inline(always)]
pub(crate) fn prefetch_to_read(start: *const u8, len: usize) {
    each_line(start, len, |line| {
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

/// Fetches `[start, start + len)` to be written: nobody else keeps it.
#[inline(always)]
pub(crate) fn prefetch_to_write(start: *const u8, len: usize) {
    each_line(start, len, |line| {
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

/// Calls `each` with an address in each of the lines that these bytes are in; with one of the last line,
/// perhaps twice.
#[inline(always)]
fn each_line(start: *const u8, len: usize, mut each: impl FnMut(*const u8)) {
    if len == 0 {
        return;
    }
    each(start);
    let mut at = LINE;
    while at < len {
        each(start.wrapping_add(at));
        at += LINE;
    }
    each(start.wrapping_add(len - 1));
}
