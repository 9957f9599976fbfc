//! What a second worker costs the first: cycles for each frame with two busy pairs of guests on two
//! workers, next to one pair on one.
//!
//! `cargo bench -p ringway-guest --bench workers` measures; under `cargo test` it runs for a moment,
//! so that it cannot rot. The workers are those of one switch: the bridge's table is shared, and so are
//! the ports. Drivers run on the workers' threads, between two breaths, and are not counted; so
//! two processors are enough. For comparison, the same two pairs on two switches that share nothing
//! say what the machine itself makes of two busy processors.

use std::os::fd::AsFd;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use apps::bridge::Bridge;
use engine::{Graph, Poller};
use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory};
use ports::vhost_user::VhostUserPort;
use ringway_guest::{MemoryLayout, NetDriver, RingLayout};
use vhost_user::{Device, RingSetup};
use virtqueue::Layout;
use wire::ethernet::MacAddress;
use wire::virtio::{Features, NetHeader};

/// Frames that each guest sends in one breath.
const BATCH: usize = 32;
const SIZES: [usize; 2] = [64, 1514];

fn main() {
    let asked_for = |flag: &str| std::env::args().any(|argument| argument == flag);
    // What a test runner asks of a program without a harness.
    if asked_for("--list") {
        if !asked_for("--ignored") {
            println!("workers: test");
        }
        return;
    }
    // What cargo says when it measures.
    let (rounds, breaths) = if asked_for("--bench") { (200, 1000) } else { (2, 10) };
    for size in SIZES {
        // The three take turns, so that what else the machine does meets all of them.
        let (mut alone, mut shared, mut apart) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            alone.push(measure(Switch::with_workers(1), size, breaths));
            shared.push(measure(Switch::with_workers(2), size, breaths));
            let switches = [(); 2].map(|()| Switch::with_workers(1)).into_iter().flatten();
            apart.push(measure(switches.collect(), size, breaths));
        }
        let [alone, shared, apart] = [alone, shared, apart].map(median);
        println!(
            "{size}-byte frames: one worker {alone:.1} ns each, two workers {shared:.1} ns, two \
             switches {apart:.1} ns"
        );
        println!("  two workers : one worker = {:.3} (at most 1.1)", shared / alone);
        println!("  two workers : two switches = {:.3}", shared / apart);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Has all of them breathe at the same time, and returns nanoseconds for each frame, on average.
fn measure(workers: Vec<Switch>, size: usize, breaths: usize) -> f64 {
    let start = Arc::new(Barrier::new(workers.len()));
    let threads = workers.into_iter().map(|mut worker| {
        let start = start.clone();
        thread::spawn(move || {
            worker.exchange(size, breaths / 10);
            start.wait();
            // A part that is dropped takes its port down on all workers.
            (worker.exchange(size, breaths), worker)
        })
    });
    let threads: Vec<_> = threads.collect();
    let count = threads.len() as f64;
    let done: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("the worker's thread")).collect();
    done.iter().map(|(each, _)| each).sum::<f64>() / count
}

/// One worker's part of a switch, and a pair of guests whose rings belong to it.
struct Switch {
    graph: Graph,
    guests: [NetDriver; 2],
    addresses: [[u8; 6]; 2],
    now: u64,
}

