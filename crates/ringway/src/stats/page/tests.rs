use std::collections::BTreeMap;

use super::*;
use crate::report::Ring;

fn traffic(frames: u64, bytes: u64) -> Traffic {
    Traffic { frames, bytes }
}

/// A guest that sends to a tap, and a bridge that dropped something.
fn report() -> Report {
    let ring = |number: usize| {
        let (waiting, outstanding) = (192 - number as u16, number as u16);
        Ring { number, size: 256, enabled: true, waiting, outstanding }
    };
    let features = ["version_1", "mrg_rxbuf"].map(str::to_owned).to_vec();
    let guest = Guest {
        features,
        memory_bytes: 512 << 20,
        memory_regions: 2,
        rings: vec![ring(0), ring(1)],
    };
    let drops = |drops: &[(&str, u64)]| {
        drops
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count))
            .collect::<BTreeMap<_, _>>()
    };
    let app = |name: &str, kind: &str| App {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ..App::default()
    };
    Report {
        version: "0.1.0".to_owned(),
        process: 4711,
        time_ms: 1_700_000_000_000,
        uptime_ns: 100_000_000_000,
        workers: vec![Worker {
            cpu_ns: 25_000_000_000,
            breaths: 4000,
            busy_breaths: 1000,
            sleeps: 10,
            frames: 12_000,
            breath_times: vec![(1024, 900), (4096, 100)],
        }],
        apps: vec![
            App {
                drops: drops(&[("storm", 3), ("bad_source", 20)]),
                own: vec![own(2, "", "addresses"), own(800, "bits", "left")],
                ..app("bridge", "bridge")
            },
            App { received: traffic(12_000, 1_200_000), ..app("vm1", "vhost-user") },
            App {
                sent: traffic(11_970, 1_197_000),
                drops: drops(&[("refused", 7)]),
                state: State::Failed,
                ..app("host", "tap")
            },
        ],
        ports: vec![
            Port {
                name: "vm1".to_owned(),
                link: Some(LinkState::Up),
                mtu: Some(1500),
                guest: Some(guest),
            },
            Port { name: "host".to_owned(), link: Some(LinkState::Down), mtu: None, guest: None },
        ],
        links: vec![
            link("vm1.tx", "bridge.vm1", traffic(12_000, 1_200_000)),
            link("bridge.vm1", "vm1.rx", traffic(0, 0)),
            link("bridge.host", "host.rx", traffic(11_977, 1_197_700)),
        ],
    }
}

fn own(value: u64, unit: &str, name: &str) -> Number {
    Number { value, unit: unit.to_owned(), name: name.to_owned() }
}

fn link(from: &str, to: &str, traffic: Traffic) -> Link {
    Link { from: from.to_owned(), to: to.to_owned(), state: LinkState::Up, traffic }
}

#[test]
fn one_look_is_what_was_since_the_start() {
    let expected = "\
ringway 0.1.0, process 4711, up 1 min 40 s; since its start:

worker    load  frames  breaths    busy  frames/busy breath  half under  99 % under  all under  sleeps
0       25.0 %   12000     4000  25.0 %                12.0      1.0 us      4.1 us     4.1 us      10

port  type        link   MTU  received frames    bytes  sent frames    bytes  dropped
vm1   vhost-user  up    1500            12000  1200000            0        0        0
host  tap         down     -                0        0        11970  1197000        7

guest of vm1: 512 MiB of memory in 2 regions; rings 192/256 191/256, 1 held
  version_1 mrg_rxbuf

link                        frames    bytes
vm1.tx       -> bridge.vm1   12000  1200000
bridge.host  -> host.rx      11977  1197700

app     has now
bridge  2 addresses, 800 bits left

dropped by  reason      frames
bridge      bad_source      20
bridge      storm            3
host        refused          7

host has failed, and is to be started again
";
    assert_eq!(page(None, &report()), expected);
}

#[test]
fn two_looks_are_rates() {
    let before = report();
    let mut now = before.clone();
    now.uptime_ns += 2_000_000_000;
    now.workers[0].cpu_ns += 500_000_000;
    now.workers[0].frames += 3_000_000;
    now.apps[1].received = traffic(3_012_000, 1_200_000 + 180_000_000);
    now.apps[0].drops.insert("storm".to_owned(), 4);
    now.apps[0].own[0].value = 3;
    now.links[0].traffic = traffic(3_012_000, 1_200_000 + 180_000_000);
    // Before, others were shorter.
    now.workers[0].breath_times = vec![(1024, 900), (4096, 100), (16384, 7)];
    now.apps[2].state = State::Running;
    let expected = "\
ringway 0.1.0, process 4711, up 1 min 42 s; in the last 2.0 s:

worker    load  frames/s  breaths/s  busy  frames/busy breath  half under  99 % under  all under  sleeps/s
0       25.0 %    1.50 M          0     -                   -       16 us       16 us      16 us         0

port  type        link   MTU  received frame/s     bit/s  sent frame/s  bit/s  dropped/s
vm1   vhost-user  up    1500            1.50 M  720.00 M             0      0          0
host  tap         down     -                 0         0             0      0          0

guest of vm1: 512 MiB of memory in 2 regions; rings 192/256 191/256, 1 held
  version_1 mrg_rxbuf

link                   frame/s     bit/s
vm1.tx  -> bridge.vm1   1.50 M  720.00 M

app     has now
bridge  3 addresses, 800 bits left

dropped by  reason  frames/s
bridge      storm        0.5
";
    assert_eq!(page(Some(&before), &now), expected);
}

#[test]
fn nothing_is_shown_as_such() {
    let text = page(None, &Report::default());
    assert!(text.ends_with("\nnothing went by any link\n\nnothing was dropped\n"), "{text}");
    // A look at the same time, and one that is older, divide by nothing.
    let text = page(Some(&report()), &report());
    assert!(text.contains("in the last 0.0 s"), "{text}");
    page(Some(&report()), &Report::default());
}

#[test]
fn what_was_said_is_read_again_and_more_is_no_error() {
    let mut json = serde_json::to_value(report()).unwrap();
    assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report());
    json["ports"][0]["of_a_later_version"] = 1.into();
    assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report());
    // What a switch of an earlier version does not say.
    json.as_object_mut().unwrap().remove("links");
    json["apps"][0].as_object_mut().unwrap().remove("own");
    let earlier = serde_json::from_value::<Report>(json).unwrap();
    assert!(earlier.links.is_empty() && earlier.apps[0].own.is_empty());
}

#[test]
fn amounts_are_short() {
    let rates = [(0.0, "0"), (0.25, "0.2"), (12.0, "12.0"), (123.4, "123"), (1234.0, "1.23 k")];
    for (amount, text) in rates {
        assert_eq!(rate(amount, 1.0), text);
    }
    assert_eq!(rate(3e10, 2.0), "15.00 G");
    assert_eq!(rate(1.0, 0.0), "-");
    for (time, text) in [(512, "512 ns"), (1024, "1.0 us"), (65_536, "66 us"), (1 << 31, "2.1 s")] {
        assert_eq!(short_time(time), text);
    }
    assert_eq!(took_less(&[], 0.5), "-");
    assert_eq!(size(0), "0 B");
    assert_eq!(size(3 << 30), "3 GiB");
    assert_eq!(size(1536 << 10), "1.5 MiB");
    let times =
        [(59, "59 s"), (61, "1 min 1 s"), (3 * 3600 + 120, "3 h 2 min"), (90_000, "1 d 1 h")];
    for (seconds, text) in times {
        assert_eq!(duration(Duration::from_secs(seconds)), text);
    }
}
