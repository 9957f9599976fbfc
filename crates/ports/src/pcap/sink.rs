//! Writes whatever is delivered to the port into a capture file.
//!
//! The worker copies a frame once, to where it lies in the file: a packet's block in the current chunk. A
//! chunk is handed to the thread that writes when it is full, when its first frame has waited for
//! [`DELAY`], or when the worker goes to sleep. The chunks bound how far the file may be behind: when the
//! thread has all of them, frames are dropped and counted, and the file says how many.
//!
//! The port has a [`Capturing`], by which control begins the capture when the switch has started, and waits for
//! its end when it stops: for all captures at once, since a disk that hangs is not to keep the switch from
//! ending.
//!
//! A frame that is yet to be segmented is written as it is, as one large packet, which is what the
//! kernel's own captures show. Its checksum is completed as if it were sent like that, so that a
//! reader does not take it for a broken one.
//!
//! With several workers each has a part of the port with chunks of its own, so that frames of different
//! workers may be out of order in the file by about [`DELAY`]. Their times are right.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Instant;

use engine::{
    App, Burst, Counters, DropReason, Frame, Lease, Numbers, Outputs, Poller, Selection, Traffic,
};
use memory::WriteCursor;
use wire::pcap::{Packet, PacketHeader, packet_size};
use wire::virtio::{Features, Offload};

use super::write_behind::{Capture, Chunk, Prepared, Shared, WriteError};
use crate::frame::MAX_FRAME;
use crate::offload::Delivery;

/// Chunks of one worker's part.
const CHUNKS: usize = 16;

/// Bytes of a chunk.
const CHUNK: usize = 4 * packet_size(MAX_FRAME);

/// How long a frame waits in a chunk while the worker is awake, in nanoseconds: each chunk wakes a
/// thread.
const DELAY: u64 = 1_000_000;

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
    shared: Arc<Shared>,
    snaplen: usize,
    counters: Counters,
}

/// A capture, as control sees it. If it is dropped before it has begun, the file is as it was before.
pub struct Capturing {
    /// Until it begins.
    prepared: Option<(Prepared, SyncSender<Prepared>)>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    shared: Arc<Shared>,
}

/// What a capture was in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Frames that are in the file.
    pub written: u64,
    /// Frames that were dropped, as the port's counters and the file say.
    pub dropped: u64,
    /// Frames for which there was no time any more.
    pub lost: u64,
    /// Nothing comes to the file any more: it has its end, unless it could not be written.
    pub is_complete: bool,
}

impl Capturing {
    /// Empties the file, unless it goes on behind what is in it, or opens the pipe, and has what comes to the port written. Until then the port keeps
    /// what comes, as far as it has room.
    pub fn begin(&mut self) {
        if let Some((prepared, thread)) = self.prepared.take() {
            // It waits for this.
            let _ = thread.send(prepared);
        }
    }

    /// Waits for the file to be complete, until `limit` at most. All parts of the port have to be gone.
    pub fn end(self, limit: Instant) -> Ended {
        drop(self.prepared);
        let shared = &*self.shared;
        // Nobody would come now who reads the pipe.
        if !shared.is_waiting.load(Ordering::Relaxed) {
            let left = limit.saturating_duration_since(Instant::now());
            let _ = self.ended.recv_timeout(left);
        }
        let is_complete = matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected));
        let [received, dropped, written] = [&shared.received, &shared.dropped, &shared.written]
            .map(|count| count.load(Ordering::Relaxed));
        let lost = received.saturating_sub(dropped).saturating_sub(written);
        Ended { written, dropped, lost, is_complete }
    }
}

impl PcapSink {
    /// Opens a capture file, and makes a part of the port for each of so many workers. `failed` is called, on
    /// a thread of the port's, if the file cannot be written any more.
    pub fn open(
        path: &Path,
        capture: &Capture<'_>,
        workers: usize,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> Result<(Vec<Self>, Capturing), WriteError> {
        let shared = Arc::new(Shared::new().map_err(WriteError::Io)?);
        let prepared = Prepared::open(path, capture, shared.clone())?;
        // All chunks there are fit in: handing one over never waits.
        let (full, full_receiver) = sync_channel(workers * CHUNKS);
        let (begin, begun) = sync_channel::<Prepared>(1);
        let (ending, ended) = sync_channel(0);
        let thread = std::thread::Builder::new().name("pcap-write".to_owned());
        let run = move || {
            let _ending: SyncSender<()> = ending;
            if let Ok(prepared) = begun.recv() {
                prepared.run(&full_receiver, failed);
            }
        };
        thread.spawn(run).map_err(WriteError::Io)?;
        let snaplen = capture.snaplen as usize;
        let part = |_| Self::part(snaplen, full.clone(), shared.clone());
        let parts = (0..workers).map(part).collect();
        Ok((parts, Capturing { prepared: Some((prepared, begin)), ended, shared }))
    }

    fn part(snaplen: usize, full: SyncSender<Chunk>, shared: Arc<Shared>) -> Self {
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
            shared,
            snaplen,
            counters: Counters::default(),
        }
    }

