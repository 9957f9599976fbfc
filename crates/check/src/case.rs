//! What a case is, and all of them.

use std::fmt;

use crate::bench::Bench;
use crate::cases as topics;
use crate::verdict::Check;

/// What a case is about. The number of a topic is the first part of its cases' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Bytes on the socket.
    Connection = 1,
    /// Features and their effects.
    Negotiation,
    /// Regions.
    Memory,
    /// Starting and stopping rings.
    LifeCycle,
    /// SET_VRING_ENABLE.
    Enable,
    /// Kicks and calls.
    Notifications,
    /// Split rings.
    Split,
    /// Packed rings.
    Packed,
    /// MRG_RXBUF.
    Mergeable,
    /// The virtio-net header.
    Offload,
    /// The log of written pages.
    DirtyLog,
    /// Front ends that come again.
    Reconnect,
    /// Several queue pairs.
    Multiqueue,
    /// Wrong messages.
    Errors,
    /// What is left open.
    Descriptors,
}

impl Topic {
    /// All topics, in order.
    pub const ALL: &[Self] = &[
        Self::Connection,
        Self::Negotiation,
        Self::Memory,
        Self::LifeCycle,
        Self::Enable,
        Self::Notifications,
        Self::Split,
        Self::Packed,
        Self::Mergeable,
        Self::Offload,
        Self::DirtyLog,
        Self::Reconnect,
        Self::Multiqueue,
        Self::Errors,
        Self::Descriptors,
    ];

    /// Its number.
    pub fn number(self) -> usize {
        self as usize
    }

    fn cases(self) -> &'static [Rule] {
        match self {
            Self::Connection => topics::connection::CASES,
            Self::Negotiation => topics::negotiation::CASES,
            Self::Memory => topics::memory::CASES,
            Self::LifeCycle => topics::life_cycle::CASES,
            Self::Enable => topics::enable::CASES,
            Self::Notifications => topics::notifications::CASES,
            Self::Split => topics::split::CASES,
            Self::Packed => topics::packed::CASES,
            Self::Mergeable => topics::mergeable::CASES,
            Self::Offload => topics::offload::CASES,
            Self::DirtyLog => topics::dirty_log::CASES,
            Self::Reconnect => topics::reconnect::CASES,
            Self::Multiqueue => topics::multiqueue::CASES,
            Self::Errors => topics::errors::CASES,
            Self::Descriptors => topics::descriptors::CASES,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connection => "connection",
            Self::Negotiation => "negotiation",
            Self::Memory => "memory",
            Self::LifeCycle => "ring life cycle",
            Self::Enable => "enable and disable",
            Self::Notifications => "notifications",
            Self::Split => "split",
            Self::Packed => "packed",
            Self::Mergeable => "mergeable",
            Self::Offload => "offload header",
            Self::DirtyLog => "dirty log",
            Self::Reconnect => "reconnect",
            Self::Multiqueue => "multiqueue",
            Self::Errors => "error handling",
            Self::Descriptors => "descriptor leaks",
        })
    }
}

/// What a case does.
pub(crate) type Run = fn(&Bench<'_>) -> Check;

/// A case without its number.
pub(crate) struct Rule {
    hostile: bool,
    expects: &'static str,
    cites: &'static str,
    run: Run,
}

/// A case that an honest front end and an honest guest could be.
pub(crate) const fn case(expects: &'static str, cites: &'static str, run: Run) -> Rule {
    Rule { hostile: false, expects, cites, run }
}

/// A case in which one of them means harm. What is expected above all is that it has no effect.
pub(crate) const fn hostile(expects: &'static str, cites: &'static str, run: Run) -> Rule {
    Rule { hostile: true, expects, cites, run }
}

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    /// What it is about.
    pub topic: Topic,
    /// Its number within the topic, from 1.
    pub number: usize,
    /// One sentence on what the back end must do.
    pub expects: &'static str,
    /// The section of the specification that says so.
    pub cites: &'static str,
    /// Whether the front end or its guest breaks the rules.
    pub hostile: bool,
    pub(crate) run: Run,
}

impl Case {
    /// The number of topic and case, as `3.2`.
    pub fn id(&self) -> String {
        format!("{}.{}", self.topic.number(), self.number)
    }
}

/// All cases, in order.
pub fn cases() -> Vec<Case> {
    let of = |&topic: &Topic| {
        (1..).zip(topic.cases()).map(move |(number, rule)| Case {
            topic,
            number,
            expects: rule.expects,
            cites: rule.cites,
            hostile: rule.hostile,
            run: rule.run,
        })
    };
    Topic::ALL.iter().flat_map(of).collect()
}

/// The cases that `selection` names: `3.2`, `3`, or a topic's name or the beginning of it. None when
/// there is no such thing.
pub fn find(selection: &str) -> Option<Vec<Case>> {
    let wanted = selection.trim().to_lowercase();
    let matches = |case: &Case| {
        case.id() == wanted
            || case.topic.number().to_string() == wanted
            || (!wanted.is_empty() && case.topic.to_string().starts_with(&wanted))
    };
    let found: Vec<Case> = cases().into_iter().filter(matches).collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_cases_and_each_says_what_it_is() {
        let cases = cases();
        assert!(cases.len() >= 120, "{} cases", cases.len());
        for topic in Topic::ALL {
            assert!(cases.iter().any(|case| case.topic == *topic), "{topic} has no case");
        }
        for case in &cases {
            let id = case.id();
            assert!(case.expects.ends_with('.'), "{id}: {}", case.expects);
            let source = case.cites.split([',', ' ']).next().unwrap_or_default();
            assert!(["vhost-user", "virtio"].contains(&source), "{id}: {}", case.cites);
            let namesakes = cases.iter().filter(|other| other.expects == case.expects).count();
            assert_eq!(namesakes, 1, "{id}: {}", case.expects);
        }
    }

    #[test]
    fn cases_are_found_by_number_and_by_topic() {
        let ids = |selection| -> Vec<String> {
            find(selection).unwrap_or_default().iter().map(Case::id).collect()
        };
        assert_eq!(ids("3.2"), ["3.2"]);
        assert!(ids("3").contains(&"3.2".to_owned()) && !ids("3").contains(&"13.1".to_owned()));
        assert_eq!(ids("packed"), ids("8"));
        assert_eq!(ids("Ring"), ids("4"));
        assert_eq!(ids("16"), [""; 0]);
        assert_eq!(ids(""), [""; 0]);
        assert_eq!(ids("nonsense"), [""; 0]);
    }
}
