//! The guest against a back end that sends every frame back to the queue pair it came from.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use echo::{Echo, LIMIT};
use tempfile::TempDir;
use vhost_user::back_end::{Offer, Session};
use vhost_user::{Connection, Incoming};
use wire::virtio::NetHeader;

use super::*;

#[path = "../../tests/echo/mod.rs"]
mod echo;

const SPLIT: Features = Features::VERSION_1.union(Features::MRG_RXBUF).union(Features::EVENT_IDX);
const PACKED: Features = SPLIT.union(Features::RING_PACKED);

fn offer(queue_pairs: u16) -> Offer {
    let features = PACKED.union(Features::MQ);
    Offer { features, protocol: Offer::PROTOCOL, queue_pairs, max_mtu: 1500 }
}

/// A back end that listens, and serves one front end.
fn listen(offer: Offer) -> (TempDir, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let echo = Echo::listen(&directory.path().join("echo.sock"), offer);
    (directory, echo)
}

/// A front end on a back end that takes so many frames before it dies.
fn mortal(offer: Offer, frames: usize) -> (FrontEnd, JoinHandle<()>) {
    let (socket, echo) = Echo::mortal(offer, frames);
    (FrontEnd::new(socket.into(), LIMIT).unwrap(), echo)
}

/// A guest with so many pairs on a back end that offers as many.
fn guest(features: Features, queue_pairs: u16) -> (Guest, JoinHandle<()>) {
    let (directory, echo) = listen(offer(queue_pairs));
    let options = Options { features, queue_pairs, ring_size: 64, limit: LIMIT };
    let guest = Guest::connect(&directory.path().join("echo.sock"), &options).unwrap();
    assert_eq!(guest.drivers.len(), usize::from(queue_pairs));
    (guest, echo)
}

