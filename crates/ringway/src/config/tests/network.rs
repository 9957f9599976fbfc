//! What apps and links are made of a configuration.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::network::{Network, Spec};
use super::super::{Config, Draft, app, keys};
use super::{assert_file_fault, assert_port_fault, read};

/// Three ports, and whatever else.
fn with_ports(text: &str) -> String {
    let ports: String = (1..=3)
        .map(|n| format!("[port.vm{n}]\ntype = 'vhost-user'\npath = 'vm{n}.sock'\n"))
        .collect();
    // The links are at the top.
    format!("{text}\n{ports}")
}

#[track_caller]
fn config(file: &str) -> Config {
    read(file, &[]).unwrap_or_else(|faults| panic!("{faults}\n{file}"))
}

fn links(network: &Network) -> Vec<String> {
    network.links.iter().map(|link| network.text(link)).collect()
}

fn names(network: &Network) -> Vec<&str> {
    network.apps.iter().map(|app| app.name.as_str()).collect()
}

/// Configurations of every shape.
fn files() -> Vec<String> {
    let port = |name: &str, keys: &str| {
        format!("[port.'{name}']\ntype = 'vhost-user'\npath = '{name}.sock'\n{keys}\n")
    };
    let every_key = "allow-macs = '52:54:00:00:00:01'\nallow-ips = ['10.0.0.1', 'fd00::/64']\n\
                     storm-broadcast = '100frames'\nrate-from = '1Gbit'\nrate-to = ['1Gbit', '9frames']\n\
                     burst-to = '1MiB'\nfilter-to = '1,6 0 0 1'\nallow-replies = true\nmirror-to = 'tap'\n\
                     mirror = 'from'\ndelay-from = '10ms'\njitter-from = '1ms'\nloss-to = '0.5%'\nseed = 7";
    let tap = "[port.tap]\ntype = 'pcap-write'\nfile = 'a.pcapng'\n";
    vec![
        port("vm1", ""),
        port("vm1", "qinq = false"),
        [port("vm1", ""), tap.to_owned(), "[port.again]\ntype = 'pcap-read'\nfile = 'b'\nrate-from = '1Gbit'\n".to_owned()].concat(),
        [port("vm1", ""), port("host.1", ""), port("host", "rate-to = '1Gbit'")].concat(),
        ["mode = 'poll'\nworkers = 2\n".to_owned(), port("vm1", "vlan = 1\ntrunk = [10, '20-29']"), port("vm2", "vlan = 2\nqinq = true")].concat(),
        [port("vm1", every_key), port("vm2", "mirror-to = 'tap'"), tap.to_owned()].concat(),
        [port("vm1", &format!("{every_key}\nvlan = 9")), port("vm2", "vlan = 10"), tap.to_owned()].concat(),
        with_ports("links = ['vm1.tx -> vm2.rx', 'vm2.tx -> vm1.rx']"),
        with_ports(
            "links = ['vm1.tx -> t.in', 't.1 -> vm2.rx', 't.of.2 -> c.in', 'vm2.tx -> bridge.vm1', 'bridge.vm1 -> vm1.rx']\n\
             app.t.type = 'tee'\napp.c.type = 'sink'",
        ),
        with_ports(
            "links = ['vm1.tx -> br2.a', 'br2.a -> vm1.rx', 'vm2.tx -> br2.b', 'br2.b -> vm2.rx', 'br2.up -> vm3.x.port', \
             'vm3.x.port -> br2.up', 'vm3.x.network -> bridge.down', 'bridge.down -> vm3.x.network', \
             'gen.out -> vm3.m.network', 'vm3.m.port -> bridge.gen', 'vm3.m.mirror -> c.in']\n\
             [app.gen]\ntype = 'source'\nrate = '10frames'\nto = '52:54:00:00:00:02'\n\
             [app.br2]\ntype = 'bridge'\n[app.br2.side.a]\nvlan = 1\n[app.br2.side.b]\nvlan = 2\n[app.br2.side.up]\n\
             trunk = 'all'\n[app.c]\ntype = 'sink'\n[app.'vm3.x']\ntype = 'impair'\nloss-to = '1%'\n\
             [app.'vm3.m']\ntype = 'mirror'\nmirror = 'to'",
        ),
        with_ports(
            "links = ['gen.out -> bridge.gen']\n[app.bridge]\ntype = 'bridge'\n[app.gen]\ntype = 'source'",
        ),
        [
            "links = ['gen.out -> bridge.gen']\n[app.gen]\ntype = 'source'\n[app.bridge]\ntype = 'bridge'\n[app.bridge.side.gen]\nvlan = 7\n".to_owned(),
            port("vm1", "vlan = 7"),
        ]
        .concat(),
        // The end of a port with something between it and the network is that of the last of these.
        [
            "links = ['vm1.police.network -> vm2.rx', 'vm2.tx -> vm1.police.network']\n".to_owned(),
            port("vm1", "rate-to = '1Gbit'"),
            port("vm2", ""),
        ]
        .concat(),
        "links = ['gen.out -> c.in']\n[app.gen]\ntype = 'source'\n[app.c]\ntype = 'sink'".to_owned(),
    ]
}

