//! A switch with several workers: breathed by hand in any order, or with a thread each.

use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::Duration;

use apps::bridge::Bridge;
use engine::{
    App, AppId, Counters, DropReason, Event, Graph, Mode, Poller, Settings, Worker, WorkerHandle,
};
use ringway_ports::tap::{Queues, TapPort};
use ringway_ports::vhost_user::{Swapped, VhostUserPort};
use sys::tun::Queue;
use vhost_user::Device;

use crate::guest::Guest;
use crate::world::{STEP, addressed, mac, publish};

/// More than anything here takes, on the slowest machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// One worker without a thread.
struct Hand {
    graph: Graph,
    poller: Poller,
    /// When it last breathed.
    breathed: u64,
}

/// Guests on a bridge, and the workers that serve them. An app has the same id on all workers.
pub struct Crew {
    hands: Vec<Hand>,
    pub now: u64,
    ports: Vec<AppId>,
    pub guests: Vec<Guest>,
    /// What guests did wrong, in order of the reports.
    pub faults: Vec<(usize, String)>,
}

impl Crew {
    /// Guests on a bridge, which has learned where each of them is.
    pub fn bridged(workers: usize, guests: Vec<Guest>) -> Self {
        Self::with_tap(workers, guests, None)
    }

    /// The same, with a tap on the bridge, whose port is behind those of the guests.
    pub fn with_tap(workers: usize, guests: Vec<Guest>, tap: Option<Vec<Queue>>) -> Self {
        let bridge = Bridge::new((guests.len() + usize::from(tap.is_some())) as u16, [1, 2]);
        let mut tap = tap.map(|queues| TapPort::parts(queues, workers).into_iter());
        let mut ports: Vec<_> = (0..guests.len())
            .map(|number| VhostUserPort::parts(workers, number).into_iter())
            .collect();
        let mut hands = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..workers {
            let mut graph = Graph::new();
            let bridge = graph.add("bridge", bridge.part());
            ids.clear();
            for (number, parts) in ports.iter_mut().enumerate() {
                let port = graph.add("port", parts.next().expect("a part for each worker"));
                graph.link((port, 0), (bridge, number)).unwrap();
                graph.link((bridge, number), (port, 0)).unwrap();
                ids.push(port);
            }
            if let Some(parts) = &mut tap {
                let number = ids.len();
                let port = graph.add("tap", parts.next().expect("a part for each worker"));
                graph.link((port, 0), (bridge, number)).unwrap();
                graph.link((bridge, number), (port, 0)).unwrap();
                ids.push(port);
            }
            hands.push(Hand { graph, poller: Poller::new().unwrap(), breathed: 0 });
        }
        let mut crew = Self { hands, now: 0, ports: ids, guests, faults: Vec::new() };
        for port in 0..crew.guests.len() {
            crew.plug(port);
            // Reserved: learned from, and not forwarded.
            let hello = addressed([0x01, 0x80, 0xc2, 0, 0, 0], mac(port), 60, 0);
            crew.guests[port].send(&hello);
            crew.breathe_all();
            assert_eq!(crew.guests[port].reap(), 1);
        }
        crew
    }

    pub fn workers(&self) -> usize {
        self.hands.len()
    }

    /// The worker that a pair of a guest's belongs to.
    pub fn worker_of(&self, port: usize, pair: usize) -> usize {
        (port + pair) % self.workers()
    }

    pub fn part(&mut self, worker: usize, port: usize) -> &mut VhostUserPort {
        self.hands[worker].graph.get(self.ports[port]).expect("the port is alive")
    }

    /// A worker's part of the tap.
    pub fn tap(&mut self, worker: usize) -> (&mut TapPort, &Poller) {
        let Hand { graph, poller, .. } = &mut self.hands[worker];
        let id = *self.ports.last().expect("there is a tap");
        (graph.get(id).expect("the port is alive"), poller)
    }

    pub fn poller(&self, worker: usize) -> &Poller {
        &self.hands[worker].poller
    }

