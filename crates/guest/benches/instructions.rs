//! A gate that noise cannot fool: instructions of the switch for each frame, next to what is recorded.
//!
//! `cargo bench -p ringway-guest --bench instructions` prints a table, and fails when a case needs more
//! than is recorded in `instructions.txt`, or less: then somebody has made it faster, and the record has
//! to say so. `UPDATE=1` before it records what is found. Names of cases behind `--` are the only ones
//! to be counted.
//!
//! # How it works
//!
//! Time depends on what else the machine does; the number of instructions does not. valgrind's callgrind
//! counts them. For each case this program runs itself under it, and breathes a switch a fixed number of
//! times: there are no clocks, threads or random numbers in what is counted. Counting begins when
//! [`counted_breath`] is entered and ends when it is left, so what the guests' drivers do is not in it.
//! (Instructions are not cycles: a cache miss costs nothing here. The record says what else to know.)

mod between;
mod record;
mod switch;
mod vlans;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use engine::Graph;
use record::Record;
use switch::{Between, Frame, Guest, Part, Traffic, address, report};
use vlans::Vlans;
use wire::virtio::Features;

/// Frames that each guest sends, at least, before instructions are counted: by then all addresses are
/// known, the bridge has noted where each goes, and every ring has gone around.
const WARM_UP: usize = 15360;
/// The same where others are idle: by then they are known to be.
const WARM_UP_OF_IDLE: usize = 65536;
/// Frames that each guest sends while instructions are counted.
const COUNTED: usize = 5120;

const BASE: Features = Features::VERSION_1.union(Features::MRG_RXBUF);
const OFFLOADS: Features = Features::CSUM
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::HOST_USO)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN)
    .union(Features::GUEST_USO4)
    .union(Features::GUEST_USO6);

/// Two guests that send each other frames.
struct Case {
    name: &'static str,
    /// What both guests negotiated beyond [`BASE`].
    features: Features,
    queue_pairs: u16,
    /// Bytes of a frame, from the Ethernet header on, without the Ethernet checksum.
    size: usize,
    /// Frames that each sends in one breath.
    burst: usize,
    /// Whether the sender leaves the checksum to others, and the receiver takes no such frame.
    partial_checksum: bool,
    /// Stations behind each guest, which send in turn, each to one of the other guest's.
    stations: usize,
    /// Ports whose guests do nothing.
    idle_ports: usize,
    /// The app between each port and the bridge. Each frame passes two of them.
    between: Option<Between>,
    vlans: Vlans,
}

const SPLIT: Case = Case {
    name: "split",
    features: Features::NONE,
    queue_pairs: 1,
    size: 64,
    burst: 32,
    partial_checksum: false,
    stations: 1,
    idle_ports: 0,
    between: None,
    vlans: Vlans::None,
};

const CASES: [Case; 22] = [
    SPLIT,
    Case { name: "split-in-order", features: Features::IN_ORDER, ..SPLIT },
    Case { name: "split-event-idx", features: Features::EVENT_IDX, ..SPLIT },
    Case { name: "packed", features: Features::RING_PACKED, ..SPLIT },
    Case {
        name: "packed-in-order",
        features: Features::RING_PACKED.union(Features::IN_ORDER),
        ..SPLIT
    },
    Case { name: "offloads", features: OFFLOADS, ..SPLIT },
    Case { name: "burst-1", burst: 1, ..SPLIT },
    Case { name: "burst-1-packed", burst: 1, features: Features::RING_PACKED, ..SPLIT },
    Case { name: "size-1518", size: 1518, ..SPLIT },
    Case { name: "size-9000", size: 9000, ..SPLIT },
    Case {
        name: "checksum-1500",
        features: Features::CSUM,
        size: 1500,
        partial_checksum: true,
        ..SPLIT
    },
    Case { name: "addresses-10000", stations: 5000, ..SPLIT },
    Case { name: "idle-ports-64", idle_ports: 64, ..SPLIT },
    Case { name: "queue-pairs-4", queue_pairs: 4, features: Features::MQ, ..SPLIT },
    Case { name: "vlan-access", vlans: Vlans::Access, ..SPLIT },
    Case { name: "vlan-trunk", vlans: Vlans::Trunk, ..SPLIT },
    // Each frame of a burst is of another conversation than the one before.
    Case { name: "vlan-stations-8", vlans: Vlans::Trunk, stations: 8, ..SPLIT },
    Case { name: "police", between: Some(between::police), ..SPLIT },
    Case { name: "anti-spoof", between: Some(between::anti_spoof), ..SPLIT },
    Case { name: "storm", between: Some(between::storm), ..SPLIT },
    Case { name: "filter", between: Some(between::filter), ..SPLIT },
    Case { name: "mirror", between: Some(between::mirror), ..SPLIT },
];

