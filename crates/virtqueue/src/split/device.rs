//! The device side: takes chains, gives them back used.

use std::sync::atomic::Ordering;

use memory::{GuestAddress, ReadSlice, Translator, WriteSlice};
use wire::split::{Descriptor, NO_INTERRUPT, NO_NOTIFY, event_crossed};
use wire::virtio::Features;

use super::index::Index;
use super::layout::{ENTRIES, FLAGS, INDEX, Layout};
use crate::chain::{Pieces, Place, Readable, Visitor, Writable, table_entries, table_words};
use crate::fields::{Fields, Mapped, RingMemory};
use crate::{Chain, DeviceRing, Direction, Piece, Single, Singles, Violation};

/// Descriptors in a cache line.
const DESCRIPTORS_IN_LINE: usize = 4;

/// The device side of a split ring.
pub struct DeviceQueue<M: RingMemory = Mapped> {
    layout: Layout<M>,
    indirect: bool,
    event_index: bool,
    in_order: bool,
    /// The next available entry to take.
    next_available: Index,
    /// The available index as last read.
    available: Index,
    /// The next used entry to write.
    next_used: Index,
    /// Where the used entry goes that stands for the next chain given back. It is behind
    /// `next_used` while one entry stands for several chains.
    batch: Index,
    /// The used index that the driver can see.
    published: Index,
    /// The used index at the last decision on a call; none after a start, when the driver's
    /// used_event may be from another life.
    evaluated: Option<Index>,
    /// Whether kicks are suppressed by flag, to store it only when it changes.
    kicks_suppressed: bool,
}

/// How long a chain is.
struct Extent {
    /// Descriptors in the ring's own table.
    slots: u16,
    /// Those that are not indirect, of both tables.
    descriptors: u16,
}

impl<M: RingMemory> DeviceQueue<M> {
    /// A queue that goes on at index `base` of both rings: everything before was used.
    ///
    /// The caller should scan it once without waiting for a kick, and call once: the driver may
    /// have been told of neither by whoever served the ring before.
    pub fn new(layout: Layout<M>, features: Features, base: u16) -> Self {
        let base = Index::new(base);
        let queue = Self {
            layout,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
            next_available: base,
            available: base,
            next_used: base,
            batch: base,
            published: base,
            evaluated: None,
            kicks_suppressed: true,
        };
        queue.suppress_kicks();
        queue
    }

    /// Goes on under another layout of the same size: the ring's memory was mapped anew. Nothing
    /// about its position changes, but kicks are off until [`Self::enable_kicks`], as after a
    /// start.
    pub fn relocate(&mut self, layout: Layout<M>) {
        debug_assert_eq!(layout.size(), self.size());
        self.layout = layout;
        self.kicks_suppressed = true;
        self.suppress_kicks();
    }

