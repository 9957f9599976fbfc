//! A virtio-net driver: frames in, frames out.

use std::sync::Arc;

use memory::{Fault, GuestAddress, GuestMemory, SliceList, WriteCursor, WriteSlice};
use thiserror::Error;
use virtqueue::{Buffer, DriverQueue, Form, Layout, LayoutError, Violation};
use wire::virtio::{Features, NetHeader};

use crate::layout::{PairLayout, RECEIVE_BUFFER, RingAddresses, RingLayout, TRANSMIT_BUFFER};

/// Why the driver gave up.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The rings do not fit the memory.
    #[error("the rings do not fit the guest's memory: {0}")]
    Layout(LayoutError),
    /// A buffer is not in the memory.
    #[error("a buffer is not in the guest's memory: {0}")]
    Memory(Fault),
    /// The device broke a rule of the ring.
    #[error("the back end broke a rule of the ring: {0}")]
    Device(Violation),
    /// A ring that is to become larger than the memory that was laid out for it.
    #[error("a ring of {size} entries does not fit where there is room for {most}")]
    RingSize {
        /// Entries that were asked for.
        size: u16,
        /// Entries that there is room for.
        most: u16,
    },
    /// A frame that no transmit buffer holds.
    #[error("a frame of {len} bytes does not fit a transmit buffer, which takes {most}")]
    FrameTooLong {
        /// Bytes of the frame.
        len: usize,
        /// What [`NetDriver::max_frame`] says.
        most: usize,
    },
    /// The device says that a frame fills no buffer, or more than it used.
    #[error("the back end delivered a frame in {num_buffers} buffers, of which {found} came")]
    Merge {
        /// As its header says.
        num_buffers: u16,
        /// Buffers that were used.
        found: u16,
    },
    /// The device used a buffer for less than a header, or more than it holds.
    #[error("the back end wrote {written} bytes to a receive buffer of {RECEIVE_BUFFER}")]
    Length {
        /// As the used ring says.
        written: u32,
    },
}

impl From<LayoutError> for DriverError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<Fault> for DriverError {
    fn from(fault: Fault) -> Self {
        Self::Memory(fault)
    }
}

impl From<Violation> for DriverError {
    fn from(violation: Violation) -> Self {
        Self::Device(violation)
    }
}

/// A frame that came, valid until it is handed back by the end of the callback.
pub struct Received<'a> {
    /// The virtio-net header.
    pub header: NetHeader,
    /// The Ethernet frame.
    pub frame: &'a [u8],
}

/// One ring of a pair.
struct Ring {
    queue: DriverQueue,
    layout: RingLayout,
    /// Which of its places it is in.
    place: usize,
}

impl Ring {
    fn new(
        memory: &GuestMemory,
        layout: RingLayout,
        features: Features,
        size: u16,
    ) -> Result<Self, DriverError> {
        let queue = queue(memory, layout.places[0], features, size)?;
        Ok(Self { queue, layout, place: 0 })
    }

    /// Starts over, elsewhere, with nothing in it.
    fn reset(
        &mut self,
        memory: &GuestMemory,
        features: Features,
        size: u16,
    ) -> Result<(), DriverError> {
        let place = 1 - self.place;
        let addresses = self.layout.places[place];
        let RingAddresses { descriptors, available, used } = addresses;
        for (address, area) in
            [descriptors, available, used].into_iter().zip(Layout::areas(features, size))
        {
            let (zeros, mut slices) = (vec![0; area.size as usize], Vec::new());
            memory.translator().write(address, area.size as u32, &mut slices)?;
            WriteCursor::new(&slices).write(zeros.as_slice().into());
        }
        self.queue = queue(memory, addresses, features, size)?;
        self.place = place;
        Ok(())
    }

    fn addresses(&self) -> RingAddresses {
        self.layout.places[self.place]
    }

    /// The address of buffer `index`, when each has so many `bytes`.
    fn buffer(&self, index: u32, bytes: u64) -> GuestAddress {
        GuestAddress(self.layout.buffers.0 + u64::from(index) * bytes)
    }
}

