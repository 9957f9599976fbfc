//! The conversations that a filter lets answers through to: a bounded table that a hostile sender can
//! neither grow nor aim at.
//!
//! # How it works
//!
//! Set-associative, as the bridge's: a conversation belongs to one bucket of [`WAYS`] entries. A new
//! one takes an empty or aged entry, or else the one that was seen least recently; but those that were begun
//! in one direction have half of a bucket, as long as the others need the rest: see
//! [`eviction`](crate::eviction).
//!
//! An entry does not hold addresses and ports, but 64 bits that stand for them: of NH (Black et al., "UMAC",
//! 1999), a universal hash over all of them, with a key that nobody outside knows. What decides on
//! the bucket is mixed from it apart from that. Two conversations are taken for one with a chance of about one in 2^64;
//! so a frame that belongs to none of a full table passes for an answer with one of about one in 2^49.
//!
//! # How long
//!
//! A conversation ages from when it was seen last, in either direction, and ageing is decided when an entry
//! is looked at. Those that have aged are swept away as well, a slice with each tick, so that it is known how many there are: see
//! [`occupancy`](crate::occupancy). UDP and SCTP have 5 minutes (RFC 4787, REQ-5), echoes 60 seconds (RFC 5508, REQ-1). TCP has 2
//! hours and 4 minutes once it was answered (RFC 5382, REQ-5), and 4 minutes before that, and after the
//! FIN of one side; 10 seconds after both, for what has to be sent again; and 2 seconds after a RST: not none, because
//! that may be held by a receiver that is full, and comes by once more. Sequence numbers are not
//! followed: who can send in the name of a conversation can also end it.
//!
//! # Eras
//!
//! All conversations of one side are forgotten at once, without a look at any: each belongs to an [`Era`], which is mixed into what it is
//! known by. In another era nobody finds it; it ages there, or gives way, and the sweep takes it away.
//!
//! # Who writes what
//!
//! All workers, at any time, without a lock. The word that says what conversation it is, and who began it, is one
//! atomic word: what may pass is never mixed up, and of two workers that take the same room one looks for another. Times and flags are another
//! word: what two workers do to one bucket at once may have an entry live for longer or shorter, within the times above.

use std::array::from_fn;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use wire::conversation::{Message, Step};

use crate::eviction::victim;
use crate::keyed::fold;
use crate::occupancy::Occupancy;
use crate::sides::PORT;

/// Entries in a bucket: two cache lines.
const WAYS: usize = 8;
/// Buckets of a table.
const BUCKETS: usize = 4096;

/// Conversations that are remembered at most.
pub const CAPACITY: usize = WAYS * BUCKETS;

/// How long a conversation of TCP is remembered that was answered, in seconds.
pub const OPEN_SECONDS: u32 = 7440;
/// One of TCP that was not answered yet, or that one side has closed.
pub const TRANSITORY_SECONDS: u32 = 240;
/// One of TCP that both sides have closed.
pub const CLOSED_SECONDS: u32 = 10;
/// One of TCP that one side has reset.
pub const RESET_SECONDS: u32 = 2;
/// One of UDP or SCTP.
pub const DATAGRAM_SECONDS: u32 = 300;
/// One of echoes.
pub const ECHO_SECONDS: u32 = 60;

/// When a conversation was seen last, and what is known of it, in one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u64);

impl State {
    const TCP: u64 = 1 << 32;
    const ECHO: u64 = 1 << 33;
    const ANSWERED: u64 = 1 << 34;
    /// A FIN of who began it, and of the other.
    const FINS: [u64; 2] = [1 << 35, 1 << 36];
    const RESET: u64 = 1 << 37;
    /// Where the mark of the era begins.
    const ERA: u32 = 40;

