//! The front end against the back end, over a real socket and real shared memory.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use memory::SharedMemory;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::back_end::{Device, Event, Notice, Offer, Session};

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
    let descriptors = Message { descriptors: vec![event()], ..Message::reply_to(1, vec![0; 8]) };
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
