//! Which QEMU boots a guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::find_program;

/// Names further QEMU programs, divided by colons as in PATH. `fetch-qemu.sh` prints such a path.
pub const VARIABLE: &str = "TESTBED_QEMU";

/// A QEMU for x86-64 guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    path: PathBuf,
    version: (u32, u32),
}

impl Qemu {
    /// The QEMU at a path.
    ///
    /// # Errors
    ///
    /// It does not start, or does not say its version.
    pub fn at(path: impl AsRef<Path>) -> Result<Qemu> {
        let path = path.as_ref();
        let output = Command::new(path)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text)
            .with_context(|| format!("{} does not say its version: {text:?}", path.display()))?;
        Ok(Qemu { path: path.to_owned(), version })
    }

    /// The machine's own QEMU.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn system() -> Result<Qemu> {
        let path = find_program("qemu-system-x86_64")
            .context("no qemu-system-x86_64 on this machine: install Debian's qemu-system-x86")?;
        Qemu::at(path)
    }

    /// The machine's own QEMU first, then those that [`VARIABLE`] names. Tests that should hold for every QEMU loop over
    /// this.
    ///
    /// # Errors
    ///
    /// The machine has none, or a named one does not start.
    pub fn all() -> Result<Vec<Qemu>> {
        let mut all = vec![Qemu::system()?];
        let named = std::env::var_os(VARIABLE).unwrap_or_default();
        for path in std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()) {
            let qemu = Qemu::at(&path).with_context(|| format!("{VARIABLE} names it"))?;
            if !all.contains(&qemu) {
                all.push(qemu);
            }
        }
        Ok(all)
    }

    /// The program's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Without KVM, QEMU 7.2 reads through a null pointer when a guest starts a vhost-user card that has MSI-X vectors
    /// (`kvm_irqchip_add_irqfd_notifier_gsi`, from `msix_set_vector_notifiers`); 10.0 does not. In between is untried.
    pub(crate) fn fails_with_msix(&self) -> bool {
        self.version < (10, 0)
    }

    /// The property that makes a socket connect again, in the words of this version.
    pub(crate) fn reconnect(&self, milliseconds: u32) -> Result<String> {
        if self.version >= (9, 2) {
            return Ok(format!("reconnect-ms={milliseconds}"));
        }
        if milliseconds == 0 || !milliseconds.is_multiple_of(1000) {
            bail!("QEMU before 9.2 reconnects after whole seconds, not after {milliseconds} ms");
        }
        Ok(format!("reconnect={}", milliseconds / 1000))
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split("version ").nth(1)?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_debians() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(text), Some((10, 0)));
        assert_eq!(parse_version("7.2"), None);
    }

    #[test]
    fn reconnect_in_the_words_of_the_version() -> Result<()> {
        let qemu = |version| Qemu { path: PathBuf::new(), version };
        assert_eq!(qemu((10, 0)).reconnect(250)?, "reconnect-ms=250");
        assert_eq!(qemu((7, 2)).reconnect(2000)?, "reconnect=2");
        assert!(qemu((7, 2)).reconnect(250).is_err());
        Ok(())
    }
}
