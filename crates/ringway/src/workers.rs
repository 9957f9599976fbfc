//! The workers of a switch, as control sees them.
//!
//! A worker takes commands between two breaths, and so as good as at once. One that hangs takes none, and its queue of them is
//! bounded: whoever has a command for it waits, and nobody else does, until there is room. A command is given to all workers in one
//! step, when all have room, so that two never come to different workers in different orders.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{App, AppId, COMMANDS, Pulse, Stopped, Worker, WorkerHandle};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

/// All workers. Each has a part of every app, and the same app has the same [`engine::AppId`]
/// everywhere.
pub struct Workers(Vec<Seat>);

/// A worker, and the room that its queue has.
struct Seat {
    worker: WorkerHandle,
    room: Arc<Semaphore>,
}

/// Why a worker has not done what it was asked for within a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unanswered {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The worker of this number has neither room for a command nor an answer.
    #[error("worker{0} hangs: it has not answered within {1:?}")]
    Hangs(usize, Duration),
}

impl Workers {
    /// Takes over workers that run.
    pub fn new(handles: Vec<WorkerHandle>) -> Self {
        let seat = |worker| Seat { worker, room: Arc::new(Semaphore::new(COMMANDS)) };
        Self(handles.into_iter().map(seat).collect())
    }

    /// Runs `command` on each worker, between two of its breaths, and waits until all have done it.
    /// The results are in the workers' order.
    pub async fn on_each<R: Send + 'static>(
        &self,
        command: impl Fn(&mut Worker) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Stopped> {
        self.on_all(vec![command; self.0.len()]).await
    }

    /// The same for who has somebody wait: one that hangs is named. It may still do it when it goes on.
    pub async fn on_each_within<R: Send + 'static>(
        &self,
        limit: Duration,
        command: impl Fn(&mut Worker) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Unanswered> {
        let deadline = Instant::now() + limit;
        let commands = vec![command; self.0.len()];
        ask(&self.0, commands, Some(deadline)).await.map_err(|late| match late {
            Late::Stopped => Stopped.into(),
            Late::Hangs(worker) => Unanswered::Hangs(worker, limit),
        })
    }

    /// The sign of life of each, in their order.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.0.iter().map(|seat| seat.worker.pulse().clone()).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Runs `command` on the first worker, and waits until it has.
    pub async fn on_first<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        self.on_one(0, command).await
    }

    async fn on_one<R: Send + 'static>(
        &self,
        number: usize,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let seat = self.0.get(number).ok_or(Stopped)?;
        let mut results = ask(std::slice::from_ref(seat), vec![command], None).await?;
        results.pop().ok_or(Stopped)
    }

    /// Puts parts of another app in the place of one: a part to each worker, in their order. Comes back when all have them.
    pub async fn replace<A: App>(&self, app: AppId, parts: Vec<A>) -> anyhow::Result<()> {
        let replace = |part| move |worker: &mut Worker| worker.replace(app, Box::new(part));
        for replaced in self.on_all(parts.into_iter().map(replace).collect()).await? {
            // What was there before is dropped here.
            drop(replaced?);
        }
        Ok(())
    }

    /// The same for one worker, where `adjust` follows at once. Returns what that does.
    pub async fn replace_part<R: Send + 'static>(
        &self,
        number: usize,
        app: AppId,
        part: Box<dyn App>,
        adjust: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> anyhow::Result<R> {
        let replace = move |worker: &mut Worker| (worker.replace(app, part), adjust(worker));
        let (replaced, adjusted) = self.on_one(number, replace).await?;
        drop(replaced?);
        Ok(adjusted)
    }

    /// Has parts of an app that is to be added, one for each worker, register what is to wake them.
    pub fn register(&self, parts: &mut [Box<dyn App>]) -> io::Result<()> {
        let mut pairs = self.0.iter().zip(parts);
        pairs.try_for_each(|(seat, part)| part.register(seat.worker.poller()))
    }

    /// Runs a command of its own on each worker, as [`Self::on_each`] does.
    pub async fn on_all<R: Send + 'static>(
        &self,
        commands: Vec<impl FnOnce(&mut Worker) -> R + Send + 'static>,
    ) -> Result<Vec<R>, Stopped> {
        Ok(ask(&self.0, commands, None).await?)
    }

    /// Stops all of them, of which none hangs, at the same time: the kernel takes its time to take down what a thread had.
    pub fn stop(self) -> Result<(), Stopped> {
        for seat in &self.0 {
            // What is wrong with it is said when it is waited for.
            let _ = seat.worker.begin_to_stop();
        }
        // All, also after one that had stopped already.
        let results: Vec<_> = self.0.into_iter().map(|seat| seat.worker.stop().map(drop)).collect();
        results.into_iter().collect()
    }
}

