use std::collections::HashMap;

use engine::Graph;
use proptest::prelude::*;
use wire::ethernet::{EtherType, Ethernet, MacAddress};
use wire::virtio::Offload;

use super::*;
use crate::testing::{Net, Station, host};

mod sides;
mod vlans;

const SECOND: u64 = 1_000_000_000;

impl Net {
    /// A bridge with so many ports, and a station at each.
    fn bridge(ports: u16) -> Self {
        Self::new(Bridge::new(ports, [1, 2]), ports.into())
    }

    /// Sends one frame, and returns the ports that it came out by, as it was.
    fn ports_of(&mut self, port: usize, frame: Vec<u8>) -> Vec<usize> {
        self.send(port, [frame.clone()]);
        (0..self.sides())
            .flat_map(|port| {
                let received = self.received(port);
                assert!(received.iter().all(|received| *received == frame));
                received.into_iter().map(move |_| port)
            })
            .collect()
    }

    fn all_drops(&self) -> u64 {
        self.graph.counters(self.app).drops().map(|(_, count)| count).sum()
    }
}

fn frame_of(destination: MacAddress, source: MacAddress, payload: &[u8]) -> Vec<u8> {
    let header =
        Ethernet { destination, source, ethertype: EtherType::LOCAL_EXPERIMENT, vlan: None };
    let mut frame = vec![0; header.header_len()];
    header.write(&mut frame).unwrap();
    frame.extend(payload);
    frame
}

/// A frame between two stations that are known by their last byte.
fn frame(destination: u8, source: u8) -> Vec<u8> {
    frame_of(host(destination), host(source), b"payload")
}

fn address(text: &str) -> MacAddress {
    text.parse().unwrap()
}

