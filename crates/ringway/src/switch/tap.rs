//! Tap ports: opens an interface of the host, sets it up, and follows what becomes of it.
//!
//! An interface that is deleted takes its queues with it. The workers find them dead, and that is how
//! control hears of it: what rtnetlink says of an interface that has gone, it says also of one that was
//! moved into another network namespace, which goes on working. The port is down until there is an
//! interface of that name again. The switch does not make it again by itself, also if it has made it first:
//! somebody deleted it on purpose. One that went because a bug of ours took its port down is made again with that.
//!
//! How frames get to the interface is nothing to control: all of this is done to any port that is a
//! [`HostPort`].

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use engine::{App, Fault, Poller, Worker};
use ports::tap::{Detached, Queues, TapPort};
use ports::tun::Subnet;
use rustix::io::Errno;
use sys::tun::{
    AdoptError, Kind, Offloads, Persistence, Queue, Request, TunError, adopt, interface_of,
};
use tokio::time::sleep;
use wire::ethernet::MacAddress;
use wire::virtio::NetHeader;

use super::backoff::Backoff;
use super::port::{Handle, Opened, Running};
use crate::account::{group_id, user_id};
use crate::config::{Setup, Tap};
use crate::links::{Heard, Link, Links, LinksError, Setting, Watch};
use crate::session::Trouble;

/// Whoever makes an interface anew has its queue open for a moment: when to try again, at first, and at the
/// slowest.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_SLOWEST: Duration = Duration::from_secs(1);
/// How long an interface that is in use is tried again before that is said, and how often.
const IN_USE: Duration = Duration::from_millis(500);
const IN_USE_RETRY: Duration = Duration::from_millis(10);
/// What had a fault is attached to again after this time: at first, and at the most.
const FAULT_FIRST: Duration = Duration::from_secs(1);
const FAULT_MOST: Duration = Duration::from_secs(60);

/// A port with an interface of the host behind it, or its part on one of several workers.
pub(super) trait HostPort: App + Sized {
    /// What its parts share of the interface.
    type Shared: Clone + Send + 'static;
    /// What a part lets go of, to be dropped by control.
    type Detached: Send + 'static;

    /// What the interface carries.
    const KIND: Kind = Kind::Tap;

    /// Makes what the parts share of another interface.
    fn share(queues: Vec<Queue>) -> anyhow::Result<Self::Shared>;

    /// Gives it to a part.
    fn attach(
        &mut self,
        shared: Self::Shared,
        poller: &Poller,
    ) -> io::Result<Option<Self::Detached>>;

    /// Takes it away.
    fn detach(&mut self) -> Option<Self::Detached>;

    /// Says whether the interface is up.
    fn set_link(&mut self, is_up: bool);

    /// Says what MTU it has.
    fn set_mtu(&mut self, mtu: u32);

    /// Whether it is still there, wherever that is.
    fn is_attached(&self) -> bool;

    /// Looks whether it is still there, if that does not show by itself.
    fn look(&mut self) {}

    /// Whether this fault says that it is not.
    fn is_gone(fault: &Fault) -> bool {
        let _ = fault;
        true
    }
}

