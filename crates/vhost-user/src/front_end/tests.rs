//! The front end against the back end, over a real socket and real shared memory.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use memory::SharedMemory;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;
use crate::back_end::{Device, Event, Notice, Offer, Session};
use crate::descriptor::tests::{at_once, slow};
use wire::vhost_user::BackEndRequest;

const LIMIT: Duration = Duration::from_secs(10);
const FEATURES: Features = Features::VERSION_1.union(Features::MRG_RXBUF);
const OFFER: Offer =
    Offer { features: FEATURES, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 1500 };
const USER: u64 = 1 << 40;

/// What a back end has seen when its front end leaves.
struct Served {
    device: Arc<Device>,
    events: Vec<Event>,
    notices: Vec<Notice>,
    violation: Option<String>,
}

/// Serves one connection in a thread. Its worker leaves every ring at index 42.
fn serve(socket: OwnedFd, offer: Offer) -> JoinHandle<Served> {
    thread::spawn(move || {
        let mut connection = Connection::new(socket).unwrap();
        let mut session = Session::new(offer);
        let mut served = Served {
            device: session.device().clone(),
            events: vec![],
            notices: vec![],
            violation: None,
        };
        loop {
            let message = match connection.receive().unwrap() {
                Incoming::Message(message) => message,
                Incoming::Closed => return served,
                Incoming::NotYet => {
                    let mut polled = [PollFd::new(&connection, PollFlags::IN)];
                    let limit = Timespec::try_from(LIMIT).unwrap();
                    assert_eq!(poll(&mut polled, Some(&limit)), Ok(1), "the front end is silent");
                    continue;
                }
            };
            let step = match session.handle(message) {
                Ok(step) => step,
                Err(violation) => {
                    served.violation = Some(violation.to_string());
                    return served;
                }
            };
            if let Some(device) = &step.device {
                for (index, ring) in served.device.rings.iter().enumerate() {
                    if ring.is_some() && device.rings[index].is_none() {
                        session.stopped(index, 42);
                    }
                }
                served.device = device.clone();
            }
            served.events.extend(step.event);
            served.notices.extend(&step.notices);
            if let Some(reply) = session.answer(step) {
                assert!(connection.send(reply).unwrap());
            }
        }
    })
}

fn pair(offer: Offer) -> (FrontEnd, JoinHandle<Served>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (FrontEnd::new(ours.into(), LIMIT).unwrap(), serve(theirs.into(), offer))
}

fn region(memory: &SharedMemory) -> Region<'_> {
    Region {
        guest: GuestAddress(0),
        size: memory.size(),
        front_end: FrontEndAddress(USER),
        offset: 0,
        file: memory.as_fd(),
    }
}