    /// Writes the word that keeps kicks away, whatever another life of the ring left there.
    fn suppress_kicks(&self) {
        if self.event_index {
            // As far behind as can be: the driver will not cross it for 65535 chains.
            let behind = self.next_available.retreat(1).get();
            self.layout.available_event.store(0, behind, Ordering::Relaxed);
        } else {
            self.layout.used.store(FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Where a restart would go on, when nothing is outstanding: the next available entry.
    pub fn position(&self) -> u16 {
        self.next_available.get()
    }

    /// Chains taken and not given back.
    pub fn outstanding(&self) -> u16 {
        self.next_available.since(self.next_used)
    }

    /// How many chains can be taken. Reads the index only when all known ones are gone, so that a
    /// busy driver's cache line is left alone.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Violation> {
        if self.available == self.next_available {
            self.refresh()?;
        }
        Ok(self.available.since(self.next_available))
    }

    fn refresh(&mut self) -> Result<(), Violation> {
        let found = Index::new(self.layout.available_index());
        let ahead = found.since(self.next_used);
        // Both counted from the same place, so that an index that went backwards is seen as such
        // even while chains are outstanding.
        let known = self.available.since(self.next_used);
        if ahead > self.size() || ahead < known {
            return Err(Violation::AvailableIndex {
                found: found.get(),
                taken: self.next_available.get(),
                size: self.size(),
            });
        }
        self.available = found;
        Ok(())
    }

    /// Has `take` take chains of one buffer each from `start` on, `most` at most, where the ring does not end
    /// in between. Returns how many.
    #[inline(always)]
    fn take_run(
        &self,
        start: Index,
        direction: Direction,
        most: usize,
        take: &mut impl FnMut(Single) -> bool,
    ) -> usize {
        let at = ENTRIES + start.slot(self.size());
        // All descriptors are on their way before the first is waited for, if they are several lines.
        if most > DESCRIPTORS_IN_LINE {
            self.fetch(at, most);
        }
        let is_read_only = direction == Direction::Read;
        let kind = if is_read_only { 0 } else { Descriptor::WRITE };
        let place = Place { id: 0, start: start.get(), slots: 1, is_read_only };
        let first = Chain::new(place, 1, 0);
        let mut taken = 0;
        for head in self.layout.available.load_run(at, most) {
            let Some(Descriptor { address, length, flags, .. }) = self.descriptor(head) else {
                break;
            };
            if flags & Descriptor::KIND != kind {
                break;
            }
            let chain = first.neighbour(u64::from(length) | u64::from(head) << 32, taken);
            if !take(Single { chain, address: GuestAddress(address) }) {
                break;
            }
            taken += 1;
        }
        taken
    }

    /// Has the descriptors of so many available entries be fetched. Neighbours are most often neighbours there too.
    #[inline(always)]
    fn fetch(&self, at: usize, most: usize) {
        let mut ahead = 0;
        while ahead < most {
            let head = self.layout.available.load(at + ahead, Ordering::Relaxed);
            self.layout.descriptors.prefetch(2 * usize::from(head));
            ahead += DESCRIPTORS_IN_LINE;
        }
    }

    /// Has the descriptors be fetched of what is known to be available behind so many that were taken, as many again.
    #[inline(always)]
    fn fetch_behind(&self, count: usize) {
        let slot = self.next_available.slot(self.size());
        let known = usize::from(self.available.since(self.next_available));
        let most = count.min(known).min(usize::from(self.size()) - slot);
        self.fetch(ENTRIES + slot, most);
        self.layout.available.prefetch(ENTRIES + slot + most);
    }

    /// Takes the next chain and appends its device-readable bytes to `slices`: at most `limit`
    /// bytes; what is beyond is counted, not translated. Writable descriptors are passed over.
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
        let extent = self.walk(head, translator, &mut readable)?;
        let Readable { bytes, is_read_only, .. } = readable;
        Ok(Some(self.taken(head, extent, bytes, is_read_only)))
    }

    /// Moves on by a chain.
    #[inline]
    fn taken(&mut self, head: u16, extent: Extent, bytes: u64, is_read_only: bool) -> Chain {
        let Extent { slots, descriptors } = extent;
        let start = self.next_available;
        self.next_available = start.advance(1);
        let place = Place { id: head, start: start.get(), slots, is_read_only };
        Chain::new(place, descriptors, bytes)
    }

    /// Appends where the device-readable bytes of a chain are that was taken; see
    /// [`crate::DeviceQueue::pieces`].
    pub fn pieces(
        &self,
        chain: Chain,
        translator: &mut Translator<'_>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Violation> {
        self.walk(chain.id(), translator, &mut Pieces::new(chain, pieces)).map(|_| ())
    }

    /// The next available head.
    #[inline]
    fn peek(&mut self) -> Result<Option<u16>, Violation> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let size = self.size();
        let slot = self.next_available.slot(size);
        let head = self.layout.available.load(ENTRIES + slot, Ordering::Relaxed);
        if head >= size {
            return Err(Violation::Head { head, size });
        }
        Ok(Some(head))
    }

