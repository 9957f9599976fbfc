//! An embedded guest on a switch, and two bare loops on the same tap. Each has a processor of its own where the tap is read
//! and written; the guest is on another one, which is kept as busy for the loops: two processors may be one core's, and
//! then each is slower when the other has something to do. For one of the loops it does nothing else; for the other
//! it does to the frames what the guest does, which the loop then finds in caches, or not, as the switch does.
//!
//! A guest's memory is first touched before anything is measured: the kernel makes each page of it then, in the switch's time.
//!
//! To the host, both send as fast as they can, for a time. From the host, frames wait in the tap before anybody reads it,
//! so that it is the reader alone who is measured: from the first frame that came to the last.

use std::fs::File;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest::{Guest, NetDriver, Options};
use ringway_tests::Switch;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};
use sys::tun::{Kind, Queue, Request};
use testbed::{Network, Shell};
use wire::virtio::{Features, NetHeader};

use super::Row;
use super::frame::{GUEST, HOST, Size};
use super::shared::{self, Batch, Gone};
use crate::interrupt;

/// The tap that is written to.
const TO_HOST: &str = "rw0";
/// The tap that is read, and the one from which a bridge of the kernel's fills it.
const FROM_HOST: &str = "rw1";
const SOURCE: &str = "rw2";
/// Frames that a tap holds: more than are ever put in.
const QUEUE: &str = "32768";
/// Descriptors of the guest's rings.
const RING: u16 = 4096;
/// Without a frame for so long, no other one comes.
const SILENCE: Duration = Duration::from_millis(300);
/// Bytes of a receive buffer of the guest's.
const BUFFER: usize = 2048;
/// Something happens within this time.
const LIMIT: Duration = Duration::from_secs(10);
/// Frames that are sent between two looks at the clock, and that are received before their buffers are given back.
const BATCH: usize = 64;

pub fn measure(
    rounds: u32,
    seconds: Duration,
    switch: usize,
    generator: usize,
) -> Result<Vec<Row>> {
    let network = network()?;
    let place = Place { network: &network, switch, generator, seconds };
    let mut rows: Vec<Row> = Size::ALL
        .iter()
        .flat_map(|size| {
            [("to", ""), ("to", ", shared"), ("from", ""), ("from", ", shared")].map(
                |(way, beside)| Row {
                    name: format!("{way} the host, {}{beside}", size.name()),
                    unit: "frames/s",
                    pairs: Vec::new(),
                },
            )
        })
        .collect();
    for round in 1..=rounds {
        for (rows, size) in rows.chunks_mut(4).zip(Size::ALL) {
            interrupt::check()?;
            eprintln!("round {round} of {rounds}: an embedded guest, {}", size.name());
            let [to, to_shared, from, from_shared] = rows else { continue };
            let ours = place.guest_to_host(size)?;
            to.pairs.push((ours, place.bare_to_host(size)?));
            to_shared.pairs.push((ours, place.shared_to_host(size)?));
            let ours = place.host_to_guest(size)?;
            from.pairs.push((ours, place.host_to_bare(size)?));
            from_shared.pairs.push((ours, place.host_to_shared(size)?));
        }
    }
    Ok(rows)
}

/// Taps that stay, and nothing else that would send into them.
fn network() -> Result<Network> {
    let network = Network::new()?;
    network.run("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    for name in [TO_HOST, FROM_HOST, SOURCE] {
        network.tap(name)?;
        // The largest frames here are a little longer than usual, and a bridge would drop them.
        network.ip(&["link", "set", name, "txqueuelen", QUEUE, "mtu", "2000"])?;
    }
    network.bridge("br0")?;
    for name in [FROM_HOST, SOURCE] {
        network.attach(name, "br0")?;
    }
    // Frames to the guest are for this tap, whoever has said something and when.
    let address = "52:54:00:00:00:01";
    network.run(&format!("bridge fdb replace {address} dev {FROM_HOST} master static"))?;
    Ok(network)
}

struct Place<'n> {
    network: &'n Network,
    switch: usize,
    generator: usize,
    seconds: Duration,
}

