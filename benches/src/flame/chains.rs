//! Chains of inlined functions: what a sampled address belongs to, from the function that was compiled to the one
//! that was written there.
//!
//! `addr2line` knows them from the debugging information. Of a function that is in the table of symbols it says the name
//! that is there, even where that is not the one that was asked for; so it reads a copy of the program without that table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::names::{module, shorten};
use super::samples::Sample;

/// Debian's package of both tools.
const BINUTILS: &str = "binutils";

/// A function, or a part of one that was inlined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub name: String,
    /// Where it was written, with its crate first. Empty for what is not ours.
    pub module: String,
}

impl Frame {
    pub fn new(name: &str, module: &str) -> Frame {
        Frame { name: name.to_owned(), module: module.to_owned() }
    }

    /// The crate that it is in.
    pub fn krate(&self) -> &str {
        self.module.split("::").next().unwrap_or_default()
    }

    /// Its name without the type or module that it is in.
    pub fn function(&self) -> &str {
        self.name.rsplit("::").next().unwrap_or_default()
    }
}

/// Frames, outermost first.
pub type Chain = Vec<Frame>;

/// Different chains, and how often each was seen.
pub type Chains = BTreeMap<Chain, u64>;

/// What addr2line says of one place: a function, and the file where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    function: String,
    file: String,
}

/// Fails with what to install, if there is no addr2line.
pub fn check() -> Result<()> {
    ["objcopy", "addr2line"]
        .into_iter()
        .try_for_each(|tool| run(Command::new(tool).arg("--version"), BINUTILS).map(|_| ()))
}

/// Finds the chains of samples of a program, and merges equal ones.
pub fn resolve(program: &Path, samples: &[Sample], directory: &Path) -> Result<Chains> {
    let offsets: BTreeSet<u64> = samples.iter().filter_map(|sample| sample.offset).collect();
    let answer = ask(program, &offsets, directory)?;
    let answers = parse(&answer)?;
    let mut chains = Chains::new();
    for sample in samples {
        let lines = sample.offset.and_then(|offset| answers.get(&offset));
        *chains.entry(fold(sample, lines.map_or(&[], Vec::as_slice))).or_default() += 1;
    }
    Ok(chains)
}

fn ask(program: &Path, offsets: &BTreeSet<u64>, directory: &Path) -> Result<String> {
    let (bare, list) = (directory.join("without-symbols"), directory.join("addresses"));
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["--strip-all", "--keep-section=.debug*"]).args([program, &bare]);
    run(&mut objcopy, BINUTILS)?;
    let lines: String = offsets.iter().map(|offset| format!("{offset:#x}\n")).collect();
    fs::write(&list, lines)?;
    let mut addr2line = Command::new("addr2line");
    addr2line.args(["--addresses", "--functions", "--inlines", "--demangle", "--exe"]).arg(&bare);
    addr2line.stdin(File::open(&list)?);
    run(&mut addr2line, BINUTILS)
}

/// Runs a tool to its end: what it prints, or why not, and which package has it.
pub fn run(command: &mut Command, package: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::piped()).output();
    let output = output.with_context(|| {
        format!("cannot run {name}, which is in Debian's package {package}: is it installed?")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Each address comes on a line, and then a function and a place in turns, innermost first.
fn parse(text: &str) -> Result<BTreeMap<u64, Vec<Line>>> {
    let mut answers: BTreeMap<u64, Vec<Line>> = BTreeMap::new();
    let mut current = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x") {
            let address = u64::from_str_radix(address, 16);
            let address = address.with_context(|| format!("addr2line says {line:?}"))?;
            current = Some(answers.entry(address).or_default());
            continue;
        }
        let place = lines.next().with_context(|| format!("addr2line ends with {line:?}"))?;
        let file = place.rsplit_once(':').map_or(place, |(file, _)| file);
        let answer = current.as_mut().context("addr2line says no address")?;
        answer.push(Line { function: line.to_owned(), file: file.to_owned() });
    }
    Ok(answers)
}