/// What is written out is a configuration with the same network, of which nothing is left to be written out.
#[test]
fn what_is_written_out_has_the_same_network() {
    for file in files() {
        let draft = |text: &str| {
            let mut draft = Draft::default();
            draft.add_file(Path::new("ringway.toml"), text);
            draft
        };
        let before = config(&file);
        let expanded = draft(&file).to_expanded_toml(&before);
        let after = config(&expanded);
        assert_eq!(after.network(), before.network(), "{file}\n{expanded}");
        assert_eq!(draft(&expanded).to_expanded_toml(&after), expanded);
        for port in &after.ports {
            assert!(port.vlan.is_none() && port.apps().is_empty(), "{expanded}");
            assert!(!after.joined().contains(port.name.as_str()), "{expanded}");
        }
        assert_eq!((after.mode, after.workers), (before.mode, before.workers));
        // And what was written is printed as it was.
        let shown = draft(&file).to_toml();
        assert_eq!(config(&shown), before, "{file}\n{shown}");
    }
}

#[test]
fn a_port_that_links_name_is_linked_as_they_say_and_others_are_joined_to_the_bridge() {
    let network = config(&with_ports("links = ['vm1.tx -> vm2.rx']")).network();
    assert_eq!(names(&network), ["bridge", "vm1", "vm2", "vm3"]);
    assert_eq!(
        links(&network),
        ["vm3.tx -> bridge.vm3", "bridge.vm3 -> vm3.rx", "vm1.tx -> vm2.rx"]
    );
    // One of its directions is enough.
    let all = "links = ['vm1.tx -> vm2.rx', 'vm3.tx -> vm2.rx']";
    let network = config(&with_ports(all)).network();
    assert_eq!(names(&network), ["vm1", "vm2", "vm3"]);
    let of_links = ["vm1.tx -> vm2.rx", "vm3.tx -> vm2.rx"];
    assert_eq!(links(&network), of_links);
}

#[test]
fn the_order_between_a_port_and_the_bridge() {
    let keys = "delay-to=1ms,mirror-to=tap,allow-ips=10.0.0.1,storm-multicast=1frames,rate-to=1bit,filter-to=1";
    let ports = [format!("vm1=tap:a,{keys}"), "tap=pcap-write:b".to_owned()];
    let mut draft = Draft::default();
    // What is no filter is a fault of its own.
    ports.iter().for_each(|port| draft.add_port(&port.replace("filter-to=1", "seed=3")));
    let network = draft.finish().unwrap_or_else(|faults| panic!("{faults}")).network();
    assert_eq!(
        names(&network),
        [
            "bridge",
            "vm1",
            "vm1.impair",
            "vm1.mirror",
            "vm1.anti-spoof",
            "vm1.storm",
            "vm1.police",
            "tap"
        ]
    );
    let links = links(&network);
    assert_eq!(links[..2], ["vm1.tx -> vm1.impair.port", "vm1.impair.port -> vm1.rx"]);
    assert_eq!(
        links[10..],
        [
            "vm1.mirror.mirror -> tap.rx",
            "vm1.police.network -> bridge.vm1",
            "bridge.vm1 -> vm1.police.network"
        ]
    );
    // The port for the copies is for nothing else.
    assert_eq!(network.apps[0].inputs, ["vm1"]);
}

