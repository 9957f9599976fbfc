//! Memory that is lent to each burst.

use std::sync::Arc;

use memory::GuestMemory;

/// The memory in which frames lie.
pub(crate) struct Lent {
    pub(crate) memory: Arc<GuestMemory>,
    /// A reference that came back. To count one up and down in each breath would be two atomic operations.
    pub(crate) spare: Option<Arc<GuestMemory>>,
}

impl Lent {
    /// Memory of which nothing is lent.
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory, spare: None }
    }

    /// A reference for one burst, which is to come back as `spare`.
    pub(crate) fn lend(&mut self) -> Arc<GuestMemory> {
        self.spare.take().unwrap_or_else(|| self.memory.clone())
    }
}
