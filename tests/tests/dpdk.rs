//! DPDK as the guest: its virtio-user driver with every ring and every function that it has for them.
//!
//! # How it works
//!
//! testpmd has two ports on the switch and forwards between them. An embedded guest stands on either side, and talks to
//! the other one only through testpmd:
//!
//!     station 0  --switch-->  testpmd port 0 | testpmd port 1  --switch-->  station 1
//!
//! and the other way round. So both ports receive and transmit, and the stations compare every byte. testpmd puts new
//! addresses on what it forwards (its mode `mac`), by which a frame that took another way is told.
//!
//! Then testpmd's ports send each other what they get, as fast as they can. In the end, at rest, both sides have to have
//! counted the same: not a frame is lost.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use testbed::dpdk::{Builder, Driver, Statistics, Testpmd, VirtioUser};
use testbed::hugepages::PAGE_SIZE;
use wire::checksum::Sum;
use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};
use wire::virtio::{Features, NetHeader};

/// Frames get where they should, and a switch and testpmd find each other, within this time on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames on their way at once, each way: they fit every ring, so none may be lost.
const WINDOW: u32 = 64;
/// Frames that a station sends: many times round each ring.
const FRAMES: u32 = 5_000;
/// Frames that each of testpmd's ports keeps going round. They fit a ring, and leave room for the driver to be late with
/// new buffers.
const CIRCLING: u32 = 128;
/// Frames that it has to get by that: more than the 65536 after which a ring's indices begin anew.
const ROUNDS: u64 = 100_000;
/// Frames in one of testpmd's bursts.
const BURST: u32 = 32;
/// Flows of a stream over several queues: each queue gets some of them.
const FLOWS: u32 = 64;

/// Both sides of testpmd: the station's port on the switch and testpmd's, and their addresses.
const SIDES: [(&str, &str); 2] = [("vm1.sock", "dpdk0.sock"), ("vm2.sock", "dpdk1.sock")];
const PORTS: [&str; 4] = [
    "vm1=vhost-user:vm1.sock",
    "vm2=vhost-user:vm2.sock",
    "dpdk0=vhost-user:dpdk0.sock",
    "dpdk1=vhost-user:dpdk1.sock",
];
const STATIONS: [MacAddress; 2] =
    [MacAddress([0x52, 0x54, 0, 0, 0, 1]), MacAddress([0x52, 0x54, 0, 0, 0, 2])];
const DOORS: [MacAddress; 2] =
    [MacAddress([0x52, 0x54, 0, 0, 0, 0x10]), MacAddress([0x52, 0x54, 0, 0, 0, 0x11])];

/// What a port of testpmd is told, and what has to come of it.
struct Flavour {
    options: &'static str,
    /// Negotiated besides VERSION_1 and INDIRECT_DESC.
    features: Features,
    transmit: &'static str,
    receive: &'static str,
}

const SPLIT: Flavour = Flavour {
    options: "packed_vq=0,in_order=0,mrg_rxbuf=1",
    features: Features::MRG_RXBUF,
    transmit: "standard",
    receive: "mergeable buffer",
};
const PACKED: Flavour = Flavour {
    options: "packed_vq=1,in_order=0,mrg_rxbuf=1",
    features: Features::RING_PACKED.union(Features::MRG_RXBUF),
    transmit: "packed ring standard",
    receive: "packed ring mergeable buffer",
};

#[test]
fn split() -> Result<()> {
    passes(&SPLIT)
}

#[test]
fn split_without_mergeable_buffers() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=0,in_order=0,mrg_rxbuf=0",
        features: Features::NONE,
        transmit: "standard",
        receive: "standard",
    })
}

/// There is a vectorised function for receiving only.
#[test]
fn split_vectorised() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=0,in_order=0,mrg_rxbuf=0,vectorized=1",
        features: Features::NONE,
        transmit: "standard",
        receive: "vectorized",
    })
}

#[test]
fn split_in_order() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=0,in_order=1,mrg_rxbuf=1",
        features: Features::IN_ORDER.union(Features::MRG_RXBUF),
        transmit: "inorder",
        receive: "inorder",
    })
}

#[test]
fn split_in_order_without_mergeable_buffers() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=0,in_order=1,mrg_rxbuf=0",
        features: Features::IN_ORDER,
        transmit: "inorder",
        receive: "inorder",
    })
}

#[test]
fn packed() -> Result<()> {
    passes(&PACKED)
}

