//! Hashes with a key, for tables that a hostile sender must not be able to aim at.

/// The product of both, its halves folded into one: a bit of either reaches all.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Another number for each, of which every bit depends on all bits: a round of splitmix64. Unlike folding, it takes no two to one.
#[inline]
pub(crate) fn mix(word: u64) -> u64 {
    let mixed = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
