//! `--dump`: every message and every frame in words, one line each, on standard output.

use std::io::Write;

use vhost_user::back_end::FrameFault;
use vhost_user::{Direction, Message, Observer};
use wire::virtio::NetHeader;

use super::Stopping;

/// Prints, until nobody reads any more: then it is time to stop.
#[derive(Clone)]
pub struct Dump(Stopping);

impl Dump {
    pub fn new(stopping: &Stopping) -> Self {
        Self(stopping.clone())
    }

    /// Prints every message of a connection.
    pub fn messages(&self) -> Observer {
        let dump = self.clone();
        Box::new(move |direction, message: &Message| dump.line(direction, &message.describe()))
    }

    /// Prints a frame and its header.
    pub fn frame(&self, direction: Direction, header: Result<NetHeader, FrameFault>, frame: &[u8]) {
        let words = wire::describe::frame(frame);
        let words = match header {
            Ok(header) => format!("frame: {words}; {}", wire::describe::net_header(&header)),
            Err(fault) => format!("frame to be dropped: {words}; {fault}"),
        };
        self.line(direction, &words);
    }

    fn line(&self, direction: Direction, words: &str) {
        let arrow = match direction {
            Direction::Received => "<-",
            Direction::Sent => "->",
        };
        if writeln!(std::io::stdout(), "{arrow} {words}").is_err() {
            self.0.set();
        }
    }
}
