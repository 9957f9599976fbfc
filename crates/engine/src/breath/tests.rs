use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::graph::{FEW, SMALL, SOON};
use crate::testing::{
    DELIBERATE, Faulty, Listener, Moment, Repeater, Sink, Source, Told, silence_deliberate_panics,
    taken, told,
};
use crate::{Burst, Counters, DropReason, Mode, Outcomes, Outputs, Selection, Settings, Worker};
use wire::virtio::Offload;

/// More than anything here takes, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Breathes and returns the panics that were reported: by whom, and what they said.
fn failures(graph: &mut Graph) -> Vec<(AppId, String)> {
    let mut failures = Vec::new();
    graph.breathe(0, |event| match event {
        Event::Failed { app, message, .. } => failures.push((app, message)),
        Event::Fault { fault, .. } => panic!("unexpected: {fault}"),
    });
    failures
}

#[test]
fn the_one_that_pulled_learns_what_became_of_its_frames() {
    let mut graph = Graph::new();
    let (mut sink, took) = Sink::new();
    sink.room = 2;
    let source = graph.add("source", Source::new([1, 2, 3, 4]));
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (sink, 0)).unwrap();
    graph.breathe(0, |_| ());
    assert_eq!(taken(&took), [(0, 1), (0, 2)]);
    assert_eq!(graph.get::<Source>(source).unwrap().frames, [3, 4]);

    graph.get::<Sink>(sink).unwrap().room = 10;
    graph.breathe(0, |_| ());
    assert_eq!(taken(&took), [(0, 3), (0, 4)]);
    assert!(graph.get::<Source>(source).unwrap().frames.is_empty());
    assert_eq!(graph.get::<Source>(source).unwrap().reclaims, 2);
}

#[test]
fn a_burst_leaves_by_the_output_that_its_app_says() {
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let source = graph.add("source", Source::default());
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (sink, 5)).unwrap();
    graph.link((source, 2), (sink, 7)).unwrap();
    // What one burst said does not hold for the next.
    for (output, expected) in [(None, 5), (Some(2), 7), (None, 5), (Some(0), 5)] {
        let app: &mut Source = graph.get(source).unwrap();
        app.output = output;
        app.frames.push_back(1);
        graph.breathe(0, |_| ());
        assert_eq!(taken(&took), [(expected, 1)]);
    }
    let app: &mut Source = graph.get(source).unwrap();
    app.output = Some(1);
    app.frames.push_back(1);
    graph.breathe(0, |_| ());
    assert_eq!(graph.counters(source)[DropReason::NoDestination], 1);
}

#[test]
fn a_replicated_frame_is_dropped_by_the_full_one_and_reaches_the_other() {
    let mut graph = Graph::new();
    let (mut full, _) = Sink::new();
    full.room = 0;
    let (free, took) = Sink::new();
    let source = graph.add("source", Source::new([1]));
    let repeater = graph.add("repeater", Repeater::new(2));
    let full = graph.add("full", full);
    let free = graph.add("free", free);
    graph.link((source, 0), (repeater, 0)).unwrap();
    graph.link((repeater, 0), (full, 0)).unwrap();
    graph.link((repeater, 1), (free, 0)).unwrap();
    graph.breathe(0, |_| ());
    graph.breathe(0, |_| ());
    assert_eq!(taken(&took), [(0, 1)]);
    assert_eq!(graph.counters(full)[DropReason::ReceiverFull], 1);
}

#[test]
fn a_lease_of_no_frames_is_given_back_too() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    assert!(!graph.breathe(0, |_| ()));
    assert_eq!(graph.get::<Source>(source).unwrap().reclaims, 1);
}

/// Has something to do when it is told so, and counts what it is asked.
#[derive(Default)]
struct Station {
    is_busy: bool,
    /// Frames that it has in its next turn, and their bytes, if these are more than the least.
    frames: usize,
    size: usize,
    is_inside: bool,
    pushes: usize,
    pulls: usize,
    reclaims: usize,
    publications: usize,
    counters: Counters,
}

