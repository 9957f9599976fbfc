//! A network namespace of a test's own, and an interface of the host in it.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use sys::tun::{Queue, Request};

#[track_caller]
pub fn ip(arguments: &str) {
    let result = Command::new("ip").args(arguments.split(' ')).output();
    let output = result.expect("this test needs iproute2");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {problem}");
}

/// The queues of an interface in a network of its own.
pub fn open(request: Request<'_>) -> Vec<Queue> {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    // Nothing but what a test asks for, if the kernel knows IPv6 at all.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    request.open().expect("this test needs CAP_NET_ADMIN")
}
