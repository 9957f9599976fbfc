//! Ports of capture files: one that sends what is in a file, and one that writes a file.

use std::path::PathBuf;

use ports::pcap::{Replay, Times};
use wire::pcap::MAX_CAPTURED;

use crate::config::fault::Fault;
use crate::config::keys::{Key, PortType};
use crate::config::written::Written;
use crate::config::{PortKind, set, value};

/// The key of both that names the file.
const FILE: &str = "file";

/// A capture file as a source.
pub const READ: PortType = PortType {
    name: "pcap-read",
    about: "sends the frames of a capture file, pcap or pcapng",
    target: Key { name: FILE, form: "FILE", about: "the path of the file" },
    keys: &[
        Key {
            name: "times",
            form: "fast|recorded",
            about: "send as fast as frames are taken, or as they were captured [fast]",
        },
        Key {
            name: "loops",
            form: "N|forever",
            about: "how often to send the file, up to 4294967295 times [1]",
        },
    ],
    notes: super::no_notes,
    read: read_source,
};

/// A capture file as a sink.
pub const WRITE: PortType = PortType {
    name: "pcap-write",
    about: "writes what is sent to it into a capture file, pcapng, which it replaces",
    target: Key { name: FILE, form: "FILE", about: "the path of the file" },
    keys: &[Key {
        name: "snaplen",
        form: "1..262144",
        about: "bytes to keep of a frame, at most [all]",
    }],
    notes: super::no_notes,
    read: read_sink,
};

/// A capture file whose frames are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcapRead {
    /// The file.
    pub file: PathBuf,
    /// When its frames are sent, and how often.
    pub replay: Replay,
}

/// A capture file that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcapWrite {
    /// The file.
    pub file: PathBuf,
    /// Bytes to keep of a frame, 1 to 262144.
    pub snaplen: u32,
}

fn read_source(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let mut file = None;
    let mut replay = Replay { times: Times::Fast, rounds: Some(1) };
    let before = faults.len();
    for entry in written.keys(&READ, faults) {
        match entry.key.as_str() {
            FILE => file = entry.read(faults, value::file),
            "times" => set(&mut replay.times, entry.read(faults, value::times)),
            "loops" => set(&mut replay.rounds, entry.read(faults, value::loops)),
            _ => {}
        }
    }
    let port = PcapRead { file: file?, replay };
    (faults.len() == before).then_some(PortKind::PcapRead(port))
}

fn read_sink(written: &Written, faults: &mut Vec<Fault>) -> Option<PortKind> {
    let (mut file, mut snaplen) = (None, MAX_CAPTURED);
    let before = faults.len();
    for entry in written.keys(&WRITE, faults) {
        match entry.key.as_str() {
            FILE => file = entry.read(faults, value::file),
            "snaplen" => set(&mut snaplen, entry.read(faults, value::snaplen)),
            _ => {}
        }
    }
    let port = PcapWrite { file: file?, snaplen };
    (faults.len() == before).then_some(PortKind::PcapWrite(port))
}
