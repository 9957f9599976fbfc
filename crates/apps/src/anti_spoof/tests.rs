use proptest::prelude::*;
use wire::checksum::PartialChecksum;
use wire::ethernet::{Ethernet, VlanTag};
use wire::ndp;
use wire::virtio::Offload;

use super::*;
use crate::sides::NETWORK;
use crate::testing::{Net, frame, host};

const OWN: &str = "10.0.0.5";
const OTHER: &str = "10.0.0.6";
const OWN6: &str = "fd00::5";
const OTHER6: &str = "fd00::6";

/// Host 1, with one address of each version.
fn settings() -> Settings {
    let prefixes = [OWN, "192.168.0.0/24", OWN6].map(|text| text.parse().unwrap()).to_vec();
    Settings { macs: vec![host(1), host(11)], prefixes, link_local: LinkLocal::Any }
}

fn passes(settings: &Settings, frame: &[u8]) -> bool {
    let head = &frame[..frame.len().min(engine::HEAD)];
    Rules::new(settings).judge(head).is_ok()
}

/// Behind an Ethernet header from host 1.
fn ethernet(ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet { destination: host(2), source: host(1), ethertype, vlan: None };
    let mut frame = vec![0; header.header_len()];
    header.write(&mut frame).unwrap();
    frame.extend(payload);
    frame
}

/// With something put in front of what it carries.
fn wrapped(frame: &[u8], layers: &[Layer]) -> Vec<u8> {
    let mut wrapped = frame[..12].to_vec();
    for layer in layers {
        match layer {
            Layer::Tag => {
                let tag = VlanTag { protocol: EtherType::VLAN, control: 7 };
                wrapped.extend(tag.protocol.0.to_be_bytes());
                wrapped.extend(tag.control.to_be_bytes());
            }
            Layer::ServiceTag => wrapped.extend([0x88, 0xa8, 0, 100]),
            Layer::Snap => wrapped.extend([5, 0xdc, 0xaa, 0xaa, 3, 0, 0, 0]),
        }
    }
    wrapped.extend(&frame[12..]);
    wrapped
}

#[derive(Clone, Copy, Debug)]
enum Layer {
    Tag,
    ServiceTag,
    Snap,
}

