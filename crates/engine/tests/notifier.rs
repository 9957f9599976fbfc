//! A worker can call the drivers of its guests from the start: later, a guest may have left nothing to do
//! it with.
//!
//! Alone in its process: other tests would start and stop workers while it counts.

use ringway_engine::{Graph, Settings, Worker};

/// The notifiers of this process: each has a mapping of its own.
fn notifiers() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("[aio]")).count()
}

#[test]
fn a_worker_has_its_notifier_before_it_is_there() {
    let before = notifiers();
    let start =
        || Worker::start("worker", Graph::new(), Settings::default(), Box::new(drop)).unwrap();
    let workers = [start(), start()];
    assert_eq!(notifiers(), before + 2);
    for worker in workers {
        worker.stop().unwrap();
    }
}
