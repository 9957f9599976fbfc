//! Connecting, and saying why it could not be done.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// How long whoever listens may take to accept a connection, and the back end for an answer.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Looks whether somebody could listen at `path`, because the kernel's reasons are hard to
/// understand.
fn check(path: &Path) -> anyhow::Result<()> {
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

/// Connects to whoever listens at `path`.
pub fn connect(path: &Path) -> anyhow::Result<OwnedFd> {
    check(path)?;
    let connect = || -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A listener that does not accept would otherwise hold us for ever.
        set_socket_timeout(&socket, Timeout::Send, Some(LIMIT))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    connect().map_err(|error| {
        let why = match error {
            Errno::AGAIN => format!("nobody accepts the connection within {LIMIT:?}"),
            Errno::CONNREFUSED => "nobody listens there any more".to_owned(),
            Errno::PROTOTYPE => "it is not a stream socket".to_owned(),
            error => io::Error::from(error).to_string(),
        };
        anyhow!("cannot connect to {}: {why}", path.display())
    })
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
