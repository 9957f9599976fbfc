//! A filter between a port and the rest: drops what an expression of pcap-filter(7) does not accept.
//!
//! It has two [`sides`], and for each direction what is accepted, as a program of classic
//! BPF (see [`wire::bpf`]; [`compile`] makes one of an expression). Frames that are accepted pass, others are
//! dropped and counted as `filtered`.
//!
//! # What a program sees
//!
//! The frame as it is here, VLAN tags and all. Its length is that of what is sent on: a frame that is still to be cut
//! into segments is one long frame, and is accepted or not as a whole.
//!
//! It runs over the private head. If it wants to see more, the first [`engine::PRIVATE`] bytes of
//! the frame are made private, and it runs over those: what was looked at is what is sent. A frame of which a
//! program wants to see more than that is dropped, and counted as `filter_too_deep`.
//!
//! A frame whose checksum is left to be completed elsewhere than in its own field, or behind the headers, is dropped
//! (`checksum_misplaced`): that would change what was looked at. Where there is no program it passes, but begins no conversation. What a program reads behind the headers may be changed by the checksum
//! of a packet inside of it.
//!
//! # Answers
//!
//! With [`Direction::allow_replies`], frames that are accepted in one direction begin a conversation, and what
//! belongs to that passes in the other direction without being asked for its own filter. What is a
//! conversation, [`wire::conversation`] says; how it ends, [`conversations`]. Nothing else passes
//! as an answer: fragments of a datagram, but for the first, and the errors of ICMP need a filter that
//! accepts them (`icmp[icmptype] = icmp-unreach`, `ip[6:2] & 0x1fff != 0`).

pub mod conversations;
mod expression;

use std::any::Any;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::{
    App, BURST, Burst, Counters, DropReason, Fault, HEAD, Numbers, Outputs, PRIVATE, Selection,
};
use wire::bpf::{Program, Verdict};
use wire::conversation::Message;

use crate::sides::{self, NETWORK, PORT, passed_on};
use conversations::{Conversations, Era, Place};

pub use expression::{CompileError, compile};

const NANOSECONDS: u64 = 1_000_000_000;

/// What a filter does with frames of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// What is accepted; without it, everything.
    pub accept: Option<Program>,
    /// What is accepted begins a conversation, whose frames in the other direction pass.
    pub allow_replies: bool,
}

/// What a filter does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// With frames from the port.
    pub from_port: Direction,
    /// With frames to the port.
    pub to_port: Direction,
}

/// The filter, or its part on one of several workers.
pub struct Filter {
    /// By the side where frames come in.
    directions: [Direction; 2],
    /// Which settings of all that there were those are, by the same side.
    numbers: [u32; 2],
    known: Arc<Known>,
    /// Kept for its allocation.
    places: Vec<Option<Place>>,
    window: Window,
    counters: Counters,
}

/// What all parts know: the conversations, and what to do. There is no table until settings are made that need it.
struct Known {
    key: [u64; 2],
    table: OnceLock<Conversations>,
    /// What a part has been told last: the first one changes it, and the others find it so.
    in_force: Mutex<[Direction; 2]>,
    /// How often each of those was another one. Changed under the lock of that alone.
    numbers: [AtomicU32; 2],
    /// How often a part heard that the port went down.
    downs: AtomicU32,
}

impl Known {
    fn table(&self) -> &Conversations {
        self.table.get_or_init(|| Conversations::new(self.key))
    }

    /// Not for the frame path.
    fn in_force(&self) -> MutexGuard<'_, [Direction; 2]> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn numbers(&self) -> [u32; 2] {
        self.numbers.each_ref().map(|number| number.load(Relaxed))
    }

    /// The eras of what both sides begin by settings of these numbers.
    #[inline]
    fn eras(&self, numbers: [u32; 2]) -> [Era; 2] {
        let downs = self.downs.load(Relaxed);
        numbers.map(|number| Era::new(number, downs))
    }
}

