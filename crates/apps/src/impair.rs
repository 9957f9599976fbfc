//! Does to frames what bad networks do, for tests and labs: delay, loss, corruption, duplication and
//! reordering, as netem does (tc-netem(8)), in each direction apart.
//!
//! # How it works
//!
//! All chance is decided when a frame comes, once, by a generator with a seed: the same frames at the same times
//! have the same fate each time. What is not lost is *copied* into memory of the app's own, with the time at
//! which it is due, and comes out of there by [`App::pull`]; the worker sleeps until then ([`App::deadline`]).
//! That holds for all frames of a direction that has any impairment, also for those that are not delayed: so none
//! is decided on twice, as a frame that its receiver holds would be, and they stay in order.
//!
//! So this is where frames end for their sender: it is not held up by receivers behind it. As on a link, what
//! there is no room for is dropped ([`Room`]), and counted.
//!
//! A direction without an impairment is passed on as if there were no app.
//!
//! # Meaning
//!
//! | setting | netem | |
//! | --- | --- | --- |
//! | `delay`, `jitter` | `delay TIME JITTER` | each time from `delay` - `jitter` to `delay` + `jitter` is as likely as any other; less than none is none. With jitter, frames overtake each other |
//! | `loss` | `loss random PERCENT` | |
//! | `duplication` | `duplicate PERCENT` | the second has chances and a delay of its own; of a frame that is both lost and duplicated, one is left |
//! | `corruption` | `corrupt PERCENT` | one bit, anywhere in the frame |
//! | `reordering` | `reorder PERCENT` | is not delayed, and so overtakes those that are |
//!
//! Chances do not depend on those before (netem's correlation).
//!
//! A checksum that was left to others is completed before a bit is corrupted, so that its receiver can find out. A
//! frame that is still to be segmented cannot be completed: where it would be corrupted it is lost, as its segments
//! would be, whose checksums are wrong.

mod random;
mod store;

use std::any::Any;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use engine::{
    App, BURST, Burst, Counters, DropReason, Fault, Frame, Lease, Numbers, Outcome, Outcomes,
    Outputs, Selection,
};
use memory::ReadSlice;
use thiserror::Error;

use crate::sides::{NETWORK, PORT, opposite, passed_on};
use random::{Chance, Random};
use store::{Store, Stored};

/// Most frames that there may be room for.
pub const MAX_FRAMES: usize = 1 << 20;

/// Most bytes that there may be room for.
pub const MAX_BYTES: usize = 1 << 34;

/// Bytes of frames after which a burst takes no more.
const BYTE_BUDGET: usize = 512 * 1024;

/// What is done to frames, and with how much memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// What is done to frames that the port sends.
    pub from_port: Impairment,
    /// What is done to frames that are sent to the port.
    pub to_port: Impairment,
    /// How many frames may wait.
    pub room: Room,
    /// What chance begins with.
    pub seed: u64,
}

/// What is done to the frames of one direction. Chances are percentages, 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// How long a frame is kept back, in nanoseconds.
    pub delay: u64,
    /// How much longer or shorter it may be, in nanoseconds.
    pub jitter: u64,
    /// The chance that a frame is lost.
    pub loss: f64,
    /// The chance that a bit of a frame is turned around.
    pub corruption: f64,
    /// The chance that a frame comes twice.
    pub duplication: f64,
    /// The chance that a frame is not kept back, and overtakes others.
    pub reordering: f64,
}

/// How many frames may wait, in each direction and on each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Frames, at most [`MAX_FRAMES`].
    pub frames: usize,
    /// Bytes of memory, which is allocated at once, at most [`MAX_BYTES`]. A frame takes 2048 of them, or a
    /// multiple.
    pub bytes: usize,
}

/// As many frames as netem keeps, and memory for any but the largest.
impl Default for Room {
    fn default() -> Self {
        Self { frames: 1000, bytes: 16 << 20 }
    }
}

