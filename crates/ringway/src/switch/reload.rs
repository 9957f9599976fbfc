//! Reload by difference: the switch becomes what its configuration says now, by the smallest change.
//!
//! One at a time: who asks while another is at it is told so at once, because a worker that hangs would have him wait for ever, and
//! whoever else has something to ask behind him. A signal, which nobody waits for, gets its turn.

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::signal::unix::Signal;
use tokio::sync::Mutex;

use super::State;
use super::difference::Difference;
use super::observer::LIMIT;
use crate::config::Config;
use crate::log;

/// Finds the configuration anew.
pub type Read = Arc<dyn Fn() -> anyhow::Result<Config> + Send + Sync>;

/// Changes a switch that runs. Cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    state: Arc<Mutex<State>>,
    read: Read,
}

impl Reloader {
    pub(super) fn new(state: Arc<Mutex<State>>, read: Read) -> Self {
        Self { state, read }
    }

    /// Makes the switch what its configuration says, or only looks what that would change. Returns all of it, a line each. With
    /// an error nothing has changed.
    pub async fn reload(&self, dry_run: bool) -> anyhow::Result<Vec<String>> {
        let Ok(mut state) = self.state.try_lock() else {
            bail!(
                "the switch is being reloaded just now: nothing was changed by this; try again when that is done"
            );
        };
        self.change(&mut state, dry_run).await
    }

    async fn change(&self, state: &mut State, dry_run: bool) -> anyhow::Result<Vec<String>> {
        let State { fabric, config } = state;
        let new = (self.read)()?;
        let fixed = fixed(config, &new);
        if !fixed.is_empty() {
            bail!(
                "{} cannot be changed while the switch runs, but by starting it anew: nothing was changed",
                fixed.join(" and ")
            );
        }
        let network = new.network();
        let mut lines = Difference::new(fabric.network(), &network).into_lines();
        if config.log != new.log {
            lines.push(format!("~ log {}", new.log.to_string().to_lowercase()));
        }
        if dry_run {
            return Ok(lines);
        }
        // One that hangs would have all of this wait for ever.
        fabric.ask_workers(LIMIT).await.context("nothing was changed")?;
        fabric.become_network(&network).await?;
        log::set_level(new.log);
        *config = new;
        Ok(lines)
    }

    /// Reloads each time that this signal comes, and logs what came of it.
    pub(super) async fn follow(self, mut signal: Signal) {
        while signal.recv().await.is_some() {
            let reloaded = self.change(&mut *self.state.lock().await, false).await;
            match reloaded {
                Ok(lines) if lines.is_empty() => tracing::info!("reloaded: nothing has changed"),
                Ok(lines) => lines.iter().for_each(|line| tracing::info!("reloaded: {line}")),
                Err(error) => tracing::error!("not reloaded: {error:#}"),
            }
        }
    }
}

/// The settings that differ and are decided when a switch starts.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let fixed = [
        ("`mode`", old.mode != new.mode),
        ("`idle-spin`", old.idle_spin != new.idle_spin),
        ("`workers`", old.workers != new.workers),
        ("`cpus`", old.cpus != new.cpus),
        ("`control`", old.control != new.control),
    ];
    fixed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}