    fn new(step: Step, era: Era, now: u32) -> Self {
        let flags = match step {
            Step::Tcp(_) => Self::TCP,
            Step::Datagram => 0,
            Step::EchoRequest | Step::EchoReply => Self::ECHO,
        };
        Self(flags | era.mark() << Self::ERA | u64::from(now)).after(step, 0, now)
    }

    /// Whether it began in this era, as far as its mark says. That is good enough to count by.
    fn is_of(self, era: Era) -> bool {
        self.0 >> Self::ERA == era.mark()
    }

    /// What it is after a message `by` who began it (0) or the other (1).
    fn after(self, step: Step, by: usize, now: u32) -> Self {
        let mut flags = self.0 & !u64::from(u32::MAX);
        if by == 1 {
            flags |= Self::ANSWERED;
        }
        if let Step::Tcp(segment) = step {
            if segment.fin() {
                flags |= Self::FINS[by];
            }
            if segment.rst() {
                flags |= Self::RESET;
            }
        }
        Self(flags | u64::from(now))
    }

    /// Seconds since it was seen. Another worker's clock may be a little ahead.
    fn age(self, now: u32) -> u32 {
        now.saturating_sub(self.0 as u32)
    }

    fn lifetime(self) -> u32 {
        let has = |flag| self.0 & flag != 0;
        let [first, second] = Self::FINS.map(has);
        if has(Self::ECHO) {
            ECHO_SECONDS
        } else if !has(Self::TCP) {
            DATAGRAM_SECONDS
        } else if has(Self::RESET) {
            RESET_SECONDS
        } else if first && second {
            CLOSED_SECONDS
        } else if first || second || !has(Self::ANSWERED) {
            TRANSITORY_SECONDS
        } else {
            OPEN_SECONDS
        }
    }

    fn is_aged(self, now: u32) -> bool {
        self.age(now) >= self.lifetime()
    }
}

/// What an entry is of: a conversation, and the side that began it. 0 is an empty entry.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tag(u64);

impl Tag {
    const EMPTY: Self = Self(0);

    fn began_by(self) -> usize {
        (self.0 & 1) as usize
    }
}

/// A time after which nothing is known any more of what one side began before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Era(u64);

impl Era {
    /// That of these settings, by how often they were changed; after so many times that the port went down.
    pub(super) fn new(settings: u32, downs: u32) -> Self {
        Self(u64::from(settings) << 32 | u64::from(downs))
    }

    /// What an era makes of what a conversation is known by, but for the two lowest bits. An odd factor takes no two eras to one.
    #[inline]
    fn mask(self) -> u64 {
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !3
    }

    /// As much of it as there is room for beside a state: 24 bits.
    fn mark(self) -> u64 {
        (self.0 >> 32 & 0xfff) << 12 | self.0 & 0xfff
    }
}

/// A cache line: entries.
#[derive(Default)]
#[repr(align(64))]
struct Line {
    tags: [AtomicU64; WAYS / 2],
    states: [AtomicU64; WAYS / 2],
}

#[derive(Default)]
struct Bucket {
    lines: [Line; 2],
}

impl Bucket {
    #[inline]
    fn tag(&self, way: usize) -> &AtomicU64 {
        &self.lines[way / 4].tags[way % 4]
    }

    #[inline]
    fn state(&self, way: usize) -> &AtomicU64 {
        &self.lines[way / 4].states[way % 4]
    }

    /// Where an entry is, and what is known of it, unless it is too old.
    #[inline]
    fn find(&self, tag: Tag, now: u32) -> Option<(usize, State)> {
        let way = (0..WAYS).find(|way| self.tag(*way).load(Acquire) == tag.0)?;
        let state = State(self.state(way).load(Relaxed));
        (!state.is_aged(now)).then_some((way, state))
    }

