//! What lies between a port and the bridge, and networks of apps and links of one's own, in the program as it runs: what
//! arrives, what is dropped, and what is said of it.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use wire::virtio::NetHeader;

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);

/// Frames that are sent of each kind: fewer than a ring holds.
const FRAMES: u8 = 100;

/// Two embedded guests: one whose port has something between it and the bridge, and one whose has not.
struct Pair([Guest; 2]);

impl Pair {
    fn connect(switch: &Switch) -> Result<Pair> {
        let connect =
            |n: u8| Guest::connect(&switch.path(&format!("vm{n}.sock")), &Options::default());
        Ok(Pair([connect(1)?, connect(2)?]))
    }

    /// Sends frames from one to the other, and returns those that arrived. The last of them has to.
    fn send(&mut self, from: usize, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let last = frames.last().expect("there are frames");
        self.send_until(from, frames, |arrived| arrived.last() == Some(last))
    }

    /// The same until this has arrived, and all frames have been taken.
    fn send_until(
        &mut self,
        from: usize,
        frames: &[Vec<u8>],
        is_all: impl Fn(&[Vec<u8>]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let [one, two] = &mut self.0;
        let (sender, receiver) = if from == 0 { (one, two) } else { (two, one) };
        for frame in frames {
            ensure!(sender.driver().send(NetHeader::default(), frame)?, "no room for a frame");
        }
        sender.flush();
        let (mut arrived, deadline) = (Vec::new(), Instant::now() + LIMIT);
        loop {
            while let Some(frame) = receiver.driver().receive(|received| received.frame.to_vec())? {
                arrived.push(frame);
            }
            receiver.flush();
            sender.driver().reclaim()?;
            if is_all(&arrived) && sender.driver().in_flight() == 0 {
                return Ok(arrived);
            }
            ensure!(Instant::now() < deadline, "{} frames arrived within {LIMIT:?}", arrived.len());
            receiver.wait(Duration::from_millis(10))?;
        }
    }
}

const ONE: u8 = 1;
const TWO: u8 = 2;

/// These frames, and behind them one that has to arrive.
fn and_then(frames: impl Iterator<Item = Vec<u8>>, marker: Vec<u8>) -> Vec<Vec<u8>> {
    frames.chain([marker]).collect()
}

#[test]
fn a_filter_drops_what_it_does_not_accept_and_lets_answers_pass() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("ringway.toml");
    // As `tcpdump -ddd -y EN10MB 'ip and udp dst port 53'` prints it; and nothing at all.
    fs::write(
        &config,
        r#"
        [port.vm1]
        type = "vhost-user"
        path = "vm1.sock"
        filter-from = """11
        40 0 0 12
        21 0 8 2048
        48 0 0 23
        21 0 6 17
        40 0 0 20
        69 4 0 8191
        177 0 0 14
        72 0 0 16
        21 0 1 53
        6 0 0 262144
        6 0 0 0"""
        filter-to = "1,6 0 0 0"
        allow-replies = true
        "#,
    )?;
    let options = ["--config", config.to_str().expect("the path is text")];
    let switch = Switch::start_with(&options, &["vm2=vhost-user:vm2.sock"])?;
    let mut pair = Pair::connect(&switch)?;
    let asked = udp(ONE, TWO, [1000, 53], 0);
    let questions = (1..=FRAMES).map(|number| udp(ONE, TWO, [1000, 54], number));
    let arrived = pair.send(0, &and_then(questions, asked.clone()))?;
    ensure!(arrived == [asked], "{} frames arrived", arrived.len());
    // What answers to it passes, and nothing else does.
    let answer = udp(TWO, ONE, [53, 1000], 0);
    let others = (1..=FRAMES).map(|number| udp(TWO, ONE, [53, 1001], number));
    let arrived = pair.send(1, &and_then(others, answer.clone()))?;
    ensure!(arrived == [answer], "{} frames arrived", arrived.len());
    let report = switch.stop()?;
    ensure!(report.contains("vm1.filter: dropped: filtered 200"), "{report}");
    ensure!(report.contains("bridge: dropped: none"), "{report}");
    Ok(())
}

/// A program without libpcap says how to get one that has it.
#[test]
fn an_expression_needs_a_build_with_libpcap() -> Result<()> {
    let port = "vm1=vhost-user:vm1.sock,filter-from=udp port 53";
    let output = ringway(&[], &["run", "--port", port])?;
    let text = String::from_utf8_lossy(&output.bytes);
    ensure!(output.status == 1, "{text}");
    ensure!(text.contains("wrong value for `filter-from`: the filter \"udp port 53\""), "{text}");
    ensure!(text.contains("--features filter-expressions"), "{text}");
    Ok(())
}

