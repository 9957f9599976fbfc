//! Where the cycles of a frame go: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway_benches::flame()
}
