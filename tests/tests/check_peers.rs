//! The judge before peers: `ringway check` against DPDK's vhost library and Open vSwitch.
//!
//! # How it works
//!
//! What they do is recorded in docs/check.md, as it was found: every case that they do not pass, with its verdict and
//! what was seen. A run that finds another verdict for any case is a failed test: either a peer has changed, by a newer
//! package, or a case has. `UPDATE=1` writes down what is found now, for a reader to judge.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_tests::binary;
use serde_json::Value;
use testbed::dpdk::{Testpmd, Vhost};
use testbed::ovs::Ovs;
use testbed::process::bound_command;
use testbed::{Output, Program};

/// Where the results are.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/check.md");
/// All cases take less than this, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(240);

/// What was seen of one case.
struct Row {
    verdict: String,
    expects: String,
    seen: String,
}

/// Cases that did not pass, by topic and number.
type Rows = BTreeMap<(u32, u32), Row>;

/// Judges a back end by all cases but those that `varying` names, whose verdict is another from run to run.
/// `limit` is how long one answer or frame may take, in milliseconds.
fn judge([path, peer]: [&Path; 2], restart: &str, limit: &str, varying: &[&str]) -> Result<Rows> {
    let mut command = bound_command(binary()?);
    command.arg("check").arg(path).arg("--peer").arg(peer);
    command.args(["--hostile", "--json", "--limit", limit, "--patience", "5000"]);
    command.args(["--restart", restart]);
    let program = Program::start("judge", "ringway check", command)?;
    let Output { status, bytes } = program.into_job().wait(LIMIT)?;
    let text = String::from_utf8_lossy(&bytes);
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone().into_owned())?;
    // No peer of ours passes all of them, and each has to be judged by all.
    ensure!(status == 1 && report["cut_short"] == false, "status {status}: {text}");
    ensure!(report["traffic"] == "through", "{}", report["traffic"]);
    let mut rows = Rows::new();
    for result in report["results"].as_array().context("results")? {
        // Without the directory, which is another each time.
        let directory = path.parent().and_then(Path::to_str).context("a directory")?;
        let field = |name: &str| {
            let text = result[name].as_str().with_context(|| format!("no {name}: {result}"));
            text.map(|text| text.replace(&format!("{directory}/"), ""))
        };
        let (id, verdict) = (field("id")?, field("verdict")?);
        if varying.contains(&id.as_str()) {
            println!("{id} varies, and was {verdict}");
        } else if verdict != "pass" {
            let row = Row { verdict, expects: field("expects")?, seen: field("seen")? };
            rows.insert(number(&id)?, row);
        }
    }
    Ok(rows)
}

fn number(id: &str) -> Result<(u32, u32)> {
    let (topic, number) = id.split_once('.').with_context(|| format!("{id} is no case"))?;
    Ok((topic.parse()?, number.parse()?))
}

/// The results as the documentation has them.
fn table(version: &str, rows: &Rows, varying: &[&str]) -> Result<String> {
    let mut text = format!("Version: {version}.\n\n");
    let (skipped, failed): (Vec<_>, Vec<_>) =
        rows.iter().partition(|(_, row)| row.verdict == "skipped");
    text += "| no | verdict | expected: the back end | seen |\n| --- | --- | --- | --- |\n";
    for ((topic, number), Row { verdict, expects, seen }) in failed {
        let seen = seen.replace('|', "\\|");
        writeln!(text, "| {topic}.{number} | {verdict} | {expects} | {seen} |")?;
    }
    let ids = |ids: Vec<String>| if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
    let skipped = skipped.iter().map(|((topic, number), _)| format!("{topic}.{number}"));
    writeln!(text, "\nSkipped, as what they need is not offered: {}.", ids(skipped.collect()))?;
    let varying = varying.iter().map(|&id| id.to_owned()).collect();
    writeln!(text, "\nVarying from run to run, and not compared: {}.", ids(varying))?;
    Ok(text)
}

