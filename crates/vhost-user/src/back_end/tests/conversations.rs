//! What real front ends say, in their order.

use super::*;

/// What QEMU says once per connection.
fn qemu_connects(harness: &mut Harness) {
    let ask = |harness: &mut Harness, request| {
        let reply = harness.try_tell(request, Payload::Empty, vec![]).unwrap();
        reply.expect("a reply")
    };
    assert_eq!(ask(harness, R::GetFeatures), ACKED.0);
    let protocol = ask(harness, R::GetProtocolFeatures);
    assert_eq!(protocol, Offer::PROTOCOL.0);
    harness.tell(R::SetProtocolFeatures, Payload::U64(protocol), vec![]);
    assert_eq!(ask(harness, R::GetQueueNum), 2);
    assert_eq!(ask(harness, R::GetMaxMemSlots), 509);
    harness.tell(R::SetOwner, Payload::Empty, vec![]);
    assert_eq!(ask(harness, R::GetFeatures), ACKED.0);
    for ring in 0..2 {
        harness.tell(R::SetVringCall, attached(ring), vec![event()]);
        harness.tell(R::SetVringErr, attached(ring), vec![event()]);
    }
    for ring in 0..2 {
        harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
    }
}

/// What QEMU says when the guest's driver is ready. `regions`: with the memory, the first time.
fn qemu_starts(harness: &mut Harness, regions: bool) {
    // The interrupts were unmasked before.
    for ring in 0..2 {
        harness.tell(R::SetVringCall, attached(ring), vec![event()]);
    }
    for ring in 0..2 {
        harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
    }
    harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
    let status = harness.try_tell(R::GetStatus, Payload::Empty, vec![]).unwrap().unwrap();
    harness.tell(R::SetStatus, Payload::U64(status | 8), vec![]);
    if regions {
        let low = MemoryRegion { size: SIZE / 2, ..region() };
        let high = MemoryRegion {
            guest_address: 1 << 32,
            size: SIZE / 2,
            user_address: USER + SIZE / 2,
            mmap_offset: SIZE / 2,
        };
        for region in [low, high] {
            let file = harness.file();
            harness.tell(R::AddMemReg, Payload::SingleRegion(region), vec![file]);
        }
    }
    for ring in 0..2 {
        harness.tell(R::SetVringNum, state(ring, 256), vec![]);
        harness.tell(R::SetVringBase, state(ring, 0), vec![]);
        harness.tell(R::SetVringAddr, addresses(ring), vec![]);
        harness.tell(R::SetVringKick, attached(ring), vec![event()]);
    }
    let status = harness.try_tell(R::GetStatus, Payload::Empty, vec![]).unwrap().unwrap();
    assert_eq!(status, 8);
    harness.tell(R::SetStatus, Payload::U64(status | 1 | 2 | 4), vec![]);
}

/// How a version of QEMU stops a device.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// QEMU 7.2.
    ResetThenBases,
    /// QEMU 10.
    BasesThenReset,
}

fn qemu_stops(harness: &mut Harness, stop: Stop) {
    harness.position = 300;
    if let Stop::ResetThenBases = stop {
        harness.tell(R::SetStatus, Payload::U64(0), vec![]);
    }
    for ring in 0..2 {
        assert_eq!(harness.base(ring), 300, "{stop:?}");
    }
    if let Stop::BasesThenReset = stop {
        harness.tell(R::SetStatus, Payload::U64(0), vec![]);
    }
    assert!(!harness.runs(0) && !harness.runs(1));
    // The interrupts are masked after that.
    for ring in 0..2 {
        harness.tell(R::SetVringCall, attached(ring), vec![event()]);
    }
}

#[test]
fn qemu_starts_stops_and_starts_again() {
    for stop in [Stop::ResetThenBases, Stop::BasesThenReset] {
        let mut harness = Harness::new();
        qemu_connects(&mut harness);
        qemu_starts(&mut harness, true);
        let mut starts = vec![];
        for ring in 0..2 {
            let setup = harness.setup(ring);
            assert!(setup.enabled && setup.kick.is_some() && setup.call.is_some());
            assert_eq!((setup.base, setup.layout.size()), (0, 256));
            starts.push(setup.start);
        }
        assert_eq!(harness.device.features, FEATURES);
        assert_eq!(harness.device.memory.region_count(), 2);

        // A reboot: the memory stays shared, the rings start anew.
        qemu_stops(&mut harness, stop);
        qemu_starts(&mut harness, false);
        for ring in 0..2 {
            assert!(harness.enabled(ring) && harness.setup(ring).call.is_some());
            assert!(!starts.contains(&harness.setup(ring).start));
        }
        assert_eq!(harness.notices, []);
    }
}

