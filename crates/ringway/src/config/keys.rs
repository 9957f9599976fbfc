//! The keys there are. Error messages and `--help` are made from these tables.

use super::fault::Fault;
use super::written::Written;
use super::{PortKind, app, between, kinds, vlan};

/// One key and what it may hold.
#[derive(Clone, Copy)]
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
    /// The other keys that it has and not all types do. All are optional.
    pub keys: &'static [Key],
    /// What is to be said of them all in `--help`, in lines that fit a terminal.
    pub notes: fn() -> String,
    /// What a port means that was written as one of this type. What is wrong with it goes to the faults.
    pub read: fn(&Written, &mut Vec<Fault>) -> Option<PortKind>,
}

impl PortType {
    /// The keys that a port may have. A flag gives the type and the target by position instead.
    pub fn valid_keys(&self, in_flag: bool) -> Vec<&'static str> {
        let positional = (!in_flag).then_some([TYPE, self.target.name]);
        let keys = self.keys.iter().chain(common_keys()).map(|key| key.name);
        positional.into_iter().flatten().chain(keys).collect()
    }
}

/// The keys that ports of all types have.
pub fn common_keys() -> impl Iterator<Item = &'static Key> {
    vlan::KEYS.iter().chain(between::keys())
}

/// Which type of port a port is.
pub const TYPE: &str = "type";

/// Which features a guest is offered.
pub const FEATURES: &str = "features";

/// The table that holds the tables of the ports.
pub const PORT: &str = "port";
/// The table that holds the tables of apps.
pub const APP: &str = "app";
/// The links between apps.
pub const LINKS: &str = "links";

/// The keys at the top of a file: those that are also flags, the links, and the tables of tables.
pub const TOP_LEVEL: [&str; 9] =
    ["mode", "idle-spin", "workers", "cpus", "log", "control", LINKS, PORT, APP];

/// Every type of port.
pub const PORT_TYPES: [&PortType; 6] = [
    &kinds::vhost_user::TYPE,
    &kinds::tap::TYPE,
    &kinds::tun::TYPE,
    &kinds::vhost_net::TYPE,
    &kinds::pcap::READ,
    &kinds::pcap::WRITE,
];

/// The types of port and their keys, as sections of `--help`.
pub fn help() -> String {
    let mut text = String::from("Ports:\n");
    for port_type in PORT_TYPES {
        let PortType { name, about, target, keys, .. } = port_type;
        text += &format!("  {name}:{}\n      {about}\n", target.form);
        let in_a_file = format!("({} in a file)", target.name);
        text += &format!("      {in_a_file:<21}  {}\n", target.about);
        text.extend(keys.iter().map(line));
    }
    text += "  and for all of these\n";
    text.extend(common_keys().map(line));
    let notes = PORT_TYPES.iter().map(|port_type| (port_type.notes)());
    text + &app::help() + &notes.collect::<String>()
}

/// A key in `--help`.
pub fn line(key: &Key) -> String {
    let setting = format!("{}={}", key.name, key.form);
    format!("      {setting:<21}  {}\n", key.about)
}

/// Words in lines that fit a terminal.
pub fn wrap(words: &[String]) -> String {
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
