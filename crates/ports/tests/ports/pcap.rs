//! Capture files as ports: replayed into guests and into other files, by a clock of the test's own.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use allocation_counter::measure;
use engine::{AppId, DropReason, Graph};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use ringway_ports::pcap::{
    Capture, Capturing, PcapSink, PcapSource, ReadError, Replay, Report, Times, WriteError,
};
use rustix::fs::{FileType, Mode};
use tempfile::TempDir;
use wire::pcap::{Interface, Packet, PacketHeader, Reader, Section, Step, packet_size};

use crate::guest::{CUTS, Cut, Guest};
use crate::segments::{self, SENDS_ALL};
use crate::world::{MODERN, RING, STEP, World, addressed, frame, mac, modern};

/// More than anything here takes, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

const ONCE: Replay = Replay { times: Times::Fast, rounds: Some(1) };

/// A capture file of frames with times in nanoseconds, and how many bytes more each of them had.
fn capture(frames: &[(u64, Vec<u8>, u32)]) -> Vec<u8> {
    let mut file = Vec::new();
    Section { hardware: "", os: "", application: "test" }.write(&mut file);
    Interface { name: "eth0", description: "", snaplen: 0 }.write(&mut file);
    for (time, bytes, more) in frames {
        let mut room = vec![0; packet_size(bytes.len())];
        let mut packet = Packet::new(&mut room);
        packet.bytes()[..bytes.len()].copy_from_slice(bytes);
        let captured = bytes.len() as u32;
        let original = captured + more;
        let header = PacketHeader { interface: 0, time: *time, captured, original };
        packet.finish(header).unwrap();
        file.extend(room);
    }
    file
}

/// The frames of a capture file: time, bytes, original length.
fn frames_of(file: &Path) -> Vec<(i64, Vec<u8>, u32)> {
    let file = fs::read(file).unwrap();
    let (mut reader, mut rest, mut frames) = (Reader::new(), &file[..], Vec::new());
    loop {
        match reader.step(rest).unwrap() {
            Step::Skip(bytes) => rest = &rest[bytes as usize..],
            Step::Frame(bytes, frame) => {
                frames.push((frame.time.unwrap(), frame.bytes.to_vec(), frame.original));
                rest = &rest[bytes as usize..];
            }
            Step::More(needed) => {
                reader.end(rest, needed).unwrap();
                return frames;
            }
        }
    }
}

/// Frames between two stations, of all sizes.
fn stream(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| frame(0, 1, 60 + seed * 131 % 1455, seed)).collect()
}

fn with_times(frames: &[Vec<u8>]) -> Vec<(u64, Vec<u8>, u32)> {
    frames.iter().map(|frame| (0, frame.clone(), 0)).collect()
}

/// Where files are.
struct Files {
    directory: TempDir,
    /// What a sink writes.
    capturing: RefCell<Option<Capturing>>,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), capturing: RefCell::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The frames of the sink's file, when the sink is gone.
    fn written(&self) -> Vec<(i64, Vec<u8>, u32)> {
        let capturing = self.capturing.take().expect("a sink");
        let ended = capturing.end(Instant::now() + LIMIT);
        let frames = frames_of(&self.path("out.pcapng"));
        let written = frames.len() as u64;
        assert!(ended.is_complete && ended.lost == 0 && ended.written == written, "{ended:?}");
        frames
    }

    /// A source of this file, and where it reports.
    fn source(
        &self,
        bytes: &[u8],
        replay: Replay,
    ) -> (Result<PcapSource, ReadError>, Receiver<Report>) {
        let path = self.path("in.pcapng");
        fs::write(&path, bytes).unwrap();
        let (ended, report) = channel();
        (PcapSource::open(&path, replay, move |report| ended.send(report).unwrap()), report)
    }

    /// The parts of a sink, which never fails.
    fn sink(&self, snaplen: u32, workers: usize) -> Vec<PcapSink> {
        let failed = |error| panic!("the file cannot be written: {error}");
        let sink = open_sink(&self.path("out.pcapng"), snaplen, workers, failed);
        let (parts, mut capturing) = sink.unwrap();
        capturing.begin();
        self.capturing.replace(Some(capturing));
        parts
    }
}

