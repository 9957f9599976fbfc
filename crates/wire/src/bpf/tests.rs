use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

const RETURN: Instruction = instruction(0x06, 0, 0, 1);
const RETURN_A: Instruction = instruction(0x16, 0, 0, 0);

/// `tcp port 80`, by `tcpdump -ddd`.
const TCP_PORT_80: &str = "20\n40 0 0 12\n21 0 6 34525\n48 0 0 20\n21 0 15 6\n40 0 0 54\n\
    21 12 0 80\n40 0 0 56\n21 10 11 80\n21 0 10 2048\n48 0 0 23\n21 0 8 6\n40 0 0 20\n\
    69 6 0 8191\n177 0 0 14\n72 0 0 14\n21 2 0 80\n72 0 0 16\n21 0 1 80\n6 0 0 262144\n6 0 0 0\n";

fn problem(program: &[Instruction]) -> (usize, Problem) {
    match Program::new(program) {
        Err(Invalid::Instruction { number, instruction, problem }) => {
            assert_eq!(instruction, program[number]);
            (number, problem)
        }
        other => panic!("{other:?}"),
    }
}

fn accepts(program: &[Instruction], packet: &[u8]) -> bool {
    let verdict = Program::new(program).unwrap().run(packet, packet.len());
    assert_ne!(verdict, Verdict::NotGiven);
    verdict == Verdict::Accept
}

/// The codes of classic BPF, as <linux/filter.h> and the kernel's `chk_code_allowed` have them.
const CODES: [u16; 49] = [
    0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c,
    0x84, 0x94, 0x9c, 0xa4, 0xac, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x80, 0x00, 0x60, 0x01, 0x61,
    0x81, 0xb1, 0x02, 0x03, 0x07, 0x87, 0x06, 0x16, 0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45,
    0x4d,
];

#[test]
fn only_codes_of_classic_bpf_are_known() {
    for code in 0..=u16::MAX {
        // Memory is written, nothing is divided by 0, and a jump leads to the end.
        let program = [instruction(0x02, 0, 0, 1), instruction(code, 0, 0, 1), RETURN, RETURN];
        if CODES.contains(&code) {
            Program::new(&program).unwrap_or_else(|error| panic!("code {code:#x}: {error}"));
        } else {
            assert_eq!(problem(&program), (1, Problem::UnknownCode), "code {code:#x}");
        }
    }
}

#[test]
fn a_program_has_1_to_4096_instructions() {
    assert_eq!(Program::new(&[]), Err(Invalid::Empty));
    assert!(Program::new(&[RETURN; MAX_INSTRUCTIONS]).is_ok());
    assert_eq!(Program::new(&[RETURN; MAX_INSTRUCTIONS + 1]), Err(Invalid::TooLong(4097)));
}

#[test]
fn jumps_stay_inside() {
    for code in [0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d] {
        let program = |jt, jf| [instruction(code, jt, jf, 0), RETURN, RETURN];
        assert!(Program::new(&program(1, 1)).is_ok());
        assert_eq!(problem(&program(2, 0)), (0, Problem::JumpOutside { target: 3 }));
        assert_eq!(problem(&program(0, 255)), (0, Problem::JumpOutside { target: 256 }));
    }
    let program = |k| [instruction(0x05, 0, 0, k), RETURN, RETURN];
    assert!(Program::new(&program(1)).is_ok());
    assert_eq!(problem(&program(2)), (0, Problem::JumpOutside { target: 3 }));
    assert_eq!(problem(&program(i32::MAX as u32)), (0, Problem::JumpOutside { target: 1 << 31 }));
    // To itself, and as far back as there is.
    assert_eq!(problem(&program(u32::MAX)), (0, Problem::JumpBack));
    assert_eq!(problem(&program(1 << 31)), (0, Problem::JumpBack));
}

