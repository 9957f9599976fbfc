//! A program that may run, and how it runs.

use std::sync::Arc;

use super::operation::{Operation, Target, Test};
use super::verify::{Invalid, verify};
use super::{Instruction, MEMORY_WORDS};

/// Where a program leads that accepts. No instruction has this number, nor the other.
const ACCEPT: Target = Target::MAX;
/// Where one leads that does not.
const REJECT: Target = Target::MAX - 1;

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

/// A program that was judged to be valid. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// One for each instruction. Where an instruction and the next became one operation, the next is still
    /// there, for those who jump to it.
    operations: Arc<[Operation]>,
}

impl Program {
    /// A program, if it is valid: see [`Invalid`] for what it must keep to.
    pub fn new(instructions: &[Instruction]) -> Result<Self, Invalid> {
        let mut operations = verify(instructions)?;
        // From the last on, so that what a jump leads to is as short as it gets when it is looked at.
        for number in (0..operations.len()).rev() {
            operations[number] = shorten(&operations, number);
        }
        Ok(Self { operations: operations.into() })
    }

    /// What the program says of a packet of `len` bytes, of which `given` is the beginning.
    ///
    /// Takes no more steps than the program has instructions.
    #[inline]
    pub fn run(&self, given: &[u8], len: usize) -> Verdict {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY_WORDS];
        let mut number = 0;
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
            let Some(operation) = self.operations.get(usize::from(number)) else {
                return if number == ACCEPT { Verdict::Accept } else { Verdict::Reject };
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
                Operation::Return { accepts } => number = if accepts { ACCEPT } else { REJECT },
                Operation::ReturnA => number = if a != 0 { ACCEPT } else { REJECT },
                Operation::ByteIs { at, value, then, otherwise } => {
                    a = load!(u8, u64::from(at));
                    number = if a == value { then } else { otherwise };
                }
                Operation::HalfIs { at, value, then, otherwise } => {
                    a = load!(u16, u64::from(at));
                    number = if a == value { then } else { otherwise };
                }
                Operation::WordIs { at, value, then, otherwise } => {
                    a = load!(u32, u64::from(at));
                    number = if a == value { then } else { otherwise };
                }
                Operation::IndexedHalfIs { at, value, then, otherwise } => {
                    a = load!(u16, indexed(x, at));
                    number = if a == value { then } else { otherwise };
                }
                Operation::HalfHas { at, bits, then, otherwise } => {
                    a = load!(u16, u64::from(at));
                    number = if a & bits != 0 { then } else { otherwise };
                }
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
fn missing(at: u64, size: usize, len: usize) -> Verdict {
    let is_in_packet = at + size as u64 <= len as u64;
    if is_in_packet { Verdict::NotGiven } else { Verdict::Reject }
}

/// What is executed for operation `number`, where all behind it were shortened already.
fn shorten(operations: &[Operation], number: usize) -> Operation {
    let lead = |to: Target| match operations[usize::from(to)] {
        Operation::Return { accepts } => {
            if accepts {
                ACCEPT
            } else {
                REJECT
            }
        }
        Operation::Jump { to } => to,
        _ => to,
    };
    let operation = match operations[number] {
        Operation::Jump { to } => return Operation::Jump { to: lead(to) },
        Operation::Branch { test, with, then, otherwise } => {
            let (then, otherwise) = (lead(then), lead(otherwise));
            return Operation::Branch { test, with, then, otherwise };
        }
        Operation::BranchIndex { test, then, otherwise } => {
            let (then, otherwise) = (lead(then), lead(otherwise));
            return Operation::BranchIndex { test, then, otherwise };
        }
        other => other,
    };
    let Some(Operation::Branch { test, with, then, otherwise }) = operations.get(number + 1) else {
        return operation;
    };
    let (value, then, otherwise) = (*with, *then, *otherwise);
    match (operation, test) {
        (Operation::Byte { at }, Test::Equal) => Operation::ByteIs { at, value, then, otherwise },
        (Operation::Half { at }, Test::Equal) => Operation::HalfIs { at, value, then, otherwise },
        (Operation::Word { at }, Test::Equal) => Operation::WordIs { at, value, then, otherwise },
        (Operation::IndexedHalf { at }, Test::Equal) => {
            Operation::IndexedHalfIs { at, value, then, otherwise }
        }
        (Operation::Half { at }, Test::Has) => {
            Operation::HalfHas { at, bits: value, then, otherwise }
        }
        _ => operation,
    }
}
