//! What is in one burst: frames in one buffer and in several, as they are and to be worked on, good and
//! bad, in every order. Frames in one buffer each are taken and delivered in loops of their own, up to the
//! first that is another one; nobody can tell.

use std::collections::{HashMap, VecDeque};

use engine::{App, BURST, DropReason};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wire::virtio::{Features, NetHeader};

use crate::guest::{Cut, Guest, RECEIVE, Regions, TRANSMIT};
use crate::segments::{KINDS, Packet, SENDS_ALL, TAKES_ALL};
use crate::world::{MODERN, World, frame};

/// Entries in the rings: there is a region of memory for each buffer.
const ENTRIES: u16 = 128;
/// What a port lets through that has an MTU: two tags more than that.
const MTU: u16 = 1500;
const LIMIT: usize = 14 + 2 * 4 + MTU as usize;
/// The longest frame there is.
const LONGEST: usize = 65535 + 14 + 2 * 4;
/// The largest payload that is to be segmented.
const LARGE: usize = 8000;
/// Room for a frame of the usual size, and its header.
const USUAL: u32 = 12 + LIMIT as u32;

/// With EVENT_IDX or not, IN_ORDER or not, of both formats.
fn flavours() -> impl Iterator<Item = Features> {
    let choices = [Features::EVENT_IDX, Features::IN_ORDER, Features::RING_PACKED];
    (0..8u8).map(move |bits| {
        let chosen = (0..3).filter(|bit| bits >> bit & 1 == 1);
        chosen.fold(Features::INDIRECT_DESC, |features, bit| features | choices[bit])
    })
}

/// How memory is cut: of the sender, and of the receiver.
const WHOLE: [Regions; 2] = [Regions::One; 2];
const HALVES: [Regions; 2] = [Regions::Halves(TRANSMIT), Regions::Halves(RECEIVE)];

fn guest(features: Features, regions: Regions) -> Guest {
    Guest::with_regions(regions, 1, features, Cut::Whole, ENTRIES)
}

/// What is sent. Lengths are of a frame without its header, or of a payload.
#[derive(Clone, Debug)]
enum Item {
    Plain {
        len: usize,
    },
    Checksum {
        kind: usize,
        tags: usize,
        payload: usize,
    },
    Segmentation {
        kind: usize,
        tags: usize,
        payload: usize,
    },
    OverMtu {
        len: usize,
    },
    /// Header included, if there is one.
    TooShort {
        bytes: usize,
    },
    TooLong {
        more: usize,
    },
}

fn item() -> impl Strategy<Value = Item> {
    let kind = 0..KINDS.len();
    prop_oneof![
        12 => (14..=LIMIT).prop_map(|len| Item::Plain { len }),
        // Around what is copied into private memory.
        4 => (120usize..136).prop_map(|len| Item::Plain { len }),
        3 => (kind.clone(), 0..3usize, 1..1393usize)
            .prop_map(|(kind, tags, payload)| Item::Checksum { kind, tags, payload }),
        2 => (kind, 0..3usize, 0..LARGE)
            .prop_map(|(kind, tags, payload)| Item::Segmentation { kind, tags, payload }),
        2 => (LIMIT + 1..4000).prop_map(|len| Item::OverMtu { len }),
        2 => (0usize..12 + 14).prop_map(|bytes| Item::TooShort { bytes }),
        1 => (1usize..2000).prop_map(|more| Item::TooLong { more }),
    ]
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        8 => Just(Cut::Whole),
        2 => Just(Cut::Indirect),
        1 => Just(Cut::Crumbs),
        1 => Just(Cut::Mixed),
    ]
}

/// How a receiver posts its buffers: how each is cut, and its bytes in thousandths of what there is
/// between the smallest and the largest.
#[derive(Clone, Debug)]
struct Buffers {
    each: Vec<(Cut, u32)>,
    /// Before anything is sent, and after each breath.
    first: usize,
    then: usize,
}

