//! Whole messages over a Unix stream socket.
//!
//! The socket is non-blocking and a message may come byte by byte, so the part that is already
//! here is kept between calls. Three rules keep a hostile peer harmless:
//!
//! * Reading stops at the end of the message: first the 12 bytes of the header, then exactly the
//!   announced payload, which the header's check has bounded. Nothing is allocated by a number
//!   that was not checked.
//! * Descriptors are taken only with the first bytes of a header. Every read offers room for as many
//!   as the kernel lets anybody send all the same, because it closes, within our call, what has no
//!   room; so those that come too late, or too many, are seen, and the connection ends.
//! * Every descriptor is a [`Descriptor`] from the system call on: whatever way a message ends, they
//!   are closed, and nobody but a thread of the connection's own waits for that. So it is with the
//!   socket itself, if there is something in it: it closes with it whatever descriptors the peer has sent and we have not read.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use wire::vhost_user::{Header, HeaderError, MAX_DESCRIPTORS};

use crate::closer::Closer;
use crate::descriptor::{self, Descriptor};

/// The most messages that wait for a peer that does not read.
const MAX_OUTGOING: usize = 16;
/// The most descriptors of a peer's that take their time to be closed.
const MAX_UNCLOSED: usize = 16;
/// The most descriptors that come at once (unix(7), `SCM_RIGHTS`).
const SCM_MAX_FD: usize = 253;

/// A message, in either direction.
#[derive(Debug)]
pub struct Message {
    /// Its header; `size` is the length of `payload`.
    pub header: Header,
    /// Its payload, not decoded.
    pub payload: Vec<u8>,
    /// The descriptors that ride with it.
    pub descriptors: Vec<Descriptor>,
}

impl Message {
    /// A request. The payload is at most [`wire::vhost_user::MAX_PAYLOAD`] bytes.
    pub fn request(
        number: u32,
        need_reply: bool,
        payload: Vec<u8>,
        descriptors: Vec<OwnedFd>,
    ) -> Self {
        let header = Header::request(number, need_reply, payload.len() as u32);
        let descriptors = descriptors.into_iter().map(Descriptor::from).collect();
        Self { header, payload, descriptors }
    }

    /// The reply to a request.
    pub fn reply_to(number: u32, payload: Vec<u8>) -> Self {
        let header = Header::reply_to(number, payload.len() as u32);
        Self { header, payload, descriptors: Vec::new() }
    }
}

impl Message {
    /// The message in words, descriptors included: for people who watch a front end and a back end.
    pub fn describe(&self) -> String {
        let words = wire::vhost_user::describe(&self.header, &self.payload);
        let kinds: Vec<String> =
            self.descriptors.iter().map(|one| descriptor::kind(one.as_fd())).collect();
        if kinds.is_empty() { words } else { format!("{words}, with {}", kinds.join(" ")) }
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the peer to us.
    Received,
    /// From us to the peer.
    Sent,
}

/// Is shown every message that passes: each that came, before it is acted on, and each that goes,
/// before it is sent.
pub type Observer = Box<dyn Fn(Direction, &Message) + Send + Sync>;

/// What a read found.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message.
    Message(Message),
    /// The rest of the message is still to come: wait until the socket is readable.
    NotYet,
    /// The peer closed the connection, between two messages.
    Closed,
}

/// Why a connection is at its end.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The kernel refused.
    #[error("the socket failed: {0}")]
    Io(std::io::Error),
    /// A header that starts no message.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The peer went away in the middle of a message.
    #[error("the peer closed the connection inside a message, after {received} bytes of it")]
    CutOff {
        /// Bytes of the message that came.
        received: usize,
    },
    /// More descriptors than any message carries, or than this process may have.
    #[error(
        "a message carries more than {MAX_DESCRIPTORS} file descriptors (vhost-user, \
         \"Communication\"), or this process has too many open files"
    )]
    TooManyDescriptors,
    /// Descriptors behind the first bytes of a message.
    #[error("file descriptors inside a message, not at its start (vhost-user, \"Communication\")")]
    StrayDescriptors,
    /// The peer went away before it read an answer.
    #[error("the peer closed the connection before it read the answer")]
    Gone,
    /// Descriptors come faster than they can be closed.
    #[error(
        "{MAX_UNCLOSED} file descriptors that the peer sent are still being closed: whoever is behind \
         them takes his time"
    )]
    NotClosed,
    /// The peer takes no messages.
    #[error("the peer does not read: {MAX_OUTGOING} messages wait for it")]
    NotReading,
}

impl From<std::io::Error> for ConnectionError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for ConnectionError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The message that is being read.
enum Partial {
    Header { bytes: [u8; Header::SIZE], filled: usize, descriptors: Vec<Descriptor> },
    Payload { header: Header, payload: Vec<u8>, filled: usize, descriptors: Vec<Descriptor> },
}

impl Partial {
    const START: Self =
        Self::Header { bytes: [0; Header::SIZE], filled: 0, descriptors: Vec::new() };
}

/// A message that is being sent.
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Leave with the first byte, and are closed here once they have left.
    descriptors: Vec<Descriptor>,
}

/// One end of a vhost-user connection. When it is dropped, the peer sees at once that it is at its end,
/// whoever else has the socket.
pub struct Connection {
    socket: Descriptor,
    closer: Closer,
    partial: Partial,
    outgoing: VecDeque<Outgoing>,
    observer: Option<Observer>,
}

