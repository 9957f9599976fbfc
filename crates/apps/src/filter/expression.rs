//! Filters as people write them.

use thiserror::Error;
use wire::bpf::{Invalid, NumbersError, Program, parse_numbers};

/// Why there is no program for a filter.
#[derive(Debug, Error)]
pub enum CompileError {
    /// libpcap does not understand the expression.
    #[error("the filter \"{expression}\" does not compile: {reason}")]
    Refused {
        /// The expression.
        expression: String,
        /// libpcap's words.
        reason: String,
    },
    /// It is an expression, and this program was built without libpcap.
    #[error(
        "the filter \"{expression}\" is an expression, which this build cannot compile: build ringway with `--features \
         filter-expressions`, for which libpcap has to be installed, or give the numbers that `tcpdump -ddd -y EN10MB \
         '{expression}'` prints"
    )]
    NotBuilt {
        /// The expression.
        expression: String,
    },
    /// It begins as a program in numbers, and is none.
    #[error("the filter is not a program in numbers: {0}")]
    Numbers(NumbersError),
    /// The program in numbers breaks a rule.
    #[error("the filter's program is not valid: {0}")]
    Invalid(Invalid),
    /// libpcap makes a program of the expression that breaks a rule.
    #[error("the filter \"{expression}\" needs what filters cannot do here: {invalid}")]
    Unusable {
        /// The expression.
        expression: String,
        /// The rule.
        invalid: Invalid,
    },
}

/// The program for a filter: an expression of pcap-filter(7), for Ethernet frames; or a program in numbers,
/// as `tcpdump -ddd` prints it (see [`parse_numbers`]).
///
/// Expressions are compiled by libpcap, if the crate was built with its feature `pcap`. Names of hosts are
/// looked up then and there, for which the caller waits: addresses are better.
pub fn compile(filter: &str) -> Result<Program, CompileError> {
    if is_numbers(filter) {
        let instructions = parse_numbers(filter).map_err(CompileError::Numbers)?;
        return Program::new(&instructions).map_err(CompileError::Invalid);
    }
    let unusable = |invalid| CompileError::Unusable { expression: filter.to_owned(), invalid };
    Program::new(&compile_expression(filter)?).map_err(unusable)
}

/// No expression begins with a number and the end of a line, or a comma.
fn is_numbers(filter: &str) -> bool {
    let first = filter.split_once(['\n', ',']).map(|(first, _)| first.trim());
    first.is_some_and(|first| !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(feature = "pcap")]
fn compile_expression(expression: &str) -> Result<Vec<wire::bpf::Instruction>, CompileError> {
    let refused = |reason| CompileError::Refused { expression: expression.to_owned(), reason };
    let words = |error| match error {
        pcap::Error::PcapError(words) => refused(words),
        other => refused(other.to_string()),
    };
    let ethernet = pcap::Capture::dead(pcap::Linktype::ETHERNET).map_err(words)?;
    let program = ethernet.compile(expression, true).map_err(words)?;
    let instructions = program.get_instructions().iter();
    // What they print is all that they tell.
    let numbers = instructions.map(|instruction| instruction.to_string().parse());
    numbers
        .collect::<Result<_, _>>()
        .map_err(|error: wire::bpf::NotAnInstruction| refused(error.to_string()))
}

#[cfg(not(feature = "pcap"))]
fn compile_expression(expression: &str) -> Result<Vec<wire::bpf::Instruction>, CompileError> {
    Err(CompileError::NotBuilt { expression: expression.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_expressions() {
        for numbers in ["1\n6 0 0 0", " 1 \n6 0 0 0\n", "1,6 0 0 0", "7,x"] {
            assert!(is_numbers(numbers), "{numbers:?}");
        }
        for expression in ["", "1", "1 = 1", "tcp\nport 80", "port 80 or\n81", "len > 100", "\n1"] {
            assert!(!is_numbers(expression), "{expression:?}");
        }
    }

    #[test]
    fn numbers_need_no_libpcap() {
        let program = compile("1,6 0 0 1").unwrap();
        assert_eq!(program.run(&[], 0), wire::bpf::Verdict::Accept);
        let error = compile("2\n6 0 0 1").unwrap_err().to_string();
        assert_eq!(
            error,
            "the filter is not a program in numbers: 2 instructions are announced, and 1 follow"
        );
        let error = compile("1,0 0 0 1").unwrap_err().to_string();
        assert_eq!(
            error,
            "the filter's program is not valid: instruction 0 (0 0 0 1): the last instruction must be a return"
        );
    }

    /// The words of a build that tests are not.
    #[test]
    fn without_libpcap_an_expression_is_refused_with_a_way_out() {
        let error = CompileError::NotBuilt { expression: "tcp port 80".to_owned() }.to_string();
        assert!(error.contains("filter-expressions"), "{error}");
        assert!(error.contains("tcpdump -ddd -y EN10MB 'tcp port 80'"), "{error}");
    }
}
