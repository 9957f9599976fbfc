//! DPDK as the switch: its vhost library is the back end of embedded guests.
//!
//! # How it works
//!
//! testpmd has two ports, each of them a back end with a guest on it, and forwards between them:
//!
//!     guest 0  --vhost-user-->  testpmd port 0 | testpmd port 1  <--vhost-user--  guest 1
//!
//! Both guests send at once, and compare every byte of what comes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, MemoryLayout, Options, RingAddresses, RingLayout};
use memory::SharedMemory;
use tempfile::TempDir;
use testbed::dpdk::{Testpmd, Vhost};
use testbed::hugepages::{Hugepages, PAGE_SIZE};
use vhost_user::{DirtyLog, FrontEnd, FrontEndListener};
use virtqueue::Layout;
use wire::ethernet::MacAddress;
use wire::virtio::{Features, NetHeader};

/// Frames get where they should, and front and back end find each other, within this time on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames on their way at once, each way: they fit every ring, so none may be lost.
const WINDOW: u32 = 64;
/// Frames of each guest: many times round each ring.
const FRAMES: u32 = 5_000;

const SPLIT: Features = Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);
const PACKED: Features = SPLIT.union(Features::RING_PACKED);
/// Without anything that is not needed, which takes other paths through DPDK.
const PLAIN: Features = Features::VERSION_1;

/// A testpmd and the sockets of its two ports.
struct Bed {
    testpmd: Testpmd,
    directory: TempDir,
    /// How often both ports got a device.
    starts: usize,
}

impl Bed {
    /// A testpmd that listens, and does not forward yet.
    fn new() -> Result<Bed> {
        Bed::at(tempfile::tempdir()?, Vhost::new)
    }

    fn at(directory: TempDir, port: impl Fn(PathBuf) -> Vhost) -> Result<Bed> {
        let [one, two] = [0, 1].map(|number| port(socket(&directory, number)));
        let builder = Testpmd::builder().back_end(one).back_end(two);
        // A port is up once it has a guest, which nobody should wait for; and it would begin by throwing away what
        // waits in the rings.
        let builder = builder.argument("--disable-link-check").argument("--no-flush-rx");
        Ok(Bed { testpmd: builder.start()?, directory, starts: 0 })
    }

    /// Waits until both ports work with their guest's device: DPDK answers first, and drops what comes for a port that
    /// is not ready.
    fn ready(&mut self) -> Result<()> {
        // One event when a device comes, and one when it goes.
        self.starts += 1;
        let events = 2 * self.starts - 1;
        for port in 0..2 {
            let event = format!("Port {port}: link state change event");
            self.testpmd.wait_for_log(&event, events, LIMIT)?;
        }
        Ok(())
    }

    fn front_end(&self, port: usize) -> Result<FrontEnd> {
        Ok(FrontEnd::connect(&socket(&self.directory, port), LIMIT)?)
    }

    /// Two guests, and testpmd forwards.
    fn guests(&mut self, features: Features) -> Result<[Guest; 2]> {
        let guest = |port| -> Result<Guest> {
            let guest = Guest::start(self.front_end(port)?, &options(features))?;
            check(guest, features)
        };
        let guests = [guest(0)?, guest(1)?];
        self.ready()?;
        self.testpmd.forward(None)?;
        Ok(guests)
    }

    /// Kills testpmd, and starts another one in its place.
    fn replace(self) -> Result<Bed> {
        let Bed { testpmd, directory, .. } = self;
        drop(testpmd);
        // It had no chance to.
        for port in [0, 1] {
            std::fs::remove_file(socket(&directory, port))?;
        }
        Bed::at(directory, Vhost::new)
    }

    /// Has the guests go on, and testpmd forward, once both are there: what is sent to nobody is lost.
    fn resume(&mut self, guests: &mut [Guest; 2]) -> Result<()> {
        for (port, guest) in guests.iter_mut().enumerate() {
            guest.resume(self.front_end(port)?)?;
        }
        self.ready()?;
        self.testpmd.forward(None)
    }
}

fn socket(directory: &TempDir, port: usize) -> PathBuf {
    directory.path().join(format!("vhost{port}.sock"))
}

fn options(features: Features) -> Options {
    Options { features, limit: LIMIT, ..Options::default() }
}

/// Takes a guest for what it was to be.
fn check(mut guest: Guest, features: Features) -> Result<Guest> {
    let agreed = guest.driver().features();
    ensure!(agreed == features, "{agreed} instead of {features}");
    Ok(guest)
}

