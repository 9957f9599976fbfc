//! Networks on the host: bridges, taps and addresses, and a shell among them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

use crate::image::TOOL;
use crate::process::{MemoryFile, Program, bound_command};
use crate::shell::{Job, Shell};

/// A network namespace and the links made in it. Dropping it removes them.
///
/// Each test makes its own, so that any number of tests can run at once with the same names and addresses.
pub struct Network {
    /// `None`: the namespace this process is in.
    namespace: Option<String>,
    /// Links to remove; those of a private namespace go with it.
    links: Mutex<Vec<String>>,
}

/// Private namespaces are called `testbed-PID-NUMBER`.
const PREFIX: &str = "testbed-";

impl Network {
    /// A new, empty network namespace of its own.
    ///
    /// # Errors
    ///
    /// This process is not root, or lacks iproute2.
    pub fn new() -> Result<Network> {
        require_root()?;
        remove_abandoned();
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        let network = Network { namespace: Some(name), links: Mutex::default() };
        network.ip(&["link", "set", "lo", "up"])?;
        Ok(network)
    }

    /// The network namespace that this process is in. Choose link names with [`unique_link_name`].
    ///
    /// # Errors
    ///
    /// This process is not root.
    pub fn host() -> Result<Network> {
        require_root()?;
        Ok(Network { namespace: None, links: Mutex::default() })
    }

    /// The namespace's name for `ip netns`; `None` if it is this process's.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// A program, to be run in this network and ended with this process. Start it with [`Program::start`].
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        match &self.namespace {
            None => bound_command(program),
            Some(namespace) => {
                let mut command = bound_command("ip");
                command.args(["netns", "exec", namespace]).arg(program.as_ref());
                command
            }
        }
    }

    /// Makes a Linux bridge.
    ///
    /// # Errors
    ///
    /// The name is taken, or longer than 15 bytes.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.ip(&["link", "add", name, "type", "bridge"])?;
        self.made(name)
    }

    /// Makes a tap that stays when nobody has it open.
    ///
    /// # Errors
    ///
    /// As [`Network::bridge`].
    pub fn tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"])?;
        self.made(name)
    }

    /// Plugs a link into a bridge.
    ///
    /// # Errors
    ///
    /// One of them is not there.
    pub fn attach(&self, link: &str, bridge: &str) -> Result<()> {
        self.ip(&["link", "set", link, "master", bridge])
    }

    /// Gives a link an address, such as `10.0.0.1/24` or `fd00::1/64`, for use at once.
    ///
    /// # Errors
    ///
    /// The link is not there, or has the address.
    pub fn address(&self, link: &str, address: &str) -> Result<()> {
        // IPv6 would first ask for a second whether someone else has it.
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        self.ip(&[&["addr", "add", address, "dev", link], nodad].concat())
    }

    /// Runs `ip` in this network.
    ///
    /// # Errors
    ///
    /// What `ip` says.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        match &self.namespace {
            None => ip(arguments),
            Some(namespace) => ip(&[&["-n", namespace], arguments].concat()),
        }
    }

    fn made(&self, link: &str) -> Result<()> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(link.to_owned());
        self.ip(&["link", "set", link, "up"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A link that a test removed itself is no failure.
        match &self.namespace {
            Some(namespace) => drop(ip(&["netns", "del", namespace])),
            None => {
                for link in self.links.get_mut().unwrap_or_else(PoisonError::into_inner) {
                    let _ = ip(&["link", "del", link]);
                }
            }
        }
    }
}

impl Shell for Network {
    fn name(&self) -> &str {
        "host"
    }

    fn start(&self, script: &str) -> Result<Job> {
        static TOOL_FILE: OnceLock<MemoryFile> = OnceLock::new();
        let tool = match TOOL_FILE.get() {
            Some(tool) => tool,
            None => {
                let made = MemoryFile::new("testbed-tool", TOOL)?;
                TOOL_FILE.get_or_init(|| made)
            }
        };
        let mut command = self.command("/bin/sh");
        command.args(["-c", script]).env("TOOL", tool.path());
        Ok(Program::start(self.name(), script, command)?.into_job())
    }
}

/// A name for a link that no other test in the host's own namespace has: `kind` (up to 4 letters), the process, a number.
pub fn unique_link_name(kind: &str) -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    // The kernel takes 15 bytes: 4, at most 6 digits for a pid of 22 bits, a dash, 4.
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    format!("{kind:.4}{:x}-{number:x}", std::process::id())
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("networks on the host need root: run this test as root");
    }
    Ok(())
}

/// Removes the namespaces of test processes that were killed before they could.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return; // none was ever made
    };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may have been quicker.
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip: install Debian's iproute2")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}`: {}", arguments.join(" "), text.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_short_and_distinct() {
        let (one, two) = (unique_link_name("bridge"), unique_link_name("tap"));
        assert!(one.starts_with("brid") && two.starts_with("tap"));
        assert!(one.len() <= 15 && two.len() <= 15);
        assert_ne!(unique_link_name("tap"), two);
    }
}
