//! What a configuration means, and the whole text of every fault.

mod network;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apps::bridge::vlan::Membership;
use apps::bucket::Limit;
use apps::{anti_spoof, filter, police, storm};
use ports::pcap::{Replay, Times};
use ports::tun::Subnets;
use ports::vhost_user::SUPPORTED;
use tracing::level_filters::LevelFilter;
use wire::ethernet::MacAddress;
use wire::virtio::Features;

use super::{
    Between, Config, ControlSocket, DEFAULT_FEATURES, Draft, Mode, PcapRead, PcapWrite, PortConfig,
    PortKind, Setup, SocketRole, Tap, Tun, VhostNet, VhostUser, features, keys,
};

/// Reads a file named `ringway.toml`, if there is text for one, and then the flags. The flag
/// `("port", ...)` is a port.
fn read(file: &str, flags: &[(&str, &str)]) -> Result<Config, String> {
    let mut draft = Draft::default();
    if !file.is_empty() {
        draft.add_file(Path::new("ringway.toml"), file);
    }
    for (key, value) in flags {
        match *key {
            "port" => draft.add_port(value),
            _ => draft.add_flag(key, value),
        }
    }
    draft.finish().map_err(|faults| faults.to_string())
}

#[track_caller]
fn assert_file_fault(file: &str, expected: &str) {
    assert_eq!(read(file, &[]), Err(expected.to_owned()));
}

#[track_caller]
fn assert_port_fault(port: &str, expected: &str) {
    assert_eq!(read("", &[("port", port)]), Err(format!("--port {port}: {expected}")));
}

fn tap(name: &str, interface: &str) -> PortConfig {
    PortConfig::new(name, PortKind::Tap(Tap::new(interface.to_owned())))
}

#[test]
fn flags_and_a_file_say_the_same() {
    let file = r#"
        mode = "poll"
        idle-spin = "1ms"
        control = "/run/lab.sock"
        workers = 2
        cpus = "3,0-1"
        log = "debug"

        [port.vm1]
        type = "vhost-user"
        path = "/run/vm1.sock"
        socket-mode = "0600"
        socket-group = "kvm"
        mtu = 9000
        queue-pairs = 4
        penalty = false
        features = ["version_1", "csum", "host_tso4"]

        [port.an-earlier-name]
        type = "vhost-user"
        path = "vm2.sock"
        connect = true
        features = ["-ring_packed"]

        [port.host]
        type = "tap"
        interface = "rw0"

        [port.lan]
        type = "tap"
        interface = "tap%d"
        queue-pairs = 2
        persistent = false
        owner = "libvirt-qemu"
        group = 107
        mtu = 9000
        mac = "52:54:00:12:34:56"
        up = false
        bridge = "br0"

        [port.given]
        type = "tap"
        interface = ""
        fd = [3, 4]

        [port.fast]
        type = "vhost-net"
        interface = "rw2"
        queue-pairs = 2
        mtu = 9000
        require = true
    "#;
    let flags = [
        ("mode", "poll"),
        ("idle-spin", "1ms"),
        ("control", "/run/lab.sock"),
        ("workers", "2"),
        ("cpus", "3,0-1"),
        ("log", "debug"),
        (
            "port",
            "vm1=vhost-user:/run/vm1.sock,socket-mode=0600,socket-group=kvm,mtu=9000,queue-pairs=4,\
             penalty=off,features=version_1+csum+host_tso4",
        ),
        ("port", "an-earlier-name=vhost-user:vm2.sock,connect=on,features=-ring_packed"),
        ("port", "host=tap:rw0"),
        (
            "port",
            "lan=tap:tap%d,queue-pairs=2,persistent=off,owner=libvirt-qemu,group=107,mtu=9000,\
             mac=52:54:00:12:34:56,up=off,bridge=br0",
        ),
        ("port", "given=tap:,fd=3+4"),
        ("port", "fast=vhost-net:rw2,queue-pairs=2,mtu=9000,require=on"),
    ];
    let expected = Config {
        mode: Mode::Poll,
        idle_spin: Duration::from_millis(1),
        workers: 2,
        cpus: vec![0, 1, 3],
        log: LevelFilter::DEBUG,
        control: ControlSocket::At("/run/lab.sock".into()),
        ports: vec![
            PortConfig::new(
                "vm1",
                PortKind::VhostUser(VhostUser {
                    path: PathBuf::from("/run/vm1.sock"),
                    socket: SocketRole::Listen { mode: 0o600, group: Some("kvm".to_owned()) },
                    mtu: 9000,
                    queue_pairs: 4,
                    penalty: false,
                    features: Features::VERSION_1 | Features::CSUM | Features::HOST_TSO4,
                }),
            ),
            PortConfig::new(
                "an-earlier-name",
                PortKind::VhostUser(VhostUser {
                    path: PathBuf::from("vm2.sock"),
                    socket: SocketRole::Connect,
                    mtu: 65535,
                    queue_pairs: 128,
                    penalty: true,
                    features: DEFAULT_FEATURES.without(Features::RING_PACKED),
                }),
            ),
            tap("host", "rw0"),
            PortConfig::new(
                "lan",
                PortKind::Tap(Tap {
                    queue_pairs: 2,
                    persistent: Some(false),
                    owner: Some("libvirt-qemu".to_owned()),
                    group: Some("107".to_owned()),
                    setup: Setup {
                        mtu: Some(9000),
                        mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
                        up: Some(false),
                        bridge: Some("br0".to_owned()),
                        addresses: Vec::new(),
                    },
                    ..Tap::new("tap%d".to_owned())
                }),
            ),
            PortConfig::new(
                "given",
                PortKind::Tap(Tap { descriptors: vec![3, 4], ..Tap::new(String::new()) }),
            ),
            PortConfig::new(
                "fast",
                PortKind::VhostNet(VhostNet {
                    tap: Tap {
                        queue_pairs: 2,
                        setup: Setup { mtu: Some(9000), ..Setup::default() },
                        ..Tap::new("rw2".to_owned())
                    },
                    require: true,
                }),
            ),
        ],
        ..Config::default()
    };
    assert_eq!(read(file, &[]).as_ref(), Ok(&expected));
    assert_eq!(read("", &flags).as_ref(), Ok(&expected));
}

