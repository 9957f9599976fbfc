//! The header in front of every frame, and its validated form.
//!
//! A header is a guest's word. It is read once, checked once by [`NetHeader::offload`], and from
//! then on only the [`Offload`] is used: what is still to be done to the frame, each part known to
//! lie inside it and to have been negotiated.

use super::Features;
use crate::checksum::PartialChecksum;
use crate::ethernet;
use crate::segment::{MAX_HEADERS, TCP_DATA_OFFSET, TCP_HEADER_SIZE, UDP_HEADER_SIZE};

/// `struct virtio_net_hdr` (virtio 1.3, section 5.1.6), little-endian in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// [`NetHeader::NEEDS_CSUM`], [`NetHeader::DATA_VALID`] and others.
    pub flags: u8,
    /// Which segmentation the frame needs, with [`NetHeader::GSO_ECN`] as a modifier.
    pub gso_type: u8,
    /// Bytes of the protocol headers that every segment repeats. Only a hint.
    pub hdr_len: u16,
    /// Bytes of payload per segment.
    pub gso_size: u16,
    /// Where to start summing, from the start of the frame.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
    /// How many buffers a received frame fills. Absent from the legacy header.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Bytes with VERSION_1 or MRG_RXBUF.
    pub const SIZE: usize = 12;
    /// Bytes without either: `num_buffers` is absent.
    pub const LEGACY_SIZE: usize = 10;

    /// `flags`: the checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// `flags`: the checksum was verified. Only a device may say so.
    pub const DATA_VALID: u8 = 2;

    /// `gso_type`: not segmented.
    pub const GSO_NONE: u8 = 0;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `gso_type`: UDP, to be fragmented (legacy).
    pub const GSO_UDP: u8 = 3;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// `gso_type`: UDP, to be cut into datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// `gso_type`, modifier: the TCP segment has ECN bits.
    pub const GSO_ECN: u8 = 0x80;

    /// Bytes of the header in memory with these acknowledged features.
    pub const fn size(acked: Features) -> usize {
        if acked.intersects(Features::VERSION_1.union(Features::MRG_RXBUF)) {
            Self::SIZE
        } else {
            Self::LEGACY_SIZE
        }
    }

    /// Decodes a header. A legacy header is filled up with zeros.
    pub const fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Encodes the header. Of a legacy header only the first ten bytes are used.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// Checks this header of a frame that came from a driver (section 5.1.6.2): what is asked for
    /// must lie inside the frame's `frame_len` bytes and be among the sender's acknowledged
    /// features. Unknown flags are ignored, as the specification asks; so is DATA_VALID, which a
    /// driver may not set.
    pub fn offload(&self, frame_len: usize, acked: Features) -> Result<Offload, HeaderFault> {
        let checksum = self.checksum(frame_len, acked)?;
        let segmentation = match self.gso_type {
            Self::GSO_NONE => None,
            _ if checksum.is_none() => return Err(HeaderFault::SegmentationWithoutChecksum),
            _ => Some(self.segmentation(frame_len, acked)?),
        };
        Ok(Offload { checksum, segmentation })
    }

    fn checksum(
        &self,
        frame_len: usize,
        acked: Features,
    ) -> Result<Option<PartialChecksum>, HeaderFault> {
        if self.flags & Self::NEEDS_CSUM == 0 {
            return Ok(None);
        }
        if !acked.contains(Features::CSUM) {
            return Err(HeaderFault::ChecksumNotNegotiated);
        }
        let partial = PartialChecksum { start: self.csum_start, offset: self.csum_offset };
        // Completing a checksum must not rewrite the addresses and the tag that the frame was
        // forwarded by. No driver sums from there: an IP header lies in between.
        if usize::from(partial.start) < ethernet::MAX_HEADER_SIZE {
            return Err(HeaderFault::ChecksumInEthernetHeader { start: partial.start });
        }
        if partial.end() > frame_len {
            let PartialChecksum { start, offset } = partial;
            return Err(HeaderFault::ChecksumBeyondFrame { start, offset, frame_len });
        }
        Ok(Some(partial))
    }

    fn segmentation(&self, frame_len: usize, acked: Features) -> Result<Segmentation, HeaderFault> {
        let ecn = self.gso_type & Self::GSO_ECN != 0;
        let (kind, needs) = match self.gso_type & !Self::GSO_ECN {
            Self::GSO_TCPV4 => (SegmentationKind::Tcp4, Features::HOST_TSO4),
            Self::GSO_TCPV6 => (SegmentationKind::Tcp6, Features::HOST_TSO6),
            Self::GSO_UDP_L4 if !ecn => (SegmentationKind::Udp, Features::HOST_USO),
            _ => {
                return Err(HeaderFault::SegmentationUnknown { gso_type: self.gso_type });
            }
        };
        let needs = if ecn { needs | Features::HOST_ECN } else { needs };
        if !acked.contains(needs) {
            return Err(HeaderFault::SegmentationNotNegotiated { needs: needs.without(acked) });
        }
        if self.gso_size == 0 {
            return Err(HeaderFault::SegmentSizeZero);
        }
        // The hint is not trusted, but what leaves here must at least lie inside the frame.
        let header_hint = self.hdr_len.min(u16::try_from(frame_len).unwrap_or(u16::MAX));
        Ok(Segmentation { kind, ecn, size: self.gso_size, header_hint })
    }
}

