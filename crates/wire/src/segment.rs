//! Segmentation: one large frame as the frames that fit the wire (virtio 1.3, section 5.1.6.2,
//! `gso_type`).
//!
//! # How it works
//!
//! Pure: only headers are looked at. [`Segments::plan`] reads them from the frame's private head,
//! checks every field that it relies on, and keeps a copy; [`Segments::next`] then gives one segment
//! after the other as its patched headers and the range of the original frame that is its payload.
//! Whoever copies the payload sums it on the way, and [`Segment::header`] turns that sum into
//! finished headers: one pass over the payload.
//!
//! What changes from segment to segment, and nothing else does:
//!
//! | header | field | in segment n |
//! | --- | --- | --- |
//! | IPv4 | total length, header checksum | its own |
//! | IPv4 | identification | that of the frame + n |
//! | IPv6 | payload length | its own |
//! | TCP | sequence number | that of the frame + the bytes in front |
//! | TCP | CWR | in the first only: it answers one congestion mark (RFC 3168, section 6.1.2) |
//! | TCP | FIN, PSH | in the last only |
//! | UDP | length | its own |
//! | both | checksum | its own |
//!
//! # The checksum
//!
//! The frame's checksum field holds the sum of the pseudo header (section 5.1.6.2). That is where
//! ours starts, with the length corrected, and not at the addresses: with a routing header or a home
//! address option the pseudo header has other addresses than the IPv6 header (RFC 8200, section
//! 8.1; RFC 6275, section 6.3), and the sender knows which.

use std::ops::Range;

use thiserror::Error;

use crate::checksum::{PartialChecksum, Sum, field_value};
use crate::ethernet::EtherType;
use crate::virtio::{Segmentation, SegmentationKind};

/// Most bytes of headers in a segment. Two tags, and IPv4 and TCP with all their options, are 142;
/// the rest is for extension headers of IPv6.
pub const MAX_HEADERS: usize = 256;

/// VLAN tags that a frame may have.
const MAX_TAGS: usize = 2;

/// Protocol numbers (IANA).
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Where fields are, from the start of their header.
mod field {
    pub(super) const IPV4_TOTAL_LENGTH: usize = 2;
    pub(super) const IPV4_IDENTIFICATION: usize = 4;
    pub(super) const IPV4_FRAGMENT: usize = 6;
    pub(super) const IPV4_PROTOCOL: usize = 9;
    pub(super) const IPV4_CHECKSUM: usize = 10;
    pub(super) const IPV6_PAYLOAD_LENGTH: usize = 4;
    pub(super) const IPV6_NEXT_HEADER: usize = 6;
    pub(super) const TCP_SEQUENCE: usize = 4;
    pub(super) use super::TCP_DATA_OFFSET;
    pub(super) const TCP_FLAGS: usize = 13;
    pub(super) const TCP_CHECKSUM: usize = 16;
    pub(super) const UDP_LENGTH: usize = 4;
    pub(super) const UDP_CHECKSUM: usize = 6;
}

