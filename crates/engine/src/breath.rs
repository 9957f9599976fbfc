//! One breath: a turn for each app with an outside, which is pull, push, reclaim, publish, notify. What the app did that
//! pulled may be published in a later turn, if that is little: see [`Graph::note`]. There is no thread here and no clock: the time is
//! an argument.

use std::sync::atomic::{Ordering, fence};

use crate::burst::Storage;
use crate::graph::{Due, UNKNOWN_WORK};
use crate::{App, AppId, Fault, Graph, Lease, Traffic};

/// Nanoseconds between two ticks of an app, at least.
const TICK: u64 = 1_000_000_000;

/// What control is told unasked.
pub enum Event {
    /// A peer broke a rule; its app went down by itself.
    Fault {
        /// Whose peer.
        app: AppId,
        /// What it did.
        fault: Fault,
    },
    /// An app panicked and is out of service. That is our bug.
    Failed {
        /// Which.
        app: AppId,
        /// What the panic said.
        message: String,
        /// What is left of it, to be dropped by control.
        remains: Box<dyn App>,
    },
}

/// What an app had in its turn.
struct Turn {
    was_busy: bool,
    had_frames: bool,
}

impl Graph {
    /// Breathes once. `now` is in nanoseconds, since any moment that stays the same. Returns
    /// whether there was anything to do.
    ///
    /// A worker does this all the time; call it to run a graph without one.
    pub fn breathe(&mut self, now: u64, mut report: impl FnMut(Event)) -> bool {
        let ask_all = std::mem::take(&mut self.ask_all);
        self.due.breath = self.due.breath.wrapping_add(1);
        self.work = 0;
        let mut busy = false;
        let mut storage = self.storage.take().unwrap_or_default();
        // Another app is the first each time, so that none always finds the receivers that the
        // others have left full.
        let first = self.first;
        let mut places = first..self.places().end;
        let (mut is_first, mut is_last_part) = (true, false);
        loop {
            let Some(place) = self.next_asked(places.clone(), ask_all) else {
                if is_last_part {
                    break;
                }
                (places, is_last_part) = (0..first, true);
                continue;
            };
            places.start = place + 1;
            let Some(id) = self.at(place) else { continue };
            let Turn { was_busy, had_frames } = self.turn(id, now, &mut storage);
            busy |= was_busy;
            // Behind the first one that has frames: an app gets no turns of idle ones before it.
            if had_frames && std::mem::take(&mut is_first) {
                self.first = place + 1;
            }
            // A receiver can begin while others have their turns, and a lone frame does not wait for
            // those.
            self.publish(|due| &mut due.touched, &mut report);
        }
        self.storage = Some(storage);
        self.publish(|due| &mut due.late, &mut report);
        if now >= self.next_tick {
            self.tick(now);
        }
        self.pulse.leave();
        if self.has_news() {
            self.settle();
            self.report_failures(report);
        }
        busy
    }

    /// Has every app be asked in the next breath, however long it had nothing to do: as behind a sleep, in which something may have
    /// come for any of them.
    pub fn ask_all(&mut self) {
        self.ask_all = true;
    }

    /// Asks an app for frames, sends them on, and has it take them back.
    #[inline]
    fn turn(&mut self, id: AppId, now: u64, storage: &mut Storage) -> Turn {
        self.pulse.enter(id);
        let mut lease = Lease::Empty;
        let mut burst = storage.begin(now, self.due.breath);
        let was_busy = self.call(id, |app| app.pull(&mut lease, &mut burst)).unwrap_or(false);
        let had_frames = !burst.is_empty();
        let bytes = if had_frames { burst.count() } else { 0 };
        let frames = Traffic { frames: burst.len() as u64, bytes };
        self.note(id, now, was_busy, frames);
        if had_frames {
            self.frames += frames.frames;
            self.work += (bytes / 1024) as u32;
            let (all, output) = (burst.all(), burst.output());
            self.send(id, output, &mut burst, &all);
        }
        let finished = burst.finish();
        if had_frames || !matches!(lease, Lease::Empty) {
            self.call(id, |app| {
                app.reclaim(storage.outcomes(finished), std::mem::take(&mut lease))
            });
            if !had_frames {
                self.touch(id);
            }
        }
        if was_busy && !had_frames {
            self.work += UNKNOWN_WORK;
        }
        Turn { was_busy, had_frames }
    }

    /// Has the apps of a list publish, and notify, and takes them off.
    #[inline]
    fn publish(
        &mut self,
        list: impl Fn(&mut Due) -> &mut Vec<AppId>,
        report: &mut impl FnMut(Event),
    ) {
        let mut left = list(&mut self.due).len();
        if left == 0 {
            return;
        }
        // Receivers, which were touched last, before who sent to them.
        while left > 0 {
            left -= 1;
            let Some(&id) = list(&mut self.due).get(left) else { break };
            self.untouch(id);
            self.pulse.enter(id);
            if let Some(Err(fault)) = self.call(id, |app| app.publish()) {
                report(Event::Fault { app: id, fault });
            }
        }
        fence(Ordering::SeqCst);
        while let Some(id) = list(&mut self.due).pop() {
            self.pulse.enter(id);
            self.call(id, |app| app.notify());
        }
    }

    /// Has every app tick, and again in a second.
    #[cold]
    fn tick(&mut self, now: u64) {
        self.next_tick = now + TICK;
        for place in self.places() {
            let Some(id) = self.at(place) else { continue };
            self.pulse.enter(id);
            self.call(id, |app| app.tick(now));
        }
    }

    #[cold]
    pub(crate) fn report_failures(&mut self, mut report: impl FnMut(Event)) {
        for (app, failure) in self.take_failures() {
            report(Event::Failed { app, message: failure.message, remains: failure.app });
        }
    }

    /// Asks every app to arm. True when there is something to do: for one of them, or for us,
    /// because one panicked and that has to be reported.
    pub(crate) fn arm(&mut self) -> bool {
        self.ask_all();
        let mut busy = false;
        for place in self.places() {
            let Some(id) = self.at(place) else { continue };
            self.pulse.enter(id);
            busy |= self.call(id, |app| app.arm()).unwrap_or(false);
        }
        self.pulse.leave();
        busy || self.has_failures()
    }

    /// When an app has to be called at the latest, though nothing woke it; that may be over. Deadlines up
    /// to when it was asked last, `now` at the latest, were met by that.
    pub(crate) fn deadline(&mut self, now: u64) -> Option<u64> {
        let ticked = self.next_tick.saturating_sub(TICK);
        let deadlines = self.places().filter_map(|place| {
            let id = self.at(place)?;
            // Not every app was asked in the last breath.
            let called = if self.has_outside(id) { self.asked(id).min(now) } else { ticked };
            let deadline = self.call(id, |app| app.deadline(called)).flatten();
            let deadline = deadline.filter(|deadline| *deadline > called)?;
            // One without an outside is called by the tick.
            Some(if self.has_outside(id) { deadline } else { deadline.max(self.next_tick) })
        });
        deadlines.min()
    }

    pub(crate) fn disarm(&mut self) {
        for place in self.places() {
            let Some(id) = self.at(place) else { continue };
            self.call(id, |app| app.disarm());
        }
    }
}

#[cfg(test)]
mod tests;
