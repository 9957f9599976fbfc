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
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use sys::testing::{Call, refuse};
use sys::tun::{Kind, Queue, Request};
use testbed::{Network, Program, Shell};
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
/// The type of frames that nobody answers.
const UNKNOWN: [u8; 2] = [0x88, 0xb5];

/// A port for the guest.
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
        let request =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST, &GUEST_IP, &[0; 6], &HOST_IP].concat();
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

    /// Sends a frame with this mark, of a protocol that nobody knows.
    fn send_to(&mut self, to: [u8; 6], mark: u8) -> Result<()> {
        let mut frame = [&to[..], &GUEST, &UNKNOWN, &[mark]].concat();
        frame.resize(60, 0);
        ensure!(self.0.driver().send(NetHeader::default(), &frame)?, "no room for a frame");
        self.0.flush();
        Ok(())
    }
}

/// The mark of the next frame that has one.
fn next_mark(guest: &mut Guest) -> Result<u8> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let received = guest.driver().receive(|received| {
            let has_mark = received.frame.get(12..14) == Some(&UNKNOWN);
            received.frame.get(14).copied().filter(|_| has_mark)
        })?;
        guest.flush();
        match received {
            Some(Some(mark)) => return Ok(mark),
            Some(None) => {}
            None => drop(guest.wait(AGAIN)?),
        }
    }
    anyhow::bail!("no frame came within {LIMIT:?}")
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

/// Frames that a port has dropped for this reason, in the final report.
fn dropped(log: &str, port: &str, reason: &str) -> Result<u64> {
    let mark = format!("{port}: ");
    let mut lines = log.lines().filter(|line| line.contains(&mark) && line.contains("dropped:"));
    let line = lines.next().with_context(|| format!("no report about {port}: {log}"))?;
    let mut reasons = line.split([',', ':']).filter_map(|part| part.trim().strip_prefix(reason));
    reasons.next().map_or(Ok(0), |count| Ok(count.trim().parse()?))
}

