//! What apps are known by.

/// Which app of a graph. That of an app that is gone stays its own: whoever has kept it finds nothing, though another app is
/// in that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId {
    /// Its place in the lower half; in the upper one how many apps were there before. In one word, as it is noted at each
    /// call of an app.
    word: u64,
}

impl AppId {
    fn new(place: u32, generation: u32) -> Self {
        Self { word: u64::from(generation) << 32 | u64::from(place) }
    }

    /// Where a graph has it.
    #[inline]
    pub(crate) fn place(self) -> usize {
        self.word as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.word >> 32) as u32
    }

    #[inline]
    pub(crate) fn to_word(self) -> u64 {
        self.word
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self { word }
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
        AppId::new(place, self.generations[place as usize])
    }

    /// The app of this id is gone, or was never added.
    pub fn give_back(&mut self, id: AppId) {
        if let Some(generation) = self.generations.get_mut(id.place())
            && *generation == id.generation()
        {
            *generation += 1;
            // In 2^32 changes. The place is never used again then.
            if *generation < u32::MAX {
                self.free.push(id.place() as u32);
            }
        }
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.generations.len()
    }
}