/// What is shown of a configuration is one that says the same, and is shown as itself.
#[test]
fn what_is_shown_can_be_read() {
    let file = r#"
        mode = "poll"
        workers = 2
        cpus = "0-1"
        [port.vm1]
        type = "vhost-user"
        path = 'a "b"\ c	d'
        socket-mode = 0o600
        mtu = 0x2000
        penalty = false
        features = ["-ring_packed"]
        filter-from = """2
        48 0 0 0
        6 0 0 1"""
        vlan = 1
        trunk = [10, "20-29"]
        ["port"."host.1"]
        type = "tap"
        interface = "rwé"
        vlan = 3
    "#;
    let draft = |file: &str| {
        let mut draft = Draft::default();
        draft.add_file(Path::new("ringway.toml"), file);
        draft.add_flag("mode", "interrupt");
        draft.add_port("vm2=vhost-user:b.sock,vlan=2,rate-to=1Gbit+9frames");
        draft
    };
    let shown = draft(file).to_toml();
    let mut again = Draft::default();
    again.add_file(Path::new("shown.toml"), &shown);
    assert_eq!(again.to_toml(), shown);
    let config = again.finish().unwrap_or_else(|faults| panic!("{faults}\n{shown}"));
    assert_eq!(config, draft(file).finish().unwrap());
    assert_eq!((config.mode, config.ports.len()), (Mode::Interrupt, 3));
}

#[test]
fn what_is_not_said_has_a_default() {
    let config = read("", &[("port", "vm1=vhost-user:/run/vm1.sock")]);
    let expected = Config {
        mode: Mode::Adaptive,
        idle_spin: Duration::from_micros(50),
        workers: 1,
        cpus: vec![],
        log: LevelFilter::WARN,
        control: ControlSocket::Default,
        ports: vec![PortConfig::new(
            "vm1",
            PortKind::VhostUser(VhostUser {
                path: PathBuf::from("/run/vm1.sock"),
                socket: SocketRole::Listen { mode: 0o660, group: None },
                mtu: 65535,
                queue_pairs: 128,
                penalty: true,
                features: DEFAULT_FEATURES,
            }),
        )],
        apps: vec![],
        links: vec![],
    };
    assert_eq!(config, Ok(expected));
}

#[test]
fn a_flag_replaces_the_files_setting_and_ports_add_up() {
    let file = "mode = 'poll'\nlog = 'info'\n[port.b]\ntype = 'tap'\ninterface = 'rw0'\n";
    let config = read(file, &[("mode", "interrupt"), ("port", "a=tap:rw1")])
        .expect("the file and the flags are valid together");
    assert_eq!(config.mode, Mode::Interrupt);
    assert_eq!(config.log, LevelFilter::INFO);
    assert_eq!(config.ports, [tap("b", "rw0"), tap("a", "rw1")]);
}

#[test]
fn a_target_may_have_colons_and_equal_signs() {
    let config = read("", &[("port", "a=vhost-user:/run/a:b=c,mtu=1500")])
        .expect("only the first of each separates");
    let PortKind::VhostUser(VhostUser { path, mtu, .. }) = &config.ports[0].kind else {
        panic!("the port is of type vhost-user, not {:?}", config.ports);
    };
    assert_eq!((path.as_path(), *mtu), (Path::new("/run/a:b=c"), 1500));
}

#[test]
fn every_fault_is_reported_at_once_the_files_first() {
    let file = "\
log = 'loud'
mod = 'poll'
[port.vm1]
type = 'vhost-user'
path = '/run/vm1.sock'
mtu = 40
conect = true
";
    let flags = [("port", "vm1=tap:a/b"), ("mode", "pol")];
    let expected = "\
ringway.toml:1:7: wrong value `loud` for `log`: expected off, error, warn, info, debug or trace
ringway.toml:2:1: unknown key `mod` of the file: expected mode, idle-spin, workers, cpus, log, control, links, port or app; \
did you mean `mode`?
ringway.toml:6:7: wrong value `40` for `mtu`: expected a number from 68 to 65535
ringway.toml:7:1: unknown key `conect` of a vhost-user port: expected type, path, connect, \
socket-mode, socket-group, mtu, queue-pairs, penalty, features, vlan, trunk, qinq, allow-macs, allow-ips, storm-broadcast, storm-multicast, rate-from, rate-to, burst-from, burst-to, filter-from, filter-to, allow-replies, mirror-to, mirror, delay-from, delay-to, jitter-from, jitter-to, loss-from, loss-to, corrupt-from, corrupt-to, duplicate-from, duplicate-to, reorder-from, reorder-to or seed; did you mean `connect`?
--port vm1=tap:a/b: wrong value `a/b` for `interface`: expected an interface name, as rw0 or \
tap%d: 1 to 15 bytes, not . or .., without space / : or another %
--port vm1=tap:a/b: port `vm1` is defined twice, first in ringway.toml:3:7
--mode pol: wrong value `pol` for `mode`: expected adaptive, poll or interrupt; did you mean \
`poll`?";
    assert_eq!(read(file, &flags), Err(expected.to_owned()));
}

