//! An embedded guest with a kernel's protocols: it carries frames between the switch and a TAP interface that it makes
//! where it is started, in a network namespace as a rule. What is left undone to a frame stays so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest::{Guest, Options};
use sys::tun::{Kind, Queue, Request};
use wire::virtio::{Features, NetHeader};

/// Bytes of the longest frame that an interface sends, with its header.
const LONGEST: usize = NetHeader::SIZE + 14 + 65_536;
/// Somebody ends this before.
const LIMIT: Duration = Duration::from_secs(3600);

/// What a kernel's driver negotiates.
const FEATURES: Features = Features::CSUM
    .union(Features::HOST_TSO4)
    .union(Features::HOST_TSO6)
    .union(Features::HOST_ECN)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4)
    .union(Features::GUEST_TSO6)
    .union(Features::GUEST_ECN);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, interface] = arguments.as_slice() else { bail!("usage: tap-guest SOCKET NAME") };
    let queue = Request::new(interface, Kind::Tap, NetHeader::SIZE).open()?.pop();
    let queue = queue.context("an interface without a queue")?;
    let mut options = Options::default();
    options.features |= FEATURES;
    let mut guest = Guest::connect(Path::new(socket), &options)?;
    println!("carries {interface}, features {}", guest.driver().features());

    let mut buffer = vec![0; LONGEST];
    // What is in the buffer, until there is room for it in the ring.
    let mut waits = None;
    loop {
        while let Some(frame) =
            guest.driver().receive(|came| [&came.header.to_bytes(), came.frame].concat())?
        {
            // An interface that is down has no use for it.
            let _ = rustix::io::write(&queue, &frame);
        }
        guest.driver().reclaim()?;
        while let Some(len) = next(&mut waits, &queue, &mut buffer)? {
            let (header, frame) = buffer[..len].split_first_chunk().context("no header")?;
            if !guest.driver().send(NetHeader::from_bytes(header), frame)? {
                waits = Some(len);
                break;
            }
        }
        guest.flush();
        if waits.is_some() {
            guest.wait_to_send(LIMIT)?;
        } else {
            guest.wait_beside(&queue, LIMIT)?;
        }
    }
}

/// Bytes of the next frame for the switch, which is in the buffer.
fn next(waits: &mut Option<usize>, queue: &Queue, buffer: &mut [u8]) -> Result<Option<usize>> {
    if waits.is_some() {
        return Ok(waits.take());
    }
    match rustix::io::read(queue, buffer) {
        Ok(len) => Ok(Some(len)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => Ok(None),
        Err(error) => Err(error).context("cannot read from the interface"),
    }
}
