//! What a program must keep to, before it may run.

use thiserror::Error;

use super::operation::{Operation, Target};
use super::{Instruction, MAX_INSTRUCTIONS, MEMORY_WORDS};

/// Why a program may not run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// There is no instruction.
    #[error("the program is empty")]
    Empty,
    /// There are more than [`MAX_INSTRUCTIONS`].
    #[error("the program has {0} instructions, and may have {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    /// An instruction breaks a rule.
    #[error("instruction {number} ({instruction}): {problem}")]
    Instruction {
        /// Which, counted from 0 as `tcpdump -d` does.
        number: usize,
        /// The instruction.
        instruction: Instruction,
        /// The rule.
        problem: Problem,
    },
}

/// The rule that an instruction breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Its code is none of classic BPF's.
    #[error("there is no such code in classic BPF")]
    UnknownCode,
    /// An offset that is negative in the kernel's eyes.
    #[error("loads by an offset with which the kernel means its own data; there is none here")]
    KernelOffset,
    /// Leads behind the last instruction.
    #[error("jumps to instruction {target}, which is behind the last")]
    JumpOutside {
        /// Where it would lead.
        target: u64,
    },
    /// Leads back, so that the program might not end.
    #[error("jumps back, and programs may only jump forward (`protochain` is made of such loops)")]
    JumpBack,
    /// The last one, and yet not a return.
    #[error("the last instruction must be a return")]
    NoReturn,
    /// Memory has no such word.
    #[error("memory has words 0 to {last}", last = MEMORY_WORDS - 1)]
    MemoryOutside,
    /// There is a way to this instruction on which the word is not written.
    #[error("reads word {word} of memory, which may not have been written")]
    MemoryUnwritten {
        /// Which word.
        word: u8,
    },
    /// Divides by a constant of 0.
    #[error("divides by 0")]
    DivisionByZero,
    /// Shifts by a constant of 32 or more.
    #[error("shifts a word of 32 bits by {by}")]
    ShiftTooFar {
        /// How far.
        by: u32,
    },
}

/// Judges a program by the rules of the kernel's `bpf_check_classic`, without its extensions.
///
/// What passes has only instructions that are known; every way through it leads forward and ends with
/// a return, and writes a word of memory before it reads it. There is an operation for each instruction.
pub(super) fn verify(program: &[Instruction]) -> Result<Vec<Operation>, Invalid> {
    let count = program.len();
    if count == 0 {
        return Err(Invalid::Empty);
    }
    if count > MAX_INSTRUCTIONS {
        return Err(Invalid::TooLong(count));
    }
    let mut written = Written { jumping: vec![u16::MAX; count], straight: 0 };
    let judge = |(number, instruction): (usize, &Instruction)| {
        let judged = Operation::decode(*instruction, number, count).and_then(|operation| {
            let goes_on = written.follow(number, operation)?;
            let is_last = number + 1 == count;
            if goes_on && is_last { Err(Problem::NoReturn) } else { Ok(operation) }
        });
        judged.map_err(|problem| Invalid::Instruction {
            number,
            instruction: *instruction,
            problem,
        })
    };
    program.iter().enumerate().map(judge).collect()
}

/// Which words of memory are written on all ways to an instruction, a bit each. As all ways lead forward, one
/// look at each instruction, in order, is enough.
struct Written {
    /// For each instruction, on all ways that jump to it.
    jumping: Vec<u16>,
    /// On the way that goes straight on to the next instruction; all words if there is no such way.
    straight: u16,
}

impl Written {
    /// Takes an operation into account. Returns whether it goes straight on.
    fn follow(&mut self, number: usize, operation: Operation) -> Result<bool, Problem> {
        let mut written = self.straight & self.jumping[number];
        let mut jump = |to: Target| self.jumping[usize::from(to)] &= written;
        let goes_on = match operation {
            Operation::Jump { to } => {
                jump(to);
                false
            }
            Operation::Branch { then, otherwise, .. }
            | Operation::BranchIndex { then, otherwise, .. } => {
                jump(then);
                jump(otherwise);
                false
            }
            Operation::Return { .. } | Operation::ReturnA => false,
            Operation::Memory(word) | Operation::IndexMemory(word) => {
                if written & 1 << word == 0 {
                    return Err(Problem::MemoryUnwritten { word });
                }
                true
            }
            Operation::Store(word) | Operation::StoreIndex(word) => {
                written |= 1 << word;
                true
            }
            _ => true,
        };
        self.straight = if goes_on { written } else { u16::MAX };
        Ok(goes_on)
    }
}
