//! The keys of what lies between a port and the bridge, which ports of all types have.

use apps::bucket::{Limit, MAX_BURST};
use apps::filter::{self, Direction};
use apps::police::{self, BitLimit, FrameLimit, Limits, MAX_BURST_BYTES};
use apps::{anti_spoof, storm};
use wire::bpf::Program;

use super::fault::{Fault, Problem};
use super::keys::Key;
use super::port::{Entry, WrittenPort};
use super::set;
use super::value::{self, Amounts, Misfit, Scalar};

/// The keys.
pub static KEYS: [Key; 11] = [
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

/// The least that may pass at once if nothing else is said: two of the largest frames that are still to be cut into
/// segments, in bytes, with the headers of those.
const LEAST_BURST_BYTES: u64 = 128 * 1024;
/// And in frames: as many as are moved together.
const LEAST_BURST_FRAMES: u64 = engine::BURST as u64;
/// What may pass at once if nothing else is said, as a share of what may in a second.
const BURSTS_IN_A_SECOND: u64 = 10;

/// What lies between a port and the bridge, in the order in which frames from the port come by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Between {
    /// The addresses that the port may use.
    pub anti_spoof: Option<anti_spoof::Settings>,
    /// How much it may send to groups.
    pub storm: Option<storm::Settings>,
    /// How much it may send, and get.
    pub police: Option<police::Settings>,
    /// What it may send, and get.
    pub filter: Option<filter::Settings>,
}

/// What each of the apps is called behind the name of its port.
pub const ANTI_SPOOF: &str = "anti-spoof";
pub const STORM: &str = "storm";
pub const POLICE: &str = "police";
pub const FILTER: &str = "filter";

impl Between {
    /// What the apps are called behind the name of their port, the port's end first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let Self { anti_spoof, storm, police, filter } = self;
        let names = [
            anti_spoof.as_ref().map(|_| ANTI_SPOOF),
            storm.as_ref().map(|_| STORM),
            police.as_ref().map(|_| POLICE),
            filter.as_ref().map(|_| FILTER),
        ];
        names.into_iter().flatten()
    }
}

/// What is to lie between a port and the bridge. What is wrong with it goes to the faults.
pub fn read(written: &WrittenPort, faults: &mut Vec<Fault>) -> Between {
    let reader = &mut Reader { written, faults };
    Between {
        anti_spoof: anti_spoof(reader),
        storm: storm(reader),
        police: police(reader),
        filter: filter(reader),
    }
}

/// What was written of a port, and where to say what is wrong with it.
struct Reader<'a> {
    written: &'a WrittenPort,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Reader<'a> {
    fn read<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&Scalar) -> Result<T, Misfit>,
    ) -> Option<T> {
        self.written.entry(key)?.read(self.faults, parse)
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.written.entry(key)
    }

    fn fault(&mut self, entry: &Entry, problem: Problem) {
        self.faults.push(Fault { place: entry.place.clone(), problem });
    }
}

fn anti_spoof(reader: &mut Reader<'_>) -> Option<anti_spoof::Settings> {
    let mut settings = anti_spoof::Settings::default();
    set(&mut settings.macs, reader.read("allow-macs", value::macs));
    set(&mut settings.prefixes, reader.read("allow-ips", value::prefixes));
    (settings != Default::default()).then_some(settings)
}

fn storm(reader: &mut Reader<'_>) -> Option<storm::Settings> {
    // What may come in a second may come at once.
    let limit = |rate| Limit { rate, burst: rate };
    let settings = storm::Settings {
        broadcast: reader.read("storm-broadcast", value::frame_rate).map(limit),
        multicast: reader.read("storm-multicast", value::frame_rate).map(limit),
    };
    (settings != Default::default()).then_some(settings)
}

fn police(reader: &mut Reader<'_>) -> Option<police::Settings> {
    let settings = police::Settings {
        from_port: limits(reader, "rate-from", "burst-from"),
        to_port: limits(reader, "rate-to", "burst-to"),
    };
    (settings != Default::default()).then_some(settings)
}

/// The limits of one direction.
fn limits(reader: &mut Reader<'_>, rate_key: &'static str, burst_key: &str) -> Limits {
    let rates = reader.read(rate_key, value::rates);
    let bursts = reader.read(burst_key, value::bursts).unwrap_or_default();
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

fn filter(reader: &mut Reader<'_>) -> Option<filter::Settings> {
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
            reader.fault(entry, problem);
            None
        }
    }
}

// Whatever can be said, the apps take.
const _: () = assert!(Amounts::MOST_FRAMES <= MAX_BURST && Amounts::MOST_BYTES <= MAX_BURST_BYTES);
