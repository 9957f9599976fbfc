//! What is left open.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire::vhost_user::{FrontEndRequest as R, Payload, ProtocolFeatures as P, RingDescriptor};
use wire::virtio::Features as F;

use crate::bench::Bench;
use crate::case::{Rule, case, hostile};
use crate::device::{Device, TX, event};
use crate::peer::{Peer, QUIET, VERSION};
use crate::verdict::{Check, ensure, fail, skip};
use std::thread;

const COMMUNICATION: &str = "vhost-user, \"Communication\"";
const SET_MEM_TABLE: &str = "vhost-user, \"VHOST_USER_SET_MEM_TABLE\"";
/// Descriptors that may come and go for other reasons.
const SLACK: usize = 4;
/// How often a thing is done that must leave nothing behind.
const ROUNDS: usize = 50;
/// How many front ends come and go.
const FRONT_ENDS: usize = 10;
/// Between two looks at what is open.
const MOMENT: Duration = Duration::from_millis(5);

/// The process of a back end, as far as it can be seen from outside.
struct Process<'a> {
    id: i32,
    bench: &'a Bench<'a>,
}

impl<'a> Process<'a> {
    /// The one behind a connection.
    fn of(bench: &'a Bench<'a>, peer: &Peer) -> Check<Self> {
        let id = peer.process().ok_or_else(|| skip("the kernel does not tell the process"))?;
        Ok(Self { id, bench })
    }

    /// The one behind a device that is up.
    fn serving(bench: &'a Bench<'a>, device: &Device) -> Check<Self> {
        let process = Self::of(bench, &device.peer)?;
        process.must_serve()?;
        Ok(process)
    }

    /// Skips the case, unless memory of ours is seen there; some must be shared now. The kernel names whoever
    /// has called listen, and that is somebody else where the socket was handed over.
    fn must_serve(&self) -> Check {
        if self.comes_to(|process| process.mapped(), |mapped| mapped > 0)? > 0 {
            return Ok(());
        }
        Err(skip(format!("process {}, which listens, has not mapped our memory", self.id)))
    }

    /// Descriptors that it has open.
    fn open(&self) -> Check<usize> {
        let id = self.id;
        let list = fs::read_dir(format!("/proc/{id}/fd"))
            .map_err(|error| skip(format!("cannot look into /proc/{id}/fd: {error}")))?;
        Ok(list.count())
    }

    /// Mappings of memory of ours that it has.
    fn mapped(&self) -> Check<usize> {
        let id = self.id;
        let maps = fs::read_to_string(format!("/proc/{id}/maps"))
            .map_err(|error| skip(format!("cannot look into /proc/{id}/maps: {error}")))?;
        Ok(maps.lines().filter(|line| line.contains("ringway-check")).count())
    }

    /// Waits until a count is as wanted, up to the limit: what was acknowledged may be tidied up later. Returns
    /// the last count.
    fn comes_to(
        &self,
        count: impl Fn(&Self) -> Check<usize>,
        wanted: impl Fn(usize) -> bool,
    ) -> Check<usize> {
        let deadline = Instant::now() + self.bench.target.limit;
        loop {
            let found = count(self)?;
            if wanted(found) || Instant::now() > deadline {
                return Ok(found);
            }
            thread::sleep(MOMENT);
        }
    }

    /// Fails when more descriptors stay open than were before these rounds.
    fn leaves_open(&self, before: usize, rounds: usize) -> Check {
        let after = self.comes_to(Self::open, |open| open <= before + SLACK)?;
        not_more("open descriptors", before, after, rounds)
    }

    /// Fails when more mappings stay than were before these rounds.
    fn leaves_mapped(&self, before: usize, rounds: usize) -> Check {
        let after = self.comes_to(Self::mapped, |mapped| mapped <= before + SLACK)?;
        not_more("mappings", before, after, rounds)
    }
}

fn not_more(what: &str, before: usize, after: usize, rounds: usize) -> Check {
    ensure(
        after <= before + SLACK,
        format!("{what}: {before} before, {after} after {rounds} rounds"),
    )
}

