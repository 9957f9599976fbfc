//! Moving bytes that somebody else may be writing, and summing exactly the bytes that were moved.
//!
//! A copy and then a sum would fetch each byte twice, and in between the guest may have changed it:
//! the checksum would not be that of the bytes that arrived. Here each byte is loaded once into a
//! register, and stored and summed from there. So nothing may overlap, as the last vectors of
//! [`copy`](crate::copy) do: the tail goes by ever smaller words instead.
//!
//! As there, loads and stores are inline assembly, which the compiler does not look into. The
//! arithmetic between them is ordinary code. It adds both halves of each 64-bit word to 64-bit
//! lanes, which leaves room for the carries of 32 GiB.
//!
//! The widest vectors that the processor has are found at run time.

use wire::checksum::Sum;

/// Copies `len` bytes and returns their sum.
///
/// # Safety
///
/// As for [`copy`](crate::copy::copy).
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) unsafe fn copy_summed(source: *const u8, destination: *mut u8, len: usize) -> Sum {
    let blocks = len / x86::BLOCK;
    let words = if blocks == 0 {
        0
    } else if is_x86_feature_detected!("avx512f") {
        // SAFETY: the caller vouches for both ranges, which hold as many blocks; AVX-512 is there.
        unsafe { x86::blocks_avx512(source, destination, blocks) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the caller vouches for both ranges, which hold as many blocks; AVX2 is there.
        unsafe { x86::blocks_avx2(source, destination, blocks) }
    } else {
        // SAFETY: the caller vouches for both ranges, which hold as many blocks; every x86-64 has
        // SSE2.
        unsafe { x86::blocks_sse2(source, destination, blocks) }
    };
    let done = blocks * x86::BLOCK;
    // SAFETY: `done <= len`.
    let source = unsafe { source.add(done) };
    // SAFETY: as above.
    let destination = unsafe { destination.add(done) };
    // SAFETY: the caller vouches for both ranges, of which so many bytes are left.
    let tail = unsafe { x86::tail(source, destination, len - done) };
    Sum::from_words(words + tail, len)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// Bytes that are moved in one step.
    pub(super) const BLOCK: usize = 64;

    /// Declares a function that moves and sums whole blocks, by so many vectors of one kind each.
    macro_rules! blocks {
        (
            $(#[$attribute:meta])*
            $name:ident, $feature:literal, $vector:ty, $count:literal, $register:ident, $move:literal,
            $zero:ident, $fill:ident, $and:ident, $shift:ident, $add:ident
        ) => {
            $(#[$attribute])*
            ///
            /// # Safety
            ///
            /// As for [`copy_summed`](super::copy_summed), for so many blocks, on a processor that has
            /// these vectors.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(source: *const u8, destination: *mut u8, blocks: usize) -> u64 {
                const SIZE: usize = size_of::<$vector>();
                const { assert!(SIZE * $count == BLOCK) };
                let low = $fill(0xffff_ffff);
                let mut lower = [$zero(); $count];
                let mut upper = [$zero(); $count];
                let mut at = 0;
                while at < blocks * BLOCK {
                    for (lower, upper) in lower.iter_mut().zip(&mut upper) {
                        let vector: $vector;
                        // SAFETY: the vector at `at` is inside of a block that the caller vouches for.
                        unsafe {
                            asm!(
                                concat!($move, " {vector}, [{source} + {at}]"),
                                concat!($move, " [{destination} + {at}], {vector}"),
                                source = in(reg) source,
                                destination = in(reg) destination,
                                at = in(reg) at,
                                vector = out($register) vector,
                                options(nostack, preserves_flags)
                            );
                        }
                        *lower = $add(*lower, $and(vector, low));
                        *upper = $add(*upper, $shift::<32>(vector));
                        at += SIZE;
                    }
                }
                let mut sum = 0;
                for vector in lower.into_iter().chain(upper) {
                    // SAFETY: both are plain bytes of the same size.
                    let lanes: [u64; SIZE / 8] = unsafe { std::mem::transmute(vector) };
                    sum += lanes.iter().sum::<u64>();
                }
                sum
            }
        };
    }

    blocks! {
        /// By 16-byte vectors, which every x86-64 has.
        blocks_sse2, "sse2", __m128i, 4, xmm_reg, "movups",
        _mm_setzero_si128, _mm_set1_epi64x, _mm_and_si128, _mm_srli_epi64, _mm_add_epi64
    }

    blocks! {
        /// By 32-byte vectors.
        blocks_avx2, "avx2", __m256i, 2, ymm_reg, "vmovups",
        _mm256_setzero_si256, _mm256_set1_epi64x, _mm256_and_si256, _mm256_srli_epi64,
        _mm256_add_epi64
    }

    blocks! {
        /// By 64-byte vectors.
        blocks_avx512, "avx512f", __m512i, 1, zmm_reg, "vmovups",
        _mm512_setzero_si512, _mm512_set1_epi64, _mm512_and_si512, _mm512_srli_epi64,
        _mm512_add_epi64
    }

    /// Moves and sums what is less than a block, by words.
    ///
    /// # Safety
    ///
    /// As for [`copy_summed`](super::copy_summed).
    #[inline]
    pub(super) unsafe fn tail(source: *const u8, destination: *mut u8, len: usize) -> u64 {
        let mut sum = 0;
        let mut at = 0;
        /// Moves one word of so many bytes.
        macro_rules! word {
            ($class:ident, $type:ty, $modifier:literal) => {{
                let word: $type;
                // SAFETY: so many bytes are left at `at`, and the caller vouches for the ranges.
                unsafe {
                    asm!(
                        concat!("mov {word", $modifier, "}, [{source} + {at}]"),
                        concat!("mov [{destination} + {at}], {word", $modifier, "}"),
                        source = in(reg) source,
                        destination = in(reg) destination,
                        at = in(reg) at,
                        word = out($class) word,
                        options(nostack, preserves_flags)
                    );
                }
                at += size_of::<$type>();
                word
            }};
        }
        while len - at >= 8 {
            let word = word!(reg, u64, ":r");
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        if len & 4 != 0 {
            sum += u64::from(word!(reg, u32, ":e"));
        }
        if len & 2 != 0 {
            sum += u64::from(word!(reg, u16, ":x"));
        }
        if len & 1 != 0 {
            sum += u64::from(word!(reg_byte, u8, ""));
        }
        debug_assert_eq!(at, len);
        sum
    }
}

/// Copies `len` bytes and returns their sum, where there is no assembly: by way of private memory.
///
/// # Safety
///
/// As the version for x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn copy_summed(source: *const u8, destination: *mut u8, len: usize) -> Sum {
    let mut sum = Sum::new();
    let mut private = [0; 256];
    let mut at = 0;
    while at < len {
        let count = private.len().min(len - at);
        // SAFETY: `at < len`.
        let from = unsafe { source.add(at) };
        // SAFETY: as above.
        let to = unsafe { destination.add(at) };
        // SAFETY: the caller vouches for `from`; private memory holds `count` bytes.
        unsafe { crate::copy::copy(from, private.as_mut_ptr(), count) };
        // SAFETY: the caller vouches for `to`; private memory holds `count` bytes.
        unsafe { crate::copy::copy(private.as_ptr(), to, count) };
        sum.add(&private[..count]);
        at += count;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect()
    }

    #[test]
    fn copies_and_sums_every_length_at_every_alignment_and_nothing_beside_it() {
        let source = noise(70_000);
        for len in (0..300).chain([511, 512, 513, 1447, 1448, 1500, 4096, 65535, 65536]) {
            for shift in [0, 1, 3, 8, 15] {
                let mut destination = vec![0xEE; len + 40];
                // SAFETY: shift + len is inside both vectors.
                let sum = unsafe {
                    copy_summed(
                        source[shift..].as_ptr(),
                        destination[16 - shift..].as_mut_ptr(),
                        len,
                    )
                };
                let copied = &destination[16 - shift..16 - shift + len];
                assert_eq!(copied, &source[shift..shift + len], "length {len}, shift {shift}");
                assert_eq!(sum.finish(), definition(copied), "length {len}, shift {shift}");
                assert!(destination[..16 - shift].iter().all(|byte| *byte == 0xEE));
                assert!(destination[16 - shift + len..].iter().all(|byte| *byte == 0xEE));
            }
        }
    }

    /// The others are only reached on other processors.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn all_vectors_agree() {
        type Blocks = unsafe fn(*const u8, *mut u8, usize) -> u64;
        let mut kinds: Vec<Blocks> = vec![x86::blocks_sse2];
        if is_x86_feature_detected!("avx2") {
            kinds.push(x86::blocks_avx2);
        }
        if is_x86_feature_detected!("avx512f") {
            kinds.push(x86::blocks_avx512);
        }
        for source in [noise(1024 * 64), vec![0xff; 1024 * 64], vec![0; 1024 * 64]] {
            for blocks in [1, 2, 3, 7, 1024] {
                for kind in &kinds {
                    let bytes = &source[..blocks * 64];
                    let mut copy = vec![0xEE; bytes.len()];
                    // SAFETY: both hold so many blocks, and the processor was asked.
                    let words = unsafe { kind(bytes.as_ptr(), copy.as_mut_ptr(), blocks) };
                    assert_eq!(copy, bytes);
                    assert_eq!(
                        Sum::from_words(words, bytes.len()).finish(),
                        definition(bytes),
                        "{blocks} blocks"
                    );
                }
            }
        }
    }

    /// A second fetch of any byte would show as a sum of other bytes than those that arrived.
    #[test]
    fn the_sum_is_that_of_what_was_written_while_the_source_changes() {
        use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
        use std::time::{Duration, Instant};

        const LIMIT: Duration = Duration::from_secs(20);
        // Blocks and every size of word.
        let source: Vec<AtomicU8> = (0..64 + 15).map(|_| AtomicU8::new(0)).collect();
        let done = AtomicBool::new(false);
        let start = Instant::now();
        let mut mixed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 0u8;
                while !done.load(Ordering::Relaxed) && start.elapsed() < LIMIT {
                    value = value.wrapping_add(1);
                    source.iter().for_each(|byte| byte.store(value, Ordering::Relaxed));
                }
            });
            let mut is_right = true;
            while is_right && mixed < 1000 && start.elapsed() < LIMIT {
                let mut copy = vec![0; source.len()];
                // SAFETY: both hold so many bytes; those of the source are atomics.
                let sum =
                    unsafe { copy_summed(source.as_ptr().cast(), copy.as_mut_ptr(), source.len()) };
                is_right = sum.finish() == definition(&copy);
                mixed += usize::from(copy.iter().any(|byte| *byte != copy[0]));
            }
            done.store(true, Ordering::Relaxed);
            assert!(is_right, "a sum over bytes that were not written");
        });
        assert!(mixed > 0, "no copy was raced with in {LIMIT:?}");
    }
}
