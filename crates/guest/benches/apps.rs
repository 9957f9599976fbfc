//! What VLANs, and the apps between a port and the bridge, cost a frame: nanoseconds, next to a bridge alone.
//!
//! `cargo bench -p ringway-guest --bench apps` measures; under `cargo test` it runs for a moment, so that
//! it cannot rot. Two guests send each other 64-byte frames through a switch, 32 in a breath. Their drivers
//! run on the switch's thread, between two breaths, and are not counted. Instructions of the same cases:
//! `--bench instructions`.

mod between;
mod switch;
mod vlans;

use std::time::Instant;

use switch::{Between, Frame, Guest, Part, Traffic, address, report};
use vlans::Vlans;
use wire::virtio::Features;

/// Frames that each guest sends in one breath.
const BURST: usize = 32;
const SIZE: usize = 64;
const FEATURES: Features = Features::VERSION_1.union(Features::MRG_RXBUF);

/// What a frame passes.
struct Case {
    name: &'static str,
    vlans: Vlans,
    /// Between each port and the bridge.
    between: Option<Between>,
    /// How often a frame passes what is different from the first case.
    passes: f64,
}

const BRIDGE: Case = Case { name: "bridge", vlans: Vlans::None, between: None, passes: 1.0 };

const CASES: [Case; 8] = [
    BRIDGE,
    Case { name: "VLAN, access to access", vlans: Vlans::Access, ..BRIDGE },
    Case { name: "VLAN, access to trunk and back", vlans: Vlans::Trunk, ..BRIDGE },
    Case { name: "police", between: Some(between::police), passes: 2.0, ..BRIDGE },
    Case { name: "filter", between: Some(between::filter), passes: 2.0, ..BRIDGE },
    Case { name: "anti-spoof", between: Some(between::anti_spoof), passes: 2.0, ..BRIDGE },
    Case { name: "storm", between: Some(between::storm), passes: 2.0, ..BRIDGE },
    Case { name: "mirror", between: Some(between::mirror), passes: 2.0, ..BRIDGE },
];

fn main() {
    let asked_for = |flag: &str| std::env::args().any(|argument| argument == flag);
    // What a test runner asks of a program without a harness.
    if asked_for("--list") {
        if !asked_for("--ignored") {
            println!("apps: test");
        }
        return;
    }
    // What cargo says when it measures.
    let (rounds, breaths) = if asked_for("--bench") { (500, 200) } else { (2, 10) };
    let mut beds = CASES.map(|case| Bed::new(&case));
    let mut times = CASES.map(|_| Vec::with_capacity(rounds));
    // They take turns, so that what else the machine does meets all of them.
    for _ in 0..rounds {
        for (bed, times) in beds.iter_mut().zip(&mut times) {
            times.push(bed.measure(breaths));
        }
    }
    let medians = times.map(median);
    println!("{:30} {:>12} {:>12}", "nanoseconds", "each frame", "each pass");
    for (case, each) in CASES.iter().zip(medians) {
        let more = (each - medians[0]) / case.passes;
        println!("{:30} {each:12.1} {more:+12.1}", case.name);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A switch, and what its guests send.
struct Bed {
    part: Part,
    traffic: Traffic,
}

impl Bed {
    fn new(case: &Case) -> Self {
        let guests = (0..2).map(|_| Guest::new(FEATURES, 1)).collect();
        let part = Part::all(1, guests, case.between, &case.vlans.memberships()).remove(0);
        let [one, two] = part.ports;
        let frames = [(two, one), (one, two)].map(|(to, from)| {
            let frame = Frame::new(address(to, 0), address(from, 0), SIZE, false);
            vec![case.vlans.tag(frame, from)]
        });
        Self { part, traffic: Traffic { frames, burst: BURST } }
    }

    /// Nanoseconds of breathing for each frame, by the median of so many breaths: those in which somebody else had the
    /// processor are few.
    fn measure(&mut self, breaths: usize) -> f64 {
        let mut times = Vec::with_capacity(breaths);
        self.part.exchange(&self.traffic, breaths, |graph, now| {
            let start = Instant::now();
            graph.breathe(now, report);
            times.push(start.elapsed().as_nanos() as f64 / (2 * BURST) as f64);
        });
        median(times)
    }
}
