//! Apps that keep frames, on a worker that sleeps whenever it may: nothing wakes it but their deadlines.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use engine::{App, Burst, Counters, Graph, Mode, Outputs, Selection, Settings, Worker};
use ringway_apps::impair::{self, Impair, Impairment};
use ringway_apps::sides::{NETWORK, PORT};
use ringway_apps::source::{self, Source};
use wire::ethernet::{EtherType, MacAddress};

/// Long enough for any machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Says when each frame came.
struct Clock {
    came: Sender<Instant>,
    counters: Counters,
}

impl App for Clock {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, selection: &Selection, _: &mut Outputs<'_>) {
        for _ in selection.iter() {
            let _ = self.came.send(Instant::now());
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// When each of so many frames of a source came, through an impairment.
fn arrivals(frames: u64, rate: Option<u64>, from_port: Impairment) -> (Instant, Vec<Instant>) {
    let source = Source::new(source::Settings {
        destination: MacAddress::BROADCAST,
        source: MacAddress([2, 0, 0, 0, 0, 1]),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        size: 1000,
        rate,
        frames: Some(frames),
    });
    let settings = impair::Settings { from_port, ..impair::Settings::default() };
    let (came, arrivals) = channel();
    let mut graph = Graph::new();
    // What the source sends comes behind the impairment's turn.
    let impair = graph.add("impair", Impair::new(settings).unwrap());
    let source = graph.add("source", source.unwrap());
    let clock = graph.add("clock", Clock { came, counters: Counters::default() });
    graph.link((source, 0), (impair, PORT)).unwrap();
    graph.link((impair, NETWORK), (clock, 0)).unwrap();
    let start = Instant::now();
    let settings = Settings { mode: Mode::Interrupt, ..Settings::default() };
    let worker = Worker::start("sleep", graph, settings, Box::new(|_| ())).unwrap();
    let next = |number| {
        let came = arrivals.recv_timeout(LIMIT);
        came.unwrap_or_else(|_| panic!("frame {number} did not come within {LIMIT:?}"))
    };
    let times = (0..frames).map(next).collect();
    worker.stop().unwrap();
    (start, times)
}

#[test]
fn delayed_frames_come_when_they_are_due() {
    let delay = Duration::from_millis(20);
    let delayed = Impairment { delay: delay.as_nanos() as u64, ..Impairment::default() };
    let (start, times) = arrivals(300, None, delayed);
    assert!(times.iter().all(|time| *time >= start + delay));
}

#[test]
fn frames_that_are_not_delayed_come_at_once() {
    let corrupt = Impairment { corruption: 100.0, ..Impairment::default() };
    assert_eq!(arrivals(300, None, corrupt).1.len(), 300);
}

#[test]
fn a_source_sends_at_its_rate() {
    let (_, times) = arrivals(50, Some(1000), Impairment::default());
    let took = times[49] - times[0];
    // Late ones are made up for, so that the first may have been late by all of that.
    let expected = Duration::from_millis(49) - Duration::from_nanos(source::CATCH_UP);
    assert!(took >= expected, "{took:?}");
}