impl HostPort for TapPort {
    type Shared = Arc<Queues>;
    type Detached = Detached;

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

/// A tap port's parts.
pub(super) fn parts(queues: Vec<Queue>, workers: usize) -> anyhow::Result<Vec<TapPort>> {
    let parts = TapPort::parts(queues, workers);
    if let Some(why) = parts.first().and_then(TapPort::one_by_one) {
        tracing::info!(
            "each frame to a tap takes a system call, without the kernel's io_uring: {why}"
        );
    }
    Ok(parts)
}

/// The links, which are opened when they are needed first.
fn opened(links: &mut Option<Links>) -> anyhow::Result<&Links> {
    Ok(match links {
        Some(links) => links,
        None => links.insert(Links::open().context("cannot open an rtnetlink socket")?),
    })
}

/// Looks whether there is what a port asks for beside its interface, and whether its descriptors, if it has been given any, can be
/// used: an interface that was deleted has left them dead, also if one of its name is there again.
pub(super) async fn check(
    links: &mut Option<Links>,
    name: &str,
    config: &Tap,
) -> anyhow::Result<()> {
    let what = || match config.interface.as_str() {
        "" => format!("port `{name}`"),
        interface => format!("port `{name}`: interface `{interface}`"),
    };
    request(config, false, Kind::Tap).with_context(what)?;
    inherited(config).with_context(what)?;
    find_bridge(opened(links)?, &config.setup).await.map(drop).with_context(what)
}

/// Opens a port, which `make` makes of the queues of its interface, in as many parts as there are workers.
pub(super) async fn open<P: HostPort>(
    workers: usize,
    links: &mut Option<Links>,
    name: &str,
    config: &Tap,
    make: impl Fn(Vec<Queue>, usize) -> anyhow::Result<Vec<P>> + Send + Sync + 'static,
) -> anyhow::Result<Opened> {
    let links = opened(links)?;
    let mut undo = Undo::new(links);
    match open_on(links, &mut undo, workers, name, config, make).await {
        Ok(opened) => Ok(opened.with_undo(undo.put_back())),
        Err(error) => {
            undo.put_back().await;
            Err(error)
        }
    }
}

async fn open_on<P: HostPort>(
    links: &Links,
    undo: &mut Undo,
    workers: usize,
    name: &str,
    config: &Tap,
    make: impl Fn(Vec<Queue>, usize) -> anyhow::Result<Vec<P>> + Send + Sync + 'static,
) -> anyhow::Result<Opened> {
    // From before the first look.
    let watch = links.watch();
    let what = || match config.interface.as_str() {
        "" => format!("port `{name}`"),
        interface => format!("port `{name}`: {} interface `{interface}`", P::KIND),
    };
    let opened = match config.descriptors.as_slice() {
        [] => attach::<P>(config, links, false, None, undo).await.map(
            |Attached { queues, link, is_new }| {
                let did = if is_new { "created" } else { "attached to" };
                (queues, Some(link), did)
            },
        ),
        _ => inherit(config, links, undo).await.map(|(queues, link)| (queues, link, "inherited")),
    };
    let (queues, link, did) = opened.with_context(what)?;
    let interface = name_of(&queues);
    tracing::info!(port = name, interface, queues = queues.len(), "{did} the interface");
    let again = again(config, &queues, did == "created").with_context(what)?;
    // When the switch runs, so that one that is new goes if it never does.
    let persistence = config.persistent.zip(queues.first().map(Queue::persistence));
    let state = link.as_ref().map_or(State::UNSEEN, State::of);
    let mut parts = make(queues, workers).with_context(what)?;
    parts.iter_mut().for_each(|part| state.apply(part));
    let links = links.clone();
    let control = move |handle: Handle| -> Running {
        let place = link.map_or(Place::Elsewhere, |link| Place::Here(link.index));
        let control = Control::<P> {
            handle,
            again,
            links,
            watch,
            interface,
            place,
            state,
            retry: None,
            complaint: String::new(),
            of_fault: Backoff::new(FAULT_FIRST, FAULT_MOST, Instant::now()),
            make: Box::new(make),
            has_failed: false,
            of_app: Backoff::of_app(Instant::now()),
        };
        control.stay(persistence);
        control.say();
        Box::pin(control.follow())
    };
    Ok(Opened::new(parts).with_control(control))
}

/// An interface that was attached to.
struct Attached {
    queues: Vec<Queue>,
    link: Link,
    /// It did not exist before.
    is_new: bool,
}

/// Attaches to the interface that a port is configured with, and sets it up. One that does not exist is
/// created, unless it is `known`. When this fails, what it created is gone; and so it is when the queues are
/// dropped.
async fn attach<P: HostPort>(
    config: &Tap,
    links: &Links,
    several: bool,
    known: Option<Link>,
    undo: &mut Undo,
) -> anyhow::Result<Attached> {
    // Before anything is created.
    let bridge = find_bridge(links, &config.setup).await?;
    let is_known = known.is_some();
    let before = match known {
        None if config.is_named() => links.find(&config.interface).await?,
        known => known,
    };
    let request = request(config, several, P::KIND)?;
    // Who looks for one that is known tries again by itself.
    let queues = if is_known { request.open() } else { open_soon(&request).await };
    let queues = queues.map_err(|error| explain(error, before.is_some()))?;
    let link = links.find(&name_of(&queues)).await?.context(DELETED)?;
    let is_new = before.is_none_or(|before| before.index != link.index);
    // Then it goes with its queues.
    ensure!(!(is_new && is_known), DELETED);
    let mut setup = config.setup.clone();
    if is_new {
        setup.up.get_or_insert(true);
    }
    let link = set_up(links, link, &setup, bridge, undo).await?;
    if is_new {
        // It goes with its queues.
        undo.steps.clear();
    }
    Ok(Attached { queues, link, is_new })
}

/// Opens an interface, which may be in use for a moment by somebody who has gone: the io_uring of a process that was killed
/// has its queues open until the kernel has cleared it away, some 30 ms after the process.
async fn open_soon(request: &Request<'_>) -> Result<Vec<Queue>, TunError> {
    let start = Instant::now();
    loop {
        match request.open() {
            Err(TunError::InUse) if start.elapsed() < IN_USE => sleep(IN_USE_RETRY).await,
            result => return result,
        }
    }
}

/// With a smaller MTU an interface has no IPv6 (RFC 8200, section 5).
const IPV6_MTU: u32 = 1280;

const DELETED: &str = "it was deleted again at once";

/// Duplicates of the descriptors that this process was started with, which are queues of the interface that the port asks for.
fn inherited(config: &Tap) -> anyhow::Result<Vec<OwnedFd>> {
    let descriptors = config.descriptors.iter().map(|number| {
        sys::inherited(*number).with_context(|| format!("descriptor {number} was not inherited"))
    });
    let descriptors = descriptors.collect::<anyhow::Result<Vec<_>>>()?;
    let found =
        interface_of(&descriptors, Kind::Tap).map_err(|fault| of_descriptor(config, fault))?;
    ensure!(
        descriptors.is_empty() || config.interface.is_empty() || config.interface == found,
        "the descriptors are those of another interface, `{found}`"
    );
    Ok(descriptors)
}

fn of_descriptor(config: &Tap, AdoptError { index, error }: AdoptError) -> anyhow::Error {
    let number = config.descriptors.get(index).copied().unwrap_or(-1);
    anyhow::Error::new(error).context(format!("descriptor {number}"))
}

/// Takes over the descriptors that this process was started with, and sets their interface up. That is
/// not known if it is in another network namespace.
async fn inherit(
    config: &Tap,
    links: &Links,
    undo: &mut Undo,
) -> anyhow::Result<(Vec<Queue>, Option<Link>)> {
    let queues = adopt(inherited(config)?, Kind::Tap, NetHeader::SIZE, Offloads::ALL)
        .map_err(|fault| of_descriptor(config, fault))?;
    let found = name_of(&queues);
    let queue = queues.first().context("no descriptors")?;
    let link = links.find(&found).await?;
    // There may be another one of its name here.
    let link = link.filter(|link| is_it(queue, link));
    ensure!(
        link.as_ref().is_none_or(|link| !link.has_packet_information),
        "the frames of `{found}` have packet information before them (it has to be opened with IFF_NO_PI)"
    );
    let bridge = find_bridge(links, &config.setup).await?;
    let link = match link {
        Some(link) => Some(set_up(links, link, &config.setup, bridge, undo).await?),
        None if config.setup == Setup::default() => None,
        None => bail!("`{found}` is not in this network namespace, so it cannot be set up"),
    };
    Ok((queues, link))
}

/// Whether an interface of this network namespace is the one that a queue of the same name belongs to.
fn is_it(queue: &Queue, link: &Link) -> bool {
    queue.is_here().unwrap_or_else(|_| {
        // Who may not ask where it is may still ask for its address, and two are rarely of the same.
        queue.host_address().is_ok_and(|address| link.mac == Some(MacAddress(address)))
    })
}

fn name_of(queues: &[Queue]) -> String {
    queues.first().map_or_else(String::new, |queue| queue.name().to_owned())
}

/// How an interface is attached to that is there again.
#[derive(Clone)]
struct Again {
    /// As the port is configured, but for its name.
    config: Tap,
    /// It was one for several queues, however many of them we had.
    several: bool,
}

/// Whether it stays, and whose it is, was decided by whoever made it; what was done when we created it is
/// done again.
fn again(config: &Tap, queues: &[Queue], is_new: bool) -> anyhow::Result<Again> {
    let up = config.setup.up.or(is_new.then_some(true));
    let several = queues.first().map_or(Ok(false), Queue::is_of_several);
    let config = Tap {
        descriptors: Vec::new(),
        queue_pairs: u16::try_from(queues.len()).unwrap_or(config.queue_pairs),
        persistent: None,
        owner: None,
        group: None,
        setup: Setup { up, ..config.setup.clone() },
        ..config.clone()
    };
    Ok(Again { config, several: several.context(DELETED)? })
}

fn request(config: &Tap, several: bool, kind: Kind) -> anyhow::Result<Request<'_>> {
    Ok(Request {
        queues: config.queue_pairs,
        several,
        owner: config.owner.as_deref().map(user_id).transpose()?,
        group: config.group.as_deref().map(group_id).transpose()?,
        ..Request::new(&config.interface, kind, NetHeader::SIZE)
    })
}