impl Connection {
    /// Takes over a connected Unix stream socket and makes it non-blocking.
    pub fn new(socket: OwnedFd) -> Result<Self, ConnectionError> {
        Self::with_closer(socket, &Closer::new())
    }

    /// The same, with a closer that other connections have, too: for a place where peers come and go, so
    /// that all that was not closed yet can be waited for before the next is served.
    pub fn with_closer(socket: OwnedFd, closer: &Closer) -> Result<Self, ConnectionError> {
        let connection = Self {
            socket: Descriptor::new(socket, closer),
            closer: closer.clone(),
            partial: Partial::START,
            outgoing: VecDeque::new(),
            observer: None,
        };
        rustix::io::ioctl_fionbio(&connection.socket, true)?;
        Ok(connection)
    }

    /// What closes the socket and what the peer has sent.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// From now on, shows every message that passes to `observer`.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// Reads on. Never blocks.
    pub fn receive(&mut self) -> Result<Incoming, ConnectionError> {
        if self.closer.pending() > MAX_UNCLOSED {
            return Err(ConnectionError::NotClosed);
        }
        loop {
            if let Some(message) = self.take_complete()? {
                if let Some(observer) = &self.observer {
                    observer(Direction::Received, &message);
                }
                return Ok(Incoming::Message(message));
            }
            match self.fill() {
                Ok(0) => {
                    return match self.received() {
                        0 => Ok(Incoming::Closed),
                        received => Err(ConnectionError::CutOff { received }),
                    };
                }
                Ok(_) => {}
                Err(ConnectionError::Io(error))
                    if error.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    return Ok(Incoming::NotYet);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a message, or as much of it as the socket takes; the rest waits for [`Self::flush`].
    /// Returns whether everything is gone. Never blocks.
    pub fn send(&mut self, message: Message) -> Result<bool, ConnectionError> {
        if self.outgoing.len() >= MAX_OUTGOING {
            return Err(ConnectionError::NotReading);
        }
        if let Some(observer) = &self.observer {
            observer(Direction::Sent, &message);
        }
        let mut bytes = message.header.encode().to_vec();
        bytes.extend(message.payload);
        let mut descriptors = message.descriptors;
        descriptors.iter_mut().for_each(|descriptor| descriptor.leave_to(&self.closer));
        self.outgoing.push_back(Outgoing { bytes, sent: 0, descriptors });
        self.flush()
    }

    /// Goes on sending. Returns whether everything is gone; if not, wait until the socket is
    /// writable. Never blocks.
    pub fn flush(&mut self) -> Result<bool, ConnectionError> {
        while let Some(message) = self.outgoing.front_mut() {
            match send_some(&self.socket, message) {
                Ok(sent) => {
                    message.sent += sent;
                    message.descriptors.clear();
                    if message.sent >= message.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ConnectionError::Gone),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Bytes of the message at hand that have come.
    fn received(&self) -> usize {
        match &self.partial {
            Partial::Header { filled, .. } => *filled,
            Partial::Payload { filled, .. } => Header::SIZE + filled,
        }
    }

    /// Steps from a whole header to its payload, and takes the message out once it is whole.
    fn take_complete(&mut self) -> Result<Option<Message>, ConnectionError> {
        if let Partial::Header { bytes, filled: Header::SIZE, descriptors } = &mut self.partial {
            let header = Header::decode(bytes)?;
            let payload = vec![0; header.size as usize];
            let descriptors = std::mem::take(descriptors);
            self.partial = Partial::Payload { header, payload, filled: 0, descriptors };
        }
        match std::mem::replace(&mut self.partial, Partial::START) {
            Partial::Payload { header, payload, filled, descriptors }
                if filled == payload.len() =>
            {
                Ok(Some(Message { header, payload, descriptors }))
            }
            partial => {
                self.partial = partial;
                Ok(None)
            }
        }
    }

    /// One system call's worth of bytes; 0 at the end of the stream.
    fn fill(&mut self) -> Result<usize, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (buffer, filled, first) = match &mut self.partial {
            Partial::Header { bytes, filled, descriptors } => {
                let first = (*filled == 0).then_some(descriptors);
                (bytes.as_mut_slice(), filled, first)
            }
            Partial::Payload { payload, filled, .. } => (payload.as_mut_slice(), filled, None),
        };
        let wanted = buffer.get_mut(*filled..).unwrap_or_default();
        let received = loop {
            let wanted = &mut [IoSliceMut::new(wanted)];
            match recvmsg(&self.socket, wanted, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // The peer closed its end without having read everything.
                Err(Errno::CONNRESET) => return Ok(0),
                result => break result?,
            }
        };
        let arrived: Vec<Descriptor> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .map(|descriptor| Descriptor::new(descriptor, &self.closer))
            .collect();
        let truncated = received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
        if truncated || arrived.len() > MAX_DESCRIPTORS {
            return Err(ConnectionError::TooManyDescriptors);
        }
        match first {
            Some(descriptors) => *descriptors = arrived,
            None if arrived.is_empty() => {}
            None => return Err(ConnectionError::StrayDescriptors),
        }
        *filled += received.bytes;
        Ok(received.bytes)
    }
}

fn send_some(socket: &Descriptor, message: &Outgoing) -> Result<usize, Errno> {
    let borrowed: Vec<BorrowedFd<'_>> = message.descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::INVAL);
    }
    let rest = IoSlice::new(message.bytes.get(message.sent..).unwrap_or_default());
    sendmsg(socket, &[rest], &mut control, SendFlags::NOSIGNAL)
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The closer may have others to close first.
        self.socket.end_connection();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