fn frame(from: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![number as u8; 60 + number as usize % 1455];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1 - from as u8, 2, 0, 0, 0, 0, from as u8]);
    frame[12..14].copy_from_slice(&[0x88, 0xB5]);
    frame[14..18].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Sends a frame if there is room for it.
fn send(guests: &mut [Guest; 2], from: usize, number: u32) -> Result<bool> {
    let header = NetHeader { num_buffers: 1, ..NetHeader::default() };
    let driver = guests[from].driver();
    driver.reclaim()?;
    Ok(driver.send(header, &frame(from, number))?)
}

/// Frames with these numbers from both guests, of which some were sent already: all have to come, in their order.
fn exchange(guests: &mut [Guest; 2], sent: u32, frames: u32) -> Result<()> {
    let (mut sent, mut came) = ([sent; 2], [0; 2]);
    let deadline = Instant::now() + LIMIT;
    while came != [frames; 2] {
        ensure!(Instant::now() < deadline, "{came:?} of {frames} frames came, {sent:?} were sent");
        let before = came;
        for guest in 0..2 {
            let other = 1 - guest;
            while sent[guest] < frames
                && sent[guest] - came[other] < WINDOW
                && send(guests, guest, sent[guest])?
            {
                sent[guest] += 1;
            }
            let driver = guests[guest].driver();
            while let Some(found) = driver.receive(|received| received.frame.to_vec())? {
                let number = came[guest];
                ensure!(found == frame(other, number), "guest {guest}: frame {number} is another");
                came[guest] += 1;
            }
            guests[guest].flush();
        }
        // Whichever it is that waits for a frame, it has to be called.
        if came == before {
            let waits = usize::from(came[0] == frames);
            guests[waits].wait(LIMIT)?;
        }
    }
    Ok(())
}

/// Takes what is still on its way, until everything that was sent was taken too.
fn drain(guests: &mut [Guest; 2]) -> Result<()> {
    // The last frame of each: DPDK keeps them in order, so nothing comes after it.
    const LAST: u32 = u32::MAX;
    for from in 0..2 {
        let deadline = Instant::now() + LIMIT;
        while !send(guests, from, LAST)? {
            ensure!(Instant::now() < deadline, "guest {from}'s ring stays full");
            guests[from].flush();
        }
        guests[from].flush();
    }
    for (to, guest) in guests.iter_mut().enumerate() {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = guest.driver().receive(|received| received.frame.to_vec())?;
            guest.flush();
            if found.as_deref() == Some(&frame(1 - to, LAST)) {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "guest {to}: the last frame does not come");
            if found.is_none() {
                guest.wait(left)?;
            }
        }
    }
    Ok(())
}

/// Everything that a monitor does with a device, one after the other.
fn lives(features: Features) -> Result<()> {
    let mut bed = Bed::new()?;
    let mut guests = bed.guests(features)?;
    exchange(&mut guests, 0, FRAMES)?;

    // DPDK has stopped where as many frames went through, at the same place of both rings.
    for guest in &mut guests {
        let mut positions = [0; 2];
        for ring in [0, 1] {
            positions[usize::from(ring)] = guest.stop_ring(ring)?;
        }
        ensure!(positions[0] == positions[1], "they stand at {positions:x?}");
        if !features.contains(Features::RING_PACKED) {
            ensure!(positions[0] == FRAMES, "they stand at {positions:?}");
        }
        // New rings, in another place, of another size.
        for ring in [0, 1] {
            guest.restart_ring(ring, 128)?;
        }
    }
    bed.ready()?;
    exchange(&mut guests, 0, FRAMES)?;

    // The guests are started anew.
    for guest in &mut guests {
        guest.reset()?;
        check_status(guest)?;
    }
    bed.ready()?;
    exchange(&mut guests, 0, FRAMES)?;
    drop(guests);
    bed.testpmd.quit()
}

/// DRIVER_OK and all that comes before it, as DPDK says it.
fn check_status(guest: &mut Guest) -> Result<()> {
    let status = guest.front_end().status().context("DPDK has a device status")?;
    ensure!(status == 15, "the device status is {status:#x}");
    Ok(())
}

#[test]
fn split() -> Result<()> {
    lives(SPLIT)
}

#[test]
fn packed() -> Result<()> {
    lives(PACKED)
}

#[test]
fn split_plain() -> Result<()> {
    lives(PLAIN)
}

#[test]
fn packed_in_order() -> Result<()> {
    lives(PACKED | Features::IN_ORDER)
}

#[test]
fn split_in_order() -> Result<()> {
    lives(SPLIT | Features::IN_ORDER)
}

