//! Hashes with a key, for tables that a hostile sender must not be able to aim at.

/// The product of both, its halves folded into one: a bit of either reaches all.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
