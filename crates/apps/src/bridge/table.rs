//! Where addresses live: a bounded table that a hostile sender can neither grow nor aim at.
//!
//! # How it works
//!
//! Set-associative: an address belongs to one bucket of [`WAYS`] entries, chosen by a hash that is
//! keyed anew for each bridge, so that nobody outside knows which addresses share a bucket. A new
//! address takes an empty or aged entry, or else the one of its bucket that was seen least recently.
//!
//! A port that floods the table with forged addresses could push everybody's out that way. So it
//! has half of a bucket, as long as others need the rest: see [`eviction`](crate::eviction).
//!
//! The same address may be in several VLANs, at other ports. So each VLAN has a mask that is worked out of the key
//! ([`Domain`]), and an address is known by what it is behind that mask: one number, as without VLANs. Two stations of
//! two VLANs would be taken for one if their addresses differed by as much as the masks do, which nobody can know.
//!
//! Time comes in whole seconds, and ageing is decided when an entry is looked at. Those that have aged are swept away
//! as well, a slice with each tick, so that it is known how many there are: see [`occupancy`](crate::occupancy).
//!
//! Who asks for the same addresses again and again can keep the answer for the second in which it was given, as long as [`Table::changes`]
//! stays the same. Not for longer: entries age, and make way to others of their port; the sender's is to be refreshed; and an address may be
//! there twice (see below).
//!
//! Ports are forgotten by a walk through the whole table, which takes as long as to move some hundred frames: so there is one for all that
//! are to be forgotten ([`Ports`]), and not one each.
//!
//! # Who writes what
//!
//! All workers, at any time, without a lock: an entry is one atomic word, and so is the time at
//! which it was seen. Workers that write to one bucket at once may lose an entry, keep one twice, or
//! pair it with the other's time. All of that is mended when the station is heard in another second, and until
//! then costs no more than a flood or a detour, as an evicted entry does.

use std::array::from_fn;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use wire::ethernet::MacAddress;

use super::AGEING_SECONDS;
use crate::eviction::victim;
use crate::keyed::fold;
use crate::occupancy::Occupancy;

/// The number of a port on its bridge, counted from 0. [`PortNumber::MAX`] is none.
pub type PortNumber = u16;

/// Entries in a bucket: two cache lines, the second of which is seldom needed.
const WAYS: usize = 2 * LINE;
/// Entries in a cache line.
const LINE: usize = 4;
/// Enough that of 10000 addresses hardly any find their bucket full, and few enough for a second-level
/// cache.
const BUCKETS: usize = 4096;

/// Addresses that the table holds at most.
pub const CAPACITY: usize = WAYS * BUCKETS;

/// A masked address and its port in one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    /// No port has this number, and nobody this address: it is that of all stations.
    const EMPTY: Self = Self(u64::MAX);

    fn new(station: Masked, port: PortNumber) -> Self {
        Self(station.0 | u64::from(port))
    }

    /// Whether it is of this station.
    #[inline]
    fn is_of(self, station: Masked) -> bool {
        // What is left is the number of the port.
        (self.0 ^ station.0) <= PortNumber::MAX.into()
    }

    fn port(self) -> PortNumber {
        self.0 as u16
    }
}

#[derive(Default)]
struct Bucket {
    lines: [Line; WAYS / LINE],
}

/// A cache line: entries, and when each was last seen, in seconds.
#[repr(align(64))]
struct Line {
    entries: [AtomicU64; LINE],
    seen: [AtomicU32; LINE],
}

impl Default for Line {
    fn default() -> Self {
        Self { entries: [const { AtomicU64::new(Entry::EMPTY.0) }; LINE], seen: Default::default() }
    }
}

impl Line {
    #[inline]
    fn way(&self, at: usize) -> Way<'_> {
        Way { entry: &self.entries[at % LINE], seen: &self.seen[at % LINE] }
    }

    /// Where an address is. Looks at the line without a branch for each entry: which one it is
    /// cannot be guessed, and a wrong guess takes longer.
    #[inline]
    fn find(&self, station: Masked) -> Option<Way<'_>> {
        let is_there = |way: usize| Entry(self.entries[way].load(Relaxed)).is_of(station);
        let found = (0..LINE).fold(0u32, |found, way| found | u32::from(is_there(way)) << way);
        (found != 0).then(|| self.way(found.trailing_zeros() as usize))
    }
}

/// One of the entries of a bucket.
#[derive(Clone, Copy)]
struct Way<'t> {
    entry: &'t AtomicU64,
    seen: &'t AtomicU32,
}

