//! What a process uses, as /proc has it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Processor time of a process at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pid: u32,
    at: Instant,
    time: Duration,
}

impl Usage {
    pub fn now(pid: u32) -> Result<Usage> {
        let mut time = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // To the nanosecond, unlike `stat`. A thread may have ended meanwhile.
            if let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) {
                time += parse_schedstat(&text).context("schedstat is not as it should be")?;
            }
        }
        Ok(Usage { pid, at: Instant::now(), time })
    }

    /// The part of one processor that it had since.
    pub fn part_since(&self) -> Result<f64> {
        let now = Usage::now(self.pid)?;
        let (used, passed) = (now.time.saturating_sub(self.time), now.at - self.at);
        Ok(used.as_secs_f64() / passed.as_secs_f64().max(1e-9))
    }
}

/// Time on a processor, time in a queue for one, and turns.
fn parse_schedstat(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

/// Memory of a process in bytes, without what it shares with its guests; but with all hugepages, those of guests too
/// (of testpmd's, which are in no table).
pub fn memory(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_memory(&text).context("the status of a process is not as it should be")
}

fn parse_memory(text: &str) -> Option<f64> {
    let number = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| *name == key)?;
        value.split_whitespace().next()?.parse::<f64>().ok()
    };
    let kibibytes = number("RssAnon")? + number("RssFile")? + number("HugetlbPages")?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_its_own() {
        let text = "Name:\tx\nVmRSS:\t 97720 kB\nRssAnon:\t 100 kB\nRssFile:\t 20 kB\n\
                    RssShmem:\t 5000 kB\nHugetlbPages:\t 2048 kB\n";
        assert_eq!(parse_memory(text), Some(2168.0 * 1024.0));
        assert_eq!(parse_memory("Name:\tx\n"), None);
    }

    #[test]
    fn processor_time_is_in_nanoseconds() {
        let time = parse_schedstat("53205296586 3729759186 9691\n");
        assert_eq!(time, Some(Duration::from_nanos(53205296586)));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn a_busy_process_uses_about_a_processor() -> Result<()> {
        let before = Usage::now(std::process::id())?;
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {}
        assert!(before.part_since()? > 0.0 && memory(std::process::id())? > 0.0);
        Ok(())
    }
}
