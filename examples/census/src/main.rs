//! Runs the census on a worker, between two sources and a sink, and asks it every second what it has counted, three times:
//!
//!     source ipv4 --+
//!                   +--> census --> sink
//!     source arp  --+
//!
//!     cargo run --release -p ringway-example-census

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use apps::sink::Sink;
use apps::source::{self, Source};
use engine::{Event, Graph, Worker};
use ringway_example_census::{Census, Settings};
use wire::ethernet::{EtherType, MacAddress};

/// How often it is asked, a second apart.
const LOOKS: usize = 3;

fn source(ethertype: EtherType, size: usize, rate: u64) -> Result<Source> {
    let (destination, source) = (MacAddress::BROADCAST, MacAddress([2, 0, 0, 0, 0, 1]));
    let (rate, frames) = (Some(rate), None);
    Ok(Source::new(source::Settings { destination, source, ethertype, size, rate, frames })?)
}

fn main() -> Result<()> {
    // The network: apps, and links from an output of one to an input of another.
    let mut graph = Graph::new();
    let ipv4 = graph.add("ipv4", source(EtherType::IPV4, 1514, 100_000)?);
    let arp = graph.add("arp", source(EtherType::ARP, 60, 1000)?);
    let census = graph.add("census", Census::new(&Settings::default()));
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
    let (sender, answers) = channel();
    for look in 0..LOOKS {
        thread::sleep(Duration::from_secs(1));
        // What is to be done with an app is done by its worker, between two breaths.
        let sender = sender.clone();
        worker
            .run(move |worker| worker.numbers(census), move |numbers| drop(sender.send(numbers)))?;
        for number in answers.recv()?.iter() {
            println!("{:>8} {:<8} {}", number.value, number.unit, number.name);
        }
        println!();
        if look == 0 {
            // From now on, ARP is counted with the others.
            let (sender, done) = channel();
            let settings = Settings { kinds: 1 };
            worker.run(
                move |worker| worker.reconfigure(census, &settings),
                move |result| drop(sender.send(result)),
            )?;
            done.recv()?.map_err(anyhow::Error::from_boxed)?;
        }
    }

    let counters = worker.stop()?.counters(sink);
    println!(
        "{:>8} frames   came to the sink, {} bytes",
        counters.sent.frames, counters.sent.bytes
    );
    Ok(())
}
