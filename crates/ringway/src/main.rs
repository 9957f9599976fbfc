//! The ringway program: command line, configuration, control.

mod account;
mod bench;
mod check;
mod cli;
mod config;
mod control;
mod demo;
mod links;
mod log;
mod panics;
mod report;
mod session;
mod socket;
mod stats;
mod switch;
mod vapp;
mod workers;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use cli::{Cli, Command, ConfigCommand};
use config::{Config, DEFAULT_LOG};
use control::{Answer, Request};
use switch::Switch;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(flags) => match flags.config() {
            Ok(config) => run(flags, &config),
            Err(faults) => Err(faults.into()),
        },
        Command::Config(ConfigCommand::Show(flags)) => {
            flags.text().map_err(Into::into).and_then(|text| Ok(write!(io::stdout(), "{text}")?))
        }
        Command::Reload(flags) => on_runtime(reload(flags)),
        Command::Stats(flags) => on_runtime(async { stats::stats(flags, &mut Stop::new()?).await }),
        Command::Demo(demo) => show(demo.seconds),
        Command::Vapp(flags) => on_runtime(async { vapp::vapp(flags, &mut Stop::new()?).await }),
        Command::Bench(options) => load(options),
        Command::Check(flags) => return judge(&flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("ringway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One line on standard error, if anybody reads it.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Judges a back end: 0 when it does as it should, 1 when it does not, 2 when there is no saying.
fn judge(flags: &check::Flags) -> ExitCode {
    match check::check(flags) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("ringway: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Runs a switch until it is told to stop.
fn run(flags: cli::Run, config: &Config) -> anyhow::Result<()> {
    log::to_stderr(config.log);
    // The last words of a panic come before ours.
    let _panics = panics::write_elsewhere()?;
    on_runtime(async {
        // Before anything exists that would have to be removed.
        let mut stop = Stop::new()?;
        let hangup = watch(SignalKind::hangup(), "SIGHUP")?;
        // Of two switches with one, the second does nothing else.
        let control = control::open(&config.control)?;
        let mut switch = tokio::select! {
            started = Switch::start(config) => started?,
            // What was made for it goes with it.
            () = stop.asked() => return Ok(()),
        };
        let reloader = switch.reloader(Arc::new(move || flags.config_again()));
        if let Some(listener) = control {
            switch.attend(listener, reloader.clone());
        }
        switch.reload_on(hangup, reloader);
        tracing::info!(ports = config.ports.len(), "ready");
        tokio::select! {
            () = stop.asked() => {}
            () = switch.failed() => bail!("the worker has stopped by itself: that is a bug"),
        }
        switch.stop().await
    })
}

/// Has a running switch read its configuration again, and prints what that changed.
async fn reload(flags: cli::Reload) -> anyhow::Result<()> {
    let request = Request::Reload { dry_run: flags.dry_run };
    let lines = match control::ask(flags.control.as_deref(), request).await? {
        Answer::Reloaded(lines) => lines,
        Answer::Error(error) => bail!("{error}"),
        Answer::Stats(_) => bail!("the switch has answered something else"),
    };
    let mut out = io::stdout().lock();
    if lines.is_empty() {
        let nothing = if flags.dry_run { "nothing would change" } else { "nothing has changed" };
        writeln!(out, "{nothing}")?;
    }
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(())
}

/// Runs the demonstration, or until it is told to stop.
fn show(seconds: u64) -> anyhow::Result<()> {
    log::to_stderr(DEFAULT_LOG);
    // The last words of a panic come before ours.
    let _panics = panics::write_elsewhere()?;
    on_runtime(async { demo::demo(seconds, &mut Stop::new()?).await })
}

/// Runs a load, or until it is told to stop.
fn load(options: bench::Options) -> anyhow::Result<()> {
    on_runtime(async { bench::bench(options, &mut Stop::new()?).await })
}

/// Waits for a signal, from now on.
fn watch(kind: SignalKind, name: &str) -> anyhow::Result<Signal> {
    signal(kind).with_context(|| format!("cannot wait for {name}"))
}

/// The signals that end the program.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        // From now on, a capture file that may not grow any more is an error of its port's, and not our end.
        drop(watch(SignalKind::from_raw(nix::libc::SIGXFSZ), "SIGXFSZ")?);
        Ok(Self {
            terminate: watch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: watch(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs the control plane: one thread, and a few that may wait.
fn on_runtime(main: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    allow_files();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("cannot start the control plane")?;
    let result = runtime.block_on(main);
    // Whoever still waits may wait for ever.
    runtime.shutdown_background();
    result
}

/// As many open files as we may have: peers send some of them, and when there is no room for one, the kernel
/// closes it while we wait.
fn allow_files() {
    let limits = getrlimit(Resource::Nofile);
    // What cannot be is not worth failing for.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
}
