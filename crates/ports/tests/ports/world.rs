//! A switch without a thread and without a clock.

use std::mem::take;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use apps::bridge::Bridge;
use engine::{
    App, AppId, Counters, DropReason, Event, Fault, Graph, Mode, Poller, Settings, Worker,
    WorkerHandle,
};
use ringway_ports::tap::TapPort;
use ringway_ports::vhost_user::{Swapped, VhostUserPort};
use vhost_user::Device;
use wire::ethernet::{EtherType, Ethernet, MacAddress};
use wire::virtio::Features;

use crate::guest::{Cut, Guest, Received};

/// Entries in a guest's rings.
pub const RING: u16 = 256;

/// More than anything here takes, on the slowest machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Time from breath to breath, in nanoseconds.
pub const STEP: u64 = 1_000;

pub const MODERN: Features = Features::VERSION_1.union(Features::MRG_RXBUF);

pub struct World {
    pub graph: Graph,
    pub poller: Poller,
    pub now: u64,
    pub ports: Vec<AppId>,
    pub guests: Vec<Guest>,
    /// What guests did wrong, in order of the reports.
    pub faults: Vec<(usize, String)>,
}

/// What apps have is handed to whom it is for, as at the end of a worker.
impl Drop for World {
    fn drop(&mut self) {
        self.graph.stop_all();
    }
}

impl World {
    /// Ports without links, and their guests plugged in.
    pub fn unlinked(guests: Vec<Guest>) -> Self {
        let mut graph = Graph::new();
        let ports = guests.iter().map(|_| graph.add("port", VhostUserPort::new())).collect();
        let poller = Poller::new().unwrap();
        let mut world = Self { graph, poller, now: 0, ports, guests, faults: Vec::new() };
        (0..world.guests.len()).for_each(|index| world.plug(index));
        world
    }

    /// Two guests whose ports are linked to each other.
    pub fn pair(guests: [Guest; 2]) -> Self {
        let mut world = Self::unlinked(guests.into());
        let [one, two] = [world.ports[0], world.ports[1]];
        world.graph.link((one, 0), (two, 0)).unwrap();
        world.graph.link((two, 0), (one, 0)).unwrap();
        world
    }

    /// Two modern guests.
    pub fn modern() -> Self {
        Self::pair([modern(), modern()])
    }

    /// Guests on a bridge, which has learned where each of them is.
    pub fn bridged(guests: Vec<Guest>) -> Self {
        Self::unlinked(guests).on_a_bridge()
    }

    /// The same, with another port behind those of the guests.
    pub fn bridged_with(guests: Vec<Guest>, name: &str, other: impl App) -> Self {
        let mut world = Self::unlinked(guests);
        let other = world.graph.add(name, other);
        world.ports.push(other);
        world.on_a_bridge()
    }

    fn on_a_bridge(self) -> Self {
        let mut world = self;
        let bridge = Bridge::new(world.ports.len() as u16, [1, 2]);
        let bridge = world.graph.add("bridge", bridge);
        for (index, port) in world.ports.iter().enumerate() {
            world.graph.link((*port, 0), (bridge, index)).unwrap();
            world.graph.link((bridge, index), (*port, 0)).unwrap();
        }
        // The bridge hears who is there, and forgets whoever was not, before there is something to forget.
        world.breathe();
        for index in 0..world.guests.len() {
            // Reserved: learned from, and not forwarded.
            let hello = addressed([0x01, 0x80, 0xc2, 0, 0, 0], mac(index), 60, 0);
            world.guests[index].send(&hello);
            world.breathe();
            world.guests[index].reap();
        }
        world
    }

    pub fn port(&mut self, index: usize) -> &mut VhostUserPort {
        self.graph.get(self.ports[index]).expect("the port is alive")
    }

    /// Gives the port its guest, as it is now.
    pub fn plug(&mut self, index: usize) {
        let device = self.guests[index].device();
        self.swap(index, Some(&device));
    }

    pub fn swap(&mut self, index: usize, device: Option<&Device>) -> Swapped {
        let port: &mut VhostUserPort = self.graph.get(self.ports[index]).unwrap();
        port.swap(device, &self.poller)
    }

    /// Breathes once, and has the guests' ports publish what they put off. Returns whether there was anything to do.
    pub fn breathe(&mut self) -> bool {
        let busy = self.after(STEP);
        for index in 0..self.guests.len() {
            let Some(port) = self.graph.get::<VhostUserPort>(self.ports[index]) else { continue };
            if let Err(fault) = publish(port) {
                self.faults.push((index, fault.to_string()));
            }
        }
        busy
    }

    /// Breathes once, so much later. What came of few frames may be published in the next breath: see [`crate::alone`].
    pub fn after(&mut self, nanoseconds: u64) -> bool {
        self.now += nanoseconds;
        let Self { graph, ports, faults, .. } = self;
        graph.breathe(self.now, |event| match event {
            Event::Fault { app, fault } => {
                let port = ports.iter().position(|id| *id == app).expect("a port");
                faults.push((port, fault.to_string()));
            }
            Event::Failed { message, .. } => panic!("an app panicked: {message}"),
        })
    }