impl Case {
    fn find(name: &str) -> Result<&'static Self, Box<dyn Error>> {
        let names = || CASES.map(|case| case.name).join(", ");
        let case = CASES.iter().find(|case| case.name == name);
        case.ok_or_else(|| format!("there is no case {name:?}; there are {}", names()).into())
    }

    /// What callgrind watches.
    fn breathe(&self) {
        let guest = |_| Guest::new(BASE | self.features, self.queue_pairs);
        let guests = (0..2 + self.idle_ports).map(guest).collect();
        let mut part = Part::all(1, guests, self.between, &self.vlans.memberships()).remove(0);
        let frame = |to, from, station| {
            let [to_address, from_address] = [to, from].map(|port| address(port, station));
            let frame = Frame::new(to_address, from_address, self.size, self.partial_checksum);
            self.vlans.tag(frame, from)
        };
        let frames = |to, from| (0..self.stations).map(|number| frame(to, from, number)).collect();
        let [one, two] = part.ports;
        let traffic = Traffic { frames: [frames(two, one), frames(one, two)], burst: self.burst };
        assert!(
            COUNTED.is_multiple_of(self.burst),
            "frames that are counted are so many whole bursts"
        );
        let warm_up = if self.idle_ports == 0 { WARM_UP } else { WARM_UP_OF_IDLE };
        part.exchange(&traffic, warm_up.div_ceil(self.burst), breath);
        part.exchange(&traffic, COUNTED / self.burst, counted_breath);
    }

    /// Instructions for each frame.
    fn count(&self) -> Result<f64, Box<dyn Error>> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*counted_breath*")
            .arg(std::env::current_exe()?)
            .args([BREATHE, self.name])
            .output()
            .map_err(|error| {
                format!("cannot run valgrind: {error}; on Debian, install valgrind")
            })?;
        let text = String::from_utf8_lossy(&output.stderr);
        let collected =
            text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
        match collected {
            Some(count @ 1u64..) if output.status.success() => {
                Ok(count as f64 / (2 * COUNTED) as f64)
            }
            _ => Err(format!("{}: nothing was counted; valgrind said:\n{text}", self.name).into()),
        }
    }
}

/// What callgrind knows by its name. Nothing else here may have it in its own.
#[inline(never)]
fn counted_breath(graph: &mut Graph, now: u64) {
    breath(graph, now);
}

fn breath(graph: &mut Graph, now: u64) {
    graph.breathe(now, report);
}

/// The argument that says which case this program is to breathe, under valgrind.
const BREATHE: &str = "--breathe";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut file = PathBuf::from(record::FILE);
    let (mut is_measured, mut cases) = (false, vec![]);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            // What cargo says when it measures.
            "--bench" => is_measured = true,
            // Another record, to try the gate.
            "--record" => file = value()?.into(),
            BREATHE => {
                Case::find(&value()?)?.breathe();
                return Ok(());
            }
            name => cases.push(Case::find(name)?),
        }
    }
    if cases.is_empty() {
        cases = CASES.iter().collect();
    }
    if !is_measured {
        // Not a build for speed, perhaps; but all frames have to arrive.
        cases.iter().for_each(|case| case.breathe());
        return Ok(());
    }
    let record = Record::read(&file)?;
    println!("{:16} {:>12} {:>12}", "instructions", "each frame", "recorded");
    let mut counts = vec![];
    for case in cases {
        let count = case.count()?;
        println!("{}", record.row(case.name, count));
        counts.push((case.name, count));
    }
    let all = CASES.map(|case| case.name);
    if std::env::var_os("UPDATE").is_some() {
        record.update(&all, &counts).write(&file)
    } else {
        record.compare(&all, &counts)
    }
}
