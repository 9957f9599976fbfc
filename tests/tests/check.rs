//! The judge before a real switch: `ringway check` against `ringway run`.

use std::fs;

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;
use testbed::Output;
use testbed::Program;
use testbed::process::bound_command;

/// All cases take less than this, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(240);

/// Two ports whose front ends may try again at once after they broke the rules.
const PORTS: [&str; 2] = ["a=vhost-user:a.sock,penalty=off", "b=vhost-user:b.sock,penalty=off"];

/// Runs `ringway check` to its end.
fn judge(arguments: &[&str]) -> Result<Output> {
    let mut command = bound_command(binary()?);
    command.arg("check").args(arguments);
    let what = format!("ringway check {}", arguments.join(" "));
    Program::start("judge", &what, command)?.into_job().wait(LIMIT)
}

#[test]
fn the_switch_passes_every_case_that_applies() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let (a, b) = (switch.path("a.sock"), switch.path("b.sock"));
    let (a, b) = (a.to_str().context("a path")?, b.to_str().context("a path")?);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("check.xml");
    let file = file.to_str().context("a path")?;
    let arguments = [a, "--peer", b, "--hostile", "--json", "--limit", "5000", "--junit", file];
    let Output { status, bytes } = judge(&arguments)?;
    let text = String::from_utf8_lossy(&bytes);
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone().into_owned())?;
    let results = report["results"].as_array().context("results")?;
    let bad: Vec<String> = results
        .iter()
        .filter(|result| !["pass", "skipped"].contains(&result["verdict"].as_str().unwrap_or("")))
        .map(Value::to_string)
        .collect();
    ensure!(bad.is_empty(), "{}\n{}", bad.join("\n"), switch.log());
    ensure!(status == 0, "status {status}");
    ensure!(report["traffic"] == "through", "{}", report["traffic"]);

    // What is not offered, in-band notifications and the dirty log, and nothing else.
    let skipped: Vec<&str> = results
        .iter()
        .filter(|result| result["verdict"] == "skipped")
        .filter_map(|result| result["id"].as_str())
        .collect();
    let expected = ["2.11", "11.1", "11.2", "11.3", "11.4", "11.5", "11.6", "11.7"];
    ensure!(skipped == expected, "skipped: {skipped:?}");
    ensure!(results.len() >= 250, "{} results", results.len());

    let xml = fs::read_to_string(file)?;
    ensure!(xml.contains("failures=\"0\" errors=\"0\""), "{xml}");
    ensure!(xml.matches("<testcase ").count() == results.len(), "{xml}");
    Ok(())
}

/// The back end that sends frames back, from which others may copy.
#[test]
fn the_server_of_the_reference_pair_passes_every_case_that_applies() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("echo.sock");
    let mut command = bound_command(binary()?);
    command.args(["vapp", "server", "--socket-path"]).arg(&socket);
    let server = Program::start("host", "ringway vapp server", command)?;
    server.job().wait_for("listening at", Duration::from_secs(10))?;
    let socket = socket.to_str().context("a path")?;
    let Output { status, bytes } = judge(&[socket, "--hostile", "--json"])?;
    let text = String::from_utf8_lossy(&bytes);
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone().into_owned())?;
    let results = report["results"].as_array().context("results")?;
    let with = |verdict: &str| -> Vec<&Value> {
        results.iter().filter(|result| result["verdict"] == verdict).collect()
    };
    let (failed, crashed, skipped) = (with("fail"), with("crashed"), with("skipped"));
    ensure!(failed.is_empty() && crashed.is_empty(), "{failed:#?}\n{crashed:#?}");
    ensure!(status == 0 && report["cut_short"] == false, "status {status}");
    ensure!(report["traffic"] == "echo", "{}", report["traffic"]);
    ensure!(results.len() >= 250, "{} results", results.len());

    // It offers no offload and no log, has no in-band notifications, and nobody else can send to its guest.
    let ids: Vec<&str> = skipped.iter().filter_map(|result| result["id"].as_str()).collect();
    let expected = ["2.3", "2.4", "2.5", "2.11", "12.8"];
    let other = |id: &&&str| !id.starts_with("10.") && !id.starts_with("11.");
    let others: Vec<&str> = ids.iter().filter(other).copied().collect();
    ensure!(others == expected, "skipped: {ids:?}");
    for result in skipped.iter().filter(|result| result["topic"] == "offload header") {
        let seen = result["seen"].as_str().unwrap_or_default();
        ensure!(seen.ends_with("is not offered"), "{result}");
    }
    Ok(())
}

