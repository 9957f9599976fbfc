//! What split and packed rings are both asked for.

use wire::virtio::Features as F;

use crate::bench::{ATTEMPTS, Bench, PLAIN, Rig, same};
use crate::device::{BUFFER, RX, TX};
use crate::ring::{Buffer, INDIRECT, Ring, WRITE};
use crate::verdict::{Check, ensure, equal};

/// A frame with its header, cut into descriptors of these lengths and one for the rest.
pub fn cut(rig: &mut Rig, frame: &[u8], lens: &[usize]) -> Vec<Buffer> {
    let bytes = [&PLAIN[..], frame].concat();
    let mut rest = bytes.as_slice();
    let mut chain = Vec::new();
    for &len in lens {
        let (piece, left) = rest.split_at(len.min(rest.len()));
        chain.push(rig.device.readable(piece));
        rest = left;
    }
    if !rest.is_empty() {
        chain.push(rig.device.readable(rest));
    }
    chain
}

pub fn lengths(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    for len in (60..1514).step_by(67).chain([1514]) {
        rig.exchange(len)?;
    }
    Ok(())
}

pub fn pieces(bench: &Bench<'_>, features: F, lens: &[usize]) -> Check {
    let mut rig = bench.rig(features)?;
    let frame = rig.frame(400);
    let chain = cut(&mut rig, &frame, lens);
    rig.passes_as(&frame, &chain).map(drop)
}

pub fn scattered(bench: &Bench<'_>, features: F, lens: &[u32]) -> Check {
    let mut rig = bench.rig(features)?;
    for len in [60, 700, 1514] {
        let chain: Vec<Buffer> = lens.iter().map(|&len| rig.device.writable(len)).collect();
        rig.device.offer(RX, &chain)?;
        rig.delivers(len)?;
    }
    Ok(())
}

pub fn transmitted_comes_back(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    for _ in 0..5 {
        let frame = rig.frame(300);
        let chain = cut(&mut rig, &frame, &[12, 50]);
        let (id, used) = rig.passes_as(&frame, &chain)?;
        equal("the used id", used.id, id)?;
        equal("the used length", used.written, 0)?;
    }
    Ok(())
}

pub fn delivered_length(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    rig.device.post(0, 3 + ATTEMPTS, BUFFER)?;
    for len in [60, 100, 1514] {
        let received = rig.delivers(len)?;
        equal("the used length", received.used[0].written, len as u32 + 12)?;
    }
    Ok(())
}

pub fn rest_is_untouched(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    // A buffer that the frame fills, and bytes behind it that are nobody's.
    let room = rig.device.writable(BUFFER);
    rig.device.offer(RX, &[Buffer { len: 112, ..room }])?;
    rig.delivers(100)?;
    let rest = rig.device.memory.bytes(room.address + 112, BUFFER as usize - 112);
    ensure(rest.iter().all(|&byte| byte == 0xa5), "bytes behind the buffer were written")
}

pub fn batch(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    rig.listen()?;
    let frames: Vec<Vec<u8>> = (0..20).map(|number| rig.frame(100 + number)).collect();
    let chains: Vec<Vec<Buffer>> = frames.iter().map(|frame| cut(&mut rig, frame, &[12])).collect();
    rig.device.rings[1].offer_all(&rig.device.memory, &chains)?;
    rig.device.kick(TX);
    for frame in &frames {
        rig.arrives(frame)?;
    }
    rig.device.drain(TX)
}

pub fn rounds(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    for number in 0..200 {
        rig.exchange(60 + number)?;
    }
    Ok(())
}

pub fn order(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features)?;
    rig.listen()?;
    let mut frames = Vec::new();
    let mut chains = Vec::new();
    for _ in 0..20 {
        let frame = rig.frame(100);
        chains.push(cut(&mut rig, &frame, &[]));
        frames.push(frame);
    }
    // All at once: one by one, nothing could be used in another order.
    rig.device.rings[1].offer_all(&rig.device.memory, &chains)?;
    rig.device.kick(TX);
    for frame in &frames {
        // One that comes too early makes its predecessor be missed.
        rig.arrives(frame)?;
    }
    rig.device.drain(TX)
}

pub fn indirect(bench: &Bench<'_>, features: F, pieces: usize) -> Check {
    indirect_with(bench, features, pieces, 0)
}

pub fn indirect_with(bench: &Bench<'_>, features: F, pieces: usize, flags: u16) -> Check {
    let mut rig = bench.rig(features | F::INDIRECT_DESC)?;
    for _ in 0..3 {
        let frame = rig.frame(600);
        let chain = cut(&mut rig, &frame, &vec![12; pieces - 1]);
        let table = write_table(&mut rig, &chain);
        rig.passes_as(&frame, &[Buffer { flags: INDIRECT | flags, ..table }])?;
    }
    Ok(())
}

pub fn indirect_receive(bench: &Bench<'_>, features: F) -> Check {
    let mut rig = bench.rig(features | F::INDIRECT_DESC)?;
    let chain: Vec<Buffer> = [12, 100, 2000].map(|len| rig.device.writable(len)).into();
    let table = write_table(&mut rig, &chain);
    rig.device.offer(RX, &[table])?;
    let frame = rig.frame_back(700);
    rig.inject(PLAIN, &frame)?;
    let used = rig.device.reap_soon(RX)?;
    equal("the used length", used.written, 712)?;
    let mut found = rig.device.memory.bytes(chain[1].address, 100);
    found.extend(rig.device.memory.bytes(chain[2].address, 600));
    ensure(same(&found, &frame), "other bytes came than were sent")
}

/// A table of these buffers, and the descriptor that refers to it.
pub fn write_table(rig: &mut Rig, chain: &[Buffer]) -> Buffer {
    let len = 16 * chain.len() as u64;
    let address = rig.device.memory.allocate(len);
    let packed = rig.device.features.contains(F::RING_PACKED);
    for (number, buffer) in (0u16..).zip(chain) {
        let last = usize::from(number) + 1 == chain.len();
        // In a packed ring, where a table's descriptors follow each other, this is the id, of no use.
        let next = if last || packed { 0 } else { number + 1 };
        let flags = buffer.flags & WRITE | if last || packed { 0 } else { 1 };
        let at = address + 16 * u64::from(number);
        if packed {
            let rest = u64::from(buffer.len) | u64::from(flags) << 48;
            rig.device.memory.set_u64(at, buffer.address);
            rig.device.memory.set_u64(at + 8, rest);
        } else {
            Ring::descriptor(&rig.device.memory, at, Buffer { flags, ..*buffer }, next);
        }
    }
    Buffer { address, len: len as u32, flags: INDIRECT }
}
