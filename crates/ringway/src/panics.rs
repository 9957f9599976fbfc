//! What is said of a panic on a worker: by another thread than the worker.
//!
//! A panic costs one app, and all others go on (`engine::Graph`). But before it is caught, the usual hook writes where it was to standard
//! error, and with `RUST_BACKTRACE` it looks up each line of the way there, for which all of a worker's ports would wait for a sixth
//! of a second. So a worker hands over what it knows as it is, and a thread that no port waits for writes what it says, looks up the
//! way there, and writes that too. One way at a time: `std` has one lock for all of them, and a worker that took down another one
//! would wait for it. Whoever ends the program waits for this thread, if not for long: last words say why it ends.

use std::backtrace::Backtrace;
use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// What the names of workers' threads begin with; a number follows.
pub const WORKER: &str = "worker";
/// Panics that may wait to be written. An app that fails is left alone for two seconds at least.
const WAITING: usize = 64;
/// How long the end of the program waits for what is still to be written. Nobody may read it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks whether what it waits for can be said.
const PAUSE: Duration = Duration::from_millis(10);

/// What the thread that writes is told.
enum Told {
    /// A panic, as its thread leaves it.
    Panic { text: String, trace: Option<Trace> },
    /// Dropped when all is written that was told before.
    Wait(Sender<()>),
}

/// What `RUST_BACKTRACE` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Off,
    Short,
    Full,
}

/// The way to a panic. Its lines are looked up when it is written.
struct Trace {
    backtrace: Backtrace,
    style: Style,
}

/// Whether there is a trace.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The thread that writes what is to be said of panics. When this is dropped, all of it is written, or [`PATIENCE`] is over.
pub struct Writer(SyncSender<Told>);

/// Has a thread write what is to be said of panics on workers, from now on.
pub fn write_elsewhere() -> anyhow::Result<Writer> {
    let writer = Writer::start(io::stderr())?;
    hand_over(writer.0.clone(), Style::asked(env::var_os("RUST_BACKTRACE").as_deref()));
    Ok(writer)
}

impl Told {
    /// A panic on this thread.
    fn panic(mut text: String, style: Style) -> Self {
        let trace = Trace::take(style);
        text += match (style, &trace) {
            (Style::Off, _) => {
                "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n"
            }
            (_, None) => "note: its backtrace is left out: another one was being looked up\n",
            (_, Some(_)) => "",
        };
        Self::Panic { text, trace }
    }
}

impl Style {
    /// As `std` understands it.
    fn asked(value: Option<&OsStr>) -> Self {
        match value {
            None => Self::Off,
            Some(value) if value == "0" => Self::Off,
            Some(value) if value == "full" => Self::Full,
            Some(_) => Self::Short,
        }
    }
}

impl Trace {
    /// The way to here, if that is asked for and there is no other one.
    fn take(style: Style) -> Option<Self> {
        let may = style != Style::Off && !TAKEN.swap(true, Ordering::Acquire);
        may.then(|| Self { backtrace: Backtrace::force_capture(), style })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

impl Writer {
    fn start(mut to: impl Write + Send + 'static) -> anyhow::Result<Self> {
        let (tell, told) = sync_channel(WAITING);
        let write = move || told.iter().for_each(|told| write(&mut to, told));
        let thread = thread::Builder::new().name("panics".to_owned());
        thread.spawn(write).context("cannot start a thread")?;
        Ok(Self(tell))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        wait(&self.0);
    }
}

/// Hands over what workers know of their panics. Those of all others are written as usual.
fn hand_over(tell: SyncSender<Told>, style: Style) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_last(info) {
            wait(&tell);
            return usual(info);
        }
        let thread = thread::current();
        match thread.name().filter(|name| name.starts_with(WORKER)) {
            Some(name) => {
                let text = format!("thread '{name}' {info}\n");
                // Who cannot be told has enough to write.
                let _ = tell.try_send(Told::panic(text, style));
            }
            None => usual(info),
        }
    }));
}

