//! The bridge with VLANs.

use std::mem::take;

use wire::checksum::{PartialChecksum, complete};
use wire::virtio::{Segmentation, SegmentationKind};

use super::*;
use crate::bridge::vlan::VlanSet;

fn trunk(native: Option<u16>, allowed: &[u16]) -> Membership {
    let allowed = Arc::new(allowed.iter().copied().collect());
    Membership::Trunk { native, allowed, is_service: false }
}

/// A trunk whose tags are a service's.
fn service_trunk(native: Option<u16>, allowed: &[u16]) -> Membership {
    let allowed = Arc::new(allowed.iter().copied().collect());
    Membership::Trunk { native, allowed, is_service: true }
}

fn net(memberships: Vec<Membership>) -> Net {
    let ports = memberships.len();
    Net::new(Bridge::with_vlans(memberships.into(), [1, 2]), ports)
}

const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

/// A frame between two stations, with these tags: their kind, and what they say.
fn tagged(destination: u8, source: u8, tags: &[(u16, u16)]) -> Vec<u8> {
    with_tags(&frame(destination, source), tags)
}

fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let tags = tags.iter().flat_map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()]);
    [addresses, &tags.flatten().collect::<Vec<u8>>(), rest].concat()
}

impl Net {
    /// Sends one frame, and returns what came out, and where.
    fn pass(&mut self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        self.send(port, [frame.to_vec()]);
        let ports = 0..self.sides();
        let received = |port| self.received(port).into_iter().map(move |frame| (port, frame));
        ports.flat_map(received).collect()
    }
}

#[test]
fn stations_of_one_vlan_hear_each_other_and_no_others() {
    let mut net = net([10, 20, 10, 20].map(Membership::Access).to_vec());
    assert_eq!(net.ports_of(0, frame(2, 1)), [2]);
    assert_eq!(net.ports_of(1, frame(2, 3)), [3]);
    let to_all = frame_of(MacAddress::BROADCAST, host(1), b"");
    assert_eq!(net.ports_of(0, to_all), [2]);
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn an_address_may_be_in_several_vlans() {
    let mut net = net([10, 20, 10, 20].map(Membership::Access).to_vec());
    net.ports_of(0, frame(9, 1));
    net.ports_of(1, frame(9, 1));
    // A third port in each, so that flooding would show.
    assert_eq!(net.ports_of(2, frame(1, 2)), [0]);
    assert_eq!(net.ports_of(3, frame(1, 2)), [1]);
}

#[test]
fn a_trunk_has_tags_and_a_station_has_none() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10, 20]), trunk(Some(10), &[20])]);
    let (plain, on_trunk) = (frame(2, 1), tagged(2, 1, &[(CUSTOMER, 10)]));
    assert_eq!(net.pass(0, &plain), [(1, on_trunk.clone()), (2, plain.clone())]);
    assert_eq!(net.pass(1, &on_trunk), [(0, plain.clone()), (2, plain.clone())]);
    // The native VLAN, with its tag and without.
    assert_eq!(net.pass(2, &plain), [(0, plain.clone()), (1, on_trunk.clone())]);
    assert_eq!(net.pass(2, &on_trunk), [(0, plain), (1, on_trunk)]);
    let other = tagged(2, 1, &[(CUSTOMER, 20)]);
    assert_eq!(net.pass(1, &other), [(2, other)]);
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn what_a_port_does_not_belong_to_is_dropped_and_counted() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10])]);
    for (port, tags, reason) in [
        (0, vec![(CUSTOMER, 10)], DropReason::Tagged),
        (0, vec![(SERVICE, 10)], DropReason::Tagged),
        (1, vec![(CUSTOMER, 20)], DropReason::VlanNotAllowed),
        (1, vec![(CUSTOMER, 4095)], DropReason::VlanNotAllowed),
        (1, vec![(CUSTOMER, 0)], DropReason::VlanNotAllowed),
        (1, vec![], DropReason::VlanNotAllowed),
    ] {
        let before = net.drops(reason);
        assert_eq!(net.pass(port, &tagged(2, 1, &tags)), [], "port {port}, {tags:x?}");
        assert_eq!(net.drops(reason), before + 1, "port {port}, {tags:x?}");
    }
    // And nothing was learned of it.
    assert_eq!(net.app::<Bridge>().table().known(), 0);
}

