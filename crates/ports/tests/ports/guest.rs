//! A guest whose rings are driven by hand, well or badly.
//!
//! ```text
//! guest address  BASE   the receive ring, its indirect tables, its buffer areas, one an entry
//!                       the transmit ring, the same
//!                       the rings of further pairs, the same
//! ```
//!
//! All of it is one file, cut into three regions: the borders lie inside of the first buffer areas
//! of the first two rings, at odd addresses. Or it is not cut, or into halves, or into many: see [`Regions`].
//!
//! What is done to a ring without naming it is done to the first pair.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memory::{
    FrontEndAddress, GuestAddress, GuestMemory, ReadSlice, RegionRequest, WriteCursor, WriteSlice,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user::{Device, RingSetup};
use virtqueue::{Buffer, DriverQueue, Form, IndirectTables, Layout, Used};
use wire::split::{
    AVAILABLE_ENTRY_SIZE, Descriptor, RING_ENTRIES, RING_FLAGS, RING_INDEX, available_event_offset,
    available_ring_size, descriptor_table_size, used_ring_size,
};
use wire::virtio::{Features, NetHeader};

const BASE: u64 = 0x10_0000;
const FRONT_END: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;
/// Bytes of a buffer area: room for the largest frame.
pub const AREA: u32 = 80 * 1024;
/// What a buffer holds before it is written to.
const BLANK: u8 = 0xEE;
static BLANKS: [u8; AREA as usize] = [BLANK; AREA as usize];
/// Bytes behind the end of what was written that are looked at.
const BEHIND: usize = 32;
const BORDER: u64 = 21;
/// Descriptors in an indirect table.
const TABLE: u16 = 32;

/// Ring numbers, as in a [`Device`]: those of the first pair.
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;

/// The number of a pair's receive ring.
pub const fn receive(pair: usize) -> usize {
    2 * pair + RECEIVE
}

/// The number of a pair's transmit ring.
pub const fn transmit(pair: usize) -> usize {
    2 * pair + TRANSMIT
}

/// How this guest lays out its chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One descriptor.
    Whole,
    /// A table, with the header in a descriptor of its own.
    Indirect,
    /// Descriptors of one byte for the header and the start of the frame, and an empty one.
    Crumbs,
    /// Of a split ring, two descriptors and then a table. Of a packed one, which has no such chains,
    /// descriptors and tables by turns.
    Mixed,
}

pub const CUTS: [Cut; 3] = [Cut::Whole, Cut::Indirect, Cut::Crumbs];

impl Cut {
    /// The bytes of each descriptor, of which there are at most `most`.
    fn lens(self, total: u32, header: u32, most: u16) -> Vec<u32> {
        let mut lens = match self {
            Self::Whole => vec![total],
            Self::Indirect => vec![header.min(total), total.saturating_sub(header)],
            Self::Crumbs => {
                let ones = (header + 3).min(total);
                let rest = total - ones;
                let mut lens = vec![1; ones as usize];
                lens.extend([rest / 3, 0, rest - rest / 3]);
                lens
            }
            Self::Mixed => {
                let rest = total.saturating_sub(header);
                vec![total.min(4), total.min(header).saturating_sub(4), rest / 2, rest - rest / 2]
            }
        };
        if lens.len() > most.into() {
            let rest = lens.split_off(usize::from(most) - 1);
            lens.push(rest.iter().sum());
        }
        lens
    }

    /// The form of the chain of this number, in a ring.
    fn form(self, number: u32, ring: &Ring) -> Form {
        match self {
            Self::Indirect => Form::Indirect(0),
            Self::Mixed if !ring.is_packed => Form::Indirect(2.min(ring.size - 1)),
            Self::Mixed if number.is_multiple_of(2) => Form::Indirect(0),
            _ => Form::Direct,
        }
    }
}

/// How a guest's memory is cut into regions. Who translates addresses looks first where the buffer before
/// was, and to begin with in the first region.
#[derive(Clone, Copy, Debug)]
pub enum Regions {
    /// Not at all.
    One,
    /// In the first buffer area of each ring, which is most often that of a frame that comes alone.
    Fronts,
    /// In the second buffer area of each ring, if there is one.
    Borders,
    /// In the middle of a ring's buffer areas: those in front are in the first region.
    Halves(usize),
    /// At each buffer area: none is where the one before is.
    Stripes,
}