    /// Where a new entry goes, and what is there: where an aged one of the same is, or one that gives way.
    #[cold]
    fn room(&self, tag: Tag, now: u32) -> (usize, Tag) {
        let tags: [_; WAYS] = from_fn(|way| Tag(self.tag(way).load(Relaxed)));
        let entries: [_; WAYS] = from_fn(|way| {
            let state = State(self.state(way).load(Relaxed));
            let is_fresh = tags[way] != Tag::EMPTY && !state.is_aged(now);
            is_fresh.then(|| (tags[way].began_by(), state.age(now)))
        });
        let same = (0..WAYS).find(|way| tags[*way] == tag);
        let way = same.unwrap_or_else(|| victim(tag.began_by(), entries));
        (way, tags[way])
    }

    /// Writes only what changes: mostly nothing does within a second.
    #[inline]
    fn note(&self, way: usize, before: State, after: State) {
        if before != after {
            self.state(way).store(after.0, Relaxed);
        }
    }
}

/// A message, and where its conversation belongs in the table.
#[derive(Clone, Copy)]
pub(super) struct Place {
    bucket: u32,
    step: Step,
    /// Without the bit that says who began it, and of no era yet.
    tag: u64,
}

impl Place {
    /// What the conversation is known by that side `began_by` began in this era.
    #[inline]
    fn tag(self, began_by: usize, era: Era) -> Tag {
        Tag(self.tag ^ era.mask() | (began_by & 1) as u64)
    }
}

/// The table.
pub(super) struct Conversations {
    buckets: Box<[Bucket; BUCKETS]>,
    key: [u64; KEY_WORDS],
    occupancy: Occupancy<BUCKETS>,
}

/// Words of a conversation.
const WORDS: usize = 6;
/// One for each word of a conversation, and four to mix what comes of them.
const KEY_WORDS: usize = WORDS + 4;