#[test]
fn a_frame_that_ends_in_its_tag_is_in_no_vlan() {
    let mut net = net(vec![trunk(Some(1), &[10]), trunk(Some(1), &[10])]);
    let whole = with_tags(&frame_of(host(2), host(1), b""), &[(CUSTOMER, 10), (CUSTOMER, 20)]);
    for len in 0..whole.len() {
        assert_eq!(net.pass(0, &whole[..len]), [], "{len} bytes");
    }
    assert_eq!(net.drops(DropReason::TooShort), whole.len() as u64);
    assert_eq!(net.pass(0, &whole), [(1, whole)]);
}

#[test]
fn a_priority_alone_is_no_vlan_and_stays() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10]), Membership::Access(10)]);
    let plain = frame(2, 1);
    let prior = tagged(2, 1, &[(CUSTOMER, 0xe000)]);
    let on_trunk = tagged(2, 1, &[(CUSTOMER, 0xe00a)]);
    assert_eq!(net.pass(0, &prior), [(1, on_trunk.clone()), (2, plain.clone())]);
    assert_eq!(net.pass(1, &on_trunk), [(0, plain.clone()), (2, plain)]);
}

#[test]
fn a_customers_tags_pass_inside_of_the_services() {
    let mut net = net(vec![
        Membership::Tunnel(100),
        service_trunk(None, &[100]),
        Membership::Tunnel(100),
        trunk(None, &[100]),
    ]);
    for tags in
        [vec![], vec![(CUSTOMER, 7)], vec![(CUSTOMER, 7), (CUSTOMER, 8)], vec![(SERVICE, 5)]]
    {
        let plain = tagged(2, 1, &tags);
        let by_service = with_tags(&plain, &[(SERVICE, 100)]);
        let by_customer = with_tags(&plain, &[(CUSTOMER, 100)]);
        let all = [plain.clone(), by_service.clone(), plain.clone(), by_customer.clone()];
        for (port, frame) in all.iter().enumerate() {
            let expected: Vec<_> =
                all.iter().cloned().enumerate().filter(|(other, _)| *other != port).collect();
            assert_eq!(net.pass(port, frame), expected, "from port {port}, {tags:x?}");
        }
    }
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn a_tag_of_the_other_kind_says_nothing_of_the_vlan_and_is_not_taken() {
    let mut net =
        net(vec![trunk(Some(1), &[10]), service_trunk(Some(1), &[10]), trunk(None, &[10])]);
    for (port, kind) in [(0, SERVICE), (1, CUSTOMER)] {
        assert_eq!(net.pass(port, &tagged(2, 1, &[(kind, 10)])), []);
        assert_eq!(net.pass(port, &tagged(2, 1, &[(kind, 0)])), []);
    }
    assert_eq!(net.drops(DropReason::Tagged), 4);
}

/// The attack: an outer tag that is taken off, and an inner one that would then say another VLAN.
#[test]
fn two_tags_lead_into_no_other_vlan() {
    let memberships = vec![
        Membership::Access(10),
        trunk(Some(10), &[20]),
        Membership::Tunnel(10),
        trunk(Some(10), &[20]),
        Membership::Access(20),
        Membership::Access(10),
    ];
    // By how many ports the frame comes out: trunks, with the tag of its VLAN, and tunnels.
    for (port, tags, comes_out) in [
        (0, vec![(CUSTOMER, 0), (CUSTOMER, 20)], 0),
        (1, vec![(CUSTOMER, 10), (CUSTOMER, 20)], 2),
        (1, vec![(CUSTOMER, 0), (SERVICE, 20)], 2),
        (2, vec![(CUSTOMER, 20)], 2),
        (2, vec![(SERVICE, 20)], 2),
    ] {
        let mut net = net(memberships.clone());
        let came = net.pass(port, &tagged(2, 1, &tags));
        assert_eq!(came.len(), comes_out, "from port {port}, {tags:x?}");
        for (to, came) in came {
            assert!([1, 2, 3].contains(&to), "from port {port} to {to}, {tags:x?}");
            if to != 2 {
                let outer = [&came[12..14], &[came[14] & 0xf, came[15]]].concat();
                assert_eq!(outer, [0x81, 0, 0, 10], "from port {port} to {to}, {tags:x?}");
            }
        }
    }
}

/// Nor where it is known who they are for: alone, or among others.
#[test]
fn a_station_that_is_known_gets_no_inner_tag() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10]), Membership::Tunnel(10)]);
    assert_eq!(net.pass(0, &frame(9, 2)).len(), 2);
    for (port, inner, plain) in [
        (1, vec![(CUSTOMER, 10), (CUSTOMER, 20)], vec![(CUSTOMER, 10)]),
        (2, vec![(CUSTOMER, 20)], vec![]),
    ] {
        let [inner, plain] = [inner, plain].map(|tags| tagged(2, 1, &tags));
        let before = net.drops(DropReason::NoDestination);
        assert_eq!(net.pass(port, &inner), [], "from port {port}");
        net.send(port, [inner.clone(), plain, inner]);
        assert_eq!(net.received(0), [frame(2, 1)], "from port {port}");
        assert_eq!(net.drops(DropReason::NoDestination), before + 3, "from port {port}");
    }
}