/// Waits until so many lines of the log have these words.
fn wait_for_lines(switch: &Switch, words: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while lines(&switch.log(), words) < count {
        ensure!(
            Instant::now() < deadline,
            "{words:?} was not said {count} times: {}",
            switch.log()
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
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
    assert_eq!(lines(&log, "io_uring"), 0, "nothing is wrong with it here: {log}");
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

#[test]
fn a_switch_that_was_killed_can_be_started_again_at_once() -> Result<()> {
    let network = Network::new()?;
    let port = "host=tap:rw0,persistent=on";
    let mut switch = Switch::start_in(&network, &[port])?;
    // The kernel may be quick for once.
    for _ in 0..5 {
        switch.kill()?;
        switch = Switch::start_in(&network, &[GUEST_PORT, port])?;
    }
    network.address("rw0", HOST)?;
    Asker::connect(&switch)?.reach()?;
    let log = switch.stop()?;
    assert_eq!(lines(&log, "attached to the interface"), 1, "{log}");
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
        let numbers: Vec<_> =
            queues.iter().map(|queue| queue.as_fd().as_raw_fd().to_string()).collect();
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
        // One that comes in its place is opened by its name, with as many queues, since it is nobody's.
        let port = format!("host=tap:,fd={numbers}");
        let switch = Switch::start_as_nobody(&network, &[GUEST_PORT, &port])?;
        network.ip(&["link", "del", "rw0"])?;
        switch.wait_for_log("the interface was deleted", LIMIT)?;
        let several = if count > 1 { "multi_queue" } else { "" };
        network.run(&format!("ip tuntap add dev rw0 mode tap vnet_hdr user nobody {several}"))?;
        switch.wait_for_log("attached to the interface again", LIMIT)?;
        network.address("rw0", HOST)?;
        network.ip(&["link", "set", "rw0", "up"])?;
        Asker::connect(&switch)?.reach()?;
        assert_eq!(link(&network, "rw0")?["linkinfo"]["info_data"]["user"], "nobody");
        switch.stop()?;
        network.ip(&["link", "del", "rw0"])?;
    }
    Ok(())
}

/// It takes one to open as many as there were; but as one of several.
#[test]
fn one_inherited_queue_of_several_comes_back_as_such() -> Result<()> {
    let network = Network::new()?;
    let request = Request { several: true, ..Request::new("rw0", Kind::Tap, NetHeader::SIZE) };
    let queues = queues(&network, &request)?;
    let number = queues.iter().map(|queue| queue.as_fd().as_raw_fd()).next().context("a queue")?;
    let port = format!("host=tap:,fd={number}");
    let switch = Switch::start_in(&network, &[GUEST_PORT, &port])?;
    network.ip(&["link", "del", "rw0"])?;
    switch.wait_for_log("the interface was deleted", LIMIT)?;
    network.run("ip tuntap add dev rw0 mode tap vnet_hdr multi_queue")?;
    switch.wait_for_log("attached to the interface again", LIMIT)?;
    network.address("rw0", HOST)?;
    network.ip(&["link", "set", "rw0", "up"])?;
    Asker::connect(&switch)?.reach()?;
    let log = switch.stop()?;
    assert_eq!(lines(&log, "ERROR"), 1, "{log}");
    Ok(())
}

/// Runs this, and what it starts, where the kernel refuses a call. Once in a test, and first: all programs are started by
/// the thread that the first one has started.
fn where_refused<R: Send>(call: Call, run: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let refused = || {
        refuse(call)?;
        run()
    };
    let result = thread::scope(|scope| scope.spawn(refused).join());
    result.ok().context("the thread panicked")?
}

#[test]
fn a_tap_works_where_io_uring_is_not_allowed() -> Result<()> {
    let network = Network::new()?;
    let start = || Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0"]);
    let switch = where_refused(Call::Setup, start)?;
    network.address("rw0", HOST)?;
    Asker::connect(&switch)?.reach()?;
    let log = switch.stop()?;
    assert_eq!(lines(&log, "without the kernel's io_uring"), 1, "{log}");
    assert_eq!(lines(&log, "WARN") + lines(&log, "ERROR"), 0, "{log}");
    Ok(())
}

/// Rtnetlink never answers, and the switch waits for it.
#[test]
fn a_start_that_takes_long_can_be_ended() -> Result<()> {
    let network = Network::new()?;
    let program = binary()?;
    let program = where_refused(Call::Hear, || {
        let mut command = network.command(program);
        command.args(["run", "--port", "host=tap:rw0,persistent=on"]);
        Program::start("host", "ringway run", command)
    })?;
    let status = format!("/proc/{}/status", program.pid());
    let catches_term = || -> Result<bool> {
        let status = std::fs::read_to_string(&status)?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.context("a mask")?.trim(), 16)?;
        Ok(caught & (1 << (Signal::TERM.as_raw() - 1)) != 0)
    };
    let deadline = Instant::now() + LIMIT;
    while !catches_term()? {
        ensure!(Instant::now() < deadline, "waited {LIMIT:?} for the switch to begin");
        thread::sleep(Duration::from_millis(5));
    }
    program.signal(Signal::TERM)?;
    let output = program.into_job().wait(LIMIT)?;
    println!("{}", output.text());
    ensure!(output.status == 0 && !output.text().contains("ready"), "{}", output.text());
    ensure!(!exists(&network, "rw0")?, "it was left behind");
    Ok(())
}

#[test]
fn a_link_that_goes_down_takes_the_port_down() -> Result<()> {
    let network = Network::new()?;
    let other_port = "vm2=vhost-user:vm2.sock";
    let switch = Switch::start_in(&network, &[GUEST_PORT, other_port, "host=tap:rw0"])?;
    network.address("rw0", HOST)?;
    let mut guest = Asker::connect(&switch)?;
    let mut other = Guest::connect(&switch.path("vm2.sock"), &Options::default())?;
    let host = guest.reach()?;

    // Frames to the host are nobody else's, as long as it is known where the host is.
    guest.send_to(host, 1)?;
    network.ip(&["link", "set", "rw0", "down"])?;
    switch.wait_for_log("down port=\"host\"", LIMIT)?;
    for mark in 2..12 {
        guest.send_to(host, mark)?;
    }
    assert_eq!(next_mark(&mut other)?, 2, "frames are flooded from then on");
    network.ip(&["link", "set", "rw0", "up"])?;
    switch.wait_for_log("up port=\"host\"", LIMIT)?;
    guest.reach()?;

    let log = switch.stop()?;
    // The first one may have come when it was down already.
    let down = dropped(&log, "host", "receiver_down")?;
    assert!((10..=11).contains(&down), "{down}: {log}");
    Ok(())
}

#[test]
fn a_tap_that_was_deleted_and_is_there_again() -> Result<()> {
    for (options, keys, kind) in
        [(&[][..], "", ""), (&["--workers", "2"], ",queue-pairs=2", "multi_queue")]
    {
        let network = Network::new()?;
        let port = format!("host=tap:rw0,mtu=1400{keys}");
        let switch = Switch::start_in_with(&network, options, &[GUEST_PORT, &port])?;
        network.address("rw0", HOST)?;
        let mut guest = Asker::connect(&switch)?;
        guest.reach()?;
        for time in 1..=2 {
            network.ip(&["link", "del", "rw0"])?;
            wait_for_lines(&switch, "the interface was deleted", time)?;
            for _ in 0..10 {
                guest.ask(60)?;
            }
            // What comes first is not what is wanted. It is said once, and nothing is made in its place.
            network.ip(&["link", "add", "rw0", "type", "bridge"])?;
            wait_for_lines(&switch, "is no tap interface, but one of kind bridge", time)?;
            network.ip(&["link", "del", "rw0"])?;
            ensure!(!exists(&network, "rw0")?, "the switch has made it again");

            network.run(&format!("ip tuntap add dev rw0 mode tap vnet_hdr {kind}"))?;
            wait_for_lines(&switch, "attached to the interface again", time)?;
            network.address("rw0", HOST)?;
            let tap = link(&network, "rw0")?;
            assert!(is_up(&tap) && tap["mtu"] == 1400, "as at first: {tap}");
            guest.reach()?;
        }
        let log = switch.stop()?;
        assert_eq!(dropped(&log, "host", "receiver_down")?, 20, "{log}");
        assert_eq!(lines(&log, "ERROR"), 4, "each said once: {log}");
        assert!(exists(&network, "rw0")?, "it was somebody else's");
    }
    Ok(())
}

#[test]
fn a_tap_that_moves_to_another_namespace_goes_on() -> Result<()> {
    let (network, other) = (Network::new()?, Network::new()?);
    let switch = Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0"])?;
    let namespace = other.namespace().context("it is private")?;
    network.ip(&["link", "set", "rw0", "netns", namespace])?;
    switch.wait_for_log("in another network namespace", LIMIT)?;
    other.address("rw0", HOST)?;
    other.ip(&["link", "set", "rw0", "up"])?;
    let mut guest = Asker::connect(&switch)?;
    guest.reach()?;
    // One of its name that comes in its place is not its own, neither meanwhile nor afterwards.
    network.tap("rw0")?;
    other.ip(&["link", "del", "rw0"])?;
    switch.wait_for_log("the interface was deleted in another network namespace", LIMIT)?;
    // Nobody has it open.
    drop(queues(&network, &Request::new("rw0", Kind::Tap, NetHeader::SIZE))?);
    let log = switch.stop()?;
    assert_eq!(lines(&log, "ERROR"), 1, "{log}");
    assert!(!log.contains("again"), "{log}");
    Ok(())
}

/// The switch hears nothing of it: there was more news than its socket holds.
#[test]
fn a_tap_that_moves_unheard_goes_on() -> Result<()> {
    let (network, other) = (Network::new()?, Network::new()?);
    let switch = Switch::start_in(&network, &[GUEST_PORT, "host=tap:rw0"])?;
    let pid = i32::try_from(switch.pid()).ok().and_then(Pid::from_raw).context("its pid")?;
    kill_process(pid, Signal::STOP)?;
    // Each is a message of more than a kibibyte, and a socket holds some 200 KiB.
    let changes = "for n in $(seq 1000); do echo link set lo mtu $((2000 + n)); done";
    network.run(&format!("{changes} | ip -batch -"))?;
    let namespace = other.namespace().context("it is private")?;
    network.ip(&["link", "set", "rw0", "netns", namespace])?;
    kill_process(pid, Signal::CONT)?;
    switch.wait_for_log("in another network namespace", LIMIT)?;
    other.address("rw0", HOST)?;
    other.ip(&["link", "set", "rw0", "up"])?;
    Asker::connect(&switch)?.reach()?;
    switch.stop()?;
    Ok(())
}

#[test]
fn inherited_descriptors_of_another_namespace() -> Result<()> {
    let (network, other) = (Network::new()?, Network::new()?);
    let queues = queues(&other, &Request::new("rw0", Kind::Tap, NetHeader::SIZE))?;
    other.address("rw0", HOST)?;
    other.ip(&["link", "set", "rw0", "up"])?;
    // It is called the same, even has the same address, and is another.
    network.tap("rw0")?;
    let address = link(&other, "rw0")?["address"].as_str().context("an address")?.to_owned();
    network.ip(&["link", "set", "rw0", "address", &address])?;
    let fd = queues.iter().map(|queue| queue.as_fd().as_raw_fd()).next().context("a queue")?;
    let port = format!("host=tap:rw0,fd={fd}");
    let output = ringway_in(&network, true, &["run", "--port", &format!("{port},mtu=1400")])?;
    println!("{}", output.text());
    ensure!(output.status == 1 && output.text().contains("is not in this network namespace"));
    let switch = Switch::start_in(&network, &[GUEST_PORT, &port])?;
    switch.wait_for_log("in another network namespace", LIMIT)?;
    network.ip(&["link", "del", "rw0"])?;
    Asker::connect(&switch)?.reach()?;
    let log = switch.stop()?;
    assert_eq!(lines(&log, "ERROR"), 0, "{log}");
    Ok(())
}

#[test]
fn mtus_that_differ_are_said_once_and_what_is_too_long_is_counted() -> Result<()> {
    let network = Network::new()?;
    let ports = ["vm1=vhost-user:vm1.sock,mtu=9000", "vm2=vhost-user:vm2.sock", "host=tap:rw0"];
    let switch = Switch::start_in(&network, &ports)?;
    network.address("rw0", HOST)?;
    // Of a guest that is told nothing it is known what it has, unless somebody tells it in there.
    let warning = "port `vm2` has an MTU of 1500, and port `vm1` one of 9000";
    switch.wait_for_log(warning, LIMIT)?;
    let mut guest = Asker::connect(&switch)?;
    guest.reach()?;
    for _ in 0..10 {
        guest.ask(2000)?;
    }
    guest.reach()?;
    network.ip(&["link", "set", "rw0", "mtu", "9000"])?;
    switch.wait_for_log("mtu=9000", LIMIT)?;
    guest.reach_with(2000)?;
    let log = switch.stop()?;
    assert_eq!(lines(&log, "WARN"), 1, "{log}");
    assert_eq!(dropped(&log, "host", "over_mtu")?, 10, "{log}");
    Ok(())
}

#[test]
fn what_cannot_be_says_why_and_leaves_nothing_behind() -> Result<()> {
    let network = Network::new()?;
    let used = Switch::start_in(&network, &[GUEST_PORT, "host=tap:used0"])?;
    for command in [
        "ip link add lan0 type bridge",
        "ip tuntap add dev tun0 mode tun",
        "ip tuntap add dev several0 mode tap vnet_hdr multi_queue",
        "ip tuntap add dev single0 mode tap vnet_hdr",
        "ip tuntap add dev other0 mode tap vnet_hdr user root",
        "ip tuntap add dev own0 mode tap vnet_hdr user nobody",
    ] {
        network.run(command)?;
    }
    let null = open("/dev/null", OFlags::RDWR, Mode::empty())?;
    let no_tap = format!("host=tap:,fd={}", null.as_raw_fd());
    let before = network.run("ip -brief link")?;
    let (root, nobody) = (true, false);
    let cases: [(bool, &str, &[&str]); 17] = [
        (nobody, "host=tap:rw0", &["`rw0`: there is none", "CAP_NET_ADMIN", "ip tuntap", "`fd`"]),
        (nobody, "host=tap:tap%d", &["`tap%d`: there is none", "CAP_NET_ADMIN"]),
        (nobody, "host=tap:other0", &["`other0`: it is somebody else's", "CAP_NET_ADMIN", "`fd`"]),
        (nobody, "host=tap:own0,mtu=9000", &["CAP_NET_ADMIN", "ip link set dev own0 mtu 9000"]),
        (root, "host=tap:used0", &["`used0`: in use by another program"]),
        (root, "host=tap:lan0", &["`lan0`: is no tap interface, but one of kind bridge"]),
        (root, "host=tap:tun0", &["`tun0`: is no tap interface, but one of kind tun"]),
        (root, "host=tap:several0", &["`several0`: is made for several queues"]),
        (root, "host=tap:single0,queue-pairs=2", &["`single0`: has a single queue"]),
        (root, "host=tap:rw0,bridge=br0", &["no bridge `br0`", "ip link add br0 type bridge"]),
        (root, "host=tap:rw0,persistent=on,bridge=tun0", &["`tun0` is no bridge"]),
        (root, "host=tap:rw0,persistent=on,owner=no-such-user", &["no user `no-such-user`"]),
        (root, "host=tap:a234567890123456", &["`a234567890123456`", "1 to 15 bytes"]),
        (root, "host=tap:,fd=99", &["port `host`: descriptor 99 was not inherited"]),
        (root, &no_tap, &["port `host`: descriptor", "no descriptor of a tap or tun interface"]),
        (root, "host=tap:tap%d,persistent=on", &["`persistent`", "pattern `tap%d`", "a name"]),
        (root, "host=tap:rw0,up=no", &["did you mean `off`?"]),
    ];
    for (privileged, port, words) in cases {
        let output = ringway_in(&network, privileged, &["run", "--port", port])?;
        let text = output.text();
        println!("--port {port}\n{text}");
        ensure!(output.status == 1, "it ended with {}: {text}", output.status);
        for word in words {
            ensure!(text.contains(word), "no word of `{word}`: {text}");
        }
    }
    // A later port is what fails.
    let ports = ["--port", "host=tap:rw0,persistent=on", "--port", "lan=tap:lan0"];
    let output = ringway_in(&network, root, &[&["run"], &ports[..]].concat())?;
    ensure!(output.status == 1 && output.text().contains("`lan0`"), "{}", output.text());
    assert_eq!(network.run("ip -brief link")?, before);
    used.stop()?;
    Ok(())
}
