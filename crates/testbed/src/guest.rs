//! A guest under QEMU, with a shell inside.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::channel::Channel;
use crate::image::Image;
use crate::monitor::Monitor;
use crate::network::Network;
use crate::nic::Nic;
use crate::process::{self, bound_command};
use crate::qemu::Qemu;
use crate::shell::{Job, Shell};

/// A guest boots in about three seconds; tests in parallel on a small machine make that many more.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// From a closed channel to the end of QEMU's process.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How much of the console an error shows.
const CONSOLE_LINES: usize = 30;
/// Quiet and without what only costs time under emulation; a panic ends in a reboot at once, which ends the jobs.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable net.ifnames=0";

/// What a guest is to be. Made by [`Guest::builder`].
#[derive(Clone)]
pub struct Builder {
    image: Image,
    name: String,
    qemu: Option<Qemu>,
    memory_mib: u32,
    memory_backend: String,
    cpu: String,
    processors: u32,
    namespace: Option<String>,
    nics: Vec<Nic>,
    arguments: Vec<OsString>,
}

impl Builder {
    /// The QEMU to use; [`Qemu::system`] if not said.
    #[must_use]
    pub fn qemu(mut self, qemu: &Qemu) -> Builder {
        self.qemu = Some(qemu.clone());
        self
    }

    /// The guest's memory, 256 MiB if not said.
    #[must_use]
    pub fn memory_mib(mut self, mebibytes: u32) -> Builder {
        self.memory_mib = mebibytes;
        self
    }

    /// What the guest's memory is made of, for QEMU's `-object`; `memory-backend-memfd,share=on` if not said, because
    /// vhost-user needs memory that is a file and shared.
    #[must_use]
    pub fn memory_backend(mut self, backend: &str) -> Builder {
        self.memory_backend = backend.to_owned();
        self
    }

    /// The processor model, `max` if not said.
    #[must_use]
    pub fn cpu(mut self, model: &str) -> Builder {
        self.cpu = model.to_owned();
        self
    }

    /// How many processors there are, 1 if not said.
    #[must_use]
    pub fn processors(mut self, count: u32) -> Builder {
        self.processors = count;
        self
    }

    /// Runs QEMU in the network's namespace, where its taps are.
    #[must_use]
    pub fn network(mut self, network: &Network) -> Builder {
        self.namespace = network.namespace().map(str::to_owned);
        self
    }

    /// One more network card.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Builder {
        self.nics.push(nic);
        self
    }

    /// One more argument for QEMU.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Builder {
        self.arguments.push(argument.into());
        self
    }

    /// Boots the guest and waits until its shell is ready.
    ///
    /// # Errors
    ///
    /// QEMU or the kernel is missing, QEMU ends (with what it said), or the guest does not get to its shell in time
    /// (with the last lines of its console).
    pub fn boot(mut self) -> Result<Guest> {
        let qemu = self.qemu.take().map_or_else(Qemu::system, Ok)?;
        let directory = tempfile::Builder::new().prefix("testbed-").tempdir()?;
        let mut guest = Guest { builder: self, qemu, directory, machine: None };
        guest.power_on()?;
        Ok(guest)
    }
}

/// A guest. Dropping it ends its QEMU.
pub struct Guest {
    builder: Builder,
    qemu: Qemu,
    /// The channel's and the monitor's sockets, the console, and what QEMU says.
    directory: TempDir,
    machine: Option<Machine>,
}

/// A running QEMU.
struct Machine {
    process: Process,
    channel: Channel,
    monitor: Mutex<Monitor>,
}

/// QEMU's process, killed when dropped.
struct Process {
    child: Mutex<Child>,
    /// Readable once the process has ended.
    ended: OwnedFd,
}

