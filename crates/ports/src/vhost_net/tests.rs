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

/// A port, a peer of it, and the kernel's side of the pairs.
struct World {
    graph: Graph,
    port: AppId,
    peer: AppId,
    rings: Arc<Rings>,
    /// The kernel's side of each pair.
    pairs: Vec<[DeviceQueue; 2]>,
    now: u64,
}

const FEATURES: Features =
    Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);

impl World {
    fn new() -> Self {
        Self::with_pairs(1)
    }

    fn with_pairs(pairs: usize) -> Self {
        let (rings, layouts) = Rings::without_kernel(FEATURES, pairs).unwrap();
        let pairs = layouts.into_iter().map(|pair| {
            let mut queues = pair.map(|layout| DeviceQueue::new(layout, FEATURES, 0));
            // As long as it has nothing to do, the kernel asks to be kicked.
            queues.iter_mut().for_each(|queue| _ = queue.enable_kicks().unwrap());
            queues
        });
        let pairs = pairs.collect();
        let mut graph = Graph::new();
        let port = graph.add("port", VhostNetPort::parts(&rings, 1).remove(0));
        let peer = graph.add("peer", Peer { room: usize::MAX, ..Peer::default() });
        graph.link((port, 0), (peer, 0)).unwrap();
        graph.link((peer, 0), (port, 0)).unwrap();
        Self { graph, port, peer, rings, pairs, now: 0 }
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

    /// The same, and whether anybody had anything to do.
    fn is_busy(&mut self) -> bool {
        self.graph.breathe(self.now, |_| panic!("something happened"))
    }

    fn port<R>(&mut self, call: impl FnOnce(&mut VhostNetPort) -> R) -> R {
        call(self.graph.get(self.port).unwrap())
    }

    fn peer<R>(&mut self, call: impl FnOnce(&mut Peer) -> R) -> R {
        call(self.graph.get(self.peer).unwrap())
    }

    /// The kernel delivers a frame, and says that it fills so many buffers, if not as many as it does.
    fn deliver(&mut self, frame: &[u8], said: Option<u16>) {
        self.deliver_by(0, frame, said);
    }

    /// The same, by this pair. Returns whether it calls the port.
    fn deliver_by(&mut self, pair: usize, frame: &[u8], said: Option<u16>) -> bool {
        let memory = self.rings.memory();
        let mut translator = memory.translator();
        let bytes = NetHeader::SIZE + frame.len();
        let count = bytes.div_ceil(receive::BUFFER as usize);
        let mut chains: Vec<(Chain, usize)> = Vec::new();
        let mut slices: Vec<WriteSlice<'_>> = Vec::new();
        for _ in 0..count {
            let before = slices.len();
            let chain = self.pairs[pair][0].take_writable(&mut translator, u32::MAX, &mut slices);
            chains.push((chain.unwrap().expect("a buffer was posted"), slices[before].len()));
        }
        let num_buffers = said.unwrap_or(count as u16);
        let mut cursor = WriteCursor::new(&slices);
        cursor.write(NetHeader { num_buffers, ..NetHeader::default() }.to_bytes()[..].into());
        cursor.write(frame.into());
        let mut left = bytes;
        for (chain, room) in chains {
            self.pairs[pair][0].give_back(chain, left.min(room) as u32);
            left -= left.min(room);
        }
        self.pairs[pair][0].publish()
    }

    /// The kernel takes up to so many frames, headers and all.
    fn take(&mut self, most: usize) -> Vec<Vec<u8>> {
        self.take_all(most).0
    }

    /// The same. Returns how many, and whether it calls the port.
    fn take_and_call(&mut self, most: usize) -> (usize, bool) {
        let (frames, calls) = self.take_all(most);
        (frames.len(), calls)
    }

    fn take_all(&mut self, most: usize) -> (Vec<Vec<u8>>, bool) {
        let memory = self.rings.memory();
        let mut frames = Vec::new();
        while frames.len() < most {
            let mut slices: Vec<ReadSlice<'_>> = Vec::new();
            let taken =
                self.pairs[0][1].take_readable(&mut memory.translator(), u32::MAX, &mut slices);
            let Some(chain) = taken.unwrap() else { break };
            let mut frame = Vec::new();
            for slice in slices {
                let start = frame.len();
                frame.resize(start + slice.len(), 0);
                slice.copy_to(&mut frame[start..]);
            }
            frames.push(frame);
            self.pairs[0][1].give_back(chain, 0);
        }
        let calls = self.pairs[0][1].publish();
        (frames, calls)
    }
}

/// A frame that no other is like.
fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + number * 31 + at / 251) as u8).collect()
}

