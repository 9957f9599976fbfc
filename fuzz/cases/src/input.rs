//! The fuzzer's bytes, read as a program.
//!
//! Numbers are read from the front, in little-endian order; past the end all are zero. So every
//! sequence of bytes is a program, a prefix of a program is one, and a change to one byte changes
//! little.

use wire::virtio::Features;

/// Most steps in a program: a bound on the time that one input takes.
pub const MAX_STEPS: usize = 100;

/// What is left of the bytes.
pub struct Input<'a> {
    rest: &'a [u8],
}

macro_rules! numbers {
    ($($type:ident),*) => {
        $(pub fn $type(&mut self) -> $type {
            $type::from_le_bytes(self.array())
        })*
    };
}

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    numbers!(u8, u16, u32, u64);

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes(N)) {
            *to = *from;
        }
        array
    }

    /// Up to `count` bytes: as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    pub fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `limit`, which is at most 256.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.u8()) % limit
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Whether something rare is to happen: one value of a byte in sixteen.
    pub fn rarely(&mut self) -> bool {
        self.u8() >= 0xf0
    }

    /// The kind of each step, below `limit`, until the program ends. To be called once a step.
    pub fn step(&mut self, steps: &mut usize, limit: usize) -> Option<usize> {
        if self.rest.is_empty() || *steps == MAX_STEPS {
            return None;
        }
        *steps += 1;
        Some(self.below(limit))
    }
}

/// Those of some features whose bits are set, the first one's lowest.
pub fn chosen(choice: &[Features], bits: u32) -> Features {
    let is_chosen = |(bit, _): &(usize, &Features)| bits >> bit & 1 == 1;
    let chosen = choice.iter().enumerate().filter(is_chosen);
    chosen.fold(Features::NONE, |all, (_, feature)| all | *feature)
}
