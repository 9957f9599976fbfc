//! A sink: counts what comes, as sent, and that is the end of it.

use engine::{App, Burst, Counters, Outputs, Selection};

/// The app, or its part on one of several workers.
#[derive(Default)]
pub struct Sink {
    counters: Counters,
}

impl Sink {
    /// A sink that has counted nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self::new()
    }
}

impl App for Sink {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            self.counters.sent.count(burst.frame(index).len);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use engine::Traffic;

    use super::*;
    use crate::testing::{Net, frame, host};

    #[test]
    fn everything_is_counted_and_nothing_comes_out() {
        let mut net = Net::new(Sink::new().part(), 2);
        net.send(0, (0..70).map(|mark| frame(host(2), mark, 100)));
        net.send(1, [frame(host(2), 0, 1000)]);
        let counters = net.graph.counters(net.app);
        assert_eq!(counters.sent, Traffic { frames: 71, bytes: 8000 });
        assert_eq!(counters.drops().count(), 0);
        assert!(net.received(0).is_empty() && net.received(1).is_empty());
    }
}