#[test]
fn numbers_follow_from_names() {
    let file = with_ports(
        "links = ['vm1.tx -> t.in', 't.b -> vm2.rx', 't.a -> vm3.rx', 'vm2.tx -> br.two', 'br.one -> vm1.rx', \
         'vm3.tx -> br.one']\napp.t.type = 'tee'\napp.br.type = 'bridge'",
    );
    let network = config(&file).network();
    let app = |name: &str| network.apps.iter().position(|app| app.name == name).unwrap();
    assert_eq!(network.apps[app("t")].outputs, ["b", "a"]);
    let bridge = &network.apps[app("br")];
    assert_eq!(
        (&bridge.inputs, &bridge.outputs),
        (&vec!["two".to_owned(), "one".to_owned()], &bridge.inputs)
    );
    let ends: Vec<_> =
        network.links.iter().map(|link| (link.from.number, link.to.number)).collect();
    assert_eq!(ends, [(0, 0), (0, 0), (1, 0), (0, 0), (1, 0), (0, 1)]);
}

#[test]
fn settings_of_apps_of_their_own() {
    let network = config(
        "links = ['gen.out -> i.port', 'i.network -> c.in']\n[app.gen]\ntype = 'source'\nto = '52:54:00:00:00:02'\n\
         from = '52:54:00:00:00:01'\nethertype = '0x0800'\nsize = 1514\nrate = '1000frames'\nframes = 5\n\
         [app.i]\ntype = 'impair'\ndelay-from = '10ms'\njitter-from = '1ms'\nloss-to = '0.1%'\ncorrupt-to = '1%'\n\
         duplicate-to = '2%'\ndelay-to = '1s'\nreorder-to = '100%'\nseed = 9\n[app.c]\ntype = 'sink'",
    )
    .network();
    let Spec::Source(source) = &network.apps[0].spec else { panic!("{network:?}") };
    let mac = |last| wire::ethernet::MacAddress([0x52, 0x54, 0, 0, 0, last]);
    let expected = apps::source::Settings {
        destination: mac(2),
        source: mac(1),
        ethertype: wire::ethernet::EtherType(0x800),
        size: 1514,
        rate: Some(1000),
        frames: Some(5),
    };
    assert_eq!(*source, expected);
    let Spec::Impair(impair) = &network.apps[1].spec else { panic!("{network:?}") };
    let from_port =
        apps::impair::Impairment { delay: 10_000_000, jitter: 1_000_000, ..Default::default() };
    let to_port = apps::impair::Impairment {
        delay: 1_000_000_000,
        loss: 0.1,
        corruption: 1.0,
        duplication: 2.0,
        reordering: 100.0,
        ..Default::default()
    };
    assert_eq!((impair.from_port, impair.to_port, impair.seed), (from_port, to_port, 9));
}

/// A key in the tables that no code reads would be an option that does nothing.
#[test]
fn every_key_of_an_app_is_read() {
    for known in app::TYPES {
        for key in known.keys.iter().map(|key| key.name).filter(|key| *key != app::SIDE) {
            let file = format!("[app.a]\n{key} = 1979-05-27\ntype = '{}'\n", known.name);
            let faults = read(&file, &[]).expect_err("no key takes a date");
            let expected = format!(
                "ringway.toml:2:{}: wrong value of type datetime for `{key}`: expected ",
                key.len() + 4
            );
            assert!(faults.contains(&expected), "no {expected:?} in {faults:?}");
        }
    }
    assert!(keys::help().contains("[app.NAME]"));
}

#[test]
fn links_that_are_none() {
    assert_file_fault(
        "links = 'vm1.tx -> vm2.rx'",
        "ringway.toml:1:9: wrong value `vm1.tx -> vm2.rx` for `links`: expected a list of links, as [\"vm1.tx -> tee.in\"]",
    );
    for (link, shown) in [
        ("'vm1.tx'", "`vm1.tx`"),
        ("'-> vm1.rx'", "`-> vm1.rx`"),
        ("'vm1.tx ->'", "`vm1.tx ->`"),
        ("3", "`3`"),
    ] {
        assert_file_fault(
            &with_ports(&format!("links = [{link}]")),
            &format!(
                "ringway.toml:1:10: wrong value {shown} for `links`: expected OUTPUT -> INPUT, as \"vm1.tx -> tee.in\""
            ),
        );
    }
}

