//! One case, one switch, one round: starts the switch, has it loaded or left alone, and says what was seen.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

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
/// How often it is tried to measure while the processors stay as they usually are, and what they have to come to that.
const ATTEMPTS: u32 = 20;
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
            Case::Throughput(_) | Case::Pair { .. } => self.undisturbed(|| figures(generator)),
            // A search for a rate takes longer than they ever stay where they are.
            Case::Latency(_) | Case::Idle { .. } | Case::Tcp => figures(generator),
        };
        Ok(generators.iter().map(|generator| (*generator, figures(*generator))).collect())
    }

    /// Measures with both processors as near to each other as usual, before and after; or, when that cannot be had, says that they
    /// were not.
    fn undisturbed(&self, measure: impl Fn() -> Result<Figures>) -> Result<Figures> {
        for _ in 0..ATTEMPTS {
            if !self.neighbours.are_usual()? {
                interrupt::sleep(PAUSE)?;
                continue;
            }
            let figures = measure()?;
            if self.neighbours.are_usual()? {
                return Ok(figures);
            }
        }
        let mut figures = measure()?;
        figures.insert(APART.to_owned(), 1.0);
        Ok(figures)
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