/// A sink that has not begun.
fn open_sink(
    path: &Path,
    snaplen: u32,
    workers: usize,
    failed: impl FnOnce(io::Error) + Send + 'static,
) -> Result<(Vec<PcapSink>, Capturing), WriteError> {
    open_sink_that(false, path, snaplen, workers, failed)
}

/// One that continues a file, or does not.
fn open_sink_that(
    continues: bool,
    path: &Path,
    snaplen: u32,
    workers: usize,
    failed: impl FnOnce(io::Error) + Send + 'static,
) -> Result<(Vec<PcapSink>, Capturing), WriteError> {
    let (application, epoch) = ("test", Instant::now());
    let capture = Capture { name: "tap", snaplen, application, epoch, continues };
    PcapSink::open(path, &capture, workers, failed)
}

/// A guest that has sent so many frames of 1500 bytes to a sink.
fn sent_to(sink: PcapSink, count: usize) -> World {
    let mut world = World::unlinked(vec![modern()]);
    let sink = world.graph.add("sink", sink);
    world.graph.link((world.ports[0], 0), (sink, 0)).unwrap();
    world.ports.push(sink);
    for seed in 0..count {
        world.guests[0].send(&frame(0, 1, 1500, seed));
        world.breathe();
        world.guests[0].reap();
    }
    world
}

fn make_pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

/// Breathes until the source has said that it is done.
fn finish(mut breathe: impl FnMut() -> bool, report: &Receiver<Report>) -> Report {
    let start = Instant::now();
    loop {
        if !breathe() {
            std::thread::yield_now();
        }
        if let Ok(report) = report.try_recv() {
            return report;
        }
        assert!(start.elapsed() < LIMIT, "the replay did not end within {LIMIT:?}");
    }
}

/// A source that is linked to a sink.
fn file_to_file(source: PcapSource, sink: PcapSink) -> (Graph, [AppId; 2]) {
    let mut graph = Graph::new();
    let (source, sink) = (graph.add("source", source), graph.add("sink", sink));
    graph.link((source, 0), (sink, 0)).unwrap();
    graph.link((sink, 0), (source, 0)).unwrap();
    (graph, [source, sink])
}

/// A guest that merges buffers, at whose port a source is plugged in instead of another guest.
fn guest_and_source(source: PcapSource) -> World {
    let mut world = World::unlinked(vec![modern()]);
    let source = world.graph.add("source", source);
    world.graph.link((source, 0), (world.ports[0], 0)).unwrap();
    world.graph.link((world.ports[0], 0), (source, 0)).unwrap();
    world.ports.push(source);
    world
}

#[test]
fn a_file_goes_into_another_in_order_and_as_often_as_it_is_to() {
    let files = Files::new();
    let frames = stream(700);
    let replay = Replay { rounds: Some(3), ..ONCE };
    let (source, report) = files.source(&capture(&with_times(&frames)), replay);
    let sink = files.sink(u32::MAX, 1).remove(0);
    let (mut graph, [source, sink]) = file_to_file(source.unwrap(), sink);
    let mut now = 0;
    let report = finish(
        || {
            now += STEP;
            graph.breathe(now, |_| ())
        },
        &report,
    );
    assert_eq!((report.sent, report.rounds, report.error.is_none()), (2100, 3, true));
    assert_eq!(graph.counters(source).received.frames, 2100);
    assert_eq!(graph.counters(sink).sent.frames, 2100);
    graph.stop_all();
    drop(graph);
    let came: Vec<_> = files.written().into_iter().map(|frame| frame.1).collect();
    assert!(came == [&frames[..]; 3].concat(), "bytes out are bytes in, {} frames", came.len());
}

