//! What an input reached.

use std::collections::BTreeSet;
use std::fmt::Debug;

/// Names of what happened while a case ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(BTreeSet<String>);

impl Reached {
    /// Notes that something happened.
    pub fn note(&mut self, what: &str) {
        if !self.0.contains(what) {
            self.0.insert(what.to_owned());
        }
    }

    /// Notes the variant of an enum that came up.
    pub(crate) fn note_variant(&mut self, value: &impl Debug) {
        let text = format!("{value:?}");
        let end = text.find(|at: char| !at.is_ascii_alphanumeric()).unwrap_or(text.len());
        self.note(&text[..end]);
    }

    /// Whether it happened.
    pub fn has(&self, what: &str) -> bool {
        self.0.contains(what)
    }

    /// Takes in what another input reached.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}