const ETHERTYPE_AT: usize = 12;
const IPV4_HEADER_SIZE: usize = 20;
const IPV6_HEADER_SIZE: usize = 40;
pub(crate) const TCP_HEADER_SIZE: usize = 20;
pub(crate) const UDP_HEADER_SIZE: usize = 8;
/// Where the length of a TCP header is, in words, in the upper half of the byte.
pub(crate) const TCP_DATA_OFFSET: usize = 12;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Why a frame cannot be segmented: its headers are not what its virtio-net header says, or
/// contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SegmentFault {
    /// The headers do not end within the bytes that are looked at.
    #[error(
        "the headers go on behind the frame's first {looked_at} bytes; at most {MAX_HEADERS} are \
         supported, and no more than the frame has"
    )]
    HeadersTooLong {
        /// Bytes of the frame that were looked at.
        looked_at: usize,
    },
    /// Neither IPv4 nor IPv6, behind at most two tags.
    #[error("a frame of type {ethertype} cannot be segmented: only IPv4 and IPv6 can")]
    NotIp {
        /// What the frame is instead.
        ethertype: EtherType,
    },
    /// The IP header is of another version than the Ethernet header or `gso_type` says.
    #[error("IP version {found} where {expected} was announced")]
    IpVersion {
        /// The version that was found.
        found: u8,
        /// The version announced.
        expected: u8,
    },
    /// A header that says it is shorter than its fixed part.
    #[error("the {header} header's length field says {bytes} bytes, less than its fixed part")]
    HeaderTooShort {
        /// `IPv4` or `TCP`.
        header: &'static str,
        /// Bytes that it says.
        bytes: usize,
    },
    /// A fragment: most of its headers are in another frame.
    #[error("an IP fragment cannot be segmented")]
    Fragment,
    /// Not the protocol of `gso_type`, or behind a header that cannot be repeated.
    #[error("IP protocol {found} where gso_type announces {expected}")]
    Protocol {
        /// What was found (IANA protocol numbers).
        found: u8,
        /// What `gso_type` says.
        expected: u8,
    },
    /// A length field that contradicts the frame.
    #[error("the {header} length field says {said} bytes, but there are {actual}")]
    Length {
        /// `IP` or `UDP`.
        header: &'static str,
        /// Bytes that it says.
        said: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// The partial checksum is not that of the transport header.
    #[error(
        "csum_start {start} and csum_offset {offset}, where the headers have their checksum at \
         {transport} and {checksum}"
    )]
    ChecksumPlace {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Where the transport header is.
        transport: usize,
        /// Where in it the checksum is.
        checksum: usize,
    },
    /// A segment would be longer than IP's length field can say.
    #[error("segments of {bytes} bytes of IP do not fit IP's length field")]
    SegmentTooLong {
        /// What the length field would have to say.
        bytes: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Network {
    Ipv4 {
        /// Of the frame.
        identification: u16,
        /// Of the fields that all segments share.
        sum: Sum,
    },
    Ipv6,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp {
        /// Of the frame.
        sequence: u32,
        /// Of the frame.
        flags: u8,
    },
    Udp,
}

/// The segments of a frame, one after the other.
#[derive(Clone, Debug)]
pub struct Segments {
    /// Those of the frame, and later those of the last segment: each segment overwrites all fields
    /// that may differ.
    headers: [u8; MAX_HEADERS],
    header_len: usize,
    network: Network,
    network_at: usize,
    transport: Transport,
    transport_at: usize,
    /// Of the pseudo header without its length, and of the fields of the transport header that all
    /// segments share.
    sum: Sum,
    /// Bytes of payload in the frame.
    payload_len: usize,
    /// Bytes of payload in a segment, but for the last.
    segment_len: usize,
    /// The number of the next segment.
    next: usize,
}

/// One segment, which still lacks its checksum.
#[derive(Debug)]
pub struct Segment<'a> {
    header: &'a [u8],
    checksum_at: usize,
    sum: Sum,
    payload: Range<usize>,
}

