//! The same switch with embedded guests: seconds instead of minutes, and guests that do what no kernel would.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::Options;
use memory::{FrontEndAddress, GuestAddress, SharedMemory};
use ringway_tests::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{pwrite, write};
use vhost_user::{FrontEnd, Region, RingConfig};
use virtqueue::Layout;
use virtqueue::packed::{self, Position};
use wire::split::{Descriptor, RING_INDEX};
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::{Features, NetHeader};

/// The ring that a guest receives on, and the one that it transmits on.
const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;

/// A frame crosses the switch within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);
#[test]
fn every_byte_arrives_both_ways_in_order() -> Result<()> {
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"])?;
    let mut one = Station::connect(&switch, 1)?;
    let mut two = Station::connect(&switch, 2)?;
    exchange(&mut one, &mut two, 20_000)?;
    // A guest that comes again on the same socket.
    drop(one);
    switch.wait_for_log("disconnected", LIMIT)?;
    let mut one = Station::connect(&switch, 1)?;
    two.sent = 0;
    two.received = 0;
    exchange(&mut one, &mut two, 20_000)?;
    switch.stop()?;
    Ok(())
}

/// A stream of numbered frames between two stations of which some may be lost, but only where the switch counts it.
#[derive(Default)]
struct Lossy {
    sent: u32,
    /// Transmit buffers that came back, while the ring was this one.
    returned: u64,
    returned_before: u64,
    /// Frames that came, while the ring was this one.
    received: u64,
    received_before: u64,
    /// The number that may come next: none comes twice, or late.
    next: u32,
}

impl Lossy {
    /// Sends as much as the ring takes.
    fn send(&mut self, from: &mut Station, to: [u8; 6]) -> Result<()> {
        let driver = from.guest.driver();
        self.returned += driver.reclaim()? as u64;
        while driver.send(NetHeader::default(), &numbered(from.address, to, self.sent))? {
            self.sent += 1;
        }
        from.guest.flush();
        Ok(())
    }

    /// Takes what came.
    fn receive(&mut self, to: &mut Station, from: [u8; 6]) -> Result<()> {
        let address = to.address;
        while let Some(number) = to.guest.driver().receive(|received| {
            let number = received.frame.get(14..18)?.first_chunk().copied();
            let number = u32::from_be_bytes(number?);
            (received.frame == numbered(from, address, number)).then_some(number)
        })? {
            let number = number.context("a frame that was not sent")?;
            let due = self.next..self.sent;
            ensure!(due.contains(&number), "frame {number} came when {due:?} were due");
            self.next = number + 1;
            self.received += 1;
        }
        to.guest.flush();
        Ok(())
    }

    fn new_transmit_ring(&mut self) {
        self.returned_before += std::mem::take(&mut self.returned);
    }

    fn new_receive_ring(&mut self) {
        self.received_before += std::mem::take(&mut self.received);
    }
}

/// Sends numbered frames, all of which must arrive.
fn pass_all(from: &mut Station, to: &mut Station, numbers: Range<u32>) -> Result<()> {
    let (source, destination) = (from.address, to.address);
    let (mut sent, mut received) = (numbers.start, numbers.start);
    let deadline = Instant::now() + LIMIT;
    while received < numbers.end {
        let driver = from.guest.driver();
        driver.reclaim()?;
        if sent < numbers.end {
            let frame = numbered(source, destination, sent);
            sent += u32::from(driver.send(NetHeader::default(), &frame)?);
        }
        from.guest.flush();
        let due = |number| numbered(source, destination, number);
        while let Some(good) = to.guest.driver().receive(|came| came.frame == due(received))? {
            ensure!(good, "frame {received} was due, and another came");
            received += 1;
        }
        to.guest.flush();
        ensure!(Instant::now() < deadline, "frame {received} did not come within {LIMIT:?}");
    }
    Ok(())
}

/// Where a ring stands that `used` chains of one descriptor each went through, as GET_VRING_BASE says it.
fn position(features: Features, size: u16, used: u64) -> u32 {
    if !features.contains(Features::RING_PACKED) {
        return u32::from(used as u16);
    }
    let (rounds, slot) = (used / u64::from(size), used % u64::from(size));
    let half = slot as u32 | u32::from(rounds.is_multiple_of(2)) << 15;
    half << 16 | half
}

