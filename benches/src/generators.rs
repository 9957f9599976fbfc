//! Generators, which load a switch for a known time and say what came through.
//!
//! testpmd circulates frames: the first ones go out with the addresses of either port, and whatever comes is sent back to
//! where it came from, with its addresses swapped. So the number of frames under way is that of the first ones, as long as
//! none is lost; how many were is counted in the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_tests::binary;
use serde_json::Value;
use testbed::Program;
use testbed::dpdk::{Testpmd, VirtioUser};
use testbed::process::bound_command;

use crate::interrupt;
use crate::matrix::{BURST, Load, PARTS, Size};
use crate::results::Figures;
use crate::switches::{Place, testpmd};
use crate::usage::Usage;

/// How long frames are sent before any is counted.
pub const WARM_UP: f64 = 0.3;
/// The same for many addresses, each of which a switch may have to learn in its slow way.
const LONG_WARM_UP: f64 = 2.0;
/// Beyond the time for which frames are sent: ports have to come up.
const SLACK: Duration = Duration::from_secs(60);
/// How long one trial of a search takes, and how exactly it has to know the rate, in percent.
const SEARCH_SECONDS: f64 = 0.5;
const SEARCH_RESOLUTION: f64 = 4.0;
/// Trials of a search at the most: from 1.25 times the closed loop, doubled and halved.
const SEARCH_TRIALS: f64 = 40.0;
/// A switch that has just been given its ports loses what comes too early, so the first frames are sent again until they
/// go round, this often at the most.
const ATTEMPTS: u32 = 30;
/// Frames that go round have come by in this time.
const ROUND: Duration = Duration::from_millis(50);
/// What is under way when testpmd stops is in its rings after this time.
const SETTLE: Duration = Duration::from_millis(30);
const ADDRESSES: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// By name, of a trial: 1 if frames piled up for a generator that was at work all the time, or it had no processor of its own.
pub const GENERATOR_MAY_BE_LIMIT: &str = "generator_may_be_limit";

/// How much of the switch's processor a frame takes.
fn cycles(part: f64, frequency_hz: f64, frames_per_second: f64) -> f64 {
    part * frequency_hz / frames_per_second
}

/// One measurement.
pub struct Task<'a> {
    pub place: &'a Place,
    /// The two ports that are loaded.
    pub sockets: [&'a Path; 2],
    /// The switch's process.
    pub switch: u32,
    pub seconds: f64,
    pub frequency_hz: f64,
}

