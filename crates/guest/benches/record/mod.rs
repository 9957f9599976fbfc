//! What a frame cost when it was counted last: a text file with a line for each case.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where it is kept.
pub const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
/// A count may differ by this much from what is recorded, in percent.
const TOLERANCE: f64 = 3.0;
/// How a difference is accepted.
const ACCEPT: &str = "UPDATE=1 cargo bench -p ringway-guest --bench instructions";
const TOOLS: &str = "# Counted with ";

/// The file.
pub struct Record {
    /// The lines for readers, which stay as they are.
    note: String,
    /// The compiler and the valgrind that it was made with.
    tools: String,
    counts: BTreeMap<String, f64>,
}

impl Record {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let mut record =
            Self { note: String::new(), tools: String::new(), counts: BTreeMap::new() };
        for line in text.lines() {
            if let Some(tools) = line.strip_prefix(TOOLS) {
                record.tools = tools.to_owned();
            } else if line.starts_with('#') {
                record.note += line;
                record.note.push('\n');
            } else {
                let words = line.split_once(' ');
                let count =
                    words.and_then(|(name, count)| Some((name, count.trim().parse().ok()?)));
                let (name, count) = count
                    .ok_or_else(|| format!("{}: no case and count: {line:?}", path.display()))?;
                record.counts.insert(name.to_owned(), count);
            }
        }
        Ok(record)
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let mut text = format!("{}{TOOLS}{}\n", self.note, self.tools);
        for (name, count) in &self.counts {
            writeln!(text, "{name:16} {count:8.1}")?;
        }
        fs::write(path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        println!("recorded in {}", path.display());
        Ok(())
    }

    /// The line of a table for a count.
    pub fn row(&self, case: &str, count: f64) -> String {
        match self.counts.get(case) {
            Some(recorded) => {
                format!(
                    "{case:16} {count:12.1} {recorded:12.1} {:+9.1} %",
                    percent(count, *recorded)
                )
            }
            None => format!("{case:16} {count:12.1} {:>12}", "none"),
        }
    }

    /// A record with these counts, and no others than those of `cases`.
    pub fn update(mut self, cases: &[&str], counts: &[(&str, f64)]) -> Self {
        self.tools = tools();
        self.counts.retain(|name, _| cases.contains(&name.as_str()));
        self.counts.extend(counts.iter().map(|(name, count)| ((*name).to_owned(), *count)));
        self
    }

    /// Fails when a count is not what is recorded, or when the record has another case than `cases`.
    pub fn compare(&self, cases: &[&str], counts: &[(&str, f64)]) -> Result<(), Box<dyn Error>> {
        let mut differences = String::new();
        for name in self.counts.keys().filter(|name| !cases.contains(&name.as_str())) {
            writeln!(differences, "{name}: recorded, and there is no such case")?;
        }
        for (name, count) in counts {
            let Some(recorded) = self.counts.get(*name) else {
                writeln!(differences, "{name}: {count:.1} instructions, and nothing is recorded")?;
                continue;
            };
            let percent = percent(*count, *recorded);
            if percent.abs() > TOLERANCE {
                let (by, what) = (percent.abs(), if percent > 0.0 { "more" } else { "fewer" });
                writeln!(
                    differences,
                    "{name}: {count:.1} instructions for each frame, {by:.1} % {what} than the \
                     {recorded:.1} that are recorded"
                )?;
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let (then, now) = (&self.tools, tools());
        Err(format!(
            "\n{differences}\nUp to {TOLERANCE} % are fine. If it has to be so, this accepts it:\n    \
             {ACCEPT}\nThe record was made with {then}\nand this is                {now}"
        )
        .into())
    }
}

/// How much more it is now, to a tenth.
fn percent(count: f64, recorded: f64) -> f64 {
    // The sum has no -0.0.
    ((count / recorded - 1.0) * 1000.0).round() / 10.0 + 0.0
}

/// What counts depend on beside our own code.
fn tools() -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_else(|error| format!("{program} ({error})"))
    };
    format!("{}, {}, {}", version("rustc"), version("valgrind"), std::env::consts::ARCH)
}
