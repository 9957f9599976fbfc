//! The life of a ring, and what the worker is told about it.

use super::*;

#[test]
fn the_device_is_handed_over_only_when_it_changes() {
    let mut harness = Harness::running();
    let device = harness.device.clone();
    for (request, payload) in [
        (R::GetFeatures, Payload::Empty),
        (R::SetFeatures, Payload::U64(ACKED.0)),
        (R::SetOwner, Payload::Empty),
        (R::SetVringEnable, state(0, 1)),
        (R::SetVringNum, state(0, RING_SIZE.into())),
        (R::SetVringAddr, addresses(0)),
        (R::SetStatus, Payload::U64(15)),
    ] {
        harness.try_tell(request, payload, vec![]).unwrap();
        assert!(Arc::ptr_eq(&device, &harness.device), "{request}");
    }
    harness.tell(R::SetVringEnable, state(0, 0), vec![]);
    assert!(!Arc::ptr_eq(&device, &harness.device));
}

#[test]
fn talk_alone_changes_no_device() {
    let mut session = Session::new(OFFER);
    let step = session.handle(Message::request(R::GetFeatures.number(), false, vec![], vec![]));
    assert!(step.unwrap().device.is_none());
}

#[test]
fn the_former_device_lives_until_the_answer() {
    let mut harness = Harness::running();
    let former = Arc::downgrade(&harness.device);
    let message = Message::request(R::GetVringBase.number(), false, state(0, 0).encode(), vec![]);
    let step = harness.session.handle(message).unwrap();
    // The worker swaps and lets go.
    harness.device = step.device.clone().unwrap();
    harness.session.stopped(0, 77);
    assert!(former.upgrade().is_some());
    let reply = harness.session.answer(step).unwrap();
    assert!(former.upgrade().is_none());
    assert_eq!(
        Payload::decode(Shape::VringState, &reply.payload),
        Some(Payload::VringState(VringState { index: 0, num: 77 }))
    );
}

#[test]
fn new_descriptors_do_not_restart_a_ring() {
    let mut harness = Harness::running();
    let before = harness.setup(1).clone();
    harness.tell(R::SetVringCall, attached(1), vec![event()]);
    harness.tell(R::SetVringKick, attached(1), vec![event()]);
    let after = harness.setup(1).clone();
    assert_eq!(before.start, after.start);
    assert!(!Arc::ptr_eq(before.call.as_ref().unwrap(), after.call.as_ref().unwrap()));
    assert!(!Arc::ptr_eq(before.kick.as_ref().unwrap(), after.kick.as_ref().unwrap()));
    harness.tell(R::SetVringCall, unattached(1), vec![]);
    harness.tell(R::SetVringKick, unattached(1), vec![]);
    let after = harness.setup(1);
    assert!(after.call.is_none() && after.kick.is_none());
    assert_eq!(before.start, after.start);
}

