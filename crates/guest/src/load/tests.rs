//! The generator against a back end that echoes, and against several that should not do what they do.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memory::WriteCursor;
use tempfile::TempDir;
use vhost_user::back_end::{Device, Offer, Session};
use vhost_user::{Connection, Incoming};
use virtqueue::DeviceQueue;
use wire::virtio::Features;

use super::*;

/// Anything here takes milliseconds; this is for a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(10);
const TIME: Duration = Duration::from_millis(200);
const ALL: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::IN_ORDER)
    .union(Features::RING_PACKED);

/// What the back end does to the frame of this number. The frames before it are echoed as they should
/// be, and so are those behind it, as far as there still is anybody.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Changes the byte at this place.
    Change(usize),
    Drop,
    /// Sends the frame that follows first.
    Exchange,
    Repeat,
    Truncate,
    /// Says that it fills no buffer.
    NoBuffers,
    /// Does nothing for [`STALL`].
    Stall,
    Hang,
    HangUp,
}

/// A stalling back end's pause.
const STALL: Duration = Duration::from_millis(100);
/// The frame that suffers.
const VICTIM: usize = 40;

/// Of a frame that came: the number of its source address, its source port, and its bytes.
type Seen = (usize, usize, usize);

struct Echo {
    fault: Fault,
    session: Session,
    device: Arc<Device>,
    queues: [Option<DeviceQueue>; 2],
    frames: VecDeque<Vec<u8>>,
    taken: usize,
    seen: Vec<Seen>,
}

impl Echo {
    /// The thread ends with what was taken.
    fn serve(fault: Fault) -> (TempDir, JoinHandle<Vec<Seen>>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("echo.sock")).unwrap();
        let serve = move || {
            let mut connection = Connection::new(listener.accept().unwrap().0.into()).unwrap();
            let protocol = Offer::PROTOCOL;
            let session =
                Session::new(Offer { features: ALL, protocol, queue_pairs: 1, max_mtu: 1500 });
            let device = session.device().clone();
            let frames = VecDeque::new();
            let (queues, seen) = ([None, None], Vec::new());
            let mut echo = Self { fault, session, device, queues, frames, taken: 0, seen };
            echo.live(&mut connection);
            echo.seen
        };
        (directory, thread::spawn(serve))
    }

    fn live(&mut self, connection: &mut Connection) {
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "the front end does not leave");
            match connection.receive() {
                Ok(Incoming::NotYet) => thread::yield_now(),
                Ok(Incoming::Message(message)) => {
                    let step = self.session.handle(message).unwrap();
                    if let Some(device) = step.device.clone() {
                        self.swap(device);
                    }
                    if let Some(reply) = self.session.answer(step) {
                        assert!(connection.send(reply).unwrap());
                    }
                }
                Ok(Incoming::Closed) | Err(_) => return,
            }
            self.take();
            if self.taken > VICTIM && self.fault == Fault::HangUp {
                return;
            }
            self.deliver();
        }
    }

    fn swap(&mut self, device: Arc<Device>) {
        for (queue, ring) in self.queues.iter_mut().zip(&device.rings) {
            if let (None, Some(ring)) = (&queue, ring) {
                let layout = ring.layout.clone();
                *queue = Some(DeviceQueue::new(layout, device.features, ring.base));
            }
        }
        self.device = device;
    }

    /// Takes what was sent, and does to it what it should not.
    fn take(&mut self) {
        let [_, Some(queue)] = &mut self.queues else { return };
        if self.fault == Fault::Hang && self.taken > VICTIM {
            return;
        }
        let mut translator = self.device.memory.translator();
        let mut slices = Vec::new();
        while let Some(chain) = queue.take_readable(&mut translator, u32::MAX, &mut slices).unwrap()
        {
            let mut frame = Vec::new();
            for slice in slices.drain(..) {
                let start = frame.len();
                frame.resize(start + slice.len(), 0);
                slice.copy_to(&mut frame[start..]);
            }
            let number = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
            self.seen.push((number(12 + 10), number(12 + 34), frame.len() - 12));
            // It fills one buffer.
            frame[10] = 1;
            let exchanged = self.taken == VICTIM + 1 && self.fault == Fault::Exchange;
            if self.taken == VICTIM {
                match self.fault {
                    Fault::Change(at) => frame[12 + at] ^= 0x40,
                    Fault::Truncate => frame.truncate(frame.len() - 1),
                    Fault::NoBuffers => frame[10] = 0,
                    Fault::Stall => thread::sleep(STALL),
                    Fault::Repeat => self.frames.push_back(frame.clone()),
                    _ => {}
                }
            }
            if self.taken != VICTIM || self.fault != Fault::Drop {
                self.frames.push_back(frame);
            }
            if exchanged {
                let last = self.frames.len() - 1;
                self.frames.swap(last - 1, last);
            }
            self.taken += 1;
            queue.give_back(chain, 0);
        }
        let _ = queue.publish();
    }

    fn deliver(&mut self) {
        let [Some(queue), _] = &mut self.queues else { return };
        let mut translator = self.device.memory.translator();
        // The last one stays until there is another, so that it can be exchanged with that.
        let stay = usize::from(self.fault == Fault::Exchange && self.taken == VICTIM + 1);
        while self.frames.len() > stay {
            let mut slices = Vec::new();
            let taken = queue.take_writable(&mut translator, u32::MAX, &mut slices).unwrap();
            let (Some(chain), Some(frame)) = (taken, self.frames.front()) else { break };
            let written = WriteCursor::new(&slices).write(frame.as_slice().into());
            queue.give_back(chain, written as u32);
            self.frames.pop_front();
        }
        let _ = queue.publish();
    }
}

