//! What runs: the apps of a switch, as all of control knows them that is not about to change them.
//!
//! Written by whoever changes the switch; read by reports, by those who start apps again, by the watchdog, and by the workers
//! when they have trouble to tell of. On the busy path nobody looks at it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::AppId;
use tokio::sync::mpsc;

use super::make::Remake;
use super::settings::Adjust;
use crate::session::Trouble;

/// The apps that there are, in the order of the configuration. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Register(Arc<Mutex<Vec<Entry>>>);

/// An app.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) app: Listed,
    /// How it is started again, if that is not its own control's business.
    pub(super) again: Option<Again>,
    /// Where to tell a port's control what its workers found, if it has one.
    pub(super) troubles: Option<mpsc::UnboundedSender<Trouble>>,
}

/// How an app is started again.
#[derive(Clone)]
pub(super) struct Again {
    pub(super) remake: Remake,
    /// Gives a part the settings that were made since.
    pub(super) adjust: Adjust,
}

/// What everybody may know of an app.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) id: AppId,
    pub(super) name: String,
    /// Its type.
    pub(super) kind: &'static str,
    pub(super) is_port: bool,
    pub(super) terminals: Arc<Terminals>,
}

/// What the inputs of an app are called, and its outputs, by their numbers.
#[derive(Debug)]
pub(super) struct Terminals {
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

impl Register {
    /// From now on there are these.
    pub(super) fn set(&self, entries: Vec<Entry>) {
        *self.entries() = entries;
    }

    /// What there is.
    pub(super) fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // It is exchanged as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for everybody.
    pub(super) fn list(&self) -> Vec<Listed> {
        self.entries().iter().map(|entry| entry.app.clone()).collect()
    }

    /// The name of an app; nothing for one that is gone.
    pub(super) fn name(&self, id: AppId) -> String {
        self.find(id, |entry| entry.app.name.clone()).unwrap_or_default()
    }

    /// How an app is started again.
    pub(super) fn again(&self, id: AppId) -> Option<Again> {
        self.find(id, |entry| entry.again.clone()).flatten()
    }

    /// Tells the control of a port. One that has none is not told, and gets it back.
    pub(super) fn tell(&self, id: AppId, trouble: Trouble) -> Result<(), Trouble> {
        match self.find(id, |entry| entry.troubles.clone()).flatten() {
            Some(control) => control.send(trouble).map_err(|error| error.0),
            None => Err(trouble),
        }
    }

    fn find<R>(&self, id: AppId, look: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.entries().iter().find(|entry| entry.app.id == id).map(look)
    }
}
