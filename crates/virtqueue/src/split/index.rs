//! Free-running indices.

/// The count of entries ever listed in a ring, modulo 2^16.
///
/// Kept in 32 bits: compilers load 16 bits as 32 where they may, and such a load waits for a store
/// of half of it that came just before. Of indices that lie side by side and move with every chain,
/// that was a third of the time to give one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index(u32);

impl Index {
    #[inline]
    pub(super) const fn new(index: u16) -> Self {
        Self(index as u32)
    }

    #[inline]
    pub(super) const fn get(self) -> u16 {
        self.0 as u16
    }

    /// The index `count` entries further on.
    #[inline]
    #[must_use]
    pub(super) const fn advance(self, count: u16) -> Self {
        Self::new(self.get().wrapping_add(count))
    }

    /// The index `count` entries back.
    #[inline]
    #[must_use]
    pub(super) const fn retreat(self, count: u16) -> Self {
        Self::new(self.get().wrapping_sub(count))
    }

    /// How many entries this index is ahead of `earlier`.
    #[inline]
    #[must_use]
    pub(super) const fn since(self, earlier: Self) -> u16 {
        self.get().wrapping_sub(earlier.get())
    }

    /// Where its entry is in a ring of `size`.
    #[inline]
    pub(super) const fn slot(self, size: u16) -> usize {
        // `size` is a power of two.
        (self.get() & (size - 1)) as usize
    }
}
