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
    /// Starts the back end anew when it died, or does not work any more. False when that could not be done.
    pub restart: Option<&'a mut dyn FnMut() -> bool>,
    /// Asked before each case, and while the back end is waited for: false ends the run. A case that is under
    /// way then gets no verdict.
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
    /// Whether cases were left over, because the back end is gone or because the run was asked to end.
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

/// The processes that listen at the sockets, where the kernel tells.
type Processes = Vec<Option<i32>>;

/// What a case has left behind.
enum After {
    /// A back end as it was before.
    Alive,
    /// One that somebody else has started again, and why we think so.
    Replaced(String),
    /// None that works, and how that shows.
    Gone(String),
}

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
    let go_on = options.go_on;
    let greet = |patience| greet(target, patience, go_on);
    let mut known = greet(Duration::ZERO).map_err(Unreachable)?;
    let traffic = if go_on() { probe(target) } else { Traffic::None };
    let bench = Bench { target, traffic };
    // One that ends with each of its front ends, and is started again for the next, has not crashed then.
    let lasts = greet(target.patience).is_ok_and(|now| !replaced(&known, &now));
    let mut all = Report { traffic, results: Vec::new(), cut_short: false };
    let mut left = cases.iter().filter(|case| options.hostile || !case.hostile).peekable();
    while let Some(case) = left.next() {
        let start = Instant::now();
        // A back end that has not let go of the last front end yet may turn this one away.
        let outcome = greet(target.patience)
            .map_err(|seen| Stop::Fail(format!("no connection before the case: {seen}")))
            .and_then(|_| if go_on() { (case.run)(&bench) } else { Ok(()) });
        let took = start.elapsed();
        let after = match greet(target.patience) {
            Err(seen) => After::Gone(seen),
            Ok(now) => {
                let before = std::mem::replace(&mut known, now);
                if lasts && replaced(&before, &known) {
                    After::Replaced(
                        "another process answers: the one that was judged is gone".into(),
                    )
                } else if case.hostile
                    && let Err(Stop::Fail(seen)) = sane(&bench)
                {
                    After::Gone(format!("frames pass no more: {seen}"))
                } else {
                    After::Alive
                }
            }
        };
        // What interrupts us may have ended the back end too, which says nothing about the case.
        if !go_on() {
            all.cut_short = true;
            break;
        }
        let (verdict, seen) = match outcome {
            Ok(()) => (Verdict::Pass, "as expected".to_owned()),
            Err(Stop::Fail(seen)) => (Verdict::Fail, seen),
            Err(Stop::Skip(why)) => (Verdict::Skipped, why),
        };
        let (verdict, seen) = match &after {
            After::Alive => (verdict, seen),
            After::Replaced(why) | After::Gone(why) => {
                (Verdict::Crashed, format!("{seen}; afterwards: {why}"))
            }
        };
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
        if let After::Gone(_) = after {
            let started = options.restart.as_mut().is_some_and(|restart| restart());
            match greet(target.patience) {
                Ok(now) if started => known = now,
                _ => {
                    all.cut_short = left.peek().is_some();
                    break;
                }
            }
        }
    }
    Ok(all)
}

/// Waits until the back end takes a front end and answers it, up to `patience` or until there is no going on.
/// Returns who answered.
fn greet(
    target: &Target,
    patience: Duration,
    go_on: &dyn Fn() -> bool,
) -> std::result::Result<Processes, String> {
    let deadline = Instant::now() + patience;
    // Any answer will do: whether it is right is for the cases to say.
    let answered = |path| -> Check<Option<i32>> {
        let peer = Peer::connect(path, target.limit)?;
        peer.say(FrontEndRequest::GetFeatures, &Payload::Empty)?;
        match peer.receive()? {
            Some(_) => Ok(peer.process()),
            None => Err(fail("the back end closes the connection at once")),
        }
    };
    let mut processes = Processes::new();
    for path in [Some(&target.path), target.peer.as_ref()].into_iter().flatten() {
        let process = loop {
            match answered(path) {
                Ok(process) => break process,
                Err(Stop::Fail(seen) | Stop::Skip(seen)) => {
                    if Instant::now() > deadline || !go_on() {
                        return Err(seen);
                    }
                }
            }
            thread::sleep(RETRY);
        };
        processes.push(process);
    }
    Ok(processes)
}

/// Whether another process listens at a socket than before, as far as is known.
fn replaced(before: &Processes, now: &Processes) -> bool {
    before.iter().zip(now).any(|pair| matches!(pair, (Some(before), Some(now)) if before != now))
}

/// Whether frames pass, if they did before.
fn sane(bench: &Bench<'_>) -> Check {
    bench.rig(Features::NONE)?.passes(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_at_either_socket_is_another_back_end() {
        let one = vec![Some(1), Some(2)];
        assert!(!replaced(&one, &one));
        assert!(replaced(&one, &vec![Some(3), Some(2)]));
        assert!(replaced(&one, &vec![Some(1), Some(3)]));
        // What the kernel does not tell is no difference.
        assert!(!replaced(&one, &vec![None, Some(2)]));
        assert!(!replaced(&vec![None], &vec![Some(1)]));
    }
}
