//! Child processes that never outlive the test, and files that live in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;

type Order = (Command, Sender<io::Result<Child>>);

/// `program`, to be killed by the kernel when the thread that starts it is gone. Start it with [`spawn`].
pub(crate) fn bound_command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program.as_ref());
    command
}

/// Starts a command from the one thread that lives as long as this process: the kernel's "parent death signal" comes
/// when the starting *thread* ends, and a test's own threads come and go.
pub(crate) fn spawn(command: Command) -> Result<Child> {
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
    orders
        .send((command, answer))
        .ok()
        .context("the spawning thread is gone")?;
    let child = answered.recv().context("the spawning thread is gone")?;
    child.with_context(|| format!("cannot start {what}"))
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
        Ok(MemoryFile {
            file: File::open(path_of(&writable))?,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.file)
    }
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}
