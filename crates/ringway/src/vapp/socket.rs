//! Connecting, and saying why it could not be done.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};

/// Looks whether somebody could listen at `path`, because the kernel's reasons are hard to
/// understand.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let place = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no socket at {place}: nobody listens there yet, or not any more")
        }
        Err(error) => Err(error).with_context(|| format!("cannot look at {place}")),
        Ok(file) if !file.file_type().is_socket() => bail!("{place} is not a socket"),
        Ok(_) => Ok(()),
    }
}

/// Connects to a front end that listens.
pub fn connect(path: &Path) -> anyhow::Result<OwnedFd> {
    check(path)?;
    let socket = UnixStream::connect(path);
    Ok(socket.with_context(|| format!("cannot connect to {}", path.display()))?.into())
}

/// The socket that was inherited as descriptor `number`.
pub fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    let socket = sys::inherited(number).with_context(|| {
        format!("descriptor {number} was not inherited: is it open in whoever starts this program?")
    })?;
    let is_socket = rustix::net::sockopt::socket_type(&socket).is_ok();
    if !is_socket || rustix::net::getpeername(&socket).is_err() {
        bail!("descriptor {number} is not a connected socket");
    }
    Ok(socket)
}
