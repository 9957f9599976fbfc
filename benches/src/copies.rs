//! The program `copies`: how much faster it is to copy frames once than twice, with nothing else to be done.
//!
//! A switch that copies once is ahead of one that copies twice by about this, as far as copying is what both do. Frames lie as in a throughput
//! cell of `peers`: a window of them each way, of which each is touched again only when all
//! others had their turn. The second copy is by way of buffers for one burst, as a switch with buffers of its own has them: they
//! stay in the processor's caches, if anything does.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use memory::{ReadSlice, WriteSlice};

use crate::statistics::Spread;

/// Frames of a window, each way.
const WINDOW: usize = 256;
/// Frames of a burst.
const BURST: usize = 32;
/// Bytes that a guest's buffer takes: frames are copied in such pieces.
const BUFFER: usize = 2048;
/// Bytes of the frames.
const SIZES: [usize; 4] = [64, 1518, 9000, 65_536];
/// Bytes that each turn moves.
const TURN: usize = 64 << 20;

/// Measure how much faster it is to copy frames once than twice.
#[derive(Debug, Parser)]
#[command(name = "copies")]
struct Options {
    /// Rounds, in each of which both have their turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// Runs the program `copies`, and gives its exit code.
pub fn main() -> ExitCode {
    let Options { rounds } = Options::parse();
    println!("{:>12} {:>14} {:>14}  ratio, least to most", "bytes", "once, ns", "twice, ns");
    for size in SIZES {
        let Some([once, twice, ratio]) = measure(size, rounds) else { return ExitCode::FAILURE };
        println!(
            "{size:>12} {:>14.1} {:>14.1}  {:.2}, {:.2} to {:.2}",
            once.median, twice.median, ratio.median, ratio.least, ratio.most
        );
    }
    ExitCode::SUCCESS
}

/// Nanoseconds for each frame with one copy and with two, and the second by the first.
fn measure(size: usize, rounds: u32) -> Option<[Spread; 3]> {
    let frames = 2 * WINDOW;
    // Not zeros, which would be no memory yet.
    let (from, mut to) = (vec![1; frames * size], vec![2; frames * size]);
    let mut own = vec![3; BURST * size];
    let turns = (TURN / (frames * size)).max(1);
    let mut time = |burst: &mut dyn FnMut(&[u8], &mut [u8])| {
        let start = Instant::now();
        for _ in 0..turns {
            let bursts = from.chunks(BURST * size).zip(to.chunks_mut(BURST * size));
            for (from, to) in bursts {
                burst(from, to);
            }
        }
        start.elapsed().as_nanos() as f64 / (turns * frames) as f64
    };
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        let once = time(&mut |from, to| copy(size, from, to));
        let twice = time(&mut |from, to| {
            copy(size, from, &mut own);
            copy(size, &own, to);
        });
        pairs.push((once, twice));
    }
    Some([
        Spread::of(pairs.iter().map(|(once, _)| *once))?,
        Spread::of(pairs.iter().map(|(_, twice)| *twice))?,
        Spread::of(pairs.iter().map(|(once, twice)| twice / once))?,
    ])
}

/// Copies frames of this size, as the switch does.
fn copy(size: usize, from: &[u8], to: &mut [u8]) {
    for (from, to) in from.chunks(size).zip(to.chunks_mut(size)) {
        for (from, to) in from.chunks(BUFFER).zip(to.chunks_mut(BUFFER)) {
            WriteSlice::from(to).copy_from(ReadSlice::from(from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_each_frame_is_copied() {
        for size in SIZES {
            let from: Vec<u8> = (0..3 * size).map(|at| (at % 251) as u8).collect();
            let mut to = vec![0; from.len()];
            copy(size, &from, &mut to);
            assert!(from == to, "{size}");
        }
    }
}
