//! The configuration file: TOML as a tree in which everything knows its place.
//!
//! The tree is walked by hand rather than deserialized, because serde stops at the first error
//! and a person wants them all.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::app::{SIDE, WrittenApp};
use super::fault::{Fault, Place, Problem};
use super::keys::{APP, PORT};
use super::value::{Scalar, Value};
use super::written::{Entry, Written};

/// The settings, the ports and the apps of a file, each in the order of the file.
#[derive(Default)]
pub struct WrittenFile {
    pub settings: Vec<Entry>,
    pub ports: Vec<Written>,
    pub apps: Vec<WrittenApp>,
}

/// A kind of table that there may be several of, in a table that holds them.
struct Tables {
    /// What each of them is: the key of the table that holds them.
    what: &'static str,
    whose: &'static str,
    /// How they are written.
    form: &'static str,
}

const PORTS: Tables = Tables { what: PORT, whose: "a port's", form: "[port.NAME]" };
const APPS: Tables = Tables { what: APP, whose: "an app's", form: "[app.NAME]" };
const SIDES: Tables = Tables { what: SIDE, whose: "a side's", form: "[app.NAME.side.SIDE]" };

impl WrittenFile {
    /// Takes a file's text apart. A file that is not TOML yields nothing but its faults: what
    /// could be guessed of the rest would only add false ones.
    pub fn parse(path: &Path, text: &str, faults: &mut Vec<Fault>) -> WrittenFile {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let source = Source::new(path, text);
        if !errors.is_empty() {
            faults.extend(source.syntax_faults(&errors));
            return WrittenFile::default();
        }

        let mut file = WrittenFile::default();
        for (key, value) in in_order(tree.get_ref()) {
            if key.get_ref() == PORT {
                let tables = source.tables(&PORTS, key, value, faults);
                file.ports = tables.into_iter().map(|(port, _)| port).collect();
            } else if key.get_ref() == APP {
                let tables = source.tables(&APPS, key, value, faults);
                let app = |(table, entries): (Written, &DeTable<'_>)| {
                    let sides = entries.get_key_value(SIDE);
                    let sides = sides.map(|(key, value)| source.tables(&SIDES, key, value, faults));
                    let sides = sides.into_iter().flatten().map(|(side, _)| side).collect();
                    WrittenApp { table, sides }
                };
                file.apps = tables.into_iter().map(app).collect();
            } else {
                file.settings.push(source.entry(key, value));
            }
        }
        file
    }
}

/// Characters of a line that are shown of one that is wrong.
const LINE_LIMIT: usize = 60;

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// Where its lines begin.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { path, text, lines: [0].into_iter().chain(ends).collect() }
    }

    fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        self.place_at(spanned.span().start)
    }

    /// The position of a byte offset.
    fn place_at(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|begin| *begin <= offset);
        let begin = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(begin..offset).unwrap_or_default();
        Place::Position { path: self.path.to_owned(), line, column: before.chars().count() + 1 }
    }

    /// The line of a byte offset, or as much of it as is to be read.
    fn line_at(&self, offset: usize) -> String {
        let line = self.lines.partition_point(|begin| *begin <= offset);
        let line = self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        match line.char_indices().nth(LINE_LIMIT) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line.to_owned(),
        }
    }

    /// The tables that a table holds. What is none is a fault.
    fn tables<'t, 'i>(
        &self,
        of: &Tables,
        key: &Spanned<DeString<'_>>,
        value: &'t Spanned<DeValue<'i>>,
        faults: &mut Vec<Fault>,
    ) -> Vec<(Written, &'t DeTable<'i>)> {
        let Tables { what, whose, form: expected } = *of;
        let mut fault = |key: &Spanned<DeString<'_>>, found: String| {
            let problem = Problem::NotATable { found, whose, expected };
            faults.push(Fault { place: self.place(key), problem });
        };
        let DeValue::Table(tables) = value.get_ref() else {
            fault(key, format!("{what} = {}", value.get_ref().type_str()));
            return Vec::new();
        };
        let mut written = Vec::new();
        for (name, value) in in_order(tables) {
            let DeValue::Table(entries) = value.get_ref() else {
                fault(name, format!("{what}.{} = {}", name.get_ref(), value.get_ref().type_str()));
                continue;
            };
            let pairs = in_order(entries).into_iter();
            let table = Written {
                what,
                name: name.get_ref().to_string(),
                place: self.place(name),
                entries: pairs.map(|(key, value)| self.entry(key, value)).collect(),
            };
            written.push((table, entries));
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
        let is_twice = |fault: &Fault| matches!(fault.problem, Problem::Twice { .. });
        if faults.iter().any(is_twice) {
            faults.retain(|fault| !matches!(fault.problem, Problem::KeyTwice(_)));
        }
        faults
    }

    fn syntax_fault(&self, error: &toml::de::Error) -> Fault {
        let span = error.span().unwrap_or(0..0);
        let place = self.place_at(span.start);
        let offending = self.text.get(span.clone()).unwrap_or_default();
        let problem = if error.message() == "duplicate key" {
            self.table_twice(span.start, offending)
                .unwrap_or_else(|| Problem::KeyTwice(offending.to_owned()))
        } else {
            // "expected nothing" is the parser's for a number's leading zero, and misleads.
            let error = error.message().trim_end_matches(", expected nothing").to_owned();
            Problem::Syntax { line: self.line_at(span.start), error }
        };
        Fault { place, problem }
    }

    /// The fault of a second `[port.NAME]` or `[app.NAME]`. The parser says where the second is and not where the
    /// first is, but what precedes the second's line is a file of its own that has the first.
    fn table_twice(&self, offset: usize, name: &str) -> Option<Problem> {
        let before = self.text.get(..offset)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let (preceding, line) = before.split_at(line_start);
        let holder = line.trim().strip_prefix('[')?.strip_suffix('.')?.trim();
        let what = [PORT, APP].into_iter().find(|what| *what == holder)?;
        let (tree, _) = DeTable::parse_recoverable(preceding);
        let tables = tree.get_ref().get(what)?.get_ref().as_table()?;
        let bare = name.trim_matches(['"', '\'']);
        let (first, _) = tables.get_key_value(bare)?;
        Some(Problem::Twice { what, name: bare.to_owned(), first: self.place(first) })
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
