//! The sockets that front ends connect to.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Gid, Mode, OFlags, chmod, chown, flock, open};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use vhost_user::Descriptor;

use crate::account::group_id;

/// How long to wait for another switch that is about to listen in the same directory.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Front ends that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Somebody listens at the path, and who.
#[derive(Debug, thiserror::Error)]
#[error("in use by {0}")]
pub struct InUse(String);

/// A listening socket whose file goes when it does: in this order, so that nobody finds a file that nobody listens at, and puts his own
/// in its place while we remove it.
#[derive(Debug)]
pub struct Listener {
    file: SocketFile,
    pub socket: UnixListener,
    _last: Last,
}

/// The same socket, closed last: with it goes who was not accepted, and all that he has sent.
#[derive(Debug)]
struct Last(Descriptor);

/// The socket's file: removed on drop, unless somebody replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Whether anybody who connects to its path gets here: nobody has removed its file, or put another in its place.
    pub fn is_there(&self) -> bool {
        self.file.is_there()
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        self.0.end_listening();
    }
}

impl SocketFile {
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Listens at `path`. A socket file that nobody listens at any more is replaced; one that is alive
/// is refused, and who holds it is said. Permissions are set before anyone can connect.
pub fn listen_at(path: &Path, mode: u32, group: Option<&str>) -> anyhow::Result<Listener> {
    // Another switch may be about to do the same: one after the other.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let lock = open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open the directory {}", directory.display()))?;
    lock_soon(&lock)
        .with_context(|| format!("cannot lock the directory {}", directory.display()))?;
    remove_stale(path)?;

    let address = SocketAddrUnix::new(path).context("not a socket's path")?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address).context("cannot create it")?;
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino() };
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group_id(group)?)))
            .with_context(|| format!("cannot give it to the group `{group}`"))?;
    }
    chmod(path, Mode::from_raw_mode(mode)).context("cannot set its permissions")?;
    listen(&socket, BACKLOG).context("cannot listen")?;
    let last = Last(socket.try_clone()?.into());
    Ok(Listener { file, socket: UnixListener::from(socket), _last: last })
}

/// Takes the lock, if whoever has it gives it up soon: switches hold it for an instant, but anyone
/// who may read the directory can hold it for ever.
fn lock_soon(directory: &OwnedFd) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another program holds its lock"));
            }
            result => return Ok(result?),
        }
    }
}

/// Connects, unless that would have to wait.
fn try_connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot look at it"),
    };
    if file.is_dir() {
        bail!("there is a directory: choose another path");
    }
    if !file.file_type().is_socket() {
        bail!("there is a file that is not a socket: remove it, or choose another path");
    }
    match try_connect(path) {
        Ok(peer) => bail!(InUse(holder(&peer))),
        Err(Errno::AGAIN) => bail!(InUse("a process that accepts no connections".to_owned())),
        Err(Errno::CONNREFUSED) => fs::remove_file(path).context("cannot remove the stale socket"),
        Err(error) => Err(error).context("cannot tell whether the socket there is alive"),
    }
}

/// Who listens at the other end, for people.
fn holder(peer: &OwnedFd) -> String {
    match socket_peercred(peer) {
        Ok(credentials) => {
            let process = credentials.pid.as_raw_nonzero();
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            match name.trim() {
                "" => format!("process {process}"),
                name => format!("process {process} ({name})"),
            }
        }
        Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn listen(path: &Path) -> anyhow::Result<Listener> {
        listen_at(path, 0o600, None)
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_the_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = listen_at(&path, 0o640, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_socket_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let _alive = listen(&path).unwrap();
        let error = listen(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("in use by process {} (", std::process::id())),
            "{error}"
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_directory_that_somebody_keeps_locked_is_an_error_and_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let held = fs::File::open(directory.path()).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let error = listen(&directory.path().join("vm.sock")).unwrap_err();
        assert!(format!("{error:#}").contains("another program holds its lock"), "{error:#}");
        drop(held);
        listen(&directory.path().join("vm.sock")).unwrap();
    }

    #[test]
    fn a_listener_that_does_not_accept_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let _alive = listen(&path).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| try_connect(&path).ok()).collect();
        assert!(!waiting.is_empty());
        let error = listen(&path).unwrap_err().to_string();
        assert_eq!(error, "in use by a process that accepts no connections");
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "text").unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        // What is in one may be worth much.
        let error = listen(directory.path()).unwrap_err().to_string();
        assert_eq!(error, "there is a directory: choose another path");
    }

    #[test]
    fn a_replaced_file_is_not_ours_to_remove() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let first = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!first.is_there());
        let second = listen(&path).unwrap();
        assert!(!first.is_there() && second.is_there());
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn groups_go_by_name_or_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let own = fs::metadata(directory.path()).unwrap().gid();
        let listener = listen_at(&path, 0o660, Some(&own.to_string())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().gid(), own);
        drop(listener);
        let error = listen_at(&path, 0o660, Some("no-such-group")).unwrap_err();
        assert_eq!(error.to_string(), "there is no group `no-such-group`");
        assert!(!path.exists(), "nothing is left behind");
    }
}
