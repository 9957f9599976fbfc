//! MRG_RXBUF.

use wire::virtio::Features as F;

use crate::bench::{ATTEMPTS, Bench, PLAIN, Rig, is_part};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, Received};
use crate::peer::QUIET;
use crate::verdict::{Check, ensure, equal};

const BUFFERS: &str = "virtio 1.3, 5.1.6.3.1";
const INCOMING: &str = "virtio 1.3, 5.1.6.4.1";

/// A frame of `len` bytes in buffers of `buffer` bytes.
fn merged(bench: &Bench<'_>, features: F, buffer: u32, len: usize) -> Check<(Rig, Received)> {
    let mut rig = bench.rig(features | F::MRG_RXBUF)?;
    rig.device.post(0, 24, buffer)?;
    let received = rig.delivers(len)?;
    Ok((rig, received))
}

fn num_buffers(received: &Received) -> u16 {
    u16::from_le_bytes([received.header[10], received.header[11]])
}

/// As many as are needed, and all but the last full.
fn is_dense(received: &Received, buffer: u32, len: usize) -> Check {
    let expected = (len + 12).div_ceil(buffer as usize);
    equal("num_buffers", usize::from(num_buffers(received)), expected)?;
    let (_, full) = received.used.split_last().unwrap_or((&received.used[0], &[]));
    let right = full.iter().all(|used| used.written == buffer);
    ensure(right, "a buffer that is not the last one was not filled")
}

pub(crate) const CASES: &[Rule] = &[
    case("says that a small frame fills one buffer.", INCOMING, |bench| {
        let (_, received) = merged(bench, F::NONE, BUFFER, 100)?;
        equal("num_buffers", num_buffers(&received), 1)
    }),
    case("spreads a frame over several buffers, and fills all but the last.", INCOMING, |bench| {
        let (_, received) = merged(bench, F::NONE, 256, 1514)?;
        is_dense(&received, 256, 1514)
    }),
    case("spreads a frame that ends where a buffer does.", INCOMING, |bench| {
        let (_, received) = merged(bench, F::NONE, 512, 1024 - 12)?;
        is_dense(&received, 512, 1024 - 12)
    }),
    case(
        "spreads a frame over several buffers of a packed ring, and fills all but the last.",
        INCOMING,
        |bench| {
            let (_, received) = merged(bench, F::RING_PACKED, 256, 1514)?;
            is_dense(&received, 256, 1514)
        },
    ),
    case("delivers small frames and large ones in turn.", INCOMING, |bench| {
        let mut rig = bench.rig(F::MRG_RXBUF)?;
        for round in 0..20 {
            rig.device.post(0, 5, 400)?;
            for len in [60, 1400] {
                let received = rig.delivers(len + round)?;
                is_dense(&received, 400, len + round)?;
            }
        }
        Ok(())
    }),
    case("says that there is one buffer when MRG_RXBUF is not negotiated.", INCOMING, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.device.post(0, ATTEMPTS, BUFFER)?;
        equal("num_buffers", num_buffers(&rig.delivers(200)?), 1)
    }),
    case(
        "passes no part of a frame that does not fit its only buffer.",
        "virtio 1.3, 5.1.6.3.2 and 5.1.6.4",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.device.post(0, 4, 600)?;
            let frame = rig.frame_back(1000);
            rig.inject(PLAIN, &frame)?;
            rig.device.expect_none(|found| is_part(found, &frame), QUIET)
        },
    ),
    hostile("survives a frame that is larger than all buffers together.", BUFFERS, |bench| {
        let mut rig = bench.rig(F::MRG_RXBUF)?;
        rig.device.post(0, 3, 100)?;
        rig.provoke(1500);
        Ok(())
    }),
];
