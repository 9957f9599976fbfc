//! An app of one's own: a census of the frames that go by, by what they carry.
//!
//! It has two sides. What comes in by the one goes out by the other, as it came. See `main.rs` for how it is linked to
//! others and run, and the documentation of [`engine::App`] for what else an app may do.

use engine::{App, Burst, Counters, Outputs, Selection};
use wire::ethernet::{EtherType, Ethernet};

/// Kinds that are counted each for itself; there is no allocation while frames pass, so there is a limit.
const KINDS: usize = 16;

/// The app, or its part on one of several workers.
#[derive(Default)]
pub struct Census {
    kinds: Vec<(EtherType, u64)>,
    others: u64,
    counters: Counters,
}

impl Census {
    /// A census that has counted nothing.
    pub fn new() -> Self {
        Self { kinds: Vec::with_capacity(KINDS), ..Self::default() }
    }

    /// How many frames of each kind went by: the first that were seen, in that order.
    pub fn kinds(&self) -> &[(EtherType, u64)] {
        &self.kinds
    }

    /// Frames of further kinds, and those that have no whole header.
    pub fn others(&self) -> u64 {
        self.others
    }

    fn count(&mut self, kind: Option<EtherType>) {
        let Some(kind) = kind else {
            self.others += 1;
            return;
        };
        match self.kinds.iter().position(|(known, _)| *known == kind) {
            Some(at) => self.kinds[at].1 += 1,
            None if self.kinds.len() < KINDS => self.kinds.push((kind, 1)),
            None => self.others += 1,
        }
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
            self.count(kind);
        }
        // All of them go on, to the other side.
        outputs.push(1 - input.min(1), burst, selection);
    }

    /// This app drops nothing, so there is nothing to count here; its links count what goes by them.
    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use apps::sink::Sink;
    use apps::source::{Settings, Source};
    use engine::Graph;
    use wire::ethernet::MacAddress;

    use super::*;

    /// Sends a frame of each of these kinds, and returns what the census counted.
    fn census(kinds: impl IntoIterator<Item = EtherType>) -> (Vec<(EtherType, u64)>, u64) {
        let mut graph = Graph::new();
        let census = graph.add("census", Census::new());
        let sink = graph.add("sink", Sink::new());
        graph.link((census, 1), (sink, 0)).unwrap();
        let mut sent = 0;
        for ethertype in kinds {
            let settings = Settings {
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
        let census: &mut Census = graph.get(census).unwrap();
        (census.kinds().to_vec(), census.others())
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
        assert_eq!((kinds.len(), others), (KINDS, 4));
    }
}
