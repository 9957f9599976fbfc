//! 10 000 rounds of everything that carries a descriptor leave none behind.
//!
//! Alone in its process: other tests would open and close descriptors while it counts.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use memory::SharedMemory;
use ringway_vhost_user::back_end::{Offer, Session, Violation};
use ringway_vhost_user::{Connection, Incoming, Message};
use rustix::event::{EventfdFlags, eventfd};
use wire::vhost_user::{
    FrontEndRequest as R, MemoryRegion, Payload, RingDescriptor, VringAddress, VringState,
};
use wire::virtio::Features;

const ROUNDS: usize = 10_000;
const SIZE: u64 = 0x10000;
const LIMIT: Duration = Duration::from_secs(10);

/// Open descriptors and mappings of this process.
fn resources() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors, maps.lines().filter(|line| line.contains("leak test")).count())
}

/// One message through a socket into the session, as a program does it.
fn say(
    session: &mut Session,
    (peer, connection): (&mut Connection, &mut Connection),
    request: R,
    payload: Payload,
    descriptors: &[&OwnedFd],
) -> Result<(), Violation> {
    let owned = descriptors.iter().map(|descriptor| descriptor.try_clone().unwrap()).collect();
    let message = Message::request(request.number(), false, payload.encode(), owned);
    assert!(peer.send(message).unwrap());
    let Incoming::Message(message) = connection.receive().unwrap() else { panic!("no message") };
    let step = session.handle(message)?;
    session.answer(step);
    Ok(())
}

#[test]
fn rounds_of_everything_leave_no_descriptor_behind() {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let memory = SharedMemory::create("leak test", SIZE).unwrap();
    rustix::io::pwrite(&memory, &[0; SIZE as usize], 0).unwrap();
    let memory = memory.as_fd().try_clone_to_owned().unwrap();
    let region = MemoryRegion { guest_address: 0, size: SIZE, user_address: SIZE, mmap_offset: 0 };
    let table = Payload::MemoryTable(vec![region]);
    let state = |index, num| Payload::VringState(VringState { index, num });
    let attached = Payload::RingDescriptor(RingDescriptor { ring: 0, attached: true });
    let address = Payload::VringAddress(VringAddress {
        index: 0,
        flags: 0,
        descriptors: SIZE,
        used: SIZE + 0x2000,
        available: SIZE + 0x1000,
        log: 0,
    });
    let script: Vec<(R, Payload, Vec<&OwnedFd>)> = vec![
        (R::SetMemTable, table.clone(), vec![&memory]),
        (R::SetVringNum, state(0, 16), vec![]),
        (R::SetVringBase, state(0, 0), vec![]),
        (R::SetVringAddr, address, vec![]),
        (R::SetVringKick, attached.clone(), vec![&event]),
        (R::SetVringKick, attached.clone(), vec![&event]),
        (R::SetVringCall, attached.clone(), vec![&event]),
        (R::SetVringErr, attached.clone(), vec![&event]),
        (R::SetMemTable, table.clone(), vec![&memory]),
        (R::RemMemReg, Payload::SingleRegion(region), vec![&memory]),
        (R::AddMemReg, Payload::SingleRegion(region), vec![&memory]),
        (R::GpuSetSocket, Payload::Empty, vec![&event]),
        (R::SetInflightFd, Payload::Opaque, vec![&event]),
        (R::GetVringBase, state(0, 0), vec![]),
        (R::ResetDevice, Payload::Empty, vec![]),
    ];
    // Each of these ends a connection.
    let wrong: Vec<(R, Payload, Vec<&OwnedFd>)> = vec![
        (R::SetMemTable, table.clone(), vec![&event]),
        (R::SetMemTable, table.clone(), vec![&memory, &memory]),
        (R::GetFeatures, Payload::Empty, vec![&event; 8]),
        (R::SetVringCall, attached, vec![&memory]),
        (R::AddMemReg, Payload::SingleRegion(MemoryRegion { size: 0, ..region }), vec![&memory]),
    ];
    let offer = Offer {
        features: Features::VERSION_1,
        protocol: Offer::PROTOCOL,
        queue_pairs: 1,
        max_mtu: 1500,
    };

    let mut before = None;
    for round in 0..ROUNDS {
        let (one, two) = UnixStream::pair().unwrap();
        let mut peer = Connection::new(one.into()).unwrap();
        let mut connection = Connection::new(two.into()).unwrap();
        let mut session = Session::new(offer);
        let mut say = |request, payload, descriptors: &[&OwnedFd]| {
            let ends = (&mut peer, &mut connection);
            say(&mut session, ends, request, payload, descriptors)
        };
        say(R::SetProtocolFeatures, Payload::U64(Offer::PROTOCOL.0), &[]).unwrap();
        for (request, payload, descriptors) in &script {
            say(*request, payload.clone(), descriptors).unwrap();
        }
        let (request, payload, descriptors) = &wrong[round % wrong.len()];
        assert!(say(*request, payload.clone(), descriptors).is_err(), "{request}");
        let closers = [&connection, &peer].map(|one| one.closer().clone());
        drop((session, connection, peer));
        for closer in closers {
            assert!(closer.wait(LIMIT), "not closed within {LIMIT:?}");
        }
        // The first round may open what stays open for good.
        let now = resources_every(round);
        before = before.or(now);
        assert!(now.is_none() || now == before, "round {round}: {before:?} became {now:?}");
    }
}

/// Counting costs more than a round, so it is done now and then, and at the end.
fn resources_every(round: usize) -> Option<(usize, usize)> {
    (round.is_multiple_of(1000) || round == ROUNDS - 1).then(resources)
}
