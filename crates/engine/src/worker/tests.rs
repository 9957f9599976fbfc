use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::testing::{
    DELIBERATE, Faulty, Listener, Moment, Sink, Source, Told, silence_deliberate_panics, taken,
    told,
};
use crate::{Burst, Counters, Fault, Lease, Outputs, Selection};
use wire::virtio::Offload;

/// More than anything here takes, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits for a condition that another thread brings about.
#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        std::thread::yield_now();
    }
}

/// What a guest and a worker share: a ring without frames, that can be kicked.
struct Ring {
    available: AtomicU64,
    /// The worker asked to be kicked.
    armed: AtomicBool,
    kick: OwnedFd,
    taken: AtomicU64,
    arms: AtomicU64,
}

impl Ring {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            available: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            taken: AtomicU64::new(0),
            arms: AtomicU64::new(0),
        })
    }

    /// What a driver does: makes something available, and kicks only when asked to.
    fn offer(&self) {
        self.available.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        }
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Waits until the worker is asleep, or about to fall asleep.
    #[track_caller]
    fn wait_for_sleep(&self) {
        let before = self.arms.load(Ordering::Acquire);
        // In the first two arms since, it may be on its way out of the sleep before.
        wait_for("the worker to arm", || {
            self.armed.load(Ordering::Acquire) || self.arms.load(Ordering::Acquire) > before + 1
        });
    }
}

/// The device's side of a [`Ring`].
struct Device {
    ring: Arc<Ring>,
    counters: Counters,
}

impl Device {
    fn new(ring: &Arc<Ring>) -> Self {
        Self { ring: ring.clone(), counters: Counters::default() }
    }
}

impl App for Device {
    fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        let armed = self.ring.armed.load(Ordering::Relaxed);
        assert!(!armed, "the worker polls, and yet is kicked");
        let count = self.ring.available.swap(0, Ordering::Acquire);
        self.ring.taken.fetch_add(count, Ordering::Release);
        count > 0
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn arm(&mut self) -> bool {
        self.ring.armed.store(true, Ordering::Relaxed);
        self.ring.arms.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.ring.available.load(Ordering::Relaxed) > 0
    }

    fn disarm(&mut self) {
        self.ring.armed.store(false, Ordering::Relaxed);
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        poller.watch(&self.ring.kick)
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn settings(mode: Mode) -> Settings {
    Settings { mode, ..Settings::default() }
}

fn start(mode: Mode, graph: Graph) -> WorkerHandle {
    start_with(settings(mode), graph)
}

fn start_with(settings: Settings, graph: Graph) -> WorkerHandle {
    let events = Box::new(|event| match event {
        Event::Fault { fault, .. } => panic!("unexpected: {fault}"),
        Event::Failed { message, .. } => panic!("unexpected: {message}"),
    });
    Worker::start("test", graph, settings, events).unwrap()
}

/// A worker with one ring.
fn start_with_ring(mode: Mode) -> (WorkerHandle, Arc<Ring>) {
    let ring = Ring::new();
    let mut graph = Graph::new();
    graph.add("ring", Device::new(&ring));
    (start(mode, graph), ring)
}

/// Runs a command and waits for its answer.
#[track_caller]
fn ask<R: Send + 'static>(
    worker: &WorkerHandle,
    command: impl FnOnce(&mut Worker) -> R + Send + 'static,
) -> R {
    let (sender, answer) = channel();
    worker.run(command, move |result| sender.send(result).unwrap()).unwrap();
    answer.recv_timeout(LIMIT).expect("an answer in time")
}

/// Stops a worker; returns its apps.
#[track_caller]
fn stop(worker: WorkerHandle) -> Graph {
    let (sender, stopped) = channel();
    std::thread::spawn(move || drop(sender.send(worker.stop())));
    stopped.recv_timeout(LIMIT).expect("a stop in time").unwrap()
}

#[test]
fn commands_run_in_order_and_answer_from_the_worker() {
    for mode in [Mode::Adaptive, Mode::Poll, Mode::Interrupt] {
        let worker = start(mode, Graph::new());
        let (sender, answers) = channel();
        for number in 0..10 {
            let sender: Sender<_> = sender.clone();
            let name = || std::thread::current().name().map(str::to_owned);
            worker
                .run(
                    move |_| (number, name()),
                    move |(number, ran)| sender.send((number, ran, name())).unwrap(),
                )
                .unwrap();
        }
        for number in 0..10 {
            let answer = answers.recv_timeout(LIMIT).unwrap();
            let name = Some("test".to_owned());
            assert_eq!(answer, (number, name.clone(), name));
        }
        stop(worker);
    }
}

#[test]
fn a_command_changes_an_app_between_breaths() {
    let (sink, took) = Sink::new();
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (sink, 0)).unwrap();
    let worker = start(Mode::Adaptive, graph);
    let before = ask(&worker, move |worker| {
        worker.with(source, |source: &mut Source, _| {
            source.frames.extend([1, 2]);
            source.reclaims
        })
    });
    assert!(before.is_some());
    wait_for("the frames", || took.lock().unwrap().len() == 2);
    assert_eq!(taken(&took), [(0, 1), (0, 2)]);
    let wrong_type = ask(&worker, move |worker| worker.with(sink, |_: &mut Source, _| ()));
    assert_eq!(wrong_type, None);
    let counters = ask(&worker, move |worker| worker.graph().counters(sink));
    assert_eq!(counters.sent.frames, 2);
    stop(worker);
}

