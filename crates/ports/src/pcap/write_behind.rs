//! The thread of a sink: writes chunks of packets to a capture file.
//!
//! A file is emptied (or its end found, to go on there), and a pipe opened, when the capture begins, which is when nothing else can keep the
//! switch from starting: a switch that does not start has destroyed nothing, and made nothing.
//!
//! Packets come with the times of their breaths, which count from the workers' epoch. What the wall clock
//! said then is found out here, every now and then, so that the file follows the wall clock when
//! somebody sets it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::Traffic;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Access, OFlags, access};
use rustix::system::uname;
use thiserror::Error;
use wire::pcap::{Interface, Section, Span, Statistics, retime};

use super::{Unfit, check, guarded};

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
    /// What is in the file stays, and what is captured comes behind it, as a section of its own.
    pub continues: bool,
}

/// Why a capture file cannot be made.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The kernel said so.
    #[error("cannot write it: {0}")]
    Io(io::Error),
    /// A directory, a socket, a device.
    #[error("it is neither a regular file nor a pipe")]
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
    /// They could not be written.
    pub(super) is_lost: bool,
    /// Where it goes when it is empty.
    pub(super) home: SyncSender<Chunk>,
}

/// What the workers and the thread know of each other.
#[derive(Debug)]
pub(super) struct Shared {
    /// Frames that came to the port.
    pub(super) received: AtomicU64,
    /// Those of them that are not in the file, and not on their way there.
    pub(super) dropped: AtomicU64,
    /// Those of them that are in the file.
    pub(super) written: AtomicU64,
    /// Nobody has opened the other end of the pipe yet.
    pub(super) is_waiting: AtomicBool,
    /// The file cannot be written any more.
    pub(super) is_down: AtomicBool,
    /// A worker sleeps until a chunk comes back, with another one in its hands.
    pub(super) is_awaited: AtomicBool,
    /// An eventfd, written when a worker that sleeps has something to do: a chunk is back that it waits for, or was lost, so that its frames
    /// are to be counted as dropped.
    pub(super) wakes: OwnedFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let wakes = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [received, dropped, written] = [0; 3].map(AtomicU64::new);
        let [is_waiting, is_down, is_awaited] = [false; 3].map(AtomicBool::new);
        Ok(Self { received, dropped, written, is_waiting, is_down, is_awaited, wakes })
    }
}

/// Where a capture is to go.
enum Target {
    File(File, Made),
    /// It is opened when the capture begins.
    Pipe(PathBuf),
}

/// The path of a file that was made here, to be removed again if nothing is written into it.
struct Made(Option<PathBuf>);

