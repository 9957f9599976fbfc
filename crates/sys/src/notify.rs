//! Signalling an eventfd that somebody else controls, without ever blocking.
//!
//! `write` to an eventfd blocks when its counter is full, unless the descriptor is non-blocking. Both
//! are properties of the open file, which the peer that gave it to us still holds: it can fill the
//! counter and make the file blocking at any time, and our thread would hang in the next write.
//! The kernel itself signals eventfds in a way that never blocks, for one when an asynchronous
//! operation ends. So we submit an operation that ends at once, a poll of a descriptor of our own
//! that is always ready, and name the peer's eventfd as the one to be signalled.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// Operations that may have ended and not been collected.
const EVENTS: usize = 64;

/// `io_context_t` of the kernel: an address that is not ours to look behind.
type Context = libc::c_ulong;

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
struct Operation {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    rw_flags: i32,
    #[cfg(target_endian = "big")]
    key: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_descriptor: u32,
}

/// `IOCB_CMD_POLL`: `buffer` holds the events to poll for.
const POLL: u16 = 5;
/// `IOCB_FLAG_RESFD`: signal `result_descriptor` at the end.
const SIGNAL: u32 = 1;

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ended {
    data: u64,
    operation: u64,
    result: i64,
    result2: i64,
}

thread_local! {
    /// Each thread has its own, since the kernel takes milliseconds to take one down.
    static NOTIFIER: RefCell<Option<Notifier>> = const { RefCell::new(None) };
}

/// Makes sure that [`signal`] works on this thread. To be called before there is a peer: the kernel has so
/// many notifiers and no more, for all processes and users together.
pub fn prepare() -> io::Result<()> {
    NOTIFIER.with_borrow_mut(|notifier| notifier_of(notifier).map(|_| ()))
}

/// Adds one to an eventfd's counter, if that is possible; never blocks. An error says that it is no
/// eventfd, or that there was no notifier to be had: then nobody was told. That cannot be after
/// [`prepare`].
pub fn signal(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    NOTIFIER.with_borrow_mut(|notifier| notifier_of(notifier)?.signal(descriptor))
}

/// This thread's, made if there is none.
fn notifier_of(notifier: &mut Option<Notifier>) -> io::Result<&mut Notifier> {
    match notifier {
        Some(notifier) => Ok(notifier),
        none => Ok(none.insert(Notifier::new()?)),
    }
}

/// Signals eventfds.
#[derive(Debug)]
pub struct Notifier {
    context: Context,
    ready: OwnedFd,
    uncollected: usize,
}

impl Notifier {
    /// A notifier of the caller's own.
    ///
    /// # Errors
    ///
    /// The kernel has no more of them (fs.aio-max-nr), or was built without.
    pub fn new() -> io::Result<Self> {
        let ready = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut context: Context = 0;
        // SAFETY: io_setup writes the context's address, and it must be 0 before.
        let result =
            unsafe { libc::syscall(libc::SYS_io_setup, EVENTS as libc::c_long, &raw mut context) };
        if result < 0 {
            return Err(explain(io::Error::last_os_error()));
        }
        Ok(Self { context, ready, uncollected: 0 })
    }

    /// Adds one to an eventfd's counter, if that is possible; never blocks. An error says that it is no
    /// eventfd.
    pub fn signal(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        if self.uncollected == EVENTS {
            self.collect();
        }
        let mut operation = Operation {
            data: 0,
            key: 0,
            rw_flags: 0,
            opcode: POLL,
            priority: 0,
            descriptor: self.ready.as_raw_fd() as u32,
            buffer: libc::POLLIN as u64,
            bytes: 0,
            offset: 0,
            reserved: 0,
            flags: SIGNAL,
            result_descriptor: descriptor.as_raw_fd() as u32,
        };
        let mut operations = [&raw mut operation];
        // SAFETY: the context is ours; the kernel copies the one operation and keeps no pointer.
        let result = unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, &raw mut operations)
        };
        if result == 1 {
            self.uncollected += 1;
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Takes what has ended off the kernel's list, without waiting.
    fn collect(&mut self) {
        let mut ended = [Ended::default(); EVENTS];
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes up to EVENTS entries, and there are as many.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                EVENTS as libc::c_long,
                ended.as_mut_ptr(),
                &raw const no_time,
            )
        };
        self.uncollected = 0;
    }
}

/// Why there is no notifier.
fn explain(error: io::Error) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EAGAIN) => "all that fs.aio-max-nr allows is in use",
        Some(libc::ENOSYS) => "the kernel was built without asynchronous I/O",
        _ => "io_setup(2) failed",
    };
    let text = format!("no way to call a driver without ever waiting for it: {why}: {error}");
    io::Error::new(error.kind(), text)
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody uses it afterwards.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Has the kernel refuse this thread what it refuses when all notifiers are in use. Really to use
    /// them up would disturb every other program.
    fn refuse_notifiers() {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut steps = [
            // The number of the system call is the first field of seccomp_data.
            step(LOAD, 0, 0, 0),
            step(IS, 0, 1, libc::SYS_io_setup as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: takes only numbers.
        let denied = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(denied, 0);
        // SAFETY: the program is complete, and the kernel copies it.
        let filtered = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        assert_eq!(filtered, 0);
    }

    /// An eventfd that a hostile peer has prepared: the next plain write waits for ever.
    fn full() -> OwnedFd {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event
    }

    /// What `run` returns on a thread of its own, which must not wait for anybody.
    fn on_a_thread<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
        let (sender, receiver) = channel();
        std::thread::spawn(move || sender.send(run()));
        receiver.recv_timeout(Duration::from_secs(10)).expect("it hangs, or has failed")
    }

    #[test]
    fn without_a_notifier_nobody_is_called_and_nobody_waits() {
        let [prepared, signalled] = on_a_thread(|| {
            refuse_notifiers();
            [prepare(), signal(full().as_fd())].map(|result| result.unwrap_err().to_string())
        });
        assert!(prepared.contains("all that fs.aio-max-nr allows"), "{prepared}");
        assert_eq!(prepared, signalled);
    }

    #[test]
    fn a_thread_that_is_prepared_needs_no_more() {
        let counted = on_a_thread(|| {
            prepare().unwrap();
            refuse_notifiers();
            let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            for _ in 0..3 {
                prepare().unwrap();
                signal(event.as_fd()).unwrap();
                signal(full().as_fd()).unwrap();
            }
            count(&event)
        });
        assert_eq!(counted, 3);
    }

    fn count(descriptor: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(descriptor, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    }

    #[test]
    fn signals_are_counted() {
        let mut notifier = Notifier::new().unwrap();
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        for _ in 0..3 * EVENTS {
            notifier.signal(event.as_fd()).unwrap();
        }
        assert_eq!(count(&event), 3 * EVENTS as u64);
        assert_eq!(count(&event), 0);
    }

    #[test]
    fn a_full_counter_of_a_blocking_descriptor_does_not_block() {
        let mut notifier = Notifier::new().unwrap();
        let event = full();
        for _ in 0..2 * EVENTS {
            notifier.signal(event.as_fd()).unwrap();
        }
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let mut notifier = Notifier::new().unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(notifier.signal(writer.as_fd()).is_err());
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        notifier.signal(event.as_fd()).unwrap();
        assert_eq!(count(&event), 1);
    }
}
