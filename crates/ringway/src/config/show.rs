//! A configuration as a file: what `ringway config show` prints.
//!
//! What was written is printed as it was written, so that a file that was read comes out with the same values; what
//! flags say has the form that they have in a file.

use std::fmt::Write;

use super::Draft;
use super::keys::{self, PORT};
use super::port::Entry;
use super::value::Scalar;

impl Draft {
    /// All that was gathered as one file in TOML, without comments. Without meaning if something is wrong with it.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for key in keys::TOP_LEVEL {
            // What came later replaces what came before.
            text.extend(self.settings.iter().rfind(|entry| entry.key == key).map(line));
        }
        for port in &self.ports {
            let separator = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{separator}[{PORT}.{}]", key(&port.name));
            text.extend(port.entries.iter().map(line));
        }
        text
    }
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