impl Target {
    fn open(path: &Path) -> Result<Self, WriteError> {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            access(path, Access::WRITE_OK).map_err(|error| WriteError::Io(error.into()))?;
            return Ok(Self::Pipe(path.to_owned()));
        }
        // What guests say to each other is nobody else's business. If this has become a pipe meanwhile, we
        // do not want to wait for its reader.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.write(true).truncate(false).mode(0o600).custom_flags(flags);
        let (file, made) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, Made(Some(path.to_owned()))),
            // Or there is a symbolic link to where no file is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = options.create(true).open(path);
                (file.map_err(WriteError::Io)?, Made(None))
            }
            Err(error) => return Err(WriteError::Io(error)),
        };
        check(&file, File::try_lock)?;
        Ok(Self::File(file, made))
    }

    /// Empties the file, unless this `continues` what is in it; or waits for somebody who reads the pipe.
    fn begin(&mut self, continues: bool, is_waiting: &AtomicBool) -> io::Result<Box<dyn Output>> {
        match self {
            Self::File(file, made) => {
                made.0 = None;
                if !continues {
                    file.set_len(0)?;
                }
                let end = file.metadata()?.len();
                Ok(Box::new(Growing { file: file.try_clone()?, end }))
            }
            Self::Pipe(path) => {
                is_waiting.store(true, Ordering::Relaxed);
                let pipe = OpenOptions::new().write(true).open(path);
                is_waiting.store(false, Ordering::Relaxed);
                let pipe = pipe?;
                if !pipe.metadata()?.file_type().is_fifo() {
                    return Err(io::Error::other("it was a pipe, and is none any more"));
                }
                if let Err(TryLockError::WouldBlock) = pipe.try_lock() {
                    return Err(io::Error::other(WriteError::InUse));
                }
                Ok(Box::new(pipe))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File(file, Made(Some(path))) = self
            && let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(&*path))
            && (ours.dev(), ours.ino()) == (there.dev(), there.ino())
        {
            // Whoever removed it first has done the same.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where whole blocks are added.
pub(super) trait Output: Send {
    fn append(&mut self, blocks: &[u8]) -> io::Result<()>;
}

/// A file, and where its last whole block ends.
struct Growing {
    file: File,
    end: u64,
}

impl Output for Growing {
    /// When it fails, the file ends where it did before.
    fn append(&mut self, blocks: &[u8]) -> io::Result<()> {
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
}

/// A pipe. It makes us wait for its reader.
impl Output for File {
    fn append(&mut self, blocks: &[u8]) -> io::Result<()> {
        self.write_all(blocks)
    }
}

/// A capture that has not begun.
pub(super) struct Prepared {
    target: Target,
    continues: bool,
    /// What it begins with.
    header: Vec<u8>,
    clock: WallClock,
    /// When what comes to the port may be the first that is captured, by the wall clock.
    start: u64,
    shared: Arc<Shared>,
}

impl Prepared {
    /// Opens a file, or finds a pipe, without a change to what is in it.
    pub(super) fn open(
        path: &Path,
        capture: &Capture<'_>,
        shared: Arc<Shared>,
    ) -> Result<Self, WriteError> {
        let target = Target::open(path)?;
        let Capture { name, snaplen, application, epoch, continues } = *capture;
        let system = uname();
        let hardware = system.machine().to_string_lossy();
        let (os, release) =
            (system.sysname().to_string_lossy(), system.release().to_string_lossy());
        let mut header = Vec::new();
        let os = format!("{os} {release}");
        Section { hardware: &hardware, os: &os, application }.write(&mut header);
        let description = format!("what was sent to the port {name}");
        Interface { name, description: &description, snaplen }.write(&mut header);
        let mut clock = WallClock { epoch, then: 0, measured: None };
        let start = clock.now();
        Ok(Self { target, continues, header, clock, start, shared })
    }

    fn begin(&mut self) -> io::Result<Box<dyn Output>> {
        let mut output = self.target.begin(self.continues, &self.shared.is_waiting)?;
        output.append(&self.header)?;
        Ok(output)
    }

    /// Begins, and writes what comes, until nobody sends any more. `failed` is told why, if that cannot be.
    pub(super) fn run(mut self, full: &Receiver<Chunk>, failed: impl FnOnce(io::Error)) {
        let begun = careful(|| self.begin());
        self.run_on(begun, full, failed);
    }

    /// The same from where it has begun, or could not.
    pub(super) fn run_on(
        self,
        begun: io::Result<Box<dyn Output>>,
        full: &Receiver<Chunk>,
        failed: impl FnOnce(io::Error),
    ) {
        let shared = &*self.shared;
        let mut failed = Some(failed);
        let mut fail = |error| {
            shared.is_down.store(true, Ordering::Relaxed);
            if let Some(failed) = failed.take() {
                failed(error);
            }
        };
        let (clock, start, statistics_at) = (self.clock, self.start, Instant::now());
        let begun = begun.map_err(&mut fail).ok();
        let mut writing =
            begun.map(|output| WriteBehind { output, clock, start, statistics_at, shared });
        for mut chunk in full {
            chunk.is_lost = true;
            // Once it is down it stays so: there would be a gap that nobody sees.
            if let Some(writing) = &mut writing
                && !shared.is_down.load(Ordering::Relaxed)
            {
                let written = careful(|| writing.write(&mut chunk));
                chunk.is_lost = written.is_err();
                let written = written.and_then(|()| careful(|| writing.now_and_then()));
                written.unwrap_or_else(&mut fail);
            }
            let is_lost = chunk.is_lost;
            let count = if is_lost { &shared.dropped } else { &shared.written };
            count.fetch_add(chunk.frames.frames, Ordering::Relaxed);
            let home = chunk.home.clone();
            // Its part of the port may be gone.
            let _ = home.send(chunk);
            // Either this sees that it is awaited, or who awaits it that it is back.
            fence(Ordering::SeqCst);
            if shared.is_awaited.swap(false, Ordering::Relaxed) || is_lost {
                // The only error is a full counter, and then the workers are awake.
                let _ = rustix::io::write(&shared.wakes, &1u64.to_ne_bytes());
            }
        }
        if let Some(mut writing) = writing {
            // There may be room for this again. What is wrong was said.
            careful(|| writing.statistics()).unwrap_or_else(fail);
        }
    }
}

/// A panic is a failure like any other.
fn careful<R>(work: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    guarded(work).unwrap_or_else(|bug| Err(io::Error::other(bug)))
}

/// A capture that goes on.
struct WriteBehind<'a> {
    output: Box<dyn Output>,
    clock: WallClock,
    /// When it began, by the wall clock.
    start: u64,
    statistics_at: Instant,
    shared: &'a Shared,
}

impl WriteBehind<'_> {
    /// Writes a chunk of packets.
    fn write(&mut self, chunk: &mut Chunk) -> io::Result<()> {
        let packets = chunk.bytes.get_mut(..chunk.len).unwrap_or_default();
        retime(packets, self.clock.then());
        self.output.append(packets)
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
            span: Span { start: self.start, end: self.clock.now() },
            received: self.shared.received.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        };
        statistics.write(&mut block);
        self.output.append(&block)
    }
}

/// What the wall clock says, in nanoseconds since 1970, by the clock of the workers.
#[derive(Clone, Copy)]
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
