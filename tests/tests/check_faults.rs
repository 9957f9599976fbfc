//! The judge before a back end that does one thing wrong, both as programs: `ringway check` against
//! `ringway vapp server --fault NAME`. What each fault is caught by is shown in `crates/check/tests/faults`;
//! here it is that the program has them, and only if it was built to.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ringway_tests::{binary, ringway};
use serde_json::Value;
use testbed::process::bound_command;
use testbed::{Output, Program};

const READY_LIMIT: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);

/// The program with its test-only feature.
fn faulty() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--package", "ringway", "--bin", "ringway"])
        .args(["--features", "faults", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cannot build ringway:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .context("cargo does not say where it built ringway")
}

#[test]
fn the_right_case_catches_a_fault_of_the_server() -> Result<()> {
    let faulty = faulty()?;
    let list = Command::new(&faulty).args(["vapp", "server", "--fault", "list"]).output()?;
    let list = String::from_utf8(list.stdout)?;
    ensure!(list.lines().count() >= 120, "{list}");
    // A wrong answer, a wrong ring, a crash and a hang.
    for (fault, topic, caught, verdict) in [
        ("no-slots", "negotiation", "2.24", "fail"),
        ("never-calls-senders", "notifications", "6.17", "fail"),
        ("dies-of-wrong-head", "7.24", "7.24", "crashed"),
        ("hangs-on-reply-flag", "1.18", "1.18", "crashed"),
    ] {
        ensure!(
            list.lines().any(|line| line.starts_with(fault) && line.contains(caught)),
            "{list}"
        );
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("a.sock");
        let socket = socket.to_str().context("a path")?;
        let mut command = bound_command(&faulty);
        command.args(["vapp", "server", "--socket-path", socket, "--fault", fault]);
        let server = Program::start("host", fault, command)?;
        server.job().wait_for("listening", READY_LIMIT)?;
        let mut command = bound_command(binary()?);
        command.args([
            "check",
            socket,
            "--hostile",
            "--json",
            "--only",
            topic,
            "--patience",
            "500",
        ]);
        let judge = Program::start("judge", fault, command)?;
        let Output { status, bytes } = judge.into_job().wait(LIMIT)?;
        let text = String::from_utf8_lossy(&bytes);
        let report: Value = serde_json::from_str(&text).with_context(|| text.to_string())?;
        let bad: Vec<(&str, &str)> = report["results"]
            .as_array()
            .context("results")?
            .iter()
            .filter_map(|result| Some((result["id"].as_str()?, result["verdict"].as_str()?)))
            .filter(|(_, verdict)| !["pass", "skipped"].contains(verdict))
            .collect();
        ensure!(bad == [(caught, verdict)], "{fault}: {bad:?}");
        ensure!(status == 1, "{fault}: status {status}");
    }
    Ok(())
}

/// The verdict on each case, by its number.
type Verdicts = Vec<(String, String)>;

/// The results of a run, its status, and whether it was cut short.
fn results(output: Output) -> Result<(Verdicts, i32, bool)> {
    let text = String::from_utf8_lossy(&output.bytes);
    let report: Value = serde_json::from_str(&text).with_context(|| text.to_string())?;
    let word = |result: &Value, name: &str| result[name].as_str().unwrap_or_default().to_owned();
    let results = report["results"].as_array().context("results")?.iter();
    let results = results.map(|result| (word(result, "id"), word(result, "verdict"))).collect();
    Ok((results, output.status, report["cut_short"] == true))
}

/// Judges the server that `start` has, and `restart` starts again, by three cases; the second crashes it.
fn judge_one_that_dies(start: &str, restart: Option<&str>, socket: &str) -> Result<()> {
    let mut command = bound_command("sh");
    command.args(["-c", start]);
    let server = Program::start("host", start, command)?;
    server.job().wait_for("listening", READY_LIMIT)?;
    // What a restarted program says must not come between the results.
    let mut command = bound_command("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>/dev/null"]).arg(binary()?);
    command.args(["check", socket, "--hostile", "--json"]);
    command.args(["--only", "1.1", "--only", "7.24", "--only", "8.1"]);
    if let Some(restart) = restart {
        command.args(["--restart", restart]);
    }
    let judge = Program::start("judge", start, command)?;
    let (results, status, cut_short) = results(judge.into_job().wait(LIMIT)?)?;
    let expected = [("1.1", "pass"), ("7.24", "crashed"), ("8.1", "pass")];
    let expected = expected.map(|(id, verdict)| (id.to_owned(), verdict.to_owned()));
    ensure!(results == expected, "{results:?}\n{}", server.job().text());
    ensure!(status == 1 && !cut_short, "status {status}");
    Ok(())
}

/// By the judge, when it has seen that it is gone.
#[test]
fn a_back_end_that_dies_is_started_again() -> Result<()> {
    let faulty = faulty()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("a.sock");
    let socket = socket.to_str().context("a path")?;
    let server = format!(
        "'{}' vapp server --socket-path '{socket}' --fault dies-of-wrong-head",
        faulty.display()
    );
    // It ends with the judge, whose child it is.
    let restart = format!("echo started again; exec setpriv --pdeathsig KILL -- {server}");
    judge_one_that_dies(&format!("exec {server}"), Some(&restart), socket)
}

/// By somebody else, so soon that no connection is refused.
#[test]
fn a_back_end_that_is_started_again_by_others_has_crashed() -> Result<()> {
    let faulty = faulty()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("a.sock");
    let socket = socket.to_str().context("a path")?;
    let server = format!(
        "'{}' vapp server --socket-path '{socket}' --fault dies-of-wrong-head",
        faulty.display()
    );
    judge_one_that_dies(&format!("while :; do {server}; done"), None, socket)
}

#[test]
fn the_program_as_it_is_shipped_knows_no_faults() -> Result<()> {
    let Output { status, bytes } = ringway(&[], &["vapp", "server", "--fault", "list"])?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(status == 2 && text.contains("unexpected argument '--fault'"), "{status}: {text}");
    let Output { bytes, .. } = ringway(&[], &["vapp", "server", "--help"])?;
    ensure!(!String::from_utf8_lossy(&bytes).contains("fault"), "the help speaks of faults");
    Ok(())
}
