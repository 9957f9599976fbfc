//! The program `host`: the tap port beside what the kernel gives to anybody.
//!
//! # How it works
//!
//! Two things are compared, in rounds in which each has its turn:
//!
//! * an embedded guest on a switch with a tap, and a bare loop that reads or writes the same tap: what of the kernel's
//!   rate a guest sees ([`embedded`]). The loop has one buffer, which no other processor touches; a guest's frames
//!   are another processor's. So there is a second loop, whose buffers another processor writes, or reads, as the
//!   guest does ([`shared`]): what that one is slower than the first is the way from one processor to another, and not the
//!   switch's;
//! * TCP from an emulated guest to the host, by a tap port and by QEMU's own tap without vhost ([`tcp`]).

mod embedded;
mod frame;
mod shared;
mod tcp;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use ringway_tests::binary;
use rustix::process::setpriority_process;

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
    // Built before it is measured, and by somebody who is patient.
    binary()?;
    // Whatever else runs here waits. What is started from now on inherits this.
    setpriority_process(None, -20).context("priority is for root to take")?;
    interrupt::watch()?;
    let [switch, generator, ..] = means::cpus()?[..] else {
        bail!("switch and guest need a processor each, and there is one")
    };
    let seconds = Duration::from_secs_f64(options.seconds);
    let mut rows = embedded::measure(options.rounds, seconds, switch, generator)?;
    if !options.no_tcp {
        rows.push(tcp::measure(options.rounds, options.seconds)?);
    }
    println!("{:<36} {:>12} {:>16} {:>16}  ratio, least to most", "", "unit", "ringway", "beside");
    rows.iter().for_each(Row::print);
    println!(
        "\nBeside a guest is a loop that does nothing but write, or read, the tap: from one buffer of its own; or, \
         \"shared\", from as\nmany as a guest has, which another processor writes, or reads, meanwhile."
    );
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
            "{:<36} {:>12} {:>16.3} {:>16.3}  {:.2}, {:.2} to {:.2}",
            self.name, self.unit, ours.median, theirs.median, ratio.median, ratio.least, ratio.most
        );
    }
}
