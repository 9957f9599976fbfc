//! Front ends that come again.

use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P};
use wire::virtio::Features as F;

use crate::bench::{Bench, PLAIN, is_part};
use crate::case::{Rule, case};
use crate::device::{BUFFER, Device, RX, Setup, TX};
use crate::peer::QUIET;
use crate::verdict::{Check, ensure};
use std::thread;

const COMMUNICATION: &str = "vhost-user, \"Communication\"";
const SET_FEATURES: &str = "vhost-user, \"VHOST_USER_SET_FEATURES\"";

/// Frames pass for a front end with these features after one with those.
fn one_after_another(bench: &Bench<'_>, first: F, second: F) -> Check {
    bench.rig(first)?.exchange(100)?;
    thread::sleep(QUIET);
    bench.rig(second)?.exchange(100)
}

/// Leaves a device at a step of its life, and expects the next to work.
fn leaves(bench: &Bench<'_>, step: fn(&Bench<'_>) -> Check<Device>) -> Check {
    bench.need_traffic()?;
    for _ in 0..3 {
        drop(step(bench)?);
        thread::sleep(QUIET);
    }
    bench.rig(F::NONE)?.exchange(100)
}

pub(crate) const CASES: &[Rule] = &[
    case(
        "takes from a front end that comes again the features that it took before.",
        "virtio 1.3, 2.2.2, SHOULD",
        |bench| {
            let peer = bench.hello(P::NONE)?;
            let features = peer.offered.without(F::LOG_ALL);
            peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])?;
            drop(peer);
            thread::sleep(QUIET);
            let peer = bench.hello(P::NONE)?;
            let missing = features.without(peer.offered);
            ensure(missing.is_empty(), format!("{missing} is not offered any more"))?;
            peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])
        },
    ),
    case("serves split rings after a front end that had packed ones.", SET_FEATURES, |bench| {
        one_after_another(bench, F::RING_PACKED, F::NONE)
    }),
    case("serves packed rings after a front end that had split ones.", SET_FEATURES, |bench| {
        one_after_another(bench, F::NONE, F::RING_PACKED)
    }),
    case(
        "spreads no frame over buffers because the last front end had negotiated MRG_RXBUF.",
        SET_FEATURES,
        |bench| {
            bench.rig(F::MRG_RXBUF)?.exchange(100)?;
            thread::sleep(QUIET);
            let mut rig = bench.rig(F::NONE)?;
            rig.device.post(0, 4, 600)?;
            let frame = rig.frame_back(1000);
            rig.inject(PLAIN, &frame)?;
            // Nothing may come of it: its first buffer alone is no frame.
            rig.device.expect_none(|found| is_part(found, &frame), QUIET)
        },
    ),
    case("passes frames when a front end comes again after negotiating.", COMMUNICATION, |bench| {
        leaves(bench, |bench| bench.prepare(&Setup::default()))
    }),
    case(
        "passes frames when a front end comes again that had its rings started.",
        COMMUNICATION,
        |bench| {
            leaves(bench, |bench| {
                let device = bench.prepare(&Setup::default())?;
                device.start()?;
                Ok(device)
            })
        },
    ),
    case(
        "passes frames when a front end comes again that had everything running.",
        COMMUNICATION,
        |bench| {
            leaves(bench, |bench| {
                let mut device = bench.device(F::NONE)?;
                device.post(0, 32, BUFFER)?;
                Ok(device)
            })
        },
    ),
    case("writes nothing to the memory of a front end that is gone.", COMMUNICATION, |bench| {
        if bench.traffic != crate::bench::Traffic::Through {
            return Err(crate::verdict::skip("only another port could send it something"));
        }
        let mut rig = bench.rig(F::NONE)?;
        rig.device.post(0, 8, BUFFER)?;
        rig.delivers(100)?;
        // The connection ends; the memory and the rings in it stay ours.
        rig.device.peer.hang_up();
        thread::sleep(QUIET);
        let frame = rig.frame_back(100);
        rig.inject(PLAIN, &frame)?;
        thread::sleep(QUIET);
        ensure(rig.device.reap(RX)?.is_none(), "a buffer was used")
    }),
    case(
        "goes on in a split ring where the last connection has left it.",
        "vhost-user, \"VHOST_USER_SET_VRING_BASE\"",
        |bench| {
            bench.need_traffic()?;
            let mut rig = bench.rig(F::NONE)?;
            rig.device.post(0, 8, BUFFER)?;
            for _ in 0..3 {
                rig.passes(100)?;
            }
            let device = rig.into_device();
            device.peer.hang_up();
            let Device { memory, rings, .. } = device;
            thread::sleep(QUIET);
            let limit = bench.target.limit;
            let mut device = Device::negotiate(bench.connect()?, &Setup::default(), limit)?;
            (device.memory, device.rings) = (memory, rings);
            device.share_memory()?;
            // As QEMU does, which takes the used index for the base.
            for ring in [RX, TX] {
                device.start_ring_at_used(ring)?;
                device.open_ring(ring)?;
            }
            bench.rig_of(device)?.passes(100)
        },
    ),
    case(
        "takes ten front ends, one after the other, and passes frames for each.",
        COMMUNICATION,
        |bench| {
            for _ in 0..10 {
                bench.rig(F::NONE)?.passes(100)?;
                thread::sleep(QUIET / 5);
            }
            Ok(())
        },
    ),
];
