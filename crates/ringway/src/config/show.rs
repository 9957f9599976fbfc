//! A configuration as a file, and its network as another: what `ringway config show` prints.
//!
//! What was written is printed as it was written, so that a file that was read comes out with the same values; what
//! flags say has the form that they have in a file. Written out, each app of a port's keys has those of them that are its own,
//! under the same names; what is left of them is the port's.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::app::SIDE;
use super::keys::{self, APP, LINKS, PORT, TYPE};
use super::network::{BRIDGE, Network, NetworkApp};
use super::value::Scalar;
use super::written::{Entry, Written};
use super::{Config, Draft, vlan};

impl Draft {
    /// All that was gathered as one file in TOML, without comments. Without meaning if something is wrong with it.
    pub fn to_toml(&self) -> String {
        let mut text = self.settings_but(&[]);
        for port in &self.ports {
            table(&mut text, &[PORT, &port.name], &port.entries);
        }
        for app in &self.apps {
            table(&mut text, &[APP, &app.table.name], &app.table.entries);
            for side in &app.sides {
                table(&mut text, &[APP, &app.table.name, SIDE, &side.name], &side.entries);
            }
        }
        text
    }

    /// The same with all apps and links that are meant, each said as such: a configuration with the same network. `config` is
    /// what this one means.
    pub fn to_expanded_toml(&self, config: &Config) -> String {
        let network = config.network();
        let mut text = self.settings_but(&[LINKS]);
        let links =
            network.links.iter().map(|link| format!("    {},\n", quoted(&network.text(link))));
        let _ = write!(text, "{LINKS} = [\n{}]\n", links.collect::<String>());
        let between = config.ports.iter().flat_map(|port| {
            let written = self.ports.iter().find(|written| written.name == port.name);
            port.apps().into_iter().filter_map(move |(name, _)| Some((name, written?)))
        });
        let between = between.collect();
        for app in &network.apps {
            self.expand(&mut text, app, config, &between);
        }
        text
    }

    /// Adds the tables of an app. `between` has the ports of those that are made of a port's keys.
    fn expand(
        &self,
        text: &mut String,
        app: &NetworkApp,
        config: &Config,
        between: &HashMap<String, &Written>,
    ) {
        let NetworkApp { name, spec, .. } = app;
        if let Some(port) = self.ports.iter().find(|port| port.name == *name) {
            let is_own = |entry: &&Entry| keys::common_keys().all(|key| key.name != entry.key);
            return table(text, &[PORT, name], port.entries.iter().filter(is_own));
        }
        let written = self.apps.iter().find(|app| app.table.name == *name);
        match (written, between.get(name)) {
            (Some(app), _) => table(text, &[APP, name], &app.table.entries),
            (None, port) => {
                table(text, &[APP, name], []);
                let _ = writeln!(text, "{TYPE} = {}", quoted(spec.type_name()));
                text.extend(spec.app_type().zip(port).into_iter().flat_map(|(known, port)| {
                    let names = known.keys.iter().map(|key| key.name).collect::<Vec<_>>();
                    lines_of(port, &names)
                }));
            }
        }
        for side in written.iter().flat_map(|app| &app.sides) {
            table(text, &[APP, name, SIDE, &side.name], &side.entries);
        }
        if name == BRIDGE {
            let (joined, keys) = (config.joined(), vlan::KEYS.map(|key| key.name));
            let with_vlans = config.ports.iter().filter(|port| port.vlan.is_some());
            let with_vlans: HashSet<&str> = with_vlans.map(|port| port.name.as_str()).collect();
            let is_side = |port: &&Written| {
                joined.contains(port.name.as_str()) && with_vlans.contains(port.name.as_str())
            };
            for port in self.ports.iter().filter(is_side) {
                table(text, &[APP, name, SIDE, &port.name], []);
                text.extend(lines_of(port, &keys));
            }
        }
    }

    /// The settings in lines, but for these.
    fn settings_but(&self, others: &[&str]) -> String {
        let keys = keys::TOP_LEVEL.iter().filter(|key| !others.contains(key));
        // What came later replaces what came before.
        let entries = keys.filter_map(|key| self.settings.iter().rfind(|entry| entry.key == *key));
        entries.map(line).collect()
    }
}

impl Network {
    /// A drawing for Graphviz. Two apps that are linked both ways have one edge for that.
    pub fn to_dot(&self) -> String {
        let mut text =
            String::from("digraph ringway {\n    rankdir = LR;\n    node [shape = box];\n");
        for NetworkApp { name, spec, .. } in &self.apps {
            let kind = spec.type_name();
            let label = if name == kind { name.clone() } else { format!("{name}\\n{kind}") };
            // A name has no characters that would have to be escaped.
            let _ = writeln!(text, "    \"{name}\" [label = \"{label}\"];");
        }
        let mut edges: Vec<([usize; 2], bool)> = Vec::new();
        for link in &self.links {
            let [from, to] = [link.from.app, link.to.app];
            match edges.iter_mut().find(|(apps, is_both)| *apps == [to, from] && !is_both) {
                Some((_, is_both)) => *is_both = true,
                None => edges.push(([from, to], false)),
            }
        }
        for (apps, is_both) in edges {
            let [from, to] = apps.map(|app| &self.apps[app].name);
            let both = if is_both { " [dir = both]" } else { "" };
            let _ = writeln!(text, "    \"{from}\" -> \"{to}\"{both};");
        }
        text + "}\n"
    }
}

/// Adds a table.
fn table<'a>(text: &mut String, path: &[&str], entries: impl IntoIterator<Item = &'a Entry>) {
    let separator = if text.is_empty() { "" } else { "\n" };
    let path: Vec<String> = path.iter().map(|name| key(name)).collect();
    let _ = writeln!(text, "{separator}[{}]", path.join("."));
    // That of tables is said by them.
    let is_table = |entry: &Entry| matches!(entry.value.scalar, Scalar::Other(_));
    text.extend(entries.into_iter().filter(|entry| !is_table(entry)).map(line));
}

/// The lines of those entries that have these keys.
fn lines_of(written: &Written, keys: &[&str]) -> Vec<String> {
    let is_one = |entry: &&Entry| keys.contains(&entry.key.as_str());
    written.entries.iter().filter(is_one).map(line).collect()
}

fn line(entry: &Entry) -> String {
    format!("{} = {}\n", key(&entry.key), value(&entry.value.scalar))
}

/// A key, in quotes where it needs them.
fn key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_bare) { name.to_owned() } else { quoted(name) }
}

fn value(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Text(text) => quoted(text),
        Scalar::Integer { digits, radix } => {
            let prefix = match radix {
                2 => "0b",
                8 => "0o",
                16 => "0x",
                _ => "",
            };
            format!("{prefix}{digits}")
        }
        Scalar::Boolean(boolean) => boolean.to_string(),
        Scalar::List(items) => {
            let items: Vec<_> = items.iter().map(|item| value(&item.scalar)).collect();
            format!("[{}]", items.join(", "))
        }
        // No key takes it.
        Scalar::Other(form) => quoted(form),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            // TOML 1.0, "String": U+0000 to U+001F and U+007F.
            _ if character.is_ascii_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}
