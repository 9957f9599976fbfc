//! `ringway check`: judges a back end, for people and for machines.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use check::{Case, CaseResult, Options, Report, Target, Traffic, Verdict};
use clap::Args;
use serde_json::json;

const ABOUT: &str = "\
Each case drives the back end through one rule of vhost-user or virtio and gets a verdict: pass, fail, skipped (the
feature is not offered) or crashed (the back end takes no connections any more, or passes no frames, or had to be
started again). Every line says what was expected and, if it was not seen, what was.

Cases that need frames want to see again what they send: either the back end sends frames back at PATH, or it is a
switch, and they come out at --peer PATH.

The exit status is 0 when no case failed, 1 when one failed or crashed, 2 when nothing could be judged.

Examples:
  A back end that echoes:
      ringway check /run/echo.sock

  Two ports of a switch, all cases, and what a CI system reads:
      ringway check /run/a.sock --peer /run/b.sock --hostile --junit check.xml

  One topic:
      ringway check /run/a.sock --only packed --only 3.2";

/// The flags of `ringway check`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct Flags {
    /// The socket of the back end
    #[arg(required_unless_present = "list")]
    pub path: Option<PathBuf>,
    /// Another socket of the same switch: what is sent at one comes out at the other
    #[arg(long, value_name = "PATH")]
    pub peer: Option<PathBuf>,
    /// Run the cases too in which the front end or its guest means harm
    #[arg(long)]
    pub hostile: bool,
    /// Run these only: a number as 3.2, a topic's number, or the beginning of its name; repeatable
    #[arg(long, value_name = "CASE")]
    pub only: Vec<String>,
    /// List the cases and stop
    #[arg(long)]
    pub list: bool,
    /// Write the results as JSON to stdout, instead of text
    #[arg(long)]
    pub json: bool,
    /// Write the results as JUnit XML to a file as well
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Shell command that starts the back end again when a case has crashed it (and ends the former one, which may hang)
    #[arg(long, value_name = "CMD")]
    pub restart: Option<String>,
    /// How long the back end may take for one answer or one frame, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub limit: u64,
    /// How long it may take after a case until it accepts the next connection, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub patience: u64,
}

/// Runs the cases. True when none failed.
pub fn check(flags: &Flags) -> anyhow::Result<bool> {
    let cases = select(&flags.only)?;
    if flags.list {
        list(&cases)?;
        return Ok(true);
    }
    if !flags.hostile && cases.iter().all(|case| case.hostile) {
        bail!("no case to run: in all that --only names harm is meant, so say --hostile");
    }
    let path = flags.path.clone().context("no socket to judge")?;
    let target = Target {
        path: path.clone(),
        peer: flags.peer.clone(),
        limit: Duration::from_millis(flags.limit),
        patience: Duration::from_millis(flags.patience),
    };
    // Before the first case: when all are through, it is late to learn that there can be no such file.
    let cannot_write = |file: &Path| format!("cannot write {}", file.display());
    let junit = match &flags.junit {
        Some(file) => Some((file, File::create(file).with_context(|| cannot_write(file))?)),
        None => None,
    };
    let interrupted = watch_interrupt()?;
    let mut start = flags.restart.as_deref().map(|command| move || restart(command));
    let options = Options {
        hostile: flags.hostile,
        restart: start.as_mut().map(|start| start as &mut dyn FnMut() -> bool),
        go_on: &|| !interrupted.load(Ordering::Relaxed),
    };
    let mut topic = String::new();
    let mut broken = None;
    let outcome = check::run(&target, &cases, options, |result| {
        if !flags.json
            && let Err(error) = print(result, &mut topic)
        {
            broken.get_or_insert(error);
            // Nobody reads what would come.
            interrupted.store(true, Ordering::Relaxed);
        }
    });
    let report = outcome.with_context(|| format!("cannot judge {}", path.display()))?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    if flags.json {
        writeln!(io::stdout(), "{}", as_json(&path, &report))?;
    } else {
        summarise(&report)?;
    }
    if let Some((file, mut open)) = junit {
        let xml = as_junit(&path, &report);
        open.write_all(xml.as_bytes()).with_context(|| cannot_write(file))?;
    }
    Ok(report.count(Verdict::Fail) + report.count(Verdict::Crashed) == 0 && !report.cut_short)
}

