//! Ports whose outside is a capture file: [`PcapSource`] sends what is in one, [`PcapSink`] writes one.
//!
//! # Why threads
//!
//! Files make whoever touches them wait: for a disk, or a server somewhere. That holds for a mapping as
//! well, of which every page that is not in memory yet is a wait inside a load; and of a file that can
//! shrink under us, pages may be missing for good (the guard for that in `memory` is for shared memory
//! alone, which cannot wait). So each port has a thread of its own that reads ahead or writes behind,
//! and worker and thread pass each other *chunks*: large buffers, full one way and empty the
//! other, over bounded queues. The worker never waits for a queue: what it would have to wait for is not
//! there yet (a source), or dropped and counted (a sink).
//!
//! A panic in such a thread is our own bug: it is caught where a chunk is filled or written, takes the port
//! down, and is said like anything else that is wrong with the file.

mod read_ahead;
mod sink;
mod source;
mod write_behind;

pub use read_ahead::{ReadError, Replay, Report, Times};
pub use sink::{Capturing, Ended, PcapSink};
pub use source::PcapSource;
pub use write_behind::{Capture, WriteError};

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;

/// A panic of ours, and what it said.
#[derive(Debug, Error)]
#[error("a bug of ours: {0}")]
pub struct Bug(String);

/// Runs a part of a thread's work that may have a bug. Whatever it has left behind in that case is not to be
/// relied on.
fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, Bug> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Bug(text.unwrap_or_else(|| "a panic without words".to_owned()))
    })
}

/// Why a file is none of ours.
enum Unfit {
    NotAFile,
    Locked,
    Io(io::Error),
}

/// Makes sure that this is a regular file, which never makes us wait for somebody at its other end, and
/// locks it by `lock`: one that is being written is neither read nor written by another port. File systems
/// without locks go without.
fn check(file: &File, lock: fn(&File) -> Result<(), std::fs::TryLockError>) -> Result<(), Unfit> {
    if !file.metadata().map_err(Unfit::Io)?.is_file() {
        return Err(Unfit::NotAFile);
    }
    match lock(file) {
        Err(std::fs::TryLockError::WouldBlock) => Err(Unfit::Locked),
        _ => Ok(()),
    }
}
