//! The keys of what lies between a port and the bridge, which ports of all types have, and apps of these types in
//! sections of their own.

use apps::bucket::{Limit, MAX_BURST};
use apps::filter::{self, Direction};
use apps::impair::{self, Impairment};
use apps::police::{self, BitLimit, FrameLimit, Limits, MAX_BURST_BYTES};
use apps::{anti_spoof, mirror, storm};
use wire::bpf::Program;

use super::fault::{Fault, Problem};
use super::keys::Key;
use super::network::Spec;
use super::set;
use super::value::{self, Amounts, Misfit, Scalar};
use super::written::{Entry, Written};

/// The keys of each of these apps, which are those of an app of its type in a section of its own, too.
pub const ANTI_SPOOF_KEYS: [Key; 2] = [
    Key {
        name: "allow-macs",
        form: "ADDR+...",
        about: "the hardware addresses that it may send from [any]",
    },
    Key {
        name: "allow-ips",
        form: "PREFIX+...",
        about: "the IP addresses that it may send from, as 10.0.0.1+fd00::/64 [any]",
    },
];
pub const STORM_KEYS: [Key; 2] = [
    Key {
        name: "storm-broadcast",
        form: "RATE",
        about: "frames to all stations that it may send a second, as 1000frames [any]",
    },
    Key {
        name: "storm-multicast",
        form: "RATE",
        about: "frames to other groups that it may send a second [any]",
    },
];
pub const POLICE_KEYS: [Key; 4] = [
    Key {
        name: "rate-from",
        form: "RATE+...",
        about: "what it may send a second, as 10Gbit or 1Gbit+100000frames [any]",
    },
    Key { name: "rate-to", form: "RATE+...", about: "what may be sent to it a second [any]" },
    Key {
        name: "burst-from",
        form: "SIZE+...",
        about: "what it may send at once, as 256KiB or 1MB+1000frames [0.1s]",
    },
    Key { name: "burst-to", form: "SIZE+...", about: "what may be sent to it at once [0.1s]" },
];
pub const FILTER_KEYS: [Key; 3] = [
    Key {
        name: "filter-from",
        form: "FILTER",
        about: "what it may send, as pcap-filter(7) or `tcpdump -ddd` says it [all]",
    },
    Key { name: "filter-to", form: "FILTER", about: "what may be sent to it [all]" },
    Key {
        name: "allow-replies",
        form: "on|off",
        about: "let pass what answers to what a filter let pass [off]",
    },
];
pub const MIRROR_KEYS: [Key; 1] = [Key {
    name: MIRROR,
    form: "from|to|both",
    about: "copy what it sends, what is sent to it, or both [both]",
}];
pub const IMPAIR_KEYS: [Key; 13] = [
    Key {
        name: "delay-from",
        form: "TIME",
        about: "how long to keep back what it sends, as 10ms [0ms]",
    },
    Key { name: "delay-to", form: "TIME", about: "the same of what is sent to it [0ms]" },
    Key { name: "jitter-from", form: "TIME", about: "how much longer or shorter [0ms]" },
    Key { name: "jitter-to", form: "TIME", about: "the same of what is sent to it [0ms]" },
    Key { name: "loss-from", form: "CHANCE", about: "how much to lose, as 0.1% [0%]" },
    Key { name: "loss-to", form: "CHANCE", about: "the same of what is sent to it [0%]" },
    Key { name: "corrupt-from", form: "CHANCE", about: "how much to turn a bit around in [0%]" },
    Key { name: "corrupt-to", form: "CHANCE", about: "the same of what is sent to it [0%]" },
    Key { name: "duplicate-from", form: "CHANCE", about: "how much to send twice [0%]" },
    Key { name: "duplicate-to", form: "CHANCE", about: "the same of what is sent to it [0%]" },
    Key { name: "reorder-from", form: "CHANCE", about: "how much not to keep back [0%]" },
    Key { name: "reorder-to", form: "CHANCE", about: "the same of what is sent to it [0%]" },
    Key { name: SEED, form: "N", about: "what the chance of these begins with [0]" },
];

const MIRROR: &str = "mirror";
const SEED: &str = "seed";
/// The key that says where the copies of a mirror go, which for an app in a section of its own is said by a link.
pub const MIRROR_TO: &str = "mirror-to";
static MIRROR_TO_KEYS: [Key; 1] = [Key {
    name: MIRROR_TO,
    form: "PORT",
    about: "another port, to which copies of its frames go [none]",
}];

/// All keys that ports have for what lies between them and the bridge.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    let tables: [&'static [Key]; 7] = [
        &ANTI_SPOOF_KEYS,
        &STORM_KEYS,
        &POLICE_KEYS,
        &FILTER_KEYS,
        &MIRROR_TO_KEYS,
        &MIRROR_KEYS,
        &IMPAIR_KEYS,
    ];
    tables.into_iter().flatten()
}

