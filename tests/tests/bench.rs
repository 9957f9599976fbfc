//! `ringway bench`: against a real switch, and against what is no back end.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use testbed::dpdk::{Testpmd, Vhost};
use testbed::process::bound_command;
use testbed::{Output, Program};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];
/// All of this takes a few seconds at the most.
const LIMIT: Duration = Duration::from_secs(60);

fn command(switch: &Switch, flags: &str, ports: &[&str]) -> Result<Command> {
    let ports: Vec<PathBuf> = ports.iter().map(|port| switch.path(port)).collect();
    command_at(flags, &ports)
}

fn command_at(flags: &str, ports: &[PathBuf]) -> Result<Command> {
    let mut command = bound_command(binary()?);
    command.arg("bench").args(flags.split_whitespace()).args(ports);
    Ok(command)
}

/// Runs it on back ends at these paths. It must find nothing wrong. Returns what it measured.
fn measure_at(flags: &str, ports: &[PathBuf]) -> Result<Value> {
    let flags = format!("--json {flags}");
    let program = Program::start("host", "ringway bench", command_at(&flags, ports)?)?;
    let output = program.into_job().wait(LIMIT)?;
    ensure!(output.success(), "{flags}: {}", output.text());
    serde_json::from_str(&output.text()).with_context(|| output.text())
}

/// Of each trial and direction, how many frames were sent; all of them must have come.
fn all_came(found: &Value) -> Result<Vec<u64>> {
    let trials = found["trials"].as_array().context("trials")?;
    let ways = trials.iter().flat_map(|trial| trial["directions"].as_array()).flatten();
    let sent = ways.map(|way| {
        let count = |what: &str| way[what].as_u64().with_context(|| format!("{what}: {way}"));
        let wrong = ["unsent", "lost", "reordered", "duplicates", "corrupted"];
        let wrong = wrong.into_iter().map(count).sum::<Result<u64>>()?;
        ensure!(wrong == 0 && count("received")? > 0, "{way}");
        ensure!(count("received")? == count("sent")?, "{way}");
        count("sent")
    });
    sent.collect()
}

/// A running `ringway vapp server`.
struct Server {
    program: Program,
    directory: TempDir,
}

impl Server {
    fn start(flags: &[&str]) -> Result<Server> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let mut command = bound_command(binary()?);
        command.args(["vapp", "server", "--socket-path"]).arg(directory.path().join("s"));
        command.args(flags);
        let program = Program::start("host", "ringway vapp server", command)?;
        program.job().wait_for("listening at", LIMIT)?;
        Ok(Server { program, directory })
    }

    fn port(&self) -> [PathBuf; 1] {
        [self.directory.path().join("s")]
    }

    /// Ends it. Returns what it said of each front end that it had: frames from the guest, and to it.
    fn stop(self) -> Result<Vec<(u64, u64)>> {
        self.program.signal(Signal::TERM)?;
        let text = self.program.into_job().wait(LIMIT)?.text();
        let counts = text.lines().filter_map(|line| {
            let (from, rest) = line.split_once(" frames (")?;
            let (_, to) = rest.split_once("from the guest, ")?;
            Some((from.parse().ok()?, to.split_once(" to it")?.0.parse().ok()?))
        });
        Ok(counts.collect())
    }
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

/// One port, and a back end that sends every frame back.
#[test]
fn an_echo_is_loaded_through_one_port() -> Result<()> {
    let server = Server::start(&[])?;
    let port = server.port();
    let mut sent = Vec::new();
    for flags in [
        "",
        "--packed",
        "--in-order",
        "--packed --in-order --event-idx",
        "--no-mergeable --event-idx",
        "--macs 7 --flows 3 --size imix --packed",
        "--ring-size 2",
        "--rate 1k",
    ] {
        let flags = format!("--verify --warm-up 0 --seconds 0.2 {flags}");
        let found = measure_at(&flags, &port)?;
        sent.append(&mut all_came(&found)?);
        let features = found["features"][0].as_str().context("features")?;
        for (flag, feature) in
            [("--packed", "RING_PACKED"), ("--in-order", "IN_ORDER"), ("--event-idx", "EVENT_IDX")]
        {
            ensure!(flags.contains(flag) == features.contains(feature), "{flags}: {features}");
        }
    }
    let found = measure_at("--search --rate 500 --warm-up 0 --seconds 0.2", &port)?;
    ensure!(found["no_drop"][0]["frames_per_second"] == 500.0, "{found:#}");
    ensure!(found["no_drop"][0]["is_highest_tried"] == true, "{found:#}");
    sent.append(&mut all_came(&found)?);
    // It segments nothing, and says so.
    let program = Program::start("host", "ringway bench", command_at("--size tso", &port)?)?;
    let output = program.into_job().wait(LIMIT)?;
    let text = output.text();
    ensure!(!output.success() && text.contains("does not offer CSUM"), "{text}");
    sent.push(0);
    // The other end has seen as many.
    let expected: Vec<(u64, u64)> = sent.into_iter().map(|count| (count, count)).collect();
    let counted = server.stop()?;
    ensure!(counted == expected, "{counted:?} instead of {expected:?}");
    Ok(())
}