/// Whether the program aborts when this is said. A panic that may get no further ends in a second one, in `core` itself; others
/// name the line that made them. (So do a debug build's own checks of pointers, which abort as well: their last words may be lost.)
fn is_last(info: &PanicHookInfo<'_>) -> bool {
    info.location().is_some_and(|at| at.file().ends_with("core/src/panicking.rs"))
}

/// Waits until all is written that was told so far.
fn wait(tell: &SyncSender<Told>) {
    let start = Instant::now();
    let (written, all) = channel();
    let mut last = Told::Wait(written);
    while let Err(TrySendError::Full(back)) = tell.try_send(last) {
        if start.elapsed() >= PATIENCE {
            return;
        }
        // There is no room yet, and nothing tells when there is.
        thread::sleep(PAUSE);
        last = back;
    }
    let _ = all.recv_timeout(PATIENCE.saturating_sub(start.elapsed()));
}

/// What is known first: the program may end while the rest is looked up.
fn write(to: &mut impl Write, told: Told) {
    let (text, trace) = match told {
        Told::Panic { text, trace } => (text, trace),
        Told::Wait(written) => return drop(written),
    };
    // Nobody is left to be told of an error.
    let _ = to.write_all(text.as_bytes());
    if let Some(Trace { backtrace, style }) = &trace {
        let lines = match style {
            Style::Full => format!("stack backtrace:\n{backtrace:#}\n"),
            _ => format!("stack backtrace:\n{backtrace}\n"),
        };
        let _ = to.write_all(lines.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::Mutex;
    use std::sync::mpsc::Receiver;

    use super::*;

    /// More than anything here takes, on the slowest machine.
    const LIMIT: Duration = Duration::from_secs(20);
    /// Tells a test that it is the one that aborts.
    const CHILD: &str = "RINGWAY_PANICS_CHILD";

    /// Passes on each piece that is written.
    struct Pieces(Sender<String>);

    impl Write for Pieces {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(piece.to_vec()).unwrap();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0.recv_timeout(LIMIT).map_err(io::Error::other)?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Held by each test that takes traces: there is one at a time.
    static TRACES: Mutex<()> = Mutex::new(());

    /// Panics when it is dropped.
    struct Worse;

    impl Drop for Worse {
        fn drop(&mut self) {
            panic!("worse");
        }
    }

    fn a_panic(trace: Option<Trace>) -> Told {
        Told::Panic { text: "thread 'worker0' panicked\n".to_owned(), trace }
    }

    fn panic_on(thread: &str) {
        let thread = thread::Builder::new().name(thread.to_owned());
        thread.spawn(|| panic!("deliberate")).unwrap().join().unwrap_err();
    }

    #[test]
    fn a_worker_hands_over_what_others_write() {
        let _alone = TRACES.lock();
        let (write, written) = channel();
        let (tell, told) = sync_channel(WAITING);
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| drop(write.send(info.to_string()))));
        hand_over(tell, Style::Short);
        panic_on("worker7");
        panic_on("another");
        panic::set_hook(before);
        let Told::Panic { text, .. } = told.recv_timeout(LIMIT).unwrap() else {
            panic!("nobody waits");
        };
        assert!(text.starts_with("thread 'worker7' panicked at "), "{text}");
        assert!(text.contains("panics.rs") && text.ends_with("\ndeliberate\n"), "{text}");
        assert!(told.recv_timeout(LIMIT).is_err(), "only of a worker, and then it is over");
        let written: Vec<String> = written.iter().collect();
        assert!(written.len() == 1 && written[0].ends_with("\ndeliberate"), "{written:?}");
    }

    #[test]
    fn what_is_known_is_written_first_and_all_of_it_before_the_end() {
        let _alone = TRACES.lock();
        let (pieces, written) = channel();
        let writer = Writer::start(Pieces(pieces)).unwrap();
        writer.0.send(a_panic(None)).unwrap();
        writer.0.send(a_panic(Trace::take(Style::Short))).unwrap();
        drop(writer);
        let written: Vec<String> = written.try_iter().collect();
        let [first, second, trace] = &written[..] else { panic!("{written:?}") };
        assert_eq!(first, "thread 'worker0' panicked\n");
        assert_eq!(second, first);
        assert!(trace.starts_with("stack backtrace:\n"), "{trace}");
        assert!(trace.contains("what_is_known_is_written_first"), "{trace}");
    }

    #[test]
    fn a_second_panic_does_not_wait_for_the_first_ones_trace() {
        let _alone = TRACES.lock();
        let text = |told: &Told| match told {
            Told::Panic { text, trace } => (text.clone(), trace.is_some()),
            Told::Wait(_) => panic!("nobody waits"),
        };
        let first = Told::panic("first\n".to_owned(), Style::Short);
        let second = Told::panic("second\n".to_owned(), Style::Short);
        assert_eq!(text(&first), ("first\n".to_owned(), true));
        let left_out = "second\nnote: its backtrace is left out: another one was being looked up\n";
        assert_eq!(text(&second), (left_out.to_owned(), false));
        // Written, or given up.
        drop(first);
        assert_eq!(
            text(&Told::panic("third\n".to_owned(), Style::Short)),
            ("third\n".to_owned(), true)
        );
    }

    #[test]
    fn a_trace_is_as_long_as_it_was_asked_for() {
        let _alone = TRACES.lock();
        let asked = |value: &str| Style::asked(Some(value.as_ref()));
        assert_eq!(Style::asked(None), Style::Off);
        assert_eq!(
            [asked("0"), asked("1"), asked("full")],
            [Style::Off, Style::Short, Style::Full]
        );
        let written = |style| {
            let mut bytes = Vec::new();
            write(&mut bytes, Told::panic("panicked\n".to_owned(), style));
            String::from_utf8(bytes).unwrap()
        };
        let hint =
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
        assert_eq!(written(Style::Off), format!("panicked\n{hint}"));
        let [short, full] = [written(Style::Short), written(Style::Full)];
        for trace in [&short, &full] {
            assert!(trace.starts_with("panicked\nstack backtrace:\n   0: "), "{trace}");
            assert!(trace.contains("a_trace_is_as_long_as_it_was_asked_for"), "{trace}");
        }
        // What took the trace is a part of it, and where each function is.
        assert!(full.len() > short.len() && full.contains("0x") && !short.contains("0x"), "{full}");
    }

    #[test]
    fn the_end_does_not_wait_for_who_does_not_read() {
        let (read, stuck) = channel();
        let writer = Writer::start(Stuck(stuck)).unwrap();
        writer.0.send(a_panic(None)).unwrap();
        drop(writer);
        read.send(()).expect("it is still stuck");
    }

    /// Runs once more, in a process of its own.
    #[test]
    fn all_is_written_before_an_abort() {
        if env::var_os(CHILD).is_some() {
            let _writer = write_elsewhere().unwrap();
            let worker = thread::Builder::new().name("worker0".to_owned());
            let dies = || {
                let _worse = Worse;
                panic!("bad");
            };
            let _: Result<(), _> = worker.spawn(dies).unwrap().join();
            panic!("it has not aborted");
        }
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--nocapture", "--exact", "panics::tests::all_is_written_before_an_abort"]);
        let child = child.env(CHILD, "").env("RUST_BACKTRACE", "1").output().unwrap();
        let text = String::from_utf8(child.stderr).unwrap();
        assert_eq!(child.status.signal(), Some(nix::libc::SIGABRT), "{text}");
        let mut rest = &text[..];
        for said in
            ["\nbad\n", "stack backtrace:\n", "\nworse\nnote: its backtrace is left out", "abort"]
        {
            rest = rest.split_once(said).unwrap_or_else(|| panic!("{said:?} is not in {text}")).1;
        }
    }
}
