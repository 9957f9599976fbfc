//! The report: tables of medians, spreads and ratios, in Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::generators::GENERATOR_MAY_BE_LIMIT;
use crate::machine::Machine;
use crate::matrix::{Case, Cell, Generator, PARTS, Switch, cells};
use crate::results::{APART, Figures, Results};
use crate::statistics::Spread;
use crate::targets;

/// A generator that had less of its processor than this shared it with others.
const OWN_PROCESSOR: f64 = 0.9;
/// A switch that polls and had less than this did too.
const OWN_SWITCH: f64 = 0.97;
/// Frames lost by testpmd's circulation that make its window another one, as a part of all.
const MUCH_LOST: f64 = 0.02;

/// How a figure is written.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    factor: f64,
    digits: usize,
}

impl Format {
    const fn new(name: &'static str, factor: f64, digits: usize) -> Format {
        Format { name, factor, digits }
    }

    /// `2.31 (2.20..2.35, 5)`, or just the one value that there is.
    fn write(&self, spread: Option<Spread>) -> String {
        let Some(spread) = spread else { return "-".to_owned() };
        let Spread { median, least, most, count } = spread.times(self.factor);
        let digits = self.digits;
        if count == 1 {
            return format!("{median:.digits$}");
        }
        format!("{median:.digits$} ({least:.digits$}..{most:.digits$}, {count})")
    }
}

const MILLION_FRAMES: Format = Format::new("frames_per_second", 1e-6, 3);
const CYCLES: Format = Format::new("cycles_per_frame", 1.0, 0);
const PERCENT: Format = Format::new("switch_cpu", 100.0, 2);
const MEBIBYTES: Format = Format::new("memory", 1.0 / (1 << 20) as f64, 1);
const ROUND_TRIP: Format = Format::new("p50_us", 1.0, 2);
const GIGABITS: Format = Format::new("bits_per_second", 1e-9, 2);
const RETRANSMITS: Format = Format::new("retransmits", 1.0, 0);

/// Whose figures a table has, in its columns; its rows are cases.
struct Table<'a> {
    results: &'a Results,
    cases: Vec<Case>,
    generator: Generator,
}

impl Table<'_> {
    fn switches(&self) -> Vec<Switch> {
        let all: BTreeSet<Switch> = self.cases.iter().flat_map(|case| case.switches()).collect();
        let measured = |switch: &Switch| {
            let mut cells = self.cases.iter().map(|case| Cell::new(*case, *switch, self.generator));
            cells.any(|cell| !self.results.samples(&cell).is_empty())
        };
        all.into_iter().filter(measured).collect()
    }

    /// One figure of each case and switch; with `ours`, that switch's by each peer's too. Nothing where nothing was measured.
    fn write(&self, title: &str, format: Format, ours: Option<Switch>) -> String {
        let mut text = String::new();
        let switches = self.switches();
        let peers: Vec<Switch> =
            switches.iter().copied().filter(|switch| !switch.is_ours()).collect();
        if switches.is_empty() {
            return text;
        }
        let ours = ours.filter(|ours| switches.contains(ours));
        let mut heads: Vec<String> = switches.iter().map(|it| it.title().to_owned()).collect();
        if let Some(ours) = ours {
            heads.extend(peers.iter().map(|it| format!("{} : {}", ours.title(), it.title())));
        }
        let _ = writeln!(text, "**{title}**\n\n| load | {} |", heads.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(heads.len()));
        for case in &self.cases {
            let cell = |switch: Switch| Cell::new(*case, switch, self.generator);
            let spread = |switch: &Switch| self.results.figure(&cell(*switch), format.name);
            let mut row: Vec<String> =
                switches.iter().map(|switch| format.write(spread(switch))).collect();
            if row.iter().all(|entry| entry == "-") {
                continue;
            }
            if let Some(ours) = ours {
                row.extend(peers.iter().map(|peer| {
                    let ratio = self.results.ratio(&cell(ours), &cell(*peer), format.name);
                    Format::new("", 1.0, 2).write(ratio)
                }));
            }
            let _ = writeln!(text, "| {} | {} |", name(*case), row.join(" | "));
        }
        text.push('\n');
        text
    }
}