    /// Takes back what was written.
    fn collect(&mut self) {
        while let Ok(chunk) = self.empty.try_recv() {
            self.reuse(chunk);
        }
    }

    fn reuse(&mut self, mut chunk: Chunk) {
        if std::mem::take(&mut chunk.is_lost) {
            // They were counted as sent when they were on their way.
            self.counters.sent.frames -= chunk.frames.frames;
            self.counters.sent.bytes -= chunk.frames.bytes;
            self.counters[DropReason::ReceiverDown] += chunk.frames.frames;
        }
        (chunk.len, chunk.frames) = (0, Traffic::default());
        self.free.push(chunk);
    }

    /// Gives the current chunk to the thread.
    fn hand_over(&mut self) {
        let Some(chunk) = self.chunk.take() else { return };
        match self.full.try_send(chunk) {
            Ok(()) => {}
            // There is room for all. Without its thread the port is down.
            Err(TrySendError::Full(mut chunk) | TrySendError::Disconnected(mut chunk)) => {
                self.shared.is_down.store(true, Ordering::Relaxed);
                self.shared.dropped.fetch_add(chunk.frames.frames, Ordering::Relaxed);
                chunk.is_lost = true;
                self.reuse(chunk);
            }
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
        if self.chunk.is_some() && self.is_behind() {
            // It waits until a chunk is back, which may be now.
            self.shared.is_awaited.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.collect();
        }
        if !self.is_behind() {
            self.hand_over();
        }
        false
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.watch(&self.shared.wakes)
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        let [received, dropped, written] =
            [&self.shared.received, &self.shared.dropped, &self.shared.written]
                .map(|count| count.load(Ordering::Relaxed));
        let behind = received.saturating_sub(dropped).saturating_sub(written);
        numbers.shared("not written yet", "frames", behind);
    }

    /// What has not been handed over by a port that fails instead is lost, and said to be ([`Ended::lost`]).
    fn stop(&mut self) {
        self.collect();
        self.hand_over();
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use engine::{AppId, BURST, Graph};

    use super::super::write_behind::Output;
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
            let frames = std::iter::repeat_n(((), bytes.into()), BURST);
            burst.push_singles(frames, 0, |(), _| true);
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
        prepared: Prepared,
        full: Receiver<Chunk>,
        shared: Arc<Shared>,
    }

    /// A sink whose thread does nothing yet.
    fn bed() -> Bed {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::new().unwrap());
        let (application, epoch) = ("test", Instant::now());
        let capture = Capture { name: "a", snaplen: 1500, application, epoch, continues: false };
        let prepared = Prepared::open(&directory.path().join("a"), &capture, shared.clone());
        let (full, full_receiver) = sync_channel(CHUNKS);
        let mut graph = Graph::new();
        let sink = graph.add("sink", PcapSink::part(1500, full, shared.clone()));
        let sender = graph.add("sender", Sender::default());
        graph.link((sender, 0), (sink, 0)).unwrap();
        Bed { directory, graph, sink, prepared: prepared.unwrap(), full: full_receiver, shared }
    }

    /// What the statistics at the end of a file say: received, and dropped.
    fn statistics(file: &[u8]) -> [u64; 2] {
        let (_, block) = file.split_at(file.len() - STATISTICS);
        assert_eq!(block[..8], [5, 0, 0, 0, STATISTICS as u8, 0, 0, 0], "statistics come last");
        [48, 60].map(|at| u64::from_le_bytes(*block[at..].first_chunk().unwrap()))
    }

    #[test]
    fn what_the_thread_has_no_time_for_is_dropped_and_said() {
        let Bed { directory, mut graph, sink, prepared, full, .. } = bed();
        let mut breaths = 0;
        while graph.counters(sink)[DropReason::ReceiverFull] == 0 {
            graph.breathe(breaths, |_| ());
            breaths += 1;
        }
        let counters = graph.counters(sink);
        let [sent, dropped] = [counters.sent.frames, counters[DropReason::ReceiverFull]];
        assert_eq!(sent + dropped, breaths * BURST as u64);
        assert!(sent >= (CHUNKS * (CHUNK / packet_size(LEN))) as u64);
        let behind = graph.numbers(sink, 0);
        assert!(
            behind
                .iter()
                .map(|number| (&*number.name, number.value))
                .eq([("not written yet", sent)])
        );
        graph.stop_all();
        drop(graph);
        prepared.run(&full, |error| panic!("{error}"));
        let file = fs::read(directory.path().join("a")).unwrap();
        assert_eq!(statistics(&file), [sent + dropped, dropped]);
        let packets = file.len() - STATISTICS;
        assert_eq!(packets / packet_size(LEN), sent as usize);
    }

