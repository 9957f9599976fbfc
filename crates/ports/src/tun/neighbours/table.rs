//! Where the entries of neighbours lie: a fixed number of places, found by address, and in order of use.
//!
//! Addresses are chained by a hash whose key nobody knows, so that nobody can make a chain long. Besides, each place
//! is in the queue of its [`Rank`], oldest first, or in that of free ones: what is to give way next is at the front
//! of some queue, and no search goes through the table.

use std::net::IpAddr;

use super::Entry;

/// Entries that the table holds.
pub(super) const CAPACITY: usize = 1024;

/// Chains; so most have one entry or none.
const CHAINS: usize = 2 * CAPACITY;

/// Entries that are asked for and keep their places whatever else is there. Otherwise a table that is full of
/// neighbours would have one place for all questions.
const QUESTIONS_KEPT: usize = CAPACITY / 8;

/// How dear an entry is, from the least on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// Somebody said so; the host never sent anything there.
    Claim,
    /// The host would like to know it.
    Question,
    /// The host uses it, and nobody has answered for it, or not for a while.
    Unconfirmed,
    /// The host uses it, and it answered.
    Confirmed,
}

const RANKS: usize = 4;
/// The queue of places that are free.
const FREE: usize = RANKS;

/// No place.
const NONE: u16 = u16::MAX;

const _: () = assert!(CAPACITY < NONE as usize);

#[derive(Clone, Copy)]
struct Place {
    entry: Option<Entry>,
    /// In which queue it is: a rank's, or [`FREE`].
    queue: usize,
    older: u16,
    newer: u16,
    /// The next one with the same hash.
    next: u16,
}

#[derive(Clone, Copy)]
struct Queue {
    oldest: u16,
    newest: u16,
    len: usize,
}

/// The table.
pub(super) struct Table {
    places: Box<[Place]>,
    /// The first place of each chain.
    chains: Box<[u16]>,
    queues: [Queue; RANKS + 1],
    key: [u64; 2],
}

impl Table {
    pub(super) fn new(key: [u64; 2]) -> Self {
        let free = Place { entry: None, queue: FREE, older: NONE, newer: NONE, next: NONE };
        let mut table = Self {
            places: vec![free; CAPACITY].into_boxed_slice(),
            chains: vec![NONE; CHAINS].into_boxed_slice(),
            queues: [Queue { oldest: NONE, newest: NONE, len: 0 }; RANKS + 1],
            key,
        };
        (0..CAPACITY as u16).for_each(|place| table.join(place, FREE));
        table
    }

    /// Where the entry of an address is.
    pub(super) fn find(&self, address: IpAddr) -> Option<u16> {
        let mut at = self.chains[self.chain(address)];
        while at != NONE {
            let place = &self.places[usize::from(at)];
            if place.entry.is_some_and(|entry| entry.address == address) {
                return Some(at);
            }
            at = place.next;
        }
        None
    }

    pub(super) fn get(&self, at: u16) -> Option<&Entry> {
        self.places[usize::from(at)].entry.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u16) -> Option<&mut Entry> {
        self.places[usize::from(at)].entry.as_mut()
    }

    /// All places, of which some may be free.
    pub(super) fn places(&self) -> impl Iterator<Item = u16> + use<> {
        0..CAPACITY as u16
    }

    /// How many entries there are of a rank.
    #[cfg(test)]
    pub(super) fn count(&self, rank: Rank) -> usize {
        self.queues[rank as usize].len
    }

    /// Has an entry be the newest of its rank.
    pub(super) fn renew(&mut self, at: u16, rank: Rank) {
        self.leave(at);
        self.join(at, rank as usize);
    }

    /// Has an entry be of its rank; the newest, unless it was of that rank before.
    pub(super) fn regrade(&mut self, at: u16, rank: Rank) {
        if self.places[usize::from(at)].queue != rank as usize {
            self.renew(at, rank);
        }
    }

    /// Adds an entry of an address that has none, and returns the one that made way for it, if there is no free
    /// place. A claim takes the place of no other entry than a claim, and is not added if there is none.
    pub(super) fn insert(&mut self, entry: Entry, rank: Rank) -> Option<Entry> {
        let at = self.place_for(rank)?;
        let before = self.remove(at);
        let chain = self.chain(entry.address);
        let place = &mut self.places[usize::from(at)];
        place.entry = Some(entry);
        place.next = std::mem::replace(&mut self.chains[chain], at);
        self.renew(at, rank);
        before
    }

    /// Which place a new entry gets.
    fn place_for(&self, rank: Rank) -> Option<u16> {
        let questions = self.queues[Rank::Question as usize].len;
        let candidates = [
            (FREE, true),
            (Rank::Claim as usize, true),
            (Rank::Question as usize, questions > QUESTIONS_KEPT),
            (Rank::Unconfirmed as usize, true),
            (Rank::Confirmed as usize, true),
            (Rank::Question as usize, true),
        ];
        let most = if rank == Rank::Claim { 2 } else { candidates.len() };
        let mut candidates = candidates.into_iter().take(most);
        let found = candidates.find(|(queue, may)| *may && self.queues[*queue].len > 0);
        found.map(|(queue, _)| self.queues[queue].oldest)
    }

    /// Frees a place.
    pub(super) fn remove(&mut self, at: u16) -> Option<Entry> {
        let Place { entry, next, .. } = self.places[usize::from(at)];
        let entry = entry?;
        let chain = self.chain(entry.address);
        let mut link = &mut self.chains[chain];
        while *link != at && *link != NONE {
            link = &mut self.places[usize::from(*link)].next;
        }
        *link = next;
        self.places[usize::from(at)].entry = None;
        self.leave(at);
        self.join(at, FREE);
        Some(entry)
    }

    /// Takes a place out of its queue.
    fn leave(&mut self, at: u16) {
        let Place { queue, older, newer, .. } = self.places[usize::from(at)];
        match self.places.get_mut(usize::from(older)) {
            Some(place) => place.newer = newer,
            None => self.queues[queue].oldest = newer,
        }
        match self.places.get_mut(usize::from(newer)) {
            Some(place) => place.older = older,
            None => self.queues[queue].newest = older,
        }
        self.queues[queue].len -= 1;
    }

    /// Puts a place that is in no queue at the end of one.
    fn join(&mut self, at: u16, number: usize) {
        let queue = &mut self.queues[number];
        let older = std::mem::replace(&mut queue.newest, at);
        queue.len += 1;
        if older == NONE {
            queue.oldest = at;
        }
        if let Some(place) = self.places.get_mut(usize::from(older)) {
            place.newer = at;
        }
        let place = &mut self.places[usize::from(at)];
        (place.queue, place.older, place.newer) = (number, older, NONE);
    }

    /// Two rounds of folded multiplication for each half of the address, each with both halves of the key.
    fn chain(&self, address: IpAddr) -> usize {
        let [first, second] = self.key;
        let address = match address {
            // Behind a prefix that IPv6 keeps for them.
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        let high = fold((address >> 64) as u64 ^ first, second | 1);
        let low = fold(address as u64 ^ second ^ high, first | 1);
        fold(low ^ first, second | 1) as usize % CHAINS
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