impl App for Station {
    fn has_outside(&self) -> bool {
        !self.is_inside
    }

    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.pulls += 1;
        let had_frames = self.frames > 0;
        if had_frames {
            let bytes = lease.private(vec![0; self.size.max(60)].into());
            for at in 0..std::mem::take(&mut self.frames) {
                burst.segments().push(bytes.into());
                burst.push::<()>(at..at + 1, 0, |_, _| Ok(Offload::NONE)).unwrap();
            }
        }
        self.is_busy || had_frames
    }

    fn reclaim(&mut self, _: Outcomes<'_>, _: Lease) {
        self.reclaims += 1;
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {
        self.pushes += 1;
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.publications += 1;
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn an_app_is_asked_to_publish_what_there_may_be() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1]));
    let sink = graph.add("sink", Station::default());
    let busy = graph.add("busy", Station { is_busy: true, ..Station::default() });
    let idle = graph.add("idle", Station::default());
    graph.link((source, 0), (sink, 0)).unwrap();
    let publications = |graph: &mut Graph| {
        [sink, busy, idle].map(|id| graph.get::<Station>(id).unwrap().publications)
    };
    graph.breathe(0, |_| ());
    assert_eq!(publications(&mut graph), [1, 1, 0]);
    graph.breathe(0, |_| ());
    assert_eq!(publications(&mut graph), [1, 2, 0]);
    assert_eq!(graph.get::<Station>(busy).unwrap().reclaims, 0, "there was no lease");
}

#[test]
fn an_app_without_an_outside_is_given_frames_and_asked_for_nothing() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1]));
    let inside = Station { is_busy: true, is_inside: true, ..Station::default() };
    let inside = graph.add("inside", inside);
    graph.link((source, 0), (inside, 0)).unwrap();
    for _ in 0..2 {
        graph.breathe(0, |_| ());
        let Station { pushes, pulls, reclaims, publications, .. } = graph.get(inside).unwrap();
        assert_eq!([*pushes, *pulls, *reclaims, *publications], [1, 0, 0, 0]);
    }
    // Nor when all are asked: there was a sleep.
    graph.arm();
    assert!(!graph.breathe(0, |_| ()));
    assert_eq!(graph.get::<Station>(inside).unwrap().pulls, 0);
}

#[test]
fn however_many_send_to_an_app_it_publishes_twice_in_a_breath() {
    let mut graph = Graph::new();
    let sources = [1, 2, 3, 4].map(|frame| graph.add("source", Source::new([frame])));
    let sink = graph.add("sink", Station::default());
    for source in sources {
        graph.link((source, 0), (sink, 0)).unwrap();
    }
    graph.breathe(0, |_| ());
    assert_eq!(graph.get::<Station>(sink).unwrap().publications, 2);
    // One sender is one publication, and the next breath begins anew.
    for breath in 3..6 {
        graph.get::<Source>(sources[1]).unwrap().frames.push_back(9);
        graph.breathe(0, |_| ());
        assert_eq!(graph.get::<Station>(sink).unwrap().publications, breath);
    }
}

#[test]
fn who_sends_few_frames_publishes_that_with_what_comes_next() {
    let mut graph = Graph::new();
    let stations = [(); 2].map(|()| graph.add("station", Station::default()));
    let [one, two] = stations;
    graph.link((one, 0), (two, 0)).unwrap();
    graph.link((two, 0), (one, 0)).unwrap();
    let publications =
        |graph: &mut Graph| stations.map(|id| graph.get::<Station>(id).unwrap().publications);
    let breathe = |graph: &mut Graph, frames: [usize; 2]| {
        let before = publications(graph);
        for (id, frames) in stations.into_iter().zip(frames) {
            graph.get::<Station>(id).unwrap().frames = frames;
        }
        let busy = graph.breathe(0, |_| ());
        assert_eq!(busy, frames != [0, 0], "a worker that sleeps publishes nothing");
        let after = publications(graph);
        [after[0] - before[0], after[1] - before[1]]
    };
    assert_eq!(breathe(&mut graph, [1, 0]), [0, 1]);
    assert_eq!(breathe(&mut graph, [0, 0]), [1, 0], "in a turn without frames");
    assert_eq!(breathe(&mut graph, [0, 0]), [0, 0], "nothing new");
    // To and fro, whoever is the first.
    for _ in 0..4 {
        assert_eq!(breathe(&mut graph, [1, 1]), [1, 1], "with what came in");
    }
    breathe(&mut graph, [0, 0]);
    // Nobody answers.
    for _ in 0..FEW {
        assert_eq!(breathe(&mut graph, [1, 0]), [0, 1]);
    }
    assert_eq!(breathe(&mut graph, [1, 0]), [1, 1], "not few any more");
    assert_eq!(breathe(&mut graph, [0, 0]), [0, 0], "nothing new");
    assert_eq!(breathe(&mut graph, [FEW + 1, 0]), [1, 1], "as soon as can be");
}

