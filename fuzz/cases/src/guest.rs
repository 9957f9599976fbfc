//! A guest that keeps the rules of rings, split or packed: what it sends and posts is up to the input, how it does
//! so is not.
//!
//! ```text
//! guest address  BASE   the receive ring, its indirect tables, its buffer areas, one an entry
//!                       the transmit ring, the same
//! ```
//!
//! One file in three regions, whose borders lie inside of each ring's first buffer area, at odd
//! addresses.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadSlice, RegionRequest, SharedMemory, WriteCursor,
};
use vhost_user::{Device, RingSetup};
use virtqueue::{Buffer, DriverQueue, Form, IndirectTables, Layout, Used};
use wire::virtio::{Features, NetHeader};

const BASE: u64 = 0x10_0000;
const PAGE: u64 = 4096;
const BORDER: u64 = 21;
/// Bytes of a buffer area: room for the largest frame and its header.
pub const AREA: u32 = 72 * 1024;
/// Descriptors in an indirect table.
const TABLE: u16 = 16;
/// What a buffer holds before it is written to, and how much of that is looked at behind the end.
const BLANK: u8 = 0xEE;
const BEHIND: usize = 32;

/// Where the parts of a ring are.
#[derive(Clone, Copy)]
struct Places {
    /// Descriptors, available, used, as [`Layout::areas`] has them.
    ring: [u64; 3],
    tables: u64,
    areas: u64,
    end: u64,
}

impl Places {
    fn new(start: u64, features: Features, size: u16) -> Self {
        let mut end = start.next_multiple_of(PAGE);
        let ring = Layout::areas(features, size).map(|area| {
            let start = end.next_multiple_of(area.alignment);
            end = start + area.size;
            start
        });
        let tables = end.next_multiple_of(16);
        let areas = (tables + IndirectTables::size(size, TABLE)).next_multiple_of(PAGE);
        let end = areas + u64::from(size) * u64::from(AREA);
        Self { ring, tables, areas, end }
    }

    fn area(&self, number: u32) -> u64 {
        self.areas + u64::from(number) * u64::from(AREA)
    }
}

/// One ring, as its driver.
struct Ring {
    queue: DriverQueue,
    layout: Layout,
    places: Places,
    start: u64,
    /// Buffer areas that no chain uses.
    free: Vec<u32>,
    /// Chains that the device has, in order: which area, and its bytes.
    with_device: VecDeque<(u32, u32)>,
}

impl Ring {
    fn new(memory: &GuestMemory, places: Places, size: u16, features: Features) -> Self {
        static STARTS: AtomicU64 = AtomicU64::new(1);
        let [descriptors, available, used] = places.ring.map(GuestAddress);
        let layout = Layout::new(memory, features, size.into(), descriptors, available, used);
        let layout = layout.expect("a ring in the memory");
        let tables = IndirectTables::new(memory, GuestAddress(places.tables), size, TABLE);
        let tables = tables.expect("tables in the memory");
        Self {
            queue: DriverQueue::new(layout.clone(), features, Some(tables)),
            layout,
            places,
            start: STARTS.fetch_add(1, Ordering::Relaxed),
            free: (0..u32::from(size)).collect(),
            with_device: VecDeque::new(),
        }
    }

    /// Makes a chain of a free area available, if there is room. Returns where it is.
    fn add(&mut self, lens: &[u32], form: Form, writable: bool) -> Option<u64> {
        let area = self.free.pop()?;
        let start = self.places.area(area);
        let mut at = start;
        let place = |len: &u32| {
            let address = GuestAddress(at);
            at += u64::from(*len);
            Buffer { address, len: *len, writable }
        };
        let chain: Vec<Buffer> = lens.iter().map(place).collect();
        let total = lens.iter().sum();
        assert!(total <= AREA);
        if self.queue.add(&chain, form, area).is_err() {
            self.free.push(area);
            return None;
        }
        self.with_device.push_back((area, total));
        Some(start)
    }
}

/// A frame that came.
pub struct Received {
    pub header: NetHeader,
    pub frame: Vec<u8>,
    pub buffers: u16,
}

pub struct Guest {
    memory: Arc<GuestMemory>,
    pub features: Features,
    receive: Ring,
    transmit: Ring,
}

impl Guest {
    pub fn new(features: Features, ring_size: u16) -> Self {
        let receive = Places::new(BASE, features, ring_size);
        let transmit = Places::new(receive.end, features, ring_size);
        let file = SharedMemory::create("fuzz guest", transmit.end - BASE).expect("a memory file");
        let borders = [receive.areas + BORDER, transmit.areas + BORDER];
        let starts = [BASE, borders[0], borders[1]];
        let ends = [borders[0], borders[1], transmit.end];
        let region = |(start, end): (u64, u64)| RegionRequest {
            guest: GuestAddress(start),
            size: end - start,
            front_end: FrontEndAddress(start),
            offset: start - BASE,
            file: file.as_fd().try_clone_to_owned().expect("a descriptor"),
        };
        let memory = GuestMemory::map(starts.into_iter().zip(ends).map(region));
        let memory = Arc::new(memory.expect("three regions"));
        Self {
            receive: Ring::new(&memory, receive, ring_size, features),
            transmit: Ring::new(&memory, transmit, ring_size, features),
            memory,
            features,
        }
    }

