//! What a second worker costs the first: cycles for each frame with two busy pairs of guests on two
//! workers, next to one pair on one.
//!
//! `cargo bench -p ringway-guest --bench workers` measures; under `cargo test` it runs for a moment,
//! so that it cannot rot. The workers are those of one switch: the bridge's table is shared, and so are
//! the ports. Drivers run on the workers' threads, between two breaths, and are not counted; so
//! two processors are enough. For comparison, the same two pairs on two switches that share nothing
//! say what the machine itself makes of two busy processors.

mod switch;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use switch::{Frame, Guest, Part, Traffic, address, report};
use wire::virtio::Features;

/// Frames that each guest sends in one breath.
const BURST: usize = 32;
const SIZES: [usize; 2] = [64, 1514];
const FEATURES: Features =
    Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);

fn main() {
    let asked_for = |flag: &str| std::env::args().any(|argument| argument == flag);
    // What a test runner asks of a program without a harness.
    if asked_for("--list") {
        if !asked_for("--ignored") {
            println!("workers: test");
        }
        return;
    }
    // What cargo says when it measures.
    let (rounds, breaths) = if asked_for("--bench") { (200, 1000) } else { (2, 10) };
    for size in SIZES {
        // The three take turns, so that what else the machine does meets all of them.
        let (mut alone, mut shared, mut apart) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            alone.push(measure(parts(1), size, breaths));
            shared.push(measure(parts(2), size, breaths));
            let switches = [(); 2].map(|()| parts(1)).into_iter().flatten();
            apart.push(measure(switches.collect(), size, breaths));
        }
        let [alone, shared, apart] = [alone, shared, apart].map(median);
        println!(
            "{size}-byte frames: one worker {alone:.1} ns each, two workers {shared:.1} ns, two \
             switches {apart:.1} ns"
        );
        println!("  two workers : one worker = {:.3} (at most 1.1)", shared / alone);
        println!("  two workers : two switches = {:.3}", shared / apart);
    }
}

/// The parts of one switch, with a pair of guests for each.
fn parts(workers: usize) -> Vec<Part> {
    Part::all(workers, (0..2 * workers).map(|_| Guest::new(FEATURES, 1)).collect(), None, &[])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Has all of them breathe at the same time, and returns nanoseconds for each frame, on average.
fn measure(workers: Vec<Part>, size: usize, breaths: usize) -> f64 {
    let start = Arc::new(Barrier::new(workers.len()));
    let threads = workers.into_iter().map(|mut worker| {
        let start = start.clone();
        thread::spawn(move || {
            let [one, two] = worker.ports.map(|port| address(port, 0));
            let frames =
                [(two, one), (one, two)].map(|(to, from)| Frame::new(to, from, size, false));
            let traffic = Traffic { frames: frames.map(|frame| vec![frame]), burst: BURST };
            exchange(&mut worker, &traffic, breaths / 10);
            start.wait();
            // A part that is dropped takes its port down on all workers.
            (exchange(&mut worker, &traffic, breaths), worker)
        })
    });
    let count = threads.len() as f64;
    let threads: Vec<_> = threads.collect();
    let done: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("the worker's thread")).collect();
    done.iter().map(|(each, _)| each).sum::<f64>() / count
}

/// Returns nanoseconds of breathing for each frame.
fn exchange(part: &mut Part, traffic: &Traffic, breaths: usize) -> f64 {
    let mut spent = Duration::ZERO;
    part.exchange(traffic, breaths, |graph, now| {
        let start = Instant::now();
        graph.breathe(now, report);
        spent += start.elapsed();
    });
    spent.as_nanos() as f64 / (2 * BURST * breaths) as f64
}