/// The cases that were asked for, in order; all of them when nothing was.
fn select(only: &[String]) -> anyhow::Result<Vec<Case>> {
    let mut wanted = Vec::new();
    for selection in only {
        let Some(found) = check::find(selection) else {
            bail!("--only {selection}: there is no such case or topic; --list has them all");
        };
        wanted.extend(found.iter().map(Case::id));
    }
    let all = check::cases().into_iter();
    Ok(all.filter(|case| only.is_empty() || wanted.contains(&case.id())).collect())
}

fn list(cases: &[Case]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut topic = None;
    for case in cases {
        if topic.replace(case.topic) != Some(case.topic) {
            writeln!(out, "{}. {}", case.topic.number(), case.topic)?;
        }
        let mark = if case.hostile { " (hostile)" } else { "" };
        writeln!(out, "  {:<6} {}{mark} [{}]", case.id(), case.expects, case.cites)?;
    }
    Ok(())
}

/// A flag that SIGINT and SIGTERM set: what was found so far is still said. The second one ends the program.
fn watch_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for signals")?;
    let set = flag.clone();
    let mut stop = {
        let _context = runtime.enter();
        crate::Stop::new()?
    };
    thread::spawn(move || {
        runtime.block_on(stop.asked());
        set.store(true, Ordering::Relaxed);
        runtime.block_on(stop.asked());
        // As a shell reports the end by SIGINT.
        process::exit(130);
    });
    Ok(flag)
}

/// Has a shell start the back end again. The command may stay in the foreground. Our input and output are not for
/// it, whose reader waits for their end, and neither is a signal from our terminal.
fn restart(command: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).process_group(0);
    shell.stdin(Stdio::null()).stdout(io::stderr());
    shell.spawn().is_ok_and(|mut child| {
        // Somebody must take note of its end.
        thread::spawn(move || child.wait());
        true
    })
}

fn print(result: &CaseResult, topic: &mut String) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if *topic != result.topic {
        topic.clone_from(&result.topic);
        writeln!(out, "{}", result.topic)?;
    }
    let colour = match result.verdict {
        _ if !out.is_terminal() => None,
        Verdict::Pass => Some("32"),
        Verdict::Fail | Verdict::Crashed => Some("31"),
        Verdict::Skipped => Some("33"),
    };
    let verdict = match colour {
        Some(colour) => format!("\x1b[{colour}m{:<7}\x1b[0m", result.verdict),
        None => format!("{:<7}", result.verdict),
    };
    writeln!(out, "  {:<6} {verdict} {}", result.id, result.expects)?;
    match result.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Skipped => writeln!(out, "                 {}", result.seen),
        Verdict::Fail | Verdict::Crashed => {
            writeln!(out, "                 seen: {} [{}]", result.seen, result.cites)
        }
    }
}

fn summarise(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let count = |verdict| report.count(verdict);
    writeln!(
        out,
        "{} cases: {} pass, {} fail, {} skipped, {} crashed",
        report.results.len(),
        count(Verdict::Pass),
        count(Verdict::Fail),
        count(Verdict::Skipped),
        count(Verdict::Crashed),
    )?;
    if report.traffic == Traffic::None && !report.results.is_empty() {
        writeln!(
            out,
            "no frame that was sent was seen again, so cases that need frames were skipped: a \
             switch needs --peer"
        )?;
    }
    if report.cut_short {
        writeln!(out, "the run ended early: the back end is gone, or it was interrupted")?;
    }
    Ok(())
}

fn as_json(path: &Path, report: &Report) -> serde_json::Value {
    let results: Vec<_> = report
        .results
        .iter()
        .map(|result| {
            json!({
                "id": result.id,
                "topic": result.topic,
                "expects": result.expects,
                "cites": result.cites,
                "verdict": result.verdict.to_string(),
                "seen": result.seen,
                "milliseconds": result.took.as_millis() as u64,
            })
        })
        .collect();
    json!({
        "socket": path.display().to_string(),
        "traffic": match report.traffic {
            Traffic::Echo => "echo",
            Traffic::Through => "through",
            Traffic::None => "none",
        },
        "cut_short": report.cut_short,
        "pass": report.count(Verdict::Pass),
        "fail": report.count(Verdict::Fail),
        "skipped": report.count(Verdict::Skipped),
        "crashed": report.count(Verdict::Crashed),
        "results": results,
    })
}

