//! The host's own IP on the switch, by a tun interface.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use rustix::process::{Pid, Signal, kill_process};
use testbed::{Network, Shell, traffic};
use wire::arp::{self, Operation};
use wire::ethernet::{EtherType, Ethernet, HEADER_SIZE, MacAddress};
use wire::ndp::{self, Kind, solicited_node};
use wire::virtio::NetHeader;

/// The switch says what it has to say, and frames come, within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);

const PORT: &str = "host=tun:rw0,address=10.0.0.254/16+fd00::fe/64,mac=52:54:00:00:00:fe";
const HOST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xfe]);

#[test]
fn a_guest_and_the_host() -> Result<()> {
    let network = Network::new()?;
    let host = "host=tun:rw0,address=10.0.0.254/24+fd00::fe/64";
    // The tun is read by one worker, and frames of the guest's may come by the other.
    let options = ["--workers", "2"];
    let switch = Switch::start_in_with(&network, &options, &["vm1=vhost-user:vm1.sock", host])?;
    // Behind the host, where the guest gets by it.
    network.bridge("behind")?;
    network.address("behind", "192.0.2.1/32")?;
    network.address("behind", "2001:db8::1/128")?;
    let [one] = boot([guest(1, nic(&switch, 1))?])?;
    plug_in(&one, 1)?;
    one.run("ip route add default via 10.0.0.254 && ip -6 route add default via fd00::fe")?;

    ping_all(&one, "10.0.0.254", 5)?;
    ping_all(&network, "10.0.0.1", 5)?;
    ping_all(&one, "fd00::fe", 3)?;
    ping_all(&network, "fd00::1", 3)?;
    ping_all(&one, "192.0.2.1", 3)?;
    ping_all(&one, "2001:db8::1", 3)?;
    traffic::udp_sweep(&network, &one, (v4(1), 7).into(), 1..=1472)?;
    traffic::udp_sweep(&one, &network, (v6(0xfe), 7).into(), 1400..=1452)?;

    // Both kernels leave segmentation to whoever is last: packets far larger than the MTU cross the tun.
    let before = crossed(&network, "rw0")?;
    traffic::tcp_stream(&one, &network, (v4(254), 9).into(), 50_000_000)?;
    traffic::tcp_stream(&one, &network, (v6(254), 9).into(), 20_000_000)?;
    let after = crossed(&network, "rw0")?;
    let from_guest = mean_size(before[0], after[0]);
    traffic::tcp_stream(&network, &one, (v4(1), 9).into(), 50_000_000)?;
    traffic::tcp_stream(&network, &one, (v6(1), 9).into(), 20_000_000)?;
    let to_guest = mean_size(after[1], crossed(&network, "rw0")?[1]);
    println!("mean packet: {from_guest} bytes from the guest, {to_guest} to it");
    assert!(from_guest > 3000 && to_guest > 3000);
    for options in ["", "-R"] {
        let iperf = traffic::iperf(&one, &network, v4(254), 3, options)?;
        println!("iperf3 {options}: {:.0} Mbit/s", iperf.bits_per_second / 1e6);
        ensure!(iperf.bits_per_second > 1e6, "{iperf:?}");
    }

    let log = switch.stop()?;
    println!("{log}");
    let report = report(&log, "host")?;
    ensure!(!report.contains("no_neighbour"), "{report}");
    ensure!(!network.run("ip -brief link")?.contains("rw0"), "the tun is left behind");
    Ok(())
}

/// The line of the final report about a port.
fn report<'l>(log: &'l str, port: &str) -> Result<&'l str> {
    let mark = format!("{port}: ");
    let mut lines = log.lines().filter(|line| line.contains(&mark) && line.contains("dropped:"));
    lines.next().with_context(|| format!("no report about {port} in {log}"))
}

/// An embedded guest that does as it is told.
struct Station {
    guest: Guest,
    mac: MacAddress,
}

