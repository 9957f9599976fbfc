//! What a guest boots: the newest Debian cloud kernel on this machine, and a first file system with a shell, the
//! network tools and the kernel's own virtio drivers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::process::MemoryFile;

/// The static tool that build.rs compiled: the agent and the ends of checked traffic.
pub(crate) const TOOL: &[u8] = include_bytes!(env!("TESTBED_TOOL"));

/// Drivers a guest needs, and those they need in turn.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_net"];
/// Programs a guest has beside busybox, and the Debian package of each. Scripts run in dash, as on the host: busybox's
/// shell would take busybox's own `ip` for every `ip`.
const PROGRAMS: [(&str, &str); 4] =
    [("dash", "dash"), ("ip", "iproute2"), ("ethtool", "ethtool"), ("iperf3", "iperf3")];

/// A kernel and its first file system. Cheap to clone; it lives in memory and leaves no file behind.
#[derive(Clone)]
pub struct Image(Arc<Inner>);

struct Inner {
    kernel: PathBuf,
    initramfs: MemoryFile,
}

impl Image {
    /// Builds the image, once in a process; a second call returns the first one's.
    ///
    /// # Errors
    ///
    /// A file that is not on this machine, with the Debian package that holds it.
    pub fn build() -> Result<Image> {
        static BUILT: Mutex<Option<Image>> = Mutex::new(None);
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = &*built {
            return Ok(image.clone());
        }
        let image = Image::with(&[], &[])?;
        *built = Some(image.clone());
        Ok(image)
    }

    /// Builds an image with more in it: these drivers, which are loaded as the guest boots, and these programs, by their
    /// names, with the libraries that they are linked with.
    ///
    /// # Errors
    ///
    /// As [`Image::build`].
    pub fn with(modules: &[&str], programs: &[&Path]) -> Result<Image> {
        let (kernel, release) = newest_kernel(Path::new("/boot"))?;
        let archive = initramfs(&release, modules, programs)?;
        let initramfs = MemoryFile::new("testbed-initramfs", &archive)?;
        Ok(Image(Arc::new(Inner { kernel, initramfs })))
    }

    /// The kernel's path.
    pub fn kernel(&self) -> &Path {
        &self.0.kernel
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.0.initramfs.path()
    }
}

/// The path and release of the newest cloud kernel.
fn newest_kernel(boot: &Path) -> Result<(PathBuf, String)> {
    let mut releases: Vec<String> = fs::read_dir(boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .filter(|release| release.ends_with("-cloud-amd64"))
        .collect();
    releases.sort_by_key(|release| numbers(release));
    let release = releases.pop().with_context(|| {
        format!(
            "no {}/vmlinuz-*-cloud-amd64: install Debian's linux-image-cloud-amd64",
            boot.display()
        )
    })?;
    Ok((boot.join(format!("vmlinuz-{release}")), release))
}

/// The numbers in a release, so that 6.10 is newer than 6.9.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn initramfs(release: &str, modules: &[&str], programs: &[&Path]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/bin", "/dev", "/proc", "/sys"] {
        archive.directory(directory);
    }
    archive.file("/init", include_bytes!("../guest/init"));
    archive.file("/bin/testbed-tool", TOOL);
    archive.file("/bin/busybox", &static_busybox()?);

    let mut copied = BTreeSet::new();
    for (program, package) in PROGRAMS {
        let path = find_program(program)
            .with_context(|| format!("no {program} on this machine: install Debian's {package}"))?;
        if program == "dash" {
            archive.symlink("/bin/sh", path.to_str().context("a path that is not UTF-8")?);
        }
        for file in [path.clone()].into_iter().chain(shared_libraries(&path)?) {
            if copied.insert(file.clone()) {
                let name = file.to_str().context("a path that is not UTF-8")?;
                archive.file(name, &read(&file)?);
            }
        }
    }
    for program in programs {
        let name =
            program.file_name().and_then(|name| name.to_str()).context("a nameless program")?;
        archive.file(&format!("/bin/{name}"), &read(program)?);
        for library in shared_libraries(program)? {
            if copied.insert(library.clone()) {
                let name = library.to_str().context("a path that is not UTF-8")?;
                archive.file(name, &read(&library)?);
            }
        }
    }

    let directory = PathBuf::from("/lib/modules").join(release);
    let mut order = String::new();
    for module in load_order(&directory, &[&MODULES, modules].concat())? {
        let name =
            module.file_name().and_then(|name| name.to_str()).context("a nameless module")?;
        let target = format!("/modules/{}", name.trim_end_matches(".xz"));
        archive.file(&target, &read_module(&module)?);
        order.push_str(&target);
        order.push('\n');
    }
    archive.file("/modules/order", order.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn static_busybox() -> Result<Vec<u8>> {
    let missing = "no static busybox on this machine: install Debian's busybox-static";
    let path = find_program("busybox").context(missing)?;
    if !shared_libraries(&path)?.is_empty() {
        bail!(missing);
    }
    read(&path)
}

/// Where a program is. The system directories are looked at whatever PATH says: a user's often lacks sbin.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// The libraries a program is linked with, its loader included; none if it is static.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{} lacks a library:\n{text}", program.display());
    }
    // "name => /path (address)", and "/path (address)" for the loader; the kernel's vdso has no path.
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.filter(|word| !word.ends_with(':')).map(PathBuf::from).collect())
}

