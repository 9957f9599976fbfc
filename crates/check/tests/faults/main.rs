//! Each rule must be one that a back end can break: a back end with one fault, and the cases that find
//! it. All cases of a topic look at each fault that one of them is to find, and no other may fail.

mod running;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use ringway_check as check;
use ringway_check::faults::{Fault, all, find};
use ringway_check::{Case, Options, Report, Target, Topic, Traffic, Verdict};
use running::Running;

/// Back end and front end are one process here, so whoever counts what it has open must be alone: faults
/// of that kind run one by one, and wait for all others.
static ALONE: RwLock<()> = RwLock::new(());
/// Faults that are judged at the same time: most of a case is waiting.
const AT_ONCE: usize = 6;
/// Topics whose cases count what a process has open.
const COUNTING: Topic = Topic::Descriptors;

/// Whoever answers does so within this time, however busy the machine.
const ANSWER: Duration = Duration::from_secs(10);
/// For so long one is waited for that may not answer, by its fault: often.
const NO_ANSWER: Duration = Duration::from_millis(500);

fn judge(fault: &'static Fault, cases: &[Case]) -> Report {
    let back_end = Running::start(fault);
    let target = Target {
        path: back_end.path(),
        peer: None,
        limit: if fault.caught.is_empty() { ANSWER } else { NO_ANSWER },
        patience: Duration::from_millis(300),
    };
    let mut restart = || back_end.restart();
    let options = Options { hostile: true, restart: Some(&mut restart), go_on: &|| true };
    let name = fault.name;
    check::run(&target, cases, options, |_| {}).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn number_of(id: &str) -> usize {
    id.split('.').next().and_then(|number| number.parse().ok()).expect("a case's number")
}

/// The first topic is that of the fault.
fn topics(fault: &Fault) -> Vec<usize> {
    fault.caught.iter().map(|id| number_of(id)).collect()
}

/// A complaint, unless exactly the cases fail that the fault names.
fn compare(fault: &'static Fault) -> Option<String> {
    let topics = topics(fault);
    let concerned = |case: &Case| match fault.is_broad {
        true => fault.caught.contains(&case.id().as_str()),
        // Of a liberty, nothing but what is counted elsewhere.
        false if topics.is_empty() => case.topic != COUNTING,
        false => topics.contains(&case.topic.number()),
    };
    let cases: Vec<Case> = check::cases().into_iter().filter(concerned).collect();
    let report = judge(fault, &cases);
    let failed: Vec<_> = report
        .results
        .iter()
        .filter(|result| matches!(result.verdict, Verdict::Fail | Verdict::Crashed))
        .collect();
    let found: BTreeSet<&str> = failed.iter().map(|result| result.id.as_str()).collect();
    let expected: BTreeSet<&str> = fault.caught.iter().copied().collect();
    let seen = || {
        let lines = failed.iter().map(|result| format!("    {} {}", result.id, result.seen));
        lines.collect::<Vec<_>>().join("\n")
    };
    (found != expected || report.cut_short)
        .then(|| format!("{}: {found:?}, not {expected:?}\n{}", fault.name, seen()))
}

fn each_fault_of(topic: Topic) {
    let faults: Vec<_> =
        all().iter().filter(|fault| topics(fault).first() == Some(&topic.number())).collect();
    assert!(faults.len() >= 3, "{topic} has {} faults", faults.len());
    each_of(&faults, topic == COUNTING);
}

fn each_of(faults: &[&'static Fault], alone: bool) {
    let next = AtomicUsize::new(0);
    let look = || -> Vec<String> {
        let mine = std::iter::from_fn(|| faults.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.filter_map(|fault| compare(fault)).collect()
    };
    let wrong: Vec<String> = if alone {
        let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
        look()
    } else {
        let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(look)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        })
    };
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One test for each topic, so that they run side by side.
macro_rules! by_topic {
    ($($test:ident $topic:ident;)*) => {
        $(#[test] fn $test() { each_fault_of(Topic::$topic); })*

        #[test]
        fn every_topic_has_faults() {
            assert_eq!(Topic::ALL, [$(Topic::$topic),*]);
        }
    };
}

by_topic! {
    faults_of_connection Connection;
    faults_of_negotiation Negotiation;
    faults_of_memory Memory;
    faults_of_life_cycle LifeCycle;
    faults_of_enable Enable;
    faults_of_notifications Notifications;
    faults_of_split Split;
    faults_of_packed Packed;
    faults_of_mergeable Mergeable;
    faults_of_offload Offload;
    faults_of_dirty_log DirtyLog;
    faults_of_reconnect Reconnect;
    faults_of_multiqueue Multiqueue;
    faults_of_errors Errors;
    faults_of_descriptors Descriptors;
}

/// What the specification leaves to a back end is no fault: every case passes, or is skipped.
#[test]
fn no_case_catches_a_liberty() {
    let liberties: Vec<_> = all().iter().filter(|fault| fault.caught.is_empty()).collect();
    assert!(!liberties.is_empty());
    each_of(&liberties, false);
}

#[test]
fn a_back_end_without_fault_passes() {
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    let report = judge(Fault::NONE, &check::cases());
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
    let skipped = report.results.iter().filter(|result| result.verdict == Verdict::Skipped);
    let skipped: Vec<_> = skipped.map(|result| result.id.as_str()).collect();
    // ECN and in-band notifications are not offered, and there is no second port.
    assert_eq!(skipped, ["2.5", "2.11", "12.8"]);
    assert!(!report.cut_short);
}

/// Back ends that take connections but no frames: whoever asks to have them started again gets that, so that
/// no later case suffers.
#[test]
fn a_back_end_without_its_data_plane_has_crashed() {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    // It serves no ring until the third connection after the case.
    let back_end = Running::start(find("stalls-on-odd-descriptors").expect("it is there"));
    let target = Target {
        path: back_end.path(),
        peer: None,
        limit: Duration::from_millis(500),
        patience: Duration::from_millis(300),
    };
    let select = |ids: &[&str]| -> Vec<Case> {
        check::cases().into_iter().filter(|case| ids.contains(&case.id().as_str())).collect()
    };
    let verdicts = |report: &Report| -> Vec<(String, Verdict)> {
        report.results.iter().map(|result| (result.id.clone(), result.verdict)).collect()
    };
    let crashed = |id: &str| (id.to_owned(), Verdict::Crashed);

    let starts = AtomicUsize::new(0);
    let mut restart = || {
        starts.fetch_add(1, Ordering::Relaxed);
        back_end.restart()
    };
    let options = Options { hostile: true, restart: Some(&mut restart), go_on: &|| true };
    let report =
        check::run(&target, &select(&["14.26", "15.1"]), options, |_| {}).expect("it is there");
    assert_eq!(verdicts(&report), [crashed("14.26"), ("15.1".to_owned(), Verdict::Pass)]);
    assert!(report.results[0].seen.contains("frames pass no more"), "{}", report.results[0].seen);
    assert_eq!(starts.load(Ordering::Relaxed), 1);
    assert!(!report.cut_short);

    // Without anybody who starts it the run ends there; nothing is missing if that was the last case.
    for (ids, cut_short) in [(&["14.26", "15.1"][..], true), (&["14.26"], false)] {
        assert!(back_end.restart());
        let options = Options { hostile: true, restart: None, go_on: &|| true };
        let report = check::run(&target, &select(ids), options, |_| {}).expect("it is there");
        assert_eq!(verdicts(&report), [crashed("14.26")]);
        assert_eq!(report.cut_short, cut_short);
    }
}

/// Whoever interrupts has often ended the back end as well.
#[test]
fn a_case_that_is_interrupted_gets_no_verdict() {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    let back_end = Running::start(find("dies-of-wrong-head").expect("it is there"));
    let target = Target {
        path: back_end.path(),
        peer: None,
        limit: Duration::from_millis(500),
        patience: Duration::from_secs(600),
    };
    let cases: Vec<Case> = check::cases()
        .into_iter()
        .filter(|case| ["1.1", "7.24"].contains(&case.id().as_str()))
        .collect();
    // The back end dies in the second case. That it is waited for afterwards can only end by this.
    let asked = AtomicUsize::new(0);
    let first = AtomicUsize::new(usize::MAX);
    let go_on = || {
        let asked = asked.fetch_add(1, Ordering::Relaxed);
        asked < first.load(Ordering::Relaxed).saturating_add(3)
    };
    let options = Options { hostile: true, restart: None, go_on: &go_on };
    let report = check::run(&target, &cases, options, |_| {
        first.store(asked.load(Ordering::Relaxed), Ordering::Relaxed);
    });
    let report = report.expect("it is there");
    let ids: Vec<_> = report.results.iter().map(|result| result.id.as_str()).collect();
    assert_eq!(ids, ["1.1"]);
    assert!(report.cut_short);
}

/// How much of the judge is proven to be able to say no.
#[test]
fn most_cases_have_a_fault() {
    let mut names = BTreeSet::new();
    for fault in all() {
        assert!(names.insert(fault.name), "{} is there twice", fault.name);
        assert!(find(fault.name).is_some());
    }
    let caught: BTreeSet<&str> = all().iter().flat_map(|fault| fault.caught).copied().collect();
    let ids: BTreeSet<String> = check::cases().iter().map(Case::id).collect();
    assert!(caught.iter().all(|id| ids.contains(*id)), "a fault names a case that is none");
    let without: Vec<Case> =
        check::cases().into_iter().filter(|case| !caught.contains(case.id().as_str())).collect();
    let faults = all().iter().filter(|fault| !fault.caught.is_empty()).count();
    println!("{faults} faults reach {} of {} cases, but not", caught.len(), ids.len());
    for case in &without {
        println!("  {:<6} {}", case.id(), case.expects);
    }
    assert!(caught.len() >= 250, "{} of {} cases", caught.len(), ids.len());
}
