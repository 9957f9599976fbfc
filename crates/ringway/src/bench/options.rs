//! The flags of `ringway bench`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use clap::Args;
use guest::load::{Addresses, Frames, MAX_SIZE, MIN_SIZE};
use wire::virtio::Features;

/// Bytes of a TCP frame as Linux sends it for segmentation: whole segments of 1448 bytes, below 64 KiB.
const TSO_SIZE: usize = 54 + 45 * 1448;
/// The highest rate, in frames per second.
pub const MAX_RATE: f64 = 1e9;
/// Sizes of the "Internet mix", seven to four to one.
const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];

const EXAMPLES: &str = "\
Frames go from each port to the next, and from the last to the first. One port alone needs a back
end that echoes; two, a switch between them.

Examples:
  A switch, both ways, as fast as it can:
      ringway run --port a=vhost-user:/run/a.sock --port b=vhost-user:/run/b.sock
      ringway bench /run/a.sock /run/b.sock

  Every byte checked, through packed rings:
      ringway bench --verify --packed --size 64,imix,9000 /run/a.sock /run/b.sock

  Latency at a given rate, or how it grows with the rate:
      ringway bench --rate 1M /run/a.sock /run/b.sock
      ringway bench --rate 100k,500k,1M,2M --plot latency.svg /run/a.sock /run/b.sock

  The highest rate at which nothing is lost (RFC 2544):
      ringway bench --search --size 64,1518 /run/a.sock /run/b.sock";

/// The flags of `ringway bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Sockets of the back end, which listens: one for each port
    #[arg(value_name = "PATH", required = true)]
    pub ports: Vec<PathBuf>,
    /// Bytes of a frame without the Ethernet checksum, 64 to 65549; imix (64, 594 and 1518, seven to
    /// four to one); or tso (64 KiB of TCP, for the back end to segment). Each size is a trial
    #[arg(long = "size", value_name = "LIST", value_delimiter = ',', default_value = "64")]
    pub sizes: Vec<Size>,
    /// Frames under way each way: as fast as they come back [default: as many as fit]
    #[arg(long, value_name = "N", conflicts_with_all = ["rates", "search"],
          value_parser = whole::<1, 32768>)]
    pub window: Option<usize>,
    /// Frames per second each way, whatever comes back, as 250000, 250k or 1.5M. Each rate is a trial;
    /// with --search, the highest rate to try
    #[arg(long = "rate", value_name = "LIST", value_delimiter = ',')]
    pub rates: Vec<Rate>,
    /// Find the highest rate at which no frame is lost, by bisection
    #[arg(long)]
    pub search: bool,
    /// How exactly --search has to know the rate, in percent of the lowest one that failed
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = percent)]
    pub resolution: f64,
    /// How long each trial sends, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub seconds: f64,
    /// How long frames are sent as fast as they come back before the first trial of each size, and
    /// not counted
    #[arg(long, value_name = "SECONDS", default_value = "0.1", value_parser = warm_up)]
    pub warm_up: f64,
    /// Only the first port sends. If it is the only one, nothing has to come back
    #[arg(long)]
    pub one_way: bool,
    /// Give each frame a checksum, compare all of it, and fail if anything was lost, reordered,
    /// duplicated or changed
    #[arg(long)]
    pub verify: bool,
    /// Ethernet addresses of each port, 1 to 65536
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<1, 65536>)]
    pub macs: usize,
    /// Flows of each address, which differ in their UDP port, 1 to 60000
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<1, 60000>)]
    pub flows: usize,
    /// Use packed rings
    #[arg(long)]
    pub packed: bool,
    /// Have buffers used in order
    #[arg(long)]
    pub in_order: bool,
    /// Have each frame in one receive buffer, large enough for the longest
    #[arg(long)]
    pub no_mergeable: bool,
    /// Have notifications asked for by index
    #[arg(long)]
    pub event_idx: bool,
    /// Entries of each ring, a power of two from 2 to 32768
    #[arg(long, value_name = "N", default_value = "256", value_parser = ring_size)]
    pub ring_size: u16,
    /// CPU to run on [default: any]
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Draw rate and latency over all trials into an SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

impl Options {
    /// What no single flag can know.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.ports.len() <= 255, "there can be at most 255 ports");
        let trials = self.sizes.len() * self.rates.len().max(1);
        ensure!(
            self.plot.is_none() || self.search || trials > 1,
            "--plot draws several trials: give several sizes or rates, or --search"
        );
        ensure!(
            !(self.search && self.rates.len() > 1),
            "with --search, --rate is the highest rate to try: give one"
        );
        ensure!(
            !(self.search && self.is_sink()),
            "--search has to know what is lost, and with --one-way one port hears of nothing"
        );
        ensure!(
            !(self.verify && self.is_sink()),
            "--verify has to see what comes back, and with --one-way one port sees nothing"
        );
        Ok(())
    }

    /// Whether nothing is expected to come back.
    pub fn is_sink(&self) -> bool {
        self.one_way && self.ports.len() == 1
    }

    /// How addresses change from frame to frame.
    pub fn addresses(&self) -> Addresses {
        // Both within bounds, by their parsers.
        Addresses { macs: self.macs as u32, flows: self.flows as u16 }
    }

    /// The features that the flags ask for.
    pub fn required(&self) -> Features {
        let offloads =
            Features::CSUM | Features::HOST_TSO4 | Features::GUEST_CSUM | Features::GUEST_TSO4;
        let flags = [
            (self.packed, Features::RING_PACKED),
            (self.in_order, Features::IN_ORDER),
            (self.event_idx, Features::EVENT_IDX),
            (self.sizes.contains(&Size::Tso), offloads),
        ];
        let asked_for = flags.into_iter().filter(|(asked, _)| *asked);
        asked_for.fold(Features::NONE, |features, (_, feature)| features | feature)
    }

    /// Features that are used if they are there.
    pub fn wanted(&self) -> Features {
        if self.no_mergeable { Features::NONE } else { Features::MRG_RXBUF }
    }
}

