//! A learning bridge (IEEE 802.1D without the spanning tree).
//!
//! Port `n` of the bridge is its input `n` and its output `n`. A frame's source address is learned
//! on the port it came in on; a frame goes out by the port where its destination was learned, or by
//! all others when it is a group's or unknown; never by the one it came in on. Frames to the
//! addresses that bridges reserve for themselves go nowhere.
//!
//! With VLANs (802.1Q) a frame belongs to one of them, and goes to its members alone, each of which learns and floods as if it
//! had a bridge of its own: see [`vlan`]. Without, tags are payload.
//!
//! Ports come and go while the bridge runs: see [`sides`]. Of one that goes down the addresses are forgotten, by each part of the bridge
//! on its own worker: however many go at once, it looks through its table once.
//!
//! The table of addresses is bounded: see [`table`]. Without VLANs, it is asked once a second where the frames of each conversation go, if
//! that is one port: see [`conversations`].

mod conversations;
pub mod sides;
pub mod table;
pub mod vlan;

use std::sync::Arc;

use engine::{App, BURST, Burst, Counters, DropReason, Numbers, Outputs, Selection};
use wire::ethernet::{EtherType, HEADER_SIZE, TAG_SIZE};

use conversations::{Conversation, Conversations};
use sides::{Side, Sides};
use table::{Domain, Places, PortNumber, Ports, Table};
use vlan::{Membership, Tagging};

/// How long an address is remembered that sends nothing, in seconds (802.1D-2004, 7.9.2).
pub const AGEING_SECONDS: u32 = 300;

const NANOSECONDS: u64 = 1_000_000_000;

/// The bridge, or its part on one of several workers.
pub struct Bridge {
    table: Arc<Table>,
    sides: Sides,
    /// Ports that go down just now, whose addresses are forgotten when all of them are known.
    gone: Ports,
    conversations: Conversations,
    /// Kept for its allocation.
    runs: Vec<Run<Conversation>>,
    /// The same on a bridge with VLANs.
    runs_in_vlans: Vec<Run<Places>>,
    /// What VLAN each run is in, on a bridge with VLANs.
    taggings: Vec<Tagging>,
    /// Which run each frame of the burst belongs to, on a bridge with VLANs.
    run_of: [u8; BURST],
    counters: Counters,
}

impl Bridge {
    /// A bridge with this many ports, whose table is keyed by `key`: something that no guest can
    /// guess.
    pub fn new(ports: PortNumber, key: [u64; 2]) -> Self {
        Self::with_sides(Sides::new((0..ports).map(|_| Side::Plain)), key)
    }

    /// A bridge with a port for each of these memberships.
    pub fn with_vlans(memberships: Arc<[Membership]>, key: [u64; 2]) -> Self {
        Self::with_sides(Sides::new(memberships.iter().cloned().map(Side::Vlan)), key)
    }

    /// A bridge with these ports.
    pub fn with_sides(sides: Sides, key: [u64; 2]) -> Self {
        Self::of(Arc::new(Table::new(key)), sides)
    }

    /// A part with these ports of the bridge that this table belongs to.
    pub fn of(table: Arc<Table>, sides: Sides) -> Self {
        Self {
            sides,
            gone: Ports::default(),
            conversations: Conversations::new(table.key()),
            table,
            runs: Vec::with_capacity(BURST),
            runs_in_vlans: Vec::with_capacity(BURST),
            taggings: Vec::with_capacity(BURST),
            run_of: [0; BURST],
            counters: Counters::default(),
        }
    }

    /// A part of this bridge for another worker: what one learns, all know.
    pub fn part(&self) -> Self {
        Self::of(self.table.clone(), self.sides.part())
    }

    /// Exchanges the ports for others; in all parts, each of which has a [`Sides::part`] of its own. Those of before are in
    /// `sides` then, to be dropped where that may take a while. What was learned on a port that is no more, or in another VLAN now,
    /// is to be forgotten after all parts have done this, and before another port has its number.
    pub fn set_sides(&mut self, sides: &mut Sides) {
        std::mem::swap(&mut self.sides, sides);
    }

