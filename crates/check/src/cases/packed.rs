//! Packed rings.

use wire::virtio::Features as F;

use super::frames as f;
use crate::bench::{Bench, Traffic};
use crate::case::{Rule, case, hostile};
use crate::device::{Device, RX, Setup, TX};
use crate::ring::{INDIRECT, NEXT, WRITE};
use crate::verdict::{Check, equal};

const FORMAT: &str = "virtio 1.3, 2.8";
const USED: &str = "virtio 1.3, 2.8.4";
const FRAMING: &str = "virtio 1.3, 2.8.5";
const NEXT_FLAG: &str = "virtio 1.3, 2.8.6";
const TABLE: &str = "virtio 1.3, 2.8.7";
const DESCRIPTOR: &str = "virtio 1.3, 2.8.13";
const LISTS: &str = "virtio 1.3, 2.8.17";
const PACKED: F = F::RING_PACKED;

/// Makes descriptors available on the transmit ring and, where frames pass, on the receive ring that no
/// driver would write: address (below 4096: of a buffer), length, id, flags.
fn bad_chain(bench: &Bench<'_>, features: F, descriptors: &[(u64, u32, u16, u16)]) -> Check {
    let mut device = bench.device(features | PACKED)?;
    publish(&mut device, TX, descriptors);
    device.look(TX);
    drop(device);
    if bench.traffic != Traffic::None {
        let mut rig = bench.rig_that_receives(features | PACKED)?;
        publish(&mut rig.device, RX, descriptors);
        rig.provoke(100);
    }
    Ok(())
}

/// Makes descriptors available at a ring's next position. On the receive ring what was to be read is to be
/// written, and the other way about.
fn publish(device: &mut Device, ring: u32, descriptors: &[(u64, u32, u16, u16)]) {
    let start = device.memory.allocate(4096);
    let Device { memory, rings, .. } = device;
    let queue = &rings[ring as usize];
    // The first one shows the others, so it is written last.
    for (ahead, &(address, len, id, flags)) in descriptors.iter().enumerate().rev() {
        let flags = if ring == RX && flags & INDIRECT == 0 { flags ^ WRITE } else { flags };
        let (place, available) = queue.slot(ahead as u16);
        memory.set_u64(place, if address < 4096 { start + address } else { address });
        let rest = u64::from(len) | u64::from(id) << 32;
        memory.set_u64(place + 8, rest | u64::from(flags | available) << 48);
    }
    device.kick(ring);
}

