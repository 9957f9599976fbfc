//! The program `peers`: ringway beside what its users would otherwise run: DPDK's testpmd, Open vSwitch with DPDK, and
//! QEMU's taps with a bridge of Linux. The switch has one processor and the generator another, as `report.rs` tells in
//! full.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringway_tests::binary;

use crate::interrupt::Interrupted;
use crate::machine::Machine;
use crate::matrix::{Case, Cell, Switch};
use crate::means::Means;
use crate::measure::Measurement;
use crate::neighbours::Neighbours;
use crate::results::{Results, Sample};
use crate::switches::Place;
use crate::{drawings, interrupt, machine, matrix, means, report};

const ROUNDS: u32 = 5;
const SECONDS: f64 = 2.0;
/// A quick run is over within a minute.
const QUICK_ROUNDS: u32 = 3;
const QUICK_SECONDS: f64 = 0.7;
/// A switch and its generators are up and down again within about this time; for the first estimate.
const OVERHEAD: f64 = 3.0;

const EXAMPLES: &str = "\
Examples:
  A look, in a minute:
      peers --quick
  Everything, which takes more than an hour, written to benches/RESULTS.md:
      peers --write
  Parts of it, measured anew and merged with what was found before:
      peers --only throughput/64/ --only tcp --write
  What was interrupted:
      peers --resume --write";

/// Measure ringway beside what its users would otherwise run.
#[derive(Debug, Parser)]
#[command(name = "peers", after_help = EXAMPLES)]
struct Options {
    /// A small part, in a minute: ringway and testpmd, 64 and 1518 bytes
    #[arg(long)]
    quick: bool,
    /// Only what has all words of PATTERN in its name (see --list); several are added together
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// How often each is measured, in turns [default: 5, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long frames are counted each time [default: 2, or 0.7 with --quick]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// List what would be measured, and what is left out and why
    #[arg(long)]
    list: bool,
    /// Measure only rounds that the results do not have yet
    #[arg(long)]
    resume: bool,
    /// Measure nothing: only report what was found before
    #[arg(long, conflicts_with_all = ["resume", "list"])]
    report: bool,
    /// Write RESULTS.md and its drawings, here or into DIRECTORY [default: benches]
    #[arg(long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true)]
    write: Option<Option<PathBuf>>,
    /// Where raw results are kept [default: peers/results.json in cargo's target directory, quick.json with --quick]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

/// How long something is measured.
pub fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0.1 to 600".to_owned())
}

/// What the program does.
pub fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted: --resume goes on from here");
            interrupt::exit_code()
        }
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything was measured that was not left out.
fn run(options: &Options) -> Result<bool> {
    interrupt::watch()?;
    let cases = if options.quick { Case::quick() } else { Case::all() };
    let named = |cell: &Cell| {
        let small = !options.quick || matches!(cell.switch, Switch::RingwayPoll | Switch::Testpmd);
        small && cell.is_named_by(&options.only)
    };
    let cells: Vec<Cell> = matrix::cells(&cases).into_iter().filter(named).collect();
    ensure!(!cells.is_empty(), "nothing has such a name: --list shows all");
    if options.list {
        let means = Means::find(false)?;
        for cell in &cells {
            match means.left_out(cell) {
                Some(why) => println!("{cell}  (left out: {why})"),
                None => println!("{cell}"),
            }
        }
        return Ok(true);
    }
    let mut results = Results::open(&results_file(options)?)?;
    let done = if options.report { Ok(true) } else { measure_all(options, &cells, &mut results) };
    // What was measured before something went wrong is worth as much as ever.
    if let Err(error) = &done
        && !error.is::<Interrupted>()
    {
        return done;
    }
    println!("{}", report::tables(&results));
    println!("## What is wanted\n\n{}", report::targets(&results, false));
    for (title, text) in
        [("Left out", report::left_out(&results)), ("Doubts", report::doubts(&results))]
    {
        if !text.is_empty() {
            println!("## {title}\n\n{text}");
        }
    }
    if let Some(directory) = &options.write {
        let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
        write(&results, &directory.clone().unwrap_or_else(usual))?;
    }
    done
}

fn results_file(options: &Options) -> Result<PathBuf> {
    if let Some(path) = &options.results {
        return Ok(path.clone());
    }
    // `target/release/ringway`.
    let target = binary()?.ancestors().nth(2).context("a program in no directory")?;
    let name = if options.quick { "quick.json" } else { "results.json" };
    Ok(target.join("peers").join(name))
}

/// Cells of the same case and switch, which are measured together.
fn group(cells: &[Cell]) -> Vec<Vec<Cell>> {
    let mut groups: Vec<Vec<Cell>> = Vec::new();
    for cell in cells {
        match groups.last_mut() {
            Some(last) if (last[0].case, last[0].switch) == (cell.case, cell.switch) => {
                last.push(*cell);
            }
            _ => groups.push(vec![*cell]),
        }
    }
    groups
}

