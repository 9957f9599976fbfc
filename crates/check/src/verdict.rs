//! How a case ends.

use std::fmt;

/// What was found out about one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The back end does what the specification asks for.
    Pass,
    /// It does not.
    Fail,
    /// It does not offer the feature, or nothing can be seen from here.
    Skipped,
    /// It went away: it accepts no new connection, or passes no frame, or had to be started again.
    Crashed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
            Self::Crashed => "crashed",
        })
    }
}

/// Why a case ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What was seen instead of what was expected.
    Fail(String),
    /// Why the case says nothing about this back end.
    Skip(String),
}

/// What a step of a case returns.
pub type Check<T = ()> = Result<T, Stop>;

/// The end of a case that has failed.
pub fn fail(seen: impl Into<String>) -> Stop {
    Stop::Fail(seen.into())
}

/// The end of a case that does not apply.
pub fn skip(why: impl Into<String>) -> Stop {
    Stop::Skip(why.into())
}

/// Fails unless `right`; `seen` says what was seen instead.
pub fn ensure(right: bool, seen: impl Into<String>) -> Check {
    if right { Ok(()) } else { Err(fail(seen)) }
}

/// Fails unless the two are equal. `what` names the value.
pub fn equal<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Check {
    if found == expected {
        Ok(())
    } else {
        Err(fail(format!("{what} is {found:?}, not {expected:?}")))
    }
}
