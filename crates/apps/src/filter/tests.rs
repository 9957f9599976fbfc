use engine::BURST;
use proptest::prelude::*;
use wire::bpf::Instruction;

use super::*;
use crate::testing::Net;

const SECOND: u64 = 1_000_000_000;

fn settings(from_port: Direction, to_port: Direction) -> Settings {
    Settings { from_port, to_port }
}

fn accept(expression: &str) -> Direction {
    let program = compile(expression).unwrap_or_else(|error| panic!("{error}"));
    Direction { accept: Some(program), allow_replies: false }
}

fn allow_replies(direction: Direction) -> Direction {
    Direction { allow_replies: true, ..direction }
}

fn net(settings: Settings) -> Net {
    Net::new(Filter::new(settings, [1, 2]), 2)
}

/// A frame of `protocol` between two hosts and ports, with `rest` behind the ports.
fn packet(protocol: u8, hosts: [u8; 2], ports: [u16; 2], rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, hosts[1], 0x52, 0x54, 0, 0, 0, hosts[0], 8, 0];
    frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend([10, 0, 0, hosts[0], 10, 0, 0, hosts[1]]);
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.extend(rest);
    frame
}

fn udp(hosts: [u8; 2], ports: [u16; 2]) -> Vec<u8> {
    packet(17, hosts, ports, &[0; 30])
}

fn tcp(hosts: [u8; 2], ports: [u16; 2], flags: u8) -> Vec<u8> {
    packet(6, hosts, ports, &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 1, 0, 0, 0, 0])
}

/// Sends one frame, and says whether it passed, unchanged.
#[track_caller]
fn passes(net: &mut Net, side: usize, frame: &[u8]) -> bool {
    let dropped = net.drops(DropReason::Filtered);
    net.send(side, [frame.to_vec()]);
    assert_eq!(net.received(side), [] as [Vec<u8>; 0], "it came back");
    match &net.received(sides::opposite(side))[..] {
        [] => {
            assert_eq!(net.drops(DropReason::Filtered), dropped + 1);
            false
        }
        [only] => {
            assert_eq!(only, frame);
            assert_eq!(net.drops(DropReason::Filtered), dropped);
            true
        }
        more => panic!("{} frames", more.len()),
    }
}

#[test]
fn without_programs_everything_passes() {
    for replies in [false, true] {
        let direction = Direction { accept: None, allow_replies: replies };
        let mut net = net(settings(direction.clone(), direction));
        for frame in [udp([1, 2], [3, 4]), vec![1; 5], vec![7; 3000]] {
            assert!(passes(&mut net, PORT, &frame));
            assert!(passes(&mut net, NETWORK, &frame));
        }
    }
}

#[test]
fn each_direction_has_a_program_of_its_own() {
    let mut net = net(settings(accept("udp port 53"), accept("tcp")));
    let (dns, other) = (udp([1, 2], [1000, 53]), tcp([1, 2], [1000, 53], 2));
    assert!(passes(&mut net, PORT, &dns));
    assert!(!passes(&mut net, PORT, &other));
    assert!(!passes(&mut net, NETWORK, &dns));
    assert!(passes(&mut net, NETWORK, &other));
    // Only one of them.
    let mut net = self::net(settings(accept("arp"), Direction::default()));
    assert!(!passes(&mut net, PORT, &dns));
    assert!(passes(&mut net, NETWORK, &dns));
}

#[test]
fn those_that_pass_stay_in_order() {
    let mut net = net(settings(accept("udp"), Direction::default()));
    let frames: Vec<Vec<u8>> = (0..200)
        .map(|at| packet(if at % 3 == 0 { 6 } else { 17 }, [1, 2], [at, 53], &[0; 100]))
        .collect();
    net.send(PORT, frames.clone());
    let expected: Vec<Vec<u8>> = frames.into_iter().filter(|frame| frame[23] == 17).collect();
    assert_eq!(net.received(NETWORK), expected);
    assert_eq!(net.drops(DropReason::Filtered), 67);
}

