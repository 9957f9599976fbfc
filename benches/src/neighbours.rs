//! The program `neighbours`: whether two processors are two.
//!
//! Those of a virtual machine may be two threads of one core, and its host may move them while it runs. Then each is
//! slower whenever the other one has something to do, and so is a switch on one beside a load on the other. So each look is of one
//! processor's speed at multiplying, by turns while the other one rests and while it does the same, and of how long a
//! cache line takes to the other one and back.

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
/// What two threads of one core have of it, at the most, when both multiply; two cores have much more.
const SHARED: f64 = 0.7;

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
    match looks(Options::parse().looks) {
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

/// What one look saw.
struct Look {
    /// Speed beside a busy processor, by that beside one that rests.
    speed: f64,
    /// Nanoseconds of a cache line to the other processor and back.
    round_trip: f64,
}

fn looks(count: u32) -> Result<Vec<Look>> {
    let [one, other] = two_processors()?;
    bind(one)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let alone = speed();
        let beside = beside(other, &multiply, speed)?;
        let line = AtomicU64::new(0);
        let answer = || {
            let asked = line.load(Ordering::Acquire);
            if asked % 2 == 1 {
                line.store(asked + 1, Ordering::Release);
            }
        };
        let round_trip = beside_line(other, &answer, &line)?;
        all.push(Look { speed: beside / alone, round_trip });
    }
    Ok(all)
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

/// How often a second this processor multiplies.
fn speed() -> f64 {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < PART {
        multiply();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Nanoseconds until the neighbour has answered.
fn beside_line(other: usize, answer: &(dyn Fn() + Sync), line: &AtomicU64) -> Result<f64> {
    beside(other, answer, || {
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < PART {
            for _ in 0..100 {
                let asked = line.load(Ordering::Relaxed) + 1;
                line.store(asked, Ordering::Release);
                while line.load(Ordering::Acquire) == asked {}
            }
            count += 100;
        }
        start.elapsed().as_nanos() as f64 / f64::from(count)
    })
}

fn print(looks: &[Look]) {
    let (shared, own): (Vec<&Look>, Vec<&Look>) = looks.iter().partition(|it| it.speed < SHARED);
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
