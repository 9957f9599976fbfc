//! The switch under test: the program as its users start it.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use testbed::process::bound_command;
use testbed::{Network, Output, Program};

/// A switch says that it is ready within this time, on a machine that is busy with other tests.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// A switch complains of what it was sent within this time.
const COMPLAINT_LIMIT: Duration = Duration::from_secs(10);
/// What the program promises: from the signal to its end.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// A run that is expected to fail does so within this time.
const FAIL_LIMIT: Duration = Duration::from_secs(10);
/// How long one is watched that has nothing to do, and what it may use of a processor meanwhile.
const IDLE_TIME: Duration = Duration::from_secs(2);
const IDLE_LIMIT: Duration = Duration::from_millis(20);

/// A running `ringway run` in a directory of its own. Dropping it kills it.
pub struct Switch {
    program: Program,
    directory: TempDir,
}

impl Switch {
    /// Starts a switch with these `--port` values and waits until it is ready. Sockets with a relative path are in the
    /// switch's own directory; see [`Switch::path`].
    ///
    /// # Errors
    ///
    /// It does not get ready; the error shows what it said.
    pub fn start(ports: &[&str]) -> Result<Switch> {
        Switch::start_with(&[], ports)
    }

    /// The same with more options of `ringway run`, such as `--workers 2`.
    ///
    /// # Errors
    ///
    /// As [`Switch::start`].
    pub fn start_with(options: &[&str], ports: &[&str]) -> Result<Switch> {
        Switch::launch(bound_command(binary()?), options, ports)
    }

    /// The same in a network's namespace, where its taps are.
    ///
    /// # Errors
    ///
    /// As [`Switch::start`].
    pub fn start_in(network: &Network, ports: &[&str]) -> Result<Switch> {
        Switch::start_in_with(network, &[], ports)
    }

    /// The same with more options.
    ///
    /// # Errors
    ///
    /// As [`Switch::start`].
    pub fn start_in_with(network: &Network, options: &[&str], ports: &[&str]) -> Result<Switch> {
        Switch::launch(network.command(binary()?), options, ports)
    }

    /// The same by a user without any privilege, in a network's namespace.
    ///
    /// # Errors
    ///
    /// As [`Switch::start`].
    pub fn start_as_nobody(network: &Network, ports: &[&str]) -> Result<Switch> {
        let program = program_for_everybody()?;
        let command = network.command("setpriv");
        Switch::launch(without_privilege(command, program), &[], ports)
    }

    fn launch(mut command: Command, options: &[&str], ports: &[&str]) -> Result<Switch> {
        let directory = tempfile::Builder::new().prefix("ringway-").tempdir()?;
        // Whoever it runs as makes its sockets there.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
        command.args(["run", "--log", "info"]);
        // Side by side, they would all want the same one.
        if !options.contains(&"--control") {
            command.args(["--control", "off"]);
        }
        command.args(options).current_dir(directory.path());
        command.args(ports.iter().flat_map(|port| ["--port", port]));
        let what = format!("ringway run {} {}", options.join(" "), ports.join(" "));
        let program = Program::start("host", &what, command)?;
        program.job().wait_for("ready", READY_LIMIT)?;
        Ok(Switch { program, directory })
    }

    /// The path of a file in the switch's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Watches it while nobody has anything for it to do: it uses no processor.
    ///
    /// # Errors
    ///
    /// It does.
    pub fn watch_idle(&self) -> Result<()> {
        let before = self.processor_time()?;
        thread::sleep(IDLE_TIME);
        let used = self.processor_time()? - before;
        println!("idle for {IDLE_TIME:?}: {used:?} of processor time");
        ensure!(used <= IDLE_LIMIT, "the switch used {used:?} in {IDLE_TIME:?}");
        Ok(())
    }

    /// Processor time that it has used, by all its threads.
    fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // Fields are counted after the name, which may hold anything; the next one is the third.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse);
        let ticks: u64 = ticks.collect::<Result<Vec<u64>, _>>()?.iter().sum();
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.program.job().text()
    }

    /// Waits until it has logged `text`.
    ///
    /// # Errors
    ///
    /// It does not within `limit`.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        self.program.job().wait_for(text, limit)
    }

    /// Waits until it complains about a port, and returns that one line.
    ///
    /// # Errors
    ///
    /// It does not in time, or more than once.
    pub fn complaint(&self, port: &str) -> Result<String> {
        let port = format!("port=\"{port}\"");
        let line = self.program.job().wait_for_line(&["ERROR", &port], COMPLAINT_LIMIT)?;
        let log = self.log();
        let is_complaint = |line: &&str| line.contains(&port) && !line.contains(" INFO ");
        ensure!(log.lines().filter(is_complaint).count() == 1, "more than one complaint:\n{log}");
        Ok(line)
    }

    /// Ends it as a service manager does, and checks that it ends as it promises: within a second, with status 0, its
    /// sockets removed. Returns its log.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn stop(self) -> Result<String> {
        self.stop_by(Signal::TERM)
    }

    /// The same by another signal.
    ///
    /// # Errors
    ///
    /// As [`Switch::stop`].
    pub fn stop_by(self, signal: Signal) -> Result<String> {
        self.program.signal(signal)?;
        let start = Instant::now();
        let Output { status, bytes } = self.program.into_job().wait(STOP_LIMIT)?;
        let log = String::from_utf8_lossy(&bytes).into_owned();
        ensure!(status == 0, "the switch ended with {status} after {signal:?}:\n{log}");
        println!("the switch ended {:?} after {signal:?}", start.elapsed());
        let left: Vec<OsString> = self
            .directory
            .path()
            .read_dir()?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        ensure!(left.is_empty(), "the switch left {left:?} behind:\n{log}");
        Ok(log)
    }

    /// Kills it, so that it cannot clear anything away, and waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn kill(self) -> Result<()> {
        self.program.signal(Signal::KILL)?;
        ensure!(self.program.job().ends_within(STOP_LIMIT), "it lives on");
        Ok(())
    }
}

