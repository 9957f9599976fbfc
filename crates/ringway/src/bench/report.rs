//! What the load found: as a table for people, and as JSON.

use std::fmt::{self, Write};
use std::time::Duration;

use anyhow::bail;
use guest::load::{Outcome, Pace, Report};
use serde_json::{Value, json};

use super::options::{Options, Size};

/// A generator that has something to do for more than this part of the time may be the limit.
const BUSY: f64 = 0.95;
/// A generator that does nothing but poll uses its CPU for all of the time, unless others do.
const OWN_CPU: f64 = 0.9;
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
    /// In percent of the highest rate tried.
    pub resolution: f64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, mean, rate, resolution } = self;
        if *rate == 0.0 {
            return write!(f, "{size}: frames were lost at every rate that was tried");
        }
        write!(
            f,
            "{size}: no frame is lost up to {:.4} million frames/s ({:.3} Gbit/s) each way, \
             known to {resolution} %",
            rate / 1e6,
            gbit(*rate, *mean)
        )
    }
}

/// All that was measured.
#[derive(Default)]
pub struct Results {
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

    /// Whether nothing was lost, and at least this part of what the rate asks for was sent.
    pub fn kept_up(&self, rate: f64, part: f64) -> bool {
        let asked_for = rate * self.seconds();
        let ways = &self.report.directions;
        ways.iter().all(|way| way.lost == 0 && way.sent as f64 >= part * asked_for)
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
                "{:>6}  {:<22} {:>5}  {:>10} {:>8}  {:>8} {:>9} {:>7}  latency: p50      p90      \
                 p99    p99.9      max",
                "frame", "load", "way", "Mframe/s", "Gbit/s", "lost", "reordered", "corrupt"
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
                "{size:>6}  {load:<22} {route:>5}  {:>10.4} {gbit:>8.3}  {:>8} {:>9} {:>7} ",
                rate / 1e6,
                way.lost,
                way.reordered + way.duplicates,
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
        let cpu = report.cpu.as_secs_f64() / self.seconds();
        let remark = if cpu < OWN_CPU {
            ": it shared its CPU with others"
        } else if report.busy > BUSY {
            ": it may have been the limit"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{:>8}generator: CPU {:.0} %, with something to do {:.0} % of the time{}{}",
            "",
            100.0 * cpu,
            100.0 * report.busy,
            remark,
            if report.interrupted { "; stopped early" } else { "" },
        );
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
            "generator_cpu": self.report.cpu.as_secs_f64() / self.seconds(),
            "generator_busy": self.report.busy,
            "interrupted": self.report.interrupted,
            "directions": self.report.directions.iter().map(way).collect::<Vec<_>>(),
        })
    }
}

impl Results {
    /// Everything, for other programs. Rates are frames per second each way, sizes bytes.
    pub fn json(&self, options: &Options) -> Value {
        let found = self.found.iter().map(|found| {
            json!({
                "size": found.size.to_string(),
                "frames_per_second": found.rate,
                "gbit_per_second": gbit(found.rate, found.mean),
                "resolution_percent": found.resolution,
            })
        });
        json!({
            "ports": options.ports,
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
                let Outcome { route: (from, to), sent, received, corrupted, .. } = way;
                if *sent > 0 && *received == 0 && *corrupted == 0 {
                    bail!(
                        "{size}, {load}: none of {sent} frames from port {from} came to port {to}. \
                         One port needs a back end that echoes, or --one-way; two, a switch"
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

    #[test]
    fn durations_are_readable() {
        let texts = [950, 12_340, 1_500_000, 2_000_000_000].map(duration);
        assert_eq!(texts, ["0.9us", "12.3us", "1.50ms", "2.00s"]);
    }
}
