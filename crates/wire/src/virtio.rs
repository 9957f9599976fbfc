//! virtio-net: feature bits and the header in front of every frame (virtio 1.3, section 5.1).

mod features;
mod header;
mod status;

pub use features::Features;
pub use header::{HeaderFault, NetHeader, Offload, Segmentation, SegmentationKind, WireCost};
pub use status::DeviceStatus;

pub use crate::checksum::PartialChecksum;