/// Why an interface could not be attached to, or created.
fn explain(error: TunError, exists: bool) -> anyhow::Error {
    let TunError::NotPermitted(kind) = error else { return error.into() };
    let what = if exists {
        "it is somebody else's, and to use it"
    } else {
        "there is none, and to create one"
    };
    let or_else = if kind == Kind::Tap { ", or passes the descriptor of one (`fd`)" } else { "" };
    anyhow::anyhow!(
        "{what} needs CAP_NET_ADMIN. Without, somebody who has it makes one for this user (ip tuntap add \
         dev NAME mode {kind} vnet_hdr user USER){or_else}"
    )
}

/// The number of the bridge that an interface is to belong to.
async fn find_bridge(links: &Links, setup: &Setup) -> anyhow::Result<Option<u32>> {
    let Some(bridge) = &setup.bridge else { return Ok(None) };
    match links.find(bridge).await? {
        Some(link) if link.is_bridge => Ok(Some(link.index)),
        Some(_) => bail!("`{bridge}` is no bridge of the host"),
        None => bail!("there is no bridge `{bridge}` (ip link add {bridge} type bridge makes one)"),
    }
}

/// Sets what is wanted and not so already. Returns what the interface is then.
async fn set_up(
    links: &Links,
    link: Link,
    setup: &Setup,
    bridge: Option<u32>,
    undo: &mut Undo,
) -> anyhow::Result<Link> {
    let Setup { mtu, mac, up, bridge: name, addresses } = setup;
    let mtu = mtu.map(u32::from).filter(|mtu| *mtu != link.mtu);
    let mac = mac.filter(|mac| Some(*mac) != link.mac);
    let bridge = bridge.filter(|bridge| Some(*bridge) != link.master);
    let up = up.filter(|up| *up != link.is_up);
    let name = name.as_deref().unwrap_or_default();
    let settings = [
        mtu.map(|mtu| (Setting::Mtu(mtu), format!("mtu {mtu}"))),
        mac.map(|mac| (Setting::Mac(mac), format!("address {mac}"))),
        bridge.map(|bridge| (Setting::Master(bridge), format!("master {name}"))),
        up.map(|up| (Setting::Up(up), if up { "up" } else { "down" }.to_owned())),
    ];
    let has_ipv6 = mtu.is_none_or(|mtu| mtu >= IPV6_MTU);
    undo.begin(&link, up == Some(false) || !has_ipv6).await?;
    for (setting, words) in settings.into_iter().flatten() {
        let result = links.set(link.index, setting).await;
        if may_be_done(&result) {
            undo.note(&link, setting);
        }
        result
            .map_err(|error| refused(error, &format!("ip link set dev {} {words}", link.name)))?;
    }
    // Last: an interface that is put up has no IPv6 before.
    for subnet in missing_addresses(links, &link, addresses).await? {
        let result = add_address(links, &link, subnet).await;
        if may_be_done(&result) {
            undo.steps.push(Step::Remove(subnet.address, subnet.prefix_len));
        }
        result.map_err(|error| refused(error, &add_command(&link, subnet)))?;
    }
    links.at(link.index).await?.context(DELETED)
}

