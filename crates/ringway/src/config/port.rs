//! One port, from what was written to what it means.

use super::fault::{Fault, Place, Problem};
use super::keys::{self, PortType, TYPE};
use super::value::{self, Scalar, Value};
use super::written::{Entry, Written};
use super::{PortConfig, between, kinds, vlan};

impl Written {
    /// Splits the value of `--port`, `NAME=TYPE:TARGET[,KEY=VALUE...]`, into the entries that the
    /// same port has in a file.
    pub fn from_flag(text: &str, faults: &mut Vec<Fault>) -> Option<Written> {
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
        Some(Written { what: keys::PORT, name: name.to_owned(), place, entries })
    }

    /// What the port means. Everything that is wrong with it goes to `faults`.
    pub fn read(&self, faults: &mut Vec<Fault>) -> Option<PortConfig> {
        if !is_name(&self.name, PORT_NAME_LIMIT) {
            faults.push(self.fault(Problem::PortName(self.name.clone())));
        }
        let Some(type_entry) = self.entry(TYPE) else {
            faults.push(self.missing(TYPE, value::one_of(&keys::PORT_TYPES.map(|t| t.name))));
            return None;
        };
        let port_type = type_entry.read(faults, value::port_type)?;
        let kind = (port_type.read)(self, faults);
        let vlan = vlan::read(self, faults);
        if port_type.name == kinds::tun::TYPE.name
            && let Some(entry) = self.entry("trunk")
        {
            faults.push(Fault { place: entry.place.clone(), problem: Problem::TrunkOfTun });
        }
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
}

/// The longest name of a port.
pub const PORT_NAME_LIMIT: usize = 32;

/// Names go into logs and onto command lines: plain and short.
pub fn is_name(name: &str, limit: usize) -> bool {
    (1..=limit).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
