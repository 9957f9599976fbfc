//! The test's end of the command channel to the agent in a guest (`tool/agent.rs`; the lines are in `tool/line.rs`).
//!
//! One thread reads the channel and fills in the jobs. The agent greets once per boot; a greeting ends every job of the
//! boot before, since nothing is left of them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::line;
use crate::shell::{Job, Progress};

#[derive(Clone)]
pub(crate) struct Channel {
    stream: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The running boot's name, from its greeting.
    boot: Option<String>,
    last_job: u64,
    jobs: HashMap<u64, Arc<Progress>>,
    closed: bool,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Result<Channel> {
        let lines = BufReader::new(stream.try_clone()?);
        let shared = Arc::new(Shared::default());
        let reader = Arc::clone(&shared);
        thread::spawn(move || reader.read(lines));
        Ok(Channel { stream: Arc::new(Mutex::new(stream)), shared })
    }

    /// The name of the running boot.
    pub(crate) fn boot(&self) -> Option<String> {
        self.shared.lock().boot.clone()
    }

    /// Waits until the agent of another boot than `before` has greeted.
    pub(crate) fn wait_for_boot(&self, before: Option<&str>, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if state.closed {
                bail!("QEMU ended before the guest's shell was ready");
            }
            if state.boot.is_some() && state.boot.as_deref() != before {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the guest's shell was not ready within {limit:?}");
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts a script in the guest called `name`.
    pub(crate) fn start(&self, name: &str, script: &str) -> Result<Job> {
        let progress = Arc::new(Progress::default());
        let (boot, job) = {
            let mut state = self.shared.lock();
            let Some(boot) = state.boot.clone().filter(|_| !state.closed) else {
                bail!("{name}: the guest is not running");
            };
            state.last_job += 1;
            let job = state.last_job;
            state.jobs.insert(job, Arc::clone(&progress));
            (boot, job)
        };
        self.send(&line::encode(&format!("run {boot} {job}"), script.as_bytes()))?;
        let channel = self.clone();
        Ok(Job::new(name, script, progress, move || {
            // A guest that is gone has killed the job already.
            let _ = channel.send(&line::encode(&format!("kill {boot} {job}"), b""));
        }))
    }

    fn send(&self, line: &[u8]) -> io::Result<()> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes lines until QEMU closes the channel, which it does when it ends.
    fn read(&self, mut lines: BufReader<UnixStream>) {
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            // A line of another form was torn by a reset.
            let _ = self.take(&line);
            line.clear();
        }
        let mut state = self.lock();
        state.closed = true;
        state.end_jobs("was cut off: QEMU ended");
        self.changed.notify_all();
    }

    fn take(&self, line: &[u8]) -> Option<()> {
        let verb = line.split(|&byte| byte == b' ').next()?;
        match verb {
            b"hello" => {
                let ([_, boot], _) = line::decode::<2>(line)?;
                let mut state = self.lock();
                state.end_jobs("was cut off: the guest rebooted");
                state.boot = Some(boot.to_owned());
                self.changed.notify_all();
            }
            b"output" => {
                let ([_, job], bytes) = line::decode::<2>(line)?;
                let job = job.parse().ok()?;
                self.lock().jobs.get(&job)?.print(&bytes);
            }
            b"exit" => {
                let ([_, job, status], _) = line::decode::<3>(line)?;
                let (job, status) = (job.parse().ok()?, status.parse().ok()?);
                self.lock().jobs.remove(&job)?.end(Ok(status));
            }
            _ => {}
        }
        Some(())
    }
}

impl State {
    fn end_jobs(&mut self, why: &str) {
        for (_, job) in self.jobs.drain() {
            job.end(Err(why.to_owned()));
        }
    }
}