#[test]
fn packed_without_mergeable_buffers() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=1,in_order=0,mrg_rxbuf=0",
        features: Features::RING_PACKED,
        transmit: "packed ring standard",
        receive: "packed ring standard",
    })
}

#[test]
fn packed_in_order() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=1,in_order=1,mrg_rxbuf=1",
        features: Features::RING_PACKED.union(Features::IN_ORDER).union(Features::MRG_RXBUF),
        transmit: "packed ring standard",
        receive: "packed ring mergeable buffer",
    })
}

#[test]
fn packed_in_order_without_mergeable_buffers() -> Result<()> {
    passes(&Flavour {
        options: "packed_vq=1,in_order=1,mrg_rxbuf=0",
        features: Features::RING_PACKED.union(Features::IN_ORDER),
        transmit: "packed ring standard",
        receive: "packed ring standard",
    })
}

/// DPDK has this for processors with AVX-512, and takes its standard functions on others.
#[test]
fn packed_vectorised() -> Result<()> {
    let can = is_x86_feature_detected!("avx512f");
    let kind = if can { "packed ring vectorized" } else { "packed ring standard" };
    println!("the processor has {}AVX-512: {kind} functions", if can { "" } else { "no " });
    passes(&Flavour {
        options: "packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1",
        features: Features::RING_PACKED.union(Features::IN_ORDER),
        transmit: kind,
        receive: kind,
    })
}

/// Memory in hugepages, which grows after a port was started: the switch gets new memory for rings that run.
#[test]
fn memory_that_grows() -> Result<()> {
    for flavour in [&SPLIT, &PACKED] {
        let switch = Switch::start(&PORTS)?;
        let testpmd = flavour.testpmd("", |side| switch.path(SIDES[side].1)).hugepages();
        let testpmd = testpmd.environment("--log-level=pmd.net.virtio.driver:debug").start()?;
        // Each memory table begins with the first page. A port gets one to start with, and others only while it runs.
        let tables = testpmd.log().matches(&format!("len={PAGE_SIZE}\n")).count();
        ensure!(tables > SIDES.len(), "the memory did not grow:\n{}", testpmd.log());
        let mut bed = Bed::new(switch, testpmd)?;
        bed.exchange(FRAMES)?;
        bed.circulate()?;
        bed.finish(0)?;
    }
    Ok(())
}

/// The driver leaves its rings alone for a while, without a word to the switch. What came meanwhile it drops uncounted.
#[test]
fn a_port_that_pauses() -> Result<()> {
    const UNHEARD: u32 = 10;
    for flavour in [&SPLIT, &PACKED] {
        let mut bed = Bed::of(flavour)?;
        bed.exchange(FRAMES)?;
        bed.testpmd.halt()?;
        bed.testpmd.command("port stop 0")?;
        for number in 0..UNHEARD {
            bed.stations[0].send(&frame(STATIONS[0], DOORS[0], 0, number))?;
        }
        bed.stations[0].flush()?;
        bed.testpmd.command("port start 0")?;
        bed.testpmd.forward(None)?;
        bed.exchange(FRAMES)?;
        bed.finish(UNHEARD.into())?;
    }
    Ok(())
}

/// An offload that is switched on makes the driver reset the device, negotiate and set up everything anew, all on the
/// same connection.
#[test]
fn a_driver_that_changes_its_mind() -> Result<()> {
    for flavour in [&SPLIT, &PACKED] {
        let mut bed = Bed::of(flavour)?;
        bed.exchange(FRAMES)?;
        bed.testpmd.halt()?;
        // The new rings count from zero.
        bed.earlier = bed.counted()?;
        bed.testpmd.command("port stop all")?;
        for port in 0..SIDES.len() {
            bed.testpmd.command(&format!("port config {port} rx_offload tcp_cksum on"))?;
        }
        bed.testpmd.command("port start all")?;
        for port in 0..SIDES.len() {
            let features = Features(bed.testpmd.driver(port)?.features);
            ensure!(features == flavour.features(1) | Features::GUEST_CSUM, "{features}");
        }
        bed.testpmd.forward(None)?;
        bed.exchange(FRAMES)?;
        bed.circulate()?;
        bed.finish(0)?;
    }
    Ok(())
}

