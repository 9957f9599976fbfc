//! The device side: takes chains, gives them back used.

use std::sync::atomic::Ordering;

use memory::{GuestAddress, ReadSlice, Translator, WriteSlice};
use wire::virtio::Features;

use super::format::{Descriptor, Event, Position};
use super::layout::Layout;
use crate::chain::{
    Element, Pieces, Place, Readable, Visitor, Writable, table_entries, table_words,
};
use crate::fields::{Fields, Mapped, RingMemory};
use crate::{Chain, DeviceRing, Direction, Piece, Single, Singles, Violation};

/// Descriptors in a cache line.
const DESCRIPTORS_IN_LINE: usize = 4;

/// The device side of a packed ring.
pub struct DeviceQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    indirect: bool,
    event_index: bool,
    in_order: bool,
    /// The next descriptor to take.
    next_available: Position,
    /// How many from there on were seen to be available.
    known: u16,
    /// Where using has got to.
    next_used: Position,
    /// Where the used descriptor goes that stands for the next chain given back. It is behind
    /// `next_used` while one descriptor stands for several chains.
    batch: Position,
    /// Up to where the driver can see.
    published: Position,
    /// The second word of the used descriptor there, which is stored last.
    first: u64,
    /// What was published at the last decision on a call; none after a start, when the driver's event structure may be
    /// from another life.
    evaluated: Option<Position>,
    /// Whether kicks are suppressed, to store that only when it changes.
    kicks_suppressed: bool,
}

/// How much of the ring a chain takes.
struct Extent {
    id: u16,
    slots: u16,
    descriptors: u16,
}

impl<M: RingMemory> DeviceQueue<M> {
    /// A queue that goes on at `position`, which is to be one of [`Layout::resume`]: everything
    /// before was used.
    ///
    /// The caller should scan it once without waiting for a kick, and call once: the driver may
    /// have been told of neither by whoever served the ring before.
    pub fn new(layout: Layout<M>, features: Features, position: u32) -> Self {
        let place = layout.resume(position).map(|place| Position::from_bits(place as u16));
        debug_assert!(place.is_some(), "{position:#x} in a ring of {}", layout.size());
        let place = place.unwrap_or(Position::FIRST);
        let mut queue = Self {
            layout,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            next_available: place,
            known: 0,
            next_used: place,
            batch: place,
            published: place,
            first: 0,
            evaluated: None,
            kicks_suppressed: false,
        };
        queue.disable_kicks();
        queue
    }

    /// Goes on under another layout of the same size: the ring's memory was mapped anew. Nothing
    /// about its position changes, but kicks are off until [`Self::enable_kicks`], as after a
    /// start.
    pub fn relocate(&mut self, layout: Layout<M>) {
        debug_assert_eq!(layout.size(), self.size());
        self.layout = layout;
        self.kicks_suppressed = false;
        self.disable_kicks();
    }

    /// Where a restart would go on, when nothing is outstanding: the next available descriptor in
    /// the lower half, the next used one in the upper half.
    pub fn position(&self) -> u32 {
        u32::from(self.next_used.bits()) << 16 | u32::from(self.next_available.bits())
    }

