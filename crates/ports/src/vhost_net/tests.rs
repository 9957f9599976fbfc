//! The port against a kernel of the test's own: the device side of our own rings, in the same memory.

use engine::{AppId, Event, Graph};
use memory::{ReadSlice, WriteCursor, WriteSlice};
use virtqueue::{Chain, DeviceQueue};
use wire::virtio::{Features, NetHeader, Offload};

use super::*;

/// Sends frames, and sends those again that were held. Takes frames, up to `room` of them, and holds others.
#[derive(Default)]
struct Peer {
    sends: Vec<Vec<u8>>,
    pulled: Vec<Vec<u8>>,
    taken: Vec<Vec<u8>>,
    room: usize,
    counters: Counters,
}

impl App for Peer {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        burst.limit_held(engine::BURST);
        let count = self.sends.len().min(engine::BURST);
        self.pulled = self.sends.drain(..count).collect();
        let mut bytes = lease.private(self.pulled.concat().into());
        for frame in &self.pulled {
            let (one, rest) = bytes.split_at(frame.len());
            bytes = rest;
            let start = burst.segments().len();
            burst.segments().push(one.into());
            let pushed = burst.push::<()>(start..start + 1, 0, |_, _| Ok(Offload::NONE));
            assert!(matches!(pushed, Ok(Some(_))));
        }
        !self.pulled.is_empty()
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, _: Lease) {
        let pulled = std::mem::take(&mut self.pulled).into_iter().enumerate();
        let held = pulled.filter(|(index, _)| outcomes.get(*index) == engine::Outcome::Held);
        self.sends.splice(..0, held.map(|(_, frame)| frame));
    }

    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        _: &mut Outputs<'_>,
    ) {
        for index in selection.iter() {
            if self.taken.len() == self.room {
                assert!(burst.hold(index));
                continue;
            }
            let frame = burst.frame(index);
            let mut bytes = frame.head.to_vec();
            for slice in frame.body {
                let start = bytes.len();
                bytes.resize(start + slice.len(), 0);
                slice.copy_to(&mut bytes[start..]);
            }
            self.taken.push(bytes);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// A port, a peer of it, and the kernel's side of the one pair.
struct World {
    graph: Graph,
    port: AppId,
    peer: AppId,
    rings: Arc<Rings>,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    now: u64,
}

const FEATURES: Features =
    Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);

impl World {
    fn new() -> Self {
        let (rings, layouts) = Rings::without_kernel(FEATURES).unwrap();
        let [receive, transmit] = layouts.map(|layout| DeviceQueue::new(layout, FEATURES, 0));
        let mut graph = Graph::new();
        let port = graph.add("port", VhostNetPort::parts(&rings, 1).remove(0));
        let peer = graph.add("peer", Peer { room: usize::MAX, ..Peer::default() });
        graph.link((port, 0), (peer, 0)).unwrap();
        graph.link((peer, 0), (port, 0)).unwrap();
        Self { graph, port, peer, rings, receive, transmit, now: 0 }
    }

    /// Breathes, and returns what the port is said to have done wrong.
    fn breathe(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        self.graph.breathe(self.now, |event| match event {
            Event::Fault { fault, .. } => faults.push(fault.to_string()),
            Event::Failed { message, .. } => panic!("{message}"),
        });
        faults
    }

    fn peer<R>(&mut self, call: impl FnOnce(&mut Peer) -> R) -> R {
        call(self.graph.get(self.peer).unwrap())
    }

    /// The kernel delivers a frame, and says that it fills so many buffers, if not as many as it does.
    fn deliver(&mut self, frame: &[u8], said: Option<u16>) {
        let memory = self.rings.memory();
        let mut translator = memory.translator();
        let bytes = NetHeader::SIZE + frame.len();
        let count = bytes.div_ceil(receive::BUFFER as usize);
        let mut chains: Vec<(Chain, usize)> = Vec::new();
        let mut slices: Vec<WriteSlice<'_>> = Vec::new();
        for _ in 0..count {
            let before = slices.len();
            let chain = self.receive.take_writable(&mut translator, u32::MAX, &mut slices);
            chains.push((chain.unwrap().expect("a buffer was posted"), slices[before].len()));
        }
        let num_buffers = said.unwrap_or(count as u16);
        let mut cursor = WriteCursor::new(&slices);
        cursor.write(NetHeader { num_buffers, ..NetHeader::default() }.to_bytes()[..].into());
        cursor.write(frame.into());
        let mut left = bytes;
        for (chain, room) in chains {
            self.receive.give_back(chain, left.min(room) as u32);
            left -= left.min(room);
        }
        let _ = self.receive.publish();
    }

    /// The kernel takes up to so many frames, headers and all.
    fn take(&mut self, most: usize) -> Vec<Vec<u8>> {
        let memory = self.rings.memory();
        let mut frames = Vec::new();
        while frames.len() < most {
            let mut slices: Vec<ReadSlice<'_>> = Vec::new();
            let taken =
                self.transmit.take_readable(&mut memory.translator(), u32::MAX, &mut slices);
            let Some(chain) = taken.unwrap() else { break };
            let mut frame = Vec::new();
            for slice in slices {
                let start = frame.len();
                frame.resize(start + slice.len(), 0);
                slice.copy_to(&mut frame[start..]);
            }
            frames.push(frame);
            self.transmit.give_back(chain, 0);
        }
        let _ = self.transmit.publish();
        frames
    }
}

/// A frame that no other is like.
fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + number * 31 + at / 251) as u8).collect()
}

