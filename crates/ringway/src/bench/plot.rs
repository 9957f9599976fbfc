//! Rate and latency over several trials, as an SVG file.

use guest::load::Pace;
use plot::{Axis, Drawing};

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

    let mut svg = Drawing::new(WIDTH, HEIGHT);
    let x_name = if over_rate { "offered, million frames/s each way" } else { "bytes of a frame" };
    svg.panel("received, million frames/s, all ways together", &x, &rate);
    svg.panel("latency, microseconds, of the slower way", &x, &latency);
    let middle = f64::midpoint(LEFT, RIGHT);
    svg.text((middle, LATENCY.1 + 38.0), "middle", "black", x_name);
    for (number, (name, trials)) in lines.iter().enumerate() {
        let dash = DASHES[number % DASHES.len()];
        let mut points = |axis: &Axis, value: &dyn Fn(&Trial) -> f64, colour: &str| {
            let places = trials.iter().filter_map(|trial| {
                Some((x.place(x_of(trial)?), axis.place(value(trial)), trial.passed()))
            });
            let mut places: Vec<(f64, f64, bool)> = places.collect();
            places.sort_by(|one, two| one.0.total_cmp(&two.0));
            let way: Vec<(f64, f64)> = places.iter().map(|(x, y, _)| (*x, *y)).collect();
            svg.line(&way, colour, dash);
            for (x, y, passed) in places {
                svg.point((x, y), colour, if passed { colour } else { "white" });
            }
        };
        points(&rate, &|trial| trial.total() / 1e6, "#2f855a");
        for (_, quantile, colour) in QUANTILES {
            points(&latency, &|trial| trial.latency(quantile).max(floor), colour);
        }
        let y = 24.0;
        let at = LEFT + 150.0 * number as f64;
        if !name.is_empty() {
            svg.line(&[(at, y - 4.0), (at + 30.0, y - 4.0)], "#444", dash);
            svg.text((at + 36.0, y), "start", "black", name);
        }
    }
    for (number, (name, _, colour)) in QUANTILES.into_iter().enumerate() {
        let at = (LEFT + 60.0 * number as f64, LATENCY.1 + 62.0);
        svg.text(at, "start", colour, name);
    }
    let (at, end) = (LATENCY.1 + 62.0, RIGHT - 12.0);
    svg.text((end - 12.0, at), "end", "black", "frames were lost, or could not be sent");
    svg.point((end, at - 4.0), "#444", "white");
    svg.finish()
}
