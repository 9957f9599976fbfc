//! Who has which address: a bounded table of neighbours, for IPv4 and IPv6 alike (RFC 826; RFC 4861,
//! section 7).
//!
//! # How it works
//!
//! Pure: the time is an argument, and what is to be asked is returned. An entry comes to be when the host
//! sends to an address, which is asked for then, or when a station asks for one of ours and says who it is.
//! Nothing else that a station says makes an entry; it can only change one.
//!
//! | state | the link-layer address is | next |
//! | --- | --- | --- |
//! | Asked | not known: all stations are asked, once a second | gone after three questions without an answer |
//! | Confirmed | known, from an answer | Probed, when it is used after [`CONFIRMED`] |
//! | Claimed | known, from somebody who said so unasked | Probed, when it is used |
//! | Probed | known and used, while its station is asked, once a second | gone after three questions |
//!
//! What nobody has used or said for [`AGEING`] counts as not there.
//!
//! # What a flood cannot do
//!
//! The table is set-associative, as the bridge's is: an address belongs to one bucket, chosen by a hash that
//! is keyed anew for each port, so that nobody knows which addresses share a bucket. A new entry takes the
//! place of the one that is worth least ([`Worth`]). An entry that the host is talking to gives way to none,
//! and what stations say unasked takes only places that nobody uses. So a station that claims a million
//! addresses costs the others nothing; one that has the host talk to it at a thousand addresses can keep
//! new neighbours out, but not the ones that are there.

use std::net::IpAddr;

use wire::ethernet::MacAddress;

const SECOND: u64 = 1_000_000_000;

/// How long an answer is good for (RFC 4861, REACHABLE_TIME).
const CONFIRMED: u64 = 30 * SECOND;
/// Between two questions about one address (RFC 4861, RETRANS_TIMER).
const RETRY: u64 = SECOND;
/// Questions about one address (RFC 4861, MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT).
const QUESTIONS: u8 = 3;
/// How long an entry stays that is neither used nor heard of.
const AGEING: u64 = 300 * SECOND;
/// How long an entry that the host used gives way to no other.
const LIVE: u64 = 30 * SECOND;
/// Between two looks at all entries for what is to be asked again. A second need not be exact.
const SWEEP: u64 = SECOND / 20;

/// Entries in a bucket.
const WAYS: usize = 8;
const BUCKETS: usize = 128;

/// Neighbours that the table holds at most.
#[cfg(test)]
const CAPACITY: usize = WAYS * BUCKETS;

/// A question to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who has this address?
    pub address: IpAddr,
    /// Who had it so far; all are asked if there is none.
    pub station: Option<MacAddress>,
}

/// Where a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// There.
    At(MacAddress),
    /// It was asked, and may answer yet.
    Asked,
    /// Nobody knows, and nobody is asked.
    Unknown,
}

/// Why a station says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// It asks us something, and expects an answer there.
    Request,
    /// It was asked by us. An answer that does not `override` confirms an address, but does not change it.
    Answer {
        /// It replaces another station's address.
        overrides: bool,
    },
    /// It just says so.
    Announcement {
        /// It replaces another station's address.
        overrides: bool,
    },
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked(Asking),
    Confirmed,
    Claimed,
    Probed(Asking),
}

/// A question under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asking {
    questions: u8,
    /// When to ask again, or to give up.
    next: u64,
}

impl Asking {
    fn new(now: u64) -> Self {
        Self { questions: 1, next: now + RETRY }
    }
}

/// How much an entry is worth, from the least on: which one gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// None, or one that aged.
    Nothing,
    /// Somebody said so; the host never sent anything there.
    Claim,
    /// The host would like to know it.
    Question,
    /// The host used it a while ago.
    Idle,
    /// The host uses it.
    Live,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: IpAddr,
    /// Without meaning while it is asked for.
    station: MacAddress,
    state: State,
    /// When a station said last that it is there.
    heard: u64,
    /// When the host last sent something there.
    used: Option<u64>,
}