fn arp_packet(operation: u16, sender_mac: MacAddress, sender: &str, target: &str) -> Vec<u8> {
    let [sender, target] = [sender, target].map(|text| text.parse::<Ipv4Addr>().unwrap());
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(sender_mac.0);
    packet.extend(sender.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

fn arp(operation: u16, sender_mac: MacAddress, sender: &str, target: &str) -> Vec<u8> {
    ethernet(EtherType::ARP, &arp_packet(operation, sender_mac, sender, target))
}

fn ipv4(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [source, destination] = [source, destination].map(|text| text.parse::<Ipv4Addr>().unwrap());
    let mut packet = vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(EtherType::IPV4, &packet)
}

/// Extension headers, each with its number, and then a payload of a protocol.
fn ipv6(source: &str, chain: &[(u8, Vec<u8>)], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let numbers = chain.iter().map(|(number, _)| *number).chain([protocol]);
    let mut numbers = numbers.collect::<Vec<_>>().into_iter();
    let mut rest = Vec::new();
    let first = numbers.next().unwrap();
    for (_, header) in chain {
        let at = rest.len();
        rest.extend(header);
        rest[at] = numbers.next().unwrap();
    }
    rest.extend(payload);
    let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, first, 255];
    packet.extend(source.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(ndp::ALL_NODES.octets());
    packet.extend(rest);
    ethernet(EtherType::IPV6, &packet)
}

fn icmpv6(kind: u8, fixed: &[u8], options: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(fixed);
    message.extend(options);
    message
}

/// A message about a target.
fn about(kind: u8, target: &str, options: &[u8]) -> Vec<u8> {
    let target = target.parse::<Ipv6Addr>().unwrap().octets();
    icmpv6(kind, &[&[0; 4], &target[..]].concat(), options)
}

fn link_layer(kind: u8, MacAddress(mac): MacAddress) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

#[track_caller]
fn check(cases: impl IntoIterator<Item = (Vec<u8>, bool)>) {
    for (number, (frame, expected)) in cases.into_iter().enumerate() {
        assert_eq!(passes(&settings(), &frame), expected, "case {number}: {frame:02x?}");
    }
}

#[test]
fn the_source_of_a_frame_is_the_ports_own() {
    let mut net = Net::new(AntiSpoof::new(&settings()), 2);
    let own = frame(host(2), 1, 300);
    let mut other = own.clone();
    other[11] = 9;
    let mut second = own.clone();
    second[11] = 11;
    let short = own[..13].to_vec();
    net.send(PORT, [own.clone(), other.clone(), short, second.clone()]);
    assert_eq!(net.received(NETWORK), [own, second]);
    assert_eq!(net.drops(DropReason::Spoofed), 1);
    assert_eq!(net.drops(DropReason::TooShort), 1);
    // To the port everything goes: it is others who have to be who they are.
    net.send(NETWORK, [other.clone()]);
    assert_eq!(net.received(PORT), [other]);
}

#[test]
fn arp_speaks_for_the_port_alone() {
    let reply = |mac, sender| arp(2, mac, sender, OTHER);
    let mut other_format = reply(host(1), OWN);
    other_format[14 + 4] = 8;
    let cut_off = reply(host(1), OWN)[..14 + 27].to_vec();
    check([
        (reply(host(1), OWN), true),
        (reply(host(1), "192.168.0.77"), true),
        (reply(host(2), OWN), false),
        (reply(host(1), OTHER), false),
        (arp(1, host(1), OWN, OTHER), true),
        (arp(1, host(1), OTHER, OWN), false),
        // Any operation, also those that nobody uses.
        (arp(9, host(1), OTHER, OWN), false),
        (arp(9, host(1), OWN, OTHER), true),
        // A probe: for what it may have.
        (arp(1, host(1), "0.0.0.0", OWN), true),
        (arp(1, host(1), "0.0.0.0", OTHER), false),
        (arp(1, host(2), "0.0.0.0", OWN), false),
        (arp(2, host(1), "0.0.0.0", OWN), false),
        (other_format, false),
        (cut_off, false),
        // How a migrated guest is announced.
        (ethernet(EtherType::RARP, &arp_packet(3, host(1), "0.0.0.0", "0.0.0.0")), true),
        (ethernet(EtherType::RARP, &arp_packet(3, host(2), "0.0.0.0", "0.0.0.0")), false),
    ]);
}

#[test]
fn ipv4_comes_from_the_ports_own_address() {
    let dhcp = [0, 68, 0, 67, 0, 8, 0, 0];
    let discover = ipv4("0.0.0.0", "255.255.255.255", 17, &dhcp);
    let changed = |at: usize, to: u8| {
        let mut frame = discover.clone();
        frame[at] = to;
        frame
    };
    let mut with_options = ipv4("0.0.0.0", "255.255.255.255", 17, &[&[1; 4], &dhcp[..]].concat());
    with_options[14] = 0x46;
    check([
        (ipv4(OWN, OTHER, 6, &[0; 20]), true),
        (ipv4("192.168.0.200", OTHER, 6, &[0; 20]), true),
        (ipv4(OTHER, OWN, 6, &[0; 20]), false),
        (ipv4("127.0.0.1", OWN, 6, &[0; 20]), false),
        (ipv4(OWN, OTHER, 6, &[])[..14 + 19].to_vec(), false),
        (discover.clone(), true),
        (with_options, true),
        (changed(14 + 9, 6), false),
        (changed(14 + 21, 67), false),
        (changed(14 + 23, 68), false),
        (changed(14 + 16, 10), false),
        // A fragment of it, first or not; and one that is not to be made.
        (changed(14 + 6, 0x40), true),
        (changed(14 + 6, 0x20), false),
        (changed(14 + 7, 1), false),
        (ipv4("0.0.0.0", OTHER, 1, &[8, 0, 0, 0]), false),
        // A header that says it goes on to where there is nothing.
        (changed(14, 0x4f), false),
        // IPv6 under the type of IPv4.
        (changed(14, 0x65), false),
    ]);
}

#[test]
fn ipv6_comes_from_the_ports_own_address() {
    let tcp = |source: &str| ipv6(source, &[], 6, &[0; 20]);
    let mut version = tcp(OWN6);
    version[14] = 0x40;
    check([
        (tcp(OWN6), true),
        (tcp(OTHER6), false),
        (tcp("fe80::1234"), true),
        (tcp("febf::1"), true),
        (tcp("fec0::1"), false),
        (tcp("::"), false),
        (tcp("::1"), false),
        (version, false),
        (tcp(OWN6)[..14 + 39].to_vec(), false),
        // Pings are no claim.
        (ipv6(OWN6, &[], 58, &icmpv6(128, &[0; 4], &[])), true),
        (ipv6("::", &[], 58, &icmpv6(128, &[0; 4], &[])), false),
        (ipv6(OWN6, &[], 59, &[]), true),
    ]);
}

#[test]
fn link_local_addresses_are_what_the_settings_say() {
    let of = |link_local| Settings { link_local, ..settings() };
    let tcp = |source: &str| ipv6(source, &[], 6, &[0; 20]);
    let (of_mac, other) = (tcp("fe80::5054:ff:fe00:1"), tcp("fe80::1"));
    for (link_local, expected) in [
        (LinkLocal::Any, [true, true]),
        (LinkLocal::OfMac, [true, false]),
        (LinkLocal::None, [false, false]),
    ] {
        let found = [&of_mac, &other].map(|frame| passes(&of(link_local), frame));
        assert_eq!(found, expected, "{link_local:?}");
    }
    // Also of its second address.
    assert!(passes(&of(LinkLocal::OfMac), &tcp("fe80::5054:ff:fe00:b")));
}

#[test]
fn neighbour_discovery_claims_nothing_of_others() {
    let discovery = |source: &str, message: &[u8]| ipv6(source, &[], 58, message);
    let own = |kind| link_layer(kind, host(1));
    let other = |kind| link_layer(kind, host(2));
    let router = [0; 12];
    let two = [own(2), other(2)].concat();
    let nonce = [vec![14, 1, 1, 2, 3, 4, 5, 6], own(1)].concat();
    check([
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &own(2))), true),
        (discovery("fe80::1", &about(ADVERTISEMENT, "fe80::1", &own(2))), true),
        (discovery(OWN6, &about(ADVERTISEMENT, OTHER6, &own(2))), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &other(2))), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &two)), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[other(2), own(2)].concat())), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[])), true),
        (discovery("::", &about(ADVERTISEMENT, OWN6, &own(2))), false),
        (discovery(OTHER6, &about(ADVERTISEMENT, OWN6, &own(2))), false),
        (discovery(OWN6, &about(SOLICITATION, OTHER6, &own(1))), true),
        (discovery(OWN6, &about(SOLICITATION, OTHER6, &nonce)), true),
        (discovery(OWN6, &about(SOLICITATION, OTHER6, &other(1))), false),
        // Is somebody there already? Only of what it may have.
        (discovery("::", &about(SOLICITATION, OWN6, &[])), true),
        (discovery("::", &about(SOLICITATION, "fe80::77", &[])), true),
        (discovery("::", &about(SOLICITATION, OTHER6, &[])), false),
        (discovery("::", &icmpv6(133, &[0; 4], &[])), true),
        (discovery("fe80::1", &icmpv6(133, &[0; 4], &own(1))), true),
        (discovery("fe80::1", &icmpv6(133, &[0; 4], &other(1))), false),
        (discovery("fe80::1", &icmpv6(134, &router, &own(1))), true),
        (discovery("fe80::1", &icmpv6(134, &router, &other(1))), false),
        (discovery("::", &icmpv6(134, &router, &[])), false),
        (discovery("fe80::1", &icmpv6(137, &[0; 36], &own(2))), true),
        (discovery("fe80::1", &icmpv6(137, &[0; 36], &other(2))), false),
        (discovery("::", &icmpv6(137, &[0; 36], &own(2))), false),
        // Options of no length, cut off, of another medium.
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[2, 0, 0, 0, 0, 0, 0, 0])), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &own(2)[..7])), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[9])), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[&[2, 2], &[0; 14][..]].concat())), false),
        (discovery(OWN6, &about(ADVERTISEMENT, OWN6, &[])[..23]), false),
        (discovery(OWN6, &[]), false),
    ]);
}