/// Killed at full speed, without a word; the next one takes its place.
#[test]
fn a_guest_that_is_killed() -> Result<()> {
    for flavour in [&SPLIT, &PACKED] {
        let mut bed = Bed::of(flavour)?;
        bed.exchange(FRAMES)?;
        bed.start_circling()?;
        let Bed { switch, testpmd, stations, .. } = bed;
        drop((testpmd, stations));
        for port in ["dpdk0", "dpdk1"] {
            switch.wait_for_log(&format!("front end disconnected port={port:?}"), LIMIT)?;
        }
        let testpmd = flavour.testpmd("", |side| switch.path(SIDES[side].1)).start()?;
        let mut bed = Bed::new(switch, testpmd)?;
        bed.exchange(FRAMES)?;
        bed.testpmd.quit()?;
        let log = bed.switch.stop()?;
        ensure!(!log.contains("ERROR"), "{log}");
    }
    Ok(())
}

/// The roles turned round: testpmd listens. A switch that ends and comes back finds the rings where they were.
#[test]
fn a_switch_that_comes_back() -> Result<()> {
    for flavour in [&SPLIT, &PACKED] {
        let directory = tempfile::tempdir()?;
        let path = |side: usize| directory.path().join(SIDES[side].1);
        let [one, two] =
            [0, 1].map(|side| format!("dpdk{side}=vhost-user:{},connect=on", path(side).display()));
        let ports = [PORTS[0], PORTS[1], &one, &two];

        let switch = Switch::start(&ports)?;
        let testpmd = flavour.testpmd(",server=1", path).start()?;
        let mut bed = Bed::new(switch, testpmd)?;
        bed.exchange(FRAMES)?;
        let Bed { switch, mut testpmd, .. } = bed;
        testpmd.halt()?;
        switch.stop()?;

        let switch = Switch::start(&ports)?;
        testpmd.wait_for_log("server mode virtio-user reconnection succeeds!", 2, LIMIT)?;
        testpmd.command("clear port stats all")?;
        let mut bed = Bed::new(switch, testpmd)?;
        bed.exchange(FRAMES)?;
        bed.circulate()?;
        bed.finish(0)?;
    }
    Ok(())
}

#[test]
fn two_queues() -> Result<()> {
    serves(2, 1)
}

#[test]
fn two_queues_on_two_workers() -> Result<()> {
    serves(2, 2)
}

#[test]
fn four_queues() -> Result<()> {
    serves(4, 1)
}

/// Two workers have two queue pairs each.
#[test]
fn four_queues_on_two_workers() -> Result<()> {
    serves(4, 2)
}

/// The whole programme with several queue pairs, all of which have to be used both ways. The switch delivers a flow where
/// the guest sends it, and testpmd sends it on by the queue of the same number: so each flow stays in order.
fn serves(queues: u16, workers: u16) -> Result<()> {
    for flavour in [&SPLIT, &PACKED] {
        let [dpdk0, dpdk1] =
            [PORTS[2], PORTS[3]].map(|port| format!("{port},queue-pairs={queues}"));
        let ports = [PORTS[0], PORTS[1], &dpdk0, &dpdk1];
        let switch = Switch::start_with(&["--workers", &workers.to_string()], &ports)?;
        let testpmd = flavour.testpmd("", |side| switch.path(SIDES[side].1));
        let testpmd = testpmd.queues(queues).start()?;
        flavour.was_taken(&testpmd)?;
        let mut bed = Bed::new(switch, testpmd)?;
        bed.exchange(FRAMES)?;
        for port in 0..SIDES.len() {
            let counters = bed.testpmd.statistics(port)?.counters;
            for queue in 0..queues {
                for way in ["rx", "tx"] {
                    let name = format!("{way}_q{queue}_good_packets");
                    let found = counters.get(&name).with_context(|| format!("no {name}"))?;
                    // More than the burst that each transmit queue has sent in the beginning.
                    ensure!(*found > BURST.into(), "port {port} has {found} {name}: {counters:?}");
                }
            }
        }
        bed.circulate()?;
        bed.finish(0)?;
    }
    Ok(())
}

/// The whole programme for one flavour.
fn passes(flavour: &Flavour) -> Result<()> {
    let mut bed = Bed::of(flavour)?;
    bed.exchange(FRAMES)?;
    bed.circulate()?;
    bed.finish(0)
}

impl Flavour {
    /// All that is negotiated for so many queue pairs.
    fn features(&self, queues: u16) -> Features {
        let several = if queues > 1 { Features::MQ } else { Features::NONE };
        Features::VERSION_1 | Features::INDIRECT_DESC | self.features | several
    }

