//! Tap ports.

use anyhow::Context;
use ports::tap::TapPort;

use super::{Graphs, Opened, parts};
use crate::config::Tap;

pub(super) fn open(graphs: &mut Graphs, name: &str, config: &Tap) -> anyhow::Result<Opened> {
    let Tap { interface } = config;
    let tap = TapPort::open(interface)
        .with_context(|| format!("port `{name}`: tap interface `{interface}`"))?;
    let workers = graphs.0.len();
    Ok(Opened { app: graphs.add(name, parts(tap, workers, TapPort::part)), control: None })
}
