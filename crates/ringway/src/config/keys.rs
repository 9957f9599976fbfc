//! The keys there are. Error messages and `--help` are made from these tables.

use ports::vhost_user::SUPPORTED;

use super::features;

/// One key and what it may hold.
pub struct Key {
    /// The key as it is written, in a flag and in a file.
    pub name: &'static str,
    /// The form of its value.
    pub form: &'static str,
    /// What it means, for `--help` and for a port that lacks it.
    pub about: &'static str,
}

/// One type of port.
pub struct PortType {
    /// The TYPE of `NAME=TYPE:TARGET`, and the value of the key `type`.
    pub name: &'static str,
    /// What a port of this type is, for `--help`.
    pub about: &'static str,
    /// The key that TARGET fills.
    pub target: Key,
    /// The other keys, all optional.
    pub keys: &'static [Key],
}

impl PortType {
    /// The keys that a port may have. A flag gives the type and the target by position instead.
    pub fn valid_keys(&self, in_flag: bool) -> Vec<&'static str> {
        let positional = (!in_flag).then_some([TYPE, self.target.name]);
        let keys = self.keys.iter().map(|key| key.name);
        positional.into_iter().flatten().chain(keys).collect()
    }
}

/// Which type of port a port is.
pub const TYPE: &str = "type";

/// Which features a guest is offered.
pub const FEATURES: &str = "features";

/// The table that holds the tables of the ports.
pub const PORT: &str = "port";

/// The keys at the top of a file, each of which is also a flag, and the ports.
pub const TOP_LEVEL: [&str; 6] = ["mode", "idle-spin", "workers", "cpus", "log", PORT];

/// A Unix socket on which virtio-net rings are handed over.
pub const VHOST_USER: PortType = PortType {
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
};

/// A network interface of the host.
pub const TAP: PortType = PortType {
    name: "tap",
    about: "a tap interface of the host, attached to, or created if there is none",
    target: Key { name: "interface", form: "INTERFACE", about: "the name of its interface" },
    keys: &[],
};

/// Every type of port.
pub const PORT_TYPES: [&PortType; 2] = [&VHOST_USER, &TAP];

/// The types of port and their keys, as sections of `--help`.
pub fn help() -> String {
    let mut text = String::from("Ports:\n");
    for port_type in PORT_TYPES {
        let PortType { name, about, target, keys } = port_type;
        text += &format!("  {name}:{}\n      {about}\n", target.form);
        let in_a_file = format!("({} in a file)", target.name);
        text += &format!("      {in_a_file:<21}  {}\n", target.about);
        for key in *keys {
            let setting = format!("{}={}", key.name, key.form);
            text += &format!("      {setting:<21}  {}\n", key.about);
        }
    }
    text += "
Front ends read the protocol's number of queues in two ways. Those that take it for rings may have
as many pairs as queue-pairs says, but no more than 64; those that take it for pairs, as QEMU and
DPDK do, may have twice as many, up to 128.

Features of a vhost-user port: it offers all of these but ring_reset, unless it has `features`.
features=version_1+csum offers these two and nothing else; features=-mtu+-ring_packed offers
what it would, less these two. In a file: features = [\"-mtu\", \"-ring_packed\"]\n";
    text + &wrap(&features::names(SUPPORTED))
}

/// Words in lines that fit a terminal.
fn wrap(words: &[String]) -> String {
    let (mut text, mut line) = (String::new(), String::from(" "));
    for word in words {
        if line.len() + 1 + word.len() > 78 {
            text += &format!("{line}\n");
            line.truncate(1);
        }
        line += &format!(" {word}");
    }
    format!("{text}{line}\n")
}
