//! Real guests, and the networks between them. Needs root, for bridges and taps.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::traffic::{self, Ping};
use testbed::{Guest, Image, Network, Nic, Qemu, Shell};

#[test]
fn a_guest_runs_scripts_and_reboots() -> Result<()> {
    let image = Image::build()?;
    for qemu in Qemu::all()? {
        let start = Instant::now();
        let mut guest = Guest::builder(&image, "vm1").qemu(&qemu).boot()?;
        println!("QEMU {:?}: ready after {:?}", qemu.version(), start.elapsed());

        assert_eq!(guest.run("echo one; echo two >&2")?, "one\ntwo\n");
        assert_eq!(guest.output("exit 3")?.status, 3);
        let error = guest.run("echo why; false").err().context("false succeeds")?;
        assert!(error.to_string().contains("`echo why; false` ended with 1:\nwhy"), "{error}");

        let megabyte = guest.output("head -c 1048576 /dev/urandom > a; sha256sum < a; cat a")?;
        assert_eq!(megabyte.bytes.len(), (1 << 20) + 68);
        let digest = guest.run("sha256sum < a")?;
        assert!(megabyte.bytes.starts_with(digest.as_bytes()));

        let server = guest.start("echo up; sleep 1000")?;
        server.wait_for("up\n", Duration::from_secs(10))?;
        server.kill();
        assert_eq!(server.wait(Duration::from_secs(10))?.status, 128 + 9);
        let slow = guest.output_within("echo half; sleep 1000", Duration::from_secs(1));
        let error = slow.err().context("sleep 1000 ended")?.to_string();
        assert!(error.contains("did not end within 1s") && error.contains("half"), "{error}");

        let cut_off = guest.start("sleep 1000")?;
        guest.run("touch mark")?;
        guest.reboot()?;
        let error = cut_off.wait(Duration::from_secs(10)).err().context("it slept on")?;
        assert!(error.to_string().contains("the guest rebooted"), "{error}");
        assert_eq!(guest.output("test -e mark")?.status, 1, "the reboot kept a file");
        // A reset tears the channel's lines apart; the next boot's are whole.
        let flood = guest.start("yes")?;
        flood.wait_for("y\n", Duration::from_secs(10))?;
        guest.reset()?;
        assert!(flood.wait(Duration::from_secs(10)).is_err());
        assert_eq!(guest.run("echo whole")?, "whole\n");

        let before = guest.qemu_pid()?;
        guest.restart()?;
        assert_ne!(guest.qemu_pid()?, before);
        guest.run("true")?;
        assert!(guest.monitor("info version")?.starts_with(&qemu.version().0.to_string()));
        guest.kill();
        assert!(guest.run("true").is_err());
    }
    Ok(())
}

#[test]
fn two_guests_talk_over_taps_and_a_bridge() -> Result<()> {
    let image = Image::build()?;
    let network = Network::new()?;
    network.bridge("br0")?;
    network.address("br0", "10.0.0.254/24")?;
    let boot = |number: u8| -> Result<Guest> {
        let tap = format!("tap{number}");
        network.tap(&tap)?;
        network.attach(&tap, "br0")?;
        let guest = Guest::builder(&image, &format!("vm{number}"))
            .network(&network)
            .nic(Nic::tap(&tap).mac(&format!("52:54:00:00:00:0{number}")))
            .boot()?;
        let address = format!("ip addr add 10.0.0.{number}/24 dev eth0");
        let address6 = format!("ip addr add fd00::{number}/64 dev eth0 nodad");
        guest.run(&format!("{address} && {address6} && ip link set eth0 up"))?;
        Ok(guest)
    };
    // The second boots in a thread that ends, which must not end its QEMU.
    let (one, two) = thread::scope(|scope| {
        let two = scope.spawn(|| boot(2));
        (boot(1), two.join())
    });
    let (one, two) = (one?, two.ok().context("the thread panicked")??);

    let all = Ping { sent: 3, received: 3 };
    assert_eq!(traffic::ping(&one, "10.0.0.2", 3)?, all);
    assert_eq!(traffic::ping(&two, "fd00::1", 3)?, all);
    assert_eq!(traffic::ping(&network, "10.0.0.1", 3)?, all);
    assert_eq!(traffic::ping(&one, "10.0.0.99", 1)?.received, 0);

    let address = |number| IpAddr::V4(Ipv4Addr::new(10, 0, 0, number));
    traffic::udp_sweep(&one, &two, (address(2), 7).into(), 1..=1472)?;
    let stream = traffic::tcp_stream(&two, &one, (address(1), 9).into(), 16 << 20)?;
    println!("16 MiB in {:?}, SHA-256 {}", stream.time, stream.sha256);
    let stream = traffic::tcp_stream(&network, &one, (address(1), 9).into(), 16 << 20)?;
    println!("16 MiB from the host in {:?}", stream.time);
    println!("{:?}", traffic::iperf(&one, &two, address(2), 3, "")?);
    assert!(one.run("ethtool -k eth0")?.contains("tcp-segmentation-offload: on"));
    Ok(())
}

#[test]
fn a_guest_that_cannot_start_says_why() -> Result<()> {
    let image = Image::build()?;
    let guest = Guest::builder(&image, "vm1").nic(Nic::vhost_user("/nonexistent/socket")).boot();
    let error = format!("{:#}", guest.err().context("it started")?);
    assert!(error.contains("/nonexistent/socket"), "{error}");
    let guest = Guest::builder(&image, "vm1").argument("-bogus").boot();
    let error = format!("{:#}", guest.err().context("it started")?);
    assert!(error.contains("QEMU ended") && error.contains("-bogus"), "{error}");
    Ok(())
}

#[test]
fn what_a_network_made_goes_with_it() -> Result<()> {
    let name = testbed::network::unique_link_name("br");
    let network = Network::host()?;
    network.bridge(&name)?;
    assert!(network.run("ip -brief link")?.contains(&name));
    drop(network);
    assert!(!Network::host()?.run("ip -brief link")?.contains(&name));
    let private = Network::new()?;
    let name = private.namespace().context("a private network has a namespace")?.to_owned();
    assert!(Network::host()?.run("ip netns")?.contains(&name));
    drop(private);
    assert!(!Network::host()?.run("ip netns")?.contains(&name));
    Ok(())
}