impl Regions {
    fn borders(self, receive: &Places, transmit: &Places, ring_size: u32) -> Vec<u64> {
        let places = [receive, transmit];
        match self {
            Self::One => Vec::new(),
            Self::Fronts => places.map(|places| places.area(0) + BORDER).into(),
            Self::Borders => places.map(|places| places.area(1.min(ring_size - 1)) + BORDER).into(),
            Self::Halves(ring) => vec![places[ring].area(ring_size / 2) + BORDER],
            Self::Stripes => places
                .into_iter()
                .flat_map(|places| (0..ring_size).map(|number| places.area(number)))
                .collect(),
        }
    }
}

/// Where the parts of a ring are.
#[derive(Clone, Copy)]
pub struct Places {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    tables: u64,
    pub areas: u64,
    end: u64,
}

impl Places {
    fn new(start: u64, size: u16) -> Self {
        let descriptors = start.next_multiple_of(PAGE);
        let available = descriptors + descriptor_table_size(size);
        let used = (available + available_ring_size(size)).next_multiple_of(4);
        let tables = (used + used_ring_size(size)).next_multiple_of(16);
        let areas = (tables + IndirectTables::size(size, TABLE)).next_multiple_of(PAGE);
        let end = areas + u64::from(size) * u64::from(AREA);
        Self { descriptors, available, used, tables, areas, end }
    }

    /// The start of a buffer area.
    pub fn area(&self, number: u32) -> u64 {
        self.areas + u64::from(number) * u64::from(AREA)
    }

    fn layout(&self, memory: &GuestMemory, features: Features, size: u16) -> Layout {
        let [descriptors, available, used] =
            [self.descriptors, self.available, self.used].map(GuestAddress);
        Layout::new(memory, features, size.into(), descriptors, available, used).unwrap()
    }
}

/// A descriptor that can be waited for and counts.
pub struct Event(pub Arc<OwnedFd>);

impl Event {
    pub fn new() -> Self {
        Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()))
    }

    /// How often it was written to since the last time.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    pub fn fire(&self) {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).unwrap();
    }

    fn fires_within(&self, limit: Duration) -> bool {
        let limit =
            Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    pub fn is_quiet(&self) -> bool {
        !self.fires_within(Duration::ZERO)
    }

    /// Waits until it is written to.
    #[track_caller]
    pub fn wait(&self, limit: Duration, what: &str) {
        assert!(self.fires_within(limit), "waited {limit:?} for {what}");
        self.take();
    }
}

/// One ring, as its driver.
pub struct Ring {
    queue: DriverQueue,
    pub places: Places,
    pub size: u16,
    pub kick: Event,
    pub call: Event,
    /// Numbers this start of the ring.
    pub start: u64,
    pub base: u32,
    pub enabled: bool,
    pub runs: bool,
    is_packed: bool,
    /// Chains that were added since this start, and their entries: one of a split ring each, as many
    /// of a packed one as they have descriptors.
    chains: u32,
    pub entries: u32,
    /// Buffer areas that no chain uses.
    free: Vec<u32>,
    /// Chains that the device has, in order: which area, and its bytes.
    with_device: VecDeque<(u32, u32)>,
}

fn next_start() -> u64 {
    static STARTS: AtomicU64 = AtomicU64::new(1);
    STARTS.fetch_add(1, Ordering::Relaxed)
}

impl Ring {
    fn new(memory: &GuestMemory, places: Places, size: u16, features: Features) -> Self {
        let tables = GuestAddress(places.tables);
        let tables = IndirectTables::new(memory, tables, size, TABLE).unwrap();
        let layout = places.layout(memory, features, size);
        let mut queue = DriverQueue::new(layout, features, Some(tables));
        // Calls at each publication, so that they can be counted; with EVENT_IDX see `reap`.
        let _ = queue.enable_calls();
        Self {
            queue,
            places,
            size,
            kick: Event::new(),
            call: Event::new(),
            start: next_start(),
            base: Layout::first_position(features),
            enabled: true,
            runs: true,
            is_packed: features.contains(Features::RING_PACKED),
            chains: 0,
            entries: 0,
            free: (0..u32::from(size)).rev().collect(),
            with_device: VecDeque::new(),
        }
    }

