//! Measurements as SVG drawings: a panel with two axes, and lines and points in it. `ringway bench --plot` draws with
//! it, and so do the programs of `benches/`: the comparison with peers, and the flame graph.

use std::fmt::Write;

/// An axis: what lies where on it.
#[derive(Clone, Debug)]
pub struct Axis {
    /// The value at its beginning.
    pub from: f64,
    /// The value at its end.
    pub to: f64,
    /// Whether each step is a factor.
    pub logarithmic: bool,
    /// Values to write beside it; none, for round ones.
    pub marked: Vec<f64>,
    /// Where its ends are on the paper.
    pub paper: (f64, f64),
}

impl Axis {
    /// From nothing to one.
    pub fn new(paper: (f64, f64)) -> Self {
        Self { from: 0.0, to: 1.0, logarithmic: false, marked: Vec::new(), paper }
    }

    /// Where a value lies.
    pub fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(1e-9).log10() } else { value };
        let (from, to) = (scale(self.from), scale(self.to));
        let part = (scale(value) - from) / (to - from);
        self.paper.0 + part * (self.paper.1 - self.paper.0)
    }

    /// Values to write beside it.
    pub fn ticks(&self) -> Vec<f64> {
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

/// A drawing on its way.
#[derive(Clone, Debug)]
pub struct Drawing {
    svg: String,
}

impl Drawing {
    /// An empty sheet.
    pub fn new(width: f64, height: f64) -> Self {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        Self { svg }
    }

    /// The frame of a panel, which reaches as far as its axes, and these axes.
    pub fn panel(&mut self, title: &str, x: &Axis, y: &Axis) {
        let ((left, right), (bottom, top)) = (x.paper, y.paper);
        self.text((left, top - 8.0), "start", "black", title);
        for value in y.ticks() {
            let at = y.place(value);
            self.line(&[(left, at), (right, at)], "#ddd", "none");
            self.text((left - 8.0, at + 4.0), "end", "black", &short(value));
        }
        for value in x.ticks() {
            let at = x.place(value);
            self.line(&[(at, top), (at, bottom)], "#ddd", "none");
            self.text((at, bottom + 18.0), "middle", "black", &short(value));
        }
        self.line(&[(left, top), (left, bottom), (right, bottom)], "#444", "none");
    }

    /// A line through all of these places. `dash` is SVG's `stroke-dasharray`.
    pub fn line(&mut self, places: &[(f64, f64)], colour: &str, dash: &str) {
        let points: String = places.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
        let points = points.trim_end();
        let _ = writeln!(
            self.svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"{dash}\"/>"
        );
    }

    /// A point: a small circle.
    pub fn point(&mut self, (x, y): (f64, f64), colour: &str, fill: &str) {
        let _ = writeln!(
            self.svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" stroke=\"{colour}\" stroke-width=\"1.2\" fill=\"{fill}\"/>"
        );
    }

    /// Words. `anchor` is SVG's `text-anchor`: start, middle or end.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
        let _ = writeln!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
            escape(text)
        );
    }

    /// A box, with its upper left corner and its size, and `title`, which is shown to who points at it.
    pub fn rectangle(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        fill: &str,
        title: &str,
    ) {
        let title = escape(title);
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" \
             stroke=\"white\"><title>{title}</title></rect>"
        );
    }

    /// The whole file.
    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// Words as XML has them.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
    fn words_are_no_markup() {
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.text((0.0, 0.0), "start", "black", "Vec<u8>");
        drawing.rectangle((0.0, 1.0), (2.0, 3.0), "red", "a & b");
        let svg = drawing.finish();
        assert!(svg.contains(">Vec&lt;u8&gt;</text>"), "{svg}");
        assert!(
            svg.contains("height=\"3.0\"") && svg.contains("<title>a &amp; b</title>"),
            "{svg}"
        );
    }

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
