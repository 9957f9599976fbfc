//! Which VLANs a port of the bridge belongs to, and which tags its frames have (IEEE 802.1Q-2018, 6.9, 8.6 and 8.8).
//!
//! A frame belongs to one VLAN from where it comes in, and goes out by the members of that VLAN alone. Its tag is put in
//! or taken out on the way out, in its private head.
//!
//! A tag behind the one that says which VLAN a frame is in is payload. It never gets to be the outer one where somebody
//! takes that for the VLAN: on a trunk such a frame keeps its VLAN's tag, though the VLAN be the native one, and a station that
//! knows nothing of VLANs neither sends nor gets it. So nobody gets into another VLAN by tagging twice.

use std::ops::BitOr;
use std::sync::Arc;

use engine::{Burst, Counters, DropReason, Selection};
use wire::ethernet::{EtherType, TAG_SIZE, VlanTag};

/// The least number of a VLAN.
pub const FIRST_VLAN: u16 = 1;
/// The greatest.
pub const LAST_VLAN: u16 = 4094;

/// What a port has to do with VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// A station that knows nothing of VLANs, in this one. It neither sends nor gets frames with tags of VLANs; a tag of a
    /// priority alone is none.
    Access(u16),
    /// A customer with VLANs of its own, all of them inside of this one: frames are taken with any tags or none, and come
    /// out as they were.
    Tunnel(u16),
    /// Frames have the tag of their VLAN.
    Trunk {
        /// The VLAN of frames without a tag.
        native: Option<u16>,
        /// The VLANs of frames with one.
        allowed: Arc<VlanSet>,
        /// The tags are a service's (802.1ad), and not a customer's: those of the other kind say nothing of the VLAN.
        is_service: bool,
    },
}

/// Some of the VLANs.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet([u64; 64]);

impl Default for VlanSet {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..=LAST_VLAN).filter(|vlan| self.contains(*vlan))).finish()
    }
}

impl VlanSet {
    /// All that there are.
    pub fn all() -> Self {
        (FIRST_VLAN..=LAST_VLAN).collect()
    }

    /// Whether this VLAN is among them.
    #[inline]
    pub fn contains(&self, vlan: u16) -> bool {
        let word = self.0.get(usize::from(vlan / 64));
        word.is_some_and(|word| word >> (vlan % 64) & 1 == 1)
    }
}

/// The VLANs of both.
impl BitOr for VlanSet {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
        self
    }
}

/// Numbers that are none of a VLAN are left out.
impl FromIterator<u16> for VlanSet {
    fn from_iter<T: IntoIterator<Item = u16>>(vlans: T) -> Self {
        let mut set = Self::default();
        for vlan in vlans {
            if (FIRST_VLAN..=LAST_VLAN).contains(&vlan)
                && let Some(word) = set.0.get_mut(usize::from(vlan / 64))
            {
                *word |= 1 << (vlan % 64);
            }
        }
        set
    }
}

/// A frame, as far as VLANs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tagging {
    /// The VLAN that it belongs to; 0 on a bridge without.
    pub(super) vlan: u16,
    /// The tag that it came with, and that says so; or says a priority alone.
    pub(super) came: Option<VlanTag>,
    /// Its priority, and its VLAN, as in a tag.
    control: u16,
    /// There is a tag behind that one.
    has_inner: bool,
}

/// What a frame's tag comes to be on its way out by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retagging {
    /// As it is.
    None,
    /// The frame gets this one.
    Push(VlanTag),
    /// The frame loses this one.
    Pop(VlanTag),
    /// One in the place of another.
    Set { old: VlanTag, new: VlanTag },
}

impl Retagging {
    fn new(came: Option<VlanTag>, leaves: Option<VlanTag>) -> Self {
        match (came, leaves) {
            (None, Some(new)) => Self::Push(new),
            (Some(old), None) => Self::Pop(old),
            (Some(old), Some(new)) if old != new => Self::Set { old, new },
            _ => Self::None,
        }
    }

    /// What undoes it.
    fn reversed(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Push(tag) => Self::Pop(tag),
            Self::Pop(tag) => Self::Push(tag),
            Self::Set { old, new } => Self::Set { old: new, new: old },
        }
    }

    /// Does it to frames, and adds them to those that are `done`. Those to which it cannot be done are dropped, and counted.
    #[inline]
    pub(super) fn apply_to_all(
        self,
        burst: &mut Burst<'_>,
        frames: impl Iterator<Item = usize>,
        done: &mut Selection,
        counters: &mut Counters,
    ) {
        for index in frames {
            match self.apply(burst, index) {
                Ok(()) => done.push(index),
                Err(reason) => counters.drop(reason),
            }
        }
    }

    /// Undoes it, for the next port, and for whoever had the frames before us.
    #[inline]
    pub(super) fn undo(self, burst: &mut Burst<'_>, frames: impl Iterator<Item = usize>) {
        let reversed = self.reversed();
        if reversed == Self::None {
            return;
        }
        for index in frames {
            if burst.is_shared(index) {
                let undone = reversed.apply(burst, index);
                debug_assert!(undone.is_ok(), "it was so before, so that there is room for it");
            }
        }
    }

    /// Does it to frame `index`. With an error that is to be dropped, and as it was.
    #[inline(always)]
    fn apply(self, burst: &mut Burst<'_>, index: usize) -> Result<(), DropReason> {
        match self {
            Self::None => Ok(()),
            Self::Push(tag) => burst.push_tag(index, tag),
            Self::Pop(_) => burst.pop_tag(index).map(drop),
            Self::Set { new, .. } => burst.set_tag(index, new),
        }
    }
}

