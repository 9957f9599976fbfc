//! A server can call its drivers from the start: later, a peer may have left nothing to do it with.
//!
//! Alone in its process: other tests would make and drop servers while it counts.

use std::os::unix::net::UnixStream;

use ringway_vhost_user::Connection;
use ringway_vhost_user::back_end::{Offer, Server};
use wire::virtio::Features;

/// The notifiers of this process: each has a mapping of its own.
fn notifiers() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("[aio]")).count()
}

#[test]
fn a_server_has_its_notifier_before_it_serves() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let offer = Offer {
        features: Features::VERSION_1,
        protocol: Offer::PROTOCOL,
        queue_pairs: 1,
        max_mtu: 1500,
    };
    let before = notifiers();
    let server = Server::new(Connection::new(ours.into()).unwrap(), offer).unwrap();
    assert_eq!(notifiers(), before + 1);
    drop(server);
    assert_eq!(notifiers(), before);
}
