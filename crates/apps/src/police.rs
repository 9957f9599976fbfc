//! Polices a port: what it sends and gets beyond its rates is dropped.
//!
//! Each direction has limits of its own, in bit/s, in frames/s, both or none. A frame passes when the
//! [`bucket`](crate::bucket)s of all limits of its direction have enough for it ("green", RFC 2697, section 3,
//! colour-blind mode), and otherwise it is dropped and takes nothing out of any.
//!
//! What counts is what is on a wire after segmentation, whoever does that: a frame of 64 KiB that is still
//! to be cut costs its bytes with the headers of each segment, and as many frames as there are segments. The frame
//! check sequence, the preamble and the gap between frames do not count.
//!
//! A frame that passes, but whose receiver is full and holds it, will come again: it is paid for when it
//! is delivered, or dropped by its receiver.

use std::any::Any;

use engine::{App, Burst, Counters, DropReason, Fault, Numbers, Outputs, Selection};
use wire::virtio::WireCost;

use crate::bucket::{Bucket, Level, Limit, LimitError, MAX_BURST};
use crate::sides::{NETWORK, PORT, opposite, passed_on};

/// The largest burst of a [`BitLimit`], in bytes: a little more than a gibibyte.
pub const MAX_BURST_BYTES: u64 = MAX_BURST / 8;

/// What a port may send and get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of what the port sends.
    pub from_port: Limits,
    /// Of what is sent to the port.
    pub to_port: Limits,
}

/// The limits of one direction. One that is not there limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the bits of frames.
    pub bits: Option<BitLimit>,
    /// Of frames, however long.
    pub frames: Option<FrameLimit>,
}

/// A limit of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitLimit {
    /// Bits a second, at least 1.
    pub rate: u64,
    /// Bytes that may pass at once: the committed burst size. At least 1, at most [`MAX_BURST_BYTES`].
    ///
    /// Frames that are longer pass as well, but only when nothing has passed for as long as the burst takes at
    /// this rate: senders that leave segmentation to us need 64 KiB at least.
    pub burst: u64,
}

/// A limit of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimit {
    /// Frames a second, at least 1.
    pub rate: u64,
    /// Frames that may pass at once, at least 1, at most [`MAX_BURST`].
    pub burst: u64,
}

impl BitLimit {
    fn limit(self) -> Result<Limit, LimitError> {
        if self.burst > MAX_BURST_BYTES {
            return Err(LimitError::BurstTooLarge { most: MAX_BURST_BYTES });
        }
        Limit { rate: self.rate, burst: self.burst * 8 }.check()
    }
}

impl FrameLimit {
    fn limit(self) -> Result<Limit, LimitError> {
        Limit { rate: self.rate, burst: self.burst }.check()
    }
}

impl Settings {
    /// The limits of both directions, by the side that frames come from.
    fn limits(&self) -> Result<[[Option<Limit>; 2]; 2], LimitError> {
        let limits = |limits: &Limits| {
            let bits = limits.bits.map(BitLimit::limit).transpose()?;
            let frames = limits.frames.map(FrameLimit::limit).transpose()?;
            Ok([bits, frames])
        };
        let mut of_sides = [[None; 2]; 2];
        of_sides[PORT] = limits(&self.from_port)?;
        of_sides[NETWORK] = limits(&self.to_port)?;
        Ok(of_sides)
    }
}

/// The app, or its part on one of several workers.
pub struct Police {
    /// By the side that frames come from.
    directions: [Direction; 2],
    counters: Counters,
}

impl Police {
    /// An app with full buckets.
    pub fn new(settings: &Settings) -> Result<Self, LimitError> {
        let [port, network] = settings.limits()?;
        let directions = [Direction::new(port)?, Direction::new(network)?];
        Ok(Self { directions, counters: Counters::default() })
    }

    /// A part for another worker, which shares the buckets.
    pub fn part(&self) -> Self {
        let directions = self.directions.each_ref().map(Direction::part);
        Self { directions, counters: Counters::default() }
    }

    /// Makes this part go by other limits; all parts are to be. What the buckets hold stays as far as it
    /// can: see [`Bucket::set`]. With an error nothing has changed.
    fn set(&mut self, settings: &Settings) -> Result<(), LimitError> {
        let limits = settings.limits()?;
        for (direction, [bits, frames]) in self.directions.iter_mut().zip(limits) {
            direction.bits.set(bits)?;
            direction.frames.set(frames)?;
        }
        Ok(())
    }
}

/// The buckets of one direction.
struct Direction {
    bits: Bucket,
    frames: Bucket,
}

impl Direction {
    fn new([bits, frames]: [Option<Limit>; 2]) -> Result<Self, LimitError> {
        Ok(Self { bits: Bucket::new(bits)?, frames: Bucket::new(frames)? })
    }

    fn part(&self) -> Self {
        Self { bits: self.bits.part(), frames: self.frames.part() }
    }

    fn is_limited(&self) -> bool {
        self.bits.is_limited() || self.frames.is_limited()
    }

    fn settle(&mut self, WireCost { frames, bytes }: WireCost) {
        self.bits.settle(bytes * 8);
        self.frames.settle(frames);
    }
}

/// What one frame costs.
#[inline]
fn cost(burst: &Burst<'_>, index: usize) -> WireCost {
    let frame = burst.frame(index);
    frame.offload.cost(frame.head, frame.len)
}

/// What frames cost together.
#[inline]
fn cost_of(burst: &Burst<'_>, frames: impl Iterator<Item = usize>) -> WireCost {
    frames.fold(WireCost::default(), |mut sum, index| {
        sum += cost(burst, index);
        sum
    })
}

/// Those of the frames for which there is enough, one after the other.
#[inline(never)]
fn conforming(
    burst: &Burst<'_>,
    selection: &Selection,
    (mut bits, mut packets): (Level, Level),
) -> Selection {
    let mut passing = Selection::default();
    for index in selection.iter() {
        let WireCost { frames, bytes } = cost(burst, index);
        if bits.has(bytes * 8) && packets.has(frames) {
            bits.take(bytes * 8);
            packets.take(frames);
            passing.push(index);
        }
    }
    passing
}

impl App for Police {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        let Some(direction) = self.directions.get_mut(input) else {
            self.counters[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        let output = opposite(input);
        if !direction.is_limited() {
            return outputs.push(output, burst, selection);
        }
        let levels = (direction.bits.open(burst.now()), direction.frames.open(burst.now()));
        let all = cost_of(burst, selection.iter());
        let (mut cost, mut some) = (all, None);
        if !levels.0.has_all(all.bytes * 8) || !levels.1.has_all(all.frames) {
            let passing = conforming(burst, selection, levels);
            let dropped = selection.len() - passing.len();
            self.counters[DropReason::Policed] += dropped as u64;
            cost = cost_of(burst, passing.iter());
            some = Some(passing);
        }
        let passing = some.as_ref().unwrap_or(selection);
        let held = burst.held();
        outputs.push(output, burst, passing);
        if burst.held() > held {
            let gone = passing.iter().filter(|index| !burst.is_held(*index));
            cost = cost_of(burst, gone);
        }
        direction.settle(cost);
    }

    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        Ok(self.set(engine::settings(settings)?)?)
    }

    fn report(&self, now: u64, numbers: &mut Numbers) {
        for (side, direction) in ["from the port", "to the port"].iter().zip(&self.directions) {
            for (unit, bucket) in [("bits", &direction.bits), ("frames", &direction.frames)] {
                if let Some(left) = bucket.left(now) {
                    numbers.shared(format!("left {side}"), unit, left);
                }
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
