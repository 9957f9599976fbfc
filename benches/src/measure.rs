//! One case, one switch, one round: starts the switch, has it loaded or left alone, and says what was seen.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest::load::{Port, PortOptions};
use ringway_tests::{Switch as Ringway, boot, guest, mac};
use testbed::ovs::Ovs;
use testbed::traffic;
use testbed::{Guest, Network, Nic, Shell};
use wire::virtio::Features;

use crate::generators::{Task, pair};
use crate::interrupt;
use crate::matrix::{Case, Generator, Load, Size, Switch, USUAL_RING};
use crate::neighbours::Neighbours;
use crate::results::{APART, Figures};
use crate::switches::{Place, Running, Work};
use crate::usage::{Usage, memory};

/// A back end answers within this time, even when it sets all of its threads up anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// What a switch does when guests have come is done after this time.
const SETTLE: Duration = Duration::from_secs(1);
/// Idle time is watched for this much longer than frames are counted: there is little to see.
const IDLE_FACTOR: f64 = 2.0;
/// For so long it is tried to measure while the processors stay as they usually are.
const PATIENCE: Duration = Duration::from_secs(20);
/// They are looked at so often when they are not.
const PAUSE: Duration = Duration::from_millis(300);
/// iperf3 counts whole seconds, and emulated guests need some to get going.
pub const LEAST_IPERF_SECONDS: f64 = 3.0;

/// How everything is measured.
pub struct Measurement {
    pub place: Place,
    pub seconds: f64,
    pub frequency_hz: f64,
    /// The switch's processor and the generator's.
    pub neighbours: Neighbours,
}

impl Measurement {
    /// Measures a case with a switch, and the results for each of these generators.
    pub fn run(
        &self,
        case: Case,
        switch: Switch,
        generators: &[Generator],
    ) -> Result<Vec<(Generator, Result<Figures>)>> {
        interrupt::check()?;
        let work = match case {
            Case::Throughput(Load { size, addresses, .. }) => {
                Work { ports: 2, size, addresses: 2 * addresses }
            }
            Case::Latency(size) => Work { ports: 2, size, addresses: 2 },
            Case::Idle { ports } | Case::Pair { ports } => {
                Work { ports, size: Size::Bytes(64), addresses: ports.into() }
            }
            Case::Tcp => return Ok(vec![(Generator::Bench, self.tcp(switch))]),
        };
        let running = Running::start(switch, &self.place, work)?;
        let figures = |generator: Generator| -> Result<Figures> {
            let task = Task {
                place: &self.place,
                sockets: pair(running.sockets())?,
                switch: running.pid(),
                seconds: self.seconds,
                frequency_hz: self.frequency_hz,
            };
            let mut figures = match (case, generator) {
                (Case::Throughput(load), Generator::Bench) => task.bench(&load)?,
                (Case::Throughput(load), Generator::Testpmd) => task.testpmd(&load)?,
                (Case::Latency(size), _) => task.latency(size)?,
                (Case::Pair { .. }, _) => {
                    let _idle = connect(&running.sockets()[2..])?;
                    task.bench(&Load::of(Size::Bytes(64)))?
                }
                (Case::Idle { .. } | Case::Tcp, _) => self.idle(&running)?,
            };
            figures.insert("memory".to_owned(), memory(running.pid())?);
            Ok(figures)
        };
        let figures = |generator: Generator| match case {
            Case::Throughput(_) | Case::Pair { .. } => {
                undisturbed(PATIENCE, || self.neighbours.are_usual(), || figures(generator))
            }
            // A search for a rate takes longer than they ever stay where they are.
            Case::Latency(_) | Case::Idle { .. } | Case::Tcp => figures(generator),
        };
        Ok(generators.iter().map(|generator| (*generator, figures(*generator))).collect())
    }

    /// What a switch takes for itself when all of its guests are silent.
    fn idle(&self, running: &Running) -> Result<Figures> {
        let _ports = connect(running.sockets())?;
        interrupt::sleep(SETTLE)?;
        let usage = Usage::now(running.pid())?;
        interrupt::sleep(Duration::from_secs_f64(IDLE_FACTOR * self.seconds))?;
        Ok(Figures::from([("switch_cpu".to_owned(), usage.part_since()?)]))
    }

