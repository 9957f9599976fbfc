//! Each of these runs once more, in a process of its own: what a signal does, it does to all of one.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::{FrontEndAddress, GuestAddress, GuestMemory, RegionRequest};

const PAGE: u64 = 4096;

/// Tells a test that it is the one that ends by a signal.
const CHILD: &str = "RINGWAY_SIGBUS_CHILD";

/// What becomes of the test of this name in a process of its own.
fn end_of(test: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("sigbus::tests::{test}")]).env(CHILD, "");
    child.output().unwrap().status
}

fn is_child() -> bool {
    let is_child = std::env::var_os(CHILD).is_some();
    if is_child {
        // Should it take the same fault for ever.
        // SAFETY: takes only a number.
        unsafe { libc::alarm(20) };
    }
    is_child
}

/// Sets what is done on SIGBUS, before the guard is there.
fn set_action(handler: usize, flags: libc::c_int) {
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is complete, and its handler of the kind that its flags say.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

/// As `kill -BUS` does, but it has been handled when this returns.
fn send() {
    // SAFETY: takes only a number.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
}

/// A guest with a page of memory, and its file.
fn guest() -> (GuestMemory, OwnedFd) {
    let file = memfd_create("guarded", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, PAGE).unwrap();
    let region = RegionRequest {
        guest: GuestAddress(0),
        size: PAGE,
        front_end: FrontEndAddress(0),
        offset: 0,
        file: file.try_clone().unwrap(),
    };
    (GuestMemory::map([region]).unwrap(), file)
}

/// Has a guest cut off its memory, and touches it.
fn touch_what_is_cut_off() {
    let (memory, file) = guest();
    let words = memory.words::<AtomicU64>(GuestAddress(0), 1).unwrap();
    ftruncate(&file, 0).unwrap();
    assert_eq!(words[0].load(Ordering::Relaxed), 0);
    assert!(memory.is_poisoned());
}

/// Touches a page behind the end of a file, in a mapping of which the guard knows nothing.
fn fault() {
    let file = memfd_create("foreign", MemfdFlags::CLOEXEC).unwrap();
    // SAFETY: a new mapping, wherever the kernel has room for it.
    let page = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            rustix::mm::ProtFlags::READ,
            rustix::mm::MapFlags::SHARED,
            &file,
            0,
        )
    };
    // SAFETY: mapped above, and never unmapped.
    unsafe { page.unwrap().cast::<u8>().read_volatile() };
}

#[test]
fn the_guard_stays_when_somebody_sends_a_signal() {
    if is_child() {
        let _guest = guest();
        for _ in 0..3 {
            send();
            touch_what_is_cut_off();
        }
        return;
    }
    let end = end_of("the_guard_stays_when_somebody_sends_a_signal");
    assert!(end.success(), "{end}");
}

static CALLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn with_a_code(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: as the kernel has passed it.
    let code = unsafe { &*info }.si_code;
    CALLED.fetch_add(
        usize::from(signal == libc::SIGBUS && code == libc::SI_TKILL),
        Ordering::Relaxed,
    );
}

extern "C" fn with_a_number(signal: libc::c_int) {
    CALLED.fetch_add(usize::from(signal == libc::SIGBUS), Ordering::Relaxed);
}

#[test]
fn the_handler_before_us_gets_what_is_sent() {
    if is_child() {
        let handler: Action = with_a_code;
        set_action(handler as usize, libc::SA_SIGINFO);
        let _guest = guest();
        for count in 1..=3 {
            send();
            assert_eq!(CALLED.load(Ordering::Relaxed), count);
            touch_what_is_cut_off();
            assert_eq!(CALLED.load(Ordering::Relaxed), count, "that was for us");
        }
        return;
    }
    let end = end_of("the_handler_before_us_gets_what_is_sent");
    assert!(end.success(), "{end}");
}

#[test]
fn a_handler_of_the_old_kind_gets_it_too() {
    if is_child() {
        let handler: Simple = with_a_number;
        set_action(handler as usize, 0);
        let _guest = guest();
        send();
        assert_eq!(CALLED.load(Ordering::Relaxed), 1);
        touch_what_is_cut_off();
        return;
    }
    let end = end_of("a_handler_of_the_old_kind_gets_it_too");
    assert!(end.success(), "{end}");
}

#[test]
fn what_was_ignored_is_ignored() {
    if is_child() {
        set_action(libc::SIG_IGN, 0);
        let _guest = guest();
        send();
        touch_what_is_cut_off();
        return;
    }
    let end = end_of("what_was_ignored_is_ignored");
    assert!(end.success(), "{end}");
}

#[test]
fn the_default_ends_the_process() {
    if is_child() {
        set_action(libc::SIG_DFL, 0);
        let _guest = guest();
        send();
        return;
    }
    assert_eq!(end_of("the_default_ends_the_process").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_fault_of_the_default_kind_ends_the_process() {
    if is_child() {
        set_action(libc::SIG_DFL, 0);
        let _guest = guest();
        fault();
        return;
    }
    let end = end_of("a_fault_of_the_default_kind_ends_the_process");
    assert_eq!(end.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_fault_that_is_not_ours_ends_the_process() {
    if is_child() {
        // Rust's own handler is the one before us.
        let _guest = guest();
        fault();
        return;
    }
    let end = end_of("a_fault_that_is_not_ours_ends_the_process");
    assert_eq!(end.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_fault_cannot_be_ignored() {
    if is_child() {
        set_action(libc::SIG_IGN, 0);
        let _guest = guest();
        fault();
        return;
    }
    assert_eq!(end_of("a_fault_cannot_be_ignored").signal(), Some(libc::SIGBUS));
}
