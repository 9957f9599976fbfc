//! Rate and latency over several trials, as an SVG file.

use std::fmt::Write;

use guest::load::Pace;

use super::options::Size;
use super::report::Trial;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 620.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 730.0;
/// Top and bottom of the two panels.
const RATE: (f64, f64) = (50.0, 270.0);
const LATENCY: (f64, f64) = (320.0, 540.0);
/// Latencies that are drawn: name, part of the frames, colour.
const QUANTILES: [(&str, f64, &str); 3] =
    [("p50", 0.5, "#2b6cb0"), ("p99", 0.99, "#c05621"), ("p99.9", 0.999, "#9b2c2c")];
/// What a number beside an axis takes, from one to the next.
const LABEL: f64 = 36.0;
/// How lines of several sizes are told apart.
const DASHES: [&str; 4] = ["none", "7 4", "2 3", "9 3 2 3"];

/// An axis: what lies where on it.
struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
    /// Values to write beside it; none, for round ones.
    marked: Vec<f64>,
    /// Where its ends are on the paper.
    paper: (f64, f64),
}

impl Axis {
    /// From nothing.
    fn new(paper: (f64, f64)) -> Self {
        Self { from: 0.0, to: 1.0, logarithmic: false, marked: Vec::new(), paper }
    }

    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(1e-9).log10() } else { value };
        let (from, to) = (scale(self.from), scale(self.to));
        let part = (scale(value) - from) / (to - from);
        self.paper.0 + part * (self.paper.1 - self.paper.0)
    }

    /// Values to write beside it.
    fn ticks(&self) -> Vec<f64> {
        if !self.marked.is_empty() {
            return self.marked.clone();
        }
        if self.logarithmic {
            let decades = self.from.log10().ceil() as i32..=self.to.log10().floor() as i32;
            return decades.map(|power| 10f64.powi(power)).collect();
        }
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let count = ((self.to - self.from) / step + 1e-9) as usize;
        (0..=count).map(|number| self.from + number as f64 * step).collect()
    }
}

/// The drawing. Over the rate that was asked for, where there are several, or else over the size.
pub fn svg(trials: &[Trial]) -> String {
    let offered = |trial: &Trial| match trial.pace {
        Pace::Rate(rate) => Some(rate / 1e6),
        Pace::Window(_) => None,
    };
    let rates: Vec<f64> = trials.iter().filter_map(offered).collect();
    let over_rate = rates.iter().any(|rate| *rate != rates[0]);
    let x_of = |trial: &Trial| if over_rate { offered(trial) } else { Some(trial.mean) };
    let mut sizes: Vec<Size> = Vec::new();
    for trial in trials {
        if !over_rate || offered(trial).is_some() {
            sizes.push(trial.size);
        }
    }
    sizes.dedup();
    // One line for each size, or one line over all of them.
    let lines: Vec<(String, Vec<&Trial>)> = if over_rate {
        let of = |size: &Size| trials.iter().filter(|trial| trial.size == *size).collect();
        sizes.iter().map(|size| (format!("{size} bytes"), of(size))).collect()
    } else {
        vec![(String::new(), trials.iter().collect())]
    };

    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let most_x = most(&mut trials.iter().filter_map(x_of));
    let least_x = trials.iter().filter_map(x_of).fold(most_x, f64::min);
    let x = if over_rate {
        Axis { to: 1.05 * most_x, ..Axis::new((LEFT, RIGHT)) }
    } else {
        let (from, to) = (0.8 * least_x, 1.25 * most_x);
        let mut axis = Axis { from, to, logarithmic: true, ..Axis::new((LEFT, RIGHT)) };
        let mut sizes: Vec<f64> = trials.iter().map(|trial| trial.mean.round()).collect();
        sizes.sort_by(f64::total_cmp);
        // Those that are legible.
        sizes.dedup_by(|one, two| axis.place(*one) - axis.place(*two) < LABEL);
        axis.marked = sizes;
        axis
    };
    let most_rate = most(&mut trials.iter().map(|trial| trial.total() / 1e6)).max(1e-6);
    let rate = Axis { to: 1.1 * most_rate, ..Axis::new((RATE.1, RATE.0)) };
    let least = trials.iter().map(|trial| trial.latency(0.5)).fold(f64::MAX, f64::min);
    let longest = most(&mut trials.iter().map(|trial| trial.latency(0.999)));
    let floor = 10f64.powf(least.max(0.1).log10().floor());
    let latency = Axis {
        from: floor,
        to: 10f64.powf(longest.max(1.0).log10().ceil()).max(10.0 * floor),
        logarithmic: true,
        ..Axis::new((LATENCY.1, LATENCY.0))
    };

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let x_name = if over_rate { "offered, million frames/s each way" } else { "bytes of a frame" };
    panel(&mut svg, "received, million frames/s, all ways together", &x, &rate, RATE);
    panel(&mut svg, "latency, microseconds, of the slower way", &x, &latency, LATENCY);
    let middle = f64::midpoint(LEFT, RIGHT);
    text(&mut svg, (middle, LATENCY.1 + 38.0), "middle", "black", x_name);
    for (number, (name, trials)) in lines.iter().enumerate() {
        let dash = DASHES[number % DASHES.len()];
        let mut points = |axis: &Axis, value: &dyn Fn(&Trial) -> f64, colour: &str| {
            let places = trials.iter().filter_map(|trial| {
                Some((x.place(x_of(trial)?), axis.place(value(trial)), trial.passed()))
            });
            let mut places: Vec<(f64, f64, bool)> = places.collect();
            places.sort_by(|one, two| one.0.total_cmp(&two.0));
            let way: Vec<(f64, f64)> = places.iter().map(|(x, y, _)| (*x, *y)).collect();
            line(&mut svg, &way, colour, dash);
            for (x, y, passed) in places {
                point(&mut svg, (x, y), colour, if passed { colour } else { "white" });
            }
        };
        points(&rate, &|trial| trial.total() / 1e6, "#2f855a");
        for (_, quantile, colour) in QUANTILES {
            points(&latency, &|trial| trial.latency(quantile).max(floor), colour);
        }
        let y = 24.0;
        let at = LEFT + 150.0 * number as f64;
        if !name.is_empty() {
            line(&mut svg, &[(at, y - 4.0), (at + 30.0, y - 4.0)], "#444", dash);
            text(&mut svg, (at + 36.0, y), "start", "black", name);
        }
    }
    for (number, (name, _, colour)) in QUANTILES.into_iter().enumerate() {
        let at = (LEFT + 60.0 * number as f64, LATENCY.1 + 62.0);
        text(&mut svg, at, "start", colour, name);
    }
    let (at, end) = (LATENCY.1 + 62.0, RIGHT - 12.0);
    text(&mut svg, (end - 12.0, at), "end", "black", "frames were lost, or could not be sent");
    point(&mut svg, (end, at - 4.0), "#444", "white");
    svg.push_str("</svg>\n");
    svg
}

