//! Two threads, one of which sleeps whenever its ring looks empty: on this machine's processors and
//! in guest memory, what `interleavings` does in every order that the language allows.
//!
//! This is where a missing fence shows: publisher and sleeper each store a word and then look at
//! the other's, and without a fence between store and load both can miss. The sleeper then never
//! wakes. Rounds are short and their timing drifts, so that many of them race; and before its word
//! each side stores to lines that the other one has just written, behind which the word has to wait
//! for its turn in the store buffer. Code that is not optimised is slow enough to hide the race all
//! the same: run this with `--release` to see that a missing fence is found.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memory::GuestAddress;
use wire::virtio::Features;

use super::bed::{Bed, PACKED, SPLIT};
use crate::{Buffer, DeviceQueue, DriverQueue, Form};

const ROUNDS: u32 = 10_000;
const LIMIT: Duration = Duration::from_secs(10);

/// What an eventfd is to two processes.
#[derive(Default)]
struct Event {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self, what: &str) {
        let signalled = self.signalled.lock().unwrap();
        let waited = self.changed.wait_timeout_while(signalled, LIMIT, |signalled| !*signalled);
        let (mut signalled, timeout) = waited.unwrap();
        assert!(!timeout.timed_out(), "no {what} in {LIMIT:?}: it was lost");
        *signalled = false;
    }
}

/// Polls `look` until it finds something.
fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = 2 * LIMIT;
    let start = Instant::now();
    loop {
        for _ in 0..1000 {
            if let Some(found) = look() {
                return found;
            }
            spin_loop();
        }
        assert!(start.elapsed() < limit, "no {what} in {limit:?}");
        thread::yield_now();
    }
}

/// A pause that differs from round to round.
fn drift(round: u32) {
    for _ in 0..round.wrapping_mul(7) % 61 {
        spin_loop();
    }
}

/// Cache lines that both sides write, over and over.
struct Contended([Line; 48]);

#[repr(align(64))]
struct Line(AtomicU32);

impl Contended {
    fn new() -> Self {
        Self([const { Line(AtomicU32::new(0)) }; 48])
    }

    fn write(&self) {
        for line in &self.0 {
            line.0.store(1, Ordering::Relaxed);
        }
    }
}

/// One at a time: each needs two processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

fn offer(ring: &Bed, driver: &mut DriverQueue, lines: &Contended, round: u32) -> bool {
    let chain = [Buffer { address: GuestAddress(ring.area(0)), len: 1, writable: false }];
    driver.add(&chain, Form::Direct, round).unwrap();
    lines.write();
    driver.publish()
}

fn turn_round(ring: &Bed, device: &mut DeviceQueue, lines: &Contended) -> Option<bool> {
    let translator = &mut ring.memory.translator();
    let chain = device.take_readable(translator, 1, &mut Vec::new()).unwrap()?;
    device.give_back(chain, 0);
    lines.write();
    Some(device.publish())
}

/// The device sleeps, the driver polls.
fn kicked(format: Features, features: Features) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ring = &Bed::new(format, 4);
    let lines = &Contended::new();
    let kick = &Event::default();
    let mut driver = ring.driver(features);
    let mut device = ring.device(features);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut done = 0;
            while done < ROUNDS {
                if turn_round(ring, &mut device, lines).is_some() {
                    done += 1;
                    continue;
                }
                lines.write();
                if !device.enable_kicks().unwrap() {
                    kick.wait("kick");
                    device.disable_kicks();
                }
            }
        });
        for round in 0..ROUNDS {
            if offer(ring, &mut driver, lines, round) {
                kick.signal();
            }
            let used = poll("used chain", || driver.reap().unwrap());
            assert_eq!(used.token, round);
            drift(round);
        }
    });
}

/// The driver sleeps, the device polls.
fn called(format: Features, features: Features) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ring = &Bed::new(format, 4);
    let lines = &Contended::new();
    let call = &Event::default();
    let mut driver = ring.driver(features);
    let mut device = ring.device(features);
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                if poll("chain", || turn_round(ring, &mut device, lines)) {
                    call.signal();
                }
                drift(round);
            }
        });
        for round in 0..ROUNDS {
            let _ = offer(ring, &mut driver, lines, round);
            loop {
                if let Some(used) = driver.reap().unwrap() {
                    assert_eq!(used.token, round);
                    break;
                }
                lines.write();
                if !driver.enable_calls() {
                    call.wait("call");
                    driver.disable_calls();
                }
            }
        }
    });
}

#[test]
fn no_kick_is_lost() {
    for format in [SPLIT, PACKED] {
        for features in [Features::NONE, Features::EVENT_IDX] {
            kicked(format, features);
        }
    }
}

#[test]
fn no_call_is_lost() {
    for format in [SPLIT, PACKED] {
        for features in [Features::NONE, Features::EVENT_IDX] {
            called(format, features);
        }
    }
}
