//! The front end's socket, where it is the one that listens, or was handed to us.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{anyhow, bail};

/// How long whoever listens may take to accept a connection, and the back end for an answer.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The socket that was inherited as descriptor `number`.
pub fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    let socket = sys::inherited(number).map_err(|error| {
        anyhow!(
            "descriptor {number} was not inherited ({error}): is it open in whoever starts this \
             program?"
        )
    })?;
    let is_socket = rustix::net::sockopt::socket_type(&socket).is_ok();
    if !is_socket || rustix::net::getpeername(&socket).is_err() {
        bail!("descriptor {number} is not a connected socket");
    }
    Ok(socket)
}