/// A back end from which nothing comes, and one from which only others' frames come.
#[test]
fn a_sink_and_a_source_take_frames() -> Result<()> {
    let sink = Server::start(&["--sink"])?;
    let flags = "--one-way --warm-up 0 --seconds 0.2 --size 64,imix";
    let sent: u64 = all_came(&measure_at(flags, &sink.port())?)?.iter().sum();
    let counted = sink.stop()?;
    ensure!(counted == [(sent, 0)], "{counted:?} instead of {sent}");

    let source = Server::start(&["--source"])?;
    let found = measure_at("--one-way --warm-up 0 --seconds 0.2 --packed", &source.port())?;
    all_came(&found)?;
    let way = &found["trials"][0]["directions"][0];
    ensure!(way["foreign"].as_u64() > Some(0) && way["latency_us"].is_null(), "{way}");
    let command = command_at("--warm-up 0 --seconds 0.2", &source.port())?;
    let output = Program::start("host", "ringway bench", command)?.into_job().wait(LIMIT)?;
    let text = output.text();
    ensure!(!output.success() && text.contains("others did)"), "{text}");
    ensure!(text.contains("frames came that were not ours"), "{text}");
    ensure!(source.stop()?.iter().all(|(from, to)| *from > 0 && *to > 0), "source");
    Ok(())
}

#[test]
fn what_warms_up_is_not_counted() -> Result<()> {
    let server = Server::start(&[])?;
    for flags in ["--warm-up 0.2", "--warm-up 0"] {
        let found = measure_at(&format!("--rate 500 --seconds 0.2 {flags}"), &server.port())?;
        // One at the start and one every 2 ms.
        ensure!(all_came(&found)? == [101], "{found:#}");
    }
    let counted = server.stop()?;
    ensure!(counted.len() == 2 && counted[0].0 > 200 && counted[1].0 == 101, "{counted:?}");
    Ok(())
}

/// DPDK forwards between two ports, each of them a back end.
#[test]
fn rings_of_dpdk() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ports = [0, 1].map(|number| directory.path().join(format!("{number}.sock")));
    let [one, two] = ports.each_ref().map(Vhost::new);
    let builder = Testpmd::builder().back_end(one).back_end(two);
    let builder = builder.argument("--disable-link-check").argument("--no-flush-rx");
    let mut testpmd = builder.start()?;
    testpmd.forward(None)?;
    for flags in ["--in-order", "--packed --in-order", "--packed --event-idx", "--flows 9"] {
        // It drops what comes for a port that is not yet ready, so there is something to be lost first.
        let flags = format!("{flags} --verify --warm-up 0.2 --seconds 0.2 --size 64,1518");
        let found = measure_at(&flags, &ports).with_context(|| flags.clone())?;
        ensure!(all_came(&found)?.len() == 4, "{found:#}");
    }
    testpmd.quit()
}

#[test]
fn four_ports_with_many_flows() -> Result<()> {
    let names = ["vm1.sock", "vm2.sock", "vm3.sock", "vm4.sock"];
    let ports = names.map(|name| format!("{}=vhost-user:{name}", &name[..3]));
    let switch = Switch::start_with(&["--workers", "2"], &ports.each_ref().map(String::as_str))?;
    let flags = "--json --verify --seconds 0.2 --macs 5 --flows 7 --size imix,1518 --packed";
    let output = bench(&switch, flags, &names)?;
    ensure!(output.success(), "{}", output.text());
    let found = serde_json::from_str(&output.text())?;
    ensure!(all_came(&found)?.len() == 8, "{found:#}");
    switch.stop()?;
    Ok(())
}

