//! `ringway bench`: against a real switch, and against what is no back end.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use testbed::process::bound_command;
use testbed::{Output, Program};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];
/// All of this takes a few seconds at the most.
const LIMIT: Duration = Duration::from_secs(60);

fn command(switch: &Switch, flags: &str, ports: &[&str]) -> Result<Command> {
    let mut command = bound_command(binary()?);
    command.arg("bench").args(flags.split_whitespace());
    command.args(ports.iter().map(|port| switch.path(port)));
    Ok(command)
}

/// Runs it on the ports of a switch.
fn bench(switch: &Switch, flags: &str, ports: &[&str]) -> Result<Output> {
    let command = command(switch, flags, ports)?;
    Program::start("host", &format!("ringway bench {flags}"), command)?.into_job().wait(LIMIT)
}

/// The same between two ports; it must find nothing wrong. Returns what it measured.
fn measure(switch: &Switch, flags: &str) -> Result<Value> {
    let output = bench(switch, &format!("--json {flags}"), &["vm1.sock", "vm2.sock"])?;
    ensure!(output.success(), "{flags}: {}", output.text());
    serde_json::from_str(&output.text()).with_context(|| output.text())
}

#[test]
fn every_byte_arrives_whatever_the_rings() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    for flags in [
        "",
        "--packed",
        "--in-order",
        "--packed --in-order --event-idx",
        "--no-mergeable --event-idx",
        "--macs 300 --flows 20 --window 5",
    ] {
        let sizes = "--size 64,imix,1518,9000,tso";
        let found = measure(&switch, &format!("--verify --seconds 0.2 {sizes} {flags}"))?;
        let trials = found["trials"].as_array().context("trials")?;
        ensure!(trials.len() == 5, "{found:#}");
        for way in trials.iter().flat_map(|trial| trial["directions"].as_array()).flatten() {
            let count = |what: &str| way[what].as_u64().with_context(|| format!("{what}: {way}"));
            ensure!(count("received")? > 0 && count("received")? == count("sent")?, "{way}");
            ensure!(way["latency_us"]["p99"].as_f64() > Some(0.0), "{way}");
        }
    }
    switch.stop()?;
    Ok(())
}

#[test]
fn three_ports_send_in_a_circle() -> Result<()> {
    let switch = Switch::start(&[PORTS[0], PORTS[1], "vm3=vhost-user:vm3.sock"])?;
    let output =
        bench(&switch, "--json --verify --seconds 0.2", &["vm1.sock", "vm2.sock", "vm3.sock"])?;
    ensure!(output.success(), "{}", output.text());
    let found: Value = serde_json::from_str(&output.text())?;
    let ways = found["trials"][0]["directions"].as_array().context("directions")?.clone();
    let routes = ways.iter().map(|way| (way["from"].as_u64(), way["to"].as_u64()));
    let expected = [(0, 1), (1, 2), (2, 0)].map(|(from, to)| (Some(from), Some(to)));
    ensure!(routes.eq(expected), "{found:#}");
    switch.stop()?;
    Ok(())
}

#[test]
fn rates_are_kept_and_drawn() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let directory = tempfile::tempdir()?;
    let plot = directory.path().join("plot.svg");
    let flags = format!("--rate 2k,5k --seconds 0.5 --plot {}", plot.display());
    let found = measure(&switch, &flags)?;
    for (number, sent) in [(0, 1000), (1, 2500)] {
        let way = &found["trials"][number]["directions"][1];
        let found = way["sent"].as_u64().context("sent")?;
        // On a busy machine there may be no room for some of them.
        ensure!((sent / 2..=sent + 1).contains(&found), "{way}");
    }
    let drawn = std::fs::read_to_string(&plot)?;
    ensure!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    // Rate and three latencies, with two points each.
    let lines = drawn.lines().filter(|line| line.contains("stroke-width=\"1.5\""));
    ensure!(lines.count() > 4 && !drawn.contains("NaN"), "{drawn}");
    switch.stop()?;
    Ok(())
}

