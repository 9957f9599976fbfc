//! A front end that breaks the rules: one test, one rule.

use super::*;
use crate::descriptor::tests::{LIMIT, at_once, slow};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::pipe;

fn raw(number: u32, need_reply: bool, payload: Vec<u8>, descriptors: Vec<OwnedFd>) -> Message {
    Message::request(number, need_reply, payload, descriptors)
}

#[test]
fn a_reply_to_nothing() {
    let mut harness = Harness::new();
    let violation = harness.handle(Message::reply_to(1, vec![])).unwrap_err();
    assert!(matches!(violation, Violation::Reply { number: 1 }));
}

#[test]
fn unknown_requests_are_refused_and_forgiven() {
    let mut harness = Harness::negotiated();
    for number in [0, 45, 1000, u32::MAX] {
        // With descriptors and of any size, because we cannot know.
        let reply = harness.handle(raw(number, true, vec![0; 100], vec![event()])).unwrap();
        assert_eq!(reply.unwrap().payload, 1u64.to_ne_bytes());
        let reply = harness.handle(raw(number, false, vec![], vec![])).unwrap();
        assert!(reply.is_none());
        assert_eq!(harness.notices.pop(), Some(Notice::Unknown { number }));
    }
}

#[test]
fn requests_that_were_not_negotiated() {
    for request in R::ALL.iter().copied() {
        let message = request.message();
        let Gate::Protocol(_) = message.gate else {
            continue;
        };
        let mut harness = Harness::new();
        let payload = vec![0; message.payload.sizes().0];
        let descriptors = (0..message.descriptors.0).map(|_| event()).collect();
        let result = harness.handle(raw(request.number(), true, payload, descriptors));
        match message.answer {
            Answer::Reply(_) => {
                let violation = result.unwrap_err();
                assert!(matches!(violation, Violation::NotNegotiated { .. }), "{request}");
            }
            Answer::Acknowledgement => {
                assert!(result.unwrap().is_none(), "{request}");
                assert_eq!(harness.notices, [Notice::NotNegotiated { request }]);
            }
        }
    }
}

#[test]
fn requests_that_are_not_served() {
    for request in [R::SetLogFd, R::GpuSetSocket] {
        let mut harness = Harness::negotiated();
        let reply = harness.try_tell(request, Payload::Empty, vec![event()]).unwrap();
        assert_eq!(reply, Some(1));
        assert_eq!(harness.notices, [Notice::NotServed { request }]);
    }
}

/// The requests that are served, and so have their form checked.
fn served() -> impl Iterator<Item = R> {
    R::ALL.iter().copied().filter(|request| match request.message().gate {
        Gate::Open => true,
        Gate::Offered(features) => ACKED.contains(features),
        Gate::Protocol(features) => Offer::PROTOCOL.contains(features),
    })
}

#[test]
fn every_wrong_size_of_every_request() {
    for request in served() {
        let message = request.message();
        let mut harness = Harness::negotiated();
        for size in 0..=300 {
            if message.payload.allows(size) {
                continue;
            }
            let violation = harness.handle(raw(request.number(), true, vec![0; size], vec![]));
            let violation = violation.unwrap_err();
            assert!(matches!(violation, Violation::Form { .. }), "{request} {size}: {violation}");
        }
    }
}

#[test]
fn every_wrong_count_of_descriptors_of_every_request() {
    for request in served() {
        let message = request.message();
        let (least, most) = message.descriptors;
        let mut harness = Harness::negotiated();
        for count in [0, 1, 2, 8, 9, 32, 253] {
            if (least..=most).contains(&count) {
                continue;
            }
            let descriptors = (0..count).map(|_| event()).collect();
            let payload = vec![0; message.payload.sizes().0];
            let violation = harness.handle(raw(request.number(), true, payload, descriptors));
            let violation = violation.unwrap_err();
            assert!(matches!(violation, Violation::Form { .. }), "{request} {count}: {violation}");
        }
    }
}

#[test]
fn features_that_were_not_offered() {
    let mut harness = Harness::new();
    let unoffered = Features::RING_PACKED | Features(1 << 4);
    let payload = Payload::U64(ACKED.union(unoffered).0);
    let violation = harness.refused(R::SetFeatures, payload, vec![]);
    assert!(
        matches!(violation, Violation::UnofferedFeatures { unoffered: bits } if bits == unoffered)
    );
    assert!(violation.to_string().contains("acknowledges bit 4 RING_PACKED, not offered"));

    let payload = Payload::U64(ProtocolFeatures::CONFIG.0);
    let violation = harness.refused(R::SetProtocolFeatures, payload, vec![]);
    assert!(violation.to_string().contains("CONFIG"));
}