impl Membership {
    /// In no VLAN: nothing comes in, and nothing goes out.
    pub(super) fn nowhere() -> Self {
        Self::Trunk { native: None, allowed: Arc::default(), is_service: false }
    }

    /// What a frame is that comes in by this port.
    pub(super) fn arrive(&self, head: &[u8]) -> Result<Tagging, DropReason> {
        let outer = tag_at(head, 0)?;
        let is_ours = outer.is_some_and(|tag| Some(tag.protocol) == self.protocol());
        let (tag, has_inner) = match outer {
            Some(tag) if is_ours => (Some(tag), tag_at(head, TAG_SIZE)?.is_some()),
            outer => (None, outer.is_some()),
        };
        let vlan_of_tag = tag.map(VlanTag::id).filter(|vlan| *vlan != 0);
        let vlan = match (self, vlan_of_tag) {
            (Self::Access(_), _) if has_inner => return Err(DropReason::Tagged),
            (Self::Access(vlan) | Self::Tunnel(vlan), None) => *vlan,
            (Self::Access(_) | Self::Tunnel(_), Some(_)) => return Err(DropReason::Tagged),
            // A tag of the other kind, which would be the only one where this is native.
            (Self::Trunk { .. }, None) if tag.is_none() && has_inner => {
                return Err(DropReason::Tagged);
            }
            (Self::Trunk { native, .. }, None) => native.ok_or(DropReason::VlanNotAllowed)?,
            (Self::Trunk { native, allowed, .. }, Some(vlan)) => {
                let is_member = allowed.contains(vlan) || *native == Some(vlan);
                is_member.then_some(vlan).ok_or(DropReason::VlanNotAllowed)?
            }
        };
        // The priority goes with the frame.
        let control = tag.map_or(0, |tag| tag.control & !0xfff) | vlan;
        Ok(Tagging { vlan, came: tag, control, has_inner })
    }

    /// The kind of the tags that say which VLAN a frame is in.
    fn protocol(&self) -> Option<EtherType> {
        match self {
            Self::Access(_) | Self::Trunk { is_service: false, .. } => Some(EtherType::VLAN),
            Self::Trunk { is_service: true, .. } => Some(EtherType::SERVICE_VLAN),
            Self::Tunnel(_) => None,
        }
    }

    /// What is done to a frame that goes out by this port.
    pub(super) fn retag(&self, tagging: &Tagging) -> Retagging {
        Retagging::new(tagging.came, self.leave(tagging).flatten())
    }

    /// The tag with which a frame goes out by this port, if it has one there; and `None` when it does not go out here.
    #[inline]
    pub(super) fn leave(&self, tagging: &Tagging) -> Option<Option<VlanTag>> {
        let Tagging { vlan, control, has_inner, .. } = *tagging;
        match self {
            // Whoever is there would take what is inside for the VLAN.
            Self::Access(own) => (*own == vlan && !has_inner).then_some(None),
            Self::Tunnel(own) => (*own == vlan).then_some(None),
            Self::Trunk { native, .. } if *native == Some(vlan) && !has_inner => Some(None),
            Self::Trunk { native, allowed, .. } => {
                let protocol = self.protocol()?;
                let is_member = allowed.contains(vlan) || *native == Some(vlan);
                is_member.then_some(Some(VlanTag { protocol, control }))
            }
        }
    }
}

/// The tag of a frame behind `skip` bytes of others. A frame that ends inside of a tag, or of the type behind it, is too
/// short: where it is padded it would have one.
fn tag_at(head: &[u8], skip: usize) -> Result<Option<VlanTag>, DropReason> {
    let rest = head.get(12 + skip..).ok_or(DropReason::TooShort)?;
    let (kind, rest) = rest.split_first_chunk().ok_or(DropReason::TooShort)?;
    let protocol = EtherType(u16::from_be_bytes(*kind));
    if !protocol.is_tag() {
        return Ok(None);
    }
    let (control, rest) = rest.split_first_chunk().ok_or(DropReason::TooShort)?;
    let _: &[u8; 2] = rest.first_chunk().ok_or(DropReason::TooShort)?;
    Ok(Some(VlanTag { protocol, control: u16::from_be_bytes(*control) }))
}
