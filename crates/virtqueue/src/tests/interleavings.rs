//! Both sides of a ring in every order in which two processors may see each other's loads and
//! stores: loom goes through them, stale loads included, up to a number of preemptions.
//!
//! The sleeper blocks for good when its wake-up is lost, which loom reports as a deadlock. That the
//! tests can see it is tested too: with a fence taken out of either side, or with a publication that
//! is not ordered, they must fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::model::Builder;
use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use memory::{GuestAddress, GuestMemory};
use wire::virtio::Features;

use crate::fields::{Fields, RingMemory};
use crate::{Buffer, DeviceRing, Direction, Form, Piece, Single, packed, split};

/// Preemptions in one run: enough for either side to be overtaken between a store and a load, and
/// back, and then once more.
const PREEMPTIONS: usize = 3;
/// The same where each side does twice as much, which would take twenty times as long.
const PREEMPTIONS_TO_AND_FRO: usize = 2;

/// Chains in one run.
const CHAINS: u32 = 2;

/// Nothing is wrong with this side.
const SOUND: u8 = 0;
/// This side has no fences.
const NO_FENCE: u8 = 1;
/// This side orders neither its loads nor its stores.
const RELAXED: u8 = 2;

/// Memory under loom's eyes, as a side sees it that may be broken.
enum Modelled<const BROKEN: u8> {}

struct Array<A, const BROKEN: u8>(Arc<[A]>);

impl<A, const BROKEN: u8> Clone for Array<A, BROKEN> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<const BROKEN: u8> RingMemory for Modelled<BROKEN> {
    type U16 = Array<AtomicU16, BROKEN>;
    type U32 = Array<AtomicU32, BROKEN>;
    type U64 = Array<AtomicU64, BROKEN>;

    fn fence() {
        if BROKEN != NO_FENCE {
            fence(Ordering::SeqCst);
        }
    }
}

macro_rules! fields {
    ($($value:ty: $atomic:ty),*) => {$(
        impl<const BROKEN: u8> Fields<$value> for Array<$atomic, BROKEN> {
            fn load(&self, at: usize, order: Ordering) -> $value {
                self.0[at].load(if BROKEN == RELAXED { Ordering::Relaxed } else { order })
            }

            fn store(&self, at: usize, value: $value, order: Ordering) {
                let order = if BROKEN == RELAXED { Ordering::Relaxed } else { order };
                self.0[at].store(value, order);
            }

            fn load_run(&self, at: usize, count: usize) -> impl Iterator<Item = $value> {
                (at..at + count).map(|at| self.load(at, Ordering::Relaxed))
            }

            fn pairs(
                &self,
                at: usize,
                count: usize,
            ) -> impl Iterator<
                Item = (impl FnOnce(Ordering) -> $value, impl FnOnce(Ordering) -> $value),
            > {
                let load = move |at| move |order| self.load(at, order);
                (at..).step_by(2).take(count).map(move |at| (load(at), load(at + 1)))
            }

            fn store_pairs(&self, at: usize, values: impl ExactSizeIterator<Item = [$value; 2]>) {
                let places = (at..).step_by(2);
                places.zip(values).for_each(|(at, values)| self.store_two(at, values));
            }

            fn load_two(&self, at: usize) -> Option<[$value; 2]> {
                let load = |at| self.load(at, Ordering::Relaxed);
                (at + 1 < self.0.len()).then(|| [at, at + 1].map(load))
            }
        }
    )*};
}
fields!(u16: AtomicU16, u32: AtomicU32, u64: AtomicU64);

fn zeros<A: Default>(count: usize) -> Arc<[A]> {
    (0..count).map(|_| A::default()).collect()
}

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

    fn wait(&self) {
        let mut signalled = self.signalled.lock().unwrap();
        while !*signalled {
            signalled = self.changed.wait(signalled).unwrap();
        }
        *signalled = false;
    }
}

/// What is in the buffers, by chain: bytes that are neither atomic nor ordered by themselves.
#[derive(Clone, Default)]
struct Contents(Arc<[AtomicU32; CHAINS as usize]>);

