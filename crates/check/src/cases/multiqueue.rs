//! Several queue pairs.

use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P, VringState};
use wire::virtio::Features as F;

use crate::bench::{Bench, PLAIN, Rig, same};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, Setup};
use crate::verdict::{Check, equal};

const MQ: &str = "vhost-user, \"Multiple queue support\"";
const STATES: &str = "vhost-user, \"Ring states\"";

/// A rig with this many pairs, with receive buffers on all of them.
fn pairs(bench: &Bench<'_>, pairs: u16, features: F) -> Check<Rig> {
    let features = features | F::VERSION_1 | F::MQ;
    let mut rig = bench.rig_with(&Setup { features, pairs, ..Setup::default() })?;
    for pair in 0..u32::from(pairs) {
        rig.device.post(pair, 24, BUFFER)?;
    }
    Ok(rig)
}

/// Sends a frame from a pair of the device under test, and expects it wherever it comes out.
fn sends(rig: &mut Rig, pair: u32) -> Check {
    let frame = rig.frame(100);
    rig.device.transmit(pair, PLAIN, &frame)?;
    rig.arrives(&frame)?;
    rig.device.drain(2 * pair + 1)
}

fn both_pairs_send(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = pairs(bench, 2, features)?;
    for _ in 0..5 {
        sends(&mut rig, 0)?;
        sends(&mut rig, 1)?;
    }
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("passes frames from both of two pairs.", MQ, |bench| both_pairs_send(bench, F::NONE)),
    case("passes frames from both of two pairs of packed rings.", MQ, |bench| {
        both_pairs_send(bench, F::RING_PACKED)
    }),
    case("passes frames from each of four pairs.", MQ, |bench| {
        let mut rig = pairs(bench, 4, F::NONE)?;
        (0..4).try_for_each(|pair| sends(&mut rig, pair))
    }),
    case("delivers every frame to one of two pairs.", MQ, |bench| {
        let mut rig = pairs(bench, 2, F::NONE)?;
        for _ in 0..10 {
            let frame = rig.frame_back(100);
            rig.inject(PLAIN, &frame)?;
            rig.device.expect(|found| same(found, &frame))?;
        }
        Ok(())
    }),
    case("delivers to the pair that is enabled when another is not.", STATES, |bench| {
        let mut rig = pairs(bench, 2, F::NONE)?;
        rig.device.enable(2, false)?;
        rig.device.enable(3, false)?;
        let mut came = 0;
        for number in 0..10 {
            let frame = rig.frame_back(100);
            rig.inject(PLAIN, &frame)?;
            match rig.device.expect(|found| same(found, &frame)) {
                Ok(received) => {
                    equal("the pair", received.pair, 0)?;
                    came += 1;
                }
                // A switch may lose what it had meant for the other pair, until all of it knows.
                Err(_) if came == 0 && number < 3 => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }),
    case("passes frames from a pair that is disabled and enabled again.", STATES, |bench| {
        let mut rig = pairs(bench, 2, F::NONE)?;
        sends(&mut rig, 1)?;
        rig.device.enable(2, false)?;
        rig.device.enable(3, false)?;
        sends(&mut rig, 0)?;
        rig.device.enable(2, true)?;
        rig.device.enable(3, true)?;
        sends(&mut rig, 1)
    }),
    case("goes on with one pair when another is stopped.", STATES, |bench| {
        let mut rig = pairs(bench, 2, F::NONE)?;
        sends(&mut rig, 1)?;
        rig.device.enable(2, false)?;
        rig.device.enable(3, false)?;
        rig.device.stop_ring(2)?;
        equal("the base", rig.device.stop_ring(3)?, 1)?;
        for _ in 0..5 {
            sends(&mut rig, 0)?;
        }
        Ok(())
    }),
    case("serves the first pair while a second one was never set up.", STATES, |bench| {
        bench.need_traffic()?;
        let features = F::VERSION_1 | F::MQ;
        let device = bench.prepare(&Setup { features, pairs: 2, ..Setup::default() })?;
        for ring in 0..2 {
            device.start_ring(ring)?;
            device.open_ring(ring)?;
        }
        bench.rig_of(device)?.exchange(100)
    }),
    case("takes SET_FEATURES again for each pair.", MQ, |bench| {
        let mut rig = pairs(bench, 2, F::NONE)?;
        let features = rig.device.features | rig.device.peer.offered & F::PROTOCOL_FEATURES;
        rig.device.peer.tell(R::SetFeatures, &Payload::U64(features.0), &[])?;
        sends(&mut rig, 0)
    }),
    hostile("survives rings beyond the last one.", MQ, |bench| {
        let peer = bench.hello(P::MQ)?;
        drop(peer);
        for index in [255, 256, 257, 65535, 65536, u32::MAX] {
            for request in [R::SetVringNum, R::SetVringBase, R::GetVringBase, R::SetVringEnable] {
                let peer = bench.hello(P::MQ)?;
                let payload = Payload::VringState(VringState { index, num: 1 }).encode();
                let _ = peer.send(request.number(), crate::peer::VERSION, &payload, &[]);
                let _ = peer.barrier();
            }
        }
        Ok(())
    }),
];
