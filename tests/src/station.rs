//! Embedded guests that talk: streams of numbered frames, of which every one is checked.

use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest::{Guest, Options};
use wire::virtio::NetHeader;

use crate::Switch;

/// A frame comes within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames on their way at once: they fit the receiver's ring, so none may be lost.
const WINDOW: u32 = 64;

/// An embedded guest with an address, and what it has sent and received of a numbered stream.
pub struct Station {
    /// The guest.
    pub guest: Guest,
    /// Its address.
    pub address: [u8; 6],
    /// Frames that it has sent: the number of the next one.
    pub sent: u32,
    /// Frames that came: the number of the next one.
    pub received: u32,
}

impl Station {
    /// A guest at `vm<n>.sock`.
    ///
    /// # Errors
    ///
    /// It cannot connect.
    pub fn connect(switch: &Switch, n: u8) -> Result<Station> {
        Station::connect_with(switch, n, &Options::default())
    }

    /// The same with other options.
    ///
    /// # Errors
    ///
    /// As [`Station::connect`].
    pub fn connect_with(switch: &Switch, n: u8, options: &Options) -> Result<Station> {
        Station::at(&switch.path(&format!("vm{n}.sock")), n, options)
    }

    /// The same at any socket.
    ///
    /// # Errors
    ///
    /// As [`Station::connect`].
    pub fn at(path: &Path, n: u8, options: &Options) -> Result<Station> {
        let guest = Guest::connect(path, options)?;
        Ok(Station { guest, address: [0x52, 0x54, 0, 0, 0, n], sent: 0, received: 0 })
    }

    /// Sends the next frame of the stream to `to`. False when there is no room for it now.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub fn send(&mut self, to: [u8; 6]) -> Result<bool> {
        let frame = numbered(self.address, to, self.sent);
        let sent = self.guest.driver().send(NetHeader::default(), &frame)?;
        self.sent += u32::from(sent);
        Ok(sent)
    }

    /// Takes what came from `from`, which must be its stream, whole and in order. What is not for this station alone is
    /// passed over.
    ///
    /// # Errors
    ///
    /// Another frame came than the next one.
    pub fn receive(&mut self, from: [u8; 6]) -> Result<()> {
        while self.receive_one(from, self.received..self.received + 1)?.is_some() {}
        Ok(())
    }

    /// Takes the next frame of a stream of which these numbers may come now, and returns which it was. None when there is
    /// none yet.
    ///
    /// # Errors
    ///
    /// Another frame of the stream came, or a damaged one.
    pub fn receive_one(&mut self, from: [u8; 6], due: Range<u32>) -> Result<Option<u32>> {
        let address = self.address;
        loop {
            let came = self.guest.driver().receive(|came| {
                let frame = came.frame;
                if !frame.starts_with(&[address, from].concat()) {
                    return None;
                }
                let number = frame.get(14..18).and_then(<[u8]>::first_chunk).copied();
                let number = number.map_or(u32::MAX, u32::from_be_bytes);
                Some((number, due.contains(&number) && frame == numbered(from, address, number)))
            })?;
            match came {
                None => return Ok(None),
                Some(None) => {}
                Some(Some((number, is_good))) => {
                    ensure!(is_good, "one of {due:?} was due, and frame {number} came");
                    self.received = number + 1;
                    return Ok(Some(number));
                }
            }
        }
    }
}

/// Frame `number` of a stream: its length and every byte follow from the number.
pub fn numbered(from: [u8; 6], to: [u8; 6], number: u32) -> Vec<u8> {
    let len = 60 + (number as usize * 97) % 1455;
    let mut frame = [&to[..], &from, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    let noise = (0u32..).map(|at| (at.wrapping_add(number).wrapping_mul(0x9e37_79b1) >> 24) as u8);
    frame.extend(noise.take(len - frame.len()));
    frame
}

/// A UDP datagram in IPv4 from one guest to another, by their numbers, with a checksum that nobody looks at.
pub fn udp(from: u8, to: u8, ports: [u16; 2], number: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend([0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from]);
    frame.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([10, 0, 0, from, 10, 0, 0, to]);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend([0, 26, 0, 0, number]);
    frame.resize(60, 0);
    frame
}

/// Has both stations send each other `count` frames more, and checks every one that arrives.
///
/// # Errors
///
/// One is missing, or is another.
pub fn exchange(one: &mut Station, two: &mut Station, count: u32) -> Result<()> {
    let most = [one.sent + count, two.sent + count];
    talk(one, two, most, || false)
}

/// Has both stations send each other frames until it is enough, and checks every one that arrives: none may be missing.
///
/// # Errors
///
/// One is.
pub fn exchange_until(
    one: &mut Station,
    two: &mut Station,
    is_enough: impl Fn() -> bool,
) -> Result<()> {
    talk(one, two, [u32::MAX; 2], is_enough)
}

/// Until both have sent as many as they may at most, or it is enough, and all have come.
fn talk(
    one: &mut Station,
    two: &mut Station,
    most: [u32; 2],
    is_enough: impl Fn() -> bool,
) -> Result<()> {
    let (first, second) = (one.address, two.address);
    let (mut last, mut since) = ([one.received, two.received], Instant::now());
    let mut is_over = false;
    while !is_over || (two.received, one.received) != (one.sent, two.sent) {
        while !is_over
            && one.sent < most[0]
            && one.sent - two.received < WINDOW
            && one.send(second)?
        {}
        while !is_over
            && two.sent < most[1]
            && two.sent - one.received < WINDOW
            && two.send(first)?
        {}
        is_over |= [one.sent, two.sent] == most || is_enough();
        one.guest.flush();
        two.guest.flush();
        one.guest.driver().reclaim()?;
        two.guest.driver().reclaim()?;
        one.receive(second)?;
        two.receive(first)?;
        let now = [one.received, two.received];
        if now != last {
            (last, since) = (now, Instant::now());
            continue;
        }
        ensure!(
            since.elapsed() < LIMIT,
            "{} of {} and {} of {} frames came, and for {LIMIT:?} none",
            two.received,
            one.sent,
            one.received,
            two.sent
        );
        // Those that are to pass them on may need this processor.
        thread::yield_now();
    }
    Ok(())
}
