//! A whole switch in one process: ports, a bridge, and the drivers of the guests.
//!
//! The workers are parts of one switch, and each has a pair of guests that send each other frames. The
//! drivers run on the worker's thread, between two breaths. So nobody has to be kicked, called or waited
//! for, and what happens in a breath is the switch's work alone, the same in each run.

use std::os::fd::AsFd;
use std::sync::Arc;

use apps::bridge::Bridge;
use apps::bridge::table::Domain;
use apps::bridge::vlan::Membership;
use apps::sides::{NETWORK, PORT};
use engine::{AppId, Event, Graph, Poller};
use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory};
use ports::vhost_user::VhostUserPort;
use ringway_guest::{MemoryLayout, NetDriver, RingLayout};
use vhost_user::{Device, RingSetup};
use virtqueue::Layout;
use wire::checksum::{self, Sum};
use wire::ethernet::MacAddress;
use wire::virtio::{Features, NetHeader, PartialChecksum};

/// Entries in each ring.
const RING_SIZE: u16 = 256;
/// The VLAN of guests on a bridge that has VLANs.
pub const VLAN: u16 = 10;

/// The key of the bridge's table, or addresses would lie elsewhere in each run.
const KEY: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9];
/// Nanoseconds from one breath to the next.
const BREATH: u64 = 10_000;

/// Where IPv4 starts in a frame, and its header's checksum in it.
const IPV4: PartialChecksum = PartialChecksum { start: 14, offset: 10 };
/// Where UDP starts in a frame, and its checksum in it.
const UDP: PartialChecksum = PartialChecksum { start: 34, offset: 6 };
const UDP_PROTOCOL: u8 = 17;

/// A guest's drivers, one for each queue pair, and its device as a session would hand it over.
pub struct Guest {
    drivers: Vec<NetDriver>,
    device: Device,
}

impl Guest {
    /// A guest that has negotiated `features`, with so many queue pairs.
    pub fn new(features: Features, pairs: u16) -> Self {
        let start = GuestAddress(1 << 30);
        let layout = MemoryLayout::new(start, features, RING_SIZE, pairs);
        let shared = SharedMemory::create("bench", layout.size).expect("memory");
        let region = |guest: GuestAddress, size: u64| RegionRequest {
            guest,
            size,
            front_end: FrontEndAddress(guest.0 + (1 << 32)),
            offset: 0,
            file: shared.as_fd().try_clone_to_owned().expect("a descriptor"),
        };
        // As in a virtual machine the first region is not the one that is used.
        let low = region(GuestAddress(0), 4096);
        let memory = GuestMemory::map([low, region(start, layout.size)]);
        let memory = Arc::new(memory.expect("a mapping"));
        let ring = |ring: RingLayout, start: u64| {
            let place = ring.places[0];
            let areas = (place.descriptors, place.available, place.used);
            let size = RING_SIZE.into();
            let layout = Layout::new(&memory, features, size, areas.0, areas.1, areas.2);
            Some(RingSetup {
                layout: layout.expect("a ring"),
                base: Layout::first_position(features),
                start,
                enabled: true,
                kick: None,
                call: None,
            })
        };
        let (mut drivers, mut rings) = (vec![], vec![]);
        for pair in layout.pairs {
            let mut driver = NetDriver::new(memory.clone(), pair, features).expect("a driver");
            let _ = driver.publish_receive();
            drivers.push(driver);
            let start = rings.len() as u64;
            rings.extend([ring(pair.receive, start), ring(pair.transmit, start + 1)]);
        }
        Self { drivers, device: Device { memory, features, rings } }
    }
}

/// What a station behind a port calls itself.
pub fn address(port: usize, station: usize) -> MacAddress {
    let [high, low] = (station as u16).to_be_bytes();
    MacAddress([0x52, 0x54, 0, port as u8, high, low])
}

/// A frame as it is sent, and as it has to arrive.
pub struct Frame {
    pub header: NetHeader,
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
}

impl Frame {
    /// A UDP datagram over IPv4: so many bytes from the Ethernet header on, always of the same flow. Its
    /// sender has left out the checksum, or leaves it to others.
    pub fn new(to: MacAddress, from: MacAddress, size: usize, is_partial: bool) -> Self {
        let (ip, udp) = (usize::from(IPV4.start), usize::from(UDP.start));
        let udp_len = (size - udp) as u16;
        let mut sent = [to.0, from.0].concat();
        sent.extend([0x08, 0x00, 0x45, 0]);
        sent.extend(((size - ip) as u16).to_be_bytes());
        sent.extend([0, 0, 0, 0, 64, UDP_PROTOCOL, 0, 0]);
        sent.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        sent.extend([0x10, 0, 0x20, 0]);
        sent.extend(udp_len.to_be_bytes());
        sent.extend([0, 0]);
        sent.resize(size, 0x5a);
        assert!(checksum::complete(&mut sent[..udp], IPV4));
        if !is_partial {
            return Self { header: NetHeader::default(), received: sent.clone(), sent };
        }
        let mut pseudo_header = Sum::new();
        pseudo_header.add(&sent[udp - 8..udp]);
        pseudo_header.add_number(UDP_PROTOCOL.into());
        pseudo_header.add_number(udp_len);
        let field = udp + usize::from(UDP.offset);
        sent[field..field + 2].copy_from_slice(&(!pseudo_header.finish()).to_be_bytes());
        let mut received = sent.clone();
        assert!(checksum::complete(&mut received, UDP));
        let PartialChecksum { start: csum_start, offset: csum_offset } = UDP;
        let flags = NetHeader::NEEDS_CSUM;
        let header = NetHeader { flags, csum_start, csum_offset, ..NetHeader::default() };
        Self { header, sent, received }
    }
}

