//! Expressions of pcap-filter(7), against libpcap's own interpreter.
//!
//! The library under test is built with its feature `pcap` here: see its development dependencies.

use pcap::{BpfProgram, Capture, Linktype};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use ringway_apps::filter::compile;
use wire::bpf::{Program, Verdict};

const EXPRESSIONS: [&str; 44] = [
    "",
    "ip",
    "ip6",
    "arp",
    "not arp",
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "tcp port 80",
    "udp port 53 or tcp port 53",
    "tcp dst portrange 1000-2000",
    "src port 80 or dst port 443",
    "host 10.0.0.1",
    "src host 10.0.0.1 and not dst host 10.0.0.2",
    "net 10.0.0.0/8",
    "src net 192.168.0.0/16 or dst net 172.16.0.0/12",
    "ip6 host fe80::1",
    "ip6 net fe80::/10",
    "ip6 proto 6",
    "ip6 proto 44",
    "ip proto 17",
    "ether host 52:54:00:00:00:01",
    "ether src 52:54:00:00:00:01 or ether dst 52:54:00:00:00:02",
    "ether broadcast",
    "ether multicast",
    "ip multicast",
    "ether proto 0x88cc",
    "vlan",
    "vlan 7",
    "vlan 7 and tcp port 80",
    "vlan 7 and vlan 9 and ip",
    "vlan and (udp port 53 or arp)",
    "mpls",
    "len > 100",
    "less 64 or greater 200",
    "ip[8] < 5",
    "ip[6:2] & 0x1fff != 0",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
    "icmp[icmptype] = icmp-echo or icmp[icmptype] = icmp-echoreply",
    "(ip[2:2] - ((ip[0] & 0xf) << 2)) % 7 = 3 or (ip[4:2] ^ 0x1234) * 3 > 9 or -ip[8] / 5 < len",
    "udp[4:2] > 100 and udp[udp[5] & 7] = 0 and ether[len - 1] != 0",
];

/// A filter, as we run it and as libpcap does.
struct Both {
    expression: &'static str,
    ours: Program,
    /// As libpcap makes it, with and without its optimizer.
    theirs: [BpfProgram; 2],
}

fn all() -> Vec<Both> {
    let ethernet = Capture::dead(Linktype::ETHERNET).unwrap();
    let both = |expression: &'static str| Both {
        expression,
        ours: compile(expression).unwrap_or_else(|error| panic!("{error}")),
        theirs: [true, false].map(|optimize| ethernet.compile(expression, optimize).unwrap()),
    };
    EXPRESSIONS.into_iter().map(both).collect()
}

/// Values that mean something, and others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        3 => prop::sample::select(vec![0u8, 1, 2, 6, 7, 9, 17, 44, 53, 58, 64, 80, 132, 0x45, 0x60]),
        1 => any::<u8>(),
    ]
}

fn address() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        Just([10, 0, 0, 1]),
        Just([10, 0, 0, 2]),
        Just([192, 168, 7, 9]),
        Just([224, 0, 0, 1]),
        any::<[u8; 4]>(),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(80), Just(443), Just(53), 990u16..2010, any::<u16>()]
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        Just([0x52, 0x54, 0, 0, 0, 1]),
        Just([0x52, 0x54, 0, 0, 0, 2]),
        Just([0xff; 6]),
        any::<[u8; 6]>(),
    ]
}

prop_compose! {
    /// The header of a protocol of IP, and bytes behind it.
    fn transport()(
        protocol in prop::sample::select(vec![6u8, 17, 132, 1, 58, 0, 44, 60]),
        ports in [port(), port()],
        rest in prop::collection::vec(byte(), 0..160),
        is_get: bool,
        offset in prop::sample::select(vec![0x50u8, 0x60, 0x80, 0xf0]),
    ) -> (u8, Vec<u8>) {
        let mut bytes = ports.map(u16::to_be_bytes).concat();
        bytes.extend(rest);
        if protocol == 6 && bytes.len() > 12 {
            bytes[12] = offset;
            let data = usize::from(offset >> 4) * 4;
            if is_get && let Some(data) = bytes.get_mut(data..data + 4) {
                data.copy_from_slice(b"GET ");
            }
        }
        (protocol, bytes)
    }
}

