//! What a tap port takes and gives: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway_benches::host()
}
