//! A tap of the host: how it is opened and set up, and what becomes of the port when something becomes of the tap.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use sys::tun::{Kind, Queue, Request};
use testbed::{Network, Shell};
use wire::virtio::NetHeader;

/// The switch says what it has to say, and answers come, within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);
/// A frame that may be lost, because something is not yet up, is sent again after this time.
const AGAIN: Duration = Duration::from_millis(100);

/// The guest's address, and those of the host.
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 0, 0, 1];
const HOST_IP: [u8; 4] = [10, 0, 0, 254];
const HOST: &str = "10.0.0.254/24";

/// A port for the guest, and one for the host.
const GUEST_PORT: &str = "vm1=vhost-user:vm1.sock";

/// A guest that can only ask the host for its hardware address.
struct Asker(Guest);

impl Asker {
    fn connect(switch: &Switch) -> Result<Asker> {
        Ok(Asker(Guest::connect(&switch.path("vm1.sock"), &Options::default())?))
    }

    /// Sends a request of ARP, in a frame of `len` bytes.
    fn ask(&mut self, len: usize) -> Result<()> {
        let ethernet = [&[0xff; 6][..], &GUEST, &[8, 6]].concat();
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST, &GUEST_IP, &[0; 6], &HOST_IP].concat();
        let mut frame = [ethernet, request].concat();
        frame.resize(len.max(60), 0);
        let driver = self.0.driver();
        driver.reclaim()?;
        ensure!(driver.send(NetHeader::default(), &frame)?, "no room for a frame");
        self.0.flush();
        Ok(())
    }

    /// The host's answer, if it comes within `limit`: its hardware address.
    fn answer(&mut self, limit: Duration) -> Result<Option<[u8; 6]>> {
        let deadline = Instant::now() + limit;
        loop {
            let received = self.0.driver().receive(|received| {
                let is_answer = received.frame.get(12..14) == Some(&[8, 6])
                    && received.frame.get(21) == Some(&2)
                    && received.frame.starts_with(&GUEST);
                let from = received.frame.get(6..12).and_then(|from| from.try_into().ok());
                from.filter(|_| is_answer)
            })?;
            self.0.flush();
            match received {
                Some(Some(address)) => return Ok(Some(address)),
                Some(None) => {}
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.0.wait(left)?;
                }
            }
        }
    }

    /// Asks in frames of `len` bytes until the host answers: frames pass both ways. Returns the host's hardware address.
    fn reach_with(&mut self, len: usize) -> Result<[u8; 6]> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            self.ask(len)?;
            if let Some(address) = self.answer(AGAIN)? {
                return Ok(address);
            }
        }
        anyhow::bail!("the host did not answer within {LIMIT:?}")
    }

    fn reach(&mut self) -> Result<[u8; 6]> {
        self.reach_with(60)
    }
}

/// What `ip` says of an interface.
fn link(network: &Network, name: &str) -> Result<Value> {
    let text = network.run(&format!("ip -json -details link show dev {name}"))?;
    let links: Value = serde_json::from_str(&text)?;
    Ok(links[0].clone())
}

fn exists(network: &Network, name: &str) -> Result<bool> {
    Ok(network.output(&format!("ip link show dev {name}"))?.success())
}

fn is_up(link: &Value) -> bool {
    link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()))
}

/// The line of the final report about a port.
fn report<'l>(log: &'l str, port: &str) -> Result<&'l str> {
    let mark = format!("{port}: ");
    let mut lines = log.lines().filter(|line| line.contains(&mark) && line.contains("dropped:"));
    lines.next().with_context(|| format!("no report about {port} in {log}"))
}