fn ring<'a>(index: u8, kick: &'a OwnedFd, call: &'a OwnedFd) -> RingConfig<'a> {
    let at = USER + 0x8000 * u64::from(index);
    RingConfig {
        size: 128,
        base: 0,
        descriptors: FrontEndAddress(at),
        available: FrontEndAddress(at + 0x2000),
        used: FrontEndAddress(at + 0x3000),
        kick: Some(kick.as_fd()),
        call: Some(call.as_fd()),
        log: None,
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn the_whole_life_of_a_device() {
    // With acknowledgements and slots, and with nothing at all: the front end copes.
    for protocol in [Offer::PROTOCOL, ProtocolFeatures::NONE] {
        let (mut front_end, back_end) = pair(Offer { protocol, ..OFFER });
        let memory = SharedMemory::create("front end test", 0x20000).unwrap();
        // As a driver does with its rings.
        rustix::io::pwrite(&memory, &[0; 0x20000], 0).unwrap();
        let wanted = Features::MRG_RXBUF | Features::EVENT_IDX;
        let negotiated = front_end.negotiate(Features::VERSION_1, wanted, Offer::PROTOCOL).unwrap();
        assert_eq!(negotiated, Negotiated { features: FEATURES, protocol });
        // A number of rings, too, for those who count these.
        let mq = protocol.contains(ProtocolFeatures::MQ);
        assert_eq!(front_end.queue_pairs().unwrap(), if mq { 2 } else { 1 });
        let slots = front_end.max_memory_slots().unwrap();
        if protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            assert_eq!(slots, 509);
            front_end.add_memory_region(region(&memory)).unwrap();
            front_end.remove_memory_region(region(&memory)).unwrap();
            front_end.add_memory_region(region(&memory)).unwrap();
        } else {
            assert_eq!(slots, 8);
            front_end.set_memory_table(&[region(&memory)]).unwrap();
        }
        let (kick, call) = (event(), event());
        for index in 0..2 {
            front_end.set_up_ring(index, ring(index, &kick, &call)).unwrap();
            front_end.enable_ring(index, true).unwrap();
        }
        assert_eq!(front_end.stop_ring(0).unwrap(), 42);
        front_end.set_up_ring(0, ring(0, &kick, &call)).unwrap();
        front_end.set_call(1, None).unwrap();
        // A last reply, so that what was not acknowledged has been read as well.
        front_end.features().unwrap();
        drop(front_end);

        let served = back_end.join().unwrap();
        assert_eq!((served.violation, served.notices), (None, vec![]));
        assert_eq!(served.device.features, FEATURES);
        let rings: Vec<_> = served.device.rings.iter().flatten().collect();
        assert_eq!(rings.len(), 2);
        assert!(rings.iter().all(|ring| ring.enabled && ring.layout.size() == 128));
        assert!(rings[0].call.is_some() && rings[1].call.is_none());
    }
}

#[test]
fn status_mtu_announcement_and_reset() {
    let (mut front_end, back_end) = pair(OFFER);
    front_end.negotiate(Features::VERSION_1, Features::NONE, Offer::PROTOCOL).unwrap();
    front_end.set_status(15).unwrap();
    assert_eq!(front_end.status().unwrap(), 15);
    front_end.set_mtu(1400).unwrap();
    let refused = front_end.set_mtu(1501).unwrap_err();
    assert_eq!(refused.to_string(), "the back end refused NET_SET_MTU with 1");
    let address = MacAddress([2, 0, 0, 0, 0, 7]);
    front_end.announce(address).unwrap();
    front_end.reset_device().unwrap();
    assert_eq!(front_end.status().unwrap(), 0);
    front_end.set_features(Features::VERSION_1).unwrap();
    drop(front_end);
    let served = back_end.join().unwrap();
    assert_eq!(served.events, [Event::Mtu(1400), Event::Announce(address)]);
    assert_eq!(served.notices, [Notice::Mtu { mtu: 1501, max: 1500 }]);
    assert_eq!(served.device.features, Features::VERSION_1);
}

#[test]
fn a_back_end_that_lacks_something_is_refused() {
    let (mut front_end, back_end) = pair(OFFER);
    let required = Features::VERSION_1 | Features::RING_PACKED;
    let error = front_end.negotiate(required, Features::NONE, Offer::PROTOCOL).unwrap_err();
    assert_eq!(error.to_string(), "the back end does not offer RING_PACKED");
    drop(front_end);
    back_end.join().unwrap();
}

#[test]
fn a_back_end_that_has_somebody_else_closes_the_connection_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = FrontEnd::new(ours.into(), LIMIT).unwrap().features().unwrap_err();
    let expected = "the back end closed the connection on GET_FEATURES (is another front end \
                    connected there, such as a virtual machine?)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_violation_closes_the_connection() {
    let (mut front_end, back_end) = pair(OFFER);
    front_end.negotiate(Features::VERSION_1, Features::NONE, Offer::PROTOCOL).unwrap();
    let error = front_end.enable_ring(7, true).unwrap_err();
    assert_eq!(error.to_string(), "the back end closed the connection on SET_VRING_ENABLE");
    let violation = back_end.join().unwrap().violation.unwrap();
    assert!(violation.starts_with("SET_VRING_ENABLE names ring 7, but there are 4"), "{violation}");
}

#[test]
fn a_silent_back_end_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut front_end = FrontEnd::new(ours.into(), Duration::from_millis(20)).unwrap();
    let error = front_end.features().unwrap_err();
    assert_eq!(error.to_string(), "the back end did not answer GET_FEATURES within 20ms");
}