    /// Descriptors taken and not given back.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.next_available.since(self.next_used, self.size())
    }

    /// How many descriptors are known to be available: 0 when there is nothing to take. Looks for
    /// another one only when all known ones are gone.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Violation> {
        if self.known == 0 {
            self.look();
        }
        Ok(self.known)
    }

    /// Descriptors that the driver has made available and that were not taken, as far as it can be believed. For reports:
    /// nothing is taken note of, and of a large ring few descriptors are read.
    pub fn waiting(&self) -> u16 {
        let size = self.size();
        // They come one behind the other.
        let (mut available, mut others) = (self.known, size - self.outstanding());
        while available < others {
            let middle = available.midpoint(others);
            let place = self.next_available.advance(middle, size);
            match place.is_available(self.second_word(place.slot(), Ordering::Relaxed)) {
                true => available = middle + 1,
                false => others = middle,
            }
        }
        available
    }

    /// Looks at the first descriptor that is not known to be available.
    #[inline]
    fn look(&mut self) {
        let size = self.size();
        if self.outstanding() + self.known < size {
            let place = self.next_available.advance(self.known, size);
            // Nothing else is read by it: taking looks again.
            let word = self.second_word(place.slot(), Ordering::Relaxed);
            self.known += u16::from(place.is_available(word));
        }
    }

    #[inline]
    fn second_word(&self, slot: u16, order: Ordering) -> u64 {
        self.layout.descriptors.load(2 * usize::from(slot) + 1, order)
    }

    /// Has `take` take chains of one buffer each from `start` on, `most` at most, where the ring does not end
    /// in between.
    #[inline(always)]
    fn take_run(
        &self,
        start: Position,
        direction: Direction,
        most: usize,
        take: &mut impl FnMut(Single) -> bool,
    ) -> Singles {
        let at = 2 * usize::from(start.slot());
        // All descriptors are on their way before the first is waited for, if they are several lines.
        if most > DESCRIPTORS_IN_LINE {
            self.layout.descriptors.prefetch_run(at, 2 * most);
        }
        let is_read_only = direction == Direction::Read;
        let kind = if is_read_only { 0 } else { Descriptor::WRITE };
        let flags = start.available() | kind;
        let place = Place { id: 0, start: start.bits(), slots: 1, is_read_only };
        let first = Chain::new(place, 1, 0);
        let mut count = 0;
        for (first_word, second_word) in self.layout.descriptors.pairs(at, most) {
            // Nothing above length and id where the flags are as they should be. (Where a flag is set that means nothing,
            // too, the chain is taken as others are.)
            let what = second_word(Ordering::Acquire) ^ u64::from(flags) << 48;
            let differs = (what >> 48) as u16;
            if differs != 0 {
                return Singles { count, is_other_next: differs & Descriptor::MARKS == 0 };
            }
            // It was there when the second became available.
            let address = first_word(Ordering::Relaxed);
            let chain = first.neighbour(what, count);
            // Called from here alone: of what is called from several places the compiler makes a function, with all that it keeps in
            // memory.
            if !take(Single { chain, address: GuestAddress(address) }) {
                return Singles { count, is_other_next: true };
            }
            count += 1;
        }
        Singles { count, is_other_next: false }
    }

    /// Takes the next chain and appends its device-readable bytes to `slices`: at most `limit`
    /// bytes; what is beyond is counted, not translated. Writable descriptors are passed over, but
    /// in an indirect table all are read: see `walk_indirect`.
    ///
    /// On a violation nothing is taken, though slices may have been appended.
    #[inline]
    pub fn take_readable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<Option<Chain>, Violation> {
        let Some(head) = self.peek()? else {
            return Ok(None);
        };
        let mut readable = Readable::new(slices, limit);
        let extent = self.walk_available(head, translator, &mut readable)?;
        let Readable { bytes, is_read_only, .. } = readable;
        Ok(Some(self.taken(extent, bytes, is_read_only)))
    }

    /// The second word of the next available descriptor.
    #[inline]
    fn peek(&mut self) -> Result<Option<u64>, Violation> {
        if self.outstanding() == self.size() {
            return Ok(None);
        }
        let slot = self.next_available.slot();
        let word = self.second_word(slot, Ordering::Acquire);
        if self.next_available.is_available(word) {
            Ok(Some(word))
        } else if self.known == 0 {
            Ok(None)
        } else {
            Err(Violation::Withdrawn { slot })
        }
    }

    /// Moves on by a chain.
    #[inline]
    fn taken(&mut self, extent: Extent, bytes: u64, is_read_only: bool) -> Chain {
        let Extent { id, slots, descriptors } = extent;
        let start = self.next_available;
        self.next_available = start.advance(slots, self.size());
        if self.known > 0 {
            self.known = self.known.saturating_sub(slots);
        }
        Chain::new(Place { id, start: start.bits(), slots, is_read_only }, descriptors, bytes)
    }

    /// Appends where the device-readable bytes of a chain are that was taken; see
    /// [`crate::DeviceQueue::pieces`].
    pub fn pieces(
        &self,
        chain: Chain,
        translator: &mut Translator<'_>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Violation> {
        let Place { start, slots, .. } = chain.place();
        let slot = Position::from_bits(start).slot();
        let head = self.second_word(slot, Ordering::Relaxed);
        self.walk(slot, head, slots, translator, &mut Pieces::new(chain, pieces)).map(|_| ())
    }

    /// Walks the next available chain, whose head's second word was read.
    #[inline(always)]
    fn walk_available<'m>(
        &self,
        head: u64,
        translator: &mut Translator<'m>,
        visitor: &mut impl Visitor<'m>,
    ) -> Result<Extent, Violation> {
        let room = self.size() - self.outstanding();
        self.walk(self.next_available.slot(), head, room, translator, visitor)
    }

    /// Visits each descriptor of a chain that begins in `slot`, indirect ones included, in order.
    /// It may take no more than `room` slots.
    #[inline(always)]
    fn walk<'m>(
        &self,
        mut slot: u16,
        head: u64,
        room: u16,
        translator: &mut Translator<'m>,
        visitor: &mut impl Visitor<'m>,
    ) -> Result<Extent, Violation> {
        let size = self.size();
        let mut second = head;
        for count in 1..=room {
            let first = self.layout.descriptors.load(2 * usize::from(slot), Ordering::Relaxed);
            let descriptor = Descriptor::from_words([first, second]);
            if descriptor.is_indirect() {
                if count > 1 || descriptor.has_next() {
                    return Err(Violation::IndirectMisplaced);
                }
                let descriptors = self.walk_indirect(descriptor, translator, visitor)?;
                return Ok(Extent { id: descriptor.id, slots: 1, descriptors });
            }
            visitor.visit(translator, descriptor.into())?;
            if !descriptor.has_next() {
                return Ok(Extent { id: descriptor.id, slots: count, descriptors: count });
            }
            slot = if slot + 1 < size { slot + 1 } else { 0 };
            // Visible since the head was: the driver makes that available last.
            second = self.second_word(slot, Ordering::Relaxed);
        }
        Err(if room == size {
            Violation::ChainTooLong { size }
        } else {
            Violation::ChainOverrun { room, size }
        })
    }

    /// Visits the descriptors of an indirect table, one after the other. Of their flags only WRITE
    /// means anything (virtio 1.3, 2.8.7).
    ///
    /// What is to be read is read even there. DPDK's driver prepares its tables with WRITE set and
    /// does not clear it in the header's descriptor, and sometimes not in another one: frames of
    /// several buffers would be lost. A device only *should* not read writable buffers (2.8.15).
    fn walk_indirect<'m, V: Visitor<'m>>(
        &self,
        referrer: Descriptor,
        translator: &mut Translator<'m>,
        visitor: &mut V,
    ) -> Result<u16, Violation> {
        if !self.indirect {
            return Err(Violation::IndirectNotNegotiated);
        }
        let entries = table_entries(referrer.length, self.size())?;
        for index in 0..entries {
            let words = table_words(translator, referrer.address, index)?;
            let mut element = Element::from(Descriptor::from_words(words));
            element.is_writable &= !V::READS;
            visitor.visit(translator, element)?;
        }
        Ok(entries)
    }

    /// See [`crate::DeviceQueue::publish`].
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn publish(&mut self) -> bool {
        self.expose() && {
            // Our descriptor before their event structure; see the module's text.
            M::fence();
            self.wants_call()
        }
    }

    /// See [`crate::DeviceQueue::expose`].
    #[inline]
    #[must_use = "the driver may want a call"]
    pub fn expose(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        let at = 2 * usize::from(self.published.slot()) + 1;
        self.layout.descriptors.store(at, self.first, Ordering::Release);
        self.published = self.next_used;
        self.batch = self.next_used;
        true
    }

    /// See [`crate::DeviceQueue::wants_call`]; and virtio 1.3, 2.8.10.
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn wants_call(&mut self) -> bool {
        let size = self.size();
        let event = Event::from_word(self.layout.driver_event.load(0, Ordering::Relaxed));
        match (event, self.evaluated.replace(self.published)) {
            (Event::At(_), None) => true,
            (event, evaluated) => {
                let count = evaluated.map_or(0, |before| self.published.since(before, size));
                event.is_wanted(self.event_index, self.published, count, size)
            }
        }
    }

    /// Whether the driver has taken all that was given back, and waits to be called for what comes next.
    /// Only EVENT_IDX tells; without it, and while the driver polls, the answer is no.
    pub fn is_drained(&self) -> bool {
        let event = || Event::from_word(self.layout.driver_event.load(0, Ordering::Relaxed));
        let is_published = self.published == self.next_used;
        self.event_index && is_published && event() == Event::At(self.published)
    }

    /// Says that no kicks are wanted.
    pub fn disable_kicks(&mut self) {
        if !self.kicks_suppressed {
            self.layout.device_event.store(0, Event::Never.to_word(), Ordering::Relaxed);
        }
        self.kicks_suppressed = true;
    }

    /// Asks for a kick at the next chain beyond those that are known, then looks once more: true when
    /// there are chains to take, and a caller that takes any must not sleep. One that waits for more
    /// than it knows of must not sleep either when [`Self::available`] grew by this.
    pub fn enable_kicks(&mut self) -> Result<bool, Violation> {
        if self.event_index {
            let place = self.next_available.advance(self.known, self.size());
            let event = Event::At(place).to_word();
            self.layout.device_event.store(0, event, Ordering::Relaxed);
        } else if self.kicks_suppressed {
            self.layout.device_event.store(0, Event::Always.to_word(), Ordering::Relaxed);
        }
        self.kicks_suppressed = false;
        // Our event structure before their descriptor; see the module's text.
        M::fence();
        self.look();
        Ok(self.known > 0)
    }
}