    /// A testpmd of this flavour, with more options, on these sockets.
    fn testpmd(&self, options: &str, socket: impl Fn(usize) -> PathBuf) -> Builder {
        let mut builder = Testpmd::builder().environment("--force-max-simd-bitwidth=512");
        for (side, door) in DOORS.iter().enumerate() {
            let options = format!("{}{options}", self.options);
            builder =
                builder.port(VirtioUser::new(socket(side), &door.to_string()).option(&options));
        }
        builder = builder.argument("--forward-mode=mac");
        if self.features.contains(Features::MRG_RXBUF) {
            // Buffers of 512 bytes: frames come in up to three of them, and leave as chains.
            builder = builder.argument("--mbuf-size=640").argument("--enable-scatter");
        }
        builder
    }

    /// Checks that the driver went the way that was meant.
    fn was_taken(&self, testpmd: &Testpmd) -> Result<()> {
        for port in 0..SIDES.len() {
            let found = testpmd.driver(port)?;
            let meant = Driver {
                features: self.features(testpmd.queues()).0,
                transmit: self.transmit.to_owned(),
                receive: self.receive.to_owned(),
            };
            ensure!(found == meant, "port {port}: {found:x?} instead of {meant:x?}");
        }
        Ok(())
    }
}

/// What a port of testpmd counted; the switch counts the same the other way round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    received: u64,
    sent: u64,
}

impl Counted {
    fn of(statistics: &Statistics) -> Result<Counted> {
        let errors = statistics.errors();
        ensure!(errors.is_empty(), "testpmd counted {errors:?}");
        Ok(Counted { received: statistics.received, sent: statistics.sent })
    }
}

/// A switch with testpmd and both stations, who know each other's addresses.
struct Bed {
    switch: Switch,
    testpmd: Testpmd,
    stations: [Station; 2],
    /// What testpmd's ports counted and then forgot.
    earlier: [Counted; 2],
}

impl Bed {
    /// The usual one.
    fn of(flavour: &Flavour) -> Result<Bed> {
        let switch = Switch::start(&PORTS)?;
        let testpmd = flavour.testpmd("", |side| switch.path(SIDES[side].1)).start()?;
        flavour.was_taken(&testpmd)?;
        Bed::new(switch, testpmd)
    }

    /// Any other one. testpmd forwards when this returns.
    fn new(switch: Switch, testpmd: Testpmd) -> Result<Bed> {
        // Over several queues only the frames of a flow stay in order.
        let flows = if testpmd.queues() > 1 { FLOWS } else { 1 };
        let stations = [Station::connect(&switch, 0, flows)?, Station::connect(&switch, 1, flows)?];
        let mut bed = Bed { switch, testpmd, stations, earlier: Default::default() };
        let met = bed.meet();
        bed.explain(met)?;
        Ok(bed)
    }

    /// Has everyone send something, so that the bridge learns all addresses: a frame for an unknown one goes to everyone,
    /// and testpmd would forward what is not its own.
    fn meet(&mut self) -> Result<()> {
        let [one, two] = &mut self.stations;
        one.greet(two)?;
        two.greet(one)?;
        for (port, station) in STATIONS.iter().enumerate() {
            self.testpmd.command(&format!("set eth-peer {port} {station}"))?;
        }
        // It drops what it finds in its rings, then sends one burst by each queue.
        self.testpmd.forward(Some(1))?;
        for station in &mut self.stations {
            station.wait_for(BURST * u32::from(self.testpmd.queues()), station.door)?;
        }
        Ok(())
    }

    /// Adds to an error what the switch and testpmd said.
    fn explain(&self, result: Result<()>) -> Result<()> {
        result.with_context(|| {
            let (switch, testpmd) = (self.switch.log(), self.testpmd.log());
            format!("the switch says:\n{switch}\ntestpmd says:\n{testpmd}")
        })
    }

    /// Has each station send `count` frames to the other through testpmd, and checks every one that arrives.
    fn exchange(&mut self, count: u32) -> Result<()> {
        let exchanged = self.try_exchange(count);
        self.explain(exchanged)
    }

