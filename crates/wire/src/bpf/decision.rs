//! Programs that only look and decide, as most expressions are: executed as checks that need nothing of what
//! was done before.
//!
//! A check loads 8 bytes of the packet, keeps the bits of a mask, compares them with a value, and leads to
//! one of two others, or to the verdict. So the machine has no registers: what A and X held at a
//! comparison is part of the check. What cannot be put so (arithmetic other than a mask, memory, offsets
//! computed by the packet but for the length of an IPv4 header) is left to the interpreter.
//!
//! Checks one behind the other that all have to hold become one where they look at the same 8
//! bytes: that a packet is TCP, and no later fragment.

use super::operation::{Operation, Operator, Test};
use super::program::{Verdict, missing};

/// Where a check leads: to another, or to one of the verdicts below.
type Target = u16;

const ACCEPT: Target = Target::MAX;
const REJECT: Target = Target::MAX - 1;

/// Bytes that a check looks at.
const WINDOW: usize = 8;

/// What of a packet is compared with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    /// Of the bytes that are looked at, read as one number: in network order for a comparison by size, and
    /// else as this machine does, which is as good and need not be turned around.
    mask: u64,
    value: u64,
    /// The first byte that is looked at; behind an IPv4 header, if there is one: see [`Self::header`].
    start: u32,
    /// Where it leads if it does not hold, and if it holds.
    next: [Target; 2],
    kind: Kind,
    /// Where the byte is with the length of that header, for the kinds that have one.
    header: u16,
}

/// The first is by far the most frequent, and the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Equal,
    EqualBehindHeader,
    Greater { behind_header: bool },
    GreaterOrEqual { behind_header: bool },
}

/// A program that only looks and decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decisions {
    checks: Box<[Check]>,
    first: Target,
}

impl Decisions {
    /// The shortest packet that can be decided on.
    pub(super) const SHORTEST: usize = WINDOW;

    /// What to decide, if the program is one of these.
    pub(super) fn new(operations: &[Operation]) -> Option<Self> {
        // What is known where a program may go on. All ways lead forward: when one comes to be looked at, all
        // that lead there were.
        let mut known: Vec<Option<Known>> = vec![None; operations.len()];
        *known.first_mut()? = Some(Known::default());
        let mut blocks: Vec<Option<Block>> = vec![None; operations.len()];
        for start in 0..operations.len() {
            let Some(at_start) = known[start] else { continue };
            let (block, at_end) = Block::new(operations, start, at_start)?;
            if let Block::Check(Check { next, .. }) = block {
                for next in next {
                    let known = &mut known[usize::from(next)];
                    *known = Some(known.map_or(at_end, |other| other.and(at_end)));
                }
            }
            blocks[start] = Some(block);
        }
        // From the last on, so that where a check leads is there already.
        let mut checks: Vec<Check> = Vec::new();
        let mut targets = vec![REJECT; operations.len()];
        for (start, block) in blocks.iter().enumerate().rev() {
            targets[start] = match block {
                None => continue,
                Some(Block::Verdict { accepts }) => {
                    if *accepts {
                        ACCEPT
                    } else {
                        REJECT
                    }
                }
                Some(Block::Check(check)) => {
                    let next = check.next.map(|next| targets[usize::from(next)]);
                    let check = Check { next, ..*check };
                    let next = checks.get(usize::from(check.next[1]));
                    checks.push(next.and_then(|next| check.and(next)).unwrap_or(check));
                    (checks.len() - 1) as Target
                }
            };
        }
        Some(Self { checks: checks.into(), first: targets[0] })
    }

    /// See [`super::Program::run`]. At least [`Self::SHORTEST`] bytes have to be given.
    #[inline]
    pub(super) fn run(&self, given: &[u8], len: usize) -> Verdict {
        let mut number = self.first;
        loop {
            let Some(check) = self.checks.get(usize::from(number)) else {
                return if number == ACCEPT { Verdict::Accept } else { Verdict::Reject };
            };
            let looked_at =
                |start: u64| given.get(start as usize..)?.first_chunk::<WINDOW>().copied();
            let mut start = u64::from(check.start);
            let holds = if check.kind == Kind::Equal {
                let Some(bytes) = looked_at(start) else { return beyond(start, len) };
                u64::from_ne_bytes(bytes) & check.mask == check.value
            } else {
                if check.kind.is_behind_header() {
                    let Some(header) = given.get(usize::from(check.header)) else {
                        return missing(check.header.into(), 1, len);
                    };
                    start += u64::from(header & 15) * 4;
                }
                let Some(bytes) = looked_at(start) else { return beyond(start, len) };
                match check.kind {
                    Kind::Equal | Kind::EqualBehindHeader => {
                        u64::from_ne_bytes(bytes) & check.mask == check.value
                    }
                    Kind::Greater { .. } => u64::from_be_bytes(bytes) & check.mask > check.value,
                    Kind::GreaterOrEqual { .. } => {
                        u64::from_be_bytes(bytes) & check.mask >= check.value
                    }
                }
            };
            number = check.next[usize::from(holds)];
        }
    }
}

/// What it means for a packet that not all is given that is to be looked at.
#[cold]
fn beyond(start: u64, len: usize) -> Verdict {
    missing(start, WINDOW, len)
}

impl Kind {
    #[inline]
    fn is_behind_header(self) -> bool {
        match self {
            Self::Equal => false,
            Self::EqualBehindHeader => true,
            Self::Greater { behind_header } | Self::GreaterOrEqual { behind_header } => {
                behind_header
            }
        }
    }
}