impl Filter {
    /// A filter whose conversations are keyed by `key`: something that no guest can guess.
    pub fn new(settings: Settings, key: [u64; 2]) -> Self {
        let (table, in_force, numbers, downs) = Default::default();
        let mut filter = Self::with(Arc::new(Known { key, table, in_force, numbers, downs }));
        filter.set(settings);
        filter
    }

    /// A part of this filter for another worker: the conversations that begin at one pass at all. It does what a part was
    /// told last, whatever this one does.
    pub fn part(&self) -> Self {
        let mut part = Self::with(self.known.clone());
        let in_force = self.known.in_force();
        part.directions.clone_from(&in_force);
        part.numbers = self.known.numbers();
        drop(in_force);
        part
    }

    fn with(known: Arc<Known>) -> Self {
        Self {
            directions: Default::default(),
            numbers: Default::default(),
            known,
            places: Vec::with_capacity(BURST),
            window: Window(Box::new([0; PRIVATE])),
            counters: Counters::default(),
        }
    }

    /// Changes what this part does. Conversations go on, but those that began in a direction whose settings
    /// change: they are remembered again with the next frame that is accepted there.
    ///
    /// To be called for every part, between breaths. One that has not been told yet goes by what it was told, and the others do not know
    /// what it remembers by that, nor it what they do: also if it never is told, as it has failed. The first one may allocate.
    fn set(&mut self, settings: Settings) {
        let Settings { from_port, to_port } = settings;
        let directions = [from_port, to_port];
        if directions.iter().any(|direction| direction.allow_replies) {
            self.known.table();
        }
        let mut in_force = self.known.in_force();
        for side in [PORT, NETWORK] {
            if in_force[side] != directions[side] {
                in_force[side].clone_from(&directions[side]);
                self.known.numbers[side].fetch_add(1, Relaxed);
            }
        }
        self.numbers = self.known.numbers();
        drop(in_force);
        self.directions = directions;
    }
}

fn seconds(now: u64) -> u32 {
    (now / NANOSECONDS) as u32
}

/// Where a frame's private bytes are put together.
struct Window(Box<[u8; PRIVATE]>);

/// Whether what is looked at is what will be sent: completing the checksum changes none of it.
#[inline(always)]
fn is_sound(burst: &Burst<'_>, index: usize) -> bool {
    let (head, _) = burst.head_and_len(index);
    burst.checksum(index).is_none_or(|sum| sum.spares_headers(head))
}

impl Window {
    /// Why a frame does not pass, if it does not.
    #[inline(always)]
    fn judge(
        &mut self,
        program: &Program,
        burst: &mut Burst<'_>,
        index: usize,
    ) -> Result<(), DropReason> {
        if !is_sound(burst, index) {
            return Err(DropReason::ChecksumMisplaced);
        }
        let (head, len) = burst.head_and_len(index);
        match program.run(head, len) {
            Verdict::Accept => Ok(()),
            Verdict::Reject => Err(DropReason::Filtered),
            Verdict::NotGiven => match self.look_further(program, burst, index, len) {
                Verdict::Accept => Ok(()),
                Verdict::Reject => Err(DropReason::Filtered),
                Verdict::NotGiven => Err(DropReason::FilterTooDeep),
            },
        }
    }

    /// The same, of more than the head.
    #[cold]
    fn look_further(
        &mut self,
        program: &Program,
        burst: &mut Burst<'_>,
        index: usize,
        len: usize,
    ) -> Verdict {
        let Some(rest) = burst.make_private(index) else { return Verdict::NotGiven };
        let head = burst.head(index);
        let all = head.len() + rest.len();
        let Some(window) = self.0.get_mut(..all) else { return Verdict::NotGiven };
        let (front, back) = window.split_at_mut(head.len());
        front.copy_from_slice(head);
        back.copy_from_slice(rest);
        program.run(window, len)
    }
}

