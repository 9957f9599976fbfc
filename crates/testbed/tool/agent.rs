//! The guest's end of the command channel: runs the scripts a test sends, and sends back what they print.
//!
//! One thread reads commands; each job has a thread of its own, so a server and its client can run side by side. The
//! channel is written one whole line at a time under a lock.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::line;

/// The port appears a moment after its driver is loaded.
const PORT_LIMIT: Duration = Duration::from_secs(20);
/// There is no event to wait for: the pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

struct Agent {
    port: Mutex<File>,
    /// Running jobs and the process group of each.
    jobs: Mutex<HashMap<String, u32>>,
}

/// Serves the channel at `path` until the machine goes down.
pub fn serve(path: &str) -> io::Result<()> {
    let port = open(path)?;
    let mut commands = BufReader::new(port.try_clone()?);
    let agent = Arc::new(Agent { port: Mutex::new(port), jobs: Mutex::default() });
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = boot.trim();
    // Voids the torn line that an earlier boot may have left.
    agent.send(&[line::CAN, b'\n'])?;
    agent.send(&line::encode(&format!("hello {boot}"), b""))?;
    let mut command = Vec::new();
    loop {
        command.clear();
        while !command.ends_with(b"\n") {
            // A port whose other end is not open reads as ended, for now.
            if commands.read_until(b'\n', &mut command)? == 0 {
                thread::sleep(PAUSE);
            }
        }
        // Anything else is the rest of what was meant for an earlier boot.
        if let Some(([verb, to, job], script)) = line::decode::<3>(&command)
            && to == boot
        {
            match verb {
                "run" => Agent::start(&agent, job.to_owned(), script),
                "kill" => agent.kill(job)?,
                _ => {}
            }
        }
    }
}

fn open(path: &str) -> io::Result<File> {
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        match OpenOptions::new().read(true).write(true).open(path) {
            Err(_) if Instant::now() < deadline => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

impl Agent {
    fn send(&self, line: &[u8]) -> io::Result<()> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)
    }

    fn start(agent: &Arc<Agent>, job: String, script: Vec<u8>) {
        let agent = Arc::clone(agent);
        thread::spawn(move || {
            let status = agent.run(&job, &script).unwrap_or_else(|error| {
                let text = format!("the agent could not run this: {error}\n");
                let _ = agent.send(&line::encode(&format!("output {job}"), text.as_bytes()));
                127
            });
            // The channel is all there is to complain to.
            let _ = agent.send(&line::encode(&format!("exit {job} {status}"), b""));
        });
    }

    /// Runs a script to its end, and until nobody holds its output any more.
    fn run(&self, job: &str, script: &[u8]) -> io::Result<i32> {
        let script = std::str::from_utf8(script).map_err(io::Error::other)?;
        let (mut output, input) = io::pipe()?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .process_group(0)
            .spawn()?;
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job.to_owned(), child.id());
        let mut buffer = vec![0; 16 << 10];
        let words = format!("output {job}");
        loop {
            let count = output.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.send(&line::encode(&words, &buffer[..count]))?;
        }
        let status = child.wait()?;
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    fn kill(&self, job: &str) -> io::Result<()> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = jobs.get(job) {
            Command::new("/bin/kill").args(["-9", "--", &format!("-{group}")]).status()?;
        }
        Ok(())
    }
}
