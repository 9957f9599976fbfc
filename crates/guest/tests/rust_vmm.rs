//! rust-vmm's side of everything that is ours: its back end on our front end and driver, and its front
//! end on our back end.
//!
//! Its rings are split ones; it has no others.

#[allow(dead_code, reason = "it has more than this test needs")]
mod echo;
mod monitored;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::{io, mem};

use echo::{Echo, LIMIT};
use monitored::{FEATURES, FRAMES, HEADER, Monitored, RING_SIZE, exchange, frame};
use ringway_guest::{Guest, MemoryLayout, NetDriver, Options};
use rust_vmm_vhost::VhostBackend;
use rust_vmm_vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserSharedMsg};
use rust_vmm_vhost::vhost_user::{Backend, VhostUserFrontend, VhostUserFrontendReqHandler};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user::back_end::Offer;
use vhost_user::{BackEndEvent, FrontEnd, FrontEndListener};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::Features;

/// Frames that wait for the next back end.
const WAITING: u32 = 16;

type Memory = GuestMemoryMmap<()>;

/// rust-vmm's parts, put together to send back what comes.
struct RustVmm {
    memory: GuestMemoryAtomic<Memory>,
    features: Features,
    event_index: bool,
    acked: Arc<Mutex<Features>>,
    /// Where the channel for its own requests goes.
    channel: Sender<Backend>,
    /// Whether it does nothing when it is kicked, and where it says by which ring it was.
    idle: Arc<AtomicBool>,
    kicked: Sender<u16>,
    exit: (EventConsumer, EventNotifier),
}

impl VhostUserBackendMut for RustVmm {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        RING_SIZE.into()
    }

    fn features(&self) -> u64 {
        (self.features | Features::PROTOCOL_FEATURES).0
    }

    fn acked_features(&mut self, features: u64) {
        *self.acked.lock().unwrap() = Features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        use VhostUserProtocolFeatures as P;
        P::MQ
            | P::REPLY_ACK
            | P::CONFIGURE_MEM_SLOTS
            | P::RESET_DEVICE
            | P::BACKEND_REQ
            | P::SHARED_OBJECT
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_index = enabled;
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self.channel.send(backend).unwrap();
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = &self.exit;
        Some((consumer.try_clone().unwrap(), notifier.try_clone().unwrap()))
    }

    fn handle_event(
        &mut self,
        ring: u16,
        _events: EventSet,
        rings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        if self.idle.load(Ordering::Relaxed) {
            self.kicked.send(ring).unwrap();
            return Ok(());
        }
        let memory = self.memory.memory();
        let (mut receive, mut transmit) = (rings[0].get_mut(), rings[1].get_mut());
        // One of them is kicked, and the other may not be set up yet.
        if [&receive, &transmit].iter().any(|ring| !ring.is_enabled() || !ring.get_queue().ready())
        {
            return Ok(());
        }
        loop {
            transmit.disable_notification().unwrap();
            send_back(&memory, &mut receive, &mut transmit);
            if !transmit.enable_notification().unwrap() {
                break;
            }
        }
        for mut ring in [receive, transmit] {
            if ring.needs_notification().unwrap() {
                ring.signal_used_queue()?;
            }
        }
        Ok(())
    }
}

type Ring = VringState<GuestMemoryAtomic<Memory>>;

fn send_back(memory: &GuestMemoryLoadGuard<Memory>, receive: &mut Ring, transmit: &mut Ring) {
    while let Some(chain) = transmit.get_queue_mut().pop_descriptor_chain(memory.clone()) {
        let head = chain.head_index();
        let mut frame = Vec::new();
        for descriptor in chain.readable() {
            let start = frame.len();
            frame.resize(start + descriptor.len() as usize, 0);
            memory.read_slice(&mut frame[start..], descriptor.addr()).unwrap();
        }
        transmit.add_used(head, 0).unwrap();
        // As many buffers as the driver has said that there would be for one frame: one.
        let chain = receive.get_queue_mut().pop_descriptor_chain(memory.clone());
        let chain = chain.expect("a buffer is posted");
        let (head, mut rest) = (chain.head_index(), frame.as_slice());
        for descriptor in chain.writable() {
            let (now, later) = rest.split_at(rest.len().min(descriptor.len() as usize));
            memory.write_slice(now, descriptor.addr()).unwrap();
            rest = later;
        }
        assert!(rest.is_empty(), "a frame of these tests fits a buffer");
        receive.add_used(head, frame.len() as u32).unwrap();
    }
}

/// A running back end of rust-vmm's.
struct Running {
    thread: JoinHandle<()>,
    acked: Arc<Mutex<Features>>,
    channel: Receiver<Backend>,
    idle: Arc<AtomicBool>,
    kicked: Receiver<u16>,
}

/// Has rust-vmm connect to the socket where our front end listens.
fn rust_vmm(path: &Path, features: Features) -> Running {
    let memory = GuestMemoryAtomic::new(Memory::new());
    let (sender, channel) = channel();
    let (kick_sender, kicked) = std::sync::mpsc::channel();
    let idle = Arc::new(AtomicBool::new(false));
    let acked = Arc::new(Mutex::new(Features::NONE));
    let back_end = RustVmm {
        idle: idle.clone(),
        kicked: kick_sender,
        memory: memory.clone(),
        features,
        event_index: false,
        acked: acked.clone(),
        channel: sender,
        exit: new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap(),
    };
    let exit = back_end.exit.1.try_clone().unwrap();
    let mut daemon =
        VhostUserDaemon::new("echo".to_owned(), Arc::new(Mutex::new(back_end)), memory).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let thread = thread::spawn(move || {
        daemon.start_client(&path).unwrap();
        // It calls it an error that the front end leaves.
        let _ = daemon.wait();
        exit.notify().unwrap();
    });
    Running { thread, acked, channel, idle, kicked }
}