#[test]
fn a_back_end_that_answers_nonsense_is_refused() {
    let other_number = Message::reply_to(2, vec![0; 8]);
    let no_reply = Message::request(1, false, vec![0; 8], vec![]);
    let short = Message::reply_to(1, vec![0; 4]);
    let descriptors =
        Message { descriptors: vec![event().into()], ..Message::reply_to(1, vec![0; 8]) };
    for answer in [other_number, no_reply, short, descriptors] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut back_end = Connection::new(theirs.into()).unwrap();
        assert!(back_end.send(answer).unwrap());
        let mut front_end = FrontEnd::new(ours.into(), LIMIT).unwrap();
        let error = front_end.features().unwrap_err();
        assert!(matches!(error, FrontEndError::Malformed { .. }), "{error}");
    }
}

#[test]
fn connecting_names_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port.sock");
    let Err(error) = FrontEnd::connect(&path, LIMIT) else { panic!("nobody listens") };
    let expected = format!("cannot connect to {}: ", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");

    let listener = UnixListener::bind(&path).unwrap();
    let mut front_end = FrontEnd::connect(&path, LIMIT).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let back_end = serve(socket.into(), OFFER);
    assert_eq!(front_end.features().unwrap(), FEATURES | Features::PROTOCOL_FEATURES);
    drop(front_end);
    back_end.join().unwrap();
}

/// A back end of our own, to say what no session says: the other end of the connection.
fn by_hand() -> (FrontEnd, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (FrontEnd::new(ours.into(), LIMIT).unwrap(), Connection::new(theirs.into()).unwrap())
}

/// Waits for the next message.
fn next(connection: &mut Connection) -> Message {
    loop {
        match connection.receive().unwrap() {
            Incoming::Message(message) => return message,
            Incoming::Closed => panic!("the front end left"),
            Incoming::NotYet => {}
        }
        let limit = Timespec::try_from(LIMIT).unwrap();
        let polled = poll(&mut [PollFd::new(&*connection, PollFlags::IN)], Some(&limit));
        assert_eq!(polled, Ok(1), "the front end is silent");
    }
}

/// Answers the next request, which must be this one.
fn expect(connection: &mut Connection, request: FrontEndRequest, answer: u64) -> Message {
    let message = next(connection);
    assert_eq!(message.header.request, request.number(), "not {request}");
    if message.header.need_reply || matches!(request.message().answer, Answer::Reply(_)) {
        let payload = Payload::U64(answer).encode();
        assert!(connection.send(Message::reply_to(request.number(), payload)).unwrap());
    }
    message
}

/// The back end's part of a negotiation with these protocol features; returns its end of the channel.
fn negotiate_by_hand(connection: &mut Connection, protocol: ProtocolFeatures) -> Connection {
    use FrontEndRequest as R;
    expect(connection, R::GetFeatures, (FEATURES | Features::PROTOCOL_FEATURES).0);
    expect(connection, R::GetProtocolFeatures, protocol.0);
    expect(connection, R::SetProtocolFeatures, 0);
    expect(connection, R::SetOwner, 0);
    expect(connection, R::SetFeatures, 0);
    let mut message = expect(connection, R::SetBackendReqFd, 0);
    Connection::new(message.descriptors.pop().unwrap().into_owned()).unwrap()
}