#[test]
fn the_switch_alone_is_judged_without_frames() -> Result<()> {
    let switch = Switch::start(&["a=vhost-user:a.sock"])?;
    let a = switch.path("a.sock");
    let a = a.to_str().context("a path")?;
    let Output { status, bytes } = judge(&[a, "--only", "connection", "--only", "7.1"])?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(status == 0, "{text}");
    ensure!(text.contains("  1.1    pass    answers GET_FEATURES"), "{text}");
    ensure!(text.contains("  7.1    skipped"), "{text}");
    ensure!(text.contains("a switch needs --peer"), "{text}");
    Ok(())
}

#[test]
fn nobody_to_judge_is_said_in_one_sentence() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    fs::write(&file, "no socket")?;
    let silent = directory.path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent)?;
    for (path, expected) in [
        (directory.path().join("nothing"), "there is no socket"),
        (file, "it is not a socket"),
        (silent, "no answer within 200ms"),
    ] {
        let path = path.to_str().context("a path")?;
        let Output { status, bytes } = judge(&[path, "--limit", "200"])?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(status == 2, "{path}: status {status}: {text}");
        ensure!(text.contains("cannot judge") && text.contains(expected), "{path}: {text}");
        ensure!(text.lines().count() == 1, "{path}: {text}");
    }
    Ok(())
}

#[test]
fn the_list_has_every_case_and_nobody_need_be_there() -> Result<()> {
    let Output { status, bytes } = judge(&["--list", "--only", "split"])?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(
        status == 0 && text.contains("7. split") && text.contains("[virtio 1.3, 2.7]"),
        "{text}"
    );
    let Output { status, bytes } = judge(&["--list", "--only", "nonsense"])?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(status == 2 && text.contains("there is no such case or topic"), "{text}");
    Ok(())
}

#[test]
fn hostile_cases_alone_need_to_be_allowed() -> Result<()> {
    for arguments in [&["nowhere", "--only", "7.24"][..], &["nowhere", "--only", "1.17", "--json"]]
    {
        let Output { status, bytes } = judge(arguments)?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(status == 2 && text.contains("say --hostile"), "status {status}: {text}");
    }
    Ok(())
}

/// The first signal ends the run, not the program: even while a back end is waited for that will not come back.
#[test]
fn a_signal_ends_the_run_and_the_summary_is_said() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM] {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("echo.sock");
        let mut command = bound_command(binary()?);
        command.args(["vapp", "server", "--socket-path"]).arg(&socket);
        let server = Program::start("host", "ringway vapp server", command)?;
        server.job().wait_for("listening at", Duration::from_secs(10))?;
        let file = directory.path().join("check.xml");
        let mut command = bound_command(binary()?);
        command.arg("check").arg(&socket).args(["--patience", "600000", "--junit"]).arg(&file);
        let judge = Program::start("judge", "ringway check", command)?;
        judge.job().wait_for("  1.1    pass", Duration::from_secs(10))?;
        // From here on there is nobody to judge.
        drop(server);
        judge.signal(signal)?;
        let Output { status, bytes } = judge.into_job().wait(Duration::from_secs(30))?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(status == 1, "status {status}: {text}");
        ensure!(text.contains(" cases: ") && text.contains("the run ended early"), "{text}");
        ensure!(text.contains(" 0 crashed"), "{text}");
        let xml = fs::read_to_string(file)?;
        ensure!(xml.contains("<error message=\"the run ended early"), "{xml}");
    }
    Ok(())
}
