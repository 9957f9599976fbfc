//! What ringway wants to reach beside its peers, and whether it did.

use crate::matrix::{Case, Cell, Generator, Load, MANY_PORTS, Size, Switch};
use crate::results::Results;

/// A figure that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub what: String,
    pub wanted: String,
    /// What was seen, and whether that is enough.
    pub seen: Option<(String, bool)>,
}

/// Something that is compared.
struct Comparison<'a> {
    results: &'a Results,
    /// Ours, and what it is compared with.
    cells: [Cell; 2],
    figure: &'static str,
}

impl Comparison<'_> {
    /// The one by the other, and of how many rounds. Switches of one case are measured next to each other, round by round; cases one
    /// after the other, so that nothing but their medians can be compared.
    fn ratio(&self) -> Option<(f64, usize)> {
        let Self { results, cells: [one, other], figure } = self;
        if one.case == other.case {
            let ratio = results.ratio(one, other, figure)?;
            return Some((ratio.median, ratio.count));
        }
        let (one, other) = (results.figure(one, figure)?, results.figure(other, figure)?);
        Some((one.median / other.median, one.count.min(other.count)))
    }
}

/// What was seen, with the number of rounds that it is of.
fn of_rounds(seen: &str, rounds: usize) -> String {
    let noun = if rounds == 1 { "round" } else { "rounds" };
    format!("{seen} ({rounds} {noun})")
}

