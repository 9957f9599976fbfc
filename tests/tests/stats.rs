//! `ringway stats`, and the control socket that it asks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use testbed::Program;
use testbed::process::bound_command;
use wire::virtio::NetHeader;

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames each way, and their bytes.
const FRAMES: u64 = 1000;
const BYTES: u64 = 100;

/// A switch with two ports and a control socket, and where that is.
fn start() -> Result<(Switch, String)> {
    let options = ["--control", "control.sock", "--workers", "2"];
    let ports = ["vm1=vhost-user:vm1.sock,mtu=1500", "vm2=vhost-user:vm2.sock,mtu=1500"];
    let switch = Switch::start_with(&options, &ports)?;
    let control = switch.path("control.sock").display().to_string();
    Ok((switch, control))
}

fn station(switch: &Switch, n: u8) -> Result<Guest> {
    Ok(Guest::connect(&switch.path(&format!("vm{n}.sock")), &Options::default())?)
}

/// A frame from one station to another.
fn frame(from: u8, to: u8) -> Vec<u8> {
    let address = |n: u8| [0x52, 0x54, 0, 0, 0, n];
    let mut frame = [&address(to)[..], &address(from), &[0x88, 0xb5]].concat();
    frame.resize(BYTES as usize, 0);
    frame
}

/// Sends so many frames, and waits until all have come.
fn exchange(from: &mut Guest, to: &mut Guest, frame: &[u8], count: u64) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let (mut sent, mut received) = (0, 0);
    while received < count {
        ensure!(Instant::now() < deadline, "{received} of {count} frames came within {LIMIT:?}");
        from.driver().reclaim()?;
        // No more than fit the other one's ring.
        while sent < count
            && sent - received < 64
            && from.driver().send(NetHeader::default(), frame)?
        {
            sent += 1;
        }
        from.flush();
        while to.driver().receive(|_| ())?.is_some() {
            received += 1;
        }
        to.flush();
    }
    Ok(())
}

/// What `ringway stats` prints.
fn stats(arguments: &[&str]) -> Result<String> {
    let output = ringway(&[], &[&["stats"], arguments].concat())?;
    let text = String::from_utf8(output.bytes)?;
    ensure!(output.status == 0, "{}: {text}", output.status);
    Ok(text)
}

fn json(control: &str) -> Result<Value> {
    Ok(serde_json::from_str(&stats(&["--control", control, "--json"])?)?)
}

fn named<'v>(list: &'v Value, name: &str) -> Result<&'v Value> {
    let all = list.as_array().context("a list")?;
    all.iter().find(|item| item["name"] == name).with_context(|| format!("no {name} in {list}"))
}

