//! Random numbers that are the same for the same seed, on every machine and in every version.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): enough for
/// chance, and nothing that has to be kept from anybody.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The numbers of one of several parts. Those of two parts do not overlap for longer than anybody counts.
    pub(super) fn of_part(seed: u64, part: u64) -> Self {
        let start = Self(seed).next();
        Self(Self(start.wrapping_add(part)).next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0. Each is as likely as any other but for one in 2^64 / `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// Something that happens now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chance {
    /// Of [`Self::ALL`].
    share: u64,
}

impl Chance {
    /// As many as a float can tell apart between 0 and 1.
    const ALL: u64 = 1 << 53;

    /// None when that is not a share.
    pub(super) fn percent(percent: f64) -> Option<Self> {
        let share = || (percent / 100.0 * Self::ALL as f64) as u64;
        (0.0..=100.0).contains(&percent).then(|| Self { share: share() })
    }

    pub(super) fn is_never(self) -> bool {
        self.share == 0
    }

    /// Whether it happens this time.
    pub(super) fn happens(self, random: &mut Random) -> bool {
        self.share > 0 && random.next() >> 11 < self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the generator's reference implementation.
    #[test]
    fn the_numbers_are_those_of_the_definition() {
        let mut random = Random(1_234_567);
        let numbers: Vec<u64> = (0..5).map(|_| random.next()).collect();
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn numbers_are_below_what_they_are_to_be_and_reach_it() {
        let mut random = Random(1);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[random.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
    }

    #[test]
    fn chances_are_what_they_are_said_to_be() {
        let mut random = Random(7);
        let mut count = |percent| {
            let chance = Chance::percent(percent).unwrap();
            (0..100_000).filter(|_| chance.happens(&mut random)).count()
        };
        assert_eq!((count(0.0), count(100.0)), (0, 100_000));
        assert!((9_600..10_400).contains(&count(10.0)));
        assert!((50..150).contains(&count(0.1)));
        for wrong in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Chance::percent(wrong), None, "{wrong}");
        }
    }
}
