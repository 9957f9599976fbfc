//! What the fuzzers run.
//!
//! Each case is a function from bytes to what they reached. It builds the part of the switch that
//! it is about, reads the bytes as a program against it (see `Input`), and panics
//! when an invariant is broken; the fuzzer searches for bytes that make it. The same functions run
//! over every stored input in the ordinary tests.
//!
//! | case | the bytes are | who is hostile |
//! | --- | --- | --- |
//! | `session` | vhost-user messages with descriptors, and writes to the shared memory | front end, guest |
//! | `device` | a ring's format and memory, and the device's operations on it | driver |
//! | `driver` | a ring's format and memory, and the driver's operations on it | device |
//! | `frame` | features, frames with headers, receive buffers | neither: all rules of rings are kept |
//! | `memory` | region tables, and accesses through them | front end |
//! | `formats` | what the parsers read | everybody |
//! | `capture` | a capture file | whoever wrote it |
//! | `bpf` | a filter's program, and a packet | whoever wrote either |
//! | `neighbours` | frames about who has which address, packets of the host's, and time | stations |
//! | `canary` | a word that must be found | nobody |
//!
//! What a case reached is returned so that a corpus can be held to what it once found: inputs go
//! stale without a word when the code that reads them changes.

mod bpf;
mod capture;
mod device;
mod driver;
mod formats;
mod frame;
mod guest;
mod input;
mod neighbours;
mod reached;
mod regions;
mod ring_memory;
mod session;

pub use bpf::bpf;
pub use capture::capture;
pub use device::device;
pub use driver::driver;
pub use formats::formats;
pub use frame::frame;
pub use neighbours::neighbours;
pub use reached::Reached;
pub use regions::memory;
pub use session::session;

/// A case.
pub type Case = fn(&[u8]) -> Reached;

/// Every case, by the name of its fuzz target and of its corpus.
pub const CASES: &[(&str, Case)] = &[
    ("session", session),
    ("device", device),
    ("driver", driver),
    ("frame", frame),
    ("memory", memory),
    ("formats", formats),
    ("capture", capture),
    ("bpf", bpf),
    ("neighbours", neighbours),
    ("canary", canary),
];

/// Panics on a word: shows that a fuzzer finds what is there to be found, and that the replay of a
/// corpus notices when a case fails.
pub fn canary(data: &[u8]) -> Reached {
    assert!(!data.starts_with(b"sing!"), "the canary sings");
    Reached::default()
}
