//! Ports of capture files. What has to be said of them while the switch runs is said by their threads.

use std::time::Instant;

use anyhow::Context;
use engine::DropReason;
use ports::pcap::{Capture, PcapSink, PcapSource, Report};

use super::{Graphs, Opened, parts};
use crate::config::{PcapRead, PcapWrite};

const APPLICATION: &str = concat!("ringway ", env!("CARGO_PKG_VERSION"));

pub(super) fn open_source(
    graphs: &mut Graphs,
    name: &str,
    config: &PcapRead,
) -> anyhow::Result<Opened> {
    let PcapRead { file, replay } = config.clone();
    let (port, path) = (name.to_owned(), file.display().to_string());
    let source = PcapSource::open(&file, replay, move |report| say(&port, &path, &report));
    let source =
        source.with_context(|| format!("port `{name}`: capture file {}", file.display()))?;
    let workers = graphs.0.len();
    Ok(Opened { app: graphs.add(name, parts(source, workers, PcapSource::part)), control: None })
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

pub(super) fn open_sink(
    graphs: &mut Graphs,
    name: &str,
    config: &PcapWrite,
    epoch: Instant,
) -> anyhow::Result<Opened> {
    let PcapWrite { file, snaplen } = config;
    let capture = Capture { name, snaplen: *snaplen, application: APPLICATION, epoch };
    let (port, path) = (name.to_owned(), file.display().to_string());
    let failed = move |error| {
        tracing::error!(
            port,
            "the port is down: cannot write {path}: {error}. It holds what was written before; what \
             is sent to the port is dropped until the switch is started again"
        );
    };
    let parts = PcapSink::open(file, &capture, graphs.0.len(), failed)
        .with_context(|| format!("port `{name}`: capture file {}", file.display()))?;
    Ok(Opened { app: graphs.add(name, parts), control: None })
}