#[test]
fn frames_of_all_sizes_come_and_their_buffers_go_back() {
    let mut world = World::new();
    let fits = receive::BUFFER as usize - NetHeader::SIZE;
    // Far more buffers than there are.
    for round in 0..200 {
        let lens = [14, 60, 1514, fits - 1, fits, fits + 1, 2 * fits + 1000, 65549];
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
fn what_is_held_when_it_stops_is_counted() {
    let mut world = World::new();
    world.peer(|peer| peer.room = 2);
    (0..9).for_each(|number| world.deliver(&frame(number, 100 + 3000 * number), None));
    world.breathe();
    assert_eq!(world.peer(|peer| peer.taken.len()), 2);
    world.graph.stop_all();
    let counters = world.graph.counters(world.port);
    assert_eq!((counters.received.frames, counters[DropReason::Stopped]), (9, 7));
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
    // Tags are not part of it.
    let tagged = |number, len: usize| {
        let mut tagged = frame(number, len - 4);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        tagged
    };
    let sends = vec![frame(0, 1514), frame(1, 1515), tagged(2, 1518), tagged(3, 1519)];
    world.peer(|peer| peer.sends = sends);
    world.breathe();
    set(&mut world, |port| port.set_link(false));
    world.peer(|peer| peer.sends = vec![frame(0, 60)]);
    world.breathe();
    assert_eq!(world.take(usize::MAX).len(), 2);
    let counters = world.graph.counters(world.port);
    assert_eq!((counters[DropReason::OverMtu], counters[DropReason::ReceiverDown]), (2, 1));
}

type BreakARule = fn(&mut World);

#[test]
fn a_kernel_that_breaks_the_rules_costs_the_port_and_is_named_once() {
    let broken: [(&str, BreakARule); 5] = [
        ("in 0 buffers, of which 1 came", |world| world.deliver(&frame(0, 60), Some(0))),
        ("in 3 buffers, of which 2 came", |world| world.deliver(&frame(0, 20_000), Some(3))),
        ("in 65535 buffers, of which 1 came", |world| world.deliver(&frame(0, 60), Some(65535))),
        ("wrote 11 bytes to a buffer of 16448", |world| world.use_buffer(11)),
        ("wrote 16449 bytes to a buffer of 16448", |world| world.use_buffer(16449)),
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
        self.use_buffer_of(0, written);
    }

    fn use_buffer_of(&mut self, pair: usize, written: u32) {
        let memory = self.rings.memory();
        let chain =
            self.pairs[pair][0].take_writable(&mut memory.translator(), u32::MAX, &mut Vec::new());
        self.pairs[pair][0].give_back(chain.unwrap().unwrap(), written);
        let _ = self.pairs[pair][0].publish();
    }
}

#[test]
fn a_part_has_its_own_rings_or_transmits_by_anothers() {
    let pairs = |number, workers| {
        let (rings, _) = Rings::without_kernel(FEATURES, 1).unwrap();
        let share = Share::new(rings, number, workers).unwrap();
        let outlets: Vec<usize> = share.outlets.iter().map(|outlet| outlet.pair).collect();
        (share.receive.calls().count(), outlets)
    };
    assert_eq!(pairs(0, 1), (1, vec![0]));
    assert_eq!(pairs(1, 2), (0, vec![0]));
    assert_eq!(pairs(5, 7), (0, vec![0]));
}

#[test]
fn a_ring_that_is_armed_is_looked_at_once_more() {
    let mut world = World::new();
    // A device's first call may be one too many.
    world.deliver(&frame(0, 60), None);
    while world.is_busy() {}
    world.peer(|peer| peer.taken.clear());
    // Between the last look and the sleep.
    assert!(!world.deliver_by(0, &frame(0, 60), None), "a call while the port polls");
    assert!(world.port(VhostNetPort::arm));
    world.port(VhostNetPort::disarm);
    while world.is_busy() {}
    assert_eq!(world.peer(|peer| peer.taken.len()), 1);
    // Behind it.
    assert!(!world.port(VhostNetPort::arm));
    assert!(world.deliver_by(0, &frame(1, 60), None), "no call while the port sleeps");
    world.port(VhostNetPort::disarm);
    while world.is_busy() {}
    assert_eq!(world.peer(|peer| peer.taken.len()), 2);
    assert!(!world.deliver_by(0, &frame(2, 60), None), "a call while the port polls again");
}

/// A port with frames that wait for room sleeps until there is some.
#[test]
fn a_full_ring_that_is_armed_is_looked_at_once_more() {
    let full = || {
        let mut world = World::new();
        // A device's first call may be one too many.
        world.peer(|peer| peer.sends = vec![frame(0, 64)]);
        world.breathe();
        world.take(1);
        let count = usize::from(transmit::RING) + 40;
        world.peer(|peer| peer.sends = (0..count).map(|number| frame(number, 64)).collect());
        (0..8).for_each(|_| drop(world.breathe()));
        assert_eq!(world.peer(|peer| peer.sends.len()), 40, "held");
        world
    };
    // Between the last look and the sleep.
    let mut world = full();
    assert_eq!(world.take_and_call(1), (1, false), "a call while the port polls");
    assert!(world.port(VhostNetPort::arm));
    world.port(VhostNetPort::disarm);
    world.breathe();
    assert_eq!(world.peer(|peer| peer.sends.len()), 39);
    // Behind it.
    assert!(!world.port(VhostNetPort::arm));
    assert_eq!(world.take_and_call(1), (1, true), "no call while the port sleeps");
    world.port(VhostNetPort::disarm);
    world.breathe();
    assert_eq!(world.peer(|peer| peer.sends.len()), 38);

    // Another part has made room, which this one could not know of.
    let mut world = full();
    world.take_and_call(1);
    world.rings.transmit(0).unwrap().reap().unwrap();
    assert!(world.port(VhostNetPort::arm));

    // Nothing is held: nobody needs to call.
    let mut world = World::new();
    for is_called in [None, Some(false)] {
        world.peer(|peer| peer.sends = vec![frame(0, 64)]);
        world.breathe();
        assert!(!world.port(VhostNetPort::arm));
        let (_, calls) = world.take_and_call(1);
        assert!(is_called.is_none_or(|is_called| is_called == calls));
    }
}

#[test]
fn what_the_kernel_could_not_go_on_with_is_said_once() {
    for (ring, says) in [(1, "transmit ring 0"), (2, "receive ring 1")] {
        let mut world = World::with_pairs(2);
        while world.is_busy() {}
        assert!(!world.port(VhostNetPort::arm));
        let numbers: Vec<_> =
            world.rings.errors().unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers.len(), 4);
        world.rings.fail(numbers[ring]);
        // Of what is broken more than one thing may be found.
        world.rings.fail(numbers[0]);
        assert!(world.port(VhostNetPort::arm), "it was not looked at once more");
        let faults = world.breathe();
        assert!(faults.len() == 1 && faults[0].contains(says), "{faults:?}");
        world.peer(|peer| peer.sends = vec![frame(0, 60)]);
        assert_eq!(world.breathe(), [""; 0], "{says}");
        assert!(!world.port(VhostNetPort::arm));
        assert_eq!(world.graph.counters(world.port)[DropReason::ReceiverDown], 1);
    }
}

/// The thread that waits for errors hears of one, and ends when the rings are gone.
#[test]
fn an_error_takes_the_port_down() {
    let mut world = World::new();
    world.rings.listen().unwrap();
    let (_, error) = world.rings.errors().unwrap().pop().unwrap();
    assert_eq!(world.breathe(), [""; 0]);
    rustix::io::write(&error, &1u64.to_ne_bytes()).unwrap();
    let start = std::time::Instant::now();
    let mut faults = world.breathe();
    while faults.is_empty() {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "nobody heard of it");
        std::thread::yield_now();
        faults = world.breathe();
    }
    assert!(faults.len() == 1 && faults[0].contains("transmit ring 0"), "{faults:?}");
}

