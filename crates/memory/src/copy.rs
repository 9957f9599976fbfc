//! Moving bytes that somebody else may be writing.
//!
//! A guest changes its memory whenever it likes. For the compiler, an ordinary copy of such bytes
//! would be a data race and so undefined behaviour; whatever it then assumes would be ours to
//! suffer. The loads and stores here are inline assembly, which the compiler does not look into:
//! what arrives is whatever was there. (Any byte may be fetched and written twice, because what is moved at once
//! overlaps: the later one stays.) Overlapping ranges
//! are fine for the same reason: the result is garbage of the guest's making, no more.
//!
//! Sizes: up to 4096 bytes by vectors, and larger by `rep movsb` where the processor says that it runs
//! that at cache-line width. Others go byte by byte, several times slower than vectors; and so do some that say so, where the
//! destination lies a few bytes further into its page than the source (see [`CLOSE`]). Of more than 128 bytes none are stored across
//! the end of a cache line, but for the first and the last 128: such a store has to wait for both lines.

#[cfg(target_arch = "x86_64")]
use crate::prefetch::LINE;

/// Copies `len` bytes.
///
/// # Safety
///
/// `source` must be valid for reads and `destination` for writes of `len` bytes, for all of the
/// call, as far as mappings go; concurrent change of the contents is allowed.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn copy(source: *const u8, destination: *mut u8, len: usize) {
    if len > 128 {
        // SAFETY: the caller vouches for both ranges, and `len > 128`.
        unsafe { copy_long(source, destination, len) }
    } else if len >= 16 {
        // SAFETY: the caller vouches for both ranges, and `16 <= len <= 128`.
        unsafe { copy_vectors(source, destination, len) }
    } else {
        // SAFETY: the caller vouches for both ranges.
        unsafe { copy_small(source, destination, len) }
    }
}

