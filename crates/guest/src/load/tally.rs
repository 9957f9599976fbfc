//! What became of the frames of one direction.

/// How far back a frame that is late can be told from one that came twice.
const HISTORY: usize = 1 << 16;

/// What a received frame is, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// No later frame of its flow came before it, though some may be missing in between.
    InOrder,
    /// A later frame of its flow came before it: reordered.
    Late,
    /// It had come already, or is older than the history.
    Again,
}

/// Finds by their sequence numbers which frames were lost, reordered and duplicated.
///
/// Frames are numbered over all flows, which take turns: a frame's flow is its number modulo their
/// count. Only frames of the same flow have an order (a device may spread flows over its processors).
pub struct Tally {
    flows: u64,
    /// One more than the highest number that came.
    next: u64,
    /// Numbers that were skipped, plus one, each at its place modulo [`HISTORY`].
    missing: Box<[u64]>,
    /// Frames that came, each once.
    pub received: u64,
    /// Of these, frames that came after one of the same flow with a higher number.
    pub reordered: u64,
    /// Frames that came again.
    pub duplicates: u64,
}

impl Tally {
    /// Nothing has come yet, of so many flows.
    pub fn new(flows: u64) -> Self {
        let missing = vec![0; HISTORY].into_boxed_slice();
        Self { flows: flows.max(1), next: 0, missing, received: 0, reordered: 0, duplicates: 0 }
    }

    /// Counts a frame.
    #[inline]
    pub fn add(&mut self, number: u64) -> Arrival {
        if number == self.next {
            self.next += 1;
            self.received += 1;
            return Arrival::InOrder;
        }
        self.add_unexpected(number)
    }

    #[cold]
    fn add_unexpected(&mut self, number: u64) -> Arrival {
        if number > self.next {
            let first = self.next.max(number.saturating_sub(HISTORY as u64));
            for skipped in first..number {
                self.missing[place_of(skipped)] = skipped + 1;
            }
            self.next = number + 1;
            self.received += 1;
            return Arrival::InOrder;
        }
        if !self.is_missing(number) {
            self.duplicates += 1;
            return Arrival::Again;
        }
        self.missing[place_of(number)] = 0;
        self.received += 1;
        let mut later = (number + self.flows..self.next).step_by(self.flows as usize);
        if later.all(|later| self.is_missing(later)) {
            return Arrival::InOrder;
        }
        self.reordered += 1;
        Arrival::Late
    }

    fn is_missing(&self, number: u64) -> bool {
        self.missing[place_of(number)] == number + 1
    }

    /// Where frames are only sent: the back end has taken so many of them.
    pub(super) fn set_taken(&mut self, count: u64) {
        (self.next, self.received) = (count, count);
    }

    /// One more than the highest number that came: frames from here on may still be on their way.
    pub fn next(&self) -> u64 {
        self.next
    }
}

fn place_of(number: u64) -> usize {
    (number % HISTORY as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(numbers: impl IntoIterator<Item = u64>) -> Tally {
        let mut tally = Tally::new(1);
        for number in numbers {
            tally.add(number);
        }
        tally
    }

    fn counts(tally: &Tally) -> [u64; 4] {
        [tally.received, tally.reordered, tally.duplicates, tally.next()]
    }

    #[test]
    fn in_order() {
        assert_eq!(counts(&tally(0..200_000)), [200_000, 0, 0, 200_000]);
    }

    #[test]
    fn a_gap_is_a_loss_until_it_is_filled() {
        let mut tally = tally([0, 1, 4]);
        assert_eq!(counts(&tally), [3, 0, 0, 5]);
        assert_eq!(tally.add(2), Arrival::Late);
        assert_eq!(counts(&tally), [4, 1, 0, 5]);
        assert_eq!(tally.add(2), Arrival::Again);
        assert_eq!(tally.add(5), Arrival::InOrder);
        assert_eq!(counts(&tally), [5, 1, 1, 6]);
    }

    #[test]
    fn only_frames_of_the_same_flow_have_an_order() {
        // Three flows: 0 3 6, 1 4 7 and 2 5 8.
        let mut tally = Tally::new(3);
        let arrivals = [0, 2, 1, 7, 3, 5, 4, 6].map(|number| tally.add(number));
        let mut expected = [Arrival::InOrder; 8];
        // 7 has overtaken it.
        expected[6] = Arrival::Late;
        assert_eq!(arrivals, expected);
        assert_eq!(counts(&tally), [8, 1, 0, 8]);
        assert_eq!(tally.add(3), Arrival::Again);
    }

    #[test]
    fn what_came_and_comes_again_is_not_late() {
        let mut tally = tally(0..10);
        for number in [9, 0] {
            assert_eq!(tally.add(number), Arrival::Again);
        }
        assert_eq!(counts(&tally), [10, 0, 2, 10]);
    }

    #[test]
    fn a_gap_longer_than_the_history() {
        let far = 3 * HISTORY as u64;
        let mut tally = tally([0, far]);
        assert_eq!(counts(&tally), [2, 0, 0, far + 1]);
        assert_eq!(tally.add(far - 1), Arrival::Late);
        assert_eq!(tally.add(far - HISTORY as u64), Arrival::Late);
        assert_eq!(tally.add(far - HISTORY as u64 - 1), Arrival::Again);
    }
}