impl Way<'_> {
    #[inline]
    fn entry(self) -> Entry {
        Entry(self.entry.load(Relaxed))
    }

    fn set(self, entry: Entry) {
        self.entry.store(entry.0, Relaxed);
    }

    /// Seconds since the entry was seen. Another worker's clock may be a little ahead.
    #[inline]
    fn age(self, now: u32) -> u32 {
        now.saturating_sub(self.seen.load(Relaxed))
    }

    /// The port where an address was seen that was here: it may have been forgotten since, or have made way to another's, or aged.
    #[inline]
    fn port_of(self, station: Masked, now: u32) -> Option<PortNumber> {
        let entry = self.entry();
        let is_there = entry != Entry::EMPTY && entry.is_of(station);
        (is_there && self.age(now) < AGEING_SECONDS).then(|| entry.port())
    }

    fn is_aged(self, now: u32) -> bool {
        self.entry() == Entry::EMPTY || self.age(now) >= AGEING_SECONDS
    }
}

impl Bucket {
    fn ways(&self) -> impl Iterator<Item = Way<'_>> {
        self.lines.iter().flat_map(|line| (0..LINE).map(|way| line.way(way)))
    }

    /// Where an address is.
    #[inline]
    fn find(&self, station: Masked) -> Option<Way<'_>> {
        let [first, second] = &self.lines;
        first.find(station).or_else(|| second.find(station))
    }

    #[inline]
    fn way(&self, at: usize) -> Way<'_> {
        self.lines[at / LINE % self.lines.len()].way(at)
    }

    /// The entry that a new address of `port` takes.
    #[cold]
    fn victim(&self, port: PortNumber, now: u32) -> Way<'_> {
        let mut ways = self.ways();
        let fresh = from_fn::<_, WAYS, _>(|_| {
            let fresh = ways.next().filter(|way| !way.is_aged(now));
            fresh.map(|way| (way.entry().port(), way.age(now)))
        });
        self.way(victim(port, fresh))
    }
}

/// Ports of a bridge, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// A bit each.
    words: Vec<u64>,
}

impl Ports {
    /// Adds a port.
    pub fn insert(&mut self, port: PortNumber) {
        debug_assert!(port != PortNumber::MAX, "there is no such port");
        let (word, bit) = Self::place(port);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Takes all of them out. The room for them stays.
    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// Whether a port is among them.
    #[inline]
    fn contains(&self, port: PortNumber) -> bool {
        let (word, bit) = Self::place(port);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    fn place(port: PortNumber) -> (usize, u64) {
        const BITS: usize = u64::BITS as usize;
        let port = usize::from(port);
        (port / BITS, 1 << (port % BITS))
    }
}

/// Not in a cache line with anything else: all workers read it for each burst, and a guest may have it written for each frame. (Processors fetch lines
/// by twos.)
#[derive(Default)]
#[repr(align(128))]
struct Apart(AtomicU64);

/// The table.
pub struct Table {
    buckets: Box<[Bucket; BUCKETS]>,
    key: [u64; 2],
    occupancy: Occupancy<BUCKETS>,
    /// Behind each change to what was there: see [`Table::changes`].
    changes: Apart,
    /// Entries that were looked at to forget ports.
    #[cfg(test)]
    pub(super) visited: AtomicU64,
}

/// A VLAN, by what the table masks its addresses with: in the upper 48 bits.
#[derive(Clone, Copy)]
pub struct Domain(u64);

/// A masked address, in the upper 48 bits; the others are 0.
#[derive(Clone, Copy)]
struct Masked(u64);

impl Domain {
    /// No VLAN. A table has addresses of this or of VLANs.
    pub const NONE: Self = Self(0);
}

/// Where an address of a VLAN belongs in its table: the masked address, and in the lower 16 bits the number of the bucket.
#[derive(Clone, Copy)]
pub struct Place(u64);

const _: () =
    assert!(BUCKETS <= 1 << 16, "there is no room for the number of a bucket below an address");

impl Place {
    #[inline]
    fn station(self) -> Masked {
        Masked(self.0 & !0xffff)
    }

    #[inline]
    fn bucket(self) -> usize {
        self.0 as usize % BUCKETS
    }

    /// The address that belongs there, which is one of this domain.
    #[inline]
    pub fn address(self, Domain(mask): Domain) -> MacAddress {
        let [a, b, c, d, e, f, _, _] = ((self.0 ^ mask) >> 16).to_le_bytes();
        MacAddress([a, b, c, d, e, f])
    }
}

/// Where the addresses of a frame belong.
#[derive(Clone, Copy)]
pub struct Places {
    /// Of the sender's.
    pub source: Place,
    /// Of the receiver's.
    pub destination: Place,
}

impl Table {
    /// Something that no guest can guess.
    pub(super) fn key(&self) -> [u64; 2] {
        self.key
    }

    /// An empty table, keyed by something that no guest can guess.
    pub fn new(key: [u64; 2]) -> Self {
        let buckets: Box<[Bucket]> = (0..BUCKETS).map(|_| Bucket::default()).collect();
        let buckets = buckets.try_into().unwrap_or_else(|_| unreachable!("that many were made"));
        Self {
            buckets,
            key,
            occupancy: Occupancy::default(),
            changes: Apart::default(),
            #[cfg(test)]
            visited: AtomicU64::default(),
        }
    }

    /// A VLAN.
    #[inline]
    pub fn domain(&self, vlan: u16) -> Domain {
        // Two rounds of splitmix64, each of which takes no two words to one: unlike folding, with any key.
        let [first, second] = self.key;
        let mixed = (u64::from(vlan) ^ first).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27 ^ second).wrapping_mul(0x94d0_49bb_1331_11eb);
        Domain((mixed ^ mixed >> 31) & !0xffff)
    }

    /// Where `address` belongs. That is on its way to the processor then, while other things are done.
    #[inline]
    pub fn place(&self, MacAddress([a, b, c, d, e, f]): MacAddress, Domain(mask): Domain) -> Place {
        self.place_of(Masked(u64::from_le_bytes([0, 0, a, b, c, d, e, f]) ^ mask))
    }

    /// The same for both addresses that a header begins with.
    #[inline]
    pub fn places(&self, addresses: &[u8; 12], Domain(mask): Domain) -> Places {
        // Eight bytes of each: a single load, where six are two.
        let ([first @ .., _, _, _, _], [_, _, _, _, last @ ..]) = (addresses, addresses);
        let destination = Masked(u64::from_le_bytes(*first) << 16 ^ mask);
        let source = Masked(u64::from_le_bytes(*last) & !0xffff ^ mask);
        Places { source: self.place_of(source), destination: self.place_of(destination) }
    }

    #[inline]
    fn place_of(&self, Masked(station): Masked) -> Place {
        let place = Place(station | (self.hash(station >> 16) % BUCKETS as u64));
        let [line, _] = &self.at(place).lines;
        memory::prefetch(line);
        place
    }

    #[inline]
    fn at(&self, place: Place) -> &Bucket {
        &self.buckets[place.bucket()]
    }

    /// Remembers that the address of `place` was seen on `port`, moving it there if it was elsewhere.
    #[inline(always)]
    pub fn learn(&self, place: Place, port: PortNumber, now: u32) {
        let (bucket, station) = (self.at(place), place.station());
        let way = bucket.find(station).unwrap_or_else(|| bucket.victim(port, now));
        // Mostly both are what they were: no need to dirty the line.
        let entry = Entry::new(station, port);
        if way.entry() != entry {
            self.remember(place, way, entry);
        }
        if way.age(now) != 0 {
            way.seen.store(now, Relaxed);
        }
    }

    /// Writes an entry that is another than what was there.
    #[cold]
    fn remember(&self, place: Place, way: Way<'_>, entry: Entry) {
        let before = way.entry();
        way.set(entry);
        if before == Entry::EMPTY {
            self.occupancy.filled(place.bucket());
        } else if before.port() != entry.port() {
            self.changes.0.fetch_add(1, Release);
        }
    }

    /// How often an entry became one of another port, as a station moved or made way, or ports were forgotten. Ask this before the table is
    /// asked what is to be kept. That a station made way to another of its port is not counted: it is where it was.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.0.load(Acquire)
    }

