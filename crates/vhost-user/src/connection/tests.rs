use super::*;
use crate::descriptor::tests::{LIMIT, at_once, slow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::fcntl_getfd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::pipe;
use std::time::Duration;

/// A connection and the raw socket at its other end.
fn pair() -> (Connection, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    (Connection::new(ours).unwrap(), theirs)
}

fn bytes(message: &Message) -> Vec<u8> {
    [message.header.encode().as_slice(), &message.payload].concat()
}

/// Writes raw bytes with raw descriptors.
fn write(socket: &OwnedFd, bytes: &[u8], descriptors: &[&OwnedFd]) {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent.unwrap(), bytes.len());
}

fn receive(connection: &mut Connection) -> Message {
    match connection.receive().unwrap() {
        Incoming::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// Whether every writer of this pipe is gone before `limit` is over.
fn hangs_up(reader: &OwnedFd, limit: Duration) -> bool {
    let mut polled = [PollFd::new(reader, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::try_from(limit).unwrap())).unwrap();
    polled[0].revents().contains(PollFlags::HUP)
}

/// Whether every writer of this pipe is gone, once the closer has had time to see to that.
fn hung_up(reader: &OwnedFd) -> bool {
    hangs_up(reader, LIMIT)
}

#[test]
fn messages_are_kept_apart() {
    let (mut connection, peer) = pair();
    let first = Message::request(5, true, vec![7; 40], vec![]);
    let second = Message::request(1, false, vec![], vec![]);
    write(&peer, &[bytes(&first), bytes(&second), bytes(&first)].concat(), &[]);
    for expected in [&first, &second, &first] {
        let message = receive(&mut connection);
        assert_eq!(message.header, expected.header);
        assert_eq!(message.payload, expected.payload);
    }
    assert!(matches!(connection.receive(), Ok(Incoming::NotYet)));
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Incoming::Closed)));
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (mut connection, peer) = pair();
    let sent = Message::request(10, true, (0..8).collect(), vec![]);
    let (reader, writer) = pipe().unwrap();
    for (at, byte) in bytes(&sent).iter().enumerate() {
        assert!(matches!(connection.receive(), Ok(Incoming::NotYet)), "byte {at}");
        let descriptors = if at == 0 { vec![&writer] } else { vec![] };
        write(&peer, &[*byte], &descriptors);
    }
    let message = receive(&mut connection);
    assert_eq!((message.header, &message.payload), (sent.header, &sent.payload));
    assert_eq!(message.descriptors.len(), 1);
    drop((writer, message));
    assert!(hung_up(&reader));
}