/// A pipe of which the back end gets the end for writing: the other hangs up when that is closed.
fn witness() -> Check<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe().map_err(|error| fail(format!("no pipe: {error}")))
}

/// Waits until nobody has the other end of a pipe any more.
fn is_closed(reader: &OwnedFd, limit: Duration) -> Check {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let mut polled = [PollFd::new(reader, PollFlags::IN)];
    let _ = poll(&mut polled, Some(&limit));
    let hung_up = polled[0].revents().contains(PollFlags::HUP);
    ensure(hung_up, "the back end has kept the descriptor open")
}

/// Sends a message with a descriptor on it that the back end has no use for, and sees it closed.
fn closes(bench: &Bench<'_>, number: u32, payload: &[u8]) -> Check {
    let peer = bench.hello(P::NONE)?;
    let (reader, writer) = witness()?;
    let _ = peer.send(number, VERSION, payload, &[writer.as_fd()]);
    drop(writer);
    let _ = peer.barrier();
    is_closed(&reader, bench.target.limit)
}

pub(crate) const CASES: &[Rule] = &[
    case("keeps no descriptor open of front ends that are gone.", COMMUNICATION, |bench| {
        let peer = bench.connect()?;
        peer.barrier()?;
        let process = Process::of(bench, &peer)?;
        let before = process.open()?;
        drop(peer);
        for _ in 0..FRONT_ENDS {
            let device = bench.device(F::NONE)?;
            process.must_serve()?;
            drop(device);
            thread::sleep(QUIET / 5);
        }
        let peer = bench.connect()?;
        peer.barrier()?;
        process.leaves_open(before, FRONT_ENDS)
    }),
    case("keeps no memory mapped of front ends that are gone.", COMMUNICATION, |bench| {
        for _ in 0..3 {
            let device = bench.device(F::NONE)?;
            Process::serving(bench, &device)?;
            drop(device);
            thread::sleep(QUIET);
        }
        let peer = bench.connect()?;
        peer.barrier()?;
        let left = Process::of(bench, &peer)?.comes_to(Process::mapped, |left| left == 0)?;
        ensure(left == 0, format!("{left} mappings of former memory are left"))
    }),
    case(
        "closes call descriptors that are exchanged.",
        "vhost-user, \"VHOST_USER_SET_VRING_CALL\"",
        |bench| {
            let device = bench.device(F::NONE)?;
            let process = Process::serving(bench, &device)?;
            let before = process.open()?;
            for _ in 0..ROUNDS {
                let call = event(0)?;
                device.set_call(TX, Some(call.as_fd()))?;
            }
            device.peer.barrier()?;
            process.leaves_open(before, ROUNDS)
        },
    ),
    case(
        "closes kick descriptors that are exchanged.",
        "vhost-user, \"VHOST_USER_SET_VRING_KICK\"",
        |bench| {
            let device = bench.device(F::NONE)?;
            let process = Process::serving(bench, &device)?;
            let before = process.open()?;
            for _ in 0..ROUNDS {
                let kick = event(0)?;
                device.set_kick(TX, Some(kick.as_fd()))?;
            }
            device.peer.barrier()?;
            process.leaves_open(before, ROUNDS)
        },
    ),
    case(
        "closes error descriptors that are exchanged.",
        "vhost-user, \"VHOST_USER_SET_VRING_ERR\"",
        |bench| {
            let device = bench.device(F::NONE)?;
            let process = Process::serving(bench, &device)?;
            let before = process.open()?;
            for _ in 0..ROUNDS {
                let error = event(0)?;
                device.set_descriptor(R::SetVringErr, TX, Some(error.as_fd()))?;
            }
            device.peer.barrier()?;
            process.leaves_open(before, ROUNDS)
        },
    ),
    case(
        "closes the files of memory tables, and unmaps the former ones.",
        SET_MEM_TABLE,
        |bench| {
            let device = bench.device(F::NONE)?;
            let process = Process::serving(bench, &device)?;
            let (open, mapped) = (process.open()?, process.mapped()?);
            for _ in 0..ROUNDS {
                device.share_memory()?;
            }
            device.peer.barrier()?;
            process.leaves_open(open, ROUNDS)?;
            process.leaves_mapped(mapped, ROUNDS)
        },
    ),
    case(
        "keeps nothing of rings that start and stop.",
        "vhost-user, \"VHOST_USER_GET_VRING_BASE\"",
        |bench| {
            let device = bench.device(F::NONE)?;
            let process = Process::serving(bench, &device)?;
            let before = process.open()?;
            for _ in 0..ROUNDS {
                device.stop_ring(TX)?;
                device.start_ring(TX)?;
            }
            process.leaves_open(before, ROUNDS)
        },
    ),
    case(
        "keeps nothing of regions that come and go.",
        "vhost-user, \"VHOST_USER_REM_MEM_REG\"",
        |bench| {
            let peer = bench.hello(P::CONFIGURE_MEM_SLOTS)?;
            let process = Process::of(bench, &peer)?;
            let before = process.open()?;
            let memory = crate::memory::Memory::new(&[0], 0)?;
            let region = Payload::SingleRegion(memory.regions()[0]);
            for _ in 0..ROUNDS {
                peer.tell(R::AddMemReg, &region, &[memory.file()])?;
                process.must_serve()?;
                peer.tell(R::RemMemReg, &region, &[])?;
            }
            peer.barrier()?;
            process.leaves_open(before, ROUNDS)
        },
    ),
    hostile(
        "closes a descriptor that comes with a request that takes none.",
        COMMUNICATION,
        |bench| {
            closes(bench, R::GetFeatures.number(), &[])?;
            closes(bench, R::SetOwner.number(), &[])?;
            closes(bench, R::SetVringNum.number(), &[0, 0, 0, 0, 64, 0, 0, 0])
        },
    ),
    hostile("closes a descriptor that comes with an unknown request.", COMMUNICATION, |bench| {
        closes(bench, 200, &[])
    }),
    hostile(
        "closes a descriptor that comes with the flag that says there is none.",
        "vhost-user, \"VHOST_USER_SET_VRING_CALL\"",
        |bench| {
            let none = RingDescriptor { ring: 0, attached: false };
            closes(bench, R::SetVringCall.number(), &Payload::RingDescriptor(none).encode())
        },
    ),
    hostile("closes a file that cannot be memory.", SET_MEM_TABLE, |bench| {
        let words = [1u64, 0x1000_0000, 4096, 0x7f00_0000_0000, 0];
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        closes(bench, R::SetMemTable.number(), &payload)
    }),
    hostile("closes the descriptors of a message that is cut off.", COMMUNICATION, |bench| {
        let peer = bench.hello(P::NONE)?;
        let (reader, writer) = witness()?;
        let bytes = crate::peer::message(R::SetVringKick.number(), VERSION, &[0; 8]);
        let _ = peer.send_bytes(bytes.get(..14).unwrap_or_default(), &[writer.as_fd()]);
        drop((writer, peer));
        is_closed(&reader, bench.target.limit)
    }),
    case(
        "closes a descriptor that comes with REM_MEM_REG.",
        "vhost-user, \"VHOST_USER_REM_MEM_REG\"",
        |bench| {
            let peer = bench.hello(P::CONFIGURE_MEM_SLOTS)?;
            let memory = crate::memory::Memory::new(&[0], 0)?;
            let region = Payload::SingleRegion(memory.regions()[0]);
            peer.tell(R::AddMemReg, &region, &[memory.file()])?;
            let (reader, writer) = witness()?;
            // Whether it accepts that is its own affair.
            let _ = peer.try_bytes(R::RemMemReg.number(), &region.encode(), &[writer.as_fd()])?;
            drop(writer);
            is_closed(&reader, bench.target.limit)
        },
    ),
];
