//! Each rule must be one that a back end can break: a back end with one fault, and the case that finds it.

mod back_end;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use back_end::{BackEnd, Fault};
use ringway_check as check;
use ringway_check::{Case, Options, Report, Target, Traffic, Verdict};

/// Faults, and the case that must find each, by the beginning of what it expects.
const FOUND: &[(Fault, &str)] = &[
    (Fault::ReplyFlags, "sets version 1 and the reply flag"),
    (Fault::ReplyNumber, "repeats the number of the request"),
    (Fault::ReplySize, "answers GET_FEATURES with eight bytes"),
    (Fault::SpeaksFirst, "says nothing before it is asked"),
    (Fault::LosesMessages, "takes several messages that come at once"),
    (Fault::AnswersOwner, "does not answer SET_OWNER"),
    (Fault::AcknowledgesUnasked, "does not acknowledge what does not ask"),
    (Fault::AnswersTwice, "answers GET_FEATURES once, also when"),
    (Fault::NeverAcknowledges, "acknowledges SET_OWNER with 0"),
    (Fault::AcknowledgesOne, "acknowledges SET_FEATURES with 0"),
    (Fault::FeaturesChange, "offers the same features each time"),
    (Fault::NoVersion1, "offers VERSION_1"),
    (Fault::GuestTsoWithoutChecksum, "offers GUEST_TSO4"),
    (Fault::HostTsoWithoutChecksum, "offers HOST_TSO4"),
    (Fault::EcnWithoutTso, "offers GUEST_ECN and HOST_ECN"),
    (Fault::ProtocolFeaturesChange, "offers the same protocol features each time"),
    (Fault::NoQueues, "says by GET_QUEUE_NUM"),
    (Fault::NoSlots, "says by GET_MAX_MEM_SLOTS"),
    (Fault::ForgetsStatus, "keeps the status"),
    (Fault::RefusesMtu, "takes an MTU of 1500"),
    (Fault::BaseOfAnotherRing, "answers GET_VRING_BASE with the ring"),
    (Fault::BaseIsZero, "returns by GET_VRING_BASE where a transmit ring stands"),
    (Fault::BaseIsZero, "returns by GET_VRING_BASE where a receive ring stands"),
    (Fault::BaseIsZero, "returns both halves of a packed ring's base"),
    (Fault::AcknowledgesUnknown, "does not acknowledge an unknown request with 0"),
    (Fault::DiesOfUnknown, "goes on after an unknown request"),
    (Fault::KeepsDescriptors, "closes call descriptors that are exchanged"),
    (Fault::KeepsDescriptors, "closes a descriptor that comes with an unknown request"),
    (Fault::KeepsMemory, "keeps no memory mapped"),
    (Fault::IgnoresReset, "stops all rings on RESET_DEVICE"),
    (Fault::RemembersFrontEnd, "knows nothing of the features that the last"),
    (Fault::RunsWhenStopped, "uses no more buffers of a transmit ring once"),
    (Fault::SendsWhenDisabled, "passes no frame from a transmit ring that was never enabled"),
    (Fault::SendsWhenDisabled, "passes no frame from a transmit ring that was disabled again"),
    (Fault::StallsWhenDisabled, "uses and discards what is sent"),
    (Fault::DeliversWhenDisabled, "delivers no frame to a receive ring that is disabled"),
    (Fault::DeliversWhenDisabled, "delivers no frame to a receive ring that was disabled again"),
    (Fault::NeverCalls, "calls for used buffers of a split ring when calls are on"),
    (Fault::NeverCalls, "calls when a packed ring passes the driver's event offset"),
    (Fault::AlwaysCalls, "does not call for used buffers of a split ring"),
    (Fault::AlwaysCalls, "does not call before a packed ring passes"),
    (Fault::KeepsFormerCall, "signals a call descriptor that was exchanged"),
    (Fault::ShortLength, "says how many bytes it has written, with the header"),
    (Fault::LongLength, "says how many bytes it has written to a packed"),
    (Fault::TransmitLength, "gives a transmitted chain back by its head"),
    (Fault::NoBuffersCounted, "says that a small frame fills one buffer"),
    (Fault::NoBuffersCounted, "says that there is one buffer when MRG_RXBUF"),
    (Fault::MergesLoosely, "spreads a frame over several buffers, and fills"),
    (Fault::ChecksumFlag, "sets all of the header to 0"),
    (Fault::DeliversTwice, "passes each frame once"),
    (Fault::LosesLastByte, "passes a frame on with exactly the bytes"),
    (Fault::ChangesByte, "passes a frame on in both directions"),
    (Fault::SwapsFrames, "passes frames in the order in which"),
    (Fault::WritesBehindFrame, "leaves what is behind the received frame"),
    (Fault::FirstDescriptorOnly, "passes a frame whose header has a descriptor of its own"),
    (Fault::StopsAfterARound, "goes round a ring many times"),
    (Fault::CutsLargeFrames, "passes no part of a frame that does not fit"),
    (Fault::FirstPairOnly, "passes frames from both of two pairs."),
];

