// A back end that sends every frame back to the queue pair it came from: what the guest's tests and its
// documentation have for a switch.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memory::{ReadSlice, WriteCursor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user::back_end::{Device, Offer, Session};
use vhost_user::{Connection, Incoming};
use virtqueue::DeviceQueue;
use wire::virtio::NetHeader;

/// Anything here takes milliseconds; this is for a machine that is busy with other things.
pub const LIMIT: Duration = Duration::from_secs(10);

/// One connection's back end, session and data plane in one thread.
pub struct Echo {
    session: Session,
    device: Arc<Device>,
    /// By the number of the ring: the start that it belongs to, and the queue.
    queues: Vec<Option<(u64, DeviceQueue)>>,
    /// Frames that it takes before it dies, with nothing published of the last burst.
    left: usize,
}

impl Echo {
    /// Listens at `path`, and serves one front end until it leaves.
    pub fn listen(path: &Path, offer: Offer) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || Self::on(listener.accept().unwrap().0, offer, usize::MAX))
    }

    /// Serves the other end of the socket, and takes so many frames before it dies.
    pub fn mortal(offer: Offer, frames: usize) -> (UnixStream, JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, thread::spawn(move || Self::on(theirs, offer, frames)))
    }

    fn on(socket: UnixStream, offer: Offer, left: usize) {
        let mut connection = Connection::new(socket.into()).unwrap();
        let session = Session::new(offer);
        let device = session.device().clone();
        let queues = device.rings.iter().map(|_| None).collect();
        Self { session, device, queues, left }.live(&mut connection);
    }

    fn live(&mut self, connection: &mut Connection) {
        loop {
            match connection.receive().unwrap() {
                Incoming::Closed => return,
                Incoming::NotYet => {}
                Incoming::Message(message) => {
                    // A violation is for the front end to find out.
                    let Ok(step) = self.session.handle(message) else { return };
                    if let Some(device) = step.device.clone() {
                        self.swap(device);
                    }
                    if let Some(reply) = self.session.answer(step) {
                        assert!(connection.send(reply).unwrap());
                    }
                    continue;
                }
            }
            let mut busy = false;
            for pair in 0..self.queues.len() / 2 {
                busy |= self.send_back(pair);
                if self.left == 0 {
                    return;
                }
            }
            if !busy && !self.arm() {
                let kicks =
                    self.device.rings.iter().flatten().filter_map(|ring| ring.kick.as_ref());
                let mut polled = vec![PollFd::new(&*connection, PollFlags::IN)];
                polled.extend(kicks.map(|kick| PollFd::new(kick, PollFlags::IN)));
                let limit = Timespec::try_from(LIMIT).unwrap();
                assert!(poll(&mut polled, Some(&limit)).unwrap() > 0, "the front end is silent");
                for ring in self.device.rings.iter().flatten() {
                    let _ = rustix::io::read(ring.kick.as_ref().unwrap(), &mut [0; 8]);
                }
            }
        }
    }

    fn swap(&mut self, device: Arc<Device>) {
        for (number, queue) in self.queues.iter_mut().enumerate() {
            let next = device.rings[number].as_ref();
            if let Some((start, old)) = queue
                && next.is_none_or(|next| next.start != *start)
            {
                self.session.stopped(number, old.position());
                *queue = None;
            }
            if let (Some(next), None) = (next, &queue) {
                let layout = next.layout.clone();
                let new = DeviceQueue::new(layout, device.features, next.base);
                *queue = Some((next.start, new));
            }
        }
        self.device = device;
    }

    /// Takes what one pair has sent. Returns whether that was anything.
    fn send_back(&mut self, pair: usize) -> bool {
        let Device { memory, rings, .. } = &*self.device;
        let [receive, transmit] = &mut self.queues[2 * pair..][..2] else { unreachable!() };
        let (Some((_, transmit)), Some(sends)) = (transmit, &rings[2 * pair + 1]) else {
            return false;
        };
        let receives = rings[2 * pair].as_ref();
        let mut translator = memory.translator();
        let mut busy = false;
        loop {
            let mut read: Vec<ReadSlice<'_>> = Vec::new();
            let taken = transmit.take_readable(&mut translator, u32::MAX, &mut read).unwrap();
            let Some(chain) = taken else { break };
            busy = true;
            self.left -= 1;
            if self.left == 0 {
                return true;
            }
            if let (Some((_, queue)), Some(receives)) = (&mut *receive, receives)
                && sends.enabled
                && receives.enabled
            {
                let mut write = Vec::new();
                let to = queue.take_writable(&mut translator, u32::MAX, &mut write).unwrap();
                // A header, which says how many buffers there are, and the frame.
                let mut bytes = Vec::new();
                for slice in read {
                    let start = bytes.len();
                    bytes.resize(start + slice.len(), 0);
                    slice.copy_to(&mut bytes[start..]);
                }
                let num_buffers = NetHeader::LEGACY_SIZE..NetHeader::SIZE;
                bytes[num_buffers].copy_from_slice(&1u16.to_le_bytes());
                let written = WriteCursor::new(&write).write(bytes.as_slice().into());
                queue.give_back(to.expect("a buffer is posted"), written as u32);
            }
            transmit.give_back(chain, 0);
        }
        if transmit.publish() {
            call_driver(&sends.call);
        }
        if let (Some((_, queue)), Some(receives)) = (receive, receives)
            && queue.publish()
        {
            call_driver(&receives.call);
        }
        busy
    }

    /// Asks for kicks. True when there is something to take already.
    fn arm(&mut self) -> bool {
        let transmits = self.queues.iter_mut().skip(1).step_by(2).flatten();
        transmits.fold(false, |more, (_, queue)| queue.enable_kicks().unwrap() | more)
    }
}

fn call_driver(call: &Option<Arc<OwnedFd>>) {
    rustix::io::write(call.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
}