/// What is captured comes behind what is in the file, whole and readable, and if nothing is captured that is as it was.
#[test]
fn a_capture_that_continues_keeps_what_is_in_its_file() {
    let files = Files::new();
    let path = files.path("out.pcapng");
    let mut expected = Vec::new();
    for (round, continues) in [false, true, true].into_iter().enumerate() {
        let failed = |error| panic!("the file cannot be written: {error}");
        let sink = open_sink_that(continues, &path, u32::MAX, 1, failed);
        let (mut parts, mut capturing) = sink.unwrap();
        capturing.begin();
        let count = 3 + round;
        drop(sent_to(parts.remove(0), count));
        let ended = capturing.end(Instant::now() + LIMIT);
        assert!(ended.is_complete && ended.written == count as u64, "{ended:?}");
        expected.extend((0..count).map(|seed| frame(0, 1, 1500, seed)));
        let came: Vec<_> = frames_of(&path).into_iter().map(|frame| frame.1).collect();
        assert!(came == expected, "{} frames in round {round}", came.len());
    }
    let failed = |error| panic!("the file cannot be written: {error}");
    drop(open_sink_that(true, &path, u32::MAX, 1, failed).unwrap());
    assert_eq!(frames_of(&path).len(), expected.len());
}

/// A receiver that is slow, but not so slow that its port gives it up, gets every frame.
#[test]
fn a_slow_guest_loses_nothing() {
    let files = Files::new();
    let frames = stream(3000);
    let (source, report) = files.source(&capture(&with_times(&frames)), ONCE);
    let mut world = guest_and_source(source.unwrap());
    let mut came = Vec::new();
    let report = finish(
        || {
            // Room for a few, now and then, and never for all that the reader's thread may bring at once. Who
            // waits for the guest waits for nobody: only if nothing comes in all of these rounds it is the
            // thread's turn.
            if world.guests[0].receive.outstanding() == 0 {
                (0..7).for_each(|_| _ = world.guests[0].post(2048));
            }
            let mut is_busy = false;
            for _ in 0..5 {
                is_busy |= world.breathe();
                came.extend(world.guests[0].frames());
            }
            is_busy
        },
        &report,
    );
    assert_eq!(report.sent, 3000);
    assert!(came == frames, "{} frames came", came.len());
    world.assert_drops(0, &[]);
}

#[test]
fn what_is_held_when_it_stops_is_counted() {
    let files = Files::new();
    let (source, _report) = files.source(&capture(&with_times(&stream(300))), ONCE);
    let mut world = guest_and_source(source.unwrap());
    world.guests[0].post_many(10);
    let (guest, source) = (world.ports[0], world.ports[1]);
    let start = Instant::now();
    while world.graph.counters(source).received.frames <= 10 {
        world.breathe();
        assert!(start.elapsed() < LIMIT, "no frames came within {LIMIT:?}");
    }
    world.graph.stop_all();
    let [guest, source] = [guest, source].map(|app| world.graph.counters(app));
    assert!(guest.sent.frames > 0 && source[DropReason::Stopped] > 0);
    assert_eq!(source.received.frames, guest.sent.frames + source[DropReason::Stopped]);
    world.assert_drops(0, &[]);
}