    /// Visits each descriptor of a chain, indirect ones included, in order.
    #[inline(always)]
    fn walk<'m>(
        &self,
        head: u16,
        translator: &mut Translator<'m>,
        visitor: &mut impl Visitor<'m>,
    ) -> Result<Extent, Violation> {
        let size = self.size();
        let mut at = head;
        for count in 1..=size {
            let Some(descriptor) = self.descriptor(at) else {
                return Err(Violation::Next { next: at, size: size.into() });
            };
            if descriptor.is_indirect() {
                let descriptors = self.walk_indirect(descriptor, count - 1, translator, visitor)?;
                return Ok(Extent { slots: count, descriptors });
            }
            visitor.visit(translator, descriptor.into())?;
            if !descriptor.has_next() {
                return Ok(Extent { slots: count, descriptors: count });
            }
            at = descriptor.next;
        }
        Err(Violation::ChainTooLong { size })
    }

    /// Reads one descriptor of the ring's own table, once. None when there is no such one.
    #[inline]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        self.layout.descriptors.load_two(2 * usize::from(index)).map(Descriptor::from_words)
    }

    /// Visits the descriptors of an indirect table; `before` direct ones came ahead of it. Returns how many they are together.
    fn walk_indirect<'m>(
        &self,
        referrer: Descriptor,
        before: u16,
        translator: &mut Translator<'m>,
        visitor: &mut impl Visitor<'m>,
    ) -> Result<u16, Violation> {
        let size = self.size();
        if !self.indirect {
            return Err(Violation::IndirectNotNegotiated);
        }
        if referrer.has_next() {
            return Err(Violation::IndirectMisplaced);
        }
        let entries = table_entries(referrer.length, size)?;
        let mut at = 0u16;
        for count in before..size {
            if at >= entries {
                return Err(Violation::Next { next: at, size: entries.into() });
            }
            let words = table_words(translator, referrer.address, at)?;
            let descriptor = Descriptor::from_words(words);
            if descriptor.is_indirect() {
                return Err(Violation::IndirectMisplaced);
            }
            visitor.visit(translator, descriptor.into())?;
            if !descriptor.has_next() {
                return Ok(count + 1);
            }
            at = descriptor.next;
        }
        Err(Violation::ChainTooLong { size })
    }

    #[inline(always)]
    fn write_used(&mut self, chains: impl ExactSizeIterator<Item = (Chain, u32)>) {
        let mut entries = chains.map(|(chain, written)| [chain.id().into(), written]);
        let Layout { used_entries, .. } = &self.layout;
        let (slot, count) = (self.next_used.slot(self.size()), entries.len());
        let room = usize::from(self.size()) - slot;
        if count <= room {
            used_entries.store_pairs(2 * slot, entries);
        } else {
            used_entries.store_pairs(2 * slot, entries.by_ref().take(room));
            used_entries.store_pairs(0, entries);
        }
        self.next_used = self.next_used.advance(count as u16);
        self.batch = self.next_used;
    }

    /// As [`Self::write_used`], with IN_ORDER.
    #[inline(always)]
    fn write_used_in_order(&mut self, chains: impl Iterator<Item = (Chain, u32)>) {
        let size = self.size();
        let (mut next, mut batch) = (self.next_used, self.batch);
        for (chain, written) in chains {
            let Place { id, start, is_read_only, .. } = chain.place();
            debug_assert!(start == next.get(), "not in order");
            self.layout.used_entries.store_two(2 * batch.slot(size), [id.into(), written]);
            next = next.advance(1);
            // The next chain's entry may replace that of one without anything written.
            if !is_read_only {
                batch = next;
            }
        }
        (self.next_used, self.batch) = (next, batch);
    }

    /// See [`crate::DeviceQueue::publish`].
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn publish(&mut self) -> bool {
        self.expose() && {
            // Our index before their event word; see the module's text.
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
        self.layout.used.store(INDEX, self.next_used.get(), Ordering::Release);
        self.published = self.next_used;
        self.batch = self.next_used;
        true
    }

    /// See [`crate::DeviceQueue::wants_call`]; and virtio 1.3, 2.7.7.2.
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn wants_call(&mut self) -> bool {
        if !self.event_index {
            return self.layout.available.load(FLAGS, Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let event = self.layout.available.load(self.layout.used_event(), Ordering::Relaxed);
        match self.evaluated.replace(self.published) {
            Some(old) => event_crossed(event, self.published.get(), old.get()),
            None => true,
        }
    }

    /// Chains that the driver has made available and that were not taken, as far as it can be believed. For reports: nothing
    /// is taken note of.
    pub fn waiting(&self) -> u16 {
        let found = Index::new(self.layout.available_index());
        found.since(self.next_available).min(self.size() - self.outstanding())
    }

    /// Whether the driver has taken all that was given back, and waits to be called for what comes next.
    /// Only EVENT_IDX tells; without it, and while the driver polls, the answer is no.
    pub fn is_drained(&self) -> bool {
        let event = || self.layout.available.load(self.layout.used_event(), Ordering::Relaxed);
        self.event_index && self.published == self.next_used && event() == self.published.get()
    }

    /// Says that no kicks are wanted. With EVENT_IDX the event word is left behind, where the
    /// driver will not cross it again for 65536 chains.
    pub fn disable_kicks(&mut self) {
        if !self.event_index && !self.kicks_suppressed {
            self.suppress_kicks();
        }
        self.kicks_suppressed = true;
    }

    /// Asks for a kick at the next chain beyond those that are known, then looks once more: true when
    /// there are chains to take, and a caller that takes any must not sleep. One that waits for more
    /// than it knows of must not sleep either when [`Self::available`] grew by this.
    pub fn enable_kicks(&mut self) -> Result<bool, Violation> {
        if self.event_index {
            self.layout.available_event.store(0, self.available.get(), Ordering::Relaxed);
        } else if self.kicks_suppressed {
            self.layout.used.store(FLAGS, 0, Ordering::Relaxed);
        }
        self.kicks_suppressed = false;
        // Our event word before their index; see the module's text.
        M::fence();
        self.refresh()?;
        Ok(self.available != self.next_available)
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
        if usize::from(self.available.since(self.next_available)) < most {
            self.refresh()?;
        }
        let most = most.min(self.available.since(self.next_available).into());
        let mut count = 0;
        // Twice, where the ring ends in between.
        while count < most {
            let start = self.next_available;
            let room = usize::from(self.size()) - start.slot(self.size());
            let run = room.min(most - count);
            let taken = self.take_run(start, direction, run, &mut take);
            self.next_available = start.advance(taken as u16);
            count += taken;
            if taken < run {
                break;
            }
        }
        if count > DESCRIPTORS_IN_LINE {
            self.fetch_behind(count);
        }
        Ok(Singles { count, is_other_next: count < most })
    }

    #[inline(always)]
    fn has_one(&self) -> bool {
        // What is known may be old, if it is what an earlier burst has left.
        let is_known = self.available.since(self.next_available) == 1;
        is_known && self.layout.available_index() == self.available.get()
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
        let extent = self.walk(head, translator, &mut writable)?;
        let bytes = writable.bytes;
        Ok(Some(self.taken(head, extent, bytes, false)))
    }

    // Rare, and kept out of the loops that take.
    #[inline(never)]
    fn untake<'c>(&mut self, chains: impl IntoIterator<Item = &'c Chain>) {
        let count = chains.into_iter().count() as u16;
        debug_assert!(count <= self.outstanding());
        self.next_available = self.next_available.retreat(count.min(self.outstanding()));
    }

    #[inline(always)]
    fn give_back(&mut self, chain: Chain, written: u32) {
        self.give_all_back(std::iter::once((chain, written)));
    }

    #[inline(always)]
    fn give_all_back(&mut self, chains: impl ExactSizeIterator<Item = (Chain, u32)>) {
        if self.in_order {
            self.write_used_in_order(chains);
        } else {
            self.write_used(chains);
        }
    }
}