#[test]
fn features_that_change_under_a_running_ring() {
    let mut harness = Harness::running();
    for features in [ACKED.without(Features::MRG_RXBUF), ACKED.without(Features::EVENT_IDX)] {
        let violation = harness.refused(R::SetFeatures, Payload::U64(features.0), vec![]);
        assert!(matches!(violation, Violation::FeaturesWhileRunning { .. }));
    }
    harness.base(0);
    harness.base(1);
    let payload = Payload::U64(ACKED.without(Features::MRG_RXBUF).0);
    harness.tell(R::SetFeatures, payload, vec![]);
}

#[test]
fn rings_that_do_not_exist() {
    let mut harness = Harness::negotiated();
    for request in [R::SetVringNum, R::SetVringBase, R::GetVringBase, R::SetVringEnable] {
        for index in [4, 255, 256, 257, 65536, u32::MAX] {
            let violation = harness.refused(request, state(index, 1), vec![]);
            assert!(matches!(violation, Violation::RingIndex { .. }), "{request} {index}");
        }
    }
    for index in [4, 256, u32::MAX] {
        let Payload::VringAddress(address) = addresses(0) else { unreachable!() };
        let payload = Payload::VringAddress(VringAddress { index, ..address });
        let violation = harness.refused(R::SetVringAddr, payload, vec![]);
        assert!(matches!(violation, Violation::RingIndex { .. }));
    }
    for request in [R::SetVringKick, R::SetVringCall, R::SetVringErr] {
        for ring in [4, 255] {
            let violation = harness.refused(request, attached(ring), vec![event()]);
            assert!(matches!(violation, Violation::RingIndex { .. }));
            let violation = harness.refused(request, unattached(ring), vec![]);
            assert!(matches!(violation, Violation::RingIndex { .. }));
        }
        let violation = harness.refused(request, Payload::U64(0x200), vec![event()]);
        assert!(matches!(violation, Violation::Payload { .. }));
    }
}

#[test]
fn ring_numbers_that_are_none() {
    let mut harness = Harness::negotiated();
    for size in [0, 32769, 65536, u32::MAX] {
        let violation = harness.refused(R::SetVringNum, state(0, size), vec![]);
        assert!(matches!(violation, Violation::RingSize { ring: 0, .. }), "{size}");
    }
    for size in [1, 2, 32768] {
        harness.tell(R::SetVringNum, state(0, size), vec![]);
    }
    for value in [2, u32::MAX] {
        let violation = harness.refused(R::SetVringEnable, state(0, value), vec![]);
        assert!(matches!(violation, Violation::RingEnable { ring: 0, .. }), "{value}");
    }
}

#[test]
fn a_ring_that_does_not_fit_its_format() {
    let packed = ACKED | Features::RING_PACKED;
    for (features, size, base, fits) in [
        (ACKED, 3, 0, false),
        (ACKED, 256, 65535, true),
        (ACKED, 256, 65536, false),
        (ACKED, 256, u32::MAX, false),
        (packed, 3, 0x8000_8000, true),
        (packed, 3, 0x8002_0002, true),
        (packed, 3, 0x8002_8003, false),
        (packed, 3, 0x8003_8002, false),
        (packed, 3, 3, false),
        (packed, 32768, u32::MAX, true),
    ] {
        let mut harness = Harness::with(PACKED_OFFER);
        harness.tell(R::SetFeatures, Payload::U64(features.0), vec![]);
        harness.share();
        harness.tell(R::SetVringEnable, state(0, 1), vec![]);
        harness.tell(R::SetVringNum, state(0, size), vec![]);
        harness.tell(R::SetVringBase, state(0, base), vec![]);
        harness.tell(R::SetVringAddr, large_addresses(0), vec![]);
        if fits {
            harness.tell(R::SetVringKick, attached(0), vec![event()]);
            assert!(harness.runs(0), "{size}, {base:#x}");
        } else {
            let violation = harness.refused(R::SetVringKick, attached(0), vec![event()]);
            assert!(matches!(violation, Violation::Ring { ring: 0, .. }), "{size}, {base:#x}");
        }
    }
}

#[test]
fn descriptors_that_contradict_the_payload() {
    let mut harness = Harness::negotiated();
    for request in [R::SetVringKick, R::SetVringCall, R::SetVringErr] {
        let violation = harness.refused(request, attached(0), vec![]);
        assert!(matches!(violation, Violation::RingDescriptor { attached: true, .. }));
        let violation = harness.refused(request, unattached(0), vec![event()]);
        assert!(matches!(violation, Violation::RingDescriptor { attached: false, .. }));
    }
}

