//! The log of written pages.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use memory::SharedMemory;
use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P, VringAddress};
use wire::virtio::Features as F;

use crate::bench::{Bench, Rig};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, Device, RX, Setup, TX};
use crate::peer::VERSION;
use crate::ring::{Buffer, WRITE};
use crate::verdict::{Check, ensure, fail};

const LOG: &str = "vhost-user, \"Migration\"";
const SET_LOG_BASE: &str = "vhost-user, \"VHOST_USER_SET_LOG_BASE\"";
/// Bytes of log for all memory up to the end of ours.
const LOG_SIZE: u64 = (0x4000_0000 + crate::memory::SIZE) / 4096 / 8;

/// A rig and a log, which begins at `offset` of its file.
fn logging(bench: &Bench<'_>, features: F, offset: u64) -> Check<(Rig, SharedMemory)> {
    let features = features | F::VERSION_1;
    let protocol = P::REPLY_ACK | P::MQ | P::LOG_SHMFD;
    let setup = Setup { features, protocol, ..Setup::default() };
    let mut rig = bench.rig_with(&setup)?;
    rig.device.peer.needs(P::LOG_SHMFD)?;
    if !rig.device.peer.offered.contains(F::LOG_ALL) {
        return Err(crate::verdict::skip("LOG_ALL is not offered"));
    }
    rig.passes(100)?;
    // Larger than it has to be: a back end that counts the offset twice writes to the wrong place, but
    // not behind the end, where nobody knows what would come of it.
    let size = LOG_SIZE + offset;
    let log = SharedMemory::create("ringway-check-log", offset + size)
        .map_err(|error| fail(error.to_string()))?;
    let payload = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
    rig.device.peer.send(R::SetLogBase.number(), VERSION, &payload, &[log.as_fd()])?;
    // Some answer with a number and some with nothing in it.
    rig.device.peer.reply(R::SetLogBase)?;
    set(&rig.device, features | F::LOG_ALL)?;
    for ring in [RX, TX] {
        let addresses = rig.device.addresses(ring);
        let log = rig.device.rings[ring as usize].areas[2];
        let payload = Payload::VringAddress(VringAddress { flags: 1, log, ..addresses });
        rig.device.peer.tell(R::SetVringAddr, &payload, &[])?;
    }
    Ok((rig, log))
}

fn set(device: &Device, features: F) -> Check {
    let features = features | F::PROTOCOL_FEATURES;
    device.peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])
}

/// Whether the page of a guest address is in the log.
fn is_logged(log: &SharedMemory, offset: u64, address: u64) -> Check<bool> {
    let page = address / 4096;
    let mut byte = [0];
    rustix::io::pread(log.as_fd(), &mut byte, offset + page / 8)
        .map_err(|error| fail(format!("cannot read the log: {error}")))?;
    Ok(byte[0] >> (page % 8) & 1 == 1)
}

/// Waits until the page of a guest address is in the log: it need not be when the buffer is used, only
/// when the rings have stopped.
fn becomes_logged(bench: &Bench<'_>, log: &SharedMemory, offset: u64, address: u64) -> Check<bool> {
    let deadline = Instant::now() + bench.target.limit;
    while !is_logged(log, offset, address)? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

/// Delivers a frame; the page of its buffer must be logged.
fn receives(bench: &Bench<'_>, features: F, offset: u64) -> Check {
    let (mut rig, log) = logging(bench, features, offset)?;
    rig.device.post(0, 4, BUFFER)?;
    let received = rig.delivers(300)?;
    let buffer = received.used[0].buffers[0].address;
    let logged = becomes_logged(bench, &log, offset, buffer)?;
    ensure(logged, "the page of the receive buffer is not logged")
}

pub(crate) const CASES: &[Rule] = &[
    case("logs the page of a receive buffer that it writes.", LOG, |bench| {
        receives(bench, F::NONE, 0)
    }),
    case("logs the page of a packed ring's receive buffer that it writes.", LOG, |bench| {
        receives(bench, F::RING_PACKED, 0)
    }),
    case("finds a log that does not begin where its file does.", SET_LOG_BASE, |bench| {
        receives(bench, F::NONE, 4096)
    }),
    case("logs the page of a used ring that it writes.", LOG, |bench| {
        let (mut rig, log) = logging(bench, F::NONE, 0)?;
        rig.passes(100)?;
        let used = rig.device.rings[1].areas[2];
        let logged = becomes_logged(bench, &log, 0, used)?;
        ensure(logged, "the page of the used ring is not logged")
    }),
    case("logs both pages of a receive buffer that lies on two.", LOG, |bench| {
        let (mut rig, log) = logging(bench, F::NONE, 0)?;
        let page = rig.device.memory.allocate(3 * 4096).next_multiple_of(4096);
        let buffer = Buffer { address: page + 4096 - 200, len: BUFFER, flags: WRITE };
        rig.device.offer(RX, &[buffer])?;
        // Those that were posted before come first.
        while rig.delivers(1000)?.used[0].buffers[0].address != buffer.address {}
        let first = becomes_logged(bench, &log, 0, page)?;
        ensure(first, "the first page is not logged")?;
        let second = becomes_logged(bench, &log, 0, page + 4096)?;
        ensure(second, "the second page is not logged")
    }),
    case("logs nothing any more when LOG_ALL is taken back.", LOG, |bench| {
        let (mut rig, log) = logging(bench, F::NONE, 0)?;
        set(&rig.device, F::VERSION_1)?;
        rig.device.memory.allocate(8192);
        rig.device.post(0, 1, BUFFER)?;
        let received = rig.delivers(300)?;
        let buffer = received.used[0].buffers[0].address;
        // Until they have stopped, it may still be going to log.
        for ring in [RX, TX] {
            rig.device.stop_ring(ring)?;
        }
        ensure(!is_logged(&log, 0, buffer)?, "the page of a receive buffer is logged")
    }),
    hostile("survives logs that are too small, empty, or overflow.", SET_LOG_BASE, |bench| {
        for (size, offset) in [(0, 0), (1, 0), (1 << 40, 0), (u64::MAX, 4096), (4096, u64::MAX)] {
            let (rig, _log) = logging(bench, F::NONE, 0)?;
            let file = SharedMemory::create("ringway-check-log", 4096)
                .map_err(|error| fail(error.to_string()))?;
            let payload = [u64::to_ne_bytes(size), u64::to_ne_bytes(offset)].concat();
            let _ =
                rig.device.peer.send(R::SetLogBase.number(), VERSION, &payload, &[file.as_fd()]);
            let mut rig = rig;
            let _ = rig.device.post(0, 4, BUFFER);
            let _ = rig.delivers(300);
        }
        Ok(())
    }),
];