/// By the clock of the test: each frame goes when it is due and no sooner, and the worker is told when
/// that is.
#[test]
fn frames_are_as_far_apart_as_they_were() {
    let files = Files::new();
    // Two at once, one that is too early, and one a long while later.
    let times = [5_000_000_000, 5_000_000_000, 5_000_700_000, 5_000_600_000, 65_000_000_000u64];
    let frames: Vec<_> =
        times.iter().enumerate().map(|(seed, time)| (*time, frame(1, 0, 60, seed), 0)).collect();
    let replay = Replay { times: Times::Recorded, rounds: Some(2) };
    let (source, report) = files.source(&capture(&frames), replay);
    let mut world = guest_and_source(source.unwrap());
    world.guests[0].post_many(64);
    let start = Instant::now();
    // The thread has its own time: the replay's begins with its first frames.
    let mut came = world.guests[0].frames().len();
    while came == 0 {
        assert!(start.elapsed() < LIMIT, "no frame came within {LIMIT:?}");
        world.breathe();
        came = world.guests[0].frames().len();
    }
    assert_eq!(came, 2);
    let zero = world.now;
    let source = world.ports[1];
    let minute = 60_000_000_000;
    for (due, count) in [(700_000, 2), (minute, 3), (minute + 700_000, 2), (2 * minute, 1)] {
        let deadline = world
            .graph
            .get::<PcapSource>(source)
            .map(|source| engine::App::deadline(source, world.now));
        assert_eq!(deadline, Some(Some(zero + due)));
        let just_before = zero + due - world.now - 1;
        world.after(just_before);
        assert_eq!(world.guests[0].frames().len(), 0, "before {due}");
        world.after(1);
        assert_eq!(world.guests[0].frames().len(), count, "at {due}");
    }
    let report = finish(|| world.breathe(), &report);
    assert_eq!((report.sent, report.rounds), (10, 2));
    let source = world.graph.get::<PcapSource>(source).unwrap();
    assert_eq!(engine::App::deadline(source, 0), None);
}

/// Times that say nothing of how fast to repeat them: once a second.
#[test]
fn rounds_of_one_time_do_not_flood() {
    const SECOND: u64 = 1_000_000_000;
    let files = Files::new();
    for times in [&[7][..], &[7, 7], &[7, 3]] {
        let frames: Vec<_> = times
            .iter()
            .enumerate()
            .map(|(seed, time)| (*time, frame(1, 0, 60, seed), 0))
            .collect();
        let replay = Replay { times: Times::Recorded, rounds: None };
        let (source, _report) = files.source(&capture(&frames), replay);
        let mut world = guest_and_source(source.unwrap());
        world.guests[0].post_many(64);
        let start = Instant::now();
        let mut came = world.guests[0].frames().len();
        while came == 0 {
            assert!(start.elapsed() < LIMIT, "no frame came within {LIMIT:?}");
            world.breathe();
            came = world.guests[0].frames().len();
        }
        assert_eq!(came, times.len(), "frames of one time are sent at once");
        for _ in 0..3 {
            world.after(SECOND - 1);
            assert_eq!(world.guests[0].frames().len(), 0, "in less than a second");
            world.after(1);
            assert_eq!(world.guests[0].frames().len(), times.len());
        }
    }
}

#[test]
fn what_no_port_can_send_is_counted() {
    let files = Files::new();
    let good = frame(1, 0, 60, 1);
    let frames = [
        (0, good.clone(), 0),
        (0, good.clone(), 1),
        (0, good[..13].to_vec(), 0),
        (0, addressed(mac(0), mac(1), 65557, 0), 0),
        (0, addressed(mac(0), mac(1), 65558, 0), 0),
        (0, good[..14].to_vec(), 0),
    ];
    let (source, report) = files.source(&capture(&frames), ONCE);
    let mut world = guest_and_source(source.unwrap());
    world.guests[0].post_many(128);
    let mut lens = Vec::new();
    let report = finish(
        || {
            let busy = world.breathe();
            lens.extend(world.guests[0].frames().iter().map(Vec::len));
            busy
        },
        &report,
    );
    assert_eq!(lens, [60, 65557, 14]);
    let skipped = report.skipped;
    assert_eq!((skipped.truncated, skipped.too_short, skipped.too_long), (1, 1, 1));
    // The guest had nothing to do for who knows how many breaths.
    world.graph.ask_all();
    world.guests[0].send(&good);
    world.breathe();
    let reasons = [
        (DropReason::TooShort, 1),
        (DropReason::TooLong, 1),
        (DropReason::Truncated, 1),
        (DropReason::SendOnly, 1),
    ];
    world.assert_drops(1, &reasons);
}

