//! For tests: a kernel that refuses.

use std::io;

/// System calls of io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The one that opens one.
    Setup,
    /// The one that has it do something.
    Enter,
}

/// From now on, a system call fails with EPERM when this thread makes it, or one that it starts, as
/// it does in a container whose seccomp profile leaves it out.
pub fn refuse(call: Call) -> io::Result<()> {
    let number = match call {
        Call::Setup => libc::SYS_io_uring_setup,
        Call::Enter => libc::SYS_io_uring_enter,
    };
    let statement = |code: u32, value: u32, skip: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: skip,
        k: value,
    };
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        // The call's number is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, 1),
        statement(libc::BPF_RET | libc::BPF_K, refused, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