    /// TCP from one guest to another. They are emulated, and nobody tells the kernel where they are to run.
    fn tcp(&self, switch: Switch) -> Result<Figures> {
        let network = Network::new()?;
        let (ringway, ovs);
        let nics: [Nic; 2] = match switch {
            Switch::RingwayPoll | Switch::RingwayAdaptive => {
                let mode = if switch == Switch::RingwayPoll { "poll" } else { "adaptive" };
                let ports = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];
                ringway = Ringway::start_with(&["--mode", mode], &ports)?;
                ["vm1.sock", "vm2.sock"].map(|name| Nic::vhost_user(ringway.path(name)))
            }
            Switch::Ovs | Switch::OvsTso => {
                let Place { switch: polling, generator: others, hugepages } = &self.place;
                let builder = Ovs::builder().port("vm1").port("vm2").processors(*others, *polling);
                let builder = match hugepages {
                    Some(pages) => builder.hugepages_of(pages),
                    None => builder,
                };
                let tso = switch == Switch::OvsTso;
                ovs = if tso { builder.segmentation() } else { builder }.start()?;
                ["vm1", "vm2"].map(|name| {
                    let nic = Nic::vhost_user(ovs.socket(name));
                    if tso { nic.listen() } else { nic }
                })
            }
            Switch::Bridge => {
                network.bridge("br0")?;
                for tap in ["tap1", "tap2"] {
                    network.tap(tap)?;
                    network.attach(tap, "br0")?;
                }
                ["tap1", "tap2"].map(Nic::tap)
            }
            Switch::Testpmd => anyhow::bail!("a wire without offloads is nothing for TCP"),
        };
        let [one, two] = nics;
        let guests = boot([
            guest(1, one.mac(&mac(1)))?.network(&network),
            guest(2, two.mac(&mac(2)))?.network(&network),
        ])?;
        interrupt::check()?;
        for (guest, n) in guests.iter().zip(1..) {
            plug_in(guest, n)?;
        }
        let address = Ipv4Addr::new(10, 0, 0, 2).into();
        let seconds = self.seconds.max(LEAST_IPERF_SECONDS).ceil() as u32;
        let [one, two] = &guests;
        let run = traffic::iperf(one, two, address, seconds, "")?;
        Ok(Figures::from([
            ("bits_per_second".to_owned(), run.bits_per_second),
            ("retransmits".to_owned(), run.retransmits as f64),
        ]))
    }
}

/// Measures with both processors as they usually are, before and after; or, when that cannot be had for so long, says so with what was
/// measured last.
fn undisturbed(
    patience: Duration,
    are_usual: impl Fn() -> Result<bool>,
    measure: impl Fn() -> Result<Figures>,
) -> Result<Figures> {
    let start = Instant::now();
    loop {
        let were_usual = are_usual()?;
        let is_last = start.elapsed() >= patience;
        if !were_usual && !is_last {
            interrupt::sleep(PAUSE)?;
            continue;
        }
        let mut figures = measure()?;
        if were_usual && are_usual()? {
            return Ok(figures);
        }
        if is_last {
            figures.insert(APART.to_owned(), 1.0);
            return Ok(figures);
        }
    }
}

fn plug_in(guest: &Guest, n: u8) -> Result<()> {
    guest.run(&format!("ip addr add 10.0.0.{n}/24 dev eth0 && ip link set eth0 up"))?;
    Ok(())
}

/// Guests that are there, and silent.
fn connect(sockets: &[PathBuf]) -> Result<Vec<Port>> {
    let options = PortOptions {
        required: Features::NONE,
        wanted: Features::MRG_RXBUF,
        ring_size: USUAL_RING,
        longest: 64,
        limit: ANSWER_LIMIT,
    };
    let connect = |(number, socket): (usize, &PathBuf)| {
        interrupt::check()?;
        Port::connect(socket, &options).with_context(|| format!("guest {number}"))
    };
    sockets.iter().enumerate().map(connect).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What is measured when looks say this, one after the other; and how often it was.
    fn measured(patience: Duration, looks: &[bool]) -> (Figures, u32) {
        let (looked, count) = (Cell::new(0), Cell::new(0));
        let look = || Ok(looks[looked.replace(looked.get() + 1)]);
        let measure = || {
            count.set(count.get() + 1);
            Ok(Figures::from([("count".to_owned(), count.get().into())]))
        };
        (undisturbed(patience, look, measure).unwrap(), count.get())
    }

    #[test]
    fn what_was_disturbed_is_measured_again() {
        let found = |count: u32| (Figures::from([("count".to_owned(), count.into())]), count);
        assert_eq!(measured(PATIENCE, &[true, true]), found(1));
        assert_eq!(measured(PATIENCE, &[false, true, false, true, true]), found(2));
        let (mut figures, count) = measured(Duration::ZERO, &[false]);
        assert_eq!(figures.remove(APART), Some(1.0));
        assert_eq!((figures, count), found(1));
        let (figures, count) = measured(Duration::ZERO, &[true, false]);
        assert_eq!((figures[APART], count), (1.0, 1));
        assert_eq!(measured(Duration::ZERO, &[true, true]), found(1), "it need not wait");
    }
}