/// For ever, of nothing: that is over at once.
#[test]
fn a_file_without_frames_ends() {
    let files = Files::new();
    let replay = Replay { rounds: None, ..ONCE };
    for frames in [&[][..], &[(0, vec![0; 5], 0)]] {
        let (source, report) = files.source(&capture(frames), replay);
        let mut world = guest_and_source(source.unwrap());
        let report = finish(|| world.breathe(), &report);
        assert_eq!((report.sent, report.rounds), (0, 1));
        assert_eq!(report.skipped.too_short, frames.len() as u64);
    }
}

#[test]
fn a_file_that_is_cut_off_is_sent_up_to_there() {
    let files = Files::new();
    let frames = stream(100);
    let mut file = capture(&with_times(&frames));
    file.truncate(file.len() - 1);
    let (source, report) = files.source(&file, Replay { rounds: None, ..ONCE });
    let mut world = guest_and_source(source.unwrap());
    world.guests[0].post_many(128);
    let report = finish(|| world.breathe(), &report);
    assert_eq!((report.sent, report.rounds), (99, 0));
    assert!(world.guests[0].frames() == frames[..99]);
    let error = report.error.expect("the file is cut off").to_string();
    let last = packet_size(frames[99].len());
    let expected = format!(
        "frame 100 at byte {}: the file ends after {} of its {last} bytes",
        file.len() + 1 - last,
        last - 1
    );
    assert_eq!(error, expected);
}

#[test]
fn what_is_no_capture_file_is_no_source() {
    let files = Files::new();
    let (source, _) = files.source(b"not a capture", ONCE);
    let error = source.err().expect("that is no capture file").to_string();
    let expected =
        "byte 0, before frame 1: this is no capture file: it begins with [6e, 6f, 74, 20]";
    assert_eq!(error, expected);
    let error = PcapSource::open(files.directory.path(), ONCE, |_| ()).err().expect("a directory");
    assert_eq!(error.to_string(), "it is no regular file");
    let error = PcapSource::open(&files.path("none"), ONCE, |_| ()).err().expect("nothing");
    assert_eq!(error.to_string(), "cannot read it: No such file or directory (os error 2)");
}

/// A file that grows while it is read would never end.
#[test]
fn a_file_has_one_writer_and_no_reader_beside_it() {
    let files = Files::new();
    let parts = files.sink(1500, 1);
    let path = files.path("out.pcapng");
    let error = PcapSource::open(&path, ONCE, |_| ()).err().expect("it is being written");
    assert_eq!(error.to_string(), "it is being written by a pcap-write port");
    let error = open_sink(&path, 1, 1, |_| ()).err().expect("it is being written");
    assert_eq!(error.to_string(), "another port, of this switch or another, reads or writes it");
    drop(parts);
    files.written();
    assert!(PcapSource::open(&path, ONCE, |_| ()).is_ok(), "the file is free again");
}

/// A switch that does not start leaves everything as it was.
#[test]
fn a_capture_that_does_not_begin_changes_nothing() {
    let files = Files::new();
    let (new, old, link) = (files.path("new"), files.path("old"), files.path("link"));
    fs::write(&old, "what was here before").unwrap();
    symlink("target", &link).unwrap();
    for (path, is_there) in [(&new, false), (&old, true)] {
        let (parts, capturing) = open_sink(path, 1500, 1, |error| panic!("{error}")).unwrap();
        let error = open_sink(path, 1500, 1, |_| ()).err().expect("two ports with one file");
        assert!(matches!(error, WriteError::InUse), "{error}");
        assert!(path.exists());
        drop(capturing);
        drop(parts);
        assert_eq!(path.exists(), is_there);
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "what was here before");
    // What somebody else has put there meanwhile is not ours.
    let (_, capturing) = open_sink(&new, 1500, 1, |error| panic!("{error}")).unwrap();
    fs::remove_file(&new).unwrap();
    fs::write(&new, "another").unwrap();
    drop(capturing);
    assert_eq!(fs::read_to_string(&new).unwrap(), "another");
    // A link to where nothing is yet.
    let (parts, mut capturing) = open_sink(&link, 1500, 1, |error| panic!("{error}")).unwrap();
    capturing.begin();
    drop(sent_to(parts.into_iter().next().unwrap(), 3));
    assert!(capturing.end(Instant::now() + LIMIT).is_complete);
    assert_eq!(frames_of(&files.path("target")).len(), 3);
}

