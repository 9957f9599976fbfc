//! What an instruction does: its numbers, decoded.

use super::verify::Problem;
use super::{Instruction, MEMORY_WORDS};

/// The number of an instruction.
pub(super) type Target = u16;

/// What an instruction does. A is the accumulator, X the index register. Of those that need not go straight
/// on, each says where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// A = what lies in the packet at `at`.
    Byte {
        at: u32,
    },
    Half {
        at: u32,
    },
    Word {
        at: u32,
    },
    /// A = what lies in the packet at X and `at`.
    IndexedByte {
        at: u32,
    },
    IndexedHalf {
        at: u32,
    },
    IndexedWord {
        at: u32,
    },
    /// X = 4 times the lower half of a byte: the length of an IPv4 header.
    HeaderLength {
        at: u32,
    },
    /// A = a constant.
    Constant(u32),
    /// A = a word of memory.
    Memory(u8),
    /// A = the packet's length.
    Length,
    /// The same for X.
    IndexConstant(u32),
    IndexMemory(u8),
    IndexLength,
    /// A word of memory = A.
    Store(u8),
    /// A word of memory = X.
    StoreIndex(u8),
    /// A = A and a constant, by an operator.
    Compute {
        operator: Operator,
        by: u32,
    },
    /// A = A and X, by an operator.
    ComputeIndex {
        operator: Operator,
    },
    /// A = -A.
    Negate,
    /// X = A.
    ToIndex,
    /// A = X.
    FromIndex,
    Jump {
        to: Target,
    },
    /// Compares A with a constant.
    Branch {
        test: Test,
        with: u32,
        then: Target,
        otherwise: Target,
    },
    /// Compares A with X.
    BranchIndex {
        test: Test,
        then: Target,
        otherwise: Target,
    },
    /// Accepts if the constant is not 0.
    Return {
        accepts: bool,
    },
    /// Accepts if A is not 0.
    ReturnA,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// Numbers have no sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    /// A has some of these bits.
    Has,
}

impl Operation {
    /// Decodes instruction `number` of `count`, judging what can be judged of it alone.
    pub(super) fn decode(
        instruction: Instruction,
        number: usize,
        count: usize,
    ) -> Result<Self, Problem> {
        let Instruction { code, jt, jf, k } = instruction;
        let at = || if k.cast_signed() < 0 { Err(Problem::KernelOffset) } else { Ok(k) };
        let word = || match u8::try_from(k) {
            Ok(word) if usize::from(word) < MEMORY_WORDS => Ok(word),
            _ => Err(Problem::MemoryOutside),
        };
        let target = |skipped: u32| {
            let target = number as u64 + 1 + u64::from(skipped);
            let is_inside = target < count as u64;
            // There are not so many instructions that a target is truncated.
            if is_inside { Ok(target as Target) } else { Err(Problem::JumpOutside { target }) }
        };
        // The numbers are those of <linux/bpf_common.h>: a class, and what that class has, added.
        Ok(match code {
            0x30 => Self::Byte { at: at()? },
            0x28 => Self::Half { at: at()? },
            0x20 => Self::Word { at: at()? },
            0x50 => Self::IndexedByte { at: at()? },
            0x48 => Self::IndexedHalf { at: at()? },
            0x40 => Self::IndexedWord { at: at()? },
            0xb1 => Self::HeaderLength { at: at()? },
            0x00 => Self::Constant(k),
            0x60 => Self::Memory(word()?),
            0x80 => Self::Length,
            0x01 => Self::IndexConstant(k),
            0x61 => Self::IndexMemory(word()?),
            0x81 => Self::IndexLength,
            0x02 => Self::Store(word()?),
            0x03 => Self::StoreIndex(word()?),
            0x84 => Self::Negate,
            0x07 => Self::ToIndex,
            0x87 => Self::FromIndex,
            0x06 => Self::Return { accepts: k != 0 },
            0x16 => Self::ReturnA,
            0x05 if k.cast_signed() < 0 => return Err(Problem::JumpBack),
            0x05 => Self::Jump { to: target(k)? },
            0x15 | 0x25 | 0x35 | 0x45 | 0x1d | 0x2d | 0x3d | 0x4d => {
                let test = match code & 0xf0 {
                    0x10 => Test::Equal,
                    0x20 => Test::Greater,
                    0x30 => Test::GreaterOrEqual,
                    _ => Test::Has,
                };
                let (then, otherwise) = (target(jt.into())?, target(jf.into())?);
                if code & 8 == 0 {
                    Self::Branch { test, with: k, then, otherwise }
                } else {
                    Self::BranchIndex { test, then, otherwise }
                }
            }
            _ if code & 7 == 4 && code <= 0xff => {
                let operator = Operator::decode(code & 0xf0).ok_or(Problem::UnknownCode)?;
                if code & 8 == 0 {
                    Self::Compute { operator, by: operator.check(k)? }
                } else {
                    Self::ComputeIndex { operator }
                }
            }
            _ => return Err(Problem::UnknownCode),
        })
    }
}

impl Operator {
    fn decode(code: u16) -> Option<Self> {
        Some(match code {
            0x00 => Self::Add,
            0x10 => Self::Subtract,
            0x20 => Self::Multiply,
            0x30 => Self::Divide,
            0x40 => Self::Or,
            0x50 => Self::And,
            0x60 => Self::ShiftLeft,
            0x70 => Self::ShiftRight,
            0x90 => Self::Remainder,
            0xa0 => Self::Xor,
            _ => return None,
        })
    }

    /// Judges the constant that this is done by.
    fn check(self, by: u32) -> Result<u32, Problem> {
        match self {
            Self::Divide | Self::Remainder if by == 0 => Err(Problem::DivisionByZero),
            Self::ShiftLeft | Self::ShiftRight if by >= u32::BITS => {
                Err(Problem::ShiftTooFar { by })
            }
            _ => Ok(by),
        }
    }

    /// Nothing, where one divides by 0.
    #[inline]
    pub(super) fn apply(self, a: u32, by: u32) -> Option<u32> {
        Some(match self {
            Self::Add => a.wrapping_add(by),
            Self::Subtract => a.wrapping_sub(by),
            Self::Multiply => a.wrapping_mul(by),
            Self::Divide => a.checked_div(by)?,
            Self::Remainder => a.checked_rem(by)?,
            Self::Or => a | by,
            Self::And => a & by,
            Self::Xor => a ^ by,
            Self::ShiftLeft => a.checked_shl(by).unwrap_or(0),
            Self::ShiftRight => a.checked_shr(by).unwrap_or(0),
        })
    }
}

impl Test {
    #[inline]
    pub(super) fn holds(self, a: u32, with: u32) -> bool {
        match self {
            Self::Equal => a == with,
            Self::Greater => a > with,
            Self::GreaterOrEqual => a >= with,
            Self::Has => a & with != 0,
        }
    }
}
