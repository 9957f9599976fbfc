//! Starting and stopping rings.

use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P};
use wire::virtio::Features as F;

use crate::bench::{ATTEMPTS, Bench, FAR, NEAR, PLAIN, frame_between};
use crate::case::{Rule, case};
use crate::device::{BUFFER, Device, RX, Setup, TX, event};
use crate::peer::QUIET;
use crate::verdict::{Check, ensure, equal};
use std::os::fd::AsFd;

const STATES: &str = "vhost-user, \"Ring states\"";
const GET_VRING_BASE: &str = "vhost-user, \"VHOST_USER_GET_VRING_BASE\"";
const SET_VRING_BASE: &str = "vhost-user, \"VHOST_USER_SET_VRING_BASE\"";
const SET_VRING_KICK: &str = "vhost-user, \"VHOST_USER_SET_VRING_KICK\"";
const SET_VRING_NUM: &str = "vhost-user, \"VHOST_USER_SET_VRING_NUM\"";

/// Frames pass through rings of this size, if it is taken.
fn sized(bench: &Bench<'_>, size: u16) -> Check {
    let mut rig = bench.rig_of_size(&Setup { size, ..Setup::default() })?;
    for _ in 0..3 * size.min(32) {
        rig.exchange(200)?;
    }
    Ok(())
}

/// A prepared device with both rings set up in an order of its own, and enabled.
fn in_order_of(bench: &Bench<'_>, set_up: fn(&Device, u32) -> Check) -> Check {
    bench.need_traffic()?;
    let device = bench.prepare(&Setup::default())?;
    for ring in [RX, TX] {
        set_up(&device, ring)?;
    }
    device.open()?;
    bench.rig_of(device)?.exchange(100)
}

