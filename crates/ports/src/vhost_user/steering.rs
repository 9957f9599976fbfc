//! Which of a guest's queue pairs a frame is delivered to.
//!
//! A guest with several queue pairs wants the frames of a conversation where it sends its own
//! (virtio 1.3, 5.1.6.5.6, automatic receive steering): each of its processors then finds its own
//! work in its own rings. So what the guest transmits is remembered by flow, in a table of fixed
//! size in which flows with the same hash share a place; what was never heard of is spread by its
//! hash.
//!
//! A guest often sends one flow by several pairs in turn: acknowledgements come from whichever
//! processor had the time. Were each frame delivered to the pair that was heard last, frames that wait
//! in different rings would overtake each other, and TCP would take that for loss. So a flow moves
//! only when nothing should be overtaken: when the driver has taken everything from the ring where
//! the flow was, or when the flow has been quiet for so long that it must have.
//!
//! # Who writes what
//!
//! All workers, at any time, without a lock. The worker that the guest's pair belongs to writes where
//! a flow is heard, and the one that delivers to it where it is delivered; mostly they only read.
//! Should two of them deliver one flow at once, there is no order between their frames anyway.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

/// Places in the table.
const PLACES: usize = 4096;

/// Nanoseconds in the unit of time in which a flow is quiet, as a power of two: about 0.26 ms.
const TICK: u32 = 18;

/// For how long a flow has to be quiet before it may move, in nanoseconds, when its driver does not
/// tell what it has taken. Such drivers poll.
pub(super) const QUIET: u64 = 1_000_000;

/// The table of one guest.
pub(super) struct Steering {
    /// By which pair the guest transmits: one more than the pair, and 0 for none.
    heard: Box<[AtomicU8]>,
    /// Where frames are delivered.
    delivered: Box<[AtomicU32]>,
    /// There may be something in them.
    is_used: AtomicBool,
}

/// The pair that a flow was delivered to last, and the tick when.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Last {
    pair: u8,
    /// Of 24 bits.
    tick: u32,
}

impl Last {
    const NEVER: Self = Self { pair: u8::MAX, tick: 0 };

    fn to_word(self) -> u32 {
        u32::from(self.pair) | self.tick << 8
    }

    fn from_word(word: u32) -> Self {
        Self { pair: word as u8, tick: word >> 8 }
    }

    /// The time of a frame, in nanoseconds, as a tick.
    fn tick(now: u64) -> u32 {
        (now >> TICK) as u32 & 0xff_ffff
    }

    /// Whether there was nothing for so many nanoseconds, at least.
    fn is_quiet(self, tick: u32, quiet: u64) -> bool {
        let quiet = (quiet >> TICK) as u32 + 2;
        // A clock that is a little behind is none that is an hour ahead.
        let passed = tick.wrapping_sub(self.tick) & 0xff_ffff;
        (quiet..0x80_0000).contains(&passed)
    }
}

impl Steering {
    /// Knows no flow.
    pub(super) fn new() -> Self {
        let never = Last::NEVER.to_word();
        Self {
            heard: (0..PLACES).map(|_| AtomicU8::new(0)).collect(),
            delivered: (0..PLACES).map(|_| AtomicU32::new(never)).collect(),
            is_used: AtomicBool::new(false),
        }
    }

    /// Forgets all flows. Returns whether there could be any. Most guests have one pair of queues, and no flows: many of them that go
    /// at once are not to hold the worker up by that.
    pub(super) fn forget(&self) -> bool {
        if !self.is_used.swap(false, Relaxed) {
            return false;
        }
        let never = Last::NEVER.to_word();
        self.heard.iter().for_each(|heard| heard.store(0, Relaxed));
        self.delivered.iter().for_each(|delivered| delivered.store(never, Relaxed));
        true
    }

    /// Takes note that there is something to be forgotten.
    #[inline]
    fn note_use(&self) {
        if !self.is_used.load(Relaxed) {
            self.is_used.store(true, Relaxed);
        }
    }

    /// The guest transmitted a frame of the flow with this hash by `pair`.
    #[inline]
    pub(super) fn learn(&self, hash: u32, pair: usize) {
        let place = &self.heard[place(hash)];
        let value = pair as u8 + 1;
        // Mostly it is known: no need to dirty the line.
        if place.load(Relaxed) != value {
            place.store(value, Relaxed);
            self.note_use();
        }
    }

    /// Chooses pairs for the frames of a burst, out of those that are `enabled`, in ascending order and
    /// not empty, at the time `now`. A flow may move that was quiet for `quiet` nanoseconds.
    pub(super) fn burst<'s>(&'s self, enabled: &'s [u8], now: u64, quiet: u64) -> Chooser<'s> {
        self.note_use();
        Chooser { steering: self, enabled, now, quiet, chosen: [0; PLACES / 64] }
    }
}

/// Chooses pairs for one burst.
pub(super) struct Chooser<'s> {
    steering: &'s Steering,
    enabled: &'s [u8],
    now: u64,
    quiet: u64,
    /// A bit for each place of which a frame was seen. Where that goes it is not yet, and later ones
    /// must not overtake it, whatever is heard meanwhile.
    chosen: [u64; PLACES / 64],
}

