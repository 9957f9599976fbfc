//! A front end finds its connection closed when the workers have let go of its rings, and not before: it may go on with them
//! elsewhere at once.

use std::sync::mpsc::Receiver;

use engine::{App, Burst, Change, Counters, Ids, Outputs, Pulse, Selection};
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

/// Its app is not there any more when the workers are to let go of it, and what goes on behind it is about to be ended.
#[tokio::test]
async fn a_guest_that_leaves_while_its_port_is_taken_out_is_no_failure() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    for is_out in [true, false] {
        let (switch, [guest, _other]) = two_guests(directory.path()).await;
        let port = app(&switch, "vm");
        // The workers' part of that, as it is made at once, or a moment before.
        let take_out = move |worker: &mut Worker| {
            worker.stop_ahead(&[port]);
            let mut change = Change::new(&Ids::default());
            change.remove_end(port);
            if is_out {
                worker.change(&mut change);
            }
            change
        };
        let _remains = switch.workers.on_each(take_out).await.unwrap();
        drop(guest);
        let (socket, start) = (directory.path().join("one.sock"), Instant::now());
        while socket.exists() && !log.text().contains("ERROR") {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the end of the port");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!log.text().contains("ERROR"), "{}", log.text());
        switch.stop().await.unwrap();
    }
}

/// So that what a worker has to do for each of them does not keep all others waiting: also if another worker hangs.
#[tokio::test]
async fn of_many_ports_that_go_some_are_stopped_between_two_breaths() {
    const MANY: usize = 80;
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("0.sock"), Vec::new());
    for number in 1..MANY {
        let path = directory.path().join(format!("{number}.sock"));
        let kind = PortKind::VhostUser(VhostUser::new(path));
        config.ports.push(PortConfig::new(&format!("vm{number}"), kind));
    }
    let switch = Switch::start(&config).await.unwrap();
    let stops: Vec<_> =
        switch.workers.pulses().into_iter().map(|pulse| (pulse, Stops::default())).collect();
    for port in &config.ports {
        let part = |(pulse, stops): &(Arc<Pulse>, Stops)| Noted {
            pulse: pulse.clone(),
            stops: stops.clone(),
            counters: Counters::default(),
        };
        let parts = stops.iter().map(part).collect();
        switch.workers.replace(app(&switch, &port.name), parts).await.unwrap();
    }
    let at_once = |worker: usize| -> Vec<usize> {
        stops[worker].1.lock().unwrap().chunk_by(u64::eq).map(<[u64]>::len).collect()
    };
    let all_at_once = [32, 16, 32];
    let let_go = hold_first(&switch).await;
    let state = switch.state.clone();
    let mut change =
        Box::pin(
            async move { state.lock().await.fabric.become_network(&Network::default()).await },
        );
    let second_is_done = async {
        let start = Instant::now();
        while at_once(1) != all_at_once {
            assert!(
                start.elapsed() < LIMIT,
                "waited {LIMIT:?} for the second worker, which has stopped {:?}",
                at_once(1)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = &mut change => panic!("it did not wait for the first worker"),
        () = second_is_done => drop(let_go),
    }
    tokio::time::timeout(LIMIT, change).await.expect("it ends in time").unwrap();
    assert_eq!(at_once(0), all_at_once);
    switch.stop().await.unwrap();
}

/// The breaths that a worker had taken when apps of it were stopped.
type Stops = Arc<Mutex<Vec<u64>>>;

/// An app that notes when it is stopped.
struct Noted {
    pulse: Arc<Pulse>,
    stops: Stops,
    counters: Counters,
}

impl App for Noted {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn stop(&mut self) {
        self.stops.lock().unwrap().push(self.pulse.look().breaths);
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