#[test]
fn what_guests_exchange_is_counted_to_the_frame() -> Result<()> {
    let (switch, control) = start()?;
    let before = json(&control)?;
    ensure!(named(&before["ports"], "vm1")?["link"] == "down", "{before}");
    ensure!(named(&before["ports"], "vm1")?["guest"].is_null(), "{before}");

    let (mut one, mut two) = (station(&switch, 1)?, station(&switch, 2)?);
    // The bridge learns both: the first one's first frame goes to all, who are one.
    exchange(&mut one, &mut two, &frame(1, 2), FRAMES)?;
    exchange(&mut two, &mut one, &frame(2, 1), 2 * FRAMES)?;
    // To himself: dropped by the bridge.
    ensure!(one.driver().send(NetHeader::default(), &frame(1, 1))?, "no room for a frame");
    one.flush();
    let deadline = Instant::now() + LIMIT;
    let report = loop {
        let report = json(&control)?;
        if named(&report["apps"], "bridge")?["drops"]["same_port"] == 1 {
            break report;
        }
        ensure!(Instant::now() < deadline, "no drop within {LIMIT:?}: {report}");
    };
    ensure!(report["process"] == switch.pid(), "{report}");
    for (name, received, sent) in [("vm1", FRAMES + 1, 2 * FRAMES), ("vm2", 2 * FRAMES, FRAMES)] {
        let app = named(&report["apps"], name)?;
        ensure!(app["type"] == "vhost-user" && app["state"] == "running", "{app}");
        ensure!(app["received"]["frames"] == received, "{received} from {name}: {app}");
        ensure!(app["received"]["bytes"] == received * BYTES, "{app}");
        ensure!(app["sent"]["frames"] == sent, "{sent} to {name}: {app}");
        ensure!(app["sent"]["bytes"] == sent * BYTES, "{app}");
        ensure!(app["drops"] == Value::Object(Default::default()), "{app}");

        let port = named(&report["ports"], name)?;
        ensure!(port["link"] == "up" && port["mtu"] == 1500, "{port}");
        let features = port["guest"]["features"].as_array().context("features")?;
        ensure!(features.contains(&"version_1".into()), "{port}");
        ensure!(port["guest"]["memory_bytes"].as_u64() > Some(0), "{port}");
        let rings = port["guest"]["rings"].as_array().context("rings")?;
        let numbers: Vec<_> = rings.iter().map(|ring| ring["number"].clone()).collect();
        ensure!(numbers == [0, 1], "{port}");
        ensure!(rings.iter().all(|ring| ring["enabled"] == true), "{port}");
        // Buffers to receive into, and all frames were taken and given back.
        ensure!(rings[0]["waiting"].as_u64() > Some(0) && rings[1]["waiting"] == 0, "{port}");
        ensure!(rings.iter().all(|ring| ring["outstanding"] == 0), "{port}");
    }
    for (from, to, frames) in [
        ("vm1.tx", "bridge.vm1", FRAMES + 1),
        ("bridge.vm1", "vm1.rx", 2 * FRAMES),
        ("vm2.tx", "bridge.vm2", 2 * FRAMES),
        ("bridge.vm2", "vm2.rx", FRAMES),
    ] {
        let link = link(&report, from, to)?;
        ensure!(link["frames"] == frames && link["bytes"] == frames * BYTES, "{link}");
        ensure!(link["state"] == "up", "{link}");
    }
    ensure!(addresses(&report)? == 2, "{report}");
    let workers = report["workers"].as_array().context("workers")?;
    ensure!(workers.len() == 2, "{report}");
    let frames: u64 = workers.iter().filter_map(|worker| worker["frames"].as_u64()).sum();
    ensure!(frames == 3 * FRAMES + 1, "{frames} frames by all workers: {report}");
    let times = workers.iter().filter_map(|worker| worker["breath_times"].as_array()).flatten();
    ensure!(times.filter_map(|bucket| bucket[1].as_u64()).sum::<u64>() > 0, "{report}");
    ensure!(workers.iter().any(|worker| worker["cpu_ns"].as_u64() > Some(0)), "{report}");

    let page = stats(&["--control", &control])?;
    println!("{page}");
    for line in [
        "worker",
        "vm1   vhost-user  up    1500",
        "vm1.tx      -> bridge.vm1    1001  100100",
        "bridge  2 addresses",
        "bridge      same_port       1",
    ] {
        ensure!(page.contains(line), "no {line:?} in {page}");
    }
    drop((one, two));
    // That a guest has left is seen, if not at once.
    while named(&json(&control)?["ports"], "vm1")?["link"] != "down" {
        ensure!(Instant::now() < deadline + LIMIT, "the link is up without a guest");
    }
    // The control socket goes too: the directory is empty.
    switch.stop()?;
    Ok(())
}

fn link<'v>(report: &'v Value, from: &str, to: &str) -> Result<&'v Value> {
    let links = report["links"].as_array().context("links")?;
    let is_it = |link: &&Value| link["from"] == from && link["to"] == to;
    links.iter().find(is_it).with_context(|| format!("no link from {from} to {to}: {report}"))
}

/// How many addresses the bridge knows.
fn addresses(report: &Value) -> Result<u64> {
    let own = named(&report["apps"], "bridge")?["own"].clone();
    named(&own, "addresses")?["value"].as_u64().context("a number")
}