/// A case in a table.
fn name(case: Case) -> String {
    match case {
        Case::Throughput(load) => load.to_string().replace('/', ", "),
        case => case.to_string().replace('/', ", "),
    }
}

/// All tables, of what was measured.
pub fn tables(results: &Results) -> String {
    let all = Case::all();
    let only =
        |wanted: fn(&Case) -> bool| -> Vec<Case> { all.iter().copied().filter(wanted).collect() };
    let table = |cases: &[Case], generator| Table { results, cases: cases.to_vec(), generator };
    let mut groups: Vec<(&str, String)> = Vec::new();

    let throughput = only(|case| matches!(case, Case::Throughput(_)));
    let mut text = String::new();
    for generator in Generator::ALL {
        let table = table(&throughput, generator);
        let title = format!("Million frames per second, both ways together, {}", generator.title());
        text += &table.write(&title, MILLION_FRAMES, Some(Switch::RingwayPoll));
    }
    groups.push(("Throughput", text));

    let mut text = String::new();
    for generator in Generator::ALL {
        let title = format!("Cycles of the switch's processor for a frame, {}", generator.title());
        text += &table(&throughput, generator).write(&title, CYCLES, None);
    }
    groups.push(("Cycles per frame", text));

    let alone = |case: &Case| matches!(case, Case::Throughput(load) if load.window == 1);
    let title = "Microseconds from one port to the other, median, one frame under way each way, \
                 `ringway bench`";
    let text = table(&only(alone), Generator::Bench).write(title, ROUND_TRIP, None);
    groups.push(("Window 1", text));

    let latency = table(&only(|case| matches!(case, Case::Latency(_))), Generator::Bench);
    let mut text = latency.write(
        "Highest rate without loss, million frames per second each way",
        Format::new("no_drop", 1e-6, 3),
        Some(Switch::RingwayPoll),
    );
    for part in PARTS {
        for quantile in ["p50", "p99"] {
            let figure = latency_figure(quantile, part);
            let title = format!(
                "Latency in microseconds at {part} % of each switch's own rate, {quantile}"
            );
            text += &latency.write(&title, Format::new(figure, 1.0, 2), None);
        }
    }
    groups.push(("Latency over load", text));

    let pair = table(&only(|case| matches!(case, Case::Pair { .. })), Generator::Bench);
    let title = "Million frames per second of 64 bytes between two ports, with so many ports, \
                 the others silent";
    groups.push(("One busy pair", pair.write(title, MILLION_FRAMES, Some(Switch::RingwayPoll))));

    let idle = table(&only(|case| matches!(case, Case::Idle { .. })), Generator::Bench);
    let mut text = idle.write("Percent of a processor, all guests silent", PERCENT, None);
    text +=
        &idle.write("Memory in MiB, with its hugepages and without its guests'", MEBIBYTES, None);
    let loaded: Vec<Case> = Case::quick();
    let title = "Memory in MiB after a load of `ringway bench`";
    text += &table(&loaded, Generator::Bench).write(title, MEBIBYTES, None);
    groups.push(("Idle, and memory", text));

    let tcp = table(&[Case::Tcp], Generator::Bench);
    let mut text = tcp.write(
        "iperf3, Gbit/s, one connection between two emulated guests",
        GIGABITS,
        Some(Switch::RingwayAdaptive),
    );
    text += &tcp.write("Segments sent again", RETRANSMITS, None);
    groups.push(("TCP", text));

    let mut report = String::new();
    for (title, text) in groups.into_iter().filter(|(_, text)| !text.is_empty()) {
        let _ = write!(report, "## {title}\n\n{text}");
    }
    report
}

/// The name of a latency at a part of the highest rate.
pub fn latency_figure(quantile: &str, part: u16) -> &'static str {
    match (quantile, part) {
        ("p50", 10) => "p50_us_at_10",
        ("p50", 50) => "p50_us_at_50",
        ("p50", _) => "p50_us_at_90",
        (_, 10) => "p99_us_at_10",
        (_, 50) => "p99_us_at_50",
        (_, _) => "p99_us_at_90",
    }
}

