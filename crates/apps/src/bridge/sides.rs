//! The ports that a bridge has, by their numbers.
//!
//! A number may be free: a port that goes leaves the others theirs, and leaves it to one that comes later. All that has to
//! be allocated for other ports is allocated here, so that a bridge that runs has only to exchange the one for the other.

use std::sync::Arc;

use super::Sorted;
use super::vlan::Membership;

/// What is at a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// No port: nothing comes in there, and nothing goes out.
    Free,
    /// A port of a bridge without VLANs.
    Plain,
    /// A port that has this to do with VLANs. One makes a bridge one with VLANs, and all others have to be of them or free.
    Vlan(Membership),
}

/// The ports of a bridge, for one of its parts.
pub struct Sides {
    pub(super) sorted: Sorted,
    /// Which numbers are not free.
    pub(super) present: Arc<[bool]>,
    /// What each port has to do with VLANs, and a free number nothing; none has anything, when this is empty.
    pub(super) memberships: Arc<[Membership]>,
}

impl Sides {
    /// These, from number 0 on.
    pub fn new(sides: impl IntoIterator<Item = Side>) -> Self {
        let sides: Vec<Side> = sides.into_iter().collect();
        let has_vlans = sides.iter().any(|side| matches!(side, Side::Vlan(_)));
        let membership = |side: &Side| match side {
            Side::Vlan(membership) => membership.clone(),
            Side::Free | Side::Plain => Membership::nowhere(),
        };
        Self {
            sorted: Sorted::new(sides.len()),
            present: sides.iter().map(|side| *side != Side::Free).collect(),
            memberships: sides.iter().filter(|_| has_vlans).map(membership).collect(),
        }
    }

    /// The same for another part.
    pub fn part(&self) -> Self {
        Self {
            sorted: Sorted::new(self.present.len()),
            present: self.present.clone(),
            memberships: self.memberships.clone(),
        }
    }
}