#[test]
fn a_message_that_is_longer_than_the_head_or_cut_off_cannot_be_judged() {
    let prefix = |count: usize| [3u8, 4].into_iter().chain([0; 30]).cycle().take(32 * count);
    let advertisement = |count| {
        let options: Vec<u8> = prefix(count).chain(link_layer(1, host(1))).collect();
        ipv6("fe80::1", &[], 58, &icmpv6(134, &[0; 12], &options))
    };
    assert!(advertisement(1).len() < engine::HEAD && advertisement(2).len() > engine::HEAD);
    check([(advertisement(1), true), (advertisement(2), false)]);
    // One that says that it goes on; one that says that it ends in front of a claim, which is padding.
    let mut longer = ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, OWN6, &[]));
    longer[14 + 5] += 8;
    let mut shorter = ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, OWN6, &link_layer(2, host(2))));
    shorter[14 + 5] -= 8;
    check([(longer, false), (shorter, true)]);
}

fn options(units: u8) -> Vec<u8> {
    let mut header = vec![0, units];
    header.resize(8 + 8 * usize::from(units), 0);
    header
}

fn fragment(offset: u16) -> Vec<u8> {
    let [high, low] = (offset << 3 | 1).to_be_bytes();
    vec![0, 0, high, low, 0, 0, 0, 1]
}