fn buffers() -> impl Strategy<Value = Buffers> {
    let each = prop::collection::vec((cut(), 0..=1000u32), 1..20);
    (each, 0..=usize::from(ENTRIES), 1..40usize).prop_map(|(each, first, then)| Buffers {
        each,
        first,
        then,
    })
}

/// How many frames come in a breath: each alone, a few, or as many as there is room for.
fn pace() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(1), 1 => 2..9usize, 2 => Just(usize::MAX)]
}

/// What has to arrive.
enum Due {
    Plain(Vec<u8>),
    Packet(Packet),
}

/// A sender that leaves everything undone and a receiver, and what is on its way.
struct Model {
    world: World,
    buffers: Buffers,
    posted: usize,
    /// The port that has an MTU.
    limited: usize,
    due: VecDeque<Due>,
    drops: [HashMap<&'static str, u64>; 2],
}

impl Model {
    fn new(sender: Guest, receiver: Guest, limited: usize, buffers: Buffers) -> Self {
        let mut world = World::pair([sender, receiver]);
        world.port(limited).set_mtu(MTU);
        let (due, drops) = (VecDeque::new(), Default::default());
        Self { world, buffers, posted: 0, limited, due, drops }
    }

    fn drops(&mut self, port: usize, reason: DropReason) {
        *self.drops[port].entry(reason.name()).or_default() += 1;
    }

    /// Sends a frame, if there is room.
    fn send(&mut self, item: &Item, cut: Cut, seed: usize) -> bool {
        let guest = &mut self.world.guests[0];
        guest.cut = cut;
        if !guest.can_send() {
            return false;
        }
        match *item {
            Item::Plain { len } => {
                let frame = frame(0, 1, len, seed);
                guest.send(&frame);
                self.due.push_back(Due::Plain(frame));
            }
            Item::Checksum { kind, tags, payload } => {
                let mut packet = Packet::new(KINDS[kind], tags, payload);
                packet.header.gso_type = NetHeader::GSO_NONE;
                (packet.header.gso_size, packet.header.hdr_len) = (0, 0);
                packet.send(guest);
                self.due.push_back(Due::Packet(packet));
            }
            Item::Segmentation { kind, tags, payload } => {
                let packet = Packet::new(KINDS[kind], tags, payload);
                packet.send(guest);
                self.due.push_back(Due::Packet(packet));
            }
            Item::OverMtu { len } => {
                guest.send(&frame(0, 1, len, seed));
                self.drops(self.limited, DropReason::OverMtu);
            }
            Item::TooShort { bytes } => {
                guest.send_bytes(&vec![0; bytes]);
                self.drops(0, DropReason::TooShort);
            }
            Item::TooLong { more } => {
                guest.send(&frame(0, 1, LONGEST + more, seed));
                self.drops(0, DropReason::TooLong);
            }
        }
        true
    }

    /// Posts buffers, as far as there is room.
    fn post(&mut self, count: usize) {
        let guest = &mut self.world.guests[1];
        let merges = guest.features.contains(Features::MRG_RXBUF);
        let takes_large = guest.features.contains(Features::GUEST_TSO4);
        for _ in 0..count {
            let (cut, thousandths) = self.buffers.each[self.posted % self.buffers.each.len()];
            guest.cut = cut;
            if !guest.receive.has_room(cut) {
                break;
            }
            // A ring full of them has room for anything; one of them has where they do not merge.
            let (smallest, largest) = match cut {
                _ if !merges && takes_large => (USUAL + LARGE as u32, USUAL + 2 * LARGE as u32),
                Cut::Whole | Cut::Indirect if merges => (300, 4 * USUAL),
                _ => (USUAL, 4 * USUAL),
            };
            guest.post(smallest + (largest - smallest) * thousandths / 1000);
            self.posted += 1;
        }
    }

