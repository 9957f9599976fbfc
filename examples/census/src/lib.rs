//! An app of one's own: a census of the frames that go by, by what they carry.
//!
//! It has two sides. What comes in by the one goes out by the other, as it came. See `main.rs` for how it is linked to
//! others and run, and the documentation of [`engine::app`] for the life of an app and for what else one may do.

use std::any::Any;

use engine::{App, Burst, Counters, Fault, Numbers, Outputs, Selection};
use wire::ethernet::{EtherType, Ethernet};

/// How a census is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Kinds that are counted each for itself; there is no allocation while frames pass, so there is a limit.
    pub kinds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kinds: 16 }
    }
}

/// Frames that carry the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub frames: u64,
    /// How many a second there were of late.
    pub rate: u64,
    /// How many there were at the last tick.
    before: u64,
}

impl Tally {
    /// So many nanoseconds have passed since this was done last, if it was.
    fn tick(&mut self, passed: Option<u64>) {
        let grown = u128::from(self.frames - self.before);
        let rate = passed.map(|passed| grown * 1_000_000_000 / u128::from(passed.max(1)));
        self.rate = rate.unwrap_or(0) as u64;
        self.before = self.frames;
    }
}

/// The app, or its part on one of several workers.
pub struct Census {
    kinds: Vec<(EtherType, Tally)>,
    limit: usize,
    others: Tally,
    /// When it ticked last.
    ticked: Option<u64>,
    counters: Counters,
}

impl Census {
    /// A census that has counted nothing.
    pub fn new(settings: &Settings) -> Self {
        let kinds = Vec::with_capacity(settings.kinds);
        let (others, counters) = (Tally::default(), Counters::default());
        Self { kinds, limit: settings.kinds, others, ticked: None, counters }
    }

    /// How many frames of each kind went by: the first that were seen, in that order.
    pub fn kinds(&self) -> &[(EtherType, Tally)] {
        &self.kinds
    }

    /// Frames of further kinds, and those that have no whole header.
    pub fn others(&self) -> Tally {
        self.others
    }

    fn tally(&mut self, kind: Option<EtherType>) -> &mut Tally {
        let known = self.kinds.iter().position(|(known, _)| Some(*known) == kind);
        let place = match (known, kind) {
            (Some(place), _) => place,
            (None, Some(kind)) if self.kinds.len() < self.limit => {
                self.kinds.push((kind, Tally::default()));
                self.kinds.len() - 1
            }
            _ => return &mut self.others,
        };
        &mut self.kinds[place].1
    }
}