    /// The port where the address of `place` was seen, unless that is too long ago.
    #[inline]
    pub fn find(&self, place: Place, now: u32) -> Option<PortNumber> {
        self.at(place).find(place.station())?.port_of(place.station(), now)
    }

    /// Forgets everything that was learned on these ports.
    pub fn forget(&self, ports: &Ports) {
        if ports.is_empty() {
            return;
        }
        for (number, bucket) in self.buckets.iter().enumerate() {
            #[cfg(test)]
            self.visited.fetch_add(WAYS as u64, Relaxed);
            for way in bucket.ways() {
                // An empty entry is of a port that there is not.
                if ports.contains(way.entry().port()) {
                    way.set(Entry::EMPTY);
                    self.occupancy.emptied(number);
                }
            }
        }
        self.changes.0.fetch_add(1, Release);
    }

    /// Sweeps away what has aged, in the next slice of the table.
    pub(super) fn sweep(&self, now: u32) {
        self.occupancy.sweep(|buckets| {
            let mut used = 0;
            for bucket in self.buckets.get(buckets).unwrap_or_default() {
                for way in bucket.ways() {
                    if !way.is_aged(now) {
                        used += 1;
                    } else if way.entry() != Entry::EMPTY {
                        way.set(Entry::EMPTY);
                    }
                }
            }
            used
        });
    }

    /// Addresses that are known. Those that have aged may be among them, until they are swept away.
    pub fn known(&self) -> u64 {
        self.occupancy.used()
    }

    /// Two rounds of folded multiplication, each with both halves of the key.
    #[inline]
    fn hash(&self, word: u64) -> u64 {
        let [first, second] = self.key;
        let mixed = fold(word ^ first, second | 1);
        fold(mixed ^ second, first | 1)
    }
}

#[cfg(test)]
mod tests;
