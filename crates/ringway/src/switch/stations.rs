//! Where the stations behind a port are learned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apps::bridge::table::{PortNumber, Table};

/// The sides of bridges that a port is behind, and what these bridges have learned. Cheap to clone.
#[derive(Clone, Default)]
pub struct Stations(Arc<Mutex<Vec<Side>>>);

/// What a bridge has learned, and the number of a side of it.
pub type Side = (Arc<Table>, PortNumber);

impl Stations {
    /// Has all of it forgotten that was learned of them: they may turn up elsewhere.
    pub fn forget(&self) {
        self.sides().iter().for_each(|(table, side)| table.forget_port(*side));
    }

    /// From now on they are learned there.
    pub fn learned_at(&self, sides: Vec<Side>) {
        *self.sides() = sides;
    }

    fn sides(&self) -> MutexGuard<'_, Vec<Side>> {
        // They are exchanged as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
