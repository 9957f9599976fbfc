//! The SIGBUS guard.
//!
//! A guest's memory is a file that belongs to its front end, which can shrink it at any time. The
//! next touch of a page past the new end raises SIGBUS, and would end every port of the switch.
//!
//! # How it works
//!
//! Mappings are registered in a fixed table of atomics. The handler looks the faulting address up;
//! when it is inside a registered mapping, it maps zero pages over the rest of that mapping, marks
//! it poisoned, and returns: the faulting instruction runs again and reads zeros. The owner sees
//! the mark at its next breath and closes the port. Every other SIGBUS goes to the handler that was
//! there before us (Rust's own, or the default), and we stay.
//!
//! # Who writes what, and ordering
//!
//! `register` claims a slot by a compare-exchange on `taken`, fills it and publishes `end` with
//! Release; the handler reads `end` with Acquire before it trusts the slot. `unregister` clears
//! `end` before `munmap`. The handler only runs on a thread that touches a mapping which that thread
//! keeps alive, so the slot that it looks for cannot be reused under it. The others on its way can:
//! it reads `end` once more after `start`, so as not to believe a range made of two mappings.
//! Everything in the handler is async-signal safe: atomics and system calls.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Mappings that can be alive at once: 128 ports at the ceiling of 509 regions each.
const SLOTS: usize = 65_536;

struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    block: AtomicUsize,
    poisoned: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        block: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; SLOTS];

/// One past the highest slot ever taken: bounds the handler's search.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);

static EPOCH: AtomicU64 = AtomicU64::new(0);

/// How often a mapping was found shrunk since the start. A worker that sees it unchanged need not
/// look at its tables.
pub fn poison_epoch() -> u64 {
    // Behind it is seen which one it was.
    EPOCH.load(Ordering::Acquire)
}

/// A registered mapping.
pub(crate) struct Registration {
    slot: usize,
}

impl Registration {
    pub(crate) fn is_poisoned(&self) -> bool {
        TABLE[self.slot].poisoned.load(Ordering::Relaxed)
    }

    /// To be called before the memory is unmapped.
    pub(crate) fn unregister(&self) {
        TABLE[self.slot].end.store(0, Ordering::Release);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.unregister();
        TABLE[self.slot].taken.store(false, Ordering::Release);
    }
}

/// Registers `[start, start + size)`; `block` is the alignment that a replacement needs.
/// `None` when the table is full.
pub(crate) fn register(start: usize, size: usize, block: usize) -> Option<Registration> {
    install();
    for (index, slot) in TABLE.iter().enumerate() {
        if slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        // Release: whoever sees this start sees the end of the slot's last mapping cleared.
        slot.start.store(start, Ordering::Release);
        slot.block.store(block, Ordering::Relaxed);
        slot.poisoned.store(false, Ordering::Relaxed);
        slot.end.store(start + size, Ordering::Release);
        HIGH_WATER.fetch_max(index + 1, Ordering::Release);
        return Some(Registration { slot: index });
    }
    None
}

/// The handler that was there before ours.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written once, under the Once in `install`, before the handler that reads it can run.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));

/// How a handler with SA_SIGINFO is called, and one without.
type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
type Simple = extern "C" fn(libc::c_int);

/// What to do on SIGBUS.
fn ours() -> libc::sigaction {
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: Action = handle;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    action
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let action = ours();
        // SAFETY: `action` is complete; PREVIOUS is written here only, under the Once, before the
        // handler that reads it can run.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &action, PREVIOUS.0.get().cast()) };
        assert_eq!(result, 0, "sigaction(SIGBUS) takes a valid handler");
    });
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let by = unsafe { &*info };
    // SAFETY: for a SIGBUS of the kernel's own the address member of the union is the one that is
    // set; otherwise it is garbage, which is not looked at.
    let address = unsafe { by.si_addr() }.addr();
    let code = by.si_code;
    if code > 0 && replace(address) {
        return;
    }
    // Not ours. Somebody sent it, or a page broke that nobody has touched; or else an instruction faulted,
    // and will do so again.
    let is_fault = code > 0 && code != libc::BUS_MCEERR_AO;
    // SAFETY: PREVIOUS was filled before this handler could run, and is not written any more.
    let previous = unsafe { &*PREVIOUS.0.get().cast::<libc::sigaction>() };
    match previous.sa_sigaction {
        libc::SIG_IGN if !is_fault => {}
        // A fault cannot be ignored: the kernel takes that for the default, too.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: an all-zero sigaction is valid: no flags, an empty mask, the default handler.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: `default` is complete.
            unsafe { libc::sigaction(signal, &default, std::ptr::null_mut()) };
            if !is_fault {
                // SAFETY: async-signal safe. The signal is blocked while it is handled, and so it ends the
                // process as soon as this returns.
                unsafe { libc::raise(signal) };
            }
        }
        handler => {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: whoever installed it said with this flag that it is one of these.
                let handler = unsafe { std::mem::transmute::<usize, Action>(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: or else that it is one of these.
                let handler = unsafe { std::mem::transmute::<usize, Simple>(handler) };
                handler(signal);
            }
            // Rust's own has put the default back, which is how a fault ends the process. What was sent
            // does not, and must not leave us without the guard for longer than this.
            if !is_fault {
                // SAFETY: `ours` makes a complete action.
                unsafe { libc::sigaction(signal, &ours(), std::ptr::null_mut()) };
            }
        }
    }
}

fn replace(address: usize) -> bool {
    let slots = HIGH_WATER.load(Ordering::Acquire).min(SLOTS);
    for slot in &TABLE[..slots] {
        let end = slot.end.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Acquire);
        if address < start || address >= end || slot.end.load(Ordering::Relaxed) != end {
            continue;
        }
        let block = slot.block.load(Ordering::Relaxed).max(1);
        let hole = address - address % block;
        // SAFETY: [hole, end) is inside a mapping that the faulting thread keeps alive; replacing
        // it with zero pages leaves every pointer into it valid.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::without_provenance_mut(hole),
                end - hole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.poisoned.store(true, Ordering::Relaxed);
        EPOCH.fetch_add(1, Ordering::Release);
        return true;
    }
    false
}

#[cfg(test)]
mod tests;
