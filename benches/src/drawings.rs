//! Drawings of the results: throughput over size, and latency over load.

use plot::{Axis, Drawing};

use crate::matrix::{Case, Cell, Generator, Load, PARTS, Size, Switch};
use crate::report::latency_figure;
use crate::results::Results;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 730.0;
/// Height of a panel, and of what is between one and the next.
const PANEL: f64 = 230.0;
const GAP: f64 = 70.0;
const TOP: f64 = 50.0;
const DASH: [&str; 2] = ["none", "6 3"];
const SWITCHES: [(Switch, &str); 4] = [
    (Switch::RingwayPoll, "#2f855a"),
    (Switch::RingwayAdaptive, "#2b6cb0"),
    (Switch::Testpmd, "#c05621"),
    (Switch::Ovs, "#9b2c2c"),
];

/// One line of a panel.
struct Line {
    colour: &'static str,
    dash: &'static str,
    points: Vec<(f64, f64)>,
}

/// File names, titles and contents. Those with nothing in them are left out.
pub fn all(results: &Results) -> Vec<(&'static str, &'static str, String)> {
    let throughput = ("throughput.svg", "Throughput over the size of frames", throughput(results));
    let latency = ("latency.svg", "Latency over load", latency(results));
    let drawn = |(name, title, drawing): (_, _, Option<String>)| Some((name, title, drawing?));
    [throughput, latency].into_iter().filter_map(drawn).collect()
}

/// A panel for each generator: Gbit/s over bytes.
fn throughput(results: &Results) -> Option<String> {
    let sizes: Vec<u16> = Size::ALL
        .into_iter()
        .filter_map(|size| if let Size::Bytes(bytes) = size { Some(bytes) } else { None })
        .collect();
    let panels = Generator::ALL.map(|generator| {
        let lines = SWITCHES.iter().flat_map(|&(switch, colour)| {
            let sizes = &sizes;
            DASH.into_iter().zip([false, true]).map(move |(dash, packed)| {
                let point = |&bytes: &u16| {
                    let load = Load { packed, ..Load::of(Size::Bytes(bytes)) };
                    let cell = Cell::new(Case::Throughput(load), switch, generator);
                    let gbit = results.figure(&cell, "gbit_per_second")?.median;
                    Some((f64::from(bytes), gbit))
                };
                Line { colour, dash, points: sizes.iter().filter_map(point).collect() }
            })
        });
        (format!("Gbit/s, both ways together, {}", generator.title()), lines.collect())
    });
    let marked = sizes.iter().map(|bytes| f64::from(*bytes)).collect();
    let x = Axis { from: 50.0, to: 11000.0, logarithmic: true, marked, ..Axis::new((LEFT, RIGHT)) };
    draw(&x, "bytes of a frame; rings are split (dashed: packed)", &panels)
}

/// A panel for each size: microseconds over the part of the highest rate.
fn latency(results: &Results) -> Option<String> {
    let panels = [64, 1518].map(|bytes| {
        let lines = SWITCHES.iter().flat_map(|&(switch, colour)| {
            DASH.into_iter().zip(["p50", "p99"]).map(move |(dash, quantile)| {
                let cell = Cell::new(Case::Latency(Size::Bytes(bytes)), switch, Generator::Bench);
                let point = |part: u16| {
                    let latency = results.figure(&cell, latency_figure(quantile, part))?;
                    Some((f64::from(part), latency.median))
                };
                Line { colour, dash, points: PARTS.into_iter().filter_map(point).collect() }
            })
        });
        (format!("microseconds, {bytes} bytes"), lines.collect())
    });
    let marked = PARTS.map(f64::from).into();
    let x = Axis { to: 100.0, marked, ..Axis::new((LEFT, RIGHT)) };
    let name =
        "percent of each switch's highest rate without loss; median (dashed: 99th percentile)";
    draw(&x, name, &panels)
}

/// Panels below each other. `None` where there is nothing to see.
fn draw(x: &Axis, x_name: &str, panels: &[(String, Vec<Line>)]) -> Option<String> {
    let seen = |(_, lines): &&(String, Vec<Line>)| lines.iter().any(|line| !line.points.is_empty());
    let panels: Vec<&(String, Vec<Line>)> = panels.iter().filter(seen).collect();
    if panels.is_empty() {
        return None;
    }
    let bottom = |number: usize| TOP + PANEL + number as f64 * (PANEL + GAP);
    let mut drawing = Drawing::new(WIDTH, bottom(panels.len() - 1) + 80.0);
    let mut used: Vec<(Switch, &str)> = Vec::new();
    for (number, (title, lines)) in panels.iter().enumerate() {
        let values = || lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
        let most = values().fold(0.0, f64::max).max(1e-3);
        let least = values().fold(most, f64::min).max(1e-3);
        let paper = (bottom(number), bottom(number) - PANEL);
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        let (from, to) = (10f64.powf(from), 10f64.powf(to.max(from + 1.0)));
        let y = Axis { from, to, logarithmic: true, ..Axis::new(paper) };
        drawing.panel(title, x, &y);
        for line in lines.iter().filter(|line| !line.points.is_empty()) {
            let at = |&(value, height): &(f64, f64)| (x.place(value), y.place(height));
            let places: Vec<(f64, f64)> = line.points.iter().map(at).collect();
            drawing.line(&places, line.colour, line.dash);
            for place in places {
                drawing.point(place, line.colour, line.colour);
            }
            used.extend(SWITCHES.iter().filter(|(_, colour)| *colour == line.colour));
        }
    }
    let foot = bottom(panels.len() - 1);
    drawing.text((f64::midpoint(LEFT, RIGHT), foot + 38.0), "middle", "black", x_name);
    used.sort_unstable();
    used.dedup();
    for (number, (switch, colour)) in used.into_iter().enumerate() {
        let at = (LEFT + 165.0 * number as f64, foot + 62.0);
        drawing.text(at, "start", colour, switch.title());
    }
    Some(drawing.finish())
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;
    use crate::results::{Figures, Sample};

    #[test]
    fn what_was_measured_is_drawn() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        assert!(all(&results).is_empty());
        for (bytes, rate) in [(64, 2.0), (1518, 30.0)] {
            let load = Case::Throughput(Load::of(Size::Bytes(bytes)));
            let cell = Cell::new(load, Switch::Testpmd, Generator::Bench);
            let figures = Figures::from([("gbit_per_second".to_owned(), rate)]);
            let sample = Sample { run: 1, round: 1, figures, build: String::new(), seconds: 1.0 };
            results.add(&cell, sample)?;
        }
        let drawings = all(&results);
        let (name, _, svg) = drawings.first().context("a drawing")?;
        assert_eq!((*name, drawings.len()), ("throughput.svg", 1));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains(">testpmd io<") && !svg.contains(">OVS"), "{svg}");
        Ok(())
    }
}
