//! The driver against a device whose queues are worked by hand.

use std::os::fd::AsFd;

use memory::{FrontEndAddress, ReadSlice, RegionRequest, SharedMemory};
use virtqueue::DeviceQueue;

use super::*;
use crate::layout::MemoryLayout;

const START: GuestAddress = GuestAddress(0x4000_0000);
const RING: u16 = 8;
const MODERN: Features = Features::VERSION_1.union(Features::MRG_RXBUF);

/// The device's side, with its own view of the memory.
struct Device {
    memory: GuestMemory,
    header_size: usize,
    receive: DeviceQueue,
    transmit: DeviceQueue,
}

fn pair(features: Features) -> (NetDriver, Device) {
    let layout = MemoryLayout::new(START, features, RING, 1);
    let shared = SharedMemory::create("driver", layout.size).unwrap();
    let map = || {
        GuestMemory::map([RegionRequest {
            guest: START,
            size: layout.size,
            front_end: FrontEndAddress(0),
            offset: 0,
            file: shared.as_fd().try_clone_to_owned().unwrap(),
        }])
        .unwrap()
    };
    let memory = map();
    let mut driver = NetDriver::new(Arc::new(map()), layout.pairs[0], features).unwrap();
    let receive = device_queue(&memory, features, driver.receive_ring());
    let transmit = device_queue(&memory, features, driver.transmit_ring());
    assert!(!driver.publish_receive(), "a device that starts wants no kick");
    let header_size = NetHeader::size(features);
    (driver, Device { memory, header_size, receive, transmit })
}

/// The device's side of a ring that starts.
fn device_queue(
    memory: &GuestMemory,
    features: Features,
    (RingAddresses { descriptors, available, used }, size): (RingAddresses, u16),
) -> DeviceQueue {
    let layout = Layout::new(memory, features, size.into(), descriptors, available, used);
    DeviceQueue::new(layout.unwrap(), features, Layout::first_position(features))
}

impl Device {
    /// Takes the next frame that the guest sent.
    fn take(&mut self) -> Option<(NetHeader, Vec<u8>)> {
        let mut slices: Vec<ReadSlice<'_>> = Vec::new();
        let mut translator = self.memory.translator();
        let chain = self.transmit.take_readable(&mut translator, u32::MAX, &mut slices).unwrap()?;
        let mut bytes = vec![0; slices.iter().map(ReadSlice::len).sum()];
        let mut at = 0;
        for slice in slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
        self.transmit.give_back(chain, 0);
        let _ = self.transmit.publish();
        let frame = bytes.split_off(self.header_size);
        bytes.resize(NetHeader::SIZE, 0);
        Some((NetHeader::from_bytes(bytes.first_chunk().unwrap()), frame))
    }

    /// Writes these bytes to the next receive buffer, and says that it wrote so many.
    fn fill(&mut self, bytes: &[u8], written: usize) {
        let mut slices = Vec::new();
        let mut translator = self.memory.translator();
        let chain = self.receive.take_writable(&mut translator, u32::MAX, &mut slices).unwrap();
        let chain = chain.expect("the guest has posted a buffer");
        assert_eq!(chain.bytes(), RECEIVE_BUFFER);
        assert_eq!(WriteCursor::new(&slices).write(bytes.into()), bytes.len());
        self.receive.give_back(chain, written as u32);
    }

    /// Delivers a frame, in as many buffers as it takes.
    fn deliver(&mut self, header: NetHeader, frame: &[u8]) {
        let buffers = (self.header_size + frame.len()).div_ceil(RECEIVE_BUFFER as usize) as u16;
        let header = NetHeader { num_buffers: buffers, ..header }.to_bytes();
        let bytes = [&header[..self.header_size], frame].concat();
        for part in bytes.chunks(RECEIVE_BUFFER as usize) {
            self.fill(part, part.len());
        }
        let _ = self.receive.publish();
    }
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + seed * 13) as u8).collect()
}

