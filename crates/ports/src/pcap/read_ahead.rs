//! The thread of a source: reads a capture file, and fills chunks with its frames.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use engine::DropReason;
use rustix::fs::OFlags;
use thiserror::Error;
use wire::ethernet;
use wire::pcap::{Captured, Fault, Reader, Step};

use super::{Bug, Unfit, check, guarded};
use crate::frame::MAX_FRAME;

/// Chunks of a source: one that frames are taken from, and others that are being filled.
pub(super) const CHUNKS: usize = 4;

/// Bytes of frames in a chunk: several of the largest.
const CHUNK: usize = 8 * MAX_FRAME;

/// Bytes that are asked of the file at once, if no block needs more.
const WINDOW: usize = 256 * 1024;

/// How far apart rounds are, in nanoseconds, of a file whose frames all have one time: recorded times say
/// nothing of how fast to repeat them.
const ROUND_WITHOUT_SPAN: u64 = 1_000_000_000;

/// When frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// As fast as they are taken.
    Fast,
    /// As far apart as they were captured.
    Recorded,
}

/// How a file is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// When its frames are sent.
    pub times: Times,
    /// How often; None is for ever.
    pub rounds: Option<u32>,
}

/// Why a file cannot be replayed, or no further.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The kernel said so.
    #[error("cannot read it: {0}")]
    Io(io::Error),
    /// A directory, a pipe, a device.
    #[error("it is no regular file")]
    NotAFile,
    /// It would grow while it is read.
    #[error("it is being written by a pcap-write port")]
    BeingWritten,
    /// It is not as capture files are.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The thread that reads it has panicked.
    #[error(transparent)]
    Bug(#[from] Bug),
}

impl From<Unfit> for ReadError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NotAFile => Self::NotAFile,
            Unfit::Locked => Self::BeingWritten,
            Unfit::Io(error) => Self::Io(error),
        }
    }
}

/// What a source has done in the end.
#[derive(Debug)]
pub struct Report {
    /// Frames that were sent.
    pub sent: u64,
    /// Frames that were not, for this reason.
    pub skipped: Skipped,
    /// How often the file was read to its end.
    pub rounds: u32,
    /// Why it could not be read further.
    pub error: Option<ReadError>,
}

/// Frames that no port can send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Captured in part.
    pub truncated: u64,
    /// Shorter than an Ethernet header.
    pub too_short: u64,
    /// Longer than any port takes.
    pub too_long: u64,
}

impl Skipped {
    /// By their reasons.
    pub fn reasons(&self) -> [(DropReason, u64); 3] {
        let Self { truncated, too_short, too_long } = *self;
        [
            (DropReason::Truncated, truncated),
            (DropReason::TooShort, too_short),
            (DropReason::TooLong, too_long),
        ]
    }

    fn add(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.too_short += other.too_short;
        self.too_long += other.too_long;
    }
}

/// Frames, in a buffer that a burst can borrow.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) bytes: Box<[u8]>,
    /// Where the frames are, in order.
    pub(super) frames: Vec<Place>,
    /// What was passed over among them.
    pub(super) skipped: Skipped,
    /// Nothing comes behind it.
    pub(super) is_last: bool,
}

/// Where a frame is in its chunk, and when it is due: nanoseconds since the start of the replay.
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) due: u64,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK].into_boxed_slice(), ..Self::default() }
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.skipped = Skipped::default();
    }

    /// Where the next frame goes.
    fn end(&self) -> usize {
        self.frames.last().map_or(0, |place| place.start + place.len)
    }

    /// Adds a frame, for which there is room.
    fn add(&mut self, frame: &Captured<'_>, pace: &mut Pace) {
        let (start, len) = (self.end(), frame.bytes.len());
        if frame.is_truncated() {
            self.skipped.truncated += 1;
        } else if len < ethernet::HEADER_SIZE {
            self.skipped.too_short += 1;
        } else if len <= MAX_FRAME
            && let Some(room) = self.bytes.get_mut(start..start + len)
        {
            room.copy_from_slice(frame.bytes);
            self.frames.push(Place { start, len, due: pace.due(frame.time) });
        } else {
            self.skipped.too_long += 1;
        }
    }
}

/// When frames are due. Never before the one in front, whatever their times are.
#[derive(Default)]
struct Pace {
    is_recorded: bool,
    /// Where this round starts.
    base: u64,
    /// The first time in this round.
    first: Option<i64>,
    last: u64,
}

