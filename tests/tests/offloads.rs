//! Offloads, features and MTUs that differ from one end to the other: the switch makes up for what one side leaves to
//! the other, and every byte that arrives is the one that was sent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use testbed::{Guest, Network, Shell, traffic};
use wire::virtio::Features;

/// Bytes of one stream: some hundred frames, if they are large ones.
const STREAM: u64 = 1_500_000;
/// The host's number, on the tap `rw0`.
const HOST: u8 = 254;
/// The switch hears of a guest's MTU within this time.
const MTU_LIMIT: Duration = Duration::from_secs(30);

/// A switch with a tap for the host, set up, and these ports.
fn switch_with_host(network: &Network, ports: &[&str]) -> Result<Switch> {
    let switch = Switch::start_in(network, &[ports, &["host=tap:rw0"]].concat())?;
    network.address("rw0", &format!("{}/24", v4(HOST)))?;
    network.address("rw0", &format!("{}/64", v6(HOST)))?;
    network.ip(&["link", "set", "rw0", "up"])?;
    Ok(switch)
}

/// One end of a stream: a guest or the host, and its number.
#[derive(Clone, Copy)]
struct End<'a>(&'a dyn Shell, u8);

/// A stream from one end to the other over IPv4, and one back over IPv6.
fn both_ways(one: End<'_>, two: End<'_>) -> Result<()> {
    let there = traffic::tcp_stream(one.0, two.0, (v4(two.1), 9).into(), STREAM);
    there.with_context(|| format!("{} to {}", one.0.name(), two.0.name()))?;
    let back = traffic::tcp_stream(two.0, one.0, (v6(one.1), 9).into(), STREAM);
    back.with_context(|| format!("{} to {}", two.0.name(), one.0.name()))?;
    Ok(())
}

/// Each offload as `ethtool -K` calls it, and as `ethtool -k` does.
const OFFLOADS: [(&str, &str); 6] = [
    ("rx", "rx-checksumming"),
    // Large frames to the guest; its driver tells QEMU, and QEMU tells no back end.
    ("rx-gro-hw", "rx-gro-hw"),
    ("tx", "tx-checksumming"),
    ("sg", "scatter-gather"),
    ("tso", "tcp-segmentation-offload"),
    ("gso", "generic-segmentation-offload"),
];

/// How an offload stands, as `on`, `off` or `on [fixed]`.
fn offload(shell: &dyn Shell, interface: &str, name: &str) -> Result<String> {
    let all = shell.run(&format!("ethtool -k {interface}"))?;
    let setting = all.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    Ok(setting.with_context(|| format!("no {name}: {all}"))?.to_owned())
}

/// Each offload is switched off at one end only, a guest's first, then the host's, and on again.
#[test]
fn switched_off_on_one_side() -> Result<()> {
    let network = Network::new()?;
    let switch =
        switch_with_host(&network, &["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"])?;
    let [one, two] = two_guests(&switch)?;
    let (first, second, host) = (End(&one, 1), End(&two, 2), End(&network, HOST));
    let ends: [(End<'_>, &str, [End<'_>; 2]); 2] =
        [(first, "eth0", [second, host]), (host, "rw0", [first, second])];
    let mut changed = Vec::new();
    for (end, interface, others) in ends {
        for (key, name) in OFFLOADS {
            let before = offload(end.0, interface, name)?;
            if before.ends_with("[fixed]") {
                // Whether checksums may be left to a virtio card's driver, or to a tap's host, is for the other side to
                // say and not for users; `different_features` has guests that take no such frames.
                let expected = key == "rx" || (key == "rx-gro-hw" && end.1 == HOST);
                ensure!(expected, "{}: {name} is {before}", end.0.name());
                continue;
            }
            ensure!(before == "on", "{}: {name} is {before}", end.0.name());
            end.0.run(&format!("ethtool -K {interface} {key} off"))?;
            let after = offload(end.0, interface, name)?;
            ensure!(after.starts_with("off"), "{}: {name} is {after}", end.0.name());
            for other in others {
                both_ways(end, other).with_context(|| {
                    format!("without {key} at {}; the switch says:\n{}", end.0.name(), switch.log())
                })?;
            }
            // What had to go with it comes back with it.
            end.0.run(&format!("ethtool -K {interface} {key} on"))?;
            changed.push((end.1, key));
        }
    }
    ensure!(changed.len() == 5 + 4, "only {changed:?}");
    println!("{changed:?}\n{}", switch.stop()?);
    Ok(())
}

/// The features that a guest's driver and its device have agreed on.
fn agreed(guest: &Guest) -> Result<Features> {
    let text = guest.run("cat /sys/class/net/eth0/device/features")?;
    let bits = text.trim().bytes().take(64).enumerate();
    Ok(bits.fold(Features::NONE, |all, (bit, byte)| all | Features(u64::from(byte == b'1') << bit)))
}

