//! The server of the reference pair: a whole virtio-net back end, small enough to be copied.
//!
//! It sends every frame back to the guest that it came from (or only counts it, or only makes frames
//! of its own), on split and packed rings, with whatever features the guest chooses of those that are
//! offered. docs/write-a-back-end.md explains it part by part.

use std::os::fd::AsFd;

use vhost_user::back_end::{BackEnd, Delivery, End, Offer, Pair, Rings, Server, ServerError};
use vhost_user::{Connection, Direction};
use virtqueue::Violation;
use wire::vhost_user::{MAX_RINGS, ProtocolFeatures};
use wire::virtio::{Features, NetHeader};

use super::dump::Dump;
use super::frame;

/// What a guest may have. No offloads: every frame is complete, and none is longer than its MTU.
const OFFER: Offer = Offer {
    features: Features::VERSION_1
        .union(Features::ANY_LAYOUT)
        .union(Features::RING_PACKED)
        .union(Features::INDIRECT_DESC)
        .union(Features::EVENT_IDX)
        .union(Features::IN_ORDER)
        .union(Features::MRG_RXBUF)
        .union(Features::MTU)
        .union(Features::MQ),
    // There is no network to which a guest could be announced.
    protocol: Offer::PROTOCOL.without(ProtocolFeatures::RARP),
    queue_pairs: MAX_RINGS as u16 / 2,
    max_mtu: u16::MAX,
};

/// Frames that one queue pair may move before it is the next one's turn.
const BURST: usize = 64;
/// The longest frame that is taken: 64 KiB of payload, and an Ethernet header with two tags.
const MAX_FRAME: usize = (64 << 10) + 22;

/// What to do with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Send each back as it came.
    Echo,
    /// Count them.
    Sink,
    /// Count them, and send as many of our own as the guest takes.
    Source,
}

/// The back end.
pub struct Net {
    pub work: Work,
    /// Prints every frame, if that is wanted.
    pub dump: Option<Dump>,
    pub tally: Tally,
    /// The frame at hand: a private copy, which the guest cannot change any more.
    frame: Vec<u8>,
}

/// Frames so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub from_guest: u64,
    pub bytes_from_guest: u64,
    pub to_guest: u64,
    /// Of those from the guest: broken, or too long for its buffers.
    pub dropped: u64,
}

impl Net {
    pub fn new(work: Work, dump: Option<Dump>) -> Self {
        Self { work, dump, tally: Tally::default(), frame: Vec::new() }
    }

    /// Serves one front end, until it goes away or `stop` becomes readable.
    pub fn serve(&mut self, socket: Connection, stop: impl AsFd) -> Result<End, ServerError> {
        Server::new(socket, OFFER)?.serve(self, stop.as_fd())
    }

    /// Takes a frame from the guest. False when there is none, or none that could be sent back now.
    fn take(&mut self, pair: &mut Pair<'_>) -> Result<bool, Violation> {
        let Some(taken) = pair.take(MAX_FRAME, &mut self.frame)? else { return Ok(false) };
        let delivery = match &taken.header {
            Ok(_) if self.work == Work::Echo && taken.may_pass => self.send(pair)?,
            Ok(_) => Delivery::Off,
            Err(_) => Delivery::TooLong,
        };
        if delivery == Delivery::NoRoom {
            // Better late than lost. We are called again when the guest has posted buffers.
            pair.put_back(taken);
            return Ok(false);
        }
        if let Some(dump) = &self.dump {
            dump.frame(Direction::Received, taken.header, &self.frame);
        }
        self.tally.from_guest += 1;
        self.tally.bytes_from_guest += self.frame.len() as u64;
        self.tally.dropped += u64::from(delivery == Delivery::TooLong);
        pair.complete(taken);
        Ok(true)
    }

    /// Sends the frame at hand to the guest. Nothing is left to be done to it, as we offer no offload,
    /// so that its header is empty.
    fn send(&mut self, pair: &mut Pair<'_>) -> Result<Delivery, Violation> {
        let delivery = pair.deliver(NetHeader::default(), &self.frame)?;
        if delivery == Delivery::Done {
            self.tally.to_guest += 1;
            if let Some(dump) = &self.dump {
                dump.frame(Direction::Sent, Ok(NetHeader::default()), &self.frame);
            }
        }
        Ok(delivery)
    }

    /// Sends a frame of our own. False when the guest has no room for it.
    fn make(&mut self, pair: &mut Pair<'_>) -> Result<bool, Violation> {
        frame::numbered(&mut self.frame, self.tally.to_guest, frame::DEFAULT_SIZE);
        Ok(self.send(pair)? == Delivery::Done)
    }
}

impl BackEnd for Net {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, Violation> {
        let mut is_busy = false;
        for mut pair in rings.pairs() {
            for _ in 0..BURST {
                let took = self.take(&mut pair)?;
                let made = self.work == Work::Source && self.make(&mut pair)?;
                is_busy |= took || made;
                if !took && !made {
                    break;
                }
            }
        }
        Ok(is_busy)
    }
}
