//! vhost-user ports: a guest's network device, over a Unix socket.

use std::path::PathBuf;

use ports::vhost_user::SUPPORTED;
use wire::virtio::Features;

use crate::config::fault::{Fault, Problem};
use crate::config::keys::{FEATURES, Key, PortType, wrap};
use crate::config::written::Written;
use crate::config::{PortKind, features, set, value};

/// The permissions of a listening socket's file if `socket-mode` is not set.
pub const DEFAULT_SOCKET_MODE: u32 = 0o660;
/// The virtio features a guest is offered if `features` is not set.
pub const DEFAULT_FEATURES: Features = ports::vhost_user::FEATURES;

/// The largest MTU if `mtu` is not set: none.
pub const DEFAULT_MTU: u16 = u16::MAX;

/// A Unix socket on which virtio-net rings are handed over.
pub const TYPE: PortType = PortType {
    name: "vhost-user",
    about: "a guest's network device, over a Unix socket",
    target: Key { name: "path", form: "PATH", about: "the path of its socket" },
    keys: &[
        Key {
            name: "connect",
            form: "on|off",
            about: "connect to a listening front end, and retry, instead of listening [off]",
        },
        Key { name: "socket-mode", form: "OCTAL", about: "permissions of the socket file [0660]" },
        Key {
            name: "socket-group",
            form: "GROUP",
            about: "group of the socket file, a name or a number [the process's]",
        },
        Key {
            name: "mtu",
            form: "68..65535",
            about: "largest MTU, in bytes; the guest may have a smaller one [65535]",
        },
        Key {
            name: "queue-pairs",
            form: "1..128",
            about: "pairs of queues that a guest may have, read as below [128]",
        },
        Key {
            name: "penalty",
            form: "on|off",
            about: "let a front end that broke the rules wait before it may try again [on]",
        },
        Key {
            name: FEATURES,
            form: "NAME+...",
            about: "virtio features to offer, or not to, as below [all but ring_reset]",
        },
    ],
    notes,
    read,
};

fn notes() -> String {
    let text = "
Front ends read the protocol's number of queues in two ways. Those that take it for rings may have
as many pairs as queue-pairs says, but no more than 64; those that take it for pairs, as QEMU and
DPDK do, may have twice as many, up to 128.

Features of a vhost-user port: it offers all of these but ring_reset, unless it has `features`.
features=version_1+csum offers these two and nothing else; features=-mtu+-ring_packed offers
what it would, less these two. In a file: features = [\"-mtu\", \"-ring_packed\"]
";
    text.to_owned() + &wrap(&features::names(SUPPORTED))
}

/// A guest, over vhost-user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUser {
    /// The socket, of at most 107 bytes.
    pub path: PathBuf,
    /// Who makes the socket.
    pub socket: SocketRole,
    /// The MTU, in bytes, at least 68: larger frames are dropped. The front end may set a smaller
    /// one (NET_SET_MTU).
    pub mtu: u16,
    /// Queue pairs, 1 to 128. A front end that counts rings may have so many, but no more than 64;
    /// one that counts pairs, as QEMU does, twice as many, up to 128. See
    /// [`vhost_user::back_end::Offer::queue_number`].
    pub queue_pairs: u16,
    /// Whether a front end that broke the rules has to wait before it may try again.
    pub penalty: bool,
    /// The virtio features that the guest is offered, and no others: nothing else than this
    /// decides, so that a guest finds the same wherever it migrates to.
    pub features: Features,
}

/// The switch's side of a vhost-user socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketRole {
    /// The switch makes the socket and front ends connect to it.
    Listen {
        /// The permissions of the socket's file, at most 0o777.
        mode: u32,
        /// The group of the socket's file, a name or a number; the process's own if `None`.
        group: Option<String>,
    },
    /// A front end listens and the switch connects to it, again and again until it is there.
    Connect,
}

impl VhostUser {
    /// A port whose only key is its path.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            socket: SocketRole::Listen { mode: DEFAULT_SOCKET_MODE, group: None },
            mtu: DEFAULT_MTU,
            queue_pairs: ports::vhost_user::MAX_PAIRS as u16,
            penalty: true,
            features: DEFAULT_FEATURES,
        }
    }
}

fn read(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let mut port = VhostUser::new(PathBuf::new());
    let (mut path, mut connect) = (None, false);
    let (mut socket_mode, mut socket_group) = (DEFAULT_SOCKET_MODE, None);
    let before = faults.len();
    for entry in written.keys(&TYPE, faults) {
        match entry.key.as_str() {
            "path" => path = entry.read(faults, value::socket_path),
            "connect" => set(&mut connect, entry.read(faults, value::switch)),
            "socket-mode" => set(&mut socket_mode, entry.read(faults, value::socket_mode)),
            "socket-group" => socket_group = entry.read(faults, value::socket_group),
            "mtu" => set(&mut port.mtu, entry.read(faults, value::mtu)),
            "queue-pairs" => set(&mut port.queue_pairs, entry.read(faults, value::queue_pairs)),
            "penalty" => set(&mut port.penalty, entry.read(faults, value::switch)),
            FEATURES => set(&mut port.features, features::read(entry, faults)),
            _ => {}
        }
    }
    if connect {
        for key in ["socket-mode", "socket-group"] {
            if let Some(entry) = written.entry(key) {
                let problem = Problem::NotWithConnect(entry.key.clone());
                faults.push(Fault { place: entry.place.clone(), problem });
            }
        }
    }
    port.path = path?;
    port.socket = match connect {
        true => SocketRole::Connect,
        false => SocketRole::Listen { mode: socket_mode, group: socket_group },
    };
    (faults.len() == before).then_some(PortKind::VhostUser(port))
}
