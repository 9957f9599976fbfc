//! Which of a guest's queue pairs a frame is delivered to.
//!
//! A guest with several queue pairs wants the frames of a conversation where it sends its own
//! (virtio 1.3, 5.1.6.5.6, automatic receive steering): each of its processors then finds its own
//! work in its own rings. So what the guest transmits is remembered by flow, in a table of fixed
//! size in which flows with the same hash share a place; what was never heard of is spread by its
//! hash.
//!
//! Workers read and write the table at any time without a lock. A place is one byte, so that there
//! is nothing to tear.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Places in the table.
const PLACES: usize = 4096;

/// The table of one guest.
pub(super) struct Steering {
    /// One more than the pair; 0 for none.
    pairs: Box<[AtomicU8]>,
}

impl Steering {
    /// Knows no flow.
    pub(super) fn new() -> Self {
        Self { pairs: (0..PLACES).map(|_| AtomicU8::new(0)).collect() }
    }

    /// The guest transmitted a frame of the flow with this hash by `pair`.
    #[inline]
    pub(super) fn learn(&self, hash: u32, pair: usize) {
        let place = self.place(hash);
        let value = pair as u8 + 1;
        // Mostly it is known: no need to dirty the line.
        if place.load(Relaxed) != value {
            place.store(value, Relaxed);
        }
    }

    /// Which of the pairs that are enabled, in ascending order and not empty, a frame of the flow
    /// with this hash is delivered to.
    #[inline]
    pub(super) fn choose(&self, hash: u32, enabled: &[u8]) -> u8 {
        let learned = self.place(hash).load(Relaxed).wrapping_sub(1);
        if enabled.binary_search(&learned).is_ok() {
            return learned;
        }
        // The upper bits, since the lower ones choose the place.
        let index = (u64::from(hash) * enabled.len() as u64) >> 32;
        enabled.get(index as usize).copied().unwrap_or_default()
    }

    #[inline]
    fn place(&self, hash: u32) -> &AtomicU8 {
        &self.pairs[hash as usize % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_delivered_where_it_was_last_sent() {
        let steering = Steering::new();
        let all: Vec<u8> = (0..128).collect();
        for pair in [0, 3, 127, 5] {
            steering.learn(0x1234_5678, pair);
            assert_eq!(usize::from(steering.choose(0x1234_5678, &all)), pair);
        }
    }

    #[test]
    fn a_pair_that_is_not_enabled_is_not_chosen() {
        let steering = Steering::new();
        let hash = 0x8000_0001;
        steering.learn(hash, 2);
        assert_eq!(steering.choose(hash, &[0, 1, 2, 3]), 2);
        assert_eq!(steering.choose(hash, &[0, 1]), 1, "by the hash");
        assert_eq!(steering.choose(hash, &[7]), 7);
        assert_eq!(steering.choose(hash, &[0, 2]), 2, "not forgotten");
    }

    #[test]
    fn unknown_flows_are_spread() {
        let steering = Steering::new();
        let mut counts = [0; 4];
        for flow in 0..4000u32 {
            let pair = steering.choose(flow.wrapping_mul(0x9E37_79B1), &[0, 1, 2, 3]);
            counts[usize::from(pair)] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