fn lines(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn a_new_tap_is_set_up_as_asked_and_goes_with_the_switch() -> Result<()> {
    let network = Network::new()?;
    network.bridge("br0")?;
    network.address("br0", HOST)?;
    let port = "host=tap:tap%d,queue-pairs=2,owner=65534,group=65534,mtu=1400,mac=52:54:00:aa:bb:cc,bridge=br0";
    let other = "other=tap:tap%d,up=off";
    let switch = Switch::start_in(&network, &[GUEST_PORT, port, other])?;

    let tap = link(&network, "tap0")?;
    println!("{tap}");
    assert_eq!(tap["mtu"], 1400);
    assert_eq!(tap["address"], "52:54:00:aa:bb:cc");
    assert_eq!(tap["master"], "br0");
    assert!(is_up(&tap), "a new one is put up");
    let of_tap = &tap["linkinfo"]["info_data"];
    for (key, value) in [("type", "tap"), ("user", "nobody"), ("group", "nogroup")] {
        assert_eq!(of_tap[key], value);
    }
    assert_eq!((&of_tap["multi_queue"], &of_tap["persist"]), (&true.into(), &false.into()));
    assert!(!is_up(&link(&network, "tap1")?), "unless it is not to be");
    let mut guest = Asker::connect(&switch)?;
    guest.reach()?;

    let log = switch.stop()?;
    assert_eq!(lines(&log, "interface=\"tap0\""), 1, "{log}");
    assert!(!exists(&network, "tap0")? && !exists(&network, "tap1")?, "they are left behind");
    Ok(())
}

#[test]
fn a_tap_that_was_there_is_left_as_it_is() -> Result<()> {
    let network = Network::new()?;
    network.tap("rw0")?;
    network.ip(&["link", "set", "rw0", "down", "mtu", "1300"])?;
    let before = link(&network, "rw0")?;
    let switch = Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0"])?;
    let during = link(&network, "rw0")?;
    for what in ["mtu", "address", "master"] {
        assert_eq!(before[what], during[what]);
    }
    assert!(!is_up(&during), "nobody has asked for it");
    switch.stop()?;
    assert!(exists(&network, "rw0")?, "it stays");

    // What is asked for is done to it too.
    let switch = Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0,up=on,persistent=off"])?;
    let tap = link(&network, "rw0")?;
    assert!(is_up(&tap) && tap["mtu"] == 1300);
    switch.stop()?;
    assert!(!exists(&network, "rw0")?, "it was to stay no longer");
    Ok(())
}

#[test]
fn a_persistent_tap_is_its_owners() -> Result<()> {
    let network = Network::new()?;
    let port = format!("host=tap:rw0,persistent=on,owner={NOBODY}");
    let switch = Switch::start_in(&network, &[GUEST_PORT, &port])?;
    network.address("rw0", HOST)?;
    Asker::connect(&switch)?.reach()?;
    switch.stop()?;
    let tap = link(&network, "rw0")?;
    assert_eq!(tap["linkinfo"]["info_data"]["persist"], true);

    // Without any privilege. What is so already needs none.
    let port = "host=tap:rw0,up=on,mtu=1500";
    let switch = Switch::start_as_nobody(&network, &[GUEST_PORT, port])?;
    Asker::connect(&switch)?.reach()?;
    switch.stop()?;
    assert!(exists(&network, "rw0")?, "it stays");
    Ok(())
}

/// Opens an interface in a network's namespace. Its queues are inherited by whatever is started from then on.
fn queues(network: &Network, request: &Request<'_>) -> Result<Vec<Queue>> {
    let namespace = Path::new("/run/netns").join(network.namespace().context("it is private")?);
    let namespace = open(&namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // A thread of its own, which ends there.
    let opened = thread::scope(|scope| {
        let there = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(request.open()?)
        });
        there.join().ok().context("the thread panicked")
    });
    let queues: Vec<Queue> = opened.flatten()?;
    for queue in &queues {
        fcntl_setfd(queue, FdFlags::empty())?;
    }
    Ok(queues)
}

#[test]
fn inherited_descriptors_need_no_privilege() -> Result<()> {
    let network = Network::new()?;
    for count in [1, 2] {
        let request = Request { queues: count, ..Request::new("rw0", Kind::Tap, NetHeader::SIZE) };
        let queues = queues(&network, &request)?;
        network.address("rw0", HOST)?;
        network.ip(&["link", "set", "rw0", "up"])?;
        let numbers: Vec<_> = queues.iter().map(|queue| queue.as_fd().as_raw_fd().to_string()).collect();
        let numbers = numbers.join("+");
        for interface in ["", "rw0"] {
            let port = format!("host=tap:{interface},fd={numbers}");
            let switch = Switch::start_as_nobody(&network, &[GUEST_PORT, &port])?;
            Asker::connect(&switch)?.reach()?;
            let log = switch.stop()?;
            ensure!(log.contains("interface=\"rw0\""), "{log}");
        }
        let port = format!("host=tap:rw1,fd={numbers}");
        let output = ringway_in(&network, false, &["run", "--port", &port])?;
        println!("{}", output.text());
        ensure!(output.text().contains("the descriptors are those of another interface, `rw0`"));
        drop(queues);
        ensure!(!exists(&network, "rw0")?, "somebody still has it open");
    }
    Ok(())
}

#[test]
fn a_link_that_goes_down_takes_the_port_down() -> Result<()> {
    let network = Network::new()?;
    let switch = Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0"])?;
    network.address("rw0", HOST)?;
    let mut guest = Asker::connect(&switch)?;
    guest.reach()?;

    network.ip(&["link", "set", "rw0", "down"])?;
    switch.wait_for_log("down port=\"host\"", LIMIT)?;
    for _ in 0..10 {
        guest.ask(60)?;
    }
    network.ip(&["link", "set", "rw0", "up"])?;
    switch.wait_for_log("up port=\"host\"", LIMIT)?;
    guest.reach()?;

    let log = switch.stop()?;
    let report = report(&log, "host")?;
    println!("{report}");
    // Not those that the kernel may have refused before it was known.
    ensure!(report.contains("receiver_down "), "{report}");
    Ok(())
}