#[test]
fn frames_of_all_sizes_come_and_their_buffers_go_back() {
    let mut world = World::new();
    // Far more buffers than there are.
    for round in 0..200 {
        let lens = [14, 60, 1514, 4019, 4020, 4021, 9014, 65549];
        let sent: Vec<Vec<u8>> = lens.map(|len| frame(round, len)).into();
        sent.iter().for_each(|frame| world.deliver(frame, None));
        assert_eq!(world.breathe(), [""; 0]);
        assert!(world.peer(|peer| std::mem::take(&mut peer.taken)) == sent, "round {round}");
    }
    assert_eq!(world.graph.counters(world.port).received.frames, 200 * 8);
}

#[test]
fn held_frames_keep_their_buffers_and_their_order() {
    let mut world = World::new();
    world.peer(|peer| peer.room = 2);
    let sent: Vec<Vec<u8>> = (0..9).map(|number| frame(number, 100 + 3000 * number)).collect();
    sent.iter().for_each(|frame| world.deliver(frame, None));
    world.breathe();
    world.peer(|peer| peer.room = 5);
    world.breathe();
    // Others come meanwhile, in the buffers of those that were taken.
    for number in 0..900 {
        world.deliver(&frame(number, 60), None);
        let room = 9.min(5 + number / 50);
        world.peer(|peer| peer.room = room);
        world.breathe();
        if world.peer(|peer| peer.taken.len()) == 9 {
            assert!(number > 100, "nothing was held for long");
            assert!(world.peer(|peer| std::mem::take(&mut peer.taken)) == sent);
            return;
        }
    }
    panic!("held frames got lost");
}

#[test]
fn a_frame_goes_out_behind_its_header() {
    let mut world = World::new();
    for round in 0..40 {
        let sent: Vec<Vec<u8>> = [60, 1514, 65549].map(|len| frame(round, len)).into();
        world.peer(|peer| peer.sends = sent.clone());
        assert_eq!(world.breathe(), [""; 0]);
        let taken = world.take(usize::MAX);
        assert_eq!(taken.len(), 3);
        for (taken, sent) in taken.iter().zip(&sent) {
            assert!(taken[..12] == [0; 12] && taken[12..] == *sent, "round {round}");
        }
    }
    assert_eq!(world.graph.counters(world.port).sent.frames, 120);
}