prop_compose! {
    fn ipv4()(
        (protocol, payload) in transport(),
        source in address(), destination in address(),
        options in 0usize..4,
        fragment in prop::sample::select(vec![0u16, 0, 0, 0x2000, 0x2001, 0x0100]),
        id: u16, ttl: u8,
    ) -> Vec<u8> {
        let len = (20 + 4 * options + payload.len()) as u16;
        let mut packet = vec![0x45 + options as u8, 0];
        packet.extend([len, id, fragment].map(u16::to_be_bytes).concat());
        packet.extend([ttl, protocol, 0, 0]);
        packet.extend([source, destination].concat());
        packet.extend(vec![1; 4 * options]);
        packet.extend(payload);
        packet
    }
}

prop_compose! {
    fn ipv6()(
        (protocol, payload) in transport(), is_local: [bool; 2], other: [[u8; 16]; 2],
    ) -> Vec<u8> {
        let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0, 1].map(|at| if is_local[at] { local } else { other[at] }).concat());
        packet.extend(payload);
        packet
    }
}

prop_compose! {
    fn frame()(
        macs in [mac(), mac()],
        tags in prop::collection::vec(
            (prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), prop::sample::select(vec![7u16, 9, 0x2007])),
            0..3,
        ),
        (kind, payload) in prop_oneof![
            5 => ipv4().prop_map(|packet| (0x0800u16, packet)),
            3 => ipv6().prop_map(|packet| (0x86dd, packet)),
            1 => (
                prop::sample::select(vec![0x0806u16, 0x88cc, 0x8847, 0x0064]),
                prop::collection::vec(byte(), 0..100),
            ),
        ],
        cut in prop_oneof![4 => Just(usize::MAX), 1 => 0usize..80],
    ) -> Vec<u8> {
        let mut frame = macs.concat();
        for (protocol, control) in tags {
            frame.extend([protocol, control].map(u16::to_be_bytes).concat());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame.truncate(cut);
        frame
    }
}

#[test]
fn every_expression_says_what_libpcap_says() {
    let all = all();
    // How often each says yes and no, or the frames would show nothing.
    let counts = std::cell::RefCell::new(vec![[0u32; 2]; all.len()]);
    // The same each time, as the counts have to be.
    let rng_seed = RngSeed::Fixed(1);
    let config = ProptestConfig { cases: 4000, rng_seed, ..ProptestConfig::default() };
    proptest!(config, |(frame in frame())| {
        for (Both { expression, ours, theirs }, counts) in all.iter().zip(&mut *counts.borrow_mut()) {
            let expected = theirs[0].filter(&frame);
            let expected_too = theirs[1].filter(&frame);
            // Their optimizer may drop a load that would have failed, and nothing else.
            prop_assert!(expected == expected_too || expected, "libpcap of {:?}", expression);
            let verdict = if expected { Verdict::Accept } else { Verdict::Reject };
            prop_assert_eq!(ours.run(&frame, frame.len()), verdict, "{:?}", expression);
            // The head alone says the same, or nothing.
            let head = ours.run(&frame[..frame.len().min(engine::HEAD)], frame.len());
            prop_assert!([verdict, Verdict::NotGiven].contains(&head), "{:?}", expression);
            counts[usize::from(expected)] += 1;
        }
    });
    for (Both { expression, .. }, [no, yes]) in all.iter().zip(counts.into_inner()) {
        assert!(yes > 0, "{expression:?} never accepts");
        assert!(no > 0 || expression.is_empty(), "{expression:?} always accepts");
    }
}

#[test]
fn what_cannot_be_is_refused_and_why_is_said() {
    for (expression, words) in [
        ("tcp prot 80", "syntax error"),
        ("port 70000", "70000"),
        ("host 10.0.0.256", "10.0.0.256"),
        ("vlan 5000", "5000"),
        ("tcp\0", "nul"),
        // These it compiles, and the program is refused.
        ("inbound", "the kernel means its own data"),
        ("ip6 protochain 6", "jumps back"),
    ] {
        let error = compile(expression).unwrap_err().to_string();
        assert!(error.contains(&format!("\"{expression}\"")), "{error}");
        assert!(error.contains(words), "{error}");
    }
}
