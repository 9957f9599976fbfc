//! Says when a worker stands still. That is a bug of ours: an app that does not come back, which no other can make up for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{AppId, Beat, Pulse};

use super::register::Register;

/// How often workers are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// One that was in the same breath for so long stands still. A breath takes microseconds; a processor that others have as well
/// may be gone for long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of one worker.
struct Watched {
    pulse: Arc<Pulse>,
    beat: Beat,
    /// Since when it is in the same breath.
    since: Instant,
    /// That it stands still was said.
    said: bool,
}

/// What there is to say of a worker.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// It stands still, in this app.
    Stuck(Option<AppId>),
    /// It goes on after so long.
    Over(Duration),
}

impl Watched {
    fn new(pulse: Arc<Pulse>, now: Instant) -> Self {
        Self { beat: pulse.look(), pulse, since: now, said: false }
    }

    fn look(&mut self, now: Instant) -> Option<News> {
        let beat = self.pulse.look();
        // Who sleeps waits for others, and whoever goes to sleep or wakes up moves.
        let moves = beat.is_asleep
            || (beat.breaths, beat.is_asleep) != (self.beat.breaths, self.beat.is_asleep);
        self.beat = beat;
        let stood = now - self.since;
        if moves {
            self.since = now;
            return std::mem::take(&mut self.said).then_some(News::Over(stood));
        }
        if stood < PATIENCE || std::mem::replace(&mut self.said, true) {
            return None;
        }
        Some(News::Stuck(beat.app))
    }
}

/// Watches over workers, in their order, until it is dropped.
pub(super) async fn watch(pulses: Vec<Arc<Pulse>>, register: Register) {
    let now = Instant::now();
    let mut watched: Vec<_> = pulses.into_iter().map(|pulse| Watched::new(pulse, now)).collect();
    loop {
        tokio::time::sleep(LOOK).await;
        for (worker, watched) in watched.iter_mut().enumerate() {
            match watched.look(Instant::now()) {
                Some(News::Stuck(app)) => {
                    let app = app.map_or_else(|| "none".to_owned(), |app| register.name(app));
                    tracing::error!(
                        worker,
                        app,
                        "a bug of ours: the worker has not come out of one breath for {PATIENCE:?}, and all ports \
                         stand still that it serves; restart the switch if this does not pass"
                    );
                }
                Some(News::Over(stood)) => {
                    tracing::warn!(worker, "the worker goes on, after {stood:.1?}");
                }
                None => {}
            }
        }
    }
}

/// Comes back when one of these workers stands still.
pub(super) async fn stands_still(pulses: Vec<Arc<Pulse>>) {
    let now = Instant::now();
    let mut watched: Vec<_> = pulses.into_iter().map(|pulse| Watched::new(pulse, now)).collect();
    let is_stuck =
        |watched: &mut Watched| matches!(watched.look(Instant::now()), Some(News::Stuck(_)));
    while !watched.iter_mut().any(is_stuck) {
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use engine::{App, Burst, Counters, Graph, Lease, Outputs, Selection, Settings, Worker};

    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// More than anything here takes, on the slowest machine.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Does not come back from its first pull before it is let go.
    struct Stuck(Sender<()>, Receiver<()>, Counters);

    impl App for Stuck {
        fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
            if self.0.send(()).is_ok() {
                // Until the other end is gone.
                let _ = self.1.recv();
            }
            false
        }

        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn counters(&self) -> &Counters {
            &self.2
        }
    }

    #[test]
    fn a_worker_that_stands_still_is_told_of_once_and_when_it_goes_on() {
        let (entered, was_entered) = channel();
        let (let_go, release) = channel();
        let mut graph = Graph::new();
        let stuck = graph.add("stuck", Stuck(entered, release, Counters::default()));
        let worker = Worker::start("test", graph, Settings::default(), Box::new(|_| ())).unwrap();
        was_entered.recv_timeout(LIMIT).unwrap();
        let start = Instant::now();
        let mut watched = Watched::new(worker.pulse().clone(), start);
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(watched.look(at(1.9)), None);
        assert_eq!(watched.look(at(2.0)), Some(News::Stuck(Some(stuck))));
        assert_eq!(watched.look(at(9.0)), None, "once");
        drop((let_go, was_entered));
        let waited = Instant::now();
        while !worker.pulse().look().is_asleep {
            assert!(waited.elapsed() < LIMIT, "waited {LIMIT:?} for the worker to fall asleep");
            std::thread::yield_now();
        }
        assert_eq!(watched.look(at(10.0)), Some(News::Over(Duration::from_secs(10))));
        // A worker that sleeps is fine, for however long.
        assert_eq!(watched.look(at(99.0)), None);
        assert_eq!(watched.look(at(199.0)), None);
        worker.stop().unwrap();
    }
}
