//! Hints to fetch memory before it is needed.
//!
//! A line that the guest's processor wrote last has to come from that processor's cache, which takes as
//! long as a hundred instructions or two. Asked for a burst ahead, many come at once.
//!
//! A hint never faults, whatever is behind the address, and changes nothing that can be seen.

/// Bytes that a processor fetches together.
pub(crate) const LINE: usize = 64;

/// Has the processor fetch where `value` begins, which is of our own memory, while other things are done.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    hint_to_read(std::ptr::from_ref(value).cast());
}

/// Fetches the line of this byte to be read.
#[inline(always)]
pub(crate) fn prefetch_line(byte: *const u8) {
    hint_to_read(byte);
}

/// Fetches all of `[start, start + len)` to be read.
#[inline(always)]
pub(crate) fn prefetch_all(start: *const u8, len: usize) {
    each_line(start, len, hint_to_read);
}

/// Fetches the first `COUNT` bytes of `[start, start + len)` to be read.
#[inline(always)]
pub(crate) fn prefetch_to_read<const COUNT: usize>(start: *const u8, len: usize) {
    each_first_line::<COUNT>(start, len, hint_to_read);
}

/// Fetches the first `COUNT` bytes of `[start, start + len)` to be written: nobody else keeps them.
#[inline(always)]
pub(crate) fn prefetch_to_write<const COUNT: usize>(start: *const u8, len: usize) {
    each_first_line::<COUNT>(start, len, hint_to_write);
}

#[inline(always)]
fn hint_to_read(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint does not access memory as the language sees it, so any address will do.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[inline(always)]
fn hint_to_write(line: *const u8) {
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
}

/// Calls `each` once with an address in each of the lines that these bytes are in.
#[inline(always)]
fn each_line(start: *const u8, len: usize, mut each: impl FnMut(*const u8)) {
    let before = start.addr() % LINE;
    let first = start.wrapping_sub(before);
    let end = if len == 0 { 0 } else { before + len };
    for at in (0..end).step_by(LINE) {
        each(first.wrapping_add(at));
    }
}

/// As [`each_line`], of the first `COUNT` bytes, as far as there are so many; of the last line perhaps
/// twice. The number is a constant so that there is no loop left.
#[inline(always)]
fn each_first_line<const COUNT: usize>(
    start: *const u8,
    len: usize,
    mut each: impl FnMut(*const u8),
) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the lines that are asked for, as often as they are.
    fn lines(hints: impl FnOnce(&mut dyn FnMut(*const u8))) -> Vec<usize> {
        let mut lines = Vec::new();
        hints(&mut |line| lines.push(line.addr() / LINE));
        lines
    }

    #[test]
    fn every_line_is_asked_for_and_no_other() {
        const COUNT: usize = 144;
        for offset in 0..2 * LINE {
            let start = std::ptr::without_provenance(10 * LINE + offset);
            for len in [0, 1, 2, 16, 63, 64, 65, 128, 143, 144, 145, 300, 1024] {
                let expected = |len: usize| -> Vec<usize> {
                    let first = 10 * LINE + offset;
                    (first / LINE..(first + len).div_ceil(LINE)).take(len.max(1)).collect()
                };
                let all = lines(|each| each_line(start, len, each));
                assert_eq!(all, if len == 0 { vec![] } else { expected(len) }, "{offset}, {len}");

                let mut firsts = lines(|each| each_first_line::<COUNT>(start, len, each));
                assert!(firsts.len() <= COUNT.div_ceil(LINE) + 1, "{offset}, {len}: {firsts:?}");
                firsts.dedup();
                let some = if len == 0 { vec![] } else { expected(len.min(COUNT)) };
                assert_eq!(firsts, some, "{offset}, {len}");
            }
        }
    }
}
