//! What was written, before it means anything: keys and their values, and the ports, apps and sides that have them.

use super::fault::{Fault, Place, Problem};
use super::value::{self, Misfit, Scalar, Value};

/// A key and its value as they were written.
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Value,
}

impl Entry {
    /// What the value means, or a fault.
    pub fn read<T>(
        &self,
        faults: &mut Vec<Fault>,
        parse: impl FnOnce(&Scalar) -> Result<T, Misfit>,
    ) -> Option<T> {
        let misfit = match parse(&self.value.scalar) {
            Ok(value) => return Some(value),
            Err(misfit) => misfit,
        };
        faults.push(self.wrong(&self.value, misfit));
        None
    }

    /// The same of a key that takes a list as well: what is wrong with one in the list is said of that.
    pub fn read_list<T>(
        &self,
        faults: &mut Vec<Fault>,
        parse: impl Fn(&Scalar) -> Result<T, Misfit>,
    ) -> Option<T> {
        if let Scalar::List(items) = &self.value.scalar
            && parse(&self.value.scalar).is_err()
            && let Some((item, misfit)) =
                items.iter().find_map(|item| Some((item, parse(&item.scalar).err()?)))
        {
            faults.push(self.wrong(item, misfit));
            return None;
        }
        self.read(faults, parse)
    }

    /// The fault of a value that does not fit the key, or of one in a list of them.
    pub fn wrong(&self, value: &Value, misfit: Misfit) -> Fault {
        let Misfit { expected, nearest } = misfit;
        let (key, value, place) = (self.key.clone(), value.scalar.to_string(), value.place.clone());
        Fault { place, problem: Problem::WrongValue { key, value, expected, nearest } }
    }

    /// The fault of a key that `owner` does not have.
    pub fn unknown(&self, owner: &str, valid: &[&str]) -> Fault {
        let expected = if valid.is_empty() { "no key".to_owned() } else { value::one_of(valid) };
        Fault {
            place: self.place.clone(),
            problem: Problem::UnknownKey {
                key: self.key.clone(),
                owner: owner.to_owned(),
                expected,
                nearest: value::nearest(&self.key, valid.iter().copied()),
            },
        }
    }
}

/// A port, an app or a side of a bridge as it was written: by `--port`, or as a table of a file.
pub struct Written {
    /// "port", "app" or "side".
    pub what: &'static str,
    pub name: String,
    /// Where the name is.
    pub place: Place,
    pub entries: Vec<Entry>,
}

impl Written {
    /// The entry of this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The fault of a key that is not there.
    pub fn missing(&self, key: &'static str, expected: String) -> Fault {
        self.fault(Problem::MissingKey { owner: self.owner(), key, expected })
    }

    /// What is wrong with it as a whole.
    pub fn fault(&self, problem: Problem) -> Fault {
        Fault { place: self.place.clone(), problem }
    }

    /// It, as faults call it.
    pub fn owner(&self) -> String {
        format!("{} `{}`", self.what, self.name)
    }
}
