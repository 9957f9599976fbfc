//! The smallest measurement, end to end: that frames flow through each switch from each generator, and that what is
//! written of it is whole. How fast anything is is of no matter here.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SWITCHES: [&str; 2] = ["ringway-poll", "testpmd-io"];
const GENERATORS: [&str; 2] = ["by-bench", "by-testpmd"];

#[test]
fn frames_flow_and_are_reported() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["--quick", "--only", "/64/", "--rounds", "1", "--seconds", "0.3"])
        .arg("--results")
        .arg(file("results.json"))
        .arg(format!("--write={}", directory.path().display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);

    let results: Value = serde_json::from_slice(&fs::read(file("results.json"))?)?;
    let cells = results["cells"].as_object().context("cells")?;
    ensure!(cells.len() == SWITCHES.len() * GENERATORS.len(), "{cells:?}: {said}");
    let figure = |switch: &str, generator: &str, name: &str| {
        let cell = format!("throughput/64/split/window-256/one-flow/{switch}/{generator}");
        let samples = &cells.get(&cell).with_context(|| format!("no {cell}: {said}"))?["samples"];
        let value = samples[0]["figures"][name].as_f64();
        value.with_context(|| format!("no {name} of {cell}: {said}"))
    };
    for generator in GENERATORS {
        for switch in SWITCHES {
            for name in ["frames_per_second", "cycles_per_frame", "memory", "switch_cpu"] {
                let value = figure(switch, generator, name)?;
                ensure!(value.is_finite() && value > 0.0, "{switch}, {generator}: {name} {value}");
            }
        }
        let [ours, theirs] = [
            figure(SWITCHES[0], generator, "frames_per_second")?,
            figure(SWITCHES[1], generator, "frames_per_second")?,
        ];
        ensure!((ours / theirs).is_finite(), "{ours} : {theirs}");
    }

    let report = fs::read_to_string(file("RESULTS.md"))?;
    for part in ["| 64, split, window-256, one-flow | ", "![Throughput", "## Machine and versions"]
    {
        ensure!(report.contains(part), "no {part} in {report}");
    }
    let drawing = fs::read_to_string(file("throughput.svg"))?;
    // One point for each switch and generator.
    ensure!(drawing.matches("<circle").count() == cells.len(), "{drawing}");
    Ok(())
}

#[test]
fn what_has_no_name_is_not_measured() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_peers")).args(["--only", "nobody"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("nothing has such a name"), "{said}");
    Ok(())
}
