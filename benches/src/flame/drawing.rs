//! The picture: a box for each function, on top of the one that it is in, as wide as its share.

use plot::Drawing;

use super::chains::{Chains, Frame};

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const HEIGHT: f64 = 22.0;
/// Above the boxes, for the title and the colours.
const TOP: f64 = 60.0;
/// What is less than this is not drawn.
const LEAST: f64 = 0.005;
/// About the width of a letter.
const LETTER: f64 = 7.2;
/// Names of fewer letters say nothing.
const LEAST_LETTERS: usize = 4;
const ROOT: &str = "#d9d9d9";
/// The colour of each crate, bottom to top, and of what is not ours.
const COLOURS: [(&str, &str); 7] = [
    ("engine", "#f2cf9f"),
    ("ports", "#a9d3f5"),
    ("apps", "#b9e3b0"),
    ("virtqueue", "#f5b5b0"),
    ("memory", "#d5bff0"),
    ("wire", "#f3eda0"),
    ("", ROOT),
];

/// A function, and what is inlined in it.
#[derive(Debug, Default, PartialEq)]
struct Node {
    count: u64,
    parts: Vec<(Frame, Node)>,
}

impl Node {
    fn of(chains: &Chains) -> Node {
        let mut root = Node::default();
        for (chain, count) in chains {
            root.add(chain, *count);
        }
        root.sort();
        root
    }

    fn add(&mut self, chain: &[Frame], count: u64) {
        self.count += count;
        let [first, rest @ ..] = chain else { return };
        let found = self.parts.iter().position(|(frame, _)| frame == first);
        let at = found.unwrap_or_else(|| {
            self.parts.push((first.clone(), Node::default()));
            self.parts.len() - 1
        });
        self.parts[at].1.add(rest, count);
    }

    /// The widest first, at each height.
    fn sort(&mut self) {
        self.parts.sort_by(|(one, a), (other, b)| (b.count, one).cmp(&(a.count, other)));
        self.parts.iter_mut().for_each(|(_, part)| part.sort());
    }

    /// Boxes on top of each other, as far as they are drawn.
    fn height(&self, all: u64) -> usize {
        let parts = self.parts.iter().map(|(_, part)| part).filter(|part| part.share(all) >= LEAST);
        1 + parts.map(|part| part.height(all)).max().unwrap_or(0)
    }

    fn share(&self, all: u64) -> f64 {
        self.count as f64 / all.max(1) as f64
    }
}

/// Draws all chains, on top of `breathe`. `cycles` are those of a frame.
pub fn draw(chains: &Chains, title: &str, cycles: f64) -> String {
    let root = Node::of(chains);
    let bottom = TOP + root.height(root.count) as f64 * HEIGHT;
    let mut drawing = Drawing::new(WIDTH, bottom + MARGIN);
    drawing.text((MARGIN, 22.0), "start", "black", title);
    let mut x = MARGIN;
    for (name, colour) in COLOURS {
        let name = if name.is_empty() { "kernel and libraries" } else { name };
        drawing.rectangle((x, 34.0), (14.0, 14.0), colour, name);
        drawing.text((x + 20.0, 46.0), "start", "black", name);
        x += 45.0 + LETTER * name.len() as f64;
    }
    let mut picture = Picture { drawing, all: root.count, cycles };
    picture.node(&Frame::new("breathe", ""), &root, MARGIN, bottom - HEIGHT);
    picture.drawing.finish()
}

struct Picture {
    drawing: Drawing,
    all: u64,
    cycles: f64,
}

impl Picture {
    fn node(&mut self, frame: &Frame, node: &Node, left: f64, top: f64) {
        let share = node.share(self.all);
        if share < LEAST {
            return;
        }
        let width = share * (WIDTH - 2.0 * MARGIN);
        let colour = COLOURS.iter().find(|(name, _)| *name == frame.krate());
        let colour = colour.map_or(ROOT, |(_, colour)| colour);
        let (name, percent) = (frame.name.as_str(), 100.0 * share);
        let module = match frame.module.as_str() {
            "" => String::new(),
            module => format!(" (in {module})"),
        };
        let cycles = share * self.cycles;
        let title = format!("{name}{module}: {percent:.1} %, {cycles:.1} cycles a frame");
        self.drawing.rectangle((left, top), (width, HEIGHT), colour, &title);
        let letters = ((width - 8.0) / LETTER) as usize;
        let labels = [name, frame.function()].map(|name| format!("{name} {percent:.1} %"));
        let label = labels.into_iter().find(|label| label.chars().count() <= letters);
        let label = label.or_else(|| fit(frame.function(), letters));
        if let Some(label) = label {
            self.drawing.text((left + 4.0, top + 15.0), "start", "black", &label);
        }
        let mut left = left;
        for (frame, part) in &node.parts {
            self.node(frame, part, left, top - HEIGHT);
            left += part.share(self.all) * (WIDTH - 2.0 * MARGIN);
        }
    }
}

/// As much of a label as there is room for, if that is worth it.
fn fit(label: &str, letters: usize) -> Option<String> {
    if label.chars().count() <= letters {
        return Some(label.to_owned());
    }
    let kept = letters.checked_sub(1).filter(|kept| *kept >= LEAST_LETTERS)?;
    Some(label.chars().take(kept).chain(['…']).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains() -> Chains {
        let [pull, take, push] = ["pull", "take", "push"].map(|name| Frame::new(name, "ports::x"));
        let rare = Frame::new("rare", "");
        Chains::from([
            (vec![push], 600),
            (vec![pull.clone(), take], 300),
            (vec![pull], 98),
            (vec![rare], 2),
        ])
    }

    #[test]
    fn a_function_has_what_is_inlined_in_it() {
        let root = Node::of(&chains());
        let parts = |node: &Node| -> Vec<(String, u64)> {
            node.parts.iter().map(|(frame, part)| (frame.name.clone(), part.count)).collect()
        };
        let named = |name: &str, count| (name.to_owned(), count);
        assert_eq!(root.count, 1000);
        assert_eq!(parts(&root), [named("push", 600), named("pull", 398), named("rare", 2)]);
        assert_eq!(parts(&root.parts[1].1), [named("take", 300)]);
        assert_eq!(root.height(root.count), 3);
    }

    #[test]
    fn what_is_seen_is_drawn() {
        let svg = draw(&chains(), "64 bytes", 200.0);
        assert!(
            svg.contains("<title>take (in ports::x): 30.0 %, 60.0 cycles a frame</title>"),
            "{svg}"
        );
        assert!(svg.contains(">push 60.0 %<") && svg.contains(">breathe 100.0 %<"), "{svg}");
        assert!(!svg.contains("rare") && !svg.contains("<script"), "{svg}");
        // A third of what is inside the margins.
        assert!(svg.contains("width=\"354.0\""), "{svg}");
    }

    #[test]
    fn labels_fit() {
        assert_eq!(fit("take_any", 8).as_deref(), Some("take_any"));
        assert_eq!(fit("take_any", 6).as_deref(), Some("take_…"));
        assert_eq!(fit("take_any", 4), None);
        assert_eq!(fit("take_any", 0), None);
    }
}
