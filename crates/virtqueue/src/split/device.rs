//! The device side: takes chains, gives them back used.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use memory::{GuestAddress, ReadSlice, Translator, WriteSlice};
use wire::split::{Descriptor, NO_INTERRUPT, NO_NOTIFY, event_crossed};
use wire::virtio::Features;

use super::layout::{ENTRIES, FLAGS, INDEX, Layout, load, store};
use crate::Violation;

/// A chain that the device holds. It has to be given back, once, by [`DeviceQueue::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a chain that is not given back is lost to the driver"]
pub struct Chain {
    /// The index of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// Bytes in the chain's descriptors of the direction that was asked for. May exceed what was
    /// translated, where a limit was given.
    pub bytes: u64,
    /// Descriptors in the chain, those of no bytes included: what it cost to read.
    pub descriptors: u16,
}

/// The device side of a split ring.
pub struct DeviceQueue {
    layout: Layout,
    indirect: bool,
    event_index: bool,
    /// The next available entry to take.
    next_available: u16,
    /// The available index as last read.
    available: u16,
    /// The next used entry to write.
    next_used: u16,
    /// The used index that the driver can see.
    published: u16,
    /// The used index at the last decision on a call; none after a start, when the driver's
    /// used_event may be from another life.
    evaluated: Option<u16>,
    /// Whether kicks are suppressed by flag, to store it only when it changes.
    kicks_suppressed: bool,
}

