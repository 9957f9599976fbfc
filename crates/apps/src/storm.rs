//! Storm control: a port sends no more frames to groups than it may.
//!
//! Broadcast and multicast each have a limit of their own, in frames/s, for what comes *from* the port; what
//! is beyond it is dropped. Everything else passes, and so does what is sent to the port.
//!
//! Frames to a single station that nobody knows are flooded as well, but which ones those are only the bridge
//! knows: they are not seen here.
//!
//! A frame that its receiver holds will come again, and counts when it is delivered: see [`crate::police`].

use std::any::Any;

use engine::{App, Burst, Counters, DropReason, Fault, Numbers, Outputs, Selection};
use wire::ethernet::Addresses;

use crate::bucket::{Bucket, Limit, LimitError};
use crate::sides::{PORT, opposite, passed_on};

/// How many frames to groups a port may send. A limit that is not there limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Frames to all stations: how many a second, and how many at once.
    pub broadcast: Option<Limit>,
    /// Frames to other groups: how many a second, and how many at once.
    pub multicast: Option<Limit>,
}

/// The app, or its part on one of several workers.
pub struct Storm {
    broadcast: Bucket,
    multicast: Bucket,
    counters: Counters,
}

impl Storm {
    /// An app that has let nothing pass yet.
    pub fn new(settings: &Settings) -> Result<Self, LimitError> {
        let Settings { broadcast, multicast } = settings;
        Ok(Self {
            broadcast: Bucket::new(*broadcast)?,
            multicast: Bucket::new(*multicast)?,
            counters: Counters::default(),
        })
    }

    /// A part for another worker: the limits are for all parts together.
    pub fn part(&self) -> Self {
        let (broadcast, multicast) = (self.broadcast.part(), self.multicast.part());
        Self { broadcast, multicast, counters: Counters::default() }
    }

    /// Makes this part go by other limits; all parts are to be. See [`Bucket::set`]. With an error nothing
    /// has changed.
    fn set(&mut self, settings: &Settings) -> Result<(), LimitError> {
        let limits = [settings.broadcast, settings.multicast];
        for limit in limits.into_iter().flatten() {
            limit.check()?;
        }
        let [broadcast, multicast] = limits;
        self.broadcast.set(broadcast)?;
        self.multicast.set(multicast)
    }
}

/// Which limit a frame is under.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// None.
    Unicast,
    Broadcast,
    Multicast,
}

impl Kind {
    #[inline]
    fn of(head: &[u8]) -> Self {
        match Addresses::parse(head).map(|addresses| addresses.destination) {
            Some(destination) if destination.is_broadcast() => Self::Broadcast,
            Some(destination) if destination.is_multicast() => Self::Multicast,
            _ => Self::Unicast,
        }
    }
}