/// As Wireshark reads a pipe: from when it is there to the end.
#[test]
fn a_pipe_is_written_to_whoever_reads_it() {
    let files = Files::new();
    let path = files.path("pipe");
    make_pipe(&path);
    let (parts, mut capturing) = open_sink(&path, 1500, 1, |error| panic!("{error}")).unwrap();
    capturing.begin();
    let world = sent_to(parts.into_iter().next().unwrap(), 200);
    let out = files.path("out.pcapng");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        fs::write(out, bytes).unwrap();
    });
    // Its other end is open when the file has something.
    let start = Instant::now();
    drop(world);
    let ended = loop {
        if reader.is_finished() {
            break capturing.end(Instant::now() + LIMIT);
        }
        assert!(start.elapsed() < LIMIT, "the pipe did not end within {LIMIT:?}");
        std::thread::yield_now();
    };
    reader.join().unwrap();
    assert!(ended.is_complete && ended.lost == 0, "{ended:?}");
    let frames = frames_of(&files.path("out.pcapng"));
    assert_eq!((frames.len(), ended.written), (200, 200));
    assert!(frames.iter().enumerate().all(|(seed, sent)| sent.1 == frame(0, 1, 1500, seed)));
}

#[test]
fn a_pipe_has_one_writer() {
    let files = Files::new();
    let path = files.path("pipe");
    make_pipe(&path);
    let (_parts, mut first) = open_sink(&path, 1500, 1, |error| panic!("{error}")).unwrap();
    first.begin();
    let mut reader = File::open(&path).unwrap();
    reader.read_exact(&mut [0; 4]).unwrap();
    let (failed, failure) = channel();
    let sink = open_sink(&path, 1500, 1, move |error| failed.send(error).unwrap());
    let (_parts, mut second) = sink.unwrap();
    second.begin();
    let error = failure.recv_timeout(LIMIT).expect("two ports with one pipe");
    assert_eq!(error.to_string(), "another port, of this switch or another, reads or writes it");
}

/// Nobody who reads it at all, somebody who has gone, somebody who does not go on: whoever waits for the end
/// of all of them waits once, and is told what is missing.
#[test]
fn pipes_that_nobody_reads_are_given_up_together() {
    const COUNT: usize = 200;
    let files = Files::new();
    let mut captures = Vec::new();
    let mut readers = Vec::new();
    for number in 0..4 {
        let path = files.path(&format!("pipe{number}"));
        make_pipe(&path);
        let (failed, failure) = channel();
        let (parts, mut capturing) =
            open_sink(&path, 1500, 1, move |error| failed.send(error).unwrap()).unwrap();
        capturing.begin();
        let mut world = sent_to(parts.into_iter().next().unwrap(), COUNT);
        let mut reader = (number > 0).then(|| File::open(&path).unwrap());
        if let Some(reader) = &mut reader {
            // From now on it knows that it is read.
            reader.read_exact(&mut [0; 4]).unwrap();
        }
        if number == 1 {
            drop(reader.take());
            let error = failure.recv_timeout(LIMIT).expect("the pipe is broken");
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            let start = Instant::now();
            while world.graph.counters(world.ports[1]).sent.frames > 0 {
                assert!(start.elapsed() < LIMIT, "the frames were not counted as lost");
                world.breathe();
            }
            world.assert_drops(1, &[(DropReason::ReceiverDown, COUNT as u64)]);
        }
        captures.push(capturing);
        readers.push((reader, failure));
    }
    let limit = Duration::from_millis(300);
    let start = Instant::now();
    let deadline = start + limit;
    let ended: Vec<_> = captures.into_iter().map(|capture| capture.end(deadline)).collect();
    let took = start.elapsed();
    assert!(took >= limit, "it was not even waited for those that were read: {took:?}");
    for (number, ended) in ended.into_iter().enumerate() {
        assert_eq!(ended.written + ended.dropped + ended.lost, COUNT as u64);
        let expected = match number {
            0 => (true, false, false),
            1 => (false, true, true),
            _ => (true, false, false),
        };
        assert_eq!((ended.lost > 0, ended.dropped > 0, ended.is_complete), expected, "{ended:?}");
    }
}

