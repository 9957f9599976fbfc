//! SET_VRING_ENABLE.

use wire::virtio::Features as F;

use crate::bench::{ATTEMPTS, Bench, PLAIN, Rig};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, RX, Setup, TX};
use crate::verdict::{Check, ensure, equal, skip};
use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P, VringState};

const STATES: &str = "vhost-user, \"Ring states\"";
const REPLY_ACK: &str = "vhost-user, \"VHOST_USER_PROTOCOL_F_REPLY_ACK\"";
const ENABLE: &str = "vhost-user, \"VHOST_USER_SET_VRING_ENABLE\"";

/// A device whose rings were started and not enabled.
fn started(bench: &Bench<'_>) -> Check<Rig> {
    bench.need_traffic()?;
    let device = bench.prepare(&Setup::default())?;
    if !device.peer.offered.contains(F::PROTOCOL_FEATURES) {
        return Err(skip("PROTOCOL_FEATURES is not offered"));
    }
    device.start()?;
    bench.rig_of(device)
}

pub(crate) const CASES: &[Rule] = &[
    case("passes no frame from a transmit ring that was never enabled.", STATES, |bench| {
        let mut rig = started(bench)?;
        // What comes back must have somewhere to go.
        rig.device.enable(RX, true)?;
        rig.listen()?;
        let frame = rig.frame(100);
        rig.device.transmit(0, PLAIN, &frame)?;
        rig.stays_away(&frame)?;
        // It was the ring that has kept it.
        rig.device.enable(TX, true)?;
        rig.passes(120)
    }),
    case("uses and discards what is sent on a transmit ring that is disabled.", STATES, |bench| {
        let mut rig = started(bench)?;
        let frame = rig.frame(100);
        let id = rig.device.transmit(0, PLAIN, &frame)?;
        equal("the used id", rig.device.reap_soon(TX)?.id, id)
    }),
    case("delivers no frame to a receive ring that is disabled.", STATES, |bench| {
        let mut rig = started(bench)?;
        if rig.is_echo() {
            rig.device.enable(TX, true)?;
        }
        rig.device.post(0, 4 + ATTEMPTS, BUFFER)?;
        let frame = rig.frame_back(100);
        rig.inject(PLAIN, &frame)?;
        rig.is_not_delivered(&frame)?;
        ensure(rig.device.reap(RX)?.is_none(), "a buffer of a disabled ring was used")?;
        // It was the ring that has kept it away.
        rig.device.enable(RX, true)?;
        rig.delivers(120).map(drop)
    }),
    case("passes frames once rings are enabled, and by then lets nothing wait.", ENABLE, |bench| {
        let mut rig = started(bench)?;
        rig.device.enable(RX, true)?;
        rig.device.enable(TX, true)?;
        rig.exchange(100)
    }),
    case("acts on SET_VRING_ENABLE before it acknowledges it.", REPLY_ACK, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.device.peer.needs(P::REPLY_ACK)?;
        rig.passes(100)?;
        for _ in 0..20 {
            rig.device.enable(TX, false)?;
            rig.device.enable(TX, true)?;
            // What is sent from here on must not be taken for something to be discarded.
            rig.passes(100)?;
        }
        Ok(())
    }),
    case("passes no frame from a transmit ring that was disabled again.", STATES, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.passes(100)?;
        rig.device.enable(TX, false)?;
        let frame = rig.frame(100);
        rig.device.transmit(0, PLAIN, &frame)?;
        rig.stays_away(&frame)?;
        rig.device.enable(TX, true)?;
        rig.listen()?;
        let frame = rig.frame(120);
        rig.device.transmit(0, PLAIN, &frame)?;
        rig.arrives(&frame).map(drop)
    }),
    case("delivers no frame to a receive ring that was disabled again.", STATES, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.device.post(0, 8, BUFFER)?;
        rig.delivers(100)?;
        rig.device.enable(RX, false)?;
        let frame = rig.frame_back(100);
        rig.inject(PLAIN, &frame)?;
        rig.is_not_delivered(&frame)
    }),
    case("takes the same SET_VRING_ENABLE twice.", ENABLE, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.device.enable(TX, true)?;
        rig.passes(100)?;
        rig.device.enable(TX, false)?;
        rig.device.enable(TX, false)?;
        rig.device.enable(TX, true)?;
        rig.passes(100)
    }),
    case("takes SET_VRING_ENABLE before a ring is set up.", STATES, |bench| {
        bench.need_traffic()?;
        let device = bench.prepare(&Setup::default())?;
        device.enable(RX, true)?;
        device.enable(TX, true)?;
        device.start()?;
        bench.rig_of(device)?.exchange(100)
    }),
    case("enables rings by itself when PROTOCOL_FEATURES is not acknowledged.", STATES, |bench| {
        let setup = Setup { transport: false, ..Setup::default() };
        bench.rig_with(&setup)?.exchange(100)
    }),
    case("keeps the position of a ring over being disabled.", STATES, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        for _ in 0..5 {
            rig.passes(100)?;
        }
        rig.device.enable(TX, false)?;
        equal("the base", rig.device.stop_ring(TX)?, rig.device.rings[1].base())
    }),
    hostile("survives SET_VRING_ENABLE with neither 0 nor 1.", ENABLE, |bench| {
        let device = bench.device(F::NONE)?;
        for num in [2, u32::MAX] {
            let payload = Payload::VringState(VringState { index: TX, num }).encode();
            let _ = device.peer.try_bytes(R::SetVringEnable.number(), &payload, &[]);
        }
        Ok(())
    }),
];
