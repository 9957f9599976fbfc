//! The same switch with embedded guests: seconds instead of minutes, and guests that do what no kernel would.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use memory::{FrontEndAddress, GuestAddress, SharedMemory};
use ringway_tests::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{pwrite, write};
use vhost_user::{FrontEnd, Region, RingConfig};
use wire::split::{Descriptor, RING_INDEX};
use wire::vhost_user::ProtocolFeatures;
use wire::virtio::{Features, NetHeader};

/// The ring that a guest receives on, and the one that it transmits on.
const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;

/// A frame crosses the switch within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);
/// Frames on their way at once: they fit the receiver's ring, so none may be lost.
const WINDOW: u32 = 64;

/// An embedded guest with an address, and what it has sent and received of a numbered stream.
struct Station {
    guest: Guest,
    address: [u8; 6],
    sent: u32,
    received: u32,
}

impl Station {
    fn connect(switch: &Switch, n: u8) -> Result<Station> {
        let guest = Guest::connect(&switch.path(&format!("vm{n}.sock")), &Options::default())?;
        let address = [0x52, 0x54, 0, 0, 0, n];
        Ok(Station { guest, address, sent: 0, received: 0 })
    }

    /// Sends the next frame of the stream to `to`. False when there is no room for it now.
    fn send(&mut self, to: [u8; 6]) -> Result<bool> {
        let frame = numbered(self.address, to, self.sent);
        let sent = self.guest.driver().send(NetHeader::default(), &frame)?;
        self.sent += u32::from(sent);
        Ok(sent)
    }

    /// Takes what came from `from`, which must be its stream, whole and in order. What is for everyone is passed over.
    fn receive(&mut self, from: [u8; 6]) -> Result<()> {
        let (address, next) = (self.address, &mut self.received);
        let mut broken = None;
        while let Some(()) = self.guest.driver().receive(|received| {
            if received.frame.starts_with(&[address, from].concat()) {
                if received.frame == numbered(from, address, *next) {
                    *next += 1;
                } else {
                    broken = Some(received.frame.get(14..18).map(<[u8]>::to_vec));
                }
            }
        })? {}
        match broken {
            Some(found) => anyhow::bail!("frame {next} was due, and {found:?} came"),
            None => Ok(()),
        }
    }
}

/// Frame `number` of a stream: its length and every byte follow from the number.
fn numbered(from: [u8; 6], to: [u8; 6], number: u32) -> Vec<u8> {
    let len = 60 + (number as usize * 97) % 1455;
    let mut frame = [&to[..], &from, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    let noise = (0u32..).map(|at| (at.wrapping_add(number).wrapping_mul(0x9e37_79b1) >> 24) as u8);
    frame.extend(noise.take(len - frame.len()));
    frame
}

/// Has both stations send each other `count` frames more, and checks every one that arrives.
fn exchange(one: &mut Station, two: &mut Station, count: u32) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let target = (one.sent + count, two.sent + count);
    let (first, second) = (one.address, two.address);
    while (two.received, one.received) != target {
        while one.sent < target.0 && one.sent - two.received < WINDOW && one.send(second)? {}
        while two.sent < target.1 && two.sent - one.received < WINDOW && two.send(first)? {}
        one.guest.flush();
        two.guest.flush();
        one.guest.driver().reclaim()?;
        two.guest.driver().reclaim()?;
        one.receive(second)?;
        two.receive(first)?;
        ensure!(
            Instant::now() < deadline,
            "{} of {} and {} of {} frames came within {LIMIT:?}",
            two.received,
            target.0,
            one.received,
            target.1
        );
    }
    Ok(())
}

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