    /// The device, as a back end would hand it over.
    pub fn device(&self) -> Device {
        let setup = |ring: &Ring| {
            Some(RingSetup {
                layout: ring.layout.clone(),
                base: Layout::first_position(self.features),
                start: ring.start,
                enabled: true,
                kick: None,
                call: None,
            })
        };
        Device {
            memory: self.memory.clone(),
            features: self.features,
            rings: vec![setup(&self.receive), setup(&self.transmit)],
        }
    }

    pub fn header_size(&self) -> usize {
        NetHeader::size(self.features)
    }

    /// Sends these bytes, cut at `lens`, which sum up to their number. False when there is no room.
    pub fn send(&mut self, bytes: &[u8], lens: &[u32], form: Form) -> bool {
        let Some(at) = self.transmit.add(lens, form, false) else { return false };
        self.write(at, bytes);
        let _ = self.transmit.queue.publish();
        true
    }

    /// Posts a receive buffer. False when there is no room.
    pub fn post(&mut self, lens: &[u32], form: Form) -> bool {
        let Some(at) = self.receive.add(lens, form, true) else { return false };
        let total: u32 = lens.iter().sum();
        self.write(at, &vec![BLANK; total as usize]);
        let _ = self.receive.queue.publish();
        true
    }

    /// Takes back the transmit buffers that the device has used. Returns how many.
    pub fn reap(&mut self) -> usize {
        let ring = &mut self.transmit;
        let before = ring.with_device.len();
        while let Some(used) = ring.queue.reap().expect("a device that keeps the rules") {
            assert_eq!(used.written, 0, "written to a buffer that is only to be read");
            let known = ring.with_device.iter().position(|(area, _)| *area == used.token);
            let index = known.expect("a chain that the device has");
            // Otherwise frames to one receiver may be held while others are done.
            let in_order = self.features.contains(Features::IN_ORDER);
            assert!(index == 0 || !in_order, "buffers are used in order");
            ring.with_device.remove(index);
            ring.free.push(used.token);
        }
        before - ring.with_device.len()
    }

    /// Chains that the device has not given back: to be received into, and to be sent.
    pub fn outstanding(&self) -> [usize; 2] {
        [self.receive.with_device.len(), self.transmit.with_device.len()]
    }

    /// The next frame that came. Checks all that a driver relies on: used lengths, the count of
    /// buffers, that all but the last are filled to the end, and nothing written behind it.
    pub fn receive(&mut self) -> Option<Received> {
        let used = self.receive.queue.reap().expect("a device that keeps the rules")?;
        let (mut bytes, mut is_full) = self.take_back(used);
        let size = self.header_size();
        let mut header = [0; NetHeader::SIZE];
        header[..size].copy_from_slice(&bytes[..size]);
        let header = NetHeader::from_bytes(&header);
        let buffers = if size == NetHeader::SIZE { header.num_buffers } else { 1 };
        assert!(buffers >= 1);
        assert!(buffers == 1 || self.features.contains(Features::MRG_RXBUF));
        for _ in 1..buffers {
            assert!(is_full, "a buffer that is not the last is filled to its end");
            let used = self.receive.queue.reap().expect("a device that keeps the rules");
            let next;
            (next, is_full) = self.take_back(used.expect("all of a frame comes at once"));
            bytes.extend(next);
        }
        bytes.drain(..size);
        Some(Received { header, frame: bytes, buffers })
    }

    fn take_back(&mut self, used: Used) -> (Vec<u8>, bool) {
        let (area, len) = self.receive.with_device.pop_front().expect("an outstanding buffer");
        assert_eq!(used.token, area, "buffers are used in order");
        self.receive.free.push(area);
        assert!(used.written <= len, "{} of {len} bytes written", used.written);
        assert!(used.written > 0, "a buffer was used for nothing");
        let written = used.written as usize;
        let behind = (written + BEHIND).min(len as usize);
        let mut bytes = self.read(self.receive.places.area(area), behind);
        assert!(bytes[written..].iter().all(|byte| *byte == BLANK), "written behind the end");
        bytes.truncate(written);
        (bytes, used.written == len)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let mut slices = Vec::new();
        let len = bytes.len() as u32;
        let result = self.memory.translator().write(GuestAddress(address), len, &mut slices);
        assert_eq!(result, Ok(()));
        WriteCursor::new(&slices).write(bytes.into());
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut slices: Vec<ReadSlice<'_>> = Vec::new();
        let result = self.memory.translator().read(GuestAddress(address), len as u32, &mut slices);
        assert_eq!(result, Ok(()));
        let mut bytes = vec![0; len];
        let mut at = 0;
        for slice in slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
        bytes
    }
}
