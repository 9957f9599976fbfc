//! The workers of a switch, as control sees them.

use engine::{Stopped, Worker, WorkerHandle};
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
        let pending: Vec<_> =
            self.0.iter().map(|worker| run(worker, command.clone())).collect::<Result<_, _>>()?;
        let mut results = Vec::with_capacity(pending.len());
        for result in pending {
            results.push(result.await.map_err(|_| Stopped)?);
        }
        Ok(results)
    }

    /// Runs `command` on the first worker, and waits until it has.
    pub async fn on_first<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let first = self.0.first().ok_or(Stopped)?;
        run(first, command)?.await.map_err(|_| Stopped)
    }

    /// Stops all of them.
    pub fn stop(self) -> Result<(), Stopped> {
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