#[test]
fn the_channel_is_served_while_an_answer_is_awaited() {
    let (mut front_end, mut connection) = by_hand();
    let protocol = ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::STATUS
        | ProtocolFeatures::CONFIG;
    let back_end = thread::spawn(move || {
        let mut channel = negotiate_by_hand(&mut connection, protocol);
        assert_eq!(next(&mut connection).header.request, FrontEndRequest::GetStatus.number());
        // Asked in the middle of a request of the front end's; answered before that is.
        let mut ask = |number, payload, descriptors| {
            assert!(channel.send(Message::request(number, true, payload, descriptors)).unwrap());
            let Message { header, payload, .. } = next(&mut channel);
            assert!(header.reply && header.request == number);
            Payload::decode(Shape::U64, &payload)
        };
        let config_change = BackEndRequest::ConfigChange.number();
        assert_eq!(ask(config_change, vec![], vec![]), Some(Payload::U64(0)));
        // Of another form, not agreed on, and unknown.
        assert_eq!(ask(config_change, vec![0; 8], vec![]), Some(Payload::U64(1)));
        assert_eq!(ask(config_change, vec![], vec![event()]), Some(Payload::U64(1)));
        let notifier = BackEndRequest::VringHostNotifier.number();
        assert_eq!(ask(notifier, vec![0; 24], vec![event()]), Some(Payload::U64(1)));
        assert_eq!(ask(77, vec![], vec![]), Some(Payload::U64(1)));
        let status = Message::reply_to(FrontEndRequest::GetStatus.number(), vec![0; 8]);
        assert!(connection.send(status).unwrap());
        drop(channel);
        connection
    });
    front_end.negotiate(Features::VERSION_1, FEATURES, protocol).unwrap();
    assert!(front_end.channel().is_none() && front_end.back_end_event().is_none());
    front_end.open_channel().unwrap();
    front_end.status().unwrap();
    let _connection = back_end.join().unwrap();
    let events: Vec<_> = std::iter::from_fn(|| front_end.back_end_event()).collect();
    let refused = |event: &BackEndEvent| match event {
        BackEndEvent::Refused { number } => Some(*number),
        _ => None,
    };
    assert!(matches!(events[0], BackEndEvent::ConfigChanged), "{events:?}");
    let numbers: Vec<_> = events[1..5].iter().map(refused).collect();
    assert_eq!(numbers, [Some(2), Some(2), Some(3), Some(77)]);
    assert!(matches!(events[5..], [BackEndEvent::Ended(None)]), "{events:?}");
    assert!(front_end.channel().is_none());
}

#[test]
fn a_channel_is_bounded_and_may_fail() {
    // CONFIG is not agreed here, so its message is refused.
    let (mut front_end, mut connection) = by_hand();
    let protocol = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
    let back_end = thread::spawn(move || {
        let mut channel = negotiate_by_hand(&mut connection, protocol);
        for _ in 0..100 {
            let number = BackEndRequest::ConfigChange.number();
            assert!(channel.send(Message::request(number, false, vec![], vec![])).unwrap());
        }
        rustix::io::write(&channel, &[0xff; 12]).unwrap();
        expect(&mut connection, FrontEndRequest::GetFeatures, 0);
        (connection, channel)
    });
    front_end.negotiate(Features::VERSION_1, FEATURES, protocol).unwrap();
    front_end.open_channel().unwrap();
    front_end.features().unwrap();
    let (_connection, mut channel) = back_end.join().unwrap();
    let events: Vec<_> = std::iter::from_fn(|| front_end.back_end_event()).collect();
    let refused = |event: &&BackEndEvent| matches!(event, BackEndEvent::Refused { number: 2 });
    let refusals = events.iter().filter(refused).count();
    assert!(
        (64..=100).contains(&refusals),
        "some may have come when too many were kept: {events:?}"
    );
    assert!(matches!(events[refusals..], [BackEndEvent::Ended(Some(_))]), "{events:?}");
    assert!(matches!(channel.receive(), Ok(Incoming::Closed)), "nothing was to be answered");
}

#[test]
fn what_was_not_agreed_on_is_not_asked_for() {
    let (mut front_end, back_end) = pair(Offer { protocol: ProtocolFeatures::NONE, ..OFFER });
    front_end.negotiate(Features::VERSION_1, Features::NONE, Offer::PROTOCOL).unwrap();
    let errors = [
        front_end.set_mtu(1500).unwrap_err(),
        front_end.announce(MacAddress([2; 6])).unwrap_err(),
        front_end.set_status(1).unwrap_err(),
        front_end.reset_device().unwrap_err(),
        front_end.open_channel().unwrap_err(),
        front_end.set_log(&DirtyLog::new(GuestAddress(0x20000)).unwrap()).unwrap_err(),
        front_end.config(0, 6).unwrap_err(),
        front_end.set_config(0, &[0; 6]).unwrap_err(),
    ];
    let says = "NET_SET_MTU needs NET_MTU, which was not agreed on";
    assert_eq!(errors[0].to_string(), says);
    for error in errors {
        assert!(matches!(error, FrontEndError::NotNegotiated { .. }), "{error}");
    }
    assert!(front_end.channel().is_none());
    let memory = SharedMemory::create("front end test", 0x20000).unwrap();
    let error = front_end.set_memory_table(&[region(&memory); 9]).unwrap_err();
    assert_eq!(error.to_string(), "SET_MEM_TABLE shares up to 8 regions, not 9");
    drop(front_end);
    assert_eq!(back_end.join().unwrap().violation, None);
}