    /// Descriptors that are free.
    pub fn room(&self) -> usize {
        self.queue.free()
    }

    /// Whether another chain can be added that is cut like this.
    pub fn has_room(&self, cut: Cut) -> bool {
        self.room() >= cut.lens(100, 12, self.size).len() && !self.free.is_empty()
    }

    /// Chains that the device has not used.
    pub fn outstanding(&self) -> usize {
        self.with_device.len()
    }

    /// Adds a chain of `total` bytes.
    fn add(&mut self, cut: Cut, total: u32, header: usize, writable: bool) -> u64 {
        let lens = cut.lens(total, header as u32, self.size);
        self.add_as(&lens, cut.form(self.chains, self), writable)
    }

    fn add_as(&mut self, lens: &[u32], form: Form, writable: bool) -> u64 {
        let area = self.free.pop().expect("a free buffer area");
        let start = self.places.area(area);
        let mut at = start;
        let place = |len: &u32| {
            let address = GuestAddress(at);
            at += u64::from(*len);
            Buffer { address, len: *len, writable }
        };
        let chain: Vec<Buffer> = lens.iter().map(place).collect();
        self.queue.add(&chain, form, area).expect("room for the chain");
        let total: u32 = lens.iter().sum();
        assert!(total <= AREA);
        self.chains += 1;
        self.entries += match form {
            Form::Direct if self.is_packed => chain.len() as u32,
            _ => 1,
        };
        self.with_device.push_back((area, total));
        start
    }

    fn setup(&self, memory: &GuestMemory, features: Features) -> Option<RingSetup> {
        self.runs.then(|| RingSetup {
            layout: self.places.layout(memory, features, self.size),
            base: self.base,
            start: self.start,
            enabled: self.enabled,
            kick: Some(self.kick.0.clone()),
            call: Some(self.call.0.clone()),
        })
    }
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub header: NetHeader,
    pub frame: Vec<u8>,
    /// Buffers that it filled.
    pub buffers: usize,
}

pub struct Guest {
    pub memory: Arc<GuestMemory>,
    name: String,
    file: OwnedFd,
    size: u64,
    borders: Vec<u64>,
    pub features: Features,
    pub cut: Cut,
    pub receive: Ring,
    pub transmit: Ring,
    /// The rings of further pairs, from ring 2 on.
    further: Vec<Ring>,
}

impl Guest {
    pub fn new(features: Features, cut: Cut, ring_size: u16) -> Self {
        Self::with_pairs(1, features, cut, ring_size)
    }

    /// A guest with so many queue pairs.
    pub fn with_pairs(pairs: usize, features: Features, cut: Cut, ring_size: u16) -> Self {
        Self::with_regions(Regions::Borders, pairs, features, cut, ring_size)
    }

