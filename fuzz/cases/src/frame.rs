//! A frame's way from one guest to another.
//!
//! Both keep the rules of rings. What they negotiated, what the sender says in its headers, how
//! frames and receive buffers are cut, and when the switch breathes, is up to the input.

use std::collections::VecDeque;

use engine::{AppId, Event, Graph, Poller};
use ports::vhost_user::{PATIENCE, VhostUserPort};
use virtqueue::Form;
use wire::checksum::Sum;
use wire::ethernet::{EtherType, HEADER_SIZE};
use wire::segment::{MAX_HEADERS, Segments};
use wire::virtio::{Features, NetHeader, Offload};

use crate::Reached;
use crate::formats::completed_by_definition;
use crate::guest::{AREA, Guest};
use crate::input::{Input, chosen};

/// The features that decide over a ring's and a frame's form.
const CHOICE: [Features; 20] = [
    Features::VERSION_1,
    Features::MRG_RXBUF,
    Features::INDIRECT_DESC,
    Features::EVENT_IDX,
    Features::CSUM,
    Features::GUEST_CSUM,
    Features::HOST_TSO4,
    Features::HOST_TSO6,
    Features::HOST_ECN,
    Features::GUEST_TSO4,
    Features::GUEST_TSO6,
    Features::GUEST_ECN,
    Features::ANY_LAYOUT,
    Features::MTU,
    Features::GUEST_ANNOUNCE,
    Features::HOST_USO,
    Features::GUEST_USO4,
    Features::GUEST_USO6,
    Features::RING_PACKED,
    Features::IN_ORDER,
];

/// Frames with arbitrary headers between two guests with arbitrary features.
pub fn frame(data: &[u8]) -> Reached {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 12) {
        match step {
            0..=3 => world.post(&mut input),
            4..=8 => world.send(&mut input),
            9..=10 => world.breathe(1_000),
            _ => world.breathe(u64::from(input.u32())),
        }
    }
    world.finish();
    world.reached
}

/// What was sent.
struct Sent {
    /// None for what is no frame.
    frame: Option<Vec<u8>>,
    header: NetHeader,
}

struct World {
    graph: Graph,
    ports: [AppId; 2],
    now: u64,
    sender: Guest,
    receiver: Guest,
    sent: Vec<Sent>,
    given_back: usize,
    delivered: usize,
    /// The number of the frame that came last.
    last: Option<usize>,
    /// Its segments that have not come.
    pending: VecDeque<Vec<u8>>,
    /// Frames that came with all of their segments.
    whole: usize,
    /// The receiver posted a buffer that cannot hold a header.
    may_fault: bool,
    has_faulted: bool,
    reached: Reached,
}

