//! A queue pair of a [`Server`](super::Server): frames in, frames out.

use memory::{GuestMemory, WriteCursor, recycle, recycle_writable};
use thiserror::Error;
use virtqueue::{Chain, Violation};
use wire::virtio::{Features, HeaderFault, NetHeader};

use super::RunningRing;

/// A queue pair. Ring 2i of a device is where pair i receives, as the guest sees it; ring 2i + 1 is
/// where it transmits.
pub struct Pair<'r> {
    /// The guest's memory.
    pub memory: &'r GuestMemory,
    /// The features that the guest has.
    pub features: Features,
    /// Where frames for the guest are written, if that ring runs.
    pub receive: Option<&'r mut RunningRing>,
    /// Where frames from the guest are read, if that ring runs.
    pub transmit: Option<&'r mut RunningRing>,
}

/// A frame that was taken from the guest. To be given back, once: by [`Pair::complete`], or by
/// [`Pair::put_back`].
#[must_use = "a frame that is not given back is lost to the guest"]
#[derive(Debug)]
pub struct Taken {
    /// Its virtio-net header, which was checked, or why the frame must be dropped.
    pub header: Result<NetHeader, FrameFault>,
    /// Whether it may pass. If not, the ring is disabled, and what is sent on it goes nowhere.
    pub may_pass: bool,
    chain: Chain,
}

/// A frame from the guest that cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameFault {
    /// Less than a header.
    #[error("{len} bytes are less than a virtio-net header (virtio 1.3, 5.1.6)")]
    Short {
        /// Bytes that there are.
        len: usize,
    },
    /// More than was asked for.
    #[error("a frame of {len} bytes, and the limit is {limit}")]
    Long {
        /// Bytes of the frame, as far as its descriptors say.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// The header breaks a rule.
    #[error(transparent)]
    Header(#[from] HeaderFault),
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The guest has it, once the rings are published.
    Done,
    /// The ring is stopped or disabled: the frame is to be dropped.
    Off,
    /// There are not enough buffers now.
    NoRoom,
    /// The frame is longer than the guest's buffers can be.
    TooLong,
}

impl Pair<'_> {
    /// Takes the next frame that the guest sends, if there is one, and copies it into `frame`,
    /// without its header. It is read once: what is in `frame` can be judged, and is what was judged
    /// when it is sent on, whatever the guest writes to its buffers meanwhile.
    ///
    /// A frame of more than `limit` bytes is not copied in full, and is said to be faulty.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the ring.
    pub fn take(&mut self, limit: usize, frame: &mut Vec<u8>) -> Result<Option<Taken>, Violation> {
        let Some(ring) = &mut self.transmit else { return Ok(None) };
        let header_size = NetHeader::size(self.features);
        let mut translator = self.memory.translator();
        let mut slices = std::mem::take(&mut ring.readable);
        let most = u32::try_from(header_size + limit).unwrap_or(u32::MAX);
        let Some(chain) = ring.queue.take_readable(&mut translator, most, &mut slices)? else {
            ring.readable = recycle(slices);
            return Ok(None);
        };
        let mut header = [0; NetHeader::SIZE];
        let mut header_len = 0;
        frame.clear();
        for slice in &slices {
            // The header may be cut into pieces in any way (ANY_LAYOUT, VERSION_1).
            let rest = header.get_mut(header_len..header_size).unwrap_or_default();
            let in_header = slice.copy_to(rest);
            header_len += in_header;
            let slice = slice.skip(in_header);
            let start = frame.len();
            frame.resize(start + slice.len(), 0);
            slice.copy_to(&mut frame[start..]);
        }
        ring.readable = recycle(slices);
        let len = chain.bytes().saturating_sub(header_size as u64);
        let header = if header_len < header_size {
            Err(FrameFault::Short { len: header_len })
        } else if len > limit as u64 {
            Err(FrameFault::Long { len, limit })
        } else {
            let header = NetHeader::from_bytes(&header);
            header.offload(frame.len(), self.features).map(|_| header).map_err(FrameFault::from)
        };
        Ok(Some(Taken { header, may_pass: ring.is_enabled(), chain }))
    }

    /// Gives a frame's buffers back to the guest: it was sent, or dropped.
    pub fn complete(&mut self, taken: Taken) {
        if let Some(ring) = &mut self.transmit {
            ring.queue.give_back(taken.chain, 0);
        }
    }

    /// Leaves the frame that was taken last in the ring, to be taken again.
    pub fn put_back(&mut self, taken: Taken) {
        if let Some(ring) = &mut self.transmit {
            ring.queue.untake(&[taken.chain]);
        }
    }

    /// Writes a frame into the guest's buffers: into one of them, or, with MRG_RXBUF, into as many as
    /// it takes (virtio 1.3, 5.1.6.4). `header` must ask for nothing that the guest did not agree to;
    /// its number of buffers is filled in.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the ring.
    pub fn deliver(&mut self, header: NetHeader, frame: &[u8]) -> Result<Delivery, Violation> {
        let Some(ring) = self.receive.as_mut().filter(|ring| ring.is_enabled()) else {
            return Ok(Delivery::Off);
        };
        let header_size = NetHeader::size(self.features);
        let can_merge = self.features.contains(Features::MRG_RXBUF);
        let most = if can_merge { usize::from(ring.queue.size()) } else { 1 };
        let needed = (header_size + frame.len()) as u64;
        let mut translator = self.memory.translator();
        let mut slices = std::mem::take(&mut ring.writable);
        let (chains, mut room) = (&mut ring.chains, 0);
        chains.clear();
        let missing = loop {
            if room >= needed {
                break None;
            }
            if chains.len() == most {
                break Some(Delivery::TooLong);
            }
            let rest = u32::try_from(needed - room).unwrap_or(u32::MAX);
            let Some(chain) = ring.queue.take_writable(&mut translator, rest, &mut slices)? else {
                break Some(Delivery::NoRoom);
            };
            room += chain.bytes();
            chains.push(chain);
        };
        if let Some(missing) = missing {
            ring.queue.untake(chains);
            ring.writable = recycle_writable(slices);
            return Ok(missing);
        }
        let header = NetHeader { num_buffers: chains.len() as u16, ..header };
        let mut cursor = WriteCursor::new(&slices);
        cursor.write(header.to_bytes()[..header_size].into());
        cursor.write(frame.into());
        ring.writable = recycle_writable(slices);
        let mut rest = needed;
        for chain in chains.drain(..) {
            let written = rest.min(chain.bytes());
            ring.queue.give_back(chain, written as u32);
            rest -= written;
        }
        Ok(Delivery::Done)
    }
}