#[test]
fn a_ring_without_descriptors_runs_polled() {
    let mut harness = Harness::negotiated();
    harness.share();
    harness.tell(R::SetVringNum, state(0, 1), vec![]);
    harness.tell(R::SetVringBase, state(0, 0), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    assert!(!harness.runs(0));
    harness.tell(R::SetVringKick, unattached(0), vec![]);
    let setup = harness.setup(0);
    assert!(setup.kick.is_none() && setup.call.is_none() && !setup.enabled);
    assert_eq!(setup.layout.size(), 1);
}

#[test]
fn rings_are_judged_one_by_one() {
    let mut harness = Harness::negotiated();
    harness.share();
    harness.set_up(1);
    assert!(harness.runs(1) && !harness.runs(0));
    harness.tell(R::SetVringEnable, state(0, 1), vec![]);
    assert!(!harness.enabled(1));
}

#[test]
fn descriptors_never_block_the_worker() {
    let mut harness = Harness::negotiated();
    harness.share();
    harness.set_up(0);
    let setup = harness.setup(0);
    for descriptor in [setup.kick.as_ref().unwrap(), setup.call.as_ref().unwrap()] {
        let flags = rustix::fs::fcntl_getfl(descriptor).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}

#[test]
fn a_stopped_ring_needs_a_new_kick() {
    let mut harness = Harness::running();
    let before = harness.setup(0).start;
    harness.position = 1234;
    assert_eq!(harness.base(0), 1234);
    assert!(!harness.runs(0) && harness.runs(1));
    assert_eq!(harness.base(0), 1234, "asked twice");
    harness.tell(R::SetVringBase, state(0, 1234), vec![]);
    assert!(!harness.runs(0));
    harness.set_used_index(0, 1234);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    let setup = harness.setup(0);
    assert!(setup.enabled && setup.call.is_some());
    assert_eq!(setup.base, 1234);
    assert_ne!(setup.start, before);
}

#[test]
fn one_ring_is_reset_and_the_other_does_not_notice() {
    // What QEMU sends when a driver resets a ring (VIRTIO_F_RING_RESET) and enables it again with
    // another size: nothing about features, memory, or SET_VRING_ENABLE.
    for (features, first) in [(Features::NONE, 0), (Features::RING_PACKED, 0x8000_8000)] {
        let mut harness = Harness::with(PACKED_OFFER);
        harness.tell(R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), vec![]);
        harness.tell(R::SetFeatures, Payload::U64((ACKED | features).0), vec![]);
        harness.share();
        for ring in 0..2 {
            harness.set_up(ring);
            harness.tell(R::SetVringEnable, state(ring, 1), vec![]);
        }
        for (round, ring) in [1, 0, 0, 1, 1].into_iter().enumerate() {
            let other = harness.setup(1 - ring).clone();
            let before = harness.setup(ring).clone();
            let number = ring as u32;
            harness.position = first + 3;
            assert_eq!(harness.base(number), first + 3);
            assert!(!harness.runs(ring));

            let size = 16 << round;
            harness.tell(R::SetVringNum, state(number, size), vec![]);
            harness.tell(R::SetVringBase, state(number, first), vec![]);
            let Payload::VringAddress(address) = addresses(number) else { unreachable!() };
            let moved = 0x8_0000 + 0x4000 * round as u64;
            let address = VringAddress {
                descriptors: address.descriptors + moved,
                available: address.available + moved,
                used: address.used + moved,
                ..address
            };
            harness.tell(R::SetVringAddr, Payload::VringAddress(address), vec![]);
            assert!(!harness.runs(ring), "not before SET_VRING_KICK");
            harness.tell(R::SetVringKick, attached(number), vec![event()]);
            harness.tell(R::SetVringCall, attached(number), vec![event()]);
            let after = harness.setup(ring);
            assert!(after.enabled, "as it was");
            assert_eq!((after.base, u32::from(after.layout.size())), (first, size));
            assert_ne!(after.start, before.start);
            let still = harness.setup(1 - ring);
            assert_eq!(still.start, other.start);
            assert!(still.is_same(&other));
        }
        assert_eq!(harness.notices, []);
    }
}

#[test]
fn a_ring_that_never_ran_returns_the_base_it_was_told() {
    let mut harness = Harness::negotiated();
    assert_eq!(harness.base(1), 0);
    harness.tell(R::SetVringBase, state(1, 65535), vec![]);
    assert_eq!(harness.base(1), 65535);
}

#[test]
fn a_ring_resumes_at_the_used_index() {
    // A front end that takes the available index for the base would skip what was not completed.
    let mut harness = Harness::negotiated();
    harness.share();
    harness.set_used_index(0, 65530);
    harness.tell(R::SetVringNum, state(0, 256), vec![]);
    harness.tell(R::SetVringBase, state(0, 4), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    assert_eq!(harness.setup(0).base, 65530);
}

#[test]
fn a_packed_ring_resumes_where_its_base_says_that_using_had_got_to() {
    // Both halves equal; no upper half; what was taken and not used.
    for (base, resumed) in [
        (0x8000_8000, 0x8000_8000),
        (0x8000, 0x8000_8000),
        (5, 0x0005_0005),
        (0, 0),
        (0x8007_0003, 0x8007_8007),
    ] {
        let mut harness = Harness::with(PACKED_OFFER);
        harness.tell(R::SetFeatures, Payload::U64((ACKED | Features::RING_PACKED).0), vec![]);
        harness.share();
        harness.tell(R::SetVringNum, state(0, 12), vec![]);
        harness.tell(R::SetVringBase, state(0, base), vec![]);
        assert_eq!(harness.base(0), base, "a ring that did not run");
        harness.tell(R::SetVringAddr, addresses(0), vec![]);
        harness.tell(R::SetVringKick, attached(0), vec![event()]);
        let setup = harness.setup(0);
        assert!(matches!(setup.layout, virtqueue::Layout::Packed(_)));
        assert_eq!((setup.base, setup.layout.size()), (resumed, 12));
        harness.position = 0x000B_000B;
        assert_eq!(harness.base(0), 0x000B_000B);
    }
}

#[test]
fn telling_a_running_ring_something_else_stops_it() {
    let other = match addresses(0) {
        Payload::VringAddress(address) => {
            Payload::VringAddress(VringAddress { used: address.used + 0x4000, ..address })
        }
        _ => unreachable!(),
    };
    for (request, payload) in
        [(R::SetVringNum, state(0, 128)), (R::SetVringBase, state(0, 0)), (R::SetVringAddr, other)]
    {
        let mut harness = Harness::running();
        let before = harness.setup(0).start;
        harness.tell(request, payload, vec![]);
        assert!(!harness.runs(0) && harness.runs(1), "{request}");
        harness.tell(R::SetVringKick, attached(0), vec![event()]);
        assert_ne!(harness.setup(0).start, before, "{request}");
    }
}

#[test]
fn memory_changes_move_running_rings() {
    let mut harness = Harness::running();
    let start = harness.setup(0).start;
    harness.share();
    assert_eq!(harness.setup(0).start, start, "an identical table");

    let more = MemoryRegion { guest_address: 1 << 40, user_address: 1 << 40, ..region() };
    let file = harness.file();
    harness.tell(R::AddMemReg, Payload::SingleRegion(more), vec![file]);
    assert_eq!(harness.device.memory.region_count(), 2);
    // A descriptor with REM_MEM_REG is accepted, and closed.
    let file = harness.file();
    harness.tell(R::RemMemReg, Payload::SingleRegion(more), vec![file]);
    assert_eq!(harness.device.memory.region_count(), 1);
    assert_eq!(harness.setup(0).start, start);
    assert_eq!(harness.notices, []);
}

#[test]
fn memory_that_goes_away_stops_its_rings() {
    let mut harness = Harness::running();
    let start = harness.setup(0).start;
    harness.position = 9;
    // The offset of a removal is not meaningful.
    let removed = MemoryRegion { mmap_offset: 1 << 20, ..region() };
    harness.tell(R::RemMemReg, Payload::SingleRegion(removed), vec![]);
    assert!(!harness.runs(0) && !harness.runs(1));
    assert_eq!(harness.device.memory.region_count(), 0);
    assert!(matches!(harness.notices[0], Notice::RingLost { ring: 0, .. }));
    assert_eq!(harness.notices.len(), 2);

    // It comes back: the ring goes on where it was.
    harness.set_used_index(0, 9);
    let file = harness.file();
    harness.tell(R::AddMemReg, Payload::SingleRegion(region()), vec![file]);
    assert_ne!(harness.setup(0).start, start);
    assert_eq!(harness.setup(0).base, 9);

    harness.tell(R::RemMemReg, Payload::SingleRegion(region()), vec![]);
    assert_eq!(harness.base(0), 9);
}

#[test]
fn resets_forget_the_driver_and_keep_the_connection() {
    for (request, payload) in [(R::ResetDevice, Payload::Empty), (R::SetStatus, Payload::U64(0))] {
        let mut harness = Harness::running();
        harness.tell(request, payload, vec![]);
        assert!(!harness.runs(0) && !harness.runs(1));
        assert_eq!(harness.device.features, Features::NONE);
        assert_eq!(harness.device.memory.region_count(), 1);
        let status = harness.try_tell(R::GetStatus, Payload::Empty, vec![]).unwrap();
        assert_eq!(status, Some(0));

        harness.tell(R::SetFeatures, Payload::U64(ACKED.0), vec![]);
        harness.tell(R::SetVringNum, state(0, 256), vec![]);
        harness.tell(R::SetVringBase, state(0, 0), vec![]);
        harness.tell(R::SetVringAddr, addresses(0), vec![]);
        harness.tell(R::SetVringKick, attached(0), vec![event()]);
        let setup = harness.setup(0);
        assert!(setup.call.is_some() && !setup.enabled);
    }
}

#[test]
fn features_reach_the_worker_without_what_has_no_effect() {
    let mut harness = Harness::new();
    let acked = Features::VERSION_1 | Features::GUEST_TSO4 | Features::PROTOCOL_FEATURES;
    harness.tell(R::SetFeatures, Payload::U64(acked.0), vec![]);
    assert_eq!(harness.device.features, Features::VERSION_1);
}

#[test]
fn the_mtu_is_checked() {
    let mut harness = Harness::negotiated();
    for (mtu, answer) in [(67, 1), (68, 0), (1500, 0), (9000, 0), (9001, 1), (65536 + 1500, 1)] {
        harness.event = None;
        let reply = harness.try_tell(R::NetSetMtu, Payload::U64(mtu), vec![]).unwrap();
        assert_eq!(reply, Some(answer), "{mtu}");
        let event = (answer == 0).then_some(Event::Mtu(mtu as u16));
        assert_eq!(harness.event, event);
    }
    assert_eq!(harness.notices.len(), 3);
    assert_eq!(harness.notices[0].to_string(), "refused an MTU of 67: this port takes 68 to 9000");
}

#[test]
fn announcements_carry_an_address() {
    let mut harness = Harness::negotiated();
    let value = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    harness.tell(R::SendRarp, Payload::U64(value), vec![]);
    let address = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(harness.event, Some(Event::Announce(address)));

    let broadcast = harness.try_tell(R::SendRarp, Payload::U64(u64::MAX), vec![]).unwrap();
    assert_eq!(broadcast, Some(1));
}

/// Who counts pairs may have as many as were promised, and so may who counts rings; every ring that
/// either may name is there, and no other.
#[test]
fn both_readings_of_the_queue_number_work() {
    for (queue_pairs, number) in [(1, 2), (4, 8), (63, 126), (64, 128), (128, 128)] {
        let mut session = Session::new(Offer { queue_pairs, ..OFFER });
        let rings = session.device().rings.len();
        assert_eq!(rings, 2 * number, "{queue_pairs} pairs");
        let all = Payload::U64(Offer::PROTOCOL.0).encode();
        let mut tell = |request: R, payload: Vec<u8>| {
            let message = Message::request(request.number(), false, payload, vec![]);
            let step = session.handle(message)?;
            Ok::<_, Violation>(session.answer(step))
        };
        tell(R::SetProtocolFeatures, all).unwrap();
        let reply = tell(R::GetQueueNum, vec![]).unwrap().expect("a reply");
        assert_eq!(reply.payload, Payload::U64(number as u64).encode());
        for (index, exists) in [(rings - 1, true), (rings, false)] {
            let payload = state(index as u32, 1).encode();
            assert_eq!(tell(R::SetVringEnable, payload).is_ok(), exists, "ring {index}");
        }
    }
}

/// A packed ring says nowhere in memory how far it has got.
const PACKED_START: u32 = 0x8000_8000;
const PACKED_LEFT: u32 = 0x8039_8039;

/// A session with a packed ring that runs, and that the worker leaves at `PACKED_LEFT`.
fn packed() -> Harness {
    let mut harness = Harness::with(PACKED_OFFER);
    harness.tell(R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), vec![]);
    harness.tell(R::SetFeatures, Payload::U64((ACKED | Features::RING_PACKED).0), vec![]);
    harness.share();
    harness.tell(R::SetVringNum, state(0, RING_SIZE.into()), vec![]);
    harness.tell(R::SetVringBase, state(0, PACKED_START), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    assert_eq!(harness.setup(0).base, PACKED_START);
    harness.position = PACKED_LEFT;
    harness
}

#[test]
fn a_packed_ring_goes_on_where_it_was_when_its_memory_comes_back() {
    let mut harness = packed();
    for _ in 0..2 {
        harness.tell(R::RemMemReg, Payload::SingleRegion(region()), vec![]);
        assert!(!harness.runs(0));
        let file = harness.file();
        harness.tell(R::AddMemReg, Payload::SingleRegion(region()), vec![file]);
        assert_eq!(harness.setup(0).base, harness.position);
        harness.position += 0x0001_0001;
    }
    harness.tell(R::RemMemReg, Payload::SingleRegion(region()), vec![]);
    assert_eq!(harness.base(0), harness.position);
}

#[test]
fn a_packed_ring_that_is_told_no_base_goes_on_where_it_was() {
    let elsewhere = |harness: &mut Harness| {
        let Payload::VringAddress(address) = addresses(0) else { unreachable!() };
        let address = VringAddress { descriptors: address.descriptors + 0x8000, ..address };
        harness.tell(R::SetVringAddr, Payload::VringAddress(address), vec![]);
    };
    let stops: [&dyn Fn(&mut Harness); 3] = [
        &|harness| assert_eq!(harness.base(0), PACKED_LEFT),
        &|harness| harness.tell(R::SetVringNum, state(0, 128), vec![]),
        &elsewhere,
    ];
    for stop in stops {
        let mut harness = packed();
        stop(&mut harness);
        assert!(!harness.runs(0));
        harness.tell(R::SetVringKick, attached(0), vec![event()]);
        assert_eq!(harness.setup(0).base, PACKED_LEFT);
    }
    // Unless the ring has become too small for that.
    let mut harness = packed();
    harness.tell(R::SetVringNum, state(0, 0x39), vec![]);
    harness.tell(R::SetVringEnable, state(0, 1), vec![]);
    let violation = harness.refused(R::SetVringKick, attached(0), vec![event()]);
    let says = "its base is 0x80398039, no place in a packed ring of 57";
    assert!(violation.to_string().contains(says), "{violation}");
}

#[test]
fn a_base_that_is_told_counts_whatever_the_worker_says_of_the_last_one() {
    // While the ring runs, and after it has stopped.
    let mut harness = packed();
    harness.tell(R::SetVringBase, state(0, 0x0005_0005), vec![]);
    assert!(!harness.runs(0));
    assert_eq!(harness.base(0), 0x0005_0005);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    assert_eq!(harness.setup(0).base, 0x0005_0005);

    harness.base(0);
    harness.tell(R::SetVringBase, state(0, 0x0006_0006), vec![]);
    assert_eq!(harness.base(0), 0x0006_0006);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    assert_eq!(harness.setup(0).base, 0x0006_0006);
}

#[test]
fn a_ring_that_was_reset_begins_where_it_is_told_to() {
    let mut harness = packed();
    harness.tell(R::ResetDevice, Payload::Empty, vec![]);
    harness.tell(R::SetFeatures, Payload::U64((ACKED | Features::RING_PACKED).0), vec![]);
    assert_eq!(harness.base(0), PACKED_LEFT, "for whoever asks only then");
    harness.tell(R::SetVringNum, state(0, RING_SIZE.into()), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    harness.tell(R::SetVringKick, attached(0), vec![event()]);
    assert!(!harness.runs(0), "it was told no base");
    harness.tell(R::SetVringBase, state(0, PACKED_START), vec![]);
    assert_eq!(harness.setup(0).base, PACKED_START);
}

#[test]
fn a_packed_ring_that_was_told_nothing_stands_at_its_start() {
    let mut harness = Harness::with(PACKED_OFFER);
    assert_eq!(harness.base(1), 0);
    harness.tell(R::SetFeatures, Payload::U64((ACKED | Features::RING_PACKED).0), vec![]);
    assert_eq!(harness.base(1), PACKED_START);
}

/// A program that offers what nobody serves finds out before its first guest does.
#[test]
fn an_offer_that_cannot_be_kept_is_not_made() {
    let refused = |offer: Offer| {
        let made = std::panic::catch_unwind(|| drop(Session::new(offer)));
        made.err().map(|panic| *panic.downcast::<String>().unwrap()).unwrap_or_default()
    };
    assert_eq!(refused(Offer { features: Offer::FEATURES, queue_pairs: 128, ..OFFER }), "");
    let features = Features::VERSION_1 | Features::LOG_ALL | Features::HASH_REPORT;
    let says = "the offer has features that nobody serves: LOG_ALL HASH_REPORT";
    assert_eq!(refused(Offer { features, ..OFFER }), says);
    let protocol = Offer::PROTOCOL | ProtocolFeatures::LOG_SHMFD;
    let says = "the offer has features that nobody serves: LOG_SHMFD";
    assert_eq!(refused(Offer { protocol, ..OFFER }), says);
    for queue_pairs in [0, 129, u16::MAX] {
        let says = format!("the offer has {queue_pairs} queue pairs, not 1 to 128");
        assert_eq!(refused(Offer { queue_pairs, ..OFFER }), says);
    }
}
