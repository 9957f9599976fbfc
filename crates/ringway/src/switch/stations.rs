//! Where the stations behind a port are learned.

use std::sync::Arc;

use apps::bridge::table::{PortNumber, Table};

/// The sides of bridges that a port is behind, and what these bridges have learned.
#[derive(Clone, Default)]
pub struct Stations(Vec<(Arc<Table>, PortNumber)>);

impl Stations {
    /// Has all of it forgotten that was learned of them: they may turn up elsewhere.
    pub fn forget(&self) {
        self.0.iter().for_each(|(table, side)| table.forget_port(*side));
    }
}

impl FromIterator<(Arc<Table>, PortNumber)> for Stations {
    fn from_iter<T: IntoIterator<Item = (Arc<Table>, PortNumber)>>(sides: T) -> Self {
        Self(sides.into_iter().collect())
    }
}