fn measure_all(options: &Options, cells: &[Cell], results: &mut Results) -> Result<bool> {
    let means = Means::find(true)?;
    let rounds = options.rounds.unwrap_or(if options.quick { QUICK_ROUNDS } else { ROUNDS });
    let usual = if options.quick { QUICK_SECONDS } else { SECONDS };
    let seconds = options.seconds.unwrap_or(usual);

    // What there is to do, case by case; in each, round by round, with the switches in turns.
    let mut wanted = Vec::new();
    for cell in cells {
        if !options.resume {
            results.forget(cell);
        }
        match means.left_out(cell) {
            Some(why) => {
                eprintln!("left out: {cell}: {why}");
                results.leave_out(cell, &why)?;
            }
            None => wanted.push(*cell),
        }
    }
    let mut work: Vec<(u32, Vec<Cell>)> = Vec::new();
    let groups = group(&wanted);
    for case in groups.chunk_by(|one, other| one[0].case == other[0].case) {
        for round in 1..=rounds {
            let first = round as usize % case.len();
            for group in case[first..].iter().chain(&case[..first]) {
                let new = |cell: &&Cell| !results.has(cell, round);
                let group: Vec<Cell> = group.iter().filter(new).copied().collect();
                if !group.is_empty() {
                    work.push((round, group));
                }
            }
        }
    }

    binary()?;
    let hugepages = match means::reserve_hugepages(&means) {
        Ok(pages) => Some(pages),
        Err(error) => {
            eprintln!("left out: hugepages, so DPDK has ordinary memory: {error:#}");
            None
        }
    };
    let said = if hugepages.is_some() { "yes" } else { "none: ordinary memory" };
    let machine = Machine::here(said.to_owned())?;
    let frequency_hz = machine.frequency_hz as f64;
    results.set_machine(machine);
    let [switch, generator] = means.processors();
    let place = Place { switch, generator, hugepages };
    let neighbours = Neighbours::find([switch, generator])?;
    let measurement = Measurement { place, seconds, frequency_hz, neighbours };

    let build = machine::build();
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut progress = Progress::new(&work, seconds);
    let mut whole = true;
    for (round, group) in &work {
        let (case, switch) = (group[0].case, group[0].switch);
        progress.begin(&format!("round {round} of {rounds}: {case}, {}", switch.title()));
        let generators: Vec<_> = group.iter().map(|cell| cell.generator).collect();
        let found = match measurement.run(case, switch, &generators) {
            Ok(found) => found,
            Err(error) => {
                let error = format!("{error:#}");
                let failed = |generator| (generator, Err(anyhow::Error::msg(error.clone())));
                generators.into_iter().map(failed).collect()
            }
        };
        // What was going on when the signal came was not measured, and has not failed.
        interrupt::check()?;
        for (generator, found) in found {
            let cell = Cell::new(case, switch, generator);
            match found {
                Ok(figures) => {
                    let round = *round;
                    let sample = Sample { run, round, figures, build: build.clone(), seconds };
                    results.add(&cell, sample)?;
                }
                Err(error) => {
                    whole = false;
                    let said = format!("{error:#}");
                    // What a program logged comes first, and what went wrong with it last.
                    let line = said.lines().rfind(|line| !line.trim().is_empty());
                    let line = line.unwrap_or_default();
                    progress.say(&format!("failed: {cell}: {said}"));
                    results.fail(&cell, *round, line)?;
                }
            }
        }
        progress.end(group.len());
    }
    progress.clear();
    Ok(whole)
}

/// Writes RESULTS.md and its drawings.
fn write(results: &Results, directory: &Path) -> Result<()> {
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written: {}", path.display());
        Ok::<_, anyhow::Error>(())
    };
    let drawings = drawings::all(results);
    for (name, _, svg) in &drawings {
        put(name, svg)?;
    }
    let names: Vec<(&str, &str)> =
        drawings.iter().map(|(name, title, _)| (*name, *title)).collect();
    put("RESULTS.md", &report::file(results, &names))
}

/// What runs now, how far, and for how long still: one line that is drawn anew, or a line each where nobody watches.
struct Progress {
    all: usize,
    done: usize,
    seconds: f64,
    start: Instant,
}

impl Progress {
    fn new(work: &[(u32, Vec<Cell>)], seconds: f64) -> Progress {
        let all = work.iter().map(|(_, group)| group.len()).sum();
        Progress { all, done: 0, seconds, start: Instant::now() }
    }

    fn left(&self) -> Duration {
        let each = match self.done {
            0 => self.seconds + OVERHEAD,
            done => self.start.elapsed().as_secs_f64() / done as f64,
        };
        Duration::from_secs_f64(each * (self.all - self.done) as f64)
    }

    fn begin(&self, what: &str) {
        let minutes = self.left().as_secs_f64() / 60.0;
        let line = format!("[{}/{}] {what}; about {minutes:.1} min left", self.done + 1, self.all);
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r{line}\x1b[K");
            let _ = stderr.flush();
        } else {
            let _ = writeln!(stderr, "{line}");
        }
    }

    fn end(&mut self, count: usize) {
        self.done += count;
    }

    fn say(&self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    fn clear(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Generator, Load, Size};

    #[test]
    fn the_examples_of_the_help_are_valid() {
        let lines = EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("peers"));
        let parsed = lines.map(|line| {
            // As a shell takes quoted words together.
            let words = line.split('\'').enumerate().flat_map(|(number, part)| {
                if number % 2 == 1 { vec![part] } else { part.split_whitespace().collect() }
            });
            Options::try_parse_from(std::iter::once("peers").chain(words))
        });
        assert_eq!(parsed.filter(Result::is_ok).count(), 4);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [&["--rounds", "0"][..], &["--seconds", "nan"], &["--report", "--resume"]] {
            let line = ["peers"].iter().chain(words);
            assert!(Options::try_parse_from(line).is_err(), "{words:?}");
        }
    }

    #[test]
    fn generators_of_a_switch_are_measured_together() {
        let case = Case::Throughput(Load::of(Size::Bytes(64)));
        let groups = group(&matrix::cells(&[case, Case::Tcp]));
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2, 2, 2, 1, 1, 1, 1]);
        assert_eq!(groups[0][1].generator, Generator::Testpmd);
    }
}
