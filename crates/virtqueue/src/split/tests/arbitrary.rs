//! Arbitrary bytes in all of a ring's memory: no panic, bounded work, and never more chains
//! outstanding than the ring has entries.
//!
//! Bytes that are quite arbitrary are refused at once, so most words are drawn from what is nearly
//! right: small indices, flags that exist, addresses near the memory.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::mem::{Discriminant, discriminant};
use std::sync::atomic::Ordering;

use memory::{GuestAddress, GuestMemory};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wire::split::Descriptor;
use wire::virtio::Features;

use crate::fields::Fields;
use crate::split::layout::{ENTRIES, INDEX};
use crate::split::{DeviceQueue, DriverQueue, Layout};
use crate::tests::bed::{fill, map};
use crate::{
    Buffer, Chain, DeviceRing, Direction, Form, IndirectTables, Single, Singles, Violation,
};

const START: u64 = 0x1000;
/// Bytes of memory: ring areas, tables and buffers lie over each other as they like.
const BYTES: u64 = 1024;

#[derive(Clone, Debug)]
struct Setting {
    size: u16,
    /// Offsets of the three areas, in units of 16 bytes.
    areas: [u16; 3],
    features: u8,
    base: u16,
    /// Sixteen bytes each, all over the memory.
    contents: Vec<u64>,
}

impl Setting {
    fn features(&self) -> Features {
        let choose = |bit: u8, feature| match self.features & bit {
            0 => Features::NONE,
            _ => feature,
        };
        choose(1, Features::INDIRECT_DESC) | choose(2, Features::EVENT_IDX)
    }

    /// The memory in two regions, with a border at an odd place, and the ring in the first one.
    fn place(&self) -> (GuestMemory, Layout) {
        let border = START + 700 + 3;
        let memory = map(&[(START, border), (border, START + BYTES)]);
        let at = |area: u16| GuestAddress(START + 16 * u64::from(area));
        let [table, available, used] = self.areas.map(at);
        let layout = Layout::new(&memory, self.size.into(), table, available, used).unwrap();
        for (at, random) in (START..).step_by(16).zip(&self.contents) {
            write(&memory, at, nearly_right(*random));
        }
        for (slot, random) in (ENTRIES..ENTRIES + usize::from(self.size)).zip(&self.contents) {
            let head = (random >> 40) as u16 % (self.size + self.size.div_ceil(8));
            layout.available.store(slot, head, Ordering::Relaxed);
        }
        (memory, layout)
    }
}

fn write(memory: &GuestMemory, at: u64, descriptor: Descriptor) {
    let mut slices = Vec::new();
    let mut translator = memory.translator();
    translator.write(GuestAddress(at), 16, &mut slices).unwrap();
    let bytes = descriptor.to_words().map(u64::to_le_bytes);
    fill(&slices, bytes.as_flattened());
}

/// A descriptor that may well pass, made of the bits of a number.
fn nearly_right(random: u64) -> Descriptor {
    let (choice, random) = (random % 256, random / 256);
    let address = match choice {
        0..160 => START + random % BYTES,
        160..220 => START + random % (BYTES / 16) * 16,
        220..230 => START - 20 + random % 40,
        230..240 => START + BYTES - 20 + random % 40,
        240..250 => u64::MAX - random % 40,
        _ => random << 8,
    };
    let random = random >> 14;
    let length = match choice % 16 {
        0..10 => random % 50,
        10..15 => random % 10 * 16,
        _ => random,
    };
    let random = random >> 10;
    let flags = match choice % 11 {
        0..5 => random % 2,
        5..10 => random % 8,
        _ => random,
    };
    let random = random >> 8;
    let next = match choice % 9 {
        0..8 => random % 9,
        _ => random,
    };
    Descriptor { address, length: length as u32, flags: flags as u16, next: next as u16 }
}

