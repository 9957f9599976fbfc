//! Guests, QEMUs and the switch come and go: traffic resumes without anyone touching what stayed.

use std::time::Duration;

use anyhow::{Context, Result};
use ringway_tests::*;
use testbed::{Guest, Nic, Qemu, Shell, traffic};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];
/// A switch and a front end find each other within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn guests_and_qemus_come_and_go() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let [mut one, two] = two_guests(&switch)?;
    let resumed = |one: &Guest, after: &str| -> Result<()> {
        println!("traffic after {after}");
        let check = || {
            ping_all(&two, "10.0.0.1", 3)?;
            ping_all(one, "10.0.0.2", 3)?;
            traffic::tcp_stream(&two, one, (v4(1), 9).into(), 2_000_000)?;
            traffic::tcp_stream(one, &two, (v4(2), 9).into(), 2_000_000)
        };
        check().with_context(|| format!("after {after}; the switch says:\n{}", switch.log()))?;
        Ok(())
    };
    resumed(&one, "the start")?;

    one.reboot()?;
    plug_in(&one, 1)?;
    resumed(&one, "a reboot")?;

    // With traffic under way: the guest gets no chance to stop its rings.
    let flood = two.start("busybox ping -i 0.002 -s 1400 10.0.0.1")?;
    flood.wait_for("bytes from", CONNECT_LIMIT)?;
    one.reset()?;
    plug_in(&one, 1)?;
    flood.kill();
    resumed(&one, "a reset")?;

    one.run(
        "device=$(basename $(readlink /sys/class/net/eth0/device)) && cd /sys/bus/virtio/drivers/virtio_net && \
         echo $device > unbind && ! test -e /sys/class/net/eth0 && echo $device > bind",
    )?;
    plug_in(&one, 1)?;
    resumed(&one, "an unbind and bind")?;

    one.run("ip link set eth0 down && ip link set eth0 up")?;
    resumed(&one, "a link that was down")?;

    one.restart()?;
    plug_in(&one, 1)?;
    resumed(&one, "kill -9 of QEMU")?;

    println!("{}", switch.stop()?);
    Ok(())
}

/// The roles turned round: QEMU listens and the switch connects, again and again until it can.
#[test]
fn the_switch_connects_to_qemu() -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let path = |n: u8| sockets.path().join(format!("vm{n}.sock"));
    let ports = [1, 2].map(|n| format!("vm{n}=vhost-user:{},connect=on", path(n).display()));
    let switch = Switch::start(&[&ports[0], &ports[1]])?;
    let card = |n| Nic::vhost_user(path(n)).listen().mac(&mac(n));
    let [mut one, two] = boot([guest(1, card(1))?, guest(2, card(2))?])?;
    plug_in(&one, 1)?;
    plug_in(&two, 2)?;
    ping_all(&one, "10.0.0.2", 3)?;
    traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 2_000_000)?;

    one.restart()?;
    plug_in(&one, 1)?;
    ping_all(&two, "10.0.0.1", 3)?;

    // Both QEMUs go on listening, so a new switch finds them.
    println!("{}", switch.stop()?);
    let switch = Switch::start(&[&ports[0], &ports[1]])?;
    wait_for_ping(&one, "10.0.0.2")?;
    traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 2_000_000)?;
    println!("{}", switch.stop()?);
    Ok(())
}

/// The switch goes and comes back under guests that run: QEMU connects again.
#[test]
fn a_new_switch_under_running_guests() -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let path = |n: u8| sockets.path().join(format!("vm{n}.sock"));
    let ports = [1, 2].map(|n| format!("vm{n}=vhost-user:{}", path(n).display()));
    for qemu in Qemu::all()? {
        let switch = Switch::start(&[&ports[0], &ports[1]])?;
        let card = |n| Nic::vhost_user(path(n)).reconnect_ms(1000).mac(&mac(n));
        let [one, two] = boot([guest(1, card(1))?.qemu(&qemu), guest(2, card(2))?.qemu(&qemu)])?;
        plug_in(&one, 1)?;
        plug_in(&two, 2)?;
        ping_all(&one, "10.0.0.2", 3)?;
        traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 2_000_000)?;

        switch.stop()?;
        assert!(!path(1).exists() && !path(2).exists());
        assert_eq!(traffic::ping(&one, "10.0.0.2", 1)?.received, 0);

        let switch = Switch::start(&[&ports[0], &ports[1]])?;
        wait_for_ping(&one, "10.0.0.2")?;
        ping_all(&two, "10.0.0.1", 3)?;
        traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 2_000_000)?;
        println!("{:?}\n{}", qemu.version(), switch.stop()?);
    }
    Ok(())
}

/// Waits until an address answers.
fn wait_for_ping(from: &Guest, to: &str) -> Result<()> {
    let script = format!("until busybox ping -c 1 -W 1 {to} > /dev/null; do sleep 0.1; done");
    from.run_within(&script, CONNECT_LIMIT + Duration::from_secs(10))?;
    Ok(())
}
