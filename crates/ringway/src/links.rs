//! The interfaces of the host, over rtnetlink: looked up, set up, and followed.
//!
//! What the kernel says of changes is a hint to look, no more: some of it may be lost, when there is more
//! than a socket holds. So there are two sockets. One asks, and its answers are never behind a flood of
//! news; the other listens, and passes on which interface it was about, or that something was lost.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload, Nla};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, MulticastGroup};
use rustix::io::Errno;
use thiserror::Error;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::ethernet::MacAddress;

/// News that wait for a port's control. One that is further behind looks for itself.
const NEWS: usize = 64;

/// The kernel answers within this time, unless something is very wrong: whatever changes an interface waits
/// for whoever else does.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What the kernel answered, if not what was asked for.
#[derive(Debug, Error)]
pub enum LinksError {
    /// It said why.
    #[error("{0}")]
    Refused(Errno),
    /// There was no answer that makes sense.
    #[error("rtnetlink: {0}")]
    Unclear(rtnetlink::Error),
    /// There was none.
    #[error("rtnetlink did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
}

/// Waits for an answer, but not for ever.
async fn within_limit<T>(
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, LinksError> {
    Ok(timeout(ANSWER_LIMIT, answer).await.map_err(|_| LinksError::Silent)??)
}

impl From<rtnetlink::Error> for LinksError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                Self::Refused(Errno::from_raw_os_error(message.raw_code().saturating_abs()))
            }
            other => Self::Unclear(other),
        }
    }
}

/// What an interface is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which no other gets while this network namespace lives.
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub mac: Option<MacAddress>,
    /// Somebody has put it up.
    pub is_up: bool,
    /// It could pass frames, if it is up.
    pub has_carrier: bool,
    /// The number of the bridge, or the like, that it belongs to.
    pub master: Option<u32>,
    pub is_bridge: bool,
    /// It is a tun or tap interface whose frames have four bytes of packet information before them.
    pub has_packet_information: bool,
}

impl Link {
    fn read(message: LinkMessage) -> Self {
        let LinkMessage { header, attributes, .. } = message;
        let mut link = Self {
            index: header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            is_up: header.flags.contains(LinkFlags::Up),
            has_carrier: header.flags.contains(LinkFlags::LowerUp),
            master: None,
            is_bridge: false,
            has_packet_information: false,
        };
        for attribute in attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.has_packet_information = infos.iter().any(has_packet_information);
                }
                _ => {}
            }
        }
        link
    }
}

/// Whether this says so: IFLA_TUN_PI, which rtnetlink has no name for.
fn has_packet_information(info: &LinkInfo) -> bool {
    const IFLA_TUN_PI: u16 = 4;
    let LinkInfo::Data(InfoData::Tun(infos)) = info else { return false };
    infos.iter().any(|info| {
        let mut value = [0];
        let is_it = info.kind() == IFLA_TUN_PI && info.value_len() == value.len();
        if is_it {
            info.emit_value(&mut value);
        }
        value != [0]
    })
}

/// One thing to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Mtu(u32),
    Mac(MacAddress),
    /// The number of the bridge that it is to belong to; 0 for none.
    Master(u32),
    Up(bool),
}

/// What was heard of an interface.
#[derive(Clone, Debug)]
enum News {
    /// It was created, or something changed.
    Changed { index: u32, name: String },
    /// It is in another network namespace now.
    Moved { index: u32 },
    /// Something was not heard.
    Lost,
}

/// The interfaces of this network namespace. Cheap to clone; ends with the last clone.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    ask: rtnetlink::Handle,
    news: broadcast::Sender<News>,
    /// The sockets, as tasks that end with this.
    _tasks: JoinSet<()>,
}

impl Links {
    /// Opens the sockets, on the runtime that this is called on.
    pub fn open() -> io::Result<Self> {
        let (asking, ask, _) = rtnetlink::new_connection()?;
        let (listening, _, mut heard) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        let (news, _) = broadcast::channel(NEWS);
        let mut tasks = JoinSet::new();
        tasks.spawn(asking);
        tasks.spawn(listening);
        let spread = news.clone();
        tasks.spawn(async move {
            while let Some((message, _)) = heard.next().await {
                // Nobody may be there who wants to know.
                let _ = spread.send(read_news(message));
            }
        });
        Ok(Self(Arc::new(Shared { ask, news, _tasks: tasks })))
    }