/// What is still to be done to a frame before it can travel on a plain wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete.
    pub checksum: Option<PartialChecksum>,
    /// The cut into segments. Only ever together with `checksum`.
    pub segmentation: Option<Segmentation>,
}

/// A cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The protocols that are cut.
    pub kind: SegmentationKind,
    /// The frame has ECN bits, which the segments do not simply repeat.
    pub ecn: bool,
    /// Bytes of payload per segment, at least 1.
    pub size: u16,
    /// What the sender says the length of the headers is. At most the frame's length.
    pub header_hint: u16,
}

impl Segmentation {
    /// Bytes of headers in front of what is cut, as far as `head` has them.
    fn headers(&self, checksum: PartialChecksum, head: &[u8]) -> usize {
        // Where a transport header starts, its checksum does.
        let start = usize::from(checksum.start);
        let transport = match self.kind {
            SegmentationKind::Udp => UDP_HEADER_SIZE,
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => {
                let offset = head.get(start + TCP_DATA_OFFSET).map_or(0, |byte| byte >> 4);
                (usize::from(offset) * 4).max(TCP_HEADER_SIZE)
            }
        };
        // Nobody repeats longer ones.
        (start + transport).min(MAX_HEADERS)
    }

    /// See [`Offload::cost`].
    #[inline(never)]
    fn cost(&self, checksum: PartialChecksum, head: &[u8], frame_len: usize) -> WireCost {
        let headers = self.headers(checksum, head);
        let payload = frame_len.saturating_sub(headers);
        let frames = payload.div_ceil(usize::from(self.size).max(1)).max(1);
        WireCost { frames: frames as u64, bytes: (frame_len + (frames - 1) * headers) as u64 }
    }
}

/// What a frame costs on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCost {
    /// Frames that it becomes.
    pub frames: u64,
    /// Bytes of those, with the headers that each has.
    pub bytes: u64,
}

impl std::ops::AddAssign for WireCost {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// The protocols of a segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: the header does not say over which.
    Udp,
}

impl Offload {
    /// Nothing to do: the frame is complete.
    pub const NONE: Self = Self { checksum: None, segmentation: None };

    /// Whether there is nothing to do.
    #[inline]
    pub fn is_none(&self) -> bool {
        // Nothing is ever cut whose checksum need not be completed.
        debug_assert!(self.checksum.is_some() || self.segmentation.is_none());
        self.checksum.is_none()
    }

    /// The same for a frame whose headers got longer by `by` bytes in front of what this is about, or shorter.
    /// `None` when that would be in the Ethernet header, or too far behind.
    pub fn moved(mut self, by: i16) -> Option<Self> {
        if let Some(checksum) = &mut self.checksum {
            checksum.start = checksum.start.checked_add_signed(by)?;
            if usize::from(checksum.start) < ethernet::HEADER_SIZE {
                return None;
            }
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.header_hint = segmentation.header_hint.saturating_add_signed(by);
        }
        Some(self)
    }