/// A front end and the back end's end of a negotiation of just that; LOG_ALL is wanted and offered too.
fn negotiated(protocol: ProtocolFeatures) -> (FrontEnd, Connection) {
    let (mut front_end, mut connection) = by_hand();
    let features = FEATURES | Features::LOG_ALL;
    let back_end = thread::spawn(move || {
        use FrontEndRequest as R;
        expect(&mut connection, R::GetFeatures, (features | Features::PROTOCOL_FEATURES).0);
        expect(&mut connection, R::GetProtocolFeatures, protocol.0);
        expect(&mut connection, R::SetProtocolFeatures, 0);
        expect(&mut connection, R::SetOwner, 0);
        let message = expect(&mut connection, R::SetFeatures, 0);
        let acknowledged = Payload::U64((FEATURES | Features::PROTOCOL_FEATURES).0);
        assert_eq!(message.payload, acknowledged.encode(), "nothing is to be logged yet");
        connection
    });
    let agreed = front_end.negotiate(features, Features::NONE, protocol).unwrap();
    assert_eq!(agreed, Negotiated { features: FEATURES, protocol });
    (front_end, back_end.join().unwrap())
}

#[test]
fn a_log_is_shared_whatever_form_the_answer_has() {
    let (mut front_end, mut connection) = negotiated(ProtocolFeatures::LOG_SHMFD);
    let log = DirtyLog::new(GuestAddress(1 << 30)).unwrap();
    let number = FrontEndRequest::SetLogBase.number();
    // DPDK's, libvhost-user's and rust-vmm's; the last one says no.
    let answers = [vec![], vec![0; 8], vec![1; 16], 7u64.to_ne_bytes().to_vec()];
    let back_end = thread::spawn(move || {
        for answer in answers {
            let Message { header, payload, descriptors } = next(&mut connection);
            assert_eq!((header.request, descriptors.len()), (number, 1));
            // A bit for each of 2^18 pages.
            let area = LogArea { size: 1 << 15, offset: 0 };
            assert_eq!(payload, Payload::Log(area).encode());
            assert_eq!(rustix::fs::fstat(&descriptors[0]).unwrap().st_size, 1 << 15);
            // The first page is dirty.
            rustix::io::pwrite(&descriptors[0], &[1], 0).unwrap();
            assert!(connection.send(Message::reply_to(number, answer)).unwrap());
        }
        connection
    });
    for _ in 0..3 {
        front_end.set_log(&log).unwrap();
        let mut pages = 0;
        log.take(|page| pages += u64::from(page == GuestAddress(0)));
        assert_eq!(pages, 1, "the back end was given another log");
    }
    let error = front_end.set_log(&log).unwrap_err();
    assert_eq!(error.to_string(), "the back end refused SET_LOG_BASE with 7");
    let mut connection = back_end.join().unwrap();

    // And what says that it is to be used.
    front_end.set_log_event(event().as_fd()).unwrap();
    let message = next(&mut connection);
    assert_eq!(message.header.request, FrontEndRequest::SetLogFd.number());
    assert_eq!((message.payload.len(), message.descriptors.len()), (0, 1));
    front_end.set_features(FEATURES | Features::LOG_ALL).unwrap();
    let acknowledged = FEATURES | Features::LOG_ALL | Features::PROTOCOL_FEATURES;
    assert_eq!(next(&mut connection).payload, Payload::U64(acknowledged.0).encode());
    let (kick, call) = (event(), event());
    for log in [Some(GuestAddress(0x3000)), None] {
        front_end.set_addresses(1, &RingConfig { log, ..ring(1, &kick, &call) }).unwrap();
        let (flags, log) = if log.is_some() { (1, 0x3000) } else { (0, 0) };
        let payload = Payload::decode(Shape::VringAddress, &next(&mut connection).payload);
        let Some(Payload::VringAddress(address)) = payload else { panic!("no addresses") };
        assert_eq!((address.flags, address.log), (flags, log));
    }
}