/// A monitor's word goes where it should: DPDK sends the RARP into the network, which is the other guest.
#[test]
fn an_announcement_and_an_mtu() -> Result<()> {
    const ADDRESS: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x77]);
    let mut bed = Bed::new()?;
    let mut guests = bed.guests(SPLIT)?;
    exchange(&mut guests, 0, WINDOW)?;
    guests[0].front_end().announce(ADDRESS)?;
    let deadline = Instant::now() + LIMIT;
    let frame = loop {
        if let Some(frame) = guests[1].driver().receive(|received| received.frame.to_vec())? {
            break frame;
        }
        ensure!(Instant::now() < deadline, "no RARP came");
        guests[1].wait(LIMIT)?;
    };
    let mut header = [0xFF; 14];
    header[6..12].copy_from_slice(&ADDRESS.0);
    header[12..].copy_from_slice(&[0x80, 0x35]);
    ensure!(frame.starts_with(&header), "not a RARP: {frame:02x?}");

    guests[0].front_end().set_mtu(1500)?;
    // Less than IPv4 works with.
    let error = guests[0].front_end().set_mtu(67).err().context("DPDK takes an MTU of 67")?;
    ensure!(error.to_string() == "the back end refused NET_SET_MTU with 1", "{error}");
    drop(guests);
    bed.testpmd.quit()
}

/// The pages that the back end has written since the last time.
fn dirty(guest: &Guest) -> Result<BTreeSet<u64>> {
    let mut pages = BTreeSet::new();
    guest.dirty_log().context("there is no log")?.take(|page| {
        pages.insert(page.0);
    });
    Ok(pages)
}

/// What a guest has in its memory, to be looked up in its log.
struct Places {
    /// What the device writes of its rings.
    rings: [u64; 2],
    received: Range<u64>,
    sent: Range<u64>,
}

impl Places {
    fn of(guest: &mut Guest) -> Places {
        let Options { ring_size, .. } = Options::default();
        let driver = guest.driver();
        let features = driver.features();
        // Its rings are in their first place, and the first of all is at the start.
        let start = driver.receive_ring().0.descriptors;
        let layout = MemoryLayout::new(start, features, ring_size, 1);
        let [receive, transmit] = [layout.pairs[0].receive, layout.pairs[0].transmit];
        let is_packed = features.contains(Features::RING_PACKED);
        let written = |ring: RingLayout| {
            let RingAddresses { descriptors, used, .. } = ring.places[0];
            if is_packed { descriptors.0 } else { used.0 }
        };
        let used_size = Layout::areas(features, ring_size)[2].size;
        let behind =
            |ring: RingLayout| (ring.places[1].used.0 + used_size).next_multiple_of(DirtyLog::PAGE);
        Places {
            rings: [written(receive), written(transmit)],
            received: behind(receive)..transmit.places[0].descriptors.0,
            sent: behind(transmit)..start.0 + layout.size,
        }
    }

    /// All that was received is logged, and nothing that was only read.
    fn check(&self, dirty: &BTreeSet<u64>) -> Result<()> {
        let pages = self.received.clone().step_by(DirtyLog::PAGE as usize);
        let mut written = pages.chain(self.rings);
        let missing = written.find(|page| !dirty.contains(page));
        ensure!(missing.is_none(), "{missing:x?} was written, but is not in {dirty:x?}");
        let surplus = dirty.range(self.sent.clone()).next();
        ensure!(surplus.is_none(), "{surplus:x?} was not written");
        Ok(())
    }
}

/// A migration as far as its source sees it: each page that DPDK writes is in the log, as long as it is told to log.
#[test]
fn a_dirty_log() -> Result<()> {
    for features in [SPLIT, PACKED] {
        let mut bed = Bed::new()?;
        let mut guests = bed.guests(features)?;
        let places = Places::of(&mut guests[0]);
        exchange(&mut guests, 0, FRAMES)?;
        guests[0].start_logging()?;
        exchange(&mut guests, 0, FRAMES)?;
        places.check(&dirty(&guests[0])?)?;
        // What was taken is clean, once DPDK has nothing left to do.
        let deadline = Instant::now() + LIMIT;
        while !dirty(&guests[0])?.is_empty() {
            ensure!(Instant::now() < deadline, "the log is never clean");
        }
        exchange(&mut guests, 0, FRAMES)?;
        places.check(&dirty(&guests[0])?)?;

        // A migration that was cancelled.
        let log = guests[0].stop_logging()?.context("there was a log")?;
        log.take(|_| {});
        exchange(&mut guests, 0, FRAMES)?;
        log.take(|page| panic!("{page} is logged"));

        // Another one, while DPDK is replaced by a new one.
        guests[0].start_logging()?;
        bed = bed.replace()?;
        bed.resume(&mut guests)?;
        exchange(&mut guests, 0, FRAMES)?;
        places.check(&dirty(&guests[0])?)?;
        drop(guests);
        bed.testpmd.quit()?;
    }
    Ok(())
}

