//! How long to wait before something is tried again that went wrong: twice as long each time, until it has gone well for
//! a while.

use std::time::{Duration, Instant};

/// The waits of one who may fail.
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    /// When the last wait was over, or nothing had gone wrong yet.
    since: Instant,
}

impl Backoff {
    /// Waits of `first`, and so on up to `most`; who did well for longer than that begins anew.
    pub(super) fn new(first: Duration, most: Duration, now: Instant) -> Self {
        Self { first, most, next: first, since: now }
    }

    /// For an app that failed by a bug of ours.
    pub(super) fn of_app(now: Instant) -> Self {
        Self::new(Duration::from_secs(2), Duration::from_secs(60), now)
    }

    /// It went wrong at `now`. Returns how long to wait.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.since) > self.most {
            self.next = self.first;
        }
        let wait = self.next;
        self.next = (2 * wait).min(self.most);
        self.since = now + wait;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_begin_anew_after_a_good_while() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut backoff = Backoff::of_app(now);
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            let wait = backoff.wait(now);
            assert_eq!(wait, seconds * second);
            // It went well for as long as is not enough.
            now += wait + 60 * second;
        }
        now += second;
        assert_eq!(backoff.wait(now), 2 * second);
        // Wrong at once.
        assert_eq!(backoff.wait(now), 4 * second);
    }
}
