//! Writes whatever is delivered to the port into a capture file.
//!
//! The worker copies a frame once, to where it lies in the file: a packet's block in the current chunk. A
//! chunk is handed to the thread that writes when it is full, when its first frame has waited for
//! [`DELAY`], or when the worker goes to sleep. The chunks bound how far the file may be behind: when the
//! thread has all of them, frames are dropped and counted, and the file says how many.
//!
//! A frame that is yet to be segmented is written as it is, as one large packet, which is what the
//! kernel's own captures show. Its checksum is completed as if it were sent like that, so that a
//! reader does not take it for a broken one.
//!
//! With several workers each has a part of the port with chunks of its own, so that frames of different
//! workers may be out of order in the file by about [`DELAY`]. Their times are right.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{App, Burst, Counters, DropReason, Frame, Lease, Outputs, Poller, Selection, Traffic};
use memory::WriteCursor;
use wire::pcap::{Packet, PacketHeader, packet_size};
use wire::virtio::{Features, Offload};

use super::write_behind::{Capture, Chunk, Shared, WriteBehind, WriteError};
use crate::frame::MAX_FRAME;
use crate::offload::Delivery;

/// Chunks of one worker's part.
const CHUNKS: usize = 16;

/// Bytes of a chunk.
const CHUNK: usize = 4 * packet_size(MAX_FRAME);

/// How long a frame waits in a chunk while the worker is awake, in nanoseconds: each chunk wakes a
/// thread.
const DELAY: u64 = 1_000_000;

/// How long the end of a port may take, which is the end of its file: a disk that hangs is not to keep the
/// switch from ending.
const END_LIMIT: Duration = Duration::from_millis(800);

/// The port, or its part on one of several workers.
pub struct PcapSink {
    /// Where frames go, if there is one at hand.
    chunk: Option<Chunk>,
    /// When its first frame came.
    since: u64,
    /// Chunks that are empty.
    free: Vec<Chunk>,
    empty: Receiver<Chunk>,
    full: SyncSender<Chunk>,
    /// Behind `full`, as the thread ends when no part has that any more.
    _end: Arc<End>,
    shared: Arc<Shared>,
    snaplen: usize,
    counters: Counters,
}

/// Waits for the thread to end. The mutex is for the parts to share it; nobody ever locks it.
struct End(Mutex<Receiver<()>>);

impl Drop for End {
    fn drop(&mut self) {
        let end = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A file that is not complete by then is left to the thread, as far as it gets.
        let _ = end.recv_timeout(END_LIMIT);
    }
}

impl PcapSink {
    /// Makes a capture file, and a part of the port for each of so many workers. `failed` is called, on a
    /// thread of the port's, if the file cannot be written any more.
    pub fn open(
        path: &Path,
        capture: &Capture<'_>,
        workers: usize,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> Result<Vec<Self>, WriteError> {
        let shared = Arc::new(Shared::new().map_err(WriteError::Io)?);
        let writing = WriteBehind::open(path, capture, shared.clone())?;
        // All chunks there are fit in: handing one over never waits.
        let (full, full_receiver) = sync_channel(workers * CHUNKS);
        let (ended, end) = sync_channel(1);
        let thread = std::thread::Builder::new().name("pcap-write".to_owned());
        let run = move || {
            writing.run(&full_receiver, failed);
            let _ = ended.send(());
        };
        thread.spawn(run).map_err(WriteError::Io)?;
        let end = Arc::new(End(Mutex::new(end)));
        let snaplen = capture.snaplen as usize;
        let part = |_| Self::part(snaplen, full.clone(), end.clone(), shared.clone());
        Ok((0..workers).map(part).collect())
    }

    fn part(snaplen: usize, full: SyncSender<Chunk>, end: Arc<End>, shared: Arc<Shared>) -> Self {
        let (home, empty) = sync_channel(CHUNKS);
        let chunk = |_| Chunk {
            bytes: vec![0; CHUNK].into_boxed_slice(),
            len: 0,
            frames: Traffic::default(),
            is_lost: false,
            home: home.clone(),
        };
        Self {
            chunk: None,
            since: 0,
            free: (0..CHUNKS).map(chunk).collect(),
            empty,
            full,
            _end: end,
            shared,
            snaplen,
            counters: Counters::default(),
        }
    }

    /// Takes back what was written.
    fn collect(&mut self) {
        while let Ok(mut chunk) = self.empty.try_recv() {
            if std::mem::take(&mut chunk.is_lost) {
                // They were counted as sent when they were on their way.
                self.counters.sent.frames -= chunk.frames.frames;
                self.counters.sent.bytes -= chunk.frames.bytes;
                self.counters[DropReason::ReceiverDown] += chunk.frames.frames;
            }
            (chunk.len, chunk.frames) = (0, Traffic::default());
            self.free.push(chunk);
        }
    }

    /// Gives the current chunk to the thread.
    fn hand_over(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            // There is room for all; the thread is there as long as we are.
            let _ = self.full.try_send(chunk);
        }
    }