#[test]
fn an_unknown_address_is_flooded_and_a_learned_one_is_not() {
    let mut net = Net::bridge(4);
    assert_eq!(net.ports_of(0, frame(2, 1)), [1, 2, 3]);
    // Host 1 was learned from that, host 2 is learned from this.
    assert_eq!(net.ports_of(2, frame(1, 2)), [0]);
    assert_eq!(net.ports_of(0, frame(2, 1)), [2]);
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn broadcast_and_multicast_are_flooded_always() {
    let mut net = Net::bridge(3);
    for group in [
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:fb",
        "33:33:00:00:00:01",
        // The neighbours of what is reserved.
        "01:80:c2:00:00:10",
        "01:80:c2:00:01:00",
    ] {
        // Often enough that it is a conversation that goes on.
        for _ in 0..4 {
            let frame = frame_of(address(group), host(1), b"to all");
            assert_eq!(net.ports_of(1, frame), [0, 2], "{group}");
        }
    }
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn two_ports_reach_each_other() {
    let mut net = Net::bridge(2);
    assert_eq!(net.ports_of(0, frame(2, 1)), [1]);
    assert_eq!(net.ports_of(1, frame(1, 2)), [0]);
    let to_all = frame_of(MacAddress::BROADCAST, host(1), b"");
    assert_eq!(net.ports_of(0, to_all), [1]);
}

#[test]
fn one_port_reaches_nobody() {
    let mut net = Net::bridge(1);
    assert_eq!(net.ports_of(0, frame(2, 1)), []);
    assert_eq!(net.drops(DropReason::NoDestination), 1);
}

#[test]
fn a_station_that_moves_is_followed() {
    let mut net = Net::bridge(3);
    net.ports_of(0, frame(9, 1));
    assert_eq!(net.ports_of(1, frame(1, 2)), [0]);
    // Host 1 is at port 2 now, and says so.
    net.ports_of(2, frame(9, 1));
    assert_eq!(net.ports_of(1, frame(1, 2)), [2]);
}

/// What was noted holds as long as the table says the same.
#[test]
fn a_conversation_that_goes_on_follows_what_changes() {
    let mut net = Net::bridge(4);
    let goes_to = |net: &mut Net, port: usize, expected: &[usize]| {
        (0..4).for_each(|_| assert_eq!(net.ports_of(port, frame(2, 1)), expected));
    };
    net.ports_of(1, frame(9, 2));
    goes_to(&mut net, 0, &[1]);
    // The receiver moves, and then the sender.
    net.ports_of(2, frame(9, 2));
    goes_to(&mut net, 0, &[2]);
    goes_to(&mut net, 3, &[2]);
    assert_eq!(net.ports_of(2, frame(1, 2)), [3]);
    goes_to(&mut net, 0, &[2]);
    assert_eq!(net.ports_of(2, frame(1, 2)), [0]);
    // One of them is where the other one is.
    goes_to(&mut net, 2, &[]);
    net.ports_of(1, frame(9, 2));
    goes_to(&mut net, 2, &[1]);
    // The receiver is forgotten, heard of again, and ages.
    net.set_link(1, false);
    goes_to(&mut net, 2, &[0, 1, 3]);
    net.ports_of(0, frame(9, 2));
    goes_to(&mut net, 2, &[0]);
    net.now += 299 * SECOND;
    goes_to(&mut net, 2, &[0]);
    net.now += SECOND;
    goes_to(&mut net, 2, &[0, 1, 3]);
}

/// Another worker may have entered the receiver a second time.
#[test]
fn a_conversation_is_looked_for_anew_each_second() {
    let mut net = Net::bridge(4);
    let table = net.app::<Bridge>().table().clone();
    let receiver = table.place(host(2), Domain::NONE);
    table.enter(receiver, 5, 1);
    (0..4).for_each(|_| assert_eq!(net.ports_of(0, frame(2, 1)), [1]));
    // Not where the sender is, should they have a bucket in common.
    table.enter(receiver, 1, 2);
    assert_eq!(table.find(receiver, 0), Some(2));
    assert_eq!(net.ports_of(0, frame(2, 1)), [1], "it was noted in this second");
    net.now = SECOND;
    assert_eq!(net.ports_of(0, frame(2, 1)), [2]);
}

/// Of the same burst, behind what was noted and before it.
#[test]
fn a_station_that_moves_in_a_burst_is_followed_at_once() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    (0..3).for_each(|_| assert_eq!(net.ports_of(0, frame(2, 1)), [1]));
    // Station 2 is where station 1 is.
    net.send(0, [frame(2, 1), frame(9, 2), frame(2, 1)]);
    assert_eq!(net.received(1), [frame(2, 1), frame(9, 2)]);
    assert_eq!(net.received(2), [frame(9, 2)]);
    assert_eq!(net.drops(DropReason::SamePort), 1);
}

/// A flood by another port may push a station out, which is learned again as soon as it sends.
#[test]
fn who_makes_way_to_another_port_is_learned_again_with_the_next_frame() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    (0..3).for_each(|_| assert_eq!(net.ports_of(0, frame(2, 1)), [1]));
    let table = net.app::<Bridge>().table().clone();
    let sender = table.place(host(1), Domain::NONE);
    // No stations of this test.
    let others = (1u32 << 16..).map(|number| {
        let [a, b, c, d] = number.to_be_bytes();
        let MacAddress([e, f, ..]) = host(1);
        MacAddress([e, f, a, b, c, d])
    });
    for other in others.take(100_000) {
        if table.find(sender, 0).is_none() {
            break;
        }
        // By a worker whose clock is a little ahead, so that these are younger.
        table.learn(table.place(other, Domain::NONE), 2 + PortNumber::from(other.0[5] % 7), 1);
    }
    assert_eq!(table.find(sender, 0), None, "they push it out");
    net.ports_of(0, frame(2, 1));
    assert_eq!(table.find(sender, 0), Some(0));
}

