//! The machine, and what is on it: processor, memory, and versions of everything that is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a reader has to know about where figures come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub virtual_machine: bool,
    pub memory: String,
    pub kernel: String,
    /// What the time stamp counter counts in a second: cycles are of this clock.
    pub frequency_hz: u64,
    pub hugepages: String,
    /// Name and version of each program.
    pub versions: Vec<(String, String)>,
    pub date: String,
}

/// Programs whose version is that of their Debian package.
const PACKAGES: [(&str, &str); 5] = [
    ("DPDK (testpmd)", "dpdk-dev"),
    ("Open vSwitch with DPDK", "openvswitch-switch-dpdk"),
    ("QEMU", "qemu-system-x86"),
    ("iperf3", "iperf3"),
    ("iproute2", "iproute2"),
];

impl Machine {
    /// This one.
    pub fn here(hugepages: String) -> Result<Machine> {
        let text = cpuinfo()?;
        let processor = field(&text, "model name").unwrap_or("unknown").to_owned();
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kibibytes =
            field(&memory, "MemTotal").and_then(|it| it.split(' ').next()?.parse().ok());
        let kibibytes: f64 = kibibytes.context("/proc/meminfo says no MemTotal")?;
        let mut versions = vec![
            ("ringway".to_owned(), build()),
            ("rustc".to_owned(), said("rustc", &["--version"])),
        ];
        versions.extend(PACKAGES.map(|(name, package)| {
            let version = said("dpkg-query", &["--show", "--showformat=${Version}", package]);
            (name.to_owned(), format!("{version} (Debian's {package})"))
        }));
        Ok(Machine {
            processor,
            processors: text.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: text.contains("hypervisor"),
            memory: format!("{:.0} GiB", kibibytes / f64::from(1 << 20)),
            kernel: said("uname", &["--kernel-name", "--kernel-release"]),
            frequency_hz: frequency_hz()?,
            hugepages,
            versions,
            date: said("date", &["--utc", "+%Y-%m-%d"]),
        })
    }
}

/// What the time stamp counter counts in a second.
pub fn frequency_hz() -> Result<u64> {
    parse_frequency(&cpuinfo()?).context("no BogoMIPS in /proc/cpuinfo")
}

fn cpuinfo() -> Result<String> {
    fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")
}

/// Where the workspace is.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The build of ringway: its commit, and whether the code is really that.
pub fn build() -> String {
    let workspace = workspace();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.arg("-C").arg(&workspace).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return format!("{} (no commit known)", env!("CARGO_PKG_VERSION"));
    };
    // What this program writes is no change.
    let changes = git(&["status", "--porcelain", "--", ".", ":!benches/*.md", ":!benches/*.svg"]);
    let dirty = if changes.is_none_or(|changes| !changes.is_empty()) { ", dirty" } else { "" };
    format!("{} ({commit}{dirty})", env!("CARGO_PKG_VERSION"))
}

/// The first line that a program prints, or why there is none.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    let output = output.filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.as_deref().and_then(|text| text.lines().next());
    line.map_or_else(|| "not installed".to_owned(), |line| line.trim().to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// The kernel's BogoMIPS are twice the frequency of the time stamp counter in MHz, on every x86 that has a steady one.
fn parse_frequency(text: &str) -> Option<u64> {
    let megahertz = field(text, "bogomips")?.parse::<f64>().ok()? / 2.0;
    Some((megahertz * 1e6) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_the_frequency() {
        let text = "processor\t: 0\nmodel name\t: A B\nbogomips\t: 5192.24\n";
        assert_eq!(parse_frequency(text), Some(2_596_120_000));
        assert_eq!(field(text, "model name"), Some("A B"));
        assert_eq!(parse_frequency("processor: 0"), None);
    }

    #[test]
    fn this_machine_is_known() -> Result<()> {
        let machine = Machine::here("none".to_owned())?;
        assert!(machine.processors > 0 && machine.frequency_hz > 100_000_000, "{machine:?}");
        assert!(machine.versions.iter().all(|(_, version)| !version.is_empty()));
        Ok(())
    }
}
