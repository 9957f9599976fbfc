//! Runs cases one after the other, and sees to it that there is still somebody to judge.

use std::time::{Duration, Instant};
use std::{fmt, thread};

use wire::vhost_user::{FrontEndRequest, Payload};
use wire::virtio::Features;

use crate::bench::{Bench, Target, Traffic, probe};
use crate::case::Case;
use crate::peer::Peer;
use crate::verdict::{Check, Stop, Verdict, fail};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);

/// How the cases are run.
pub struct Options<'a> {
    /// Whether cases that mean harm are run; otherwise they are left out.
    pub hostile: bool,
    /// Starts the back end anew when it died. False when that did not work.
    pub restart: Option<&'a mut dyn FnMut() -> bool>,
    /// Asked before each case: false ends the run.
    pub go_on: &'a dyn Fn() -> bool,
}

/// How one case ended.
#[derive(Clone, Debug)]
pub struct Result {
    /// Its number, as `3.2`.
    pub id: String,
    /// What it is about.
    pub topic: String,
    /// What was expected.
    pub expects: &'static str,
    /// The section that says so.
    pub cites: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// What was seen, in one sentence.
    pub seen: String,
    /// How long it took.
    pub took: Duration,
}

/// How all of them ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the back end does with frames.
    pub traffic: Traffic,
    /// In the order in which they ran.
    pub results: Vec<Result>,
    /// Whether the run ended early, because the back end is gone or because it was asked to.
    pub cut_short: bool,
}

impl Report {
    /// Cases with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.results.iter().filter(|result| result.verdict == verdict).count()
    }
}

/// Nobody is there, or somebody who does not speak vhost-user.
#[derive(Clone, Debug)]
pub struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Runs `cases` against a back end; `report` is called with each result.
///
/// # Errors
///
/// The back end cannot be reached before the first case.
pub fn run(
    target: &Target,
    cases: &[Case],
    mut options: Options<'_>,
    mut report: impl FnMut(&Result),
) -> std::result::Result<Report, Unreachable> {
    greet(target, Duration::ZERO).map_err(Unreachable)?;
    let mut bench = Bench { target, traffic: probe(target) };
    let mut all = Report { traffic: bench.traffic, results: Vec::new(), cut_short: false };
    for case in cases.iter().filter(|case| options.hostile || !case.hostile) {
        if !(options.go_on)() {
            all.cut_short = true;
            break;
        }
        let start = Instant::now();
        // A back end that has not let go of the last front end yet may turn this one away.
        let outcome = greet(target, target.patience)
            .map_err(|seen| Stop::Fail(format!("no connection before the case: {seen}")))
            .and_then(|()| (case.run)(&bench));
        let took = start.elapsed();
        let (mut verdict, mut seen) = match outcome {
            Ok(()) => (Verdict::Pass, "as expected".to_owned()),
            Err(Stop::Fail(seen)) => (Verdict::Fail, seen),
            Err(Stop::Skip(why)) => (Verdict::Skipped, why),
        };
        let gone = greet(target, target.patience).err();
        if let Some(error) = &gone {
            verdict = Verdict::Crashed;
            seen = format!("{seen}; afterwards: {error}");
        } else if case.hostile
            && let Err(Stop::Fail(error)) = sane(&bench)
        {
            verdict = Verdict::Fail;
            seen = format!("{seen}; afterwards frames pass no more: {error}");
        }
        let result = Result {
            id: case.id(),
            topic: case.topic.to_string(),
            expects: case.expects,
            cites: case.cites,
            verdict,
            seen,
            took,
        };
        report(&result);
        all.results.push(result);
        if gone.is_some() {
            let restarted = options.restart.as_mut().is_some_and(|restart| restart());
            if !restarted || greet(target, target.patience).is_err() {
                all.cut_short = true;
                break;
            }
            bench.traffic = all.traffic;
        }
    }
    Ok(all)
}

/// Waits until the back end takes a front end and answers it, up to `patience`.
fn greet(target: &Target, patience: Duration) -> std::result::Result<(), String> {
    let deadline = Instant::now() + patience;
    // Any answer will do: whether it is right is for the cases to say.
    let answered = |path| -> Check {
        let peer = Peer::connect(path, target.limit)?;
        peer.say(FrontEndRequest::GetFeatures, &Payload::Empty)?;
        match peer.receive()? {
            Some(_) => Ok(()),
            None => Err(fail("the back end closes the connection at once")),
        }
    };
    let paths = [Some(&target.path), target.peer.as_ref()];
    for path in paths.into_iter().flatten() {
        while let Err(stop) = answered(path) {
            if Instant::now() > deadline {
                let (Stop::Fail(seen) | Stop::Skip(seen)) = stop;
                return Err(seen);
            }
            thread::sleep(RETRY);
        }
    }
    Ok(())
}

/// Whether frames pass, if they did before.
fn sane(bench: &Bench<'_>) -> Check {
    bench.rig(Features::NONE)?.passes(100)
}