/// Four guests that have nearly nothing in common, and the host: each talks to each. Two of them have their features from
/// QEMU's properties of the card, one from its port's `features`, and one has all there is.
#[test]
fn different_features() -> Result<()> {
    let network = Network::new()?;
    let pinned =
        Features::VERSION_1 | Features::CSUM | Features::HOST_TSO4 | Features::INDIRECT_DESC;
    let switch = switch_with_host(
        &network,
        &[
            "vm1=vhost-user:vm1.sock",
            "vm2=vhost-user:vm2.sock",
            "vm3=vhost-user:vm3.sock",
            "vm4=vhost-user:vm4.sock,features=version_1+csum+host_tso4+indirect_desc",
        ],
    )?;
    let large = "guest_tso4=off,guest_tso6=off,guest_ecn=off";
    let guests = boot([
        guest(1, nic(&switch, 1))?,
        guest(2, nic(&switch, 2).option(&format!("packed=on,event_idx=off,{large}")))?,
        guest(
            3,
            nic(&switch, 3).option(&format!(
                "csum=off,host_tso4=off,host_tso6=off,host_ecn=off,guest_csum=off,{large},mrg_rxbuf=off,\
                 indirect_desc=off"
            )),
        )?,
        guest(4, nic(&switch, 4))?,
    ])?;
    let [one, two, three, four] = &guests;
    let offered = ports_features();
    let all = agreed(one)?;
    let checks = Features::CSUM | Features::GUEST_CSUM;
    let to_guest = Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
    let from_guest = Features::HOST_TSO4 | Features::HOST_TSO6 | Features::HOST_ECN;
    let rings = Features::INDIRECT_DESC | Features::EVENT_IDX | Features::MRG_RXBUF;
    ensure!(all.contains(checks | to_guest | from_guest | rings), "vm1 has {all}");
    let two_has = agreed(two)?;
    let less = (all | Features::RING_PACKED).without(to_guest | Features::EVENT_IDX);
    ensure!(two_has & offered == less & offered, "vm2 has {two_has}");
    let three_has = agreed(three)?;
    let none = checks | to_guest | from_guest | Features::MRG_RXBUF | Features::INDIRECT_DESC;
    ensure!(!three_has.intersects(none), "vm3 has {three_has}");
    // Of all that is for a back end to offer, exactly what is configured.
    let four_has = agreed(four)?;
    ensure!(four_has & offered == pinned, "vm4 has {four_has}");

    for (guest, n) in guests.iter().zip(1..) {
        plug_in(guest, n)?;
    }
    let mut ends = vec![End(&network, HOST)];
    ends.extend(guests.iter().zip(1..).map(|(guest, n)| End(guest, n)));
    for (index, one) in ends.iter().enumerate() {
        for two in &ends[..index] {
            both_ways(*one, *two).with_context(|| format!("the switch says:\n{}", switch.log()))?;
        }
    }
    for n in 1..=4 {
        ping_all(&network, &v4(n).to_string(), 2)?;
    }
    println!("{}", switch.stop()?);
    Ok(())
}

/// All that a port can offer and QEMU takes from a back end: the rest of a guest's features is QEMU's own.
fn ports_features() -> Features {
    Features::VERSION_1
        | Features::INDIRECT_DESC
        | Features::EVENT_IDX
        | Features::RING_PACKED
        | Features::RING_RESET
        | Features::MRG_RXBUF
        | Features::MTU
        | Features::CSUM
        | Features::GUEST_CSUM
        | Features::HOST_TSO4
        | Features::HOST_TSO6
        | Features::HOST_ECN
        | Features::GUEST_TSO4
        | Features::GUEST_TSO6
        | Features::GUEST_ECN
        | Features::GUEST_ANNOUNCE
}

/// A guest that QEMU tells a small MTU gets no larger frame, one that asks for more than its port takes gets nothing at
/// all, and a guest without either does not notice.
#[test]
fn host_mtu() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock",
        "vm2=vhost-user:vm2.sock",
        "vm3=vhost-user:vm3.sock,mtu=2000",
    ])?;
    let [one, two, three] = boot([
        guest(1, nic(&switch, 1).option("host_mtu=1400"))?,
        guest(2, nic(&switch, 2))?,
        guest(3, nic(&switch, 3).option("host_mtu=9000"))?,
    ])?;
    for (guest, n) in [(&one, 1), (&two, 2), (&three, 3)] {
        plug_in(guest, n)?;
    }
    switch.wait_for_log("guest's MTU port=\"vm1\" mtu=1400", MTU_LIMIT)?;
    ensure!(one.run("cat /sys/class/net/eth0/mtu")? == "1400\n", "the guest has another MTU");
    let larger = one.output("ip link set eth0 mtu 1401")?;
    ensure!(!larger.success(), "the guest took an MTU larger than its device's");

    // Just fits; and no further than the room for two VLAN tags, which are not the payload's.
    ping_all(&two, "-s 1372 10.0.0.1", 3)?;
    let lost = traffic::ping(&two, "-s 1381 10.0.0.1", 3)?;
    ensure!(lost.received == 0, "{lost:?}: frames larger than the MTU came through");
    both_ways(End(&one, 1), End(&two, 2))?;

    // QEMU does not use a back end that does not take the MTU.
    switch.wait_for_log("refused an MTU of 9000: this port takes 68 to 2000", MTU_LIMIT)?;
    ensure!(three.console().contains("9000Bytes MTU not supported"), "{}", three.console());
    ensure!(traffic::ping(&three, "10.0.0.2", 1)?.received == 0, "vm3 has a network");
    let log = switch.stop()?;
    let totals = log.lines().find(|line| line.contains("vm1: ")).context("no totals")?;
    let (_, drops) = totals.split_once("dropped: ").context("no drops")?;
    ensure!(drops.split(", ").any(|drop| drop == "over_mtu 3"), "{log}");
    Ok(())
}
