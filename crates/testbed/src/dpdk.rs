//! DPDK as the guest: `dpdk-testpmd`, whose virtio-user driver is at once the virtual machine's front end and its
//! driver, and which is told what to do at its command prompt.
//!
//! # How it works
//!
//! testpmd forwards frames between its ports: what comes in at port 0 leaves by port 1 and the other way round. The
//! harness writes a command to its standard input; the next prompt in its output says that the command is done.
//!
//! It can be the switch as well: a [`Vhost`] port is a back end, of DPDK's vhost library.
//!
//! DPDK keeps its buffers in hugepages. It can do with ordinary memory, which it then cannot grow; so only tests of memory
//! that grows need [`Builder::hugepages`]. Who measures wants them for their speed, for several programs at once, and each
//! program's busy thread on a processor of its own: [`Builder::hugepages_of`] and [`Builder::processors`].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};
use tempfile::TempDir;

use crate::hugepages::{Hugepages, PAGE_SIZE};
use crate::image::find_program;
use crate::process::{Program, bound_command, replace, shell_words};

/// testpmd has its ports up within this time.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A command is done, or the program at its end, within this time.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// What testpmd prints when it waits for a command.
const PROMPT: &str = "testpmd> ";
/// How it turns a command down that it does not understand.
const REFUSALS: [&str; 3] = ["Bad arguments", "Command not found", "Ambiguous command"];
/// Memory without hugepages: for [`BUFFERS`], and as much again.
const MEMORY_MIB: u64 = 96;
/// Hugepages: as much memory, and those that DPDK cannot use because it wants them side by side.
const HUGEPAGES: u64 = MEMORY_MIB * (1 << 20) / PAGE_SIZE + 16;
/// Packet buffers: all rings of two ports with four queue pairs full, and some in DPDK's caches.
const BUFFERS: u32 = 8192;

/// A port on a vhost-user socket.
#[derive(Clone, Debug)]
pub struct VirtioUser {
    mac: String,
    arguments: String,
}

impl VirtioUser {
    /// A port with one queue pair and rings of 256 entries.
    pub fn new(socket: impl AsRef<Path>, mac: &str) -> VirtioUser {
        VirtioUser::with_ring(socket, mac, 256)
    }

    /// A port with one queue pair and rings of so many entries.
    pub fn with_ring(socket: impl AsRef<Path>, mac: &str, entries: u16) -> VirtioUser {
        let arguments =
            format!("path={},mac={mac},queue_size={entries}", socket.as_ref().display());
        VirtioUser { mac: mac.to_owned(), arguments }
    }

    /// Adds an option of DPDK's `net_virtio_user`, such as `packed_vq=1`.
    #[must_use]
    pub fn option(mut self, option: &str) -> VirtioUser {
        self.arguments += &format!(",{option}");
        self
    }
}

/// A port that is a back end, on a vhost-user socket where testpmd listens.
#[derive(Clone, Debug)]
pub struct Vhost {
    arguments: String,
}

impl Vhost {
    /// A port that takes whatever rings a front end has.
    pub fn new(socket: impl AsRef<Path>) -> Vhost {
        Vhost { arguments: format!("iface={}", socket.as_ref().display()) }
    }

    /// Adds an option of DPDK's `net_vhost`, such as `client=1`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Vhost {
        self.arguments += &format!(",{option}");
        self
    }
}

/// A port of either kind.
#[derive(Clone, Debug)]
struct Port {
    /// DPDK's name of the driver.
    driver: &'static str,
    mac: String,
    arguments: String,
}

/// What a testpmd is to be. Made by [`Testpmd::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    ports: Vec<Port>,
    queues: u16,
    memory: Memory,
    buffers: u32,
    buffer_size: Option<u16>,
    processors: Option<[usize; 2]>,
    environment: Vec<String>,
    arguments: Vec<String>,
}

/// What DPDK's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// Ordinary pages.
    Ordinary,
    /// Hugepages that are reserved for this program alone.
    Reserved,
    /// Hugepages that somebody else has reserved.
    Lent,
}

impl Builder {
    /// Adds a port; the first is port 0.
    #[must_use]
    pub fn port(mut self, port: VirtioUser) -> Builder {
        let VirtioUser { mac, arguments } = port;
        self.ports.push(Port { driver: "net_virtio_user", mac, arguments });
        self
    }

    /// Adds a port that is a back end.
    #[must_use]
    pub fn back_end(mut self, port: Vhost) -> Builder {
        // The driver's own: the last byte is the port's number.
        let mac = format!("56:48:4F:53:54:{:02X}", self.ports.len());
        self.ports.push(Port { driver: "net_vhost", mac, arguments: port.arguments });
        self
    }