/// What one part has noted, another part's stations may make untrue, in the same second.
#[test]
fn a_part_follows_what_another_learns() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    (0..3).for_each(|_| assert_eq!(net.ports_of(0, frame(2, 1)), [1]));
    let table = net.app::<Bridge>().table().clone();
    let learned = std::thread::spawn(move || table.learn(table.place(host(2), Domain::NONE), 2, 0));
    learned.join().unwrap();
    assert_eq!(net.ports_of(0, frame(2, 1)), [2]);
}

#[test]
fn a_burst_goes_on_with_a_conversation_only_as_a_whole() {
    let mut net = Net::bridge(4);
    net.ports_of(1, frame(9, 2));
    net.ports_of(2, frame(9, 3));
    let (to_2, to_3, to_all) = (frame(2, 1), frame(3, 1), frame(8, 1));
    for burst in [
        vec![&to_2, &to_2],
        vec![&to_2, &to_3],
        vec![&to_3, &to_2],
        vec![&to_2, &to_all, &to_2],
        vec![&to_2, &to_2],
    ] {
        (0..3).for_each(|_| assert_eq!(net.ports_of(0, to_2.clone()), [1]));
        net.send(0, burst.iter().map(|frame| (*frame).clone()).collect::<Vec<_>>());
        for (port, other) in [(1, &to_3), (2, &to_2), (3, &to_2)] {
            let mut expected = burst.clone();
            expected.retain(|frame| *frame != other && (port != 3 || *frame == &to_all));
            assert_eq!(net.received(port).iter().collect::<Vec<_>>(), expected, "at {port}");
        }
    }
    assert_eq!(net.all_drops(), 0);
}

#[test]
fn who_sends_does_not_age_while_a_conversation_goes_on() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    (0..4).for_each(|_| assert_eq!(net.ports_of(0, frame(2, 1)), [1]));
    net.now = 200 * SECOND;
    assert_eq!(net.ports_of(0, frame(2, 1)), [1]);
    net.now = 499 * SECOND;
    assert_eq!(net.ports_of(2, frame(1, 3)), [0]);
}

#[test]
fn an_address_ages_at_300_seconds() {
    for (age, expected) in
        [(300 * SECOND - 1, vec![1]), (300 * SECOND, vec![1, 2]), (1000 * SECOND, vec![1, 2])]
    {
        let mut net = Net::bridge(3);
        net.now = 5 * SECOND;
        net.ports_of(1, frame(9, 2));
        net.now += age;
        assert_eq!(net.ports_of(0, frame(2, 1)), expected, "after {age} ns");
    }
}

#[test]
fn an_address_that_is_heard_of_does_not_age() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    net.now = 200 * SECOND;
    net.ports_of(1, frame(9, 2));
    net.now = 400 * SECOND;
    assert_eq!(net.ports_of(0, frame(2, 1)), [1]);
    // Being sent to is not being heard of.
    net.now = 500 * SECOND;
    assert_eq!(net.ports_of(0, frame(2, 1)), [1, 2]);
}

#[test]
fn a_frame_to_where_it_came_from_is_dropped() {
    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 1));
    assert_eq!(net.ports_of(1, frame(1, 2)), []);
    assert_eq!(net.drops(DropReason::SamePort), 1);
    // To itself, too.
    assert_eq!(net.ports_of(1, frame(1, 1)), []);
    assert_eq!(net.drops(DropReason::SamePort), 2);
}

#[test]
fn reserved_addresses_go_nowhere() {
    let mut net = Net::bridge(3);
    for last in 0..16 {
        let group = MacAddress([0x01, 0x80, 0xc2, 0, 0, last]);
        assert_eq!(net.ports_of(0, frame_of(group, host(1), b"")), [], "{group}");
        assert_eq!(net.drops(DropReason::ReservedAddress), u64::from(last) + 1);
    }
    // Their senders are learned all the same.
    assert_eq!(net.ports_of(1, frame(1, 2)), [0]);
}