impl Task<'_> {
    /// As many frames as come back, by `ringway bench`.
    pub fn bench(&self, load: &Load) -> Result<Figures> {
        let warm_up = if load.addresses > 1 { LONG_WARM_UP } else { WARM_UP };
        let mut flags = vec![format!("--warm-up={warm_up}"), format!("--seconds={}", self.seconds)];
        flags.push(format!("--size={}", load.size));
        flags.push(format!("--window={}", load.fitting_window()));
        flags.push(format!("--ring-size={}", load.ring()));
        flags.push(format!("--macs={}", load.addresses));
        flags.push(format!("--flows={}", load.flows));
        flags.extend(load.packed.then(|| "--packed".to_owned()));
        let program = self.start_bench(&flags)?;
        // The middle half of the trial. The beginning may come late, as ports have to come up, and then the warm-up is
        // in it: as busy a time.
        interrupt::sleep(Duration::from_secs_f64(warm_up + 0.3 * self.seconds))?;
        let usage = Usage::now(self.switch)?;
        interrupt::sleep(Duration::from_secs_f64(0.5 * self.seconds))?;
        let part = usage.part_since()?;
        let report = finish_bench(program, &flags, self.seconds)?;
        let mut figures = trial(&report["trials"][0])?;
        let frames = figures["frames_per_second"];
        ensure!(frames > 0.0, "no frame came through");
        figures.insert("switch_cpu".to_owned(), part);
        let cycles = cycles(part, self.frequency_hz, frames);
        figures.insert("cycles_per_frame".to_owned(), cycles);
        figures.insert("window".to_owned(), load.fitting_window().into());
        Ok(figures)
    }

    /// The highest rate at which nothing is lost, and the latency at parts of it.
    pub fn latency(&self, size: Size) -> Result<Figures> {
        let flags = [
            format!("--size={size}"),
            "--search".to_owned(),
            format!("--seconds={SEARCH_SECONDS}"),
            format!("--resolution={SEARCH_RESOLUTION}"),
            format!("--warm-up={WARM_UP}"),
        ];
        let time = SEARCH_TRIALS * SEARCH_SECONDS;
        let report = finish_bench(self.start_bench(&flags)?, &flags, time)?;
        let highest = number(&report["no_drop"][0], "frames_per_second")?;
        ensure!(highest >= 1000.0, "frames were lost at every rate that was tried");
        let rates = PARTS.map(|part| format!("{:.0}", highest * f64::from(part) / 100.0));
        let flags = [
            format!("--size={size}"),
            format!("--rate={}", rates.join(",")),
            format!("--seconds={}", self.seconds),
            format!("--warm-up={WARM_UP}"),
        ];
        let time = self.seconds * PARTS.len() as f64;
        let report = finish_bench(self.start_bench(&flags)?, &flags, time)?;
        let mut figures = Figures::from([("no_drop".to_owned(), highest)]);
        for (index, part) in PARTS.into_iter().enumerate() {
            for (name, value) in trial(&report["trials"][index])? {
                figures.insert(format!("{name}_at_{part}"), value);
            }
        }
        Ok(figures)
    }

    fn start_bench(&self, flags: &[String]) -> Result<Program> {
        let mut command = bound_command(binary()?);
        command.args(["bench", "--json", "--cpu"]).arg(self.place.generator.to_string());
        command.args(flags).args(self.sockets);
        Program::start("host", "ringway bench", command)
    }

    /// As many frames as come back, by testpmd.
    pub fn testpmd(&self, load: &Load) -> Result<Figures> {
        let Size::Bytes(size) = load.size else { bail!("testpmd sends frames of one size") };
        let window = load.fitting_window();
        // Shorter than a burst, a window is one burst of that length.
        let burst = window.min(BURST);
        let mut builder = testpmd(self.place, self.place.generator, load.size)
            .argument("--forward-mode=macswap")
            .argument("--port-topology=loop")
            .argument("--no-flush-rx")
            .argument(&format!("--burst={burst}"))
            .argument(&format!("--txpkts={size}"))
            .argument(&format!("--max-pkt-len={}", u32::from(size).max(1518)));
        for (port, (socket, address)) in self.sockets.into_iter().zip(ADDRESSES).enumerate() {
            let user = VirtioUser::with_ring(socket, address, load.ring());
            builder = builder.port(if load.packed { user.option("packed_vq=1") } else { user });
            builder = builder.argument(&format!("--eth-peer={port},{}", ADDRESSES[1 - port]));
        }
        let mut testpmd = builder.start()?;
        let lost_before = prime(&mut testpmd, window / burst)?;
        interrupt::sleep(Duration::from_secs_f64(WARM_UP))?;

        let (before, usage) = (Counted::now(&mut testpmd)?, Usage::now(self.switch)?);
        interrupt::sleep(Duration::from_secs_f64(self.seconds))?;
        let (after, part) = (Counted::now(&mut testpmd)?, usage.part_since()?);
        let frames = after.rate_since(&before);
        ensure!(frames > 0.0, "no frame came through");

        let lost = drain(&mut testpmd)?.saturating_sub(lost_before) as f64;
        testpmd.quit()?;
        Ok(Figures::from([
            ("frames_per_second".to_owned(), frames),
            ("gbit_per_second".to_owned(), 8e-9 * frames * f64::from(size)),
            ("lost".to_owned(), lost),
            ("switch_cpu".to_owned(), part),
            ("cycles_per_frame".to_owned(), cycles(part, self.frequency_hz, frames)),
            ("window".to_owned(), window.into()),
        ]))
    }
}

/// Sends the first frames until they go round in both directions. Returns how many of earlier attempts were lost.
fn prime(testpmd: &mut Testpmd, bursts: u16) -> Result<u64> {
    for _ in 0..ATTEMPTS {
        testpmd.forward(Some(bursts.into()))?;
        let before = Counted::now(testpmd)?;
        interrupt::sleep(ROUND)?;
        let after = Counted::now(testpmd)?;
        let came = |port: usize| after.received[port] - before.received[port];
        // More than there were at first: so they have come round.
        let goes_round = (0..2).all(|port| came(port) > 4 * u64::from(bursts));
        let lost = drain(testpmd)?;
        testpmd.command("set fwd macswap")?;
        if goes_round {
            // Now that the switch knows all addresses, it loses none of them.
            testpmd.forward(Some(bursts.into()))?;
            return Ok(lost);
        }
    }
    bail!("no frames go round, though the first were sent {ATTEMPTS} times")
}

/// Ends the circulation, and takes what is under way. What was sent until now, and never came, was lost: how many.
fn drain(testpmd: &mut Testpmd) -> Result<u64> {
    testpmd.halt()?;
    interrupt::sleep(SETTLE)?;
    testpmd.command("set fwd rxonly")?;
    testpmd.forward(None)?;
    interrupt::sleep(SETTLE)?;
    testpmd.halt()?;
    let [one, two] = [testpmd.statistics(0)?, testpmd.statistics(1)?];
    Ok((one.sent + two.sent).saturating_sub(one.received + two.received))
}