/// Frames pass through packed rings of a size that need not be a power of two, if it is taken.
fn sized(bench: &Bench<'_>, size: u16) -> Check {
    let features = F::VERSION_1 | PACKED;
    let mut rig = bench.rig_of_size(&Setup { features, size, ..Setup::default() })?;
    for _ in 0..3 * size.min(40) {
        rig.exchange(200)?;
    }
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("passes a frame in both directions over a packed ring.", FORMAT, |bench| {
        bench.rig(PACKED)?.exchange(100)
    }),
    case("passes frames of every length over a packed ring.", FORMAT, |bench| {
        f::lengths(bench, PACKED)
    }),
    case(
        "passes a frame in a packed ring whose header has a descriptor of its own.",
        FRAMING,
        |bench| f::pieces(bench, PACKED, &[12]),
    ),
    case(
        "passes a frame in a packed ring whose header lies in twelve descriptors.",
        FRAMING,
        |bench| f::pieces(bench, PACKED, &[1; 12]),
    ),
    case("delivers a frame to several descriptors of a packed ring.", FRAMING, |bench| {
        f::scattered(bench, PACKED, &[12, 30, 600, 1500])
    }),
    case(
        "gives a chain of a packed ring back by its id.",
        "virtio 1.3, 2.8.3 and 2.8.6",
        |bench| f::transmitted_comes_back(bench, PACKED),
    ),
    case("says how many bytes it has written to a packed ring's buffer.", USED, |bench| {
        f::delivered_length(bench, PACKED)
    }),
    case("writes nothing behind the end of a packed ring's buffer.", DESCRIPTOR, |bench| {
        f::rest_is_untouched(bench, PACKED)
    }),
    case("goes round a packed ring many times.", "virtio 1.3, 2.8.1", |bench| {
        f::rounds(bench, PACKED)
    }),
    case("follows chains over the end of a packed ring.", NEXT_FLAG, |bench| {
        let mut rig = bench.rig(PACKED)?;
        // Three descriptors each: 64 is no multiple of it.
        for _ in 0..50 {
            rig.listen()?;
            let frame = rig.frame(300);
            let chain = f::cut(&mut rig, &frame, &[12, 100]);
            rig.passes_as(&frame, &chain)?;
        }
        Ok(())
    }),
    case(
        "serves packed rings of sizes that are no power of two, if it takes them.",
        "virtio 1.3, 2.8.10.1",
        |bench| {
            sized(bench, 48)?;
            sized(bench, 100)
        },
    ),
    case(
        "ignores the write flag of a packed ring's descriptor that refers to a table.",
        TABLE,
        |bench| f::indirect_with(bench, PACKED, 2, WRITE),
    ),
    case("reads a frame from an indirect table of a packed ring.", TABLE, |bench| {
        f::indirect(bench, PACKED, 3)
    }),
    case("delivers a frame to an indirect table of a packed ring.", TABLE, |bench| {
        f::indirect_receive(bench, PACKED)
    }),
    case(
        "uses buffers of a packed ring in order with IN_ORDER.",
        "virtio 1.3, 2.8.8 and 6.2",
        |bench| {
            f::order(bench, PACKED | F::IN_ORDER)?;
            f::rounds(bench, PACKED | F::IN_ORDER)
        },
    ),
    case(
        "returns both halves of a packed ring's base by GET_VRING_BASE.",
        "vhost-user, \"VHOST_USER_GET_VRING_BASE\"",
        |bench| {
            let mut rig = bench.rig(PACKED)?;
            for _ in 0..70 {
                rig.passes(100)?;
            }
            let base = rig.device.stop_ring(TX)?;
            equal("the base", base, rig.device.rings[1].base())
        },
    ),
    case(
        "goes on where a packed ring was, in either round.",
        "vhost-user, \"VHOST_USER_SET_VRING_BASE\"",
        |bench| {
            let mut rig = bench.rig(PACKED)?;
            for _ in 0..8 {
                for _ in 0..11 {
                    rig.passes(100)?;
                }
                rig.device.stop_ring(TX)?;
                rig.device.start_ring(TX)?;
            }
            rig.passes(100)
        },
    ),
    case("passes frames over a packed ring with EVENT_IDX.", "virtio 1.3, 2.8.10", |bench| {
        f::rounds(bench, PACKED | F::EVENT_IDX)
    }),
    hostile("survives an id of a packed ring that is larger than the ring.", DESCRIPTOR, |bench| {
        bad_chain(bench, F::NONE, &[(0, 100, 64, 0)])?;
        bad_chain(bench, F::NONE, &[(0, 100, 0xffff, 0)])
    }),
    hostile("survives a chain of a packed ring that is longer than the ring.", LISTS, |bench| {
        bad_chain(bench, F::NONE, &[(0, 10, 0, NEXT); 64])
    }),
    hostile(
        "survives a chain of a packed ring that goes on where nothing is available.",
        LISTS,
        |bench| bad_chain(bench, F::NONE, &[(0, 100, 0, NEXT)]),
    ),
    hostile("survives buffers of a packed ring outside of the memory.", DESCRIPTOR, |bench| {
        bad_chain(bench, F::NONE, &[(0x10_0000_0000, 100, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(u64::MAX - 10, 100, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(0, u32::MAX, 0, 0)])?;
        bad_chain(bench, F::NONE, &[(0, 0, 0, 0)])
    }),
    hostile(
        "survives tables of a packed ring of no bytes, of odd ones, and of too many.",
        TABLE,
        |bench| {
            for len in [0, 1, 15, 17, 16 * 65, u32::MAX] {
                bad_chain(bench, F::INDIRECT_DESC, &[(0, len, 0, INDIRECT)])?;
            }
            bad_chain(bench, F::INDIRECT_DESC, &[(!15, 32, 0, INDIRECT)])
        },
    ),
    hostile(
        "survives a driver's event structure that means nothing.",
        "virtio 1.3, 2.8.14",
        |bench| {
            for (offset, flags) in [(0xffff, 3), (0x7fff, 2), (64, 2), (0, 0xffff)] {
                let mut rig = bench.rig(PACKED | F::EVENT_IDX)?;
                let driver = rig.device.rings[RX as usize].areas[1];
                rig.device.memory.set_u16(driver, offset);
                rig.device.memory.set_u16(driver + 2, flags);
                rig.device.post(0, 4, 2048)?;
                let _ = rig.delivers(100);
            }
            Ok(())
        },
    ),
    case("ignores ids, and all flags but WRITE, in a table of a packed ring.", TABLE, |bench| {
        let mut rig = bench.rig(PACKED | F::INDIRECT_DESC)?;
        let frame = rig.frame(600);
        let chain = f::cut(&mut rig, &frame, &[12, 100]);
        let table = f::write_table(&mut rig, &chain);
        for number in 0..chain.len() as u64 {
            let at = table.address + 16 * number + 8;
            // The length stays; an id that is none, and NEXT, AVAIL and USED.
            let rest = rig.device.memory.u64(at) & 0xffff_ffff;
            rig.device.memory.set_u64(at, rest | 0x8081 << 48 | 0xffff << 32);
        }
        rig.passes_as(&frame, &[table]).map(drop)
    }),
];