    /// A chunk with so much room.
    fn chunk(&mut self, size: usize, now: u64) -> Option<&mut Chunk> {
        if self.chunk.as_ref().is_some_and(|chunk| chunk.bytes.len() - chunk.len < size) {
            self.hand_over();
        }
        if self.chunk.is_none() {
            if self.free.is_empty() {
                self.collect();
            }
            self.chunk = self.free.pop();
            self.since = now;
        }
        self.chunk.as_mut()
    }

    fn write(&mut self, frame: Frame<'_>, now: u64) -> Result<(), DropReason> {
        let offload = Offload { segmentation: None, ..frame.offload };
        let mut delivery = Delivery::new(Frame { offload, ..frame }, Features::NONE)?;
        let captured = frame.len.min(self.snaplen);
        // A checksum is over all of the frame.
        let written = if delivery.passes() { captured } else { frame.len };
        let chunk = self.chunk(packet_size(written), now).ok_or(DropReason::ReceiverFull)?;
        let mut packet = Packet::new(chunk.bytes.get_mut(chunk.len..).unwrap_or_default());
        let room = packet.bytes().get_mut(..written).ok_or(DropReason::TooLong)?;
        if let Some(outgoing) = delivery.next() {
            outgoing.write(WriteCursor::new(&[room.into()]));
        }
        let header = PacketHeader {
            interface: 0,
            time: now,
            captured: captured as u32,
            original: frame.len as u32,
        };
        chunk.len += packet.finish(header).ok_or(DropReason::TooLong)?;
        chunk.frames.count(frame.len);
        self.counters.sent.count(frame.len);
        Ok(())
    }

    /// Whether the thread has so much to do that a chunk had better be filled first.
    fn is_behind(&self) -> bool {
        self.free.len() < CHUNKS / 2
    }
}

