//! The program `neighbours`: whether two processors are two.
//!
//! Those of a virtual machine may be two threads of one core, and its host may move them while it runs. Then each is
//! slower whenever the other one has something to do, and so is a switch on one beside a load on the other. So each look is of one
//! processor's speed at multiplying, by turns while the other one rests and while it does the same, and of how long a
//! cache line takes to the other one and back.

use std::cell::Cell;
use std::hint::{black_box, spin_loop};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use ringway_tests::{bind, two_processors};

use crate::statistics::Spread;

/// How long each part of a look takes.
const PART: Duration = Duration::from_millis(60);
/// The same between measurements.
const SHORT_PART: Duration = Duration::from_millis(4);
/// Looks before a measurement, and after it.
const LOOKS: u32 = 4;
/// Looks that find out how near the processors come to each other.
const FIRST_LOOKS: u32 = 40;
/// What two threads of one core have of it, at the most, when both multiply; two cores have much more.
const SHARED: f64 = 0.7;
/// Processors are apart when a cache line takes so many times as long as it does at best.
const APART: f64 = 2.5;

/// Measure how much two processors slow each other down.
#[derive(Debug, Parser)]
#[command(name = "neighbours")]
struct Options {
    /// How many looks: five a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    looks: u32,
}

/// Runs the program `neighbours`, and gives its exit code.
pub fn main() -> ExitCode {
    let options = Options::parse();
    match two_processors().and_then(|processors| looks(processors, options.looks, PART)) {
        Ok(looks) => {
            print(&looks);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("neighbours: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Two processors, and how near they are to each other at best. If there is only one, there is nothing to see, and that is usual.
pub struct Neighbours {
    processors: [usize; 2],
    /// Nanoseconds of a cache line there and back, of all looks until now at which each was a core of its own.
    least: Cell<f64>,
}

impl Neighbours {
    /// Finds out how near they are.
    pub fn find(processors: [usize; 2]) -> Result<Neighbours> {
        let neighbours = Neighbours { processors, least: Cell::new(f64::INFINITY) };
        looks(processors, FIRST_LOOKS, SHORT_PART)?.iter().for_each(|look| neighbours.note(look));
        Ok(neighbours)
    }

    /// Whether each is a core of its own just now, and as near to the other one as usual.
    pub fn are_usual(&self) -> Result<bool> {
        let looks = looks(self.processors, LOOKS, SHORT_PART)?;
        looks.iter().for_each(|look| self.note(look));
        Ok(looks.iter().all(|look| self.is_usual(look)))
    }

    /// Two threads of one core are nearer than two cores ever are.
    fn note(&self, look: &Look) {
        if look.has_own_core() {
            self.least.set(self.least.get().min(look.round_trip));
        }
    }

    fn is_usual(&self, look: &Look) -> bool {
        look.has_own_core() && look.round_trip < APART * self.least.get()
    }
}

/// What one look saw.
struct Look {
    /// Speed beside a busy processor, by that beside one that rests.
    speed: f64,
    /// Nanoseconds of a cache line to the other processor and back.
    round_trip: f64,
}

impl Look {
    fn has_own_core(&self) -> bool {
        self.speed >= SHARED
    }
}

/// Looks, one after the other. Of all times the median counts: others may have something to do there as well, and then it is
/// few of them that are longer.
fn looks([one, other]: [usize; 2], count: u32, part: Duration) -> Result<Vec<Look>> {
    if one == other {
        return Ok(Vec::new());
    }
    let look = || -> Result<Look> {
        let alone = median_time(part, multiply);
        let beside = beside(other, &multiply, || median_time(part, multiply))?;
        let line = AtomicU64::new(0);
        let answer = || {
            let asked = line.load(Ordering::Acquire);
            if asked % 2 == 1 {
                line.store(asked + 1, Ordering::Release);
            }
        };
        let round_trips = self::beside(other, &answer, || median_time(part, || ask(&line)))?;
        Ok(Look { speed: alone / beside, round_trip: round_trips / f64::from(ROUND_TRIPS) })
    };
    // Of its own, so that whoever asks stays where it is.
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            bind(one)?;
            (0..count).map(|_| look()).collect()
        });
        looking.join().expect("it does not panic")
    })
}

/// Measures while another processor does this again and again.
fn beside<R>(other: usize, work: &(dyn Fn() + Sync), measure: impl FnOnce() -> R) -> Result<R> {
    let (is_there, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let bound = bind(other);
            is_there.store(true, Ordering::Release);
            while bound.is_ok() && !is_over.load(Ordering::Relaxed) {
                work();
            }
            bound
        });
        while !is_there.load(Ordering::Acquire) {
            spin_loop();
        }
        let result = measure();
        is_over.store(true, Ordering::Relaxed);
        neighbour.join().expect("it does not panic")?;
        Ok(result)
    })
}

/// Eight multiplications that do not wait for each other, many times.
fn multiply() {
    let mut numbers = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for round in 0..2000 {
        numbers.iter_mut().for_each(|it| *it = black_box(it.wrapping_mul(3) ^ round));
    }
    black_box(numbers);
}

/// Of a line, each time.
const ROUND_TRIPS: u32 = 50;

/// Has the neighbour answer some times.
fn ask(line: &AtomicU64) {
    for _ in 0..ROUND_TRIPS {
        let asked = line.load(Ordering::Relaxed) + 1;
        line.store(asked, Ordering::Release);
        while line.load(Ordering::Acquire) == asked {}
    }
}

/// Nanoseconds that something takes, done again and again for a while.
fn median_time(part: Duration, work: impl Fn()) -> f64 {
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < part {
        let before = Instant::now();
        work();
        times.push(before.elapsed().as_nanos() as f64);
    }
    Spread::of(times).map_or(f64::NAN, |times| times.median)
}

fn print(looks: &[Look]) {
    let (shared, own): (Vec<&Look>, Vec<&Look>) = looks.iter().partition(|it| !it.has_own_core());
    for (what, looks) in [("a core of its own", own), ("half of a core", shared)] {
        let speed = Spread::of(looks.iter().map(|it| it.speed));
        let round_trip = Spread::of(looks.iter().map(|it| it.round_trip));
        print!("{:>4} looks: beside a busy one it has {what}", looks.len());
        if let (Some(speed), Some(trip)) = (speed, round_trip) {
            print!(
                " ({:.2} of its speed, {:.2} to {:.2}); a line there and back takes {:.0} ns, {:.0} to {:.0}",
                speed.median, speed.least, speed.most, trip.median, trip.least, trip.most
            );
        }
        println!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_usual_that_are_two_and_near() {
        let neighbours = Neighbours { processors: [0, 1], least: Cell::new(f64::INFINITY) };
        // Threads of one core say nothing of how near two cores are.
        for (speed, round_trip) in [(1.0, 300.0), (0.5, 30.0), (1.0, 100.0), (1.0, 200.0)] {
            neighbours.note(&Look { speed, round_trip });
        }
        for (speed, round_trip, usual) in [
            (1.0, 100.0, true),
            (0.71, 249.0, true),
            (0.69, 60.0, false),
            (1.0, 250.0, false),
            (1.0, f64::NAN, false),
            (f64::NAN, 100.0, false),
        ] {
            let look = Look { speed, round_trip };
            assert_eq!(neighbours.is_usual(&look), usual, "{speed}, {round_trip}");
        }
    }
}
