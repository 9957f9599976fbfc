//! Why there is no interface, in words for whoever wanted it.

use std::fmt;
use std::io;

use super::{Kind, NAME_MAX};

/// Why there is no interface.
#[derive(Debug)]
pub enum TunError {
    /// The name is empty, too long, or holds what the kernel would not take.
    Name,
    /// There is no /dev/net/tun.
    NoDevice(io::Error),
    /// /dev/net/tun is there, and cannot be opened.
    Device(io::Error),
    /// We may neither create the interface nor attach to it.
    NotPermitted(Kind),
    /// Another program has the only queue of the interface.
    InUse,
    /// The interface is of another kind.
    WrongKind {
        /// What was asked for.
        wanted: Kind,
        /// What it is, if that could be found out: the other kind, or the name of its driver.
        found: Option<String>,
    },
    /// The interface has a single queue, and several were asked for.
    SingleQueue(Kind),
    /// The interface is for several queues, and a single one was asked for.
    MultiQueue(Kind),
    /// The interface has no room for so many queues: others have some of them, or it is more than
    /// the kernel allows.
    TooManyQueues,
    /// The interface could not be created or attached to, for another reason.
    Attach(io::Error),
    /// The interface is there, but lacks what we need.
    Setup(&'static str, io::Error),
    /// An inherited descriptor is none of an interface.
    NotQueue(io::Error),
    /// An inherited descriptor is of an interface without the virtio-net header.
    NoHeader,
    /// Inherited descriptors are of different interfaces: of this one, and of the one before.
    Different(String, String),
}

impl TunError {
    /// Of an attempt to open /dev/net/tun.
    pub(super) fn device(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoDevice(error),
            _ => Self::Device(error),
        }
    }
}

impl fmt::Display for TunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(
                f,
                "an interface name has 1 to {NAME_MAX} bytes, without '/', ':' or blanks, and '%' \
                 only as \"%d\", once, for a number that the kernel chooses"
            ),
            Self::NoDevice(error) => write!(
                f,
                "cannot open /dev/net/tun: {error} (modprobe tun; a container has to be given the \
                 device)"
            ),
            Self::Device(error) => write!(f, "cannot open /dev/net/tun: {error}"),
            Self::NotPermitted(kind) => write!(
                f,
                "not permitted: it needs CAP_NET_ADMIN, or an interface made for this user \
                 (ip tuntap add dev NAME mode {kind} vnet_hdr user USER)"
            ),
            Self::InUse => write!(f, "in use by another program"),
            Self::WrongKind { wanted, found } => {
                write!(f, "is no {wanted} interface")?;
                found.as_ref().map_or(Ok(()), |found| write!(f, ", but one of kind {found}"))
            }
            Self::SingleQueue(kind) => write!(
                f,
                "has a single queue (ip tuntap add dev NAME mode {kind} vnet_hdr multi_queue makes \
                 one for several)"
            ),
            Self::MultiQueue(kind) => write!(
                f,
                "is made for several queues, and one was asked for (ip tuntap add dev NAME \
                 mode {kind} vnet_hdr makes one with a single queue)"
            ),
            Self::TooManyQueues => {
                write!(f, "no room for so many queues: the kernel allows 256, of all programs")
            }
            Self::Attach(error) => write!(f, "cannot create or attach to it: {error}"),
            Self::Setup(what, error) => write!(f, "{what} failed: {error}"),
            Self::NotQueue(error) => write!(f, "no descriptor of a tap or tun interface: {error}"),
            Self::NoHeader => write!(
                f,
                "its frames have no virtio-net header (it has to be opened with IFF_VNET_HDR and \
                 IFF_NO_PI)"
            ),
            Self::Different(this, other) => {
                write!(f, "of another interface, {this}, than the one before, {other}")
            }
        }
    }
}

// The texts have what there is to say: no source, which would say it twice.
impl std::error::Error for TunError {}
