//! For tests: a kernel that refuses, or does not answer; and what other programs hand us.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

/// A system call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The one that opens an io_uring, with EPERM.
    Setup,
    /// The one that has it do something, with EPERM.
    Enter,
    /// The one that receives a message and asks where it is from, as if there were none.
    Hear,
    /// The one that has an epoll instance watch a descriptor, with EPERM.
    Watch,
}

/// From now on, a system call fails when this thread makes it, or a thread or program that it starts, as
/// it does in a container whose seccomp profile leaves it out.
pub fn refuse(call: Call) -> io::Result<()> {
    /// Where a filter sees the call's number, and the low half of its first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    // And with which value of which argument it is let through, if with any.
    let (number, error, unless) = match call {
        Call::Setup => (libc::SYS_io_uring_setup, libc::EPERM, None),
        Call::Enter => (libc::SYS_io_uring_enter, libc::EPERM, None),
        Call::Hear => (libc::SYS_recvfrom, libc::EAGAIN, Some((4, 0))),
        Call::Watch => (libc::SYS_epoll_ctl, libc::EPERM, Some((1, libc::EPOLL_CTL_DEL))),
    };
    let (place, value) = unless.unwrap_or_default();
    let statement =
        |code: u32, value: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let equals = |value| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value);
    let end = |value| statement(libc::BPF_RET | libc::BPF_K, value);
    let skips = if unless.is_some() { 0 } else { 2 };
    let mut filter = [
        load(NUMBER),
        libc::sock_filter { jt: skips, jf: 3, ..equals(number as u32) },
        load(FIRST + 8 * place),
        libc::sock_filter { jt: 1, ..equals(value as u32) },
        end(libc::SECCOMP_RET_ERRNO | error as u32),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: it takes numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: it takes a program, which outlives the call.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    })
}

/// A queue of an interface as another program would open it, before it starts us: with these flags of TUNSETIFF.
pub fn queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let descriptor = open("/dev/net/tun", OFlags::RDWR, Mode::empty())?;
    let mut request = crate::tun::named(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes an ifreq.
    check(unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(descriptor)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
