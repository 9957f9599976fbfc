//! Apps with an outside, one module per kind of port.

mod backlog;
mod frame;
mod lent;
pub mod offload;
pub mod pcap;
pub mod tap;
pub mod tun;
pub mod vhost_net;
pub mod vhost_user;

pub use backlog::BLOCK;