impl Contents {
    fn set(&self, number: u32, value: u32) {
        self.0[number as usize].store(value, Ordering::Relaxed);
    }

    #[track_caller]
    fn check(&self, number: u32, value: u32) {
        assert_eq!(self.0[number as usize].load(Ordering::Relaxed), value);
    }
}

/// What the driver puts into a buffer, and the device instead.
const QUESTION: u32 = 1;
const ANSWER: u32 = 2;

/// The buffer of chain `number`: each is another one.
fn buffer(number: u32) -> Buffer {
    Buffer { address: GuestAddress((0x100 + number).into()), len: 10 + number, writable: false }
}

/// What is worth another run. With IN_ORDER one used entry stands for all that are published at once.
const FLAVOURS: [Features; 4] = [
    Features::NONE,
    Features::EVENT_IDX,
    Features::IN_ORDER,
    Features(Features::EVENT_IDX.0 | Features::IN_ORDER.0),
];

/// What the device says that it wrote. With IN_ORDER it says it only of the last of several chains, so
/// that there has to be nothing to say.
fn written(features: Features, number: u32) -> u32 {
    if features.contains(Features::IN_ORDER) { 0 } else { 100 + number }
}

/// Takes no bytes, for there is no memory, but checks that the chain is the one that was published.
macro_rules! take {
    ($device:ident, $contents:ident, $number:expr) => {{
        let memory = GuestMemory::empty();
        let mut translator = memory.translator();
        let taken = $device.take_readable(&mut translator, 0, &mut Vec::new()).unwrap();
        taken.inspect(|chain| {
            let mut pieces = Vec::new();
            $device.pieces(*chain, &mut translator, &mut pieces).unwrap();
            let Buffer { address, len, .. } = buffer($number);
            assert_eq!(pieces, [Piece { address, len }]);
            assert_eq!(chain.bytes(), len.into());
            $contents.check($number, QUESTION);
        })
    }};
}