impl Segments {
    /// Reads the headers at the start of a frame of `frame_len` bytes. `head` is private and holds
    /// the frame's first bytes: [`MAX_HEADERS`] of them, or all. More are not looked at.
    ///
    /// The IP length field may be 0, as drivers leave it that have the device fill it in, and the
    /// frame may be longer than it says: Ethernet pads.
    pub fn plan(
        head: &[u8],
        frame_len: usize,
        segmentation: Segmentation,
        checksum: PartialChecksum,
    ) -> Result<Self, SegmentFault> {
        let mut headers = [0; MAX_HEADERS];
        let looked_at = head.len().min(MAX_HEADERS).min(frame_len);
        headers.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        let mut fields = Fields { bytes: &mut headers, looked_at };

        let (ethertype, network_at) = fields.ethernet()?;
        let ip_version = match ethertype {
            EtherType::IPV4 => 4,
            EtherType::IPV6 => 6,
            _ => return Err(SegmentFault::NotIp { ethertype }),
        };
        let announced = match segmentation.kind {
            SegmentationKind::Tcp4 => 4,
            SegmentationKind::Tcp6 => 6,
            SegmentationKind::Udp => ip_version,
        };
        let [version_byte] = fields.get(network_at)?;
        for found in [ip_version, version_byte >> 4] {
            if found != announced {
                return Err(SegmentFault::IpVersion { found, expected: announced });
            }
        }
        let ip_room = frame_len.saturating_sub(network_at);
        let (network, found, transport_at, ip_len) = if ip_version == 4 {
            fields.ipv4(network_at, ip_room)?
        } else {
            fields.ipv6(network_at, ip_room)?
        };
        let expected = match segmentation.kind {
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => protocol::TCP,
            SegmentationKind::Udp => protocol::UDP,
        };
        if found != expected {
            return Err(SegmentFault::Protocol { found, expected });
        }
        let ip_end = network_at + ip_len;
        let (transport, header_len) = match segmentation.kind {
            SegmentationKind::Udp => fields.udp(transport_at, ip_end)?,
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => fields.tcp(transport_at)?,
        };
        if header_len > ip_end {
            let (said, actual) = (ip_len, header_len - network_at);
            return Err(SegmentFault::Length { header: "IP", said, actual });
        }

        let checksum_field = transport.checksum_field();
        let PartialChecksum { start, offset } = checksum;
        if usize::from(start) != transport_at || usize::from(offset) != checksum_field {
            return Err(SegmentFault::ChecksumPlace {
                start,
                offset,
                transport: transport_at,
                checksum: checksum_field,
            });
        }
        let pseudo = u16::from_be_bytes(fields.get(transport_at + checksum_field)?);
        fields.clear_own(&transport, transport_at);
        let mut sum = Sum::new();
        sum.add(headers.get(transport_at..header_len).unwrap_or_default());
        sum.add_number(pseudo);
        // Less the length that the pseudo header had; a segment adds its own.
        halves((ip_end - transport_at) as u32).into_iter().for_each(|half| sum.add_number(!half));

        let payload_len = ip_end - header_len;
        let segment_len = usize::from(segmentation.size);
        let plan = Self {
            headers,
            header_len,
            network,
            network_at,
            transport,
            transport_at,
            sum,
            payload_len,
            segment_len,
            next: 0,
        };
        let longest = plan.ip_length(payload_len.min(segment_len));
        if u16::try_from(longest).is_err() {
            return Err(SegmentFault::SegmentTooLong { bytes: longest });
        }
        Ok(plan)
    }

    /// Segments in all; at least one.
    pub fn count(&self) -> usize {
        // The size was validated not to be 0.
        self.payload_len.div_ceil(self.segment_len.max(1)).max(1)
    }

    /// Bytes of headers that each segment has, which are those of the frame.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of the longest segment, headers included.
    pub fn longest(&self) -> usize {
        self.header_len + self.payload_len.min(self.segment_len)
    }

    /// Bytes of each segment, headers included, in order.
    pub fn frame_lens(&self) -> impl Iterator<Item = usize> + use<> {
        let (headers, payload, each) = (self.header_len, self.payload_len, self.segment_len);
        (0..self.count()).map(move |number| headers + each.min(payload - number * each))
    }

    /// What the IP length field says of a segment with so much payload.
    fn ip_length(&self, payload: usize) -> usize {
        let counted_from = match self.network {
            Network::Ipv4 { .. } => self.network_at,
            Network::Ipv6 => self.network_at + IPV6_HEADER_SIZE,
        };
        self.header_len - counted_from + payload
    }

    /// The next segment. It borrows the headers, so it has to be done with before the one after it.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "an Iterator's items cannot borrow from it")]
    pub fn next(&mut self) -> Option<Segment<'_>> {
        let number = self.next;
        if number == self.count() {
            return None;
        }
        self.next += 1;
        // At most the payload's length: no overflow.
        let from = number * self.segment_len;
        let to = self.payload_len.min(from + self.segment_len);
        let is_last = to == self.payload_len;

