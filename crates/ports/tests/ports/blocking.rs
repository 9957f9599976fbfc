//! Descriptors by which a front end could make a port wait.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::guest::{Event, Guest};
use crate::world::{World, frame};

/// The port of the guest whose front end means harm.
const HOSTILE: usize = 0;
/// Everything that is done here takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Fails when something takes longer than [`LIMIT`], as it does when it hangs.
fn within_limit(what: &str, work: impl FnOnce() + Send + 'static) {
    let (sender, done) = sync_channel(1);
    let thread = thread::spawn(move || {
        work();
        sender.send(()).unwrap();
    });
    match done.recv_timeout(LIMIT) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => panic!("waited {LIMIT:?} for {what}"),
        Err(RecvTimeoutError::Disconnected) => resume_unwind(thread.join().unwrap_err()),
    }
}

/// Fills the counter, so that another write has to wait, and has the descriptor wait for that. It
/// is the same open file that the switch has.
fn block(event: &Event) {
    rustix::io::write(&event.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&event.0, OFlags::empty()).unwrap();
}

fn block_calls(guest: &Guest) {
    block(&guest.receive.call);
    block(&guest.transmit.call);
}

#[test]
fn a_call_descriptor_that_blocks_and_is_full_stops_nobody() {
    within_limit("ports that call a guest whose call descriptors block", || {
        let mut world = World::modern();
        // A counter that is not empty cannot be filled at once.
        world.guests[HOSTILE].transmit.call.take();
        world.guests[HOSTILE].receive.call.take();
        block_calls(&world.guests[HOSTILE]);
        // Both of its rings are called in each breath, often enough to fill any queue of calls.
        for seed in 0..300 {
            (0..2).for_each(|guest| world.guests[guest].post_many(1));
            world.guests[0].send(&frame(0, 1, 60, seed));
            world.guests[1].send(&frame(1, 0, 60, seed));
            world.breathe();
            world.breathe();
            assert_eq!(world.guests[0].frames(), [frame(1, 0, 60, seed)]);
            assert_eq!(world.guests[1].frames(), [frame(0, 1, 60, seed)]);
            assert_eq!([0, 1].map(|guest| world.guests[guest].reap()), [1, 1]);
            assert!(world.guests[1].transmit.call.take() > 0, "the other guest is called");
        }

        // Rings that start, that go on elsewhere, and that stop, call too.
        world.guests[HOSTILE].restart([300, 300]);
        world.plug(HOSTILE);
        world.guests[HOSTILE].post_many(1);
        world.guests[1].send(&frame(1, 0, 60, 1));
        world.breathe();
        world.swap(HOSTILE, None);
        assert!(world.faults.is_empty(), "{:?}", world.faults);
    });
}
