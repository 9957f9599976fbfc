//! Hears what a worker has to say, and starts apps again on it that failed. A port is started again by its own control.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use engine::{AppId, Event, Events};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::register::{Again, Register};
use super::settings::{Adjusted, Refused};
use crate::session::Trouble;
use crate::workers::Workers;

/// Where a worker's events go. A port's fault goes straight to its control, so that it is there
/// before the worker's answer to anything that the session asks later.
pub(super) fn pass_on(register: Register, others: mpsc::UnboundedSender<Event>) -> Events {
    Box::new(move |event| {
        let event = match event {
            Event::Fault { app, fault } => match register.tell(app, Trouble::Guest(fault)) {
                Err(Trouble::Guest(fault)) => Event::Fault { app, fault },
                _ => return,
            },
            event => event,
        };
        let _ = others.send(event);
    })
}

/// Of one worker.
pub(super) struct Supervisor {
    worker: usize,
    workers: Arc<Workers>,
    register: Register,
    backoffs: HashMap<AppId, Backoff>,
    /// Which apps are to be started again, and when.
    due: Vec<(Instant, AppId)>,
}

impl Supervisor {
    pub(super) fn new(worker: usize, workers: Arc<Workers>, register: Register) -> Self {
        Self { worker, workers, register, backoffs: HashMap::new(), due: Vec::new() }
    }

    /// Ends when the worker has nothing more to say.
    pub(super) async fn supervise(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        loop {
            let next = self.due.iter().min_by_key(|(due, _)| *due).copied();
            let due = async {
                match next {
                    Some((due, _)) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                () = due => {
                    if let Some((due, app)) = next {
                        self.due.retain(|other| *other != (due, app));
                        self.restart(app).await;
                    }
                }
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Fault { app, fault } => {
                tracing::error!(port = self.register.name(app), "the port is down: {fault}");
            }
            Event::Failed { app, message, remains } => {
                let name = self.register.name(app);
                tracing::error!(app = name, "a bug of ours took this down: {message}");
                drop(remains);
                // A port's guest is to be let go of on the other workers too.
                if self.register.tell(app, Trouble::Failed).is_err()
                    && self.register.again(app).is_some()
                {
                    let now = Instant::now();
                    let backoff = self.backoffs.entry(app).or_insert_with(|| Backoff::of_app(now));
                    self.due.push((now + backoff.wait(now), app));
                }
            }
        }
    }

    /// Starts an app again on this worker, unless it is not wanted any more.
    async fn restart(&mut self, app: AppId) {
        let Some(Again { remake, adjust }) = self.register.again(app) else {
            self.backoffs.remove(&app);
            return;
        };
        let (name, worker) = (self.register.name(app), self.worker);
        match self.workers.replace_part(worker, app, remake(worker), adjust()).await {
            Ok(Adjusted { refused: None, .. }) => {
                tracing::warn!(app = name, worker, "started again");
            }
            Ok(Adjusted { refused: Some(Refused { fault, .. }), .. }) => tracing::error!(
                app = name,
                worker,
                "a bug of ours: started again with its first settings, as it refuses the last ones: {fault}"
            ),
            Err(error) => tracing::error!(app = name, worker, "not started again: {error:#}"),
        }
    }
}
