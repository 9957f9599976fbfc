//! Several rounds of one figure: the median counts, and the least and the most say how far to trust it.

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    /// Rounds.
    pub count: usize,
}

impl Spread {
    /// `None` of no values at all; values that are no numbers do not count.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), least, most, count: values.len() })
    }

    /// In another unit.
    pub fn times(self, factor: f64) -> Spread {
        let Spread { median, least, most, count } = self;
        Spread { median: median * factor, least: least * factor, most: most * factor, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|it| it.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(median(&[f64::NAN, 5.0, f64::INFINITY]), Some(5.0));
    }

    #[test]
    fn the_spread_is_from_the_least_to_the_most() {
        let spread = Spread::of([5.0, 1.0, 2.0]).map(|it| it.times(2.0));
        assert_eq!(spread, Some(Spread { median: 4.0, least: 2.0, most: 10.0, count: 3 }));
    }
}