/// Frames one behind the other that differ in what is behind their outer tag alone are not treated alike.
#[test]
fn frames_of_a_burst_differ_by_their_inner_tag() {
    let frames = [
        (
            tagged(2, 1, &[(CUSTOMER, 10), (CUSTOMER, 3)]),
            tagged(2, 1, &[(CUSTOMER, 10), (CUSTOMER, 3)]),
        ),
        (tagged(2, 1, &[(CUSTOMER, 10)]), tagged(2, 1, &[])),
        (
            tagged(2, 1, &[(CUSTOMER, 10), (SERVICE, 3)]),
            tagged(2, 1, &[(CUSTOMER, 10), (SERVICE, 3)]),
        ),
    ];
    let mut net = net(vec![trunk(None, &[10]), trunk(Some(10), &[])]);
    let [cut, whole] = [frames[0].0[..20].to_vec(), frames[0].0.clone()];
    // It ends inside of its inner tag.
    net.queue(0, [cut.clone(), whole.clone(), cut]);
    net.queue(0, frames.iter().map(|(frame, _)| frame.clone()));
    net.breathe();
    let mut expected = vec![whole];
    expected.extend(frames.map(|(_, frame)| frame));
    assert_eq!(net.received(1), expected);
    assert_eq!(net.drops(DropReason::TooShort), 2);
}

#[test]
fn a_frame_that_is_held_comes_again_as_it_was() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10])]);
    net.station(1).room = Some(0);
    let (plain, on_trunk) = (frame(2, 1), tagged(2, 1, &[(CUSTOMER, 10)]));
    assert_eq!(net.pass(0, &plain), []);
    assert_eq!(net.station(0).to_send.len(), 1);
    net.station(1).room = None;
    net.breathe();
    assert_eq!(net.received(1), [on_trunk]);
}

/// A TCP segment over IPv4 that is still to be cut, and summed: its checksum field has the pseudo header's sum.
fn uncut(tags: &[(u16, u16)]) -> (Vec<u8>, Offload) {
    let mut packet = frame_of(host(2), host(1), &[]);
    packet[12..14].copy_from_slice(&[8, 0]);
    packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 1, 0x12, 0x34, 0, 0]);
    packet.extend((0..3000u32).map(|at| (at * 7) as u8));
    let more = 4 * tags.len() as u16;
    let checksum = Some(PartialChecksum { start: 34 + more, offset: 16 });
    let kind = SegmentationKind::Tcp4;
    let segmentation = Some(Segmentation { kind, ecn: true, size: 1448, header_hint: 54 + more });
    (with_tags(&packet, tags), Offload { checksum, segmentation })
}