    /// Queue pairs of each port, 1 if not said.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Builder {
        self.queues = queues;
        self
    }

    /// Memory in hugepages, taken as it is needed: what DPDK does when it is not told otherwise.
    #[must_use]
    pub fn hugepages(mut self) -> Builder {
        self.memory = Memory::Reserved;
        self
    }

    /// The same in pages that are there already, and stay for as long as it runs: for several programs at once.
    #[must_use]
    pub fn hugepages_of(mut self, _pages: &Hugepages) -> Builder {
        self.memory = Memory::Lent;
        self
    }

    /// How many packet buffers there are, and of how many bytes each, if not DPDK's usual 2048: a frame that fits into one
    /// is not strung together from several.
    #[must_use]
    pub fn buffers(mut self, count: u32, size: Option<u16>) -> Builder {
        self.buffers = count;
        self.buffer_size = size;
        self
    }

    /// The processor for the prompt, and the one for the thread that forwards. Otherwise the kernel chooses.
    #[must_use]
    pub fn processors(mut self, prompt: usize, forwarding: usize) -> Builder {
        self.processors = Some([prompt, forwarding]);
        self
    }

    /// Adds an argument for DPDK's environment layer, such as `--force-max-simd-bitwidth=512`.
    #[must_use]
    pub fn environment(mut self, argument: &str) -> Builder {
        self.environment.push(argument.to_owned());
        self
    }

    /// Adds an argument for testpmd itself, such as `--forward-mode=mac`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Builder {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts testpmd and waits for its first prompt: all ports are up then, and it forwards nothing yet.
    ///
    /// # Errors
    ///
    /// It does not get there, and the error shows what it said; or there are no hugepages to be had.
    pub fn start(self) -> Result<Testpmd> {
        find_program("dpdk-testpmd")
            .context("no dpdk-testpmd on this machine: install Debian's dpdk-dev")?;
        let reserve = self.memory == Memory::Reserved;
        let hugepages = reserve.then(|| Hugepages::reserve(HUGEPAGES)).transpose()?;
        let directory = tempfile::Builder::new().prefix("testpmd-").tempdir()?;

        // To a pipe, the C library would print by the block; the prompt goes past it.
        let mut command = bound_command("stdbuf");
        command.args(["--output=0", "dpdk-testpmd", "-v", "--no-pci", "--no-telemetry"]);
        command.arg("--no-shconf");
        command.env("RUNTIME_DIRECTORY", directory.path());
        if self.memory != Memory::Ordinary {
            // Hugepages in one file, or each would be a region of its own, and there may be eight.
            command.args(["--in-memory", "--single-file-segments"]);
        } else {
            command.args(["--no-huge", "-m", &self.memory_mib().to_string()]);
        }
        // One thread for the prompt, and one that forwards; the kernel moves them, when there are others to run.
        let lcores = match self.processors {
            Some([prompt, forwarding]) => format!("0@{prompt},1@{forwarding}"),
            None => format!("(0,1)@({})", cpus()?),
        };
        command.arg(format!("--lcores={lcores}")).args(&self.environment);
        // For [`Testpmd::driver`]. A driver takes the first level that fits, so a test may ask for more.
        command.arg("--log-level=pmd.net.virtio.*:info");
        for (number, Port { driver, arguments, .. }) in self.ports.iter().enumerate() {
            let queues = self.queues;
            command.arg(format!("--vdev={driver}{number},queues={queues},{arguments}"));
        }
        let buffers = self.buffers;
        command.args(["--", "--interactive"]).arg(format!("--total-num-mbufs={buffers}"));
        if let Some(size) = self.buffer_size {
            command.arg(format!("--mbuf-size={size}"));
        }
        if self.queues > 1 {
            let queues = self.queues;
            command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
        }
        command.args(&self.arguments);

        let options: Vec<&str> = self.ports.iter().map(|port| port.arguments.as_str()).collect();
        let what = format!("dpdk-testpmd {}", options.join(" "));
        let words = shell_words(&command)?;
        let (program, input) = Program::start_interactive("host", &what, command)?;
        let mut testpmd = Testpmd {
            program,
            input,
            read: 0,
            ports: self.ports,
            queues: self.queues,
            words,
            directory,
            _hugepages: hugepages,
        };
        let said = testpmd.prompt("to start", START_LIMIT)?;
        for number in 0..testpmd.ports.len() {
            // A driver that fails is left out, and the others go on.
            let mac = &testpmd.ports[number].mac;
            let up = said.lines().any(|line| line.trim() == format!("Port {number}: {mac}"));
            ensure!(up, "port {number} did not come up:\n{said}");
        }
        Ok(testpmd)
    }

    /// Memory without hugepages: for the buffers, and as much again for what DPDK has beside them.
    fn memory_mib(&self) -> u64 {
        let size = u64::from(self.buffer_size.unwrap_or(0));
        MEMORY_MIB.max((2 * u64::from(self.buffers) * size) >> 20)
    }
}

