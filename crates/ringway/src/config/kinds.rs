//! The types of port: a module for each has its keys, what they mean, and how they are read.

pub mod pcap;
pub mod tap;
pub mod tun;
pub mod vhost_net;
pub mod vhost_user;

/// Of a type of port of which there is nothing to say but its keys.
fn no_notes() -> String {
    String::new()
}