#[test]
fn vlan_tags_are_in_the_frame() {
    let mut net = net(settings(accept("vlan 7 and udp"), Direction::default()));
    let plain = udp([1, 2], [3, 4]);
    let tagged = [&plain[..12], &[0x81, 0, 0xe0, 7], &plain[12..]].concat();
    assert!(!passes(&mut net, PORT, &plain));
    assert!(passes(&mut net, PORT, &tagged));
}

/// A byte far behind the head decides.
#[test]
fn what_is_behind_the_head_is_looked_at() {
    for at in [HEAD - 1, HEAD, 300, PRIVATE - 1] {
        let mut net = net(settings(accept(&format!("ether[{at}] = 42")), Direction::default()));
        let mut frame = vec![0; 1500];
        assert!(!passes(&mut net, PORT, &frame));
        frame[at] = 42;
        assert!(passes(&mut net, PORT, &frame));
        // A load from outside.
        assert!(!passes(&mut net, PORT, &frame[..at]));
        assert!(passes(&mut net, PORT, &frame[..=at]));
    }
    // Over a word that is half in the head.
    let expression = format!("ether[{}:4] = 0x01020304", HEAD - 2);
    let mut net = net(settings(accept(&expression), Direction::default()));
    let mut frame = vec![0; 500];
    frame[HEAD - 2..HEAD + 2].copy_from_slice(&[1, 2, 3, 4]);
    assert!(passes(&mut net, PORT, &frame));
    // All of a full burst, in both directions.
    let mut net = self::net(settings(accept("ether[700] = 7"), accept("ether[800] = 7")));
    for side in [PORT, NETWORK] {
        net.send(side, vec![vec![7; 1500]; BURST]);
        assert_eq!(net.received(sides::opposite(side)).len(), BURST);
    }
}

#[test]
fn what_would_be_too_far_behind_it_is_dropped() {
    let expression = format!("ether[{PRIVATE}] = 42 or udp");
    let mut net = net(settings(accept(&expression), Direction::default()));
    net.send(PORT, [vec![42; 1500]]);
    assert_eq!(net.received(NETWORK), [] as [Vec<u8>; 0]);
    assert_eq!(net.drops(DropReason::FilterTooDeep), 1);
    assert_eq!(net.drops(DropReason::Filtered), 0);
    // A shorter frame has no such byte.
    assert!(!passes(&mut net, PORT, &[42; PRIVATE]));
}

#[test]
fn the_length_is_that_of_the_whole_frame() {
    let mut net = net(settings(accept("len = 3000"), Direction::default()));
    assert!(passes(&mut net, PORT, &[1; 3000]));
    assert!(!passes(&mut net, PORT, &[1; 2999]));
    assert!(!passes(&mut net, PORT, &[1; 100]));
}

#[test]
fn replies_pass_to_those_who_asked() {
    let from_port = allow_replies(accept("udp or tcp or icmp"));
    let mut net = net(settings(from_port, accept("arp")));
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    assert!(!passes(&mut net, NETWORK, &answer), "nobody asked");
    assert!(passes(&mut net, PORT, &question));
    assert!(passes(&mut net, NETWORK, &answer));
    for other in [
        udp([2, 1], [53, 1001]),
        udp([2, 1], [54, 1000]),
        udp([3, 1], [53, 1000]),
        udp([1, 2], [1000, 53]),
        tcp([2, 1], [53, 1000], 0x10),
    ] {
        assert!(!passes(&mut net, NETWORK, &other));
    }
    // And a ping.
    let ping = |kind: u8, hosts| packet(1, hosts, [u16::from(kind) << 8, 0], &[0, 9, 0, 1]);
    assert!(!passes(&mut net, NETWORK, &ping(0, [2, 1])));
    assert!(passes(&mut net, PORT, &ping(8, [1, 2])));
    assert!(passes(&mut net, NETWORK, &ping(0, [2, 1])));
    assert!(!passes(&mut net, NETWORK, &ping(8, [2, 1])));
    let filter: &mut Filter = net.app();
    let table = filter.known.table();
    assert_eq!((table.len(0), table.len(61)), (2, 1));
}