/// A running testpmd. Dropping it kills it.
pub struct Testpmd {
    program: Program,
    input: ChildStdin,
    /// Bytes of its output up to the last prompt that was waited for.
    read: usize,
    ports: Vec<Port>,
    queues: u16,
    /// How it was started.
    words: String,
    directory: TempDir,
    // Given back after the program was killed.
    _hugepages: Option<Hugepages>,
}

impl Testpmd {
    /// Says what a testpmd is to be.
    pub fn builder() -> Builder {
        Builder {
            ports: Vec::new(),
            queues: 1,
            memory: Memory::Ordinary,
            buffers: BUFFERS,
            buffer_size: None,
            processors: None,
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Queue pairs of each port.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Has a command done, and returns what was printed meanwhile.
    ///
    /// # Errors
    ///
    /// testpmd does not know the command, does not get it done in time, or ends.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        let said = self.prompt(&format!("`{command}`"), COMMAND_LIMIT)?;
        if REFUSALS.iter().any(|refusal| said.contains(refusal)) {
            bail!("testpmd does not take `{command}`: {said}");
        }
        Ok(said)
    }

    /// Starts forwarding. With `first`, each queue of each port first sends so many bursts of 32 frames.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub fn forward(&mut self, first: Option<u32>) -> Result<()> {
        let command = match first {
            Some(bursts) => format!("start tx_first {bursts}"),
            None => "start".to_owned(),
        };
        let said = self.command(&command)?;
        ensure!(said.contains("forwards packets on"), "testpmd does not forward: {said}");
        Ok(())
    }

    /// Stops forwarding. What comes from now on stays in the rings.
    ///
    /// # Errors
    ///
    /// It does not stop.
    pub fn halt(&mut self) -> Result<()> {
        let said = self.command("stop")?;
        ensure!(said.contains("Done."), "testpmd did not forward: {said}");
        Ok(())
    }

    /// What a port counted since it started.
    ///
    /// # Errors
    ///
    /// There is no such port.
    pub fn statistics(&mut self, port: usize) -> Result<Statistics> {
        let said = self.command(&format!("show port xstats {port}"))?;
        let counters = parse_counters(&said);
        let get = |name: &str| {
            let counter = counters.get(name).copied();
            counter.with_context(|| format!("port {port} does not count {name}: {said}"))
        };
        let (received, sent) = (get("rx_good_packets")?, get("tx_good_packets")?);
        Ok(Statistics { received, sent, counters })
    }

