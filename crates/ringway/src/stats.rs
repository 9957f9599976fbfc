//! `ringway stats`: what a running switch counts, on one page.

mod page;

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::Stop;
use crate::control::{Answer, Request, ask};
use crate::report::Report;

const EXAMPLES: &str = "\
Examples:
  A look at the switch that runs on this host:
      ringway stats

  Rates, every two seconds, of one that was started with --control:
      ringway stats --control /run/lab.sock --watch 2

  For other programs, one line a look:
      ringway stats --json";

/// Goes to the upper left of a terminal, and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The flags of `ringway stats`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Flags {
    /// The control socket of the switch
    /// [default: $XDG_RUNTIME_DIR/ringway.sock or /run/ringway.sock]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Look again every so many seconds, and show rates, until SIGINT
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch: Option<u64>,
    /// Print JSON, one line a look
    #[arg(long)]
    pub json: bool,
}

/// Shows one look, or one after the other until it is told to stop.
pub async fn stats(flags: Flags, stop: &mut Stop) -> anyhow::Result<()> {
    let Some(seconds) = flags.watch else {
        let report = tokio::select! {
            () = stop.asked() => bail!("stopped before the switch has answered"),
            report = look(&flags) => report?,
        };
        return show(&flags, None, &report);
    };
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: Option<Report> = None;
    loop {
        let report = tokio::select! {
            () = stop.asked() => return Ok(()),
            report = async { ticks.tick().await; look(&flags).await } => report?,
        };
        // Another switch may listen there now.
        let same = before.take().filter(|before| before.process == report.process);
        show(&flags, same.as_ref(), &report)?;
        before = Some(report);
    }
}

async fn look(flags: &Flags) -> anyhow::Result<Report> {
    match ask(flags.control.as_deref(), Request::Stats).await? {
        Answer::Stats(report) => Ok(*report),
        Answer::Error(error) => bail!("the switch says: {error}"),
        Answer::Reloaded(_) => bail!("the switch has answered something else"),
    }
}

fn show(flags: &Flags, before: Option<&Report>, report: &Report) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    if flags.json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
    } else {
        let clear = if flags.watch.is_some() && out.is_terminal() { CLEAR } else { "" };
        writeln!(out, "{clear}{}", page::page(before, report))?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;
    use crate::socket::listen_at;

    /// Less than a switch may take to answer.
    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_look_at_a_switch_that_does_not_answer_ends_with_a_signal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.sock");
        // Nobody accepts.
        let _listener = listen_at(&path, 0o600, None).unwrap();
        let flags = Flags { control: Some(path), watch: None, json: false };
        let mut stop = Stop::new().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        let start = Instant::now();
        let error = stats(flags, &mut stop).await.unwrap_err().to_string();
        assert_eq!(error, "stopped before the switch has answered");
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    }
}
