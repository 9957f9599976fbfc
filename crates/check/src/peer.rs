//! A connection to the back end on which anything can be said, right or wrong.
//!
//! It does not use the `vhost-user` crate: a judge that shares the code of the accused would not see
//! what is wrong with it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use wire::vhost_user::{FrontEndRequest, Payload, ProtocolFeatures, Shape};
use wire::virtio::Features;

use crate::verdict::{Check, Stop, ensure, fail, skip};

/// Version 1.
pub const VERSION: u32 = 1;
/// Flag of a reply.
pub const REPLY: u32 = 4;
/// Flag of a request that asks for an acknowledgement.
pub const NEED_REPLY: u32 = 8;
/// Flags that mean something; of the others nothing is said.
pub const FLAGS: u32 = 0xf;
/// The most descriptors that the kernel passes at once.
pub const MOST_DESCRIPTORS: usize = 253;
/// How long nothing may come before we believe that nothing comes.
pub const QUIET: Duration = Duration::from_millis(100);

/// What the back end made of a request that it should refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An acknowledgement of 0.
    Accepted,
    /// An acknowledgement of another value.
    Refused(u64),
    /// It closed the connection.
    Closed,
}

/// A message that came.
#[derive(Debug)]
pub struct Reply {
    /// Its number.
    pub number: u32,
    /// Its flags.
    pub flags: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub descriptors: usize,
}

/// A connection.
pub struct Peer {
    socket: OwnedFd,
    limit: Duration,
    /// Virtio features that the back end offers, once asked.
    pub offered: Features,
    /// Protocol features that were agreed.
    pub protocol: ProtocolFeatures,
}

/// The bytes of a message.
pub fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = [number, flags, payload.len() as u32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(payload);
    bytes
}

impl Peer {
    /// Connects. `limit` is how long each answer may take.
    pub fn connect(path: &Path, limit: Duration) -> Check<Self> {
        let socket = sys::connect(path, limit)
            .map_err(|error| fail(format!("cannot connect to {}: {error}", path.display())))?;
        Ok(Self { socket, limit, offered: Features::NONE, protocol: ProtocolFeatures::NONE })
    }

    /// The back end's process, where the kernel can tell.
    pub fn process(&self) -> Option<i32> {
        let credentials = socket_peercred(&self.socket).ok()?;
        Some(credentials.pid.as_raw_nonzero().get()).filter(|pid| *pid > 0)
    }

