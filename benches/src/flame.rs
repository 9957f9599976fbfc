//! The program `flame`: where the cycles of a frame go.
//!
//! # How it works
//!
//! `ringway run` polls on one processor, `ringway bench` loads it from another, and `perf` looks where the worker is, so
//! many times a second. There are no stacks to unwind: nearly all of the busy path is inlined into a few functions, and
//! which function an address was written in, and where that is inlined, is in the debugging information. So a chain ends
//! at a compiled function, and that is called from `breathe`, in one way or another.
//!
//! A worker that polls is in its loop while nothing comes, and in each port's look whether there is something. That is in
//! the figures of a frame as well, so they say what a frame takes only where the generator is the faster one.
//!
//! | module      | what it holds                                        |
//! | ----------- | ---------------------------------------------------- |
//! | [`samples`] | addresses, by `perf`                                 |
//! | [`chains`]  | the inlined functions at each, by `addr2line`        |
//! | [`names`]   | short names of functions                             |
//! | [`stages`]  | what part of a frame's way a chain belongs to        |
//! | [`drawing`] | the picture                                          |

mod chains;
mod drawing;
mod names;
mod samples;
mod stages;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use clap::Parser;
use ringway_tests::binary;

use crate::generators::{Task, WARM_UP, pair};
use crate::interrupt::{self, Interrupted};
use crate::machine;
use crate::matrix::{Load, Size, Switch};
use crate::means;
use crate::results::Figures;
use crate::switches::{Place, Running, Work};
use chains::Chains;
use names::shorten;
use samples::Sample;
use stages::Stage;

/// The load begins this much before the samples, and ends this much after them: ports have to come up, and `perf` too.
const LEAD: f64 = 0.7;
/// Functions in the table.
const FUNCTIONS: usize = 10;

/// Draw where the cycles of a frame go, as a flame graph of the worker's functions.
#[derive(Debug, Parser)]
#[command(name = "flame")]
struct Options {
    /// Bytes of a frame without the Ethernet checksum, or imix, or tso
    #[arg(long, default_value = "64", value_parser = size)]
    size: Size,
    /// Use packed rings
    #[arg(long)]
    packed: bool,
    /// How long samples are taken
    #[arg(long, value_name = "S", default_value = "3", value_parser = crate::peers::seconds)]
    seconds: f64,
    /// Where the drawing goes
    #[arg(long, value_name = "FILE", default_value = "flame.svg")]
    output: PathBuf,
}

fn size(text: &str) -> Result<Size, String> {
    match text {
        "imix" => Ok(Size::Imix),
        "tso" => Ok(Size::Tso),
        _ => {
            let bytes = text.parse().ok().filter(|bytes| *bytes >= 64);
            bytes.map(Size::Bytes).ok_or_else(|| "expected 64 to 65535, imix or tso".to_owned())
        }
    }
}

/// What the program does.
pub fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flame: {error:#}");
            if error.is::<Interrupted>() { interrupt::exit_code() } else { ExitCode::FAILURE }
        }
    }
}

fn run(options: &Options) -> Result<()> {
    interrupt::watch()?;
    samples::check()?;
    chains::check()?;
    let [switch, generator, ..] = means::cpus()?[..] else {
        bail!("switch and generator need a processor each, and there is one")
    };
    let program = binary()?;
    let place = Place { switch, generator, hugepages: None };
    let load = Load { packed: options.packed, ..Load::of(options.size) };
    let directory = tempfile::Builder::new().prefix("flame-").tempdir()?;

    let work = Work { ports: 2, size: options.size, addresses: 2 };
    let running = Running::start(Switch::RingwayPoll, &place, work)?;
    let frequency_hz = machine::frequency_hz()? as f64;
    let task = Task {
        place: &place,
        sockets: pair(running.sockets())?,
        switch: running.pid(),
        seconds: options.seconds + 2.0 * LEAD,
        frequency_hz,
    };
    let pid = running.pid();
    let take = || {
        interrupt::sleep(Duration::from_secs_f64(WARM_UP + LEAD))?;
        samples::take(pid, program, Duration::from_secs_f64(options.seconds), directory.path())
    };
    let (figures, samples) = thread::scope(|scope| {
        let taking = scope.spawn(take);
        (task.bench(&load), taking.join())
    });
    let figures = figures?;
    let samples = samples.ok().context("the thread that takes samples panicked")??;
    drop(running);

    let chains = chains::resolve(program, &samples, directory.path())?;
    let costs = Costs::of(&figures, frequency_hz);
    let title = format!(
        "{load}: {:.2} million frames a second, {:.0} cycles or {:.1} ns each; {} samples of the worker",
        figures["frames_per_second"] / 1e6,
        costs.cycles,
        costs.nanoseconds,
        samples.len()
    );
    let svg = drawing::draw(&chains, &title, costs.cycles);
    let path = options.output.display();
    fs::write(&options.output, svg).with_context(|| format!("cannot write {path}"))?;
    eprintln!("written: {path}");
    println!("{title}\n\n{}\n{}", by_function(&samples, &costs), by_stage(&chains, &costs));
    Ok(())
}

