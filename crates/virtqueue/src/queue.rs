//! The queues of either format behind one interface.

use memory::{ReadSlice, Translator, WriteSlice};
use wire::virtio::Features;

use crate::{
    Buffer, Chain, Direction, Form, Full, IndirectTables, Layout, Piece, Single, Singles, Used,
    Violation, packed, split,
};

/// The device side of a ring.
pub enum DeviceQueue {
    /// Of a split ring.
    Split(split::DeviceQueue),
    /// Of a packed ring.
    Packed(packed::DeviceQueue),
}

/// The driver side of a ring.
pub enum DriverQueue {
    /// Of a split ring.
    Split(split::DriverQueue),
    /// Of a packed ring.
    Packed(packed::DriverQueue),
}

/// Does the same with either queue.
macro_rules! either {
    ($self:ident, $queue:ident => $body:expr) => {
        match $self {
            Self::Split($queue) => $body,
            Self::Packed($queue) => $body,
        }
    };
}

/// What the device side does for each chain, in either format, for code that is compiled once for each: so
/// that it is asked once a burst which of them a ring has.
pub trait DeviceRing {
    /// See [`DeviceQueue::size`].
    fn size(&self) -> u16;

    /// Takes the next chains while they are of one buffer each, which goes the way that is asked for, and
    /// `take` takes them: `most` at most. It stops in front of any other chain, good or bad: that is for
    /// [`DeviceQueue::take_readable`] and [`DeviceQueue::take_writable`]. On a violation nothing was taken.
    fn take_singles(
        &mut self,
        direction: Direction,
        most: usize,
        take: impl FnMut(Single) -> bool,
    ) -> Result<Singles, Violation>;

    /// As [`Self::take_singles`], of one chain, which `take` makes something of. None when nothing was taken, for whatever reason:
    /// the other ways find it, if it is still there.
    #[inline(always)]
    fn take_single<T>(
        &mut self,
        direction: Direction,
        mut take: impl FnMut(Single) -> Option<T>,
    ) -> Option<T> {
        let mut taken = None;
        let singles = self.take_singles(direction, 1, |single| {
            taken = take(single);
            taken.is_some()
        });
        singles.ok().and(taken)
    }

    /// Whether a chain is known to be there, and there is no other behind it: looks at the ring for that.
    fn has_one(&self) -> bool;

    /// See [`DeviceQueue::take_writable`].
    fn take_writable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<Option<Chain>, Violation>;

    /// See [`DeviceQueue::untake`].
    fn untake<'c>(&mut self, chains: impl IntoIterator<Item = &'c Chain>);

    /// See [`DeviceQueue::give_back`].
    fn give_back(&mut self, chain: Chain, written: u32);

    /// See [`DeviceQueue::give_all_back`].
    fn give_all_back(&mut self, chains: impl ExactSizeIterator<Item = (Chain, u32)>);
}

impl DeviceQueue {
    /// A queue that goes on at `position`: everything before was used. See [`Layout::resume`].
    ///
    /// The caller should scan it once without waiting for a kick, and call once: the driver may
    /// have been told of neither by whoever served the ring before.
    pub fn new(layout: Layout, features: Features, position: u32) -> Self {
        match layout {
            Layout::Split(layout) => {
                Self::Split(split::DeviceQueue::new(layout, features, position as u16))
            }
            Layout::Packed(layout) => {
                Self::Packed(packed::DeviceQueue::new(layout, features, position))
            }
        }
    }

