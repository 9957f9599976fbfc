//! What the load found: as a table for people, and as JSON.

use std::fmt::{self, Write};
use std::time::Duration;

use anyhow::bail;
use guest::load::{Outcome, Pace, Report};
use serde_json::{Value, json};
use wire::virtio::Features;

use super::options::{Options, Size};

/// A generator that has something to do for more than this part of the time may be the limit.
const BUSY: f64 = 0.95;
/// Frames in one go from which on they are a pile.
const PILE: f64 = 32.0;
/// A generator that does nothing but poll uses its CPU for all of the time, unless others do.
const OWN_CPU: f64 = 0.9;
/// The form of the JSON: counted up when a field changes its meaning or goes away.
const FORMAT: u32 = 1;
/// Latencies in the table and in JSON.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// One trial and what came of it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What was sent.
    pub size: Size,
    /// Bytes of a frame on average.
    pub mean: f64,
    /// How fast.
    pub pace: Pace,
    /// What came of it.
    pub report: Report,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The size it was for.
    pub size: Size,
    /// Bytes of a frame on average.
    pub mean: f64,
    /// Frames per second each way, 0 when some were lost at any rate.
    pub rate: f64,
    /// How much higher the lowest rate is that failed, in percent of that at the most.
    pub resolution: f64,
    /// Whether nothing was lost at the highest rate that was to be tried either.
    pub is_highest: bool,
    /// Whether the generator may be the reason why no higher rate passed.
    pub limited: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, mean, rate, resolution, is_highest, limited } = self;
        if *rate == 0.0 {
            return write!(f, "{size}: frames were lost at every rate that was tried");
        }
        let (millions, gbit) = (rate / 1e6, gbit(*rate, *mean));
        write!(
            f,
            "{size}: no frame is lost up to {millions:.4} million frames/s ({gbit:.3} Gbit/s) each way, "
        )?;
        if *is_highest {
            return f.write_str("the highest rate tried");
        }
        write!(f, "known to {resolution} %")?;
        f.write_str(if *limited { "; the generator may have been the limit" } else { "" })
    }
}

/// All that was measured.
#[derive(Default)]
pub struct Results {
    /// What was agreed on with each port's back end.
    pub features: Vec<Features>,
    /// In order.
    pub trials: Vec<Trial>,
    /// Of each size that was searched to the end.
    pub found: Vec<Found>,
}

impl Trial {
    fn seconds(&self) -> f64 {
        self.report.time.as_secs_f64().max(1e-9)
    }

    fn rate(&self, way: &Outcome) -> f64 {
        way.in_time as f64 / self.seconds()
    }

    /// Frames per second that came, of the direction in which most did.
    pub fn fastest_way(&self) -> f64 {
        self.report.directions.iter().map(|way| self.rate(way)).fold(0.0, f64::max)
    }

    /// Frames per second that came, of all directions together.
    pub fn total(&self) -> f64 {
        self.report.directions.iter().map(|way| self.rate(way)).sum()
    }

    /// Whether each frame that was due was sent, and came, once and whole.
    pub fn passed(&self) -> bool {
        let bad = |way: &Outcome| way.unsent + way.lost + way.duplicates + way.corrupted;
        self.report.directions.iter().all(|way| bad(way) == 0)
    }

    /// Whether the generator may have been what kept this from being faster: it had no CPU of its own,
    /// or was at work all the time, and frames piled up for it meanwhile.
    pub fn may_be_limited(&self) -> bool {
        self.cpu() < OWN_CPU || (self.report.busy > BUSY && self.report.batch >= PILE)
    }

    /// Part of its CPU that the generator had.
    fn cpu(&self) -> f64 {
        self.report.cpu.as_secs_f64() / self.seconds()
    }

    /// The latency in microseconds that this part of all frames did not exceed, in the direction where
    /// it is longest.
    pub fn latency(&self, quantile: f64) -> f64 {
        let ways = self.report.directions.iter();
        let longest = ways.map(|way| way.latency.value_at_quantile(quantile)).max();
        longest.unwrap_or_default() as f64 / 1e3
    }