pub(crate) const CASES: &[Rule] = &[
    case(
        "returns by GET_VRING_BASE the base that a ring was given, when nothing has happened since.",
        GET_VRING_BASE,
        |bench| {
            let mut device = bench.prepare(&Setup::default())?;
            for ring in &mut device.rings {
                ring.start_at(&device.memory, 5);
            }
            device.start()?;
            device.open()?;
            equal("the base", device.stop_ring(RX)?, 5)
        },
    ),
    case(
        "returns by GET_VRING_BASE where a transmit ring stands after ten frames.",
        GET_VRING_BASE,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            for _ in 0..10 {
                rig.passes(100)?;
            }
            equal("the base", rig.device.stop_ring(TX)?, rig.device.rings[1].base())
        },
    ),
    case(
        "returns by GET_VRING_BASE where a receive ring stands after ten frames.",
        GET_VRING_BASE,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.device.post(0, 10 + ATTEMPTS, BUFFER)?;
            for _ in 0..10 {
                rig.delivers(100)?;
            }
            let base = rig.device.stop_ring(RX)?;
            // A frame that was sent again may have come twice.
            let used = rig.device.rings[0].used_index(&rig.device.memory);
            equal("the base", base, used.into())
        },
    ),
    case(
        "uses no more buffers of a transmit ring once GET_VRING_BASE was answered.",
        STATES,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.passes(100)?;
            rig.device.stop_ring(TX)?;
            let frame = rig.frame(100);
            rig.device.transmit(0, PLAIN, &frame)?;
            rig.stays_away(&frame)?;
            ensure(rig.device.reap(TX)?.is_none(), "a buffer of a stopped ring was used")
        },
    ),
    case(
        "uses no more buffers of a receive ring once GET_VRING_BASE was answered.",
        STATES,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.device.post(0, 8, BUFFER)?;
            rig.delivers(100)?;
            rig.device.stop_ring(RX)?;
            let frame = rig.frame_back(100);
            rig.inject(PLAIN, &frame)?;
            rig.is_not_delivered(&frame)
        },
    ),
    case("answers GET_VRING_BASE for a ring that has stopped already.", GET_VRING_BASE, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.passes(100)?;
        let first = rig.device.stop_ring(TX)?;
        equal("the base", rig.device.stop_ring(TX)?, first)
    }),
    case(
        "goes on where a ring was when it is started again at the base that it returned.",
        SET_VRING_BASE,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            for _ in 0..3 {
                for _ in 0..5 {
                    rig.passes(100)?;
                }
                let base = rig.device.stop_ring(TX)?;
                equal("the base", base, rig.device.rings[1].base())?;
                rig.device.start_ring(TX)?;
            }
            rig.passes(100)
        },
    ),
    case(
        "starts at the beginning when a cleared ring is started at base 0.",
        SET_VRING_BASE,
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            for _ in 0..5 {
                rig.passes(100)?;
            }
            rig.device.stop_ring(TX)?;
            rig.device.rings[1].clear(&rig.device.memory);
            rig.device.start_ring(TX)?;
            rig.passes(100)
        },
    ),
    case(
        "starts a split ring at base 65530, and passes the end of its index.",
        SET_VRING_BASE,
        |bench| {
            bench.need_traffic()?;
            let mut device = bench.prepare(&Setup::default())?;
            for ring in &mut device.rings {
                ring.start_at(&device.memory, 65530);
            }
            device.start()?;
            device.open()?;
            let mut rig = bench.rig_of(device)?;
            for _ in 0..20 {
                rig.exchange(100)?;
            }
            equal("the base", rig.device.stop_ring(TX)?, rig.device.rings[1].base())
        },
    ),
    case("serves split rings of 256 entries, if it takes that size.", SET_VRING_NUM, |bench| {
        sized(bench, 256)
    }),
    case("serves split rings of 1024 entries, if it takes that size.", SET_VRING_NUM, |bench| {
        sized(bench, 1024)
    }),
    case("serves split rings of 8 entries, if it takes that size.", SET_VRING_NUM, |bench| {
        sized(bench, 8)
    }),
    case("takes the messages of a ring as QEMU orders them.", STATES, |bench| {
        in_order_of(bench, |device, ring| {
            device.set_num(ring, device.rings[ring as usize].size.into())?;
            device.set_base(ring, 0)?;
            device.set_addresses(ring)?;
            device.set_kick(ring, Some(device.kick_descriptor(ring)))?;
            device.set_call(ring, Some(device.call(ring)))
        })
    }),
    case("takes the messages of a ring as Cloud Hypervisor orders them.", STATES, |bench| {
        in_order_of(bench, |device, ring| {
            device.set_num(ring, device.rings[ring as usize].size.into())?;
            device.set_addresses(ring)?;
            device.set_base(ring, 0)?;
            device.set_call(ring, Some(device.call(ring)))?;
            device.set_kick(ring, Some(device.kick_descriptor(ring)))
        })
    }),
    case(
        "takes the call descriptors of all rings before everything else, as DPDK sends them.",
        STATES,
        |bench| {
            bench.need_traffic()?;
            let device = Device::meet(bench.connect()?, &Setup::default(), bench.target.limit)?;
            for ring in [RX, TX] {
                device.set_call(ring, Some(device.call(ring)))?;
            }
            device.set_features()?;
            device.share_memory()?;
            for ring in [RX, TX] {
                device.set_num(ring, device.rings[ring as usize].size.into())?;
                device.set_base(ring, 0)?;
                device.set_addresses(ring)?;
                device.set_kick(ring, Some(device.kick_descriptor(ring)))?;
            }
            device.open()?;
            bench.rig_of(device)?.exchange(100)
        },
    ),
    case("serves what was in a ring, and kicked, before it started.", STATES, |bench| {
        bench.need_traffic()?;
        let device = bench.prepare(&Setup::default())?;
        let mut rig = bench.rig_of(device)?;
        rig.listen()?;
        let frame = rig.frame(100);
        let id = rig.device.transmit(0, PLAIN, &frame)?;
        rig.device.start()?;
        rig.device.open()?;
        // Enabled after the start: until then it may be discarded, but it must be used.
        equal("the used id", rig.device.reap_soon(TX)?.id, id)?;
        rig.passes(100)
    }),
    case("polls a ring whose SET_VRING_KICK has no descriptor.", SET_VRING_KICK, |bench| {
        bench.need_traffic()?;
        let device = bench.prepare(&Setup::default())?;
        for ring in [RX, TX] {
            device.set_num(ring, device.rings[ring as usize].size.into())?;
            device.set_base(ring, 0)?;
            device.set_addresses(ring)?;
            device.set_call(ring, Some(device.call(ring)))?;
            device.set_kick(ring, None)?;
            device.open_ring(ring)?;
        }
        bench.rig_of(device)?.exchange(100)
    }),
    case(
        "serves a ring whose SET_VRING_CALL has no descriptor.",
        "vhost-user, \"VHOST_USER_SET_VRING_CALL\"",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.device.set_call(TX, None)?;
            rig.passes(100)?;
            while rig.device.called(TX, QUIET) {}
            rig.passes(100)?;
            ensure(!rig.device.called(TX, QUIET), "a descriptor was signalled that was taken back")
        },
    ),
    case(
        "takes SET_VRING_ERR with a descriptor and without.",
        "vhost-user, \"VHOST_USER_SET_VRING_ERR\"",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            let error = event(0)?;
            rig.device.set_descriptor(R::SetVringErr, TX, Some(error.as_fd()))?;
            rig.passes(100)?;
            rig.device.set_descriptor(R::SetVringErr, TX, None)?;
            rig.passes(100)
        },
    ),
    case("serves one ring while the other was never set up.", STATES, |bench| {
        let mut device = bench.prepare(&Setup::default())?;
        device.start_ring(TX)?;
        device.open_ring(TX)?;
        // Where the frame goes is of no interest: an echo has nowhere to go.
        let frame = frame_between(NEAR, FAR, 100, 1);
        let id = device.transmit(0, PLAIN, &frame)?;
        equal("the used id", device.reap_soon(TX)?.id, id)
    }),
    case(
        "stops all rings on RESET_DEVICE, and starts them anew after it.",
        "vhost-user, \"VHOST_USER_RESET_DEVICE\"",
        |bench| {
            let protocol = P::REPLY_ACK | P::MQ | P::RESET_DEVICE;
            let mut rig = bench.rig_with(&Setup { protocol, ..Setup::default() })?;
            rig.device.peer.needs(P::RESET_DEVICE)?;
            rig.passes(100)?;
            rig.device.peer.tell(R::ResetDevice, &Payload::Empty, &[])?;
            let frame = rig.frame(100);
            rig.device.transmit(0, PLAIN, &frame)?;
            rig.stays_away(&frame)?;
            let features = F::VERSION_1 | rig.device.peer.offered & F::PROTOCOL_FEATURES;
            rig.device.peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])?;
            rig.device.share_memory()?;
            for ring in [RX, TX] {
                rig.device.rings[ring as usize].clear(&rig.device.memory);
                rig.device.start_ring(ring)?;
                rig.device.open_ring(ring)?;
            }
            rig.passes(100)
        },
    ),
];