#[test]
fn stopping_returns_the_apps() {
    for mode in [Mode::Adaptive, Mode::Poll, Mode::Interrupt] {
        let mut graph = Graph::new();
        let source = graph.add("source", Source::default());
        let mut graph = stop(start(mode, graph));
        assert_eq!(graph.name(source), "source");
        assert!(graph.get::<Source>(source).is_some());
    }
}

#[test]
fn apps_are_stopped_once_and_not_those_that_failed() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let (one, of_one) = Listener::new();
    let (other, of_other) = Listener::new();
    graph.add("one", one);
    let other = graph.add("other", other);
    let worker = Worker::start("test", graph, settings(Mode::Adaptive), Box::new(|_| ())).unwrap();
    ask(&worker, move |worker| {
        worker.with(other, |_: &mut Listener, _| panic!("{DELIBERATE}: with"))
    });
    drop(stop(worker));
    let stops = |tidings| told(tidings).iter().filter(|told| **told == Told::Stop).count();
    assert_eq!((stops(&of_one), stops(&of_other)), (1, 0));
}

#[test]
fn an_app_that_gives_way_is_stopped() {
    let mut graph = Graph::new();
    let (listener, tidings) = Listener::new();
    let place = graph.add("place", listener);
    let worker = start(Mode::Adaptive, graph);
    let new = Box::new(Source::default());
    let old = ask(&worker, move |worker| worker.replace(place, new)).unwrap();
    assert!(old.is_some());
    assert_eq!(told(&tidings).last(), Some(&Told::Stop));
    stop(worker);
}

#[test]
fn a_panic_in_stop_is_reported() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let faulty = graph.add("faulty", Faulty::new(Moment::Stop));
    let (sender, events) = channel();
    let events_to = Box::new(move |event| sender.send(event).unwrap());
    let worker = Worker::start("test", graph, settings(Mode::Adaptive), events_to).unwrap();
    stop(worker);
    expect_failure(&events, faulty, &format!("{DELIBERATE}: Stop"));
}