/// The driver's side of a ring in zeroed memory. It is not called until it asks for that.
fn queue(
    memory: &GuestMemory,
    RingAddresses { descriptors, available, used }: RingAddresses,
    features: Features,
    size: u16,
) -> Result<DriverQueue, DriverError> {
    let layout = Layout::new(memory, features, size.into(), descriptors, available, used)?;
    let mut queue = DriverQueue::new(layout, features, None);
    queue.disable_calls();
    Ok(queue)
}

/// The driver of one queue pair.
pub struct NetDriver {
    memory: Arc<GuestMemory>,
    /// Entries in each ring, at the most.
    ring_size: u16,
    features: Features,
    header_size: usize,
    receive: Ring,
    transmit: Ring,
    /// Transmit buffers that no chain uses.
    free: Vec<u32>,
    /// A frame as it is put together from merged buffers.
    frame: Vec<u8>,
    /// Kept from frame to frame for its allocation.
    slices: SliceList<WriteSlice<'static>>,
}

impl NetDriver {
    /// A driver over zeroed memory. Posts all receive buffers; [`Self::publish_receive`] shows them
    /// to the device.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: PairLayout,
        features: Features,
    ) -> Result<Self, DriverError> {
        let ring_size = layout.ring_size;
        let ring = |layout| Ring::new(&memory, layout, features, ring_size);
        let mut driver = Self {
            receive: ring(layout.receive)?,
            transmit: ring(layout.transmit)?,
            free: buffers(ring_size),
            header_size: NetHeader::size(features),
            frame: Vec::new(),
            slices: SliceList::default(),
            ring_size,
            features,
            memory,
        };
        driver.post_all();
        Ok(driver)
    }

    /// Forgets the receive ring, which the device must have let go of, and makes a new one of `size`
    /// entries elsewhere (virtio 1.3, 2.6.1). Frames that were not received are lost. Posts all
    /// buffers, as when the driver was new.
    pub fn reset_receive(&mut self, size: u16) -> Result<(), DriverError> {
        self.check_size(size)?;
        self.receive.reset(&self.memory, self.features, size)?;
        self.post_all();
        Ok(())
    }

    /// The same for the transmit ring: every transmit buffer is free again.
    pub fn reset_transmit(&mut self, size: u16) -> Result<(), DriverError> {
        self.check_size(size)?;
        self.transmit.reset(&self.memory, self.features, size)?;
        self.free = buffers(size);
        Ok(())
    }

    fn check_size(&self, size: u16) -> Result<(), DriverError> {
        let most = self.ring_size;
        if size > most { Err(DriverError::RingSize { size, most }) } else { Ok(()) }
    }

    /// Where the receive ring is, and its entries.
    pub fn receive_ring(&self) -> (RingAddresses, u16) {
        (self.receive.addresses(), self.receive.queue.size())
    }

    /// Where the transmit ring is, and its entries.
    pub fn transmit_ring(&self) -> (RingAddresses, u16) {
        (self.transmit.addresses(), self.transmit.queue.size())
    }

    /// Makes the rings ready for another device after this one has died, and returns where it goes on in
    /// the receive ring and in the transmit ring: see [`DriverQueue::recover`].
    pub fn recover(&mut self) -> Result<[u32; 2], DriverError> {
        Ok([self.receive.queue.recover()?, self.transmit.queue.recover()?])
    }

    /// The features that were negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Longest frame that [`Self::send`] takes, in bytes.
    pub fn max_frame(&self) -> usize {
        TRANSMIT_BUFFER as usize - self.header_size
    }

    /// Receive buffers that a frame of this many bytes fills, when they may be merged.
    pub fn receive_buffers(&self, frame_len: usize) -> usize {
        (self.header_size + frame_len).div_ceil(RECEIVE_BUFFER as usize)
    }

    /// Queues a frame with its header. False when all buffers are in use. The device sees it after
    /// [`Self::publish_transmit`].
    pub fn send(&mut self, header: NetHeader, frame: &[u8]) -> Result<bool, DriverError> {
        let (len, most) = (frame.len(), self.max_frame());
        if len > most {
            return Err(DriverError::FrameTooLong { len, most });
        }
        let Some(index) = self.free.pop() else { return Ok(false) };
        let address = self.transmit.buffer(index, TRANSMIT_BUFFER);
        let len = (self.header_size + len) as u32;
        let slices = self.slices.lend();
        self.memory.translator().write(address, len, slices)?;
        let header = header.to_bytes();
        let mut cursor = WriteCursor::new(slices);
        cursor.write(header[..self.header_size].into());
        cursor.write(frame.into());
        let buffer = Buffer { address, len, writable: false };
        if self.transmit.queue.add(&[buffer], Form::Direct, index).is_err() {
            self.free.push(index);
            return Ok(false);
        }
        Ok(true)
    }

    /// Shows the device what was queued. Returns whether it wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish_transmit(&mut self) -> bool {
        self.transmit.queue.publish()
    }

    /// Shows the device the receive buffers that were posted. Returns whether it wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish_receive(&mut self) -> bool {
        self.receive.queue.publish()
    }

    /// Takes back the buffers of frames that the device has sent. Returns how many.
    pub fn reclaim(&mut self) -> Result<usize, DriverError> {
        let before = self.free.len();
        while let Some(used) = self.transmit.queue.reap()? {
            self.free.push(used.token);
        }
        Ok(self.free.len() - before)
    }

    /// Frames that are on their way out.
    pub fn in_flight(&self) -> usize {
        usize::from(self.transmit.queue.size()) - self.free.len()
    }

    /// Takes the next frame that came, if any, and posts its buffers anew.
    pub fn receive<R>(
        &mut self,
        take: impl FnOnce(Received<'_>) -> R,
    ) -> Result<Option<R>, DriverError> {
        let Some(first) = self.receive.queue.reap()? else { return Ok(None) };
        self.frame.clear();
        self.append(first.token, first.written)?;
        let header = self.frame.first_chunk().map(NetHeader::from_bytes);
        let header = header.ok_or(DriverError::Length { written: first.written })?;
        self.post(first.token);
        let may_merge = self.features.contains(Features::MRG_RXBUF);
        let buffers = if may_merge { header.num_buffers } else { 1 };
        if buffers == 0 {
            return Err(DriverError::Merge { num_buffers: 0, found: 1 });
        }
        for found in 1..buffers {
            let next = self.receive.queue.reap()?;
            let next = next.ok_or(DriverError::Merge { num_buffers: buffers, found })?;
            self.append(next.token, next.written)?;
            self.post(next.token);
        }
        let frame = self.frame.get(self.header_size..).unwrap_or_default();
        Ok(Some(take(Received { header, frame })))
    }

    /// Asks to be called when a frame comes. True when one has already: do not wait.
    pub fn enable_calls(&mut self) -> bool {
        self.receive.queue.enable_calls()
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        self.receive.queue.disable_calls();
    }

    /// Asks to be called when the device has sent a frame. True when it has already, and
    /// [`Self::reclaim`] would find it: do not wait.
    pub fn enable_transmit_calls(&mut self) -> bool {
        self.transmit.queue.enable_calls()
    }

    /// Says that no calls are wanted for what was sent.
    pub fn disable_transmit_calls(&mut self) {
        self.transmit.queue.disable_calls();
    }

    fn append(&mut self, index: u32, written: u32) -> Result<(), DriverError> {
        if u64::from(written) > RECEIVE_BUFFER {
            return Err(DriverError::Length { written });
        }
        let address = self.receive.buffer(index, RECEIVE_BUFFER);
        let start = self.frame.len();
        self.frame.resize(start + written as usize, 0);
        self.memory.translator().copy_to(address, &mut self.frame[start..])?;
        Ok(())
    }

    fn post_all(&mut self) {
        (0..u32::from(self.receive.queue.size())).for_each(|index| self.post(index));
    }

    fn post(&mut self, index: u32) {
        let address = self.receive.buffer(index, RECEIVE_BUFFER);
        let buffer = Buffer { address, len: RECEIVE_BUFFER as u32, writable: true };
        // There are as many buffers as descriptors, and this one is free.
        let posted = self.receive.queue.add(&[buffer], Form::Direct, index);
        debug_assert!(posted.is_ok());
    }
}

/// Every transmit buffer of a ring of `size` entries, the first one to be used last.
fn buffers(size: u16) -> Vec<u32> {
    (0..u32::from(size)).rev().collect()
}

#[cfg(test)]
mod tests;
