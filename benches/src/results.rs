//! Raw results, in one JSON file. It is written after each measurement, so that a run that was ended half way can be
//! resumed, and each part of the matrix can be measured by itself and merged with what others have found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::matrix::Cell;
use crate::statistics::Spread;

/// Counted up when the file's form changes.
const FORMAT: u32 = 2;

/// Figures by name.
pub type Figures = BTreeMap<String, f64>;

/// A figure of samples that were disturbed: the processors did not stay as near to each other as they usually are. They count only
/// where a cell has no others.
pub const APART: &str = "apart";

/// What one measurement of a cell found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Which run of this program it is of, in seconds since 1970 (0: of one that did not say so).
    #[serde(default)]
    pub run: u64,
    /// Rounds of the same number in the same run were measured next to each other, and are compared with each other.
    pub round: u32,
    pub figures: Figures,
    /// The build of ringway.
    pub build: String,
    /// How long frames were counted.
    pub seconds: f64,
}

impl Sample {
    /// Whether these two were measured next to each other, with the same build.
    fn is_beside(&self, other: &Sample) -> bool {
        (self.run, self.round, &self.build) == (other.run, other.round, &other.build)
    }
}

/// What is known of a cell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    pub samples: Vec<Sample>,
    /// Why it was left out.
    pub left_out: Option<String>,
    /// Rounds that failed, and what went wrong.
    #[serde(default)]
    pub failed: BTreeMap<u32, String>,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    machine: Option<Machine>,
    cells: BTreeMap<String, Record>,
}

/// All that was measured until now.
pub struct Results {
    path: PathBuf,
    file: File,
}