/// What control changes is passed on before it has its answer.
#[test]
fn an_app_that_control_has_called_is_asked_whether_it_is_up() {
    let mut graph = Graph::new();
    let (mut port, _) = Listener::new();
    port.is_up = false;
    let (listener, tidings) = Listener::new();
    let port = graph.add("port", port);
    let listener = graph.add("listener", listener);
    graph.link((port, 4), (listener, 2)).unwrap();
    let worker = start(Mode::Interrupt, graph);
    let mut expected = vec![Told::Link(2, false)];
    for is_up in [true, false] {
        let set = move |port: &mut Listener, _: &Poller| port.is_up = is_up;
        ask(&worker, move |worker| worker.with(port, set)).unwrap();
        expected.push(Told::Link(2, is_up));
        let mut told = told(&tidings);
        told.retain(|told| matches!(told, Told::Link(..)));
        tidings.lock().unwrap().extend(&told);
        assert_eq!(told, expected);
    }
    stop(worker);
}

#[test]
fn settings_are_the_apps_own() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let listener = graph.add("listener", Listener::new().0);
    let source = graph.add("source", Source::default());
    let faulty = graph.add("faulty", Faulty::new(Moment::Reconfigure));
    let worker = Worker::start("test", graph, settings(Mode::Adaptive), Box::new(|_| ())).unwrap();
    let try_it = |app, settings: &'static (dyn Any + Send + Sync)| {
        let done = ask(&worker, move |worker| worker.reconfigure(app, settings));
        done.map_err(|error| error.to_string())
    };
    assert_eq!(try_it(listener, &7u32), Ok(()));
    let other = "these are settings of another kind of app: this one takes u32";
    assert_eq!(try_it(listener, &8u64), Err(other.to_owned()));
    let none = "this kind of app has no settings that can be changed while it runs";
    assert_eq!(try_it(source, &9u32), Err(none.to_owned()));
    assert_eq!(try_it(faulty, &9u32), Err("the app has failed".to_owned()));
    let numbers = ask(&worker, move |worker| worker.numbers(listener));
    let values: Vec<_> = numbers.iter().map(|number| (number.name.as_str(), number.unit)).collect();
    assert_eq!(values, [("settings", ""), ("by the clock", "ns")]);
    let values: Vec<_> = numbers.iter().map(|number| number.value).collect();
    assert_eq!(values[0], 7);
    assert!(values[1] > 0, "the time of breaths");
    stop(worker);
}

#[test]
fn a_panic_in_report_says_nothing_and_costs_that_app() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let faulty = graph.add("faulty", Faulty::new(Moment::Report));
    let (sender, events) = channel();
    let events_to = Box::new(move |event| sender.send(event).unwrap());
    let worker = Worker::start("test", graph, settings(Mode::Interrupt), events_to).unwrap();
    let numbers = ask(&worker, move |worker| worker.numbers(faulty));
    assert_eq!(numbers, Numbers::default());
    expect_failure(&events, faulty, &format!("{DELIBERATE}: Report"));
    stop(worker);
}

#[test]
fn a_dead_worker_says_so() {
    silence_deliberate_panics();
    let worker = start(Mode::Adaptive, Graph::new());
    // Not in an app, so that nothing catches it.
    worker.run(|_| panic!("{DELIBERATE}: command"), |()| ()).unwrap();
    wait_for("the thread to end", || worker.thread.is_finished());
    assert_eq!(worker.run(|_| (), |()| ()), Err(Stopped));
    assert!(worker.stop().is_err());
}

#[test]
fn a_kick_wakes_a_sleeping_worker() {
    for mode in [Mode::Adaptive, Mode::Interrupt] {
        let (worker, ring) = start_with_ring(mode);
        for count in 1..=10 {
            ring.wait_for_sleep();
            ring.offer();
            wait_for("the kick to be served", || ring.taken() == count);
        }
        assert!(ask(&worker, |worker| worker.load().sleeps) > 0);
        stop(worker);
    }
}