    /// The lines of the table, with its head before the first.
    pub fn rows(&self, first: bool) -> String {
        let mut text = String::new();
        if first {
            let _ = writeln!(
                text,
                "{:>6}  {:<17} {:>5} {:>9} {:>8} {:>8} {:>8} {:>9} {:>6} {:>7}  latency: p50      \
                 p90      p99    p99.9      max",
                "frame",
                "load",
                "way",
                "Mframe/s",
                "Gbit/s",
                "unsent",
                "lost",
                "reordered",
                "twice",
                "corrupt"
            );
        }
        let (mut size, mut load) = (self.size.to_string(), pace(self.pace));
        for way in &self.report.directions {
            let rate = self.rate(way);
            let (from, to) = way.route;
            let route = format!("{from}->{to}");
            let gbit = 8.0 * way.bytes as f64 / self.seconds() / 1e9;
            let _ = write!(
                text,
                "{size:>6}  {load:<17} {route:>5} {:>9.4} {gbit:>8.3} {:>8} {:>8} {:>9} {:>6} {:>7} ",
                rate / 1e6,
                way.unsent,
                way.lost,
                way.reordered,
                way.duplicates,
                way.corrupted,
            );
            if way.latency.is_empty() {
                text.push_str("  not known\n");
            } else {
                text.push_str("    ");
                for (_, quantile) in QUANTILES {
                    let nanoseconds = way.latency.value_at_quantile(quantile);
                    let _ = write!(text, " {:>8}", duration(nanoseconds));
                }
                let _ = writeln!(text, " {:>8}", duration(way.latency.max()));
            }
            (size, load) = (String::new(), String::new());
        }
        let report = &self.report;
        let cpu = self.cpu();
        let remark = if cpu < OWN_CPU {
            ": it shared its CPU with others"
        } else if self.may_be_limited() {
            ": it may have been the limit"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{:>8}generator: CPU {:.0} %, busy {:.0} % of the time, {:.1} frames at a time{}{}",
            "",
            100.0 * cpu,
            100.0 * report.busy,
            report.batch,
            remark,
            if report.interrupted { "; stopped early" } else { "" },
        );
        let foreign: u64 = report.directions.iter().map(|way| way.foreign).sum();
        if foreign > 0 {
            let _ = writeln!(text, "{:>8}{foreign} frames came that were not ours", "");
        }
        text
    }

    fn json(&self) -> Value {
        let (kind, value) = match self.pace {
            Pace::Window(window) => ("window", json!(window)),
            Pace::Rate(rate) => ("rate", json!(rate)),
        };
        let way = |way: &Outcome| {
            let microseconds = |nanoseconds: u64| json!(nanoseconds as f64 / 1e3);
            let mut latency: serde_json::Map<String, Value> = QUANTILES
                .iter()
                .map(|(name, quantile)| {
                    let nanoseconds = way.latency.value_at_quantile(*quantile);
                    ((*name).to_owned(), microseconds(nanoseconds))
                })
                .collect();
            latency.insert("max".to_owned(), microseconds(way.latency.max()));
            json!({
                "from": way.route.0,
                "to": way.route.1,
                "sent": way.sent,
                "unsent": way.unsent,
                "received": way.received,
                "frames_per_second": self.rate(way),
                "gbit_per_second": 8.0 * way.bytes as f64 / self.seconds() / 1e9,
                "lost": way.lost,
                "reordered": way.reordered,
                "duplicates": way.duplicates,
                "corrupted": way.corrupted,
                "foreign": way.foreign,
                "latency_us": if way.latency.is_empty() { Value::Null } else { latency.into() },
            })
        };
        json!({
            "size": self.size.to_string(),
            "mean_size": self.mean,
            kind: value,
            "seconds": self.seconds(),
            "generator_cpu": self.cpu(),
            "generator_busy": self.report.busy,
            "generator_batch": self.report.batch,
            "generator_may_be_limit": self.may_be_limited(),
            "interrupted": self.report.interrupted,
            "directions": self.report.directions.iter().map(way).collect::<Vec<_>>(),
        })
    }
}

impl Results {
    /// What is loaded, in one line.
    pub fn heading(&self, options: &Options) -> String {
        let ports = match self.features.len() {
            1 => "1 port".to_owned(),
            count => format!("{count} ports"),
        };
        let mut features: Vec<String> = self.features.iter().map(Features::to_string).collect();
        features.dedup();
        format!("{ports}, rings of {}, with {}", options.ring_size, features.join("; "))
    }