fn setup(size: usize, verify: bool) -> Setup {
    Setup {
        frames: Frames { sizes: vec![size], segmented: false },
        addresses: Addresses { macs: 1, flows: 1 },
        verify,
        one_way: false,
    }
}

fn generator(directory: &TempDir, required: Features) -> Generator {
    let options = PortOptions {
        required,
        wanted: required | Features::MRG_RXBUF,
        ring_size: 64,
        longest: 1518,
        limit: LIMIT,
    };
    let port = Port::connect(&directory.path().join("echo.sock"), &options).unwrap();
    Generator::new(vec![port])
}

/// Loads an echo with that fault.
fn load(fault: Fault, required: Features, load: &Load) -> Result<Outcome, LoadError> {
    let (directory, echo) = Echo::serve(fault);
    let mut generator = generator(&directory, required);
    let report = generator.run(load, &Progress::default());
    drop(generator);
    echo.join().unwrap();
    report.map(|report| report.directions.into_iter().next().unwrap())
}

fn verified(fault: Fault) -> Result<Outcome, LoadError> {
    let verified = Load { setup: setup(200, true), pace: Pace::Window(32), time: TIME };
    load(fault, Features::NONE, &verified)
}

/// Lost, reordered, duplicated, corrupted.
fn faults(way: &Outcome) -> [u64; 4] {
    [way.lost, way.reordered, way.duplicates, way.corrupted]
}

#[test]
fn every_flavour_comes_back_whole() {
    for required in [
        Features::NONE,
        Features::EVENT_IDX,
        Features::IN_ORDER,
        Features::RING_PACKED,
        Features::RING_PACKED | Features::IN_ORDER | Features::EVENT_IDX,
    ] {
        for (pace, macs, flows) in
            [(Pace::Window(48), 1, 1), (Pace::Window(3), 300, 7), (Pace::Rate(10e3), 3, 1)]
        {
            let addresses = Addresses { macs, flows };
            let setup = Setup { addresses, ..setup(65, true) };
            let way = load(Fault::None, required, &Load { setup, pace, time: TIME }).unwrap();
            assert!(way.received > 0, "{required}: nothing came");
            assert_eq!(faults(&way), [0; 4], "{required}, {pace:?}");
            assert_eq!((way.sent, way.foreign), (way.received, 0));
            assert_eq!(way.latency.len(), way.received);
        }
    }
}

