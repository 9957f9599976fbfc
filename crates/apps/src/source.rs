//! A source: makes frames, all alike, as many as it is to and at the rate that it is to. They go out by output 0.
//!
//! All frames of a burst are borrowed from one buffer. A frame that its receiver holds is as good as any other
//! that is not yet sent, so that only their number is kept; and no more are made than receivers take.
//!
//! Frame n is due n / rate seconds after the first, so that no rounding adds up. A source that could not
//! send in time, because its worker or its receivers were late, makes up for that, unless it is later than
//! [`CATCH_UP`]: then it begins anew.

use std::any::Any;

use engine::{
    App, BURST, Burst, Counters, DropReason, Fault, Lease, Numbers, Outcomes, Outputs, Selection,
};
use thiserror::Error;
use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};

/// How late a source may be and make up for it, in nanoseconds; or a burst of frames, if that is more.
pub const CATCH_UP: u64 = 10_000_000;

/// Longest frame, in bytes: 64 KiB of payload.
pub const MAX_SIZE: usize = HEADER_SIZE + 65535;

/// Bytes of frames in a burst: one that sends large frames does not keep others waiting for long.
const BYTE_BUDGET: usize = 512 * 1024;

const SECOND: u128 = 1_000_000_000;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where frames go.
    pub destination: MacAddress,
    /// Who they are from.
    pub source: MacAddress,
    /// What they say that they carry. It is zeros.
    pub ethertype: EtherType,
    /// Bytes of a frame, with its header and without a check sequence: 14 to [`MAX_SIZE`].
    pub size: usize,
    /// Frames a second, at least 1. None: as many as are taken.
    pub rate: Option<u64>,
    /// Frames in all. None: without an end.
    pub frames: Option<u64>,
}

/// What cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SourceError {
    /// Not the size of a frame.
    #[error("frames of {0} bytes: give {HEADER_SIZE} to {MAX_SIZE}")]
    Size(usize),
    /// Nothing would ever be sent.
    #[error("the rate is 0: nothing would be sent; give 1 at least")]
    NoRate,
}

/// The app, or its part on one of several workers. One part sends; all drop what they are given.
pub struct Source {
    sending: Option<Sending>,
    counters: Counters,
}

struct Sending {
    settings: Settings,
    /// The frame. It is out on lease while a burst borrows from it.
    frame: Box<[u8]>,
    /// When the first frame was due.
    start: Option<u64>,
    /// Frames since then, those included that are held.
    made: u64,
    /// Frames in all, likewise.
    total: u64,
    /// Frames that are held.
    held: usize,
    /// Frames in the burst that is under way: those that were held, and new ones.
    pulled: usize,
    /// There was no room for all that were due.
    has_more: bool,
    /// A frame that was in the way is not any more.
    has_moved: bool,
}

impl Source {
    /// A source that begins with the first breath.
    pub fn new(settings: Settings) -> Result<Self, SourceError> {
        let sending = Sending::new(settings)?;
        Ok(Self { sending: Some(sending), counters: Counters::default() })
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self { sending: None, counters: Counters::default() }
    }

    /// Begins anew with other settings. With an error nothing has changed. A part that does not send goes on
    /// not to.
    fn set(&mut self, settings: Settings) -> Result<(), SourceError> {
        let new = Sending::new(settings)?;
        self.drop_held();
        if let Some(sending) = &mut self.sending {
            *sending = new;
        }
        Ok(())
    }

    /// Frames that are held go nowhere.
    fn drop_held(&mut self) {
        let held = self.sending.as_mut().map_or(0, |sending| std::mem::take(&mut sending.held));
        self.counters[DropReason::Stopped] += held as u64;
    }
}

impl Sending {
    fn new(settings: Settings) -> Result<Self, SourceError> {
        let Settings { destination, source, ethertype, size, rate, .. } = settings;
        if !(HEADER_SIZE..=MAX_SIZE).contains(&size) {
            return Err(SourceError::Size(size));
        }
        if rate == Some(0) {
            return Err(SourceError::NoRate);
        }
        let mut frame = vec![0; size];
        Ethernet { destination, source, ethertype, vlan: None }.write(&mut frame);
        Ok(Self {
            settings,
            frame: frame.into(),
            start: None,
            made: 0,
            total: 0,
            held: 0,
            pulled: 0,
            has_more: false,
            has_moved: false,
        })
    }

    /// Frames that are due by `now` and were not made.
    fn due(&mut self, now: u64) -> u64 {
        let left = self.settings.frames.map_or(u64::MAX, |frames| frames - self.total);
        let Some(rate) = self.settings.rate else { return left };
        let start = *self.start.get_or_insert(now);
        let by = |time: u64| u128::from(time.saturating_sub(start)) * u128::from(rate) / SECOND;
        // The first is due at once.
        let due = (by(now) + 1).saturating_sub(self.made.into());
        let most = by(start.saturating_add(CATCH_UP)).max(BURST as u128);
        if due > most {
            // As if it had begun so much later.
            (self.start, self.made) = (Some(now), 0);
            return left.min(1);
        }
        left.min(due.try_into().unwrap_or(u64::MAX))
    }

    /// When the next frame is due.
    fn next(&self) -> Option<u64> {
        let is_over = self.settings.frames == Some(self.total);
        let rate = self.settings.rate.filter(|_| !is_over)?;
        let time = (u128::from(self.made) * SECOND).div_ceil(rate.into());
        Some(self.start?.saturating_add(time.try_into().unwrap_or(u64::MAX)))
    }
}

impl App for Source {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let Some(sending) = &mut self.sending else { return false };
        let most = (BYTE_BUDGET / sending.settings.size).clamp(1, BURST);
        let room = most.saturating_sub(sending.held);
        let due = sending.due(burst.now());
        let new = due.min(room as u64) as usize;
        sending.has_more = due > new as u64;
        sending.made += new as u64;
        sending.total += new as u64;
        sending.pulled = sending.held + new;
        for _ in 0..new {
            self.counters.received.count(sending.settings.size);
        }
        let had_something = std::mem::take(&mut sending.has_moved) || new > 0;
        if sending.pulled == 0 {
            return had_something;
        }
        burst.limit_held(BURST);
        let frame = lease.private(std::mem::take(&mut sending.frame));
        let frames = std::iter::repeat_n(((), frame.into()), sending.pulled);
        burst.push_singles(frames, 0, |(), _| true);
        had_something
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let (Some(sending), Lease::Private(frame)) = (&mut self.sending, lease) else { return };
        sending.frame = frame;
        let was_held = std::mem::replace(&mut sending.held, outcomes.held());
        let in_the_way = if sending.has_more { sending.pulled } else { was_held };
        sending.has_moved = sending.held < in_the_way;
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, selection: &Selection, _: &mut Outputs<'_>) {
        self.counters[DropReason::SendOnly] += selection.len() as u64;
    }

    fn arm(&mut self) -> bool {
        // There is room for more.
        self.sending.as_ref().is_some_and(|sending| sending.has_moved)
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.sending.as_ref()?.next().filter(|due| *due > now)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let settings: &Settings = engine::settings(settings)?;
        Ok(self.set(settings.clone())?)
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        let Some(Sending { settings, total, held, .. }) = &self.sending else { return };
        numbers.own("held", "frames", *held as u64);
        if let Some(frames) = settings.frames {
            numbers.own("left", "frames", frames - total);
        }
    }

    fn stop(&mut self) {
        self.drop_held();
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
