//! `ringway demo`: the real switch, with two embedded guests instead of virtual machines.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use guest::{Guest, GuestError, Options};
use tokio::task::spawn_blocking;
use wire::ethernet::{EtherType, HEADER_SIZE, MacAddress};
use wire::virtio::NetHeader;

use crate::Stop;
use crate::config::{Config, ControlSocket, PortConfig, PortKind, VhostUser};
use crate::report::Worker;
use crate::switch::Switch;

/// Set when the demonstration is to end at once.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// The time, unless it is time to stop: then the end of all of it.
fn now_or(end: Instant) -> Instant {
    if STOPPING.load(Ordering::Relaxed) { end + LOST } else { Instant::now() }
}

/// Bytes of the frames that are sent, without the Ethernet checksum.
const SIZES: [usize; 4] = [64, 512, 1514, 9014];
/// Guests' addresses, locally administered.
const ADDRESSES: [MacAddress; 2] =
    [MacAddress([0x52, 0x54, 0, 0, 0, 1]), MacAddress([0x52, 0x54, 0, 0, 0, 2])];
/// Frames that a guest handles at once.
const BATCH: usize = 32;
/// Receive buffers' worth of frames that are on their way to a guest at most, as an application with
/// flow control would have it. They fit its ring, so that no frame has to be lost.
const WINDOW: usize = 192;
/// How long after the last frame a guest believes that no more will come.
const QUIET: Duration = Duration::from_millis(20);
/// How long a round trip may take.
const LOST: Duration = Duration::from_secs(1);
/// How often the progress line is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Runs the demonstration, about `seconds` long.
pub async fn demo(seconds: u64, stop: &mut Stop) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let directory = tempfile::Builder::new().prefix("ringway-demo-").tempdir()?;
    let sockets = ["vm1", "vm2"].map(|name| directory.path().join(format!("{name}.sock")));
    let config = config(&sockets);
    let starting = Instant::now();
    let switch = Switch::start(&config).await?;
    let ready = starting.elapsed();
    writeln!(
        out,
        "A switch with two ports is ready after {:.1} ms; two guests connect to it over\n\
         vhost-user, as QEMU would, and send frames to each other.\n",
        ready.as_secs_f64() * 1000.0
    )?;
    let total = Duration::from_secs(seconds);
    let result = tokio::select! {
        result = measure(&switch, &sockets, total) => result.map(|()| true),
        () = stop.asked() => Ok(false),
    };
    // The guests' threads look at this between two frames.
    STOPPING.store(true, Ordering::Relaxed);
    switch.stop().await?;
    if !result? {
        return Ok(());
    }
    writeln!(out, "\n{}", attach_help())?;
    Ok(())
}

fn config(sockets: &[PathBuf]) -> Config {
    let port = |(path, number): (&PathBuf, usize)| {
        let port = VhostUser { queue_pairs: 1, ..VhostUser::new(path.clone()) };
        PortConfig::new(&format!("vm{number}"), PortKind::VhostUser(port))
    };
    Config {
        control: ControlSocket::Off,
        ports: sockets.iter().zip(1..).map(port).collect(),
        ..Config::default()
    }
}

async fn measure(switch: &Switch, sockets: &[PathBuf; 2], total: Duration) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let [first, second] = sockets.clone();
    let connect =
        |path: PathBuf| spawn_blocking(move || Guest::connect(&path, &Options::default()));
    let mut one = connect(first).await??;
    let mut two = connect(second).await??;

    writeln!(out, "   frame        frames/s, each way      both ways   lost   worker busy")?;
    // Equal parts for the sizes, the round trips and the idle time.
    let part = total / (SIZES.len() as u32 + 2);
    for size in SIZES {
        let before = load(switch).await?;
        let row;
        (one, two, row) = exchange(one, two, size, part).await?;
        let busy = busy(&before, &load(switch).await?, part);
        writeln!(out, "{row}       {busy:5.1} %")?;
    }

    let round_trips;
    (one, two, round_trips) = round_trip(one, two, part).await?;
    writeln!(out, "\n  round trip of a 64-byte frame, guest to guest and back: {round_trips}")?;

    let before = load(switch).await?;
    tokio::time::sleep(part).await;
    let after = load(switch).await?;
    writeln!(
        out,
        "  idle for {:.1} s: worker busy {:.2} %, woken {} times",
        part.as_secs_f64(),
        busy(&before, &after, part),
        after.sleeps - before.sleeps
    )?;
    drop((one, two));
    Ok(())
}