#[test]
fn a_changed_frame_is_found_wherever_it_was_changed() {
    // Type, length, source port, pattern.
    for at in [13, 17, 35, 64, 150, 199] {
        assert_eq!(faults(&verified(Fault::Change(at)).unwrap()), [0, 0, 0, 1], "byte {at}");
    }
    // Mark, number, time and checksum of the stamp: without its mark it is nobody's, and of a number that was not
    // sent yet nobody knows which frame it was.
    for (at, expected) in [(51, [1, 0, 0, 0]), (44, [1, 0, 0, 1]), (52, [0, 0, 0, 1])] {
        assert_eq!(faults(&verified(Fault::Change(at)).unwrap()), expected, "byte {at}");
    }
    assert_eq!(faults(&verified(Fault::Change(60)).unwrap()), [0, 0, 0, 1]);
    assert_eq!(faults(&verified(Fault::Truncate).unwrap()), [0, 0, 0, 1]);
}

#[test]
fn loss_reordering_and_duplicates_are_told_apart() {
    assert_eq!(faults(&verified(Fault::Drop).unwrap()), [1, 0, 0, 0]);
    assert_eq!(faults(&verified(Fault::Exchange).unwrap()), [0, 1, 0, 0]);
    assert_eq!(faults(&verified(Fault::Repeat).unwrap()), [0, 0, 1, 0]);
}

#[test]
fn frames_of_different_flows_may_overtake_each_other() {
    for (flows, expected) in [(1, 1), (2, 0)] {
        let setup = Setup { addresses: Addresses { macs: 1, flows }, ..setup(200, true) };
        let pair = Load { setup, pace: Pace::Window(32), time: TIME };
        let way = load(Fault::Exchange, Features::NONE, &pair).unwrap();
        assert_eq!(faults(&way), [0, expected, 0, 0], "{flows} flows");
    }
}

#[test]
fn without_verification_order_is_checked_and_contents_are_not() {
    let load_of = |fault| {
        let plain = Load { setup: setup(200, false), pace: Pace::Window(32), time: TIME };
        faults(&load(fault, Features::NONE, &plain).unwrap())
    };
    assert_eq!(load_of(Fault::Exchange), [0, 1, 0, 0]);
    assert_eq!(load_of(Fault::Change(150)), [0; 4]);
    // A number that was never sent.
    assert_eq!(load_of(Fault::Change(48)), [1, 0, 0, 1]);
}

#[test]
fn a_rule_that_is_broken_is_said() {
    let error = verified(Fault::NoBuffers).unwrap_err().to_string();
    assert!(error.contains("delivered a frame in 0 buffers"), "{error}");
}

#[test]
fn a_back_end_that_goes_away_ends_the_load() {
    let error = verified(Fault::HangUp).unwrap_err();
    assert!(matches!(error, LoadError::Closed { .. }), "{error}");
}

#[test]
fn a_back_end_that_hangs_keeps_its_frames() {
    let (directory, echo) = Echo::serve(Fault::Hang);
    let mut generator = generator(&directory, Features::NONE);
    let hung = Load { setup: setup(64, false), pace: Pace::Rate(100e3), time: TIME };
    let way = generator.run(&hung, &Progress::default()).unwrap().directions.remove(0);
    assert!(way.received > VICTIM as u64 && way.lost > 0);
    // All of them were late, whether they could be sent or not.
    let error = generator.run(&hung, &Progress::default()).unwrap_err();
    assert!(matches!(error, LoadError::Held { held: 1.., .. }), "{error}");
    drop(generator);
    echo.join().unwrap();
}

#[test]
fn a_rate_is_kept() {
    // So few that they all find room, however long this thread has to wait for its processor.
    let rate = Load { setup: setup(64, false), pace: Pace::Rate(200.0), time: TIME };
    let way = load(Fault::None, Features::NONE, &rate).unwrap();
    // One at the start, and one every 5 ms.
    assert_eq!(way.sent, 41);
}

