//! Who runs on which processor, for tests that measure.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two of the processors that this thread may run on: one for each side of what is measured.
///
/// # Errors
///
/// There is only one.
pub fn two_processors() -> Result<[usize; 2]> {
    let all = sched_getaffinity(None)?;
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    match processors[..] {
        [one, other, ..] => Ok([one, other]),
        _ => bail!("it takes two processors, one for each side, and there is {processors:?}"),
    }
}

/// Has this thread run on one processor, and what it starts from now on.
///
/// # Errors
///
/// It may not.
pub fn bind(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

/// Has a thread run whenever it has something to do, whatever else there is to do on its processor (SCHED_FIFO).
///
/// # Errors
///
/// It may not: that is for root.
pub fn let_first(thread: Pid) -> Result<()> {
    let number = thread.as_raw_nonzero().to_string();
    let chrt = Command::new("chrt").args(["--fifo", "--pid", "10", &number]).status();
    let status = chrt.context("cannot run chrt, of Debian's util-linux")?;
    ensure!(status.success(), "thread {number} cannot have the priority of real time: {status}");
    Ok(())
}
