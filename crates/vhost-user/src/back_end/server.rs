//! A back end in one thread, for programs that have no event loop of their own.
//!
//! # How it works
//!
//! ```text
//! until the front end is gone, or we are told to stop:
//!     have the back end move frames (BackEnd::process), publish its rings, call the driver
//!     if it found nothing to do: ask for kicks, look once more, and sleep until there is a kick, a
//!     message, or something of the back end's own (BackEnd::wakes)
//!     take one message: hand a changed device to the rings, and only then answer
//! ```
//!
//! One thread does all of it, so that the hand-over that [`super`] asks for needs no waiting: between
//! two calls of [`BackEnd::process`] nobody uses the rings. The back end may take its time over a
//! burst, but not more: messages wait for it.
//!
//! Kick descriptors are watched edge-triggered and never read, since a peer decides what a read of
//! its descriptor does.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use memory::GuestMemory;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use sys::notify::Notifier;
use thiserror::Error;

use super::{Device, Offer, Pair, RunningRing, Session, Step, Violation, sharing};
use crate::connection::{Connection, ConnectionError, Incoming};

/// How often rings without a kick descriptor are looked at.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// What a back end does with its rings.
pub trait BackEnd {
    /// Moves frames: takes chains, reads or fills them, and gives every one of them back before it
    /// returns, in any order. What was given back is published, and the driver called, afterwards. A
    /// chain or a frame that is kept is a mistake of the back end's, and [`Server::serve`] panics.
    ///
    /// Returns whether it did anything. While it did, it is called again, after a look at the
    /// socket; so one call should take a burst and not all that there is. When it did nothing, it is
    /// called again once the front end made something available, or [`Self::wakes`] is readable.
    ///
    /// # Errors
    ///
    /// The driver broke a rule: the connection ends.
    fn process(&mut self, rings: &mut Rings) -> Result<bool, virtqueue::Violation>;

    /// Another source of work, such as a tap or a timer: [`Self::process`] is called when it is readable,
    /// or has failed. Several can be joined in an epoll descriptor.
    ///
    /// Asked each time before the loop sleeps, which it does not while this is readable. So it should
    /// be read until it is empty, and given up when it has failed; and as long as the back end has a
    /// frame for which the guest has no room, and will not read the next one, this is best `None`: the
    /// guest's buffers wake the loop.
    fn wakes(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Is shown what a message led to besides changes of the rings: [`Step::event`], and
    /// [`Step::notices`].
    fn told(&mut self, _step: &Step) {}
}

/// All rings of a device.
pub struct Rings {
    device: Arc<Device>,
    rings: Vec<Option<RunningRing>>,
    /// Watches the kick descriptors.
    kicks: OwnedFd,
    /// Calls the driver.
    notifier: Notifier,
    /// When the device's memory was last found to be whole; see [`memory::poison_epoch`].
    whole: u64,
}

impl Rings {
    fn new(device: Arc<Device>) -> io::Result<Self> {
        let kicks = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let rings = device.rings.iter().map(|_| None).collect();
        Ok(Self { device, rings, kicks, notifier: Notifier::new()?, whole: 0 })
    }

    /// The queue pairs of which a ring runs, in order.
    pub fn pairs(&mut self) -> impl Iterator<Item = Pair<'_>> {
        let (memory, features, whole) = (&*self.device.memory, self.device.features, self.whole);
        self.rings.chunks_exact_mut(2).filter_map(move |pair| {
            let [receive, transmit] = pair else { return None };
            let (receive, transmit) = (receive.as_mut(), transmit.as_mut());
            let runs = receive.is_some() || transmit.is_some();
            runs.then_some(Pair { memory, features, receive, transmit, whole })
        })
    }

    fn running(&mut self) -> impl Iterator<Item = &mut RunningRing> {
        self.rings.iter_mut().flatten()
    }

    /// Notes what the back end can see.
    fn look(&mut self) -> Result<(), virtqueue::Violation> {
        self.running().try_for_each(RunningRing::look)
    }

