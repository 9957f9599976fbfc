//! Apps that may lie between each port and the bridge. Nothing that the guests send is dropped by them.

use apps::anti_spoof::{self, AntiSpoof, LinkLocal};
use apps::bucket::{Limit, MAX_BURST};
use apps::filter::{self, Direction, Filter};
use apps::mirror::{self, MIRROR, Mirror};
use apps::police::{self, BitLimit, FrameLimit, Limits, MAX_BURST_BYTES, Police};
use apps::sink::Sink;
use apps::storm::{self, Storm};
use engine::{AppId, Graph};
use wire::bpf::{Program, parse_numbers};

use crate::switch::address;

/// More than is sent.
const RATE: u64 = 1_000_000_000_000;

/// Limits of bits and frames, both ways.
pub fn police(graph: &mut Graph, _: usize) -> AppId {
    let bits = Some(BitLimit { rate: RATE, burst: MAX_BURST_BYTES });
    let frames = Some(FrameLimit { rate: RATE, burst: MAX_BURST });
    let limits = Limits { bits, frames };
    let settings = police::Settings { from_port: limits, to_port: limits };
    graph.add("police", Police::new(&settings).expect("limits that can be"))
}

/// A MAC address and a prefix of each version.
pub fn anti_spoof(graph: &mut Graph, port: usize) -> AppId {
    let prefixes = ["10.0.0.0/24", "fd00::/64"].map(|text| text.parse().expect("a prefix"));
    let settings = anti_spoof::Settings {
        macs: vec![address(port, 0)],
        prefixes: prefixes.to_vec(),
        link_local: LinkLocal::Any,
    };
    graph.add("anti-spoof", AntiSpoof::new(&settings))
}

/// Limits that nothing here is under.
pub fn storm(graph: &mut Graph, _: usize) -> AppId {
    let limit = Some(Limit { rate: 1000, burst: 100 });
    let settings = storm::Settings { broadcast: limit, multicast: limit };
    graph.add("storm", Storm::new(&settings).expect("limits that can be"))
}

/// `udp port 8192`, as `tcpdump -ddd` prints it. It is what the guests send; `tcp port 80` differs from it by
/// its three numbers alone.
const UDP_PORT: &str = "20,40 0 0 12,21 0 6 34525,48 0 0 20,21 0 15 17,40 0 0 54,21 12 0 8192,\
    40 0 0 56,21 10 11 8192,21 0 10 2048,48 0 0 23,21 0 8 17,40 0 0 20,69 6 0 8191,177 0 0 14,\
    72 0 0 14,21 2 0 8192,72 0 0 16,21 0 1 8192,6 0 0 262144,6 0 0 0";

/// A program for each direction, which accepts what is sent.
pub fn filter(graph: &mut Graph, _: usize) -> AppId {
    let program = Program::new(&parse_numbers(UDP_PORT).expect("numbers")).expect("a program");
    let direction = Direction { accept: Some(program), allow_replies: false };
    let settings = filter::Settings { from_port: direction.clone(), to_port: direction };
    graph.add("filter", Filter::new(settings, [1, 2]))
}

/// A mirror of both directions, and somebody who takes the copies.
pub fn mirror(graph: &mut Graph, _: usize) -> AppId {
    let settings = mirror::Settings { from_port: true, to_port: true };
    let mirror = graph.add("mirror", Mirror::new(settings));
    let sink = graph.add("sink", Sink::new());
    graph.link((mirror, MIRROR), (sink, 0)).expect("a free output");
    mirror
}
