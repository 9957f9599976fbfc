//! Split rings.

use wire::virtio::Features as F;

use super::frames as f;
use crate::bench::{ATTEMPTS, Bench, Traffic};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, Device, RX, TX};
use crate::ring::{Buffer, INDIRECT, NEXT, WRITE};
use crate::verdict::{Check, ensure, equal};

const FORMAT: &str = "virtio 1.3, 2.7";
const TABLE: &str = "virtio 1.3, 2.7.5";
const INDIRECT_TABLE: &str = "virtio 1.3, 2.7.5.3";
const USED: &str = "virtio 1.3, 2.7.8 and 2.7.8.2";
const FRAMING: &str = "virtio 1.3, 2.7.4.1";
const AVAILABLE: &str = "virtio 1.3, 2.7.6";

/// Publishes a chain that is written by hand on the transmit ring and, where frames pass, on the receive
/// ring, and sees how the back end takes it: anything but a loop without end is fine, and that the others are
/// served is checked afterwards.
fn bad_chain(bench: &Bench<'_>, features: F, descriptors: &[(u64, u32, u16, u16)]) -> Check {
    let mut device = bench.device(features)?;
    publish(&mut device, TX, descriptors);
    device.look(TX);
    drop(device);
    if bench.traffic != Traffic::None {
        let mut rig = bench.rig_that_receives(features)?;
        publish(&mut rig.device, RX, descriptors);
        rig.provoke(100);
    }
    Ok(())
}

/// Publishes a chain that begins in the first descriptor. On the receive ring what was to be read is to be
/// written, and the other way about.
fn publish(device: &mut Device, ring: u32, descriptors: &[(u64, u32, u16, u16)]) {
    let start = device.memory.allocate(4096);
    let Device { memory, rings, .. } = device;
    let queue = &mut rings[ring as usize];
    for (slot, &(address, len, flags, next)) in (0..).zip(descriptors) {
        let address = if address < 4096 { start + address } else { address };
        let flags = if ring == RX && flags & INDIRECT == 0 { flags ^ WRITE } else { flags };
        queue.write(memory, slot, Buffer { address, len, flags }, next);
    }
    queue.publish(memory, 0);
    device.kick(ring);
}