    /// What is not handed over, because the thread has enough to do, wakes nobody until the thread has done something.
    #[test]
    fn a_worker_sleeps_while_the_thread_is_behind_and_wakes_when_it_goes_on() {
        let Bed { mut graph, sink, prepared, full, shared, .. } = bed();
        let is_woken = || rustix::io::read(&shared.wakes, &mut [0; 8]).is_ok();
        let mut keeps_one = false;
        for breath in 1..=CHUNKS as u64 {
            graph.breathe(breath, |_| ());
            let sink: &mut PcapSink = graph.get(sink).unwrap();
            assert!(!sink.arm());
            assert_eq!(sink.deadline(breath), None);
            keeps_one = sink.chunk.is_some();
        }
        assert!(keeps_one && !is_woken());
        let (ended, has_ended) = sync_channel(1);
        std::thread::spawn(move || {
            prepared.run(&full, |error| panic!("{error}"));
            ended.send(()).unwrap();
        });
        let start = Instant::now();
        while !is_woken() {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody was woken");
            std::thread::yield_now();
        }
        let all = CHUNKS as u64 * BURST as u64;
        while shared.written.load(Ordering::Relaxed) < all {
            let sink: &mut PcapSink = graph.get(sink).unwrap();
            sink.arm();
            assert!(start.elapsed() < Duration::from_secs(20), "it was not handed over");
        }
        graph.stop_all();
        drop(graph);
        has_ended.recv_timeout(Duration::from_secs(20)).expect("the thread ends");
    }

    /// Takes so many times what it is given, then fails in this way.
    struct Fails {
        left: u32,
        how: fn() -> io::Result<()>,
    }

    impl Output for Fails {
        fn append(&mut self, _: &[u8]) -> io::Result<()> {
            match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => return (self.how)(),
            }
            Ok(())
        }
    }

    /// A disk that is full, and a bug of ours.
    #[test]
    fn a_file_that_cannot_be_written_takes_the_port_down_once() {
        let full_disk = || Err(io::Error::from(io::ErrorKind::StorageFull));
        let cases: [(u32, fn() -> _, _); 3] = [
            (0, full_disk, "no storage space"),
            (2, full_disk, "no storage space"),
            (2, || panic!("an index out of bounds"), "a bug of ours: an index out of bounds"),
        ];
        for (left, how, expected) in cases {
            let Bed { mut graph, sink, prepared, full, shared, .. } = bed();
            let (sender, errors) = sync_channel(2);
            let output = Box::new(Fails { left, how });
            let thread = std::thread::spawn(move || {
                prepared.run_on(Ok(output), &full, |error| sender.send(error).unwrap());
            });
            let start = Instant::now();
            let mut breaths = 0;
            let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
            // Until nothing is on its way any more, and something has come since.
            loop {
                breaths += 1;
                graph.breathe(breaths * DELAY, |_| ());
                let counters = graph.counters(sink);
                if counters[DropReason::ReceiverDown] > 0
                    && counters.sent.frames == count(&shared.written)
                    && shared.is_down.load(Ordering::Relaxed)
                {
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(20), "the port did not go down");
            }
            let counters = graph.counters(sink);
            let all = counters[DropReason::ReceiverDown] + counters[DropReason::ReceiverFull];
            let sent = counters.sent.frames;
            assert_eq!((all + sent, sent > 0), (breaths * BURST as u64, left > 0));
            assert_eq!(counters.sent.bytes, sent * LEN as u64);
            graph.stop_all();
            drop(graph);
            thread.join().unwrap();
            assert_eq!(count(&shared.received), breaths * BURST as u64);
            assert_eq!(count(&shared.dropped), all);
            let errors: Vec<_> = errors.iter().map(|error| error.to_string()).collect();
            assert_eq!(errors, [expected]);
        }
    }

    /// A thread that is gone, however that may be: what it would have had to write is counted.
    #[test]
    fn a_port_without_its_thread_is_down() {
        let Bed { mut graph, sink, full, shared, .. } = bed();
        drop(full);
        for breath in 1..4 {
            graph.breathe(breath * 2 * DELAY, |_| ());
        }
        let counters = graph.counters(sink);
        let received = 3 * BURST as u64;
        assert_eq!((counters.sent.frames, counters[DropReason::ReceiverDown]), (0, received));
        assert_eq!(shared.dropped.load(Ordering::Relaxed), received);
    }
}
