//! What a running switch says of itself: plain values, that whoever shows them stands on. Numbers count from the start of
//! the switch, so that a rate is the difference of two looks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A look at a running switch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the program.
    pub version: String,
    /// The process of the switch.
    pub process: u32,
    /// When this look was taken: milliseconds since 1970, by the system's clock.
    pub time_ms: u64,
    /// How long the switch ran then, in nanoseconds, by a clock that is never set.
    pub uptime_ns: u64,
    /// The threads that move frames.
    pub workers: Vec<Worker>,
    /// Everything that frames go through: bridges, ports, and all that is between them.
    pub apps: Vec<App>,
    /// What the ports know of their outside, in the order of the configuration.
    pub ports: Vec<Port>,
    /// The ways from app to app.
    #[serde(default)]
    pub links: Vec<Link>,
}

/// A thread that moves frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// CPU time of its thread, in nanoseconds.
    pub cpu_ns: u64,
    /// Breaths taken: turns in which all apps that may have something are asked.
    pub breaths: u64,
    /// Breaths with something to do.
    pub busy_breaths: u64,
    /// Times gone to sleep.
    pub sleeps: u64,
    /// Frames that came in from outside by it.
    pub frames: u64,
    /// How long breaths took in which there was something to do: nanoseconds that some took less than, by powers of two,
    /// and how many those were. Some are timed together, and count with their mean.
    pub breath_times: Vec<(u64, u64)>,
}

/// Something that frames go through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// Its name: a port's, `PORT.WHAT` for what belongs to a port, or another.
    pub name: String,
    /// What it is: a type of port, or of app.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it runs.
    pub state: State,
    /// What came in from outside.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
    /// Frames that were dropped, by the reason; those that never occurred are not there.
    pub drops: BTreeMap<String, u64>,
    /// What it says of itself: how things are at present, of all workers together.
    #[serde(default)]
    pub own: Vec<Number>,
}

/// Something that an app says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// How many.
    pub value: u64,
    /// Of what; nothing if the name says that.
    pub unit: String,
    /// What it is. All three are one phrase: `12 addresses`, `3 frames waiting`.
    pub name: String,
}

/// A way from an app to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The app that it begins at, and by which of its outputs: `vm1.tx`.
    pub from: String,
    /// The app that it leads to, and by which of its inputs: `bridge.vm1`.
    pub to: String,
    /// Whether there is somebody behind it: it is down where the app that it begins at has failed, or has nobody on its outside, or
    /// lies between that one and the rest.
    pub state: LinkState,
    /// What went by it.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Whether an app runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    #[default]
    Running,
    /// A bug of ours took it down on one worker at least. It is started again.
    Failed,
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes of Ethernet frames, without the virtio-net header and the frame check sequence.
    pub bytes: u64,
}

/// What a port knows of its outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// The name of the port, and of its app.
    pub name: String,
    /// Whether frames can pass: a guest's driver is there, or the interface is up and has a carrier. None where there is
    /// nothing that could be up or down, or nobody who says so.
    pub link: Option<LinkState>,
    /// Bytes of the longest packet. None when that is not known.
    pub mtu: Option<u32>,
    /// The guest, if it is one that is connected.
    pub guest: Option<Guest>,
}

/// Whether frames can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// They can.
    Up,
    /// They cannot.
    Down,
}

impl LinkState {
    /// Up, or not.
    pub fn new(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

/// A guest on a vhost-user port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// The features that its driver accepted, by the names of the virtio specification.
    pub features: Vec<String>,
    /// Bytes of its memory that it shares.
    pub memory_bytes: u64,
    /// In how many regions.
    pub memory_regions: usize,
    /// The rings that run, by their numbers: 2i is where it receives, 2i + 1 is where it transmits.
    pub rings: Vec<Ring>,
}

/// A ring of a guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Its number.
    pub number: usize,
    /// How many entries it has.
    pub size: u16,
    /// Whether frames may pass.
    pub enabled: bool,
    /// Entries that the driver has made available: empty buffers where the guest receives, frames to be taken where it
    /// transmits. As far as the guest can be believed.
    pub waiting: u16,
    /// Entries that the switch took and has not given back: frames that wait for a receiver.
    pub outstanding: u16,
}

impl Report {
    /// How long the switch ran.
    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(self.uptime_ns)
    }

    /// What is said of the app of this name.
    pub fn app(&self, name: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.name == name)
    }

    /// Logs what each app counted.
    pub fn log(&self) {
        for App { name, received, sent, drops, .. } in &self.apps {
            let drops = listed(drops);
            match (received.frames, sent.frames) {
                // An app without an outside counts only what it drops.
                (0, 0) => tracing::info!("{name}: dropped: {drops}"),
                (received, sent) => tracing::info!(
                    "{name}: {received} frames received, {sent} sent, dropped: {drops}"
                ),
            }
        }
    }
}

/// Counts by their names, in a line.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

impl From<engine::Traffic> for Traffic {
    fn from(traffic: engine::Traffic) -> Self {
        Self { frames: traffic.frames, bytes: traffic.bytes }
    }
}