#[test]
fn the_configuration_is_read_and_written() {
    let (mut front_end, mut connection) = negotiated(ProtocolFeatures::CONFIG);
    let part = |offset, bytes: &[u8]| {
        Payload::Config(ConfigSpace { offset, flags: 0, bytes: bytes.to_vec() }).encode()
    };
    // An MTU of 1500 (virtio 1.3, 5.1.4); no such part, as it may be said; and another one.
    let answers = [part(10, &[0xdc, 5]), vec![], part(10, &[]), part(10, &[1]), part(0, &[1, 2])];
    let back_end = thread::spawn(move || {
        let number = FrontEndRequest::GetConfig.number();
        for answer in answers {
            let message = next(&mut connection);
            let asked = (message.header.request, message.payload);
            assert_eq!(asked, (number, part(10, &[0, 0])));
            assert!(connection.send(Message::reply_to(number, answer)).unwrap());
        }
        let message = next(&mut connection);
        assert_eq!(message.header.request, FrontEndRequest::SetConfig.number());
        assert_eq!(message.payload, part(3, &[4, 5, 6]));
        connection
    });
    assert_eq!(front_end.config(10, 2).unwrap(), [0xdc, 5]);
    for _ in 0..2 {
        let error = front_end.config(10, 2).unwrap_err().to_string();
        assert_eq!(error, "the back end has no 2 bytes of configuration at offset 10");
    }
    for _ in 0..2 {
        let error = front_end.config(10, 2).unwrap_err().to_string();
        assert_eq!(error, "the back end's answer to GET_CONFIG is malformed: another part");
    }
    front_end.set_config(3, &[4, 5, 6]).unwrap();
    for error in [front_end.config(0, 257).map(drop), front_end.set_config(0, &[0; 257])] {
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "a message carries up to 256 bytes of configuration, not 257");
    }
    back_end.join().unwrap();
}

#[test]
fn without_protocol_features_rings_start_enabled() {
    let (mut front_end, mut connection) = by_hand();
    let back_end = thread::spawn(move || {
        use FrontEndRequest as R;
        expect(&mut connection, R::GetFeatures, FEATURES.0);
        expect(&mut connection, R::SetOwner, 0);
        let message = expect(&mut connection, R::SetFeatures, 0);
        assert_eq!(message.payload, Payload::U64(FEATURES.0).encode());
        // SET_VRING_ENABLE would be next.
        expect(&mut connection, R::GetFeatures, FEATURES.0);
    });
    front_end.negotiate(FEATURES, Features::NONE, Offer::PROTOCOL).unwrap();
    front_end.enable_ring(0, true).unwrap();
    let error = front_end.enable_ring(0, false).unwrap_err();
    assert_eq!(error.to_string(), "the back end does not offer PROTOCOL_FEATURES");
    front_end.features().unwrap();
    back_end.join().unwrap();
}

#[test]
fn what_was_agreed_before_must_still_be_offered() {
    let (mut front_end, back_end) = pair(OFFER);
    let before = front_end.negotiate(Features::VERSION_1, FEATURES, Offer::PROTOCOL).unwrap();
    drop(front_end);
    back_end.join().unwrap();

    // One that offers more is as good.
    let more = Offer { features: FEATURES | Features::EVENT_IDX, ..OFFER };
    let (mut front_end, back_end) = pair(more);
    front_end.negotiate_again(before).unwrap();
    front_end.status().unwrap();
    drop(front_end);
    let served = back_end.join().unwrap();
    assert_eq!((served.device.features, served.violation), (FEATURES, None));

    let fewer = Offer { features: Features::VERSION_1, ..OFFER };
    let (mut front_end, _back_end) = pair(fewer);
    let error = front_end.negotiate_again(before).unwrap_err();
    assert_eq!(error.to_string(), "the back end does not offer MRG_RXBUF");
    let fewer = Offer { protocol: ProtocolFeatures::REPLY_ACK, ..OFFER };
    let (mut front_end, _back_end) = pair(fewer);
    let error = front_end.negotiate_again(before).unwrap_err().to_string();
    let says = "the back end no longer offers the protocol features ";
    let missing = error.strip_prefix(says).unwrap_or_else(|| panic!("{error}"));
    assert!(missing.contains("STATUS") && !missing.contains("REPLY_ACK"), "{missing}");
}

