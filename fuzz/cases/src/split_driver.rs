//! The driver's side of a split ring, on memory that a device writes anything into.

use memory::GuestAddress;
use virtqueue::split::{Buffer, DriverQueue, Form, IndirectTables};

use crate::Reached;
use crate::input::Input;
use crate::split_device::{RingMemory, START};
use std::sync::atomic::Ordering;

/// Ring memory, and what is done with it.
pub fn split_driver(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let mut input = Input::new(data);
    let Some(ring) = RingMemory::new(&mut input) else { return reached };
    let size = ring.size;
    let tables = IndirectTables::new(ring.memory(), GuestAddress(START), size, 4).ok();
    let mut driver = DriverQueue::new(ring.layout.clone(), ring.features, tables);
    let mut with_device = Vec::new();
    let mut next_token = 0;
    let mut steps = 0;
    while let Some(step) = input.step(&mut steps, 8) {
        match step {
            0..=1 => {
                let form = match input.below(4) {
                    0 => Form::Direct,
                    direct => Form::Indirect(direct as u16 - 1),
                };
                let buffer =
                    Buffer { address: GuestAddress(input.u64()), len: 1, writable: input.bool() };
                if driver.add(&vec![buffer; input.below(8)], form, next_token).is_ok() {
                    with_device.push(next_token);
                    next_token += 1;
                }
            }
            2 => _ = driver.publish(),
            3 => ring.scribble(&mut input),
            4 => {
                let index = ring.layout.used_index().wrapping_add(input.below(4) as u16);
                ring.set_used_index(index);
            }
            5 => {
                // A used entry: its chain and its bytes, two words each.
                let slot = 2 + 4 * (input.below(256) & (usize::from(size) - 1));
                let id = if input.rarely() { input.u16() } else { u16::from(input.u8() % 33) };
                ring.used_words()[slot].store(id.to_le(), Ordering::Relaxed);
                ring.used_words()[slot + 1].store(input.rarely().into(), Ordering::Relaxed);
            }
            6 => match driver.reap() {
                Ok(Some(used)) => {
                    let known = with_device.iter().position(|token| *token == used.token);
                    with_device.remove(known.expect("a chain that the device has, once"));
                    reached.note("used");
                }
                Ok(None) => {}
                Err(violation) => reached.note_variant(&violation),
            },
            _ => {
                if input.bool() {
                    let _ = driver.enable_calls();
                } else {
                    driver.disable_calls();
                }
            }
        }
        assert_eq!(usize::from(driver.outstanding()), with_device.len());
        assert!(driver.free() + with_device.len() <= size.into());
        assert!(!with_device.is_empty() || driver.free() == size.into(), "a descriptor is lost");
    }
    reached
}
