//! What the switch costs, and how fast it is. These tests measure, so they run alone: `.config/nextest.toml` sees to it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringway_tests::*;
use testbed::traffic::{self, Iperf};
use testbed::{Network, Nic, Shell};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];

const READY_LIMIT: Duration = Duration::from_millis(100);
const MEMORY_LIMIT_KIB: u64 = 24 * 1024;
/// How long the idle switch is watched.
const IDLE_TIME: Duration = Duration::from_secs(10);
const IDLE_LIMIT: Duration = Duration::from_millis(100);
/// Times that the idle worker may wake: what guests have to say by themselves. The slowest tick anyone would poll with
/// wakes it more often.
const IDLE_WAKES_LIMIT: u64 = 20;

/// Pairs of runs of iperf3, ours and the baseline's in turns. The medians count, so that one disturbance does not.
const ROUNDS: usize = 5;
/// Rounds at the most, on a machine that is too noisy for the usual number to tell.
const MOST_ROUNDS: usize = 15;
const ROUND_SECONDS: u32 = 3;
/// Retransmissions in one run that say nothing: slow start may lose a segment or two anywhere.
const HANDFUL: u64 = 10;

#[test]
fn ready_at_once() -> Result<()> {
    binary()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let switch = Switch::start(&PORTS)?;
        UnixStream::connect(switch.path("vm1.sock"))?;
        times.push(start.elapsed());
        switch.stop()?;
    }
    times.sort();
    println!("ready to accept a guest after {times:?}");
    assert!(times[times.len() / 2] < READY_LIMIT);
    Ok(())
}

#[test]
fn small_and_quiet() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let [one, two] = two_guests(&switch)?;
    for guest in [&one, &two] {
        // IPv6 speaks by itself.
        guest.run("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")?;
    }
    ping_all(&one, "10.0.0.2", 3)?;
    traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 10_000_000)?;

    let status = Status::of(format!("/proc/{}/status", switch.pid()).into())?;
    let memory = status.number("RssAnon")? + status.number("RssFile")?;
    println!("resident beyond guest memory: {memory} KiB (limit {MEMORY_LIMIT_KIB})");
    assert!(memory < MEMORY_LIMIT_KIB);

    // The guests ask once more who the other is, some seconds after they last talked.
    one.run("ip neigh replace 10.0.0.2 lladdr 52:54:00:00:00:02 dev eth0 nud permanent")?;
    two.run("ip neigh replace 10.0.0.1 lladdr 52:54:00:00:00:01 dev eth0 nud permanent")?;
    let worker = worker(&switch)?;
    let (cpu, wakes) = (processor_time(&switch)?, wakes(&worker)?);
    thread::sleep(IDLE_TIME);
    let (cpu_after, wakes_after) = (processor_time(&switch)?, self::wakes(&worker)?);
    let (cpu, idle_wakes) = (cpu_after - cpu, wakes_after - wakes);
    println!(
        "idle for {IDLE_TIME:?}: {cpu:?} of processor time, the worker woke {idle_wakes} times"
    );
    assert!(cpu < IDLE_LIMIT && idle_wakes < IDLE_WAKES_LIMIT);

    ping_all(&one, "10.0.0.2", 1)?;
    let lone = self::wakes(&worker)? - wakes_after;
    println!("a lone ping woke it {lone} times");
    assert!(lone > 0, "it was awake");
    println!("{}", switch.stop()?);
    Ok(())
}

#[test]
fn faster_than_taps_and_a_bridge() -> Result<()> {
    let network = Network::new()?;
    network.bridge("br0")?;
    let switch = Switch::start(&PORTS)?;
    // The same two guests, with a second card each for the comparison.
    let with_tap = |n: u8| {
        let tap = format!("tap{n}");
        network.tap(&tap)?;
        network.attach(&tap, "br0")?;
        let baseline = Nic::tap(&tap).mac(&format!("52:54:00:00:01:0{n}"));
        Ok::<_, anyhow::Error>(guest(n, nic(&switch, n))?.nic(baseline).network(&network))
    };
    let [one, two] = boot([with_tap(1)?, with_tap(2)?])?;
    for (guest, n) in [(&one, 1), (&two, 2)] {
        plug_in(guest, n)?;
        guest.run(&format!("ip addr add 10.0.1.{n}/24 dev eth1 && ip link set eth1 up"))?;
    }

    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    // Of the two runs of each round, which had the same machine: what else it does comes and goes.
    let ratio = |ours: &[Iperf], baseline: &[Iperf]| {
        let pairs = ours.iter().zip(baseline);
        median(pairs.map(|(ours, baseline)| ours.bits_per_second / baseline.bits_per_second))
    };
    while ours.len() < ROUNDS || (ratio(&ours, &baseline) < 1.0 && ours.len() < MOST_ROUNDS) {
        for (address, runs) in [("10.0.0.2", &mut ours), ("10.0.1.2", &mut baseline)] {
            let before = processor_time(&switch)?;
            let run = traffic::iperf(&one, &two, address.parse()?, ROUND_SECONDS, "")?;
            let cpu = processor_time(&switch)? - before;
            println!("{address}: {run:?}, processor time of the switch {cpu:?}");
            runs.push(run);
        }
    }
    let ratio = ratio(&ours, &baseline);
    let rate = |runs: &[Iperf]| median(runs.iter().map(|run| run.bits_per_second)) / 1e9;
    let retransmits = |runs: &[Iperf]| median(runs.iter().map(|run| run.retransmits as f64)) as u64;
    println!(
        "iperf3: ringway {:.2} Gbit/s, taps and bridge {:.2} Gbit/s, ratio {ratio:.2}; Retr {} and {}",
        rate(&ours),
        rate(&baseline),
        retransmits(&ours),
        retransmits(&baseline)
    );
    println!("{}", switch.stop()?);
    assert!(ratio >= 1.0, "slower than taps and a bridge");
    assert!(retransmits(&ours) <= retransmits(&baseline).max(HANDFUL), "frames are lost");
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A `status` file of /proc.
struct Status(String);

impl Status {
    fn of(path: PathBuf) -> Result<Status> {
        Ok(Status(fs::read_to_string(path)?))
    }

    /// The number after `key`; memory is in KiB.
    fn number(&self, key: &str) -> Result<u64> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| *name == key).context("no such line")?;
        Ok(value.split_whitespace().next().unwrap_or_default().parse()?)
    }
}