/// The tests of one format, given a pair of queues over the same zeros.
macro_rules! tests {
    ($name:ident, $format:ident, $pair:ident) => {
        mod $name {
            use super::*;
            use crate::$format::{DeviceQueue, DriverQueue};

            type Pair<const DRIVER: u8, const DEVICE: u8> =
                (DriverQueue<Modelled<DRIVER>>, DeviceQueue<Modelled<DEVICE>>);

            fn add<const DRIVER: u8>(
                driver: &mut DriverQueue<Modelled<DRIVER>>,
                contents: &Contents,
                number: u32,
            ) {
                contents.set(number, QUESTION);
                driver.add(&[buffer(number)], Form::Direct, number).unwrap();
            }

            /// The device sleeps until it has had all chains, which are published one by one or at
            /// once.
            fn kicked<const DRIVER: u8, const DEVICE: u8>(features: Features, at_once: bool) {
                let (mut driver, mut device): Pair<DRIVER, DEVICE> = $pair(2, features);
                let (kick, contents) = (Arc::new(Event::default()), Contents::default());
                let sleeper = thread::spawn({
                    let (kick, contents) = (kick.clone(), contents.clone());
                    move || {
                        let mut number = 0;
                        while number < CHAINS {
                            if take!(device, contents, number).is_some() {
                                number += 1;
                            } else if !device.enable_kicks().unwrap() {
                                kick.wait();
                                device.disable_kicks();
                            }
                        }
                    }
                });
                for number in 0..CHAINS {
                    add(&mut driver, &contents, number);
                    if (!at_once || number + 1 == CHAINS) && driver.publish() {
                        kick.signal();
                    }
                }
                sleeper.join().unwrap();
            }

            /// Likewise, but the device takes what there is at once.
            fn kicked_together<const DRIVER: u8, const DEVICE: u8>(
                features: Features,
                at_once: bool,
            ) {
                let (mut driver, mut device): Pair<DRIVER, DEVICE> = $pair(4, features);
                let (kick, contents) = (Arc::new(Event::default()), Contents::default());
                let sleeper = thread::spawn({
                    let (kick, contents) = (kick.clone(), contents.clone());
                    move || {
                        let mut number = 0;
                        while number < CHAINS {
                            let take = |single: Single| {
                                let Buffer { address, len, .. } = buffer(number);
                                assert_eq!(single.buffer(), Piece { address, len });
                                contents.check(number, QUESTION);
                                number += 1;
                                true
                            };
                            let taken = device.take_singles(Direction::Read, 4, take).unwrap();
                            assert!(!taken.is_other_next);
                            if taken.count == 0 && !device.enable_kicks().unwrap() {
                                kick.wait();
                                device.disable_kicks();
                            }
                        }
                    }
                });
                for number in 0..CHAINS {
                    add(&mut driver, &contents, number);
                    if (!at_once || number + 1 == CHAINS) && driver.publish() {
                        kick.signal();
                    }
                }
                sleeper.join().unwrap();
            }

            /// The driver sleeps until it has all chains back, which are given back one by one or at once.
            fn called<const DRIVER: u8, const DEVICE: u8>(features: Features, at_once: bool) {
                let (mut driver, mut device): Pair<DRIVER, DEVICE> = $pair(2, features);
                let (call, contents) = (Arc::new(Event::default()), Contents::default());
                driver.disable_calls();
                (0..CHAINS).for_each(|number| add(&mut driver, &contents, number));
                let _ = driver.publish();
                let sleeper = thread::spawn({
                    let (call, contents) = (call.clone(), contents.clone());
                    move || {
                        let mut number = 0;
                        while number < CHAINS {
                            if let Some(used) = driver.reap().unwrap() {
                                assert_eq!(used.token, number);
                                assert_eq!(used.written, written(features, number));
                                contents.check(number, ANSWER);
                                number += 1;
                            } else if !driver.enable_calls() {
                                call.wait();
                                driver.disable_calls();
                            }
                        }
                    }
                });
                let mut used = Vec::new();
                for number in 0..CHAINS {
                    let chain = take!(device, contents, number).expect("all were published");
                    contents.set(number, ANSWER);
                    used.push((chain, written(features, number)));
                    if !at_once || number + 1 == CHAINS {
                        device.give_all_back(used.drain(..));
                        if device.publish() {
                            call.signal();
                        }
                    }
                }
                sleeper.join().unwrap();
            }

            /// Both sleep, and the only descriptor goes to and fro.
            fn to_and_fro<const DRIVER: u8, const DEVICE: u8>(features: Features) {
                let (mut driver, mut device): Pair<DRIVER, DEVICE> = $pair(1, features);
                let events = Arc::new([Event::default(), Event::default()]);
                let contents = Contents::default();
                driver.disable_calls();
                let other = thread::spawn({
                    let (events, contents) = (events.clone(), contents.clone());
                    move || {
                        let [kick, call] = &*events;
                        let mut number = 0;
                        while number < CHAINS {
                            if let Some(chain) = take!(device, contents, number) {
                                contents.set(number, ANSWER);
                                device.give_back(chain, written(features, number));
                                if device.publish() {
                                    call.signal();
                                }
                                number += 1;
                            } else if !device.enable_kicks().unwrap() {
                                kick.wait();
                                device.disable_kicks();
                            }
                        }
                    }
                });
                let [kick, call] = &*events;
                for number in 0..CHAINS {
                    add(&mut driver, &contents, number);
                    if driver.publish() {
                        kick.signal();
                    }
                    let used = loop {
                        if let Some(used) = driver.reap().unwrap() {
                            break used;
                        }
                        if !driver.enable_calls() {
                            call.wait();
                            driver.disable_calls();
                        }
                    };
                    let expected = (number, written(features, number));
                    assert_eq!((used.token, used.written), expected);
                    contents.check(number, ANSWER);
                }
                other.join().unwrap();
            }

            fn each_way(test: impl Fn(Features, bool)) {
                for features in FLAVOURS {
                    for at_once in [false, true] {
                        test(features, at_once);
                    }
                }
            }

            #[test]
            fn no_kick_is_lost() {
                each_way(|features, at_once| {
                    explore(PREEMPTIONS, move || kicked::<SOUND, SOUND>(features, at_once));
                });
            }

            #[test]
            fn no_kick_is_lost_by_taking_together() {
                each_way(|features, at_once| {
                    explore(PREEMPTIONS, move || {
                        kicked_together::<SOUND, SOUND>(features, at_once);
                    });
                });
            }

            #[test]
            fn no_call_is_lost() {
                each_way(|features, at_once| {
                    explore(PREEMPTIONS, move || called::<SOUND, SOUND>(features, at_once));
                });
            }

            #[test]
            fn nothing_is_lost_to_and_fro() {
                for features in FLAVOURS {
                    explore(PREEMPTIONS_TO_AND_FRO, move || to_and_fro::<SOUND, SOUND>(features));
                }
            }

            #[test]
            fn a_missing_fence_is_found() {
                // One by one: a device calls unconditionally when it first publishes.
                for features in FLAVOURS {
                    fails("the driver's, to kick", move || {
                        kicked::<NO_FENCE, SOUND>(features, false);
                    });
                    fails("the device's, to be kicked", move || {
                        kicked::<SOUND, NO_FENCE>(features, false);
                    });
                    fails("the driver's, to be called", move || {
                        called::<NO_FENCE, SOUND>(features, false);
                    });
                    fails("the device's, to call", move || {
                        called::<SOUND, NO_FENCE>(features, false);
                    });
                }
            }

            #[test]
            fn a_missing_order_is_found() {
                for features in FLAVOURS {
                    fails("the driver's, to publish", move || {
                        kicked::<RELAXED, SOUND>(features, true);
                    });
                    fails("the device's, to take", move || {
                        kicked::<SOUND, RELAXED>(features, true);
                    });
                    fails("the device's, to take together", move || {
                        kicked_together::<SOUND, RELAXED>(features, true);
                    });
                    fails("the device's, to publish", move || {
                        called::<SOUND, RELAXED>(features, true);
                    });
                    fails("the driver's, to reap", move || {
                        called::<RELAXED, SOUND>(features, true);
                    });
                }
            }
        }
    };
}
tests!(in_a_split_ring, split, split_pair);
tests!(in_a_packed_ring, packed, packed_pair);