    /// Shows the drivers all that was given back, and calls those that want to be called. That is done
    /// when [`BackEnd::process`] returns; a back end that takes long may do it sooner.
    pub fn publish(&mut self) {
        let rings = self.rings.iter_mut().flatten();
        rings.for_each(|ring| ring.publish(&mut self.notifier));
    }

    /// Asks for kicks. True when there is more than the back end could see: do not sleep.
    fn enable_kicks(&mut self) -> Result<bool, virtqueue::Violation> {
        let mut has_more = false;
        for ring in self.running() {
            has_more |= ring.enable_kicks()?;
        }
        Ok(has_more)
    }

    fn disable_kicks(&mut self) {
        self.running().for_each(RunningRing::disable_kicks);
    }

    /// Whether a file of the guest's memory was found to be shorter than it was.
    fn is_cut_off(&mut self) -> bool {
        let now = memory::poison_epoch();
        if is_cut_off(&self.device.memory, self.whole) {
            return true;
        }
        self.whole = now;
        false
    }

    /// Takes over a changed device. Returns the rings that are gone or restarted, and where each was
    /// left.
    fn swap(&mut self, device: Arc<Device>) -> io::Result<Vec<(usize, u32)>> {
        let mut stopped = Vec::new();
        for (index, (ring, setup)) in self.rings.iter_mut().zip(&device.rings).enumerate() {
            if let Some(kick) = ring.as_ref().and_then(|ring| ring.setup.kick.as_ref()) {
                // Before it may be closed: a peer that shares it would go on waking us.
                epoll::delete(&self.kicks, kick)?;
            }
            match (&mut *ring, setup) {
                (Some(ring), Some(setup)) if ring.setup.start == setup.start => {
                    ring.update(setup);
                }
                (left, setup) => {
                    stopped.extend(left.take().map(|ring| (index, ring.position())));
                    *left = setup.as_ref().map(|setup| RunningRing::new(setup, device.features));
                }
            }
            if let Some(kick) = ring.as_ref().and_then(|ring| ring.setup.kick.as_ref()) {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&self.kicks, kick, epoll::EventData::new_u64(0), flags)?;
            }
        }
        self.device = device;
        // It is other memory, perhaps.
        self.whole = 0;
        Ok(stopped)
    }
}

/// Whether memory was cut off that was whole at that time. Looks only when anybody's was since.
pub(super) fn is_cut_off(memory: &GuestMemory, whole: u64) -> bool {
    memory::poison_epoch() != whole && memory.is_poisoned()
}

/// Why a front end is served no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It closed the connection.
    Closed,
    /// We were told to stop.
    Stopped,
}