impl Pace {
    fn due(&mut self, time: Option<i64>) -> u64 {
        // A frame without a time goes with the one in front.
        if self.is_recorded
            && let Some(time) = time
        {
            let first = *self.first.get_or_insert(time);
            let since = u64::try_from(time.saturating_sub(first)).unwrap_or(0);
            self.last = self.last.max(self.base.saturating_add(since));
        }
        self.last
    }

    /// The next round begins with the last frame of this one.
    fn next_round(&mut self) {
        if self.is_recorded && self.last == self.base {
            self.last = self.base.saturating_add(ROUND_WITHOUT_SPAN);
        }
        (self.base, self.first) = (self.last, None);
    }
}

/// How far a chunk was filled.
#[derive(PartialEq, Eq)]
enum Filled {
    Enough,
    ToTheEndOfTheFile,
}

/// A capture file that is being read.
pub(super) struct ReadAhead<F = File> {
    file: F,
    reader: Reader,
    /// Bytes of the file, from `start` to `end`, that are not read yet.
    window: Vec<u8>,
    start: usize,
    end: usize,
    pace: Pace,
    rounds: Option<u32>,
    /// What is being filled.
    chunk: Chunk,
    /// Frames before this round.
    sent: u64,
    report: Report,
}

/// Where the thread meets its worker.
pub(super) struct Queues {
    pub(super) full: SyncSender<Chunk>,
    pub(super) empty: Receiver<Chunk>,
    /// An eventfd, written when there is a full chunk.
    pub(super) ready: Arc<OwnedFd>,
}

impl ReadAhead {
    /// Opens a file and reads it up to its first frame.
    pub(super) fn open(path: &Path, replay: Replay) -> Result<Self, ReadError> {
        // A pipe would have us wait for its writer before we know that it is one.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.map_err(ReadError::Io)?;
        check(&file, File::try_lock_shared)?;
        Self::new(file, replay)
    }
}

impl<F: Read + Seek> ReadAhead<F> {
    fn new(file: F, replay: Replay) -> Result<Self, ReadError> {
        let Replay { times, rounds } = replay;
        let report = Report { sent: 0, skipped: Skipped::default(), rounds: 0, error: None };
        let mut this = Self {
            file,
            reader: Reader::new(),
            window: vec![0; WINDOW],
            start: 0,
            end: 0,
            pace: Pace { is_recorded: times == Times::Recorded, ..Pace::default() },
            rounds,
            chunk: Chunk::new(),
            sent: 0,
            report,
        };
        if this.fill(1)? == Filled::ToTheEndOfTheFile {
            // So that what is wrong is said before anything starts, and the end of it behind.
            this.rewind().map_err(ReadError::Io)?;
            this.chunk.clear();
        }
        Ok(this)
    }

    /// Fills chunks until there is nothing left, then waits until the last one was sent, and says what
    /// became of it. Without a word when nobody wants any more.
    pub(super) fn run(mut self, queues: &Queues, ended: impl FnOnce(Report)) {
        // The first one is filled already, or at least begun.
        let mut spare: Vec<Chunk> = (1..CHUNKS).map(|_| Chunk::new()).collect();
        loop {
            self.fill_whole();
            let full = std::mem::take(&mut self.chunk);
            self.report.skipped.add(full.skipped);
            let is_last = full.is_last;
            if queues.full.send(full).is_err() {
                return;
            }
            // The only error is a full counter, and then the worker is awake.
            let _ = rustix::io::write(&*queues.ready, &1u64.to_ne_bytes());
            if is_last {
                break;
            }
            let next = spare.pop().map_or_else(|| queues.empty.recv(), Ok);
            let Ok(next) = next else { return };
            self.chunk = next;
            self.chunk.clear();
        }
        loop {
            match queues.empty.recv() {
                Ok(chunk) if chunk.is_last => break,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        ended(self.report);
    }

    /// Fills a chunk, from as many rounds as it takes.
    fn fill_whole(&mut self) {
        match guarded(|| self.fill_rounds()) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error),
            Err(bug) => self.fail(bug.into()),
        }
    }

