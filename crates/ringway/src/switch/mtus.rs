//! The MTUs of a switch's ports, which had better be the same: a switch neither fragments packets nor says
//! that they are too long, so what fits one port and not another is lost between them. And the state of their links, for
//! reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::DEFAULT_MTU;

/// The ports whose MTU is known. Cheap to clone.
#[derive(Clone, Default)]
pub struct Mtus(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    ports: BTreeMap<String, u32>,
    /// The interfaces whose state is known, and whether it is up.
    links: BTreeMap<String, bool>,
    /// That they differ was said, and they have not been the same since.
    is_said: bool,
}

/// The MTU of a guest that is told none. It may choose another by itself, of which nobody hears.
const USUAL: u32 = 1500;

impl Mtus {
    /// Takes note of a port's MTU, and warns if it is the first that differs from another's.
    pub fn note(&self, port: &str, mtu: u32) {
        if let Some((other, its)) = self.differs(port, mtu) {
            tracing::warn!(
                "port `{port}` has an MTU of {mtu}, and port `{other}` one of {its}: what is too long \
                 for a port is dropped there, and counted (over_mtu), or by its guest, which has {USUAL} \
                 if it is told nothing; give them the same (`mtu`)"
            );
        }
    }

    /// The same of a guest's: what it was told, if anything.
    pub fn note_guest(&self, port: &str, told: u16) {
        self.note(port, if told == DEFAULT_MTU { USUAL } else { told.into() });
    }

    /// Takes note of whether a port's interface is up. None: nobody knows.
    pub fn note_link(&self, port: &str, is_up: Option<bool>) {
        let mut known = self.known();
        match is_up {
            Some(is_up) => _ = known.links.insert(port.to_owned(), is_up),
            None => _ = known.links.remove(port),
        }
    }

    /// Nobody is to hear of a port any more, which is gone.
    pub fn forget(&self, port: &str) {
        let mut known = self.known();
        known.ports.remove(port);
        known.links.remove(port);
    }

    /// A port's MTU, if it is known.
    pub fn mtu(&self, port: &str) -> Option<u32> {
        self.known().ports.get(port).copied()
    }

    /// Whether a port's interface is up, if that is known.
    pub fn link(&self, port: &str) -> Option<bool> {
        self.known().links.get(port).copied()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is in it is as good after a panic as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port whose MTU is another, if that is news.
    fn differs(&self, port: &str, mtu: u32) -> Option<(String, u32)> {
        let mut known = self.known();
        known.ports.insert(port.to_owned(), mtu);
        let other = known.ports.iter().find(|(_, its)| **its != mtu);
        let other = other.map(|(name, its)| (name.clone(), *its));
        let was_said = std::mem::replace(&mut known.is_said, other.is_some());
        other.filter(|_| !was_said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_said_once() {
        let mtus = Mtus::default();
        assert_eq!(mtus.differs("vm1", 9000), None);
        assert_eq!(mtus.differs("vm2", 9000), None);
        assert_eq!(mtus.differs("host", 1500), Some(("vm1".to_owned(), 9000)));
        assert_eq!(mtus.differs("host", 1400), None, "it was said");
        assert_eq!(mtus.differs("host", 9000), None, "they are the same");
        let next = Some(("host".to_owned(), 9000));
        assert_eq!(mtus.differs("vm1", 1500), next, "and differ anew");
        mtus.note_guest("vm1", 9000);
        mtus.note_guest("vm2", DEFAULT_MTU);
        let others = [("vm1", 9000), ("vm2", 1500)].map(|(name, mtu)| (name.to_owned(), mtu));
        let known = mtus.0.lock().unwrap().ports.clone();
        assert!(others.iter().all(|(name, mtu)| known.get(name) == Some(mtu)), "{known:?}");
        assert_eq!((mtus.mtu("vm1"), mtus.mtu("nobody")), (Some(9000), None));
    }

    #[test]
    fn a_link_is_known_until_nobody_follows_it() {
        let mtus = Mtus::default();
        assert_eq!(mtus.link("host"), None);
        for is_up in [Some(true), Some(false), None] {
            mtus.note_link("host", is_up);
            assert_eq!(mtus.link("host"), is_up);
            assert_eq!(mtus.link("other"), None);
        }
    }
}