#[test]
fn descriptors_come_with_the_header_and_close_on_exec() {
    let (mut connection, peer) = pair();
    let (reader, writer) = pipe().unwrap();
    let sent = Message::request(5, false, vec![0; 264], vec![]);
    write(&peer, &bytes(&sent), &[&writer; MAX_DESCRIPTORS]);
    let message = receive(&mut connection);
    assert_eq!(message.descriptors.len(), MAX_DESCRIPTORS);
    for descriptor in &message.descriptors {
        assert!(fcntl_getfd(descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    // The next message has none of them.
    write(&peer, &bytes(&Message::request(1, false, vec![], vec![])), &[]);
    assert!(receive(&mut connection).descriptors.is_empty());
    drop((writer, message));
    assert!(hung_up(&reader));
}

#[test]
fn too_many_descriptors_end_the_connection() {
    for count in [MAX_DESCRIPTORS + 1, 32, 253] {
        let (mut connection, peer) = pair();
        let (reader, writer) = pipe().unwrap();
        let sent = Message::request(5, false, vec![0; 264], vec![]);
        write(&peer, &bytes(&sent), &vec![&writer; count]);
        drop(writer);
        assert!(
            matches!(connection.receive(), Err(ConnectionError::TooManyDescriptors)),
            "{count}"
        );
        assert!(hung_up(&reader), "{count} descriptors leak");
    }
}

#[test]
fn descriptors_inside_a_message_end_the_connection() {
    let sent = bytes(&Message::request(12, false, vec![0; 8], vec![]));
    for at in [1, 11, 12, 19] {
        let (mut connection, peer) = pair();
        let (reader, writer) = pipe().unwrap();
        write(&peer, &sent[..at], &[]);
        assert!(matches!(connection.receive(), Ok(Incoming::NotYet)));
        write(&peer, &sent[at..], &[&writer]);
        drop(writer);
        assert!(matches!(connection.receive(), Err(ConnectionError::StrayDescriptors)), "{at}");
        assert!(hung_up(&reader));
    }
}

#[test]
fn a_message_cut_off_at_every_byte() {
    let sent = bytes(&Message::request(12, false, vec![0; 8], vec![]));
    for at in 1..sent.len() {
        let (mut connection, peer) = pair();
        let (reader, writer) = pipe().unwrap();
        write(&peer, &sent[..at], &[&writer]);
        drop((peer, writer));
        match connection.receive() {
            Err(ConnectionError::CutOff { received }) => assert_eq!(received, at),
            other => panic!("{at}: {other:?}"),
        }
        drop(connection);
        assert!(hung_up(&reader));
    }
}

#[test]
fn bad_headers_end_the_connection() {
    let header = |flags: u32, size: u32| {
        [7u32, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()
    };
    for bad in [
        header(0, 0),
        header(2, 0),
        header(3, 0),
        header(0x11, 0),
        header(1, 4097),
        header(1, u32::MAX),
    ] {
        let (mut connection, peer) = pair();
        let (reader, writer) = pipe().unwrap();
        write(&peer, &bad, &[&writer]);
        drop(writer);
        assert!(matches!(connection.receive(), Err(ConnectionError::Header(_))));
        drop(connection);
        assert!(hung_up(&reader));
    }
    // The largest payload that is read.
    let (mut connection, peer) = pair();
    write(&peer, &header(1, 4096), &[]);
    write(&peer, &[9; 4096], &[]);
    assert_eq!(receive(&mut connection).payload, [9; 4096]);
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (mut connection, peer) = pair();
    let mut sent = 0;
    let mut queued = 0;
    loop {
        // Each message is told from the others by its payload.
        let message = Message::reply_to(11, vec![(sent % 251) as u8; 4096]);
        match connection.send(message) {
            Ok(gone) => queued += usize::from(!gone),
            Err(ConnectionError::NotReading) => break,
            Err(error) => panic!("{error}"),
        }
        sent += 1;
    }
    assert_eq!(queued, MAX_OUTGOING);

    // Once it reads again, nothing is lost and nothing is torn.
    let mut peer = Connection::new(peer).unwrap();
    let mut received = 0;
    while received < sent {
        match peer.receive().unwrap() {
            Incoming::Message(message) => {
                assert_eq!(message.payload, vec![(received % 251) as u8; 4096]);
                received += 1;
            }
            Incoming::NotYet => {
                connection.flush().unwrap();
            }
            Incoming::Closed => panic!("closed"),
        }
    }
    assert!(connection.flush().unwrap());
}

#[test]
fn sent_descriptors_arrive_and_are_closed_here() {
    let (mut connection, peer) = pair();
    let mut peer = Connection::new(peer).unwrap();
    let (reader, writer) = pipe().unwrap();
    let message = Message::request(13, true, vec![0; 8], vec![writer]);
    assert!(connection.send(message).unwrap());
    let message = receive(&mut peer);
    assert_eq!(message.descriptors.len(), 1);
    assert!(!hangs_up(&reader, Duration::ZERO));
    drop(message);
    assert!(hung_up(&reader));
}

#[test]
fn a_peer_that_left_is_noticed_both_ways() {
    let (mut connection, peer) = pair();
    // Something it did not read makes the kernel reset the connection.
    assert!(connection.send(Message::reply_to(1, vec![0; 8])).unwrap());
    drop(peer);
    assert!(matches!(connection.receive(), Ok(Incoming::Closed)));
    let sent = connection.send(Message::reply_to(1, vec![0; 8]));
    assert!(matches!(sent, Err(ConnectionError::Gone)));
}

/// A message that nobody knows, with a descriptor.
fn stuffed(descriptor: OwnedFd) -> Message {
    Message::request(1000, false, vec![], vec![descriptor])
}

#[test]
fn what_was_not_read_is_not_waited_for() {
    let (mut connection, peer) = pair();
    let (read, read_ends) = slow();
    let (unread, unread_ends) = slow();
    let message = bytes(&Message::request(1000, false, vec![], vec![]));
    write(&peer, &message, &[&read]);
    write(&peer, &message, &[&unread]);
    drop((read, unread));
    receive(&mut connection);
    let closer = connection.closer().clone();
    at_once(|| drop(connection));
    assert_eq!(closer.pending(), 2, "one, and the socket");
    // The peer need not wait for that either.
    let mut polled = [PollFd::new(&peer, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::try_from(LIMIT).unwrap())).unwrap();
    assert!(polled[0].revents().contains(PollFlags::HUP));
    drop(read_ends);
    assert!(!closer.wait(Duration::ZERO), "the socket is still there");
    drop(unread_ends);
    assert!(closer.wait(LIMIT));
}

#[test]
fn descriptors_beyond_the_most_are_not_waited_for() {
    for count in [MAX_DESCRIPTORS + 1, 20, SCM_MAX_FD] {
        let (mut connection, peer) = pair();
        let (descriptor, _other) = slow();
        let (_reader, writer) = pipe().unwrap();
        let mut descriptors = vec![&writer; count];
        descriptors[count - 1] = &descriptor;
        write(&peer, &bytes(&Message::request(1, false, vec![], vec![])), &descriptors);
        drop(descriptor);
        let received = at_once(|| connection.receive());
        assert!(matches!(received, Err(ConnectionError::TooManyDescriptors)), "{count}");
        at_once(|| drop(connection));
    }
}

#[test]
fn a_peer_that_holds_up_too_much_is_given_up() {
    let (mut connection, peer) = pair();
    let (descriptor, other) = slow();
    let mut peer = Connection::new(peer).unwrap();
    let mut send = |descriptor| {
        peer.send(stuffed(descriptor)).unwrap();
        // So that ours is the last one.
        assert!(peer.closer().wait(LIMIT));
    };
    send(descriptor);
    drop(receive(&mut connection));
    // One is being closed.
    for count in 1..=MAX_UNCLOSED {
        assert_eq!(connection.closer().pending(), count);
        let (_reader, writer) = pipe().unwrap();
        send(writer);
        drop(receive(&mut connection));
    }
    let (reader, writer) = pipe().unwrap();
    send(writer);
    assert!(matches!(connection.receive(), Err(ConnectionError::NotClosed)));
    drop(other);
    assert!(connection.closer().wait(LIMIT));
    drop(receive(&mut connection));
    assert!(hung_up(&reader));
    assert!(connection.closer().wait(LIMIT));
    // Eventfds and memory do not count.
    let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (descriptor, _other) = slow();
    send(descriptor);
    drop(receive(&mut connection));
    for _ in 0..2 * MAX_UNCLOSED {
        send(event());
        drop(receive(&mut connection));
    }
    assert_eq!(connection.closer().pending(), 1);
}

#[test]
fn connections_may_share_a_closer() {
    let closer = Closer::new();
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (descriptor, other) = slow();
    let mut first = Connection::with_closer(ours.into(), &closer).unwrap();
    first.partial = Partial::Header {
        bytes: [0; Header::SIZE],
        filled: 1,
        descriptors: vec![Descriptor::new(descriptor, &closer)],
    };
    at_once(|| drop(first));
    assert!(!closer.wait(Duration::ZERO));
    drop(other);
    assert!(closer.wait(LIMIT));
}