#[test]
fn a_listener_takes_one_back_end_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port.sock");
    let listener = FrontEndListener::bind(&path).unwrap();
    let short = Duration::from_millis(20);
    let Err(error) = listener.accept(short, LIMIT) else { panic!("nobody came") };
    let says = format!("no back end connected to {} within 20ms", path.display());
    assert_eq!(error.to_string(), says);
    for _ in 0..2 {
        let back_end = serve(UnixStream::connect(&path).unwrap().into(), OFFER);
        let mut front_end = listener.accept(LIMIT, LIMIT).unwrap();
        assert_eq!(front_end.features().unwrap(), FEATURES | Features::PROTOCOL_FEATURES);
        drop(front_end);
        back_end.join().unwrap();
    }
    // Two at once cannot be.
    let error = FrontEndListener::bind(&path).unwrap_err();
    let says = format!("cannot listen at {}: ", path.display());
    assert!(error.to_string().starts_with(&says), "{error}");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn an_error_descriptor_and_the_same_place_again_change_nothing() {
    let (mut front_end, back_end) = pair(OFFER);
    front_end.negotiate(Features::VERSION_1, FEATURES, Offer::PROTOCOL).unwrap();
    let memory = SharedMemory::create("front end test", 0x20000).unwrap();
    rustix::io::pwrite(&memory, &[0; 0x20000], 0).unwrap();
    front_end.set_memory_table(&[region(&memory)]).unwrap();
    let (kick, call, error) = (event(), event(), event());
    let config = ring(0, &kick, &call);
    front_end.set_up_ring(0, config).unwrap();
    front_end.enable_ring(0, true).unwrap();
    front_end.set_error(0, Some(error.as_fd())).unwrap();
    front_end.set_error(0, None).unwrap();
    front_end.set_addresses(0, &config).unwrap();
    drop(front_end);
    let served = back_end.join().unwrap();
    assert_eq!(served.violation, None);
    assert!(served.device.rings[0].as_ref().is_some_and(|ring| ring.enabled));
}

#[test]
fn descriptors_of_a_back_end_are_not_waited_for() {
    // In an answer of another kind, to something else, and in the right one, where none belongs.
    let features = FrontEndRequest::GetFeatures.number();
    let answers = [
        Message::request(features, false, vec![0; 8], vec![]),
        Message::reply_to(1000, vec![0; 8]),
        Message::reply_to(features, vec![0; 8]),
    ];
    for answer in answers {
        let (mut front_end, mut connection) = by_hand();
        let (descriptor, _other) = slow();
        let answer = Message { descriptors: vec![descriptor.into()], ..answer };
        connection.send(answer).unwrap();
        assert!(connection.closer().wait(LIMIT));
        let end = at_once(|| front_end.features());
        assert!(matches!(end, Err(FrontEndError::Malformed { .. })), "{end:?}");
        // And one that was not even read.
        let (descriptor, _other) = slow();
        connection.send(Message::request(1000, false, vec![], vec![descriptor])).unwrap();
        assert!(connection.closer().wait(LIMIT));
        at_once(|| drop(front_end));
    }
}

/// A front end that has agreed on REPLY_ACK and a channel, and its back end's end of the connection.
fn agreed_by_hand() -> (FrontEnd, Connection) {
    let (mut front_end, connection) = by_hand();
    front_end.protocol = ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::CONFIG
        | ProtocolFeatures::STATUS;
    (front_end, connection)
}

#[test]
fn an_answer_that_comes_late_is_not_taken_for_another() {
    let (mut front_end, mut connection) = agreed_by_hand();
    front_end.limit = Duration::from_millis(50);
    let one = front_end.set_call(0, None);
    assert!(matches!(one, Err(FrontEndError::TimedOut { .. })), "{one:?}");
    expect(&mut connection, FrontEndRequest::SetVringCall, 0);
    // The first one's acknowledgement is there, but nobody has seen a second request, nor will.
    let two = front_end.set_call(1, None);
    assert!(matches!(two, Err(FrontEndError::Unanswered { .. })), "{two:?}");
    drop(connection);
    let three = front_end.set_call(1, None);
    assert!(matches!(three, Err(FrontEndError::Closed { .. })), "{three:?}");
}