async fn load(switch: &Switch) -> anyhow::Result<Worker> {
    // There is one worker.
    Ok(switch.report().await?.workers.first().cloned().unwrap_or_default())
}

/// The worker's CPU time as a share of the time that passed, in percent.
fn busy(before: &Worker, after: &Worker, elapsed: Duration) -> f64 {
    (after.cpu_ns - before.cpu_ns) as f64 / elapsed.as_nanos() as f64 * 100.0
}

/// What one guest saw of an exchange.
struct Tally {
    sent: u64,
    received: u64,
    damaged: u64,
}

/// Has both guests send as fast as they can for `time`.
async fn exchange(
    one: Guest,
    two: Guest,
    size: usize,
    time: Duration,
) -> anyhow::Result<(Guest, Guest, String)> {
    let received = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let until = Instant::now() + time;
    let run = |mut guest: Guest, number: usize| {
        let received = received.clone();
        spawn_blocking(move || {
            let frame = frame(ADDRESSES[number], ADDRESSES[1 - number], size);
            let (own, peers) = (&received[number], &received[1 - number]);
            let tally = send_and_receive(&mut guest, &frame, until, own, peers);
            tally.map(|tally| (guest, tally))
        })
    };
    let (first, second) = (run(one, 0), run(two, 1));
    let start = Instant::now();
    while Instant::now() < until && !(first.is_finished() || second.is_finished()) {
        tokio::time::sleep(REDRAW).await;
        let total: u64 = received.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        let rate = total as f64 / start.elapsed().as_secs_f64();
        draw(&format!("  {size:5} B   {:8.3} Mframe/s, {:4.1} s to go", rate / 1e6, {
            until.saturating_duration_since(Instant::now()).as_secs_f64()
        }));
    }
    let ((one, first), (two, second)) = (first.await??, second.await??);
    draw("");
    let damaged = first.damaged + second.damaged;
    if damaged > 0 {
        bail!("{damaged} frames of {size} bytes were not what was sent");
    }
    let rate = |tally: &Tally| tally.received as f64 / time.as_secs_f64();
    let both = rate(&first) + rate(&second);
    let lost = (first.sent + second.sent).saturating_sub(first.received + second.received);
    let row = format!(
        "{size:6} B   {:6.3} + {:.3} million {:7.2} Gbit/s {lost:6}",
        rate(&first) / 1e6,
        rate(&second) / 1e6,
        both * size as f64 * 8.0 / 1e9,
    );
    Ok((one, two, row))
}

/// A frame for an exchange: a counter behind the header, then a pattern.
fn frame(from: MacAddress, to: MacAddress, size: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
    frame[0..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&EtherType::LOCAL_EXPERIMENT.0.to_be_bytes());
    frame
}