#[test]
fn a_port_that_is_not_filtered_gets_replies_as_well() {
    let mut net = net(settings(allow_replies(Direction::default()), accept("arp")));
    assert!(passes(&mut net, PORT, &udp([1, 2], [1000, 53])));
    assert!(passes(&mut net, NETWORK, &udp([2, 1], [53, 1000])));
    assert!(!passes(&mut net, NETWORK, &udp([2, 1], [53, 1001])));
}

#[test]
fn only_what_was_accepted_is_replied_to() {
    let mut net = net(settings(allow_replies(accept("udp port 53")), accept("arp")));
    assert!(!passes(&mut net, PORT, &udp([1, 2], [1000, 54])));
    assert!(!passes(&mut net, NETWORK, &udp([2, 1], [54, 1000])));
    // And nothing is, without being told to: there is no table to look into.
    let mut net = self::net(settings(accept("udp"), accept("arp")));
    assert!(passes(&mut net, PORT, &udp([1, 2], [1000, 53])));
    assert!(!passes(&mut net, NETWORK, &udp([2, 1], [53, 1000])));
    assert!(net.app::<Filter>().known.table.get().is_none());
}

#[test]
fn either_side_may_begin_where_it_is_let() {
    let mut net = net(settings(accept("arp"), allow_replies(accept("tcp dst port 22"))));
    let (syn, answer) = (tcp([9, 1], [1000, 22], 2), tcp([1, 9], [22, 1000], 0x12));
    assert!(!passes(&mut net, PORT, &answer));
    assert!(passes(&mut net, NETWORK, &syn));
    assert!(passes(&mut net, PORT, &answer));
    // The reply is no beginning: with that, the network's frames would pass without their filter.
    let allowed = allow_replies(accept("tcp dst port 22"));
    let mut net = self::net(settings(allow_replies(accept("tcp")), allowed.clone()));
    assert!(passes(&mut net, NETWORK, &syn));
    assert!(passes(&mut net, PORT, &answer));
    let closed = settings(allow_replies(accept("tcp")), accept("arp"));
    net.reconfigure(&closed).unwrap();
    assert!(!passes(&mut net, NETWORK, &syn));
}

