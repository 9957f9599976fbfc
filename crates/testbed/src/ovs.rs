//! Open vSwitch with DPDK, which is a switch with vhost-user ports.
//!
//! # How it works
//!
//! Nothing of the machine's own Open vSwitch is used, if it has one: database, switch and sockets are in a directory of
//! their own, and the taps that it creates are in a network namespace that goes when it ends. Debian's packages may try
//! to start their service when they are installed; whether they can is of no matter here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};
use tempfile::TempDir;

use crate::process::{Program, bound_command, replace, shell_words};

/// The switch with DPDK: Debian has another one, without, which `ovs-vswitchd` may be.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// One of its tools is done within this time. The switch waits for nothing, but is started meanwhile.
const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// Memory without hugepages, in MiB: buffers for two ports with four queue pairs each, and while these come and go for
/// as many again. What is not used is not taken from the machine.
const MEMORY_MIB: u32 = 512;

/// A running switch: one bridge that learns addresses, with vhost-user ports on which it listens. Dropping it kills it.
pub struct Ovs {
    switch: Program,
    _database: Program,
    directory: TempDir,
}

impl Ovs {
    /// Starts a switch with these ports, and waits until they are there.
    ///
    /// # Errors
    ///
    /// It does not get there, and the error shows what was said.
    pub fn start(ports: &[&str]) -> Result<Ovs> {
        ensure!(
            Path::new(SWITCH).exists(),
            "no {SWITCH} on this machine: install Debian's openvswitch-switch-dpdk"
        );
        let directory = tempfile::Builder::new().prefix("ovs-").tempdir()?;
        let file = directory.path().join("conf.db");
        let file = file.to_str().context("a path in UTF-8")?;
        run(&directory, "ovsdb-tool", &["create", file, SCHEMA])?;
        let mut command = command(&directory, "ovsdb-server");
        command.arg(file).arg("--no-chdir").arg(format!("--remote=p{}", remote(&directory)));
        let database = Program::start("host", "ovsdb-server", command)?;

        vsctl(&directory, &["--no-wait", "init"])?;
        let extra =
            format!("dpdk-extra=--no-huge --legacy-mem -m {MEMORY_MIB} --no-pci --no-telemetry");
        let mask = format!("pmd-cpu-mask={}", mask_of_one()?);
        // Buffers of each port's own: those that all would share are for hundreds of ports.
        let options = ["dpdk-init=true", &extra, &mask, "per-port-memory=true"];
        for option in options {
            let (key, value) = option.split_once('=').context("an option")?;
            let option = format!("other_config:{key}=\"{value}\"");
            vsctl(&directory, &["--no-wait", "set", "Open_vSwitch", ".", &option])?;
        }
        let switch = Program::start("host", "ovs-vswitchd", switch(&directory))?;
        let ovs = Ovs { switch, _database: database, directory };
        // Done when the switch has done it.
        let bridge = ["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev"];
        let names = ports;
        let ports = names.iter().flat_map(|port| {
            ["--", "add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuser"]
        });
        let change: Vec<&str> = bridge.into_iter().chain(ports).collect();
        vsctl(&ovs.directory, &change).with_context(|| ovs.log())?;
        for port in names {
            ensure!(ovs.socket(port).exists(), "no socket of port {port}:\n{}", ovs.log());
        }
        Ok(ovs)
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.directory.path().join(port)
    }

    /// What the switch logged, until it was started anew.
    pub fn log(&self) -> String {
        self.switch.job().text()
    }

    /// A shell command that starts the switch anew after it has died or hangs, and stays in the foreground.
    ///
    /// # Errors
    ///
    /// The path of its directory is not UTF-8.
    pub fn restart(&self) -> Result<String> {
        let directory = self.directory.path().to_str().context("a path in UTF-8")?;
        let former = replace(self.switch.pid(), &remote(&self.directory));
        let words = shell_words(&switch(&self.directory))?;
        // A switch that was killed could not remove its sockets.
        Ok(format!(
            "cd '{directory}'; {former}; find . -type s ! -name db.sock ! -name 'ovsdb-server*' -delete; \
             exec {words} >>again.log 2>&1"
        ))
    }

    /// Its version, and DPDK's.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub fn version(&self) -> Result<String> {
        // `ovs-vswitchd (Open vSwitch) 3.1.0`, then `DPDK 22.11.4`.
        let text = run(&self.directory, SWITCH, &["--version"])?;
        let last = |text: &str| text.split_whitespace().last().map(str::to_owned);
        let mut lines = text.lines();
        let own = lines.next().and_then(last).context("it says no version")?;
        let dpdk = lines.find(|line| line.starts_with("DPDK")).and_then(last);
        Ok(format!("Open vSwitch {own} with DPDK {}", dpdk.context("it says no version of DPDK")?))
    }
}

/// A program of Open vSwitch that uses this directory and no other.
fn command(directory: &TempDir, program: &str) -> Command {
    let mut command = bound_command("env");
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.arg(format!("{variable}={}", directory.path().display()));
    }
    command.arg(program);
    command
}

fn remote(directory: &TempDir) -> String {
    format!("unix:{}/db.sock", directory.path().display())
}

fn switch(directory: &TempDir) -> Command {
    let mut command = command(directory, "unshare");
    command.args(["--net", "--", SWITCH, "--no-chdir"]).arg(remote(directory));
    command
}

/// Runs one of its tools to its end.
fn run(directory: &TempDir, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = command(directory, program);
    command.args(arguments);
    let what = format!("{program} {}", arguments.join(" "));
    let output = Program::start("host", &what, command)?.into_job().wait(TOOL_LIMIT)?;
    ensure!(output.success(), "{what} ended with {}:\n{}", output.status, output.text());
    Ok(output.text())
}

/// Changes the configuration.
fn vsctl(directory: &TempDir, change: &[&str]) -> Result<String> {
    let remote = format!("--db={}", remote(directory));
    let arguments = [&[remote.as_str(), "--retry", "--timeout=25"], change].concat();
    run(directory, "ovs-vsctl", &arguments)
}

/// The last of the processors that this process may use, as a mask: the switch keeps it busy.
fn mask_of_one() -> Result<String> {
    let set = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rfind(|cpu| set.is_set(*cpu)).context("no processor")?;
    Ok(format!("0x{}{}", 1 << (last % 4), "0".repeat(last / 4)))
}