// A head is shorter than what can be made private, or there would be nothing to gain.
const _: () = assert!(HEAD < PRIVATE);

impl App for Filter {
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
        let Self { directions, numbers, known, places, window, counters } = self;
        let other = sides::opposite(input);
        let Some(direction) = directions.get(input) else {
            counters[DropReason::NoDestination] += selection.len() as u64;
            return;
        };
        let back = &directions[other];
        let Some(program) = &direction.accept else {
            // Whatever comes passes. That it came is of interest where not all answers pass.
            if direction.allow_replies && back.accept.is_some() {
                let table = known.table();
                note_places(places, table, burst, selection, input);
                let (eras, now) = (known.eras(*numbers), seconds(burst.now()));
                for (index, place) in selection.iter().zip(places.drain(..)) {
                    // It would be another's, once the checksum is completed.
                    if let Some(place) = place.filter(|_| is_sound(burst, index)) {
                        table.begin(place, input, eras[input], now);
                    }
                }
            }
            outputs.push(other, burst, selection);
            return;
        };
        let answers = back.allow_replies;
        let begins = direction.allow_replies && back.accept.is_some();
        let mut passed = Selection::default();
        let mut pass = |index, verdict| match verdict {
            Ok(()) => passed.push(index),
            Err(reason) => counters.drop(reason),
        };
        if answers || begins {
            let table = known.table();
            // All places first, so that what is known is on its way before the first is decided on.
            note_places(places, table, burst, selection, input);
            let (eras, now) = (known.eras(*numbers), seconds(burst.now()));
            for (index, place) in selection.iter().zip(places.drain(..)) {
                let may_answer = answers && is_sound(burst, index);
                let is_answer = |place| table.answer(place, other, eras[other], now);
                if may_answer && place.is_some_and(is_answer) {
                    pass(index, Ok(()));
                    continue;
                }
                let verdict = window.judge(program, burst, index);
                if let (true, Ok(()), Some(place)) = (begins, verdict, place) {
                    table.begin(place, input, eras[input], now);
                }
                pass(index, verdict);
            }
        } else {
            for index in selection.iter() {
                pass(index, window.judge(program, burst, index));
            }
        }
        outputs.push(other, burst, &passed);
    }

    fn tick(&mut self, now: u64) {
        if let Some(table) = self.known.table.get() {
            // What is in force, though this part may not know of it yet.
            table.sweep(|| self.known.eras(self.known.numbers()), seconds(now));
        }
    }

    /// As long as there is something that may age, or is to be swept away.
    fn deadline(&self, now: u64) -> Option<u64> {
        let table = self.known.table.get()?;
        (table.known() > 0).then_some(now + NANOSECONDS)
    }

    /// What was said with somebody who has gone is not what a successor at the same port may have answers to, nor the other way round.
    fn link(&mut self, input: usize, is_up: bool) -> Option<usize> {
        if (input, is_up) == (PORT, false) {
            self.known.downs.fetch_add(1, Relaxed);
        }
        passed_on(input)
    }

    /// Takes [`Settings`].
    fn reconfigure(&mut self, settings: &dyn Any) -> Result<(), Fault> {
        let settings: &Settings = engine::settings(settings)?;
        self.set(settings.clone());
        Ok(())
    }

    fn report(&self, _: u64, numbers: &mut Numbers) {
        if let Some(table) = self.known.table.get() {
            numbers.shared("conversations", "", table.known());
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Notes for each frame where its conversation belongs.
fn note_places(
    places: &mut Vec<Option<Place>>,
    table: &Conversations,
    burst: &Burst<'_>,
    selection: &Selection,
    input: usize,
) {
    places.clear();
    places.extend(selection.iter().map(|index| {
        Message::parse(burst.head(index)).map(|message| table.place(&message, input))
    }));
}

#[cfg(test)]
mod tests;