#[test]
fn hugepages() -> Result<()> {
    let mut bed = Bed::new()?;
    let pages = Hugepages::reserve(16)?;
    let guest = |port| -> Result<Guest> {
        let create = |size| SharedMemory::create_in_hugepages("guest", size);
        let guest = Guest::start_in(bed.front_end(port)?, &options(SPLIT), create)?;
        check(guest, SPLIT)
    };
    let mut guests = [guest(0)?, guest(1)?];
    bed.ready()?;
    bed.testpmd.forward(None)?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let large = format!("KernelPageSize: {:>8} kB", PAGE_SIZE >> 10);
    ensure!(maps.matches(&large).count() == 2, "each guest has its memory in hugepages:\n{maps}");
    // More than there are of them are missed at once, and not when they are touched.
    let error = SharedMemory::create_in_hugepages("too large", 1 << 40).err();
    let error = error.context("a TiB of hugepages")?.to_string();
    ensure!(error.starts_with("no 524288 free hugepages of 2 MiB: "), "{error}");
    exchange(&mut guests, 0, FRAMES)?;
    drop(guests);
    bed.testpmd.quit()?;
    drop(pages);
    Ok(())
}

/// Killed at rest: what is sent while there is no back end is sent by the next one, to the last frame.
#[test]
fn a_back_end_that_is_killed() -> Result<()> {
    for features in [SPLIT, PACKED] {
        let mut bed = Bed::new()?;
        let mut guests = bed.guests(features)?;
        for _ in 0..2 {
            exchange(&mut guests, 0, FRAMES)?;
            bed = bed.replace()?;
            for number in 0..WINDOW {
                for from in 0..2 {
                    ensure!(send(&mut guests, from, number)?, "the ring is full");
                }
            }
            guests.iter_mut().for_each(Guest::flush);
            bed.resume(&mut guests)?;
            exchange(&mut guests, WINDOW, FRAMES)?;
        }
        bed.testpmd.quit()?;
    }
    Ok(())
}

/// Killed at full speed: what it held is gone, and the guests go on.
#[test]
fn a_back_end_that_is_killed_at_work() -> Result<()> {
    for features in [SPLIT, PACKED] {
        let mut bed = Bed::new()?;
        let mut guests = bed.guests(features)?;
        for _ in 0..3 {
            exchange(&mut guests, 0, 100)?;
            let full = (0..WINDOW).try_fold(true, |room, number| -> Result<bool> {
                Ok(room & send(&mut guests, 0, number)? & send(&mut guests, 1, number)?)
            })?;
            ensure!(full, "the ring is full");
            guests.iter_mut().for_each(Guest::flush);
            bed = bed.replace()?;
            bed.resume(&mut guests)?;
            drain(&mut guests)?;
            exchange(&mut guests, 0, FRAMES)?;
        }
        bed.testpmd.quit()?;
    }
    Ok(())
}

/// The roles on the socket turned round: testpmd connects, and does so again when it was started again.
#[test]
fn a_back_end_that_connects() -> Result<()> {
    for features in [SPLIT, PACKED] {
        let directory = tempfile::tempdir()?;
        let bind = |port| FrontEndListener::bind(&socket(&directory, port));
        let listeners = [bind(0)?, bind(1)?];
        let accept = |port: usize| listeners[port].accept(LIMIT, LIMIT);
        let client = |path| Vhost::new(path).option("client=1");

        let mut bed = Bed::at(directory, client)?;
        let guest = |port| check(Guest::start(accept(port)?, &options(features))?, features);
        let mut guests = [guest(0)?, guest(1)?];
        bed.ready()?;
        bed.testpmd.forward(None)?;
        exchange(&mut guests, 0, FRAMES)?;

        let Bed { testpmd, directory, .. } = bed;
        drop(testpmd);
        let mut bed = Bed::at(directory, client)?;
        for (port, guest) in guests.iter_mut().enumerate() {
            guest.resume(accept(port)?)?;
        }
        bed.ready()?;
        bed.testpmd.forward(None)?;
        exchange(&mut guests, 0, FRAMES)?;
        bed.testpmd.quit()?;
    }
    Ok(())
}