fn as_junit(path: &Path, report: &Report) -> String {
    let escape = |text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        text.replace('"', "&quot;")
    };
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Whoever reads this has no other place for it.
    let early = usize::from(report.cut_short);
    // Writing to a string does not fail.
    let _ = writeln!(
        xml,
        "<testsuite name=\"ringway check {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" \
         skipped=\"{}\">",
        escape(&path.display().to_string()),
        report.results.len() + early,
        report.count(Verdict::Fail),
        report.count(Verdict::Crashed) + early,
        report.count(Verdict::Skipped),
    );
    for result in &report.results {
        let seen = escape(&result.seen);
        let inner = match result.verdict {
            Verdict::Pass => String::new(),
            Verdict::Fail => format!("<failure message=\"{seen}\"/>"),
            Verdict::Crashed => format!("<error message=\"{seen}\"/>"),
            Verdict::Skipped => format!("<skipped message=\"{seen}\"/>"),
        };
        let _ = writeln!(
            xml,
            "  <testcase classname=\"{}\" name=\"{} {} [{}]\" time=\"{:.3}\">{inner}</testcase>",
            escape(&result.topic),
            result.id,
            escape(result.expects),
            escape(result.cites),
            result.took.as_secs_f64(),
        );
    }
    if report.cut_short {
        xml.push_str(
            "  <testcase classname=\"run\" name=\"all cases are run\"><error message=\"the run ended \
             early: the back end is gone, or it was interrupted\"/></testcase>\n",
        );
    }
    xml.push_str("</testsuite>\n");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let result = |id: &str, verdict| CaseResult {
            id: id.to_owned(),
            topic: "split".to_owned(),
            expects: "does <this> & that.",
            cites: "virtio 1.3, \"2.7\"",
            verdict,
            seen: "a \"thing\"".to_owned(),
            took: Duration::from_millis(1500),
        };
        let verdicts = [Verdict::Pass, Verdict::Fail, Verdict::Skipped, Verdict::Crashed];
        let results = verdicts.iter().zip(["7.1", "7.2", "7.3", "7.4"]);
        let results = results.map(|(verdict, id)| result(id, *verdict)).collect();
        Report { traffic: Traffic::Echo, results, cut_short: true }
    }

    #[test]
    fn json_has_every_result() {
        let json = as_json(Path::new("/run/x"), &report());
        assert_eq!(json["traffic"], "echo");
        assert_eq!(json["cut_short"], true);
        for verdict in ["pass", "fail", "skipped", "crashed"] {
            assert_eq!(json[verdict], 1, "{verdict}");
        }
        assert_eq!(json["results"][1]["id"], "7.2");
        assert_eq!(json["results"][1]["verdict"], "fail");
        assert_eq!(json["results"][1]["milliseconds"], 1500);
    }

    #[test]
    fn junit_is_escaped_and_counts() {
        let xml = as_junit(Path::new("/run/<x>"), &report());
        // One more, as the run ended early.
        assert!(xml.contains("tests=\"5\" failures=\"1\" errors=\"2\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("<error message=\"the run ended early"), "{xml}");
        let whole = as_junit(Path::new("/run/x"), &Report { cut_short: false, ..report() });
        assert!(whole.contains("tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\""), "{whole}");
        assert!(!whole.contains("ended early"), "{whole}");
        assert!(xml.contains("/run/&lt;x&gt;"), "{xml}");
        assert!(xml.contains("<failure message=\"a &quot;thing&quot;\"/>"), "{xml}");
        assert!(xml.contains("does &lt;this&gt; &amp; that."), "{xml}");
        assert!(xml.contains("time=\"1.500\"></testcase>"), "{xml}");
    }

    #[test]
    fn a_file_that_cannot_be_is_said_before_the_first_case() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            flags: Flags,
        }
        // There is no such socket either.
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (socket, file) = (path("none.sock"), path("none/x.xml"));
        let line: Line = clap::Parser::parse_from(["check", &socket, "--junit", &file]);
        let error = check(&line.flags).expect_err("there is no such directory").to_string();
        assert_eq!(error, format!("cannot write {file}"));
    }

    #[test]
    fn cases_are_selected_in_their_order_and_once() {
        let ids = |only: &[&str]| -> Vec<String> {
            let only: Vec<String> = only.iter().map(|&one| one.to_owned()).collect();
            select(&only).expect("they exist").iter().map(Case::id).collect()
        };
        assert_eq!(ids(&["1.2", "1.1", "1.2"]), ["1.1", "1.2"]);
        assert_eq!(ids(&[]).len(), check::cases().len());
        let error = select(&["99".to_owned()]).map(|cases| cases.len()).expect_err("none");
        assert!(error.to_string().contains("--only 99"), "{error}");
    }
}
