//! A queue pair of a [`Server`](super::Server): frames in, frames out.

use memory::{GuestMemory, WriteCursor};
use thiserror::Error;
use virtqueue::Violation;
use wire::ethernet;
use wire::virtio::{Features, HeaderFault, NetHeader};

use super::running::FOREIGN;
use super::server::is_cut_off;
use super::{HeldChain, RunningRing};

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
    /// When the memory was last found to be whole.
    pub(super) whole: u64,
}

/// A frame that was taken from the guest. To be given back to the pair that it was taken from, before
/// [`process`](super::BackEnd::process) returns: by [`Pair::complete`], or by [`Pair::put_back`].
#[must_use = "a frame that is not given back is lost to the guest"]
#[derive(Debug)]
pub struct Taken {
    /// Its virtio-net header, which was checked, or why the frame must be dropped.
    pub header: Result<NetHeader, FrameFault>,
    /// Whether it may pass. If not, the ring is disabled, and what is sent on it goes nowhere.
    pub may_pass: bool,
    chain: HeldChain,
}

/// A frame from the guest that cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameFault {
    /// Less than a virtio-net header and an Ethernet header.
    #[error(
        "{len} bytes are less than a virtio-net header and an Ethernet header (virtio 1.3, 5.1.6)"
    )]
    Short {
        /// Bytes that there are, the virtio-net header included.
        len: u64,
    },
    /// More than was asked for.
    #[error("a frame of {len} bytes, and the limit is {limit}")]
    Long {
        /// Bytes of the frame, as far as its descriptors say.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// Its memory is gone, and what was read is zeros. The connection ends when
    /// [`process`](super::BackEnd::process) returns.
    #[error("the front end cut off memory that it had shared")]
    CutOff,
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
        let mut list = std::mem::take(&mut ring.readable);
        let slices = list.lend();
        let most = u32::try_from(header_size.saturating_add(limit)).unwrap_or(u32::MAX);
        let Some(chain) = ring.take_readable(&mut translator, most, slices)? else {
            ring.readable = list;
            return Ok(None);
        };
        let mut header = [0; NetHeader::SIZE];
        let mut header_len = 0;
        frame.clear();
        for slice in &*slices {
            // The header may be cut into pieces in any way (ANY_LAYOUT, VERSION_1).
            let rest = header.get_mut(header_len..header_size).unwrap_or_default();
            let in_header = slice.copy_to(rest);
            header_len += in_header;
            let slice = slice.skip(in_header);
            let start = frame.len();
            frame.resize(start + slice.len(), 0);
            slice.copy_to(&mut frame[start..]);
        }
        ring.readable = list;
        let len = chain.bytes().saturating_sub(header_size as u64);
        let header = if is_cut_off(self.memory, self.whole) {
            Err(FrameFault::CutOff)
        } else if len < ethernet::HEADER_SIZE as u64 {
            Err(FrameFault::Short { len: chain.bytes() })
        } else if len > limit as u64 {
            Err(FrameFault::Long { len, limit })
        } else {
            let header = NetHeader::from_bytes(&header);
            header.offload(frame.len(), self.features).map(|_| header).map_err(FrameFault::from)
        };
        Ok(Some(Taken { header, may_pass: ring.is_enabled(), chain }))
    }

    /// Gives a frame's buffers back to the guest: it was sent, or dropped. Frames may be completed in any
    /// order; the guest gets their buffers back in the order in which it sent them.
    ///
    /// # Panics
    ///
    /// The frame is another pair's, or was kept when `process` returned.
    #[track_caller]
    pub fn complete(&mut self, taken: Taken) {
        self.transmit.as_mut().expect(FOREIGN).give_back(taken.chain, 0);
    }

    /// Leaves the frame that was taken last in the ring, to be taken again. Several are put back from
    /// the last to the first.
    ///
    /// # Panics
    ///
    /// Another one was taken since and not put back, or the frame is another pair's, or was kept when
    /// `process` returned.
    #[track_caller]
    pub fn put_back(&mut self, taken: Taken) {
        self.transmit.as_mut().expect(FOREIGN).put_back(taken.chain);
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
        let most = if can_merge { usize::from(ring.size()) } else { 1 };
        let needed = (header_size + frame.len()) as u64;
        let mut translator = self.memory.translator();
        let mut list = std::mem::take(&mut ring.writable);
        let slices = list.lend();
        let mut chains = std::mem::take(&mut ring.chains);
        let mut room = 0;
        let gathered = loop {
            if room >= needed {
                break Ok(Delivery::Done);
            }
            if chains.len() == most {
                break Ok(Delivery::TooLong);
            }
            let rest = u32::try_from(needed - room).unwrap_or(u32::MAX);
            match ring.take_writable(&mut translator, rest, slices) {
                Ok(Some(chain)) => {
                    room += chain.bytes();
                    chains.push(chain);
                }
                Ok(None) => break Ok(Delivery::NoRoom),
                Err(violation) => break Err(violation),
            }
        };
        if gathered == Ok(Delivery::Done) {
            let header = NetHeader { num_buffers: chains.len() as u16, ..header };
            let mut cursor = WriteCursor::new(slices);
            cursor.write(header.to_bytes()[..header_size].into());
            cursor.write(frame.into());
            let mut rest = needed;
            for chain in chains.drain(..) {
                let written = rest.min(chain.bytes());
                ring.give_back(chain, written as u32);
                rest -= written;
            }
        }
        // What was not enough.
        chains.drain(..).rev().for_each(|chain| ring.put_back(chain));
        ring.writable = list;
        ring.chains = chains;
        gathered
    }
}