/// A burst passes, and what comes with it does not; each direction has its own.
#[test]
fn a_flow_is_policed() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,rate-from=1frames,burst-from=10frames,rate-to=1bit,burst-to=600bytes",
        "vm2=vhost-user:vm2.sock",
    ])?;
    let mut pair = Pair::connect(&switch)?;
    let frames: Vec<_> = (1..=FRAMES).map(|number| udp(ONE, TWO, [1, 2], number)).collect();
    let arrived = pair.send_until(0, &frames, |arrived| arrived.len() >= 10)?;
    ensure!(arrived == frames[..10], "{} frames arrived", arrived.len());
    let frames: Vec<_> = (1..=FRAMES).map(|number| udp(TWO, ONE, [2, 1], number)).collect();
    let arrived = pair.send_until(1, &frames, |arrived| arrived.len() >= 10)?;
    ensure!(arrived == frames[..10], "{} frames arrived", arrived.len());
    let report = switch.stop()?;
    let line = report.lines().find(|line| line.contains("vm1.police: dropped: policed "));
    println!("{line:?}");
    ensure!(line.is_some_and(|line| line.ends_with("policed 180")), "{report}");
    Ok(())
}

#[test]
fn a_port_speaks_for_itself_alone() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,allow-macs=52:54:00:00:00:01,allow-ips=10.0.0.1",
        "vm2=vhost-user:vm2.sock",
    ])?;
    let mut pair = Pair::connect(&switch)?;
    let honest = udp(ONE, TWO, [1, 2], 0);
    // Half of them claim another's address of Ethernet, and half of them one of IP.
    let spoofed = (0..FRAMES).map(|number| {
        let mut frame = udp(ONE, TWO, [1, 2], number);
        let at = if number % 2 == 0 { 11 } else { 29 };
        frame[at] = 3;
        frame
    });
    let arrived = pair.send(0, &and_then(spoofed, honest.clone()))?;
    ensure!(arrived == [honest], "{} frames arrived", arrived.len());
    // What is sent to it passes, from whomever it is.
    let frames: Vec<_> = (1..=FRAMES).map(|number| udp(TWO, ONE, [2, 1], number)).collect();
    ensure!(pair.send(1, &frames)? == frames);
    let report = switch.stop()?;
    ensure!(report.contains("vm1.anti-spoof: dropped: spoofed 100"), "{report}");
    Ok(())
}

#[test]
fn a_storm_is_calmed_and_single_stations_are_reached() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,storm-broadcast=1frames,storm-multicast=1frames",
        "vm2=vhost-user:vm2.sock",
    ])?;
    let mut pair = Pair::connect(&switch)?;
    let to = |destination: [u8; 6], number| {
        let mut frame = udp(ONE, TWO, [1, 2], number);
        frame[..6].copy_from_slice(&destination);
        frame
    };
    let broadcast = (1..=FRAMES / 2).map(|number| to([0xff; 6], number));
    let multicast = (1..=FRAMES / 2).map(|number| to([1, 0, 0x5e, 0, 0, 1], number));
    let last = udp(ONE, TWO, [1, 2], 0);
    let frames = and_then(broadcast.chain(multicast), last.clone());
    let arrived = pair.send(0, &frames)?;
    let expected = [frames[0].clone(), frames[usize::from(FRAMES) / 2].clone(), last];
    ensure!(arrived == expected, "{} frames arrived", arrived.len());
    let report = switch.stop()?;
    ensure!(report.contains("vm1.storm: dropped: storm 98"), "{report}");
    Ok(())
}

/// A network without the bridge that ports are joined to: what vm1 sends goes by a tee to a sink, and by rates to a bridge
/// of another name; a source fills another sink.
const NETWORK: &str = r#"
links = [
    "vm1.tx -> split.in", "split.count -> seen.in", "split.on -> slow.port",
    "slow.network -> lab.one", "lab.one -> slow.network", "slow.port -> vm1.rx",
    "vm2.tx -> lab.two", "lab.two -> vm2.rx",
    "made.out -> swallowed.in",
]

[port.vm1]
type = "vhost-user"
path = "vm1.sock"

[port.vm2]
type = "vhost-user"
path = "vm2.sock"

[app.split]
type = "tee"

[app.seen]
type = "sink"

[app.slow]
type = "police"
rate-from = "1frames"
burst-from = "10frames"

[app.lab]
type = "bridge"

[app.made]
type = "source"
rate = "100000frames"
frames = 50

[app.swallowed]
type = "sink"
"#;

