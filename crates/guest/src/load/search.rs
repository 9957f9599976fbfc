//! The highest rate at which nothing is lost (RFC 2544, section 26.1).

/// How a search goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// The highest rate to try, in frames per second.
    pub most: f64,
    /// When to stop: the rate is then known to this part of [`Self::most`].
    pub resolution: f64,
}

/// Searches by bisection: `trial` says of a rate whether nothing was lost, or `None` to end the search.
/// Returns the highest rate that passed, 0 if none did.
///
/// # Errors
///
/// What the trial says.
pub fn no_drop_rate<E>(
    search: Search,
    mut trial: impl FnMut(f64) -> Result<Option<bool>, E>,
) -> Result<f64, E> {
    let (mut passed, mut failed) = (0.0, search.most);
    // The throughput may well be the highest rate itself.
    match trial(search.most)? {
        None => return Ok(0.0),
        Some(true) => return Ok(search.most),
        Some(false) => {}
    }
    let step = (search.most * search.resolution).max(1.0);
    while failed - passed > step {
        let rate = f64::midpoint(passed, failed);
        match trial(rate)? {
            None => break,
            Some(true) => passed = rate,
            Some(false) => failed = rate,
        }
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn search(capacity: f64) -> (f64, usize) {
        let mut trials = 0;
        let search = Search { most: 1000.0, resolution: 0.01 };
        let found = no_drop_rate(search, |rate| {
            trials += 1;
            assert!(trials < 20, "the search does not end");
            Ok::<_, Infallible>(Some(rate <= capacity))
        });
        (found.unwrap(), trials)
    }

    #[test]
    fn the_rate_is_found_to_the_resolution() {
        for capacity in [3.0, 17.0, 333.0, 500.0, 999.0] {
            let (found, trials) = search(capacity);
            assert!(found <= capacity && found > capacity - 10.0, "{found} of {capacity}");
            assert!(trials <= 9, "{trials}");
        }
        assert_eq!(search(1000.0), (1000.0, 1));
        assert_eq!(search(0.0).0, 0.0);
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let mut answers = [Some(false), Some(true), None].into_iter();
        let search = Search { most: 1000.0, resolution: 0.01 };
        let found = no_drop_rate(search, |_| Ok::<_, Infallible>(answers.next().flatten()));
        assert_eq!(found, Ok(500.0));
    }
}
