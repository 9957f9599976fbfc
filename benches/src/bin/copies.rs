//! What one copy saves: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway_benches::copies()
}
