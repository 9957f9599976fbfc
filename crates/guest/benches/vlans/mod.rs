//! The VLANs that two guests may be in, and the tags that their frames have for that.

use std::sync::Arc;

use apps::bridge::vlan::Membership;
use wire::ethernet::VlanTag;

use crate::switch::{Frame, VLAN};

/// What two guests have to do with VLANs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Vlans {
    /// The bridge has none.
    None,
    /// Both are in one, without a tag.
    Access,
    /// The second one is on a trunk: each frame gets a tag, or loses it.
    Trunk,
}

impl Vlans {
    /// By the number of the port; empty for a bridge without VLANs.
    pub fn memberships(self) -> Vec<Membership> {
        let allowed = Arc::new([VLAN].into_iter().collect());
        let trunk = Membership::Trunk { native: None, allowed, is_service: false };
        match self {
            Self::None => vec![],
            Self::Access => vec![Membership::Access(VLAN); 2],
            Self::Trunk => vec![Membership::Access(VLAN), trunk],
        }
    }

    /// A frame as it is sent by the guest on port `from`, and comes out at the other one.
    pub fn tag(self, frame: Frame, from: usize) -> Frame {
        if self != Self::Trunk {
            return frame;
        }
        let Frame { header, sent, .. } = frame;
        let tag = VlanTag::customer(VLAN).to_bytes();
        let tagged = [&sent[..12], &tag, &sent[12..]].concat();
        let [sent, received] = if from == 1 { [tagged, sent] } else { [sent, tagged] };
        Frame { header, sent, received }
    }
}
