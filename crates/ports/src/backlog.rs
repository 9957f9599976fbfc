//! How much of one sender's traffic may wait for receivers that are full.
//!
//! Everything may wait for [`BLOCK`]: long enough for a receiver that is awake, and the sender is
//! not listened to meanwhile, so that nothing is lost. After that, half of a burst may go on
//! waiting, and the other half is free for frames to others: what else goes to a full receiver is
//! dropped. That is how much one guest's slowness can cost another that talks to it.
//!
//! A sender that has its buffers back in the order in which it sent (IN_ORDER) has none that is free behind a frame that waits: after
//! [`BLOCK`] none of its frames waits any longer, and it begins anew.

/// How long a sender is not listened to that has half of a burst waiting, in nanoseconds.
pub const BLOCK: u64 = 50_000;

/// The backlog of one sender.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// When it was first found to be half of a burst, and has not been less since.
    since: Option<u64>,
}

/// What to do in the next burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Whether to take new frames.
    pub(crate) listen: bool,
    /// How many frames of the burst may be held afterwards.
    pub(crate) hold: usize,
}

impl Backlog {
    /// Plans a burst of up to `capacity` frames, `held` of which were held before.
    #[inline]
    pub(crate) fn plan(&mut self, held: usize, capacity: usize, now: u64) -> Plan {
        if held < capacity / 2 {
            self.since = None;
            return Plan { listen: true, hold: capacity };
        }
        if now - *self.since.get_or_insert(now) < BLOCK {
            return Plan { listen: false, hold: capacity };
        }
        Plan { listen: held < capacity, hold: capacity / 2 }
    }

    /// When the plan changes by itself.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.since.map(|since| since + BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_waits_for_a_while_and_then_half() {
        let mut backlog = Backlog::default();
        let free = Plan { listen: true, hold: 64 };
        assert_eq!(backlog.plan(0, 64, 5), free);
        assert_eq!(backlog.plan(31, 64, 10), free);
        assert_eq!(backlog.deadline(), None);
        assert_eq!(backlog.plan(64, 64, 100), Plan { listen: false, hold: 64 });
        assert_eq!(backlog.deadline(), Some(100 + BLOCK));
        assert_eq!(backlog.plan(40, 64, 99 + BLOCK), Plan { listen: false, hold: 64 });
        assert_eq!(backlog.plan(64, 64, 100 + BLOCK), Plan { listen: false, hold: 32 });
        assert_eq!(backlog.plan(32, 64, 101 + BLOCK), Plan { listen: true, hold: 32 });
        assert_eq!(backlog.plan(31, 64, 102 + BLOCK), free);
        assert_eq!(backlog.plan(32, 64, 1_000_000), Plan { listen: false, hold: 64 }, "anew");
    }
}