/// Rings that break the rules, each on a port of its own: the port goes down, with one line, and two other guests lose
/// not a frame.
#[test]
fn rings_that_break_the_rules() -> Result<()> {
    let buffer = Descriptor { address: GUEST_START + 0x8000, length: 64, flags: 0, next: 0 };
    let ring = |descriptors: &[Descriptor], available: u16| (descriptors.to_vec(), available);
    let cases = [
        (TRANSMIT, ring(&[buffer], SIZE + 1), "available index"),
        (TRANSMIT, ring(&[Descriptor { address: 0x10, ..buffer }], 1), "buffer"),
        (
            TRANSMIT,
            ring(&[Descriptor { address: GUEST_START + MEMORY - 32, ..buffer }], 1),
            "buffer",
        ),
        (TRANSMIT, ring(&[Descriptor { flags: Descriptor::NEXT, next: 0, ..buffer }], 1), "loops"),
        (
            TRANSMIT,
            ring(&[Descriptor { flags: Descriptor::NEXT, next: SIZE, ..buffer }], 1),
            "chains to",
        ),
        (
            TRANSMIT,
            ring(&[Descriptor { flags: Descriptor::INDIRECT, length: 65, ..buffer }], 1),
            "indirect",
        ),
        (RECEIVE, ring(&[buffer], 1), "readable descriptor"),
        (
            RECEIVE,
            ring(&[Descriptor { flags: Descriptor::WRITE, length: 4, ..buffer }], 1),
            "header",
        ),
    ];
    let mut ports =
        vec!["vm1=vhost-user:vm1.sock".to_owned(), "vm2=vhost-user:vm2.sock".to_owned()];
    ports.extend((0..cases.len()).map(|n| format!("bad{n}=vhost-user:bad{n}.sock")));
    let switch = Switch::start(&ports.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut one = Station::connect(&switch, 1)?;
    let mut two = Station::connect(&switch, 2)?;
    exchange(&mut one, &mut two, 1000)?;

    for (n, (ring, (descriptors, available), said)) in cases.into_iter().enumerate() {
        let rogue = Rogue::connect(&switch, &format!("bad{n}.sock"), ring)?;
        exchange(&mut one, &mut two, 200)?;
        rogue.publish(&descriptors, available)?;
        // A frame for everyone, so that its receive ring is looked at.
        let frame = numbered(one.address, [0xff; 6], 0);
        ensure!(one.guest.driver().send(NetHeader::default(), &frame)?, "no room");
        one.guest.flush();
        let line = switch.complaint(&format!("bad{n}"))?;
        println!("{line}");
        ensure!(line.contains(said), "no word of `{said}`: {line}");
        exchange(&mut one, &mut two, 200)?;
    }
    let log = switch.stop()?;
    for port in ["vm1", "vm2"] {
        let line =
            log.lines().find(|line| line.contains(&format!("{port}: "))).context("no totals")?;
        ensure!(line.contains("dropped: none"), "{line}");
    }
    Ok(())
}

/// Where a rogue's memory begins, for itself and for its front end, and its size.
const GUEST_START: u64 = 0x4000_0000;
const FRONT_END_START: u64 = 0x7f00_0000_0000;
const MEMORY: u64 = 1 << 20;
/// Entries of its ring, and where the ring's parts are.
const SIZE: u16 = 256;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x4000;

/// A guest with one ring, in which it writes what it likes.
struct Rogue {
    memory: SharedMemory,
    kick: OwnedFd,
    _front_end: FrontEnd,
}

impl Rogue {
    fn connect(switch: &Switch, socket: &str, ring: u8) -> Result<Rogue> {
        let mut front_end = FrontEnd::connect(&switch.path(socket), LIMIT)?;
        let features = Features::VERSION_1 | Features::MRG_RXBUF | Features::INDIRECT_DESC;
        front_end.negotiate(features, features, ProtocolFeatures::REPLY_ACK)?;
        let memory = SharedMemory::create("rogue", MEMORY)?;
        // A ring that nobody has ever touched would be taken for memory that is not shared.
        pwrite(memory.as_fd(), &[0; USED as usize + 1], 0)?;
        front_end.set_memory_table(&[Region {
            guest: GuestAddress(GUEST_START),
            size: MEMORY,
            front_end: FrontEndAddress(FRONT_END_START),
            offset: 0,
            file: memory.as_fd(),
        }])?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let at = |offset| FrontEndAddress(FRONT_END_START + offset);
        let config = RingConfig {
            size: SIZE,
            base: 0,
            descriptors: at(DESCRIPTORS),
            available: at(AVAILABLE),
            used: at(USED),
            kick: Some(kick.as_fd()),
            call: None,
        };
        front_end.set_up_ring(ring, config)?;
        front_end.enable_ring(ring, true)?;
        Ok(Rogue { memory, kick, _front_end: front_end })
    }

    /// Makes descriptor 0 available, with these in the table, and says that `available` entries are.
    fn publish(&self, descriptors: &[Descriptor], available: u16) -> Result<()> {
        let words = descriptors.iter().flat_map(|descriptor| descriptor.to_words());
        let table: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        pwrite(self.memory.as_fd(), &table, DESCRIPTORS)?;
        pwrite(self.memory.as_fd(), &available.to_le_bytes(), AVAILABLE + RING_INDEX)?;
        write(&self.kick, &1u64.to_ne_bytes())?;
        Ok(())
    }
}
