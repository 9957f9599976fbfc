//! Kicks and calls.

use std::os::fd::AsFd;
use std::time::Duration;

use wire::virtio::Features as F;

use crate::bench::{Bench, PLAIN, Rig, same};
use crate::case::{Rule, case};
use crate::device::{BUFFER, RX, TX, event, signalled};
use crate::peer::QUIET;
use crate::verdict::{Check, ensure};

const CALLS: &str = "virtio 1.3, 2.7.7.2";
const FEWER_CALLS: &str = "virtio 1.3, 2.7.7.2, SHOULD";
const PACKED_CALLS: &str = "virtio 1.3, 2.8.10";
const FEWER_PACKED_CALLS: &str = "virtio 1.3, 2.8.10, SHOULD";
const KICKS: &str = "virtio 1.3, 2.7.10.2";
const SET_VRING_CALL: &str = "vhost-user, \"VHOST_USER_SET_VRING_CALL\"";
const SET_VRING_KICK: &str = "vhost-user, \"VHOST_USER_SET_VRING_KICK\"";

/// A rig that has passed a few frames, so that nothing of the start is left over.
fn warm(bench: &Bench<'_>, features: F) -> Check<Rig> {
    let mut rig = bench.rig(features)?;
    rig.device.post(0, 16, BUFFER)?;
    for _ in 0..3 {
        rig.delivers(100)?;
    }
    settle(&rig);
    Ok(rig)
}

/// Takes the calls that have come, until none comes any more.
fn settle(rig: &Rig) {
    while rig.device.called(RX, QUIET) {}
    while rig.device.called(TX, Duration::ZERO) {}
}

/// Delivers a frame and looks whether the receive ring was called for it, or not.
fn calls(rig: &mut Rig, expected: bool) -> Check {
    let frame = rig.frame_back(100);
    rig.inject(PLAIN, &frame)?;
    // Before it has come, no call says nothing.
    rig.device.expect_without_calls(|found| same(found, &frame))?;
    let limit = if expected { rig.device.limit() } else { QUIET };
    let called = rig.device.called(RX, limit);
    let seen = if called { "it called" } else { "it did not call" };
    ensure(called == expected, seen)
}

fn asked(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = warm(bench, features)?;
    rig.device.rings[0].set_calls(&rig.device.memory, true);
    calls(&mut rig, true)
}

fn suppressed(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = warm(bench, features)?;
    rig.device.rings[0].set_calls(&rig.device.memory, false);
    calls(&mut rig, false)?;
    rig.device.rings[0].set_calls(&rig.device.memory, true);
    calls(&mut rig, true)
}

fn at_the_event(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = warm(bench, features | F::EVENT_IDX)?;
    rig.device.rings[0].call_at(&rig.device.memory, 0);
    calls(&mut rig, true)
}

fn before_the_event(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = warm(bench, features | F::EVENT_IDX)?;
    rig.device.rings[0].call_at(&rig.device.memory, 2);
    calls(&mut rig, false)?;
    calls(&mut rig, false)?;
    calls(&mut rig, true)
}