fn exchange_by_guest(guest: &mut Guest, frames: u32, sent: u32) {
    let wait = |guest: &mut Guest| assert!(guest.wait(LIMIT).unwrap(), "nobody calls");
    exchange(guest, frames, sent, Guest::driver, Guest::flush, wait);
}

#[test]
fn its_back_end_serves_our_guest() {
    let directory = tempfile::tempdir().unwrap();
    let listener = FrontEndListener::bind(&directory.path().join("guest.sock")).unwrap();
    for features in [FEATURES, Features::VERSION_1] {
        let path = directory.path().join("guest.sock");
        let back_end = rust_vmm(&path, features);
        let front_end = listener.accept(LIMIT, LIMIT).unwrap();
        let options =
            Options { features: FEATURES, ring_size: RING_SIZE, queue_pairs: 1, limit: LIMIT };
        let mut guest = Guest::start(front_end, &options).unwrap();
        let agreed = guest.driver().features();
        assert_eq!(agreed, features);
        assert_eq!(*back_end.acked.lock().unwrap(), features | Features::PROTOCOL_FEATURES);
        exchange_by_guest(&mut guest, FRAMES, 0);
        // Stopped where the device stands, and started again, as new ones.
        for ring in [0, 1] {
            assert_eq!(guest.stop_ring(ring).unwrap(), FRAMES, "ring {ring}");
            guest.restart_ring(ring, RING_SIZE / 2).unwrap();
        }
        exchange_by_guest(&mut guest, FRAMES, 0);
        guest.reset().unwrap();
        exchange_by_guest(&mut guest, FRAMES, 0);

        // It goes away with a kick that it has heard, and another one goes on.
        back_end.idle.store(true, Ordering::Relaxed);
        guest.driver().reclaim().unwrap();
        for number in 0..WAITING {
            assert!(guest.driver().send(HEADER, &frame(number)).unwrap());
        }
        guest.flush();
        while back_end.kicked.recv_timeout(LIMIT).unwrap() != 1 {}
        let (nobody, _) = UnixStream::pair().unwrap();
        drop(mem::replace(guest.front_end(), FrontEnd::new(nobody.into(), LIMIT).unwrap()));
        back_end.thread.join().unwrap();
        let back_end = rust_vmm(&path, features);
        guest.resume(listener.accept(LIMIT, LIMIT).unwrap()).unwrap();
        // Nobody but the one who resumed will kick now.
        exchange_by_guest(&mut guest, WAITING, WAITING);
        exchange_by_guest(&mut guest, FRAMES, 0);
        drop(guest);
        back_end.thread.join().unwrap();
    }
}

fn wait_until_readable(descriptor: impl AsFd, what: &str) {
    let limit = Timespec::try_from(LIMIT).unwrap();
    let polled = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit));
    assert_eq!(polled, Ok(1), "{what} did not come within {LIMIT:?}");
}

#[test]
fn its_back_end_is_told_no() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.sock");
    let listener = FrontEndListener::bind(&path).unwrap();
    let back_end = rust_vmm(&path, FEATURES);
    let mut front_end = listener.accept(LIMIT, LIMIT).unwrap();
    let protocol = ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::SHARED_OBJECT;
    let agreed = front_end.negotiate(FEATURES, FEATURES, protocol).unwrap();
    assert_eq!(agreed.protocol, protocol);
    front_end.open_channel().unwrap();
    let channel = back_end.channel.recv_timeout(LIMIT).unwrap();
    let object = VhostUserSharedMsg::default();
    let asks = thread::spawn(move || channel.shared_object_add(&object).map_err(drop));
    wait_until_readable(front_end.channel().unwrap(), "its request");
    let event = front_end.back_end_event();
    assert!(matches!(event, Some(BackEndEvent::Refused { number: 6 })), "{event:?}");
    // It got its answer, and cannot have taken it for a yes.
    asks.join().unwrap().unwrap_err();
    drop(front_end);
    back_end.thread.join().unwrap();
}

#[test]
fn its_front_end_drives_our_back_end() {
    let offer = Offer {
        features: FEATURES | Features::RING_PACKED,
        protocol: Offer::PROTOCOL,
        queue_pairs: 1,
        max_mtu: 1500,
    };
    let (socket, echo) = Echo::mortal(offer, usize::MAX);
    let mut guest = Monitored::new(socket);
    let region = guest.region();
    guest.front_end.set_mem_table(&[region]).unwrap();
    guest.start([0; 2]);
    guest.exchange(0);
    // It stands where both rings are, and goes on there, with memory that comes by the region now.
    assert_eq!(guest.stop(), [FRAMES; 2]);
    guest.front_end.remove_mem_region(&region).unwrap();
    guest.front_end.add_mem_region(&region).unwrap();
    guest.start([FRAMES; 2]);
    guest.exchange(0);
    assert_eq!(guest.stop(), [2 * FRAMES; 2]);
    guest.front_end.reset_device().unwrap();

    // And with another one.
    let (socket, other) = Echo::mortal(offer, usize::MAX);
    let mut guest = guest.reconnect(|| socket);
    echo.join().unwrap();
    guest.front_end.set_mem_table(&[region]).unwrap();
    guest.start([2 * FRAMES; 2]);
    guest.exchange(0);
    drop(guest);
    other.join().unwrap();
}
