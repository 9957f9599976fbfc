//! Tun ports: the host's own IP, by an interface that is opened, set up and followed as a tap port's is (see
//! [`super::tap`]). What is its own is a station's hardware address, and the host's addresses.

use std::io;
use std::sync::Arc;

use anyhow::Context;
use engine::Poller;
use ports::tap::Queues;
use ports::tun::{Station, TunPort};
use sys::tun::{Kind, Queue};
use wire::ethernet::MacAddress;

use super::port::Opened;
use super::random_key;
use super::tap::{self, HostPort};
use crate::config::{Setup, Tap, Tun};
use crate::links::Links;

pub(super) async fn open(
    workers: usize,
    links: &mut Option<Links>,
    name: &str,
    config: &Tun,
) -> anyhow::Result<Opened> {
    let Tun { interface, subnets, mac, mtu } = config;
    let mac = mac.map_or_else(random_mac, Ok)?;
    let station = Station { mac, subnets: subnets.clone() };
    let addresses = subnets.addresses.clone();
    let setup = Setup { mtu: *mtu, addresses, ..Setup::default() };
    let interface = Tap { setup, ..Tap::new(interface.clone()) };
    let key = random_key()?;
    let make = move |mut queues: Vec<Queue>, workers| {
        let queue = queues.pop().context("there is no queue")?;
        Ok(TunPort::parts(queue, station.clone(), workers, key)?)
    };
    let opened = tap::open(workers, links, name, &interface, make).await?;
    tracing::info!(port = name, %mac, "the host's address on the bridge");
    Ok(opened)
}

/// An address that is administered locally, of one station.
fn random_mac() -> anyhow::Result<MacAddress> {
    let [bytes, _] = random_key()?;
    let [first, b, c, d, e, f, ..] = bytes.to_ne_bytes();
    Ok(MacAddress([first & 0xfc | 0x02, b, c, d, e, f]))
}

impl HostPort for TunPort {
    type Shared = Arc<Queues>;
    type Detached = Arc<Queues>;

    const KIND: Kind = Kind::Tun;

    fn share(queues: Vec<Queue>) -> anyhow::Result<Self::Shared> {
        Ok(Queues::new(queues))
    }

    fn attach(
        &mut self,
        shared: Self::Shared,
        poller: &Poller,
    ) -> io::Result<Option<Self::Detached>> {
        self.attach(shared, poller)
    }

    fn detach(&mut self) -> Option<Self::Detached> {
        self.detach()
    }

    fn set_link(&mut self, is_up: bool) {
        self.set_link(is_up);
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.set_mtu(mtu);
    }

    fn is_attached(&self) -> bool {
        self.is_attached()
    }
}