#[test]
fn the_no_drop_rate_is_searched_for() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    // So slow that nothing is lost on any machine: the highest rate is the answer.
    let found = measure(&switch, "--search --rate 1k --seconds 0.2")?;
    ensure!(found["no_drop"][0]["frames_per_second"] == 1000.0, "{found:#}");
    // So fast that no machine can: it is found by halves.
    let found = measure(&switch, "--search --rate 1000M --seconds 0.05 --resolution 10")?;
    let rate = found["no_drop"][0]["frames_per_second"].as_f64().context("a rate")?;
    ensure!(rate < 500e6, "{found:#}");
    ensure!(found["trials"].as_array().is_some_and(|trials| trials.len() >= 4), "{found:#}");
    switch.stop()?;
    Ok(())
}

#[test]
fn the_table_is_for_people() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let output = bench(&switch, "--seconds 0.2", &["vm1.sock", "vm2.sock"])?;
    let text = output.text();
    for word in ["Mframe/s", "p99.9", "0->1", "1->0", "under way", "generator: CPU"] {
        ensure!(text.contains(word), "no {word}:\n{text}");
    }
    // One port of a switch with nobody else on it: nothing comes back.
    let output = bench(&switch, "--seconds 0.2", &["vm1.sock"])?;
    let text = output.text();
    ensure!(!output.success() && text.contains("a back end that echoes"), "{text}");
    switch.stop()?;
    Ok(())
}

#[test]
fn an_interrupt_prints_what_there_is() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM] {
        let switch = Switch::start(&PORTS)?;
        let flags = "--size 64,1518 --seconds 3600 --json";
        let command = command(&switch, flags, &["vm1.sock", "vm2.sock"])?;
        let program = Program::start("host", "ringway bench", command)?;
        switch.wait_for_log("connected", LIMIT)?;
        program.signal(signal)?;
        let output = program.into_job().wait(LIMIT)?;
        ensure!(output.success(), "{}", output.text());
        let found: Value = serde_json::from_str(&output.text())?;
        let trials = found["trials"].as_array().context("trials")?;
        ensure!(trials.len() == 1 && trials[0]["interrupted"] == true, "{found:#}");
        ensure!(trials[0]["directions"][0]["received"].as_u64() > Some(0), "{found:#}");
        switch.stop()?;
    }
    Ok(())
}

/// Runs it on a path that is no back end. It must say so, and soon.
fn complaint(path: &Path) -> Result<String> {
    let start = Instant::now();
    let path = path.to_str().context("a path in UTF-8")?;
    let output = ringway(&[], &["bench", path])?;
    let text = output.text();
    ensure!(!output.success() && text.lines().count() == 1, "{text}");
    println!("{:?}: {text}", start.elapsed());
    Ok(text)
}

#[test]
fn what_is_no_back_end_is_said_to_be_none() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    ensure!(complaint(&path("nowhere"))?.contains("there is no socket"), "nowhere");
    std::fs::write(path("file"), "")?;
    ensure!(complaint(&path("file"))?.contains("it is not a socket"), "a file");

    let silent = UnixListener::bind(path("silent"))?;
    let text = complaint(&path("silent"))?;
    ensure!(text.contains("did not answer GET_FEATURES within 5s"), "{text}");
    drop(silent);

    let serve = |name: &str, answer: &'static [u8]| -> Result<_> {
        let listener = UnixListener::bind(path(name))?;
        Ok(thread::spawn(move || {
            let (mut socket, _) = listener.accept()?;
            std::io::Write::write_all(&mut socket, answer)
        }))
    };
    let closes = serve("closes", b"")?;
    let text = complaint(&path("closes"))?;
    ensure!(text.contains("GET_FEATURES"), "{text}");
    closes.join().ok().context("no panic")??;
    let web = serve("web", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")?;
    let text = complaint(&path("web"))?;
    ensure!(text.contains("GET_FEATURES") && text.contains("does not look like"), "{text}");
    web.join().ok().context("no panic")??;
    Ok(())
}

#[test]
fn a_back_end_that_dies_is_noticed() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let command = command(&switch, "--seconds 3600", &["vm1.sock", "vm2.sock"])?;
    let program = Program::start("host", "ringway bench", command)?;
    switch.wait_for_log("connected", LIMIT)?;
    drop(switch);
    let output = program.into_job().wait(LIMIT)?;
    let text = output.text();
    ensure!(!output.success() && text.contains("vm"), "{text}");
    ensure!(text.contains("closed the connection"), "{text}");
    Ok(())
}
