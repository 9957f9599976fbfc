//! The program `host`: the tap port beside what the kernel gives to anybody.
//!
//! # How it works
//!
//! Two things are compared, in rounds in which each has its turn:
//!
//! * an embedded guest on a switch with a tap, and a bare loop that reads or writes the same tap: what of the kernel's
//!   rate a guest sees ([`embedded`]);
//! * TCP from an emulated guest to the host, by a tap port and by QEMU's own tap without vhost ([`tcp`]).

mod embedded;
mod frame;
mod tcp;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use crate::interrupt::{self, Interrupted};
use crate::means;
use crate::statistics::Spread;

/// Measure the tap port beside a bare loop on the tap, and beside QEMU's own tap
#[derive(Debug, Parser)]
#[command(name = "host")]
struct Options {
    /// Rounds, in each of which everything has its turn
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each of them is measured, where that is a time
    #[arg(long, value_name = "S", default_value = "1", value_parser = crate::peers::seconds)]
    seconds: f64,
    /// Leave out the emulated guests
    #[arg(long)]
    no_tcp: bool,
}

/// What the program does.
pub fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {error:#}");
            if error.is::<Interrupted>() { interrupt::exit_code() } else { ExitCode::FAILURE }
        }
    }
}

fn run(options: &Options) -> Result<()> {
    interrupt::watch()?;
    let [switch, generator, ..] = means::cpus()?[..] else {
        bail!("switch and guest need a processor each, and there is one")
    };
    let seconds = Duration::from_secs_f64(options.seconds);
    let mut rows = embedded::measure(options.rounds, seconds, switch, generator)?;
    if !options.no_tcp {
        rows.push(tcp::measure(options.rounds, options.seconds)?);
    }
    println!("{:<28} {:>12} {:>22} {:>22}  ratio, least to most", "", "unit", "ringway", "beside");
    rows.iter().for_each(Row::print);
    Ok(())
}

/// One comparison, over all rounds.
struct Row {
    name: String,
    unit: &'static str,
    /// Ringway, and what it is compared with, round by round.
    pairs: Vec<(f64, f64)>,
}

impl Row {
    fn print(&self) {
        let spread = |values: &mut dyn Iterator<Item = f64>| Spread::of(values);
        let ours = spread(&mut self.pairs.iter().map(|pair| pair.0));
        let theirs = spread(&mut self.pairs.iter().map(|pair| pair.1));
        let ratio = spread(&mut self.pairs.iter().map(|(ours, theirs)| ours / theirs));
        let (Some(ours), Some(theirs), Some(ratio)) = (ours, theirs, ratio) else { return };
        println!(
            "{:<28} {:>12} {:>22.3} {:>22.3}  {:.2}, {:.2} to {:.2}",
            self.name, self.unit, ours.median, theirs.median, ratio.median, ratio.least, ratio.most
        );
    }
}