#[test]
fn the_last_instruction_returns() {
    assert_eq!(problem(&[instruction(0, 0, 0, 1)]), (0, Problem::NoReturn));
    assert_eq!(problem(&[RETURN, instruction(0x07, 0, 0, 0)]), (1, Problem::NoReturn));
    assert!(Program::new(&[RETURN_A]).is_ok());
    // A jump there has nowhere to go.
    let jump = instruction(0x05, 0, 0, 0);
    assert_eq!(problem(&[RETURN, jump]), (1, Problem::JumpOutside { target: 2 }));
}

#[test]
fn memory_has_16_words() {
    for code in [0x02, 0x03, 0x60, 0x61] {
        for word in [16, 256, u32::MAX] {
            let program = [instruction(0x02, 0, 0, 0), instruction(code, 0, 0, word), RETURN];
            assert_eq!(problem(&program), (1, Problem::MemoryOutside), "code {code:#x}, {word}");
        }
        let program = [instruction(0x02, 0, 0, 15), instruction(code, 0, 0, 15), RETURN];
        assert!(Program::new(&program).is_ok());
    }
}

#[test]
fn memory_is_written_before_it_is_read() {
    let (store, load) = (instruction(0x02, 0, 0, 3), instruction(0x60, 0, 0, 3));
    for load in [load, instruction(0x61, 0, 0, 3)] {
        let unwritten = Problem::MemoryUnwritten { word: 3 };
        assert_eq!(problem(&[load, RETURN]), (0, unwritten));
        assert_eq!(problem(&[instruction(0x02, 0, 0, 2), load, RETURN]), (1, unwritten));
        for store in [store, instruction(0x03, 0, 0, 3)] {
            assert!(Program::new(&[store, load, RETURN]).is_ok());
            // One of two ways goes around the store.
            for (jt, jf) in [(0, 1), (1, 0)] {
                let branch = instruction(0x15, jt, jf, 0);
                assert_eq!(problem(&[branch, store, load, RETURN]), (2, unwritten));
                assert!(Program::new(&[store, branch, RETURN, load, RETURN]).is_ok());
            }
            let jump = instruction(0x05, 0, 0, 1);
            assert_eq!(problem(&[jump, store, load, RETURN]), (2, unwritten));
            // Both ways write it.
            let program = [instruction(0x15, 0, 2, 0), store, jump, store, load, RETURN];
            assert!(Program::new(&program).is_ok());
            // What goes on behind a return was jumped to.
            let program = [instruction(0x15, 2, 0, 0), store, RETURN, load, RETURN];
            assert_eq!(problem(&program), (3, unwritten));
        }
    }
}

#[test]
fn nothing_is_divided_by_a_constant_0() {
    for code in [0x34, 0x94] {
        assert_eq!(problem(&[instruction(code, 0, 0, 0), RETURN]), (0, Problem::DivisionByZero));
        assert!(Program::new(&[instruction(code, 0, 0, 1), RETURN]).is_ok());
        // By an X that is 0, when it runs.
        let by_index = |x| {
            [
                instruction(0, 0, 0, 8),
                instruction(1, 0, 0, x),
                instruction(code | 8, 0, 0, 0),
                RETURN,
            ]
        };
        assert!(accepts(&by_index(3), &[]));
        assert!(!accepts(&by_index(0), &[]));
    }
}

#[test]
fn nothing_is_shifted_by_a_constant_of_32() {
    for code in [0x64, 0x74] {
        let too_far = Problem::ShiftTooFar { by: 32 };
        assert_eq!(problem(&[instruction(code, 0, 0, 32), RETURN]), (0, too_far));
        assert!(Program::new(&[instruction(code, 0, 0, 31), RETURN]).is_ok());
        // By X, when it runs: nothing is left.
        let by_index = |x| {
            [
                instruction(0, 0, 0, u32::MAX),
                instruction(1, 0, 0, x),
                instruction(code | 8, 0, 0, 0),
                RETURN_A,
            ]
        };
        assert!(accepts(&by_index(31), &[]));
        assert!(!accepts(&by_index(32), &[]));
    }
}