impl<M: RingMemory> DeviceRing for DeviceQueue<M> {
    #[inline(always)]
    fn size(&self) -> u16 {
        self.layout.size()
    }

    #[inline(always)]
    fn take_singles(
        &mut self,
        direction: Direction,
        most: usize,
        mut take: impl FnMut(Single) -> bool,
    ) -> Result<Singles, Violation> {
        let mut all = Singles { count: 0, is_other_next: false };
        if self.available()? == 0 {
            return Ok(all);
        }
        let size = self.size();
        let most = most.min((size - self.outstanding()).into());
        // Twice, where the ring ends in between.
        while all.count < most {
            let start = self.next_available;
            let run = usize::from(size - start.slot()).min(most - all.count);
            let Singles { count, is_other_next } = self.take_run(start, direction, run, &mut take);
            self.next_available = start.advance(count as u16, size);
            self.known = self.known.saturating_sub(count as u16);
            all.count += count;
            if count < run {
                // Or fewer are there than were known to be.
                all.is_other_next = is_other_next || self.known > 0;
                return Ok(all);
            }
        }
        if all.count > DESCRIPTORS_IN_LINE {
            // As many were there as were wanted. If there is one more, there are likely to be many, which are on their way while
            // these are dealt with; if there is none, the driver may be writing there, and keeps its lines.
            self.look();
        }
        if all.count > DESCRIPTORS_IN_LINE && self.known > 0 {
            let behind = 2 * usize::from(self.next_available.slot());
            self.layout.descriptors.prefetch_run(behind, 2 * all.count);
        }
        Ok(all)
    }

