//! What an app counts. Counters are plain numbers, private to the worker while it breathes; control
//! gets a copy between breaths, so that counting costs an addition and nothing else.

use std::ops::{AddAssign, Index, IndexMut};

use wire::segment::SegmentFault;
use wire::virtio::HeaderFault;

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
    /// Captured only in part.
    Truncated = "truncated",
    /// Larger than the port's MTU.
    OverMtu = "over_mtu",
    /// The virtio-net header has NEEDS_CSUM, but CSUM was not negotiated (virtio 1.3, section
    /// 5.1.6.2, as for the other rules of this header).
    ChecksumNotNegotiated = "checksum_not_negotiated",
    /// `csum_start` points into the Ethernet header.
    ChecksumInEthernetHeader = "checksum_in_ethernet_header",
    /// `csum_start` and `csum_offset` put the checksum outside the frame.
    ChecksumBeyondFrame = "checksum_beyond_frame",
    /// `gso_type` asks for segmentation, but NEEDS_CSUM is not set.
    SegmentationWithoutChecksum = "segmentation_without_checksum",
    /// `gso_type` does not exist, or is never offered.
    SegmentationUnknown = "segmentation_unknown",
    /// `gso_type` was not negotiated.
    SegmentationNotNegotiated = "segmentation_not_negotiated",
    /// `gso_size` is 0.
    SegmentSizeZero = "segment_size_zero",
    /// To be segmented, but the frame's own headers are not of the protocols that `gso_type` says.
    SegmentationMismatch = "segmentation_mismatch",
    /// To be segmented, but a fragment of an IP packet.
    SegmentationOfFragment = "segmentation_of_fragment",
    /// The checksum's place is not that of the frame's own headers, and it is to be segmented, or was judged by those.
    ChecksumMisplaced = "checksum_misplaced",
    /// To be segmented, but the frame's own headers are cut off, too long, or contradict their
    /// lengths.
    MalformedHeaders = "malformed_headers",
    /// To be segmented, but into segments that are longer than IP allows.
    SegmentTooLong = "segment_too_long",
    /// To be segmented for the kernel, but into more segments than one burst may make.
    TooManySegments = "too_many_segments",
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
    /// It has a VLAN tag, and the port takes none.
    Tagged = "tagged",
    /// It is of a VLAN that the port does not belong to, or of none where it has to be of one.
    VlanNotAllowed = "vlan_not_allowed",
    /// To another station than the host, or to one station's IP address in a frame to many.
    NotForHost = "not_for_host",
    /// Neither IP, nor of what finds out who has an IP address.
    NotIp = "not_ip",
    /// ARP or neighbour discovery that breaks the rules.
    BadNeighbourMessage = "bad_neighbour_message",
    /// The neighbour that an IP packet goes to first does not answer, or there is none to send it to.
    NoNeighbour = "no_neighbour",
    /// The receiver is a port that only sends.
    SendOnly = "send_only",
    /// The kernel refused the frame.
    Refused = "refused",
    /// Beyond the rate that the port may send or get.
    Policed = "policed",
    /// From an address that the port may not use.
    Spoofed = "spoofed",
    /// One of too many frames to a group.
    Storm = "storm",
    /// Lost on purpose.
    Impaired = "impaired",
    /// What keeps frames back for a while has no room for it.
    DelayFull = "delay_full",
    /// It came from where a mirror's copies go, which is not there to send.
    FromMirror = "from_mirror",
    /// A filter does not accept it.
    Filtered = "filtered",
    /// A filter needs to see more of the frame than is ever private.
    FilterTooDeep = "filter_too_deep",
    /// The app that the frame was given to has failed.
    AppFailed = "app_failed",
    /// It waited in an app that was taken out, or came to one that was about to be.
    Stopped = "stopped",
}

/// Found where a frame comes from.
impl From<HeaderFault> for DropReason {
    fn from(fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::ChecksumNotNegotiated => Self::ChecksumNotNegotiated,
            HeaderFault::ChecksumInEthernetHeader { .. } => Self::ChecksumInEthernetHeader,
            HeaderFault::ChecksumBeyondFrame { .. } => Self::ChecksumBeyondFrame,
            HeaderFault::SegmentationWithoutChecksum => Self::SegmentationWithoutChecksum,
            HeaderFault::SegmentationUnknown { .. } => Self::SegmentationUnknown,
            HeaderFault::SegmentationNotNegotiated { .. } => Self::SegmentationNotNegotiated,
            HeaderFault::SegmentSizeZero => Self::SegmentSizeZero,
        }
    }
}

/// Found where a frame goes to, and only if that is where it has to be segmented.
impl From<SegmentFault> for DropReason {
    fn from(fault: SegmentFault) -> Self {
        match fault {
            SegmentFault::NotIp { .. }
            | SegmentFault::IpVersion { .. }
            | SegmentFault::Protocol { .. } => Self::SegmentationMismatch,
            SegmentFault::Fragment => Self::SegmentationOfFragment,
            SegmentFault::ChecksumPlace { .. } => Self::ChecksumMisplaced,
            SegmentFault::HeadersTooLong { .. }
            | SegmentFault::HeaderTooShort { .. }
            | SegmentFault::Length { .. } => Self::MalformedHeaders,
            SegmentFault::SegmentTooLong { .. } => Self::SegmentTooLong,
        }
    }
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

impl AddAssign for Traffic {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// The counters of one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// What came in from outside.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        // There are more reasons than an array may have elements to have a default of its own.
        let (received, sent) = (Traffic::default(), Traffic::default());
        Self { received, sent, drops: [0; DropReason::ALL.len()] }
    }
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
        self.received += other.received;
        self.sent += other.sent;
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
