//! The driver's side of a ring, split or packed: one that can also do what no driver may.
//!
//! It shares no code with the rings that ringway itself is made of.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use wire::virtio::Features;

use crate::memory::Memory;
use crate::verdict::{Check, ensure, fail};

/// Descriptor flag: the chain goes on.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// One piece of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`WRITE`], [`INDIRECT`], or neither.
    pub flags: u16,
}

/// A chain that the back end has used.
#[derive(Clone, Debug)]
pub struct Used {
    /// As [`Ring::offer`] returned it.
    pub id: u16,
    /// Bytes that were written, as the back end says.
    pub written: u32,
    /// What it is made of.
    pub buffers: Vec<Buffer>,
}

struct Chain {
    id: u16,
    /// Descriptors in the ring.
    slots: Vec<u16>,
    buffers: Vec<Buffer>,
}

/// A ring.
pub struct Ring {
    /// Its number.
    pub index: u32,
    /// Entries.
    pub size: u16,
    /// Descriptors, driver's area, device's area: guest addresses.
    pub areas: [u64; 3],
    /// Whether it is a packed one.
    pub packed: bool,
    in_order: bool,
    event_index: bool,
    /// Split: descriptors that are free. Packed: ids that are.
    free: VecDeque<u16>,
    outstanding: VecDeque<Chain>,
    /// Of an entry that stands for many: what is still to be returned.
    reaped: VecDeque<Used>,
    /// Split: the available index. Packed: the next slot.
    next: u16,
    /// Split: the used index that was seen. Packed: the next slot to be used.
    seen: u16,
    /// Packed: the wrap counters that go with the two.
    wraps: (bool, bool),
    room: u16,
}

impl Ring {
    /// A ring in memory that is zero there.
    pub fn new(memory: &Memory, index: u32, size: u16, features: Features) -> Self {
        Self {
            index,
            size,
            areas: memory.ring(index),
            packed: features.contains(Features::RING_PACKED),
            in_order: features.contains(Features::IN_ORDER),
            event_index: features.contains(Features::EVENT_IDX),
            free: (0..size).collect(),
            outstanding: VecDeque::new(),
            reaped: VecDeque::new(),
            next: 0,
            seen: 0,
            wraps: (true, true),
            room: size,
        }
    }

    /// What SET_VRING_BASE says of a ring that is where this one is, with nothing outstanding.
    pub fn base(&self) -> u32 {
        if self.packed {
            let half = u32::from(self.next) | u32::from(self.wraps.0) << 15;
            half | half << 16
        } else {
            self.next.into()
        }
    }

    /// Split: goes on at `index`, as a guest that was restored does.
    pub fn start_at(&mut self, memory: &Memory, index: u16) {
        (self.next, self.seen) = (index, index);
        memory.set_u16(self.areas[1] + 2, index);
        memory.set_u16(self.areas[2] + 2, index);
    }

    /// Forgets all that is in the ring, as a driver does that starts over, and zeroes its areas.
    pub fn clear(&mut self, memory: &Memory) {
        let empty = [(0, 16 * usize::from(self.size)), (1, 6 + 2 * usize::from(self.size))];
        for (area, len) in empty.into_iter().chain([(2, 6 + 8 * usize::from(self.size))]) {
            memory.set_bytes(
                self.areas[area],
                &vec![0; if self.packed && area > 0 { 4 } else { len }],
            );
        }
        self.free = (0..self.size).collect();
        (self.outstanding, self.reaped) = (VecDeque::new(), VecDeque::new());
        (self.next, self.seen, self.wraps, self.room) = (0, 0, (true, true), self.size);
    }

    /// Chains that the back end has.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Writes one descriptor of a split ring, or of a table.
    pub fn descriptor(memory: &Memory, at: u64, buffer: Buffer, next: u16) {
        let rest = u64::from(buffer.len) | u64::from(buffer.flags) << 32 | u64::from(next) << 48;
        memory.set_u64(at, buffer.address);
        memory.set_u64(at + 8, rest);
    }

    /// Writes the descriptor in a slot of this ring, with every bit as given.
    pub fn write(&self, memory: &Memory, slot: u16, buffer: Buffer, next: u16) {
        Self::descriptor(memory, self.areas[0] + 16 * u64::from(slot), buffer, next);
    }

    /// Split: makes `head` available, whatever it is.
    pub fn publish(&mut self, memory: &Memory, head: u16) {
        memory.set_u16(self.areas[1] + 4 + 2 * u64::from(self.next % self.size), head);
        self.next = self.next.wrapping_add(1);
        self.show(memory);
    }

    /// Split: shows the available index.
    pub fn show(&self, memory: &Memory) {
        memory.set_u16(self.areas[1] + 2, self.next);
    }