/// Back end and front end are one process here, so whoever counts what it has open must be alone: faults
/// of that kind run by themselves, and one test waits for the other.
static ALONE: Mutex<()> = Mutex::new(());

fn leaks(fault: Fault) -> bool {
    [Fault::KeepsDescriptors, Fault::KeepsMemory].contains(&fault)
}

fn judge(fault: Fault, cases: &[Case]) -> Report {
    let back_end = BackEnd::start(fault);
    let (limit, patience) = (Duration::from_millis(500), Duration::from_secs(1));
    let target = Target { path: back_end.path(), peer: None, limit, patience };
    let options = Options { hostile: true, restart: None, go_on: &|| true };
    check::run(&target, cases, options, |_| {}).unwrap_or_else(|error| panic!("{fault:?}: {error}"))
}

fn named(expects: &str) -> Case {
    let mut found = check::cases().into_iter().filter(|case| case.expects.starts_with(expects));
    match (found.next(), found.next()) {
        (Some(case), None) => case,
        _ => panic!("no case, or several, begin with {expects:?}"),
    }
}

#[test]
fn each_fault_is_found_by_its_case() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (leaks, others): (Vec<_>, Vec<_>) = FOUND.iter().partition(|(fault, _)| leaks(*fault));
    let look = |part: &[&(Fault, &str)]| -> Vec<String> {
        part.iter().filter_map(|(fault, expects)| overlooked(*fault, expects)).collect()
    };
    let mut found: Vec<String> = thread::scope(|scope| {
        let parts = others.chunks(others.len().div_ceil(4));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| look(part))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    found.extend(look(&leaks));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A complaint, unless the case fails with this fault and passes without any.
fn overlooked(fault: Fault, expects: &str) -> Option<String> {
    let case = named(expects);
    let with = judge(fault, &[case]).results.remove(0);
    let without = judge(Fault::None, &[case]).results.remove(0);
    let found = matches!(with.verdict, Verdict::Fail | Verdict::Crashed);
    // A feature that is not offered cannot be offered wrongly.
    if found && matches!(without.verdict, Verdict::Pass | Verdict::Skipped) {
        return None;
    }
    Some(format!(
        "{} {expects}: with {fault:?} {} ({}), without {} ({})",
        with.id, with.verdict, with.seen, without.verdict, without.seen
    ))
}

#[test]
fn a_back_end_without_fault_passes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let report = judge(Fault::None, &check::cases());
    assert_eq!(report.traffic, Traffic::Echo);
    let bad = |verdict| matches!(verdict, Verdict::Fail | Verdict::Crashed);
    let bad: Vec<String> = report
        .results
        .iter()
        .filter(|result| bad(result.verdict))
        .map(|result| {
            format!("{} {} {}: {}", result.id, result.verdict, result.expects, result.seen)
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(report.count(Verdict::Pass) >= 200, "{} pass", report.count(Verdict::Pass));
    assert!(!report.cut_short);
}
