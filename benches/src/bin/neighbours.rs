//! What two processors have to do with each other: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway_benches::neighbours()
}
