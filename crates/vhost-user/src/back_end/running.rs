//! A ring that runs, as a back end on a [`Server`](super::Server) sees it.
//!
//! # How it works
//!
//! A back end may give chains back in any order. The ring keeps each of them until all that were taken
//! before are back, so that the driver gets them in the order in which it made them available: with
//! IN_ORDER it relies on that (virtio 1.3, 2.7.9 and 2.8.8), and without, the used index still says where the
//! next back end goes on, which it cannot if there are gaps before it.
//!
//! A [`HeldChain`] cannot be copied, and carries the number of the ring's start, and one of its own that
//! is never used again. So whatever a back end does with it, no other chain is given back in its place.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use memory::{ReadSlice, SliceList, Translator, WriteSlice};
use sys::notify::Notifier;
use virtqueue::{Chain, DeviceQueue, Violation};
use wire::virtio::Features;

use super::RingSetup;

/// What is wrong with a chain that is not among those that the ring has handed out.
pub(super) const FOREIGN: &str =
    "a chain is given back to the ring that it was taken from, before `process` returns";

/// A ring that runs.
pub struct RunningRing {
    queue: DeviceQueue,
    pub(super) setup: RingSetup,
    /// Chains that were taken and that the driver has not got back, in order.
    held: VecDeque<Held>,
    /// The number of the next chain that is taken.
    number: u64,
    /// Entries that were known to be available when the back end last had a look.
    known: u16,
    /// To be called whether it asks for that or not.
    is_new: bool,
    /// Kept from frame to frame for their allocation, by [`Pair`](super::Pair).
    pub(super) readable: SliceList<ReadSlice<'static>>,
    pub(super) writable: SliceList<WriteSlice<'static>>,
    pub(super) chains: Vec<HeldChain>,
}

/// A chain that was taken from a [`RunningRing`]. To be given back, once: by [`RunningRing::give_back`],
/// or by [`RunningRing::put_back`].
#[must_use = "a chain that is not given back is lost to the guest"]
#[derive(Debug)]
pub struct HeldChain {
    start: u64,
    number: u64,
    bytes: u64,
}

impl HeldChain {
    /// Bytes in the chain's descriptors of the direction that was asked for; may exceed the limit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A chain that was handed out.
struct Held {
    number: u64,
    chain: Chain,
    /// Set when the back end has given it back.
    written: Option<u32>,
}

impl RunningRing {
    pub(super) fn new(setup: &RingSetup, features: Features) -> Self {
        let queue = DeviceQueue::new(setup.layout.clone(), features, setup.base);
        Self {
            queue,
            setup: setup.clone(),
            held: VecDeque::new(),
            number: 0,
            known: 0,
            is_new: true,
            readable: SliceList::default(),
            writable: SliceList::default(),
            chains: Vec::new(),
        }
    }

    /// Whether frames may pass. If not, nothing may be delivered, and what the guest sends is to be
    /// consumed and discarded.
    pub fn is_enabled(&self) -> bool {
        self.setup.enabled
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain and appends its device-readable bytes to `slices`: see
    /// [`DeviceQueue::take_readable`]. For back ends that read frames where they are;
    /// [`Pair::take`](super::Pair::take) does it with a copy.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the ring.
    pub fn take_readable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<Option<HeldChain>, Violation> {
        let taken = self.queue.take_readable(translator, limit, slices)?;
        Ok(taken.map(|chain| self.hold(chain)))
    }

    /// Takes the next chain, as one to be written, and appends its bytes to `slices`: see
    /// [`DeviceQueue::take_writable`]. [`Pair::deliver`](super::Pair::deliver) does it for a frame.
    ///
    /// # Errors
    ///
    /// The driver broke a rule of the ring.
    pub fn take_writable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<Option<HeldChain>, Violation> {
        let taken = self.queue.take_writable(translator, limit, slices)?;
        Ok(taken.map(|chain| self.hold(chain)))
    }

    /// Gives a chain back, with `written` bytes written to it from its start. The driver sees it after
    /// [`Rings::publish`](super::Rings::publish), as soon as it has all that were taken before.
    ///
    /// # Panics
    ///
    /// The chain is not this ring's, or was kept when `process` returned.
    #[track_caller]
    pub fn give_back(&mut self, chain: HeldChain, written: u32) {
        let place = self.place(&chain);
        self.held[place].written = Some(written);
        while let Some(&Held { chain, written: Some(written), .. }) = self.held.front() {
            self.queue.give_back(chain, written);
            self.held.pop_front();
        }
    }

    /// Leaves the chain that was taken last in the ring, to be taken again. Several are put back from
    /// the last to the first.
    ///
    /// # Panics
    ///
    /// Another one was taken since and not put back, or the chain is not this ring's, or was kept when
    /// `process` returned.
    #[track_caller]
    pub fn put_back(&mut self, chain: HeldChain) {
        let is_last = self.place(&chain) + 1 == self.held.len();
        assert!(is_last, "only the chain that was taken last can be put back");
        self.queue.untake(self.held.pop_back().map(|held| held.chain).as_slice());
    }

    /// Shows the driver all that was given back, and calls it if it wants to be called.
    pub(super) fn publish(&mut self, notifier: &mut Notifier) {
        let is_wanted = self.queue.publish() | std::mem::take(&mut self.is_new);
        if is_wanted && let Some(call) = &self.setup.call {
            // It is an eventfd, as the session has checked.
            let _ = notifier.signal(call.as_fd());
        }
    }

    fn hold(&mut self, chain: Chain) -> HeldChain {
        let number = self.number;
        self.number += 1;
        self.held.push_back(Held { number, chain, written: None });
        HeldChain { start: self.setup.start, number, bytes: chain.bytes() }
    }

    /// Which of those that are held it is.
    #[track_caller]
    fn place(&self, chain: &HeldChain) -> usize {
        let found = self.held.binary_search_by_key(&chain.number, |held| held.number);
        found.ok().filter(|_| chain.start == self.setup.start).expect(FOREIGN)
    }

    /// Panics when the back end has kept a chain.
    pub(super) fn check_returned(&self) {
        let kept = self.held.iter().filter(|held| held.written.is_none()).count();
        assert!(kept == 0, "`process` returned and kept {kept} chains of a ring: {FOREIGN}");
    }

    /// Notes what the back end can see.
    pub(super) fn look(&mut self) -> Result<(), Violation> {
        self.known = self.queue.available()?;
        Ok(())
    }

    /// Asks for kicks. True when there is more than the back end could see.
    pub(super) fn enable_kicks(&mut self) -> Result<bool, Violation> {
        self.queue.enable_kicks()?;
        Ok(self.queue.available()? > self.known)
    }

    pub(super) fn disable_kicks(&mut self) {
        self.queue.disable_kicks();
    }

    /// Goes on with what has changed, of the same start.
    pub(super) fn update(&mut self, setup: &RingSetup) {
        self.queue.relocate(setup.layout.clone());
        self.setup = setup.clone();
        // Whoever reads a new call descriptor may not know of what the old one was told.
        self.is_new = true;
    }

    /// Where the ring is left.
    pub(super) fn position(&self) -> u32 {
        self.queue.position()
    }
}