impl Switch {
    /// The parts of one switch, with a pair of guests for each.
    fn with_workers(workers: usize) -> Vec<Self> {
        let bridge = Bridge::new(2 * workers as u16, [1, 2]);
        // Ports 0 and 2 of two workers are the first one's, 1 and 3 the second one's.
        let mut ports: Vec<Vec<VhostUserPort>> =
            (0..2 * workers).map(|number| VhostUserPort::parts(workers, number)).collect();
        let guests: Vec<(NetDriver, Device)> = ports.iter().map(|_| guest()).collect();
        let poller = Poller::new().expect("a poller");
        for (parts, (_, device)) in ports.iter_mut().zip(&guests) {
            parts.iter_mut().for_each(|part| drop(part.swap(Some(device), &poller)));
        }
        let mut drivers: Vec<_> = guests.into_iter().map(|(driver, _)| Some(driver)).collect();
        let mut parts = ports.into_iter().map(Vec::into_iter).collect::<Vec<_>>();
        let address = |number: usize| [0x52, 0x54, 0, 0, 0, number as u8];
        for number in 0..2 * workers {
            // Or the first frames would go to everybody.
            bridge.table().learn(MacAddress(address(number)), number as u16, 0);
        }
        let part = |worker: usize| {
            let mut graph = Graph::new();
            let bridge = graph.add("bridge", bridge.part());
            for (number, parts) in parts.iter_mut().enumerate() {
                let port = graph.add("port", parts.next().expect("a part for each worker"));
                graph.link((port, 0), (bridge, number)).expect("a free output");
                graph.link((bridge, number), (port, 0)).expect("a free output");
            }
            let numbers = [worker, worker + workers];
            let guests = numbers.map(|number| drivers[number].take().expect("one of each"));
            Self { graph, guests, addresses: numbers.map(address), now: 0 }
        };
        (0..workers).map(part).collect()
    }

    /// Both guests send each other frames in each of so many breaths. Returns nanoseconds of breathing
    /// for each frame.
    fn exchange(&mut self, size: usize, breaths: usize) -> f64 {
        let [one, two] = self.addresses;
        let frame = |to: [u8; 6], from: [u8; 6]| {
            let mut frame = [to, from].concat();
            frame.extend([0x88, 0xb5]);
            frame.resize(size, 0x5a);
            frame
        };
        let frames = [frame(two, one), frame(one, two)];
        let mut spent = 0;
        for _ in 0..breaths {
            for (guest, frame) in self.guests.iter_mut().zip(&frames) {
                for _ in 0..BATCH {
                    assert!(guest.send(NetHeader::default(), frame).expect("a frame that fits"));
                }
                // Nobody has to be kicked: the worker is here.
                let _ = (guest.publish_transmit(), guest.publish_receive());
            }
            self.now += 10_000;
            let start = Instant::now();
            self.graph.breathe(self.now, |_| panic!("a fault, or a panic"));
            spent += start.elapsed().as_nanos();
            for guest in &mut self.guests {
                let mut received = 0;
                while let Some(len) = guest.receive(|frame| frame.frame.len()).expect("a rule kept")
                {
                    assert_eq!(len, size);
                    received += 1;
                }
                assert_eq!(received, BATCH);
                assert_eq!(guest.reclaim().expect("a rule kept"), BATCH);
            }
        }
        spent as f64 / (2 * BATCH * breaths) as f64
    }
}

/// A guest's driver, and its device as a session would hand it over.
fn guest() -> (NetDriver, Device) {
    let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX;
    let start = GuestAddress(1 << 30);
    let layout = MemoryLayout::new(start, features, 256, 1);
    let shared = SharedMemory::create("bench", layout.size).expect("memory");
    let memory = GuestMemory::map([RegionRequest {
        guest: start,
        size: layout.size,
        front_end: FrontEndAddress(1 << 32),
        offset: 0,
        file: shared.as_fd().try_clone_to_owned().expect("a descriptor"),
    }]);
    let memory = Arc::new(memory.expect("a mapping"));
    let pair = layout.pairs[0];
    let mut driver = NetDriver::new(memory.clone(), pair, features).expect("a driver");
    let _ = driver.publish_receive();
    let ring = |ring: RingLayout, start: u64| {
        let place = ring.places[0];
        let areas = (place.descriptors, place.available, place.used);
        let layout = Layout::new(&memory, features, 256, areas.0, areas.1, areas.2);
        Some(RingSetup {
            layout: layout.expect("a ring"),
            base: Layout::first_position(features),
            start,
            enabled: true,
            kick: None,
            call: None,
        })
    };
    let rings = vec![ring(pair.receive, 0), ring(pair.transmit, 1)];
    (driver, Device { memory, features, rings })
}
