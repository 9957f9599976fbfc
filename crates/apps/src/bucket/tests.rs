use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn bucket(rate: u64, burst: u64) -> Bucket {
    Bucket::new(Some(Limit { rate, burst })).unwrap()
}

/// Takes the tokens of one frame, if they are there.
fn pass(bucket: &mut Bucket, now: u64, tokens: u64) -> bool {
    let passes = bucket.open(now).has(tokens);
    bucket.settle(if passes { tokens } else { 0 });
    passes
}

/// The bucket as RFC 2697 defines it, in numbers that cannot be too small.
struct Definition {
    limit: Limit,
    /// In parts. Below 0 when it owes some.
    tokens: i128,
    now: u64,
}

impl Definition {
    fn new(limit: Limit) -> Self {
        Self { limit, tokens: i128::from(limit.burst) * i128::from(PARTS), now: 0 }
    }

    fn pass(&mut self, now: u64, tokens: u64) -> bool {
        let full = i128::from(self.limit.burst) * i128::from(PARTS);
        let brought = i128::from(now - self.now) * i128::from(self.limit.rate);
        self.tokens = full.min(self.tokens + brought);
        self.now = now;
        let wanted = i128::from(tokens) * i128::from(PARTS);
        let passes = self.tokens >= wanted || self.tokens == full;
        self.tokens -= if passes { wanted } else { 0 };
        passes
    }
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate() {
    let mut bucket = bucket(1000, 10);
    let passed = (0..20).filter(|_| pass(&mut bucket, 5, 1)).count();
    assert_eq!(passed, 10);
    assert!(!pass(&mut bucket, 5 + 999_999, 1));
    assert!(pass(&mut bucket, 5 + 1_000_000, 1));
    assert!(!pass(&mut bucket, 5 + 1_000_000, 1));
    // No more than it holds, however long nothing passed.
    assert_eq!((0..20).filter(|_| pass(&mut bucket, 90 * SECOND, 1)).count(), 10);
}

#[test]
fn what_does_not_pass_takes_nothing() {
    let mut bucket = bucket(1000, 10);
    assert!(pass(&mut bucket, 0, 9));
    assert!(!pass(&mut bucket, 0, 2));
    assert!(pass(&mut bucket, 0, 1));
}

#[test]
fn what_is_larger_than_the_burst_passes_when_the_bucket_is_full_and_is_paid_for() {
    let mut bucket = bucket(1000, 10);
    assert!(pass(&mut bucket, 0, 1));
    assert!(!pass(&mut bucket, 0, 100), "not full");
    assert!(pass(&mut bucket, 1_000_000, 100));
    // It owes 90, and is full when those and the ten that it holds have come.
    assert!(!pass(&mut bucket, 1_000_000 + 90_999_999, 1));
    assert!(pass(&mut bucket, 1_000_000 + 91_000_000, 1));
}

#[test]
fn a_bucket_without_a_limit_has_always_enough() {
    let mut bucket = Bucket::new(None).unwrap();
    assert!(!bucket.is_limited());
    for _ in 0..10 {
        assert!(bucket.open(0).has_all(u64::MAX / PARTS));
        bucket.settle(u64::MAX);
    }
}

#[test]
fn limits_that_no_bucket_can_have_are_refused() {
    for (rate, burst, error) in [
        (0, 1, LimitError::NoRate),
        (1, 0, LimitError::NoBurst),
        (1, MAX_BURST + 1, LimitError::BurstTooLarge { most: MAX_BURST }),
    ] {
        assert_eq!(Bucket::new(Some(Limit { rate, burst })).unwrap_err(), error);
        let mut other = bucket(1, 1);
        assert_eq!(other.set(Some(Limit { rate, burst })), Err(error));
        assert_eq!(other.limit, Some(Limit { rate: 1, burst: 1 }));
    }
    for limit in [
        Limit { rate: u64::MAX, burst: MAX_BURST },
        Limit { rate: 1, burst: MAX_BURST },
        Limit { rate: u64::MAX, burst: 1 },
    ] {
        let mut bucket = Bucket::new(Some(limit)).unwrap();
        assert!(pass(&mut bucket, 0, limit.burst));
        bucket.settle(u64::MAX);
        assert!(!bucket.open(1).has(1) || limit.rate == u64::MAX);
    }
}

/// A sender that always has more gets what the rate brings, to the token, after 300000 roundings.
#[test]
fn nothing_is_lost_or_won_by_rounding() {
    for (rate, burst, step) in [(7, 3, 1_000_003), (999_999_937, 200, 101), (3_333_333_333, 90, 7)]
    {
        let mut bucket = bucket(rate, burst);
        let (mut now, mut passed) = (0, 0u64);
        for _ in 0..300_000 {
            now += step;
            // As many as there are.
            let level = bucket.open(now);
            let there = (level.burst - level.missing) / PARTS;
            assert!(level.has(there) && (there == burst || !level.has(there + 1)));
            bucket.settle(there);
            passed += there;
        }
        // The first found a full bucket; from then on the rate counts, if the bucket never ran over.
        let brought = u128::from(now - step) * u128::from(rate) / u128::from(PARTS);
        let most = u128::from(burst) + brought;
        let runs_over =
            u128::from(rate) * u128::from(step) > u128::from(burst - 1) * u128::from(PARTS);
        assert!(!runs_over, "a test of something else");
        assert_eq!(u128::from(passed), most, "{rate} a second");
    }
}

#[test]
fn two_parts_share_what_there_is() {
    let mut one = bucket(1000, 10);
    let mut two = one.part();
    assert!(pass(&mut one, 0, 6));
    assert!(!pass(&mut two, 0, 6));
    assert!(pass(&mut two, 0, 4));
    assert!(!pass(&mut one, 0, 1));
    assert!(pass(&mut one, 2_000_000, 1));
    assert!(pass(&mut two, 2_000_000, 1));
    assert!(!pass(&mut two, 2_000_000, 1));
    // A worker whose breath began earlier.
    assert!(!pass(&mut one, 1_900_000, 1));
}

#[test]
fn what_two_parts_take_too_much_is_paid_back() {
    let mut one = bucket(1000, 10);
    let mut two = one.part();
    // Both look before either takes.
    assert!(one.open(0).has(10) && two.open(0).has(10));
    one.settle(10);
    two.settle(10);
    assert!(!pass(&mut one, 10_999_999, 1));
    assert!(pass(&mut one, 11_000_000, 1), "20 in 11 ms, and 10 to begin with");
}

#[test]
fn a_limit_that_is_changed_keeps_what_is_missing() {
    let mut one = bucket(1000, 10);
    let mut two = one.part();
    assert!(pass(&mut one, SECOND, 10));
    // Empty, and still empty, but filled a thousand times faster.
    let faster = Some(Limit { rate: 1_000_000, burst: 10 });
    one.set(faster).unwrap();
    two.set(faster).unwrap();
    assert!(!pass(&mut one, SECOND, 1));
    assert!(pass(&mut two, SECOND + 1000, 1));
    assert!(!pass(&mut one, SECOND + 1000, 1));
    // The same limit again changes nothing.
    one.set(faster).unwrap();
    assert!(!pass(&mut one, SECOND + 1000, 1));
    // From none to one: shared as well.
    let mut one = Bucket::new(None).unwrap();
    let mut two = one.part();
    assert!(pass(&mut one, SECOND, 1000));
    one.set(faster).unwrap();
    two.set(faster).unwrap();
    assert!(pass(&mut one, SECOND, 10) && !pass(&mut two, SECOND, 1));
}

/// Workers at once, each with a clock of its own that only goes on: what passes in all is bounded.
#[test]
fn workers_at_once_pass_no_more_than_there_is() {
    const WORKERS: usize = 4;
    const BURST: u64 = 8;
    let limit = Limit { rate: 1_000_000_000, burst: 100 };
    let first = Bucket::new(Some(limit)).unwrap();
    let barrier = Barrier::new(WORKERS);
    let passed: u64 = std::thread::scope(|scope| {
        let run = |mut bucket: Bucket| {
            let barrier = &barrier;
            move || {
                barrier.wait();
                let mut passed = 0;
                for now in 0..50_000 {
                    let level = bucket.open(now);
                    let tokens = (1..=BURST).rev().find(|tokens| level.has_all(*tokens));
                    bucket.settle(tokens.unwrap_or(0));
                    passed += tokens.unwrap_or(0);
                }
                passed
            }
        };
        let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(run(first.part()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let brought = 50_000;
    let overdrawn = BURST * (WORKERS as u64 - 1);
    assert!(passed <= brought + limit.burst + overdrawn, "{passed}");
    // Whoever is last alone takes what the others left.
    assert!(passed >= brought, "{passed}");
}

proptest! {
    /// To the part of a token what the definition says, whatever comes and whenever.
    #[test]
    fn a_bucket_does_what_the_definition_says(
        rate in prop_oneof![1u64..2000, 1u64..200_000_000_000],
        burst in 1u64..200_000,
        arrivals in prop::collection::vec(
            (prop_oneof![Just(0), 0u64..100, 0u64..100_000_000_000], 1u64..300_000), 1..80),
    ) {
        let limit = Limit { rate, burst };
        let mut bucket = Bucket::new(Some(limit)).unwrap();
        let mut definition = Definition::new(limit);
        let mut now = 0;
        let mut passed = Vec::new();
        for (gap, tokens) in arrivals {
            now += gap;
            let passes = pass(&mut bucket, now, tokens);
            prop_assert_eq!(passes, definition.pass(now, tokens));
            if passes {
                passed.push((now, tokens));
            }
        }
        // In any interval, rate * time + burst at most, or the largest frame if that is larger.
        for (first, (start, _)) in passed.iter().enumerate() {
            let (mut sum, mut largest) = (0u128, burst);
            for (end, tokens) in &passed[first..] {
                sum += u128::from(*tokens);
                largest = largest.max(*tokens);
                let brought = u128::from(end - start) * u128::from(rate);
                let most = brought + u128::from(largest) * u128::from(PARTS);
                prop_assert!(sum * u128::from(PARTS) <= most);
            }
        }
    }

    /// A sender that keeps below the rate loses nothing, whatever its frames.
    #[test]
    fn below_the_rate_nothing_is_lost(
        rate in 1u64..200_000_000_000,
        burst in 1u64..200_000,
        frames in prop::collection::vec((0u64..1000, 1u64..300_000), 1..200),
    ) {
        let mut bucket = bucket(rate, burst);
        let mut now = 0;
        for (gap, tokens) in frames {
            prop_assert!(pass(&mut bucket, now, tokens));
            now += gap + (tokens * PARTS).div_ceil(rate);
        }
    }

    /// Bursts of two workers, in any order: more than there is passes only where both looked at once, and no
    /// more than one of those bursts.
    #[test]
    fn two_workers_overdraw_one_burst_at_most(
        rate in 1u64..5_000_000_000,
        burst in 1u64..100,
        steps in prop::collection::vec((0u64..50, any::<bool>(), 1u64..20), 1..100),
    ) {
        let first = bucket(rate, burst);
        let mut parts = [first.part(), first];
        // What each has looked at and not yet taken.
        let mut open = [None::<u64>; 2];
        let (mut now, mut passed) = (0, 0);
        for (gap, which, tokens) in steps {
            now += gap;
            let which = usize::from(which);
            match open[which].take() {
                Some(taken) => parts[which].settle(taken),
                None => {
                    let taken = if parts[which].open(now).has_all(tokens) { tokens } else { 0 };
                    open[which] = Some(taken);
                    passed += taken;
                }
            }
        }
        let brought = (u128::from(now) * u128::from(rate)).div_ceil(u128::from(PARTS));
        // And what each owes for rounding.
        let most = brought + u128::from(burst) + 20 + 2 * u128::from(rate.div_ceil(PARTS));
        prop_assert!(u128::from(passed) <= most);
    }
}