impl Chooser<'_> {
    /// Which pair a frame of the flow with this hash is delivered to. The flow may move, too, if
    /// `is_drained` says of the pair where it was that its driver has taken everything.
    #[inline]
    pub(super) fn choose(&mut self, hash: u32, is_drained: impl FnOnce(u8) -> bool) -> u8 {
        let place = place(hash);
        let is_enabled = |pair: u8| self.enabled.binary_search(&pair).is_ok();
        let heard = self.steering.heard[place].load(Relaxed).wrapping_sub(1);
        let wanted = if is_enabled(heard) { heard } else { spread(place, self.enabled) };
        let delivered = &self.steering.delivered[place];
        let last = Last::from_word(delivered.load(Relaxed));
        let tick = Last::tick(self.now);
        let (word, bit) = (place / 64, 1 << (place % 64));
        let was_chosen = self.chosen[word] & bit != 0;
        let may_move = || {
            let is_quiet = || last.is_quiet(tick, self.quiet) || is_drained(last.pair);
            !is_enabled(last.pair) || !was_chosen && is_quiet()
        };
        let pair = if last.pair == wanted || may_move() { wanted } else { last.pair };
        self.chosen[word] |= bit;
        let next = Last { pair, tick };
        if next != last {
            delivered.store(next.to_word(), Relaxed);
        }
        pair
    }
}

fn place(hash: u32) -> usize {
    hash as usize % PLACES
}

/// A pair for a flow that was not heard of: for all that share its place, or they would move it to and
/// fro.
fn spread(place: usize, enabled: &[u8]) -> u8 {
    enabled.get(place * enabled.len() / PLACES).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment, and one after which any flow has been quiet.
    const NOW: u64 = 1 << 40;
    const LATER: u64 = NOW + QUIET + (3 << TICK);

    /// As if every ring were empty, in a burst of its own.
    fn choose(steering: &Steering, hash: u32, enabled: &[u8]) -> u8 {
        steering.burst(enabled, NOW, QUIET).choose(hash, |_| true)
    }

    #[test]
    fn a_flow_is_delivered_where_it_was_last_sent() {
        let steering = Steering::new();
        let all: Vec<u8> = (0..128).collect();
        for pair in [0, 3, 127, 5] {
            steering.learn(0x1234_5678, pair);
            assert_eq!(usize::from(choose(&steering, 0x1234_5678, &all)), pair);
        }
    }

    #[test]
    fn a_pair_that_is_not_enabled_is_not_chosen() {
        let steering = Steering::new();
        // In the upper half of the places.
        let hash = 0x8000_0fff;
        steering.learn(hash, 2);
        assert_eq!(choose(&steering, hash, &[0, 1, 2, 3]), 2);
        let never = |_| panic!("nothing waits in a ring that is gone");
        assert_eq!(steering.burst(&[0, 1], NOW, QUIET).choose(hash, never), 1, "by the hash");
        assert_eq!(steering.burst(&[7], NOW, QUIET).choose(hash, never), 7);
        assert_eq!(choose(&steering, hash, &[0, 2]), 2, "not forgotten");
    }

    /// A guest of one pair, which steers nothing, costs nothing when it goes.
    #[test]
    fn flows_are_forgotten_if_there_are_any() {
        let steering = Steering::new();
        assert!(!steering.forget(), "nobody has come");
        let all = [0, 1, 2, 3];
        let spread = choose(&steering, 5, &all);
        assert!(steering.forget(), "one was delivered");
        steering.learn(5, usize::from(spread) + 1);
        assert!(steering.forget(), "one was heard");
        assert!(!steering.forget(), "all are forgotten");
        assert_eq!(choose(&steering, 5, &all), spread, "as if it was never heard");
    }

    #[test]
    fn unknown_flows_are_spread() {
        let steering = Steering::new();
        let mut counts = [0; 4];
        for flow in 0..4000u32 {
            let pair = choose(&steering, flow.wrapping_mul(0x9E37_79B1), &[0, 1, 2, 3]);
            counts[usize::from(pair)] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_flow_does_not_overtake_itself() {
        let steering = Steering::new();
        let (hash, enabled) = (77, [0, 1, 2]);
        steering.learn(hash, 1);
        assert_eq!(
            steering.burst(&enabled, NOW, QUIET).choose(hash, |_| false),
            1,
            "it was nowhere"
        );
        steering.learn(hash, 2);
        for step in 0..10 {
            // A little earlier too: workers' breaths do not begin at the same time.
            let now = NOW + (step << TICK) - (1 << TICK);
            let mut asked = None;
            let waits = |pair| asked.replace(pair).is_some();
            assert_eq!(
                steering.burst(&enabled, now, QUIET).choose(hash, waits),
                1,
                "frames wait there"
            );
            assert_eq!(asked, Some(1));
        }
        assert_eq!(steering.burst(&enabled, NOW, QUIET).choose(hash, |_| true), 2, "drained");
        steering.learn(hash, 0);
        assert_eq!(steering.burst(&enabled, NOW, QUIET).choose(hash, |_| false), 2);
        assert_eq!(
            steering.burst(&enabled, LATER, 2 * QUIET).choose(hash, |_| false),
            2,
            "too short"
        );
        let later = LATER + QUIET + (3 << TICK);
        assert_eq!(
            steering.burst(&enabled, later, QUIET).choose(hash, |_| false),
            0,
            "quiet for long"
        );
    }

    #[test]
    fn within_a_burst_a_flow_stays_whatever_is_heard_meanwhile() {
        let steering = Steering::new();
        let enabled = [0, 1, 2];
        steering.learn(77, 1);
        let mut burst = steering.burst(&enabled, NOW, QUIET);
        assert_eq!(burst.choose(77, |_| true), 1);
        steering.learn(77, 2);
        assert_eq!(burst.choose(77, |_| true), 1, "the one before is not even delivered");
        assert_eq!(burst.choose(77 + PLACES as u32, |_| true), 1, "it shares the place");
        let mut burst = steering.burst(&enabled, NOW, QUIET);
        assert_eq!(burst.choose(77, |_| true), 2);
    }
}
