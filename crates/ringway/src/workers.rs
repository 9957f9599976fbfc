//! The workers of a switch, as control sees them.

use std::io;
use std::sync::Arc;

use engine::{App, AppId, Pulse, Stopped, Worker, WorkerHandle};
use tokio::sync::oneshot;

/// All workers. Each has a part of every app, and the same app has the same [`engine::AppId`]
/// everywhere.
pub struct Workers(Vec<WorkerHandle>);

impl Workers {
    /// Takes over workers that run.
    pub fn new(handles: Vec<WorkerHandle>) -> Self {
        Self(handles)
    }

    /// Runs `command` on each worker, between two of its breaths, and waits until all have done it.
    /// The results are in the workers' order.
    pub async fn on_each<R: Send + 'static>(
        &self,
        command: impl Fn(&mut Worker) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Stopped> {
        self.on_all(vec![command; self.0.len()]).await
    }

    /// The sign of life of each, in their order.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.0.iter().map(|worker| worker.pulse().clone()).collect()
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
        let first = self.0.first().ok_or(Stopped)?;
        run(first, command)?.await.map_err(|_| Stopped)
    }

    /// Puts parts of another app in the place of one: a part to each worker, in their order. Comes back when all have them.
    pub async fn replace<A: App>(&self, app: AppId, parts: Vec<A>) -> anyhow::Result<()> {
        let pending: Vec<_> = (self.0.iter().zip(parts))
            .map(|(worker, part)| run(worker, move |worker| worker.replace(app, Box::new(part))))
            .collect::<Result<_, _>>()?;
        for replaced in pending {
            // What was there before is dropped here.
            drop(replaced.await.map_err(|_| Stopped)??);
        }
        Ok(())
    }

    /// The same for one worker, where `adjust` follows at once. What that returns is dropped here, too.
    pub async fn replace_part<R: Send + 'static>(
        &self,
        number: usize,
        app: AppId,
        part: Box<dyn App>,
        adjust: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> anyhow::Result<()> {
        let worker = self.0.get(number).ok_or(Stopped)?;
        let replace = move |worker: &mut Worker| (worker.replace(app, part), adjust(worker));
        let (replaced, _) = run(worker, replace)?.await.map_err(|_| Stopped)?;
        drop(replaced?);
        Ok(())
    }

    /// Has parts of an app that is to be added, one for each worker, register what is to wake them.
    pub fn register(&self, parts: &mut [Box<dyn App>]) -> io::Result<()> {
        let mut pairs = self.0.iter().zip(parts);
        pairs.try_for_each(|(worker, part)| part.register(worker.poller()))
    }

    /// Runs a command of its own on each worker, as [`Self::on_each`] does.
    pub async fn on_all<R: Send + 'static>(
        &self,
        commands: Vec<impl FnOnce(&mut Worker) -> R + Send + 'static>,
    ) -> Result<Vec<R>, Stopped> {
        let pending: Vec<_> = (self.0.iter().zip(commands))
            .map(|(worker, command)| run(worker, command))
            .collect::<Result<_, _>>()?;
        let mut results = Vec::with_capacity(pending.len());
        for result in pending {
            results.push(result.await.map_err(|_| Stopped)?);
        }
        Ok(results)
    }

    /// Stops all of them, at the same time: the kernel takes its time to take down what a thread had.
    pub fn stop(self) -> Result<(), Stopped> {
        for worker in &self.0 {
            // What is wrong with it is said when it is waited for.
            let _ = worker.begin_to_stop();
        }
        // All, also after one that had stopped already.
        let results: Vec<_> = self.0.into_iter().map(|worker| worker.stop().map(drop)).collect();
        results.into_iter().collect()
    }
}

fn run<R: Send + 'static>(
    worker: &WorkerHandle,
    command: impl FnOnce(&mut Worker) -> R + Send + 'static,
) -> Result<oneshot::Receiver<R>, Stopped> {
    let (sender, receiver) = oneshot::channel();
    worker.run(command, move |result| drop(sender.send(result)))?;
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