#[test]
fn the_stations_behind_a_port_that_goes_down_are_forgotten() {
    let mut net = Net::bridge(3);
    net.ports_of(0, frame(9, 1));
    net.ports_of(1, frame(9, 2));
    assert_eq!(net.ports_of(2, frame(1, 3)), [0]);
    net.set_link(0, false);
    assert_eq!(net.ports_of(2, frame(1, 3)), [0, 1], "it may be anywhere");
    assert_eq!(net.ports_of(2, frame(2, 3)), [1], "it is where it was");
    // Of one that comes up nothing is known.
    net.set_link(0, true);
    assert_eq!(net.ports_of(1, frame(1, 2)), [0, 2]);
    // It moved.
    net.ports_of(2, frame(9, 1));
    net.set_link(0, false);
    assert_eq!(net.ports_of(1, frame(1, 2)), [2]);
}

/// Once for all parts, and without those that have sent nothing for long.
#[test]
fn addresses_are_said() {
    // With the usual key, these are neighbours in the table.
    let key = [0x1234_5678_9abc_def1, 0xfedc_ba98_7654_3210];
    let mut net = Net::new(Bridge::new(3, key), 3);
    let known = |net: &mut Net| {
        let mut numbers = net.graph.numbers(net.app, net.now);
        let part = net.app::<Bridge>().part();
        let mut other = engine::Numbers::default();
        part.report(net.now, &mut other);
        numbers.add(other);
        numbers.iter().map(|number| (number.name.clone(), number.value)).collect::<Vec<_>>()
    };
    for station in 1..=100 {
        net.ports_of(usize::from(station) % 2, frame(200, station));
    }
    assert_eq!(known(&mut net), [("addresses".to_owned(), 100)]);
    for tick in 0..16 {
        net.now = (300 + 2 * tick) * SECOND;
        net.ports_of(0, frame(200, 1));
    }
    assert_eq!(known(&mut net), [("addresses".to_owned(), 1)]);
    // Also while nobody sends anything: as long as there are some, a worker that sleeps is woken for them.
    let deadline = |net: &mut Net, now| net.app::<Bridge>().deadline(now);
    for _ in 0..316 {
        let is_known = net.app::<Bridge>().table().known() > 0;
        assert_eq!(deadline(&mut net, 7), is_known.then_some(7 + SECOND));
        net.now += SECOND;
        net.breathe();
    }
    assert_eq!(known(&mut net), [("addresses".to_owned(), 0)]);
    assert_eq!(deadline(&mut net, 7), None);
}

#[test]
fn a_source_that_is_a_group_is_dropped_and_not_learned() {
    let mut net = Net::bridge(3);
    for group in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "03:00:00:00:00:01"] {
        assert_eq!(net.ports_of(0, frame_of(host(1), address(group), b"")), []);
    }
    assert_eq!(net.drops(DropReason::BadSource), 3);
    assert_eq!(net.app::<Bridge>().table().known(), 0);
}

#[test]
fn a_frame_without_a_whole_header_is_dropped() {
    let mut net = Net::bridge(2);
    let whole = frame_of(host(1), host(2), b"");
    for len in 0..whole.len() {
        assert_eq!(net.ports_of(0, whole[..len].to_vec()), []);
    }
    assert_eq!(net.drops(DropReason::TooShort), 14);
    assert_eq!(net.ports_of(0, whole), [1]);
}

#[test]
fn an_address_of_zeros_is_one_like_others() {
    let mut net = Net::bridge(3);
    let zero = MacAddress([0; 6]);
    assert_eq!(net.ports_of(0, frame_of(host(1), zero, b"")), [1, 2]);
    assert_eq!(net.ports_of(1, frame_of(zero, host(1), b"")), [0]);
}