/// All of them.
pub fn all(results: &Results) -> Vec<Target> {
    let throughput =
        |load: Load, switch, generator| Cell::new(Case::Throughput(load), switch, generator);
    let at_least = |what: String, cells: [Cell; 2], figure, wanted: f64| {
        let ratio = Comparison { results, cells, figure }.ratio();
        Target {
            what: format!("{what} : {}", cells[1].switch.title()),
            wanted: format!("at least {wanted}x"),
            seen: ratio.map(|(ratio, rounds)| {
                (of_rounds(&format!("{ratio:.2}x"), rounds), ratio >= wanted)
            }),
        }
    };
    let mut targets = Vec::new();
    let ours = Switch::RingwayPoll;
    let mut load_by =
        |what: &str, load: Load, generators: &[Generator], peers: &[(Switch, f64)]| {
            for &generator in generators {
                for &(peer, wanted) in peers {
                    let cells =
                        [throughput(load, ours, generator), throughput(load, peer, generator)];
                    let what = format!("{what}, {}", generator.title());
                    targets.push(at_least(what, cells, "frames_per_second", wanted));
                }
            }
        };
    let both = &Generator::ALL;
    let bench = &[Generator::Bench];
    let (testpmd, ovs) = (Switch::Testpmd, Switch::Ovs);
    let of = |bytes| Load::of(Size::Bytes(bytes));
    load_by("64 B, split, window 256", of(64), both, &[(testpmd, 1.3), (ovs, 2.0)]);
    load_by("64 B, packed, window 256", of(64).packed(), both, &[(testpmd, 1.3)]);
    load_by("1518 B", of(1518), both, &[(testpmd, 1.5), (ovs, 2.0)]);
    load_by("9000 B", of(9000), both, &[(testpmd, 1.8), (ovs, 1.8)]);
    load_by("64 KiB TSO", Load::of(Size::Tso), bench, &[(testpmd, 1.8)]);
    load_by("10 000 MACs, 64 B", of(64).many_addresses(), bench, &[(ovs, 2.0)]);

    // Ours by ours: how much is lost, in percent.
    let under = |what: &str, cells: [Cell; 2], wanted: f64| {
        let ratio = Comparison { results, cells, figure: "frames_per_second" }.ratio();
        Target {
            what: what.to_owned(),
            wanted: format!("under {wanted} % slower"),
            seen: ratio.map(|(ratio, rounds)| {
                let less = 100.0 * (1.0 - ratio);
                let way = if less < 0.0 { "faster" } else { "slower" };
                (of_rounds(&format!("{:.1} % {way}", less.abs()), rounds), less < wanted)
            }),
        }
    };
    let by_bench = |load| throughput(load, ours, Generator::Bench);
    let cells = [by_bench(of(64).many_addresses()), by_bench(of(64))];
    targets.push(under("64 B, 10 000 MACs by one flow", cells, 15.0));

    for load in [of(64).window(1), of(64).window(1).packed()] {
        let cells = [ours, testpmd].map(|switch| throughput(load, switch, Generator::Bench));
        let [our, their] = cells.map(|cell| results.figure(&cell, "p50_us"));
        let rings = if load.packed { "packed" } else { "split" };
        targets.push(Target {
            what: format!("window 1, 64 B, {rings}: from port to port"),
            wanted: "under testpmd io's".to_owned(),
            seen: our.zip(their).map(|(our, their)| {
                let rounds = our.count.min(their.count);
                let (our, their) = (our.median, their.median);
                (of_rounds(&format!("{our:.2} us and {their:.2} us"), rounds), our < their)
            }),
        });
    }
    for generator in Generator::ALL {
        let cells = [Switch::RingwayAdaptive, ours].map(|it| throughput(of(64), it, generator));
        let what = format!("64 B, adaptive by poll mode, {}", generator.title());
        targets.push(under(&what, cells, 3.0));
    }

    let tcp = |switch| Cell::new(Case::Tcp, switch, Generator::Bench);
    for (peer, wanted) in [(Switch::Bridge, 1.5), (ovs, 4.0), (Switch::OvsTso, 4.0)] {
        let cells = [tcp(Switch::RingwayAdaptive), tcp(peer)];
        targets.push(at_least("TCP between guests".to_owned(), cells, "bits_per_second", wanted));
    }

    let adaptive = Switch::RingwayAdaptive;
    let idle = Cell::new(Case::Idle { ports: MANY_PORTS }, adaptive, Generator::Bench);
    targets.push(Target {
        what: format!("idle, {MANY_PORTS} ports, adaptive"),
        wanted: "under 1 % of a processor".to_owned(),
        seen: results.figure(&idle, "switch_cpu").map(|part| {
            let percent = 100.0 * part.median;
            (of_rounds(&format!("{percent:.2} %"), part.count), percent < 1.0)
        }),
    });
    for switch in [ours, adaptive] {
        let pair = |ports| Cell::new(Case::Pair { ports }, switch, Generator::Bench);
        let what = format!("one busy pair, {MANY_PORTS} ports by 2, {}", switch.title());
        targets.push(under(&what, [pair(MANY_PORTS), pair(2)], 5.0));
    }
    targets
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::results::{Figures, Sample};

    #[test]
    fn figures_are_reached_or_not() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        assert!(all(&results).iter().all(|target| target.seen.is_none()));

        let load = Case::Throughput(Load::of(Size::Bytes(64)));
        let switches = [(Switch::RingwayPoll, 30.0), (Switch::Testpmd, 20.0), (Switch::Ovs, 16.0)];
        for (switch, frames) in switches {
            let figures = Figures::from([("frames_per_second".to_owned(), frames)]);
            let sample = Sample { run: 1, round: 1, figures, build: String::new(), seconds: 1.0 };
            results.add(&Cell::new(load, switch, Generator::Bench), sample)?;
        }
        let seen: Vec<(String, bool)> =
            all(&results).into_iter().filter_map(|target| target.seen).collect();
        let expected = [("1.50x (1 round)", true), ("1.88x (1 round)", false)];
        assert_eq!(seen, expected.map(|(seen, reached)| (seen.to_owned(), reached)));
        Ok(())
    }

    /// Their rounds have nothing to do with each other.
    #[test]
    fn cases_are_compared_by_their_medians() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        let pair = |ports| Cell::new(Case::Pair { ports }, Switch::RingwayPoll, Generator::Bench);
        for (ports, rates) in [(2, [10.0, 20.0, 30.0]), (MANY_PORTS, [27.0, 9.0, 18.0])] {
            for (round, rate) in (1..).zip(rates) {
                let figures = Figures::from([("frames_per_second".to_owned(), rate)]);
                let sample = Sample { run: 1, round, figures, build: String::new(), seconds: 1.0 };
                results.add(&pair(ports), sample)?;
            }
        }
        let seen: Vec<_> = all(&results).into_iter().filter_map(|target| target.seen).collect();
        assert_eq!(seen, [("10.0 % slower (3 rounds)".to_owned(), false)]);
        Ok(())
    }
}