#[test]
fn a_publication_is_not_put_off_for_long_nor_behind_large_frames() {
    let mut graph = Graph::new();
    let [one, two] = [(); 2].map(|()| graph.add("station", Station::default()));
    graph.link((one, 0), (two, 0)).unwrap();
    let mut publishes = |now, size| {
        let station: &mut Station = graph.get(one).unwrap();
        (station.frames, station.size) = (1, size);
        let before = station.publications;
        graph.breathe(now, |_| ());
        graph.get::<Station>(one).unwrap().publications > before
    };
    assert!(!publishes(7, 60) && !publishes(6 + SOON, 60));
    assert!(publishes(7 + SOON, 60), "it is late");
    assert!(!publishes(7 + SOON, 60), "the next one is not");
    assert!(!publishes(7 + SOON, SMALL as usize));
    assert!(publishes(7 + SOON, SMALL as usize + 1), "it is large");
}

/// Says when it publishes, to who waits for that.
struct Sender(bool, SyncSender<()>, Counters);

impl App for Sender {
    fn pull<'b>(&mut self, lease: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        let is_first = std::mem::take(&mut self.0);
        if is_first {
            burst.segments().push(lease.private([0; 60].into()).into());
            burst.push::<()>(0..1, 0, |_, _| Ok(Offload::NONE)).unwrap();
        }
        is_first
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn publish(&mut self) -> Result<(), Fault> {
        let _ = self.1.try_send(());
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.2
    }
}

#[test]
fn what_is_put_off_is_published_before_the_worker_sleeps() {
    for mode in [Mode::Interrupt, Mode::Adaptive] {
        let (sender, published) = sync_channel(1);
        let mut graph = Graph::new();
        graph.add("sender", Sender(true, sender, Counters::default()));
        let settings = Settings { mode, ..Settings::default() };
        let worker = Worker::start("worker", graph, settings, Box::new(|_| ())).unwrap();
        // Nobody wakes it.
        published.recv_timeout(LIMIT).expect("it sleeps over it");
        worker.stop().unwrap();
    }
}

/// Has something to do at a certain time, and not before.
struct Timer(u64, Counters);

impl App for Timer {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn deadline(&self, _: u64) -> Option<u64> {
        Some(self.0)
    }

    fn counters(&self) -> &Counters {
        &self.1
    }
}

#[test]
fn a_deadline_in_a_breath_without_a_turn_is_not_forgotten() {
    let mut graph = Graph::new();
    graph.add("timer", Timer(1000, Counters::default()));
    for _ in 0..2 * crate::graph::IDLE {
        graph.breathe(999, |_| ());
    }
    assert_eq!(graph.deadline(999), Some(1000));
    // It is not asked in each of these.
    let mut forgotten = 0;
    for _ in 0..4 {
        graph.breathe(1000, |_| ());
        forgotten += usize::from(graph.deadline(1000).is_none());
    }
    assert!((1..4).contains(&forgotten), "met in its turn, and due before: {forgotten}");
    graph.breathe(1000, |_| ());
    assert_eq!(graph.deadline(1000), None, "it has had its turn");
}

/// Has something to do with each tick, and has no outside; says when it ticked.
#[derive(Default)]
struct Sweeper(Vec<u64>, Counters);