    /// Gives guest 0 room to receive in.
    pub fn post(&mut self) {
        while self.guests[0].receive.room() > 100 {
            self.guests[0].post(2048);
        }
    }

    /// Breathes until guest 0 has received what is looked for. What comes at once with that is passed over.
    #[track_caller]
    pub fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Guest, Received) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
            self.post();
            if !self.breathe() {
                std::thread::yield_now();
            }
            self.guests[0].reap();
            for received in self.guests[0].received() {
                if let Some(found) = look(&mut self.guests[0], received) {
                    // Whoever had nothing to do meanwhile: how many breaths it took is chance.
                    self.graph.ask_all();
                    return found;
                }
            }
        }
    }

    pub fn counters(&self, index: usize) -> Counters {
        self.graph.counters(self.ports[index])
    }

    /// Breathes, then does what a worker does that sleeps whenever it may: arms the ports, and passes
    /// the time up to their deadline. False when nothing but a kick would wake it.
    pub fn live_on(&mut self) -> bool {
        let (ports, now) = (self.ports.clone(), self.now + STEP);
        if self.breathe() || ports.iter().any(|port| self.with(*port, |app| app.arm())) {
            return true;
        }
        let deadlines = ports.iter().filter_map(|port| self.with(*port, |app| app.deadline(now)));
        let deadline = deadlines.min();
        ports.iter().for_each(|port| self.with(*port, |app| app.disarm()));
        self.now = deadline.map_or(now, |deadline| deadline - STEP);
        deadline.is_some()
    }

    /// Lives on until nothing but a kick would wake the worker.
    pub fn run_until_asleep(&mut self) {
        assert!((0..10_000).any(|_| !self.live_on()), "the worker never sleeps");
    }

    fn with<R>(&mut self, port: AppId, call: impl FnOnce(&mut dyn App) -> R) -> R {
        match self.graph.get::<VhostUserPort>(port) {
            Some(port) => call(port),
            None => call(self.graph.get::<TapPort>(port).expect("a port of one kind or the other")),
        }
    }

    /// Has a worker breathe instead, with the same guests on rings that start anew.
    pub fn live(mut self, mode: Mode) -> (Vec<Guest>, WorkerHandle) {
        for index in 0..self.guests.len() {
            drop(self.swap(index, None));
            self.guests[index].reset();
        }
        let (graph, ports) = (take(&mut self.graph), take(&mut self.ports));
        let guests = take(&mut self.guests);
        let devices: Vec<Device> = guests.iter().map(Guest::device).collect();
        let settings = Settings { mode, ..Settings::default() };
        let handle = Worker::start("test", graph, settings, Box::new(|_| ())).unwrap();
        let (done, is_done) = sync_channel(1);
        let plug = move |worker: &mut Worker| {
            for (port, device) in ports.into_iter().zip(devices) {
                let swap =
                    |port: &mut VhostUserPort, poller: &Poller| port.swap(Some(&device), poller);
                assert!(worker.with(port, swap).is_some());
            }
        };
        handle.run(plug, move |()| done.send(()).unwrap()).unwrap();
        is_done.recv().unwrap();
        // Each ring was called when it started.
        guests.iter().for_each(|guest| assert_eq!(guest.transmit.call.take(), 1));
        (guests, handle)
    }

    #[track_caller]
    pub fn assert_drops(&self, index: usize, expected: &[(DropReason, u64)]) {
        let drops: Vec<_> = self.counters(index).drops().collect();
        assert_eq!(drops, expected, "drops of port {index}");
    }

    /// The one fault that was reported, of `port`.
    #[track_caller]
    pub fn fault(&mut self, port: usize) -> String {
        let faults = std::mem::take(&mut self.faults);
        let [(whose, fault)] = &faults[..] else { panic!("not one fault: {faults:?}") };
        assert_eq!(*whose, port, "{fault}");
        fault.clone()
    }
}

/// Has a port publish what it put off, if there is something.
pub fn publish(port: &mut VhostUserPort) -> Result<(), Fault> {
    port.publish()?;
    fence(Ordering::SeqCst);
    port.notify();
    Ok(())
}

/// A guest that merges buffers and wants nothing else.
pub fn modern() -> Guest {
    Guest::new(MODERN, Cut::Whole, RING)
}

/// The address of a guest.
pub fn mac(guest: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, guest as u8]
}

/// A frame between two guests, whose bytes depend on its length and on `seed`.
pub fn frame(from: usize, to: usize, len: usize, seed: usize) -> Vec<u8> {
    addressed(mac(to), mac(from), len, seed)
}

pub fn addressed(destination: [u8; 6], source: [u8; 6], len: usize, seed: usize) -> Vec<u8> {
    static NOISE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        (0..140_000u32).map(|n| (n.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect()
    });
    let start = (len * 31 + seed * 97) % 65536;
    let mut frame = noise[start..start + len].to_vec();
    let header = Ethernet {
        destination: MacAddress(destination),
        source: MacAddress(source),
        ethertype: EtherType::LOCAL_EXPERIMENT,
        vlan: None,
    };
    let _ = header.write(&mut frame);
    frame
}