    fn try_exchange(&mut self, count: u32) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let [one, two] = &mut self.stations;
        let targets = [one.sent + count, two.sent + count];
        while [one.sent, two.sent] != targets || [two.received, one.received] != targets {
            let mut moved = false;
            let arrived = [two.received, one.received];
            for (from, (arrived, target)) in
                [&mut *one, &mut *two].into_iter().zip(arrived.into_iter().zip(targets))
            {
                while from.sent < target && from.sent - arrived < WINDOW {
                    from.send_next()?;
                    moved = true;
                }
            }
            for station in [&mut *one, &mut *two] {
                station.guest.flush();
                moved |= station.receive()?;
            }
            if !moved {
                // For whatever comes: there are three programs to run, and perhaps two processors.
                one.guest.wait(Duration::from_millis(1))?;
            }
            ensure!(
                Instant::now() < deadline,
                "{} of {} and {} of {} frames came within {LIMIT:?}",
                two.received,
                targets[0],
                one.received,
                targets[1]
            );
        }
        Ok(())
    }

    /// Has testpmd's ports send frames to each other from now on, round and round.
    fn start_circling(&mut self) -> Result<()> {
        self.testpmd.halt()?;
        for port in 0..SIDES.len() {
            self.testpmd.command(&format!("set eth-peer {port} {}", DOORS[1 - port]))?;
        }
        let before = self.counted()?;
        self.testpmd.forward(Some(CIRCLING / BURST / u32::from(self.testpmd.queues())))?;
        self.testpmd.wait_for_statistics("the frames that go round", LIMIT, |ports| {
            let mut both = ports.iter().zip(before);
            both.all(|(port, before)| port.received >= before.received + ROUNDS)
        })?;
        Ok(())
    }

    /// Has testpmd's ports send frames to each other for a while, and waits until all that one sent came to the other.
    fn circulate(&mut self) -> Result<()> {
        let circulated = self.try_circulate();
        self.explain(circulated)
    }

    fn try_circulate(&mut self) -> Result<()> {
        let before = self.counted()?;
        self.start_circling()?;
        self.testpmd.halt()?;
        self.testpmd.command("set fwd rxonly")?;
        self.testpmd.forward(None)?;
        self.testpmd.wait_for_statistics("all that was sent", LIMIT, |ports| {
            let sent = |port: usize| ports[port].sent - before[port].sent;
            let received = |port: usize| ports[port].received - before[port].received;
            sent(0) == received(1) && sent(1) == received(0)
        })?;
        Ok(())
    }

    /// What testpmd's ports counted since they were last set up.
    fn counted(&mut self) -> Result<[Counted; 2]> {
        Ok([Counted::of(&self.testpmd.statistics(0)?)?, Counted::of(&self.testpmd.statistics(1)?)?])
    }

    /// Ends everything and checks that all of them counted the same, and the switch lost nothing. Port 0 of testpmd did not
    /// count `unheard` of the frames that it was sent.
    fn finish(mut self, unheard: u64) -> Result<()> {
        self.testpmd.halt()?;
        let testpmd = self.counted()?;
        self.testpmd.quit()?;
        let sent = self.stations.map(|station| station.all_sent);
        let log = self.switch.stop()?;
        for (port, earlier) in self.earlier.iter().enumerate() {
            let unheard = if port == 0 { unheard } else { 0 };
            let counted = Counted {
                received: testpmd[port].received + earlier.received + unheard,
                sent: testpmd[port].sent + earlier.sent,
            };
            let switch = totals(&log, &format!("dpdk{port}"))?;
            ensure!(
                counted == switch,
                "port {port}: testpmd counted {counted:?}; the switch:\n{log}"
            );
            let station = totals(&log, &format!("vm{}", port + 1))?;
            ensure!(station.sent == sent[port], "station {port} sent {sent:?}; the switch:\n{log}");
        }
        println!("{log}");
        Ok(())
    }
}

/// What the guest of a port sent and received, as the switch counted it in the end. Nothing may have been dropped.
fn totals(log: &str, port: &str) -> Result<Counted> {
    let total = || {
        let line =
            log.lines().rev().find_map(|line| Some(line.split_once(&format!(" {port}: "))?.1))?;
        let (from_guest, rest) = line.split_once(" frames received, ")?;
        let to_guest = rest.strip_suffix(" sent, dropped: none")?;
        Some(Counted { received: to_guest.parse().ok()?, sent: from_guest.parse().ok()? })
    };
    total().with_context(|| format!("no total of {port} without drops:\n{log}"))
}

/// An embedded guest that talks to the other one through testpmd, in numbered frames.
struct Station {
    guest: Guest,
    address: MacAddress,
    /// The port of testpmd that it sends to and receives from.
    door: MacAddress,
    /// Frames of the stream.
    sent: u32,
    received: u32,
    /// The frame that is due next, of each flow.
    due: Vec<u32>,
    /// Frames of any kind.
    all_sent: u64,
}