/// A guest with any features, as a session hands them over.
fn guest(input: &mut Input<'_>) -> Guest {
    let size = input.u8();
    let features = chosen(&CHOICE, input.u32());
    let features = features.without(features.missing_dependencies());
    let size = match features.contains(Features::RING_PACKED) {
        true => 1 + u16::from(size % 24),
        false => 1 << (size % 5),
    };
    Guest::new(features, size)
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let [sender, receiver] = [(); 2].map(|()| guest(input));
        let mut graph = Graph::new();
        let poller = Poller::new().expect("a poller");
        let ports = [&sender, &receiver].map(|guest| {
            let mut port = VhostUserPort::new();
            port.swap(Some(&guest.device()), &poller);
            graph.add("port", port)
        });
        let [one, two] = ports;
        graph.link((one, 0), (two, 0)).expect("a link");
        graph.link((two, 0), (one, 0)).expect("a link");
        Self {
            graph,
            ports,
            now: 0,
            sender,
            receiver,
            sent: Vec::new(),
            given_back: 0,
            delivered: 0,
            last: None,
            pending: VecDeque::new(),
            whole: 0,
            may_fault: false,
            has_faulted: false,
            reached: Reached::default(),
        }
    }

    /// How `total` bytes are cut into descriptors, and where those lie.
    fn cut(input: &mut Input<'_>, total: u32) -> (Vec<u32>, Form) {
        let form = match input.below(4) {
            0..=1 => Form::Direct,
            indirect => Form::Indirect(indirect as u16 - 2),
        };
        let mut lens = Vec::new();
        let mut left = total;
        for _ in 0..input.below(6) {
            let len = u32::from(input.u8() & 0x3f).min(left);
            lens.push(len);
            left -= len;
        }
        lens.push(left);
        (lens, form)
    }

    fn post(&mut self, input: &mut Input<'_>) {
        let total = match input.below(8) {
            0..=1 => u32::from(input.u8()),
            2..=5 => u32::from(input.u16() % 4096),
            6 => 1526,
            _ => AREA,
        };
        let (lens, form) = Self::cut(input, total);
        if self.receiver.post(&lens, form) {
            self.may_fault |= (total as usize) < self.receiver.header_size();
        }
    }

    fn send(&mut self, input: &mut Input<'_>) {
        let mut header = header(input);
        let len = match input.below(8) {
            0..=2 => usize::from(input.u8()),
            3..=6 => usize::from(input.u16() % 2048),
            _ => usize::from(input.u16()) + 64,
        };
        let seed = input.u8();
        let mut frame: Vec<u8> =
            (0..len).map(|at| (at as u8).wrapping_mul(37) ^ (at >> 8) as u8 ^ seed).collect();
        if seed >= 0xc0 {
            packet(&mut frame, &mut header, seed);
        }
        // Known by a number where no checksum goes.
        let number = (self.sent.len() as u32).to_be_bytes();
        if let Some(place) = frame.get_mut(6..10) {
            place.copy_from_slice(&number);
        }
        let bytes = [&header.to_bytes()[..self.sender.header_size()], &frame].concat();
        // Now and then not even a whole header.
        let bytes = if input.rarely() { &bytes[..bytes.len().min(13)] } else { &bytes[..] };
        let is_frame = bytes.len() >= self.sender.header_size() + HEADER_SIZE;
        let (lens, form) = Self::cut(input, bytes.len() as u32);
        if self.sender.send(bytes, &lens, form) {
            frame.truncate(bytes.len().saturating_sub(self.sender.header_size()));
            self.sent.push(Sent { frame: is_frame.then_some(frame), header });
        }
    }

    fn breathe(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        let [_, receiver] = self.ports;
        let mut faults = 0;
        self.graph.breathe(self.now, |event| match event {
            Event::Fault { app, fault } => {
                assert_eq!(app, receiver, "the sender keeps all rules: {fault}");
                faults += 1;
            }
            Event::Failed { message, .. } => panic!("a port panicked: {message}"),
        });
        if faults > 0 {
            assert!(self.may_fault && !self.has_faulted && faults == 1);
            self.has_faulted = true;
            self.reached.note("fault");
            return;
        }
        self.given_back += self.sender.reap();
        while let Some(received) = self.receiver.receive() {
            assert!(!self.has_faulted, "delivered after a fault");
            self.check(&received.header, &received.frame, received.buffers);
        }
        assert_eq!(self.sender.receive().map(|received| received.frame), None);
    }

    fn check(&mut self, header: &NetHeader, frame: &[u8], buffers: u16) {
        self.delivered += 1;
        let number = frame[6..10].try_into().map(u32::from_be_bytes).expect("four bytes") as usize;
        let sent = &self.sent[number];
        let original = sent.frame.as_ref().expect("a frame");
        let offload = sent.header.offload(original.len(), self.sender.features);
        let offload = offload.expect("a header that asks for what may be asked for");
        let can_take = self.receiver.features.contains(offload.needs());
        if self.last != Some(number) || self.pending.is_empty() {
            assert!(self.last < Some(number), "frames of one sender come in order, once");
            self.last = Some(number);
            self.pending = match (can_take, offload.segmentation, offload.checksum) {
                (true, ..) => [original.clone()].into(),
                (false, Some(_), _) => segments(original, &offload),
                (false, None, Some(partial)) => [completed_by_definition(original, partial)].into(),
                (false, None, None) => unreachable!("something to be done to it"),
            };
        }
        let expected = self.pending.pop_front().expect("as many frames as are made of one");
        assert!(frame == expected, "other bytes than were sent");
        self.whole += usize::from(self.pending.is_empty());

        let expected = if can_take { offload } else { Offload::NONE }.header(buffers);
        let is_legacy = self.receiver.header_size() == NetHeader::LEGACY_SIZE;
        let num_buffers = if is_legacy { 0 } else { buffers };
        assert_eq!(*header, NetHeader { num_buffers, ..expected });
        self.note(&offload, can_take, buffers);
    }

    /// Notes how a frame was delivered.
    fn note(&mut self, offload: &Offload, can_take: bool, buffers: u16) {
        let both_have = |feature| {
            [&self.sender, &self.receiver].into_iter().all(|guest| guest.features.contains(feature))
        };
        for (name, happened) in [
            ("delivered", can_take),
            ("packed", both_have(Features::RING_PACKED)),
            ("in order", both_have(Features::IN_ORDER)),
            ("merged", buffers > 1),
            ("segmentation", can_take && offload.segmentation.is_some()),
            ("segmented", !can_take && offload.segmentation.is_some()),
            ("completed", !can_take && offload.segmentation.is_none()),
        ] {
            if happened {
                self.reached.note(name);
            }
        }
    }

    /// However it went, the sender gets everything back, and everything is accounted for.
    fn finish(&mut self) {
        for _ in 0..self.sent.len() + 2 {
            self.breathe(PATIENCE + 1);
        }
        assert_eq!(self.sender.outstanding()[1], 0, "a chain was not given back");
        assert_eq!(self.given_back, self.sent.len());
        let counters = self.ports.map(|port| self.graph.counters(port));
        let mut dropped = 0;
        for (reason, count) in counters.iter().flat_map(|counters| counters.drops()) {
            dropped += count as usize;
            self.reached.note(reason.name());
        }
        // Those of the breath in which a port went down were not published.
        let sent_on = counters[1].sent.frames as usize;
        assert!(self.delivered == sent_on || self.has_faulted);
        // A frame of which some segments were delivered, and not all, is one that was dropped.
        assert!(self.whole + dropped == self.sent.len() || self.has_faulted);
    }
}

