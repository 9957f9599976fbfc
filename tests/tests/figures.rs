//! What the switch costs, and how fast it is. These tests measure, so they run alone: `.config/nextest.toml` sees to it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::gettid;
use serde_json::Value;
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
/// The ratio that is asked for, which noise does not reach. The work of the two emulated guests takes nearly all of two processors, so both
/// ways are about as fast, and one run differs from the next by a quarter: the median of all rounds still by a
/// twelfth. What the ratio is on the day is printed here, and measured by the benchmark `peers`.
const LEAST_RATIO: f64 = 0.8;
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
fn as_fast_as_taps_and_a_bridge() -> Result<()> {
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
    while ours.len() < ROUNDS || (ratio(&ours, &baseline) < LEAST_RATIO && ours.len() < MOST_ROUNDS)
    {
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
    assert!(ratio >= LEAST_RATIO, "much slower than taps and a bridge");
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

/// Ports that come by one reload, and go by another.
const MANY_PORTS: usize = 256;
/// Those of them with a guest that has talked, each by so many addresses.
const MANY_GUESTS: usize = 128;
const ADDRESSES: u8 = 8;
/// Each reload is measured so often.
const RELOADS: usize = 5;
/// Far more than is said of a machine that does nothing else.
const RELOAD_LIMIT: Duration = Duration::from_millis(500);
/// What a reload may add to the largest gap that there is without one: the best of [`RELOADS`] to the best of as many. Three times what it
/// is to add, for what builds beside it do.
const GAP_LIMIT: Duration = Duration::from_millis(3);
/// The same of the medians: most reloads hold nobody up, either.
const STALL_LIMIT: Duration = Duration::from_millis(30);
/// Where the sockets of the many ports are: a file system in memory, as /run is. A disk's may take as long to make and to remove them as
/// all the rest takes.
const MEMORY: &str = "/dev/shm";
/// A frame is sent so long after the last one.
const PACE: Duration = Duration::from_micros(100);
/// Whatever is waited for happens within this time.
const LIMIT: Duration = Duration::from_secs(20);

/// 256 ports come, change and go by reloads, and two guests that have nothing to do with that look how long no frame comes from the
/// one to the other, and how long it is without a reload. The worker has one processor and goes first there; the guests go first on
/// the other, which control and all else share with them. So a gap is what the worker did not do, whatever else the machine does.
#[test]
fn a_reload_of_256_ports_is_quick_and_others_hardly_notice() -> Result<()> {
    binary()?;
    let [worker, others] = two_processors()?;
    bind(others)?;
    // For the guests' rings.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?;

    let directory = tempfile::Builder::new().prefix("ringway-").tempdir_in(MEMORY)?;
    let file = directory.path().join("ringway.toml");
    let socket = |name: &str| directory.path().join(format!("{name}.sock"));
    let port = |name: &str, keys: &str| {
        let path = socket(name).display().to_string();
        format!("[port.{name}]\ntype = \"vhost-user\"\npath = \"{path}\"\n{keys}")
    };
    let few = format!(
        "mode = \"interrupt\"\ncpus = \"{worker}\"\n{}",
        port("vm1", "") + &port("vm2", "")
    );
    let many = |keys: &str| {
        (0..MANY_PORTS).fold(few.clone(), |all, n| all + &port(&format!("more{n}"), keys))
    };
    let rate = |rate: u8, more: &str| many(&format!("rate-from = \"{rate}Gbit\"\n{more}"));
    let [come, limited, changed, anew] =
        [many(""), rate(1, ""), rate(2, ""), rate(2, "queue-pairs = 2\n")];
    fs::write(&file, &few)?;
    let path = file.display().to_string();
    let switch = Switch::start_with(&["--config", &path, "--control", "control.sock"], &[])?;
    let control = switch.path("control.sock").display().to_string();
    let thread = self::worker(&switch)?;
    let thread = thread.file_name().and_then(|name| name.to_str()?.parse().ok());
    let_first(thread.and_then(Pid::from_raw).context("a thread")?)?;
    let connect =
        |n: u8| guest::Guest::connect(&socket(&format!("vm{n}")), &guest::Options::default());
    let (mut one, mut two) = (connect(1)?, connect(2)?);

    let (is_started, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (reloads, came) = thread::scope(|scope| {
        let pair = scope.spawn(|| keep_pace(&mut one, &mut two, &is_started, &is_over));
        let reload = |text: &str| -> Result<Measured> {
            fs::write(&file, text)?;
            let start = Instant::now();
            let output = ringway(&[], &["reload", "--control", &control])?;
            let end = Instant::now();
            ensure!(output.status == 0, "{}", output.text());
            // As long again without one.
            thread::sleep(end - start);
            Ok(Measured { start, end, quiet: Instant::now() })
        };
        let round = || -> Result<[Measured; 5]> {
            let come = reload(&come)?;
            let guests = many_guests(&socket)?;
            let known = known_addresses(&control)?;
            // Beside those of the two.
            let all = 2 + (MANY_GUESTS * usize::from(ADDRESSES)) as u64;
            ensure!(known >= all, "{known} of {all} addresses");
            let limited = reload(&limited)?;
            let changed = reload(&changed)?;
            let anew = reload(&anew)?;
            drop(guests);
            let guests = many_guests(&socket)?;
            let go = reload(&few)?;
            drop(guests);
            Ok([come, limited, changed, anew, go])
        };
        let reloads = (|| {
            wait_for("the guests' first frame", || Ok(is_started.load(Relaxed)))?;
            (0..RELOADS).map(|_| round()).collect::<Result<Vec<_>>>()
        })();
        is_over.store(true, Relaxed);
        let came = pair.join().ok().context("the guests panicked")?;
        anyhow::Ok((reloads?, came?))
    })?;
    drop((one, two));
    switch.stop()?;

    println!("{MANY_PORTS} ports; medians of {RELOADS}, and the least and the most:");
    let mut measured = Vec::new();
    for (number, what) in
        ["they come", "each gets a rate", "each gets another", "they are made anew", "they go"]
            .iter()
            .enumerate()
    {
        let all = || reloads.iter().map(|round| &round[number]);
        let took = Summary::of(all().map(|reload| Ok(reload.end - reload.start)))?;
        let with = Summary::of(all().map(|reload| largest_gap(&came, reload.start, reload.end)))?;
        let without =
            Summary::of(all().map(|reload| largest_gap(&came, reload.end, reload.quiet)))?;
        println!("{what}: took {took}; largest gap {with}, and as long without a reload {without}");
        measured.push((took, with, without));
    }
    for (took, with, without) in measured {
        // The best of five with a reload, and the best of five without one. What else the machine does adds to them, and takes
        // nothing away: what is the reload's own is in the least. Beside builds, the medians say more of those.
        assert!(took.least < RELOAD_LIMIT && with.least < without.least + GAP_LIMIT);
        assert!(with.median < without.median + STALL_LIMIT);
    }
    Ok(())
}

/// When a reload began and ended, and until when there was none after it.
struct Measured {
    start: Instant,
    end: Instant,
    quiet: Instant,
}

/// Of some times.
struct Summary {
    median: Duration,
    least: Duration,
    most: Duration,
}

impl Summary {
    fn of(times: impl Iterator<Item = Result<Duration>>) -> Result<Summary> {
        let mut times = times.collect::<Result<Vec<_>>>()?;
        times.sort();
        let (least, most) = times.first().zip(times.last()).context("no times")?;
        Ok(Summary { median: times[times.len() / 2], least: *least, most: *most })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most } = self;
        write!(f, "{median:.2?} ({least:.2?} to {most:.2?})")
    }
}

/// The longest time without a frame between two instants.
fn largest_gap(came: &[Instant], start: Instant, end: Instant) -> Result<Duration> {
    let pairs = came.windows(2).filter(|pair| pair[1] > start && pair[0] < end);
    let gap = pairs.map(|pair| pair[1] - pair[0]).max();
    let is_after = came.last().is_some_and(|last| *last >= end);
    gap.filter(|_| is_after).context("frames ended before the measurement did")
}

/// Has one guest send another, whom the bridge knows, a frame every [`PACE`], until one has come after the end. Returns when
/// one had come, as far as that is seen by looking so often.
fn keep_pace(
    one: &mut guest::Guest,
    two: &mut guest::Guest,
    is_started: &AtomicBool,
    is_over: &AtomicBool,
) -> Result<Vec<Instant>> {
    let (first, second) = ([0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]);
    let frame = |to: [u8; 6], from: [u8; 6]| [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat();
    // Frames to an address that the bridge does not know would go to all ports.
    let (frame, hello) = (frame(second, first), frame(first, second));
    ensure!(two.driver().send(Default::default(), &hello)?, "no room for a frame");
    two.flush();
    wait_for("the bridge to know the receiver", || {
        let came = one.driver().receive(|came| came.frame == hello)?;
        one.flush();
        Ok(came == Some(true))
    })?;
    let_first(gettid())?;
    let (mut came, mut end) = (Vec::with_capacity(1 << 20), None::<Instant>);
    while end.is_none_or(|end| came.last().is_none_or(|last| *last <= end)) {
        ensure!(end.is_none_or(|end| end.elapsed() < LIMIT), "waited {LIMIT:?} for a last frame");
        one.driver().reclaim()?;
        // If there is no room, the worker has not taken what was sent before.
        one.driver().send(Default::default(), &frame)?;
        one.flush();
        thread::sleep(PACE);
        let mut has_come = false;
        while two.driver().receive(|_| ())?.is_some() {
            has_come = true;
        }
        two.flush();
        if has_come {
            came.push(Instant::now());
            is_started.store(true, Relaxed);
        }
        if end.is_none() && is_over.load(Relaxed) {
            end = Some(Instant::now());
        }
    }
    Ok(came)
}

/// Guests behind some of the many ports, of whom the bridge knows all addresses.
fn many_guests(socket: &dyn Fn(&str) -> PathBuf) -> Result<Vec<guest::Guest>> {
    let guest = |number: usize| -> Result<guest::Guest> {
        let path = socket(&format!("more{number}"));
        let options = guest::Options { ring_size: 32, ..Default::default() };
        let mut guest = guest::Guest::connect(&path, &options)?;
        for address in 0..ADDRESSES {
            // To itself, so that it goes no further.
            let own = [2, 0, 0, u8::try_from(number)?, 0, address];
            let frame = [&own[..], &own, &[0x88, 0xb5], &[0; 46]].concat();
            ensure!(guest.driver().send(Default::default(), &frame)?, "no room for a frame");
        }
        guest.flush();
        wait_for("the switch to take a guest's frames", || {
            guest.driver().reclaim()?;
            Ok(guest.driver().in_flight() == 0)
        })?;
        Ok(guest)
    };
    (0..MANY_GUESTS).map(guest).collect()
}

/// How many addresses the bridge knows.
fn known_addresses(control: &str) -> Result<u64> {
    let output = ringway(&[], &["stats", "--control", control, "--json"])?;
    let report: Value = serde_json::from_str(&output.text())?;
    let named = |list: &Value, name: &str| {
        let mut items = list.as_array().into_iter().flatten();
        items.find(|item| item["name"] == name).cloned().unwrap_or_default()
    };
    let addresses = named(&named(&report["apps"], "bridge")["own"], "addresses");
    addresses["value"].as_u64().with_context(|| format!("no number of addresses in {report}"))
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_there()? {
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        thread::yield_now();
    }
    Ok(())
}