#[test]
fn what_is_left_to_do_to_a_frame_stays_where_it_is_in_the_packet() {
    let memberships = || {
        vec![
            Membership::Access(10),
            trunk(None, &[10]),
            service_trunk(None, &[10]),
            Membership::Tunnel(10),
            Membership::Access(10),
        ]
    };
    let plain = vec![];
    let [by_customer, by_service] = [CUSTOMER, SERVICE].map(|kind| vec![(kind, 10)]);
    let as_it_leaves = [&plain, &by_customer, &by_service, &plain, &plain];
    for (from, came) in as_it_leaves.iter().enumerate() {
        let mut net = net(memberships());
        net.station(from).to_send.push_back(uncut(came));
        net.breathe();
        for (to, tags) in as_it_leaves.iter().enumerate().filter(|(to, _)| *to != from) {
            let (frame, offload) = uncut(tags);
            let what = format!("from {from} to {to}");
            assert_eq!(net.received(to), [frame], "{what}");
            assert_eq!(take(&mut net.station(to).offloads), [offload], "{what}");
        }
    }
}

/// And whoever completes it gets the same segment.
#[test]
fn a_checksum_comes_out_the_same_with_a_tag_and_without() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10])]);
    net.station(0).to_send.push_back(uncut(&[]));
    net.breathe();
    let (mut sent, offload) = uncut(&[]);
    assert!(complete(&mut sent, offload.checksum.unwrap()));
    let mut tagged = net.received(1).remove(0);
    let moved = take(&mut net.station(1).offloads)[0].checksum.unwrap();
    assert!(complete(&mut tagged, moved));
    assert_eq!(tagged, with_tags(&sent, &[(CUSTOMER, 10)]));
}

#[test]
fn a_frame_whose_checksum_would_be_in_its_header_is_dropped_alone() {
    let mut net = net(vec![Membership::Access(10), trunk(None, &[10]), trunk(None, &[10])]);
    let on_trunk = tagged(2, 1, &[(CUSTOMER, 10)]);
    let checksum = |start| Some(PartialChecksum { start, offset: 0 });
    for start in [18, 17, 18] {
        let offload = Offload { checksum: checksum(start), segmentation: None };
        net.station(1).to_send.push_back((on_trunk.clone(), offload));
    }
    net.breathe();
    assert_eq!(net.received(0), vec![frame(2, 1); 2]);
    assert_eq!(net.drops(DropReason::ChecksumInEthernetHeader), 1);
    // Where it keeps its tag there is nothing wrong with it.
    assert_eq!(net.received(2), vec![on_trunk; 3]);
    let starts = take(&mut net.station(2).offloads).into_iter().map(|offload| offload.checksum);
    assert!(starts.eq([18, 17, 18].map(checksum)));
}

/// What somebody in front of the bridge sees who passes on, and looks again.
struct Witness {
    before_and_after: Vec<[Vec<u8>; 2]>,
    counters: Counters,
}

