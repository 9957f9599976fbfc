//! How often something took how long.

/// Counts of times, by powers of two: bucket `n` has those of less than 2^n nanoseconds, and not less than half of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram([u64; Self::BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([0; Self::BUCKETS])
    }
}

impl Histogram {
    /// As many as there are buckets. The last has all that took longer, from about a second on.
    pub const BUCKETS: usize = 32;

    /// Counts something that took so many nanoseconds.
    #[inline]
    pub fn count(&mut self, nanoseconds: u64) {
        self.count_several(1, nanoseconds);
    }

    /// Counts several things that took so many nanoseconds each.
    #[inline]
    pub fn count_several(&mut self, several: u64, nanoseconds: u64) {
        let bucket = (u64::BITS - nanoseconds.leading_zeros()) as usize;
        if let Some(count) = self.0.get_mut(bucket.min(Self::BUCKETS - 1)) {
            *count += several;
        }
    }

    /// The buckets that have something: nanoseconds that all of it took less than, and how often. What is in the last one may have
    /// taken longer.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.0.iter().enumerate().map(|(bucket, count)| (1 << bucket, *count));
        counts.filter(|(_, count)| *count > 0)
    }

    /// Nanoseconds that at least this share of all took less than, from 0 to 1; of a longest bucket its lower end. None when
    /// nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let total: u64 = self.0.iter().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut so_far = 0;
        let bucket = self.0.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        })?;
        Some(1 << bucket.min(Self::BUCKETS - 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_by_powers_of_two() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for nanoseconds in [0, 1, 2, 3, 4, 1023, 1024, 1 << 40, u64::MAX] {
            histogram.count(nanoseconds);
        }
        histogram.count_several(3, 5);
        let expected = [(1, 1), (2, 1), (4, 2), (8, 4), (1024, 1), (2048, 1), (1 << 31, 2)];
        assert!(histogram.buckets().eq(expected), "{histogram:?}");
    }

    #[test]
    fn a_quantile_is_what_so_many_stay_below() {
        let mut histogram = Histogram::default();
        (0..99).for_each(|_| histogram.count(1000));
        histogram.count(1_000_000);
        for (share, expected) in
            [(0.0, 1024), (0.5, 1024), (0.99, 1024), (0.991, 1 << 20), (1.0, 1 << 20)]
        {
            assert_eq!(histogram.quantile(share), Some(expected), "{share}");
        }
        let mut longest = Histogram::default();
        longest.count(u64::MAX);
        assert_eq!(longest.quantile(0.5), Some(1 << 30), "not more than is known");
    }
}