impl Place<'_> {
    /// Runs on a thread on one processor, in the network.
    fn on<R: Send>(&self, cpu: usize, run: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let name = self.network.namespace().context("the network is one of its own")?;
        let namespace = File::open(format!("/run/netns/{name}"))?;
        let enter = || {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )?;
            let mut cpus = CpuSet::new();
            cpus.set(cpu);
            sched_setaffinity(None, &cpus)?;
            run()
        };
        let result = thread::scope(|scope| scope.spawn(enter).join());
        result.ok().context("the thread panicked")?
    }

    /// Runs the bare loop, where the switch would, beside a processor that is as busy as with the guest.
    fn bare<R: Send>(&self, run: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let is_over = AtomicBool::new(false);
        let busy = || {
            let mut work = 0_u64;
            while !is_over.load(Relaxed) {
                // Not a spin loop's hint, which would leave the core to the other one.
                (0..1000).for_each(|number| work = black_box(work ^ number));
            }
            Ok(())
        };
        thread::scope(|scope| {
            let guest = scope.spawn(|| self.on(self.generator, busy));
            let result = self.on(self.switch, run);
            is_over.store(true, Relaxed);
            guest.join().ok().context("the thread panicked")??;
            result
        })
    }

    fn switch(&self, interface: &str) -> Result<Switch> {
        let options = ["--mode", "poll", "--cpus", &self.switch.to_string()];
        let ports = ["vm1=vhost-user:vm1.sock", &format!("host=tap:{interface}")];
        Switch::start_in_with(self.network, &options, &ports)
    }

    fn guest(&self, switch: &Switch) -> Result<Guest> {
        let offloads = Features::CSUM | Features::HOST_TSO4 | Features::GUEST_CSUM;
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX;
        let features = features | offloads | Features::GUEST_TSO4;
        // The guest may be kept from its processor for a while before frames are lost.
        let options = Options { features, ring_size: RING, ..Options::default() };
        let mut guest = Guest::connect(&switch.path("vm1.sock"), &options)?;
        // The bridge knows then where it is.
        let (_, mut hello) = Size::Bytes(64).frame(GUEST, HOST);
        hello[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0]);
        ensure!(guest.driver().send(NetHeader::default(), &hello)?, "there is room for one frame");
        guest.flush();
        let start = Instant::now();
        while guest.driver().reclaim()? == 0 {
            ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the switch to take a frame");
            thread::yield_now();
        }
        Ok(guest)
    }

    fn guest_to_host(&self, size: Size) -> Result<f64> {
        let switch = self.switch(TO_HOST)?;
        let (header, frame) = size.frame(GUEST, HOST);
        let before = self.frames_of(TO_HOST)?;
        let (sent, rate) = self.on(self.generator, || {
            let mut guest = self.guest(&switch)?;
            let send = |guest: &mut Guest| {
                for _ in 0..BATCH {
                    if !guest.driver().send(header, &frame)? {
                        break;
                    }
                }
                guest.flush();
                let taken = guest.driver().reclaim()?;
                if taken == 0 {
                    std::hint::spin_loop();
                }
                Ok::<_, anyhow::Error>(taken)
            };
            let (mut touched, start) = (0, Instant::now());
            while touched < 2 * usize::from(RING) {
                ensure!(start.elapsed() < LIMIT, "the switch took {touched} frames in {LIMIT:?}");
                touched += send(&mut guest)?;
            }
            let start = Instant::now();
            let mut sent = 0;
            while start.elapsed() < self.seconds {
                sent += send(&mut guest)?;
            }
            let rate = sent as f64 / start.elapsed().as_secs_f64();
            while guest.driver().in_flight() > 0 {
                ensure!(start.elapsed() < self.seconds + LIMIT, "the switch takes nothing more");
                sent += guest.driver().reclaim()?;
            }
            Ok((sent as u64, rate))
        })?;
        let log = switch.stop()?;
        let arrived = self.frames_of(TO_HOST)? - before;
        ensure!(arrived >= sent, "of {sent} frames, {arrived} arrived:\n{log}");
        Ok(rate)
    }

    fn bare_to_host(&self, size: Size) -> Result<f64> {
        let bytes = bytes(size.frame(GUEST, HOST));
        self.bare(|| {
            let queue = queue(TO_HOST)?;
            let start = Instant::now();
            let mut sent = 0;
            while start.elapsed() < self.seconds {
                for _ in 0..BATCH {
                    rustix::io::write(&queue, &bytes)?;
                }
                sent += BATCH;
            }
            Ok(sent as f64 / start.elapsed().as_secs_f64())
        })
    }

    fn host_to_guest(&self, size: Size) -> Result<f64> {
        let switch = self.switch(FROM_HOST)?;
        let pid = i32::try_from(switch.pid()).ok().and_then(Pid::from_raw).context("its pid")?;
        let rate = self.on(self.generator, || {
            let mut guest = self.guest(&switch)?;
            let source = self.source()?;
            let receive = |driver: &mut NetDriver| {
                driver.receive(|received| received.frame.starts_with(&GUEST))
            };
            let mut posted = 0;
            let mut measure = || {
                kill_process(pid, Signal::STOP)?;
                let filled = fill(&source, size);
                kill_process(pid, Signal::CONT)?;
                filled?;
                rate(size, || {
                    let received = receive(guest.driver())?;
                    posted += 1;
                    if received.is_none() || posted >= BATCH {
                        guest.flush();
                        posted = 0;
                    }
                    Ok(received)
                })
            };
            // More than its buffers are. What is lost meanwhile is lost because this takes long.
            let _ = measure();
            measure()
        })?;
        switch.stop()?;
        Ok(rate)
    }

    fn host_to_bare(&self, size: Size) -> Result<f64> {
        self.bare(|| {
            let queue = queue(FROM_HOST)?;
            fill(&self.source()?, size)?;
            let mut buffer = vec![0; NetHeader::SIZE + 65_536];
            rate(size, || match rustix::io::read(&queue, &mut buffer) {
                Ok(_) => Ok(Some(buffer[NetHeader::SIZE..].starts_with(&GUEST))),
                Err(rustix::io::Errno::AGAIN) => Ok(None),
                Err(error) => Err(error.into()),
            })
        })
    }

    /// The loop whose frames another processor has just written, into as many buffers as the guest's transmit ring has.
    fn shared_to_host(&self, size: Size) -> Result<f64> {
        let bytes = bytes(size.frame(GUEST, HOST));
        let [guest, ours] = shared::pair(RING.into(), BATCH, bytes.len());
        let send = move || {
            loop {
                match guest.take() {
                    Ok(Some(mut batch)) => {
                        batch.buffers.iter_mut().for_each(|buffer| buffer.copy_from_slice(&bytes));
                        batch.filled = batch.buffers.len();
                        if guest.pass(batch).is_err() {
                            return Ok(());
                        }
                    }
                    Ok(None) => std::hint::spin_loop(),
                    Err(Gone) => return Ok(()),
                }
            }
        };
        let write = move || {
            let queue = queue(TO_HOST)?;
            let mut written = 0;
            let mut until = |is_over: &dyn Fn(usize) -> bool| {
                while !is_over(written) {
                    let taken =
                        ours.take().map_err(|Gone| anyhow!("the other thread has ended"))?;
                    let Some(batch) = taken else {
                        std::hint::spin_loop();
                        continue;
                    };
                    batch
                        .frames()
                        .try_for_each(|frame| rustix::io::write(&queue, frame).map(drop))?;
                    written += batch.filled;
                    // Without the other one the next turn fails.
                    let _ = ours.pass(batch);
                }
                Ok::<_, anyhow::Error>(written)
            };
            // As for the guest.
            let before = until(&|written| written >= 2 * usize::from(RING))?;
            let start = Instant::now();
            let written = until(&|_| start.elapsed() >= self.seconds)? - before;
            Ok(written as f64 / start.elapsed().as_secs_f64())
        };
        thread::scope(|scope| {
            let guest = scope.spawn(|| self.on(self.generator, send));
            let rate = self.on(self.switch, write);
            guest.join().ok().context("the thread panicked")??;
            rate
        })
    }

    /// The loop whose frames another processor copies out of as many buffers as the guest's receive ring has.
    fn host_to_shared(&self, size: Size) -> Result<f64> {
        let len = bytes(size.frame(HOST, GUEST)).len();
        let [ours, guest] = shared::pair(usize::from(RING) / len.div_ceil(BUFFER), BATCH, len);
        let read = move || {
            let queue = queue(FROM_HOST)?;
            fill(&self.source()?, size)?;
            loop {
                match ours.take() {
                    Ok(Some(mut batch)) => {
                        fill_from(&queue, &mut batch)?;
                        if ours.pass(batch).is_err() {
                            return Ok(());
                        }
                    }
                    Ok(None) => std::hint::spin_loop(),
                    Err(Gone) => return Ok(()),
                }
            }
        };
        let receive = move || {
            let (mut frame, mut current, mut next) = (vec![0; len], None::<Batch>, 0);
            rate(size, || {
                if let Some(batch) = current.take_if(|batch| next == batch.filled) {
                    guest.pass(batch).map_err(|Gone| anyhow!("the other thread has ended"))?;
                }
                if current.is_none() {
                    // One that has ended has said why.
                    current = guest.take().unwrap_or_default();
                    next = 0;
                }
                let came = current.as_ref().and_then(|batch| batch.frames().nth(next));
                let Some(came) = came else { return Ok(None) };
                frame.copy_from_slice(came);
                next += 1;
                Ok(Some(black_box(&frame)[NetHeader::SIZE..].starts_with(&GUEST)))
            })
        };
        thread::scope(|scope| {
            let reader = scope.spawn(|| self.on(self.switch, read));
            let rate = self.on(self.generator, receive);
            reader.join().ok().context("the thread panicked")??;
            rate
        })
    }

    /// The tap from which the other one is filled, when the bridge forwards between them.
    fn source(&self) -> Result<Queue> {
        let source = queue(SOURCE)?;
        let script =
            format!("cd /sys/class/net && cat {FROM_HOST}/brport/state {SOURCE}/brport/state");
        let start = Instant::now();
        while self.network.run(&script)? != "3\n3\n" {
            ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the bridge to forward");
            thread::yield_now();
        }
        Ok(source)
    }

    /// Frames that came out of a tap into the kernel.
    fn frames_of(&self, interface: &str) -> Result<u64> {
        let file = format!("/sys/class/net/{interface}/statistics/rx_packets");
        Ok(self.network.run(&format!("cat {file}"))?.trim().parse()?)
    }
}