/// 16 to 128 bytes, by 16-byte vectors from the start on and up to the end, which overlap in the middle, so that there is no loop to be
/// guessed. Five for 65 to 80 bytes, as the most frequent frames of all have with their header: those of 60 bytes or 64.
///
/// # Safety
///
/// As [`copy`], and `16 <= len <= 128`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_vectors(source: *const u8, destination: *mut u8, len: usize) {
    /// Moves vectors at these distances from the start, and at these from the end.
    macro_rules! vectors {
        ([$($at:literal)*] [$($from_end:literal)*]) => {
            // SAFETY: each vector starts at 0 or behind it, and at `len - 16` at the latest.
            unsafe {
                std::arch::asm!(
                    $(
                        concat!("movups {vector}, [{source} + ", $at, "]"),
                        concat!("movups [{destination} + ", $at, "], {vector}"),
                    )*
                    $(
                        concat!("movups {vector}, [{source} + {len} - ", $from_end, "]"),
                        concat!("movups [{destination} + {len} - ", $from_end, "], {vector}"),
                    )*
                    source = in(reg) source,
                    destination = in(reg) destination,
                    len = in(reg) len,
                    vector = out(xmm_reg) _,
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    match len {
        81.. => vectors!([0 16 32 48] [64 48 32 16]),
        65.. => vectors!([0 16 32 48] [16]),
        33.. => vectors!([0 16] [32 16]),
        _ => vectors!([0][16]),
    }
}

/// By how many bytes the destination may not lie further into its page than the source, for `rep movsb`. With an offset of 1 to 15,
/// AMD's Zen 4 moves byte by byte, as if the ranges overlapped: 3 GB/s in place of 30 (measured; it does not with one of 16 or more,
/// nor where the source lies further in). Others are said to do so with a little more. Vectors are about as fast.
#[cfg(target_arch = "x86_64")]
const CLOSE: std::ops::Range<usize> = 1..64;

/// A way to copy more than 128 bytes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `rep movsb`.
    Move,
    /// 32-byte vectors.
    Avx,
    /// 16-byte vectors.
    Sse,
}

#[cfg(target_arch = "x86_64")]
impl Way {
    /// The fastest one on a processor like this, with Enhanced REP MOVSB, and with AVX, for so many bytes from one address to another.
    #[inline(always)]
    fn of(
        len: usize,
        [source, destination]: [usize; 2],
        has_erms: impl Fn() -> bool,
        has_avx: impl Fn() -> bool,
    ) -> Self {
        /// From here on `rep movsb` wins over the loop.
        const MOVE_FROM: usize = 4096;
        const PAGE: usize = 4096;
        let is_close = CLOSE.contains(&(destination.wrapping_sub(source) % PAGE));
        if len > MOVE_FROM && !is_close && has_erms() {
            Self::Move
        } else if has_avx() {
            Self::Avx
        } else {
            Self::Sse
        }
    }
}

/// More than 128 bytes, in the fastest way that is found at run time.
///
/// # Safety
///
/// As [`copy`], and `len > 128`.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn copy_long(source: *const u8, destination: *mut u8, len: usize) {
    let addresses = [source.addr(), destination.addr()];
    let has_erms = || is_x86_feature_detected!("ermsb");
    let way = Way::of(len, addresses, has_erms, || is_x86_feature_detected!("avx"));
    // SAFETY: the caller vouches for ranges and length, and this processor has AVX if that was chosen.
    unsafe { copy_by(way, source, destination, len) }
}

/// More than 128 bytes.
///
/// # Safety
///
/// As [`copy`], and `len > 128`, and the processor has AVX if that is the way.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_by(way: Way, source: *const u8, destination: *mut u8, len: usize) {
    // Up to the second line that begins behind the start.
    let aligned = 2 * LINE - destination.addr() % LINE;

    /// The first 128 bytes, a loop over whole steps of 128 bytes from the first whole line on while there are any left, and then the
    /// last 128 bytes.
    macro_rules! by_vectors {
        ($move:literal, $vector:literal, [$($at:literal $register:literal),*], $last:literal) => {
            // SAFETY: the first step ends at 128, the last one at `len`, and all others before it.
            unsafe {
                std::arch::asm!(
                    $(concat!($move, " ", $vector, $register, ", [{source} + ", $at, "]"),)*
                    $(concat!($move, " [{destination} + ", $at, "], ", $vector, $register),)*
                    "cmp {at}, {last}",
                    "jae 3f",
                    "2:",
                    $(concat!($move, " ", $vector, $register, ", [{source} + {at} + ", $at, "]"),)*
                    $(concat!($move, " [{destination} + {at} + ", $at, "], ", $vector, $register),)*
                    "sub {at}, -128",
                    "cmp {at}, {last}",
                    "jb 2b",
                    "3:",
                    $(concat!($move, " ", $vector, $register, ", [{source} + {last} + ", $at, "]"),)*
                    $(concat!($move, " [{destination} + {last} + ", $at, "], ", $vector, $register),)*
                    $last,
                    source = in(reg) source,
                    destination = in(reg) destination,
                    at = inout(reg) aligned => _,
                    last = in(reg) len - 128,
                    out("xmm0") _,
                    out("xmm1") _,
                    out("xmm2") _,
                    out("xmm3") _,
                    out("xmm4") _,
                    out("xmm5") _,
                    out("xmm6") _,
                    out("xmm7") _,
                    // What comes last may clear the upper halves of all of them.
                    out("xmm8") _,
                    out("xmm9") _,
                    out("xmm10") _,
                    out("xmm11") _,
                    out("xmm12") _,
                    out("xmm13") _,
                    out("xmm14") _,
                    out("xmm15") _,
                    options(nostack)
                );
            }
        };
    }
    match way {
        Way::Move => {
            // SAFETY: the caller vouches for both ranges, and `65 <= aligned <= 128 < len`.
            unsafe { copy_vectors(source, destination, aligned) };
            // SAFETY: `aligned < len`, and the caller vouches for both ranges; the direction flag is clear by the ABI.
            unsafe {
                std::arch::asm!(
                    "rep movsb",
                    inout("rcx") len - aligned => _,
                    inout("rsi") source.wrapping_add(aligned) => _,
                    inout("rdi") destination.wrapping_add(aligned) => _,
                    options(nostack, preserves_flags)
                );
            }
        }
        Way::Avx => {
            by_vectors!("vmovups", "ymm", [0 0, 32 1, 64 2, 96 3], "vzeroupper");
        }
        Way::Sse => {
            by_vectors!("movups", "xmm", [0 0, 16 1, 32 2, 48 3, 64 4, 80 5, 96 6, 112 7], "");
        }
    }
}

