//! On the busy path nothing is allocated: stations and the apps between them breathe, and every allocation
//! of this thread is counted.

use allocation_counter::measure;
use engine::{
    App, AppId, BURST, Burst, Counters, DropReason, Graph, Lease, Outcomes, Outputs, Selection,
};
use ringway_apps::anti_spoof::{self, AntiSpoof};
use ringway_apps::bridge::Bridge;
use ringway_apps::bucket::Limit;
use ringway_apps::filter::{self, Direction, Filter, compile};
use ringway_apps::impair::{self, Impair, Impairment};
use ringway_apps::mirror::{self, Mirror};
use ringway_apps::police::{self, BitLimit, FrameLimit, Limits, Police};
use ringway_apps::sides::{NETWORK, PORT};
use ringway_apps::sink::Sink;
use ringway_apps::source::{self, Source};
use ringway_apps::storm::{self, Storm};
use ringway_apps::tee::Tee;
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

/// An app between stations that send all kinds of frames, and are full at times.
fn does_not_allocate(name: &str, app: impl App, reason: Option<DropReason>) {
    let mut graph = Graph::new();
    let app = graph.add(name, app);
    for side in 0..3u8 {
        let mut buffer = frames(side);
        // Some are of other types, and nothing of their kind.
        for (frame, ethertype) in
            buffer.chunks_mut(FRAME).zip([0x0806u16, 0x0800, 0x86dd, 0x8100, 0x88b5].iter().cycle())
        {
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
        let station = graph.add("station", Station { room: 40, ..Station::new(buffer) });
        graph.link((station, 0), (app, side.into())).unwrap();
        graph.link((app, side.into()), (station, 0)).unwrap();
    }
    let mut now = 0;
    let mut breathe = |breaths: u64| {
        for _ in 0..breaths {
            now += 20_000;
            graph.breathe(now, |_| panic!("{name} failed"));
        }
    };
    // Lists of segments grow to what they need.
    breathe(200);
    let others = measure(|| breathe(1000));
    assert_eq!(others.count_total, 0, "{name}: {others:?}");
    if let Some(reason) = reason {
        assert!(graph.counters(app)[reason] > 0, "{name} dropped nothing for {reason:?}");
    }
}

#[test]
fn no_app_allocates_on_the_busy_path() {
    let bits = Some(BitLimit { rate: 100_000_000, burst: 10_000 });
    let frames = Some(FrameLimit { rate: 1_000_000, burst: 50 });
    let limits = Limits { bits, frames };
    let settings = police::Settings { from_port: limits, to_port: limits };
    does_not_allocate("police", Police::new(&settings).unwrap(), Some(DropReason::Policed));

    let macs = vec![MacAddress([0x52, 0x54, 0, 0, 0, 0])];
    let prefixes = ["10.0.0.1", "fd00::/64"].map(|text| text.parse().unwrap()).to_vec();
    let settings = anti_spoof::Settings { macs, prefixes, ..anti_spoof::Settings::default() };
    does_not_allocate("anti-spoof", AntiSpoof::new(&settings), Some(DropReason::Spoofed));

    let limit = Some(Limit { rate: 100_000, burst: 5 });
    let settings = storm::Settings { broadcast: limit, multicast: limit };
    does_not_allocate("storm", Storm::new(&settings).unwrap(), Some(DropReason::Storm));

    let settings = mirror::Settings { from_port: true, to_port: true };
    does_not_allocate("mirror", Mirror::new(settings), Some(DropReason::FromMirror));
    does_not_allocate("tee", Tee::new(3), None);
    does_not_allocate("sink", Sink::new(), None);

    let settings = source::Settings {
        destination: MacAddress::BROADCAST,
        source: MacAddress([2, 0, 0, 0, 0, 1]),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        size: 1500,
        rate: Some(1_000_000),
        frames: None,
    };
    does_not_allocate("source", Source::new(settings).unwrap(), Some(DropReason::SendOnly));

    let all = Impairment {
        delay: 100_000,
        jitter: 50_000,
        loss: 5.0,
        corruption: 5.0,
        duplication: 5.0,
        reordering: 5.0,
    };
    let settings = impair::Settings { from_port: all, to_port: all, ..impair::Settings::default() };
    let app = Impair::new(settings).unwrap();
    does_not_allocate("impair", app, Some(DropReason::Impaired));
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
    let settings = filter::Settings {
        from_port: direction("udp and ether[200] = 0", true),
        to_port: direction("udp and ether[200] = 1 and ether[2000] = 7", false),
    };
    let mut graph = Graph::new();
    let app = graph.add("filter", Filter::new(settings, [1, 2]));
    let stations = [PORT, NETWORK].map(|side| {
        let station = graph.add("station", Station::new(datagrams(side == NETWORK)));
        graph.link((station, 0), (app, side)).unwrap();
        graph.link((app, side), (station, 0)).unwrap();
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
    let dropped = graph.counters(app)[DropReason::Filtered];
    assert_eq!(questions + answers + dropped, 1001 * 128);
}