    /// Gives a port its guest, as it is now. Returns where the rings stand that were stopped.
    pub fn plug(&mut self, port: usize) -> Vec<(usize, u32)> {
        let device = self.guests[port].device();
        self.swap(port, Some(&device))
    }

    /// Swaps all parts of a port, in the order of the workers.
    pub fn swap(&mut self, port: usize, device: Option<&Device>) -> Vec<(usize, u32)> {
        let parts = (0..self.workers()).map(|worker| self.swap_part(worker, port, device));
        parts.flat_map(|swapped| swapped.positions).collect()
    }

    pub fn swap_part(&mut self, worker: usize, port: usize, device: Option<&Device>) -> Swapped {
        let Hand { graph, poller, .. } = &mut self.hands[worker];
        let part: &mut VhostUserPort = graph.get(self.ports[port]).expect("the port is alive");
        part.swap(device, poller)
    }

    /// Has one worker breathe, and its parts of the guests' ports publish what they put off. Returns whether there was anything to do.
    pub fn breathe(&mut self, worker: usize) -> bool {
        let busy = self.breathe_once(worker);
        for port in 0..self.guests.len() {
            if let Err(fault) = publish(self.part(worker, port)) {
                self.faults.push((port, fault.to_string()));
            }
        }
        busy
    }

    /// Has one worker breathe. What came of few frames may be published in its next breath.
    pub fn breathe_once(&mut self, worker: usize) -> bool {
        self.now += STEP;
        self.hands[worker].breathed = self.now;
        self.breathe_again(worker)
    }

    /// Has one worker breathe, in the time of the last breath.
    pub fn breathe_again(&mut self, worker: usize) -> bool {
        let Self { hands, now, ports, faults, .. } = self;
        hands[worker].graph.breathe(*now, |event| match event {
            Event::Fault { app, fault } => {
                let port = ports.iter().position(|id| *id == app).expect("a port");
                faults.push((port, fault.to_string()));
            }
            Event::Failed { message, .. } => panic!("an app panicked: {message}"),
        })
    }

    /// Has each worker breathe. Returns whether there was anything to do for any.
    pub fn breathe_all(&mut self) -> bool {
        (0..self.workers()).fold(false, |busy, worker| busy | self.breathe(worker))
    }

    /// Asks a worker's parts of the guests' ports to arm, as before it sleeps. True when it may not.
    pub fn arm(&mut self, worker: usize) -> bool {
        (0..self.guests.len()).fold(false, |busy, port| busy | self.part(worker, port).arm())
    }

    pub fn disarm(&mut self, worker: usize) {
        (0..self.guests.len()).for_each(|port| self.part(worker, port).disarm());
    }

    /// When a worker that sleeps has to wake by itself.
    pub fn deadline(&mut self, worker: usize) -> Option<u64> {
        let now = self.hands[worker].breathed;
        (0..self.guests.len()).filter_map(|port| self.part(worker, port).deadline(now)).min()
    }

    /// Whether a worker goes to sleep within a few breaths: it is armed then.
    pub fn sleeps(&mut self, worker: usize) -> bool {
        (0..10).any(|_| {
            let busy = self.breathe(worker) || self.arm(worker);
            if busy {
                self.disarm(worker);
            }
            !busy
        })
    }

    /// What each part of a port counted.
    pub fn counters_of_parts(&self, port: usize) -> Vec<Counters> {
        self.hands.iter().map(|hand| hand.graph.counters(self.ports[port])).collect()
    }

    /// What all parts of a port counted.
    pub fn counters(&self, port: usize) -> Counters {
        let mut sum = Counters::default();
        self.counters_of_parts(port).iter().for_each(|part| sum += part);
        sum
    }

    #[track_caller]
    pub fn assert_drops(&self, port: usize, expected: &[(DropReason, u64)]) {
        let drops: Vec<_> = self.counters(port).drops().collect();
        assert_eq!(drops, expected, "drops of port {port}");
    }