/// Modules and what they depend on, each after what it needs. A driver built into the kernel needs no file.
fn load_order(directory: &Path, modules: &[&str]) -> Result<Vec<PathBuf>> {
    let list = directory.join("modules.dep");
    let list = fs::read_to_string(&list).with_context(|| {
        format!("cannot read {}: reinstall Debian's linux-image-cloud-amd64", list.display())
    })?;
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let mut order: Vec<&str> = Vec::new();
    for wanted in modules {
        let line = list
            .lines()
            .find(|line| line.split(':').next().is_some_and(|path| module_name(path) == *wanted));
        let Some((module, needs)) = line.and_then(|line| line.split_once(':')) else {
            if builtin.lines().any(|path| module_name(path) == *wanted) {
                continue;
            }
            bail!("the kernel in {} has no driver {wanted}", directory.display());
        };
        // modules.dep lists what a module needs with the most basic last.
        for path in needs.split_whitespace().rev().chain([module]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order.into_iter().map(|path| directory.join(path)).collect())
}

/// `virtio_net` of `kernel/drivers/net/virtio_net.ko.xz`.
fn module_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// A module as insmod takes it: newer Debian kernels keep theirs compressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return read(path);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot run xz: install Debian's xz-utils")?;
    if !output.status.success() {
        bail!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_by_number() -> Result<()> {
        let boot = tempfile::tempdir()?;
        let error = newest_kernel(boot.path()).err().context("no kernel was found")?;
        assert!(error.to_string().contains("install Debian's linux-image-cloud-amd64"));
        for release in ["6.9.9-1-cloud-amd64", "6.12.0-1-cloud-amd64", "7.0.0-1-amd64"] {
            fs::write(boot.path().join(format!("vmlinuz-{release}")), "")?;
        }
        let (path, release) = newest_kernel(boot.path())?;
        assert_eq!(release, "6.12.0-1-cloud-amd64");
        assert_eq!(path, boot.path().join("vmlinuz-6.12.0-1-cloud-amd64"));
        Ok(())
    }

    #[test]
    fn modules_load_after_what_they_need() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let list = "k/virtio_pci.ko: k/ring.ko k/virtio.ko\nk/virtio-net.ko.xz: k/failover.ko k/ring.ko k/virtio.ko\n\
                    k/virtio.ko:\n";
        fs::write(directory.path().join("modules.dep"), list)?;
        fs::write(directory.path().join("modules.builtin"), "k/virtio_console.ko\n")?;
        let order = load_order(directory.path(), &MODULES)?;
        let names: Vec<_> =
            order.iter().filter_map(|path| path.to_str().map(module_name)).collect();
        assert_eq!(names, ["virtio", "ring", "virtio_pci", "failover", "virtio_net"]);
        fs::write(directory.path().join("modules.builtin"), "")?;
        assert!(load_order(directory.path(), &MODULES).is_err());
        Ok(())
    }
}
