//! Ctrl-C. Programs, hugepages, networks and directories are given back by whoever has them on the stack, so an
//! interrupted measurement is one that fails at its next wait. The second signal ends the process at once: the kernel
//! then ends the programs, and the next run gives the hugepages back.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::{Output, Program};
use tokio::signal::unix::{SignalKind, signal};

/// A signal is noticed within this time.
const STEP: Duration = Duration::from_millis(50);
/// What a shell says of a program that SIGINT ended.
const STATUS: u8 = 130;

static CAME: AtomicBool = AtomicBool::new(false);

/// The run was ended from outside.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// How an interrupted program ends.
pub fn exit_code() -> ExitCode {
    ExitCode::from(STATUS)
}

/// Waits for SIGINT and SIGTERM from now on.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if CAME.swap(true, Ordering::Relaxed) {
                std::process::exit(STATUS.into());
            }
            eprintln!("\nending: what was borrowed is given back (again, to end at once)");
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(wait)).context("cannot start a thread")?;
    Ok(())
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if CAME.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// Waits for so long.
pub fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(STEP));
    }
}

/// Waits for the end of a program.
pub fn wait(program: Program, limit: Duration) -> Result<Output> {
    let end = Instant::now() + limit;
    while !program.job().ends_within(STEP) && Instant::now() < end {
        check()?;
    }
    program.into_job().wait(Duration::ZERO)
}