/// What a port counted, as the switch says it when it ends.
#[derive(Debug)]
pub struct Totals {
    /// Frames that came from it.
    pub received: u64,
    /// Frames that were delivered to it.
    pub sent: u64,
    /// Frames that were dropped there, for any reason.
    pub dropped: u64,
}

impl Totals {
    /// Of one port.
    ///
    /// # Errors
    ///
    /// Nothing was said of it.
    pub fn of(log: &str, port: &str) -> Result<Totals> {
        let counted = |line: &str| {
            // "vm1: 5 frames received, 3 sent, dropped: receiver_full 1, too_long 1", or "dropped: none".
            let (_, counts) = line.split_once(&format!(" {port}: "))?;
            let (traffic, drops) = counts.split_once(", dropped: ")?;
            let (received, sent) = traffic.split_once(" frames received, ")?;
            let drops =
                drops.split(", ").filter_map(|drop| drop.split_once(' ')?.1.parse::<u64>().ok());
            let sent = sent.strip_suffix(" sent")?.parse().ok()?;
            Some(Totals { received: received.parse().ok()?, sent, dropped: drops.sum() })
        };
        log.lines().find_map(counted).with_context(|| format!("no totals of {port}:\n{log}"))
    }
}

/// Runs `ringway` to its end, with these words before it, such as `setpriv`'s. For runs that fail by themselves.
///
/// # Errors
///
/// It does not end.
pub fn ringway(prefix: &[&str], arguments: &[&str]) -> Result<Output> {
    let binary = binary()?;
    let mut command = match prefix {
        [] => bound_command(binary),
        [program, rest @ ..] => {
            let mut command = bound_command(program);
            command.args(rest).arg(binary);
            command
        }
    };
    command.args(arguments);
    let what = format!("ringway {}", arguments.join(" "));
    Program::start("host", &what, command)?.into_job().wait(FAIL_LIMIT)
}

/// The user without any privilege.
pub const NOBODY: u32 = 65534;

/// A copy of the program that everybody can run, wherever the sources are.
fn program_for_everybody() -> Result<&'static Path> {
    static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    if let Some((_, path)) = COPY.get() {
        return Ok(path);
    }
    let directory = tempfile::Builder::new().prefix("ringway-").tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let path = directory.path().join("ringway");
    fs::copy(binary()?, &path)?;
    Ok(&COPY.get_or_init(|| (directory, path)).1)
}

/// `setpriv`, told to run a program as [`NOBODY`], and to end it with the one who started it: the kernel
/// forgets that when a program changes its user.
fn without_privilege(mut setpriv: Command, program: &Path) -> Command {
    let id = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    setpriv.args(id).args(["--clear-groups", "--pdeathsig", "KILL", "--"]).arg(program);
    setpriv
}

/// Runs `ringway` to its end in a network's namespace, by a user without any privilege if so wanted. For runs that fail
/// by themselves.
///
/// # Errors
///
/// It does not end.
pub fn ringway_in(network: &Network, privileged: bool, arguments: &[&str]) -> Result<Output> {
    let mut command = match privileged {
        true => network.command(binary()?),
        false => without_privilege(network.command("setpriv"), program_for_everybody()?),
    };
    command.args(arguments);
    let what = format!("ringway {}", arguments.join(" "));
    Program::start("host", &what, command)?.into_job().wait(FAIL_LIMIT)
}

/// The release build of the program: cargo builds it, if it has not yet. (Cargo hands a test the path of a program of
/// its own package only, and a debug build says nothing about speed.) Tests that ask at the same time wait for one
/// another at cargo's own lock.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = BINARY.get() {
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--locked", "--package", "ringway", "--bin", "ringway"])
        .args(["--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cannot build ringway:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .context("cargo does not say where it built ringway")?;
    Ok(BINARY.get_or_init(|| path))
}