    fn fill_rounds(&mut self) -> Result<(), ReadError> {
        loop {
            match self.fill(u64::MAX)? {
                Filled::Enough => return Ok(()),
                Filled::ToTheEndOfTheFile => {
                    self.report.rounds = self.report.rounds.saturating_add(1);
                    let is_over = self.rounds.is_some_and(|rounds| self.report.rounds >= rounds);
                    // A file of no frames would keep us busy for ever.
                    let is_fruitless = self.report.sent == self.sent;
                    self.chunk.is_last = is_over || is_fruitless;
                    self.sent = self.report.sent;
                    if self.chunk.is_last {
                        return Ok(());
                    }
                    self.rewind().map_err(ReadError::Io)?;
                    self.pace.next_round();
                }
            }
        }
    }

    fn fail(&mut self, error: ReadError) {
        self.report.error = Some(error);
        self.chunk.is_last = true;
    }

    /// Adds frames to the chunk, until there may be no room for another, or so many of this round were
    /// read, whether they were added or skipped.
    fn fill(&mut self, frames: u64) -> Result<Filled, ReadError> {
        loop {
            let before = self.chunk.frames.len();
            let room = self.chunk.bytes.len() - self.chunk.end();
            if self.reader.frames() >= frames || room < MAX_FRAME {
                return Ok(Filled::Enough);
            }
            let window = self.window.get(self.start..self.end).unwrap_or_default();
            match self.reader.step(window)? {
                Step::Frame(bytes, frame) => {
                    self.chunk.add(&frame, &mut self.pace);
                    self.report.sent += (self.chunk.frames.len() - before) as u64;
                    self.start += bytes as usize;
                }
                Step::Skip(bytes) => self.start += bytes as usize,
                Step::More(needed) => {
                    if !self.read(needed).map_err(ReadError::Io)? {
                        let rest = self.window.get(self.start..self.end).unwrap_or_default();
                        self.reader.end(rest, needed)?;
                        return Ok(Filled::ToTheEndOfTheFile);
                    }
                }
            }
        }
    }

    /// Reads on until the window has so many bytes. False when the file has not.
    fn read(&mut self, needed: usize) -> io::Result<bool> {
        self.window.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.window.len() < needed {
            self.window.resize(needed, 0);
        }
        while self.end < needed {
            let room = self.window.get_mut(self.end..).unwrap_or_default();
            match self.file.read(room) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.reader = Reader::new();
        (self.start, self.end) = (0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, SeekFrom};
    use std::sync::mpsc::{channel, sync_channel};

    use rustix::event::{EventfdFlags, eventfd};
    use wire::pcap::{Interface, Packet, PacketHeader, Section, packet_size};

    use super::*;

    /// A file of which only so many reads go well.
    struct Breaks {
        file: Cursor<Vec<u8>>,
        reads: u32,
    }

    impl Read for Breaks {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.reads = self.reads.checked_sub(1).expect("one read too many");
            self.file.read(bytes)
        }
    }

    impl Seek for Breaks {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }

    /// What was read before is sent, and what has happened is said.
    #[test]
    fn a_bug_of_the_thread_is_the_end_of_the_replay_and_is_said() {
        let mut file = Vec::new();
        Section { hardware: "", os: "", application: "" }.write(&mut file);
        Interface { name: "", description: "", snaplen: 0 }.write(&mut file);
        let mut room = [0; packet_size(60)];
        let header = PacketHeader { interface: 0, time: 0, captured: 60, original: 60 };
        Packet::new(&mut room).finish(header).unwrap();
        file.extend(room.repeat(3));
        // The second would say that the file ends there.
        let file = Breaks { file: Cursor::new(file), reads: 1 };
        let replay = Replay { times: Times::Fast, rounds: Some(1) };
        let reading = ReadAhead::new(file, replay).unwrap();
        let (full, chunks) = sync_channel(CHUNKS);
        let (empty, empty_receiver) = sync_channel(CHUNKS);
        let ready = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (ended, report) = channel();
        let thread = std::thread::spawn(move || {
            let queues = Queues { full, empty: empty_receiver, ready };
            reading.run(&queues, |report| ended.send(report).unwrap());
        });
        let chunk = chunks.recv().unwrap();
        assert_eq!((chunk.frames.len(), chunk.is_last), (3, true));
        empty.send(chunk).unwrap();
        let report = report.recv().expect("the thread says how it ended");
        assert_eq!(report.sent, 3);
        assert_eq!(report.error.unwrap().to_string(), "a bug of ours: one read too many");
        thread.join().unwrap();
    }
}