/// What cannot be done to frames.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum ImpairError {
    /// Not a percentage.
    #[error("{what} of {percent} %: give 0 to 100")]
    Percent {
        /// The setting.
        what: &'static str,
        /// What it was to be.
        percent: f64,
    },
    /// More memory than an app is to have.
    #[error("room for {frames} frames in {bytes} bytes: give {MAX_FRAMES} and {MAX_BYTES} at most")]
    Room {
        /// Frames that were asked for.
        frames: usize,
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// Nothing would be overtaken.
    #[error("reordering without a delay changes no order: give a delay as well")]
    NothingToOvertake,
    /// A jitter around nothing.
    #[error("a jitter without a delay: give a delay as well")]
    JitterAlone,
}

/// The app, or its part on one of several workers.
pub struct Impair {
    settings: Settings,
    /// By the side that frames come from.
    directions: [Direction; 2],
    /// The one whose frames were pulled last.
    last: usize,
    random: Random,
    /// The time of the last breath that there was anything for us in.
    now: u64,
    /// The number of this part.
    part: u64,
    /// How many parts there are.
    parts: Arc<AtomicU64>,
    counters: Counters,
}

impl Impair {
    /// An app in which nothing waits.
    pub fn new(settings: Settings) -> Result<Self, ImpairError> {
        Self::with_parts(settings, Arc::default())
    }

    /// A part for another worker, with room of its own. Its chances are others, but the same each time for
    /// parts that are made in the same order.
    pub fn part(&self) -> Self {
        let part = Self::with_parts(self.settings.clone(), self.parts.clone());
        part.unwrap_or_else(|_| unreachable!("these settings are in use"))
    }

    fn with_parts(settings: Settings, parts: Arc<AtomicU64>) -> Result<Self, ImpairError> {
        let part = parts.fetch_add(1, Relaxed);
        let [port, network] = settings.fates()?;
        let room = settings.room;
        let directions = [Direction::new(port, room), Direction::new(network, room)];
        let random = Random::of_part(settings.seed, part);
        let counters = Counters::default();
        Ok(Self { settings, directions, last: NETWORK, random, now: 0, part, parts, counters })
    }

    /// Does something else to frames from now on. What waits goes on waiting for as long as it was to; but with
    /// other [`Room`] it is dropped, and counted. With another seed chance begins anew. With an error nothing
    /// has changed.
    fn set(&mut self, settings: Settings) -> Result<(), ImpairError> {
        let fates = settings.fates()?;
        for (direction, fate) in self.directions.iter_mut().zip(fates) {
            if settings.room == self.settings.room {
                direction.fate = fate;
                continue;
            }
            self.counters[DropReason::DelayFull] += direction.len() as u64;
            *direction = Direction::new(fate, settings.room);
        }
        if settings.seed != self.settings.seed {
            self.random = Random::of_part(settings.seed, self.part);
        }
        self.settings = settings;
        Ok(())
    }
}

impl Settings {
    /// By the side that frames come from.
    fn fates(&self) -> Result<[Fate; 2], ImpairError> {
        let Room { frames, bytes } = self.room;
        if frames > MAX_FRAMES || bytes > MAX_BYTES {
            return Err(ImpairError::Room { frames, bytes });
        }
        let mut fates = [Fate::default(); 2];
        fates[PORT] = Fate::new(self.from_port)?;
        fates[NETWORK] = Fate::new(self.to_port)?;
        Ok(fates)
    }
}

/// An [`Impairment`], as it is decided on.
#[derive(Clone, Copy, Default)]
struct Fate {
    delay: u64,
    jitter: u64,
    loss: Chance,
    corruption: Chance,
    duplication: Chance,
    reordering: Chance,
}