impl App for Witness {
    fn push(
        &mut self,
        _: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        let heads = |burst: &Burst<'_>| -> Vec<Vec<u8>> {
            selection.iter().map(|index| burst.frame(index).head.to_vec()).collect()
        };
        let before = heads(burst);
        outputs.push(0, burst, selection);
        let after = heads(burst);
        self.before_and_after
            .extend(before.into_iter().zip(after).map(|(before, after)| [before, after]));
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Each bit of their addresses counts, to the last.
#[test]
fn frames_of_a_burst_differ_by_any_bit_of_their_addresses() {
    let plain = frame_of(host(2), host(1), &[0; 50]);
    // But for those that make a group of an address.
    for bit in (0..96).filter(|bit| ![0, 48].contains(bit)) {
        let mut net = net([10; 3].map(Membership::Access).to_vec());
        net.ports_of(1, frame(9, 2));
        net.received(2);
        let mut other = plain.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        net.send(0, [plain.clone(), other.clone()]);
        let is_source = bit >= 48;
        let expected = if is_source { vec![] } else { vec![other] };
        assert_eq!(net.received(2), expected, "bit {bit}");
        assert_eq!(net.app::<Bridge>().table().known(), 2 + u64::from(is_source), "bit {bit}");
    }
}

/// More than there are places for in one bucket of the table.
#[test]
fn an_address_may_be_in_many_vlans() {
    let vlans: Vec<u16> = (1..=20).collect();
    let mut net = net(vec![trunk(None, &vlans), trunk(None, &vlans)]);
    net.send(0, vlans.iter().map(|vlan| tagged(2, 1, &[(CUSTOMER, *vlan)])));
    assert_eq!(net.received(1).len(), 20);
    assert_eq!(net.app::<Bridge>().table().known(), 20);
}

/// What an app in front of a bridge sees of frames to host 2, before it passes them on and afterwards. Host 2 is in VLAN 10, at
/// port 1, if that is known.
fn witnessed(is_known: bool, frames: &[Vec<u8>]) -> Vec<[Vec<u8>; 2]> {
    let memberships = vec![
        trunk(Some(1), &[10]),
        Membership::Access(10),
        Membership::Tunnel(1),
        service_trunk(None, &[1, 10]),
    ];
    let ports = memberships.len();
    let bridge = Bridge::with_vlans(memberships.into(), [1, 2]);
    if is_known {
        let (table, domain) = (bridge.table(), bridge.table().domain(10));
        table.learn(table.place(host(2), domain), 1, 0);
    }
    let mut graph = Graph::new();
    let bridge = graph.add("bridge", bridge);
    let witness = Witness { before_and_after: Vec::new(), counters: Counters::default() };
    let witness = graph.add("witness", witness);
    let source = graph.add("source", Station::default());
    graph.link((source, 0), (witness, 0)).unwrap();
    graph.link((witness, 0), (bridge, 0)).unwrap();
    for port in 1..ports {
        let station = graph.add("station", Station::default());
        graph.link((bridge, port), (station, 0)).unwrap();
    }
    let frames = frames.iter().map(|frame| (frame.clone(), Offload::NONE));
    graph.get::<Station>(source).unwrap().to_send.extend(frames);
    graph.breathe(0, |_| panic!("an app failed"));
    take(&mut graph.get::<Witness>(witness).unwrap().before_and_after)
}

#[test]
fn frames_are_left_as_they_came() {
    let frames = [
        tagged(2, 1, &[(CUSTOMER, 10)]),
        tagged(2, 1, &[]),
        tagged(2, 1, &[(CUSTOMER, 0x2000)]),
        tagged(2, 1, &[(CUSTOMER, 10), (CUSTOMER, 3)]),
    ];
    for is_known in [false, true] {
        // Several conversations in a burst, and one.
        for frames in [&frames[..], &frames[..1]] {
            let expected: Vec<_> =
                frames.iter().map(|frame| [frame.clone(), frame.clone()]).collect();
            assert_eq!(witnessed(is_known, frames), expected, "known: {is_known}");
        }
    }
}

/// Frames of several conversations in one burst, each of which gets a tag, or loses it, or has another; and their bytes are
/// counted as they go out.
#[test]
fn conversations_of_a_burst_have_tags_of_their_own() {
    let mut net =
        net(vec![trunk(Some(30), &[10, 20]), trunk(None, &[10, 30]), Membership::Access(10)]);
    assert_eq!(net.pass(2, &frame(9, 3)).len(), 2);
    let learned = with_tags(&frame(9, 2), &[(CUSTOMER, 30)]);
    assert_eq!(net.pass(1, &learned).len(), 1);
    let burst: Vec<Vec<u8>> = (0..12)
        .map(|at| match at % 3 {
            0 => tagged(3, 1, &[(CUSTOMER, 10)]),
            1 => tagged(2, 1, &[]),
            _ => tagged(2, 1, &[(CUSTOMER, 0x6000)]),
        })
        .collect();
    net.send(0, burst);
    let to_two = [tagged(2, 1, &[(CUSTOMER, 30)]), tagged(2, 1, &[(CUSTOMER, 0x601e)])];
    assert_eq!(net.received(1), to_two.iter().cycle().take(8).cloned().collect::<Vec<_>>());
    assert_eq!(net.received(2), vec![frame(3, 1); 4]);
    let links: Vec<_> = net.graph.links().filter(|link| link.from == (net.app, 1)).collect();
    let sent = 8 * (frame(2, 1).len() as u64 + 4);
    // What came of its own sending, too: a frame of port 2's to all in VLAN 10.
    assert_eq!(links[0].traffic.bytes, sent + frame(9, 3).len() as u64 + 4);
}

fn membership() -> impl Strategy<Value = Membership> {
    let vlan = || prop_oneof![Just(1u16), Just(2), Just(3)];
    prop_oneof![
        vlan().prop_map(Membership::Access),
        vlan().prop_map(Membership::Tunnel),
        (prop::option::of(vlan()), prop::collection::vec(vlan(), 0..3), any::<bool>()).prop_map(
            |(native, allowed, is_service)| match is_service {
                true => service_trunk(native, &allowed),
                false => trunk(native, &allowed),
            }
        ),
    ]
}

/// The VLAN that a frame is in, its priority, and the tags behind the one that says so.
type Class = (u16, u16, Vec<(u16, u16)>);

/// What a frame is, by the standard's words.
fn classify(port: &Membership, tags: &[(u16, u16)]) -> Option<Class> {
    let ours = match port {
        Membership::Tunnel(vlan) => return Some((*vlan, 0, tags.to_vec())),
        Membership::Trunk { is_service: true, .. } => SERVICE,
        _ => CUSTOMER,
    };
    let (tag, inner) = match tags {
        [] => (None, vec![]),
        [(kind, control), inner @ ..] if *kind == ours => (Some(*control), inner.to_vec()),
        _ => return None,
    };
    let (priority, vlan) = tag.map_or((0, 0), |control| (control & 0xf000, control & 0xfff));
    match port {
        Membership::Access(own) => {
            (vlan == 0 && inner.is_empty()).then_some((*own, priority, inner))
        }
        Membership::Trunk { native, allowed, .. } => {
            let vlan = if vlan == 0 { (*native)? } else { vlan };
            let is_member = *native == Some(vlan) || allowed.contains(vlan);
            is_member.then_some((vlan, priority, inner))
        }
        Membership::Tunnel(_) => unreachable!("was looked at"),
    }
}

/// The tags with which a frame leaves, if it may.
fn leave(port: &Membership, (vlan, priority, inner): &Class) -> Option<Vec<(u16, u16)>> {
    match port {
        Membership::Access(own) => (own == vlan && inner.is_empty()).then(Vec::new),
        Membership::Tunnel(own) => (own == vlan).then(|| inner.clone()),
        Membership::Trunk { native, .. } if *native == Some(*vlan) && inner.is_empty() => {
            Some(vec![])
        }
        Membership::Trunk { native, allowed, is_service } => {
            let kind = if *is_service { SERVICE } else { CUSTOMER };
            let is_member = *native == Some(*vlan) || allowed.contains(*vlan);
            is_member.then(|| [&[(kind, priority | vlan)], &inner[..]].concat())
        }
    }
}

proptest! {
    /// Bursts of any frames, on any ports, against a bridge for each VLAN with a map for a table.
    #[test]
    fn each_vlan_is_a_bridge_of_its_own(
        memberships in prop::collection::vec(membership(), 1..5),
        bursts in prop::collection::vec(
            (0usize..5, prop::collection::vec(
                (0u8..4, 0u8..4, prop::collection::vec(
                    (prop_oneof![Just(CUSTOMER), Just(SERVICE)],
                     prop_oneof![Just(0u16), Just(1), Just(2), Just(0x6000), Just(0xe003), Just(9)]),
                    0..3)),
                1..12)),
            1..12),
    ) {
        let mut net = net(memberships.clone());
        let mut learned: HashMap<(u16, u8), usize> = HashMap::new();
        for (port, frames) in bursts {
            let port = port % memberships.len();
            let mut expected = vec![Vec::new(); memberships.len()];
            for (destination, source, tags) in frames {
                net.queue(port, [tagged(destination, source, &tags)]);
                let Some(is) = classify(&memberships[port], &tags) else { continue };
                learned.insert((is.0, source), port);
                let to = learned.get(&(is.0, destination));
                for (other, membership) in memberships.iter().enumerate() {
                    if other != port && to.is_none_or(|to| *to == other)
                        && let Some(tags) = leave(membership, &is)
                    {
                        expected[other].push(tagged(destination, source, &tags));
                    }
                }
            }
            net.breathe();
            for (port, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&net.received(port), expected, "at port {}", port);
            }
        }
    }

    #[test]
    fn a_set_holds_what_was_put_in(vlans in prop::collection::hash_set(0u16..5000, 0..50)) {
        let set: VlanSet = vlans.iter().copied().collect();
        for vlan in 0..=u16::MAX {
            let is_in = vlans.contains(&vlan) && (1..=4094).contains(&vlan);
            prop_assert_eq!(set.contains(vlan), is_in, "{}", vlan);
        }
    }
}