/// What a frame takes of the switch's processor.
#[derive(Clone, Copy, Debug)]
struct Costs {
    cycles: f64,
    nanoseconds: f64,
}

impl Costs {
    fn of(figures: &Figures, frequency_hz: f64) -> Costs {
        let cycles = figures["cycles_per_frame"];
        Costs { cycles, nanoseconds: 1e9 * cycles / frequency_hz }
    }
}

/// The functions that the compiler made, and how much of the time each has.
fn by_function(samples: &[Sample], costs: &Costs) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for sample in samples {
        let name = shorten(&sample.symbol);
        let name = if sample.is_kernel { format!("{name} (kernel)") } else { name };
        *counts.entry(name).or_default() += 1;
    }
    let mut rows: Vec<(String, u64)> = counts.into_iter().collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    rows.truncate(FUNCTIONS);
    table("function", &rows, samples.len() as u64, costs)
}

fn by_stage(chains: &Chains, costs: &Costs) -> String {
    let mut counts: BTreeMap<Stage, u64> = BTreeMap::new();
    for (chain, count) in chains {
        *counts.entry(Stage::of(chain)).or_default() += count;
    }
    let row = |stage: Stage| (stage.title().to_owned(), counts.get(&stage).copied().unwrap_or(0));
    table("stage", &Stage::ALL.map(row), chains.values().sum(), costs)
}

fn table(what: &str, rows: &[(String, u64)], all: u64, costs: &Costs) -> String {
    let mut text = format!("{what:<36} {:>7} {:>9} {:>9}\n", "share", "ns", "cycles");
    for (name, count) in rows {
        let share = *count as f64 / all.max(1) as f64;
        let (percent, nanoseconds) = (100.0 * share, share * costs.nanoseconds);
        let cycles = share * costs.cycles;
        let _ = writeln!(text, "{name:<36} {percent:>5.1} % {nanoseconds:>9.2} {cycles:>9.1}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chains::Frame;
    use super::*;

    const COSTS: Costs = Costs { cycles: 200.0, nanoseconds: 80.0 };

    #[test]
    fn the_largest_functions_come_first() {
        let sample =
            |symbol: &str| Sample { offset: Some(1), is_kernel: false, symbol: symbol.into() };
        let samples = ["a::b::pull", "a::b::push", "<a::B as c::D>::pull", "<a::B as e::F>::pull"];
        let text = by_function(&samples.map(sample), &COSTS);
        let line = text.lines().nth(1).unwrap_or_default();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            ["B::pull", "50.0", "%", "40.00", "100.0"]
        );
        let many: Vec<Sample> = (0..20).map(|number| sample(&format!("f{number}"))).collect();
        assert_eq!(by_function(&many, &COSTS).lines().count(), 1 + FUNCTIONS);
    }

    #[test]
    fn every_stage_has_its_line() {
        let bridge = vec![Frame::new("Bridge::push", "apps::bridge")];
        let text = by_stage(&Chains::from([(bridge, 1), (Vec::new(), 3)]), &COSTS);
        assert_eq!(text.lines().count(), 1 + Stage::ALL.len());
        assert!(text.contains("25.0 %     20.00      50.0"), "{text}");
        assert!(text.contains("75.0 %     60.00     150.0"), "{text}");
    }

    #[test]
    fn sizes_are_those_of_the_generator() {
        assert_eq!(size("1518"), Ok(Size::Bytes(1518)));
        assert_eq!(size("imix"), Ok(Size::Imix));
        assert!(size("63").is_err() && size("x").is_err());
    }
}
