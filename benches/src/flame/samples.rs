//! Samples of the worker's thread, by `perf`: where it was, so many times a second.
//!
//! The clock of the processor is asked, and no counter of its: virtual machines have none. Addresses come as the program
//! runs, and the debugging information has them as it was linked; the kernel knows where it put the beginning.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testbed::Program;
use testbed::process::bound_command;

use super::chains::run;
use crate::interrupt;

/// Its package in Debian.
const PACKAGE: &str = "linux-perf";
/// Samples in a second.
const FREQUENCY: u32 = 5000;
/// The first worker's thread.
const WORKER: &str = "worker0";
/// Beyond the time of sampling: perf writes what it has seen.
const SLACK: Duration = Duration::from_secs(30);
/// From here on addresses are the kernel's.
const KERNEL: u64 = 1 << 63;

/// Where the thread was once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where in the program, as it was linked. None for what is not of the program.
    pub offset: Option<u64>,
    pub is_kernel: bool,
    /// Whose code that was, as the table of symbols has it.
    pub symbol: String,
}

impl Sample {
    /// What it belongs to that is not of the program.
    pub fn outside(&self) -> &'static str {
        if self.is_kernel { "kernel" } else { "system libraries" }
    }
}

/// Fails with what to install, if there is no perf.
pub fn check() -> Result<()> {
    run(Command::new("perf").arg("--version"), PACKAGE).map(|_| ())
}

/// Samples the worker of a running switch for a time.
pub fn take(pid: u32, program: &Path, time: Duration, directory: &Path) -> Result<Vec<Sample>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let image = Image::of(&maps, program)?;
    let file = directory.join("perf.data");
    let mut command = bound_command("perf");
    command.args(["record", "--quiet", "--event", "cpu-clock", "--freq", &FREQUENCY.to_string()]);
    command.arg("--tid").arg(worker(pid)?.to_string()).arg("--output").arg(&file);
    command.args(["--", "sleep", &time.as_secs_f64().to_string()]);
    let output = interrupt::wait(Program::start("host", "perf record", command)?, time + SLACK)?;
    ensure!(output.success(), "perf record failed: {}", output.text().trim());
    let mut script = Command::new("perf");
    script.args(["script", "--no-inline", "--fields", "ip,sym", "--input"]).arg(&file);
    let samples = parse(&run(&mut script, PACKAGE)?, &image)?;
    ensure!(!samples.is_empty(), "perf has no sample of {WORKER}");
    Ok(samples)
}

/// The thread's id.
fn worker(pid: u32) -> Result<u32> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        // A thread may have ended meanwhile.
        let is_worker = fs::read_to_string(path.join("comm")).is_ok_and(|it| it.trim() == WORKER);
        if is_worker {
            let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            return id.context("a thread with no number");
        }
    }
    bail!("process {pid} has no thread {WORKER}")
}

/// Where a program is in the memory of its process.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    start: u64,
    end: u64,
}

impl Image {
    /// Finds it in what the kernel says of a process. The first byte of the file is linked at nothing, as in each
    /// program that may lie anywhere.
    fn of(maps: &str, program: &Path) -> Result<Image> {
        let program = program.canonicalize()?;
        let program = program.to_str().context("the program's path is not UTF-8")?;
        let ours = |line: &&str| line.strip_suffix(program).is_some_and(|line| line.ends_with(' '));
        let range = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        };
        let ranges: Vec<_> = maps.lines().filter(ours).filter_map(range).collect();
        let [(start, _), .., (_, end)] = ranges[..] else { bail!("{program} is not mapped") };
        Ok(Image { start, end })
    }
}

/// A line is an address and a symbol, which may have blanks in it.
fn parse(text: &str, image: &Image) -> Result<Vec<Sample>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let sample = |line: &str| {
        let (address, symbol) = line.split_once(' ').unwrap_or((line, "[unknown]"));
        let address = u64::from_str_radix(address, 16);
        let address = address.with_context(|| format!("perf script says {line:?}"))?;
        let is_ours = (image.start..image.end).contains(&address);
        Ok(Sample {
            offset: is_ours.then(|| address - image.start),
            is_kernel: address >= KERNEL,
            symbol: symbol.trim().to_owned(),
        })
    };
    lines.map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_the_program_or_not() -> Result<()> {
        let image = Image { start: 0x5000, end: 0x6000 };
        let text = "      5010 <a::B as c::D>::e\n  7f00 memcpy\n ffffffff81000000 do_syscall_64\n";
        let samples = parse(text, &image)?;
        let offsets: Vec<_> = samples.iter().map(|sample| sample.offset).collect();
        assert_eq!(offsets, [Some(0x10), None, None]);
        assert_eq!(samples[0].symbol, "<a::B as c::D>::e");
        assert_eq!([&samples[1], &samples[2]].map(Sample::outside), ["system libraries", "kernel"]);
        assert!(parse("no address", &image).is_err());
        Ok(())
    }

    #[test]
    fn a_program_is_found_in_its_process() -> Result<()> {
        let own = std::env::current_exe()?;
        let maps = fs::read_to_string("/proc/self/maps")?;
        let image = Image::of(&maps, &own)?;
        let inside = addresses_are_of_the_program_or_not as fn() -> Result<()>;
        assert!((image.start..image.end).contains(&(inside as usize as u64)), "{image:?}");
        assert!(Image::of(&maps, Path::new("/")).is_err());
        Ok(())
    }
}