    /// Looks at what came: the next that was due, whole. Returns whether there was anything.
    fn look(&mut self) -> bool {
        let guest = &mut self.world.guests[1];
        let takes_large = guest.features.contains(Features::GUEST_TSO4);
        let received = guest.received();
        let mut rest = &received[..];
        while let [first, ..] = rest {
            let num_buffers = first.header.num_buffers;
            let as_is = |header: NetHeader, frame: &[u8]| {
                assert_eq!(first.header, NetHeader { num_buffers, ..header });
                assert!(first.frame == frame, "{} bytes of {}", first.frame.len(), frame.len());
                1
            };
            let count = match self.due.pop_front().expect("nothing was due") {
                Due::Plain(frame) => as_is(NetHeader::default(), &frame),
                Due::Packet(packet) if takes_large => as_is(packet.header, &packet.frame),
                Due::Packet(packet) => {
                    let count = packet.count().min(rest.len());
                    packet.check(&rest[..count]);
                    count
                }
            };
            rest = &rest[count..];
        }
        !received.is_empty()
    }

    fn breathe(&mut self) {
        let mut moved = self.world.after(1);
        moved |= self.look();
        moved |= self.world.guests[0].reap() > 0;
        let before = self.posted;
        self.post(self.buffers.then);
        assert!(moved || self.posted > before, "{} are due, and nothing moves", self.due.len());
    }

    /// Sends all of it, so many in a breath.
    fn run(mut self, items: &[(Item, Cut)], pace: usize) {
        self.post(self.buffers.first);
        for (seed, (item, cut)) in items.iter().enumerate() {
            while !self.send(item, *cut, seed) {
                self.breathe();
            }
            if (seed + 1).is_multiple_of(pace) {
                self.breathe();
            }
        }
        while !self.due.is_empty() || self.world.guests[0].transmit.outstanding() > 0 {
            self.breathe();
        }
        assert!(!self.world.after(1) || !self.look(), "more than was sent");
        for port in [0, 1] {
            let counters = self.world.counters(port);
            let counted = counters.drops().map(|(reason, count)| (reason.name(), count));
            assert_eq!(self.drops[port], counted.collect(), "drops of port {port}");
            assert_eq!(self.world.guests[port].transmit.room(), usize::from(ENTRIES));
        }
        assert!(self.world.faults.is_empty(), "{:?}", self.world.faults);
        // Nothing was taken of the receiver's ring that was not used.
        for (ring, position) in self.world.swap(1, None).positions {
            let guest = &self.world.guests[1];
            let used = match guest.features.contains(Features::RING_PACKED) {
                true => position >> 16,
                false => guest.used_index(ring).into(),
            };
            assert_eq!(position & 0xFFFF, used, "ring {ring}");
        }
    }
}

/// Tries so many mixtures for each flavour.
fn in_every_order(cases: u32, receiver: Features, regions: [Regions; 2]) {
    for (number, flavour) in flavours().enumerate() {
        // Packed rings came with VERSION_1.
        if flavour.contains(Features::RING_PACKED) && !receiver.contains(Features::VERSION_1) {
            continue;
        }
        let config = Config {
            cases,
            rng_seed: RngSeed::Fixed(number as u64),
            failure_persistence: None,
            ..Config::default()
        };
        let items = prop::collection::vec((item(), cut()), 1..100);
        TestRunner::new(config)
            .run(&(items, buffers(), 0..2usize, pace()), |(items, buffers, limited, pace)| {
                let sender = guest(SENDS_ALL | flavour, regions[0]);
                let receiver = guest(receiver | flavour, regions[1]);
                Model::new(sender, receiver, limited, buffers).run(&items, pace);
                Ok(())
            })
            .unwrap_or_else(|failure| panic!("{flavour} to {receiver}: {failure}"));
    }
}

#[test]
fn a_mixture_arrives_in_order_where_everything_has_to_be_worked_on() {
    in_every_order(24, MODERN, WHOLE);
}

#[test]
fn a_mixture_arrives_in_order_where_nothing_has_to_be_worked_on() {
    in_every_order(24, MODERN | TAKES_ALL, WHOLE);
}

#[test]
fn a_mixture_arrives_in_order_where_buffers_cannot_be_merged() {
    in_every_order(24, Features::VERSION_1, WHOLE);
}

#[test]
fn a_mixture_arrives_in_order_in_large_buffers_that_cannot_be_merged() {
    in_every_order(24, Features::VERSION_1 | TAKES_ALL, WHOLE);
}

#[test]
fn a_mixture_arrives_in_order_behind_legacy_headers() {
    in_every_order(24, Features::NONE, WHOLE);
}

#[test]
fn a_mixture_arrives_in_order_though_each_buffer_is_in_another_region() {
    in_every_order(8, MODERN, [Regions::Stripes; 2]);
}

#[test]
fn a_mixture_arrives_in_order_though_some_buffers_are_in_another_region() {
    in_every_order(24, MODERN, HALVES);
    in_every_order(24, MODERN | TAKES_ALL, [Regions::Borders; 2]);
}

/// Frames of so many bytes, each another one.
fn frames(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| frame(0, 1, len, seed)).collect()
}