impl App for Census {
    /// Frames come from other apps and go to others: nobody has to ask this one for frames.
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            // The first bytes of the frame, in private memory: nobody can change them any more.
            let kind = Ethernet::parse(burst.head(index)).map(|header| header.ethertype);
            self.tally(kind).frames += 1;
        }
        // All of them go on, to the other side.
        outputs.push(1 - input.min(1), burst, selection);
    }

    /// About once a second, and not exactly: the time says how long it was.
    fn tick(&mut self, now: u64) {
        let passed = self.ticked.replace(now).map(|before| now - before);
        let tallies = self.kinds.iter_mut().map(|(_, tally)| tally);
        tallies.chain([&mut self.others]).for_each(|tally| tally.tick(passed));
    }

    /// Those on the one side are to those on the other as if there were no census between them.
    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        Some(1 - input.min(1))
    }

    /// Takes [`Settings`]. What was counted stays; kinds beyond the new limit are counted with the others from now on.
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let Settings { kinds } = engine::settings(settings)?;
        if *kinds == 0 {
            return Err("a census of no kinds tells nothing apart: give 1 at least".into());
        }
        // Here it may allocate.
        self.kinds.reserve(kinds.saturating_sub(self.kinds.len()));
        for (_, tally) in self.kinds.drain(self.kinds.len().min(*kinds)..) {
            self.others.frames += tally.frames;
            self.others.before += tally.before;
        }
        self.limit = *kinds;
        Ok(())
    }

    /// This app drops nothing, so there is nothing to count here; its links count what goes by them.
    fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What `ringway stats` would show, of all workers together.
    fn report(&self, _: u64, numbers: &mut Numbers) {
        let kinds = self.kinds.iter().map(|(kind, tally)| (kind.to_string(), tally));
        for (kind, tally) in kinds.chain([("others".to_owned(), &self.others)]) {
            numbers.own(format!("of {kind}"), "frames", tally.frames);
            numbers.own(format!("of {kind}"), "frame/s", tally.rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use apps::sink::Sink;
    use apps::source::{self, Source};
    use engine::{AppId, Graph};
    use wire::ethernet::MacAddress;

    use super::*;

    /// Sends a frame of each of these kinds, and returns what the census counted.
    fn census(kinds: impl IntoIterator<Item = EtherType>) -> (Vec<(EtherType, u64)>, u64) {
        let (mut graph, census) = run(kinds);
        let census: &mut Census = graph.get(census).unwrap();
        let kinds = census.kinds().iter().map(|(kind, tally)| (*kind, tally.frames));
        (kinds.collect(), census.others().frames)
    }

    fn run(kinds: impl IntoIterator<Item = EtherType>) -> (Graph, AppId) {
        let mut graph = Graph::new();
        let census = graph.add("census", Census::new(&Settings::default()));
        let sink = graph.add("sink", Sink::new());
        graph.link((census, 1), (sink, 0)).unwrap();
        let mut sent = 0;
        for ethertype in kinds {
            let settings = source::Settings {
                destination: MacAddress::BROADCAST,
                source: MacAddress([2, 0, 0, 0, 0, 1]),
                ethertype,
                size: 60,
                rate: None,
                frames: Some(1),
            };
            let source = graph.add("source", Source::new(settings).unwrap());
            graph.link((source, 0), (census, 0)).unwrap();
            sent += 1;
        }
        while graph.breathe(0, |_| panic!("an app failed")) {}
        assert_eq!(graph.counters(sink).sent.frames, sent, "all of them go on");
        (graph, census)
    }

    fn said(graph: &mut Graph, census: AppId) -> Vec<String> {
        let numbers = graph.numbers(census, 0);
        numbers.iter().map(|n| format!("{} {} {}", n.value, n.unit, n.name)).collect()
    }

    #[test]
    fn frames_are_counted_by_kind() {
        let (kinds, others) = census([EtherType::IPV4, EtherType::ARP, EtherType::IPV4]);
        // In whichever order the apps had their turns.
        assert!(kinds.contains(&(EtherType::IPV4, 2)), "{kinds:?}");
        assert!(kinds.contains(&(EtherType::ARP, 1)), "{kinds:?}");
        assert_eq!((kinds.len(), others), (2, 0));
    }

    #[test]
    fn kinds_beyond_the_limit_are_counted_together() {
        let (kinds, others) = census((0..20).map(|kind| EtherType(0x9000 + kind)));
        assert_eq!((kinds.len(), others), (Settings::default().kinds, 4));
    }

    #[test]
    fn it_says_how_many_frames_there_are_a_second() {
        let mut graph = Graph::new();
        let id = graph.add("census", Census::new(&Settings::default()));
        let second = 1_000_000_000;
        for (seconds, frames, rate) in [(5, 100, 0), (8, 6, 2), (9, 0, 0)] {
            let census: &mut Census = graph.get(id).unwrap();
            census.tally(Some(EtherType::IPV4)).frames += frames;
            graph.breathe(seconds * second, |_| panic!("an app failed"));
            assert_eq!(said(&mut graph, id)[1], format!("{rate} frame/s of 0x0800"));
        }
        assert_eq!(said(&mut graph, id)[0], "106 frames of 0x0800");
    }

    #[test]
    fn it_goes_by_other_settings() {
        let (mut graph, census) = run((0..3).map(|kind| EtherType(0x9000 + kind)));
        graph.reconfigure(census, &Settings { kinds: 1 }).unwrap();
        assert_eq!(said(&mut graph, census)[2], "2 frames of others");
        let error = graph.reconfigure(census, &Settings { kinds: 0 }).unwrap_err();
        assert_eq!(error.to_string(), "a census of no kinds tells nothing apart: give 1 at least");
        assert!(graph.reconfigure(census, &1usize).is_err(), "those are no settings");
    }

    #[test]
    fn each_side_is_to_the_other_what_is_behind_it() {
        let mut census = Census::new(&Settings::default());
        assert_eq!([0, 1].map(|input| census.link(input, false)), [Some(1), Some(0)]);
    }
}