impl Fate {
    fn new(impairment: Impairment) -> Result<Self, ImpairError> {
        let Impairment { delay, jitter, loss, corruption, duplication, reordering } = impairment;
        let chance =
            |what, percent| Chance::percent(percent).ok_or(ImpairError::Percent { what, percent });
        let fate = Self {
            delay,
            jitter,
            loss: chance("loss", loss)?,
            corruption: chance("corruption", corruption)?,
            duplication: chance("duplication", duplication)?,
            reordering: chance("reordering", reordering)?,
        };
        match fate {
            Self { delay: 0, jitter: 1.., .. } => Err(ImpairError::JitterAlone),
            Self { delay: 0, .. } if !fate.reordering.is_never() => {
                Err(ImpairError::NothingToOvertake)
            }
            _ => Ok(fate),
        }
    }

    fn is_none(&self) -> bool {
        let chances = [self.loss, self.corruption, self.duplication];
        self.delay == 0 && chances.into_iter().all(Chance::is_never)
    }

    /// How many of a frame there are to be.
    fn count(&self, random: &mut Random) -> usize {
        let count = 1 + usize::from(self.duplication.happens(random));
        count - usize::from(self.loss.happens(random))
    }

    /// How long a frame is kept back.
    fn delay(&self, random: &mut Random) -> u64 {
        if self.reordering.happens(random) {
            return 0;
        }
        let more = match self.jitter {
            0 => 0,
            jitter => random.below(jitter.saturating_mul(2).saturating_add(1)),
        };
        self.delay.saturating_add(more).saturating_sub(self.jitter)
    }
}

/// A frame that waits.
struct Waiting {
    due: u64,
    /// Those that are due at the same time come in the order in which they came.
    number: u64,
    frame: Stored,
}