/// However many apps are between its port and the bridge.
#[test]
fn the_addresses_of_a_guest_that_goes_are_forgotten() -> Result<()> {
    let options = ["--control", "control.sock", "--workers", "2"];
    let ports = [
        "vm1=vhost-user:vm1.sock,rate-from=10Gbit,storm-broadcast=1000frames",
        "vm2=vhost-user:vm2.sock",
    ];
    let switch = Switch::start_with(&options, &ports)?;
    let control = switch.path("control.sock").display().to_string();
    let (mut one, mut two) = (station(&switch, 1)?, station(&switch, 2)?);
    exchange(&mut one, &mut two, &frame(1, 2), 10)?;
    exchange(&mut two, &mut one, &frame(2, 1), 10)?;
    let report = json(&control)?;
    ensure!(addresses(&report)? == 2, "{report}");
    ensure!(link(&report, "vm1.police.network", "bridge.vm1")?["state"] == "up", "{report}");
    drop(one);
    let deadline = Instant::now() + LIMIT;
    let report = loop {
        let report = json(&control)?;
        if addresses(&report)? == 1 {
            break report;
        }
        ensure!(Instant::now() < deadline, "known after {LIMIT:?}: {report}");
    };
    ensure!(link(&report, "vm1.police.network", "bridge.vm1")?["state"] == "down", "{report}");
    ensure!(link(&report, "vm2.tx", "bridge.vm2")?["state"] == "up", "{report}");
    let police = named(&report["apps"], "vm1.police")?;
    let bucket = named(&police["own"], "left from the port")?;
    ensure!(bucket["unit"] == "bits" && bucket["value"].as_u64() > Some(0), "{police}");
    switch.stop()?;
    Ok(())
}

#[test]
fn a_second_switch_on_one_control_socket_is_refused_and_told_who_has_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("control.sock");
    let control = path.to_str().context("a path in UTF-8")?;
    let switch = Switch::start_with(&["--control", control], &["vm=vhost-user:vm.sock"])?;
    let free = directory.path().join("free.sock");
    let port = format!("vm=vhost-user:{}", free.display());
    let second = ringway(&[], &["run", "--control", control, "--port", &port])?;
    let said = String::from_utf8_lossy(&second.bytes).into_owned();
    ensure!(second.status != 0, "a second switch runs:\n{said}");
    let expected = format!("{control}: in use by process {} (ringway)", switch.pid());
    ensure!(said.contains(&expected), "{said}");
    ensure!(!free.exists(), "it made its port's socket");
    // The first one is still asked.
    ensure!(json(control)?["process"] == switch.pid(), "another process answers");

    // What one that was killed leaves behind is taken over.
    drop(switch);
    let expected = format!("no switch listens at {control}");
    let deadline = Instant::now() + LIMIT;
    loop {
        let nobody = ringway(&[], &["stats", "--control", control])?;
        let said = String::from_utf8_lossy(&nobody.bytes).into_owned();
        if nobody.status != 0 && said.contains(&expected) {
            break;
        }
        ensure!(Instant::now() < deadline, "not {expected:?} within {LIMIT:?}: {said}");
    }
    ensure!(path.exists(), "it was killed, and removed nothing");
    let third = Switch::start_with(&["--control", control], &["vm=vhost-user:vm.sock"])?;
    ensure!(json(control)?["process"] == third.pid(), "another process answers");
    third.stop()?;
    ensure!(!path.exists(), "the socket goes with the switch");
    Ok(())
}

#[test]
fn watching_shows_rates_until_sigint() -> Result<()> {
    let (switch, control) = start()?;
    let mut command = bound_command(binary()?);
    command.args(["stats", "--control", &control, "--watch"]);
    let watch = Program::start("host", "ringway stats --watch", command)?;
    watch.job().wait_for("since its start", LIMIT)?;
    watch.job().wait_for("in the last 1.", LIMIT)?;
    watch.signal(Signal::INT)?;
    let output = watch.into_job().wait(LIMIT)?;
    let text = String::from_utf8(output.bytes)?;
    ensure!(output.status == 0, "{}: {text}", output.status);
    ensure!(text.contains("received frame/s"), "{text}");
    switch.stop()?;
    Ok(())
}

/// Who may not ask is told so.
#[test]
fn only_the_user_of_the_switch_and_root_may_ask() -> Result<()> {
    let (switch, control) = start()?;
    let id = NOBODY.to_string();
    let nobody = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let program = switch.path("ringway");
    std::fs::copy(binary()?, &program)?;
    let mut command = bound_command(nobody[0]);
    command.args(&nobody[1..]).arg(&program).args(["stats", "--control", &control]);
    let refused = Program::start("host", "ringway stats", command)?.into_job().wait(LIMIT)?;
    std::fs::remove_file(&program)?;
    let said = String::from_utf8_lossy(&refused.bytes).into_owned();
    ensure!(refused.status != 0 && said.contains("belongs to another user"), "{said}");
    switch.stop()?;
    Ok(())
}