/// What a guest leaves to be done is done for the file, but for the segmentation.
#[test]
fn large_packets_have_their_checksums() {
    for snaplen in [u32::MAX, 1000] {
        let files = Files::new();
        let mut world = World::unlinked(vec![Guest::new(SENDS_ALL, Cut::Whole, RING)]);
        let sink = world.graph.add("sink", files.sink(snaplen, 1).remove(0));
        world.graph.link((world.ports[0], 0), (sink, 0)).unwrap();
        let packets = segments::KINDS.map(|kind| segments::Packet::new(kind, 0, 20_000));
        for packet in &packets {
            packet.send(&mut world.guests[0]);
            world.breathe();
        }
        drop(world);
        let frames = files.written();
        assert_eq!(frames.len(), packets.len());
        for (packet, (_, bytes, original)) in packets.iter().zip(frames) {
            assert_eq!(original as usize, packet.frame.len());
            assert_eq!(bytes.len(), packet.frame.len().min(snaplen as usize));
            // All but the checksum is as it was.
            let field = usize::from(packet.header.csum_start + packet.header.csum_offset);
            assert!(bytes[..field] == packet.frame[..field]);
            assert!(bytes[field + 2..] == packet.frame[field + 2..bytes.len()]);
            let mut whole = bytes.clone();
            whole.extend_from_slice(&packet.frame[bytes.len()..]);
            assert_checksum(&whole);
        }
    }
}

#[track_caller]
fn assert_checksum(frame: &[u8]) {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a whole packet");
    let payload = packet.payload.slice();
    let (found, expected) = match (packet.transport.unwrap(), packet.net.unwrap()) {
        (TransportHeader::Tcp(tcp), NetHeaders::Ipv4(ip, _)) => {
            (tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload))
        }
        (TransportHeader::Tcp(tcp), NetHeaders::Ipv6(ip, _)) => {
            (tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload))
        }
        (TransportHeader::Udp(udp), NetHeaders::Ipv4(ip, _)) => {
            (udp.checksum, udp.calc_checksum_ipv4(&ip, payload))
        }
        (TransportHeader::Udp(udp), NetHeaders::Ipv6(ip, _)) => {
            (udp.checksum, udp.calc_checksum_ipv6(&ip, payload))
        }
        other => panic!("{other:?}"),
    };
    // Zero has two forms.
    assert_eq!(found % 0xffff, expected.unwrap() % 0xffff);
}