/// Frames received by each port, and when it was asked.
struct Counted {
    received: [u64; 2],
    at: [Instant; 2],
}

impl Counted {
    fn now(testpmd: &mut Testpmd) -> Result<Counted> {
        let mut counted = Counted { received: [0; 2], at: [Instant::now(); 2] };
        for port in 0..2 {
            let asked = Instant::now();
            counted.received[port] = testpmd.statistics(port)?.received;
            // In between.
            counted.at[port] = asked + asked.elapsed() / 2;
        }
        Ok(counted)
    }

    /// Frames per second of both together.
    fn rate_since(&self, before: &Counted) -> f64 {
        let rate = |port: usize| {
            let time = (self.at[port] - before.at[port]).as_secs_f64().max(1e-9);
            self.received[port].saturating_sub(before.received[port]) as f64 / time
        };
        rate(0) + rate(1)
    }
}

fn finish_bench(program: Program, flags: &[String], seconds: f64) -> Result<Value> {
    let output = interrupt::wait(program, SLACK + Duration::from_secs_f64(seconds))?;
    let text = output.text();
    ensure!(output.success(), "ringway bench {}: {}", flags.join(" "), last_line(&text));
    serde_json::from_str(&text).with_context(|| format!("ringway bench printed {text:?}"))
}

/// The error, which comes behind the results.
fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing")
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no {name} in {value}"))
}

/// The figures of one trial of `ringway bench`: all directions together, and the latency of the slower one.
fn trial(trial: &Value) -> Result<Figures> {
    let ways = trial["directions"].as_array().context("a trial without directions")?;
    let sum = |name: &str| ways.iter().map(|way| number(way, name)).sum::<Result<f64>>();
    let mut figures = Figures::new();
    for name in ["frames_per_second", "gbit_per_second", "lost", "unsent"] {
        figures.insert(name.to_owned(), sum(name)?);
    }
    for name in ["p50", "p99", "p99.9"] {
        let latencies = ways.iter().filter_map(|way| way["latency_us"][name].as_f64());
        figures.extend(latencies.reduce(f64::max).map(|latency| (format!("{name}_us"), latency)));
    }
    figures.insert("generator_cpu".to_owned(), number(trial, "generator_cpu")?);
    figures.insert("generator_busy".to_owned(), number(trial, "generator_busy")?);
    let may_be_limit = trial[GENERATOR_MAY_BE_LIMIT].as_bool();
    let may_be_limit =
        may_be_limit.with_context(|| format!("no {GENERATOR_MAY_BE_LIMIT} in {trial}"))?;
    figures.insert(GENERATOR_MAY_BE_LIMIT.to_owned(), f64::from(may_be_limit));
    Ok(figures)
}

/// The first two sockets.
pub fn pair(sockets: &[PathBuf]) -> Result<[&Path; 2]> {
    let [one, two, ..] = sockets else { bail!("a switch has two ports at least") };
    Ok([one, two])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trial_is_the_sum_of_its_directions() -> Result<()> {
        let way = |frames: f64, p50: f64| {
            json!({"frames_per_second": frames, "gbit_per_second": 1.0, "lost": 1, "unsent": 0,
                   "latency_us": {"p50": p50, "p99": 9.0, "p99.9": 9.5}})
        };
        let report = json!({"directions": [way(5.0, 2.0), way(6.0, 1.5)],
                            "generator_cpu": 0.9, "generator_busy": 0.25,
                            "generator_may_be_limit": true});
        let figures = trial(&report)?;
        assert_eq!((figures["frames_per_second"], figures["lost"]), (11.0, 2.0));
        assert_eq!((figures["p50_us"], figures["p99.9_us"]), (2.0, 9.5));
        assert_eq!((figures["generator_busy"], figures[GENERATOR_MAY_BE_LIMIT]), (0.25, 1.0));
        assert!(trial(&json!({})).is_err());
        Ok(())
    }

    #[test]
    fn rates_are_of_each_port_over_its_own_time() {
        let start = Instant::now();
        let at = |one: u64, two: u64| [one, two].map(|time| start + Duration::from_secs(time));
        let before = Counted { received: [100, 0], at: at(0, 1) };
        let after = Counted { received: [300, 300], at: at(2, 4) };
        assert_eq!(after.rate_since(&before), 200.0);
    }

    #[test]
    fn cycles_are_of_the_time_that_was_used() {
        assert_eq!(cycles(0.5, 2e9, 1e6), 1000.0);
    }

    #[test]
    fn the_error_is_what_was_said_last() {
        assert_eq!(last_line("{}\nringway: no\n\n"), "ringway: no");
        assert_eq!(last_line(""), "it said nothing");
    }
}