/// A tap's only queue.
fn queue(name: &str) -> Result<Queue> {
    let queue = Request::new(name, Kind::Tap, NetHeader::SIZE).open();
    queue.with_context(|| name.to_owned())?.pop().context("it has a queue")
}

fn bytes((header, frame): (NetHeader, Vec<u8>)) -> Vec<u8> {
    [&header.to_bytes()[..], &frame].concat()
}

/// Fills the tap to the guest.
fn fill(source: &Queue, size: Size) -> Result<()> {
    let bytes = bytes(size.frame(HOST, GUEST));
    for _ in 0..size.waiting() {
        rustix::io::write(source, &bytes)?;
    }
    Ok(())
}

/// Reads frames into a batch, until there are no more.
fn fill_from(queue: &Queue, batch: &mut Batch) -> Result<()> {
    batch.filled = 0;
    for buffer in &mut batch.buffers {
        match rustix::io::read(queue, buffer) {
            Ok(_) => batch.filled += 1,
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How fast frames come that wait already, from the first to the last. `receive` says of a frame whether it is one of
/// those.
fn rate(size: Size, mut receive: impl FnMut() -> Result<Option<bool>>) -> Result<f64> {
    let (mut count, mut first) = (0, None);
    let mut last = Instant::now();
    loop {
        match receive()? {
            Some(true) => {
                last = Instant::now();
                first.get_or_insert(last);
                count += 1;
                if count == size.waiting() {
                    break;
                }
            }
            Some(false) => {}
            None if last.elapsed() > SILENCE => break,
            None => std::hint::spin_loop(),
        }
    }
    let Some(first) = first else { bail!("no frame came") };
    // Those that were lost, because there was no time for them, do not count: the rate is the lower for it.
    if count < size.waiting() {
        eprintln!("of {} frames, {} were lost", size.waiting(), size.waiting() - count);
    }
    ensure!(count > 1, "of {} frames, one came", size.waiting());
    Ok((count - 1) as f64 / (last - first).as_secs_f64())
}
