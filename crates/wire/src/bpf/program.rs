//! A program that may run, and how it runs.

use std::sync::Arc;

use super::decision::Decisions;
use super::operation::{Operation, Target};
use super::verify::{Invalid, verify};
use super::{Instruction, MEMORY_WORDS};

/// What a program says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is accepted.
    Accept,
    /// It is not.
    Reject,
    /// That depends on bytes of the packet that were not given.
    NotGiven,
}

impl Verdict {
    fn of(accepts: bool) -> Self {
        if accepts { Self::Accept } else { Self::Reject }
    }
}

/// A program that was judged to be valid. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Arc<Forms>);

/// What is executed.
#[derive(Debug, PartialEq, Eq)]
struct Forms {
    /// One for each instruction.
    operations: Box<[Operation]>,
    /// The same, if the program only looks and decides.
    decisions: Option<Decisions>,
}

impl Program {
    /// A program, if it is valid: see [`Problem`](super::Problem) for what it must keep to.
    pub fn new(instructions: &[Instruction]) -> Result<Self, Invalid> {
        let operations = verify(instructions)?;
        let decisions = Decisions::new(&operations);
        Ok(Self(Arc::new(Forms { operations: operations.into(), decisions })))
    }

    /// What the program says of a packet of `len` bytes, of which `given` is the beginning.
    ///
    /// Takes no more steps than the program has instructions.
    #[inline]
    pub fn run(&self, given: &[u8], len: usize) -> Verdict {
        match &self.0.decisions {
            Some(decisions) if given.len() >= Decisions::SHORTEST => decisions.run(given, len),
            _ => self.interpret(given, len),
        }
    }

    /// Whether the program only looks and decides.
    #[cfg(test)]
    pub(super) fn is_decisions(&self) -> bool {
        self.0.decisions.is_some()
    }

    fn interpret(&self, given: &[u8], len: usize) -> Verdict {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY_WORDS];
        let mut number: Target = 0;
        /// What a load gives; if that is not there, the program ends.
        macro_rules! load {
            ($type:ident, $at:expr) => {
                match load(given, $at) {
                    Some(bytes) => u32::from($type::from_be_bytes(bytes)),
                    None => return missing($at, size_of::<$type>(), len),
                }
            };
        }
        loop {
            // Whatever way is taken, it ends with a return.
            let Some(operation) = self.0.operations.get(usize::from(number)) else {
                return Verdict::Reject;
            };
            number += 1;
            match *operation {
                Operation::Byte { at } => a = load!(u8, u64::from(at)),
                Operation::Half { at } => a = load!(u16, u64::from(at)),
                Operation::Word { at } => a = load!(u32, u64::from(at)),
                Operation::IndexedByte { at } => a = load!(u8, indexed(x, at)),
                Operation::IndexedHalf { at } => a = load!(u16, indexed(x, at)),
                Operation::IndexedWord { at } => a = load!(u32, indexed(x, at)),
                Operation::HeaderLength { at } => x = (load!(u8, u64::from(at)) & 0xf) * 4,
                Operation::Constant(value) => a = value,
                Operation::Memory(word) => a = memory[usize::from(word) % MEMORY_WORDS],
                Operation::Length => a = len as u32,
                Operation::IndexConstant(value) => x = value,
                Operation::IndexMemory(word) => x = memory[usize::from(word) % MEMORY_WORDS],
                Operation::IndexLength => x = len as u32,
                Operation::Store(word) => memory[usize::from(word) % MEMORY_WORDS] = a,
                Operation::StoreIndex(word) => memory[usize::from(word) % MEMORY_WORDS] = x,
                Operation::Compute { operator, by } => match operator.apply(a, by) {
                    Some(result) => a = result,
                    None => return Verdict::Reject,
                },
                Operation::ComputeIndex { operator } => match operator.apply(a, x) {
                    Some(result) => a = result,
                    None => return Verdict::Reject,
                },
                Operation::Negate => a = a.wrapping_neg(),
                Operation::ToIndex => x = a,
                Operation::FromIndex => a = x,
                Operation::Jump { to } => number = to,
                Operation::Branch { test, with, then, otherwise } => {
                    number = if test.holds(a, with) { then } else { otherwise };
                }
                Operation::BranchIndex { test, then, otherwise } => {
                    number = if test.holds(a, x) { then } else { otherwise };
                }
                Operation::Return { accepts } => return Verdict::of(accepts),
                Operation::ReturnA => return Verdict::of(a != 0),
            }
        }
    }
}

/// X and a constant. The sum does not wrap: an offset is not negative, and no way back into the packet.
#[inline(always)]
fn indexed(x: u32, at: u32) -> u64 {
    u64::from(x) + u64::from(at)
}

#[inline(always)]
fn load<const SIZE: usize>(given: &[u8], at: u64) -> Option<[u8; SIZE]> {
    let at = usize::try_from(at).ok()?;
    given.get(at..at.checked_add(SIZE)?)?.try_into().ok()
}

/// What a load means for the packet that is not in what was given.
#[cold]
pub(super) fn missing(at: u64, size: usize, len: usize) -> Verdict {
    let is_in_packet = at + size as u64 <= len as u64;
    if is_in_packet { Verdict::NotGiven } else { Verdict::Reject }
}
