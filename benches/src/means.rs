//! What there is to measure with, and what has to be left out for want of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};
use testbed::hugepages::Hugepages;

use crate::machine::workspace;
use crate::matrix::{Case, Cell, Generator, Load, MANY_PORTS, Size, Switch};

/// Hugepages to ask for, until the kernel has so many.
const HUGEPAGES: [u64; 4] = [1536, 768, 384, 192];
/// Ports of one program, in DPDK as Debian builds it.
const DPDK_PORTS: u16 = 32;

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Means {
    pub is_root: bool,
    /// Processors that we may use.
    pub cpus: Vec<usize>,
    pub testpmd: bool,
    pub ovs: bool,
    /// QEMU, a kernel for it, and what its guests need.
    pub guests: bool,
}

impl Means {
    /// What is on this machine. What is missing is installed first, if we may and can.
    pub fn find(may_install: bool) -> Result<Means> {
        let is_root = rustix::process::geteuid().is_root();
        let mut missing = missing_packages()?;
        if !missing.is_empty() && is_root && may_install {
            eprintln!("installing {}", missing.join(" "));
            if let Err(error) = install(&missing) {
                eprintln!("{error:#}");
            }
            missing = missing_packages()?;
        }
        if !missing.is_empty() {
            eprintln!("not installed: {}", missing.join(" "));
        }
        let has = |name: &str| !missing.iter().any(|package| package == name);
        let guests = ["busybox-static", "iperf3", "linux-image-cloud-amd64", "qemu-system-x86"];
        Ok(Means {
            is_root,
            cpus: cpus()?,
            testpmd: has("dpdk-dev"),
            ovs: has("openvswitch-switch-dpdk"),
            guests: guests.into_iter().all(has),
        })
    }

    /// Why a cell is left out, if it is.
    pub fn left_out(&self, cell: &Cell) -> Option<String> {
        let Cell { case, switch, generator } = *cell;
        let why = match (switch, case) {
            (Switch::Testpmd, _) if !self.testpmd => "dpdk-testpmd is not installed",
            (Switch::Ovs | Switch::OvsTso, _) if !self.ovs => {
                "Open vSwitch with DPDK is not installed"
            }
            (Switch::Ovs | Switch::OvsTso, _) if !self.is_root => {
                "Open vSwitch needs root, for a network of its own"
            }
            (
                Switch::Testpmd,
                Case::Idle { ports: MANY_PORTS } | Case::Pair { ports: MANY_PORTS },
            ) => {
                return Some(format!(
                    "Debian builds DPDK for at most {DPDK_PORTS} ports of a program"
                ));
            }
            (Switch::Ovs, Case::Throughput(Load { size: Size::Tso, .. })) => {
                "Open vSwitch offers segmentation only on ports that connect, and `ringway bench` does not listen"
            }
            (_, Case::Tcp) if !self.guests => "QEMU or what its guests need is not installed",
            (_, Case::Tcp) if !self.is_root => "networks of the host need root",
            (_, Case::Throughput(_) | Case::Latency(_) | Case::Pair { .. })
                if self.cpus.len() < 2 =>
            {
                "switch and generator need a processor each, and there is one"
            }
            (_, Case::Throughput(load)) if generator == Generator::Testpmd => match load.size {
                _ if !self.testpmd => "dpdk-testpmd is not installed",
                Size::Imix => "testpmd sends frames of one size",
                Size::Tso => "testpmd's first frames are not to be segmented",
                Size::Bytes(_) if load.addresses > 1 => "testpmd sends from one address a port",
                Size::Bytes(_) if load.flows > 1 => "testpmd sends one flow a port",
                Size::Bytes(_) => return None,
            },
            _ => return None,
        };
        Some(why.to_owned())
    }

    /// Processors for the switch, and for the generator.
    pub fn processors(&self) -> [usize; 2] {
        match self.cpus[..] {
            [switch, generator, ..] => [switch, generator],
            [only] => [only, only],
            [] => [0, 0],
        }
    }
}

