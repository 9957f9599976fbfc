//! Scripts and waiting for them: the same in a guest and on the host.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// How long [`Shell::run`] and [`Shell::output`] wait.
pub const RUN_LIMIT: Duration = Duration::from_secs(60);

/// A place where scripts run. `$TOOL` in a script is the path of the test bed's own tool.
pub trait Shell {
    /// The place's name, for messages.
    fn name(&self) -> &str;

    /// Starts a script of `/bin/sh` and returns at once. Whatever it leaves in the background keeps the job going as long
    /// as it holds the script's output.
    ///
    /// # Errors
    ///
    /// The place is gone.
    fn start(&self, script: &str) -> Result<Job>;

    /// Runs a script to its end, however it ends.
    ///
    /// # Errors
    ///
    /// It did not end within `limit`, or the place went away under it.
    fn output_within(&self, script: &str, limit: Duration) -> Result<Output> {
        self.start(script)?.wait(limit)
    }

    /// [`Shell::output_within`] the usual limit, [`RUN_LIMIT`].
    ///
    /// # Errors
    ///
    /// As there.
    fn output(&self, script: &str) -> Result<Output> {
        self.output_within(script, RUN_LIMIT)
    }

    /// Runs a script that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It failed, which the error shows with what it printed; or as [`Shell::output_within`].
    fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.output_within(script, limit)?;
        let text = output.text();
        if !output.success() {
            bail!("{}: `{script}` ended with {}:\n{text}", self.name(), output.status);
        }
        Ok(text)
    }

    /// [`Shell::run_within`] the usual limit, [`RUN_LIMIT`].
    ///
    /// # Errors
    ///
    /// As there.
    fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, RUN_LIMIT)
    }
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// What it printed, output and errors together.
    pub bytes: Vec<u8>,
}

impl Output {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// What it printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A script on its way. Dropping it kills it.
pub struct Job {
    /// "vm1: `script`", for messages.
    what: String,
    progress: Arc<Progress>,
    kill: Box<dyn Fn() + Send + Sync>,
}

/// What is known of a job; its place fills it in.
#[derive(Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// The exit status, or why there will never be one.
    end: Option<Result<i32, String>>,
}

impl Progress {
    pub(crate) fn print(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self, end: Result<i32, String>) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state once `done` holds, or as it is after `limit`.
    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

impl Job {
    pub(crate) fn new(
        place: &str,
        script: &str,
        progress: Arc<Progress>,
        kill: impl Fn() + Send + Sync + 'static,
    ) -> Job {
        Job { what: format!("{place}: `{script}`"), progress, kill: Box::new(kill) }
    }

    /// Waits for the script's end.
    ///
    /// # Errors
    ///
    /// It did not end within `limit` (and is killed), or its place went away. The error holds what it printed so far.
    pub fn wait(self, limit: Duration) -> Result<Output> {
        let mut state = self.progress.wait(limit, |state| state.end.is_some());
        match state.end.clone() {
            Some(Ok(status)) => Ok(Output { status, bytes: std::mem::take(&mut state.bytes) }),
            Some(Err(why)) => Err(self.failure(&state, &why)),
            None => Err(self.failure(&state, &format!("did not end within {limit:?}"))),
        }
    }

    /// Waits for the script's end, and says whether it came within `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.progress.wait(limit, |state| state.end.is_some()).end.is_some()
    }

    /// Waits until the script has printed `text`.
    ///
    /// # Errors
    ///
    /// It did not within `limit`, or ended before. The error holds what it printed so far.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        self.wait_until(&format!("{text:?}"), limit, |printed| printed.contains(text).then_some(()))
    }

    /// Waits until the script has printed a line that has all of `words`, and returns the first such line.
    ///
    /// # Errors
    ///
    /// As [`Job::wait_for`].
    pub fn wait_for_line(&self, words: &[&str], limit: Duration) -> Result<String> {
        self.wait_until(&format!("a line with {words:?}"), limit, |printed| {
            let mut whole =
                printed.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            whole.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// Waits until `find` finds something in all that was printed so far; `what` it is shows in messages.
    ///
    /// # Errors
    ///
    /// As [`Job::wait_for`].
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let find = |state: &State| find(&String::from_utf8_lossy(&state.bytes));
        let state = self.progress.wait(limit, |state| state.end.is_some() || find(state).is_some());
        if let Some(found) = find(&state) {
            return Ok(found);
        }
        let why = match &state.end {
            Some(Ok(status)) => format!("ended with {status} before it printed {what}"),
            Some(Err(why)) => why.clone(),
            None => format!("did not print {what} within {limit:?}"),
        };
        Err(self.failure(&state, &why))
    }

    /// What the script has printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.progress.lock().bytes).into_owned()
    }

    /// Kills the script and everything it started.
    pub fn kill(&self) {
        (self.kill)();
    }

    fn failure(&self, state: &State, why: &str) -> anyhow::Error {
        let printed = String::from_utf8_lossy(&state.bytes);
        anyhow!("{} {why}; printed so far:\n{printed}", self.what)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let running = self.progress.lock().end.is_none();
        if running {
            self.kill();
        }
    }
}