    /// What the header in these bytes, as long as a sender's headers are, asks to be done to its frame of
    /// `frame_len` bytes. See [`NetHeader::offload`].
    #[inline]
    pub fn read(header: &[u8], frame_len: usize, acked: Features) -> Result<Self, HeaderFault> {
        // As good as always.
        if Self::is_none_in(header) {
            return Ok(Self::NONE);
        }
        Self::read_all(header, frame_len, acked)
    }

    /// Whether a header says that there is nothing to do, which takes two bytes to know.
    #[inline(always)]
    pub fn is_none_in(header: &[u8]) -> bool {
        matches!(header, [flags, NetHeader::GSO_NONE, ..] if flags & NetHeader::NEEDS_CSUM == 0)
    }

    #[inline(never)]
    fn read_all(header: &[u8], frame_len: usize, acked: Features) -> Result<Self, HeaderFault> {
        let mut bytes = [0; NetHeader::SIZE];
        for (byte, read) in bytes.iter_mut().zip(header) {
            *byte = *read;
        }
        NetHeader::from_bytes(&bytes).offload(frame_len, acked)
    }

    /// The features that a receiving guest must have acknowledged to take the frame as it is.
    pub fn needs(&self) -> Features {
        let mut needs = Features::NONE;
        if self.checksum.is_some() {
            needs |= Features::GUEST_CSUM;
        }
        if let Some(segmentation) = self.segmentation {
            needs |= match segmentation.kind {
                SegmentationKind::Tcp4 => Features::GUEST_TSO4,
                SegmentationKind::Tcp6 => Features::GUEST_TSO6,
                // Drivers negotiate both or none. To one that has only one of them we send
                // segments, which is always right.
                SegmentationKind::Udp => Features::GUEST_USO4 | Features::GUEST_USO6,
            };
            if segmentation.ecn {
                needs |= Features::GUEST_ECN;
            }
        }
        needs
    }

    /// Bytes of headers in front of what is cut, with a transport header that has no options: the
    /// frame itself is not read. 0 when nothing is to be cut.
    fn header_len(&self) -> usize {
        let (Some(checksum), Some(segmentation)) = (self.checksum, self.segmentation) else {
            return 0;
        };
        // Where a transport header starts, its checksum does.
        usize::from(checksum.start)
            + match segmentation.kind {
                SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => TCP_HEADER_SIZE,
                SegmentationKind::Udp => UDP_HEADER_SIZE,
            }
    }

    /// Bytes of the longest frame that a frame of `frame_len` bytes becomes on a wire, whoever
    /// segments it. Options of TCP are not counted, as the frame is not read.
    #[inline]
    pub fn wire_len(&self, frame_len: usize) -> usize {
        self.segmentation.map_or(frame_len, |segmentation| {
            frame_len.min(self.header_len() + usize::from(segmentation.size))
        })
    }

    /// The same of a frame of which `head` are the first bytes: with the options of TCP, as far as `head` has them.
    pub fn wire_len_of(&self, head: &[u8], frame_len: usize) -> usize {
        match (self.checksum, self.segmentation) {
            (Some(checksum), Some(segmentation)) => {
                let headers = segmentation.headers(checksum, head);
                frame_len.min(headers + usize::from(segmentation.size))
            }
            _ => frame_len,
        }
    }

    /// How many frames a frame of `frame_len` bytes becomes on a wire, whoever segments it. Of TCP
    /// with options it may be one fewer, as the frame is not read.
    pub fn wire_frames(&self, frame_len: usize) -> usize {
        self.segmentation.map_or(1, |segmentation| {
            let payload = frame_len.saturating_sub(self.header_len());
            payload.div_ceil(usize::from(segmentation.size).max(1)).max(1)
        })
    }

    /// What a frame of `frame_len` bytes, of which `head` are the first, costs on a wire, whoever segments
    /// it. The headers' length is the frame's own, as far as `head` has it.
    #[inline]
    pub fn cost(&self, head: &[u8], frame_len: usize) -> WireCost {
        match (self.checksum, self.segmentation) {
            (Some(checksum), Some(segmentation)) => segmentation.cost(checksum, head, frame_len),
            _ => WireCost { frames: 1, bytes: frame_len as u64 },
        }
    }