    /// The interface of this name, if there is one.
    pub async fn find(&self, name: &str) -> Result<Option<Link>, LinksError> {
        self.get(self.0.ask.link().get().match_name(name)).await
    }

    /// The interface with this number, if it is there.
    pub async fn at(&self, index: u32) -> Result<Option<Link>, LinksError> {
        self.get(self.0.ask.link().get().match_index(index)).await
    }

    async fn get(&self, request: rtnetlink::LinkGetRequest) -> Result<Option<Link>, LinksError> {
        match within_limit(std::pin::pin!(request.execute()).try_next()).await {
            Ok(message) => Ok(message.map(Link::read)),
            Err(LinksError::Refused(Errno::NODEV)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets something of the interface with this number.
    pub async fn set(&self, index: u32, setting: Setting) -> Result<(), LinksError> {
        let change: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index);
        let change = match setting {
            Setting::Mtu(mtu) => change.mtu(mtu),
            Setting::Mac(MacAddress(bytes)) => change.address(bytes.to_vec()),
            Setting::Master(index) => change.controller(index),
            Setting::Up(true) => change.up(),
            Setting::Up(false) => change.down(),
        };
        within_limit(self.0.ask.link().change(change.build()).execute()).await
    }

    /// The IP addresses of the interface with this number.
    pub async fn addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>, LinksError> {
        Ok(self.address_messages(index).await?.iter().filter_map(read_address).collect())
    }

    async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>, LinksError> {
        let request = self.0.ask.address().get().set_link_index_filter(index);
        within_limit(request.execute().try_collect()).await
    }

    /// Gives the interface with this number an IP address, which is refused if it has that (of IPv6, with whatever prefix: the kernel would
    /// leave that as it is, and say that it is done).
    pub async fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), LinksError> {
        let request = self.0.ask.address().add(index, address, prefix_len);
        within_limit(request.execute()).await
    }

    /// Takes an IP address from the interface with this number, if it has that.
    pub async fn remove_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), LinksError> {
        let is_it = |message: &AddressMessage| read_address(message) == Some((address, prefix_len));
        match self.address_messages(index).await?.into_iter().find(is_it) {
            Some(message) => within_limit(self.0.ask.address().del(message).execute()).await,
            None => Ok(()),
        }
    }

    /// News from now on.
    pub fn watch(&self) -> Watch {
        Watch(self.0.news.subscribe())
    }
}

/// An address, and the length of its prefix.
fn read_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    // IPv6 has it only if there is another end.
    let only = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let attributes = &message.attributes;
    let found = attributes.iter().find_map(local);
    let found = found.or_else(|| attributes.iter().find_map(only))?;
    Some((found, message.header.prefix_len))
}

fn read_news(message: NetlinkMessage<RouteNetlinkMessage>) -> News {
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
            let Link { index, name, .. } = Link::read(message);
            News::Changed { index, name }
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => {
            let to_another =
                |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::NewNetnsId(_));
            let moved = message.attributes.iter().any(to_another);
            let Link { index, name, .. } = Link::read(message);
            if moved { News::Moved { index } } else { News::Changed { index, name } }
        }
        _ => News::Lost,
    }
}

/// Waits for news.
pub struct Watch(broadcast::Receiver<News>);

/// What to do about news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Look what the interface is now.
    Look,
    /// It is in another network namespace: nothing more will be heard of it.
    Moved,
}

impl Watch {
    /// Waits for news of the interface with this number, or of one of this name. May be cancelled.
    pub async fn of(&mut self, number: Option<u32>, name: &str) -> Heard {
        loop {
            match self.0.recv().await {
                Ok(News::Changed { index, name: other }) => {
                    if number.map_or(other == name, |number| number == index) {
                        return Heard::Look;
                    }
                }
                Ok(News::Moved { index }) if number == Some(index) => return Heard::Moved,
                Ok(News::Moved { .. }) => {}
                Ok(News::Lost) | Err(RecvError::Lagged(_)) => return Heard::Look,
                // The sockets are gone, which they are not while somebody has the links.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