/// Why a front end could not be served any longer.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The front end broke the protocol, or the socket did.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The front end broke a rule of vhost-user.
    #[error(transparent)]
    FrontEnd(#[from] Violation),
    /// The guest broke a rule of virtio.
    #[error(transparent)]
    Guest(#[from] virtqueue::Violation),
    /// A file that the front end shared became shorter under us.
    #[error("the front end cut off memory that it had shared")]
    MemoryCutOff,
    /// The kernel refused.
    #[error("cannot serve the front end: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ServerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Serves one front end.
pub struct Server {
    connection: Connection,
    /// The front end's process, if it can be seen from here.
    peer: Option<i32>,
    session: Session,
    rings: Rings,
    /// Whether all answers are gone.
    is_flushed: bool,
}

impl Server {
    /// A server of the front end at the other end of `connection`, to whom this is offered.
    ///
    /// # Errors
    ///
    /// There are too many open files, or the kernel's asynchronous I/O, by which drivers are called, is
    /// used up (fs.aio-max-nr).
    ///
    /// # Panics
    ///
    /// The offer cannot be kept, as [`Session::new`] judges it.
    #[track_caller]
    pub fn new(connection: Connection, offer: Offer) -> Result<Self, ServerError> {
        let session = Session::new(offer);
        let rings = Rings::new(session.device().clone())?;
        let peer = socket_peercred(&connection).ok();
        let peer = peer.map(|peer| peer.pid.as_raw_nonzero().get());
        Ok(Self { connection, peer, session, rings, is_flushed: true })
    }

    /// Serves the front end until it goes away, or `stop` becomes readable.
    ///
    /// # Errors
    ///
    /// The front end or its guest broke a rule, and the connection should be closed.
    ///
    /// # Panics
    ///
    /// [`BackEnd::process`] kept what it had taken from a ring.
    pub fn serve(
        &mut self,
        back_end: &mut impl BackEnd,
        stop: BorrowedFd<'_>,
    ) -> Result<End, ServerError> {
        loop {
            let looked = self.rings.look();
            let processed = looked.and_then(|()| back_end.process(&mut self.rings));
            let is_busy = self.judge(processed)?;
            self.rings.running().for_each(|ring| ring.check_returned());
            self.rings.publish();
            let is_awake = is_busy || {
                let asked = self.rings.enable_kicks();
                self.judge(asked)?
            };
            let [message, stopped] = self.wait(!is_awake, stop, back_end.wakes())?;
            self.rings.disable_kicks();
            if stopped {
                return Ok(End::Stopped);
            }
            if message && !self.converse(back_end)? {
                return Ok(End::Closed);
            }
        }
    }

    /// What was found in the rings, if it was the guest that put it there: where memory is cut off, all
    /// is zeros.
    fn judge<T>(&mut self, found: Result<T, virtqueue::Violation>) -> Result<T, ServerError> {
        if self.rings.is_cut_off() {
            return Err(ServerError::MemoryCutOff);
        }
        found.map_err(ServerError::Guest)
    }

    /// Waits, if it may, until something happens. Returns whether there is something to read from
    /// the front end, and whether it is time to stop.
    fn wait(
        &mut self,
        may_sleep: bool,
        stop: BorrowedFd<'_>,
        wakes: Option<BorrowedFd<'_>>,
    ) -> Result<[bool; 2], ServerError> {
        let is_polled = self.rings.running().any(|ring| ring.setup.kick.is_none());
        let limit = match (may_sleep, is_polled) {
            (false, _) => Some(Duration::ZERO),
            (true, true) => Some(POLL_INTERVAL),
            (true, false) => None,
        };
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        });
        let answers = if self.is_flushed { PollFlags::empty() } else { PollFlags::OUT };
        let mut polled = [
            PollFd::new(&self.connection, PollFlags::IN | answers),
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(&self.rings.kicks, PollFlags::IN),
            // Whether it was this does not matter: the back end has a look anyway.
            PollFd::from_borrowed_fd(wakes.unwrap_or(stop), PollFlags::IN),
        ];
        match poll(&mut polled, limit.as_ref()) {
            // A signal.
            Err(Errno::INTR) => return Ok([false; 2]),
            result => result.map_err(io::Error::from)?,
        };
        let [socket, stop, kicks, _] = polled.map(|polled| polled.revents());
        if !kicks.is_empty() {
            // Only to have them noted: whoever was kicked, all rings are looked at.
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut fired = [MaybeUninit::uninit(); 16];
            let _ = epoll::wait(&self.rings.kicks, &mut fired, Some(&now));
        }
        if socket.contains(PollFlags::OUT) {
            self.is_flushed = self.connection.flush()?;
        }
        Ok([!socket.difference(PollFlags::OUT).is_empty(), !stop.is_empty()])
    }

    /// Takes one message. False when the front end has closed the connection.
    fn converse(&mut self, back_end: &mut impl BackEnd) -> Result<bool, ServerError> {
        let message = match self.connection.receive()? {
            Incoming::Message(message) => message,
            Incoming::NotYet => return Ok(true),
            Incoming::Closed => return Ok(false),
        };
        let files = sharing::shared_files(&message);
        if let Some(peer) = self.peer
            && !files.is_empty()
            && sharing::is_found_private(peer, files)
        {
            return Err(Violation::NotShared.into());
        }
        let step = self.session.handle(message)?;
        back_end.told(&step);
        if let Some(device) = &step.device {
            for (ring, position) in self.rings.swap(device.clone())? {
                self.session.stopped(ring, position);
            }
        }
        // What the front end is told now, holds: the rings are what it asked for.
        if let Some(answer) = self.session.answer(step) {
            self.is_flushed = self.connection.send(answer)?;
        }
        Ok(true)
    }
}