impl Results {
    /// Those of a file; none if it is not there yet.
    pub fn open(path: &Path) -> Result<Results> {
        let file = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is not what this program wrote: remove it", path.display())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                File { format: FORMAT, machine: None, cells: BTreeMap::new() }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        ensure!(
            file.format == FORMAT,
            "{} has format {}, and this program writes {FORMAT}: remove it",
            path.display(),
            file.format
        );
        Ok(Results { path: path.to_owned(), file })
    }

    /// Writes the file, all or nothing.
    fn save(&self) -> Result<()> {
        let what = || format!("cannot write {}", self.path.display());
        let next = self.path.with_extension("json.next");
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).with_context(what)?;
        }
        fs::write(&next, serde_json::to_vec_pretty(&self.file)?).with_context(what)?;
        fs::rename(&next, &self.path).with_context(what)
    }

    /// Where things are measured from now on.
    pub fn set_machine(&mut self, machine: Machine) {
        self.file.machine = Some(machine);
    }

    pub fn machine(&self) -> Option<&Machine> {
        self.file.machine.as_ref()
    }

    pub fn record(&self, cell: &Cell) -> Option<&Record> {
        self.file.cells.get(&cell.to_string())
    }

    /// Whether this round of a cell was measured.
    pub fn has(&self, cell: &Cell, round: u32) -> bool {
        self.samples(cell).iter().any(|sample| sample.round == round)
    }

    pub fn samples(&self, cell: &Cell) -> &[Sample] {
        self.record(cell).map_or(&[], |record| &record.samples)
    }

    /// The samples that count.
    fn counting(&self, cell: &Cell) -> impl Iterator<Item = &Sample> {
        let samples = self.samples(cell);
        let is_good = |sample: &Sample| !sample.figures.contains_key(APART);
        let any_good = samples.iter().any(is_good);
        samples.iter().filter(move |sample| !any_good || is_good(sample))
    }

    /// Forgets what was found of a cell.
    pub fn forget(&mut self, cell: &Cell) {
        self.file.cells.remove(&cell.to_string());
    }

    /// Adds what was found of a cell.
    pub fn add(&mut self, cell: &Cell, sample: Sample) -> Result<()> {
        let record = self.file.cells.entry(cell.to_string()).or_default();
        record.failed.remove(&sample.round);
        record.samples.push(sample);
        self.save()
    }

    /// Notes what went wrong in a round.
    pub fn fail(&mut self, cell: &Cell, round: u32, why: &str) -> Result<()> {
        let record = self.file.cells.entry(cell.to_string()).or_default();
        record.failed.insert(round, why.to_owned());
        self.save()
    }

    /// Notes why a cell is not measured.
    pub fn leave_out(&mut self, cell: &Cell, why: &str) -> Result<()> {
        let record = self.file.cells.entry(cell.to_string()).or_default();
        record.left_out = Some(why.to_owned());
        self.save()
    }

    /// One figure of a cell over all rounds.
    pub fn figure(&self, cell: &Cell, name: &str) -> Option<Spread> {
        let samples = self.counting(cell);
        Spread::of(samples.filter_map(|sample| sample.figures.get(name).copied()))
    }

    /// One figure of a cell by that of another, of those rounds of a run that both have; of disturbed ones, if there are no others.
    pub fn ratio(&self, one: &Cell, other: &Cell, name: &str) -> Option<Spread> {
        let ratios = |ours: Vec<&Sample>, theirs: Vec<&Sample>| {
            Spread::of(ours.into_iter().filter_map(|sample| {
                let partner = theirs.iter().find(|partner| partner.is_beside(sample))?;
                Some(sample.figures.get(name)? / partner.figures.get(name)?)
            }))
        };
        ratios(self.counting(one).collect(), self.counting(other).collect()).or_else(|| {
            ratios(self.samples(one).iter().collect(), self.samples(other).iter().collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Case, Generator, Switch};

    fn cell(switch: Switch) -> Cell {
        Cell::new(Case::Idle { ports: 2 }, switch, Generator::Bench)
    }

    fn sample(round: u32, value: f64) -> Sample {
        let figures = Figures::from([("cpu".to_owned(), value)]);
        Sample { run: 1, round, figures, build: "test".to_owned(), seconds: 1.0 }
    }

    #[test]
    fn runs_are_merged_and_resumed() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("deep/results.json");
        let (ours, theirs) = (cell(Switch::RingwayPoll), cell(Switch::Testpmd));
        let mut results = Results::open(&path)?;
        results.add(&ours, sample(1, 2.0))?;
        results.add(&ours, sample(2, 6.0))?;
        let mut results = Results::open(&path)?;
        results.add(&theirs, sample(2, 2.0))?;
        results.add(&theirs, sample(3, 9.0))?;
        let mut results = Results::open(&path)?;
        assert!(results.has(&ours, 2) && !results.has(&ours, 3));
        assert_eq!(results.figure(&ours, "cpu").map(|cpu| cpu.median), Some(4.0));
        // Only the second round has both.
        assert_eq!(results.ratio(&ours, &theirs, "cpu").map(|ratio| ratio.median), Some(3.0));
        results.fail(&theirs, 1, "it was away")?;
        results.fail(&theirs, 4, "it was away")?;
        results.add(&theirs, sample(1, 8.0))?;
        let failed = results.record(&theirs).map(|record| record.failed.len());
        assert_eq!(failed, Some(1), "the first round was made up for");
        results.forget(&ours);
        assert_eq!(results.ratio(&ours, &theirs, "cpu"), None);
        Ok(())
    }

    #[test]
    fn rounds_of_other_runs_and_builds_are_not_compared() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        let (ours, theirs) = (cell(Switch::RingwayPoll), cell(Switch::Testpmd));
        results.add(&ours, sample(1, 6.0))?;
        results.add(&theirs, Sample { run: 2, ..sample(1, 1.0) })?;
        results.add(&theirs, Sample { build: "another".to_owned(), ..sample(1, 2.0) })?;
        assert_eq!(results.ratio(&ours, &theirs, "cpu"), None);
        results.add(&theirs, sample(1, 3.0))?;
        let ratio = results.ratio(&ours, &theirs, "cpu").map(|ratio| (ratio.median, ratio.count));
        assert_eq!(ratio, Some((2.0, 1)));
        Ok(())
    }

    #[test]
    fn what_was_disturbed_counts_where_there_is_nothing_else() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut results = Results::open(&directory.path().join("results.json"))?;
        let (ours, theirs) = (cell(Switch::RingwayPoll), cell(Switch::Testpmd));
        let disturbed = |round, value| {
            let mut sample = sample(round, value);
            sample.figures.insert(APART.to_owned(), 1.0);
            sample
        };
        results.add(&ours, disturbed(1, 2.0))?;
        assert_eq!(results.figure(&ours, "cpu").map(|cpu| cpu.median), Some(2.0));
        results.add(&ours, sample(2, 8.0))?;
        results.add(&ours, sample(3, 9.0))?;
        assert_eq!(results.figure(&ours, "cpu").map(|cpu| cpu.median), Some(8.5));
        let ratio = |results: &Results| Some(results.ratio(&ours, &theirs, "cpu")?.median);
        results.add(&theirs, sample(1, 1.0))?;
        assert_eq!(ratio(&results), Some(2.0), "there is no good round of both");
        results.add(&theirs, disturbed(2, 2.0))?;
        results.add(&theirs, sample(3, 3.0))?;
        assert_eq!(ratio(&results), Some(3.0));
        Ok(())
    }

    #[test]
    fn a_strange_file_is_not_overwritten() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("results.json");
        for text in ["{", "{\"format\": 99, \"machine\": null, \"cells\": {}}"] {
            fs::write(&path, text)?;
            let error = Results::open(&path).err().context("it is taken")?;
            assert!(format!("{error:#}").contains("remove it"), "{error:#}");
        }
        Ok(())
    }
}