/// Adds the app that is to lie between the port of this number and the bridge.
pub type Between = fn(&mut Graph, usize) -> AppId;

/// What a pair of guests send each other.
pub struct Traffic {
    /// The frames of each, which it sends in turn.
    pub frames: [Vec<Frame>; 2],
    /// How many of them in one breath, each.
    pub burst: usize,
}

/// One worker's part of a switch, and a pair of guests whose rings belong to it.
pub struct Part {
    /// The numbers of the guests' ports.
    pub ports: [usize; 2],
    graph: Graph,
    guests: [Vec<NetDriver>; 2],
    now: u64,
    /// Frames that each has sent.
    sent: usize,
    /// Those of them whose buffers each has back.
    back: [usize; 2],
}

impl Part {
    /// The parts of one switch with a port for each of these guests. The part of worker `n` of so many
    /// has guests `n` and `n + workers`; those that are left over do nothing. There may be an app between each
    /// port and the bridge, and a membership of VLAN [`VLAN`] for each port.
    pub fn all(
        workers: usize,
        guests: Vec<Guest>,
        between: Option<Between>,
        memberships: &[Membership],
    ) -> Vec<Self> {
        let bridge = match memberships {
            [] => Bridge::new(guests.len() as u16, KEY),
            memberships => Bridge::with_vlans(memberships.into(), KEY),
        };
        let poller = Poller::new().expect("a poller");
        let (mut ports, mut drivers) = (vec![], vec![]);
        for (number, guest) in guests.into_iter().enumerate() {
            let mut parts = VhostUserPort::parts(workers, number);
            parts.iter_mut().for_each(|part| drop(part.swap(Some(&guest.device), &poller)));
            // Or the first frames would go to everybody.
            let table = bridge.table();
            let domain = if memberships.is_empty() { Domain::NONE } else { table.domain(VLAN) };
            table.learn(table.place(address(number, 0), domain), number as u16, 0);
            ports.push(parts.into_iter());
            drivers.push(Some(guest.drivers));
        }
        let part = |worker: usize| {
            let mut graph = Graph::new();
            let bridge = graph.add("bridge", bridge.part());
            for (number, parts) in ports.iter_mut().enumerate() {
                let port = graph.add("port", parts.next().expect("a part for each worker"));
                let app = between.map(|add| add(&mut graph, number));
                let mut link = |from, to| graph.link(from, to).expect("a free output");
                match app {
                    None => {
                        link((port, 0), (bridge, number));
                        link((bridge, number), (port, 0));
                    }
                    Some(app) => {
                        link((port, 0), (app, PORT));
                        link((app, NETWORK), (bridge, number));
                        link((bridge, number), (app, NETWORK));
                        link((app, PORT), (port, 0));
                    }
                }
            }
            let numbers = [worker, worker + workers];
            let guests = numbers.map(|number| drivers[number].take().expect("one of each"));
            Self { ports: numbers, graph, guests, now: 0, sent: 0, back: [0; 2] }
        };
        (0..workers).map(part).collect()
    }

    /// Both guests send each other frames, in each of so many breaths, by their first queue pair. All
    /// of them have to arrive in the same breath, as they should.
    pub fn exchange(
        &mut self,
        traffic: &Traffic,
        breaths: usize,
        mut breathe: impl FnMut(&mut Graph, u64),
    ) {
        let Traffic { frames, burst } = traffic;
        for _ in 0..breaths {
            let turns = self.sent..self.sent + burst;
            for (drivers, frames) in self.guests.iter_mut().zip(frames) {
                for turn in turns.clone() {
                    let Frame { header, sent, .. } = &frames[turn % frames.len()];
                    assert!(drivers[0].send(*header, sent).expect("a frame that fits"));
                }
                // Nobody has to be kicked: the worker is here.
                let _ = drivers[0].publish_transmit();
                for driver in drivers {
                    let _ = driver.publish_receive();
                }
            }
            self.now += BREATH;
            breathe(&mut self.graph, self.now);
            let guests = self.guests.iter_mut().zip(&mut self.back).zip(frames.iter().rev());
            for ((drivers, back), frames) in guests {
                *back += drivers[0].reclaim().expect("a rule kept");
                // Those of few frames come with what is published next.
                let (before, sent) = (self.sent, self.sent + burst);
                assert!((before..=sent).contains(&*back), "{back} buffers are back, of {sent}");
                let mut expected = turns.clone();
                for driver in drivers {
                    while let Some(is_right) = driver
                        .receive(|came| {
                            let turn = expected.next().expect("no more frames than were sent");
                            let flags = came.header.flags;
                            flags == 0 && came.frame == frames[turn % frames.len()].received
                        })
                        .expect("a rule kept")
                    {
                        assert!(is_right, "a frame arrived changed, or out of its turn");
                    }
                }
                assert!(expected.is_empty(), "frames {expected:?} did not arrive");
            }
            self.sent += burst;
        }
    }
}

/// There is nothing to report of a switch whose guests keep the rules.
pub fn report(event: Event) {
    match event {
        Event::Fault { fault, .. } => panic!("a guest broke a rule: {fault}"),
        Event::Failed { message, .. } => panic!("an app panicked: {message}"),
    }
}