#[test]
fn extension_headers_hide_nothing() {
    let lie = about(ADVERTISEMENT, OTHER6, &[]);
    let truth = about(ADVERTISEMENT, OWN6, &[]);
    let chains = [
        vec![(0, options(0))],
        vec![(60, options(1))],
        vec![(0, options(0)), (60, options(0)), (43, options(0))],
        // Authentication: 24 bytes are 6 words, less 2.
        vec![(51, [vec![0, 4], vec![0; 22]].concat())],
    ];
    for chain in &chains {
        check([(ipv6(OWN6, chain, 58, &lie), false), (ipv6(OWN6, chain, 58, &truth), true)]);
    }
    let report = icmpv6(143, &[0; 4], &[]);
    // What is a length in the others means nothing in this one.
    let mut reserved = fragment(0);
    reserved[1] = 1;
    // The other two of a listener's messages, and a question, which a router asks.
    for (kind, expected) in [(131, true), (132, true), (130, false)] {
        let message = icmpv6(kind, &[0; 20], &[]);
        check([
            (ipv6("::", &[(0, options(0))], 58, &message), expected),
            (ipv6(OWN6, &[(0, options(0))], 58, &message), true),
            (ipv6(OTHER6, &[(0, options(0))], 58, &message), false),
        ]);
    }
    check([
        // Listeners report from no address, with a router alert.
        (ipv6("::", &[(0, options(0))], 58, &report), true),
        (ipv6("::", &[(44, fragment(0))], 58, &report), false),
        // Longer than what is seen. Of TCP nothing has to be.
        (ipv6(OWN6, &[(0, options(10))], 58, &truth), false),
        (ipv6(OWN6, &[(0, options(10))], 6, &[0; 20]), true),
        (ipv6(OWN6, &[(0, options(10)), (60, options(0))], 6, &[0; 20]), false),
        // Fragments: no discovery in them, and the first has to have the whole chain.
        (ipv6(OWN6, &[(44, fragment(0))], 58, &truth), false),
        (ipv6(OWN6, &[(44, fragment(0))], 58, &[]), false),
        (ipv6(OWN6, &[(44, fragment(0))], 60, &[]), false),
        (ipv6(OWN6, &[(44, fragment(0))], 60, &[58]), false),
        (ipv6(OWN6, &[(44, fragment(0))], 17, &[0; 8]), true),
        (ipv6(OWN6, &[(44, fragment(0))], 58, &icmpv6(128, &[0; 4], &[])), true),
        (ipv6(OWN6, &[(44, reserved)], 58, &icmpv6(128, &[0; 4], &[])), true),
        (ipv6(OWN6, &[(44, fragment(1))], 58, &lie), true),
        (ipv6(OWN6, &[(44, fragment(5))], 58, &lie), true),
        (ipv6(OTHER6, &[(44, fragment(5))], 58, &lie), false),
    ]);
}