/// The least that may pass at once if nothing else is said: two of the largest frames that are still to be cut into
/// segments, in bytes, with the headers of those.
const LEAST_BURST_BYTES: u64 = 128 * 1024;
/// And in frames: as many as are moved together.
const LEAST_BURST_FRAMES: u64 = engine::BURST as u64;
/// What may pass at once if nothing else is said, as a share of what may in a second.
const BURSTS_IN_A_SECOND: u64 = 10;

/// What lies between a port and the bridge, in the order in which frames from the port come by.
///
/// Impairments stand for the line that a port is on, and so are next to it: everything else sees what comes over that line, and a
/// frame that was let pass may still be lost. A mirror shows what came over it, whatever becomes of that, and what
/// was sent to the port indeed. All others are there so that what one has dropped costs no other anything: whoever
/// claims to be somebody else uses up no rate, a storm does not use up the rate of what is no storm, and what is beyond the
/// rate is not looked at by the filter, which costs most. What is sent to the port comes by in the opposite order, and
/// what its filter drops does not count for its rate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Between {
    /// What is done to what it sends, and gets.
    pub impair: Option<impair::Settings>,
    /// What is copied of that.
    pub mirror: Option<MirrorTo>,
    /// The addresses that the port may use.
    pub anti_spoof: Option<anti_spoof::Settings>,
    /// How much it may send to groups.
    pub storm: Option<storm::Settings>,
    /// How much it may send, and get.
    pub police: Option<police::Settings>,
    /// What it may send, and get.
    pub filter: Option<filter::Settings>,
}

/// A mirror of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorTo {
    /// What is copied.
    pub settings: mirror::Settings,
    /// The port that copies go to.
    pub to: String,
}

impl Between {
    /// The apps, the port's end first.
    pub fn specs(&self) -> Vec<Spec> {
        let Self { impair, mirror, anti_spoof, storm, police, filter } = self.clone();
        let specs = [
            impair.map(Spec::Impair),
            mirror.map(|mirror| Spec::Mirror(mirror.settings)),
            anti_spoof.map(Spec::AntiSpoof),
            storm.map(Spec::Storm),
            police.map(Spec::Police),
            filter.map(Spec::Filter),
        ];
        specs.into_iter().flatten().collect()
    }
}

/// What is to lie between a port and the bridge. What is wrong with it goes to the faults.
pub fn read(written: &Written, faults: &mut Vec<Fault>) -> Between {
    let reader = &mut Reader { written, faults };
    Between {
        impair: impair(reader),
        mirror: mirror_to(reader),
        anti_spoof: anti_spoof(reader),
        storm: storm(reader),
        police: police(reader),
        filter: filter(reader),
    }
}

/// What was written of a port or an app, and where to say what is wrong with it.
pub struct Reader<'a> {
    pub written: &'a Written,
    pub faults: &'a mut Vec<Fault>,
}

impl<'a> Reader<'a> {
    /// What the value of a key means, if it is there and right.
    pub fn read<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&Scalar) -> Result<T, Misfit>,
    ) -> Option<T> {
        self.written.entry(key)?.read(self.faults, parse)
    }

    /// The same of a key that takes a list as well.
    pub fn read_list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Scalar) -> Result<T, Misfit>,
    ) -> Option<T> {
        self.written.entry(key)?.read_list(self.faults, parse)
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.written.entry(key)
    }

    fn fault(&mut self, entry: &Entry, problem: Problem) {
        self.faults.push(Fault { place: entry.place.clone(), problem });
    }
}

pub fn anti_spoof(reader: &mut Reader<'_>) -> Option<anti_spoof::Settings> {
    let mut settings = anti_spoof::Settings::default();
    set(&mut settings.macs, reader.read_list("allow-macs", value::macs));
    set(&mut settings.prefixes, reader.read_list("allow-ips", value::prefixes));
    (settings != Default::default()).then_some(settings)
}

pub fn storm(reader: &mut Reader<'_>) -> Option<storm::Settings> {
    // What may come in a second may come at once.
    let limit = |rate| Limit { rate, burst: rate };
    let settings = storm::Settings {
        broadcast: reader.read_list("storm-broadcast", value::frame_rate).map(limit),
        multicast: reader.read_list("storm-multicast", value::frame_rate).map(limit),
    };
    (settings != Default::default()).then_some(settings)
}

pub fn police(reader: &mut Reader<'_>) -> Option<police::Settings> {
    let settings = police::Settings {
        from_port: limits(reader, "rate-from", "burst-from"),
        to_port: limits(reader, "rate-to", "burst-to"),
    };
    (settings != Default::default()).then_some(settings)
}

