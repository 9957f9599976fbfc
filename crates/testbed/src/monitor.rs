//! QEMU's machine protocol (QMP): one JSON object a line, an answer to each command, events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers from its main loop; a loaded machine may take a while.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Takes the greeting and leaves negotiation mode.
    pub(crate) fn new(stream: UnixStream) -> Result<Monitor> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Monitor { stream: BufReader::new(stream) };
        monitor.read().context("no greeting from QEMU's monitor")?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut answer = self.read().with_context(|| format!("no answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