/// A sender that waited with the back end would find only those frames late that were in its ring.
#[test]
fn a_stall_makes_all_frames_late_that_should_have_been_sent_meanwhile() {
    let rate = Load { setup: setup(64, false), pace: Pace::Rate(10e3), time: TIME };
    let way = load(Fault::Stall, Features::NONE, &rate).unwrap();
    let late = way.latency.count_between(STALL.as_nanos() as u64 / 5, u64::MAX);
    assert!(late > 300, "{late} of {} frames were late", way.received);
}

#[test]
fn a_trial_can_be_stopped() {
    let (directory, echo) = Echo::serve(Fault::None);
    let mut generator = generator(&directory, Features::NONE);
    let progress = Progress::default();
    progress.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let endless = Load { setup: setup(64, false), pace: Pace::Window(8), time: 100 * LIMIT };
    let report = generator.run(&endless, &progress).unwrap();
    assert!(report.interrupted && report.time < LIMIT);
    assert!(report.directions[0].received > 0);
    drop(generator);
    echo.join().unwrap();
}

#[test]
fn the_busy_path_does_not_allocate() {
    for verify in [false, true] {
        let (directory, echo) = Echo::serve(Fault::None);
        let mut generator = generator(&directory, Features::NONE);
        let mut allocations = |time| {
            let load = Load { setup: setup(200, verify), pace: Pace::Window(32), time };
            let mut received = 0;
            let found = allocation_counter::measure(|| {
                let report = generator.run(&load, &Progress::default()).unwrap();
                received = report.directions[0].received;
            });
            assert!(received > 0);
            found.count_total
        };
        // The first trial makes room for the longest frame.
        allocations(TIME);
        assert_eq!(allocations(TIME / 4), allocations(TIME));
        drop(generator);
        echo.join().unwrap();
    }
}

#[test]
fn a_window_has_to_fit() {
    let large = Load { setup: setup(64, false), pace: Pace::Window(65), time: TIME };
    let error = load(Fault::None, Features::NONE, &large).unwrap_err();
    assert!(matches!(error, LoadError::Window { window: 65, most: 64, .. }), "{error}");
}

#[test]
fn every_flow_gets_every_size_whatever_the_ring() {
    let sizes = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
    for (required, macs, flows) in [
        (Features::NONE, 1, 1),
        (Features::RING_PACKED, 1, 1),
        (Features::RING_PACKED, 1, 12),
        (Features::NONE, 3, 4),
        (Features::IN_ORDER, 2, 7),
    ] {
        let frames = Frames { sizes: sizes.to_vec(), segmented: false };
        let setup = Setup { frames, addresses: Addresses { macs, flows }, ..setup(64, true) };
        let (directory, echo) = Echo::serve(Fault::None);
        let mut generator = generator(&directory, required);
        let mix = Load { setup, pace: Pace::Window(8), time: TIME };
        let way = generator.run(&mix, &Progress::default()).unwrap().directions.remove(0);
        drop(generator);
        let taken = echo.join().unwrap();
        assert_eq!(faults(&way), [0; 4], "{required}, {macs}, {flows}");
        assert!(taken.len() > 300 && taken.len() as u64 == way.sent);
        let (macs, flows) = (macs as usize, usize::from(flows));
        let expected = (0..taken.len()).map(|number| {
            let round = number / (macs * flows);
            let turn = round + number % (macs * flows);
            (number % macs, 1024 + number / macs % flows, sizes[turn % 12])
        });
        assert!(taken.into_iter().eq(expected), "{required}, {macs}, {flows}");
    }
}

/// What was due before the end, and found no room.
#[test]
fn what_could_not_be_sent_is_said() {
    let rate = Load { setup: setup(64, false), pace: Pace::Rate(10e3), time: TIME };
    let way = load(Fault::Hang, Features::NONE, &rate).unwrap();
    assert_eq!(way.sent + way.unsent, 2001);
    assert!(way.unsent > 1000, "{} of 2001", way.unsent);
    let way = load(Fault::None, Features::NONE, &Load { pace: Pace::Rate(200.0), ..rate }).unwrap();
    assert_eq!((way.sent, way.unsent), (41, 0));
}
