//! A virtio-net driver: frames in, frames out.

use std::sync::Arc;

use memory::{Fault, GuestAddress, GuestMemory, WriteCursor, WriteSlice, recycle_writable};
use thiserror::Error;
use virtqueue::{Buffer, DriverQueue, Form, Layout, LayoutError, Violation};
use wire::virtio::{Features, NetHeader};

use crate::layout::{MemoryLayout, RECEIVE_BUFFER, RingAddresses, TRANSMIT_BUFFER};

/// Why the driver gave up.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The rings do not fit the memory.
    #[error("the rings do not fit the guest's memory: {0}")]
    Layout(#[from] LayoutError),
    /// A buffer is not in the memory.
    #[error("a buffer is not in the guest's memory: {0}")]
    Memory(#[from] Fault),
    /// The device broke a rule of the ring.
    #[error("the back end broke a rule of the ring: {0}")]
    Device(#[from] Violation),
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

/// A frame that came, valid until it is handed back by the end of the callback.
pub struct Received<'a> {
    /// The virtio-net header.
    pub header: NetHeader,
    /// The Ethernet frame.
    pub frame: &'a [u8],
}

/// The driver of one queue pair.
pub struct NetDriver {
    memory: Arc<GuestMemory>,
    layout: MemoryLayout,
    features: Features,
    header_size: usize,
    receive: DriverQueue,
    transmit: DriverQueue,
    /// Transmit buffers that no chain uses.
    free: Vec<u32>,
    /// A frame as it is put together from merged buffers.
    frame: Vec<u8>,
    /// Kept from frame to frame for its allocation.
    slices: Vec<WriteSlice<'static>>,
}

impl NetDriver {
    /// A driver over zeroed memory. Posts all receive buffers; [`Self::publish_receive`] shows them
    /// to the device.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: MemoryLayout,
        features: Features,
    ) -> Result<Self, DriverError> {
        let ring = |addresses: RingAddresses| {
            let RingAddresses { descriptors, available, used } = addresses;
            let size = layout.ring_size.into();
            let layout = Layout::new(&memory, features, size, descriptors, available, used)?;
            Ok::<_, DriverError>(DriverQueue::new(layout, features, None))
        };
        let mut driver = Self {
            receive: ring(layout.receive)?,
            transmit: ring(layout.transmit)?,
            free: (0..u32::from(layout.ring_size)).rev().collect(),
            header_size: NetHeader::size(features),
            frame: Vec::new(),
            slices: Vec::new(),
            features,
            layout,
            memory,
        };
        driver.receive.disable_calls();
        driver.transmit.disable_calls();
        for index in 0..u32::from(layout.ring_size) {
            driver.post(index);
        }
        Ok(driver)
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
        let address = self.transmit_buffer(index);
        let len = (self.header_size + len) as u32;
        let mut slices = std::mem::take(&mut self.slices);
        self.memory.translator().write(address, len, &mut slices)?;
        let header = header.to_bytes();
        let mut cursor = WriteCursor::new(&slices);
        cursor.write(header[..self.header_size].into());
        cursor.write(frame.into());
        self.slices = recycle_writable(slices);
        let buffer = Buffer { address, len, writable: false };
        if self.transmit.add(&[buffer], Form::Direct, index).is_err() {
            self.free.push(index);
            return Ok(false);
        }
        Ok(true)
    }

    /// Shows the device what was queued. Returns whether it wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish_transmit(&mut self) -> bool {
        self.transmit.publish()
    }

    /// Shows the device the receive buffers that were posted. Returns whether it wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish_receive(&mut self) -> bool {
        self.receive.publish()
    }

    /// Takes back the buffers of frames that the device has sent. Returns how many.
    pub fn reclaim(&mut self) -> Result<usize, DriverError> {
        let before = self.free.len();
        while let Some(used) = self.transmit.reap()? {
            self.free.push(used.token);
        }
        Ok(self.free.len() - before)
    }

    /// Frames that are on their way out.
    pub fn in_flight(&self) -> usize {
        usize::from(self.layout.ring_size) - self.free.len()
    }

    /// Takes the next frame that came, if any, and posts its buffers anew.
    pub fn receive<R>(
        &mut self,
        take: impl FnOnce(Received<'_>) -> R,
    ) -> Result<Option<R>, DriverError> {
        let Some(first) = self.receive.reap()? else { return Ok(None) };
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
            let next = self.receive.reap()?;
            let next = next.ok_or(DriverError::Merge { num_buffers: buffers, found })?;
            self.append(next.token, next.written)?;
            self.post(next.token);
        }
        let frame = self.frame.get(self.header_size..).unwrap_or_default();
        Ok(Some(take(Received { header, frame })))
    }

    /// Asks to be called when a frame comes. True when one has already: do not wait.
    pub fn enable_calls(&mut self) -> bool {
        self.receive.enable_calls()
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        self.receive.disable_calls();
    }

    fn append(&mut self, index: u32, written: u32) -> Result<(), DriverError> {
        if u64::from(written) > RECEIVE_BUFFER {
            return Err(DriverError::Length { written });
        }
        let address = self.receive_buffer(index);
        let start = self.frame.len();
        self.frame.resize(start + written as usize, 0);
        self.memory.translator().copy_to(address, &mut self.frame[start..])?;
        Ok(())
    }

    fn post(&mut self, index: u32) {
        let address = self.receive_buffer(index);
        let buffer = Buffer { address, len: RECEIVE_BUFFER as u32, writable: true };
        // There are as many buffers as descriptors, and this one is free.
        let posted = self.receive.add(&[buffer], Form::Direct, index);
        debug_assert!(posted.is_ok());
    }

    fn receive_buffer(&self, index: u32) -> GuestAddress {
        GuestAddress(self.layout.receive_buffers.0 + u64::from(index) * RECEIVE_BUFFER)
    }

    fn transmit_buffer(&self, index: u32) -> GuestAddress {
        GuestAddress(self.layout.transmit_buffers.0 + u64::from(index) * TRANSMIT_BUFFER)
    }
}

#[cfg(test)]
mod tests;