#[test]
fn a_command_wakes_a_sleeping_worker() {
    for mode in [Mode::Adaptive, Mode::Interrupt] {
        let (worker, ring) = start_with_ring(mode);
        for _ in 0..10 {
            ring.wait_for_sleep();
            ask(&worker, |_| ());
        }
        ring.wait_for_sleep();
        stop(worker);
    }
}

#[test]
fn a_descriptor_watched_later_wakes_too_until_it_is_watched_no_more() {
    let (worker, ring) = start_with_ring(Mode::Interrupt);
    let id = AppId::from_word(0);
    let other = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let ring_of = move |worker: &mut Worker, watched: bool, other: &OwnedFd| {
        worker.with(id, |_: &mut Device, poller| {
            if watched {
                poller.watch(other).unwrap();
            } else {
                poller.unwatch(other);
            }
        })
    };
    let same = other.clone();
    ask(&worker, move |worker| ring_of(worker, true, &same)).unwrap();
    for _ in 0..10 {
        ring.wait_for_sleep();
        let arms = ring.arms.load(Ordering::Acquire);
        rustix::io::write(&other, &1u64.to_ne_bytes()).unwrap();
        wait_for("the worker to wake", || ring.arms.load(Ordering::Acquire) > arms);
    }
    let same = other.clone();
    ask(&worker, move |worker| ring_of(worker, false, &same)).unwrap();
    let sleeps = ask(&worker, |worker| worker.load().sleeps);
    for _ in 0..100 {
        rustix::io::write(&other, &1u64.to_ne_bytes()).unwrap();
    }
    // The command is the only thing that ends a sleep now; the edge that the descriptor's last
    // write left may end one more.
    let sleeps = ask(&worker, |worker| worker.load().sleeps) - sleeps;
    assert!(sleeps <= 2, "{sleeps} sleeps");
    stop(worker);
}

#[test]
fn what_cannot_be_waited_for_is_an_error() {
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let poller = Poller::new().unwrap();
    assert!(poller.watch(&file).is_err());
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    poller.watch(&kick).unwrap();
    assert!(poller.watch(&kick).is_err(), "watched already");
    poller.unwatch(&kick);
    poller.watch(&kick).unwrap();
}

/// Something is made available at all phases of falling asleep and waking up, and never left lying.
#[test]
fn no_wake_up_is_lost() {
    for (mode, idle_spin) in [
        (Mode::Adaptive, Duration::ZERO),
        (Mode::Adaptive, Duration::from_micros(5)),
        (Mode::Interrupt, Duration::ZERO),
    ] {
        let ring = Ring::new();
        let mut graph = Graph::new();
        graph.add("ring", Device::new(&ring));
        let settings = Settings { idle_spin, ..settings(mode) };
        let worker = start_with(settings, graph);
        // A multiplicative generator: the pauses have to differ, not to be random.
        let mut state = 1u64;
        for count in 1..=10_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            for _ in 0..state >> 52 {
                std::hint::spin_loop();
            }
            ring.offer();
            let start = Instant::now();
            while ring.taken() != count {
                assert!(start.elapsed() < LIMIT, "{mode:?}: offer {count} was lost");
                std::hint::spin_loop();
            }
        }
        let load = ask(&worker, |worker| worker.load());
        assert!(load.sleeps > 100, "it hardly slept: {load:?}");
        stop(worker);
    }
}

/// As above, for the queue of commands.
#[test]
fn no_command_is_lost() {
    for mode in [Mode::Adaptive, Mode::Interrupt] {
        let worker = start(mode, Graph::new());
        for _ in 0..5_000 {
            ask(&worker, |_| ());
        }
        stop(worker);
    }
}

#[test]
fn a_polling_worker_never_sleeps_nor_asks_to_be_woken() {
    let (worker, ring) = start_with_ring(Mode::Poll);
    wait_for("many breaths", || ask(&worker, |worker| worker.load().breaths) > 10_000);
    ring.offer();
    wait_for("the offer to be taken", || ring.taken() == 1);
    assert_eq!(ask(&worker, |worker| worker.load().sleeps), 0);
    assert_eq!(ring.arms.load(Ordering::Acquire), 0);
    stop(worker);
}