    /// Waits until `done` holds of the statistics of all ports, and returns them.
    ///
    /// # Errors
    ///
    /// It does not within `limit`.
    pub fn wait_for_statistics(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&[Statistics]) -> bool,
    ) -> Result<Vec<Statistics>> {
        let deadline = Instant::now() + limit;
        loop {
            let all: Vec<Statistics> =
                (0..self.ports.len()).map(|port| self.statistics(port)).collect::<Result<_>>()?;
            if done(&all) {
                return Ok(all);
            }
            ensure!(Instant::now() < deadline, "{what} did not come within {limit:?}: {all:?}");
        }
    }

    /// What the driver of a port did when it was last set up.
    ///
    /// # Errors
    ///
    /// It was not.
    pub fn driver(&self, port: usize) -> Result<Driver> {
        let log = self.log();
        let socket = self.ports.get(port).and_then(|port| port.arguments.split(',').next());
        let socket = socket.and_then(|path| path.strip_prefix("path=")).context("no such port")?;
        // `(PATH) set features: 0xBITS`, then `virtio: using KIND Tx path on port NUMBER`, and one for Rx.
        let last = |before: &str, after: &str| -> Result<&str> {
            let mut lines = log.lines().rev().map(str::trim_end);
            let found = lines.find_map(|line| line.split_once(before)?.1.strip_suffix(after));
            found.with_context(|| format!("no `{before}...{after}`:\n{log}"))
        };
        let features = last(&format!("({socket}) set features: 0x"), "")?;
        Ok(Driver {
            features: u64::from_str_radix(features, 16)?,
            transmit: last("virtio: using ", &format!(" Tx path on port {port}"))?.to_owned(),
            receive: last("virtio: using ", &format!(" Rx path on port {port}"))?.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// All that was printed so far.
    pub fn log(&self) -> String {
        self.program.job().text()
    }

    /// Waits until something was printed `count` times.
    ///
    /// # Errors
    ///
    /// It was not within `limit`.
    pub fn wait_for_log(&self, text: &str, count: usize, limit: Duration) -> Result<()> {
        self.program.job().wait_until(&format!("{text:?} {count} times"), limit, |printed| {
            (printed.matches(text).count() >= count).then_some(())
        })
    }

    /// A shell command that starts it anew after it has died or hangs, and stays in the foreground. Nobody can tell it
    /// anything then, so it should forward by itself (`--auto-start`).
    ///
    /// # Errors
    ///
    /// The path of its directory is not UTF-8.
    pub fn restart(&self) -> Result<String> {
        let directory = self.directory.path().to_str().context("a path in UTF-8")?;
        let sockets: Vec<&str> = self
            .ports
            .iter()
            .filter_map(|port| port.arguments.split(',').next()?.strip_prefix("iface="))
            .collect();
        let former = replace(self.pid(), sockets.first().context("no port is a back end")?);
        let (sockets, words) = (sockets.join("' '"), &self.words);
        // A standard input that never ends; and sockets that it had no chance to remove.
        Ok(format!(
            "cd '{directory}'; {former}; rm -f input '{sockets}'; mkfifo input; exec {words} <>input >>again.log 2>&1"
        ))
    }

    /// DPDK's version.
    ///
    /// # Errors
    ///
    /// It did not say.
    pub fn version(&self) -> Result<String> {
        // `EAL: RTE Version: 'DPDK 22.11.11'`.
        let log = self.log();
        let found = log.split_once("RTE Version: '").and_then(|(_, rest)| rest.split_once('\''));
        found.map(|(version, _)| version.to_owned()).with_context(|| format!("no version:\n{log}"))
    }

    /// Has it stop and close its ports, and end.
    ///
    /// # Errors
    ///
    /// It does not, or not well.
    pub fn quit(mut self) -> Result<()> {
        self.tell("quit")?;
        let output = self.program.into_job().wait(COMMAND_LIMIT)?;
        ensure!(output.success(), "testpmd ended with {}:\n{}", output.status, output.text());
        Ok(())
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        let told = self.input.write_all(format!("{command}\n").as_bytes());
        told.with_context(|| format!("cannot tell testpmd `{command}`:\n{}", self.log()))
    }

    /// Waits for the next prompt, and returns what was printed since the last.
    fn prompt(&mut self, what: &str, limit: Duration) -> Result<String> {
        let read = self.read;
        let said =
            self.program.job().wait_until(&format!("a prompt after {what}"), limit, |all| {
                let (said, _) = all.get(read..)?.split_once(PROMPT)?;
                Some(said.to_owned())
            })?;
        self.read += said.len() + PROMPT.len();
        Ok(said)
    }
}

/// What a port counted.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Frames that the driver took from its receive rings.
    pub received: u64,
    /// Frames that it put into its transmit rings.
    pub sent: u64,
    /// All that it counts, by DPDK's own names, such as `rx_q0_good_packets`.
    pub counters: BTreeMap<String, u64>,
}

impl Statistics {
    /// Counters of what went wrong, those that are not zero.
    pub fn errors(&self) -> Vec<(&str, u64)> {
        let counters = self.counters.iter().map(|(name, value)| (name.as_str(), *value));
        counters.filter(|(name, value)| name.ends_with("errors") && *value > 0).collect()
    }
}

/// What a port's driver negotiated, and which of its functions it chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The virtio features that it set.
    pub features: u64,
    /// The kind of its transmit function, in its own words: `packed ring standard`.
    pub transmit: String,
    /// The kind of its receive function: `mergeable buffer`.
    pub receive: String,
}

/// Lines of `show port xstats`: `rx_good_packets: 17`.
fn parse_counters(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let (name, value) = line.trim().split_once(": ")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// The processors that this process may use, as a list.
fn cpus() -> Result<String> {
    let set = sched_getaffinity(None)?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu.to_string());
    Ok(cpus.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_past_what_is_said_beside_them() {
        let text = "show port xstats 0\r\n###### NIC extended statistics for port 0 \r\n\
                    rx_good_packets: 1519904\ntx_good_packets: 1520128\nPort 1: link state change event\n\
                    tx_q0_good_packets: 7\n";
        let counters = parse_counters(text);
        let expected =
            [("rx_good_packets", 1519904), ("tx_good_packets", 1520128), ("tx_q0_good_packets", 7)];
        assert_eq!(counters, expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn memory_grows_with_the_buffers() {
        let mebibytes = |count, size| Testpmd::builder().buffers(count, size).memory_mib();
        assert_eq!(mebibytes(BUFFERS, None), MEMORY_MIB);
        assert_eq!(mebibytes(8192, Some(16384)), 256);
    }
}
