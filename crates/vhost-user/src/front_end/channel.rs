//! The back-end channel: a second socket, on which the back end is the one that asks.
//!
//! # How it works
//!
//! A back end of a network device has little to ask. Its configuration may have changed: the MAC
//! address, the MTU, the link's state. Everything else is refused, and said so where an
//! acknowledgement is asked for, which any back end must be ready for. What is not even a message
//! ends the channel, and not the device: it works without.
//!
//! A back end may send as much as it likes, and we keep what nobody has taken yet. So there is a
//! bound, beyond which nothing more is read: the socket fills up, and it has to wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wire::vhost_user::{Answer, BackEndRequest, Gate, Payload, ProtocolFeatures};

use crate::connection::{Connection, ConnectionError, Incoming, Message};
use crate::descriptor::Descriptor;

/// The most events that are kept.
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
}

impl Channel {
    /// A channel, and the back end's end of it.
    pub(super) fn new() -> io::Result<(Self, Descriptor)> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(family, SocketType::STREAM, flags, None)?;
        let connection = Connection::new(ours).map_err(io::Error::other)?;
        Ok((Self { connection: Some(connection), events: VecDeque::new() }, theirs.into()))
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// The socket, while there is room for what comes.
    pub(super) fn wanted(&self) -> Option<BorrowedFd<'_>> {
        self.socket().filter(|_| self.events.len() < MAX_EVENTS)
    }

    pub(super) fn take(&mut self) -> Option<BackEndEvent> {
        self.events.pop_front()
    }

    /// Serves all that has come, as far as there is room for it. Never blocks.
    pub(super) fn serve(&mut self, protocol: ProtocolFeatures) {
        while self.events.len() < MAX_EVENTS
            && let Some(connection) = &mut self.connection
        {
            let event = match connection.receive() {
                Ok(Incoming::NotYet) => return,
                Ok(Incoming::Closed) => BackEndEvent::Ended(None),
                Ok(Incoming::Message(message)) => answer(connection, message, protocol)
                    .unwrap_or_else(|error| BackEndEvent::Ended(Some(error))),
                Err(error) => BackEndEvent::Ended(Some(error)),
            };
            if matches!(event, BackEndEvent::Ended(_)) {
                self.connection = None;
            }
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
        // What the socket does not take now goes with the next answer; a back end that reads none of
        // them is given up when too many wait.
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