#[test]
fn a_list_that_is_empty_is_not_checked() {
    let nothing = Settings::default();
    let macs = Settings { macs: vec![host(1)], ..Settings::default() };
    let v4 = Settings { prefixes: vec![OWN.parse().unwrap()], ..Settings::default() };
    let v6 = Settings { prefixes: vec![OWN6.parse().unwrap()], ..Settings::default() };
    let mut from_other = frame(host(2), 0, 60);
    from_other[11] = 9;
    let three_tags = wrapped(&ipv4(OWN, OTHER, 6, &[]), &[Layer::Tag; 4]);
    let cases = [
        (from_other, [true, false, true, true]),
        (arp(2, host(2), OWN, OTHER), [true, false, true, true]),
        (arp(2, host(1), OTHER, OWN), [true, true, false, true]),
        (ipv4(OTHER, OWN, 6, &[]), [true, true, false, true]),
        (ipv6(OTHER6, &[], 6, &[]), [true, true, true, false]),
        (ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, OTHER6, &[])), [true, true, true, false]),
        (
            ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, OWN6, &link_layer(2, host(2)))),
            [true, false, true, true],
        ),
        // An address of another medium: of no length that anybody could have in a list.
        (
            ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, OWN6, &[&[2, 2], &[0; 14][..]].concat())),
            [true, false, true, true],
        ),
        (three_tags, [true, false, false, false]),
        (ethernet(EtherType::ARP, &[]), [true, false, false, true]),
        (ethernet(EtherType::IPV4, &[]), [true, true, false, true]),
        (ethernet(EtherType::IPV6, &[]), [true, false, true, false]),
    ];
    for (number, (frame, expected)) in cases.iter().enumerate() {
        let found = [&nothing, &macs, &v4, &v6].map(|settings| passes(settings, frame));
        assert_eq!(found, *expected, "case {number}");
    }
}

#[test]
fn addresses_can_be_changed_and_parts_have_them() {
    let mut app = AntiSpoof::new(&Settings::default());
    app.reconfigure(&settings()).unwrap();
    let lie = ipv4(OTHER, OWN, 6, &[0; 20]);
    let truth = ipv4(OWN, OTHER, 6, &[0; 20]);
    for app in [app.part(), app] {
        let mut net = Net::new(app, 2);
        net.send(PORT, [lie.clone(), truth.clone()]);
        assert_eq!(net.received(NETWORK), std::slice::from_ref(&truth));
        net.reconfigure(&Settings::default()).unwrap();
        net.send(PORT, [lie.clone()]);
        assert_eq!(net.received(NETWORK), std::slice::from_ref(&lie));
    }
}

