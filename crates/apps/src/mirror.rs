//! A mirror: copies of what a port sends, or gets, or both, go out by output [`MIRROR`].
//!
//! Between the port and the rest it is as if there were no mirror: whatever becomes of the copies holds up,
//! drops and changes nothing else. For that, frames go to their receiver first, as they are; it may hold
//! them, and those come again and are not copied before they do. Those that were not held are then said to have
//! several receivers ([`Burst::replicate`]), and go to the mirror, which can hold none of them: a mirror that is full
//! loses its copy and counts it. So each frame is copied once, and also one that its receiver dropped: a mirror
//! shows what was on the way to a receiver.
//!
//! A copy is the frame as it came by here. Apps that change a frame further on change it back before they
//! return, as each has to that is not a frame's only receiver.
//!
//! What comes in by input [`MIRROR`] is dropped: a mirror is not there to send.

use std::any::Any;

use engine::{App, Burst, Counters, DropReason, Fault, Outputs, Selection};

use crate::sides::{NETWORK, PORT, opposite, passed_on};

/// The output that copies leave by.
pub const MIRROR: usize = 2;

/// What is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What the port sends.
    pub from_port: bool,
    /// What is sent to the port.
    pub to_port: bool,
}

/// The app, or its part on one of several workers.
pub struct Mirror {
    settings: Settings,
    counters: Counters,
}

impl Mirror {
    /// A mirror of these directions.
    pub fn new(settings: Settings) -> Self {
        Self { settings, counters: Counters::default() }
    }

    /// A part for another worker.
    pub fn part(&self) -> Self {
        Self::new(self.settings.clone())
    }
}

impl App for Mirror {
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
        let is_copied = match input {
            PORT => self.settings.from_port,
            NETWORK => self.settings.to_port,
            _ => {
                self.counters[DropReason::FromMirror] += selection.len() as u64;
                return;
            }
        };
        outputs.push(opposite(input), burst, selection);
        if !is_copied {
            return;
        }
        let mut copied = Selection::default();
        for index in selection.iter().filter(|index| !burst.is_held(*index)) {
            copied.push(index);
        }
        copied.iter().for_each(|index| burst.replicate(index));
        outputs.push(MIRROR, burst, &copied);
    }

    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        self.settings.clone_from(engine::settings(settings)?);
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

    fn net(from_port: bool, to_port: bool) -> Net {
        Net::new(Mirror::new(Settings { from_port, to_port }).part(), 3)
    }

    #[test]
    fn each_direction_is_copied_if_it_is_to_be() {
        for (from_port, to_port) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut net = net(from_port, to_port);
            for (from, to, is_copied) in [(PORT, NETWORK, from_port), (NETWORK, PORT, to_port)] {
                net.send(from, frames());
                assert_eq!(net.received(to), frames());
                assert_eq!(net.received(MIRROR), if is_copied { frames() } else { vec![] });
                assert!(net.received(from).is_empty());
            }
        }
    }

    #[test]
    fn a_mirror_that_is_full_loses_its_copies_alone() {
        let mut net = net(true, true);
        net.station(MIRROR).room = Some(10);
        net.send(PORT, frames());
        assert_eq!(net.received(NETWORK), frames());
        assert_eq!(net.received(MIRROR), frames()[..10]);
        assert_eq!(net.station(MIRROR).counters[DropReason::ReceiverFull], 90);
        assert!(net.station(PORT).to_send.is_empty());
    }

    /// What is held comes again; its copy is made once.
    #[test]
    fn a_receiver_that_is_full_holds_as_without_a_mirror_and_each_frame_is_copied_once() {
        let mut net = net(true, false);
        net.station(NETWORK).room = Some(10);
        net.send(PORT, frames());
        assert_eq!(net.station(PORT).to_send.len(), 90, "nothing was lost");
        for _ in 0..5 {
            net.breathe();
        }
        assert_eq!(net.received(MIRROR), frames()[..10]);
        net.station(NETWORK).room = None;
        net.breathe();
        net.breathe();
        assert_eq!(net.received(NETWORK), frames());
        assert_eq!(net.received(MIRROR), frames()[10..]);
    }

    #[test]
    fn both_full_at_once() {
        let mut net = net(true, false);
        net.station(NETWORK).room = Some(0);
        net.station(MIRROR).room = Some(0);
        net.send(PORT, frames());
        assert_eq!(net.station(PORT).to_send.len(), 100);
        assert_eq!(net.station(MIRROR).counters[DropReason::ReceiverFull], 0);
    }

    #[test]
    fn a_mirror_does_not_send_and_its_directions_can_be_changed() {
        let mut net = net(true, true);
        net.send(MIRROR, frames());
        assert!(net.received(PORT).is_empty() && net.received(NETWORK).is_empty());
        assert_eq!(net.drops(DropReason::FromMirror), 100);
        net.reconfigure(&Settings::default()).unwrap();
        net.send(PORT, frames());
        assert!(net.received(MIRROR).is_empty());
        assert_eq!(net.received(NETWORK), frames());
    }

    /// Without a link to a mirror, copies are counted, and nothing else changes.
    #[test]
    fn a_mirror_that_leads_nowhere() {
        let mut net = Net::new(Mirror::new(Settings { from_port: true, to_port: true }), 2);
        net.send(PORT, frames());
        assert_eq!(net.received(NETWORK), frames());
        assert_eq!(net.drops(DropReason::NoDestination), 100);
    }
}
