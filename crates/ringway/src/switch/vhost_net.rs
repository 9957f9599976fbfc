//! vhost-net ports: an interface of the host, as of a tap port, by way of the kernel's vhost-net.
//!
//! What is a tap port from the start, because the kernel has no vhost-net for us, stays one. What has begun with it
//! looks for it whenever its interface comes back, and goes on in whichever way there is ([`EitherPort`]).

use std::io;
use std::sync::Arc;

use anyhow::bail;
use engine::{App, Burst, Counters, Fault, Lease, Numbers, Outcomes, Outputs, Poller, Selection};
use ports::tap::{Detached as TapDetached, Queues, TapGone, TapPort};
use ports::vhost_net::{Detached, OpenError, Rings, VhostNetFault, VhostNetPort};
use sys::tun::Queue;
use sys::vhost::Device;

use super::port::Opened;
use super::tap::{self, HostPort};
use crate::config::VhostNet;
use crate::links::Links;

/// Opens such a port; or a tap port, when the kernel has no vhost-net for us and that will do.
pub(super) async fn open(
    workers: usize,
    links: &mut Option<Links>,
    name: &str,
    config: &VhostNet,
) -> anyhow::Result<Opened> {
    let VhostNet { tap, require } = config;
    // Before there is an interface, which would come and go.
    let opened = match Device::open() {
        Ok(_) if *require => tap::open(workers, links, name, tap, parts).await,
        Ok(_) => tap::open(workers, links, name, tap, either).await,
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
    tap::open(workers, links, name, tap, tap::parts).await
}

fn parts(queues: Vec<Queue>, workers: usize) -> anyhow::Result<Vec<VhostNetPort>> {
    Ok(VhostNetPort::parts(&start(queues)?, workers))
}

fn either(queues: Vec<Queue>, workers: usize) -> anyhow::Result<Vec<EitherPort>> {
    let parts = parts(queues, workers)?.into_iter().zip(TapPort::parts(Vec::new(), workers));
    Ok(parts.map(|(vhost_net, tap)| EitherPort { vhost_net, tap, is_tap: false }).collect())
}

/// A device for each queue, not started yet.
fn devices(queues: &[Queue]) -> Result<Vec<Device>, OpenError> {
    Ok(queues.iter().map(|_| Device::open()).collect::<Result<_, _>>()?)
}

/// Starts a device for each queue.
fn start(queues: Vec<Queue>) -> Result<Arc<Rings>, OpenError> {
    let devices = devices(&queues)?;
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

    fn look(&mut self) {
        self.look();
    }

    fn is_gone(fault: &Fault) -> bool {
        matches!(fault.downcast_ref(), Some(VhostNetFault::Gone))
    }
}

/// The part of a port that one worker has: by vhost-net, or as a tap port. The other one is without an interface.
struct EitherPort {
    vhost_net: VhostNetPort,
    tap: TapPort,
    is_tap: bool,
}

/// The interface as either of them has it.
#[derive(Clone)]
enum Shared {
    VhostNet(Arc<Rings>),
    Tap(Arc<Queues>),
}

/// What either of them has let go of.
type Released = (Option<Detached>, Option<TapDetached>);

impl EitherPort {
    fn app(&self) -> &dyn App {
        if self.is_tap { &self.tap } else { &self.vhost_net }
    }

    fn app_mut(&mut self) -> &mut dyn App {
        if self.is_tap { &mut self.tap } else { &mut self.vhost_net }
    }

    /// Becomes the one or the other, which goes on counting.
    fn become_tap(&mut self, is_tap: bool) {
        match (self.is_tap, is_tap) {
            (false, true) => self.tap.count_on(self.vhost_net.counters()),
            (true, false) => self.vhost_net.count_on(self.tap.counters()),
            _ => {}
        }
        self.is_tap = is_tap;
    }
}

impl HostPort for EitherPort {
    type Shared = Shared;
    type Detached = Released;

    fn share(queues: Vec<Queue>) -> anyhow::Result<Self::Shared> {
        match devices(&queues) {
            Ok(devices) => Ok(Shared::VhostNet(Rings::start(queues, devices)?)),
            Err(why) => {
                let interface =
                    queues.first().map_or_else(String::new, |queue| queue.name().to_owned());
                tracing::warn!(
                    interface,
                    "a plain tap port, without the kernel's vhost-net: {why}"
                );
                Ok(Shared::Tap(Queues::new(queues)))
            }
        }
    }

    fn attach(
        &mut self,
        shared: Self::Shared,
        poller: &Poller,
    ) -> io::Result<Option<Self::Detached>> {
        let before = self.detach();
        match shared {
            Shared::VhostNet(rings) => {
                self.become_tap(false);
                self.vhost_net.attach(rings, poller)?;
            }
            Shared::Tap(queues) => {
                self.become_tap(true);
                self.tap.attach(queues, poller)?;
            }
        }
        Ok(before)
    }

    fn detach(&mut self) -> Option<Self::Detached> {
        let detached = (self.vhost_net.detach(), self.tap.detach());
        (detached.0.is_some() || detached.1.is_some()).then_some(detached)
    }

    fn set_link(&mut self, is_up: bool) {
        self.vhost_net.set_link(is_up);
        self.tap.set_link(is_up);
    }

    fn set_mtu(&mut self, mtu: u32) {
        self.vhost_net.set_mtu(mtu);
        self.tap.set_mtu(mtu);
    }

    fn is_attached(&self) -> bool {
        if self.is_tap { self.tap.is_attached() } else { self.vhost_net.is_attached() }
    }

    fn look(&mut self) {
        self.vhost_net.look();
    }

    fn is_gone(fault: &Fault) -> bool {
        fault.is::<TapGone>() || VhostNetPort::is_gone(fault)
    }
}

impl App for EitherPort {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.app_mut().pull(lease, burst)
    }

    fn reclaim(&mut self, outcomes: Outcomes<'_>, lease: Lease) {
        self.app_mut().reclaim(outcomes, lease);
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        self.app_mut().push(input, burst, selection, outputs);
    }

    fn notify(&mut self) {
        self.app_mut().notify();
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.app_mut().publish()
    }

    fn arm(&mut self) -> bool {
        self.app_mut().arm()
    }

    fn disarm(&mut self) {
        self.app_mut().disarm();
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        self.app().deadline(now)
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        self.app_mut().register(poller)
    }

    fn is_up(&self) -> bool {
        self.app().is_up()
    }

    fn report(&self, now: u64, numbers: &mut Numbers) {
        self.app().report(now, numbers);
    }

    fn stop(&mut self) {
        self.app_mut().stop();
    }

    fn counters(&self) -> &Counters {
        self.app().counters()
    }
}