#[test]
fn an_idle_worker_burns_no_cpu() {
    for mode in [Mode::Adaptive, Mode::Interrupt] {
        let (worker, ring) = start_with_ring(mode);
        ring.wait_for_sleep();
        let before = ask(&worker, |worker| worker.load());
        // The time itself is what is tested here.
        std::thread::sleep(Duration::from_millis(300));
        let after = ask(&worker, |worker| worker.load());
        let cpu = after.cpu - before.cpu;
        assert!(cpu < Duration::from_millis(5), "{mode:?}: {cpu:?}");
        assert!(after.sleeps - before.sleeps <= 2, "{mode:?}: it ticks");
        stop(worker);
    }
}

#[test]
fn the_load_tells_busy_breaths_from_idle_ones() {
    let (worker, ring) = start_with_ring(Mode::Adaptive);
    for count in 1..=5 {
        ring.offer();
        wait_for("the offer to be taken", || ring.taken() == count);
    }
    let load = ask(&worker, |worker| worker.load());
    assert_eq!(load.busy_breaths, 5);
    assert!(load.breaths > 5, "{load:?}");
    stop(worker);
}

#[test]
fn an_app_with_something_to_do_keeps_the_worker_awake() {
    /// Always has something to do, but nothing that makes a breath busy.
    struct Restless(Counters);

    impl App for Restless {
        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn arm(&mut self) -> bool {
            true
        }

        fn counters(&self) -> &Counters {
            &self.0
        }
    }

    let mut graph = Graph::new();
    graph.add("restless", Restless(Counters::default()));
    // Every app is asked, so that none is left unarmed by another's answer.
    let ring = Ring::new();
    graph.add("ring", Device::new(&ring));
    let worker = start(Mode::Interrupt, graph);
    wait_for("many arms", || ring.arms.load(Ordering::Acquire) > 1000);
    assert_eq!(ask(&worker, |worker| worker.load().sleeps), 0);
    stop(worker);
}

#[test]
fn a_deadline_ends_a_sleep_and_one_that_is_over_does_not_keep_the_worker_awake() {
    /// Has to be called a while after the start, and has no other reason to be.
    struct Waiting {
        at: u64,
        called: Sender<u64>,
        counters: Counters,
    }

    impl App for Waiting {
        fn pull<'b>(&mut self, _: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
            if burst.now() >= self.at {
                let _ = self.called.send(burst.now());
            }
            false
        }

        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn deadline(&self, _: u64) -> Option<u64> {
            Some(self.at)
        }

        fn counters(&self) -> &Counters {
            &self.counters
        }
    }

    let (called, calls) = channel();
    let waiting = |milliseconds: u64| Waiting {
        at: milliseconds * 1_000_000,
        called: called.clone(),
        counters: Counters::default(),
    };
    let mut graph = Graph::new();
    // The first of them counts, wherever it is.
    graph.add("never", waiting(u64::MAX / 2_000_000));
    graph.add("soon", waiting(30));
    graph.add("later", waiting(u64::MAX / 1_000_000));
    let worker = start(Mode::Interrupt, graph);
    let at = calls.recv_timeout(LIMIT).expect("the call in time");
    assert!(at >= 30_000_000, "{at}");
    let load = ask(&worker, |worker| worker.load());
    assert!(load.sleeps < 20, "it slept on, until the time: {load:?}");
    // Once it was called, nothing wakes the worker any more but commands.
    let before = ask(&worker, |worker| worker.load());
    // The time itself is what is tested here.
    std::thread::sleep(Duration::from_millis(50));
    let after = ask(&worker, |worker| worker.load());
    assert!(after.sleeps - before.sleeps <= 2, "{before:?} {after:?}");
    stop(worker);
}

