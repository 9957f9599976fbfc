//! Tap ports.

use anyhow::Context;
use ports::tap::TapPort;
use sys::tun::{Kind, Request};
use wire::virtio::NetHeader;

use super::{Graphs, Opened};
use crate::config::Tap;

pub(super) fn open(graphs: &mut Graphs, name: &str, config: &Tap) -> anyhow::Result<Opened> {
    let Tap { interface } = config;
    let queues = Request::new(interface, Kind::Tap, NetHeader::SIZE)
        .open()
        .with_context(|| format!("port `{name}`: tap interface `{interface}`"))?;
    let workers = graphs.0.len();
    Ok(Opened { app: graphs.add(name, TapPort::parts(queues, workers)), control: None })
}