impl Process {
    fn new(child: Child) -> Result<Process> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid of 0")?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process { child: Mutex::new(child), ended })
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the process ended, if it has within `limit`.
    fn end(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let ended = wait_readable([self.ended.as_fd()], limit)?;
        Ok(if ended == [true] { Some(self.child().wait()?) } else { None })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has ended, and been waited for.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Guest {
    /// A guest with this image and name, and otherwise 256 MiB of shared memory, one `max` processor and no network card.
    pub fn builder(image: &Image, name: &str) -> Builder {
        Builder {
            image: image.clone(),
            name: name.to_owned(),
            qemu: None,
            memory_mib: 256,
            memory_backend: "memory-backend-memfd,share=on".to_owned(),
            cpu: "max".to_owned(),
            processors: 1,
            namespace: None,
            nics: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Reboots from inside, as a user would, and waits for the shell.
    ///
    /// # Errors
    ///
    /// As [`Builder::boot`].
    pub fn reboot(&self) -> Result<()> {
        let channel = &self.machine()?.channel;
        let before = channel.boot();
        let _job = channel.start(self.name(), "reboot -f")?;
        self.wait_for_boot(before.as_deref())
    }

    /// Pushes the reset button: the guest gets no chance to tidy up. Waits for the shell.
    ///
    /// # Errors
    ///
    /// As [`Builder::boot`].
    pub fn reset(&self) -> Result<()> {
        let before = self.machine()?.channel.boot();
        self.qmp("system_reset", json!({}))?;
        self.wait_for_boot(before.as_deref())
    }

    /// Kills QEMU, as a crash would.
    pub fn kill(&mut self) {
        self.machine = None;
    }

    /// Kills QEMU if it runs, starts it again with the same command line, and waits for the shell.
    ///
    /// # Errors
    ///
    /// As [`Builder::boot`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.power_on()
    }

    /// QEMU's process id.
    ///
    /// # Errors
    ///
    /// The guest is killed.
    pub fn qemu_pid(&self) -> Result<u32> {
        Ok(self.machine()?.process.child().id())
    }

    /// The QEMU that runs this guest.
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// Executes a command of QEMU's machine protocol and returns its answer.
    ///
    /// # Errors
    ///
    /// QEMU refuses it, or has ended.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut monitor = self.machine()?.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.execute(command, arguments).with_context(|| self.name().to_owned())
    }

    /// Executes a command of QEMU's human monitor, such as `info network`, and returns what it prints.
    ///
    /// # Errors
    ///
    /// QEMU has ended.
    pub fn monitor(&self, command: &str) -> Result<String> {
        let answer = self.qmp("human-monitor-command", json!({"command-line": command}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// All that the guest has printed on its console, and before that, what QEMU has said.
    pub fn console(&self) -> String {
        let read = |name| fs::read(self.file(name)).unwrap_or_default();
        let text = [read("qemu.log"), read("console.log")].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn machine(&self) -> Result<&Machine> {
        self.machine.as_ref().with_context(|| format!("{}: the guest is killed", self.name()))
    }

    fn wait_for_boot(&self, before: Option<&str>) -> Result<()> {
        let machine = self.machine()?;
        let Err(error) = machine.channel.wait_for_boot(before, BOOT_LIMIT) else {
            return Ok(());
        };
        let error = match machine.process.end(END_LIMIT)? {
            Some(status) => error.context(format!("QEMU ended: {status}")),
            None => error,
        };
        Err(error.context(self.last_words()))
    }

    fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        format!("{}: what QEMU and the console said last:\n{last}\n", self.name())
    }

    fn power_on(&mut self) -> Result<()> {
        let machine = self.start_qemu().with_context(|| self.last_words())?;
        self.machine = Some(machine);
        self.wait_for_boot(None)
    }

    fn start_qemu(&self) -> Result<Machine> {
        // QEMU connects to these as it starts, so there is no moment at which a socket is not there yet.
        let agent = listen(&self.file("agent.sock"))?;
        let monitor = listen(&self.file("monitor.sock"))?;
        let process = Process::new(process::spawn(self.command()?)?)?;
        let channel = Channel::new(accept(&agent, &process)?)?;
        let monitor = Mutex::new(Monitor::new(accept(&monitor, &process)?)?);
        Ok(Machine { process, channel, monitor })
    }

    fn command(&self) -> Result<Command> {
        let builder = &self.builder;
        let directory = self.directory.path().display();
        let mut command = match &builder.namespace {
            None => bound_command(self.qemu.path()),
            Some(namespace) => {
                let mut command = bound_command("ip");
                command.args(["netns", "exec", namespace]).arg(self.qemu.path());
                command
            }
        };
        let backend = &builder.memory_backend;
        let memory = builder.memory_mib;
        // One processor needs one thread, which spares the emulator its atomic operations.
        let accelerator =
            if builder.processors == 1 { "tcg,thread=single" } else { "tcg,thread=multi" };
        command
            .args(["-name", &builder.name, "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35,memory-backend=memory", "-cpu", &builder.cpu])
            .args(["-accel", accelerator, "-smp", &builder.processors.to_string()])
            .args(["-m", &format!("{memory}M")])
            .arg("-object")
            .arg(format!("{backend},id=memory,size={memory}M"))
            .arg("-kernel")
            .arg(builder.image.kernel())
            .arg("-initrd")
            .arg(builder.image.initramfs())
            .args(["-append", KERNEL_ARGUMENTS])
            .arg("-chardev")
            .arg(format!("file,id=console,path={directory}/console.log,append=on"))
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=monitor,path={directory}/monitor.sock"))
            .args(["-mon", "chardev=monitor,mode=control"])
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={directory}/agent.sock"))
            .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent"]);
        for (index, nic) in builder.nics.iter().enumerate() {
            command.args(nic.arguments(index, &self.qemu)?);
        }
        let log = fs::File::options().create(true).append(true).open(self.file("qemu.log"))?;
        command.args(&builder.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

impl Shell for Guest {
    fn name(&self) -> &str {
        &self.builder.name
    }

    fn start(&self, script: &str) -> Result<Job> {
        self.machine()?.channel.start(self.name(), script)
    }
}

/// Listens at a path, in place of whoever did before.
fn listen(path: &Path) -> Result<UnixListener> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))
}

/// Accepts QEMU's connection, unless QEMU ends first.
fn accept(listener: &UnixListener, qemu: &Process) -> Result<UnixStream> {
    let [connected, ended] = wait_readable([listener.as_fd(), qemu.ended.as_fd()], BOOT_LIMIT)?;
    if connected {
        return Ok(listener.accept()?.0);
    }
    if ended {
        bail!("QEMU ended: {}", qemu.child().wait()?);
    }
    bail!("QEMU did not connect within {BOOT_LIMIT:?}");
}

/// Waits until one of the descriptors is readable, and says which are: none if `limit` passed.
fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], limit: Duration) -> Result<[bool; N]> {
    let deadline = Instant::now() + limit;
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                result?;
                return Ok(fds.map(|fd| !fd.revents().is_empty()));
            }
        }
    }
}
