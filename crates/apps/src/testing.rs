//! A network to test one app in: a station at each of its sides.

use std::any::Any;
use std::collections::VecDeque;
use std::mem::take;

use engine::{
    App, AppId, BURST, Burst, Counters, DropReason, Graph, Lease, Outcome, Outcomes, Outputs,
    Selection,
};
use wire::ethernet::{EtherType, Ethernet, MacAddress};
use wire::virtio::Offload;

/// A frame, and what is left to do to it.
pub(crate) type Sent = (Vec<u8>, Offload);

/// Sends frames, again those that were held, and keeps what it gets.
#[derive(Default)]
pub(crate) struct Station {
    pub(crate) to_send: VecDeque<Sent>,
    sent: Vec<Sent>,
    pub(crate) received: Vec<Vec<u8>>,
    /// Frames that it takes before it is full, if there is an end to it.
    pub(crate) room: Option<usize>,
    pub(crate) is_down: bool,
    /// What it was told of what leads to it.
    pub(crate) links: Vec<bool>,
    pub(crate) counters: Counters,
}

impl App for Station {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let count = self.to_send.len().min(BURST);
        self.sent = self.to_send.drain(..count).collect();
        let all: Vec<u8> = self.sent.iter().flat_map(|(frame, _)| frame).copied().collect();
        let mut bytes = lease.private(all.into());
        for (frame, offload) in &self.sent {
            let (frame, rest) = bytes.split_at(frame.len());
            bytes = rest;
            let start = burst.segments().len();
            // In pieces, so that the body is more than one.
            burst.segments().extend(frame.chunks(150).map(memory::ReadSlice::from));
            let end = burst.segments().len();
            burst.push::<()>(start..end, 0, |_, _| Ok(*offload)).unwrap();
        }
        burst.limit_held(BURST);
        !self.sent.is_empty()
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, _: Lease) {
        for (index, frame) in self.sent.drain(..).enumerate().rev() {
            if outcomes.get(index) == Outcome::Held {
                self.to_send.push_front(frame);
            }
        }
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            if self.room == Some(0) {
                if !burst.hold(index) {
                    self.counters.drop(DropReason::ReceiverFull);
                }
                continue;
            }
            self.room = self.room.map(|room| room - 1);
            let frame = burst.frame(index);
            let mut bytes = frame.head.to_vec();
            for segment in frame.body {
                let at = bytes.len();
                bytes.resize(at + segment.len(), 0);
                segment.copy_to(&mut bytes[at..]);
            }
            assert_eq!(bytes.len(), frame.len);
            self.counters.sent.count(frame.len);
            self.received.push(bytes);
        }
    }

    fn is_up(&self) -> bool {
        !self.is_down
    }

    fn link(&mut self, _: usize, is_up: bool) -> Option<usize> {
        self.links.push(is_up);
        None
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// An app, and a station at each of its sides.
pub(crate) struct Net {
    pub(crate) graph: Graph,
    pub(crate) app: AppId,
    stations: Vec<AppId>,
    pub(crate) now: u64,
}

impl Net {
    pub(crate) fn new(app: impl App, sides: usize) -> Self {
        let mut graph = Graph::new();
        let app = graph.add("app", app);
        let stations = (0..sides)
            .map(|side| {
                let station = graph.add("station", Station::default());
                graph.link((station, 0), (app, side)).unwrap();
                graph.link((app, side), (station, 0)).unwrap();
                station
            })
            .collect();
        Self { graph, app, stations, now: 0 }
    }

    pub(crate) fn station(&mut self, side: usize) -> &mut Station {
        self.graph.get(self.stations[side]).unwrap()
    }

    pub(crate) fn app<A: App>(&mut self) -> &mut A {
        self.graph.get(self.app).unwrap()
    }

    pub(crate) fn breathe(&mut self) {
        self.graph.breathe(self.now, |_| panic!("an app failed"));
    }

    /// Has a station go down, or come up.
    pub(crate) fn set_link(&mut self, side: usize, is_up: bool) {
        self.station(side).is_down = !is_up;
        self.graph.may_have_changed(self.stations[side]);
        self.breathe();
    }

    /// Gives the app other settings.
    pub(crate) fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), String> {
        self.graph.reconfigure(self.app, settings).map_err(|error| error.to_string())
    }

    /// What the app says of itself.
    pub(crate) fn numbers(&mut self) -> Vec<(String, u64)> {
        let numbers = self.graph.numbers(self.app, self.now);
        numbers.iter().map(|number| (number.name.clone(), number.value)).collect()
    }

    /// Sends frames in one breath, or as many as it takes.
    pub(crate) fn send(&mut self, side: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        let frames = frames.into_iter().map(|frame| (frame, Offload::NONE));
        self.station(side).to_send.extend(frames);
        for _ in 0..self.station(side).to_send.len().div_ceil(BURST) {
            self.breathe();
        }
    }

    /// What a station got since this was asked last.
    pub(crate) fn received(&mut self, side: usize) -> Vec<Vec<u8>> {
        take(&mut self.station(side).received)
    }

    /// Frames that the app dropped.
    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.graph.counters(self.app)[reason]
    }
}

/// The station whose address ends with `number`.
pub(crate) fn host(number: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, number])
}

/// A frame of `len` bytes that begin with its header and, if there is room, `mark`.
pub(crate) fn frame(destination: MacAddress, mark: u8, len: usize) -> Vec<u8> {
    let header = Ethernet {
        destination,
        source: host(1),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        vlan: None,
    };
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    if let Some([first, ..]) = header.write(&mut frame) {
        *first = mark;
    }
    frame
}