/// The verdicts that a table of the documentation has for all cases that did not pass.
fn recorded(table: &str) -> Result<BTreeMap<(u32, u32), String>> {
    let mut verdicts = BTreeMap::new();
    for line in table.lines() {
        if let Some(cells) = line.strip_prefix("| ") {
            let mut cells = cells.split(" | ");
            let (Some(id), Some(verdict)) = (cells.next(), cells.next()) else { continue };
            if let Ok(number) = number(id) {
                verdicts.insert(number, verdict.to_owned());
            }
        } else if let Some(list) = line.strip_prefix("Skipped, as what they need is not offered: ")
        {
            let list = list.trim_end_matches('.');
            for id in list.split(", ").filter(|id| *id != "none") {
                verdicts.insert(number(id)?, "skipped".to_owned());
            }
        }
    }
    Ok(verdicts)
}

/// Compares what was found with what the documentation says of `peer`, or writes it down there.
fn compare(peer: &str, version: &str, rows: &Rows, varying: &[&str]) -> Result<()> {
    let text = fs::read_to_string(FILE)?;
    let (begin, end) = (format!("<!-- results: {peer} -->\n"), "<!-- end of results -->\n");
    let (before, rest) = text.split_once(&begin).with_context(|| format!("no {begin}"))?;
    let (table_before, after) = rest.split_once(end).with_context(|| format!("no {end}"))?;
    if std::env::var_os("UPDATE").is_some() {
        let table = table(version, rows, varying)?;
        fs::write(FILE, format!("{before}{begin}\n{table}\n{end}{after}"))?;
        return Ok(());
    }
    let recorded = recorded(table_before)?;
    let mut all: Vec<_> = rows.keys().chain(recorded.keys()).collect();
    all.sort();
    all.dedup();
    let mut differences = String::new();
    for id in all {
        let then = recorded.get(id).map_or("pass", String::as_str);
        let now = rows.get(id).map_or("pass", |row| &row.verdict);
        if then != now {
            let seen = rows.get(id).map_or("as expected", |row| &row.seen);
            writeln!(differences, "{}.{}: {now} instead of {then}: {seen}", id.0, id.1)?;
        }
    }
    let name = table_before.lines().find(|line| line.starts_with("Version")).unwrap_or_default();
    ensure!(
        differences.is_empty(),
        "{version} is not what docs/check.md says ({name})\n{differences}\
         UPDATE=1 cargo nextest run -p ringway-tests --test check_peers writes down what is found now"
    );
    Ok(())
}

/// Two ports of DPDK's vhost library, between which testpmd forwards.
#[test]
fn dpdk() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [a, b] = ["a.sock", "b.sock"].map(|name| directory.path().join(name));
    let builder = Testpmd::builder().back_end(Vhost::new(&a)).back_end(Vhost::new(&b)).queues(4);
    // A port is up once it has a guest, which nobody should wait for; and it would begin by throwing away what waits in
    // the rings. Whoever starts it anew cannot tell it to forward.
    let arguments = ["--disable-link-check", "--no-flush-rx", "--auto-start"];
    let builder = arguments.iter().fold(builder, |builder, argument| builder.argument(argument));
    let testpmd = builder.start()?;
    let rows = judge([&a, &b], &testpmd.restart()?, "1000", DPDK_VARIES)?;
    compare("dpdk", &testpmd.version()?, &rows, DPDK_VARIES)
}

/// Two ports of a bridge of Open vSwitch.
#[test]
fn open_vswitch() -> Result<()> {
    let ovs = Ovs::start(&["a", "b"])?;
    let [a, b] = ["a", "b"].map(|port| ovs.socket(port));
    // It sets all of its ports and threads up anew whenever a guest comes with other queues than the last.
    let rows = judge([&a, &b], &ovs.restart()?, "3000", OVS_VARIES)?;
    compare("ovs", &ovs.version()?, &rows, OVS_VARIES)
}

/// Cases whose verdict on DPDK is not always the same; docs/check.md says why.
const DPDK_VARIES: &[&str] = &["11.7"];

/// The same of Open vSwitch.
const OVS_VARIES: &[&str] = &["11.7"];