#[test]
fn a_port_that_is_not_linked_is_counted() {
    let mut graph = Graph::new();
    let bridge = graph.add("bridge", Bridge::new(3, [1, 2]));
    let station = graph.add("station", Station::default());
    graph.link((station, 0), (bridge, 0)).unwrap();
    let source: &mut Station = graph.get(station).unwrap();
    source.to_send.push_back((frame(2, 1), Offload::NONE));
    graph.breathe(0, |_| panic!("an app failed"));
    assert_eq!(graph.counters(bridge)[DropReason::NoDestination], 2);
}

#[test]
fn what_comes_by_a_port_that_there_is_not_is_counted() {
    let mut graph = Graph::new();
    let bridge = graph.add("bridge", Bridge::new(3, [1, 2]));
    let station = graph.add("station", Station::default());
    graph.link((station, 0), (bridge, 3)).unwrap();
    graph.link((bridge, 0), (station, 0)).unwrap();
    let source: &mut Station = graph.get(station).unwrap();
    source.to_send.extend([(frame(2, 1), Offload::NONE), (frame(3, 1), Offload::NONE)]);
    graph.breathe(0, |_| panic!("an app failed"));
    assert_eq!(graph.counters(bridge)[DropReason::NoDestination], 2);
    assert_eq!(graph.get::<Station>(station).unwrap().received.len(), 0);
}

#[test]
fn a_full_receiver_holds_what_is_for_it_alone() {
    let mut net = Net::bridge(2);
    net.station(1).room = Some(0);
    // With two ports, a flooded frame is for one alone.
    assert_eq!(net.ports_of(0, frame(2, 1)), []);
    assert_eq!(net.station(0).to_send.len(), 1);
    net.station(1).room = None;
    net.breathe();
    assert_eq!(net.station(1).received.len(), 1);

    let mut net = Net::bridge(3);
    net.ports_of(1, frame(9, 2));
    net.station(1).room = Some(0);
    assert_eq!(net.ports_of(0, frame(2, 1)), []);
    assert_eq!(net.station(0).to_send.len(), 1);
}

#[test]
fn a_flooded_frame_is_dropped_by_a_full_receiver_and_reaches_the_others_once() {
    let mut net = Net::bridge(4);
    net.station(1).room = Some(0);
    assert_eq!(net.ports_of(0, frame(9, 1)), [2, 3]);
    assert!(net.station(0).to_send.is_empty());
    assert_eq!(net.station(1).counters[DropReason::ReceiverFull], 1);
    net.station(1).room = None;
    net.breathe();
    for port in 0..4 {
        assert!(net.station(port).received.is_empty());
    }
}

#[test]
fn each_receiver_gets_its_frames_in_order() {
    let mut net = Net::bridge(4);
    for port in 1..4 {
        net.ports_of(port, frame(99, port as u8));
    }
    let frames: Vec<(u8, Vec<u8>)> = (0..200u8)
        .map(|number| {
            let to = [1, 2, 3, 77, 2, 1, 77][usize::from(number) % 7];
            (to, frame_of(host(to), host(50), &[number]))
        })
        .collect();
    let all = frames.iter().map(|(_, frame)| frame.clone());
    net.queue(0, all);
    for _ in 0..200usize.div_ceil(engine::BURST) {
        net.breathe();
    }
    for port in 1..4 {
        let expected: Vec<Vec<u8>> = frames
            .iter()
            .filter(|(to, _)| usize::from(*to) == port || *to == 77)
            .map(|(_, frame)| frame.clone())
            .collect();
        assert_eq!(net.station(port).received, expected);
    }
}

#[test]
fn addresses_are_learned_within_a_burst() {
    let mut net = Net::bridge(3);
    // The second is for the source of the first.
    net.send(0, [frame(9, 1), frame(1, 2)]);
    assert_eq!(net.drops(DropReason::SamePort), 1);
}

/// Ports of a bridge on which frames come in runs.
const PORTS: usize = 4;

/// Runs of frames that a station sends: from whom, to whom, how many, and which of them are cut short.
fn runs() -> impl Strategy<Value = Vec<(u8, u8, usize, u16)>> {
    prop::collection::vec((0u8..6, 0u8..9, 1usize..20, any::<u16>()), 1..15)
}

