//! The highest rate at which nothing is lost (RFC 2544, section 26.1).

/// How a search goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// The rate to begin with, in frames per second.
    pub first: f64,
    /// The highest rate to try.
    pub most: f64,
    /// When to stop: the lowest rate that failed is then higher by no more than this part of it.
    pub resolution: f64,
}

/// Searches: doubles the rate until frames are lost, then bisects. `trial` says of a rate whether nothing
/// was lost, or `None` to end the search. Returns the highest rate that passed; 0 if none did, down to a
/// thousandth of the first one that failed.
///
/// # Errors
///
/// What the trial says.
pub fn no_drop_rate<E>(
    search: Search,
    mut trial: impl FnMut(f64) -> Result<Option<bool>, E>,
) -> Result<f64, E> {
    let (mut passed, mut failed) = (0.0, search.first.min(search.most));
    loop {
        match trial(failed)? {
            None => return Ok(passed),
            Some(false) => break,
            Some(true) => passed = failed,
        }
        if passed >= search.most {
            return Ok(passed);
        }
        failed = (2.0 * failed).min(search.most);
    }
    let least = failed / 1000.0;
    while failed - passed > (failed * search.resolution).max(1.0) && failed > least {
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

    fn search(capacity: f64, first: f64) -> (f64, usize) {
        let mut trials = 0;
        let search = Search { first, most: 1000.0, resolution: 0.01 };
        let found = no_drop_rate(search, |rate| {
            trials += 1;
            assert!(trials < 20, "the search does not end");
            assert!(rate <= 1000.0);
            Ok::<_, Infallible>(Some(rate <= capacity))
        });
        (found.unwrap(), trials)
    }

    #[test]
    fn the_rate_is_found_to_the_resolution() {
        for capacity in [3.0, 17.0, 333.0, 500.0, 999.0] {
            let (found, trials) = search(capacity, 1000.0);
            assert!(
                found <= capacity && capacity - found <= 1.0 + 0.01 * capacity,
                "{found} of {capacity}"
            );
            assert!(trials <= 15, "{trials}");
        }
        assert_eq!(search(1000.0, 1000.0), (1000.0, 1));
        let (found, trials) = search(0.0, 1000.0);
        assert!(found == 0.0 && trials <= 11, "{found} after {trials}");
    }

    #[test]
    fn a_first_rate_that_passes_is_not_the_answer() {
        for capacity in [60.0, 333.0, 999.0] {
            let (found, _) = search(capacity, 50.0);
            assert!(
                found <= capacity && capacity - found <= 1.0 + 0.01 * capacity,
                "{found} of {capacity}"
            );
        }
        assert_eq!(search(5000.0, 300.0), (1000.0, 3));
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let mut answers = [Some(false), Some(true), None].into_iter();
        let search = Search { first: 1000.0, most: 1000.0, resolution: 0.01 };
        let found = no_drop_rate(search, |_| Ok::<_, Infallible>(answers.next().flatten()));
        assert_eq!(found, Ok(500.0));
        assert_eq!(no_drop_rate(search, |_| Ok::<_, Infallible>(None)), Ok(0.0));
    }
}