#[test]
fn qemu_without_shared_memory_is_told_what_to_change() {
    // With configurable slots QEMU leaves out regions without a descriptor, and goes on.
    let mut harness = Harness::new();
    qemu_connects(&mut harness);
    harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
    harness.tell(R::SetVringNum, state(0, 256), vec![]);
    harness.tell(R::SetVringBase, state(0, 0), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    let violation = harness.refused(R::SetVringKick, attached(0), vec![event()]);
    assert!(matches!(violation, Violation::NotShared), "{violation}");
    assert!(violation.to_string().contains("share=on"));
}

#[test]
fn dpdk_virtio_user_sends_calls_first_and_one_table() {
    let mut harness = Harness::new();
    harness.tell(R::SetOwner, Payload::Empty, vec![]);
    harness.tell(R::SetProtocolFeatures, Payload::U64(ProtocolFeatures::REPLY_ACK.0), vec![]);
    for ring in 0..2 {
        harness.tell(R::SetVringCall, attached(ring), vec![event()]);
    }
    harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
    harness.share();
    for ring in 0..2 {
        harness.tell(R::SetVringNum, state(ring, 256), vec![]);
        harness.tell(R::SetVringBase, state(ring, 0), vec![]);
        harness.tell(R::SetVringAddr, addresses(ring), vec![]);
        harness.tell(R::SetVringKick, attached(ring), vec![event()]);
        assert!(!harness.enabled(ring as usize));
    }
    for ring in 0..2 {
        harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
        assert!(harness.enabled(ring as usize));
    }
}

#[test]
fn cloud_hypervisor_resets_without_stopping() {
    let mut harness = Harness::negotiated();
    for _ in 0..2 {
        harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
        harness.share();
        for ring in 0..2 {
            harness.tell(R::SetVringNum, state(ring, 256), vec![]);
        }
        for ring in 0..2 {
            harness.tell(R::SetVringAddr, addresses(ring), vec![]);
            harness.tell(R::SetVringBase, state(ring, 0), vec![]);
            harness.tell(R::SetVringCall, attached(ring), vec![event()]);
            harness.tell(R::SetVringKick, attached(ring), vec![event()]);
        }
        for ring in 0..2 {
            harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
            assert!(harness.enabled(ring as usize));
        }
        // The guest reboots: rings are disabled, the owner reset, everything said again.
        for ring in 0..2 {
            harness.tell(R::SetVringEnable, state(ring, 0), vec![]);
        }
        harness.tell(R::ResetOwner, Payload::Empty, vec![]);
        assert!(!harness.runs(0) && !harness.runs(1));
    }
}

#[test]
fn a_front_end_of_the_first_days_has_no_protocol_features() {
    let mut harness = Harness::new();
    harness.tell(R::SetFeatures, Payload::U64(Features::MRG_RXBUF.0), vec![]);
    harness.share();
    harness.set_up(0);
    assert!(harness.enabled(0), "without bit 30 a ring is enabled when it starts");
    assert_eq!(harness.device.features, Features::MRG_RXBUF);
    // It asks for no acknowledgements, and gets none even if it did.
    assert_eq!(harness.try_tell(R::SetOwner, Payload::Empty, vec![]).unwrap(), None);
}

#[test]
fn everything_may_come_in_any_order() {
    type Say = fn(&mut Harness);
    let parts: [Say; 6] = [
        |harness| harness.share(),
        |harness| harness.tell(R::SetVringNum, state(0, 256), vec![]),
        |harness| harness.tell(R::SetVringBase, state(0, 0), vec![]),
        |harness| harness.tell(R::SetVringAddr, addresses(0), vec![]),
        |harness| harness.tell(R::SetVringKick, attached(0), vec![event()]),
        |harness| harness.tell(R::SetVringCall, attached(0), vec![event()]),
    ];
    // Every order of the six, by Lehmer's code; then the ring is enabled.
    for code in 0..720usize {
        let mut harness = Harness::negotiated();
        let mut left: Vec<Say> = parts.to_vec();
        let mut rest = code;
        while !left.is_empty() {
            let say = left.remove(rest % left.len());
            rest /= left.len() + 1;
            say(&mut harness);
        }
        harness.tell(R::SetVringEnable, state(0, 1), vec![]);
        assert!(harness.enabled(0) && harness.setup(0).call.is_some(), "order {code}");
    }
}
