//! Regions.

use std::os::fd::{AsFd, BorrowedFd};

use memory::SharedMemory;
use wire::vhost_user::{FrontEndRequest as R, MemoryRegion, Payload, ProtocolFeatures as P};
use wire::virtio::Features as F;

use crate::bench::{Bench, PLAIN};
use crate::case::{Rule, case, hostile};
use crate::device::{Device, Setup, TX};
use crate::memory::SIZE;
use crate::peer::VERSION;
use crate::ring::Buffer;
use crate::verdict::{Check, Stop, fail};

const SET_MEM_TABLE: &str = "vhost-user, \"VHOST_USER_SET_MEM_TABLE\"";
const ADD_MEM_REG: &str = "vhost-user, \"VHOST_USER_ADD_MEM_REG\"";
const REM_MEM_REG: &str = "vhost-user, \"VHOST_USER_REM_MEM_REG\"";
const ACCESS: &str = "vhost-user, \"Memory access\"";
const REGION: &str = "vhost-user, \"Memory region description\"";
const HALF: u64 = SIZE / 2;

/// A device with memory cut like this, on which frames pass.
fn with_regions(bench: &Bench<'_>, regions: &[u64], offset: u64) -> Check {
    let setup = Setup { regions: regions.to_vec(), offset, ..Setup::default() };
    bench.rig_with(&setup)?.exchange(700)
}

/// Bytes that nobody else uses, to be shared as well.
fn spare(bytes: u64) -> Check<SharedMemory> {
    SharedMemory::create("ringway-check", bytes)
        .map_err(|error| fail(format!("no memory to share: {error}")))
}

/// A region away from all others.
fn region(size: u64, offset: u64) -> MemoryRegion {
    MemoryRegion {
        guest_address: 0x80_0000_0000,
        size,
        user_address: 0x6f00_0000_0000,
        mmap_offset: offset,
    }
}

/// A running device whose front end may add and remove regions.
fn slots(bench: &Bench<'_>) -> Check<Device> {
    let setup =
        Setup { protocol: P::REPLY_ACK | P::MQ | P::CONFIGURE_MEM_SLOTS, ..Setup::default() };
    let device = Device::bring_up(bench.connect()?, &setup, bench.target.limit)?;
    device.peer.needs(P::CONFIGURE_MEM_SLOTS)?;
    Ok(device)
}

/// Hands over a memory table that is wrong, on a new connection. What becomes of that is the back
/// end's choice, as long as it stays.
fn bad_table(bench: &Bench<'_>, regions: &[MemoryRegion], files: &[BorrowedFd<'_>]) -> Check {
    let peer = bench.hello(P::NONE)?;
    let mut payload = Vec::new();
    payload.extend((regions.len() as u32).to_ne_bytes());
    payload.extend([0; 4]);
    for region in regions {
        let MemoryRegion { guest_address, size, user_address, mmap_offset } = *region;
        for word in [guest_address, size, user_address, mmap_offset] {
            payload.extend(word.to_ne_bytes());
        }
    }
    let _ = peer.send(R::SetMemTable.number(), VERSION, &payload, files);
    // It has looked at it, one way or the other, when this comes back.
    match peer.barrier() {
        Err(Stop::Skip(why)) => Err(Stop::Skip(why)),
        Ok(()) | Err(Stop::Fail(_)) => Ok(()),
    }
}

/// One wrong region, with a file of `file_size` bytes.
fn bad_region(bench: &Bench<'_>, region: MemoryRegion, file_size: u64) -> Check {
    let file = spare(file_size)?;
    bad_table(bench, &[region], &[file.as_fd()])
}