    /// Everything, for other programs. Rates are frames per second each way, sizes bytes.
    pub fn json(&self, options: &Options) -> Value {
        let found = self.found.iter().map(|found| {
            json!({
                "size": found.size.to_string(),
                "frames_per_second": found.rate,
                "gbit_per_second": gbit(found.rate, found.mean),
                "resolution_percent": found.resolution,
                "is_highest_tried": found.is_highest,
                "generator_may_be_limit": found.limited,
            })
        });
        let features = |features: &Features| features.to_string();
        json!({
            "format": FORMAT,
            "ringway": env!("CARGO_PKG_VERSION"),
            "ports": options.ports,
            "features": self.features.iter().map(features).collect::<Vec<_>>(),
            "ring_size": options.ring_size,
            "macs": options.macs,
            "flows": options.flows,
            "one_way": options.one_way,
            "warm_up_seconds": options.warm_up,
            "verified": options.verify,
            "trials": self.trials.iter().map(Trial::json).collect::<Vec<_>>(),
            "no_drop": found.collect::<Vec<_>>(),
        })
    }

    /// Whether the back end did what it should.
    pub fn verdict(&self, options: &Options) -> anyhow::Result<()> {
        for Trial { size, pace: load, report, .. } in &self.trials {
            let load = pace(*load);
            for way in &report.directions {
                let Outcome { route: (from, to), sent, received, corrupted, foreign, .. } = way;
                if *sent > 0 && *received == 0 && !(options.verify && *corrupted > 0) {
                    let others = match foreign + corrupted {
                        0 => String::new(),
                        others => format!(" ({others} others did)"),
                    };
                    bail!(
                        "{size}, {load}: none of {sent} frames from port {from} came to port \
                         {to}{others}. One port needs a back end that echoes, or --one-way; two, a \
                         switch"
                    );
                }
                let Outcome { lost, reordered, duplicates, .. } = way;
                if options.verify && lost + reordered + duplicates + corrupted > 0 {
                    bail!(
                        "{size}, {load}: of {sent} frames from port {from} to port {to}, {lost} were \
                         lost, {reordered} reordered, {duplicates} duplicated and {corrupted} \
                         corrupted"
                    );
                }
            }
        }
        Ok(())
    }
}

/// How fast a trial was, in words.
pub fn pace(pace: Pace) -> String {
    match pace {
        Pace::Window(window) => format!("{window} under way"),
        Pace::Rate(rate) => format!("{:.4} Mframe/s", rate / 1e6),
    }
}

fn gbit(rate: f64, mean: f64) -> f64 {
    8.0 * rate * mean / 1e9
}

/// Nanoseconds, with a unit that fits.
fn duration(nanoseconds: u64) -> String {
    let time = Duration::from_nanos(nanoseconds);
    match nanoseconds {
        0..1_000_000 => format!("{:.1}us", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.2}ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2}s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trial of one direction with these frames that were due and not sent, lost, there twice and
    /// corrupted.
    fn trial([unsent, lost, duplicates, corrupted]: [u64; 4]) -> Trial {
        let way = Outcome {
            route: (0, 0),
            sent: 100,
            unsent,
            received: 100 - lost,
            in_time: 100 - lost,
            bytes: 6400,
            lost,
            reordered: 7,
            duplicates,
            corrupted,
            foreign: 0,
            latency: guest::load::Histogram::new(3).unwrap(),
        };
        let time = Duration::from_secs(1);
        let report = Report {
            directions: vec![way],
            time,
            cpu: time,
            busy: 1.0,
            batch: 1.0,
            interrupted: false,
        };
        Trial { size: Size::Bytes(64), mean: 64.0, pace: Pace::Rate(100.0), report }
    }

    #[test]
    fn a_trial_passes_when_every_frame_came_once_and_whole() {
        assert!(trial([0; 4]).passed());
        for at in 0..4 {
            let mut wrong = [0; 4];
            wrong[at] = 1;
            assert!(!trial(wrong).passed(), "{wrong:?}");
        }
    }

    #[test]
    fn the_generator_is_the_limit_when_frames_pile_up_or_its_processor_is_not_its_own() {
        let mut trial = trial([0; 4]);
        assert!(!trial.may_be_limited(), "at work all the time, on one frame at a time");
        trial.report.batch = 40.0;
        assert!(trial.may_be_limited());
        trial.report.busy = 0.5;
        assert!(!trial.may_be_limited());
        trial.report.cpu /= 2;
        assert!(trial.may_be_limited());
    }

    #[test]
    fn durations_are_readable() {
        let texts = [950, 12_340, 1_500_000, 2_000_000_000].map(duration);
        assert_eq!(texts, ["0.9us", "12.3us", "1.50ms", "2.00s"]);
    }
}