/// The directory of the worker's thread in /proc.
fn worker(switch: &Switch) -> Result<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{}/task", switch.pid()))?;
    let threads = threads.map(|thread| Ok(thread?.path())).collect::<Result<Vec<_>>>()?;
    let is_worker = |thread: &PathBuf| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("worker"))
    };
    threads.into_iter().find(is_worker).context("no thread called worker")
}

/// How often a thread went to sleep.
fn wakes(thread: &Path) -> Result<u64> {
    Status::of(thread.join("status"))?.number("voluntary_ctxt_switches")
}

/// Processor time that the switch has used, by all its threads, in user and kernel mode.
fn processor_time(switch: &Switch) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", switch.pid()))?;
    // Fields are counted after the name, which may hold anything; the next one is the third.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse);
    let ticks: u64 = ticks.collect::<Result<Vec<u64>, _>>()?.iter().sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs(ticks) / u32::try_from(per_second)?)
}

/// Ports that come by one reload, and go by the next.
const MANY_PORTS: usize = 256;
const RELOAD_LIMIT: Duration = Duration::from_secs(1);
const GAP_LIMIT: Duration = Duration::from_millis(100);

/// Two guests send each other one frame, back and forth, while 256 ports come, change and go by three reloads.
#[test]
fn a_reload_of_256_ports_is_quick_and_others_hardly_notice() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("ringway.toml");
    let port = |name: &str, keys: &str| {
        format!("[port.{name}]\ntype = \"vhost-user\"\npath = \"{name}.sock\"\n{keys}")
    };
    let few = port("vm1", "") + &port("vm2", "");
    let many =
        |keys| (0..MANY_PORTS).fold(few.clone(), |all, n| all + &port(&format!("more{n}"), keys));
    fs::write(&file, &few)?;
    let path = file.display().to_string();
    let switch = Switch::start_with(&["--config", &path, "--control", "control.sock"], &[])?;
    let control = switch.path("control.sock").display().to_string();
    let connect = |n: u8| {
        let path = switch.path(&format!("vm{n}.sock"));
        guest::Guest::connect(&path, &guest::Options::default())
    };
    let (mut one, mut two) = (connect(1)?, connect(2)?);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (reloads, gaps) = thread::scope(|scope| {
        let pair = scope.spawn(|| back_and_forth(&mut one, &mut two, &is_over));
        let reload = |text: &str| -> Result<Duration> {
            fs::write(&file, text)?;
            let start = Instant::now();
            let output = ringway(&[], &["reload", "--control", &control])?;
            let took = start.elapsed();
            anyhow::ensure!(output.status == 0, "{}", String::from_utf8_lossy(&output.bytes));
            Ok(took)
        };
        let reloads = [&many(""), &many("rate-from = \"1Gbit\"\n"), &few].map(|text| reload(text));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let gaps = pair.join().ok().context("the pair panicked")??;
        anyhow::Ok((reloads.into_iter().collect::<Result<Vec<_>>>()?, gaps))
    })?;
    let (frames, gap) = gaps;
    println!("reloads of {MANY_PORTS} ports that come, are policed, and go: {reloads:?}");
    println!("largest gap between {frames} frames of two others: {gap:?}");
    drop((one, two));
    switch.stop()?;
    assert!(reloads.iter().all(|took| *took < RELOAD_LIMIT));
    assert!(gap < GAP_LIMIT);
    Ok(())
}

/// Has two guests send one frame back and forth. Returns how often it crossed, and the longest time that took once.
fn back_and_forth(
    one: &mut guest::Guest,
    two: &mut guest::Guest,
    is_over: &std::sync::atomic::AtomicBool,
) -> Result<(u64, Duration)> {
    let frame = |to: u8, from: u8| {
        [&[0x52, 0x54, 0, 0, 0, to][..], &[0x52, 0x54, 0, 0, 0, from], &[0x88, 0xb5], &[0; 46]]
            .concat()
    };
    let mut ends = [(one, frame(2, 1)), (two, frame(1, 2))];
    let (mut frames, mut longest) = (0, Duration::ZERO);
    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
        let [(from, frame), (to, _)] = &mut ends;
        let start = Instant::now();
        from.driver().reclaim()?;
        anyhow::ensure!(from.driver().send(Default::default(), frame)?, "no room for a frame");
        from.flush();
        while to.driver().receive(|_| ())?.is_none() {
            anyhow::ensure!(start.elapsed() < READY_LIMIT * 100, "frame {frames} did not come");
        }
        to.flush();
        longest = longest.max(start.elapsed());
        frames += 1;
        ends.swap(0, 1);
    }
    Ok((frames, longest))
}
