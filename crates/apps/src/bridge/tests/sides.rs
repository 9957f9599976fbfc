//! Ports that come and go.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::bridge::sides::{Side, Sides};
use crate::bridge::table::CAPACITY;

impl Net {
    /// Gives the bridge these ports, and forgets what was learned on others, as control does.
    fn set_sides<const N: usize>(&mut self, sides: [Side; N]) {
        let mut free = Ports::default();
        let numbers = (0..).zip(&sides).filter(|(_, side)| **side == Side::Free);
        numbers.for_each(|(number, _)| free.insert(number));
        let bridge = self.app::<Bridge>();
        bridge.set_sides(&mut Sides::new(sides));
        bridge.table().forget(&free);
    }

    /// Entries of the bridge's table that were looked at, to forget ports.
    fn visited(&mut self) -> u64 {
        self.app::<Bridge>().table().visited.swap(0, Relaxed)
    }
}

#[test]
fn a_port_that_is_gone_gets_nothing_and_one_that_comes_hears_of_everything() {
    let mut net = Net::bridge(4);
    net.set_sides([Side::Plain, Side::Plain, Side::Free, Side::Free]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [1]);
    net.set_sides([Side::Plain, Side::Plain, Side::Free, Side::Plain]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [1, 3]);
    assert_eq!(net.ports_of(3, frame(1, 4)), [0], "what was learned is still known");
    assert_eq!(net.ports_of(0, frame(4, 1)), [3]);
    net.set_sides([Side::Plain, Side::Free, Side::Free, Side::Plain]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [3]);
    assert_eq!(net.all_drops(), 0, "nothing was sent to where nobody is");
}

#[test]
fn a_number_that_is_used_again_has_no_addresses_of_before() {
    let mut net = Net::bridge(3);
    net.ports_of(2, frame(9, 7));
    assert_eq!(net.ports_of(0, frame(7, 1)), [2]);
    net.set_sides([Side::Plain, Side::Plain, Side::Free]);
    assert_eq!(net.ports_of(0, frame(7, 1)), [1], "as one that is not known");
    net.set_sides([Side::Plain, Side::Plain, Side::Plain]);
    assert_eq!(net.ports_of(0, frame(7, 1)), [1, 2]);
}

#[test]
fn all_parts_have_the_same_ports() {
    let key = [1, 2];
    let sides = Sides::new([Side::Plain, Side::Free, Side::Plain]);
    let bridge = Bridge::with_sides(sides, key);
    let mut net = Net::new(bridge.part(), 3);
    assert_eq!(net.ports_of(0, frame(9, 1)), [2]);
}

#[test]
fn a_port_gets_into_another_vlan_and_a_free_number_is_in_none() {
    let access = |vlan| Side::Vlan(Membership::Access(vlan));
    let mut net = Net::new(Bridge::with_sides(Sides::new([const { Side::Free }; 4]), [1, 2]), 4);
    net.set_sides([access(10), access(20), access(10), Side::Free]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [2]);
    net.set_sides([access(10), access(10), access(20), Side::Free]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [1]);
    let before = net.all_drops();
    assert_eq!(net.ports_of(3, frame(1, 4)), [], "nobody is there");
    assert_eq!(net.all_drops() - before, 1);
    // VLANs are given up altogether.
    net.set_sides([Side::Plain, Side::Plain, Side::Plain, Side::Free]);
    assert_eq!(net.ports_of(0, frame(9, 1)), [1, 2]);
}

/// As when all guests go at once, or all ports are made anew.
#[test]
fn many_ports_that_go_down_are_forgotten_by_one_look_at_the_table() {
    const PORTS: u16 = 256;
    // With the usual key, these are neighbours in the table.
    let key = [0x1234_5678_9abc_def1, 0xfedc_ba98_7654_3210];
    let mut net = Net::new(Bridge::new(PORTS, key), PORTS.into());
    let station = |port: u16| frame_of(host(9), MacAddress([2, 0, 0, 0, 1, port as u8]), b"");
    for port in 0..PORTS {
        net.ports_of(port.into(), station(port));
    }
    for port in 0..PORTS - 1 {
        let bridge = net.app::<Bridge>();
        assert_eq!(bridge.link(port.into(), false), None);
        assert_eq!(bridge.link(port.into(), true), None);
    }
    assert_eq!(net.visited(), 0, "there may be more");
    let known = |net: &mut Net| net.app::<Bridge>().table().known();
    assert_eq!(known(&mut net), PORTS.into());
    net.app::<Bridge>().links_told();
    assert_eq!(net.visited(), CAPACITY as u64);
    assert_eq!(known(&mut net), 1, "the one that stayed");
    // And once is enough.
    net.ports_of(0, frame(9, 1));
    assert_eq!(net.visited(), 0);
}

/// Their addresses control forgets, when no worker uses their numbers any more.
#[test]
fn a_side_that_goes_is_no_reason_to_look_at_the_table() {
    let mut net = Net::bridge(3);
    net.ports_of(2, frame(9, 7));
    let bridge = net.app::<Bridge>();
    bridge.set_sides(&mut Sides::new([Side::Plain, Side::Plain, Side::Free]));
    // Free now, and beyond all.
    for input in [2, 3, 70_000] {
        bridge.link(input, false);
    }
    bridge.links_told();
    assert_eq!(net.visited(), 0);
    net.app::<Bridge>().link(1, false);
    net.app::<Bridge>().links_told();
    assert_eq!(net.visited(), CAPACITY as u64, "one that stays is");
}

/// What happens to one of two parts of a bridge.
#[derive(Clone, Debug)]
enum Turn {
    /// A frame comes by a port.
    Frame { port: usize, to: u8, from: u8 },
    /// It hears that these ports went down, and came up again.
    Down(Vec<usize>),
}

fn turn() -> impl Strategy<Value = Turn> {
    let port = 0..4usize;
    prop_oneof![
        6 => (port.clone(), 0u8..6, 0u8..6).prop_map(|(port, to, from)| Turn::Frame { port, to, from }),
        2 => prop::collection::vec(port, 1..4).prop_map(Turn::Down),
    ]
}

proptest! {
    /// Whatever a part was told, it has forgotten; and nothing else.
    #[test]
    fn parts_forget_what_they_were_told_of(turns in prop::collection::vec((0..2usize, turn()), 0..60)) {
        let bridge = Bridge::new(4, [1, 2]);
        let mut parts = [Net::new(bridge.part(), 4), Net::new(bridge, 4)];
        let mut learned: HashMap<u8, usize> = HashMap::new();
        for (part, turn) in turns {
            let net = &mut parts[part];
            match turn {
                Turn::Frame { port, to, from } => {
                    learned.insert(from, port);
                    let mut expected = learned.get(&to).map_or((0..4).collect(), |port| vec![*port]);
                    expected.retain(|other| *other != port);
                    prop_assert_eq!(net.ports_of(port, frame(to, from)), expected);
                }
                Turn::Down(ports) => {
                    let bridge = net.app::<Bridge>();
                    for is_up in [false, true] {
                        ports.iter().for_each(|port| { bridge.link(*port, is_up); });
                    }
                    bridge.links_told();
                    learned.retain(|_, port| !ports.contains(port));
                }
            }
        }
    }
}
