//! Lines over a socket, of limited length.

use std::io;

use thiserror::Error;
use tokio::net::UnixStream;

/// Why there is no line.
#[derive(Debug, Error)]
pub enum LineError {
    /// It is longer than it may be.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// The socket has failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// A socket as lines.
pub struct Lines {
    stream: UnixStream,
    limit: usize,
    /// What was read and not returned.
    buffer: Vec<u8>,
}

impl Lines {
    /// Lines of at most `limit` bytes, the end of the line not counted.
    pub fn new(stream: UnixStream, limit: usize) -> Self {
        Self { stream, limit, buffer: Vec::new() }
    }

    /// The next line, without its end; none when there is none that has one.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        // As far as that was looked at, there is no end in it.
        let mut seen = 0;
        loop {
            let end = self.buffer.iter().skip(seen).position(|byte| *byte == b'\n');
            let length = end.map_or(self.buffer.len(), |end| seen + end);
            if length > self.limit {
                return Err(LineError::TooLong(self.limit));
            }
            if end.is_some() {
                let rest = self.buffer.split_off(length + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(length);
                return Ok(Some(line));
            }
            seen = length;
            self.stream.readable().await?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(length) => self.buffer.extend(chunk.iter().take(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a line, to which this adds the end.
    pub async fn send(&mut self, line: &[u8]) -> Result<(), LineError> {
        let line = [line, b"\n"].concat();
        let mut rest = &line[..];
        while !rest.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(rest) {
                Ok(length) => rest = rest.get(length..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