/// All of them are reported, each where it is.
#[test]
fn ends_that_there_are_not() {
    let file = with_ports(
        "links = [\n  'vm9.tx -> vm2.rx',\n  'vm1.rx -> vm2.tx',\n  'gen.out -> gen.in', 'vm2 -> t.in',\n  't.$ -> vm3.rx',\n]\n\
         app.gen.type = 'source'\napp.t.type = 'tee'",
    );
    let expected = "\
ringway.toml:2:3: `vm9.tx` of the link `vm9.tx -> vm2.rx` is not an output of any app: expected the name of a port or an app, \
a dot, and an output of it; did you mean `vm3.tx`?
ringway.toml:3:3: `vm1.rx` of the link `vm1.rx -> vm2.tx`: `vm1` has no such output: expected tx
ringway.toml:3:3: `vm2.tx` of the link `vm1.rx -> vm2.tx`: `vm2` has no such input: expected rx
ringway.toml:4:3: `gen.in` of the link `gen.out -> gen.in`: `gen` has no such input: expected another app, as it has none
ringway.toml:4:24: `vm2` of the link `vm2 -> t.in` is not an output of any app: expected the name of a port or an app, a dot, \
and an output of it; did you mean `vm2.tx`?
ringway.toml:5:3: `t.$` of the link `t.$ -> vm3.rx`: `t` has no such output: expected 1 to 64 characters out of A-Z, a-z, \
0-9, . _ -";
    assert_file_fault(&file, expected);
}

/// As for apps that there are not.
#[test]
fn ends_that_are_nearly_there() {
    let fault = |end: &str, link: &str, rest: &str| {
        let (app, _) = end.split_once('.').unwrap();
        format!("ringway.toml:1:10: `{end}` of the link `{link}`: `{app}` has no such {rest}")
    };
    for (link, faults) in [
        (
            "vm1.xt -> f.prot",
            [
                ("vm1.xt", "output: expected tx; did you mean `vm1.tx`?"),
                ("f.prot", "input: expected port or network; did you mean `f.port`?"),
            ],
        ),
        // What is there in the other direction is no wrong spelling.
        (
            "vm1.rx -> f.q",
            [("vm1.rx", "output: expected tx"), ("f.q", "input: expected port or network")],
        ),
    ] {
        let file = with_ports(&format!(
            "links = ['{link}']\napp.f.type = 'police'\napp.f.rate-to = '1Gbit'"
        ));
        assert_file_fault(&file, &faults.map(|(end, rest)| fault(end, link, rest)).join("\n"));
    }
}

/// An app that has a fault is there, and so what leads to it is none.
#[test]
fn a_link_to_what_has_a_fault_is_none() {
    assert_file_fault(
        "links = ['vm1.tx -> vm2.rx']\n[port.vm1]\ntype = 'tab'\n[app.vm2]\ntype = 'tee'",
        "ringway.toml:1:10: `vm2.rx` of the link `vm1.tx -> vm2.rx`: `vm2` has no such input: expected in\n\
         ringway.toml:3:8: wrong value `tab` for `type`: expected vhost-user, tap, tun, vhost-net, pcap-read or pcap-write; \
         did you mean `tap`?",
    );
}

#[test]
fn an_output_that_is_linked_twice() {
    assert_file_fault(
        &with_ports("links = [\n'vm1.tx -> vm2.rx',\n'vm1.tx -> vm3.rx',\n'bridge.vm1 -> vm1.rx']"),
        "ringway.toml:3:1: `vm1.tx` is linked twice, first in ringway.toml:2:1: expected one link from each output; a tee \
         sends to several",
    );
    let file = "links = ['bridge.vm1 -> c.in', 'vm1.tx -> c.in']\napp.c.type = 'sink'\n\
                [port.vm1]\ntype = 'tap'\ninterface = 'a'\nrate-to = '1Gbit'";
    let twice = |column, output| {
        format!(
            "ringway.toml:1:{column}: `{output}` is linked twice, first in ringway.toml:3:7: expected one link from each \
             output; a tee sends to several"
        )
    };
    assert_file_fault(file, &[twice(10, "bridge.vm1"), twice(32, "vm1.tx")].join("\n"));
}