/// Whether something is done, as far as is known: also without an answer in time.
fn may_be_done(result: &Result<(), LinksError>) -> bool {
    !matches!(result, Err(LinksError::Refused(_)))
}

/// What is to be done to an interface, that was there before, so that it is as it was: for a port that never runs.
struct Undo {
    links: Links,
    index: u32,
    interface: String,
    /// In the order of what they undo.
    steps: Vec<Step>,
}

enum Step {
    Set(Setting),
    Add(IpAddr, u8),
    Remove(IpAddr, u8),
}

impl Undo {
    fn new(links: &Links) -> Self {
        Self { links: links.clone(), index: 0, interface: String::new(), steps: Vec::new() }
    }

    /// Nothing is done yet to this interface. It may be put down, or get too small an MTU for IPv6, by which it loses addresses.
    async fn begin(&mut self, link: &Link, loses_addresses: bool) -> anyhow::Result<()> {
        (self.index, self.interface) = (link.index, link.name.clone());
        self.steps.clear();
        if loses_addresses {
            let addresses = self.links.addresses(link.index).await?;
            self.steps.extend(addresses.into_iter().map(|(address, len)| Step::Add(address, len)));
        }
        Ok(())
    }

    /// Something was set, or may have been, of an interface that was like this before.
    fn note(&mut self, before: &Link, setting: Setting) {
        let before = match setting {
            Setting::Mtu(_) => Some(Setting::Mtu(before.mtu)),
            Setting::Mac(_) => before.mac.map(Setting::Mac),
            Setting::Master(_) => Some(Setting::Master(before.master.unwrap_or(0))),
            Setting::Up(_) => Some(Setting::Up(before.is_up)),
        };
        self.steps.extend(before.map(Step::Set));
    }