/// Descriptors of every kind that is not made for events.
fn strange_descriptors() -> Vec<OwnedFd> {
    let (reader, writer) = pipe().unwrap();
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let open = |path, flags| open(path, flags, Mode::empty()).unwrap();
    vec![
        reader,
        writer,
        socket.into(),
        open("/", OFlags::RDONLY | OFlags::DIRECTORY),
        open("/dev/null", OFlags::RDWR),
        SharedMemory::create("strange", 4096).unwrap().as_fd().try_clone_to_owned().unwrap(),
    ]
}

#[test]
fn event_descriptors_of_another_kind() {
    for request in [R::SetVringKick, R::SetVringCall, R::SetVringErr] {
        for descriptor in strange_descriptors() {
            let mut harness = Harness::negotiated();
            let violation = harness.refused(request, attached(0), vec![descriptor]);
            assert!(matches!(violation, Violation::NotAnEventDescriptor { .. }), "{violation}");
        }
    }
}

#[test]
fn memory_descriptors_of_another_kind() {
    for descriptor in strange_descriptors().into_iter().chain([event()]) {
        let mut harness = Harness::negotiated();
        let table = Payload::MemoryTable(vec![region()]);
        let violation = harness.refused(R::SetMemTable, table, vec![descriptor]);
        assert!(matches!(violation, Violation::Memory { .. }), "{violation}");
    }
}

#[test]
fn memory_tables_that_cannot_be() {
    let second = MemoryRegion { guest_address: SIZE, user_address: USER + SIZE, ..region() };
    let tables = [
        ("size 0", vec![MemoryRegion { size: 0, ..region() }]),
        ("guest overflow", vec![MemoryRegion { guest_address: u64::MAX - 1, ..region() }]),
        ("user overflow", vec![MemoryRegion { user_address: u64::MAX - 1, ..region() }]),
        ("offset overflow", vec![MemoryRegion { mmap_offset: u64::MAX - 1, ..region() }]),
        ("beyond the file", vec![MemoryRegion { size: SIZE + 4096, ..region() }]),
        ("behind the file", vec![MemoryRegion { mmap_offset: 4096, ..region() }]),
        ("twice", vec![region(), region()]),
        ("guest overlap", vec![region(), MemoryRegion { guest_address: SIZE - 1, ..second }]),
        ("user overlap", vec![region(), MemoryRegion { user_address: USER + SIZE - 1, ..second }]),
    ];
    for (name, table) in tables {
        let mut harness = Harness::negotiated();
        let files = table.iter().map(|_| harness.file()).collect();
        let violation = harness.refused(R::SetMemTable, Payload::MemoryTable(table.clone()), files);
        assert!(matches!(violation, Violation::Memory { .. }), "{name}: {violation}");

        // The same, one by one.
        let mut harness = Harness::negotiated();
        let results: Vec<_> = table
            .iter()
            .map(|region| {
                let file = harness.file();
                harness.try_tell(R::AddMemReg, Payload::SingleRegion(*region), vec![file])
            })
            .collect();
        // A region of its own that comes again is none of these: see below.
        let is_refused = matches!(results.last(), Some(Err(Violation::Memory { .. })));
        assert_eq!(is_refused, name != "twice", "{name}");
    }
    // The same file twice, side by side, is legal.
    let mut harness = Harness::negotiated();
    let files = vec![harness.file(), harness.file()];
    harness.tell(R::SetMemTable, Payload::MemoryTable(vec![region(), second]), files);
}

#[test]
fn memory_that_is_not_shared() {
    let mut harness = Harness::negotiated();
    let violation = harness.refused(R::SetMemTable, Payload::MemoryTable(vec![]), vec![]);
    assert!(violation.to_string().contains("share=on"), "{violation}");
    let table = Payload::MemoryTable(vec![region()]);
    let violation = harness.refused(R::SetMemTable, table, vec![]);
    assert!(violation.to_string().contains("share=on"), "{violation}");
    let table = Payload::MemoryTable(vec![region()]);
    let files = (0..MAX_TABLE_REGIONS).map(|_| harness.file()).collect();
    let violation = harness.refused(R::SetMemTable, table, files);
    assert!(matches!(violation, Violation::RegionDescriptors { regions: 1, descriptors: 8 }));

    harness.set_up(0);
    let violation = harness.refused(R::SetVringEnable, state(0, 1), vec![]);
    assert!(matches!(violation, Violation::NotShared));
    let mut harness = Harness::new();
    harness.tell(R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), vec![]);
    harness.tell(R::SetVringNum, state(0, 256), vec![]);
    harness.tell(R::SetVringBase, state(0, 0), vec![]);
    harness.tell(R::SetVringAddr, addresses(0), vec![]);
    let violation = harness.refused(R::SetVringKick, attached(0), vec![event()]);
    assert!(matches!(violation, Violation::NotShared));
}

