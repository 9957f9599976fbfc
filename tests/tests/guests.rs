//! Two stock QEMU guests talk through the switch.

use std::time::Duration;

use anyhow::{Context, Result};
use ringway_tests::*;
use testbed::{Guest, Shell, traffic};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];

#[test]
fn two_guests_talk() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let [one, two] = two_guests(&switch)?;

    ping_all(&one, "10.0.0.2", 20)?;
    ping_all(&two, "10.0.0.1", 20)?;

    // Neighbours are found by multicast, over link-local addresses that the guests made themselves.
    for (from, to) in [(&one, &two), (&two, &one)] {
        let address = link_local(to)?;
        ping_all(from, &format!("{address}%eth0"), 3)?;
        let neighbours = from.run("ip -6 neigh show dev eth0")?;
        assert!(neighbours.contains(&address), "{neighbours}");
    }
    ping_all(&one, "fd00::2", 3)?;
    ping_all(&two, "fd00::1", 3)?;

    // A datagram fills a frame of 1500 bytes at 1472 and 1452 bytes of payload.
    traffic::udp_sweep(&one, &two, (v4(2), 7).into(), 1..=1472)?;
    traffic::udp_sweep(&two, &one, (v6(1), 7).into(), 1..=1452)?;

    let stream = traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 200_000_000)?;
    println!("200 MB in {:?}, SHA-256 {} at both ends", stream.time, stream.sha256);
    traffic::tcp_stream(&two, &one, (v6(1), 9).into(), 20_000_000)?;

    println!("{}", switch.stop()?);
    Ok(())
}

/// One guest is told of the large MTU by the device, the other by its user.
#[test]
fn jumbo_frames() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let told = guest(1, nic(&switch, 1).option("host_mtu=9000"))?;
    let [one, two] = boot([told, guest(2, nic(&switch, 2))?])?;
    for (guest, n) in [(&one, 1), (&two, 2)] {
        plug_in(guest, n)?;
    }
    assert_eq!(one.run("cat /sys/class/net/eth0/mtu")?, "9000\n");
    two.run("ip link set eth0 mtu 9000")?;

    // The last sizes that fit one frame of each protocol.
    ping_all(&one, "-s 8972 10.0.0.2", 3)?;
    ping_all(&two, "-s 8952 fd00::1", 3)?;
    traffic::udp_sweep(&one, &two, (v4(2), 7).into(), 8900..=8972)?;
    traffic::udp_sweep(&two, &one, (v6(1), 7).into(), 8880..=8952)?;
    traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 20_000_000)?;
    traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 20_000_000)?;
    for guest in [&one, &two] {
        let fragments =
            guest.run("grep -E '^Ip6(Frag|Reasm)Creates' /proc/net/snmp6; cat /proc/net/snmp")?;
        assert_eq!(fragments_made(&fragments), Some((0, 0)), "{fragments}");
    }
    switch.stop()?;
    Ok(())
}

/// Fragments that a guest made of its own datagrams, in IPv4 and in IPv6.
fn fragments_made(text: &str) -> Option<(u64, u64)> {
    let mut v4 = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let column = v4.next()?.split(' ').position(|name| name == "FragCreates")?;
    let v4 = v4.next()?.split(' ').nth(column)?.parse().ok()?;
    let v6 = text.lines().find(|line| line.starts_with("Ip6FragCreates"))?;
    Some((v4, v6.split_whitespace().nth(1)?.parse().ok()?))
}

/// A guest's own link-local address, once nobody else turned out to have it.
fn link_local(guest: &Guest) -> Result<String> {
    let script = "while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.1; done; \
                  ip -6 -brief addr show dev eth0 scope link";
    let text = guest.run_within(script, Duration::from_secs(20))?;
    let address = text.split_whitespace().find(|word| word.starts_with("fe80:"));
    let address = address.and_then(|word| word.split('/').next());
    Ok(address.with_context(|| format!("no link-local address: {text}"))?.to_owned())
}
