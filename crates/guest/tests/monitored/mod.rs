// A guest of which rust-vmm is the monitor: its front end and our driver. Its rings are split ones: the position that
// it can give a ring has 16 bits, and a packed ring's has 32.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest, SharedMemory};
use rust_vmm_vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use rust_vmm_vhost::vhost_user::{Frontend, VhostUserFrontend};
use rust_vmm_vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wire::virtio::{Features, NetHeader};

use super::{MemoryLayout, NetDriver};

/// What both sides of a test could do.
pub const FEATURES: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC);
pub const RING_SIZE: u16 = 64;
/// Frames of a test: many times round each ring.
pub const FRAMES: u32 = 2_000;
/// Frames on their way at once: there are as many buffers in half a ring.
const WINDOW: u32 = 24;
/// What takes milliseconds, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);

/// A frame comes back with it, and then it counts buffers.
pub const HEADER: NetHeader = NetHeader {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 1,
};

pub fn frame(number: u32) -> Vec<u8> {
    let mut frame = vec![number as u8; 60 + number as usize % 1400];
    frame[..4].copy_from_slice(&number.to_le_bytes());
    frame
}

/// So many frames out and back, every byte of them, in their order. The first ones are `sent` already.
/// `flush` shows and kicks, `wait` waits.
pub fn exchange<T>(
    state: &mut T,
    frames: u32,
    mut sent: u32,
    driver: impl Fn(&mut T) -> &mut NetDriver,
    flush: impl Fn(&mut T),
    wait: impl Fn(&mut T),
) {
    let mut came = 0;
    let deadline = Instant::now() + 2 * LIMIT;
    while came < frames {
        assert!(Instant::now() < deadline, "{came} of {frames} frames came");
        let driver = driver(state);
        driver.reclaim().unwrap();
        while sent < frames && sent - came < WINDOW && driver.send(HEADER, &frame(sent)).unwrap() {
            sent += 1;
        }
        let before = came;
        while let Some(found) = driver.receive(|received| received.frame.to_vec()).unwrap() {
            assert!(found == frame(came), "frame {came} is another one");
            came += 1;
        }
        flush(state);
        if came == before {
            wait(state);
        }
    }
}

/// A guest of which rust-vmm is the monitor.
pub struct Monitored {
    pub front_end: Frontend,
    memory: SharedMemory,
    pub driver: NetDriver,
    /// Kick and call, by ring.
    events: [[EventFd; 2]; 2],
}

const GUEST_START: GuestAddress = GuestAddress(0x1_0000_0000);
const FRONT_END_START: FrontEndAddress = FrontEndAddress(0x7f12_0000_0000);

/// Agrees with a back end on what rust-vmm has, and has nothing shared yet.
fn negotiate(socket: UnixStream) -> Frontend {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut front_end = Frontend::from_stream(socket, 2);
    front_end.set_owner().unwrap();
    let offered = Features(front_end.get_features().unwrap());
    assert!(offered.contains(FEATURES | Features::PROTOCOL_FEATURES), "{offered}");
    front_end.set_features((FEATURES | Features::PROTOCOL_FEATURES).0).unwrap();
    let offered = front_end.get_protocol_features().unwrap();
    let wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE;
    assert!(offered.contains(wanted), "{offered:?}");
    front_end.set_protocol_features(wanted).unwrap();
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // It counts rings.
    assert!(front_end.get_queue_num().unwrap() >= 2);
    assert_eq!(front_end.get_max_mem_slots().unwrap(), 509);
    front_end
}

impl Monitored {
    /// Negotiates, and has nothing shared yet.
    pub fn new(socket: UnixStream) -> Self {
        let front_end = negotiate(socket);
        let layout = MemoryLayout::new(GUEST_START, FEATURES, RING_SIZE, 1);
        let memory = SharedMemory::create("monitored", layout.size).unwrap();
        let mapped = GuestMemory::map([RegionRequest {
            guest: GUEST_START,
            size: layout.size,
            front_end: FRONT_END_START,
            offset: 0,
            file: memory.as_fd().try_clone_to_owned().unwrap(),
        }]);
        let driver = NetDriver::new(Arc::new(mapped.unwrap()), layout.pairs[0], FEATURES).unwrap();
        let events = [(); 2].map(|()| [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()));
        Self { front_end, memory, driver, events }
    }

    /// Goes on over another connection, with nothing shared yet.
    pub fn reconnect(self, connect: impl FnOnce() -> UnixStream) -> Self {
        let Self { front_end, memory, driver, events } = self;
        // Back ends that serve one after the other must see it go.
        drop(front_end);
        Self { front_end: negotiate(connect()), memory, driver, events }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_START.0,
            memory_size: self.memory.size(),
            userspace_addr: FRONT_END_START.0,
            mmap_offset: 0,
            mmap_handle: self.memory.as_fd().as_raw_fd(),
        }
    }

    /// Starts both rings, each at its position.
    pub fn start(&mut self, bases: [u32; 2]) {
        for (index, [kick, call]) in self.events.iter().enumerate() {
            let (areas, size) =
                if index == 0 { self.driver.receive_ring() } else { self.driver.transmit_ring() };
            let front_end = |address: GuestAddress| address.0 - GUEST_START.0 + FRONT_END_START.0;
            let config = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: front_end(areas.descriptors),
                used_ring_addr: front_end(areas.used),
                avail_ring_addr: front_end(areas.available),
                log_addr: None,
            };
            self.front_end.set_vring_num(index, size).unwrap();
            self.front_end.set_vring_addr(index, &config).unwrap();
            self.front_end.set_vring_base(index, bases[index] as u16).unwrap();
            self.front_end.set_vring_call(index, call).unwrap();
            self.front_end.set_vring_kick(index, kick).unwrap();
        }
        for index in 0..2 {
            self.front_end.set_vring_enable(index, true).unwrap();
        }
    }

    pub fn stop(&mut self) -> [u32; 2] {
        [0, 1].map(|index| self.front_end.get_vring_base(index).unwrap())
    }

    /// Many frames out and back, of which some were sent already.
    pub fn exchange(&mut self, sent: u32) {
        exchange(self, FRAMES, sent, |guest| &mut guest.driver, Self::flush, Self::wait);
    }

    fn flush(&mut self) {
        let wanted = [self.driver.publish_receive(), self.driver.publish_transmit()];
        for (wanted, [kick, _]) in wanted.into_iter().zip(&self.events) {
            if wanted {
                kick.write(1).unwrap();
            }
        }
    }

    fn wait(&mut self) {
        let [_, call] = &self.events[0];
        if !self.driver.enable_calls() {
            let (epoll, event) = (Epoll::new().unwrap(), EpollEvent::new(EventSet::IN, 0));
            epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event).unwrap();
            let limit = LIMIT.as_millis() as i32;
            assert_eq!(epoll.wait(limit, &mut [event]).unwrap(), 1, "nobody calls");
        }
        let _ = call.read();
        self.driver.disable_calls();
    }
}
