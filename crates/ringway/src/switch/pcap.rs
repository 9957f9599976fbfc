//! Ports of capture files. What has to be said of them while the switch runs is said by their threads.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::DropReason;
use ports::pcap::{Capture, Capturing, Ended, PcapSink, PcapSource, Report};

use super::port::{Opened, parts};
use crate::config::{PcapRead, PcapWrite};

const APPLICATION: &str = concat!("ringway ", env!("CARGO_PKG_VERSION"));

pub(super) fn open_source(workers: usize, name: &str, config: &PcapRead) -> anyhow::Result<Opened> {
    let PcapRead { file, replay } = config.clone();
    let (port, path) = (name.to_owned(), file.display().to_string());
    let source = PcapSource::open(&file, replay, move |report| say(&port, &path, &report));
    let source =
        source.with_context(|| format!("port `{name}`: capture file {}", file.display()))?;
    Ok(Opened::new(parts(source, workers, PcapSource::part)))
}

/// Says how a replay ended.
fn say(port: &str, file: &str, report: &Report) {
    let Report { sent, skipped, rounds, error } = report;
    let skipped: Vec<String> = skipped
        .reasons()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{} {count}", DropReason::name(reason)))
        .collect();
    let skipped = if skipped.is_empty() { "none".to_owned() } else { skipped.join(", ") };
    match error {
        None => {
            let times = if *rounds == 1 { "once".to_owned() } else { format!("{rounds} times") };
            tracing::info!(port, "{file} was sent {times}: {sent} frames, skipped: {skipped}");
        }
        Some(error) => tracing::error!(
            port,
            "the port is down: {file}: {error} ({sent} frames sent before, skipped: {skipped})"
        ),
    }
}

/// How long the end of a capture may take: a disk that hangs, or a pipe that nobody reads, is not to keep the switch from
/// ending.
pub(super) const END_LIMIT: Duration = Duration::from_millis(800);

/// A capture into a file, of which nothing is touched before it begins: when nothing can keep its port from starting any
/// more.
pub(super) struct FileCapture {
    port: String,
    file: String,
    capturing: Capturing,
}

impl FileCapture {
    /// Empties the file, or goes on behind what is in it, and has it written.
    pub(super) fn begin(&mut self) {
        self.capturing.begin();
    }

    /// Waits for the file to be complete, until `limit` at most, once the workers have let go of its port; and says what is in
    /// it and what is not.
    pub(super) fn end(self, limit: Instant) {
        let Self { port, file, capturing } = self;
        let Ended { written, dropped, lost, is_complete } = capturing.end(limit);
        if is_complete && dropped == 0 {
            tracing::info!(port, "{file} is complete: {written} frames");
            return;
        }
        let end = if is_complete { "" } else { ". It lacks its end" };
        tracing::warn!(
            port,
            "{file} has {written} frames: {dropped} were dropped, and {lost} were not written yet when the \
             capture had to end{end}"
        );
    }
}

pub(super) fn open_sink(
    workers: usize,
    name: &str,
    config: &PcapWrite,
    epoch: Instant,
    continues: bool,
) -> anyhow::Result<Opened> {
    let PcapWrite { file, snaplen } = config;
    let (snaplen, application) = (*snaplen, APPLICATION);
    let capture = Capture { name, snaplen, application, epoch, continues };
    let (port, path) = (name.to_owned(), file.display().to_string());
    let failed = move |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::BrokenPipe => format!("whoever read {path} has gone"),
            _ => format!("cannot write {path}: {error}. It holds what was written before"),
        };
        tracing::error!(
            port,
            "the port is down: {why}; what is sent to the port is dropped until the switch is started \
             again"
        );
    };
    let (parts, capturing) = PcapSink::open(file, &capture, workers, failed)
        .with_context(|| format!("port `{name}`: capture file {}", file.display()))?;
    let file = file.display().to_string();
    Ok(Opened::new(parts).with_capture(FileCapture { port: name.to_owned(), file, capturing }))
}