#[test]
fn a_refusal_is_an_answer() {
    let (mut front_end, mut connection) = agreed_by_hand();
    let back_end = thread::spawn(move || {
        expect(&mut connection, FrontEndRequest::SetVringCall, 1);
        expect(&mut connection, FrontEndRequest::SetVringCall, 0);
    });
    let refused = front_end.set_call(0, None);
    assert!(matches!(refused, Err(FrontEndError::Refused { code: 1, .. })), "{refused:?}");
    front_end.set_call(0, None).unwrap();
    back_end.join().unwrap();
}

#[test]
fn what_is_required_is_not_agreed_without_what_it_needs() {
    let offer = Offer { features: FEATURES | Features::HOST_TSO4, ..OFFER };
    let (mut front_end, _back_end) = pair(offer);
    let required = Features::VERSION_1 | Features::HOST_TSO4;
    let agreed = front_end.negotiate(required, Features::NONE, Offer::PROTOCOL);
    let Err(FrontEndError::Dependent { features }) = agreed else { panic!("{agreed:?}") };
    assert_eq!(features, Features::HOST_TSO4);
}

#[test]
fn a_limit_may_be_as_long_as_there_are_durations() {
    let (mut front_end, mut connection) = agreed_by_hand();
    front_end.limit = Duration::MAX;
    let back_end =
        thread::spawn(move || drop(expect(&mut connection, FrontEndRequest::SetVringCall, 0)));
    front_end.set_call(0, None).unwrap();
    back_end.join().unwrap();
}

#[test]
fn a_channel_is_served_as_soon_as_the_back_end_has_it() {
    let (mut front_end, mut connection) = agreed_by_hand();
    let back_end = thread::spawn(move || {
        let mut opening = next(&mut connection);
        let socket = opening.descriptors.pop().unwrap().into_owned();
        let mut channel = Connection::new(socket).unwrap();
        // More than are kept, and each waits for its answer before the opening is acknowledged.
        for number in [BackEndRequest::ConfigChange.number(), 77].repeat(200) {
            assert!(channel.send(Message::request(number, true, vec![], vec![])).unwrap());
            assert_eq!(next(&mut channel).header.request, number);
        }
        let acknowledgement = Payload::U64(0).encode();
        let number = opening.header.request;
        assert!(connection.send(Message::reply_to(number, acknowledgement)).unwrap());
    });
    front_end.open_channel().unwrap();
    back_end.join().unwrap();
    let events: Vec<_> = std::iter::from_fn(|| front_end.back_end_event()).collect();
    let changes = events.iter().filter(|event| matches!(event, BackEndEvent::ConfigChanged));
    assert_eq!((changes.count(), events.len()), (1, 65), "{events:?}");
    assert!(matches!(events.last(), Some(BackEndEvent::Ended(None))), "{events:?}");
}

#[test]
fn a_channel_that_was_refused_is_not_there() {
    let (mut front_end, mut connection) = agreed_by_hand();
    let back_end =
        thread::spawn(move || drop(expect(&mut connection, FrontEndRequest::SetBackendReqFd, 1)));
    front_end.open_channel().unwrap_err();
    assert!(front_end.channel().is_none());
    back_end.join().unwrap();
}

#[test]
fn answers_that_find_no_room_in_the_channel_follow() {
    let protocol = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
    let (mut channel, theirs) = Channel::new().unwrap();
    let mut theirs = Connection::new(theirs.into_owned()).unwrap();
    set_socket_send_buffer_size(channel.socket().unwrap(), 1).unwrap();
    let mut asked = 0;
    while !channel.is_congested {
        assert!(theirs.send(Message::request(77, true, vec![], vec![])).unwrap());
        channel.serve(protocol);
        asked += 1;
        assert!(asked < 1000, "there is room without end");
    }
    for left in (0..asked).rev() {
        next(&mut theirs);
        // It waits until it is writable, as well.
        if left > 0 {
            poll(&mut [channel.wanted().unwrap()], Some(&Timespec::default())).unwrap();
            channel.serve(protocol);
        }
    }
    assert!(!channel.is_congested);
}