/// What the frames of a trial measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All the same.
    Bytes(usize),
    /// The Internet mix.
    Imix,
    /// TCP to be segmented.
    Tso,
}

impl Size {
    /// The frames.
    pub fn frames(&self) -> Frames {
        let (sizes, segmented) = match *self {
            Self::Bytes(size) => (vec![size], false),
            Self::Imix => (IMIX.to_vec(), false),
            Self::Tso => (vec![TSO_SIZE], true),
        };
        Frames { sizes, segmented }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("imix"),
            Self::Tso => f.write_str("tso"),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "imix" => Ok(Self::Imix),
            "tso" => Ok(Self::Tso),
            text => whole::<MIN_SIZE, MAX_SIZE>(text)
                .map(Self::Bytes)
                .map_err(|error| format!("{error}, imix or tso")),
        }
    }
}

/// Frames per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, factor) = match text.strip_suffix(['k', 'M']) {
            Some(number) if text.ends_with('k') => (number, 1e3),
            Some(number) => (number, 1e6),
            None => (text, 1.0),
        };
        let rate = number.parse::<f64>().ok().map(|number| number * factor);
        let rate = rate.filter(|rate| (1.0..=MAX_RATE).contains(rate));
        rate.map(Self).ok_or_else(|| {
            "expected frames per second from 1 to 1000M, such as 250000, 250k or 1.5M".to_owned()
        })
    }
}

fn whole<const LEAST: usize, const MOST: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
    number.ok_or_else(|| format!("expected a number from {LEAST} to {MOST}"))
}

fn ring_size(text: &str) -> Result<u16, String> {
    let size = whole::<2, 32768>(text).ok().filter(|size| size.is_power_of_two());
    let size = size.and_then(|size| u16::try_from(size).ok());
    size.ok_or_else(|| "expected a power of two from 2 to 32768".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=86400.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0.01 to 86400".to_owned())
}

fn warm_up(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0 to 3600".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.01..=50.0).contains(percent));
    percent.ok_or_else(|| "expected percent from 0.01 to 50".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, String> {
        let line = Line::try_parse_from(line.split_whitespace());
        let options = line.map_err(|error| error.to_string())?.options;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn the_examples_of_the_help_are_valid() {
        let examples =
            EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("ringway bench"));
        let parsed = examples.map(|line| parse(&format!("bench {line}")));
        assert_eq!(parsed.filter(Result::is_ok).count(), 5);
    }

    #[test]
    fn flags_ask_for_features() {
        let options = parse("bench a b").unwrap();
        assert_eq!(options.required(), Features::NONE);
        assert_eq!(options.wanted(), Features::MRG_RXBUF);
        assert_eq!(options.sizes, [Size::Bytes(64)]);
        let line = "bench --packed --in-order --no-mergeable --event-idx --size 64,tso a";
        let options = parse(line).unwrap();
        let rings = Features::RING_PACKED | Features::IN_ORDER | Features::EVENT_IDX;
        assert!(options.required().contains(rings | Features::HOST_TSO4 | Features::GUEST_TSO4));
        assert_eq!(options.wanted(), Features::NONE);
    }

    #[test]
    fn the_internet_mix_is_seven_to_four_to_one() {
        let count = |size| IMIX.iter().filter(|other| **other == size).count();
        assert_eq!([64, 594, 1518].map(count), [7, 4, 1]);
    }

    #[test]
    fn rates_have_units() {
        for (text, rate) in [("250000", 250e3), ("250k", 250e3), ("1.5M", 1.5e6), ("1", 1.0)] {
            assert_eq!(text.parse(), Ok(Rate(rate)));
        }
        for text in ["", "0", "k", "-1", "1G", "NaN", "inf", "1001M"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, said) in [
            ("bench", "PATH"),
            ("bench --size 63 a", "from 64 to 65549, imix or tso"),
            ("bench --size 65550 a", "from 64"),
            ("bench --ring-size 100 a", "power of two"),
            ("bench --window 0 a", "from 1"),
            ("bench --window 4 --rate 1M a", "cannot be used with"),
            ("bench --window 4 --search a", "cannot be used with"),
            ("bench --rate 1M,2M --search a b", "give one"),
            ("bench --plot x.svg a b", "several"),
            ("bench --one-way --search a", "--search has to know"),
            ("bench --one-way --verify a", "--verify has to see"),
            ("bench --seconds 0 a", "seconds from"),
            ("bench --seconds NaN a", "seconds from"),
            ("bench --warm-up -1 a", "unexpected"),
            ("bench --warm-up=-1 a", "from 0 to 3600"),
            ("bench --macs 65537 a", "65536"),
            ("bench --flows 0 a", "60000"),
            ("bench --resolution 0 a", "percent"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}
