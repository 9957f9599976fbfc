//! How fast `ringway bench` is, next to DPDK's testpmd in the same place. It measures, so it runs alone:
//! `.config/nextest.toml` sees to it.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use serde_json::Value;
use testbed::Program;
use testbed::dpdk::{Testpmd, VirtioUser};
use testbed::process::bound_command;

/// Runs of each generator, in turns. The medians count, so that one disturbance does not; if they are not enough, there are more of
/// them.
const ROUNDS: RangeInclusive<usize> = 5..=9;
/// How long each sends.
const TIME: Duration = Duration::from_secs(1);
/// Our rate by testpmd's, as it is on a quiet machine.
const WANTED: f64 = 1.5;
/// It is more than this even if the host moves its processors apart for as long as this takes.
const RATIO_LIMIT: f64 = 1.0;
const LIMIT: Duration = Duration::from_secs(30);

/// Frames of 64 bytes that the same back end, DPDK's, takes from either generator on the same processor, for each
/// second of processor time that the generator had.
#[test]
fn loads_a_core_more_than_testpmd_does() -> Result<()> {
    let [ours, theirs] = two_processors()?;
    let directory = tempfile::Builder::new().prefix("ringway-").tempdir()?;
    let socket = directory.path().join("back-end.sock");
    // What is started from here is bound as this thread is.
    bind(theirs)?;
    let mut back_end = Testpmd::builder()
        .environment(&format!("--vdev=net_vhost0,iface={}", socket.display()))
        .argument("--forward-mode=rxonly")
        .argument("--no-lsc-interrupt")
        .start()?;
    back_end.forward(None)?;
    bind(ours)?;
    let (mut bench, mut testpmd) = (Vec::new(), Vec::new());
    let ratio = loop {
        bench.push(run_bench(&socket, ours)?);
        testpmd.push(run_testpmd(&socket)?);
        let ratio = median(&mut bench) / median(&mut testpmd);
        let rounds = bench.len();
        if rounds == *ROUNDS.end() || rounds >= *ROUNDS.start() && ratio > RATIO_LIMIT {
            break ratio;
        }
    };
    back_end.quit()?;
    println!("ringway bench: {:.3} million frames a second", median(&mut bench) / 1e6);
    println!("testpmd:       {:.3}", median(&mut testpmd) / 1e6);
    println!("ringway bench : testpmd = {ratio:.2} (wanted {WANTED}, more than {RATIO_LIMIT})");
    ensure!(ratio > RATIO_LIMIT, "ringway bench loads the back end {ratio:.2} times as much");
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run_bench(socket: &Path, cpu: usize) -> Result<f64> {
    let mut command = bound_command(binary()?);
    command.args(["bench", "--one-way", "--json", "--seconds"]).arg(TIME.as_secs().to_string());
    command.arg("--cpu").arg(cpu.to_string()).arg(socket);
    let output = Program::start("host", "ringway bench", command)?.into_job().wait(LIMIT)?;
    ensure!(output.success(), "{}", output.text());
    let found: Value = serde_json::from_str(&output.text())?;
    let trial = &found["trials"][0];
    let number = |value: &Value| value.as_f64().with_context(|| trial.to_string());
    Ok(number(&trial["directions"][0]["frames_per_second"])? / number(&trial["generator_cpu"])?)
}

fn run_testpmd(socket: &Path) -> Result<f64> {
    let port = VirtioUser::new(socket, "52:54:00:00:00:01");
    let mut testpmd = Testpmd::builder().port(port).argument("--forward-mode=txonly").start()?;
    testpmd.forward(None)?;
    let before = (testpmd.statistics(0)?.sent, processor_time(testpmd.pid())?);
    let start = Instant::now();
    while start.elapsed() < TIME {
        thread::sleep(TIME.saturating_sub(start.elapsed()));
    }
    let after = (testpmd.statistics(0)?.sent, processor_time(testpmd.pid())?);
    testpmd.quit()?;
    Ok((after.0 - before.0) as f64 / (after.1 - before.1))
}

/// Seconds that a process has used.
fn processor_time(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("a process has a name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let used = ticks().zip(ticks()).context("user and system time")?;
    Ok((used.0 + used.1) as f64 / rustix::param::clock_ticks_per_second() as f64)
}