impl Entry {
    fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.heard.max(self.used.unwrap_or(0)))
    }

    fn asking(&mut self) -> Option<&mut Asking> {
        match &mut self.state {
            State::Asked(asking) | State::Probed(asking) => Some(asking),
            State::Confirmed | State::Claimed => None,
        }
    }

    fn whereabouts(&self) -> Whereabouts {
        match self.state {
            State::Asked(_) => Whereabouts::Asked,
            _ => Whereabouts::At(self.station),
        }
    }

    fn question(&self) -> Question {
        let station = match self.whereabouts() {
            Whereabouts::At(station) => Some(station),
            _ => None,
        };
        Question { address: self.address, station }
    }
}

fn worth(entry: &Option<Entry>, now: u64) -> Worth {
    let Some(entry) = entry else { return Worth::Nothing };
    match (entry.state, entry.used) {
        _ if entry.age(now) >= AGEING => Worth::Nothing,
        (State::Asked(_), _) => Worth::Question,
        (_, None) => Worth::Claim,
        (_, Some(used)) if now.saturating_sub(used) < LIVE => Worth::Live,
        _ => Worth::Idle,
    }
}

/// The table.
pub struct Neighbours {
    buckets: Box<[[Option<Entry>; WAYS]]>,
    key: [u64; 2],
    /// When the next question is due, if any is; not later than it is.
    due: Option<u64>,
    /// Somebody's whereabouts changed: for whoever waits.
    changed: bool,
}

impl Neighbours {
    /// An empty table, keyed by something that no station can guess.
    pub fn new(key: [u64; 2]) -> Self {
        Self {
            buckets: vec![[None; WAYS]; BUCKETS].into_boxed_slice(),
            key,
            due: None,
            changed: false,
        }
    }

    /// Where to send what the host has for an address, and what to ask for that.
    pub fn resolve(&mut self, address: IpAddr, now: u64) -> (Whereabouts, Option<Question>) {
        let Some(entry) = self.find(address, now) else {
            let asked = Entry {
                address,
                station: MacAddress::default(),
                state: State::Asked(Asking::new(now)),
                heard: now,
                used: Some(now),
            };
            if !self.insert(asked, Worth::Idle, now) {
                return (Whereabouts::Unknown, None);
            }
            self.is_due(now + RETRY);
            return (Whereabouts::Asked, Some(asked.question()));
        };
        entry.used = Some(now);
        let is_to_be_probed = match entry.state {
            State::Claimed => true,
            State::Confirmed => now.saturating_sub(entry.heard) >= CONFIRMED,
            State::Asked(_) | State::Probed(_) => false,
        };
        if is_to_be_probed {
            entry.state = State::Probed(Asking::new(now));
        }
        let (whereabouts, question) = (entry.whereabouts(), entry.question());
        if is_to_be_probed {
            self.is_due(now + RETRY);
        }
        (whereabouts, is_to_be_probed.then_some(question))
    }

    /// Where an address is, for whoever waits for it.
    pub fn look(&self, address: IpAddr) -> Whereabouts {
        let bucket = self.buckets.get(self.bucket(address)).into_iter().flatten().flatten();
        let mut found = bucket.filter(|entry| entry.address == address);
        found.next().map_or(Whereabouts::Unknown, Entry::whereabouts)
    }