impl Station {
    /// Guest number `n`, whose address is 10.0.0.n.
    fn connect(switch: &Switch, n: u8) -> Result<Station> {
        let guest = Guest::connect(&switch.path(&format!("vm{n}.sock")), &Options::default())?;
        Ok(Station { guest, mac: MacAddress([0x52, 0x54, 0, 0, 0, n]) })
    }

    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let driver = self.guest.driver();
            driver.reclaim()?;
            let sent = driver.send(NetHeader::default(), frame)?;
            self.guest.flush();
            if sent {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "there was no room for a frame within {LIMIT:?}");
            self.guest.wait_to_send(left)?;
        }
    }

    /// Waits for a frame that is looked for.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let received = self.guest.driver().receive(|received| look(received.frame))?;
            self.guest.flush();
            match received {
                Some(Some(found)) => return Ok(found),
                Some(None) => {}
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    ensure!(!left.is_zero(), "waited {LIMIT:?} for {what}");
                    self.guest.wait(left)?;
                }
            }
        }
    }

    /// Says by ARP that it has an address: asks the host for its own, or answers it.
    fn claim(&mut self, operation: Operation, address: [u8; 4]) -> Result<()> {
        let packet = arp::Packet {
            operation,
            sender_mac: self.mac,
            sender: address.into(),
            target_mac: if operation == Operation::Reply { HOST } else { MacAddress::default() },
            target: [10, 0, 0, 254].into(),
        };
        let to = if operation == Operation::Reply { HOST } else { MacAddress::BROADCAST };
        self.send(&packet.frame(to))
    }
}

/// The packet of ARP in a frame, if it is no announcement.
fn read_arp(frame: &[u8]) -> Option<(Ethernet, arp::Packet)> {
    let ethernet = Ethernet::parse(frame).filter(|header| header.ethertype == EtherType::ARP)?;
    let packet = arp::Packet::parse(frame.get(HEADER_SIZE..)?)?;
    (packet.sender != packet.target).then_some((ethernet, packet))
}

/// Whether a frame has a ping of the host's to this station.
fn is_ping(frame: &[u8], station: MacAddress) -> bool {
    frame.starts_with(&[station.0, HOST.0].concat())
        && frame.get(12..14) == Some(&[8, 0])
        && frame.get(23) == Some(&1)
}

#[test]
fn a_hostile_guest_does_not_evict_a_live_neighbour() -> Result<()> {
    let network = Network::new()?;
    let sockets = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock", PORT];
    let switch = Switch::start_in(&network, &sockets)?;
    let mut live = Station::connect(&switch, 1)?;
    let mut hostile = Station::connect(&switch, 2)?;
    let ping = || network.start("exec busybox ping -c 1 -W 1 10.0.0.1");

    // Asked for among all, and then found: the ping waited for it.
    let first = ping()?;
    let (ethernet, question) = live.until("a question", read_arp)?;
    assert_eq!((ethernet.destination, ethernet.source), (MacAddress::BROADCAST, HOST));
    assert_eq!(
        (question.sender.octets(), question.target.octets()),
        ([10, 0, 0, 254], [10, 0, 0, 1])
    );
    live.claim(Operation::Reply, [10, 0, 0, 1])?;
    live.until("a ping", |frame| {
        is_ping(frame, MacAddress([0x52, 0x54, 0, 0, 0, 1])).then_some(())
    })?;
    first.wait(LIMIT)?;

    for number in 0..5_000u32 {
        let [.., high, low] = (0x0100 + number).to_be_bytes();
        hostile.claim(Operation::Request, [10, 0, high, low])?;
        let target = "fd00::fe".parse()?;
        let solicitation = ndp::Packet {
            source: std::net::Ipv6Addr::from_bits((0xfd00 << 112) + 0x1_0000 + u128::from(number)),
            destination: solicited_node(target),
            kind: Kind::Solicitation,
            target,
            link_layer: Some(hostile.mac),
        };
        let group = MacAddress::of_group(solicited_node(target).into());
        hostile.send(&solicitation.frame(hostile.mac, group))?;
        while hostile.guest.driver().receive(|_| ())?.is_some() {}
        while live.guest.driver().receive(|_| ())?.is_some() {}
        hostile.guest.flush();
        live.guest.flush();
    }
    // The next ping is there at once, and nobody was asked before it.
    let second = ping()?;
    let mac = live.mac;
    let asked = live.until("a ping after the flood", |frame| {
        if is_ping(frame, mac) {
            return Some(false);
        }
        // To ask the station itself whether it is still there is something else.
        let asks_all = |(header, _): &(Ethernet, _)| {
            header.source == HOST && header.destination.is_multicast()
        };
        read_arp(frame).filter(asks_all).map(|_| true)
    })?;
    ensure!(!asked, "a live neighbour was asked for again");
    second.wait(LIMIT)?;
    switch.stop()?;
    Ok(())
}