/// Publishes a table of these descriptors, `len` bytes of it.
fn bad_table(bench: &Bench<'_>, len: u32, flags: u16, table: &[(u64, u32, u16, u16)]) -> Check {
    let mut device = bench.device(F::INDIRECT_DESC)?;
    let at = device.memory.allocate(4096);
    let data = device.memory.allocate(4096);
    for (slot, &(address, len, flags, next)) in (0u64..).zip(table) {
        let address = if address < 4096 { data + address } else { address };
        let entry = Buffer { address, len, flags };
        crate::ring::Ring::descriptor(&device.memory, at + 16 * slot, entry, next);
    }
    let head = Buffer { address: at, len, flags: INDIRECT | flags };
    device.rings[1].write(&device.memory, 0, head, 1);
    device.rings[1].publish(&device.memory, 0);
    device.kick(TX);
    device.look(TX);
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("passes a frame on in both directions.", FORMAT, |bench| {
        bench.rig(F::NONE)?.exchange(100)
    }),
    case("passes frames of every length from 60 to 1514 bytes.", FORMAT, |bench| {
        f::lengths(bench, F::NONE)
    }),
    case("passes a frame whose header has a descriptor of its own.", FRAMING, |bench| {
        f::pieces(bench, F::NONE, &[12])
    }),
    case("passes a frame whose header lies in twelve descriptors of one byte.", FRAMING, |bench| {
        f::pieces(bench, F::NONE, &[1; 12])
    }),
    case("passes a frame in descriptors of odd lengths.", FRAMING, |bench| {
        f::pieces(bench, F::NONE, &[5, 20, 1, 13, 99])
    }),
    case(
        "delivers a frame to a chain whose header has a descriptor of its own.",
        FRAMING,
        |bench| f::scattered(bench, F::NONE, &[12, 2048]),
    ),
    case("delivers a frame to descriptors of odd lengths.", FRAMING, |bench| {
        f::scattered(bench, F::NONE, &[7, 30, 1, 600, 1500])
    }),
    case("gives a transmitted chain back by its head, with length 0.", USED, |bench| {
        f::transmitted_comes_back(bench, F::NONE)
    }),
    case("says how many bytes it has written, with the header.", USED, |bench| {
        f::delivered_length(bench, F::NONE)
    }),
    case("writes nothing behind the end of a receive buffer.", TABLE, |bench| {
        f::rest_is_untouched(bench, F::NONE)
    }),
    case(
        "writes neither the descriptor table nor the available ring.",
        "virtio 1.3, 2.7.5.1 and 2.7.6",
        |bench| {
            let mut rig = bench.rig(F::NONE)?;
            rig.passes(100)?;
            let [descriptors, driver, _] = rig.device.rings[1].areas;
            let look = |rig: &crate::bench::Rig| {
                let memory = &rig.device.memory;
                (memory.bytes(descriptors, 64 * 16), memory.bytes(driver, 6 + 2 * 64))
            };
            let frame = rig.frame(100);
            rig.listen()?;
            rig.device.transmit(0, crate::bench::PLAIN, &frame)?;
            let before = look(&rig);
            rig.arrives(&frame)?;
            rig.device.drain(TX)?;
            ensure(look(&rig) == before, "one of them has changed")
        },
    ),
    case("follows a chain whose descriptors are in no order.", TABLE, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.listen()?;
        let frame = rig.frame(300);
        let bytes = [&crate::bench::PLAIN[..], &frame].concat();
        let parts: Vec<Buffer> = bytes.chunks(104).map(|part| rig.device.readable(part)).collect();
        equal("the number of parts", parts.len(), 3)?;
        for (part, (slot, next)) in parts.iter().zip([(40, Some(3)), (3, Some(17)), (17, None)]) {
            let flags = if next.is_some() { NEXT } else { 0 };
            let part = Buffer { flags, ..*part };
            rig.device.rings[1].write(&rig.device.memory, slot, part, next.unwrap_or(0));
        }
        rig.device.rings[1].publish(&rig.device.memory, 40);
        rig.device.kick(TX);
        rig.arrives(&frame).map(drop)
    }),
    case("takes many chains that are made available at once.", AVAILABLE, |bench| {
        f::batch(bench, F::NONE)
    }),
    case("goes round a ring many times.", AVAILABLE, |bench| f::rounds(bench, F::NONE)),
    case(
        "follows a chain of descriptors that ends with one that refers to a table.",
        "virtio 1.3, 2.7.5.3.2",
        |bench| {
            let mut rig = bench.rig(F::INDIRECT_DESC)?;
            let frame = rig.frame(600);
            let chain = f::cut(&mut rig, &frame, &[12, 100, 50]);
            let (direct, rest) = chain.split_at(2);
            let table = f::write_table(&mut rig, rest);
            rig.passes_as(&frame, &[direct, &[table]].concat()).map(drop)
        },
    ),
    case("reads a frame from an indirect table.", INDIRECT_TABLE, |bench| {
        f::indirect(bench, F::NONE, 2)
    }),
    case("reads a frame from an indirect table of eight descriptors.", INDIRECT_TABLE, |bench| {
        f::indirect(bench, F::NONE, 8)
    }),
    case("delivers a frame to an indirect table.", INDIRECT_TABLE, |bench| {
        f::indirect_receive(bench, F::NONE)
    }),
    case(
        "ignores the write flag of a descriptor that refers to a table.",
        "virtio 1.3, 2.7.5.3.2",
        |bench| f::indirect_with(bench, F::NONE, 2, WRITE),
    ),
    case("uses buffers in order with IN_ORDER.", "virtio 1.3, 2.7.9 and 6.2", |bench| {
        f::order(bench, F::IN_ORDER)?;
        f::rounds(bench, F::IN_ORDER)
    }),
    case("passes frames in both directions with EVENT_IDX.", "virtio 1.3, 2.7.10", |bench| {
        f::rounds(bench, F::EVENT_IDX)
    }),
    case("delivers frames to receive buffers in both of two batches.", AVAILABLE, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        for _ in 0..2 {
            rig.device.post(0, 10 + ATTEMPTS, BUFFER)?;
            for _ in 0..10 {
                rig.delivers(200)?;
            }
        }
        Ok(())
    }),
    hostile(
        "survives an available index that jumps ahead by more than the ring.",
        AVAILABLE,
        |bench| {
            for jump in [64, 65, 1000, 0x8000, 0xffff] {
                let mut device = bench.device(F::NONE)?;
                device.rings[1].jump(&device.memory, jump);
                device.kick(TX);
                device.look(TX);
            }
            Ok(())
        },
    ),
    hostile("survives a head outside of the descriptor table.", AVAILABLE, |bench| {
        for head in [64, 65, 0x7fff, 0xffff] {
            let mut device = bench.device(F::NONE)?;
            device.rings[1].publish(&device.memory, head);
            device.kick(TX);
            device.look(TX);
        }
        Ok(())
    }),
    hostile("survives a chain that goes on outside of the descriptor table.", TABLE, |bench| {
        bad_chain(bench, F::NONE, &[(0, 100, NEXT, 64)])?;
        bad_chain(bench, F::NONE, &[(0, 100, NEXT, 0xffff)])
    }),
    hostile("survives chains that go round in circles.", "virtio 1.3, 2.7.5.2", |bench| {
        bad_chain(bench, F::NONE, &[(0, 100, NEXT, 0)])?;
        bad_chain(bench, F::NONE, &[(0, 100, NEXT, 1), (200, 100, NEXT, 0)])?;
        bad_chain(bench, F::NONE, &[(0, 0, NEXT, 0)])
    }),
    hostile("survives buffers outside of the memory.", TABLE, |bench| {
        bad_chain(bench, F::NONE, &[(0x10_0000_0000, 100, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(u64::MAX, 100, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(u64::MAX - 10, 100, 0, 0)])
    }),
    hostile(
        "survives buffers that end outside of the memory, or are 4 GiB long.",
        TABLE,
        |bench| {
            let end = 0x4000_0000 + crate::memory::SIZE;
            bad_chain(bench, F::NONE, &[(end - 50, 100, 0, 0)])?;
            bad_chain(bench, F::NONE, &[(0, u32::MAX, 0, 0)])
        },
    ),
    hostile("survives buffers of no bytes.", TABLE, |bench| {
        bad_chain(bench, F::NONE, &[(0, 0, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(u64::MAX, 0, NEXT, 1), (0, 100, 0, 0)])
    }),
    hostile(
        "survives a readable descriptor behind a writable one, and the wrong kind alone.",
        "virtio 1.3, 2.7.4.2",
        |bench| {
            bad_chain(bench, F::NONE, &[(0, 100, NEXT | WRITE, 1), (200, 100, 0, 0)])?;
            bad_chain(bench, F::NONE, &[(0, 100, WRITE, 0)])
        },
    ),
    hostile(
        "survives tables of no bytes, of odd ones, and of too many.",
        INDIRECT_TABLE,
        |bench| {
            for len in [0, 1, 15, 17, 16 * 65, u32::MAX, !15] {
                bad_table(bench, len, 0, &[(0, 100, 0, 0)])?;
            }
            Ok(())
        },
    ),
    hostile("survives a table in a table.", "virtio 1.3, 2.7.5.3.1", |bench| {
        bad_table(bench, 32, 0, &[(0, 16, INDIRECT, 0), (0, 100, 0, 0)])
    }),
    hostile(
        "survives a descriptor that refers to a table and goes on as well.",
        "virtio 1.3, 2.7.5.3.1",
        |bench| bad_table(bench, 16, NEXT, &[(0, 100, 0, 0)]),
    ),
    hostile(
        "survives a table that goes round in circles, and one that leads out of itself.",
        INDIRECT_TABLE,
        |bench| {
            bad_table(bench, 32, 0, &[(0, 50, NEXT, 1), (50, 50, NEXT, 0)])?;
            bad_table(bench, 32, 0, &[(0, 50, NEXT, 2)])?;
            bad_table(bench, 32, 0, &[(0, 50, NEXT, 0xffff)])
        },
    ),
    hostile("survives a table outside of the memory.", INDIRECT_TABLE, |bench| {
        for address in [0x10_0000_0000, !15] {
            bad_chain(bench, F::INDIRECT_DESC, &[(address, 32, INDIRECT, 0)])?;
        }
        Ok(())
    }),
    hostile(
        "survives receive buffers that are too small for a header.",
        "virtio 1.3, 5.1.6.3.1",
        |bench| {
            for len in [1, 11, 12] {
                let mut rig = bench.rig(F::NONE)?;
                rig.device.post(0, 4, len)?;
                rig.provoke(100);
            }
            Ok(())
        },
    ),
    hostile(
        "survives a used ring that lies over the available ring.",
        "virtio 1.3, 2.7.8",
        |bench| {
            let mut device = bench.prepare(&crate::device::Setup::default())?;
            let [_, driver, _] = device.rings[1].areas;
            device.rings[1].areas[2] = driver;
            let _ = device.start().and_then(|()| device.open_ring(TX));
            let frame = crate::bench::frame_between(crate::bench::NEAR, crate::bench::FAR, 100, 1);
            for _ in 0..8 {
                let _ = device.transmit(0, crate::bench::PLAIN, &frame);
            }
            device.look(TX);
            Ok(())
        },
    ),
];
