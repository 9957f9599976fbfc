use std::path::Path;

use super::*;
use crate::config::Draft;

/// Ports, each with these keys, behind what a file says before them.
fn network(head: &str, ports: &[(&str, &str)]) -> Network {
    let port = |(name, keys): &(&str, &str)| {
        format!("[port.{name}]\ntype = \"vhost-user\"\npath = \"/run/{name}.sock\"\n{keys}\n")
    };
    let text = format!("{head}\n{}", ports.iter().map(port).collect::<String>());
    let mut draft = Draft::default();
    draft.add_file(Path::new("test.toml"), &text);
    draft.finish().unwrap_or_else(|faults| panic!("{faults}")).network()
}

fn lines(old: &[(&str, &str)], new: &[(&str, &str)]) -> Vec<String> {
    Difference::new(&network("", old), &network("", new)).into_lines()
}

#[test]
fn what_is_the_same_is_not_told_of() {
    let one = [("vm1", "mtu = 9000"), ("vm2", "rate-to = \"1Gbit\"")];
    assert_eq!(lines(&one, &one), [""; 0]);
    let [first, second] = one;
    assert_eq!(lines(&one, &[second, first]), [""; 0], "their order says nothing");
}

#[test]
fn ports_come_and_go_with_all_that_is_theirs() {
    let (one, two) = (("vm1", ""), ("vm2", "rate-to = \"1Gbit\""));
    assert_eq!(lines(&[one], &[one, two]), ["+ port vm2 (vhost-user)", "+ vm2.police"]);
    assert_eq!(lines(&[one, two], &[one]), ["- port vm2 (vhost-user)", "- vm2.police"]);
}

#[test]
fn settings_change_in_place_and_a_port_does_not() {
    let with = |keys| [("vm1", ""), ("vm2", keys)];
    assert_eq!(lines(&with("rate-to = \"1Gbit\""), &with("rate-to = \"2Gbit\"")), ["~ vm2.police"]);
    assert_eq!(
        lines(&with(""), &with("rate-to = \"2Gbit\"")),
        ["+ vm2.police", "- link vm2.tx -> bridge.vm2", "- link bridge.vm2 -> vm2.rx"]
    );
    assert_eq!(lines(&with(""), &with("mtu = 9000")), ["~ port vm2 (vhost-user): made anew"]);
}

#[test]
fn vlans_are_told_of_by_the_sides_that_are_there_before_and_afterwards() {
    let (one, two) = (("vm1", "vlan = 10"), ("vm2", "vlan = 20"));
    assert_eq!(lines(&[one], &[one, two]), ["+ port vm2 (vhost-user)"]);
    assert_eq!(lines(&[one, two], &[one, ("vm2", "vlan = 10")]), ["~ bridge: the VLANs of vm2"]);
}

#[test]
fn a_bridge_gets_vlans_and_loses_them() {
    let (without, with) =
        ([("vm1", ""), ("vm2", "")], [("vm1", "vlan = 10"), ("vm2", "vlan = 10")]);
    assert_eq!(lines(&without, &with), ["~ bridge: the VLANs of vm1, vm2"]);
    assert_eq!(lines(&with, &without), ["~ bridge: the VLANs of vm1, vm2"]);
    // Of a side that comes with them, its port tells.
    assert_eq!(
        lines(&without[..1], &with),
        ["~ bridge: the VLANs of vm1", "+ port vm2 (vhost-user)"]
    );
}

#[test]
fn an_app_becomes_another_of_its_type_only() {
    let (old, new) = (network("", &[("vm1", "rate-to = \"1Gbit\"")]), {
        let mut network = network("", &[("vm1", "filter-to = \"1,6 0 0 1\"")]);
        network.apps[2].name = "vm1.police".to_owned();
        network
    });
    let difference = Difference::new(&old, &new);
    assert_eq!(difference.fate("vm1.police"), Some(Fate::IsMadeAnew));
    assert!(difference.goes("vm1.police") && difference.comes("vm1.police"));
    assert_eq!(difference.fate("vm1"), None);
    assert_eq!(difference.into_lines(), ["~ vm1.police (filter): made anew"]);
}
