//! On the busy path nothing is allocated: a source, a bridge and sinks breathe, and every allocation
//! of this thread is counted.

use allocation_counter::measure;
use engine::{
    App, AppId, BURST, Burst, Counters, DropReason, Graph, Lease, Outcomes, Outputs, Selection,
};
use ringway_apps::bridge::Bridge;
use ringway_apps::filter::{Direction, Filter, Settings, compile};
use ringway_apps::sides::{NETWORK, PORT};
use wire::ethernet::{EtherType, Ethernet, MacAddress};
use wire::virtio::Offload;

/// Bytes of each frame: more than a head.
const FRAME: usize = 300;

/// Sends the same burst in every breath, and takes what comes.
struct Station {
    buffer: Option<Box<[u8]>>,
    room: usize,
    counters: Counters,
}

impl Station {
    fn new(buffer: Vec<u8>) -> Self {
        Self { buffer: Some(buffer.into()), room: usize::MAX, counters: Counters::default() }
    }
}

impl App for Station {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let bytes = lease.private(self.buffer.take().expect("the buffer is back"));
        for frame in bytes.chunks(FRAME) {
            let start = burst.segments().len();
            // In pieces, so that the list of segments is long.
            for piece in frame.chunks(50) {
                burst.segments().push(piece.into());
            }
            let end = burst.segments().len();
            let _ = burst.push::<()>(start..end, 0, |_, _| Ok(Offload::NONE));
        }
        true
    }

    fn reclaim(&mut self, _: Outcomes<'_>, lease: Lease) {
        let Lease::Private(buffer) = lease else {
            panic!("not our lease");
        };
        self.buffer = Some(buffer);
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        let room = selection.len().min(self.room);
        for index in selection.iter().take(room) {
            self.counters.sent.count(burst.frame(index).len);
        }
        for index in selection.iter().skip(room) {
            if !burst.hold(index) {
                self.counters.drop(DropReason::ReceiverFull);
            }
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// As many frames as a burst has: to host 1, to host 2, to nobody known, to all.
fn frames(host: u8) -> Vec<u8> {
    let mut frames = vec![0; BURST * FRAME];
    for (number, frame) in frames.chunks_mut(FRAME).enumerate() {
        let address = |host| MacAddress([0x52, 0x54, 0, 0, 0, host]);
        let destination = [address(1), address(2), address(99), MacAddress::BROADCAST][number % 4];
        let header = Ethernet {
            destination,
            source: address(host),
            ethertype: EtherType::LOCAL_EXPERIMENT,
            vlan: None,
        };
        header.write(frame).expect("room for the header");
    }
    frames
}

#[test]
fn the_busy_path_does_not_allocate() {
    let mut graph = Graph::new();
    let bridge = graph.add("bridge", Bridge::new(3, [1, 2]));
    let stations: Vec<AppId> = (0..3u8)
        .map(|port| {
            let station = graph.add("station", Station::new(frames(port)));
            graph.link((station, 0), (bridge, port.into())).unwrap();
            graph.link((bridge, port.into()), (station, 0)).unwrap();
            station
        })
        .collect();
    // One that is often full.
    graph.get::<Station>(stations[2]).unwrap().room = 20;

    let mut breathe = |breaths: u64| {
        for breath in 0..breaths {
            assert!(graph.breathe(breath * 1_000_000_000, |_| panic!("an app failed")));
        }
    };
    let first = measure(|| breathe(1));
    assert!(first.count_total > 0, "nothing is counted at all");
    let others = measure(|| breathe(1000));
    assert_eq!(others.count_total, 0, "{others:?}");

    for station in stations {
        assert!(graph.counters(station).sent.frames > 10_000);
    }
}

/// As many questions as a burst has, or answers to them, each of another conversation.
fn datagrams(is_answer: bool) -> Vec<u8> {
    let mut frames = vec![0; BURST * FRAME];
    for (number, frame) in frames.chunks_mut(FRAME).enumerate() {
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 17;
        let (mut ends, mut ports) = ([[10, 0, 0, 1], [10, 0, 0, 2]], [[3, number as u8], [0, 53]]);
        if is_answer {
            ends.reverse();
            ports.reverse();
        }
        frame[26..34].copy_from_slice(&ends.concat());
        frame[34..38].copy_from_slice(&ports.concat());
        // What the filter looks at behind the head.
        frame[200] = (number % 5 == 0).into();
    }
    frames
}

#[test]
fn a_filter_does_not_allocate() {
    let direction = |expression: &str, allow_replies| Direction {
        accept: Some(compile(expression).unwrap()),
        allow_replies,
    };
    let settings = Settings {
        from_port: direction("udp and ether[200] = 0", true),
        to_port: direction("udp and ether[200] = 1 and ether[2000] = 7", false),
    };
    let mut graph = Graph::new();
    let filter = graph.add("filter", Filter::new(settings, [1, 2]));
    let stations = [PORT, NETWORK].map(|side| {
        let station = graph.add("station", Station::new(datagrams(side == NETWORK)));
        graph.link((station, 0), (filter, side)).unwrap();
        graph.link((filter, side), (station, 0)).unwrap();
        station
    });
    // Conversations age from one breath to the next, and begin anew.
    let mut breathe = |breaths: u64| {
        for breath in 0..breaths {
            graph.breathe(breath * 400_000_000_000, |_| panic!("an app failed"));
        }
    };
    let first = measure(|| breathe(1));
    assert!(first.count_total > 0, "nothing is counted at all");
    let others = measure(|| breathe(1000));
    assert_eq!(others.count_total, 0, "{others:?}");

    // 13 of 64 are not accepted, and so their answers are none; nor are answers that come in a breath before
    // their questions.
    let [answers, questions] = stations.map(|station| graph.counters(station).sent.frames);
    assert_eq!(questions, 1001 * 51);
    assert!(answers > 400 * 51 && answers < questions && answers.is_multiple_of(51), "{answers}");
    let dropped = graph.counters(filter)[DropReason::Filtered];
    assert_eq!(questions + answers + dropped, 1001 * 128);
}
