//! A tee: what comes in goes out by every output.
//!
//! No frame moves: each output is given the same burst. A frame that has several receivers cannot be held
//! for one of them, or the others would get it twice; so a receiver that is full loses its copy. To copy what a port
//! sends and gets without that, use a [`mirror`](crate::mirror).

use std::any::Any;

use engine::{App, Burst, Counters, DropReason, Fault, Outputs, Selection};

/// How many outputs there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Frames go out by outputs 0 to `outputs` - 1.
    pub outputs: usize,
}

/// The app, or its part on one of several workers.
pub struct Tee {
    outputs: usize,
    counters: Counters,
}

impl Tee {
    /// A tee whose outputs are 0 to `outputs` - 1. Whatever input a frame comes by, it goes out by all of them.
    pub fn new(outputs: usize) -> Self {
        Self { outputs, counters: Counters::default() }
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self::new(self.outputs)
    }
}

impl App for Tee {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        if self.outputs == 0 {
            self.counters[DropReason::NoDestination] += selection.len() as u64;
        }
        if self.outputs > 1 {
            selection.iter().for_each(|index| burst.replicate(index));
        }
        for output in 0..self.outputs {
            outputs.push(output, burst, selection);
        }
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let Settings { outputs } = engine::settings(settings)?;
        self.outputs = *outputs;
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Net, frame, host};

    fn frames() -> Vec<Vec<u8>> {
        (0..100).map(|number| frame(host(2), number, 300)).collect()
    }

    #[test]
    fn every_output_has_every_frame() {
        let mut net = Net::new(Tee::new(3).part(), 3);
        net.send(0, frames());
        for output in 0..3 {
            assert_eq!(net.received(output), frames());
        }
    }

    #[test]
    fn a_full_receiver_loses_its_own() {
        let mut net = Net::new(Tee::new(3), 3);
        net.station(1).room = Some(30);
        net.send(0, frames());
        assert_eq!(net.received(2), frames());
        assert_eq!(net.received(1), frames()[..30]);
        assert_eq!(net.station(1).counters[DropReason::ReceiverFull], 70);
        assert!(net.station(0).to_send.is_empty(), "one is held for the others as well");
    }

    #[test]
    fn the_only_receiver_may_hold() {
        let mut net = Net::new(Tee::new(0), 2);
        net.send(0, frames());
        assert_eq!(net.drops(DropReason::NoDestination), 100);
        net.reconfigure(&Settings { outputs: 1 }).unwrap();
        net.station(0).room = Some(30);
        net.send(1, frames());
        assert_eq!(net.station(1).to_send.len(), 70);
        net.station(0).room = None;
        net.breathe();
        net.breathe();
        assert_eq!(net.received(0), frames());
    }
}
