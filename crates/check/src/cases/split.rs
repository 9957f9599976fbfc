//! Split rings.

use wire::virtio::Features;

use crate::case::{Rule, case};

pub(crate) const CASES: &[Rule] =
    &[case("passes a frame on in both directions.", "virtio 1.3, 2.7", |bench| {
        bench.rig(Features::NONE)?.exchange(100)
    })];