#[test]
fn columns_count_characters() {
    assert_file_fault(
        "port = {'é' = {type = 'tap', interface = 'rw0'}}",
        "ringway.toml:1:9: `é` is not a port name: expected 1 to 32 characters out of A-Z, a-z, \
         0-9, . _ -",
    );
    assert_file_fault(
        "port = {a = {type = 'tap', interface = 'é é'}}",
        "ringway.toml:1:40: wrong value `é é` for `interface`: expected an interface name, as \
         rw0 or tap%d: 1 to 15 bytes, not . or .., without space / : or another %",
    );
    assert_file_fault(
        "port = {a = {interface = 'é', type = 'tab'}}",
        "ringway.toml:1:38: wrong value `tab` for `type`: expected vhost-user, tap, tun, vhost-net, pcap-read or pcap-write; did you \
         mean `tap`?",
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let mut draft = Draft::default();
    draft.read_file(Path::new("/nonexistent/ringway.toml"));
    let faults = draft.finish().map_err(|faults| faults.to_string());
    assert_eq!(
        faults,
        Err("/nonexistent/ringway.toml: cannot read the file: No such file or directory (os \
             error 2)"
            .to_owned())
    );
}

#[test]
fn syntax_faults_are_all_reported_and_nothing_is_made_of_the_rest() {
    let file = "mode = poll\nlog = 'loud'\n[port.vm1\ntype = 'tap'\n[port.b]\nmtu = 0660\n";
    let expected = "\
ringway.toml:1:8: `mode = poll` is not TOML: string values must be quoted, expected literal string
ringway.toml:3:10: `[port.vm1` is not TOML: unclosed table, expected `]`
ringway.toml:6:7: `mtu = 0660` is not TOML: unexpected leading zero";
    assert_file_fault(file, expected);
    // Of a long line there is as much as is read at a look.
    let expected = format!(
        "ringway.toml:2:7: `log = ü{}...` is not TOML: string values must be quoted, expected literal string",
        "a".repeat(53)
    );
    assert_file_fault(&format!("\nlog = ü{}\n", "a".repeat(54)), &expected);
}

#[test]
fn a_port_defined_twice_names_both_places() {
    let table = "[port.vm1]\ntype = 'tap'\ninterface = 'rw0'\n";
    assert_file_fault(
        &format!("{table}\n{table}"),
        "ringway.toml:5:7: port `vm1` is defined twice, first in ringway.toml:1:7",
    );
    let quoted = table.replace("vm1", "'vm1'");
    assert_file_fault(
        &format!("{table}\n{quoted}"),
        "ringway.toml:5:7: port `vm1` is defined twice, first in ringway.toml:1:7",
    );
    assert_eq!(
        read(table, &[("port", "vm1=tap:rw0")]),
        Err("--port vm1=tap:rw0: port `vm1` is defined twice, first in ringway.toml:1:7".to_owned())
    );
    assert_eq!(
        read("", &[("port", "vm1=tap:rw0"), ("port", "vm1=tap:rw1")]),
        Err("--port vm1=tap:rw1: port `vm1` is defined twice, first in --port vm1=tap:rw0"
            .to_owned())
    );
}

#[test]
fn a_socket_or_an_interface_used_twice_names_both_places() {
    let file = "[port.a]\ntype = 'vhost-user'\npath = '/run/a.sock'\n";
    assert_eq!(
        read(file, &[("port", "b=vhost-user:/run//a.sock,connect=on")]),
        Err("--port b=vhost-user:/run//a.sock,connect=on: port `b` has the same path \
             `/run//a.sock` as port `a`, defined in ringway.toml:1:7"
            .to_owned())
    );
    assert_eq!(
        read("", &[("port", "a=tap:rw0"), ("port", "b=tap:rw0")]),
        Err("--port b=tap:rw0: port `b` has the same interface `rw0` as port `a`, defined in \
             --port a=tap:rw0"
            .to_owned())
    );
}

#[test]
fn capture_files() {
    let file = "[port.in]\ntype = 'pcap-read'\nfile = 'a.pcap'\ntimes = 'recorded'\nloops = 3\n\
                [port.out]\ntype = 'pcap-write'\nfile = 'b.pcapng'\nsnaplen = 128\n";
    let flags = [
        ("port", "in=pcap-read:a.pcap,times=recorded,loops=3"),
        ("port", "out=pcap-write:b.pcapng,snaplen=128"),
    ];
    let config = read(file, &[]).expect("a valid file");
    let replay = Replay { times: Times::Recorded, rounds: Some(3) };
    let kinds: Vec<PortKind> = config.ports.iter().map(|port| port.kind.clone()).collect();
    let expected = [
        PortKind::PcapRead(PcapRead { file: "a.pcap".into(), replay }),
        PortKind::PcapWrite(PcapWrite { file: "b.pcapng".into(), snaplen: 128 }),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(read("", &flags), Ok(config));
    let flags = [("port", "in=pcap-read:a"), ("port", "out=pcap-write:b")];
    let ports = read("", &flags).expect("valid flags").ports;
    let replay = Replay { times: Times::Fast, rounds: Some(1) };
    assert_eq!(ports[0].kind, PortKind::PcapRead(PcapRead { file: "a".into(), replay }));
    let snaplen = wire::pcap::MAX_CAPTURED;
    assert_eq!(ports[1].kind, PortKind::PcapWrite(PcapWrite { file: "b".into(), snaplen }));
    assert_port_fault(
        "in=pcap-read:a,loops=0",
        "wrong value `0` for `loops`: expected a number from 1 to 4294967295, or forever",
    );
}

#[test]
fn a_key_given_twice() {
    assert_file_fault("mode = 'poll'\nmode = 'poll'\n", "ringway.toml:2:1: `mode` is given twice");
    assert_port_fault("a=vhost-user:/a,mtu=68,mtu=68", "`mtu` is given twice");
    assert_port_fault("a=vhost-user:/a,path=/b", "`path` is given twice");
}

#[test]
fn a_flag_that_does_not_describe_a_port() {
    for port in ["", "vm1", "vm1=vhost-user", "vhost-user:/run/vm1.sock", "a=b,c:d"] {
        assert_port_fault(
            port,
            &format!(
                "`{port}` does not describe a port: expected NAME=TYPE:TARGET[,KEY=VALUE...], as \
                 vm1=vhost-user:/run/vm1.sock or host=tap:rw0"
            ),
        );
    }
    assert_port_fault(
        "a=vhost-user:/run/a,b.sock",
        "`b.sock` is not KEY=VALUE: expected a key of the port after each comma (a path or a filter that has \
         a comma can only be given in a file)",
    );
}

#[test]
fn a_table_that_is_not_a_port() {
    let expected = "is not a port's table: expected [port.NAME]";
    assert_file_fault("port = 3", &format!("ringway.toml:1:1: port = integer {expected}"));
    assert_file_fault(
        "[[port]]\ntype = 'tap'",
        &format!("ringway.toml:1:3: port = array {expected}"),
    );
    assert_file_fault(
        "[port]\ntype = 'tap'",
        &format!("ringway.toml:2:1: port.type = string {expected}"),
    );
}

#[test]
fn a_missing_key() {
    assert_file_fault(
        "[port.a]\npath = '/run/a.sock'",
        "ringway.toml:1:7: port `a` lacks the key `type`: expected vhost-user, tap, tun, vhost-net, pcap-read or pcap-write",
    );
    assert_file_fault(
        "[port.a]\ntype = 'vhost-user'",
        "ringway.toml:1:7: port `a` lacks the key `path`: expected the path of its socket",
    );
    assert_file_fault(
        "[port.a]\ntype = 'tap'",
        "ringway.toml:1:7: port `a` lacks the key `interface`: expected the name of its interface, \
         or a pattern, as tap%d",
    );
}

#[test]
fn an_unknown_type_or_key() {
    assert_port_fault(
        "a=vhostuser:/run/a.sock,connect=perhaps",
        "wrong value `vhostuser` for `type`: expected vhost-user, tap, tun, vhost-net, pcap-read or pcap-write; did you mean \
         `vhost-user`?",
    );
    assert_port_fault(
        "a=vhost-user:/run/a.sock,socket_mode=0660",
        "unknown key `socket_mode` of a vhost-user port: expected connect, socket-mode, \
         socket-group, mtu, queue-pairs, penalty, features, vlan, trunk, qinq, allow-macs, allow-ips, \
         storm-broadcast, storm-multicast, rate-from, rate-to, burst-from, burst-to, filter-from, filter-to, allow-replies, mirror-to, mirror, delay-from, delay-to, jitter-from, jitter-to, loss-from, loss-to, corrupt-from, corrupt-to, duplicate-from, duplicate-to, reorder-from, reorder-to or seed; did you mean `socket-mode`?",
    );
    assert_port_fault(
        "a=tap:rw0,colour=red",
        "unknown key `colour` of a tap port: expected fd, queue-pairs, persistent, owner, group, mtu, \
         mac, up, bridge, vlan, trunk, qinq, allow-macs, allow-ips, \
         storm-broadcast, storm-multicast, rate-from, rate-to, burst-from, burst-to, filter-from, filter-to, allow-replies, mirror-to, mirror, delay-from, delay-to, jitter-from, jitter-to, \
         loss-from, loss-to, corrupt-from, corrupt-to, duplicate-from, duplicate-to, reorder-from, reorder-to or seed",
    );
}

#[test]
fn a_wrong_port_name() {
    for name in ["", "vm 1", "vm/1", "é", &"a".repeat(33)] {
        assert_port_fault(
            &format!("{name}=tap:rw0"),
            &format!(
                "`{name}` is not a port name: expected 1 to 32 characters out of A-Z, a-z, 0-9, . \
                 _ -"
            ),
        );
    }
    let longest = "a".repeat(32);
    let port = format!("{longest}=tap:rw0");
    let config = read("", &[("port", &port)]).expect("32 characters are allowed");
    assert_eq!(config.ports, [tap(&longest, "rw0")]);
}

#[test]
fn a_socket_path_too_long_says_how_long_it_is() {
    let path = format!("/{}", "a".repeat(107));
    assert_port_fault(
        &format!("a=vhost-user:{path}"),
        &format!(
            "wrong value `{path}` for `path`: expected at most 107 bytes, the limit of a Unix \
             socket's path; this has 108"
        ),
    );
}

#[test]
fn a_socket_file_is_not_the_connecting_sides() {
    assert_port_fault(
        "a=vhost-user:/run/a.sock,socket-group=kvm,connect=on",
        "`socket-group` has no effect together with `connect`: the process that listens makes the \
         socket; remove one of the two",
    );
}

#[test]
fn tap_ports_that_name_no_interface() {
    // Each is a new interface, or that of its descriptors.
    for ports in [["a=tap:tap%d", "b=tap:tap%d"], ["a=tap:,fd=3", "b=tap:,fd=4"]] {
        let read = read("", &ports.map(|port| ("port", port)));
        assert_eq!(read.map(|config| config.ports.len()), Ok(2), "{ports:?}");
    }
    assert_eq!(
        read("", &[("port", "a=tap:,fd=3+4"), ("port", "b=tap:rw0,fd=4")]),
        Err("--port b=tap:rw0,fd=4: port `b` has the same fd `4` as port `a`, defined in \
             --port a=tap:,fd=3+4"
            .to_owned())
    );
    let pattern = "expected an interface name, as rw0 or tap%d: 1 to 15 bytes, not . or .., without \
                   space / : or another %";
    for interface in ["", "tap%", "tap%s", "tap%d%d", "a23456789012345%d", "a2345678901234%d"] {
        let expected = format!("wrong value `{interface}` for `interface`: {pattern}");
        assert_port_fault(&format!("a=tap:{interface}"), &expected);
    }
    assert_port_fault(
        "a=tap:tap%d,fd=3",
        "wrong value `tap%d` for `interface`: expected an interface name, as rw0: 1 to 15 bytes, not \
         . or .., without space / : or %",
    );
}

#[test]
fn what_a_tap_port_is_told_has_its_form() {
    let fd = "expected numbers of inherited descriptors, from 3 on and each once, as 3 or 3+4";
    for value in ["", "2", "-3", "3+", "+3", "3+3", "three", "99999999999"] {
        let port = format!("a=tap:,fd={value}");
        let faults = read("", &[("port", &port)]).expect_err(value);
        assert!(faults.contains(fd), "{faults}");
    }
    for value in ["[]", "[3, 3]", "[3, 1.5]", "0", "-3", "true"] {
        let file = format!("[port.a]\ntype = 'tap'\ninterface = ''\nfd = {value}");
        let faults = read(&file, &[]).expect_err(value);
        assert!(faults.contains(fd), "{faults}");
    }
    for key in ["queue-pairs=2", "persistent=on", "owner=root", "group=root"] {
        let (name, _) = key.split_once('=').expect("a value");
        assert_port_fault(
            &format!("a=tap:,fd=3,{key}"),
            &format!(
                "`{name}` has no effect together with `fd`: whoever opened the descriptors has decided \
                 that; remove one of the two"
            ),
        );
    }
    assert_port_fault(
        "a=tap:tap%d,persistent=on",
        "`persistent` with the pattern `tap%d`: each start would make one more interface, and leave it; \
         give the interface a name",
    );
    let one = "expected the hardware address of one station, as 52:54:00:12:34:56";
    let near = "; did you mean `52:54:00:12:34:ab`?";
    let cases = [("52-54-00-12-34-AB", near), ("01:00:5e:00:00:01", ""), ("00:00:00:00:00:00", "")];
    for (value, near) in cases.into_iter().chain([("5254001234ab", "")]) {
        let expected = format!("wrong value `{value}` for `mac`: {one}{near}");
        assert_port_fault(&format!("a=tap:rw0,mac={value}"), &expected);
    }
    assert_port_fault(
        "a=tap:rw0,mtu=65522",
        "wrong value `65522` for `mtu`: expected a number from 68 to 65521",
    );
    assert_port_fault(
        "a=tap:rw0,owner=a b",
        "wrong value `a b` for `owner`: expected the name or the number of a user, as libvirt-qemu",
    );
    assert_port_fault(
        "a=tap:rw0,up=yes",
        "wrong value `yes` for `up`: expected on or off; did you mean `on`?",
    );
    assert_port_fault(
        "a=tap:rw0,persistant=on",
        "unknown key `persistant` of a tap port: expected fd, queue-pairs, persistent, owner, group, \
         mtu, mac, up, bridge, vlan, trunk, qinq, allow-macs, allow-ips, \
         storm-broadcast, storm-multicast, rate-from, rate-to, burst-from, burst-to, filter-from, filter-to, allow-replies, mirror-to, mirror, delay-from, delay-to, jitter-from, jitter-to, loss-from, loss-to, corrupt-from, corrupt-to, duplicate-from, duplicate-to, reorder-from, reorder-to or seed; did you mean `persistent`?",
    );
}

#[test]
fn a_tun_port_has_the_host_s_addresses() {
    let expected = Tun {
        interface: "rw0".to_owned(),
        subnets: Subnets {
            addresses: ["10.0.0.254/24", "fd00::fe/64"].map(|text| text.parse().unwrap()).to_vec(),
            gateways: ["10.0.0.9", "fd00::9"].map(|text| text.parse().unwrap()).to_vec(),
        },
        mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
        mtu: Some(9000),
    };
    let flag = "host=tun:rw0,address=10.0.0.254/24+fd00::fe/64,gateway=10.0.0.9+fd00::9,\
                mac=52:54:00:12:34:56,mtu=9000";
    let file = r#"
        [port.host]
        type = "tun"
        interface = "rw0"
        address = ["10.0.0.254/24", "fd00::fe/64"]
        gateway = ["10.0.0.9", "fd00::9"]
        mac = "52:54:00:12:34:56"
        mtu = 9000
    "#;
    for read in [read("", &[("port", flag)]), read(file, &[])] {
        let ports = read.map(|config| config.ports);
        let kind = PortKind::Tun(expected.clone());
        assert_eq!(ports, Ok(vec![PortConfig::new("host", kind)]));
    }

    let addresses = "expected addresses of single stations with the lengths of their networks' \
                     prefixes, each once, as 10.0.0.1/24 or 10.0.0.1/24+fd00::1/64";
    for value in ["10.0.0.1", "10.0.0.255/24", "10.0.0.1/24+", "10.0.0.1/24+10.0.0.1/16", "x/24"] {
        assert_port_fault(
            &format!("a=tun:rw0,address={value}"),
            &format!("wrong value `{value}` for `address`: {addresses}"),
        );
    }
    assert_port_fault(
        "a=tun:rw0",
        "port `a` lacks the key `address`: expected the host's addresses, as \
         10.0.0.1/24+fd00::1/64",
    );
    for value in ["10.0.0.9+10.0.0.8", "fd00::9+", "10.0.0.9/24"] {
        assert_port_fault(
            &format!("a=tun:rw0,address=10.0.0.1/24+fd00::1/64,gateway={value}"),
            &format!(
                "wrong value `{value}` for `gateway`: expected an IP address, or one of IPv4 and one \
                 of IPv6, as 10.0.0.254+fd00::fe"
            ),
        );
    }
    for value in ["10.0.1.9", "10.0.0.1", "fd01::9", "10.0.0.9+fd01::9", "10.0.0.255"] {
        assert_port_fault(
            &format!("a=tun:rw0,address=10.0.0.1/24+fd00::1/64,gateway={value}"),
            &format!(
                "wrong value `{value}` for `gateway`: expected other addresses of the networks of \
                 `address`"
            ),
        );
    }
    assert_port_fault(
        "a=tun:rw0,address=10.0.0.1/24+fd00::1/64,mtu=1279",
        "wrong value `1279` for `mtu`: expected 1280 or more, as IPv6 needs",
    );
    for good in ["address=10.0.0.1/24,mtu=1279", "address=fd00::1/64,mtu=1280"] {
        assert!(read("", &[("port", &format!("a=tun:rw0,{good}"))]).is_ok(), "{good}");
    }
}

/// The features that a port with this value offers, by a flag.
fn offered(value: &str) -> Result<Features, String> {
    let config = read("", &[("port", &format!("a=vhost-user:/a,features={value}"))])?;
    match &config.ports[0].kind {
        PortKind::VhostUser(port) => Ok(port.features),
        other => Err(format!("the port is another: {other:?}")),
    }
}

#[track_caller]
fn assert_features_fault(value: &str, expected: &[&str]) {
    let expected = expected
        .iter()
        .map(|expected| format!("--port a=vhost-user:/a,features={value}: {expected}"));
    assert_eq!(offered(value), Err(expected.collect::<Vec<_>>().join("\n")));
}

#[test]
fn features_are_the_whole_set_or_taken_out_of_the_default_one() {
    assert_eq!(offered("version_1"), Ok(Features::VERSION_1));
    assert_eq!(offered("csum"), Ok(Features::CSUM), "a device from before virtio 1");
    let reset = Features::VERSION_1 | Features::RING_RESET;
    assert_eq!(offered("ring_reset+version_1"), Ok(reset), "only when it is asked for");
    assert!(!DEFAULT_FEATURES.contains(Features::RING_RESET));
    let less = Features::RING_PACKED | Features::MRG_RXBUF;
    assert_eq!(offered("-ring_packed+-mrg_rxbuf"), Ok(DEFAULT_FEATURES.without(less)));
    // All of them, and all but one of them.
    let all = features::names(DEFAULT_FEATURES);
    assert_eq!(offered(&all.join("+")), Ok(DEFAULT_FEATURES));
    let all_but_version_1: Vec<String> =
        all.iter().filter(|name| *name != "version_1").map(|name| format!("-{name}")).collect();
    assert_eq!(offered(&all_but_version_1.join("+")), Ok(Features::VERSION_1));
}

#[test]
fn features_of_two_kinds() {
    let mixed = "`features` has names with `-`, which are taken out of the default set, and names \
                 without, which are the whole set: expected one or the other";
    assert_features_fault("-csum+mtu", &[mixed]);
    assert_features_fault("mtu+-csum", &[mixed]);
    assert_file_fault(
        "[port.a]\ntype = 'vhost-user'\npath = '/a'\nfeatures = ['mtu',\n  '-csum']",
        &format!("ringway.toml:5:3: {mixed}"),
    );
}

#[test]
fn features_that_do_not_exist() {
    let all = |prefix: &str, set| {
        let names = features::names(set).into_iter().map(|name| format!("{prefix}{name}"));
        let mut names: Vec<String> = names.collect();
        let last = names.pop().unwrap_or_default();
        format!("{} or {last}", names.join(", "))
    };
    let known = format!("expected {}", all("", SUPPORTED));
    let removable = format!("expected {}", all("-", DEFAULT_FEATURES));
    for (written, near) in [
        ("host-tso4", "; did you mean `host_tso4`?"),
        ("HOST_TSO4", "; did you mean `host_tso4`?"),
        ("packed", "; did you mean `ring_packed`?"),
        ("evnt_idx", "; did you mean `event_idx`?"),
        ("ctrl_vq", ""),
        ("", ""),
    ] {
        let wrong = format!("wrong value `{written}` for `features`: {known}{near}");
        assert_features_fault(written, &[&wrong]);
    }
    for (written, near) in [
        ("-packed", "; did you mean `-ring_packed`?"),
        ("-ring_reset", "; did you mean `-ring_packed`?"),
        ("-", ""),
    ] {
        let wrong = format!("wrong value `{written}` for `features`: {removable}{near}");
        assert_features_fault(written, &[&wrong]);
    }
    // All of them at once, each where it is; what they leave out is not held against the set.
    let file = "[port.a]\ntype = 'vhost-user'\npath = '/a'\nfeatures = ['host_tso4', 'csun', 7, 'mtu', 'mtu']";
    let expected = format!(
        "ringway.toml:4:26: wrong value `csun` for `features`: {known}; did you mean `csum`?\n\
         ringway.toml:4:34: wrong value `7` for `features`: {known}\n\
         ringway.toml:4:44: `mtu` is given twice"
    );
    assert_file_fault(file, &expected);
    let list = "expected names of features, as [\"version_1\", \"csum\"] or [\"-ring_packed\"]";
    for (form, value) in [("of type array", "[]"), ("`3`", "3"), ("`true`", "true")] {
        assert_file_fault(
            &format!("[port.a]\ntype = 'vhost-user'\npath = '/a'\nfeatures = {value}"),
            &format!("ringway.toml:4:12: wrong value {form} for `features`: {list}"),
        );
    }
}

#[test]
fn features_that_cannot_do_without_others() {
    assert_features_fault(
        "version_1+guest_tso4+guest_tso6",
        &["`features` has guest_tso4 and guest_tso6, which cannot do without guest_csum (virtio \
           1.3, 5.1.3.1)"],
    );
    assert_features_fault(
        "-guest_tso4+-guest_tso6",
        &[
            "`features` has guest_ecn, which cannot do without guest_tso4 or guest_tso6 (virtio 1.3, \
           5.1.3.1)",
        ],
    );
    assert_features_fault(
        "host_tso4+guest_tso6+ring_packed+in_order",
        &[
            "`features` has guest_tso6, which cannot do without guest_csum (virtio 1.3, 5.1.3.1)",
            "`features` has host_tso4, which cannot do without csum (virtio 1.3, 5.1.3.1)",
            "`features` has ring_packed and in_order, which cannot do without version_1 (virtio \
             1.3, 2.2.3: drivers from before see bits 0 to 31)",
        ],
    );
    let whole = Features::CSUM | Features::HOST_TSO6 | Features::HOST_ECN;
    assert_eq!(offered("host_ecn+host_tso6+csum"), Ok(whole));
}

#[test]
fn no_ports() {
    assert_eq!(
        read("mode = 'poll'", &[]),
        Err("no ports: expected --port NAME=TYPE:TARGET, or [port.NAME] in the file \
             of --config"
            .to_owned())
    );
}

/// A key in the tables that no code reads would be an option that does nothing.
#[test]
fn every_key_in_the_tables_is_read() {
    for port_type in keys::PORT_TYPES {
        for key in port_type.valid_keys(false) {
            let mut port = format!("[port.a]\n{key} = 1979-05-27\n");
            if key != keys::TYPE {
                port += &format!("type = '{}'\n", port_type.name);
            }
            let faults = read(&port, &[]).expect_err("no key takes a date");
            let expected = format!(
                "ringway.toml:2:{}: wrong value of type datetime for `{key}`: expected ",
                key.len() + 4
            );
            assert!(faults.contains(&expected), "no {expected:?} in {faults:?}");
        }
    }
    for key in keys::TOP_LEVEL.iter().filter(|key| ![keys::PORT, keys::APP].contains(*key)) {
        let faults = read(&format!("{key} = 1979-05-27"), &[]).expect_err("no key takes a date");
        let expected = format!("wrong value of type datetime for `{key}`: expected ");
        assert!(faults.contains(&expected), "no {expected:?} in {faults:?}");
    }
}

#[test]
fn each_worker_needs_a_cpu() {
    let port = ("port", "host=tap:rw0");
    let config = read("", &[port, ("workers", "2"), ("cpus", "1-3")]).expect("one is to spare");
    assert_eq!((config.workers, config.cpus.len()), (2, 3));
    let faults = read("cpus = 1\n", &[port, ("workers", "3")]).expect_err("one for three");
    let says = "ringway.toml:1:1: 1 of `cpus` for 3 `workers`: expected at least one CPU for each";
    assert!(faults.to_string().starts_with(says), "{faults}");
}

#[test]
fn numbers_have_their_range() {
    let port = ("port", "host=tap:rw0");
    for value in ["1", "64"] {
        assert!(read("", &[port, ("workers", value)]).is_ok(), "{value}");
    }
    for value in ["0", "65", "+1", "1.0", "two", ""] {
        let faults = read("", &[port, ("workers", value)]).expect_err(value).to_string();
        assert!(faults.contains("expected a number from 1 to 64"), "{faults}");
    }
    for (value, fits) in [("1", true), ("128", true), ("0", false), ("129", false), ("x", false)] {
        let port = format!("vm=vhost-user:/run/vm.sock,queue-pairs={value}");
        assert_eq!(read("", &[("port", &port)]).is_ok(), fits, "{port}");
    }
}

/// What the ports of a file have to do with VLANs.
fn memberships(file: &str) -> Result<Vec<Option<Membership>>, String> {
    Ok(read(file, &[])?.ports.into_iter().map(|port| port.vlan).collect())
}

fn trunk(native: Option<u16>, allowed: impl IntoIterator<Item = u16>) -> Membership {
    let allowed = Arc::new(allowed.into_iter().collect());
    Membership::Trunk { native, allowed, is_service: false }
}

#[test]
fn vlans_are_one_many_or_one_for_all() {
    let file = "
        [port.vm1]
        type = 'tap'
        interface = 'a'
        vlan = 10
        [port.vm2]
        type = 'vhost-user'
        path = '/run/b.sock'
        trunk = 'all'
        [port.vm3]
        type = 'tap'
        interface = 'c'
        vlan = 1
        trunk = [10, '20-22']
        [port.vm4]
        type = 'tap'
        interface = 'd'
        vlan = 4094
        qinq = 'on'
    ";
    let expected = [
        Membership::Access(10),
        trunk(None, 1..=4094),
        trunk(Some(1), [10, 20, 21, 22]),
        Membership::Tunnel(4094),
    ];
    assert_eq!(memberships(file), Ok(expected.map(Some).to_vec()));
    let ports = [
        "vm1=tap:a,vlan=10",
        "vm2=vhost-user:/run/b.sock,trunk=all",
        "vm3=tap:c,vlan=1,trunk=10+20-22",
        "vm4=tap:d,vlan=4094,qinq=on",
    ];
    let flags = ports.map(|port| ("port", port));
    assert_eq!(read("", &flags).unwrap().ports.len(), 4);
    assert_eq!(
        read("", &flags).unwrap().ports.into_iter().map(|port| port.vlan).collect::<Vec<_>>(),
        memberships(file).unwrap()
    );
    assert_eq!(
        memberships("[port.a]\ntype = 'tap'\ninterface = 'a'\nqinq = false"),
        Ok(vec![None])
    );
}

#[test]
fn numbers_that_are_no_vlans() {
    for vlan in ["0", "4095", "+1", "1-2", "all", "", "x"] {
        assert_port_fault(
            &format!("a=tap:a,vlan={vlan}"),
            &format!("wrong value `{vlan}` for `vlan`: expected a number from 1 to 4094"),
        );
    }
    for vlans in ["0", "4095", "+1", "2-1", "1-", "-1", "1++2", "10+4095", "", "x", "1-2-3"] {
        assert_port_fault(
            &format!("a=tap:a,trunk={vlans}"),
            &format!(
                "wrong value `{vlans}` for `trunk`: expected all, or VLANs and ranges of them, from 1 to 4094, as 10 or \
                 10+20-29"
            ),
        );
    }
}

#[test]
fn what_does_not_go_together_with_vlans() {
    assert_port_fault(
        "a=tap:a,qinq=on",
        "`qinq` is for a port with one VLAN, which all of its frames are put into, or for a trunk: expected `vlan` or `trunk`",
    );
    let of_tun = "`trunk` is for frames that have a tag, which a tun port neither sends nor takes: expected `vlan`";
    for keys in ["trunk=all", "vlan=1,trunk=2"] {
        assert_port_fault(&format!("a=tun:a,address=10.0.0.1/24,{keys}"), of_tun);
    }
    assert_file_fault(
        "[port.a]\ntype = 'tun'\ninterface = 'a'\naddress = '10.0.0.1/24'\ntrunk = [1]",
        &format!("ringway.toml:5:1: {of_tun}"),
    );
    assert!(read("", &[("port", "a=tun:a,address=10.0.0.1/24,vlan=1")]).is_ok());
    let service = read("", &[("port", "a=tap:a,vlan=1,trunk=2,qinq=on")]).unwrap();
    let allowed = Arc::new([2].into_iter().collect());
    let expected = Membership::Trunk { native: Some(1), allowed, is_service: true };
    assert_eq!(service.ports[0].vlan, Some(expected));
    let ports = ["vm1=tap:a,vlan=10", "vm2=tap:b", "vm3=tap:c,trunk=all", "vm4=tap:d"];
    let says = |port: &str| {
        format!(
            "--port {port}: port `{}` is in no VLAN, but port `vm1` is, in --port vm1=tap:a,vlan=10: expected `vlan`, \
             `trunk` or both for each port, or for none",
            &port[..3]
        )
    };
    let expected = [ports[1], ports[3]].map(says).join("\n");
    assert_eq!(read("", &ports.map(|port| ("port", port))), Err(expected));
}

/// What lies between the bridge and the only port of a file.
fn between(keys: &str) -> Result<Between, String> {
    let file = format!("[port.a]\ntype = 'tap'\ninterface = 'a'\n{keys}");
    Ok(read(&file, &[])?.ports.remove(0).between)
}

#[test]
fn what_lies_between_a_port_and_the_bridge() {
    assert_eq!(between(""), Ok(Between::default()));
    let file = "
        allow-macs = ['52:54:00:00:00:01', '52:54:00:00:00:02']
        allow-ips = ['10.0.0.1', 'fd00::/64']
        storm-broadcast = '100frames'
        storm-multicast = '200frames'
        rate-from = '10Gbit'
        rate-to = ['2500Mbit', '100000frames']
        burst-to = ['1MiB', '500frames']
        filter-from = 'tcp port 80'
        filter-to = '1,6 0 0 65535'
        allow-replies = true
    ";
    let bits = |rate, burst| Some(police::BitLimit { rate, burst });
    let accept = |filter| Some(apps::filter::compile(filter).unwrap());
    let direction = |accept| apps::filter::Direction { accept, allow_replies: true };
    let expected = Between {
        anti_spoof: Some(anti_spoof::Settings {
            macs: vec![MacAddress([0x52, 0x54, 0, 0, 0, 1]), MacAddress([0x52, 0x54, 0, 0, 0, 2])],
            prefixes: vec!["10.0.0.1/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
            link_local: anti_spoof::LinkLocal::Any,
        }),
        storm: Some(storm::Settings {
            broadcast: Some(Limit { rate: 100, burst: 100 }),
            multicast: Some(Limit { rate: 200, burst: 200 }),
        }),
        police: Some(police::Settings {
            from_port: police::Limits { bits: bits(10_000_000_000, 125_000_000), frames: None },
            to_port: police::Limits {
                bits: bits(2_500_000_000, 1 << 20),
                frames: Some(police::FrameLimit { rate: 100_000, burst: 500 }),
            },
        }),
        filter: Some(filter::Settings {
            from_port: direction(accept("tcp port 80")),
            to_port: direction(accept("1,6 0 0 65535")),
        }),
        ..Between::default()
    };
    assert_eq!(between(file), Ok(expected.clone()));
    // What has a comma is for a file.
    let flag = "a=tap:a,allow-macs=52:54:00:00:00:01+52:54:00:00:00:02,allow-ips=10.0.0.1+fd00::/64,\
                storm-broadcast=100frames,storm-multicast=200frames,rate-from=10Gbit,rate-to=2500Mbit+100000frames,\
                burst-to=1MiB+500frames,filter-from=tcp port 80,allow-replies=on";
    let mut without = expected;
    without.filter.as_mut().unwrap().to_port.accept = None;
    assert_eq!(read("", &[("port", flag)]).unwrap().ports.remove(0).between, without);
}

#[test]
fn what_may_pass_at_once_if_nothing_is_said_of_it() {
    for (rate, burst) in
        [("1bit", 131_072), ("10Mbit", 131_072), ("1Gbit", 12_500_000), ("1000Gbit", 1_125_000_000)]
    {
        let police = between(&format!("rate-from = '{rate}'")).unwrap().police.unwrap();
        assert_eq!(police.from_port.bits.unwrap().burst, burst, "{rate}");
        // Whatever can be said, the apps take.
        apps::police::Police::new(&police).unwrap();
    }
    for (rate, burst) in [("1frames", 64), ("10000frames", 1000), ("1000000000frames", 100_000_000)]
    {
        let police = between(&format!("rate-to = '{rate}'")).unwrap().police.unwrap();
        assert_eq!(police.to_port.frames.unwrap().burst, burst, "{rate}");
        apps::police::Police::new(&police).unwrap();
    }
    let most = "rate-to = '1bit+1frames'\nburst-to = '1024MiB+1000000000frames'\nstorm-broadcast = '1000000000frames'";
    let Between { police, storm, .. } = between(most).unwrap();
    apps::police::Police::new(&police.unwrap()).unwrap();
    apps::storm::Storm::new(&storm.unwrap()).unwrap();
}

#[test]
fn amounts_that_are_none() {
    let rates = "a rate of at most 1000Gbit or 1000000000frames, or one of each, as 10Gbit or 1Gbit+100000frames \
                 (units: bit, kbit, Mbit, Gbit, frames)";
    let bursts = "a size of at most 1024MiB or 1000000000frames, or one of each, as 256KiB or 1MB+1000frames \
                  (units: bytes, kB, MB, KiB, MiB, frames)";
    let storms = "a rate of at most 1000000000frames, as 1000frames";
    for (key, value, expected) in [
        ("rate-from", "0bit", rates),
        ("rate-from", "1001Gbit", rates),
        ("rate-from", "99999999999Gbit", rates),
        ("rate-from", "10", rates),
        ("rate-from", "1.5Gbit", rates),
        ("rate-from", "1Gbit+2Gbit", rates),
        ("rate-from", "1frames+2frames", rates),
        ("rate-from", "1Gbit+", rates),
        ("rate-to", "1MB", rates),
        ("rate-to", "10gbit", &format!("{rates}; did you mean `10Gbit`?")),
        ("rate-to", "1Gbits+9 frame", &format!("{rates}; did you mean `1Gbit+9frames`?")),
        ("rate-to", "1000FRAMES", &format!("{rates}; did you mean `1000frames`?")),
        ("rate-to", "1gbit+2gbit", rates),
        ("burst-from", "1Gbit", bursts),
        ("burst-to", "0frames", bursts),
        ("burst-to", "1025MiB", bursts),
        ("burst-to", "1025mib", bursts),
        ("burst-to", "64kib", &format!("{bursts}; did you mean `64KiB`?")),
        ("storm-broadcast", "1Gbit", storms),
        ("storm-multicast", "100", storms),
        ("storm-multicast", "100Frames", &format!("{storms}; did you mean `100frames`?")),
    ] {
        let port = format!("a=tap:a,{key}={value}");
        assert_port_fault(
            &port,
            &format!("wrong value `{value}` for `{key}`: expected {expected}"),
        );
    }
}

#[test]
fn what_has_no_effect_between_a_port_and_the_bridge() {
    for (keys, expected) in [
        (
            "burst-from=1MB",
            "a burst has no effect without a rate of its kind: expected `rate-from` with one in bit/s",
        ),
        (
            "rate-to=1Gbit,burst-to=1MB+9frames",
            "a burst has no effect without a rate of its kind: expected `rate-to` with one in frames/s",
        ),
        (
            "allow-replies=on",
            "`allow-replies` has no effect without a filter: expected `filter-from`, `filter-to` or both",
        ),
    ] {
        assert_port_fault(&format!("a=tap:a,{keys}"), expected);
    }
    assert_eq!(between("allow-replies = false"), Ok(Between::default()));
}

#[test]
fn filters_that_are_none() {
    let port = "a=tap:a,filter-from=tcp prot 80";
    assert_port_fault(
        port,
        "wrong value for `filter-from`: the filter \"tcp prot 80\" does not compile: can't parse filter expression: \
         syntax error",
    );
    assert_file_fault(
        "[port.a]\ntype = 'tap'\ninterface = 'a'\nfilter-to = '1,0 0 0 1'",
        "ringway.toml:4:13: wrong value for `filter-to`: the filter's program is not valid: instruction 0 (0 0 0 1): \
         the last instruction must be a return",
    );
    assert_port_fault(
        "a=tap:a,filter-from=",
        "wrong value `` for `filter-from`: expected an expression of pcap-filter(7), as \"tcp port 80\", or the \
         numbers of `tcpdump -ddd`",
    );
    // A comma ends the filter.
    assert_port_fault(
        "a=tap:a,filter-from=1,6 0 0 1",
        "`6 0 0 1` is not KEY=VALUE: expected a key of the port after each comma (a path or a filter that has a comma \
         can only be given in a file)\n--port a=tap:a,filter-from=1,6 0 0 1: wrong value for `filter-from`: the filter \
         \"1\" does not compile: can't parse filter expression: syntax error",
    );
}

#[test]
fn addresses_that_are_none() {
    for macs in ["", "ff:ff:ff:ff:ff:ff", "52:54:00:00:00:01+x"] {
        assert_port_fault(
            &format!("a=tap:a,allow-macs={macs}"),
            &format!(
                "wrong value `{macs}` for `allow-macs`: expected hardware addresses of single stations, as \
                 52:54:00:12:34:56 or 52:54:00:12:34:56+52:54:00:12:34:57"
            ),
        );
    }
    for ips in ["", "10.0.0.1/33", "10.0.0.1+x"] {
        assert_port_fault(
            &format!("a=tap:a,allow-ips={ips}"),
            &format!(
                "wrong value `{ips}` for `allow-ips`: expected IP addresses and prefixes of networks, as 10.0.0.1 or \
                 10.0.0.0/24+fd00::/64"
            ),
        );
    }
}

#[test]
fn the_first_in_a_list_that_is_wrong_is_the_one_that_is_named() {
    let fault = |key: &str, list: &str| {
        let file = format!("[port.a]\ntype = 'tap'\ninterface = 'a'\n{key} = {list}");
        let fault = read(&file, &[]).expect_err(list);
        let (wrong, _) = fault.split_once(": expected ").expect("it says what was expected");
        let (_, near) = fault.split_once("; did you mean ").unwrap_or_default();
        (wrong.to_owned(), near.to_owned())
    };
    for (key, list, column, wrong, near) in [
        ("trunk", "[10, '20-10', 'x']", 14, "`20-10`", ""),
        ("trunk", "['10', 4095]", 16, "`4095`", ""),
        (
            "allow-macs",
            "['52:54:00:00:00:01', '52-54-00-00-00-02']",
            36,
            "`52-54-00-00-00-02`",
            "`52:54:00:00:00:02`?",
        ),
        ("allow-ips", "['10.0.0.1', '10.0.0.1/24']", 26, "`10.0.0.1/24`", "`10.0.0.0/24`?"),
        ("rate-from", "['1Gbit', '7frame']", 23, "`7frame`", "`7frames`?"),
        ("fd", "[3, 2]", 10, "`2`", ""),
        // Each of them is right.
        ("fd", "[3, 3]", 6, "of type array", ""),
        ("rate-from", "['1Gbit', '2Gbit']", 13, "of type array", ""),
        ("allow-ips", "[]", 13, "of type array", ""),
    ] {
        let expected = format!("ringway.toml:4:{column}: wrong value {wrong} for `{key}`");
        assert_eq!(fault(key, list), (expected, near.to_owned()));
    }
}

#[test]
fn a_port_named_as_an_app_is() {
    let ports = ["vm1=tap:a,rate-to=1Gbit", "vm1.police=tap:b", "vm1.filter=tap:c"];
    assert_eq!(
        read("", &ports.map(|port| ("port", port))),
        Err("--port vm1.police=tap:b: `vm1.police` is the name of what lies between port `vm1` and the bridge: \
             expected another name"
            .to_owned())
    );
}