#[test]
fn a_worker_that_sleeps_is_woken_for_a_tick_that_an_app_wants() {
    /// Has no outside, and something to sweep.
    struct Sweeper(Sender<u64>, Counters);

    impl App for Sweeper {
        fn has_outside(&self) -> bool {
            false
        }

        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn tick(&mut self, now: u64) {
            let _ = self.0.send(now);
        }

        fn deadline(&self, now: u64) -> Option<u64> {
            Some(now + 1)
        }

        fn counters(&self) -> &Counters {
            &self.1
        }
    }

    let (ticked, ticks) = channel();
    let mut graph = Graph::new();
    graph.add("sweeper", Sweeper(ticked, Counters::default()));
    let worker = start(Mode::Interrupt, graph);
    let next = || ticks.recv_timeout(LIMIT).expect("a tick, though nothing else happens");
    let [first, second] = [next(), next()];
    assert!(second - first >= 1_000_000_000, "{first} {second}");
    let load = ask(&worker, |worker| worker.load());
    assert!(load.sleeps < 20, "it slept until then: {load:?}");
    stop(worker);
}

#[test]
fn a_worker_runs_where_it_is_told() {
    let allowed = sched_getaffinity(None).unwrap();
    let cpu = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).unwrap();
    let settings = Settings { cpus: vec![cpu], ..Settings::default() };
    let worker = Worker::start("test", Graph::new(), settings, Box::new(|_| ())).unwrap();
    let granted = ask(&worker, |_| sched_getaffinity(None).unwrap());
    assert_eq!((granted.count(), granted.is_set(cpu)), (1, true));
    stop(worker);
}

#[test]
fn a_processor_that_does_not_exist_is_an_error() {
    let allowed = sched_getaffinity(None).unwrap();
    let good = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    for cpu in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
        for cpus in [vec![cpu], vec![good, cpu]] {
            let settings = Settings { cpus, ..Settings::default() };
            let (sink, app) = Sink::new();
            let mut graph = Graph::new();
            graph.add("sink", sink);
            let started = Worker::start("test", graph, settings, Box::new(|_| ()));
            assert_eq!(Arc::strong_count(&app), 1, "the app is gone");
            assert_eq!(
                started.err().unwrap().to_string(),
                format!("cannot run on processor {cpu}: there is none, or we may not use it")
            );
        }
    }
}