/// The times in the file are those of the breaths, by the wall clock.
#[test]
fn stamps_are_the_wall_clocks() {
    let files = Files::new();
    let wall = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
    let before = wall();
    let sink = files.sink(u32::MAX, 1).remove(0);
    let epoch = Instant::now();
    let mut world = World::unlinked(vec![modern()]);
    let sink = world.graph.add("sink", sink);
    world.graph.link((world.ports[0], 0), (sink, 0)).unwrap();
    for _ in 0..3 {
        world.guests[0].send(&frame(0, 1, 60, 0));
        world.after(epoch.elapsed().as_nanos() as u64 - world.now);
    }
    drop(world);
    let after = wall();
    let times: Vec<_> = files.written().iter().map(|frame| frame.0).collect();
    assert_eq!(times.len(), 3);
    // The epoch is taken a little after the sink's own.
    let slack = 50_000_000;
    assert!(
        times.is_sorted() && times[0] > before - slack && times[2] < after + slack,
        "{times:?}"
    );
}

/// Each worker has a part; the file has the frames of all.
#[test]
fn several_workers_write_one_file() {
    let files = Files::new();
    let mut worlds: Vec<World> = Vec::new();
    for part in files.sink(u32::MAX, 3) {
        let mut world = World::unlinked(vec![modern()]);
        let sink = world.graph.add("sink", part);
        world.graph.link((world.ports[0], 0), (sink, 0)).unwrap();
        worlds.push(world);
    }
    for round in 0..500 {
        for (number, world) in worlds.iter_mut().enumerate() {
            world.guests[0].send(&frame(number, 9, 100 + number, round));
            world.breathe();
            world.guests[0].reap();
        }
    }
    drop(worlds);
    let frames = files.written();
    for number in 0..3 {
        let of_it: Vec<_> =
            frames.iter().filter(|(_, bytes, _)| bytes.len() == 100 + number).collect();
        assert_eq!(of_it.len(), 500);
        let in_order = |(round, (_, bytes, _)): (usize, &&(i64, Vec<u8>, u32))| {
            *bytes == frame(number, 9, 100 + number, round)
        };
        assert!(of_it.iter().enumerate().all(in_order), "worker {number}");
    }
}

#[test]
fn a_breath_from_file_to_file_does_not_allocate() {
    let files = Files::new();
    let replay = Replay { rounds: None, ..ONCE };
    let (source, _report) = files.source(&capture(&with_times(&stream(5000))), replay);
    let (mut graph, [source, sink]) =
        file_to_file(source.unwrap(), files.sink(u32::MAX, 1).remove(0));
    let mut now = 0;
    let mut breathe = |frames: u64| {
        let start = Instant::now();
        let target = graph.counters(source).received.frames + frames;
        let mut count = 0;
        while graph.counters(source).received.frames < target {
            now += STEP;
            count += measure(|| _ = graph.breathe(now, |_| ())).count_total;
            assert!(start.elapsed() < LIMIT, "no {frames} frames within {LIMIT:?}");
        }
        (count, graph.counters(sink).sent.frames)
    };
    let (first, _) = breathe(100);
    assert!(first > 0, "nothing is counted at all");
    let (later, written) = breathe(100_000);
    assert_eq!(later, 0);
    assert!(written > 1000, "{written} frames");
}

#[test]
fn every_way_to_cut_a_frame_is_written_whole() {
    let files = Files::new();
    let mut expected = Vec::new();
    let mut parts = files.sink(u32::MAX, CUTS.len());
    for (seed, cut) in CUTS.into_iter().enumerate() {
        let features = MODERN | wire::virtio::Features::INDIRECT_DESC;
        let mut world = World::unlinked(vec![Guest::new(features, cut, RING)]);
        let sink = world.graph.add("sink", parts.pop().unwrap());
        world.graph.link((world.ports[0], 0), (sink, 0)).unwrap();
        for len in [14, 60, 127, 128, 129, 1514] {
            let frame = frame(0, 1, len, seed);
            world.guests[0].send(&frame);
            world.breathe();
            expected.push(frame);
        }
    }
    let mut came: Vec<_> = files.written().into_iter().map(|frame| frame.1).collect();
    came.sort();
    expected.sort();
    assert!(came == expected, "{} of {} frames", came.len(), expected.len());
}
