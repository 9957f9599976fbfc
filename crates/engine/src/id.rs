//! What apps are known by.

/// Which app of a graph. That of an app that is gone stays its own: whoever has kept it finds nothing, though another app is
/// in that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppId {
    place: u32,
    /// How many apps were in this place before.
    generation: u32,
}

impl AppId {
    /// Where a graph has it.
    #[inline]
    pub(crate) fn place(self) -> usize {
        self.place as usize
    }

    #[inline]
    pub(crate) fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.place)
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self { place: word as u32, generation: (word >> 32) as u32 }
    }
}

/// Gives out ids. Graphs that are alike have the same for the same app; so one of these is for all of them.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// For each place, how many apps were there.
    generations: Vec<u32>,
    /// The places that are free.
    free: Vec<u32>,
}

impl Ids {
    /// An id that no app has had.
    pub fn take(&mut self) -> AppId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.generations.push(0);
            self.generations.len() as u32 - 1
        });
        AppId { place, generation: self.generations[place as usize] }
    }

    /// The app of this id is gone, or was never added.
    pub fn give_back(&mut self, id: AppId) {
        if let Some(generation) = self.generations.get_mut(id.place())
            && *generation == id.generation
        {
            *generation += 1;
            // In 2^32 changes. The place is never used again then.
            if *generation < u32::MAX {
                self.free.push(id.place);
            }
        }
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.generations.len()
    }
}