/// A driver that kicks only when it is asked to must get all its frames across, also after pauses in
/// which the back end may have gone to sleep.
fn kicks_when_asked(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = warm(bench, features)?;
    for _ in 0..10 {
        rig.listen()?;
        let frame = rig.frame(100);
        let buffer = rig.device.readable(&[&PLAIN[..], &frame].concat());
        rig.device.rings[1].offer(&rig.device.memory, &[buffer])?;
        if rig.device.rings[1].wants_kick(&rig.device.memory, 1) {
            rig.device.kick(TX);
        }
        rig.arrives(&frame)?;
        rig.device.drain(TX)?;
        let _ = rig.device.called(TX, Duration::from_millis(20));
    }
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("calls for used buffers of a split ring when calls are on.", CALLS, |bench| {
        asked(bench, F::NONE)
    }),
    case(
        "does not call for used buffers of a split ring while calls are off.",
        FEWER_CALLS,
        |bench| suppressed(bench, F::NONE),
    ),
    case("calls when the used index of a split ring passes used_event.", CALLS, |bench| {
        at_the_event(bench, F::NONE)
    }),
    case(
        "does not call before the used index of a split ring passes used_event.",
        FEWER_CALLS,
        |bench| before_the_event(bench, F::NONE),
    ),
    case("ignores the flags of a split ring with EVENT_IDX.", CALLS, |bench| {
        let mut rig = warm(bench, F::EVENT_IDX)?;
        rig.device.rings[0].set_calls(&rig.device.memory, false);
        rig.device.rings[0].call_at(&rig.device.memory, 0);
        calls(&mut rig, true)
    }),
    case("calls for used buffers of a packed ring when calls are on.", PACKED_CALLS, |bench| {
        asked(bench, F::RING_PACKED)
    }),
    case(
        "does not call for used buffers of a packed ring while calls are off.",
        FEWER_PACKED_CALLS,
        |bench| suppressed(bench, F::RING_PACKED),
    ),
    case("calls when a packed ring passes the driver's event offset.", PACKED_CALLS, |bench| {
        at_the_event(bench, F::RING_PACKED)
    }),
    case(
        "does not call before a packed ring passes the driver's event offset.",
        FEWER_PACKED_CALLS,
        |bench| before_the_event(bench, F::RING_PACKED),
    ),
    case("asks for the kicks that it needs on a split ring.", KICKS, |bench| {
        kicks_when_asked(bench, F::NONE)
    }),
    case("asks for the kicks that it needs on a split ring with EVENT_IDX.", KICKS, |bench| {
        kicks_when_asked(bench, F::EVENT_IDX)
    }),
    case("asks for the kicks that it needs on a packed ring.", PACKED_CALLS, |bench| {
        kicks_when_asked(bench, F::RING_PACKED)
    }),
    case(
        "asks for the kicks that it needs on a packed ring with EVENT_IDX.",
        PACKED_CALLS,
        |bench| kicks_when_asked(bench, F::RING_PACKED | F::EVENT_IDX),
    ),
    case("takes kicks for which there is nothing to do.", KICKS, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        for _ in 0..50 {
            rig.device.kick(TX);
            rig.device.kick(RX);
        }
        rig.exchange(100)
    }),
    case(
        "signals a call descriptor that was exchanged, and the former one no more.",
        SET_VRING_CALL,
        |bench| {
            let mut rig = warm(bench, F::NONE)?;
            let other = event(0)?;
            rig.device.set_call(RX, Some(other.as_fd()))?;
            settle(&rig);
            let _ = signalled(other.as_fd(), QUIET);
            calls(&mut rig, false)?;
            let limit = rig.device.limit();
            ensure(signalled(other.as_fd(), limit), "the new descriptor was not signalled")
        },
    ),
    case("waits for a kick descriptor that was exchanged.", SET_VRING_KICK, |bench| {
        let mut rig = warm(bench, F::NONE)?;
        let other = event(0)?;
        rig.device.set_kick(TX, Some(other.as_fd()))?;
        // Let it go to sleep.
        let _ = rig.device.called(TX, Duration::from_millis(20));
        rig.listen()?;
        let frame = rig.frame(100);
        let buffer = rig.device.readable(&[&PLAIN[..], &frame].concat());
        rig.device.rings[1].offer(&rig.device.memory, &[buffer])?;
        let _ = rustix::io::write(&other, &1u64.to_ne_bytes());
        rig.arrives(&frame).map(drop)
    }),
    case("calls for used buffers of a transmit ring when calls are on.", CALLS, |bench| {
        let mut rig = warm(bench, F::NONE)?;
        rig.listen()?;
        settle(&rig);
        let frame = rig.frame(100);
        rig.device.transmit(0, PLAIN, &frame)?;
        ensure(rig.device.called(TX, rig.device.limit()), "it did not call")
    }),
];