#[test]
fn an_app_that_cannot_register_is_an_error() {
    let ring = Ring::new();
    let mut graph = Graph::new();
    graph.add("one", Device::new(&ring));
    // The same descriptor cannot be watched twice.
    graph.add("other", Device::new(&ring));
    let started = Worker::start("test", graph, Settings::default(), Box::new(|_| ()));
    assert_eq!(started.err().unwrap().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_fault_becomes_an_event() {
    struct Peer(Option<Fault>, Counters);

    impl App for Peer {
        fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
            self.0.is_some()
        }

        fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

        fn publish(&mut self) -> Result<(), Fault> {
            self.0.take().map_or(Ok(()), Err)
        }

        fn counters(&self) -> &Counters {
            &self.1
        }
    }

    let mut graph = Graph::new();
    let peer = graph.add("peer", Peer(Some("it lied".into()), Counters::default()));
    let (sender, events) = channel();
    let events_to = Box::new(move |event| sender.send(event).unwrap());
    let worker = Worker::start("test", graph, Settings::default(), events_to).unwrap();
    let event = events.recv_timeout(LIMIT).expect("an event in time");
    let Event::Fault { app, fault } = event else {
        panic!("not a fault");
    };
    assert_eq!((app, fault.to_string()), (peer, "it lied".to_owned()));
    stop(worker);
    assert!(events.try_recv().is_err(), "once only");
}

/// Wherever an app panics, control is told once and soon, and the worker lives.
#[test]
fn a_panic_anywhere_becomes_an_event() {
    silence_deliberate_panics();
    for moment in [
        Moment::Register,
        Moment::Pull,
        Moment::Reclaim,
        Moment::Publish,
        Moment::Notify,
        Moment::Tick,
        Moment::IsUp,
        Moment::Arm,
    ] {
        let ring = Ring::new();
        let mut graph = Graph::new();
        let faulty = graph.add("faulty", Faulty::new(moment));
        graph.add("ring", Device::new(&ring));
        let (sender, events) = channel();
        let events_to = Box::new(move |event| sender.send(event).unwrap());
        let worker = Worker::start("test", graph, settings(Mode::Interrupt), events_to).unwrap();
        if moment == Moment::Disarm {
            // Which comes after a sleep.
            ring.wait_for_sleep();
            ask(&worker, |_| ());
        }
        expect_failure(&events, faulty, &format!("{DELIBERATE}: {moment:?}"));
        ring.wait_for_sleep();
        ring.offer();
        wait_for("the other app to go on", || ring.taken() == 1);
        stop(worker);
        assert!(events.try_recv().is_err(), "once only");
    }
}

#[test]
fn a_panic_in_a_command_to_an_app_costs_that_app() {
    silence_deliberate_panics();
    let ring = Ring::new();
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    graph.add("ring", Device::new(&ring));
    let (sender, events) = channel();
    let events_to = Box::new(move |event| sender.send(event).unwrap());
    let worker = Worker::start("test", graph, settings(Mode::Interrupt), events_to).unwrap();
    ring.wait_for_sleep();
    let result = ask(&worker, move |worker| {
        worker.with(source, |_: &mut Source, _| panic!("{DELIBERATE}: with"))
    });
    assert_eq!(result, None::<()>);
    expect_failure(&events, source, &format!("{DELIBERATE}: with"));
    ring.wait_for_sleep();
    ring.offer();
    wait_for("the other app to go on", || ring.taken() == 1);
    stop(worker);
}

#[track_caller]
fn expect_failure(events: &Receiver<Event>, whose: AppId, what: &str) {
    let event = events.recv_timeout(LIMIT).expect("an event in time");
    let Event::Failed { app, message, .. } = event else {
        panic!("not a panic");
    };
    assert_eq!((app, message.as_str()), (whose, what));
}

#[test]
fn polling_gets_shorter_while_it_does_not_pay() {
    let mut spin = Spin::new(50_000);
    assert_eq!(spin.now, 50_000);
    spin.learn(2_000_000);
    assert_eq!(spin.now, 25_000);
    for _ in 0..20 {
        spin.learn(2_000_000);
    }
    assert_eq!(spin.now, 0, "as good as an interrupt");
    spin.learn(49_999);
    assert_eq!(spin.now, 50_000, "it would have paid");
    spin.learn(50_000);
    assert_eq!(spin.now, 25_000);
}

#[test]
fn an_app_that_failed_is_replaced_and_its_peer_is_served() {
    silence_deliberate_panics();
    let ring = Ring::new();
    let mut graph = Graph::new();
    let place = graph.add("place", Faulty::new(Moment::Pull));
    let (sender, events) = channel();
    let events_to = Box::new(move |event| sender.send(event).unwrap());
    let worker = Worker::start("test", graph, settings(Mode::Interrupt), events_to).unwrap();
    expect_failure(&events, place, &format!("{DELIBERATE}: Pull"));
    let device = Device::new(&ring);
    let replaced = ask(&worker, move |worker| worker.replace(place, Box::new(device)));
    assert!(replaced.unwrap().is_none());
    // Its descriptor is watched.
    for count in 1..=3 {
        ring.wait_for_sleep();
        ring.offer();
        wait_for("the new app to be woken", || ring.taken() == count);
    }
    // One that fails at once is reported as any other.
    let faulty = Box::new(Faulty::new(Moment::Register));
    let replaced = ask(&worker, move |worker| worker.replace(place, faulty));
    assert!(replaced.unwrap().is_some());
    expect_failure(&events, place, &format!("{DELIBERATE}: Register"));
    stop(worker);
    assert!(events.try_recv().is_err(), "once only");
}

/// Does not come back from its first pull before it is let go.
struct Stuck {
    entered: Sender<()>,
    release: Receiver<()>,
    counters: Counters,
}

impl App for Stuck {
    fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        if self.entered.send(()).is_ok() {
            // Until the other end is gone.
            let _ = self.release.recv();
        }
        false
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn a_worker_that_hangs_shows_where() {
    let (entered, was_entered) = channel();
    let (let_go, release) = channel();
    let mut graph = Graph::new();
    graph.add("other", Sink::new().0);
    let stuck = graph.add("stuck", Stuck { entered, release, counters: Counters::default() });
    let worker = start(Mode::Adaptive, graph);
    was_entered.recv_timeout(LIMIT).expect("the app is called");
    let beat = worker.pulse().look();
    assert_eq!((beat.app, beat.is_asleep), (Some(stuck), false));
    assert_eq!(worker.pulse().look(), beat, "nothing moves");
    drop((let_go, was_entered));
    wait_for("the worker to fall asleep", || worker.pulse().look().is_asleep);
    let beat = worker.pulse().look();
    assert_eq!(beat.app, None);
    assert!(beat.breaths > 0);
    stop(worker);
}

#[test]
fn busy_breaths_are_timed() {
    let (worker, ring) = start_with_ring(Mode::Interrupt);
    for count in 1..=20 {
        ring.wait_for_sleep();
        ring.offer();
        wait_for("the kick to be served", || ring.taken() == count);
    }
    ring.wait_for_sleep();
    let load = ask(&worker, |worker| worker.load());
    let timed: u64 = load.times.buckets().map(|(_, count)| count).sum();
    assert!((20..=load.breaths).contains(&timed), "{timed} of {} breaths", load.breaths);
    stop(worker);
}

/// Has so many frames in each breath, and writes down what time it is.
struct Clocked {
    frames: usize,
    times: Arc<Mutex<Vec<u64>>>,
    counters: Counters,
}

impl App for Clocked {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let mut times = self.times.lock().unwrap();
        if times.len() == TIMES {
            return false;
        }
        times.push(burst.now());
        let bytes = lease.private(vec![0; self.frames].into());
        for byte in bytes.chunks(1) {
            let start = burst.segments().len();
            burst.segments().push(byte.into());
            let pushed = burst.push::<()>(start..start + 1, 0, |_, _| Ok(Offload::NONE));
            assert!(matches!(pushed, Ok(Some(_))));
        }
        true
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Breaths of [`Clocked`].
const TIMES: usize = 400;

#[test]
fn breaths_with_few_frames_share_a_look_at_the_clock() {
    for (frames, looks) in [(1, TIMES / 4), (2, TIMES / 3), (32, TIMES)] {
        let times = Arc::new(Mutex::new(Vec::new()));
        let mut graph = Graph::new();
        graph.add(
            "clocked",
            Clocked { frames, times: times.clone(), counters: Counters::default() },
        );
        let worker = start(Mode::Adaptive, graph);
        wait_for("all breaths", || times.lock().unwrap().len() == TIMES);
        wait_for("the worker to fall asleep", || worker.pulse().look().is_asleep);
        let load = ask(&worker, |worker| worker.load());
        stop(worker);
        let mut times = Arc::into_inner(times).unwrap().into_inner().unwrap();
        times.dedup();
        // The first may be cut short.
        let found = times.len();
        assert!((looks..=looks + 2).contains(&found), "{frames} frames: {found} looks");
        let timed: u64 = load.times.buckets().map(|(_, count)| count).sum();
        assert_eq!(timed, TIMES as u64, "each breath that had frames counts once");
    }
}
