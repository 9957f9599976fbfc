//! The judge: numbered cases that drive a vhost-user net back end through the rules.
//!
//! # How it works
//!
//! A [`Case`] is a few lines that say what the front end and its guest do, and what must follow; it
//! works with a [`Bench`], which knows the socket. There is everything from a connection on which
//! anything can be said ([`peer`]) over a device that was brought up ([`device`]) with its own kind of
//! ring ([`ring`]) to a [`Rig`](bench::Rig) at which frames pass. Frames are seen again in one of two
//! ways, which [`run`] finds out first: the back end sends them back, or it is a switch and they come
//! out at another of its sockets. Cases that need frames are skipped when neither is so.
//!
//! After each case the same process must accept a connection and answer, and after a hostile one frames
//! must pass as before; otherwise the case has crashed it, whatever it saw itself.
//!
//! Nothing here prints; [`run`] reports each result as it comes. A case exists only where the
//! specification says what must be: where it leaves a choice, there is none.

pub mod bench;
mod case;
mod cases;
pub mod device;
#[cfg(feature = "faults")]
pub mod faults;
mod memory;
pub mod peer;
pub mod ring;
mod runner;
mod table;
mod verdict;

pub use bench::{Bench, Target, Traffic};
pub use case::{Case, Topic, cases, find};
pub use runner::{Options, Report, Result as CaseResult, Unreachable, run};
pub use table::table;
pub use verdict::{Check, Stop, Verdict};
