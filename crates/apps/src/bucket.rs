//! Token buckets (RFC 2697, section 2, with one rate and one burst): what decides how much may pass.
//!
//! A bucket holds `burst` tokens at most, is full in the beginning, and gets `rate` of them a second. What
//! passes takes its tokens out; what finds too few does not pass, and takes none.
//!
//! # How it works
//!
//! What is kept is not how many tokens there are, but the time at which the bucket will be full: one
//! number, which does not change while nothing passes, so that nothing has to be refilled. What is taken
//! moves that time on by tokens / rate. What is lost there by rounding is kept, and added the next time:
//! over years not one token is too few or too many.
//!
//! # Several workers
//!
//! The time is an atomic that all parts of a bucket share, read once a burst ([`Bucket::open`]) and moved
//! once ([`Bucket::settle`]), in one atomic step. Two workers that are between both at the same time see the
//! same tokens, and may take them both: the bucket then owes what was taken too much, and nothing passes
//! until that is paid. So more than `rate` × time + `burst` passes by no more than what the other workers had
//! in one burst each, ever. And each part keeps what it lost by rounding to itself: less than a nanosecond's tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thiserror::Error;

/// Parts of a token in which is counted: as many as a second has nanoseconds, so that what a
/// nanosecond brings is a whole number of them.
const PARTS: u64 = 1_000_000_000;

/// The largest burst, in tokens: a little more than a gibibyte in bits.
pub const MAX_BURST: u64 = 9_000_000_000;

/// How many tokens a bucket gets and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens a second, at least 1.
    pub rate: u64,
    /// Tokens that it holds at most: from 1 to [`MAX_BURST`].
    pub burst: u64,
}

/// A limit that no bucket can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// Nothing would ever pass.
    #[error("the rate is 0: nothing would pass; give 1 at least")]
    NoRate,
    /// Nothing would ever pass.
    #[error("the burst is 0: nothing would pass; give the size of one frame at least")]
    NoBurst,
    /// More than can be counted.
    #[error("the burst is too large; give {most} at most")]
    BurstTooLarge {
        /// The largest there is, in the burst's own unit.
        most: u64,
    },
}

impl Limit {
    /// Whether a bucket can have it.
    pub fn check(self) -> Result<Self, LimitError> {
        match self {
            Self { rate: 0, .. } => Err(LimitError::NoRate),
            Self { burst: 0, .. } => Err(LimitError::NoBurst),
            Self { burst, .. } if burst > MAX_BURST => {
                Err(LimitError::BurstTooLarge { most: MAX_BURST })
            }
            _ => Ok(self),
        }
    }
}

/// A bucket, or its part on one of several workers.
#[derive(Debug)]
pub struct Bucket {
    /// None holds as many as are wanted.
    limit: Option<Limit>,
    /// When it will be full, in nanoseconds of [`engine::Burst::now`].
    full_at: Arc<AtomicU64>,
    /// Parts of tokens that were taken, but are less than a nanosecond brings.
    owed: u64,
    /// When it was opened last.
    opened: u64,
    /// The limit was changed since.
    is_changed: bool,
}

impl Bucket {
    /// A full bucket; without a limit, one that always is.
    pub fn new(limit: Option<Limit>) -> Result<Self, LimitError> {
        let limit = limit.map(Limit::check).transpose()?;
        Ok(Self { limit, full_at: Arc::default(), owed: 0, opened: 0, is_changed: false })
    }

    /// A part of this bucket for another worker.
    pub fn part(&self) -> Self {
        let full_at = self.full_at.clone();
        Self { limit: self.limit, full_at, owed: 0, opened: 0, is_changed: self.is_changed }
    }

    /// Changes what it gets and holds. All parts are to be changed; until then each goes by its own limit.
    /// What is missing stays missing, for as long as it was going to be, but never longer than it takes to fill
    /// an empty bucket.
    pub fn set(&mut self, limit: Option<Limit>) -> Result<(), LimitError> {
        let limit = limit.map(Limit::check).transpose()?;
        if limit != self.limit {
            (self.limit, self.owed, self.is_changed) = (limit, 0, true);
        }
        Ok(())
    }

    /// Whether there is anything that does not pass.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Looks at how full it is at `now`, in nanoseconds of [`engine::Burst::now`].
    #[inline]
    pub fn open(&mut self, now: u64) -> Level {
        self.opened = now;
        let Some(limit) = self.limit else { return Level { missing: 0, burst: u64::MAX } };
        if std::mem::take(&mut self.is_changed) {
            let fills_in = limit.burst * PARTS / limit.rate;
            self.full_at.fetch_min(now.saturating_add(fills_in), Relaxed);
        }
        let full_at = self.full_at.load(Relaxed);
        // What is owed takes less than a nanosecond.
        if full_at < now {
            self.owed = 0;
        }
        let fills_in = full_at.saturating_sub(now);
        let missing = fills_in.saturating_mul(limit.rate).saturating_add(self.owed);
        Level { missing, burst: limit.burst * PARTS }
    }

    /// Tokens that are there at `now`, if there is a limit.
    pub fn left(&self, now: u64) -> Option<u64> {
        let limit = self.limit?;
        let fills_in = self.full_at.load(Relaxed).saturating_sub(now);
        let missing = fills_in.saturating_mul(limit.rate).div_ceil(PARTS);
        Some(limit.burst.saturating_sub(missing))
    }

    /// Takes tokens out: what has passed since [`Self::open`].
    #[inline]
    pub fn settle(&mut self, tokens: u64) {
        let Some(limit) = self.limit.filter(|_| tokens > 0) else { return };
        let parts = tokens.saturating_mul(PARTS).saturating_add(self.owed);
        let time = parts / limit.rate;
        self.owed = parts % limit.rate;
        let now = self.opened;
        let later = |full_at: u64| Some(full_at.max(now).saturating_add(time));
        // It is alone: nothing else is published by it.
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, later);
    }
}

/// How full a bucket is, during one burst.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// Parts of tokens that are missing to make it full. More than it holds, when it owes some.
    missing: u64,
    /// Parts of tokens that it holds.
    burst: u64,
}

impl Level {
    /// Whether so many tokens are there. A full bucket has enough for a frame that needs more than it
    /// holds, and owes the rest: so what passes in any time is at most `rate` × time + the larger of `burst` and
    /// the largest frame, and no frame is too large to pass, ever.
    #[inline]
    pub fn has(&self, tokens: u64) -> bool {
        let left = self.burst.saturating_sub(self.missing);
        tokens.saturating_mul(PARTS) <= left || self.missing == 0
    }

    /// As [`Self::has`], for several frames together: without what is said of a full bucket.
    #[inline]
    pub fn has_all(&self, tokens: u64) -> bool {
        tokens.saturating_mul(PARTS) <= self.burst.saturating_sub(self.missing)
    }

    /// Takes tokens out if [they are there](Self::has).
    #[inline]
    pub fn take_if_there(&mut self, tokens: u64) -> bool {
        let is_there = self.has(tokens);
        if is_there {
            self.take(tokens);
        }
        is_there
    }

    /// Takes tokens out.
    #[inline]
    pub fn take(&mut self, tokens: u64) {
        self.missing = self.missing.saturating_add(tokens.saturating_mul(PARTS));
    }
}

#[cfg(test)]
mod tests;
