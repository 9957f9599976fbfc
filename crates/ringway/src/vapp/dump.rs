//! `--dump`: every message and every frame in words, one line each, on standard output.

use std::io::Write;

use vhost_user::back_end::FrameFault;
use vhost_user::{Direction, Message, Observer};
use wire::virtio::NetHeader;

/// Prints every message of a connection.
pub fn messages() -> Observer {
    Box::new(|direction, message: &Message| line(direction, &message.describe()))
}

/// Prints a frame and its header.
pub fn frame(direction: Direction, header: Result<NetHeader, FrameFault>, frame: &[u8]) {
    let words = wire::describe::frame(frame);
    match header {
        Ok(header) => {
            line(direction, &format!("frame: {words}; {}", wire::describe::net_header(&header)));
        }
        Err(fault) => line(direction, &format!("frame to be dropped: {words}; {fault}")),
    }
}

fn line(direction: Direction, words: &str) {
    let arrow = match direction {
        Direction::Received => "<-",
        Direction::Sent => "->",
    };
    // Whoever has stopped reading wants no more of it.
    let _ = writeln!(std::io::stdout(), "{arrow} {words}");
}
