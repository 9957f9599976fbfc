//! The configuration file: TOML as a tree in which everything knows its place.
//!
//! The tree is walked by hand rather than deserialized, because serde stops at the first error
//! and a person wants them all.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::fault::{Fault, Place, Problem};
use super::keys::PORT;
use super::port::{Entry, WrittenPort};
use super::value::{Scalar, Value};

/// The settings and the ports of a file, each in the order of the file.
#[derive(Default)]
pub struct WrittenFile {
    pub settings: Vec<Entry>,
    pub ports: Vec<WrittenPort>,
}

impl WrittenFile {
    /// Takes a file's text apart. A file that is not TOML yields nothing but its faults: what
    /// could be guessed of the rest would only add false ones.
    pub fn parse(path: &Path, text: &str, faults: &mut Vec<Fault>) -> WrittenFile {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let source = Source { path, text };
        if !errors.is_empty() {
            faults.extend(source.syntax_faults(&errors));
            return WrittenFile::default();
        }

        let mut file = WrittenFile::default();
        for (key, value) in in_order(tree.get_ref()) {
            match value.get_ref() {
                DeValue::Table(ports) if key.get_ref() == PORT => {
                    file.ports = source.ports(ports, faults);
                }
                other if key.get_ref() == PORT => faults.push(Fault {
                    place: source.place(key),
                    problem: Problem::NotAPort(format!("{PORT} = {}", other.type_str())),
                }),
                _ => file.settings.push(source.entry(key, value)),
            }
        }
        file
    }
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        Place::in_file(self.path, self.text, spanned.span().start)
    }

    fn ports(&self, ports: &DeTable<'_>, faults: &mut Vec<Fault>) -> Vec<WrittenPort> {
        let mut written = Vec::new();
        for (name, value) in in_order(ports) {
            let DeValue::Table(entries) = value.get_ref() else {
                faults.push(Fault {
                    place: self.place(name),
                    problem: Problem::NotAPort(format!(
                        "{PORT}.{} = {}",
                        name.get_ref(),
                        value.get_ref().type_str()
                    )),
                });
                continue;
            };
            written.push(WrittenPort {
                name: name.get_ref().to_string(),
                place: self.place(name),
                entries: in_order(entries)
                    .into_iter()
                    .map(|(key, value)| self.entry(key, value))
                    .collect(),
            });
        }
        written
    }

    fn entry(&self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) -> Entry {
        Entry { key: key.get_ref().to_string(), place: self.place(key), value: self.value(value) }
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Value {
        let scalar = match value.get_ref() {
            DeValue::String(text) => Scalar::Text(text.to_string()),
            DeValue::Integer(integer) => {
                Scalar::Integer { digits: integer.as_str().to_owned(), radix: integer.radix() }
            }
            DeValue::Boolean(boolean) => Scalar::Boolean(*boolean),
            DeValue::Array(items) => {
                Scalar::List(items.iter().map(|item| self.value(item)).collect())
            }
            other => Scalar::Other(other.type_str()),
        };
        Value { scalar, place: self.place(value) }
    }

    fn syntax_faults(&self, errors: &[toml::de::Error]) -> Vec<Fault> {
        let mut faults: Vec<Fault> = errors.iter().map(|e| self.syntax_fault(e)).collect();
        // The parser goes on in the first of two tables that have one name, and then finds each
        // key of the second twice.
        let port_twice = |fault: &Fault| matches!(fault.problem, Problem::PortTwice { .. });
        if faults.iter().any(port_twice) {
            faults.retain(|fault| !matches!(fault.problem, Problem::KeyTwice(_)));
        }
        faults
    }

    fn syntax_fault(&self, error: &toml::de::Error) -> Fault {
        let span = error.span().unwrap_or(0..0);
        let place = Place::in_file(self.path, self.text, span.start);
        let offending = self.text.get(span.clone()).unwrap_or_default();
        let problem = if error.message() == "duplicate key" {
            self.port_twice(span.start, offending)
                .unwrap_or_else(|| Problem::KeyTwice(offending.to_owned()))
        } else {
            // "expected nothing" is the parser's for a number's leading zero, and misleads.
            let message = error.message().trim_end_matches(", expected nothing");
            Problem::Syntax(message.to_owned())
        };
        Fault { place, problem }
    }

    /// The fault of a second `[port.NAME]`. The parser says where the second is and not where the
    /// first is, but what precedes the second's line is a file of its own that has the first.
    fn port_twice(&self, offset: usize, name: &str) -> Option<Problem> {
        let before = self.text.get(..offset)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let (preceding, line) = before.split_at(line_start);
        if !line.trim_start().starts_with('[') {
            return None;
        }
        let (tree, _) = DeTable::parse_recoverable(preceding);
        let ports = tree.get_ref().get(PORT)?.get_ref().as_table()?;
        let bare = name.trim_matches(['"', '\'']);
        let (first, _) = ports.get_key_value(bare)?;
        Some(Problem::PortTwice { name: bare.to_owned(), first: self.place(first) })
    }
}

/// A table's pairs in the order of the file; the table itself is sorted by key.
fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}