impl Waiting {
    fn key(&self) -> (u64, u64) {
        (self.due, self.number)
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

/// The frames of one direction.
struct Direction {
    fate: Fate,
    /// Frames that may wait.
    limit: usize,
    store: Store,
    /// The first that is due is on top.
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// The next frame's.
    number: u64,
    /// Those that are due, and in the burst that is under way or held, in order.
    pending: Vec<Stored>,
    /// One of those made way.
    has_moved: bool,
}

impl Direction {
    fn new(fate: Fate, room: Room) -> Self {
        Self {
            fate,
            limit: room.frames,
            store: Store::new(room.bytes),
            waiting: BinaryHeap::with_capacity(room.frames),
            number: 0,
            pending: Vec::with_capacity(BURST),
            has_moved: false,
        }
    }

    /// Frames that wait.
    fn len(&self) -> usize {
        self.waiting.len() + self.pending.len()
    }

    /// When the next frame is due.
    fn next(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// Takes a frame in, and decides what becomes of it.
    fn take(&mut self, frame: &Frame<'_>, now: u64, random: &mut Random, counters: &mut Counters) {
        let count = self.fate.count(random);
        if count == 0 {
            counters.drop(DropReason::Impaired);
        }
        for _ in 0..count {
            if let Err(reason) = self.take_one(frame, now, random) {
                counters.drop(reason);
            }
        }
    }

    /// Takes in one of as many as there are to be. The reason for which it is dropped, if it is.
    fn take_one(
        &mut self,
        frame: &Frame<'_>,
        now: u64,
        random: &mut Random,
    ) -> Result<(), DropReason> {
        let is_corrupt = self.fate.corruption.happens(random);
        let bit = is_corrupt.then(|| random.below(frame.len as u64 * 8) as usize);
        let due = now.saturating_add(self.fate.delay(random));
        if is_corrupt && frame.offload.segmentation.is_some() {
            return Err(DropReason::Impaired);
        }
        if self.len() >= self.limit {
            return Err(DropReason::DelayFull);
        }
        let mut stored = self.store.keep(frame).ok_or(DropReason::DelayFull)?;
        if let Some(bit) = bit {
            if let Some(partial) = frame.offload.checksum {
                self.store.complete(&mut stored, partial);
            }
            self.store.flip(stored, bit);
        }
        self.waiting.push(Reverse(Waiting { due, number: self.number, frame: stored }));
        self.number += 1;
        Ok(())
    }

    /// Whether there is a frame for a burst.
    fn is_due(&self, now: u64) -> bool {
        !self.pending.is_empty() || self.next().is_some_and(|due| due <= now)
    }

    /// Puts what is due into a burst. Whether there was anything to do.
    fn fill<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let held = self.pending.len();
        let mut bytes: usize = self.pending.iter().map(Stored::len).sum();
        while self.pending.len() < BURST
            && bytes < BYTE_BUDGET
            && self.next().is_some_and(|due| due <= burst.now())
            && let Some(Reverse(waiting)) = self.waiting.pop()
        {
            bytes += waiting.frame.len();
            self.pending.push(waiting.frame);
        }
        burst.limit_held(BURST);
        let memory = lease.private(self.store.lend());
        for stored in &self.pending {
            let pieces = stored.pieces(&self.store);
            let first = burst.segments().len();
            let slices = pieces.map(|piece| ReadSlice::from(memory.get(piece).unwrap_or_default()));
            burst.segments().extend(slices);
            let end = burst.segments().len();
            let Ok(_) = burst.push(first..end, 0, |_, _| Ok::<_, Infallible>(stored.offload));
        }
        self.pending.len() > held
    }

    /// Takes back what the burst did not get rid of.
    fn reclaim(&mut self, outcomes: &Outcomes<'_>, memory: Box<[u8]>) {
        self.store.take_back(memory);
        let before = self.pending.len();
        let mut index = 0;
        let store = &mut self.store;
        self.pending.retain(|stored| {
            let is_held = outcomes.get(index) == Outcome::Held;
            index += 1;
            if !is_held {
                store.release(*stored);
            }
            is_held
        });
        self.has_moved = self.pending.len() < before;
    }
}

impl App for Impair {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.now = burst.now();
        let have_moved = self.directions.iter_mut().map(|it| std::mem::take(&mut it.has_moved));
        let has_moved = have_moved.fold(false, |any, moved| any | moved);
        // In turn, so that one whose receiver is full does not keep the other one waiting.
        let turns = [opposite(self.last), self.last];
        let is_due = |side: &usize| {
            self.directions.get(*side).is_some_and(|direction| direction.is_due(burst.now()))
        };
        let Some(side) = turns.into_iter().find(is_due) else { return has_moved };
        let Some(direction) = self.directions.get_mut(side) else { return has_moved };
        self.last = side;
        burst.leave_by(opposite(side));
        direction.fill(lease, burst) || has_moved
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        if let (Lease::Private(memory), Some(direction)) =
            (lease, self.directions.get_mut(self.last))
        {
            direction.reclaim(&outcomes, memory);
        }
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        self.now = burst.now();
        let Some(direction) = self.directions.get_mut(input) else {
            self.counters[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        if direction.fate.is_none() {
            return outputs.push(opposite(input), burst, selection);
        }
        for index in selection.iter() {
            let frame = burst.frame(index);
            direction.take(&frame, self.now, &mut self.random, &mut self.counters);
        }
    }

    fn arm(&mut self) -> bool {
        // What came behind our turn and is not delayed, or there was no room for in the last burst.
        let has_next = |direction: &Direction| {
            direction.pending.len() < BURST && direction.next().is_some_and(|due| due <= self.now)
        };
        self.directions.iter().any(|direction| direction.has_moved || has_next(direction))
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        let next = self.directions.iter().filter_map(Direction::next);
        next.filter(|due| *due > now).min()
    }

    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let settings: &Settings = engine::settings(settings)?;
        Ok(self.set(settings.clone())?)
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        for (side, direction) in ["from the port", "to the port"].iter().zip(&self.directions) {
            numbers.own(format!("waiting {side}"), "frames", direction.len() as u64);
        }
    }

    /// What waits goes nowhere.
    fn stop(&mut self) {
        let waiting: usize = self.directions.iter().map(Direction::len).sum();
        self.counters[DropReason::Stopped] += waiting as u64;
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