impl Station {
    fn connect(switch: &Switch, side: usize, flows: u32) -> Result<Station> {
        let guest = Guest::connect(&switch.path(SIDES[side].0), &Options::default())?;
        let (address, door) = (STATIONS[side], DOORS[side]);
        let due = (0..flows).collect();
        Ok(Station { guest, address, door, sent: 0, received: 0, due, all_sent: 0 })
    }

    /// Which flow a frame of the stream belongs to: one after the other.
    fn flow(&self, number: u32) -> usize {
        number as usize % self.due.len()
    }

    /// Sends the next frame of the stream.
    fn send_next(&mut self) -> Result<()> {
        let number = self.sent;
        self.send(&frame(self.address, self.door, self.flow(number), number))?;
        self.sent += 1;
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.guest.driver().reclaim()?;
        let sent = self.guest.driver().send(NetHeader::default(), frame)?;
        ensure!(sent, "no room in the transmit ring, although all that is on its way fits");
        self.all_sent += 1;
        Ok(())
    }

    /// Shows the switch what was sent, and waits until it has it all.
    fn flush(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        self.guest.flush();
        while self.guest.driver().in_flight() > 0 {
            self.guest.driver().reclaim()?;
            ensure!(Instant::now() < deadline, "the switch does not take what was sent");
        }
        Ok(())
    }

    /// Sends a frame to the other station, past testpmd.
    fn greet(&mut self, other: &mut Station) -> Result<()> {
        self.send(&frame(self.address, other.address, 0, 0))?;
        self.flush()?;
        other.wait_for(1, self.address)
    }

    /// Waits until `count` frames came from `sender`, whatever is in them.
    fn wait_for(&mut self, count: u32, sender: MacAddress) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut found = 0;
        while found < count {
            let from = self.guest.driver().receive(|received| {
                Ethernet::parse(received.frame).map(|ethernet| ethernet.source)
            })?;
            match from {
                Some(from) => found += u32::from(from == Some(sender)),
                None => {
                    self.guest.flush();
                    self.guest.wait(LIMIT)?;
                }
            }
            ensure!(Instant::now() < deadline, "{found} of {count} frames came from {sender}");
        }
        Ok(())
    }

    /// Takes what came, which must be the other's stream, each flow whole and in order. False when nothing did.
    fn receive(&mut self) -> Result<bool> {
        let before = self.received;
        while let Some(found) = self.guest.driver().receive(|received| received.frame.to_vec())? {
            let destination = Ethernet::parse(&found).map(|ethernet| ethernet.destination);
            if destination.is_some_and(|destination| destination != self.address) {
                // Flooded, as its receiver was away for a moment and is not known since.
                continue;
            }
            let number = found.get(NUMBER).and_then(|number| number.try_into().ok());
            let flow = self.flow(number.map_or(0, u32::from_be_bytes));
            let due = self.due[flow];
            let (door, address) = (self.door, self.address);
            let meant = frame(door, address, flow, due);
            ensure!(
                found == meant,
                "{address} was due frame {due} of flow {flow}, and got {found:x?}"
            );
            self.due[flow] += self.due.len() as u32;
            self.received += 1;
        }
        Ok(self.received > before)
    }
}

/// Where the number of a frame is in it.
const NUMBER: Range<usize> = 42..46;

/// Frame `number` of a stream, a UDP datagram of this flow: its length and every byte follow from the number.
fn frame(source: MacAddress, destination: MacAddress, flow: usize, number: u32) -> Vec<u8> {
    let len = 60 + (number as usize * 97) % 1455;
    let [high, low] = ((len - HEADER_SIZE) as u16).to_be_bytes();
    let mut ip = [0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let mut sum = Sum::new();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    let udp = (len - HEADER_SIZE - ip.len()) as u16;
    // Port 9 throws everything away, and 0 is no checksum.
    let udp = [1024 + flow as u16, 9, udp, 0].map(u16::to_be_bytes).concat();
    let head = [&destination.0[..], &source.0, &EtherType::IPV4.0.to_be_bytes(), &ip, &udp];
    let mut frame = head.concat();
    frame.extend(number.to_be_bytes());
    let noise = (0u32..).map(|at| (at.wrapping_add(number).wrapping_mul(0x9e37_79b1) >> 24) as u8);
    frame.extend(noise.take(len - frame.len()));
    frame
}
