//! Announcements after a migration.

use engine::DropReason;
use wire::ethernet::MacAddress;
use wire::rarp;

use crate::guest::RECEIVE;
use crate::world::{World, frame, mac, modern};

#[test]
fn an_announcement_goes_out_as_if_the_guest_had_sent_it() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    world.guests[1].post_many(2);
    world.guests[2].post_many(3);
    // Guest 0 moved here from where port 2 is: the bridge has to learn that.
    world.guests[2].send(&frame(0, 1, 60, 0));
    world.breathe();
    assert_eq!(world.guests[1].frames().len(), 1);

    let announcement = rarp::announcement(MacAddress(mac(0)));
    world.port(0).announce(announcement.into());
    assert!(world.breathe(), "there was something to do");
    assert_eq!(world.guests[1].frames(), [announcement]);
    assert_eq!(world.guests[2].frames(), [announcement]);
    assert!(!world.breathe(), "it goes out once");
    assert!(world.guests[1].frames().is_empty());

    world.guests[0].post_many(1);
    world.guests[1].post_many(1);
    world.guests[1].send(&frame(1, 0, 99, 0));
    world.breathe();
    assert_eq!(world.guests[0].frames(), [frame(1, 0, 99, 0)]);
}

#[test]
fn an_announcement_goes_out_though_frames_are_held_and_loses_none_of_them() {
    let mut world = World::bridged(vec![modern(), modern(), modern()]);
    world.guests[2].post_many(1);
    let held = [frame(0, 1, 60, 1), frame(0, 1, 70, 2)];
    held.iter().for_each(|frame| world.guests[0].send(frame));
    world.breathe();
    assert_eq!(world.guests[0].reap(), 0, "both are held");

    let announcement = rarp::announcement(MacAddress(mac(0)));
    world.port(0).announce(announcement.into());
    world.breathe();
    assert_eq!(world.guests[2].frames(), [announcement]);
    assert_eq!(world.guests[0].reap(), 0);
    world.guests[1].post_many(3);
    world.breathe();
    assert_eq!(world.guests[1].frames(), held, "once each, in order");
    assert_eq!(world.guests[0].reap(), 2);
}

#[test]
fn an_announcement_is_not_held() {
    let mut world = World::modern();
    world.port(0).announce([0xff; 60].into());
    world.breathe();
    world.assert_drops(1, &[(DropReason::ReceiverFull, 1)]);
    world.guests[1].post_many(1);
    world.breathe();
    assert!(world.guests[1].frames().is_empty());
}

#[test]
fn an_announcement_needs_no_guest() {
    let mut world = World::modern();
    world.guests[1].post_many(1);
    world.swap(0, None);
    world.port(0).announce([0xff; 60].into());
    world.breathe();
    assert_eq!(world.guests[1].frames(), [[0xff; 60]]);
    assert_eq!(world.guests[1].used_index(RECEIVE), 1);
    world.assert_drops(0, &[]);
    world.assert_drops(1, &[]);
    // One that finds nobody is dropped as any frame.
    world.swap(1, None);
    world.port(0).announce([0xff; 60].into());
    world.breathe();
    world.assert_drops(1, &[(DropReason::ReceiverDown, 1)]);
}