    /// A guest with so many queue pairs, whose memory is cut like this.
    pub fn with_regions(
        regions: Regions,
        pairs: usize,
        features: Features,
        cut: Cut,
        ring_size: u16,
    ) -> Self {
        let mut end = BASE;
        let mut next = || {
            let places = Places::new(end, ring_size);
            end = places.end;
            places
        };
        let (receive, transmit) = (next(), next());
        let further: Vec<Places> = (2..2 * pairs).map(|_| next()).collect();
        let size = end - BASE;
        let borders = regions.borders(&receive, &transmit, ring_size.into());
        let name = format!("guest {}", next_start());
        let file = memfd_create(&name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        let memory = Arc::new(map(&file, size, &borders));
        Self {
            receive: Ring::new(&memory, receive, ring_size, features),
            transmit: Ring::new(&memory, transmit, ring_size, features),
            further: further
                .into_iter()
                .map(|places| Ring::new(&memory, places, ring_size, features))
                .collect(),
            memory,
            name,
            file,
            size,
            borders,
            features,
            cut,
        }
    }

    /// The device, as a back end would hand it over, with its own view of the memory.
    pub fn device(&self) -> Device {
        let memory = Arc::new(map(&self.file, self.size, &self.borders));
        let rings = (0..self.rings()).map(|number| self.ring(number));
        let rings = rings.map(|ring| ring.setup(&memory, self.features)).collect();
        Device { memory, features: self.features, rings }
    }

    /// Starts over with empty rings, as a driver that was loaded anew.
    pub fn reset(&mut self) {
        (0..self.rings()).for_each(|number| self.reset_ring(number));
    }

    /// Has a ring not run any more.
    pub fn stop(&mut self, number: usize) {
        self.ring_mut(number).runs = false;
    }

    /// Starts over with one empty ring, as a driver that has reset it.
    pub fn reset_ring(&mut self, number: usize) {
        let Ring { places, size, .. } = *self.ring(number);
        self.write(places.descriptors, &vec![0; (places.areas - places.descriptors) as usize]);
        let ring = Ring::new(&self.memory, places, size, self.features);
        *self.ring_mut(number) = ring;
    }

    /// Overwrites a ring, as a driver that uses its memory for something else.
    pub fn scribble(&mut self, number: usize) {
        let places = self.ring(number).places;
        self.write(places.descriptors, &vec![0xA5; (places.areas - places.descriptors) as usize]);
    }

    /// All that a ring's device may touch: the ring and its buffers.
    pub fn snapshot(&self, number: usize) -> Vec<u8> {
        let places = self.ring(number).places;
        self.read(places.descriptors, (places.end - places.descriptors) as usize)
    }

    /// Has the rings of the first pair start again, at these positions, with all that is in them.
    pub fn restart(&mut self, bases: [u32; 2]) {
        for (number, base) in [RECEIVE, TRANSMIT].into_iter().zip(bases) {
            self.restart_ring(number, base);
        }
    }

    /// Has a ring start again at this position, with all that is in it.
    pub fn restart_ring(&mut self, number: usize, base: u32) {
        let ring = self.ring_mut(number);
        ring.start = next_start();
        ring.base = base;
        ring.runs = true;
    }

    /// How /proc calls its memory.
    pub fn memory_name(&self) -> String {
        format!("/memfd:{} ", self.name)
    }

    /// Takes its memory away, from under everybody who has mapped it.
    pub fn truncate(&self) {
        ftruncate(&self.file, 0).unwrap();
    }

    pub fn header_size(&self) -> usize {
        NetHeader::size(self.features)
    }

    /// Queues a frame and shows it to the device.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(NetHeader::default(), frame);
    }

    pub fn send_with(&mut self, header: NetHeader, frame: &[u8]) {
        let bytes = [&header.to_bytes()[..self.header_size()], frame].concat();
        self.send_bytes(&bytes);
    }

