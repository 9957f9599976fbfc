//! Where the frames of each conversation go: what the table of addresses said in this second, so that it need not be asked for each frame.
//!
//! # How it works
//!
//! A conversation is what two stations send one another in one direction: both addresses, and the port that its frames come in by. Asked about
//! a frame of it, the table is searched twice, for the sender to be learned and for the receiver to be found. As long as it says the
//! same, the answer is one entry here: the addresses, and the port that frames go out by. An entry belongs to a line of [`WAYS`], which is
//! a cache line, chosen by a keyed hash; a new one takes the place of the oldest.
//!
//! An entry holds in an [`Era`] alone, which is one second of one input, as long as no station moves or is forgotten
//! ([`Table::changes`](super::table::Table::changes)). So all that ages is judged anew each second, as the sender's age is noted anew. None
//! is looked at to forget it: each is masked with its era, by something that is worked out of the key. One of another era would be taken
//! for one of this if addresses differed by as much as the masks do: 64 bits that nobody can know.
//!
//! A station that makes way to another of its own port is sent to for the rest of the second, and is not learned again before, though it sends.
//!
//! A sender that makes up addresses pushes entries out, and by moving stations to and fro it makes an era short, for all workers. That costs
//! others a search here and one in the table for each of their frames. Who forges frames of a conversation writes to the line that it is in.
//!
//! Each part of a bridge, which is on one worker, has its own, of a mebibyte.

use super::ADDRESSES;
use super::table::PortNumber;
use crate::keyed::{fold, mix};

/// Entries in a line.
const WAYS: usize = 4;
/// Enough that of 10000 conversations hardly any find their line full. These are in half of the lines, which is half of what a second-level
/// cache has.
const LINES: usize = 16384;

/// A cache line, the newest entry first. Of each entry the addresses, in two words that are masked, and the port.
#[repr(align(64))]
#[derive(Clone, Copy, Default)]
struct Line {
    /// The first eight bytes.
    first: [u64; WAYS],
    /// The last four, with something of the first: many conversations may have their sender in common.
    last: [u32; WAYS],
    ports: [PortNumber; WAYS],
}

/// As long as what the table says of an input stays the same: a mask.
#[derive(Clone, Copy)]
pub(super) struct Era(u64);

/// A conversation, and the line where it belongs.
#[derive(Clone, Copy)]
pub(super) struct Conversation {
    /// The words of its entry, without a mask.
    first: u64,
    last: u32,
    line: u32,
}

impl Conversation {
    /// What the words of its entry are in an era.
    #[inline]
    fn masked(self, Era(mask): Era) -> (u64, u32) {
        (self.first ^ mask, self.last ^ (mask >> 32) as u32)
    }

    /// The addresses.
    #[inline]
    pub(super) fn addresses(self) -> [u8; ADDRESSES] {
        let mut addresses = [0; ADDRESSES];
        let (first, last) = addresses.split_at_mut(8);
        first.copy_from_slice(&self.first.to_le_bytes());
        last.copy_from_slice(&(self.last ^ spread(self.first)).to_le_bytes());
        addresses
    }
}

/// Half a word in which many words differ that differ.
#[inline]
fn spread(word: u64) -> u32 {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// The conversations of a part.
pub(super) struct Conversations {
    lines: Box<[Line; LINES]>,
    key: [u64; 2],
}

impl Conversations {
    /// None yet. `key` is something that no guest can guess.
    pub(super) fn new(key: [u64; 2]) -> Self {
        let lines = vec![Line::default(); LINES].into_boxed_slice();
        let lines = lines.try_into().unwrap_or_else(|_| unreachable!("that many were made"));
        Self { lines, key }
    }

    /// The era of an input in second `now`, behind so many changes of the table.
    #[inline]
    pub(super) fn era(&self, input: usize, now: u32, changes: u64) -> Era {
        let [first, second] = self.key;
        // The second and the input, of which no two are taken to one.
        let mixed =
            (u64::from(now) << 32 ^ input as u64 ^ first).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Era(mix(mixed ^ changes ^ second))
    }

    /// The conversation between these addresses, with which a frame begins. Its line is on its way to the processor then, while other
    /// things are done.
    #[inline]
    pub(super) fn at(&self, addresses: &[u8; ADDRESSES]) -> Conversation {
        // Eight bytes of each: a single load, where six are two.
        let ([first @ .., _, _, _, _], [_, _, _, _, last @ ..]) = (addresses, addresses);
        let [first, last] = [first, last].map(|half| u64::from_le_bytes(*half));
        // The upper half, which depends on more of the bits in which addresses differ.
        let line = (fold(first ^ self.key[0], last ^ self.key[1]) >> 32) as u32 % LINES as u32;
        memory::prefetch(&self.lines[line as usize]);
        Conversation { first, last: (last >> 32) as u32 ^ spread(first), line }
    }

    /// The port that frames of a conversation go out by, if that was noted in this era.
    #[inline]
    pub(super) fn port(&self, of: Conversation, era: Era) -> Option<PortNumber> {
        let line = &self.lines[of.line as usize % LINES];
        let (first, last) = of.masked(era);
        // Without a branch for each way: which one it is cannot be guessed, and a wrong guess takes longer. What is in none may be in the
        // first.
        let is_in = |way: usize| usize::from(line.last[way] == last);
        let way = (is_in(1) + 2 * is_in(2) + 3 * is_in(3)) % WAYS;
        let is_there = line.last[way] == last && line.first[way] == first;
        is_there.then(|| line.ports[way])
    }

    /// Takes note of where frames of a conversation go, of which nothing is noted in this era.
    pub(super) fn note(&mut self, of: Conversation, era: Era, port: PortNumber) {
        let line = &mut self.lines[of.line as usize % LINES];
        line.first.rotate_right(1);
        line.last.rotate_right(1);
        line.ports.rotate_right(1);
        (line.first[0], line.last[0]) = of.masked(era);
        line.ports[0] = port;
    }
}

#[cfg(test)]
mod tests;