    /// The header that passes this offload on. `num_buffers` is 1 for a frame in a single chain of
    /// the receiver, and 0 towards a device that transmits it.
    pub fn header(&self, num_buffers: u16) -> NetHeader {
        let mut header = NetHeader { num_buffers, ..NetHeader::default() };
        if let Some(partial) = self.checksum {
            header.flags = NetHeader::NEEDS_CSUM;
            header.csum_start = partial.start;
            header.csum_offset = partial.offset;
        }
        if let Some(segmentation) = self.segmentation {
            header.gso_type = match segmentation.kind {
                SegmentationKind::Tcp4 => NetHeader::GSO_TCPV4,
                SegmentationKind::Tcp6 => NetHeader::GSO_TCPV6,
                SegmentationKind::Udp => NetHeader::GSO_UDP_L4,
            };
            if segmentation.ecn {
                header.gso_type |= NetHeader::GSO_ECN;
            }
            header.gso_size = segmentation.size;
            header.hdr_len = segmentation.header_hint;
        }
        header
    }
}

/// A header that breaks a rule of virtio 1.3, section 5.1.6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// NEEDS_CSUM without CSUM.
    #[error("partial checksum, but CSUM was not negotiated (virtio 5.1.6.2)")]
    ChecksumNotNegotiated,
    /// `csum_start` points into the Ethernet header.
    #[error("csum_start {start} lies inside the Ethernet header (virtio 5.1.6.2)")]
    ChecksumInEthernetHeader {
        /// `csum_start`, in bytes from the start of the frame.
        start: u16,
    },
    /// The checksum field lies outside the frame.
    #[error(
        "csum_start {start} + csum_offset {offset} + 2 is beyond the frame's {frame_len} bytes \
         (virtio 5.1.6.2)"
    )]
    ChecksumBeyondFrame {
        /// `csum_start`, in bytes from the start of the frame.
        start: u16,
        /// `csum_offset`, in bytes from `start`.
        offset: u16,
        /// Bytes of the frame.
        frame_len: usize,
    },
    /// A segmentation without NEEDS_CSUM.
    #[error("gso_type is set, but NEEDS_CSUM is not (virtio 5.1.6.2)")]
    SegmentationWithoutChecksum,
    /// A segmentation that does not exist or is never offered.
    #[error("gso_type 0x{gso_type:02x} is unknown or not offered (virtio 5.1.6.2)")]
    SegmentationUnknown {
        /// `gso_type`, with its modifier.
        gso_type: u8,
    },
    /// A segmentation that was not acknowledged.
    #[error("segmentation needs {needs}, not negotiated (virtio 5.1.6.2)")]
    SegmentationNotNegotiated {
        /// The missing features.
        needs: Features,
    },
    /// Segments without payload would never end.
    #[error("gso_size is 0 (virtio 5.1.6.2)")]
    SegmentSizeZero,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Features = Features::CSUM
        .union(Features::HOST_TSO4)
        .union(Features::HOST_TSO6)
        .union(Features::HOST_ECN)
        .union(Features::HOST_USO);

    /// A TCP segment over IPv4, as Linux sends it.
    const TSO: NetHeader = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_TCPV4,
        hdr_len: 66,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };

    #[test]
    fn bytes_are_little_endian() {
        let bytes = [1, 0x84, 0x42, 0, 0xa8, 5, 34, 0, 16, 0, 2, 1];
        let header = NetHeader::from_bytes(&bytes);
        assert_eq!(header, NetHeader { gso_type: 0x84, num_buffers: 0x102, ..TSO });
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn size_follows_the_features() {
        assert_eq!(NetHeader::size(Features::CSUM), 10);
        assert_eq!(NetHeader::size(Features::MRG_RXBUF), 12);
        assert_eq!(NetHeader::size(Features::VERSION_1), 12);
    }

    #[test]
    fn a_segment_is_understood_and_passed_on() {
        let offload = TSO.offload(60_000, ALL).unwrap();
        assert_eq!(
            offload,
            Offload {
                checksum: Some(PartialChecksum { start: 34, offset: 16 }),
                segmentation: Some(Segmentation {
                    kind: SegmentationKind::Tcp4,
                    ecn: false,
                    size: 1448,
                    header_hint: 66,
                }),
            }
        );
        assert_eq!(offload.header(0), TSO);
        assert_eq!(offload.header(3).num_buffers, 3);
        assert_eq!(offload.needs(), Features::GUEST_CSUM | Features::GUEST_TSO4);
    }

    #[test]
    fn udp_segments_need_both_versions() {
        let header = NetHeader { gso_type: NetHeader::GSO_UDP_L4, csum_offset: 6, ..TSO };
        let offload = header.offload(5000, ALL).unwrap();
        assert_eq!(offload.segmentation.unwrap().kind, SegmentationKind::Udp);
        assert_eq!(offload.header(0), header);
        let both = Features::GUEST_USO4 | Features::GUEST_USO6;
        assert_eq!(offload.needs(), Features::GUEST_CSUM | both);
    }

    #[test]
    fn fields_without_their_flag_are_ignored() {
        let header = NetHeader {
            flags: NetHeader::DATA_VALID | 0xfc,
            hdr_len: 9999,
            gso_size: 9999,
            csum_start: 9999,
            csum_offset: 9999,
            ..NetHeader::default()
        };
        assert_eq!(header.offload(60, Features::NONE), Ok(Offload::NONE));
        assert_eq!(Offload::NONE.header(1), NetHeader { num_buffers: 1, ..NetHeader::default() });
    }

    #[test]
    fn each_rule_has_its_fault() {
        let fault = |header: NetHeader, acked| header.offload(1000, acked).unwrap_err();
        let without = |feature| ALL.without(feature);
        assert_eq!(fault(TSO, without(Features::CSUM)), HeaderFault::ChecksumNotNegotiated);
        for start in [0, 13, 17] {
            assert_eq!(
                fault(NetHeader { csum_start: start, ..TSO }, ALL),
                HeaderFault::ChecksumInEthernetHeader { start }
            );
        }
        assert_eq!(
            fault(NetHeader { csum_start: 983, ..TSO }, ALL),
            HeaderFault::ChecksumBeyondFrame { start: 983, offset: 16, frame_len: 1000 }
        );
        assert!(NetHeader { csum_start: 982, ..TSO }.offload(1000, ALL).is_ok());
        assert_eq!(
            fault(NetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..TSO }, ALL),
            HeaderFault::ChecksumBeyondFrame { start: 65535, offset: 65535, frame_len: 1000 }
        );
        assert_eq!(
            fault(NetHeader { flags: 0, ..TSO }, ALL),
            HeaderFault::SegmentationWithoutChecksum
        );
        for gso_type in [2, 3, 6, 0x7f, 0x80, 0x83, 0x85, 0x21, 0x41, 0xff] {
            assert_eq!(
                fault(NetHeader { gso_type, ..TSO }, ALL),
                HeaderFault::SegmentationUnknown { gso_type }
            );
        }
        for (gso_type, needs) in [
            (NetHeader::GSO_TCPV4, Features::HOST_TSO4),
            (NetHeader::GSO_TCPV6, Features::HOST_TSO6),
            (NetHeader::GSO_TCPV6 | NetHeader::GSO_ECN, Features::HOST_ECN),
            (NetHeader::GSO_UDP_L4, Features::HOST_USO),
        ] {
            assert_eq!(
                fault(NetHeader { gso_type, ..TSO }, without(needs)),
                HeaderFault::SegmentationNotNegotiated { needs }
            );
        }
        assert_eq!(fault(NetHeader { gso_size: 0, ..TSO }, ALL), HeaderFault::SegmentSizeZero);
    }

    #[test]
    fn frames_on_the_wire_are_segments() {
        let wire = |header: NetHeader, frame_len| {
            let offload = header.offload(frame_len, ALL).unwrap();
            (offload.wire_len(frame_len), offload.wire_frames(frame_len))
        };
        let udp = NetHeader { gso_type: NetHeader::GSO_UDP_L4, csum_offset: 6, ..TSO };
        // Ethernet and IPv4 are 34 bytes, TCP 20, UDP 8.
        for (header, headers) in [(TSO, 54), (udp, 42)] {
            assert_eq!(wire(header, headers + 3 * 1448), (headers + 1448, 3));
            assert_eq!(wire(header, headers + 3 * 1448 + 1), (headers + 1448, 4));
            assert_eq!(wire(header, headers + 1448), (headers + 1448, 1));
            assert_eq!(wire(header, headers + 9), (headers + 9, 1));
            assert_eq!(wire(header, headers), (headers, 1));
            let huge = NetHeader { gso_size: u16::MAX, ..header };
            assert_eq!(wire(huge, 65_000), (65_000, 1));
        }
        let whole = NetHeader { gso_type: NetHeader::GSO_NONE, ..TSO };
        assert_eq!(wire(whole, 9000), (9000, 1));
        assert_eq!(wire(NetHeader::default(), 9000), (9000, 1));
        // Headers that say they are longer than the frame.
        let late = NetHeader { csum_start: 982, ..TSO };
        assert_eq!(wire(late, 1000), (1000, 1));
    }

    #[test]
    fn a_frame_costs_what_its_segments_have() {
        let cost = |header: NetHeader, head: &[u8], frame_len| {
            let offload = header.offload(frame_len, ALL).unwrap();
            let WireCost { frames, bytes } = offload.cost(head, frame_len);
            (frames, bytes)
        };
        // Time stamps: 8 words of TCP header.
        let mut head = [0; 128];
        head[34 + 12] = 8 << 4;
        assert_eq!(cost(TSO, &head, 66 + 10 * 1448), (10, 10 * (66 + 1448)));
        assert_eq!(cost(TSO, &head, 66 + 10 * 1448 + 1), (11, 11 * 66 + 10 * 1448 + 1));
        assert_eq!(cost(TSO, &head, 66), (1, 66));
        // One that is not seen has no options, nor has one that says it is shorter than that.
        for head in [&[][..], &[0; 128]] {
            assert_eq!(cost(TSO, head, 54 + 10 * 1448), (10, 10 * (54 + 1448)));
        }
        let udp = NetHeader { gso_type: NetHeader::GSO_UDP_L4, csum_offset: 6, ..TSO };
        assert_eq!(cost(udp, &head, 42 + 2 * 1448), (2, 2 * (42 + 1448)));
        // Without a segmentation it is one frame, whatever is to be summed.
        let whole = NetHeader { gso_type: NetHeader::GSO_NONE, ..TSO };
        assert_eq!(cost(whole, &head, 9000), (1, 9000));
        // Headers that nobody can repeat count as long as they may be.
        let far = NetHeader { csum_start: 60_000, gso_size: 1, ..TSO };
        assert_eq!(cost(far, &head, 65_000).0, 65_000 - MAX_HEADERS as u64);
    }

    #[test]
    fn the_length_hint_is_cut_to_the_frame() {
        let hint = |hdr_len, frame_len| {
            let header = NetHeader { hdr_len, ..TSO };
            header.offload(frame_len, ALL).unwrap().segmentation.unwrap().header_hint
        };
        assert_eq!(hint(u16::MAX, 100), 100);
        assert_eq!(hint(0, 100), 0);
        assert_eq!(hint(u16::MAX, 70_000), u16::MAX);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: [u8; 12]) {
            prop_assert_eq!(NetHeader::from_bytes(&bytes).to_bytes(), bytes);
        }

        /// Whatever was accepted lies inside the frame and is accepted again when passed on.
        #[test]
        fn accepted_offloads_are_sound(
            needs_csum: bool, gso_type in prop::sample::select(vec![0u8, 1, 4, 0x81, 0x84, 3, 5, 0x85]),
            hdr_len: u16, gso_size: u16, csum_start in 0u16..2000, csum_offset in 0u16..100,
            frame_len in 14usize..2000,
        ) {
            let flags = if needs_csum { NetHeader::NEEDS_CSUM } else { 0 };
            let header = NetHeader {
                flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: 0,
            };
            if let Ok(offload) = header.offload(frame_len, ALL) {
                prop_assert!(offload.checksum.is_none_or(|partial| partial.end() <= frame_len));
                prop_assert!(offload.segmentation.is_none() || offload.checksum.is_some());
                prop_assert_eq!(offload.header(0).offload(frame_len, ALL), Ok(offload));
            }
        }
    }
}
