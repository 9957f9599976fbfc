//! In which breath each app is asked.
//!
//! An app that has had nothing to do for a while is asked once in so many breaths, so that many idle ports do not slow a few
//! busy ones down. Nor does passing them by: after [`ROUND`] breaths everything comes again, and for each breath of
//! a round there is a bit for each place that is asked in it. The worker goes from one bit that is set to the next.

use std::ops::Range;

/// Breaths after which the schedule begins anew. A power of two.
pub(crate) const ROUND: usize = 32;

/// Who is asked in which breath of a round.
#[derive(Default)]
pub(crate) struct Schedule {
    /// For each 64 places, those that are asked in each breath of a round.
    rows: Vec<[u64; ROUND]>,
}

impl Schedule {
    /// Nobody is asked yet. There is room for so many places.
    pub(crate) fn with_capacity(places: usize) -> Self {
        Self { rows: vec![[0; ROUND]; places.div_ceil(64)] }
    }

    /// Takes over the room of another, which gets this one's, if that is larger.
    pub(crate) fn make_room(&mut self, other: &mut Self) {
        if self.rows.len() < other.rows.len() {
            let (front, _) = other.rows.split_at_mut(self.rows.len());
            front.copy_from_slice(&self.rows);
            std::mem::swap(self, other);
        }
    }

    /// Has room for so many places at least.
    pub(crate) fn reserve(&mut self, places: usize) {
        let rows = places.div_ceil(64);
        if self.rows.len() < rows {
            self.rows.resize(rows, [0; ROUND]);
        }
    }

    /// Has who is at a place asked once, and then not for `pause` breaths, which is one less than a power of two and less than
    /// [`ROUND`]. Neighbours have their turns in different breaths.
    pub(crate) fn ask(&mut self, place: usize, pause: usize) {
        self.set(place, |breath| (breath + place) & pause == 0);
    }

    /// Nobody is asked at that place.
    pub(crate) fn forget(&mut self, place: usize) {
        self.set(place, |_| false);
    }

    fn set(&mut self, place: usize, is_asked: impl Fn(usize) -> bool) {
        debug_assert!(place / 64 < self.rows.len(), "there is no room for place {place}");
        let Some(rows) = self.rows.get_mut(place / 64) else { return };
        for (breath, row) in rows.iter_mut().enumerate() {
            let bit = 1 << (place % 64);
            *row = if is_asked(breath) { *row | bit } else { *row & !bit };
        }
    }

    /// The first of these places that is asked in a breath; or, without one, in any.
    #[inline]
    pub(crate) fn next(&self, places: Range<usize>, breath: Option<u32>) -> Option<usize> {
        let mut place = places.start;
        while place < places.end {
            let rows = self.rows.get(place / 64)?;
            let row = match breath {
                Some(breath) => rows[breath as usize % ROUND],
                None => rows.iter().fold(0, |all, row| all | row),
            };
            let behind = row >> (place % 64);
            if behind != 0 {
                let next = place + behind.trailing_zeros() as usize;
                return (next < places.end).then_some(next);
            }
            place = (place | 63) + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{ROUND, Schedule};

    /// All of some places that are asked in a breath.
    fn asked(
        schedule: &Schedule,
        places: std::ops::Range<usize>,
        breath: Option<u32>,
    ) -> Vec<usize> {
        let from = |from| schedule.next(from..places.end, breath);
        std::iter::successors(from(places.start), |last| from(last + 1)).collect()
    }

    #[test]
    fn each_place_is_asked_as_often_as_it_is_said() {
        let pauses = [0, 3, 31, 1, 15, 7];
        let pause = |place: usize| pauses[place % pauses.len()];
        let mut schedule = Schedule::with_capacity(200);
        // What was said last counts.
        (0..200).for_each(|place| schedule.ask(place, 0));
        (0..200).for_each(|place| schedule.ask(place, pause(place)));
        schedule.forget(63);
        schedule.forget(64);
        let there = |place: &usize| ![63, 64].contains(place);
        for places in [0..200, 0..64, 64..128, 1..199, 60..70, 130..130] {
            for breath in 0..2 * ROUND {
                let is_asked =
                    |place: &usize| there(place) && (breath + place) & pause(*place) == 0;
                let expected: Vec<_> = places.clone().filter(is_asked).collect();
                assert_eq!(
                    asked(&schedule, places.clone(), Some(breath as u32)),
                    expected,
                    "{places:?} in breath {breath}"
                );
            }
            let expected: Vec<_> = places.clone().filter(there).collect();
            assert_eq!(asked(&schedule, places, None), expected);
        }
    }

    #[test]
    fn more_room_changes_nothing_else() {
        let (mut schedule, mut room) = (Schedule::with_capacity(64), Schedule::with_capacity(65));
        schedule.ask(5, 0);
        schedule.make_room(&mut room);
        schedule.ask(64, 0);
        assert_eq!(asked(&schedule, 0..65, Some(0)), [5, 64]);
        // Less is not taken.
        schedule.make_room(&mut Schedule::with_capacity(1));
        schedule.reserve(1);
        assert_eq!(asked(&schedule, 0..65, Some(0)), [5, 64]);
        schedule.reserve(129);
        schedule.ask(128, 0);
        assert_eq!(asked(&schedule, 0..129, Some(0)), [5, 64, 128]);
    }
}