fn setting() -> impl Strategy<Value = Setting> {
    // Wherever they begin, they end before the border.
    let area = || 0u16..28;
    let contents = proptest::collection::vec(any::<u64>(), (BYTES / 16) as usize);
    let base = prop_oneof![Just(0), 65530u16.., any::<u16>()];
    (0u32..=4, [area(), area(), area()], any::<u8>(), base, contents).prop_map(
        |(power, areas, features, base, contents)| Setting {
            size: 1 << power,
            areas,
            features,
            base,
            contents,
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    /// Moves the index on from where the device has seen it.
    Index(u16),
    /// Writes sixteen bytes, somewhere.
    Scribble(u16, u64),
    TakeReadable(u32),
    TakeWritable(u32),
    TakeSingles(usize, Direction),
    Pieces(usize),
    GiveBack(usize, u32),
    GiveAllBack(usize, u32),
    Untake(u16),
    Publish,
    EnableKicks,
    DisableKicks,
}

fn step() -> impl Strategy<Value = Step> {
    let limit = || prop_oneof![4 => Just(4096), 1 => 0u32..50, 1 => any::<u32>()];
    prop_oneof![
        6 => prop_oneof![8 => 0u16..5, 1 => any::<u16>()].prop_map(Step::Index),
        2 => (0..(BYTES / 16) as u16, any::<u64>())
            .prop_map(|(at, random)| Step::Scribble(at, random)),
        6 => limit().prop_map(Step::TakeReadable),
        3 => limit().prop_map(Step::TakeWritable),
        3 => (0usize..9, any::<bool>()).prop_map(|(most, is_read)| {
            Step::TakeSingles(most, if is_read { Direction::Read } else { Direction::Write })
        }),
        1 => any::<usize>().prop_map(Step::Pieces),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(at, written)| Step::GiveBack(at, written)),
        2 => (0usize..9, any::<u32>())
            .prop_map(|(count, written)| Step::GiveAllBack(count, written)),
        1 => (0u16..4).prop_map(Step::Untake),
        3 => Just(Step::Publish),
        1 => Just(Step::EnableKicks),
        1 => Just(Step::DisableKicks),
    ]
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

/// Checks what a chain was translated to: no more pieces than a chain of this ring can have (each
/// buffer in both regions), no more bytes than asked for.
fn check(size: u16, limit: u32, lens: &[usize], taken: Result<Option<Chain>, Violation>) {
    assert!(lens.len() <= 2 * usize::from(size), "{} pieces", lens.len());
    let bytes: usize = lens.iter().sum();
    assert!(bytes as u64 <= limit.into());
    if let Ok(Some(chain)) = taken {
        assert!(chain.id() < size);
        assert_eq!(bytes as u64, chain.bytes().min(limit.into()));
    }
}

/// What the device found.
#[derive(Default)]
struct Findings {
    chains: usize,
    singles: usize,
    kinds: HashSet<Discriminant<Violation>>,
}

fn device_runs(setting: &Setting, steps: &[Step], findings: &mut Findings) {
    let (memory, layout) = setting.place();
    let size = setting.size;
    let mut device = DeviceQueue::new(layout.clone(), setting.features(), setting.base);
    let mut held: Vec<Chain> = Vec::new();
    // How many of the last taken are all still held.
    let mut untakeable = 0;
    for step in steps {
        let mut taken = Ok(None);
        match *step {
            Step::Index(ahead) => {
                let known = device.available().unwrap_or(0);
                let index = device.position().wrapping_add(known).wrapping_add(ahead);
                layout.available.store(INDEX, index, Ordering::Release);
            }
            Step::Scribble(at, random) => {
                write(&memory, START + 16 * u64::from(at), nearly_right(random));
            }
            Step::TakeReadable(limit) => {
                let mut slices = Vec::new();
                let mut translator = memory.translator();
                taken = device.take_readable(&mut translator, limit, &mut slices);
                let lens: Vec<_> = slices.iter().map(|slice| slice.len()).collect();
                check(size, limit, &lens, taken);
            }
            Step::TakeWritable(limit) => {
                let mut slices = Vec::new();
                let mut translator = memory.translator();
                taken = device.take_writable(&mut translator, limit, &mut slices);
                let lens: Vec<_> = slices.iter().map(|slice| slice.len()).collect();
                check(size, limit, &lens, taken);
                // Over the ring itself, perhaps.
                fill(&slices, &vec![0x01; lens.iter().sum::<usize>().min(8)]);
            }
            Step::TakeSingles(most, direction) => {
                let take = |Single { chain, .. }| {
                    held.push(chain);
                    true
                };
                match device.take_singles(direction, most, take) {
                    Ok(Singles { count, is_other_next }) => {
                        untakeable += count;
                        findings.singles += count;
                        findings.chains += count;
                        if is_other_next {
                            let mut translator = memory.translator();
                            taken = device.take_readable(&mut translator, 4096, &mut Vec::new());
                            assert_ne!(taken, Ok(None), "there is another chain, or what is wrong");
                        }
                    }
                    Err(violation) => taken = Err(violation),
                }
            }
            Step::Pieces(at) => {
                if !held.is_empty() {
                    let (chain, mut pieces) = (held[at % held.len()], Vec::new());
                    let _ = device.pieces(chain, &mut memory.translator(), &mut pieces);
                    assert!(pieces.len() <= size.into(), "{} pieces", pieces.len());
                }
            }
            Step::GiveBack(at, written) => {
                if !held.is_empty() {
                    let at = at % held.len();
                    untakeable = untakeable.min(held.len() - 1 - at);
                    device.give_back(held.remove(at), written);
                }
            }
            Step::GiveAllBack(count, written) => {
                let count = count.min(held.len());
                device.give_all_back(held.drain(..count).map(|chain| (chain, written)));
                untakeable = untakeable.min(held.len());
            }
            Step::Untake(count) => {
                let count = untakeable.min(count.into());
                untakeable -= count;
                device.untake(&held.split_off(held.len() - count));
            }
            Step::Publish => _ = device.publish(),
            Step::EnableKicks => _ = device.enable_kicks(),
            Step::DisableKicks => device.disable_kicks(),
        }
        match taken {
            Ok(None) => {}
            Ok(Some(chain)) => {
                held.push(chain);
                untakeable += 1;
                findings.chains += 1;
            }
            Err(violation) => {
                findings.kinds.insert(discriminant(&violation));
                // Only a restart mends it: behind what was wrong.
                let base = device.position().wrapping_add(1);
                layout.available.store(INDEX, base, Ordering::Release);
                device = DeviceQueue::new(layout.clone(), setting.features(), base);
                held.clear();
                untakeable = 0;
            }
        }
        assert!(device.outstanding() <= size);
        assert_eq!(usize::from(device.outstanding()), held.len());
        assert!(device.available().unwrap_or(0) <= size);
    }
}

#[test]
fn device_survives_any_memory() {
    let findings = RefCell::default();
    let steps = proptest::collection::vec(step(), 1..60);
    TestRunner::new(config(1000))
        .run(&(setting(), steps), |(setting, steps)| {
            device_runs(&setting, &steps, &mut findings.borrow_mut());
            Ok(())
        })
        .unwrap();
    // Otherwise the test would test little more than the first check.
    let Findings { chains, singles, kinds } = findings.into_inner();
    assert!(chains > 500, "only {chains} chains were taken");
    assert!(singles > 100, "only {singles} singles were taken");
    assert_eq!(kinds.len(), 10, "every violation of a driver");
}

/// Offers chains, and reaps whatever the used ring claims; says how many it reaped.
fn driver_runs(setting: &Setting, steps: &[(u16, u16, u64)]) -> usize {
    let (memory, layout) = setting.place();
    let size = setting.size;
    let tables = IndirectTables::new(&memory, GuestAddress(START), size, 4).ok();
    let mut driver = DriverQueue::new(layout.clone(), setting.features(), tables);
    let buffer = Buffer { address: GuestAddress(START), len: 1, writable: true };
    let mut reaped = 0;
    for (token, (choice, ahead, random)) in (0..).zip(steps) {
        let form = match choice % 3 {
            0 => Form::Direct,
            direct => Form::Indirect(direct - 1),
        };
        let chain = vec![buffer; usize::from(choice % 5)];
        let _ = driver.add(&chain, form, token);
        let _ = driver.publish();
        write(&memory, START + 16 * u64::from(choice % 64), nearly_right(*random));
        let index = layout.used_index().wrapping_add(*ahead);
        layout.used.store(INDEX, index, Ordering::Release);
        // As many as there can be, and one more.
        for _ in 0..=size {
            match driver.reap() {
                Ok(Some(used)) => {
                    assert!(used.token <= token);
                    reaped += 1;
                }
                Ok(None) | Err(_) => break,
            }
        }
        let _ = driver.enable_calls();
        driver.disable_calls();
        assert!(driver.outstanding() <= size);
        assert!(driver.free() + usize::from(driver.outstanding()) <= usize::from(size));
    }
    reaped
}

#[test]
fn driver_survives_any_memory() {
    let reaped = Cell::new(0);
    let ahead = prop_oneof![8 => 0u16..3, 1 => any::<u16>()];
    let steps = proptest::collection::vec((any::<u16>(), ahead, any::<u64>()), 1..40);
    TestRunner::new(config(1000))
        .run(&(setting(), steps), |(setting, steps)| {
            reaped.set(reaped.get() + driver_runs(&setting, &steps));
            Ok(())
        })
        .unwrap();
    assert!(reaped.get() > 100, "only {} were reaped", reaped.get());
}