impl App for PcapSink {
    fn pull<'b>(&mut self, _: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.collect();
        if self.chunk.is_some()
            && burst.now().saturating_sub(self.since) >= DELAY
            && !self.is_behind()
        {
            self.hand_over();
        }
        false
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        // First, so that the file never has more than were received.
        self.shared.received.fetch_add(selection.len() as u64, Ordering::Relaxed);
        let mut dropped = 0;
        let is_down = self.shared.is_down.load(Ordering::Relaxed);
        for index in selection.iter() {
            let written = match is_down {
                true => Err(DropReason::ReceiverDown),
                false => self.write(burst.frame(index), burst.now()),
            };
            if let Err(reason) = written {
                self.counters.drop(reason);
                dropped += 1;
            }
        }
        if dropped > 0 {
            self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    fn arm(&mut self) -> bool {
        self.collect();
        if !self.is_behind() {
            self.hand_over();
        }
        false
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        // What `arm` has not handed over.
        self.chunk.as_ref().map(|_| now.saturating_add(DELAY))
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.watch(&self.shared.lost)
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for PcapSink {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Instant;

    use engine::{AppId, BURST, Graph};

    use super::*;

    /// An app that sends a full burst whenever it is asked.
    #[derive(Default)]
    struct Sender(Counters);

    const LEN: usize = 1000;
    /// Bytes of a block of statistics.
    const STATISTICS: usize = 76;

    impl App for Sender {
        fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
            let bytes = lease.private(vec![7; LEN].into_boxed_slice());
            (0..BURST).for_each(|_| burst.segments().push(bytes.into()));
            burst.push_singles(0..BURST, 0, |_| Some(Offload::NONE));
            true
        }

        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn counters(&self) -> &Counters {
            &self.0
        }
    }

    struct Bed {
        directory: tempfile::TempDir,
        graph: Graph,
        sink: AppId,
        writing: WriteBehind,
        full: Receiver<Chunk>,
    }

    /// A sink whose thread does nothing yet.
    fn bed() -> Bed {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::new().unwrap());
        let capture =
            Capture { name: "a", snaplen: 1500, application: "test", epoch: Instant::now() };
        let writing = WriteBehind::open(&directory.path().join("a"), &capture, shared.clone());
        let (full, full_receiver) = sync_channel(CHUNKS);
        let end = Arc::new(End(Mutex::new(sync_channel(1).1)));
        let mut graph = Graph::new();
        let sink = graph.add("sink", PcapSink::part(1500, full, end, shared));
        let sender = graph.add("sender", Sender::default());
        graph.link((sender, 0), (sink, 0)).unwrap();
        Bed { directory, graph, sink, writing: writing.unwrap(), full: full_receiver }
    }

    /// What the statistics at the end of a file say: received, and dropped.
    fn statistics(file: &[u8]) -> [u64; 2] {
        let (_, block) = file.split_at(file.len() - STATISTICS);
        assert_eq!(block[..8], [5, 0, 0, 0, STATISTICS as u8, 0, 0, 0], "statistics come last");
        [48, 60].map(|at| u64::from_le_bytes(*block[at..].first_chunk().unwrap()))
    }

    #[test]
    fn what_the_thread_has_no_time_for_is_dropped_and_said() {
        let Bed { directory, mut graph, sink, writing, full } = bed();
        let mut breaths = 0;
        while graph.counters(sink)[DropReason::ReceiverFull] == 0 {
            graph.breathe(breaths, |_| ());
            breaths += 1;
        }
        let counters = graph.counters(sink);
        let [sent, dropped] = [counters.sent.frames, counters[DropReason::ReceiverFull]];
        assert_eq!(sent + dropped, breaths * BURST as u64);
        assert!(sent >= (CHUNKS * (CHUNK / packet_size(LEN))) as u64);
        drop(graph);
        writing.run(&full, |error| panic!("{error}"));
        let file = fs::read(directory.path().join("a")).unwrap();
        assert_eq!(statistics(&file), [sent + dropped, dropped]);
        let packets = file.len() - STATISTICS;
        assert_eq!(packets / packet_size(LEN), sent as usize);
    }

    #[test]
    fn a_file_that_cannot_be_written_takes_the_port_down_once() {
        let Bed { directory, mut graph, sink, writing, full } = bed();
        let path = directory.path().join("a");
        let before = fs::read(&path).unwrap();
        let writing = writing.with_file(File::open(&path).unwrap());
        let (sender, errors) = sync_channel(2);
        let thread =
            std::thread::spawn(move || writing.run(&full, |error| sender.send(error).unwrap()));
        let start = Instant::now();
        let mut breaths = 0;
        // Until nothing is on its way any more, and something has come since.
        loop {
            breaths += 1;
            graph.breathe(breaths * DELAY, |_| ());
            let counters = graph.counters(sink);
            if counters.sent.frames == 0 && counters[DropReason::ReceiverDown] > 0 {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the port did not go down");
        }
        let counters = graph.counters(sink);
        let all = counters[DropReason::ReceiverDown] + counters[DropReason::ReceiverFull];
        assert_eq!((all, counters.sent.bytes), (breaths * BURST as u64, 0));
        drop(graph);
        thread.join().unwrap();
        assert_eq!(errors.iter().count(), 1);
        assert!(fs::read(&path).unwrap() == before, "nothing was added");
    }
}