fn split_pair<const DRIVER: u8, const DEVICE: u8>(
    size: u16,
    features: Features,
) -> (split::DriverQueue<Modelled<DRIVER>>, split::DeviceQueue<Modelled<DEVICE>>) {
    let entries = usize::from(size);
    let descriptors = zeros(2 * entries);
    let available = zeros(3 + entries);
    let used = zeros(2);
    let used_entries = zeros(2 * entries);
    let available_event = zeros(1);
    macro_rules! layout {
        () => {
            split::Layout {
                size,
                descriptors: Array(descriptors.clone()),
                available: Array(available.clone()),
                used: Array(used.clone()),
                used_entries: Array(used_entries.clone()),
                available_event: Array(available_event.clone()),
            }
        };
    }
    let driver = split::DriverQueue::new(layout!(), features, None);
    (driver, split::DeviceQueue::new(layout!(), features, 0))
}

fn packed_pair<const DRIVER: u8, const DEVICE: u8>(
    size: u16,
    features: Features,
) -> (packed::DriverQueue<Modelled<DRIVER>>, packed::DeviceQueue<Modelled<DEVICE>>) {
    let descriptors = zeros(2 * usize::from(size));
    let driver_event = zeros(1);
    let device_event = zeros(1);
    macro_rules! layout {
        () => {
            packed::Layout {
                size,
                descriptors: Array(descriptors.clone()),
                driver_event: Array(driver_event.clone()),
                device_event: Array(device_event.clone()),
            }
        };
    }
    let driver = packed::DriverQueue::new(layout!(), features, None);
    (driver, packed::DeviceQueue::new(layout!(), features, packed::FIRST_POSITION))
}

fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

fn fails(what: &str, test: impl Fn() + Send + Sync + 'static) {
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(PREEMPTIONS, test)));
    assert!(outcome.is_err(), "without this, nothing was lost: {what}");
}