#[test]
fn what_nothing_leads_to() {
    assert_file_fault(
        &with_ports(
            "[app.t]\ntype = 'tee'\n[app.br]\ntype = 'bridge'\n[app.bridge]\ntype = 'bridge'\n[app.bridge.side.vm4]\nvlan = 3",
        ),
        "ringway.toml:1:6: app `t` is linked to nothing: expected its name in `links`\n\
         ringway.toml:3:6: app `br` is linked to nothing: expected its name in `links`\n\
         ringway.toml:7:18: side `vm4` of `bridge` is linked to nothing: expected its name in `links`",
    );
}

#[test]
fn names_that_are_taken() {
    let file = "links = ['t.1 -> vm1.rx']\n[port.bridge]\ntype = 'tap'\ninterface = 'a'\n[port.vm1]\ntype = 'tap'\n\
                interface = 'b'\nrate-to = '1Gbit'\n[app.vm1]\ntype = 'sink'\n[app.'vm1.police']\ntype = 'sink'\n\
                [app.t]\ntype = 'tee'\n[app.'t.1']\ntype = 'sink'\n[app.'bridge.x']\ntype = 'sink'\n[app.'a b']\ntype = 'sink'";
    let expected = "\
ringway.toml:2:7: `bridge` is the name of the bridge that ports are joined to: expected another name
ringway.toml:9:6: app `vm1` has the name of a port, defined in ringway.toml:5:7: expected another name
ringway.toml:11:6: `vm1.police` is the name of what lies between port `vm1` and the bridge: expected another name
ringway.toml:15:6: `t.1` reads as an output of `t`, defined in ringway.toml:13:6: expected another name
ringway.toml:17:6: `bridge.x` reads as a side of the bridge that ports are joined to: expected another name
ringway.toml:19:6: `a b` is not an app name: expected 1 to 64 characters out of A-Z, a-z, 0-9, . _ -";
    assert_file_fault(file, expected);
    assert_file_fault(
        "[app.bridge]\ntype = 'sink'",
        "ringway.toml:1:6: `bridge` is the name of the bridge that ports are joined to: expected another name",
    );
    assert_file_fault(
        "[app.a]\ntype = 'sink'\n[app.a]\ntype = 'tee'",
        "ringway.toml:3:6: app `a` is defined twice, first in ringway.toml:1:6",
    );
}

#[test]
fn apps_that_are_none() {
    assert_file_fault(
        "app = 3",
        "ringway.toml:1:1: app = integer is not an app's table: expected [app.NAME]",
    );
    assert_file_fault(
        "[app]\na = 3",
        "ringway.toml:2:1: app.a = integer is not an app's table: expected [app.NAME]",
    );
    assert_file_fault(
        "[app.a]\ntype = 'bridge'\nside.x = 3",
        "ringway.toml:3:6: side.x = integer is not a side's table: expected [app.NAME.side.SIDE]",
    );
    assert_file_fault(
        "[app.a]\nkey = 3",
        "ringway.toml:1:6: app `a` lacks the key `type`: expected bridge, anti-spoof, storm, police, filter, mirror, tee, \
         source, sink or impair",
    );
    assert_file_fault(
        "[app.a]\ntype = 'tap'",
        "ringway.toml:2:8: wrong value `tap` for `type`: expected bridge, anti-spoof, storm, police, filter, mirror, tee, \
         source, sink or impair (a port has a section [port.NAME])",
    );
    assert_file_fault(
        "[app.a]\ntype = 'mirorr'\n[app.b]\ntype = 'police'\nrate-form = '1Gbit'\n[app.c]\ntype = 'filter'",
        "ringway.toml:2:8: wrong value `mirorr` for `type`: expected bridge, anti-spoof, storm, police, filter, mirror, \
         tee, source, sink or impair; did you mean `mirror`?\n\
         ringway.toml:5:1: unknown key `rate-form` of an app of type police: expected type, rate-from, rate-to, burst-from \
         or burst-to; did you mean `rate-from`?\n\
         ringway.toml:6:6: app `c` would do nothing: expected filter-from, filter-to or allow-replies",
    );
    assert_file_fault(
        "[app.a]\ntype = 'bridge'\n[app.a.side.x]\n[app.a.side.y]\nvlam = 3",
        "ringway.toml:3:13: side `x` would do nothing: expected `vlan`, `trunk` or both\n\
         ringway.toml:5:1: unknown key `vlam` of a side of a bridge: expected vlan, trunk or qinq; did you mean `vlan`?",
    );
}