/// The frame of a panel, with its axes.
fn panel(svg: &mut String, title: &str, x: &Axis, y: &Axis, (top, bottom): (f64, f64)) {
    text(svg, (LEFT, top - 8.0), "start", "black", title);
    for value in y.ticks() {
        let at = y.place(value);
        line(svg, &[(LEFT, at), (RIGHT, at)], "#ddd", "none");
        text(svg, (LEFT - 8.0, at + 4.0), "end", "black", &short(value));
    }
    for value in x.ticks() {
        let at = x.place(value);
        line(svg, &[(at, top), (at, bottom)], "#ddd", "none");
        text(svg, (at, bottom + 18.0), "middle", "black", &short(value));
    }
    line(svg, &[(LEFT, top), (LEFT, bottom), (RIGHT, bottom)], "#444", "none");
}

fn line(svg: &mut String, places: &[(f64, f64)], colour: &str, dash: &str) {
    let points: String = places.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
    let points = points.trim_end();
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
         stroke-dasharray=\"{dash}\"/>"
    );
}

fn point(svg: &mut String, (x, y): (f64, f64), colour: &str, fill: &str) {
    let _ = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" stroke=\"{colour}\" stroke-width=\"1.2\" fill=\"{fill}\"/>"
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
    );
}

/// A number of at most six digits.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_where_they_should() {
        let axis = Axis { from: 1.0, to: 100.0, logarithmic: true, ..Axis::new((200.0, 0.0)) };
        assert_eq!([1.0, 10.0, 100.0].map(|value| axis.place(value).round()), [200.0, 100.0, 0.0]);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0]);
        let axis = Axis { marked: vec![64.0, 1518.0], ..axis };
        assert_eq!(axis.ticks(), [64.0, 1518.0]);
        let axis = Axis { to: 4.4, ..Axis::new((0.0, 44.0)) };
        assert_eq!(axis.place(1.1).round(), 11.0);
        assert_eq!(axis.ticks(), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!([0.0, 0.25, 1000.0].map(short), ["0", "0.25", "1000"]);
    }
}
