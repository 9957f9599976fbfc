//! What all ports do with a frame before it leaves.

use engine::{DropReason, Frame};
use wire::virtio::{Features, Offload};

/// Longest frame: 64 KiB of IP and the headers in front of it.
pub(crate) const MAX_FRAME: usize = 65535 + 14 + 4 + 4;

/// What has to be done to a frame that its receiver cannot take as it is.
pub(crate) enum Preparation {
    /// Nothing: it goes as it is.
    None,
    /// Its checksum has to be completed.
    CompleteChecksum,
}

/// Decides what a frame needs before a receiver that acknowledged `features` can take it.
#[inline]
pub(crate) fn prepare(offload: &Offload, features: Features) -> Result<Preparation, DropReason> {
    let missing = offload.needs().without(features);
    if missing.is_empty() {
        Ok(Preparation::None)
    } else if offload.segmentation.is_some() {
        Err(DropReason::NeedsSegmentation)
    } else {
        Ok(Preparation::CompleteChecksum)
    }
}

/// Copies a frame into private memory and completes its checksum there. False when the checksum
/// does not lie in the frame.
#[cold]
pub(crate) fn complete_checksum(frame: &Frame<'_>, private: &mut Vec<u8>) -> bool {
    private.clear();
    private.extend_from_slice(frame.head);
    for segment in frame.body {
        let start = private.len();
        private.resize(start + segment.len(), 0);
        segment.copy_to(private.get_mut(start..).unwrap_or_default());
    }
    let Some(partial) = frame.offload.checksum else {
        return false;
    };
    wire::checksum::complete(private, partial)
}