impl Check {
    /// A check of what is known to be in A, which leads to the operations of these numbers.
    fn new(field: Field, test: Test, with: u32, then: Target, otherwise: Target) -> Option<Self> {
        let Field { header, at, size, mask } = field;
        let end = u64::from(at) + u64::from(size);
        // What begins the packet is not at the end of the first 8 bytes. Behind a header, there is more.
        let shift = (WINDOW as u64).saturating_sub(end) * 8;
        let behind_header = header.is_some();
        if shift > 0 && behind_header {
            return None;
        }
        let (mask, with) = match test {
            Test::Has => (mask & with, 0),
            _ => (mask, with),
        };
        // A value of more bits than are loaded.
        if size < 4 && with >> (8 * size) != 0 {
            return None;
        }
        let kind = match test {
            Test::Equal | Test::Has if behind_header => Kind::EqualBehindHeader,
            Test::Equal | Test::Has => Kind::Equal,
            Test::Greater => Kind::Greater { behind_header },
            Test::GreaterOrEqual => Kind::GreaterOrEqual { behind_header },
        };
        let in_order = |word: u32| {
            let word = u64::from(word) << shift;
            let is_equal = matches!(kind, Kind::Equal | Kind::EqualBehindHeader);
            if is_equal { u64::from_ne_bytes(word.to_be_bytes()) } else { word }
        };
        Some(Self {
            mask: in_order(mask),
            value: in_order(with),
            start: u32::try_from(end.saturating_sub(WINDOW as u64)).ok()?,
            next: if test == Test::Has { [then, otherwise] } else { [otherwise, then] },
            kind,
            header: u16::try_from(header.unwrap_or(0)).ok()?,
        })
    }

    /// This check, and the one that it leads to if it holds, as one.
    fn and(&self, next: &Self) -> Option<Self> {
        let rejects = |check: &Self| {
            check.next[0] == REJECT
                && check.kind == Kind::Equal
                // Or it never holds, which the other one's mask might hide.
                && check.value & !check.mask == 0
        };
        if !rejects(self) || !rejects(next) {
            return None;
        }
        let start = self.start.max(next.start);
        let moved = |check: &Self| {
            let by = (start - check.start).checked_mul(8)?;
            let moved = |word: u64| {
                let word = u64::from_be_bytes(word.to_ne_bytes());
                let moved = word.checked_shl(by)?;
                (moved >> by == word).then_some(u64::from_ne_bytes(moved.to_be_bytes()))
            };
            Some((moved(check.mask)?, moved(check.value)?))
        };
        let ((mask, value), (next_mask, next_value)) = (moved(self)?, moved(next)?);
        let is_one = (value ^ next_value) & mask & next_mask == 0;
        is_one.then_some(Self { mask: mask | next_mask, value: value | next_value, start, ..*next })
    }
}

/// A part of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Field {
    /// Behind the IPv4 header whose length is in this byte.
    header: Option<u32>,
    at: u32,
    size: u32,
    mask: u32,
}

/// What is known of A and X.
#[derive(Clone, Copy, Default)]
struct Known {
    a: Option<Field>,
    /// The length of the IPv4 header that is in this byte.
    x: Option<u32>,
}

impl Known {
    /// What is known where two ways meet.
    fn and(self, other: Self) -> Self {
        Self {
            a: self.a.filter(|a| other.a == Some(*a)),
            x: self.x.filter(|x| other.x == Some(*x)),
        }
    }
}

/// What is done from an operation on, to the next decision.
#[derive(Clone, Copy)]
enum Block {
    Verdict { accepts: bool },
    Check(Check),
}

impl Block {
    /// The block from `number` on, and what is known behind it.
    fn new(operations: &[Operation], mut number: usize, mut known: Known) -> Option<(Self, Known)> {
        // What was loaded, and whether there was such a thing in the packet is not checked by now.
        let (mut loaded, mut header) = (None, None);
        loop {
            let mut load = |at: u32, size: u32, behind: Option<u32>| {
                let mask = u32::MAX >> (32 - 8 * size);
                let field = Field { header: behind, at, size, mask };
                // One thing at a time.
                loaded.replace(field).is_none().then_some(Some(field))
            };
            match *operations.get(number)? {
                Operation::Byte { at } => known.a = load(at, 1, None)?,
                Operation::Half { at } => known.a = load(at, 2, None)?,
                Operation::Word { at } => known.a = load(at, 4, None)?,
                Operation::IndexedByte { at } => known.a = load(at, 1, Some(known.x?))?,
                Operation::IndexedHalf { at } => known.a = load(at, 2, Some(known.x?))?,
                Operation::IndexedWord { at } => known.a = load(at, 4, Some(known.x?))?,
                Operation::HeaderLength { at } => {
                    if header.replace(at).is_some() {
                        return None;
                    }
                    known.x = Some(at);
                }
                Operation::Compute { operator: Operator::And, by } => known.a.as_mut()?.mask &= by,
                Operation::Jump { to } => {
                    number = to.into();
                    continue;
                }
                Operation::Branch { test, with, then, otherwise } => {
                    let field = known.a?;
                    // The check loads what was loaded, and nothing else was.
                    let is_loaded = |loaded: Field| Field { mask: field.mask, ..loaded } == field;
                    let is_checked = loaded.is_none_or(is_loaded)
                        && (header.is_none() || field.header == header);
                    let check = Check::new(field, test, with, then, otherwise)?;
                    return is_checked.then_some((Self::Check(check), known));
                }
                Operation::Return { accepts } => {
                    let is_checked = loaded.is_none() && header.is_none();
                    return is_checked.then_some((Self::Verdict { accepts }, known));
                }
                _ => return None,
            }
            number += 1;
        }
    }
}
