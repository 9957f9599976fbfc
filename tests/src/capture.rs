//! Capture files that the switch writes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use wire::pcap::{Reader, Step};

/// A capture file that may still be written, and what was seen of it.
pub struct Capture {
    file: File,
    reader: Reader,
    /// What was read of the file and not understood yet.
    rest: Vec<u8>,
}

impl Capture {
    /// From its beginning.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Capture> {
        let file = File::open(path).with_context(|| format!("capture {}", path.display()))?;
        Ok(Capture { file, reader: Reader::new(), rest: Vec::new() })
    }

    /// The frames that came since this was asked last. One that is not there as a whole comes the next time.
    ///
    /// # Errors
    ///
    /// It is no capture file.
    pub fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        self.file.read_to_end(&mut self.rest)?;
        let (mut at, mut frames) = (0, Vec::new());
        loop {
            let window = self.rest.get(at..).context("more was skipped than there is")?;
            match self.reader.step(window)? {
                Step::Skip(bytes) => at += usize::try_from(bytes)?,
                Step::Frame(bytes, frame) => {
                    frames.push(frame.bytes.to_vec());
                    at += usize::try_from(bytes)?;
                }
                Step::More(_) => {
                    self.rest.drain(..at);
                    return Ok(frames);
                }
            }
        }
    }
}

/// The frames of a capture file that is complete.
///
/// # Errors
///
/// It is not.
pub fn captured(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut capture = Capture::open(path)?;
    let frames = capture.frames()?;
    capture.reader.end(&capture.rest, capture.rest.len() + 1).context("it is cut off")?;
    Ok(frames)
}