/// Each of a guest's rings is reset under full load, again and again and to other sizes. Once a ring is stopped, all that
/// was taken of it is back. Nothing comes twice; what is lost is counted; and the guest's other ring loses nothing.
#[test]
fn one_ring_is_reset_under_traffic() -> Result<()> {
    let split = Features::VERSION_1 | Features::MRG_RXBUF | Features::RING_RESET;
    let packed = split | Features::RING_PACKED | Features::EVENT_IDX;
    for features in [split, split | Features::IN_ORDER, packed, packed | Features::IN_ORDER] {
        let names = features.to_string().to_lowercase().replace(' ', "+");
        let ports = [1, 2].map(|n| format!("vm{n}=vhost-user:vm{n}.sock,features={names}"));
        let switch = Switch::start(&ports.each_ref().map(String::as_str))?;
        let options = Options { features, ..Options::default() };
        let mut one = Station::connect_with(&switch, 1, &options)?;
        let mut two = Station::connect_with(&switch, 2, &options)?;
        ensure!(one.guest.driver().features() == features, "not all of {features} is offered");
        let (first, second) = (one.address, two.address);
        let mut stream = Lossy::default();
        // Frames the other way.
        let mut other = 0;
        let mut sizes = [256, 64, 128, 16, 256].into_iter().cycle();
        for round in 0..24 {
            let mut size =
                [one.guest.driver().transmit_ring().1, two.guest.driver().receive_ring().1];
            // Load, of which part is on its way when the ring stops.
            for _ in 0..20 + round {
                stream.send(&mut one, second)?;
                stream.receive(&mut two, first)?;
            }
            stream.send(&mut one, second)?;

            let number = if round % 2 == 0 { TRANSMIT } else { RECEIVE };
            let victim = if number == TRANSMIT { &mut one } else { &mut two };
            let stopped_at = victim.guest.stop_ring(number.into())?;
            stream.returned += one.guest.driver().reclaim()? as u64;
            stream.receive(&mut two, first)?;
            let used = if number == TRANSMIT { stream.returned } else { stream.received };
            let size = &mut size[usize::from(number == RECEIVE)];
            ensure!(
                stopped_at == position(features, *size, used),
                "{features}: ring {number} of {size} stopped at {stopped_at:#x} after {used} chains"
            );

            // The other ring of the same guest, meanwhile.
            pass_all(&mut two, &mut one, other..other + 50)
                .with_context(|| format!("{features}: the other ring"))?;
            other += 50;

            // The driver takes what the device had not: those frames were never sent.
            *size = sizes.next().unwrap_or(256);
            if number == TRANSMIT {
                stream.new_transmit_ring();
                one.guest.restart_ring(number.into(), *size)?;
            } else {
                stream.new_receive_ring();
                two.guest.restart_ring(number.into(), *size)?;
            }
            let before = stream.received;
            let deadline = Instant::now() + LIMIT;
            while stream.received < before + 100 {
                stream.send(&mut one, second)?;
                stream.receive(&mut two, first)?;
                ensure!(Instant::now() < deadline, "{features}: nothing comes after a restart");
            }
        }
        // All that is on its way arrives, or is dropped.
        let deadline = Instant::now() + LIMIT;
        while one.guest.driver().in_flight() > 0 {
            stream.returned += one.guest.driver().reclaim()? as u64;
            stream.receive(&mut two, first)?;
            ensure!(Instant::now() < deadline, "{features}: chains do not come back");
        }
        stream.receive(&mut two, first)?;
        stream.new_transmit_ring();
        stream.new_receive_ring();
        drop((one, two));
        let log = switch.stop()?;
        let (vm1, vm2) = (Totals::of(&log, "vm1")?, Totals::of(&log, "vm2")?);
        println!("{features}: {} sent, {vm1:?}, {vm2:?}", stream.sent);
        ensure!(vm1.received == stream.returned_before, "{vm1:?}: {}", stream.returned_before);
        ensure!(vm2.sent == stream.received_before, "{vm2:?}: {}", stream.received_before);
        let lost = stream.returned_before - stream.received_before;
        ensure!(vm1.dropped + vm2.dropped == lost, "{lost} frames were lost:\n{log}");
        ensure!(vm1.sent == u64::from(other), "{vm1:?}: {other}");
    }
    Ok(())
}

