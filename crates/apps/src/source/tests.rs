use engine::{AppId, Graph};
use wire::virtio::Offload;

use super::*;
use crate::testing::Station;

const MILLISECOND: u64 = 1_000_000;

fn settings() -> Settings {
    Settings {
        destination: MacAddress([2, 0, 0, 0, 0, 2]),
        source: MacAddress([2, 0, 0, 0, 0, 1]),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        size: 200,
        rate: None,
        frames: None,
    }
}

/// A source, and a station that its frames go to.
struct Lab {
    graph: Graph,
    source: AppId,
    station: AppId,
}

impl Lab {
    fn new(settings: Settings) -> Self {
        let mut graph = Graph::new();
        let source = graph.add("source", Source::new(settings).unwrap());
        let station = graph.add("station", Station::default());
        graph.link((source, 0), (station, 0)).unwrap();
        Self { graph, source, station }
    }

    fn station(&mut self) -> &mut Station {
        self.graph.get(self.station).unwrap()
    }

    /// Breathes once, and returns how many frames came and whether there was anything to do.
    fn breathe(&mut self, now: u64) -> (usize, bool) {
        let was_busy = self.graph.breathe(now, |_| panic!("an app failed"));
        (std::mem::take(&mut self.station().received).len(), was_busy)
    }

    fn deadline(&mut self, now: u64) -> Option<u64> {
        self.graph.get::<Source>(self.source).unwrap().deadline(now)
    }
}

