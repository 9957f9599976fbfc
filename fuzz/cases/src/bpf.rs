//! A filter's program: whatever it is, it is refused, or runs over any packet and ends.

use wire::bpf::{
    Instruction, Invalid, MAX_INSTRUCTIONS, NumbersError, Program, Verdict, parse_numbers,
};

use crate::Reached;
use crate::input::Input;

/// A program, and a packet.
///
/// An odd byte, and a program as text; or an even one, how many instructions there are, the
/// instructions, how much of the packet is given, and the packet.
pub fn bpf(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let mut input = Input::new(data);
    if input.bool() {
        let text = String::from_utf8_lossy(input.bytes(usize::MAX));
        match parse_numbers(&text) {
            Ok(program) => {
                reached.note("text");
                run(&program, &[], 0, &mut reached);
            }
            Err(NumbersError::Instruction { fault, .. }) => reached.note_variant(&fault),
            Err(error) => reached.note_variant(&error),
        }
        return reached;
    }
    let count = usize::from(input.u16()) % (MAX_INSTRUCTIONS + 2);
    let program: Vec<Instruction> = (0..count)
        .map(|_| Instruction { code: input.u16(), jt: input.u8(), jf: input.u8(), k: input.u32() })
        .collect();
    let given = input.u16();
    let packet = input.bytes(usize::MAX);
    run(&program, packet, given.into(), &mut reached);
    reached
}

/// Runs a program, if it is valid, over a packet of which so much is given.
fn run(instructions: &[Instruction], packet: &[u8], given: usize, reached: &mut Reached) {
    let program = match Program::new(instructions) {
        Ok(program) => program,
        Err(Invalid::Instruction { number, instruction, problem }) => {
            assert_eq!(instructions.get(number), Some(&instruction));
            return reached.note_variant(&problem);
        }
        Err(invalid) => return reached.note_variant(&invalid),
    };
    let whole = program.run(packet, packet.len());
    assert_ne!(whole, Verdict::NotGiven, "all of it was given");
    reached.note_variant(&whole);
    // A store in front is one more thing than looking and deciding: the same program, interpreted.
    let store = Instruction { code: 0x02, jt: 0, jf: 0, k: 0 };
    let stored: Vec<Instruction> = [&[store], instructions].concat();
    if let Ok(interpreted) = Program::new(&stored) {
        assert_eq!(interpreted.run(packet, packet.len()), whole);
    }
    let part = program.run(&packet[..given.min(packet.len())], packet.len());
    assert!([whole, Verdict::NotGiven].contains(&part), "{part:?}, and {whole:?} of the whole");
    reached.note_variant(&part);
}