    #[inline(always)]
    fn has_one(&self) -> bool {
        let next = self.next_available.advance(1, self.size());
        let is_other_there = || next.is_available(self.second_word(next.slot(), Ordering::Relaxed));
        self.known == 1 && !is_other_there()
    }

    #[inline]
    fn take_writable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<Option<Chain>, Violation> {
        let Some(head) = self.peek()? else {
            return Ok(None);
        };
        let mut writable = Writable::new(slices, limit);
        let extent = self.walk_available(head, translator, &mut writable)?;
        let bytes = writable.bytes;
        Ok(Some(self.taken(extent, bytes, false)))
    }

    // Rare, and kept out of the loops that take.
    #[inline(never)]
    fn untake<'c>(&mut self, chains: impl IntoIterator<Item = &'c Chain>) {
        let slots =
            chains.into_iter().fold(0u16, |slots, chain| slots.saturating_add(chain.place().slots));
        debug_assert!(slots <= self.outstanding());
        let slots = slots.min(self.outstanding());
        self.next_available = self.next_available.retreat(slots, self.size());
        self.known += slots;
    }

    #[inline(always)]
    fn give_back(&mut self, chain: Chain, written: u32) {
        let Place { id, start, slots, is_read_only } = chain.place();
        debug_assert!(!self.in_order || start == self.next_used.bits(), "not in order");
        let used = self.batch.used_word(id, written);
        if self.batch == self.published {
            self.first = used;
        } else {
            let at = 2 * usize::from(self.batch.slot()) + 1;
            self.layout.descriptors.store(at, used, Ordering::Relaxed);
        }
        self.next_used = self.next_used.advance(slots, self.size());
        // With IN_ORDER the next chain's descriptor may replace that of one without anything
        // written, unless that is in the ring already.
        let is_replaceable = self.in_order && is_read_only && self.batch == self.published;
        if !is_replaceable {
            self.batch = self.next_used;
        }
    }

    #[inline(always)]
    fn give_all_back(&mut self, mut chains: impl Iterator<Item = (Chain, u32)>) {
        // What is stored last, at a publication: one used descriptor, which with IN_ORDER may stand for
        // all of these chains.
        while self.batch == self.published {
            let Some((chain, written)) = chains.next() else { return };
            self.give_back(chain, written);
        }
        let size = self.size();
        let mut next = self.next_used;
        loop {
            // Up to the end of the ring, where the marks change.
            let mut slot = next.slot();
            for (chain, written) in chains.by_ref() {
                debug_assert!(
                    !self.in_order
                        || chain.place().start == next.advance(slot - next.slot(), size).bits(),
                    "not in order"
                );
                let at = 2 * usize::from(slot) + 1;
                let used = next.used_word(chain.id(), written);
                self.layout.descriptors.store(at, used, Ordering::Relaxed);
                slot = slot.wrapping_add(chain.slots());
                if slot >= size {
                    break;
                }
            }
            next = next.advance(slot - next.slot(), size);
            if slot < size {
                break;
            }
        }
        self.next_used = next;
        self.batch = next;
    }
}

impl From<Descriptor> for Element {
    #[inline]
    fn from(descriptor: Descriptor) -> Self {
        Self {
            address: descriptor.address,
            len: descriptor.length,
            is_writable: descriptor.is_writable(),
        }
    }
}