#[test]
fn frames_for_a_full_ring_wait_and_then_go() {
    let mut world = World::new();
    let count = usize::from(transmit::RING) + 40;
    let sent: Vec<Vec<u8>> = (0..count).map(|number| frame(number, 64)).collect();
    world.peer(|peer| peer.sends = sent.clone());
    (0..8).for_each(|_| drop(world.breathe()));
    assert_eq!(world.peer(|peer| peer.sends.len()), 40, "held");
    let mut taken = world.take(10);
    world.breathe();
    assert_eq!(world.peer(|peer| peer.sends.len()), 30);
    taken.extend(world.take(usize::MAX));
    world.breathe();
    taken.extend(world.take(usize::MAX));
    assert!(taken.iter().map(|frame| &frame[12..]).eq(sent.iter().map(Vec::as_slice)));

    // A kernel that takes nothing for too long is not waited for.
    world.peer(|peer| peer.sends = sent);
    (0..8).for_each(|_| drop(world.breathe()));
    world.now += PATIENCE;
    world.breathe();
    assert_eq!(world.peer(|peer| peer.sends.len()), 0);
    assert_eq!(world.graph.counters(world.port)[DropReason::ReceiverFull], 40);
}

#[test]
fn frames_over_the_mtu_and_to_an_interface_that_is_down_are_counted() {
    let mut world = World::new();
    let set = |world: &mut World, call: fn(&mut VhostNetPort)| {
        call(world.graph.get(world.port).unwrap());
    };
    set(&mut world, |port| port.set_mtu(1500));
    world.peer(|peer| peer.sends = vec![frame(0, 1514), frame(1, 1522), frame(2, 1523)]);
    world.breathe();
    set(&mut world, |port| port.set_link(false));
    world.peer(|peer| peer.sends = vec![frame(0, 60)]);
    world.breathe();
    assert_eq!(world.take(usize::MAX).len(), 2);
    let counters = world.graph.counters(world.port);
    assert_eq!((counters[DropReason::OverMtu], counters[DropReason::ReceiverDown]), (1, 1));
}

type BreakARule = fn(&mut World);

#[test]
fn a_kernel_that_breaks_the_rules_costs_the_port_and_is_named_once() {
    let broken: [(&str, BreakARule); 5] = [
        ("in 0 buffers, of which 1 came", |world| world.deliver(&frame(0, 60), Some(0))),
        ("in 3 buffers, of which 2 came", |world| world.deliver(&frame(0, 5000), Some(3))),
        ("in 65535 buffers, of which 1 came", |world| world.deliver(&frame(0, 60), Some(65535))),
        ("wrote 11 bytes to a buffer of 4032", |world| world.use_buffer(11)),
        ("wrote 4033 bytes to a buffer of 4032", |world| world.use_buffer(4033)),
    ];
    for (says, break_a_rule) in broken {
        let mut world = World::new();
        break_a_rule(&mut world);
        let faults = world.breathe();
        assert_eq!(faults.len(), 1, "{says}");
        assert!(faults[0].contains(says), "{says}: {faults:?}");
        world.peer(|peer| peer.sends = vec![frame(0, 60)]);
        assert_eq!(world.breathe(), [""; 0], "{says}");
        assert_eq!(world.graph.counters(world.port)[DropReason::ReceiverDown], 1, "{says}");
    }
}

impl World {
    /// The kernel uses a buffer, and says that there are so many bytes in it.
    fn use_buffer(&mut self, written: u32) {
        let memory = self.rings.memory();
        let chain = self.receive.take_writable(&mut memory.translator(), u32::MAX, &mut Vec::new());
        self.receive.give_back(chain.unwrap().unwrap(), written);
        let _ = self.receive.publish();
    }
}

#[test]
fn a_part_has_its_own_rings_or_transmits_by_anothers() {
    let pairs = |number, workers| {
        let (rings, _) = Rings::without_kernel(FEATURES).unwrap();
        let share = Share::new(rings, number, workers).unwrap();
        let outlets: Vec<usize> = share.outlets.iter().map(|outlet| outlet.pair).collect();
        (share.receive.calls().count(), outlets)
    };
    assert_eq!(pairs(0, 1), (1, vec![0]));
    assert_eq!(pairs(1, 2), (0, vec![0]));
    assert_eq!(pairs(5, 7), (0, vec![0]));
}
