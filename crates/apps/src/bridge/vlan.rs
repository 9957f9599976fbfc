//! Which VLANs a port of the bridge belongs to, and which tags its frames have (IEEE 802.1Q-2018, 6.9, 8.6 and 8.8).
//!
//! A frame belongs to one VLAN from where it comes in, and goes out by the members of that VLAN alone. Its tag is put in
//! or taken out on the way out, in its private head.
//!
//! A tag behind the one that says which VLAN a frame is in is payload. It never gets to be the outer one where somebody
//! takes that for the VLAN: on a trunk such a frame keeps its VLAN's tag, though the VLAN be the native one. So nobody
//! gets into another VLAN by tagging twice.

use std::ops::BitOr;
use std::sync::Arc;

use engine::DropReason;
use wire::ethernet::{EtherType, TAG_SIZE, VlanTag};

/// The least number of a VLAN.
pub const FIRST_VLAN: u16 = 1;
/// The greatest.
pub const LAST_VLAN: u16 = 4094;

/// What a port has to do with VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// A station that knows nothing of VLANs, in this one. Frames with tags of VLANs are not taken; a tag of a priority alone
    /// is none.
    Access(u16),
    /// A customer with VLANs of its own, all of them inside of this one: frames are taken with any tags or none, and come
    /// out as they were. On trunks they have a service tag (802.1ad).
    Tunnel(u16),
    /// Frames have the tag of their VLAN.
    Trunk {
        /// The VLAN of frames without a tag.
        native: Option<u16>,
        /// The VLANs of frames with one.
        allowed: Arc<VlanSet>,
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
    /// The tag that it has on a trunk.
    on_trunk: Option<VlanTag>,
    /// There is a tag behind that one.
    has_inner: bool,
}

impl Membership {
    /// What a frame is that comes in by this port.
    pub(super) fn arrive(&self, head: &[u8]) -> Result<Tagging, DropReason> {
        let outer = tag_at(head, 0)?;
        let (tag, is_inner_tag) = match self {
            Self::Tunnel(_) => (None, outer.is_some()),
            _ if outer.is_some() => (outer, tag_at(head, TAG_SIZE)?.is_some()),
            _ => (None, false),
        };
        let vlan_of_tag = tag.map(VlanTag::id).filter(|vlan| *vlan != 0);
        let vlan = match (self, vlan_of_tag) {
            (Self::Access(vlan) | Self::Tunnel(vlan), None) => *vlan,
            (Self::Access(_) | Self::Tunnel(_), Some(_)) => return Err(DropReason::Tagged),
            (Self::Trunk { native, .. }, None) => native.ok_or(DropReason::VlanNotAllowed)?,
            (Self::Trunk { native, allowed }, Some(vlan)) => {
                let is_member = allowed.contains(vlan) || *native == Some(vlan);
                is_member.then_some(vlan).ok_or(DropReason::VlanNotAllowed)?
            }
        };
        let protocol = match (self, tag) {
            (_, Some(tag)) => tag.protocol,
            (Self::Tunnel(_), None) => EtherType::SERVICE_VLAN,
            (_, None) => EtherType::VLAN,
        };
        // The priority goes with the frame.
        let control = tag.map_or(0, |tag| tag.control & !0xfff) | vlan;
        let on_trunk = Some(VlanTag { protocol, control });
        Ok(Tagging { vlan, came: tag, on_trunk, has_inner: is_inner_tag })
    }

    /// The tag with which a frame goes out by this port, if it has one there; and `None` when the port does not belong to
    /// the frame's VLAN.
    #[inline]
    pub(super) fn leave(&self, tagging: &Tagging) -> Option<Option<VlanTag>> {
        match self {
            Self::Access(vlan) | Self::Tunnel(vlan) => (*vlan == tagging.vlan).then_some(None),
            Self::Trunk { native, .. } if *native == Some(tagging.vlan) => {
                Some(tagging.on_trunk.filter(|_| tagging.has_inner))
            }
            Self::Trunk { allowed, .. } => {
                allowed.contains(tagging.vlan).then_some(tagging.on_trunk)
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