/// As it was written, and as `ringway config show --expanded` writes it out.
#[test]
fn guests_talk_through_a_network_of_ones_own() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("ringway.toml");
    let path = config.to_str().context("a path that is not UTF-8")?;
    fs::write(&config, NETWORK)?;
    let expanded = ringway(&[], &["config", "show", "--expanded", "--config", path])?;
    ensure!(expanded.status == 0, "{}", String::from_utf8_lossy(&expanded.bytes));
    for text in [NETWORK.as_bytes(), &expanded.bytes] {
        fs::write(&config, text)?;
        let switch = Switch::start_with(&["--config", path], &[])?;
        let mut pair = Pair::connect(&switch)?;
        let back: Vec<_> = (1..=FRAMES).map(|number| udp(TWO, ONE, [2, 1], number)).collect();
        ensure!(pair.send(1, &back)? == back);
        let there: Vec<_> = (1..=FRAMES).map(|number| udp(ONE, TWO, [1, 2], number)).collect();
        let arrived = pair.send_until(0, &there, |arrived| arrived.len() >= 10)?;
        ensure!(arrived == there[..10], "{} frames arrived", arrived.len());
        let report = switch.stop()?;
        for line in [
            "slow: dropped: policed 90",
            "seen: 0 frames received, 100 sent, dropped: none",
            "made: 50 frames received, 0 sent, dropped: none",
            "swallowed: 0 frames received, 50 sent, dropped: none",
            "lab: dropped: none",
        ] {
            ensure!(report.contains(line), "no {line:?} in {report}");
        }
        ensure!(!report.contains("bridge"), "{report}");
    }
    Ok(())
}

/// A file has what a port sends and gets, what is dropped further on included, and what is dropped before not; and nobody notices.
#[test]
fn a_port_is_mirrored_to_a_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("copies.pcapng");
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,mirror-to=copies,rate-from=1frames,burst-from=10frames,rate-to=1frames,burst-to=10frames",
        "vm2=vhost-user:vm2.sock",
        &format!("copies=pcap-write:{}", file.display()),
    ])?;
    let mut pair = Pair::connect(&switch)?;
    let there: Vec<_> = (1..=FRAMES).map(|number| udp(ONE, TWO, [1, 2], number)).collect();
    let arrived = pair.send_until(0, &there, |arrived| arrived.len() >= 10)?;
    ensure!(arrived == there[..10], "{} frames arrived", arrived.len());
    let back: Vec<_> = (1..=FRAMES).map(|number| udp(TWO, ONE, [2, 1], number)).collect();
    let arrived = pair.send_until(1, &back, |arrived| arrived.len() >= 10)?;
    ensure!(arrived == back[..10], "{} frames arrived", arrived.len());
    let report = switch.stop()?;
    ensure!(report.contains("vm1.mirror: dropped: none"), "{report}");
    ensure!(report.contains("vm1.police: dropped: policed 180"), "{report}");
    ensure!(captured(&file)? == [&there[..], &back[..10]].concat(), "{report}");
    Ok(())
}

/// What is lost is counted, what is doubled comes twice, and what is late comes late.
#[test]
fn a_port_is_impaired() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,loss-from=50%,seed=5,duplicate-to=100%,delay-to=20ms",
        "vm2=vhost-user:vm2.sock",
    ])?;
    let mut pair = Pair::connect(&switch)?;
    let start = Instant::now();
    let back: Vec<_> = (1..=FRAMES).map(|number| udp(TWO, ONE, [2, 1], number)).collect();
    let arrived = pair.send_until(1, &back, |arrived| arrived.len() >= 2 * back.len())?;
    ensure!(start.elapsed() >= Duration::from_millis(20), "after {:?}", start.elapsed());
    let twice: Vec<_> = back.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
    ensure!(arrived == twice, "{} frames arrived", arrived.len());
    // More of them until one has arrived that was sent behind all others.
    let mut there: Vec<_> = (1..=FRAMES).map(|number| udp(ONE, TWO, [1, 2], number)).collect();
    let mut arrived = pair.send_until(0, &there, |arrived| !arrived.is_empty())?;
    let mut last = udp(ONE, TWO, [1, 3], 0);
    while arrived.last() != Some(&last) {
        last[42] += 1;
        there.push(last.clone());
        arrived.extend(pair.send_until(0, &[last.clone()], |_| true)?);
    }
    let set: HashSet<_> = arrived.iter().collect();
    ensure!(set.len() == arrived.len() && (20..=80).contains(&set.len()), "{} arrived", set.len());
    let lost = there.len() - arrived.len();
    let report = switch.stop()?;
    let line = format!(" frames received, {} sent", arrived.len());
    println!("{lost} were lost\n{report}");
    ensure!(report.contains(&format!("dropped: impaired {lost}")), "{report}");
    ensure!(report.lines().any(|text| text.contains("vm2: ") && text.contains(&line)), "{report}");
    Ok(())
}
