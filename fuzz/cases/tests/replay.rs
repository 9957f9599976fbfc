//! Replays every stored input of every case.
//!
//! A failing input that a fuzzer found is mended by storing it in the corpus: from then on it runs
//! here.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringway_fuzz_cases::{CASES, Case, Reached};

/// The stored inputs of a case. There have to be some.
fn corpus(name: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let entries = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("no corpus in {}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.sort();
    files
}

/// Has the tests of this file take turns: a case that counts the process's descriptors runs alone.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs each input of a case: what they reached together, and those that failed.
fn replay(name: &str, case: Case) -> (Reached, Vec<PathBuf>) {
    let _turn = turn();
    let mut reached = Reached::default();
    let mut failed = Vec::new();
    for file in corpus(name) {
        let input = fs::read(&file).unwrap();
        match catch_unwind(|| case(&input)) {
            Ok(one) => reached.merge(one),
            // What it said is on standard error already.
            Err(_) => failed.push(file),
        }
    }
    (reached, failed)
}

/// Replays a corpus whose inputs all pass, and that still reaches all of this.
fn passes(name: &str, expected: &[&str]) {
    let (_, case) = CASES.iter().find(|(known, _)| *known == name).expect("a case of this name");
    let (reached, failed) = replay(name, *case);
    assert!(failed.is_empty(), "these inputs fail: {failed:#?}");
    let missing: Vec<_> = expected.iter().filter(|what| !reached.has(what)).collect();
    assert!(
        missing.is_empty(),
        "the corpus has gone stale, it does not reach {missing:?}: {reached:?}"
    );
}

#[test]
fn session() {
    passes(
        "session",
        &[
            "two rings run",
            "two packed rings run",
            "frame from split",
            "frame to split",
            "frame from packed",
            "frame to packed",
            "guest fault",
            // What ends a connection.
            "CutOff",
            "FeaturesWhileRunning",
            "Form",
            "Header",
            "Memory",
            "NotAnEventDescriptor",
            "NotReading",
            "NotShared",
            "Payload",
            "RegionDescriptors",
            "Reply",
            "Ring",
            "RingDescriptor",
            "RingEnable",
            "RingIndex",
            "RingSize",
            "StrayDescriptors",
            "TooManyDescriptors",
            "UnofferedFeatures",
            "UnofferedProtocolFeatures",
            // What is refused or done.
            "Announce",
            "Announcement",
            "Mtu",
            "NotNegotiated",
            "NotServed",
            "RingLost",
            "Unknown",
        ],
    );
}

#[test]
fn device() {
    passes(
        "device",
        &[
            "split",
            "packed",
            "chain",
            "packed table",
            "huge",
            "out of order",
            "packed out of order",
            "packed batch",
            "call",
            "no call",
            "AvailableIndex",
            "ChainOverrun",
            "ChainTooLong",
            "Head",
            "IndirectLength",
            "IndirectMisplaced",
            "IndirectNotNegotiated",
            "Memory",
            "Next",
            "ReadableAfterWritable",
            "ReadableReceiveBuffer",
            "Withdrawn",
        ],
    );
}

#[test]
fn driver() {
    passes(
        "driver",
        &["split", "packed", "used", "packed used", "kick", "no kick", "UsedId", "UsedIndex"],
    );
}

#[test]
fn frame() {
    passes(
        "frame",
        &[
            "delivered",
            "packed",
            "in order",
            "completed",
            "merged",
            "segmentation",
            "segmented",
            "fault",
            "too_short",
            "too_long",
            "checksum_not_negotiated",
            "checksum_in_ethernet_header",
            "checksum_beyond_frame",
            "segmentation_without_checksum",
            "segmentation_unknown",
            "segmentation_not_negotiated",
            "segment_size_zero",
            "segmentation_mismatch",
            "receiver_full",
            "receiver_down",
            "buffer_too_small",
        ],
    );
}

#[test]
fn memory() {
    passes(
        "memory",
        &[
            "mapped",
            "added",
            "removed",
            "translated",
            "read",
            "read across",
            "written",
            "written across",
            "words",
            "poisoned",
            "Empty",
            "Overflow",
            "GuestOverlap",
            "FrontEndOverlap",
            "Unknown",
            "NotMemory",
            "FileTooShort",
        ],
    );
}

#[test]
fn formats() {
    passes(
        "formats",
        &[
            "tagged",
            "untagged",
            "address",
            "header",
            "Version",
            "Flags",
            "Size",
            "VringAddress",
            "MemoryTable",
            "SingleRegion",
            "RingDescriptor",
            "checksum",
            "segmentation",
            "completed",
            "ChecksumNotNegotiated",
            "ChecksumInEthernetHeader",
            "ChecksumBeyondFrame",
            "SegmentationWithoutChecksum",
            "SegmentationUnknown",
            "SegmentationNotNegotiated",
            "SegmentSizeZero",
            "tcp4 segments",
            "tcp6 segments",
            "udp segments",
            "ChecksumPlace",
            "Fragment",
            "HeaderTooShort",
            "HeadersTooLong",
            "IpVersion",
            "Length",
            "NotIp",
            "Protocol",
        ],
    );
}

#[test]
fn capture() {
    passes(
        "capture",
        &[
            "whole",
            "pcap frame",
            "pcapng frame",
            "truncated frame",
            "BeyondBlock",
            "BlockLength",
            "ByteOrder",
            "Empty",
            "FrameCheckSequence",
            "Interface",
            "Lengths",
            "LinkType",
            "LongerThanOriginal",
            "Magic",
            "OptionLength",
            "TooLong",
            "Truncated",
            "Version",
        ],
    );
}

#[test]
fn bpf() {
    passes(
        "bpf",
        &[
            "Accept",
            "Reject",
            "NotGiven",
            // Programs as text.
            "text",
            "Count",
            "Missing",
            "NotAnInstruction",
            // Programs that are not valid.
            "Empty",
            "TooLong",
            "DivisionByZero",
            "JumpBack",
            "JumpOutside",
            "KernelOffset",
            "MemoryOutside",
            "MemoryUnwritten",
            "NoReturn",
            "ShiftTooFar",
            "UnknownCode",
        ],
    );
}

#[test]
fn neighbours() {
    passes(
        "neighbours",
        &[
            "Announcement",
            "Answer",
            "BadNeighbourMessage",
            "NotForHost",
            "NotIp",
            "Request",
            "Tagged",
            "TooShort",
            "advertisement",
            "arp",
            "asked again",
            "changed",
            "known",
            "ndp",
            "packet",
            "probe",
            "question",
            "reply",
            "unknown",
        ],
    );
}

/// Otherwise the tests above would pass whatever happens.
#[test]
fn canary() {
    let (_, failed) = replay("canary", ringway_fuzz_cases::canary);
    let names: Vec<_> = failed.iter().filter_map(|file| file.file_name()).collect();
    assert_eq!(names, ["sings"]);
}

#[test]
fn every_case_has_a_target_and_every_corpus_a_case() {
    let _turn = turn();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |directory: &str| {
        let entries = fs::read_dir(here.join("..").join(directory)).unwrap();
        let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap().path())).collect();
        names.sort();
        names
    };
    let mut cases: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
    cases.sort();
    assert_eq!(names("fuzz_targets"), cases);
    assert_eq!(names("corpus"), cases);
    let manifest = fs::read_to_string(here.join("../Cargo.toml")).unwrap();
    for case in cases {
        assert!(manifest.contains(&format!("name = \"{case}\"")), "no binary for {case}");
    }
}
