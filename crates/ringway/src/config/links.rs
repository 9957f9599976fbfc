//! `links`: what is written as `vm1.tx -> tee.in`.

use std::collections::HashMap;

use super::fault::{Fault, Place, Problem};
use super::network::{NamedLink, Spec, Terminal, Terminals};
use super::port::is_name;
use super::value::{Misfit, Scalar, Value, nearest, one_of};
use super::written::Entry;

/// The longest name of a bridge's side, or of a tee's output.
const TERMINAL_LIMIT: usize = 64;

/// The apps that links can lead to, by their names. None of which is known that it is there, and nothing else, as there is
/// something wrong with it.
#[derive(Default)]
pub struct Apps(HashMap<String, Option<[Terminals; 2]>>);

/// The two ends of a link.
#[derive(Clone, Copy)]
enum Direction {
    Output,
    Input,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Input => "input",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Self::Output => "an output",
            Self::Input => "an input",
        }
    }
}

impl Apps {
    /// Adds an app.
    pub fn add(&mut self, name: &str, spec: &Spec) {
        self.0.insert(name.to_owned(), Some([spec.outputs(), spec.inputs()]));
    }

    /// Adds one of which nothing else is known, unless it is there.
    pub fn add_name(&mut self, name: &str) {
        self.0.entry(name.to_owned()).or_insert(None);
    }

    /// What an end of a link names. None where that is a fault, or an app with faults. What stands behind the name of an app is one of its
    /// outputs or inputs; both may have dots.
    fn find(
        &self,
        end: &str,
        link: &str,
        direction: Direction,
        mut fault: impl FnMut(Problem),
    ) -> Option<Terminal> {
        let dots = end.rmatch_indices('.').map(|(at, _)| (&end[..at], &end[at + 1..]));
        let mut known = dots.filter_map(|(app, name)| Some((app, name, self.0.get(app)?)));
        let Some((app, name, terminals)) = known.next() else {
            let ends = self.ends(end, direction);
            fault(Problem::NoApp {
                end: end.to_owned(),
                link: link.to_owned(),
                what: direction.with_article(),
                nearest: nearest(end, ends.iter().map(String::as_str)),
            });
            return None;
        };
        let terminals = terminals.as_ref()?;
        let (expected, near) = match terminals[direction as usize] {
            Terminals::Any if is_name(name, TERMINAL_LIMIT) => {
                return Some(Terminal::new(app, name));
            }
            Terminals::Any => ("1 to 64 characters out of A-Z, a-z, 0-9, . _ -".to_owned(), None),
            Terminals::These(names) if names.contains(&name) => {
                return Some(Terminal::new(app, name));
            }
            Terminals::These([]) => ("another app, as it has none".to_owned(), None),
            Terminals::These(names) => (one_of(names), nearest_terminal(name, names)),
        };
        fault(Problem::NoTerminal {
            end: end.to_owned(),
            link: link.to_owned(),
            app: app.to_owned(),
            what: direction.name(),
            expected,
            nearest: near.map(|name| format!("{app}.{name}")),
        });
        None
    }

    /// What could have been meant, in a fixed order.
    fn ends(&self, end: &str, direction: Direction) -> Vec<String> {
        let (_, last) = end.rsplit_once('.').unwrap_or(("", end));
        let mut ends = Vec::new();
        for (app, terminals) in &self.0 {
            match terminals.map(|terminals| terminals[direction as usize]) {
                Some(Terminals::These(names)) => {
                    ends.extend(names.iter().map(|name| format!("{app}.{name}")));
                }
                _ => ends.push(format!("{app}.{last}")),
            }
        }
        ends.sort_unstable();
        ends
    }
}

/// What could have been meant. Most are so short that two letters in the wrong order are unlike.
fn nearest_terminal(name: &str, names: &[&str]) -> Option<String> {
    let is_swapped = |other: &&&str| name.chars().rev().eq(other.chars());
    let swapped = names.iter().find(is_swapped).map(|other| (*other).to_owned());
    swapped.or_else(|| nearest(name, names.iter().copied()))
}

/// The links of one entry, and where each was written. What is wrong with them goes to the faults.
pub fn read(entry: &Entry, apps: &Apps, faults: &mut Vec<Fault>) -> Vec<(NamedLink, Place)> {
    let Scalar::List(items) = &entry.value.scalar else {
        let expected = "a list of links, as [\"vm1.tx -> tee.in\"]".to_owned();
        faults.push(entry.wrong(&entry.value, Misfit { expected, nearest: None }));
        return Vec::new();
    };
    items.iter().filter_map(|item| read_one(entry, item, apps, faults)).collect()
}

fn read_one(
    entry: &Entry,
    item: &Value,
    apps: &Apps,
    faults: &mut Vec<Fault>,
) -> Option<(NamedLink, Place)> {
    let text = if let Scalar::Text(text) = &item.scalar { text.as_str() } else { "" };
    let ends = text.split_once("->").map(|(from, to)| (from.trim(), to.trim()));
    let Some((from, to)) = ends.filter(|(from, to)| !from.is_empty() && !to.is_empty()) else {
        let expected = "OUTPUT -> INPUT, as \"vm1.tx -> tee.in\"".to_owned();
        faults.push(entry.wrong(item, Misfit { expected, nearest: None }));
        return None;
    };
    let mut find = |end, direction| {
        apps.find(end, text, direction, |problem| {
            faults.push(Fault { place: item.place.clone(), problem });
        })
    };
    let (from, to) = (find(from, Direction::Output), find(to, Direction::Input));
    Some((NamedLink { from: from?, to: to? }, item.place.clone()))
}