    /// Sends bytes as they are, with descriptors on the first of them.
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Check {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(fail("too many descriptors to send"));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(fail("the back end closed the connection"));
                }
                Err(Errno::AGAIN) => return Err(fail("the back end does not read its socket")),
                Err(error) => return Err(fail(format!("cannot send: {error}"))),
            }
        }
        Ok(())
    }

    /// Sends bytes one by one, each when the one before was read: the back end sees pieces. One that reads
    /// nothing before it has everything is not waited for.
    pub fn send_slowly(&self, bytes: &[u8]) -> Check {
        let deadline = Instant::now() + QUIET;
        for byte in bytes {
            self.send_bytes(&[*byte], &[])?;
            while sys::is_read(&self.socket).is_ok_and(|read| !read) && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Sends a request with any number, flags and payload.
    pub fn send(
        &self,
        number: u32,
        flags: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Check {
        self.send_bytes(&message(number, flags, payload), descriptors)
    }

    /// Sends a request with its payload as it should be, and does not ask for an acknowledgement.
    pub fn say(&self, request: FrontEndRequest, payload: &Payload) -> Check {
        self.send(request.number(), VERSION, &payload.encode(), &[])
    }

    /// Whether something can be read, or the connection is closed, within `limit`.
    pub fn readable(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut polled, Some(&left)) {
                Err(Errno::INTR) => {}
                result => return result.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Reads exactly `bytes`. None at the end of the stream.
    fn read(
        &self,
        bytes: &mut [u8],
        descriptors: &mut usize,
        deadline: Instant,
    ) -> Check<Option<()>> {
        let mut filled = 0;
        while filled < bytes.len() {
            if !self.readable(deadline.saturating_duration_since(Instant::now())) {
                return Err(fail(format!("no answer within {:?}", self.limit)));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let wanted = bytes.get_mut(filled..).unwrap_or_default();
            let wanted = &mut [IoSliceMut::new(wanted)];
            match recvmsg(&self.socket, wanted, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(received) => filled += received.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(fail(format!("cannot receive: {error}"))),
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(arrived) = message {
                    *descriptors += arrived.count();
                }
            }
        }
        Ok(Some(()))
    }

    /// The next message. None when the back end closed the connection.
    pub fn receive(&self) -> Check<Option<Reply>> {
        self.receive_until(Instant::now() + self.limit)
    }

    fn receive_until(&self, deadline: Instant) -> Check<Option<Reply>> {
        let mut header = [0; 12];
        let mut descriptors = 0;
        if self.read(&mut header, &mut descriptors, deadline)?.is_none() {
            return Ok(None);
        }
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let [number, flags, size] = [word(0), word(4), word(8)];
        ensure(
            size <= 4096,
            format!("a message of {size} bytes came, which is more than vhost-user has"),
        )?;
        let mut payload = vec![0; size as usize];
        if self.read(&mut payload, &mut descriptors, deadline)?.is_none() {
            return Err(fail("the connection was closed inside a message"));
        }
        Ok(Some(Reply { number, flags, payload, descriptors }))
    }

    /// The reply to a request, whose header must be right.
    pub fn reply(&self, request: FrontEndRequest) -> Check<Reply> {
        let Some(reply) = self.receive().map_err(|stop| about(request, stop))? else {
            return Err(fail(format!("the connection was closed instead of a reply to {request}")));
        };
        ensure(
            reply.number == request.number(),
            format!("a message with number {} came instead of a reply to {request}", reply.number),
        )?;
        ensure(
            reply.flags & FLAGS == VERSION | REPLY,
            format!("the reply to {request} has flags {:#x}, not 0x5", reply.flags),
        )?;
        Ok(reply)
    }

    /// Sends a request that has a reply of its own, and decodes that.
    pub fn ask(&self, request: FrontEndRequest, payload: &Payload, shape: Shape) -> Check<Payload> {
        self.say(request, payload)?;
        let reply = self.reply(request)?;
        Payload::decode(shape, &reply.payload).ok_or_else(|| {
            fail(format!("the reply to {request} has {} bytes of payload", reply.payload.len()))
        })
    }

    /// Sends a request that is answered with a number.
    pub fn ask_u64(&self, request: FrontEndRequest) -> Check<u64> {
        match self.ask(request, &Payload::Empty, Shape::U64)? {
            Payload::U64(value) => Ok(value),
            _ => Err(fail("the reply is not a number")),
        }
    }

    /// Sends a request that must succeed: asks for an acknowledgement where that was agreed, and
    /// otherwise has GET_FEATURES answered after it.
    pub fn tell(
        &self,
        request: FrontEndRequest,
        payload: &Payload,
        descriptors: &[BorrowedFd<'_>],
    ) -> Check {
        self.tell_bytes(request, &payload.encode(), descriptors)
    }

    /// As [`Self::tell`], with a payload in bytes.
    pub fn tell_bytes(
        &self,
        request: FrontEndRequest,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Check {
        match self.try_bytes(request.number(), payload, descriptors)? {
            Answer::Accepted => Ok(()),
            Answer::Refused(code) => Err(fail(format!("{request} was refused with {code}"))),
            Answer::Closed => Err(fail(format!("the back end closed the connection on {request}"))),
        }
    }

    /// Sends a request and returns what the back end made of it. Without REPLY_ACK only a closed
    /// connection can be told from success.
    pub fn try_bytes(
        &self,
        number: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Check<Answer> {
        let acknowledged = self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let flags = if acknowledged { VERSION | NEED_REPLY } else { VERSION };
        if self.send(number, flags, payload, descriptors).is_err() {
            return Ok(Answer::Closed);
        }
        let get_features = FrontEndRequest::GetFeatures;
        if !acknowledged && self.send(get_features.number(), VERSION, &[], &[]).is_err() {
            return Ok(Answer::Closed);
        }
        let expected = if acknowledged { number } else { get_features.number() };
        let Some(reply) = self.receive()? else { return Ok(Answer::Closed) };
        let request = FrontEndRequest::from_number(number)
            .map_or_else(|| format!("request {number}"), |request| request.to_string());
        ensure(
            reply.number == expected && reply.flags & FLAGS == VERSION | REPLY,
            format!("after {request} came message {} with flags {:#x}", reply.number, reply.flags),
        )?;
        if !acknowledged {
            return Ok(Answer::Accepted);
        }
        match Payload::decode(Shape::U64, &reply.payload) {
            Some(Payload::U64(0)) => Ok(Answer::Accepted),
            Some(Payload::U64(code)) => Ok(Answer::Refused(code)),
            _ => Err(fail(format!(
                "the acknowledgement of {request} has {} bytes of payload, not 8",
                reply.payload.len()
            ))),
        }
    }

    /// Has GET_FEATURES answered: all that was sent before has been read then.
    pub fn barrier(&self) -> Check {
        self.ask_u64(FrontEndRequest::GetFeatures).map(drop)
    }

    /// Fails when a message comes, or the connection is closed, while nothing should.
    pub fn expect_silence(&self) -> Check {
        if !self.readable(QUIET) {
            return Ok(());
        }
        match self.receive()? {
            Some(reply) => Err(fail(format!("message {} came unasked", reply.number))),
            None => Err(fail("the back end closed the connection")),
        }
    }

    /// Waits until the back end has closed the connection. Whatever it still says is passed over, and does not
    /// give it more time.
    pub fn closed(&self) -> bool {
        let deadline = Instant::now() + self.limit;
        while Instant::now() < deadline {
            match self.receive_until(deadline) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Ends the connection.
    pub fn hang_up(&self) {
        // The only error is that it has ended already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Introduces the front end: SET_OWNER, and of these protocol features those that are offered.
    pub fn hello(&mut self, protocol: ProtocolFeatures) -> Check {
        self.ask_features()?;
        self.say(FrontEndRequest::SetOwner, &Payload::Empty)?;
        self.agree(protocol)
    }

    /// Asks for the features that are offered.
    pub fn ask_features(&mut self) -> Check {
        self.offered = Features(self.ask_u64(FrontEndRequest::GetFeatures)?);
        Ok(())
    }

    /// Agrees, once features were asked for, on those of these protocol features that are offered.
    pub fn agree(&mut self, protocol: ProtocolFeatures) -> Check {
        use FrontEndRequest as R;
        if self.offered.contains(Features::PROTOCOL_FEATURES) {
            let offered = ProtocolFeatures(self.ask_u64(R::GetProtocolFeatures)?);
            let agreed = offered & protocol;
            self.say(R::SetProtocolFeatures, &Payload::U64(agreed.0))?;
            self.protocol = agreed;
        }
        Ok(())
    }

    /// Skips the case when these protocol features were not agreed.
    pub fn needs(&self, protocol: ProtocolFeatures) -> Check {
        let missing = protocol.without(self.protocol);
        if missing.is_empty() { Ok(()) } else { Err(skip(format!("{missing} is not offered"))) }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn about(request: FrontEndRequest, stop: Stop) -> Stop {
    match stop {
        Stop::Fail(seen) => fail(format!("{request}: {seen}")),
        skip => skip,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// It is for the test to end the talk, by hanging up.
    #[test]
    fn one_that_talks_for_ever_has_not_closed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let peer = Peer::connect(&path, Duration::from_millis(100)).expect("a connection");
        let (mut talker, _) = listener.accept().expect("a connection");
        let talk = thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(10);
            let word = message(1, VERSION | REPLY, &[0; 8]);
            while Instant::now() < deadline && talker.write_all(&word).is_ok() {}
        });
        let start = Instant::now();
        assert!(!peer.closed());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        peer.hang_up();
        talk.join().expect("no panic");
        drop(peer);
    }

    #[test]
    fn one_that_hangs_up_after_a_last_word_has_closed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let peer = Peer::connect(&path, Duration::from_secs(10)).expect("a connection");
        let (mut talker, _) = listener.accept().expect("a connection");
        talker.write_all(&message(1, VERSION | REPLY, &[0; 8])).expect("it is read");
        drop(talker);
        assert!(peer.closed());
    }
}