#[test]
fn three_layers_are_looked_through_and_no_more() {
    let truth = ipv4(OWN, OTHER, 6, &[0; 20]);
    check([
        (wrapped(&truth, &[Layer::Tag; 3]), true),
        (wrapped(&truth, &[Layer::ServiceTag, Layer::Tag, Layer::Snap]), true),
        (wrapped(&truth, &[Layer::Tag; 4]), false),
    ]);
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let layer = prop_oneof![Just(Layer::Tag), Just(Layer::ServiceTag), Just(Layer::Snap)];
    prop::collection::vec(layer, 0..=MOST_LAYERS)
}

proptest! {
    /// Whatever it is wrapped in, a lie is one, and the truth passes.
    #[test]
    fn tags_hide_nothing(layers in layers(), kind in 0usize..4) {
        let [lie, truth] = [(OTHER, OTHER6), (OWN, OWN6)].map(|(v4, v6)| match kind {
            0 => arp(2, host(1), v4, "10.0.0.9"),
            1 => ipv4(v4, "10.0.0.9", 6, &[0; 20]),
            2 => ipv6(v6, &[], 6, &[0; 20]),
            _ => ipv6(OWN6, &[], 58, &about(ADVERTISEMENT, v6, &link_layer(2, host(1)))),
        });
        prop_assert!(!passes(&settings(), &wrapped(&lie, &layers)));
        prop_assert!(passes(&settings(), &wrapped(&truth, &layers)));
        // Deeper than anybody looks.
        let deep = [&[Layer::Tag; MOST_LAYERS + 1], &layers[..]].concat();
        prop_assert!(!passes(&settings(), &wrapped(&truth, &deep)));
    }

    /// Any bytes, behind any header: judged, without a panic, and never honest from another's MAC address.
    #[test]
    fn anything_is_judged(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ethertype in prop::sample::select(vec![0x0806u16, 0x8035, 0x0800, 0x86dd, 0x8100, 100]),
        version in prop::sample::select(vec![0x45u8, 0x60]),
        next in prop::sample::select(vec![0u8, 6, 43, 44, 51, 58, 60]),
    ) {
        for (at, value) in [(12, (ethertype >> 8) as u8), (13, ethertype as u8), (14, version), (20, next)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let is_own = bytes.get(6..12).is_some_and(|mac| mac == host(1).0 || mac == host(11).0);
        prop_assert!(is_own || !passes(&settings(), &bytes));
        if let Some(mac) = bytes.get_mut(6..12) {
            mac.copy_from_slice(&host(1).0);
        }
        // What an honest packet of IP says is its source.
        if passes(&settings(), &bytes) && ethertype == 0x0800 {
            let source: [u8; 4] = bytes[26..30].try_into().unwrap();
            let is_own = source == [10, 0, 0, 5] || source[..3] == [192, 168, 0] || source == [0; 4];
            prop_assert!(is_own);
        }
    }
}

#[test]
fn a_checksum_is_not_completed_in_an_address() {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 5, 10, 0, 0, 9];
    packet.extend([0; 40]);
    let frame = ethernet(EtherType::IPV4, &packet);
    let mut net = Net::new(AntiSpoof::new(&settings()), 2);
    let own = PartialChecksum { start: 34, offset: 16 };
    // The source's address; its lower half from further away; and a port.
    let bad = [(18, 8), (20, 8), (34, 0)].map(|(start, offset)| PartialChecksum { start, offset });
    for checksum in bad.into_iter().chain([own]) {
        let offload = Offload { checksum: Some(checksum), segmentation: None };
        net.station(PORT).to_send.push_back((frame.clone(), offload));
    }
    net.breathe();
    assert_eq!(net.received(NETWORK), [frame]);
    assert_eq!(net.drops(DropReason::ChecksumMisplaced), 3);
}
