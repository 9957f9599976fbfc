//! Sends the frames of a capture file into the switch.
//!
//! A frame is borrowed from the chunk that it was read into; one that is held stays there, and the chunk
//! with it. Nothing is lost on our side: while frames are held no more is taken than a burst can hold
//! again, so that the file goes on as fast as its receivers take it. What is sent to this port has nowhere
//! to go: it is dropped.
//!
//! Times are kept by the worker's own sleep ([`App::deadline`]). They count from the first breath; a
//! worker that was late sends what is due at once.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use engine::{
    App, BURST, Burst, Counters, DropReason, Lease, Outcome, Outcomes, Outputs, Poller, Selection,
};
use rustix::event::{EventfdFlags, eventfd};

use super::read_ahead::{CHUNKS, Chunk, Queues, ReadAhead, ReadError, Replay, Report};

/// The port, or its part on one of several workers. One part sends; all drop what they are given.
pub struct PcapSource {
    sending: Option<Sending>,
    counters: Counters,
}

/// What is being sent.
struct Sending {
    full: Receiver<Chunk>,
    empty: SyncSender<Chunk>,
    ready: Arc<OwnedFd>,
    /// What frames are taken from. Its bytes are out on lease while a burst borrows from them.
    chunk: Option<Chunk>,
    /// The next frame of it.
    next: usize,
    /// The frames that are in this burst, or are held, in order.
    pending: Vec<usize>,
    /// A frame made way.
    moved: bool,
    /// When the replay began.
    start: Option<u64>,
}

impl PcapSource {
    /// Opens a capture file. What is wrong with it up to its first frame is an error here; `ended` is
    /// called, on a thread of the port's, when everything was sent, or as much of it as can be read.
    pub fn open(
        path: &Path,
        replay: Replay,
        ended: impl FnOnce(Report) + Send + 'static,
    ) -> Result<Self, ReadError> {
        let reading = ReadAhead::open(path, replay)?;
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ready = Arc::new(ready.map_err(|error| ReadError::Io(error.into()))?);
        // Each has room for all of the chunks: only who has none waits.
        let (full_sender, full) = sync_channel(CHUNKS);
        let (empty, empty_receiver) = sync_channel(CHUNKS);
        let queues = Queues { full: full_sender, empty: empty_receiver, ready: ready.clone() };
        // It ends by itself when the queues do; a file that keeps it waiting keeps nobody else.
        let thread = std::thread::Builder::new().name("pcap-read".to_owned());
        thread.spawn(move || reading.run(&queues, ended)).map_err(ReadError::Io)?;
        let sending = Sending {
            full,
            empty,
            ready,
            chunk: None,
            next: 0,
            pending: Vec::with_capacity(BURST),
            moved: false,
            start: None,
        };
        Ok(Self { sending: Some(sending), counters: Counters::default() })
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self { sending: None, counters: Counters::default() }
    }
}

impl Sending {
    /// Goes on to the next chunk, if this one is done with and there is another.
    fn turn_over(&mut self, counters: &mut Counters) {
        let done = |chunk: &mut Chunk| self.pending.is_empty() && self.next >= chunk.frames.len();
        if let Some(chunk) = self.chunk.take_if(done) {
            // There is room for all of them; and if nobody reads any more, nobody needs it.
            let _ = self.empty.try_send(chunk);
        }
        if self.chunk.is_none()
            && let Ok(chunk) = self.full.try_recv()
        {
            for (reason, count) in chunk.skipped.reasons() {
                counters[reason] += count;
            }
            self.next = 0;
            // Also one without frames is to be given back.
            self.moved = true;
            self.chunk = Some(chunk);
        }
    }
}

impl App for PcapSource {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let Self { sending: Some(sending), counters } = self else { return false };
        sending.turn_over(counters);
        let was_moved = std::mem::take(&mut sending.moved);
        let Some(chunk) = &mut sending.chunk else { return was_moved };
        let start = *sending.start.get_or_insert(burst.now());
        let elapsed = burst.now().saturating_sub(start);
        let held = sending.pending.len();
        while sending.pending.len() < BURST
            && let Some(frame) = chunk.frames.get(sending.next)
            && frame.due <= elapsed
        {
            counters.received.count(frame.len);
            sending.pending.push(sending.next);
            sending.next += 1;
        }
        if sending.pending.is_empty() {
            return was_moved;
        }
        burst.limit_held(BURST);
        let bytes = lease.private(std::mem::take(&mut chunk.bytes));
        let frames = sending.pending.iter().map(|index| {
            let frame = chunk.frames.get(*index);
            let frame = frame.and_then(|frame| bytes.get(frame.start..frame.start + frame.len));
            ((), frame.unwrap_or_default().into())
        });
        burst.push_singles(frames, 0, |(), _| true);
        was_moved || sending.pending.len() > held
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        let (Some(sending), Lease::Private(bytes)) = (&mut self.sending, lease) else { return };
        if let Some(chunk) = &mut sending.chunk {
            chunk.bytes = bytes;
        }
        let before = sending.pending.len();
        let mut frame = 0..;
        sending
            .pending
            .retain(|_| frame.next().is_some_and(|frame| outcomes.get(frame) == Outcome::Held));
        sending.moved = sending.pending.len() < before;
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, selection: &Selection, _: &mut Outputs<'_>) {
        self.counters[DropReason::SendOnly] += selection.len() as u64;
    }

    fn arm(&mut self) -> bool {
        // A chunk that comes after the last look is an edge on the descriptor.
        self.sending.as_ref().is_some_and(|sending| sending.moved)
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        let sending = self.sending.as_ref()?;
        let frame = sending.chunk.as_ref()?.frames.get(sending.next)?;
        Some(sending.start?.saturating_add(frame.due)).filter(|due| *due > now)
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        self.sending.as_ref().map_or(Ok(()), |sending| poller.watch(&*sending.ready))
    }

    /// What is held goes nowhere.
    fn stop(&mut self) {
        let held = self.sending.as_ref().map_or(0, |sending| sending.pending.len());
        self.counters[DropReason::Stopped] += held as u64;
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