    /// Split: moves the available index on by `count` without offering anything.
    pub fn jump(&mut self, memory: &Memory, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.show(memory);
    }

    /// Packed: where the next slot but `ahead` is, and the flags that make a descriptor available there.
    pub fn slot(&self, ahead: u16) -> (u64, u16) {
        let slot = self.next + ahead;
        let wrapped = slot >= self.size;
        let flags = if self.wraps.0 != wrapped { AVAIL } else { USED };
        (self.areas[0] + 16 * u64::from(slot % self.size), flags)
    }

    /// Offers a chain: writes and shows it. Returns its id.
    pub fn offer(&mut self, memory: &Memory, buffers: &[Buffer]) -> Check<u16> {
        let id = self.write_chain(memory, buffers)?;
        if !self.packed {
            self.show(memory);
        }
        Ok(id)
    }

    /// Split: offers chains and shows all of them at once. Packed: one by one.
    pub fn offer_all(&mut self, memory: &Memory, chains: &[Vec<Buffer>]) -> Check {
        for chain in chains {
            self.write_chain(memory, chain)?;
        }
        if !self.packed {
            self.show(memory);
        }
        Ok(())
    }

    fn write_chain(&mut self, memory: &Memory, buffers: &[Buffer]) -> Check<u16> {
        let count = buffers.len() as u16;
        if count == 0 || count > self.room {
            return Err(fail(format!(
                "ring {} has no room: the back end gives nothing back",
                self.index
            )));
        }
        self.room -= count;
        let last = buffers.len() - 1;
        let (id, slots) = if self.packed {
            let id = self.free.pop_front().ok_or_else(|| fail("no id is free"))?;
            let head = self.next;
            let mut head_flags = 0;
            for (at, buffer) in buffers.iter().enumerate() {
                let more = if at < last { NEXT } else { 0 };
                let wrap = if self.wraps.0 { AVAIL } else { USED };
                let flags = buffer.flags | more | wrap;
                // The head shows the whole chain, so its flags come last.
                let now = if at == 0 { 0 } else { flags };
                if at == 0 {
                    head_flags = flags;
                }
                let place = self.areas[0] + 16 * u64::from(self.next);
                memory.set_u64(place, buffer.address);
                memory.set_u16(place + 8, buffer.len as u16);
                memory.set_u16(place + 10, (buffer.len >> 16) as u16);
                memory.set_u16(place + 12, id);
                if at > 0 {
                    memory.set_u16(place + 14, now);
                }
                self.next += 1;
                if self.next == self.size {
                    self.next = 0;
                    self.wraps.0 = !self.wraps.0;
                }
            }
            fence(Ordering::SeqCst);
            memory.set_u16(self.areas[0] + 16 * u64::from(head) + 14, head_flags);
            (id, vec![0; buffers.len()])
        } else {
            let slots: Vec<u16> = (0..count).filter_map(|_| self.free.pop_front()).collect();
            for (at, buffer) in buffers.iter().enumerate() {
                let next = slots.get(at + 1).copied();
                let flags = buffer.flags | if next.is_some() { NEXT } else { 0 };
                self.write(memory, slots[at], Buffer { flags, ..*buffer }, next.unwrap_or(0));
            }
            let place = self.areas[1] + 4 + 2 * u64::from(self.next % self.size);
            memory.set_u16(place, slots[0]);
            self.next = self.next.wrapping_add(1);
            (slots[0], slots)
        };
        self.outstanding.push_back(Chain { id, slots, buffers: buffers.to_vec() });
        Ok(id)
    }

    /// The next chain that the back end has used, if there is one. What it says of it must be
    /// possible.
    pub fn reap(&mut self, memory: &Memory) -> Check<Option<Used>> {
        if let Some(used) = self.reaped.pop_front() {
            return Ok(Some(used));
        }
        let Some((id, written)) =
            (if self.packed { self.used_packed(memory) } else { self.used_split(memory)? })
        else {
            return Ok(None);
        };
        let position = u16::try_from(id)
            .ok()
            .and_then(|id| self.outstanding.iter().position(|chain| chain.id == id))
            .ok_or_else(|| {
                fail(format!("ring {}: id {id} was used, which is not outstanding", self.index))
            })?;
        let batch = if self.in_order { position + 1 } else { 1 };
        let first = if self.in_order { 0 } else { position };
        for number in 0..batch {
            let Some(chain) = self.outstanding.remove(first) else { break };
            let writable = chain.buffers.iter().filter(|buffer| buffer.flags & WRITE != 0);
            let room: u64 = writable.map(|buffer| u64::from(buffer.len)).sum();
            let written = if number + 1 == batch { written } else { 0 };
            let is_table = chain.buffers.iter().any(|buffer| buffer.flags & INDIRECT != 0);
            ensure(
                u64::from(written) <= room || is_table,
                format!(
                    "ring {}: {written} bytes are said to be written to {room} writable ones",
                    self.index
                ),
            )?;
            let count = chain.slots.len() as u16;
            self.room += count;
            if self.packed {
                self.free.push_back(chain.id);
                self.seen += count;
                if self.seen >= self.size {
                    self.seen -= self.size;
                    self.wraps.1 = !self.wraps.1;
                }
            } else {
                self.free.extend(chain.slots);
                self.seen = self.seen.wrapping_add(1);
            }
            self.reaped.push_back(Used { id: chain.id, written, buffers: chain.buffers });
        }
        Ok(self.reaped.pop_front())
    }