/// What a guest is offered is what its port's `features` say: by a flag or in a file, whatever another guest is offered,
/// and the same the next time.
#[test]
fn a_guest_is_offered_what_is_configured() -> Result<()> {
    let transport = Features::PROTOCOL_FEATURES;
    let default = Features::VERSION_1 | Features::RING_PACKED | Features::IN_ORDER | Features::CSUM;
    let switch = Switch::start(&[
        "default=vhost-user:default.sock",
        "pinned=vhost-user:pinned.sock,features=version_1+csum+host_tso4+ring_reset",
        "less=vhost-user:less.sock,features=-ring_packed+-mrg_rxbuf",
        "legacy=vhost-user:legacy.sock,features=mrg_rxbuf",
    ])?;
    let offered = |port: &str| -> Result<Features> {
        Ok(FrontEnd::connect(&switch.path(&format!("{port}.sock")), LIMIT)?.features()?)
    };
    for _ in 0..2 {
        let all = offered("default")?;
        ensure!(all.contains(default | transport) && !all.contains(Features::RING_RESET), "{all}");
        let pinned =
            Features::VERSION_1 | Features::CSUM | Features::HOST_TSO4 | Features::RING_RESET;
        assert_eq!(offered("pinned")?, pinned | transport);
        let less = all.without(Features::RING_PACKED | Features::MRG_RXBUF);
        assert_eq!(offered("less")?, less);
        assert_eq!(offered("legacy")?, Features::MRG_RXBUF | transport);
    }
    // What is not offered cannot be had.
    let mut front_end = FrontEnd::connect(&switch.path("pinned.sock"), LIMIT)?;
    let refused = front_end.set_features(Features::VERSION_1 | Features::MRG_RXBUF);
    let refused = refused.and_then(|()| front_end.features());
    ensure!(refused.is_err(), "MRG_RXBUF was taken: {refused:?}");
    let complaint = switch.complaint("pinned")?;
    ensure!(complaint.contains("MRG_RXBUF"), "{complaint}");
    switch.stop()?;
    Ok(())
}

/// What a rogue writes into its ring, and what is said of it.
struct Rule {
    features: Features,
    ring: u8,
    descriptors: Vec<[u64; 2]>,
    /// The index of a split ring.
    available: u16,
    says: &'static str,
}

impl Rule {
    fn split(ring: u8, descriptors: &[Descriptor], available: u16, says: &'static str) -> Rule {
        let descriptors = descriptors.iter().map(|descriptor| descriptor.to_words()).collect();
        Rule { features: ROGUE, ring, descriptors, available, says }
    }

    /// The same descriptors in a packed ring: one chain from the first slot on.
    fn packed(ring: u8, descriptors: &[Descriptor], says: &'static str) -> Rule {
        let words = |descriptor: &Descriptor| {
            let Descriptor { address, length, flags, .. } = *descriptor;
            let flags = flags | Position::FIRST.available();
            packed::Descriptor { address, length, id: 0, flags }.to_words()
        };
        let descriptors = descriptors.iter().map(words).collect();
        let features = ROGUE | Features::RING_PACKED;
        Rule { features, ring, descriptors, available: 0, says }
    }
}

fn rules() -> Vec<Rule> {
    let buffer = Descriptor { address: GUEST_START + 0x8000, length: 64, flags: 0, next: 0 };
    let nowhere = Descriptor { address: 0x10, ..buffer };
    let hole = Descriptor { address: GUEST_START + MEMORY - 32, ..buffer };
    let next = |next| Descriptor { flags: Descriptor::NEXT, next, ..buffer };
    let table = Descriptor { flags: Descriptor::INDIRECT, length: 64, ..buffer };
    let odd_table = Descriptor { length: 65, ..table };
    let long_table = Descriptor { length: 16 * (u32::from(SIZE) + 1), ..table };
    let linked_table = Descriptor { flags: Descriptor::INDIRECT | Descriptor::NEXT, ..table };
    let writable = Descriptor { flags: Descriptor::WRITE | Descriptor::NEXT, next: 1, ..buffer };
    let tiny = Descriptor { flags: Descriptor::WRITE, length: 4, ..buffer };
    let mut rules = vec![
        Rule::split(TRANSMIT, &[buffer], SIZE + 1, "available index"),
        Rule::split(TRANSMIT, &[next(0)], 1, "loops"),
        Rule::split(TRANSMIT, &[next(SIZE)], 1, "chains to"),
        Rule::packed(TRANSMIT, &[next(0); SIZE as usize], "longer than the ring"),
        Rule::packed(RECEIVE, &[next(0); SIZE as usize], "readable descriptor"),
        Rule::packed(TRANSMIT, &[next(1), table], "part of a packed ring's"),
    ];
    for (ring, chain, says) in [
        (TRANSMIT, &[nowhere][..], "buffer"),
        (TRANSMIT, &[hole], "buffer"),
        (TRANSMIT, &[odd_table], "indirect table of 65 bytes"),
        (TRANSMIT, &[long_table], "indirect table of 4112 bytes"),
        (TRANSMIT, &[linked_table, buffer], "that chains on"),
        (TRANSMIT, &[writable, buffer], "readable descriptor after"),
        (RECEIVE, &[buffer], "readable descriptor"),
        (RECEIVE, &[tiny], "header"),
    ] {
        rules.push(Rule::split(ring, chain, 1, says));
        rules.push(Rule::packed(ring, chain, says));
    }
    rules
}