impl App for Sweeper {
    fn has_outside(&self) -> bool {
        false
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn tick(&mut self, now: u64) {
        self.0.push(now);
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        assert_eq!(self.0.last(), Some(&now), "when it ticked last");
        // As long as there is something to do, and it is content with less often than a second.
        let every = match self.0.len() {
            ..3 => TICK / 2,
            3 => 3 * TICK,
            _ => return None,
        };
        Some(now + every)
    }

    fn counters(&self) -> &Counters {
        &self.1
    }
}

#[test]
fn an_app_without_an_outside_has_its_tick_in_time() {
    let mut graph = Graph::new();
    let sweeper = graph.add("sweeper", Sweeper::default());
    graph.add("timer", Timer(10 * TICK, Counters::default()));
    graph.breathe(7, |_| ());
    for tick in 1..=2 {
        let due = 7 + tick * TICK;
        assert_eq!(graph.deadline(due - TICK), Some(due));
        // Whatever else wakes the worker before.
        graph.breathe(due - 1, |_| ());
        assert_eq!(graph.deadline(due - 1), Some(due));
        graph.breathe(due, |_| ());
    }
    assert_eq!(graph.get::<Sweeper>(sweeper).unwrap().0, [7, 7 + TICK, 7 + 2 * TICK]);
    assert_eq!(
        graph.deadline(8 + 2 * TICK),
        Some(7 + 5 * TICK),
        "not before it wants to be called"
    );
    graph.breathe(7 + 5 * TICK, |_| ());
    assert_eq!(graph.deadline(8 + 5 * TICK), Some(10 * TICK), "that of the other app");
}

#[test]
fn idle_apps_are_asked_less_often_and_each_in_its_turn() {
    let mut graph = Graph::new();
    graph.add("busy", Station { is_busy: true, ..Station::default() });
    let idle = [(); 8].map(|()| graph.add("idle", Station::default()));
    let breathe = |graph: &mut Graph, breaths: u32| {
        let before = idle.map(|id| graph.get::<Station>(id).unwrap().pulls);
        (0..breaths).for_each(|_| _ = graph.breathe(0, |_| ()));
        std::array::from_fn::<usize, 8, _>(|at| {
            graph.get::<Station>(idle[at]).unwrap().pulls - before[at]
        })
    };
    assert_eq!(breathe(&mut graph, crate::graph::IDLE), [crate::graph::IDLE as usize; 8]);
    assert_eq!(breathe(&mut graph, 40), [10; 8]);
    let mut all = [0; 8];
    for _ in 0..4 {
        let asked = breathe(&mut graph, 1);
        assert_eq!(asked.iter().sum::<usize>(), 2, "they take turns");
        all.iter_mut().zip(asked).for_each(|(all, asked)| *all += asked);
    }
    assert_eq!(all, [1; 8]);

    // One that has something to do is asked each time from then on.
    graph.get::<Station>(idle[0]).unwrap().is_busy = true;
    breathe(&mut graph, 4);
    assert_eq!(breathe(&mut graph, 40), [40, 10, 10, 10, 10, 10, 10, 10]);

    // And all are after a sleep: one of them may have ended it.
    assert!(!graph.arm());
    assert_eq!(breathe(&mut graph, 1), [1; 8]);

    // And less often still, if it goes on.
    breathe(&mut graph, 4 * crate::graph::LONG_IDLE);
    assert_eq!(breathe(&mut graph, 320), [320, 10, 10, 10, 10, 10, 10, 10]);
    let asked: Vec<usize> = (0..32).map(|_| breathe(&mut graph, 1).iter().sum()).collect();
    assert!(asked.iter().all(|asked| *asked <= 2), "they take turns: {asked:?}");
    assert_eq!(asked.iter().sum::<usize>(), 32 + 7, "one of them is busy: {asked:?}");
    graph.get::<Station>(idle[1]).unwrap().is_busy = true;
    breathe(&mut graph, 32);
    assert_eq!(breathe(&mut graph, 160)[1], 160);
}

/// Knows the time.
#[derive(Default)]
struct Clock {
    times: Vec<u64>,
    counters: Counters,
}

impl App for Clock {
    fn pull<'b>(&mut self, _: &'b mut Lease, burst: &mut Burst<'b>) -> bool {
        self.times.push(burst.now());
        true
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn a_breath_is_as_busy_as_its_apps_say() {
    let mut graph = Graph::new();
    graph.add("idle", Source::default());
    assert!(!graph.breathe(0, |_| ()));
    // Without frames, too.
    let clock = graph.add("clock", Clock::default());
    graph.add("idle", Source::default());
    assert!(graph.breathe(7, |_| ()));
    assert!(graph.breathe(8, |_| ()));
    assert_eq!(graph.get::<Clock>(clock).unwrap().times, [7, 8]);
}

/// Two busy apps at these places among others that are idle: in which order their frames went, breath
/// by breath.
fn orders(apps: usize, busy: [usize; 2], breaths: usize) -> Vec<[u8; 2]> {
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let sources: Vec<AppId> = (0..apps).map(|_| graph.add("source", Source::default())).collect();
    let sink = graph.add("sink", sink);
    for source in &sources {
        graph.link((*source, 0), (sink, 0)).unwrap();
    }
    let mut breathe = || {
        // One in which nobody has anything is nobody's turn.
        graph.breathe(0, |_| ());
        for (place, frame) in busy.into_iter().zip([1, 2]) {
            graph.get::<Source>(sources[place]).unwrap().frames.push_back(frame);
        }
        graph.breathe(0, |_| ());
        let order = taken(&took).into_iter().map(|(_, frame)| frame).collect::<Vec<_>>();
        order.try_into().expect("a frame of each")
    };
    (0..breaths).map(|_| breathe()).collect()
}

#[test]
fn apps_take_turns_to_be_first() {
    assert_eq!(orders(2, [0, 1], 4), [[1, 2], [2, 1], [1, 2], [2, 1]]);
}

#[test]
fn idle_apps_have_no_turns_to_give_away() {
    const APPS: usize = 12;
    for busy in [[0, 1], [0, 4], [3, 4], [5, 11], [0, 11]] {
        let first = orders(APPS, busy, 2 * APPS).into_iter().filter(|order| *order == [1, 2]);
        assert_eq!(first.count(), APPS, "{busy:?}");
    }
}

/// Two pairs of source and sink in one graph; frames of the second pair pass `faulty` first, which
/// sits between them. Whatever it does costs it alone.
fn survives(moment: Moment) {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let to_sink = graph.add("to_sink", Source::new([1]));
    let faulty = graph.add("faulty", Faulty::new(moment));
    let to_faulty = graph.add("to_faulty", Source::new([2]));
    let sink = graph.add("sink", sink);
    graph.link((to_sink, 0), (sink, 0)).unwrap();
    graph.link((to_faulty, 0), (faulty, 0)).unwrap();

    let mut remains = None;
    graph.breathe(0, |event| match event {
        Event::Failed { app, message, remains: what } => {
            assert_eq!(app, faulty);
            assert_eq!(message, format!("{DELIBERATE}: {moment:?}"));
            assert!(remains.replace(what).is_none(), "reported twice");
        }
        Event::Fault { fault, .. } => panic!("unexpected: {fault}"),
    });
    let remains: Box<dyn std::any::Any> = remains.expect("a report of the panic");
    assert_eq!(remains.downcast_ref::<Faulty>().unwrap().moment, moment);
    assert_eq!(taken(&took), [(0, 1)]);
    let dark = graph.counters(faulty)[DropReason::AppFailed];

    // From now on it is not there: not called, not reported, and its frames are counted.
    for breath in 1..=3 {
        for source in [to_sink, to_faulty] {
            graph.get::<Source>(source).unwrap().frames.push_back(9);
        }
        assert_eq!(failures(&mut graph), []);
        assert_eq!(taken(&took), [(0, 9)]);
        let counters = graph.counters(faulty);
        assert_eq!(counters[DropReason::AppFailed], dark + breath);
    }
    assert!(graph.get::<Faulty>(faulty).is_none());
}

#[test]
fn a_panic_in_pull_takes_that_app_out() {
    survives(Moment::Pull);
}

#[test]
fn a_panic_in_push_takes_that_app_out() {
    survives(Moment::Push);
}

#[test]
fn a_panic_in_reclaim_takes_that_app_out() {
    survives(Moment::Reclaim);
}

#[test]
fn a_panic_in_publish_takes_that_app_out() {
    survives(Moment::Publish);
}

#[test]
fn a_panic_in_notify_takes_that_app_out() {
    survives(Moment::Notify);
}

#[test]
fn a_panic_in_tick_takes_that_app_out() {
    survives(Moment::Tick);
}

#[test]
fn a_panic_in_what_says_whether_it_is_up_takes_that_app_out() {
    survives(Moment::IsUp);
}

#[test]
fn a_panic_after_frames_were_pulled_leaves_bursts_whole() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let mut bad = Source::new([1, 2]);
    bad.panics_after_pull = true;
    let bad = graph.add("bad", bad);
    let good = graph.add("good", Source::new([3]));
    let sink = graph.add("sink", sink);
    graph.link((bad, 0), (sink, 0)).unwrap();
    graph.link((good, 0), (sink, 1)).unwrap();
    let message = format!("{DELIBERATE}: pull");
    assert_eq!(failures(&mut graph), [(bad, message)]);
    // The frames were whole, and their lease was still held.
    assert_eq!(taken(&took), [(0, 1), (0, 2), (1, 3)]);
}

#[test]
fn a_panic_behind_an_app_is_not_that_apps() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let source = graph.add("source", Source::new([1]));
    let repeater = graph.add("repeater", Repeater::new(2));
    let faulty = graph.add("faulty", Faulty::new(Moment::Push));
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (repeater, 0)).unwrap();
    graph.link((repeater, 0), (faulty, 0)).unwrap();
    graph.link((repeater, 1), (sink, 0)).unwrap();
    assert_eq!(failures(&mut graph).len(), 1);
    assert_eq!(taken(&took), [(0, 1)]);
    assert!(graph.get::<Repeater>(repeater).is_some());
}