const HEADER: NetHeader = NetHeader {
    flags: NetHeader::NEEDS_CSUM,
    gso_type: NetHeader::GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1448,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

#[test]
fn frames_go_out_with_their_header_round_after_round() {
    for features in [Features::NONE, Features::VERSION_1, MODERN, MODERN | Features::EVENT_IDX] {
        let (mut driver, mut device) = pair(features);
        for round in 0..50 {
            let lens = [14, 60, 1514, driver.max_frame()];
            for len in lens {
                assert!(driver.send(HEADER, &frame(len, round)).unwrap());
            }
            assert!(device.take().is_none(), "nothing is shown before it is published");
            let _ = driver.publish_transmit();
            assert_eq!(driver.in_flight(), lens.len());
            for len in lens {
                assert_eq!(device.take(), Some((HEADER, frame(len, round))));
            }
            assert_eq!(driver.reclaim().unwrap(), lens.len());
            assert_eq!(driver.in_flight(), 0);
        }
    }
}

#[test]
fn a_full_ring_takes_no_frame_and_loses_none() {
    let (mut driver, mut device) = pair(MODERN);
    for seed in 0..RING.into() {
        assert!(driver.send(HEADER, &frame(60, seed)).unwrap());
    }
    assert!(!driver.send(HEADER, &frame(60, 99)).unwrap());
    let _ = driver.publish_transmit();
    assert_eq!(driver.reclaim().unwrap(), 0);
    assert_eq!(device.take(), Some((HEADER, frame(60, 0))));
    assert_eq!(driver.reclaim().unwrap(), 1);
    assert!(driver.send(HEADER, &frame(60, 8)).unwrap());
    assert!(!driver.send(HEADER, &frame(60, 99)).unwrap());
    let _ = driver.publish_transmit();
    for seed in 1..=8 {
        assert_eq!(device.take(), Some((HEADER, frame(60, seed))));
    }
    assert_eq!(device.take(), None);
}

#[test]
fn a_ring_that_is_reset_is_elsewhere_and_has_all_its_buffers() {
    for features in [MODERN, MODERN | Features::RING_PACKED, MODERN | Features::EVENT_IDX] {
        let (mut driver, mut device) = pair(features);
        let mut places = [driver.transmit_ring().0, driver.receive_ring().0];
        for (round, size) in [RING, RING / 2, 1, RING, RING / 4].into_iter().enumerate() {
            // Frames are under way: some used and not reaped, some not even seen by the device.
            while driver.send(HEADER, &frame(60, round)).unwrap() {}
            let _ = driver.publish_transmit();
            device.take().unwrap();
            driver.reset_transmit(size).unwrap();
            assert_eq!(driver.in_flight(), 0);
            let ring = driver.transmit_ring();
            assert_ne!(std::mem::replace(&mut places[0], ring.0), ring.0);
            device.transmit = device_queue(&device.memory, features, ring);
            assert_eq!(device.take(), None, "nothing is left of what was sent before");
            for seed in 0..size.into() {
                assert!(driver.send(HEADER, &frame(1000, seed)).unwrap());
            }
            assert!(!driver.send(HEADER, &frame(60, 99)).unwrap(), "a ring of {size}");
            let _ = driver.publish_transmit();
            for seed in 0..size.into() {
                assert_eq!(device.take(), Some((HEADER, frame(1000, seed))));
            }
            assert_eq!(driver.reclaim().unwrap(), usize::from(size));

            device.deliver(HEADER, &frame(60, round));
            driver.reset_receive(size).unwrap();
            let _ = driver.publish_receive();
            assert!(driver.receive(|_| ()).unwrap().is_none(), "it went with its ring");
            let ring = driver.receive_ring();
            assert_ne!(std::mem::replace(&mut places[1], ring.0), ring.0);
            device.receive = device_queue(&device.memory, features, ring);
            for _ in 0..3 {
                (0..size.into()).for_each(|seed| device.deliver(HEADER, &frame(1500, seed)));
                for seed in 0..size.into() {
                    let came = driver.receive(|received| received.frame.to_vec()).unwrap();
                    assert_eq!(came, Some(frame(1500, seed)));
                }
                let _ = driver.publish_receive();
            }
        }
    }
}

#[test]
fn a_ring_may_become_smaller_and_not_larger() {
    let (mut driver, mut device) = pair(MODERN);
    let before = (driver.receive_ring(), driver.transmit_ring());
    let says = "a ring of 16 entries does not fit where there is room for 8";
    assert_eq!(driver.reset_receive(16).unwrap_err().to_string(), says);
    assert_eq!(driver.reset_transmit(16).unwrap_err().to_string(), says);
    for size in [0, 3] {
        assert!(matches!(driver.reset_receive(size), Err(DriverError::Layout(_))));
        assert!(matches!(driver.reset_transmit(size), Err(DriverError::Layout(_))));
    }
    assert_eq!((driver.receive_ring(), driver.transmit_ring()), before);
    assert!(driver.send(HEADER, &frame(60, 1)).unwrap());
    let _ = driver.publish_transmit();
    assert_eq!(device.take(), Some((HEADER, frame(60, 1))), "as if nothing had been asked");
}

#[test]
fn a_frame_too_long_is_an_error_and_costs_no_buffer() {
    let (mut driver, _device) = pair(MODERN);
    let most = driver.max_frame();
    assert_eq!(most, 16 * 1024 - 12);
    let error = driver.send(HEADER, &frame(most + 1, 0)).unwrap_err();
    let says = "a frame of 16373 bytes does not fit a transmit buffer, which takes 16372";
    assert_eq!(error.to_string(), says);
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn frames_come_in_round_after_round() {
    for features in [Features::NONE, Features::VERSION_1, MODERN, MODERN | Features::EVENT_IDX] {
        let (mut driver, mut device) = pair(features);
        let largest = RECEIVE_BUFFER as usize - NetHeader::size(features);
        for round in 0..50 {
            let lens = [14, 60, 1514, largest];
            lens.iter().for_each(|len| device.deliver(HEADER, &frame(*len, round)));
            for len in lens {
                let received = driver.receive(|Received { header, frame }| {
                    (NetHeader { num_buffers: 0, ..header }, frame.to_vec())
                });
                let (header, came) = received.unwrap().expect("a frame came");
                assert_eq!(came, frame(len, round));
                let size = NetHeader::size(features);
                assert_eq!(header.to_bytes()[..size], HEADER.to_bytes()[..size]);
            }
            assert!(driver.receive(|_| ()).unwrap().is_none());
            let _ = driver.publish_receive();
        }
    }
}

#[test]
fn a_frame_is_put_together_from_its_buffers() {
    let (mut driver, mut device) = pair(MODERN);
    let all = usize::from(RING) * RECEIVE_BUFFER as usize - NetHeader::SIZE;
    for (round, len) in [2036, 2037, 4084, 4085, 9014, all, 14, all].into_iter().enumerate() {
        device.deliver(NetHeader::default(), &frame(len, round));
        let came = driver.receive(|received| received.frame.to_vec()).unwrap();
        assert!(came.as_deref() == Some(&frame(len, round)), "{len}");
        let _ = driver.publish_receive();
    }
}

#[test]
fn a_device_that_did_not_agree_to_merge_is_not_believed_to() {
    let (mut driver, mut device) = pair(Features::VERSION_1);
    let header = NetHeader { num_buffers: 2, ..NetHeader::default() }.to_bytes();
    let bytes = [&header[..], &frame(60, 1)].concat();
    device.fill(&bytes, bytes.len());
    device.fill(&bytes, bytes.len());
    let _ = device.receive.publish();
    for _ in 0..2 {
        let came = driver.receive(|received| received.frame.to_vec()).unwrap();
        assert_eq!(came, Some(frame(60, 1)));
    }
}

#[test]
fn a_device_that_lies_is_found_out() {
    let mut says = Vec::new();
    let whole = |num_buffers| {
        let header = NetHeader { num_buffers, ..NetHeader::default() }.to_bytes();
        [&header[..], &frame(60, 1)].concat()
    };
    for (num_buffers, written) in [(1, 2049), (1, 11), (1, 0), (0, 72), (2, 72), (65535, 72)] {
        let (mut driver, mut device) = pair(MODERN);
        device.fill(&whole(num_buffers), written);
        let _ = device.receive.publish();
        says.push(driver.receive(|_| ()).unwrap_err().to_string());
    }
    let expected = [
        "the back end wrote 2049 bytes to a receive buffer of 2048",
        "the back end wrote 11 bytes to a receive buffer of 2048",
        "the back end wrote 0 bytes to a receive buffer of 2048",
        "the back end delivered a frame in 0 buffers, of which 1 came",
        "the back end delivered a frame in 2 buffers, of which 1 came",
        "the back end delivered a frame in 65535 buffers, of which 1 came",
    ];
    assert_eq!(says, expected);

    // Rings that break their own rules: a chain used twice, more used than there is.
    let (mut driver, mut device) = pair(MODERN);
    assert!(driver.send(HEADER, &frame(60, 1)).unwrap());
    assert!(driver.send(HEADER, &frame(60, 2)).unwrap());
    let _ = driver.publish_transmit();
    let mut translator = device.memory.translator();
    let chain = device.transmit.take_readable(&mut translator, 0, &mut Vec::new()).unwrap();
    let chain = chain.expect("the guest has sent a frame");
    device.transmit.give_back(chain, 0);
    device.transmit.give_back(chain, 0);
    let _ = device.transmit.publish();
    let error = driver.reclaim().unwrap_err();
    assert!(error.to_string().starts_with("the back end broke a rule of the ring: "), "{error}");
    (0..5).for_each(|_| device.transmit.give_back(chain, 0));
    let _ = device.transmit.publish();
    assert!(matches!(driver.reclaim(), Err(DriverError::Device(Violation::UsedIndex { .. }))));
}

#[test]
fn kicks_and_calls_happen_when_they_are_asked_for() {
    for features in [MODERN, MODERN | Features::EVENT_IDX] {
        let (mut driver, mut device) = pair(features);
        let send = |driver: &mut NetDriver| {
            assert!(driver.send(HEADER, &frame(60, 1)).unwrap());
            driver.publish_transmit()
        };
        assert!(!send(&mut driver), "the device polls");
        device.take().unwrap();
        assert!(!device.transmit.enable_kicks().unwrap());
        assert!(send(&mut driver), "the device sleeps");
        device.take().unwrap();

        let deliver = |device: &mut Device| {
            let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.to_bytes();
            device.fill(&[&header[..], &frame(60, 1)].concat(), 72);
            device.receive.publish()
        };
        // The first publication of a device with EVENT_IDX calls in any case.
        let _ = deliver(&mut device);
        assert!(!deliver(&mut device), "the driver polls");
        assert!(driver.enable_calls(), "do not wait: frames are there");
        while driver.receive(|_| ()).unwrap().is_some() {}
        assert!(!driver.enable_calls());
        assert!(deliver(&mut device), "the driver waits");
        driver.receive(|_| ()).unwrap();
        driver.disable_calls();
        assert!(!deliver(&mut device));
    }
}

#[test]
fn a_frame_costs_no_allocation() {
    let (mut driver, mut device) = pair(MODERN);
    let large = frame(9014, 1);
    let mut counts = Vec::new();
    for _ in 0..5 {
        let sending = allocation_counter::measure(|| {
            assert!(driver.send(HEADER, &large).unwrap());
            let _ = driver.publish_transmit();
        });
        let (header, came) = device.take().unwrap();
        device.deliver(header, &came);
        let receiving = allocation_counter::measure(|| {
            driver.reclaim().unwrap();
            assert!(driver.receive(|received| received.frame == large).unwrap().unwrap());
            let _ = driver.publish_receive();
        });
        counts.push(sending.count_total + receiving.count_total);
    }
    assert!(counts[0] > 0, "nothing is counted at all");
    assert_eq!(counts[1..], [0; 4]);
}