/// What the switch has open, and what of a rogue's memory it has mapped.
fn traces(switch: &Switch) -> Result<(usize, usize)> {
    let process = Path::new("/proc").join(switch.pid().to_string());
    let open = fs::read_dir(process.join("fd"))?.count();
    let maps = fs::read_to_string(process.join("maps"))?;
    Ok((open, maps.lines().filter(|line| line.contains("/memfd:rogue")).count()))
}

/// Has the stations talk until there is nothing left of those who went away.
fn until_forgotten(
    switch: &Switch,
    before: (usize, usize),
    one: &mut Station,
    two: &mut Station,
) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        exchange(one, two, 20)?;
        let now = traces(switch)?;
        if now == before {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{now:?} files and mappings after {before:?}");
    }
}

/// In the end, nothing that two guests sent each other was lost, and of each of the `others` one thing was said.
fn check_log(log: &str, others: usize) -> Result<()> {
    for port in ["vm1", "vm2"] {
        let line =
            log.lines().find(|line| line.contains(&format!("{port}: "))).context("no totals")?;
        ensure!(line.contains("dropped: none"), "{line}");
    }
    for n in 0..others {
        let port = format!("port=\"bad{n}\"");
        let said = |line: &&str| line.contains(&port) && !line.contains(" INFO ");
        ensure!(log.lines().filter(said).count() == 1, "not one complaint of {port}:\n{log}");
    }
    Ok(())
}

/// A switch with two guests, and as many ports for others.
fn with_others(count: usize) -> Result<(Switch, Station, Station)> {
    let mut ports =
        vec!["vm1=vhost-user:vm1.sock".to_owned(), "vm2=vhost-user:vm2.sock".to_owned()];
    ports.extend((0..count).map(|n| format!("bad{n}=vhost-user:bad{n}.sock")));
    let switch = Switch::start(&ports.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut one = Station::connect(&switch, 1)?;
    let mut two = Station::connect(&switch, 2)?;
    exchange(&mut one, &mut two, 1000)?;
    Ok((switch, one, two))
}

/// Rings that break the rules, each on a port of its own: the port goes down, with one line, two other guests lose not a
/// frame, and nothing is left open or mapped.
#[test]
fn rings_that_break_the_rules() -> Result<()> {
    let rules = rules();
    let others = rules.len();
    let (switch, mut one, mut two) = with_others(others)?;
    let before = traces(&switch)?;
    for (n, rule) in rules.into_iter().enumerate() {
        let rogue = Rogue::connect(&switch, n, rule.features, rule.ring, PLACES)?;
        exchange(&mut one, &mut two, 200)?;
        rogue.publish(&rule)?;
        // A frame for everyone, so that its receive ring is looked at.
        let frame = numbered(one.address, [0xff; 6], 0);
        ensure!(one.guest.driver().send(NetHeader::default(), &frame)?, "no room");
        one.guest.flush();
        let line = switch.complaint(&format!("bad{n}"))?;
        println!("{line}");
        ensure!(line.contains(rule.says), "no word of `{}`: {line}", rule.says);
        exchange(&mut one, &mut two, 200)?;
    }
    until_forgotten(&switch, before, &mut one, &mut two)?;
    check_log(&switch.stop()?, others)
}

/// Rings in places where there can be none: they are refused, with one line, and nobody else notices.
#[test]
fn rings_that_lie_nowhere() -> Result<()> {
    let [descriptors, available, used] = PLACES;
    let split = [
        ([descriptors + 8, available, used], "descriptor table"),
        ([descriptors, available + 1, used], "available ring"),
        ([descriptors, available, used + 2], "used ring"),
        ([MEMORY, available, used], "descriptor table"),
        ([MEMORY - 16 * u64::from(SIZE) + 16, available, used], "descriptor table"),
        ([descriptors, MEMORY - 516, used], "available ring"),
        ([descriptors, available, MEMORY - 2052], "used ring"),
    ];
    let packed = [
        ([descriptors + 8, available, used], "descriptor ring"),
        ([descriptors, available + 2, used], "driver event"),
        ([descriptors, available, used + 2], "device event"),
        ([MEMORY - 16 * u64::from(SIZE) + 16, available, used], "descriptor ring"),
        ([descriptors, MEMORY, used], "driver event"),
        ([descriptors, available, MEMORY], "device event"),
    ];
    let split = split.map(|(places, says)| (ROGUE, places, says));
    let packed = packed.map(|(places, says)| (ROGUE | Features::RING_PACKED, places, says));
    let wrong: Vec<_> = split.into_iter().chain(packed).collect();
    let (switch, mut one, mut two) = with_others(wrong.len() + 1)?;
    let before = traces(&switch)?;
    for (n, (features, places, says)) in wrong.iter().copied().enumerate() {
        let rogue = Rogue::connect(&switch, n, features, TRANSMIT, places);
        ensure!(rogue.is_err(), "a ring at {places:x?} was taken");
        let line = switch.complaint(&format!("bad{n}"))?;
        println!("{line}");
        ensure!(line.contains(says), "no word of `{says}`: {line}");
        exchange(&mut one, &mut two, 200)?;
    }

    // In a file that cannot be written to.
    let memory = SharedMemory::create("rogue", MEMORY)?;
    let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    let read_only = fs::File::open(path)?;
    let n = wrong.len();
    let rogue = Rogue::with(&switch, n, ROGUE, TRANSMIT, PLACES, memory, read_only.as_fd());
    ensure!(rogue.is_err(), "a ring that cannot be written to was taken");
    let line = switch.complaint(&format!("bad{n}"))?;
    println!("{line}");
    ensure!(line.contains("map"), "no word of mapping: {line}");

    until_forgotten(&switch, before, &mut one, &mut two)?;
    check_log(&switch.stop()?, wrong.len() + 1)
}

/// Where a rogue's memory begins, for itself and for its front end, and its size.
const GUEST_START: u64 = 0x4000_0000;
const FRONT_END_START: u64 = 0x7f00_0000_0000;
const MEMORY: u64 = 1 << 20;
/// Entries of its ring, and where the ring's parts usually are: descriptors, available, used.
const SIZE: u16 = 256;
const PLACES: [u64; 3] = [0, 0x2000, 0x4000];
/// What it negotiates, but for the format of its ring.
const ROGUE: Features =
    Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::INDIRECT_DESC);