#[test]
fn vlans_of_some_sides_and_not_of_others() {
    let file = "links = [\n'vm1.tx -> br.a',\n'br.b -> vm1.rx']\n[app.br]\ntype = 'bridge'\n[app.br.side.a]\nvlan = 3\n\
                [port.vm1]\ntype = 'tap'\ninterface = 'a'\nvlan = 3\ntrunk = 'all'\n";
    let not_joined = |line, key| {
        format!(
            "ringway.toml:{line}:1: `{key}` has no effect, as port `vm1` is not joined to the bridge: expected it for the \
             side of a bridge that links lead to, in [app.BRIDGE.side.SIDE]"
        )
    };
    let no_vlan = "ringway.toml:3:1: side `b` of `br` is in no VLAN, but side `a` of `br` is, in ringway.toml:6:14: expected \
                   `vlan`, `trunk` or both for each side, or for none";
    assert_file_fault(
        file,
        &[no_vlan, &not_joined(11, "vlan"), &not_joined(12, "trunk")].join("\n"),
    );
    let port = "[port.vm1]\ntype = 'tap'\ninterface = 'a'\nvlan = 3\n";
    assert_file_fault(
        &format!("{port}[app.bridge]\ntype = 'bridge'\n[app.bridge.side.vm1]\nvlan = 4"),
        "ringway.toml:7:18: `vm1` has its VLANs from port `vm1` already, defined in ringway.toml:1:7: remove one of the two",
    );
}

/// What leads back to an app that still has the frames.
#[test]
fn cycles() {
    let cycle = |place: &str, apps: &str| {
        format!(
            "ringway.toml:{place}: frames would come back to an app that still has them: {apps}; expected a port or a \
             sink on the way, or one link less"
        )
    };
    let tees = "links = ['vm1.tx -> t.in',\n't.1 -> u.in',\n'u.1 -> t.in', 'u.2 -> vm1.rx']\n\
                app.t.type = 'tee'\napp.u.type = 'tee'";
    assert_file_fault(&with_ports(tees), &cycle("3:1", "t -> u -> t"));
    // Two bridges that are joined twice; once is no cycle, as none sends back by the side that frames came in by.
    let bridges = "links = ['br.a -> bridge.a', 'bridge.a -> br.a', 'br.b -> bridge.b',\n'bridge.b -> br.b']\n\
                   app.br.type = 'bridge'";
    assert_file_fault(&with_ports(bridges), &cycle("1:50", "bridge -> br -> bridge"));
    config(&with_ports("links = ['br.a -> bridge.a', 'bridge.a -> br.a']\napp.br.type = 'bridge'"));
    // From one side of a filter to the other one, by the filter itself.
    let filter = "links = ['vm1.tx -> f.port', 'f.network -> f.network', 'f.port -> vm1.rx']\n\
                  app.f.type = 'police'\napp.f.rate-to = '1bit'";
    assert_file_fault(&with_ports(filter), &cycle("1:30", "f -> f"));
    // What is kept comes out in another breath, but cannot come back in that one.
    let impaired = |keys: &str| {
        with_ports(&format!(
            "links = ['vm1.tx -> t.in', 't.1 -> i.port', 'i.network -> t.in', 't.2 -> vm1.rx']\n\
             app.t.type = 'tee'\napp.i.type = 'impair'\n{keys}"
        ))
    };
    for keys in ["app.i.delay-from = '1ms'", "app.i.delay-to = '1ms'"] {
        assert_file_fault(&impaired(keys), &cycle("1:45", "t -> i -> t"));
    }
    // A mirror whose copies come to itself, when it copies those that it sends there.
    let mirror = |what: &str| {
        with_ports(&format!(
            "links = ['vm1.tx -> m.port', 'm.port -> vm1.rx', 'm.network -> bridge.a', 'bridge.a -> m.network', \
             'm.mirror -> bridge.m']\napp.m.type = 'mirror'\napp.m.mirror = '{what}'"
        ))
    };
    assert_file_fault(&mirror("from"), &cycle("1:100", "m -> bridge -> m"));
}