pub(crate) const CASES: &[Rule] = &[
    case("takes memory in one region.", SET_MEM_TABLE, |bench| with_regions(bench, &[0], 0)),
    case(
        "takes memory in two regions that only the guest sees side by side.",
        SET_MEM_TABLE,
        |bench| with_regions(bench, &[0, HALF], 0),
    ),
    case("takes memory in eight regions.", SET_MEM_TABLE, |bench| {
        let eight: Vec<u64> = (0..8).map(|number| number * SIZE / 8).collect();
        with_regions(bench, &eight, 0)
    }),
    case("takes a region that does not begin where its file does.", REGION, |bench| {
        with_regions(bench, &[0], 2 << 20)
    }),
    case("finds rings in one region and buffers in another.", ACCESS, |bench| {
        // Buffers come after the space for rings.
        with_regions(bench, &[0, 0x10_0000], 0)
    }),
    case(
        "reads a buffer that crosses from one region into the next.",
        "vhost-user, \"Memory access\"",
        |bench| {
            let setup = Setup { regions: vec![0, HALF], ..Setup::default() };
            let mut rig = bench.rig_with(&setup)?;
            let frame = rig.frame(900);
            let bytes = [&PLAIN[..], &frame].concat();
            let address = rig.device.memory.at(HALF - 300);
            rig.device.memory.set_bytes(address, &bytes);
            let buffer = Buffer { address, len: bytes.len() as u32, flags: 0 };
            rig.passes_as(&frame, &[buffer]).map(drop)
        },
    ),
    case(
        "writes a buffer that crosses from one region into the next.",
        "vhost-user, \"Memory access\"",
        |bench| {
            let setup = Setup { regions: vec![0, HALF], ..Setup::default() };
            let mut rig = bench.rig_with(&setup)?;
            let address = rig.device.memory.at(HALF - 300);
            let buffer = Buffer { address, len: 2048, flags: crate::ring::WRITE };
            rig.device.offer(crate::device::RX, &[buffer])?;
            rig.delivers(900).map(drop)
        },
    ),
    case(
        "takes the same memory table again while rings run.",
        "vhost-user, \"Ring states\"",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.passes(100)?;
            rig.device.share_memory()?;
            rig.passes(100)
        },
    ),
    case("takes another memory table once its rings have stopped.", SET_MEM_TABLE, |bench| {
        let mut device = bench.device(F::NONE)?;
        for ring in 0..2 {
            device.stop_ring(ring)?;
        }
        device.memory = crate::memory::Memory::new(&[0, HALF], 0x1000)?;
        device.share_memory()?;
        for ring in 0..2 {
            device.rings[ring as usize].clear(&device.memory);
            device.start_ring(ring)?;
        }
        bench.rig_of(device)?.passes(100)
    }),
    case("takes a region more by ADD_MEM_REG, and reads from it.", ADD_MEM_REG, |bench| {
        let device = slots(bench)?;
        let more = device.memory.regions().len() as u64;
        let extra = spare(1 << 20)?;
        device.peer.tell(
            R::AddMemReg,
            &Payload::SingleRegion(region(1 << 20, 0)),
            &[extra.as_fd()],
        )?;
        let mut rig = bench.rig_of(device)?;
        let frame = rig.frame(100 + more as usize);
        let bytes = [&PLAIN[..], &frame].concat();
        rustix::io::pwrite(extra.as_fd(), &bytes, 0x100)
            .map_err(|error| fail(format!("cannot fill the region: {error}")))?;
        let address = region(1 << 20, 0).guest_address + 0x100;
        rig.passes_as(&frame, &[Buffer { address, len: bytes.len() as u32, flags: 0 }]).map(drop)
    }),
    case("goes on when a region is added and removed that no ring uses.", REM_MEM_REG, |bench| {
        let device = slots(bench)?;
        for _ in 0..3 {
            let extra = spare(1 << 20)?;
            let payload = Payload::SingleRegion(region(1 << 20, 0));
            device.peer.tell(R::AddMemReg, &payload, &[extra.as_fd()])?;
            device.peer.tell(R::RemMemReg, &payload, &[])?;
        }
        bench.rig_of(device)?.passes(100)
    }),
    hostile("survives a region of size 0.", REGION, |bench| bad_region(bench, region(0, 0), 4096)),
    hostile(
        "survives a region that is larger than its file, and one behind its end.",
        REGION,
        |bench| {
            bad_region(bench, region(1 << 20, 0), 4096)?;
            bad_region(bench, region(4096, 1 << 30), 4096)
        },
    ),
    hostile("survives regions whose address, or offset, and size overflow.", REGION, |bench| {
        let high = u64::MAX - 0xfff;
        bad_region(bench, MemoryRegion { guest_address: high, ..region(1 << 20, 0) }, 1 << 20)?;
        bad_region(bench, MemoryRegion { user_address: high, ..region(1 << 20, 0) }, 1 << 20)?;
        bad_region(bench, region(1 << 20, high), 1 << 20)?;
        bad_region(bench, region(u64::MAX, 0x1000), 1 << 20)
    }),
    hostile("survives regions that overlap.", REGION, |bench| {
        let file = spare(2 << 20)?;
        let one = region(1 << 20, 0);
        let two = MemoryRegion { guest_address: one.guest_address + 0x1000, ..one };
        bad_table(bench, &[one, two], &[file.as_fd(), file.as_fd()])?;
        bad_table(bench, &[one, one], &[file.as_fd(), file.as_fd()])
    }),
    hostile("survives memory tables of no regions and of nine.", SET_MEM_TABLE, |bench| {
        bad_table(bench, &[], &[])?;
        let file = spare(1 << 20)?;
        let nine = (0..9).map(|at| MemoryRegion { guest_address: at << 32, ..region(4096, 0) });
        bad_table(bench, &nine.collect::<Vec<_>>(), &[file.as_fd(); 9])
    }),
    hostile(
        "survives a memory table with fewer descriptors than regions, and with more.",
        SET_MEM_TABLE,
        |bench| {
            let file = spare(1 << 20)?;
            bad_table(bench, &[region(4096, 0)], &[])?;
            bad_table(bench, &[region(4096, 0)], &[file.as_fd(); 3])
        },
    ),
    hostile(
        "survives a memory table that counts more regions than it has.",
        SET_MEM_TABLE,
        |bench| {
            for count in [2, 8, 9, u32::MAX] {
                let peer = bench.hello(P::NONE)?;
                let file = spare(1 << 20)?;
                let words = [count, 0, 0, 0, 4096, 0, 0, 1, 0, 0];
                let payload: Vec<u8> =
                    words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
                let _ = peer.send(R::SetMemTable.number(), VERSION, &payload, &[file.as_fd()]);
                let _ = peer.barrier();
            }
            Ok(())
        },
    ),
    hostile(
        "survives memory that is a pipe, a directory, a socket and an empty file.",
        SET_MEM_TABLE,
        |bench| {
            let (reader, writer) = rustix::pipe::pipe().map_err(|error| fail(error.to_string()))?;
            let directory = std::fs::File::open("/").map_err(|error| fail(error.to_string()))?;
            let null = std::fs::File::open("/dev/null").map_err(|error| fail(error.to_string()))?;
            let empty = spare(0)?;
            let socket =
                std::os::unix::net::UnixStream::pair().map_err(|error| fail(error.to_string()))?.0;
            let files =
                [reader.as_fd(), writer.as_fd(), directory.as_fd(), null.as_fd(), empty.as_fd()];
            for file in files.into_iter().chain([socket.as_fd()]) {
                bad_table(bench, &[region(4096, 0)], &[file])?;
            }
            Ok(())
        },
    ),
    hostile("survives memory that is removed from under running rings.", REM_MEM_REG, |bench| {
        let mut device = slots(bench)?;
        device.post(0, 8, 2048)?;
        let all = device.memory.regions().to_vec();
        for region in all {
            let payload = Payload::SingleRegion(region).encode();
            let _ = device.peer.try_bytes(R::RemMemReg.number(), &payload, &[]);
        }
        device.kick(TX);
        Ok(())
    }),
    hostile("survives a file that is cut short under running rings.", REGION, |bench| {
        let file = rustix::fs::memfd_create("ringway-check", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| fail(error.to_string()))?;
        rustix::fs::ftruncate(&file, 1 << 20).map_err(|error| fail(error.to_string()))?;
        let mut device = slots(bench)?;
        let payload = Payload::SingleRegion(region(1 << 20, 0));
        device.peer.tell(R::AddMemReg, &payload, &[file.as_fd()])?;
        rustix::fs::ftruncate(&file, 0).map_err(|error| fail(error.to_string()))?;
        let address = region(1 << 20, 0).guest_address;
        device.offer(TX, &[Buffer { address, len: 200, flags: 0 }])?;
        let _ = device.peer.closed();
        Ok(())
    }),
];