        let ip_length = self.ip_length(to - from) as u16;
        let (network_at, transport_at) = (self.network_at, self.transport_at);
        match self.network {
            Network::Ipv4 { identification, mut sum } => {
                let identification = identification.wrapping_add(number as u16);
                sum.add_number(ip_length);
                sum.add_number(identification);
                self.put(network_at + field::IPV4_TOTAL_LENGTH, ip_length.to_be_bytes());
                self.put(network_at + field::IPV4_IDENTIFICATION, identification.to_be_bytes());
                self.put(network_at + field::IPV4_CHECKSUM, sum.finish().to_be_bytes());
            }
            Network::Ipv6 => {
                self.put(network_at + field::IPV6_PAYLOAD_LENGTH, ip_length.to_be_bytes());
            }
        }
        // Fits, as it is part of what the IP length field counts.
        let transport_len = (self.header_len - transport_at + to - from) as u16;
        let mut sum = self.sum;
        sum.add_number(transport_len);
        match self.transport {
            Transport::Tcp { sequence, mut flags } => {
                if number > 0 {
                    flags &= !TCP_CWR;
                }
                if !is_last {
                    flags &= !(TCP_FIN | TCP_PSH);
                }
                let sequence = sequence.wrapping_add(from as u32);
                halves(sequence).into_iter().for_each(|half| sum.add_number(half));
                sum.add_number(flags.into());
                self.put(transport_at + field::TCP_SEQUENCE, sequence.to_be_bytes());
                self.put(transport_at + field::TCP_FLAGS, [flags]);
            }
            Transport::Udp => {
                sum.add_number(transport_len);
                self.put(transport_at + field::UDP_LENGTH, transport_len.to_be_bytes());
            }
        }
        Some(Segment {
            header: self.headers.get(..self.header_len).unwrap_or_default(),
            checksum_at: transport_at + self.transport.checksum_field(),
            sum,
            payload: self.header_len + from..self.header_len + to,
        })
    }

    #[inline]
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        put(&mut self.headers, at, bytes);
    }
}

impl Segment<'_> {
    /// Where the payload lies in the original frame.
    pub fn payload(&self) -> Range<usize> {
        self.payload.clone()
    }

    /// Bytes of payload.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// The headers, in which only the checksum of the transport header is still missing.
    pub fn header(&self) -> &[u8] {
        self.header
    }

    /// Where in the headers that checksum goes.
    pub fn checksum_at(&self) -> usize {
        self.checksum_at
    }

    /// The checksum, given the sum over the payload as it was copied.
    ///
    /// It is not written to the headers here: a copy of them, by wide loads right after a store of
    /// two bytes, would have to wait for that store.
    #[inline]
    pub fn checksum(&self, payload: Sum) -> [u8; 2] {
        let mut sum = self.sum;
        sum.append(payload);
        field_value(&sum).to_be_bytes()
    }
}

impl Transport {
    const fn checksum_field(&self) -> usize {
        match self {
            Self::Tcp { .. } => field::TCP_CHECKSUM,
            Self::Udp => field::UDP_CHECKSUM,
        }
    }
}

/// Writes bytes into headers. The plan made sure that they lie inside.
#[inline]
fn put<const N: usize>(headers: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = headers.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = bytes;
    }
}

const fn halves(number: u32) -> [u16; 2] {
    [(number >> 16) as u16, number as u16]
}

/// The headers while they are read.
struct Fields<'a> {
    bytes: &'a mut [u8; MAX_HEADERS],
    looked_at: usize,
}

/// What an IP header says: itself, the transport protocol, where its header starts, and how many
/// bytes belong to the IP packet, from the start of its header on.
type Ip = (Network, u8, usize, usize);