impl DeviceQueue {
    /// A queue that goes on at index `base` of both rings: everything before was used.
    ///
    /// The caller should scan it once without waiting for a kick, and call once: the driver may
    /// have been told of neither by whoever served the ring before.
    pub fn new(layout: Layout, features: Features, base: u16) -> Self {
        let queue = Self {
            layout,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            next_available: base,
            available: base,
            next_used: base,
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
    pub fn relocate(&mut self, layout: Layout) {
        debug_assert_eq!(layout.size(), self.size());
        self.layout = layout;
        self.kicks_suppressed = true;
        self.suppress_kicks();
    }

    /// Writes the word that keeps kicks away, whatever another life of the ring left there.
    fn suppress_kicks(&self) {
        if self.event_index {
            // As far behind as can be: the driver will not cross it for 65535 chains.
            let behind = self.next_available.wrapping_sub(1);
            store(&self.layout.available_event, 0, behind, Ordering::Relaxed);
        } else {
            store(&self.layout.used, FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Where a restart would go on, when nothing is outstanding: the next available entry.
    pub fn position(&self) -> u16 {
        self.next_available
    }

    /// Chains taken and not given back.
    pub fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// How many chains can be taken. Reads the index only when all known ones are gone, so that a
    /// busy driver's cache line is left alone.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Violation> {
        if self.available == self.next_available {
            self.refresh()?;
        }
        Ok(self.available.wrapping_sub(self.next_available))
    }

    fn refresh(&mut self) -> Result<(), Violation> {
        let found = self.layout.available_index();
        let ahead = found.wrapping_sub(self.next_used);
        // Both counted from the same place, so that an index that went backwards is seen as such
        // even while chains are outstanding.
        let known = self.available.wrapping_sub(self.next_used);
        if ahead > self.size() || ahead < known {
            return Err(Violation::AvailableIndex {
                found,
                taken: self.next_available,
                size: self.size(),
            });
        }
        self.available = found;
        Ok(())
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
        let chain = self.readable(head, translator, limit, slices)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Reads a chain that was taken before and not given back once more: its descriptors are
    /// fetched and checked afresh.
    pub fn retake_readable<'m>(
        &self,
        head: u16,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<Chain, Violation> {
        self.readable(head, translator, limit, slices)
    }

    #[inline]
    fn readable<'m>(
        &self,
        head: u16,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<Chain, Violation> {
        let mut bytes = 0u64;
        let mut writable = false;
        let descriptors = self.walk(head, translator, |translator, descriptor| {
            if descriptor.is_writable() {
                writable = true;
                return Ok(());
            }
            if writable {
                return Err(Violation::ReadableAfterWritable);
            }
            let room = u64::from(limit).saturating_sub(bytes).min(u64::from(descriptor.length));
            translator.read(GuestAddress(descriptor.address), room as u32, slices)?;
            bytes += u64::from(descriptor.length);
            Ok(())
        })?;
        Ok(Chain { head, bytes, descriptors })
    }

    /// Takes the next chain, as one to be written, and appends its bytes to `slices`, at most
    /// `limit` as above.
    ///
    /// On a violation nothing is taken, though slices may have been appended.
    #[inline]
    pub fn take_writable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<Option<Chain>, Violation> {
        let Some(head) = self.peek()? else {
            return Ok(None);
        };
        let mut bytes = 0u64;
        let descriptors = self.walk(head, translator, |translator, descriptor| {
            if !descriptor.is_writable() {
                return Err(Violation::ReadableReceiveBuffer);
            }
            let room = u64::from(limit).saturating_sub(bytes).min(u64::from(descriptor.length));
            translator.write(GuestAddress(descriptor.address), room as u32, slices)?;
            bytes += u64::from(descriptor.length);
            Ok(())
        })?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(Chain { head, bytes, descriptors }))
    }

    /// Puts back the last `count` chains taken, as if they had not been: they are still available.
    /// None of them may have been given back.
    pub fn untake(&mut self, count: u16) {
        debug_assert!(count <= self.outstanding());
        self.next_available = self.next_available.wrapping_sub(count.min(self.outstanding()));
    }

    /// The next available head.
    #[inline]
    fn peek(&mut self) -> Result<Option<u16>, Violation> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let size = self.size();
        let slot = usize::from(self.next_available & (size - 1));
        let head = load(&self.layout.available, ENTRIES + slot, Ordering::Relaxed);
        if head >= size {
            return Err(Violation::Head { head, size });
        }
        Ok(Some(head))
    }

    /// Visits each descriptor of a chain, indirect ones included, in order. Returns how many.
    #[inline]
    fn walk<'m>(
        &self,
        head: u16,
        translator: &mut Translator<'m>,
        mut visit: impl FnMut(&mut Translator<'m>, Descriptor) -> Result<(), Violation>,
    ) -> Result<u16, Violation> {
        let size = self.size();
        let mut at = head;
        for count in 1..=size {
            let descriptor = descriptor(&self.layout.descriptors, at.into())
                .ok_or(Violation::Next { next: at, size: size.into() })?;
            if descriptor.is_indirect() {
                return self.walk_indirect(descriptor, count - 1, translator, visit);
            }
            visit(translator, descriptor)?;
            if !descriptor.has_next() {
                return Ok(count);
            }
            at = descriptor.next;
        }
        Err(Violation::ChainTooLong { size })
    }

    /// Visits the descriptors of an indirect table; `before` direct ones came ahead of it.
    fn walk_indirect<'m>(
        &self,
        referrer: Descriptor,
        before: u16,
        translator: &mut Translator<'m>,
        mut visit: impl FnMut(&mut Translator<'m>, Descriptor) -> Result<(), Violation>,
    ) -> Result<u16, Violation> {
        let size = self.size();
        if !self.indirect {
            return Err(Violation::IndirectNotNegotiated);
        }
        if referrer.has_next() {
            return Err(Violation::IndirectMisplaced);
        }
        let len = referrer.length;
        let entries = len / Descriptor::SIZE as u32;
        if entries == 0 || !len.is_multiple_of(Descriptor::SIZE as u32) || entries > size.into() {
            return Err(Violation::IndirectLength { len, size });
        }
        let mut at = 0u16;
        for count in before..size {
            if u32::from(at) >= entries {
                return Err(Violation::Next { next: at, size: entries });
            }
            let offset = u64::from(at) * Descriptor::SIZE;
            let descriptor = table_descriptor(translator, referrer.address, offset)?;
            if descriptor.is_indirect() {
                return Err(Violation::IndirectMisplaced);
            }
            visit(translator, descriptor)?;
            if !descriptor.has_next() {
                return Ok(count + 1);
            }
            at = descriptor.next;
        }
        Err(Violation::ChainTooLong { size })
    }

    /// Gives a chain back, with `written` bytes written to it from its start. The driver sees it
    /// after [`Self::publish`].
    #[inline]
    pub fn give_back(&mut self, chain: Chain, written: u32) {
        let slot = 2 * usize::from(self.next_used & (self.size() - 1));
        if let Some([id, len]) = self.layout.used_entries.get(slot..slot + 2) {
            id.store(u32::from(chain.head).to_le(), Ordering::Relaxed);
            len.store(written.to_le(), Ordering::Relaxed);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Publishes all chains given back since the last time. Returns whether the driver wants to be
    /// called (virtio 1.3, 2.7.7.2).
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        store(&self.layout.used, INDEX, self.next_used, Ordering::Release);
        self.published = self.next_used;
        // Our index before their event word; see the module's text.
        fence(Ordering::SeqCst);
        if !self.event_index {
            return load(&self.layout.available, FLAGS, Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let event = load(&self.layout.available, self.layout.used_event(), Ordering::Relaxed);
        match self.evaluated.replace(self.next_used) {
            Some(old) => event_crossed(event, self.next_used, old),
            None => true,
        }
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
            store(&self.layout.available_event, 0, self.available, Ordering::Relaxed);
        } else if self.kicks_suppressed {
            store(&self.layout.used, FLAGS, 0, Ordering::Relaxed);
        }
        self.kicks_suppressed = false;
        // Our event word before their index; see the module's text.
        fence(Ordering::SeqCst);
        self.refresh()?;
        Ok(self.available != self.next_available)
    }
}

/// Reads one descriptor of the ring's own table, once.
#[inline]
fn descriptor(table: &[AtomicU64], index: usize) -> Option<Descriptor> {
    let [address, rest] = table.get(2 * index..2 * index + 2)? else {
        return None;
    };
    let words = [address.load(Ordering::Relaxed), rest.load(Ordering::Relaxed)];
    Some(Descriptor::from_words(words.map(u64::from_le)))
}

/// Reads one descriptor of an indirect table, once. A table has no alignment and may lie across
/// regions.
fn table_descriptor(
    translator: &mut Translator<'_>,
    table: u64,
    offset: u64,
) -> Result<Descriptor, Violation> {
    // A table at the very end of the address space is outside of any region, wrapped or not.
    let address = GuestAddress(table.saturating_add(offset));
    let mut bytes = [0; Descriptor::SIZE as usize];
    translator.copy_to(address, &mut bytes)?;
    let (words, _) = bytes.as_chunks();
    Ok(Descriptor::from_words([words[0], words[1]].map(u64::from_le_bytes)))
}