/// What is wanted, a line each: all of it, or only what was measured.
pub fn targets(results: &Results, all: bool) -> String {
    let mut text = "| figure | wanted | seen | |\n| --- | --- | --- | --- |\n".to_owned();
    for target in targets::all(results).into_iter().filter(|it| all || it.seen.is_some()) {
        let (seen, verdict) = match target.seen {
            Some((seen, true)) => (seen, "reached"),
            Some((seen, false)) => (seen, "**not reached**"),
            None => ("-".to_owned(), "not measured"),
        };
        let _ = writeln!(text, "| {} | {} | {seen} | {verdict} |", target.what, target.wanted);
    }
    text
}

/// What was left out or failed, and why; reasons once each.
pub fn left_out(results: &Results) -> String {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for cell in cells(&Case::all()) {
        let Some(record) = results.record(&cell) else { continue };
        if let Some(why) = &record.left_out {
            reasons.entry(why).or_default().push(cell.to_string());
        }
        for (round, why) in &record.failed {
            reasons.entry(why).or_default().push(format!("{cell} in round {round}"));
        }
    }
    let mut text = String::new();
    for (why, names) in reasons {
        let _ = writeln!(text, "* {why}: {}", names.join(", "));
    }
    text
}

/// What casts doubt on figures: generators and switches that shared their processor, generators that may have been the limit, and frames that
/// were lost.
pub fn doubts(results: &Results) -> String {
    let mut text = String::new();
    for cell in cells(&Case::all()) {
        let samples = results.samples(&cell);
        let mut doubt = |what: &str, is_so: &dyn Fn(&Figures) -> bool| {
            let count = samples.iter().filter(|sample| is_so(&sample.figures)).count();
            if count > 0 {
                let _ = writeln!(text, "* {cell}: in {count} of {} rounds, {what}", samples.len());
            }
        };
        let had_less = |whose: &str, part: f64| {
            format!("the {whose} had less than {:.0} % of its processor", 100.0 * part)
        };
        let is_below = |figures: &Figures, name: &str, least: f64| {
            figures.get(name).is_some_and(|part| *part < least)
        };
        doubt(&had_less("generator", OWN_PROCESSOR), &|figures| {
            is_below(figures, "generator_cpu", OWN_PROCESSOR)
        });
        if cell.switch != Switch::RingwayAdaptive && !matches!(cell.case, Case::Tcp) {
            doubt(&had_less("switch", OWN_SWITCH), &|figures| {
                is_below(figures, "switch_cpu", OWN_SWITCH)
            });
        }
        doubt("the processors were apart or one core's", &|figures| figures.contains_key(APART));
        doubt("the generator may have been the limit, and not the switch", &|figures| {
            figures.get(GENERATOR_MAY_BE_LIMIT).is_some_and(|limit| *limit > 0.0)
        });
        for part in PARTS {
            let what = format!("frames were lost or not sent at {part} % of the rate without loss");
            doubt(&what, &|figures| {
                let figure = |name: &str| figures.get(&format!("{name}_at_{part}"));
                [figure("lost"), figure("unsent")].into_iter().flatten().any(|count| *count > 0.0)
            });
        }
        if cell.generator == Generator::Testpmd {
            let what = "frames were lost, so fewer were under way than asked for";
            doubt(what, &|figures| {
                let figure = |name: &str| figures.get(name).copied().unwrap_or(0.0);
                figure("lost") > MUCH_LOST * 2.0 * figure("window")
            });
        }
    }
    text
}

/// The whole file.
pub fn file(results: &Results, drawings: &[(&str, &str)]) -> String {
    let mut text = "# ringway beside its peers\n\n\
        Written by `cargo run --release -p ringway-benches --bin peers -- --write`, not by hand.\n\n"
        .to_owned();
    text += "## What is wanted\n\n";
    text += &targets(results, true);
    text.push('\n');
    for (name, title) in drawings {
        let _ = writeln!(text, "![{title}]({name})\n");
    }
    text += &tables(results);
    let left_out = left_out(results);
    if !left_out.is_empty() {
        let _ = write!(text, "## Left out\n\n{left_out}\n");
    }
    let doubts = doubts(results);
    if !doubts.is_empty() {
        let _ = write!(text, "## Doubts\n\n{doubts}\n");
    }
    text += METHOD;
    if let Some(machine) = results.machine() {
        text += &machine_table(machine, results);
    }
    text
}