/// A header that may well be right.
fn header(input: &mut Input<'_>) -> NetHeader {
    if input.rarely() {
        return NetHeader::from_bytes(&input.array());
    }
    let kind = input.u8();
    let gso_type = match kind >> 2 & 7 {
        0..=3 => NetHeader::GSO_NONE,
        4 => NetHeader::GSO_TCPV4,
        5 => NetHeader::GSO_TCPV6,
        6 => NetHeader::GSO_TCPV4 | NetHeader::GSO_ECN,
        _ => NetHeader::GSO_UDP_L4,
    };
    NetHeader {
        flags: kind & 3,
        gso_type,
        hdr_len: input.u8().into(),
        gso_size: input.u8().into(),
        csum_start: input.u8().into(),
        csum_offset: input.u8().into(),
        num_buffers: (kind >> 5).into(),
    }
}

/// Makes a frame a packet that may be segmented, and its header one that asks for that.
fn packet(frame: &mut [u8], header: &mut NetHeader, choice: u8) {
    let (ethertype, gso_type) = match choice & 3 {
        0 | 3 => (EtherType::IPV4, NetHeader::GSO_TCPV4),
        1 => (EtherType::IPV6, NetHeader::GSO_TCPV6),
        _ => (EtherType::IPV4, NetHeader::GSO_UDP_L4),
    };
    let is_udp = gso_type == NetHeader::GSO_UDP_L4;
    let protocol = if is_udp { 17 } else { 6 };
    let network_len = if ethertype == EtherType::IPV4 { 20 } else { 40 };
    let start = HEADER_SIZE + network_len;
    let transport_len = frame.len().saturating_sub(start) as u16;
    let Some((link, rest)) = frame.split_at_mut_checked(HEADER_SIZE) else { return };
    let Some((network, transport)) = rest.split_at_mut_checked(network_len) else { return };
    let Some(transport) = transport.first_chunk_mut::<20>() else { return };
    link[12..].copy_from_slice(&ethertype.0.to_be_bytes());
    // A length of 0 says that it is the frame's.
    if ethertype == EtherType::IPV4 {
        network[0] = 0x45;
        network[2..4].fill(0);
        network[6..8].fill(0);
        network[9] = protocol;
    } else {
        network[0] = 0x60;
        network[4..6].fill(0);
        network[6] = protocol;
    }
    if is_udp {
        transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
    } else {
        transport[12] = 0x50;
    }
    *header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type,
        gso_size: header.gso_size.max(8),
        csum_start: start as u16,
        csum_offset: if is_udp { 6 } else { 16 },
        ..*header
    };
}

/// The segments of a frame, each with its checksum.
fn segments(frame: &[u8], offload: &Offload) -> VecDeque<Vec<u8>> {
    let segmentation = offload.segmentation.expect("something to segment");
    let checksum = offload.checksum.expect("a checksum to complete");
    let head = &frame[..frame.len().min(MAX_HEADERS)];
    let segments = Segments::plan(head, frame.len(), segmentation, checksum);
    let mut segments = segments.expect("a frame that was segmented");
    let mut list = VecDeque::new();
    while let Some(segment) = segments.next() {
        let payload = &frame[segment.payload()];
        let mut sum = Sum::new();
        sum.add(payload);
        let mut bytes = [segment.header(), payload].concat();
        bytes[segment.checksum_at()..][..2].copy_from_slice(&segment.checksum(sum));
        list.push_back(bytes);
    }
    list
}