    /// Whether whereabouts changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The same, which is asked again.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// A station says that it has an address; in an answer or announcement it may leave out who it is.
    pub fn hear(
        &mut self,
        address: IpAddr,
        station: Option<MacAddress>,
        occasion: Occasion,
        now: u64,
    ) {
        if station.is_some_and(|station| station.is_multicast() || station == MacAddress([0; 6])) {
            return;
        }
        let (is_answer, overrides) = match occasion {
            Occasion::Request => (false, true),
            Occasion::Answer { overrides } => (true, overrides),
            Occasion::Announcement { overrides } => (false, overrides),
        };
        let Some(entry) = self.find(address, now) else {
            if let (Occasion::Request, Some(station)) = (occasion, station) {
                let state = State::Claimed;
                let claimed = Entry { address, station, state, heard: now, used: None };
                self.insert(claimed, Worth::Claim, now);
            }
            return;
        };
        let was = entry.whereabouts();
        let station = match (was, station) {
            (Whereabouts::At(known), None) => known,
            // Nobody said where.
            (_, None) => return,
            (Whereabouts::At(known), Some(station)) if station != known && !overrides => {
                // Two of them: whoever it is, it is not certain any more (RFC 4861, section 7.2.5).
                if entry.state == State::Confirmed {
                    entry.state = State::Claimed;
                }
                return;
            }
            (_, Some(station)) => station,
        };
        let is_new = was != Whereabouts::At(station);
        if is_answer {
            entry.state = State::Confirmed;
        } else if is_new {
            entry.state = State::Claimed;
        }
        entry.station = station;
        entry.heard = now;
        self.changed |= is_new;
    }

    /// When [`Self::sweep`] has to be called.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// Asks again what is due, and gives up what was asked for often enough. `ask` says whether there was
    /// room for the question; if not, it is asked in the next sweep.
    pub fn sweep(&mut self, now: u64, mut ask: impl FnMut(Question) -> bool) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let mut due: Option<u64> = None;
        for slot in self.buckets.iter_mut().flatten() {
            let Some(entry) = slot else { continue };
            let question = entry.question();
            let Some(asking) = entry.asking() else { continue };
            if asking.next <= now {
                if asking.questions >= QUESTIONS {
                    *slot = None;
                    self.changed = true;
                    continue;
                }
                if ask(question) {
                    *asking = Asking { questions: asking.questions + 1, next: now + RETRY };
                }
            }
            let next = asking.next.max(now + SWEEP);
            due = Some(due.map_or(next, |due| due.min(next)));
        }
        self.due = due;
    }

    fn is_due(&mut self, at: u64) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The entry of an address, unless it aged.
    fn find(&mut self, address: IpAddr, now: u64) -> Option<&mut Entry> {
        let bucket = self.bucket(address);
        let mut entries = self.buckets.get_mut(bucket).into_iter().flatten().flatten();
        entries.find(|entry| entry.address == address && entry.age(now) < AGEING)
    }

    /// Puts an entry in the place of its own address, or else of what is worth least, and `most` at most.
    /// False when there is no such place.
    fn insert(&mut self, entry: Entry, most: Worth, now: u64) -> bool {
        let bucket = self.bucket(entry.address);
        let Some(bucket) = self.buckets.get_mut(bucket) else { return false };
        let is_own = |slot: &Option<Entry>| slot.is_some_and(|old| old.address == entry.address);
        let least = |slot: &&mut Option<Entry>| {
            let age = slot.map_or(u64::MAX, |old| old.age(now));
            (!is_own(slot), worth(slot, now), u64::MAX - age)
        };
        let Some(slot) = bucket.iter_mut().min_by_key(least) else { return false };
        if !is_own(slot) && worth(slot, now) > most {
            return false;
        }
        // Whoever waits for the one that was there waits no longer.
        self.changed |= slot.is_some();
        *slot = Some(entry);
        true
    }

    /// Two rounds of folded multiplication for each half of the address, each with both halves of the key.
    fn bucket(&self, address: IpAddr) -> usize {
        let [first, second] = self.key;
        let address = match address {
            // Behind a prefix that IPv6 keeps for them.
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        let high = fold((address >> 64) as u64 ^ first, second | 1);
        let low = fold(address as u64 ^ second ^ high, first | 1);
        fold(low ^ first, second | 1) as usize % BUCKETS
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests;
