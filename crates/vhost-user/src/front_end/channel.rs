//! The back-end channel: a second socket, on which the back end is the one that asks.
//!
//! # How it works
//!
//! A back end of a network device has little to ask. Its configuration may have changed: the MAC
//! address, the MTU, the link's state. Everything else is refused, and said so where an
//! acknowledgement is asked for, which any back end must be ready for. What is not even a message
//! ends the channel, and not the device: it works without.
//!
//! A back end may send as much as it likes, and may wait for an answer to each. So all of it is answered,
//! a bounded number at a time, and of what nobody has taken yet no more is kept than tells all there is.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wire::vhost_user::{Answer, BackEndRequest, Gate, Payload, ProtocolFeatures};

use crate::connection::{Connection, ConnectionError, Incoming, Message};
use crate::descriptor::Descriptor;

/// The most refusals that are kept, and the most messages that are answered at a time.
const MAX_EVENTS: usize = 64;

/// What a back end did on its channel.
#[derive(Debug)]
pub enum BackEndEvent {
    /// The configuration space has changed (BACKEND_CONFIG_CHANGE_MSG).
    ConfigChanged,
    /// It asked for something that was refused.
    Refused {
        /// The number of the message.
        number: u32,
    },
    /// The channel is at its end: closed by the back end, or, with an error, by us.
    Ended(Option<ConnectionError>),
}

/// Our end.
pub(super) struct Channel {
    /// `None` when it is at its end.
    connection: Option<Connection>,
    events: VecDeque<BackEndEvent>,
    /// Answers wait for room in the socket.
    pub(super) is_congested: bool,
}

impl Channel {
    /// A channel, and the back end's end of it.
    pub(super) fn new() -> io::Result<(Self, Descriptor)> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(family, SocketType::STREAM, flags, None)?;
        let connection = Connection::new(ours).map_err(io::Error::other)?;
        let connection = Some(connection);
        Ok((Self { connection, events: VecDeque::new(), is_congested: false }, theirs.into()))
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// What to wait for.
    pub(super) fn wanted(&self) -> Option<PollFd<'_>> {
        let out = if self.is_congested { PollFlags::OUT } else { PollFlags::empty() };
        self.socket().map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN | out))
    }

    /// The next event. Serves what has come when there is none.
    pub(super) fn take(&mut self, protocol: ProtocolFeatures) -> Option<BackEndEvent> {
        if self.events.is_empty() {
            self.serve(protocol);
        }
        self.events.pop_front()
    }

    /// Serves what has come. Never blocks.
    pub(super) fn serve(&mut self, protocol: ProtocolFeatures) {
        for _ in 0..MAX_EVENTS {
            let Some(connection) = &mut self.connection else { return };
            let event = match connection.receive() {
                Ok(Incoming::NotYet) => break,
                Ok(Incoming::Closed) => BackEndEvent::Ended(None),
                Ok(Incoming::Message(message)) => answer(connection, message, protocol)
                    .unwrap_or_else(|error| BackEndEvent::Ended(Some(error))),
                Err(error) => BackEndEvent::Ended(Some(error)),
            };
            self.note(event);
        }
        match self.connection.as_mut().map(Connection::flush) {
            Some(Ok(gone)) => self.is_congested = !gone,
            Some(Err(error)) => self.note(BackEndEvent::Ended(Some(error))),
            None => {}
        }
    }

    /// Keeps an event that says something new: one change stands for all until it is looked at, and of
    /// many refusals the first ones do.
    fn note(&mut self, event: BackEndEvent) {
        let is_news = match event {
            BackEndEvent::ConfigChanged => {
                !self.events.iter().any(|event| matches!(event, BackEndEvent::ConfigChanged))
            }
            BackEndEvent::Refused { .. } => self.events.len() < MAX_EVENTS,
            BackEndEvent::Ended(_) => {
                self.connection = None;
                true
            }
        };
        if is_news {
            self.events.push_back(event);
        }
    }
}

/// Answers one message.
fn answer(
    connection: &mut Connection,
    message: Message,
    protocol: ProtocolFeatures,
) -> Result<BackEndEvent, ConnectionError> {
    let Message { header, payload, descriptors } = message;
    let number = header.request;
    let request = BackEndRequest::from_number(number).filter(|request| {
        !header.reply && request.message().check(payload.len(), descriptors.len()).is_ok()
    });
    let event = match request {
        Some(request @ BackEndRequest::ConfigChange) if is_agreed(request, protocol) => {
            BackEndEvent::ConfigChanged
        }
        _ => BackEndEvent::Refused { number },
    };
    // A request with a reply of its own, too, has a number for one that is refused.
    let replies = request
        .is_some_and(|request| request.message().answer != Answer::Acknowledgement)
        || (header.need_reply && protocol.contains(ProtocolFeatures::REPLY_ACK));
    if replies && !header.reply {
        let code = u64::from(!matches!(event, BackEndEvent::ConfigChanged));
        // A back end that reads no answers is given up when too many wait.
        connection.send(Message::reply_to(number, Payload::U64(code).encode()))?;
    }
    Ok(event)
}

fn is_agreed(request: BackEndRequest, protocol: ProtocolFeatures) -> bool {
    match request.message().gate {
        Gate::Open => true,
        Gate::Offered(_) => false,
        Gate::Protocol(needs) => protocol.contains(needs),
    }
}
