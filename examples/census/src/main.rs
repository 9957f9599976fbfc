//! Runs the census on a worker, between two sources and a sink, for a second:
//!
//!     source ipv4 --+
//!                   +--> census --> sink
//!     source arp  --+
//!
//!     cargo run --release -p ringway-example-census

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use apps::sink::Sink;
use apps::source::{Settings, Source};
use engine::{Event, Graph, Worker};
use ringway_example_census::Census;
use wire::ethernet::{EtherType, MacAddress};

/// How long it runs.
const TIME: Duration = Duration::from_secs(1);

fn source(ethertype: EtherType, size: usize, rate: u64) -> Result<Source> {
    let (destination, source) = (MacAddress::BROADCAST, MacAddress([2, 0, 0, 0, 0, 1]));
    let (rate, frames) = (Some(rate), None);
    Ok(Source::new(Settings { destination, source, ethertype, size, rate, frames })?)
}

fn main() -> Result<()> {
    // The network: apps, and links from an output of one to an input of another.
    let mut graph = Graph::new();
    let ipv4 = graph.add("ipv4", source(EtherType::IPV4, 1514, 100_000)?);
    let arp = graph.add("arp", source(EtherType::ARP, 60, 1000)?);
    let census = graph.add("census", Census::new());
    let sink = graph.add("sink", Sink::new());
    graph.link((ipv4, 0), (census, 0))?;
    graph.link((arp, 0), (census, 0))?;
    graph.link((census, 1), (sink, 0))?;

    // A worker runs it on a thread of its own. It tells us of apps that fail, and of peers that break rules.
    let tell = |event| match event {
        Event::Failed { message, .. } => eprintln!("an app has failed: {message}"),
        Event::Fault { fault, .. } => eprintln!("{fault}"),
    };
    let worker = Worker::start("census", graph, Default::default(), Box::new(tell))?;
    thread::sleep(TIME);
    let mut graph = worker.stop()?;

    let census: &mut Census = graph.get(census).context("the census has failed")?;
    for (kind, count) in census.kinds() {
        println!("{kind}  {count:>8} frames");
    }
    let counters = graph.counters(sink);
    println!("sink    {:>8} frames, {} bytes", counters.sent.frames, counters.sent.bytes);
    Ok(())
}
