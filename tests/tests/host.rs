//! A guest and the host it runs on, through a tap of the switch.

use anyhow::{Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use testbed::{Network, Shell, traffic};

#[test]
fn a_guest_and_the_host() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", "host=tap:rw0"])?;
    network.address("rw0", "10.0.0.254/24")?;
    network.address("rw0", "fd00::fe/64")?;
    network.ip(&["link", "set", "rw0", "up"])?;
    let [one] = boot([guest(1, nic(&switch, 1))?])?;
    plug_in(&one, 1)?;

    ping_all(&one, "10.0.0.254", 10)?;
    ping_all(&network, "10.0.0.1", 10)?;
    ping_all(&one, "fd00::fe", 3)?;
    ping_all(&network, "fd00::1", 3)?;
    traffic::udp_sweep(&network, &one, (v4(1), 7).into(), 1..=1472)?;

    let offloads = one.run("ethtool -k eth0")?;
    for offload in ["tx-checksumming", "rx-checksumming", "tcp-segmentation-offload"] {
        assert!(offloads.contains(&format!("{offload}: on")), "{offloads}");
    }
    // Both kernels leave segmentation to whoever is last: frames far larger than the MTU cross the tap.
    let before = crossed(&network, "rw0")?;
    traffic::tcp_stream(&one, &network, (v4(254), 9).into(), 50_000_000)?;
    let after = crossed(&network, "rw0")?;
    let from_guest = mean_size(before[0], after[0]);
    traffic::tcp_stream(&network, &one, (v4(1), 9).into(), 50_000_000)?;
    let to_guest = mean_size(after[1], crossed(&network, "rw0")?[1]);
    println!("mean frame: {from_guest} bytes from the guest, {to_guest} to it");
    assert!(from_guest > 3000 && to_guest > 3000);

    println!("{}", switch.stop()?);
    ensure!(!network.run("ip -brief link")?.contains("rw0"), "the tap is left behind");
    Ok(())
}

/// The host and an embedded guest have nothing to say to each other.
#[test]
fn an_idle_tap_takes_no_processor_time() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", "host=tap:rw0"])?;
    network.address("rw0", "10.0.0.254/24")?;
    let guest = Guest::connect(&switch.path("vm1.sock"), &Options::default())?;
    ensure!(network.run("ip -brief link show dev rw0")?.contains("LOWER_UP"), "the tap is not up");
    switch.watch_idle()?;
    drop(guest);
    switch.stop()?;
    Ok(())
}

/// A tap that somebody made before is used, and stays.
#[test]
fn a_tap_that_was_there() -> Result<()> {
    let network = Network::new()?;
    network.tap("rw0")?;
    network.address("rw0", "10.0.0.254/24")?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", "host=tap:rw0"])?;
    let [one] = boot([guest(1, nic(&switch, 1))?])?;
    plug_in(&one, 1)?;
    ping_all(&network, "10.0.0.1", 3)?;
    traffic::tcp_stream(&one, &network, (v4(254), 9).into(), 5_000_000)?;
    switch.stop()?;
    ensure!(network.run("ip -brief link")?.contains("rw0"), "the tap is gone");
    Ok(())
}

/// Each of two workers has a guest, and a queue of the tap.
#[test]
fn two_guests_and_the_host_by_two_queues() -> Result<()> {
    let network = Network::new()?;
    let ports =
        ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock", "host=tap:rw0,queue-pairs=2"];
    let switch = Switch::start_in_with(&network, &["--workers", "2"], &ports)?;
    network.address("rw0", "10.0.0.254/24")?;
    network.ip(&["link", "set", "rw0", "up"])?;
    let queues = network.run("ls /sys/class/net/rw0/queues")?;
    ensure!(queues.lines().filter(|name| name.starts_with("tx-")).count() == 2, "{queues}");
    let guests = two_guests(&switch)?;
    for (guest, n) in guests.iter().zip(1..) {
        ping_all(guest, "10.0.0.254", 10)?;
        ping_all(&network, &v4(n).to_string(), 10)?;
        traffic::udp_sweep(&network, guest, (v4(n), 7).into(), 1..=300)?;
        traffic::tcp_stream(guest, &network, (v4(254), 9).into(), 20_000_000)?;
        traffic::tcp_stream(&network, guest, (v4(n), 9).into(), 20_000_000)?;
    }
    println!("{}", switch.stop()?);
    Ok(())
}