/// Fewer than 16 bytes.
///
/// # Safety
///
/// As [`copy`], and `len < 16`.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn copy_small(source: *const u8, destination: *mut u8, len: usize) {
    /// Two overlapping moves of `$size` bytes: at the start, and ending at the end.
    macro_rules! pair {
        ($size:literal, $modifier:literal, $class:ident) => {
            // SAFETY: `$size <= len < 2 * $size`, so both moves are inside [0, len).
            unsafe {
                std::arch::asm!(
                    concat!("mov {a", $modifier, "}, [{source}]"),
                    concat!("mov {b", $modifier, "}, [{source} + {tail}]"),
                    concat!("mov [{destination}], {a", $modifier, "}"),
                    concat!("mov [{destination} + {tail}], {b", $modifier, "}"),
                    source = in(reg) source,
                    destination = in(reg) destination,
                    tail = in(reg) len - $size,
                    a = out($class) _,
                    b = out($class) _,
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    match len {
        8..16 => pair!(8, ":r", reg),
        4..8 => pair!(4, ":e", reg),
        2..4 => pair!(2, ":x", reg),
        1 => pair!(1, "", reg_byte),
        _ => {}
    }
}

/// Whether two ranges of 8 to 16 bytes hold the same, each fetched when it is looked at. Of other lengths that is not known:
/// false.
///
/// # Safety
///
/// Both must be valid for reads of `len` bytes, as far as mappings go; concurrent change of the contents is allowed.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn is_same(one: *const u8, other: *const u8, len: usize) -> bool {
    if !(8..=16).contains(&len) {
        return false;
    }
    let (mut first, mut last): (u64, u64);
    // SAFETY: words of 8 bytes at 0 and at `len - 8`, both inside `[0, len)`.
    unsafe {
        std::arch::asm!(
            "mov {first}, [{one}]",
            "mov {last}, [{one} + {len} - 8]",
            "xor {first}, [{other}]",
            "xor {last}, [{other} + {len} - 8]",
            one = in(reg) one,
            other = in(reg) other,
            len = in(reg) len,
            first = out(reg) first,
            last = out(reg) last,
            options(nostack, readonly)
        );
    }
    first | last == 0
}

/// The same where there is no assembly.
///
/// # Safety
///
/// As the version for x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn is_same(one: *const u8, other: *const u8, len: usize) -> bool {
    (8..=16).contains(&len)
        && (0..len).all(|at| {
            // SAFETY: `at < len`, and the caller vouches for the range.
            let one = unsafe { one.add(at) };
            // SAFETY: as above.
            let other = unsafe { other.add(at) };
            // SAFETY: as above.
            let one = unsafe { one.read_volatile() };
            // SAFETY: as above.
            one == unsafe { other.read_volatile() }
        })
}

/// Copies `len` bytes, where there is no assembly: volatile accesses, which no optimiser may
/// split, merge or repeat.
///
/// # Safety
///
/// As the version for x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn copy(source: *const u8, destination: *mut u8, len: usize) {
    const WORD: usize = size_of::<u64>();
    let mut at = 0;
    if source.addr() % WORD == destination.addr() % WORD {
        while at < len && (source.addr() + at) % WORD != 0 {
            // SAFETY: `at < len`, and the caller vouches for the ranges.
            unsafe { copy_volatile::<u8>(source, destination, at) };
            at += 1;
        }
        while len - at >= WORD {
            // SAFETY: a whole word is left, and both pointers are aligned to it here.
            unsafe { copy_volatile::<u64>(source, destination, at) };
            at += WORD;
        }
    }
    while at < len {
        // SAFETY: `at < len`, and the caller vouches for the ranges.
        unsafe { copy_volatile::<u8>(source, destination, at) };
        at += 1;
    }
}

