//! A front end finds its connection closed when the workers have let go of its rings, and not before: it may go on with them
//! elsewhere at once.

use std::sync::mpsc::Receiver;

use engine::{App, Burst, Counters, Outputs, Selection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// That so long nothing happens is no accident.
const ENOUGH: Duration = Duration::from_millis(300);

/// An app that holds its worker up when it is taken out.
struct Slow {
    entered: UnboundedSender<()>,
    /// Until the other end is gone.
    held: Receiver<()>,
    counters: Counters,
}

impl App for Slow {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn stop(&mut self) {
        let _ = self.entered.send(());
        let _ = self.held.recv();
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Has the change that takes the second port out last until what this returns is dropped. Also says when it has begun.
async fn make_slow(switch: &Switch) -> (Vec<Sender<()>>, UnboundedReceiver<()>) {
    let (entered, has_begun) = unbounded_channel();
    let part = || {
        let (let_go, held) = sync_mpsc::channel();
        (let_go, Slow { entered: entered.clone(), held, counters: Counters::default() })
    };
    let (let_go, parts) = (0..switch.workers.len()).map(|_| part()).unzip();
    switch.workers.replace(app(switch, "other"), parts).await.unwrap();
    (let_go, has_begun)
}

/// Makes a change, and sees that the guest keeps its connection as long as a worker is at it, and not afterwards.
async fn changes<R>(
    change: impl Future<Output = R>,
    (let_go, mut has_begun): (Vec<Sender<()>>, UnboundedReceiver<()>),
    guest: &mut Guest,
) -> R {
    tokio::pin!(change);
    let begun = tokio::time::timeout(LIMIT, has_begun.recv());
    tokio::select! {
        _ = &mut change => panic!("it did not wait for the workers"),
        begun = begun => begun.expect("it begins in time").unwrap(),
    }
    assert!(!guest.front_end().is_closed(), "closed while a worker may have the rings");
    drop(let_go);
    let done = tokio::time::timeout(LIMIT, change).await.expect("it ends in time");
    assert!(guest.front_end().is_closed(), "still open");
    done
}

#[tokio::test]
async fn a_reload_that_takes_a_port_out_closes_its_connection_last() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, [mut guest, _other]) = two_guests(directory.path()).await;
    let slow = make_slow(&switch).await;
    let mut state = switch.state.lock().await;
    let nothing = Network::default();
    let change = state.fabric.become_network(&nothing);
    changes(change, slow, &mut guest).await.unwrap();
    drop(state);
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_switch_that_stops_closes_connections_last() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, [mut guest, _other]) = two_guests(directory.path()).await;
    let slow = make_slow(&switch).await;
    changes(switch.stop(), slow, &mut guest).await.unwrap();
}

/// One worker finds what takes the port down, and the other one has not heard of it.
#[tokio::test]
async fn a_port_that_fails_closes_its_connection_last() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let (switch, [mut guest, _other]) = two_guests(directory.path()).await;
    let port = app(&switch, "vm");
    let let_go = hold_first(&switch).await;
    let nothing = |_: &mut Worker| {};
    let fail = move |worker: &mut Worker| {
        worker.with(port, |_: &mut VhostUserPort, _| -> () { panic!("deliberate") });
    };
    type Command = Box<dyn FnOnce(&mut Worker) + Send>;
    let commands: Vec<Command> = vec![Box::new(nothing), Box::new(fail)];
    let mut failed = Box::pin(switch.workers.on_all(commands));
    tokio::select! {
        _ = &mut failed => panic!("the first worker has answered"),
        () = log.until("a bug of ours took this down: deliberate") => {}
    }
    let start = Instant::now();
    while start.elapsed() < ENOUGH {
        assert!(!guest.front_end().is_closed(), "closed while a worker may have the rings");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(let_go);
    failed.as_mut().await.unwrap();
    drop(failed);
    let start = Instant::now();
    while !guest.front_end().is_closed() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the connection to be closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    switch.stop().await.unwrap();
}
