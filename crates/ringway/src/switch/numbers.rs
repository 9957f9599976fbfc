//! The numbers of a bridge's sides, which have names: a side keeps its number for as long as it is there.

use apps::bridge::table::PortNumber;

/// The names by the numbers; none for one that is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers(Vec<Option<String>>);

impl Numbers {
    /// The number of a side.
    pub(super) fn of(&self, name: &str) -> Option<PortNumber> {
        let index = self.0.iter().position(|side| side.as_deref() == Some(name))?;
        PortNumber::try_from(index).ok()
    }

    /// The numbers of these sides. Of those that are there already they stay; the others have the lowest that are free. What gets
    /// free by this is not given out at once: somebody may still know the number as the old one's.
    pub(super) fn next(&self, names: &[String]) -> Self {
        let mut next: Vec<Option<String>> = self.0.iter().map(Option::clone).collect();
        let mut free = (0..).filter(|index| !matches!(self.0.get(*index), Some(Some(_))));
        for name in names {
            if next.iter().flatten().any(|side| side == name) {
                continue;
            }
            let Some(index) = free.next() else { break };
            if next.len() <= index {
                next.resize(index + 1, None);
            }
            next[index] = Some(name.clone());
        }
        for side in &mut next {
            side.take_if(|name| !names.contains(name));
        }
        Self(next)
    }

    /// The sides, in the order of their numbers from 0 on.
    pub(super) fn sides(&self) -> impl Iterator<Item = Option<&str>> {
        self.0.iter().map(Option::as_deref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn sides_keep_their_numbers_and_a_number_is_used_again_one_change_later() {
        let first = Numbers::default().next(&names(&["a", "b", "c"]));
        assert_eq!(["a", "b", "c"].map(|side| first.of(side)), [Some(0), Some(1), Some(2)]);
        let second = first.next(&names(&["c", "d", "a"]));
        assert_eq!(
            ["a", "b", "c", "d"].map(|side| second.of(side)),
            [Some(0), None, Some(2), Some(3)]
        );
        assert!(second.sides().eq([Some("a"), None, Some("c"), Some("d")]));
        let third = second.next(&names(&["e", "d", "c", "a", "f"]));
        assert_eq!(["e", "d", "f"].map(|side| third.of(side)), [Some(1), Some(3), Some(4)]);
    }
}
