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
//! | Confirmed | known, from an answer to a question | Probed, when it is used after [`CONFIRMED`] |
//! | Claimed | known, from somebody who said so unasked | Probed, when it is used |
//! | Probed | known and used, while its station is asked, once a second | gone after three questions |
//!
//! Only an answer to a question that is open confirms (RFC 4861, section 7.3.1). What else is said of an entry, by
//! whomever, never makes its confirmation last longer; if it says something new, the entry is Claimed. An answer
//! that nobody asked for does not even change where an address is.
//!
//! What nobody has used or said for [`AGEING`] counts as not there.
//!
//! # What a flood cannot do
//!
//! The table holds 1024 entries, whichever they are ([`table`]). When it is full, a new one takes the place
//! of the oldest of those that are worth least: first of what stations only claimed and the host never used, then
//! of what is asked for, then of what is used and not confirmed, and then of what is confirmed, of which the one
//! gives way that was not used for the longest time. Claims take the places of claims alone. So a station that
//! claims a million addresses costs the others nothing. One that has the host talk to it at more addresses than
//! there are places can have the least used of the others asked for again, each time one question; it can keep
//! nobody out.

mod table;

use std::net::IpAddr;

use wire::ethernet::MacAddress;

use table::{Rank, Table};

const SECOND: u64 = 1_000_000_000;

/// How long an answer is good for (RFC 4861, REACHABLE_TIME).
const CONFIRMED: u64 = 30 * SECOND;
/// Between two questions about one address (RFC 4861, RETRANS_TIMER).
const RETRY: u64 = SECOND;
/// Questions about one address (RFC 4861, MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT).
const QUESTIONS: u8 = 3;
/// How long an entry stays that is neither used nor heard of.
const AGEING: u64 = 300 * SECOND;
/// Between two looks at all entries for what is to be asked again. A second need not be exact.
const SWEEP: u64 = SECOND / 20;

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
    Confirmed {
        /// When it was answered for.
        since: u64,
    },
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
            State::Confirmed { .. } | State::Claimed => None,
        }
    }

    /// Who has the address, for all we know.
    fn known(&self) -> Option<MacAddress> {
        (!matches!(self.state, State::Asked(_))).then_some(self.station)
    }

    fn whereabouts(&self) -> Whereabouts {
        self.known().map_or(Whereabouts::Asked, Whereabouts::At)
    }

    fn rank(&self) -> Rank {
        match (self.state, self.used) {
            (State::Asked(_), _) => Rank::Question,
            (_, None) => Rank::Claim,
            (State::Confirmed { .. }, _) => Rank::Confirmed,
            (State::Claimed | State::Probed(_), _) => Rank::Unconfirmed,
        }
    }

    fn question(&self) -> Question {
        Question { address: self.address, station: self.known() }
    }
}

/// The table.
pub struct Neighbours {
    table: Table,
    /// When the next question is due, if any is; not later than it is.
    due: Option<u64>,
    /// Somebody's whereabouts changed: for whoever waits.
    changed: bool,
}

impl Neighbours {
    /// An empty table, keyed by something that no station can guess.
    pub fn new(key: [u64; 2]) -> Self {
        Self { table: Table::new(key), due: None, changed: false }
    }

    /// Where to send what the host has for an address, and what to ask for that.
    pub fn resolve(&mut self, address: IpAddr, now: u64) -> (Whereabouts, Option<Question>) {
        let found = self.find(address, now);
        let Some((at, entry)) = found.and_then(|at| Some((at, self.table.get_mut(at)?))) else {
            let asked = Entry {
                address,
                station: MacAddress::default(),
                state: State::Asked(Asking::new(now)),
                heard: now,
                used: Some(now),
            };
            self.insert(asked);
            self.is_due(now + RETRY);
            return (Whereabouts::Asked, Some(asked.question()));
        };
        entry.used = Some(now);
        let is_to_be_probed = match entry.state {
            State::Claimed => true,
            State::Confirmed { since } => now.saturating_sub(since) >= CONFIRMED,
            State::Asked(_) | State::Probed(_) => false,
        };
        if is_to_be_probed {
            entry.state = State::Probed(Asking::new(now));
        }
        let entry = *entry;
        self.table.renew(at, entry.rank());
        if is_to_be_probed {
            self.is_due(now + RETRY);
        }
        (entry.whereabouts(), is_to_be_probed.then_some(entry.question()))
    }

    /// Where an address is, for whoever waits for it.
    pub fn look(&self, address: IpAddr) -> Whereabouts {
        let entry = self.table.find(address).and_then(|at| self.table.get(at));
        entry.map_or(Whereabouts::Unknown, Entry::whereabouts)
    }

    /// How many there are whose whereabouts are known.
    pub fn known(&self, now: u64) -> usize {
        let entries = self.table.places().filter_map(|at| self.table.get(at));
        entries.filter(|entry| entry.known().is_some() && entry.age(now) < AGEING).count()
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
        let found = self.find(address, now);
        let Some((at, entry)) = found.and_then(|at| Some((at, self.table.get_mut(at)?))) else {
            if let (Occasion::Request, Some(station)) = (occasion, station) {
                let state = State::Claimed;
                self.insert(Entry { address, station, state, heard: now, used: None });
            }
            return;
        };
        let (confirms, overrides) = match occasion {
            Occasion::Request => (false, true),
            Occasion::Answer { overrides } if entry.asking().is_some() => (true, overrides),
            // Nobody asked, or somebody else answered first.
            Occasion::Answer { .. } => (false, false),
            Occasion::Announcement { overrides } => (false, overrides),
        };
        let known = entry.known();
        let is_other = station.is_some() && station != known;
        entry.state = match known {
            // Nobody said where.
            None if station.is_none() => return,
            // Two of them: whoever it is, it is not certain any more (RFC 4861, section 7.2.5).
            Some(_) if is_other && !overrides => match entry.state {
                State::Confirmed { .. } => State::Claimed,
                _ => return,
            },
            _ => {
                entry.heard = now;
                entry.station = station.unwrap_or(entry.station);
                match confirms {
                    true => State::Confirmed { since: now },
                    false if is_other => State::Claimed,
                    false => return,
                }
            }
        };
        let rank = entry.rank();
        self.changed |= entry.known() != known;
        self.table.regrade(at, rank);
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
        for at in self.table.places() {
            let Some(entry) = self.table.get_mut(at) else { continue };
            let question = entry.question();
            let Some(asking) = entry.asking() else { continue };
            if asking.next <= now {
                if asking.questions >= QUESTIONS {
                    self.table.remove(at);
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

    /// Where the entry of an address is. One that aged is gone then.
    fn find(&mut self, address: IpAddr, now: u64) -> Option<u16> {
        let at = self.table.find(address)?;
        let has_aged = self.table.get(at)?.age(now) >= AGEING;
        if has_aged {
            self.table.remove(at);
        }
        (!has_aged).then_some(at)
    }

    /// Adds an entry of an address that has none, if there is a place for it.
    fn insert(&mut self, entry: Entry) {
        let made_way = self.table.insert(entry, entry.rank());
        // Whoever waits for that one waits no longer.
        self.changed |= made_way.is_some_and(|entry| matches!(entry.state, State::Asked(_)));
    }
}

#[cfg(test)]
mod tests;