/// Moves one `T` at byte `at`.
///
/// # Safety
///
/// Both ranges must hold an aligned `T` at byte `at`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_volatile<T>(source: *const u8, destination: *mut u8, at: usize) {
    // SAFETY: the caller vouches for both pointers.
    let source = unsafe { source.add(at) };
    // SAFETY: as above.
    let destination = unsafe { destination.add(at) };
    // SAFETY: as above.
    let value = unsafe { source.cast::<T>().read_volatile() };
    // SAFETY: as above.
    unsafe { destination.cast::<T>().write_volatile(value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `copy` with many lengths of at least `least`, at many alignments.
    fn check(least: usize, copy: impl Fn(*const u8, *mut u8, usize)) {
        let source: Vec<u8> = (0..70_000u32).map(|n| (n * 31 + n / 251 + 7) as u8).collect();
        let longer = [511, 512, 513, 1023, 1024, 1025, 1500, 4095, 4096, 4097, 5000, 65_550];
        for len in (least..300).chain(longer) {
            // Within a cache line, everywhere.
            for shift in (0..64).filter(|shift| len < 300 || shift % 7 == 0) {
                let mut destination = vec![0xEE; len + 128];
                let from = shift * 5 % 16;
                copy(source[from..].as_ptr(), destination[64 - shift..].as_mut_ptr(), len);
                let copied = &destination[64 - shift..64 - shift + len];
                let expected = &source[from..from + len];
                assert!(copied == expected, "length {len}, shift {shift}");
                assert!(destination[..64 - shift].iter().all(|byte| *byte == 0xEE));
                assert!(destination[64 - shift + len..].iter().all(|byte| *byte == 0xEE));
            }
        }
    }

    #[test]
    fn copies_every_length_at_every_alignment_and_nothing_beside_it() {
        // SAFETY: `check` passes two vectors that are long enough.
        check(0, |source, destination, len| unsafe { copy(source, destination, len) });
    }

    #[test]
    fn ranges_are_the_same_when_every_byte_is() {
        let one: Vec<u8> = (1..=20).collect();
        // SAFETY: both vectors have 20 bytes.
        let is_same = |other: &[u8], len| unsafe { is_same(one.as_ptr(), other.as_ptr(), len) };
        for len in 8..=16 {
            assert!(is_same(&one.clone(), len), "{len}");
            for at in 0..one.len() {
                let mut other = one.clone();
                other[at] ^= 0x80;
                assert_eq!(is_same(&other, len), at >= len, "{len} bytes, {at} is another");
            }
        }
        for len in [0, 7, 17, 20] {
            assert!(!is_same(&one.clone(), len), "{len}");
        }
    }

    /// Also those that this processor would not choose.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_way_copies_every_length() {
        let ways = [Way::Move, Way::Sse, Way::Avx];
        for way in
            ways.into_iter().filter(|way| *way != Way::Avx || is_x86_feature_detected!("avx"))
        {
            check(129, |source, destination, len| {
                // SAFETY: `check` passes two vectors that are long enough, and a length of at least 129.
                unsafe { copy_by(way, source, destination, len) }
            });
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn bytes_are_moved_only_by_processors_that_are_good_at_it() {
        let way = |len, has_erms, has_avx| Way::of(len, [0, 0], || has_erms, || has_avx);
        assert_eq!(way(65536, true, true), Way::Move);
        assert_eq!(way(65536, false, true), Way::Avx);
        assert_eq!(way(65536, false, false), Way::Sse);
        assert_eq!(way(4096, true, true), Way::Avx);
        assert_eq!(way(4096, true, false), Way::Sse);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn bytes_are_not_moved_by_a_few_within_a_page() {
        let way = |source, destination| Way::of(65536, [source, destination], || true, || true);
        for page in [0, 4096, 4096 * 1000] {
            for distance in [1, 12, 15, 16, 63] {
                assert_eq!(way(100, page + 100 + distance), Way::Avx, "{distance} from {page}");
                assert_eq!(way(page + 100, 100 + distance), Way::Avx, "{distance} back {page}");
            }
            for distance in [0, 64, 2048, 4096 - 12] {
                assert_eq!(way(100, page + 100 + distance), Way::Move, "{distance} from {page}");
                assert_eq!(way(page + 100, 100 + distance), Way::Move, "{distance} back {page}");
            }
        }
    }

    /// Each range at the start or the end of a page that has nothing before or behind it: who reads or writes there ends the process.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn nothing_beside_the_ranges_is_touched() {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

        const PAGE: usize = 4096;
        let none = std::ptr::null_mut();
        // SAFETY: the kernel chooses where.
        let map =
            || unsafe { mmap_anonymous(none, 3 * PAGE, ProtFlags::empty(), MapFlags::PRIVATE) };
        let pages = [(); 2].map(|()| map().unwrap());
        let [source, destination] = pages.map(|pages| {
            let page = pages.cast::<u8>().wrapping_add(PAGE);
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            // SAFETY: the one in the middle of three pages that were just mapped, of which there is no reference.
            unsafe { mprotect(page.cast(), PAGE, access) }.unwrap();
            page
        });
        let corners =
            |len: usize| [(0, 0), (0, PAGE - len), (PAGE - len, 0), (PAGE - len, PAGE - len)];
        for (len, (from, to)) in (0..=128).flat_map(|len| corners(len).map(|at| (len, at))) {
            let (from, to) = (source.wrapping_add(from), destination.wrapping_add(to));
            // SAFETY: ranges in the pages.
            unsafe { copy(from, to, len) };
        }
        let ways = [Way::Move, Way::Sse, Way::Avx];
        let has_avx = is_x86_feature_detected!("avx");
        for way in ways.into_iter().filter(|way| *way != Way::Avx || has_avx) {
            for len in 129..=400 {
                for (from, to) in corners(len) {
                    let (from, to) = (source.wrapping_add(from), destination.wrapping_add(to));
                    // SAFETY: ranges in the pages, and a length of at least 129.
                    unsafe { copy_by(way, from, to, len) };
                }
            }
        }
        for pages in pages {
            // SAFETY: nothing points there any more.
            unsafe { munmap(pages, 3 * PAGE) }.unwrap();
        }
    }
}