#[test]
fn several_panics_of_a_breath_are_all_reported() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let one = graph.add("one", Faulty::new(Moment::Publish));
    let other = graph.add("other", Faulty::new(Moment::Pull));
    let reported: Vec<AppId> = failures(&mut graph).into_iter().map(|(app, _)| app).collect();
    assert_eq!(reported, [one, other]);
    assert_eq!(failures(&mut graph), []);
}

#[test]
fn a_panic_while_arming_keeps_the_worker_awake_to_report_it() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    graph.add("fine", Source::default());
    assert!(!graph.arm());
    let faulty = graph.add("faulty", Faulty::new(Moment::Arm));
    assert!(graph.arm());
    assert_eq!(failures(&mut graph).len(), 1);
    assert!(graph.get::<Faulty>(faulty).is_none());
    assert!(!graph.arm());
}

#[test]
fn apps_tick_about_once_a_second_also_when_they_have_nothing_to_do() {
    let second = 1_000_000_000;
    let mut graph = Graph::new();
    let (listener, tidings) = Listener::new();
    graph.add("listener", listener);
    // Breaths of 0.3 s, then a sleep of ten seconds, then breaths again.
    let before = (0..10).map(|breath| breath * second / 10 * 3);
    let after = (0..4).map(|breath| 13 * second + breath * second / 2);
    for now in before.chain(after) {
        graph.breathe(now, |_| panic!("nothing to report was expected"));
    }
    let ticks = [0, 12, 24, 130, 140].map(|tenths| Told::Tick(tenths * second / 10));
    assert_eq!(told(&tidings), ticks);
}