/// The chain of a sample. What the standard library and other crates do is done by who calls them, and a closure by the
/// function that it is in. `breathe` is where all begins that the worker does over and over.
fn fold(sample: &Sample, lines: &[Line]) -> Chain {
    let mut chain = Chain::new();
    for (number, Line { function, file }) in lines.iter().rev().enumerate() {
        let Some(module) = module(file) else { continue };
        if function.starts_with('{') && !chain.is_empty() {
            continue;
        }
        // The compiled function has a symbol, which says its type; of the others only the file is known.
        let name = if number == 0 {
            shorten(&sample.symbol)
        } else {
            shorten(&format!("{module}::{}", shorten(function)))
        };
        let frame = Frame { name, module };
        if frame.function() == "breathe" && frame.krate() == "engine" {
            chain.clear();
        } else if chain.last() != Some(&frame) {
            chain.push(frame);
        }
    }
    let is_known = lines.iter().any(|line| module(&line.file).is_some());
    match (sample.offset, is_known) {
        (_, true) => chain,
        (Some(_), false) => vec![Frame::new(&shorten(&sample.symbol), "")],
        (None, _) => {
            vec![Frame::new(sample.outside(), ""), Frame::new(&shorten(&sample.symbol), "")]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
0x0000000000000010
<core::slice::Iter<T> as core::iter::Iterator>::next
/rustc/01/library/core/src/slice/iter.rs:9
{closure#0}<split::Queue>
/r/crates/ports/src/vhost_user/transmit.rs:4
take_singles<split::Queue>
/r/crates/ports/src/vhost_user/transmit.rs:3
pull
/r/crates/ports/src/vhost_user.rs:2
0x0000000000000020
may_be_skipped
/r/crates/engine/src/graph.rs:7 (discriminator 2)
breathe<{closure_env#0}>
/r/crates/engine/src/breath.rs:6
live
/r/crates/engine/src/worker.rs:5
__rust_begin_short_backtrace<F, T>
/rustc/01/library/std/src/sys/backtrace.rs:4
0x0000000000000030
??
??:0
";

    fn sample(offset: Option<u64>, symbol: &str) -> Sample {
        Sample { offset, is_kernel: false, symbol: symbol.to_owned() }
    }

    fn names(chain: &Chain) -> Vec<&str> {
        chain.iter().map(|frame| frame.name.as_str()).collect()
    }

    #[test]
    fn what_is_not_ours_is_done_by_its_caller() -> Result<()> {
        let answers = parse(SAID)?;
        let sample = sample(Some(0x10), "<p::vhost_user::VhostUserPort as e::App>::pull");
        let chain = fold(&sample, &answers[&0x10]);
        assert_eq!(names(&chain), ["VhostUserPort::pull", "transmit::take_singles"]);
        assert_eq!(chain[1].module, "ports::vhost_user::transmit");
        Ok(())
    }

    #[test]
    fn all_begins_with_a_breath() -> Result<()> {
        let answers = parse(SAID)?;
        let of = |offset| fold(&sample(Some(offset), "a::b"), &answers[&offset]);
        assert_eq!(names(&of(0x20)), ["graph::may_be_skipped"]);
        assert_eq!(fold(&sample(Some(0x20), "a::b"), &answers[&0x20][1..]), []);
        Ok(())
    }

    #[test]
    fn what_nothing_is_known_of_has_its_symbol() -> Result<()> {
        let answers = parse(SAID)?;
        assert_eq!(names(&fold(&sample(Some(0x30), "memcpy"), &answers[&0x30])), ["memcpy"]);
        let kernel = Sample { is_kernel: true, ..sample(None, "eventfd_write") };
        assert_eq!(names(&fold(&kernel, &[])), ["kernel", "eventfd_write"]);
        assert_eq!(names(&fold(&sample(None, "free"), &[])), ["system libraries", "free"]);
        Ok(())
    }

    #[test]
    fn half_an_answer_is_none() {
        assert!(parse("0x10\nf\n").is_err() && parse("f\nx.rs:1\n").is_err());
        assert!(parse("0xyz\n").is_err());
    }

    #[test]
    fn a_missing_tool_has_a_package() -> Result<()> {
        let missing = run(&mut Command::new("/no/such/tool"), BINUTILS);
        let error = missing.err().context("it ran")?;
        assert!(error.to_string().contains("Debian's package binutils"), "{error}");
        Ok(())
    }
}