#[test]
fn later_fragments_are_no_replies() {
    let mut net = net(settings(allow_replies(accept("ip")), accept("arp")));
    let (mut question, mut answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    question[21] = 5;
    assert!(passes(&mut net, PORT, &question));
    assert!(!passes(&mut net, NETWORK, &answer), "that was none to a fragment");
    question[21] = 0;
    assert!(passes(&mut net, PORT, &question));
    answer[20] = 0x20;
    assert!(passes(&mut net, NETWORK, &answer), "the first");
    answer[21] = 100;
    assert!(!passes(&mut net, NETWORK, &answer), "another");
}

#[test]
fn time_is_that_of_the_breath() {
    let mut net = net(settings(allow_replies(accept("udp")), accept("arp")));
    net.now = 1000 * SECOND;
    assert!(passes(&mut net, PORT, &udp([1, 2], [1000, 53])));
    net.now += 300 * SECOND - 1;
    assert!(passes(&mut net, NETWORK, &udp([2, 1], [53, 1000])));
    net.now += 300 * SECOND;
    assert!(!passes(&mut net, NETWORK, &udp([2, 1], [53, 1000])));
}

/// They are counted, and swept away when they are over.
#[test]
fn the_conversations_are_said() {
    let mut net = net(settings(allow_replies(accept("udp")), accept("arp")));
    let said = |count| [("conversations".to_owned(), count)];
    assert_eq!(net.app::<Filter>().deadline(7), None);
    for port in 1000..1100 {
        assert!(passes(&mut net, PORT, &udp([1, 2], [port, 53])));
    }
    assert_eq!(net.numbers(), said(100));
    assert_eq!(net.app::<Filter>().deadline(7), Some(7 + SECOND), "though the worker sleeps");
    for tick in 0..16 {
        net.now = (300 + 2 * tick) * SECOND;
        net.breathe();
    }
    assert_eq!(net.numbers(), said(0));
    assert_eq!(net.app::<Filter>().deadline(7), None);
}

/// Whoever comes next is not let have their answers.
#[test]
fn who_goes_down_takes_its_conversations_along() {
    let mut net = net(settings(allow_replies(accept("udp")), accept("arp")));
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    for (side, survives) in [(NETWORK, true), (PORT, false)] {
        assert!(passes(&mut net, PORT, &question));
        net.set_link(side, false);
        net.set_link(side, true);
        assert_eq!(passes(&mut net, NETWORK, &answer), survives, "side {side}");
    }
    for tick in 1..=16 {
        net.now = tick * SECOND;
        net.breathe();
    }
    assert_eq!(net.numbers(), [("conversations".to_owned(), 0)]);
    // Also what the network began.
    let mut net = self::net(settings(accept("arp"), allow_replies(accept("udp"))));
    assert!(passes(&mut net, NETWORK, &question));
    net.set_link(PORT, false);
    net.set_link(PORT, true);
    assert!(!passes(&mut net, PORT, &answer));
}

/// However many conversations there are: all filters of a switch may be told at once, between two breaths.
#[test]
fn nobody_looks_at_conversations_to_forget_them() {
    let open = settings(allow_replies(accept("udp")), accept("arp"));
    let mut net = net(open.clone());
    let questions = || (0..500u16).map(|port| udp([1, 2], [port, 53]));
    net.send(PORT, questions());
    net.reconfigure(&settings(allow_replies(accept("udp port 53")), accept("arp"))).unwrap();
    net.send(PORT, questions());
    net.app::<Filter>().link(PORT, false);
    net.send(PORT, questions());
    net.received(NETWORK);
    let filter: &mut Filter = net.app();
    let table = filter.known.table();
    assert_eq!(
        (table.len(0), table.known()),
        (1500, 1500),
        "those that are forgotten are still there"
    );
    let eras = filter.known.eras(filter.numbers);
    assert_eq!(table.swept_in(eras, 0), 500);
    for port in 0..500 {
        assert!(passes(&mut net, NETWORK, &udp([2, 1], [53, port])));
    }
}

#[test]
fn questions_and_answers_of_one_burst() {
    let mut net = net(settings(allow_replies(accept("udp")), accept("arp")));
    let questions = (0..BURST as u16).map(|port| udp([1, 2], [port, 53]));
    net.send(PORT, questions);
    assert_eq!(net.received(NETWORK).len(), BURST);
    // Every other one was asked for.
    let answers = (0..BURST as u16).map(|port| udp([2, 1], [53, port + 1000 * (port % 2)]));
    net.send(NETWORK, answers);
    assert_eq!(net.received(PORT).len(), BURST / 2);
    assert_eq!(net.drops(DropReason::Filtered), BURST as u64 / 2);
}

#[test]
fn settings_change_and_what_they_allowed_no_more_is_forgotten() {
    let open = settings(allow_replies(accept("udp")), accept("arp"));
    let mut net = net(open.clone());
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    assert!(passes(&mut net, PORT, &question));
    // The same: conversations go on.
    net.reconfigure(&open).unwrap();
    assert!(passes(&mut net, NETWORK, &answer));
    // The other direction's: they go on too.
    net.reconfigure(&settings(open.from_port.clone(), accept("icmp"))).unwrap();
    assert!(passes(&mut net, NETWORK, &answer));
    net.reconfigure(&settings(allow_replies(accept("udp port 99")), accept("arp"))).unwrap();
    assert!(!passes(&mut net, PORT, &question));
    assert!(!passes(&mut net, NETWORK, &answer));
    net.app::<Filter>().set(open);
    assert!(passes(&mut net, PORT, &question));
    assert!(passes(&mut net, NETWORK, &answer));
    net.app::<Filter>().set(Settings::default());
    assert!(passes(&mut net, NETWORK, &udp([7, 1], [7, 7])));
}

#[test]
fn parts_share_what_they_know() {
    let open = settings(allow_replies(accept("udp")), accept("arp"));
    let filter = Filter::new(open.clone(), [1, 2]);
    let mut nets = [Net::new(filter.part(), 2), Net::new(filter, 2)];
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    assert!(passes(&mut nets[0], PORT, &question));
    assert!(passes(&mut nets[1], NETWORK, &answer));
    // What one is told is not what the other one is told, which has its answers until it is, and never the other's.
    let second = settings(allow_replies(accept("udp port 53")), accept("arp"));
    nets[0].reconfigure(&second).unwrap();
    assert!(passes(&mut nets[1], NETWORK, &answer));
    assert!(!passes(&mut nets[0], NETWORK, &answer));
    assert!(passes(&mut nets[1], PORT, &question));
    assert!(!passes(&mut nets[0], NETWORK, &answer), "what began by what was in force before");
    assert!(passes(&mut nets[0], PORT, &question));
    nets[1].reconfigure(&second).unwrap();
    assert!(passes(&mut nets[1], NETWORK, &answer), "what one began that was told already");
    // Both hear that the port went down, and the second one when the first has begun something again.
    nets[0].set_link(PORT, false);
    nets[0].set_link(PORT, true);
    assert!(!passes(&mut nets[0], NETWORK, &answer) && !passes(&mut nets[1], NETWORK, &answer));
    nets[1].set_link(PORT, false);
    assert!(passes(&mut nets[0], PORT, &question));
    nets[1].set_link(PORT, true);
    assert!(passes(&mut nets[1], NETWORK, &answer));

    // From a filter that had no table when the part was made.
    let mut filter = Filter::new(Settings::default(), [1, 2]);
    let mut part = filter.part();
    part.set(open.clone());
    filter.set(open);
    let mut nets = [Net::new(part, 2), Net::new(filter, 2)];
    assert!(passes(&mut nets[0], PORT, &question));
    assert!(passes(&mut nets[1], NETWORK, &answer));
}

/// As when one has failed: it begins with what is in force, and not with what once was.
#[test]
fn a_part_that_is_made_later_forgets_nothing() {
    let first = settings(allow_replies(accept("udp")), accept("arp"));
    let second = settings(allow_replies(accept("udp port 53")), accept("arp"));
    let filter = Filter::new(first, [1, 2]);
    let spare = filter.part();
    let mut net = Net::new(filter, 2);
    net.reconfigure(&second).unwrap();
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    assert!(passes(&mut net, PORT, &question));
    let mut later = Net::new(spare.part(), 2);
    assert!(!passes(&mut later, PORT, &udp([1, 2], [1000, 99])));
    later.reconfigure(&second).unwrap();
    assert!(passes(&mut net, NETWORK, &answer));
    assert!(passes(&mut later, NETWORK, &answer));

    // With other settings than those only what began where they are others.
    let third = settings(second.from_port.clone(), accept("icmp"));
    spare.part().set(third.clone());
    net.reconfigure(&third).unwrap();
    assert!(passes(&mut net, NETWORK, &answer));
    let fourth = settings(allow_replies(accept("udp")), accept("icmp"));
    spare.part().set(fourth.clone());
    net.reconfigure(&fourth).unwrap();
    assert!(!passes(&mut net, NETWORK, &answer));
}

/// One part was told of other settings, and the other one fails before it is: what it remembered by the old ones goes with them.
#[test]
fn a_part_that_fails_before_it_is_told_leaves_nothing_behind() {
    let first = settings(allow_replies(accept("udp")), accept("arp"));
    let second = settings(allow_replies(accept("udp port 99")), accept("arp"));
    let filter = Filter::new(first, [1, 2]);
    let spare = filter.part();
    let mut nets = [Net::new(filter.part(), 2), Net::new(filter, 2)];
    nets[0].reconfigure(&second).unwrap();
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    assert!(passes(&mut nets[1], PORT, &question));
    let mut again = Net::new(spare.part(), 2);
    again.reconfigure(&second).unwrap();
    for net in [&mut nets[0], &mut again] {
        assert!(!passes(net, NETWORK, &answer));
    }
}

#[test]
fn parts_on_two_threads() {
    let filter = Filter::new(settings(allow_replies(accept("udp")), accept("arp")), [1, 2]);
    std::thread::scope(|scope| {
        for worker in 0..2u8 {
            let part = filter.part();
            scope.spawn(move || {
                let mut net = Net::new(part, 2);
                for round in 0..50u16 {
                    let ports = round * 64..round * 64 + 64;
                    net.send(PORT, ports.clone().map(|port| udp([worker, 99], [port, 53])));
                    net.send(NETWORK, ports.clone().map(|port| udp([99, worker], [53, port])));
                    // Nobody asked for these.
                    net.send(NETWORK, ports.map(|port| udp([99, worker], [54, port])));
                    assert_eq!(net.received(NETWORK).len(), 64);
                    assert_eq!(net.received(PORT).len(), 64);
                }
                assert_eq!(net.drops(DropReason::Filtered), 50 * 64);
            });
        }
    });
    assert_eq!(filter.known.table().len(0), 2 * 50 * 64);
}

#[test]
fn a_receiver_that_is_full_holds_what_passed() {
    let mut net = net(settings(allow_replies(accept("udp")), accept("arp")));
    net.station(NETWORK).room = Some(0);
    net.send(PORT, [udp([1, 2], [3, 4]), tcp([1, 2], [3, 4], 2)]);
    assert_eq!(net.received(NETWORK), [] as [Vec<u8>; 0]);
    assert_eq!(net.drops(DropReason::Filtered), 1);
    net.station(NETWORK).room = None;
    net.breathe();
    assert_eq!(net.received(NETWORK), [udp([1, 2], [3, 4])]);
    assert_eq!(net.drops(DropReason::Filtered), 1);
}

#[test]
fn a_reset_that_is_held_passes_when_it_comes_again() {
    let mut net = net(settings(allow_replies(accept("tcp")), accept("arp")));
    assert!(passes(&mut net, PORT, &tcp([1, 2], [1000, 80], 0x02)));
    net.station(PORT).room = Some(0);
    let reset = tcp([2, 1], [80, 1000], 0x14);
    net.send(NETWORK, [reset.clone()]);
    assert_eq!(net.received(PORT), [] as [Vec<u8>; 0]);
    net.station(PORT).room = None;
    net.breathe();
    assert_eq!(net.received(PORT), [reset]);
}

proptest! {
    /// Whatever a program looks at, what passes is what was sent, and it is what should.
    #[test]
    fn frames_pass_as_they_are(
        loads in prop::collection::vec((0u32..1200, any::<bool>()), 1..5),
        frames in prop::collection::vec((prop::sample::select(vec![14usize, 128, 129, 900, 1024, 1025, 1500]), 0u8..3), 1..20),
    ) {
        // Accepts what has no 1 at any of the offsets; the index is 0 or the offset.
        let mut program = Vec::new();
        for (at, indexed) in &loads {
            let (x, k) = if *indexed { (*at, 0) } else { (0, *at) };
            let left = (loads.len() * 3 - program.len() - 2) as u8;
            program.extend([
                Instruction { code: 0x01, jt: 0, jf: 0, k: x },
                Instruction { code: if *indexed { 0x50 } else { 0x30 }, jt: 0, jf: 0, k },
                Instruction { code: 0x15, jt: left, jf: 0, k: 1 },
            ]);
        }
        program.push(Instruction { code: 6, jt: 0, jf: 0, k: 1 });
        program.push(Instruction { code: 6, jt: 0, jf: 0, k: 0 });
        let direction =
            Direction { accept: Some(Program::new(&program).unwrap()), allow_replies: false };
        let mut net = net(settings(direction, Direction::default()));
        let frames: Vec<Vec<u8>> = frames.into_iter().map(|(len, byte)| vec![byte; len]).collect();
        net.send(PORT, frames.clone());
        let (mut expected, mut too_deep) = (Vec::new(), 0);
        for frame in frames {
            // In order: the first load decides that says no, or cannot be made.
            let verdict = loads.iter().find_map(|(at, _)| match frame.get(*at as usize) {
                Some(_) if *at as usize >= PRIVATE => Some(true),
                Some(1) | None => Some(false),
                Some(_) => None,
            });
            match verdict {
                None => expected.push(frame),
                Some(is_too_deep) => too_deep += u64::from(is_too_deep),
            }
        }
        prop_assert_eq!(net.received(NETWORK), expected);
        prop_assert_eq!(net.drops(DropReason::FilterTooDeep), too_deep);
    }
}

#[test]
fn a_checksum_is_not_completed_where_a_program_has_looked() {
    let mut net = net(settings(accept("tcp port 80"), Direction::default()));
    let frame = tcp([1, 2], [1000, 80], 0x10);
    for (start, offset, passes) in [(34, 16, true), (34, 2, false), (30, 0, false), (20, 4, false)]
    {
        let checksum = Some(wire::checksum::PartialChecksum { start, offset });
        let offload = wire::virtio::Offload { checksum, segmentation: None };
        net.station(PORT).to_send.push_back((frame.clone(), offload));
        net.breathe();
        assert_eq!(net.received(NETWORK).len(), usize::from(passes), "{start} and {offset}");
    }
    assert_eq!(net.drops(DropReason::ChecksumMisplaced), 3);
}

#[test]
fn an_answer_is_not_one_whose_checksum_changes_who_it_is_for() {
    let nothing = Direction { accept: compile("less 0").ok(), allow_replies: false };
    let mut net = net(settings(nothing, allow_replies(accept("tcp"))));
    assert!(passes(&mut net, NETWORK, &tcp([9, 1], [80, 1000], 2)));
    let answer = tcp([1, 9], [1000, 80], 0x12);
    for (start, offset, passes) in [(34, 16, true), (18, 12, false), (34, 2, false)] {
        let checksum = Some(wire::checksum::PartialChecksum { start, offset });
        let offload = wire::virtio::Offload { checksum, segmentation: None };
        net.station(PORT).to_send.push_back((answer.clone(), offload));
        net.breathe();
        assert_eq!(net.received(NETWORK).len(), usize::from(passes), "{start} and {offset}");
    }
    assert_eq!(net.drops(DropReason::ChecksumMisplaced), 2);
}

/// What is looked at is not who it will be from, even where nothing is filtered.
#[test]
fn a_checksum_that_changes_the_headers_begins_no_conversation() {
    let mut net = net(settings(allow_replies(Direction::default()), accept("arp")));
    let (question, answer) = (udp([1, 2], [1000, 53]), udp([2, 1], [53, 1000]));
    for (start, offset, begins) in [(18, 12, false), (34, 2, false), (34, 6, true)] {
        let checksum = Some(wire::checksum::PartialChecksum { start, offset });
        let offload = wire::virtio::Offload { checksum, segmentation: None };
        net.station(PORT).to_send.push_back((question.clone(), offload));
        net.breathe();
        assert_eq!(net.received(NETWORK), std::slice::from_ref(&question), "{start} and {offset}");
        assert_eq!(passes(&mut net, NETWORK, &answer), begins, "{start} and {offset}");
    }
}