#[test]
fn a_region_that_is_not_there_is_not_removed() {
    let mut harness = Harness::negotiated();
    harness.share();
    for other in [
        MemoryRegion { guest_address: 4096, ..region() },
        MemoryRegion { user_address: USER + 4096, ..region() },
        MemoryRegion { size: SIZE - 4096, ..region() },
    ] {
        let violation = harness.refused(R::RemMemReg, Payload::SingleRegion(other), vec![]);
        assert!(matches!(violation, Violation::Memory { request: R::RemMemReg, .. }));
    }
}

/// What QEMU before version 8 says for each queue pair.
#[test]
fn a_region_that_is_added_or_removed_again() {
    let mut harness = Harness::negotiated();
    let file = harness.file();
    let again = file.try_clone().unwrap();
    harness.tell(R::AddMemReg, Payload::SingleRegion(region()), vec![file]);
    let memory = harness.session.device().memory.clone();
    harness.tell(R::AddMemReg, Payload::SingleRegion(region()), vec![again]);
    assert!(Arc::ptr_eq(&memory, &harness.session.device().memory), "nothing has changed");

    // Another part of the file, or another file, is not the same.
    let moved = MemoryRegion { mmap_offset: 4096, size: SIZE - 4096, ..region() };
    let other = SharedMemory::create("another", SIZE).unwrap();
    let other = other.as_fd().try_clone_to_owned().unwrap();
    let file = harness.file();
    for (region, file) in [(moved, file), (region(), other)] {
        let violation = harness.refused(R::AddMemReg, Payload::SingleRegion(region), vec![file]);
        assert!(violation.to_string().contains("overlap"), "{violation}");
    }

    harness.tell(R::RemMemReg, Payload::SingleRegion(region()), vec![]);
    assert!(harness.notices.is_empty());
    harness.tell(R::RemMemReg, Payload::SingleRegion(region()), vec![]);
    let notice = harness.notices.pop().map(|notice| notice.to_string());
    assert_eq!(notice.as_deref(), Some("no memory to remove at guest address 0x0"));
}

#[test]
fn one_region_too_many() {
    let mut harness = Harness::negotiated();
    let page = |index: u64| {
        Payload::SingleRegion(MemoryRegion {
            guest_address: index * 4096,
            size: 4096,
            user_address: USER + index * 4096,
            mmap_offset: 0,
        })
    };
    for index in 0..MAX_REGIONS as u64 {
        let file = harness.file();
        harness.tell(R::AddMemReg, page(index), vec![file]);
    }
    let file = harness.file();
    let violation = harness.refused(R::AddMemReg, page(MAX_REGIONS as u64), vec![file]);
    assert!(violation.to_string().contains("509"), "{violation}");
    harness.tell(R::RemMemReg, page(0), vec![]);
    let file = harness.file();
    harness.tell(R::AddMemReg, page(0), vec![file]);
}

#[test]
fn rings_that_lie_nowhere() {
    let Payload::VringAddress(right) = addresses(0) else { unreachable!() };
    let wrong = [
        VringAddress { descriptors: 0, ..right },
        VringAddress { descriptors: USER - 16, ..right },
        VringAddress { descriptors: USER + SIZE, ..right },
        VringAddress { descriptors: USER + SIZE - 4096 + 16, ..right },
        VringAddress { available: u64::MAX - 1, ..right },
        VringAddress { available: USER + SIZE - 516, ..right },
        VringAddress { used: USER + SIZE - 2052, ..right },
        VringAddress { descriptors: right.descriptors + 8, ..right },
        VringAddress { available: right.available + 1, ..right },
        VringAddress { used: right.used + 2, ..right },
    ];
    for address in wrong {
        let mut harness = Harness::negotiated();
        harness.share();
        harness.tell(R::SetVringEnable, state(0, 1), vec![]);
        harness.tell(R::SetVringNum, state(0, RING_SIZE.into()), vec![]);
        harness.tell(R::SetVringBase, state(0, 0), vec![]);
        harness.tell(R::SetVringAddr, Payload::VringAddress(address), vec![]);
        let violation = harness.refused(R::SetVringKick, attached(0), vec![event()]);
        assert!(matches!(violation, Violation::Ring { ring: 0, .. }), "{violation}");
    }
    for address in [
        VringAddress { descriptors: USER + SIZE - 4096, ..right },
        VringAddress { available: USER + SIZE - 518, ..right },
        VringAddress { used: USER + SIZE - 2056, ..right },
    ] {
        let mut harness = Harness::negotiated();
        harness.share();
        harness.set_up(0);
        harness.tell(R::SetVringAddr, Payload::VringAddress(address), vec![]);
        harness.tell(R::SetVringKick, attached(0), vec![event()]);
        assert!(harness.runs(0), "at the very end");
    }
}