    /// Does it: the last first.
    async fn put_back(self) {
        let Self { links, index, interface, steps } = self;
        for step in steps.into_iter().rev() {
            let result = match step {
                Step::Set(setting) => links.set(index, setting).await,
                Step::Add(address, len) => links.add_address(index, address, len).await,
                Step::Remove(address, len) => links.remove_address(index, address, len).await,
            };
            match result {
                // One that was deleted needs nothing any more, and nor does what was not done after all, or was not lost.
                Ok(())
                | Err(LinksError::Refused(Errno::NODEV | Errno::ADDRNOTAVAIL | Errno::EXIST)) => {}
                Err(error) => {
                    tracing::error!(
                        interface,
                        "cannot set the interface back to what it was: {error}"
                    );
                }
            }
        }
    }
}

/// Those of these addresses that an interface does not have.
async fn missing_addresses<'a>(
    links: &Links,
    link: &Link,
    wanted: &'a [Subnet],
) -> anyhow::Result<Vec<&'a Subnet>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let there = links.addresses(link.index).await?;
    let is_missing = |subnet: &&Subnet| !there.contains(&(subnet.address, subnet.prefix_len));
    Ok(wanted.iter().filter(is_missing).collect())
}

async fn add_address(links: &Links, link: &Link, subnet: &Subnet) -> Result<(), LinksError> {
    links.add_address(link.index, subnet.address, subnet.prefix_len).await
}

fn add_command(link: &Link, subnet: &Subnet) -> String {
    format!("ip addr add {subnet} dev {}", link.name)
}

/// Why an interface could not be set up.
fn refused(error: LinksError, what: &str) -> anyhow::Error {
    match error {
        LinksError::Refused(Errno::PERM) => anyhow::anyhow!(
            "cannot set it up: that needs CAP_NET_ADMIN. Without, somebody who has it does it before \
             ({what})"
        ),
        LinksError::Refused(Errno::EXIST) => anyhow::anyhow!(
            "cannot set it up as by `{what}`: it has this address with another prefix length"
        ),
        error => anyhow::anyhow!("cannot set it up as by `{what}`: {error}"),
    }
}

/// What the workers have to know of an interface.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    is_up: bool,
    mtu: u32,
}

impl State {
    /// Of one of which nothing is known: the kernel refuses what it does not take.
    const UNSEEN: Self = Self { is_up: true, mtu: u32::MAX };

    fn of(link: &Link) -> Self {
        Self { is_up: link.is_up && link.has_carrier, mtu: link.mtu }
    }

    fn apply<P: HostPort>(self, port: &mut P) {
        port.set_link(self.is_up);
        port.set_mtu(self.mtu);
    }
}

/// Where the interface is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Here, and this is its number.
    Here(u32),
    /// In another network namespace.
    Elsewhere,
    /// Deleted.
    Gone,
}

/// The workers have stopped, or the port is out of service for good: there is nothing left to be done.
struct Over;