impl Fields<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], SegmentFault> {
        let bytes = self.bytes.get(..self.looked_at).and_then(|bytes| bytes.get(at..));
        let bytes = bytes.and_then(<[u8]>::first_chunk).copied();
        bytes.ok_or(SegmentFault::HeadersTooLong { looked_at: self.looked_at })
    }

    fn number(&self, at: usize) -> Result<u16, SegmentFault> {
        self.get(at).map(u16::from_be_bytes)
    }

    /// What the frame carries, and where that starts.
    fn ethernet(&self) -> Result<(EtherType, usize), SegmentFault> {
        let mut at = ETHERTYPE_AT;
        let mut ethertype = EtherType(self.number(at)?);
        for _ in 0..MAX_TAGS {
            if !matches!(ethertype, EtherType::VLAN | EtherType::SERVICE_VLAN) {
                break;
            }
            at += crate::ethernet::TAG_SIZE;
            ethertype = EtherType(self.number(at)?);
        }
        Ok((ethertype, at + size_of::<EtherType>()))
    }

    fn ipv4(&mut self, at: usize, room: usize) -> Result<Ip, SegmentFault> {
        let [first] = self.get(at)?;
        let header_len = usize::from(first & 0xf) * 4;
        if header_len < IPV4_HEADER_SIZE {
            return Err(SegmentFault::HeaderTooShort { header: "IPv4", bytes: header_len });
        }
        // Of the three flags one says that more fragments follow.
        if self.number(at + field::IPV4_FRAGMENT)? & 0x3fff != 0 {
            return Err(SegmentFault::Fragment);
        }
        let ip_len = ip_length(self.number(at + field::IPV4_TOTAL_LENGTH)?.into(), 0, room)?;
        let identification = self.number(at + field::IPV4_IDENTIFICATION)?;
        let [protocol] = self.get(at + field::IPV4_PROTOCOL)?;
        self.clear::<2>(at + field::IPV4_TOTAL_LENGTH);
        self.clear::<2>(at + field::IPV4_IDENTIFICATION);
        self.clear::<2>(at + field::IPV4_CHECKSUM);
        let mut sum = Sum::new();
        sum.add(self.bytes.get(at..at + header_len).unwrap_or_default());
        Ok((Network::Ipv4 { identification, sum }, protocol, at + header_len, ip_len))
    }

    fn ipv6(&self, at: usize, room: usize) -> Result<Ip, SegmentFault> {
        let payload_len = self.number(at + field::IPV6_PAYLOAD_LENGTH)?.into();
        let ip_len = ip_length(payload_len, IPV6_HEADER_SIZE, room)?;
        let [mut next] = self.get(at + field::IPV6_NEXT_HEADER)?;
        let mut end = at + IPV6_HEADER_SIZE;
        // Each extension header is 8 bytes at least, so this ends with what is looked at.
        while let protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION = next {
            let [after, eights] = self.get(end)?;
            next = after;
            end += (usize::from(eights) + 1) * 8;
        }
        if next == protocol::FRAGMENT {
            return Err(SegmentFault::Fragment);
        }
        Ok((Network::Ipv6, next, end, ip_len))
    }

    /// The transport header at `at`, and where it ends.
    fn tcp(&self, at: usize) -> Result<(Transport, usize), SegmentFault> {
        let sequence = u32::from_be_bytes(self.get(at + field::TCP_SEQUENCE)?);
        let [offset, flags] = self.get(at + field::TCP_DATA_OFFSET)?;
        let bytes = usize::from(offset >> 4) * 4;
        if bytes < TCP_HEADER_SIZE {
            return Err(SegmentFault::HeaderTooShort { header: "TCP", bytes });
        }
        let [_] = self.get(at + bytes - 1)?;
        Ok((Transport::Tcp { sequence, flags }, at + bytes))
    }

    /// The transport header at `at`, and where it ends.
    fn udp(&self, at: usize, ip_end: usize) -> Result<(Transport, usize), SegmentFault> {
        let [_] = self.get(at + UDP_HEADER_SIZE - 1)?;
        let said = self.number(at + field::UDP_LENGTH)?.into();
        let actual = ip_end.saturating_sub(at);
        if said != actual {
            return Err(SegmentFault::Length { header: "UDP", said, actual });
        }
        Ok((Transport::Udp, at + UDP_HEADER_SIZE))
    }

    /// Zeroes the fields of the transport header that each segment has its own of.
    fn clear_own(&mut self, transport: &Transport, at: usize) {
        self.clear::<2>(at + transport.checksum_field());
        match transport {
            Transport::Tcp { .. } => {
                self.clear::<4>(at + field::TCP_SEQUENCE);
                self.clear::<1>(at + field::TCP_FLAGS);
            }
            Transport::Udp => self.clear::<2>(at + field::UDP_LENGTH),
        }
    }

    fn clear<const N: usize>(&mut self, at: usize) {
        put(self.bytes, at, [0; N]);
    }
}

/// Bytes of the IP packet: what its length field says, which does not count the first `uncounted`
/// bytes; all of the `room` that the frame has, when it says 0.
fn ip_length(said: usize, uncounted: usize, room: usize) -> Result<usize, SegmentFault> {
    match said {
        0 => Ok(room),
        said if said + uncounted <= room => Ok(said + uncounted),
        said => {
            Err(SegmentFault::Length { header: "IP", said, actual: room.saturating_sub(uncounted) })
        }
    }
}

#[cfg(test)]
mod tests;
