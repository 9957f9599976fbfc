//! Front ends that come again.

use wire::vhost_user::{FrontEndRequest as R, ProtocolFeatures as P};
use wire::virtio::Features as F;

use crate::bench::{Bench, PLAIN};
use crate::case::{Rule, case};
use crate::device::{BUFFER, Device, RX, Setup, TX};
use crate::peer::QUIET;
use crate::verdict::{Check, ensure, equal};
use std::thread;

const COMMUNICATION: &str = "vhost-user, \"Communication\"";
const GET_FEATURES: &str = "vhost-user, \"VHOST_USER_GET_FEATURES\"";

/// What two connections, one after the other, are told.
fn told_twice(bench: &Bench<'_>, protocol: P, request: R) -> Check {
    let first = bench.hello(protocol)?.ask_u64(request)?;
    thread::sleep(QUIET);
    equal("the second answer", bench.hello(protocol)?.ask_u64(request)?, first)
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
    case("offers a front end that comes again the same features.", GET_FEATURES, |bench| {
        told_twice(bench, P::NONE, R::GetFeatures)
    }),
    case(
        "tells a front end that comes again the same number of queues.",
        "vhost-user, \"VHOST_USER_GET_QUEUE_NUM\"",
        |bench| told_twice(bench, P::MQ, R::GetQueueNum),
    ),
    case(
        "tells a front end that comes again the same number of slots.",
        "vhost-user, \"VHOST_USER_GET_MAX_MEM_SLOTS\"",
        |bench| told_twice(bench, P::CONFIGURE_MEM_SLOTS, R::GetMaxMemSlots),
    ),
    case(
        "knows nothing of the features that the last front end has negotiated.",
        COMMUNICATION,
        |bench| {
            bench.need_traffic()?;
            drop(bench.device(F::NONE)?);
            thread::sleep(QUIET);
            // The header is two bytes shorter, and nobody enables the rings.
            let setup = Setup { features: F::NONE, transport: false, ..Setup::default() };
            bench.rig_with(&setup)?.exchange(100)
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
                device.enable(ring, true)?;
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