/// What the workers get when an interface is there again.
enum Fresh<P: HostPort> {
    /// The interface, for the parts that are there.
    Shared(P::Shared),
    /// Parts that have it.
    Parts(Vec<P>),
}

/// What goes on behind a port.
struct Control<P: HostPort> {
    handle: Handle,
    again: Again,
    links: Links,
    watch: Watch,
    /// The name that the interface has, or had last.
    interface: String,
    place: Place,
    /// What the workers know.
    state: State,
    /// An interface that is back could not be attached to: when it is tried again.
    retry: Option<Duration>,
    /// What was said of that last.
    complaint: String,
    /// How long to wait after a fault.
    of_fault: Backoff,
    /// Makes the port anew.
    make: Box<Make<P>>,
    /// A bug of ours took the port down: it is to be made anew.
    has_failed: bool,
    of_app: Backoff,
}

/// Makes a port of the queues of its interface, in as many parts as there are workers.
type Make<P> = dyn Fn(Vec<Queue>, usize) -> anyhow::Result<Vec<P>> + Send + Sync;

impl<P: HostPort> Control<P> {
    async fn follow(mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Over> {
        let index = if let Place::Here(index) = self.place { Some(index) } else { None };
        let retry = self.retry;
        // What is tried again changes the interface each time, which is no news.
        let listens = self.place != Place::Elsewhere && retry.is_none();
        tokio::select! {
            trouble = self.handle.troubles.recv() => match trouble {
                Some(Trouble::Guest(fault)) if P::is_gone(&fault) => self.leave().await,
                Some(Trouble::Guest(fault)) => self.fail(&fault).await,
                Some(Trouble::Failed) => self.clear().await,
                None => Err(Over),
            },
            heard = self.watch.of(index, &self.interface), if listens => {
                match (heard, index) {
                    (Heard::Look, Some(index)) => self.look(index).await,
                    (Heard::Look, None) => self.come_back().await,
                    (Heard::Moved, _) => self.follow_no_more().await,
                }
            }
            () = sleep(retry.unwrap_or_default()), if retry.is_some() => self.come_back().await,
        }
    }

    /// Says what an operator has to know of where the interface is.
    fn say(&self) {
        let (port, interface) = (&self.handle.name, &self.interface);
        self.note_link();
        match self.place {
            Place::Here(_) => self.handle.mtus.note(port, self.state.mtu),
            Place::Elsewhere => tracing::info!(
                port,
                interface,
                "the interface is in another network namespace: its state and its MTU are not followed"
            ),
            Place::Gone => tracing::error!(
                port,
                interface,
                "the interface was deleted: the port is down until there is one of this name again"
            ),
        }
    }

    /// Tells reports whether the interface is up, as far as that is followed.
    fn note_link(&self) {
        let is_up = match self.place {
            Place::Here(_) => Some(self.state.is_up),
            Place::Gone => Some(false),
            Place::Elsewhere => None,
        };
        self.handle.mtus.note_link(&self.handle.name, is_up);
    }

    /// Decides whether the interface stays.
    fn stay(&self, persistence: Option<(bool, io::Result<Persistence>)>) {
        let Some((stays, persistence)) = persistence else { return };
        if let Err(error) = persistence.and_then(|persistence| persistence.set(stays)) {
            let (port, interface) = (&self.handle.name, &self.interface);
            let what = if stays { "stays" } else { "goes" };
            tracing::error!(port, interface, "cannot decide that the interface {what}: {error}");
        }
    }

    /// The interface is in another network namespace now.
    async fn follow_no_more(&mut self) -> Result<(), Over> {
        self.place = Place::Elsewhere;
        self.say();
        self.learn(State::UNSEEN).await
    }

    /// Looks what an interface is now.
    async fn look(&mut self, index: u32) -> Result<(), Over> {
        let link = match self.links.at(index).await {
            Ok(Some(link)) => link,
            not_here => {
                let look = |port: &mut P, _: &Poller| {
                    port.look();
                    port.is_attached()
                };
                let is_attached = self.on_port(look).await?.contains(&true);
                // If it was moved, we may have been told, and not have heard it. If it was deleted, the
                // workers say so.
                if is_attached && not_here.is_ok() {
                    return self.follow_no_more().await;
                }
                return Ok(());
            }
        };
        if link.name != self.interface {
            let port = &self.handle.name;
            tracing::info!(
                port,
                interface = self.interface,
                "the interface is `{}` now",
                link.name
            );
            self.interface.clone_from(&link.name);
        }
        if link.is_up {
            self.restore(&link).await;
        }
        self.learn(State::of(&link)).await
    }

    /// Gives an interface back the addresses that the kernel takes from one that is put down. That it was down
    /// may be over when it is looked at.
    async fn restore(&mut self, link: &Link) {
        let (port, interface) = (&self.handle.name, &self.interface);
        let wanted = &self.again.config.setup.addresses;
        let restore = async {
            for address in missing_addresses(&self.links, link, wanted).await? {
                let result = add_address(&self.links, link, address).await;
                result.map_err(|error| refused(error, &add_command(link, address)))?;
                tracing::info!(port, interface, %address, "the interface has its address again");
            }
            anyhow::Ok(())
        };
        match restore.await {
            Ok(()) => self.complaint.clear(),
            Err(error) => {
                let text = format!("{error:#}");
                // Once, and not with each look.
                if self.complaint != text {
                    tracing::error!(port, interface, "{text}");
                    self.complaint = text;
                }
            }
        }
    }

    /// Has the workers know a change.
    async fn learn(&mut self, state: State) -> Result<(), Over> {
        let before = std::mem::replace(&mut self.state, state);
        if state == before {
            return Ok(());
        }
        self.on_port(move |port, _| state.apply(port)).await?;
        self.note_link();
        let (port, interface) = (&self.handle.name, &self.interface);
        if state.is_up != before.is_up {
            let is = if state.is_up { "up" } else { "down" };
            tracing::info!(port, interface, "the interface is {is}");
        }
        if state.mtu != before.mtu && self.place != Place::Elsewhere {
            tracing::info!(port, interface, mtu = state.mtu, "the interface's MTU");
            self.handle.mtus.note(port, state.mtu);
        }
        Ok(())
    }

    /// Lets go of an interface that was deleted.
    async fn leave(&mut self) -> Result<(), Over> {
        self.let_go().await?;
        if self.has_failed {
            return Ok(());
        }
        if self.place == Place::Elsewhere {
            // One of its name that is here is somebody else's.
            let (port, interface) = (&self.handle.name, &self.interface);
            tracing::error!(
                port,
                interface,
                "the interface was deleted in another network namespace: the port is out of service until \
                 the switch is started anew"
            );
            self.handle.mtus.note_link(port, Some(false));
            return Err(Over);
        }
        self.place = Place::Gone;
        self.say();
        // It may be there again already, which was heard before.
        self.come_back().await
    }

    /// Lets go of an interface because of a fault that is not its own. If that does not delete it, it is attached to
    /// again after a while: a longer one each time, until it has gone well for long.
    async fn fail(&mut self, fault: &Fault) -> Result<(), Over> {
        let (port, interface) = (&self.handle.name, &self.interface);
        if self.place == Place::Elsewhere {
            tracing::error!(port, interface, "the port is out of service: {fault}");
            self.handle.mtus.note_link(port, Some(false));
            self.let_go().await?;
            return Err(Over);
        }
        tracing::error!(port, interface, "the port is down: {fault}");
        self.let_go().await?;
        if self.has_failed {
            return Ok(());
        }
        self.place = Place::Gone;
        if let Ok(None) = self.links.find(&self.interface).await {
            self.say();
            return Ok(());
        }
        self.retry = Some(self.of_fault.wait(Instant::now()));
        Ok(())
    }

    /// Has the workers let go of the interface.
    async fn let_go(&mut self) -> Result<(), Over> {
        // The last part's is the one that closes the queues: here.
        drop(self.on_port(|port, _| port.detach()).await?);
        // What more was found of it was said before they let go.
        while let Ok(trouble) = self.handle.troubles.try_recv() {
            if let Trouble::Failed = trouble {
                return self.clear().await;
            }
        }
        Ok(())
    }

    /// Clears away what is left of a port that a bug of ours took down. It is made anew after a while: a longer one each
    /// time.
    async fn clear(&mut self) -> Result<(), Over> {
        let app = self.handle.app;
        let detach =
            move |worker: &mut Worker| worker.with(app, |port: &mut P, _| port.detach()).flatten();
        drop(self.handle.workers.on_each(detach).await.map_err(|_| Over)?);
        while self.handle.troubles.try_recv().is_ok() {}
        let (port, interface) = (&self.handle.name, &self.interface);
        if self.place == Place::Elsewhere {
            tracing::error!(port, interface, "the port is out of service");
            return Err(Over);
        }
        let wait = self.of_app.wait(Instant::now());
        tracing::error!(port, interface, "the port is out of service for {wait:?}");
        (self.place, self.retry, self.has_failed) = (Place::Gone, Some(wait), true);
        Ok(())
    }

    /// Attaches to the interface of this name, if there is one again.
    async fn come_back(&mut self) -> Result<(), Over> {
        let retried = self.retry.take();
        let link = match self.links.find(&self.interface).await {
            Ok(Some(link)) => Some(link),
            // One that we made is gone with the port that had it.
            Ok(None) if self.has_failed => None,
            Ok(None) => return Ok(()),
            Err(_) => {
                self.retry = Some(RETRY_SLOWEST);
                return Ok(());
            }
        };
        let Again { config, several } = self.again.clone();
        let config = Tap { interface: self.interface.clone(), ..config };
        let (port, interface) = (&self.handle.name, &self.interface);
        // It is for good, whatever comes of it.
        let mut undo = Undo::new(&self.links);
        let attached = attach::<P>(&config, &self.links, several, link, &mut undo).await;
        let share = |Attached { queues, link, .. }| {
            let fresh = match self.has_failed {
                true => Fresh::Parts((self.make)(queues, self.handle.workers.len())?),
                false => Fresh::Shared(P::share(queues)?),
            };
            Ok((fresh, State::of(&link), link.index))
        };
        match attached.and_then(share) {
            Ok((fresh, state, index)) => {
                if let Err(error) = self.install(fresh, state).await? {
                    let wait = self.of_app.wait(Instant::now());
                    tracing::error!(
                        port,
                        interface,
                        "the port is out of service for {wait:?}: {error:#}"
                    );
                    // Some workers may have it.
                    self.let_go().await?;
                    (self.place, self.retry, self.has_failed) = (Place::Gone, Some(wait), true);
                    return Ok(());
                }
                let how = if self.has_failed { "started again on" } else { "attached to" };
                tracing::info!(port, interface, "{how} the interface again");
                self.complaint.clear();
                (self.place, self.state, self.has_failed) = (Place::Here(index), state, false);
                self.say();
            }
            Err(error) => {
                let wait = retried.map_or(RETRY_FIRST, |retried| (2 * retried).min(RETRY_SLOWEST));
                self.retry = Some(wait);
                let text = format!("{error:#}");
                let is_busy = matches!(error.downcast_ref(), Some(TunError::InUse));
                if self.complaint != text && (!is_busy || wait == RETRY_SLOWEST) {
                    tracing::error!(port, interface, "cannot attach to the interface: {text}");
                    self.complaint = text;
                }
            }
        }
        Ok(())
    }

    /// Gives the workers an interface, or a port that has one.
    async fn install(&self, fresh: Fresh<P>, state: State) -> Result<anyhow::Result<()>, Over> {
        let Handle { app, workers, .. } = &self.handle;
        match fresh {
            Fresh::Parts(mut parts) => {
                parts.iter_mut().for_each(|part| state.apply(part));
                Ok(workers.replace(*app, parts).await)
            }
            Fresh::Shared(shared) => {
                let attach = move |port: &mut P, poller: &Poller| {
                    state.apply(port);
                    port.attach(shared.clone(), poller)
                };
                let parts = self.on_port(attach).await?;
                Ok(parts.into_iter().try_for_each(|part| part.map(drop)).map_err(Into::into))
            }
        }
    }

    /// Runs `command` on all parts of this port, each between two breaths of its worker. A part that has failed is left out: we are
    /// told of it.
    async fn on_port<R: Send + 'static>(
        &self,
        command: impl Fn(&mut P, &Poller) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Over> {
        let Handle { app, workers, .. } = &self.handle;
        let app = *app;
        let parts = workers.on_each(move |worker| worker.with(app, command.clone())).await;
        Ok(parts.map_err(|_| Over)?.into_iter().flatten().collect())
    }
}