/// What other programs read.
#[test]
fn the_json_has_these_fields() -> Result<()> {
    let server = Server::start(&[])?;
    let found = measure_at("--search --rate 500 --seconds 0.1", &server.port())?;
    let fields = |value: &Value, expected: &str| {
        let object = value.as_object().with_context(|| format!("no object: {value}"))?;
        let found: BTreeSet<&str> = object.keys().map(String::as_str).collect();
        let expected: BTreeSet<&str> = expected.split_whitespace().collect();
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    };
    ensure!(found["format"] == 1, "a new form has to be told from the old one");
    fields(
        &found,
        "format ringway ports features ring_size macs flows one_way warm_up_seconds verified trials \
         no_drop",
    )?;
    fields(
        &found["trials"][0],
        "size mean_size rate seconds generator_cpu generator_busy generator_batch \
         generator_may_be_limit interrupted directions",
    )?;
    fields(
        &found["trials"][0]["directions"][0],
        "from to sent unsent received frames_per_second gbit_per_second lost reordered duplicates \
         corrupted foreign latency_us",
    )?;
    fields(&found["trials"][0]["directions"][0]["latency_us"], "p50 p90 p99 p99.9 max")?;
    fields(
        &found["no_drop"][0],
        "size frames_per_second gbit_per_second resolution_percent is_highest_tried \
         generator_may_be_limit",
    )?;
    server.stop()?;
    Ok(())
}

/// The line that shows how a trial gets on is drawn over itself: nothing for a file.
#[test]
fn progress_is_shown_on_a_terminal_only() -> Result<()> {
    let server = Server::start(&[])?;
    let command = command_at("--seconds 1 --size 1518", &server.port())?;
    let output = Program::start("host", "ringway bench", command)?.into_job().wait(LIMIT)?;
    ensure!(output.success() && !output.text().contains('\r'), "{:?}", output.text());

    let mut command = bound_command("script");
    let [port] = server.port();
    let line = format!("{} bench --seconds 1 {}", binary()?.display(), port.display());
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let output = Program::start("host", "script", command)?.into_job().wait(LIMIT)?;
    let text = output.text();
    let drawn: Vec<&str> = text.split('\r').filter(|part| part.contains("M/s sent")).collect();
    ensure!(output.success() && drawn.len() >= 2, "{text:?}");
    for line in drawn {
        let line = line.trim_end_matches("\x1b[K");
        ensure!(line.len() < 80 && line.ends_with(" s left"), "{line:?}");
    }
    server.stop()?;
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
    // And what explains an empty one.
    ensure!(drawn.matches("<circle").count() == 4 * 2 + 1, "{drawn}");
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
    // Nobody said where to begin: one trial as fast as it goes, and then over and under that.
    let found = measure(&switch, "--search --seconds 0.1 --resolution 50")?;
    let trials = found["trials"].as_array().context("trials")?;
    ensure!(trials.len() >= 2 && !trials[0]["window"].is_null(), "{found:#}");
    ensure!(trials[1..].iter().all(|trial| !trial["rate"].is_null()), "{found:#}");
    let rate = found["no_drop"][0]["frames_per_second"].as_f64().context("a rate")?;
    let failed = trials.iter().any(|trial| trial["rate"].as_f64() > Some(rate));
    ensure!(failed, "a higher rate has to have failed: {found:#}");
    switch.stop()?;
    Ok(())
}

#[test]
fn the_table_is_for_people() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let output = bench(&switch, "--seconds 0.2", &["vm1.sock", "vm2.sock"])?;
    let text = output.text();
    for word in [
        "2 ports, rings of 256, with MRG_RXBUF",
        "Mframe/s",
        "p99.9",
        "0->1",
        "1->0",
        "under way",
        "generator: CPU",
    ] {
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
            std::io::Write::write_all(&mut socket, answer)?;
            if answer.is_empty() {
                return Ok(());
            }
            // Closed with something unread, the answer would be lost.
            std::io::copy(&mut socket, &mut std::io::sink()).map(drop)
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