#[test]
fn the_kernels_extensions_are_refused() {
    for code in [0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xb1] {
        // SKF_AD_OFF and SKF_AD_VLAN_TAG_PRESENT; SKF_NET_OFF; SKF_LL_OFF; the first of all.
        for k in [0xffff_f000 + 48, 0xfff0_0000, 0xffe0_0000, 0x8000_0000] {
            let program = [instruction(code, 0, 0, k), RETURN];
            assert_eq!(problem(&program), (0, Problem::KernelOffset), "code {code:#x}, {k:#x}");
        }
        assert!(Program::new(&[instruction(code, 0, 0, 0x7fff_ffff), RETURN]).is_ok());
    }
}

#[test]
fn errors_say_which_instruction_and_why() {
    let program = [RETURN, instruction(0x15, 0, 9, 34525), RETURN];
    assert_eq!(
        Program::new(&program).unwrap_err().to_string(),
        "instruction 1 (21 0 9 34525): jumps to instruction 11, which is behind the last"
    );
}

#[test]
fn numbers_are_read_as_they_are_printed() {
    let program = parse_numbers(TCP_PORT_80).unwrap();
    assert_eq!(program.len(), 20);
    assert_eq!(program[1], instruction(0x15, 0, 6, 0x86dd));
    assert_eq!(parse_numbers(&TCP_PORT_80.replace('\n', ",")), Ok(program.clone()));
    let lines: Vec<String> = program.iter().map(Instruction::to_string).collect();
    assert_eq!(format!("20\n{}\n", lines.join("\n")), TCP_PORT_80);

    let refused = |text: &str| parse_numbers(text).unwrap_err().to_string();
    assert!(refused("").contains("found \"\""));
    assert!(refused("tcp port 80").contains("found \"tcp port 80\""));
    assert_eq!(refused("2\n6 0 0 0"), "2 instructions are announced, and 1 follow");
    assert_eq!(refused("0\n6 0 0 0"), "0 instructions are announced, and 1 follow");
    for wrong in ["6 0 0", "6 0 0 0 0", "6 0 0 x", "6 256 0 0", "65536 0 0 0", "6 0 0 4294967296"] {
        let message = refused(&format!("2\n6 0 0 0\n{wrong}"));
        assert!(message.starts_with("instruction 1: ") && message.contains(wrong), "{message}");
    }
}

#[test]
fn tcp_port_80() {
    let program = Program::new(&parse_numbers(TCP_PORT_80).unwrap()).unwrap();
    let mut packet = [0u8; 60];
    packet[12] = 8;
    packet[14] = 0x45;
    packet[23] = 6;
    assert_eq!(program.run(&packet, 60), Verdict::Reject);
    packet[37] = 80;
    assert_eq!(program.run(&packet, 60), Verdict::Accept);
    // Options of IPv4 in front of it.
    packet[14] = 0x46;
    assert_eq!(program.run(&packet, 60), Verdict::Reject);
    packet[39] = 80;
    assert_eq!(program.run(&packet, 60), Verdict::Accept);
    // A later fragment.
    packet[21] = 1;
    assert_eq!(program.run(&packet, 60), Verdict::Reject);
}

#[test]
fn what_is_not_given_is_not_guessed() {
    for (code, size) in [(0x30, 1), (0x28, 2), (0x20, 4)] {
        for indexed in [false, true] {
            let code = if indexed { code + 0x20 } else { code };
            let k = if indexed { 7 } else { 10 };
            let program = [instruction(1, 0, 0, 3), instruction(code, 0, 0, k), RETURN];
            let program = Program::new(&program).unwrap();
            let packet = [0; 20];
            assert_eq!(program.run(&packet[..10 + size], 20), Verdict::Accept);
            assert_eq!(program.run(&packet[..9 + size], 20), Verdict::NotGiven);
            assert_eq!(program.run(&packet[..9 + size], 10 + size), Verdict::NotGiven);
            assert_eq!(program.run(&packet[..9 + size], 9 + size), Verdict::Reject);
        }
    }
    // Offsets do not come back to the front.
    let program = [instruction(1, 0, 0, u32::MAX), instruction(0x50, 0, 0, 1), RETURN];
    assert_eq!(Program::new(&program).unwrap().run(&[0; 20], 20), Verdict::Reject);
    let program = [instruction(0x28, 0, 0, 0x7fff_ffff), RETURN];
    assert_eq!(Program::new(&program).unwrap().run(&[0; 20], 20), Verdict::Reject);
}