    /// The addresses that are known, to all parts and to whoever keeps this.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

fn seconds(now: u64) -> u32 {
    (now / NANOSECONDS) as u32
}

/// Frames, by the port that they go out by.
struct Sorted {
    outputs: Vec<Selection>,
    /// The ports that something goes out by, in the order of their first frames.
    used: Vec<usize>,
}

impl Sorted {
    fn new(ports: usize) -> Self {
        Self { outputs: vec![Selection::default(); ports], used: Vec::with_capacity(ports) }
    }

    /// Adds frames that go out by a port, or counts them as dropped if there is no such one.
    #[inline]
    fn add(&mut self, port: usize, frames: impl Iterator<Item = usize>, counters: &mut Counters) {
        let Some(output) = self.outputs.get_mut(port) else {
            counters[DropReason::NoDestination] += frames.count() as u64;
            return;
        };
        if output.is_empty() {
            self.used.push(port);
        }
        frames.for_each(|index| output.push(index));
    }

    /// Adds frames that go out by all ports that are members but the one they came in by.
    fn flood(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        frames: impl Iterator<Item = usize>,
        is_member: impl Fn(usize) -> bool,
        counters: &mut Counters,
    ) {
        let ports = 0..self.outputs.len();
        let others = || ports.clone().filter(|port| *port != input && is_member(*port));
        let count = others().take(2).count();
        for index in frames {
            if count == 0 {
                counters.drop(DropReason::NoDestination);
            } else if count > 1 {
                burst.replicate(index);
            }
            others().for_each(|port| self.add(port, std::iter::once(index), counters));
        }
    }

    /// Sends everything on.
    #[inline]
    fn send(&mut self, mut send: impl FnMut(usize, &Selection)) {
        for port in &self.used {
            if let Some(selection) = self.outputs.get_mut(*port) {
                send(*port, selection);
                selection.clear();
            }
        }
        self.used.clear();
    }
}

/// Bytes of both addresses, with which a frame begins.
const ADDRESSES: usize = 12;

/// The part of a header that decides where a frame goes, to be compared at once, without VLANs: the addresses. None when there is
/// no whole header.
#[inline]
fn addresses(head: &[u8]) -> Option<&[u8; ADDRESSES]> {
    if head.len() < HEADER_SIZE { None } else { head.first_chunk() }
}

/// The same with VLANs: with the tag behind the addresses, and whether there is another one behind that. None, too, when the frame may end
/// inside of what is looked at.
#[inline]
fn addresses_and_tag(head: &[u8]) -> Option<(u128, bool)> {
    let front: &[u8; HEADER_SIZE + 2 * TAG_SIZE] = head.first_chunk()?;
    let [first @ .., i0, i1, _, _, _, _] = front;
    let word = u128::from_le_bytes(*first);
    let [.., o0, o1, _, _] = *first;
    let is_tag = |kind| EtherType(u16::from_be_bytes(kind)).is_tag();
    let untagged = (word & ((1 << 96) - 1), false);
    Some(if is_tag([o0, o1]) { (word, is_tag([*i0, *i1])) } else { untagged })
}

/// The addresses with which all frames begin, if these are the same.
#[inline(always)]
fn common_addresses<'b>(
    burst: &'b Burst<'_>,
    selection: &Selection,
) -> Option<&'b [u8; ADDRESSES]> {
    let mut heads = selection.iter().map(|index| burst.head(index));
    let first = addresses(heads.next()?);
    heads.all(|head| addresses(head) == first).then_some(first)?
}

/// Frames one behind the other with the same addresses, in the same VLAN: those of one conversation come together.
struct Run<T> {
    /// Why they go nowhere, or what there is to know of their addresses.
    of: Result<T, DropReason>,
    /// How many frames. (A number of half a word is what lets a run without VLANs be of half a cache line.)
    frames: u32,
}

impl<T> Run<T> {
    #[inline]
    fn len(&self) -> usize {
        self.frames as usize
    }
}

/// Where frames go.
enum Decision {
    To(usize),
    Flood,
    Drop(DropReason),
}

impl Decision {
    /// Decides by the table where frames go, which came in by `input` and have these addresses, and learns where their sender is.
    #[inline(always)]
    fn make(table: &Table, places: Places, domain: Domain, input: usize, now: u32) -> Self {
        let Places { source, destination } = places;
        if source.address(domain).is_multicast() {
            return Self::Drop(DropReason::BadSource);
        }
        table.learn(source, input as PortNumber, now);
        let address = destination.address(domain);
        if address.is_multicast() {
            let is_reserved = address.is_reserved();
            return if is_reserved { Self::Drop(DropReason::ReservedAddress) } else { Self::Flood };
        }
        match table.find(destination, now).map(usize::from) {
            Some(port) if port == input => Self::Drop(DropReason::SamePort),
            Some(port) => Self::To(port),
            None => Self::Flood,
        }
    }
}

