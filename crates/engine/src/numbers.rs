//! What an app says of itself beside its counters.

/// A number that an app says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    /// How many.
    pub value: u64,
    /// Of what, if the name does not say that.
    pub unit: &'static str,
    /// What it is. All three are one phrase: `12 addresses`, `3 frames waiting`.
    pub name: String,
    /// All parts of the app know it alike.
    is_shared: bool,
}

/// The numbers of an app, or of one of its parts, in the order in which it says them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(Vec<Number>);

impl Numbers {
    /// Says a number of this part: those of all parts are added up.
    pub fn own(&mut self, name: impl Into<String>, unit: &'static str, value: u64) {
        self.0.push(Number { name: name.into(), unit, value, is_shared: false });
    }

    /// Says a number of what all parts share: it is taken once.
    pub fn shared(&mut self, name: impl Into<String>, unit: &'static str, value: u64) {
        self.0.push(Number { name: name.into(), unit, value, is_shared: true });
    }

    /// Adds what another part says.
    pub fn add(&mut self, part: Self) {
        for number in part.0 {
            let is_same =
                |known: &&mut Number| (&known.name, known.unit) == (&number.name, number.unit);
            match self.0.iter_mut().find(is_same) {
                Some(known) if known.is_shared => {}
                Some(known) => known.value += number.value,
                None => self.0.push(number),
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Number> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_what_they_share_is_said_once() {
        let part = |own, shared| {
            let mut numbers = Numbers::default();
            numbers.own("waiting", "frames", own);
            // The same of something else.
            numbers.own("waiting", "packets", 1);
            numbers.shared("addresses", "", shared);
            numbers
        };
        let mut all = Numbers::default();
        for (own, shared) in [(3, 10), (4, 11)] {
            all.add(part(own, shared));
        }
        // What only one of them has.
        let mut third = Numbers::default();
        third.own("neighbours", "", 2);
        all.add(third);
        let said: Vec<_> = all.iter().map(|number| (number.name.as_str(), number.value)).collect();
        let expected = [("waiting", 7), ("waiting", 2), ("addresses", 10), ("neighbours", 2)];
        assert_eq!(said, expected);
    }
}
