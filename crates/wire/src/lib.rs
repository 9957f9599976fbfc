//! Formats: vhost-user messages, virtio-net, ring layouts, Ethernet, capture files, packet filters. No I/O, no unsafe, no clock.
//!
//! Everything here turns bytes into values and values into bytes. Functions that read a peer's
//! bytes are total: every input gives a value or a typed refusal, never a panic.

pub mod arp;
mod bits;
pub mod bpf;
pub mod checksum;
pub mod conversation;
pub mod describe;
pub mod ethernet;
pub mod flow;
pub mod ndp;
pub mod pcap;
pub mod prefix;
pub mod rarp;
pub mod segment;
pub mod split;
pub mod vhost_user;
pub mod virtio;