/// Divides frames into runs, of which `deciding` gives the same. `look` looks at the head that a run begins with, and has what there is to know of
/// it be on its way: for all runs before the first is decided on.
#[inline]
fn divide<'h, K: PartialEq + Copy, T>(
    runs: &mut Vec<Run<T>>,
    burst: &'h Burst<'_>,
    selection: &Selection,
    deciding: impl Fn(&'h [u8]) -> Option<K>,
    mut look: impl FnMut(&'h [u8]) -> Result<T, DropReason>,
) {
    runs.clear();
    let mut last = None;
    for index in selection.iter() {
        let head = burst.head(index);
        let bytes = deciding(head);
        if bytes.is_some()
            && bytes == last
            && let Some(run) = runs.last_mut()
        {
            run.frames += 1;
            continue;
        }
        runs.push(Run { of: look(head), frames: 1 });
        last = bytes;
    }
}

impl Bridge {
    /// As [`App::push`], on a bridge with VLANs: runs that go the same way are sorted all the same, as each may need another tag.
    #[inline(never)]
    fn push_in_vlans(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        let Self { table, sides, runs_in_vlans: runs, taggings, run_of, counters, .. } = self;
        let Sides { sorted, memberships, .. } = sides;
        let Some(membership) = memberships.get(input) else {
            counters[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        taggings.clear();
        divide(runs, burst, selection, addresses_and_tag, |head| {
            let tagging = membership.arrive(head);
            taggings.push(tagging.unwrap_or_default());
            let domain = table.domain(tagging?.vlan);
            Ok(table.places(addresses(head).ok_or(DropReason::TooShort)?, domain))
        });
        let now = seconds(burst.now());
        let mut indices = selection.iter();
        for ((run, tagging), number) in runs.iter().zip(&*taggings).zip(0..) {
            let frames = indices.by_ref().take(run.len());
            let frames = frames.inspect(|index| run_of[*index] = number);
            let is_member = |port: usize| {
                memberships.get(port).is_some_and(|port| port.leave(tagging).is_some())
            };
            let domain = table.domain(tagging.vlan);
            let decide = |places| Decision::make(table, places, domain, input, now);
            match run.of.map_or_else(Decision::Drop, decide) {
                // One conversation, or one frame: nothing to sort.
                Decision::To(port) if run.len() == selection.len() && is_member(port) => {
                    let Some(membership) = memberships.get(port) else { return };
                    let retagging = membership.retag(tagging);
                    let mut whole = Selection::default();
                    retagging.apply_to_all(burst, selection.iter(), &mut whole, counters);
                    outputs.push(port, burst, &whole);
                    retagging.undo(burst, whole.iter());
                }
                Decision::To(port) if is_member(port) => sorted.add(port, frames, counters),
                Decision::Flood => sorted.flood(input, burst, frames, is_member, counters),
                Decision::To(_) => counters[DropReason::NoDestination] += frames.count() as u64,
                Decision::Drop(reason) => counters[reason] += frames.count() as u64,
            }
        }
        sorted.send(|port, selection| {
            let Some(membership) = memberships.get(port) else { return };
            // Frames of one run are together, and have the same tags.
            let run_of = |index: usize| usize::from(run_of[index]);
            let retagging = |run: usize| membership.retag(&taggings[run]);
            let mut whole = Selection::default();
            for (run, frames) in selection.chunk_by_key(run_of) {
                retagging(run).apply_to_all(burst, frames, &mut whole, counters);
            }
            outputs.push(port, burst, &whole);
            for (run, frames) in whole.chunk_by_key(run_of) {
                retagging(run).undo(burst, frames);
            }
        });
    }
}

impl App for Bridge {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(
        &mut self,
        input: usize,
        burst: &mut Burst<'_>,
        selection: &Selection,
        outputs: &mut Outputs<'_>,
    ) {
        if !self.sides.memberships.is_empty() {
            return self.push_in_vlans(input, burst, selection, outputs);
        }
        let Self { table, sides, conversations, runs, counters, .. } = self;
        let Sides { sorted, present, .. } = sides;
        if input >= present.len() {
            counters[DropReason::NoDestination] += selection.len() as u64;
            return;
        }
        let now = seconds(burst.now());
        let mut changes = table.changes();
        let mut era = conversations.era(input, now, changes);
        // As good as always it is one conversation.
        if let Some(addresses) = common_addresses(burst, selection)
            && let Some(port) = conversations.port(conversations.at(addresses), era)
        {
            return outputs.push(port.into(), burst, selection);
        }
        divide(runs, burst, selection, addresses, |head| {
            Ok(conversations.at(addresses(head).ok_or(DropReason::TooShort)?))
        });
        let noted = |run: &Run<_>| conversations.port(run.of.ok()?, era);
        let first = runs.first().and_then(noted);
        let goes_there = |run: &&Run<_>| first.is_some() && noted(run) == first;
        let (decided, undecided) = runs.split_at(runs.iter().take_while(goes_there).count());
        if let (Some(port), []) = (first, undecided) {
            return outputs.push(port.into(), burst, selection);
        }
        if undecided.first().is_some_and(|run| noted(run).is_none()) {
            // Nor are others, most likely. What the table knows of them is on its way, too, before it is asked.
            for conversation in undecided.iter().filter_map(|run| run.of.ok()) {
                table.places(&conversation.addresses(), Domain::NONE);
            }
        }
        let frames = decided.iter().map(Run::len).sum();
        // The port that the last frames go to that were decided on, and how many these are. They are sorted when others go elsewhere.
        let mut together: Option<(usize, usize)> = first.map(|port| (port.into(), frames));
        let mut indices = selection.iter();
        for run in undecided {
            let decision = match run.of {
                Ok(conversation) => match conversations.port(conversation, era) {
                    Some(port) => Decision::To(port.into()),
                    None => {
                        let places = table.places(&conversation.addresses(), Domain::NONE);
                        let decision = Decision::make(table, places, Domain::NONE, input, now);
                        let changes_now = table.changes();
                        if changes_now != changes {
                            // By the sender, most likely, which has moved. Of which era the answer is, cannot be said.
                            changes = changes_now;
                            era = conversations.era(input, now, changes);
                        } else if let Decision::To(port) = decision {
                            conversations.note(conversation, era, port as PortNumber);
                        }
                        decision
                    }
                },
                Err(reason) => Decision::Drop(reason),
            };
            if let (Decision::To(port), Some((same, frames))) = (&decision, &mut together)
                && port == same
            {
                *frames += run.len();
                continue;
            }
            if let Some((port, frames)) = together.take() {
                sorted.add(port, indices.by_ref().take(frames), counters);
            }
            if let Decision::To(port) = decision {
                together = Some((port, run.len()));
                continue;
            }
            let frames = indices.by_ref().take(run.len());
            match decision {
                Decision::Flood => {
                    let is_there = |port: usize| present.get(port).is_some_and(|there| *there);
                    sorted.flood(input, burst, frames, is_there, counters);
                }
                Decision::Drop(reason) => counters[reason] += frames.count() as u64,
                Decision::To(_) => {}
            }
        }
        match together {
            // Nothing to sort.
            Some((port, frames)) if frames == selection.len() => {
                return outputs.push(port, burst, selection);
            }
            Some((port, _)) => sorted.add(port, indices, counters),
            None => {}
        }
        sorted.send(|port, selection| outputs.push(port, burst, selection));
    }

    fn tick(&mut self, now: u64) {
        self.table.sweep(seconds(now));
    }

    /// As long as there is something that may age, or is to be swept away.
    fn deadline(&self, now: u64) -> Option<u64> {
        (self.table.known() > 0).then_some(now + NANOSECONDS)
    }

    /// The stations behind a port that went down may turn up elsewhere.
    fn link(&mut self, input: usize, is_up: bool) -> Option<usize> {
        // What was learned where no port is any more, control has forgotten: see [`Self::set_sides`].
        let is_there = self.sides.present.get(input).is_some_and(|is_there| *is_there);
        if let (false, true, Ok(port)) = (is_up, is_there, PortNumber::try_from(input)) {
            self.gone.insert(port);
        }
        None
    }

    fn links_told(&mut self) {
        self.table.forget(&self.gone);
        self.gone.clear();
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        numbers.shared("addresses", "", self.table.known());
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