fn machine_table(machine: &Machine, results: &Results) -> String {
    let mut rows = vec![
        ("date of the last run", machine.date.clone()),
        ("processor", {
            let kind = if machine.virtual_machine { ", in a virtual machine" } else { "" };
            format!("{}, {} of them{kind}", machine.processor, machine.processors)
        }),
        ("clock of its cycles", format!("{:.3} GHz", machine.frequency_hz as f64 / 1e9)),
        ("memory", machine.memory.clone()),
        ("hugepages for DPDK", machine.hugepages.clone()),
        ("kernel", machine.kernel.clone()),
    ];
    rows.extend(machine.versions.iter().map(|(name, version)| (name.as_str(), version.clone())));
    let samples = cells(&Case::all()).into_iter().flat_map(|cell| results.samples(&cell).to_vec());
    let (mut builds, mut seconds, mut rounds) = (BTreeSet::new(), BTreeSet::new(), 0);
    for sample in samples {
        seconds.insert(format!("{}", sample.seconds));
        rounds = rounds.max(sample.round);
        builds.insert(sample.build);
    }
    let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join("; ");
    rows.push(("builds of ringway that were measured", list(builds)));
    rows.push(("seconds of each measurement", list(seconds)));
    rows.push(("rounds, at the most", rounds.to_string()));
    let mut text = "## Machine and versions\n\n| | |\n| --- | --- |\n".to_owned();
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

const METHOD: &str = "\
## How it was measured

Each figure is a median, with the least, the most and the number of rounds in parentheses; or else there was one round. In each round
of a run the switches are measured one after the other, in an order that changes from round to round. A ratio is the median of the
ratios of each round of a run that both have, with the same build. One switch runs at a time, is started anew for each load and round, and has all that moves frames on one processor; the
generator has another one, together with what only waits.

* **ringway**: `ringway run --mode poll` (or `adaptive`) `--cpus N`, no hugepages.
* **testpmd io**: `dpdk-testpmd` with two vhost ports and one forwarding thread, `--forward-mode=io`, bursts of 32 as it
  has by itself: what comes in at one port goes out at the other, without a look at any address. A frame always fits
  one of its buffers. For TSO its ports have `tso=1,legacy-ol-flags=1`.
* **OVS NORMAL**: Open vSwitch with DPDK, a bridge as it is by default, one polling thread; its MTU and table of
  addresses are as large as the load needs. With TSO: `userspace-tso-enable=true`, and ports that connect.
* **tap and bridge**: QEMU's own tap back end, and a bridge of Linux.

A virtual machine's host may move its two processors apart, or make them two threads of one core. So before and after each measurement
it is looked how long a cache line takes from the one to the other and back, and whether they slow each other down. If it takes more
than 2.5 times as long as it does at best, or they do, it is measured again, whichever switch it is of. What could not be had undisturbed within 20 seconds
counts only where a switch has no other round, and is named under doubts. So these are figures of processors that are near each other. (Latency
at parts of a rate takes too long for that; it is not done there, nor for what is idle, nor for TCP.)

Either generator offers and takes frames of both directions as fast as they come back; a window is the number of
frames under way each way. Rings have 512 entries for windows of 256, and 256 otherwise. A window is as long as the ring
holds: 96 frames of 9000 bytes, 16 of 64 KiB.

* **`ringway bench`** gives its memory to the switch as a memfd of ordinary pages, and has mergeable buffers of 2 KiB.
* **`dpdk-testpmd`** has two virtio-user ports in `macswap` mode with `--port-topology=loop`, primed by `start tx_first`: each
  frame is sent back to where it came from. Its memory is in hugepages. Windows shorter than 32 are one burst of that length.

Cycles per frame are the processor time of all of the switch's threads by the time that passed, by the frames, in
cycles of the time stamp counter: a thread that polls is busy all the time. Sizes are without the Ethernet checksum. Imix is
64, 594 and 1518 bytes, seven to four to one. Many addresses are 5000 for each port. 1000 flows are of one address to another:
a bridge has no more to do with them than with one flow, but `ringway bench` has as much to do as with many addresses. It writes them into each frame, and a word
more, and tells them apart.

";

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::matrix::{Load, Size};
    use crate::results::Sample;

    fn sample(round: u32, figures: &[(&str, f64)]) -> Sample {
        let figures: Figures =
            figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Sample { run: 1, round, figures, build: "1 (abc)".to_owned(), seconds: 1.0 }
    }

    fn some() -> Result<(tempfile::TempDir, Results)> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        let case = Case::Throughput(Load::of(Size::Bytes(64)));
        for (switch, rates) in
            [(Switch::RingwayPoll, [6e6, 4e6, 5e6]), (Switch::Testpmd, [2e6, 2e6, 1e6])]
        {
            for (round, rate) in (1..).zip(rates) {
                let figures = [("frames_per_second", rate), ("generator_cpu", rate / 6e6)];
                results.add(&Cell::new(case, switch, Generator::Bench), sample(round, &figures))?;
            }
        }
        results.leave_out(&Cell::new(case, Switch::Ovs, Generator::Bench), "it is not there")?;
        results.fail(&Cell::new(case, Switch::Testpmd, Generator::Bench), 4, "it ended")?;
        Ok((directory, results))
    }

    #[test]
    fn tables_have_medians_spreads_and_ratios() -> Result<()> {
        let (_directory, results) = some()?;
        let text = tables(&results);
        let expected = "| load | ringway, poll | testpmd io | ringway, poll : testpmd io |\n\
            | --- | --- | --- | --- |\n\
            | 64, split, window-256, one-flow | 5.000 (4.000..6.000, 3) | 2.000 (1.000..2.000, 3) \
            | 3.00 (2.00..5.00, 3) |\n";
        assert!(text.contains(expected), "{text}");
        // What was not measured has no table.
        assert!(!text.contains("## TCP"), "{text}");
        Ok(())
    }

    #[test]
    fn what_is_left_out_or_doubtful_is_said() -> Result<()> {
        let (_directory, results) = some()?;
        let cell = "throughput/64/split/window-256/one-flow";
        let expected = format!(
            "* it ended: {cell}/testpmd-io/by-bench in round 4\n* it is not there: {cell}/ovs/by-bench\n"
        );
        assert_eq!(left_out(&results), expected);
        let doubts = doubts(&results);
        let said = format!("* {cell}/ringway-poll/by-bench: in 2 of 3 rounds, the generator had");
        assert!(doubts.contains(&said), "{doubts}");
        let mut results = results;
        let cell = Cell::new(Case::Latency(Size::Bytes(64)), Switch::Testpmd, Generator::Bench);
        let figures = [("lost_at_50", 3.0), ("unsent_at_90", 0.0), (GENERATOR_MAY_BE_LIMIT, 1.0)];
        results.add(&cell, sample(1, &figures))?;
        let said: Vec<_> = super::doubts(&results).lines().map(str::to_owned).collect();
        let of_cell: Vec<_> = said.iter().filter(|line| line.contains("latency")).collect();
        assert!(of_cell.len() == 2, "{said:?}");
        assert!(of_cell[0].contains("may have been the limit"), "{said:?}");
        assert!(of_cell[1].ends_with("at 50 % of the rate without loss"), "{said:?}");
        let file = file(&results, &[("x.svg", "a drawing")]);
        for part in
            ["![a drawing](x.svg)", "## Left out", "| 3.00x (3 rounds) | reached |", "not measured"]
        {
            assert!(file.contains(part), "{part}: {file}");
        }
        Ok(())
    }

    #[test]
    fn nothing_has_no_tables() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let results = Results::open(&directory.path().join("results.json"))?;
        assert_eq!((tables(&results), doubts(&results)), (String::new(), String::new()));
        Ok(())
    }
}
