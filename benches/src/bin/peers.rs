//! ringway beside its peers: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway_benches::peers()
}
