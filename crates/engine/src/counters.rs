//! What an app counts. Counters are plain numbers, private to the worker while it breathes; control
//! gets a copy between breaths, so that counting costs an addition and nothing else.

use std::ops::{AddAssign, Index, IndexMut};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])* $name,)*
        }

        impl DropReason {
            /// All of them, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name that reports use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header.
    TooShort = "too_short",
    /// Longer than 64 KiB and its headers.
    TooLong = "too_long",
    /// Larger than the port's MTU.
    OverMtu = "over_mtu",
    /// The virtio-net header asks for what is not there or was not negotiated.
    BadHeader = "bad_header",
    /// The frame is to be segmented, but its own headers are not what its virtio-net header says.
    BadSegmentation = "bad_segmentation",
    /// The source address is a group's.
    BadSource = "bad_source",
    /// To 01:80:C2:00:00:0x, which bridges keep to themselves.
    ReservedAddress = "reserved_address",
    /// The destination is where the frame came from.
    SamePort = "same_port",
    /// Nothing is linked where the frame was to go.
    NoDestination = "no_destination",
    /// The links lead back to an app that the frame is on its way through.
    Loop = "loop",
    /// The sender's ring is disabled: its frames are consumed and discarded.
    SenderDisabled = "sender_disabled",
    /// The receiver is not connected, or its ring is disabled.
    ReceiverDown = "receiver_down",
    /// The receiver had no buffers, for too long.
    ReceiverFull = "receiver_full",
    /// The receiver's buffers are too small for the frame, and may not be merged.
    BufferTooSmall = "buffer_too_small",
    /// The kernel refused the frame.
    Refused = "refused",
    /// The app that the frame was given to has failed.
    AppFailed = "app_failed",
}

/// Frames and their bytes, without the virtio-net header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes of Ethernet frames.
    pub bytes: u64,
}

impl Traffic {
    /// Counts one frame.
    #[inline]
    pub fn count(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

/// The counters of one app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What came in from outside.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts a drop.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self[reason] += 1;
    }

    /// The reasons that occurred, and how often.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let all = DropReason::ALL.iter().map(|reason| (*reason, self[*reason]));
        all.filter(|(_, count)| *count > 0)
    }
}

/// What the parts of an app counted, together.
impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        for (sum, part) in [(&mut self.received, other.received), (&mut self.sent, other.sent)] {
            sum.frames += part.frames;
            sum.bytes += part.bytes;
        }
        for (reason, count) in other.drops() {
            self[reason] += count;
        }
    }
}

impl Index<DropReason> for Counters {
    type Output = u64;

    fn index(&self, reason: DropReason) -> &u64 {
        &self.drops[reason as usize]
    }
}

impl IndexMut<DropReason> for Counters {
    fn index_mut(&mut self, reason: DropReason) -> &mut u64 {
        &mut self.drops[reason as usize]
    }
}