    /// Goes on under another layout of the same format and size: the ring's memory was mapped anew.
    /// Nothing about its position changes, but kicks are off until [`Self::enable_kicks`], as after
    /// a start.
    pub fn relocate(&mut self, layout: Layout) {
        match (self, layout) {
            (Self::Split(queue), Layout::Split(layout)) => queue.relocate(layout),
            (Self::Packed(queue), Layout::Packed(layout)) => queue.relocate(layout),
            _ => debug_assert!(false, "a ring does not change its format"),
        }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// Where a restart would go on, when nothing is outstanding: what vhost-user calls the ring's
    /// base. Of a split ring, the next available entry. Of a packed one, the next available
    /// descriptor in the lower half and the next used one in the upper half, each with its wrap
    /// counter in the highest bit.
    pub fn position(&self) -> u32 {
        match self {
            Self::Split(queue) => queue.position().into(),
            Self::Packed(queue) => queue.position(),
        }
    }

    /// Entries of the ring that were taken and not given back: chains of a split ring, descriptors
    /// of a packed one.
    pub fn outstanding(&self) -> u16 {
        either!(self, queue => queue.outstanding())
    }

    /// Entries of the ring that are known to be available: none only when there is nothing to take.
    /// Looks for more only when all known ones are gone, so that a busy driver's cache line is left
    /// alone; [`Self::enable_kicks`] always looks.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Violation> {
        either!(self, queue => queue.available())
    }

    /// Entries of the ring that the driver has made available and that were not taken, as far as it can be believed. For
    /// reports: it costs more than [`Self::available`].
    pub fn waiting(&self) -> u16 {
        either!(self, queue => queue.waiting())
    }

    /// Takes the next chain and appends its device-readable bytes to `slices`: at most `limit`
    /// bytes; what is beyond is counted, not translated. Writable descriptors are passed over.
    ///
    /// On a violation nothing is taken, though slices may have been appended.
    #[inline]
    pub fn take_readable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<ReadSlice<'m>>,
    ) -> Result<Option<Chain>, Violation> {
        either!(self, queue => queue.take_readable(translator, limit, slices))
    }

    /// Takes the next chain, as one to be written, and appends its bytes to `slices`, at most
    /// `limit` as above.
    ///
    /// On a violation nothing is taken, though slices may have been appended.
    #[inline]
    pub fn take_writable<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        limit: u32,
        slices: &mut Vec<WriteSlice<'m>>,
    ) -> Result<Option<Chain>, Violation> {
        either!(self, queue => queue.take_writable(translator, limit, slices))
    }

    /// Appends where the device-readable bytes of a chain are that was taken, so that it can be read
    /// later. Its descriptors are fetched afresh: the driver may have changed them meanwhile, and
    /// what they say now need not be what they said.
    ///
    /// Only until anything is given back that was taken on this ring: in a packed ring that may lie
    /// over the chain's descriptors.
    pub fn pieces(
        &self,
        chain: Chain,
        translator: &mut Translator<'_>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Violation> {
        either!(self, queue => queue.pieces(chain, translator, pieces))
    }

    /// Puts back the last chains taken, as if they had not been: they are still available. None
    /// taken since the first of them may have been given back.
    pub fn untake<'c>(&mut self, chains: impl IntoIterator<Item = &'c Chain>) {
        either!(self, queue => queue.untake(chains))
    }

    /// Gives a chain back, with `written` bytes written to it from its start. The driver sees it
    /// after [`Self::publish`] or [`Self::expose`]. With IN_ORDER, the chain that was taken first has to go first.
    #[inline(always)]
    pub fn give_back(&mut self, chain: Chain, written: u32) {
        either!(self, queue => queue.give_back(chain, written))
    }

    /// Gives chains back, each with the bytes that were written to it.
    #[inline]
    pub fn give_all_back(&mut self, chains: impl ExactSizeIterator<Item = (Chain, u32)>) {
        either!(self, queue => queue.give_all_back(chains));
    }

    /// Publishes all chains given back since the last time. Returns whether the driver wants to be
    /// called.
    ///
    /// That is to [expose](Self::expose) them, a full fence, and a look whether the driver [wants a call](Self::wants_call).
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn publish(&mut self) -> bool {
        either!(self, queue => queue.publish())
    }

    /// Lets the driver see all chains given back since the last time. Returns whether there were any: then see
    /// [`Self::wants_call`]. For those who publish several rings with one fence.
    #[inline]
    #[must_use = "the driver may want a call"]
    pub fn expose(&mut self) -> bool {
        either!(self, queue => queue.expose())
    }

    /// Whether the driver wants to be called for what was exposed since it was asked last. To be asked after
    /// each [`Self::expose`], behind a full fence of the caller's: without that, a driver that is about to sleep may not see
    /// what was exposed, and we not that it is about to sleep.
    #[inline]
    #[must_use = "the driver may be waiting for the call"]
    pub fn wants_call(&mut self) -> bool {
        either!(self, queue => queue.wants_call())
    }

    /// Whether the driver has taken all that was given back, and waits to be called for what comes next.
    /// Only EVENT_IDX tells; without it, and while the driver polls, the answer is no. A driver that
    /// polls may seem to be waiting once in 65536 answers, if it left its event word somewhere.
    pub fn is_drained(&self) -> bool {
        either!(self, queue => queue.is_drained())
    }

    /// Says that no kicks are wanted.
    pub fn disable_kicks(&mut self) {
        either!(self, queue => queue.disable_kicks())
    }

    /// Asks for a kick at the next chain beyond those that are known, then looks once more: true when
    /// there are chains to take, and a caller that takes any must not sleep. One that waits for more
    /// than it knows of must not sleep either when [`Self::available`] grew by this.
    pub fn enable_kicks(&mut self) -> Result<bool, Violation> {
        either!(self, queue => queue.enable_kicks())
    }
}