impl Conversations {
    /// An empty table, keyed by something that no guest can guess.
    pub(super) fn new(key: [u64; 2]) -> Self {
        let buckets: Box<[Bucket]> = (0..BUCKETS).map(|_| Bucket::default()).collect();
        let buckets = buckets.try_into().unwrap_or_else(|_| unreachable!("that many were made"));
        let [first, second] = key;
        let word = |number: usize| {
            // Odd numbers, each another one, which no multiplication loses.
            let number = (2 * number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            fold(fold(first ^ number, second | 1) ^ second, number | 1)
        };
        Self { buckets, key: from_fn(word), occupancy: Occupancy::default() }
    }

    /// Where the conversation of a message belongs, which came in by side `input`. That is on its way to the
    /// processor then, while other things are done.
    #[inline]
    pub(super) fn place(&self, message: &Message, input: usize) -> Place {
        // Both directions of a conversation have the same words.
        let Message { source, destination, protocol, vlan, step } = message;
        let [port, network] =
            if input == PORT { [source, destination] } else { [destination, source] };
        let rest = u64::from(port.port) << 48
            | u64::from(network.port) << 32
            | u64::from(protocol.number) << 8
            | u64::from(protocol.ip_version);
        let words: [u64; WORDS] = [
            port.address as u64,
            network.address as u64,
            (port.address >> 64) as u64,
            (network.address >> 64) as u64,
            rest,
            (*vlan).into(),
        ];
        // NH: pairs of words, each word with a key of its own, multiplied and added.
        let [keys @ .., a, b, c, d] = &self.key;
        let mut sum = 0u128;
        for pair in 0..WORDS / 2 {
            let word = |at: usize| u128::from(words[at].wrapping_add(keys[at]));
            sum = sum.wrapping_add(word(2 * pair) * word(2 * pair + 1));
        }
        let (low, high) = (sum as u64, (sum >> 64) as u64);
        let bucket = fold(low ^ a, high ^ b) as usize % BUCKETS;
        memory::prefetch(&self.buckets[bucket].lines[0]);
        // Never 0, which is an empty entry.
        let tag = (fold(low ^ c, high ^ d) | 2) & !1;
        Place { bucket: bucket as u32, step: *step, tag }
    }

    #[inline]
    fn bucket(&self, place: Place) -> &Bucket {
        &self.buckets[place.bucket as usize % BUCKETS]
    }

    /// Whether a message belongs to a conversation that side `began_by` began in this era, being the other's. It is
    /// remembered for longer then, or shorter.
    #[inline]
    pub(super) fn answer(&self, place: Place, began_by: usize, era: Era, now: u32) -> bool {
        if place.step == Step::EchoRequest {
            return false;
        }
        let bucket = self.bucket(place);
        let tag = place.tag(began_by, era);
        let Some((way, state)) = bucket.find(tag, now) else { return false };
        bucket.note(way, state, state.after(place.step, 1, now));
        true
    }

    /// Remembers the conversation of a message that was accepted from side `began_by`, in this era of it.
    #[inline]
    pub(super) fn begin(&self, place: Place, began_by: usize, era: Era, now: u32) {
        if place.step == Step::EchoReply {
            return;
        }
        let bucket = self.bucket(place);
        let tag = place.tag(began_by, era);
        match bucket.find(tag, now) {
            // A new one, with the addresses and ports of an old one.
            Some((way, state)) if is_first(place.step) => {
                bucket.note(way, state, State::new(place.step, era, now));
            }
            Some((way, state)) => bucket.note(way, state, state.after(place.step, 0, now)),
            // Nothing begins with its end.
            None if matches!(place.step, Step::Tcp(segment) if segment.rst()) => {}
            None => self.enter(place, tag, State::new(place.step, era, now), now),
        }
    }

    /// Takes room for a new conversation.
    fn enter(&self, place: Place, tag: Tag, state: State, now: u32) {
        let bucket = self.bucket(place);
        // Another worker may take the same room at once: then there is another one.
        for _ in 0..WAYS {
            let (way, before) = bucket.room(tag, now);
            // The state first: whoever finds the tag finds no old state.
            bucket.state(way).store(state.0, Relaxed);
            let taken = bucket.tag(way).compare_exchange(before.0, tag.0, Release, Relaxed);
            if taken.is_ok() {
                if before == Tag::EMPTY {
                    self.occupancy.filled(place.bucket as usize % BUCKETS);
                }
                return;
            }
        }
    }

    /// Sweeps away what has aged, and what is of other eras than `eras` says of both sides, in the next slice of the table. It is
    /// asked again while the sweep goes on: another era may begin meanwhile, and conversations in that.
    pub(super) fn sweep(&self, eras: impl Fn() -> [Era; 2], now: u32) {
        let mut in_force = eras();
        self.occupancy.sweep(|buckets| {
            let mut used = 0;
            for bucket in self.buckets.get(buckets).unwrap_or_default() {
                for way in 0..WAYS {
                    // After a tag that is of a new era, that era is seen.
                    let tag = Tag(bucket.tag(way).load(Acquire));
                    if tag == Tag::EMPTY {
                        continue;
                    }
                    let state = State(bucket.state(way).load(Relaxed));
                    let side = tag.began_by();
                    let is_over = !state.is_of(in_force[side]) && {
                        in_force = eras();
                        !state.is_of(in_force[side])
                    };
                    let goes = state.is_aged(now) || is_over;
                    let empty = || {
                        let tag_at = bucket.tag(way);
                        // Unless there is another one by now.
                        tag_at.compare_exchange(tag.0, Tag::EMPTY.0, Relaxed, Relaxed).is_ok()
                    };
                    if !(goes && empty()) {
                        used += 1;
                    }
                }
            }
            used
        });
    }

    /// Conversations that are remembered. Those that have aged, or were forgotten, may be among them until they are swept away.
    pub(super) fn known(&self) -> u64 {
        self.occupancy.used()
    }
}

fn is_first(step: Step) -> bool {
    matches!(step, Step::Tcp(segment) if segment.syn() && !segment.ack())
}

#[cfg(test)]
mod tests;