    /// The one fault that was reported, of `port`.
    #[track_caller]
    pub fn fault(&mut self, port: usize) -> String {
        let faults = std::mem::take(&mut self.faults);
        let [(whose, fault)] = &faults[..] else { panic!("not one fault: {faults:?}") };
        assert_eq!(*whose, port, "{fault}");
        fault.clone()
    }

    /// Gives each worker a thread, with the same guests on rings that start anew.
    pub fn live(mut self, mode: Mode) -> Live {
        for port in 0..self.guests.len() {
            self.swap(port, None);
            self.guests[port].reset();
        }
        let Self { hands, ports, guests, .. } = self;
        let (sender, faults) = channel();
        // One epoch for all.
        let settings = Settings { mode, ..Settings::default() };
        let start = |Hand { graph, .. }: Hand| {
            let (sender, ports) = (sender.clone(), ports.clone());
            let report = move |event| {
                let fault = match event {
                    Event::Fault { app, fault } => {
                        let port = ports.iter().position(|id| *id == app).expect("a port");
                        (port, fault.to_string())
                    }
                    Event::Failed { message, .. } => (usize::MAX, message),
                };
                // Nobody listens any more when the test is over.
                let _ = sender.send(fault);
            };
            Worker::start("test", graph, settings.clone(), Box::new(report)).unwrap()
        };
        let handles = hands.into_iter().map(start).collect();
        let live = Live { handles, ports, guests, faults };
        (0..live.guests.len()).for_each(|port| _ = live.plug(port));
        live
    }
}

/// Workers with threads.
pub struct Live {
    handles: Vec<WorkerHandle>,
    ports: Vec<AppId>,
    pub guests: Vec<Guest>,
    /// What guests did wrong.
    pub faults: Receiver<(usize, String)>,
}

impl Live {
    /// Gives a port its guest, as it is now.
    pub fn plug(&self, port: usize) -> Vec<Swapped> {
        self.swap(port, Some(self.guests[port].device()))
    }

    /// Gives the tap these queues, on each worker's thread.
    pub fn attach(&self, queues: Vec<Queue>) {
        let (id, queues) = (*self.ports.last().expect("there is a tap"), Queues::new(queues));
        let attached = self.on_each(move |worker| {
            let queues = queues.clone();
            worker.with(id, |tap: &mut TapPort, poller| tap.attach(queues, poller))
        });
        attached.into_iter().for_each(|part| drop(part.expect("the port is alive").unwrap()));
    }

    /// Swaps all parts of a port, each on its worker's thread.
    pub fn swap(&self, port: usize, device: Option<Device>) -> Vec<Swapped> {
        let (app, device) = (self.ports[port], std::sync::Arc::new(device));
        self.on_each(move |worker| {
            let swap = |port: &mut VhostUserPort, poller: &Poller| {
                port.swap(device.as_ref().as_ref(), poller)
            };
            worker.with(app, swap).expect("the port is alive")
        })
    }

    /// Runs a command on each worker, and waits until all have.
    pub fn on_each<R: Send + 'static>(
        &self,
        command: impl Fn(&mut Worker) -> R + Clone + Send + 'static,
    ) -> Vec<R> {
        let run = |handle: &WorkerHandle| {
            let (done, is_done) = sync_channel(1);
            handle.run(command.clone(), move |result| done.send(result).unwrap()).unwrap();
            is_done
        };
        let pending: Vec<_> = self.handles.iter().map(run).collect();
        let result =
            |is_done: Receiver<R>| is_done.recv_timeout(LIMIT).expect("a worker answers in time");
        pending.into_iter().map(result).collect()
    }

    /// Waits until each worker has published what it did before.
    pub fn end_of_breath(&self) {
        self.on_each(|_| ());
    }

    /// What all parts of a port counted.
    pub fn counters(&self, port: usize) -> Counters {
        let app = self.ports[port];
        let mut sum = Counters::default();
        self.on_each(move |worker| worker.graph().counters(app))
            .iter()
            .for_each(|part| sum += part);
        sum
    }

    pub fn stop(self) {
        self.handles.into_iter().for_each(|handle| drop(handle.stop().unwrap()));
        let faults: Vec<_> = self.faults.try_iter().collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
}
