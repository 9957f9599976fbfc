//! The regression gate: what a frame costs in instructions is what is recorded, and the gate finds out when it is not.
//!
//! All of it is in crates/guest/benches/instructions.rs, a program of cargo's benchmark profile.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::process::bound_command;
use testbed::{Output, Program};

/// Counting takes less than a minute; the build before it, on a machine that is busy with other tests, takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// Counts these cases, or all, and compares them with a record, or with the one in the tree.
fn gate(record: Option<&Path>, accept: bool, cases: &[&str]) -> Result<Output> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = bound_command(cargo);
    command.args(["bench", "--locked", "--package", "ringway-guest", "--bench", "instructions"]);
    command.arg("--").args(cases).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("UPDATE");
    if let Some(record) = record {
        command.arg("--record").arg(record);
    }
    if accept {
        command.env("UPDATE", "1");
    }
    Program::start("host", "cargo bench --bench instructions", command)?.into_job().wait(LIMIT)
}

#[test]
fn a_frame_costs_what_is_recorded() -> Result<()> {
    let accept = std::env::var_os("UPDATE").is_some();
    let output = gate(None, accept, &[])?;
    println!("{}", output.text());
    ensure!(output.success(), "instructions for each frame are not what is recorded; see above");
    Ok(())
}

/// Counts the same cases again, with a record of them that somebody has changed.
#[test]
fn a_count_that_moved_is_found_out() -> Result<()> {
    let cases = ["split", "split-in-order", "packed", "burst-1"];
    let directory = tempfile::tempdir()?;
    let record = directory.path().join("instructions.txt");
    fs::write(&record, "# A note.\n")?;
    let output = gate(Some(&record), true, &cases)?;
    ensure!(output.success(), "{}", output.text());

    let mut changed = String::new();
    let text = fs::read_to_string(&record)?;
    for line in text.lines() {
        let factor = match line.split_whitespace().next() {
            // As if each frame took 3.5 % more now than when this was written, or 3.5 % less.
            Some("split") => 1.0 / 1.035,
            Some("packed") => 1.0 / 0.965,
            // Within what may be.
            Some("split-in-order") => 1.0 / 1.025,
            // As if it were new.
            Some("burst-1") => continue,
            _ => {
                writeln!(changed, "{line}")?;
                continue;
            }
        };
        let (name, count) = line.split_once(' ').with_context(|| format!("no count: {line}"))?;
        writeln!(changed, "{name} {}", count.trim().parse::<f64>()? * factor)?;
    }
    changed += "gone 1.0\n";
    ensure!(changed.contains("# A note.") && changed.contains("split-in-order"), "{text}");
    fs::write(&record, changed)?;
    let output = gate(Some(&record), false, &cases)?;
    let text = output.text();
    ensure!(!output.success(), "{text}");
    let found = |case: &str| {
        let mut lines = text.lines();
        lines.find(|line| line.starts_with(&format!("{case}: "))).unwrap_or_default()
    };
    ensure!(found("split").contains(" 3.5 % more than "), "{text}");
    ensure!(found("packed").contains(" 3.5 % fewer than "), "{text}");
    ensure!(found("burst-1").contains("nothing is recorded"), "{text}");
    ensure!(found("gone").contains("no such case"), "{text}");
    ensure!(found("split-in-order").is_empty() && text.contains("UPDATE=1 cargo bench"), "{text}");
    Ok(())
}