/// The limits of one direction.
fn limits(reader: &mut Reader<'_>, rate_key: &'static str, burst_key: &str) -> Limits {
    let rates = reader.read_list(rate_key, value::rates);
    let bursts = reader.read_list(burst_key, value::bursts).unwrap_or_default();
    // A rate that could not be read is no missing one.
    if (rates.is_some() || reader.entry(rate_key).is_none())
        && let Some(entry) = reader.entry(burst_key)
    {
        let rates = rates.unwrap_or_default();
        for (burst, rate, unit) in
            [(bursts.bulk, rates.bulk, "bit/s"), (bursts.frames, rates.frames, "frames/s")]
        {
            if burst.is_some() && rate.is_none() {
                reader.fault(entry, Problem::BurstAlone { rate: rate_key, unit });
            }
        }
    }
    let rates = rates.unwrap_or_default();
    let bits = rates.bulk.map(|rate| {
        let share = rate / 8 / BURSTS_IN_A_SECOND;
        let burst = share.clamp(LEAST_BURST_BYTES, MAX_BURST_BYTES);
        BitLimit { rate, burst: bursts.bulk.unwrap_or(burst) }
    });
    let frames = rates.frames.map(|rate| {
        let burst = (rate / BURSTS_IN_A_SECOND).max(LEAST_BURST_FRAMES);
        FrameLimit { rate, burst: bursts.frames.unwrap_or(burst) }
    });
    Limits { bits, frames }
}

pub fn filter(reader: &mut Reader<'_>) -> Option<filter::Settings> {
    let keys = ["filter-from", "filter-to"];
    let [from_port, to_port] = keys.map(|key| program(reader, key));
    let allow_replies = reader.read("allow-replies", value::switch).unwrap_or(false);
    let has_filter = keys.iter().any(|key| reader.entry(key).is_some());
    if let Some(entry) = reader.entry("allow-replies").filter(|_| allow_replies && !has_filter) {
        reader.fault(entry, Problem::RepliesAlone);
    }
    let direction = |accept| Direction { accept, allow_replies };
    has_filter
        .then(|| filter::Settings { from_port: direction(from_port), to_port: direction(to_port) })
}

/// The program of one direction's filter.
fn program(reader: &mut Reader<'_>, key: &str) -> Option<Program> {
    let entry = reader.entry(key)?;
    let text = reader.read(key, value::filter)?;
    match filter::compile(&text) {
        Ok(program) => Some(program),
        Err(error) => {
            let problem = Problem::Filter { key: entry.key.clone(), error: error.to_string() };
            reader.faults.push(Fault { place: entry.value.place.clone(), problem });
            None
        }
    }
}

/// What a mirror copies.
pub fn mirror(reader: &mut Reader<'_>) -> mirror::Settings {
    let both = mirror::Settings { from_port: true, to_port: true };
    reader.read(MIRROR, value::mirrored).unwrap_or(both)
}

/// The mirror of a port.
fn mirror_to(reader: &mut Reader<'_>) -> Option<MirrorTo> {
    let settings = mirror(reader);
    if reader.entry(MIRROR_TO).is_none()
        && let Some(entry) = reader.entry(MIRROR)
    {
        reader.fault(entry, Problem::MirrorAlone);
    }
    let to = reader.read(MIRROR_TO, value::port_name)?;
    Some(MirrorTo { settings, to })
}

pub fn impair(reader: &mut Reader<'_>) -> Option<impair::Settings> {
    let mut settings = impair::Settings {
        from_port: impairment(reader, "from"),
        to_port: impairment(reader, "to"),
        ..Default::default()
    };
    let is_none = settings == Default::default();
    set(&mut settings.seed, reader.read(SEED, value::seed));
    if let Some(entry) = reader.entry(SEED).filter(|_| is_none) {
        reader.fault(entry, Problem::SeedAlone);
    }
    (!is_none).then_some(settings)
}

/// What is done to the frames of one direction.
fn impairment(reader: &mut Reader<'_>, direction: &str) -> Impairment {
    let key = |what: &str| format!("{what}-{direction}");
    let delay = reader.read(&key("delay"), value::delay);
    let mut chance = |what| reader.read(&key(what), value::chance).unwrap_or(0.0);
    let [loss, corruption, duplication] = ["loss", "corrupt", "duplicate"].map(&mut chance);
    let reordering = chance("reorder");
    let jitter = reader.read(&key("jitter"), value::delay).unwrap_or(0);
    // A delay that could not be read is no missing one.
    if delay == Some(0) || reader.entry(&key("delay")).is_none() {
        for (what, is_none) in [("jitter", jitter == 0), ("reorder", reordering == 0.0)] {
            if let Some(entry) = reader.entry(&key(what)).filter(|_| !is_none) {
                let problem = Problem::NoDelay { key: key(what), delay: key("delay") };
                reader.fault(entry, problem);
            }
        }
    }
    let delay = delay.unwrap_or(0);
    Impairment { delay, jitter, loss, corruption, duplication, reordering }
}

// Whatever can be said, the apps take.
const _: () = assert!(Amounts::MOST_FRAMES <= MAX_BURST && Amounts::MOST_BYTES <= MAX_BURST_BYTES);