    /// Queues what need not be a header and a frame.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.send_bytes_on(0, bytes);
    }

    /// Queues a frame in the transmit ring of a pair. Returns whether the device wants a kick.
    pub fn send_on(&mut self, pair: usize, frame: &[u8]) -> bool {
        let header = NetHeader::default().to_bytes();
        self.send_bytes_on(pair, &[&header[..self.header_size()], frame].concat())
    }

    fn send_bytes_on(&mut self, pair: usize, bytes: &[u8]) -> bool {
        let (cut, header) = (self.cut, self.header_size());
        let at = self.ring_mut(transmit(pair)).add(cut, bytes.len() as u32, header, false);
        self.write(at, bytes);
        self.ring_mut(transmit(pair)).queue.publish()
    }

    /// Queues a frame in one descriptor for each of its bytes.
    pub fn send_bytewise(&mut self, frame: &[u8]) {
        let bytes = [&vec![0; self.header_size()], frame].concat();
        let at = self.transmit.add_as(&vec![1; bytes.len()], Form::Direct, false);
        self.write(at, &bytes);
        let _ = self.transmit.queue.publish();
    }

    /// Whether another frame can be queued.
    pub fn can_send(&self) -> bool {
        self.transmit.has_room(self.cut)
    }

    /// Posts a receive buffer. Returns whether the device wants a kick.
    pub fn post(&mut self, len: u32) -> bool {
        self.post_on(0, len)
    }

    /// Posts a receive buffer in the ring of a pair. Returns whether the device wants a kick.
    pub fn post_on(&mut self, pair: usize, len: u32) -> bool {
        let (cut, header) = (self.cut, self.header_size());
        let at = self.ring_mut(receive(pair)).add(cut, len, header, true);
        self.write(at, &BLANKS[..len as usize]);
        self.ring_mut(receive(pair)).queue.publish()
    }

    /// Posts `count` buffers that hold a usual frame.
    pub fn post_many(&mut self, count: usize) {
        (0..count).for_each(|_| _ = self.post(2048));
    }

    /// Posts `count` buffers that hold a usual frame in the ring of a pair.
    pub fn post_many_on(&mut self, pair: usize, count: usize) {
        (0..count).for_each(|_| _ = self.post_on(pair, 2048));
    }

    /// Takes back the transmit buffers that the device has used. Returns how many.
    pub fn reap(&mut self) -> usize {
        self.reap_on(0)
    }

    /// Takes back the transmit buffers of a pair that the device has used. Returns how many.
    pub fn reap_on(&mut self, pair: usize) -> usize {
        let ring = self.ring_mut(transmit(pair));
        let before = ring.with_device.len();
        while let Some(used) = ring.queue.reap().unwrap() {
            assert_eq!(used.written, 0, "written to a buffer that is only to be read");
            // Not in order when frames to one receiver are held and those to others are not.
            let known = ring.with_device.iter().position(|(area, _)| *area == used.token);
            ring.with_device.remove(known.expect("a chain that the device has"));
            ring.free.push(used.token);
        }
        let _ = ring.queue.enable_calls();
        before - ring.with_device.len()
    }

    /// The frames that came. Checks all that a driver relies on: used lengths, the count of
    /// buffers, that all but the last are filled to the end, and nothing written behind it.
    pub fn received(&mut self) -> Vec<Received> {
        self.received_on(0)
    }

    /// The frames that came in the ring of a pair.
    pub fn received_on(&mut self, pair: usize) -> Vec<Received> {
        let mut frames = Vec::new();
        while let Some(used) = self.ring_mut(receive(pair)).queue.reap().unwrap() {
            let (mut bytes, mut is_full) = self.take_back(pair, used);
            let mut header = [0; NetHeader::SIZE];
            let size = self.header_size();
            header[..size].copy_from_slice(&bytes[..size]);
            let header = NetHeader::from_bytes(&header);
            let buffers = if size == NetHeader::SIZE { header.num_buffers } else { 1 };
            assert!(buffers >= 1);
            assert!(buffers == 1 || self.features.contains(Features::MRG_RXBUF));
            for _ in 1..buffers {
                assert!(is_full, "a buffer that is not the last is filled to its end");
                let used = self.ring_mut(receive(pair)).queue.reap().unwrap();
                let next;
                (next, is_full) = self.take_back(pair, used.expect("all of a frame comes at once"));
                bytes.extend(next);
            }
            bytes.drain(..size);
            frames.push(Received { header, frame: bytes, buffers: buffers.into() });
        }
        let _ = self.ring_mut(receive(pair)).queue.enable_calls();
        frames
    }

    /// The frames that came, alone.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.frames_on(0)
    }

    /// The frames that came in the ring of a pair, alone.
    pub fn frames_on(&mut self, pair: usize) -> Vec<Vec<u8>> {
        self.received_on(pair).into_iter().map(|received| received.frame).collect()
    }

    /// Wants no calls for frames of a pair, until it has taken some.
    pub fn poll_on(&mut self, pair: usize) {
        self.ring_mut(receive(pair)).queue.disable_calls();
    }

    fn take_back(&mut self, pair: usize, used: Used) -> (Vec<u8>, bool) {
        let ring = self.ring_mut(receive(pair));
        let (area, len) = ring.with_device.pop_front().expect("an outstanding buffer");
        assert_eq!(used.token, area, "buffers are used in order");
        ring.free.push(area);
        let at = ring.places.area(area);
        assert!(used.written <= len, "{} of {len} bytes written", used.written);
        assert!(used.written > 0, "a buffer was used for nothing");
        let written = used.written as usize;
        let behind = (written + BEHIND).min(len as usize);
        let mut bytes = self.read(at, behind);
        assert_eq!(bytes[written..], BLANKS[written..behind], "written behind the end");
        bytes.truncate(written);
        (bytes, used.written == len)
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let mut slices: Vec<WriteSlice<'_>> = Vec::new();
        let len = bytes.len() as u32;
        self.memory.translator().write(GuestAddress(address), len, &mut slices).unwrap();
        WriteCursor::new(&slices).write(bytes.into());
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut slices: Vec<ReadSlice<'_>> = Vec::new();
        self.memory.translator().read(GuestAddress(address), len as u32, &mut slices).unwrap();
        let mut bytes = vec![0; len];
        let mut at = 0;
        for slice in slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
        bytes
    }

    // What no driver would do by itself.

    /// Writes a descriptor of a ring.
    pub fn describe(&self, ring: usize, index: u16, descriptor: Descriptor) {
        let table = self.ring(ring).places.descriptors;
        self.write_table(table + u64::from(index) * Descriptor::SIZE, &[descriptor]);
    }

    /// Writes descriptors anywhere.
    pub fn write_table(&self, address: u64, table: &[Descriptor]) {
        let words = table.iter().flat_map(|descriptor| descriptor.to_words());
        self.write(address, &words.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
    }

    /// Writes entry `slot` of an available ring.
    pub fn set_available(&self, ring: usize, slot: u16, head: u16) {
        let at = RING_ENTRIES + u64::from(slot) * AVAILABLE_ENTRY_SIZE;
        self.write(self.ring(ring).places.available + at, &head.to_le_bytes());
    }

    pub fn set_available_index(&self, ring: usize, index: u16) {
        self.write(self.ring(ring).places.available + RING_INDEX, &index.to_le_bytes());
    }

    pub fn available_index(&self, ring: usize) -> u16 {
        self.word(self.ring(ring).places.available + RING_INDEX)
    }

    pub fn used_index(&self, ring: usize) -> u16 {
        self.word(self.ring(ring).places.used + RING_INDEX)
    }

    /// Whether the device wants a kick for the next chain.
    pub fn wants_kick(&self, ring: usize) -> bool {
        let Ring { places, size, .. } = self.ring(ring);
        if self.features.contains(Features::EVENT_IDX) {
            let event = self.word(places.used + available_event_offset(*size));
            event == self.available_index(ring)
        } else {
            self.word(places.used + RING_FLAGS) == 0
        }
    }

    fn word(&self, address: u64) -> u16 {
        let bytes = self.read(address, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Rings of all pairs.
    pub fn rings(&self) -> usize {
        2 + self.further.len()
    }

    pub fn pairs(&self) -> usize {
        self.rings() / 2
    }

    pub fn ring(&self, number: usize) -> &Ring {
        match number {
            RECEIVE => &self.receive,
            TRANSMIT => &self.transmit,
            _ => &self.further[number - 2],
        }
    }

    pub fn ring_mut(&mut self, number: usize) -> &mut Ring {
        match number {
            RECEIVE => &mut self.receive,
            TRANSMIT => &mut self.transmit,
            _ => &mut self.further[number - 2],
        }
    }
}

fn map(file: &OwnedFd, size: u64, borders: &[u64]) -> GuestMemory {
    let starts = std::iter::once(BASE).chain(borders.iter().copied());
    let ends = borders.iter().copied().chain([BASE + size]);
    GuestMemory::map(starts.zip(ends).map(|(start, end)| RegionRequest {
        guest: GuestAddress(start),
        size: end - start,
        front_end: FrontEndAddress(FRONT_END + start),
        offset: start - BASE,
        file: file.as_fd().try_clone_to_owned().unwrap(),
    }))
    .unwrap()
}
