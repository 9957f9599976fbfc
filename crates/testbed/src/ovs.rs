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

use crate::hugepages::Hugepages;
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

/// What a switch is to be. Made by [`Ovs::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    ports: Vec<String>,
    mtu: Option<u16>,
    addresses: Option<u32>,
    segmentation: bool,
    lent_hugepages: bool,
    processors: Option<[usize; 2]>,
}

impl Builder {
    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str) -> Builder {
        self.ports.push(name.to_owned());
        self
    }

    /// The MTU of all ports, 1500 if not said.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Builder {
        self.mtu = Some(mtu);
        self
    }

    /// How many addresses the bridge may learn. Open vSwitch floods what is beyond 8192 of them, or fewer in older versions.
    #[must_use]
    pub fn addresses(mut self, count: u32) -> Builder {
        self.addresses = Some(count);
        self
    }

    /// Lets frames pass that are yet to be segmented. Open vSwitch does that on ports which connect, so the guests have to
    /// listen at their sockets.
    #[must_use]
    pub fn segmentation(mut self) -> Builder {
        self.segmentation = true;
        self
    }

    /// Memory in hugepages that are there already, and stay for as long as it runs. Otherwise it is ordinary memory.
    #[must_use]
    pub fn hugepages_of(mut self, _pages: &Hugepages) -> Builder {
        self.lent_hugepages = true;
        self
    }

    /// The processor for all that waits, and the one for the thread that polls. Otherwise the kernel chooses the first, and
    /// the last one that this process may use is the second.
    #[must_use]
    pub fn processors(mut self, others: usize, polling: usize) -> Builder {
        self.processors = Some([others, polling]);
        self
    }

    /// The settings of the switch, each with its key.
    fn settings(&self) -> Result<Vec<(&'static str, String)>> {
        let mut extra = if self.lent_hugepages {
            // Without a file system of hugepages: its own memory is nobody else's.
            "--in-memory --no-pci --no-telemetry".to_owned()
        } else {
            format!("--no-huge --legacy-mem -m {MEMORY_MIB} --no-pci --no-telemetry")
        };
        let polling = match self.processors {
            Some([others, polling]) => {
                // Open vSwitch adds an `-l` of its own, unless there is one.
                extra += &format!(" -l {others}");
                polling
            }
            None => last_processor()?,
        };
        let mut settings = vec![
            ("dpdk-init", "true".to_owned()),
            ("dpdk-extra", extra),
            ("pmd-cpu-mask", mask_of(polling)),
            // Buffers of each port's own: those that all would share are for hundreds of ports.
            ("per-port-memory", (!self.lent_hugepages).to_string()),
        ];
        if self.segmentation {
            settings.push(("userspace-tso-enable", "true".to_owned()));
        }
        Ok(settings)
    }

    /// Starts the switch, and waits until its ports are there.
    ///
    /// # Errors
    ///
    /// It does not get there, and the error shows what was said.
    pub fn start(self) -> Result<Ovs> {
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
        for (key, value) in self.settings()? {
            let option = format!("other_config:{key}=\"{value}\"");
            vsctl(&directory, &["--no-wait", "set", "Open_vSwitch", ".", &option])?;
        }
        let switch = Program::start("host", "ovs-vswitchd", switch(&directory))?;
        // Done when the switch has done it.
        let mut change: Vec<String> =
            ["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev"]
                .map(str::to_owned)
                .into();
        if let Some(count) = self.addresses {
            change.push(format!("other_config:mac-table-size={count}"));
        }
        for port in &self.ports {
            let words = ["--", "add-port", "br0", port, "--", "set", "Interface", port];
            change.extend(words.map(str::to_owned));
            if self.segmentation {
                let path = directory.path().join(port);
                let path = path.to_str().context("a path in UTF-8")?;
                change.push("type=dpdkvhostuserclient".to_owned());
                change.push(format!("options:vhost-server-path={path}"));
            } else {
                change.push("type=dpdkvhostuser".to_owned());
            }
            change.extend(self.mtu.map(|mtu| format!("mtu_request={mtu}")));
        }
        let change: Vec<&str> = change.iter().map(String::as_str).collect();
        vsctl(&directory, &change).with_context(|| switch.job().text())?;
        let ovs = Ovs { switch, _database: database, directory };
        for port in self.ports.iter().filter(|_| !self.segmentation) {
            ensure!(ovs.socket(port).exists(), "no socket of port {port}:\n{}", ovs.log());
        }
        Ok(ovs)
    }
}

impl Ovs {
    /// Says what a switch is to be.
    pub fn builder() -> Builder {
        Builder {
            ports: Vec::new(),
            mtu: None,
            addresses: None,
            segmentation: false,
            lent_hugepages: false,
            processors: None,
        }
    }

    /// Starts a switch with these ports, and waits until they are there.
    ///
    /// # Errors
    ///
    /// As [`Builder::start`].
    pub fn start(ports: &[&str]) -> Result<Ovs> {
        ports.iter().fold(Ovs::builder(), |builder, port| builder.port(port)).start()
    }

    /// The process id of the switch.
    pub fn pid(&self) -> u32 {
        self.switch.pid()
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

/// The last of the processors that this process may use.
fn last_processor() -> Result<usize> {
    let set = sched_getaffinity(None)?;
    (0..CpuSet::MAX_CPU).rfind(|cpu| set.is_set(*cpu)).context("no processor")
}

/// One processor as a mask.
fn mask_of(cpu: usize) -> String {
    format!("0x{}{}", 1 << (cpu % 4), "0".repeat(cpu / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_one_processor() {
        assert_eq!([0, 3, 4, 9].map(mask_of), ["0x1", "0x8", "0x10", "0x200"]);
    }

    #[test]
    fn settings_say_where_it_runs() -> Result<()> {
        let settings = Ovs::builder().processors(1, 2).segmentation().settings()?;
        let has = |key, value: &str| settings.iter().any(|it| *it == (key, value.to_owned()));
        assert!(has("pmd-cpu-mask", "0x4") && has("userspace-tso-enable", "true"), "{settings:?}");
        let extra = settings.iter().find(|(key, _)| *key == "dpdk-extra");
        assert!(extra.is_some_and(|(_, value)| value.ends_with(" -l 1")), "{settings:?}");
        Ok(())
    }
}