/// Processors that we may use.
pub fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Hugepages for DPDK's own memory, as many as there are, or why there are none.
pub fn reserve_hugepages(means: &Means) -> Result<Hugepages> {
    ensure!(means.is_root, "hugepages are for root to reserve");
    let mut result = Hugepages::reserve(HUGEPAGES[0]);
    for count in &HUGEPAGES[1..] {
        if result.is_err() && !is_locked(&result) {
            result = Hugepages::reserve(*count);
        }
    }
    result
}

/// Whether others have hugepages, and fewer are no easier to get.
fn is_locked(result: &Result<Hugepages>) -> bool {
    result.as_ref().is_err_and(|error| format!("{error:#}").contains("is locked"))
}

/// Debian packages of the list that CI installs which are not there.
fn missing_packages() -> Result<Vec<String>> {
    let path = workspace().join(".ci/packages");
    let list =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(list.lines().filter(|package| !is_installed(package)).map(str::to_owned).collect())
}

fn is_installed(package: &str) -> bool {
    let mut command = Command::new("dpkg-query");
    let output = command.args(["--show", "--showformat=${Status}", package]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("ok installed"))
}

fn install(packages: &[String]) -> Result<()> {
    ensure!(Path::new("/usr/bin/apt-get").exists(), "no apt-get: install them in your own way");
    let apt = |arguments: &[&str], packages: &[String]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).args(packages);
        let status = command.stdout(Stdio::null()).status().context("cannot run apt-get")?;
        ensure!(status.success(), "apt-get {} ended with {status}", arguments.join(" "));
        Ok(())
    };
    apt(&["update", "-qq"], &[])?;
    apt(&["install", "-y", "-qq", "--no-install-recommends"], packages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cells;

    fn all() -> Means {
        Means { is_root: true, cpus: vec![0, 1], testpmd: true, ovs: true, guests: true }
    }

    /// Names of the cells that are left out, of those that name this.
    fn left_out(means: &Means, pattern: &str) -> Vec<String> {
        let pattern = [pattern.to_owned()];
        let cells = cells(&Case::all()).into_iter().filter(|cell| cell.is_named_by(&pattern));
        let cells = cells.filter(|cell| means.left_out(cell).is_some());
        cells.map(|cell| cell.to_string()).collect()
    }

    #[test]
    fn with_everything_only_what_cannot_be_is_left_out() {
        let names = left_out(&all(), "");
        assert!(!names.is_empty());
        for name in names {
            let testpmd_sends = name.ends_with("/by-testpmd");
            let special =
                ["/imix/", "/tso/", "-macs/", "-flows/"].iter().any(|part| name.contains(part));
            let too_many = name.contains("64-ports") && name.ends_with("/testpmd-io");
            let no_listener = name.contains("/tso/") && name.ends_with("/ovs/by-bench");
            assert!(testpmd_sends && special || too_many || no_listener, "{name}");
        }
    }

    #[test]
    fn without_a_peer_the_others_are_measured() {
        let means = Means { testpmd: false, ..all() };
        assert_eq!(left_out(&means, "idle/2").len(), 1);
        let load = Case::Throughput(Load::of(Size::Bytes(64)));
        let ours = Cell::new(load, Switch::RingwayPoll, Generator::Bench);
        assert_eq!(means.left_out(&ours), None);
        let theirs = Cell { generator: Generator::Testpmd, ..ours };
        assert!(means.left_out(&theirs).is_some_and(|why| why.contains("not installed")));
        let means = Means { ovs: false, ..all() };
        assert_eq!(left_out(&means, "tcp"), ["tcp/ovs", "tcp/ovs-tso"]);
        let means = Means { guests: false, ..all() };
        assert_eq!(left_out(&means, "tcp").len(), 4);
    }

    #[test]
    fn one_processor_is_enough_for_what_is_idle() {
        let means = Means { cpus: vec![3], ..all() };
        assert_eq!(means.processors(), [3, 3]);
        assert!(left_out(&means, "idle/2").is_empty());
        assert_eq!(left_out(&means, "latency").len(), 8);
    }

    #[test]
    fn without_root_there_are_no_networks() {
        let means = Means { is_root: false, ..all() };
        assert_eq!(left_out(&means, "tcp").len(), 4);
        assert_eq!(left_out(&means, "idle/2"), ["idle/2-ports/ovs"]);
        assert!(reserve_hugepages(&means).is_err());
    }
}