/// Why not all have answered.
enum Late {
    Stopped,
    /// By its number. Only if there was a deadline.
    Hangs(usize),
}

impl From<Late> for Stopped {
    fn from(_: Late) -> Self {
        // Without a deadline nobody is late.
        Self
    }
}

/// Gives each of these workers a command, when all have room, and waits for their answers.
async fn ask<R: Send + 'static>(
    seats: &[Seat],
    commands: Vec<impl FnOnce(&mut Worker) -> R + Send + 'static>,
    deadline: Option<Instant>,
) -> Result<Vec<R>, Late> {
    let mut rooms = Vec::with_capacity(seats.len());
    for (number, seat) in seats.iter().enumerate() {
        let room = before(deadline, seat.room.clone().acquire_owned()).await;
        rooms.push(room.ok_or(Late::Hangs(number))?.map_err(|_| Late::Stopped)?);
    }
    let pending: Vec<_> = (seats.iter().zip(commands).zip(rooms))
        .map(|((seat, command), room)| send(&seat.worker, command, room))
        .collect::<Result<_, _>>()
        .map_err(|Stopped| Late::Stopped)?;
    let mut results = Vec::with_capacity(pending.len());
    for (number, answer) in pending.into_iter().enumerate() {
        let answer = before(deadline, answer).await.ok_or(Late::Hangs(number))?;
        let (result, _room) = answer.map_err(|_| Late::Stopped)?;
        results.push(result);
    }
    Ok(results)
}

/// What comes of this, unless that takes too long.
async fn before<T>(deadline: Option<Instant>, result: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, result).await.ok(),
        None => Some(result.await),
    }
}

/// Puts a command into a worker's queue, which has room for it until it is answered, or nobody waits for that any more.
fn send<R: Send + 'static>(
    worker: &WorkerHandle,
    command: impl FnOnce(&mut Worker) -> R + Send + 'static,
    room: OwnedSemaphorePermit,
) -> Result<oneshot::Receiver<(R, OwnedSemaphorePermit)>, Stopped> {
    let (sender, receiver) = oneshot::channel();
    worker.run(command, move |result| drop(sender.send((result, room))))?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use engine::{Burst, Counters, Graph, Outputs, Selection, Settings};

    use super::*;

    /// More than anything here takes, on the slowest machine.
    const LIMIT: Duration = Duration::from_secs(20);

    /// An app that is not stopped before another one on another worker is about to be.
    struct Pair {
        here: Sender<()>,
        there: Receiver<()>,
        met: Sender<bool>,
        counters: Counters,
    }

    impl App for Pair {
        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn stop(&mut self) {
            let _ = self.here.send(());
            let _ = self.met.send(self.there.recv_timeout(LIMIT).is_ok());
        }

        fn counters(&self) -> &Counters {
            &self.counters
        }
    }

    #[test]
    fn workers_stop_at_the_same_time() {
        let ((here, one), (there, other)) = (channel(), channel());
        let (met, have_met) = channel();
        let start = |here, there| {
            let mut graph = Graph::new();
            graph
                .add("pair", Pair { here, there, met: met.clone(), counters: Counters::default() });
            Worker::start("test", graph, Settings::default(), Box::new(|_| ())).unwrap()
        };
        let workers = Workers::new(vec![start(here, other), start(there, one)]);
        workers.stop().unwrap();
        assert_eq!(have_met.try_iter().collect::<Vec<_>>(), [true, true]);
    }
}