#[test]
fn who_does_not_answer_is_asked_for_three_times_and_counted() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", PORT])?;
    let mut one = Station::connect(&switch, 1)?;
    // To no network of ours, and there is no gateway.
    network.ip(&["route", "add", "203.0.113.0/24", "dev", "rw0"])?;
    network.output("busybox ping -c 1 -W 1 203.0.113.1")?;
    let pings = network.start("exec busybox ping -c 100 -i 0.1 -W 1 10.0.0.77")?;
    let start = Instant::now();
    // When it was given up it is asked for anew, by the next packet.
    for number in 0..4u64 {
        let question = one.until("a question", read_arp)?.1;
        assert_eq!(question.target.octets(), [10, 0, 0, 77]);
        let seconds = start.elapsed().as_secs_f64();
        ensure!(seconds > number as f64 - 0.5, "question {number} came after {seconds} s");
    }
    drop(pings);
    let log = switch.stop()?;
    let report = report(&log, "host")?;
    let (_, count) = report.split_once("no_neighbour ").with_context(|| log.clone())?;
    let count: u32 = count.split(',').next().unwrap_or_default().trim().parse()?;
    // One that had nowhere to go, and three or more that waited in vain.
    ensure!(count >= 4, "{report}");
    Ok(())
}

#[test]
fn a_tun_that_is_deleted_in_another_namespace_is_no_other() -> Result<()> {
    let (network, other) = (Network::new()?, Network::new()?);
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", PORT])?;
    let namespace = other.namespace().context("it is private")?;
    network.ip(&["link", "set", "rw0", "netns", namespace])?;
    switch.wait_for_log("in another network namespace", LIMIT)?;
    network.ip(&["tuntap", "add", "dev", "rw0", "mode", "tun", "vnet_hdr"])?;
    other.ip(&["link", "del", "rw0"])?;
    switch.wait_for_log("deleted in another network namespace", LIMIT)?;
    let link = network.run("ip -brief link show dev rw0")?;
    let log = switch.stop()?;
    assert!(!log.contains("again"), "{log}");
    assert!(!link.contains("LOWER_UP"), "nobody has it open: {link}");
    Ok(())
}

#[test]
fn the_interface_goes_and_comes_back() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", PORT])?;
    let mut one = Station::connect(&switch, 1)?;
    let reach = |one: &mut Station| {
        one.claim(Operation::Request, [10, 0, 0, 1])?;
        one.until("an answer", |frame| {
            read_arp(frame).filter(|(_, packet)| packet.operation == Operation::Reply)
        })
    };
    let (ethernet, answer) = reach(&mut one)?;
    assert_eq!((ethernet.source, answer.sender_mac), (HOST, HOST));
    network.ip(&["link", "del", "rw0"])?;
    switch.wait_for_log("the interface was deleted", LIMIT)?;
    network.ip(&["tuntap", "add", "dev", "rw0", "mode", "tun"])?;
    switch.wait_for_log("attached to the interface again", LIMIT)?;
    reach(&mut one)?;
    let addresses = network.run("ip -brief address show dev rw0")?;
    for address in ["10.0.0.254/16", "fd00::fe/64"] {
        ensure!(addresses.contains(address), "{addresses}");
    }
    // Down: nobody answers. And up again, with the address that the kernel took away meanwhile.
    network.ip(&["link", "set", "rw0", "down"])?;
    switch.wait_for_log("down port=\"host\"", LIMIT)?;
    one.claim(Operation::Request, [10, 0, 0, 1])?;
    network.ip(&["link", "set", "rw0", "up"])?;
    switch.wait_for_log("up port=\"host\"", LIMIT)?;
    reach(&mut one)?;
    let addresses = network.run("ip -brief address show dev rw0")?;
    ensure!(addresses.contains("fd00::fe/64"), "{addresses}");
    let log = switch.stop()?;
    ensure!(report(&log, "host")?.contains("receiver_down 1"), "{log}");
    ensure!(network.run("ip -brief link")?.contains("rw0"), "another's tun is gone");
    Ok(())
}