fn frame(pair: u16, number: u32) -> Vec<u8> {
    let mut frame = vec![pair as u8; 60 + number as usize % 1400];
    frame[..4].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Sends a frame on a pair.
#[track_caller]
fn send(guest: &mut Guest, pair: u16, number: u32) {
    let driver = &mut guest.drivers()[usize::from(pair)];
    assert!(driver.send(NetHeader::default(), &frame(pair, number)).unwrap(), "the ring is full");
    guest.flush();
}

/// Waits for the next frame of any pair.
#[track_caller]
fn next(guest: &mut Guest) -> (u16, Vec<u8>) {
    let deadline = Instant::now() + LIMIT;
    loop {
        for (pair, driver) in guest.drivers().iter_mut().enumerate() {
            driver.reclaim().unwrap();
            if let Some(frame) = driver.receive(|received| received.frame.to_vec()).unwrap() {
                guest.flush();
                return (pair as u16, frame);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(guest.wait(left).unwrap() || !left.is_zero(), "no frame came within {LIMIT:?}");
    }
}

/// Waits until the device has taken all that a pair has sent.
#[track_caller]
fn wait_until_sent(guest: &mut Guest, pair: u16) {
    let deadline = Instant::now() + LIMIT;
    let driver = &mut guest.drivers()[usize::from(pair)];
    while driver.in_flight() > 0 {
        assert!(Instant::now() < deadline, "{} frames not taken", driver.in_flight());
        driver.reclaim().unwrap();
        thread::yield_now();
    }
}

#[test]
fn every_pair_carries_its_own_frames() {
    for (features, pairs) in [(SPLIT, 1), (PACKED, 1), (SPLIT, 3), (PACKED, 2), (SPLIT, 128)] {
        let (mut guest, echo) = guest(features, pairs);
        assert_eq!(guest.driver().features().contains(Features::MQ), pairs > 1);
        for number in 0..100 {
            (0..pairs).for_each(|pair| send(&mut guest, pair, number));
            let mut came: Vec<_> = (0..pairs).map(|_| next(&mut guest)).collect();
            came.sort_unstable();
            let expected: Vec<_> = (0..pairs).map(|pair| (pair, frame(pair, number))).collect();
            assert!(came == expected, "{pairs} pairs, number {number}");
        }
        drop(guest);
        echo.join().unwrap();
    }
}

#[test]
fn waiting_is_for_any_pair() {
    let (mut guest, _echo) = guest(SPLIT, 3);
    for pair in [2, 0, 1, 1, 2] {
        // A ring that starts calls once.
        while guest.wait(Duration::ZERO).unwrap() {}
        send(&mut guest, pair, 7);
        assert!(guest.wait(LIMIT).unwrap(), "nobody called for pair {pair}");
        assert_eq!(next(&mut guest), (pair, frame(pair, 7)));
    }
}

#[test]
fn a_pair_that_is_disabled_carries_nothing() {
    for features in [SPLIT, PACKED] {
        let (mut guest, _echo) = guest(features, 2);
        for round in 0..3 {
            guest.enable_pair(1, false).unwrap();
            send(&mut guest, 1, 1);
            wait_until_sent(&mut guest, 1);
            send(&mut guest, 0, 2);
            assert_eq!(next(&mut guest), (0, frame(0, 2)));
            guest.enable_pair(1, true).unwrap();
            send(&mut guest, 1, 3 + round);
            assert_eq!(next(&mut guest), (1, frame(1, 3 + round)), "what was sent before is gone");
        }
    }
}

#[test]
fn a_ring_restarts_while_the_others_go_on() {
    for features in [SPLIT, PACKED] {
        let (mut guest, _echo) = guest(features, 2);
        // What each ring has carried since it started.
        let mut carried = [0; 4];
        let mut sizes = [64, 16, 64, 32, 8].into_iter().cycle();
        for ring in [0, 1, 2, 3, 3, 3, 2, 2, 1, 0] {
            for (pair, number) in [(0, 1), (1, 2), (1, 3)] {
                send(&mut guest, pair, number);
                assert_eq!(next(&mut guest), (pair, frame(pair, number)));
                carried[usize::from(2 * pair)] += 1;
                carried[usize::from(2 * pair + 1)] += 1;
            }
            let position = guest.stop_ring(ring).unwrap();
            let index = if features.contains(Features::RING_PACKED) {
                assert_eq!(position >> 16, position & 0xFFFF, "nothing is outstanding");
                // Bit 15 is the wrap counter, which starts at 1; no ring went round here.
                position & 0x7FFF
            } else {
                position
            };
            assert_eq!(index, carried[usize::from(ring)], "ring {ring}");
            carried[usize::from(ring)] = 0;

            // The other pair does not notice.
            let other = 1 - ring / 2;
            send(&mut guest, other, 4);
            assert_eq!(next(&mut guest), (other, frame(other, 4)));
            carried[usize::from(2 * other)] += 1;
            carried[usize::from(2 * other + 1)] += 1;

            let driver = &mut guest.drivers()[usize::from(ring / 2)];
            let before =
                if is_receive(ring) { driver.receive_ring() } else { driver.transmit_ring() };
            let size = sizes.next().unwrap();
            guest.restart_ring(ring, size).unwrap();
            let driver = &mut guest.drivers()[usize::from(ring / 2)];
            let after =
                if is_receive(ring) { driver.receive_ring() } else { driver.transmit_ring() };
            assert_ne!(before.0, after.0);
            assert_eq!(after.1, size);
        }
    }
}

#[test]
fn a_ring_of_a_disabled_pair_restarts_disabled() {
    let (mut guest, _echo) = guest(SPLIT, 2);
    guest.enable_pair(1, false).unwrap();
    guest.stop_ring(3).unwrap();
    guest.restart_ring(3, 64).unwrap();
    guest.stop_ring(2).unwrap();
    guest.restart_ring(2, 64).unwrap();
    send(&mut guest, 1, 1);
    wait_until_sent(&mut guest, 1);
    guest.enable_pair(1, true).unwrap();
    send(&mut guest, 1, 2);
    assert_eq!(next(&mut guest), (1, frame(1, 2)));
}

#[test]
fn a_back_end_with_too_few_pairs_is_not_used() {
    let connect = |offer: Offer, queue_pairs| {
        let (directory, echo) = listen(offer);
        let options = Options { queue_pairs, ..Options::default() };
        let result = Guest::connect(&directory.path().join("echo.sock"), &options);
        let error = result.err().map(|error| error.to_string());
        echo.join().unwrap();
        error.unwrap_or_default()
    };
    // However a back end counts, it says less than that.
    let error = connect(offer(2), 5);
    assert!(error.ends_with("queue pairs (GET_QUEUE_NUM), and 5 are wanted"), "{error}");
    let says = "the back end serves 128 queue pairs (GET_QUEUE_NUM), and 129 are wanted";
    assert_eq!(connect(offer(128), 129), says);
    let without = Offer { features: PACKED, ..offer(2) };
    assert_eq!(connect(without, 2), "the back end does not offer MQ");
}

#[test]
fn only_rings_and_pairs_that_exist_can_be_named() {
    let (mut guest, _echo) = guest(SPLIT, 2);
    let says = |result: Result<(), GuestError>| result.unwrap_err().to_string();
    let none = "the guest has 2 queue pairs: there is no ring 4";
    assert_eq!(says(guest.stop_ring(4).map(|_| ())), none);
    assert_eq!(says(guest.restart_ring(4, 64)), none);
    let none = "the guest has 2 queue pairs: there is no queue pair 2";
    assert_eq!(says(guest.enable_pair(2, true)), none);
    let large = "a ring of 128 entries does not fit where there is room for 64";
    guest.stop_ring(0).unwrap();
    assert_eq!(says(guest.restart_ring(0, 128)), large);
}

/// Waits until the back end has died.
#[track_caller]
fn wait_until_dead(guest: &mut Guest, echo: JoinHandle<()>) {
    let limit = Timespec::try_from(LIMIT).unwrap();
    let mut polled = [PollFd::new(guest.front_end(), PollFlags::IN)];
    assert_eq!(poll(&mut polled, Some(&limit)), Ok(1), "the back end lives");
    echo.join().unwrap();
}

#[test]
fn a_guest_goes_on_where_its_back_end_died() {
    // Up to a ring of frames goes out at once, and its indices wrap many times.
    const BURST: u32 = 40;
    const FRAMES: u32 = 600;
    const LIVES: usize = 57;
    for features in [
        SPLIT,
        PACKED,
        SPLIT | Features::IN_ORDER,
        PACKED | Features::IN_ORDER,
        Features::VERSION_1,
    ] {
        let all = Offer { features: PACKED | Features::IN_ORDER, ..offer(1) };
        let (front_end, mut echo) = mortal(all, LIVES);
        let options = Options { features, queue_pairs: 1, ring_size: 64, limit: LIMIT };
        let mut guest = Guest::start(front_end, &options).unwrap();
        let (mut sent, mut came, mut deaths) = (0, 0, 0);
        while came < FRAMES {
            while sent < FRAMES && sent - came < BURST {
                send(&mut guest, 0, sent);
                sent += 1;
            }
            let driver = guest.driver();
            driver.reclaim().unwrap();
            while let Some(found) = driver.receive(|received| received.frame.to_vec()).unwrap() {
                assert!(found == frame(0, came), "{features}: frame {came} is another one");
                came += 1;
                // Some stay where they are, and are still there when the back end is not.
                if came % 7 == 0 {
                    break;
                }
            }
            if !echo.is_finished() {
                guest.flush();
                guest.wait(Duration::from_millis(1)).unwrap();
                continue;
            }
            deaths += 1;
            wait_until_dead(&mut guest, echo);
            let front_end;
            (front_end, echo) = mortal(all, LIVES);
            guest.resume(front_end).unwrap();
            assert_eq!(guest.driver().features(), features);
        }
        assert!(deaths >= FRAMES as usize / LIVES, "{deaths} deaths");
    }
}

#[test]
fn a_guest_resumes_with_what_ran_and_was_enabled() {
    for features in [SPLIT, PACKED] {
        let (front_end, echo) = mortal(offer(3), 3);
        let options = Options { features, queue_pairs: 3, ring_size: 64, limit: LIMIT };
        let mut guest = Guest::start(front_end, &options).unwrap();
        guest.enable_pair(1, false).unwrap();
        for number in [1, 2] {
            send(&mut guest, 0, number);
            assert_eq!(next(&mut guest), (0, frame(0, number)));
        }
        guest.stop_ring(5).unwrap();
        // The third one kills it.
        send(&mut guest, 0, 3);
        wait_until_dead(&mut guest, echo);

        let (front_end, _echo) = mortal(offer(3), usize::MAX);
        guest.resume(front_end).unwrap();
        assert_eq!(next(&mut guest), (0, frame(0, 3)));
        send(&mut guest, 1, 4);
        wait_until_sent(&mut guest, 1);
        guest.enable_pair(1, true).unwrap();
        send(&mut guest, 1, 5);
        assert_eq!(next(&mut guest), (1, frame(1, 5)));
        // A stopped ring starts when it is told to, and not before.
        send(&mut guest, 2, 6);
        send(&mut guest, 0, 7);
        assert_eq!(next(&mut guest), (0, frame(0, 7)));
        assert_eq!(guest.drivers()[2].in_flight(), 1);
        guest.restart_ring(5, 64).unwrap();
        send(&mut guest, 2, 8);
        assert_eq!(next(&mut guest), (2, frame(2, 8)));
        // And then runs for good.
        let (front_end, _echo) = mortal(offer(3), usize::MAX);
        guest.resume(front_end).unwrap();
        send(&mut guest, 2, 9);
        assert_eq!(next(&mut guest), (2, frame(2, 9)));
    }
}

#[test]
fn a_guest_resumes_with_no_less_than_it_had() {
    let (front_end, echo) = mortal(offer(3), 1);
    let options = Options { queue_pairs: 3, ..Options::default() };
    let mut guest = Guest::start(front_end, &options).unwrap();
    send(&mut guest, 0, 1);
    wait_until_dead(&mut guest, echo);
    let mut says = |offer| {
        let (front_end, _echo) = mortal(offer, usize::MAX);
        guest.resume(front_end).unwrap_err().to_string()
    };
    let fewer = Offer { features: Features::VERSION_1 | Features::MQ, ..offer(3) };
    assert_eq!(says(fewer), "the back end does not offer MRG_RXBUF EVENT_IDX");
    assert!(says(offer(1)).ends_with("queue pairs (GET_QUEUE_NUM), and 3 are wanted"));
    // And the next one may be better.
    let (front_end, _echo) = mortal(offer(3), usize::MAX);
    guest.resume(front_end).unwrap();
    assert_eq!(next(&mut guest), (0, frame(0, 1)));
}

#[test]
fn a_guest_that_is_reset_begins_anew() {
    for features in [SPLIT, PACKED] {
        for protocol in [Offer::PROTOCOL, ProtocolFeatures::MQ] {
            let (front_end, _echo) = mortal(Offer { protocol, ..offer(2) }, usize::MAX);
            let options = Options { features, queue_pairs: 2, ring_size: 64, limit: LIMIT };
            let mut guest = Guest::start(front_end, &options).unwrap();
            for round in 0..3 {
                for pair in [0, 1, 1] {
                    send(&mut guest, pair, round);
                    assert_eq!(next(&mut guest), (pair, frame(pair, round)));
                }
                guest.enable_pair(1, false).unwrap();
                guest.stop_ring(0).unwrap();
                guest.reset().unwrap();
                let drivers = guest.drivers().iter();
                assert!(drivers.map(NetDriver::in_flight).all(|frames| frames == 0));
            }
        }
    }
}

/// A back end that answers, and never looks into a ring.
fn idle(offer: Offer) -> (FrontEnd, JoinHandle<()>) {
    until(offer, Arc::new(AtomicUsize::new(usize::MAX)))
}

/// The same, which leaves before it answers the message after so many.
fn until(offer: Offer, left: Arc<AtomicUsize>) -> (FrontEnd, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serve = move || {
        let mut connection = Connection::new(theirs.into()).unwrap();
        let mut session = Session::new(offer);
        loop {
            let message = match connection.receive().unwrap() {
                Incoming::Message(message) => message,
                Incoming::Closed => return,
                Incoming::NotYet => {
                    let limit = Timespec::try_from(LIMIT).unwrap();
                    let polled = poll(&mut [PollFd::new(&connection, PollFlags::IN)], Some(&limit));
                    assert_eq!(polled, Ok(1), "the front end is silent");
                    continue;
                }
            };
            if left.fetch_sub(1, Ordering::Relaxed) == 0 {
                return;
            }
            let step = session.handle(message).unwrap();
            if let Some(reply) = session.answer(step) {
                assert!(connection.send(reply).unwrap());
            }
        }
    };
    (FrontEnd::new(ours.into(), LIMIT).unwrap(), thread::spawn(serve))
}

#[test]
fn rings_that_start_are_kicked() {
    let (front_end, _back_end) = idle(offer(1));
    let mut guest = Guest::start(front_end, &Options::default()).unwrap();
    let kicked = |guest: &Guest| {
        [0, 1].map(|ring| rustix::io::read(&guest.events[ring].kick, &mut [0; 8]).is_ok())
    };
    assert_eq!(kicked(&guest), [true; 2]);
    assert_eq!(kicked(&guest), [false; 2], "once");
    let (front_end, _back_end) = idle(offer(1));
    guest.resume(front_end).unwrap();
    assert_eq!(kicked(&guest), [true; 2]);
    guest.stop_ring(1).unwrap();
    guest.restart_ring(1, 64).unwrap();
    assert_eq!(kicked(&guest), [false, true]);
}

#[test]
fn a_back_end_that_cannot_log_is_not_asked_to() {
    let (mut guest, echo) = guest(SPLIT, 1);
    let error = guest.start_logging().unwrap_err();
    assert_eq!(error.to_string(), "the back end does not offer LOG_ALL");
    assert!(guest.dirty_log().is_none());
    // And goes on as it was.
    send(&mut guest, 0, 1);
    guest.front_end().features().unwrap();
    drop(guest);
    echo.join().unwrap();
}

/// Wherever a reset fails, the next back end has all rings but those that were stopped on purpose.
#[test]
fn a_guest_whose_reset_failed_can_go_on() {
    for features in [SPLIT, PACKED] {
        let options = Options { features, queue_pairs: 3, ring_size: 64, limit: LIMIT };
        for messages in 0.. {
            let left = Arc::new(AtomicUsize::new(usize::MAX));
            let (front_end, back_end) = until(offer(3), left.clone());
            let mut guest = Guest::start(front_end, &options).unwrap();
            guest.stop_ring(5).unwrap();
            left.store(messages, Ordering::Relaxed);
            if guest.reset().is_ok() {
                assert!(messages > 40, "a reset of 6 rings in {messages} messages");
                break;
            }
            back_end.join().unwrap();

            let (front_end, _echo) = mortal(offer(3), usize::MAX);
            guest.resume(front_end).unwrap();
            for pair in [0, 1] {
                send(&mut guest, pair, 1);
                assert_eq!(next(&mut guest), (pair, frame(pair, 1)), "{messages} messages");
            }
            if messages == 0 {
                guest.restart_ring(5, 64).unwrap();
            }
        }
    }
}

#[test]
fn a_ring_that_runs_is_not_restarted() {
    let (mut guest, _echo) = guest(SPLIT, 1);
    for ring in [0, 1] {
        let refused = guest.restart_ring(ring, 32).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!("ring {ring} runs: it has to be stopped before it is restarted")
        );
        send(&mut guest, 0, 1);
        assert_eq!(next(&mut guest), (0, frame(0, 1)), "nothing has happened to it");
        guest.stop_ring(ring).unwrap();
        guest.restart_ring(ring, 32).unwrap();
        assert!(guest.restart_ring(ring, 64).is_err(), "it runs again");
    }
}

#[test]
fn who_waits_to_send_is_called_for_what_was_sent() {
    for features in [SPLIT, PACKED, Features::VERSION_1] {
        let (mut guest, _echo) = guest(features, 2);
        // What is sent is thrown away, and no frame comes that would wake us.
        guest.enable_pair(1, false).unwrap();
        for round in 0..20 {
            let driver = &mut guest.drivers()[1];
            while driver.send(NetHeader::default(), &frame(1, round)).unwrap() {}
            assert_eq!(driver.in_flight(), 64);
            guest.flush();
            let deadline = Instant::now() + LIMIT;
            while guest.drivers()[1].reclaim().unwrap() == 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(guest.wait_to_send(left).unwrap(), "not called, {features}");
            }
            wait_until_sent(&mut guest, 1);
        }
        // A frame that comes is a reason to wake, too.
        send(&mut guest, 0, 1);
        let deadline = Instant::now() + LIMIT;
        while guest.driver().receive(|_| ()).unwrap().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(guest.wait_to_send(left).unwrap(), "no frame, {features}");
            guest.driver().reclaim().unwrap();
        }
    }
}

/// A call for what was sent ends one wait and not the other.
#[test]
fn only_who_waits_to_send_hears_of_it() {
    let (front_end, _back_end) = idle(offer(1));
    let mut guest = Guest::start(front_end, &Options::default()).unwrap();
    assert!(!guest.wait_to_send(Duration::ZERO).unwrap());
    rustix::io::write(&guest.events[1].call, &1u64.to_ne_bytes()).unwrap();
    assert!(!guest.wait(Duration::ZERO).unwrap());
    // However long that may take.
    assert!(guest.wait_to_send(Duration::MAX).unwrap());
    assert!(!guest.wait_to_send(Duration::ZERO).unwrap(), "once");
    rustix::io::write(&guest.events[0].call, &1u64.to_ne_bytes()).unwrap();
    assert!(guest.wait(Duration::MAX).unwrap());
}
