//! Child processes that never outlive the test, and files that live in memory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::shell::{Job, Progress};

type Order = (Command, Sender<io::Result<Child>>);

/// `program`, to be killed by the kernel when the thread that starts it is gone. Start it with [`spawn`].
pub fn bound_command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

/// A command as a shell understands it, with its environment.
pub(crate) fn shell_words(command: &Command) -> Result<String> {
    let mut words = vec!["env".to_owned()];
    for (name, value) in command.get_envs() {
        let value = value.unwrap_or_default();
        words.push(format!("{}={}", utf8(name)?, utf8(value)?));
    }
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        words.push(utf8(word)?.to_owned());
    }
    let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''")));
    Ok(quoted.collect::<Vec<_>>().join(" "))
}

/// Words of a shell that kill the program which was started last, if it is still there: first the one with this
/// process id, then whoever has left its own in the file `pid`. `mark` has to be in its command line: process ids are
/// given away again.
pub(crate) fn replace(first: u32, mark: &str) -> String {
    format!(
        "former=$(cat pid 2>/dev/null || echo {first}); \
         grep -qsF '{mark}' /proc/$former/cmdline && kill -KILL $former; echo $$ >pid"
    )
}

fn utf8(word: &OsStr) -> Result<&str> {
    word.to_str().with_context(|| format!("{} is not UTF-8", word.display()))
}

/// Starts a command from the one thread that lives as long as this process: the kernel's "parent death signal" comes
/// when the starting *thread* ends, and a test's own threads come and go.
///
/// # Errors
///
/// The program cannot be started.
pub fn spawn(command: Command) -> Result<Child> {
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                // A receiver that has gone wanted no answer.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let what = format!("{command:?}");
    let (answer, answered) = mpsc::channel();
    orders.send((command, answer)).ok().context("the spawning thread is gone")?;
    let child = answered.recv().context("the spawning thread is gone")?;
    child.with_context(|| format!("cannot start {what}"))
}

/// A program on the host, and what it printed so far. Dropping it kills it, and all that it started.
pub struct Program {
    job: Job,
    pid: Pid,
}

impl Program {
    /// Starts a command made by [`bound_command`], in the place called `name`; `what` it is shows in messages.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(name: &str, what: &str, mut command: Command) -> Result<Program> {
        command.stdin(Stdio::null());
        let (program, _) = Program::launch(name, what, command)?;
        Ok(program)
    }

    /// The same for a program that is told what to do on its standard input.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_interactive(
        name: &str,
        what: &str,
        mut command: Command,
    ) -> Result<(Program, ChildStdin)> {
        command.stdin(Stdio::piped());
        let (program, input) = Program::launch(name, what, command)?;
        Ok((program, input.context("no pipe to its standard input")?))
    }

    fn launch(
        name: &str,
        what: &str,
        mut command: Command,
    ) -> Result<(Program, Option<ChildStdin>)> {
        let (mut output, printed) = io::pipe()?;
        command.stdout(printed.try_clone()?).stderr(printed).process_group(0);
        let mut child = spawn(command)?;
        let input = child.stdin.take();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid of 0")?;
        let progress = Arc::new(Progress::default());
        let filled = Arc::clone(&progress);
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                filled.print(&buffer[..count]);
            }
            let end = child.wait().map_err(|error| error.to_string());
            filled.end(end.map(|end| end.code().unwrap_or(128 + end.signal().unwrap_or(0))));
        });
        let job = Job::new(name, what, progress, move || {
            // Fails only when they have all ended.
            let _ = kill_process_group(pid, Signal::KILL);
        });
        Ok((Program { job, pid }, input))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot send {signal:?}"))
    }

    /// What it printed, and its end.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The same, to wait for its end.
    pub fn into_job(self) -> Job {
        self.job
    }
}

/// Bytes under a path that other processes can open, gone when this value is, or this process.
pub(crate) struct MemoryFile {
    file: File,
}

impl MemoryFile {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Result<MemoryFile> {
        let mut writable = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
        writable.write_all(bytes)?;
        // Reopened for reading: a file that anyone has open for writing cannot be executed.
        Ok(MemoryFile { file: File::open(path_of(&writable))? })
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.file)
    }
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}
