//! Ports that come and go.

use super::*;
use crate::bridge::sides::{Side, Sides};

impl Net {
    /// Gives the bridge these ports, and forgets what was learned on others, as control does.
    fn set_sides<const N: usize>(&mut self, sides: [Side; N]) {
        let free: Vec<_> = (0..).zip(&sides).filter(|(_, side)| **side == Side::Free).collect();
        let free: Vec<PortNumber> = free.into_iter().map(|(number, _)| number).collect();
        let bridge = self.app::<Bridge>();
        bridge.set_sides(&mut Sides::new(sides));
        free.into_iter().for_each(|number| bridge.table().forget_port(number));
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