#[test]
fn frames_are_what_the_settings_say() {
    for size in [14, 60, 128, 129, 1514, 9000] {
        let mut lab = Lab::new(Settings { size, frames: Some(1), ..settings() });
        lab.graph.breathe(0, |_| panic!("an app failed"));
        let mut expected = vec![0; size];
        expected[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        assert_eq!(lab.station().received, [expected]);
    }
}

#[test]
fn without_a_rate_it_sends_all_it_can_until_the_end() {
    let mut lab = Lab::new(Settings { frames: Some(150), ..settings() });
    let counts = [64, 64, 22, 0].map(|expected| (expected, expected > 0));
    for expected in counts {
        assert_eq!(lab.breathe(0), expected);
    }
    assert_eq!(lab.deadline(0), None);
    // Large ones leave room for others.
    let mut lab = Lab::new(Settings { size: MAX_SIZE, ..settings() });
    assert_eq!(lab.breathe(0), (7, true));
}

#[test]
fn a_rate_is_kept_to_the_frame() {
    let rate = 7_777;
    let mut lab = Lab::new(Settings { rate: Some(rate), ..settings() });
    let (mut sent, mut now) = (0, 5);
    for step in 0..20_000 {
        // Twenty seconds in odd steps, none of which is late.
        now += 1_000_003 + step % 7;
        sent += lab.breathe(now).0 as u64;
    }
    let first = 5 + 1_000_003;
    let due = u128::from(now - first) * u128::from(rate) / 1_000_000_000 + 1;
    assert_eq!(u128::from(sent), due);
}

#[test]
fn the_worker_may_sleep_until_the_next_is_due() {
    let mut lab = Lab::new(Settings { rate: Some(1000), frames: Some(3), ..settings() });
    let mut now = 10 * MILLISECOND;
    assert_eq!(lab.deadline(now), None, "it has not begun");
    for number in 0..3 {
        assert_eq!(lab.breathe(now), (1, true));
        assert_eq!(lab.breathe(now), (0, false));
        let due = 10 * MILLISECOND + (number + 1) * MILLISECOND;
        assert_eq!(lab.deadline(now), (number < 2).then_some(due));
        assert_eq!(lab.breathe(due - 1), (0, false));
        now = due;
    }
    assert_eq!(lab.breathe(now), (0, false));
}

#[test]
fn a_source_that_is_late_makes_up_for_a_little() {
    let mut lab = Lab::new(Settings { rate: Some(100_000), ..settings() });
    assert_eq!(lab.breathe(0).0, 1);
    // Half of what may be made up for, in bursts.
    let late = CATCH_UP / 2;
    let sent: usize = (0..20).map(|_| lab.breathe(late).0).sum();
    assert_eq!(sent, 500);
    let late = late + CATCH_UP + MILLISECOND;
    let sent: usize = (0..20).map(|_| lab.breathe(late).0).sum();
    assert_eq!(sent, 1, "it begins anew");
    assert_eq!(lab.breathe(late + MILLISECOND).0, 64);
}

#[test]
fn no_more_are_made_than_the_receiver_takes() {
    let mut lab = Lab::new(Settings { frames: Some(100), ..settings() });
    lab.station().room = Some(10);
    assert_eq!(lab.breathe(0), (10, true));
    // Ten made way.
    assert_eq!(lab.breathe(0), (0, true));
    assert_eq!(lab.breathe(0), (0, false), "the receiver is full, and nothing can be done");
    let counters = lab.graph.counters(lab.source);
    assert_eq!(counters.received.frames, 74);
    lab.station().room = None;
    let sent: usize = (0..4).map(|_| lab.breathe(0).0).sum();
    assert_eq!(sent, 90);
    assert_eq!(lab.graph.counters(lab.source).received.frames, 100);
}

/// By other settings, or for good. Each frame that was made was sent or dropped.
#[test]
fn what_is_held_when_it_ends_is_counted() {
    let mut lab = Lab::new(settings());
    lab.station().room = Some(10);
    lab.breathe(0);
    let refused = Settings { size: 13, ..settings() };
    assert!(lab.graph.reconfigure(lab.source, &refused).is_err());
    assert_eq!(lab.graph.counters(lab.source)[DropReason::Stopped], 0, "it goes on");
    let other = Settings { size: 300, ..settings() };
    lab.graph.reconfigure(lab.source, &other).unwrap();
    assert_eq!(lab.graph.counters(lab.source)[DropReason::Stopped], 54);
    lab.station().room = Some(7);
    lab.breathe(0);
    lab.graph.stop_all();
    let [source, station] = [lab.source, lab.station].map(|app| lab.graph.counters(app));
    assert_eq!(source[DropReason::Stopped], 54 + 57);
    assert_eq!(source.received.frames, station.sent.frames + source[DropReason::Stopped]);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    for (wrong, error) in [
        (Settings { size: 13, ..settings() }, SourceError::Size(13)),
        (Settings { size: MAX_SIZE + 1, ..settings() }, SourceError::Size(MAX_SIZE + 1)),
        (Settings { rate: Some(0), ..settings() }, SourceError::NoRate),
    ] {
        assert_eq!(Source::new(wrong.clone()).err(), Some(error));
        let mut lab = Lab::new(settings());
        let source: &mut Source = lab.graph.get(lab.source).unwrap();
        assert_eq!(source.set(wrong), Err(error));
        assert_eq!(lab.breathe(0).0, 64, "it goes on as before");
    }
    assert_eq!(SourceError::Size(13).to_string(), "frames of 13 bytes: give 14 to 65549");
}

#[test]
fn one_part_sends_and_all_take_nothing() {
    let mut lab = Lab::new(Settings { frames: Some(5), ..settings() });
    let source: &mut Source = lab.graph.get(lab.source).unwrap();
    let mut part = source.part();
    part.set(settings()).unwrap();
    let part = lab.graph.add("part", part);
    let station = lab.station;
    lab.graph.link((part, 0), (station, 0)).unwrap();
    lab.graph.link((station, 0), (part, 0)).unwrap();
    assert_eq!(lab.breathe(0).0, 5);
    lab.station().to_send.push_back((vec![0; 60], Offload::NONE));
    assert_eq!(lab.breathe(0).0, 0);
    assert_eq!(lab.graph.counters(part)[DropReason::SendOnly], 1);
    // Anew, with another size.
    let said = |lab: &mut Lab, app| {
        let numbers = lab.graph.numbers(app, 0);
        numbers.iter().map(|number| (number.name.clone(), number.value)).collect::<Vec<_>>()
    };
    let numbers =
        |held, left| [("held", held), ("left", left)].map(|(name, value)| (name.to_owned(), value));
    let new = Settings { size: 64, frames: Some(70), ..settings() };
    lab.graph.reconfigure(lab.source, &new).unwrap();
    let source = lab.source;
    assert_eq!(said(&mut lab, source), numbers(0, 70));
    lab.station().room = Some(4);
    assert_eq!(lab.breathe(0).0, 4);
    assert_eq!(said(&mut lab, source), numbers(60, 6));
    assert_eq!(said(&mut lab, part), []);
}