#[test]
fn ports_that_only_send_or_only_take() {
    let file = |links: &str| {
        format!(
            "links = [{links}]\n[port.again]\ntype = 'pcap-read'\nfile = 'a'\n[port.dump]\ntype = 'pcap-write'\nfile = 'b'\n\
             [port.vm1]\ntype = 'tap'\ninterface = 'a'"
        )
    };
    let fault = |end: &str, link: &str, what: &str| {
        format!(
            "ringway.toml:1:10: `{end}` of the link `{link}`: a port of type {what} no frames: expected another app, or \
             a link back as well"
        )
    };
    let link = "vm1.tx -> again.rx";
    assert_file_fault(&file(&format!("'{link}'")), &fault("again.rx", link, "pcap-read takes"));
    let elsewhere = "'vm1.tx -> again.rx', 'again.tx -> dump.rx'";
    assert_file_fault(&file(elsewhere), &fault("again.rx", link, "pcap-read takes"));
    let link = "dump.tx -> vm1.rx";
    assert_file_fault(&file(&format!("'{link}'")), &fault("dump.tx", link, "pcap-write sends"));
    let link = "dump.tx -> again.rx";
    let both =
        [fault("dump.tx", link, "pcap-write sends"), fault("again.rx", link, "pcap-read takes")];
    assert_file_fault(&file(&format!("'{link}'")), &both.join("\n"));
    config(&file("'again.tx -> vm1.rx', 'vm1.tx -> dump.rx'"));
    // As they are joined to the bridge.
    config(&file(
        "'again.tx -> bridge.a', 'bridge.a -> again.rx', 'dump.tx -> bridge.b', 'bridge.b -> dump.rx'",
    ));
}

/// A reload looks for them while frames pass.
#[test]
fn cycles_of_many_ports_are_found_quickly() {
    let port = |n: usize| {
        format!(
            "[port.p{n}]\ntype = 'tap'\ninterface = 'p{n}'\ndelay-to = '1ms'\nmirror-to = 'tap'\nallow-ips = '10.0.0.1'\n\
             storm-multicast = '1frames'\nrate-to = '1Gbit'\nfilter-to = '1,6 0 0 1'\n"
        )
    };
    let ports: String = (0..512).map(port).collect();
    let tap = "[port.tap]\ntype = 'pcap-write'\nfile = 'a.pcapng'\n";
    let find = |links: &str| {
        let mut draft = Draft::default();
        draft.add_file(
            Path::new("ringway.toml"),
            &format!("links = [{links}]\n{ports}{tap}[app.br]\ntype = 'bridge'"),
        );
        let start = Instant::now();
        let faults = draft.finish().err().map(|faults| faults.to_string());
        // A search for each of them takes many times as long.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        faults
    };
    assert_eq!(find("'br.a -> bridge.a', 'bridge.a -> br.a'"), None);
    let faults =
        find("'br.a -> bridge.a', 'bridge.a -> br.a', 'br.b -> bridge.b', 'bridge.b -> br.b'");
    // The ring, and not each port that leads to it.
    let faults = faults.expect("bridges that are joined twice");
    assert!(
        faults.contains(": bridge -> br -> bridge;") && faults.lines().count() == 1,
        "{faults}"
    );
}