#[test]
fn a_session_survives_its_own_refusals() {
    // The caller closes the connection, but nothing may hang on that.
    let mut harness = Harness::running();
    harness.refused(R::SetVringNum, state(0, 32769), vec![]);
    harness.refused(R::SetMemTable, Payload::MemoryTable(vec![]), vec![]);
    harness.tell(R::SetVringEnable, state(0, 0), vec![]);
    assert!(harness.runs(0) && !harness.enabled(0));
}

proptest::proptest! {
    /// Any sequence of requests with small numbers in it: no panic, and what runs lies in memory.
    #[test]
    fn any_sequence_of_requests(
        requests in proptest::collection::vec((1u32..=45, 0u32..3, 0u32..5, proptest::bool::ANY), 0..60)
    ) {
        let mut harness = Harness::negotiated();
        for (number, ring, value, good) in requests {
            let request = R::from_number(number);
            let (payload, descriptors) = match request {
                Some(R::SetMemTable) => {
                    (Payload::MemoryTable(vec![region()]), vec![harness.file()])
                }
                Some(R::AddMemReg) => (Payload::SingleRegion(region()), vec![harness.file()]),
                Some(R::RemMemReg) => (Payload::SingleRegion(region()), vec![]),
                Some(R::SetVringAddr) => (addresses(ring % 2), vec![]),
                Some(R::SetVringKick | R::SetVringCall | R::SetVringErr) if good => {
                    (attached(ring % 2), vec![event()])
                }
                Some(R::SetVringKick | R::SetVringCall) => (unattached(ring % 2), vec![]),
                Some(R::SetVringNum) if good => (state(ring % 2, 1 << value), vec![]),
                Some(R::SetFeatures) => (Payload::U64(ACKED.0), vec![]),
                Some(R::SetProtocolFeatures) => (Payload::U64(Offer::PROTOCOL.0), vec![]),
                Some(request) if request.message().payload == Shape::VringState => {
                    (state(ring, value), vec![])
                }
                Some(request) if request.message().payload == Shape::Empty => {
                    (Payload::Empty, vec![])
                }
                _ => (Payload::U64(value.into()), vec![]),
            };
            let _ = harness.handle(raw(number, value % 2 == 0, payload.encode(), descriptors));
            for setup in harness.device.rings.iter().flatten() {
                proptest::prop_assert!(setup.layout.size().is_power_of_two());
                proptest::prop_assert!(harness.device.memory.region_count() > 0);
            }
        }
    }
}

/// A Unix socket in whose queue another descriptor waits.
fn stuffed(inner: OwnedFd) -> OwnedFd {
    let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut sender = crate::Connection::new(one.into()).unwrap();
    sender.send(raw(1000, false, vec![], vec![inner])).unwrap();
    // So that the one in the queue is the last.
    assert!(sender.closer().wait(LIMIT));
    two.into()
}

#[test]
fn descriptors_that_are_refused_are_not_waited_for() {
    let refused: [(R, Payload); 4] = [
        // It says that there is none.
        (R::SetVringCall, unattached(0)),
        (R::SetVringKick, attached(250)),
        (R::SetVringErr, attached(0)),
        (R::SetMemTable, Payload::MemoryTable(vec![region()])),
    ];
    for (request, payload) in refused {
        for is_stuffed in [false, true] {
            let (descriptor, _other) = slow();
            let descriptor = if is_stuffed { stuffed(descriptor) } else { descriptor };
            at_once(|| Harness::negotiated().refused(request, payload.clone(), vec![descriptor]));
        }
    }
    // Forgiven, and not waited for either.
    for number in [1000, R::GpuSetSocket.number()] {
        let (descriptor, _other) = slow();
        let message = raw(number, false, vec![], vec![descriptor]);
        at_once(|| Harness::negotiated().handle(message).map(|_| ())).unwrap();
    }
    // Refused before the session has seen it.
    let (descriptor, _other) = slow();
    at_once(|| drop(raw(1, false, vec![], vec![descriptor])));
}