impl App for Storm {
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
        let kind = |burst: &Burst<'_>, index| Kind::of(burst.head(index));
        let output = opposite(input);
        let is_calm = || selection.iter().all(|index| kind(burst, index) == Kind::Unicast);
        if input != PORT || is_calm() {
            return outputs.push(output, burst, selection);
        }
        let Self { broadcast, multicast, counters } = self;
        let mut levels = [broadcast.open(burst.now()), multicast.open(burst.now())];
        let mut passing = Selection::default();
        for index in selection.iter() {
            let [broadcast, multicast] = &mut levels;
            let level = match kind(burst, index) {
                Kind::Unicast => None,
                Kind::Broadcast => Some(broadcast),
                Kind::Multicast => Some(multicast),
            };
            if level.is_none_or(|level| level.take_if_there(1)) {
                passing.push(index);
            } else {
                counters.drop(DropReason::Storm);
            }
        }
        outputs.push(output, burst, &passing);
        let gone = |of: Kind| {
            let is_gone = |index: &usize| kind(burst, *index) == of && !burst.is_held(*index);
            passing.iter().filter(is_gone).count() as u64
        };
        broadcast.settle(gone(Kind::Broadcast));
        multicast.settle(gone(Kind::Multicast));
    }

    fn link(&mut self, input: usize, _: bool) -> Option<usize> {
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        Ok(self.set(engine::settings(settings)?)?)
    }

    fn report(&self, now: u64, numbers: &mut Numbers) {
        for (unit, bucket) in [("broadcasts", &self.broadcast), ("multicasts", &self.multicast)] {
            if let Some(left) = bucket.left(now) {
                numbers.shared("left", unit, left);
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sides::NETWORK;
    use crate::testing::{Net, frame, host};
    use wire::ethernet::MacAddress;

    const SECOND: u64 = 1_000_000_000;
    const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 0xfb]);

    fn limits(broadcast: u64, multicast: u64) -> Settings {
        let limit = |burst| Some(Limit { rate: 10, burst });
        Settings { broadcast: limit(broadcast), multicast: limit(multicast) }
    }

    fn to(destination: MacAddress, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|number| frame(destination, number as u8, 200)).collect()
    }

    /// Frames of all kinds, in turn.
    fn mixed() -> Vec<Vec<u8>> {
        let kinds = [to(MacAddress::BROADCAST, 8), to(host(2), 8), to(GROUP, 8)];
        (0..24).map(|at| kinds[at % 3][at / 3].clone()).collect()
    }

    fn count(frames: &[Vec<u8>]) -> [usize; 3] {
        [Kind::Broadcast, Kind::Unicast, Kind::Multicast]
            .map(|kind| frames.iter().filter(|frame| Kind::of(frame) == kind).count())
    }

    #[test]
    fn each_kind_has_its_own_limit_and_single_stations_have_none() {
        let mut net = Net::new(Storm::new(&limits(3, 5)).unwrap(), 2);
        net.send(PORT, mixed());
        let passed = net.received(NETWORK);
        assert_eq!(count(&passed), [3, 8, 5]);
        // The first of each, in order.
        assert_eq!(passed[..9], mixed()[..9]);
        assert_eq!(net.drops(DropReason::Storm), 5 + 3);
        net.now = SECOND / 5;
        net.send(PORT, mixed());
        assert_eq!(count(&net.received(NETWORK)), [2, 8, 2]);
    }

    #[test]
    fn one_limit_is_enough_and_none_is_fine() {
        for (settings, expected) in [
            (Settings { multicast: None, ..limits(3, 5) }, [3, 8, 8]),
            (Settings { broadcast: None, ..limits(3, 5) }, [8, 8, 5]),
            (Settings::default(), [8, 8, 8]),
        ] {
            let mut net = Net::new(Storm::new(&settings).unwrap(), 2);
            net.send(PORT, mixed());
            assert_eq!(count(&net.received(NETWORK)), expected);
        }
    }

    #[test]
    fn what_is_sent_to_the_port_passes() {
        let mut net = Net::new(Storm::new(&limits(1, 1)).unwrap(), 2);
        net.send(NETWORK, mixed());
        assert_eq!(net.received(PORT), mixed());
    }

    #[test]
    fn what_is_held_counts_when_it_is_delivered() {
        let mut net = Net::new(Storm::new(&limits(4, 4)).unwrap(), 2);
        net.station(NETWORK).room = Some(1);
        net.send(PORT, to(MacAddress::BROADCAST, 3));
        for _ in 0..10 {
            net.breathe();
        }
        net.station(NETWORK).room = None;
        net.breathe();
        assert_eq!(net.received(NETWORK).len(), 3);
        net.send(PORT, to(MacAddress::BROADCAST, 3));
        assert_eq!(net.received(NETWORK).len(), 1);
    }

    #[test]
    fn parts_share_their_limits_and_go_by_new_ones() {
        let mut storm = Storm::new(&Settings::default()).unwrap();
        let part = storm.part();
        storm.set(&limits(3, 5)).unwrap();
        let (mut one, mut two) = (Net::new(storm, 2), Net::new(part, 2));
        two.reconfigure(&limits(3, 5)).unwrap();
        one.send(PORT, to(MacAddress::BROADCAST, 2));
        two.send(PORT, to(MacAddress::BROADCAST, 2));
        assert_eq!((one.received(NETWORK).len(), two.received(NETWORK).len()), (2, 1));
        let left = [("left".to_owned(), 0), ("left".to_owned(), 5)];
        assert_eq!((one.numbers(), two.numbers()), (left.to_vec(), left.to_vec()));
        // A limit that cannot be leaves both as they are.
        let wrong = Settings { broadcast: None, multicast: Some(Limit { rate: 0, burst: 1 }) };
        assert_eq!(one.reconfigure(&wrong), Err(LimitError::NoRate.to_string()));
        assert_eq!(Storm::new(&wrong).err(), Some(LimitError::NoRate));
        one.send(PORT, to(MacAddress::BROADCAST, 1));
        assert_eq!(one.received(NETWORK).len(), 0);
    }
}