proptest! {
    /// The whole bridge against what the standard says.
    #[test]
    fn the_bridge_behaves_as_its_model(
        ports in 1u16..6,
        steps in prop::collection::vec(
            (0u16..6, 0u8..9, 0u8..8, prop_oneof![Just(0), 0u64..100], 1..5),
            0..60,
        ),
    ) {
        let mut net = Net::bridge(ports);
        let mut model: HashMap<u8, (usize, u64)> = HashMap::new();
        for (port, destination, source, seconds, times) in steps {
            let port = usize::from(port % ports);
            net.now += seconds * SECOND;
            model.insert(source, (port, net.now));
            let learned = model
                .get(&destination)
                .filter(|(_, seen)| net.now - seen < 300 * SECOND);
            let mut expected: Vec<usize> = match learned {
                Some((port, _)) => vec![*port],
                None => (0..usize::from(ports)).collect(),
            };
            expected.retain(|other| *other != port);
            // Nobody is ever heard from the last one, which is everybody's.
            let all = destination == 8;
            let to = if all { MacAddress::BROADCAST } else { host(destination) };
            for _ in 0..times {
                let frame = frame_of(to, host(source), b"payload");
                prop_assert_eq!(&net.ports_of(port, frame), &expected);
            }
        }
    }

    /// Runs of frames of one conversation, interleaved with others and with frames that are too short:
    /// each is treated as if it were alone, and they stay in order.
    #[test]
    fn frames_in_runs_are_treated_as_if_each_were_alone(
        turns in prop::collection::vec((0..PORTS, runs()), 1..6),
    ) {
        let mut net = Net::bridge(PORTS as u16);
        let mut learned: HashMap<MacAddress, usize> = HashMap::new();
        let mut expected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PORTS];
        let mut drops: HashMap<&str, u64> = HashMap::new();
        let mut number = 0u32;
        for (port, runs) in turns {
            for (source, destination, count, short) in runs {
                let source = if source == 5 { address("01:00:5e:00:00:01") } else { host(source) };
                let destination = match destination {
                    6 => MacAddress::BROADCAST,
                    7 => address("01:80:c2:00:00:03"),
                    // Nobody is ever heard from there.
                    8 => host(99),
                    known => host(known),
                };
                for at in 0..count {
                    number += 1;
                    let mut frame = frame_of(destination, source, &number.to_le_bytes());
                    let is_short = short >> (at % 16) & 1 == 1;
                    if is_short {
                        frame.truncate(usize::from(short) % 14);
                    }
                    net.queue(port, [frame.clone()]);
                    // One after the other, as if each were alone.
                    let mut drop = |reason: DropReason| {
                        *drops.entry(reason.name()).or_default() += 1;
                    };
                    if is_short {
                        drop(DropReason::TooShort);
                        continue;
                    }
                    if source.is_multicast() {
                        drop(DropReason::BadSource);
                        continue;
                    }
                    learned.insert(source, port);
                    if destination.is_reserved() {
                        drop(DropReason::ReservedAddress);
                        continue;
                    }
                    match learned.get(&destination) {
                        Some(to) if *to == port => drop(DropReason::SamePort),
                        Some(to) => expected[*to].push(frame),
                        None => (0..PORTS)
                            .filter(|to| *to != port)
                            .for_each(|to| expected[to].push(frame.clone())),
                    }
                }
            }
            while !net.station(port).to_send.is_empty() {
                net.breathe();
            }
        }
        for (port, expected) in expected.iter().enumerate() {
            prop_assert_eq!(&net.station(port).received, expected, "at port {}", port);
        }
        let counters = net.graph.counters(net.app);
        let counted = counters.drops().map(|(reason, count)| (reason.name(), count)).collect();
        prop_assert_eq!(drops, counted);
    }
}