/// The machine as its paper has it: from the numbers, a step at a time, and nothing else.
fn reference(program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let (class, operand) = (code & 7, if code & 8 == 0 { k } else { x });
        match class {
            0 | 1 => {
                let offset = match code & 0xe0 {
                    0x40 => k as usize + x as usize,
                    _ => k as usize,
                };
                let size = match code & 0x18 {
                    0x00 => 4,
                    0x08 => 2,
                    _ => 1,
                };
                let bytes = packet.iter().skip(offset).take(size);
                let loaded = (offset + size <= packet.len())
                    .then(|| bytes.fold(0, |word, byte| word << 8 | u32::from(*byte)));
                let value = match code & 0xe0 {
                    0x00 => Some(k),
                    0x20 | 0x40 => loaded,
                    0x60 => Some(memory[k as usize]),
                    0x80 => Some(packet.len() as u32),
                    _ => loaded.map(|byte| (byte & 15) * 4),
                };
                let Some(value) = value else { return 0 };
                *(if class == 0 { &mut a } else { &mut x }) = value;
            }
            2 => memory[k as usize] = a,
            3 => memory[k as usize] = x,
            4 => {
                a = match code & 0xf0 {
                    0x00 => (u64::from(a) + u64::from(operand)) as u32,
                    0x10 => (i64::from(a) - i64::from(operand)) as u32,
                    0x20 => (u64::from(a) * u64::from(operand)) as u32,
                    0x30 | 0x90 if operand == 0 => return 0,
                    0x30 => a / operand,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => {
                        if operand < 32 {
                            a << operand
                        } else {
                            0
                        }
                    }
                    0x70 => {
                        if operand < 32 {
                            a >> operand
                        } else {
                            0
                        }
                    }
                    0x80 => (-i64::from(a)) as u32,
                    0x90 => a % operand,
                    _ => a ^ operand,
                }
            }
            5 => {
                let holds = match code & 0xf0 {
                    0x00 => {
                        at += k as usize;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    _ => a & operand != 0,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            6 => return if code == 0x16 { a } else { k },
            _ if code == 0x07 => x = a,
            _ => a = x,
        }
    }
}

/// Programs that are valid, with constants that matter to packets of so few bytes.
fn program() -> impl Strategy<Value = Vec<Instruction>> {
    // Loads and comparisons are most of what there is.
    let code = prop_oneof![
        2 => prop::sample::select(CODES.to_vec()),
        3 => prop::sample::select(vec![0x30, 0x28, 0x20, 0x50, 0x48, 0x40, 0xb1]),
        3 => prop::sample::select(vec![0x15, 0x25, 0x35, 0x45, 0x1d, 0x05]),
    ];
    let k = prop_oneof![8 => 0u32..24, 1 => any::<u32>()];
    let any_instruction = (code, any::<[u8; 2]>(), k);
    prop::collection::vec(any_instruction, 0..40).prop_map(|instructions| {
        let mut program: Vec<Instruction> =
            (0..16).map(|word| instruction([0x02, 0x03][word as usize % 2], 0, 0, word)).collect();
        let count = instructions.len();
        program.extend(instructions.into_iter().enumerate().map(|(at, (code, [jt, jf], k))| {
            // How many there are to skip, up to the return; mostly few.
            let left = count - at;
            let skip = |by: u8| (usize::from(by % 4) % left.max(1)) as u8;
            let k = match code {
                0x05 => k % left as u32,
                0x02 | 0x03 | 0x60 | 0x61 => k % 16,
                0x34 | 0x94 => k.max(1),
                0x64 | 0x74 => k % 32,
                0x30 | 0x28 | 0x20 | 0x50 | 0x48 | 0x40 | 0xb1 => k & 0x7fff_ffff,
                _ => k,
            };
            instruction(code, skip(jt), skip(jf), k)
        }));
        program.push(RETURN_A);
        program
    })
}

/// Programs that look and decide, in blocks: a load, perhaps behind a header or with a mask, and a comparison. Some
/// jump to a comparison without its load.
fn looking_program() -> impl Strategy<Value = Vec<Instruction>> {
    let load = (prop::sample::select(vec![0x30u16, 0x28, 0x20]), any::<bool>(), 0u32..20, 0u32..3);
    let mask =
        prop::option::of(prop_oneof![Just(0x0fu32), Just(0xf0), Just(0xff0f), Just(0x00ff_00ff)]);
    // Equal is most of it, and the verdict where the others lead.
    let test = prop::sample::select(vec![0x15u16, 0x15, 0x15, 0x45, 0x25, 0x35]);
    let value = prop_oneof![4 => 0u32..4, 1 => Just(0x0101), 1 => any::<u32>()];
    let jumps = prop_oneof![
        Just([0u8, 255]),
        Just([255, 0]),
        any::<u8>().prop_map(|by| [by % 4, 255]),
        any::<[u8; 2]>().prop_map(|[then, otherwise]| [then % 4, otherwise % 8]),
    ];
    let block = (load, mask, test, value, jumps, 0u8..8);
    prop::collection::vec(block, 1..12).prop_map(|blocks| {
        // Each block has four instructions, and the first may be left out.
        let end = 4 * blocks.len();
        let mut program = Vec::new();
        for (number, (load, mask, test, value, jumps, late)) in blocks.into_iter().enumerate() {
            let (size, behind_header, at, header) = load;
            let nothing = instruction(0x05, 0, 0, 0);
            program.push(if behind_header { instruction(0xb1, 0, 0, header) } else { nothing });
            let size = if behind_header { size + 0x20 } else { size };
            // Where the first 8 bytes end before it.
            let at = if behind_header { at % 8 + 5 } else { at };
            program.push(instruction(size, 0, 0, at));
            program.push(mask.map_or(nothing, |mask| instruction(0x54, 0, 0, mask)));
            let [jt, jf] = jumps.map(|blocks| {
                let target = 4 * (number + 1 + usize::from(blocks));
                if target >= end {
                    // One verdict or the other.
                    return (end + usize::from(blocks != 255) - program.len() - 1) as u8;
                }
                // Some enter behind the load.
                let target = target + if late == 0 { 3 } else { 0 };
                (target - program.len() - 1) as u8
            });
            program.push(instruction(test, jt, jf, value));
        }
        program.extend([instruction(0x06, 0, 0, 0), RETURN]);
        program
    })
}

#[test]
fn what_expressions_are_made_of_is_decided_without_registers() {
    let is_decisions = |text: &str| {
        let program = Program::new(&parse_numbers(text).unwrap()).unwrap();
        program.is_decisions()
    };
    assert!(is_decisions(TCP_PORT_80));
    // A load that nothing looks at may yet reject.
    assert!(!is_decisions("4,48 0 0 50,48 0 0 1,21 0 0 7,6 0 0 1"));
    assert!(!is_decisions("4,177 0 0 50,48 0 0 1,21 0 0 7,6 0 0 1"));
    assert!(!is_decisions("2,48 0 0 50,6 0 0 1"));
    // Nor is it known what is compared where two ways meet.
    assert!(!is_decisions("6,48 0 0 1,21 0 2 7,48 0 0 2,21 0 0 7,21 0 0 7,6 0 0 1"));
    assert!(is_decisions("6,48 0 0 1,21 0 2 7,48 0 0 1,21 0 0 7,21 0 0 7,6 0 0 1"));
}

#[test]
fn checks_that_contradict_each_other_do_not_become_one() {
    let never = |text: &str, packet: &[u8]| {
        let program = Program::new(&parse_numbers(text).unwrap()).unwrap();
        assert!(program.is_decisions());
        assert_eq!(program.run(packet, packet.len()), Verdict::Reject, "{text}");
    };
    // A byte is 1, and is 2.
    for byte in 0..4 {
        never("6,48 0 0 9,21 0 3 1,48 0 0 9,21 0 1 2,6 0 0 1,6 0 0 0", &[byte; 20]);
    }
    // The lower half of two bytes is 0x1200; the upper one is 0x12, at the same place.
    let packet = [0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0, 0, 0];
    never("7,40 0 0 8,84 0 0 255,21 0 3 4608,48 0 0 8,21 0 1 18,6 0 0 1,6 0 0 0", &packet);
    never("7,48 0 0 8,21 0 4 18,40 0 0 8,84 0 0 255,21 0 1 4608,6 0 0 1,6 0 0 0", &packet);
}

/// Or the property about them shows nothing of decisions.
#[test]
fn many_programs_that_look_are_decisions() {
    let mut runner = TestRunner::deterministic();
    let programs = (0..200).map(|_| looking_program().new_tree(&mut runner).unwrap().current());
    let count = programs.filter(|program| Program::new(program).unwrap().is_decisions()).count();
    assert!(count > 50, "{count} of 200");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_program_says_what_the_reference_says(
        program in program(), packet in prop::collection::vec(0u8..24, 0..24),
    ) {
        let expected = reference(&program, &packet) != 0;
        prop_assert_eq!(accepts(&program, &packet), expected);
    }

    #[test]
    fn a_decision_is_what_the_reference_says(
        program in looking_program(), packet in prop::collection::vec(0u8..4, 0..40),
    ) {
        let expected = reference(&program, &packet) != 0;
        prop_assert_eq!(accepts(&program, &packet), expected);
        let program = Program::new(&program).unwrap();
        for given in 0..packet.len() {
            let verdict = program.run(&packet[..given], packet.len());
            let whole = if expected { Verdict::Accept } else { Verdict::Reject };
            prop_assert!([whole, Verdict::NotGiven].contains(&verdict), "{:?}", verdict);
        }
    }

    /// What is said of the beginning is right for the whole, or nothing is said.
    #[test]
    fn the_beginning_is_judged_as_the_whole(
        program in program(), packet in prop::collection::vec(0u8..24, 0..24), given: u8,
    ) {
        let program = Program::new(&program).unwrap();
        let given = &packet[..usize::from(given) % (packet.len() + 1)];
        let whole = program.run(&packet, packet.len());
        let verdict = program.run(given, packet.len());
        prop_assert!([whole, Verdict::NotGiven].contains(&verdict), "{:?}", verdict);
    }

    #[test]
    fn any_numbers_are_judged(
        program in prop::collection::vec((any::<u8>(), any::<[u8; 2]>(), 0u32..20), 1..6),
        packet in prop::collection::vec(any::<u8>(), 0..24),
    ) {
        let program: Vec<Instruction> = program
            .into_iter()
            .map(|(code, [jt, jf], k)| instruction(code.into(), jt % 5, jf % 5, k))
            .chain([RETURN])
            .collect();
        if let Ok(valid) = Program::new(&program) {
            let accepts = valid.run(&packet, packet.len()) == Verdict::Accept;
            prop_assert_eq!(accepts, reference(&program, &packet) != 0);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[0-9 ,\n]{0,40}") {
        if let Ok(program) = parse_numbers(&text) {
            let _ = Program::new(&program);
        }
    }
}