#[test]
fn copies_go_to_another_port() {
    let file = |to: &str| {
        format!(
            "[port.vm1]\ntype = 'tap'\ninterface = 'a'\nmirror-to = '{to}'\n[port.tap]\ntype = 'tap'\ninterface = 'b'"
        )
    };
    for (to, nearest) in [("vm1", ""), ("tab", "; did you mean `tap`?"), ("bridge", "")] {
        assert_file_fault(
            &file(to),
            &format!(
                "ringway.toml:4:13: wrong value `{to}` for `mirror-to`: expected another port: tap{nearest}"
            ),
        );
    }
    config(&file("tap"));
    assert_port_fault(
        "a=tap:a,mirror=from",
        "`mirror` has no effect without a port for the copies: expected `mirror-to`",
    );
    // One that would do nothing with them.
    let file = |to: &str, keys: &str| {
        format!(
            "[port.vm1]\ntype = 'tap'\ninterface = 'a'\nmirror-to = '{to}'\n[port.again]\ntype = 'pcap-read'\nfile = 'a'\n{keys}"
        )
    };
    let refused = |to: &str, expected: &str| {
        format!(
            "ringway.toml:4:13: wrong value `{to}` for `mirror-to`: expected another port{expected}"
        )
    };
    assert_file_fault(
        &file("again", ""),
        &refused("again", ", as one of type pcap-read takes no frames"),
    );
    let tap = "[port.tap]\ntype = 'pcap-write'\nfile = 'b'";
    assert_file_fault(
        &file("again", tap),
        &refused("again", ", as one of type pcap-read takes no frames: tap"),
    );
    assert_file_fault(&file("agian", tap), &refused("agian", ": tap"));
    config(&file("tap", tap));
    // Two that have copies sent to each other.
    let file = "[port.a]\ntype = 'tap'\ninterface = 'a'\nmirror-to = 'b'\n[port.b]\ntype = 'tap'\ninterface = 'b'\nmirror-to = 'a'";
    let expected = "ringway.toml:5:7: frames would come back to an app that still has them: a.mirror -> b.mirror -> a.mirror; \
                    expected a port or a sink on the way, or one link less";
    assert_file_fault(file, expected);
}

#[test]
fn impairments_that_are_none() {
    let times = "a duration of at most 60s, as 10ms (units: ns, us, ms, s)";
    let chances = "a percentage from 0% to 100%, as 0.1%";
    for (key, value, expected) in [
        ("delay-from", "61s", times.to_owned()),
        ("delay-to", "10", format!("{times}; did you mean `10ms`?")),
        ("jitter-from", "10msec", format!("{times}; did you mean `10ms`?")),
        ("loss-from", "0.1", format!("{chances}; did you mean `0.1%`?")),
        ("loss-to", "101%", chances.to_owned()),
        ("corrupt-from", "-1%", chances.to_owned()),
        ("duplicate-to", "1e1%", chances.to_owned()),
        ("corrupt-to", "%", chances.to_owned()),
        ("reorder-to", "", chances.to_owned()),
        ("seed", "-1", "a number from 0 to 4294967295".to_owned()),
    ] {
        let port = format!("a=tap:a,{key}={value},delay-from=1ms,delay-to=1ms");
        let port = port.replace(&format!(",{key}=1ms"), "");
        assert_port_fault(
            &port,
            &format!("wrong value `{value}` for `{key}`: expected {expected}"),
        );
    }
    assert_port_fault(
        "a=tap:a,jitter-to=1ms,delay-from=1ms",
        "`jitter-to` has no effect without a delay: expected `delay-to`",
    );
    assert_port_fault(
        "a=tap:a,reorder-from=1%",
        "`reorder-from` has no effect without a delay: expected `delay-from`",
    );
    assert_port_fault(
        "a=tap:a,seed=1",
        "`seed` has no effect without chance: expected `loss-from`, `delay-to` or another of what is done to frames",
    );
    // Whatever can be said, the app takes.
    let most = "a=tap:a,delay-from=60s,jitter-from=60s,loss-from=100%,corrupt-from=100%,duplicate-from=100%,reorder-from=100%,\
                seed=4294967295";
    let config = read("", &[("port", most)]).unwrap();
    assert!(apps::impair::Impair::new(config.ports[0].between.impair.clone().unwrap()).is_ok());
}
