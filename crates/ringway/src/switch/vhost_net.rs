//! vhost-net ports: an interface of the host, as of a tap port, by way of the kernel's vhost-net.

use std::io;
use std::sync::Arc;

use anyhow::bail;
use engine::{Fault, Poller};
use ports::vhost_net::{Detached, OpenError, Rings, VhostNetFault, VhostNetPort};
use sys::tun::Queue;
use sys::vhost::Device;

use super::tap::{self, HostPort};
use super::{Graphs, Opened};
use crate::config::VhostNet;
use crate::links::Links;

/// Opens such a port; or a tap port, when the kernel has no vhost-net for us and that will do.
pub(super) async fn open(
    graphs: &mut Graphs,
    links: &mut Option<Links>,
    name: &str,
    config: &VhostNet,
) -> anyhow::Result<Opened> {
    let VhostNet { tap, require } = config;
    // Before there is an interface, which would come and go.
    let opened = match Device::open() {
        Ok(_) => tap::open(graphs, links, name, tap, parts).await,
        Err(error) => Err(OpenError::from(error).into()),
    };
    let why = match opened {
        Ok(opened) => return Ok(opened),
        Err(error) => error.downcast::<OpenError>()?,
    };
    if *require {
        let interface = &tap.interface;
        bail!(
            "port `{name}`: vhost-net interface `{interface}`: {why} (with require=off it would be a tap \
             port)"
        );
    }
    tracing::warn!(port = name, "a plain tap port, without the kernel's vhost-net: {why}");
    tap::open(graphs, links, name, tap, tap::parts).await
}

fn parts(queues: Vec<Queue>, workers: usize) -> anyhow::Result<Vec<VhostNetPort>> {
    Ok(VhostNetPort::parts(&start(queues)?, workers))
}

/// Starts a device for each queue.
fn start(queues: Vec<Queue>) -> Result<Arc<Rings>, OpenError> {
    let devices: Vec<Device> = queues.iter().map(|_| Device::open()).collect::<Result<_, _>>()?;
    Rings::start(queues, devices)
}

impl HostPort for VhostNetPort {
    type Shared = Arc<Rings>;
    type Detached = Detached;

    fn share(queues: Vec<Queue>) -> anyhow::Result<Self::Shared> {
        Ok(start(queues)?)
    }

    fn attach(
        &mut self,
        shared: Self::Shared,
        poller: &Poller,
    ) -> io::Result<Option<Self::Detached>> {
        self.attach(shared, poller)
    }

    fn detach(&mut self, poller: &Poller) -> Option<Self::Detached> {
        self.detach(poller)
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

    fn look(&mut self) {
        self.look();
    }

    fn is_gone(fault: &Fault) -> bool {
        matches!(fault.downcast_ref(), Some(VhostNetFault::Gone))
    }
}