    /// Whether the back end has used anything that was not reaped yet, whatever it says of it.
    pub fn has_used(&self, memory: &Memory) -> bool {
        if !self.packed {
            return memory.u16(self.areas[2] + 2) != self.seen;
        }
        let flags = memory.u16(self.areas[0] + 16 * u64::from(self.seen) + 14);
        [AVAIL, USED].iter().all(|bit| (flags & bit != 0) == self.wraps.1)
    }

    fn used_split(&self, memory: &Memory) -> Check<Option<(u32, u32)>> {
        let index = memory.u16(self.areas[2] + 2);
        let ahead = index.wrapping_sub(self.seen);
        ensure(
            usize::from(ahead) <= self.outstanding.len(),
            format!(
                "ring {}: the used index moved by {ahead} with {} chains outstanding",
                self.index,
                self.outstanding.len()
            ),
        )?;
        if ahead == 0 {
            return Ok(None);
        }
        let entry = memory.bytes(self.areas[2] + 4 + 8 * u64::from(self.seen % self.size), 8);
        let word = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        Ok(Some((word(0), word(4))))
    }

    fn used_packed(&self, memory: &Memory) -> Option<(u32, u32)> {
        let place = self.areas[0] + 16 * u64::from(self.seen);
        let flags = memory.u16(place + 14);
        let mark = |bit| flags & bit != 0;
        // A slot that holds an available chain has the one mark and not the other.
        if mark(AVAIL) != self.wraps.1 || mark(USED) != self.wraps.1 || self.outstanding.is_empty()
        {
            return None;
        }
        let rest = memory.u64(place + 8);
        let written = if flags & WRITE != 0 { rest as u32 } else { 0 };
        Some((u32::from((rest >> 32) as u16), written))
    }

    /// The used index of a split ring, as it is in memory; of a packed one, where used chains end.
    pub fn used_index(&self, memory: &Memory) -> u16 {
        memory.u16(self.areas[2] + 2)
    }

    /// Asks for calls, or for none, in the way of a ring without EVENT_IDX.
    pub fn set_calls(&self, memory: &Memory, wanted: bool) {
        let at = if self.packed { self.areas[1] + 2 } else { self.areas[1] };
        memory.set_u16(at, u16::from(!wanted));
    }

    /// With EVENT_IDX: asks for a call when the chain `ahead` of the next one is used; 0 is the next.
    pub fn call_at(&self, memory: &Memory, ahead: u16) {
        if self.packed {
            let slot = self.seen + ahead;
            let (slot, wrap) = if slot >= self.size {
                (slot - self.size, !self.wraps.1)
            } else {
                (slot, self.wraps.1)
            };
            memory.set_u16(self.areas[1], slot | u16::from(wrap) << 15);
            memory.set_u16(self.areas[1] + 2, 2);
        } else {
            let at = self.areas[1] + 4 + 2 * u64::from(self.size);
            memory.set_u16(at, self.seen.wrapping_add(ahead));
        }
        fence(Ordering::SeqCst);
    }

    /// Whether the back end asks for a kick now that `count` chains of one descriptor were offered.
    pub fn wants_kick(&self, memory: &Memory, count: u16) -> bool {
        fence(Ordering::SeqCst);
        if self.packed {
            let flags = memory.u16(self.areas[2] + 2);
            let event = memory.u16(self.areas[2]);
            return match flags {
                1 => false,
                2 if self.event_index => {
                    let (slot, wrap) = (i32::from(event & 0x7fff), event >> 15 != 0);
                    let size = i32::from(self.size);
                    let slot = if wrap == self.wraps.0 { slot } else { slot - size };
                    let (new, old) =
                        (i32::from(self.next), i32::from(self.next) - i32::from(count));
                    ((new - slot - 1) as u16) < (new - old) as u16
                }
                _ => true,
            };
        }
        if self.event_index {
            let event = memory.u16(self.areas[2] + 4 + 8 * u64::from(self.size));
            self.next.wrapping_sub(event).wrapping_sub(1) < count
        } else {
            memory.u16(self.areas[2]) & 1 == 0
        }
    }
}