impl DriverQueue {
    /// A queue at the start of a ring whose memory is zero. With INDIRECT_DESC negotiated, `tables`
    /// make indirect chains possible.
    pub fn new(layout: Layout, features: Features, tables: Option<IndirectTables>) -> Self {
        match layout {
            Layout::Split(layout) => Self::Split(split::DriverQueue::new(layout, features, tables)),
            Layout::Packed(layout) => {
                Self::Packed(packed::DriverQueue::new(layout, features, tables))
            }
        }
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        either!(self, queue => queue.free())
    }

    /// Chains that were added and not reaped.
    pub fn outstanding(&self) -> u16 {
        either!(self, queue => queue.outstanding())
    }

    /// Writes a chain into the ring; the device sees it after [`Self::publish`]. An empty chain
    /// is refused as one that does not fit.
    pub fn add(&mut self, chain: &[Buffer], form: Form, token: u32) -> Result<(), Full> {
        either!(self, queue => queue.add(chain, form, token))
    }

    /// Publishes all chains added since the last time. Returns whether the device wants a kick.
    #[must_use = "the device may be waiting for the kick"]
    pub fn publish(&mut self) -> bool {
        either!(self, queue => queue.publish())
    }

    /// Takes the next used chain and frees its descriptors.
    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        either!(self, queue => queue.reap())
    }

    /// Makes the ring ready for another device, after this one has died, and returns where that goes on,
    /// as [`DeviceQueue::position`] has it: behind the last chain that was used, reaped or not. What this
    /// one had taken and not used is taken once more.
    ///
    /// It must have died for good, and have used chains in the order in which it took them, as a network
    /// device does: of any other nobody can say which chains it has not used.
    ///
    /// A split ring needs no more than that. In a packed one a device overwrites what it uses, and may
    /// have died before that was to be seen, so the driver writes it again. Where the driver is somebody
    /// else, it takes the in-flight region of vhost-user to get there.
    pub fn recover(&mut self) -> Result<u32, Violation> {
        match self {
            Self::Split(queue) => queue.recover().map(u32::from),
            Self::Packed(queue) => queue.recover(),
        }
    }

    /// Says that no calls are wanted.
    pub fn disable_calls(&mut self) {
        either!(self, queue => queue.disable_calls())
    }

    /// Asks for a call at the next used chain, then looks once more: true when there already is
    /// one, and the caller must not sleep.
    pub fn enable_calls(&mut self) -> bool {
        either!(self, queue => queue.enable_calls())
    }
}