/// Down and up again before the switch has looked: it was stopped meanwhile.
#[test]
fn addresses_come_back_though_nobody_saw_them_go() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", PORT])?;
    let addresses = || network.run("ip -brief address show dev rw0");
    let others = "fd01::1/64";
    network.ip(&["address", "add", others, "dev", "rw0"])?;
    let pid = i32::try_from(switch.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
    kill_process(pid, Signal::STOP)?;
    network.ip(&["link", "set", "rw0", "down"])?;
    network.ip(&["link", "set", "rw0", "up"])?;
    let meanwhile = addresses()?;
    kill_process(pid, Signal::CONT)?;
    ensure!(!meanwhile.contains("fd00::fe/64"), "the kernel has left it: {meanwhile}");
    let words =
        "the interface has its address again port=\"host\" interface=\"rw0\" address=fd00::fe/64";
    switch.wait_for_log(words, LIMIT)?;
    let after = addresses()?;
    ensure!(after.contains("fd00::fe/64") && after.contains("10.0.0.254/16"), "{after}");
    ensure!(!after.contains(others), "that one is none of ours: {after}");
    let log = switch.stop()?;
    ensure!(!log.contains("is down"), "it was seen: {log}");
    Ok(())
}

#[test]
fn packets_beyond_the_interface_s_mtu_are_counted() -> Result<()> {
    let network = Network::new()?;
    let port = format!("{PORT},mtu=1300");
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", &port])?;
    let mut one = Station::connect(&switch, 1)?;
    let packet = |len: u16| {
        let mut frame = [&HOST.0[..], &one.mac.0, &[8, 0, 0x45, 0]].concat();
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 254]);
        frame.resize(HEADER_SIZE + usize::from(len), 0);
        frame
    };
    let frames = [1300, 1301].map(packet);
    frames.iter().try_for_each(|frame| one.send(frame))?;
    network.ip(&["link", "set", "rw0", "mtu", "1400"])?;
    switch.wait_for_log("mtu=1400", LIMIT)?;
    one.send(&frames[1])?;
    // Frames go in order: what is asked behind them is answered when they were taken.
    one.claim(Operation::Request, [10, 0, 0, 1])?;
    one.until("an answer", |frame| {
        read_arp(frame).filter(|(_, packet)| packet.operation == Operation::Reply)
    })?;
    let log = switch.stop()?;
    let report = report(&log, "host")?;
    ensure!(report.contains("2 sent") && report.contains("over_mtu 1"), "{report}");
    Ok(())
}

/// The host and a guest have nothing to say to each other.
#[test]
fn an_idle_tun_takes_no_processor_time() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", PORT])?;
    let mut one = Station::connect(&switch, 1)?;
    // Both ways are open, and each knows the other.
    one.claim(Operation::Request, [10, 0, 0, 1])?;
    one.until("an answer", |frame| {
        read_arp(frame).filter(|(_, packet)| packet.operation == Operation::Reply)
    })?;
    switch.watch_idle()?;
    switch.stop()?;
    Ok(())
}

#[test]
fn an_interface_of_another_kind_is_refused() -> Result<()> {
    let network = Network::new()?;
    network.tap("rw0")?;
    let error = Switch::start_in(&network, &[PORT]).err().context("it starts")?;
    let text = format!("{error:#}");
    ensure!(text.contains("port `host`: tun interface `rw0`") && text.contains("tap"), "{text}");
    Ok(())
}
