//! Classic BPF: the programs that expressions of pcap-filter(7) are compiled to.
//!
//! A program is a list of [`Instruction`]s as numbers, which anybody may have written. It is judged
//! by the rules of the kernel's `bpf_check_classic`, and only what passed becomes a
//! [`Program`], which then runs safely over any bytes, and ends: all jumps lead forward.
//!
//! The machine (McCanne and Jacobson, "The BSD Packet Filter", 1993) has an accumulator A, an index
//! register X, and 16 words of memory. A load from outside of the packet ends the program: it does not
//! accept. So do divisions by an X that is 0. Shifts by an X of 32 or more give 0, as in libpcap.
//!
//! There is only the packet to load from: no extensions of Linux's (`SKF_AD_OFF` and others), as nobody
//! keeps such metadata here; a VLAN tag is in the frame.

mod decision;
mod operation;
mod program;
mod verify;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use program::{Program, Verdict};
pub use verify::{Invalid, Problem};

/// Most instructions in a program (the kernel's `BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Words of memory that a program has (the kernel's `BPF_MEMWORDS`).
pub const MEMORY_WORDS: usize = 16;

/// An instruction, as `struct sock_filter` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The constant.
    pub k: u32,
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, jt, jf, k } = self;
        write!(f, "{code} {jt} {jf} {k}")
    }
}

/// Not an instruction in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "expected an instruction as four numbers, such as \"40 0 0 12\": code, jt, jf, k; found {0:?}"
)]
pub struct NotAnInstruction(pub String);

impl FromStr for Instruction {
    type Err = NotAnInstruction;

    fn from_str(text: &str) -> Result<Self, NotAnInstruction> {
        let mut numbers = text.split_ascii_whitespace();
        let mut instruction = || {
            let parsed = Self {
                code: numbers.next()?.parse().ok()?,
                jt: numbers.next()?.parse().ok()?,
                jf: numbers.next()?.parse().ok()?,
                k: numbers.next()?.parse().ok()?,
            };
            numbers.next().is_none().then_some(parsed)
        };
        instruction().ok_or_else(|| NotAnInstruction(text.trim().to_owned()))
    }
}

/// Why a text is not a program in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NumbersError {
    /// It does not begin with the number of instructions.
    #[error(
        "expected the number of instructions first, as `tcpdump -ddd` prints it; found {found:?}"
    )]
    Count {
        /// What was there instead.
        found: String,
    },
    /// There are more instructions, or fewer.
    #[error("{expected} instructions are announced, and {found} follow")]
    Missing {
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// One of them is none.
    #[error("instruction {at}: {fault}")]
    Instruction {
        /// Which, counted from 0.
        at: usize,
        /// What is wrong with it.
        fault: NotAnInstruction,
    },
}

/// Reads a program in numbers: what `tcpdump -ddd` prints, or the same with commas for ends of lines, as
/// `iptables -m bpf` takes it.
pub fn parse_numbers(text: &str) -> Result<Vec<Instruction>, NumbersError> {
    let mut lines = text.split(['\n', ',']).filter(|line| !line.trim().is_empty());
    let count = lines.next().unwrap_or_default().trim();
    let expected: usize =
        count.parse().map_err(|_| NumbersError::Count { found: count.to_owned() })?;
    let instructions: Vec<Instruction> = lines
        .enumerate()
        .map(|(at, line)| line.parse().map_err(|fault| NumbersError::Instruction { at, fault }))
        .collect::<Result<_, _>>()?;
    if instructions.len() != expected {
        return Err(NumbersError::Missing { expected, found: instructions.len() });
    }
    Ok(instructions)
}

#[cfg(test)]
mod tests;
