//! The thread of a sink: writes chunks of packets to a capture file.
//!
//! Packets come with the times of their breaths, which count from the workers' epoch. What the wall clock
//! said then is found out here, every now and then, so that the file follows the wall clock when
//! somebody sets it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Traffic;
use rustix::fs::OFlags;
use rustix::system::uname;
use thiserror::Error;
use wire::pcap::{Interface, Section, Statistics, Times, retime};

use super::{Unfit, check};

/// How often statistics are written, at most, while frames come.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(10);

/// How long the wall clock is taken to be where it was, beside the workers'.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// What is captured, and how.
#[derive(Clone, Copy, Debug)]
pub struct Capture<'a> {
    /// The interface's name in the file.
    pub name: &'a str,
    /// Bytes that are kept of a frame, at most.
    pub snaplen: u32,
    /// The program that writes, and its version.
    pub application: &'a str,
    /// Since when the time of a breath counts.
    pub epoch: Instant,
}

/// Why a capture file cannot be made.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The kernel said so.
    #[error("cannot write it: {0}")]
    Io(io::Error),
    /// A directory, a pipe, a device.
    #[error("it is no regular file")]
    NotAFile,
    /// Another port has it.
    #[error("another port, of this switch or another, reads or writes it")]
    InUse,
}

impl From<Unfit> for WriteError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NotAFile => Self::NotAFile,
            Unfit::Locked => Self::InUse,
            Unfit::Io(error) => Self::Io(error),
        }
    }
}

/// Packets, one behind the other as in the file.
pub(super) struct Chunk {
    pub(super) bytes: Box<[u8]>,
    /// Bytes of packets.
    pub(super) len: usize,
    /// The frames that they hold.
    pub(super) frames: Traffic,
    /// Those could not be written.
    pub(super) is_lost: bool,
    /// Where it goes when it is empty.
    pub(super) home: SyncSender<Chunk>,
}

/// What the workers and the thread know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Frames that came to the port.
    pub(super) received: AtomicU64,
    /// Those of them that are not in the file, and not on their way there.
    pub(super) dropped: AtomicU64,
    /// The file cannot be written any more.
    pub(super) is_down: AtomicBool,
}

/// A capture file that is being written.
pub(super) struct WriteBehind {
    file: File,
    /// Where its last whole block ends.
    end: u64,
    clock: WallClock,
    /// When the capture began, by the wall clock.
    start: u64,
    statistics_at: Instant,
    shared: Arc<Shared>,
}

impl WriteBehind {
    /// Makes the file, or empties it, and writes what it begins with.
    pub(super) fn open(
        path: &Path,
        capture: &Capture<'_>,
        shared: Arc<Shared>,
    ) -> Result<Self, WriteError> {
        // A pipe would have us wait for its reader before we know that it is one. What guests say to
        // each other is nobody else's business.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(path).map_err(WriteError::Io)?;
        check(&file, File::try_lock)?;
        let Capture { name, snaplen, application, epoch } = *capture;
        let system = uname();
        let hardware = system.machine().to_string_lossy();
        let (os, release) =
            (system.sysname().to_string_lossy(), system.release().to_string_lossy());
        let mut header = Vec::new();
        let os = format!("{os} {release}");
        Section { hardware: &hardware, os: &os, application }.write(&mut header);
        let description = format!("what was sent to the port {name}");
        Interface { name, description: &description, snaplen }.write(&mut header);
        let written = file.set_len(0).and_then(|()| file.write_all_at(&header, 0));
        written.map_err(WriteError::Io)?;
        let mut clock = WallClock { epoch, then: 0, measured: None };
        let start = clock.now();
        let end = header.len() as u64;
        Ok(Self { file, end, clock, start, statistics_at: Instant::now(), shared })
    }

    /// Writes what comes, until nobody sends any more. `failed` is told why, if that cannot be.
    pub(super) fn run(mut self, full: &Receiver<Chunk>, failed: impl FnOnce(io::Error)) {
        let mut failed = Some(failed);
        for mut chunk in full {
            let packets = chunk.bytes.get_mut(..chunk.len).unwrap_or_default();
            retime(packets, self.clock.then());
            // Once it is down it stays so: there would be a gap that nobody sees.
            let written = match failed.is_some() {
                true => self.write(packets).and_then(|()| self.now_and_then()),
                false => Ok(()),
            };
            chunk.is_lost = failed.is_none() || written.is_err();
            if chunk.is_lost {
                self.shared.dropped.fetch_add(chunk.frames.frames, Ordering::Relaxed);
            }
            if let Err(error) = written
                && let Some(failed) = failed.take()
            {
                self.shared.is_down.store(true, Ordering::Relaxed);
                failed(error);
            }
            let home = chunk.home.clone();
            // Its part of the port may be gone.
            let _ = home.send(chunk);
        }
        // There may be room for this again. What is wrong was said.
        if let Err(error) = self.statistics()
            && let Some(failed) = failed.take()
        {
            failed(error);
        }
    }

    /// The same with another file, to which it does not belong.
    #[cfg(test)]
    pub(super) fn with_file(self, file: File) -> Self {
        Self { file, ..self }
    }

    /// Adds whole blocks to the file. When that fails, the file ends where it did before.
    fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        match self.file.write_all_at(blocks, self.end) {
            Ok(()) => {
                self.end += blocks.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What cannot be cut off either is the reader's to find.
                let _ = self.file.set_len(self.end);
                Err(error)
            }
        }
    }

    fn now_and_then(&mut self) -> io::Result<()> {
        if self.statistics_at.elapsed() < STATISTICS_INTERVAL {
            return Ok(());
        }
        self.statistics()
    }

    fn statistics(&mut self) -> io::Result<()> {
        self.statistics_at = Instant::now();
        let mut block = Vec::new();
        let statistics = Statistics {
            interface: 0,
            times: Times { start: self.start, end: self.clock.now() },
            received: self.shared.received.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        };
        statistics.write(&mut block);
        self.write(&block)
    }
}

/// What the wall clock says, in nanoseconds since 1970, by the clock of the workers.
struct WallClock {
    epoch: Instant,
    /// What it said at the epoch.
    then: u64,
    measured: Option<Instant>,
}

impl WallClock {
    /// What it said at the workers' epoch.
    fn then(&mut self) -> u64 {
        if self.measured.is_none_or(|at| at.elapsed() >= CLOCK_INTERVAL) {
            // We may be kept from running between two looks: the quickest one knows best.
            let measure = |_| {
                let before = self.epoch.elapsed();
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let took = self.epoch.elapsed() - before;
                (took, wall.saturating_sub(before + took / 2))
            };
            let (_, then) = (0..5).map(measure).min().unwrap_or_default();
            self.then = u64::try_from(then.as_nanos()).unwrap_or(u64::MAX);
            self.measured = Some(Instant::now());
        }
        self.then
    }

    fn now(&mut self) -> u64 {
        let since = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.then().saturating_add(since)
    }
}
