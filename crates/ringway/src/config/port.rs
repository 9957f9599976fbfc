//! One port, from what was written to what it means.

use super::fault::{Fault, Place, Problem};
use super::keys::{self, PortType, TYPE};
use super::value::{self, Misfit, Scalar, Value};
use super::{PortConfig, between, vlan};

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

/// A port as it was written: by `--port`, or as a table of a file.
pub struct WrittenPort {
    pub name: String,
    /// Where the name is.
    pub place: Place,
    pub entries: Vec<Entry>,
}

impl WrittenPort {
    /// Splits the value of `--port`, `NAME=TYPE:TARGET[,KEY=VALUE...]`, into the entries that the
    /// same port has in a file.
    pub fn from_flag(text: &str, faults: &mut Vec<Fault>) -> Option<WrittenPort> {
        let place = Place::flag(keys::PORT, text);
        let mut fault = |problem| {
            faults.push(Fault { place: place.clone(), problem });
        };
        let entry = |key: &str, value: &str| Entry {
            key: key.to_owned(),
            place: place.clone(),
            value: Value { scalar: Scalar::Text(value.to_owned()), place: place.clone() },
        };

        let split = text.split_once('=').and_then(|(name, rest)| {
            let (device, settings) = match rest.split_once(',') {
                Some((device, settings)) => (device, Some(settings)),
                None => (rest, None),
            };
            let (port_type, target) = device.split_once(':')?;
            Some((name, port_type, target, settings))
        });
        let Some((name, port_type, target, settings)) = split else {
            fault(Problem::PortShape(text.to_owned()));
            return None;
        };

        let type_entry = entry(TYPE, port_type);
        // Of an unknown type nothing else is known, and the type itself is the fault.
        let target_entry = value::port_type(&type_entry.value.scalar)
            .ok()
            .map(|known| entry(known.target.name, target));
        let mut entries = vec![type_entry];
        entries.extend(target_entry);
        for setting in settings.into_iter().flat_map(|settings| settings.split(',')) {
            match setting.split_once('=') {
                None => fault(Problem::NotKeyValue(setting.to_owned())),
                Some((key, _)) if entries.iter().any(|entry| entry.key == key) => {
                    fault(Problem::KeyTwice(key.to_owned()));
                }
                Some((key, value)) => entries.push(entry(key, value)),
            }
        }
        Some(WrittenPort { name: name.to_owned(), place, entries })
    }

    /// What the port means. Everything that is wrong with it goes to `faults`.
    pub fn read(&self, faults: &mut Vec<Fault>) -> Option<PortConfig> {
        if !is_port_name(&self.name) {
            faults.push(Fault {
                place: self.place.clone(),
                problem: Problem::PortName(self.name.clone()),
            });
        }
        let Some(type_entry) = self.entry(TYPE) else {
            faults.push(self.missing(TYPE, value::one_of(&keys::PORT_TYPES.map(|t| t.name))));
            return None;
        };
        let port_type = type_entry.read(faults, value::port_type)?;
        let kind = (port_type.read)(self, faults);
        let vlan = vlan::read(self, faults);
        let between = between::read(self, faults);
        Some(PortConfig { vlan, between, ..PortConfig::new(&self.name, kind?) })
    }

    /// The entries whose keys a port of this type has. The others, and a target that is not
    /// there, are faults.
    pub fn keys(&self, port_type: &PortType, faults: &mut Vec<Fault>) -> Vec<&Entry> {
        if self.entry(port_type.target.name).is_none() {
            faults.push(self.missing(port_type.target.name, port_type.target.about.to_owned()));
        }
        let in_flag = self.place.is_flag();
        let valid = port_type.valid_keys(false);
        let (known, unknown): (Vec<_>, Vec<_>) =
            self.entries.iter().partition(|entry| valid.contains(&entry.key.as_str()));
        let owner = format!("a {} port", port_type.name);
        for entry in unknown {
            faults.push(entry.unknown(&owner, &port_type.valid_keys(in_flag)));
        }
        known
    }

    /// The entry of this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The fault of a key that is not there.
    pub fn missing(&self, key: &'static str, expected: String) -> Fault {
        Fault {
            place: self.place.clone(),
            problem: Problem::MissingKey { port: self.name.clone(), key, expected },
        }
    }
}

/// Names go into logs and onto command lines: plain and short.
fn is_port_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