/// A peer's fault, each breath until it was told.
struct Peer {
    faults: usize,
    counters: Counters,
}

impl App for Peer {
    fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        self.faults > 0
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn publish(&mut self) -> Result<(), Fault> {
        if self.faults == 0 {
            return Ok(());
        }
        self.faults -= 1;
        Err("the index jumped".into())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn a_peers_fault_is_reported_and_the_app_stays() {
    let mut graph = Graph::new();
    let peer = Peer { faults: 1, counters: Counters::default() };
    let peer = graph.add("peer", peer);
    let mut faults = Vec::new();
    for _ in 0..2 {
        graph.breathe(0, |event| match event {
            Event::Fault { app, fault } => faults.push((app, fault.to_string())),
            Event::Failed { message, .. } => panic!("unexpected: {message}"),
        });
    }
    assert_eq!(faults, [(peer, "the index jumped".to_owned())]);
    assert!(graph.get::<Peer>(peer).is_some());
}

/// Somebody who writes down when it is called.
struct Writer {
    name: &'static str,
    book: Arc<Mutex<Vec<(&'static str, &'static str)>>>,
    counters: Counters,
}

impl Writer {
    fn note(&self, what: &'static str) {
        self.book.lock().unwrap().push((self.name, what));
    }
}

impl App for Writer {
    fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        false
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {
        self.note("push");
    }

    fn publish(&mut self) -> Result<(), Fault> {
        self.note("publish");
        Ok(())
    }

    fn notify(&mut self) {
        self.note("notify");
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn all_publish_before_the_first_notifies() {
    let mut graph = Graph::new();
    let book = Arc::new(Mutex::new(Vec::new()));
    let writer = |name| Writer { name, book: book.clone(), counters: Counters::default() };
    let source = graph.add("source", Source::new([1]));
    let repeater = graph.add("repeater", Repeater::new(2));
    graph.link((source, 0), (repeater, 0)).unwrap();
    for (output, name) in ["one", "two"].into_iter().enumerate() {
        let app = graph.add(name, writer(name));
        graph.link((repeater, output), (app, 0)).unwrap();
    }
    graph.breathe(0, |_| ());
    // The source is published as well, and says nothing.
    let expected = [
        ("one", "push"),
        ("two", "push"),
        ("two", "publish"),
        ("one", "publish"),
        ("two", "notify"),
        ("one", "notify"),
    ];
    assert_eq!(*book.lock().unwrap(), expected);
    graph.breathe(0, |_| ());
    assert_eq!(book.lock().unwrap().len(), expected.len(), "nobody had anything to say");
}

/// What a publisher and somebody who is about to sleep have in common.
#[derive(Default)]
struct Meeting {
    /// Those who have come to a round, and those who have left it.
    came: AtomicU32,
    /// Lines that both write, so that what is stored behind them takes a while to arrive.
    lines: [Line; 16],
    published: Line,
    sleeps: Line,
    /// The last round in which the publisher found the other one asleep.
    notified: Line,
}

#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU32);

impl Meeting {
    /// Waits until both have come so far.
    #[track_caller]
    fn meet(&self, times: u32) {
        let start = Instant::now();
        self.came.fetch_add(1, SeqCst);
        for look in 1.. {
            if self.came.load(SeqCst) >= 2 * times {
                break;
            }
            std::hint::spin_loop();
            if look % 1000 == 0 {
                // It may have no processor.
                assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the other thread");
                std::thread::yield_now();
            }
        }
    }

    fn write_lines(&self, round: u32) {
        self.lines.iter().for_each(|Line(word)| word.store(round, Relaxed));
    }
}

/// Publishes a number in each breath, and notifies who sleeps by then.
struct Publisher {
    meeting: Arc<Meeting>,
    round: u32,
    counters: Counters,
}

impl App for Publisher {
    fn pull<'b>(&mut self, _: &'b mut Lease, _: &mut Burst<'b>) -> bool {
        self.round += 1;
        true
    }

    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn publish(&mut self) -> Result<(), Fault> {
        self.meeting.write_lines(self.round);
        self.meeting.published.0.store(self.round, Relaxed);
        Ok(())
    }

    fn notify(&mut self) {
        if self.meeting.sleeps.0.load(Relaxed) == self.round {
            self.meeting.notified.0.store(self.round, Relaxed);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Each stores a word and then looks at the other's: without a fence between `publish` and `notify` both can miss. It takes many
/// rounds, of which some race. Code that is not optimised is slow enough to hide it all the same: run this with `--release` to see
/// that a missing fence is found.
#[test]
fn who_falls_asleep_while_it_is_published_is_notified() {
    const ROUNDS: u32 = 20_000;
    let meeting = Arc::new(Meeting::default());
    let mut graph = Graph::new();
    let publisher = Publisher { meeting: meeting.clone(), round: 0, counters: Counters::default() };
    graph.add("publisher", publisher);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                meeting.meet(2 * round - 1);
                // The publisher takes a while to come to the point.
                for _ in 0..round % 128 {
                    std::hint::spin_loop();
                }
                meeting.write_lines(round);
                meeting.sleeps.0.store(round, Relaxed);
                fence(SeqCst);
                let saw_it = meeting.published.0.load(Relaxed) == round;
                meeting.meet(2 * round);
                let was_notified = meeting.notified.0.load(Relaxed) == round;
                assert!(saw_it || was_notified, "round {round}: asleep, and nobody notifies");
            }
        });
        for round in 1..=ROUNDS {
            meeting.meet(2 * round - 1);
            graph.breathe(0, |_| ());
            meeting.meet(2 * round);
        }
    });
}