/// Two guests of one flavour: with buffers that can be merged or not, in one region or in others.
fn worlds() -> impl Iterator<Item = World> {
    let memory = [WHOLE, HALVES, [Regions::Borders; 2], [Regions::Stripes; 2]];
    let pairs = move |flavour, receiver| {
        memory.map(|[sends, receives]| {
            World::pair([guest(MODERN | flavour, sends), guest(receiver | flavour, receives)])
        })
    };
    let receivers = [MODERN, Features::VERSION_1];
    flavours().flat_map(move |flavour| {
        receivers.into_iter().flat_map(move |receiver| pairs(flavour, receiver))
    })
}

/// A burst of large frames ends where it has enough bytes; what is behind it is not lost, and comes next.
#[test]
fn large_frames_end_a_burst_by_their_bytes() {
    const LEN: usize = 9000;
    const ENOUGH: usize = 512 * 1024;
    for cut in [Cut::Whole, Cut::Indirect] {
        for mut world in worlds() {
            let sent = frames(BURST, LEN);
            world.guests[0].cut = cut;
            sent.iter().for_each(|frame| world.guests[0].send(frame));
            (0..BURST).for_each(|_| _ = world.guests[1].post(12 + LEN as u32));
            assert!(world.breathe());
            let first = ENOUGH.div_ceil(12 + LEN);
            assert!(first < BURST);
            assert!(world.guests[1].frames() == sent[..first], "as many as it takes");
            assert_eq!(world.guests[0].reap(), first);
            assert!(world.port(0).arm(), "nobody has to kick for the rest");
            assert!(world.breathe());
            assert!(world.guests[1].frames() == sent[first..], "the rest");
            assert_eq!(world.guests[0].reap(), BURST - first);
            (0..2).for_each(|port| world.assert_drops(port, &[]));
        }
    }
}

/// A receiver gets as much of a burst as it has buffers for, and the rest when it has more.
#[test]
fn what_there_are_no_buffers_for_waits_and_arrives() {
    for buffers in [0, 1, 2, 31, 63, 64] {
        for mut world in worlds() {
            let sent = frames(BURST, 200);
            sent.iter().for_each(|frame| world.guests[0].send(frame));
            world.guests[1].post_many(buffers);
            world.breathe();
            assert_eq!(world.guests[1].frames(), sent[..buffers]);
            assert_eq!(world.guests[0].reap(), buffers);
            let mut arrived = buffers;
            while arrived < BURST {
                world.guests[1].post_many(13);
                world.breathe();
                let next = (arrived + 13).min(BURST);
                assert_eq!(world.guests[1].frames(), sent[arrived..next]);
                assert_eq!(world.guests[0].reap(), next - arrived);
                arrived = next;
            }
            assert_eq!(world.counters(0).received.frames, BURST as u64, "counted once");
            assert_eq!(world.counters(0).received, world.counters(1).sent);
            (0..2).for_each(|port| world.assert_drops(port, &[]));
        }
    }
}