fn send_and_receive(
    guest: &mut Guest,
    template: &[u8],
    until: Instant,
    own: &AtomicU64,
    peers: &AtomicU64,
) -> Result<Tally, GuestError> {
    let mut tally = Tally { sent: 0, received: 0, damaged: 0 };
    let mut frame = template.to_vec();
    let mut last = Instant::now();
    let window = (WINDOW / guest.driver().receive_buffers(template.len())).max(1) as u64;
    let counter = HEADER_SIZE..HEADER_SIZE + 8;
    loop {
        let now = now_or(until);
        let mut count = 0;
        let mut expected = tally.received;
        while count < BATCH {
            let good = guest.driver().receive(|received| {
                let number =
                    received.frame.get(counter.clone()).and_then(|bytes| bytes.try_into().ok());
                let number = number.map_or(0, u64::from_be_bytes);
                // Frames may be lost, but not reordered or cut, and their end is the pattern.
                let whole = received.frame.len() == template.len()
                    && received.frame.get(counter.end..) == template.get(counter.end..);
                let in_order = number >= expected;
                expected = number;
                whole && in_order
            })?;
            let Some(good) = good else { break };
            tally.damaged += u64::from(!good);
            tally.received += 1;
            count += 1;
        }
        guest.driver().reclaim()?;
        let mut sent = 0;
        if now < until {
            let most = peers.load(Ordering::Relaxed) + window;
            while sent < BATCH && tally.sent < most {
                frame[counter.clone()].copy_from_slice(&(tally.sent + 1).to_be_bytes());
                if !guest.driver().send(NetHeader::default(), &frame)? {
                    break;
                }
                tally.sent += 1;
                sent += 1;
            }
        }
        guest.flush();
        if count > 0 {
            own.store(tally.received, Ordering::Relaxed);
            last = now;
        }
        let quiet = now - last > QUIET && guest.driver().in_flight() == 0;
        if now >= until + LOST || (now >= until && quiet) {
            return Ok(tally);
        }
        if count + sent == 0 {
            std::thread::yield_now();
        }
    }
}

/// Sends one frame at a time and waits for it to come back.
async fn round_trip(
    mut one: Guest,
    mut two: Guest,
    time: Duration,
) -> anyhow::Result<(Guest, Guest, String)> {
    let until = Instant::now() + time;
    let [a, b] = ADDRESSES;
    let echo = spawn_blocking(move || -> Result<Guest, GuestError> {
        while now_or(until) < until {
            if let Some(mut frame) = two.driver().receive(|received| received.frame.to_vec())? {
                let (addresses, _) = frame.split_at_mut(12);
                addresses.rotate_left(6);
                two.driver().send(NetHeader::default(), &frame)?;
                two.flush();
            }
            two.driver().reclaim()?;
            std::thread::yield_now();
        }
        Ok(two)
    });
    let ping = spawn_blocking(move || -> anyhow::Result<(Guest, Vec<Duration>)> {
        let frame = frame(a, b, SIZES[0]);
        let mut times = Vec::new();
        while now_or(until) + QUIET < until {
            let sent = Instant::now();
            one.driver().send(NetHeader::default(), &frame)?;
            one.flush();
            while one.driver().receive(|_| ())?.is_none() {
                if now_or(until) > sent + LOST {
                    bail!("a frame did not come back within {} s", LOST.as_secs());
                }
                std::thread::yield_now();
            }
            times.push(sent.elapsed());
            one.driver().reclaim()?;
            one.flush();
        }
        Ok((one, times))
    });
    let (one, mut times) = ping.await??;
    let two = echo.await??;
    times.sort_unstable();
    let percentile = |percent: usize| times.get(times.len() * percent / 100);
    let (Some(median), Some(slow)) = (percentile(50), percentile(99)) else {
        bail!("no frame came back");
    };
    let microseconds = |time: &Duration| time.as_secs_f64() * 1e6;
    let text = format!("p50 {:.1} us, p99 {:.1} us", microseconds(median), microseconds(slow));
    Ok((one, two, text))
}

/// Draws the progress line; an empty one clears it. Nothing, where nobody watches.
fn draw(line: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r{line}\x1b[K");
        let _ = stderr.flush();
    }
}

fn attach_help() -> String {
    let socket = Path::new("/run/vm1.sock").display();
    format!(
        "To give a virtual machine a port of its own:\n\
         \n    ringway run --port vm1=vhost-user:{socket} --port vm2=vhost-user:/run/vm2.sock\n\
         \n    qemu-system-x86_64 ... -m 1G \\\n\
         \x20       -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\\n\
         \x20       -chardev socket,id=port,path={socket},reconnect=1 \\\n\
         \x20       -netdev vhost-user,id=net,chardev=port \\\n\
         \x20       -device virtio-net-pci,netdev=net,mac=52:54:00:12:34:56"
    )
}