#[test]
fn whoever_waits_for_errors_hears_when_the_rings_are_gone() {
    let (rings, _) = Rings::without_kernel(FEATURES, 1).unwrap();
    let errors = rings.errors().unwrap();
    let read = || -> Vec<_> {
        errors.iter().map(|(_, error)| rustix::io::read(error, &mut [0; 8])).collect()
    };
    assert_eq!(read(), [Err(rustix::io::Errno::AGAIN); 2]);
    drop(rings);
    assert_eq!(read(), [Ok(8); 2]);
}

/// The buffers of one burst may be all those of all rings, if the kernel fills none of them.
#[test]
fn nothing_is_allocated_when_all_buffers_are_used() {
    /// In each of two rings.
    const FRAMES: usize = engine::BURST / 2;
    let mut world = World::with_pairs(2);
    let capacity =
        |world: &mut World| world.port(|port| port.share.as_ref().unwrap().receive.used_capacity());
    let before = capacity(&mut world);
    for pair in 0..2 {
        for number in 0..FRAMES {
            let buffers = usize::from(receive::RING) / FRAMES;
            world.deliver_by(pair, &frame(number, 60), Some(buffers as u16));
            (1..buffers).for_each(|_| world.use_buffer_of(pair, 0));
        }
    }
    world.breathe();
    assert_eq!(world.peer(|peer| peer.taken.len()), 2 * FRAMES);
    assert_eq!(capacity(&mut world), before);
}