/// A guest with one ring, in which it writes what it likes.
struct Rogue {
    memory: SharedMemory,
    kick: OwnedFd,
    _front_end: FrontEnd,
}

impl Rogue {
    /// On the port of this number.
    fn connect(
        switch: &Switch,
        n: usize,
        features: Features,
        ring: u8,
        places: [u64; 3],
    ) -> Result<Rogue> {
        let memory = SharedMemory::create("rogue", MEMORY)?;
        let file = memory.as_fd().try_clone_to_owned()?;
        Rogue::with(switch, n, features, ring, places, memory, file.as_fd())
    }

    /// With a memory of which the switch is given `file`.
    fn with(
        switch: &Switch,
        n: usize,
        features: Features,
        ring: u8,
        places: [u64; 3],
        memory: SharedMemory,
        file: BorrowedFd<'_>,
    ) -> Result<Rogue> {
        let mut front_end = FrontEnd::connect(&switch.path(&format!("bad{n}.sock")), LIMIT)?;
        front_end.negotiate(features, features, ProtocolFeatures::REPLY_ACK)?;
        // A ring that nobody has ever touched would be taken for memory that is not shared.
        pwrite(memory.as_fd(), &vec![0; MEMORY as usize], 0)?;
        front_end.set_memory_table(&[Region {
            guest: GuestAddress(GUEST_START),
            size: MEMORY,
            front_end: FrontEndAddress(FRONT_END_START),
            offset: 0,
            file,
        }])?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [descriptors, available, used] =
            places.map(|offset| FrontEndAddress(FRONT_END_START + offset));
        let base = Layout::first_position(features);
        let kick_descriptor = Some(kick.as_fd());
        let config = RingConfig {
            size: SIZE,
            base,
            descriptors,
            available,
            used,
            kick: kick_descriptor,
            call: None,
            log: None,
        };
        front_end.set_up_ring(ring, config)?;
        front_end.enable_ring(ring, true)?;
        Ok(Rogue { memory, kick, _front_end: front_end })
    }

    /// Writes what breaks the rule into a ring in its usual place, and kicks.
    fn publish(&self, rule: &Rule) -> Result<()> {
        let [descriptors, available, _] = PLACES;
        let table = rule.descriptors.iter().flatten().flat_map(|word| word.to_le_bytes());
        pwrite(self.memory.as_fd(), &table.collect::<Vec<u8>>(), descriptors)?;
        if !rule.features.contains(Features::RING_PACKED) {
            let index = rule.available.to_le_bytes();
            pwrite(self.memory.as_fd(), &index, available + RING_INDEX)?;
        }
        write(&self.kick, &1u64.to_ne_bytes())?;
        Ok(())
    }
}
